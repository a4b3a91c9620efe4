//! Which database is meant: URLs and single parts brought together.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::SecretString;

use super::error::Error;
use super::keys::Kind;
use super::settings::Settings;
use super::url::{self, DatabaseUrl};
use super::{DatabaseConfig, libpq};
use crate::pg::target::is_loopback;
use crate::pg::{ClientCertificate, SslMode};

/// Bytes of a name that PostgreSQL keeps (NAMEDATALEN - 1).
const NAME_BYTES: usize = 63;

/// Values worked out from others: key → (value, where from).
pub(super) type Derived = BTreeMap<&'static str, (String, String)>;

/// What reading the database's keys brought up beside their values.
#[derive(Default)]
pub(super) struct Found {
    pub derived: Derived,
    /// For the user.
    pub notes: Vec<String>,
}

/// Whether what libpq reads beside a configuration counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surroundings {
    Asked,
    /// The files alone are meant.
    Ignored,
}

pub(super) fn database(
    settings: &Settings<'_>,
    project: &Utf8Path,
    surroundings: Surroundings,
    found: &mut Found,
) -> Result<DatabaseConfig, Error> {
    let mut url = read_url(settings)?;
    let url_rank = settings.get(URL).map_or(0, |setting| setting.rank);
    if let Some(properties) = read_properties(settings, url_rank)? {
        url.get_or_insert_default().complete(properties);
    }
    let host = url.as_ref().and_then(|url| url.host.clone());
    let host = match settings.get("database.host") {
        Some(_) => settings.text("database.host")?,
        None => host,
    };
    let beside = beside(settings, url.as_ref(), host.as_deref(), surroundings)?;
    let mut parts = Parts { settings, url_rank, url, beside, derived: &mut found.derived };

    // A port belongs to the host that it was named with.
    let (host, port) = parts.place()?;
    let named = host.is_some();
    let host = match host {
        Some(host) => host,
        None => settings.text_or_empty("database.host")?,
    };
    let name = parts.text("database.name", "dbname", |from| from.name.clone())?;
    let user = parts.text("database.user", "user", |from| from.user.clone())?;
    let user = match user {
        Some(user) => user,
        None => settings.text_or_empty("database.user")?,
    };
    let password = parts.password()?;
    let root = parts.file("database.sslrootcert", "sslrootcert", |from| from.ssl_root_cert.clone());
    let root = root?;
    let cert = parts.file("database.sslcert", "sslcert", |from| from.ssl_cert.clone())?;
    let key = parts.file("database.sslkey", "sslkey", |from| from.ssl_key.clone())?;
    let mode = parts.ssl_mode()?;
    let extra = parts.session_settings();
    let beside = std::mem::take(&mut parts.beside);

    let name = match name {
        Some(name) => name,
        None => {
            let is_jdbc = settings.text(URL)?.is_some_and(|url| url.starts_with("jdbc:"));
            let (name, why) = match is_jdbc {
                true => (user.clone(), "default of JDBC: the user's name"),
                false => (name_of_folder(project), "default: the folder's name"),
            };
            found.derived.insert("database.name", (name.clone(), why.to_owned()));
            name
        }
    };
    check_name(settings, &name)?;
    let mut config = DatabaseConfig {
        named,
        host,
        port,
        name,
        user,
        password,
        ssl_mode: SslMode::Prefer,
        ssl_root_cert: root,
        ssl_client: None,
        settings: extra,
    };
    ssl(settings, &mut config, mode, (cert, key), &beside, found)?;
    if config.password.is_none() && beside.asked {
        from_password_file(settings, &mut config, &beside, found);
    }
    Ok(config)
}

const URL: &str = "database.url";
const PROPERTIES: &str = "flyway.jdbcProperties";

fn read_url(settings: &Settings<'_>) -> Result<Option<DatabaseUrl>, Error> {
    let Some(text) = settings.text(URL)? else { return Ok(None) };
    let url = url::parse(&text).map_err(|reason| Error::Value {
        place: settings.place(URL),
        key: URL.to_owned(),
        reason,
        hint: Some(
            "write it as `jdbc:postgresql://host:5432/database` or \
             `postgresql://user@host/database`"
                .to_owned(),
        ),
    })?;
    Ok(Some(url))
}

