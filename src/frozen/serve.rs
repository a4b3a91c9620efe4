//! A clone of an image in place of the server's data, and back again where what follows fails.

use super::blank;
use super::carried::Carried;
use crate::context::Context;
use crate::database;
use crate::engine::{self, Keep};
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
    /// It came from the store: it has no passwords.
    pub received: bool,
    pub step: &'static str,
    /// Of the step, when it is done.
    pub detail: &'a str,
    /// How it is said that the image is not taken.
    pub refused: &'a str,
}

/// What became of it.
pub(super) enum Served {
    /// It is served, and nobody is let in yet.
    Yes,
    /// More than this database would be replaced with it, which was said. Nothing was done.
    Refused,
    /// The old data is served again.
    Failed(engine::Error),
}

/// Serves a clone of an image in place of the server's data, where nothing but this database is replaced
/// with it. Nobody is let in yet, so that nobody comes before what is to be done first. Where it does not
/// start the old data is served again.
///
/// # Errors
/// What happened to the server; that the user asks to stop.
pub(super) async fn try_to_serve(
    ctx: &Context,
    site: &mut Site,
    keep: Option<Keep>,
    serving: &Serving<'_>,
) -> Result<Served, Error> {
    let Serving { image, roles, received, step, detail, refused } = serving;
    let name = ctx.config.database.name.clone();
    // Somebody may have come since it was looked at; nobody does from here on.
    if let Some(other) = image::held_with(&site.session, &name, Some(roles)).await? {
        ctx.report.note(format!("{refused}: it would replace {other} as well"));
        return Ok(Served::Refused);
    }
    let ended = site::sessions(&site.session, &name).await?;
    let carried = Carried::take(ctx, site, *received).await?;
    let step = ctx.report.step(*step);
    let holds = blank::empty(ctx, site).await?;
    let replace = async || site.engine.replace(ctx, image, keep, holds).await;
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
                if keep.is_none() && go_back(ctx, site).await {
                    carried.forget(ctx);
                }
                return Err(error);
            }
            step.done(*detail);
            Ok(Served::Yes)
        }
        Err(_) if ctx.cancel.is_cancelled() => Err(Error::Interrupted),
        Err(error) => {
            drop(step);
            if site.session.batch("select 1").await.is_err() {
                // It was stopped for this.
                database::note_ended(ctx, ended, &name);
            }
            let again = async {
                let server = site.engine.ensure(ctx).await?;
                site.move_to(ctx, server).await
            };
            match again.await {
                Ok(()) => {
                    carried.forget(ctx);
                    Ok(Served::Failed(error))
                }
                Err(lost) => {
                    ctx.report.warn(format!("the old database is not reached: {lost}"));
                    Err(error.into())
                }
            }
        }
    }
}

/// The same; whatever is in the way is said. `false`: it is not served.
///
/// # Errors
/// As [`try_to_serve`].
pub(crate) async fn serve(
    ctx: &Context,
    site: &mut Site,
    keep: Option<Keep>,
    serving: &Serving<'_>,
) -> Result<bool, Error> {
    match try_to_serve(ctx, site, keep, serving).await? {
        Served::Yes => Ok(true),
        Served::Refused => Ok(false),
        Served::Failed(error) => {
            ctx.report.warn(format!("{}: {error}", serving.refused));
            Ok(false)
        }
    }
}

/// Serves what was replaced again; whether it is.
pub(crate) async fn go_back(ctx: &Context, site: &mut Site) -> bool {
    let warn = |what: &str, error: Error| ctx.report.warn(format!("{what}: {error}"));
    match site.engine.revert(ctx).await {
        Ok(server) => {
            if let Err(error) = site.move_to(ctx, server).await {
                let what =
                    "the old database is served again, and closed until the next `seedbed up`";
                warn(what, error);
            }
            true
        }
        Err(error) => {
            let what = "the old database is not served again, `seedbed undo-reset` brings it back";
            warn(what, error.into());
            false
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
