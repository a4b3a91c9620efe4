//! From a store, a checkout and a server to one manifest: or to the reasons why there is none.
//!
//! One listing, then only the manifests that names cannot decide ([`choose::Search`] says which): among
//! 10,000 snapshots ten pages of the listing and a manifest or a few.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;

use super::Error;
use super::choose::{Candidate, Checkout, CheckoutScript, Facts, Misfit, Read, Search, Verdict};
use super::manifest::{self, Manifest, ManifestError};
use super::name::{self, Name};
use crate::context::Context;
use crate::migrate::{Script, Scripts};
use crate::pg::Session;
use crate::store::{self, Store};

/// Manifests read at once where many are needed; S3 answers each in some 30 ms.
const PARALLEL_READS: usize = 16;

/// `list` opens this many manifests, the newest, and those that are young enough for who asks; of
/// older ones it tells what their names say.
const LIST_DETAILS: usize = 200;

/// How far back the last snapshot of a database is looked for where several share a store: half a year of
/// twenty databases that are taken weekly. Of a store of its own only the newest is read.
const LAST_LOOKS: usize = 512;

/// The names of a store's snapshots: listed once for all that a run wants to know of them.
#[derive(Debug, Clone)]
pub struct Listing {
    names: Vec<Name>,
    /// Objects beside the manifests that have no name of ours.
    ignored: Vec<String>,
}

/// Which snapshot is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The newest that fits. A damaged one that is newer is an error, or is passed over.
    Newest { skip_damaged: bool },
    /// The newest that fits among those taken before this one: it turned out to be damaged.
    Before { id: String },
    /// This one, by the beginning of its id or of its name; it must fit too.
    Id(String),
}

/// Every candidate, newest first.
#[derive(Debug, Clone, Serialize)]
pub struct Why {
    pub store: String,
    pub snapshots: Vec<Reason>,
    /// Objects beside the manifests that have no name of ours.
    pub ignored: Vec<String>,
    /// How many manifests were read.
    pub reads: usize,
}

/// One candidate of [`Why`].
#[derive(Debug, Clone, Serialize)]
pub struct Reason {
    pub id: String,
    pub taken_at: Timestamp,
    /// As far as the name tells.
    pub version: Option<String>,
    pub taken: bool,
    /// For people: `taken: …`, `diverged at version 4: …`.
    pub reason: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// One line of `snapshot list`.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub id: String,
    pub object: String,
    pub taken_at: Timestamp,
    /// By this machine's clock; 0 when the source's clock is ahead of it.
    pub age_seconds: u64,
    /// The schema version.
    pub version: Option<String>,
    /// `None` for old snapshots and unreadable ones.
    pub details: Option<Details>,
    /// Why the manifest cannot be used.
    pub problem: Option<String>,
}

/// What a manifest says in a list.
#[derive(Debug, Clone, Serialize)]
pub struct Details {
    pub database: String,
    pub server_major: u32,
    pub tables: usize,
    pub rows: u64,
    pub plain_bytes: u64,
    pub stored_bytes: u64,
    pub proved: bool,
}

/// Whose snapshots count where several databases share a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Those of this database: the environment is the source.
    Only(&'a str),
    /// Those of this database if the store has any, else all: a database of a developer's own need
    /// not be called as the source is.
    IfAny(&'a str),
}

/// What [`young`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Young {
    /// Whose snapshots counted; `None`: everybody's.
    pub database: Option<String>,
    pub found: usize,
    /// Young enough, and no snapshot as far as anybody can tell.
    pub unreadable: usize,
    pub of_others: usize,
}

/// The project's scripts as [`super::choose`] needs them.
pub fn checkout(ctx: &Context, scripts: &Scripts) -> Checkout {
    let known = |scripts: &[Script]| -> Vec<CheckoutScript> {
        let real = |script: &Script| {
            let version = script.version.clone().filter(|version| !version.is_keyword())?;
            Some(CheckoutScript { version, checksum: script.checksum })
        };
        scripts.iter().filter_map(real).collect()
    };
    let ignores_missing = |pattern: &String| {
        matches!(pattern.to_ascii_lowercase().as_str(), "*:missing" | "versioned:missing" | "*:*")
    };
    Checkout {
        versioned: known(&scripts.versioned),
        baseline: known(&scripts.baseline),
        out_of_order: ctx.config.migrate.out_of_order,
        ignore_missing: ctx.config.migrate.ignore_migration_patterns.iter().any(ignores_missing),
    }
}

