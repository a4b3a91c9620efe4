//! A data directory from elsewhere, written by several threads: where each block of it belongs is known
//! before the one ahead of it is on its place.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};

use crate::engine::Error;
use crate::engine::images::{CutOff, Feed};

/// What is written is copied into the page cache, by one core each; more only wait for the disk.
const MOST: usize = 4;

/// Writes these files, which are there and empty. An error ends all of it.
pub(super) fn write(data: &Utf8Path, files: &[(String, u64)], feed: Feed) -> Result<(), Error> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST));
    write_by(threads, data, files, feed)
}

fn write_by(
    threads: usize,
    data: &Utf8Path,
    files: &[(String, u64)],
    feed: Feed,
) -> Result<(), Error> {
    let blocks = Mutex::new(Blocks { feed, files, file: 0, at: 0 });
    let failed = AtomicBool::new(false);
    let work = || {
        let written = write_blocks(data, &blocks, &failed);
        failed.fetch_or(written.is_err(), Ordering::Relaxed);
        written
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        writers.into_iter().try_for_each(|writer| {
            writer.join().unwrap_or_else(|_| {
                let error = std::io::Error::other("a thread has panicked");
                Err(Error::file("write in", data)(error))
            })
        })
    })
}

fn write_blocks(
    data: &Utf8Path,
    blocks: &Mutex<Blocks<'_>>,
    failed: &AtomicBool,
) -> Result<(), Error> {
    let path = |name: &str| -> Utf8PathBuf { data.join(name) };
    while !failed.load(Ordering::Relaxed) {
        let next = blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
        let parts = next.map_err(|name| {
            Error::file("receive", path(name))(std::io::ErrorKind::UnexpectedEof.into())
        })?;
        if parts.is_empty() {
            break;
        }
        for part in parts {
            let path = path(part.name);
            let open = std::fs::OpenOptions::new()
                .write(true)
                .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
                .open(&path);
            let written = open.and_then(|file| file.write_all_at(&part.bytes, part.at));
            written.map_err(Error::file("write", &path))?;
        }
    }
    Ok(())
}

/// Bytes of one file.
#[derive(Debug, PartialEq, Eq)]
struct Part<'a> {
    name: &'a str,
    at: u64,
    bytes: Bytes,
}

/// What comes in, and where the next of it belongs.
struct Blocks<'a> {
    feed: Feed,
    files: &'a [(String, u64)],
    file: usize,
    at: u64,
}

impl<'a> Blocks<'a> {
    /// The next block by the files that it belongs to; empty when all files are whole. The error is the
    /// name of the file that is not.
    fn next(&mut self) -> Result<Vec<Part<'a>>, &'a str> {
        let mut parts = Vec::new();
        while let Some((name, size)) = self.files.get(self.file) {
            if self.at == *size {
                (self.file, self.at) = (self.file + 1, 0);
                continue;
            }
            if !parts.is_empty() && !self.feed.has_some() {
                break;
            }
            let bytes = self.feed.blocking_next(size - self.at).map_err(|CutOff| name.as_str())?;
            let at = self.at;
            self.at += bytes.len() as u64;
            parts.push(Part { name, at, bytes });
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::{Blocks, Part, write, write_by};
    use crate::engine::images::Feed;

    fn feed(blocks: &[&'static str]) -> Feed {
        let (sender, receiver) = mpsc::channel(blocks.len().max(1));
        for block in blocks {
            sender.try_send(Bytes::from_static(block.as_bytes())).expect("it has room");
        }
        Feed::new(receiver)
    }

    fn files(sizes: &[(&str, u64)]) -> Vec<(String, u64)> {
        sizes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
    }

    #[test]
    fn a_block_belongs_to_the_files_that_it_reaches_into() {
        let files = files(&[("empty", 0), ("a", 3), ("none", 0), ("b", 6), ("c", 1)]);
        let mut blocks = Blocks { feed: feed(&["abcDE", "FGHIJ"]), files: &files, file: 0, at: 0 };
        let part = |name, at, bytes: &'static str| Part { name, at, bytes: Bytes::from(bytes) };
        assert_eq!(blocks.next(), Ok(vec![part("a", 0, "abc"), part("b", 0, "DE")]));
        assert_eq!(blocks.next(), Ok(vec![part("b", 2, "FGHI"), part("c", 0, "J")]));
        assert_eq!(blocks.next(), Ok(Vec::new()));
    }

    #[test]
    fn a_feed_that_ends_too_early_names_the_file_that_is_not_whole() {
        let files = files(&[("a", 3), ("b", 6)]);
        let mut blocks = Blocks { feed: feed(&["abcDE"]), files: &files, file: 0, at: 0 };
        assert!(blocks.next().is_ok());
        assert_eq!(blocks.next(), Err("b"));
    }

    #[test]
    fn what_several_threads_write_is_what_came_in() {
        let dir = tempfile::tempdir().expect("a folder");
        let data = camino::Utf8Path::from_path(dir.path()).expect("UTF-8");
        let sizes: Vec<(String, u64)> = (0..40).map(|n| (format!("f{n}"), n * 7 % 31)).collect();
        let mut plain: Vec<u8> = Vec::new();
        for (name, size) in &sizes {
            plain.extend((0..*size).map(|at| u8::try_from(at * 5 % 251).unwrap_or_default()));
            std::fs::write(data.join(name), "").expect("a file");
        }
        let (sender, receiver) = mpsc::channel(plain.len());
        for block in plain.chunks(13) {
            sender.try_send(Bytes::copy_from_slice(block)).expect("it has room");
        }
        drop(sender);
        write_by(3, data, &sizes, Feed::new(receiver)).expect("all of it came");
        let found: Vec<u8> = sizes
            .iter()
            .flat_map(|(name, _)| std::fs::read(data.join(name)).expect("it is there"))
            .collect();
        assert_eq!(found, plain);

        let gone = write(data, &sizes, feed(&["too little"])).expect_err("it was cut off");
        assert!(gone.to_string().contains("receive"), "{gone}");
    }

    #[test]
    fn a_file_that_cannot_be_written_ends_all_of_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let data = camino::Utf8Path::from_path(dir.path()).expect("UTF-8");
        std::fs::write(data.join("there"), "").expect("a file");
        let files = files(&[("missing", 2), ("there", 1 << 40)]);
        // It never ends by itself.
        let (sender, receiver) = mpsc::channel(1);
        let source =
            std::thread::spawn(
                move || {
                    while sender.blocking_send(Bytes::from_static(b"abc")).is_ok() {}
                },
            );
        let gone = write_by(3, data, &files, Feed::new(receiver)).expect_err("one is missing");
        assert!(gone.to_string().contains("write"), "{gone}");
        source.join().expect("whoever sends is told");
    }
}
