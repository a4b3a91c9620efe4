//! Points to come back to: the database as it is, saved under a name, and put back.
//!
//! Where clones share blocks and images are on, a point is a frozen data directory of the environment
//! (constant time, next to no disk); else a copy of the database on the same server, with a marker of
//! its own. Either goes with the environment's data. Nothing but `branch forget` and that removes one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::branch::{self, nearest, there_are};
use crate::config::slug;
use crate::connect;
use crate::context::Context;
use crate::database::{self, Found, Kind, MadeBy, Origin, Scratch, points};
use crate::engine::{self, Engine, Holds, Keep, Server, Stored};
use crate::error::{self, Exit};
use crate::frozen;
use crate::guard;
use crate::image;
use crate::lock::{self, ProjectLock};
use crate::migrate;
use crate::pg::Session;
use crate::site;
use crate::snapshot::{history, manifest};

const FORMAT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{name}` names no point")]
    Name { name: String },
    #[error("a point `{name}` is there already")]
    Exists { name: String },
    #[error("no point `{name}` was saved here{}", there_are(.known))]
    Unknown { name: String, known: Vec<String> },
    #[error("there is no database to save: `{database}` was not built yet")]
    NoDatabase { database: String },
    #[error("the point would replace {other} as well: it is the whole server as it was")]
    Shared { other: String },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Name { .. } | Self::Unknown { .. } => Exit::CommandLine,
            Self::Exists { .. } | Self::Shared { .. } => Exit::Refused,
            Self::NoDatabase { .. } => Exit::Server,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Name { .. } => vec!["name one: `seedbed branch save before-orders`".to_owned()],
            Self::Exists { name } => {
                vec![format!("save over it: `seedbed branch save {name} --replace`")]
            }
            Self::Unknown { name, known } => match nearest(name, known) {
                Some(nearest) => vec![format!("did you mean `{nearest}`?")],
                None => vec!["`seedbed branch list` shows all".to_owned()],
            },
            Self::NoDatabase { .. } => vec!["build it with `seedbed up`".to_owned()],
            Self::Shared { .. } => vec!["drop or move it first".to_owned()],
        }
    }
}

/// How a point is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The server's data directory, with shared blocks.
    Frozen,
    /// A copy of the database.
    Copy,
}

/// A point of the environment.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    pub name: String,
    pub way: Way,
    pub made_at: String,
    pub schema_version: Option<String>,
    pub origin: Option<Origin>,
    /// On the disk, where nothing was shared; not known of copies.
    pub bytes: Option<u64>,
    /// The name of the frozen directory, or of the copy.
    #[serde(skip)]
    place: String,
    /// Those of the server that was frozen.
    #[serde(skip)]
    roles: Vec<String>,
}

/// What stands beside a frozen directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Facts {
    format: u32,
    point: String,
    database: String,
    origin: Option<Origin>,
    schema_version: Option<String>,
    roles: Vec<String>,
    made_at: Timestamp,
}

/// What `branch save` and `branch restore` ended with.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    pub point: Point,
    pub branch: Option<String>,
    pub database: String,
    pub url: String,
    pub warnings: Vec<String>,
}

/// Whether a point of the same name goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Yes,
    No,
}

/// Where points are saved and restored: lock held, server up.
struct Site {
    engine: Engine,
    server: Server,
    /// With the maintenance database; holds the database's advisory lock.
    session: Session,
    _lock: ProjectLock,
}

/// Starts the environment's server where it is down; makes none.
async fn open(ctx: &Context, verb: &str) -> Result<Site, error::Error> {
    guard::replace_in_environment(ctx, verb)?;
    branch::must_be_there(ctx)?;
    let lock = lock::project(&ctx.state_dir(), verb)?;
    let engine = engine::chosen_before(ctx).await?.ok_or(error::Error::NoServer)?;
    let server = engine.ensure(ctx).await?;
    site::let_pass(ctx, &server, verb).await?;
    let session = connect::session(&server.admin).await?;
    lock::database(&session, &ctx.config.database.name).await?;
    database::recover(ctx, &server, &ctx.config.database.name).await?;
    // A point is to have them.
    frozen::give_what_is_left(ctx, &server, &session).await?;
    Ok(Site { engine, server, session, _lock: lock })
}

impl Site {
    async fn live(&self, ctx: &Context) -> Result<Found, error::Error> {
        let database = &ctx.config.database.name;
        let live = database::replaceable(&self.session, database).await?;
        live.ok_or_else(|| Error::NoDatabase { database: database.clone() }.into())
    }

    /// The engine whose images are the points; `None`: they have to be copies here. Why is said where
    /// images are on.
    async fn freezing(&self, ctx: &Context) -> Result<Option<Engine>, error::Error> {
        if !ctx.config.images.enabled || !self.server.started_by_us {
            return Ok(None);
        }
        let database = &ctx.config.database.name;
        let bytes = image::size_of(&self.session, database).await?;
        if bytes < ctx.config.images.min_size && self.engine.moves_to_freeze(ctx)? {
            return Ok(None);
        }
        let why = match image::held_with(&self.session, database, None).await? {
            Some(other) => format!("the server holds more than this database: {other}"),
            None => match self.engine.can_freeze(ctx).await {
                Ok(()) => return Ok(self.engine.points(ctx)),
                Err(engine::Error::Interrupted) => return Err(error::Error::Interrupted),
                Err(error) => {
                    let lending = lock::lend_again(&self.session, database).await;
                    lending.map_err(error::Error::Server)?;
                    match error {
                        engine::Error::NoPool { reason } => reason,
                        error => error.to_string(),
                    }
                }
            },
        };
        ctx.report.note(format!("copying the database, which takes longer: {why}"));
        Ok(None)
    }

    /// Goes on with a server that was down for a moment, or whose data was replaced.
    async fn move_to(&mut self, ctx: &Context, server: Server) -> Result<(), error::Error> {
        let session = connect::session(&server.admin).await?;
        lock::database(&session, &ctx.config.database.name).await?;
        self.server = server;
        self.session = session;
        Ok(())
    }

    async fn sessions(&self, ctx: &Context) -> Result<i64, error::Error> {
        let sessions = database::sessions(&self.session, &ctx.config.database.name).await;
        sessions.map_err(error::Error::Server)
    }

    /// Removes points; those that are gone already are no error.
    async fn forget(&self, ctx: &Context, points: &[Point]) -> Result<(), error::Error> {
        for point in points {
            match point.way {
                Way::Copy => {
                    database::drop_marked(&self.session, &point.place, &[Kind::Saved]).await?;
                }
                Way::Frozen => {
                    if let Some(engine) = self.engine.points(ctx) {
                        engine.drop_images(ctx, &[&point.place]).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn done(&self, ctx: &Context, point: Point) -> Done {
        let target = connect::owner(ctx, &self.server, &ctx.config.database.name);
        Done {
            point,
            branch: ctx.config.branch.as_ref().map(|branch| branch.name().to_owned()),
            database: target.database.clone(),
            url: target.to_string(),
            warnings: ctx.report.warnings(),
        }
    }
}

/// Saves the database as it is now.
///
/// # Errors
/// [`Error::Exists`] without [`Over::Yes`]; what the engine or the server said. The database is as it
/// was, and so is an older point of the name.
pub async fn save(ctx: &Context, name: &str, over: Over) -> Result<Done, error::Error> {
    if name.trim().is_empty() || name.contains(char::is_control) {
        return Err(Error::Name { name: name.to_owned() }.into());
    }
    let mut site = open(ctx, "branch save").await?;
    let live = site.live(ctx).await?;
    let mut before = points(ctx, &site.engine, &site.session).await?;
    before.retain(|point| point.name == name);
    if !before.is_empty() && over == Over::No {
        return Err(Error::Exists { name: name.to_owned() }.into());
    }
    // Those of others: our own come next.
    let sessions = site.sessions(ctx).await?;
    let schema_version = schema_version(ctx, &site.server).await?;
    let step = ctx.report.step(format!("save `{}` as `{name}`", live.name));
    match site.freezing(ctx).await? {
        Some(engine) => freeze(ctx, &mut site, &engine, &live, name, schema_version).await?,
        None => {
            let point = points::Point { name: name.to_owned(), schema_version };
            points::save(ctx, &site.server, &site.session, &live, point).await?;
        }
    }
    database::note_ended(ctx, sessions, &live.name);
    let point = settle(ctx, &site, name, &before).await?;
    step.done("");
    Ok(site.done(ctx, point))
}

/// Removes the points of a name that were there before; gives back the new one.
async fn settle(
    ctx: &Context,
    site: &Site,
    name: &str,
    before: &[Point],
) -> Result<Point, error::Error> {
    let mut all = points(ctx, &site.engine, &site.session).await?;
    all.retain(|point| point.name == name);
    let is_old = |point: &Point| before.iter().any(|old| old.place == point.place);
    let (old, new): (Vec<Point>, Vec<Point>) = all.into_iter().partition(is_old);
    site.forget(ctx, &old).await?;
    new.into_iter().next_back().ok_or_else(|| unknown(name, &[]))
}

async fn freeze(
    ctx: &Context,
    site: &mut Site,
    engine: &Engine,
    live: &Found,
    name: &str,
    schema_version: Option<String>,
) -> Result<(), error::Error> {
    let facts = Facts {
        format: FORMAT,
        point: name.to_owned(),
        database: live.name.clone(),
        origin: live.marker.as_ref().and_then(|marker| marker.origin.clone()),
        schema_version,
        roles: image::roles(&site.session).await?,
        made_at: Timestamp::now(),
    };
    let facts = serde_json::to_string(&facts).expect("a struct of strings serializes");
    // A place of its own, so that an older point of the name is there until this one is.
    let place = format!("{}-{:08x}", slug(name), rand::random::<u32>());
    let freeze = async || engine.freeze(ctx, &place, &facts).await;
    let frozen = image::once_there_is_room(ctx, &site.engine, &site.session, "", freeze).await;
    site.move_to(ctx, frozen?).await
}

/// Replaces the database by a point, history and all.
///
/// # Errors
/// [`Error::Unknown`], [`Error::Shared`]; what the engine or the server said. The database is then as
/// it was.
pub async fn restore(ctx: &Context, name: &str) -> Result<Done, error::Error> {
    let mut site = open(ctx, "branch restore").await?;
    let database = ctx.config.database.name.clone();
    database::replaceable(&site.session, &database).await?;
    let point = named(ctx, &site, name).await?;
    let step = ctx.report.step(format!("restore `{database}` from `{name}`"));
    match point.way {
        Way::Copy => swap_in_copy(ctx, &site, &point).await?,
        Way::Frozen => serve(ctx, &mut site, &point).await?,
    }
    database::renew(&site.session, &database, MadeBy::Point, None).await?;
    step.done("");
    Ok(site.done(ctx, point))
}

async fn swap_in_copy(ctx: &Context, site: &Site, point: &Point) -> Result<(), error::Error> {
    let Some(found) = database::find(&site.session, &point.place).await? else {
        return Err(unknown(&point.name, &[]));
    };
    let Some(marker) = &found.marker else {
        return Err(database::Error::NotOurs { database: found.name }.into());
    };
    let scratch = Scratch::clone_of(ctx, &site.server, &found.name, marker, &found.owner).await?;
    database::swap_in(ctx, scratch, Keep::No).await?;
    Ok(())
}

async fn serve(ctx: &Context, site: &mut Site, point: &Point) -> Result<(), error::Error> {
    let database = &ctx.config.database.name;
    // What a reset has kept goes with any replacement that does not ask for it.
    let ours = [Kind::Live, Kind::Template, Kind::Kept];
    let other = image::alone(&site.session, database, async || {
        match image::other_database(&site.session, database, &ours, "").await? {
            Some(other) => Ok(Some(other)),
            None => image::other_object(&site.session, None).await,
        }
    });
    if let Some(other) = other.await? {
        return Err(Error::Shared { other }.into());
    }
    let mut roles = image::roles(&site.session).await?;
    roles.retain(|role| !point.roles.contains(role));
    let Some(engine) = site.engine.points(ctx) else {
        return Err(unknown(&point.name, &[]));
    };
    let sessions = site.sessions(ctx).await?;
    let server = engine.replace(ctx, &point.place, Some(Keep::No), Holds::Something).await?;
    database::note_ended(ctx, sessions, database);
    if !roles.is_empty() {
        ctx.report.warn(format!(
            "roles that came after the point are gone with the rest: {}; `seedbed up` makes those of \
             the users files",
            roles.join(", ")
        ));
    }
    site.move_to(ctx, server).await
}

/// Removes a point; the database stays as it is.
///
/// # Errors
/// [`Error::Unknown`]; what the engine or the server said.
pub async fn forget(ctx: &Context, name: &str) -> Result<Point, error::Error> {
    let site = open(ctx, "branch forget").await?;
    let point = named(ctx, &site, name).await?;
    let mut all = points(ctx, &site.engine, &site.session).await?;
    all.retain(|other| other.name == name);
    site.forget(ctx, &all).await?;
    Ok(point)
}

/// The newest point of a name: a run that was killed may have left an older one beside it.
async fn named(ctx: &Context, site: &Site, name: &str) -> Result<Point, error::Error> {
    let all = points(ctx, &site.engine, &site.session).await?;
    let found = all.iter().rfind(|point| point.name == name).cloned();
    found.ok_or_else(|| unknown(name, &all))
}

fn unknown(name: &str, all: &[Point]) -> error::Error {
    let mut known: Vec<String> = all.iter().map(|point| point.name.clone()).collect();
    known.dedup();
    Error::Unknown { name: name.to_owned(), known }.into()
}

/// The environment's points, oldest first.
///
/// # Errors
/// What the engine or the server said.
pub(crate) async fn points(
    ctx: &Context,
    engine: &Engine,
    session: &Session,
) -> Result<Vec<Point>, error::Error> {
    let mut all = frozen(ctx, engine).await?;
    for (place, marker) in points::saved(session, &ctx.config.database.name).await? {
        let Some(point) = marker.point else { continue };
        all.push(Point {
            name: point.name,
            way: Way::Copy,
            made_at: marker.made_at,
            schema_version: point.schema_version,
            origin: marker.origin,
            bytes: None,
            place,
            roles: Vec::new(),
        });
    }
    // RFC 3339 in UTC sorts as text, but for the digits of a second that are left out.
    all.sort_by_key(|point| point.made_at.parse::<Timestamp>().unwrap_or_default());
    Ok(all)
}

/// The points that can be seen while the server is down, without starting anything for it.
///
/// # Errors
/// What the engine said.
pub(crate) async fn frozen_at_rest(
    ctx: &Context,
    engine: &Engine,
) -> Result<Vec<Point>, error::Error> {
    match engine {
        Engine::Native(_) | Engine::Embedded(_) => frozen(ctx, engine).await,
        Engine::Docker(_) | Engine::External(_) => Ok(Vec::new()),
    }
}

async fn frozen(ctx: &Context, engine: &Engine) -> Result<Vec<Point>, error::Error> {
    let Some(engine) = engine.points(ctx) else { return Ok(Vec::new()) };
    let stored = engine.images(ctx).await?.images;
    Ok(stored.iter().filter_map(|stored| read(ctx, stored)).collect())
}

fn read(ctx: &Context, stored: &Stored) -> Option<Point> {
    let facts: Facts = serde_json::from_str(&stored.facts).ok()?;
    let ours = facts.format == FORMAT && facts.database == ctx.config.database.name;
    ours.then(|| Point {
        name: facts.point,
        way: Way::Frozen,
        made_at: facts.made_at.to_string(),
        schema_version: facts.schema_version,
        origin: facts.origin,
        bytes: Some(stored.bytes),
        place: stored.name.clone(),
        roles: facts.roles,
    })
}

/// The live database's version, by its own history: the files may say anything.
async fn schema_version(ctx: &Context, server: &Server) -> Result<Option<String>, error::Error> {
    let target = connect::owner(ctx, server, &ctx.config.database.name);
    let rows = migrate::applied(ctx, &target).await?;
    let rows: Vec<manifest::Applied> = rows.iter().map(crate::ancestor::as_in_a_manifest).collect();
    Ok(history::current_version(&rows))
}
