//! A project folder of one test, and the built program run in it with nothing of the outside.
//!
//! The environment is cleared: `PATH`, a home and a cache folder of its own, a fixed locale and time
//! zone, nothing else. When the test fails the folder is kept and named; servers that the program
//! started in it are stopped in any case.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

use super::{say, unique, watchdog};

/// The built program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_seedbed");

/// A temporary folder: `project/`, `home/` and `cache/`.
pub struct Sandbox {
    root: Utf8PathBuf,
    variables: BTreeMap<String, String>,
}

/// What one run of the program showed.
#[derive(Debug, Clone)]
pub struct Run {
    pub args: Vec<String>,
    pub stdout: String,
    pub stderr: String,
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    hidden: Vec<(String, &'static str)>,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    pub fn new() -> Self {
        let folder = std::env::temp_dir();
        Self::below(Utf8Path::from_path(&folder).expect("a temporary folder named in UTF-8"))
    }

    /// One that lies in another folder than the temporary one.
    pub fn below(folder: &Utf8Path) -> Self {
        let root = tempfile::Builder::new()
            .prefix("seedbed-test-")
            .tempdir_in(folder)
            .expect("the temporary folder can be written to")
            .keep();
        let root = Utf8PathBuf::from_path_buf(root).expect("we named it in UTF-8");
        for dir in ["project", "home", "cache"] {
            std::fs::create_dir(root.join(dir)).expect("the folder is new and ours");
        }
        let path = std::env::var_os("PATH").and_then(|path| path.into_string().ok());
        let pool = unique("seedbed-test-pool");
        let variables = [
            ("PATH", path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".to_owned())),
            ("HOME", root.join("home").into_string()),
            ("SEEDBED_CACHE_DIR", root.join("cache").into_string()),
            ("LC_ALL", "C.UTF-8".to_owned()),
            ("TZ", "UTC".to_owned()),
            // A pool is for all projects of a machine; tests run beside each other.
            ("SEEDBED_IMAGES_POOL", pool.clone()),
        ];
        let sandbox = Self {
            root,
            variables: variables.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        // Should the process be killed, what the program left running is stopped by its own `down`.
        watchdog::at_exit(&format!(
            "export SEEDBED_IMAGES_POOL={pool}; \
             for branch in $(ls {project}/.seedbed/branches 2>/dev/null); do \
               {PROGRAM} branch delete $branch --yes --project {project}; done; \
             if test -e {project}/.seedbed; then {PROGRAM} down --volumes --yes --project {project}; fi",
            project = sandbox.project(),
        ));
        sandbox
    }

    /// The folder that the program runs in.
    pub fn project(&self) -> Utf8PathBuf {
        self.root.join("project")
    }

    /// The chunk cache.
    pub fn cache(&self) -> Utf8PathBuf {
        self.root.join("cache")
    }

    /// Sets a variable for every following run.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Writes a file of the project; folders are made.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.project().join(path);
        let dir = path.parent().expect("a file of the project lies in a folder");
        std::fs::create_dir_all(dir).expect("the project folder is ours");
        std::fs::write(&path, text).expect("the project folder is ours");
    }

    /// Reads a file of the project.
    pub fn read(&self, path: &str) -> String {
        let path = self.project().join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {path}: {error}"))
    }

    /// The branches that have an environment here.
    pub fn branches(&self) -> Vec<String> {
        let Ok(entries) = self.project().join(".seedbed/branches").read_dir_utf8() else {
            return Vec::new();
        };
        let name = |entry: camino::Utf8DirEntry| {
            let state = std::fs::read_to_string(entry.path().join("state.json")).ok()?;
            let state: serde_json::Value = serde_json::from_str(&state).ok()?;
            state["branch"].as_str().map(str::to_owned)
        };
        entries.flatten().filter_map(name).collect()
    }

    /// Copies the files below `dir` of this repository into the project, under the same name.
    pub fn copy_from_repository(&self, dir: &str) {
        copy_tree(&Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &self.project().join(dir));
    }

    /// The program with this sandbox's surroundings, for a test that starts it itself.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.other_command(PROGRAM);
        command.args(args);
        command
    }

    /// Another program with this sandbox's surroundings.
    pub fn other_command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(&self.variables)
            .current_dir(self.project())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end, stdin closed.
    pub fn run(&self, args: &[&str]) -> Run {
        let output = self.command(args).output().expect("the program was built for this suite");
        self.ended(args, output)
    }

    /// Makes a [`Run`] of a command that the test started itself.
    pub fn ended(&self, args: &[&str], output: std::process::Output) -> Run {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Run {
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            code: output.status.code(),
            hidden: vec![
                (self.project().into_string(), "[project]"),
                (self.cache().into_string(), "[cache]"),
                (self.root.clone().into_string(), "[sandbox]"),
            ],
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        // Their images may be the default environment's as well: it goes last.
        for branch in self.branches() {
            let down: &[&str] = if failing {
                &["down", "--branch", &branch]
            } else {
                &["branch", "delete", &branch, "--yes"]
            };
            let _ = self.command(down).output();
        }
        if self.project().join(".seedbed").exists() {
            let down: &[&str] = if failing { &["down"] } else { &["down", "--volumes", "--yes"] };
            let _ = self.command(down).output();
        }
        if failing {
            say(&format!("kept sandbox {}", self.root));
        } else {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

impl Run {
    /// Fails the test, showing everything, unless the program ended with `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(
            self.code == Some(code),
            "`seedbed {}` ended with {:?}, not {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.args.join(" "),
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Fails the test, showing everything, unless the program ended with 0.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    /// The one JSON document on stdout.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("stdout is no JSON document: {error}\n{}", self.stdout),
        }
    }

    /// Whatever the next transcript shows instead of `text`.
    pub fn hide(mut self, text: &str, label: &'static str) -> Self {
        self.hidden.insert(0, (text.to_owned(), label));
        self
    }

    /// Everything visible, as one text to compare with an inline snapshot. What differs from run to
    /// run is replaced: the sandbox's paths, hidden texts, times (`[time]`).
    pub fn transcript(&self) -> String {
        let mut all = String::new();
        let code = self.code.map_or_else(|| "signal".to_owned(), |code| code.to_string());
        let _ = write!(all, "exit {code}\n--- stdout\n{}--- stderr\n{}", self.stdout, self.stderr);
        for (text, label) in &self.hidden {
            all = all.replace(text, label);
        }
        hide_times(&all)
    }
}

/// Replaces `12 ms`, `3.4 s`, `0.1s`, `1 min` by `[time]`.
fn hide_times(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(start);
        let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
        let (digits, after) = number.split_at(end);
        out.push_str(before);
        match unit_length(after) {
            Some(length) => {
                out.push_str("[time]");
                rest = &after[length..];
            }
            None => {
                out.push_str(digits);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The length of a unit of time at the start of `text`, with the space before it.
fn unit_length(text: &str) -> Option<usize> {
    let word = text.strip_prefix(' ').unwrap_or(text);
    let space = text.len() - word.len();
    ["ms", "min", "s"].into_iter().find_map(|unit| {
        let after = word.strip_prefix(unit)?;
        let ends = !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        ends.then_some(space + unit.len())
    })
}

fn copy_tree(from: &Utf8Path, to: &Utf8Path) {
    std::fs::create_dir_all(to).expect("the sandbox is ours");
    for entry in from.read_dir_utf8().unwrap_or_else(|error| panic!("reading {from}: {error}")) {
        let entry = entry.expect("the repository's folder can be read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("the sandbox is ours");
        }
    }
}