/// What the server can load. `version_num` is its `server_version_num`.
///
/// # Errors
/// What the server said.
pub async fn facts(ctx: &Context, session: &Session, version_num: i32) -> Result<Facts, Error> {
    let rows = session.query("select name::text from pg_available_extensions", &[]).await?;
    Ok(Facts {
        server_major: u32::try_from(version_num / 10_000).ok(),
        extensions: Some(rows.iter().map(|row| row.get(0)).collect()),
        ignored_extensions: ctx.config.restore.ignore_extensions.iter().cloned().collect(),
        proved_only: ctx.config.restore.proved_only,
    })
}

/// Lists the store's snapshots.
///
/// # Errors
/// What the store said.
pub async fn listing(ctx: &Context, store: &Store) -> Result<Listing, crate::error::Error> {
    let (names, ignored) = ctx.until_cancelled(names(store)).await?;
    Ok(Listing { names, ignored })
}

/// The wanted one's manifest, of those that were listed.
///
/// # Errors
/// [`Error::NoneFits`], [`Error::Unfit`], [`Error::NewestDamaged`], [`Error::NoSuchSnapshot`], or
/// what the store said.
pub async fn find(
    ctx: &Context,
    store: &Store,
    listing: &Listing,
    wanted: &Wanted,
    checkout: &Checkout,
    facts: &Facts,
) -> Result<Manifest, crate::error::Error> {
    ctx.until_cancelled(search(ctx, store, listing, wanted, checkout, facts)).await
}

async fn search(
    ctx: &Context,
    store: &Store,
    listing: &Listing,
    wanted: &Wanted,
    checkout: &Checkout,
    facts: &Facts,
) -> Result<Manifest, Error> {
    let mut names = listing.names.clone();
    match wanted {
        Wanted::Newest { .. } => (),
        Wanted::Before { id } => {
            let at = one(&names, id)?.clone();
            names.retain(|name| *name < at);
        }
        Wanted::Id(id) => {
            let name = one(&names, id)?.clone();
            names = vec![name];
        }
    }
    let mut search = Search::new(names, checkout, facts);
    walk(store, &mut search).await?;
    ctx.report.detail(format!("{} manifests read", search.reads()));
    let (candidates, taken) = search.finish();
    if let Wanted::Id(_) = wanted {
        return taken.ok_or_else(|| only(store, candidates));
    }
    let damaged = candidates
        .iter()
        .take_while(|candidate| candidate.verdict != Verdict::Taken)
        .find(|candidate| matches!(candidate.verdict, Verdict::Unfit(Misfit::Damaged { .. })));
    if let (Some(damaged), false) = (damaged, *wanted == Wanted::Newest { skip_damaged: true }) {
        return Err(Error::NewestDamaged {
            object: damaged.name.object.clone(),
            reason: damaged.verdict.to_string(),
            next: taken.map(|manifest| manifest.id),
        });
    }
    taken.ok_or_else(|| Error::NoneFits {
        store: store.describe(),
        newest: candidates
            .into_iter()
            .next()
            .map(|candidate| (candidate.name.id, candidate.verdict.to_string())),
    })
}

/// Every candidate and the reason why it is taken or not.
///
/// # Errors
/// What the store said.
pub async fn why(
    ctx: &Context,
    store: &Store,
    checkout: &Checkout,
    facts: &Facts,
) -> Result<Why, crate::error::Error> {
    let Listing { names, ignored } = listing(ctx, store).await?;
    let mut search = Search::new(names, checkout, facts);
    ctx.until_cancelled(walk(store, &mut search)).await?;
    let reads = search.reads();
    let (candidates, _) = search.finish();
    let reason = |Candidate { name, verdict }: Candidate| Reason {
        id: name.id,
        taken_at: name.taken_at,
        version: name.version.map(|version| version.text().to_owned()),
        taken: verdict == Verdict::Taken,
        reason: verdict.to_string(),
        verdict,
    };
    let snapshots = candidates.into_iter().map(reason).collect();
    Ok(Why { store: store.describe(), snapshots, ignored, reads })
}

/// The snapshots of the store, newest first; every one that is at most `max_age` seconds old is opened.
///
/// # Errors
/// What the store said.
pub async fn list(
    ctx: &Context,
    store: &Store,
    max_age: Option<u64>,
) -> Result<Vec<Listed>, crate::error::Error> {
    ctx.until_cancelled(list_all(store, max_age)).await
}

