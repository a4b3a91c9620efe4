//! Removing what is no longer kept: snapshots by the policy, chunks in two phases.
//!
//! A snapshot goes by its manifest. Chunks go later: what no manifest names is marked first, and
//! removed by a run after the grace period if nothing names it then either. Listings are not trusted
//! alone: a manifest that an earlier run saw and a listing lacks is asked for by name, and a manifest
//! that cannot be read stops the removal of chunks, because what it needs is not known.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;

use super::choose::{Misfit, Read};
use super::marks::{self, Mark, Phase};
use super::name::Name;
use super::retain::{self, Fate, Held, Policy};
use super::{Error, find, manifest};
use crate::context::Context;
use crate::store::{self, Store};

/// Manifests read, or objects removed, at once.
const PARALLEL: usize = 16;

/// A run that was cut off leaves its note of what it is removing; after this long it is not at work.
const REMOVING_SECONDS: i64 = 6 * 3600;

/// What `prune` would do, or has done.
#[derive(Debug, Clone, Serialize)]
pub struct Pruned {
    pub store: String,
    /// Newest first.
    pub snapshots: Vec<Line>,
    pub chunks: Chunks,
    /// Why no chunk is removed although some could be.
    pub chunks_stay: Option<String>,
    /// False: only a plan.
    pub done: bool,
}

/// One snapshot and its fate.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub id: String,
    pub object: String,
    pub taken_at: Timestamp,
    pub version: Option<String>,
    pub database: String,
    pub fate: Fate,
}

/// Stored objects below `chunks/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Chunks {
    pub named: u64,
    /// Nameless since this run; they are removed by one after the grace period.
    pub marked: u64,
    pub marked_bytes: u64,
    /// Marked by an earlier run, the grace period not yet over.
    pub waiting: u64,
    pub removed: u64,
    pub removed_bytes: u64,
}

/// Which right a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is written.
    DryRun,
    Act,
}

/// What the manifests of a store need.
struct Named {
    /// Objects of readable manifests.
    manifests: BTreeMap<String, BTreeSet<String>>,
    held: Vec<Held>,
    /// Manifests that cannot be read, with the reason.
    unreadable: Vec<(String, String)>,
}

/// Applies the policy of the configuration.
///
/// # Errors
/// [`Error::EmptyStore`] for a store without a snapshot, [`Error::ListingIncomplete`]; what the
/// store said.
pub async fn prune(
    ctx: &Context,
    store: &Store,
    mode: Mode,
) -> Result<Pruned, crate::error::Error> {
    ctx.until_cancelled(run(ctx, store, mode)).await
}

async fn run(ctx: &Context, store: &Store, mode: Mode) -> Result<Pruned, Error> {
    let retention = &ctx.config.retention;
    let policy = Policy {
        keep: retention.keep,
        within_seconds: retention.within_seconds,
        versions_within_seconds: retention.versions_within_seconds,
    };
    let step = ctx.report.step("read the manifests");
    let marks = marks::read(store).await?;
    let mut named = names(store).await?;
    if named.manifests.is_empty() && named.unreadable.is_empty() {
        // An empty listing is more often a wrong place than a store without snapshots.
        return Err(Error::EmptyStore { store: store.describe() });
    }
    complete(store, &named, &marks).await?;
    step.done(format!("{} snapshots", named.held.len()));

    let fates = retain::plan(&named.held, &policy, Timestamp::now());
    let mut snapshots: Vec<Line> = named.held.iter().zip(&fates).map(line).collect();
    snapshots.sort_by(|left, right| (right.taken_at, &right.id).cmp(&(left.taken_at, &left.id)));
    let leaving: Vec<String> = snapshots
        .iter()
        .filter(|line| !line.fate.is_kept())
        .map(|line| line.object.clone())
        .collect();
    for object in &leaving {
        named.manifests.remove(object);
    }
    if mode == Mode::Act && !leaving.is_empty() {
        let step = ctx.report.step("remove snapshots");
        remove(store, leaving.clone()).await?;
        step.done(format!("{}", leaving.len()));
    }
    let mut pruned = Pruned {
        store: store.describe(),
        snapshots,
        chunks: Chunks::default(),
        chunks_stay: stay(&named),
        done: mode == Mode::Act,
    };
    let step = ctx.report.step("look for chunks that nothing names");
    chunks(ctx, store, mode, &named, &marks, &mut pruned).await?;
    step.done("");
    Ok(pruned)
}

