//! What a dump can fail with, and which failures a new snapshot may get past.

use super::super::preflight::{Unreadable, grant_to_read};
use super::leader::{LOCK_ATTEMPTS, LOCK_TIMEOUT};
use crate::engine;
use crate::error::{Exit, pg_exit};
use crate::pg;
use crate::store;

/// Why a source could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {error}")]
    Pg { what: String, error: pg::Error },
    #[error("{0}")]
    Unreadable(Unreadable),
    #[error("lock the source's tables for reading: tables came or went {LOCK_ATTEMPTS} times")]
    Changing,
    #[error("lock the source's tables for reading within {LOCK_TIMEOUT}: {error}")]
    Busy { error: pg::Error },
    #[error(
        "`{target}` is a pooler that hands out a server for each transaction, and none can be read so"
    )]
    Pooled { target: String },
    #[error("copy `{table}`: the last row is incomplete")]
    CutShort { table: String },
    #[error("compress rows: {0}")]
    Compress(std::io::Error),
    #[error("dump the schema of `{database}`: {reason}")]
    Schema { database: String, role: String, reason: String },
    #[error("{error}; a standby ends whoever stands in the way of its replay")]
    Standby { error: Box<Error> },
    #[error("{what}: the source has sent nothing for {seconds} s")]
    Stalled { what: String, seconds: u64 },
    #[error(transparent)]
    Tools(#[from] engine::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Pg { error, .. } | Self::Busy { error } => pg_exit(error),
            Self::Stalled { .. } => Exit::Server,
            Self::Unreadable(_)
            | Self::Changing
            | Self::Pooled { .. }
            | Self::CutShort { .. }
            | Self::Compress(_)
            | Self::Standby { .. }
            | Self::Schema { .. } => Exit::Database,
            Self::Tools(error) => error.exit(),
            Self::Store(error) => error.exit(),
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Unreadable(unreadable) => unreadable.hints(),
            Self::Pooled { .. } => {
                vec!["name the server itself: `database.host`, `database.port`".to_owned()]
            }
            Self::Changing | Self::Busy { .. } => {
                vec!["run it again while no migration is running on the source".to_owned()]
            }
            Self::Pg { error, .. } if error.sqlstate() == Some("53200") => {
                vec!["raise `max_locks_per_transaction` on the source server".to_owned()]
            }
            Self::Standby { .. } => vec![
                "set `hot_standby_feedback = on` on the standby, or take it from the primary"
                    .to_owned(),
            ],
            Self::Stalled { .. } => vec![
                "check the network to the source, or raise `snapshot.stall_timeout`".to_owned(),
            ],
            Self::Pg { error, .. } => error.hints(),
            Self::Schema { role, reason, .. } if reason.contains("permission denied") => {
                vec![grant_to_read(role)]
            }
            Self::Schema { .. } if self.is_full() => vec![pg::FULL_HINT.to_owned()],
            Self::CutShort { .. } | Self::Compress(_) | Self::Schema { .. } => Vec::new(),
            Self::Tools(error) => error.hints(),
            Self::Store(error) => error.hints(),
        }
    }

    /// Whether the source takes no more sessions, ours or those of `pg_dump`.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Pg { error, .. } => error.is_full(),
            Self::Schema { reason, .. } => pg::says_full(reason),
            Self::Busy { .. }
            | Self::Unreadable(_)
            | Self::Changing
            | Self::Pooled { .. }
            | Self::CutShort { .. }
            | Self::Compress(_)
            | Self::Standby { .. }
            | Self::Stalled { .. }
            | Self::Tools(_)
            | Self::Store(_) => false,
        }
    }

    /// Whether a new snapshot may succeed where this one failed.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Pg { error: pg::Error::Closed { .. } | pg::Error::Timeout { .. }, .. }
            | Self::Stalled { .. }
            | Self::Standby { .. }
            | Self::CutShort { .. } => true,
            Self::Pg { error, .. } => error.sqlstate().is_some_and(|state| {
                // Recovery conflict, ends by an administrator or a crash, a server on its way up or
                // down, a snapshot that is gone with its leader, a table dropped after the list was
                // read.
                matches!(state, "40001" | "57P01" | "57P02" | "57P03" | "22023" | "42P01" | "42704")
            }),
            Self::Schema { reason, .. } => {
                // pg_dump quotes the statement that its lock time-out ended; the others are what
                // libpq and servers say of a line, a snapshot or a statement that was ended.
                [
                    "LOCK TABLE",
                    "server closed the connection",
                    "could not receive data from server",
                    "connection to server",
                    "conflict with recovery",
                    "invalid snapshot identifier",
                ]
                .iter()
                .any(|words| reason.contains(words))
            }
            Self::Unreadable(_)
            | Self::Changing
            | Self::Pooled { .. }
            | Self::Busy { .. }
            | Self::Compress(_)
            | Self::Tools(_)
            | Self::Store(_) => false,
        }
    }
}

pub(super) fn doing(what: impl Into<String>) -> impl FnOnce(pg::Error) -> Error {
    let what = what.into();
    move |error| Error::Pg { what, error }
}
