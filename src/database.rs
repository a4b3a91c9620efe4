//! Build beside, then swap: the first of the two acts.
//!
//! A [`Scratch`] is a database we made that nobody uses yet: it may be loaded and dropped. A
//! [`Database`] is live: nothing here loads or drops one, only [`swap_in`] replaces it. What we made
//! carries a marker, a comment `seedbed {…}` on the database; nothing without it is ever dropped,
//! and the marker is read in the session that drops.

pub(crate) mod points;

use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::copy::Original;
use crate::engine::{Keep, Server};
use crate::error::Exit;
use crate::lock;
use crate::pg::names::DatabaseName;
use crate::pg::{self, Session, Target, quote};
use crate::report::format::counted;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("interrupted")]
    Interrupted,
    #[error("{what} `{database}`: {error}")]
    Sql { what: &'static str, database: String, error: pg::Error },
    #[error("database `{database}` was not made by seedbed, so it is left as it is")]
    NotOurs { database: String },
    #[error(
        "database `{database}` cannot be replaced: it still has {}",
        counted(gids.len() as u64, "prepared transaction")
    )]
    Prepared { database: String, gids: Vec<String> },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Interrupted => Exit::Interrupted,
            Self::Sql { error, .. } => crate::error::pg_exit(error),
            Self::NotOurs { .. } => Exit::Refused,
            Self::Prepared { .. } => Exit::Database,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Interrupted | Self::Sql { .. } => Vec::new(),
            Self::NotOurs { database } => vec![
                "migrate it where it is with `seedbed migrate`".to_owned(),
                format!("or rename it yourself: `alter database {database} rename to …`"),
            ],
            Self::Prepared { gids, .. } => {
                let end = |gid: &String| {
                    format!("end it with `rollback prepared {}`", quote::literal(gid))
                };
                gids.iter().take(2).map(end).collect()
            }
        }
    }
}

/// What a database of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Being built.
    Scratch,
    /// The one people use.
    Live,
    /// Frozen, to be cloned.
    Template,
    /// Replaced, about to be dropped.
    Retired,
    /// Replaced and kept, to be brought back.
    Kept,
    /// A copy of the live one as it was, to come back to.
    Saved,
    /// A copy that somebody has for a while, beside the live one.
    Lent,
}

/// How a database came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MadeBy {
    /// From its snapshot or files, by the scripts.
    Build,
    /// As a clone of a frozen database.
    Template,
    /// As a clone of a frozen server.
    Image,
    /// As a point that was saved and restored.
    Point,
}

/// For whom and how long a database is lent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// From `made_at` on; `None`: until it is dropped by hand.
    pub ttl_seconds: Option<u64>,
    /// For people: a label, or which process asked.
    pub owner: String,
}

/// Where the rows came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    Snapshot {
        id: String,
        taken_at: String,
        version: Option<String>,
        /// The highest rank of the history that came with the rows: a build has run what is above it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        history_rank: Option<i32>,
    },
    Files,
    Empty,
}

/// The comment that makes a database ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    pub format: u32,
    pub kind: Kind,
    /// Final name of the database that this one is, was or will be.
    pub database: String,
    pub origin: Option<Origin>,
    /// Of templates, and of what was cloned from one.
    pub fingerprint: Option<String>,
    /// The same without the migration scripts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Of templates: the migration history in them, which nobody can connect to read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<Applied>,
    /// Of saved ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<points::Point>,
    /// RFC 3339, by the clock of the machine that ran seedbed.
    pub made_at: String,
    /// `None` in markers of older programs, as what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<MadeBy>,
    /// When its contents were built, where it is a clone of something older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_at: Option<String>,
    /// Its size when it became live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Of what is lent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
}

/// A row of a migration history, as far as it decides which checkouts it fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub rank: i32,
    pub version: Option<String>,
    pub description: String,
    /// The column `type`.
    pub kind: String,
    pub checksum: Option<i32>,
    pub success: bool,
}

const MARKER_FORMAT: u32 = 1;
const MARKER_PREFIX: &str = "seedbed ";

impl Marker {
    fn new(kind: Kind, database: &str) -> Self {
        Self {
            format: MARKER_FORMAT,
            kind,
            database: database.to_owned(),
            origin: None,
            fingerprint: None,
            base: None,
            applied: Vec::new(),
            point: None,
            made_at: jiff::Timestamp::now().to_string(),
            made_by: None,
            built_at: None,
            bytes: None,
            lease: None,
        }
    }

    /// That of a clone made just now.
    pub(crate) fn cloned(&self, kind: Kind, made_by: MadeBy) -> Self {
        Self {
            kind,
            made_by: Some(made_by),
            built_at: Some(self.built_at.clone().unwrap_or_else(|| self.made_at.clone())),
            made_at: jiff::Timestamp::now().to_string(),
            applied: Vec::new(),
            point: None,
            lease: None,
            ..self.clone()
        }
    }

