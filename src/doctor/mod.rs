//! `seedbed doctor`: will the journeys work from here? Looks, and changes nothing that stays.
//!
//! Each check gives lines, never an error: one that cannot be carried out is a line that says so.

mod line;
mod source;
mod store;

use std::time::SystemTime;

use crate::config::EngineKind;
use crate::context::Context;
use crate::engine::{self, Clones, DockerEngine, Rung};
use crate::error::Error;
use crate::pg::tools::{Call, Tools};
use crate::pg::{self, Session};
use crate::report::format;

pub use line::{Line, State, text, worst};

/// S3 refuses a request that is signed 15 minutes off (RequestTimeTooSkewed); names of snapshots and
/// retention count in days.
const CLOCK_FAIL_SECONDS: f64 = 900.0;
/// Beyond what a clock under NTP is ever off.
const CLOCK_WARN_SECONDS: f64 = 30.0;

/// All checks of the environment, in the order in which `up` needs them.
pub async fn run(ctx: &Context) -> Vec<Line> {
    let mut lines = project(ctx);
    if ctx.config.engine.kind == EngineKind::External {
        lines.extend(external(ctx).await);
    } else {
        lines.extend(own_server(ctx).await);
    }
    lines.extend(store::look(ctx).await);
    lines
}

fn project(ctx: &Context) -> Vec<Line> {
    let config = &ctx.config;
    let protected = if config.protected { ", protected" } else { "" };
    let branch = match &config.branch {
        Some(branch) => format!(", branch `{}`", branch.name()),
        None => String::new(),
    };
    let text =
        format!("`{}`, environment `{}`{branch}{protected}", config.project, config.environment);
    let mut lines = vec![Line::ok("project", text)];
    lines.extend(config.notes.iter().map(|note| Line::warn("project", note, "")));
    let scripts = config.migrate.locations.iter().filter(|location| {
        // A location with wildcards is a pattern, not a folder.
        !location.as_str().contains(['*', '?']) && !location.is_dir()
    });
    lines.extend(scripts.map(|location| {
        let text = format!("no folder `{location}` for scripts");
        Line::warn("project", text, "edit `flyway.locations`, or make it with `seedbed new`")
    }));
    lines
}

/// What a reset clones; of small databases always a template.
fn resets(rung: &Rung, least: u64) -> String {
    match rung.clones {
        Clones::Image => {
            format!("{rung}; what is smaller than {}, from a template", format::bytes(least))
        }
        Clones::Template => rung.to_string(),
    }
}

/// A server that seedbed starts: what would run it, and whether it runs.
async fn own_server(ctx: &Context) -> Vec<Line> {
    let mut lines = Vec::new();
    if matches!(ctx.config.engine.kind, EngineKind::Auto | EngineKind::Docker) {
        lines.extend(docker(ctx).await);
    }
    let engine = match engine::choose(ctx).await {
        Ok(choice) => {
            lines.push(Line::ok("engine", choice.why));
            choice.engine
        }
        Err(error) => {
            lines.push(Line::error("engine", &error.into()));
            return lines;
        }
    };
    lines.push(match engine.rung(ctx).await {
        Ok(rung) => Line::ok("resets", resets(&rung, ctx.config.images.min_size)),
        Err(error) => Line::error("resets", &error.into()),
    });
    match engine.running(ctx).await {
        Ok(Some(server)) => {
            let version = format!("{}.{}", server.major(), server.version_num % 10_000);
            let text = format!("`{}` answers, PostgreSQL {version}", server.admin);
            lines.push(Line::ok("server", text));
            lines.push(tools(ctx, &server.tools).await);
            match Session::connect(&server.admin).await {
                Ok(session) => {
                    lines.push(clock(&session).await.unwrap_or_else(unreachable));
                    session.close().await;
                }
                Err(error) => lines.push(unreachable(error)),
            }
        }
        Ok(None) => lines.push(Line::ok("server", "not running; `seedbed up` starts it")),
        Err(error) => lines.push(Line::error("server", &error.into())),
    }
    lines
}

/// Without Docker another engine may do, so only where it is demanded is its lack a failure.
async fn docker(ctx: &Context) -> Vec<Line> {
    let lack = |check, error: engine::Error| {
        let line = Line::error(check, &error.into());
        match ctx.config.engine.kind {
            EngineKind::Docker => line,
            EngineKind::Auto | EngineKind::Native | EngineKind::Embedded | EngineKind::External => {
                Line { state: State::Warn, ..line }
            }
        }
    };
    let daemon = match DockerEngine::connect(ctx).await {
        Ok(daemon) => daemon,
        Err(error) => return vec![lack("docker", error)],
    };
    let image = &ctx.config.engine.image;
    let place = match daemon.has_image().await {
        Ok(true) => Ok("is here"),
        Ok(false) => daemon
            .registry_answers(ctx)
            .await
            .map(|()| "is not here; the first `seedbed up` pulls it"),
        Err(error) => Err(error),
    };
    let image = match place {
        Ok(place) => Line::ok("image", format!("`{image}` {place}")),
        Err(error) => lack("image", error),
    };
    vec![Line::ok("docker", "a daemon answers"), image]
}

