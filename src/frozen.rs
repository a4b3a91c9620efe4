//! Ready databases that were frozen, taken instead of a build: templates and images, those of exactly this
//! checkout and those that it goes on from. And what was built, frozen in its turn.

use crate::ancestor;
use crate::build::{Built, given_up, migrate_clone, or_given_up};
use crate::connect;
use crate::context::Context;
use crate::database::{self, MadeBy, Marker, Origin, Scratch};
use crate::engine::{self, Keep};
use crate::error::Error;
use crate::fingerprint::{base, fingerprint};
use crate::image;
use crate::migrate;
use crate::pg::names::DatabaseName;
use crate::published::{self, Arrival};
use crate::site::{self, Site};
use crate::source::{Source, Wish};
use crate::template;
use crate::users::{self, Verifier};

/// The step in which an image of this machine is served.
const CLONE: &str = "serve a clone of the image";

/// A database that is live because its server's data was replaced.
pub(crate) struct Live {
    pub schema_version: Option<String>,
    pub origin: Option<Origin>,
}

/// The nearest image of this machine, else what is published, where no template is here.
///
/// # Errors
/// What happened to the server.
pub(crate) async fn arrive(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
) -> Result<Arrival, Error> {
    if template_is_here(ctx, site, source, wish).await? {
        return Ok(Arrival::None);
    }
    match from_nearest_image(ctx, site, source, wish).await? {
        Some(built) => Ok(Arrival::Migrated(Box::new(built))),
        None => published::arrive(ctx, site, source, wish, published::For::Everybody).await,
    }
}

