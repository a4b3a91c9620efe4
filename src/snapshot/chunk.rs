//! Rows as stored bytes and back: zstd frames, hashed on both sides, packed into objects.
//!
//! Compressing and hashing run in blocking threads, block by block, so that memory depends neither on
//! the table nor on the chunk. Reading promises that no byte is handed on before the stored hash, the
//! plain size and the plain hash have all been found right.

use std::io::{Read, Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::manifest::Chunk;

/// What is handed to a blocking thread at once: large enough that the hop costs nothing.
pub(super) const BLOCK_BYTES: usize = 1024 * 1024;

/// 128 MiB, what `zstd` itself accepts without `--long`; frames that want more are refused unread.
const WINDOW_LOG_MAX: u32 = 27;

/// Why stored bytes are not what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it is not in the store")]
    Missing,
    #[error("its sha256 is {found}")]
    StoredHash { found: String },
    #[error("it has {found} bytes, the manifest needs {needed}")]
    StoredSize { found: u64, needed: u64 },
    #[error("it cannot be decompressed: {reason}")]
    Frame { reason: String },
    #[error("it holds more or less than the {needed} bytes that the manifest says")]
    PlainSize { needed: u64 },
    #[error("the sha256 of its contents is {found}")]
    PlainHash { found: String },
}

/// sha256 in lower-case hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        text
    })
}

/// One finished zstd frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub stored: Vec<u8>,
    pub plain_size: u64,
    pub plain_hash: String,
    pub rows: u64,
}

struct Encoder {
    zstd: zstd::stream::write::Encoder<'static, Vec<u8>>,
    plain: Sha256,
    plain_size: u64,
}

impl Encoder {
    fn new(level: i32) -> std::io::Result<Self> {
        let zstd = zstd::stream::write::Encoder::new(Vec::new(), level)?;
        Ok(Self { zstd, plain: Sha256::new(), plain_size: 0 })
    }

    fn write(&mut self, block: &[u8]) -> std::io::Result<()> {
        self.plain.update(block);
        self.plain_size += block.len() as u64;
        self.zstd.write_all(block)
    }

    fn finish(self, rows: u64) -> std::io::Result<Frame> {
        let plain_hash = hex(&self.plain.finalize());
        Ok(Frame { stored: self.zstd.finish()?, plain_size: self.plain_size, plain_hash, rows })
    }
}

/// Takes plain bytes and gives a [`Frame`]; the next block is filled while the last is compressed.
pub(super) struct FrameWriter {
    level: i32,
    block: Vec<u8>,
    plain_size: u64,
    rows: u64,
    encoder: Option<tokio::task::JoinHandle<std::io::Result<Encoder>>>,
}

impl FrameWriter {
    pub(super) fn new(level: i32) -> Self {
        Self { level, block: Vec::new(), plain_size: 0, rows: 0, encoder: None }
    }

    /// Plain bytes taken so far.
    pub(super) fn plain_size(&self) -> u64 {
        self.plain_size
    }

    /// Takes `bytes`, which complete `rows` rows.
    pub(super) async fn write(&mut self, bytes: &[u8], rows: u64) -> std::io::Result<()> {
        self.block.extend_from_slice(bytes);
        self.plain_size += bytes.len() as u64;
        self.rows += rows;
        if self.block.len() >= BLOCK_BYTES {
            self.send_block().await?;
        }
        Ok(())
    }

    /// Ends the frame. The writer is then ready for the next one.
    pub(super) async fn finish(&mut self) -> std::io::Result<Frame> {
        self.send_block().await?;
        let encoder = self.encoder.take().expect("send_block leaves an encoder at work");
        let rows = std::mem::take(&mut self.rows);
        self.plain_size = 0;
        let encoder = joined(encoder.await)?;
        joined(tokio::task::spawn_blocking(move || encoder.finish(rows)).await)
    }

    async fn send_block(&mut self) -> std::io::Result<()> {
        let encoder = match self.encoder.take() {
            Some(encoder) => Some(joined(encoder.await)?),
            None => None,
        };
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK_BYTES));
        let level = self.level;
        self.encoder = Some(tokio::task::spawn_blocking(move || {
            let mut encoder = match encoder {
                Some(encoder) => encoder,
                None => Encoder::new(level)?,
            };
            encoder.write(&block)?;
            Ok(encoder)
        }));
        Ok(())
    }
}

