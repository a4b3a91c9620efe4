//! The commit point: a snapshot exists once its manifest does, and never before.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::manifest::{self, Manifest};
use super::{Error, marks, name};
use crate::context::Context;
use crate::engine::ready;
use crate::store::{self, Put, Store};

/// S3 takes no longer values in a tag.
const TAG_VALUE_CHARACTERS: usize = 256;

/// Removing some thousand objects takes a minute.
const PRUNE_ENDS: Duration = Duration::from_secs(300);

/// A prune that began after a run did may remove what that run found in the store, but not before this
/// time, half of the shortest grace period, is over.
const LONG_RUN: Duration = Duration::from_secs(30 * 60);

/// Writes the manifest under its name, which must be new; returns the name. `running`: since before the
/// dump began, which looked what the store has.
///
/// # Errors
/// [`Error::Taken`] when another manifest has the name, [`Error::ChunksLost`] when the store has not all
/// that it names; what the store said. No snapshot is left, unless the store does not let it be removed.
pub async fn publish(
    ctx: &Context,
    store: &Store,
    manifest: &Manifest,
    running: Duration,
) -> Result<String, crate::error::Error> {
    let name = name::object_name(manifest);
    let document = manifest
        .write()
        .map_err(|error| Error::Manifest { object: name.clone(), error })
        .map(Bytes::from)?;
    if running >= LONG_RUN {
        ctx.until_cancelled(whole(store, manifest, &name)).await?;
    }
    // An answer that was lost is compared in there: `Exists` is somebody else's document.
    if ctx.until_cancelled(store.put_new(&name, document, &tags(manifest))).await? == Put::Exists {
        return Err(Error::Taken { object: name }.into());
    }
    ctx.until_cancelled(unharmed(ctx, store, manifest, &name)).await?;
    Ok(name)
}

/// Whether every chunk is in the store. What a listing lacks is asked for by name.
async fn whole(store: &Store, manifest: &Manifest, name: &str) -> Result<(), Error> {
    let listed: BTreeSet<String> = match store.list("chunks/").await {
        Ok(entries) => entries.into_iter().map(|entry| entry.name).collect(),
        Err(store::Error::Denied { .. }) => BTreeSet::new(),
        Err(error) => return Err(error.into()),
    };
    let ours: BTreeSet<String> = manifest.chunks().map(manifest::Chunk::object_name).collect();
    let mut lost = 0;
    for object in ours.difference(&listed) {
        match store.size(object).await {
            Ok(Some(_)) => {}
            Ok(None) => lost += 1,
            // An account that may neither list nor look knows only what it has written itself.
            Err(store::Error::Denied { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    match lost {
        0 => Ok(()),
        chunks => Err(Error::ChunksLost { object: name.to_owned(), chunks }),
    }
}

/// A run of `prune` that announced its removals before the manifest was there may not have seen it:
/// it is waited for, and what it announced is looked at. One that announces later sees the manifest.
async fn unharmed(
    ctx: &Context,
    store: &Store,
    manifest: &Manifest,
    name: &str,
) -> Result<(), crate::error::Error> {
    let ours: BTreeSet<&str> = manifest.chunks().map(|chunk| chunk.object.as_str()).collect();
    let announced = async || -> Result<BTreeSet<String>, Error> {
        let mut marks = marks::read(store).await?;
        marks.retain(|mark| mark.document.phase == marks::Phase::Removing);
        Ok(marks::chunks(&marks))
    };
    let mut doubtful = announced().await?;
    doubtful.retain(|object| ours.contains(object.as_str()));
    if doubtful.is_empty() {
        return Ok(());
    }
    ctx.report.note("waiting for a run of `snapshot prune` that is at work");
    let ended = async || match announced().await?.is_disjoint(&doubtful) {
        true => Ok(()),
        false => Err(crate::error::Error::from(Error::ChunksLost {
            object: name.to_owned(),
            chunks: doubtful.len(),
        })),
    };
    // One that was cut off never ends; what is there is looked at all the same.
    let _ = ready::until(ctx, PRUNE_ENDS, ended).await;
    let mut lost = 0;
    for object in &doubtful {
        if store.size(&manifest::chunk_name(object)).await.map_err(Error::Store)?.is_none() {
            lost += 1;
        }
    }
    if lost == 0 {
        return Ok(());
    }
    // Nobody is to find it, where this account may remove what it wrote.
    if let Err(error) = store.delete(name).await {
        ctx.report.warn(format!("`{name}` stays, though it is damaged: {error}"));
    }
    Err(Error::ChunksLost { object: name.to_owned(), chunks: lost }.into())
}

/// For people and for lifecycle rules; the manifest is the truth.
fn tags(manifest: &Manifest) -> Vec<(String, String)> {
    let version = manifest.schema_version().unwrap_or_else(|| "none".to_owned());
    [
        ("schema-version", version),
        ("database", manifest.database.clone()),
        ("taken-at", manifest.taken_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ("server-version", manifest.server.major().to_string()),
        ("tool-version", manifest.tool_version.clone()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), tag_value(&value)))
    .collect()
}

/// The characters that S3 allows in a tag, the others as `_`.
fn tag_value(text: &str) -> String {
    text.chars()
        .take(TAG_VALUE_CHARACTERS)
        .map(|letter| {
            let allowed = letter.is_ascii_alphanumeric() || " +-=._:/@".contains(letter);
            if allowed { letter } else { '_' }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::tag_value;

    #[test]
    fn a_tag_holds_what_s3_allows() {
        assert_eq!(tag_value("shöp \"1\""), "sh_p _1_");
        assert_eq!(tag_value(&"x".repeat(300)).len(), 256);
    }
}
