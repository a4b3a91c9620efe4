//! What went wrong between us and a server, in words.
//!
//! `tokio_postgres::Error` displays only `db error`; it is converted here, at the edge.

use std::error::Error as _;

/// An error of the server's own: the fields of its ErrorResponse that help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// Five characters, PostgreSQL appendix A.
    pub sqlstate: String,
    pub severity: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// 1-based position in characters in the statement that was sent.
    pub position: Option<u32>,
    /// The call stack inside functions.
    pub context: Option<String>,
}

impl std::fmt::Display for SqlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

/// What to do about a server that takes no more sessions.
pub(crate) const FULL_HINT: &str = "raise the role's `connection limit` or the server's `max_connections`, or wait until others have left";

/// Why a session could not be opened or a statement not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect to `{target}`: {reason}")]
    Connect { target: String, reason: String },
    #[error("log in to `{target}`: {error}")]
    Login { target: String, error: SqlError },
    #[error("{0}")]
    Sql(Box<SqlError>),
    #[error("the connection to the server ended: {reason}")]
    Closed { reason: String },
    #[error("TLS with `{target}`: {problem}")]
    Tls { target: String, problem: TlsProblem },
    #[error("read `{path}` for TLS: {reason}")]
    Certificate { path: String, reason: String },
    #[error("no answer from `{target}` within {seconds} s")]
    Timeout { target: String, seconds: u64 },
    #[error("unexpected answer of the server: {reason}")]
    Protocol { reason: String },
}

/// Why there is no connection that may be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsProblem {
    #[error("the server does not speak it")]
    Plaintext,
    #[error("no authority that is trusted here signed the server's certificate")]
    UnknownIssuer,
    #[error("the server's certificate is not for `{host}`")]
    WrongName { host: String },
    #[error("the server's certificate has expired")]
    Expired,
    #[error("{reason}")]
    Other { reason: String },
}

impl TlsProblem {
    /// What in `error`, or in what it came from, is TLS's; `None` when nothing is.
    pub(super) fn find(error: &tokio_postgres::Error, host: &str) -> Option<Self> {
        use rustls::CertificateError as Certificate;
        if chain(error).contains("server does not support TLS") {
            return Some(Self::Plaintext);
        }
        let mut source = error.source();
        while let Some(inner) = source {
            let wrapped = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            let found = wrapped
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                .or_else(|| inner.downcast_ref::<rustls::Error>());
            if let Some(error) = found {
                return Some(match error {
                    rustls::Error::InvalidCertificate(Certificate::UnknownIssuer) => {
                        Self::UnknownIssuer
                    }
                    rustls::Error::InvalidCertificate(
                        Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
                    ) => Self::WrongName { host: host.to_owned() },
                    rustls::Error::InvalidCertificate(
                        Certificate::Expired | Certificate::ExpiredContext { .. },
                    ) => Self::Expired,
                    other => Self::Other { reason: other.to_string() },
                });
            }
            source = inner.source();
        }
        None
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Plaintext => {
                "turn on `ssl` on the server; or, where nobody listens between, \
                 `database.sslmode = \"disable\"`, in a URL `?sslmode=disable`"
            }
            Self::UnknownIssuer => {
                "name the file with the authority's certificate: `database.sslrootcert = \"PATH\"`, in a \
                 URL `?sslrootcert=PATH`; `?sslmode=require` trusts whoever answers"
            }
            Self::WrongName { .. } => {
                "connect by a name that the certificate is for; `database.sslmode = \"verify-ca\"` \
                 asks for no name"
            }
            Self::Expired | Self::Other { .. } => return None,
        };
        Some(text.to_owned())
    }
}

/// Whether a program of PostgreSQL's says that the server takes no more sessions (53300): libpq passes on
/// only the words.
pub fn says_full(text: &str) -> bool {
    const FULL: [&str; 3] =
        ["too many connections for", "too many clients", "remaining connection slots"];
    FULL.iter().any(|words| text.contains(words))
}

impl Error {
    /// At most one thing to do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Tls { problem, .. } => problem.hint().into_iter().collect(),
            Self::Login { error, .. } if matches!(error.sqlstate.as_str(), "28P01" | "28000") => {
                vec![
                    "check `database.user` and `database.password`, in Flyway's files `flyway.user` and \
                     `flyway.password`"
                        .to_owned(),
                ]
            }
            Self::Login { .. } if self.is_full() => vec![FULL_HINT.to_owned()],
            Self::Login { error, .. } if error.sqlstate == "55000" => vec![
                "a run may have closed it and been killed: `seedbed up` opens what is its own"
                    .to_owned(),
            ],
            Self::Connect { .. }
            | Self::Login { .. }
            | Self::Sql(_)
            | Self::Closed { .. }
            | Self::Certificate { .. }
            | Self::Timeout { .. }
            | Self::Protocol { .. } => Vec::new(),
        }
    }

    /// The SQLSTATE, when the server sent one.
    pub fn sqlstate(&self) -> Option<&str> {
        self.sql().map(|error| error.sqlstate.as_str())
    }

    /// Whether the server, the database or the role has as many sessions as it may (53300).
    pub fn is_full(&self) -> bool {
        self.sqlstate() == Some("53300")
    }

    /// The server's own error, when there is one.
    pub fn sql(&self) -> Option<&SqlError> {
        match self {
            Self::Sql(error) => Some(error),
            Self::Login { error, .. } => Some(error),
            Self::Connect { .. }
            | Self::Closed { .. }
            | Self::Tls { .. }
            | Self::Certificate { .. }
            | Self::Timeout { .. }
            | Self::Protocol { .. } => None,
        }
    }
}

pub(super) fn sql_error(error: &tokio_postgres::Error) -> Option<SqlError> {
    let db = error.as_db_error()?;
    let position = match db.position() {
        Some(tokio_postgres::error::ErrorPosition::Original(at)) => Some(*at),
        Some(tokio_postgres::error::ErrorPosition::Internal { .. }) | None => None,
    };
    Some(SqlError {
        sqlstate: db.code().code().to_owned(),
        severity: db.severity().to_owned(),
        message: db.message().to_owned(),
        detail: db.detail().map(str::to_owned),
        hint: db.hint().map(str::to_owned),
        position,
        context: db.where_().map(str::to_owned),
    })
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(sql) = sql_error(&error) {
            return Self::Sql(Box::new(sql));
        }
        let reason = chain(&error);
        if error.is_closed() || error.source().is_some_and(|source| source.is::<std::io::Error>()) {
            return Self::Closed { reason };
        }
        Self::Protocol { reason }
    }
}

/// An error and its causes in one line. TLS errors hide what matters in their source.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
