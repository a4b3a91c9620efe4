//! The only place that waits: until a server answers, until something holds, each with a deadline.
//!
//! Ready means two authenticated queries over TCP: while a container is set up for the first time, a
//! temporary server answers on its Unix socket and stops again. A child or container that has died
//! ends the wait at once.

use std::time::{Duration, Instant};

use super::{Error, Identity, identify};
use crate::context::Context;
use crate::pg::{self, Target};

/// Short beside the 0.4 s that a start takes, long beside the 5 ms that a look costs.
const INTERVAL: Duration = Duration::from_millis(25);
/// A first start makes a cluster (2 s here, 20 s on slow disks), one after a crash replays its log.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(180);

/// Waits until `target` answers two queries in two sessions. `alive` fails as soon as nothing can
/// answer any more.
pub(super) async fn until_answering(
    ctx: &Context,
    what: &str,
    target: &Target,
    mut alive: impl AsyncFnMut() -> Result<(), Error>,
) -> Result<Identity, Error> {
    let started = Instant::now();
    let mut answers = 0;
    let mut last;
    loop {
        alive().await?;
        match cancellable(ctx, identify(target)).await? {
            Ok(identity) => {
                answers += 1;
                if answers == 2 {
                    return Ok(identity);
                }
                continue;
            }
            Err(error) => {
                if !may_pass(&error) {
                    return Err(refusal(what, target, error));
                }
                answers = 0;
                last = Some(error.to_string());
            }
        }
        if started.elapsed() > START_DEADLINE {
            let seconds = START_DEADLINE.as_secs();
            return Err(Error::NotReady { what: what.to_owned(), seconds, last });
        }
        cancellable(ctx, pause()).await?;
    }
}

/// Whether a server that is starting may answer so.
fn may_pass(error: &pg::Error) -> bool {
    match error {
        pg::Error::Connect { .. } | pg::Error::Closed { .. } | pg::Error::Timeout { .. } => true,
        // 57P03: starting up, shutting down or in recovery; 57P01: ended by its administrator.
        pg::Error::Login { error, .. } => matches!(error.sqlstate.as_str(), "57P03" | "57P01"),
        pg::Error::Sql(error) => matches!(error.sqlstate.as_str(), "57P03" | "57P01"),
        pg::Error::Tls { .. } | pg::Error::Certificate { .. } | pg::Error::Protocol { .. } => false,
    }
}

/// A wrong password has an error of its own: it can be set. Who is not let in at all (28000: `pg_hba.conf`,
/// `nologin`) is not helped by another one.
pub(super) fn refusal(what: &str, target: &Target, error: pg::Error) -> Error {
    match error.sql() {
        Some(sql) if sql.sqlstate == "28P01" => Error::Password {
            what: what.to_owned(),
            user: target.user.clone(),
            reason: sql.message.clone(),
        },
        Some(_) | None => Error::Pg(error),
    }
}

/// Tries until `attempt` gives a value or the time is over; its last refusal is the error.
pub(crate) async fn until<T, E>(
    ctx: &Context,
    limit: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E>
where
    E: From<Error>,
{
    let started = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > limit => return Err(error),
            Err(_) => cancellable(ctx, pause()).await?,
        }
    }
}

/// Runs `work` until it ends or the user asks to stop.
pub(super) async fn cancellable<T>(
    ctx: &Context,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::Interrupted),
        value = work => Ok(value),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that waits; every caller has a deadline"
)]
pub(super) async fn pause() {
    tokio::time::sleep(INTERVAL).await;
}
