//! A server of our own for one piece of work, removed after it.
//!
//! It is made by what `engine.kind` or, for a server of somebody else's, `auto` finds here, in a project
//! folder of its own inside of `.seedbed/`, so that no server of the project is touched. The
//! environment's account and passwords are not handed to it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::config::EngineKind;
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

/// The folders of all purposes.
const FOLDERS: [&str; 3] = ["check", "image", "prove"];

/// What a server is wanted for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose {
    /// Its project folder inside of `.seedbed/`, one of [`FOLDERS`]; one run at a time works there.
    pub folder: &'static str,
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
    let done = done?;
    stopped?;
    Ok(done)
}

/// Removes the servers of runs that were killed. One that a run works with stays.
///
/// # Errors
/// What the engine said.
pub(crate) async fn sweep(ctx: &Context) -> Result<(), crate::error::Error> {
    for folder in FOLDERS {
        // What its state says decides how it is reached.
        let ctx = &surroundings(ctx, Purpose { folder, verb: "down", major: 0 });
        if !ctx.state_dir().is_dir() {
            continue;
        }
        let _lock = match lock::project(&ctx.state_dir(), "down") {
            Ok(lock) => lock,
            Err(lock::Error::Project { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(engine) = engine::chosen_before(ctx).await? else { continue };
        let stopped = engine.stop(ctx, Volumes::Remove).await?;
        if let Some(server) = stopped.server {
            ctx.report.note(format!("{server}, left over from a run that was cut off, is gone"));
        }
    }
    Ok(())
}

fn surroundings(ctx: &Context, purpose: Purpose) -> Context {
    let mut config = (*ctx.config).clone();
    config.project = ctx.state_dir().join(purpose.folder);
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
