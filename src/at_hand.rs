//! What is frozen on this machine, taken instead of a build. No store is asked.

use jiff::Timestamp;

use crate::ancestor;
use crate::beside;
use crate::build::Built;
use crate::context::Context;
use crate::database::{self, Origin};
use crate::error::{Error, Exit};
use crate::fingerprint::{Rows, base, fingerprint};
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

/// The snapshot whose rows a new branch begins with: the newest one of which an image is here that this checkout
/// can go on from. What the store has by now is for `reset`. `None`: the store is to be asked.
///
/// # Errors
/// What the server said; what is wrong with the files.
pub(crate) async fn newest(
    ctx: &Context,
    site: &Site,
    wish: &Wish,
) -> Result<Option<String>, Error> {
    let Some(branch) = &ctx.config.branch else { return Ok(None) };
    let config = &ctx.config;
    if wish.seed != Seed::Auto
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
    let images: Vec<image::Facts> = images.into_iter().map(|image| image.facts).collect();
    let misfits = image::misfits(&site.session, images.iter()).await?;
    let fitting = images.into_iter().zip(misfits).filter(|(_, misfit)| misfit.is_none());
    let mut fitting: Vec<(Timestamp, String, image::Facts)> = fitting
        .filter_map(|(facts, _)| match &facts.origin {
            Some(Origin::Snapshot { id, taken_at, .. }) => {
                Some((taken_at.parse().ok()?, id.clone(), facts))
            }
            _ => None,
        })
        .collect();
    fitting.sort_by(|a, b| (&b.0, &b.1).cmp(&(&a.0, &a.1)));
    let here = ancestor::Here::new(ctx, &site.scripts);
    for of_one in fitting.chunk_by(|a, b| a.1 == b.1) {
        let Some((taken_at, id, _)) = of_one.first() else { continue };
        let rows = Rows::Snapshot(id);
        let (exact, base) = (fingerprint(ctx, site, rows, wish)?, base(ctx, site, rows, wish)?);
        let serves = |facts: &image::Facts| {
            facts.fingerprint == exact
                || base.is_some() && facts.base == base && here.goes_on_from(&facts.applied)
        };
        if !of_one
            .iter()
            .any(|(_, _, facts)| facts.database == config.database.name && serves(facts))
        {
            continue;
        }
        let age = Timestamp::now().duration_since(*taken_at).as_secs();
        let age = format::age(std::time::Duration::from_secs(u64::try_from(age).unwrap_or(0)));
        ctx.report.note(format!(
            "rows of snapshot {id} of {age} ago, of which an image is here; `seedbed reset --branch {}` asks \
             the store for newer ones",
            branch.name()
        ));
        return Ok(Some(id.clone()));
    }
    Ok(None)
}

/// What is said beside a store that did not answer, where the rows that the live database came from are here.
pub(crate) async fn instead_of_the_store(
    ctx: &Context,
    site: &Site,
    wish: &Wish,
    error: Error,
) -> Error {
    if error.exit() != Exit::Store || !matches!(wish.seed, Seed::Auto | Seed::Latest) {
        return error;
    }
    match is_here(ctx, site, wish).await {
        Ok(true) => Error::NoData {
            what: String::new(),
            error: Box::new(error),
            instead: "the rows that it came from are on this machine: `seedbed reset --seed same`"
                .to_owned(),
        },
        // The store is what the user has to know of.
        Ok(false) | Err(_) => error,
    }
}

/// Whether the rows that the live database came from are frozen here.
async fn is_here(ctx: &Context, site: &Site, wish: &Wish) -> Result<bool, Error> {
    let live = database::find(&site.session, &ctx.config.database.name).await?;
    let origin = live.and_then(|live| live.marker).and_then(|marker| marker.origin);
    let Some(Origin::Snapshot { id, .. }) = origin else { return Ok(false) };
    let rows = Rows::Snapshot(&id);
    let exact = fingerprint(ctx, site, rows, wish)?;
    Ok(image::find(ctx, &site.engine, &exact).await?.is_some()
        || frozen::template_is_here(ctx, site, rows, wish).await?)
}
