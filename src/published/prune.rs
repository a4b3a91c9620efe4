//! Images that nobody needs any more: of snapshots that have gone, older ones of the same kind, and
//! pieces of runs that were cut off.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;

use super::arrive;
use super::document::{self, Image, PREFIX};
use crate::context::Context;
use crate::error;
use crate::platform::Platform;
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
/// server and of each database stays.
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
        let (mut leaving, several) = by_name(&names, kept);
        for group in several {
            leaving.extend(older(&images(store, &group).await?));
        }
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

/// The documents whose snapshot has gone, and those of which one snapshot and one platform have several.
/// Names that we would not make are not touched.
fn by_name<'a>(
    names: &[&'a str],
    kept: &BTreeSet<String>,
) -> (BTreeSet<&'a str>, Vec<Vec<&'a str>>) {
    let mut gone = BTreeSet::new();
    let mut groups: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for &name in names {
        match document::parse_name(name) {
            Some((snapshot, _, _)) if !kept.contains(snapshot) => {
                gone.insert(name);
            }
            Some((snapshot, platform, _)) => {
                groups.entry((snapshot, platform)).or_default().push(name);
            }
            None => {}
        }
    }
    groups.retain(|_, group| group.len() > 1);
    (gone, groups.into_values().collect())
}

/// The documents of these names. One that cannot be read, or is of a newer program, pushes nobody out and
/// is not pushed out.
async fn images<'a>(
    store: &Store,
    names: &[&'a str],
) -> Result<Vec<(&'a str, Image)>, error::Error> {
    let mut images = Vec::new();
    for &name in names {
        match arrive::read(store, name).await {
            Ok(image) => images.push((name, image)),
            Err(
                error::Error::Published(_)
                | error::Error::Store(crate::store::Error::Missing { .. }),
            ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(images)
}

/// Those beside which there is a newer one that fits the same servers and has the same database in it.
fn older<'a>(images: &[(&'a str, Image)]) -> Vec<&'a str> {
    let kind = |image: &Image| {
        let Platform { libc, icu, lz4, .. } = &image.platform;
        (libc.clone(), icu.clone(), *lz4, image.database.clone())
    };
    let newer = |image: &Image| {
        images.iter().any(|(_, other)| kind(other) == kind(image) && other.id > image.id)
    };
    images.iter().filter(|(_, image)| newer(image)).map(|&(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::document::tests::image;
    use super::{Image, by_name, older};

    #[test]
    fn what_has_no_snapshot_goes_and_documents_are_read_only_where_there_are_several() {
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
        let (leaving, several) = by_name(&names, &BTreeSet::from([kept.to_owned()]));
        assert_eq!(leaving, BTreeSet::from([names[3]]));
        assert_eq!(several, [[names[0], names[1]]]);
    }

    #[test]
    fn the_newest_of_each_kind_of_server_and_of_each_database_stays() {
        type Change = fn(&mut Image);
        let of = |id: &str, change: Change| {
            let mut image = Image { id: format!("6905a1f80000000{id}"), ..image() };
            change(&mut image);
            image
        };
        let images: [(&str, Change); 6] = [
            ("1", |_| {}),
            ("2", |image| image.platform.libc = Some("2.36".to_owned())),
            ("3", |image| image.platform.icu = Some("153".to_owned())),
            ("4", |image| image.database = "other".to_owned()),
            ("5", |image| image.platform.libc = Some("2.36".to_owned())),
            ("6", |image| image.schema_version = Some("7".to_owned())),
        ];
        let images: Vec<(&str, Image)> =
            images.into_iter().map(|(id, change)| (id, of(id, change))).collect();
        assert_eq!(older(&images), ["1", "2"]);
        assert_eq!(older(&images[1..5]), ["2"]);
        assert_eq!(older(&images[..4]), [""; 0]);
    }
}
