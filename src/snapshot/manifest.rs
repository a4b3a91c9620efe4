//! The manifest: the one document that makes a snapshot exist, and all that is known about it.
//!
//! A format is closed: a field this program does not know is refused, not skipped, because a manifest
//! may come from a stranger and a field may change what the others mean. What is added later comes
//! with a default, and with a new format number unless it is written only where it says something; old
//! formats are read forever. Format 2 ends with a checksum
//! of its own text, so that a bit that flips anywhere in it is seen. Reading is bounded and checks
//! every name and sum, so that whoever holds a [`Manifest`] may trust its shape (not its contents:
//! those are checked against the hashes, chunk by chunk).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::snapshot::chunk::sha256;
use crate::snapshot::history;

/// The newest format that this program writes and reads.
pub const FORMAT: u32 = 2;

/// From this format on a manifest ends with its checksum.
const CHECKSUM_FORMAT: u64 = 2;

/// Larger documents are refused unread: 64 MB hold some 300,000 chunks, more than 4 TB of rows.
pub const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The largest chunk, stored or plain. A row of PostgreSQL ends at 1 GB and a chunk holds whole rows.
pub const MAX_CHUNK_BYTES: u64 = 1280 * 1024 * 1024;

const SEAL: &str = ",\"checksum\":\"";

/// Where manifests live, relative to the store's root.
pub const PREFIX: &str = "snapshots/";

/// A published, immutable copy of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// From [`new_id`]: 16 lower-case hexadecimal digits, seconds then chance; sorts by time.
    pub id: String,
    /// The source server's clock when its snapshot was exported.
    #[serde(with = "micros")]
    pub taken_at: Timestamp,
    /// The source database's name.
    pub database: String,
    pub server: Server,
    pub extensions: Vec<Extension>,
    /// `schema.table` of the migration history; `None` when the source had none.
    #[serde(default)]
    pub history_table: Option<QualifiedName>,
    /// Every row of the migration history, by rank.
    pub history: Vec<Applied>,
    /// sha256 of what decides whether two schemas are the same.
    pub schema_fingerprint: String,
    /// The `pg_dump -Fc --schema-only` archive, in order; their `rows` are 0.
    pub schema_archive: Vec<Chunk>,
    pub tables: Vec<Table>,
    pub sequences: Vec<Sequence>,
    pub large_objects: Vec<LargeObject>,
    /// Populated materialised views, in the order in which they can be refreshed.
    pub materialized_views: Vec<QualifiedName>,
    /// Roles that row-level policies name.
    pub policy_roles: Vec<String>,
    /// Roles that own something or hold a privilege, for `restore.owners = "keep"`.
    pub owners: Vec<String>,
    /// What `alter database … set` and `alter role … in database … set` had set.
    pub database_settings: Vec<Setting>,
    /// sha256 of the policy that the rows were masked by.
    #[serde(default)]
    pub masking_policy: Option<String>,
    /// Version of the program that wrote it.
    pub tool_version: String,
    pub duration_ms: u64,
    /// Whether it was restored and compared before it was published.
    pub proved: bool,
}

/// The source server and how its database was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `15.18 (Debian 15.18-1.pgdg120+1)`
    pub version: String,
    /// `150018`
    pub version_num: i32,
    /// Of `pg_control_system()`, in decimal; `None` where the role may not ask.
    pub system_identifier: Option<String>,
    /// `UTF8`
    pub encoding: String,
    /// `libc`, `icu` or `builtin`.
    pub locale_provider: String,
    pub collate: String,
    pub ctype: String,
    /// The ICU or built-in locale.
    #[serde(default)]
    pub locale: Option<String>,
    #[serde(default)]
    pub icu_rules: Option<String>,
    #[serde(default)]
    pub collation_version: Option<String>,
}

impl Server {
    /// 15 for 150018.
    pub fn major(&self) -> u32 {
        u32::try_from(self.version_num / 10_000).unwrap_or_default()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    pub name: String,
    pub version: String,
    pub schema: String,
}

/// One row of the migration history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    pub rank: i32,
    /// `None` for repeatables and the SCHEMA marker.
    pub version: Option<String>,
    pub description: String,
    /// The column `type`: `SQL`, `BASELINE`, `DELETE` …
    pub kind: String,
    pub script: String,
    pub checksum: Option<i32>,
    /// As the server shows it; the column has no time zone.
    pub installed_on: String,
    pub success: bool,
}

/// A table, view or other relation by name; no part is quoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualifiedName {
    pub schema: String,
    pub name: String,
}

impl std::fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// The rows of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub schema: String,
    pub name: String,
    /// Those that COPY names, in its order: neither generated nor dropped ones.
    pub columns: Vec<String>,
    /// The sum of the chunks' rows.
    pub rows: u64,
    /// The sum of the chunks' plain sizes.
    pub bytes: u64,
    /// Its rows can only be loaded through this partitioned ancestor (hash partitions by enum, ranges of text).
    #[serde(default)]
    pub through_root: Option<QualifiedName>,
    /// A configuration table of an extension: only rows that the user changed are here.
    #[serde(default)]
    pub extension: Option<ExtensionTable>,
    pub chunks: Vec<Chunk>,
}

