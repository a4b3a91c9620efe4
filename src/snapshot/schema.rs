//! A source's schema and nothing else: no rows, no privileges, no snapshot.
//!
//! For looking at a copy of its catalog, not for working with it. What this server cannot make (an
//! extension that is not installed, and what hangs on it) is left out and told.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::dump::schema;
use super::restore::{Refusal, Restore, Section, tolerated};
use super::{Error, dump, load};
use crate::config::Owners;
use crate::context::Context;
use crate::pg::Target;
use crate::pg::tools::Tools;

/// Reads the schema as an archive of `pg_dump`. The account needs the right to read every table, because
/// `pg_dump` locks them.
///
/// # Errors
/// [`dump::Error`].
pub(crate) async fn read(ctx: &Context, source: &Target, tools: &Tools) -> Result<Bytes, Error> {
    let archive = schema::archive(ctx, source, tools, "--no-privileges".to_owned()).await;
    archive.map_err(|error: dump::Error| error.into())
}

/// Makes it in the empty database `target`, whose superuser asks for it and on whose server the owners
/// are. Returns what the server refused.
///
/// # Errors
/// When nothing could be made at all.
pub(crate) async fn make(
    ctx: &Context,
    target: &Target,
    tools: &Tools,
    archive: &Bytes,
) -> Result<Vec<Refusal>, Error> {
    let restore = Restore { ctx, tools, target, role: &target.user, owners: Owners::Keep, archive };
    let made = async {
        // A trigger that watches grants would watch ours.
        let list = restore.list().await?.without_kinds(&["EVENT TRIGGER"], &BTreeSet::new());
        let mut refused = restore.run(Section::PreData, &list, 1).await?;
        // A materialised view may have to wait for a key.
        refused.extend(restore.run(Section::PostData, &list, 1).await?);
        Ok::<_, load::Error>(refused)
    };
    let mut refused = made.await?;
    refused.retain(|refusal| !tolerated(refusal, &ctx.config.restore.ignore_extensions));
    Ok(refused)
}
