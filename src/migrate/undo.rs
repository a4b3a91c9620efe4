//! `undo`: undo scripts (`U2__x.sql`), what was applied last first, as Flyway documents it
//! (<https://documentation.red-gate.com/fd/undo-277578896.html>): with out-of-order scripts that is not
//! the highest version.
//!
//! Each runs in one transaction with a `DELETE` row for its version. Flyway's own `UNDO_SQL` rows
//! make every open edition from 9.8 on fail; `DELETE` rows are read by all. A script that deletes
//! the row of its version itself gets none.

use serde::Serialize;

use super::Error;
use super::apply::{Applied, Run, Work, apply, prepare};
use super::history::HistoryRow;
use super::plan::{Rules, State, Target as UpTo, plan};
use super::resolve::Scripts;
use super::run::{Opened, Options, Ran, ran, rules};
use super::script::Script;
use super::version::Version;
use crate::context::Context;
use crate::pg::Target;
use crate::pg::names::DatabaseName;

/// What `undo` did.
#[derive(Debug, Clone, Serialize)]
pub struct Undone {
    pub before: Option<String>,
    pub after: Option<String>,
    /// The undo scripts that ran, in order.
    pub undone: Vec<Ran>,
}

/// The versions that would be undone, in order, with their scripts.
///
/// # Errors
/// As [`undo`].
pub async fn undo_plan(
    ctx: &Context,
    target: &Target,
    scripts: &Scripts,
    options: &Options,
) -> Result<Vec<String>, Error> {
    let names = DatabaseName::live(&target.database);
    let opened = Opened::open(ctx, target, &names, scripts).await?;
    let rows = opened.rows().await?;
    let chosen = chosen(ctx, &opened.scripts, &rows, options)?;
    let lines = chosen.iter().map(|(script, _)| format!("run {}", script.script)).collect();
    opened.close(true).await;
    Ok(lines)
}

/// Undoes the version that was applied last; with a target all back to the first that is below it.
///
/// # Errors
/// A version without an undo script (nothing was done); a script that failed.
pub async fn undo(
    ctx: &Context,
    target: &Target,
    scripts: &Scripts,
    options: &Options,
) -> Result<Undone, Error> {
    let names = DatabaseName::live(&target.database);
    let mut opened = Opened::open(ctx, target, &names, scripts).await?;
    opened.fire("beforeUndo").await?;
    let result = run_all(&mut opened, options).await;
    match &result {
        Ok(_) => opened.fire("afterUndo").await?,
        Err(_) => opened.fire_after_error("afterUndoError").await,
    }
    opened.close(result.is_ok()).await;
    result
}

async fn run_all(opened: &mut Opened<'_>, options: &Options) -> Result<Undone, Error> {
    let Opened { ctx, target, names, scripts, place } = opened;
    place.lock(ctx).await?;
    let rows = place.rows().await?.unwrap_or_default();
    let chosen = chosen(ctx, scripts, &rows, options)?;
    let prepared = chosen
        .iter()
        .map(|(script, _)| prepare(ctx, scripts, script, place.server_version))
        .collect::<Result<Vec<_>, _>>()?;
    let first_rank = rows.last().map_or(1, |row| row.installed_rank + 1);
    let works: Vec<Work<'_>> = prepared
        .iter()
        .zip(&chosen)
        .zip(first_rank..)
        .map(|((prepared, (_, row)), rank)| Work { prepared, rank, undoes: Some(row) })
        .collect();
    let size = if ctx.config.migrate.group { works.len().max(1) } else { 1 };
    let mut undone = Vec::new();
    for batch in works.chunks(size) {
        let names_of: Vec<&str> =
            batch.iter().map(|work| work.prepared.script.script.as_str()).collect();
        let step = ctx.report.step(format!("undo by `{}`", names_of.join("`, `")));
        let statements = batch.iter().map(|work| work.prepared.statements).sum();
        let run = Run { ctx, target, names, scripts, step: Some((&step, statements)) };
        let Applied::Times(times) = apply(&run, place, batch).await? else {
            return Err(Error::Overtaken);
        };
        step.done("");
        undone.extend(batch.iter().zip(times).map(|(work, time)| ran(work.prepared.script, time)));
        if batch.iter().any(|work| work.prepared.drops_locks) {
            place.lock(ctx).await?;
        }
    }
    let rows_now = match rows.is_empty() {
        true => Vec::new(),
        false => place.table.rows_after(&place.session, None).await?,
    };
    place.unlock().await?;
    let text = |version: Option<Version>| version.map(|version| version.text().to_owned());
    let latest = latest(ctx)?;
    Ok(Undone {
        before: text(plan(scripts, &rows, &latest)?.current),
        after: text(plan(scripts, &rows_now, &latest)?.current),
        undone,
    })
}

fn latest(ctx: &Context) -> Result<Rules, Error> {
    let rules = rules(ctx, &Options::default())?;
    Ok(Rules { target: UpTo::Latest, cherry_pick: Vec::new(), ..rules })
}

/// The undo scripts to run, each with the row that it takes back.
fn chosen<'a>(
    ctx: &Context,
    scripts: &'a Scripts,
    rows: &'a [HistoryRow],
    options: &Options,
) -> Result<Vec<(&'a Script, &'a HistoryRow)>, Error> {
    let wanted = rules(ctx, options)?;
    let plan = plan(scripts, rows, &latest(ctx)?)?;
    let mut applied: Vec<(&Version, &HistoryRow)> = plan
        .entries
        .iter()
        .filter(|entry| {
            matches!(
                entry.state,
                State::Success | State::OutOfOrder | State::Missing | State::Future
            )
        })
        .filter_map(|entry| Some((entry.version.as_ref()?, entry.row?)))
        .filter(|(_, row)| !row.kind.starts_with("UNDO_"))
        .collect();
    applied.sort_by_key(|(_, row)| std::cmp::Reverse(row.installed_rank));
    let meant: Vec<_> = match &wanted.target {
        _ if !wanted.cherry_pick.is_empty() => {
            let picked = |version: &Version| {
                wanted
                    .cherry_pick
                    .iter()
                    .any(|name| Version::parse(name).is_ok_and(|picked| picked == *version))
            };
            applied.into_iter().filter(|(version, _)| picked(version)).collect()
        }
        UpTo::Version { version, .. } => {
            applied.into_iter().take_while(|(applied, _)| *applied >= version).collect()
        }
        UpTo::Latest | UpTo::Current | UpTo::Next => applied.into_iter().take(1).collect(),
    };
    meant
        .into_iter()
        .map(|(version, row)| {
            let mut undo = scripts.undo.iter();
            let script = undo.find(|script| script.version.as_ref() == Some(version));
            script.map(|script| (script, row)).ok_or_else(|| Error::NoUndoScript {
                version: version.text().to_owned(),
                script: row.script.clone(),
                file: undo_file(ctx, version),
            })
        })
        .collect()
}

/// How the undo script of a version is to be called.
fn undo_file(ctx: &Context, version: &Version) -> String {
    let config = &ctx.config.migrate;
    let suffix = config.sql_migration_suffixes.first().map_or("", String::as_str);
    let (prefix, separator) = (&config.undo_sql_migration_prefix, &config.sql_migration_separator);
    format!("{prefix}{version}{separator}…{suffix}")
}
