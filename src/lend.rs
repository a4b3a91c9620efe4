//! A database of its own for each test: copies of a frozen template, lent for a while.
//!
//! A copy is what `reset` would give, whatever was done to the live database: it comes from the template
//! of this checkout, with the rows that the live database came from, and no store is asked. A template
//! that is missing is made once, by whoever comes first. Lending takes no lock of the project, so
//! that any number of test workers may ask at once. What is lent carries a marker with its time to live;
//! later runs drop what is past it, once nobody is in it.

use std::time::Duration;

use serde::Serialize;

use crate::connect;
use crate::context::Context;
use crate::copy::Original;
use crate::database::{self, Found, Kind, Lease, Marker, Origin, Scratch};
use crate::engine::{Server, ready};
use crate::error::{self, Exit};
use crate::fingerprint::{self, Rows};
use crate::guard;
use crate::image;
use crate::journeys;
use crate::lock;
use crate::pg::{self, Session, Target, quote};
use crate::report::format;
use crate::seed;
use crate::site::{self, Files};
use crate::template;

/// Why nothing is lent, or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("database `{database}` is not there, so there is nothing to copy")]
    NoLive { database: String },
    #[error("`{name}` is no database that was lent here")]
    NotLent { name: String },
    #[error(
        "copy the template of `{database}`: {ATTEMPTS} times it was gone or somebody was in it"
    )]
    Busy { database: String },
    #[error("wait for the template of `{database}`: another run is making it for {TURN_TIMEOUT}")]
    Turn { database: String },
}

impl Error {
    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoLive { .. } | Self::Busy { .. } => Exit::Database,
            Self::NotLent { .. } => Exit::Refused,
            Self::Turn { .. } => Exit::Locked,
        }
    }

    /// At most two things to do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::NoLive { .. } => vec!["build it with `seedbed up`".to_owned()],
            Self::NotLent { .. } => vec!["see what is: `seedbed db list`".to_owned()],
            Self::Busy { .. } => {
                vec!["see who is in it: `seedbed psql -- -c 'table pg_stat_activity'`".to_owned()]
            }
            Self::Turn { .. } => {
                vec!["wait until it has ended, then run the command again".to_owned()]
            }
        }
    }
}

/// A template is gone when a `reset` has made a newer one, and a guest in it is ended: each happens once
/// in a while, five times in a row never.
const ATTEMPTS: usize = 5;

/// As long as a server takes to come up again after a run has replaced its data.
const RESTART: Duration = Duration::from_secs(60);

/// As long as a large database takes to be built; in PostgreSQL's words.
const TURN_TIMEOUT: &str = "30min";

const CREATE: &str = "db create";
const DROP: &str = "db drop";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    pub count: u32,
    /// From now on.
    pub ttl_seconds: u64,
    /// For people: a label, or which process asked.
    pub owner: String,
}

/// A database that somebody has from now on.
#[derive(Debug, Clone, Serialize)]
pub struct Lent {
    pub name: String,
    /// With the password, as `url` prints it.
    pub url: String,
}

/// A lent database as `db list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub name: String,
    pub owner: String,
    pub made_at: String,
    pub age_seconds: u64,
    /// Seconds until it may be dropped, at least 0; `None`: never.
    pub left_seconds: Option<u64>,
    pub sessions: i64,
    pub bytes: i64,
}

/// Which databases are taken back.
#[derive(Debug, Clone)]
pub enum Which {
    All,
    /// By name or by URL.
    Named(Vec<String>),
}

