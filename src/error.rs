//! Every way the program can fail: one exit code and at most two hints each.
//!
//! Modules that act have an error enum of their own; this file gathers them and owns the two
//! exhaustive matches. Exit codes are a contract (README, section Exit codes).

use crate::{
    branch, config, database, engine, lend, lock, migrate, pg, published, saved, scratch_server,
    seed, snapshot, store, users,
};

/// What the process ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Bug = 1,
    CommandLine = 2,
    Configuration = 3,
    Server = 4,
    Database = 5,
    Script = 6,
    History = 7,
    NoSnapshot = 8,
    Store = 9,
    Damaged = 10,
    Locked = 11,
    Refused = 12,
    CheckFailed = 13,
    Interrupted = 130,
}

/// Why a journey did not reach its goal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("interrupted")]
    Interrupted,
    /// The command line is well-formed but makes no sense; the text says why.
    #[error("{0}")]
    CommandLine(String),
    /// Refused for safety (DESIGN §11); the text names the rule.
    #[error("{message}")]
    Refused { message: String, hint: Option<String> },
    /// A check did not hold; its findings were reported already.
    #[error("{0}")]
    CheckFailed(String),
    /// Something else would do, if it were asked for.
    #[error("{what}{error}")]
    Instead { what: String, error: Box<Error>, instead: String },
    /// The server met a full disk, or has crashed; the hint says where or how.
    #[error("{error}")]
    Hinted {
        #[source]
        error: Box<Error>,
        hint: String,
    },
    #[error("{what}: {error}")]
    Database { what: String, error: pg::Error },
    #[error("cannot reach the server: {0}")]
    Server(pg::Error),
    #[error("no server runs for this project, and the environment names none that does")]
    NoServer,
    #[error("{action} `{path}`: {error}")]
    File { action: &'static str, path: camino::Utf8PathBuf, error: std::io::Error },
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    DatabaseBuild(#[from] database::Error),
    #[error(transparent)]
    Lend(#[from] lend::Error),
    #[error(transparent)]
    Lock(#[from] lock::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Migrate(#[from] migrate::Error),
    #[error(transparent)]
    Users(#[from] users::Error),
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    #[error(transparent)]
    ScratchServer(#[from] scratch_server::Error),
    #[error(transparent)]
    Proof(#[from] crate::prove::Error),
    #[error(transparent)]
    Published(#[from] published::Error),
    #[error(transparent)]
    Branch(#[from] branch::Error),
    #[error(transparent)]
    Saved(#[from] saved::Error),
    #[error(transparent)]
    Seed(#[from] seed::Error),
}

impl Error {
    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Interrupted => Exit::Interrupted,
            Self::CommandLine(_) => Exit::CommandLine,
            Self::Refused { .. } => Exit::Refused,
            Self::CheckFailed(_) => Exit::CheckFailed,
            Self::Instead { error, .. } | Self::Hinted { error, .. } => error.exit(),
            Self::Database { error, .. } => pg_exit(error),
            Self::Server(_) | Self::NoServer => Exit::Server,
            Self::File { .. } => Exit::Database,
            Self::Config(_) => Exit::Configuration,
            Self::Engine(error) => error.exit(),
            Self::DatabaseBuild(error) => error.exit(),
            Self::Lend(error) => error.exit(),
            Self::Lock(error) => error.exit(),
            Self::Store(error) => error.exit(),
            Self::Migrate(error) => error.exit(),
            Self::Users(error) => error.exit(),
            Self::Snapshot(error) => error.exit(),
            Self::ScratchServer(error) => error.exit(),
            Self::Proof(error) => error.exit(),
            Self::Published(error) => error.exit(),
            Self::Branch(error) => error.exit(),
            Self::Saved(error) => error.exit(),
            Self::Seed(error) => error.exit(),
        }
    }

    /// At most two things to do about it: a command to run or a line to edit.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Interrupted
            | Self::CommandLine(_)
            | Self::CheckFailed(_)
            | Self::Database { .. }
            | Self::File { .. } => Vec::new(),
            Self::Refused { hint, .. } => hint.iter().cloned().collect(),
            Self::Instead { error, instead, .. } => {
                error.hints().into_iter().take(1).chain([instead.clone()]).collect()
            }
            Self::Hinted { error, hint } => {
                [hint.clone()].into_iter().chain(error.hints().into_iter().take(1)).collect()
            }
            Self::Server(error) => {
                let mut hints = error.hints();
                hints.push("check with `seedbed doctor`".to_owned());
                hints
            }
            Self::NoServer => vec!["start it with `seedbed up`".to_owned()],
            Self::Config(error) => error.hints(),
            Self::Engine(error) => error.hints(),
            Self::DatabaseBuild(error) => error.hints(),
            Self::Lend(error) => error.hints(),
            Self::Lock(error) => error.hints(),
            Self::Store(error) => error.hints(),
            Self::Migrate(error) => error.hints(),
            Self::Users(error) => error.hints(),
            Self::Snapshot(error) => error.hints(),
            Self::ScratchServer(error) => error.hints(),
            Self::Proof(error) => error.hints(),
            Self::Published(error) => error.hints(),
            Self::Branch(error) => error.hints(),
            Self::Saved(error) => error.hints(),
            Self::Seed(error) => error.hints(),
        }
    }

    /// Whether a server or its clients found their disk full: 53100, or what they say where no SQLSTATE
    /// comes through. Errors of our own files carry the number of the system's error.
    pub(crate) fn is_about_space(&self) -> bool {
        if matches!(self, Self::Engine(engine::Error::NoSpace { .. })) {
            // It says all of it.
            return false;
        }
        let text = self.to_string();
        text.contains("(SQLSTATE 53100)")
            || (text.contains("No space left on device") && !text.contains("(os error "))
    }

    /// Whether a session was lost that the server had let in: [`pg::Error::Closed`], 57P02 where another
    /// session's process has crashed, or what clients say of the same.
    pub(crate) fn is_about_a_crash(&self) -> bool {
        let text = self.to_string();
        let words = [
            "the connection to the server ended",
            "(SQLSTATE 57P02)",
            "server closed the connection unexpectedly",
            "because of crash of another server process",
            "a worker process died unexpectedly",
        ];
        words.iter().any(|words| text.contains(words))
    }

    /// A word for machines: the `kind` of the JSON error.
    pub fn kind(&self) -> &'static str {
        match self.exit() {
            Exit::Done => "done",
            Exit::Bug => "bug",
            Exit::CommandLine => "command_line",
            Exit::Configuration => "configuration",
            Exit::Server => "server",
            Exit::Database => "database",
            Exit::Script => "script",
            Exit::History => "history",
            Exit::NoSnapshot => "no_snapshot",
            Exit::Store => "store",
            Exit::Damaged => "damaged",
            Exit::Locked => "locked",
            Exit::Refused => "refused",
            Exit::CheckFailed => "check_failed",
            Exit::Interrupted => "interrupted",
        }
    }
}

/// A server that cannot be talked to is 4; one that says no is 5.
pub(crate) fn pg_exit(error: &pg::Error) -> Exit {
    match error {
        pg::Error::Connect { .. }
        | pg::Error::Tls { .. }
        | pg::Error::Login { .. }
        | pg::Error::Closed { .. }
        | pg::Error::Certificate { .. }
        | pg::Error::Timeout { .. } => Exit::Server,
        // Ended by its administrator, by a crash, or not up yet.
        pg::Error::Sql(sql) if matches!(sql.sqlstate.as_str(), "57P01" | "57P02" | "57P03") => {
            Exit::Server
        }
        pg::Error::Sql(_) | pg::Error::Protocol { .. } => Exit::Database,
    }
}
