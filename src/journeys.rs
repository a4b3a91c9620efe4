//! The five journeys: up, reset, seed, snapshot, ci, and the one build that four of them share.
//!
//! Read this file first. Each function is the order of the acts; what an act does stands in the
//! module that it calls. A database is always built beside the live one and swapped in when whole.

use camino::Utf8Path;
use serde::Serialize;

use crate::ancestor;
use crate::connect;
use crate::context::Context;
use crate::database::{self, Applied, Marker, Origin, Scratch};
use crate::engine::{self, Engine, Keep, Server};
use crate::error::Error;
use crate::guard;
use crate::image;
use crate::lend;
use crate::lock::{self, ProjectLock};
use crate::migrate::{self, Scripts};
use crate::pg::names::DatabaseName;
use crate::pg::tools::Tools;
use crate::pg::{Session, Target};
use crate::prove;
use crate::published;
use crate::reference;
use crate::report::{Check, Reporter, StepRecord, format};
use crate::seed;
use crate::snapshot::find::{self, Wanted};
use crate::snapshot::manifest::Manifest;
use crate::snapshot::{self, choose, dump, load, prune};
use crate::status;
use crate::store::Store;
use crate::template::{self, Fingerprint};
use crate::users;

/// What a new database is filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seed {
    /// The newest fitting snapshot; without one the seed files, without those nothing.
    Auto,
    /// The newest fitting snapshot, or an error.
    Latest,
    /// This snapshot, by its id or the beginning of it.
    Id(String),
    /// The files of `seed/`, after the migrations.
    Files,
    Nothing,
}

impl Seed {
    /// As it is typed after `--seed`.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            None => Self::Auto,
            Some("latest") => Self::Latest,
            Some("files") => Self::Files,
            Some("none") => Self::Nothing,
            Some(id) => Self::Id(id.to_owned()),
        }
    }
}

/// How a database is to be built.
#[derive(Debug, Clone)]
pub struct Wish {
    pub seed: Seed,
    /// Stop migrating at this version.
    pub to: Option<String>,
    /// Take the next fitting snapshot when the newest is damaged.
    pub skip_damaged: bool,
    /// Whether the database that is replaced stays, for [`undo_reset`].
    pub keep: Keep,
}

/// What `up`, `reset` and `seed` ended with.
#[derive(Debug, Serialize)]
pub struct Ready {
    pub url: String,
    pub database: String,
    pub engine: String,
    pub schema_version: Option<String>,
    pub origin: Option<Origin>,
    /// Scripts that ran.
    pub migrated: Vec<migrate::Ran>,
    pub steps: Vec<StepRecord>,
    pub warnings: Vec<String>,
    #[serde(skip)]
    pub target: Target,
}

/// Engine ready → (no database yet? build it) → accounts → migrate → grants.
///
/// # Errors
/// Any; the database is then what it was before.
pub async fn up(ctx: &Context, wish: Wish, fresh: Fresh) -> Result<Ready, Error> {
    let mut site = open(ctx, "up").await?;
    let live = database::replaceable(&site.session, &ctx.config.database.name).await?;
    make_roles(ctx, &site).await?;
    let Some(live) = live.filter(|_| fresh == Fresh::No) else {
        return build_and_swap(ctx, &mut site, wish).await;
    };
    if wish.seed != Seed::Auto {
        ctx.report.warn(format!(
            "`{}` is there already: `--seed` is for a new one (`seedbed reset --seed …`)",
            live.name
        ));
    }
    let names = DatabaseName::live(&live.name);
    users::apply_before(ctx, &site.server.admin, &names, &site.accounts).await?;
    let target = connect::owner(ctx, &site.server, &live.name);
    let options = migrate::Options::default();
    let (applied, version) = run_scripts(ctx, &site.scripts, &target, &names, &options).await?;
    users::apply_after(ctx, &site.server.admin, &names, &site.accounts).await?;
    let origin = live.marker.and_then(|marker| marker.origin);
    Ok(ready(ctx, &site, applied, version, origin))
}

/// Whether `up` builds a new database although there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    Yes,
    No,
}

/// The live database replaced by a clean seeded one: `reset`, and `seed --snapshot`.
///
/// # Errors
/// Any; the database is then what it was before.
pub async fn replace(ctx: &Context, verb: &'static str, wish: Wish) -> Result<Ready, Error> {
    let mut site = open(ctx, verb).await?;
    database::replaceable(&site.session, &ctx.config.database.name).await?;
    make_roles(ctx, &site).await?;
    build_and_swap(ctx, &mut site, wish).await
}

/// The database that the last `reset --keep` has replaced is live again, and the present one is kept.
///
/// # Errors
/// [`engine::Error::NothingKept`]; any other: the present one is then live still.
pub async fn undo_reset(ctx: &Context) -> Result<Ready, Error> {
    let mut site = open(ctx, "undo-reset").await?;
    let name = ctx.config.database.name.clone();
    database::replaceable(&site.session, &name).await?;
    let step = ctx.report.step("bring the last database back");
    let calm = ctx.uninterrupted();
    if !database::bring_back(ctx, &site.session, &name).await? {
        if site.server.started_by_us
            && let Some(other) = image::held_with(&site.session, &name, None).await?
        {
            return Err(Error::Refused {
                message: format!("`undo-reset` would replace {other} as well"),
                hint: Some("drop or move it first".to_owned()),
            });
        }
        let sessions = sessions(&site.session, &name).await?;
        let server = site.engine.undo_replace(ctx).await?;
        database::note_ended(ctx, sessions, &name);
        site.move_to(&calm, server).await?;
    }
    // It is done: whoever asks to stop now asks too late.
    let ctx = &calm;
    step.done("");
    let target = connect::owner(ctx, &site.server, &name);
    let version = migrate::info(ctx, &target, &site.scripts).await?.schema_version;
    let live = database::find(&site.session, &name).await?;
    let origin = live.and_then(|live| live.marker).and_then(|marker| marker.origin);
    Ok(ready(ctx, &site, Vec::new(), version, origin))
}

