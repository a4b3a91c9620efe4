//! Callbacks: scripts that are named after an event and run when it happens.
//!
//! Those around a script and around its statements run in the script's transaction, all others in
//! one of their own. What an error event's callback fails with is a warning: it must not hide the
//! error that it was called for.

use super::Error;
use super::apply::{Prepared, Run, prepare};
use super::failure::Left;
use super::flight::Flight;
use super::patience::{Patience, SessionBound};
use super::place::Place;
use super::program;
use super::script::Language;
use super::statements::{Mode, Standing, run_statements, stop_of};
use crate::pg::lexer;

/// The callbacks of `event`, each in a transaction of its own where it can be.
///
/// # Errors
/// [`Error::Callback`].
pub(super) async fn fire(run: &Run<'_>, place: &Place, event: &'static str) -> Result<(), Error> {
    if !run.scripts.has_callbacks(event) {
        return Ok(());
    }
    for script in run.scripts.callbacks_of(event) {
        let result = Box::pin(fire_one(run, place, script)).await;
        result.map_err(|error| callback(event, error))?;
    }
    Ok(())
}

/// One callback in a transaction of its own, tried again when it met a lock.
async fn fire_one(run: &Run<'_>, place: &Place, script: &super::Script) -> Result<(), Error> {
    if script.language == Language::Program {
        return run_program(run, script).await;
    }
    let prepared = prepare(run.ctx, run.scripts, script, place.server_version)?;
    let mut patience = Patience::of(run.ctx, place, [&prepared]);
    // Of the session: a `commit` of the callback's own does not lift it.
    let bound = SessionBound::set(&place.session, &patience).await?;
    loop {
        let lock_timeout_ms = patience.timeout_ms;
        let (begin, mut standing) = match prepared.in_transaction {
            true => ("begin;\n", Standing::BEGUN),
            false => ("", Standing::NONE),
        };
        place.session.batch(&format!("{begin}{}", place.preamble())).await?;
        let mut mode = match prepared.in_transaction {
            true => Mode::Transaction { standing: &mut standing, bound: "" },
            false => Mode::OneByOne { standing: &mut standing, lock_timeout_ms },
        };
        let result = run_sql(run, place, &prepared, &mut mode).await;
        let end = match &result {
            Ok(()) if prepared.in_transaction => "commit;\n",
            Err(_) if standing.is_open => "rollback;\n",
            Ok(()) | Err(_) => "",
        };
        let ended = place.session.batch(&format!("{end}{}", place.back_to_owner())).await;
        let is_timeout = match (&result, &ended) {
            (Err(error), Ok(())) => error.failure().is_some_and(|failure| {
                failure.error.sqlstate() == Some("55P03") && failure.left == Left::Nothing
            }),
            (Ok(()), _) | (_, Err(_)) => false,
        };
        if is_timeout && patience.is_left() && !prepared.may_break_session() {
            patience.step_back(run.ctx, &script.script).await?;
            continue;
        }
        let put_back = place.session.batch(&bound.put_back()).await;
        result?;
        ended?;
        return Ok(put_back?);
    }
}

/// The callbacks of `event` in the transaction that is open; it is open afterwards as well, whatever
/// they do to it.
///
/// # Errors
/// [`Error::Callback`].
pub(super) async fn fire_inside(
    run: &Run<'_>,
    place: &Place,
    event: &'static str,
    mode: &mut Mode<'_>,
) -> Result<(), Error> {
    for script in run.scripts.callbacks_of(event) {
        let result = Box::pin(run_inside(run, place, script, mode)).await;
        result.map_err(|error| callback(event, error))?;
    }
    Ok(())
}

async fn run_inside(
    run: &Run<'_>,
    place: &Place,
    script: &super::Script,
    mode: &mut Mode<'_>,
) -> Result<(), Error> {
    if script.language == Language::Program {
        return run_program(run, script).await;
    }
    let prepared = prepare(run.ctx, run.scripts, script, place.server_version)?;
    run_sql(run, place, &prepared, mode).await
}

/// The callbacks of error events, outside of any transaction. They cannot fail.
pub(super) async fn fire_after_error(run: &Run<'_>, place: &Place, events: &[&'static str]) {
    for event in events {
        if place.session.is_closed() || run.ctx.cancel.is_cancelled() {
            return;
        }
        if let Err(error) = fire(run, place, event).await {
            run.ctx.report.warn(error.to_string());
        }
    }
}

async fn run_program(run: &Run<'_>, script: &super::Script) -> Result<(), Error> {
    run.ctx.report.detail(format!("callback `{}`", script.script));
    program::run(run, script).await
}

async fn run_sql(
    run: &Run<'_>,
    place: &Place,
    prepared: &Prepared<'_>,
    mode: &mut Mode<'_>,
) -> Result<(), Error> {
    run.ctx.report.detail(format!("callback `{}`", prepared.script.script));
    // It was taken apart once already: this cannot fail.
    let statements = lexer::split(&prepared.text.text).unwrap_or_default();
    let mut flight = Flight::new(run, &place.session);
    let ran = run_statements(run, place, &mut flight, prepared, &statements, mode, None).await;
    let landed = match ran {
        Ok(()) => flight.land().await.map_err(|crash| stop_of(crash, &statements)),
        Err(stop) => Err(stop),
    };
    landed.map_err(|stop| {
        let left = match mode {
            Mode::Transaction { standing, .. } => stop.left_of_transaction(standing.committed),
            Mode::OneByOne { .. } => {
                Left::Statements { before: stop.statements_before(), recorded: false }
            }
        };
        stop.into_error(run, prepared, left)
    })
}

fn callback(event: &'static str, error: Error) -> Error {
    match error {
        Error::Interrupted => Error::Interrupted,
        error => Error::Callback { event, error: Box::new(error) },
    }
}
