//! From settings to [`Config`]: types, defaults that depend on other values, and origins.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use secrecy::SecretString;

use super::database::{Derived, Found, Surroundings, database, inert_properties, read_port};
use super::error::Error;
use super::keys::{KEYS, Kind};
use super::settings::{Setting, Settings};
use super::{
    Checksums, Config, DatabaseConfig, EngineConfig, EngineKind, ImagesConfig, MigrateConfig,
    Origin, Owners, Published, RestoreConfig, RetentionConfig, S3Config, SeedConfig,
    SnapshotConfig, StoreConfig, UsersConfig,
};
use super::{libpq, url};

/// A snapshot that is being taken has found chunks and not named them yet: it needs time to end.
const MIN_GRACE_SECONDS: u64 = 3600;

pub(crate) fn build(
    settings: &Settings<'_>,
    project: Utf8PathBuf,
    environment: String,
) -> Result<Config, Error> {
    let mut found = Found::default();
    let database = database(settings, &project, Surroundings::Asked, &mut found)?;
    let Found { mut derived, notes: noticed } = found;
    let engine = engine(settings, &database, &mut derived)?;
    let store = store(settings)?;
    let migrate = migrate(settings, &environment)?;
    let config = Config {
        branch: None,
        protected: settings.flag("protected")?,
        disposable: settings.flag("disposable")?,
        database,
        engine,
        images: ImagesConfig {
            enabled: settings.choice("images.kind")? == Some("auto"),
            published: match settings.choice("images.published")? {
                Some("always") => Published::Always,
                Some("never") => Published::Never,
                Some(_) | None => Published::Auto,
            },
            min_size: settings.bytes("images.min_size")?,
            max_size: settings.bytes("images.max_size")?,
            max_age_seconds: settings.duration("images.max_age")?,
            pool: settings.text_or_empty("images.pool")?,
            pool_size: settings.bytes("images.pool_size")?,
        },
        store,
        migrate,
        users: UsersConfig { dir: settings.path("users.dir")?.unwrap_or_default() },
        seed: SeedConfig { dir: settings.path("seed.dir")?.unwrap_or_default() },
        snapshot: SnapshotConfig {
            jobs: jobs(settings, "snapshot.jobs")?,
            uploads: jobs(settings, "snapshot.uploads")?.unwrap_or(1),
            compression_level: compression_level(settings)?,
            chunk_bytes: settings.bytes("snapshot.chunk_bytes")?,
            skip_large_objects: settings.flag("snapshot.skip_large_objects")?,
            stall_timeout: stall_timeout(settings)?,
        },
        retention: retention(settings)?,
        restore: RestoreConfig {
            owners: match settings.choice("restore.owners")? {
                Some("keep") => Owners::Keep,
                _ => Owners::Local,
            },
            jobs: jobs(settings, "restore.jobs")?,
            proved_only: settings.flag("restore.proved_only")?,
            cache_bytes: settings.bytes("restore.cache_bytes")?,
            ignore_extensions: settings.list("restore.ignore_extensions")?,
        },
        origins: origins(settings, &derived, &environment)?,
        notes: notes(settings)?.into_iter().chain(noticed).collect(),
        project,
        environment,
    };
    Ok(config)
}

fn engine(
    settings: &Settings<'_>,
    database: &DatabaseConfig,
    derived: &mut Derived,
) -> Result<EngineConfig, Error> {
    let is_local = database.target().is_loopback();
    let kind = match settings.choice("engine.kind")? {
        Some("auto") => EngineKind::Auto,
        Some("docker") => EngineKind::Docker,
        Some("native") => EngineKind::Native,
        Some("embedded") => EngineKind::Embedded,
        Some("external") => EngineKind::External,
        _ => {
            let (kind, word, why) = if is_local {
                (EngineKind::Auto, "auto", "default")
            } else {
                (EngineKind::External, "external", "default for a host elsewhere")
            };
            derived.insert("engine.kind", (word.to_owned(), why.to_owned()));
            kind
        }
    };
    if kind != EngineKind::External && !is_local {
        return Err(Error::Value {
            place: settings.place("engine.kind"),
            key: "engine.kind".to_owned(),
            reason: format!(
                "a server that seedbed starts is on this machine, but the database is on `{}`",
                database.host
            ),
            hint: Some("write `kind = \"external\"`, or `localhost` in the URL".to_owned()),
        });
    }
    let port = match read_port(settings, "engine.port")? {
        Some(port) => Some(port),
        // Whoever writes a port into the URL expects the server to be there.
        None if is_local && kind != EngineKind::External => {
            if let Some(port) = database.port {
                derived.insert("engine.port", (port.to_string(), "database.port".to_owned()));
            }
            database.port
        }
        None => None,
    };
    Ok(EngineConfig {
        kind,
        image: settings.text_or_empty("engine.image")?,
        port,
        bin_dir: settings.path("engine.bin_dir")?,
        archive_url: settings.text_or_empty("engine.archive_url")?,
        archive_version: settings.text_or_empty("engine.archive_version")?,
        durable: settings.flag("engine.durable")?,
        superuser_password: superuser_password(settings, kind, database)?,
        superuser: settings.text("engine.superuser")?,
        settings: map(settings, "engine.settings")?,
    })
}

