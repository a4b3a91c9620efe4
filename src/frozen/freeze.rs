//! What was built is frozen: as a template beside the live database, or the whole server as an image.

use crate::build::{Built, given_up};
use crate::connect;
use crate::context::Context;
use crate::database;
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
        let name = &ctx.config.database.name;
        let scratch = built.scratch.name();
        let shared = match image::shared_with(&site.session, name, None, scratch).await? {
            Some(other) => Some(format!("the server holds more than this database: {other}")),
            None => image::subscription(&site.session, scratch).await?.map(|name| {
                format!("the subscription `{name}` would be in each clone, taking from the others")
            }),
        };
        let why = match shared {
            Some(why) => Some(why),
            None => match site.engine.can_freeze(ctx).await {
                Ok(()) => None,
                Err(engine::Error::Interrupted) => return Err(Error::Interrupted),
                Err(engine::Error::NoPool { reason }) => Some(reason),
                // The template does the same: what was built is not lost for this.
                Err(error) => Some(error.to_string()),
            },
        };
        match why {
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
    let calm = &ctx.uninterrupted();
    let frozen = image::freeze(ctx, &site.engine, &site.server, &name, schema_version, inside);
    match frozen.await {
        Ok(Some(server)) => {
            site.move_to(calm, server).await?;
            match image::prune(ctx, &site.engine, false).await {
                Ok(pruned) => {
                    for gone in pruned.removed {
                        ctx.report.detail(format!("removed the image {}", gone.name));
                    }
                }
                Err(error) => ctx.report.warn(format!("old images stay: {error}")),
            }
            Ok(())
        }
        Ok(None) => database::let_in(&site.session, &name).await.map_err(Error::from),
        Err(error) => {
            if !ctx.cancel.is_cancelled() {
                ctx.report.warn(format!("the next reset has to build again: {error}"));
            }
            let server = site.engine.ensure(calm).await?;
            site.move_to(calm, server).await?;
            ctx.check_cancelled()
        }
    }
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
    let server = match site.engine.move_in(ctx, bytes.saturating_mul(3)).await {
        Ok(server) => server,
        Err(_) if ctx.cancel.is_cancelled() => return Err(Error::Interrupted),
        Err(error) => {
            ctx.report.note(format!("building where nothing is shared: {error}"));
            site.engine.ensure(ctx).await?
        }
    };
    site.move_to(ctx, server).await
}