impl Table {
    pub fn qualified_name(&self) -> QualifiedName {
        QualifiedName { schema: self.schema.clone(), name: self.name.clone() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtensionTable {
    pub name: String,
    /// The WHERE clause of `pg_extension.extcondition`, possibly empty.
    pub condition: String,
}

/// A run of bytes in the store: one zstd frame at `offset` of the object `chunks/<aa>/<object>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// sha256 of the whole stored object, in hexadecimal.
    pub object: String,
    /// Where the frame begins; not 0 where one object holds chunks of several tables.
    pub offset: u64,
    pub stored_size: u64,
    pub plain_size: u64,
    /// sha256 of the plain bytes, in hexadecimal.
    pub plain_hash: String,
    /// Lines of COPY text; 0 in archives and large objects.
    pub rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sequence {
    pub schema: String,
    pub name: String,
    pub last_value: i64,
    pub is_called: bool,
    /// The extension that it belongs to and that asked for its position to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<String>,
}

impl Sequence {
    pub fn qualified_name(&self) -> QualifiedName {
        QualifiedName { schema: self.schema.clone(), name: self.name.clone() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LargeObject {
    pub oid: u32,
    #[serde(default)]
    pub owner: Option<String>,
    /// `aclitem`s as text.
    #[serde(default)]
    pub acl: Vec<String>,
    /// Nobody has any privilege, where an empty `acl` alone means what PostgreSQL gives by default.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
    #[serde(default)]
    pub comment: Option<String>,
    pub bytes: u64,
    pub chunks: Vec<Chunk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// `None`: for the whole database.
    pub role: Option<String>,
    pub name: String,
    pub value: String,
}

/// Why a document is not a manifest that we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("it has format {format}, this seedbed reads up to {known}")]
    Format { format: u64, known: u32 },
    #[error("it has {bytes} bytes, more than the {MAX_BYTES} that are read")]
    TooLarge { bytes: u64 },
    #[error("it is not a manifest: {reason}")]
    Syntax { reason: String },
    #[error("it says what cannot be: {reason}")]
    Invalid { reason: String },
    #[error("its checksum is not that of its text: it was changed after it was written")]
    Checksum,
}

impl ManifestError {
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Format { .. } => vec!["install a newer seedbed, then try again".to_owned()],
            Self::TooLarge { .. } | Self::Syntax { .. } | Self::Invalid { .. } | Self::Checksum => {
                vec!["see what each snapshot is worth: `seedbed snapshot why`".to_owned()]
            }
        }
    }
}

impl Manifest {
    /// Reads a manifest and checks its shape: names, hashes, sizes and sums.
    ///
    /// # Errors
    /// [`ManifestError`]; never a panic, whatever the bytes are.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = match format_of(bytes, FORMAT)? {
            CHECKSUM_FORMAT.. => parsed(&unsealed(bytes)?)?,
            _ => parsed(bytes)?,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// The document to publish.
    ///
    /// # Errors
    /// [`ManifestError`] when what was put together could not be read again.
    pub fn write(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut bytes = serde_json::to_vec(self)
            .map_err(|error| ManifestError::Syntax { reason: error.to_string() })?;
        if u64::from(self.format) >= CHECKSUM_FORMAT {
            seal(&mut bytes);
        }
        bytes.push(b'\n');
        check_size(&bytes)?;
        Ok(bytes)
    }

    /// The schema version it was taken at: the highest that is in force, a baseline's included.
    pub fn schema_version(&self) -> Option<String> {
        history::current_version(&self.history)
    }

    /// Every chunk: schema archive, tables, large objects.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.schema_archive
            .iter()
            .chain(self.tables.iter().flat_map(|table| &table.chunks))
            .chain(self.large_objects.iter().flat_map(|object| &object.chunks))
    }

    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// Plain bytes of all tables and large objects.
    pub fn plain_bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes).sum::<u64>()
            + self.large_objects.iter().map(|object| object.bytes).sum::<u64>()
    }

    /// Bytes that a download of all of it transfers.
    pub fn stored_bytes(&self) -> u64 {
        self.chunks().map(|chunk| chunk.stored_size).sum()
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.format == 0 || self.format > FORMAT {
            return Err(ManifestError::Format { format: self.format.into(), known: FORMAT });
        }
        if !is_id(&self.id) {
            return Err(invalid(format!("the id `{}`", self.id.escape_default())));
        }
        if self.server.version_num < 90_000 {
            return Err(invalid(format!("server version {}", self.server.version_num)));
        }
        for chunk in self.chunks() {
            chunk.check()?;
        }
        let archive = checked_sum(self.schema_archive.iter().map(|chunk| chunk.plain_size));
        if archive.is_none_or(|bytes| bytes > MAX_CHUNK_BYTES) {
            return Err(invalid("the size of the schema archive".to_owned()));
        }
        for table in &self.tables {
            let name = table.qualified_name();
            check_sum(&name, "rows", table.rows, table.chunks.iter().map(|chunk| chunk.rows))?;
            let sizes = table.chunks.iter().map(|chunk| chunk.plain_size);
            check_sum(&name, "bytes", table.bytes, sizes)?;
        }
        for object in &self.large_objects {
            let sizes = object.chunks.iter().map(|chunk| chunk.plain_size);
            check_sum(&format!("large object {}", object.oid), "bytes", object.bytes, sizes)?;
        }
        checked_sum(self.chunks().map(|chunk| chunk.plain_size))
            .and_then(|_| checked_sum(self.chunks().map(|chunk| chunk.stored_size)))
            .and_then(|_| checked_sum(self.tables.iter().map(|table| table.rows)))
            .ok_or_else(|| invalid("sizes beyond all numbers".to_owned()))?;
        Ok(())
    }
}

