//! Rows, by parallel streams: the largest tables first, each chunk fetched ahead of the one that is
//! being sent; and indexes, by the same workers, as soon as their tables are in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Notify;

use super::super::chunk::BLOCK_BYTES;
use super::super::manifest::{QualifiedName, Table};
use super::super::restore::Refusal;
use super::super::source;
use super::indexes::{Job, Kind};
use super::schedule::{Next, Ran, Schedule};
use super::{Error, Loaded, Loader, Run, doing, locked};
use crate::context::Context;
use crate::pg::{self, Session};
use crate::report::{Step, Unit};

/// Chunks of one table fetched ahead of the one being sent: so many that a store some way off is no
/// slower than the server, if their rows take no more memory than this.
const AHEAD: usize = 4;
const AHEAD_BYTES: u64 = 16 * 1024 * 1024;

/// Indexes are sorted in so much memory: with more of it a comparison rarely finds its rows in the
/// processor's cache. Measured on 8 million rows in random order, medians on a busy machine: 4.5 s with
/// 16 MiB, 6.5 s with 64 MiB, 8.6 s with 256 MiB.
const SORT_BYTES: u64 = 16 * 1024 * 1024;

/// With less than this for each process of it the server builds an index by one alone.
const HELPED_SORT_BYTES: u64 = 32 * 1024 * 1024;

/// An entry of an index while it is sorted, beside its values.
const ENTRY_BYTES: u64 = 64;

/// What a merge wants for each of the sorted runs that it reads (`tuplesort.c`).
const RUN_BYTES: u64 = 264 * 1024;

/// Extensions whose tables hold jobs that would act by themselves: their rows stay out of a copy.
const ACTING_EXTENSIONS: [&str; 2] = ["pg_cron", "pgagent"];

/// What was not built while rows came in.
#[derive(Default)]
pub(super) struct Unbuilt {
    pub refused: Vec<Refusal>,
    /// Entries of the archive that need what it makes after the rows.
    pub postponed: BTreeSet<u32>,
}

/// How a statement that builds something ended.
pub(super) enum Built {
    Well,
    Refused(Refusal),
    /// What this entry of the archive needs is not there: a view grouped by a primary key, or a function
    /// that is, comes after that key, and its indexes after it.
    TooEarly(u32),
}

/// What the workers share.
pub(super) struct Work<'t> {
    schedule: Mutex<Schedule<'t>>,
    /// Something has ended: whoever waits looks again.
    changed: Notify,
    /// The last refusal of each table that was refused.
    refused: Mutex<Vec<(QualifiedName, Error)>>,
    /// Statements that the server refused.
    unbuilt: Mutex<Unbuilt>,
    step: Mutex<Option<Step>>,
    phase: Mutex<Phase>,
    /// Memory for the sorts of each table whose rows do not fit into [`SORT_BYTES`].
    sorts: BTreeMap<QualifiedName, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Rows,
    Builds,
}

impl Work<'_> {
    /// What the index of a large table sorts in, where it does.
    fn sort_kilobytes(&self, job: &Job) -> Option<u64> {
        let (table, _) = job.locks.first().filter(|_| job.sorts)?;
        self.sorts.get(table).map(|bytes| bytes / 1024)
    }

    fn progress(&self, done: u64, total: u64) {
        if let Some(step) = &*locked(&self.step) {
            step.progress(done.min(total), Some(total), Unit::Bytes);
        }
    }

    /// Ends the step that is under way, and begins `next`.
    fn turn(&self, detail: String, next: Option<Step>) {
        let step = std::mem::replace(&mut *locked(&self.step), next);
        if let Some(step) = step {
            step.done(detail);
        }
    }
}

