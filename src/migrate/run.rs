//! `migrate`: validates, makes the history where there is none, runs what is pending.

use std::borrow::Cow;

use serde::Serialize;

use super::Error;
use super::apply::{Applied, Prepared, Run, Work, apply, prepare};
use super::callbacks::{fire, fire_after_error};
use super::history::HistoryRow;
use super::place::Place;
use super::plan::{Plan, Rules, State, Target as UpTo, plan};
use super::program;
use super::resolve::Scripts;
use super::schemas::Preparation;
use super::script::{Language, Script};
use super::validate::{Finding, Pattern, findings};
use super::version::Version;
use crate::context::Context;
use crate::pg::Target;
use crate::pg::names::DatabaseName;

/// What one call asks for beyond the configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Instead of `flyway.target`: a version, `latest`, `current` or `next`, `?` allowed after it.
    pub target: Option<String>,
}

/// What `migrate` did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// The default schema.
    pub schema: String,
    /// Version before and after; `None`: none.
    pub before: Option<String>,
    pub after: Option<String>,
    /// In order.
    pub applied: Vec<Ran>,
    pub warnings: Vec<String>,
}

/// A `migrate` that failed on its way.
#[derive(Debug)]
pub struct Halted {
    pub error: Error,
    /// What it did before.
    pub outcome: Outcome,
}

/// One script that ran.
#[derive(Debug, Clone, Serialize)]
pub struct Ran {
    pub version: Option<String>,
    pub description: String,
    pub script: String,
    /// `SQL`, `SQL_BASELINE`.
    pub kind: &'static str,
    pub elapsed_ms: u64,
    #[serde(skip)]
    pub category: &'static str,
    #[serde(skip)]
    pub path: String,
}

/// Brings the database to where the scripts are.
///
/// # Errors
/// A history that does not match the files (nothing was done), a script that failed, the lock.
pub async fn run(
    ctx: &Context,
    target: &Target,
    names: &DatabaseName,
    scripts: &Scripts,
    options: &Options,
) -> Result<Outcome, Error> {
    run_or_halt(ctx, target, names, scripts, options).await.map_err(|halted| halted.error)
}

/// [`run`], which tells of a failure also what was applied before it.
///
/// # Errors
/// As [`run`].
pub async fn run_or_halt(
    ctx: &Context,
    target: &Target,
    names: &DatabaseName,
    scripts: &Scripts,
    options: &Options,
) -> Result<Outcome, Box<Halted>> {
    let mut outcome = Outcome { warnings: scripts.warnings.clone(), ..Outcome::default() };
    let result = async {
        let rules = rules(ctx, options)?;
        let mut opened = Opened::open(ctx, target, names, scripts).await?;
        opened.place.default_schema().clone_into(&mut outcome.schema);
        let result = migrate(&mut opened, &rules, &mut outcome).await;
        opened.close(result.is_ok()).await;
        result
    };
    match result.await {
        Ok(()) => Ok(outcome),
        Err(error) => Err(Box::new(Halted { error, outcome })),
    }
}

/// A session with everything that a verb needs on it.
pub(super) struct Opened<'a> {
    pub ctx: &'a Context,
    pub target: &'a Target,
    pub names: &'a DatabaseName,
    pub scripts: Cow<'a, Scripts>,
    pub place: Place,
}

impl<'a> Opened<'a> {
    /// Connects, with the callbacks around it.
    pub(super) async fn open(
        ctx: &'a Context,
        target: &'a Target,
        names: &'a DatabaseName,
        scripts: &'a Scripts,
    ) -> Result<Self, Error> {
        let run = Run { ctx, target, names, scripts, step: None };
        for script in scripts.callbacks_of("beforeConnect") {
            // Without a connection there is nothing to run SQL on; Flyway passes over it as well.
            if script.language == Language::Program {
                program::run(&run, script).await?;
            }
        }
        let place = Place::open(ctx, target).await?;
        let scripts = for_schema(scripts, place.default_schema())?;
        let opened = Self { ctx, target, names, scripts, place };
        fire(&opened.run(), &opened.place, "afterConnect").await?;
        Ok(opened)
    }

