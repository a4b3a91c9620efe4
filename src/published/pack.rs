//! A data directory into pieces in the store.
//!
//! Its files are read one after the other and cut every [`PIECE_BYTES`], wherever that falls: each piece
//! is compressed, hashed and stored by itself, beside the reading.

use std::io::Read;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::Error;
use super::document::{self, File, Piece};
use super::files::{self, Fate};
use crate::context::Context;
use crate::engine::{Engine, Outgoing};
use crate::error;
use crate::report::{Step, Unit};
use crate::snapshot::chunk;
use crate::store::Store;

/// Some two hundred pieces for 1.5 GB.
const PIECE_BYTES: usize = 8 << 20;
/// Pieces that are compressed or on their way at once.
const AT_ONCE: usize = 4;
/// Pieces that are read ahead.
const AHEAD: usize = 2;

/// What was stored.
pub(super) struct Packed {
    pub folders: Vec<String>,
    pub files: Vec<File>,
    pub pieces: Vec<Piece>,
}

/// Stops the server and stores its data directory as the pieces of the image `id`.
///
/// # Errors
/// Why not all of it was stored.
pub(super) async fn pack(
    ctx: &Context,
    store: &Store,
    engine: &Engine,
    id: &str,
    level: i32,
    step: &Step,
) -> Result<Packed, error::Error> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let reading = async {
        let packer = engine.hand_out(ctx, Packer::new(sender)).await?;
        Ok::<_, error::Error>(packer.finish().await)
    };
    let plain = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Vec<u8>>| {
        receiver.recv().await.map(|block| (block, receiver))
    });
    let done = std::sync::atomic::AtomicU64::new(0);
    let storing = plain
        .map(|block| async {
            let piece = stored(store, id, block, level).await?;
            let size = piece.plain_size;
            let sum = done.fetch_add(size, std::sync::atomic::Ordering::Relaxed) + size;
            step.progress(sum, None, Unit::Bytes);
            Ok::<_, error::Error>(piece)
        })
        .buffered(AT_ONCE)
        .try_collect::<Vec<Piece>>();
    // The engine ends by itself when it is asked to or nobody takes any more, and leaves nothing.
    let (read, stored) = tokio::join!(reading, ctx.until_cancelled(storing));
    let pieces = stored?;
    let (folders, files) = read?;
    Ok(Packed { folders, files, pieces })
}

async fn stored(
    store: &Store,
    id: &str,
    block: Vec<u8>,
    level: i32,
) -> Result<Piece, error::Error> {
    let plain_size = block.len() as u64;
    let sealed = tokio::task::spawn_blocking(move || {
        let bytes = zstd::bulk::compress(&block, level)?;
        let object = chunk::sha256(&bytes);
        Ok((object, bytes))
    });
    let sealed = sealed.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let (object, bytes) = sealed.map_err(|error| Error::Compress { error })?;
    let stored_size = bytes.len() as u64;
    let _ = store.put(&document::piece_name(id, &object), Bytes::from(bytes)).await?;
    Ok(Piece { object, stored_size, plain_size })
}

/// Cuts what comes in.
struct Packer {
    folders: Vec<String>,
    files: Vec<File>,
    block: Vec<u8>,
    sender: mpsc::Sender<Vec<u8>>,
}

impl Packer {
    fn new(sender: mpsc::Sender<Vec<u8>>) -> Self {
        let block = Vec::with_capacity(PIECE_BYTES);
        Self { folders: Vec::new(), files: Vec::new(), block, sender }
    }

    /// Sends the last piece; what it has seen.
    async fn finish(self) -> (Vec<String>, Vec<File>) {
        if !self.block.is_empty() {
            // Whoever does not receive it any more has failed, and says why.
            let _ = self.sender.send(self.block).await;
        }
        (self.folders, self.files)
    }
}

impl Outgoing for Packer {
    fn folder(&mut self, name: &str) -> std::io::Result<()> {
        match files::folder(name) {
            Fate::Taken => self.folders.push(name.to_owned()),
            Fate::Left => {}
            Fate::Unknown => return Err(unknown(name)),
        }
        Ok(())
    }

    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> std::io::Result<()> {
        match files::file(name) {
            Fate::Taken => {}
            Fate::Left => return Ok(()),
            Fate::Unknown => return Err(unknown(name)),
        }
        let mut left = size;
        while left > 0 {
            let room = (PIECE_BYTES - self.block.len()) as u64;
            let read = content.take(left.min(room)).read_to_end(&mut self.block)? as u64;
            if read == 0 {
                let reason = format!("`{name}` has become shorter");
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason));
            }
            left -= read;
            if self.block.len() == PIECE_BYTES {
                let full = std::mem::replace(&mut self.block, Vec::with_capacity(PIECE_BYTES));
                let closed = |_| std::io::Error::other("it is not stored any more");
                self.sender.blocking_send(full).map_err(closed)?;
            }
        }
        self.files.push(File { name: name.to_owned(), size });
        Ok(())
    }
}

fn unknown(name: &str) -> std::io::Error {
    std::io::Error::other(format!("nobody knows what `{name}` is for, so no image can have it"))
}
