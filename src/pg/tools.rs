//! PostgreSQL's own programs (`pg_dump`, `pg_restore`, `psql`), run where the right version is.
//!
//! In the engine's container, in a folder of this machine, or in a helper container on the host's
//! network. Never a client older than its server. Passwords go by the environment of the program,
//! never by its arguments; a container's `inspect` does not show the environment of what is executed
//! in it.

use std::fmt;
use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use rand::Rng;
use secrecy::ExposeSecret;
use tokio::io::AsyncWriteExt;
use tokio::sync::OnceCell;

use super::{SslMode, Target};
use crate::context::Context;
use crate::engine::{ContainerFile, ContainerRun, ContainerTools, Error, HelperContainer, place};

/// The programs of one major version. Cheap to clone.
#[derive(Clone)]
pub struct Tools {
    major: u32,
    place: Arc<OnceCell<Place>>,
}

enum Place {
    Host(Utf8PathBuf),
    Container(ContainerTools),
    Helper(HelperContainer),
}

/// One call of a program.
pub struct Call<'a> {
    /// `pg_dump`, `pg_restore`, `psql` …
    pub program: &'a str,
    /// Without connection and without secrets.
    pub args: Vec<String>,
    /// The server as seen from this machine; `None` for a call that connects to none.
    pub target: Option<&'a Target>,
    /// What the program reads from its standard input.
    pub stdin: Option<Bytes>,
    /// A file that the program needs as a file (`pg_restore -j`): its path becomes the last argument.
    pub input_file: Option<Bytes>,
}

/// What a program wrote and ended with.
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub status: i32,
}

/// A command for the user's terminal: the caller runs it with its own standard streams.
pub struct Interactive {
    pub program: Utf8PathBuf,
    pub args: Vec<String>,
    /// Holds the password: for the child's environment only.
    pub env: Vec<(String, String)>,
}

impl Tools {
    /// Programs that fit a server of `major`: this machine's of the same major version, else a helper
    /// container's, else this machine's of a newer one.
    ///
    /// # Errors
    /// [`Error::NoBinaries`] with what was tried.
    pub async fn find(ctx: &Context, major: u32) -> Result<Self, Error> {
        let tools = Self::later(ctx, major);
        tools.place(ctx).await?;
        Ok(tools)
    }

    /// The same, looked for at the first call.
    pub fn later(_: &Context, major: u32) -> Self {
        Self { major, place: Arc::new(OnceCell::new()) }
    }

    /// Programs of a folder of this machine.
    pub(crate) fn on_host(bin_dir: &Utf8Path, major: u32) -> Self {
        let place = OnceCell::new_with(Some(Place::Host(bin_dir.to_owned())));
        Self { major, place: Arc::new(place) }
    }

    /// Programs of the server's own container.
    pub(crate) fn in_container(container: ContainerTools, major: u32) -> Self {
        let place = OnceCell::new_with(Some(Place::Container(container)));
        Self { major, place: Arc::new(place) }
    }

    /// The server's major version that these programs are for.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Where the programs are, for people.
    ///
    /// # Errors
    /// As [`Tools::find`].
    pub async fn describe(&self, ctx: &Context) -> Result<String, Error> {
        Ok(match self.place(ctx).await? {
            Place::Host(dir) => dir.to_string(),
            Place::Container(container) => format!("container {}", container.container()),
            Place::Helper(helper) => format!("container {}", helper.container()),
        })
    }

    async fn place(&self, ctx: &Context) -> Result<&Place, Error> {
        self.place.get_or_try_init(|| look(ctx, self.major)).await
    }