/// The superuser's password; on a server that somebody else runs the password file may know it.
fn superuser_password(
    settings: &Settings<'_>,
    kind: EngineKind,
    database: &DatabaseConfig,
) -> Result<Option<SecretString>, Error> {
    let password = settings.secret("engine.superuser_password")?;
    let (None, EngineKind::External, Some(user)) =
        (&password, kind, settings.text("engine.superuser")?)
    else {
        return Ok(password);
    };
    let account = libpq::Account {
        host: &database.host,
        port: database.port.unwrap_or(5432),
        database: "postgres",
        user: &user,
    };
    Ok(match libpq::password(settings.env(), None, &account) {
        libpq::Password::Found(password, _) => Some(password),
        libpq::Password::NotThere | libpq::Password::Refused(_) => None,
    })
}

fn store(settings: &Settings<'_>) -> Result<StoreConfig, Error> {
    const URL: &str = "store.url";
    let text = settings.text_or_empty(URL)?;
    let wrong = |reason: String, hint: &str| Error::Value {
        place: settings.place(URL),
        key: URL.to_owned(),
        reason,
        hint: Some(hint.to_owned()),
    };
    // Read in both cases, so that a wrong value is found whatever the store is.
    let secret_access_key = settings.secret("store.secret_access_key")?;
    let session_token = settings.secret("store.session_token")?;
    let access_key_id = settings.text("store.access_key_id")?;
    if access_key_id.is_some() != secret_access_key.is_some() {
        let (have, miss) = match access_key_id {
            Some(_) => ("store.access_key_id", "store.secret_access_key"),
            None => ("store.secret_access_key", "store.access_key_id"),
        };
        return Err(Error::Value {
            place: settings.place(have),
            key: have.to_owned(),
            reason: format!("it needs `{miss}` beside it"),
            hint: None,
        });
    }
    let sse = encryption(settings)?;
    let Some(rest) = text.strip_prefix("s3://") else {
        return match text.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => {
                Ok(StoreConfig::Dir(settings.absolute(path)))
            }
            Some((scheme, _)) => Err(wrong(
                format!("no store speaks `{scheme}`"),
                "write `s3://bucket/prefix` or a folder",
            )),
            None => Ok(StoreConfig::Dir(settings.absolute(&text))),
        };
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(wrong("it names no bucket".to_owned(), "write `s3://bucket/prefix`"));
    }
    Ok(StoreConfig::S3(S3Config {
        bucket: bucket.to_owned(),
        prefix: prefix.trim_matches('/').to_owned(),
        region: settings.text("store.region")?,
        endpoint: settings.text("store.endpoint")?,
        path_style: settings.flag("store.path_style")?,
        profile: settings.text("store.profile")?,
        access_key_id,
        secret_access_key,
        session_token,
        checksums: match settings.choice("store.checksums")? {
            Some("required_only") => Checksums::RequiredOnly,
            _ => Checksums::Auto,
        },
        sse,
        kms_key_id: settings.text("store.kms_key_id")?,
        kms_bucket_key: match settings.text(KMS_BUCKET_KEY)? {
            Some(_) => Some(settings.flag(KMS_BUCKET_KEY)?),
            None => None,
        },
    }))
}

const KMS_BUCKET_KEY: &str = "store.kms_bucket_key";

/// What objects are encrypted with; what only KMS has needs KMS.
fn encryption(settings: &Settings<'_>) -> Result<Option<String>, Error> {
    let sse = settings.choice("store.sse")?.map(str::to_owned);
    for key in ["store.kms_key_id", KMS_BUCKET_KEY] {
        if sse.as_deref() != Some("aws:kms") && settings.text(key)?.is_some() {
            return Err(Error::Value {
                place: settings.place(key),
                key: key.to_owned(),
                reason: "it needs `store.sse = \"aws:kms\"` beside it".to_owned(),
                hint: None,
            });
        }
    }
    Ok(sse)
}

