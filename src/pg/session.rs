//! One connection to one database.
//!
//! A session owns the task that drives its socket; dropping the session ends both. Every connect
//! has a deadline. Notices of the server go to the callback given at the start.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use secrecy::ExposeSecret;
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Row, SimpleQueryMessage};

use super::error::{Error, SqlError, TlsProblem, chain, sql_error};
use super::target::{SslMode, Target};
use super::tls;

/// A server on loopback answers in milliseconds, one across an ocean in one second; ten covers TLS
/// to a busy one.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A peer that is gone without a word: asked after a minute of silence, given up a minute later.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 6;
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);

/// Cancelling opens a connection of its own; on a line that stalls nothing is lost by giving up.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// A message that the server sent beside its answers.
#[derive(Debug, Clone)]
pub struct Notice {
    pub severity: String,
    pub message: String,
}

/// Takes the notices of a session.
pub type OnNotice = Arc<dyn Fn(Notice) + Send + Sync>;

/// One open connection.
pub struct Session {
    client: tokio_postgres::Client,
    driver: JoinHandle<()>,
    target: Target,
    tls: tls::Connector,
    /// The server's last words, when it ended the connection itself.
    last_words: Arc<OnceLock<SqlError>>,
}

impl Session {
    /// Opens a session; its notices are dropped.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Login`], [`Error::Tls`], [`Error::Certificate`],
    /// [`Error::Timeout`].
    pub async fn connect(target: &Target) -> Result<Self, Error> {
        Self::connect_with(target, Arc::new(|_| {})).await
    }

