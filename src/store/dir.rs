//! A folder as a store: on a disk, on a share, in the repository.
//!
//! A file appears under its name only when all its bytes are on the disk. Temporary files begin with
//! a dot, which no object's name may, so a run that died leaves nothing visible. Links are not
//! followed inside the folder.

use std::io::{Read, Seek, SeekFrom, Write};

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};

use super::{Entry, Error, Put};

pub struct Dir {
    root: Utf8PathBuf,
}

impl Dir {
    pub(super) fn new(root: Utf8PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn describe(&self) -> String {
        self.root.to_string()
    }

    /// The folders that a put of `name` would make, the innermost first.
    pub(super) fn missing_folders(&self, name: &str) -> Vec<Utf8PathBuf> {
        let path = self.root.join(name);
        let missing = path.ancestors().skip(1).take_while(|folder| !folder.exists());
        missing.map(Utf8Path::to_owned).collect()
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Entry>, Error> {
        let root = self.root.clone();
        let folder = prefix.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
        blocking(move || {
            let mut entries = Vec::new();
            let mut folders = vec![folder];
            while let Some(folder) = folders.pop() {
                list_folder(&root, &folder, &mut entries, &mut folders)?;
            }
            Ok(entries)
        })
        .await
    }

    pub(super) async fn get(&self, name: &str, limit: u64) -> Result<Bytes, Error> {
        let (path, name, store) = (self.root.join(name), name.to_owned(), self.describe());
        blocking(move || {
            let (mut file, size) = open(&path, &name, &store)?;
            if size > limit {
                return Err(Error::TooLarge { name, bytes: size, limit });
            }
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
            let read = (&mut file).take(size).read_to_end(&mut bytes);
            read.map_err(|error| Error::File { action: "read", path, error })?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    pub(super) async fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Error> {
        let (path, name, store) = (self.root.join(name), name.to_owned(), self.describe());
        blocking(move || {
            let (mut file, _) = open(&path, &name, &store)?;
            let mut bytes = Vec::new();
            let read = file
                .seek(SeekFrom::Start(offset))
                .and_then(|_| (&mut file).take(length).read_to_end(&mut bytes));
            read.map_err(|error| Error::File { action: "read", path, error })?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    pub(super) async fn size(&self, name: &str) -> Result<Option<u64>, Error> {
        let path = self.root.join(name);
        blocking(move || file_size(&path)).await
    }

    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> Result<Put, Error> {
        let path = self.root.join(name);
        blocking(move || {
            if file_size(&path)? == Some(bytes.len() as u64) {
                return Ok(Put::Exists);
            }
            replace(&path, &bytes)?;
            Ok(Put::Created)
        })
        .await
    }

    pub(super) async fn put_again(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        let path = self.root.join(name);
        blocking(move || replace(&path, &bytes)).await
    }

    pub(super) async fn put_new(&self, name: &str, bytes: Bytes) -> Result<Put, Error> {
        let path = self.root.join(name);
        blocking(move || {
            let temporary = write_temporary(&path, &bytes)?;
            match temporary.persist_noclobber(&path) {
                Ok(_) => {
                    sync_folder(&path);
                    Ok(Put::Created)
                }
                Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
                    let there = std::fs::read(&path).map_err(file_error("read", &path))?;
                    Ok(if there == bytes { Put::Created } else { Put::Exists })
                }
                Err(error) => Err(file_error("write", &path)(error.error)),
            }
        })
        .await
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), Error> {
        let path = self.root.join(name);
        blocking(move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(file_error("remove", &path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn file_error(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::File { action, path, error }
}

fn list_folder(
    root: &Utf8Path,
    folder: &str,
    entries: &mut Vec<Entry>,
    folders: &mut Vec<String>,
) -> Result<(), Error> {
    let path = root.join(folder);
    let read = match std::fs::read_dir(&path) {
        Ok(read) => read,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file_error("list", &path)(error)),
    };
    for item in read {
        let item = item.map_err(file_error("list", &path))?;
        let Ok(file_name) = item.file_name().into_string() else { continue };
        if file_name.starts_with('.') {
            continue;
        }
        let name = if folder.is_empty() { file_name } else { format!("{folder}/{file_name}") };
        let kind = item.file_type().map_err(file_error("list", &path))?;
        if kind.is_dir() {
            folders.push(name);
        } else if kind.is_file() {
            let Some(metadata) = still_there(item.metadata(), &path)? else { continue };
            let modified = metadata.modified().ok().and_then(|at| at.try_into().ok());
            entries.push(Entry { name, size: metadata.len(), modified });
        }
    }
    Ok(())
}

/// `None` for what somebody else has removed between listing and looking. Any other error is one: without
/// the file the listing would be a part that looks like the whole.
fn still_there<T>(looked: std::io::Result<T>, folder: &Utf8Path) -> Result<Option<T>, Error> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error("list", folder)(error)),
    }
}

fn open(path: &Utf8Path, name: &str, store: &str) -> Result<(std::fs::File, u64), Error> {
    let missing = || Error::Missing { store: store.to_owned(), name: name.to_owned() };
    // Asked before opening: a pipe would block, a link could lead out of the folder.
    if file_size(path)?.is_none() {
        return Err(missing());
    }
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(file_error("open", path)(error)),
    };
    let size = file.metadata().map_err(file_error("open", path))?.len();
    Ok((file, size))
}

fn file_size(path: &Utf8Path) -> Result<Option<u64>, Error> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => Ok(None),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(file_error("look at", path)(error)),
    }
}

/// Whoever reads meanwhile sees the old file or the new one.
fn replace(path: &Utf8Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = write_temporary(path, bytes)?;
    temporary.persist(path).map_err(|error| file_error("write", path)(error.error))?;
    sync_folder(path);
    Ok(())
}

/// Writes `bytes` beside `path`, on the disk when this returns.
fn write_temporary(path: &Utf8Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile, Error> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(file_error("make the folder", folder))?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".new-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file: the umask decides; a store in a repository or on a share is read by others.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder).map_err(file_error("write into", folder))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(file_error("write", path))?;
    Ok(file)
}

/// Puts the new name on the disk. Some file systems cannot; the file itself is safe without.
fn sync_folder(path: &Utf8Path) {
    let Some(folder) = path.parent() else { return };
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::still_there;

    #[test]
    fn a_listing_lacks_what_is_gone_and_nothing_else() {
        let looked = |kind| still_there::<()>(Err(Error::from(kind)), "store/chunks".into());
        assert!(matches!(looked(ErrorKind::NotFound), Ok(None)));
        for kind in [ErrorKind::PermissionDenied, ErrorKind::Other, ErrorKind::TimedOut] {
            let error = looked(kind).expect_err("no listing");
            assert!(error.to_string().starts_with("list `store/chunks`: "), "{error}");
        }
        assert!(matches!(still_there(Ok(1), "store".into()), Ok(Some(1))));
    }
}
