//! A snapshot becomes the contents of a database that nobody uses yet.
//!
//! Pre-data by `pg_restore`; rows in parallel, the largest tables first, every chunk's hashes checked
//! before its rows are used; large objects, sequences; then indexes, constraints and triggers by
//! `pg_restore` again; materialised views, settings, statistics. Everything is made by a role of our
//! own without login, so that one REASSIGN OWNED gives it to the owner in the end: objects that only
//! a superuser may make are possible, and none stays behind with the superuser.
//!
//! Any SQL error is fatal unless [`tolerated`] knows it; each tolerated one is reported.

mod after;
mod compression;
mod error;
mod extensions;
mod indexes;
mod roles;
mod rows;
mod schedule;
mod sequences;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;

use super::chunk::Damage;
use super::crew::{crew, once_there_is_room};
use super::manifest::{Chunk, Manifest, QualifiedName, Table};
use super::restore::{self, Refusal, Section};
use super::{fetch, source};
use crate::context::Context;
use crate::pg::tools::Tools;
use crate::pg::{self, Session, Target, quote};
use crate::store::{self, Store, cache::Cache};

pub(crate) use compression::lacks_lz4;
pub(super) use compression::without_lz4;
pub use error::Error;
pub(crate) use rows::is_left_out;
pub(super) use sequences::present_sequences;

use error::doing;
use indexes::{After, Indexes, Job};
use roles::Loader;
use rows::{Built, Unbuilt};

/// More streams than this gain nothing on the machines measured and cost memory.
const MAX_JOBS: usize = 4;

const LOAD_SETTINGS: &str = "\
set default_transaction_read_only = off;
set statement_timeout = 0;
set lock_timeout = 0;
set idle_in_transaction_session_timeout = 0;
set synchronous_commit = off;
set check_function_bodies = off;
";

/// What a load did, for the summary.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Loaded {
    pub tables: u64,
    pub rows: u64,
    pub plain_bytes: u64,
    /// Bytes that came from the store; the rest was in the local cache.
    pub downloaded_bytes: u64,
    /// SQL errors on the allow-list, one line each.
    pub tolerated: Vec<String>,
    /// What was left out because a copy must not act on production.
    pub quarantined: Vec<String>,
    pub duration_ms: u64,
}

/// Loads `manifest` into the empty database that `target` names, as its superuser; everything then
/// belongs to `owner`.
///
/// # Errors
/// [`Error`]; the database is then useless and to be dropped by the caller.
pub async fn load(
    ctx: &Context,
    target: &Target,
    owner: &str,
    tools: &Tools,
    store: &Store,
    manifest: &Manifest,
) -> Result<Loaded, crate::error::Error> {
    let started = Instant::now();
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let jobs = ctx.config.restore.jobs.unwrap_or_else(|| cores.clamp(2, MAX_JOBS)).max(1);
    let run = Run {
        ctx,
        target,
        owner,
        tools,
        manifest,
        cores,
        jobs: AtomicUsize::new(jobs),
        most: jobs,
        source: fetch::Source::new(store, Cache::open(ctx)),
        sessions: Mutex::default(),
        loaded_bytes: AtomicU64::new(0),
    };
    let work = async { run.all().await.map_err(super::Error::Load) };
    let result = ctx.until_cancelled(work).await;
    if result.is_err() {
        run.stop_statements().await;
    }
    run.source.trim_cache(&ctx.report).await;
    let mut loaded = result?;
    loaded.downloaded_bytes = run.source.downloaded.load(Ordering::Relaxed);
    loaded.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(loaded)
}

