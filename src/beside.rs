//! A reset of another checkout: an image is brought to where the checkout is on a second server, beside the live one.

use crate::ancestor::Nearest;
use crate::build::Built;
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
use crate::source::Wish;

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
    let name = &ctx.config.database.name;
    // It would not be served in the end.
    let shared = image::shared_with(&site.session, name, Some(&nearest.found.roles), "").await?;
    if let Some(other) = shared {
        ctx.report.note(format!("an image is not gone on from: it would replace {other} as well"));
        return Ok(None);
    }
    let ctx = &with_engine_of(ctx, site)?;
    let purpose = Purpose { home: Home::Beside, verb: "reset", major: 0 };
    let files = site::read_files(ctx)?;
    let wish = &Wish { keep: Keep::No, ..wish.clone() };
    let work = async |ctx: &Context, engine: &Engine, server: &Server| {
        let session = connect::session(&server.admin).await?;
        let mut site = Site::on_scratch(engine.clone(), server.clone(), session, files);
        let built = frozen::from_nearest_image(ctx, &mut site, rows, wish).await?;
        let Some(built) = built else { return Ok(None) };
        let (built, frozen) = frozen::freeze_or_give_up(ctx, &site, built, wish).await?;
        let Built { scratch, migrated, schema_version } = built;
        let Frozen::Later(inside) = frozen else { return Ok(None) };
        database::swap_in(ctx, scratch, Keep::No).await?;
        frozen::freeze_image(ctx, &mut site, schema_version, inside).await?;
        Ok(Some(migrated))
    };
    match Box::pin(scratch_server::with(ctx, purpose, work)).await {
        Err(_) if ctx.cancel.is_cancelled() => Err(Error::Interrupted),
        Err(error) if error.exit() == Exit::Server => {
            ctx.report.note(format!("building anew, an image is not gone on from: {error}"));
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
    if !ctx.config.images.enabled
        || !site.server.started_by_us
        || database::find(&site.session, name).await?.is_none()
        // Where it lies elsewhere nothing keeps the image when the second server goes.
        || site.engine.moves_to_freeze(ctx)?
        || image::size_of(&site.session, name).await? < ctx.config.images.min_size.saturating_mul(BESIDE)
    {
        return Ok(None);
    }
    frozen::nearest_image(ctx, site, rows, wish).await
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
/// worth its start: the rows of a smaller one are loaded in the same time (measured, from a folder: 3.7 against 9.9 s at
/// 300 MB, 13.0 against 13.6 s at 1.5 GB).
const BESIDE: u64 = 4;
