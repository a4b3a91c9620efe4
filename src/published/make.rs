//! An image made and published: build on a scratch server, scrub, store the data directory.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::document::{self, FORMAT, Image};
use super::pack::{self, Packed};
use super::{Error, scrub};
use crate::config::EngineKind;
use crate::context::Context;
use crate::database::{self, Locale, Provider};
use crate::engine::Keep;
use crate::error;
use crate::fingerprint::{self, Rows};
use crate::guard;
use crate::image;
use crate::pg::{self, Session};
use crate::platform::Platform;
use crate::report::{StepRecord, format};
use crate::scratch_server::{self, Home, Purpose};
use crate::site::{self, Site};
use crate::snapshot;
use crate::snapshot::choose::Facts;
use crate::snapshot::find::{self, Wanted};
use crate::snapshot::manifest::{self, Manifest};
use crate::snapshot::name::Name;
use crate::source::{Seed, Source, Wish};
use crate::store::{Put, Store};
use crate::{ancestor, build, connect, migrate, users};

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
    let files = site::read_files(ctx)?;
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
    let purpose =
        Purpose { home: Home::Folder("image"), verb: VERB, major: manifest.server.major() };
    let image = scratch_server::with(ctx, purpose, async |ctx, engine, server| {
        let session = connect::session(&server.admin).await?;
        let site = Site::on_scratch(engine.clone(), server.clone(), session, files).await?;
        build_and_store(ctx, &store, site, manifest).await
    });
    let image = image.await?;
    ctx.until_cancelled(still_there(&store, &image)).await?;
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
    wanted: &Locale,
) -> Result<Vec<(String, String)>, error::Error> {
    // Providers came with PostgreSQL 15, and 17 has renamed the column of their locale.
    let sql = "select datname::text, datcollate::text, datctype::text,
                      coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
                      coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale')
               from pg_database d";
    let rows = session.query(sql, &[]).await.map_err(looked)?;
    let mut locales = Vec::new();
    for row in rows {
        let (database, found): (String, (String, String)) = (row.get(0), (row.get(1), row.get(2)));
        if database == name {
            let provider: (String, Option<String>) = (row.get(3), row.get(4));
            if let Some(locale) = unlike(wanted, &found, (&provider.0, provider.1.as_deref())) {
                let what = format!("this server has no locale `{locale}`");
                return Err(Error::Unlike { what }.into());
            }
        }
        let plain = |locale: &str| matches!(locale, "C" | "POSIX");
        if !locales.contains(&found) && [&found.0, &found.1].iter().any(|locale| !plain(locale)) {
            locales.push(found);
        }
    }
    Ok(locales)
}

/// What of the wanted locale a database does not have: its `lc_collate` and `lc_ctype`, its provider's
/// letter in the catalog and that one's locale.
fn unlike(
    wanted: &Locale,
    (collate, ctype): &(String, String),
    (provider, locale): (&str, Option<&str>),
) -> Option<String> {
    for (wanted, found) in [(&wanted.collate, collate), (&wanted.ctype, ctype)] {
        if let Some(wanted) = wanted
            && same(wanted) != same(found)
        {
            return Some(wanted.clone());
        }
    }
    let (letter, name, wanted) = match &wanted.provider {
        None => return (provider != "c").then(|| wanted.collate.clone().unwrap_or_default()),
        Some(Provider::Icu { locale, .. }) => ("i", "icu", locale),
        Some(Provider::Builtin { locale }) => ("b", "builtin", locale),
    };
    let is_same = provider == letter && locale.map(same) == Some(same(wanted));
    (!is_same).then(|| format!("{wanted} ({name})"))
}

/// `en_US.UTF-8` and `en_US.utf8` are one, and so are ICU's `en_US` and `en-US`.
fn same(locale: &str) -> String {
    locale.to_ascii_lowercase().replace(['-', '_'], "")
}

/// Refuses what the scrubbing would take away for good, and what it does not know.
///
/// `known`: those with passwords that the users files have made, which give them wherever the image is taken.
async fn refuse_secrets(site: &Site, name: &str, known: &[String]) -> Result<(), error::Error> {
    let sql = "select rolname::text from pg_authid
               where rolpassword is not null and not rolname = any ($1) limit 1";
    if let Some(row) = site.session.query(sql, &[&known]).await.map_err(looked)?.first() {
        let role: String = row.get(0);
        let what = format!("the password of `{role}`, which a script has set,");
        return Err(Error::Secret { what }.into());
    }
    let session = connect::session(&site.server.admin.with_database(name)).await?;
    let found = session.query(SECRETS, &[&SECRET]).await.map_err(looked)?;
    session.close().await;
    match found.first() {
        Some(row) => Err(Error::Secret { what: row.get(0) }.into()),
        None => Ok(()),
    }
}

/// By what a secret is told: a word of an option's or a setting's name, or of what stands in it.
const SECRET: &str = "(passw|passcode|passphrase|secret|token|credential|api_?key|sslkey)";