/// A file of the team's own into the current database.
///
/// # Errors
/// Any; the file is loaded whole or not at all.
pub async fn seed_file(ctx: &Context, file: &Utf8Path) -> Result<seed::Loaded, Error> {
    guard::replace_in_environment(ctx, "seed")?;
    let _lock = lock::project(&ctx.state_dir(), "seed")?;
    // A server that the environment merely names is somebody else's until the guard has seen it.
    let server = connect::running(ctx).await?.ok_or(Error::NoServer)?;
    let_pass(ctx, &server, "seed").await?;
    let session = connect::session(&server.admin).await?;
    lock::database(&session, &ctx.config.database.name).await?;
    database::replaceable(&session, &ctx.config.database.name).await?;
    let target = connect::owner(ctx, &server, &ctx.config.database.name);
    let loaded = seed::load_file(ctx, &target, Some(&server.tools), file).await;
    session.close().await;
    loaded
}

/// What `snapshot create` ended with.
#[derive(Debug, Serialize)]
pub struct Published {
    pub id: String,
    pub object: String,
    pub store: String,
    pub database: String,
    pub schema_version: Option<String>,
    pub proved: bool,
    /// Of `--image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<published::Made>,
    #[serde(flatten)]
    pub facts: dump::Facts,
    pub steps: Vec<StepRecord>,
    pub warnings: Vec<String>,
}

/// Accounts and grants on the environment's database, as the files say: a deploy.
///
/// # Errors
/// Any; each statement is re-runnable.
pub async fn users_apply(ctx: &Context) -> Result<Vec<String>, Error> {
    let reached = connect::reach(ctx).await?;
    let names = DatabaseName::live(&reached.target.database);
    let accounts = users::read(ctx, &names)?;
    guard::deploy(ctx, &reached.target, "users apply", &accounts.describe())?;
    let admin = reached.server.as_ref().map_or(&reached.target, |server| &server.admin);
    users::apply_roles(ctx, admin, &accounts).await?;
    users::apply_before(ctx, admin, &names, &accounts).await?;
    users::apply_after(ctx, admin, &names, &accounts).await?;
    Ok(accounts.describe())
}

/// What [`users_apply`] would run. Decided by the files alone: no server is asked.
///
/// # Errors
/// What is wrong with the files.
pub fn users_plan(ctx: &Context) -> Result<users::DryRun, Error> {
    let accounts = users::read(ctx, &DatabaseName::live(&ctx.config.database.name))?;
    let plan = users::dry_run(&accounts);
    for skipped in &plan.skipped {
        ctx.report.warn(skipped.clone());
    }
    Ok(plan)
}

/// Where the live database's effective privileges differ from what the files give. Where no reference
/// may be made beside it, one is made on a scratch server.
///
/// # Errors
/// What could not be compared.
pub async fn users_check(ctx: &Context) -> Result<users::Drift, Error> {
    let live = DatabaseName::live(&ctx.config.database.name);
    match open(ctx, "users check").await {
        Ok(site) => compare_grants(ctx, &site, &live).await,
        Err(Error::Refused { .. }) => reference::compare_grants(ctx, &live).await,
        Err(error) => Err(error),
    }
}

/// Compares a database's effective privileges with what the files give on a scratch database with the
/// same schema.
pub(crate) async fn compare_grants(
    ctx: &Context,
    site: &Site,
    database: &DatabaseName,
) -> Result<users::Drift, Error> {
    let name = &database.final_name;
    let locale = database::Locale::default();
    let reference = Scratch::create(ctx, &site.server, name, site.owner(ctx), &locale).await?;
    // Its scripts run a second time for this, which is nobody's news.
    let quiet = Context { report: Reporter::silent(), ..ctx.clone() };
    let compared = ctx.until_cancelled(async {
        let names = reference.names();
        let step = ctx.report.step("build a reference for the grants");
        users::apply_before(&quiet, &site.server.admin, &names, &site.accounts).await?;
        let target = connect::owner(&quiet, &site.server, reference.name());
        let options = migrate::Options::default();
        run_scripts(&quiet, &site.scripts, &target, &names, &options).await?;
        step.done("");
        let live = site.server.admin.with_database(&database.actual);
        let drift = users::check(ctx, &live, &reference.admin(), &names, &site.accounts).await?;
        Ok::<_, Error>(drift)
    });
    let compared = compared.await;
    reference.discard().await?;
    compared
}

/// Every candidate, and why it is taken or not for this checkout.
///
/// # Errors
/// What the store or the files said.
pub async fn why(ctx: &Context) -> Result<find::Why, Error> {
    let names = DatabaseName::live(&ctx.config.database.name);
    let scripts = migrate::resolve(ctx, &names, &ctx.config.database.user)?;
    let store = Store::open(ctx).await?;
    let facts = match connect::running(ctx).await? {
        Some(server) => {
            let session = connect::session(&server.admin).await?;
            find::facts(ctx, &session, server.version_num).await?
        }
        None => choose::Facts::unknown(),
    };
    find::why(ctx, &store, &find::checkout(ctx, &scripts), &facts).await
}

/// Stops the server of this project. With its data go scratch servers that runs which were killed have
/// left.
///
/// # Errors
/// What the engine said.
pub async fn down(ctx: &Context, volumes: engine::Volumes) -> Result<engine::Stopped, Error> {
    let _lock = lock::project(&ctx.state_dir(), "down")?;
    if volumes == engine::Volumes::Remove {
        match crate::scratch_server::sweep(ctx).await {
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => ctx.report.warn(format!("a scratch server stays: {error}")),
            Ok(()) => {}
        }
    }
    match engine::chosen_before(ctx).await? {
        Some(engine) => Ok(engine.stop(ctx, volumes).await?),
        None => Ok(engine::Stopped::default()),
    }
}

/// How `snapshot create` is to run.
#[derive(Debug, Clone, Copy)]
pub struct CreateOptions {
    /// Restore it on a scratch server and compare, before it is published.
    pub prove: bool,
    /// A sudden drop against the last snapshot is an error.
    pub strict: bool,
}

