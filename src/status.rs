//! What there is right now: `status`, and `psql` on it.

use std::process::Stdio;

use serde::Serialize;

use crate::connect;
use crate::context::Context;
use crate::database::{self, MadeBy, Origin};
use crate::engine::{self, Rung, Server};
use crate::error::Error;
use crate::lend;
use crate::migrate;
use crate::pg::names::DatabaseName;
use crate::pg::tools::Tools;
use crate::pg::{Session, Target};

/// Server, database, schema version, pending scripts, origin.
#[derive(Debug, Serialize)]
pub struct Status {
    pub environment: String,
    /// `None`: the default environment.
    pub branch: Option<String>,
    /// `None`: no server of this project runs and the environment names none.
    pub server: Option<ServerStatus>,
    /// `None`: the server has no such database.
    pub database: Option<DatabaseStatus>,
}

#[derive(Debug, Serialize)]
pub struct ServerStatus {
    pub kind: String,
    pub host: String,
    pub port: u16,
    pub version: String,
    /// What a reset clones here; `None`: the server is not this project's to replace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets: Option<Rung>,
}

#[derive(Debug, Serialize)]
pub struct DatabaseStatus {
    pub name: String,
    pub url: String,
    pub schema_version: Option<String>,
    pub pending: Vec<String>,
    pub size_bytes: i64,
    /// `None` for a database that seedbed did not make.
    pub origin: Option<Origin>,
    pub made_at: Option<String>,
    /// Built, or a clone of a template or of an image.
    pub made_by: Option<MadeBy>,
    /// The image that it was cloned from, as `images list` names it; it may be gone by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When the contents of what it was cloned from were built.
    pub built_at: Option<String>,
    /// How much it has grown since it became live; negative where it has shrunk.
    pub grown_bytes: Option<i64>,
    /// How many databases are lent beside it.
    pub lent: usize,
}

/// Looks; changes nothing.
///
/// # Errors
/// What the files, the engine or the server said.
pub async fn status(ctx: &Context) -> Result<Status, Error> {
    let environment = ctx.config.environment.clone();
    let branch = ctx.config.branch.as_ref().map(|branch| branch.name().to_owned());
    let nothing = |server| Status {
        environment: environment.clone(),
        branch: branch.clone(),
        server,
        database: None,
    };
    let mut ours = false;
    let (server, target) = match connect::running(ctx).await? {
        Some(server) => {
            ours = server.started_by_us;
            let target = connect::owner(ctx, &server, &ctx.config.database.name);
            let maintenance = server.admin.clone();
            (Some((server.kind.as_str().to_owned(), maintenance)), target)
        }
        None if ctx.config.database.named => (None, ctx.config.database.target()),
        None => return Ok(nothing(None)),
    };
    let (kind, maintenance) = server.unwrap_or_else(|| ("external".to_owned(), target.clone()));
    let session = match Session::connect(&maintenance).await {
        Ok(session) => session,
        Err(error) if error.sqlstate() == Some(NO_SUCH_DATABASE) => {
            return Ok(nothing(None));
        }
        // A local server that nobody started is a state, not an error.
        Err(crate::pg::Error::Connect { .. }) if target.is_loopback() => {
            return Ok(nothing(None));
        }
        Err(error) => return Err(Error::Server(error)),
    };
    let version = query_text(&session, "show server_version").await?;
    let all = database::list(&session).await?;
    session.close().await;
    let lent = lend::count(&all, &target.database);
    let found = all.into_iter().find(|found| found.name == target.database);
    let engine = if ours { engine::chosen_before(ctx).await? } else { None };
    let resets = match engine {
        // What cannot be looked at now is no reason not to show the rest.
        Some(engine) => engine.rung(ctx).await.ok(),
        None => None,
    };
    let (host, port) = (target.host.clone(), target.port);
    let mut server = ServerStatus { kind, host, port, version, resets };
    let Some(found) = found else {
        return Ok(nothing(Some(server)));
    };
    let names = DatabaseName::live(&target.database);
    let scripts = migrate::resolve(ctx, &names, &target.user)?;
    let session = connect::session(&target).await?;
    let size = session
        .query_one("select pg_database_size(current_database())", &[])
        .await
        .map_err(|error| Error::Database { what: "measure the database".to_owned(), error })?;
    session.close().await;
    let info = migrate::info(ctx, &target, &scripts).await?;
    let size_bytes: i64 = size.get(0);
    let marker = found.marker.as_ref();
    let bytes = marker.and_then(|marker| i64::try_from(marker.bytes?).ok());
    // What was frozen counts, not what has become of it.
    let frozen = u64::try_from(bytes.unwrap_or(size_bytes)).unwrap_or_default();
    let least = ctx.config.images.min_size;
    server.resets = server.resets.map(|rung| rung.for_size(frozen, least));
    Ok(Status {
        database: Some(DatabaseStatus {
            name: found.name,
            url: target.to_string(),
            schema_version: info.schema_version.clone(),
            pending: pending(&info),
            size_bytes,
            origin: marker.and_then(|marker| marker.origin.clone()),
            made_at: marker.map(|marker| marker.made_at.clone()),
            made_by: marker.and_then(|marker| marker.made_by),
            image: marker
                .filter(|marker| marker.made_by == Some(MadeBy::Image))
                .and_then(|marker| marker.fingerprint.clone()),
            built_at: marker.and_then(|marker| marker.built_at.clone()),
            grown_bytes: bytes.map(|bytes| size_bytes - bytes),
            lent,
        }),
        ..nothing(Some(server))
    })
}

fn pending(info: &migrate::Info) -> Vec<String> {
    info.migrations
        .iter()
        .filter(|row| row.state == migrate::State::Pending.name())
        .map(|row| match &row.version {
            Some(version) => format!("{version} {}", row.description),
            None => row.description.clone(),
        })
        .collect()
}

const NO_SUCH_DATABASE: &str = "3D000";

/// The server's major version.
///
/// # Errors
/// What the server said.
pub(crate) async fn major(session: &Session) -> Result<u32, Error> {
    let text = query_text(session, "select current_setting('server_version_num')").await?;
    let number: u32 = text.parse().map_err(|_| Error::Database {
        what: "read the server's version".to_owned(),
        error: crate::pg::Error::Protocol { reason: format!("`{text}` is no number") },
    })?;
    Ok(number / 10_000)
}

async fn query_text(session: &Session, sql: &str) -> Result<String, Error> {
    let row = session
        .query_one(sql, &[])
        .await
        .map_err(|error| Error::Database { what: format!("run `{sql}`"), error })?;
    Ok(row.get(0))
}

/// Opens psql on `target`, in this terminal; returns its exit code.
///
/// # Errors
/// When there is no psql, neither here nor with the engine.
pub async fn psql(
    ctx: &Context,
    server: Option<&Server>,
    target: &Target,
    arguments: &[String],
) -> Result<u8, Error> {
    let found;
    let tools = match server {
        Some(server) => &server.tools,
        None => {
            let session = connect::session(target).await?;
            found = Tools::find(ctx, major(&session).await?).await?;
            session.close().await;
            &found
        }
    };
    let command = tools.interactive(ctx, "psql", arguments.to_vec(), target).await?;
    let program = command.program.clone();
    let mut child = tokio::process::Command::new(&command.program);
    child.args(&command.args).envs(command.env.iter().map(|(name, value)| (name, value)));
    child.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let status = child
        .status()
        .await
        .map_err(|error| Error::CommandLine(format!("run `{program}`: {error}")))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
