//! Stored objects kept on this machine, so that next week's snapshot fetches only what changed.
//!
//! A cache can always be made again: nothing here is an error, only slower. An object is named by its
//! sha256, which is checked on every read; a wrong one is removed.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};

use crate::context::Context;

/// What nobody has read for this long goes too.
const MAX_AGE: Duration = Duration::from_secs(60 * 24 * 3600);

/// Larger objects are not kept: they are single rows, and no two snapshots share them.
const MAX_OBJECT: usize = 256 * 1024 * 1024;

/// What may be put before the cache is brought back within its size, as a part of that: a look at some
/// thousand files is nothing beside so many bytes.
const UNSWEPT_PART: u64 = 8;

/// The user's chunk cache, shared by all projects.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: Utf8PathBuf,
    max_bytes: u64,
    /// Bytes put since the last [`Cache::evict`].
    unswept: Arc<AtomicU64>,
}

/// What [`Cache::evict`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evicted {
    pub objects: u64,
    pub bytes: u64,
}

impl Cache {
    /// The cache in the user's cache folder, as large as the configuration allows.
    pub fn open(ctx: &Context) -> Self {
        Self::at(ctx.env.cache_dir().join("chunks"), ctx.config.restore.cache_bytes)
    }

    /// A cache in `dir` that keeps at most `max_bytes` after [`Cache::evict`], and hardly more before.
    pub fn at(dir: Utf8PathBuf, max_bytes: u64) -> Self {
        Self { dir, max_bytes, unswept: Arc::default() }
    }

    /// The stored object with this sha256, if it is here and whole.
    pub async fn get(&self, object: &str) -> Option<Bytes> {
        let path = self.path(object)?;
        let object = object.to_owned();
        tokio::task::spawn_blocking(move || read(&path, &object)).await.ok()?
    }

    /// Whether the object seems to be here; it is not read.
    pub fn has(&self, object: &str) -> bool {
        self.path(object).is_some_and(|path| path.is_file())
    }

    /// Keeps a stored object. The caller has checked that `object` is its sha256.
    pub async fn put(&self, object: &str, bytes: &Bytes) {
        let Some(path) = self.path(object) else { return };
        if bytes.len() > MAX_OBJECT {
            return;
        }
        let size = bytes.len() as u64;
        let bytes = bytes.clone();
        // A full disk only means that the object is fetched again.
        let _ = tokio::task::spawn_blocking(move || write(&path, &bytes)).await;
        let unswept = self.unswept.fetch_add(size, Ordering::Relaxed) + size;
        if unswept > self.max_bytes / UNSWEPT_PART {
            self.evict().await;
        }
    }

    /// Removes what was read longest ago until the cache is within its size, and what is too old.
    pub async fn evict(&self) -> Evicted {
        self.unswept.store(0, Ordering::Relaxed);
        let (dir, max_bytes) = (self.dir.clone(), self.max_bytes);
        tokio::task::spawn_blocking(move || evict(&dir, max_bytes)).await.unwrap_or_default()
    }

    fn path(&self, object: &str) -> Option<Utf8PathBuf> {
        let good = object.len() == 64 && object.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then(|| self.dir.join(&object[..2]).join(object))
    }
}

fn read(path: &Utf8Path, object: &str) -> Option<Bytes> {
    let bytes = std::fs::read(path).ok()?;
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != object {
        let _ = std::fs::remove_file(path);
        return None;
    }
    // The time of the last read decides what is evicted; access times are often switched off.
    if let Ok(file) = std::fs::File::options().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
    Some(Bytes::from(bytes))
}

fn write(path: &Utf8Path, bytes: &[u8]) -> std::io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    // Not synced: after a crash of the machine the hash tells.
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn evict(dir: &Utf8Path, max_bytes: u64) -> Evicted {
    let mut files: Vec<(SystemTime, u64, std::path::PathBuf)> = Vec::new();
    let folders = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for folder in folders.filter(|folder| folder.file_type().is_ok_and(|kind| kind.is_dir())) {
        for file in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            let Ok(metadata) = file.metadata() else { continue };
            if metadata.is_file() {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push((used, metadata.len(), file.path()));
            }
        }
    }
    files.sort();
    let mut held: u64 = files.iter().map(|(_, size, _)| size).sum();
    let mut evicted = Evicted::default();
    for (used, size, path) in files {
        let old = used.elapsed().is_ok_and(|age| age > MAX_AGE);
        if held <= max_bytes && !old {
            break;
        }
        match std::fs::remove_file(&path) {
            Ok(()) => {
                held -= size;
                evicted.objects += 1;
                evicted.bytes += size;
            }
            // Another run has removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => held -= size,
            Err(_) => {}
        }
    }
    evicted
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Cache, Digest, Evicted, Sha256, Utf8PathBuf, write};

    fn cache(max_bytes: u64) -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).expect("UTF-8");
        (dir, Cache::at(path, max_bytes))
    }

    fn hash(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[tokio::test]
    async fn what_was_put_comes_back_and_a_flipped_bit_does_not() {
        let (_dir, cache) = cache(1000);
        let bytes = Bytes::from_static(b"stored bytes");
        let object = hash(&bytes);
        assert_eq!(cache.get(&object).await, None);
        cache.put(&object, &bytes).await;
        assert_eq!(cache.get(&object).await, Some(bytes.clone()));
        let path = cache.path(&object).expect("a hash");
        std::fs::write(&path, b"Stored bytes").expect("damage it");
        assert_eq!(cache.get(&object).await, None);
        assert!(!path.exists());
        cache.put(&object, &bytes).await;
        assert_eq!(cache.get(&object).await, Some(bytes));
        assert_eq!(cache.get("../../etc/passwd").await, None);
    }

    #[tokio::test]
    async fn what_is_put_never_takes_much_more_than_the_cache_may() {
        let (_dir, cache) = cache(1000);
        for number in 0..40_u8 {
            let bytes = Bytes::from(vec![number; 100]);
            cache.put(&hash(&bytes), &bytes).await;
        }
        let bytes = Bytes::from(vec![39; 100]);
        assert_eq!(cache.get(&hash(&bytes)).await, Some(bytes));
        let evicted = cache.evict().await;
        assert!(evicted.bytes <= 100, "{evicted:?}");
    }

    #[tokio::test]
    async fn the_longest_unread_objects_are_evicted_first() {
        let (_dir, cache) = cache(250);
        let mut objects = Vec::new();
        for number in 0..4_u8 {
            let bytes = Bytes::from(vec![number; 100]);
            let object = hash(&bytes);
            write(&cache.path(&object).expect("a hash"), &bytes).expect("ours");
            let path = cache.path(&object).expect("a hash");
            let at = std::time::SystemTime::now() - std::time::Duration::from_secs(1000)
                + std::time::Duration::from_secs(number.into());
            let file = std::fs::File::options().append(true).open(path).expect("open");
            file.set_modified(at).expect("set the time");
            objects.push(object);
        }
        assert!(cache.get(&objects[0]).await.is_some());
        assert_eq!(cache.evict().await, Evicted { objects: 2, bytes: 200 });
        assert!(cache.get(&objects[0]).await.is_some());
        assert!(cache.get(&objects[1]).await.is_none());
        assert!(cache.get(&objects[2]).await.is_none());
        assert!(cache.get(&objects[3]).await.is_some());
    }
}
