//! Runs scripts: each with its row in the history, in one transaction where that can be.
//!
//! Statements that the server refuses in a transaction run one by one; if one of those fails, a row
//! with `success = false` tells that the script is half done. Neither waits long for a table's lock
//! (`patience`).

use std::time::Instant;

use super::Error;
use super::callbacks::{fire_after_error, fire_inside};
use super::failure::Left;
use super::flight::{Crash, Flight};
use super::history::NewRow;
use super::patience::{Patience, SessionBound};
use super::place::Place;
use super::placeholders::Replaced;
use super::program;
use super::resolve::Scripts;
use super::script::{Language, Script, place_at};
use super::statements::{Mode, Standing, StatementEvents, Stop, run_statements, stop_of};
use super::transaction::{
    begins_transaction, drops_locks, ends_its_transaction, keeps_session, needs_none,
    sets_own_timeout,
};
use crate::context::Context;
use crate::pg::lexer::{self, LexError, LexErrorKind};
use crate::pg::names::DatabaseName;
use crate::pg::{self, Target};
use crate::report::{Step, Unit};

/// Shorter scripts are over before anybody could read how far they are.
const STATEMENTS_WORTH_COUNTING: usize = 50;

/// A script that is ready to run.
#[derive(Debug)]
pub(super) struct Prepared<'a> {
    pub script: &'a Script,
    pub text: Replaced,
    pub in_transaction: bool,
    pub statements: usize,
    /// Role and search path are afterwards what they were before.
    pub keeps_session: bool,
    /// It gives session locks back (`discard all`), ours among them.
    pub drops_locks: bool,
    /// It says itself how long it waits for locks.
    pub sets_own_timeout: bool,
}

impl Prepared<'_> {
    /// Whether a statement of it that fails may leave the session out of step.
    pub(super) fn may_break_session(&self) -> bool {
        let statements = lexer::split(&self.text.text).unwrap_or_default();
        statements.iter().any(|statement| statement.copy_data.is_some())
    }
}

/// What one run of scripts needs to know.
pub(super) struct Run<'a> {
    pub ctx: &'a Context,
    pub target: &'a Target,
    pub names: &'a DatabaseName,
    pub scripts: &'a Scripts,
    /// The step that shows how far a long script is.
    pub step: Option<(&'a Step, usize)>,
}

impl Run<'_> {
    pub(super) fn progress(&self, done: usize) {
        if let Some((step, total)) = self.step
            && total >= STATEMENTS_WORTH_COUNTING
        {
            step.progress(done as u64, Some(total as u64), Unit::Items);
        }
    }
}

/// The events around one script.
#[derive(Debug, Clone, Copy)]
struct Events {
    before: &'static str,
    after: &'static str,
    statement: StatementEvents,
    error: [&'static str; 2],
}

const MIGRATE: Events = Events {
    before: "beforeEachMigrate",
    after: "afterEachMigrate",
    statement: StatementEvents {
        before: "beforeEachMigrateStatement",
        after: "afterEachMigrateStatement",
    },
    error: ["afterEachMigrateStatementError", "afterEachMigrateError"],
};

const UNDO: Events = Events {
    before: "beforeEachUndo",
    after: "afterEachUndo",
    statement: StatementEvents {
        before: "beforeEachUndoStatement",
        after: "afterEachUndoStatement",
    },
    error: ["afterEachUndoStatementError", "afterEachUndoError"],
};

/// A script with the row that records it.
pub(super) struct Work<'a> {
    pub prepared: &'a Prepared<'a>,
    pub rank: i32,
    /// The row of the script that this one takes back.
    pub undoes: Option<&'a super::HistoryRow>,
}

impl Work<'_> {
    fn events(&self) -> Events {
        if self.undoes.is_some() { UNDO } else { MIGRATE }
    }

    fn row(&self, time: Option<i32>, success: bool) -> NewRow<'_> {
        match self.undoes {
            Some(row) => NewRow {
                installed_rank: self.rank,
                version: row.version.as_deref(),
                description: &row.description,
                kind: "DELETE",
                script: &row.script,
                checksum: row.checksum,
                execution_time: Some(0),
                success: true,
            },
            None => new_row(self.prepared.script, self.rank, time, success),
        }
    }
}