fn line((held, fate): (&Held, &Fate)) -> Line {
    Line {
        id: held.name.id.clone(),
        object: held.name.object.clone(),
        taken_at: held.name.taken_at,
        version: held.name.version.as_ref().map(|version| version.text().to_owned()),
        database: held.database.clone(),
        fate: *fate,
    }
}

fn stay(named: &Named) -> Option<String> {
    let (object, reason) = named.unreadable.first()?;
    Some(format!("`{object}` cannot be read, so what it needs is not known: {reason}"))
}

async fn names(store: &Store) -> Result<Named, Error> {
    let (names, ignored) = find::names(store).await?;
    let mut named = Named { manifests: BTreeMap::new(), held: Vec::new(), unreadable: Vec::new() };
    // A name that we would not make may be a snapshot of a newer program.
    let foreign = ignored.into_iter().filter(|object| object.ends_with(".json"));
    named.unreadable.extend(foreign.map(|object| (object, "its name is unknown".to_owned())));
    let mut reads = stream::iter(names)
        .map(|name| async move {
            let read = find::read(store, &name).await?;
            Ok::<_, Error>((name, read))
        })
        .buffer_unordered(PARALLEL);
    while let Some((name, read)) = reads.try_next().await? {
        named.take(name, read);
    }
    Ok(named)
}

impl Named {
    fn take(&mut self, name: Name, read: Read) {
        match read {
            Read::Manifest(manifest) => {
                let objects = manifest.chunks().map(|chunk| chunk.object.clone()).collect();
                self.manifests.insert(name.object.clone(), objects);
                self.held.push(Held { name, database: manifest.database });
            }
            Read::Unfit(Misfit::Gone) => {}
            Read::Unfit(misfit) => self.unreadable.push((name.object, misfit.to_string())),
        }
    }

    fn objects(&self) -> BTreeSet<&str> {
        self.manifests.values().flatten().map(String::as_str).collect()
    }

    fn knows(&self, object: &str) -> bool {
        self.manifests.contains_key(object)
            || self.unreadable.iter().any(|(unreadable, _)| unreadable == object)
    }
}

/// A manifest that an earlier run saw has to be listed, or gone.
async fn complete(store: &Store, named: &Named, marks: &[Mark]) -> Result<(), Error> {
    let seen: BTreeSet<&String> = marks.iter().flat_map(|mark| &mark.document.manifests).collect();
    for object in seen.into_iter().filter(|object| !named.knows(object)) {
        if store.size(object).await?.is_some() {
            return Err(Error::ListingIncomplete {
                store: store.describe(),
                object: object.clone(),
            });
        }
    }
    Ok(())
}