    fn comment(&self) -> String {
        let json = serde_json::to_string(self).expect("a struct of strings serializes");
        format!("{MARKER_PREFIX}{json}")
    }

    fn parse(comment: &str) -> Option<Self> {
        serde_json::from_str(comment.strip_prefix(MARKER_PREFIX)?).ok()
    }
}

/// A database as it was found on a server.
#[derive(Debug, Clone)]
pub struct Found {
    pub name: String,
    pub marker: Option<Marker>,
    pub owner: String,
    pub allows_connections: bool,
}

/// A live database: never loaded into, never dropped.
#[derive(Debug, Clone)]
pub struct Database {
    pub name: String,
    pub marker: Option<Marker>,
}

/// A database that we made and nobody uses yet. It is dropped by [`Scratch::discard`], swapped in, or
/// swept by the next run.
pub struct Scratch {
    name: String,
    marker: Marker,
    admin: Target,
    /// Holds the advisory lock that keeps other runs from sweeping it.
    guard: Session,
}

/// How a new database encodes and sorts text.
#[derive(Debug, Clone, Default)]
pub struct Locale {
    pub encoding: Option<String>,
    pub collate: Option<String>,
    pub ctype: Option<String>,
    /// Where it is not the operating system's.
    pub provider: Option<Provider>,
}

/// What sorts text instead of the operating system, with the name of its locale.
#[derive(Debug, Clone)]
pub enum Provider {
    /// PostgreSQL 15 and later; rules of one's own from 16 on.
    Icu { locale: String, rules: Option<String> },
    /// PostgreSQL 17 and later.
    Builtin { locale: String },
}

impl Locale {
    /// The options of CREATE DATABASE, each with a blank before it.
    fn options(&self) -> String {
        let mut options = Vec::new();
        let mut put = |option: &'static str, value: &Option<String>| {
            options.extend(value.as_ref().map(|value| (option, value.clone())));
        };
        put("encoding", &self.encoding);
        put("lc_collate", &self.collate);
        put("lc_ctype", &self.ctype);
        match &self.provider {
            None => {}
            Some(Provider::Icu { locale, rules }) => {
                put("locale_provider", &Some("icu".to_owned()));
                put("icu_locale", &Some(locale.clone()));
                put("icu_rules", rules);
            }
            Some(Provider::Builtin { locale }) => {
                put("locale_provider", &Some("builtin".to_owned()));
                put("builtin_locale", &Some(locale.clone()));
            }
        }
        options
            .iter()
            .map(|(option, value)| format!(" {option} {}", quote::literal(value)))
            .collect()
    }

    /// As the server's message would name it.
    fn name(&self) -> &str {
        match &self.provider {
            Some(Provider::Icu { locale, .. } | Provider::Builtin { locale }) => locale,
            None => self.collate.as_deref().unwrap_or("?"),
        }
    }
}

/// Looks a database up by name.
///
/// # Errors
/// What the server said.
pub async fn find(session: &Session, name: &str) -> Result<Option<Found>, Error> {
    Ok(list(session).await?.into_iter().find(|found| found.name == name))
}

/// The live database of that name, if there is one, which is ours then.
///
/// # Errors
/// [`Error::NotOurs`]; what the server said.
pub async fn live(session: &Session, name: &str) -> Result<Option<Found>, Error> {
    match find(session, name).await? {
        Some(Found { marker: None, .. }) => Err(Error::NotOurs { database: name.to_owned() }),
        found => Ok(found),
    }
}

/// The same, if it may be replaced. Asked before any work.
///
/// # Errors
/// [`Error::NotOurs`], [`Error::Prepared`]; what the server said.
pub async fn replaceable(session: &Session, name: &str) -> Result<Option<Found>, Error> {
    let found = live(session, name).await?;
    refuse_prepared(session, name).await?;
    Ok(found)
}

/// All databases of the server.
///
/// # Errors
/// What the server said.
pub async fn list(session: &Session) -> Result<Vec<Found>, Error> {
    let rows = session
        .query(
            "select d.datname::text,
                    shobj_description(d.oid, 'pg_database'),
                    pg_get_userbyid(d.datdba)::text,
                    d.datallowconn
             from pg_database d
             order by d.datname",
            &[],
        )
        .await
        .map_err(|error| Error::Sql { what: "look up", database: "*".to_owned(), error })?;
    Ok(rows
        .iter()
        .map(|row| Found {
            name: row.get(0),
            marker: row.get::<_, Option<String>>(1).as_deref().and_then(Marker::parse),
            owner: row.get(2),
            allows_connections: row.get(3),
        })
        .collect())
}

