//! From the configuration to a connection: the running local server if there is one, else what the
//! environment names.

use secrecy::SecretString;

use crate::context::Context;
use crate::engine::{self, Engine, Server};
use crate::error::Error;
use crate::pg::names::DatabaseName;
use crate::pg::{Session, Target};
use crate::users;

/// Where an environment's database is right now.
pub struct Reached {
    /// The server, when an engine of ours serves it or the configuration names one.
    pub server: Option<Server>,
    /// The database, as the account that migrates.
    pub target: Target,
}

/// Finds the environment's database without starting anything.
///
/// # Errors
/// What the engine said.
pub async fn reach(ctx: &Context) -> Result<Reached, Error> {
    if let Some(server) = running(ctx).await? {
        let target = owner(ctx, &server, &ctx.config.database.name);
        return Ok(Reached { server: Some(server), target });
    }
    if ctx.config.database.named {
        return Ok(Reached { server: None, target: ctx.config.database.target() });
    }
    Err(Error::NoServer)
}

/// The environment's database as the account that migrates, for work that happens in it alone: on a
/// server that somebody else runs nothing is connected to yet, and no other database ever.
///
/// # Errors
/// What the engine said.
pub async fn database(ctx: &Context) -> Result<Target, Error> {
    let name = &ctx.config.database.name;
    if !ctx.config.protected
        && let Some(Engine::External(engine)) = engine::chosen_before(ctx).await?
    {
        return Ok(owner_on(ctx, engine.admin(), name));
    }
    Ok(reach(ctx).await?.target)
}

/// The server of this project, if it runs. A protected environment is never served by ours.
///
/// # Errors
/// What the engine said.
pub async fn running(ctx: &Context) -> Result<Option<Server>, Error> {
    if ctx.config.protected {
        return Ok(None);
    }
    let Some(engine) = engine::chosen_before(ctx).await? else { return Ok(None) };
    let server = engine.running(ctx).await?;
    Ok(server.filter(|server| is_meant(ctx, server)))
}

/// Whether the environment means this server: one that names another port means another server (a
/// tunnel, say), whatever this project has running.
fn is_meant(ctx: &Context, server: &Server) -> bool {
    let named = &ctx.config.database;
    !server.started_by_us || !named.named || named.port.is_none_or(|port| port == server.admin.port)
}

/// A database of `server` as the account that owns it and runs the migrations.
///
/// Without a password of its own that account is taken on by the superuser (`set role`), so that a
/// team need not give it one.
pub fn owner(ctx: &Context, server: &Server, database: &str) -> Target {
    owner_on(ctx, &server.admin, database)
}

fn owner_on(ctx: &Context, admin: &Target, database: &str) -> Target {
    let config = &ctx.config.database;
    let mut target = admin.with_database(database);
    target.settings.extend(config.settings.iter().cloned());
    if config.user == admin.user {
        return target;
    }
    match &config.password {
        Some(password) => target.with_user(&config.user, Some(password.clone())),
        None => target.with_setting("role", &config.user),
    }
}

/// A database of `server` as the account `user`, for `url --user`: the password that the
/// configuration knows for it, else the users files, if any.
///
/// # Errors
/// What is wrong with the users files.
pub fn as_user(ctx: &Context, reached: &Reached, user: &str) -> Result<Target, Error> {
    let password: Option<SecretString> = match &reached.server {
        Some(server) if server.admin.user == user => server.admin.password.clone(),
        _ if ctx.config.database.user == user => ctx.config.database.password.clone(),
        _ => {
            let names = DatabaseName::live(&reached.target.database);
            users::read(ctx, &names)?.password_of(user).cloned()
        }
    };
    Ok(Target { settings: Vec::new(), ..reached.target.with_user(user, password) })
}

/// Opens a session; a failure is the server's, with the target in its text.
///
/// # Errors
/// [`Error::Server`].
pub async fn session(target: &Target) -> Result<Session, Error> {
    Session::connect(target).await.map_err(Error::Server)
}
