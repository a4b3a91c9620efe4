//! Each command: options to a call, the call's outcome to text and JSON.

use clap::CommandFactory;

use super::args::{self, Cli, Command, Global};
use super::{Outcome, db, flyway, show};
use crate::config::{self, Override};
use crate::context::Context;
use crate::engine::Keep;
use crate::env::Env;
use crate::error::{Error, Exit};
use crate::journeys::{self, CiOptions, Fresh};
use crate::snapshot::{export, find, prune, verify};
use crate::source::{Seed, Wish};
use crate::store::Store;
use crate::{branch, connect, doctor, image, init, migrate, published, report, saved, status};

/// Commands that need no project.
pub(super) fn without_project(
    command: &Command,
    global: &Global,
    env: &Env,
) -> Result<Option<Outcome>, Error> {
    let text = match command {
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "seedbed", &mut text);
            String::from_utf8_lossy(&text).into_owned()
        }
        Command::Man => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut text)
                .map_err(|error| Error::CommandLine(format!("render the man page: {error}")))?;
            String::from_utf8_lossy(&text).into_owned()
        }
        Command::Init => {
            let dir = global.project.clone().unwrap_or_else(|| env.current_dir.clone());
            let written = init::write(&dir)?;
            let text: String = written.files.iter().map(|path| format!("wrote {path}\n")).collect();
            return Outcome::done(format!("{text}next: `seedbed up`"), &written).map(Some);
        }
        Command::Up(_)
        | Command::Reset(_)
        | Command::UndoReset
        | Command::Images(_)
        | Command::Branch(_)
        | Command::Db(_)
        | Command::Seed(_)
        | Command::Down(_)
        | Command::Status
        | Command::Url(_)
        | Command::Psql(_)
        | Command::Migrate(_)
        | Command::Info(_)
        | Command::Validate(_)
        | Command::Repair(_)
        | Command::Baseline(_)
        | Command::Clean(_)
        | Command::Undo(_)
        | Command::New(_)
        | Command::Users(_)
        | Command::Snapshot(_)
        | Command::Ci(_)
        | Command::Doctor
        | Command::Config => return Ok(None),
    };
    Outcome::done(text.trim_end().to_owned(), &text).map(Some)
}

/// What flags say about configuration keys.
pub(super) fn overrides(command: &Command, global: &Global) -> Result<Vec<Override>, Error> {
    let mut overrides = set(global)?;
    if let Command::Up(args::Up { proved: true, .. }) = command {
        overrides.push(overrule("restore.proved_only", "true", "--proved"));
    }
    let flyway = match command {
        Command::Migrate(options) => Some(&options.flyway),
        Command::Info(options) => Some(&options.flyway),
        Command::Validate(options) => Some(&options.flyway),
        Command::Repair(options) => Some(&options.flyway),
        Command::Undo(options) => Some(&options.flyway),
        Command::Baseline(flyway) | Command::Clean(flyway) => Some(flyway),
        _ => None,
    };
    overrides.extend(flyway.into_iter().flat_map(|flyway| flyway.settings.iter().cloned()));
    if let Command::Snapshot(args::Snapshot::Create { jobs: Some(jobs), .. }) = command {
        overrides.push(overrule("snapshot.jobs", &jobs.to_string(), "--jobs"));
    }
    Ok(overrides)
}

/// Of `--set`.
fn set(global: &Global) -> Result<Vec<Override>, Error> {
    let mut overrides = Vec::new();
    for pair in &global.set {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::CommandLine(format!("`--set {pair}`: expected KEY=VALUE")));
        };
        let key = key.trim();
        overrides.push(overrule(key, value.trim(), &format!("--set {key}")));
    }
    Ok(overrides)
}

fn overrule(key: &str, value: &str, flag: &str) -> Override {
    Override { key: key.to_owned(), value: value.to_owned(), flag: flag.to_owned() }
}

