//! Chunks on their way into the store: compressed, hashed and uploaded while the next ones are read.
//!
//! Readers put what they have read into a queue; storers take it out. Rows that are in memory at once
//! are bounded by their bytes, so neither many storers nor large chunks make the process grow.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use futures_util::future::try_join_all;
use tokio::sync::SemaphorePermit;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::super::chunk::{self, Plain};
use super::super::manifest::{self, Chunk};
use super::rows::{Done, Owner};
use super::{Error, Run, locked};
use crate::store::{self, Store};

/// Rows between their reader and the store: enough to keep eight uploads of default size busy.
pub(super) const ROOM_BYTES: usize = 64 * 1024 * 1024;

/// The room is given out in pieces of this size.
const PIECE_BYTES: usize = 1024;

pub(super) const ROOM_PIECES: usize = ROOM_BYTES / PIECE_BYTES;

/// What becomes one object: the rows of one range, or of several small tables.
pub(super) struct Unit<'r> {
    parts: Vec<(Owner, usize, Plain)>,
    /// Given back when the object is stored.
    room: SemaphorePermit<'r>,
}

fn pieces(bytes: usize) -> usize {
    bytes.div_ceil(PIECE_BYTES).min(ROOM_PIECES)
}

/// Chunks of earlier runs that are in the store: they are not sent again.
pub(super) struct Present {
    /// Sizes by sha256; `None` where this account may not list, so that each is asked for.
    sizes: Option<Mutex<HashMap<[u8; 32], u64>>>,
}

impl Present {
    /// One listing, a request for a thousand chunks, where asking for each would be one a chunk.
    pub(super) async fn list(store: &Store) -> Result<Self, store::Error> {
        let entries = match store.list("chunks/").await {
            Ok(entries) => entries,
            Err(store::Error::Denied { .. }) => return Ok(Self { sizes: None }),
            Err(error) => return Err(error),
        };
        let sizes = entries.iter().filter_map(|entry| {
            let hash = entry.name.rsplit('/').next()?;
            (manifest::chunk_name(hash) == entry.name).then_some((binary(hash)?, entry.size))
        });
        Ok(Self { sizes: Some(Mutex::new(sizes.collect())) })
    }

    fn has(&self, object: &str, size: u64) -> Option<bool> {
        let sizes = self.sizes.as_ref()?;
        Some(binary(object).is_some_and(|hash| locked(sizes).get(&hash) == Some(&size)))
    }

    fn add(&self, object: &str, size: u64) {
        if let (Some(sizes), Some(hash)) = (&self.sizes, binary(object)) {
            locked(sizes).insert(hash, size);
        }
    }
}

/// A sha256 out of its hexadecimal digits: a third of the memory, of which a store may have millions.
fn binary(hash: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hash.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(hash.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

impl<'a> Run<'a> {
    /// Runs `read`, which fills the queue, beside the storers; ends when all of it is stored.
    pub(super) async fn storing<'r, T>(
        &'r self,
        read: impl AsyncFnOnce(Sender<Unit<'r>>) -> Result<T, Error>,
    ) -> Result<(T, Vec<Done>), Error> {
        let (queue, receiver) = mpsc::channel(self.uploads);
        let receiver = tokio::sync::Mutex::new(receiver);
        let storers = try_join_all((0..self.uploads).map(|_| self.storer(&receiver)));
        let (read, done) = tokio::try_join!(read(queue), storers)?;
        Ok((read, done.into_iter().flatten().collect()))
    }

    /// Puts rows into the queue once there is room for them.
    pub(super) async fn send<'r>(
        &'r self,
        queue: &Sender<Unit<'r>>,
        parts: Vec<(Owner, usize, Plain)>,
    ) {
        let bytes: usize = parts.iter().map(|(_, _, plain)| plain.bytes.len()).sum();
        let wanted = u32::try_from(pieces(bytes)).unwrap_or(u32::MAX);
        let room = self.room.acquire_many(wanted).await.expect("it is never closed");
        // A queue without storers belongs to a run that has failed and says why.
        let _ = queue.send(Unit { parts, room }).await;
    }

    async fn storer<'r>(
        &'r self,
        queue: &tokio::sync::Mutex<Receiver<Unit<'r>>>,
    ) -> Result<Vec<Done>, Error> {
        let mut done = Vec::new();
        loop {
            let Some(Unit { parts, mut room }) = queue.lock().await.recv().await else { break };
            let (owners, plain): (Vec<_>, Vec<_>) =
                parts.into_iter().map(|(owner, place, plain)| ((owner, place), plain)).unzip();
            let sealed = chunk::seal(plain, self.level).await.map_err(Error::Compress)?;
            // The rows are gone; what is left takes as much room as is stored.
            let spare = room.num_permits().saturating_sub(pieces(sealed.bytes.len()));
            drop(room.split(spare));
            let chunks = self.store_sealed(sealed).await?;
            drop(room);
            let chunks = owners.into_iter().zip(chunks);
            done.extend(chunks.map(|((owner, place), chunk)| Done { owner, place, chunk }));
        }
        Ok(done)
    }

    /// Compresses `plain` as one object and puts it into the store.
    pub(super) async fn store(&self, plain: Plain) -> Result<Vec<Chunk>, Error> {
        let sealed = chunk::seal(vec![plain], self.level).await.map_err(Error::Compress)?;
        self.store_sealed(sealed).await
    }

    async fn store_sealed(&self, sealed: chunk::Sealed) -> Result<Vec<Chunk>, Error> {
        let chunk::Sealed { object, bytes, chunks } = sealed;
        let plain: u64 = chunks.iter().map(|chunk| chunk.plain_size).sum();
        let size = bytes.len() as u64;
        let name = manifest::chunk_name(&object);
        let put = match self.present.has(&object, size) {
            // A run of `prune` may remove it before this one publishes: found is not enough.
            _ if self.marked.contains(&object) => None,
            Some(true) => Some(store::Put::Exists),
            Some(false) => None,
            None => Some(self.store.put(&name, bytes.clone()).await?),
        };
        if put.is_none() {
            self.store.put_again(&name, bytes).await?;
            self.present.add(&object, size);
        }
        match put.unwrap_or(store::Put::Created) {
            store::Put::Created => {
                self.new_objects.fetch_add(1, Ordering::Relaxed);
                self.new_bytes.fetch_add(size, Ordering::Relaxed);
            }
            store::Put::Exists => {
                self.reused_objects.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.plain_bytes.fetch_add(plain, Ordering::Relaxed);
        Ok(chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::{ROOM_PIECES, binary, pieces};

    #[test]
    fn a_hash_is_read_from_its_digits_and_nothing_else_is_one() {
        let hash = binary(&"0f".repeat(32)).expect("a hash");
        assert_eq!(hash, [15; 32]);
        for text in ["", "0f", &"0g".repeat(32), &"é".repeat(32), &"0f".repeat(33)] {
            assert_eq!(binary(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_larger_than_the_room_takes_all_of_it() {
        assert_eq!(pieces(0), 0);
        assert_eq!(pieces(1), 1);
        assert_eq!(pieces(usize::MAX), ROOM_PIECES);
    }
}