impl Scratch {
    /// Creates an empty database beside the one that will be called `final_name`.
    ///
    /// A locale that the server does not have is replaced by `C` with a warning: rows keep their
    /// bytes, only the order of text differs.
    ///
    /// # Errors
    /// What the server said.
    pub async fn create(
        ctx: &Context,
        server: &Server,
        final_name: &str,
        owner: &str,
        locale: &Locale,
    ) -> Result<Self, Error> {
        let (name, guard) = reserve(server, final_name, "scratch").await?;
        let fail = |error| Error::Sql { what: "create database", database: name.clone(), error };
        let base = format!(
            "create database {} template template0 owner {}",
            quote::ident(&name),
            quote::ident(owner),
        );
        let statement = format!("{base}{}", locale.options());
        match stoppable(ctx, &guard, &statement).await {
            Ok(()) => {}
            // invalid_parameter_value: no such locale; wrong_object_type covers older servers.
            Err(error)
                if matches!(error.sqlstate(), Some("22023" | "42809"))
                    && locale.collate.is_some() =>
            {
                ctx.report.warn(format!(
                    "this server has no locale `{}`; text sorts by `C` here",
                    locale.name(),
                ));
                let encoding = locale.encoding.as_deref().unwrap_or("UTF8");
                let fallback = format!(
                    "{base} encoding {} lc_collate 'C' lc_ctype 'C'",
                    quote::literal(encoding)
                );
                guard.batch(&fallback).await.map_err(fail)?;
            }
            Err(error) => return Err(stopped(ctx, "create database", &name, error)),
        }
        let made_by = Some(MadeBy::Build);
        let marker = Marker { made_by, ..Marker::new(Kind::Scratch, final_name) };
        set_marker(&guard, &name, &marker).await?;
        Ok(Self { name, marker, admin: server.admin.clone(), guard })
    }

    /// Clones a template of ours into a new scratch database.
    ///
    /// # Errors
    /// What the server said.
    pub(crate) async fn clone_of(
        ctx: &Context,
        server: &Server,
        template: &str,
        marker: &Marker,
        owner: &str,
    ) -> Result<Self, Error> {
        let (name, guard) = reserve(server, &marker.database, "scratch").await?;
        // Nobody can connect to a template, unless somebody opened it on purpose: a copy would then fail.
        let fail =
            |error| Error::Sql { what: "clone template", database: template.to_owned(), error };
        block_and_end(&guard, template).await.map_err(fail)?;
        copy(ctx, &guard, server, &name, template, owner).await?;
        let marker = marker.cloned(Kind::Scratch, MadeBy::Template);
        set_marker(&guard, &name, &marker).await?;
        Ok(Self { name, marker, admin: server.admin.clone(), guard })
    }

    /// Makes the live database of that name, which came with the server's data a moment ago and which
    /// nobody has seen, a scratch one; or goes on with the scratch one that came so.
    ///
    /// # Errors
    /// [`Error::NotOurs`] where it lacks our marker; what the server said.
    pub(crate) async fn out_of_sight(server: &Server, final_name: &str) -> Result<Self, Error> {
        let (name, guard) = reserve(server, final_name, "scratch").await?;
        let Some(marker) = find(&guard, final_name).await?.and_then(|found| found.marker) else {
            let is_half =
                |marker: &Marker| marker.kind == Kind::Scratch && marker.database == final_name;
            let half = list(&guard)
                .await?
                .into_iter()
                .find_map(|found| Some((found.name, found.marker.filter(is_half)?)));
            let Some((name, marker)) = half else {
                return Err(Error::NotOurs { database: final_name.to_owned() });
            };
            return Self::again(server, &name, marker.cloned(Kind::Scratch, MadeBy::Image)).await;
        };
        let marker = marker.cloned(Kind::Scratch, MadeBy::Image);
        let fail = |error| Error::Sql {
            what: "take out of sight",
            database: final_name.to_owned(),
            error,
        };
        end_sessions(&guard, final_name).await.map_err(fail)?;
        // One message is one transaction. An image is closed, and so nobody was in it until here.
        let statements = [
            comment_statement(final_name, &marker),
            rename_statement(final_name, &name),
            connections_statement(&name, "true"),
        ];
        guard.batch(&statements.join("; ")).await.map_err(fail)?;
        Ok(Self { name, marker, admin: server.admin.clone(), guard })
    }

    /// Goes on with the scratch database of this name, whose server was stopped with it.
    ///
    /// # Errors
    /// What the server said.
    pub(crate) async fn again(server: &Server, name: &str, marker: Marker) -> Result<Self, Error> {
        let fail = |error| Error::Sql { what: "go on with", database: name.to_owned(), error };
        let guard = Session::connect(&server.admin).await.map_err(fail)?;
        lock::try_database(&guard, name).await.map_err(fail)?;
        let statements = [comment_statement(name, &marker), connections_statement(name, "true")];
        guard.batch(&statements.join("; ")).await.map_err(fail)?;
        Ok(Self { name: name.to_owned(), marker, admin: server.admin.clone(), guard })
    }

