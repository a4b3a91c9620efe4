//! Runs the program with system calls of its own that fail, or kill it, by `strace -e inject`.
//!
//! Only the program itself is traced: what it starts (`initdb`, `pg_restore`) is let go.

use super::{Run, Sandbox, sandbox};

/// Whether it is installed and may trace: some sandboxes forbid that.
pub fn is_here() -> bool {
    let tried = std::process::Command::new("strace")
        .args(["-o", "/dev/null", "/bin/true"])
        .stdin(std::process::Stdio::null())
        .output();
    tried.is_ok_and(|output| output.status.success())
}

/// What is done to which calls.
pub struct Injection<'s> {
    sandbox: &'s Sandbox,
    calls: &'static str,
    what: String,
    path: Option<String>,
}

/// Calls of this kind (`fsync`, or several with commas) fail with `error`: all of them, or in each
/// thread only the one with this number, counted from 1.
pub fn failing<'s>(
    sandbox: &'s Sandbox,
    calls: &'static str,
    error: &str,
    number: Option<usize>,
) -> Injection<'s> {
    let when = number.map_or_else(String::new, |number| format!(":when={number}"));
    Injection { sandbox, calls, what: format!("error={error}{when}"), path: None }
}

/// The program is killed when a thread of it makes this call for the `number`th time.
pub fn killed_at<'s>(sandbox: &'s Sandbox, calls: &'static str, number: usize) -> Injection<'s> {
    Injection { sandbox, calls, what: format!("signal=KILL:when={number}"), path: None }
}

/// The program is interrupted, as by Ctrl-C, when a thread of it makes this call for the `number`th time.
pub fn interrupted_at<'s>(
    sandbox: &'s Sandbox,
    calls: &'static str,
    number: usize,
) -> Injection<'s> {
    Injection { sandbox, calls, what: format!("signal=INT:when={number}"), path: None }
}

impl Injection<'_> {
    /// Only calls that name this file: which number one has in its thread is a matter of scheduling.
    pub fn of(self, path: impl AsRef<str>) -> Self {
        Self { path: Some(path.as_ref().to_owned()), ..self }
    }

    /// What the run showed, and the calls that were hit, with the paths of their files.
    pub fn run(&self, args: &[&str]) -> (Run, Vec<String>) {
        let log = tempfile::NamedTempFile::new().expect("the temporary folder can be written to");
        let output = self
            .sandbox
            .other_command("strace")
            .args(["--follow-forks", "--detach-on=execve", "--decode-fds=path", "-qq"])
            .arg(format!("--trace={}", self.calls))
            .arg(format!("--inject={}:{}", self.calls, self.what))
            .args(self.path.iter().map(|path| format!("--trace-path={path}")))
            .arg("--output")
            .arg(log.path())
            .arg(sandbox::PROGRAM)
            .args(args)
            .output()
            .expect("strace was found");
        let log = std::fs::read_to_string(log.path()).expect("strace writes UTF-8");
        let hit = log.lines().filter(|line| line.contains("(INJECTED)"));
        (self.sandbox.ended(args, output), hit.map(str::to_owned).collect())
    }
}