impl Chunk {
    /// Where its bytes are, relative to the store's root.
    pub fn object_name(&self) -> String {
        chunk_name(&self.object)
    }

    fn check(&self) -> Result<(), ManifestError> {
        if !is_hash(&self.object) || !is_hash(&self.plain_hash) {
            let hash = if is_hash(&self.object) { &self.plain_hash } else { &self.object };
            return Err(invalid(format!("the hash `{}`", hash.escape_default())));
        }
        let end = self.offset.checked_add(self.stored_size);
        if self.stored_size > MAX_CHUNK_BYTES
            || self.plain_size > MAX_CHUNK_BYTES
            || end.is_none_or(|end| end > MAX_CHUNK_BYTES)
        {
            return Err(invalid(format!("the size of chunk `{}`", self.object)));
        }
        Ok(())
    }
}

/// The format of a document, which is neither too long to be read nor newer than `known`.
pub(crate) fn format_of(bytes: &[u8], known: u32) -> Result<u64, ManifestError> {
    #[derive(Deserialize)]
    struct Probe {
        format: u64,
    }
    check_size(bytes)?;
    let Probe { format } = parsed(bytes)?;
    match (1..=u64::from(known)).contains(&format) {
        true => Ok(format),
        false => Err(ManifestError::Format { format, known }),
    }
}

/// Refuses a document that is too long to be read.
pub(crate) fn check_size(bytes: &[u8]) -> Result<(), ManifestError> {
    match bytes.len() as u64 {
        bytes if bytes > MAX_BYTES => Err(ManifestError::TooLarge { bytes }),
        _ => Ok(()),
    }
}

/// The text of a document as what it means.
pub(crate) fn parsed<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(text)
        .map_err(|error| ManifestError::Syntax { reason: error.to_string() })
}

/// Ends a document with the sha256 of what stands before it, as its last field.
pub(crate) fn seal(document: &mut Vec<u8>) {
    let end = document.pop();
    debug_assert_eq!(end, Some(b'}'), "a struct is an object");
    let checksum = sha256(document);
    document.extend_from_slice(SEAL.as_bytes());
    document.extend_from_slice(checksum.as_bytes());
    document.extend_from_slice(b"\"}");
}

/// The document without its checksum, which was found right.
pub(crate) fn unsealed(bytes: &[u8]) -> Result<Vec<u8>, ManifestError> {
    const HASH: usize = 64;
    let document = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let sealed = document.strip_suffix(b"\"}").ok_or(ManifestError::Checksum)?;
    let at = sealed.len().checked_sub(HASH).ok_or(ManifestError::Checksum)?;
    let (text, checksum) = sealed.split_at(at);
    let text = text.strip_suffix(SEAL.as_bytes()).ok_or(ManifestError::Checksum)?;
    if sha256(text).as_bytes() != checksum {
        return Err(ManifestError::Checksum);
    }
    let mut document = text.to_vec();
    document.push(b'}');
    Ok(document)
}

/// Where the stored object with this sha256 is, relative to the store's root.
pub fn chunk_name(object: &str) -> String {
    let folder = object.get(..2).unwrap_or("00");
    format!("chunks/{folder}/{object}")
}

/// A new id: the source's time to the second, then 32 bits of chance.
pub fn new_id(taken_at: Timestamp) -> String {
    let seconds = u32::try_from(taken_at.as_second()).unwrap_or_default();
    format!("{seconds:08x}{:08x}", rand::random::<u32>())
}

/// Whether `text` looks like something [`new_id`] made.
pub fn is_id(text: &str) -> bool {
    text.len() == 16 && is_lower_hex(text)
}

/// Whether `text` is a sha256 in lower-case hexadecimal.
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && is_lower_hex(text)
}

pub(super) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn invalid(reason: String) -> ManifestError {
    ManifestError::Invalid { reason }
}

fn checked_sum(mut numbers: impl Iterator<Item = u64>) -> Option<u64> {
    numbers.try_fold(0_u64, u64::checked_add)
}

fn check_sum(
    name: &dyn std::fmt::Display,
    what: &str,
    said: u64,
    parts: impl Iterator<Item = u64>,
) -> Result<(), ManifestError> {
    if checked_sum(parts) == Some(said) {
        return Ok(());
    }
    Err(invalid(format!("`{name}` has {said} {what}, its chunks have another number")))
}

/// Microseconds, as PostgreSQL counts: what the object's name and the document say is the same.
mod micros {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
