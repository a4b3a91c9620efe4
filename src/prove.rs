//! `snapshot create --prove`: the snapshot restored on a scratch server, before anybody sees it.
//!
//! The load itself checks every hash, every refused statement and the number of rows; here the rows of
//! the restored tables are read again and compared with the stored ones, whatever their order, and with
//! them the schema, the positions of sequences, the sizes of large objects.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::context::Context;
use crate::database::Scratch;
use crate::engine::Server;
use crate::error::Exit;
use crate::report::{Unit, format};
use crate::scratch_server::{self, Home, Purpose};
use crate::snapshot::manifest::{Manifest, QualifiedName, Table};
use crate::snapshot::{self, compare, contents, load};
use crate::store::Store;

/// Connections that read the copy; hashing its lines is what takes the time.
const JOBS: usize = 2;

/// Differences named in the error; the number of all stands before them.
const SHOWN: usize = 5;

/// Why a snapshot was not proved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("prove the snapshot: restored, it differs in {}: {shown}", format::counted(*count as u64, "thing"))]
    Differs { count: usize, shown: String },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Differs { .. } => Exit::CheckFailed,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Differs { .. } => {
                vec!["nothing was published; please report this, with `--verbose`".to_owned()]
            }
        }
    }
}

/// Restores `manifest` on a server of its own and compares.
///
/// # Errors
/// [`Error`], or why the snapshot could not be restored: it must not be published then.
pub(crate) async fn prove(
    ctx: &Context,
    store: &Store,
    manifest: &Manifest,
) -> Result<(), crate::error::Error> {
    let major = manifest.server.major();
    let purpose = Purpose { home: Home::Folder("prove"), verb: "snapshot create --prove", major };
    scratch_server::with(ctx, purpose, async |ctx, _, server| {
        restore(ctx, store, manifest, server).await
    })
    .await
}

async fn restore(
    ctx: &Context,
    store: &Store,
    manifest: &Manifest,
    server: &Server,
) -> Result<(), crate::error::Error> {
    let locale = snapshot::locale(manifest);
    let owner = server.admin.user.clone();
    let scratch = Scratch::create(ctx, server, "proof", &owner, &locale).await?;
    load::load(ctx, &scratch.admin(), &owner, &server.tools, store, manifest).await?;
    let mut differing =
        ctx.until_cancelled(differences(ctx, store, manifest, server, &scratch)).await?;
    let step = ctx.report.step("compare the schema, sequences and large objects");
    let target = server.admin.with_database(scratch.name());
    let rest = contents::differences(ctx, store, manifest, &target, &server.tools);
    differing.extend(ctx.until_cancelled(rest).await?);
    step.done("");
    if differing.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = differing.iter().take(SHOWN).map(String::as_str).collect();
    Err(Error::Differs { count: differing.len(), shown: shown.join("; ") }.into())
}

/// Tables whose rows are not those that are stored.
async fn differences(
    ctx: &Context,
    store: &Store,
    manifest: &Manifest,
    server: &Server,
    scratch: &Scratch,
) -> Result<Vec<String>, crate::error::Error> {
    let step = ctx.report.step("compare the restored rows");
    // Leaves that were loaded through their root may lie in other leaves of it now.
    let mut groups: BTreeMap<QualifiedName, Vec<&Table>> = BTreeMap::new();
    for table in manifest.tables.iter().filter(|table| !load::is_left_out(ctx, table)) {
        let name = table.through_root.clone().unwrap_or_else(|| table.qualified_name());
        groups.entry(name).or_default().push(table);
    }
    let total = manifest.plain_bytes();
    let done = std::sync::atomic::AtomicU64::new(0);
    let rows = compare::Rows::new(ctx, store, manifest, server.admin.with_database(scratch.name()));
    let compared = stream::iter(groups)
        .map(|(name, tables)| {
            let (rows, done, step) = (&rows, &done, &step);
            async move {
                let equal = rows.equal(&name, &tables).await?;
                let bytes: u64 = tables.iter().map(|table| table.bytes).sum();
                let sum = done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
                step.progress(sum.min(total), Some(total), Unit::Bytes);
                Ok::<_, crate::error::Error>((!equal).then(|| format!("rows of `{name}`")))
            }
        })
        .buffer_unordered(JOBS)
        .try_collect()
        .await;
    rows.trim_cache(ctx).await;
    let differing: Vec<Option<String>> = compared?;
    step.done(format!("{} tables", manifest.tables.len()));
    Ok(differing.into_iter().flatten().collect())
}
