//! Rows and large objects, by parallel workers on the exported snapshot.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use futures_util::future::try_join_all;

use super::super::catalog::{self, Relation};
use super::super::chunk::Pack;
use super::super::manifest::{self, Chunk};
use super::super::plan::{self, Job, Range};
use super::super::source::{self, Snapshot};
use super::output::Output;
use super::{Error, Leader, Run, locked};
use crate::pg::{Session, quote};
use crate::report::{Step, Unit};
use crate::store;

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

/// Jobs that no worker could lock the tables of, and what is needed to do them.
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
        let done = try_join_all((0..workers).map(|_| self.worker(&work))).await?;
        let jobs = std::mem::take(&mut *locked(&work.refused));
        Ok((done.into_iter().flatten().collect(), Refused { work, jobs }))
    }

    /// What a DDL is queued for, by the session that has its locks already.
    pub(super) async fn leaders_rows(
        &self,
        leader: &Leader,
        refused: Refused<'_>,
    ) -> Result<Vec<Done>, Error> {
        let Refused { work, jobs } = refused;
        let mut done = Vec::new();
        if !jobs.is_empty() {
            let encoding = quote::literal(&leader.snapshot.encoding);
            let sql = format!("set client_encoding = {encoding}");
            self.soon("read as the leader", leader.session.batch(&sql)).await?;
        }
        for job in jobs {
            done.extend(self.run_job(&leader.session, &work, &job).await?);
        }
        Ok(done)
    }

    pub(super) async fn worker(&self, work: &Work<'_>) -> Result<Vec<Done>, Error> {
        let session = self
            .soon(
                "open a session on the exported snapshot",
                source::open_at(self.target, work.snapshot),
            )
            .await?;
        self.register(&session);
        let mut holds = BTreeSet::new();
        let mut done = Vec::new();
        loop {
            let Some(job) = locked(&work.jobs).pop_front() else { break };
            if !self.lock_now(&session, work, &job, &mut holds).await? {
                locked(&work.refused).push(job);
                continue;
            }
            done.extend(self.run_job(&session, work, &job).await?);
        }
        self.soon("end a worker's transaction", session.batch("commit")).await?;
        session.close().await;
        Ok(done)
    }

    pub(super) async fn run_job(
        &self,
        session: &Session,
        work: &Work<'_>,
        job: &Job,
    ) -> Result<Vec<Done>, Error> {
        let mut output = Output::new(self);
        let weight = match job {
            Job::Rows { table, range } => {
                let relation = &work.tables[*table];
                let owner = Owner::Table { at: *table, from: range.map_or(0, |range| range.from) };
                output.copy(session, work.snapshot, relation, *range, owner).await?;
                relation.bytes / u64::from(pieces(relation, *range, self.chunk_bytes))
            }
            Job::Small { tables } => {
                output.packing = true;
                for at in tables {
                    let owner = Owner::Table { at: *at, from: 0 };
                    let relation = &work.tables[*at];
                    output.copy(session, work.snapshot, relation, None, owner).await?;
                }
                tables.iter().map(|at| work.tables[*at].bytes).sum()
            }
            Job::LargeObjects { objects } => {
                output.packing = true;
                for at in objects.clone() {
                    let oid = work.objects[at].oid;
                    output.large_object(session, oid, Owner::LargeObject { at }).await?;
                }
                0
            }
        };
        let done = output.finish().await?;
        let sum = self.work_done.fetch_add(weight, Ordering::Relaxed) + weight;
        work.step.progress(sum.min(work.total), Some(work.total), Unit::Bytes);
        Ok(done)
    }

    /// Puts an object into the store; returns its chunks.
    pub(super) async fn store(&self, pack: Pack) -> Result<Vec<(usize, Chunk)>, Error> {
        let (object, bytes, chunks) = pack.seal().await.map_err(Error::Compress)?;
        let size = bytes.len() as u64;
        let name = manifest::chunk_name(&object);
        if self.marked.contains(&object) {
            self.store.put_again(&name, bytes).await?;
            self.new_objects.fetch_add(1, Ordering::Relaxed);
            self.new_bytes.fetch_add(size, Ordering::Relaxed);
            return Ok(chunks);
        }
        match self.store.put(&name, bytes).await? {
            store::Put::Created => {
                self.new_objects.fetch_add(1, Ordering::Relaxed);
                self.new_bytes.fetch_add(size, Ordering::Relaxed);
            }
            store::Put::Exists => {
                self.reused_objects.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(chunks)
    }
}

/// How many jobs a table's rows were cut into, for the share of one in the progress.
fn pieces(relation: &Relation, range: Option<Range>, chunk_bytes: u64) -> u32 {
    let Some(_) = range else { return 1 };
    let step = u32::try_from(chunk_bytes / 8192).unwrap_or(u32::MAX).max(16);
    relation.blocks.div_ceil(step).max(1)
}
