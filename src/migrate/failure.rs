//! A script that did not run through: where, why, and what is in the database now.

use std::fmt;

use camino::Utf8PathBuf;

use super::file_name::Kind;
use super::script::SourcePlace;
use crate::pg;

/// A failed script.
#[derive(Debug)]
pub struct ScriptFailure {
    pub path: Utf8PathBuf,
    /// As the history calls it.
    pub script: String,
    pub kind: Kind,
    /// `None`: the transaction's end failed, not a statement.
    pub place: Option<SourcePlace>,
    pub error: pg::Error,
    pub left: Left,
}

/// What a failed script left in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It was rolled back.
    Nothing,
    /// What stood before a `commit` of the script's own.
    Committed,
    /// It ran without a transaction: the statements before the one that failed. `recorded`: a row in
    /// the history says so.
    Statements { before: usize, recorded: bool },
    /// The connection was lost while the transaction was being committed.
    Unknown,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("rolled back: the database is as it was before this script"),
            Self::Committed => f.write_str(
                "what stands before the script's own `commit` is in the database, the rest is not; \
                 the history has no row of it",
            ),
            Self::Statements { before, recorded } => {
                match before {
                    0 => f.write_str("it ran without a transaction and nothing stands before this")?,
                    1 => f.write_str("it ran without a transaction: the statement before this stays")?,
                    _ => write!(f, "it ran without a transaction: the {before} statements before this stay")?,
                }
                f.write_str(match recorded {
                    true => "; the history has a row of it marked as failed",
                    false => "; the history has no row of it",
                })
            }
            Self::Unknown => f.write_str(
                "the connection was lost while committing: `seedbed info` tells whether it is applied",
            ),
        }
    }
}

impl fmt::Display for ScriptFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run `{}`", self.path)?;
        if let Some(place) = &self.place {
            write!(f, ", line {}", place.line)?;
            if let Some(column) = place.column {
                write!(f, ", column {column}")?;
            }
        }
        write!(f, ": {}", self.error)?;
        if let Some(place) = &self.place {
            f.write_str(&place.excerpt())?;
        }
        if let Some(hint) = self.error.sql().and_then(|sql| sql.hint.as_deref()) {
            write!(f, "\n{hint}")?;
        }
        write!(f, "\n{}", self.left)
    }
}