    pub(super) fn run(&self) -> Run<'_> {
        Run {
            ctx: self.ctx,
            target: self.target,
            names: self.names,
            scripts: &self.scripts,
            step: None,
        }
    }

    pub(super) async fn fire(&self, event: &'static str) -> Result<(), Error> {
        fire(&self.run(), &self.place, event).await
    }

    pub(super) async fn fire_after_error(&self, event: &'static str) {
        fire_after_error(&self.run(), &self.place, &[event]).await;
    }

    /// The history's rows; none when there is no table.
    pub(super) async fn rows(&self) -> Result<Vec<HistoryRow>, Error> {
        Ok(self.place.rows().await?.unwrap_or_default())
    }

    pub(super) async fn close(self, went_well: bool) {
        if went_well || !self.ctx.cancel.is_cancelled() {
            self.place.session.close().await;
        }
    }
}

async fn migrate(
    opened: &mut Opened<'_>,
    rules: &Rules,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let ctx = opened.ctx;
    let config = &ctx.config.migrate;
    let rows = opened.place.rows_at_rest(ctx).await?;
    let has_table = rows.is_some();
    let mut rows = rows.unwrap_or_default();
    if config.validate_on_migrate {
        opened.fire("beforeValidate").await?;
        if let Err(error) = check(ctx, &opened.scripts, &rows, &[Pattern::ANY_PENDING]) {
            opened.fire_after_error("afterValidateError").await;
            return Err(error);
        }
        opened.fire("afterValidate").await?;
    }
    opened.fire("createSchema").await?;
    opened.fire("beforeCreateSchema").await?;
    if !has_table {
        make_history(ctx, &opened.place).await?;
        rows = opened.place.table.rows_after(&opened.place.session, None).await?;
    }
    check_target(&opened.scripts, &rows, &rules.target)?;
    let result = migrate_with_history(opened, rules, rows, outcome).await;
    if result.is_err() {
        opened.fire_after_error("afterMigrateError").await;
    }
    result
}

async fn migrate_with_history(
    opened: &mut Opened<'_>,
    rules: &Rules,
    mut rows: Vec<HistoryRow>,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    opened.fire("beforeMigrate").await?;
    let Opened { ctx, target, names, scripts, place } = opened;
    let first = plan(scripts, &rows, rules)?;
    refuse_failed(&first, ctx)?;
    outcome.set_versions(first.current.as_ref());
    let mut is_over = first.pending.is_empty();
    let mut runner = Runner { ctx, target, names, scripts, versioned_ended: false, outcome };
    while !is_over {
        // Others may have migrated since: what counts is read under the lock.
        place.lock(ctx).await?;
        let last_rank = rows.last().map(|row| row.installed_rank);
        rows.extend(place.table.rows_after(&place.session, last_rank).await?);
        let now = plan(scripts, &rows, rules)?;
        refuse_failed(&now, ctx)?;
        // What others did while this one waited for the lock is nothing that it did.
        runner.outcome.set_versions(now.current.as_ref());
        let next_rank = rows.last().map_or(1, |row| row.installed_rank + 1);
        is_over = runner.run_all(place, &now.pending, next_rank).await?;
        place.unlock().await?;
    }
    let versioned_ended = runner.versioned_ended;
    if !versioned_ended {
        opened.fire("afterVersioned").await?;
    }
    if !outcome.applied.is_empty() {
        opened.fire("afterMigrateApplied").await?;
    }
    opened.fire("afterMigrate").await
}

impl Outcome {
    /// `current`: the highest version now. It is the one before until something was applied.
    fn set_versions(&mut self, current: Option<&Version>) {
        self.after = current.map(|version| version.text().to_owned());
        if self.applied.is_empty() {
            self.before.clone_from(&self.after);
        }
    }

    fn add(&mut self, ran: Ran) {
        let parsed = |text: &Option<String>| Version::parse(text.as_deref()?).ok();
        if parsed(&ran.version) > parsed(&self.after) {
            self.after.clone_from(&ran.version);
        }
        self.applied.push(ran);
    }
}

