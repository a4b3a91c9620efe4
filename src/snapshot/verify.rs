//! Every byte of a snapshot read again and compared with what its manifest says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::Error;
use super::choose::Read;
use super::chunk::{self, Damage};
use super::find;
use super::manifest::{self, Chunk, Manifest};
use super::marks::{self, Phase};
use super::name::Name;
use crate::context::Context;
use crate::report::Unit;
use crate::store::{self, Store};

/// Objects read at once: enough for the line to be busy while one is decompressed; each may take
/// some 40 MB of memory.
const PARALLEL_OBJECTS: usize = 4;

/// Findings that the error's text names; the number of all stands before them.
const FINDINGS_SHOWN: usize = 5;

/// What was found whole.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// Ids, newest first.
    pub snapshots: Vec<String>,
    /// Different stored objects; snapshots share them.
    pub objects: u64,
    pub stored_bytes: u64,
    pub plain_bytes: u64,
    pub rows: u64,
}

/// An object that is not what a manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub object: String,
    pub detail: String,
    /// Ids of the snapshots that need it.
    pub snapshots: Vec<String>,
}

/// Everything that was found wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Findings(pub Vec<Finding>);

impl std::fmt::Display for Findings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: Vec<String> = self
            .0
            .iter()
            .take(FINDINGS_SHOWN)
            .map(|finding| format!("`{}`: {}", finding.object, finding.detail))
            .collect();
        write!(f, "{} damaged or missing: {}", self.0.len(), shown.join("; "))?;
        if self.0.len() > FINDINGS_SHOWN {
            f.write_str("; …")?;
        }
        Ok(())
    }
}

/// A chunk and what its plain bytes are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    chunk: Chunk,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// COPY text: a line is a row.
    Rows,
    /// An archive or a large object.
    Opaque,
}

/// One stored object: who needs it, and which parts of it.
#[derive(Default)]
struct Object {
    snapshots: Vec<String>,
    parts: BTreeSet<Part>,
}

/// Reads all of one snapshot (by the beginning of its id or name, or `latest`), or of all.
///
/// # Errors
/// [`Error::EmptyStore`]; [`Error::VerifyFailed`] with every finding, after everything was read; what the store said.
pub async fn verify(
    ctx: &Context,
    store: &Store,
    id: Option<&str>,
) -> Result<Verified, crate::error::Error> {
    ctx.until_cancelled(verify_all(ctx, store, id)).await
}

async fn verify_all(ctx: &Context, store: &Store, id: Option<&str>) -> Result<Verified, Error> {
    let (mut names, _) = find::names(store).await?;
    if names.is_empty() {
        // Nothing was read, so nothing is whole; more often than not it is a wrong place.
        return Err(Error::EmptyStore { store: store.describe() });
    }
    if let Some(id) = id {
        let name = find::one(&names, id)?.clone();
        names = vec![name];
    }
    names.sort_by(|left, right| right.cmp(left));
    let mut findings = Vec::new();
    let mut objects = BTreeMap::new();
    let mut snapshots = Vec::new();
    for name in &names {
        match find::read(store, name).await? {
            Read::Manifest(manifest) => {
                collect(&manifest, &mut objects);
                snapshots.push(manifest.id);
            }
            Read::Unfit(misfit) if id.is_some() => return Err(find::unusable(store, name, misfit)),
            Read::Unfit(misfit) => findings.push(finding(name, &misfit)),
        }
    }
    let subject = match snapshots.as_slice() {
        [one] => format!("verify snapshot {one}"),
        several => format!("verify {} snapshots", several.len()),
    };
    let step = ctx.report.step(subject);
    let total: u64 = objects.values().map(|object: &Object| end(&object.parts)).sum();
    let progress = |done: u64| step.progress(done, Some(total), Unit::Bytes);
    let (verified, mut damaged) = read_all(store, objects, progress).await?;
    note_damage(ctx, store, &damaged, id.is_none() && findings.is_empty()).await;
    findings.append(&mut damaged);
    if !findings.is_empty() {
        return Err(Error::VerifyFailed { findings: Findings(findings) });
    }
    step.done(format!("{} objects, {} rows", verified.objects, verified.rows));
    Ok(Verified { snapshots, ..verified })
}

/// Leaves a note of what is damaged, so that the next snapshot of the same rows stores it again instead of
/// finding it there; where `all` was read, earlier notes say nothing more. An account that may only read
/// leaves none.
async fn note_damage(ctx: &Context, store: &Store, damaged: &[Finding], all: bool) {
    let hash = |finding: &Finding| finding.object.rsplit('/').next().map(str::to_owned);
    let chunks: BTreeSet<String> = damaged.iter().filter_map(hash).collect();
    let noted = async {
        let marks = if all { marks::read(store).await? } else { Vec::new() };
        if !chunks.is_empty() {
            marks::write(store, Phase::Damaged, &BTreeSet::new(), &chunks).await?;
        }
        for mark in marks.iter().filter(|mark| mark.document.phase == Phase::Damaged) {
            store.delete(&mark.object).await?;
        }
        Ok::<_, store::Error>(())
    };
    if let Err(error) = noted.await
        && !chunks.is_empty()
    {
        ctx.report.warn(format!(
            "no note of the damage could be left ({error}): run `seedbed snapshot verify` as an \
             account that may write before the next `snapshot create`"
        ));
    }
}

