//! Accounts and grants: `users/*.sql`, plain SQL as a team writes it.
//!
//! [`read`] makes a [`Plan`] of the files (pure: `parse`, `plan`), [`apply_roles`],
//! [`apply_before`] and [`apply_after`] carry it out in its phases, [`dry_run`] shows them, [`check`] compares what a
//! database's roles may do with what the files give; `server_roles` makes a server's roles again elsewhere for that. The files may run any number of times. A
//! password leaves this module only as a SCRAM verifier, and never stands in an error.

mod apply;
mod check;
mod dry_run;
mod parse;
mod placeholders;
mod plan;
mod server_roles;
mod verifiers;

use camino::{Utf8Path, Utf8PathBuf};

use crate::context::Context;
use crate::error::Exit;
use crate::pg;
use crate::pg::names::DatabaseName;

pub use apply::{Existing, apply_after, apply_before, apply_roles, ensure_owner};
pub use check::{Drift, Privilege, check};
pub(crate) use check::{LOOK_ONLY, Live};
pub use dry_run::{DryRun, DryStatement, dry_run};
pub use plan::{Place, Plan, Skipped};
pub(crate) use server_roles::{Made, ServerRoles};
pub(crate) use verifiers::{Verifier, give_back, verifiers};

/// Why accounts and grants are not as the files say.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} `{path}`: {error}")]
    File { action: &'static str, path: Utf8PathBuf, error: std::io::Error },
    #[error("read users file {place}, column {}: {reason}", place.column)]
    Invalid { place: Place, reason: String, hint: Option<String> },
    #[error("read users file {place}, column {}: placeholder `{name}` has no value", place.column)]
    Placeholder { place: Place, name: String, hint: String },
    #[error(
        "read users file {place}: it gives `{role}` another password than the configuration connects with"
    )]
    PasswordConflict { place: Place, role: String },
    #[error("run `{what}` of users file {place}: {error}{}", detail(error))]
    Statement { place: Place, what: String, error: pg::Error },
    #[error("{what}: {error}")]
    Server { what: &'static str, error: pg::Error },
}

/// The server's own hint and detail, where they say more than its message.
fn detail(error: &pg::Error) -> String {
    error
        .sql()
        .and_then(|sql| sql.hint.as_deref())
        .map(|hint| format!(" ({hint})"))
        .unwrap_or_default()
}

impl Error {
    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::File { .. }
            | Self::Invalid { .. }
            | Self::Placeholder { .. }
            | Self::PasswordConflict { .. } => Exit::Configuration,
            // What the file says cannot be: the file is wrong, not the server.
            Self::Statement { error, .. } if names_what_is_not_there(error) => Exit::Configuration,
            Self::Statement { error, .. } | Self::Server { error, .. } => {
                crate::error::pg_exit(error)
            }
        }
    }

    /// At most two things to do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::File { .. } | Self::Server { .. } => Vec::new(),
            Self::Invalid { hint, .. } => hint.iter().cloned().collect(),
            Self::Placeholder { hint, .. } => vec![hint.clone()],
            Self::PasswordConflict { role, .. } => vec![format!(
                "give `{role}` the password of the configuration: write it as a placeholder in both, `${{env:…}}`"
            )],
            Self::Statement { place, error, .. } if names_what_is_not_there(error) => {
                vec![format!(
                    "edit {place}, or add a migration that creates what it names: `seedbed info` shows the migrations"
                )]
            }
            Self::Statement { .. } => Vec::new(),
        }
    }
}

fn names_what_is_not_there(error: &pg::Error) -> bool {
    // Undefined table, schema, object, function, column, database; a syntax error.
    const CODES: [&str; 7] = ["42P01", "3F000", "42704", "42883", "42703", "3D000", "42601"];
    error.sqlstate().is_some_and(|code| CODES.contains(&code))
}

/// Reads all users files of the project: placeholders replaced, statements taken apart. A project
/// without the folder has an empty plan.
///
/// # Errors
/// A file that cannot be read, a placeholder without value, a statement that is not for users files,
/// another password for the configured user than the configuration has.
pub fn read(context: &Context, names: &DatabaseName) -> Result<Plan, Error> {
    let config = &context.config;
    let mut files = Vec::new();
    for path in sql_files(&config.users.dir)? {
        let raw = fs_err::read_to_string(&path).map_err(|error| Error::File {
            action: "read users file",
            path: path.clone(),
            error,
        })?;
        let shown = path.strip_prefix(&config.project).unwrap_or(&path).to_owned();
        let text = match config.migrate.placeholder_replacement {
            true => replace(context, names, &shown, raw.trim_start_matches('\u{feff}'))?,
            false => raw,
        };
        files.push((shown, text));
    }
    let mut plan = plan::plan(&files, names, &config.database.user)
        .map_err(|plan::Invalid { place, reason, hint }| Error::Invalid { place, reason, hint })?;
    if let Some(configured) = &config.database.password {
        plan.give_owner_password(configured);
    }
    if let Some(configured) = &config.database.password
        && let Some(place) = plan::password_conflict(&plan, configured)
    {
        return Err(Error::PasswordConflict { place: place.clone(), role: plan.owner.clone() });
    }
    Ok(plan)
}

/// The `*.sql` of a folder in order of name; none where there is no folder.
fn sql_files(dir: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Error> {
    let fail = |error| Error::File { action: "list users files in", path: dir.to_owned(), error };
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in dir.read_dir_utf8().map_err(fail)? {
        let path = entry.map_err(fail)?.into_path();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("sql"))
            && path.is_file()
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn replace(
    context: &Context,
    names: &DatabaseName,
    file: &Utf8Path,
    text: &str,
) -> Result<String, Error> {
    let config = &context.config;
    let settings = &config.migrate;
    let syntax = placeholders::Syntax {
        prefix: settings.placeholder_prefix.clone(),
        suffix: settings.placeholder_suffix.clone(),
    };
    let separator = &settings.placeholder_separator;
    let value = |name: &str| -> Option<String> {
        if let Some(variable) = name.strip_prefix(&format!("env{separator}")) {
            return context.env.get(variable).map(str::to_owned);
        }
        let lower = name.to_lowercase();
        if let Some(default) = lower.strip_prefix(&format!("flyway{separator}")) {
            return Some(match default {
                "database" => names.final_name.clone(),
                "user" => config.database.user.clone(),
                "environment" => settings.environment.clone(),
                "table" => settings.table.clone(),
                "filename" => file.file_name().unwrap_or_default().to_owned(),
                "workingdirectory" => context.env.current_dir.to_string(),
                "timestamp" => jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string(),
                "defaultschema" => settings
                    .default_schema
                    .clone()
                    .or_else(|| settings.schemas.first().cloned())
                    .unwrap_or_else(|| "public".to_owned()),
                _ => return None,
            });
        }
        settings
            .placeholders
            .iter()
            .find(|(known, _)| known.to_lowercase() == lower)
            .map(|(_, value)| value.clone())
    };
    placeholders::replace(text, &syntax, value).map_err(|missing| {
        let place = Place { file: file.to_owned(), line: missing.line, column: missing.column };
        let Some(name) = missing.name else {
            return Error::Invalid {
                place,
                reason: format!("a placeholder without its closing `{}`", syntax.suffix),
                hint: None,
            };
        };
        let hint = match name.strip_prefix(&format!("env{separator}")) {
            Some(variable) => format!("set the variable: `export {variable}=…`"),
            None => format!("set it in `conf/`: `flyway.placeholders.{name}=…`"),
        };
        let name = format!("{}{name}{}", syntax.prefix, syntax.suffix);
        Error::Placeholder { place, name, hint }
    })
}
