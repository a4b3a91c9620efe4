//! What this account may do in a store, found by doing it.
//!
//! Three small objects are written, read back and removed: one as a chunk, one beside the manifests,
//! one beside the marks of `prune`. Names and bytes are always the same, so an account that may not
//! remove them leaves three, however often it looks; no listing shows those that are no chunks. What is
//! read is what others have written, where there is any: it may lie there under another key.

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Error, Put, Store, s3};

/// Where the parts of a store are, relative to its root.
pub const SNAPSHOTS: &str = "snapshots/";
pub const CHUNKS: &str = "chunks/";
pub const MARKS: &str = "prune/";

/// How the names of probes end that are no chunks.
const NAME: &str = "/probe";
const BYTES: &[u8] = b"seedbed probe";

/// What may be allowed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    List,
    Read,
    Write,
    /// Tags on what is written.
    Tag,
    Remove,
}

/// One thing that was tried.
#[derive(Debug)]
pub struct Access {
    pub right: Right,
    /// [`SNAPSHOTS`], [`CHUNKS`] or [`MARKS`].
    pub below: &'static str,
    pub result: Result<(), Error>,
}

/// What [`Store::probe`] found.
#[derive(Debug, Default)]
pub struct Probe {
    /// In the order in which they were tried; only the listing where that failed.
    pub accesses: Vec<Access>,
    pub manifests: usize,
    /// Whether what was written reads back with the same bytes.
    pub reads_back: Option<bool>,
    /// Whether an object is kept when another is put under its name.
    pub keeps: Option<bool>,
    /// What was written and could not be removed.
    pub left: Vec<String>,
    /// How many seconds our clock is before the store's.
    pub ahead_seconds: Option<f64>,
}

impl Probe {
    /// Keeps what came of a try; whether it was allowed.
    fn tried(&mut self, right: Right, below: &'static str, result: Result<(), Error>) -> bool {
        let allowed = result.is_ok();
        self.accesses.push(Access { right, below, result });
        allowed
    }
}

/// Whether `name` is one of a probe's, which no listing shows.
pub(super) fn is_probe(name: &str) -> bool {
    name == format!("snapshots{NAME}") || name == format!("prune{NAME}")
}

impl Store {
    /// For `doctor`: tries every access that some journey needs.
    pub async fn probe(&self) -> Probe {
        let mut probe = Probe::default();
        let manifest = match self.list(SNAPSHOTS).await {
            Ok(mut entries) => {
                entries.retain(|entry| entry.name.ends_with(".json"));
                probe.manifests = entries.len();
                probe.tried(Right::List, SNAPSHOTS, Ok(()));
                entries.pop().map(|entry| entry.name)
            }
            Err(error) => {
                probe.tried(Right::List, SNAPSHOTS, Err(error));
                return probe;
            }
        };
        let chunk = self.probe_list(CHUNKS, &mut probe).await;
        let mark = self.probe_list(MARKS, &mut probe).await;

        let hash: String = Sha256::digest(BYTES).iter().map(|byte| format!("{byte:02x}")).collect();
        let ours = Ours {
            chunk: format!("{CHUNKS}{}/{hash}", &hash[..2]),
            manifest: format!("snapshots{NAME}"),
            mark: format!("prune{NAME}"),
        };
        let made = match self {
            Self::Dir(dir) => ours.all().flat_map(|(name, _)| dir.missing_folders(name)).collect(),
            Self::S3(_) => Vec::new(),
        };
        let written = self.probe_write(&ours, &mut probe).await;
        self.probe_read(&ours, &written, [chunk, manifest, mark], &mut probe).await;
        self.probe_remove(&ours, &written, &mut probe).await;
        for folder in made {
            // One that another run has begun to use is not empty, and stays.
            let _ = std::fs::remove_dir(folder);
        }
        probe
    }

    /// Some object of what lies there.
    async fn probe_list(&self, below: &'static str, probe: &mut Probe) -> Option<String> {
        match self.first(below).await {
            Ok(entry) => {
                probe.tried(Right::List, below, Ok(()));
                entry.map(|entry| entry.name)
            }
            Err(error) => {
                probe.tried(Right::List, below, Err(error));
                None
            }
        }
    }