/// Copies of the database that `reset` would give, for tests to do with as they like.
///
/// # Errors
/// Any; nothing is lent then.
pub async fn create(ctx: &Context, wish: &Wish) -> Result<Vec<Lent>, error::Error> {
    guard::replace_in_environment(ctx, CREATE)?;
    let mut meeting = meet(ctx).await?;
    for _ in 0..ATTEMPTS {
        let Meeting { server, session } = &meeting;
        // Where snapshots came from was asked when the live database was made, whose marker is demanded
        // here; nothing is replaced.
        guard::replace_on_server(ctx, server, &[], CREATE).await?;
        if let Some((lent, found)) = copy_ready(ctx, server, session, wish).await? {
            sweep(ctx, session, &found, &ctx.config.database.name).await;
            meeting.session.close().await;
            return Ok(lent);
        }
        meeting = ready::until(ctx, RESTART, async || meet(ctx).await).await?;
    }
    Err(Error::Busy { database: ctx.config.database.name.clone() }.into())
}

/// The server, and a session with its maintenance database.
struct Meeting {
    server: Server,
    session: Session,
}

async fn meet(ctx: &Context) -> Result<Meeting, error::Error> {
    let server = connect::running(ctx).await?.ok_or(error::Error::NoServer)?;
    let session = connect::session(&server.admin).await?;
    Ok(Meeting { server, session })
}

/// Copies the template, and makes it first where it is missing; gives back what was on the server
/// before. `None`: the server went down while we waited for a run that replaces or freezes its data.
async fn copy_ready(
    ctx: &Context,
    server: &Server,
    session: &Session,
    wish: &Wish,
) -> Result<Option<(Vec<Lent>, Vec<Found>)>, error::Error> {
    let database = &ctx.config.database.name;
    let (lend, leave) = lock::lending(database);
    for _ in 0..ATTEMPTS {
        // What is lent must not go with data that is being replaced, nor be frozen with it.
        match database::stoppable(ctx, session, &lend).await {
            Err(error) if crate::error::pg_exit(&error) == Exit::Server => return Ok(None),
            taken => taken.map_err(|error| {
                database::stopped(ctx, "wait for the server of", database, error)
            })?,
        }
        let copied = copy_once(ctx, server, session, wish).await;
        let left = session.batch(&leave).await;
        let copied = copied?;
        left.map_err(error::Error::Server)?;
        match copied {
            Copied::Lent(lent, found) => return Ok(Some((lent, found))),
            Copied::NoTemplate => make_template(ctx, session, server).await?,
            Copied::Busy => {}
        }
    }
    Err(Error::Busy { database: database.clone() }.into())
}

/// What came of copying the template.
enum Copied {
    /// And what was on the server before.
    Lent(Vec<Lent>, Vec<Found>),
    NoTemplate,
    /// It has gone meanwhile, or somebody is in it.
    Busy,
}

async fn copy_once(
    ctx: &Context,
    server: &Server,
    session: &Session,
    wish: &Wish,
) -> Result<Copied, error::Error> {
    let database = &ctx.config.database.name;
    let found = database::list(session).await?;
    let fingerprint = fingerprint(ctx, server, &found)?;
    let Some((template, marker)) = template::ready(&found, database, &fingerprint) else {
        return Ok(Copied::NoTemplate);
    };
    let lease = Lease { ttl_seconds: Some(wish.ttl_seconds), owner: wish.owner.clone() };
    let marker =
        Marker { lease: Some(lease), ..marker.cloned(Kind::Lent, database::MadeBy::Template) };
    let copied = async {
        // Nobody can connect to a template, unless somebody opened it on purpose; the copy would wait
        // for seconds and then fail.
        if database::end_sessions(session, template).await? > 0 {
            // Several may close it at once, and the server lets only one.
            let _ = database::block_and_end(session, template).await;
        }
        copies(ctx, server, session, template, &marker, wish.count).await
    };
    match copied.await {
        Ok(names) => {
            let lent = names.into_iter().map(|name| {
                let url = connect::owner(ctx, server, &name).url_with_password();
                Lent { name, url }
            });
            let lent = lent.collect();
            Ok(Copied::Lent(lent, found))
        }
        Err(error) if matches!(error.sqlstate(), Some(database::IN_USE | GONE)) => Ok(Copied::Busy),
        Err(error) => Err(database::stopped(ctx, "copy template", template, error).into()),
    }
}