/// The job: dump → compare with the last one → prove → publish. The source is only read.
///
/// # Errors
/// Any; no snapshot exists then.
pub async fn snapshot_create(ctx: &Context, options: CreateOptions) -> Result<Published, Error> {
    let store = Store::open(ctx).await?;
    let reached = connect::reach(ctx).await?;
    // On a server of our own nothing is hidden from the snapshot: its superuser reads.
    let (source, tools) = match reached.server {
        Some(server) if server.started_by_us => {
            (server.admin.with_database(&reached.target.database), server.tools)
        }
        Some(server) => (reached.target, server.tools),
        None => {
            let session = connect::session(&reached.target).await?;
            let major = status::major(&session).await?;
            session.close().await;
            let tools = Tools::find(ctx, major).await?;
            (reached.target, tools)
        }
    };
    let began = std::time::Instant::now();
    let dumped = dump::dump(ctx, &source, &tools, &store, &dump::DumpOptions::default()).await?;
    let mut manifest = dumped.manifest;
    compare_with_last(ctx, &store, &manifest, options.strict).await?;
    if options.prove {
        prove::prove(ctx, &store, &manifest).await?;
        manifest.proved = true;
    }
    let object = snapshot::publish::publish(ctx, &store, &manifest, began.elapsed()).await?;
    Ok(Published {
        id: manifest.id.clone(),
        object,
        store: store.describe(),
        database: manifest.database.clone(),
        schema_version: snapshot::history::current_version(&manifest.history),
        proved: manifest.proved,
        image: None,
        facts: dumped.facts,
        steps: ctx.report.records(),
        warnings: ctx.report.warnings(),
    })
}

/// What `snapshot prune` removed, or would.
#[derive(Debug, Serialize)]
pub struct Pruned {
    #[serde(flatten)]
    pub snapshots: prune::Pruned,
    pub images: published::Swept,
}

/// Snapshots by the policy, chunks that nothing names, images of snapshots that have gone.
///
/// # Errors
/// What the store said.
pub async fn snapshot_prune(
    ctx: &Context,
    store: &Store,
    mode: prune::Mode,
) -> Result<Pruned, Error> {
    let snapshots = prune::prune(ctx, store, mode).await?;
    let kept = snapshots.snapshots.iter().filter(|line| line.fate.is_kept());
    let kept = kept.map(|line| line.id.clone()).collect();
    // A snapshot that cannot be read may be one that an image belongs to.
    if snapshots.chunks_stay.is_some() {
        return Ok(Pruned { snapshots, images: published::Swept::default() });
    }
    let images = match published::prune(ctx, store, &kept, mode).await {
        Ok(images) => images,
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => {
            ctx.report.warn(format!("images stay: {error}"));
            published::Swept::default()
        }
    };
    Ok(Pruned { snapshots, images })
}

/// Says what fell since the last snapshot of the same database.
async fn compare_with_last(
    ctx: &Context,
    store: &Store,
    manifest: &Manifest,
    strict: bool,
) -> Result<(), Error> {
    let last = ctx.until_cancelled(find::last_of(store, &manifest.database)).await?;
    let last = match last {
        find::Last::Found(last) => last,
        find::Last::None => return Ok(()),
        find::Last::OutOfReach { looked } => {
            let database = manifest.database.clone();
            let error = snapshot::Error::LastOutOfReach { database, looked };
            if strict {
                return Err(error.into());
            }
            ctx.report.warn(error.to_string());
            return Ok(());
        }
    };
    let findings = snapshot::shrink::drops(&last, manifest);
    if strict && !findings.is_empty() {
        return Err(snapshot::Error::Shrunk { id: last.id, findings }.into());
    }
    for finding in findings {
        ctx.report.warn(format!("far less than in snapshot {}: {finding}", last.id));
    }
    Ok(())
}

/// What `ci` found out.
#[derive(Debug, Serialize)]
pub struct Proof {
    pub database: String,
    pub origin: Option<Origin>,
    /// The checkout's remaining scripts, each timed.
    pub migrated: Vec<migrate::Ran>,
    pub schema_version: Option<String>,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    pub steps: Vec<StepRecord>,
    pub warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_url: Option<String>,
    /// Of `--databases`: all that were kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept_urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_exit: Option<i32>,
}

/// How `ci` is to run.
#[derive(Debug, Clone)]
pub struct CiOptions {
    pub seed: Seed,
    pub skip_damaged: bool,
    pub keep: bool,
    /// How many databases the command gets; `None`: the one that was proved.
    pub databases: Option<u32>,
    /// The team's own tests; empty for none.
    pub command: Vec<String>,
    /// What the command prints goes to standard error: standard output carries one JSON document.
    pub quiet_stdout: bool,
}

/// Throwaway database → newest fitting snapshot → pending scripts → checks → the team's own tests.
///
/// # Errors
/// What could not be tried; a check that does not hold stands in the [`Proof`].
pub async fn ci(ctx: &Context, options: CiOptions) -> Result<Proof, Error> {
    let mut site = open(ctx, "ci").await?;
    make_roles(ctx, &site).await?;
    let wish = Wish {
        seed: options.seed.clone(),
        to: None,
        skip_damaged: options.skip_damaged,
        keep: Keep::No,
    };
    let built = async {
        let source = choose_source(ctx, &site, &wish).await?;
        if let Some(built) = from_any_image(ctx, &mut site, &source, &wish).await? {
            return Ok(built);
        }
        let build = async |source: &Source| build(ctx, &site, source, &wish).await;
        from_first_whole(ctx, &site, &wish, source, build).await
    };
    let built = built.await.map_err(|error| match error.exit() {
        // Scripts that run on an empty database prove little, and a wrong store would go unnoticed.
        crate::error::Exit::NoSnapshot => Error::NoData {
            what: String::new(),
            error: Box::new(error),
            instead: "prove the scripts without data: `seedbed ci --empty`".to_owned(),
        },
        _ => error,
    })?;
    let proof = crate::check::prove(ctx, &site, &built, &options).await;
    if options.keep {
        built.scratch.keep().await?;
    } else {
        built.scratch.discard().await?;
    }
    proof
}

/// Where a journey works: lock held, server up, files read.
pub(crate) struct Site {
    pub engine: Engine,
    pub server: Server,
    /// With the maintenance database; holds the database's advisory lock.
    pub session: Session,
    pub scripts: Scripts,
    pub accounts: users::Plan,
    /// The store's snapshots, if the guard had to know them.
    listing: Option<find::Listing>,
    /// `None`: whoever works here holds it.
    _lock: Option<ProjectLock>,
}