    /// Runs a program to its end. A status other than 0 is the caller's to judge.
    ///
    /// # Errors
    /// When it cannot be run, or the user asks to stop: it is ended then.
    pub async fn run(&self, ctx: &Context, call: Call<'_>) -> Result<Output, Error> {
        match self.place(ctx).await? {
            Place::Host(dir) => run_on_host(ctx, dir, call).await,
            Place::Container(container) => {
                if let Some(target) = call.target
                    && target.is_loopback()
                    && !container.serves(target.port)
                {
                    return Box::pin(Self::find(ctx, self.major).await?.run(ctx, call)).await;
                }
                let run = in_container(&call, call.target.map(|t| (container.serves(t.port), t)))?;
                finish(container.run(ctx, run).await?)
            }
            Place::Helper(helper) => {
                let run = in_container(&call, call.target.map(|t| (false, t)))?;
                finish(helper.run(ctx, run).await?)
            }
        }
    }

    /// The command that opens `program` (`psql`) on the user's terminal.
    ///
    /// # Errors
    /// [`Error::NoBinaries`] when this machine has neither the program nor the Docker client.
    pub async fn interactive(
        &self,
        ctx: &Context,
        program: &str,
        args: Vec<String>,
        target: &Target,
    ) -> Result<Interactive, Error> {
        // A newer psql is a better psql: any that is not older will do.
        if let Some(found) = place::find(ctx, program, |major| major >= self.major).await {
            return Ok(Interactive {
                program: found.dir.join(program),
                args: with_database(args, target),
                env: connection(target, &target.host, target.port, &TlsFiles::of(target)),
            });
        }
        let (container, host, port) = match self.place(ctx).await? {
            Place::Host(dir) => {
                return Ok(Interactive {
                    program: dir.join(program),
                    args: with_database(args, target),
                    env: connection(target, &target.host, target.port, &TlsFiles::of(target)),
                });
            }
            Place::Container(tools) => (tools.container(), "127.0.0.1", 5432),
            Place::Helper(helper) => (helper.container(), target.host.as_str(), target.port),
        };
        let docker = ctx.env.path().into_iter().map(|dir| dir.join("docker")).find(|p| p.is_file());
        let Some(docker) = docker else {
            return Err(Error::NoBinaries {
                program: program.to_owned(),
                major: self.major.to_string(),
                reason: "this machine has neither it nor the `docker` client".to_owned(),
            });
        };
        let env = connection(target, host, port, &TlsFiles::default());
        // `-e NAME` without a value takes it from the environment: nothing secret is an argument.
        let names = env.iter().flat_map(|(name, _)| ["-e".to_owned(), name.clone()]);
        let mut command = vec!["exec".to_owned(), "--interactive".to_owned()];
        if ctx.env.stdin_is_terminal {
            command.push("--tty".to_owned());
        }
        command.extend(names);
        command.extend([container.to_owned(), program.to_owned()]);
        command.extend(with_database(args, target));
        Ok(Interactive { program: docker, args: command, env })
    }
}

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tools({})", self.major)
    }
}

async fn look(ctx: &Context, major: u32) -> Result<Place, Error> {
    // pg_dump decides: a folder may hold psql only.
    if let Some(found) = place::find(ctx, "pg_dump", |found| found == major).await {
        return Ok(Place::Host(found.dir));
    }
    let helper = match HelperContainer::make(ctx, major).await {
        Ok(helper) => return Ok(Place::Helper(helper)),
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => error,
    };
    // A newer pg_dump reads an older server; what it writes may need the newer one to be loaded.
    match place::find(ctx, "pg_dump", |found| found > major).await {
        Some(found) => {
            ctx.report.warn(format!(
                "pg_dump {} is used for a server of version {major}: no other one is here",
                found.major
            ));
            Ok(Place::Host(found.dir))
        }
        None => Err(Error::NoBinaries {
            program: "pg_dump".to_owned(),
            major: major.to_string(),
            reason: format!("none of that version or newer is on this machine, and {helper}"),
        }),
    }
}

