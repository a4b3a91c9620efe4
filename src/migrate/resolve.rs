//! The project's scripts: found, named, read, checked against each other.

use std::collections::HashSet;

use camino::{Utf8Path, Utf8PathBuf};

use super::Error;
use super::discover::{self, Found};
use super::file_name::{InvalidName, Kind, Naming, ending};
use super::placeholders::{Own, Placeholders};
use super::script::{Language, Named, Script, ScriptSettings};
use crate::config::MigrateConfig;
use crate::context::Context;
use crate::pg::names::DatabaseName;

/// Every script of the project, in the order in which it would run on an empty database.
#[derive(Debug, Clone)]
pub struct Scripts {
    /// Versioned ones, ascending.
    pub versioned: Vec<Script>,
    /// Repeatable ones by description.
    pub repeatable: Vec<Script>,
    /// Baseline ones, ascending.
    pub baseline: Vec<Script>,
    /// Undo ones, ascending.
    pub undo: Vec<Script>,
    /// Callbacks by event and description.
    pub callbacks: Vec<Script>,
    /// Files that look like scripts and are not named like one.
    pub ignored: Vec<InvalidName>,
    pub warnings: Vec<String>,
    pub(super) placeholders: Placeholders,
}

impl Scripts {
    /// Everything of the project's migrations that decides what a run on a new database gives, as name
    /// and value. Whoever adds a setting decides here whether it is one of them.
    pub fn facts(&self, config: &MigrateConfig) -> Vec<(String, String)> {
        let scripts = [&self.versioned, &self.repeatable, &self.baseline, &self.callbacks];
        settings(config).into_iter().chain(texts(&scripts)).collect()
    }

    /// The same without the migrations themselves: what two runs have in common that differ only in
    /// how far they go. Settings of scripts stay, since a history does not tell them.
    pub fn base_facts(&self, config: &MigrateConfig) -> Vec<(String, String)> {
        let scripts = [&self.versioned, &self.repeatable, &self.baseline];
        let own = scripts.into_iter().flatten().filter_map(|script| {
            let settings = &script.settings;
            (*settings != ScriptSettings::default())
                .then(|| (script.script.clone(), format!("{settings:?}")))
        });
        settings(config).into_iter().chain(texts(&[&self.callbacks])).chain(own).collect()
    }
}

fn settings(config: &MigrateConfig) -> Vec<(String, String)> {
    let MigrateConfig {
        table,
        default_schema,
        schemas,
        create_schemas,
        placeholders,
        placeholder_prefix,
        placeholder_suffix,
        placeholder_separator,
        placeholder_replacement,
        out_of_order,
        group,
        mixed,
        execute_in_transaction,
        baseline_on_migrate,
        baseline_version,
        baseline_description,
        ignore_migration_patterns,
        target,
        cherry_pick,
        skip_executing_migrations,
        installed_by,
        init_sql,
        skip_default_callbacks,
        tablespace,
        environment,
        // Which files there are and how they are read shows in the scripts themselves; the rest
        // decides how a run goes, not what it gives.
        locations: _,
        callback_locations: _,
        undo_locations: _,
        sql_migration_prefix: _,
        repeatable_sql_migration_prefix: _,
        baseline_migration_prefix: _,
        undo_sql_migration_prefix: _,
        sql_migration_separator: _,
        sql_migration_suffixes: _,
        encoding: _,
        detect_encoding: _,
        validate_on_migrate: _,
        validate_migration_naming: _,
        transactional_lock: _,
        dry_run_output: _,
        lock_timeout_ms: _,
        lock_retries: _,
        connect_retries: _,
        connect_retries_interval: _,
        lock_retry_count: _,
        fail_on_missing_locations: _,
        clean_disabled: _,
    } = config;
    let settings = [
        ("history", format!("{table:?} {tablespace:?} {installed_by:?}")),
        ("schemas", format!("{default_schema:?} {schemas:?} {create_schemas}")),
        ("placeholders", format!("{placeholders:?} {placeholder_replacement} {environment:?}")),
        (
            "placeholder marks",
            format!("{placeholder_prefix:?} {placeholder_suffix:?} {placeholder_separator:?}"),
        ),
        ("transactions", format!("{group} {mixed} {execute_in_transaction}")),
        (
            "baseline",
            format!("{baseline_on_migrate} {baseline_version:?} {baseline_description:?}"),
        ),
        (
            "chosen",
            format!(
                "{out_of_order} {ignore_migration_patterns:?} {target:?} {cherry_pick:?} \
                     {skip_executing_migrations}"
            ),
        ),
        ("session", format!("{init_sql:?} {skip_default_callbacks}")),
    ];
    settings.map(|(name, value)| (format!("flyway {name}"), value)).into()
}

