//! The document that makes an image exist: what is in it, what it fits, and its pieces.
//!
//! As with a snapshot's manifest: a format is closed, ends with a checksum of its own text, is read with
//! a bound, and whoever holds an [`Image`] may trust its shape. What a stranger could put into an archive
//! to write elsewhere cannot be said here at all: there are folders and files by names of
//! [`super::files`], sizes, and bytes. Owners and modes are given by whoever takes it in.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::files::{self, Fate};
use crate::database::Applied;
use crate::platform::Platform;
use crate::snapshot::manifest::{self, ManifestError};

/// The newest format that this program writes and reads.
pub const FORMAT: u32 = 1;

/// Larger documents are refused unread: 64 MB name half a million files.
pub const MAX_BYTES: u64 = manifest::MAX_BYTES;

/// The largest piece, stored or plain.
pub const MAX_PIECE_BYTES: u64 = 16 << 20;

/// Where images live in a store: documents, and beside each a folder of its pieces.
pub const PREFIX: &str = "images/";

/// A ready data directory that was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    pub format: u32,
    /// As a snapshot's.
    pub id: String,
    pub made_at: Timestamp,
    /// The id of the snapshot whose rows it holds.
    pub snapshot: String,
    /// Of everything that the build depended on, but for the server.
    pub build: String,
    /// The same without the migration scripts; `None` where nobody can go on from it.
    pub base: Option<String>,
    /// The migration history in it.
    pub applied: Vec<Applied>,
    pub schema_version: Option<String>,
    /// The database in it.
    pub database: String,
    /// All roles in it; none has a password.
    pub roles: Vec<String>,
    pub platform: Platform,
    /// `lc_collate` and `lc_ctype` of its databases, where they are more than `C`.
    pub locales: Vec<(String, String)>,
    pub folders: Vec<String>,
    pub files: Vec<File>,
    /// The bytes of all files, one after the other, cut into pieces.
    pub pieces: Vec<Piece>,
    /// Version of the program that made it.
    pub tool_version: String,
}

/// A file of the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub name: String,
    /// In bytes.
    pub size: u64,
}

/// A run of bytes: one zstd frame, one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// sha256 of the stored bytes, in hexadecimal.
    pub object: String,
    pub stored_size: u64,
    pub plain_size: u64,
}

impl Image {
    /// Reads a document and checks its shape.
    ///
    /// # Errors
    /// [`ManifestError`]; never a panic, whatever the bytes are.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        manifest::format_of(bytes, FORMAT)?;
        let image: Self = manifest::parsed(&manifest::unsealed(bytes)?)?;
        image.check()?;
        Ok(image)
    }

    /// The document to publish.
    ///
    /// # Errors
    /// [`ManifestError`] when what was put together could not be read again.
    pub fn write(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut bytes = serde_json::to_vec(self)
            .map_err(|error| ManifestError::Syntax { reason: error.to_string() })?;
        manifest::seal(&mut bytes);
        bytes.push(b'\n');
        manifest::check_size(&bytes)?;
        Ok(bytes)
    }

    /// Bytes of all files.
    pub fn plain_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Bytes that a download of all of it transfers.
    pub fn stored_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.stored_size).sum()
    }

    /// Where a piece is, relative to the store's root.
    pub fn object_of(&self, piece: &Piece) -> String {
        piece_name(&self.id, &piece.object)
    }

    /// Its name in the store.
    pub fn object(&self) -> String {
        format!("{PREFIX}{}_{}_{}.json", self.snapshot, self.platform.hash(), self.id)
    }

    fn check(&self) -> Result<(), ManifestError> {
        if !manifest::is_id(&self.id) || !manifest::is_id(&self.snapshot) {
            return Err(invalid(format!("the id `{}`", self.id.escape_default())));
        }
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for folder in &self.folders {
            let parent = folder.rsplit_once('/').map(|(parent, _)| parent);
            let has_place = parent.is_none_or(|parent| seen.contains(parent));
            if files::folder(folder) != Fate::Taken || !has_place || !seen.insert(folder) {
                return Err(invalid(format!("the folder `{}`", folder.escape_default())));
            }
        }
        for File { name, .. } in &self.files {
            let parent = name.rsplit_once('/').map(|(parent, _)| parent);
            let has_place = parent.is_none_or(|parent| seen.contains(parent));
            if files::file(name) != Fate::Taken || !has_place || !seen.insert(name) {
                return Err(invalid(format!("the file `{}`", name.escape_default())));
            }
        }
        for Piece { object, stored_size, plain_size } in &self.pieces {
            if !manifest::is_hash(object)
                || *plain_size == 0
                || *plain_size > MAX_PIECE_BYTES
                || *stored_size > MAX_PIECE_BYTES
            {
                return Err(invalid(format!("the piece `{}`", object.escape_default())));
            }
        }
        let files = self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size));
        let pieces =
            self.pieces.iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.plain_size));
        if files.is_none() || files != pieces {
            return Err(invalid("another number of bytes in its files and pieces".to_owned()));
        }
        Ok(())
    }
}

/// Where a piece of the image `id` is, relative to the store's root.
pub fn piece_name(id: &str, object: &str) -> String {
    format!("{PREFIX}{id}/{object}")
}