impl Site {
    /// On a scratch server, where nobody else works.
    pub(crate) fn on_scratch(
        engine: Engine,
        server: Server,
        session: Session,
        files: Files,
    ) -> Self {
        let Files { accounts, scripts } = files;
        Self { engine, server, session, scripts, accounts, listing: None, _lock: None }
    }

    /// Who owns the database and runs the scripts.
    pub fn owner<'a>(&self, ctx: &'a Context) -> &'a str {
        &ctx.config.database.user
    }

    /// The store's snapshots: as the guard has listed them a moment ago, or as they are now.
    async fn listing(&self, ctx: &Context, store: &Store) -> Result<find::Listing, Error> {
        match &self.listing {
            Some(listing) => Ok(listing.clone()),
            None => find::listing(ctx, store).await,
        }
    }

    /// Goes on with a server whose data was to be replaced or frozen. The old session has ended with the
    /// old data, or is ended: a server that was not stopped after all would know its locks still.
    pub(crate) async fn move_to(&mut self, ctx: &Context, server: Server) -> Result<(), Error> {
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

/// A database that is whole and not live yet.
pub(crate) struct Built {
    pub scratch: Scratch,
    pub migrated: Vec<migrate::Ran>,
    pub schema_version: Option<String>,
}

/// Files are read before a server is started: a typing error costs nobody a minute. Nothing is changed
/// on a server before the guard has let it pass.
async fn open(ctx: &Context, verb: &'static str) -> Result<Site, Error> {
    guard::replace_in_environment(ctx, verb)?;
    let lock = lock::project(&ctx.state_dir(), verb)?;
    let files = read_files(ctx)?;
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

async fn enter(
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
    let Files { accounts, scripts } = files;
    Ok(Site { engine, server, session, scripts, accounts, listing, _lock: Some(lock) })
}

/// Builds what `reset` would give from the same rows that the live database came from, and freezes it
/// as the template. The live database is left alone, and the server has to run already.
///
/// # Errors
/// Any; an older template stays then.
pub(crate) async fn make_template(
    ctx: &Context,
    verb: &'static str,
    origin: &Origin,
) -> Result<(), Error> {
    guard::replace_in_environment(ctx, verb)?;
    let lock = lock::project(&ctx.state_dir(), verb)?;
    let files = read_files(ctx)?;
    let engine = engine::chosen_before(ctx).await?.ok_or(Error::NoServer)?;
    let server = engine.running(ctx).await?.ok_or(Error::NoServer)?;
    let site = enter(ctx, verb, lock, files, engine, server).await?;
    make_roles(ctx, &site).await?;
    let seed = match origin {
        Origin::Snapshot { id, .. } => Seed::Id(id.clone()),
        Origin::Files => Seed::Files,
        Origin::Empty => Seed::Nothing,
    };
    let wish = Wish { seed, to: None, skip_damaged: false, keep: Keep::No };
    let source = choose_source(ctx, &site, &wish).await.map_err(|error| match error.exit() {
        crate::error::Exit::NoSnapshot => Error::NoData {
            what: "the snapshot that the live database came from is needed once more: ".to_owned(),
            error: Box::new(error),
            instead: "go on from the newest one: `seedbed reset`".to_owned(),
        },
        _ => error,
    })?;
    let Built { scratch, .. } = build(ctx, &site, &source, &wish).await?;
    match ctx.until_cancelled(template::freeze_itself(ctx, &scratch)).await {
        Ok(()) => scratch.release().await,
        Err(error) => return Err(given_up(ctx, scratch, error).await),
    }
    Ok(())
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

async fn build_and_swap(ctx: &Context, site: &mut Site, wish: Wish) -> Result<Ready, Error> {
    let source = choose_source(ctx, site, &wish).await?;
    if let Some(ready) = from_image(ctx, site, &source, &wish).await? {
        return Ok(ready);
    }
    let arrival = match template_is_here(ctx, site, &source, &wish).await? {
        true => published::Arrival::None,
        false => match from_nearest_image(ctx, site, &source, &wish).await? {
            Some(built) => published::Arrival::Migrated(Box::new(built)),
            None => published::arrive(ctx, site, &source, &wish, published::For::Everybody).await?,
        },
    };
    let site_now = &*site;
    let (built, frozen) = match arrival {
        published::Arrival::Live(ready) => return Ok(*ready),
        published::Arrival::Migrated(built) => {
            freeze_or_give_up(ctx, site_now, *built, &wish).await?
        }
        published::Arrival::None => {
            let built = from_first_whole(ctx, site_now, &wish, source, async |source| {
                if let Some(built) = cloned(ctx, site_now, source, &wish).await? {
                    return Ok((built, Frozen::Already));
                }
                let built = match cloned_from_nearest(ctx, site_now, source, &wish).await? {
                    Some(built) => built,
                    None => build(ctx, site_now, source, &wish).await?,
                };
                freeze_or_give_up(ctx, site_now, built, &wish).await
            });
            built.await?
        }
    };
    let Built { scratch, migrated, schema_version } = built;
    let origin = scratch.marker().origin.clone();
    let step = ctx.report.step(format!("swap in `{}`", scratch.final_name()));
    database::swap_in(ctx, scratch, wish.keep).await?;
    step.done("");
    if frozen == Frozen::Later {
        freeze_image(ctx, site, schema_version.clone()).await?;
    }
    Ok(ready(ctx, site, migrated, schema_version, origin))
}

/// Whether a template serves this build, exactly or nearly: nothing has to come from the store.
async fn template_is_here(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<bool, Error> {
    let name = &ctx.config.database.name;
    let found = database::list(&site.session).await?;
    let fingerprint = fingerprint(ctx, site, source, wish)?;
    if template::ready(&found, name, &fingerprint).is_some() {
        return Ok(true);
    }
    let Some(base) = base(ctx, site, source, wish)? else { return Ok(false) };
    Ok(!template::of_base(&site.session, name, &base).await?.is_empty())
}

async fn freeze_or_give_up(
    ctx: &Context,
    site: &Site,
    built: Built,
    wish: &Wish,
) -> Result<(Built, Frozen), Error> {
    match freeze_template(ctx, site, &built, wish).await {
        Ok(frozen) => Ok((built, frozen)),
        Err(error) => Err(given_up(ctx, built.scratch, error).await),
    }
}

/// Whether what was built is frozen, so that the same build is a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frozen {
    /// As a template.
    Already,
    /// As an image, once it is live.
    Later,
}

/// Freezes a template, where not the whole server will be frozen as an image.
async fn freeze_template(
    ctx: &Context,
    site: &Site,
    built: &Built,
    wish: &Wish,
) -> Result<Frozen, Error> {
    let bytes = image::size_of(&site.session, built.scratch.name()).await?;
    // What is kept would be frozen with it.
    if wish.keep == Keep::No && image::is_meant(ctx, &site.server, bytes) {
        let name = &ctx.config.database.name;
        let why = match image::shared_with(&site.session, name, None, built.scratch.name()).await? {
            Some(other) => Some(format!("the server holds more than this database: {other}")),
            None => match site.engine.can_freeze(ctx).await {
                Ok(()) => None,
                Err(engine::Error::Interrupted) => return Err(Error::Interrupted),
                Err(engine::Error::NoPool { reason }) => Some(reason),
                // The template does the same: what was built is not lost for this.
                Err(error) => Some(error.to_string()),
            },
        };
        match why {
            None => return Ok(Frozen::Later),
            Some(why) => ctx.report.note(format!("freezing a template, no image: {why}")),
        }
    }
    // Of no use where nobody could go on from it.
    let applied = match built.scratch.marker().base {
        Some(_) => applied(ctx, &connect::owner(ctx, &site.server, built.scratch.name())).await?,
        None => Vec::new(),
    };
    template::freeze(ctx, &site.server, &built.scratch, site.owner(ctx), applied).await?;
    Ok(Frozen::Already)
}

/// Freezes the live database with its server. It is whole already, so that what goes wrong here costs
/// only the next reset its time.
async fn freeze_image(
    ctx: &Context,
    site: &mut Site,
    schema_version: Option<String>,
) -> Result<(), Error> {
    let name = ctx.config.database.name.clone();
    match image::freeze(ctx, &site.engine, &site.server, &name, schema_version).await {
        Ok(Some(server)) => {
            site.move_to(ctx, server).await?;
            match image::prune(ctx, &site.engine, false).await {
                Ok(pruned) => {
                    for gone in pruned.removed {
                        ctx.report.detail(format!("removed the image {}", gone.name));
                    }
                }
                Err(error) => ctx.report.warn(format!("old images stay: {error}")),
            }
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(_) if ctx.cancel.is_cancelled() => Err(Error::Interrupted),
        Err(error) => {
            ctx.report.warn(format!("the next reset has to build again: {error}"));
            let server = site.engine.ensure(ctx).await?;
            site.move_to(ctx, server).await
        }
    }
}

/// The server's data replaced by a clone of the image that the same build left behind, if there is one
/// and nothing but this database is replaced with it.
async fn from_image(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Ready>, Error> {
    if !ctx.config.images.enabled || !site.server.started_by_us {
        return Ok(None);
    }
    let name = ctx.config.database.name.clone();
    let fingerprint = fingerprint(ctx, site, source, wish)?;
    if is_small_template(ctx, site, &fingerprint).await? {
        return Ok(None);
    }
    let Some(facts) = image::find(ctx, &site.engine, &fingerprint).await? else { return Ok(None) };
    let shared = image::held_with(&site.session, &name, Some(&facts.roles)).await?;
    if let Some(other) = shared {
        ctx.report.note(format!("the image is not taken: it would replace {other} as well"));
        return Ok(None);
    }
    let sessions = sessions(&site.session, &name).await?;
    let step = ctx.report.step("serve a clone of the image");
    let server = site.engine.replace(ctx, &fingerprint, wish.keep).await?;
    // It is done: whoever asks to stop now asks too late.
    let ctx = &ctx.uninterrupted();
    database::note_ended(ctx, sessions, &name);
    site.move_to(ctx, server).await?;
    database::renew(&site.session, &name).await?;
    step.done(fingerprint);
    Ok(Some(ready(ctx, site, Vec::new(), facts.schema_version, facts.origin)))
}

/// Where there is no database yet, as in a new branch: the server's data replaced by a clone of the image that
/// this checkout goes on from, and its database brought to where the checkout is before anybody sees it.
async fn from_nearest_image(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    let name = &ctx.config.database.name;
    let is_new = database::find(&site.session, name).await?.is_none();
    if !is_new || !ctx.config.images.enabled || !site.server.started_by_us {
        return Ok(None);
    }
    let Some(base) = base(ctx, site, source, wish)? else { return Ok(None) };
    let images = match image::of_base(ctx, &site.engine, &base).await {
        Ok(images) => images,
        Err(_) if ctx.cancel.is_cancelled() => return Err(Error::Interrupted),
        Err(error) => {
            ctx.report.note(format!("no image is gone on from: {error}"));
            return Ok(None);
        }
    };
    let past = |facts: &image::Facts| (facts.applied.clone(), facts.made_at);
    let here = ancestor::Here::new(ctx, &site.scripts);
    let Some(nearest) = ancestor::nearest(images, past, &here) else { return Ok(None) };
    let facts = &nearest.found;
    if let Some(other) = image::held_with(&site.session, name, Some(&facts.roles)).await? {
        ctx.report.note(format!("the image is not taken: it would replace {other} as well"));
        return Ok(None);
    }
    ctx.report.note(nearest.note("image"));
    let step = ctx.report.step("serve a clone of the image");
    let server = match site.engine.replace(ctx, &facts.fingerprint, wish.keep).await {
        Ok(server) => server,
        Err(_) if ctx.cancel.is_cancelled() => return Err(Error::Interrupted),
        Err(error) => {
            drop(step);
            ctx.report.warn(format!("the image is not taken: {error}"));
            let server = site.engine.ensure(ctx).await?;
            site.move_to(ctx, server).await?;
            return Ok(None);
        }
    };
    site.move_to(&ctx.uninterrupted(), server).await?;
    step.done(&facts.fingerprint);
    migrate_out_of_sight(ctx, site, source, wish).await.map(Some)
}

/// As [`from_nearest_image`], and with what is published: for a database that nobody else is to see.
async fn from_any_image(
    ctx: &Context,
    site: &mut Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    if database::find(&site.session, &ctx.config.database.name).await?.is_some() {
        return Ok(None);
    }
    if let Some(built) = from_nearest_image(ctx, site, source, wish).await? {
        return Ok(Some(built));
    }
    match published::arrive(ctx, site, source, wish, published::For::Scratch).await? {
        published::Arrival::Migrated(built) => Ok(Some(*built)),
        published::Arrival::None | published::Arrival::Live(_) => Ok(None),
    }
}

/// Takes a database that came with an image out of sight and brings it to where this checkout is.
pub(crate) async fn migrate_out_of_sight(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<Built, Error> {
    let mut scratch = Scratch::out_of_sight(&site.server, &ctx.config.database.name).await?;
    let names = scratch.names();
    match ctx.until_cancelled(migrate_clone(ctx, site, &names)).await {
        Ok((migrated, schema_version)) => {
            scratch.set_fingerprint(&fingerprint(ctx, site, source, wish)?);
            scratch.set_base(base(ctx, site, source, wish)?);
            Ok(Built { scratch, migrated, schema_version })
        }
        Err(error) => Err(given_up(ctx, scratch, error).await),
    }
}

/// Whether the same build stands as a template that is too small for an image: it is cloned in less time
/// than a look into the pool takes, where other projects have one.
async fn is_small_template(ctx: &Context, site: &Site, fingerprint: &str) -> Result<bool, Error> {
    let found = database::list(&site.session).await?;
    match template::ready(&found, &ctx.config.database.name, fingerprint) {
        Some((name, _)) => {
            Ok(image::size_of(&site.session, name).await? < ctx.config.images.min_size)
        }
        None => Ok(false),
    }
}

/// Brings a clone of an older build to where this checkout is.
pub(crate) async fn migrate_clone(
    ctx: &Context,
    site: &Site,
    names: &DatabaseName,
) -> Result<Ran, Error> {
    users::apply_before(ctx, &site.server.admin, names, &site.accounts).await?;
    let target = connect::owner(ctx, &site.server, &names.actual);
    let options = migrate::Options::default();
    let ran = run_scripts(ctx, &site.scripts, &target, names, &options).await?;
    users::apply_after(ctx, &site.server.admin, names, &site.accounts).await?;
    Ok(ran)
}

/// The migration history of a database; empty where it has none.
pub(crate) async fn applied(ctx: &Context, target: &Target) -> Result<Vec<Applied>, Error> {
    let session = connect::session(target).await?;
    let rows = migrate::read_history(&session, &ctx.config.migrate).await?;
    session.close().await;
    let rows = rows.unwrap_or_default().into_iter();
    Ok(rows
        .map(|row| Applied {
            rank: row.installed_rank,
            version: row.version,
            description: row.description,
            kind: row.kind,
            checksum: row.checksum,
            success: row.success,
        })
        .collect())
}

/// How many others are connected to a database.
async fn sessions(session: &Session, name: &str) -> Result<i64, Error> {
    database::sessions(session, name).await.map_err(Error::Server)
}

/// Calls `work` with the source that `wish` means. A snapshot whose chunks turn out to be damaged while
/// it is loaded is an error that names the next one that fits; with `skip_damaged` that one is taken.
async fn from_first_whole<T>(
    ctx: &Context,
    site: &Site,
    wish: &Wish,
    mut source: Source,
    work: impl AsyncFn(&Source) -> Result<T, Error>,
) -> Result<T, Error> {
    loop {
        let error = match work(&source).await {
            Err(error) if error.exit() == crate::error::Exit::Damaged => error,
            other => return other,
        };
        let (Source::Snapshot { store, manifest }, Seed::Auto | Seed::Latest) =
            (&source, &wish.seed)
        else {
            return Err(error);
        };
        let checkout = find::checkout(ctx, &site.scripts);
        let facts = find::facts(ctx, &site.session, site.server.version_num).await?;
        let wanted = Wanted::Before { id: manifest.id.clone() };
        let next = async {
            let listing = site.listing(ctx, store).await?;
            find::find(ctx, store, &listing, &wanted, &checkout, &facts).await
        };
        let next = match next.await {
            Ok(next) => Some(next),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            // Whatever is wrong with the older ones: the damage is what the user has to know.
            Err(_) => None,
        };
        match next {
            Some(next) if wish.skip_damaged => {
                ctx.report.warn(format!("{error}; taking {} instead", next.id));
                let store = Box::new(Store::open(ctx).await?);
                source = Source::Snapshot { store, manifest: Box::new(next) };
            }
            next => {
                return Err(Error::Snapshot(snapshot::Error::DamagedWhileLoading {
                    reason: error.to_string(),
                    id: manifest.id.clone(),
                    next: next.map(|next| next.id),
                }));
            }
        }
    }
}

/// What the build will be filled with.
pub(crate) enum Source {
    Snapshot { store: Box<Store>, manifest: Box<Manifest> },
    Files(Vec<camino::Utf8PathBuf>),
    Nothing,
}

/// `Seed::Auto` takes the seed files where no snapshot fits, or nothing; but a database that came from a
/// snapshot is not replaced by less than one without being told.
async fn choose_source(ctx: &Context, site: &Site, wish: &Wish) -> Result<Source, Error> {
    let files = || {
        let files = seed::files(ctx)?;
        Ok::<_, Error>(if files.is_empty() { Source::Nothing } else { Source::Files(files) })
    };
    let wanted = match &wish.seed {
        Seed::Nothing => return Ok(Source::Nothing),
        Seed::Files => return files(),
        Seed::Auto | Seed::Latest => Wanted::Newest { skip_damaged: wish.skip_damaged },
        Seed::Id(id) => Wanted::Id(id.clone()),
    };
    let step = ctx.report.step("choose snapshot");
    let store = Store::open(ctx).await?;
    let checkout = find::checkout(ctx, &site.scripts);
    let facts = find::facts(ctx, &site.session, site.server.version_num).await?;
    let listing = site.listing(ctx, &store).await?;
    match find::find(ctx, &store, &listing, &wanted, &checkout, &facts).await {
        Ok(manifest) => {
            step.done(manifest.id.clone());
            Ok(Source::Snapshot { store: Box::new(store), manifest: Box::new(manifest) })
        }
        Err(error) if wish.seed == Seed::Auto && error.exit() == crate::error::Exit::NoSnapshot => {
            step.done("none fits");
            let live = database::find(&site.session, &ctx.config.database.name).await?;
            let origin = live.and_then(|live| live.marker).and_then(|marker| marker.origin);
            if let Some(Origin::Snapshot { id, .. }) = origin {
                let what = format!("the database came from snapshot {id}, and ");
                let instead = "replace it by less: `--seed files` or `--seed none`".to_owned();
                return Err(Error::NoData { what, error: Box::new(error), instead });
            }
            let line = format!("{error}; see `seedbed snapshot why`");
            match &error {
                Error::Snapshot(snapshot::Error::NoneFits { newest: None, .. }) => {
                    ctx.report.note(line);
                }
                _ => ctx.report.warn(line),
            }
            let source = files()?;
            ctx.report.note(match &source {
                Source::Files(files) => {
                    let count = format::counted(files.len() as u64, "seed file");
                    format!("loading {count} instead")
                }
                Source::Nothing | Source::Snapshot { .. } => "the database begins empty".to_owned(),
            });
            Ok(source)
        }
        Err(error) => Err(error),
    }
}

/// A clone of the template that the same build left behind, if there is one.
async fn cloned(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    let name = &ctx.config.database.name;
    let fingerprint = fingerprint(ctx, site, source, wish)?;
    let started = std::time::Instant::now();
    let scratch =
        template::clone_ready(ctx, &site.server, name, site.owner(ctx), &fingerprint).await?;
    let Some(scratch) = scratch else { return Ok(None) };
    ctx.report.step_since("clone the frozen template", started).done("");
    // Privileges on the database itself stand outside of what a clone copies.
    let prepared = ctx.until_cancelled(async {
        let names = scratch.names();
        users::apply_before(ctx, &site.server.admin, &names, &site.accounts).await?;
        let target = connect::owner(ctx, &site.server, scratch.name());
        Ok::<_, Error>(migrate::info(ctx, &target, &site.scripts).await?.schema_version)
    });
    match prepared.await {
        Ok(schema_version) => Ok(Some(Built { scratch, migrated: Vec::new(), schema_version })),
        Err(error) => Err(given_up(ctx, scratch, error).await),
    }
}

/// A clone of the template that went the same way for the longest, migrated from there.
async fn cloned_from_nearest(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<Built>, Error> {
    let name = &ctx.config.database.name;
    let Some(base) = base(ctx, site, source, wish)? else { return Ok(None) };
    let templates = template::of_base(&site.session, name, &base).await?;
    let past = |(_, marker): &(String, Marker)| {
        (marker.applied.clone(), marker.made_at.parse().unwrap_or_default())
    };
    let here = ancestor::Here::new(ctx, &site.scripts);
    let Some(nearest) = ancestor::nearest(templates, past, &here) else { return Ok(None) };
    ctx.report.note(nearest.note("template"));
    let started = std::time::Instant::now();
    let (template, marker) = &nearest.found;
    let mut scratch =
        Scratch::clone_of(ctx, &site.server, template, marker, site.owner(ctx)).await?;
    ctx.report.step_since("clone the nearest template", started).done("");
    let names = scratch.names();
    match ctx.until_cancelled(migrate_clone(ctx, site, &names)).await {
        Ok((migrated, schema_version)) => {
            scratch.set_fingerprint(&fingerprint(ctx, site, source, wish)?);
            Ok(Some(Built { scratch, migrated, schema_version }))
        }
        Err(error) => Err(given_up(ctx, scratch, error).await),
    }
}

/// Drops what was being built; returns why.
pub(crate) async fn given_up(ctx: &Context, scratch: Scratch, error: Error) -> Error {
    if let Err(left) = scratch.discard().await {
        ctx.report.detail(format!("the next run removes what is left: {left}"));
    }
    error
}

/// Creates a scratch database and fills it: accounts → rows → scripts → files → grants.
/// On an error the scratch database is dropped.
pub(crate) async fn build(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<Built, Error> {
    let name = &ctx.config.database.name;
    let owner = site.owner(ctx);
    let locale = match source {
        Source::Snapshot { manifest, .. } => snapshot::locale(manifest),
        Source::Files(_) | Source::Nothing => database::Locale::default(),
    };
    let mut scratch = Scratch::create(ctx, &site.server, name, owner, &locale).await?;
    let filled = ctx.until_cancelled(fill(ctx, site, source, wish, &mut scratch)).await;
    match filled {
        Ok(outcome) => {
            scratch.set_fingerprint(&fingerprint(ctx, site, source, wish)?);
            scratch.set_base(base(ctx, site, source, wish)?);
            let (migrated, schema_version) = outcome;
            Ok(Built { scratch, migrated, schema_version })
        }
        Err(error) => Err(given_up(ctx, scratch, error).await),
    }
}

async fn fill(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
    scratch: &mut Scratch,
) -> Result<Ran, Error> {
    let names = scratch.names();
    let owner = site.owner(ctx);
    users::apply_before(ctx, &site.server.admin, &names, &site.accounts).await?;
    if let Source::Snapshot { store, manifest } = source {
        let tools = &site.server.tools;
        load::load(ctx, &scratch.admin(), owner, tools, store, manifest).await?;
    }
    let target = connect::owner(ctx, &site.server, scratch.name());
    let options = migrate::Options { target: wish.to.clone() };
    let outcome = run_scripts(ctx, &site.scripts, &target, &names, &options).await?;
    if let Source::Files(files) = source {
        for file in files {
            seed::load_file(ctx, &target, Some(&site.server.tools), file).await?;
        }
    }
    users::apply_after(ctx, &site.server.admin, &names, &site.accounts).await?;
    scratch.set_origin(match source {
        Source::Snapshot { manifest, .. } => origin_of(manifest),
        Source::Files(_) => Origin::Files,
        Source::Nothing => Origin::Empty,
    });
    Ok(outcome)
}

/// That of rows of a snapshot.
pub(crate) fn origin_of(manifest: &Manifest) -> Origin {
    Origin::Snapshot {
        id: manifest.id.clone(),
        taken_at: manifest.taken_at.to_string(),
        version: snapshot::history::current_version(&manifest.history),
    }
}

/// Scripts that ran, and the schema version after them.
pub(crate) type Ran = (Vec<migrate::Ran>, Option<String>);

/// The pending scripts. A project without any works too: what a snapshot brought then has no history,
/// and needs none.
pub(crate) async fn run_scripts(
    ctx: &Context,
    scripts: &Scripts,
    target: &Target,
    names: &DatabaseName,
    options: &migrate::Options,
) -> Result<Ran, Error> {
    match migrate::run(ctx, target, names, scripts, options).await {
        Ok(outcome) => Ok((outcome.applied, outcome.after)),
        Err(migrate::Error::NoHistory { .. }) if scripts.iter().next().is_none() => {
            Ok((Vec::new(), None))
        }
        Err(error) => Err(error.into()),
    }
}

/// Everything that decides what a build gives.
pub(crate) fn fingerprint(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<String, Error> {
    let to = wish.to.as_deref();
    fingerprint_of(ctx, &site.server, &site.scripts, &site.accounts, &Rows::of(source), to)
}

/// The same without the migration scripts: builds that have it in common differ only in how far they
/// were migrated. `None` where that is not so: seed files follow the last script, callbacks run with each run.
pub(crate) fn base(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<Option<String>, Error> {
    if !has_base(site, source, wish) {
        return Ok(None);
    }
    let settings = site.scripts.base_facts(&ctx.config.migrate);
    let start = on_server(ctx, &site.server);
    hashed(ctx, start, &settings, &site.accounts, &Rows::of(source), None).map(Some)
}

fn has_base(site: &Site, source: &Source, wish: &Wish) -> bool {
    let is_told = wish.to.is_some() || matches!(source, Source::Files(_));
    !is_told && site.scripts.callbacks.is_empty()
}

/// The same two for what is published: without the server, whose facts stand beside them.
pub(crate) struct PublishedKeys {
    pub build: String,
    pub base: Option<String>,
}

/// By what a published image is found.
///
/// # Errors
/// What is wrong with the files.
pub(crate) fn published_keys(
    ctx: &Context,
    site: &Site,
    source: &Source,
    wish: &Wish,
) -> Result<PublishedKeys, Error> {
    let (rows, to) = (Rows::of(source), wish.to.as_deref());
    // Roles come with it, where a template leaves them to its server.
    let roles: Vec<String> = users::dry_run(&site.accounts)
        .statements
        .into_iter()
        .flat_map(|statement| statement.sql)
        .collect();
    let hashed = |facts: &[(String, String)]| {
        let mut start = Fingerprint::anywhere();
        start.add("roles", roles.join("\n"));
        hashed(ctx, start, facts, &site.accounts, &rows, to)
    };
    let base = match has_base(site, source, wish) {
        true => Some(hashed(&site.scripts.base_facts(&ctx.config.migrate))?),
        false => None,
    };
    Ok(PublishedKeys { build: hashed(&site.scripts.facts(&ctx.config.migrate))?, base })
}

/// What of a source decides about the result.
pub(crate) enum Rows<'a> {
    /// Its id.
    Snapshot(&'a str),
    Files(&'a [camino::Utf8PathBuf]),
    None,
}

impl<'a> Rows<'a> {
    fn of(source: &'a Source) -> Self {
        match source {
            Source::Snapshot { manifest, .. } => Self::Snapshot(&manifest.id),
            Source::Files(files) => Self::Files(files),
            Source::Nothing => Self::None,
        }
    }
}

/// The fingerprint of a build of this checkout, with these rows, migrated up to `to`.
///
/// # Errors
/// What is wrong with the files.
pub(crate) fn fingerprint_of(
    ctx: &Context,
    server: &Server,
    scripts: &Scripts,
    accounts: &users::Plan,
    rows: &Rows<'_>,
    to: Option<&str>,
) -> Result<String, Error> {
    let start = on_server(ctx, server);
    hashed(ctx, start, &scripts.facts(&ctx.config.migrate), accounts, rows, to)
}

fn on_server(ctx: &Context, server: &Server) -> Fingerprint {
    let mut fingerprint = Fingerprint::new(server);
    if server.kind == engine::ServerKind::Docker {
        // The same version of another image may sort text in another way.
        fingerprint.add("image", &ctx.config.engine.image);
    }
    // Nor need the same image be what it was: a name is given anew.
    fingerprint.add("libraries", &server.libraries);
    fingerprint
}

fn hashed(
    ctx: &Context,
    mut fingerprint: Fingerprint,
    migrations: &[(String, String)],
    accounts: &users::Plan,
    rows: &Rows<'_>,
    to: Option<&str>,
) -> Result<String, Error> {
    fingerprint.add("database", &ctx.config.database.name);
    fingerprint.add("owner", &ctx.config.database.user);
    fingerprint.add("to", to.unwrap_or(""));
    for (name, value) in migrations {
        fingerprint.add(name, value);
    }
    let restore = &ctx.config.restore;
    fingerprint.add("restore", format!("{:?} {:?}", restore.owners, restore.ignore_extensions));
    fingerprint.add("accounts", accounts.fingerprint_text());
    match rows {
        Rows::Snapshot(id) => fingerprint.add("snapshot", id),
        Rows::Files(files) => {
            for path in *files {
                let action = "read";
                let content = fs_err::read(path).map_err(|error| Error::File {
                    action,
                    path: path.clone(),
                    error,
                })?;
                fingerprint.add(path.as_str(), content);
            }
        }
        Rows::None => fingerprint.add("empty", ""),
    }
    Ok(fingerprint.finish())
}

pub(crate) fn ready(
    ctx: &Context,
    site: &Site,
    migrated: Vec<migrate::Ran>,
    schema_version: Option<String>,
    origin: Option<Origin>,
) -> Ready {
    let target = connect::owner(ctx, &site.server, &ctx.config.database.name);
    Ready {
        url: target.to_string(),
        database: target.database.clone(),
        engine: site.server.kind.as_str().to_owned(),
        schema_version,
        origin,
        migrated,
        steps: ctx.report.records(),
        warnings: ctx.report.warnings(),
        target,
    }
}