/// Replaces placeholders, takes the script apart and decides whether it runs in a transaction.
///
/// # Errors
/// A placeholder without a value, text that is no SQL, statements of both kinds in one script.
pub(super) fn prepare<'a>(
    ctx: &Context,
    scripts: &Scripts,
    script: &'a Script,
    server_version: i32,
) -> Result<Prepared<'a>, Error> {
    if script.language == Language::Program {
        return Ok(Prepared {
            script,
            text: Replaced::unchanged(""),
            in_transaction: false,
            statements: 0,
            keeps_session: false,
            drops_locks: false,
            sets_own_timeout: false,
        });
    }
    let config = &ctx.config.migrate;
    let mut text = script.replaced(&scripts.placeholders)?;
    if let Err(LexError { kind: LexErrorKind::UnterminatedComment, offset, line, .. }) =
        lexer::split(&text.text)
    {
        // Flyway drops it without a word; scripts that ran in production must run again.
        ctx.report.warn(format!(
            "`{}`: the comment that begins in line {line} never ends, what follows does not run",
            script.script
        ));
        text.text.truncate(offset);
    }
    let statements = lexer::split(&text.text).map_err(|error| Error::NotSql {
        place: place_at(&script.path, &script.text, text.source_offset(error.offset)),
        error,
    })?;
    let alone = statements.iter().find(|statement| needs_none(statement, server_version));
    let shared = statements.iter().find(|statement| !needs_none(statement, server_version));
    let in_transaction = match (script.settings.execute_in_transaction, alone, shared) {
        (Some(chosen), _, _) => chosen,
        (None, None, _) => config.execute_in_transaction,
        (None, Some(_), Some(_)) if config.mixed || !config.execute_in_transaction => false,
        (None, Some(alone), Some(_)) => {
            let offset = text.source_offset(alone.tokens()[0].offset);
            return Err(Error::Mixed { place: place_at(&script.path, &script.text, offset) });
        }
        (None, Some(_), None) => false,
    };
    let (count, keeps_session, drops_locks, sets_own_timeout) = (
        statements.len(),
        statements.iter().all(keeps_session),
        statements.iter().any(drops_locks),
        statements.iter().any(sets_own_timeout),
    );
    Ok(Prepared {
        script,
        text,
        in_transaction,
        statements: count,
        keeps_session,
        drops_locks,
        sets_own_timeout,
    })
}

/// How a call of [`apply`] ended.
pub(super) enum Applied {
    /// How long each script took, in milliseconds.
    Times(Vec<i32>),
    /// Nothing of them ran: the lock was lost with the session, and others have migrated since.
    Overtaken,
}

/// Runs scripts and records them: all in one transaction, or, when one of them cannot, one by one.
///
/// # Errors
/// [`Error::Failed`] with what is in the database now.
pub(super) async fn apply(
    run: &Run<'_>,
    place: &mut Place,
    works: &[Work<'_>],
) -> Result<Applied, Error> {
    if works.iter().all(|work| work.prepared.in_transaction)
        || run.ctx.config.migrate.skip_executing_migrations
    {
        return in_transaction(run, place, works).await;
    }
    let mut times = Vec::new();
    for work in works {
        times.push(one_by_one(run, place, work).await?);
    }
    Ok(Applied::Times(times))
}

/// Why a transaction was given up, and at which script.
struct Broken {
    at: usize,
    stop: Stop,
    standing: Standing,
}

/// What a transaction that was given up leaves to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GoOn {
    Session,
    /// A new session, without the lock that the old one had.
    NewSession,
    Nothing,
}