    /// Opens a session whose notices go to `on_notice`.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn connect_with(target: &Target, on_notice: OnNotice) -> Result<Self, Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&target.host)
            .port(target.port)
            .dbname(&target.database)
            .user(&target.user)
            .application_name("seedbed")
            .connect_timeout(CONNECT_DEADLINE)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .ssl_mode(match target.ssl_mode {
                SslMode::Disable => tokio_postgres::config::SslMode::Disable,
                SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
                SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                    tokio_postgres::config::SslMode::Require
                }
            });
        if let Some((_, name)) = target.settings.iter().find(|one| one.0 == "application_name") {
            config.application_name(name);
        }
        #[cfg(target_os = "linux")]
        config.tcp_user_timeout(UNACKNOWLEDGED);
        if let Some(password) = &target.password {
            config.password(password.expose_secret());
        }
        if !target.settings.is_empty() {
            config.options(start_options(&target.settings));
        }
        let tls = tls::connector(target)?;
        let connected = tokio::time::timeout(CONNECT_DEADLINE, config.connect(tls.clone()))
            .await
            .map_err(|_| Error::Timeout {
            target: target.to_string(),
            seconds: CONNECT_DEADLINE.as_secs(),
        })?;
        let (client, mut connection) = connected.map_err(|error| {
            let to = target.to_string();
            match (sql_error(&error), TlsProblem::find(&error, &target.host)) {
                (Some(error), _) => Error::Login { target: to, error },
                (None, Some(problem)) => Error::Tls { target: to, problem },
                (None, None) => Error::Connect { target: to, reason: chain(&error) },
            }
        })?;
        let last_words = Arc::new(OnceLock::new());
        let heard = last_words.clone();
        let driver = tokio::spawn(async move {
            let mut messages = futures_util::stream::poll_fn(|cx| connection.poll_message(cx));
            loop {
                match messages.next().await {
                    Some(Ok(AsyncMessage::Notice(notice))) => on_notice(Notice {
                        severity: notice.severity().to_owned(),
                        message: notice.message().to_owned(),
                    }),
                    Some(Ok(_)) => {}
                    // An error ends the connection. What is said to an idle session nobody has asked
                    // for: its next call reports it.
                    Some(Err(error)) => {
                        if let Some(sql) = sql_error(&error) {
                            let _ = heard.set(sql);
                        }
                        break;
                    }
                    None => break,
                }
            }
        });
        Ok(Self { client, driver, target: target.clone(), tls, last_words })
    }

    /// A connection that is closed tells only that; the server has told why.
    fn failed(&self, error: tokio_postgres::Error) -> Error {
        match (Error::from(error), self.last_words.get()) {
            (Error::Closed { .. }, Some(sql)) => Error::Sql(Box::new(sql.clone())),
            (error, _) => error,
        }
    }

    /// Where this session is connected.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Runs statements that return nothing of interest, as one simple query. No parameters.
    ///
    /// # Errors
    /// What the server said; positions count from the start of `sql`.
    pub async fn batch(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(|error| self.failed(error))
    }

    /// Runs `sql` as a simple query and returns all of its messages.
    ///
    /// # Errors
    /// What the server said.
    pub async fn simple(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
        self.client.simple_query(sql).await.map_err(|error| self.failed(error))
    }

    /// Runs one statement with bound values; returns the number of rows it touched.
    ///
    /// # Errors
    /// What the server said.
    pub async fn execute(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.client.execute(sql, values).await.map_err(|error| self.failed(error))
    }

    /// Runs one query with values of these types, in one round trip: nothing is prepared first.
    ///
    /// # Errors
    /// What the server said.
    pub async fn ask(
        &self,
        sql: &str,
        values: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Error> {
        self.client.query_typed(sql, values).await.map_err(|error| self.failed(error))
    }

    /// Opens a pipeline on this session.
    pub fn pipeline(&self) -> Pipeline<'_> {
        Pipeline { session: self, answers: VecDeque::new() }
    }

    /// # Errors
    /// What the server said.
    pub async fn query(
        &self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.client.query(sql, values).await.map_err(|error| self.failed(error))
    }

    /// The one row of a query that returns exactly one.
    ///
    /// # Errors
    /// What the server said; [`Error::Protocol`] for another number of rows.
    pub async fn query_one(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        self.client.query_one(sql, values).await.map_err(|error| self.failed(error))
    }

    /// # Errors
    /// What the server said; [`Error::Protocol`] for more than one row.
    pub async fn query_opt(
        &self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error> {
        self.client.query_opt(sql, values).await.map_err(|error| self.failed(error))
    }

    /// Runs `copy … to stdout`; each item is one message of the protocol (a row, in text format).
    /// The stream ends with the server's CopyDone, which comes after the last row: one that is cut before it
    /// ends with an error. How many rows were sent is not told.
    ///
    /// # Errors
    /// What the server said.
    pub async fn copy_out(
        &self,
        sql: &str,
    ) -> Result<impl futures_util::Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let rows = self.client.copy_out(sql).await.map_err(|error| self.failed(error))?;
        Ok(rows.map_err(Error::from))
    }

    /// Runs several `copy … to stdout`, asked for at once: two round trips for all of them. They come in the
    /// order of `statements`, the rows of each as with [`Self::copy_out`]; one has to be read to its end, or
    /// dropped, before the next one comes.
    ///
    /// # Errors
    /// What the server said to one of the statements; to its copying it answers in its turn.
    pub async fn copies_out(
        &self,
        statements: &[String],
    ) -> Result<
        Pipeline<'_, impl futures_util::Stream<Item = Result<Bytes, Error>> + Send + use<>>,
        Error,
    > {
        let prepared = statements.iter().map(|sql| self.client.prepare(sql));
        let prepared = futures_util::future::try_join_all(prepared).await;
        let prepared = prepared.map_err(|error| self.failed(error))?;
        let mut copies = Pipeline { session: self, answers: VecDeque::new() };
        // Sent in this order and no other: what comes for one that is not read yet keeps everything behind it
        // from coming. Left to themselves one whose preparing is answered while it is asked for would overtake
        // those that wait for their turn.
        for statement in prepared {
            let rows = async move {
                let rows = self.client.copy_out(&statement).await;
                Ok(rows.map_err(|error| self.failed(error))?.map_err(Error::from))
            };
            copies.send(rows).await;
        }
        Ok(copies)
    }

    /// Runs `copy … from stdin` with the blocks that `data` yields; returns the rows taken.
    /// After an error the session must be dropped (rust-postgres #789).
    ///
    /// # Errors
    /// What the server said, or what `data` failed with.
    pub async fn copy_in<S, E>(&self, sql: &str, data: S) -> Result<u64, E>
    where
        S: futures_util::Stream<Item = Result<Bytes, E>> + Send,
        E: From<Error>,
    {
        let sink = self.client.copy_in::<_, Bytes>(sql).await.map_err(Error::from)?;
        let mut sink = std::pin::pin!(sink);
        let mut data = std::pin::pin!(data);
        while let Some(block) = data.next().await {
            // Dropping the sink on an error sends CopyFail.
            sink.send(block?).await.map_err(Error::from)?;
        }
        Ok(sink.finish().await.map_err(Error::from)?)
    }

    /// A handle that cancels whatever this session is running, usable from another task.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle { token: self.client.cancel_token(), tls: self.tls.clone() }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Ends the session and waits until the server has been told.
    pub async fn close(self) {
        let Self { client, driver, .. } = self;
        drop(client);
        // Terminate is sent by the driver before it ends; a dead socket ends it as well.
        let _ = tokio::time::timeout(Duration::from_secs(5), driver).await;
    }
}