/// Runs one command of a project.
pub(super) async fn command(
    ctx: &Context,
    command: &Command,
    global: &Global,
) -> Result<Outcome, Error> {
    match command {
        Command::Up(options) => {
            let wish = wish(options.seed.as_deref(), None, options.skip_damaged);
            let fresh = if options.fresh { Fresh::Yes } else { Fresh::No };
            let ready = journeys::up(ctx, wish, fresh).await?;
            Outcome::done(show::ready(&ready), &ready)
        }
        Command::Reset(options) => {
            let keep = if options.keep { Keep::Yes } else { Keep::No };
            let wish = Wish { keep, ..wish(options.seed.as_deref(), None, options.skip_damaged) };
            let ready = journeys::replace(ctx, "reset", wish).await?;
            Outcome::done(show::ready(&ready), &ready)
        }
        Command::UndoReset => {
            let ready = journeys::undo_reset(ctx).await?;
            Outcome::done(show::ready(&ready), &ready)
        }
        Command::Images(verb) => images(ctx, *verb).await,
        Command::Branch(verb) => branch_verb(ctx, verb).await,
        Command::Db(verb) => db::db(ctx, verb).await,
        Command::Seed(options) => seed(ctx, options).await,
        Command::Down(options) => down(ctx, options).await,
        Command::Status => {
            let status = status::status(ctx).await?;
            Outcome::done(show::status(&status), &status)
        }
        Command::Url(options) => {
            let url = user_target(ctx, options.user.as_deref()).await?.url_with_password();
            Outcome::done(url.clone(), serde_json::json!({ "url": url }))
        }
        Command::Psql(options) => psql(ctx, options).await,
        Command::Migrate(options) => flyway::migrate(ctx, options).await,
        Command::Info(options) => flyway::info(ctx, options).await,
        Command::Validate(options) => match &options.against {
            Some(revision) => flyway::validate_against(ctx, revision).await,
            None => flyway::validate(ctx).await,
        },
        Command::Repair(options) => flyway::repair(ctx, options).await,
        Command::Baseline(_) => flyway::baseline(ctx).await,
        Command::Clean(_) => flyway::clean(ctx).await,
        Command::Undo(options) => flyway::undo(ctx, options).await,
        Command::New(options) => {
            let path = migrate::new_script(ctx, &options.description)?;
            Outcome::done(path.to_string(), serde_json::json!({ "path": path }))
        }
        Command::Users(args::Users::Apply { dry_run: true }) => {
            let plan = journeys::users_plan(ctx)?;
            Outcome::done(show::users_dry_run(&plan), &plan)
        }
        Command::Users(args::Users::Apply { dry_run: false }) => {
            let applied = journeys::users_apply(ctx).await?;
            Outcome::done(applied.join("\n"), &applied)
        }
        Command::Users(args::Users::Check) => users_check(ctx).await,
        Command::Snapshot(verb) => snapshot_verb(ctx, verb, global).await,
        Command::Ci(options) => ci(ctx, options, global.json).await,
        Command::Doctor => {
            let lines = doctor::run(ctx).await;
            let failed = doctor::worst(&lines) == doctor::State::Fail;
            let exit = if failed { Exit::CheckFailed } else { Exit::Done };
            let mut outcome =
                Outcome::done(doctor::text(&lines, false).trim_end().to_owned(), &lines)?;
            outcome.exit = exit as u8;
            Ok(outcome)
        }
        Command::Config => Outcome::done(show::config(&ctx.config.origins), &ctx.config.origins),
        Command::Init | Command::Completions { .. } | Command::Man => Err(Error::CommandLine(
            format!("`{}` needs no project and was handled before", command.name()),
        )),
    }
}

fn wish(seed: Option<&str>, to: Option<String>, skip_damaged: bool) -> Wish {
    Wish { seed: Seed::parse(seed), to, skip_damaged, keep: Keep::No }
}

async fn seed(ctx: &Context, options: &args::Seed) -> Result<Outcome, Error> {
    if let Some(file) = &options.file {
        let loaded = journeys::seed_file(ctx, file).await?;
        return Outcome::done(show::loaded(file, &loaded), &loaded);
    }
    let seed = match options.snapshot.as_deref() {
        None | Some("latest") => Seed::Latest,
        Some(id) => Seed::Id(id.to_owned()),
    };
    let wish =
        Wish { seed, to: options.to.clone(), skip_damaged: options.skip_damaged, keep: Keep::No };
    let ready = journeys::replace(ctx, "seed", wish).await?;
    Outcome::done(show::ready(&ready), &ready)
}