    /// The name that it has until it is swapped in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that it is built for.
    pub fn final_name(&self) -> &str {
        &self.marker.database
    }

    /// Both names, for files that are written for the final one.
    pub fn names(&self) -> DatabaseName {
        DatabaseName { final_name: self.marker.database.clone(), actual: self.name.clone() }
    }

    /// Where the superuser reaches it.
    pub fn admin(&self) -> Target {
        self.admin.with_database(&self.name)
    }

    /// Notes on the server what is noted here.
    ///
    /// # Errors
    /// What the server said.
    pub(crate) async fn write_marker(&self) -> Result<(), Error> {
        set_marker(&self.guard, &self.name, &self.marker).await
    }

    /// Notes where its rows came from.
    pub fn set_origin(&mut self, origin: Origin) {
        self.marker.origin = Some(origin);
    }

    /// Notes what it was built from, for templates, and that it is whole as of now.
    pub fn set_fingerprint(&mut self, fingerprint: &str) {
        self.marker.fingerprint = Some(fingerprint.to_owned());
        self.marker.made_at = jiff::Timestamp::now().to_string();
    }

    /// Notes the same without the migration scripts.
    pub fn set_base(&mut self, base: Option<String>) {
        self.marker.base = base;
    }

    /// What its marker says.
    pub fn marker(&self) -> &Marker {
        &self.marker
    }

    /// The session that holds its lock; connected to the maintenance database.
    pub(crate) fn session(&self) -> &Session {
        &self.guard
    }

    /// Lets go of it: something else has become of it, under another name.
    pub(crate) async fn release(self) {
        self.guard.close().await;
    }

    /// Leaves it up for somebody to look at: marked live under the name that it has, so that no
    /// later run sweeps it.
    ///
    /// # Errors
    /// What the server said.
    pub async fn keep(self) -> Result<(), Error> {
        let marker =
            Marker { kind: Kind::Live, database: self.name.clone(), ..self.marker.clone() };
        set_marker(&self.guard, &self.name, &marker).await?;
        self.guard.close().await;
        Ok(())
    }

    /// Drops it.
    ///
    /// # Errors
    /// What the server said.
    pub async fn discard(self) -> Result<(), Error> {
        let Self { name, guard, admin, .. } = self;
        let dropped = drop_marked(&guard, &name, &[Kind::Scratch]).await;
        guard.close().await;
        let Err(Error::Sql { .. }) = dropped else { return dropped };
        // The server signals a cancelled statement twice, and the second signal may have met the drop: a
        // new session has nothing to be cancelled.
        let fresh = Session::connect(&admin).await.map_err(|error| Error::Sql {
            what: "drop database",
            database: name.clone(),
            error,
        })?;
        let dropped = drop_marked(&fresh, &name, &[Kind::Scratch]).await;
        fresh.close().await;
        dropped
    }
}

/// Makes `scratch` the live database. Sessions of the one that it replaces are ended; the two renames
/// are one transaction; only then is the old one dropped, or the one that was kept before it.
///
/// # Errors
/// [`Error::NotOurs`] when a live database of that name lacks our marker. On any error the old
/// database is as it was.
pub async fn swap_in(ctx: &Context, scratch: Scratch, keep: Keep) -> Result<Database, Error> {
    match replace(ctx, &scratch, keep).await {
        Ok(database) => {
            scratch.guard.close().await;
            Ok(database)
        }
        Err(error) => {
            if let Err(left) = scratch.discard().await {
                ctx.report.detail(format!("the next run removes what is left: {left}"));
            }
            Err(error)
        }
    }
}

async fn replace(ctx: &Context, scratch: &Scratch, keep: Keep) -> Result<Database, Error> {
    let final_name = scratch.final_name().to_owned();
    let session = &scratch.guard;
    let fail = |error| stopped(ctx, "swap in database", &final_name, error);
    end_sessions(session, &scratch.name).await.map_err(fail)?;
    let bytes = Some(size_of(session, &scratch.name).await.map_err(fail)?);
    let marker = Marker { kind: Kind::Live, bytes, ..scratch.marker.clone() };
    let old = match find(session, &final_name).await? {
        Some(Found { marker: None, .. }) => return Err(Error::NotOurs { database: final_name }),
        Some(Found { marker: Some(marker), .. }) => {
            refuse_prepared(session, &final_name).await?;
            let (kind, word) = match keep {
                Keep::Yes => (Kind::Kept, "kept"),
                Keep::No => (Kind::Retired, "retired"),
            };
            Some((unique_name(&final_name, word), Marker { kind, ..marker }))
        }
        None => None,
    };
    let swap = Swap { ctx, session, live: &final_name, scratch: &scratch.name };
    let Some((retired, retired_marker)) = old else {
        swap.run(&marker, None).await.map_err(fail)?;
        return Ok(Database { name: final_name, marker: Some(marker) });
    };
    swap.retire(&marker, &retired, &retired_marker).await.map_err(fail)?;
    let mut leftovers = kept(session, &final_name).await?;
    match keep {
        Keep::No => leftovers.push(retired),
        Keep::Yes => leftovers.retain(|name| *name != retired),
    }
    for name in &leftovers {
        if let Err(error) = drop_marked(session, name, &[Kind::Retired, Kind::Kept]).await {
            // The new one is live: what is left of an old one must not make this run a failure.
            ctx.report.warn(format!("the replaced database stays as `{name}`: {error}"));
        }
    }
    Ok(Database { name: final_name, marker: Some(marker) })
}