async fn run_on_host(ctx: &Context, dir: &Utf8Path, call: Call<'_>) -> Result<Output, Error> {
    let program = dir.join(call.program);
    let fail = |error: std::io::Error| Error::Program {
        program: program.to_string(),
        reason: error.to_string(),
    };
    let mut args = call.args;
    let mut env = Vec::new();
    if let Some(target) = call.target {
        env = connection(target, &target.host, target.port, &TlsFiles::of(target));
        args = with_database(args, target);
    }
    let mut file = None;
    if let Some(bytes) = &call.input_file {
        let mut named = tempfile::NamedTempFile::new().map_err(fail)?;
        named.write_all(bytes).map_err(fail)?;
        args.push(named.path().to_string_lossy().into_owned());
        file = Some(named);
    }
    let mut command = tokio::process::Command::new(&program);
    // The user's own PG* variables are not ours to obey.
    command.args(args).env_clear().env("LC_ALL", "C").envs(env);
    command.stdin(if call.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(fail)?;
    let stdin = child.stdin.take();
    let send = async {
        if let (Some(mut stdin), Some(bytes)) = (stdin, call.stdin) {
            // A program that ends before it has read everything says why itself.
            let _ = stdin.write_all(&bytes).await;
        }
    };
    let work = async { futures_util::join!(child.wait_with_output(), send).0 };
    let output = tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => return Err(Error::Interrupted),
        output = work => output.map_err(fail)?,
    };
    drop(file);
    Ok(Output {
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: output.status.code().unwrap_or(-1),
    })
}

/// The call as it is made inside a container; `target` with whether it is that container's server.
fn in_container(call: &Call<'_>, target: Option<(bool, &Target)>) -> Result<ContainerRun, Error> {
    let mut command = vec![call.program.to_owned()];
    let mut files = Vec::new();
    let mut env = vec![("LC_ALL".to_owned(), "C".to_owned())];
    let name = || format!("seedbed-{:016x}", rand::rng().random::<u64>());
    match target {
        Some((true, target)) => {
            env.extend(connection(target, "127.0.0.1", 5432, &TlsFiles::default()));
            command.extend(with_database(call.args.clone(), target));
        }
        Some((false, target)) => {
            if target.host.starts_with('/') {
                return Err(Error::NoBinaries {
                    program: call.program.to_owned(),
                    major: "the server's version".to_owned(),
                    reason: format!("a container cannot reach the socket in `{}`", target.host),
                });
            }
            let mut inside = TlsFiles::of(target);
            for (path, mode) in inside.each() {
                let text = fs_err::read(&*path).map_err(Error::file("read", path.as_path()))?;
                let name = name();
                *path = Utf8PathBuf::from(format!("/tmp/{name}"));
                files.push(ContainerFile { name, content: Bytes::from(text), mode });
            }
            env.extend(connection(target, &target.host, target.port, &inside));
            command.extend(with_database(call.args.clone(), target));
        }
        None => command.extend(call.args.iter().cloned()),
    }
    if let Some(bytes) = &call.input_file {
        let name = name();
        command.push(format!("/tmp/{name}"));
        files.push(ContainerFile { name, content: bytes.clone(), mode: PUBLIC });
    }
    let env = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(ContainerRun { command, env, stdin: call.stdin.clone(), files })
}

fn finish(output: crate::engine::ExecOutput) -> Result<Output, Error> {
    Ok(Output {
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: i32::try_from(output.status).unwrap_or(-1),
    })
}

/// libpq's variables for a server.
fn connection(target: &Target, host: &str, port: u16, tls: &TlsFiles) -> Vec<(String, String)> {
    let mut env = Vec::new();
    let mut put = |name: &str, value: &str| env.push((name.to_owned(), value.to_owned()));
    put("PGHOST", host);
    put("PGPORT", &port.to_string());
    put("PGUSER", &target.user);
    put("PGDATABASE", &target.database);
    put("PGSSLMODE", target.ssl_mode.as_str());
    put("PGAPPNAME", "seedbed");
    put("PGCONNECT_TIMEOUT", "10");
    let files = [
        ("PGSSLROOTCERT", &tls.root_cert),
        ("PGSSLCERT", &tls.client_cert),
        ("PGSSLKEY", &tls.client_key),
    ];
    for (name, path) in files {
        if let Some(path) = path {
            put(name, path.as_str());
        }
    }
    if !target.settings.is_empty() {
        put("PGOPTIONS", &super::session::start_options(&target.settings));
    }
    if let Some(password) = &target.password {
        put("PGPASSWORD", password.expose_secret());
    }
    env
}

