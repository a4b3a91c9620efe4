//! One real PostgreSQL server for the whole test process, and databases of one test each.
//!
//! The newest server of `/usr/lib/postgresql/*/bin` is started under an unprivileged account, on a
//! free port, in a folder of its own, and is stopped by the watchdog. `SEEDBED_TEST_PG` names a
//! server (a superuser's URL) to use instead.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use secrecy::{ExposeSecret, SecretString};
use seedbed::pg::{Session, SimpleQueryMessage, SslMode, Target};

use super::{require, say, unique, variable, watchdog};

/// The port is free when it is picked and may be taken when the server binds it.
const PORT_ATTEMPTS: usize = 5;

/// A running server and its superuser.
pub struct Server {
    /// The superuser, database `postgres`.
    pub admin: Target,
    /// Folder of `initdb`, `pg_dump` and the others of the server's version.
    pub bin_dir: PathBuf,
    /// The data directory; `None` for a server that was there before.
    pub data_dir: Option<PathBuf>,
}

/// The server that all tests of this process share.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| match variable("SEEDBED_TEST_PG") {
        Some(url) => Server { admin: parse_url(&url), bin_dir: newest_bin_dir(), data_dir: None },
        None => Server::start(&[]),
    })
}

impl Server {
    /// Starts another server, for a test that needs one of its own, with these extra settings.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_from(newest_bin_dir(), settings)
    }

    /// Starts the server of PostgreSQL 16 that `scripts/test` fetches for having been built without
    /// lz4, if it is there.
    pub fn start_without_lz4() -> Option<Self> {
        let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/postgres-without-lz4");
        let there = Path::new(fetched).join("pgserver/pginstall/bin/postgres").exists();
        if !require("PostgreSQL without lz4 (fetched by scripts/test)", there) {
            return None;
        }
        // Where the repository lies the account of servers may have no right to look.
        let dir = tempfile::Builder::new()
            .prefix("seedbed-test-without-lz4-")
            .tempdir()
            .expect("the temporary folder can be written to")
            .keep();
        watchdog::at_exit(&format!("rm -rf {}", dir.display()));
        let parts = ["pgserver", "pgserver.libs"].map(|part| Path::new(fetched).join(part));
        let copied = Command::new("cp").arg("-r").args(parts).arg(&dir).status();
        assert!(copied.expect("every Unix has cp").success());
        Account::unprivileged().own(&dir);
        Some(Self::start_from(dir.join("pgserver/pginstall/bin"), &[]))
    }

    fn start_from(bin_dir: PathBuf, settings: &[(&str, &str)]) -> Self {
        let password = unique("secret");
        let account = Account::unprivileged();
        let dir = tempfile::Builder::new()
            .prefix("seedbed-test-pg-")
            .tempdir()
            .expect("the temporary folder can be written to")
            .keep();
        let password_file = dir.join("password");
        std::fs::write(&password_file, &password).expect("a file in our own folder");
        account.own(&dir);
        account.own(&password_file);
        let data = dir.join("data");
        let text = |path: &Path| path.to_str().expect("we named it in UTF-8").to_owned();
        account.run(
            &bin_dir.join("initdb"),
            &[
                "--no-sync",
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                &format!("--pwfile={}", text(&password_file)),
                &format!("--pgdata={}", text(&data)),
            ],
        );
        stop_at_exit(&dir, &data);
        let port = start_on_free_port(&account, &bin_dir, &dir, &data, settings);
        Self {
            admin: Target {
                host: "127.0.0.1".to_owned(),
                port,
                database: "postgres".to_owned(),
                user: "postgres".to_owned(),
                password: Some(SecretString::from(password)),
                ssl_mode: SslMode::Disable,
                ssl_root_cert: None,
                ssl_client: None,
                settings: Vec::new(),
            },
            bin_dir,
            data_dir: Some(data),
        }
    }

    /// Starts a hot standby of this server, with these extra settings of its own.
    pub fn start_standby(&self, settings: &[(&str, &str)]) -> Self {
        let account = Account::unprivileged();
        let dir = tempfile::Builder::new()
            .prefix("seedbed-test-standby-")
            .tempdir()
            .expect("the temporary folder can be written to")
            .keep();
        account.own(&dir);
        let data = dir.join("data");
        let password = self.admin.password.as_ref().expect("the harness sets one");
        let output = account
            .command(&self.bin_dir.join("pg_basebackup"))
            .env("PGPASSWORD", password.expose_secret())
            .args(["--host", &self.admin.host, "--port", &self.admin.port.to_string()])
            .args(["--username", &self.admin.user, "--write-recovery-conf", "--no-sync"])
            .args(["--checkpoint=fast", "--pgdata"])
            .arg(&data)
            .output()
            .expect("it lies beside initdb");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        stop_at_exit(&dir, &data);
        let port = start_on_free_port(&account, &self.bin_dir, &dir, &data, settings);
        let admin = Target { port, ..self.admin.clone() };
        Self { admin, bin_dir: self.bin_dir.clone(), data_dir: Some(data) }
    }

    /// `pg_ctl restart --mode=immediate`: every session is cut off, the log is replayed.
    pub fn restart_at_once(&self) {
        let data = self.data_dir.as_ref().expect("a server that the harness started");
        let status = Account::unprivileged()
            .command(&self.bin_dir.join("pg_ctl"))
            .args(["restart", "--wait", "--silent", "--mode=immediate", "--pgdata"])
            .arg(data)
            .arg("--log")
            .arg(data.with_file_name("log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("pg_ctl lies beside initdb").success(), "it does not come back");
    }

    /// A new, empty database that is dropped with the value.
    pub async fn create_database(&self) -> TestDatabase {
        let name = unique("test");
        run_sql(&self.admin, &format!("create database {name}")).await;
        TestDatabase {
            target: self.admin.with_database(&name),
            admin: self.admin.clone(),
            data_dir: self.data_dir.clone(),
        }
    }

    /// A new role that may log in, with `attributes` (`bypassrls`) beside; dropped with the value.
    pub async fn create_role(&self, attributes: &str) -> TestRole {
        let name = unique("role");
        let password = unique("word");
        let sql = format!("create role {name} login {attributes} password '{password}'");
        run_sql(&self.admin, &sql).await;
        TestRole { name, password: SecretString::from(password), admin: self.admin.clone() }
    }
}

/// Has the server stopped and its folder removed when this process ends.
fn stop_at_exit(dir: &Path, data: &Path) {
    watchdog::at_exit(&format!(
        "kill -QUIT $(head -n 1 {data}/postmaster.pid); \
         for i in 1 2 3 4 5 6 7 8 9 10; do test -e {data}/postmaster.pid || break; sleep 0.2; done; \
         test -e {dir}/keep || rm -rf {dir}",
        data = data.display(),
        dir = dir.display(),
    ));
}

/// A database of one test, seen by the superuser. Dropped with the value, kept when the test fails.
pub struct TestDatabase {
    pub target: Target,
    admin: Target,
    data_dir: Option<PathBuf>,
}

impl TestDatabase {
    /// The database's name.
    pub fn name(&self) -> &str {
        &self.target.database
    }

    /// The database as `role` sees it.
    pub fn target_of(&self, role: &TestRole) -> Target {
        self.target.with_user(&role.name, Some(role.password.clone()))
    }

    /// Runs statements as the superuser.
    pub async fn run(&self, sql: &str) {
        run_sql(&self.target, sql).await;
    }

    /// The rows of a query as text, columns joined by `|`, rows by line breaks.
    pub async fn text(&self, sql: &str) -> String {
        query_text(&self.target, sql).await
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if std::thread::panicking() {
            keep(self);
            return;
        }
        let sql = format!("drop database if exists {} with (force)", self.name());
        run_in_thread(self.admin.clone(), sql);
    }
}

/// Says where the database of a failed test stays: the server is stopped, its folder is left.
fn keep(database: &TestDatabase) {
    let url = database.target.url_with_password();
    let Some(data) = &database.data_dir else { return say(&format!("kept database {url}")) };
    // Nothing more can be done about it in a test that has failed already.
    let _ = std::fs::write(data.with_file_name("keep"), "");
    let options = format!("-p {} -c unix_socket_directories=", database.target.port);
    say(&format!("kept database {url}, for a server started again as the folder's owner:"));
    say(&format!("  pg_ctl start --pgdata {} --options '{options}'", data.display()));
}

/// A role of one test. Dropped with the value; one that still owns something stays.
pub struct TestRole {
    pub name: String,
    pub password: SecretString,
    admin: Target,
}

impl Drop for TestRole {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            run_in_thread(self.admin.clone(), format!("drop role if exists {}", self.name));
        }
    }
}

