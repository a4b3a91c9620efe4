//! The one build: scratch database → accounts → rows → scripts → seed files → grants.

use crate::connect;
use crate::context::Context;
use crate::database::{self, Origin, Scratch};
use crate::error::Error;
use crate::fingerprint::{Rows, base, fingerprint};
use crate::migrate::{self, Scripts};
use crate::pg::Target;
use crate::pg::names::DatabaseName;
use crate::site::Site;
use crate::snapshot::{self, load};
use crate::source::{Source, Wish, origin_of};
use crate::{seed, users};

/// A database that is whole and not live yet.
pub(crate) struct Built {
    pub scratch: Scratch,
    pub migrated: Vec<migrate::Ran>,
    pub schema_version: Option<String>,
}

/// Finishes a scratch database; on an error, and when the user asks to stop, it is dropped.
pub(crate) async fn or_given_up(
    ctx: &Context,
    mut scratch: Scratch,
    work: impl AsyncFnOnce(&mut Scratch) -> Result<Ran, Error>,
) -> Result<Built, Error> {
    match ctx.until_cancelled(work(&mut scratch)).await {
        Ok((migrated, schema_version)) => Ok(Built { scratch, migrated, schema_version }),
        Err(error) => Err(given_up(ctx, scratch, error).await),
    }
}

/// Drops what was being built; returns why.
pub(crate) async fn given_up(ctx: &Context, scratch: Scratch, error: Error) -> Error {
    if let Err(left) = scratch.discard().await {
        ctx.report.detail(format!("the next run removes what is left: {left}"));
    }
    error
}

/// Brings a clone of an older build to where this checkout is.
pub(crate) async fn migrate_clone(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
    scratch: Scratch,
) -> Result<Built, Error> {
    or_given_up(ctx, scratch, async |scratch| {
        let names = scratch.names();
        users::apply_before(ctx, &site.server.admin, &names, &site.accounts).await?;
        run_all(ctx, site, rows, wish, scratch).await
    })
    .await
}

/// Creates a scratch database and fills it: accounts → rows → scripts → files → grants.
/// On an error the scratch database is dropped.
pub(crate) async fn build(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<Built, Error> {
    let scratch = begin(ctx, site, source).await?;
    finish(ctx, site, source, wish, scratch).await
}

/// The first half: a scratch database with the accounts and the rows that the scripts are to find.
/// On an error it is dropped.
pub(crate) async fn begin(ctx: &Context, site: &Site, source: &Source) -> Result<Scratch, Error> {
    let name = &ctx.config.database.name;
    let owner = site.owner(ctx);
    let locale = match source {
        Source::Snapshot { manifest, .. } => snapshot::locale(manifest),
        Source::Files(_) | Source::Nothing => database::Locale::default(),
    };
    let mut scratch = Scratch::create(ctx, &site.server, name, owner, &locale).await?;
    // In a box: the compiler gives up on futures that are nested as deep as this one.
    match ctx.until_cancelled(Box::pin(load_rows(ctx, site, source, &mut scratch))).await {
        Ok(()) => Ok(scratch),
        Err(error) => Err(given_up(ctx, scratch, error).await),
    }
}

/// The second half: scripts → files → grants. On an error the scratch database is dropped.
pub(crate) async fn finish(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
    scratch: Scratch,
) -> Result<Built, Error> {
    or_given_up(ctx, scratch, async |scratch| {
        Box::pin(run_all(ctx, site, Rows::of(source), wish, scratch)).await
    })
    .await
}

async fn load_rows(
    ctx: &Context,
    site: &Site,
    source: &Source,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let names = scratch.names();
    users::apply_before(ctx, &site.server.admin, &names, &site.accounts).await?;
    scratch.set_origin(match source {
        Source::Snapshot { store, manifest } => {
            let (tools, admin) = (&site.server.tools, scratch.admin());
            load::load(ctx, &admin, site.owner(ctx), tools, store, manifest).await?;
            // What stands above it is run by a build.
            let target = connect::owner(ctx, &site.server, scratch.name());
            let came = migrate::applied(ctx, &target).await?.iter().map(|row| row.rank).max();
            origin_of(manifest, came)
        }
        Source::Files(_) => Origin::Files,
        Source::Nothing => Origin::Empty,
    });
    Ok(())
}

/// Runs what a checkout has beside the rows, and notes on the marker what a build of it is known by.
pub(crate) async fn run_all(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
    scratch: &mut Scratch,
) -> Result<Ran, Error> {
    let names = scratch.names();
    let target = connect::owner(ctx, &site.server, scratch.name());
    let options = migrate::Options { target: wish.to.clone() };
    let ran = run_scripts(ctx, &site.scripts, &target, &names, &options).await?;
    if let Rows::Files(files) = rows {
        for file in files {
            seed::load_file(ctx, &target, Some(&site.server.tools), file).await?;
        }
    }
    users::apply_after(ctx, &site.server.admin, &names, &site.accounts).await?;
    scratch.set_fingerprint(&fingerprint(ctx, site, rows, wish)?);
    scratch.set_base(base(ctx, site, rows, wish)?);
    Ok(ran)
}

/// Scripts that ran, and the schema version after them.
pub(crate) type Ran = (Vec<migrate::Ran>, Option<String>);

/// The pending scripts. A project without any works too: what a snapshot brought then has no history,
/// and needs none.
pub(crate) async fn run_scripts(
    ctx: &Context,
    scripts: &Scripts,
    target: &Target,
    names: &DatabaseName,
    options: &migrate::Options,
) -> Result<Ran, Error> {
    match migrate::run(ctx, target, names, scripts, options).await {
        Ok(outcome) => Ok((outcome.applied, outcome.after)),
        Err(migrate::Error::NoHistory { .. }) if scripts.iter().next().is_none() => {
            Ok((Vec::new(), None))
        }
        Err(error) => Err(error.into()),
    }
}
