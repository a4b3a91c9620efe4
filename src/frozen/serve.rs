//! A clone of an image in place of the server's data, and back again where what follows fails.

use super::carried::Carried;
use crate::context::Context;
use crate::database;
use crate::engine::Keep;
use crate::error::Error;
use crate::image;
use crate::pg::names::DatabaseName;
use crate::site::{self, Site};
use crate::users;

/// An image to be served.
pub(crate) struct Serving<'a> {
    pub image: &'a str,
    /// All that may be there: a server with others is not replaced by it.
    pub roles: &'a [String],
    pub step: &'static str,
    /// Of the step, when it is done.
    pub detail: &'a str,
    /// How it is said that the image is not taken.
    pub refused: &'a str,
}

/// Serves a clone of an image in place of the server's data, where nothing but this database is replaced
/// with it. Nobody is let in yet, so that nobody comes before what is to be done first. Where it does not
/// start the old data is served again. `false`: it is not served, which was said.
///
/// # Errors
/// What happened to the server; that the user asks to stop.
pub(crate) async fn serve(
    ctx: &Context,
    site: &mut Site,
    keep: Option<Keep>,
    serving: Serving<'_>,
) -> Result<bool, Error> {
    let Serving { image, roles, step, detail, refused } = serving;
    let name = ctx.config.database.name.clone();
    // Somebody may have come since it was looked at; nobody does from here on.
    if let Some(other) = image::held_with(&site.session, &name, Some(roles)).await? {
        ctx.report.note(format!("{refused}: it would replace {other} as well"));
        return Ok(false);
    }
    let ended = site::sessions(&site.session, &name).await?;
    let carried = Carried::take(ctx, site).await?;
    let step = ctx.report.step(step);
    let replace = async || site.engine.replace(ctx, image, keep).await;
    let replaced =
        image::once_there_is_room(ctx, &site.engine, &site.session, image, replace).await;
    match replaced {
        Ok(server) => {
            database::note_ended(ctx, ended, &name);
            let ctx = &ctx.uninterrupted();
            let moved = async {
                site.move_to_closed(ctx, server).await?;
                carried.give_back(&site.session).await
            };
            if let Err(error) = moved.await {
                drop(step);
                if keep.is_none() {
                    go_back(ctx, site).await;
                }
                return Err(error);
            }
            step.done(detail);
            Ok(true)
        }
        Err(_) if ctx.cancel.is_cancelled() => Err(Error::Interrupted),
        Err(error) => {
            drop(step);
            ctx.report.warn(format!("{refused}: {error}"));
            let server = site.engine.ensure(ctx).await?;
            site.move_to(ctx, server).await?;
            Ok(false)
        }
    }
}

/// Serves what was replaced again.
pub(crate) async fn go_back(ctx: &Context, site: &mut Site) {
    let warn = |what: &str, error: Error| ctx.report.warn(format!("{what}: {error}"));
    match site.engine.revert(ctx).await {
        Ok(server) => {
            if let Err(error) = site.move_to(ctx, server).await {
                warn(
                    "the old database is served again, and closed until the next `seedbed up`",
                    error,
                );
            }
        }
        Err(error) => {
            let what = "the old database is not served again, `seedbed undo-reset` brings it back";
            warn(what, error.into());
        }
    }
}

/// Decides about what was replaced, once the new one is whole.
pub(crate) async fn settle(ctx: &Context, site: &Site, keep: Keep) {
    if let Err(error) = site.engine.settle(ctx, keep).await {
        ctx.report.warn(format!("what was replaced stays on the disk: {error}"));
    }
}

/// What the blocks of users files do beside what their text says, as on each `up`.
pub(crate) async fn grant(ctx: &Context, site: &Site) -> Result<(), Error> {
    let names = DatabaseName::live(&ctx.config.database.name);
    users::apply_before(ctx, &site.server.admin, &names, &site.accounts).await?;
    users::apply_after(ctx, &site.server.admin, &names, &site.accounts).await?;
    Ok(())
}
