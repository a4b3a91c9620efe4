//! The source of snapshots: does it answer, and may the account read all of it.
//!
//! Only catalogs are read. Each finding names the first objects that could not be read, and the
//! grant that a superuser of the source would give.

use super::line::Line;
use crate::pg::quote::ident;
use crate::pg::{self, Session};

/// Names shown before `and N more`.
const NAMES_SHOWN: usize = 3;

/// Relations with rows of the team's: ordinary and partitioned tables, materialised views,
/// sequences; not those of extensions, which `create extension` makes.
const RELATIONS: &str = "
select c.oid, c.relkind, c.relrowsecurity,
       quote_ident(n.nspname) || '.' || quote_ident(c.relname) as name,
       has_schema_privilege(n.oid, 'usage') as usage
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where n.nspname <> 'information_schema'
  and n.nspname not like 'pg\\_%'
  and c.relkind in ('r', 'p', 'm', 'S')
  and c.relpersistence <> 't'
  and not exists (
    select from pg_depend d
    where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')";

/// What the account may not read.
///
/// # Errors
/// What the server said.
pub(super) async fn privileges(session: &Session) -> Result<Vec<Line>, pg::Error> {
    let user = ident(&session.target().user);
    let mut lines = Vec::new();

    let unreadable = names(
        session,
        &format!(
            "select name from ({RELATIONS}) r
             where not usage
                or case relkind when 'S' then not has_sequence_privilege(oid, 'select')
                   else not has_table_privilege(oid, 'select') end
             order by name"
        ),
    )
    .await?;
    if !unreadable.is_empty() {
        lines.push(Line::fail(
            "source",
            format!("{user} may not read {}", listed(&unreadable)),
            format!("`grant pg_read_all_data to {user};` as a superuser of the source"),
        ));
    }

    // A policy would cut rows without a word (a dump runs with `row_security = off`, and refuses).
    let filtered = names(
        session,
        &format!(
            "select name from ({RELATIONS}) r
             where relrowsecurity and row_security_active(oid)
             order by name"
        ),
    )
    .await?;
    if !filtered.is_empty() {
        lines.push(Line::fail(
            "source",
            format!("row-level security hides rows from {user} in {}", listed(&filtered)),
            format!("`alter role {user} bypassrls;` as a superuser of the source"),
        ));
    }

    // pg_read_all_data does not reach large objects, and before PostgreSQL 18 no function tells.
    let objects = names(
        session,
        "select m.oid::text
         from pg_largeobject_metadata m
         where not (select rolsuper from pg_roles where rolname = current_user)
           and not pg_has_role(m.lomowner, 'usage')
           and not exists (
             select from aclexplode(m.lomacl) a
             where a.privilege_type = 'SELECT'
               and (a.grantee = 0 or pg_has_role(a.grantee, 'usage')))
         order by m.oid",
    )
    .await?;
    if !objects.is_empty() {
        lines.push(Line::fail(
            "source",
            format!("{user} may not read large objects {}", listed(&objects)),
            format!(
                "`grant select on large object {} to {user};` for each, or \
                 `[snapshot] skip_large_objects = true`",
                objects[0]
            ),
        ));
    }
    if lines.is_empty() {
        lines.push(Line::ok(
            "source",
            format!("{user} may read every table, sequence and large object"),
        ));
    }
    Ok(lines)
}

/// Whether the account may make databases and roles on a server that somebody else runs.
///
/// # Errors
/// What the server said.
pub(super) async fn making(session: &Session) -> Result<Line, pg::Error> {
    let row = session
        .query_one(
            "select rolsuper or rolcreatedb, rolsuper or rolcreaterole
             from pg_roles where rolname = current_user",
            &[],
        )
        .await?;
    let (databases, roles): (bool, bool) = (row.get(0), row.get(1));
    let user = ident(&session.target().user);
    Ok(match (databases, roles) {
        (true, true) => Line::ok("rights", format!("{user} may make databases and roles")),
        (true, false) => Line::warn(
            "rights",
            format!("{user} may make databases but no roles, so users/ cannot be applied"),
            format!("`alter role {user} createrole;`"),
        ),
        (false, _) => Line::fail(
            "rights",
            format!("{user} may not make databases"),
            format!("`alter role {user} createdb createrole;`, or name another `engine.superuser`"),
        ),
    })
}

async fn names(session: &Session, sql: &str) -> Result<Vec<String>, pg::Error> {
    Ok(session.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

fn listed(names: &[String]) -> String {
    let shown: Vec<String> =
        names.iter().take(NAMES_SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        assert_eq!(listed(&names[..1]), "`a`");
        assert_eq!(listed(&names), "`a`, `b`, `c` and 2 more");
    }
}