    async fn probe_write(&self, ours: &Ours, probe: &mut Probe) -> Vec<&'static str> {
        let mut written = Vec::new();
        let bytes = || Bytes::from_static(BYTES);
        let before = Timestamp::now();
        if probe.tried(Right::Write, CHUNKS, self.put_again(&ours.chunk, bytes()).await) {
            let after = Timestamp::now();
            let listed = self.list(&ours.chunk).await.ok();
            let at = listed.and_then(|entries| entries.first()?.modified);
            probe.ahead_seconds = at.map(|at| ahead(before, after, at));
            written.push(CHUNKS);
        }
        let tags = [("purpose".to_owned(), "probe".to_owned())];
        let (result, tagged) = match self.put_tagged(&ours.manifest, bytes(), &tags).await {
            Ok((_, Some(denied @ Error::Denied { .. }))) => (Ok(()), Some(Err(denied))),
            // A server without tags at all: nothing reads them.
            Ok((_, _)) => (Ok(()), Some(Ok(()))),
            Err(error) => (only_read_denied(error), None),
        };
        if probe.tried(Right::Write, SNAPSHOTS, result) {
            written.push(SNAPSHOTS);
        }
        if let Some(tagged) = tagged {
            probe.tried(Right::Tag, SNAPSHOTS, tagged);
        }
        let put = self.put_new(&ours.mark, bytes(), &[]).await;
        if probe.tried(Right::Write, MARKS, put.map(drop).or_else(only_read_denied)) {
            written.push(MARKS);
        }
        written
    }

    /// `others`: an object of each part that was there before.
    async fn probe_read(
        &self,
        ours: &Ours,
        written: &[&str],
        others: [Option<String>; 3],
        probe: &mut Probe,
    ) {
        for ((name, below), other) in ours.all().zip(others) {
            let mut result = match &other {
                Some(other) => self.may_read(other).await,
                None => self.may_read(name).await,
            };
            if below == CHUNKS && result.is_ok() && written.contains(&CHUNKS) {
                match self.get(name, 1024).await {
                    Ok(bytes) => probe.reads_back = Some(bytes == BYTES),
                    // Another run has removed it.
                    Err(Error::Missing { .. }) => {}
                    Err(error) => result = Err(error),
                }
            }
            probe.tried(Right::Read, below, result);
        }
        if written.contains(&SNAPSHOTS) {
            let other = Bytes::from_static(b"another object");
            probe.keeps = match self.put_new(&ours.manifest, other, &[]).await {
                Ok(put) => Some(put == Put::Exists),
                // Only a refused put goes on to read what is there.
                Err(error) => only_read_denied(error).is_ok().then_some(true),
            };
        }
    }

    /// Whoever may read is told of an object that is not there; everybody else is denied (S3 asks for
    /// the right first).
    async fn may_read(&self, name: &str) -> Result<(), Error> {
        match self.get_range(name, 0, 1).await {
            Ok(_) | Err(Error::Missing { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Who may write marks may be one that removes, also what it may not write.
    async fn probe_remove(&self, ours: &Ours, written: &[&str], probe: &mut Probe) {
        for (name, below) in ours.all() {
            if !written.contains(&below) && !written.contains(&MARKS) {
                continue;
            }
            let removed = self.delete(name).await;
            if !probe.tried(Right::Remove, below, removed) && written.contains(&below) {
                probe.left.push(name.to_owned());
            }
        }
    }
}

/// Names of what a probe writes.
struct Ours {
    chunk: String,
    manifest: String,
    mark: String,
}

impl Ours {
    fn all(&self) -> impl Iterator<Item = (&str, &'static str)> {
        [(&*self.chunk, CHUNKS), (&*self.manifest, SNAPSHOTS), (&*self.mark, MARKS)].into_iter()
    }
}

/// A put that found its name taken and may not see by what was allowed.
fn only_read_denied(error: Error) -> Result<(), Error> {
    match error {
        Error::Denied { ref action, .. } if action == s3::READ => Ok(()),
        error => Err(error),
    }
}

/// How many seconds our clock is before one that said `written` while ours went from `before` to
/// `after`. Stores tell whole seconds.
fn ahead(before: Timestamp, after: Timestamp, written: Timestamp) -> f64 {
    if written > after {
        -written.duration_since(after).as_secs_f64()
    } else {
        (before.duration_since(written).as_secs_f64() - 1.0).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::ahead;

    #[test]
    fn a_clock_agrees_with_one_that_it_encloses() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let table = [(100, 102, 101, 0.0), (100, 102, 99, 0.0), (100, 102, 40, 59.0)];
        for (before, after, written, expected) in table {
            assert_eq!(ahead(at(before), at(after), at(written)), expected, "{written}");
        }
        assert_eq!(ahead(at(100), at(102), at(3702)), -3600.0);
    }
}