struct Run<'a> {
    ctx: &'a Context,
    target: &'a Target,
    owner: &'a str,
    tools: &'a Tools,
    manifest: &'a Manifest,
    cores: usize,
    /// Lowered to what the server has taken.
    jobs: AtomicUsize,
    /// What was asked for.
    most: usize,
    source: fetch::Source<'a>,
    sessions: Mutex<Vec<pg::session::CancelHandle>>,
    loaded_bytes: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run<'_> {
    fn jobs(&self) -> usize {
        self.jobs.load(Ordering::Relaxed)
    }

    /// Workers of one index build beside its session: those that would share the cores with our other
    /// sessions only cost.
    fn helpers(&self) -> u64 {
        (self.cores / self.jobs()).saturating_sub(1) as u64
    }

    /// As many sessions of the role as the server takes, up to `wanted`, at work side by side; from then
    /// on no more than that are asked for.
    async fn crew(
        &self,
        wanted: usize,
        open: impl AsyncFn() -> Result<Session, Error>,
        work: impl AsyncFn(Session) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let worked = crew(self.ctx, wanted, open, Error::is_full, work).await?;
        if worked < wanted {
            self.jobs.fetch_min(worked, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Where the server takes few sessions one does all of it, and waits for room: each of several opens one
    /// more, and a server counts those that were closed a moment ago.
    async fn post_data(
        &self,
        restore: &restore::Restore<'_>,
        list: &restore::List,
    ) -> Result<Vec<restore::Refusal>, Error> {
        if self.jobs() == self.most {
            return restore.run(Section::PostData, list, self.most).await;
        }
        let run = async || restore.run(Section::PostData, list, 1).await;
        once_there_is_room(self.ctx, Error::is_full, run).await
    }

    async fn stop_statements(&self) {
        let handles = std::mem::take(&mut *locked(&self.sessions));
        // A session that is gone has nothing left to cancel.
        futures_util::future::join_all(handles.iter().map(|handle| handle.cancel())).await;
    }

    async fn all(&self) -> Result<Loaded, Error> {
        let report = &self.ctx.report;
        let manifest = self.manifest;
        let mut loaded = Loaded {
            tables: manifest.tables.len() as u64,
            rows: manifest.rows(),
            plain_bytes: manifest.plain_bytes(),
            ..Loaded::default()
        };
        let admin = self.session(None).await?;
        let loader = Loader::make(&admin, self.target, self.owner).await?;
        self.make_roles(&admin).await?;

        let step = report.step("restore tables and functions");
        let archive = Bytes::from(self.joined(&manifest.schema_archive).await?);
        let archive = self.compressible(&admin, archive).await?;
        let session = self.session(Some(&loader.role)).await?;
        let made_schemas = self.make_extensions(&admin, &session).await?;
        let restore = restore::Restore {
            ctx: self.ctx,
            tools: self.tools,
            target: self.target,
            role: &loader.role,
            owners: self.ctx.config.restore.owners,
            archive: &archive,
        };
        let list = restore.list().await?;
        loaded.quarantined.extend(list.left_out.iter().cloned());
        let mut refused = restore.run(Section::PreData, &list, self.jobs()).await?;
        refused.retain(|refusal| !restore::is_made(refusal, &made_schemas));
        self.judge(Section::PreData, refused, &mut loaded)?;
        step.done("");

        let indexes = self.indexes(&restore, &list).await?;
        let taken: &[&str] = if indexes.is_some() { &indexes::KINDS } else { &[] };
        let Indexes { jobs, after } = indexes.unwrap_or_default();
        let (early, late) = self.split(jobs);
        let computed = self.computed(&session).await?;
        let (unbuilt, ()) = tokio::try_join!(
            self.rows(&loader, early, &computed, &mut loaded),
            self.large_objects(&session)
        )?;
        let Unbuilt { refused, mut postponed } = unbuilt;
        self.judge(Section::PostData, refused, &mut loaded)?;
        self.sequences(&session).await?;

        let step = report.step("attach indexes, make triggers and policies");
        let mut refused = Vec::new();
        let late = late.into_iter().map(|Job { sql, entry, .. }| After { sql, entry });
        for After { sql, entry } in after.into_iter().chain(late) {
            if entry.is_some_and(|entry| postponed.contains(&entry)) {
                continue;
            }
            match rows::build(&session, sql, entry).await? {
                Built::Well => {}
                Built::Refused(refusal) => refused.push(refusal),
                Built::TooEarly(entry) => {
                    postponed.insert(entry);
                }
            }
        }
        let list = list.without_kinds(taken, &postponed);
        refused.extend(self.post_data(&restore, &list).await?);
        self.judge(Section::PostData, refused, &mut loaded)?;
        step.done("");

        let step = report.step("refresh views and statistics");
        loaded.tolerated.extend(self.refresh(&loader, &session).await?);
        self.settings(&admin).await?;
        self.analyze(&loader, &session).await?;
        session.close().await;
        loader.hand_over(&admin, self.target).await?;
        admin.close().await;
        step.done("");
        for line in &loaded.tolerated {
            report.warn(line.clone());
        }
        for line in &loaded.quarantined {
            report.detail(format!("not brought over: {line}"));
        }
        Ok(loaded)
    }

    /// The archive's indexes and constraints as statements of our own; `None` where names may not be
    /// in UTF-8: then they are left to `pg_restore`.
    async fn indexes(
        &self,
        restore: &restore::Restore<'_>,
        list: &restore::List,
    ) -> Result<Option<Indexes>, Error> {
        if !matches!(self.manifest.server.encoding.as_str(), "UTF8") {
            return Ok(None);
        }
        let script = restore.script(&list.of_kinds(&indexes::KINDS)).await?;
        let Ok(script) = std::str::from_utf8(&script) else { return Ok(None) };
        Ok(indexes::parse(script).ok())
    }

    /// Foreign keys of partitioned tables want the attachments of indexes first: those come late.
    fn split(&self, jobs: Vec<Job>) -> (Vec<Job>, Vec<Job>) {
        let plain: BTreeSet<QualifiedName> =
            self.manifest.tables.iter().map(Table::qualified_name).collect();
        jobs.into_iter().partition(|job| {
            !job.is_foreign_key() || job.locks.iter().all(|(table, _)| plain.contains(table))
        })
    }

    /// A session as the superuser, or as `role`.
    async fn session(&self, role: Option<&str>) -> Result<Session, Error> {
        let doing_open = || doing("open a session for loading");
        let session = Session::connect(self.target).await.map_err(doing_open())?;
        locked(&self.sessions).push(session.cancel_handle());
        let settings = format!("{}{LOAD_SETTINGS}", source::NO_IDLE_LIMITS);
        session.batch(&settings).await.map_err(doing_open())?;
        session.batch(source::TEXT_SETTINGS).await.map_err(doing_open())?;
        let helpers = self.helpers();
        let sql = format!("set max_parallel_maintenance_workers = {helpers}; set jit = off");
        session.batch(&sql).await.map_err(doing_open())?;
        if let Some(role) = role {
            let role = quote::ident(role);
            session.batch(&format!("set role {role}")).await.map_err(doing_open())?;
        }
        Ok(session)
    }

    /// A session that takes rows in the encoding in which they were read.
    async fn row_session(&self, role: &str) -> Result<Session, Error> {
        let session = self.session(Some(role)).await?;
        let encoding = quote::literal(&self.manifest.server.encoding);
        session
            .batch(&format!("set client_encoding = {encoding}"))
            .await
            .map_err(doing("open a session for loading"))?;
        Ok(session)
    }

    fn damaged(&self, error: fetch::Error) -> Error {
        match error {
            fetch::Error::Damaged { object, damage } => {
                Error::Damaged { snapshot: self.manifest.id.clone(), object, damage }
            }
            fetch::Error::Store(store::Error::Missing { name, .. }) => Error::Damaged {
                snapshot: self.manifest.id.clone(),
                object: name,
                damage: Damage::Missing,
            },
            fetch::Error::Store(error) => Error::Store(error),
        }
    }

    async fn plain(&self, chunk: &Chunk) -> Result<Bytes, Error> {
        self.source.plain(chunk).await.map_err(|error| self.damaged(error))
    }

    async fn joined(&self, chunks: &[Chunk]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        for chunk in chunks {
            bytes.extend_from_slice(&self.plain(chunk).await?);
        }
        Ok(bytes)
    }

    fn judge(
        &self,
        section: Section,
        refused: Vec<Refusal>,
        loaded: &mut Loaded,
    ) -> Result<(), Error> {
        let ignored = &self.ctx.config.restore.ignore_extensions;
        let (tolerated, refused): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|refusal| restore::tolerated(refusal, ignored));
        loaded.tolerated.extend(tolerated.iter().map(Refusal::to_string));
        if refused.is_empty() { Ok(()) } else { Err(Error::Refused { section, refused }) }
    }
}
