//! What a reset makes on a second server, beside the live one: images of this checkout.

use crate::ancestor::Nearest;
use crate::build::{self, Built};
use crate::config::EngineKind;
use crate::connect;
use crate::context::Context;
use crate::database;
use crate::engine::{self, Engine, Keep, Server, ServerKind};
use crate::error::{Error, Exit};
use crate::fingerprint::Rows;
use crate::frozen::{self, Frozen};
use crate::image;
use crate::migrate;
use crate::scratch_server::{self, Home, Purpose};
use crate::site::{self, Site};
use crate::source::{Source, Wish};

/// Where a database is live that is not replaced before the new one is whole: the image that this checkout goes on
/// from, served beside it, migrated there and frozen in its turn. Gives back the scripts that ran; the image
/// is this checkout's then.
///
/// # Errors
/// What is wrong with a script; what happened to the second server is a note.
pub(crate) async fn bring_forward(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<Vec<migrate::Ran>>, Error> {
    let Some(nearest) = nearest(ctx, site, rows, wish).await? else { return Ok(None) };
    if !is_alone(ctx, site, &nearest.found.roles).await? {
        return Ok(None);
    }
    frozen_beside(ctx, site, wish, async |ctx, second, wish| {
        frozen::from_nearest_image(ctx, second, rows, wish).await
    })
    .await
}

/// Where a large database is live: its rows are loaded on a second server, where they can be frozen before the first
/// script runs ([`frozen::freeze_ground`]); nothing of the live one would be. As [`bring_forward`].
///
/// # Errors
/// As [`bring_forward`]; what is wrong with the snapshot.
pub(crate) async fn build(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Vec<migrate::Ran>>, Error> {
    let Source::Snapshot { manifest, .. } = source else { return Ok(None) };
    let bytes = manifest.plain_bytes();
    if bytes.saturating_mul(2) > ctx.config.images.max_size
        || !is_worth_it(ctx, site, bytes, LOADED).await?
    {
        return Ok(None);
    }
    frozen_beside(ctx, site, wish, async |ctx, second, wish| {
        site::make_roles(ctx, second).await?;
        if !is_alone(ctx, site, &image::roles(&second.session).await?).await? {
            return Ok(None);
        }
        // Of another time, when the live one was too small for it.
        if let Some(built) = frozen::from_nearest_image(ctx, second, Rows::of(source), wish).await?
        {
            return Ok(Some(built));
        }
        frozen::move_in_first(ctx, second, source, wish).await?;
        if second.engine.moves_to_freeze(ctx)? {
            // Nothing that is loaded here would stay.
            return Ok(None);
        }
        let scratch = build::begin(ctx, second, source).await?;
        let (scratch, ground) = frozen::freeze_ground(ctx, second, source, wish, scratch).await?;
        match build::finish(ctx, second, source, wish, scratch).await {
            Ok(built) => Ok(Some(built)),
            Err(error) => Err(frozen::make_way(ctx, second, ground.as_deref(), error).await),
        }
    })
    .await
}

/// Whether an image with these roles, and those that the scripts will make, would be served in the end; says why not.
async fn is_alone(ctx: &Context, site: &Site, roles: &[String]) -> Result<bool, Error> {
    let name = &ctx.config.database.name;
    let mut roles = roles.to_vec();
    let live = database::find(&site.session, name).await?.and_then(|live| live.marker);
    if let Some(fingerprint) = live.and_then(|marker| marker.fingerprint)
        && let Some(of_live) = image::find(ctx, &site.engine, &fingerprint).await?
    {
        roles.extend(of_live.roles);
    }
    match image::shared_with(&site.session, name, Some(&roles), "").await? {
        None => Ok(true),
        Some(other) => {
            let why = format!("no second server: its image would replace {other} as well");
            ctx.report.note(why);
            Ok(false)
        }
    }
}

/// Freezes what `make` builds on a second server.
async fn frozen_beside(
    ctx: &Context,
    site: &Site,
    wish: &Wish,
    make: impl AsyncFnOnce(&Context, &mut Site, &Wish) -> Result<Option<Built>, Error>,
) -> Result<Option<Vec<migrate::Ran>>, Error> {
    let ctx = &with_engine_of(ctx, site)?;
    let purpose = Purpose { home: Home::Beside, verb: "reset", major: 0 };
    let files = site::read_files(ctx)?;
    let wish = &Wish { keep: Keep::No, ..wish.clone() };
    let work = async |ctx: &Context, engine: &Engine, server: &Server| {
        let session = connect::session(&server.admin).await?;
        let mut site = Site::on_scratch(engine.clone(), server.clone(), session, files).await?;
        let Some(built) = make(ctx, &mut site, wish).await? else { return Ok(None) };
        let (built, frozen) = frozen::freeze_or_give_up(ctx, &site, built, wish).await?;
        let Built { scratch, migrated, schema_version } = built;
        let Frozen::Later(inside) = frozen else {
            ctx.report.note("building anew: what the second server has built is no image");
            return Ok(None);
        };
        database::swap_in(ctx, scratch, Keep::No).await?;
        frozen::freeze_image(ctx, &mut site, schema_version, inside).await?;
        Ok(Some(migrated))
    };
    match Box::pin(scratch_server::with(ctx, purpose, work)).await {
        Err(_) if ctx.cancel.is_cancelled() => Err(Error::Interrupted),
        Err(error) if error.exit() == Exit::Server => {
            ctx.report.note(format!("building anew, on no second server: {error}"));
            Ok(None)
        }
        migrated => migrated,
    }
}

/// The image that a second server would go on from, where one is worth its start.
pub(crate) async fn nearest(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<Nearest<image::Facts>>, Error> {
    let name = &ctx.config.database.name;
    let bytes = match database::find(&site.session, name).await? {
        Some(_) => image::size_of(&site.session, name).await?,
        None => return Ok(None),
    };
    match is_worth_it(ctx, site, bytes, BROUGHT).await? {
        true => frozen::nearest_image(ctx, site, rows, wish).await,
        false => Ok(None),
    }
}

/// Whether a second server is worth its start for a database of so many bytes.
async fn is_worth_it(ctx: &Context, site: &Site, bytes: u64, times: u64) -> Result<bool, Error> {
    let images = &ctx.config.images;
    Ok(images.enabled
        && site.server.started_by_us
        && bytes >= images.min_size.saturating_mul(times)
        && database::find(&site.session, &ctx.config.database.name).await?.is_some()
        // Where it lies elsewhere nothing keeps the image when the second server goes.
        && !site.engine.moves_to_freeze(ctx)?)
}

/// The configuration by which a second server is what the environment's is, whatever else is here.
fn with_engine_of(ctx: &Context, site: &Site) -> Result<Context, Error> {
    let mut config = (*ctx.config).clone();
    config.engine.kind = match site.server.kind {
        ServerKind::Docker => EngineKind::Docker,
        ServerKind::Native => EngineKind::Native,
        ServerKind::Embedded => EngineKind::Embedded,
        ServerKind::External => EngineKind::External,
    };
    if let Some(native) = engine::state::read(ctx)?.native {
        config.engine.bin_dir = Some(native.bin_dir);
    }
    // What is frozen has it: another one would have to be set at each reset.
    config.engine.superuser_password.clone_from(&site.server.admin.password);
    Ok(Context { config: std::sync::Arc::new(config), ..ctx.clone() })
}

/// A database is so many times as large as the smallest that is frozen as an image before a second server is
/// worth its start: the rows of a smaller one are loaded in the same time.
const BROUGHT: u64 = 2;

/// The same where its rows have to be loaded all the same, which takes a second server some seconds more: each script
/// that is changed later is worth them.
const LOADED: u64 = 4;
