//! What was read becomes a manifest. Pure.

use super::super::catalog::{self, Catalog};
use super::super::manifest::{self, Chunk, LargeObject, Manifest, Sequence, Table};
use super::rows::{Done, Owner};

pub(super) struct Parts {
    pub sequences: Vec<Sequence>,
    pub history_table: Option<manifest::QualifiedName>,
    pub history: Vec<manifest::Applied>,
    pub schema_archive: Vec<Chunk>,
    pub schema_fingerprint: String,
    pub done: Vec<Done>,
}

pub(super) fn assemble(
    catalog: &Catalog,
    objects: &[catalog::LargeObjectRef],
    parts: Parts,
) -> Manifest {
    let mut done = parts.done;
    done.sort_by_key(|done| (done.owner, done.place));
    let mut of_tables: Vec<Vec<Chunk>> = vec![Vec::new(); catalog.tables.len()];
    let mut of_objects: Vec<Vec<Chunk>> = vec![Vec::new(); objects.len()];
    for Done { owner, chunk, .. } in done {
        match owner {
            Owner::Table { at, .. } => of_tables[at].push(chunk),
            Owner::LargeObject { at } => of_objects[at].push(chunk),
        }
    }
    let plain = |chunks: &[Chunk]| chunks.iter().map(|chunk| chunk.plain_size).sum();
    let tables = catalog
        .tables
        .iter()
        .zip(of_tables)
        .filter(|(table, _)| table.plain)
        .map(|(table, chunks)| Table {
            schema: table.name.schema.clone(),
            name: table.name.name.clone(),
            columns: table.columns.clone(),
            rows: chunks.iter().map(|chunk| chunk.rows).sum(),
            bytes: plain(&chunks),
            through_root: table.through_root.clone(),
            extension: table.extension.clone(),
            chunks,
        })
        .collect();
    let large_objects = objects
        .iter()
        .zip(of_objects)
        .map(|(object, chunks)| LargeObject {
            oid: object.oid,
            owner: object.owner.clone(),
            acl: object.acl.clone(),
            revoked: object.revoked,
            comment: object.comment.clone(),
            bytes: plain(&chunks),
            chunks,
        })
        .collect();
    Manifest {
        format: manifest::FORMAT,
        id: manifest::new_id(catalog.taken_at),
        taken_at: catalog.taken_at,
        database: catalog.database.clone(),
        server: catalog.server.clone(),
        extensions: catalog.extensions.clone(),
        history_table: parts.history_table,
        history: parts.history,
        schema_fingerprint: parts.schema_fingerprint,
        schema_archive: parts.schema_archive,
        tables,
        sequences: parts.sequences,
        large_objects,
        materialized_views: catalog.materialized_views.clone(),
        policy_roles: catalog.policy_roles.clone(),
        owners: catalog.owners.clone(),
        database_settings: catalog.settings.clone(),
        masking_policy: None,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        duration_ms: 0,
        proved: false,
    }
}