fn migrate(settings: &Settings<'_>, environment: &str) -> Result<MigrateConfig, Error> {
    let text = |key: &str| settings.text_or_empty(key);
    Ok(MigrateConfig {
        locations: locations(settings, "flyway.locations")?,
        table: text("flyway.table")?,
        default_schema: settings.text("flyway.defaultSchema")?,
        schemas: settings.list("flyway.schemas")?,
        create_schemas: settings.flag("flyway.createSchemas")?,
        sql_migration_prefix: text("flyway.sqlMigrationPrefix")?,
        repeatable_sql_migration_prefix: text("flyway.repeatableSqlMigrationPrefix")?,
        baseline_migration_prefix: text("flyway.baselineMigrationPrefix")?,
        undo_sql_migration_prefix: text("flyway.undoSqlMigrationPrefix")?,
        sql_migration_separator: text("flyway.sqlMigrationSeparator")?,
        sql_migration_suffixes: settings.list("flyway.sqlMigrationSuffixes")?,
        placeholders: map(settings, "flyway.placeholders")?,
        placeholder_prefix: text("flyway.placeholderPrefix")?,
        placeholder_suffix: text("flyway.placeholderSuffix")?,
        placeholder_separator: text("flyway.placeholderSeparator")?,
        placeholder_replacement: settings.flag("flyway.placeholderReplacement")?,
        encoding: text("flyway.encoding")?,
        detect_encoding: settings.flag("flyway.detectEncoding")?,
        validate_on_migrate: settings.flag("flyway.validateOnMigrate")?,
        validate_migration_naming: settings.flag("flyway.validateMigrationNaming")?,
        out_of_order: settings.flag("flyway.outOfOrder")?,
        group: settings.flag("flyway.group")?,
        mixed: settings.flag("flyway.mixed")?,
        execute_in_transaction: settings.flag("flyway.executeInTransaction")?,
        transactional_lock: settings.flag("flyway.postgresql.transactional.lock")?,
        baseline_on_migrate: settings.flag("flyway.baselineOnMigrate")?,
        baseline_version: text("flyway.baselineVersion")?,
        baseline_description: text("flyway.baselineDescription")?,
        ignore_migration_patterns: settings.list("flyway.ignoreMigrationPatterns")?,
        target: settings.text("flyway.target")?,
        cherry_pick: settings.list("flyway.cherryPick")?,
        skip_executing_migrations: settings.flag("flyway.skipExecutingMigrations")?,
        dry_run_output: settings.path("flyway.dryRunOutput")?,
        callback_locations: locations(settings, "flyway.callbackLocations")?,
        undo_locations: locations(settings, "migrate.undo_locations")?,
        lock_timeout_ms: settings.integer("migrate.lock_timeout_ms")?.unwrap_or(0),
        lock_retries: settings.integer("migrate.lock_retries")?.unwrap_or(0),
        connect_retries: settings.integer("flyway.connectRetries")?.unwrap_or(0),
        connect_retries_interval: settings.integer("flyway.connectRetriesInterval")?.unwrap_or(120),
        installed_by: settings.text("flyway.installedBy")?,
        init_sql: settings.text("flyway.initSql")?,
        lock_retry_count: settings.integer("flyway.lockRetryCount")?.unwrap_or(50),
        fail_on_missing_locations: settings.flag("flyway.failOnMissingLocations")?,
        skip_default_callbacks: settings.flag("flyway.skipDefaultCallbacks")?,
        clean_disabled: settings.flag("flyway.cleanDisabled")?,
        tablespace: settings.text("flyway.tablespace")?,
        environment: environment.to_owned(),
    })
}

fn locations(settings: &Settings<'_>, key: &str) -> Result<Vec<Utf8PathBuf>, Error> {
    let refuse = |reason: String| Error::Value {
        place: settings.place(key),
        key: key.to_owned(),
        reason,
        hint: Some("write `filesystem:FOLDER`, relative to the project".to_owned()),
    };
    let mut locations = Vec::new();
    for location in settings.list(key)? {
        let (scheme, path) = match location.split_once(':') {
            // One letter before a colon is a drive.
            Some((scheme, path)) if scheme.len() > 1 => (scheme, path),
            _ => ("filesystem", location.as_str()),
        };
        match scheme {
            "filesystem" => locations.push(settings.absolute(path)),
            "classpath" => {
                // Where build tools take the class path's SQL from.
                let folder = settings.absolute("src/main/resources").join(path.trim_matches('/'));
                if !folder.is_dir() {
                    return Err(refuse(format!(
                        "`{location}` is on a Java class path; no folder `{folder}`"
                    )));
                }
                locations.push(folder);
            }
            other => return Err(refuse(format!("no scripts can be read from `{other}:`"))),
        }
    }
    Ok(locations)
}