/// The databases that were kept of this name.
async fn kept(session: &Session, final_name: &str) -> Result<Vec<String>, Error> {
    let found = list(session).await?.into_iter().filter(|found| {
        found
            .marker
            .as_ref()
            .is_some_and(|marker| marker.kind == Kind::Kept && marker.database == final_name)
    });
    Ok(found.map(|found| found.name).collect())
}

/// Makes the database that was kept live again; the live one is kept in its place. `false`: none was
/// kept on this server.
///
/// # Errors
/// What the server said; the live database is then as it was.
pub async fn bring_back(ctx: &Context, session: &Session, final_name: &str) -> Result<bool, Error> {
    let found = list(session).await?;
    let of = |kind: Kind| {
        found.iter().find_map(|found| {
            let marker = found.marker.clone()?;
            let fits = marker.kind == kind && marker.database == final_name;
            fits.then(|| (found.name.clone(), marker))
        })
    };
    let (Some((kept, marker)), Some((_, live))) = (of(Kind::Kept), of(Kind::Live)) else {
        return Ok(false);
    };
    refuse_prepared(session, final_name).await?;
    let fail = |error| stopped(ctx, "swap in database", final_name, error);
    end_sessions(session, &kept).await.map_err(fail)?;
    let swap = Swap { ctx, session, live: final_name, scratch: &kept };
    let marker = Marker { kind: Kind::Live, ..marker };
    let retired = Marker { kind: Kind::Kept, ..live };
    swap.retire(&marker, &unique_name(final_name, "kept"), &retired).await.map_err(fail)?;
    // It may have been closed to be replaced.
    allow_connections(session, final_name, "true").await.map_err(fail)?;
    Ok(true)
}

/// How many others are connected to a database.
///
/// # Errors
/// What the server said.
pub(crate) async fn sessions(session: &Session, name: &str) -> Result<i64, pg::Error> {
    let sql = "select count(*) from pg_stat_activity
               where datname = $1 and backend_type = 'client backend'";
    Ok(session.query_one(sql, &[&name]).await?.get(0))
}

/// Tells whose sessions were ended.
pub(crate) fn note_ended(ctx: &Context, ended: i64, name: &str) {
    if ended > 0 {
        let sessions = counted(ended.unsigned_abs(), "session");
        ctx.report.note(format!("ended {sessions} on `{name}`"));
    }
}

/// What the server's error means: the statement that Ctrl-C cancelled is no failure of the server.
pub(crate) fn stopped(
    ctx: &Context,
    what: &'static str,
    database: &str,
    error: pg::Error,
) -> Error {
    if ctx.cancel.is_cancelled() && error.sqlstate() == Some(CANCELLED) {
        return Error::Interrupted;
    }
    Error::Sql { what, database: database.to_owned(), error }
}

/// SQLSTATE of a statement that was cancelled.
const CANCELLED: &str = "57014";

/// Runs statements until they end or the user asks to stop; then the server is told to cancel them, and
/// its answer is awaited: the session can be used on, and nothing goes on behind our back.
pub(crate) async fn stoppable(
    ctx: &Context,
    session: &Session,
    sql: &str,
) -> Result<(), pg::Error> {
    let mut work = std::pin::pin!(session.batch(sql));
    tokio::select! {
        biased;
        result = &mut work => return result,
        () = ctx.cancel.cancelled() => {}
    }
    // A server that cannot be reached any more ends the statement in its own way.
    let _ = session.cancel_handle().cancel().await;
    work.await
}

/// SQLSTATE of a database that somebody is connected to.
pub(crate) const IN_USE: &str = "55006";

/// The two renames.
struct Swap<'a> {
    ctx: &'a Context,
    session: &'a Session,
    live: &'a str,
    scratch: &'a str,
}

/// Somebody else's open `alter database` is waited for no longer than this.
const SWAP_LOCK_TIMEOUT: &str = "30s";

