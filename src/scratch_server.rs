//! A server of our own for one piece of work, removed after it.
//!
//! It is made by what `engine.kind` or, for a server of somebody else's, `auto` finds here, in a project
//! folder of its own inside of `.seedbed/`, so that no server of the project is touched. The
//! environment's account and passwords are not handed to it. One whose images are to be the project's is an
//! environment of it, as a branch's is, which no list shows.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::config::{Branch, EngineKind};
use crate::context::Context;
use crate::engine::{self, Engine, Server, Volumes};
use crate::error::Exit;
use crate::lock;

/// Why the server is not one that will do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "start a scratch server: the source is PostgreSQL {needed}, and the server that can be \
         started here is {here}"
    )]
    Old { needed: u32, here: u32 },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Old { .. } => Exit::Server,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Old { needed, .. } => vec![format!(
                "make an image of it available, `postgres:{needed}`, or install its binaries"
            )],
        }
    }
}

/// Those of all purposes.
const HOMES: [Home; 4] =
    [Home::Folder("check"), Home::Folder("image"), Home::Folder("prove"), Home::Beside];

/// Where a server has its state; one run at a time works there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// A project folder of this name inside of `.seedbed/`, one of [`HOMES`].
    Folder(&'static str),
    /// Beside the environment, on the same engine. Nothing of it stays.
    Beside,
}

/// What a server is wanted for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose {
    pub home: Home,
    /// The command, as a second run is told it.
    pub verb: &'static str,
    /// The server's version is this one or newer.
    pub major: u32,
}

/// Runs `work` with the server and a context in which nothing else is known. However it ends, the
/// server goes.
///
/// # Errors
/// [`Error`], why no server can be started, or what `work` failed with.
pub(crate) async fn with<T>(
    ctx: &Context,
    purpose: Purpose,
    work: impl AsyncFnOnce(&Context, &Engine, &Server) -> Result<T, crate::error::Error>,
) -> Result<T, crate::error::Error> {
    let ctx = &surroundings(ctx, purpose);
    let _lock = lock::project(&ctx.state_dir(), purpose.verb)?;
    let choice = ctx.until_cancelled(engine::choose(ctx)).await?;
    ctx.report.note(format!("scratch server: {}", choice.why));
    // What a run that was killed left behind.
    choice.engine.stop(ctx, Volumes::Remove).await?;
    let working = async {
        let server = choice.engine.ensure(ctx).await?;
        let (needed, here) = (purpose.major, server.major());
        if here < needed {
            return Err(Error::Old { needed, here }.into());
        }
        work(ctx, &choice.engine, &server).await
    };
    let done = working.await;
    // Asked to stop or not, the server goes.
    let unhurried = Context { cancel: CancellationToken::new(), ..ctx.clone() };
    let stopped = choice.engine.stop(&unhurried, Volumes::Remove).await;
    let removed = match &stopped {
        Ok(_) if purpose.home == Home::Beside => remove(ctx),
        Ok(_) | Err(_) => Ok(()),
    };
    let done = done?;
    stopped?;
    removed?;
    Ok(done)
}

/// Removes the state, which tells where the server is, when there is none.
fn remove(ctx: &Context) -> Result<(), crate::error::Error> {
    let (action, path) = ("remove", ctx.state_dir());
    match fs_err::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(crate::error::Error::File { action, path, error });
        }
        Ok(()) | Err(_) => {}
    }
    // Without branches nothing tells that there were any.
    let _ = std::fs::remove_dir(ctx.branches_dir());
    Ok(())
}

/// Removes the servers of runs that were killed. One that a run works with stays.
///
/// # Errors
/// What the engine said.
pub(crate) async fn sweep(ctx: &Context) -> Result<(), crate::error::Error> {
    for home in HOMES {
        sweep_of(ctx, home).await?;
    }
    Ok(())
}

/// The same of one purpose.
///
/// # Errors
/// What the engine said.
pub(crate) async fn sweep_of(ctx: &Context, home: Home) -> Result<(), crate::error::Error> {
    // What its state says decides how it is reached.
    let ctx = &surroundings(ctx, Purpose { home, verb: "down", major: 0 });
    if !ctx.state_dir().is_dir() {
        return Ok(());
    }
    let _lock = match lock::project(&ctx.state_dir(), "down") {
        Ok(lock) => lock,
        Err(lock::Error::Project { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // The configuration may mean another engine by now.
    let engines = match engine::chosen_before(ctx).await? {
        Some(engine) => vec![engine],
        None => engine::all_before(ctx).await?,
    };
    for engine in engines {
        let stopped = engine.stop(ctx, Volumes::Remove).await?;
        if let Some(server) = stopped.server {
            ctx.report.note(format!("{server}, left over from a run that was cut off, is gone"));
        }
    }
    if home == Home::Beside {
        remove(ctx)?;
    }
    Ok(())
}

fn surroundings(ctx: &Context, purpose: Purpose) -> Context {
    let folder = match purpose.home {
        Home::Folder(folder) => folder,
        Home::Beside => {
            let of = ctx.config.branch.as_ref().map_or("", |branch| branch.slug());
            // Folders whose names begin like that are no branch's.
            return ctx.on_branch(Branch::in_folder(&format!(".beside-{of}"), None));
        }
    };
    let mut config = (*ctx.config).clone();
    config.project = ctx.state_dir().join(folder);
    config.branch = None;
    config.protected = false;
    config.database.named = false;
    config.database.host = "localhost".to_owned();
    config.database.port = None;
    // The password of an account named `postgres` would become this server's.
    config.database.password = None;
    config.engine.port = None;
    config.engine.superuser = None;
    config.engine.superuser_password = None;
    if config.engine.kind == EngineKind::External {
        config.engine.kind = EngineKind::Auto;
        if purpose.major > 0 {
            config.engine.image = format!("postgres:{}", purpose.major);
        }
    }
    Context { config: Arc::new(config), ..ctx.clone() }
}
