//! The server from this machine's own binaries, with its data in the project's `.seedbed/native`.
//!
//! It listens on 127.0.0.1 only, with no Unix socket, and asks for SCRAM always. Started by root it
//! runs as `postgres` or `nobody`; its data is then below `/var/lib/seedbed` when that user cannot
//! reach the project. The folder's marker is written when the cluster is complete: one without it is
//! made again.

mod images;
mod unpack;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncWriteExt;

use super::images::Shelf;
use super::place::{self, BinDir, RunAs};
use super::state::{self, NativeState, State};
use super::{Error, Identity, Server, ServerKind, Stopped, Volumes, crash, port, ready, settings};
use crate::context::Context;
use crate::pg::tools::Tools;
use crate::pg::{Session, SslMode, Target, scram};

const MARKER: &str = "seedbed.json";
const SUPERUSER: &str = "postgres";
const LOG_LINES: usize = 12;
/// A shutdown checkpoint of a busy server.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// A server from a folder of binaries.
#[derive(Clone)]
pub struct NativeEngine {
    bin: BinDir,
    kind: ServerKind,
    port: Option<u16>,
    arguments: Vec<String>,
    password: Option<SecretString>,
    user: Option<RunAs>,
    /// Holds `data`, clones of it, and `log`.
    home: Utf8PathBuf,
    /// Of the environment.
    hash: String,
    /// Frozen data directories of the project, which its branches share, on the same file system; or
    /// the environment's own points.
    images_dir: Utf8PathBuf,
    shelf: Shelf,
}

impl NativeEngine {
    /// Finds the binaries: `engine.bin_dir`, PATH, then the places where packages put them.
    ///
    /// # Errors
    /// [`Error::NoBinaries`].
    pub async fn find(ctx: &Context) -> Result<Self, Error> {
        let fits = wanted_major(ctx);
        match place::find(ctx, "initdb", |major| fits.is_none_or(|wanted| wanted == major)).await {
            Some(bin) => Ok(Self::with(ctx, bin, ServerKind::Native)),
            None => Err(Error::NoBinaries {
                program: "initdb".to_owned(),
                major: fits.map_or("any version".to_owned(), |major| major.to_string()),
                reason: match &ctx.config.engine.bin_dir {
                    Some(dir) => format!("`{dir}` does not hold it"),
                    None => "it is neither in PATH nor where packages put it".to_owned(),
                },
            }),
        }
    }

    pub(super) fn with(ctx: &Context, bin: BinDir, kind: ServerKind) -> Self {
        let user = place::run_as();
        let name = super::docker::environment_hash(ctx);
        let project = super::docker::hash_of(ctx.config.project.as_str());
        Self {
            bin,
            kind,
            port: port::named(&ctx.config),
            arguments: settings::server_arguments(&ctx.config.engine),
            password: super::configured_password(&ctx.config),
            user,
            home: place::reachable(&ctx.state_dir().join("native"), &name, user),
            hash: name,
            images_dir: place::reachable(
                &ctx.project_dir().join("images"),
                &format!("{project}-images"),
                user,
            ),
            shelf: Shelf::Images,
        }
    }

    pub(super) fn bin(&self) -> &BinDir {
        &self.bin
    }

    fn data(&self) -> Utf8PathBuf {
        self.home.join("data")
    }

    fn log(&self) -> Utf8PathBuf {
        self.home.join("log")
    }

    fn what(&self) -> String {
        format!("PostgreSQL {} in `{}`", self.bin.major, self.data())
    }

    fn target(&self, port: u16, password: SecretString) -> Target {
        Target {
            host: "127.0.0.1".to_owned(),
            port,
            database: "postgres".to_owned(),
            user: SUPERUSER.to_owned(),
            password: Some(password),
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_client: None,
            settings: Vec::new(),
        }
    }

