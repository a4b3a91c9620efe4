//! A snapshot as plain files that stock `pg_restore` and `psql` load, without Seedbed.
//!
//! `schema.dump` is the archive as it was stored, `data.sql` holds the rows as COPY blocks, large
//! objects and sequences, `after.sql` what comes last; `LOAD.md` has the commands. psql runs commands
//! of its own in what it reads, so rows are checked: none may end its COPY block.

use std::io::Write;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::choose::Read;
use super::manifest::{Chunk, LargeObject, Manifest, Table};
use super::{Error, fetch, find, source};
use crate::context::Context;
use crate::pg::quote;
use crate::report::{Step, Unit};
use crate::store::Store;
use crate::store::cache::Cache;

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    pub id: String,
    pub folder: Utf8PathBuf,
    pub tables: u64,
    pub rows: u64,
    pub bytes: u64,
}

/// Bytes of a large object in one statement; in hexadecimal twice as much.
const PIECE: usize = 256 * 1024;

/// Writes the snapshot that `id` means into `folder`, which is made and must else be empty.
///
/// # Errors
/// [`Error::ExportNotEmpty`], [`Error::Export`], damage, or what the store said.
pub async fn export(
    ctx: &Context,
    store: &Store,
    id: &str,
    folder: &Utf8Path,
) -> Result<Exported, crate::error::Error> {
    ctx.until_cancelled(run(ctx, store, id, folder)).await
}

async fn run(ctx: &Context, store: &Store, id: &str, folder: &Utf8Path) -> Result<Exported, Error> {
    let (names, _) = find::names(store).await?;
    let name = find::one(&names, id)?;
    let manifest = match find::read(store, name).await? {
        Read::Manifest(manifest) => manifest,
        Read::Unfit(misfit) => return Err(find::unusable(store, name, misfit)),
    };
    let failed = |error| Error::Export { path: folder.to_owned(), error };
    std::fs::create_dir_all(folder).map_err(failed)?;
    if folder.read_dir_utf8().map_err(failed)?.next().is_some() {
        return Err(Error::ExportNotEmpty { path: folder.to_owned() });
    }
    let step = ctx.report.step(format!("export snapshot {}", manifest.id));
    let mut export = Export {
        manifest: &manifest,
        source: fetch::Source::new(store, Cache::open(ctx)),
        folder,
        step: &step,
        bytes: 0,
        total: manifest.plain_bytes(),
    };
    let rows = async {
        export.schema().await?;
        export.data().await
    };
    let exported = rows.await;
    export.source.trim_cache(&ctx.report).await;
    exported?;
    export.text("after.sql", &after(&manifest))?;
    export.text("LOAD.md", &instructions(&manifest))?;
    let bytes = export.bytes;
    step.done(format!("{} tables, {} rows", manifest.tables.len(), manifest.rows()));
    Ok(Exported {
        id: manifest.id.clone(),
        folder: folder.to_owned(),
        tables: manifest.tables.len() as u64,
        rows: manifest.rows(),
        bytes,
    })
}

struct Export<'a> {
    manifest: &'a Manifest,
    source: fetch::Source<'a>,
    folder: &'a Utf8Path,
    step: &'a Step,
    bytes: u64,
    total: u64,
}

/// A file that is being written.
struct File {
    path: Utf8PathBuf,
    file: std::io::BufWriter<std::fs::File>,
}

impl File {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|error| Error::Export { path: self.path.clone(), error })
    }

    fn close(mut self) -> Result<(), Error> {
        self.file.flush().map_err(|error| Error::Export { path: self.path.clone(), error })
    }
}