/// Whether a template serves this build, exactly or nearly: nothing has to come from the store.
async fn template_is_here(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<bool, Error> {
    let name = &ctx.config.database.name;
    let found = database::list(&site.session).await?;
    let fingerprint = fingerprint(ctx, site, source, wish)?;
    if template::ready(&found, name, &fingerprint).is_some() {
        return Ok(true);
    }
    let Some(base) = base(ctx, site, source, wish)? else { return Ok(false) };
    Ok(!template::of_base(&site.session, name, &base).await?.is_empty())
}

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

/// The passwords of the server's roles: some the users files give only where they make a role.
async fn verifiers(site: &Site) -> Result<Vec<Verifier>, Error> {
    let found = users::verifiers(&site.session).await;
    found.map_err(|error| Error::Database { what: "look at passwords".to_owned(), error })
}

async fn give_back(site: &Site, verifiers: &[Verifier]) -> Result<(), Error> {
    let given = users::give_back(&site.session, verifiers).await;
    given.map_err(|error| Error::Database { what: "take passwords along".to_owned(), error })
}

/// The server's data replaced by a clone of the image that the same build left behind, if there is one
/// and nothing but this database is replaced with it.
pub(crate) async fn from_image(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Live>, Error> {
    if !ctx.config.images.enabled || !site.server.started_by_us {
        return Ok(None);
    }
    let name = ctx.config.database.name.clone();
    let fingerprint = fingerprint(ctx, site, source, wish)?;
    if is_small_template(ctx, site, &fingerprint).await? {
        return Ok(None);
    }
    let Some(facts) = image::find(ctx, &site.engine, &fingerprint).await? else { return Ok(None) };
    let misfits = image::misfits(&site.session, std::iter::once(&facts)).await?;
    if let Some(misfit) = misfits.into_iter().flatten().next() {
        ctx.report.note(format!("building anew, the image is not taken: {misfit}"));
        return Ok(None);
    }
    let shared = image::held_with(&site.session, &name, Some(&facts.roles)).await?;
    if let Some(other) = shared {
        ctx.report.note(format!("the image is not taken: it would replace {other} as well"));
        return Ok(None);
    }
    let sessions = site::sessions(&site.session, &name).await?;
    let verifiers = verifiers(site).await?;
    // What is replaced stays until all is done that may fail.
    let is_held = facts.received && database::find(&site.session, &name).await?.is_some();
    let keep = (!is_held).then_some(wish.keep);
    let step = ctx.report.step(CLONE);
    let replace = async || site.engine.replace(ctx, &fingerprint, keep).await;
    let replaced =
        image::once_there_is_room(ctx, &site.engine, &site.session, &fingerprint, replace).await;
    let server = match replaced {
        Ok(server) => server,
        // The old data is served again.
        Err(error @ (engine::Error::Died { .. } | engine::Error::NotReady { .. })) => {
            drop(step);
            ctx.report.warn(format!("building anew, the image does not start: {error}"));
            let server = site.engine.ensure(ctx).await?;
            site.move_to(ctx, server).await?;
            site.engine.drop_images(ctx, &[&fingerprint]).await?;
            return Ok(None);
        }
        Err(engine::Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => {
            drop(step);
            // Another environment of the project may have removed it a moment ago.
            let is_there = image::find(ctx, &site.engine, &fingerprint).await?.is_some();
            if is_there && !(is_held && matches!(error, engine::Error::NoSpace { .. })) {
                return Err(error.into());
            }
            ctx.report.note(format!("building anew, the image is not served: {error}"));
            let server = site.engine.ensure(ctx).await?;
            site.move_to(ctx, server).await?;
            return Ok(None);
        }
    };
    // It is done: whoever asks to stop now asks too late.
    let ctx = &ctx.uninterrupted();
    database::note_ended(ctx, sessions, &name);
    let complete = async {
        site.move_to_closed(ctx, server).await?;
        give_back(site, &verifiers).await?;
        let of = Some((fingerprint.as_str(), facts.base.as_deref()));
        database::renew(&site.session, &name, MadeBy::Image, of).await?;
        database::let_in(&site.session, &name).await?;
        if facts.received { grant(ctx, site).await } else { Ok(()) }
    };
    if let Err(error) = complete.await {
        drop(step);
        if is_held {
            go_back(ctx, site).await;
        }
        return Err(error);
    }
    if is_held {
        settle(ctx, site, wish.keep).await;
    }
    step.done(fingerprint);
    Ok(Some(Live { schema_version: facts.schema_version, origin: facts.origin }))
}

/// Where there is no database yet, as in a new branch: the server's data replaced by a clone of the image that
/// this checkout goes on from, and its database brought to where the checkout is before anybody sees it.
pub(crate) async fn from_nearest_image(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    let name = &ctx.config.database.name;
    let is_new = database::find(&site.session, name).await?.is_none();
    if !is_new || !ctx.config.images.enabled || !site.server.started_by_us {
        return Ok(None);
    }
    let Some(nearest) = nearest_image(ctx, site, source, wish).await? else { return Ok(None) };
    let facts = &nearest.found;
    let serving = Serving {
        image: &facts.fingerprint,
        roles: &facts.roles,
        step: CLONE,
        detail: &facts.fingerprint,
        refused: "the image is not taken",
    };
    if !serve(ctx, site, Some(wish.keep), serving).await? {
        return Ok(None);
    }
    ctx.report.note(nearest.note("image"));
    migrate_out_of_sight(ctx, site, source, wish).await.map(Some)
}

/// The image of this machine that this checkout goes on from.
pub(crate) async fn nearest_image(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<ancestor::Nearest<image::Facts>>, Error> {
    let Some(base) = base(ctx, site, source, wish)? else { return Ok(None) };
    let images = match image::of_base(ctx, &site.engine, &base).await {
        Ok(images) => images,
        Err(_) if ctx.cancel.is_cancelled() => return Err(Error::Interrupted),
        Err(error) => {
            ctx.report.note(format!("no image is gone on from: {error}"));
            return Ok(None);
        }
    };
    let misfits = image::misfits(&site.session, images.iter()).await?;
    let images = images.into_iter().zip(misfits);
    let images = images.filter_map(|(facts, misfit)| misfit.is_none().then_some(facts)).collect();
    let past = |facts: &image::Facts| (facts.applied.clone(), facts.made_at);
    let here = ancestor::Here::new(ctx, &site.scripts);
    Ok(ancestor::nearest(images, past, &here))
}

/// As [`from_nearest_image`], and with what is published: for a database that nobody else is to see.
pub(crate) async fn from_any_image(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    if database::find(&site.session, &ctx.config.database.name).await?.is_some() {
        return Ok(None);
    }
    if let Some(built) = from_nearest_image(ctx, site, source, wish).await? {
        return Ok(Some(built));
    }
    match published::arrive(ctx, site, source, wish, published::For::Scratch).await? {
        Arrival::Migrated(built) => Ok(Some(*built)),
        Arrival::None | Arrival::Live(_) => Ok(None),
    }
}

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
    let verifiers = verifiers(site).await?;
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
                give_back(site, &verifiers).await
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

/// Takes a database that came with an image out of sight and brings it to where this checkout is.
pub(crate) async fn migrate_out_of_sight(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<Built, Error> {
    let scratch = Scratch::out_of_sight(&site.server, &ctx.config.database.name).await?;
    migrate_clone(ctx, site, source, wish, scratch).await
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
    source: &Source,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    let name = &ctx.config.database.name;
    let fingerprint = fingerprint(ctx, site, source, wish)?;
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
    source: &Source,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    let name = &ctx.config.database.name;
    let Some(base) = base(ctx, site, source, wish)? else { return Ok(None) };
    let templates = template::of_base(&site.session, name, &base).await?;
    let past = |(_, marker): &(String, Marker)| {
        (marker.applied.clone(), marker.made_at.parse().unwrap_or_default())
    };
    let here = ancestor::Here::new(ctx, &site.scripts);
    let Some(nearest) = ancestor::nearest(templates, past, &here) else { return Ok(None) };
    ctx.report.note(nearest.note("template"));
    let started = std::time::Instant::now();
    let (template, marker) = &nearest.found;
    let scratch = Scratch::clone_of(ctx, &site.server, template, marker, site.owner(ctx)).await?;
    ctx.report.step_since("clone the nearest template", started).done("");
    migrate_clone(ctx, site, source, wish, scratch).await.map(Some)
}