    /// A command that runs as the server's user, with nothing of our environment.
    fn command(&self, program: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(self.bin.dir.join(program));
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").current_dir("/");
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    pub(super) async fn ensure(&self, ctx: &Context) -> Result<Server, Error> {
        self.ensure_on(ctx, false).await
    }

    /// `was_ours`: the server was stopped a moment ago. It takes its lock file away before it has left
    /// its port.
    async fn ensure_on(&self, ctx: &Context, mut was_ours: bool) -> Result<Server, Error> {
        let mut state = state::read(ctx)?;
        if let Some(port) = self.serving() {
            match self.connect_to(ctx, &mut state, port).await {
                // A run was cut off before it had set the password in data from elsewhere: the start does.
                Err(Error::Password { .. }) if self.is_from_elsewhere() => {
                    ctx.report
                        .note("the server is started anew: its data came with another password");
                    self.stop_server(ctx).await?;
                }
                // It was on its way down.
                Err(Error::Died { .. }) if self.serving().is_none() => {}
                other => return other,
            }
            was_ours = true;
        }
        let step = ctx.report.step("start PostgreSQL from local binaries");
        self.recover()?;
        self.check_copy()?;
        self.disown_lock_file()?;
        self.check_data(&state)?;
        let password = match (state.password(), &self.password) {
            (Some(known), _) => known,
            (None, Some(configured)) => configured.clone(),
            (None, None) => state::new_password(),
        };
        state.set_password(&password);
        let remembered = state.native.as_ref().map(|native| native.port);
        let port = port::choose(ctx, self.port, remembered, was_ours).await?;
        state.native = Some(NativeState { data: self.data(), port, bin_dir: self.bin.dir.clone() });
        state.kind = Some(self.kind);
        state::write(ctx, &state)?;
        if !self.data().join(MARKER).is_file() {
            self.make_cluster(ctx, &password).await?;
        }
        let port = self.start_somewhere(ctx, &mut state, port, &password).await?;
        let server = self.connect_to(ctx, &mut state, port).await?;
        step.done(format!("{} on port {port}", self.bin.major));
        Ok(server)
    }

    /// Starts the server, on another port where none was named and somebody else has come to this one since we
    /// looked: making a cluster takes seconds.
    async fn start_somewhere(
        &self,
        ctx: &Context,
        state: &mut State,
        mut port: u16,
        password: &SecretString,
    ) -> Result<u16, Error> {
        let mut tries = 1..port::TRIES;
        let mut remember = |port: u16| {
            if let Some(native) = &mut state.native {
                native.port = port;
            }
            state::write(ctx, state)
        };
        loop {
            match self.start(ctx, port, password).await {
                Ok(_) => return Ok(port),
                // One that a run had begun to start when it was killed has the data first.
                Err(Error::Died { .. }) if let Some(served) = self.serving() => {
                    remember(served)?;
                    return Ok(served);
                }
                Err(Error::Died { .. })
                    if self.port.is_none() && !port::is_free(port) && tries.next().is_some() =>
                {
                    port = port::choose(ctx, None, None, false).await?;
                    remember(port)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn running(&self, ctx: &Context) -> Result<Option<Server>, Error> {
        match self.serving() {
            Some(port) => match self.connect_to(ctx, &mut state::read(ctx)?, port).await {
                // It was on its way down.
                Err(Error::Died { .. }) if self.serving().is_none() => Ok(None),
                other => other.map(Some),
            },
            None => Ok(None),
        }
    }

    /// The port of the server that runs on our data, from its own lock file. Nobody may listen there: it
    /// has just begun to start, or it ends.
    fn serving(&self) -> Option<u16> {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let lines: Vec<&str> = text.lines().collect();
        if self.original(&lines).is_some() {
            return None;
        }
        let pid = lines.first()?.trim().parse::<i32>().ok()?;
        let port = lines.get(3)?.trim().parse().ok()?;
        // After a crash the number may belong to another process.
        let is_ours = || match self.is_in_our_data(pid) {
            Some(is_ours) => is_ours,
            None => !port::is_free(port),
        };
        (is_alive(pid) && is_postgres(pid) && is_ours()).then_some(port)
    }

    /// Whether this process works in our data directory, as each server does in its own, or was started with it;
    /// where that can be told. A path alone may mean another folder to it.
    fn is_in_our_data(&self, pid: i32) -> Option<bool> {
        let ours = std::fs::metadata(self.data()).ok()?;
        let is_ours = |path: &OsStr| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()) == (ours.dev(), ours.ino()))
        };
        is_ours(OsStr::new(&format!("/proc/{pid}/cwd"))).or_else(|| {
            // Also root may be kept from a look at what others work in.
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let mut words = command.split(|&byte| byte == 0).skip_while(|&word| word != b"-D");
            is_ours(OsStr::from_bytes(words.nth(1)?))
        })
    }

    /// After a crash the number in the lock file may be that of another process, which PostgreSQL would
    /// take for its server. Only the number is replaced, by one that no process has: by the rest
    /// PostgreSQL sees whether orphans of the old server still use its memory.
    fn disown_lock_file(&self) -> Result<(), Error> {
        let path = self.data().join("postmaster.pid");
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
        let Some((number, rest)) = text.split_once('\n') else { return Ok(()) };
        let Ok(pid) = number.trim().parse::<i32>() else { return Ok(()) };
        if !is_alive(pid) || (is_postgres(pid) && self.is_in_our_data(pid) != Some(false)) {
            return Ok(());
        }
        fs_err::write(&path, format!("{}\n{rest}", i32::MAX)).map_err(Error::file("write", &path))
    }

    /// Of which folder ours is a copy, lock file and all: the file names the folder that its server runs
    /// on. One that names no folder any more is that of a project that was moved.
    fn original(&self, lock_file: &[&str]) -> Option<std::path::PathBuf> {
        let named = std::fs::canonicalize(lock_file.get(1)?.trim()).ok()?;
        let ours = std::fs::canonicalize(self.data()).ok()?;
        (named != ours).then_some(named)
    }

    /// Refuses a copy that was made while the original's server ran: its files do not fit together.
    fn check_copy(&self) -> Result<(), Error> {
        let data = self.data();
        let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        match self.original(&text.lines().collect::<Vec<_>>()) {
            None => Ok(()),
            Some(original) => Err(Error::DataUnusable {
                place: data.to_string(),
                reason: format!(
                    "it was copied from `{}` while a server ran on that",
                    original.display()
                ),
            }),
        }
    }

    /// Refuses data of another major version, and data whose marker is gone.
    fn check_data(&self, state: &State) -> Result<(), Error> {
        let data = self.data();
        let Ok(version) = std::fs::read_to_string(data.join("PG_VERSION")) else { return Ok(()) };
        if !data.join(MARKER).is_file() {
            return Ok(());
        }
        let holds = version.trim();
        if holds == self.bin.major.to_string() {
            return Ok(());
        }
        let place = state.native.as_ref().map_or(data, |native| native.data.clone());
        Err(Error::OtherMajor {
            place: place.to_string(),
            holds: holds.to_owned(),
            wanted: self.bin.major,
            kind: self.kind,
        })
    }

    /// Makes a new cluster; what an interrupted run left there goes first.
    async fn make_cluster(&self, ctx: &Context, password: &SecretString) -> Result<(), Error> {
        let data = self.data();
        remove_dir(&data)?;
        fs_err::create_dir_all(&data).map_err(Error::file("make", &data))?;
        place::give(&self.home, self.user)?;
        place::give(&data, self.user)?;
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&data, private).map_err(Error::file("close", &data))?;
        let done = ready::cancellable(ctx, self.initdb(&data, password)).await;
        if !matches!(done, Ok(Ok(()))) {
            let _ = remove_dir(&data);
        }
        done??;
        let marker = data.join(MARKER);
        let text = serde_json::json!({ "format": 1, "project": ctx.config.project }).to_string();
        fs_err::write(&marker, text).map_err(Error::file("write", &marker))?;
        place::give(&marker, self.user)
    }

    async fn initdb(&self, data: &Utf8Path, password: &SecretString) -> Result<(), Error> {
        let program = self.bin.dir.join("initdb");
        let fail = |reason: String| Error::Program { program: program.to_string(), reason };
        let locale = if cfg!(target_os = "macos") { "C" } else { "C.UTF-8" };
        // Never an argument; a pipe of ours could not be opened by another user.
        let mut file = tempfile::NamedTempFile::new_in(&self.home)
            .map_err(Error::file("write a file in", &self.home))?;
        writeln!(file, "{}", password.expose_secret())
            .map_err(Error::file("write a file in", &self.home))?;
        if let Some(path) = Utf8Path::from_path(file.path()) {
            place::give(path, self.user)?;
        }
        let child = self
            .command("initdb")
            .args(["--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"])
            .arg(format!("--locale={locale}"))
            .arg(format!("--username={SUPERUSER}"))
            .args([format!("--pwfile={}", file.path().display()), format!("-D{data}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| fail(error.to_string()))?;
        let output = child.wait_with_output().await.map_err(|error| fail(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// Starts the server; where it has another password than ours (the state file was lost, not the data)
    /// it gets ours first.
    async fn start(
        &self,
        ctx: &Context,
        port: u16,
        password: &SecretString,
    ) -> Result<Identity, Error> {
        match self.start_once(ctx, port, password).await {
            Err(Error::Password { .. }) => {
                self.stop_server(ctx).await?;
                self.reset_password(&self.data(), password).await?;
                self.start_once(ctx, port, password).await
            }
            other => other,
        }
    }

    /// In a process group of its own, so that Ctrl-C in our terminal is not the server's.
    async fn start_once(
        &self,
        ctx: &Context,
        port: u16,
        password: &SecretString,
    ) -> Result<Identity, Error> {
        let path = self.log();
        // Appended to: somebody who starts as well, or ends, writes to it too. Its folder is the server's user's.
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .and_then(|log| log.set_len(0).map(|()| log))
            .map_err(Error::file("make", &path))?;
        let errors = log.try_clone().map_err(Error::file("open", &path))?;
        let mut child = self
            .command("postgres")
            .args(["-D", self.data().as_str(), "-p", &port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|error| Error::Program {
                program: self.bin.dir.join("postgres").to_string(),
                reason: error.to_string(),
            })?;
        let what = self.what();
        let target = self.target(port, password.clone());
        let mut alive = async || match child.try_wait() {
            Ok(Some(status)) => Err(Error::Died {
                what: what.clone(),
                exit: status.code().or(status.signal()).map(i64::from),
                log: last_lines(&path),
            }),
            Ok(None) | Err(_) => Ok(()),
        };
        let answers = async {
            self.until_it_listens(ctx, port, &mut alive).await?;
            ready::until_answering(ctx, &what, &target, alive).await
        };
        match answers.await {
            Err(Error::Interrupted) => {
                // It may be too young to have a lock file, by which others would find it.
                self.end(&mut child).await;
                Err(Error::Interrupted)
            }
            other => other,
        }
    }

    /// Waits until the server on our data says that it is ready: before that somebody else's may answer on this
    /// port, while ours ends for want of it.
    async fn until_it_listens(
        &self,
        ctx: &Context,
        port: u16,
        alive: &mut impl AsyncFnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let started = std::time::Instant::now();
        while !self.is_ready_on(port) {
            alive().await?;
            if started.elapsed() > ready::START_DEADLINE {
                let seconds = ready::START_DEADLINE.as_secs();
                return Err(Error::NotReady { what: self.what(), seconds, last: None });
            }
            ready::cancellable(ctx, ready::pause()).await?;
        }
        Ok(())
    }

    /// By its lock file, whose eighth line is the state.
    fn is_ready_on(&self, port: u16) -> bool {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let state = text.lines().nth(7).unwrap_or_default().trim_end();
        matches!(state, "ready" | "standby") && self.serving() == Some(port)
    }

    /// Ends a server that we have just started, and waits for its end.
    async fn end(&self, child: &mut tokio::process::Child) {
        let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) else { return };
        let pid = nix::unistd::Pid::from_raw(pid);
        // A fast shutdown, as by `pg_ctl stop -m fast`. One that has ended by itself needs none.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        let _ = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
    }

    /// Sets the superuser's password in a data directory on which no server runs, in single-user mode and
    /// with the settings of ours.
    async fn reset_password(&self, data: &Utf8Path, password: &SecretString) -> Result<(), Error> {
        let program = self.bin.dir.join("postgres");
        let fail = |reason: String| Error::Program { program: program.to_string(), reason };
        let mut child = self
            .command("postgres")
            .args(["--single", "-D", data.as_str()])
            .args(["-c", &format!("config_file={}", self.data().join("postgresql.conf"))])
            .arg("postgres")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| fail(error.to_string()))?;
        let verifier = scram::verifier(password.expose_secret());
        if let Some(mut stdin) = child.stdin.take() {
            let line = format!("alter role {SUPERUSER} password '{verifier}';\n");
            stdin.write_all(line.as_bytes()).await.map_err(|error| fail(error.to_string()))?;
        }
        let output = child.wait_with_output().await.map_err(|error| fail(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// Connects as remembered, and sets the password that the configuration wants now.
    async fn connect_to(
        &self,
        ctx: &Context,
        state: &mut State,
        port: u16,
    ) -> Result<Server, Error> {
        let known = state.password().or_else(|| self.password.clone());
        let mut target = self.target(port, known.unwrap_or_else(state::new_password));
        let what = self.what();
        let alive = async || match self.serving() {
            Some(_) => Ok(()),
            None => {
                Err(Error::Died { what: what.clone(), exit: None, log: last_lines(&self.log()) })
            }
        };
        let identity = ready::until_answering(ctx, &what, &target, alive).await?;
        if let Some(wanted) = &self.password
            && target.password.as_ref().map(|known| known.expose_secret())
                != Some(wanted.expose_secret())
        {
            let verifier = scram::verifier(wanted.expose_secret());
            let session = Session::connect(&target).await?;
            session.batch(&format!("alter role {SUPERUSER} password '{verifier}'")).await?;
            session.close().await;
            target.password = Some(wanted.clone());
            state.set_password(wanted);
            state::write(ctx, state)?;
        }
        Ok(Server {
            admin: target,
            version_num: identity.version_num,
            system_identifier: identity.system_identifier,
            libraries: identity.libraries,
            started_by_us: true,
            kind: self.kind,
            tools: Tools::on_host(&self.bin.dir, self.bin.major),
        })
    }

    /// Why the connection to the server may have ended since then, as its log tells.
    pub(super) async fn why_lost(&self, ctx: &Context, since: Timestamp) -> Option<String> {
        let look = || {
            let log = std::fs::read(self.log()).ok()?;
            let changed = std::fs::metadata(self.log()).ok()?.modified().ok()?;
            let changed = Timestamp::try_from(changed).ok()?;
            crash::of_file(&String::from_utf8_lossy(&log), changed, since)
        };
        // The server hears of it a moment after the sessions.
        let look = async || look().ok_or(None);
        ready::until::<_, Option<Error>>(ctx, Duration::from_secs(1), look).await.ok()
    }

    async fn stop_server(&self, ctx: &Context) -> Result<(), Error> {
        let pid = self.data().join("postmaster.pid");
        let seconds = STOP_LIMIT.as_secs().to_string();
        let program = self.bin.dir.join("pg_ctl");
        let fail = |reason: String| Error::Program { program: program.to_string(), reason };
        let output = self
            .command("pg_ctl")
            .args(["stop", "-D", self.data().as_str(), "-m", "fast", "-w", "-t", &seconds])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = ready::cancellable(ctx, output).await?.map_err(|e| fail(e.to_string()))?;
        if output.status.success() || !pid.exists() {
            return Ok(());
        }
        Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// A checkpoint beforehand makes the shutdown's own short; without one it is only longer.
    async fn checkpoint(&self, state: &State, port: u16) {
        let Some(password) = state.password() else { return };
        if let Ok(session) = Session::connect(&self.target(port, password)).await {
            let _ = session.batch("checkpoint").await;
            session.close().await;
        }
    }

    pub(super) async fn stop(&self, ctx: &Context, volumes: Volumes) -> Result<Stopped, Error> {
        let mut state = state::read(ctx)?;
        let mut stopped = Stopped::default();
        if let Some(port) = self.serving() {
            let step = ctx.report.step("stop PostgreSQL");
            self.checkpoint(&state, port).await;
            self.stop_server(ctx).await?;
            stopped.server = Some(format!("the server in {}", self.data()));
            step.done("");
        }
        // Also what is left of a removal or a replacement that was cut off.
        if volumes == Volumes::Remove && (self.home.exists() || self.images_dir.exists()) {
            remove_dir(&self.home)?;
            self.sweep_part()?;
            // They are the project's: the last of its environments takes them along.
            if !state::is_native_elsewhere(ctx) {
                remove_dir(&self.images_dir)?;
            }
            stopped.data_removed = Some(self.data().to_string());
            state.native = None;
            state.kind = None;
            state::write(ctx, &state)?;
        }
        Ok(stopped)
    }
}

/// With data there already, the binaries must be of its version where both are installed.
fn wanted_major(ctx: &Context) -> Option<u32> {
    let state = state::read(ctx).ok()?;
    let native = state.native?;
    if !native.data.join(MARKER).is_file() || ctx.config.engine.bin_dir.is_some() {
        return None;
    }
    std::fs::read_to_string(native.data.join("PG_VERSION")).ok()?.trim().parse().ok()
}

fn is_alive(pid: i32) -> bool {
    // Signal 0 only asks; EPERM means that somebody of this number is there.
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) {
        Ok(()) | Err(nix::errno::Errno::EPERM) => true,
        Err(_) => false,
    }
}

/// Whether this process is a server; `true` where that cannot be told.
fn is_postgres(pid: i32) -> bool {
    // `2990 (postgres) S …`; Z is one that has ended and that nobody has asked about yet.
    if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        return stat.contains("(postgres)") && !stat.contains("(postgres) Z");
    }
    let ps = std::process::Command::new("ps")
        .args(["-o", "comm=", "-p", &pid.to_string()])
        .stdin(Stdio::null())
        .output();
    match ps {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).contains("postgres")
        }
        Ok(_) | Err(_) => true,
    }
}

fn remove_dir(dir: &Utf8Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::File { action: "remove", path: dir.into(), error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn last_lines(path: &Utf8Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|&line| line.to_owned()).collect()
}
