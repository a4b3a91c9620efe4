//! Where a journey works: the lock held, the server up, the guard passed, the files read.

use crate::context::Context;
use crate::database;
use crate::engine::{self, Engine, Server};
use crate::error::Error;
use crate::frozen;
use crate::guard;
use crate::image;
use crate::lend;
use crate::lock::{self, ProjectLock};
use crate::migrate::{self, Scripts};
use crate::pg::Session;
use crate::pg::names::DatabaseName;
use crate::scratch_server::{self, Home};
use crate::snapshot::find;
use crate::store::Store;
use crate::{connect, users};

/// Where a journey works: lock held, server up, files read.
pub(crate) struct Site {
    pub engine: Engine,
    pub server: Server,
    /// With the maintenance database; holds the database's advisory lock.
    pub session: Session,
    pub scripts: Scripts,
    pub accounts: users::Plan,
    /// That were there before the files made any.
    pub former_roles: Vec<String>,
    /// The store's snapshots, if the guard had to know them.
    listing: Option<find::Listing>,
    /// `None`: whoever works here holds it.
    _lock: Option<ProjectLock>,
}

impl Site {
    /// On a scratch server, where nobody else works.
    pub(crate) async fn on_scratch(
        engine: Engine,
        server: Server,
        session: Session,
        files: Files,
    ) -> Result<Self, Error> {
        let former_roles = image::roles(&session).await?;
        let Files { accounts, scripts } = files;
        let (listing, lock) = (None, None);
        Ok(Self { engine, server, session, scripts, accounts, former_roles, listing, _lock: lock })
    }

    /// Who owns the database and runs the scripts.
    pub fn owner<'a>(&self, ctx: &'a Context) -> &'a str {
        &ctx.config.database.user
    }

    /// The store's snapshots: as the guard has listed them a moment ago, or as they are now.
    pub(crate) async fn listing(
        &self,
        ctx: &Context,
        store: &Store,
    ) -> Result<find::Listing, Error> {
        match &self.listing {
            Some(listing) => Ok(listing.clone()),
            None => find::listing(ctx, store).await,
        }
    }

    /// Goes on with a server whose data was to be replaced or frozen. The old session has ended with the
    /// old data, or is ended: a server that was not stopped after all would know its locks still.
    pub(crate) async fn move_to(&mut self, ctx: &Context, server: Server) -> Result<(), Error> {
        self.move_to_closed(ctx, server).await?;
        Ok(database::let_in(&self.session, &ctx.config.database.name).await?)
    }

    /// The same, and an image that was frozen while nobody was let in stays closed.
    pub(crate) async fn move_to_closed(
        &mut self,
        ctx: &Context,
        server: Server,
    ) -> Result<(), Error> {
        let session = connect::session(&server.admin).await?;
        let old = std::mem::replace(&mut self.session, session);
        // Told before it goes: a backend lets go of its locks a moment after its session was closed.
        let _ = old.batch("select pg_advisory_unlock_all()").await;
        old.close().await;
        lock::database(&self.session, &ctx.config.database.name).await?;
        self.server = server;
        make_roles(ctx, self).await
    }
}

/// Files are read before a server is started: a typing error costs nobody a minute. Nothing is changed
/// on a server before the guard has let it pass.
pub(crate) async fn open(ctx: &Context, verb: &'static str) -> Result<Site, Error> {
    guard::replace_in_environment(ctx, verb)?;
    let lock = lock::project(&ctx.state_dir(), verb)?;
    let files = read_files(ctx)?;
    match scratch_server::sweep_of(ctx, Home::Beside).await {
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => ctx.report.warn(format!("a scratch server stays: {error}")),
        Ok(()) => {}
    }
    let choice = ctx.until_cancelled(engine::choose(ctx)).await?;
    ctx.report.note(choice.why);
    let server = choice.engine.ensure(ctx).await?;
    enter(ctx, verb, lock, files, choice.engine, server).await
}

/// What of the checkout decides about a database, beside the rows.
pub(crate) struct Files {
    pub accounts: users::Plan,
    pub scripts: Scripts,
}

/// Reads accounts and scripts.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn read_files(ctx: &Context) -> Result<Files, Error> {
    let names = DatabaseName::live(&ctx.config.database.name);
    let accounts = users::read(ctx, &names)?;
    let scripts = migrate::resolve(ctx, &names, &ctx.config.database.user)?;
    Ok(Files { accounts, scripts })
}

pub(crate) async fn enter(
    ctx: &Context,
    verb: &'static str,
    lock: ProjectLock,
    files: Files,
    engine: Engine,
    server: Server,
) -> Result<Site, Error> {
    let listing = let_pass(ctx, &server, verb).await?;
    let session = connect::session(&server.admin).await?;
    let name = &ctx.config.database.name;
    lock::database(&session, name).await?;
    database::recover(ctx, &server, name).await?;
    lend::sweep(ctx, &session, &database::list(&session).await?, name).await;
    frozen::give_what_is_left(ctx, &server, &session).await?;
    let former_roles = image::roles(&session).await?;
    let Files { accounts, scripts } = files;
    let _lock = Some(lock);
    Ok(Site { engine, server, session, scripts, accounts, former_roles, listing, _lock })
}

/// Roles as the files say, and the account that owns the database, whether the files make it or not.
pub(crate) async fn make_roles(ctx: &Context, site: &Site) -> Result<(), Error> {
    users::apply_roles(ctx, &site.server.admin, &site.accounts).await?;
    let existing = if site.server.started_by_us {
        users::Existing::SetPassword
    } else {
        users::Existing::Keep
    };
    users::ensure_owner(ctx, &site.server.admin, &site.accounts, existing).await
}

/// Asks the guard whether databases may be replaced on the server. For one that is not ours it has to
/// know where snapshots came from; gives back the listing that this took.
pub(crate) async fn let_pass(
    ctx: &Context,
    server: &Server,
    verb: &str,
) -> Result<Option<find::Listing>, Error> {
    let (mut listing, mut sources) = (None, Vec::new());
    if !server.started_by_us {
        let store = Store::open(ctx).await?;
        let listed = find::listing(ctx, &store).await?;
        let identifier = &server.system_identifier;
        sources = find::sources_matching(ctx, &store, &listed, identifier).await?;
        listing = Some(listed);
    }
    guard::replace_on_server(ctx, server, &sources, verb).await?;
    Ok(listing)
}

/// How many others are connected to a database.
pub(crate) async fn sessions(session: &Session, name: &str) -> Result<i64, Error> {
    database::sessions(session, name).await.map_err(Error::Server)
}
