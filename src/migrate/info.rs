//! `info` and `validate`: what is there, and whether it fits. Nothing is changed.

use serde::Serialize;

use super::Error;
use super::history::HistoryRow;
use super::plan::{Entry, Rules, State, plan};
use super::resolve::Scripts;
use super::run::{Opened, Options, all_findings, rules};
use super::schemas::{missing_schemas, occupied_schemas};
use super::validate::Finding;
use super::version::Version;
use crate::context::Context;
use crate::pg::Target;
use crate::pg::names::DatabaseName;

/// Every migration with its state.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// The highest version applied.
    pub schema_version: Option<String>,
    /// The default schema.
    pub schema: String,
    pub all_schemas_empty: bool,
    pub migrations: Vec<InfoRow>,
    /// Failed rows that are of a script which another runner is at.
    pub warnings: Vec<String>,
}

/// One migration.
#[derive(Debug, Clone, Serialize)]
pub struct InfoRow {
    /// `Versioned`, `Repeatable`, `Baseline`, `Undo` or empty for markers.
    pub category: &'static str,
    pub version: Option<String>,
    pub raw_version: Option<String>,
    pub description: String,
    /// `SQL`, `BASELINE`, ….
    pub kind: String,
    pub state: &'static str,
    /// Local time without zone, as the history has it.
    pub installed_on: Option<String>,
    pub installed_by: Option<String>,
    pub execution_ms: Option<i32>,
    /// The file, when it is here.
    pub path: Option<String>,
    /// An undo script for the version is here.
    pub undoable: bool,
    /// That script.
    pub undo_path: Option<String>,
}

/// Which migrations `info` shows.
#[derive(Debug, Clone, Default)]
pub struct InfoFilter {
    pub since_version: Option<String>,
    pub until_version: Option<String>,
    /// `2026-11-23`, with a time of day or without; or Flyway's `23/11/2026 12:00`.
    pub since_date: Option<String>,
    pub until_date: Option<String>,
    /// Names of states; case and blanks do not count.
    pub of_state: Vec<String>,
}

/// Reads the state of every migration.
///
/// # Errors
/// What the server said; a history that cannot be read.
pub async fn info(ctx: &Context, target: &Target, scripts: &Scripts) -> Result<Info, Error> {
    let names = DatabaseName::live(&target.database);
    let opened = Opened::open(ctx, target, &names, scripts).await?;
    opened.fire("beforeInfo").await?;
    let info = match read(&opened).await {
        Ok(info) => info,
        Err(error) => {
            opened.fire_after_error("afterInfoError").await;
            return Err(error);
        }
    };
    opened.fire("afterInfo").await?;
    opened.close(true).await;
    Ok(info)
}

async fn read(opened: &Opened<'_>) -> Result<Info, Error> {
    let (rows, runner) = opened.place.rows_and_runner().await?;
    let rows = rows.unwrap_or_default();
    let rules = Rules { cherry_pick: Vec::new(), ..rules(opened.ctx, &Options::default())? };
    let plan = plan(&opened.scripts, &rows, &rules)?;
    let warnings: Vec<String> = runner.iter().flat_map(|runner| running(&rows, runner)).collect();
    for warning in &warnings {
        opened.ctx.report.warn(warning.clone());
    }
    let mut migrations: Vec<InfoRow> =
        plan.entries.iter().map(|entry| info_row(entry, &opened.scripts)).collect();
    migrations.extend(available_undo(&opened.scripts));
    Ok(Info {
        schema_version: plan.current.as_ref().map(|version| version.text().to_owned()),
        schema: opened.place.default_schema().to_owned(),
        all_schemas_empty: rows.is_empty() && occupied_schemas(&opened.place).await?.is_empty(),
        migrations,
        warnings,
    })
}

/// Flyway has no state for a script that runs: beside its failed row it is said in words.
fn running(rows: &[HistoryRow], runner: &str) -> Vec<String> {
    let failed = rows.iter().filter(|row| !row.success);
    failed.map(|row| format!("`{}` is running now: {runner}", row.script)).collect()
}

/// Everything that does not fit between files and history, pending scripts included.
///
/// # Errors
/// What the server said; a history that cannot be read.
pub async fn validate(
    ctx: &Context,
    target: &Target,
    scripts: &Scripts,
) -> Result<Vec<Finding>, Error> {
    Ok(validation(ctx, target, scripts).await?.findings)
}

/// What `validate` found, and how much it looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Validation {
    pub findings: Vec<Finding>,
    /// Migrations that were compared.
    pub count: usize,
}

/// [`validate`], with the number of migrations.
///
/// # Errors
/// As [`validate`].
pub async fn validation(
    ctx: &Context,
    target: &Target,
    scripts: &Scripts,
) -> Result<Validation, Error> {
    let names = DatabaseName::live(&target.database);
    let opened = Opened::open(ctx, target, &names, scripts).await?;
    opened.fire("beforeValidate").await?;
    let found = compare(&opened).await;
    match &found {
        Ok(found) if found.findings.is_empty() => opened.fire("afterValidate").await?,
        Ok(_) | Err(_) => opened.fire_after_error("afterValidateError").await,
    }
    opened.close(found.is_ok()).await;
    found
}

async fn compare(opened: &Opened<'_>) -> Result<Validation, Error> {
    let (rows, runner) = opened.place.rows_and_runner().await?;
    let rows = rows.unwrap_or_default();
    let missing = missing_schemas(&opened.place).await?;
    if missing.contains(&opened.place.table.schema) {
        let finding = Finding::of_missing_schema(&opened.place.table.schema);
        return Ok(Validation { findings: vec![finding], count: 0 });
    }
    let mut findings = all_findings(opened.ctx, &opened.scripts, &rows, &[])?;
    if let Some(runner) = &runner {
        findings.iter_mut().for_each(|finding| finding.say_it_is_running(runner));
    }
    let rules = Rules { cherry_pick: Vec::new(), ..rules(opened.ctx, &Options::default())? };
    let count = plan(&opened.scripts, &rows, &rules)?.entries.len();
    Ok(Validation { findings, count })
}

