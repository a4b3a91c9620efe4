//! A source becomes chunks in the store and a manifest in memory; nothing of it is visible yet.
//!
//! The leader locks every table, then takes one repeatable-read snapshot and exports it (the order
//! that the manual gives under LOCK: a table that was emptied in between would read as empty). It
//! holds both until the last worker is done. Workers import the snapshot and lock what they read
//! without waiting: behind a queued DDL a plain read would hang; such tables are read by the leader,
//! which has its locks. A run that fails or is stopped leaves chunks that the next run reuses.
//!
//! Nothing waits for ever: a line that brings nothing for `snapshot.stall_timeout` is given up, and
//! the leader, which idles while the workers copy, is asked now and then whether it still lives.

mod assemble;
mod error;
mod leader;
mod output;
mod rows;
pub(super) mod schema;
mod storing;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::catalog;
use super::chunk::BLOCK_BYTES;
use super::manifest::Manifest;
use super::marks;
use crate::context::Context;
use crate::engine::ready;
use crate::pg::tools::Tools;
use crate::pg::{self, Session, Target};
use crate::store::Store;

pub use error::Error;
pub(super) use schema::{DUMP_ARGS, lines as schema_lines};

use assemble::{Parts, assemble};
use error::doing;
use leader::Leader;
use storing::Present;

/// A source that restarts or cancels us (a standby's conflict) is read from the start again, with a
/// new snapshot; chunks that were stored are found there.
const ATTEMPTS: usize = 3;

/// A source that restarts replays its log before it answers again.
const RETURN_DEADLINE: Duration = Duration::from_secs(120);

/// More connections than this gain nothing on the machines measured and cost memory.
const MAX_JOBS: usize = 4;

/// How the source is read.
#[derive(Debug, Clone, Default)]
pub struct DumpOptions {
    /// Connections that copy; `None` takes the configuration's, else one for each core, up to four.
    pub jobs: Option<usize>,
}

/// Chunks in the store and the manifest that would make them a snapshot.
#[derive(Debug)]
pub struct Dumped {
    pub manifest: Manifest,
    pub facts: Facts,
}

/// What a summary says about a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Facts {
    pub tables: u64,
    pub rows: u64,
    /// Text of the rows, and large objects.
    pub plain_bytes: u64,
    /// Stored bytes of the whole snapshot.
    pub stored_bytes: u64,
    /// Objects that this run uploaded.
    pub new_objects: u64,
    pub new_bytes: u64,
    /// Objects that were in the store already.
    pub reused_objects: u64,
    pub duration_ms: u64,
}

