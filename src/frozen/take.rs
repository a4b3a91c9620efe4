//! Templates and images of this machine, taken instead of a build: those of exactly this checkout and those that
//! it goes on from.

use super::ground::make_way;
use super::serve::{Served, Serving, go_back, grant, serve, settle, try_to_serve};
use crate::ancestor;
use crate::build::{Built, migrate_clone, or_given_up, run_all};
use crate::connect;
use crate::context::Context;
use crate::database::{self, MadeBy, Marker, Origin, Scratch};
use crate::engine;
use crate::error::Error;
use crate::fingerprint::{Rows, base, fingerprint, ground};
use crate::image::{self, Facts};
use crate::migrate;
use crate::site::Site;
use crate::source::Wish;
use crate::template;
use crate::users;

/// Of an image of this machine.
fn serving(facts: &Facts) -> Serving<'_> {
    Serving {
        image: &facts.fingerprint,
        roles: &facts.roles,
        received: facts.received,
        step: "serve a clone of the image",
        detail: &facts.fingerprint,
        refused: "the image is not taken",
    }
}

/// A database that is live because its server's data was replaced.
pub(crate) struct Live {
    /// Scripts that ran for it.
    pub migrated: Vec<migrate::Ran>,
    pub schema_version: Option<String>,
    pub origin: Option<Origin>,
}

