//! The five journeys: up, reset, seed, snapshot, ci. Four of them share one build (`build.rs`).
//!
//! Read this file first. Each function is the order of the acts; what an act does stands in the
//! module that it calls. A database is always built beside the live one and swapped in when whole.

use camino::Utf8Path;
use serde::Serialize;

use crate::at_hand::{self, Known, Taken, Why};
use crate::beside;
use crate::branch;
use crate::build::{Built, begin, build, finish, given_up, run_scripts};
use crate::connect;
use crate::context::Context;
use crate::database::{self, Found, Origin, Scratch};
use crate::engine::{self, Keep};
use crate::error::{Error, Exit};
use crate::fingerprint::Rows;
use crate::frozen::{self, Frozen, Live};
use crate::guard;
use crate::image;
use crate::lend;
use crate::lock;
use crate::migrate;
use crate::pg::Target;
use crate::pg::names::DatabaseName;
use crate::pg::tools::Tools;
use crate::prove;
use crate::published::{self, Arrival};
use crate::reference;
use crate::report::{Check, Reporter, StepRecord};
use crate::seed;
use crate::site::{self, Site};
use crate::snapshot::find;
use crate::snapshot::manifest::Manifest;
use crate::snapshot::{self, choose, dump, prune};
use crate::source::{self, Seed, Source, Wish};
use crate::status;
use crate::store::Store;
use crate::template;
use crate::users;

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
    /// Why this way was taken, and what else is to be known.
    pub notes: Vec<String>,
    pub warnings: Vec<String>,
    #[serde(skip)]
    pub target: Target,
}