/// Copies `target` into the store without publishing: that is [`super::publish`]'s, after whatever the
/// caller wants to know of the manifest first.
///
/// # Errors
/// [`Error`]; the store then holds at most chunks that nothing names.
pub async fn dump(
    ctx: &Context,
    target: &Target,
    tools: &Tools,
    store: &Store,
    options: &DumpOptions,
) -> Result<Dumped, crate::error::Error> {
    let started = Instant::now();
    // What is marked is read first: what a prune marks after that stays for its grace period.
    let marked = ctx
        .until_cancelled(async { marks::read(store).await.map_err(super::Error::Store) })
        .await
        .map(|marks| marks::chunks(&marks))?;
    let mut attempt = 1;
    loop {
        // Listed for each attempt: it finds what the one before has stored.
        let listed = async { Present::list(store).await.map_err(super::Error::Store) };
        let present = ctx.until_cancelled(listed).await?;
        let run = Run::new(ctx, target, tools, store, options, (marked.clone(), present));
        let work = async { run.all().await.map_err(super::Error::Dump) };
        let result = ctx.until_cancelled(work).await;
        if result.is_err() {
            run.stop_statements().await;
        }
        match result {
            Ok(mut dumped) => {
                let elapsed = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                dumped.manifest.duration_ms = elapsed;
                dumped.facts.duration_ms = elapsed;
                return Ok(dumped);
            }
            Err(crate::error::Error::Snapshot(super::Error::Dump(error)))
                if attempt < ATTEMPTS && error.is_passing() =>
            {
                attempt += 1;
                ctx.report.warn(format!(
                    "{error}; reading the source again with a new snapshot ({attempt} of \
                     {ATTEMPTS})"
                ));
                // One that restarts does not answer at once; what it says in the end is the error.
                ready::until(ctx, RETURN_DEADLINE, async || match Session::connect(target).await {
                    Ok(session) => {
                        session.close().await;
                        Ok(())
                    }
                    Err(error) => {
                        let error = doing("connect to the source")(error);
                        Err(crate::error::Error::from(super::Error::Dump(error)))
                    }
                })
                .await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// One attempt.
struct Run<'a> {
    ctx: &'a Context,
    target: &'a Target,
    tools: &'a Tools,
    store: &'a Store,
    jobs: usize,
    uploads: usize,
    /// For rows that are read and not stored yet.
    room: tokio::sync::Semaphore,
    level: i32,
    chunk_bytes: u64,
    stall: Duration,
    /// One for each session that is open, to stop its statement when the run ends early.
    sessions: Mutex<Vec<pg::session::CancelHandle>>,
    plain_bytes: AtomicU64,
    new_objects: AtomicU64,
    new_bytes: AtomicU64,
    reused_objects: AtomicU64,
    work_done: AtomicU64,
    /// Objects that a run of `prune` may remove before this one publishes: found is not enough.
    marked: BTreeSet<String>,
    present: Present,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Run<'a> {
    fn new(
        ctx: &'a Context,
        target: &'a Target,
        tools: &'a Tools,
        store: &'a Store,
        options: &DumpOptions,
        (marked, present): (BTreeSet<String>, Present),
    ) -> Self {
        let config = &ctx.config.snapshot;
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let jobs = options.jobs.or(config.jobs).unwrap_or_else(|| cores.clamp(2, MAX_JOBS)).max(1);
        Self {
            ctx,
            target,
            tools,
            store,
            jobs,
            uploads: config.uploads,
            room: tokio::sync::Semaphore::new(storing::ROOM_PIECES),
            level: config.compression_level,
            chunk_bytes: config.chunk_bytes.max(BLOCK_BYTES as u64),
            stall: config.stall_timeout,
            sessions: Mutex::default(),
            plain_bytes: AtomicU64::new(0),
            new_objects: AtomicU64::new(0),
            new_bytes: AtomicU64::new(0),
            reused_objects: AtomicU64::new(0),
            work_done: AtomicU64::new(0),
            marked,
            present,
        }
    }

    /// Ends what the server is doing for us: a query that sends nothing would not notice that nobody
    /// listens any more.
    async fn stop_statements(&self) {
        let handles =
            std::mem::take(&mut *self.sessions.lock().unwrap_or_else(PoisonError::into_inner));
        // A session that is gone has nothing left to cancel.
        futures_util::future::join_all(handles.iter().map(|handle| handle.cancel())).await;
    }

    fn register(&self, session: &Session) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(session.cancel_handle());
    }

    async fn all(&self) -> Result<Dumped, Error> {
        let step = self.ctx.report.step(format!("lock and list `{}`", self.target.database));
        let (leader, default_schema) = self.lead().await?;
        let catalog = &leader.catalog;
        for thing in &catalog.left_behind {
            self.ctx.report.detail(format!("not copied: {thing}"));
        }
        let skipped = catalog.large_objects.iter().filter(|object| !object.readable).count();
        if skipped > 0 {
            self.ctx.report.warn(format!(
                "{skipped} large objects that `{}` may not read are not in the snapshot",
                catalog.role
            ));
        }
        let sequences = self
            .soon("read sequences", catalog::read_sequences(&leader.session, &catalog.sequences))
            .await?;
        let history_table =
            catalog::history_table(catalog, &self.ctx.config.migrate, default_schema.as_deref());
        let history = match &history_table {
            Some(table) => {
                let what = format!("read the migration history `{table}`");
                self.soon(what, catalog::read_history(&leader.session, table)).await?
            }
            None => Vec::new(),
        };
        step.done(format!("{} tables", catalog.tables.len()));

        let readable: Vec<_> =
            catalog.large_objects.iter().filter(|object| object.readable).cloned().collect();
        let step = self.ctx.report.step(format!("copy `{}`", self.target.database));
        let led = self.while_led(&leader, async {
            let schema = async {
                match self.schema(&leader.snapshot).await {
                    // Our own workers may have taken the last session: after them there is room.
                    Err(error) if error.is_full() => Ok(None),
                    schema => schema.map(Some),
                }
            };
            let (schema, rows) = tokio::try_join!(schema, self.rows(&leader, &readable, &step))?;
            let schema = match schema {
                Some(schema) => schema,
                None => self.schema(&leader.snapshot).await?,
            };
            Ok((schema, rows))
        });
        let (archive, (mut done, refused)) = match led.await {
            Ok(found) => found,
            Err(error) => return Err(self.cause(&leader, error).await),
        };
        done.extend(self.leaders_rows(&leader, refused).await?);
        // Ends the transaction; a leader that was lost meanwhile shows here.
        self.soon("end the snapshot", leader.session.batch("commit")).await?;
        let (schema_archive, schema_fingerprint) = archive;
        let manifest = assemble(
            catalog,
            &readable,
            Parts { sequences, history_table, history, schema_archive, schema_fingerprint, done },
        );
        let facts = self.facts(&manifest);
        step.done(format!("{} tables, {} rows", facts.tables, facts.rows));
        leader.session.close().await;
        Ok(Dumped { manifest, facts })
    }

    fn facts(&self, manifest: &Manifest) -> Facts {
        Facts {
            tables: manifest.tables.len() as u64,
            rows: manifest.rows(),
            plain_bytes: manifest.plain_bytes(),
            stored_bytes: manifest.stored_bytes(),
            new_objects: self.new_objects.load(Ordering::Relaxed),
            new_bytes: self.new_bytes.load(Ordering::Relaxed),
            reused_objects: self.reused_objects.load(Ordering::Relaxed),
            duration_ms: 0,
        }
    }
}