/// What `flyway.jdbcProperties` says; `None` when it is empty. A place and an account belong to the URL
/// that they were written for: they do not leak to the server of a later one.
fn read_properties(settings: &Settings<'_>, url_rank: usize) -> Result<Option<DatabaseUrl>, Error> {
    const OF_ONE_SERVER: [&str; 8] =
        ["host", "port", "dbname", "user", "password", "sslcert", "sslkey", "service"];
    let mut read = None;
    let counts = |name: &str, rank| rank >= url_rank || !OF_ONE_SERVER.contains(&name);
    for (name, setting) in
        settings.below(PROPERTIES).filter(|(name, setting)| counts(name, setting.rank))
    {
        let key = format!("{PROPERTIES}.{name}");
        let value = settings.expand(&key, setting)?;
        url::read_parameter(name, value, read.get_or_insert_default()).map_err(|reason| {
            Error::Value { place: setting.place.clone(), key, reason, hint: None }
        })?;
    }
    Ok(read)
}

/// Names of `flyway.jdbcProperties` that mean nothing here, with their places.
pub(super) fn inert_properties(settings: &Settings<'_>) -> Vec<(String, String)> {
    settings
        .below(PROPERTIES)
        .filter(|(name, _)| {
            let mut read = DatabaseUrl::default();
            url::read_parameter(name, String::new(), &mut read).is_ok() && !read.ignored.is_empty()
        })
        .map(|(name, setting)| (format!("{PROPERTIES}.{name}"), setting.place.clone()))
        .collect()
}

/// What libpq reads where the configuration names nothing.
#[derive(Default)]
struct Beside {
    /// Whether any of it counts.
    asked: bool,
    /// A service's parts, and what to call the place.
    service: Option<(DatabaseUrl, String)>,
    variables: DatabaseUrl,
}

impl Beside {
    /// The first that says `parameter`, and where it stood.
    fn take<T>(
        &self,
        parameter: &str,
        of: impl Fn(&DatabaseUrl) -> Option<T>,
    ) -> Option<(T, String)> {
        if let Some((service, place)) = &self.service
            && let Some(value) = of(service)
        {
            return Some((value, place.clone()));
        }
        Some((of(&self.variables)?, libpq::variable_of(parameter).to_owned()))
    }
}

/// For a server that somebody else runs: one that the configuration calls so, or that is elsewhere.
fn beside(
    settings: &Settings<'_>,
    url: Option<&DatabaseUrl>,
    host: Option<&str>,
    surroundings: Surroundings,
) -> Result<Beside, Error> {
    const KEY: &str = "database.service";
    let named = match settings.text(KEY)? {
        Some(name) => Some((name, KEY)),
        None => url.and_then(|url| url.service.clone()).map(|name| (name, URL)),
    };
    let is_elsewhere = settings.choice("engine.kind")? == Some("external")
        || settings.flag("protected")?
        || host.is_some_and(|host| !is_loopback(host));
    let asked = surroundings == Surroundings::Asked && (is_elsewhere || named.is_some());
    let mut variables = DatabaseUrl::default();
    if asked {
        variables =
            libpq::variables(settings.env()).map_err(|(variable, reason)| Error::Value {
                place: "the environment".to_owned(),
                key: variable.to_owned(),
                reason,
                hint: None,
            })?;
    }
    let named = named.or_else(|| variables.service.clone().map(|name| (name, "PGSERVICE")));
    let mut service = None;
    if let Some((name, key)) = named {
        let read = libpq::service(settings.env(), &name).map_err(|reason| Error::Value {
            place: settings.place(key),
            key: key.to_owned(),
            reason,
            hint: None,
        })?;
        service = Some((read.parts, format!("service `{name}` of {}", read.file)));
    }
    Ok(Beside { asked: asked || service.is_some(), service, variables })
}

/// Where a part may stand, in the order in which it counts.
struct Parts<'p, 's> {
    settings: &'p Settings<'s>,
    url: Option<DatabaseUrl>,
    url_rank: usize,
    beside: Beside,
    derived: &'p mut Derived,
}

impl Parts<'_, '_> {
    /// A URL speaks for its own layer and all below: parts set there do not leak to its server. A part
    /// set beside it or above it wins.
    fn is_set(&self, key: &str) -> bool {
        self.settings.get(key).is_some_and(|setting| setting.rank >= self.url_rank)
    }

    /// What the URL says of a part that no key beside it or above it says.
    fn of_url<T>(&self, key: &str, of: impl Fn(&DatabaseUrl) -> Option<T>) -> Option<T> {
        if self.is_set(key) { None } else { of(self.url.as_ref()?) }
    }

    fn derive(&mut self, key: &'static str, value: &str, place: String) {
        self.derived.insert(key, (value.to_owned(), place));
    }

