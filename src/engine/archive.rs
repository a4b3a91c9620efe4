//! A downloaded archive of PostgreSQL binaries: its hash demanded and checked, unpacked by allow-list.
//!
//! Regular files, folders, and symbolic links that stay inside; one top-level folder; no `..`, no
//! absolute path, no hard link, no device. Permissions are ours, not the archive's. A folder exists
//! under its final name only when everything is in it.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};

use super::docker::hex;
use super::{Error, ready};
use crate::context::Context;
use crate::report::Unit;

/// The largest archive known (all of PostGIS in it) has 60 MB; more is not what was asked for.
const DOWNLOAD_LIMIT: u64 = 1 << 30;
/// The same, unpacked.
const UNPACKED_LIMIT: u64 = 4 << 30;
/// A hash and a file name.
const HASH_LIMIT: usize = 4096;
/// Between two pieces of the body, and for the connection.
const STALL: std::time::Duration = std::time::Duration::from_secs(30);

/// Of the five seconds that choosing an engine may take; the registry is asked at the same time.
const LOOK: std::time::Duration = std::time::Duration::from_secs(2);

/// Downloads `url`, checks it against `<url>.sha256` and unpacks it as the folder `target`.
pub(super) async fn fetch(ctx: &Context, url: &str, target: &Utf8Path) -> Result<(), Error> {
    let parent = target.parent().unwrap_or(Utf8Path::new("/"));
    fs_err::create_dir_all(parent).map_err(Error::file("make", parent))?;
    let step = ctx.report.step("download PostgreSQL");
    let client = reqwest::Client::builder()
        .connect_timeout(STALL)
        .read_timeout(STALL)
        .build()
        .map_err(|error| download_error(url, &error))?;
    let wanted = ready::cancellable(ctx, expected_hash(&client, url)).await??;
    let mut file = tempfile::tempfile_in(parent).map_err(Error::file("write a file in", parent))?;
    let got = ready::cancellable(ctx, download(&client, url, &mut file, &step)).await??;
    if got != wanted {
        return Err(Error::Checksum {
            url: url.to_owned(),
            reason: format!("its sha256 is {got}, and `{url}.sha256` says {wanted}"),
        });
    }
    step.done("");
    let step = ctx.report.step("unpack PostgreSQL");
    let staging = tempfile::tempdir_in(parent).map_err(Error::file("make a folder in", parent))?;
    let path =
        Utf8PathBuf::from_path_buf(staging.path().to_owned()).map_err(|path| Error::Archive {
            name: url.to_owned(),
            reason: format!("`{}` is not UTF-8", path.display()),
        })?;
    let (name, cancel) = (url.to_owned(), ctx.cancel.clone());
    let unpacked = tokio::task::spawn_blocking(move || {
        use std::io::Seek;
        file.rewind().map_err(Error::file("read a file in", &path))?;
        unpack(file, &path, &name, || cancel.is_cancelled())
    });
    let top = unpacked
        .await
        .map_err(|error| Error::Archive { name: url.to_owned(), reason: error.to_string() })??;
    match std::fs::rename(&top, target) {
        Ok(()) => {}
        // Another run was first: what it put there was checked like ours.
        Err(_) if target.is_dir() => {}
        Err(error) => return Err(Error::File { action: "make", path: target.into(), error }),
    }
    step.done("");
    Ok(())
}

/// Whether the archive's hash can be had: a look that costs one small request.
pub(super) async fn is_there(ctx: &Context, url: &str) -> Result<(), Error> {
    let look = async {
        let client = reqwest::Client::builder()
            .timeout(LOOK)
            .build()
            .map_err(|error| download_error(url, &error))?;
        expected_hash(&client, url).await.map(drop)
    };
    ready::cancellable(ctx, look).await?
}

async fn expected_hash(client: &reqwest::Client, url: &str) -> Result<String, Error> {
    let hash_url = format!("{url}.sha256");
    let fail = |reason: String| Error::Checksum { url: url.to_owned(), reason };
    let answer =
        client.get(&hash_url).send().await.map_err(|error| download_error(&hash_url, &error))?;
    if !answer.status().is_success() {
        return Err(fail(format!(
            "no hash to check it by: `{hash_url}` answers {}",
            answer.status()
        )));
    }
    let text = answer.bytes().await.map_err(|error| download_error(&hash_url, &error))?;
    if text.len() > HASH_LIMIT {
        return Err(fail(format!("`{hash_url}` is no hash: it has {} bytes", text.len())));
    }
    parse_hash(&String::from_utf8_lossy(&text))
        .ok_or_else(|| fail(format!("`{hash_url}` holds no sha256")))
}

/// `<64 hex digits>`, or that and a file name, as `sha256sum` writes it.
fn parse_hash(text: &str) -> Option<String> {
    let word = text.split_whitespace().next()?;
    let hash = word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    hash.then(|| word.to_ascii_lowercase())
}

