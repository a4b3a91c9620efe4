//! The table `flyway_schema_history`: its definition, its rows.
//!
//! Column order, names of constraint and index, and quoting are Flyway's to the letter, so that
//! dumps of both tools' databases are equal.

use std::borrow::Cow;

use serde::Serialize;

use super::Error;
use super::resolve::configured_schema;
use crate::config::MigrateConfig;
use crate::context::Context;
use crate::database::Applied;
use crate::pg::{self, Row, Session, Target, ToSql, Type, quote};

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryRow {
    pub installed_rank: i32,
    /// As written; `None` for repeatables and for the row of created schemas.
    pub version: Option<String>,
    pub description: String,
    /// The column `type`: `SQL`, `BASELINE`, `SCHEMA`, `DELETE`, ….
    pub kind: String,
    pub script: String,
    pub checksum: Option<i32>,
    pub installed_by: String,
    /// Local time of whoever migrated, without zone: `2026-11-23 23:37:29.123456`.
    pub installed_on: String,
    pub execution_time: i32,
    pub success: bool,
}

/// A row before it is written. Too long texts are shortened as Flyway does it.
#[derive(Debug, Clone)]
pub(super) struct NewRow<'a> {
    pub installed_rank: i32,
    pub version: Option<&'a str>,
    pub description: &'a str,
    pub kind: &'a str,
    pub script: &'a str,
    pub checksum: Option<i32>,
    /// In milliseconds; `None`: as the server counts from the start of its transaction.
    pub execution_time: Option<i32>,
    pub success: bool,
}

impl NewRow<'_> {
    /// As it would be read back.
    pub(super) fn as_read(&self) -> HistoryRow {
        HistoryRow {
            installed_rank: self.installed_rank,
            version: self.version.map(str::to_owned),
            description: self.description.to_owned(),
            kind: self.kind.to_owned(),
            script: self.script.to_owned(),
            checksum: self.checksum,
            installed_by: String::new(),
            installed_on: String::new(),
            execution_time: self.execution_time.unwrap_or(0),
            success: self.success,
        }
    }
}

/// Where the table stands.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub schema: String,
    pub name: String,
    pub tablespace: Option<String>,
    /// `installedBy`; else the server's `current_user`.
    pub installed_by: Option<String>,
}

/// What every history has, those of Flyway 4 included.
const COLUMNS: [&str; 10] = [
    "installed_rank",
    "version",
    "description",
    "type",
    "script",
    "checksum",
    "installed_by",
    "installed_on",
    "execution_time",
    "success",
];

/// Widths of the columns `description` and `script`.
const DESCRIPTION_CHARS: usize = 200;
const SCRIPT_CHARS: usize = 1000;

/// The migration history of a database; empty where it has none.
pub(crate) async fn applied(
    ctx: &Context,
    target: &Target,
) -> Result<Vec<Applied>, crate::error::Error> {
    let session = crate::connect::session(target).await?;
    let rows = read_history(&session, &ctx.config.migrate).await?;
    session.close().await;
    let rows = rows.unwrap_or_default().into_iter();
    Ok(rows
        .map(|row| Applied {
            rank: row.installed_rank,
            version: row.version,
            description: row.description,
            kind: row.kind,
            checksum: row.checksum,
            success: row.success,
        })
        .collect())
}

/// The rows of the history, by rank, or `None` when the table is not there.
///
/// # Errors
/// What the server said.
pub async fn read_history(
    session: &Session,
    config: &MigrateConfig,
) -> Result<Option<Vec<HistoryRow>>, Error> {
    let schema = match configured_schema(config) {
        Some(schema) => schema.to_owned(),
        None => match current_schema(session).await? {
            Some(schema) => schema,
            None => return Ok(None),
        },
    };
    let table = Table::new(&schema, config);
    if !table.exists(session).await? {
        return Ok(None);
    }
    Ok(Some(table.rows_after(session, None).await?))
}

/// The first schema of the session's search path that is there.
pub(super) async fn current_schema(session: &Session) -> Result<Option<String>, Error> {
    let row = session.query_one("select current_schema()::text", &[]).await?;
    Ok(row.get(0))
}

impl Table {
    pub(super) fn new(schema: &str, config: &MigrateConfig) -> Self {
        Self {
            schema: schema.to_owned(),
            name: config.table.clone(),
            tablespace: config.tablespace.clone(),
            installed_by: config.installed_by.clone(),
        }
    }

    /// `"schema"."name"`.
    pub(super) fn quoted(&self) -> String {
        quote::qualified(&self.schema, &self.name)
    }