fn joined<T>(result: Result<std::io::Result<T>, tokio::task::JoinError>) -> std::io::Result<T> {
    result.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// Frames put one after the other into one object to be stored.
#[derive(Debug, Default)]
pub(super) struct Pack {
    bytes: Vec<u8>,
    frames: Vec<(usize, Chunk)>,
}

impl Pack {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Adds a frame that belongs to `owner`.
    pub(super) fn push(&mut self, owner: usize, frame: Frame) {
        let chunk = Chunk {
            object: String::new(),
            offset: self.bytes.len() as u64,
            stored_size: frame.stored.len() as u64,
            plain_size: frame.plain_size,
            plain_hash: frame.plain_hash,
            rows: frame.rows,
        };
        if self.bytes.is_empty() {
            self.bytes = frame.stored;
        } else {
            self.bytes.extend_from_slice(&frame.stored);
        }
        self.frames.push((owner, chunk));
    }

    /// Names the object by its hash; returns its bytes and its chunks with their owners.
    pub(super) async fn seal(self) -> std::io::Result<(String, Bytes, Vec<(usize, Chunk)>)> {
        let Self { bytes, mut frames } = self;
        let bytes = Bytes::from(bytes);
        let hashed = bytes.clone();
        let object = joined(tokio::task::spawn_blocking(move || Ok(sha256(&hashed))).await)?;
        for (_, chunk) in &mut frames {
            chunk.object.clone_from(&object);
        }
        Ok((object, bytes, frames))
    }
}

/// The plain bytes of `chunk`, out of the whole stored object that holds it.
///
/// # Errors
/// [`Damage`] when anything is not as the manifest says.
pub(super) fn open(object: &Bytes, chunk: &Chunk) -> Result<Bytes, Damage> {
    let found = sha256(object);
    if found != chunk.object {
        return Err(Damage::StoredHash { found });
    }
    open_frame(object, chunk)
}

/// As [`open`], for an object whose own hash was found right.
pub(super) fn open_frame(object: &Bytes, chunk: &Chunk) -> Result<Bytes, Damage> {
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let begin = size(chunk.offset);
    let end = begin.saturating_add(size(chunk.stored_size));
    let Some(frame) = object.get(begin..end) else {
        return Err(Damage::StoredSize { found: object.len() as u64, needed: end as u64 });
    };
    let broken = |error: std::io::Error| Damage::Frame { reason: error.to_string() };
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(broken)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(broken)?;
    // The manifest bounds the size, so a bomb costs no more than it says; one byte over is refused.
    let mut plain = Vec::with_capacity(size(chunk.plain_size.min(64 * 1024 * 1024)) + 1);
    decoder.take(chunk.plain_size.saturating_add(1)).read_to_end(&mut plain).map_err(broken)?;
    if plain.len() as u64 != chunk.plain_size {
        return Err(Damage::PlainSize { needed: chunk.plain_size });
    }
    let found = sha256(&plain);
    if found != chunk.plain_hash {
        return Err(Damage::PlainHash { found });
    }
    Ok(Bytes::from(plain))
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Damage, FrameWriter, Pack, open};

    async fn packed(texts: &[&[u8]]) -> (Bytes, Vec<super::Chunk>) {
        let mut writer = FrameWriter::new(3);
        let mut pack = Pack::default();
        for (at, text) in texts.iter().enumerate() {
            writer.write(text, 1).await.expect("compress");
            pack.push(at, writer.finish().await.expect("compress"));
        }
        let (_, bytes, frames) = pack.seal().await.expect("hash");
        (bytes, frames.into_iter().map(|(_, chunk)| chunk).collect())
    }

    #[tokio::test]
    async fn frames_of_several_tables_come_back_from_one_object() {
        let long = vec![b'x'; 3 * super::BLOCK_BYTES + 17];
        let texts: [&[u8]; 4] = [b"1\tone\n", b"", &long, b"last\n"];
        let (object, chunks) = packed(&texts).await;
        for (text, chunk) in texts.iter().zip(&chunks) {
            assert_eq!(open(&object, chunk).as_deref(), Ok(*text));
        }
    }

    #[tokio::test]
    async fn a_flipped_bit_or_a_wrong_size_is_damage() {
        let (object, chunks) = packed(&[b"1\tone\n2\ttwo\n"]).await;
        for at in 0..object.len() {
            let mut bytes = object.to_vec();
            bytes[at] ^= 1;
            let damage = open(&Bytes::from(bytes), &chunks[0]);
            assert!(matches!(damage, Err(Damage::StoredHash { .. })), "{at}");
        }
        let mut bomb = chunks[0].clone();
        bomb.plain_size -= 1;
        assert_eq!(open(&object, &bomb), Err(Damage::PlainSize { needed: bomb.plain_size }));
        let mut short = chunks[0].clone();
        short.stored_size += 1;
        assert!(matches!(open(&object, &short), Err(Damage::StoredSize { .. })));
    }
}