/// What the layers noted, and parameters of the URL that mean nothing here.
fn notes(settings: &Settings<'_>) -> Result<Vec<String>, Error> {
    let mut notes = settings.notes.clone();
    notes.extend(
        inert_properties(settings)
            .into_iter()
            .map(|(key, place)| format!("`{key}` in {place} has no effect in seedbed")),
    );
    if let Some(text) = settings.text("database.url")?
        && let Ok(url) = url::parse(&text)
    {
        let place = settings.place("database.url");
        notes.extend(url.ignored.iter().map(|name| {
            format!("the parameter `{name}` of the URL in {place} has no effect in seedbed")
        }));
    }
    let lock = "flyway.postgresql.transactional.lock";
    let place = settings.place(lock);
    if place != "default" {
        notes.push(format!(
            "`{lock}` in {place} has no effect in seedbed: its lock is always the session's"
        ));
    }
    Ok(notes)
}

fn map(settings: &Settings<'_>, key: &str) -> Result<BTreeMap<String, String>, Error> {
    settings
        .below(key)
        .map(|(name, setting)| {
            Ok((name.to_owned(), settings.expand(&format!("{key}.{name}"), setting)?))
        })
        .collect()
}

fn jobs(settings: &Settings<'_>, key: &str) -> Result<Option<usize>, Error> {
    match settings.integer::<usize>(key)? {
        Some(0) => Err(settings.wrong(key, Kind::Integer)),
        jobs => Ok(jobs),
    }
}

fn stall_timeout(settings: &Settings) -> Result<std::time::Duration, Error> {
    const STALL: &str = "snapshot.stall_timeout";
    match settings.duration(STALL)? {
        0 => Err(settings.wrong(STALL, Kind::Duration)),
        seconds => Ok(std::time::Duration::from_secs(seconds)),
    }
}

fn retention(settings: &Settings<'_>) -> Result<RetentionConfig, Error> {
    const GRACE: &str = "retention.grace";
    let grace_seconds = settings.duration(GRACE)?;
    if grace_seconds < MIN_GRACE_SECONDS {
        return Err(settings.wrong(GRACE, Kind::Duration));
    }
    Ok(RetentionConfig {
        keep: settings.integer("retention.keep")?.unwrap_or_default(),
        within_seconds: settings.duration("retention.within")?,
        versions_within_seconds: settings.duration("retention.versions_within")?,
        grace_seconds,
    })
}

fn compression_level(settings: &Settings<'_>) -> Result<i32, Error> {
    const KEY: &str = "snapshot.compression_level";
    let level = settings.integer::<i32>(KEY)?.unwrap_or_default();
    // zstd's regular levels; the negative ones are for data that is not worth compressing.
    if (-7..=19).contains(&level) { Ok(level) } else { Err(settings.wrong(KEY, Kind::Integer)) }
}

/// A value below a map, masked where its name or its coming from a variable says that it may be a
/// secret.
fn shown_below(name: &str, setting: &Setting) -> String {
    const SECRET_WORDS: [&str; 4] = ["password", "secret", "token", "key"];
    let name = name.to_ascii_lowercase();
    let is_secret = SECRET_WORDS.iter().any(|word| name.contains(word));
    if is_secret || !setting.is_from_file() {
        return "***".to_owned();
    }
    setting.value.to_string()
}

fn origins(
    settings: &Settings<'_>,
    derived: &Derived,
    environment: &str,
) -> Result<Vec<Origin>, Error> {
    let mut origins = vec![Origin {
        key: "environment".to_owned(),
        value: environment.to_owned(),
        source: "chosen".to_owned(),
    }];
    for key in KEYS {
        if key.kind == Kind::Map {
            for (name, setting) in settings.below(key.name) {
                origins.push(Origin {
                    key: format!("{}.{name}", key.name),
                    // As written: a placeholder may be how a password reaches a users file.
                    value: shown_below(name, setting),
                    source: setting.place.clone(),
                });
            }
            continue;
        }
        let (value, source) = match derived.get(key.name) {
            Some((value, source)) => (value.clone(), source.clone()),
            None => (settings.shown(key.name)?, settings.place(key.name)),
        };
        origins.push(Origin { key: key.name.to_owned(), value, source });
    }
    Ok(origins)
}
