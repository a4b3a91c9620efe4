//! `clean`: everything that Flyway's drops from the managed schemas, in Flyway's order.
//!
//! Left behind, as with Flyway: foreign tables, servers, operators, text search objects, event
//! triggers, large objects.

use serde::Serialize;

use super::Error;
use super::place::Place;
use super::resolve::Scripts;
use super::run::Opened;
use crate::context::Context;
use crate::pg::names::DatabaseName;
use crate::pg::{Target, quote};

/// What `clean` emptied.
#[derive(Debug, Clone, Serialize)]
pub struct Cleaned {
    pub schemas: Vec<String>,
    /// Schemas that `migrate` had made, and that are gone.
    pub dropped: Vec<String>,
}

/// Empties the schemas; drops those that the history says `migrate` made.
///
/// # Errors
/// `flyway.cleanDisabled`; what the server refused (nothing was dropped).
pub async fn clean(ctx: &Context, target: &Target, scripts: &Scripts) -> Result<Cleaned, Error> {
    if ctx.config.migrate.clean_disabled {
        return Err(Error::CleanDisabled);
    }
    let names = DatabaseName::live(&target.database);
    let opened = Opened::open(ctx, target, &names, scripts).await?;
    opened.fire("beforeClean").await?;
    let result = drop_all(&opened.place).await;
    match &result {
        Ok(_) => opened.fire("afterClean").await?,
        Err(_) => opened.fire_after_error("afterCleanError").await,
    }
    opened.close(result.is_ok()).await;
    result
}

async fn drop_all(place: &Place) -> Result<Cleaned, Error> {
    let made = made_schemas(place).await?;
    let sql = "select n.nspname::text from pg_catalog.pg_namespace n where n.nspname = any($1)";
    let rows = place.session.query(sql, &[&place.schemas]).await?;
    let there: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let mut cleaned = Cleaned { schemas: Vec::new(), dropped: Vec::new() };
    place.session.batch("begin").await?;
    for schema in place.schemas.iter().filter(|schema| there.contains(schema)) {
        empty(place, schema).await?;
        if made.contains(schema) {
            batch(place, &format!("drop schema {} cascade", quote::ident(schema))).await?;
            cleaned.dropped.push(schema.clone());
        } else {
            cleaned.schemas.push(schema.clone());
        }
    }
    place.session.batch("commit").await?;
    Ok(cleaned)
}

/// The schemas that the history's first row says were made for it.
async fn made_schemas(place: &Place) -> Result<Vec<String>, Error> {
    if !place.table.exists(&place.session).await? {
        return Ok(Vec::new());
    }
    let rows = place.table.rows_after(&place.session, None).await?;
    let made = rows.iter().filter(|row| row.kind == "SCHEMA").map(|row| row.script.as_str());
    let lists: Vec<&str> = made.collect();
    let is_made = |schema: &&String| {
        lists.iter().any(|list| list.split(',').any(|name| name == quote::ident(schema)))
    };
    Ok(place.schemas.iter().filter(is_made).cloned().collect())
}

/// What is dropped, in order. Each query gives the statements for one kind of object; what the
/// kind before took along by `cascade` is gone when the next one is asked.
const KINDS: [&str; 9] = [
    "select format('drop materialized view if exists %I.%I cascade', n.nspname, c.relname)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relkind = 'm'",
    "select format('drop view if exists %I.%I cascade', n.nspname, c.relname)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relkind = 'v' and not exists (select from pg_depend d
            where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')",
    "select format('drop table if exists %I.%I cascade', n.nspname, c.relname)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relkind in ('r', 'p') and not exists (select from pg_depend d
            where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')",
    "select format('drop type if exists %I.%I cascade', n.nspname, t.typname)
        from pg_type t join pg_namespace n on n.oid = t.typnamespace
        left join pg_class c on c.oid = t.typrelid
        where n.nspname = $1 and (t.typtype in ('b', 'r') and t.typelem = 0 and t.typcategory <> 'A'
            or t.typtype = 'c' and c.relkind = 'c')
            and not exists (select from pg_depend d
                where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e')",
    "select format('drop %s if exists %I.%I(%s) cascade',
            case p.prokind when 'a' then 'aggregate' when 'p' then 'procedure' else 'function' end,
            n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = $1 and not exists (select from pg_depend d
            where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype in ('e', 'i'))",
    "select format('drop type if exists %I.%I cascade', n.nspname, t.typname)
        from pg_type t join pg_namespace n on n.oid = t.typnamespace
        where n.nspname = $1 and t.typtype in ('e', 'd') and not exists (select from pg_depend d
            where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e')",
    "select format('drop sequence if exists %I.%I cascade', n.nspname, c.relname)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relkind = 'S' and not exists (select from pg_depend d
            where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')",
    "select format('drop collation if exists %I.%I cascade', n.nspname, l.collname)
        from pg_collation l join pg_namespace n on n.oid = l.collnamespace
        where n.nspname = $1",
    "select format('drop extension if exists %I cascade', e.extname)
        from pg_extension e join pg_namespace n on n.oid = e.extnamespace
        where n.nspname = $1 and pg_get_userbyid(e.extowner) = current_user",
];

async fn empty(place: &Place, schema: &str) -> Result<(), Error> {
    // Statements of the catalog's own: names in them are written out in full.
    place.session.batch("set local search_path = pg_catalog").await?;
    for kind in KINDS {
        let rows = place.session.query(kind, &[&schema]).await?;
        let statements: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if !statements.is_empty() {
            batch(place, &statements.join(";\n")).await?;
        }
    }
    Ok(())
}

async fn batch(place: &Place, sql: &str) -> Result<(), Error> {
    let what = format!("clean the schemas `{}`", place.schemas.join("`, `"));
    let session = &place.session;
    session.batch(sql).await.map_err(|error| Error::sql(session, what, error))
}
