//! An image taken from the store: the server's data replaced by it.
//!
//! One that is exactly this checkout's becomes an image of this machine and is served as such; where
//! copies cannot share blocks it becomes the data itself, and a template of it is frozen. Where there is no
//! database yet, one of an earlier checkout will do as well: its database becomes a scratch one, which is
//! migrated before anybody sees it. Whatever is in the way is said, and the rows are loaded.

use super::document::{self, Image, PREFIX};
use super::unpack::Source as Pieces;
use super::{Error, estimate};
use crate::ancestor;
use crate::build::Built;
use crate::config::Published;
use crate::context::Context;
use crate::database::{self, Marker};
use crate::engine::{self, Keep, ServerKind};
use crate::error;
use crate::fingerprint::{self, PublishedKeys, Rows};
use crate::frozen::{self, Live, Serving};
use crate::image;
use crate::pg::{self, Session, quote};
use crate::platform::{self, Platform};
use crate::report::format;
use crate::site::Site;
use crate::snapshot::manifest::Manifest;
use crate::source::{self, Source, Wish};
use crate::store::{Store, cache::Cache};
use crate::template;

/// What became of it.
pub(crate) enum Arrival {
    /// None is there, or none is to be taken.
    None,
    /// It is live.
    Live(Live),
    /// It is migrated to where this checkout is, and to be swapped in.
    Migrated(Box<Built>),
}

/// Whom an image is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// People.
    Everybody,
    /// Who made it alone: its database does not become live.
    Scratch,
}

/// Takes the image of the source's snapshot, if there is one that fits and is faster than its rows.
///
/// # Errors
/// What happened to the server; what is wrong with an image is a warning.
pub(crate) async fn arrive(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
    whom: For,
) -> Result<Arrival, error::Error> {
    let Source::Snapshot { store, manifest } = source else { return Ok(Arrival::None) };
    let images = &ctx.config.images;
    if !images.enabled || images.published == Published::Never || !site.server.started_by_us {
        return Ok(Arrival::None);
    }
    let rows = Rows::of(source);
    let keys = fingerprint::published(ctx, site, rows, wish)?;
    let found = ctx.until_cancelled(find(ctx, site, store, &manifest.id, &keys)).await;
    let found = match found {
        Ok(found) => found,
        Err(error::Error::Interrupted) => return Err(error::Error::Interrupted),
        // An account that may not read it, or a store that fails: the rows may be had all the same.
        Err(error) => {
            ctx.report.warn(format!("loading rows, no published image: {error}"));
            return Ok(Arrival::None);
        }
    };
    let Some((found, fit)) = found else { return Ok(Arrival::None) };
    let place = match way(ctx, site, store, manifest, &found).await? {
        Way::Open(place) => place,
        Way::Closed(why) => {
            ctx.report.note(format!("loading rows, not the published image {}: {why}", found.id));
            return Ok(Arrival::None);
        }
    };
    let name = match fit {
        Fit::Exact => fingerprint::fingerprint(ctx, site, rows, wish)?,
        Fit::Nearest => engine::passing_image(ctx),
    };
    let facts = image::Facts {
        // Others go on from it as from one that was built here.
        base: match fit {
            Fit::Exact => fingerprint::base(ctx, site, rows, wish)?,
            Fit::Nearest => None,
        },
        ..facts_of(ctx, site.server.version_num, &found, &name, manifest)
    };
    let pieces = Pieces::new(ctx, store, &found);
    let step = ctx.report.step("fetch and unpack the published image");
    let facts = serde_json::to_string(&facts).expect("a struct of strings serializes");
    let mut handed = pieces.hand_to(ctx, &site.engine, &name, &facts, &step).await;
    if let Err(error::Error::Engine(error)) = &handed
        && error.is_full_pool()
        && image::make_room(ctx, &site.engine, "").await
    {
        handed = pieces.hand_to(ctx, &site.engine, &name, &facts, &step).await;
    }
    match handed {
        Ok(()) => step.done(format!(
            "{}, {} of them from the store",
            format::bytes(found.plain_bytes()),
            format::bytes(pieces.downloaded())
        )),
        Err(error::Error::Interrupted) => return Err(error::Error::Interrupted),
        Err(error) => {
            drop(step);
            ctx.report.warn(format!("loading rows, the published image {}: {error}", found.id));
            return Ok(Arrival::None);
        }
    }
    match (fit, whom) {
        (Fit::Exact, For::Everybody) => {
            serve(ctx, site, source, wish, (&found, place), &name).await
        }
        (Fit::Exact, For::Scratch) | (Fit::Nearest, _) => {
            migrate(ctx, site, source, wish, (&found, fit), &name).await
        }
    }
}