async fn in_transaction(
    run: &Run<'_>,
    place: &mut Place,
    works: &[Work<'_>],
) -> Result<Applied, Error> {
    let mut patience = Patience::of(run.ctx, place, works.iter().map(|work| work.prepared));
    loop {
        let broken = match transaction(run, place, works, &patience).await {
            Ok(times) => return Ok(Applied::Times(times)),
            Err(broken) => broken,
        };
        let Broken { at, stop, standing: Standing { is_open, committed } } = broken;
        let work = &works[at];
        let session = give_up(run, place, &stop, is_open).await;
        if stop.is_lock_timeout() && !committed && patience.is_left() && session != GoOn::Nothing {
            if session == GoOn::NewSession && is_overtaken(run, place, works).await? {
                return Ok(Applied::Overtaken);
            }
            patience.step_back(run.ctx, &work.prepared.script.script).await?;
            continue;
        }
        let events = work.events().error;
        let left = stop.left_of_transaction(committed);
        let is_statement = matches!(stop, Stop::Statement { .. });
        let error = stop.into_error(run, work.prepared, left);
        fire_after_error(run, place, if is_statement { &events } else { &events[1..] }).await;
        return Err(error);
    }
}

/// Takes the lock on a new session. Whether others have migrated since the old one had it.
async fn is_overtaken(run: &Run<'_>, place: &Place, works: &[Work<'_>]) -> Result<bool, Error> {
    place.lock(run.ctx).await?;
    let last_known = works.first().map(|work| work.rank - 1);
    Ok(!place.table.rows_after(&place.session, last_known).await?.is_empty())
}

/// Leaves the transaction, on a new session where the old one is of no use.
async fn give_up(run: &Run<'_>, place: &mut Place, stop: &Stop, is_open: bool) -> GoOn {
    place.settle(false);
    if matches!(stop, Stop::Interrupted { .. }) {
        // The caller drops the session; whatever is open on it ends with it.
        return GoOn::Nothing;
    }
    if stop.leaves_session_broken() || place.session.is_closed() {
        return match Place::open(run.ctx, run.target).await {
            Ok(fresh) => {
                std::mem::replace(place, fresh).session.close().await;
                GoOn::NewSession
            }
            // The server is gone; the script's own error says more.
            Err(_) => GoOn::Nothing,
        };
    }
    let rollback = if is_open { "rollback;\n" } else { "" };
    let sql = format!("{rollback}{}", place.back_to_owner());
    // Whatever is wrong with the session now, the script's own error says more.
    let _ = place.session.batch(&sql).await;
    GoOn::Session
}

