//! A shell that outlives the test process and ends what the process leaves behind.
//!
//! Statics are never dropped and a killed process drops nothing at all, so servers are ended by a
//! child that holds the reading end of a pipe: each line it is given is a command, and when the
//! pipe closes, because the process is gone, it runs them, newest first.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};

const SCRIPT: &str = r#"
trap '' HUP INT TERM
commands=
while IFS= read -r line; do
    commands="$line
$commands"
done
eval "$commands"
"#;

/// Runs the shell command `line` when this process ends, in whatever way it ends.
pub fn at_exit(line: &str) {
    static CHILD: OnceLock<Mutex<Child>> = OnceLock::new();
    assert!(!line.contains('\n'), "one line is one command");
    let child = CHILD.get_or_init(|| Mutex::new(start()));
    let mut child = child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let pipe = child.stdin.as_mut().expect("the shell was started with a piped stdin");
    writeln!(pipe, "{line}").expect("the watchdog runs as long as this process");
}

fn start() -> Child {
    Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C on the terminal goes to the process's group: the watchdog is not in it.
        .process_group(0)
        .spawn()
        .expect("every Unix has /bin/sh")
}
