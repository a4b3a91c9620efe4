//! Stopping a server whose data goes: nothing has to be written out for that.
//!
//! A fast shutdown writes all that was changed, which took a third of a reset. An immediate one (`SIGQUIT`) writes
//! nothing; should the old data be wanted after all, since the new does not start, its server makes it whole from its log of
//! changes. So it is done only where that takes seconds, where no unlogged table would be emptied by it (`act.sh` looks
//! for those), once the log has all that others were told is committed.

use std::time::Duration;

use crate::engine::ready;
use crate::pg::{self, Session, Target};

/// What a server reads again in some ten seconds.
const MOST_TO_REDO: u64 = 1 << 30;

/// Sessions that do not end sooner are left to the fast shutdown.
const LIMIT: Duration = Duration::from_secs(1);

/// A session with a server that may be stopped so.
pub(super) struct QuickStop {
    session: Session,
}

impl QuickStop {
    /// `None`: it has too much to redo, or does not answer.
    pub(super) async fn of(target: &Target) -> Option<Self> {
        let session = Session::connect(target).await.ok()?;
        let sql = format!(
            "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), redo_lsn) <= {MOST_TO_REDO}
             from pg_control_checkpoint()"
        );
        match session.query_one(&sql, &[]).await {
            Ok(row) if row.get(0) => Some(Self { session }),
            Ok(_) | Err(_) => {
                session.close().await;
                None
            }
        }
    }

    /// Ends the sessions of all databases but `postgres`, as a fast shutdown does, and has the log written up to here:
    /// commits that are told before they are in it (`synchronous_commit`) would be lost. Whether the
    /// server may be stopped now.
    pub(super) async fn ready(&self) -> bool {
        let done = async {
            self.end_sessions().await?;
            self.write_log().await
        };
        matches!(tokio::time::timeout(LIMIT, done).await, Ok(Ok(())))
    }

    async fn end_sessions(&self) -> Result<(), pg::Error> {
        let ended = self.session.query(END, &[]).await?;
        let ended: Vec<i32> = ended.iter().map(|row| row.get(0)).collect();
        // Others may come meanwhile: their sessions end with the server.
        while !ended.is_empty() && self.session.query_one(LEFT, &[&ended]).await?.get(0) {
            ready::pause().await;
        }
        Ok(())
    }

    async fn write_log(&self) -> Result<(), pg::Error> {
        self.session.batch("set synchronous_commit = on").await?;
        // A transaction that has written nothing waits for nothing.
        self.session.batch("select pg_logical_emit_message(true, 'seedbed', '')").await
    }
}

// Not in the condition: of its parts the server may take any first.
const END: &str = "select pid, pg_terminate_backend(pid) from pg_stat_activity
    where backend_type = 'client backend' and datname <> current_database()";

const LEFT: &str = "select exists (select from pg_stat_activity where pid = any ($1))";
