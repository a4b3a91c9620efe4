//! Columns that the source compresses with lz4, on a server that was built without it.
//!
//! `pg_restore` sends a table and its `SET COMPRESSION` as one, so the server would refuse the table.
//! How values are packed is nothing that anybody reads: there the server's own way will do.

use bytes::Bytes;

use super::{Error, Run, doing};
use crate::config::keys::quoted;
use crate::pg::{self, Session};

const BEGIN: &[u8] = b"ALTER TABLE ONLY ";
const END: &[u8] = b" SET COMPRESSION lz4;\n";

impl Run<'_> {
    /// The archive as this server can take it; says which columns it will pack in another way.
    pub(super) async fn compressible(
        &self,
        admin: &Session,
        archive: Bytes,
    ) -> Result<Bytes, Error> {
        if !lacks_lz4(admin).await.map_err(doing("ask how the server compresses"))? {
            return Ok(archive);
        }
        let (archive, columns) = without_lz4(&archive);
        if !columns.is_empty() {
            self.ctx.report.warn(format!(
                "this server was built without lz4: {} will be compressed in its own way",
                quoted(&columns)
            ));
        }
        Ok(archive)
    }
}

/// Whether the server was built without lz4; one that knows no compression of columns was not.
pub(crate) async fn lacks_lz4(session: &Session) -> Result<bool, pg::Error> {
    let row = session
        .query_one(
            "select exists (select from pg_settings
                            where name = 'default_toast_compression'
                              and not 'lz4' = any (enumvals))",
            &[],
        )
        .await?;
    Ok(row.get(0))
}

/// The archive, its length as before, with each such statement made a comment; and their columns.
pub(in crate::snapshot) fn without_lz4(archive: &[u8]) -> (Bytes, Vec<String>) {
    let mut kept = Vec::with_capacity(archive.len());
    let mut columns = Vec::new();
    for line in archive.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END)) {
            Some(names) => {
                columns.push(String::from_utf8_lossy(names).replacen(" ALTER COLUMN ", ".", 1));
                kept.extend_from_slice(b"--");
                kept.extend_from_slice(&line[2..]);
            }
            None => kept.extend_from_slice(line),
        }
    }
    columns.sort();
    (Bytes::from(kept), columns)
}

#[cfg(test)]
mod tests {
    use super::without_lz4;

    #[test]
    fn only_statements_of_their_own_are_taken_out_and_the_length_stays() {
        let archive = b"\0\x01\x50CREATE TABLE s.t (\n    a text\n);\n\
            ALTER TABLE ONLY s.t ALTER COLUMN a SET COMPRESSION lz4;\n\
            ALTER TABLE ONLY s.t ALTER COLUMN b SET COMPRESSION pglz;\n\
            \0\x02 say 'ALTER TABLE ONLY s.t ALTER COLUMN a SET COMPRESSION lz4;\n'\xff";
        let (kept, columns) = without_lz4(archive);
        assert_eq!(columns, ["s.t.a"]);
        assert_eq!(kept.len(), archive.len());
        let changed: Vec<usize> = (0..kept.len()).filter(|at| kept[*at] != archive[*at]).collect();
        assert_eq!(changed.len(), 2);
        assert!(kept[changed[0]..].starts_with(b"--TER TABLE ONLY s.t ALTER COLUMN a "));
    }
}
