//! The environments of a project: the default one and those of its branches, listed and removed.
//!
//! A branch's environment is a folder in `.seedbed/branches/` with a state, a lock and, natively, the
//! data; container and volume carry the branch in their name. Images are the project's.

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::config::{Branch, DEFAULT_BRANCH, slug};
use crate::connect;
use crate::context::Context;
use crate::database::{self, Origin};
use crate::engine::{self, Server, Stopped, Volumes, state};
use crate::error::{self, Exit};
use crate::lock;
use crate::pg::Session;
use crate::saved::{self, Point};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no branch `{name}` of this project has an environment{}", there_are(.known))]
    Unknown { name: String, known: Vec<String> },
    #[error("no branch `{name}` of this project has an environment{}", there_are(.known))]
    NotThere { name: String, known: Vec<String> },
    #[error("the default environment is no branch's: it stays")]
    Default,
    #[error("remove `{path}`: {error}")]
    Folder { path: Utf8PathBuf, error: std::io::Error },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unknown { .. } | Self::NotThere { .. } => Exit::CommandLine,
            Self::Default => Exit::Refused,
            Self::Folder { .. } => Exit::Database,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Unknown { name, known } => match nearest(name, known) {
                Some(nearest) => vec![format!("did you mean `{nearest}`?")],
                None => vec!["`seedbed branch list` shows all".to_owned()],
            },
            Self::NotThere { name, known } => {
                let makes = format!("`seedbed up --branch {name}` makes one");
                let meant =
                    nearest(name, known).map(|nearest| format!("did you mean `{nearest}`?"));
                meant.into_iter().chain([makes]).collect()
            }
            Self::Default => vec!["its data goes by `seedbed down --volumes`".to_owned()],
            Self::Folder { .. } => Vec::new(),
        }
    }
}

pub(crate) fn there_are(known: &[String]) -> String {
    match known {
        [] => String::new(),
        known => {
            let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
            format!("; there are {}", names.join(", "))
        }
    }
}

/// The known name that is most like `name`, if one is.
pub(crate) fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    // Below, the suggestion is more often wrong than right.
    const SIMILAR: f64 = 0.6;
    known
        .iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(name, known), known.as_str()))
        .filter(|(score, _)| *score >= SIMILAR)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, name)| name)
}

/// An environment of the project.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// `None`: the default one.
    pub name: Option<String>,
    /// `None`: it has no server yet.
    pub engine: Option<String>,
    pub running: bool,
    pub host: Option<String>,
    /// Where it is served, or was the last time.
    pub port: Option<u16>,
    pub url: Option<String>,
    /// Known while it runs, as all that is in the database.
    pub origin: Option<Origin>,
    pub made_at: Option<String>,
    /// Of its databases while it runs, else of its folder where there is one.
    pub bytes: Option<u64>,
    pub points: Vec<Point>,
    /// While it does not run there may be more points.
    pub points_complete: bool,
    /// Why it cannot be looked at.
    pub problem: Option<String>,
}

/// The project's environments, the default one first. Starts and makes nothing.
pub async fn list(ctx: &Context) -> Vec<Listed> {
    let mut listed = vec![look(ctx).await];
    for dir in with_servers(ctx) {
        listed.push(look(&ctx.on_branch(branch_in(&dir))).await);
    }
    listed
}

/// The folders of branches that have had a server: a mistyped name has left no more than a lock.
fn with_servers(ctx: &Context) -> Vec<Utf8PathBuf> {
    let mut dirs = ctx.branch_dirs();
    dirs.retain(|dir| had_server(dir));
    dirs
}

fn had_server(dir: &Utf8Path) -> bool {
    dir.join("state.json").is_file() || dir.join("native").is_dir()
}

/// The branch whose folder it is; where its state is lost, the folder's name stands for its own.
fn branch_in(dir: &Utf8Path) -> Branch {
    let state = state::read_in(dir).unwrap_or_default();
    Branch::in_folder(dir.file_name().unwrap_or_default(), state.branch())
}

async fn look(ctx: &Context) -> Listed {
    let nothing = Listed {
        name: ctx.config.branch.as_ref().map(|branch| branch.name().to_owned()),
        engine: None,
        running: false,
        host: None,
        port: None,
        url: None,
        origin: None,
        made_at: None,
        bytes: None,
        points: Vec::new(),
        points_complete: false,
        problem: None,
    };
    match look_closely(ctx, nothing.clone()).await {
        Ok(listed) => listed,
        Err(error) => Listed { problem: Some(error.to_string()), ..nothing },
    }
}

async fn look_closely(ctx: &Context, nothing: Listed) -> Result<Listed, error::Error> {
    if ctx.config.protected {
        return Ok(nothing);
    }
    let Some(engine) = engine::chosen_before(ctx).await? else { return Ok(nothing) };
    let state = state::read(ctx)?;
    let remembered = match engine.kind() {
        engine::ServerKind::Docker => state.docker.as_ref().map(|docker| docker.port),
        engine::ServerKind::Native | engine::ServerKind::Embedded => {
            state.native.as_ref().map(|native| native.port)
        }
        engine::ServerKind::External => None,
    };
    let found = Listed {
        engine: Some(engine.kind().as_str().to_owned()),
        port: remembered.filter(|port| *port != 0),
        ..nothing
    };
    match connect::running(ctx).await? {
        None => Ok(Listed {
            bytes: engine.stored_bytes(ctx)?,
            points: saved::frozen_at_rest(ctx, &engine).await?,
            ..found
        }),
        Some(server) => {
            let session = connect::session(&server.admin).await?;
            let points = saved::points(ctx, &engine, &session).await?;
            let found = in_server(ctx, &server, &session, found).await?;
            session.close().await;
            Ok(Listed { points, points_complete: true, ..found })
        }
    }
}

