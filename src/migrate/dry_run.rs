//! What `migrate` would do, as SQL that a person can read and psql could run.

use std::fmt;

use serde::Serialize;

use super::Error;
use super::apply::{new_row, prepare};
use super::history::{NewRow, Table};
use super::place::Place;
use super::plan::plan;
use super::resolve::Scripts;
use super::run::{Options, check, check_target, for_schema, refuse_failed, rules};
use super::schemas::Preparation;
use super::script::Language;
use super::validate::Pattern;
use crate::context::Context;
use crate::pg::{Target, lexer, quote};

/// The scripts that would run, in order.
#[derive(Debug, Clone, Serialize)]
pub struct DryRun {
    /// Statements before the first script: the search path, where the session came with one; schemas
    /// and the history table, when they are not there.
    pub preparation: String,
    pub scripts: Vec<DryScript>,
}

/// One script that would run.
#[derive(Debug, Clone, Serialize)]
pub struct DryScript {
    pub version: Option<String>,
    pub description: String,
    pub script: String,
    pub in_transaction: bool,
    /// Everything that would be sent for it, its row in the history included.
    pub sql: String,
}

/// Plans as [`run`](super::run) would, and changes nothing. Callbacks are left out.
///
/// # Errors
/// A history that does not match the files; a script that cannot be read.
pub async fn dry_run(
    ctx: &Context,
    target: &Target,
    scripts: &Scripts,
    options: &Options,
) -> Result<DryRun, Error> {
    let config = &ctx.config.migrate;
    let rules = rules(ctx, options)?;
    let place = Place::open(ctx, target).await?;
    let scripts = for_schema(scripts, place.default_schema())?;
    let rows = place.rows_at_rest(ctx).await?;
    let has_table = rows.is_some();
    let rows = rows.unwrap_or_default();
    if config.validate_on_migrate {
        check(ctx, &scripts, &rows, &[Pattern::ANY_PENDING])?;
    }
    check_target(&scripts, &rows, &rules.target)?;
    let preparation = match has_table {
        true => Preparation::default(),
        false => Preparation::of_migrate(ctx, &place).await?,
    };
    let mut rows = rows;
    // A baseline that would be written decides what is pending after it.
    rows.extend(preparation.rows(|row| row.as_read()));
    let plan = plan(&scripts, &rows, &rules)?;
    refuse_failed(&plan, ctx)?;
    let first_rank = rows.last().map_or(1, |row| row.installed_rank + 1);
    let mut planned = Vec::new();
    for (script, rank) in plan.pending.iter().zip(first_rank..) {
        let prepared = prepare(ctx, &scripts, script, place.server_version)?;
        let mut text = match script.language {
            _ if config.skip_executing_migrations => String::new(),
            Language::Sql => prepared.text.text.trim_end().to_owned(),
            Language::Program => format!("-- the program `{}` runs here", script.path),
        };
        if lacks_semicolon(&text) {
            text.push_str("\n;");
        }
        let row = insert(&place.table, &new_row(script, rank, Some(0), true));
        let body = format!("{}{text}\n{}{row}", place.preamble(), place.back_to_owner());
        let sql = if prepared.in_transaction { format!("begin;\n{body}commit;\n") } else { body };
        planned.push(DryScript {
            version: script.version.as_ref().map(|version| version.text().to_owned()),
            description: script.description.clone(),
            script: script.script.clone(),
            in_transaction: prepared.in_transaction,
            sql,
        });
    }
    let mut statements = vec![place.path_at_start()];
    if !has_table {
        statements.extend(preparation.statements(&place));
        statements.extend(preparation.rows(|row| insert(&place.table, row)));
    }
    let preparation = statements.concat();
    place.session.close().await;
    Ok(DryRun { preparation, scripts: planned })
}

/// Whether the last statement of a script ends with the script and not with a `;` of its own.
fn lacks_semicolon(text: &str) -> bool {
    // It was taken apart once already: this cannot fail.
    let statements = lexer::split(text).unwrap_or_default();
    let Some(last) = statements.last().filter(|last| last.copy_data.is_none()) else {
        return false;
    };
    !text[last.offset + last.text.len()..].trim_start().starts_with(';')
}

fn insert(table: &Table, row: &NewRow<'_>) -> String {
    let text = |value: &str| quote::literal(value).trim_start().to_owned();
    let or_null = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
    format!(
        "insert into {} (installed_rank, version, description, type, script, checksum, installed_by, \
         execution_time, success)\nvalues ({}, {}, {}, {}, {}, {}, {}, {}, {});\n",
        table.quoted(),
        row.installed_rank,
        or_null(row.version.map(text)),
        text(row.description),
        text(row.kind),
        text(row.script),
        or_null(row.checksum.map(|checksum| checksum.to_string())),
        table.installed_by.as_deref().map_or_else(|| "current_user".to_owned(), text),
        row.execution_time.unwrap_or(0),
        row.success,
    )
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.preparation)?;
        for script in &self.scripts {
            let note = if script.in_transaction { "" } else { " (without a transaction)" };
            write!(f, "\n-- {}{note}\n{}", script.script, script.sql)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::lacks_semicolon;

    #[test]
    fn a_semicolon_in_a_comment_ends_nothing() {
        assert!(lacks_semicolon("select 1"));
        assert!(lacks_semicolon("select 1 -- a;"));
        for whole in ["select 1;", "select 1 ; -- a", "-- nothing", "copy t from stdin;\n\\."] {
            assert!(!lacks_semicolon(whole), "{whole}");
        }
    }
}