impl Swap<'_> {
    /// Ends the live database's sessions, says how many, and renames both. `live` and `retired` are the
    /// markers that they have afterwards.
    async fn retire(&self, live: &Marker, name: &str, retired: &Marker) -> Result<(), pg::Error> {
        let retire = Some((name, retired));
        let mut ended = end_sessions(self.session, self.live).await?;
        let mut swapped = self.run(live, retire).await;
        if swapped.as_ref().is_err_and(|error| error.sqlstate() == Some(IN_USE)) {
            // Somebody connects again faster than the rename locks: only then is the door closed before
            // it, because a run that is killed here leaves it closed until the next one.
            let swapping = async {
                ended += block_and_end(self.session, self.live).await?;
                self.run(live, retire).await
            };
            swapped = swapping.await;
            if swapped.is_err() {
                // Back to what was: an error here adds nothing to the first.
                let _ = allow_connections(self.session, self.live, "true").await;
            }
        }
        swapped?;
        note_ended(self.ctx, ended, self.live);
        Ok(())
    }

    /// One transaction: a run that is killed or stopped in it has changed nothing. `retire`: the name
    /// and the marker of the database that is replaced, if there is one.
    async fn run(&self, live: &Marker, retire: Option<(&str, &Marker)>) -> Result<(), pg::Error> {
        let mut sql = Vec::new();
        if let Some((name, marker)) = retire {
            sql.push(comment_statement(self.live, marker));
            sql.push(rename_statement(self.live, name));
        }
        sql.push(comment_statement(self.scratch, live));
        sql.push(rename_statement(self.scratch, self.live));
        self.session
            .batch(&format!("begin; set local lock_timeout = '{SWAP_LOCK_TIMEOUT}'"))
            .await?;
        let renamed = async {
            for statement in &sql {
                stoppable(self.ctx, self.session, statement).await?;
            }
            self.session.batch("commit").await
        };
        let renamed = renamed.await;
        if renamed.is_err() {
            // The first error is the one that counts.
            let _ = self.session.batch("rollback").await;
        }
        renamed
    }
}

/// Puts right what a killed run may have left: opens a live database that a swap had closed, drops
/// scratch and retired databases that nobody builds any more. Says what it did; one that cannot be
/// dropped is in nobody's way.
///
/// # Errors
/// What the server said.
pub async fn recover(ctx: &Context, server: &Server, final_name: &str) -> Result<(), Error> {
    let session = Session::connect(&server.admin).await.map_err(|error| Error::Sql {
        what: "look after",
        database: final_name.to_owned(),
        error,
    })?;
    for found in list(&session).await? {
        if found.name == final_name {
            open(&session, &found).await?;
            continue;
        }
        // A scratch database is marked right after it was created; killed between the two, it is
        // told by its name, and only on a server that is ours alone.
        let unmarked = found.marker.is_none()
            && server.started_by_us
            && ["scratch", "template", "saved", LENT]
                .iter()
                .any(|kind| found.name.starts_with(&name_stem(final_name, kind)));
        let leftover = unmarked
            || found.marker.as_ref().is_some_and(|marker| {
                marker.database == final_name
                    && matches!(marker.kind, Kind::Scratch | Kind::Retired)
            });
        let fail = |error| Error::Sql { what: "look after", database: found.name.clone(), error };
        if leftover && lock::try_database(&session, &found.name).await.map_err(fail)? {
            // Who makes a database holds its lock until it is marked: that may have been a moment ago.
            let now = find(&session, &found.name).await?;
            if now.is_none_or(|now| now.marker != found.marker) {
                continue;
            }
            match force_drop(&session, &found.name).await {
                Ok(()) => ctx.report.note(format!(
                    "removed `{}`, left over from a run that was cut off",
                    found.name
                )),
                Err(error) => ctx.report.warn(error.to_string()),
            }
        }
    }
    session.close().await;
    Ok(())
}

/// Opens the live database of this name, where a run has kept everybody out of it.
///
/// # Errors
/// What the server said.
pub(crate) async fn let_in(session: &Session, name: &str) -> Result<(), Error> {
    match find(session, name).await? {
        Some(found) => open(session, &found).await,
        None => Ok(()),
    }
}

async fn open(session: &Session, found: &Found) -> Result<(), Error> {
    if found.marker.is_none() || found.allows_connections {
        return Ok(());
    }
    let opened = allow_connections(session, &found.name, "true").await;
    opened.map_err(|error| Error::Sql { what: "open", database: found.name.clone(), error })
}

/// Updates the marker of a live database of ours after its schema was migrated or seeded by files.
///
/// # Errors
/// What the server said.
pub(crate) async fn set_marker(
    session: &Session,
    name: &str,
    marker: &Marker,
) -> Result<(), Error> {
    session.batch(&comment_statement(name, marker)).await.map_err(|error| Error::Sql {
        what: "mark database",
        database: name.to_owned(),
        error,
    })
}

