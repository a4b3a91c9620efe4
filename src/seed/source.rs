//! A seed file as lines, read and unpacked on a thread of its own, a block at a time.

use std::io::Read;

use bytes::Bytes;
use camino::Utf8Path;
use tokio::sync::mpsc;

/// Large enough that a wake-up is nothing beside the work, small enough to stay out of sight.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that may wait: reading and loading overlap, memory stays flat.
const BLOCKS_WAITING: usize = 4;

const GZIP: [u8; 2] = [0x1f, 0x8b];
/// What every archive of `pg_dump -Fc` begins with.
const ARCHIVE: &[u8] = b"PGDMP";

/// What a file holds, by its first bytes: names lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Sql,
    GzippedSql,
    Archive,
}

/// A file that was opened, once: what was read from a pipe does not come a second time.
pub(super) struct Source {
    pub content: Content,
    /// `None`: nobody knows where a pipe ends.
    pub size: Option<u64>,
    file: Counted,
}

impl Source {
    /// Waits for the first bytes; `None` where there are none.
    pub(super) async fn open(path: &Utf8Path) -> std::io::Result<Option<Self>> {
        let path = path.to_owned();
        // Whoever writes into a pipe may be late.
        blocking(move || Self::open_now(&path)).await
    }

    fn open_now(path: &Utf8Path) -> std::io::Result<Option<Self>> {
        let mut file = fs_err::File::open(path)?;
        let mut first = Vec::with_capacity(ARCHIVE.len());
        file.by_ref().take(ARCHIVE.len() as u64).read_to_end(&mut first)?;
        let content = if first == ARCHIVE {
            Content::Archive
        } else if first.starts_with(&GZIP) {
            Content::GzippedSql
        } else {
            Content::Sql
        };
        if first.is_empty() {
            return Ok(None);
        }
        let metadata = file.metadata()?;
        let size = metadata.is_file().then_some(metadata.len());
        let file = Counted { file: std::io::Cursor::new(first).chain(file), bytes: 0 };
        Ok(Some(Self { content, size, file }))
    }

    /// All of it.
    pub(super) async fn read(mut self) -> std::io::Result<Bytes> {
        blocking(move || {
            let mut bytes = Vec::new();
            self.file.read_to_end(&mut bytes)?;
            Ok(bytes.into())
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

struct Block {
    bytes: Bytes,
    /// Of the file as it lies on disk.
    bytes_read: u64,
}

/// The lines of a file.
pub(super) struct Lines {
    blocks: mpsc::Receiver<std::io::Result<Block>>,
    rest: Bytes,
    /// Bytes of the file that were read so far.
    pub bytes_read: u64,
    /// Number of the line that was returned last, from 1.
    pub number: u64,
}

impl Lines {
    /// Starts reading.
    pub(super) fn of(Source { content, file, .. }: Source) -> Self {
        let (sender, blocks) = mpsc::channel(BLOCKS_WAITING);
        // The thread ends with the file, or when nobody takes its blocks any more.
        tokio::task::spawn_blocking(move || match content {
            Content::GzippedSql => {
                let reader = flate2::read::MultiGzDecoder::new(file);
                send_blocks(reader, |reader| reader.get_ref().bytes, &sender);
            }
            Content::Sql | Content::Archive => send_blocks(file, |file| file.bytes, &sender),
        });
        Self { blocks, rest: Bytes::new(), bytes_read: 0, number: 0 }
    }

    /// The next line with its line end; the last one may have none. `None` at the end.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let mut begun: Vec<u8> = Vec::new();
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                self.number += 1;
                if begun.is_empty() {
                    return Ok(Some(line));
                }
                begun.extend_from_slice(&line);
                return Ok(Some(begun.into()));
            }
            begun.extend_from_slice(&self.rest);
            self.rest = Bytes::new();
            match self.blocks.recv().await {
                Some(block) => {
                    let block = block?;
                    self.rest = block.bytes;
                    self.bytes_read = block.bytes_read;
                }
                None if begun.is_empty() => return Ok(None),
                None => {
                    self.number += 1;
                    return Ok(Some(begun.into()));
                }
            }
        }
    }
}

struct Counted {
    /// The bytes that told what it holds, and the rest.
    file: std::io::Chain<std::io::Cursor<Vec<u8>>, fs_err::File>,
    bytes: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

fn send_blocks<R: Read>(
    mut reader: R,
    bytes_read: impl Fn(&R) -> u64,
    sender: &mpsc::Sender<std::io::Result<Block>>,
) {
    loop {
        let mut bytes = Vec::with_capacity(BLOCK_BYTES);
        let result = reader.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut bytes);
        let item = match result {
            Ok(0) => return,
            Ok(_) => Ok(Block { bytes: bytes.into(), bytes_read: bytes_read(&reader) }),
            Err(error) => Err(error),
        };
        let failed = item.is_err();
        if sender.blocking_send(item).is_err() || failed {
            return;
        }
    }
}