/// SQLSTATE of a database that is not there.
const GONE: &str = "3D000";

/// Where the rows of the live database came from.
fn live_origin(found: &[Found], database: &str) -> Result<Origin, error::Error> {
    let Some(live) = found.iter().find(|found| found.name == database) else {
        return Err(Error::NoLive { database: database.to_owned() }.into());
    };
    let Some(marker) = &live.marker else {
        return Err(database::Error::NotOurs { database: database.to_owned() }.into());
    };
    Ok(marker.origin.clone().unwrap_or(Origin::Empty))
}

/// That of the build which `reset` would make of this checkout, with the rows that the live database of
/// `found` came from.
fn fingerprint(ctx: &Context, server: &Server, found: &[Found]) -> Result<String, error::Error> {
    let origin = live_origin(found, &ctx.config.database.name)?;
    let Files { accounts, scripts } = site::read_files(ctx)?;
    let seeds = match origin {
        Origin::Files => seed::files(ctx)?,
        Origin::Snapshot { .. } | Origin::Empty => Vec::new(),
    };
    let rows = match &origin {
        Origin::Snapshot { id, .. } => Rows::Snapshot(id),
        Origin::Files if !seeds.is_empty() => Rows::Files(&seeds),
        Origin::Files | Origin::Empty => Rows::None,
    };
    fingerprint::of_build(ctx, server, &scripts, &accounts, rows, None)
}

/// One run makes it; those that come meanwhile wait, and find it.
async fn make_template(
    ctx: &Context,
    session: &Session,
    server: &Server,
) -> Result<(), error::Error> {
    let database = &ctx.config.database.name;
    let what = format!("template of {database}");
    take_turn(ctx, session, &what).await.map_err(|error| match error.sqlstate() {
        Some("55P03") => Error::Turn { database: database.clone() }.into(),
        _ => {
            error::Error::from(database::stopped(ctx, "wait for the template of", database, error))
        }
    })?;
    let found = database::list(session).await?;
    let fingerprint = fingerprint(ctx, server, &found)?;
    if template::ready(&found, database, &fingerprint).is_none() {
        ctx.report.note(format!(
            "there is no template of `{database}` for this checkout: building one, once"
        ));
        journeys::make_template(ctx, CREATE, &live_origin(&found, database)?).await?;
    }
    let key = quote::literal(&what);
    let leave = format!("select pg_advisory_unlock({}, hashtext({key}))", lock::KEY_CLASS);
    session.batch(&leave).await.map_err(error::Error::Server)
}

/// Waits in the server, behind those who came before; held until the session ends, or given up.
async fn take_turn(ctx: &Context, session: &Session, what: &str) -> Result<(), pg::Error> {
    let sql = format!(
        "set lock_timeout = '{TURN_TIMEOUT}'; select pg_advisory_lock({}, hashtext({}))",
        lock::KEY_CLASS,
        quote::literal(what)
    );
    let taken = database::stoppable(ctx, session, &sql).await;
    session.batch("reset lock_timeout").await?;
    taken
}

/// Makes copies of `template`, each with this marker; on an error those that were made are dropped.
async fn copies(
    ctx: &Context,
    server: &Server,
    session: &Session,
    template: &str,
    marker: &Marker,
    count: u32,
) -> Result<Vec<String>, pg::Error> {
    let mut original = Original::look(session, server, template, &ctx.config.database.user).await?;
    let word = if marker.kind == Kind::Lent { database::LENT } else { "scratch" };
    let mut names: Vec<String> = Vec::new();
    for _ in 0..count {
        let name = database::unique_name(&marker.database, word);
        let made = async {
            // Until it is marked, its name and this lock keep it from being taken for a leftover.
            lock::try_database(session, &name).await?;
            let comment = database::comment_statement(&name, marker);
            original.copy(ctx, session, &name, Some(comment)).await
        };
        if let Err(error) = made.await {
            for made in &names {
                if let Err(left) = database::drop_marked(session, made, &[marker.kind]).await {
                    ctx.report.detail(format!("`{made}` stays: {left}"));
                }
            }
            return Err(error);
        }
        names.push(name);
    }
    Ok(names)
}

