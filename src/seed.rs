//! Seed files: data of the team's own, loaded into a database that is there.
//!
//! Plain SQL with COPY blocks (also gzipped) is streamed statement by statement and never handed to
//! psql; an archive of `pg_dump -Fc` goes through pg_restore. Either way a file is one transaction:
//! one that fails leaves the database as it was.

mod scan;
mod script;
mod source;

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::stream;

use crate::context::Context;
use crate::error::{self, Exit};
use crate::migrate::SourcePlace;
use crate::pg::lexer::{self, Token};
use crate::pg::session::CancelHandle;
use crate::pg::tools::{Call, Tools};
use crate::pg::{self, Session, Target};
use crate::report::{Step, Unit, format};

use script::{Script, Statement};
use source::{Content, Source};

/// What a file brought.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Loaded {
    /// Statements that were run; 0 for an archive.
    pub statements: u64,
    /// Rows of COPY blocks; 0 for an archive.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Lines that were left out, for people.
    pub notes: Vec<String>,
}

/// Why a seed file was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} `{path}`: {error}")]
    File { action: &'static str, path: Utf8PathBuf, error: std::io::Error },
    #[error("read seed file `{path}`: it is empty")]
    Empty { path: Utf8PathBuf },
    #[error("read seed file `{path}` line {line}: {reason}")]
    NotText { path: Utf8PathBuf, line: u64, reason: &'static str },
    #[error("read seed file `{}` line {}: {reason}{}", place.path, place.line, place.excerpt())]
    Invalid { place: SourcePlace, reason: String, hint: Option<String> },
    #[error("run seed file `{}` line {}: {error}{}", place.path, place.line, place.excerpt())]
    Statement { place: SourcePlace, error: pg::Error },
    #[error("restore `{path}` by pg_restore: {message}")]
    Restore { path: Utf8PathBuf, message: String },
    #[error("load `{path}`: no pg_restore at hand")]
    NoTools { path: Utf8PathBuf },
    #[error("{what}: {error}")]
    Server { what: &'static str, error: pg::Error },
}

impl Error {
    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::File { .. }
            | Self::Empty { .. }
            | Self::NotText { .. }
            | Self::Invalid { .. }
            | Self::Restore { .. } => Exit::Script,
            Self::Statement { error, .. } => match error {
                pg::Error::Sql(_) => Exit::Script,
                pg::Error::Connect { .. }
                | pg::Error::Login { .. }
                | pg::Error::Closed { .. }
                | pg::Error::Tls { .. }
                | pg::Error::Certificate { .. }
                | pg::Error::Timeout { .. }
                | pg::Error::Protocol { .. } => error::pg_exit(error),
            },
            Self::NoTools { .. } => Exit::Server,
            Self::Server { error, .. } => error::pg_exit(error),
        }
    }

    /// At most two things to do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::File { .. } | Self::Server { .. } => Vec::new(),
            Self::Empty { .. } => vec![
                "make it again: a `pg_dump … > FILE` that fails leaves an empty file".to_owned(),
            ],
            Self::Restore { .. } => vec!["look into it: `pg_restore --list FILE`".to_owned()],
            Self::NotText { .. } => {
                vec!["dump as text in UTF-8: `pg_dump --encoding=UTF8`".to_owned()]
            }
            Self::Invalid { hint, .. } => hint.iter().cloned().collect(),
            Self::NoTools { .. } => vec!["dump as plain SQL: `pg_dump --format=plain`".to_owned()],
            Self::Statement { error, .. } => match error.sqlstate() {
                // active_sql_transaction
                Some("25001") => vec![
                    "a seed file is one transaction: move the statement to a migration".to_owned(),
                ],
                // insufficient_privilege, undefined_object (a role of the source, most often)
                Some("42501" | "42704") => vec![
                    "dump without what belongs to the source: `pg_dump --no-owner --no-privileges`"
                        .to_owned(),
                ],
                // duplicate_table, duplicate_schema, duplicate_object
                Some("42P07" | "42P06" | "42710") => {
                    vec!["the migrations make the tables: `pg_dump --data-only`".to_owned()]
                }
                Some(_) | None => Vec::new(),
            },
        }
    }
}