/// Where its rows came from. It has a base where each repeatable script in its history came with them.
fn origin_of(found: &Image, manifest: &Manifest) -> database::Origin {
    let repeatables = found.applied.iter().filter(|row| row.version.is_none());
    let came = found.base.as_ref().and_then(|_| repeatables.map(|row| row.rank).max());
    source::origin_of(manifest, came)
}

/// What is known of an image of this machine that was published, under `fingerprint`.
fn facts_of(
    ctx: &Context,
    server_version_num: i32,
    found: &Image,
    fingerprint: &str,
    manifest: &Manifest,
) -> image::Facts {
    image::Facts {
        format: image::FORMAT,
        fingerprint: fingerprint.to_owned(),
        database: found.database.clone(),
        project: ctx.config.project.to_string(),
        server_version_num,
        roles: found.roles.clone(),
        origin: Some(origin_of(found, manifest)),
        schema_version: found.schema_version.clone(),
        base: None,
        applied: found.applied.clone(),
        received: true,
        is_ground: false,
        platform: found.platform.clone(),
        made_at: jiff::Timestamp::now(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// A build of this checkout gives the same.
    Exact,
    /// The rest of the scripts has to run.
    Nearest,
}

/// What becomes of what was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// An image, whose clones share its blocks.
    Shelf,
    /// The data itself: there is no image any more.
    Data,
}

/// Whether an image is taken.
enum Way {
    Open(Place),
    /// Why the rows are loaded although it fits.
    Closed(String),
}

/// The newest exact one, else the nearest; says why there is none although images are there.
async fn find(
    ctx: &Context,
    site: &Site,
    store: &Store,
    snapshot: &str,
    keys: &PublishedKeys,
) -> Result<Option<(Image, Fit)>, error::Error> {
    let entries = store.list(&format!("{PREFIX}{snapshot}_")).await?;
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.retain(|name| document::parse_name(name).is_some_and(|(of, _, _)| of == snapshot));
    if names.is_empty() {
        return Ok(None);
    }
    let failed = |error| error::Error::Database {
        what: "ask what this server's data is bound to".to_owned(),
        error,
    };
    let here = Platform::of(&site.session).await.map_err(failed)?;
    let available = platform::available_extensions(&site.session).await.map_err(failed)?;
    // The newest first: a name ends with an id, which begins with its time.
    names.sort_by_key(|name| {
        std::cmp::Reverse(document::parse_name(name).map(|(_, _, id)| id.to_owned()))
    });
    let has_database = database::find(&site.session, &ctx.config.database.name).await?.is_some();
    let (mut why, mut nearest) = (None, Vec::new());
    for name in names {
        let is_here = document::parse_name(name).is_some_and(|(_, of, _)| of == here.hash());
        if !is_here {
            why.get_or_insert_with(|| "it is of another kind of server or machine".to_owned());
            continue;
        }
        let image = match read(store, name).await {
            Ok(image) => image,
            Err(
                error @ (error::Error::Published(_)
                | error::Error::Store(crate::store::Error::Missing { .. })),
            ) => {
                ctx.report.warn(format!("not taken: {error}"));
                why.get_or_insert_with(|| "it cannot be read".to_owned());
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(locale) = lacking_locale(&site.session, &image).await.map_err(failed)? {
            why.get_or_insert_with(|| format!("it needs the locale `{locale}`"));
        } else if image.database != ctx.config.database.name {
            why.get_or_insert_with(|| format!("its database is `{}`", image.database));
        } else if let Some(misfit) = image.platform.misfit(&here, &available) {
            why.get_or_insert(misfit);
        } else if image.build == keys.build {
            return Ok(Some((image, Fit::Exact)));
        } else if !has_database && image.base.is_some() && image.base == keys.base {
            nearest.push(image);
        } else {
            why.get_or_insert_with(|| {
                "it was built with other scripts, users files or settings".to_owned()
            });
        }
    }
    let past = |image: &Image| (image.applied.clone(), image.made_at);
    if let Some(found) = ancestor::nearest(nearest, past, &ancestor::Here::new(ctx, &site.scripts))
    {
        ctx.report.note(found.note("published image"));
        return Ok(Some((found.found, Fit::Nearest)));
    }
    let why = why.unwrap_or_else(|| "its scripts went another way".to_owned());
    ctx.report.note(format!("loading rows, not a published image: {why}"));
    Ok(None)
}

/// A locale of the image's databases that this server does not have.
async fn lacking_locale(session: &Session, image: &Image) -> Result<Option<String>, pg::Error> {
    for (collate, ctype) in &image.locales {
        let probe = format!(
            "begin; create collation pg_temp.seedbed_probe (lc_collate = {}, lc_ctype = {}); rollback",
            quote::literal(collate),
            quote::literal(ctype),
        );
        match session.batch(&probe).await {
            Ok(()) => {}
            Err(error) if error.sqlstate().is_some() => {
                session.batch("rollback").await?;
                let named =
                    if collate == ctype { collate.clone() } else { format!("{collate}, {ctype}") };
                return Ok(Some(named));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The document of this name.
///
/// # Errors
/// [`Error::Document`], or what the store said.
pub(super) async fn read(store: &Store, name: &str) -> Result<Image, error::Error> {
    let bytes = store.get(name, document::MAX_BYTES).await?;
    let image =
        Image::read(&bytes).map_err(|error| Error::Document { object: name.to_owned(), error })?;
    if image.object() != name {
        let error = crate::snapshot::manifest::ManifestError::Invalid {
            reason: format!("its name, which would be `{}`", image.object()),
        };
        return Err(Error::Document { object: name.to_owned(), error }.into());
    }
    Ok(image)
}

/// Whether an image that fits can be taken, and is faster than the rows.
async fn way(
    ctx: &Context,
    site: &Site,
    store: &Store,
    manifest: &Manifest,
    found: &Image,
) -> Result<Way, error::Error> {
    let name = &ctx.config.database.name;
    let shared = image::shared_with(&site.session, name, Some(&found.roles), "").await?;
    if let Some(other) = shared {
        return Ok(Way::Closed(format!("it would replace {other} as well")));
    }
    let always = ctx.config.images.published == Published::Always;
    // Before a pool is made for it.
    if !always && manifest.plain_bytes() < ctx.config.images.min_size {
        let why = "they come faster from here: there are few of them";
        return Ok(Way::Closed(why.to_owned()));
    }
    let place = match site.engine.can_freeze(ctx).await {
        Ok(()) => Place::Shelf,
        Err(engine::Error::Interrupted) => return Err(error::Error::Interrupted),
        Err(engine::Error::NoPool { .. }) if site.server.kind != ServerKind::Docker => Place::Data,
        Err(error) => return Ok(Way::Closed(error.to_string())),
    };
    if always {
        return Ok(Way::Open(place));
    }
    let pieces = Pieces::new(ctx, store, found);
    let speed = match ctx.until_cancelled(pieces.speed()).await {
        Ok(speed) => speed,
        Err(error::Error::Interrupted) => return Err(error::Error::Interrupted),
        Err(error) => return Ok(Way::Closed(error.to_string())),
    };
    let cache = Cache::open(ctx);
    let mut objects: Vec<(&str, u64)> =
        manifest.chunks().map(|chunk| (chunk.object.as_str(), chunk.stored_size)).collect();
    objects.retain(|(object, _)| !cache.has(object));
    let image = estimate::Work { missing: pieces.missing(), plain: found.plain_bytes() };
    let rows = estimate::Work {
        missing: objects.iter().map(|(_, size)| size).sum(),
        plain: manifest.plain_bytes(),
    };
    let expected = estimate::estimate(image, rows, speed, estimate::Pace::of(site.server.kind));
    if expected.image <= expected.rows {
        return Ok(Way::Open(place));
    }
    Ok(Way::Closed(format!(
        "they come faster from here, in some {} with {} to fetch instead of {} with {}",
        format::duration(expected.rows),
        format::bytes(rows.missing),
        format::duration(expected.image),
        format::bytes(image.missing)
    )))
}

/// Serves it in place of the server's data.
async fn serve(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
    (found, place): (&Image, Place),
    name: &str,
) -> Result<Arrival, error::Error> {
    let database = ctx.config.database.name.clone();
    // What is replaced stays until the new one is whole.
    let is_held = database::find(&site.session, &database).await?.is_some();
    let keep = (!is_held).then_some(wish.keep);
    if !replace(ctx, site, keep, found, name).await? {
        return Ok(Arrival::None);
    }
    // It is done: whoever asks to stop now asks too late.
    let ctx = &ctx.uninterrupted();
    if let Err(error) = complete(ctx, site, source, wish, (found, place), name).await {
        if is_held {
            frozen::go_back(ctx, site).await;
        }
        return Err(error);
    }
    if is_held {
        frozen::settle(ctx, site, wish.keep).await;
    }
    if place == Place::Shelf {
        frozen::prune(ctx, site).await;
    }
    let origin = match source {
        Source::Snapshot { manifest, .. } => Some(origin_of(found, manifest)),
        Source::Files(_) | Source::Nothing => None,
    };
    let schema_version = found.schema_version.clone();
    Ok(Arrival::Live(Live { migrated: Vec::new(), schema_version, origin }))
}

/// Brings what is served to what a build gives, and opens it.
async fn complete(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
    (found, place): (&Image, Place),
    name: &str,
) -> Result<(), error::Error> {
    let database = ctx.config.database.name.clone();
    let live = database::find(&site.session, &database).await?;
    if let Some(marker) = live.and_then(|live| live.marker) {
        let marker = Marker {
            fingerprint: Some(name.to_owned()),
            base: fingerprint::base(ctx, site, Rows::of(source), wish)?,
            ..marker.cloned(marker.kind, database::MadeBy::Image)
        };
        database::set_marker(&site.session, &database, &marker).await?;
        // What is frozen is what was published: whoever writes to it comes later.
        if place == Place::Data {
            freeze(ctx, site, found, &marker).await;
        }
    }
    let opened = database::allow_connections(&site.session, &database, "true").await;
    opened.map_err(|error| error::Error::Database { what: format!("open `{database}`"), error })?;
    frozen::grant(ctx, site).await
}

/// Freezes what is live as a template. It is whole already, so that what goes wrong here costs only the
/// next reset its time.
async fn freeze(ctx: &Context, site: &Site, found: &Image, marker: &Marker) {
    // Of no use where nobody could go on from it.
    let applied = if marker.base.is_some() { found.applied.clone() } else { Vec::new() };
    let frozen =
        template::freeze_live(ctx, &site.server, &site.session, marker, site.owner(ctx), applied);
    if let Err(error) = frozen.await {
        ctx.report.warn(format!("the next reset takes the published image once more: {error}"));
    }
}

/// Serves it, takes its database out of sight and migrates it.
async fn migrate(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
    (found, fit): (&Image, Fit),
    name: &str,
) -> Result<Arrival, error::Error> {
    if !replace(ctx, site, Some(wish.keep), found, name).await? {
        return Ok(Arrival::None);
    }
    if fit == Fit::Nearest {
        // Nobody can come back to it: it is no build of this checkout.
        site.engine.drop_images(ctx, &[name]).await?;
    } else {
        ctx.report.note("its scripts ran when the image was made");
    }
    let built = frozen::migrate_out_of_sight(ctx, site, Rows::of(source), wish).await?;
    Ok(Arrival::Migrated(Box::new(built)))
}

/// `false`: it could not be served, which was said, and the old data is.
async fn replace(
    ctx: &Context,
    site: &mut Site,
    keep: Option<Keep>,
    found: &Image,
    name: &str,
) -> Result<bool, error::Error> {
    let serving = Serving {
        image: name,
        roles: &found.roles,
        received: true,
        step: "serve it",
        detail: "",
        refused: &format!("loading rows, the published image {}", found.id),
    };
    if frozen::serve(ctx, site, keep, &serving).await? {
        return Ok(true);
    }
    // Nor is it to be tried by the next reset.
    site.engine.drop_images(ctx, &[name]).await?;
    Ok(false)
}