/// Notes how a live database came to be just now; `of`: the fingerprint and the base of what it is a clone of, where
/// they may be other ones than those of the machine that made it.
///
/// # Errors
/// What the server said.
pub(crate) async fn renew(
    session: &Session,
    name: &str,
    made_by: MadeBy,
    of: Option<(&str, Option<&str>)>,
) -> Result<(), Error> {
    let Some(marker) = find(session, name).await?.and_then(|found| found.marker) else {
        return Ok(());
    };
    let bytes = size_of(session, name).await;
    let failed = |error| Error::Sql { what: "measure", database: name.to_owned(), error };
    let bytes = bytes.map_err(failed)?;
    let mut marker = Marker { bytes: Some(bytes), ..marker.cloned(marker.kind, made_by) };
    if let Some((fingerprint, base)) = of {
        marker.fingerprint = Some(fingerprint.to_owned());
        marker.base = base.map(str::to_owned);
    }
    set_marker(session, name, &marker).await
}

/// Bytes of a database.
pub(crate) async fn size_of(session: &Session, name: &str) -> Result<u64, pg::Error> {
    let row = session.query_one("select pg_database_size($1::text::name)", &[&name]).await?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// Drops a database that carries our marker with one of `kinds`; the marker is read in the session
/// that drops.
pub(crate) async fn drop_marked(
    session: &Session,
    name: &str,
    kinds: &[Kind],
) -> Result<(), Error> {
    let Some(found) = find(session, name).await? else { return Ok(()) };
    if !found.marker.is_some_and(|marker| kinds.contains(&marker.kind)) {
        return Err(Error::NotOurs { database: name.to_owned() });
    }
    force_drop(session, name).await
}

/// Copies a database with nobody in it.
///
/// # Errors
/// What the server said.
pub(crate) async fn copy(
    ctx: &Context,
    session: &Session,
    server: &Server,
    name: &str,
    template: &str,
    owner: &str,
) -> Result<(), Error> {
    let fail = |error| stopped(ctx, "copy into database", name, error);
    let mut original = Original::look(session, server, template, owner).await.map_err(fail)?;
    original.copy(ctx, session, name, None).await.map_err(fail)
}

/// Ends all other sessions on a database; returns how many.
pub(crate) async fn end_sessions(session: &Session, name: &str) -> Result<i64, pg::Error> {
    let row = session
        .query_one(
            "select count(pg_terminate_backend(pid))
             from pg_stat_activity
             where datname = $1
               and pid <> pg_backend_pid()",
            &[&name],
        )
        .await?;
    Ok(row.get(0))
}

pub(crate) async fn allow_connections(
    session: &Session,
    name: &str,
    allowed: &str,
) -> Result<(), pg::Error> {
    session.batch(&connections_statement(name, allowed)).await
}

fn connections_statement(name: &str, allowed: &str) -> String {
    format!("alter database {} with allow_connections {allowed}", quote::ident(name))
}

pub(crate) async fn block_and_end(session: &Session, name: &str) -> Result<i64, pg::Error> {
    allow_connections(session, name, "false").await?;
    end_sessions(session, name).await
}

pub(crate) fn rename_statement(from: &str, to: &str) -> String {
    format!("alter database {} rename to {}", quote::ident(from), quote::ident(to))
}

pub(crate) fn comment_statement(name: &str, marker: &Marker) -> String {
    let text = quote::literal(&marker.comment());
    format!("comment on database {} is {text}", quote::ident(name))
}

/// Drops a lent database that nobody is in; the marker is read in the session that drops. `false`:
/// somebody is in it.
///
/// # Errors
/// What the server said.
pub(crate) async fn drop_idle(session: &Session, name: &str) -> Result<bool, Error> {
    let fail = |error| Error::Sql { what: "drop database", database: name.to_owned(), error };
    let Some(found) = find(session, name).await? else { return Ok(true) };
    if !found.marker.is_some_and(|marker| marker.kind == Kind::Lent) {
        return Err(Error::NotOurs { database: name.to_owned() });
    }
    // The server would wait for seconds for those who are in it.
    let sql = "select count(*) from pg_stat_activity where datname = $1";
    let row = session.query_one(sql, &[&name]).await.map_err(fail)?;
    if row.get::<_, i64>(0) > 0 {
        return Ok(false);
    }
    match drop_prepared(session, name, "").await {
        Err(Error::Sql { error, .. }) if error.sqlstate() == Some(IN_USE) => Ok(false),
        dropped => dropped.map(|()| true),
    }
}

/// Drops a database with whoever is in it.
async fn force_drop(session: &Session, name: &str) -> Result<(), Error> {
    drop_prepared(session, name, " with (force)").await
}

/// Takes away what keeps a database from being dropped, then drops it.
async fn drop_prepared(session: &Session, name: &str, options: &str) -> Result<(), Error> {
    let fail = |error| Error::Sql { what: "drop database", database: name.to_owned(), error };
    refuse_prepared(session, name).await?;
    drop_subscriptions(session, name).await.map_err(fail)?;
    // One whose removal was cut off is invalid: it can be dropped and nothing else.
    let template = "select datistemplate from pg_database where datname = $1";
    let row = session.query_opt(template, &[&name]).await.map_err(fail)?;
    if row.is_some_and(|row| row.get(0)) {
        let sql = format!("alter database {} with is_template false", quote::ident(name));
        session.batch(&sql).await.map_err(fail)?;
    }
    // Not for ever: whoever waits for Ctrl-C waits for this.
    session.batch(&format!("set lock_timeout = '{DROP_LOCK_TIMEOUT}'")).await.map_err(fail)?;
    let drop = format!("drop database {}{options}", quote::ident(name));
    let dropped = session.batch(&drop).await.map_err(fail);
    session.batch("reset lock_timeout").await.map_err(fail)?;
    dropped
}

/// Somebody else's open `comment` or copy of a database that is dropped is waited for no longer; the next
/// run drops it then.
const DROP_LOCK_TIMEOUT: &str = "10s";

/// A subscription keeps its database from being dropped, also by force (measured). It is taken off
/// without a word to its publisher: the slot there is not ours.
async fn drop_subscriptions(session: &Session, name: &str) -> Result<(), pg::Error> {
    let rows = session
        .query(
            "select s.subname::text
             from pg_subscription s
             join pg_database d on d.oid = s.subdbid
             where d.datname = $1",
            &[&name],
        )
        .await?;
    if rows.is_empty() {
        return Ok(());
    }
    allow_connections(session, name, "true").await?;
    let inside = Session::connect(&session.target().with_database(name)).await?;
    for row in &rows {
        let subscription = quote::ident(row.get(0));
        for act in ["disable", "set (slot_name = none)"] {
            inside.batch(&format!("alter subscription {subscription} {act}")).await?;
        }
        inside.batch(&format!("drop subscription {subscription}")).await?;
    }
    inside.close().await;
    Ok(())
}

/// What a prepared transaction has done would be lost without a word to whoever is to end it.
async fn refuse_prepared(session: &Session, name: &str) -> Result<(), Error> {
    let rows = session
        .query("select gid from pg_prepared_xacts where database = $1 order by prepared", &[&name])
        .await
        .map_err(|error| Error::Sql { what: "look into", database: name.to_owned(), error })?;
    if rows.is_empty() {
        return Ok(());
    }
    let gids = rows.iter().map(|row| row.get(0)).collect();
    Err(Error::Prepared { database: name.to_owned(), gids })
}

/// Finds a free name and locks it, in a session of its own with the maintenance database.
async fn reserve(
    server: &Server,
    final_name: &str,
    kind: &str,
) -> Result<(String, Session), Error> {
    let name = unique_name(final_name, kind);
    let fail = |error| Error::Sql { what: "create database", database: name.clone(), error };
    let session = Session::connect(&server.admin).await.map_err(fail)?;
    lock::try_database(&session, &name).await.map_err(fail)?;
    Ok((name, session))
}

/// What stands in the name of a database that is lent.
pub(crate) const LENT: &str = "lent";

/// A name for a database beside `final_name`; at most 63 bytes, the server's limit.
pub(crate) fn unique_name(final_name: &str, kind: &str) -> String {
    format!("{}{:08x}", name_stem(final_name, kind), rand::random::<u32>())
}

fn name_stem(final_name: &str, kind: &str) -> String {
    let mut end = final_name.len().min(40);
    while !final_name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}__{kind}_", &final_name[..end])
}

