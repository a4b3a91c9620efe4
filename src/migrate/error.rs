//! Why migrating, or deciding about it, did not work.

use camino::Utf8PathBuf;

use super::encoding::DecodeError;
use super::failure::{Account, Left, ScriptFailure};
use super::file_name::{InvalidName, Kind};
use super::placeholders::PlaceholderError;
use super::script::SourcePlace;
use super::validate::Finding;
use crate::error::{Exit, pg_exit};
use crate::pg;
use crate::pg::lexer::{LexError, LexErrorKind};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Pg(#[from] pg::Error),
    #[error("{what}: {error}")]
    Sql { what: String, error: pg::Error, account: Account },
    #[error("read `{path}`: {error}")]
    Read { path: Utf8PathBuf, error: std::io::Error },
    #[error("read `{path}`: {error}")]
    NotText { path: Utf8PathBuf, error: DecodeError },
    #[error("`{}`, line {}: a character NUL (byte 0), which PostgreSQL takes nowhere", place.path, place.line)]
    Nul { place: SourcePlace },
    #[error("location `{path}` is not there")]
    MissingLocation { path: Utf8PathBuf },
    #[error("{} that cannot be read:{}", counted_names(.0.len()), list(.0))]
    Names(Vec<InvalidName>),
    #[error("more than one script for {what}:\n  {first}\n  {second}")]
    Duplicate { what: String, first: String, second: String, code: &'static str },
    #[error("`{}`, line {}: {error}{}", place.path, place.line, place.excerpt())]
    Placeholder { place: SourcePlace, error: PlaceholderError },
    #[error("`{path}`, line {line}: {reason}")]
    ScriptSettings { path: Utf8PathBuf, line: u32, reason: String },
    #[error("setting `{key}`: {reason}")]
    Setting { key: String, reason: String },
    #[error("write `{path}`: {error}")]
    Write { path: Utf8PathBuf, error: std::io::Error },
    #[error("`{description}` has no letter or digit to name a file after")]
    NoDescription { description: String },
    #[error("`{}`, line {}, column {}: {}{}", place.path, place.line, error.column, error.message(), place.excerpt())]
    NotSql { place: SourcePlace, error: LexError },
    #[error("run `{path}`: {reason}\n{left}")]
    Program { path: Utf8PathBuf, reason: String, left: Left },
    #[error("callback `{event}`: {error}")]
    Callback { event: &'static str, error: Box<Error> },
    #[error(
        "`{}`, line {}: this statement cannot run in a transaction, others of the script can{}",
        place.path, place.line, place.excerpt()
    )]
    Mixed { place: SourcePlace },
    #[error("`{path}` cannot run in a transaction, other scripts of the group can")]
    MixedGroup { path: Utf8PathBuf },
    #[error("{0}")]
    Failed(Box<ScriptFailure>),
    #[error("the migration history does not match the files:{}", findings(.0))]
    Invalid(Vec<Finding>),
    #[error("`{script}` did not run through the last time and is half done")]
    HalfDone { script: String },
    #[error("read the history, row {rank}: {reason}")]
    History { rank: i32, reason: String },
    #[error("{table} is no migration history that can be read: {error}")]
    HistoryTypes { table: String, error: pg::Error },
    #[error("{table} is no migration history: {}", foreign(missing, *is_flyway_3))]
    ForeignHistory { table: String, missing: Vec<String>, is_flyway_3: bool },
    #[error("the server did not say who and where we are")]
    NoFacts,
    #[error("there is no script `{name}` to pick")]
    NothingToPick { name: String },
    #[error("baseline at version {version} (`{description}`) is there already")]
    OtherBaseline { version: String, description: String },
    #[error("the history holds migrations already, the first is `{script}`")]
    NothingToBaseline { script: String },
    #[error("`clean` is disabled here")]
    CleanDisabled,
    #[error("version {version} (`{script}`) has no undo script")]
    NoUndoScript { version: String, script: String, file: String },
    #[error("compare with `{revision}`: {reason}")]
    Git { revision: String, reason: String },
    #[error("there is no migration with the target version {version}")]
    NoSuchTarget { version: String },
    #[error("the schema `{schema}` is not there")]
    NoSchema { schema: String },
    #[error("no schema of the search path `{path}` is there")]
    NoCurrentSchema { path: String },
    #[error("{} `{}` {} objects but no migration history",
        if schemas.len() == 1 { "the schema" } else { "the schemas" },
        schemas.join("`, `"),
        if schemas.len() == 1 { "holds" } else { "hold" })]
    NoHistory { schemas: Vec<String>, has_legacy: bool },
    #[error("another migration has been running for more than {seconds} s: {holder}")]
    Locked { holder: String, seconds: u64 },
    #[error("another runner has changed the history meanwhile")]
    Overtaken,
}