async fn list_all(store: &Store, max_age: Option<u64>) -> Result<Vec<Listed>, Error> {
    let (mut names, _) = names(store).await?;
    names.sort_by(|left, right| right.cmp(left));
    let now = Timestamp::now();
    let reads = names.into_iter().enumerate().map(|(position, name)| async move {
        let is_young = max_age.is_some_and(|limit| age_seconds(&name, now) <= limit);
        let read = match position < LIST_DETAILS || is_young {
            true => Some(read(store, &name).await?),
            false => None,
        };
        Ok::<_, Error>(listed(name, read, now))
    });
    let listed: Vec<Option<Listed>> =
        stream::iter(reads).buffered(PARALLEL_READS).try_collect().await?;
    Ok(listed.into_iter().flatten().collect())
}

/// Looks for a snapshot in `list` that is at most `max_age` seconds old: one that can be read, and, as
/// `whose` says, one of the environment's database. Pure.
pub fn young(list: &[Listed], max_age: u64, whose: Whose<'_>) -> Young {
    let is_of = |listed: &Listed, name: &str| {
        listed.details.as_ref().is_some_and(|details| details.database == name)
    };
    let database = match whose {
        Whose::Only(name) => Some(name),
        Whose::IfAny(name) => Some(name).filter(|name| list.iter().any(|one| is_of(one, name))),
    };
    let mut young = Young { database: database.map(str::to_owned), ..Young::default() };
    for listed in list.iter().filter(|listed| listed.age_seconds <= max_age) {
        if listed.details.is_none() {
            young.unreadable += 1;
        } else if database.is_none_or(|name| is_of(listed, name)) {
            young.found += 1;
        } else {
            young.of_others += 1;
        }
    }
    young
}

/// One snapshot's manifest, by the beginning of its id or name, or `latest`.
///
/// # Errors
/// [`Error::NoSuchSnapshot`], [`Error::AmbiguousId`], [`Error::Damaged`], or what the store said.
pub async fn show(ctx: &Context, store: &Store, id: &str) -> Result<Manifest, crate::error::Error> {
    let (names, _) = ctx.until_cancelled(names(store)).await?;
    let name = one(&names, id)?;
    match ctx.until_cancelled(read(store, name)).await? {
        Read::Manifest(manifest) => Ok(*manifest),
        Read::Unfit(misfit) => Err(unusable(store, name, misfit).into()),
    }
}

/// What the name of one snapshot tells, by the beginning of its id or name, or `latest`.
///
/// # Errors
/// [`Error::NoSuchSnapshot`], [`Error::AmbiguousId`], or what the store said.
pub async fn named(ctx: &Context, store: &Store, id: &str) -> Result<Name, crate::error::Error> {
    let (names, _) = ctx.until_cancelled(names(store)).await?;
    Ok(one(&names, id)?.clone())
}

/// What the last snapshot of a database is.
#[derive(Debug)]
pub enum Last {
    Found(Box<Manifest>),
    /// The store has none that can be read.
    None,
    /// None among the newest so many; there are older ones.
    OutOfReach {
        looked: usize,
    },
}

/// The newest snapshot of `database` whose manifest can be read, among the newest some hundreds.
///
/// # Errors
/// What the store said.
pub async fn last_of(store: &Store, database: &str) -> Result<Last, Error> {
    let (mut names, _) = names(store).await?;
    names.sort_by(|left, right| right.cmp(left));
    let (near, far) = names.split_at(names.len().min(LAST_LOOKS));
    // Most stores hold one database: reading ahead is for the others.
    let (newest, others) = near.split_at(near.len().min(1));
    for (names, ahead) in [(newest, 1), (others, PARALLEL_READS)] {
        let mut reads = stream::iter(names.iter().map(|name| read(store, name))).buffered(ahead);
        while let Some(read) = reads.try_next().await? {
            match read {
                Read::Manifest(manifest) if manifest.database == database => {
                    return Ok(Last::Found(manifest));
                }
                Read::Manifest(_) | Read::Unfit(_) => {}
            }
        }
    }
    Ok(if far.is_empty() { Last::None } else { Last::OutOfReach { looked: near.len() } })
}

/// `system_identifier`, if any listed snapshot was taken from the server that has it. A stamp tells it, one way
/// or the other: a name that says something else than its manifest makes the manifest unreadable, so
/// reading it could not find a source that the name hides. Of names without a stamp the manifests
/// are read; those that cannot be read say nothing.
///
/// # Errors
/// What the store said.
pub async fn sources_matching(
    ctx: &Context,
    store: &Store,
    listing: &Listing,
    system_identifier: &str,
) -> Result<Vec<String>, crate::error::Error> {
    ctx.until_cancelled(sources(store, listing, system_identifier)).await
}

