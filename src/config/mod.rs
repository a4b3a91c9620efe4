//! The effective configuration of one environment, typed.
//!
//! `load` finds the project, reads `conf/seedbed.toml`, `conf/<env>.toml`, Flyway's own files and the
//! variables, and puts flags on top; later wins. Every value remembers where it came from, for
//! `seedbed config`. Nothing else in the program reads a configuration file.
//!
//! `keys` is the table of all keys, `spelling` finds one as written; `properties`, `layer`, `url` and
//! `libpq` read one thing each; `settings` lays layers over each other; `build` makes the types below.

mod branch;
mod build;
mod database;
mod error;
pub mod keys;
mod layer;
mod libpq;
mod load;
pub(crate) mod properties;
mod settings;
mod spelling;
mod url;

#[cfg(test)]
mod tests;

pub use branch::{Branch, DEFAULT as DEFAULT_BRANCH, branch, slug};
pub use error::Error;
pub use load::{Flags, Override, Protected, load, protected_elsewhere, protected_environment};
pub(crate) use settings::read_duration;

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use secrecy::SecretString;

use crate::pg::{ClientCertificate, SslMode, Target};

/// Everything a journey needs to know. Paths are absolute.
#[derive(Debug, Clone)]
pub struct Config {
    /// The project's root folder.
    pub project: Utf8PathBuf,
    /// Name of the environment (`--env`).
    pub environment: String,
    /// Whose environment it is (`--branch`); `None`: the default one.
    pub branch: Option<Branch>,
    /// Only ever read (and deployed to, after a question). DESIGN §11.
    pub protected: bool,
    /// The server's databases may be replaced although it is not loopback.
    pub disposable: bool,
    pub database: DatabaseConfig,
    pub engine: EngineConfig,
    pub images: ImagesConfig,
    pub store: StoreConfig,
    pub migrate: MigrateConfig,
    pub users: UsersConfig,
    pub seed: SeedConfig,
    pub snapshot: SnapshotConfig,
    pub retention: RetentionConfig,
    pub restore: RestoreConfig,
    /// Every key with its effective value (secrets masked) and where it came from, in key order.
    pub origins: Vec<Origin>,
    /// What the user wants to know about the files: old spellings, keys without effect.
    pub notes: Vec<String>,
}

/// One effective value, for `seedbed config`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Origin {
    pub key: String,
    /// Masked where it is a secret.
    pub value: String,
    /// `default`, a file with its line, a variable or a flag.
    pub source: String,
}

/// The environment's database, and who migrates it.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// Whether any URL or host was configured; else the engine's own server is meant.
    pub named: bool,
    pub host: String,
    /// `None`: no port was named.
    pub port: Option<u16>,
    /// Final name of the database.
    pub name: String,
    /// Owns the database and runs the migrations (`flyway.user`).
    pub user: String,
    pub password: Option<SecretString>,
    pub ssl_mode: SslMode,
    pub ssl_root_cert: Option<Utf8PathBuf>,
    /// What to log in with beside or instead of the password.
    pub ssl_client: Option<ClientCertificate>,
    /// `currentSchema` and other session settings from the URL.
    pub settings: Vec<(String, String)>,
}

impl DatabaseConfig {
    /// The database as configured: not where a local engine serves it.
    pub fn target(&self) -> Target {
        Target {
            host: self.host.clone(),
            port: self.port.unwrap_or(5432),
            database: self.name.clone(),
            user: self.user.clone(),
            password: self.password.clone(),
            ssl_mode: self.ssl_mode,
            ssl_root_cert: self.ssl_root_cert.clone(),
            ssl_client: self.ssl_client.clone(),
            settings: self.settings.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// docker when a daemon answers and the image is there or can be pulled, else native, else
    /// embedded.
    Auto,
    Docker,
    Native,
    Embedded,
    External,
}

#[derive(Debug, Clone)]
pub struct EngineConfig {
    pub kind: EngineKind,
    /// Container image, default `postgres:17`.
    pub image: String,
    /// Published port: `None` finds a free one and remembers it; a named one that is taken is an
    /// error.
    pub port: Option<u16>,
    /// Folder with `initdb` and the other binaries, for `native`.
    pub bin_dir: Option<Utf8PathBuf>,
    /// URL template of the embedded archive: `{version}`, `{target}`.
    pub archive_url: String,
    /// Full version of the embedded binaries.
    pub archive_version: String,
    /// Survive a crash: leave fsync and its friends on.
    pub durable: bool,
    /// The superuser's password; generated and kept in `.seedbed/` when absent.
    pub superuser_password: Option<SecretString>,
    /// For `external`: who creates databases and roles; defaults to the database's user.
    pub superuser: Option<String>,
    /// Extra server settings for servers we start.
    pub settings: BTreeMap<String, String>,
}

/// How ready databases are frozen.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// Whole data directories where clones can share blocks; else template databases only.
    pub enabled: bool,
    /// Whether ready data directories are taken from the store.
    pub published: Published,
    /// Bytes from which on a database is frozen as an image.
    pub min_size: u64,
    /// Bytes of all images together.
    pub max_size: u64,
    /// Seconds after which an image that nobody used goes.
    pub max_age_seconds: u64,
    /// Docker's volume that holds what shares blocks.
    pub pool: String,
    /// Bytes of its file system, at most.
    pub pool_size: u64,
}

/// When a published image is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// Where it is expected to be faster than rows.
    Auto,
    /// Wherever it fits.
    Always,
    Never,
}

