//! The session that migrates, and what it started from.
//!
//! Everything happens on one connection. Role and search path are put back before each script, so
//! that one script cannot misplace the next one's objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Error;
use super::history::{HistoryRow, Table};
use super::lock;
use super::resolve::configured_schema;
use crate::context::Context;
use crate::pg::session::OnNotice;
use crate::pg::{self, Session, Target, quote};

/// A session with what was read when it was opened.
pub(super) struct Place {
    pub session: Session,
    pub table: Table,
    /// The default schema first.
    pub schemas: Vec<String>,
    pub server_version: i32,
    lock_key: i64,
    role: String,
    search_path: SearchPath,
    /// The session came with a `lock_timeout` of its own.
    pub has_lock_timeout: bool,
    /// Role and search path are where a script expects them: nothing ran that could move them.
    is_settled: AtomicBool,
}

impl Place {
    /// Opens the session. Warnings of the server are reported, its notices as details.
    pub(super) async fn open(ctx: &Context, target: &Target) -> Result<Self, Error> {
        let config = &ctx.config.migrate;
        let session = connect(ctx, target).await?;
        if let Some(sql) = &config.init_sql {
            let what = "run `flyway.initSql`".to_owned();
            session.batch(sql).await.map_err(|error| Error::sql(&session, what, error))?;
        }
        let facts = "select current_user::text, current_setting('search_path'),
            current_setting('server_version_num')::int, current_schema()::text,
            current_setting('lock_timeout') <> '0'";
        let rows = session.ask(facts, &[]).await?;
        let [row] = rows.as_slice() else { return Err(Error::NoFacts) };
        let path: String = row.get(1);
        let schema = match configured_schema(config) {
            Some(schema) => schema.to_owned(),
            None => row
                .get::<_, Option<String>>(3)
                .ok_or(Error::NoCurrentSchema { path: path.clone() })?,
        };
        let mut schemas = config.schemas.clone();
        if !schemas.contains(&schema) {
            schemas.insert(0, schema.clone());
        }
        let table = Table::new(&schema, config);
        Ok(Self {
            lock_key: lock::key(&table.quoted()),
            search_path: SearchPath::of(&schema, &path),
            session,
            table,
            schemas,
            server_version: row.get(2),
            has_lock_timeout: row.get(4),
            role: row.get(0),
            is_settled: AtomicBool::new(false),
        })
    }

    pub(super) fn default_schema(&self) -> &str {
        &self.table.schema
    }

    pub(super) async fn lock(&self, ctx: &Context) -> Result<(), Error> {
        lock::acquire(ctx, &self.session, self.lock_key, ctx.config.migrate.lock_retry_count).await
    }

    pub(super) async fn unlock(&self) -> Result<(), Error> {
        // `discard all` in a script may have given it back already.
        lock::release(&self.session, self.lock_key).await.map(|_| ())
    }

    /// The history's rows; `None` when there is no table.
    pub(super) async fn rows(&self) -> Result<Option<Vec<HistoryRow>>, Error> {
        match self.table.exists(&self.session).await? {
            true => self.table.rows_after(&self.session, None).await.map(Some),
            false => Ok(None),
        }
    }

    /// [`Place::rows`], where a failed row is one of a script that does not run any more. While
    /// another runner is at work a failed row may be of the script that it runs at this moment: that
    /// one is waited for.
    pub(super) async fn rows_at_rest(
        &self,
        ctx: &Context,
    ) -> Result<Option<Vec<HistoryRow>>, Error> {
        let rows = self.rows().await?;
        if !has_failed(rows.as_deref()) {
            return Ok(rows);
        }
        self.lock(ctx).await?;
        let rows = self.rows().await?;
        self.unlock().await?;
        Ok(rows)
    }

    /// [`Place::rows`] without waiting, and who is at work while one of them is a failed one.
    pub(super) async fn rows_and_runner(
        &self,
    ) -> Result<(Option<Vec<HistoryRow>>, Option<String>), Error> {
        let rows = self.rows().await?;
        if !has_failed(rows.as_deref()) {
            return Ok((rows, None));
        }
        if !lock::try_once(&self.session, self.lock_key).await? {
            return Ok((rows, Some(lock::holder(&self.session, self.lock_key).await?)));
        }
        let rows = self.rows().await?;
        self.unlock().await?;
        Ok((rows, None))
    }

    /// [`Place::preamble`], or nothing where it would change nothing.
    pub(super) fn preamble_if_due(&self) -> String {
        if self.is_settled.load(Ordering::Relaxed) { String::new() } else { self.preamble() }
    }

    /// Says whether role and search path are sure to be as the preamble left them.
    pub(super) fn settle(&self, is_settled: bool) {
        self.is_settled.store(is_settled, Ordering::Relaxed);
    }

    /// Statements that put role and search path where a script expects them.
    pub(super) fn preamble(&self) -> String {
        let mut sql = format!("set role {};\n", quote::ident(&self.role));
        if let SearchPath::PutBack(path) = &self.search_path {
            sql.push_str(&set_path(path));
        }
        sql
    }

