//! What a source database holds: read from its catalogs, nothing of it changed.
//!
//! Everything a snapshot must carry and `pg_dump --schema-only` leaves out is listed here: tables
//! with the columns that COPY names, sequences, large objects, materialised views in the order in
//! which they can be refreshed, extension tables, roles of policies, settings of the database.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::manifest::{Applied, Extension, ExtensionTable, QualifiedName, Server, Setting};
use super::source;
use crate::config::MigrateConfig;
use crate::pg::{Error, Row, Session};

/// One table: plain, or the parent of partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    pub oid: u32,
    pub name: QualifiedName,
    /// Has rows of its own; a partitioned parent has none.
    pub plain: bool,
    pub columns: Vec<String>,
    pub blocks: u32,
    /// With its TOAST table.
    pub bytes: u64,
    /// Can be read by ranges of `ctid`.
    pub heap: bool,
    pub unlogged: bool,
    pub readable: bool,
    pub row_security: bool,
    pub through_root: Option<QualifiedName>,
    pub extension: Option<ExtensionTable>,
}

#[derive(Debug, Clone)]
pub(super) struct SequenceRef {
    pub name: QualifiedName,
    pub readable: bool,
    pub extension: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct LargeObjectRef {
    pub oid: u32,
    pub owner: Option<String>,
    pub acl: Vec<String>,
    /// The empty list stands there, not none at all.
    pub revoked: bool,
    pub comment: Option<String>,
    pub readable: bool,
}

/// A whole database, at one moment.
#[derive(Debug)]
pub(super) struct Catalog {
    pub taken_at: Timestamp,
    pub database: String,
    pub role: String,
    pub in_recovery: bool,
    pub server: Server,
    pub tables: Vec<Relation>,
    pub sequences: Vec<SequenceRef>,
    pub large_objects: Vec<LargeObjectRef>,
    pub materialized_views: Vec<QualifiedName>,
    pub extensions: Vec<Extension>,
    pub policy_roles: Vec<String>,
    pub owners: Vec<String>,
    pub settings: Vec<Setting>,
    /// Things of the source that a copy deliberately lacks, in words.
    pub left_behind: Vec<String>,
}

/// A table that goes while this runs has no size and no privileges any more: the lock finds out.
///
/// Rows go through a root where another server may put them into another leaf: those that hash by
/// object ids, and ranges of text in an order that is a locale's (0: no collation, 100: the database's,
/// 950 and 951: `C` and `POSIX`, which are bytes everywhere).
const TABLES: &str = "\
select c.oid, n.nspname::text, c.relname::text, c.relkind = 'r',
       array(select a.attname::text
             from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
               and a.attgenerated = ''
             order by a.attnum),
       coalesce(case when c.relkind = 'r'
                     then pg_relation_size(c.oid) / current_setting('block_size')::int8 end, 0),
       coalesce(case when c.relkind = 'r' then pg_table_size(c.oid) end, 0),
       coalesce(am.amname = 'heap', false),
       c.relpersistence = 'u',
       coalesce(has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'), true),
       coalesce(row_security_active(c.oid), false),
       rn.nspname::text, r.relname::text,
       e.extname::text, coalesce(e.condition, '')
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
left join pg_am am on am.oid = c.relam
left join pg_class r on c.relispartition and c.relkind = 'r'
  and r.oid = pg_partition_root(c.oid)
  and exists (select
              from pg_partition_ancestors(c.oid) as up(relid)
              join pg_partitioned_table p on p.partrelid = up.relid
              where p.partstrat = 'h'
                    and exists (select
                                from pg_opclass o
                                where o.oid = any (p.partclass::oid[])
                                  and (o.opcintype in ('anyenum'::regtype, 'anyarray'::regtype,
                                                       'record'::regtype, 'anyrange'::regtype)
                                       or o.opcintype = to_regtype('pg_catalog.anymultirange')))
                 or p.partstrat = 'r'
                    and exists (select
                                from unnest(p.partcollation::oid[]) as key(sorted_by),
                                     pg_database d
                                where d.datname = current_database()
                                  and key.sorted_by not in (0, 950, 951)
                                  and not (key.sorted_by = 100
                                           and d.datcollate in ('C', 'POSIX')
                                           and coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'c')))
left join pg_namespace rn on rn.oid = r.relnamespace
left join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = c.oid
  and d.objsubid = 0 and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
left join lateral (select x.extname, x.extcondition[i] as condition
                   from pg_extension x, generate_subscripts(x.extconfig, 1) as i
                   where x.oid = d.refobjid and x.extconfig[i] = c.oid) e on true
where c.relkind in ('r', 'p') and c.relpersistence <> 't'
  and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
  and (d.objid is null or e.extname is not null)
order by n.nspname collate \"C\", c.relname collate \"C\"";

const SEQUENCES: &str = "\
select n.nspname::text, c.relname::text,
       coalesce(has_schema_privilege(n.oid, 'usage') and has_sequence_privilege(c.oid, 'select'),
                true),
       x.extname::text
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
left join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = c.oid
  and d.objsubid = 0 and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
left join pg_extension x on x.oid = d.refobjid and c.oid = any (x.extconfig)
where c.relkind = 'S' and c.relpersistence <> 't'
  and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
  and (d.objid is null or x.oid is not null)
order by n.nspname collate \"C\", c.relname collate \"C\"";

/// `has_largeobject_privilege` exists from 18 on; this is what it does.
const LARGE_OBJECTS: &str = "\
select m.oid, pg_get_userbyid(m.lomowner)::text, coalesce(m.lomacl::text[], '{}'),
       coalesce(cardinality(m.lomacl) = 0, false),
       obj_description(m.oid, 'pg_largeobject'),
       current_setting('lo_compat_privileges')::bool
         or pg_has_role(m.lomowner, 'usage')
         or exists (select from aclexplode(m.lomacl) a
                    where a.privilege_type = 'SELECT'
                      and (a.grantee = 0 or pg_has_role(a.grantee, 'usage')))
from pg_largeobject_metadata m
order by m.oid";

const MATERIALIZED_VIEWS: &str = "\
select c.oid, n.nspname::text, c.relname::text
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'm' and c.relispopulated
  and not exists (select from pg_depend d
                  where d.classid = 'pg_class'::regclass and d.objid = c.oid
                    and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e')
order by n.nspname collate \"C\", c.relname collate \"C\"";

/// Which materialised view reads which, also through views between them.
const MATERIALIZED_VIEW_EDGES: &str = "\
with recursive edge as (
  select distinct r.ev_class as rel, d.refobjid as ref
  from pg_rewrite r
  join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
    and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
  join pg_class c on c.oid = d.refobjid and c.relkind in ('v', 'm')
), reach as (
  select e.rel, e.ref from edge e join pg_class c on c.oid = e.rel and c.relkind = 'm'
  union
  select r.rel, e.ref from reach r join edge e on e.rel = r.ref
)
select r.rel, r.ref from reach r join pg_class c on c.oid = r.ref and c.relkind = 'm'";

const EXTENSIONS: &str = "\
select e.extname::text, e.extversion, n.nspname::text
from pg_extension e
join pg_namespace n on n.oid = e.extnamespace
order by e.oid";

const POLICY_ROLES: &str = "\
select distinct r.rolname::text
from pg_policy p
join pg_roles r on r.oid = any (p.polroles)
order by 1";

const OWNERS: &str = "\
select distinct r.rolname::text
from pg_roles r
where r.rolname !~ '^pg_'
  and (r.oid in (select d.refobjid
                 from pg_shdepend d
                 where d.refclassid = 'pg_authid'::regclass and d.deptype in ('o', 'a')
                   and d.dbid in (0, (select oid from pg_database
                                      where datname = current_database()))
                   and (d.dbid <> 0 or d.classid = 'pg_database'::regclass
                        and d.objid = (select oid from pg_database
                                       where datname = current_database())))
       or r.oid in (select relowner from pg_class where oid >= 16384)
       or r.oid in (select nspowner from pg_namespace where oid >= 16384)
       or r.oid in (select proowner from pg_proc where oid >= 16384))
order by 1";

const SETTINGS: &str = "\
select r.rolname::text, unnest(s.setconfig)
from pg_db_role_setting s
left join pg_roles r on r.oid = s.setrole
where s.setdatabase = (select oid from pg_database where datname = current_database())
order by 1 nulls first, 2";

/// What is never brought over, by design: it would let a copy act on production.
const LEFT_BEHIND: &str = "\
select 'publication ' || quote_ident(pubname) from pg_publication
union all
select 'user mapping of ' || coalesce(nullif(usename::text, ''), 'public') || ' for server '
       || quote_ident(srvname::text)
from pg_user_mappings
order by 1";

/// Reads everything, in whatever transaction `session` is in.
///
/// # Errors
/// What the server said.
pub(super) async fn read(session: &Session) -> Result<Catalog, Error> {
    let (taken_at, database, role, in_recovery, server) = read_server(session).await?;
    let tables = session.query(TABLES, &[]).await?.iter().map(relation).collect();
    let sequences = session
        .query(SEQUENCES, &[])
        .await?
        .iter()
        .map(|row| SequenceRef { name: named(row, 0), readable: row.get(2), extension: row.get(3) })
        .collect();
    let large_objects = session
        .query(LARGE_OBJECTS, &[])
        .await?
        .iter()
        .map(|row| LargeObjectRef {
            oid: row.get(0),
            owner: row.get(1),
            acl: row.get(2),
            revoked: row.get(3),
            comment: row.get(4),
            readable: row.get(5),
        })
        .collect();
    let extensions = session
        .query(EXTENSIONS, &[])
        .await?
        .iter()
        .map(|row| Extension { name: row.get(0), version: row.get(1), schema: row.get(2) })
        .collect();
    let settings = session
        .query(SETTINGS, &[])
        .await?
        .iter()
        .filter_map(|row| {
            let (name, value) = row.get::<_, &str>(1).split_once('=')?;
            Some(Setting { role: row.get(0), name: name.to_owned(), value: value.to_owned() })
        })
        .filter(|setting| !is_dangerous(&setting.name))
        .collect();
    Ok(Catalog {
        taken_at,
        database,
        role,
        in_recovery,
        server,
        tables,
        sequences,
        large_objects,
        materialized_views: materialized_views(session).await?,
        extensions,
        policy_roles: strings(session, POLICY_ROLES).await?,
        owners: strings(session, OWNERS).await?,
        settings,
        left_behind: strings(session, LEFT_BEHIND).await?,
    })
}

async fn read_server(
    session: &Session,
) -> Result<(Timestamp, String, String, bool, Server), Error> {
    let row = session
        .query_one(
            "select clock_timestamp(), current_database()::text, current_user::text,
                    pg_is_in_recovery(), current_setting('server_version'),
                    current_setting('server_version_num')::int4,
                    pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text,
                    has_function_privilege('pg_control_system()', 'execute'),
                    to_jsonb(d) ->> 'datlocprovider',
                    coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
                    to_jsonb(d) ->> 'daticurules', to_jsonb(d) ->> 'datcollversion',
                    floor(extract(epoch from clock_timestamp()) * 1000000)::int8
             from pg_database d
             where d.datname = current_database()",
            &[],
        )
        .await
        .map_err(|error| explain_row(error, "the database's own row"))?;
    let micros: i64 = row.get(14);
    let taken_at = Timestamp::from_microsecond(micros)
        .map_err(|error| Error::Protocol { reason: format!("the server's clock: {error}") })?;
    let system_identifier = if row.get(9) {
        let row = session
            .query_one("select system_identifier::text from pg_control_system()", &[])
            .await?;
        Some(row.get(0))
    } else {
        None
    };
    let provider: Option<String> = row.get(10);
    let server = Server {
        version: row.get(4),
        version_num: row.get(5),
        system_identifier,
        encoding: row.get(6),
        locale_provider: match provider.as_deref() {
            Some("i") => "icu",
            Some("b") => "builtin",
            _ => "libc",
        }
        .to_owned(),
        collate: row.get(7),
        ctype: row.get(8),
        locale: row.get(11),
        icu_rules: row.get(12),
        collation_version: row.get(13),
    };
    Ok((taken_at, row.get(1), row.get(2), row.get(3), server))
}

fn explain_row(error: Error, what: &str) -> Error {
    match error {
        Error::Protocol { reason } => Error::Protocol { reason: format!("{what}: {reason}") },
        other => other,
    }
}

fn named(row: &Row, at: usize) -> QualifiedName {
    QualifiedName { schema: row.get(at), name: row.get(at + 1) }
}

fn relation(row: &Row) -> Relation {
    let root_schema: Option<String> = row.get(11);
    let root_name: Option<String> = row.get(12);
    let extension: Option<String> = row.get(13);
    Relation {
        oid: row.get(0),
        name: named(row, 1),
        plain: row.get(3),
        columns: row.get(4),
        blocks: u32::try_from(row.get::<_, i64>(5)).unwrap_or(u32::MAX),
        bytes: u64::try_from(row.get::<_, i64>(6)).unwrap_or_default(),
        heap: row.get(7),
        unlogged: row.get(8),
        readable: row.get(9),
        row_security: row.get(10),
        through_root: root_schema
            .zip(root_name)
            .map(|(schema, name)| QualifiedName { schema, name }),
        extension: extension.map(|name| ExtensionTable { name, condition: row.get(14) }),
    }
}

async fn strings(session: &Session, sql: &str) -> Result<Vec<String>, Error> {
    Ok(session.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

async fn materialized_views(session: &Session) -> Result<Vec<QualifiedName>, Error> {
    let views: Vec<(u32, QualifiedName)> = session
        .query(MATERIALIZED_VIEWS, &[])
        .await?
        .iter()
        .map(|row| (row.get(0), named(row, 1)))
        .collect();
    if views.is_empty() {
        return Ok(Vec::new());
    }
    let mut needs: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for row in session.query(MATERIALIZED_VIEW_EDGES, &[]).await? {
        needs.entry(row.get(0)).or_default().insert(row.get(1));
    }
    Ok(in_refresh_order(views, &needs))
}

/// Those that read no other first. PostgreSQL has no cycles here; what would be left of one keeps its
/// order at the end.
fn in_refresh_order(
    mut views: Vec<(u32, QualifiedName)>,
    needs: &BTreeMap<u32, BTreeSet<u32>>,
) -> Vec<QualifiedName> {
    let mut ordered = Vec::with_capacity(views.len());
    while !views.is_empty() {
        let waiting: BTreeSet<u32> = views.iter().map(|(oid, _)| *oid).collect();
        let (ready, blocked): (Vec<_>, Vec<_>) = views
            .into_iter()
            .partition(|(oid, _)| needs.get(oid).is_none_or(|needed| needed.is_disjoint(&waiting)));
        if ready.is_empty() {
            ordered.extend(blocked.into_iter().map(|(_, name)| name));
            break;
        }
        ordered.extend(ready.into_iter().map(|(_, name)| name));
        views = blocked;
    }
    ordered
}

/// Settings that would make a copy unusable, load code or write to places of the source's machine.
fn is_dangerous(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    matches!(
        name.as_str(),
        "default_transaction_read_only"
            | "session_preload_libraries"
            | "local_preload_libraries"
            | "dynamic_library_path"
            | "default_tablespace"
            | "temp_tablespaces"
            | "session_replication_role"
            | "default_table_access_method"
            | "role"
    ) || name.starts_with("log_")
        || name.starts_with("ssl_")
        || name.starts_with("cron.")
}

/// Where each sequence stands. Read after the snapshot: a sequence is not versioned, so its value may
/// be ahead of the rows, never behind them.
///
/// # Errors
/// What the server said.
pub(super) async fn read_sequences(
    session: &Session,
    sequences: &[SequenceRef],
) -> Result<Vec<super::manifest::Sequence>, Error> {
    /// One statement for many: a round trip each would cost seconds on a distant server.
    const AT_ONCE: usize = 200;
    let mut values = Vec::with_capacity(sequences.len());
    for group in sequences.chunks(AT_ONCE) {
        let sql: Vec<String> = group
            .iter()
            .enumerate()
            .map(|(at, sequence)| {
                let name = source::qualified(&sequence.name.schema, &sequence.name.name, "UTF8");
                format!("select {at}::int4, last_value, is_called from {name}")
            })
            .collect();
        for row in session.query(&sql.join("\nunion all\n"), &[]).await? {
            let at = usize::try_from(row.get::<_, i32>(0)).unwrap_or_default();
            let Some(sequence) = group.get(at) else { continue };
            values.push(super::manifest::Sequence {
                schema: sequence.name.schema.clone(),
                name: sequence.name.name.clone(),
                last_value: row.get(1),
                is_called: row.get(2),
                extension: sequence.extension.clone(),
            });
        }
    }
    Ok(values)
}

/// The migration history's table: where the configuration says, else the only one of its name.
pub(super) fn history_table(
    catalog: &Catalog,
    config: &MigrateConfig,
    default_schema: Option<&str>,
) -> Option<QualifiedName> {
    let schema = config
        .default_schema
        .as_deref()
        .or_else(|| config.schemas.first().map(String::as_str))
        .or(default_schema)
        .unwrap_or("public");
    let mut named = catalog.tables.iter().filter(|table| {
        table.name.name == config.table
            && ["installed_rank", "version", "checksum", "success"]
                .iter()
                .all(|column| table.columns.iter().any(|name| name == column))
    });
    if let Some(table) = named.clone().find(|table| table.name.schema == schema) {
        return Some(table.name.clone());
    }
    match (named.next(), named.next()) {
        (Some(only), None) => Some(only.name.clone()),
        _ => None,
    }
}

/// Every row of the migration history, as the snapshot shows it.
///
/// # Errors
/// What the server said.
pub(super) async fn read_history(
    session: &Session,
    table: &QualifiedName,
) -> Result<Vec<Applied>, Error> {
    let name = source::qualified(&table.schema, &table.name, "UTF8");
    let sql = format!(
        "select installed_rank::int4, version::text, description::text, type::text, script::text,
                checksum::int4, installed_on::text, success
         from {name}
         order by installed_rank"
    );
    Ok(session
        .query(&sql, &[])
        .await?
        .iter()
        .map(|row| Applied {
            rank: row.get(0),
            version: row.get(1),
            description: row.get(2),
            kind: row.get(3),
            script: row.get(4),
            checksum: row.get(5),
            installed_on: row.get(6),
            success: row.get(7),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{QualifiedName, in_refresh_order, is_dangerous};

    fn view(oid: u32, name: &str) -> (u32, QualifiedName) {
        (oid, QualifiedName { schema: "s".to_owned(), name: name.to_owned() })
    }

    #[test]
    fn a_view_is_refreshed_after_those_it_reads() {
        let needs = BTreeMap::from([(1, BTreeSet::from([2, 3])), (2, BTreeSet::from([3]))]);
        let order = in_refresh_order(vec![view(1, "a"), view(2, "b"), view(3, "c")], &needs);
        let names: Vec<&str> = order.iter().map(|name| name.name.as_str()).collect();
        assert_eq!(names, ["c", "b", "a"]);
    }

    #[test]
    fn settings_that_would_disable_a_copy_are_dropped() {
        assert!(is_dangerous("default_transaction_read_only"));
        assert!(is_dangerous("log_directory"));
        assert!(!is_dangerous("search_path"));
    }
}
