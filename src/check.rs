//! What `ci` proves on a built database.

use std::process::Stdio;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;

use crate::build::{self, Built};
use crate::connect;
use crate::context::Context;
use crate::error::Error;
use crate::journeys::{self, CiOptions, Proof};
use crate::lend::Copies;
use crate::migrate;
use crate::pg::Target;
use crate::pg::names::DatabaseName;
use crate::report::{Check, format};
use crate::site::Site;

/// Tests that are told to end write their reports first.
const GRACE: Duration = Duration::from_secs(5);

/// Tries everything that must hold once the checkout's scripts have run, then the team's own tests.
///
/// # Errors
/// What could not be tried. A check that does not hold stands in the [`Proof`].
pub(crate) async fn prove(
    ctx: &Context,
    site: &Site,
    built: &Built,
    options: &CiOptions,
) -> Result<Proof, Error> {
    let target = connect::owner(ctx, &site.server, built.scratch.name());
    let names = built.scratch.names();
    // Each script that was pending is a line of its own in every report, with its time.
    let migrated = built.migrated.iter().map(|ran| Check {
        name: ran.script.clone(),
        passed: true,
        detail: "migrated".to_owned(),
        elapsed_ms: ran.elapsed_ms,
    });
    let mut checks: Vec<Check> = migrated.collect();
    checks.push(Check {
        name: "pending migrations run".to_owned(),
        passed: true,
        detail: format::counted(built.migrated.len() as u64, "script"),
        elapsed_ms: built.migrated.iter().map(|ran| ran.elapsed_ms).sum(),
    });
    checks.push(second_migrate(ctx, site, &target, &names).await?);
    checks.push(validates(ctx, site, &target).await?);
    checks.push(grants_hold(ctx, site, &names).await?);
    let passed = checks.iter().all(|check| check.passed);
    let mut command_exit = None;
    let mut kept_urls = Vec::new();
    if passed && !options.command.is_empty() {
        let copies = copies(ctx, site, built, options).await?;
        let targets: Vec<Target> = std::iter::once(target.clone())
            .chain(copies.iter().flat_map(|copies| {
                copies.names.iter().map(|name| connect::owner(ctx, &site.server, name))
            }))
            .collect();
        let started = Instant::now();
        let code = run_command(ctx, &targets, options).await;
        match copies {
            Some(copies) if options.keep => {
                kept_urls = targets.iter().map(ToString::to_string).collect();
                copies.keep().await?;
            }
            Some(copies) => copies.discard().await?,
            None => {}
        }
        let code = code?;
        command_exit = Some(code);
        checks.push(Check {
            name: format!("`{}`", options.command.join(" ")),
            passed: code == 0,
            detail: format!("exit code {code}"),
            elapsed_ms: millis(started),
        });
    }
    Ok(Proof {
        database: built.scratch.name().to_owned(),
        origin: built.scratch.marker().origin.clone(),
        migrated: built.migrated.clone(),
        schema_version: built.schema_version.clone(),
        checks,
        steps: ctx.report.records(),
        warnings: ctx.report.warnings(),
        kept_url: options.keep.then(|| target.to_string()),
        kept_urls,
        command_exit,
    })
}

async fn second_migrate(
    ctx: &Context,
    site: &Site,
    target: &Target,
    names: &DatabaseName,
) -> Result<Check, Error> {
    let started = Instant::now();
    // Read anew, as a second run would: a placeholder may have another value now.
    let scripts = migrate::resolve(ctx, names, site.owner(ctx))?;
    let options = migrate::Options::default();
    let (again, _) = build::run_scripts(ctx, &scripts, target, names, &options).await?;
    Ok(Check {
        name: "second migrate is a no-op".to_owned(),
        passed: again.is_empty(),
        detail: match again.as_slice() {
            [] => "nothing ran".to_owned(),
            ran => {
                let scripts: Vec<&str> = ran.iter().map(|ran| ran.script.as_str()).collect();
                format!("ran again: {}", scripts.join(", "))
            }
        },
        elapsed_ms: millis(started),
    })
}

