//! Engines: the same cases over each of them, and what is special about one.
//!
//! Docker tests need a daemon and `postgres:17` (`scripts/postgres-image 17`); native and embedded
//! ones the server's binaries on this machine.

pub mod archive_server;
mod choosing;
mod conformance;
mod docker;
mod embedded;
mod native;
mod registry;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use camino::Utf8PathBuf;
use seedbed::config::{self, Flags};
use seedbed::context::Context;
use seedbed::engine::{Choice, Engine, choose};
use seedbed::env::Env;
use seedbed::report::{Event, Report, Reporter};
use tokio_util::sync::CancellationToken;

use crate::harness::{postgres, require, watchdog};

/// The image that Docker tests run; its absence fails them when everything is required.
const IMAGE: &str = "postgres:17";

/// A project folder with one environment, and the library called in it.
struct Project {
    dir: Utf8PathBuf,
    variables: Vec<(String, String)>,
    events: Events,
    cancel: CancellationToken,
}

/// What was reported, as lines.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl Events {
    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no test panics while it reports").clone()
    }
}

impl Report for Events {
    fn event(&self, event: &Event) {
        let line = match event {
            Event::StepStarted { name, .. } => format!("begin {name}"),
            Event::StepProgress { done, total, .. } => format!("progress {done}/{total:?}"),
            Event::StepMessage { text, .. } => text.clone(),
            Event::StepDone { name, detail, .. } => format!("done {name}: {detail}"),
            Event::StepFailed { name, .. } => format!("failed {name}"),
            Event::Note(text) | Event::Warning(text) | Event::Detail(text) => text.clone(),
        };
        self.0.lock().expect("no test panics while it reports").push(line);
    }
}

impl Project {
    /// A project whose environment says `config`, reachable for the server's user.
    fn new(config: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("seedbed-engine-")
            .tempdir()
            .expect("the temporary folder can be written to")
            .keep();
        let dir = Utf8PathBuf::from_path_buf(dir).expect("we named it in UTF-8");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&dir, open).expect("it is ours");
        std::fs::create_dir(dir.join("conf")).expect("it is ours");
        let project = Self {
            variables: vec![
                ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
                ("HOME".to_owned(), dir.join("home").into_string()),
                ("SEEDBED_CACHE_DIR".to_owned(), dir.join("cache").into_string()),
            ],
            dir,
            events: Events::default(),
            cancel: CancellationToken::new(),
        };
        project.configure(config);
        watchdog::at_exit(&project.clean_up());
        project
    }

    fn configure(&self, config: &str) {
        std::fs::write(self.dir.join("conf/dev.toml"), config).expect("it is ours");
    }

    fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    fn context(&self) -> Context {
        let env = Env::from_variables(self.variables.clone(), self.dir.clone());
        let flags = Flags { project: Some(self.dir.clone()), ..Flags::default() };
        Context {
            config: Arc::new(config::load(&env, &flags).expect("the configuration is valid")),
            env: Arc::new(env),
            report: Reporter::new(Box::new(self.events.clone())),
            cancel: self.cancel.clone(),
            yes: true,
        }
    }

    async fn choose(&self) -> Choice {
        choose(&self.context()).await.expect("an engine is there")
    }

    async fn engine(&self) -> Engine {
        self.choose().await.engine
    }

    fn state(&self) -> String {
        std::fs::read_to_string(self.dir.join(".seedbed/state.json")).expect("it was written")
    }

    /// Removes what the project left running, without the program under test.
    fn clean_up(&self) -> String {
        let label = format!("label=seedbed.path={}", self.dir);
        format!(
            "for p in {dir}/.seedbed/native/data/postmaster.pid; do \
             test -e $p && kill -QUIT $(head -n 1 $p); done; \
             ids=$(docker ps -aq --filter {label}); test -z \"$ids\" || docker rm -fv $ids; \
             ids=$(docker volume ls -q --filter {label}); test -z \"$ids\" || docker volume rm -f $ids; \
             rm -rf {dir}",
            dir = self.dir,
        )
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            crate::harness::say(&format!("reported: {:#?}", self.events.lines()));
        }
        let _ = Command::new("sh").args(["-c", &self.clean_up()]).output();
    }
}

/// What a shell command wrote; it must succeed.
fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("every Unix has sh");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(output.status.success(), "{command}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Whether Docker and its image are here.
fn docker_is_here() -> bool {
    let there = Command::new("docker")
        .args(["image", "inspect", IMAGE])
        .output()
        .is_ok_and(|output| output.status.success());
    require("a Docker daemon with the image postgres:17", there)
}

/// A configuration that names the harness's binaries.
fn native_config() -> String {
    format!("[engine]\nkind = \"native\"\nbin_dir = \"{}\"\n", postgres::newest_bin_dir().display())
}

/// The name of the project's container and volume.
fn container_of(project: &Project) -> String {
    shell(&format!(
        "docker ps -a --format '{{{{.Names}}}}' --filter label=seedbed.path={} --filter label=seedbed.role=server",
        project.dir
    ))
}
