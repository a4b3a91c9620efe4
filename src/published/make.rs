//! An image made and published: build on a scratch server, scrub, store the data directory.

use jiff::Timestamp;
use serde::Serialize;

use super::document::{FORMAT, Image};
use super::pack::{self, Packed};
use super::platform::Platform;
use super::{Error, scrub};
use crate::config::EngineKind;
use crate::context::Context;
use crate::database;
use crate::engine::Keep;
use crate::error;
use crate::guard;
use crate::image;
use crate::journeys::{self, Seed, Site, Source, Wish};
use crate::pg::{self, Session};
use crate::report::{StepRecord, format};
use crate::scratch_server::{self, Purpose};
use crate::snapshot;
use crate::snapshot::choose::Facts;
use crate::snapshot::find::{self, Wanted};
use crate::snapshot::manifest::{self, Manifest};
use crate::store::{Put, Store};
use crate::{ancestor, connect};

const VERB: &str = "snapshot image";

/// What `snapshot image` ended with.
#[derive(Debug, Serialize)]
pub struct Made {
    pub id: String,
    pub object: String,
    pub store: String,
    pub snapshot: String,
    pub schema_version: Option<String>,
    pub major: u32,
    /// `x86_64-linux-gnu`.
    pub machine: String,
    pub files: usize,
    pub bytes: u64,
    pub stored_bytes: u64,
    pub steps: Vec<StepRecord>,
    pub warnings: Vec<String>,
}

/// Whether an image can be for this environment.
///
/// # Errors
/// Why not.
pub fn can_be_made_for(ctx: &Context) -> Result<(), error::Error> {
    guard::replace_in_environment(ctx, VERB)?;
    if ctx.config.engine.kind == EngineKind::External {
        let environment = ctx.config.environment.clone();
        return Err(Error::NoServerOfOurs { environment }.into());
    }
    Ok(())
}

/// Builds the snapshot `id`, or the newest that fits this checkout, as `reset` would in this
/// environment, and publishes the ready data directory.
///
/// # Errors
/// Any; there is no image then.
pub async fn make(ctx: &Context, id: Option<&str>) -> Result<Made, error::Error> {
    can_be_made_for(ctx)?;
    let files = journeys::read_files(ctx)?;
    let store = Store::open(ctx).await?;
    let wanted = match id {
        Some(id) => Wanted::Id(id.to_owned()),
        None => Wanted::Newest { skip_damaged: false },
    };
    let step = ctx.report.step("choose snapshot");
    let listing = find::listing(ctx, &store).await?;
    let checkout = find::checkout(ctx, &files.scripts);
    let unknown = Facts { proved_only: ctx.config.restore.proved_only, ..Facts::unknown() };
    let manifest = find::find(ctx, &store, &listing, &wanted, &checkout, &unknown).await?;
    step.done(manifest.id.clone());
    let purpose = Purpose { folder: "image", verb: VERB, major: manifest.server.major() };
    let image = scratch_server::with(ctx, purpose, async |ctx, engine, server| {
        let session = connect::session(&server.admin).await?;
        let site = Site::on_scratch(engine.clone(), server.clone(), session, files);
        build_and_store(ctx, &store, site, manifest).await
    });
    let image = image.await?;
    let object = image.object();
    let document = image.write().map_err(|error| Error::Document { object: object.clone(), error });
    let put = ctx.until_cancelled(store.put_new(&object, document?.into(), &[])).await?;
    if put == Put::Exists {
        return Err(Error::Taken { object }.into());
    }
    Ok(Made {
        bytes: image.plain_bytes(),
        stored_bytes: image.stored_bytes(),
        files: image.files.len(),
        id: image.id,
        object,
        store: store.describe(),
        snapshot: image.snapshot,
        schema_version: image.schema_version,
        major: image.platform.major,
        machine: image.platform.machine,
        steps: ctx.report.records(),
        warnings: ctx.report.warnings(),
    })
}

/// The locales of all databases, as far as they are more than `C`. The live one has that of the snapshot.
async fn locales(
    session: &Session,
    name: &str,
    wanted: Option<&str>,
) -> Result<Vec<(String, String)>, error::Error> {
    let sql = "select datname::text, datcollate::text, datctype::text from pg_database";
    let rows = session.query(sql, &[]).await.map_err(looked)?;
    let mut locales = Vec::new();
    for row in rows {
        let (database, collate, ctype): (String, String, String) =
            (row.get(0), row.get(1), row.get(2));
        if database == name
            && let Some(wanted) = wanted
            && same(wanted) != same(&collate)
        {
            let what = format!("this server has no locale `{wanted}`");
            return Err(Error::Unlike { what }.into());
        }
        let plain = |locale: &str| matches!(locale, "C" | "POSIX");
        let found = (collate, ctype);
        if !locales.contains(&found) && [&found.0, &found.1].iter().any(|locale| !plain(locale)) {
            locales.push(found);
        }
    }
    Ok(locales)
}

