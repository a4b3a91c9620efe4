//! Every key of the configuration, in one table: name, type, default, secrecy, meaning.
//!
//! Reading, error messages (`did you mean`), `seedbed config` and the reference page all come from
//! here. Flyway's keys keep Flyway's names under `flyway.`; the three that name the database
//! (`flyway.url`, `flyway.user`, `flyway.password`) are other spellings of `database.*`.

/// How a value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// `true` or `false`.
    Flag,
    Integer,
    /// A number of bytes; `16MiB` works.
    Bytes,
    /// A number and a unit: `8d`, `12h`, `90m`, `30s`.
    Duration,
    /// Relative to the project.
    Path,
    /// A TOML array, or values separated by commas.
    List,
    /// Names of the user's choice below the key: `flyway.placeholders.x`.
    Map,
    /// A JDBC or `postgresql://` URL; its password is masked.
    DatabaseUrl,
    Choice(&'static [&'static str]),
}

impl Kind {
    /// What the error for a wrong value asks for.
    pub(crate) fn expectation(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::Integer => "a whole number".to_owned(),
            Self::Bytes => "a number of bytes, as `16MiB`".to_owned(),
            Self::Duration => "a number and a unit, as `8d`, `12h` or `90m`".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::List => "a list".to_owned(),
            Self::Map => "a section of names and values".to_owned(),
            Self::DatabaseUrl => "a `jdbc:postgresql://` or `postgresql://` URL".to_owned(),
            Self::Choice(words) => format!("one of {}", quoted(words)),
        }
    }
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// As it would stand in a file; empty: none, or worked out from other values.
    pub default: &'static str,
    /// Masked wherever it is shown; `env:NAME` and `file:PATH` are ways to give it.
    pub secret: bool,
    pub doc: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default, secret: false, doc }
}

const fn secret(name: &'static str, doc: &'static str) -> Key {
    Key { name, kind: Kind::Text, default: "", secret: true, doc }
}