/// The `*.sql` and `*.sql.gz` of the project's seed folder, in order of name.
pub fn files(context: &Context) -> Result<Vec<Utf8PathBuf>, Error> {
    let dir = &context.config.seed.dir;
    let fail = |error| Error::File { action: "list seed files in", path: dir.clone(), error };
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in dir.read_dir_utf8().map_err(fail)? {
        let path = entry.map_err(fail)?.into_path();
        let name = path.file_name().unwrap_or_default().to_ascii_lowercase();
        if (name.ends_with(".sql") || name.ends_with(".sql.gz")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Loads one file into the database of `target`, all of it or nothing. `tools` are for archives.
///
/// A pipe is read as it comes.
///
/// # Errors
/// [`Error::Statement`] with file, line and caret; [`Error::Empty`]; the database is as before.
pub async fn load_file(
    context: &Context,
    target: &Target,
    tools: Option<&Tools>,
    path: &Utf8Path,
) -> Result<Loaded, error::Error> {
    let shown = path.strip_prefix(&context.config.project).unwrap_or(path);
    let fail = |error| Error::File { action: "read seed file", path: shown.to_owned(), error };
    let step = context.report.step(format!("load {shown}"));
    let opened = context.until_cancelled(async {
        let source = Source::open(path).await.map_err(fail)?;
        source.ok_or_else(|| Error::Empty { path: shown.to_owned() })
    });
    let source = opened.await?;
    let content = source.content;
    let loaded = match content {
        Content::Archive => restore(context, target, tools, source, shown).await?,
        Content::Sql | Content::GzippedSql => {
            let size = source.size;
            run(context, target, Script::of(shown, source), size, &step).await?
        }
    };
    for note in &loaded.notes {
        context.report.detail(note);
    }
    step.done(match content {
        Content::Archive => String::new(),
        Content::Sql | Content::GzippedSql => {
            let statements = format::counted(loaded.statements, "statement");
            match loaded.rows {
                0 => statements,
                rows => format!("{statements}, {} by copy", format::counted(rows, "row")),
            }
        }
    });
    Ok(loaded)
}

async fn restore(
    context: &Context,
    target: &Target,
    tools: Option<&Tools>,
    source: Source,
    shown: &Utf8Path,
) -> Result<Loaded, error::Error> {
    let Some(tools) = tools else { return Err(Error::NoTools { path: shown.to_owned() }.into()) };
    let fail = |error| Error::File { action: "read seed file", path: shown.to_owned(), error };
    let archive = context.until_cancelled(async { source.read().await.map_err(fail) }).await?;
    let loaded = Loaded { bytes: archive.len() as u64, ..Loaded::default() };
    let args = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"];
    let call = Call {
        program: "pg_restore",
        args: args.map(str::to_owned).to_vec(),
        target: Some(target),
        stdin: None,
        input_file: Some(archive),
    };
    let output = tools.run(context, call).await?;
    if output.status == 0 {
        return Ok(loaded);
    }
    let message = output.stderr.trim().to_owned();
    Err(Error::Restore { path: shown.to_owned(), message }.into())
}

async fn run(
    context: &Context,
    target: &Target,
    script: Script,
    size: Option<u64>,
    step: &Step,
) -> Result<Loaded, error::Error> {
    let failed = |error| Error::Server { what: "load a seed file", error };
    let session = Session::connect(target).await.map_err(failed)?;
    let canceller = Canceller { handle: Some(session.cancel_handle()) };
    let work = async {
        session.batch("begin").await.map_err(failed)?;
        let loaded = run_statements(&session, script, size, step).await?;
        session.batch("commit").await.map_err(failed)?;
        Ok::<Loaded, Error>(loaded)
    };
    let result = context.until_cancelled(work).await;
    match &result {
        Err(error::Error::Interrupted) => canceller.cancel().await,
        // After a COPY that failed the session is out of step; the server rolls back at its end.
        Ok(_) | Err(_) => session.close().await,
    }
    result
}

/// Dropping a session does not end the statement that the server is running.
struct Canceller {
    handle: Option<CancelHandle>,
}

impl Canceller {
    async fn cancel(self) {
        if let Some(handle) = self.handle {
            // The server may be gone: then there is nothing to end.
            let _ = handle.cancel().await;
        }
    }
}

async fn run_statements(
    session: &Session,
    mut script: Script,
    size: Option<u64>,
    step: &Step,
) -> Result<Loaded, Error> {
    let mut loaded = Loaded::default();
    while let Some(statement) = script.statement().await? {
        if let Some(note) = left_out(session, &script.path, &statement).await? {
            loaded.notes.push(note);
            continue;
        }
        loaded.statements += 1;
        if statement.copies {
            loaded.rows += copy(session, &mut script, &statement, step, size).await?;
        } else if let Err(error) = session.batch(&statement.text).await {
            return Err(failure(&script.path, &statement, error));
        }
        step.progress(script.bytes_read(), size, Unit::Bytes);
    }
    // Packed, it is a file of twenty bytes.
    if script.line_number() == 0 {
        return Err(Error::Empty { path: script.path });
    }
    loaded.bytes = size.unwrap_or(script.bytes_read());
    Ok(loaded)
}

fn failure(path: &Utf8Path, statement: &Statement, error: pg::Error) -> Error {
    let position = error.sql().and_then(|sql| sql.position);
    Error::Statement { place: statement.place(path, position), error }
}

/// What a COPY was fed with failed, or the server did.
enum CopyFailure {
    File(Error),
    Server(pg::Error),
}

impl From<pg::Error> for CopyFailure {
    fn from(error: pg::Error) -> Self {
        Self::Server(error)
    }
}

async fn copy(
    session: &Session,
    script: &mut Script,
    statement: &Statement,
    step: &Step,
    size: Option<u64>,
) -> Result<u64, Error> {
    let first_row = script.line_number() + 1;
    let rows = stream::try_unfold(&mut *script, |script| async move {
        let block = script.rows().await.map_err(CopyFailure::File)?;
        step.progress(script.bytes_read(), size, Unit::Bytes);
        Ok(block.map(|block| (block, script)))
    });
    match session.copy_in(&statement.text, rows).await {
        Ok(count) => Ok(count),
        Err(CopyFailure::File(error)) => Err(error),
        Err(CopyFailure::Server(error)) => Err(copy_failure(script, statement, first_row, error)),
    }
}

/// The server says which row it was in its context: `COPY t, line 3, column c: "x"`.
fn copy_failure(script: &Script, statement: &Statement, first_row: u64, error: pg::Error) -> Error {
    let context = error.sql().and_then(|sql| sql.context.as_deref());
    let Some((row, rest)) = context.and_then(row_of) else {
        return failure(&script.path, statement, error);
    };
    let line = first_row + row.saturating_sub(1);
    // The server names a column, or shows the row between quotes, or, of a key that is there twice,
    // nothing.
    let source = match rest.starts_with("column ") {
        true => rest.to_owned(),
        false => script.row(line).unwrap_or_else(|| rest.to_owned()),
    };
    Error::Statement {
        place: SourcePlace {
            path: script.path.clone(),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: None,
            source,
        },
        error,
    }
}

/// The row's number and what the server shows of it.
fn row_of(context: &str) -> Option<(u64, &str)> {
    let line = context.lines().find(|line| line.starts_with("COPY "))?;
    let (_, rest) = line.split_once(", line ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let shown = rest[end..].trim_start_matches([',', ':', ' ']);
    Some((rest[..end].parse().ok()?, shown))
}

/// Statements that are not run: the file's own transaction, settings that this server has not.
async fn left_out(
    session: &Session,
    path: &Utf8Path,
    statement: &Statement,
) -> Result<Option<String>, Error> {
    // Everything of interest is short; a long INSERT is not taken apart for nothing.
    let head: String = statement.text.chars().take(12).collect::<String>().to_ascii_lowercase();
    let interesting = [
        "begin", "start", "commit", "end", "rollback", "abort", "prepare", "set", "create",
        "select",
    ];
    if !interesting.iter().any(|word| head.starts_with(word)) || statement.text.len() > 2000 {
        return Ok(None);
    }
    let Ok(tokens) = lexer::tokens(&statement.text) else { return Ok(None) };
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(word));
    let note = |what: &str| Ok(Some(format!("`{path}` line {}: {what}", statement.line)));
    let refuse = |reason: &str, hint: &str| {
        Err(Error::Invalid {
            place: statement.place(path, None),
            reason: reason.to_owned(),
            hint: Some(hint.to_owned()),
        })
    };
    if ends_or_begins_transaction(&tokens) {
        return note("left out, the file is one transaction as it is");
    }
    if (is(0, "rollback") || is(0, "abort")) && !tokens.iter().any(|token| token.is_word("to"))
        || is(0, "prepare") && is(1, "transaction")
    {
        return refuse("a seed file is one transaction, which it cannot end", "delete the line");
    }
    if is(0, "create") && is(1, "database") {
        let hint = "dump one database, without `--create`";
        return refuse("a seed file is loaded into the database that is there", hint);
    }
    if let Some((name, value)) = setting(&tokens) {
        if name == "client_encoding" && !is_utf8(value) {
            return refuse(
                "the text of a seed file is UTF-8",
                "dump it so: `pg_dump --encoding=UTF8`",
            );
        }
        if !name.contains('.') && !has_setting(session, name).await? {
            return note(&format!("left out, this server has no setting `{name}`"));
        }
    }
    Ok(None)
}

fn ends_or_begins_transaction(tokens: &[Token<'_>]) -> bool {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(word));
    let only = tokens.len() == 1 || tokens.len() == 2 && (is(1, "work") || is(1, "transaction"));
    (is(0, "commit") || is(0, "end")) && only
        || is(0, "begin") && (only || is(1, "transaction") || is(1, "isolation") || is(1, "read"))
        || is(0, "start") && is(1, "transaction")
}

/// Name and value of a `set name = value`.
fn setting<'a>(tokens: &'a [Token<'_>]) -> Option<(&'a str, &'a str)> {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(word));
    let at = usize::from(is(1, "local") || is(1, "session")) + 1;
    let assigns = tokens.get(at + 1).is_some_and(|token| token.is_punct("="));
    if !is(0, "set") || !(assigns || is(at + 1, "to")) {
        return None;
    }
    Some((tokens.get(at)?.name()?, &tokens.get(at + 2)?.value))
}

fn is_utf8(encoding: &str) -> bool {
    let letters: String = encoding.chars().filter(char::is_ascii_alphanumeric).collect();
    ["utf8", "unicode", "default"].iter().any(|name| letters.eq_ignore_ascii_case(name))
}

async fn has_setting(session: &Session, name: &str) -> Result<bool, Error> {
    let sql =
        "select exists (select from pg_catalog.pg_settings where name = pg_catalog.lower($1))";
    let row = session
        .query_one(sql, &[&name])
        .await
        .map_err(|error| Error::Server { what: "read the server's settings", error })?;
    Ok(row.get(0))
}

#[cfg(test)]
mod tests {
    use super::{ends_or_begins_transaction, is_utf8, row_of, setting};
    use crate::pg::lexer;

    #[test]
    fn the_row_of_a_copy_is_read_from_the_servers_context() {
        assert_eq!(row_of("COPY t, line 12, column id: \"x\""), Some((12, "column id: \"x\"")));
        assert_eq!(row_of("COPY t, line 3: \"1,2\"\nother"), Some((3, "\"1,2\"")));
        assert_eq!(row_of("PL/pgSQL function f() line 3"), None);
    }

    #[test]
    fn a_files_own_transaction_is_known() {
        for text in [
            "begin",
            "BEGIN WORK",
            "commit",
            "end transaction",
            "begin isolation level serializable",
            "start transaction read only",
        ] {
            assert!(ends_or_begins_transaction(&lexer::tokens(text).expect("SQL")), "{text}");
        }
        for text in ["commit prepared 'x'", "select 1", "endpoint"] {
            assert!(!ends_or_begins_transaction(&lexer::tokens(text).expect("SQL")), "{text}");
        }
    }

    #[test]
    fn a_setting_is_read_from_its_statement() {
        let read = |text: &str| {
            let tokens = lexer::tokens(text).expect("SQL");
            setting(&tokens).map(|(name, value)| format!("{name}={value}"))
        };
        assert_eq!(read("SET transaction_timeout = 0").as_deref(), Some("transaction_timeout=0"));
        assert_eq!(read("set local a to 'b'").as_deref(), Some("a=b"));
        assert_eq!(read("set session authorization x"), None);
        assert_eq!(read("set time zone 'UTC'"), None);
        assert!(is_utf8("UTF8") && is_utf8("utf-8") && !is_utf8("LATIN1"));
    }
}
