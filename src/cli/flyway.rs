//! Flyway's verbs: what they print, and JSON with Flyway's field names inside our envelope.

use serde_json::{Value, json};

use super::args;
use super::{Outcome, show};
use crate::context::Context;
use crate::error::{Error, Exit};
use crate::migrate::{self, Scripts};
use crate::pg::Target;
use crate::pg::names::DatabaseName;
use crate::snapshot::find;
use crate::store::Store;
use crate::{connect, database, guard, lock};

async fn target_and_scripts(ctx: &Context) -> Result<(Target, Scripts), Error> {
    let target = connect::database(ctx).await?;
    let names = DatabaseName::live(&target.database);
    let scripts = migrate::resolve(ctx, &names, &target.user)?;
    Ok((target, scripts))
}

pub(super) async fn migrate(ctx: &Context, options: &args::Migrate) -> Result<Outcome, Error> {
    let (target, scripts) = target_and_scripts(ctx).await?;
    let names = DatabaseName::live(&target.database);
    let for_run = migrate::Options::default();
    let output = ctx.config.migrate.dry_run_output.as_deref();
    if options.dry_run || output.is_some() {
        let plan = migrate::dry_run(ctx, &target, &scripts, &for_run).await?;
        if let Some(path) = output {
            super::run::write_file(path, &format!("{}\n", show::dry_run(&plan)))?;
        }
        return Outcome::done(show::dry_run(&plan), &plan);
    }
    if ctx.config.protected {
        let plan = migrate::dry_run(ctx, &target, &scripts, &for_run).await?;
        guard::deploy(ctx, &target, "migrate", &show::planned(&plan))?;
    }
    let ran = migrate::run_or_halt(ctx, &target, &names, &scripts, &for_run).await;
    let (outcome, error) = match ran {
        Ok(outcome) => (outcome, None),
        Err(halted) => (halted.outcome, Some(halted.error)),
    };
    let migrations: Vec<Value> = outcome
        .applied
        .iter()
        .map(|ran| {
            json!({
                "category": ran.category,
                "version": ran.version.as_deref().unwrap_or(""),
                "description": ran.description,
                "type": ran.kind,
                "filepath": ran.path,
                "executionTime": ran.elapsed_ms,
            })
        })
        .collect();
    let newest = outcome.applied.iter().rev().find_map(|ran| ran.version.as_deref());
    let document = json!({
        "initialSchemaVersion": outcome.before,
        "targetSchemaVersion": newest,
        "schemaName": ctx.config.migrate.schemas.join(", "),
        "migrationsExecuted": migrations.len(),
        "migrations": migrations,
        "success": error.is_none(),
        "database": target.database,
        "databaseType": "PostgreSQL",
        "schemaVersion": outcome.after,
        "warnings": outcome.warnings,
        "operation": "migrate",
    });
    match error {
        None => Outcome::done(show::migrated(&outcome), document),
        Some(error) => Outcome::failed(document, error.into()),
    }
}

pub(super) async fn info(ctx: &Context, options: &args::Info) -> Result<Outcome, Error> {
    let (target, scripts) = target_and_scripts(ctx).await?;
    let filter = migrate::InfoFilter {
        since_version: options.since_version.clone(),
        until_version: options.until_version.clone(),
        since_date: options.since_date.clone(),
        until_date: options.until_date.clone(),
        of_state: options.of_state.clone(),
    };
    let info = migrate::info(ctx, &target, &scripts).await?.filtered(&filter)?;
    let migrations: Vec<Value> = info
        .migrations
        .iter()
        .map(|row| {
            let undoable = match (row.category, row.undoable) {
                // Whether a marker of created schemas or a repeatable can be undone is no question.
                ("Repeatable" | "Undo", _) => "",
                _ if row.version.is_none() => "",
                (_, true) => "Yes",
                (_, false) => "No",
            };
            json!({
                "category": row.category,
                "version": row.version.as_deref().unwrap_or(""),
                "rawVersion": row.raw_version.as_deref().unwrap_or(""),
                "description": row.description,
                "type": row.kind,
                "installedOnUTC": row.installed_on.as_deref().map_or_else(String::new, in_utc),
                "state": row.state,
                "undoable": undoable,
                "filepath": row.path.as_deref().unwrap_or(""),
                "undoFilepath": row.undo_path.as_deref().unwrap_or(""),
                "installedBy": row.installed_by.as_deref().unwrap_or(""),
                "executionTime": row.execution_ms.unwrap_or(0),
                "shouldExecuteExpression": null,
            })
        })
        .collect();
    let warnings = [&scripts.warnings[..], &info.warnings].concat();
    let document = json!({
        "schemaVersion": info.schema_version,
        "schemaName": ctx.config.migrate.schemas.join(", "),
        "migrations": migrations,
        "allSchemasEmpty": info.all_schemas_empty,
        "database": target.database,
        "warnings": warnings,
        "operation": "info",
    });
    let text = if options.migration_ids {
        let ids = info.migrations.iter().map(|row| match &row.version {
            Some(version) => version.clone(),
            None => row.description.clone(),
        });
        ids.collect::<Vec<_>>().join(",")
    } else {
        show::info(&info)
    };
    Outcome::done(text, document)
}