/// All keys, in the order in which `seedbed config` shows them.
pub const KEYS: &[Key] = &[
    key("default_env", Kind::Text, "", "environment taken when `--env` names none"),
    key(
        "protected",
        Kind::Flag,
        "false",
        "never replaced: only read, and deployed to after a question",
    ),
    key("disposable", Kind::Flag, "false", "a server elsewhere whose databases may be replaced"),
    key("database.url", Kind::DatabaseUrl, "", "JDBC or postgresql URL of the database"),
    key("database.host", Kind::Text, "localhost", "host name, address or socket folder"),
    key("database.port", Kind::Integer, "", "port of the server"),
    key("database.name", Kind::Text, "", "name of the database; default: the project folder's"),
    key("database.user", Kind::Text, "postgres", "owns the database and runs the migrations"),
    secret("database.password", "password of that user"),
    key(
        "database.sslmode",
        Kind::Choice(&["disable", "prefer", "require", "verify-ca", "verify-full"]),
        "",
        "TLS as in libpq; default: verify-full, on loopback prefer",
    ),
    key(
        "database.sslrootcert",
        Kind::Path,
        "",
        "PEM file of the authorities to trust; `system`: the system's, at verify-full",
    ),
    key("database.sslcert", Kind::Path, "", "PEM file of the certificate to log in with"),
    key("database.sslkey", Kind::Path, "", "PEM file of its private key, readable to you only"),
    key("database.service", Kind::Text, "", "section of libpq's service file that says the rest"),
    key(
        "engine.kind",
        Kind::Choice(&["auto", "docker", "native", "embedded", "external"]),
        "",
        "what runs Postgres; default: auto, external when the host is elsewhere",
    ),
    key("engine.image", Kind::Text, "postgres:17", "container image"),
    key(
        "engine.port",
        Kind::Integer,
        "",
        "published port; default: the database's, else a free one",
    ),
    key("engine.bin_dir", Kind::Path, "", "folder with `initdb` and the other binaries"),
    key(
        "engine.archive_url",
        Kind::Text,
        "https://github.com/theseus-rs/postgresql-binaries/releases/download/{version}/postgresql-{version}-{target}.tar.gz",
        "URL template of the embedded binaries: {version}, {target}",
    ),
    key("engine.archive_version", Kind::Text, "17.6.0", "version of the embedded binaries"),
    key("engine.durable", Kind::Flag, "false", "survive a crash: leave fsync on"),
    key(
        "engine.superuser",
        Kind::Text,
        "",
        "who creates databases and roles; default: the database's user when external, else postgres",
    ),
    secret("engine.superuser_password", "password of the superuser; generated when absent"),
    key("engine.settings", Kind::Map, "", "settings for servers that seedbed starts"),
    key(
        "images.kind",
        Kind::Choice(&["auto", "template"]),
        "auto",
        "how a ready database is frozen: auto takes images where clones can share blocks",
    ),
    key(
        "images.min_size",
        Kind::Bytes,
        "256MiB",
        "smaller databases are frozen as templates, which clone faster",
    ),
    key(
        "images.published",
        Kind::Choice(&["auto", "always", "never"]),
        "auto",
        "ready data directories from the store: where they are faster than rows, wherever they fit, never",
    ),
    key(
        "images.max_size",
        Kind::Bytes,
        "64GiB",
        "images of this project; those that nobody used for the longest go",
    ),
    key("images.max_age", Kind::Duration, "30d", "images that nobody used for this long go"),
    key(
        "images.pool",
        Kind::Text,
        "seedbed-pool",
        "volume in Docker that holds what shares blocks",
    ),
    key("images.pool_size", Kind::Bytes, "256GiB", "largest size of the pool's file system"),
    key("store.url", Kind::Text, "seed/snapshots", "s3://bucket/prefix or a folder"),
    key("store.region", Kind::Text, "", "region of the bucket"),
    key("store.endpoint", Kind::Text, "", "URL of an S3 server other than AWS"),
    key("store.path_style", Kind::Flag, "false", "bucket in the path, not in the host name"),
    key("store.profile", Kind::Text, "", "profile of the AWS configuration"),
    key("store.access_key_id", Kind::Text, "", "access key; default: what the AWS tools use"),
    secret("store.secret_access_key", "secret of the access key"),
    secret("store.session_token", "token of temporary credentials"),
    key(
        "store.checksums",
        Kind::Choice(&["auto", "required_only"]),
        "auto",
        "checksum trailers of S3",
    ),
    key("store.sse", Kind::Choice(&["AES256", "aws:kms"]), "", "server-side encryption"),
    key("store.kms_key_id", Kind::Text, "", "key for `aws:kms`; default: the bucket's, else AWS's"),
    key(
        "store.kms_bucket_key",
        Kind::Flag,
        "",
        "one request to KMS for many objects; default: as the bucket says",
    ),
    key("users.dir", Kind::Path, "users", "folder of accounts and grants"),
    key("seed.dir", Kind::Path, "seed", "folder of seed files"),
    key("snapshot.jobs", Kind::Integer, "", "connections that copy out"),
    key("snapshot.uploads", Kind::Integer, "8", "chunks compressed and uploaded at once"),
    key("snapshot.compression_level", Kind::Integer, "2", "zstd level of chunks"),
    key("snapshot.chunk_bytes", Kind::Bytes, "4MiB", "plain bytes after which a chunk is closed"),
    key(
        "snapshot.skip_large_objects",
        Kind::Flag,
        "false",
        "skip large objects that cannot be read",
    ),
    key(
        "snapshot.stall_timeout",
        Kind::Duration,
        "60s",
        "a source or store that sends nothing for this long is tried again; at least 1s",
    ),
    key("retention.keep", Kind::Integer, "4", "snapshots of each database that `prune` keeps"),
    key("retention.within", Kind::Duration, "35d", "`prune` keeps what is younger than this"),
    key(
        "retention.versions_within",
        Kind::Duration,
        "180d",
        "and the newest snapshot of each schema version that is younger than this",
    ),
    key(
        "retention.grace",
        Kind::Duration,
        "1d",
        "chunks that nothing names stay for this long; at least 1h",
    ),
    key("restore.proved_only", Kind::Flag, "false", "take only snapshots that were proved"),
    key("restore.owners", Kind::Choice(&["local", "keep"]), "local", "who owns restored objects"),
    key("restore.jobs", Kind::Integer, "", "connections that copy in"),
    key(
        "restore.cache_bytes",
        Kind::Bytes,
        "20GiB",
        "what this project's runs leave in the user's cache of chunks at most",
    ),
    key("restore.ignore_extensions", Kind::List, "", "extensions a restore may leave out"),
    key(
        "migrate.lock_timeout_ms",
        Kind::Integer,
        "5000",
        "how long a script's transaction waits for a lock before it steps back; 0: for ever",
    ),
    key(
        "migrate.lock_retries",
        Kind::Integer,
        "60",
        "how often such a script is tried again, with growing pauses",
    ),
    key(
        "migrate.undo_locations",
        Kind::List,
        "",
        "folders of undo scripts; default: the locations",
    ),
    key("flyway.locations", Kind::List, "filesystem:sql", "folders of scripts"),
    key("flyway.table", Kind::Text, "flyway_schema_history", "history table"),
    key(
        "flyway.defaultSchema",
        Kind::Text,
        "",
        "schema of the history table and of unqualified names",
    ),
    key("flyway.schemas", Kind::List, "", "schemas that are managed"),
    key("flyway.createSchemas", Kind::Flag, "true", "create missing schemas"),
    key("flyway.sqlMigrationPrefix", Kind::Text, "V", "prefix of versioned scripts"),
    key("flyway.repeatableSqlMigrationPrefix", Kind::Text, "R", "prefix of repeatable scripts"),
    key("flyway.baselineMigrationPrefix", Kind::Text, "B", "prefix of baseline scripts"),
    key("flyway.undoSqlMigrationPrefix", Kind::Text, "U", "prefix of undo scripts"),
    key("flyway.sqlMigrationSeparator", Kind::Text, "__", "between version and description"),
    key("flyway.sqlMigrationSuffixes", Kind::List, ".sql", "suffixes of scripts"),
    key("flyway.jdbcProperties", Kind::Map, "", "parameters as the database's URL takes them"),
    key("flyway.placeholders", Kind::Map, "", "values for `${name}` in scripts"),
    key("flyway.placeholderPrefix", Kind::Text, "${", "opens a placeholder"),
    key("flyway.placeholderSuffix", Kind::Text, "}", "closes a placeholder"),
    key("flyway.placeholderSeparator", Kind::Text, ":", "inside names of default placeholders"),
    key("flyway.placeholderReplacement", Kind::Flag, "true", "replace placeholders"),
    key("flyway.encoding", Kind::Text, "UTF-8", "encoding of scripts"),
    key("flyway.detectEncoding", Kind::Flag, "false", "find out each script's encoding"),
    key("flyway.validateOnMigrate", Kind::Flag, "true", "compare checksums before migrating"),
    key(
        "flyway.validateMigrationNaming",
        Kind::Flag,
        "false",
        "refuse files that are named almost right",
    ),
    key("flyway.outOfOrder", Kind::Flag, "false", "run scripts older than the newest applied one"),
    key("flyway.group", Kind::Flag, "false", "all pending scripts in one transaction"),
    key(
        "flyway.mixed",
        Kind::Flag,
        "false",
        "allow statements outside a transaction beside others",
    ),
    key("flyway.executeInTransaction", Kind::Flag, "true", "each script in a transaction"),
    key("flyway.baselineOnMigrate", Kind::Flag, "false", "baseline a schema that has no history"),
    key("flyway.baselineVersion", Kind::Text, "1", "version of the baseline"),
    key(
        "flyway.baselineDescription",
        Kind::Text,
        "<< Flyway Baseline >>",
        "description of the baseline",
    ),
    key(
        "flyway.ignoreMigrationPatterns",
        Kind::List,
        "*:future",
        "type:state patterns that validate leaves out",
    ),
    key("flyway.target", Kind::Text, "", "version to stop at"),
    key("flyway.cherryPick", Kind::List, "", "versions and descriptions to run, in this order"),
    key(
        "flyway.skipExecutingMigrations",
        Kind::Flag,
        "false",
        "record scripts as applied without running them",
    ),
    key("flyway.dryRunOutput", Kind::Path, "", "file to write the SQL to instead of running it"),
    key(
        "flyway.installedBy",
        Kind::Text,
        "",
        "name written to the history; default: the database user",
    ),
    key("flyway.initSql", Kind::Text, "", "SQL that opens each session"),
    key("flyway.connectRetries", Kind::Integer, "0", "tries to connect again when nobody answers"),
    key(
        "flyway.connectRetriesInterval",
        Kind::Integer,
        "120",
        "longest wait between two of them, in seconds",
    ),
    key(
        "flyway.lockRetryCount",
        Kind::Integer,
        "50",
        "tries to get the lock, a second apart; -1: for ever",
    ),
    key("flyway.failOnMissingLocations", Kind::Flag, "false", "a missing folder is an error"),
    key("flyway.callbackLocations", Kind::List, "", "folders that hold callbacks alone"),
    key("flyway.skipDefaultCallbacks", Kind::Flag, "false", "leave callbacks out"),
    key("flyway.cleanDisabled", Kind::Flag, "true", "refuse `clean`"),
    key("flyway.tablespace", Kind::Text, "", "tablespace of the history table"),
    key(
        "flyway.postgresql.transactional.lock",
        Kind::Flag,
        "true",
        "hold the lock in a transaction",
    ),
];

