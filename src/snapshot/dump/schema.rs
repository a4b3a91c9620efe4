//! The schema, as an archive of `pg_dump`.

use std::time::Duration;

use bytes::Bytes;

use super::super::chunk::{Plain, sha256};
use super::super::manifest::Chunk;
use super::super::source::Snapshot;
use super::{Error, Run};
use crate::context::Context;
use crate::pg::Target;
use crate::pg::tools::{Call, Tools};

/// `pg_dump` locks again what the leader holds and stands behind a DDL that came in between; that one
/// waits for us, so only a new attempt lets it pass.
const SCHEMA_LOCK_TIMEOUT: &str = "10s";

/// How a schema is written, whatever the server.
pub(in crate::snapshot) const DUMP_ARGS: [&str; 7] = [
    "--format=custom",
    "--compress=0",
    "--schema-only",
    "--no-publications",
    "--no-subscriptions",
    "--no-security-labels",
    "--no-tablespaces",
];

/// `pg_dump` says nothing until it has read the whole catalog.
const SCHEMA_DEADLINE: Duration = Duration::from_secs(3600);

impl Run<'_> {
    /// The schema as an archive in the store, and the hash of what it says.
    pub(super) async fn schema(&self, snapshot: &Snapshot) -> Result<(Vec<Chunk>, String), Error> {
        let at = format!("--snapshot={}", snapshot.id);
        let archive = archive(self.ctx, self.target, self.tools, at).await?;
        let call = Call {
            program: "pg_restore",
            args: vec!["--file=-".to_owned()],
            target: None,
            stdin: Some(archive.clone()),
            input_file: None,
        };
        let script = output(self.ctx, self.target, self.tools, call).await?;
        let mut chunks = Vec::new();
        let size = usize::try_from(self.chunk_bytes).unwrap_or(usize::MAX);
        for part in archive.chunks(size) {
            chunks.extend(self.store(Plain { bytes: part.to_vec(), rows: 0 }).await?);
        }
        Ok((chunks, fingerprint(&script)))
    }
}

/// The schema of `source` as an archive; `option` is one more of `pg_dump`, which reads in a read-only
/// transaction.
///
/// # Errors
/// [`Error::Schema`] with its words.
pub(in crate::snapshot) async fn archive(
    ctx: &Context,
    source: &Target,
    tools: &Tools,
    option: String,
) -> Result<Bytes, Error> {
    let mut args: Vec<String> = DUMP_ARGS.map(str::to_owned).to_vec();
    args.push(format!("--lock-wait-timeout={SCHEMA_LOCK_TIMEOUT}"));
    args.push(option);
    let call =
        Call { program: "pg_dump", args, target: Some(source), stdin: None, input_file: None };
    output(ctx, source, tools, call).await.map(Bytes::from)
}

/// What a program wrote about the schema of `source`.
async fn output(
    ctx: &Context,
    source: &Target,
    tools: &Tools,
    call: Call<'_>,
) -> Result<Vec<u8>, Error> {
    let program = call.program;
    let Ok(output) = tokio::time::timeout(SCHEMA_DEADLINE, tools.run(ctx, call)).await else {
        let seconds = SCHEMA_DEADLINE.as_secs();
        return Err(Error::Stalled { what: format!("wait for {program}"), seconds });
    };
    let output = output?;
    if output.status == 0 {
        return Ok(output.stdout);
    }
    let reason = output.stderr.trim().to_owned();
    Err(Error::Schema { database: source.database.clone(), role: source.user.clone(), reason })
}

/// What decides whether two schemas are the same: the script, without comments, blank lines and the
/// settings and guards that differ between clients.
pub(in crate::snapshot) fn lines(script: &[u8]) -> impl Iterator<Item = &[u8]> {
    script.split(|byte| *byte == b'\n').filter(|line| {
        !(line.is_empty()
            || line.starts_with(b"--")
            || line.starts_with(b"SET ")
            || line.starts_with(b"\\restrict ")
            || line.starts_with(b"\\unrestrict "))
    })
}

fn fingerprint(script: &[u8]) -> String {
    sha256(&lines(script).collect::<Vec<_>>().join(&b'\n'))
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
