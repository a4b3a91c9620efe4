//! Images that nobody needs any more: of snapshots that have gone, older ones of the same kind, and
//! pieces of runs that were cut off.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;

use super::document::{self, PREFIX};
use crate::context::Context;
use crate::error;
use crate::snapshot::prune::Mode;
use crate::store::{Entry, Store};

/// Objects removed at once.
const PARALLEL: usize = 16;

/// Images that went, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Their documents' names.
    pub images: Vec<String>,
    /// Objects of those, and of runs that were cut off.
    pub pieces: u64,
    pub bytes: u64,
}

/// Removes what belongs to none of the snapshots `kept`. Of one snapshot the newest image of each kind of
/// machine stays.
///
/// # Errors
/// What the store said.
pub async fn prune(
    ctx: &Context,
    store: &Store,
    kept: &BTreeSet<String>,
    mode: Mode,
) -> Result<Swept, error::Error> {
    ctx.until_cancelled(async {
        let entries = store.list(PREFIX).await?;
        let grace = ctx.config.retention.grace_seconds;
        let old = |entry: &Entry| {
            let age = |at: Timestamp| Timestamp::now().duration_since(at).as_secs();
            entry.modified.is_some_and(|at| u64::try_from(age(at)).is_ok_and(|age| age >= grace))
        };
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let mut leaving = leaving(&names, kept);
        // Its snapshot may have been published after those that are kept were listed.
        let young: BTreeSet<&str> =
            entries.iter().filter(|entry| !old(entry)).map(|entry| entry.name.as_str()).collect();
        leaving.retain(|name| !young.contains(name));
        let staying: BTreeSet<&str> = names
            .iter()
            .filter(|name| !leaving.contains(**name))
            .filter_map(|name| document::parse_name(name).map(|(_, _, id)| id))
            .collect();
        let going: BTreeSet<&str> = leaving
            .iter()
            .filter_map(|name| document::parse_name(name))
            .map(|name| name.2)
            .collect();
        let pieces: Vec<&Entry> = entries
            .iter()
            .filter(|entry| match document::image_of(&entry.name) {
                // One without a document may be on its way still.
                Some(id) => going.contains(id) || (!staying.contains(id) && old(entry)),
                None => false,
            })
            .collect();
        let swept = Swept {
            images: leaving.iter().map(|&name| name.to_owned()).collect(),
            pieces: pieces.len() as u64,
            bytes: pieces.iter().map(|entry| entry.size).sum(),
        };
        if mode == Mode::Act {
            // Without its document nobody takes it any more.
            remove(store, swept.images.iter().map(String::as_str)).await?;
            remove(store, pieces.iter().map(|entry| entry.name.as_str())).await?;
        }
        Ok::<_, error::Error>(swept)
    })
    .await
}

/// Removes the images of one snapshot; their pieces go with the next [`prune`].
///
/// # Errors
/// What the store said.
pub async fn drop_of(ctx: &Context, store: &Store, snapshot: &str) -> Result<u64, error::Error> {
    ctx.until_cancelled(async {
        let entries = store.list(&format!("{PREFIX}{snapshot}_")).await?;
        remove(store, entries.iter().map(|entry| entry.name.as_str())).await?;
        Ok::<_, error::Error>(entries.len() as u64)
    })
    .await
}

async fn remove<'a>(
    store: &Store,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), error::Error> {
    stream::iter(names)
        .map(|name| async move { store.delete(name).await })
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

/// The documents that go. Names that we would not make are not touched.
fn leaving<'a>(names: &[&'a str], kept: &BTreeSet<String>) -> BTreeSet<&'a str> {
    let mut newest: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for (snapshot, platform, id) in names.iter().filter_map(|name| document::parse_name(name)) {
        let held = newest.entry((snapshot, platform)).or_insert(id);
        *held = (*held).max(id);
    }
    let goes = |name: &&str| {
        document::parse_name(name).is_some_and(|(snapshot, platform, id)| {
            !kept.contains(snapshot) || newest.get(&(snapshot, platform)) != Some(&id)
        })
    };
    names.iter().copied().filter(goes).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::leaving;

    #[test]
    fn the_newest_of_each_kind_stays_while_its_snapshot_does() {
        let (kept, gone) = ("6905a1f800000001", "6905a1f800000002");
        let name = |snapshot: &str, platform: &str, id: u32| {
            format!("images/{snapshot}_{platform}_6905a1f8{id:08x}.json")
        };
        let names = [
            name(kept, "aa", 1),
            name(kept, "aa", 2),
            name(kept, "bb", 1),
            name(gone, "aa", 3),
            "images/of-a-newer-program.json".to_owned(),
            format!("images/6905a1f800000001/{}", "ab".repeat(32)),
        ];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let leaving = leaving(&names, &BTreeSet::from([kept.to_owned()]));
        assert_eq!(leaving, BTreeSet::from([names[0], names[3]]));
    }
}