/// `en_US.UTF-8` and `en_US.utf8` are one.
fn same(locale: &str) -> String {
    locale.to_ascii_lowercase().replace('-', "")
}

/// Refuses what the scrubbing would take away for good, and what it does not know.
async fn refuse_secrets(ctx: &Context, site: &Site, name: &str) -> Result<(), error::Error> {
    let mut known: Vec<String> = site.accounts.roles().into_iter().collect();
    known.push(site.owner(ctx).to_owned());
    known.push(site.server.admin.user.clone());
    let sql = "select rolname::text from pg_authid
               where rolpassword is not null and not rolname = any ($1) limit 1";
    if let Some(row) = site.session.query(sql, &[&known]).await.map_err(looked)?.first() {
        let role: String = row.get(0);
        let what = format!("the password of `{role}`, which a script has set,");
        return Err(Error::Secret { what }.into());
    }
    let session = connect::session(&site.server.admin.with_database(name)).await?;
    let sql = "select 'a user mapping' from pg_user_mapping where umoptions::text ~* 'password'
               union all select 'a foreign server' from pg_foreign_server where srvoptions::text ~* 'password'
               union all select 'a subscription' from pg_subscription where subconninfo ~* 'password'
               limit 1";
    let found = session.query(sql, &[]).await.map_err(looked)?;
    session.close().await;
    match found.first() {
        Some(row) => {
            let what = format!("the password of {}", row.get::<_, String>(0));
            Err(Error::Secret { what }.into())
        }
        None => Ok(()),
    }
}

fn looked(error: pg::Error) -> error::Error {
    error::Error::Database { what: "look at what was built".to_owned(), error }
}

/// Builds on the scratch server and stores its data directory, which the server does not outlive.
async fn build_and_store(
    ctx: &Context,
    store: &Store,
    site: Site,
    manifest: Manifest,
) -> Result<Image, error::Error> {
    journeys::make_roles(ctx, &site).await?;
    let snapshot_id = manifest.id.clone();
    let wish =
        Wish { seed: Seed::Id(snapshot_id.clone()), to: None, skip_damaged: false, keep: Keep::No };
    let locale = snapshot::locale(&manifest);
    // The building reads through a door of its own.
    let source =
        Source::Snapshot { store: Box::new(Store::open(ctx).await?), manifest: Box::new(manifest) };
    let keys = journeys::published_keys(ctx, &site, &source, &wish)?;
    let built = journeys::build(ctx, &site, &source, &wish).await?;
    let schema_version = built.schema_version;
    let name = built.scratch.final_name().to_owned();
    database::swap_in(ctx, built.scratch, Keep::No).await?;

    let target = connect::owner(ctx, &site.server, &name);
    let applied = journeys::applied(ctx, &target).await?;
    let session = connect::session(&site.server.admin.with_database(&name)).await?;
    let platform = Platform::of_data(&session).await.map_err(|error| error::Error::Database {
        what: "ask what the data is bound to".to_owned(),
        error,
    })?;
    session.close().await;
    let roles = image::roles(&site.session).await?;
    let locales = locales(&site.session, &name, locale.collate.as_deref()).await?;
    refuse_secrets(ctx, &site, &name).await?;
    image::settle(ctx, &site.server, &name).await?;
    let step = ctx.report.step("take out what is secret");
    ctx.until_cancelled(scrub::scrub(&site.server)).await?;
    step.done("");

    let made_at = Timestamp::now();
    let id = manifest::new_id(made_at);
    let step = ctx.report.step("store the data directory");
    let level = ctx.config.snapshot.compression_level;
    let packed = pack::pack(ctx, store, &site.engine, &id, level, &step).await?;
    let Packed { folders, files, pieces } = packed;
    let image = Image {
        format: FORMAT,
        id,
        made_at,
        snapshot: snapshot_id,
        build: keys.build,
        base: keys.base.filter(|_| ancestor::may_go_on(&applied)),
        applied,
        schema_version,
        database: name,
        roles,
        platform,
        locales,
        folders,
        files,
        pieces,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let (plain, stored) = (image.plain_bytes(), image.stored_bytes());
    step.done(format!("{} as {}", format::bytes(plain), format::bytes(stored)));
    Ok(image)
}
