//! Which engine runs the environment's server, and why, in one line and within five seconds.
//!
//! A project that has a server already keeps its engine: a daemon that is started later must not
//! hide the data.

use super::docker::DockerEngine;
use super::embedded::EmbeddedEngine;
use super::external::ExternalEngine;
use super::native::NativeEngine;
use super::state::{self, State};
use super::{Engine, Error, ServerKind};
use crate::config::EngineKind;
use crate::context::Context;

/// An engine, and why it was taken: one line for people.
pub struct Choice {
    pub engine: Engine,
    pub why: String,
}

/// Decides by the configuration and by what is there.
///
/// # Errors
/// [`Error::NothingHere`] names what was missing of each; otherwise why the configured engine cannot
/// be used.
pub async fn choose(ctx: &Context) -> Result<Choice, Error> {
    let configured = |engine, word| Choice { engine, why: format!("{word}, as configured") };
    match ctx.config.engine.kind {
        EngineKind::Docker => {
            let engine = DockerEngine::connect(ctx).await?;
            Ok(configured(Engine::Docker(engine), "docker"))
        }
        EngineKind::Native => {
            let engine = NativeEngine::find(ctx).await?;
            let why = format!("native, as configured: {}", engine.bin().dir);
            Ok(Choice { engine: Engine::Native(engine), why })
        }
        EngineKind::Embedded => {
            Ok(configured(Engine::Embedded(EmbeddedEngine::new(ctx)?), "embedded"))
        }
        EngineKind::External => {
            Ok(configured(Engine::External(ExternalEngine::new(&ctx.config)?), "external"))
        }
        EngineKind::Auto => automatic(ctx).await,
    }
}

/// The engine that has this project's server already, or the one that the configuration names for
/// sure; nothing is probed. `None`: nothing was started for this project yet.
///
/// # Errors
/// An unreadable state file; why the engine cannot be reached any more.
pub async fn chosen_before(ctx: &Context) -> Result<Option<Engine>, Error> {
    let state = state::read(ctx)?;
    let database = &ctx.config.database;
    let elsewhere = database.named && !database.target().is_loopback();
    match ctx.config.engine.kind {
        EngineKind::External => {}
        EngineKind::Auto if elsewhere => {}
        EngineKind::Auto => {
            return match kept(ctx, &state).await? {
                Some(choice) => Ok(Some(choice.engine)),
                // A first start that was killed has left its container.
                None if state.docker.as_ref().is_some_and(|known| !known.volume.is_empty()) => {
                    Ok(DockerEngine::connect(ctx).await.ok().map(Engine::Docker))
                }
                None => Ok(None),
            };
        }
        EngineKind::Docker if state.docker.is_some() => {
            return Ok(Some(Engine::Docker(DockerEngine::connect(ctx).await?)));
        }
        EngineKind::Native if state.native.is_some() => {
            return Ok(Some(Engine::Native(NativeEngine::find(ctx).await?)));
        }
        EngineKind::Embedded if state.native.is_some() => {
            return Ok(Some(Engine::Embedded(EmbeddedEngine::new(ctx)?)));
        }
        EngineKind::Docker | EngineKind::Native | EngineKind::Embedded => return Ok(None),
    }
    Ok(Some(Engine::External(ExternalEngine::new(&ctx.config)?)))
}

/// Every engine that may have data of this environment, whatever the configuration says by now: what
/// is to be asked before its folder is removed.
///
/// # Errors
/// An unreadable state file; why one of them cannot be reached any more.
pub async fn all_before(ctx: &Context) -> Result<Vec<Engine>, Error> {
    let state = state::read(ctx)?;
    let mut engines = Vec::new();
    if state.docker.is_some() {
        engines.push(Engine::Docker(DockerEngine::connect(ctx).await?));
    } else if matches!(ctx.config.engine.kind, EngineKind::Auto | EngineKind::Docker)
        && let Ok(engine) = DockerEngine::connect(ctx).await
    {
        // The state may be lost where a container is not.
        engines.push(Engine::Docker(engine));
    }
    if state.native.is_some() {
        engines.push(match state.kind {
            Some(ServerKind::Embedded) => Engine::Embedded(EmbeddedEngine::new(ctx)?),
            Some(ServerKind::Docker | ServerKind::Native | ServerKind::External) | None => {
                Engine::Native(NativeEngine::find(ctx).await?)
            }
        });
    }
    Ok(engines)
}