impl Run<'_> {
    /// All tables by parallel streams, and `jobs` as soon as their tables are in; returns the
    /// statements that did not run. A table that it refuses (a check that reads another table)
    /// is tried again after others, as long as that brings any of them in.
    pub(super) async fn rows(
        &self,
        loader: &Loader,
        jobs: Vec<Job>,
        computed: &BTreeSet<QualifiedName>,
        loaded: &mut Loaded,
    ) -> Result<Unbuilt, Error> {
        let mut tables: Vec<&Table> = Vec::new();
        for table in self.manifest.tables.iter().filter(|table| table.rows > 0) {
            if is_left_out(self.ctx, table) {
                loaded.quarantined.push(format!("rows of `{}`", table.qualified_name()));
            } else {
                tables.push(table);
            }
        }
        // Stable: small tables of one object stay together.
        tables.sort_by_key(|table| std::cmp::Reverse(table.bytes.max(BLOCK_BYTES as u64)));
        let workers = self.jobs().min(tables.len().max(jobs.len()).max(1));
        let helpers = self.helpers();
        let sorts = |table: &&Table| Some((table.qualified_name(), sort_bytes(table, helpers)?));
        let work = Work {
            sorts: tables.iter().filter_map(sorts).collect(),
            schedule: Mutex::new(Schedule::new(tables, jobs, computed)),
            changed: Notify::new(),
            refused: Mutex::default(),
            unbuilt: Mutex::default(),
            step: Mutex::new(Some(
                self.ctx.report.step(format!("load {} rows", self.manifest.rows())),
            )),
            phase: Mutex::new(Phase::Rows),
        };
        let open = async || self.row_session(&loader.role).await;
        let worker = async |session| self.worker(session, loader, &work).await;
        self.crew(workers, open, worker).await?;
        let left: Vec<QualifiedName> =
            locked(&work.schedule).left().iter().map(|table| table.qualified_name()).collect();
        if let Some(name) = left.first() {
            let mut refused = std::mem::take(&mut *locked(&work.refused));
            let at = refused.iter().rposition(|(table, _)| table == name);
            let at = at.expect("a table is left because it was refused");
            return Err(refused.swap_remove(at).1);
        }
        work.turn(String::new(), None);
        Ok(work.unbuilt.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tables with a stored column that is computed by a function or operator of somebody's own, which may
    /// read other tables.
    ///
    /// Before PostgreSQL 15 it is the column that depends on the function, since then its expression.
    pub(super) async fn computed(
        &self,
        session: &Session,
    ) -> Result<BTreeSet<QualifiedName>, Error> {
        let rows = session
            .query(
                "select distinct n.nspname::text, c.relname::text
                 from pg_attribute a
                 join pg_class c on c.oid = a.attrelid
                 join pg_namespace n on n.oid = c.relnamespace
                 join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum
                 join pg_depend d
                   on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid
                   or d.classid = 'pg_class'::regclass
                      and d.objid = a.attrelid and d.objsubid = a.attnum
                 where a.attgenerated = 's' and d.refobjid >= 16384
                   and d.refclassid in ('pg_proc'::regclass, 'pg_operator'::regclass)",
                &[],
            )
            .await
            .map_err(doing("look for computed columns"))?;
        let name = |row: &pg::Row| QualifiedName { schema: row.get(0), name: row.get(1) };
        Ok(rows.iter().map(name).collect())
    }

    async fn worker(
        &self,
        mut session: Session,
        loader: &Loader,
        work: &Work<'_>,
    ) -> Result<(), Error> {
        loop {
            // Made before the look, so that an end between the look and the wait is not missed.
            let changed = work.changed.notified();
            let next = locked(&work.schedule).next();
            match next {
                Next::Table(table) => match self.table(&session, table, work).await {
                    Ok(()) => locked(&work.schedule).loaded(table),
                    Err(error) if is_refusal(&error) => {
                        let name = table.qualified_name();
                        self.ctx
                            .report
                            .detail(format!("{error}; `{name}` is loaded again after the others"));
                        locked(&work.refused).push((name, error));
                        locked(&work.schedule).refused(table);
                        // After a failed COPY a connection may be out of step with its server.
                        session = self.row_session(&loader.role).await?;
                    }
                    Err(error) => return Err(error),
                },
                Next::Job(at) => {
                    let job = locked(&work.schedule).job(at).clone();
                    let ran = match self.run_job(&session, job, work).await? {
                        Built::Well => Ran::Well,
                        Built::Refused(refusal) => {
                            locked(&work.unbuilt).refused.push(refusal);
                            Ran::Refused
                        }
                        Built::TooEarly(entry) => {
                            locked(&work.unbuilt).postponed.insert(entry);
                            Ran::Refused
                        }
                    };
                    locked(&work.schedule).built(at, ran);
                }
                Next::Wait => changed.await,
                Next::Done => break,
            }
            self.note(work);
            work.changed.notify_waiters();
        }
        session.close().await;
        Ok(())
    }

    /// Runs one statement; a refusal is the caller's to judge.
    async fn run_job(&self, session: &Session, job: Job, work: &Work<'_>) -> Result<Built, Error> {
        let failed = || doing("build indexes and constraints");
        if let Some(kilobytes) = work.sort_kilobytes(&job) {
            session.batch(&limit_sorts(kilobytes)).await.map_err(failed())?;
            let built = build(session, job.sql, job.entry).await?;
            session.batch("reset maintenance_work_mem").await.map_err(failed())?;
            return Ok(built);
        }
        let merges = match (&job.kind, job.locks.first()) {
            (Kind::ForeignKey { columns }, Some((table, _))) => {
                is_indexed(session, table, columns).await?
            }
            (Kind::Index | Kind::Key { .. } | Kind::ForeignKey { .. }, _) => false,
        };
        if !merges {
            return build(session, job.sql, job.entry).await;
        }
        // The check of a foreign key then reads two indexes side by side, of which frozen rows need
        // no look at the table: measured on 6 million rows 0.7 s of work instead of 2.4 s.
        session.batch("set enable_hashjoin = off").await.map_err(failed())?;
        let built = build(session, job.sql, job.entry).await?;
        session.batch("reset enable_hashjoin").await.map_err(failed())?;
        Ok(built)
    }

    /// Once the last row is in, what remains is a step of its own.
    fn note(&self, work: &Work<'_>) {
        let mut phase = locked(&work.phase);
        if *phase == Phase::Rows && locked(&work.schedule).all_loaded() {
            *phase = Phase::Builds;
            let next = self.ctx.report.step("build indexes and constraints");
            work.turn(format!("{} tables", self.manifest.tables.len()), Some(next));
        }
    }

    async fn table(&self, session: &Session, table: &Table, work: &Work<'_>) -> Result<(), Error> {
        let name = table.qualified_name();
        let failed = |error| doing(format!("load `{name}`"))(error);
        let encoding = &self.manifest.server.encoding;
        let list = source::column_list(&table.columns, encoding);
        let quoted = |name: &QualifiedName| source::qualified(&name.schema, &name.name, encoding);
        let found = match (&table.through_root, &table.extension) {
            (Some(root), _) => {
                let sql = format!("copy {}{list} from stdin", quoted(root));
                self.copy(session, &sql, table, work).await?
            }
            (None, Some(_)) => {
                let sql = format!("copy {}{list} from stdin", quoted(&name));
                self.copy(session, &sql, table, work).await?
            }
            (None, None) => {
                // Emptied in the same transaction, a table may be filled with frozen rows, and
                // without WAL where the server's level is minimal.
                let quoted = quoted(&name);
                session.batch(&format!("begin; truncate only {quoted}")).await.map_err(failed)?;
                let sql = format!("copy {quoted}{list} from stdin with (freeze)");
                let found = self.copy(session, &sql, table, work).await?;
                session.batch("commit").await.map_err(failed)?;
                found
            }
        };
        if found == table.rows {
            return Ok(());
        }
        Err(Error::Rows { table: name.to_string(), found, needed: table.rows })
    }

    async fn copy(
        &self,
        session: &Session,
        sql: &str,
        table: &Table,
        work: &Work<'_>,
    ) -> Result<u64, Error> {
        let name = table.qualified_name();
        let total = self.manifest.plain_bytes();
        let largest = table.chunks.iter().map(|chunk| chunk.plain_size).max().unwrap_or(0);
        let ahead = (AHEAD_BYTES / largest.max(1)).clamp(1, AHEAD as u64) as usize;
        let blocks = futures_util::stream::iter(&table.chunks)
            .map(|chunk| async move { self.plain(chunk).await })
            .buffered(ahead)
            .flat_map(|plain| {
                let blocks: Vec<Result<Bytes, Sending>> = match plain {
                    Err(error) => vec![Err(Sending::Fetch(error))],
                    Ok(plain) => in_blocks(&plain).map(Ok).collect(),
                };
                futures_util::stream::iter(blocks)
            })
            .inspect(|block| {
                if let Ok(block) = block {
                    let size = block.len() as u64;
                    let sum = self.loaded_bytes.fetch_add(size, Ordering::Relaxed) + size;
                    work.progress(sum, total);
                }
            });
        session.copy_in(sql, blocks).await.map_err(|error| match error {
            Sending::Fetch(error) => error,
            Sending::Pg(error) => doing(format!("load `{name}`"))(error),
        })
    }
}

/// Whether an index of the table begins with these columns.
async fn is_indexed(
    session: &Session,
    table: &QualifiedName,
    columns: &[String],
) -> Result<bool, Error> {
    let row = session
        .query_one(
            "select exists (
               select from pg_index i join pg_class c on c.oid = i.indrelid
                           join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = $1 and c.relname = $2 and i.indisvalid and i.indpred is null
                 and (select array_agg(a.attname::text order by k.place)
                      from unnest(i.indkey::int2[]) with ordinality k (attnum, place)
                      join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
                      where k.place <= cardinality($3::text[])) = $3::text[])",
            &[&table.schema, &table.name, &columns],
        )
        .await
        .map_err(doing("look for an index"))?;
    Ok(row.get(0))
}