/// The key of the table that `name` (canonical) belongs to.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| {
        key.name == name
            || key.kind == Kind::Map
                && name.strip_prefix(key.name).is_some_and(|rest| rest.starts_with('.'))
    })
}

/// The name of the variable that sets `key` with Flyway's or our prefix: `OUT_OF_ORDER`.
pub(crate) fn variable_name(key: &str) -> String {
    let mut name = String::with_capacity(key.len() + 8);
    for character in key.chars() {
        match character {
            '.' => name.push('_'),
            upper if upper.is_ascii_uppercase() => {
                name.push('_');
                name.push(upper);
            }
            other => name.push(other.to_ascii_uppercase()),
        }
    }
    name
}

/// `a`, `b`: names in an error.
pub(crate) fn quoted(words: &[impl AsRef<str>]) -> String {
    words.iter().map(|word| format!("`{}`", word.as_ref())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::{KEYS, Kind, find};

    #[test]
    fn names_are_unique_and_explained() {
        for (at, key) in KEYS.iter().enumerate() {
            assert!(!key.doc.is_empty() && !key.doc.ends_with('.'), "{}", key.name);
            assert!(KEYS[..at].iter().all(|other| other.name != key.name), "{}", key.name);
        }
        assert_eq!(find("engine.settings.work_mem").map(|key| key.kind), Some(Kind::Map));
        assert!(find("engine.settingsx").is_none());
    }
}