/// What is lent of this environment's database, oldest first.
///
/// # Errors
/// What the engine or the server said.
pub async fn list(ctx: &Context) -> Result<Vec<Listed>, error::Error> {
    let server = connect::running(ctx).await?.ok_or(error::Error::NoServer)?;
    let session = connect::session(&server.admin).await?;
    let now = jiff::Timestamp::now();
    let mut listed = Vec::new();
    for found in lent(&session, &ctx.config.database.name).await? {
        let Some((marker, lease)) = lease_of(&found) else { continue };
        let Some(usage) = usage(&session, &found.name).await? else { continue };
        let age_seconds = age(marker, now);
        listed.push(Listed {
            name: found.name.clone(),
            owner: lease.owner.clone(),
            made_at: marker.made_at.clone(),
            age_seconds,
            left_seconds: lease.ttl_seconds.map(|ttl| ttl.saturating_sub(age_seconds)),
            sessions: usage.sessions,
            bytes: usage.bytes,
        });
    }
    session.close().await;
    listed.sort_by_key(|lent| lent.made_at.parse::<jiff::Timestamp>().ok());
    Ok(listed)
}

struct Usage {
    sessions: i64,
    bytes: i64,
}

/// `None`: it was dropped meanwhile.
async fn usage(session: &Session, name: &str) -> Result<Option<Usage>, error::Error> {
    let sql = "select (select count(*) from pg_stat_activity where datname = $1),
                      pg_database_size($1)";
    match session.query_one(sql, &[&name]).await {
        Ok(row) => Ok(Some(Usage { sessions: row.get(0), bytes: row.get(1) })),
        Err(error) if error.sqlstate() == Some(GONE) => Ok(None),
        Err(error) => Err(error::Error::Database { what: format!("measure `{name}`"), error }),
    }
}

/// Drops lent databases with whoever is in them; returns their names. All of them are looked up
/// before one is dropped.
///
/// # Errors
/// [`Error::NotLent`]; what the engine or the server said.
pub async fn drop(ctx: &Context, which: &Which) -> Result<Vec<String>, error::Error> {
    guard::replace_in_environment(ctx, DROP)?;
    let server = connect::running(ctx).await?.ok_or(error::Error::NoServer)?;
    let session = connect::session(&server.admin).await?;
    let lent: Vec<String> = lent(&session, &ctx.config.database.name)
        .await?
        .into_iter()
        .map(|found| found.name)
        .collect();
    let names = match which {
        Which::All => lent,
        Which::Named(wanted) => {
            let meant = |text: &String| {
                let named = lent.iter().find(|name| is_named(&server.admin, name, text));
                named.cloned().ok_or_else(|| Error::NotLent { name: without_password(text) })
            };
            wanted.iter().map(meant).collect::<Result<Vec<String>, Error>>()?
        }
    };
    for name in &names {
        let dropping = database::drop_marked(&session, name, &[Kind::Lent]);
        ctx.until_cancelled(dropping).await?;
    }
    session.close().await;
    Ok(names)
}

/// Whether `text`, a name or a URL, means the database `name` of this server.
fn is_named(admin: &Target, name: &str, text: &str) -> bool {
    if name == text {
        return true;
    }
    let (Ok(given), Ok(ours)) =
        (url::Url::parse(text), url::Url::parse(&admin.with_database(name).to_string()))
    else {
        return false;
    };
    given.path() == ours.path() && given.port().is_none_or(|port| port == admin.port)
}

