//! F33 with the daemon itself: it is restarted, killed and started again, at rest and in the middle of a
//! reset. Environments in a pool and in a plain volume are found again, with what was in them.

use camino::Utf8Path;
use nix::sys::signal::Signal;

use super::Project;
use super::images::use_it;
use crate::harness::daemon_proxy::DaemonProxy;
use crate::harness::second_daemon::SecondDaemon;
use crate::harness::{self, Run};

const IMAGE: &str = "postgres:17";

fn daemon() -> Option<SecondDaemon> {
    let place = std::env::temp_dir();
    SecondDaemon::start(Utf8Path::from_path(&place).expect("named in UTF-8"), IMAGE)
}

/// A project of the daemon; `images`: its data lies in the pool, else in a volume of its own.
async fn project_in(daemon: &SecondDaemon, images: bool) -> Project {
    let mut project = Project::on_its_own("kind = \"docker\"\n").with_snapshot().await;
    project.sandbox.set("DOCKER_HOST", &daemon.address());
    if images {
        project.sandbox.set("SEEDBED_IMAGES_KIND", "auto");
        project.sandbox.set("SEEDBED_IMAGES_MIN_SIZE", "1");
        project.sandbox.set("SEEDBED_IMAGES_POOL", &daemon.pool());
        project.sandbox.set("SEEDBED_IMAGES_POOL_SIZE", "16GiB");
    }
    project
}

/// Whether `status` knows a server that answers.
fn is_running(project: &Project) -> bool {
    let status = project.run(&["status", "--json"]).succeeds().json();
    !status["server"].is_null()
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_a_daemon_that_is_restarted_or_killed_finds_every_environment_again() {
    // Two minutes; the other test has a killed daemon as well.
    if !harness::full() {
        return;
    }
    let Some(mut daemon) = daemon() else { return };
    let projects = [project_in(&daemon, true).await, project_in(&daemon, false).await];
    let mut clean = String::new();
    for project in &projects {
        project.run(&["up"]).succeeds();
        clean = project.contents().await;
        use_it(project).await;
        // What a crash may lose of a server that does not sync is not what this is about.
        project.sql("checkpoint").await;
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut used = Vec::new();
        for project in &projects {
            used.push(project.contents().await);
        }
        daemon.end(signal);
        for project in &projects {
            let run = project.run(&["up"]).exits(4);
            assert!(run.stderr.contains("reach the Docker daemon"), "{}", run.stderr);
        }
        daemon.start_again();
        for (project, used) in projects.iter().zip(&used) {
            assert!(!is_running(project), "{signal}: the daemon starts nothing by itself");
            project.run(&["up"]).succeeds();
            assert!(is_running(project));
            assert_eq!(project.contents().await, *used, "{signal}");
            let reset = project.run(&["reset"]).succeeds();
            assert!(!reset.stderr.contains("load "), "nothing is built: {}", reset.stderr);
            assert_eq!(project.contents().await, clean, "{signal}");
            use_it(project).await;
            project.sql("checkpoint").await;
        }
    }
    let [in_pool, in_volume] = projects;
    in_volume.run(&["down", "--volumes", "--yes"]).succeeds();
    in_pool.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(daemon.docker("volume ls -q"), "");
    assert_eq!(daemon.docker("ps -aq"), "");
}

/// Runs up to a call to the daemon, which is killed there and started again; `None`: it made fewer.
fn killed_daemon(
    daemon: &mut SecondDaemon,
    project: &Project,
    args: &[&str],
    stop: usize,
) -> Option<(Run, String)> {
    let folder = project.sandbox.project().join("..");
    let proxy = DaemonProxy::before(&daemon.socket(), &folder, stop);
    let child = proxy.stops(project.sandbox.command(args))?;
    let at = proxy.seen().last().cloned().unwrap_or_default();
    daemon.end(Signal::SIGKILL);
    proxy.go_on();
    let output = child.wait_with_output().expect("our own child");
    daemon.start_again();
    Some((project.sandbox.ended(args, output), at))
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_a_daemon_that_is_killed_in_a_reset_leaves_the_old_or_the_new_database() {
    let Some(mut daemon) = daemon() else { return };
    let project = project_in(&daemon, true).await;
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    use_it(&project).await;
    project.sql("checkpoint").await;
    let used = project.contents().await;
    let mut count = 0;
    // Where the pool is attached there are two.
    for stop in (1..3).chain((3..).step_by(if harness::full() { 1 } else { 3 })) {
        let killed = killed_daemon(&mut daemon, &project, &["reset"], stop);
        let Some((run, at)) = killed else { break };
        harness::say(&format!("killed at call {stop}: {at}: {:?}", run.code));
        assert_ne!(run.code, Some(0), "{at}: {}", run.stderr);
        project.run(&["up"]).succeeds();
        let found = project.contents().await;
        assert!(found == clean || found == used, "{at}: {found}");
        project.run(&["reset"]).succeeds();
        assert_eq!(project.contents().await, clean, "{at}");
        use_it(&project).await;
        project.sql("checkpoint").await;
        count += 1;
    }
    assert!(count >= 2, "a reset makes calls");
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(daemon.docker("volume ls -q"), "");
    assert_eq!(daemon.docker("ps -aq"), "");
}