fn texts(scripts: &[&Vec<Script>]) -> Vec<(String, String)> {
    let fact = |script: &Script| {
        let Script { kind, checksum, settings, text, .. } = script;
        (script.script.clone(), format!("{kind:?} {checksum} {settings:?} {text}"))
    };
    scripts.iter().copied().flatten().map(fact).collect()
}

/// Endings of programs that may stand in for a script; a name without any dot is one as well.
const PROGRAM_SUFFIXES: [&str; 6] = [".sh", ".bash", ".py", ".ps1", ".cmd", ".bat"];

/// Reads the project's scripts. `names` and `user` are what `${flyway:database}` and
/// `${flyway:user}` stand for.
///
/// # Errors
/// What cannot be read or is no text, two scripts with one version or description, a placeholder
/// without a value in a repeatable one; with `validateMigrationNaming` any odd name.
pub fn resolve(ctx: &Context, names: &DatabaseName, user: &str) -> Result<Scripts, Error> {
    let config = &ctx.config.migrate;
    let timestamp = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    let search_path = ctx.config.database.settings.iter().find_map(|(name, value)| {
        (name == "currentSchema" || name == "search_path").then_some(value.as_str())
    });
    let first_of_path = search_path
        .and_then(|path| path.split(',').next())
        .map(|name| name.trim().trim_matches('"'));
    let own = Own {
        default_schema: configured_schema(config).or(first_of_path).unwrap_or("public"),
        user,
        database: &names.final_name,
        timestamp: &timestamp,
        working_directory: ctx.env.current_dir.as_str(),
        table: &config.table,
        environment: &config.environment,
    };
    let scripts = read(config, &Naming::from_config(config), &own)?;
    for warning in &scripts.warnings {
        ctx.report.warn(warning.clone());
    }
    if !scripts.ignored.is_empty() {
        ctx.report.warn(left_out(&scripts.ignored));
        let names: Vec<String> = scripts.ignored.iter().map(ToString::to_string).collect();
        ctx.report.detail(format!("left out by their names: {}", names.join("; ")));
    }
    Ok(scripts)
}

/// A script that nobody runs looks like one that ran: it is never left out in silence.
fn left_out(ignored: &[InvalidName]) -> String {
    /// Enough to see what they have in common.
    const SHOWN: usize = 3;
    let names: Vec<String> =
        ignored.iter().take(SHOWN).map(|one| format!("`{}`", one.name())).collect();
    let mut names = names.join(", ");
    if let Some(more) = ignored.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        names.push_str(&format!(" and {more} more"));
    }
    let what = match ignored.len() {
        1 => "1 script is left out by its name".to_owned(),
        count => format!("{count} scripts are left out by their names"),
    };
    format!("{what}: {names}; `flyway.validateMigrationNaming=true` makes that an error")
}

/// `defaultSchema`, or the first of `schemas`.
pub(super) fn configured_schema(config: &MigrateConfig) -> Option<&str> {
    config.default_schema.as_deref().or(config.schemas.first().map(String::as_str))
}

