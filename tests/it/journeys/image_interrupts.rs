//! Ctrl-C inside of what works with images: when the run has ended, a server answers where it did
//! before, with the old database and code 130, or with the new one and code 0.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Project;
use super::image_kills::{Contents, ready};
use super::images::{in_docker, native_with_reflinks, shell, use_it};
use crate::harness::daemon_proxy::DaemonProxy;
use crate::harness::{self, Run, strace};

/// Interrupts a run while it waits for the answer to a call to the daemon; `None`: it made fewer.
fn interrupt(project: &Project, args: &[&str], stop: usize) -> Option<(Run, String)> {
    let proxy = DaemonProxy::start(&project.sandbox.project().join(".."), stop);
    let child = proxy.stops(project.sandbox.command(args))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    kill(pid, Signal::SIGINT).expect("it runs");
    let at = proxy.seen().last().cloned().unwrap_or_default();
    // The signal is to come before the answer.
    shell("sleep 3");
    proxy.go_on();
    let output = child.wait_with_output().expect("our own child");
    Some((project.sandbox.ended(args, output), at))
}

/// Looks before anything else runs: what the interrupted one has left is what people have.
async fn holds(project: &Project, contents: &Contents, run: &Run, at: &str) {
    let found = project.contents().await;
    match run.code {
        Some(130) => assert_eq!(found, contents.used, "{at}: {}", run.stderr),
        Some(0) => assert_eq!(found, contents.clean, "{at}: {}", run.stderr),
        code => panic!("{at}: {code:?}: {}", run.stderr),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_interrupted_at_any_call_of_a_reset_serves_the_old_or_the_new_database() {
    let Some((project, _)) = in_docker().await else { return };
    let contents = ready(&project).await;
    let (mut old, mut new) = (0, 0);
    for stop in 1.. {
        let Some((run, at)) = interrupt(&project, &["reset"], stop) else { break };
        let at = format!("call {stop}: {at}");
        harness::say(&format!("interrupted at {at}: {:?}", run.code));
        holds(&project, &contents, &run, &at).await;
        match run.code {
            Some(130) => old += 1,
            _ => new += 1,
        }
        project.run(&["undo-reset"]).exits(4);
        project.run(&["reset"]).succeeds();
        assert_eq!(project.contents().await, contents.clean, "{at}");
        use_it(&project).await;
    }
    assert!(old >= 1 && new >= 1, "{old} times the old one, {new} times the new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_interrupted_in_an_undo_keeps_what_can_be_brought_back() {
    let Some((project, _)) = in_docker().await else { return };
    let Contents { clean, used } = ready(&project).await;
    project.run(&["reset", "--keep"]).succeeds();
    // The present one is the clean one, and the used one is to come back.
    let contents = Contents { clean: used.clone(), used: clean.clone() };
    let mut old = 0;
    for stop in 1.. {
        let Some((run, at)) = interrupt(&project, &["undo-reset"], stop) else { break };
        holds(&project, &contents, &run, &format!("call {stop}: {at}")).await;
        old += usize::from(run.code == Some(130));
        if run.code == Some(0) {
            project.run(&["undo-reset"]).succeeds();
            assert_eq!(project.contents().await, clean, "call {stop}");
        }
    }
    assert!(old >= 1, "{old}");
    // The last one made fewer calls, and came to its end.
    assert_eq!(project.contents().await, used);
}

#[tokio::test(flavor = "multi_thread")]
async fn native_interrupted_at_any_rename_of_a_reset_serves_the_old_or_the_new_database() {
    if !harness::require("strace", strace::is_here()) {
        return;
    }
    let Some(project) = native_with_reflinks().await else { return };
    let contents = ready(&project).await;
    let mut old = 0;
    for number in 1.. {
        let (run, _) = strace::interrupted_at(&project.sandbox, "rename", number).run(&["reset"]);
        let at = format!("rename {number}");
        harness::say(&format!("interrupted at {at}: {:?}", run.code));
        holds(&project, &contents, &run, &at).await;
        if run.code == Some(0) {
            break;
        }
        old += 1;
        project.run(&["reset"]).succeeds();
        assert_eq!(project.contents().await, contents.clean, "{at}");
        use_it(&project).await;
    }
    assert!(old >= 3, "{old}");
    project.run(&["undo-reset"]).exits(4);
}
