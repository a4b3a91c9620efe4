//! `baseline`: what is in the database counts as this version.

use serde::Serialize;

use super::Error;
use super::history::HistoryRow;
use super::resolve::Scripts;
use super::run::Opened;
use super::schemas::{Preparation, baseline_of, marker};
use super::version::Version;
use crate::context::Context;
use crate::pg::Target;
use crate::pg::names::DatabaseName;

/// What `baseline` ended with.
#[derive(Debug, Clone, Serialize)]
pub struct Baselined {
    pub version: String,
    pub description: String,
    /// `false`: the same baseline was there already.
    pub is_new: bool,
}

/// Writes the baseline.
///
/// # Errors
/// A history that holds migrations or another baseline.
pub async fn baseline(
    ctx: &Context,
    target: &Target,
    scripts: &Scripts,
) -> Result<Baselined, Error> {
    let names = DatabaseName::live(&target.database);
    let opened = Opened::open(ctx, target, &names, scripts).await?;
    opened.fire("createSchema").await?;
    opened.fire("beforeCreateSchema").await?;
    opened.fire("beforeBaseline").await?;
    let result = write(&opened).await;
    match &result {
        Ok(_) => opened.fire("afterBaseline").await?,
        Err(_) => opened.fire_after_error("afterBaselineError").await,
    }
    opened.close(result.is_ok()).await;
    result
}

async fn write(opened: &Opened<'_>) -> Result<Baselined, Error> {
    let (ctx, place) = (opened.ctx, &opened.place);
    let (version, description) = baseline_of(&ctx.config.migrate)?;
    let done = |is_new| Baselined {
        version: version.text().to_owned(),
        description: description.clone(),
        is_new,
    };
    place.lock(ctx).await?;
    let is_new = if place.table.exists(&place.session).await? {
        let rows = place.table.rows_after(&place.session, None).await?;
        let is_due = is_due(&rows, &version, &description)?;
        if is_due {
            let rank = rows.last().map_or(1, |row| row.installed_rank + 1);
            let row = marker(rank, Some(version.text()), &description, "BASELINE", &description);
            place.table.insert(&place.session, &row).await?;
        }
        is_due
    } else {
        Preparation::of_baseline(ctx, place).await?.make(ctx, place).await?;
        true
    };
    place.unlock().await?;
    Ok(done(is_new))
}

/// Whether the row is still to be written.
fn is_due(rows: &[HistoryRow], version: &Version, description: &str) -> Result<bool, Error> {
    // A row of created schemas may stand before it.
    let first = rows.iter().take(2).find(|row| row.kind == "BASELINE");
    if let Some(row) = first {
        let there = row.version.as_deref().and_then(|text| Version::parse(text).ok());
        if there.as_ref() == Some(version) && row.description == description {
            return Ok(false);
        }
        return Err(Error::OtherBaseline {
            version: row.version.clone().unwrap_or_default(),
            description: row.description.clone(),
        });
    }
    match rows.iter().find(|row| row.kind != "SCHEMA") {
        Some(row) => Err(Error::NothingToBaseline { script: row.script.clone() }),
        None => Ok(true),
    }
}
