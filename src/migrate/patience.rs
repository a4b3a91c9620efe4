//! How long a script waits for the lock of a table, and how often it tries.
//!
//! Whoever waits for `alter table` lets nobody else to the table. So a wait is short: the script
//! steps back, lets the others pass and tries again. A script that says itself how long it waits is
//! taken at its word.

use std::time::Duration;

use super::Error;
use super::apply::Prepared;
use super::place::Place;
use crate::context::Context;
use crate::pg::{self, Session, ToSql, Type, quote};

/// Before a script that met a lock is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Long enough for a queue behind the lock to empty.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The patience left for some scripts that run as one.
#[derive(Debug)]
pub(super) struct Patience {
    /// 0: for ever.
    pub timeout_ms: u32,
    retries: u32,
    tries: u32,
    pause: Duration,
}

impl Patience {
    pub(super) fn of<'a>(
        ctx: &Context,
        place: &Place,
        prepared: impl IntoIterator<Item = &'a Prepared<'a>>,
    ) -> Self {
        let config = &ctx.config.migrate;
        let is_own = place.has_lock_timeout
            || prepared.into_iter().any(|prepared| prepared.sets_own_timeout);
        Self {
            timeout_ms: if is_own { 0 } else { config.lock_timeout_ms },
            retries: config.lock_retries,
            tries: 0,
            pause: FIRST_PAUSE,
        }
    }

    /// The statement that bounds the waits of the transaction at hand.
    pub(super) fn of_transaction(&self) -> String {
        match self.timeout_ms {
            0 => String::new(),
            ms => format!("set local lock_timeout = {ms};\n"),
        }
    }

    /// Whether there is another try.
    pub(super) fn is_left(&self) -> bool {
        self.timeout_ms > 0 && self.tries < self.retries
    }

    /// Waits for the next try of the script `name`.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(super) async fn step_back(&mut self, ctx: &Context, name: &str) -> Result<(), Error> {
        self.tries += 1;
        ctx.report.note(format!(
            "`{name}` got no lock within {} ms and stepped back; try {} of {} in {} ms",
            self.timeout_ms,
            self.tries,
            self.retries,
            self.pause.as_millis()
        ));
        if tokio::time::timeout(self.pause, ctx.cancel.cancelled()).await.is_ok() {
            return Err(Error::Interrupted);
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// The bound of a session, for scripts without a transaction, and what was there before it.
#[derive(Debug)]
pub(super) struct SessionBound {
    before: Option<String>,
}

impl SessionBound {
    /// Sets the bound, where there is to be one.
    pub(super) async fn set(session: &Session, patience: &Patience) -> Result<Self, pg::Error> {
        if patience.timeout_ms == 0 {
            return Ok(Self { before: None });
        }
        let sql = "select pg_catalog.current_setting('lock_timeout'),
            pg_catalog.set_config('lock_timeout', $1, false)";
        let timeout = patience.timeout_ms.to_string();
        let values: [(&(dyn ToSql + Sync), Type); 1] = [(&timeout, Type::TEXT)];
        let rows = session.ask(sql, &values).await?;
        Ok(Self { before: rows.first().map(|row| row.get(0)) })
    }

    /// The statement that puts back what was there.
    pub(super) fn put_back(&self) -> String {
        self.before.as_deref().map_or_else(String::new, |before| {
            format!("set lock_timeout = {};\n", quote::literal(before).trim_start())
        })
    }
}