/// A file's mode in a container: for everybody there, or for root, who alone may read a private key.
const PUBLIC: u32 = 0o444;
const SECRET: u32 = 0o400;

/// The files that a program needs for TLS, where it runs.
#[derive(Default)]
struct TlsFiles {
    root_cert: Option<Utf8PathBuf>,
    client_cert: Option<Utf8PathBuf>,
    client_key: Option<Utf8PathBuf>,
}

impl TlsFiles {
    fn of(target: &Target) -> Self {
        Self {
            root_cert: target.ssl_root_cert.clone().or_else(|| system_roots(target)),
            client_cert: target.ssl_client.as_ref().map(|client| client.certificate.clone()),
            client_key: target.ssl_client.as_ref().map(|client| client.key.clone()),
        }
    }

    /// Each that there is, and its mode in a container.
    fn each(&mut self) -> impl Iterator<Item = (&mut Utf8PathBuf, u32)> {
        let public = self.root_cert.iter_mut().chain(&mut self.client_cert);
        public
            .map(|path| (path, PUBLIC))
            .chain(self.client_key.iter_mut().map(|path| (path, SECRET)))
    }
}

/// The system's own authorities, which libpq before 16 does not look for.
fn system_roots(target: &Target) -> Option<Utf8PathBuf> {
    const PLACES: [&str; 3] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
    ];
    if target.ssl_mode < SslMode::VerifyCa {
        return None;
    }
    PLACES.into_iter().map(Utf8PathBuf::from).find(|path| path.is_file())
}

/// `pg_restore` connects only when it is told a database; a name may look like a connection string.
fn with_database(mut args: Vec<String>, target: &Target) -> Vec<String> {
    let name = target.database.replace('\\', "\\\\").replace('\'', "\\'");
    args.push(format!("--dbname=dbname='{name}'"));
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            host: "127.0.0.1".to_owned(),
            port: 54_321,
            database: "it's=odd".to_owned(),
            user: "me".to_owned(),
            password: Some("S3cr3t!Canary".to_owned().into()),
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_client: None,
            settings: vec![("search_path".to_owned(), "a b".to_owned())],
        }
    }

    fn call(target: &Target) -> Call<'_> {
        Call {
            program: "pg_restore",
            args: vec!["-j2".to_owned()],
            target: Some(target),
            stdin: None,
            input_file: Some(Bytes::from_static(b"archive")),
        }
    }

    #[test]
    fn inside_the_servers_container_the_port_is_its_own() {
        let target = target();
        let run = in_container(&call(&target), Some((true, &target))).expect("made");
        assert!(run.env.contains(&"PGPORT=5432".to_owned()), "{:?}", run.env);
        assert!(run.env.contains(&"PGOPTIONS=-c search_path=a\\ b".to_owned()), "{:?}", run.env);
        assert_eq!(run.command[..3], ["pg_restore", "-j2", r"--dbname=dbname='it\'s=odd'"]);
        assert_eq!(run.command[3], format!("/tmp/{}", run.files[0].name));
    }

    #[test]
    fn the_password_is_in_the_environment_and_in_no_argument() {
        let target = target();
        let run = in_container(&call(&target), Some((false, &target))).expect("made");
        assert!(run.env.contains(&"PGPASSWORD=S3cr3t!Canary".to_owned()));
        assert!(run.env.contains(&"PGPORT=54321".to_owned()));
        assert!(run.command.iter().all(|word| !word.contains("Canary")));
    }

    #[test]
    fn a_container_does_not_reach_a_socket_of_the_host() {
        let target = Target { host: "/var/run/postgresql".to_owned(), ..target() };
        assert!(in_container(&call(&target), Some((false, &target))).is_err());
    }
}