/// Gives a file to the account that servers run under, which alone may read it.
pub fn give_to_server(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).expect("the file is ours");
    Account::unprivileged().own(path);
}

/// Runs statements anywhere; fails the test with the server's words.
pub async fn run_sql(target: &Target, sql: &str) {
    let session = connect(target).await;
    if let Err(error) = session.batch(sql).await {
        panic!("{sql}: {error}");
    }
    session.close().await;
}

/// The rows of a query as text, columns joined by `|` (null as `∅`), rows by line breaks.
pub async fn query_text(target: &Target, sql: &str) -> String {
    let session = connect(target).await;
    let messages = match session.simple(sql).await {
        Ok(messages) => messages,
        Err(error) => panic!("{sql}: {error}"),
    };
    session.close().await;
    let mut lines = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let cells: Vec<&str> =
                (0..row.len()).map(|column| row.get(column).unwrap_or("∅")).collect();
            lines.push(cells.join("|"));
        }
    }
    lines.join("\n")
}

async fn connect(target: &Target) -> Session {
    match Session::connect(target).await {
        Ok(session) => session,
        Err(error) => panic!("{target}: {error}"),
    }
}

/// Drop is not async and may run inside a runtime: the work gets a thread and a runtime of its own.
fn run_in_thread(target: Target, sql: String) {
    let work = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            // What is left when this fails goes with the server.
            if let Ok(session) = Session::connect(&target).await {
                let _ = session.batch(&sql).await;
                session.close().await;
            }
        });
        std::io::Result::Ok(())
    });
    let _ = work.join();
}

