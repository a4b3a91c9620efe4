//! PostgreSQL servers of other versions, in containers made from the images of `scripts/postgres-image`.
//!
//! One of each version for the whole process, published on a free port of 127.0.0.1; removed by the
//! watchdog, however the process ends.

use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use camino::Utf8Path;
use secrecy::SecretString;
use seedbed::pg::{Session, SslMode, Target};

use super::postgres::{Server, newest_bin_dir};
use super::{require, unique, watchdog};

/// A busy machine runs `initdb` in some ten seconds.
const START_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

/// A server in a container.
pub struct Container {
    /// The same as for a server on this machine; its programs are those of the container.
    pub server: Server,
    pub name: String,
}

/// The shared server of `major`, if its image is here.
pub async fn container(major: u32) -> Option<&'static Container> {
    static STARTED: OnceLock<Mutex<Vec<(u32, &'static Container)>>> = OnceLock::new();
    if !image_is_here(major) {
        return None;
    }
    let container = {
        let mut started =
            STARTED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        match started.iter().find(|(known, _)| *known == major) {
            Some((_, container)) => container,
            None => {
                // Lives as long as the process, as what the watchdog removes does.
                let container: &'static Container =
                    Box::leak(Box::new(Container::start(major, &[])));
                started.push((major, container));
                container
            }
        }
    };
    container.answers().await;
    Some(container)
}

/// Whether `postgres:MAJOR` is here; its absence fails the test where everything is required.
pub fn image_is_here(major: u32) -> bool {
    let image = format!("postgres:{major}");
    let there = Command::new("docker")
        .args(["image", "inspect", &image])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    require(&format!("a Docker daemon with the image {image}"), there)
}

/// The name of the container that the program started for the project in `folder`.
pub fn named_by_labels(folder: &Utf8Path) -> String {
    let path = format!("label=seedbed.path={folder}");
    let mut command = Command::new("docker");
    command.args(["ps", "--format", "{{.Names}}", "--filter", &path]);
    output(command.args(["--filter", "label=seedbed.role=server"]))
}

impl Container {
    /// Starts one; `settings` as for the server on this machine. It does not answer yet.
    pub fn start(major: u32, settings: &[&str]) -> Self {
        let name = unique("seedbed-test-server").replace('_', "-");
        let password = unique("secret");
        watchdog::at_exit(&format!("docker rm --force --volumes {name}"));
        let mut command = Command::new("docker");
        command
            .args(["run", "--detach", "--rm", "--name", &name, "--publish", "127.0.0.1::5432"])
            .args(["--env", "POSTGRES_PASSWORD", "--shm-size", "256m"])
            // Takes what 13 stores by default, and SCRAM.
            .args(["--env", "POSTGRES_HOST_AUTH_METHOD=md5"])
            .arg(format!("postgres:{major}"))
            .env("POSTGRES_PASSWORD", &password);
        for setting in
            ["fsync=off", "full_page_writes=off", "synchronous_commit=off"].iter().chain(settings)
        {
            command.args(["-c", setting]);
        }
        output(&mut command);
        let published = output(Command::new("docker").args(["port", &name, "5432/tcp"]));
        let port = published.lines().next().and_then(|line| line.rsplit(':').next()?.parse().ok());
        let admin = Target {
            host: "127.0.0.1".to_owned(),
            port: port.unwrap_or_else(|| panic!("no port in {published:?}")),
            database: "postgres".to_owned(),
            user: "postgres".to_owned(),
            password: Some(SecretString::from(password)),
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_client: None,
            settings: Vec::new(),
        };
        Self { server: Server { admin, bin_dir: newest_bin_dir(), data_dir: None }, name }
    }

    /// The server shows this certificate, and lets its superuser in by a certificate of `authority` only.
    pub fn speaks_tls(&self, certificate: &Utf8Path, key: &Utf8Path, authority: &Utf8Path) {
        for (file, name) in
            [(certificate, "server.crt"), (key, "server.key"), (authority, "ca.crt")]
        {
            let to = format!("{}:/tmp/{name}", self.name);
            output(Command::new("docker").args(["cp", file.as_str(), &to]));
        }
        let script = "set -e; cd /tmp; chown postgres server.key ca.crt server.crt; chmod 600 server.key; \
            echo 'hostssl all postgres all cert' > \"$PGDATA/pg_hba.conf\"; \
            echo 'local all all trust' >> \"$PGDATA/pg_hba.conf\"; \
            for s in \"ssl = on\" \"ssl_cert_file = '/tmp/server.crt'\" \"ssl_key_file = '/tmp/server.key'\" \
              \"ssl_ca_file = '/tmp/ca.crt'\"; do psql -U postgres -qc \"alter system set $s\"; done; \
            psql -U postgres -qc 'select pg_reload_conf()'; \
            until test \"$(psql -U postgres -Atc 'show ssl')\" = on; do :; done";
        output(Command::new("docker").args(["exec", &self.name, "bash", "-c", script]));
    }

    /// Waits, by asking over TCP, which the server of the first initialisation does not serve.
    pub async fn answers(&self) {
        let started = std::time::Instant::now();
        loop {
            match Session::connect(&self.server.admin).await {
                Ok(session) => return session.close().await,
                Err(error) => assert!(started.elapsed() < START_LIMIT, "{}: {error}", self.name),
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &self.name]).output();
    }
}

fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the docker command is here");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// An image of PostgreSQL 17 in which these scripts come before its own programs; it goes with this process.
pub fn image_with(programs: &[(&str, &str)]) -> String {
    let name = format!("{}:17", unique("seedbed-test-programs"));
    watchdog::at_exit(&format!("docker rmi -f {name}"));
    let folder = tempfile::tempdir().expect("the temporary folder can be written to");
    for (program, script) in programs {
        fs_err::write(folder.path().join(program), script).expect("it is ours");
    }
    let folder = folder.path().display();
    let command = format!(
        "chmod 755 {folder}/* && id=$(docker create postgres:17) && docker cp {folder}/. $id:/usr/local/bin/ && \
         docker commit $id {name} && docker rm -v $id"
    );
    let output = Command::new("sh").args(["-c", &command]).output().expect("every Unix has sh");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    name
}