impl Export<'_> {
    fn file(&self, name: &str) -> Result<File, Error> {
        let path = self.folder.join(name);
        match std::fs::File::create_new(&path) {
            Ok(file) => Ok(File { path, file: std::io::BufWriter::new(file) }),
            Err(error) => Err(Error::Export { path, error }),
        }
    }

    fn text(&self, name: &str, text: &str) -> Result<(), Error> {
        let mut file = self.file(name)?;
        file.write(text.as_bytes())?;
        file.close()
    }

    async fn plain(&mut self, chunk: &Chunk) -> Result<Bytes, Error> {
        let plain = self.source.plain(chunk).await.map_err(|error| match error {
            fetch::Error::Damaged { object, damage } => {
                Error::Damaged { object, detail: damage.to_string() }
            }
            fetch::Error::Store(error) => Error::Store(error),
        })?;
        self.bytes += plain.len() as u64;
        self.step.progress(self.bytes.min(self.total), Some(self.total), Unit::Bytes);
        Ok(plain)
    }

    async fn schema(&mut self) -> Result<(), Error> {
        let mut file = self.file("schema.dump")?;
        for chunk in &self.manifest.schema_archive {
            let plain = self.plain(chunk).await?;
            file.write(&plain)?;
        }
        file.close()
    }

    async fn data(&mut self) -> Result<(), Error> {
        let manifest = self.manifest;
        let mut file = self.file("data.sql")?;
        let encoding = &manifest.server.encoding;
        file.write(format!("set client_encoding = {};\n", quote::literal(encoding)).as_bytes())?;
        file.write(source::TEXT_SETTINGS.as_bytes())?;
        file.write(b"set session_replication_role = replica;\n")?;
        for table in manifest.tables.iter().filter(|table| table.rows > 0) {
            self.table(&mut file, table).await?;
        }
        for object in &manifest.large_objects {
            self.large_object(&mut file, object).await?;
        }
        for sequence in &manifest.sequences {
            let name = source::qualified(&sequence.schema, &sequence.name, encoding);
            let sql = format!(
                "select pg_catalog.setval({}, {}, {});\n",
                quote::literal(&name),
                sequence.last_value,
                sequence.is_called
            );
            file.write(sql.as_bytes())?;
        }
        file.close()
    }

    async fn table(&mut self, file: &mut File, table: &Table) -> Result<(), Error> {
        let encoding = &self.manifest.server.encoding;
        let name = table.through_root.clone().unwrap_or_else(|| table.qualified_name());
        let copy = format!(
            "\ncopy {}{} from stdin;\n",
            source::qualified(&name.schema, &name.name, encoding),
            source::column_list(&table.columns, encoding)
        );
        file.write(copy.as_bytes())?;
        for chunk in &table.chunks {
            let plain = self.plain(chunk).await?;
            check_rows(chunk, &plain)?;
            file.write(&plain)?;
        }
        file.write(b"\\.\n")
    }

    async fn large_object(&mut self, file: &mut File, object: &LargeObject) -> Result<(), Error> {
        let oid = object.oid;
        file.write(format!("\nselect pg_catalog.lo_create({oid});\n").as_bytes())?;
        let mut offset = 0;
        for chunk in &object.chunks {
            let plain = self.plain(chunk).await?;
            for piece in plain.chunks(PIECE) {
                let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
                let sql =
                    format!("select pg_catalog.lo_put({oid}, {offset}, '\\x{hex}'::bytea);\n");
                file.write(sql.as_bytes())?;
                offset += piece.len();
            }
        }
        match &object.comment {
            Some(comment) => {
                let comment = quote::literal(comment);
                file.write(format!("comment on large object {oid} is {comment};\n").as_bytes())
            }
            None => Ok(()),
        }
    }
}

/// A line `\.` would end the block, and what follows would be commands: no row of the server's own
/// making is such a line.
fn check_rows(chunk: &Chunk, plain: &[u8]) -> Result<(), Error> {
    let whole = plain.is_empty() || plain.ends_with(b"\n");
    let ends_early = plain.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"\\."));
    if whole && !ends_early {
        return Ok(());
    }
    let detail = "its rows would end their COPY block".to_owned();
    Err(Error::Damaged { object: chunk.object_name(), detail })
}

fn after(manifest: &Manifest) -> String {
    let mut sql =
        String::from("-- Materialised views in an order in which they can be refreshed.\n");
    for view in &manifest.materialized_views {
        let name = source::qualified(&view.schema, &view.name, "UTF8");
        sql.push_str(&format!("refresh materialized view {name};\n"));
    }
    sql.push_str("analyze;\n");
    sql
}

fn instructions(manifest: &Manifest) -> String {
    let extensions: Vec<&str> =
        manifest.extensions.iter().map(|extension| extension.name.as_str()).collect();
    let extensions = match extensions.as_slice() {
        [] => "no extension".to_owned(),
        names => format!("the extensions {}", names.join(", ")),
    };
    format!(
        "# Snapshot {id} of `{database}`, taken at {taken_at}\n\n\
         PostgreSQL {major} or newer with {extensions}, as a superuser, in this order:\n\n\
         ```sh\n\
         createdb --template=template0 --encoding={encoding} copy\n\
         pg_restore --no-owner --no-privileges --section=pre-data --dbname=copy schema.dump\n\
         psql -X --set ON_ERROR_STOP=1 --dbname=copy --file=data.sql --output=/dev/null\n\
         pg_restore --no-owner --no-privileges --section=post-data --dbname=copy schema.dump\n\
         psql -X --set ON_ERROR_STOP=1 --dbname=copy --file=after.sql\n\
         ```\n\n\
         Schema version {version}. Row-level policies name {roles}.\n",
        id = manifest.id,
        database = manifest.database,
        taken_at = manifest.taken_at,
        major = manifest.server.major(),
        encoding = manifest.server.encoding,
        version = manifest.schema_version().as_deref().unwrap_or("none"),
        roles = match manifest.policy_roles.as_slice() {
            [] => "no role".to_owned(),
            roles => format!("these roles, which have to be there: {}", roles.join(", ")),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::{Chunk, check_rows};

    #[test]
    fn rows_that_would_become_commands_are_refused() {
        let chunk = Chunk {
            object: "0".repeat(64),
            offset: 0,
            stored_size: 1,
            plain_size: 1,
            plain_hash: "0".repeat(64),
            rows: 1,
        };
        for good in [&b""[..], b"1\tx\n", b"\\\\.\n", b"\\N\n", b"a\\.b\n\n"] {
            assert!(check_rows(&chunk, good).is_ok(), "{good:?}");
        }
        for bad in [&b"\\.\n\\! id\n"[..], b"1\n\\.\n2\n", b"no end"] {
            assert!(check_rows(&chunk, bad).is_err(), "{bad:?}");
        }
    }
}
