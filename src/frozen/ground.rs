//! The ground of a build: a snapshot's rows as they came, frozen before the first script runs.
//!
//! What follows it is what a build does, so each checkout of the same rows and accounts goes on from it, whatever its
//! scripts are: with one that was changed, with repeatable ones, with callbacks. A script that fails costs no
//! second load of the rows.

use super::freeze::{Attempt, freeze_closed, prune, why_no_image};
use crate::build::given_up;
use crate::connect;
use crate::context::Context;
use crate::database::{self, Applied, Scratch};
use crate::engine::{self, Keep};
use crate::error::Error;
use crate::fingerprint::{Rows, ground};
use crate::image;
use crate::migrate::{self, Scripts, Version};
use crate::site::Site;
use crate::snapshot::history;
use crate::source::{Source, Wish};

/// Freezes a scratch database that has its rows, where no database is live that would be frozen with it and
/// scripts are to run on it. Gives back the scratch database to go on with, and the image that was made. What cannot
/// be frozen costs only time.
///
/// # Errors
/// What happened to the server; the scratch database is dropped then.
pub(crate) async fn freeze_ground(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
    scratch: Scratch,
) -> Result<(Scratch, Option<String>), Error> {
    match ctx.until_cancelled(is_worth_it(ctx, site, source, wish, &scratch)).await {
        Ok(Some(what)) => freeze(ctx, site, scratch, what).await,
        Ok(None) => Ok((scratch, None)),
        Err(error) => Err(given_up(ctx, scratch, error).await),
    }
}

/// What is to be frozen.
struct Ground {
    fingerprint: String,
    /// The history that came with the rows.
    applied: Vec<Applied>,
    schema_version: Option<String>,
}

async fn is_worth_it(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
    scratch: &Scratch,
) -> Result<Option<Ground>, Error> {
    let Source::Snapshot { manifest, .. } = source else { return Ok(None) };
    let Some(fingerprint) = ground(ctx, site, Rows::of(source))? else { return Ok(None) };
    let bytes = image::size_of(&site.session, scratch.name()).await?;
    if wish.keep == Keep::Yes
        || !image::is_meant(ctx, &site.server, bytes)
        // Two of them are no more than what images may have.
        || bytes.saturating_mul(2) > ctx.config.images.max_size
        || database::find(&site.session, scratch.final_name()).await?.is_some()
        // It would be copied for this alone.
        || site.engine.moves_to_freeze(ctx)?
        || has_other_roles(site)
    {
        return Ok(None);
    }
    let applied = migrate::applied(ctx, &connect::owner(ctx, &site.server, scratch.name())).await?;
    if !some_run(&site.scripts, &applied)
        || !has_room(ctx, site, bytes).await?
        || why_no_image(ctx, site, scratch).await?.is_some()
        // One that was not to be had: what a script has left on this server since is not in it.
        || image::find(ctx, &site.engine, &fingerprint).await?.is_some()
    {
        return Ok(None);
    }
    let schema_version = history::current_version(&manifest.history);
    Ok(Some(Ground { fingerprint, applied, schema_version }))
}

/// Whether scripts that write all rows anew have the room that they would have without what is frozen.
async fn has_room(ctx: &Context, site: &Site, bytes: u64) -> Result<bool, Error> {
    match site.engine.free_bytes(ctx).await {
        Ok(free) => Ok(free >= bytes.saturating_mul(2)),
        Err(engine::Error::Interrupted) => Err(Error::Interrupted),
        Err(error) => {
            ctx.report.detail(format!("the rows alone are not frozen: {error}"));
            Ok(false)
        }
    }
}

/// Whether roles were here that neither the files nor the configuration make: one that a script made which failed
/// later would be in the way of the next.
fn has_other_roles(site: &Site) -> bool {
    let is_made = |role: &String| *role == site.accounts.owner || site.accounts.creates(role);
    !site.former_roles.iter().all(is_made)
}

/// Whether a build runs something on these.
fn some_run(scripts: &Scripts, applied: &[Applied]) -> bool {
    let has_run = |script: &migrate::Script| {
        applied.iter().filter(|row| row.checksum == Some(script.checksum)).any(|row| {
            match (&row.version, &script.version) {
                (None, None) => row.description == script.description,
                (Some(text), Some(version)) => Version::parse(text).is_ok_and(|it| it == *version),
                (Some(_), None) | (None, Some(_)) => false,
            }
        })
    };
    let mut all = scripts.versioned.iter().chain(&scripts.repeatable);
    !scripts.callbacks.is_empty() || !all.all(has_run)
}

async fn freeze(
    ctx: &Context,
    site: &mut Site,
    mut scratch: Scratch,
    what: Ground,
) -> Result<(Scratch, Option<String>), Error> {
    let Ground { fingerprint, applied, schema_version } = what;
    let marker = scratch.marker().clone();
    scratch.set_fingerprint(&fingerprint);
    let readied = ctx.until_cancelled(async {
        let inside = image::ready(ctx, &site.server, &scratch).await?;
        scratch.write_marker().await?;
        Ok::<_, Error>(inside)
    });
    let inside = match readied.await {
        Ok(inside) => image::Inside { applied, is_ground: true, ..inside },
        Err(error) => return Err(given_up(ctx, scratch, error).await),
    };
    // Its server is stopped with it. Killed from here on, the next run finds a scratch database, and drops it.
    let name = scratch.name().to_owned();
    scratch.release().await;
    let frozen = freeze_closed(ctx, site, &name, schema_version, inside).await?;
    let scratch = Scratch::again(&site.server, &name, marker).await?;
    if let Err(asked) = ctx.check_cancelled() {
        return Err(given_up(ctx, scratch, asked).await);
    }
    let made = match frozen {
        Attempt::Done => {
            prune(ctx, site).await;
            Some(fingerprint)
        }
        Attempt::NotTried => None,
        Attempt::Failed(error) => {
            ctx.report.warn(format!("the rows alone are not frozen: {error}"));
            None
        }
    };
    Ok((scratch, made))
}

/// Removes the frozen rows where what was built on them had no room: they hold on to all that scripts write anew. The
/// next run loads them again.
pub(crate) async fn make_way(
    ctx: &Context,
    site: &Site,
    ground: Option<&str>,
    error: Error,
) -> Error {
    if error.is_about_space()
        && let Some(ground) = ground
        && site.engine.drop_images(ctx, &[ground]).await.is_ok()
    {
        ctx.report.note("removed the frozen rows to make room: the next run loads them again");
    }
    error
}