/// Where snapshots live.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// A folder; default `seed/snapshots` of the project.
    Dir(Utf8PathBuf),
    S3(S3Config),
}

#[derive(Debug, Clone)]
pub struct S3Config {
    pub bucket: String,
    /// Without leading or trailing slash; may be empty.
    pub prefix: String,
    pub region: Option<String>,
    /// Another server than AWS.
    pub endpoint: Option<String>,
    pub path_style: bool,
    pub profile: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<SecretString>,
    pub session_token: Option<SecretString>,
    /// `auto` sends the sha256 of a body in a header, never in a trailer; `required_only` sends
    /// none.
    pub checksums: Checksums,
    /// Server-side encryption: `AES256`, `aws:kms`.
    pub sse: Option<String>,
    pub kms_key_id: Option<String>,
    /// `None`: as the bucket says.
    pub kms_bucket_key: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    Auto,
    RequiredOnly,
}

/// Flyway's settings; names are Flyway's in snake case.
#[derive(Clone)]
pub struct MigrateConfig {
    /// Folders of scripts, absolute, `filesystem:` removed; may hold wildcards.
    pub locations: Vec<Utf8PathBuf>,
    pub table: String,
    pub default_schema: Option<String>,
    pub schemas: Vec<String>,
    pub create_schemas: bool,
    pub sql_migration_prefix: String,
    pub repeatable_sql_migration_prefix: String,
    pub baseline_migration_prefix: String,
    pub undo_sql_migration_prefix: String,
    pub sql_migration_separator: String,
    pub sql_migration_suffixes: Vec<String>,
    pub placeholders: BTreeMap<String, String>,
    pub placeholder_prefix: String,
    pub placeholder_suffix: String,
    pub placeholder_separator: String,
    pub placeholder_replacement: bool,
    pub encoding: String,
    pub detect_encoding: bool,
    pub validate_on_migrate: bool,
    pub validate_migration_naming: bool,
    pub out_of_order: bool,
    pub group: bool,
    pub mixed: bool,
    pub execute_in_transaction: bool,
    /// `flyway.postgresql.transactional.lock`.
    pub transactional_lock: bool,
    pub baseline_on_migrate: bool,
    pub baseline_version: String,
    pub baseline_description: String,
    pub ignore_migration_patterns: Vec<String>,
    pub target: Option<String>,
    /// Versions and descriptions; empty: everything.
    pub cherry_pick: Vec<String>,
    pub skip_executing_migrations: bool,
    /// Where `migrate` writes its SQL instead of running it.
    pub dry_run_output: Option<Utf8PathBuf>,
    /// Folders that hold callbacks alone.
    pub callback_locations: Vec<Utf8PathBuf>,
    /// Folders of undo scripts; empty: the locations.
    pub undo_locations: Vec<Utf8PathBuf>,
    /// How long a script's transaction waits for a lock; 0: for ever.
    pub lock_timeout_ms: u32,
    /// How often a script that met a lock is tried again.
    pub lock_retries: u32,
    pub connect_retries: u32,
    pub connect_retries_interval: u32,
    pub installed_by: Option<String>,
    pub init_sql: Option<String>,
    pub lock_retry_count: i64,
    pub fail_on_missing_locations: bool,
    pub skip_default_callbacks: bool,
    pub clean_disabled: bool,
    pub tablespace: Option<String>,
    /// The environment's name for `${flyway:environment}`.
    pub environment: String,
}

impl std::fmt::Debug for MigrateConfig {
    /// Without the placeholders' values: one may be a password for a users file.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MigrateConfig")
            .field("locations", &self.locations)
            .field("table", &self.table)
            .field("placeholders", &self.placeholders.keys())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub struct UsersConfig {
    /// Folder of `*.sql`, applied in name order; default `users`.
    pub dir: Utf8PathBuf,
}

#[derive(Debug, Clone)]
pub struct SeedConfig {
    /// Folder whose `*.sql`, `*.sql.gz` are loaded when no snapshot fits; default `seed`.
    pub dir: Utf8PathBuf,
}

#[derive(Debug, Clone)]
pub struct SnapshotConfig {
    /// Connections that copy; `None` is chosen from cores and server.
    pub jobs: Option<usize>,
    /// Chunks compressed and uploaded at once.
    pub uploads: usize,
    /// zstd level of chunks.
    pub compression_level: i32,
    /// Plain bytes after which a chunk is closed.
    pub chunk_bytes: u64,
    /// Skip large objects that cannot be read instead of refusing.
    pub skip_large_objects: bool,
    /// A source or a store that sends nothing for this long is given up and tried again.
    pub stall_timeout: std::time::Duration,
}

/// What `snapshot prune` keeps; times in seconds.
#[derive(Debug, Clone)]
pub struct RetentionConfig {
    /// The newest ones of each database.
    pub keep: usize,
    pub within_seconds: u64,
    /// A schema version is in use until its newest snapshot is older than this.
    pub versions_within_seconds: u64,
    /// Between marking a chunk that nothing names and removing it.
    pub grace_seconds: u64,
}

#[derive(Debug, Clone)]
pub struct RestoreConfig {
    pub owners: Owners,
    /// Connections that load; `None` is chosen from cores.
    pub jobs: Option<usize>,
    /// Only snapshots that were restored and compared before they were published.
    pub proved_only: bool,
    /// What a run leaves in the chunk cache at most.
    pub cache_bytes: u64,
    /// Extensions that the restore leaves out when the server has none.
    pub ignore_extensions: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Objects belong to the local owner, privileges come from `users/`.
    Local,
    /// The source's owners are recreated, without login.
    Keep,
}