    /// The statement that gives another session the path which this one came with, where scripts get
    /// no other.
    pub(super) fn path_at_start(&self) -> String {
        match &self.search_path {
            SearchPath::LeftAlone(path) => set_path(path),
            SearchPath::PutBack(_) => String::new(),
        }
    }

    /// Statements that make the session the one again which owns the history.
    pub(super) fn back_to_owner(&self) -> String {
        format!("reset session authorization;\nset role {};\n", quote::ident(&self.role))
    }
}

fn has_failed(rows: Option<&[HistoryRow]>) -> bool {
    rows.unwrap_or_default().iter().any(|row| !row.success)
}

/// Shows what the server says beside its answers.
fn on_notice(ctx: &Context) -> OnNotice {
    let report = ctx.report.clone();
    Arc::new(move |notice| {
        if notice.severity == "WARNING" {
            report.warn(format!("the server says: {}", notice.message));
        } else {
            report.detail(format!("the server says: {}", notice.message));
        }
    })
}

/// Connects in the local time zone: the history's times are local times of whoever migrates, as
/// with Flyway. Where nobody answers it is tried again as often as `flyway.connectRetries` says.
async fn connect(ctx: &Context, target: &Target) -> Result<Session, Error> {
    let config = &ctx.config.migrate;
    let mut pause = Duration::from_secs(1);
    for _ in 0..config.connect_retries {
        match connect_once(ctx, target).await {
            Err(error @ (pg::Error::Connect { .. } | pg::Error::Timeout { .. })) => {
                ctx.report.note(format!("{error}; trying again in {} s", pause.as_secs()));
                if tokio::time::timeout(pause, ctx.cancel.cancelled()).await.is_ok() {
                    return Err(Error::Interrupted);
                }
                let longest = u64::from(config.connect_retries_interval);
                pause = (pause * 2).min(Duration::from_secs(longest));
            }
            other => return Ok(other?),
        }
    }
    Ok(connect_once(ctx, target).await?)
}

async fn connect_once(ctx: &Context, target: &Target) -> Result<Session, pg::Error> {
    let Some(zone) = jiff::tz::TimeZone::system().iana_name().map(str::to_owned) else {
        return Session::connect_with(target, on_notice(ctx)).await;
    };
    // With the start-up packet it costs no round trip, and `discard all` comes back to it.
    let with_zone = target.clone().with_setting("TimeZone", &zone);
    match Session::connect_with(&with_zone, on_notice(ctx)).await {
        // A zone that this server does not know, or a pooler that takes no options.
        Err(error) if matches!(error.sqlstate(), Some("22023" | "08P01" | "0A000")) => {
            let session = Session::connect_with(target, on_notice(ctx)).await?;
            let sql = "select set_config('TimeZone', $1, false)";
            match session.query_one(sql, &[&zone]).await {
                Err(error) if error.sqlstate() != Some("22023") => Err(error),
                Ok(_) | Err(_) => Ok(session),
            }
        }
        other => other,
    }
}

/// The path that scripts get, as SQL takes it.
#[derive(Debug, PartialEq, Eq)]
enum SearchPath {
    /// Before each script.
    PutBack(String),
    /// The session came with the default schema first, and what a script makes of the path reaches
    /// the next one, as with Flyway.
    LeftAlone(String),
}

impl SearchPath {
    fn of(schema: &str, original: &str) -> Self {
        let rest = original.strip_prefix(schema);
        let mut names = names_of(original);
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(',')) {
            return Self::LeftAlone(names.join(", "));
        }
        names.insert(0, quote::ident(schema));
        Self::PutBack(names.join(", "))
    }
}

/// The names in a value of `search_path`, quoted: the setting takes bare ones that SQL does not
/// (`my-schema`, `order`).
fn names_of(path: &str) -> Vec<String> {
    let mut is_quoted = false;
    let ends_name = |c: char| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    };
    // An empty path reads as one empty name, which SQL does not take.
    let is_name = |name: &&str| !name.is_empty() && *name != "\"\"";
    let names = path.split(ends_name).map(str::trim).filter(is_name);
    let quoted = |name: &str| match name.starts_with('"') {
        true => name.to_owned(),
        false => quote::ident(&name.to_lowercase()),
    };
    names.map(quoted).collect()
}

fn set_path(path: &str) -> String {
    format!("set search_path to {path};\n")
}

#[cfg(test)]
mod tests {
    use super::SearchPath;

    #[test]
    fn the_default_schema_goes_first_unless_it_is_there() {
        let put_back = |path: &str| SearchPath::PutBack(path.to_owned());
        let left_alone = |path: &str| SearchPath::LeftAlone(path.to_owned());
        for (schema, original, path) in [
            ("public", "\"$user\", public", put_back(r#""public", "$user", "public""#)),
            ("app", "app", left_alone(r#""app""#)),
            ("app", "app, public", left_alone(r#""app", "public""#)),
            ("app", "app2", put_back(r#""app", "app2""#)),
            (
                "app",
                "my-schema,\"A, \"\"b\", Order",
                put_back(r#""app", "my-schema", "A, ""b", "order""#),
            ),
            ("App", "", put_back(r#""App""#)),
            ("app", r#""""#, put_back(r#""app""#)),
        ] {
            assert_eq!(SearchPath::of(schema, original), path);
        }
    }
}