impl Error {
    /// What the server said to `what`, which was tried on `session`.
    pub(super) fn sql(session: &pg::Session, what: String, error: pg::Error) -> Self {
        Self::Sql { what, error, account: Account::of(session.target()) }
    }

    pub fn exit(&self) -> Exit {
        match self {
            Self::Interrupted => Exit::Interrupted,
            Self::Pg(error) | Self::Sql { error, .. } => pg_exit(error),
            Self::Read { .. }
            | Self::NotText { .. }
            | Self::Nul { .. }
            | Self::Names(_)
            | Self::Duplicate { .. }
            | Self::Placeholder { .. }
            | Self::ScriptSettings { .. }
            | Self::Write { .. }
            | Self::NotSql { .. }
            | Self::Program { .. }
            | Self::Callback { .. }
            | Self::Mixed { .. }
            | Self::MixedGroup { .. }
            | Self::Failed(_) => Exit::Script,
            Self::MissingLocation { .. } | Self::Setting { .. } => Exit::Configuration,
            Self::NoDescription { .. }
            | Self::NoSuchTarget { .. }
            | Self::NothingToPick { .. }
            | Self::Git { .. } => Exit::CommandLine,
            Self::CleanDisabled => Exit::Refused,
            Self::NoFacts => Exit::Database,
            Self::Invalid(_)
            | Self::HalfDone { .. }
            | Self::History { .. }
            | Self::HistoryTypes { .. }
            | Self::ForeignHistory { .. }
            | Self::OtherBaseline { .. }
            | Self::NothingToBaseline { .. }
            | Self::NoUndoScript { .. }
            | Self::NoHistory { .. } => Exit::History,
            Self::NoSchema { .. } | Self::NoCurrentSchema { .. } => Exit::Database,
            Self::Locked { .. } | Self::Overtaken => Exit::Locked,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Interrupted
            | Self::Read { .. }
            | Self::ScriptSettings { .. }
            | Self::Write { .. }
            | Self::NoDescription { .. }
            | Self::History { .. }
            | Self::NoFacts
            | Self::Git { .. }
            | Self::NothingToBaseline { .. }
            | Self::Setting { .. } => Vec::new(),
            // invalid_catalog_name
            Self::Pg(error) if error.sqlstate() == Some("3D000") => vec![
                "create it, or run `seedbed up` where the server is the project's own".to_owned(),
            ],
            Self::Pg(error) => error.hints(),
            Self::Sql { error, account, .. } => account.hints(error),
            Self::Callback { error, .. } => match &**error {
                // What a callback left is nothing that `repair` knows of.
                Self::Failed(_) => Vec::new(),
                other => other.hints(),
            },
            Self::ForeignHistory { is_flyway_3: true, .. } => {
                vec!["take it over: `seedbed repair --upgrade-history`".to_owned()]
            }
            Self::ForeignHistory { .. } | Self::HistoryTypes { .. } => {
                vec!["keep the history in another table: `flyway.table=NAME`".to_owned()]
            }
            Self::NothingToPick { .. } => vec!["see the scripts with `seedbed info`".to_owned()],
            Self::OtherBaseline { version, .. } => {
                vec![format!("set `flyway.baselineVersion={version}`, or leave `baseline` out")]
            }
            Self::CleanDisabled => vec![
                "if everything in its schemas may go: `seedbed clean --clean-disabled=false`".to_owned(),
            ],
            Self::NoUndoScript { file, .. } => vec![format!("write `{file}` beside the script")],
            Self::NotSql { error, .. } => match &error.kind {
                LexErrorKind::MetaCommand(_) => {
                    vec!["remove the line; only SQL is run, not psql's commands".to_owned()]
                }
                LexErrorKind::MissingCopyEnd => {
                    vec!["end the rows with a line that holds only `\\.`".to_owned()]
                }
                LexErrorKind::UnterminatedString
                | LexErrorKind::UnterminatedIdentifier
                | LexErrorKind::UnterminatedComment
                | LexErrorKind::UnterminatedDollarQuote(_)
                | LexErrorKind::TextAfterCopy => Vec::new(),
            },
            Self::Program { left: Left::Statements { recorded: true, .. }, .. } => {
                vec!["remove what it left half done, then run `seedbed repair`".to_owned()]
            }
            Self::Program { .. } => vec!["see all that it says with `-v`".to_owned()],
            Self::Mixed { place } => vec![
                "move the statement into a script of its own".to_owned(),
                format!("or write `executeInTransaction=false` into `{}.conf`", place.path),
            ],
            Self::MixedGroup { .. } => vec!["set `flyway.group=false`".to_owned()],
            Self::Failed(failure) if failure.error.sqlstate() == Some("55P03") => vec![
                "see who holds the lock: `select * from pg_stat_activity where state <> 'idle'`"
                    .to_owned(),
                match failure.left {
                    Left::Statements { recorded: true, .. } => {
                        "remove what the script left, then run `seedbed repair`".to_owned()
                    }
                    Left::Nothing
                    | Left::Committed
                    | Left::Statements { recorded: false, .. }
                    | Left::Unknown => {
                        "or wait longer: `--lock-timeout-ms`, `--lock-retries`".to_owned()
                    }
                },
            ],
            Self::Failed(failure) => {
                let mut hints = failure.account.hints(&failure.error);
                let of_left = match failure.left {
                    // The script itself may be as it should.
                    Left::Nothing if !hints.is_empty() => {
                        format!("then run {} again", verb(&failure.kind))
                    }
                    Left::Nothing => {
                        format!("correct the script and run {} again", verb(&failure.kind))
                    }
                    Left::Committed | Left::Statements { recorded: false, .. } => format!(
                        "remove what the script left, correct it and run {} again",
                        verb(&failure.kind)
                    ),
                    Left::Statements { recorded: true, .. } => {
                        "remove what the script left, then run `seedbed repair`".to_owned()
                    }
                    Left::Unknown => "run `seedbed info`".to_owned(),
                };
                hints.truncate(1);
                hints.push(of_left);
                hints
            }
            Self::Invalid(found) if found.iter().any(|one| one.code == "CHECKSUM_MISMATCH") => vec![
                "put the old text back and write the change into a new script: `seedbed new \"…\"`"
                    .to_owned(),
                "or accept the files as they are: `seedbed repair`".to_owned(),
            ],
            // What is late says itself how it can run.
            Self::Invalid(found) if found.iter().any(|one| one.message.contains("outOfOrder")) => {
                Vec::new()
            }
            Self::Invalid(found) if found.iter().all(|one| one.code.starts_with("RESOLVED_")) => {
                vec!["run `seedbed migrate`".to_owned()]
            }
            Self::Invalid(_) => vec!["compare with `seedbed info`".to_owned()],
            Self::HalfDone { .. } => {
                vec!["remove what the script left, then run `seedbed repair`".to_owned()]
            }
            Self::NoSuchTarget { .. } => vec!["see the versions with `seedbed info`".to_owned()],
            Self::NoSchema { .. } => vec!["set `flyway.createSchemas=true`".to_owned()],
            Self::NoCurrentSchema { .. } => vec!["set `flyway.defaultSchema`".to_owned()],
            Self::NoHistory { has_legacy: true, .. } => vec![
                "take over the table `schema_version` of Flyway 4: `seedbed repair --upgrade-history`"
                    .to_owned(),
                "or go on with it as it is: `flyway.table=schema_version`".to_owned(),
            ],
            Self::NoHistory { .. } => vec![
                "take the present state as the start: `seedbed baseline`, or \
                 `flyway.baselineOnMigrate=true`"
                    .to_owned(),
            ],
            Self::Locked { .. } => vec![
                "wait for it, or set `flyway.lockRetryCount` higher".to_owned(),
            ],
            Self::Overtaken => vec!["look with `seedbed info`, then run it again".to_owned()],
            Self::NotText { .. } => vec![
                "save the file as UTF-8, or set `flyway.encoding` (`flyway.detectEncoding=true` guesses)"
                    .to_owned(),
            ],
            Self::Nul { .. } => vec![
                "remove it, or name the file's encoding: `flyway.encoding=UTF-16`".to_owned(),
            ],
            Self::MissingLocation { path } => {
                vec![format!("make the folder `{path}`, or change `flyway.locations`")]
            }
            Self::Names(_) => {
                vec!["rename the files, or set `flyway.validateMigrationNaming=false`".to_owned()]
            }
            Self::Duplicate { .. } => vec!["rename one of the two files".to_owned()],
            Self::Placeholder { error: PlaceholderError::Unknown { name, .. }, .. } => vec![
                format!("set `flyway.placeholders.{name}` in the environment's file"),
                "text that is no placeholder: `flyway.placeholderReplacement=false` in `<script>.conf`"
                    .to_owned(),
            ],
            Self::Placeholder { error: PlaceholderError::Unclosed { .. }, .. } => Vec::new(),
        }
    }
}

