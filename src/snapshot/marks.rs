//! Notes in the store: of chunks that nothing names any more, the first phase of removing them, and of
//! those that are damaged.
//!
//! A chunk is removed only when an earlier run has marked it, the mark has stood for the grace period
//! by the store's own clock, and nothing names it now either. Marks are objects of their own, never
//! changed; the run that takes a snapshot reads them, and stores again what it would else only find.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::store::{self, Put, Store};

/// Where marks live, relative to the store's root.
pub const PREFIX: &str = "prune/";

/// Hashes of 64 characters: a million of them.
const MAX_BYTES: u64 = 80 * 1024 * 1024;

const FORMAT: u32 = 1;

/// What a run of `prune` found to be nameless, or is about to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Document {
    pub format: u32,
    pub phase: Phase,
    /// Names of all manifests that this run saw: one that a later listing lacks makes that listing
    /// doubtful.
    pub manifests: BTreeSet<String>,
    /// sha256 of the objects.
    pub chunks: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Marked,
    /// Being removed by a run that has not ended yet.
    Removing,
    /// Found to be other bytes than their names say: whoever needs one stores it again.
    Damaged,
}

/// A mark as it lies in the store.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub object: String,
    /// By the store's clock.
    pub made_at: Option<Timestamp>,
    pub document: Document,
}

/// Every mark of the store. What is no mark of ours is left alone.
pub(super) async fn read(store: &Store) -> Result<Vec<Mark>, store::Error> {
    let mut marks = Vec::new();
    for entry in store.list(PREFIX).await? {
        let bytes = match store.get(&entry.name, MAX_BYTES).await {
            Ok(bytes) => bytes,
            // Another run has taken it away since it was listed.
            Err(store::Error::Missing { .. }) => continue,
            Err(error) => return Err(error),
        };
        let Ok(document) = serde_json::from_slice::<Document>(&bytes) else { continue };
        if document.format == FORMAT {
            marks.push(Mark { object: entry.name, made_at: entry.modified, document });
        }
    }
    Ok(marks)
}

/// Writes a mark; returns its name.
pub(super) async fn write(
    store: &Store,
    phase: Phase,
    manifests: &BTreeSet<String>,
    chunks: &BTreeSet<String>,
) -> Result<String, store::Error> {
    let document =
        Document { format: FORMAT, phase, manifests: manifests.clone(), chunks: chunks.clone() };
    let bytes = serde_json::to_vec(&document).expect("a struct of strings serializes");
    loop {
        let name = format!("{PREFIX}{:016x}.json", rand::random::<u64>());
        match store.put_new(&name, Bytes::from(bytes.clone()), &[]).await? {
            Put::Created => return Ok(name),
            Put::Exists => {}
        }
    }
}

/// Hashes of every chunk that some mark names.
pub(super) fn chunks(marks: &[Mark]) -> BTreeSet<String> {
    marks.iter().flat_map(|mark| mark.document.chunks.iter().cloned()).collect()
}