fn parse_url(text: &str) -> Target {
    let url = url::Url::parse(text).expect("SEEDBED_TEST_PG is a URL");
    Target {
        host: url.host_str().unwrap_or("127.0.0.1").to_owned(),
        port: url.port().unwrap_or(5432),
        database: "postgres".to_owned(),
        user: url.username().to_owned(),
        password: url.password().map(SecretString::from),
        ssl_mode: SslMode::Disable,
        ssl_root_cert: None,
        ssl_client: None,
        settings: Vec::new(),
    }
}

/// The folder of the newest PostgreSQL that is installed.
pub fn newest_bin_dir() -> PathBuf {
    let mut majors: Vec<u32> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|major| Path::new(&format!("/usr/lib/postgresql/{major}/bin/initdb")).exists())
        .collect();
    majors.sort_unstable();
    let major = majors.pop().expect("PostgreSQL is installed; `scripts/test` installs it");
    PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))
}

/// A port that nothing listened on a moment ago, and that nobody gets who asks for any: below those that the kernel
/// gives. Each is given once.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Suites that run beside each other begin at different ones.
    let first = std::process::id() * 37;
    loop {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + u16::try_from(number % 20_000).expect("less than 20,000");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn start_on_free_port(
    account: &Account,
    bin_dir: &Path,
    dir: &Path,
    data: &Path,
    settings: &[(&str, &str)],
) -> u16 {
    let log = dir.join("log");
    for _ in 0..PORT_ATTEMPTS {
        let port = free_port();
        let fixed = [
            ("port", port.to_string()),
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("unix_socket_directories", String::new()),
            ("max_connections", "300".to_owned()),
            ("fsync", "off".to_owned()),
            ("synchronous_commit", "off".to_owned()),
            ("full_page_writes", "off".to_owned()),
        ];
        let mut options = String::new();
        for (name, value) in &fixed {
            options.push_str(&format!(" -c {name}={value}"));
        }
        for (name, value) in settings {
            options.push_str(&format!(" -c {name}={value}"));
        }
        let started = account
            .command(&bin_dir.join("pg_ctl"))
            .args(["start", "--wait", "--timeout=60", "--silent", "--pgdata"])
            .arg(data)
            .arg("--log")
            .arg(&log)
            .arg(format!("--options={options}"))
            // The server inherits these; a pipe would keep whoever reads it waiting for its end.
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("pg_ctl lies beside initdb");
        if started.success() {
            return port;
        }
    }
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    panic!("PostgreSQL did not start: {log}");
}

/// The account that servers run under: PostgreSQL refuses to run as root.
struct Account {
    /// Uid and gid to become; `None` when the tests are unprivileged themselves.
    ids: Option<(u32, u32)>,
}

impl Account {
    fn unprivileged() -> Self {
        if !nix::unistd::Uid::effective().is_root() {
            return Self { ids: None };
        }
        let user = ["postgres", "nobody"]
            .iter()
            .find_map(|name| nix::unistd::User::from_name(name).ok().flatten())
            .expect("every Unix has the user nobody");
        Self { ids: Some((user.uid.as_raw(), user.gid.as_raw())) }
    }

    fn own(&self, path: &Path) {
        let (uid, gid) = self.ids.unzip();
        std::os::unix::fs::chown(path, uid, gid).expect("root may give its files away");
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
        if let Some((uid, gid)) = self.ids {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn run(&self, program: &Path, args: &[&str]) {
        let output: Output =
            self.command(program).args(args).output().expect("a PostgreSQL program can be run");
        assert!(
            output.status.success(),
            "{} failed: {}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
