//! TLS to a source, and what libpq knows beside a configuration: by the built program against a server
//! with certificates made for each case.

use std::os::unix::fs::PermissionsExt;

use camino::{Utf8Path, Utf8PathBuf};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use secrecy::ExposeSecret;

use crate::harness::{self, Run, Sandbox, Server, postgres};

/// An authority and its file.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: Utf8PathBuf,
}

/// A certificate and its key, as files.
struct Pair {
    certificate: Utf8PathBuf,
    key: Utf8PathBuf,
}

fn authority(dir: &Utf8Path, name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("no names at all");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("aws-lc-rs makes keys");
    let certificate = params.self_signed(&key).expect("signs itself");
    let file = dir.join(format!("{name}.crt"));
    std::fs::write(&file, certificate.pem()).expect("the folder is ours");
    Authority { issuer: Issuer::new(params, key), file }
}

fn params(host: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a host name");
    params.distinguished_name.push(DnType::CommonName, host);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Signed by `authority`, or by itself.
fn pair(dir: &Utf8Path, name: &str, params: CertificateParams, by: Option<&Authority>) -> Pair {
    let key = KeyPair::generate().expect("aws-lc-rs makes keys");
    let certificate = match by {
        Some(authority) => params.signed_by(&key, &authority.issuer),
        None => params.self_signed(&key),
    };
    let pair =
        Pair { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
    let certificate = certificate.expect("a certificate of plain parameters").pem();
    std::fs::write(&pair.certificate, certificate).expect("the folder is ours");
    std::fs::write(&pair.key, key.serialize_pem()).expect("the folder is ours");
    only_for_us(&pair.key);
    pair
}

fn only_for_us(path: &Utf8Path) {
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).expect("the file is ours");
}

/// A server, a folder with certificates, and a database with something in it.
struct Site {
    server: Server,
    dir: tempfile::TempDir,
    authority: Authority,
    database: harness::TestDatabase,
}

impl Site {
    async fn new() -> Self {
        let server = Server::start(&[]);
        let dir = tempfile::tempdir().expect("the temporary folder can be written to");
        let authority = authority(path_of(&dir), "authority");
        let database = server.create_database().await;
        database.run("create table t as select n from generate_series(1, 10) n").await;
        Self { server, dir, authority, database }
    }

    fn dir(&self) -> &Utf8Path {
        path_of(&self.dir)
    }

    /// The server shows this certificate from now on.
    async fn shows(&self, pair: &Pair) {
        let data = self.server.data_dir.as_deref().expect("a server of our own");
        for (file, name) in [(&pair.certificate, "server.crt"), (&pair.key, "server.key")] {
            let to = data.join(name);
            std::fs::copy(file, &to).expect("the data directory can be written to");
            postgres::give_to_server(&to);
        }
        postgres::run_sql(&self.server.admin, "alter system set ssl = on").await;
        self.reload().await;
    }

    async fn reload(&self) {
        let stamp = "select pg_conf_load_time()";
        let before = postgres::query_text(&self.server.admin, stamp).await;
        postgres::run_sql(&self.server.admin, "select pg_reload_conf()").await;
        while postgres::query_text(&self.server.admin, stamp).await == before {}
    }

    /// `snapshot create` of an environment that says `conf` of this database, as `localhost`.
    fn sandbox(&self, conf: &str) -> Sandbox {
        let mut sandbox = Sandbox::new();
        let target = &self.database.target;
        sandbox.write(
            "conf/prod.toml",
            format!(
                "protected = true\n[database]\nhost = \"localhost\"\nport = {}\nname = \"{}\"\nuser = \"postgres\"\n\
                 password = \"env:WORD\"\n{conf}\n[store]\nurl = \"store\"\n",
                target.port, target.database
            ),
        );
        let password = target.password.as_ref().expect("the superuser has one");
        sandbox.set("WORD", password.expose_secret());
        sandbox
    }

    fn create(&self, conf: &str) -> Run {
        self.sandbox(conf).run(&["snapshot", "create", "--env", "prod"])
    }
}

fn path_of(dir: &tempfile::TempDir) -> &Utf8Path {
    Utf8Path::from_path(dir.path()).expect("we named it in UTF-8")
}

fn verify(mode: &str, root: &Utf8Path) -> String {
    format!("sslmode = \"{mode}\"\nsslrootcert = \"{root}\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_certificate_is_refused_in_words_and_the_right_one_is_taken() {
    let site = Site::new().await;
    let root = site.authority.file.clone();
    let full = verify("verify-full", &root);
    let refused = |conf: &str, words: &str| {
        let run = site.create(conf).exits(4);
        assert!(run.stderr.contains(words), "`{words}` is missing in:\n{}", run.stderr);
    };

    // The server has no certificate at all.
    refused(&full, "the server does not speak it");
    refused(&full, "in a URL `?sslmode=disable`");
    refused("sslmode = \"require\"", "the server does not speak it");
    site.create("sslmode = \"prefer\"").succeeds();

    let good = pair(site.dir(), "good", params("localhost"), Some(&site.authority));
    site.shows(&good).await;
    site.create(&full).succeeds();
    site.create(&verify("verify-ca", &root)).succeeds();
    // Whatever signed it is not among the system's authorities.
    refused("sslmode = \"verify-full\"", "no authority that is trusted here");
    let what_to_write = "in a URL `?sslrootcert=PATH`; `?sslmode=require` trusts whoever answers";
    refused("sslmode = \"verify-full\"", what_to_write);
    refused("sslrootcert = \"system\"", "no authority that is trusted here");
    let run = site.create("sslmode = \"require\"\nsslrootcert = \"system\"").exits(3);
    assert!(run.stderr.contains("goes with `sslmode = verify-full` only"), "{}", run.stderr);

    let elsewhere = pair(site.dir(), "elsewhere", params("db.example.com"), Some(&site.authority));
    site.shows(&elsewhere).await;
    refused(&full, "the server's certificate is not for `localhost`");
    site.create(&verify("verify-ca", &root)).succeeds();

    let mut old = params("localhost");
    old.not_before = date_time_ymd(2020, 1, 1);
    old.not_after = date_time_ymd(2021, 1, 1);
    site.shows(&pair(site.dir(), "old", old, Some(&site.authority))).await;
    refused(&full, "the server's certificate has expired");
    refused(&verify("verify-ca", &root), "the server's certificate has expired");
    site.create("sslmode = \"require\"").succeeds();

    site.shows(&pair(site.dir(), "own", params("localhost"), None)).await;
    refused(&full, "no authority that is trusted here signed the server's certificate");
    refused(&verify("require", &root), "no authority that is trusted here");
    site.create("sslmode = \"require\"").succeeds();
    // Trusted for itself.
    site.create(&verify("verify-full", &site.dir().join("own.crt"))).succeeds();

    let other = authority(site.dir(), "other");
    site.shows(&pair(site.dir(), "theirs", params("localhost"), Some(&other))).await;
    refused(&full, "no authority that is trusted here signed the server's certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_logs_in_where_the_server_asks_for_one() {
    let site = Site::new().await;
    let server = pair(site.dir(), "server", params("localhost"), Some(&site.authority));
    let data = site.server.data_dir.as_deref().expect("a server of our own");
    let root = data.join("root.crt");
    std::fs::copy(&site.authority.file, &root).expect("the data directory can be written to");
    postgres::give_to_server(&root);
    postgres::run_sql(&site.server.admin, "alter system set ssl_ca_file = 'root.crt'").await;
    let rules = format!(
        "hostssl {} postgres all cert map=job\nhost all all all scram-sha-256\n",
        site.database.name()
    );
    std::fs::write(data.join("pg_hba.conf"), rules).expect("the data directory can be written to");
    std::fs::write(data.join("pg_ident.conf"), "job snapshot-job postgres\n").expect("as above");
    site.shows(&server).await;

    let job = pair(site.dir(), "job", params("snapshot-job"), Some(&site.authority));
    let full = verify("verify-full", &site.authority.file);
    let with = |pair: &Pair| {
        format!("{full}\nsslcert = \"{}\"\nsslkey = \"{}\"", pair.certificate, pair.key)
    };
    let without = site.create(&full).exits(4);
    assert!(without.stderr.contains("certificate"), "{}", without.stderr);
    // The programs that it runs log in the same way.
    site.create(&with(&job)).succeeds();
    let half = site.create(&format!("{full}\nsslcert = \"{}\"", job.certificate)).exits(3);
    assert!(half.stderr.contains("name it: `database.sslkey`"), "{}", half.stderr);

    let stranger = pair(site.dir(), "stranger", params("somebody"), Some(&site.authority));
    site.create(&with(&stranger)).exits(4);

    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&job.key, open).expect("the file is ours");
    let refused = site.create(&with(&job)).exits(4);
    assert!(refused.stderr.contains("its mode must be 0600"), "{}", refused.stderr);
}

/// The client programs of another version run in a container: the files go along.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_goes_along_into_the_container_of_the_client_programs() {
    let Some(_) = harness::container(13).await else { return };
    let dir = tempfile::tempdir().expect("the temporary folder can be written to");
    let dir = path_of(&dir);
    let authority = authority(dir, "authority");
    let server = pair(dir, "server", params("localhost"), Some(&authority));
    let job = pair(dir, "job", params("postgres"), Some(&authority));
    let container = harness::container::Container::start(13, &[]);
    container.answers().await;
    container.speaks_tls(&server.certificate, &server.key, &authority.file);

    let sandbox = Sandbox::new();
    sandbox.write(
        "conf/prod.toml",
        format!(
            "protected = true\n[database]\nhost = \"localhost\"\nport = {}\nname = \"postgres\"\nuser = \"postgres\"\n\
             sslmode = \"verify-full\"\nsslrootcert = \"{}\"\nsslcert = \"{}\"\nsslkey = \"{}\"\n[store]\nurl = \"store\"\n",
            container.server.admin.port, authority.file, job.certificate, job.key
        ),
    );
    sandbox.run(&["snapshot", "create", "--env", "prod"]).succeeds();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_leaves_open_comes_from_where_libpq_takes_it() {
    let site = Site::new().await;
    let target = &site.database.target;
    let password = target.password.as_ref().expect("the superuser has one").expose_secret();
    let project = || {
        let sandbox = Sandbox::new();
        sandbox.write("conf/seedbed.toml", "[store]\nurl = \"store\"\n");
        sandbox.write("conf/prod.toml", "protected = true\n");
        sandbox.write("conf/dev.toml", "");
        sandbox
    };
    let create = ["snapshot", "create", "--env", "prod"];
    let port = target.port.to_string();
    let place = [
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &port),
        ("PGDATABASE", site.database.name()),
        ("PGUSER", "postgres"),
        ("PGSSLMODE", "disable"),
    ];

    let mut sandbox = project();
    for (name, value) in place {
        sandbox.set(name, value);
    }
    sandbox.set("PGPASSWORD", password);
    sandbox.run(&create).succeeds();
    let config = sandbox.run(&["config", "--env", "prod"]).succeeds();
    assert!(config.stdout.contains("PGHOST") && !config.stdout.contains(password));
    // A local environment is not found by them.
    let config = sandbox.run(&["config", "--env", "dev", "--json"]).succeeds();
    assert!(!config.stdout.contains("PGHOST"), "{}", config.stdout);

    // The password file, which others must not be able to read.
    let mut sandbox = project();
    for (name, value) in place {
        sandbox.set(name, value);
    }
    let file = sandbox.project().join("../home/.pgpass");
    std::fs::write(&file, format!("127.0.0.1:{port}:*:postgres:{password}\n")).expect("it is ours");
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&file, open).expect("it is ours");
    let refused = sandbox.run(&create).exits(4);
    assert!(refused.stderr.contains("its mode must be 0600"), "{}", refused.stderr);
    only_for_us(&file);
    sandbox.run(&create).succeeds();
    let elsewhere = sandbox.project().join("words");
    std::fs::rename(&file, &elsewhere).expect("both are ours");
    sandbox.run(&create).exits(4);
    sandbox.set("PGPASSFILE", elsewhere.as_str());
    sandbox.run(&create).succeeds();

    // A service says everything; a key of the configuration wins over it.
    let mut sandbox = project();
    let services = sandbox.project().join("services.conf");
    let service = format!(
        "[factory]\nhost=127.0.0.1\nport={port}\ndbname={}\nuser=postgres\npassword={password}\n",
        site.database.name()
    );
    std::fs::write(&services, service).expect("it is ours");
    sandbox.set("PGSERVICEFILE", services.as_str());
    sandbox.write("conf/prod.toml", "protected = true\n[database]\nservice = \"factory\"\n");
    sandbox.run(&create).succeeds();
    let words = "protected = true\n[database]\nservice = \"factory\"\nname = \"nothing_here\"\n";
    sandbox.write("conf/prod.toml", words);
    let refused = sandbox.run(&create).exits(4);
    assert!(refused.stderr.contains("nothing_here"), "{}", refused.stderr);
    sandbox.write("conf/prod.toml", "protected = true\n[database]\nservice = \"unknown\"\n");
    let refused = sandbox.run(&create).exits(3);
    assert!(refused.stderr.contains("there is no service `unknown` in"), "{}", refused.stderr);
    sandbox.write("conf/prod.toml", "protected = true\n");
    sandbox.set("PGSERVICE", "factory");
    sandbox.run(&create).succeeds();
}