/// Where one may stand beside the passwords of roles. Of a setting only its name counts; one of the team's
/// own (with a dot) may be a key of whatever kind.
const SECRETS: &str = "
select 'what looks like a secret in the options of a user mapping'
from pg_user_mapping where umoptions::text ~* $1
union all
select format('what looks like a secret in the options of the foreign server `%s`', srvname)
from pg_foreign_server where srvoptions::text ~* $1
union all
select format('what looks like a secret in the options of the foreign data wrapper `%s`', fdwname)
from pg_foreign_data_wrapper where fdwoptions::text ~* $1
union all
select format('the value of the setting `%s`, which looks like a secret,', name)
from pg_db_role_setting
cross join unnest(setconfig) as entry
cross join split_part(entry, '=', 1) as name
where (name ~* $1 or name ~* '[.](.*_)?key$') and name <> 'password_encryption'
limit 1";

/// Refuses an image of which a prune has taken something while it was made: its pieces are nobody's until the
/// document is there, and its snapshot may have been too old.
async fn still_there(store: &Store, image: &Image) -> Result<(), error::Error> {
    let gone = |what: String| Err(Error::Gone { object: image.object(), what }.into());
    let entries = store.list(&document::piece_name(&image.id, "")).await?;
    let sizes: BTreeMap<&str, u64> =
        entries.iter().map(|entry| (entry.name.as_str(), entry.size)).collect();
    for piece in &image.pieces {
        let object = image.object_of(piece);
        if sizes.get(object.as_str()) != Some(&piece.stored_size) {
            return gone(format!("`{object}`"));
        }
    }
    let entries = store.list(manifest::PREFIX).await?;
    let mut snapshots = entries.iter().filter_map(|entry| Name::parse(&entry.name));
    match snapshots.any(|name| name.id == image.snapshot) {
        true => Ok(()),
        false => gone(format!("the snapshot {}", image.snapshot)),
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
    site::make_roles(ctx, &site).await?;
    let verifiers = users::verifiers(&site.session).await.map_err(looked)?;
    let known: Vec<String> = verifiers.into_iter().map(|had| had.role).collect();
    let snapshot_id = manifest.id.clone();
    let wish =
        Wish { seed: Seed::Id(snapshot_id.clone()), to: None, skip_damaged: false, keep: Keep::No };
    let locale = snapshot::locale(&manifest);
    // The building reads through a door of its own.
    let source =
        Source::Snapshot { store: Box::new(Store::open(ctx).await?), manifest: Box::new(manifest) };
    let keys = fingerprint::published(ctx, &site, Rows::of(&source), &wish)?;
    let built = build::build(ctx, &site, &source, &wish).await?;
    let (schema_version, origin) = (built.schema_version, built.scratch.marker().origin.clone());
    let name = built.scratch.final_name().to_owned();
    database::swap_in(ctx, built.scratch, Keep::No).await?;

    let target = connect::owner(ctx, &site.server, &name);
    let applied = migrate::applied(ctx, &target).await?;
    let session = connect::session(&site.server.admin.with_database(&name)).await?;
    let platform = Platform::of_data(&session).await.map_err(|error| error::Error::Database {
        what: "ask what the data is bound to".to_owned(),
        error,
    })?;
    session.close().await;
    let roles = image::roles(&site.session).await?;
    let locales = locales(&site.session, &name, &locale).await?;
    refuse_secrets(&site, &name, &known).await?;
    if let Some(name) = image::subscription(&site.session, &name).await? {
        return Err(Error::Subscription { name }.into());
    }
    image::settle(ctx, &site.server, (&name, &name)).await?;
    let step = ctx.report.step("take out what is secret");
    ctx.until_cancelled(scrub::scrub(&site.server)).await?;
    step.done("");
    // Whoever takes it opens it when all is done that comes first.
    let closed = database::allow_connections(&site.session, &name, "false").await;
    closed.map_err(|error| error::Error::Database {
        what: "close what was built".to_owned(),
        error,
    })?;

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
        base: keys.base.filter(|_| ancestor::may_go_on(&applied, origin.as_ref())),
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

#[cfg(test)]
mod tests {
    use super::{Locale, Provider, unlike};

    #[test]
    fn a_database_with_another_locale_than_the_snapshots_is_told() {
        let text = |text: &str| text.to_owned();
        let of = |collate: &str, ctype: &str, provider| Locale {
            encoding: None,
            collate: Some(text(collate)),
            ctype: Some(text(ctype)),
            provider,
        };
        let icu = || Some(Provider::Icu { locale: text("de_DE"), rules: None });
        let builtin = || Some(Provider::Builtin { locale: text("C.UTF-8") });
        for (wanted, collate, ctype, provider, missing) in [
            (of("en_US.UTF-8", "en_US.utf8", None), "en_US.utf8", "en_US.utf8", ("c", None), None),
            (of("en_US.utf8", "C", None), "C", "C", ("c", None), Some("en_US.utf8")),
            (of("C", "de_DE.utf8", None), "C", "C", ("c", None), Some("de_DE.utf8")),
            (of("C", "C", None), "C", "C", ("i", Some("und")), Some("C")),
            (of("C", "C", icu()), "C", "C", ("i", Some("de-DE")), None),
            (of("C", "C", icu()), "C", "C", ("i", Some("sv")), Some("de_DE (icu)")),
            (of("C", "C", icu()), "C", "C", ("c", None), Some("de_DE (icu)")),
            (of("C", "C", builtin()), "C", "C", ("b", Some("C.UTF-8")), None),
            (of("C", "C", builtin()), "C", "C", ("c", None), Some("C.UTF-8 (builtin)")),
        ] {
            let found = unlike(&wanted, &(text(collate), text(ctype)), provider);
            assert_eq!(found.as_deref(), missing, "{wanted:?}");
        }
    }
}
