//! Chunks out of the store, through the local cache, as rows that were found right.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::chunk::{self, Damage};
use super::manifest::Chunk;
use crate::report::{Reporter, format};
use crate::store::{self, Store, cache::Cache};

/// Objects of many small tables that are kept in memory while their tables are loaded: the workers
/// take neighbours, so two hold what all of them need.
const RECENT: usize = 2;

/// Why a chunk cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("`{object}`: {damage}")]
    Damaged { object: String, damage: Damage },
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Where chunks come from.
pub(super) struct Source<'a> {
    store: &'a Store,
    cache: Cache,
    recent: Mutex<Vec<(String, Bytes)>>,
    /// Bytes that came from the store, not from the cache.
    pub downloaded: AtomicU64,
}

impl<'a> Source<'a> {
    pub(super) fn new(store: &'a Store, cache: Cache) -> Self {
        Self { store, cache, recent: Mutex::default(), downloaded: AtomicU64::new(0) }
    }

    /// Removes from the cache what exceeds its limits, now that this run has what it needed.
    pub(super) async fn trim_cache(&self, report: &Reporter) {
        let evicted = self.cache.evict().await;
        if evicted.objects > 0 {
            report.detail(format!(
                "{} removed from the cache, {}",
                format::counted(evicted.objects, "chunk"),
                format::bytes(evicted.bytes)
            ));
        }
    }

    /// The plain bytes of `chunk`, every hash checked.
    pub(super) async fn plain(&self, chunk: &Chunk) -> Result<Bytes, Error> {
        let object = self.object(chunk).await?;
        let wanted = chunk.clone();
        let opened = tokio::task::spawn_blocking(move || chunk::open(&object, &wanted)).await;
        let opened =
            opened.unwrap_or_else(|error| Err(Damage::Frame { reason: error.to_string() }));
        opened.map_err(|damage| Error::Damaged { object: chunk.object_name(), damage })
    }

    /// The whole stored object of `chunk`; its hash was found right.
    async fn object(&self, chunk: &Chunk) -> Result<Bytes, Error> {
        if let Some(bytes) = self.recent(&chunk.object) {
            return Ok(bytes);
        }
        if let Some(bytes) = self.cache.get(&chunk.object).await {
            self.remember(chunk, &bytes);
            return Ok(bytes);
        }
        let bytes = match self.download(chunk).await {
            // One bit may have flipped on the way; a second wrong answer is what the store holds.
            Err(Error::Damaged { .. }) => self.download(chunk).await?,
            other => other?,
        };
        self.cache.put(&chunk.object, &bytes).await;
        self.remember(chunk, &bytes);
        Ok(bytes)
    }

    async fn download(&self, chunk: &Chunk) -> Result<Bytes, Error> {
        let name = chunk.object_name();
        let bytes = self.store.get(&name, super::manifest::MAX_CHUNK_BYTES).await?;
        self.downloaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let hashed = bytes.clone();
        let found = tokio::task::spawn_blocking(move || chunk::sha256(&hashed)).await;
        let found = found.unwrap_or_default();
        if found != chunk.object {
            return Err(Error::Damaged { object: name, damage: Damage::StoredHash { found } });
        }
        Ok(bytes)
    }

    fn recent(&self, object: &str) -> Option<Bytes> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().find(|(name, _)| name == object).map(|(_, bytes)| bytes.clone())
    }

    /// Keeps objects that others will want: those of which the chunk is only a part.
    fn remember(&self, chunk: &Chunk, bytes: &Bytes) {
        if chunk.stored_size == bytes.len() as u64 {
            return;
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT {
            recent.remove(0);
        }
        recent.push((chunk.object.clone(), bytes.clone()));
    }
}