    /// The statements that make the table.
    pub(super) fn definition(&self) -> String {
        let space = self
            .tablespace
            .as_deref()
            .map_or_else(String::new, |name| format!(" tablespace {}", quote::ident(name)));
        format!(
            "create table {table} (
    \"installed_rank\" int not null,
    \"version\" varchar(50),
    \"description\" varchar(200) not null,
    \"type\" varchar(20) not null,
    \"script\" varchar(1000) not null,
    \"checksum\" integer,
    \"installed_by\" varchar(100) not null,
    \"installed_on\" timestamp not null default now(),
    \"execution_time\" integer not null,
    \"success\" boolean not null
){space};
{keys}",
            table = self.quoted(),
            keys = self.keys(),
        )
    }

    /// The statements that make its key and its index.
    pub(super) fn keys(&self) -> String {
        let table = self.quoted();
        let key = quote::ident(&format!("{}_pk", self.name));
        let index = quote::ident(&format!("{}_s_idx", self.name));
        let (space, index_space) = match &self.tablespace {
            Some(name) => (
                format!(" tablespace {}", quote::ident(name)),
                format!(" using index tablespace {}", quote::ident(name)),
            ),
            None => (String::new(), String::new()),
        };
        format!(
            "alter table {table} add constraint {key} primary key (\"installed_rank\"){index_space};
create index {index} on {table} (\"success\"){space};
"
        )
    }

    /// Whether the table is there.
    ///
    /// # Errors
    /// A table of that name that is no history.
    pub(super) async fn exists(&self, session: &Session) -> Result<bool, Error> {
        let sql = "select coalesce(array_agg(a.attname::text order by a.attnum), '{}'), count(*)
            from pg_catalog.pg_class c
            join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            left join pg_catalog.pg_attribute a
                on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p', 'v', 'f', 'm')";
        let values: [(&(dyn ToSql + Sync), Type); 2] =
            [(&self.schema, Type::TEXT), (&self.name, Type::TEXT)];
        let rows = session.ask(sql, &values).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        let columns: Vec<Option<String>> = row.get(0);
        if row.get::<_, i64>(1) == 0 {
            return Ok(false);
        }
        let has = |name: &str| columns.iter().any(|column| column.as_deref() == Some(name));
        let missing: Vec<&str> = COLUMNS.into_iter().filter(|name| !has(name)).collect();
        if missing.is_empty() && !has("version_rank") {
            return Ok(true);
        }
        Err(Error::ForeignHistory {
            table: self.quoted(),
            missing: missing.into_iter().map(str::to_owned).collect(),
            is_flyway_3: has("version_rank"),
        })
    }

    /// The rows with a rank above `rank`, all for `None`.
    pub(super) async fn rows_after(
        &self,
        session: &Session,
        rank: Option<i32>,
    ) -> Result<Vec<HistoryRow>, Error> {
        // The comment keeps pgpool from asking a replica, which may lag. What columns of other types
        // hold is read as well: a history may be a view, or have come from another database. `h.` makes
        // the order that of the column; without it the text of the same name would be meant.
        let sql = format!(
            "/*NO LOAD BALANCE*/ select installed_rank::text, version::text, description::text,
                type::text, script::text, checksum::text, installed_by::text,
                to_char(installed_on::timestamp, 'YYYY-MM-DD HH24:MI:SS.US'), execution_time::text,
                success::text
            from {} h
            where h.installed_rank > $1
            order by h.installed_rank",
            self.quoted()
        );
        let values: [(&(dyn ToSql + Sync), Type); 1] = [(&rank.unwrap_or(i32::MIN), Type::INT4)];
        let rows = session.ask(&sql, &values).await.map_err(|error| match error.sqlstate() {
            // No operator, no cast, or a value that a cast does not take.
            Some(state) if state.starts_with("22") || ["42846", "42883"].contains(&state) => {
                Error::HistoryTypes { table: self.quoted(), error }
            }
            Some(_) | None => {
                Error::sql(session, format!("read the history in `{}`", self.quoted()), error)
            }
        })?;
        rows.iter().map(history_row).collect()
    }

    /// Writes a row. Without `execution_time` the server counts from the start of its transaction.
    pub(super) async fn insert(&self, session: &Session, row: &NewRow<'_>) -> Result<(), Error> {
        self.insert_plainly(session, row).await.map_err(|error| {
            Error::sql(session, format!("record `{}` in the history", row.script), error)
        })
    }

    /// Writes into the row of a script how it ended. Where somebody removed the row meanwhile
    /// (Flyway's `repair` takes no lock) it is written anew, behind all others.
    pub(super) async fn finish(
        &self,
        session: &Session,
        row: &NewRow<'_>,
    ) -> Result<(), pg::Error> {
        let table = self.quoted();
        let sql = format!(
            "update {table} set execution_time = $2, success = $3
            where installed_rank = $1 and script = $4 and not success
            returning installed_rank"
        );
        let script = short_script(row.script);
        let values: [(&(dyn ToSql + Sync), Type); 4] = [
            (&row.installed_rank, Type::INT4),
            (&row.execution_time, Type::INT4),
            (&row.success, Type::BOOL),
            (&script, Type::TEXT),
        ];
        if !session.ask(&sql, &values).await?.is_empty() {
            return Ok(());
        }
        let next = format!("select coalesce(max(installed_rank), 0) + 1 from {table}");
        let installed_rank = session.query_one(&next, &[]).await?.get(0);
        self.insert_plainly(session, &NewRow { installed_rank, ..row.clone() }).await
    }

    /// Removes the row of a script that did not run after all.
    pub(super) async fn forget(&self, session: &Session, rank: i32) -> Result<(), pg::Error> {
        let sql =
            format!("delete from {} where installed_rank = $1 and not success", self.quoted());
        session.ask(&sql, &[(&rank, Type::INT4)]).await.map(|_| ())
    }

    /// [`Table::insert`], with the server's own error.
    pub(super) async fn insert_plainly(
        &self,
        session: &Session,
        row: &NewRow<'_>,
    ) -> Result<(), pg::Error> {
        self.insert_where(session, row, None).await
    }

    /// [`Table::insert_plainly`] while the row with `rank` is there.
    pub(super) async fn insert_unless_gone(
        &self,
        session: &Session,
        row: &NewRow<'_>,
        rank: i32,
    ) -> Result<(), pg::Error> {
        self.insert_where(session, row, Some(rank)).await
    }

    async fn insert_where(
        &self,
        session: &Session,
        row: &NewRow<'_>,
        while_there: Option<i32>,
    ) -> Result<(), pg::Error> {
        let table = self.quoted();
        let mut sql = format!(
            "insert into {table} (installed_rank, version, description, type, script, checksum,
                installed_by, execution_time, success)
            select $1, $2, $3, $4, $5, $6, coalesce($7, current_user), coalesce($8,
                (extract(epoch from clock_timestamp() - now()) * 1000)::int), $9"
        );
        // Planned for each script: it is as short as it can be.
        if while_there.is_some() {
            sql.push_str(&format!(
                " where exists (select from {table} where installed_rank = $10)"
            ));
        }
        let (description, script) = (short_description(row.description), short_script(row.script));
        let values: [(&(dyn ToSql + Sync), Type); 10] = [
            (&row.installed_rank, Type::INT4),
            (&row.version, Type::TEXT),
            (&description, Type::TEXT),
            (&row.kind, Type::TEXT),
            (&script, Type::TEXT),
            (&row.checksum, Type::INT4),
            (&self.installed_by, Type::TEXT),
            (&row.execution_time, Type::INT4),
            (&row.success, Type::BOOL),
            (&while_there, Type::INT4),
        ];
        let count = if while_there.is_some() { values.len() } else { values.len() - 1 };
        session.ask(&sql, &values[..count]).await.map(|_| ())
    }
}