#[cfg(test)]
mod tests {
    use super::{Kind, MadeBy, Marker, unique_name};

    #[test]
    fn names_beside_a_long_one_fit_the_server() {
        let name = unique_name(&"ü".repeat(31), "scratch");
        assert!(name.len() <= 63, "{name}");
        assert!(name.contains("__scratch_"));
    }

    #[test]
    fn a_marker_survives_its_comment_and_nothing_else_passes() {
        let marker = Marker::new(Kind::Live, "factory");
        assert_eq!(Marker::parse(&marker.comment()), Some(marker));
        assert_eq!(Marker::parse("seedbed is nice"), None);
        assert_eq!(Marker::parse("{}"), None);
    }

    #[test]
    fn markers_of_older_programs_are_read() {
        let old = r#"seedbed {"format":1,"kind":"live","database":"factory","origin":null,"fingerprint":null,"made_at":"2026-01-01T00:00:00Z"}"#;
        let marker = Marker::parse(old).expect("it was ours");
        assert_eq!((marker.kind, marker.bytes, marker.lease), (Kind::Live, None, None));
    }

    #[test]
    fn a_clone_tells_when_its_contents_were_built() {
        let built = Marker::new(Kind::Template, "factory");
        let clone = built.cloned(Kind::Live, MadeBy::Template);
        let clone_of_clone = clone.cloned(Kind::Live, MadeBy::Image);
        assert_eq!(clone.built_at, Some(built.made_at.clone()));
        assert_eq!(clone_of_clone.built_at, Some(built.made_at));
    }
}