/// The history's local time as Flyway's JSON has it.
fn in_utc(local: &str) -> String {
    let parsed = local.parse::<jiff::civil::DateTime>().ok();
    let zoned = parsed.and_then(|time| time.to_zoned(jiff::tz::TimeZone::system()).ok());
    zoned.map_or_else(
        || local.to_owned(),
        |zoned| zoned.timestamp().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}

pub(super) async fn validate(ctx: &Context) -> Result<Outcome, Error> {
    let (target, scripts) = target_and_scripts(ctx).await?;
    let validation = migrate::validation(ctx, &target, &scripts).await?;
    let findings = &validation.findings;
    let no_schema = findings.iter().find(|finding| finding.code == "SCHEMA_DOES_NOT_EXIST");
    let invalid: Vec<Value> = findings
        .iter()
        .filter(|finding| no_schema.is_none_or(|other| other != *finding))
        .map(|finding| {
            json!({
                "version": finding.version.as_deref().unwrap_or(""),
                "description": finding.description,
                "filepath": finding.path.as_deref().unwrap_or(""),
                "errorDetails": { "errorCode": finding.code, "errorMessage": finding.message },
            })
        })
        .collect();
    let messages: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
    let is_valid = findings.is_empty();
    let details = match (is_valid, no_schema) {
        (true, _) => Value::Null,
        (false, Some(finding)) => {
            json!({ "errorCode": finding.code, "errorMessage": finding.message })
        }
        (false, None) => json!({
            "errorCode": "VALIDATE_ERROR",
            "errorMessage": "the history does not match the files",
        }),
    };
    let document = json!({
        "errorDetails": details,
        "invalidMigrations": invalid,
        "validationSuccessful": is_valid,
        "validateCount": if is_valid { validation.count } else { 0 },
        "allErrorMessages": messages.join("\n"),
        "database": target.database,
        "warnings": scripts.warnings,
        "operation": "validate",
    });
    let mut outcome = Outcome::done(show::findings(findings), document)?;
    if !is_valid {
        outcome.exit = Exit::History as u8;
    }
    Ok(outcome)
}

pub(super) async fn validate_against(ctx: &Context, revision: &str) -> Result<Outcome, Error> {
    let names = DatabaseName::live(&ctx.config.database.name);
    let scripts = migrate::resolve(ctx, &names, &ctx.config.database.user)?;
    let against = migrate::against(ctx, &scripts, revision).await?;
    let text = match against.findings.as_slice() {
        [] => format!("the scripts fit those of `{revision}`"),
        found => found
            .iter()
            .map(|finding| format!("{}: {}", finding.code, finding.message))
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let mut outcome = Outcome::done(text, &against)?;
    if !against.findings.is_empty() {
        outcome.exit = Exit::History as u8;
    }
    Ok(outcome)
}

pub(super) async fn repair(ctx: &Context, options: &args::Repair) -> Result<Outcome, Error> {
    let (target, scripts) = target_and_scripts(ctx).await?;
    if options.dry_run {
        let plan = repair_plan(ctx, &target, &scripts, options).await?;
        return Outcome::done(show::lines(&plan.describe()), repaired(&plan, &target));
    }
    if ctx.config.protected {
        let plan = repair_plan(ctx, &target, &scripts, options).await?;
        guard::deploy(ctx, &target, "repair", &plan.describe())?;
    }
    let upgraded = match options.upgrade_history {
        true => migrate::upgrade_history(ctx, &target, migrate::Act::Do).await?,
        false => None,
    };
    let mut done = migrate::repair(ctx, &target, &scripts, migrate::Act::Do).await?;
    done.upgraded = upgraded;
    Outcome::done(show::lines(&done.describe()), repaired(&done, &target))
}

/// What would be done. A table that is to be taken over first is compared after that.
async fn repair_plan(
    ctx: &Context,
    target: &Target,
    scripts: &Scripts,
    options: &args::Repair,
) -> Result<migrate::Repaired, Error> {
    if options.upgrade_history {
        let upgraded = migrate::upgrade_history(ctx, target, migrate::Act::Plan).await?;
        if upgraded.is_some() {
            return Ok(migrate::Repaired { upgraded, ..migrate::Repaired::default() });
        }
    }
    Ok(migrate::repair(ctx, target, scripts, migrate::Act::Plan).await?)
}

fn repaired(done: &migrate::Repaired, target: &Target) -> Value {
    let list = |touched: &[migrate::Touched]| -> Vec<Value> {
        touched
            .iter()
            .map(|one| {
                json!({
                    "version": one.version.as_deref().unwrap_or(""),
                    "description": one.description,
                    "filepath": one.path.as_deref().unwrap_or(""),
                })
            })
            .collect()
    };
    let actions = [
        (!done.removed.is_empty(), "Removed failed migrations"),
        (!done.deleted.is_empty(), "Marked missing migrations as deleted"),
        (!done.aligned.is_empty(), "Aligned applied migration checksums"),
    ];
    let actions: Vec<&str> =
        actions.iter().filter(|(is_done, _)| *is_done).map(|(_, text)| *text).collect();
    json!({
        "repairActions": actions,
        "migrationsRemoved": list(&done.removed),
        "migrationsDeleted": list(&done.deleted),
        "migrationsAligned": list(&done.aligned),
        "historyUpgraded": done.upgraded,
        "database": target.database,
        "operation": "repair",
    })
}

pub(super) async fn baseline(ctx: &Context) -> Result<Outcome, Error> {
    let (target, scripts) = target_and_scripts(ctx).await?;
    let version = &ctx.config.migrate.baseline_version;
    guard::deploy(ctx, &target, "baseline", &[format!("baseline at version {version}")])?;
    let done = migrate::baseline(ctx, &target, &scripts).await?;
    let text = match done.is_new {
        true => format!("baseline at version {}: scripts up to it count as applied", done.version),
        false => format!("baseline at version {} was there already", done.version),
    };
    let document = json!({
        "successfullyBaselined": true,
        "baselineVersion": done.version,
        "database": target.database,
        "operation": "baseline",
    });
    Outcome::done(text, document)
}

/// `clean` replaces: it is refused wherever a database must not be replaced.
pub(super) async fn clean(ctx: &Context) -> Result<Outcome, Error> {
    guard::replace_in_environment(ctx, "clean")?;
    let (target, scripts) = target_and_scripts(ctx).await?;
    if ctx.config.migrate.clean_disabled {
        return Err(migrate::Error::CleanDisabled.into());
    }
    let _lock = lock::project(&ctx.state_dir(), "clean")?;
    let server = connect::reach(ctx).await?.server;
    let session = connect::session(&target).await?;
    // Asked last: who may not replace here at all is told that first.
    let ours = database::replaceable(&session, &target.database).await;
    if !server.is_some_and(|server| server.started_by_us) {
        let sql = "select system_identifier::text from pg_catalog.pg_control_system()";
        // An account that may not ask is refused by the guard.
        let row = session.query_one(sql, &[]).await;
        let identifier: String = row.map_or_else(|_| String::new(), |row| row.get(0));
        let store = Store::open(ctx).await?;
        let listing = find::listing(ctx, &store).await?;
        let sources = find::sources_matching(ctx, &store, &listing, &identifier).await?;
        guard::replace_at(ctx, &target, &identifier, &sources, "clean").await?;
    }
    ours?;
    session.close().await;
    let done = migrate::clean(ctx, &target, &scripts).await?;
    let lines: Vec<String> = done
        .schemas
        .iter()
        .map(|schema| format!("cleaned the schema `{schema}`"))
        .chain(done.dropped.iter().map(|schema| format!("dropped the schema `{schema}`")))
        .collect();
    let document = json!({
        "schemasCleaned": done.schemas,
        "schemasDropped": done.dropped,
        "database": target.database,
        "operation": "clean",
    });
    Outcome::done(show::lines(&lines), document)
}

pub(super) async fn undo(ctx: &Context, options: &args::Undo) -> Result<Outcome, Error> {
    let (target, scripts) = target_and_scripts(ctx).await?;
    let for_run = migrate::Options::default();
    if options.dry_run || ctx.config.protected {
        let plan = migrate::undo_plan(ctx, &target, &scripts, &for_run).await?;
        if options.dry_run {
            return Outcome::done(show::lines(&plan), json!({ "plan": plan }));
        }
        guard::deploy(ctx, &target, "undo", &plan)?;
    }
    let done = migrate::undo(ctx, &target, &scripts, &for_run).await?;
    let migrations: Vec<Value> = done
        .undone
        .iter()
        .map(|ran| {
            json!({
                "category": "Undo",
                "version": ran.version.as_deref().unwrap_or(""),
                "description": ran.description,
                "type": ran.kind,
                "filepath": ran.path,
                "executionTime": ran.elapsed_ms,
            })
        })
        .collect();
    let document = json!({
        "initialSchemaVersion": done.before,
        "targetSchemaVersion": done.after,
        "schemaName": ctx.config.migrate.schemas.join(", "),
        "undoneMigrations": migrations,
        "migrationsUndone": migrations.len(),
        "database": target.database,
        "operation": "undo",
    });
    Outcome::done(show::undone(&done), document)
}