async fn down(ctx: &Context, options: &args::Down) -> Result<Outcome, Error> {
    use crate::engine::Volumes;
    let volumes = if options.volumes { Volumes::Remove } else { Volumes::Keep };
    if options.volumes && !ctx.yes {
        if !ctx.env.stdin_is_terminal {
            return Err(Error::Refused {
                message: "`down --volumes` removes the database's data and nobody is there to \
                          confirm it"
                    .to_owned(),
                hint: Some("run `seedbed down --volumes --yes`".to_owned()),
            });
        }
        if !report::ask("remove the server's data as well?") {
            return Err(Error::Refused { message: "not confirmed".to_owned(), hint: None });
        }
    }
    let stopped = journeys::down(ctx, volumes).await?;
    Outcome::done(show::stopped(&stopped), &stopped)
}

async fn user_target(ctx: &Context, user: Option<&str>) -> Result<crate::pg::Target, Error> {
    let reached = connect::reach(ctx).await?;
    Ok(match user {
        Some(user) => connect::as_user(ctx, &reached, user)?,
        None => reached.target,
    })
}

async fn psql(ctx: &Context, options: &args::Psql) -> Result<Outcome, Error> {
    let reached = connect::reach(ctx).await?;
    let target = match options.user.as_deref() {
        Some(user) => connect::as_user(ctx, &reached, user)?,
        None => reached.target.clone(),
    };
    let code = status::psql(ctx, reached.server.as_ref(), &target, &options.args).await?;
    let json = serde_json::json!({ "exit": code });
    Ok(Outcome { text: String::new(), json, exit: code, failure: None })
}

async fn images(ctx: &Context, verb: args::Images) -> Result<Outcome, Error> {
    let Some(engine) = crate::engine::chosen_before(ctx).await? else {
        return Err(Error::NoServer);
    };
    match verb {
        args::Images::List => {
            let shelf = image::with_sharers(ctx, &engine).await?;
            Outcome::done(show::images(&shelf), &shelf)
        }
        args::Images::Prune => {
            let pruned = image::prune(ctx, &engine, !ctx.yes).await?;
            Outcome::done(show::pruned_images(&pruned), &pruned)
        }
    }
}

async fn branch_verb(ctx: &Context, verb: &args::Branch) -> Result<Outcome, Error> {
    match verb {
        args::Branch::List => {
            let list = branch::list(ctx).await;
            Outcome::done(show::branches(&list), &list)
        }
        args::Branch::Delete { name } => delete_branch(ctx, name).await,
        args::Branch::Save { name, replace } => {
            let over = if *replace { saved::Over::Yes } else { saved::Over::No };
            let done = saved::save(ctx, name, over).await?;
            Outcome::done(show::saved(&done), &done)
        }
        args::Branch::Restore { name } => {
            let done = saved::restore(ctx, name).await?;
            Outcome::done(show::restored(&done), &done)
        }
        args::Branch::Forget { name } => {
            let point = saved::forget(ctx, name).await?;
            Outcome::done(format!("forgot `{}`", point.name), &point)
        }
    }
}

async fn delete_branch(ctx: &Context, name: &str) -> Result<Outcome, Error> {
    let found = branch::find(ctx, name)?;
    if !ctx.yes {
        if !ctx.env.stdin_is_terminal {
            return Err(Error::Refused {
                message:
                    "`branch delete` removes the branch's data and nobody is there to confirm it"
                        .to_owned(),
                hint: Some(format!("run `seedbed branch delete {name} --yes`")),
            });
        }
        if !report::ask(&format!("remove branch `{}` with its data?", found.name())) {
            return Err(Error::Refused { message: "not confirmed".to_owned(), hint: None });
        }
    }
    let deleted = branch::delete(ctx, found).await?;
    Outcome::done(show::deleted_branch(&deleted), &deleted)
}

async fn users_check(ctx: &Context) -> Result<Outcome, Error> {
    let drift = journeys::users_check(ctx).await?;
    let mut outcome = Outcome::done(show::drift(&drift), &drift)?;
    if !drift.is_none() {
        outcome.exit = Exit::CheckFailed as u8;
    }
    Ok(outcome)
}

/// The environment that an image is for: what `--image-env` names, else the project's default one.
fn consumer(ctx: &Context, global: &Global, env: Option<&str>) -> Result<Context, Error> {
    let flags = config::Flags {
        project: global.project.clone(),
        env: env.map(str::to_owned),
        overrides: set(global)?,
    };
    let config = config::load(&ctx.env, &flags)?;
    let consumer = Context { config: config.into(), ..ctx.clone() };
    published::can_be_made_for(&consumer)?;
    if format!("{:?}", consumer.config.store) != format!("{:?}", ctx.config.store) {
        return Err(Error::CommandLine(format!(
            "`--image`: the environment `{}` has another store",
            consumer.config.environment
        )));
    }
    Ok(consumer)
}

