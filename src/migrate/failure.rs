//! A script that did not run through: where, why, and what is in the database now.

use std::fmt;

use camino::Utf8PathBuf;

use super::file_name::Kind;
use super::script::SourcePlace;
use crate::pg::{self, Target, quote};

/// Who ran something, and in which database: what is to be granted, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub user: String,
    pub database: String,
}

impl Account {
    pub(super) fn of(target: &Target) -> Self {
        Self { user: target.user.clone(), database: target.database.clone() }
    }

    /// What is to be granted where `error` is about a privilege that is missing; else nothing.
    pub(super) fn hints(&self, error: &pg::Error) -> Vec<String> {
        let Some(error) = error.sql().filter(|error| error.sqlstate == "42501") else {
            return Vec::new();
        };
        let (user, message) = (quote::ident(&self.user), error.message.as_str());
        // Which privilege it was the server tells in its message only, here in English.
        let denied = |kind: &str| message.strip_prefix(&format!("permission denied for {kind} "));
        let by = "as its owner or a superuser";
        if let Some(schema) = denied("schema") {
            let name = quote::ident(schema);
            let mut hints = vec![format!("{by}: `grant usage, create on schema {name} to {user}`")];
            // Nobody else may create there since PostgreSQL 15.
            if schema == "public" {
                let database = quote::ident(&self.database);
                hints.push(format!(
                    "or let it own the database: `alter database {database} owner to {user}`"
                ));
            }
            return hints;
        }
        if let Some(database) = denied("database") {
            let name = quote::ident(database);
            return vec![format!("{by}: `grant create on database {name} to {user}`")];
        }
        let owned = message.strip_prefix("must be owner of ");
        vec![match owned {
            Some(what) => format!("let `{}` own the {what}, or run it as the owner", self.user),
            None => format!("grant it to `{}` as the owner or a superuser", self.user),
        }]
    }
}

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
    pub account: Account,
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