async fn sources(
    store: &Store,
    listing: &Listing,
    system_identifier: &str,
) -> Result<Vec<String>, Error> {
    // Of a server that may not be asked nothing is known: the guard refuses it as such.
    if system_identifier.is_empty() {
        return Ok(Vec::new());
    }
    let system = name::system_hash(system_identifier);
    let mut stamps = listing.names.iter().filter_map(|name| name.stamp.as_ref());
    if stamps.any(|stamp| stamp.system.as_ref() == Some(&system)) {
        return Ok(vec![system_identifier.to_owned()]);
    }
    let unknown = listing.names.iter().filter(|name| name.stamp.is_none());
    let mut names: Vec<&Name> = unknown.collect();
    names.sort_by(|left, right| right.cmp(left));
    let reads = names.into_iter().map(|name| read(store, name));
    let mut reads = stream::iter(reads).buffer_unordered(PARALLEL_READS);
    while let Some(read) = reads.try_next().await? {
        let Read::Manifest(manifest) = read else { continue };
        if manifest.server.system_identifier.as_deref() == Some(system_identifier) {
            return Ok(vec![system_identifier.to_owned()]);
        }
    }
    Ok(Vec::new())
}

/// The listing taken apart: our names, and what else lies there.
pub(super) async fn names(store: &Store) -> Result<(Vec<Name>, Vec<String>), Error> {
    let mut names = Vec::new();
    let mut ignored = Vec::new();
    for entry in store.list(manifest::PREFIX).await? {
        match Name::parse(&entry.name) {
            Some(name) => names.push(name),
            None => ignored.push(entry.name),
        }
    }
    Ok((names, ignored))
}

/// The one that `text` means: `latest`, or the beginning of an id or of a name.
pub(super) fn one<'n>(names: &'n [Name], text: &str) -> Result<&'n Name, Error> {
    let missing = || Error::NoSuchSnapshot { id: text.escape_debug().to_string() };
    if text == "latest" {
        return names.iter().max().ok_or_else(missing);
    }
    let file = text.strip_prefix(manifest::PREFIX).unwrap_or(text);
    let means = |name: &&Name| {
        !file.is_empty()
            && (name.id.starts_with(file)
                || name.object[manifest::PREFIX.len()..].starts_with(file))
    };
    let found: Vec<&Name> = names.iter().filter(means).collect();
    match found.as_slice() {
        [] => Err(missing()),
        [one] => Ok(one),
        several => {
            let ids: BTreeSet<String> = several.iter().map(|name| name.id.clone()).collect();
            Err(Error::AmbiguousId { id: text.to_owned(), ids: ids.into_iter().collect() })
        }
    }
}

