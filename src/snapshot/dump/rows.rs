//! Rows and large objects, by parallel workers on the exported snapshot.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc::Sender;

use super::super::catalog::{self, Relation};
use super::super::crew::crew;
use super::super::manifest::Chunk;
use super::super::plan::{self, Job};
use super::super::source::{self, Snapshot};
use super::output::{Output, copy_statement};
use super::storing::Unit;
use super::{Error, Leader, Run, locked};
use crate::pg::{Session, quote};
use crate::report::{self, Step};

/// Whom a chunk belongs to: a table or a large object, by index, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Table { at: usize, from: u32 },
    LargeObject { at: usize },
}

#[derive(Debug)]
pub(super) struct Done {
    pub owner: Owner,
    /// Place among the chunks of one owner.
    pub place: usize,
    pub chunk: Chunk,
}

/// Jobs that no worker could lock the tables of, or that there was no worker for, and what is needed to do them.
pub(super) struct Refused<'a> {
    pub work: Work<'a>,
    pub jobs: Vec<Job>,
}

/// What the workers share.
pub(super) struct Work<'a> {
    pub tables: &'a [Relation],
    pub objects: &'a [catalog::LargeObjectRef],
    pub snapshot: &'a Snapshot,
    pub total: u64,
    pub step: &'a Step,
    pub jobs: Mutex<VecDeque<Job>>,
    /// Jobs whose tables a DDL is queued for: only the leader has its locks already.
    pub refused: Mutex<Vec<Job>>,
}

impl Run<'_> {
    /// Every row and large object, by parallel workers; returns also the jobs that only the leader can do.
    pub(super) async fn rows<'w>(
        &self,
        leader: &'w Leader,
        objects: &'w [catalog::LargeObjectRef],
        step: &'w Step,
    ) -> Result<(Vec<Done>, Refused<'w>), Error> {
        let tables = &leader.catalog.tables;
        let jobs = plan::jobs(tables, objects, self.chunk_bytes, leader.snapshot.version_num);
        let workers = self.jobs.min(jobs.len());
        let work = Work {
            tables,
            objects,
            snapshot: &leader.snapshot,
            total: tables.iter().map(|table| table.bytes).sum(),
            step,
            jobs: Mutex::new(jobs.into()),
            refused: Mutex::default(),
        };
        let open = async || {
            let opened = source::open_at(self.target, work.snapshot);
            self.soon("open a session on the exported snapshot", opened).await
        };
        let storing = self.storing(async |queue| {
            let worker = async |session| self.worker(session, &work, &queue).await;
            match crew(self.ctx, workers, open, Error::is_full, worker).await {
                Ok(_) => Ok(()),
                // Only the leader got in.
                Err(error) if error.is_full() => Ok(()),
                Err(error) => Err(error),
            }
        });
        let ((), done) = storing.await?;
        let mut jobs = std::mem::take(&mut *locked(&work.refused));
        jobs.extend(std::mem::take(&mut *locked(&work.jobs)));
        Ok((done, Refused { work, jobs }))
    }

    /// What a DDL is queued for, by the session that has its locks already.
    pub(super) async fn leaders_rows(
        &self,
        leader: &Leader,
        refused: Refused<'_>,
    ) -> Result<Vec<Done>, Error> {
        let Refused { work, jobs } = refused;
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let encoding = quote::literal(&leader.snapshot.encoding);
        let sql = format!("set client_encoding = {encoding}");
        self.soon("read as the leader", leader.session.batch(&sql)).await?;
        let storing = self.storing(async |queue| {
            for job in &jobs {
                self.run_job(&leader.session, &work, job, &queue).await?;
            }
            Ok(())
        });
        let ((), done) = storing.await?;
        Ok(done)
    }

    async fn worker<'r>(
        &'r self,
        session: Session,
        work: &Work<'_>,
        queue: &Sender<Unit<'r>>,
    ) -> Result<(), Error> {
        self.register(&session);
        let mut holds = BTreeSet::new();
        loop {
            let Some(job) = locked(&work.jobs).pop_front() else { break };
            if !self.lock_now(&session, work, &job, &mut holds).await? {
                locked(&work.refused).push(job);
                continue;
            }
            self.run_job(&session, work, &job, queue).await?;
        }
        self.soon("end a worker's transaction", session.batch("commit")).await?;
        session.close().await;
        Ok(())
    }

    async fn run_job<'r>(
        &'r self,
        session: &Session,
        work: &Work<'_>,
        job: &Job,
        queue: &Sender<Unit<'r>>,
    ) -> Result<(), Error> {
        let packing = !matches!(job, Job::Rows { .. });
        let mut output = Output::new(self, queue, packing);
        let weight = match job {
            Job::Rows { table, range } => {
                let relation = &work.tables[*table];
                let owner = Owner::Table { at: *table, from: range.map_or(0, |range| range.from) };
                let statement = copy_statement(relation, *range, &work.snapshot.encoding);
                let opened = session.copy_out(&statement);
                let rows = self.soon(format!("copy `{}`", relation.name), opened).await?;
                output.take(rows, relation, *range, owner).await?;
                range.map_or(relation.bytes, |range| range.share(relation))
            }
            Job::Small { tables } => {
                // All are asked for at once: a source some way off costs two round trips for all of them
                // instead of two for each.
                let encoding = &work.snapshot.encoding;
                let statement = |at: &usize| copy_statement(&work.tables[*at], None, encoding);
                let statements: Vec<String> = tables.iter().map(statement).collect();
                let asked = session.copies_out(&statements);
                let mut copies = self.soon("copy small tables", asked).await?;
                for &at in tables {
                    let relation = &work.tables[at];
                    let next = async { copies.next().await.expect("there is one for each") };
                    let rows = self.soon(format!("copy `{}`", relation.name), next).await?;
                    output.take(rows, relation, None, Owner::Table { at, from: 0 }).await?;
                }
                tables.iter().map(|at| work.tables[*at].bytes).sum()
            }
            Job::LargeObjects { objects } => {
                for at in objects.clone() {
                    let oid = work.objects[at].oid;
                    output.large_object(session, oid, Owner::LargeObject { at }).await?;
                }
                0
            }
        };
        output.flush().await;
        let sum = self.work_done.fetch_add(weight, Ordering::Relaxed) + weight;
        work.step.progress(sum.min(work.total), Some(work.total), report::Unit::Bytes);
        Ok(())
    }
}