/// What a document's name says: the snapshot, the platform's hash, its id.
pub fn parse_name(object: &str) -> Option<(&str, &str, &str)> {
    let stem = object.strip_prefix(PREFIX)?.strip_suffix(".json")?;
    let mut parts = stem.split('_');
    let found = (parts.next()?, parts.next()?, parts.next()?);
    let is_ours = parts.next().is_none() && manifest::is_id(found.0) && manifest::is_id(found.2);
    is_ours.then_some(found)
}

/// The id of the image that a piece belongs to.
pub fn image_of(piece: &str) -> Option<&str> {
    let (id, object) = piece.strip_prefix(PREFIX)?.split_once('/')?;
    (manifest::is_id(id) && manifest::is_hash(object)).then_some(id)
}

fn invalid(reason: String) -> ManifestError {
    ManifestError::Invalid { reason }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{File, Image, ManifestError, Piece, Platform, parse_name};

    pub(in super::super) fn image() -> Image {
        Image {
            format: super::FORMAT,
            id: "6905a1f80123abcd".to_owned(),
            made_at: jiff::Timestamp::UNIX_EPOCH,
            snapshot: "6905a1f80123abce".to_owned(),
            build: "b".to_owned(),
            base: None,
            applied: Vec::new(),
            schema_version: None,
            database: "shop".to_owned(),
            roles: vec!["app".to_owned()],
            platform: Platform::default(),
            locales: Vec::new(),
            folders: ["base", "base/1", "global", "pg_wal"].map(str::to_owned).to_vec(),
            files: [("PG_VERSION", 3), ("base/1/1259", 8192), ("global/pg_control", 8192)]
                .map(|(name, size)| File { name: name.to_owned(), size })
                .to_vec(),
            pieces: vec![
                Piece { object: "ab".repeat(32), stored_size: 100, plain_size: 8192 },
                Piece { object: "cd".repeat(32), stored_size: 100, plain_size: 8195 },
            ],
            tool_version: "1".to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_its_name_says_what_it_is() {
        let image = image();
        let text = image.write().expect("is whole");
        assert_eq!(Image::read(&text), Ok(image.clone()));
        let object = image.object();
        let (snapshot, platform, id) = parse_name(&object).expect("our name");
        assert_eq!((snapshot, id), (image.snapshot.as_str(), image.id.as_str()));
        assert_eq!(platform, image.platform.hash());
        for at in (0..text.len() - 1).step_by(7) {
            let mut text = text.clone();
            text[at] ^= 1;
            assert!(Image::read(&text).is_err(), "{at}");
        }
    }

    /// FAULTS F27.
    #[test]
    fn f27_no_document_can_name_anything_but_files_of_a_data_directory() {
        type Change = fn(&mut Image);
        let changes: [(&str, Change); 15] = [
            ("out of the folder", |image| image.files[0].name = "../PG_VERSION".to_owned()),
            ("absolute", |image| image.files[0].name = "/etc/passwd".to_owned()),
            ("in between", |image| image.files[1].name = "base/1/../../1259".to_owned()),
            ("settings", |image| image.files[0].name = "postgresql.conf".to_owned()),
            ("twice", |image| image.files[1].name = "PG_VERSION".to_owned()),
            ("a file as a folder", |image| image.files[1].name = "PG_VERSION/1259".to_owned()),
            ("no folder", |image| image.files[1].name = "base/2/1259".to_owned()),
            ("folder out", |image| image.folders[0] = "../base".to_owned()),
            ("folder twice", |image| image.folders[1] = "base".to_owned()),
            ("folder before its parent", |image| image.folders.swap(0, 1)),
            ("folder of links", |image| image.folders[3] = "pg_tblspc/16384".to_owned()),
            ("larger than its pieces", |image| image.files[1].size += 1),
            ("beyond all numbers", |image| image.files[1].size = u64::MAX),
            ("a bomb", |image| image.pieces[0].plain_size = 1 << 40),
            ("no hash", |image| image.pieces[0].object = "../../x".to_owned()),
        ];
        for (what, change) in changes {
            let mut image = image();
            change(&mut image);
            let text = serde_json::to_vec(&image).map(|mut text| {
                super::manifest::seal(&mut text);
                text
            });
            let read = Image::read(&text.expect("serializes"));
            assert!(matches!(read, Err(ManifestError::Invalid { .. })), "{what}: {read:?}");
        }
        // Links, devices, modes and owners: there is no word for them.
        let text = String::from_utf8(image().write().expect("whole")).expect("text");
        for field in ["\"link\":\"/etc\",", "\"mode\":511,", "\"device\":1,", "\"uid\":0,"] {
            let text = text.replacen("\"name\":", &format!("{field}\"name\":"), 1);
            let mut unsealed = text[..text.rfind(",\"checksum\"").expect("sealed")].to_owned();
            unsealed.push('}');
            let mut document = unsealed.into_bytes();
            super::manifest::seal(&mut document);
            let read = Image::read(&document);
            assert!(matches!(read, Err(ManifestError::Syntax { .. })), "{field}: {read:?}");
        }
    }
}