async fn automatic(ctx: &Context) -> Result<Choice, Error> {
    let database = &ctx.config.database;
    if database.named && !database.target().is_loopback() {
        let engine = Engine::External(ExternalEngine::new(&ctx.config)?);
        let why = format!("external: `{}` is not this machine", database.host);
        return Ok(Choice { engine, why });
    }
    if let Some(choice) = kept(ctx, &state::read(ctx)?).await? {
        return Ok(choice);
    }
    let image = &ctx.config.engine.image;
    let daemon = match DockerEngine::connect(ctx).await {
        Ok(engine) if engine.has_image().await? => {
            let why = format!("docker: a daemon answers and has the image {image}");
            return Ok(Choice { engine: Engine::Docker(engine), why });
        }
        other => other,
    };
    // The registry and the other ways are asked at the same time: five seconds are for all of them.
    let (docker, native) = futures_util::join!(pullable(ctx, daemon), other_ways(ctx));
    let docker = match docker {
        Ok(engine) => {
            let why = format!("docker: a daemon answers and can pull the image {image}");
            return Ok(Choice { engine: Engine::Docker(engine), why });
        }
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => error.to_string(),
    };
    match native {
        Other::Native(engine) => {
            let bin = engine.bin();
            let why = format!("native: PostgreSQL {} in {}, because {docker}", bin.major, bin.dir);
            Ok(Choice { engine: Engine::Native(engine), why })
        }
        Other::Embedded(engine, native) => {
            let version = engine.version();
            let why = format!("embedded: PostgreSQL {version}, because {docker}, and {native}");
            Ok(Choice { engine: Engine::Embedded(engine), why })
        }
        Other::Neither { native, embedded } => {
            ctx.check_cancelled().map_err(|_| Error::Interrupted)?;
            Err(Error::NothingHere { docker, native, embedded })
        }
    }
}

async fn pullable(
    ctx: &Context,
    daemon: Result<DockerEngine, Error>,
) -> Result<DockerEngine, Error> {
    let engine = daemon?;
    engine.registry_answers(ctx).await?;
    Ok(engine)
}

/// What there is beside Docker; the texts say why not.
enum Other {
    Native(NativeEngine),
    Embedded(EmbeddedEngine, String),
    Neither { native: String, embedded: String },
}

async fn other_ways(ctx: &Context) -> Other {
    let native = match NativeEngine::find(ctx).await {
        Ok(engine) => return Other::Native(engine),
        Err(error) => error.to_string(),
    };
    let embedded = async {
        let engine = EmbeddedEngine::new(ctx)?;
        if !engine.is_here() {
            super::archive::is_there(ctx, engine.url()).await?;
        }
        Ok::<_, Error>(engine)
    };
    match embedded.await {
        Ok(engine) => Other::Embedded(engine, native),
        Err(error) => Other::Neither { native, embedded: error.to_string() },
    }
}

/// The engine that has this project's server already.
async fn kept(ctx: &Context, state: &State) -> Result<Option<Choice>, Error> {
    let engine = match state.kind {
        Some(ServerKind::Docker) => match DockerEngine::connect(ctx).await {
            Ok(engine) => Engine::Docker(engine),
            // Its data is in a volume of that daemon: starting anew elsewhere would hide it.
            Err(error) => return Err(error),
        },
        Some(ServerKind::Native) => Engine::Native(NativeEngine::find(ctx).await?),
        Some(ServerKind::Embedded) => Engine::Embedded(EmbeddedEngine::new(ctx)?),
        Some(ServerKind::External) | None => return Ok(None),
    };
    let why = format!("{}: this project's server is there already", engine.kind().as_str());
    Ok(Some(Choice { engine, why }))
}
