//! What stands before the first script: schemas, the history table, the rows that mark both.

use super::Error;
use super::history::NewRow;
use super::place::Place;
use super::version::Version;
use crate::config::MigrateConfig;
use crate::context::Context;
use crate::pg::quote;

/// What has to be made. Pure: the same for `--dry-run` and for doing it.
#[derive(Debug, Clone, Default)]
pub(super) struct Preparation {
    /// Schemas to create, in order.
    pub schemas: Vec<String>,
    /// The marker of created schemas is due.
    has_schema_row: bool,
    /// The marker that what is there counts as this version.
    pub baseline: Option<(Version, String)>,
}

impl Preparation {
    /// For `migrate` without a history table.
    ///
    /// # Errors
    /// A schema that is missing and may not be made; one that holds something else already.
    pub(super) async fn of_migrate(ctx: &Context, place: &Place) -> Result<Self, Error> {
        let config = &ctx.config.migrate;
        let mut preparation = Self::of_schemas(config, place).await?;
        let occupied = occupied_schemas(place).await?;
        if occupied.is_empty() {
            return Ok(preparation);
        }
        if !config.baseline_on_migrate {
            let has_legacy = legacy_table(place).await?;
            return Err(Error::NoHistory { schemas: occupied, has_legacy });
        }
        preparation.baseline = Some(baseline_of(config)?);
        Ok(preparation)
    }

    /// For `baseline` without a history table.
    pub(super) async fn of_baseline(ctx: &Context, place: &Place) -> Result<Self, Error> {
        let config = &ctx.config.migrate;
        let mut preparation = Self::of_schemas(config, place).await?;
        preparation.baseline = Some(baseline_of(config)?);
        Ok(preparation)
    }

    async fn of_schemas(config: &MigrateConfig, place: &Place) -> Result<Self, Error> {
        let missing = missing_schemas(place).await?;
        if !config.create_schemas && missing.contains(&place.table.schema) {
            return Err(Error::NoSchema { schema: place.table.schema.clone() });
        }
        let schemas = if config.create_schemas { missing } else { Vec::new() };
        Ok(Self { has_schema_row: !schemas.is_empty(), schemas, baseline: None })
    }

    /// The statements, in order, without the rows.
    pub(super) fn statements(&self, place: &Place) -> Vec<String> {
        let schemas =
            self.schemas.iter().map(|name| format!("create schema {};\n", quote::ident(name)));
        schemas.chain([place.table.definition()]).collect()
    }

    fn schema_list(&self) -> String {
        self.schemas.iter().map(|name| quote::ident(name)).collect::<Vec<_>>().join(",")
    }

    /// Calls `take` with each row to write.
    pub(super) fn rows<T>(&self, take: impl Fn(&NewRow<'_>) -> T) -> Vec<T> {
        let mut taken = Vec::new();
        if self.has_schema_row {
            let list = self.schema_list();
            taken.push(take(&marker(0, None, "<< Flyway Schema Creation >>", "SCHEMA", &list)));
        }
        if let Some((version, description)) = &self.baseline {
            let version = Some(version.text());
            taken.push(take(&marker(1, version, description, "BASELINE", description)));
        }
        taken
    }

    /// Makes everything, in one transaction.
    pub(super) async fn make(&self, ctx: &Context, place: &Place) -> Result<(), Error> {
        let session = &place.session;
        session.batch("begin").await?;
        for schema in &self.schemas {
            let what = format!("create the schema `{schema}`");
            let sql = format!("create schema {}", quote::ident(schema));
            session.batch(&sql).await.map_err(|error| Error::sql(session, what, error))?;
            ctx.report.detail(format!("created the schema `{schema}`"));
        }
        let what = format!("create the history table {}", place.table.quoted());
        let made = session.batch(&place.table.definition()).await;
        made.map_err(|error| Error::sql(session, what, error))?;
        if self.has_schema_row {
            let list = self.schema_list();
            let row = marker(0, None, "<< Flyway Schema Creation >>", "SCHEMA", &list);
            place.table.insert(session, &row).await?;
        }
        if let Some((version, description)) = &self.baseline {
            let text = Some(version.text());
            let row = marker(1, text, description, "BASELINE", description);
            place.table.insert(session, &row).await?;
            ctx.report
                .note(format!("baseline at version {version}: scripts up to it count as applied"));
        }
        session.batch("commit").await?;
        Ok(())
    }
}

/// Version and description that the configuration gives a baseline.
pub(super) fn baseline_of(config: &MigrateConfig) -> Result<(Version, String), Error> {
    let version = Version::parse(&config.baseline_version).map_err(|error| Error::Setting {
        key: "flyway.baselineVersion".to_owned(),
        reason: error.to_string(),
    })?;
    Ok((version, config.baseline_description.clone()))
}

/// A row that stands for no script.
pub(super) fn marker<'a>(
    installed_rank: i32,
    version: Option<&'a str>,
    description: &'a str,
    kind: &'a str,
    script: &'a str,
) -> NewRow<'a> {
    NewRow {
        installed_rank,
        version,
        description,
        kind,
        script,
        checksum: None,
        execution_time: Some(0),
        success: true,
    }
}

pub(super) async fn missing_schemas(place: &Place) -> Result<Vec<String>, Error> {
    let sql = "select s.name from unnest($1::text[]) with ordinality as s (name, rank)
        where not exists (select from pg_catalog.pg_namespace n where n.nspname = s.name)
        order by s.rank";
    let rows = place.session.query(sql, &[&place.schemas]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether a history of Flyway 4 and before is there under its old name.
async fn legacy_table(place: &Place) -> Result<bool, Error> {
    let sql = "select exists (select from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = 'installed_by'
        where n.nspname = $1 and c.relname = 'schema_version')";
    let rows = place.session.query(sql, &[&place.table.schema]).await?;
    Ok(rows.iter().any(|row| row.get(0)))
}

/// The schemas that hold anything, by Flyway's rule: relations other than materialised views,
/// partitioned and foreign tables; types other than arrays and composites; functions. Members of
/// extensions do not count.
pub(super) async fn occupied_schemas(place: &Place) -> Result<Vec<String>, Error> {
    let sql = "select n.nspname::text from pg_catalog.pg_namespace n
        where n.nspname = any($1) and (
            exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid
                and c.relkind in ('r', 'v', 'S', 't')
                and not exists (select from pg_catalog.pg_depend d
                    where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'))
            or exists (select from pg_catalog.pg_type t where t.typnamespace = n.oid
                and t.typcategory not in ('A', 'C')
                and not exists (select from pg_catalog.pg_depend d
                    where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'))
            or exists (select from pg_catalog.pg_proc p where p.pronamespace = n.oid
                and not exists (select from pg_catalog.pg_depend d
                    where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')))
        order by n.nspname";
    let rows = place.session.query(sql, &[&place.schemas]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