    fn place(&mut self) -> Result<(Option<String>, Option<u16>), Error> {
        const HOST: &str = "database.host";
        const PORT: &str = "database.port";
        let set_port = if self.is_set(PORT) { read_port(self.settings, PORT)? } else { None };
        if let Some(host) = self.of_url(HOST, |url| url.host.clone()) {
            let place = self.settings.place(URL);
            let port = set_port.or(self.url.as_ref().and_then(|url| url.port));
            self.derive(HOST, &host, place.clone());
            if set_port.is_none() {
                let shown = port.map_or(String::new(), |port| port.to_string());
                self.derive(PORT, &shown, place);
            }
            return Ok((Some(host), port));
        }
        let set_port = match (set_port, &self.url) {
            (None, Some(url)) if url.service.is_none() => url.port,
            (None, _) => read_port(self.settings, PORT)?,
            (port, _) => port,
        };
        if self.settings.get(HOST).is_some() {
            return Ok((self.settings.text(HOST)?, set_port));
        }
        let Some((host, place)) = self.beside.take("host", |from| from.host.clone()) else {
            // A service without a host is about the server of this machine.
            let local = self.beside.service.is_some().then(|| "localhost".to_owned());
            let port = self.beside.service.as_ref().and_then(|(service, _)| service.port);
            return Ok((local, set_port.or(port)));
        };
        self.derive(HOST, &host, place);
        if set_port.is_none()
            && let Some((port, place)) = self.beside.take("port", |from| from.port)
        {
            self.derive(PORT, &port.to_string(), place);
            return Ok((Some(host), Some(port)));
        }
        Ok((Some(host), set_port))
    }

    /// A text, wherever it stands; `None` leaves the key's default.
    fn text(
        &mut self,
        key: &'static str,
        parameter: &str,
        of: impl Fn(&DatabaseUrl) -> Option<String>,
    ) -> Result<Option<String>, Error> {
        let found = match self.of_url(key, &of) {
            Some(value) => Some((value, self.settings.place(URL))),
            None if self.settings.get(key).is_some() => return self.settings.text(key),
            None => self.beside.take(parameter, of),
        };
        Ok(found.map(|(value, place)| {
            self.derive(key, &value, place);
            value
        }))
    }

    /// The path of a file. `system` stays as it is.
    fn file(
        &mut self,
        key: &'static str,
        parameter: &str,
        of: impl Fn(&DatabaseUrl) -> Option<Utf8PathBuf>,
    ) -> Result<Option<Utf8PathBuf>, Error> {
        let found = self.text(key, parameter, |from| of(from).map(Utf8PathBuf::into_string))?;
        Ok(found.map(|text| match text.as_str() {
            SYSTEM => Utf8PathBuf::from(SYSTEM),
            _ => {
                let path = self.settings.absolute(&text);
                if let Some((shown, _)) = self.derived.get_mut(key) {
                    *shown = path.to_string();
                }
                path
            }
        }))
    }

    fn password(&mut self) -> Result<Option<SecretString>, Error> {
        const KEY: &str = "database.password";
        let found = match self.of_url(KEY, |url| url.password.clone()) {
            Some(password) => Some((password, self.settings.place(URL))),
            None if self.settings.get(KEY).is_some() => return self.settings.secret(KEY),
            None => self.beside.take("password", |from| from.password.clone()),
        };
        Ok(found.map(|(password, place)| {
            self.derive(KEY, "***", place);
            password
        }))
    }

    fn ssl_mode(&mut self) -> Result<Option<SslMode>, Error> {
        const KEY: &str = "database.sslmode";
        let found = match self.of_url(KEY, |url| url.ssl_mode) {
            Some(mode) => Some((mode, self.settings.place(URL))),
            None if self.settings.get(KEY).is_some() => {
                return Ok(self.settings.choice(KEY)?.and_then(SslMode::parse));
            }
            None => self.beside.take("sslmode", |from| from.ssl_mode),
        };
        Ok(found.map(|(mode, place)| {
            self.derive(KEY, mode.as_str(), place);
            mode
        }))
    }

    fn session_settings(&self) -> Vec<(String, String)> {
        let service = self.beside.service.as_ref().map(|(service, _)| &service.settings);
        let url = self.url.as_ref().map(|url| &url.settings);
        service.into_iter().chain(url).flatten().cloned().collect()
    }
}

/// libpq's word for the system's trust store in the place of a file.
const SYSTEM: &str = "system";