async fn in_server(
    ctx: &Context,
    server: &Server,
    session: &Session,
    found: Listed,
) -> Result<Listed, error::Error> {
    let name = &ctx.config.database.name;
    let target = connect::owner(ctx, server, name);
    let live = database::find(session, name).await?;
    // Of somebody else's server only what is ours counts.
    let bytes = match (server.started_by_us, &live) {
        (true, _) => {
            let sql = "select sum(pg_database_size(oid))::int8 from pg_database";
            let row = session.query_one(sql, &[]).await.map_err(error::Error::Server)?;
            u64::try_from(row.get::<_, i64>(0)).ok()
        }
        (false, Some(_)) => crate::image::size_of(session, name).await.ok(),
        (false, None) => None,
    };
    let marker = live.as_ref().and_then(|live| live.marker.clone());
    Ok(Listed {
        running: true,
        host: Some(target.host.clone()),
        port: Some(target.port),
        url: live.map(|_| target.to_string()),
        made_at: marker.as_ref().map(|marker| marker.made_at.clone()),
        origin: marker.and_then(|marker| marker.origin),
        bytes,
        ..found
    })
}

/// The branch of that name, if it has an environment here: by its name, or by its folder's.
///
/// # Errors
/// [`Error::Default`]; [`Error::Unknown`] names the nearest.
pub fn find(ctx: &Context, name: &str) -> Result<Branch, Error> {
    if name == DEFAULT_BRANCH {
        return Err(Error::Default);
    }
    let dirs = ctx.branch_dirs();
    let of = |slug: &str| dirs.iter().find(|dir| dir.file_name() == Some(slug));
    if let Some(dir) = of(&slug(name)).or_else(|| of(name)) {
        return Ok(branch_in(dir));
    }
    // One whose removal was cut off.
    if gone(ctx, &slug(name)).is_dir() {
        return Ok(Branch::new(name));
    }
    Err(Error::Unknown { name: name.to_owned(), known: names(&with_servers(ctx)) })
}

/// Whether the environment is the default one, or a branch's that has had a server.
pub(crate) fn is_there(ctx: &Context) -> bool {
    ctx.config.branch.is_none() || had_server(&ctx.state_dir())
}

/// For what goes on from a database that is there: a typing error starts no server.
///
/// # Errors
/// [`Error::NotThere`].
pub(crate) fn must_be_there(ctx: &Context) -> Result<(), Error> {
    let Some(branch) = &ctx.config.branch else { return Ok(()) };
    if has_data(&ctx.state_dir()) {
        return Ok(());
    }
    let mut others = with_servers(ctx);
    others.retain(|dir| has_data(dir));
    Err(Error::NotThere { name: branch.name().to_owned(), known: names(&others) })
}

/// As far as is known: a state that cannot be read may tell of some.
fn has_data(dir: &Utf8Path) -> bool {
    dir.join("native").is_dir()
        || state::read_in(dir).map_or(true, |state| state.tells_of_a_server())
}

fn names(dirs: &[Utf8PathBuf]) -> Vec<String> {
    dirs.iter().map(|dir| branch_in(dir).name().to_owned()).collect()
}

/// What `branch delete` did.
#[derive(Debug, Clone, Serialize)]
pub struct Deleted {
    pub name: String,
    /// What was stopped and removed, by engine.
    pub stopped: Vec<Stopped>,
}

/// Stops a branch's server and removes its data and its folder. The folder, which tells where the data
/// is, goes last: a run that is cut off can be repeated.
///
/// # Errors
/// What the engine said; the branch is then still there.
pub async fn delete(ctx: &Context, branch: Branch) -> Result<Deleted, error::Error> {
    let name = branch.name().to_owned();
    let gone = gone(ctx, branch.slug());
    let there = ctx.on_branch(branch);
    let dir = there.state_dir();
    let mut stopped = Vec::new();
    if dir.is_dir() {
        let _lock = lock::project(&dir, "branch delete")?;
        // Of a run that was killed; nothing tells of it any more once the folder has gone.
        crate::scratch_server::sweep(&there).await?;
        for engine in engine::all_before(&there).await? {
            stopped.push(engine.stop(&there, Volumes::Remove).await?);
        }
        remove(&gone)?;
        let fail = |error| Error::Folder { path: dir.clone(), error };
        std::fs::rename(&dir, &gone).map_err(fail)?;
    }
    remove(&gone)?;
    // Without branches nothing tells that there were any.
    let _ = std::fs::remove_dir(ctx.branches_dir());
    Ok(Deleted { name, stopped })
}

/// Where a branch's folder goes to be removed: half of one is no environment.
fn gone(ctx: &Context, slug: &str) -> Utf8PathBuf {
    ctx.branches_dir().join(format!(".gone-{slug}"))
}

fn remove(dir: &Utf8Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Folder { path: dir.to_owned(), error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn only_what_is_alike_is_suggested() {
        let known = ["add-orders".to_owned(), "main".to_owned()];
        assert_eq!(nearest("add-order", &known), Some("add-orders"));
        assert_eq!(nearest("fix-login", &known), None);
    }
}