async fn download(
    client: &reqwest::Client,
    url: &str,
    file: &mut std::fs::File,
    step: &crate::report::Step,
) -> Result<String, Error> {
    let fail = |reason: String| Error::Download { url: url.to_owned(), reason };
    let answer = client.get(url).send().await.map_err(|error| download_error(url, &error))?;
    if !answer.status().is_success() {
        return Err(fail(format!("the server answers {}", answer.status())));
    }
    let total = answer.content_length();
    let mut hash = Sha256::new();
    let mut done = 0;
    let mut body = answer.bytes_stream();
    while let Some(block) = body.next().await {
        let block = block.map_err(|error| download_error(url, &error))?;
        done += block.len() as u64;
        if done > DOWNLOAD_LIMIT {
            return Err(fail(format!("it is larger than {DOWNLOAD_LIMIT} bytes")));
        }
        hash.update(&block);
        file.write_all(&block).map_err(|error| fail(error.to_string()))?;
        step.progress(done, total, Unit::Bytes);
    }
    Ok(hex(&hash.finalize()))
}

fn download_error(url: &str, error: &reqwest::Error) -> Error {
    Error::Download { url: url.to_owned(), reason: super::error::chain(error) }
}

/// Unpacks a `.tar.gz` below `staging` and returns its one top-level folder.
fn unpack(
    file: impl Read,
    staging: &Utf8Path,
    name: &str,
    cancelled: impl Fn() -> bool,
) -> Result<Utf8PathBuf, Error> {
    let fail = |reason: String| Error::Archive { name: name.to_owned(), reason };
    let io = |error: std::io::Error| fail(error.to_string());
    let limited = flate2::read::GzDecoder::new(file).take(UNPACKED_LIMIT);
    let mut archive = tar::Archive::new(limited);
    let mut top: Option<String> = None;
    // Made last: no file is ever written through a link of the archive.
    let mut links = Vec::new();
    for entry in archive.entries().map_err(io)? {
        if cancelled() {
            return Err(Error::Interrupted);
        }
        let mut entry = entry.map_err(io)?;
        let path = entry.path().map_err(io)?.into_owned();
        let path = Utf8PathBuf::from_path_buf(path)
            .map_err(|path| fail(format!("`{}` is not UTF-8", path.display())))?;
        let Some(path) = inside(&path).map_err(&fail)? else { continue };
        let first = path.components().next().map(|part| part.as_str().to_owned());
        match (&top, first) {
            (None, first) => top = first,
            (Some(known), Some(first)) if *known == first => {}
            (Some(known), _) => {
                return Err(fail(format!("`{path}` lies beside its folder `{known}`")));
            }
        }
        let target = staging.join(&path);
        match entry.header().entry_type() {
            tar::EntryType::Directory => fs_err::create_dir_all(&target).map_err(io)?,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                write_file(&mut entry, &target).map_err(io)?;
            }
            tar::EntryType::Symlink => {
                let link = entry.link_name().map_err(io)?.unwrap_or_default().into_owned();
                let link = Utf8PathBuf::from_path_buf(link)
                    .map_err(|link| fail(format!("`{}` is not UTF-8", link.display())))?;
                if !stays_inside(&path, &link) {
                    return Err(fail(format!("the link `{path}` points outside: `{link}`")));
                }
                links.push((link, target));
            }
            other => return Err(fail(format!("`{path}` is of the kind {other:?}"))),
        }
    }
    for (link, target) in links {
        if let Some(parent) = target.parent() {
            fs_err::create_dir_all(parent).map_err(io)?;
        }
        std::os::unix::fs::symlink(&link, &target).map_err(io)?;
    }
    let top = top.ok_or_else(|| fail("it is empty".to_owned()))?;
    let top = staging.join(top);
    if !top.join("bin/postgres").is_file() {
        return Err(fail("it holds no `bin/postgres`".to_owned()));
    }
    Ok(top)
}

fn write_file(entry: &mut impl EntryLike, target: &Utf8Path) -> std::io::Result<()> {
    if let Some(parent) = target.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let mode = if entry.mode()? & 0o111 == 0 { 0o644 } else { 0o755 };
    // A second entry of the same name is refused.
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(target)?;
    std::io::copy(entry, &mut file)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

trait EntryLike: Read {
    fn mode(&self) -> std::io::Result<u32>;
}

impl<R: Read> EntryLike for tar::Entry<'_, R> {
    fn mode(&self) -> std::io::Result<u32> {
        self.header().mode()
    }
}

