//! PostgreSQL, as the rest of the program sees it. The only module that names `tokio_postgres`.
//!
//! [`Target`] says where and as whom; [`Session`] is one connection; [`Error`] is what the server or
//! the wire said, already readable. SQL text is taken apart by `lexer`, names are quoted by `quote`.

pub mod error;
pub mod lexer;
pub mod names;
pub mod quote;
pub mod scram;
pub mod session;
pub mod target;
pub mod tls;
pub mod tools;

pub use error::{Error, SqlError, TlsProblem};
pub(crate) use error::{FULL_HINT, says_full};
pub use session::{Notice, Session};
pub use target::{ClientCertificate, SslMode, Target};

pub use tokio_postgres::types::{ToSql, Type};
pub use tokio_postgres::{Row, SimpleQueryMessage};
