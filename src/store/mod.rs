//! Where snapshots live: a folder or a bucket, seen as immutable objects with names.
//!
//! A closed set with one conformance suite (`tests/it/store.rs`) over every variant. A name is made
//! of `/`-separated parts of letters, digits, `.`, `_` and `-`; anything else is refused before it
//! reaches a disk or a server, so no manifest can point outside the store. Hashes are checked by the
//! callers, who know them. Every call may be dropped where it stands: what was half written is not
//! visible.

pub mod cache;
mod dir;
mod error;
mod probe;
mod s3;

use bytes::Bytes;
use jiff::Timestamp;

use crate::config::StoreConfig;
use crate::context::Context;

pub use error::Error;
pub use probe::{Access, CHUNKS, MARKS, Probe, Right, SNAPSHOTS};

/// A place for objects.
pub enum Store {
    Dir(dir::Dir),
    S3(Box<s3::S3>),
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: String,
    pub size: u64,
    /// When it was written, by the store's clock; `None` where the store does not tell.
    pub modified: Option<Timestamp>,
}

/// What a put found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Put {
    /// The object is there with our bytes because of this call (or one whose answer was lost).
    Created,
    /// The name was taken: by the same object for [`Store::put`], by another one for
    /// [`Store::put_new`].
    Exists,
}

impl Store {
    /// The configured store. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Setup`] when the configuration is not enough to reach a bucket.
    pub async fn open(ctx: &Context) -> Result<Self, Error> {
        match &ctx.config.store {
            StoreConfig::Dir(path) => Ok(Self::Dir(dir::Dir::new(path.clone()))),
            StoreConfig::S3(config) => {
                let stall = ctx.config.snapshot.stall_timeout;
                let s3 = s3::S3::open(config, stall, ctx.report.clone()).await?;
                Ok(Self::S3(Box::new(s3)))
            }
        }
    }

    /// A folder's path, or `s3://bucket/prefix`.
    pub fn describe(&self) -> String {
        match self {
            Self::Dir(dir) => dir.describe(),
            Self::S3(s3) => s3.describe(),
        }
    }

    /// Every object whose name begins with `prefix`, by name, each once. Objects whose names we would
    /// not make are left out. A store that is empty or not yet made lists nothing.
    ///
    /// # Errors
    /// [`Error`]; never part of a listing.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>, Error> {
        if !prefix.is_empty() {
            check_name(prefix.strip_suffix('/').unwrap_or(prefix))?;
        }
        let mut entries = match self {
            Self::Dir(dir) => dir.list(prefix).await?,
            Self::S3(s3) => s3.list(prefix).await?,
        };
        entries.retain(|entry| is_ours(&entry.name) && entry.name.starts_with(prefix));
        entries.sort();
        entries.dedup_by(|left, right| left.name == right.name);
        Ok(entries)
    }

    /// Some object whose name begins with `prefix`, if there is one; names are not looked at.
    ///
    /// # Errors
    /// As of [`Store::list`].
    async fn first(&self, prefix: &str) -> Result<Option<Entry>, Error> {
        match self {
            Self::Dir(dir) => dir.list(prefix).await.map(|mut entries| entries.pop()),
            Self::S3(s3) => s3.first(prefix).await,
        }
    }

    /// The whole object, if it is no larger than `limit`.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::TooLarge`], or why it cannot be read.
    pub async fn get(&self, name: &str, limit: u64) -> Result<Bytes, Error> {
        check_name(name)?;
        match self {
            Self::Dir(dir) => dir.get(name, limit).await,
            Self::S3(s3) => s3.get(name, limit).await,
        }
    }

    /// `length` bytes from `offset` on; fewer where the object ends before.
    ///
    /// # Errors
    /// [`Error::Missing`], or why it cannot be read.
    pub async fn get_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, Error> {
        check_name(name)?;
        if length == 0 {
            return Ok(Bytes::new());
        }
        match self {
            Self::Dir(dir) => dir.get_range(name, offset, length).await,
            Self::S3(s3) => s3.get_range(name, offset, length).await,
        }
    }

    /// The object's size; `None` when there is none.
    ///
    /// # Errors
    /// [`Error`] when that cannot be known.
    pub async fn size(&self, name: &str) -> Result<Option<u64>, Error> {
        check_name(name)?;
        match self {
            Self::Dir(dir) => dir.size(name).await,
            Self::S3(s3) => s3.size(name).await,
        }
    }

    /// Stores an object that is named by its own hash: one of the right size that is there already is
    /// the same.
    ///
    /// # Errors
    /// [`Error`]; the object is then not there, or complete.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<Put, Error> {
        check_name(name)?;
        match self {
            Self::Dir(dir) => dir.put(name, bytes).await,
            Self::S3(s3) => s3.put(name, bytes).await,
        }
    }

    /// Stores an object that is named by its own hash once more, whether it is there or not: its time
    /// is then now.
    ///
    /// # Errors
    /// [`Error`]; the object is then as it was, or complete.
    pub async fn put_again(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        check_name(name)?;
        match self {
            Self::Dir(dir) => dir.put_again(name, bytes).await,
            Self::S3(s3) => s3.put_again(name, bytes).await,
        }
    }

    /// Stores an object whose name must be free. `tags` become tags of the object where the store has
    /// such; they are an index for people and lifecycle rules, nothing reads them.
    ///
    /// # Errors
    /// [`Error`]; when the answer was lost, what is there was compared first.
    pub async fn put_new(
        &self,
        name: &str,
        bytes: Bytes,
        tags: &[(String, String)],
    ) -> Result<Put, Error> {
        check_name(name)?;
        match self {
            Self::Dir(dir) => dir.put_new(name, bytes).await,
            Self::S3(s3) => s3.put_new(name, bytes, tags).await,
        }
    }

    /// As [`Store::put_new`]; says as well why the object has no tags, where the store has such.
    async fn put_tagged(
        &self,
        name: &str,
        bytes: Bytes,
        tags: &[(String, String)],
    ) -> Result<(Put, Option<Error>), Error> {
        match self {
            Self::Dir(dir) => dir.put_new(name, bytes).await.map(|put| (put, None)),
            Self::S3(s3) => s3.put_tagged(name, bytes, tags).await,
        }
    }

    /// Removes the object; that there is none is fine.
    ///
    /// # Errors
    /// [`Error`] when it is still there.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        match self {
            Self::Dir(dir) => dir.delete(name).await,
            Self::S3(s3) => s3.delete(name).await,
        }
    }
}

/// Whether a listing shows it.
fn is_ours(name: &str) -> bool {
    check_name(name).is_ok() && !probe::is_probe(name)
}

/// Longer names are refused: S3 ends at 1024 bytes, and a prefix comes before ours.
const MAX_NAME: usize = 512;

/// Whether we may use `name` as an object's name.
///
/// # Errors
/// [`Error::Name`].
pub fn check_name(name: &str) -> Result<(), Error> {
    let good_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    if name.len() <= MAX_NAME && name.split('/').all(good_part) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(Error::Name { name: shown.escape_debug().to_string() })
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn only_names_of_our_own_pattern_pass() {
        for name in ["a", "chunks/ab/abcdef", "snapshots/20260101T000000.000000Z_v1.2_ab_cd.json"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        let long = "a".repeat(600);
        for name in [
            "",
            "/",
            "/etc/passwd",
            "a//b",
            "a/",
            "../x",
            "a/../b",
            "a/..",
            ".",
            ".hidden",
            "a/.tmp",
            "a\\b",
            "a b",
            "a\0b",
            "a\nb",
            "ä",
            "%2e%2e/x",
            "a:b",
            long.as_str(),
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
