//! What the name of a file says: kind of script, version, description.
//!
//! `PREFIX VERSION SEPARATOR DESCRIPTION SUFFIX`. Prefixes are tried longest first and mind case;
//! suffixes do not. Version and description part at the first separator.

use super::version::Version;
use crate::config::MigrateConfig;

/// How a project names its files.
#[derive(Debug, Clone)]
pub struct Naming {
    pub versioned: String,
    pub repeatable: String,
    pub baseline: String,
    /// `None` takes undo files for unknown ones, as the open edition of Flyway does.
    pub undo: Option<String>,
    pub separator: String,
    /// The first that fits counts.
    pub suffixes: Vec<String>,
}

/// What a script is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Versioned,
    Repeatable,
    /// A `B` script: stands for every version up to its own on an empty database.
    Baseline,
    Undo,
    /// Runs at this event.
    Callback(&'static str),
}

/// A well-formed name.
#[derive(Debug, Clone)]
pub struct FileName {
    pub kind: Kind,
    pub prefix: String,
    /// For versioned, baseline and undo scripts.
    pub version: Option<Version>,
    /// The version as written.
    pub raw_version: String,
    pub description: String,
    /// As written; empty when none of the suffixes fits.
    pub suffix: String,
}

/// Why a name is not well-formed; the text is Flyway's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("Unrecognised migration name format: {0}")]
    Unrecognised(String),
    #[error(
        "Invalid versioned migration name format: {name} (It must contain a version and should look like this: {example})"
    )]
    NoVersion { name: String, example: String },
    #[error(
        "Invalid versioned migration name format: {name} (could not recognise version number {version})"
    )]
    BadVersion { name: String, version: String },
    #[error(
        "Invalid repeatable migration / callback name format: {name} (It cannot contain a version and should look like this: {example})"
    )]
    HasVersion { name: String, example: String },
}

impl InvalidName {
    /// The file's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Unrecognised(name)
            | Self::NoVersion { name, .. }
            | Self::BadVersion { name, .. }
            | Self::HasVersion { name, .. } => name,
        }
    }
}

/// Events that a callback file can be named after.
const EVENTS: [&str; 43] = [
    "beforeMigrate",
    "beforeEachMigrate",
    "beforeEachMigrateStatement",
    "afterEachMigrateStatement",
    "afterEachMigrateStatementError",
    "afterEachMigrate",
    "afterEachMigrateError",
    "beforeRepeatables",
    "afterVersioned",
    "afterMigrateApplied",
    "afterMigrate",
    "afterMigrateError",
    "beforeValidate",
    "afterValidate",
    "afterValidateError",
    "beforeBaseline",
    "afterBaseline",
    "afterBaselineError",
    "beforeRepair",
    "afterRepair",
    "afterRepairError",
    "beforeInfo",
    "afterInfo",
    "afterInfoError",
    "beforeClean",
    "afterClean",
    "afterCleanError",
    "createSchema",
    "beforeCreateSchema",
    "beforeConnect",
    "afterConnect",
    "beforeUndo",
    "beforeEachUndo",
    "beforeEachUndoStatement",
    "afterEachUndoStatement",
    "afterEachUndoStatementError",
    "afterEachUndo",
    "afterEachUndoError",
    "afterUndo",
    "afterUndoError",
    "beforeDeploy",
    "afterDeploy",
    "afterDeployError",
];

impl Naming {
    /// The names that the configuration asks for, undo files included.
    pub fn from_config(config: &MigrateConfig) -> Self {
        Self {
            versioned: config.sql_migration_prefix.clone(),
            repeatable: config.repeatable_sql_migration_prefix.clone(),
            baseline: config.baseline_migration_prefix.clone(),
            undo: Some(config.undo_sql_migration_prefix.clone())
                .filter(|prefix| !prefix.is_empty()),
            separator: config.sql_migration_separator.clone(),
            suffixes: config.sql_migration_suffixes.clone(),
        }
    }

    /// The suffix of `name` as written there, from this project's list.
    pub fn suffix<'a>(&self, name: &'a str) -> Option<&'a str> {
        self.suffixes.iter().find_map(|suffix| ending(name, suffix))
    }

    /// Reads `name`, whose suffix is taken off when it is one of the project's.
    ///
    /// # Errors
    /// [`InvalidName`].
    pub fn parse(&self, name: &str) -> Result<FileName, InvalidName> {
        self.parse_with_suffix(name, self.suffix(name).unwrap_or(""))
    }

    /// Reads `name`, which ends in `suffix`.
    ///
    /// # Errors
    /// [`InvalidName`].
    pub fn parse_with_suffix(&self, name: &str, suffix: &str) -> Result<FileName, InvalidName> {
        let stem = &name[..name.len() - suffix.len()];
        let Some((prefix, kind)) = self.prefix(name) else {
            return Err(InvalidName::Unrecognised(name.to_owned()));
        };
        // A suffix may overlap the prefix (`R` with an empty stem); then nothing is left.
        let body = stem.strip_prefix(prefix).unwrap_or("");
        let (raw_version, description) = match body.split_once(self.separator.as_str()) {
            Some((version, description)) => (version, description.replace('_', " ")),
            None => (body, String::new()),
        };
        let example = |version: &str| {
            let text = if description.is_empty() { "description" } else { &description };
            format!("{prefix}{version}{}{text}{suffix}", self.separator)
        };
        let version = match kind {
            Kind::Repeatable | Kind::Callback(_) if raw_version.is_empty() => None,
            Kind::Repeatable | Kind::Callback(_) => {
                return Err(InvalidName::HasVersion {
                    name: name.to_owned(),
                    example: example(""),
                });
            }
            Kind::Versioned | Kind::Baseline | Kind::Undo if raw_version.is_empty() => {
                return Err(InvalidName::NoVersion {
                    name: name.to_owned(),
                    example: example("1.2"),
                });
            }
            Kind::Versioned | Kind::Baseline | Kind::Undo => {
                let version = Version::parse(raw_version).map_err(|_| InvalidName::BadVersion {
                    name: name.to_owned(),
                    version: raw_version.to_owned(),
                })?;
                Some(version)
            }
        };
        Ok(FileName {
            kind,
            prefix: prefix.to_owned(),
            version,
            raw_version: raw_version.to_owned(),
            description,
            suffix: suffix.to_owned(),
        })
    }

    fn prefix(&self, name: &str) -> Option<(&str, Kind)> {
        let own = [
            (Some(self.versioned.as_str()), Kind::Versioned),
            (Some(self.repeatable.as_str()), Kind::Repeatable),
            (Some(self.baseline.as_str()), Kind::Baseline),
            (self.undo.as_deref(), Kind::Undo),
        ];
        let own = own.into_iter().filter_map(|(prefix, kind)| Some((prefix?, kind)));
        let events = EVENTS.into_iter().map(|event| (event, Kind::Callback(event)));
        own.chain(events)
            .filter(|(prefix, kind)| {
                name.starts_with(prefix) && (!prefix.is_empty() || *kind == Kind::Versioned)
            })
            // The first of the longest: the kinds of scripts go before the events.
            .reduce(|best, next| if next.0.len() > best.0.len() { next } else { best })
    }
}

/// The end of `name` that equals `suffix` apart from case.
pub(super) fn ending<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let start = name.len().checked_sub(suffix.len())?;
    let end = name.get(start..)?;
    end.eq_ignore_ascii_case(suffix).then_some(end)
}