/// Reads the scripts of `config` by `naming`.
pub(super) fn read(
    config: &MigrateConfig,
    naming: &Naming,
    own: &Own<'_>,
) -> Result<Scripts, Error> {
    let placeholders = placeholders(config, own)?;
    let listing = discover::list(&config.locations);
    let mut warnings = listing.warnings;
    for path in listing.missing {
        if config.fail_on_missing_locations {
            return Err(Error::MissingLocation { path });
        }
        warnings.push(format!("location `{path}` is not there"));
    }
    let undo = discover::list(&config.undo_locations);
    let callbacks = discover::list(&config.callback_locations);
    if let Some(path) = undo.missing.iter().chain(&callbacks.missing).next() {
        return Err(Error::MissingLocation { path: path.clone() });
    }
    warnings.extend(undo.warnings.into_iter().chain(callbacks.warnings));
    let ignored = odd_names(&listing.files, naming);
    if config.validate_migration_naming && !ignored.is_empty() {
        return Err(Error::Names(ignored));
    }
    let mut scripts = Vec::new();
    let mut seen: HashSet<Utf8PathBuf> = HashSet::new();
    let is_undo = |kind: &Kind| *kind == Kind::Undo;
    let is_callback = |kind: &Kind| matches!(kind, Kind::Callback(_));
    let all = listing.files.into_iter().map(|found| (found, None::<&dyn Fn(&Kind) -> bool>));
    let of_undo = undo.files.into_iter().map(|found| (found, Some(&is_undo as _)));
    let of_callbacks = callbacks.files.into_iter().map(|found| (found, Some(&is_callback as _)));
    for (found, only) in all.chain(of_undo).chain(of_callbacks) {
        // Below a location for one kind alone the same files may lie that a location has.
        if only.is_some() && seen.contains(&found.path) {
            continue;
        }
        seen.insert(found.path.clone());
        for named in named(found, naming) {
            if only.is_none_or(|only| only(&named.kind)) {
                scripts.push(Script::read(named, config, &placeholders)?);
            }
        }
    }
    if config.skip_default_callbacks {
        scripts.retain(|script| !is_callback(&script.kind));
    }
    let mut take = |kind: fn(&Kind) -> bool| -> Result<Vec<Script>, Error> {
        let mut taken: Vec<Script> = Vec::new();
        let (of_kind, rest) =
            std::mem::take(&mut scripts).into_iter().partition(|one| kind(&one.kind));
        scripts = rest;
        let mut of_kind: Vec<Script> = of_kind;
        of_kind.sort_by(order);
        for script in of_kind {
            match taken.last() {
                Some(last) if is_same_file(last, &script) => {}
                Some(last) if is_duplicate(last, &script) => {
                    return Err(Error::Duplicate {
                        what: identity(last),
                        code: duplicate_code(&last.kind),
                        first: format!("{} ({})", last.path, last.type_name()),
                        second: format!("{} ({})", script.path, script.type_name()),
                    });
                }
                Some(_) | None => taken.push(script),
            }
        }
        Ok(taken)
    };
    Ok(Scripts {
        versioned: take(|kind| *kind == Kind::Versioned)?,
        repeatable: take(|kind| *kind == Kind::Repeatable)?,
        baseline: take(|kind| *kind == Kind::Baseline)?,
        undo: take(|kind| *kind == Kind::Undo)?,
        callbacks: take(|kind| matches!(kind, Kind::Callback(_)))?,
        ignored,
        warnings,
        placeholders,
    })
}

impl Scripts {
    /// Versioned, then baseline, then repeatable ones.
    pub fn iter(&self) -> impl Iterator<Item = &Script> {
        self.versioned.iter().chain(&self.baseline).chain(&self.repeatable)
    }

    /// The callbacks of `event`, in order.
    pub(super) fn callbacks_of(&self, event: &str) -> impl Iterator<Item = &Script> {
        self.callbacks
            .iter()
            .filter(move |script| matches!(script.kind, Kind::Callback(own) if own == event))
    }

    pub(super) fn has_callbacks(&self, event: &str) -> bool {
        self.callbacks_of(event).next().is_some()
    }

    /// What `${flyway:defaultSchema}` stands for.
    pub(super) fn default_schema(&self) -> &str {
        self.placeholders.default_schema()
    }

    /// Sets what `${flyway:defaultSchema}` stands for, once the server has said it.
    pub(super) fn set_default_schema(&mut self, schema: &str) -> Result<(), Error> {
        self.placeholders.set_default_schema(schema);
        for script in &mut self.repeatable {
            script.renew_checksum(&self.placeholders)?;
        }
        Ok(())
    }
}

fn placeholders(config: &MigrateConfig, own: &Own<'_>) -> Result<Placeholders, Error> {
    let mut placeholders = Placeholders::new(
        &config.placeholder_prefix,
        &config.placeholder_suffix,
        &config.placeholder_separator,
    );
    for (name, value) in &config.placeholders {
        if !placeholders.set(name, value) {
            return Err(Error::Setting {
                key: format!("placeholders.{name}"),
                reason: format!(
                    "names that begin with `flyway{}` are reserved",
                    config.placeholder_separator
                ),
            });
        }
    }
    placeholders.set_own(own);
    Ok(placeholders)
}