/// What TLS is to be, with libpq's rules and one of ours: off this machine the default is to verify.
fn ssl(
    settings: &Settings<'_>,
    config: &mut DatabaseConfig,
    mode: Option<SslMode>,
    client: (Option<Utf8PathBuf>, Option<Utf8PathBuf>),
    beside: &Beside,
    found: &mut Found,
) -> Result<(), Error> {
    const ROOT: &str = "database.sslrootcert";
    let wrong = |key: &str, reason: &str, hint: &str| Error::Value {
        place: settings.place(key),
        key: key.to_owned(),
        reason: reason.to_owned(),
        hint: Some(hint.to_owned()),
    };
    let system = config.ssl_root_cert.as_deref().is_some_and(|path| path == SYSTEM);
    let (mode, why) = match mode {
        Some(mode) => (mode, None),
        None if system => (SslMode::VerifyFull, Some("default with the system's trust store")),
        None if config.target().is_loopback() => (SslMode::Prefer, Some("default on loopback")),
        None => (SslMode::VerifyFull, Some("default for a host elsewhere")),
    };
    config.ssl_mode = mode;
    if let Some(why) = why {
        found.derived.insert("database.sslmode", (mode.as_str().to_owned(), why.to_owned()));
    }
    if system {
        config.ssl_root_cert = None;
        // Anybody can have a certificate of a public authority: without the name it says nothing.
        if mode != SslMode::VerifyFull {
            let reason = "`system` goes with `sslmode = verify-full` only";
            return Err(wrong(ROOT, reason, "leave out `database.sslmode`"));
        }
    }
    let own = |name: &str| {
        let asked = beside.asked && mode > SslMode::Prefer;
        asked.then(|| libpq::own_file(settings.env(), name)).flatten()
    };
    if config.ssl_root_cert.is_none()
        && !system
        && let Some(path) = own("root.crt")
    {
        found.derived.insert(ROOT, (path.to_string(), "default of libpq".to_owned()));
        config.ssl_root_cert = Some(path);
    }
    config.ssl_client = match client {
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        (None, None) => own("postgresql.crt")
            .zip(own("postgresql.key"))
            .map(|(certificate, key)| ClientCertificate { certificate, key }),
        (Some(certificate), None) => match own("postgresql.key") {
            Some(key) => Some(ClientCertificate { certificate, key }),
            None => {
                let reason = "a certificate to log in with needs its private key";
                return Err(wrong("database.sslcert", reason, "name it: `database.sslkey`"));
            }
        },
        (None, Some(_)) => {
            let reason = "a private key to log in with needs its certificate";
            return Err(wrong("database.sslkey", reason, "name it: `database.sslcert`"));
        }
    };
    Ok(())
}

/// The password that `~/.pgpass`, or the file named instead, has for this account.
fn from_password_file(
    settings: &Settings<'_>,
    config: &mut DatabaseConfig,
    beside: &Beside,
    found: &mut Found,
) {
    let target = config.target();
    let account = libpq::Account {
        host: &target.host,
        port: target.port,
        database: &target.database,
        user: &target.user,
    };
    let file = beside.take("passfile", |from| from.pass_file.clone()).map(|(file, _)| file);
    match libpq::password(settings.env(), file.as_deref(), &account) {
        libpq::Password::Found(password, file) => {
            found.derived.insert("database.password", ("***".to_owned(), file.into_string()));
            config.password = Some(password);
        }
        libpq::Password::NotThere => {}
        libpq::Password::Refused(why) => found.notes.push(why),
    }
}

/// The server would cut a longer name and then not know it.
fn check_name(settings: &Settings<'_>, name: &str) -> Result<(), Error> {
    if name.len() <= NAME_BYTES {
        return Ok(());
    }
    let key =
        if settings.get("database.name").is_some() { "database.name" } else { "database.url" };
    Err(Error::Value {
        place: settings.place(key),
        key: key.to_owned(),
        reason: format!("the name has {} bytes; PostgreSQL keeps {NAME_BYTES}", name.len()),
        hint: None,
    })
}

fn name_of_folder(project: &Utf8Path) -> String {
    let mut name: String = project
        .file_name()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect();
    name = name.trim_matches('_').to_owned();
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert_str(0, "db_");
    }
    // Room for the endings of scratch databases.
    name.truncate(40);
    name
}

/// A port, where one is named.
pub(super) fn read_port(settings: &Settings<'_>, key: &str) -> Result<Option<u16>, Error> {
    match settings.integer::<u16>(key)? {
        Some(0) => Err(settings.wrong(key, Kind::Integer)),
        port => Ok(port),
    }
}