fn without_password(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(mut url) if url.has_host() => {
            // One with a host may have none.
            let _ = url.set_password(None);
            url.to_string()
        }
        _ => text.to_owned(),
    }
}

/// Drops what of `found` is past its time and has nobody in it. What cannot be dropped is in nobody's
/// way.
pub(crate) async fn sweep(ctx: &Context, session: &Session, found: &[Found], database: &str) {
    let mut swept = 0;
    for found in found.iter().filter(|found| is_past(found, database)) {
        let gone = async {
            // Two runs that sweep at once: one of them does.
            let ours = lock::try_database(session, &found.name).await;
            match ours.map_err(error::Error::Server)? {
                true => Ok::<_, error::Error>(database::drop_idle(session, &found.name).await?),
                false => Ok(false),
            }
        };
        match gone.await {
            Ok(gone) => swept += u64::from(gone),
            Err(error) => ctx.report.detail(format!("`{}` stays: {error}", found.name)),
        }
    }
    if swept > 0 {
        let databases = format::counted(swept, "lent database");
        ctx.report.note(format!("dropped {databases} past the time to live"));
    }
}

/// How many are lent of this database.
pub(crate) fn count(found: &[Found], database: &str) -> usize {
    found.iter().filter(|found| is_lent(found, database)).count()
}

async fn lent(session: &Session, database: &str) -> Result<Vec<Found>, error::Error> {
    let found = database::list(session).await?;
    Ok(found.into_iter().filter(|found| is_lent(found, database)).collect())
}

fn is_lent(found: &Found, database: &str) -> bool {
    lease_of(found).is_some_and(|(marker, _)| marker.database == database)
}

fn lease_of(found: &Found) -> Option<(&Marker, &Lease)> {
    let marker = found.marker.as_ref().filter(|marker| marker.kind == Kind::Lent)?;
    Some((marker, marker.lease.as_ref()?))
}

fn is_past(found: &Found, database: &str) -> bool {
    let Some((marker, lease)) = lease_of(found) else { return false };
    marker.database == database
        && lease.ttl_seconds.is_some_and(|ttl| age(marker, jiff::Timestamp::now()) >= ttl)
}

/// Seconds; 0 for what another clock has made in our future.
fn age(marker: &Marker, now: jiff::Timestamp) -> u64 {
    let made_at = marker.made_at.parse::<jiff::Timestamp>().unwrap_or(now);
    u64::try_from(now.duration_since(made_at).as_secs()).unwrap_or(0)
}

/// Readies a scratch database for being copied: else each copy is written to by its first reader, and shares that
/// much less. A server that somebody else runs is not told to write all that it has.
///
/// # Errors
/// That the user asks to stop.
pub(crate) async fn settle(
    ctx: &Context,
    server: &Server,
    scratch: &Scratch,
) -> Result<(), error::Error> {
    if !server.started_by_us {
        return Ok(());
    }
    image::settle(ctx, server, (scratch.name(), scratch.final_name())).await
}

/// Copies of a scratch database that live as long as the run: the workers of `ci`.
pub(crate) struct Copies {
    /// Holds their locks: a later run sweeps them when this one was killed.
    session: Session,
    marker: Marker,
    pub names: Vec<String>,
}

impl Copies {
    /// Copies `scratch`, in which nobody is; whoever is left in it is ended.
    ///
    /// # Errors
    /// What the server said; no copy is left then.
    pub async fn of(
        ctx: &Context,
        server: &Server,
        scratch: &Scratch,
        count: u32,
    ) -> Result<Self, error::Error> {
        let session = connect::session(&server.admin).await?;
        let marker = scratch.marker().cloned(Kind::Scratch, database::MadeBy::Template);
        if count > 0 {
            settle(ctx, server, scratch).await?;
        }
        let copied = async {
            database::end_sessions(&session, scratch.name()).await?;
            copies(ctx, server, &session, scratch.name(), &marker, count).await
        };
        match copied.await {
            Ok(names) => Ok(Self { session, marker, names }),
            Err(error) => {
                Err(database::stopped(ctx, "copy database", scratch.name(), error).into())
            }
        }
    }

