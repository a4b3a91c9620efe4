//! `up` where there is no Docker daemon, and where there is nothing at all.

use super::images::{ended, shell};
use super::{Project, docker_is_here};
use crate::engine::archive_server;
use crate::harness::daemon_proxy::DaemonProxy;
use crate::harness::postgres::newest_bin_dir;

#[tokio::test]
async fn up_without_a_daemon_takes_the_binaries_of_the_machine_and_says_why() {
    let engine = format!("bin_dir = \"{}\"\n", newest_bin_dir().display());
    let mut project = Project::on_its_own(&engine).with_snapshot().await;
    project.sandbox.set("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let up = project.run(&["up"]).succeeds();
    let first = up.stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with("native: PostgreSQL "), "{first}");
    assert!(
        first.contains("because reach the Docker daemon at `unix:///nowhere/docker.sock`: "),
        "{first}"
    );
    assert_eq!(project.text("select count(*) from shop.item").await, "5000");
    let again = project.run(&["up"]).succeeds();
    assert!(
        again.stderr.starts_with("native: this project's server is there already\n"),
        "{}",
        again.stderr
    );
}

#[tokio::test]
async fn up_with_nothing_installed_downloads_a_server() {
    let engine = format!(
        "kind = \"embedded\"\narchive_url = \"{}\"\narchive_version = \"{}\"\n",
        archive_server::good().template(),
        archive_server::version()
    );
    let project = Project::on_its_own(&engine).with_snapshot().await;
    let up = project.run(&["up"]).succeeds();
    assert!(up.stdout.contains("(embedded), schema version 2\n"), "{}", up.stdout);
    assert!(up.stderr.contains("download"), "{}", up.stderr);
    assert_eq!(project.text("select count(*) from shop.item").await, "5000");
    // What was downloaded is in the cache: a second project of this machine needs no download.
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    let up = project.run(&["up"]).succeeds();
    assert!(!up.stderr.contains("download"), "{}", up.stderr);
    // Another version is configured by now, as by a newer program: what runs is found and stopped.
    let later = ["--set", "engine.archive_version=99.0.0"];
    let status = project.run(&[&["status"], &later[..]].concat()).succeeds();
    assert!(status.stdout.contains("embedded, PostgreSQL "), "{}", status.stdout);
    let down = project.run(&[&["down", "--volumes", "--yes"], &later[..]].concat()).succeeds();
    assert!(down.stdout.contains("stopped the server in "), "{}", down.stdout);
}

/// As `docker container prune` does, which takes containers that were made and not started yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_removed_before_its_data_is_looked_at_costs_no_data() {
    if !docker_is_here() {
        return;
    }
    let project = Project::on_its_own("kind = \"docker\"\n").with_snapshot().await;
    project.run(&["up"]).succeeds();
    project.sql("update shop.item set label = 'ours'").await;
    let used = project.contents().await;
    project.run(&["down"]).succeeds();

    let proxy = DaemonProxy::start(&project.sandbox.project().join(".."), 1);
    let mut command = project.sandbox.command(&["up"]);
    command.env("DOCKER_HOST", proxy.address());
    let up = command.spawn().expect("the program was built for this suite");
    assert!(proxy.stopped(std::time::Duration::from_secs(60)), "{:?}", proxy.seen());
    assert!(proxy.seen()[0].contains("/containers/create"), "{:?}", proxy.seen());
    let path = project.sandbox.project();
    shell(&format!("docker rm $(docker ps -aq --filter label=seedbed.path={path})"));
    proxy.go_on();
    let up = ended(&project, &["up"], up).exits(4);
    assert!(up.stderr.contains("the container was removed meanwhile"), "{}", up.stderr);

    project.run(&["up"]).succeeds();
    assert_eq!(project.contents().await, used);
}
