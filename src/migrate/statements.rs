//! The statements of one script on their way to the server, and where one of them stopped.

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::Error;
use super::apply::{Prepared, Run};
use super::callbacks::fire_inside;
use super::failure::{Account, Left, ScriptFailure};
use super::flight::{Crash, Flight, Label};
use super::place::Place;
use super::resolve::shown;
use super::script::{Script, SourcePlace, place_at, source_place};
use super::transaction::{
    begins_transaction, builds_beside, chains_transaction, commits, ends_though_failed,
    ends_transaction, runs_after_failure,
};
use crate::pg::lexer::{self, CopyData, Statement};
use crate::pg::names::{Rewritten, other_databases, rewrite};
use crate::pg::{self, Session};

/// Rows of a COPY go out in blocks of this size: one message a row would cost more than its data.
const COPY_BLOCK: usize = 256 << 10;

/// What a script and the callbacks around it have made of the transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// One is still to be ended.
    pub is_open: bool,
    /// They made something stay themselves.
    pub committed: bool,
}

impl Standing {
    pub(super) const BEGUN: Self = Self { is_open: true, committed: false };
    pub(super) const NONE: Self = Self { is_open: false, committed: false };
}

/// How the statements of a script run.
pub(super) enum Mode<'a> {
    Transaction {
        standing: &'a mut Standing,
        /// The statement that bounds a transaction's waits for locks.
        bound: &'a str,
    },
    /// `lock_timeout_ms` is the session's, 0 where it is not ours.
    OneByOne { standing: &'a mut Standing, lock_timeout_ms: u32 },
}

impl Mode<'_> {
    pub(super) fn standing(&mut self) -> &mut Standing {
        match self {
            Self::Transaction { standing, .. } | Self::OneByOne { standing, .. } => standing,
        }
    }
}

/// The events around each statement of a script; callbacks themselves have none.
#[derive(Debug, Clone, Copy)]
pub(super) struct StatementEvents {
    pub before: &'static str,
    pub after: &'static str,
}

/// Why a script did not run through.
pub(super) enum Stop {
    Interrupted {
        statements_before: usize,
        /// Nothing is left unanswered on the session.
        is_drained: bool,
    },
    /// `place` in the text that ran, where one is known.
    Statement {
        error: pg::Error,
        statements_before: usize,
        place: Option<StopPlace>,
        is_copy: bool,
    },
    /// The transaction's end, or what stands around the script in it.
    Frame(pg::Error),
    /// A callback of the script's transaction.
    Callback(Error),
}

pub(super) enum StopPlace {
    /// A byte of the text that ran.
    Offset(usize),
    /// A line of the text that ran, by its first byte.
    Line(usize),
}

impl Stop {
    pub(super) fn leaves_session_broken(&self) -> bool {
        match self {
            // After a refused COPY the session may be out of step (rust-postgres #789).
            Self::Statement { error, is_copy, .. } => {
                *is_copy || !matches!(error, pg::Error::Sql(_))
            }
            Self::Frame(error) => !matches!(error, pg::Error::Sql(_)),
            Self::Interrupted { is_drained, .. } => !is_drained,
            Self::Callback(_) => false,
        }
    }

    pub(super) fn statements_before(&self) -> usize {
        match self {
            Self::Interrupted { statements_before, .. }
            | Self::Statement { statements_before, .. } => *statements_before,
            Self::Frame(_) | Self::Callback(_) => 0,
        }
    }

    /// Whether a lock was not to be had in time.
    pub(super) fn is_lock_timeout(&self) -> bool {
        match self {
            Self::Statement { error, .. } | Self::Frame(error) => error.sqlstate() == Some("55P03"),
            Self::Interrupted { .. } | Self::Callback(_) => false,
        }
    }

    /// What is left when the transaction was given up.
    pub(super) fn left_of_transaction(&self, committed: bool) -> Left {
        let is_known = match self {
            Self::Statement { error, .. } | Self::Frame(error) => {
                matches!(error, pg::Error::Sql(_))
            }
            Self::Interrupted { is_drained, .. } => *is_drained,
            Self::Callback(_) => true,
        };
        match (is_known, committed) {
            // Its end may have been on the way already.
            (false, _) => Left::Unknown,
            (true, true) => Left::Committed,
            (true, false) => Left::Nothing,
        }
    }