impl Info {
    /// Leaves out what the filter does not ask for.
    ///
    /// # Errors
    /// A version, date or state that cannot be read.
    pub fn filtered(mut self, filter: &InfoFilter) -> Result<Self, Error> {
        let version = |key: &str, text: &Option<String>| {
            text.as_deref()
                .map(Version::parse)
                .transpose()
                .map_err(|error| Error::Setting { key: key.to_owned(), reason: error.to_string() })
        };
        let since = version("since-version", &filter.since_version)?;
        let until = version("until-version", &filter.until_version)?;
        let since_date = date("since-date", filter.since_date.as_deref())?;
        let until_date = date("until-date", filter.until_date.as_deref())?;
        let states = states(&filter.of_state)?;
        self.migrations.retain(|row| {
            let own = row.version.as_deref().and_then(|text| Version::parse(text).ok());
            let when = row.installed_on.as_deref().and_then(|text| text.parse().ok());
            let in_versions = (since.is_none() || own >= since)
                && until.as_ref().is_none_or(|until| own.as_ref().is_some_and(|own| own <= until));
            let in_dates = (since_date.is_none() || when >= since_date)
                && until_date.is_none_or(|until| when.is_some_and(|when| when <= until));
            in_versions && in_dates && (states.is_empty() || states.contains(&row.state))
        });
        Ok(self)
    }
}

fn date(key: &str, text: Option<&str>) -> Result<Option<jiff::civil::DateTime>, Error> {
    let Some(text) = text else { return Ok(None) };
    let flyways = ["%d/%m/%Y %H:%M", "%d/%m/%Y"];
    let day = |text: &str| text.parse::<jiff::civil::Date>().ok().map(|day| day.at(0, 0, 0, 0));
    let parsed = text
        .parse::<jiff::civil::DateTime>()
        .ok()
        .or_else(|| day(text))
        .or_else(|| jiff::civil::DateTime::strptime(flyways[0], text).ok())
        .or_else(|| {
            let date = jiff::civil::Date::strptime(flyways[1], text).ok();
            date.map(|day| day.at(0, 0, 0, 0))
        });
    parsed.map(Some).ok_or_else(|| Error::Setting {
        key: key.to_owned(),
        reason: format!("`{text}` is no date, as 2026-11-23 or 23/11/2026 12:00"),
    })
}

fn states(names: &[String]) -> Result<Vec<&'static str>, Error> {
    let fold = |text: &str| -> String {
        let kept = text.chars().filter(|c| c.is_alphanumeric());
        kept.map(|c| c.to_ascii_lowercase()).collect()
    };
    let known = || State::ALL.iter().map(|state| state.name()).chain(["Available"]);
    names
        .iter()
        .map(|name| {
            known().find(|state| fold(state) == fold(name)).ok_or_else(|| Error::Setting {
                key: "of-state".to_owned(),
                reason: format!(
                    "`{name}` is no state; states are {}",
                    known().collect::<Vec<_>>().join(", ")
                ),
            })
        })
        .collect()
}

fn info_row(entry: &Entry<'_>, scripts: &Scripts) -> InfoRow {
    let (row, script) = (entry.row, entry.script);
    let kind = match (row, script) {
        (Some(row), _) => row.kind.clone(),
        (None, Some(script)) => script.type_name().to_owned(),
        (None, None) => String::new(),
    };
    let is_undo = kind.starts_with("UNDO_");
    let undo = scripts
        .undo
        .iter()
        .find(|undo| !is_undo && entry.version.is_some() && undo.version == entry.version);
    InfoRow {
        category: category(entry, &kind),
        version: entry.version.as_ref().map(|version| version.text().to_owned()),
        raw_version: match (script, row) {
            (Some(script), _) if script.version.is_some() => Some(script.raw_version.clone()),
            (_, Some(row)) => row.version.clone(),
            (_, None) => None,
        },
        description: entry.description().to_owned(),
        kind,
        state: entry.state.name(),
        installed_on: row.map(|row| row.installed_on.clone()),
        installed_by: row.map(|row| row.installed_by.clone()),
        execution_ms: row.map(|row| row.execution_time),
        path: script.map(|script| script.path.to_string()),
        undoable: undo.is_some(),
        undo_path: undo.map(|script| script.path.to_string()),
    }
}

fn category(entry: &Entry<'_>, kind: &str) -> &'static str {
    match kind {
        "SCHEMA" | "BASELINE" | "DELETE" => "",
        _ if kind.starts_with("UNDO_") => "Undo",
        _ if kind.ends_with("_BASELINE") => "Baseline",
        _ if entry.version.is_some() => "Versioned",
        _ => "Repeatable",
    }
}

/// Undo scripts as Flyway's paid editions list them.
fn available_undo(scripts: &Scripts) -> impl Iterator<Item = InfoRow> {
    scripts.undo.iter().map(|script| InfoRow {
        category: "Undo",
        version: script.version.as_ref().map(|version| version.text().to_owned()),
        raw_version: Some(script.raw_version.clone()),
        description: script.description.clone(),
        kind: script.type_name().to_owned(),
        state: "Available",
        installed_on: None,
        installed_by: None,
        execution_ms: None,
        path: Some(script.path.to_string()),
        undoable: false,
        undo_path: None,
    })
}