/// Runs a statement that builds something, of this entry of the archive; a refusal is the caller's to
/// judge.
pub(super) async fn build(
    session: &Session,
    sql: String,
    entry: Option<u32>,
) -> Result<Built, Error> {
    match (session.batch(&sql).await, entry) {
        (Ok(()), _) => Ok(Built::Well),
        // No such table or view, no such function.
        (Err(pg::Error::Sql(error)), Some(entry))
            if matches!(error.sqlstate.as_str(), "42P01" | "42883") =>
        {
            Ok(Built::TooEarly(entry))
        }
        (Err(pg::Error::Sql(error)), _) => {
            let command = sql.lines().next().unwrap_or_default().to_owned();
            Ok(Built::Refused(Refusal { message: error.message.clone(), command }))
        }
        (Err(error), _) => Err(doing("build indexes and constraints")(error)),
    }
}

/// Whether a load leaves the table's rows out: they would act by themselves, or their extension is
/// not here.
pub(crate) fn is_left_out(ctx: &Context, table: &Table) -> bool {
    table.extension.as_ref().is_some_and(|extension| leaves_out(ctx, &extension.name))
}

/// Whether a load leaves out what the extension keeps.
pub(super) fn leaves_out(ctx: &Context, extension: &String) -> bool {
    ACTING_EXTENSIONS.contains(&extension.as_str())
        || ctx.config.restore.ignore_extensions.contains(extension)
}