/// The server's data replaced by a clone of the image that the same build left behind, if there is one
/// and nothing but this database is replaced with it.
pub(crate) async fn from_image(
    ctx: &Context,
    site: &mut Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<Live>, Error> {
    if !ctx.config.images.enabled || !site.server.started_by_us {
        return Ok(None);
    }
    let name = ctx.config.database.name.clone();
    let fingerprint = fingerprint(ctx, site, rows, wish)?;
    if is_small_template(ctx, site, &fingerprint).await? {
        return Ok(None);
    }
    let Some(facts) = image::find(ctx, &site.engine, &fingerprint).await? else { return Ok(None) };
    let misfits = image::misfits(&site.session, std::iter::once(&facts)).await?;
    if let Some(misfit) = misfits.into_iter().flatten().next() {
        ctx.report.note(format!("building anew, the image is not taken: {misfit}"));
        return Ok(None);
    }
    // What is replaced stays until all is done that may fail.
    let is_held = facts.received && database::find(&site.session, &name).await?.is_some();
    let keep = (!is_held).then_some(wish.keep);
    match try_to_serve(ctx, site, keep, &serving(&facts)).await? {
        Served::Yes => {}
        Served::Refused => return Ok(None),
        Served::Failed(error @ (engine::Error::Died { .. } | engine::Error::NotReady { .. })) => {
            ctx.report.warn(format!("building anew, the image does not start: {error}"));
            site.engine.drop_images(ctx, &[&fingerprint]).await?;
            return Ok(None);
        }
        Served::Failed(error) => {
            // Another environment of the project may have removed it a moment ago.
            let is_there = image::find(ctx, &site.engine, &fingerprint).await?.is_some();
            if is_there && !(is_held && matches!(error, engine::Error::NoSpace { .. })) {
                return Err(error.into());
            }
            ctx.report.note(format!("building anew, the image is not served: {error}"));
            return Ok(None);
        }
    }
    // It is done: whoever asks to stop now asks too late.
    let ctx = &ctx.uninterrupted();
    let complete = async {
        let of = Some((fingerprint.as_str(), facts.base.as_deref()));
        database::renew(&site.session, &name, MadeBy::Image, of).await?;
        database::let_in(&site.session, &name).await?;
        if facts.received { grant(ctx, site).await } else { Ok(()) }
    };
    if let Err(error) = complete.await {
        if is_held {
            go_back(ctx, site).await;
        }
        return Err(error);
    }
    if is_held {
        settle(ctx, site, wish.keep).await;
    }
    let Facts { schema_version, origin, .. } = facts;
    Ok(Some(Live { migrated: Vec::new(), schema_version, origin }))
}

/// Where there is no database yet, as in a new branch: the server's data replaced by a clone of the image that
/// this checkout goes on from, and its database brought to where the checkout is before anybody sees it.
pub(crate) async fn from_nearest_image(
    ctx: &Context,
    site: &mut Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    let name = &ctx.config.database.name;
    let is_new = database::find(&site.session, name).await?.is_none();
    if !is_new || !ctx.config.images.enabled || !site.server.started_by_us {
        return Ok(None);
    }
    let Some(nearest) = nearest_image(ctx, site, rows, wish).await? else { return Ok(None) };
    if !serve(ctx, site, Some(wish.keep), &serving(&nearest.found)).await? {
        return Ok(None);
    }
    ctx.report.note(nearest.note("image"));
    if !nearest.found.is_ground {
        return migrate_out_of_sight(ctx, site, rows, wish).await.map(Some);
    }
    // As in a build, which has made what stands before the rows.
    let scratch = Scratch::out_of_sight(&site.server, name).await?;
    let built =
        or_given_up(ctx, scratch, async |scratch| run_all(ctx, site, rows, wish, scratch).await);
    match built.await {
        Ok(built) => Ok(Some(built)),
        Err(error) => {
            let ground = &nearest.found.fingerprint;
            Err(make_way(ctx, site, Some(ground), error).await)
        }
    }
}

/// The image of this machine that this checkout goes on from: the one that went the same way for the longest, else
/// the rows alone.
pub(crate) async fn nearest_image(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<ancestor::Nearest<image::Facts>>, Error> {
    let found = match images_to_go_on_from(ctx, site, rows, wish).await {
        Err(_) if ctx.cancel.is_cancelled() => return Err(Error::Interrupted),
        Err(Error::Engine(error)) => {
            ctx.report.note(format!("no image is gone on from: {error}"));
            return Ok(None);
        }
        found => found?,
    };
    let misfits = image::misfits(&site.session, found.iter()).await?;
    let fitting = found.into_iter().zip(misfits);
    let fitting = fitting.filter_map(|(facts, misfit)| misfit.is_none().then_some(facts));
    let (grounds, images) = fitting.partition(|facts: &Facts| facts.is_ground);
    let past = |facts: &Facts| (facts.applied.clone(), facts.made_at);
    let here = ancestor::Here::new(ctx, &site.scripts);
    let nearest = ancestor::nearest(images, past, &here);
    Ok(nearest.or_else(|| ancestor::ground(grounds, past, &here)))
}

/// Those of the same base, and those of the same rows.
async fn images_to_go_on_from(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Vec<Facts>, Error> {
    let mut found = match base(ctx, site, rows, wish)? {
        Some(base) => image::of_base(ctx, &site.engine, &base).await?,
        None => Vec::new(),
    };
    if let Some(ground) = ground(ctx, site, rows)? {
        let found_ground = image::find(ctx, &site.engine, &ground).await?;
        found.extend(found_ground.filter(|facts| facts.is_ground));
    }
    Ok(found)
}

/// Takes a database that came with an image out of sight and brings it to where this checkout is.
pub(crate) async fn migrate_out_of_sight(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Built, Error> {
    let scratch = Scratch::out_of_sight(&site.server, &ctx.config.database.name).await?;
    migrate_clone(ctx, site, rows, wish, scratch).await
}

/// Whether a template serves this build, exactly or nearly: nothing has to come from the store.
pub(crate) async fn template_is_here(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<bool, Error> {
    let name = &ctx.config.database.name;
    let found = database::list(&site.session).await?;
    let fingerprint = fingerprint(ctx, site, rows, wish)?;
    Ok(template::ready(&found, name, &fingerprint).is_some()
        || nearest_template(ctx, site, rows, wish).await?.is_some())
}

/// The template that this checkout goes on from.
async fn nearest_template(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<ancestor::Nearest<(String, Marker)>>, Error> {
    let name = &ctx.config.database.name;
    let Some(base) = base(ctx, site, rows, wish)? else { return Ok(None) };
    let templates = template::of_base(&site.session, name, &base).await?;
    let past = |(_, marker): &(String, Marker)| {
        (marker.applied.clone(), marker.made_at.parse().unwrap_or_default())
    };
    Ok(ancestor::nearest(templates, past, &ancestor::Here::new(ctx, &site.scripts)))
}

/// Whether the same build stands as a template that is too small for an image: it is cloned in less time
/// than a look into the pool takes, where other projects have one.
async fn is_small_template(ctx: &Context, site: &Site, fingerprint: &str) -> Result<bool, Error> {
    let found = database::list(&site.session).await?;
    match template::ready(&found, &ctx.config.database.name, fingerprint) {
        Some((name, _)) => {
            Ok(image::size_of(&site.session, name).await? < ctx.config.images.min_size)
        }
        None => Ok(false),
    }
}

/// A clone of the template that the same build left behind, if there is one.
pub(crate) async fn cloned(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    let name = &ctx.config.database.name;
    let fingerprint = fingerprint(ctx, site, rows, wish)?;
    let started = std::time::Instant::now();
    let scratch =
        template::clone_ready(ctx, &site.server, name, site.owner(ctx), &fingerprint).await?;
    let Some(scratch) = scratch else { return Ok(None) };
    ctx.report.step_since("clone the frozen template", started).done("");
    // Privileges on the database itself stand outside of what a clone copies.
    let built = or_given_up(ctx, scratch, async |scratch| {
        let names = scratch.names();
        users::apply_before(ctx, &site.server.admin, &names, &site.accounts).await?;
        let target = connect::owner(ctx, &site.server, scratch.name());
        let info = migrate::info(ctx, &target, &site.scripts).await?;
        Ok((Vec::new(), info.schema_version))
    });
    built.await.map(Some)
}

/// A clone of the template that went the same way for the longest, migrated from there.
pub(crate) async fn cloned_from_nearest(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    let Some(nearest) = nearest_template(ctx, site, rows, wish).await? else { return Ok(None) };
    ctx.report.note(nearest.note("template"));
    let started = std::time::Instant::now();
    let (template, marker) = &nearest.found;
    let scratch = Scratch::clone_of(ctx, &site.server, template, marker, site.owner(ctx)).await?;
    ctx.report.step_since("clone the nearest template", started).done("");
    migrate_clone(ctx, site, rows, wish, scratch).await.map(Some)
}
