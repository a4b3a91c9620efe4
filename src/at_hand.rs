//! What is frozen, taken instead of a build. For what is on this machine no store is asked.

use std::time::Duration;

use jiff::Timestamp;

use crate::ancestor;
use crate::beside;
use crate::build::Built;
use crate::context::Context;
use crate::database::{self, Origin};
use crate::engine::Keep;
use crate::error::{Error, Exit};
use crate::fingerprint::{Rows, base, fingerprint, ground};
use crate::frozen::{self, Frozen, Live};
use crate::image;
use crate::published::{self, Arrival};
use crate::report::format;
use crate::site::Site;
use crate::source::{Seed, Source, Wish};

/// What came of it.
pub(crate) enum Taken {
    /// A database that is live.
    Live(Live),
    /// One that is to be swapped in.
    Built(Box<Built>, Frozen),
}

impl Taken {
    pub(crate) fn built((built, frozen): (Built, Frozen)) -> Self {
        Self::Built(Box::new(built), frozen)
    }
}

/// What a build of this checkout with these rows would give: a clone of its own image or template, else of the
/// nearest one, migrated from there.
///
/// # Errors
/// What is wrong with a script; what happened to the server.
pub(crate) async fn take(
    ctx: &Context,
    site: &mut Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<Taken>, Error> {
    if let Some(live) = frozen::from_image(ctx, site, rows, wish).await? {
        return Ok(Some(Taken::Live(live)));
    }
    if let Some(migrated) = beside::bring_forward(ctx, site, rows, wish).await?
        && let Some(live) = frozen::from_image(ctx, site, rows, wish).await?
    {
        return Ok(Some(Taken::Live(Live { migrated, ..live })));
    }
    if !frozen::template_is_here(ctx, site, rows, wish).await? {
        return match frozen::from_nearest_image(ctx, site, rows, wish).await? {
            Some(built) => freeze(ctx, site, built, wish).await.map(Some),
            None => Ok(None),
        };
    }
    clone(ctx, site, rows, wish).await
}

/// A clone of the template of this checkout with these rows, or of the nearest one, migrated from there.
///
/// # Errors
/// As [`take`].
pub(crate) async fn clone(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<Taken>, Error> {
    if let Some(built) = frozen::cloned(ctx, site, rows, wish).await? {
        return Ok(Some(Taken::built((built, Frozen::Already))));
    }
    match frozen::cloned_from_nearest(ctx, site, rows, wish).await? {
        Some(built) => freeze(ctx, site, built, wish).await.map(Some),
        None => Ok(None),
    }
}

async fn freeze(ctx: &Context, site: &Site, built: Built, wish: &Wish) -> Result<Taken, Error> {
    frozen::freeze_or_give_up(ctx, site, built, wish).await.map(Taken::built)
}

/// For a database that nobody else is to see, where none is live: the nearest image, of this machine or
/// published, migrated from there.
///
/// # Errors
/// As [`take`].
pub(crate) async fn take_unseen(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    if database::find(&site.session, &ctx.config.database.name).await?.is_some() {
        return Ok(None);
    }
    let rows = Rows::of(source);
    if let Some(built) = frozen::from_nearest_image(ctx, site, rows, wish).await? {
        return Ok(Some(built));
    }
    match published::arrive(ctx, site, source, wish, published::For::Scratch).await? {
        Arrival::Migrated(built) => Ok(Some(*built)),
        Arrival::None | Arrival::Live(_) => Ok(None),
    }
}

/// A snapshot of which only the id is known: its rows may be had of what is frozen here.
pub(crate) struct Known {
    pub id: String,
    pub why: Why,
}

/// Why they are taken without a look at the store.
pub(crate) enum Why {
    /// A new branch begins with them; what is to be said of it.
    Begins { note: String },
    /// They were asked for once more.
    Again,
}

/// The snapshot whose rows a new branch begins with: the newest one of which an image is here that this checkout
/// can go on from. What the store has by now is for `reset`. `None`: the store is to be asked.
///
/// # Errors
/// What the server said; what is wrong with the files.
pub(crate) async fn newest(
    ctx: &Context,
    site: &Site,
    wish: &Wish,
) -> Result<Option<Known>, Error> {
    let config = &ctx.config;
    if config.branch.is_none()
        || wish.seed != Seed::Auto
        // It is not known of an image whether its snapshot was proved.
        || config.restore.proved_only
        || !config.images.enabled
        || !site.server.started_by_us
    {
        return Ok(None);
    }
    let images = match image::list(ctx, &site.engine).await {
        Ok(images) => images,
        Err(_) if ctx.cancel.is_cancelled() => return Err(Error::Interrupted),
        Err(error) => {
            ctx.report.note(format!("no image is begun with: {error}"));
            return Ok(None);
        }
    };
    let images: Vec<image::Facts> = images
        .into_iter()
        .map(|image| image.facts)
        .filter(|facts| facts.database == config.database.name)
        .collect();
    let misfits = image::misfits(&site.session, images.iter()).await?;
    let fitting = images.into_iter().zip(misfits).filter(|(_, misfit)| misfit.is_none());
    let of_snapshots = fitting.filter_map(|(facts, _)| match &facts.origin {
        Some(Origin::Snapshot { id, taken_at, .. }) => {
            Some((taken_at.parse::<Timestamp>().ok()?, id.clone(), facts))
        }
        _ => None,
    });
    let mut of_snapshots: Vec<(Timestamp, String, image::Facts)> = of_snapshots.collect();
    of_snapshots.sort_by(|a, b| (&b.0, &b.1).cmp(&(&a.0, &a.1)));
    let here = ancestor::Here::new(ctx, &site.scripts);
    for of_one in of_snapshots.chunk_by(|a, b| a.1 == b.1) {
        let Some((taken_at, id, _)) = of_one.first() else { continue };
        let rows = Rows::Snapshot(id);
        let (exact, base) = (fingerprint(ctx, site, rows, wish)?, base(ctx, site, rows, wish)?);
        let ground = ground(ctx, site, rows)?;
        let serves = |facts: &image::Facts| {
            facts.fingerprint == exact
                || ground.as_ref() == Some(&facts.fingerprint) && here.takes_rows(&facts.applied)
                || base.is_some()
                    && facts.base == base
                    && here.goes_on_from(&facts.applied, facts.origin.as_ref())
        };
        if of_one.iter().any(|(_, _, facts)| serves(facts)) {
            let note = note(ctx, id, *taken_at);
            return Ok(Some(Known { id: id.clone(), why: Why::Begins { note } }));
        }
    }
    Ok(None)
}

fn note(ctx: &Context, id: &str, taken_at: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(taken_at).as_secs();
    let age = format::age(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    let reset = typed(ctx, "reset");
    format!(
        "began with rows of {age} ago, snapshot {id}, of an image that is here; newer ones of the store: `{reset}`"
    )
}

/// A command about this environment, as it has to be typed.
fn typed(ctx: &Context, command: &str) -> String {
    match &ctx.config.branch {
        Some(branch) => format!("seedbed {command} --branch {}", branch.name()),
        None => format!("seedbed {command}"),
    }
}

/// What does instead where rows could not be had, or a script fails on those that were at hand.
pub(crate) async fn instead(
    ctx: &Context,
    site: &Site,
    wish: &Wish,
    known: Option<&Known>,
    error: Error,
) -> Error {
    let asks_the_store = matches!(wish.seed, Seed::Auto | Seed::Latest);
    let instead = match (known, error.exit()) {
        // Newer rows may do where a statement fails on these.
        (Some(Known { why: Why::Begins { .. }, .. }), Exit::Script) if matches!(&error, Error::Migrate(error) if error.failure().is_some()) =>
        {
            format!("begin with the newest rows of the store: `{}`", typed(ctx, "up --seed latest"))
        }
        (Some(Known { why: Why::Again, .. }), Exit::NoSnapshot) => return gone(ctx, error),
        // What went wrong with the question is not what the user has to know.
        (_, Exit::Store) if asks_the_store && is_here(ctx, site).await.unwrap_or(false) => format!(
            "the rows that `{}` came from are on this machine: `{}`",
            ctx.config.database.name,
            typed(ctx, "reset --seed same")
        ),
        _ => return error,
    };
    Error::Instead { what: String::new(), error: Box::new(error), instead }
}

/// Of a snapshot that is needed once more.
pub(crate) fn gone(ctx: &Context, error: Error) -> Error {
    match error.exit() {
        Exit::NoSnapshot => Error::Instead {
            what: "the snapshot that the live database came from is needed once more: ".to_owned(),
            error: Box::new(error),
            instead: format!("go on from the newest one: `{}`", typed(ctx, "reset")),
        },
        _ => error,
    }
}

/// Whether `reset --seed same` would find the rows that the live database came from frozen here.
async fn is_here(ctx: &Context, site: &Site) -> Result<bool, Error> {
    let live = database::find(&site.session, &ctx.config.database.name).await?;
    let origin = live.and_then(|live| live.marker).and_then(|marker| marker.origin);
    let Some(Origin::Snapshot { id, .. }) = origin else { return Ok(false) };
    let rows = Rows::Snapshot(&id);
    let wish = &Wish { seed: Seed::Id(id.clone()), to: None, skip_damaged: false, keep: Keep::No };
    let exact = fingerprint(ctx, site, rows, wish)?;
    let has_images = ctx.config.images.enabled && site.server.started_by_us;
    Ok(has_images && image::find(ctx, &site.engine, &exact).await?.is_some()
        || frozen::template_is_here(ctx, site, rows, wish).await?
        || beside::nearest(ctx, site, rows, wish).await?.is_some())
}