async fn snapshot_verb(
    ctx: &Context,
    verb: &args::Snapshot,
    global: &Global,
) -> Result<Outcome, Error> {
    match verb {
        args::Snapshot::Create { prove, strict, image, image_env, .. } => {
            let options = journeys::CreateOptions { prove: *prove, strict: *strict };
            // What is wrong with it is better known before the dump.
            let consumer = match image {
                true => Some(consumer(ctx, global, image_env.as_deref())?),
                false => None,
            };
            let mut published = journeys::snapshot_create(ctx, options).await?;
            let mut failure = None;
            if let Some(consumer) = consumer {
                match published::make(&consumer, Some(&published.id)).await {
                    Ok(made) => published.image = Some(made),
                    Err(error) => {
                        let retry = format!("`seedbed snapshot image {}`", published.id);
                        ctx.report.warn(format!("the snapshot is published; again: {retry}"));
                        failure = Some(error);
                    }
                }
            }
            let outcome = Outcome::done(show::published(&published), &published)?;
            Ok(Outcome { failure, ..outcome })
        }
        args::Snapshot::Image { id } => {
            let id = id.as_deref().filter(|id| *id != "latest");
            let made = published::make(ctx, id).await?;
            Outcome::done(show::image_made(&made), &made)
        }
        args::Snapshot::List { max_age } => {
            let store = Store::open(ctx).await?;
            let limit = max_age.as_deref();
            let max_age = limit.map(show::parse_age).transpose()?;
            let list = find::list(ctx, &store, max_age).await?;
            let mut outcome = Outcome::done(show::snapshots(&list), &list)?;
            if let (Some(limit), Some(max_age)) = (limit, max_age) {
                let name = &ctx.config.database.name;
                let whose = match ctx.config.protected {
                    true => find::Whose::Only(name),
                    false => find::Whose::IfAny(name),
                };
                let young = find::young(&list, max_age, whose);
                if young.found == 0 {
                    ctx.report.warn(show::none_is_young(limit, &young));
                    outcome.exit = Exit::CheckFailed as u8;
                }
            }
            Ok(outcome)
        }
        args::Snapshot::Show { id } => {
            let store = Store::open(ctx).await?;
            let manifest = find::show(ctx, &store, id).await?;
            Outcome::done(show::manifest(&manifest), &manifest)
        }
        args::Snapshot::Why => {
            let why = journeys::why(ctx).await?;
            Outcome::done(show::why(&why), &why)
        }
        args::Snapshot::Verify { id } => {
            let store = Store::open(ctx).await?;
            let verified = verify::verify(ctx, &store, id.as_deref()).await?;
            Outcome::done(show::verified(&verified), &verified)
        }
        args::Snapshot::Prune => {
            let store = Store::open(ctx).await?;
            let mode = if ctx.yes { prune::Mode::Act } else { prune::Mode::DryRun };
            let pruned = journeys::snapshot_prune(ctx, &store, mode).await?;
            Outcome::done(show::pruned(&pruned), &pruned)
        }
        args::Snapshot::Delete { id } => delete(ctx, id).await,
        args::Snapshot::Export { id, folder } => {
            let store = Store::open(ctx).await?;
            let folder = ctx.env.current_dir.join(folder);
            let exported = export::export(ctx, &store, id, &folder).await?;
            Outcome::done(show::exported(&exported), &exported)
        }
    }
}

