//! The session that locks every table, takes the snapshot, and lives until the last worker is done.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::catalog::{self, Catalog, Relation};
use super::super::crew::once_there_is_room;
use super::super::manifest;
use super::super::plan::Job;
use super::super::preflight;
use super::super::source::{self, Snapshot};
use super::rows::Work;
use super::{Error, Run, doing};
use crate::pg::{self, Session};

/// Tables may come and go while the list is locked; a database that changes faster is not quiet
/// enough to be copied.
pub(super) const LOCK_ATTEMPTS: usize = 5;

/// A lock that is not granted within this time is held by a migration; production is not kept waiting
/// behind our queued lock any longer than that.
pub(super) const LOCK_TIMEOUT: &str = "30s";
const LOCK_DEADLINE: Duration = Duration::from_secs(30);

/// Tables in one LOCK statement.
const LOCK_AT_ONCE: usize = 500;

/// A query of the catalog may take this many times what a stream may pause: 100,000 tables do.
const QUERY_STALLS: u32 = 10;

/// The session that holds the locks and the snapshot.
pub(super) struct Leader {
    pub session: Session,
    pub snapshot: Snapshot,
    pub catalog: Catalog,
}

impl Run<'_> {
    /// The leader, and the schema that unqualified names mean to this role.
    pub(super) async fn lead(&self) -> Result<(Leader, Option<String>), Error> {
        let plain = Session::connect(self.target).await.map_err(doing("connect to the source"))?;
        let asked = plain.query_one("select current_schema()::text", &[]);
        let row = self.soon("ask for the default schema", asked).await?;
        let default_schema: Option<String> = row.get(0);
        plain.close().await;

        let connect = "connect to the source";
        let open = async || self.soon(connect, source::open(self.target)).await;
        let session = once_there_is_room(self.ctx, Error::is_full, open).await?;
        self.register(&session);
        let pooled = async || self.soon(connect, source::is_pooled(&session, self.target)).await;
        if once_there_is_room(self.ctx, Error::is_full, pooled).await? {
            return Err(Error::Pooled { target: self.target.to_string() });
        }
        // The list asks for sizes, which wait for a table that somebody rewrites as a lock does.
        let patience = format!("set lock_timeout = '{LOCK_TIMEOUT}'");
        self.soon("begin the snapshot", session.batch(&patience)).await?;
        for _ in 0..LOCK_ATTEMPTS {
            let before = self.soon("list the source", catalog::read(&session)).await;
            let before = before.map_err(|error| match error {
                Error::Pg { error, .. } if error.sqlstate() == Some("55P03") => {
                    Error::Busy { error }
                }
                error => error,
            })?;
            self.refuse_unreadable(&before)?;
            let Some(id) = self.lock_and_export(&session, &before).await? else { continue };
            let catalog = self.soon("list the source", catalog::read(&session)).await?;
            self.refuse_unreadable(&catalog)?;
            if names(&catalog) != names(&before) {
                self.soon("begin again", session.batch("rollback")).await?;
                continue;
            }
            let snapshot = Snapshot {
                id,
                encoding: catalog.server.encoding.clone(),
                version_num: catalog.server.version_num,
            };
            return Ok((Leader { session, snapshot, catalog }, default_schema));
        }
        Err(Error::Changing)
    }

    /// Waits for an answer of the source, but not for ever.
    pub(super) async fn soon<T>(
        &self,
        what: impl Into<String>,
        work: impl Future<Output = Result<T, pg::Error>>,
    ) -> Result<T, Error> {
        let limit = (self.stall * QUERY_STALLS).max(LOCK_DEADLINE + self.stall);
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result.map_err(doing(what)),
            Err(_) => Err(Error::Stalled { what: what.into(), seconds: limit.as_secs() }),
        }
    }

    /// Never ends well: fails once the leader does not answer any more. Its snapshot is then of no use to
    /// workers that have still to come, and its locks are gone.
    pub(super) async fn watch(&self, leader: &Leader) -> Result<std::convert::Infallible, Error> {
        let what = || "keep the snapshot open".to_owned();
        let mut ticks = tokio::time::interval(self.stall / 2);
        loop {
            ticks.tick().await;
            match tokio::time::timeout(self.stall, leader.session.batch("select")).await {
                Ok(answer) => answer.map_err(doing(what()))?,
                Err(_) => {
                    let seconds = self.stall.as_secs();
                    return Err(Error::Stalled { what: what(), seconds });
                }
            }
        }
    }

    /// When a leader is lost the others fail as well, and one of them may say so first.
    pub(super) async fn cause(&self, leader: &Leader, error: Error) -> Error {
        if !error.is_passing() || matches!(error, Error::Stalled { .. }) {
            return error;
        }
        let answer = tokio::time::timeout(self.stall, leader.session.batch("select")).await;
        let error = match answer {
            Ok(Err(lost)) => doing("keep the snapshot open")(lost),
            Ok(Ok(())) | Err(_) => error,
        };
        if leader.catalog.in_recovery { Error::Standby { error: Box::new(error) } } else { error }
    }

    /// Runs `work` while the leader lives.
    pub(super) async fn while_led<T>(
        &self,
        leader: &Leader,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            result = work => result,
            lost = self.watch(leader) => match lost {
                Err(error) => Err(error),
                Ok(never) => match never {},
            },
        }
    }

    /// Locks all tables in a new transaction and exports its snapshot; `None` when a table went
    /// meanwhile. LOCK takes no snapshot, so the one exported is younger than every lock.
    pub(super) async fn lock_and_export(
        &self,
        session: &Session,
        catalog: &Catalog,
    ) -> Result<Option<String>, Error> {
        let begin = format!(
            "begin isolation level repeatable read, read only;
             set local lock_timeout = '{LOCK_TIMEOUT}'"
        );
        self.soon("begin the snapshot", session.batch(&begin)).await?;
        for group in catalog.tables.chunks(LOCK_AT_ONCE) {
            let sql = lock_statement(group.iter(), "UTF8");
            // The server ends the wait; this is for a line that is dead.
            let limit = LOCK_DEADLINE + self.stall;
            let lock = tokio::time::timeout(limit, session.batch(&sql)).await;
            let what = "lock the source's tables for reading";
            match lock {
                Ok(Ok(())) => {}
                Ok(Err(error)) if matches!(error.sqlstate(), Some("42P01" | "3F000")) => {
                    self.soon("begin again", session.batch("rollback")).await?;
                    return Ok(None);
                }
                Ok(Err(error)) if error.sqlstate() == Some("55P03") => {
                    return Err(Error::Busy { error });
                }
                Ok(Err(error)) => return Err(doing(what)(error)),
                Err(_) => {
                    return Err(Error::Stalled { what: what.to_owned(), seconds: limit.as_secs() });
                }
            }
        }
        self.soon("begin the snapshot", session.batch("set local lock_timeout = 0")).await?;
        let exported = session.query_one("select pg_export_snapshot()", &[]);
        Ok(Some(self.soon("export the snapshot", exported).await?.get(0)))
    }

    /// Locks a job's tables in a worker's session; `false` when that would mean to wait.
    pub(super) async fn lock_now(
        &self,
        session: &Session,
        work: &Work<'_>,
        job: &Job,
        holds: &mut BTreeSet<usize>,
    ) -> Result<bool, Error> {
        let wanted: Vec<usize> = match job {
            Job::Rows { table, .. } => vec![*table],
            Job::Small { tables } => tables.clone(),
            Job::LargeObjects { .. } => Vec::new(),
        };
        let missing: Vec<usize> = wanted.into_iter().filter(|at| !holds.contains(at)).collect();
        if missing.is_empty() {
            return Ok(true);
        }
        let tables = missing.iter().map(|at| &work.tables[*at]);
        let lock = lock_statement(tables, &work.snapshot.encoding);
        let sql = format!("savepoint lock_now; {lock} nowait; release savepoint lock_now");
        let what = "lock a table without waiting";
        match self.soon(what, session.batch(&sql)).await {
            Ok(()) => {
                holds.extend(missing);
                Ok(true)
            }
            Err(Error::Pg { error, .. }) if error.sqlstate() == Some("55P03") => {
                let back = "rollback to savepoint lock_now; release savepoint lock_now";
                self.soon(what, session.batch(back)).await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn refuse_unreadable(&self, catalog: &Catalog) -> Result<(), Error> {
        match preflight::check(catalog, self.ctx.config.snapshot.skip_large_objects) {
            Some(unreadable) => Err(Error::Unreadable(unreadable)),
            None => Ok(()),
        }
    }
}

fn names(catalog: &Catalog) -> Vec<(u32, &manifest::QualifiedName)> {
    catalog.tables.iter().map(|table| (table.oid, &table.name)).collect()
}

fn lock_statement<'r>(tables: impl Iterator<Item = &'r Relation>, encoding: &str) -> String {
    let names: Vec<String> = tables
        .map(|table| {
            format!("only {}", source::qualified(&table.name.schema, &table.name.name, encoding))
        })
        .collect();
    format!("lock table {} in access share mode", names.join(", "))
}