/// The path without `.`; `None` when nothing is left.
fn inside(path: &Utf8Path) -> Result<Option<Utf8PathBuf>, String> {
    let mut clean = Utf8PathBuf::new();
    for part in path.components() {
        match part {
            Utf8Component::Normal(part) => clean.push(part),
            Utf8Component::CurDir => {}
            Utf8Component::ParentDir | Utf8Component::RootDir | Utf8Component::Prefix(_) => {
                return Err(format!("`{path}` points outside"));
            }
        }
    }
    Ok((!clean.as_str().is_empty()).then_some(clean))
}

/// Whether a link at `path` stays below the first folder of `path`.
fn stays_inside(path: &Utf8Path, link: &Utf8Path) -> bool {
    let mut depth = path.components().count() as i64 - 1;
    for part in link.components() {
        match part {
            Utf8Component::Normal(_) => depth += 1,
            Utf8Component::CurDir => {}
            Utf8Component::ParentDir => depth -= 1,
            Utf8Component::RootDir | Utf8Component::Prefix(_) => return false,
        }
        if depth < 1 {
            return false;
        }
    }
    depth >= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for &(kind, path, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o4755);
            // Written as bytes: the library's own setter refuses what an attacker would write.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
            if is_link {
                header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
            }
            let body = if is_link { "" } else { content };
            header.set_size(body.len() as u64);
            header.set_cksum();
            tar.append(&header, body.as_bytes()).expect("appends");
        }
        tar.into_inner().expect("ends").finish().expect("ends")
    }

    fn unpacked(entries: &[(tar::EntryType, &str, &str)]) -> Result<tempfile::TempDir, String> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let staging = Utf8Path::from_path(dir.path()).expect("UTF-8").join("staging");
        std::fs::create_dir(&staging).expect("makes");
        let bytes = archive(entries);
        match unpack(bytes.as_slice(), &staging, "archive", || false) {
            Ok(top) => {
                assert_eq!(top, staging.join("pg"));
                Ok(dir)
            }
            Err(error) => {
                let outside: Vec<_> = std::fs::read_dir(dir.path()).expect("reads").collect();
                assert_eq!(outside.len(), 1, "something was written outside");
                Err(error.to_string())
            }
        }
    }

    use tar::EntryType::{Block, Directory, Link, Regular, Symlink};

    #[test]
    fn files_folders_and_inner_links_are_unpacked_without_special_bits() {
        let dir = unpacked(&[
            (Directory, "pg/", ""),
            (Regular, "pg/bin/postgres", "program"),
            (Regular, "pg/lib/libpq.so.5.17", "library"),
            (Symlink, "pg/lib/libpq.so", "libpq.so.5.17"),
            (Symlink, "pg/bin/lib", "../lib"),
        ])
        .expect("unpacks");
        let top = dir.path().join("staging/pg");
        assert_eq!(std::fs::read(top.join("lib/libpq.so")).expect("reads"), b"library");
        let mode = std::fs::metadata(top.join("bin/postgres")).expect("is there").permissions();
        assert_eq!(mode.mode() & 0o7777, 0o755);
    }

    #[test]
    fn whatever_would_leave_the_folder_is_refused() {
        let good = (Regular, "pg/bin/postgres", "program");
        for bad in [
            (Regular, "pg/../../outside", "x"),
            (Regular, "/tmp/outside-of-it", "x"),
            (Regular, "other/file", "x"),
            (Symlink, "pg/link", "../../outside"),
            (Symlink, "pg/link", "/etc/passwd"),
            (Symlink, "pg/link", "lib/../../../x"),
            (Link, "pg/hard", "pg/bin/postgres"),
            (Block, "pg/device", ""),
        ] {
            let error = unpacked(&[good, bad]).expect_err(bad.1);
            assert!(error.starts_with("unpack `archive`"), "{error}");
        }
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let entries = [
            (Regular, "pg/bin/postgres", "program"),
            (Symlink, "pg/bin/sub", "../lib"),
            (Regular, "pg/bin/sub/file", "x"),
        ];
        assert!(unpacked(&entries).is_err());
    }

    #[test]
    fn a_name_that_comes_twice_and_an_archive_of_something_else_are_refused() {
        let file = (Regular, "pg/bin/postgres", "program");
        assert!(unpacked(&[file, file]).is_err());
        let error = unpacked(&[(Regular, "pg/readme", "x")]).expect_err("no server");
        assert!(error.contains("bin/postgres"), "{error}");
        assert!(unpacked(&[]).is_err());
    }

    #[test]
    fn hashes_are_taken_with_and_without_a_file_name() {
        let hash = "a".repeat(64);
        assert_eq!(parse_hash(&format!("{hash}\n")), Some(hash.clone()));
        assert_eq!(parse_hash(&format!("{}  x.tar.gz", hash.to_uppercase())), Some(hash));
        assert_eq!(parse_hash("<html>"), None);
        assert_eq!(parse_hash(""), None);
    }
}
