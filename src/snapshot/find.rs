//! From a store, a checkout and a server to one manifest: or to the reasons why there is none.
//!
//! One listing, then only the manifests that names cannot decide ([`choose::Search`] says which).

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;

use super::Error;
use super::choose::{Candidate, Checkout, CheckoutScript, Facts, Misfit, Read, Search, Verdict};
use super::manifest::{self, Manifest, ManifestError};
use super::name::Name;
use crate::context::Context;
use crate::migrate::{Script, Scripts};
use crate::pg::Session;
use crate::store::{self, Store};

/// Manifests read at once where many are needed; S3 answers each in some 30 ms.
const PARALLEL_READS: usize = 16;

/// `list` opens this many manifests, the newest; of older ones it tells what their names say.
const LIST_DETAILS: usize = 200;

/// How far back the last snapshot of a database is looked for where several share a store.
const LAST_LOOKS: usize = 32;

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

/// The wanted snapshot's manifest.
///
/// # Errors
/// [`Error::NoneFits`], [`Error::Unfit`], [`Error::NewestDamaged`], [`Error::NoSuchSnapshot`], or
/// what the store said.
pub async fn find(
    ctx: &Context,
    store: &Store,
    wanted: &Wanted,
    checkout: &Checkout,
    facts: &Facts,
) -> Result<Manifest, crate::error::Error> {
    ctx.until_cancelled(search(ctx, store, wanted, checkout, facts)).await
}

async fn search(
    ctx: &Context,
    store: &Store,
    wanted: &Wanted,
    checkout: &Checkout,
    facts: &Facts,
) -> Result<Manifest, Error> {
    let (mut names, _) = names(store).await?;
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
    let (names, ignored) = ctx.until_cancelled(names(store)).await?;
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

/// The snapshots of the store, newest first.
///
/// # Errors
/// What the store said.
pub async fn list(ctx: &Context, store: &Store) -> Result<Vec<Listed>, crate::error::Error> {
    ctx.until_cancelled(list_all(store)).await
}

async fn list_all(store: &Store) -> Result<Vec<Listed>, Error> {
    let (mut names, _) = names(store).await?;
    names.sort_by(|left, right| right.cmp(left));
    let now = Timestamp::now();
    let reads = names.into_iter().enumerate().map(|(position, name)| async move {
        let read = if position < LIST_DETAILS { Some(read(store, &name).await?) } else { None };
        Ok::<_, Error>(listed(name, read, now))
    });
    let listed: Vec<Option<Listed>> =
        stream::iter(reads).buffered(PARALLEL_READS).try_collect().await?;
    Ok(listed.into_iter().flatten().collect())
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

/// The newest snapshot of `database` whose manifest can be read, among the newest few.
///
/// # Errors
/// What the store said.
pub async fn last_of(store: &Store, database: &str) -> Result<Option<Manifest>, Error> {
    let (mut names, _) = names(store).await?;
    names.sort_by(|left, right| right.cmp(left));
    for name in names.iter().take(LAST_LOOKS) {
        if let Read::Manifest(manifest) = read(store, name).await?
            && manifest.database == database
        {
            return Ok(Some(*manifest));
        }
    }
    Ok(None)
}

/// `system_identifier`, if any snapshot was taken from the server that has it. Manifests that cannot
/// be read say nothing.
///
/// # Errors
/// What the store said.
pub async fn sources_matching(
    store: &Store,
    system_identifier: &str,
) -> Result<Vec<String>, Error> {
    let (mut names, _) = names(store).await?;
    names.sort_by(|left, right| right.cmp(left));
    let reads = names.iter().map(|name| read(store, name));
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
            let named = manifest::object_name(&manifest);
            if named == name.object {
                Read::Manifest(Box::new(manifest))
            } else {
                damaged(format!("it belongs to the name `{named}`"))
            }
        }
        Ok(Err(ManifestError::Format { format })) => Read::Unfit(Misfit::UnknownFormat { format }),
        Ok(Err(error)) => damaged(error.to_string()),
        Err(error) => damaged(format!("its reader failed: {error}")),
    })
}

async fn walk(store: &Store, search: &mut Search<'_>) -> Result<(), Error> {
    while let Some(name) = search.next_to_read() {
        let read = read(store, name).await?;
        search.read(read);
    }
    Ok(())
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
            let error = ManifestError::Format { format };
            Error::Manifest { object: name.object.clone(), error }
        }
        Misfit::Gone => Error::Store(store::Error::Missing {
            store: store.describe(),
            name: name.object.clone(),
        }),
        misfit => Error::Unfit { id: name.id.clone(), misfit },
    }
}

fn listed(name: Name, read: Option<Read>, now: Timestamp) -> Option<Listed> {
    let age = now.duration_since(name.taken_at).as_secs();
    let mut listed = Listed {
        id: name.id,
        object: name.object,
        taken_at: name.taken_at,
        age_seconds: u64::try_from(age).unwrap_or(0),
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
