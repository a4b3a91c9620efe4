//! What a server leaves behind for whoever has lost the connection to it.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

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
            Engine::Native(engine) => engine.why_lost(ctx, since).await,
            Engine::Embedded(engine) => engine.native(ctx).why_lost(ctx, since).await,
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

/// The newest line of a log about a process of the server that crashed or was killed.
pub(super) fn of_log(log: &str, is_new: impl Fn(&str) -> bool) -> Option<String> {
    let tells = |line: &&str| {
        (line.contains("was terminated by signal") || line.contains("PANIC:  ")) && is_new(line)
    };
    log.lines().rev().find(tells).map(|line| format!("the server's log has: {line}"))
}

/// The same since then, of a file that was written to last at `changed`. Its lines begin with the time in some zone:
/// that of the last one tells which.
pub(super) fn of_file(log: &str, changed: Timestamp, since: Timestamp) -> Option<String> {
    let last = log.lines().rev().find_map(written)?;
    let is_new = |line: &str| {
        written(line)
            .is_some_and(|at| changed - (last - at) >= since - SignedDuration::from_secs(1))
    };
    of_log(log, is_new)
}

/// The time of a line as if it were in UTC.
fn written(line: &str) -> Option<Timestamp> {
    let time = line.get(.."2026-11-27 17:35:01.123".len())?.parse::<DateTime>().ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_crash_since_then_is_told() {
        let log = "2026-11-27 17:35:01.500 CET [1] LOG:  server process (PID 90) was terminated by signal 11: Segmentation fault
2026-11-27 17:35:33.250 CET [1] LOG:  server process (PID 91) was terminated by signal 9: Killed
2026-11-27 17:35:33.250 CET [1] DETAIL:  Failed process was running: select 1
2026-11-27 17:35:34.250 CET [1] LOG:  terminating any other active server processes
the last words";
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let told = |since| of_file(log, time("2026-11-27T16:35:34.25Z"), time(since));
        for since in ["2026-11-27T16:35:00Z", "2026-11-27T16:35:33.25Z"] {
            let told = told(since).expect("there is one");
            assert!(told.contains("(PID 91)"), "{told}");
        }
        assert_eq!(told("2026-11-27T16:35:36Z"), None);
        assert_eq!(of_log("all is well", |_| true), None);
    }
}
