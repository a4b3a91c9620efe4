//! `deploy/Dockerfile`, built from a base that is here, and the job run in it as Kubernetes would.

use std::process::Command;

use super::jobs::{containers, has_image, sh};
use super::world::world;
use super::{file, text, words, yaml};
use crate::harness::{self, Run, Sandbox, postgres, sandbox, watchdog};

/// The base image of the Dockerfile: `ARG BASE=…`.
fn default_base() -> String {
    let text = text("deploy/Dockerfile");
    let base = text.lines().find_map(|line| line.strip_prefix("ARG BASE="));
    base.expect("the base is an argument").to_owned()
}

/// Every folder that the Dockerfile copies is sent to the daemon, and nothing else.
#[test]
fn what_the_image_copies_is_what_is_sent_to_the_daemon() {
    let text = text("deploy/Dockerfile");
    let binary = text.lines().find_map(|line| line.strip_prefix("ARG BINARY="));
    let mut copied: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("COPY ")?.split(' ').next())
        .map(|source| source.replace("${BINARY}", binary.expect("the program is an argument")))
        .collect();
    copied.sort();
    let ignore =
        std::fs::read_to_string(file("deploy/Dockerfile.dockerignore")).expect("it is there");
    let mut sent: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    sent.sort_unstable();
    assert_eq!(sent, copied);
    assert!(ignore.lines().any(|line| line == "*"), "everything else stays out");
}

/// An image of this test, removed at the end.
fn build(sandbox: &Sandbox, base: &str) -> String {
    for path in ["conf", "sql", "users", "deploy"] {
        sandbox.copy_from_repository(path);
    }
    // A debug build without its symbols: a tenth of the size.
    sandbox.write("target/release/.keep", "");
    let program = sandbox.project().join("target/release/seedbed");
    std::fs::copy(sandbox::PROGRAM, &program).expect("the sandbox is ours");
    sh(&format!("strip {program} || true"));
    let tag = harness::unique("seedbed-test-job").replace('_', "-");
    watchdog::at_exit(&format!("docker rmi -f {tag}"));
    // The command of its head, with another tag and the base as an argument.
    let text = text("deploy/Dockerfile");
    let command = text
        .lines()
        .find_map(|line| line.strip_prefix("#   docker build "))
        .expect("its head names the command");
    let (options, folder) = command.rsplit_once(' ').expect("options, folder");
    assert!(options.contains("-t factory/seedbed:1"), "{command}");
    let options = options.replace("factory/seedbed:1", &tag);
    let command = format!("docker build {options} --build-arg BASE={base} {folder}");
    let output = sandbox.other_command("/bin/sh").args(["-c", &command]).output().expect("sh");
    sandbox.ended(&[&command], output).succeeds();
    tag
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_runs_the_job_without_root_capabilities_or_a_writable_file_system() {
    let base = default_base();
    if !has_image(&base) {
        return;
    }
    let Some(documents) = yaml("deploy/kubernetes/snapshot.yaml") else { return };
    let Some((world, _turn)) = world().await else { return };
    let sandbox = Sandbox::new();
    let tag = build(&sandbox, &base);

    let user = sh(&format!("docker inspect --format '{{{{.Config.User}}}}' {tag}"));
    assert_eq!(user, "65532:65532", "a number: Kubernetes sees that it is not root");
    let in_image = |args: &[&str]| -> Run {
        let mut command = Command::new("docker");
        command
            .args(["run", "--rm", "--network", "host", "--read-only", "--tmpfs", "/tmp"])
            .args(["--user", "65532:65532", "--cap-drop", "ALL", "--memory", "1g"])
            .args(["--security-opt", "no-new-privileges"]);
        for (name, value) in world.job_variables() {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        for (name, value) in world.places() {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        let output = command.arg(&tag).args(args).output().expect("docker is there");
        sandbox.ended(args, output)
    };
    let version = in_image(&["--version"]).succeeds();
    assert_eq!(version.stdout, format!("seedbed {}\n", env!("CARGO_PKG_VERSION")));
    let doctor = in_image(&["doctor", "--env", "prod"]).succeeds();
    assert!(doctor.stdout.contains("may read every table"), "{}", doctor.stdout);

    let before = in_image(&["snapshot", "list", "--env", "prod", "--json"]).succeeds().json();
    for document in documents.iter().filter(|document| document["kind"] == "CronJob") {
        for container in containers(document) {
            in_image(&words(&container["args"])).succeeds();
        }
    }
    // What the image does when nobody says what.
    in_image(&[]).succeeds();
    let after = in_image(&["snapshot", "list", "--env", "prod", "--json"]).succeeds().json();
    let count = |listed: &serde_json::Value| listed["result"].as_array().map_or(0, Vec::len);
    assert_eq!(count(&after), count(&before) + 2);
}

#[test]
fn another_base_is_an_argument_of_the_build() {
    let major = postgres::newest_bin_dir();
    let major = major.parent().and_then(|dir| dir.file_name()?.to_str()?.parse::<u32>().ok());
    let base = format!("postgres:{}", major.expect("/usr/lib/postgresql/MAJOR/bin"));
    if base == default_base() || !has_image(&base) {
        return;
    }
    let sandbox = Sandbox::new();
    let tag = build(&sandbox, &base);
    let version = sh(&format!("docker run --rm --entrypoint pg_dump {tag} --version"));
    let major = base.trim_start_matches("postgres:");
    assert!(version.contains(&format!("(PostgreSQL) {major}.")), "{version}");
}