async fn delete(ctx: &Context, id: &str) -> Result<Outcome, Error> {
    let store = Store::open(ctx).await?;
    // By its name alone: a damaged one has to go as well.
    let name = find::named(ctx, &store, id).await?;
    ctx.report.note(format!(
        "snapshot {} in {}, taken at {}",
        name.id,
        store.describe(),
        name.taken_at.strftime("%Y-%m-%d %H:%M:%SZ")
    ));
    if !ctx.yes {
        if !ctx.env.stdin_is_terminal {
            return Err(Error::Refused {
                message: "`snapshot delete` needs an answer, and nobody is there to give it"
                    .to_owned(),
                hint: Some(format!("`seedbed snapshot delete {id} --yes`")),
            });
        }
        if !report::ask("remove it for everybody?") {
            return Err(Error::Refused { message: "not confirmed".to_owned(), hint: None });
        }
    }
    ctx.until_cancelled(async { Ok::<_, Error>(store.delete(&name.object).await?) }).await?;
    if let Err(error) = published::drop_of(ctx, &store, &name.id).await {
        ctx.report.warn(format!("its images stay until `seedbed snapshot prune`: {error}"));
    }
    let text = format!("removed {}; its rows go by `seedbed snapshot prune`", name.object);
    Outcome::done(text, serde_json::json!({ "removed": name.object }))
}

async fn ci(ctx: &Context, options: &args::Ci, quiet_stdout: bool) -> Result<Outcome, Error> {
    if options.seed.as_deref() == Some("same") {
        let message = "`ci --seed same`: it replaces no database whose rows could be had again";
        return Err(Error::CommandLine(message.to_owned()));
    }
    let proof = journeys::ci(
        ctx,
        CiOptions {
            seed: match (options.empty, options.seed.as_deref()) {
                (true, _) => Seed::Nothing,
                (false, seed) => Seed::parse(Some(seed.unwrap_or("latest"))),
            },
            skip_damaged: options.skip_damaged,
            keep: options.keep,
            databases: options.databases,
            command: options.command.clone(),
            quiet_stdout,
        },
    )
    .await;
    let proof = match proof {
        Ok(proof) => proof,
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => {
            // Whoever reads only the reports must see what stopped the run.
            write_reports(options, "nothing was proved", &[show::failed_check(&error)])?;
            return Err(error);
        }
    };
    write_reports(options, &show::proof_facts(&proof), &proof.checks)?;
    let failed = proof.checks.iter().any(|check| !check.passed);
    let mut outcome = Outcome::done(show::proof(&proof), &proof)?;
    outcome.exit = match proof.command_exit {
        // The command's own code is passed on; what a process cannot return becomes a failed check.
        Some(code) if code != 0 => u8::try_from(code).unwrap_or(Exit::CheckFailed as u8),
        _ if failed => Exit::CheckFailed as u8,
        _ => Exit::Done as u8,
    };
    Ok(outcome)
}

fn write_reports(options: &args::Ci, facts: &str, checks: &[report::Check]) -> Result<(), Error> {
    const TITLE: &str = "seedbed ci";
    if let Some(path) = &options.junit {
        write_file(path, &report::check::junit(TITLE, checks))?;
    }
    if let Some(path) = &options.markdown {
        write_file(path, &report::check::markdown(TITLE, facts, checks))?;
    }
    Ok(())
}

pub(super) fn write_file(path: &camino::Utf8Path, text: &str) -> Result<(), Error> {
    let fail = |error| Error::File { action: "write", path: path.to_owned(), error };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_str().is_empty()) {
        fs_err::create_dir_all(parent).map_err(fail)?;
    }
    fs_err::write(path, text).map_err(fail)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Cli, overrides};

    /// What each override of a command line is called, and what it sets.
    fn typed(args: &[&str]) -> Vec<String> {
        let args = ["seedbed"].iter().chain(args);
        let cli = Cli::try_parse_from(args).unwrap_or_else(|error| panic!("{error}"));
        let overrides =
            overrides(&cli.command, &cli.global).unwrap_or_else(|error| panic!("{error}"));
        overrides.iter().map(|one| format!("{}: {}={}", one.flag, one.key, one.value)).collect()
    }

    #[test]
    fn an_override_is_called_as_it_was_typed() {
        assert_eq!(
            typed(&["up", "--proved", "--set", "engine.kind = docker", "--set", "store.url=a=b"]),
            [
                "--set engine.kind: engine.kind=docker",
                "--set store.url: store.url=a=b",
                "--proved: restore.proved_only=true",
            ]
        );
        assert_eq!(typed(&["snapshot", "create", "--jobs", "3"]), ["--jobs: snapshot.jobs=3"]);
        assert_eq!(
            typed(&["migrate", "--target", "5", "--lock-retries=2", "--placeholders", "owner=me"]),
            [
                "--lock-retries: migrate.lock_retries=2",
                "--placeholders: flyway.placeholders.owner=me",
                "--target: flyway.target=5",
            ]
        );
    }
}