/// Runs `pg_dump --version`: that a program is found does not say that it starts.
async fn tools(ctx: &Context, tools: &Tools) -> Line {
    let call = Call {
        program: "pg_dump",
        args: vec!["--version".to_owned()],
        target: None,
        stdin: None,
        input_file: None,
    };
    let ran = async {
        let place = tools.describe(ctx).await?;
        Ok::<_, engine::Error>((place, tools.run(ctx, call).await?))
    };
    match ran.await {
        Ok((place, output)) if output.status == 0 => {
            let version = String::from_utf8_lossy(&output.stdout);
            Line::ok("tools", format!("{} in `{place}`", version.trim()))
        }
        Ok((place, output)) => {
            let text = format!(
                "`pg_dump` in `{place}` ends with code {}: {}",
                output.status,
                output.stderr.trim()
            );
            Line::fail("tools", text, "install the PostgreSQL clients again")
        }
        Err(error) => Line::error("tools", &error.into()),
    }
}

/// A server that somebody else runs: the source of snapshots, or a place to build databases in.
async fn external(ctx: &Context) -> Vec<Line> {
    let config = &ctx.config;
    let target = if config.protected {
        // The promise that a source is only read holds for this look as well.
        config.database.target().with_setting("default_transaction_read_only", "on")
    } else {
        let database = config.database.target().with_database("postgres");
        match &config.engine.superuser {
            Some(user) => database.with_user(user, config.engine.superuser_password.clone()),
            None => database,
        }
    };
    let session = match Session::connect(&target).await {
        Ok(session) => session,
        Err(error) => return vec![unreachable(error)],
    };
    let mut lines = Vec::new();
    if let Err(error) = look_inside(ctx, &session, &mut lines).await {
        lines.push(unreachable(error));
    }
    session.close().await;
    lines
}

async fn look_inside(
    ctx: &Context,
    session: &Session,
    lines: &mut Vec<Line>,
) -> Result<(), pg::Error> {
    let row = session
        .query_one(
            "select current_setting('server_version'),
                    current_setting('server_version_num')::int4 / 10000",
            &[],
        )
        .await?;
    let (version, major): (String, i32) = (row.get(0), row.get(1));
    let text = format!("`{}` answers, PostgreSQL {version}", session.target());
    lines.push(Line::ok("server", text));
    if ctx.config.protected {
        lines.extend(source::privileges(session).await?);
    } else {
        lines.push(source::making(session).await?);
    }
    let major = u32::try_from(major).unwrap_or(0);
    lines.push(tools(ctx, &Tools::later(ctx, major)).await);
    lines.push(clock(session).await?);
    Ok(())
}

fn unreachable(error: pg::Error) -> Line {
    let fix = match error.sqlstate() {
        Some("3D000") => Some("check `database.name`".to_owned()),
        Some(_) => error.hints().into_iter().next(),
        None => Some(
            "check `database.host` and `database.port`, and that the network lets you through"
                .to_owned(),
        ),
    };
    Line { fix, ..Line::error("server", &Error::Server(error)) }
}

/// Our clock against the server's, the way there and back taken into account.
async fn clock(session: &Session) -> Result<Line, pg::Error> {
    let before = seconds_now();
    let row =
        session.query_one("select extract(epoch from clock_timestamp())::float8", &[]).await?;
    let theirs: f64 = row.get(0);
    let ours = (before + seconds_now()) / 2.0;
    Ok(clock_line("the server's", ours - theirs))
}

fn seconds_now() -> f64 {
    // A clock before 1970 is off by more than any limit here.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// `ahead` is how many seconds our clock is before `whose`.
fn clock_line(whose: &str, ahead: f64) -> Line {
    let fix = "set this machine's clock by NTP (`timedatectl set-ntp true`)";
    let size = ahead.abs();
    if size < CLOCK_WARN_SECONDS {
        return Line::ok(
            "clock",
            format!("agrees with {whose} within {:.0} s", size.max(1.0).ceil()),
        );
    }
    let direction = if ahead > 0.0 { "ahead of" } else { "behind" };
    let text = format!("{size:.0} s {direction} {whose}");
    if size < CLOCK_FAIL_SECONDS {
        Line::warn("clock", text, fix)
    } else {
        Line::fail("clock", text, fix)
    }
}

#[cfg(test)]
mod tests {
    use super::{State, clock_line};

    #[test]
    fn clocks_may_be_a_little_off() {
        let table = [
            (0.2, State::Ok, "agrees with the server's within 1 s"),
            (-12.3, State::Ok, "agrees with the server's within 13 s"),
            (45.0, State::Warn, "45 s ahead of the server's"),
            (-3600.0, State::Fail, "3600 s behind the server's"),
        ];
        for (ahead, state, text) in table {
            let line = clock_line("the server's", ahead);
            assert_eq!((line.state, line.text.as_str()), (state, text));
        }
    }
}