/// Marks what is nameless, removes what was marked long enough ago.
async fn chunks(
    ctx: &Context,
    store: &Store,
    mode: Mode,
    named: &Named,
    marks: &[Mark],
    pruned: &mut Pruned,
) -> Result<(), Error> {
    let objects = named.objects();
    let mut nameless: BTreeMap<String, store::Entry> = BTreeMap::new();
    for entry in store.list("chunks/").await? {
        let hash = entry.name.rsplit('/').next().unwrap_or_default().to_owned();
        if manifest::chunk_name(&hash) != entry.name || !manifest::is_hash(&hash) {
            continue;
        }
        if objects.contains(hash.as_str()) {
            pruned.chunks.named += 1;
        } else {
            nameless.insert(hash, entry);
        }
    }
    let marked: BTreeSet<String> = marks
        .iter()
        .filter(|mark| mark.document.phase != Phase::Damaged)
        .flat_map(|mark| mark.document.chunks.iter().cloned())
        .collect();
    let fresh: BTreeSet<String> =
        nameless.keys().filter(|hash| !marked.contains(*hash)).cloned().collect();
    pruned.chunks.marked = fresh.len() as u64;
    pruned.chunks.marked_bytes = fresh.iter().map(|hash| nameless[hash].size).sum();
    let seen: BTreeSet<String> = named.manifests.keys().cloned().collect();
    if mode == Mode::Act && !fresh.is_empty() {
        marks::write(store, Phase::Marked, &seen, &fresh).await?;
    }
    let now = match mode {
        Mode::Act => store_time(store, &seen).await?,
        Mode::DryRun => Timestamp::now(),
    };
    let old = |at: Option<Timestamp>| {
        at.is_some_and(|at| {
            let age = now.duration_since(at).as_secs();
            u64::try_from(age).is_ok_and(|age| age >= ctx.config.retention.grace_seconds)
        })
    };
    let ripe: BTreeSet<String> = marks
        .iter()
        .filter(|mark| mark.document.phase == Phase::Marked && old(mark.made_at))
        .flat_map(|mark| mark.document.chunks.iter().cloned())
        // Stored again since: a run that is not published yet needs it.
        .filter(|hash| nameless.get(hash).is_some_and(|entry| old(entry.modified)))
        .collect();
    pruned.chunks.waiting =
        nameless.keys().filter(|hash| marked.contains(*hash)).count() as u64 - ripe.len() as u64;
    if pruned.chunks_stay.is_some() {
        return Ok(());
    }
    if mode == Mode::DryRun {
        pruned.chunks.removed = ripe.len() as u64;
        pruned.chunks.removed_bytes = ripe.iter().map(|hash| nameless[hash].size).sum();
        return Ok(());
    }
    if !ripe.is_empty() {
        sweep(store, &seen, ripe, &nameless, pruned).await?;
    }
    if pruned.chunks_stay.is_some() {
        return Ok(());
    }
    forget(store, marks, &nameless, now, &old).await
}

/// Removes `ripe`, which a note announces: a run that has just published waits for it and looks
/// again (see `publish`).
async fn sweep(
    store: &Store,
    seen: &BTreeSet<String>,
    ripe: BTreeSet<String>,
    nameless: &BTreeMap<String, store::Entry>,
    pruned: &mut Pruned,
) -> Result<(), Error> {
    let note = marks::write(store, Phase::Removing, seen, &ripe).await?;
    // Published since the first listing: what it names stays.
    let again = names(store).await?;
    pruned.chunks_stay = stay(&again);
    if pruned.chunks_stay.is_none() {
        let objects = again.objects();
        let removable: Vec<String> =
            ripe.into_iter().filter(|hash| !objects.contains(hash.as_str())).collect();
        pruned.chunks.removed = removable.len() as u64;
        pruned.chunks.removed_bytes = removable.iter().map(|hash| nameless[hash].size).sum();
        let paths = removable.iter().map(|hash| manifest::chunk_name(hash)).collect();
        remove(store, paths).await?;
    }
    store.delete(&note).await?;
    Ok(())
}

/// Takes away marks that have nothing left to say.
async fn forget(
    store: &Store,
    marks: &[Mark],
    nameless: &BTreeMap<String, store::Entry>,
    now: Timestamp,
    old: &impl Fn(Option<Timestamp>) -> bool,
) -> Result<(), Error> {
    let done = |mark: &&Mark| match mark.document.phase {
        // What it marks was removed, or is named again.
        Phase::Marked => {
            old(mark.made_at)
                && mark
                    .document
                    .chunks
                    .iter()
                    .all(|hash| nameless.get(hash).is_none_or(|entry| old(entry.modified)))
        }
        // Taken away by the run of `verify` that finds them whole.
        Phase::Damaged => false,
        Phase::Removing => {
            mark.made_at.is_some_and(|at| now.duration_since(at).as_secs() > REMOVING_SECONDS)
        }
    };
    remove(store, marks.iter().filter(done).map(|mark| mark.object.clone()).collect()).await
}

/// What time it is in the store: that of an object written just now.
async fn store_time(store: &Store, seen: &BTreeSet<String>) -> Result<Timestamp, Error> {
    let probe = marks::write(store, Phase::Marked, seen, &BTreeSet::new()).await?;
    let listed = store.list(&probe).await?;
    store.delete(&probe).await?;
    let modified = listed.iter().find(|entry| entry.name == probe).and_then(|entry| entry.modified);
    Ok(modified.unwrap_or_else(Timestamp::now))
}

async fn remove(store: &Store, objects: Vec<String>) -> Result<(), Error> {
    stream::iter(objects)
        .map(|object| async move { store.delete(&object).await.map_err(Error::Store) })
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}