    pub(super) fn into_error(self, run: &Run<'_>, prepared: &Prepared<'_>, left: Left) -> Error {
        let script = prepared.script;
        let (error, stopped_at) = match self {
            Self::Interrupted { .. } => {
                if let Left::Statements { .. } | Left::Committed = left {
                    run.ctx.report.warn(format!("`{}`: {left}", script.script));
                }
                return Error::Interrupted;
            }
            Self::Callback(error) => return error,
            Self::Frame(error) => (error, None),
            Self::Statement { error, place, .. } => (error, place),
        };
        let path = shown(&script.path, &run.ctx.config.project);
        let source = |offset: usize| prepared.text.source_offset(offset);
        let place = stopped_at.map(|stopped_at| match stopped_at {
            StopPlace::Offset(offset) => place_at(path, &script.text, source(offset)),
            StopPlace::Line(offset) => {
                let place = lexer::locate(&script.text, source(offset));
                SourcePlace { column: None, ..source_place(path, &script.text, place) }
            }
        });
        Error::Failed(Box::new(ScriptFailure {
            path: path.to_owned(),
            script: script.script.clone(),
            kind: script.kind.clone(),
            place,
            error,
            account: Account::of(run.target),
            left,
        }))
    }
}

/// A crash of the flight in the words of the script.
pub(super) fn stop_of(crash: Crash, statements: &[Statement<'_>]) -> Stop {
    match crash {
        Crash::Interrupted { is_drained } => Stop::Interrupted { statements_before: 0, is_drained },
        Crash::Refused { label: Label::Statement { index, is_rewritten }, error } => {
            match statements.get(index) {
                Some(statement) => stop(error, statement, !is_rewritten, index),
                None => Stop::Frame(error),
            }
        }
        Crash::Refused { label: Label::Frame | Label::Row | Label::Commit, error } => {
            Stop::Frame(error)
        }
    }
}

/// Runs a script's statements. In a transaction the last answers may still be on their way
/// afterwards.
pub(super) async fn run_statements(
    run: &Run<'_>,
    place: &Place,
    flight: &mut Flight<'_>,
    prepared: &Prepared<'_>,
    statements: &[Statement<'_>],
    mode: &mut Mode<'_>,
    events: Option<StatementEvents>,
) -> Result<(), Stop> {
    let ran = send_all(run, place, flight, prepared, statements, mode, events).await;
    if let Err(Stop::Statement { error, statements_before, .. }) = &ran
        && let (Some(statement), Some(error)) = (statements.get(*statements_before), error.sql())
        && ends_though_failed(statement, error)
    {
        mode.standing().is_open = false;
    }
    ran
}

async fn send_all(
    run: &Run<'_>,
    place: &Place,
    flight: &mut Flight<'_>,
    prepared: &Prepared<'_>,
    statements: &[Statement<'_>],
    mode: &mut Mode<'_>,
    events: Option<StatementEvents>,
) -> Result<(), Stop> {
    let crashed = |crash: Crash| stop_of(crash, statements);
    let events = events.filter(|events| {
        run.scripts.has_callbacks(events.before) || run.scripts.has_callbacks(events.after)
    });
    for (index, statement) in statements.iter().enumerate() {
        // A failure before it must be seen first; and what follows a `commit` that failed would run.
        let is_exit = runs_after_failure(statement);
        if is_exit || events.is_some() {
            flight.land().await.map_err(crashed)?;
        }
        if let Some(events) = events {
            fire_inside(run, place, events.before, mode).await.map_err(Stop::Callback)?;
        }
        let patient_ms = match mode {
            Mode::OneByOne { lock_timeout_ms, .. } if builds_beside(statement) => *lock_timeout_ms,
            Mode::OneByOne { .. } | Mode::Transaction { .. } => 0,
        };
        if patient_ms > 0 {
            flight.frame("set lock_timeout = 0".to_owned()).await.map_err(crashed)?;
        }
        let sent = send(run, place, flight, prepared.script, statement, index).await;
        sent.map_err(|failed| failed.into_stop(statements))?;
        if patient_ms > 0 {
            let set = format!("set lock_timeout = {patient_ms}");
            flight.frame(set).await.map_err(crashed)?;
        }
        if is_exit || events.is_some() || matches!(mode, Mode::OneByOne { .. }) {
            flight.land().await.map_err(crashed)?;
        }
        mode.standing().committed |= commits(statement);
        let (ends, chains) = (ends_transaction(statement), chains_transaction(statement));
        match mode {
            Mode::Transaction { bound, .. } if ends => {
                flight.frame(format!("begin;\n{bound}")).await.map_err(crashed)?;
            }
            Mode::Transaction { bound, .. } if chains && !bound.is_empty() => {
                flight.frame((*bound).to_owned()).await.map_err(crashed)?;
            }
            Mode::Transaction { .. } => {}
            Mode::OneByOne { standing, .. } => {
                standing.is_open = !ends && (standing.is_open || begins_transaction(statement));
            }
        }
        if let Some(events) = events {
            flight.land().await.map_err(crashed)?;
            fire_inside(run, place, events.after, mode).await.map_err(Stop::Callback)?;
        }
    }
    Ok(())
}

enum Unsent {
    Crash(Crash),
    Stop(Stop),
}

impl Unsent {
    fn into_stop(self, statements: &[Statement<'_>]) -> Stop {
        match self {
            Self::Crash(crash) => stop_of(crash, statements),
            Self::Stop(stop) => stop,
        }
    }
}

async fn send(
    run: &Run<'_>,
    place: &Place,
    flight: &mut Flight<'_>,
    script: &Script,
    statement: &Statement<'_>,
    index: usize,
) -> Result<(), Unsent> {
    let rewritten = rewrite(statement.text, run.names);
    let sql = match &rewritten {
        Rewritten::Same => statement.text,
        Rewritten::Changed(sql) => sql,
        Rewritten::OtherDatabase { name } => {
            warn_about(run, script, statement, std::slice::from_ref(name));
            return Ok(());
        }
    };
    let is_rewritten = matches!(rewritten, Rewritten::Changed(_));
    if is_rewritten {
        let others = other_databases(statement.text, run.names);
        if !others.is_empty() {
            warn_about(run, script, statement, &others);
        }
    }
    if statement.copy_data.is_none() && !writes_stdout(statement) {
        let label = Label::Statement { index, is_rewritten };
        return flight.send(label, sql.to_owned()).await.map_err(Unsent::Crash);
    }
    flight.land().await.map_err(Unsent::Crash)?;
    copy(run, &place.session, statement, sql, index).await.map_err(Unsent::Stop)
}

async fn copy(
    run: &Run<'_>,
    session: &Session,
    statement: &Statement<'_>,
    sql: &str,
    index: usize,
) -> Result<(), Stop> {
    let work = async {
        match &statement.copy_data {
            Some(data) => copy_in(session, sql, data).await,
            None => copy_out(session, sql).await,
        }
    };
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        () = run.ctx.cancel.cancelled() => {
            let _ = session.cancel_handle().cancel().await;
            // The COPY is left where it stands.
            Err(Stop::Interrupted { statements_before: index, is_drained: false })
        }
        result = &mut work => {
            result.map_err(|error| stop(error, statement, sql == statement.text, index))
        }
    }
}

fn warn_about(run: &Run<'_>, script: &Script, statement: &Statement<'_>, names: &[String]) {
    run.ctx.report.warn(format!(
        "`{}`, line {}: left out for the database `{}`; write `${{flyway:database}}` for the one at hand",
        script.script,
        statement.line,
        names.join("`, `")
    ));
}

async fn copy_in(session: &Session, sql: &str, data: &CopyData<'_>) -> Result<(), pg::Error> {
    let blocks: Vec<Result<Bytes, pg::Error>> = data
        .rows
        .as_bytes()
        .chunks(COPY_BLOCK)
        .map(|block| Ok(Bytes::copy_from_slice(block)))
        .collect();
    session.copy_in(sql, stream::iter(blocks)).await.map(|_: u64| ())
}

/// `copy … to stdout` in a script has no reader; it runs for what it may call.
async fn copy_out(session: &Session, sql: &str) -> Result<(), pg::Error> {
    let rows = session.copy_out(sql).await?;
    let mut rows = std::pin::pin!(rows);
    while let Some(block) = rows.next().await {
        block?;
    }
    Ok(())
}

fn writes_stdout(statement: &Statement<'_>) -> bool {
    let tokens = statement.tokens();
    tokens[0].is_word("copy")
        && tokens.windows(2).any(|pair| pair[0].is_word("to") && pair[1].is_word("stdout"))
}

/// `is_as_written`: the text that the server's position counts in is the script's.
fn stop(error: pg::Error, statement: &Statement<'_>, is_as_written: bool, index: usize) -> Stop {
    let start = statement.tokens()[0].offset;
    let position = error.sql().and_then(|sql| sql.position);
    let place = match position {
        Some(position) if is_as_written => {
            let (text, chars) = (statement.text, (position as usize).saturating_sub(1));
            let offset = text.char_indices().nth(chars).map_or(text.len(), |(offset, _)| offset);
            StopPlace::Offset(statement.offset + offset)
        }
        Some(_) | None => match (&statement.copy_data, copy_line(&error)) {
            (Some(data), Some(line)) => {
                let rows = data.rows.split_inclusive('\n').take(line - 1);
                StopPlace::Line(data.offset + rows.map(str::len).sum::<usize>())
            }
            _ => StopPlace::Line(start),
        },
    };
    let is_copy = statement.copy_data.is_some();
    Stop::Statement { error, statements_before: index, place: Some(place), is_copy }
}

/// The row that a COPY stopped at, from 1: `COPY t, line 3, column b: "x"`.
fn copy_line(error: &pg::Error) -> Option<usize> {
    let context = error.sql()?.context.as_deref()?;
    let (_, rest) =
        context.lines().find(|line| line.starts_with("COPY "))?.split_once(", line ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|&line| line > 0)
}
