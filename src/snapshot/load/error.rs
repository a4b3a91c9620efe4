//! What a load can fail with.

use super::super::chunk::Damage;
use super::super::restore::{Refusal, Section};
use crate::engine;
use crate::error::{Exit, pg_exit};
use crate::pg;
use crate::store;

/// Why a snapshot could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {error}")]
    Pg { what: String, error: pg::Error },
    #[error("snapshot `{snapshot}` is damaged: `{object}`: {damage}")]
    Damaged { snapshot: String, object: String, damage: Damage },
    #[error("load `{table}`: {found} rows arrived, the manifest says {needed}")]
    Rows { table: String, found: u64, needed: u64 },
    #[error("the server has no extension {}", backticked(.names))]
    Extensions { names: Vec<String> },
    #[error("restore {section}: {}", refusals(.refused))]
    Refused { section: Section, refused: Vec<Refusal> },
    #[error("restore {section}: {reason}")]
    Restore { section: Section, reason: String },
    #[error(transparent)]
    Tools(#[from] engine::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn backticked(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn refusals(refused: &[Refusal]) -> String {
    /// The first errors tell the story; those after them mostly follow from them.
    const SHOWN: usize = 3;
    let shown: Vec<String> = refused.iter().take(SHOWN).map(Refusal::to_string).collect();
    let more = refused.len().saturating_sub(SHOWN);
    let tail = if more == 0 { String::new() } else { format!("; and {more} more") };
    format!("{}{tail}", shown.join("; "))
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Pg { error, .. } => pg_exit(error),
            Self::Damaged { .. } => Exit::Damaged,
            Self::Rows { .. }
            | Self::Extensions { .. }
            | Self::Refused { .. }
            | Self::Restore { .. } => Exit::Database,
            Self::Tools(error) => error.exit(),
            Self::Store(error) => error.exit(),
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Damaged { snapshot, .. } => vec![
                format!("see all of the damage: `seedbed snapshot verify {snapshot}`"),
                "take an older one: `--skip-damaged`".to_owned(),
            ],
            Self::Extensions { names } => vec![format!(
                "install them on the server, or set `restore.ignore_extensions = [{}]`",
                names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
            )],
            Self::Pg { error, .. } => error.hints(),
            Self::Rows { .. } | Self::Refused { .. } | Self::Restore { .. } => Vec::new(),
            Self::Tools(error) => error.hints(),
            Self::Store(error) => error.hints(),
        }
    }
}

impl Error {
    /// Whether the server takes no more sessions.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Pg { error, .. } => error.is_full(),
            Self::Restore { reason, .. } => pg::says_full(reason),
            Self::Damaged { .. }
            | Self::Rows { .. }
            | Self::Extensions { .. }
            | Self::Refused { .. }
            | Self::Tools(_)
            | Self::Store(_) => false,
        }
    }
}

pub(super) fn doing(what: impl Into<String>) -> impl FnOnce(pg::Error) -> Error {
    let what = what.into();
    move |error| Error::Pg { what, error }
}