    /// Drops them.
    ///
    /// # Errors
    /// The first that the server said; the others are dropped all the same.
    pub async fn discard(self) -> Result<(), error::Error> {
        let mut failed = Ok(());
        for name in &self.names {
            let dropped = database::drop_marked(&self.session, name, &[Kind::Scratch]).await;
            failed = failed.and(dropped);
        }
        self.session.close().await;
        Ok(failed?)
    }

    /// Leaves them to whoever looks at them, until `db drop`.
    ///
    /// # Errors
    /// What the server said.
    pub async fn keep(self) -> Result<(), error::Error> {
        let lease = Some(Lease { ttl_seconds: None, owner: "ci --keep".to_owned() });
        let marker = Marker { kind: Kind::Lent, lease, ..self.marker };
        for name in &self.names {
            database::set_marker(&self.session, name, &marker).await?;
        }
        self.session.close().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{age, is_named, is_past, without_password};
    use crate::database::{Found, Kind, Lease, Marker};
    use crate::pg::{SslMode, Target};

    fn lent(made_at: &str, ttl_seconds: Option<u64>) -> Found {
        let marker = Marker {
            format: 1,
            kind: Kind::Lent,
            database: "shop".to_owned(),
            origin: None,
            fingerprint: None,
            base: None,
            applied: Vec::new(),
            point: None,
            made_at: made_at.to_owned(),
            made_by: None,
            built_at: None,
            bytes: None,
            lease: Some(Lease { ttl_seconds, owner: "tests".to_owned() }),
        };
        Found {
            name: "shop__lent_1".to_owned(),
            marker: Some(marker),
            owner: "shop_owner".to_owned(),
            allows_connections: true,
        }
    }

    #[test]
    fn what_is_past_its_time_goes_and_nothing_else() {
        let table = [
            (lent("2020-01-01T00:00:00Z", Some(60)), "shop", true),
            (lent("2020-01-01T00:00:00Z", Some(60)), "other", false),
            (lent("2020-01-01T00:00:00Z", None), "shop", false),
            (lent(&jiff::Timestamp::now().to_string(), Some(60)), "shop", false),
            (lent("2999-01-01T00:00:00Z", Some(60)), "shop", false),
            (lent("once upon a time", Some(60)), "shop", false),
        ];
        for (found, database, past) in table {
            assert_eq!(is_past(&found, database), past, "{found:?}");
        }
        let mut live = lent("2020-01-01T00:00:00Z", Some(60));
        if let Some(marker) = &mut live.marker {
            marker.kind = Kind::Live;
            assert_eq!(age(marker, jiff::Timestamp::UNIX_EPOCH), 0);
        }
        assert!(!is_past(&live, "shop"));
    }

    #[test]
    fn a_database_is_named_by_its_name_or_its_url() {
        let admin = Target {
            host: "127.0.0.1".to_owned(),
            port: 5433,
            database: "postgres".to_owned(),
            user: "postgres".to_owned(),
            password: None,
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_client: None,
            settings: Vec::new(),
        };
        let table = [
            ("läden__lent_1", true),
            ("postgresql://o:w@127.0.0.1:5433/l%C3%A4den__lent_1", true),
            ("postgres://localhost/l%C3%A4den__lent_1?sslmode=disable", true),
            ("postgresql://o:w@127.0.0.1:5434/l%C3%A4den__lent_1", false),
            ("postgresql://o:w@127.0.0.1:5433/other", false),
            ("läden", false),
        ];
        for (text, named) in table {
            assert_eq!(is_named(&admin, "läden__lent_1", text), named, "{text}");
        }
        assert_eq!(without_password("postgresql://o:w@h:1/d"), "postgresql://o@h:1/d");
        assert_eq!(without_password("shop"), "shop");
    }
}