async fn transaction(
    run: &Run<'_>,
    place: &Place,
    works: &[Work<'_>],
    patience: &Patience,
) -> Result<Vec<i32>, Broken> {
    let mut flight = Flight::new(run, &place.session);
    // Callbacks may do anything to the session, and a rollback takes back what a preamble set.
    let is_plain =
        run.scripts.callbacks.is_empty() && works.iter().all(|work| work.prepared.keeps_session);
    let begins_plain = place.preamble_if_due().is_empty();
    place.settle(is_plain && begins_plain);
    let mut standing = Standing::BEGUN;
    let mut times = Vec::with_capacity(works.len());
    let bound = patience.of_transaction();
    let mut begin = format!("begin;\n{bound}");
    for (at, work) in works.iter().enumerate() {
        let mode = Mode::Transaction { standing: &mut standing, bound: &bound };
        let ran = in_flight(run, place, &mut flight, work, &mut begin, mode).await;
        let started = ran.map_err(|stop| Broken { at, stop, standing })?;
        // The last one commits in the same flight.
        let is_last = at + 1 == works.len();
        let ended = async {
            if is_last {
                flight.commit().await?;
            }
            if is_last || works.len() > 1 {
                flight.land().await?;
            }
            Ok::<_, Crash>(())
        };
        let ended = ended.await;
        ended.map_err(|crash| {
            let statements = lexer::split(&work.prepared.text.text).unwrap_or_default();
            standing.is_open = !flight.has_ended;
            Broken { at, stop: stop_of(crash, &statements), standing }
        })?;
        times.push(milliseconds(started));
    }
    place.settle(is_plain);
    Ok(times)
}

/// One script of a transaction with its row; the answers may still be on their way afterwards.
async fn in_flight<'a>(
    run: &'a Run<'a>,
    place: &'a Place,
    flight: &mut Flight<'a>,
    work: &'a Work<'a>,
    begin: &mut String,
    mut mode: Mode<'_>,
) -> Result<Instant, Stop> {
    let prepared = work.prepared;
    let events = work.events();
    // It was taken apart once already: this cannot fail.
    let statements = lexer::split(&prepared.text.text).unwrap_or_default();
    let crashed = |crash: Crash| stop_of(crash, &statements);
    // A message that does not parse runs nothing of itself: `begin` goes out on its own.
    for frame in [std::mem::take(begin), place.preamble_if_due()] {
        if !frame.is_empty() {
            flight.frame(frame).await.map_err(crashed)?;
        }
    }
    let started = Instant::now();
    if run.scripts.has_callbacks(events.before) {
        flight.land().await.map_err(crashed)?;
        fire_inside(run, place, events.before, &mut mode).await.map_err(Stop::Callback)?;
    }
    let mut time = Some(0);
    if !run.ctx.config.migrate.skip_executing_migrations || work.undoes.is_some() {
        let around = Some(events.statement);
        run_statements(run, place, flight, prepared, &statements, &mut mode, around).await?;
        // The server's clock counts from the start of its transaction, which must be the script's.
        time = None;
        if run.ctx.config.migrate.group || ends_its_transaction(&statements) {
            flight.land().await.map_err(crashed)?;
            time = Some(milliseconds(started));
        }
    }
    if !prepared.keeps_session || !run.scripts.callbacks.is_empty() {
        flight.frame(place.back_to_owner()).await.map_err(crashed)?;
    }
    match work.undoes {
        Some(row) => {
            flight.row_unless_gone(&place.table, work.row(time, true), row.installed_rank).await
        }
        None => flight.row(&place.table, work.row(time, true)).await,
    }
    .map_err(crashed)?;
    if run.scripts.has_callbacks(events.after) {
        flight.land().await.map_err(crashed)?;
        flight.frame(place.preamble()).await.map_err(crashed)?;
        flight.land().await.map_err(crashed)?;
        fire_inside(run, place, events.after, &mut mode).await.map_err(Stop::Callback)?;
    }
    Ok(started)
}

/// Without a transaction: what ran stays. The row says `success = false` before the first statement
/// goes out, so that whatever ends this process leaves nothing applied and unrecorded.
async fn one_by_one(run: &Run<'_>, place: &mut Place, work: &Work<'_>) -> Result<i32, Error> {
    let prepared = work.prepared;
    let events = work.events();
    let mut patience = Patience::of(run.ctx, place, [prepared]);
    place.settle(false);
    let bound = SessionBound::set(&place.session, &patience).await?;
    place.session.batch(&place.preamble()).await?;
    let mut standing = Standing::NONE;
    let lock_timeout_ms = patience.timeout_ms;
    let mut mode = Mode::OneByOne { standing: &mut standing, lock_timeout_ms };
    fire_inside(run, place, events.before, &mut mode).await?;
    place.session.batch(&place.back_to_owner()).await?;
    // A half-undone version is still the version that it was.
    let is_recorded = work.undoes.is_none();
    if is_recorded {
        place.table.insert(&place.session, &work.row(Some(0), false)).await?;
    }
    loop {
        place.session.batch(&place.preamble()).await?;
        let started = Instant::now();
        let result = match prepared.script.language {
            Language::Program => program::run(run, prepared.script).await.map_err(Stop::Callback),
            Language::Sql => statements_alone(run, place, work, &mut mode).await,
        };
        let time = milliseconds(started);
        let Err(stop) = result else {
            place.session.batch(&place.back_to_owner()).await?;
            record(place, work, time).await?;
            place.session.batch(&place.preamble()).await?;
            fire_inside(run, place, events.after, &mut mode).await?;
            place.session.batch(&bound.put_back()).await?;
            return Ok(time);
        };
        let ran_nothing =
            patience.timeout_ms > 0 && stop.is_lock_timeout() && is_first(&stop, work);
        let may_go_on = ran_nothing && !stop.leaves_session_broken();
        // How it ended is worth no second error.
        let _ = leave(run, place, &stop, mode.standing()).await;
        if may_go_on && patience.is_left() {
            let stepped = patience.step_back(run.ctx, &prepared.script.script).await;
            if stepped.is_ok() {
                continue;
            }
            let _ = forget(place, work).await;
            stepped?;
        }
        let left = if ran_nothing && forget(place, work).await.is_ok() {
            Left::Nothing
        } else {
            if is_recorded {
                let _ = place.table.finish(&place.session, &work.row(Some(time), false)).await;
            }
            Left::Statements { before: stop.statements_before(), recorded: is_recorded }
        };
        let mut error = stop.into_error(run, prepared, left);
        if let Error::Program { left: of_program, .. } = &mut error {
            *of_program = left;
        }
        let _ = place.session.batch(&bound.put_back()).await;
        fire_after_error(run, place, &events.error).await;
        return Err(error);
    }
}