async fn read_all(
    store: &Store,
    objects: BTreeMap<String, Object>,
    progress: impl Fn(u64),
) -> Result<(Verified, Vec<Finding>), Error> {
    let done = AtomicU64::new(0);
    let checks = objects.into_iter().map(|(hash, object)| {
        let (done, progress) = (&done, &progress);
        async move {
            let name = manifest::chunk_name(&hash);
            let size = end(&object.parts);
            let checked = check(store, &name, object.parts).await?;
            progress(done.fetch_add(size, Ordering::Relaxed) + size);
            Ok::<_, Error>((name, object.snapshots, checked))
        }
    });
    let mut checks = stream::iter(checks).buffer_unordered(PARALLEL_OBJECTS);
    let mut verified =
        Verified { snapshots: Vec::new(), objects: 0, stored_bytes: 0, plain_bytes: 0, rows: 0 };
    let mut findings = Vec::new();
    while let Some((object, snapshots, checked)) = checks.try_next().await? {
        match checked {
            Ok(sound) => {
                verified.objects += 1;
                verified.stored_bytes += sound.stored_bytes;
                verified.plain_bytes += sound.plain_bytes;
                verified.rows += sound.rows;
            }
            Err(detail) => findings.push(Finding { object, detail, snapshots }),
        }
    }
    findings.sort_by(|left: &Finding, right| left.object.cmp(&right.object));
    Ok((verified, findings))
}

/// What an object held.
struct Sound {
    stored_bytes: u64,
    plain_bytes: u64,
    rows: u64,
}

/// Reads one object and all its parts; the inner error says how it is damaged.
async fn check(
    store: &Store,
    name: &str,
    parts: BTreeSet<Part>,
) -> Result<Result<Sound, String>, Error> {
    let once = check_once(store, name, parts.clone()).await?;
    match once {
        // One bit may have flipped on the way; a second wrong answer is what the store holds.
        Err(_) => check_once(store, name, parts).await,
        sound => Ok(sound),
    }
}

async fn check_once(
    store: &Store,
    name: &str,
    parts: BTreeSet<Part>,
) -> Result<Result<Sound, String>, Error> {
    let bytes = match store.get(name, manifest::MAX_CHUNK_BYTES).await {
        Ok(bytes) => bytes,
        Err(store::Error::Missing { .. }) => return Ok(Err("it is missing".to_owned())),
        Err(error @ store::Error::TooLarge { .. }) => return Ok(Err(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let opened = tokio::task::spawn_blocking(move || open(&bytes, &parts)).await;
    Ok(match opened {
        Ok(opened) => opened,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    })
}

fn open(object: &Bytes, parts: &BTreeSet<Part>) -> Result<Sound, String> {
    let words = |damage: Damage| damage.to_string();
    let mut sound = Sound { stored_bytes: object.len() as u64, plain_bytes: 0, rows: 0 };
    let found = chunk::sha256(object);
    for Part { chunk, kind } in parts {
        if found != chunk.object {
            return Err(words(Damage::StoredHash { found }));
        }
        let plain = chunk::open(object, chunk).map_err(words)?;
        let lines = match kind {
            Kind::Rows => plain.iter().filter(|byte| **byte == b'\n').count() as u64,
            Kind::Opaque => 0,
        };
        if lines != chunk.rows {
            return Err(format!("it holds {lines} rows, the manifest says {}", chunk.rows));
        }
        sound.plain_bytes += chunk.plain_size;
        sound.rows += lines;
    }
    Ok(sound)
}

fn collect(manifest: &Manifest, objects: &mut BTreeMap<String, Object>) {
    let rows = manifest.tables.iter().flat_map(|table| &table.chunks);
    let opaque = manifest
        .schema_archive
        .iter()
        .chain(manifest.large_objects.iter().flat_map(|object| &object.chunks));
    let parts = rows
        .map(|chunk| Part { chunk: chunk.clone(), kind: Kind::Rows })
        .chain(opaque.map(|chunk| Part { chunk: chunk.clone(), kind: Kind::Opaque }));
    for part in parts {
        let object = objects.entry(part.chunk.object.clone()).or_default();
        if object.snapshots.last() != Some(&manifest.id) {
            object.snapshots.push(manifest.id.clone());
        }
        object.parts.insert(part);
    }
}

/// Stored bytes that the parts need.
fn end(parts: &BTreeSet<Part>) -> u64 {
    parts.iter().map(|part| part.chunk.offset + part.chunk.stored_size).max().unwrap_or_default()
}

fn finding(name: &Name, misfit: &super::choose::Misfit) -> Finding {
    Finding {
        object: name.object.clone(),
        detail: misfit.to_string(),
        snapshots: vec![name.id.clone()],
    }
}
