//! What a server leaves behind for whoever has lost the connection to it.

use super::{Engine, choose};
use crate::context::Context;

/// A crash and the recovery after it write about twenty lines.
pub(super) const LINES: usize = 50;

/// Why the connection to this environment's server may have ended; `None`: nothing is known.
pub(crate) async fn hint(ctx: &Context) -> Option<String> {
    let why = match choose::chosen_before(ctx).await.ok()?? {
        Engine::Docker(engine) => engine.why_lost(ctx).await,
        Engine::Native(engine) => engine.why_lost(),
        Engine::Embedded(engine) => engine.native(ctx).why_lost(),
        Engine::External(_) => None,
    }?;
    let is_killed = why.contains("signal 9") || why.contains("code 137");
    let memory = if is_killed { " (killed, as where memory is short)" } else { "" };
    Some(format!("{why}{memory}"))
}

/// The newest line of a log about a process of the server that crashed or was killed.
pub(super) fn of_log(lines: &[String]) -> Option<String> {
    let tells =
        |line: &&String| line.contains("was terminated by signal") || line.contains("PANIC:  ");
    lines.iter().rev().find(tells).map(|line| format!("the server's log has: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_crash_of_a_log_is_told() {
        let log = "2026-11-27 17:35:01 UTC [1] LOG:  server process (PID 90) was terminated by signal 11: Segmentation fault
2026-11-27 17:35:03 UTC [1] LOG:  server process (PID 91) was terminated by signal 9: Killed
2026-11-27 17:35:03 UTC [1] LOG:  terminating any other active server processes";
        let mut lines: Vec<String> = log.lines().map(str::to_owned).collect();
        let told = of_log(&lines).expect("two of them");
        assert!(told.contains("(PID 91)"), "{told}");
        lines.drain(..2);
        assert_eq!(of_log(&lines), None);
    }
}