async fn statements_alone(
    run: &Run<'_>,
    place: &Place,
    work: &Work<'_>,
    mode: &mut Mode<'_>,
) -> Result<(), Stop> {
    let prepared = work.prepared;
    // It was taken apart once already: this cannot fail.
    let statements = lexer::split(&prepared.text.text).unwrap_or_default();
    let mut flight = Flight::new(run, &place.session);
    let around = Some(work.events().statement);
    run_statements(run, place, &mut flight, prepared, &statements, mode, around).await
}

/// Records a script that ran through without a transaction.
async fn record(place: &Place, work: &Work<'_>, time: i32) -> Result<(), Error> {
    let row = work.row(Some(time), true);
    match work.undoes {
        Some(undone) => {
            let rank = undone.installed_rank;
            place.table.insert_unless_gone(&place.session, &row, rank).await?;
        }
        None => place.table.finish(&place.session, &row).await?,
    }
    Ok(())
}

/// Takes back the row of a script that did not begin after all.
async fn forget(place: &Place, work: &Work<'_>) -> Result<(), pg::Error> {
    match work.undoes {
        Some(_) => Ok(()),
        None => place.table.forget(&place.session, work.rank).await,
    }
}

/// Whether it stopped at the script's first statement, a `begin` before it not counted.
fn is_first(stop: &Stop, work: &Work<'_>) -> bool {
    let statements = lexer::split(&work.prepared.text.text).unwrap_or_default();
    statements.iter().take(stop.statements_before()).all(begins_transaction)
}

/// Leaves a session that is of use again.
async fn leave(
    run: &Run<'_>,
    place: &mut Place,
    stop: &Stop,
    standing: &mut Standing,
) -> Result<(), Error> {
    if stop.leaves_session_broken() || place.session.is_closed() {
        let fresh = Place::open(run.ctx, run.target).await?;
        std::mem::replace(place, fresh).session.close().await;
        *standing = Standing::NONE;
    }
    // Without a transaction of the script's own the server would warn that there is none.
    let rollback = if standing.is_open { "rollback;\n" } else { "" };
    standing.is_open = false;
    place.session.batch(&format!("{rollback}{}", place.back_to_owner())).await?;
    Ok(())
}

/// The row for a script.
pub(super) fn new_row(script: &Script, rank: i32, time: Option<i32>, success: bool) -> NewRow<'_> {
    NewRow {
        installed_rank: rank,
        version: script.version.as_ref().map(|version| version.text()),
        description: &script.description,
        kind: script.type_name(),
        script: &script.script,
        checksum: Some(script.checksum),
        execution_time: time,
        success,
    }
}

fn milliseconds(started: Instant) -> i32 {
    i32::try_from(started.elapsed().as_millis()).unwrap_or(i32::MAX)
}
