//! Where a server is and as whom to connect to it.

use std::fmt;

use camino::Utf8PathBuf;
use secrecy::{ExposeSecret, SecretString};

/// How far TLS goes, in libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    /// libpq's spelling, or `None` for a word that it does not know.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "disable" => Self::Disable,
            "prefer" | "allow" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }

    /// libpq's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// A certificate and its private key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: Utf8PathBuf,
    pub key: Utf8PathBuf,
}

/// One database on one server, and the account to use. `Debug` and `Display` show no password.
#[derive(Clone)]
pub struct Target {
    /// A host name, an address, or a directory that holds a Unix socket.
    pub host: String,
    pub port: u16,
    pub database: String,
    pub user: String,
    pub password: Option<SecretString>,
    pub ssl_mode: SslMode,
    /// PEM file of the certificate authorities to trust instead of the system's.
    pub ssl_root_cert: Option<Utf8PathBuf>,
    /// What to log in with beside or instead of the password.
    pub ssl_client: Option<ClientCertificate>,
    /// Settings for the session, sent with the start-up packet (`-c name=value`).
    pub settings: Vec<(String, String)>,
}

impl Target {
    /// The same server and account, another database.
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    /// The same server and database, another account.
    pub fn with_user(&self, user: &str, password: Option<SecretString>) -> Self {
        Self { user: user.to_owned(), password, ..self.clone() }
    }

    /// The same, with one more session setting.
    pub fn with_setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Whether the server is on this machine by address: a Unix socket or a loopback address.
    /// Names are not resolved here.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// `postgresql://user:password@host:port/database`: with the password only where the caller is
    /// about to hand it to the user (`url`) or to a child's environment (`ci -- COMMAND`).
    pub fn url_with_password(&self) -> String {
        let mut url = self.base_url();
        if let Some(password) = &self.password {
            // Percent-encoding is the url crate's; a base URL always takes a password.
            let _ = url.set_password(Some(password.expose_secret()));
        }
        url.to_string()
    }

    fn base_url(&self) -> url::Url {
        let mut url = url::Url::parse("postgresql://localhost").expect("a constant that is a URL");
        if self.host.starts_with('/') {
            url.query_pairs_mut().append_pair("host", &self.host);
        } else if self.host.contains(':') {
            let _ = url.set_host(Some(&format!("[{}]", self.host)));
        } else {
            let _ = url.set_host(Some(&self.host));
        }
        let _ = url.set_port(Some(self.port));
        let _ = url.set_username(&self.user);
        if let Ok(mut path) = url.path_segments_mut() {
            path.push(&self.database);
        }
        if self.ssl_mode > SslMode::Prefer {
            url.query_pairs_mut().append_pair("sslmode", self.ssl_mode.as_str());
        }
        url
    }
}

/// Whether a host is this machine by address.
pub(crate) fn is_loopback(host: &str) -> bool {
    host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base_url().as_str())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}
