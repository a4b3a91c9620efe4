//! What is on its way to the server: statements of a transaction, sent without waiting for each.
//!
//! A transaction of small scripts costs its work and one round trip. The first failure is the one
//! that counts: the server refuses what was sent after it, and `commit` then rolls back. What it does
//! not refuse there ([`runs_after_failure`](super::transaction::runs_after_failure)), `rollback to`
//! among them, is sent only when every answer before it is here: else it would bring the transaction
//! back to life, with the row and the `commit` on their way already.

use std::collections::VecDeque;

use super::apply::Run;
use super::history::{NewRow, Table};
use crate::pg::session::Pipeline;
use crate::pg::{self, Session};

/// Answers that may be outstanding: enough to hide the round trip, little enough that a failure
/// is seen before much is sent in vain.
const OUTSTANDING: usize = 64;
/// Text that may be outstanding; the protocol's buffers hold it twice.
const OUTSTANDING_BYTES: usize = 1 << 20;

/// A cancelled statement ends within milliseconds; one that does not is left to the server.
const CANCEL_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

/// What an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    /// `begin`, role and search path.
    Frame,
    /// A statement of the script, by its number; `is_rewritten`: its positions are not the script's.
    Statement {
        index: usize,
        is_rewritten: bool,
    },
    /// The row in the history.
    Row,
    Commit,
}

/// Why a flight did not land.
pub(super) enum Crash {
    Interrupted { is_drained: bool },
    Refused { label: Label, error: pg::Error },
}

pub(super) struct Flight<'a> {
    run: &'a Run<'a>,
    session: &'a Session,
    pipeline: Pipeline<'a>,
    sent: VecDeque<(Label, usize)>,
    bytes: usize,
    /// The transaction's end has gone out: whatever fails, the transaction is over.
    pub(super) has_ended: bool,
}

impl<'a> Flight<'a> {
    pub(super) fn new(run: &'a Run<'a>, session: &'a Session) -> Self {
        let pipeline = session.pipeline();
        Self { run, session, pipeline, sent: VecDeque::new(), bytes: 0, has_ended: false }
    }

    /// Sends statements that are none of the script's.
    pub(super) async fn frame(&mut self, sql: String) -> Result<(), Crash> {
        self.send(Label::Frame, sql).await
    }

    pub(super) async fn commit(&mut self) -> Result<(), Crash> {
        self.has_ended = true;
        self.send(Label::Commit, "commit".to_owned()).await
    }

    pub(super) async fn row(&mut self, table: &'a Table, row: NewRow<'a>) -> Result<(), Crash> {
        let session = self.session;
        let insert = async move { table.insert_plainly(session, &row).await };
        let is_sent = self.pipeline.send(insert).await;
        self.sent.push_back((Label::Row, 0));
        self.land_unless(is_sent).await
    }

    /// [`Flight::row`], unless the row with `rank` is no longer there.
    pub(super) async fn row_unless_gone(
        &mut self,
        table: &'a Table,
        row: NewRow<'a>,
        rank: i32,
    ) -> Result<(), Crash> {
        let session = self.session;
        let insert = async move { table.insert_unless_gone(session, &row, rank).await };
        let is_sent = self.pipeline.send(insert).await;
        self.sent.push_back((Label::Row, 0));
        self.land_unless(is_sent).await
    }

    /// Sends; waits only where too much is on its way.
    pub(super) async fn send(&mut self, label: Label, sql: String) -> Result<(), Crash> {
        while self.pipeline.len() >= OUTSTANDING
            || self.bytes + sql.len() > OUTSTANDING_BYTES && !self.pipeline.is_empty()
        {
            self.next().await?;
        }
        self.bytes += sql.len();
        self.sent.push_back((label, sql.len()));
        let is_sent = self.pipeline.batch(sql).await;
        self.land_unless(is_sent).await
    }

    /// What the client itself refuses does not break the server's transaction: nothing may be sent
    /// after it, the end of the transaction least of all.
    async fn land_unless(&mut self, is_sent: bool) -> Result<(), Crash> {
        if is_sent { Ok(()) } else { self.land().await }
    }

    /// Waits for every answer.
    pub(super) async fn land(&mut self) -> Result<(), Crash> {
        while !self.pipeline.is_empty() {
            self.next().await?;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<(), Crash> {
        let answer = tokio::select! {
            biased;
            () = self.run.ctx.cancel.cancelled() => {
                // Dropping the session would leave the server working on the statement.
                let _ = self.session.cancel_handle().cancel().await;
                let drained = tokio::time::timeout(CANCEL_DEADLINE, self.drain()).await;
                return Err(Crash::Interrupted { is_drained: drained.is_ok() });
            }
            answer = self.pipeline.next() => answer,
        };
        let (Some(answer), Some((label, bytes))) = (answer, self.sent.pop_front()) else {
            return Ok(());
        };
        self.bytes -= bytes;
        match answer {
            Ok(()) => {
                if let Label::Statement { index, .. } = label {
                    self.run.progress(index + 1);
                }
                Ok(())
            }
            Err(error) => {
                self.drain().await;
                Err(Crash::Refused { label, error })
            }
        }
    }

    async fn drain(&mut self) {
        while self.pipeline.next().await.is_some() {}
        self.sent.clear();
        self.bytes = 0;
    }
}
