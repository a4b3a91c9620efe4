//! Whether a database holds the rows of a manifest, whatever their order.
//!
//! Each line of COPY text is hashed and the hashes are added: a sum that does not depend on the order
//! and that no lost, doubled or changed row leaves as it was.

use bytes::Bytes;
use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};

use super::manifest::{Manifest, QualifiedName, Table};
use super::{Error, fetch, source};
use crate::context::Context;
use crate::pg::{Session, Target, quote};
use crate::store::Store;
use crate::store::cache::Cache;

/// COPY text handed to a hashing thread at once.
const BLOCK_BYTES: usize = 1024 * 1024;

/// Number and sum of the hashes of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sum {
    lines: u64,
    hashes: u128,
}

impl Sum {
    /// Adds whole lines.
    fn add(&mut self, text: &[u8]) {
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let digest = Sha256::digest(line);
            let mut half = [0; 16];
            half.copy_from_slice(&digest[..16]);
            self.hashes = self.hashes.wrapping_add(u128::from_le_bytes(half));
            self.lines += 1;
        }
    }

    fn plus(self, other: Self) -> Self {
        Self { lines: self.lines + other.lines, hashes: self.hashes.wrapping_add(other.hashes) }
    }
}

async fn sum(text: Bytes) -> Sum {
    let summed = tokio::task::spawn_blocking(move || {
        let mut sum = Sum::default();
        sum.add(&text);
        sum
    });
    match summed.await {
        Ok(sum) => sum,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The rows of a manifest beside those of a database that it was loaded into.
pub(crate) struct Rows<'a> {
    manifest: &'a Manifest,
    source: fetch::Source<'a>,
    target: Target,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(
        ctx: &Context,
        store: &'a Store,
        manifest: &'a Manifest,
        target: Target,
    ) -> Self {
        Self { manifest, source: fetch::Source::new(store, Cache::open(ctx)), target }
    }

    /// Brings the cache back within its size: nothing more is compared.
    pub(crate) async fn trim_cache(&self, ctx: &Context) {
        self.source.trim_cache(&ctx.report).await;
    }

    /// Whether the relation `name` holds the rows that are stored for `tables`: itself, or leaves
    /// that were loaded through it.
    ///
    /// # Errors
    /// What the server or the store said.
    pub(crate) async fn equal(
        &self,
        name: &QualifiedName,
        tables: &[&Table],
    ) -> Result<bool, Error> {
        let mut stored = Sum::default();
        for chunk in tables.iter().flat_map(|table| &table.chunks) {
            let plain = self.source.plain(chunk).await?;
            stored = stored.plus(sum(plain).await);
        }
        let Some(first) = tables.first() else { return Ok(true) };
        let restored = self.restored(name, first).await?;
        // Leaves may have their columns in another order than their root prints them.
        let comparable = tables.iter().all(|table| table.columns == first.columns);
        Ok(if comparable { stored == restored } else { stored.lines == restored.lines })
    }

    async fn restored(&self, name: &QualifiedName, like: &Table) -> Result<Sum, Error> {
        let encoding = &self.manifest.server.encoding;
        let session = Session::connect(&self.target).await?;
        session.batch(source::TEXT_SETTINGS).await?;
        session.batch(&format!("set client_encoding = {}", quote::literal(encoding))).await?;
        let quoted = source::qualified(&name.schema, &name.name, encoding);
        let columns: Vec<String> =
            like.columns.iter().map(|column| source::ident(column, encoding)).collect();
        let only = if like.through_root.is_some() { "" } else { "only " };
        let condition =
            like.extension.as_ref().map_or("", |extension| extension.condition.as_str());
        let sql = format!(
            "copy (select {} from {only}{quoted} {condition}) to stdout",
            columns.join(", ")
        );
        let rows = session.copy_out(&sql).await?;
        let mut rows = std::pin::pin!(rows);
        let mut restored = Sum::default();
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        while let Some(row) = rows.try_next().await? {
            block.extend_from_slice(&row);
            if block.len() >= BLOCK_BYTES && block.ends_with(b"\n") {
                let full = std::mem::replace(&mut block, Vec::with_capacity(BLOCK_BYTES));
                restored = restored.plus(sum(Bytes::from(full)).await);
            }
        }
        restored = restored.plus(sum(Bytes::from(block)).await);
        session.close().await;
        Ok(restored)
    }
}

#[cfg(test)]
mod tests {
    use super::Sum;

    fn of(text: &[u8]) -> Sum {
        let mut sum = Sum::default();
        sum.add(text);
        sum
    }

    #[test]
    fn order_does_not_count_and_everything_else_does() {
        assert_eq!(of(b"1\ta\n2\tb\n"), of(b"2\tb\n1\ta\n"));
        assert_eq!(of(b"1\ta\n").plus(of(b"2\tb\n")), of(b"1\ta\n2\tb\n"));
        for other in [&b"1\ta\n"[..], b"1\ta\n2\tc\n", b"1\ta\n1\ta\n2\tb\n", b"1\tb\n2\ta\n"] {
            assert_ne!(of(b"1\ta\n2\tb\n"), of(other), "{other:?}");
        }
    }
}