impl Error {
    /// Flyway's code for it, as its JSON has it.
    pub fn flyway_code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "VALIDATE_ERROR",
            Self::Failed(failure) => failed_code(&failure.kind),
            Self::HalfDone { .. } | Self::MixedGroup { .. } | Self::Program { .. } => {
                "FAILED_VERSIONED_MIGRATION"
            }
            Self::NoHistory { .. } => "NON_EMPTY_SCHEMA_WITHOUT_SCHEMA_HISTORY_TABLE",
            Self::Duplicate { code, .. } => code,
            Self::Pg(_) | Self::Sql { .. } | Self::NoSchema { .. } => "DB_CONNECTION",
            Self::Callback { error, .. } => match &**error {
                Self::Failed(_) => "DB_CONNECTION",
                _ => "ERROR",
            },
            Self::Interrupted
            | Self::Setting { .. }
            | Self::Read { .. }
            | Self::NotText { .. }
            | Self::Nul { .. }
            | Self::MissingLocation { .. }
            | Self::Names(_)
            | Self::Placeholder { .. }
            | Self::ScriptSettings { .. }
            | Self::Write { .. }
            | Self::NoDescription { .. }
            | Self::NotSql { .. }
            | Self::Mixed { .. }
            | Self::History { .. }
            | Self::ForeignHistory { .. }
            | Self::HistoryTypes { .. }
            | Self::NoFacts
            | Self::NothingToPick { .. }
            | Self::OtherBaseline { .. }
            | Self::NothingToBaseline { .. }
            | Self::CleanDisabled
            | Self::NoUndoScript { .. }
            | Self::Git { .. }
            | Self::NoSuchTarget { .. }
            | Self::NoCurrentSchema { .. }
            | Self::Locked { .. }
            | Self::Overtaken => "ERROR",
        }
    }

    /// Where in a script it is, when that is known.
    pub fn place(&self) -> Option<&SourcePlace> {
        match self {
            Self::NotSql { place, .. }
            | Self::Placeholder { place, .. }
            | Self::Nul { place }
            | Self::Mixed { place } => Some(place),
            _ => self.failure()?.place.as_ref(),
        }
    }

    /// The failed script, when that is what it is about.
    pub fn failure(&self) -> Option<&ScriptFailure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Callback { error, .. } => error.failure(),
            _ => None,
        }
    }
}