/// Runs pending scripts under the lock.
struct Runner<'a> {
    ctx: &'a Context,
    target: &'a Target,
    names: &'a DatabaseName,
    scripts: &'a Scripts,
    /// `afterVersioned` was fired.
    versioned_ended: bool,
    outcome: &'a mut Outcome,
}

impl Runner<'_> {
    /// Runs `pending`. `false`: the lock was given back in between, and there may be more to do.
    async fn run_all(
        &mut self,
        place: &mut Place,
        pending: &[&Script],
        first_rank: i32,
    ) -> Result<bool, Error> {
        // Every script is read before the first one runs: a placeholder without a value in the last
        // one must not leave half of them applied.
        let prepared = pending
            .iter()
            .map(|script| prepare(self.ctx, self.scripts, script, place.server_version))
            .collect::<Result<Vec<_>, _>>()?;
        let size = if self.ctx.config.migrate.group { prepared.len().max(1) } else { 1 };
        refuse_mixed_group(self.ctx, &prepared, size)?;
        let mut rank = first_rank;
        for batch in prepared.chunks(size) {
            if self.ctx.cancel.is_cancelled() {
                return Err(Error::Interrupted);
            }
            self.end_versioned(place, batch).await?;
            let is_done = self.run_batch(place, batch, rank).await?;
            rank += i32::try_from(batch.len()).unwrap_or(i32::MAX);
            if !is_done || batch.iter().any(|prepared| prepared.drops_locks) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The events between versioned and repeatable scripts.
    async fn end_versioned(&mut self, place: &Place, batch: &[Prepared<'_>]) -> Result<(), Error> {
        let is_repeatable = |prepared: &Prepared<'_>| prepared.script.version.is_none();
        if self.versioned_ended || !batch.iter().any(is_repeatable) {
            return Ok(());
        }
        let run = self.run(None);
        if batch.iter().all(is_repeatable) {
            fire(&run, place, "afterVersioned").await?;
            fire(&run, place, "beforeRepeatables").await?;
            self.versioned_ended = true;
        } else {
            fire(&run, place, "beforeRepeatables").await?;
        }
        Ok(())
    }

    /// `false`: others were faster, and nothing of it ran.
    async fn run_batch(
        &mut self,
        place: &mut Place,
        batch: &[Prepared<'_>],
        first_rank: i32,
    ) -> Result<bool, Error> {
        let step = self.ctx.report.step(step_name(batch));
        let statements = batch.iter().map(|prepared| prepared.statements).sum();
        let works: Vec<Work<'_>> = batch
            .iter()
            .zip(first_rank..)
            .map(|(prepared, rank)| Work { prepared, rank, undoes: None })
            .collect();
        let run = self.run(Some((&step, statements)));
        let Applied::Times(times) = apply(&run, place, &works).await? else {
            step.done("overtaken");
            return Ok(false);
        };
        step.done("");
        for (prepared, time) in batch.iter().zip(times) {
            self.outcome.add(ran(prepared.script, time));
        }
        Ok(true)
    }

    fn run<'s>(&'s self, step: Option<(&'s crate::report::Step, usize)>) -> Run<'s> {
        Run { ctx: self.ctx, target: self.target, names: self.names, scripts: self.scripts, step }
    }
}

/// What the call and the configuration ask for.
pub(super) fn rules(ctx: &Context, options: &Options) -> Result<Rules, Error> {
    let config = &ctx.config.migrate;
    let text = options.target.as_deref().or(config.target.as_deref());
    Ok(Rules {
        out_of_order: config.out_of_order,
        target: UpTo::parse(text.unwrap_or("latest"))?,
        cherry_pick: config.cherry_pick.clone(),
    })
}

/// The scripts with the values for this schema.
pub(super) fn for_schema<'a>(
    scripts: &'a Scripts,
    schema: &str,
) -> Result<Cow<'a, Scripts>, Error> {
    if scripts.default_schema() == schema {
        return Ok(Cow::Borrowed(scripts));
    }
    let mut scripts = scripts.clone();
    scripts.set_default_schema(schema)?;
    Ok(Cow::Owned(scripts))
}

/// Refuses to go on where files and history do not fit.
pub(super) fn check(
    ctx: &Context,
    scripts: &Scripts,
    rows: &[HistoryRow],
    more: &[Pattern],
) -> Result<(), Error> {
    let found = all_findings(ctx, scripts, rows, more)?;
    if found.is_empty() { Ok(()) } else { Err(Error::Invalid(found)) }
}

pub(super) fn all_findings(
    ctx: &Context,
    scripts: &Scripts,
    rows: &[HistoryRow],
    more: &[Pattern],
) -> Result<Vec<Finding>, Error> {
    let config = &ctx.config.migrate;
    let mut patterns = Pattern::parse_all(&config.ignore_migration_patterns)?;
    patterns.extend(more);
    let rules = Rules { cherry_pick: Vec::new(), ..rules(ctx, &Options::default())? };
    Ok(findings(&plan(scripts, rows, &rules)?, &patterns))
}

/// A version that was asked for is there as a file or a row.
pub(super) fn check_target(
    scripts: &Scripts,
    rows: &[HistoryRow],
    up_to: &UpTo,
) -> Result<(), Error> {
    let UpTo::Version { version, must_exist: true } = up_to else { return Ok(()) };
    let has_file = scripts.iter().any(|script| script.version.as_ref() == Some(version));
    let has_row = rows
        .iter()
        .filter_map(|row| row.version.as_deref())
        .any(|text| Version::parse(text).is_ok_and(|row| row == *version));
    if has_file || has_row {
        return Ok(());
    }
    Err(Error::NoSuchTarget { version: version.text().to_owned() })
}

pub(super) fn refuse_failed(plan: &Plan<'_>, ctx: &Context) -> Result<(), Error> {
    let patterns = Pattern::parse_all(&ctx.config.migrate.ignore_migration_patterns)?;
    let failed = plan.entries.iter().filter(|entry| entry.state.is_failed());
    let blocking: Vec<_> = failed
        .filter(|entry| {
            entry.state != State::FutureFailed
                || !patterns.iter().any(|pattern| pattern.covers_future(entry.version.is_some()))
        })
        .collect();
    match blocking.first() {
        None => Ok(()),
        Some(entry) => Err(Error::HalfDone {
            script: entry.row.map_or_else(String::new, |row| row.script.clone()),
        }),
    }
}

fn refuse_mixed_group(ctx: &Context, prepared: &[Prepared<'_>], size: usize) -> Result<(), Error> {
    let config = &ctx.config.migrate;
    if size < 2 || config.mixed || config.skip_executing_migrations {
        return Ok(());
    }
    let alone = prepared.iter().find(|prepared| !prepared.in_transaction);
    let shared = prepared.iter().any(|prepared| prepared.in_transaction);
    match alone {
        Some(alone) if shared => Err(Error::MixedGroup { path: alone.script.path.clone() }),
        Some(_) | None => Ok(()),
    }
}

fn step_name(batch: &[Prepared<'_>]) -> String {
    match batch {
        [one] => format!("migrate `{}`", one.script.script),
        _ => format!("migrate {} scripts as one", batch.len()),
    }
}

pub(super) fn ran(script: &Script, time: i32) -> Ran {
    Ran {
        version: script.version.as_ref().map(|version| version.text().to_owned()),
        description: script.description.clone(),
        script: script.script.clone(),
        kind: script.type_name(),
        elapsed_ms: u64::try_from(time).unwrap_or(0),
        category: script.category(),
        path: script.path.to_string(),
    }
}

/// Makes schemas and table where they are not there.
async fn make_history(ctx: &Context, place: &Place) -> Result<(), Error> {
    place.lock(ctx).await?;
    // Another runner may have made it while this one waited.
    if !place.table.exists(&place.session).await? {
        Preparation::of_migrate(ctx, place).await?.make(ctx, place).await?;
    }
    place.unlock().await
}
