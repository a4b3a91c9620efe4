//! What a server leaves behind for whoever has lost the connection to it.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{Engine, choose, ready, state};
use crate::context::Context;

/// What is known by then; nobody waits longer for an error. A daemon hears of an end after the sessions, and one whose
/// machine is short of memory is slow.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// Why the connection to this environment's server may have ended `since` then; `None`: nothing is known, or
/// the server is not ours.
pub(crate) async fn hint(ctx: &Context, since: Timestamp) -> Option<String> {
    if !is_ours(ctx) {
        return None;
    }
    let look = async {
        match choose::chosen_before(ctx).await.ok()?? {
            Engine::Docker(engine) => engine.why_lost(ctx, since).await,
            Engine::Native(engine) => engine.why_lost(since),
            Engine::Embedded(engine) => engine.native(ctx).why_lost(since),
            Engine::External(_) => None,
        }
    };
    let looked = tokio::time::timeout(LIMIT, ready::cancellable(ctx, look)).await;
    let why = looked.ok()?.ok()??;
    let is_killed = why.contains("signal 9") || why.contains("code 137");
    let memory = if is_killed { " (killed, as where memory is short)" } else { "" };
    Some(format!("{why}{memory}"))
}

/// Whether the environment means the server that this project has.
fn is_ours(ctx: &Context) -> bool {
    let named = &ctx.config.database;
    let Ok(state) = state::read(ctx) else { return false };
    let ports = [state.docker.map(|known| known.port), state.native.map(|known| known.port)];
    let is_meant = !named.named
        || named.target().is_loopback()
            && named.port.is_none_or(|port| ports.contains(&Some(port)));
    is_meant && !ctx.config.protected
}

/// The newest line of a log about a process of the server that crashed or was killed since then.
pub(super) fn of_log<'l>(
    lines: impl DoubleEndedIterator<Item = &'l str>,
    since: Timestamp,
) -> Option<String> {
    let tells =
        |line: &&str| line.contains("was terminated by signal") || line.contains("PANIC:  ");
    // The log has milliseconds.
    let is_new =
        |line: &&str| written(line).is_some_and(|at| at.as_millisecond() >= since.as_millisecond());
    let line = lines.rev().filter(tells).find(is_new)?;
    Some(format!("the server's log has: {line}"))
}

/// When a line was written; PostgreSQL's own prefix begins with that, in the zone of the cluster, which is the
/// machine's that made it.
fn written(line: &str) -> Option<Timestamp> {
    let (time, rest) = line.split_at_checked("2026-11-27 17:35:01.123".len())?;
    let zone = match rest.trim_start().split_once(' ')? {
        ("UTC" | "GMT", _) => TimeZone::UTC,
        _ => TimeZone::system(),
    };
    Some(time.parse::<DateTime>().ok()?.to_zoned(zone).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_crash_since_then_is_told() {
        let log = "2026-11-27 17:35:01.500 UTC [1] LOG:  server process (PID 90) was terminated by signal 11: Segmentation fault
2026-11-27 17:35:03.250 UTC [1] LOG:  server process (PID 91) was terminated by signal 9: Killed
2026-11-27 17:35:03.250 UTC [1] DETAIL:  Failed process was running: select 1
2026-11-27 17:35:03.251 UTC [1] LOG:  terminating any other active server processes
the last words";
        let told = |since: &str| of_log(log.lines(), since.parse().expect("a time"));
        for since in ["2026-11-27T17:35:00Z", "2026-11-27T17:35:03.25Z"] {
            let told = told(since).expect("there is one");
            assert!(told.contains("(PID 91)"), "{told}");
        }
        assert_eq!(told("2026-11-27T17:35:04Z"), None);
    }
}