fn failed_code(kind: &Kind) -> &'static str {
    match kind {
        Kind::Versioned => "FAILED_VERSIONED_MIGRATION",
        Kind::Repeatable => "FAILED_REPEATABLE_MIGRATION",
        Kind::Baseline => "FAILED_BASELINE_MIGRATION",
        Kind::Undo => "FAILED_UNDO_MIGRATION",
        Kind::Callback(_) => "ERROR",
    }
}

/// The command that runs scripts of this kind.
fn verb(kind: &Kind) -> &'static str {
    match kind {
        Kind::Undo => "`seedbed undo`",
        Kind::Versioned | Kind::Repeatable | Kind::Baseline | Kind::Callback(_) => {
            "`seedbed migrate`"
        }
    }
}

fn foreign(missing: &[String], is_flyway_3: bool) -> String {
    if is_flyway_3 {
        return "it is of Flyway 3 or before, with a column `version_rank`".to_owned();
    }
    format!("it has no column `{}`", missing.join("`, `"))
}

fn counted_names(count: usize) -> String {
    if count == 1 {
        "1 script has a name".to_owned()
    } else {
        format!("{count} scripts have names")
    }
}

fn list(names: &[InvalidName]) -> String {
    names.iter().map(|name| format!("\n  {name}")).collect()
}

fn findings(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n  {}", finding.message)).collect()
}
