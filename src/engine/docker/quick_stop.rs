//! Stopping a server whose data goes: nothing has to be written out for that.
//!
//! A fast shutdown writes all that was changed, which took a third of a reset. An immediate one (`SIGQUIT`) writes
//! nothing; should the old data be wanted after all, since the new does not start, its server makes it whole from its log of
//! changes (what it counted, `pg_stat_*`, begins anew). So it is done only where that takes seconds, where no unlogged table
//! would be emptied by it, and once the log has what others were told is committed: where `synchronous_commit` is off,
//! what they commit in the few milliseconds from then on is lost with the old data alone.

use std::time::Duration;

use crate::engine::ready;
use crate::pg::{self, Session, Target};

/// Bytes that a server reads again in some ten seconds (measured: 586 MB in 5 s, on two busy cores).
const MOST_TO_REDO: i64 = 1 << 30;

/// What takes longer is left to the fast shutdown.
const LIMIT: Duration = Duration::from_secs(3);

/// A session with a server that may be stopped so.
pub(super) struct QuickStop {
    session: Session,
}

impl QuickStop {
    /// `None`: it has too much to redo, or unlogged tables, or does not answer.
    pub(super) async fn of(target: &Target) -> Option<Self> {
        let look = async {
            let session = Session::connect(target).await?;
            let may = session.query_one(MAY, &[&MOST_TO_REDO]).await?.get(0);
            Ok::<_, pg::Error>((session, may))
        };
        match tokio::time::timeout(LIMIT, look).await {
            Ok(Ok((session, true))) => Some(Self { session }),
            Ok(Ok((_, false)) | Err(_)) | Err(_) => None,
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

/// Of an unlogged table one file tells how it begins.
const MAY: &str = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), redo_lsn) <= $1::int8
      and not exists (select from pg_ls_dir('base') folder,
                        lateral pg_ls_dir('base/' || folder, true, false) file
                      where file like '%\\_init')
    from pg_control_checkpoint()";

// Not in the condition: of its parts the server may take any first.
const END: &str = "select pid, pg_terminate_backend(pid) from pg_stat_activity
    where backend_type = 'client backend' and datname <> current_database()";

const LEFT: &str = "select exists (select from pg_stat_activity where pid = any ($1))";
