//! `repair --upgrade-history`: the table of an old Flyway taken over under its present name.
//!
//! Flyway 4 kept its history in `schema_version`, with today's columns; Flyway 3 had a column
//! `version_rank` beside and its key on the version. Either becomes what Flyway 13 makes.

use super::Error;
use super::history::Table;
use super::place::Place;
use super::repair::Act;
use crate::context::Context;
use crate::pg::{Target, quote};

/// Renames the old table and brings it into today's shape, or only names it. `None`: there is nothing
/// to take over.
///
/// # Errors
/// What the server refused (nothing was changed).
pub async fn upgrade_history(
    ctx: &Context,
    target: &Target,
    act: Act,
) -> Result<Option<String>, Error> {
    let place = Place::open(ctx, target).await?;
    place.lock(ctx).await?;
    let old = old_table(&place).await?;
    if let (Some(old), Act::Do) = (&old, act) {
        upgrade(&place, old).await?;
    }
    place.unlock().await?;
    let taken_over = old.map(|old| quote::qualified(&place.table.schema, &old));
    place.session.close().await;
    Ok(taken_over)
}

/// The table to upgrade: the history itself when it is of Flyway 3, else `schema_version`.
async fn old_table(place: &Place) -> Result<Option<String>, Error> {
    match place.table.exists(&place.session).await {
        Ok(true) => return Ok(None),
        Err(Error::ForeignHistory { is_flyway_3: true, .. }) => {
            return Ok(Some(place.table.name.clone()));
        }
        Ok(false) => {}
        Err(error) => return Err(error),
    }
    let legacy = Table { name: "schema_version".to_owned(), ..place.table.clone() };
    match legacy.exists(&place.session).await {
        Ok(true) | Err(Error::ForeignHistory { is_flyway_3: true, .. }) => Ok(Some(legacy.name)),
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn upgrade(place: &Place, old: &str) -> Result<(), Error> {
    let what = format!("take over the history {}", quote::qualified(&place.table.schema, old));
    let session = &place.session;
    let fail = |error| Error::sql(session, what.clone(), error);
    session.batch("begin").await?;
    // Keys and indexes are Flyway's own and are made anew with today's names.
    let sql =
        "select format('alter table %I.%I drop constraint %I', n.nspname, c.relname, k.conname)
        from pg_catalog.pg_constraint k
        join pg_catalog.pg_class c on c.oid = k.conrelid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relname = $2 and k.contype in ('p', 'u')
        union all
        select format('drop index %I.%I', n.nspname, i.relname)
        from pg_catalog.pg_index x
        join pg_catalog.pg_class c on c.oid = x.indrelid
        join pg_catalog.pg_class i on i.oid = x.indexrelid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relname = $2
            and not exists (select from pg_catalog.pg_constraint k where k.conindid = i.oid)";
    let rows = session.query(sql, &[&place.table.schema, &old]).await.map_err(fail)?;
    for row in rows {
        session.batch(row.get(0)).await.map_err(fail)?;
    }
    let mut sql = format!(
        "alter table {0} drop column if exists version_rank, alter column version drop not null;\n",
        quote::qualified(&place.table.schema, old),
    );
    if old != place.table.name {
        sql.push_str(&format!(
            "alter table {} rename to {};\n",
            quote::qualified(&place.table.schema, old),
            quote::ident(&place.table.name)
        ));
    }
    sql.push_str(&place.table.keys());
    session.batch(&sql).await.map_err(fail)?;
    session.batch("commit").await?;
    Ok(())
}
