//! What was built is frozen: as a template beside the live database, or the whole server as an image.

use super::blank;
use crate::build::{Built, given_up};
use crate::connect;
use crate::context::Context;
use crate::database::{self, Scratch};
use crate::engine::{self, Keep};
use crate::error::Error;
use crate::image;
use crate::migrate;
use crate::site::Site;
use crate::source::{Source, Wish};
use crate::template;

pub(crate) async fn freeze_or_give_up(
    ctx: &Context,
    site: &Site,
    built: Built,
    wish: &Wish,
) -> Result<(Built, Frozen), Error> {
    match freeze_template(ctx, site, &built, wish).await {
        Ok(frozen) => Ok((built, frozen)),
        Err(error) => Err(given_up(ctx, built.scratch, error).await),
    }
}

/// Whether what was built is frozen, so that the same build is a clone.
#[derive(Debug)]
pub(crate) enum Frozen {
    /// As a template.
    Already,
    /// As an image, once it is live. Until then nobody is let in.
    Later(image::Inside),
}

/// Freezes a template, where not the whole server will be frozen as an image.
async fn freeze_template(
    ctx: &Context,
    site: &Site,
    built: &Built,
    wish: &Wish,
) -> Result<Frozen, Error> {
    let bytes = image::size_of(&site.session, built.scratch.name()).await?;
    // What is kept would be frozen with it.
    if wish.keep == Keep::No && image::is_meant(ctx, &site.server, bytes) {
        match why_no_image(ctx, site, &built.scratch).await? {
            None => {
                let readied = image::ready(ctx, &site.server, &built.scratch);
                return ctx.until_cancelled(readied).await.map(Frozen::Later);
            }
            Some(why) => ctx.report.note(format!("freezing a template, no image: {why}")),
        }
    }
    // Of no use where nobody could go on from it.
    let applied = match built.scratch.marker().base {
        Some(_) => {
            migrate::applied(ctx, &connect::owner(ctx, &site.server, built.scratch.name())).await?
        }
        None => Vec::new(),
    };
    template::freeze(ctx, &site.server, &built.scratch, site.owner(ctx), applied).await?;
    Ok(Frozen::Already)
}

/// Why the server cannot be frozen with this database in it; `None`: it can.
pub(super) async fn why_no_image(
    ctx: &Context,
    site: &Site,
    scratch: &Scratch,
) -> Result<Option<String>, Error> {
    let (name, scratch) = (scratch.final_name(), scratch.name());
    if let Some(other) = image::shared_with(&site.session, name, None, scratch).await? {
        return Ok(Some(format!("the server holds more than this database: {other}")));
    }
    if let Some(name) = image::subscription(&site.session, scratch).await? {
        let why = "would be in each clone, taking from the others";
        return Ok(Some(format!("the subscription `{name}` {why}")));
    }
    match site.engine.can_freeze(ctx).await {
        Ok(()) => Ok(None),
        Err(engine::Error::Interrupted) => Err(Error::Interrupted),
        Err(engine::Error::NoPool { reason }) => Ok(Some(reason)),
        // The template does the same: what was built is not lost for this.
        Err(error) => Ok(Some(error.to_string())),
    }
}

/// Removes the server's data that an earlier reset has kept: another database was live since then. What goes
/// wrong makes no swap a failure.
pub(crate) async fn forget_kept(ctx: &Context, site: &Site) {
    if let Err(error) = site.engine.forget_kept(&ctx.uninterrupted()).await {
        ctx.report.warn(format!("what an earlier reset has kept stays on the disk: {error}"));
    }
}

/// Freezes the live database with its server, and lets everybody in. It is whole already, so that what goes
/// wrong here costs only the next reset its time.
pub(crate) async fn freeze_image(
    ctx: &Context,
    site: &mut Site,
    schema_version: Option<String>,
    inside: image::Inside,
) -> Result<(), Error> {
    let name = ctx.config.database.name.clone();
    let frozen = freeze_closed(ctx, site, &name, schema_version, inside).await?;
    database::let_in(&site.session, &name).await?;
    match frozen {
        Attempt::Done => {}
        Attempt::NotTried => return Ok(()),
        Attempt::Failed(error) => {
            ctx.check_cancelled()?;
            ctx.report.warn(format!("the next reset has to build again: {error}"));
            return Ok(());
        }
    }
    prune(ctx, site).await;
    Ok(())
}

/// Removes images that are old or too much by now.
pub(crate) async fn prune(ctx: &Context, site: &Site) {
    match image::prune(ctx, &site.engine, false).await {
        Ok(pruned) => {
            for gone in pruned.removed {
                ctx.report.detail(format!("removed the image {}", gone.name));
            }
        }
        Err(error) => ctx.report.warn(format!("old images stay: {error}")),
    }
}

/// What became of freezing an image.
pub(super) enum Attempt {
    Done,
    /// The server holds more, which was said.
    NotTried,
    Failed(Error),
}

/// Freezes the database `actual` with its server; nobody is let in.
pub(super) async fn freeze_closed(
    ctx: &Context,
    site: &mut Site,
    actual: &str,
    schema_version: Option<String>,
    inside: image::Inside,
) -> Result<Attempt, Error> {
    let calm = &ctx.uninterrupted();
    let frozen = image::freeze(ctx, &site.engine, &site.server, actual, schema_version, inside);
    let (server, attempt) = match frozen.await {
        Ok(Some(server)) => (server, Attempt::Done),
        Ok(None) => return Ok(Attempt::NotTried),
        Err(error) => (site.engine.ensure(calm).await?, Attempt::Failed(error)),
    };
    site.move_to_closed(calm, server).await?;
    Ok(attempt)
}

/// Where a snapshot is about to be loaded on a server that holds nothing yet, and will be frozen as an image, the
/// server moves to where clones share blocks first, when there is next to nothing to copy. Where it cannot,
/// what was built moves later, or a template is frozen.
///
/// # Errors
/// What happened to the server.
pub(crate) async fn move_in_first(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
) -> Result<(), Error> {
    let Source::Snapshot { manifest, .. } = source else { return Ok(()) };
    let bytes = manifest.plain_bytes();
    if wish.keep == Keep::Yes
        || !image::is_meant(ctx, &site.server, bytes)
        || !site.engine.moves_to_freeze(ctx)?
        || image::other_database(&site.session, "", &[], "").await?.is_some()
        || image::other_object(&site.session, None).await?.is_some()
    {
        return Ok(());
    }
    match site.engine.can_freeze(ctx).await {
        Ok(()) => {}
        Err(engine::Error::Interrupted) => return Err(Error::Interrupted),
        // It is said when there is something to freeze.
        Err(_) => return Ok(()),
    }
    // With indexes, and what scripts change and the log of changes take. Elsewhere there is the whole disk.
    let holds = blank::empty(ctx, site).await?;
    let server = match site.engine.move_in(ctx, bytes.saturating_mul(3), holds).await {
        Ok(server) => server,
        Err(_) if ctx.cancel.is_cancelled() => return Err(Error::Interrupted),
        Err(error) => {
            ctx.report.note(format!("building where nothing is shared: {error}"));
            site.engine.ensure(ctx).await?
        }
    };
    site.move_to(ctx, server).await
}
