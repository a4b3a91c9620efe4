//! `repair`: the history made to agree with the files, without running any of them.

use serde::Serialize;

use super::Error;
use super::history::{HistoryRow, short_description};
use super::plan::{Entry, Plan, Rules, State, plan};
use super::resolve::Scripts;
use super::run::{Opened, Options, rules};
use super::validate::Pattern;
use crate::context::Context;
use crate::pg::names::DatabaseName;
use crate::pg::{Target, ToSql, Type};

/// What `repair` changed, or would change.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Repaired {
    /// Rows of scripts that had failed: gone.
    pub removed: Vec<Touched>,
    /// Rows without a file: marked as deleted.
    pub deleted: Vec<Touched>,
    /// Rows that now say what the files say.
    pub aligned: Vec<Touched>,
    /// The old table of Flyway 4 was taken over.
    pub upgraded: Option<String>,
}

/// One row that was touched.
#[derive(Debug, Clone, Serialize)]
pub struct Touched {
    pub version: Option<String>,
    pub description: String,
    /// The file, when there is one.
    pub path: Option<String>,
    #[serde(skip)]
    rank: i32,
    #[serde(skip)]
    checksum: Option<i32>,
    #[serde(skip)]
    script: String,
    #[serde(skip)]
    new_description: String,
}

impl Repaired {
    /// A line for each row.
    pub fn describe(&self) -> Vec<String> {
        let line = |verb: &str, one: &Touched| match &one.version {
            Some(version) => format!("{verb} version {version} ({})", one.description),
            None => format!("{verb} repeatable `{}`", one.description),
        };
        let upgraded = self.upgraded.iter().map(|table| format!("take over the table {table}"));
        upgraded
            .chain(self.removed.iter().map(|one| line("remove the failed row of", one)))
            .chain(self.deleted.iter().map(|one| line("mark as deleted:", one)))
            .chain(self.aligned.iter().map(|one| line("take over the file of", one)))
            .collect()
    }
}

/// Whether `repair` acts or only says what it would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Do,
    Plan,
}

/// Repairs the history.
///
/// # Errors
/// What the server said; a history that cannot be read.
pub async fn repair(
    ctx: &Context,
    target: &Target,
    scripts: &Scripts,
    act: Act,
) -> Result<Repaired, Error> {
    let names = DatabaseName::live(&target.database);
    let opened = Opened::open(ctx, target, &names, scripts).await?;
    if act == Act::Plan {
        let repaired = decide(&opened, opened.place.rows_at_rest(ctx).await);
        opened.close(true).await;
        return repaired;
    }
    opened.fire("beforeRepair").await?;
    let result = async {
        // A failed row may be of a script that another runner is at: its end is waited for.
        opened.place.lock(ctx).await?;
        let repaired = decide(&opened, opened.place.rows().await)?;
        write(&opened, &repaired).await?;
        opened.place.unlock().await?;
        Ok(repaired)
    };
    let result: Result<Repaired, Error> = result.await;
    match &result {
        Ok(_) => opened.fire("afterRepair").await?,
        Err(_) => opened.fire_after_error("afterRepairError").await,
    }
    opened.close(result.is_ok()).await;
    result
}

fn decide(
    opened: &Opened<'_>,
    rows: Result<Option<Vec<HistoryRow>>, Error>,
) -> Result<Repaired, Error> {
    let rows = rows?.unwrap_or_default();
    let rules = Rules { cherry_pick: Vec::new(), ..rules(opened.ctx, &Options::default())? };
    let patterns = Pattern::parse_all(&opened.ctx.config.migrate.ignore_migration_patterns)?;
    Ok(decided(&plan(&opened.scripts, &rows, &rules)?, &patterns))
}

/// Pure: what is to be done about each row.
fn decided(plan: &Plan<'_>, patterns: &[Pattern]) -> Repaired {
    let mut repaired = Repaired::default();
    for entry in &plan.entries {
        let Some(row) = entry.row else { continue };
        let touched = || Touched {
            version: row.version.clone(),
            description: row.description.clone(),
            path: entry.script.map(|script| script.path.to_string()),
            rank: row.installed_rank,
            checksum: row.checksum,
            script: row.script.clone(),
            new_description: row.description.clone(),
        };
        let is_versioned = entry.version.is_some();
        let ignores_missing = || patterns.iter().any(|one| one.covers_missing(is_versioned));
        let ignores_future = || patterns.iter().any(|one| one.covers_future(is_versioned));
        match entry.state {
            _ if !row.success => repaired.removed.push(Touched { path: None, ..touched() }),
            // It has no file here, and needs none.
            State::Missing | State::Future if entry.is_javas() => {}
            State::Missing if !ignores_missing() => repaired.deleted.push(touched()),
            State::Future if !ignores_future() => repaired.deleted.push(touched()),
            State::Success | State::OutOfOrder | State::Baseline | State::Outdated => {
                repaired.aligned.extend(aligned(entry, touched()));
            }
            State::Missing
            | State::Future
            | State::Pending
            | State::AboveTarget
            | State::BelowBaseline
            | State::IgnoredBaseline
            | State::Ignored
            | State::Failed
            | State::MissingFailed
            | State::FutureFailed
            | State::Superseded
            | State::Deleted
            | State::Undone => {}
        }
    }
    repaired
}

/// The row as the file has it, when they differ.
fn aligned(entry: &Entry<'_>, touched: Touched) -> Option<Touched> {
    let (row, script) = (entry.row?, entry.script?);
    if entry.version.is_none() {
        // Before 6.4 Flyway kept the checksum of the text before placeholders.
        let is_raw =
            row.checksum == Some(script.raw_checksum) && script.checksum != script.raw_checksum;
        return is_raw.then_some(Touched { checksum: Some(script.checksum), ..touched });
    }
    let description = short_description(&script.description);
    let differs = row.checksum != Some(script.checksum) || row.description != description;
    differs.then(|| Touched {
        checksum: Some(script.checksum),
        new_description: description.into_owned(),
        ..touched
    })
}

async fn write(opened: &Opened<'_>, repaired: &Repaired) -> Result<(), Error> {
    if repaired.describe().is_empty() {
        return Ok(());
    }
    let (session, table) = (&opened.place.session, &opened.place.table);
    let name = table.quoted();
    let fail = |error| Error::sql(session, format!("repair the history {name}"), error);
    session.batch("begin").await?;
    for one in &repaired.removed {
        let sql = format!("delete from {name} where installed_rank = $1 and not success");
        let values: [(&(dyn ToSql + Sync), Type); 1] = [(&one.rank, Type::INT4)];
        session.ask(&sql, &values).await.map_err(fail)?;
    }
    let next = format!("select coalesce(max(installed_rank), 0) + 1 from {name}");
    let rank: i32 = session.query_one(&next, &[]).await.map_err(fail)?.get(0);
    for (one, rank) in repaired.deleted.iter().zip(rank..) {
        let row = super::history::NewRow {
            installed_rank: rank,
            version: one.version.as_deref(),
            description: &one.description,
            kind: "DELETE",
            script: &one.script,
            checksum: one.checksum,
            execution_time: Some(0),
            success: true,
        };
        table.insert(session, &row).await?;
    }
    for one in &repaired.aligned {
        let sql =
            format!("update {name} set description = $2, checksum = $3 where installed_rank = $1");
        let values: [(&(dyn ToSql + Sync), Type); 3] = [
            (&one.rank, Type::INT4),
            (&one.new_description, Type::TEXT),
            (&one.checksum, Type::INT4),
        ];
        session.ask(&sql, &values).await.map_err(fail)?;
    }
    session.batch("commit").await?;
    Ok(())
}