/// Reads one manifest; that it is unusable is a finding, not an error.
pub(super) async fn read(store: &Store, name: &Name) -> Result<Read, Error> {
    let damaged = |detail: String| Read::Unfit(Misfit::Damaged { detail });
    let bytes = match store.get(&name.object, manifest::MAX_BYTES).await {
        Ok(bytes) => bytes,
        Err(store::Error::Missing { .. }) => return Ok(Read::Unfit(Misfit::Gone)),
        Err(error @ store::Error::TooLarge { .. }) => return Ok(damaged(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    // Some megabytes of JSON are some milliseconds, but not on the thread that answers signals.
    let parsed = tokio::task::spawn_blocking(move || Manifest::read(&bytes)).await;
    Ok(match parsed {
        Ok(Ok(manifest)) => {
            if name.is_of(&manifest) {
                Read::Manifest(Box::new(manifest))
            } else {
                let named = name::object_name(&manifest);
                damaged(format!("it belongs to the name `{named}`"))
            }
        }
        Ok(Err(ManifestError::Format { format, .. })) => {
            Read::Unfit(Misfit::UnknownFormat { format })
        }
        Ok(Err(error)) => damaged(error.to_string()),
        Err(error) => damaged(format!("its reader failed: {error}")),
    })
}

async fn walk(store: &Store, search: &mut Search<'_>) -> Result<(), Error> {
    loop {
        let names = search.to_read(PARALLEL_READS);
        let mut reads =
            stream::iter(names.iter().map(|name| read(store, name))).buffered(PARALLEL_READS);
        for (place, name) in names.iter().enumerate() {
            match reads.next().await {
                Some(Ok(read)) => search.read(name, read),
                Some(Err(error)) if place == 0 => return Err(error),
                // Read ahead: an error only if its turn comes.
                Some(Err(_)) | None => break,
            }
            if search.is_over() {
                break;
            }
        }
        if search.is_over() {
            return Ok(());
        }
    }
}

/// Why the only candidate cannot be taken.
fn only(store: &Store, candidates: Vec<Candidate>) -> Error {
    match candidates.into_iter().next() {
        Some(Candidate { name, verdict: Verdict::Unfit(misfit) }) => unusable(store, &name, misfit),
        Some(_) | None => Error::NoneFits { store: store.describe(), newest: None },
    }
}

pub(super) fn unusable(store: &Store, name: &Name, misfit: Misfit) -> Error {
    match misfit {
        Misfit::Damaged { detail } => Error::Damaged { object: name.object.clone(), detail },
        Misfit::UnknownFormat { format } => {
            let error = ManifestError::Format { format, known: manifest::FORMAT };
            Error::Manifest { object: name.object.clone(), error }
        }
        Misfit::Gone => Error::Store(store::Error::Missing {
            store: store.describe(),
            name: name.object.clone(),
        }),
        misfit => Error::Unfit { id: name.id.clone(), misfit },
    }
}

/// By this machine's clock; 0 when the source's clock is ahead of it.
fn age_seconds(name: &Name, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(name.taken_at).as_secs()).unwrap_or(0)
}

fn listed(name: Name, read: Option<Read>, now: Timestamp) -> Option<Listed> {
    let mut listed = Listed {
        age_seconds: age_seconds(&name, now),
        id: name.id,
        object: name.object,
        taken_at: name.taken_at,
        version: name.version.map(|version| version.text().to_owned()),
        details: None,
        problem: None,
    };
    match read {
        None => (),
        Some(Read::Unfit(Misfit::Gone)) => return None,
        Some(Read::Unfit(misfit)) => listed.problem = Some(misfit.to_string()),
        Some(Read::Manifest(manifest)) => {
            listed.version = manifest.schema_version();
            listed.details = Some(Details {
                database: manifest.database.clone(),
                server_major: manifest.server.major(),
                tables: manifest.tables.len(),
                rows: manifest.rows(),
                plain_bytes: manifest.plain_bytes(),
                stored_bytes: manifest.stored_bytes(),
                proved: manifest.proved,
            });
        }
    }
    Some(listed)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{Details, Listed, Whose, Young, young};

    /// `None` for the database: the manifest cannot be read.
    fn listed(age_seconds: u64, database: Option<&str>) -> Listed {
        Listed {
            id: String::new(),
            object: String::new(),
            taken_at: Timestamp::UNIX_EPOCH,
            age_seconds,
            version: None,
            details: database.map(|database| Details {
                database: database.to_owned(),
                server_major: 17,
                tables: 0,
                rows: 0,
                plain_bytes: 0,
                stored_bytes: 0,
                proved: false,
            }),
            problem: database.is_none().then(|| "damaged".to_owned()),
        }
    }

    fn counted(database: Option<&str>, found: usize, unreadable: usize, of_others: usize) -> Young {
        Young { database: database.map(str::to_owned), found, unreadable, of_others }
    }

    #[test]
    fn what_cannot_be_read_is_not_young() {
        let list = [listed(1, None), listed(9, Some("shop")), listed(11, Some("shop"))];
        assert_eq!(young(&list, 10, Whose::Only("shop")), counted(Some("shop"), 1, 1, 0));
        assert_eq!(young(&list, 8, Whose::Only("shop")), counted(Some("shop"), 0, 1, 0));
        assert_eq!(young(&list[..1], 8, Whose::IfAny("shop")), counted(None, 0, 1, 0));
        assert_eq!(young(&[], 8, Whose::IfAny("shop")), counted(None, 0, 0, 0));
    }

    #[test]
    fn the_snapshot_of_another_database_silences_nothing() {
        let list = [listed(1, Some("billing")), listed(20, Some("shop"))];
        assert_eq!(young(&list, 10, Whose::Only("shop")), counted(Some("shop"), 0, 0, 1));
        assert_eq!(young(&list, 10, Whose::IfAny("shop")), counted(Some("shop"), 0, 0, 1));
        assert_eq!(young(&list, 10, Whose::Only("orders")), counted(Some("orders"), 0, 0, 1));
        // A developer's database has another name than the source.
        assert_eq!(young(&list, 10, Whose::IfAny("shop_dev")), counted(None, 1, 0, 0));
    }
}
