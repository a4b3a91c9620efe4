//! Why no server could be had, each with what to do about it.

use camino::Utf8PathBuf;

use super::room;
use crate::error::Exit;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Pg(#[from] crate::pg::Error),
    #[error("interrupted")]
    Interrupted,
    #[error(
        "find something to run PostgreSQL: docker: {docker}; native: {native}; embedded: {embedded}"
    )]
    NothingHere { docker: String, native: String, embedded: String },
    #[error("reach the Docker daemon at `{place}`: {reason}")]
    DockerUnreachable { place: String, reason: String },
    #[error(
        "publish a port with the Docker daemon at `{place}`: it runs on another machine, and a server is published on the loopback address only"
    )]
    DockerElsewhere { place: String },
    #[error("{action}: {reason}")]
    DockerCall { action: String, reason: String },
    #[error("find the image `{image}`: it is not here, and cannot be pulled: {reason}")]
    ImageMissing { image: String, reason: String },
    #[error("pull the image `{image}`: the registry denied it: {reason}")]
    PullDenied { image: String, reason: String },
    #[error("pull the image `{image}`: {reason}")]
    PullFailed { image: String, reason: String },
    #[error("use the image `{image}`: {reason}")]
    NotPostgres { image: String, reason: String },
    #[error("serve on port {port}: it is taken by {by}")]
    PortTaken { port: u16, by: String },
    #[error("find a free port: {reason}")]
    NoPort { reason: String },
    #[error("make a pool whose clones share blocks: {reason}")]
    NoPool { reason: String },
    #[error("{action}: {} the pool `{pool}` is full: {reason}", if *.below { "the disk below" } else { "the disk of" })]
    NoSpace {
        action: String,
        pool: String,
        /// Not the pool itself, but the file system that its file lies on.
        below: bool,
        reason: String,
    },
    #[error("bring the last database back: none was kept, as `reset --keep` does")]
    NothingKept,
    #[error("make the {kind} `{name}`: one of this name is there and is not ours")]
    NameTaken { kind: &'static str, name: String },
    #[error("start PostgreSQL {wanted} on `{place}`: it holds the data of PostgreSQL {holds}")]
    OtherMajor { place: String, holds: String, wanted: u32, kind: super::ServerKind },
    #[error("use the data in `{place}`: {reason}")]
    DataUnusable { place: String, reason: String },
    #[error("start {what}: it ended{}{}", code(*.exit), last_lines(.log))]
    Died { what: String, exit: Option<i64>, log: Vec<String> },
    #[error("wait for {what}: it did not answer within {seconds} s{}", after(.last))]
    NotReady { what: String, seconds: u64, last: Option<String> },
    #[error("log in to {what} as `{user}`: {reason}")]
    Password { what: String, user: String, reason: String },
    #[error("find {program} of PostgreSQL {major}: {reason}")]
    NoBinaries { program: String, major: String, reason: String },
    #[error("run `{program}`: {reason}")]
    Program { program: String, reason: String },
    #[error("download `{url}`: {reason}")]
    Download { url: String, reason: String },
    #[error("check `{url}`: {reason}")]
    Checksum { url: String, reason: String },
    #[error("unpack `{name}`: {reason}")]
    Archive { name: String, reason: String },
    #[error("{action} `{path}`: {error}")]
    File { action: &'static str, path: Utf8PathBuf, error: std::io::Error },
    #[error("read `{path}`: it has format {found}, and this program knows {known}")]
    StateNewer { path: Utf8PathBuf, found: u64, known: u64 },
    #[error("read `{path}`: {reason}")]
    StateDamaged { path: Utf8PathBuf, reason: String },
    #[error("use an external server: the configuration names none")]
    ExternalUnnamed,
    #[error("stop the server at `{place}`: it is not ours")]
    NotOurs { place: String },
}

fn code(exit: Option<i64>) -> String {
    exit.map(|code| format!(" with code {code}")).unwrap_or_default()
}

fn last_lines(log: &[String]) -> String {
    if log.is_empty() {
        return ", and left no log".to_owned();
    }
    format!("; its last lines:\n  {}", log.join("\n  "))
}

fn after(last: &Option<String>) -> String {
    last.as_ref().map(|text| format!("; at last: {text}")).unwrap_or_default()
}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<Utf8PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { action, path, error }
    }

    /// Whether images that go would make room: what is freed in a pool comes to the disk below it later.
    pub(crate) fn is_full_pool(&self) -> bool {
        matches!(self, Self::NoSpace { below: false, .. })
    }

    pub fn exit(&self) -> Exit {
        match self {
            Self::Pg(error) => crate::error::pg_exit(error),
            Self::Interrupted => Exit::Interrupted,
            Self::ExternalUnnamed => Exit::Configuration,
            Self::NotOurs { .. } => Exit::Refused,
            Self::NoSpace { .. } => Exit::Database,
            Self::NothingHere { .. }
            | Self::DockerUnreachable { .. }
            | Self::DockerElsewhere { .. }
            | Self::DockerCall { .. }
            | Self::ImageMissing { .. }
            | Self::PullDenied { .. }
            | Self::PullFailed { .. }
            | Self::NotPostgres { .. }
            | Self::PortTaken { .. }
            | Self::NoPort { .. }
            | Self::NameTaken { .. }
            | Self::NoPool { .. }
            | Self::NothingKept
            | Self::OtherMajor { .. }
            | Self::DataUnusable { .. }
            | Self::Died { .. }
            | Self::NotReady { .. }
            | Self::Password { .. }
            | Self::NoBinaries { .. }
            | Self::Program { .. }
            | Self::Download { .. }
            | Self::Checksum { .. }
            | Self::Archive { .. }
            | Self::File { .. }
            | Self::StateNewer { .. }
            | Self::StateDamaged { .. } => Exit::Server,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        let owned = |hints: &[&str]| hints.iter().map(|&hint| hint.to_owned()).collect();
        match self {
            Self::Interrupted
            | Self::Died { .. }
            | Self::Program { .. }
            | Self::File { .. }
            | Self::NoPool { .. } => Vec::new(),
            Self::NothingKept => owned(&["`seedbed reset` gives clean data"]),
            Self::NoSpace { below: true, .. } => owned(&[room::BELOW]),
            Self::NoSpace { pool, below: false, .. } => vec![room::in_pool(pool)],
            Self::Pg(error) => {
                let mut hints = error.hints();
                hints.push("check with `seedbed doctor`".to_owned());
                hints
            }
            Self::NotReady { .. } | Self::DockerCall { .. } => {
                owned(&["check with `seedbed doctor`"])
            }
            Self::NothingHere { .. } => owned(&[
                "start Docker (`scripts/postgres-image 17` makes its image without a registry), or install PostgreSQL (`apt-get install postgresql`)",
                "or set `engine.archive_url` to an archive of PostgreSQL binaries that can be downloaded here",
            ]),
            Self::DockerUnreachable { .. } => owned(&[
                "start the Docker daemon, or set `DOCKER_HOST`",
                "or set `engine.kind = \"native\"` or `\"embedded\"`",
            ]),
            Self::DockerElsewhere { .. } => {
                owned(&["set `engine.kind` to `\"native\"`, `\"embedded\"` or `\"external\"`"])
            }
            Self::ImageMissing { image, .. } => vec![
                format!(
                    "run `scripts/postgres-image {}`, which makes it from Debian packages",
                    image_tag_major(image)
                ),
                "or set `engine.kind = \"native\"` or `\"embedded\"`".to_owned(),
            ],
            Self::PullDenied { image, .. } => vec![
                format!("run `docker login {}`", registry_of(image)),
                "or set `engine.image` to one that you may pull".to_owned(),
            ],
            Self::PullFailed { .. } => owned(&[
                "run it again: layers that arrived are kept",
                "or set `engine.kind = \"native\"` or `\"embedded\"`",
            ]),
            Self::NotPostgres { .. } => owned(&["set `engine.image`, as `postgres:17`"]),
            Self::PortTaken { port, .. } => vec![
                format!("stop what serves on port {port}, or set another `engine.port`"),
                "or set `engine.kind = \"external\"` to use that server".to_owned(),
            ],
            Self::NoPort { .. } => owned(&["set `engine.port`"]),
            Self::NameTaken { kind, name } => vec![match *kind {
                "volume" => format!("run `docker volume rm {name}` if nobody needs it"),
                _ => format!("run `docker rename {name} {name}-old`"),
            }],
            Self::OtherMajor { holds, kind, .. } => vec![
                match kind {
                    super::ServerKind::Docker => {
                        format!("set `engine.image = \"postgres:{holds}\"`")
                    }
                    super::ServerKind::Native
                    | super::ServerKind::Embedded
                    | super::ServerKind::External => {
                        format!("set `engine.bin_dir` to the binaries of PostgreSQL {holds}")
                    }
                },
                "or run `seedbed down --volumes`, which removes the data".to_owned(),
            ],
            Self::DataUnusable { .. } => {
                owned(&["run `seedbed down --volumes`, which removes the data"])
            }
            Self::Password { .. } => owned(&[
                "set `engine.superuser_password`, or `flyway.password` for a server that somebody else runs",
            ]),
            Self::NoBinaries { .. } => owned(&[
                "install the PostgreSQL clients of that version, or set `engine.bin_dir`",
                "or start Docker: they are then run from its image",
            ]),
            Self::Download { .. } | Self::Checksum { .. } | Self::Archive { .. } => owned(&[
                "set `engine.archive_url` to another place (`{version}` and `{target}` are filled in)",
            ]),
            Self::StateNewer { .. } => owned(&["use the newer `seedbed`"]),
            Self::StateDamaged { path, .. } => vec![format!("remove `{path}`")],
            Self::ExternalUnnamed => {
                owned(&["set `flyway.url=jdbc:postgresql://host:port/database`"])
            }
            Self::NotOurs { .. } => owned(&["stop it with what started it"]),
        }
    }
}

fn image_tag_major(image: &str) -> String {
    let tag = image.rsplit_once(':').map_or("17", |(_, tag)| tag);
    let major: String = tag.chars().take_while(char::is_ascii_digit).collect();
    if major.is_empty() { "17".to_owned() } else { major }
}

fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        Some(_) | None => "",
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