async fn validates(ctx: &Context, site: &Site, target: &Target) -> Result<Check, Error> {
    let started = Instant::now();
    let findings = migrate::validate(ctx, target, &site.scripts).await?;
    Ok(Check {
        name: "history matches the files".to_owned(),
        passed: findings.is_empty(),
        detail: match findings.first() {
            None => "every script".to_owned(),
            Some(first) => format!(
                "{}, the first: {}",
                format::counted(findings.len() as u64, "finding"),
                first.message
            ),
        },
        elapsed_ms: millis(started),
    })
}

/// Grants hold when they give the same on this data as on an empty database of the same schema.
async fn grants_hold(ctx: &Context, site: &Site, names: &DatabaseName) -> Result<Check, Error> {
    let started = Instant::now();
    let drift = journeys::compare_grants(ctx, site, names).await?;
    let first = drift.missing.iter().chain(&drift.extra).next();
    Ok(Check {
        name: "grants hold".to_owned(),
        passed: drift.is_none(),
        detail: match first {
            None => "effective privileges are what the files say".to_owned(),
            Some(first) => format!(
                "{} missing, {} extra, the first: {first}",
                drift.missing.len(),
                drift.extra.len()
            ),
        },
        elapsed_ms: millis(started),
    })
}

/// The databases of all workers but the first, which works in the one that was proved.
async fn copies(
    ctx: &Context,
    site: &Site,
    built: &Built,
    options: &CiOptions,
) -> Result<Option<Copies>, Error> {
    let Some(count) = options.databases else { return Ok(None) };
    let step = ctx.report.step("copy the database for each worker");
    let copies = Copies::of(ctx, &site.server, &built.scratch, count.saturating_sub(1)).await?;
    step.done(format::counted(count.into(), "database"));
    Ok(Some(copies))
}

/// Runs the team's tests with the databases in their environment. Ctrl-C ends them as well.
async fn run_command(ctx: &Context, targets: &[Target], options: &CiOptions) -> Result<i32, Error> {
    let ([program, arguments @ ..], [target, ..]) = (options.command.as_slice(), targets) else {
        return Ok(0);
    };
    let mut child = tokio::process::Command::new(program);
    child
        .args(arguments)
        .env("DATABASE_URL", target.url_with_password())
        .env("PGHOST", &target.host)
        .env("PGPORT", target.port.to_string())
        .env("PGDATABASE", &target.database)
        .env("PGUSER", &target.user)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    // With whatever it starts itself, so that all of it can be ended.
    #[cfg(unix)]
    child.process_group(0);
    if options.quiet_stdout {
        // Standard output carries one JSON document; what the command prints goes beside it.
        child.stdout(std::io::stderr());
    }
    if let Some(password) = &target.password {
        child.env("PGPASSWORD", password.expose_secret());
    }
    if options.databases.is_some() {
        child.env("SEEDBED_DATABASES", targets.len().to_string());
        for (number, target) in (1..).zip(targets) {
            child.env(format!("DATABASE_URL_{number}"), target.url_with_password());
        }
    }
    let mut child =
        child.spawn().map_err(|error| Error::CommandLine(format!("run `{program}`: {error}")))?;
    let status = tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => {
            end(&mut child).await;
            return Err(Error::Interrupted);
        }
        status = child.wait() => status,
    };
    let status = status.map_err(|error| Error::CommandLine(format!("run `{program}`: {error}")))?;
    // Ended by a signal: 128 and its number, as shells say it.
    #[cfg(unix)]
    let by_signal =
        std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    #[cfg(not(unix))]
    let by_signal = None;
    Ok(status.code().or(by_signal).unwrap_or(1))
}

/// Ends the command and what it has started: asked first, killed after [`GRACE`].
async fn end(child: &mut tokio::process::Child) {
    #[cfg(unix)]
    {
        use nix::sys::signal::{Signal, killpg};
        let id = child.id().and_then(|id| i32::try_from(id).ok()).map(nix::unistd::Pid::from_raw);
        if let Some(group) = id {
            // That it is gone already is what is wanted.
            let _ = killpg(group, Signal::SIGTERM);
            let _ = tokio::time::timeout(GRACE, child.wait()).await;
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
    // Dropped, it is killed where that has not been done yet.
    let _ = child.start_kill();
}

fn millis(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}
