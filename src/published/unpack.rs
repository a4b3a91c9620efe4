//! Pieces out of the store, in order, as the bytes of a data directory.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::document::{Image, MAX_PIECE_BYTES, Piece};
use super::{Error, estimate};
use crate::context::Context;
use crate::engine::{Engine, Feed, Incoming};
use crate::error;
use crate::report::{Step, Unit};
use crate::snapshot::chunk::{self, Damage};
use crate::store::{Store, cache::Cache};

/// Pieces on their way or decompressed and not taken yet: some 48 MB.
const AHEAD: usize = 4;
const TAKEN: usize = 2;

/// What an image's pieces come from.
pub(super) struct Source<'a> {
    store: &'a Store,
    cache: Cache,
    image: &'a Image,
    /// Bytes that came from the store, not from the cache.
    downloaded: AtomicU64,
}

impl<'a> Source<'a> {
    pub(super) fn new(ctx: &Context, store: &'a Store, image: &'a Image) -> Self {
        Self { store, cache: Cache::open(ctx), image, downloaded: AtomicU64::new(0) }
    }

    pub(super) fn downloaded(&self) -> u64 {
        self.downloaded.load(Ordering::Relaxed)
    }

    /// Stored bytes of all that is not in the cache.
    pub(super) fn missing(&self) -> u64 {
        let missing = self.image.pieces.iter().filter(|piece| !self.cache.has(&piece.object));
        missing.map(|piece| piece.stored_size).sum()
    }

    /// How fast pieces come, from some that are not here yet; `None`: all of them are.
    ///
    /// # Errors
    /// What the store said.
    pub(super) async fn speed(&self) -> Result<Option<estimate::Speed>, error::Error> {
        let missing = self.image.pieces.iter().filter(|piece| !self.cache.has(&piece.object));
        let missing: Vec<&Piece> = missing.collect();
        let sizes: Vec<u64> = missing.iter().map(|piece| piece.stored_size).collect();
        let probed: Vec<&Piece> =
            estimate::probed(&sizes).into_iter().map(|index| missing[index]).collect();
        if probed.is_empty() {
            return Ok(None);
        }
        let started = std::time::Instant::now();
        let fetched = stream::iter(&probed)
            .map(|piece| self.stored(piece))
            .buffer_unordered(estimate::PROBED)
            .try_fold(0_u64, async |sum, bytes| Ok(sum + bytes.len() as u64));
        match tokio::time::timeout(estimate::PROBE_LIMIT, fetched).await {
            Ok(bytes) => Ok(Some(estimate::Speed { bytes: bytes?, took: started.elapsed() })),
            Err(_) => {
                let bytes = probed.iter().map(|piece| piece.stored_size).sum();
                Ok(Some(estimate::Speed::below(bytes)))
            }
        }
    }

    /// Puts the data directory into the engine's place for images, as `name`.
    ///
    /// # Errors
    /// Why it is not there.
    pub(super) async fn hand_to(
        &self,
        ctx: &Context,
        engine: &Engine,
        name: &str,
        facts: &str,
        step: &Step,
    ) -> Result<(), error::Error> {
        let (sender, receiver) = mpsc::channel(TAKEN);
        let incoming = Incoming {
            folders: self.image.folders.clone(),
            files: self.image.files.iter().map(|file| (file.name.clone(), file.size)).collect(),
            bytes: Feed::new(receiver),
        };
        // The engine ends by itself when it is asked to or gets no more, and leaves nothing.
        let fetching = async {
            let fetched = ctx.until_cancelled(self.fetch(sender, step)).await;
            self.cache.evict().await;
            fetched
        };
        let receiving = engine.receive(ctx, name, facts, incoming);
        let (fetched, received) = tokio::join!(fetching, receiving);
        // What was cut off was so for the reason that the other side has.
        fetched?;
        Ok(received?)
    }

    async fn fetch(&self, sender: mpsc::Sender<Bytes>, step: &Step) -> Result<(), error::Error> {
        let total = self.image.plain_bytes();
        let mut done = 0;
        let mut pieces = stream::iter(&self.image.pieces)
            .map(|piece| async { self.plain(piece).await })
            .buffered(AHEAD);
        while let Some(bytes) = pieces.try_next().await? {
            done += bytes.len() as u64;
            if sender.send(bytes).await.is_err() {
                break;
            }
            step.progress(done, Some(total), Unit::Bytes);
        }
        Ok(())
    }

    async fn plain(&self, piece: &Piece) -> Result<Bytes, error::Error> {
        let stored = self.stored(piece).await?;
        let needed = usize::try_from(piece.plain_size).unwrap_or(usize::MAX);
        let opened = tokio::task::spawn_blocking(move || chunk::decompress(&stored, needed)).await;
        let opened =
            opened.unwrap_or_else(|error| Err(Damage::Frame { reason: error.to_string() }));
        let object = || self.image.object_of(piece);
        Ok(opened.map_err(|damage| Error::Damaged { object: object(), damage })?.into())
    }

    /// The stored bytes of a piece; their hash was found right.
    async fn stored(&self, piece: &Piece) -> Result<Bytes, error::Error> {
        if let Some(bytes) = self.cache.get(&piece.object).await {
            return Ok(bytes);
        }
        let bytes = match self.download(piece).await {
            // One bit may have flipped on the way; a second wrong answer is what the store holds.
            Err(error::Error::Published(Error::Damaged { .. })) => self.download(piece).await?,
            other => other?,
        };
        self.cache.put(&piece.object, &bytes).await;
        Ok(bytes)
    }

    async fn download(&self, piece: &Piece) -> Result<Bytes, error::Error> {
        let object = self.image.object_of(piece);
        let bytes = self.store.get(&object, MAX_PIECE_BYTES).await?;
        self.downloaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let hashed = bytes.clone();
        let found = tokio::task::spawn_blocking(move || chunk::sha256(&hashed)).await;
        let found = found.unwrap_or_default();
        if found != piece.object {
            return Err(Error::Damaged { object, damage: Damage::StoredHash { found } }.into());
        }
        Ok(bytes)
    }
}