/// Files with one of the suffixes whose names are not well-formed.
fn odd_names(files: &[Found], naming: &Naming) -> Vec<InvalidName> {
    files
        .iter()
        .filter_map(|found| found.path.file_name())
        .filter(|name| naming.suffix(name).is_some())
        .filter_map(|name| naming.parse(name).err())
        .collect()
}

/// What a file is taken for: an SQL script, a program, both (which is then a duplicate) or nothing.
pub(super) fn named(found: Found, naming: &Naming) -> Vec<Named> {
    let Some(name) = found.path.file_name() else { return Vec::new() };
    let sql = naming.suffix(name).map(|suffix| (suffix, Language::Sql));
    let program = program_suffix(name).map(|suffix| (suffix, Language::Program));
    [sql, program]
        .into_iter()
        .flatten()
        .filter_map(|(suffix, language)| {
            let parsed = naming.parse_with_suffix(name, suffix).ok()?;
            let is_longer = name.len() > parsed.prefix.len() + suffix.len();
            let is_callback = matches!(parsed.kind, Kind::Callback(_));
            (is_longer || is_callback).then(|| Named {
                kind: parsed.kind,
                language,
                version: parsed.version,
                raw_version: parsed.raw_version,
                description: parsed.description,
                script: found.script.clone(),
                path: found.path.clone(),
            })
        })
        .collect()
}

fn program_suffix(name: &str) -> Option<&str> {
    if !name.contains('.') {
        return Some("");
    }
    PROGRAM_SUFFIXES.iter().find_map(|suffix| ending(name, suffix))
}

/// Order of running: versions as numbers, descriptions by UTF-16 units as Java compares them.
fn order(a: &Script, b: &Script) -> std::cmp::Ordering {
    event(a)
        .cmp(event(b))
        .then_with(|| a.version.cmp(&b.version))
        .then_with(|| match a.version {
            Some(_) => std::cmp::Ordering::Equal,
            None => a.description.encode_utf16().cmp(b.description.encode_utf16()),
        })
        .then_with(|| a.path.cmp(&b.path))
}

fn event(script: &Script) -> &str {
    match script.kind {
        Kind::Callback(event) => event,
        Kind::Versioned | Kind::Repeatable | Kind::Baseline | Kind::Undo => "",
    }
}

/// One file listed in two locations under one name.
fn is_same_file(a: &Script, b: &Script) -> bool {
    is_duplicate(a, b)
        && a.script == b.script
        && a.checksum == b.checksum
        && a.description == b.description
        && a.language == b.language
}

fn is_duplicate(a: &Script, b: &Script) -> bool {
    event(a) == event(b)
        && a.version == b.version
        && (a.version.is_some() || a.description == b.description)
}

fn duplicate_code(kind: &Kind) -> &'static str {
    match kind {
        Kind::Versioned | Kind::Baseline => "DUPLICATE_VERSIONED_MIGRATION",
        Kind::Repeatable => "DUPLICATE_REPEATABLE_MIGRATION",
        Kind::Undo => "DUPLICATE_UNDO_MIGRATION",
        Kind::Callback(_) => "ERROR",
    }
}

fn identity(script: &Script) -> String {
    match (&script.version, &script.kind) {
        (Some(version), Kind::Baseline) => format!("baseline version {version}"),
        (Some(version), Kind::Undo) => format!("undo version {version}"),
        (Some(version), _) => format!("version {version}"),
        (None, Kind::Callback(event)) => format!("callback `{event}`"),
        (None, _) => format!("repeatable description `{}`", script.description),
    }
}

/// `path` as seen from the project's folder, for messages.
pub(super) fn shown<'a>(path: &'a Utf8Path, project: &Utf8Path) -> &'a Utf8Path {
    path.strip_prefix(project).unwrap_or(path)
}

/// The folder of the first location.
pub(super) fn first_folder(config: &MigrateConfig) -> Option<Utf8PathBuf> {
    config.locations.first().map(|location| discover::root(location))
}

#[cfg(test)]
mod tests;
