//! The schema, as an archive of `pg_dump`.

use std::time::Duration;

use bytes::Bytes;

use super::super::chunk::{Plain, sha256};
use super::super::manifest::Chunk;
use super::super::source::Snapshot;
use super::{Error, Run};
use crate::pg::Target;
use crate::pg::tools::Call;

/// `pg_dump` locks again what the leader holds and stands behind a DDL that came in between; that one
/// waits for us, so only a new attempt lets it pass.
const SCHEMA_LOCK_TIMEOUT: &str = "10s";

/// `pg_dump` says nothing until it has read the whole catalog.
const SCHEMA_DEADLINE: Duration = Duration::from_secs(3600);

impl Run<'_> {
    /// The schema as an archive in the store, and the hash of what it says.
    pub(super) async fn schema(&self, snapshot: &Snapshot) -> Result<(Vec<Chunk>, String), Error> {
        let args = [
            "--format=custom",
            "--compress=0",
            "--schema-only",
            "--no-publications",
            "--no-subscriptions",
            "--no-security-labels",
            "--no-tablespaces",
        ];
        let mut args: Vec<String> = args.map(str::to_owned).to_vec();
        args.push(format!("--lock-wait-timeout={SCHEMA_LOCK_TIMEOUT}"));
        args.push(format!("--snapshot={}", snapshot.id));
        let dumped = self.tool("pg_dump", args, Some(self.target), None).await?;
        let archive = Bytes::from(dumped);
        let script = self
            .tool("pg_restore", vec!["--file=-".to_owned()], None, Some(archive.clone()))
            .await?;
        let mut chunks = Vec::new();
        let size = usize::try_from(self.chunk_bytes).unwrap_or(usize::MAX);
        for part in archive.chunks(size) {
            chunks.extend(self.store(Plain { bytes: part.to_vec(), rows: 0 }).await?);
        }
        Ok((chunks, fingerprint(&script)))
    }

    async fn tool(
        &self,
        program: &'static str,
        args: Vec<String>,
        target: Option<&Target>,
        input: Option<Bytes>,
    ) -> Result<Vec<u8>, Error> {
        let call = Call { program, args, target, stdin: input, input_file: None };
        let output = tokio::time::timeout(SCHEMA_DEADLINE, self.tools.run(self.ctx, call)).await;
        let Ok(output) = output else {
            let seconds = SCHEMA_DEADLINE.as_secs();
            return Err(Error::Stalled { what: format!("wait for {program}"), seconds });
        };
        let output = output?;
        if output.status == 0 {
            return Ok(output.stdout);
        }
        let reason = output.stderr.trim().to_owned();
        Err(Error::Schema { database: self.target.database.clone(), reason })
    }
}

/// What decides whether two schemas are the same: the script, without comments, blank lines and the
/// settings and guards that differ between clients.
fn fingerprint(script: &[u8]) -> String {
    let text: Vec<&[u8]> = script
        .split(|byte| *byte == b'\n')
        .filter(|line| {
            !(line.is_empty()
                || line.starts_with(b"--")
                || line.starts_with(b"SET ")
                || line.starts_with(b"\\restrict ")
                || line.starts_with(b"\\unrestrict "))
        })
        .collect();
    sha256(&text.join(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn the_fingerprint_ignores_what_differs_between_clients() {
        let one = b"-- Dumped by pg_dump version 15.18\n\\restrict abc\nSET statement_timeout = 0;\n\ncreate table t();\n";
        let two = b"SET transaction_timeout = 0;\ncreate table t();\n\\unrestrict abc\n";
        assert_eq!(fingerprint(one), fingerprint(two));
        assert_ne!(fingerprint(one), fingerprint(b"create table u();\n"));
    }
}