/// Engine ready → (no database yet? build it) → accounts → migrate → grants.
///
/// # Errors
/// Any; the database is then what it was before.
pub async fn up(ctx: &Context, wish: Wish, fresh: Fresh) -> Result<Ready, Error> {
    can_be_again(ctx, "up", &wish)?;
    let mut site = site::open(ctx, "up").await?;
    let name = &ctx.config.database.name;
    let live = match fresh {
        Fresh::Yes => database::replaceable(&site.session, name).await?,
        Fresh::No => database::live(&site.session, name).await?,
    };
    site::make_roles(ctx, &site).await?;
    let live = match live {
        Some(live) if fresh == Fresh::No => live,
        live => {
            let (wish, known) = again(live, wish)?;
            let known = match fresh {
                Fresh::No => at_hand::newest(ctx, &site, &wish).await?,
                Fresh::Yes => known,
            };
            return build_and_swap(ctx, &mut site, wish, known).await;
        }
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
    can_be_again(ctx, verb, &wish)?;
    let mut site = site::open(ctx, verb).await?;
    let live = database::replaceable(&site.session, &ctx.config.database.name).await?;
    let (wish, known) = again(live, wish)?;
    site::make_roles(ctx, &site).await?;
    build_and_swap(ctx, &mut site, wish, known).await
}

/// The database that the last `reset --keep` has replaced is live again, and the present one is kept.
///
/// # Errors
/// [`engine::Error::NothingKept`]; any other: the present one is then live still.
pub async fn undo_reset(ctx: &Context) -> Result<Ready, Error> {
    guard::replace_in_environment(ctx, "undo-reset")?;
    branch::must_be_there(ctx)?;
    let mut site = site::open(ctx, "undo-reset").await?;
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
        let sessions = site::sessions(&site.session, &name).await?;
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
    branch::must_be_there(ctx)?;
    let _lock = lock::project(&ctx.state_dir(), "seed")?;
    // A server that the environment merely names is somebody else's until the guard has seen it.
    let server = connect::running(ctx).await?.ok_or(Error::NoServer)?;
    site::let_pass(ctx, &server, "seed").await?;
    let session = connect::session(&server.admin).await?;
    lock::database(&session, &ctx.config.database.name).await?;
    database::live(&session, &ctx.config.database.name).await?;
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
    match site::open(ctx, "users check").await {
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
    let dir = ctx.state_dir();
    let _lock = lock::project(&dir, "down")?;
    let was_there = branch::is_there(ctx);
    if volumes == engine::Volumes::Remove {
        match crate::scratch_server::sweep(ctx).await {
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => ctx.report.warn(format!("a scratch server stays: {error}")),
            Ok(()) => {}
        }
    }
    let stopped = stop_all(ctx, volumes).await?;
    if !was_there {
        // What was looked for is no branch: its lock and its empty state are not to make it one.
        for file in ["state.json", "lock"] {
            let _ = std::fs::remove_file(dir.join(file));
        }
        let _ = std::fs::remove_dir(&dir);
        let _ = std::fs::remove_dir(ctx.branches_dir());
    }
    Ok(stopped)
}

async fn stop_all(ctx: &Context, volumes: engine::Volumes) -> Result<engine::Stopped, Error> {
    match engine::chosen_before(ctx).await? {
        Some(engine) => stop(ctx, &engine, volumes).await,
        // The state was lost, with the folder perhaps; what it told of may be there still.
        None if volumes == engine::Volumes::Remove && !ctx.config.protected => {
            let mut stopped = engine::Stopped::default();
            for engine in engine::all_before(ctx).await? {
                let found = stop(ctx, &engine, volumes).await?;
                stopped.server = stopped.server.or(found.server);
                stopped.data_removed = stopped.data_removed.or(found.data_removed);
            }
            Ok(stopped)
        }
        None => Ok(engine::Stopped::default()),
    }
}

async fn stop(
    ctx: &Context,
    engine: &engine::Engine,
    volumes: engine::Volumes,
) -> Result<engine::Stopped, Error> {
    let stopped = engine.stop(ctx, volumes).await?;
    if stopped.data_removed.is_some() {
        frozen::forget_carried(ctx, engine.kind())?;
    }
    Ok(stopped)
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
    let mut site = site::open(ctx, "ci").await?;
    site::make_roles(ctx, &site).await?;
    let wish = Wish {
        seed: options.seed.clone(),
        to: None,
        skip_damaged: options.skip_damaged,
        keep: Keep::No,
    };
    let built = async {
        let source = source::choose(ctx, &site, &wish).await?;
        if let Some(built) = at_hand::take_unseen(ctx, &mut site, &source, &wish).await? {
            return Ok(built);
        }
        let build = async |source: &Source| build(ctx, &site, source, &wish).await;
        let built = source::from_first_whole(ctx, &site, &wish, source, build).await;
        built.map(|(_, built)| built)
    };
    let built = built.await.map_err(|error| match error.exit() {
        // Scripts that run on an empty database prove little, and a wrong store would go unnoticed.
        Exit::NoSnapshot => Error::Instead {
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
    let files = site::read_files(ctx)?;
    let engine = engine::chosen_before(ctx).await?.ok_or(Error::NoServer)?;
    let server = engine.running(ctx).await?.ok_or(Error::NoServer)?;
    let site = site::enter(ctx, verb, lock, files, engine, server).await?;
    site::make_roles(ctx, &site).await?;
    let wish = Wish { seed: Seed::of(origin), to: None, skip_damaged: false, keep: Keep::No };
    let source =
        source::choose(ctx, &site, &wish).await.map_err(|error| at_hand::gone(ctx, error))?;
    let Built { scratch, .. } = build(ctx, &site, &source, &wish).await?;
    let frozen = async {
        lend::settle(ctx, &site.server, &scratch).await?;
        ctx.until_cancelled(template::freeze_itself(ctx, &scratch)).await
    };
    match frozen.await {
        Ok(()) => scratch.release().await,
        Err(error) => return Err(given_up(ctx, scratch, error).await),
    }
    Ok(())
}

/// `--seed same` wants a database, before a server is started for it.
fn can_be_again(ctx: &Context, verb: &str, wish: &Wish) -> Result<(), Error> {
    if wish.seed == Seed::Same {
        guard::replace_in_environment(ctx, verb)?;
        branch::must_be_there(ctx)?;
    }
    Ok(())
}

/// What `--seed same` means for this database.
fn again(live: Option<Found>, wish: Wish) -> Result<(Wish, Option<Known>), Error> {
    if wish.seed != Seed::Same {
        return Ok((wish, None));
    }
    let Some(origin) = live.and_then(|live| live.marker).and_then(|marker| marker.origin) else {
        return Err(Error::Refused {
            message: "`--seed same`: there is no database whose rows could be had again".to_owned(),
            hint: Some("build one: `seedbed up`".to_owned()),
        });
    };
    let wish = Wish { seed: Seed::of(&origin), ..wish };
    Ok(match origin {
        Origin::Snapshot { id, .. } => (wish, Some(Known { id, why: Why::Again })),
        Origin::Files | Origin::Empty => (wish, None),
    })
}

async fn build_and_swap(
    ctx: &Context,
    site: &mut Site,
    wish: Wish,
    known: Option<Known>,
) -> Result<Ready, Error> {
    match take_or_build(ctx, site, &wish, known.as_ref()).await {
        Ok(taken) => make_live(ctx, site, &wish, taken).await,
        Err(error) => Err(at_hand::instead(ctx, site, &wish, known.as_ref(), error).await),
    }
}

async fn take_or_build(
    ctx: &Context,
    site: &mut Site,
    wish: &Wish,
    known: Option<&Known>,
) -> Result<Taken, Error> {
    if let Some(Known { id, why }) = known
        && let Some(taken) = at_hand::take(ctx, site, Rows::Snapshot(id), wish).await?
    {
        if let Why::Begins { note } = why {
            ctx.report.note(note);
        }
        return Ok(taken);
    }
    let source = source::choose(ctx, site, wish).await?;
    let rows = Rows::of(&source);
    let was_tried = matches!((known, rows), (Some(known), Rows::Snapshot(id)) if known.id == id);
    if !was_tried && let Some(taken) = at_hand::take(ctx, site, rows, wish).await? {
        return Ok(taken);
    }
    let whom = published::For::Everybody;
    match published::arrive(ctx, site, &source, wish, whom).await? {
        Arrival::Live(live) => Ok(Taken::Live(live)),
        Arrival::Migrated(built) => {
            frozen::freeze_or_give_up(ctx, site, *built, wish).await.map(Taken::built)
        }
        Arrival::None => {
            frozen::move_in_first(ctx, site, &source, wish).await?;
            let here = &*site;
            let begun = source::from_first_whole(ctx, here, wish, source, async |source| {
                // The next one that is whole may be frozen already.
                if let Some(taken) = at_hand::clone(ctx, here, Rows::of(source), wish).await? {
                    return Ok(Begun::Taken(taken));
                }
                if let Some(migrated) = beside::build(ctx, here, source, wish).await? {
                    return Ok(Begun::Frozen(migrated));
                }
                begin(ctx, here, source).await.map(Box::new).map(Begun::Rows)
            });
            let (source, scratch) = match begun.await? {
                (_, Begun::Taken(taken)) => return Ok(taken),
                (source, Begun::Rows(scratch)) => (source, *scratch),
                (source, Begun::Frozen(migrated)) => {
                    let live = frozen::from_image(ctx, site, Rows::of(&source), wish).await?;
                    if let Some(live) = live {
                        return Ok(Taken::Live(Live { migrated, ..live }));
                    }
                    let scratch = begin(ctx, site, &source).await?;
                    (source, scratch)
                }
            };
            let (scratch, ground) =
                frozen::freeze_ground(ctx, site, &source, wish, scratch).await?;
            let built = async {
                let built = finish(ctx, site, &source, wish, scratch).await?;
                frozen::freeze_or_give_up(ctx, site, built, wish).await
            };
            match built.await {
                Ok(built) => Ok(Taken::built(built)),
                Err(error) => Err(frozen::make_way(ctx, site, ground.as_deref(), error).await),
            }
        }
    }
}

/// The first half of a build.
enum Begun {
    /// There is nothing to build.
    Taken(Taken),
    /// All of it was done on a second server, and is frozen as the image of this checkout.
    Frozen(Vec<migrate::Ran>),
    /// The rows are in.
    Rows(Box<Scratch>),
}

async fn make_live(
    ctx: &Context,
    site: &mut Site,
    wish: &Wish,
    taken: Taken,
) -> Result<Ready, Error> {
    let (built, frozen) = match taken {
        Taken::Live(Live { migrated, schema_version, origin }) => {
            return Ok(ready(ctx, site, migrated, schema_version, origin));
        }
        Taken::Built(built, frozen) => (*built, frozen),
    };
    let Built { scratch, migrated, schema_version } = built;
    let origin = scratch.marker().origin.clone();
    let replaces = database::find(&site.session, scratch.final_name()).await?.is_some();
    let step = ctx.report.step(format!("swap in `{}`", scratch.final_name()));
    database::swap_in(ctx, scratch, wish.keep).await?;
    step.done("");
    // Where there was no database what is kept may be the only one.
    if replaces {
        frozen::forget_kept(ctx, site).await;
    }
    if let Frozen::Later(inside) = frozen {
        frozen::freeze_image(ctx, site, schema_version.clone(), inside).await?;
    }
    Ok(ready(ctx, site, migrated, schema_version, origin))
}

fn ready(
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
        notes: ctx.report.notes(),
        warnings: ctx.report.warnings(),
        target,
    }
}