/// What a COPY failed with: the server, or our own side.
enum Sending {
    Pg(pg::Error),
    Fetch(Error),
}

impl From<pg::Error> for Sending {
    fn from(error: pg::Error) -> Self {
        Self::Pg(error)
    }
}

/// The memory that indexes of `table` are sorted in: as little as lets one merge do, for a second one
/// reads and writes all of it once more. `None` for a table that needs no more than that in any case.
fn sort_bytes(table: &Table, helpers: u64) -> Option<u64> {
    let all = table.bytes.saturating_add(table.rows.saturating_mul(ENTRY_BYTES));
    // Runs as large as the memory, and their number times a run's share of it.
    let one_merge = all.saturating_mul(RUN_BYTES).isqrt();
    let each = one_merge.max(if helpers == 0 { SORT_BYTES } else { HELPED_SORT_BYTES });
    (all > SORT_BYTES).then_some(each.saturating_mul(helpers + 1))
}

/// The statement that lowers a session's memory for sorts; the server's own limit stays one.
fn limit_sorts(kilobytes: u64) -> String {
    format!(
        "select set_config('maintenance_work_mem', least(reset_val::int8, {kilobytes})::text, false)
         from pg_settings where name = 'maintenance_work_mem'"
    )
}

pub(super) fn in_blocks(plain: &Bytes) -> impl Iterator<Item = Bytes> + use<> {
    let plain = plain.clone();
    (0..plain.len())
        .step_by(BLOCK_BYTES)
        .map(move |at| plain.slice(at..plain.len().min(at + BLOCK_BYTES)))
}

/// Whether the server refused the rows themselves, so that other tables may have to come first. Not a
/// lack of resources, an administrator or a lost connection.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Pg { error: pg::Error::Sql(error), .. } => {
            !matches!(error.sqlstate.get(..2), Some("08" | "53" | "57" | "58" | "XX"))
        }
        Error::Pg { .. }
        | Error::Damaged { .. }
        | Error::Rows { .. }
        | Error::Extensions { .. }
        | Error::Refused { .. }
        | Error::Restore { .. }
        | Error::Tools(_)
        | Error::Store(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::manifest::Table;
    use super::{HELPED_SORT_BYTES, SORT_BYTES, sort_bytes};

    #[test]
    fn indexes_are_sorted_in_as_little_memory_as_one_merge_takes() {
        let table = |rows: u64, bytes: u64| Table {
            schema: "s".to_owned(),
            name: "t".to_owned(),
            columns: Vec::new(),
            rows,
            bytes,
            through_root: None,
            extension: None,
            chunks: Vec::new(),
        };
        assert_eq!(sort_bytes(&table(1000, 100_000), 0), None);
        let shop = table(8_000_000, 400_000_000);
        assert_eq!(sort_bytes(&shop, 0), Some(SORT_BYTES));
        assert_eq!(sort_bytes(&shop, 1), Some(2 * HELPED_SORT_BYTES));
        let large = sort_bytes(&table(1_000_000_000, 50_000_000_000), 0).expect("more than fits");
        assert_eq!(large / (1024 * 1024), 167);
        assert_eq!(sort_bytes(&table(u64::MAX, u64::MAX), 0), Some(u64::MAX.isqrt()));
    }
}