/// A row as [`Table::rows_after`] asks for it: everything as text.
fn history_row(row: &Row) -> Result<HistoryRow, Error> {
    let text = |at: usize| -> Result<Option<String>, String> {
        row.try_get(at).map_err(|error| format!("the column `{}`: {error}", COLUMNS[at]))
    };
    let present = |at: usize| -> Result<String, String> {
        text(at)?.ok_or_else(|| format!("the column `{}` is empty", COLUMNS[at]))
    };
    let number = |at: usize, text: &str, what: &str| -> Result<i32, String> {
        let odd = || format!("the column `{}` holds `{text}`, which is no {what}", COLUMNS[at]);
        text.parse().map_err(|_| odd())
    };
    let rank = text(0).ok().flatten().and_then(|text| text.parse().ok()).unwrap_or_default();
    let read = || -> Result<HistoryRow, String> {
        let success = present(9)?;
        Ok(HistoryRow {
            installed_rank: number(0, &present(0)?, "rank")?,
            version: text(1)?,
            description: present(2)?,
            kind: present(3)?,
            script: present(4)?,
            checksum: match text(5)? {
                Some(text) => Some(number(5, &text, "checksum of Flyway's")?),
                None => None,
            },
            installed_by: present(6)?,
            installed_on: present(7)?,
            execution_time: number(8, &present(8)?, "time in milliseconds")?,
            success: match success.as_str() {
                "true" | "t" | "1" => true,
                "false" | "f" | "0" => false,
                odd => {
                    return Err(format!(
                        "the column `success` holds `{odd}`, which is neither true nor false"
                    ));
                }
            },
        })
    };
    read().map_err(|reason| Error::History { rank, reason })
}

/// The start of a description that is too long for its column.
pub(super) fn short_description(description: &str) -> Cow<'_, str> {
    if description.chars().count() <= DESCRIPTION_CHARS {
        return Cow::Borrowed(description);
    }
    description.chars().take(DESCRIPTION_CHARS - 3).chain("...".chars()).collect()
}

/// The end of a script's name that is too long for its column.
fn short_script(script: &str) -> String {
    let length = script.chars().count();
    if length <= SCRIPT_CHARS {
        return script.to_owned();
    }
    "...".chars().chain(script.chars().skip(length - (SCRIPT_CHARS - 3))).collect()
}

#[cfg(test)]
mod tests {
    use super::{short_description, short_script};

    #[test]
    fn long_texts_are_shortened_at_the_end_that_matters_less() {
        assert_eq!(short_description(&"é".repeat(200)).chars().count(), 200);
        let long = format!("a{}", "b".repeat(300));
        let description = short_description(&long);
        assert!(description.starts_with("ab") && description.ends_with("b..."));
        assert_eq!(description.len(), 200);
        let script = short_script(&format!("{}.sql", "d/".repeat(600)));
        assert!(script.starts_with("...") && script.ends_with(".sql"));
        assert_eq!(script.len(), 1000);
    }
}
