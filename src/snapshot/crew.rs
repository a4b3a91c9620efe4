//! Sessions that work side by side, as many as the server takes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;

use crate::context::Context;
use crate::engine::{self, ready};
use crate::pg::Session;

/// A server counts a session that was closed for some milliseconds more; `pg_dump` of a small schema
/// takes a second.
const ROOM_DEADLINE: Duration = Duration::from_secs(3);

/// Opens what a server may have no room for just now.
///
/// # Errors
/// What `open` failed with in the end; at once where the server is not full.
pub(super) async fn once_there_is_room<T, E: From<engine::Error>>(
    ctx: &Context,
    is_full: impl Fn(&E) -> bool,
    open: impl AsyncFn() -> Result<T, E>,
) -> Result<T, E> {
    ready::until(ctx, ROOM_DEADLINE, async || match open().await {
        Err(error) if is_full(&error) => Err(error),
        opened => Ok(opened),
    })
    .await?
}

/// Runs `work` in `wanted` sessions at once. Where the server takes no more (`is_full`), those that it
/// has taken do it all, and that is said.
///
/// # Errors
/// The first of any, or the server's refusal when it took none.
pub(super) async fn crew<E: std::fmt::Display + From<engine::Error>>(
    ctx: &Context,
    wanted: usize,
    open: impl AsyncFn() -> Result<Session, E>,
    is_full: impl Fn(&E) -> bool,
    work: impl AsyncFn(Session) -> Result<(), E>,
) -> Result<usize, E> {
    let refused: Mutex<Option<E>> = Mutex::default();
    let locked = || refused.lock().unwrap_or_else(PoisonError::into_inner);
    let inside = AtomicUsize::new(0);
    // One waits for room, as long as nobody has any.
    let must_wait = |error: &E| is_full(error) && inside.load(Ordering::Relaxed) == 0;
    let member = async |number: usize| {
        let opened = match number {
            0 => once_there_is_room(ctx, &must_wait, &open).await,
            _ => open().await,
        };
        match opened {
            Ok(session) => {
                inside.fetch_add(1, Ordering::Relaxed);
                work(session).await.map(|()| 1)
            }
            Err(error) if is_full(&error) => {
                let mut first = locked();
                if first.is_none() {
                    ctx.report.warn(format!("{error}; going on with fewer connections"));
                    *first = Some(error);
                }
                Ok(0)
            }
            Err(error) => Err(error),
        }
    };
    let worked = try_join_all((0..wanted).map(member)).await?.into_iter().sum();
    let refused = locked().take();
    match refused {
        Some(error) if worked == 0 => Err(error),
        Some(_) | None => Ok(worked),
    }
}