/// Statements that are sent without waiting for the answers to those before.
///
/// Answers come in the order of sending. Inside of a transaction the first failure is the one that
/// counts: what was sent after it is refused by the server.
pub struct Pipeline<'a, T = ()> {
    session: &'a Session,
    answers: VecDeque<Answer<'a, T>>,
}

enum Answer<'a, T> {
    Awaited(Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>),
    /// It was there at once, most often because the connection is gone.
    Here(Result<T, Error>),
}

impl Pipeline<'_> {
    /// Sends statements as one simple query. `false`: they did not go out, and the next answers
    /// say why.
    pub async fn batch(&mut self, sql: String) -> bool {
        let session = self.session;
        self.send(async move { session.batch(&sql).await }).await
    }
}

impl<'a, T> Pipeline<'a, T> {
    /// Sends what `request` asks of this pipeline's session, once. `false` as with
    /// [`Pipeline::batch`].
    pub async fn send(
        &mut self,
        request: impl Future<Output = Result<T, Error>> + Send + 'a,
    ) -> bool {
        let mut request: Pin<Box<dyn Future<Output = _> + Send + 'a>> = Box::pin(request);
        // The client sends when it is polled first.
        let answer = match futures_util::poll!(request.as_mut()) {
            Poll::Ready(result) => Answer::Here(result),
            Poll::Pending => Answer::Awaited(request),
        };
        let is_sent = !matches!(answer, Answer::Here(Err(_)));
        self.answers.push_back(answer);
        is_sent
    }

    /// How many answers are still to come.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// The next answer; `None` when all are here. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        if let Some(Answer::Awaited(request)) = self.answers.front_mut() {
            let result = request.as_mut().await;
            self.answers.pop_front();
            return Some(result);
        }
        match self.answers.pop_front() {
            Some(Answer::Here(result)) => Some(result),
            Some(Answer::Awaited(_)) | None => None,
        }
    }
}

/// Cancels a session's statement from elsewhere.
#[derive(Clone)]
pub struct CancelHandle {
    token: tokio_postgres::CancelToken,
    tls: tls::Connector,
}

impl CancelHandle {
    /// Asks the server to cancel; the statement then fails with SQLSTATE 57014.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn cancel(&self) -> Result<(), Error> {
        let cancelled = self.token.cancel_query(self.tls.clone());
        match tokio::time::timeout(CANCEL_DEADLINE, cancelled).await {
            Ok(cancelled) => Ok(cancelled?),
            Err(_) => Err(Error::Closed { reason: "it does not take a cancellation".to_owned() }),
        }
    }
}

pub(super) fn start_options(settings: &[(String, String)]) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(' ', "\\ ");
    settings
        .iter()
        .map(|(name, value)| format!("-c {}={}", escape(name), escape(value)))
        .collect::<Vec<_>>()
        .join(" ")
}
