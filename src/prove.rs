//! `snapshot create --prove`: the snapshot restored on a scratch server, before anybody sees it.
//!
//! The server is made for this and removed after it, from what `engine.kind = "auto"` finds here. The
//! load itself checks every hash, every refused statement and the number of rows; here the rows of the
//! restored tables are read again and compared with the stored ones, whatever their order.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::config::EngineKind;
use crate::context::Context;
use crate::database::Scratch;
use crate::engine::{self, Server, Volumes};
use crate::error::Exit;
use crate::report::Unit;
use crate::snapshot::manifest::{Manifest, QualifiedName, Table};
use crate::snapshot::{self, compare, load};
use crate::store::Store;

/// Connections that read the copy; hashing its lines is what takes the time.
const JOBS: usize = 2;

/// Tables named in the error; the number of all stands before them.
const SHOWN: usize = 5;

/// Why a snapshot was not proved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "prove the snapshot: it was taken from PostgreSQL {needed}, and the server that can be \
         started here is {here}"
    )]
    OldServer { needed: u32, here: u32 },
    #[error("prove the snapshot: restored, {count} tables differ: {shown}")]
    Differs { count: usize, shown: String },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::OldServer { .. } => Exit::Server,
            Self::Differs { .. } => Exit::CheckFailed,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::OldServer { needed, .. } => vec![format!(
                "make an image of it available, `postgres:{needed}`, or install its binaries"
            )],
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
    let ctx = &surroundings(ctx, manifest);
    let choice = ctx.until_cancelled(engine::choose(ctx)).await?;
    ctx.report.note(format!("proving on a scratch server: {}", choice.why));
    // What a run that was killed left behind.
    choice.engine.stop(ctx, Volumes::Remove).await?;
    let proved = restore(ctx, store, manifest, &choice.engine).await;
    // Asked to stop or not, the server goes.
    let unhurried = Context { cancel: tokio_util::sync::CancellationToken::new(), ..ctx.clone() };
    let stopped = choice.engine.stop(&unhurried, Volumes::Remove).await;
    proved?;
    stopped?;
    Ok(())
}

/// A project folder of its own inside of `.seedbed/`, so that no server of the project is touched.
fn surroundings(ctx: &Context, manifest: &Manifest) -> Context {
    let mut config = (*ctx.config).clone();
    config.project = ctx.state_dir().join("prove");
    config.protected = false;
    config.database.named = false;
    config.database.host = "localhost".to_owned();
    config.database.port = None;
    config.engine.port = None;
    if config.engine.kind == EngineKind::External {
        config.engine.kind = EngineKind::Auto;
        config.engine.image = format!("postgres:{}", manifest.server.major());
        config.engine.superuser = None;
        config.engine.superuser_password = None;
    }
    Context { config: Arc::new(config), ..ctx.clone() }
}

async fn restore(
    ctx: &Context,
    store: &Store,
    manifest: &Manifest,
    engine: &engine::Engine,
) -> Result<(), crate::error::Error> {
    let server = engine.ensure(ctx).await?;
    let (needed, here) = (manifest.server.major(), server.major());
    if here < needed {
        return Err(Error::OldServer { needed, here }.into());
    }
    let locale = snapshot::locale(manifest);
    let owner = server.admin.user.clone();
    let scratch = Scratch::create(ctx, &server, "proof", &owner, &locale).await?;
    load::load(ctx, &scratch.admin(), &owner, &server.tools, store, manifest).await?;
    let differing =
        ctx.until_cancelled(differences(ctx, store, manifest, &server, &scratch)).await?;
    if differing.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = differing.iter().take(SHOWN).map(String::as_str).collect();
    Err(Error::Differs { count: differing.len(), shown: shown.join(", ") }.into())
}

/// Names of tables whose rows are not those that are stored.
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
    let differing: Vec<Option<String>> = stream::iter(groups)
        .map(|(name, tables)| {
            let (rows, done, step) = (&rows, &done, &step);
            async move {
                let equal = rows.equal(&name, &tables).await?;
                let bytes: u64 = tables.iter().map(|table| table.bytes).sum();
                let sum = done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
                step.progress(sum.min(total), Some(total), Unit::Bytes);
                Ok::<_, crate::error::Error>((!equal).then(|| format!("`{name}`")))
            }
        })
        .buffer_unordered(JOBS)
        .try_collect()
        .await?;
    step.done(format!("{} tables", manifest.tables.len()));
    Ok(differing.into_iter().flatten().collect())
}
