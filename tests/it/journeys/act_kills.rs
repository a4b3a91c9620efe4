//! kill -9 of what works inside a container (`act.sh`), at the programs that it starts: whoever asked for it is told,
//! the environment is the old or the new one, and the next runs leave nothing behind.

use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::branches::on_branch;
use super::image_kills::{Contents, of_pool, ready};
use super::images::{in_docker, shell, use_it};
use super::published::{newcomer, took};
use super::{Project, contents};
use crate::harness::container::image_with;
use crate::harness::{self, Run};

/// Kills the act that has called it when it is its turn, else is what it is called. The first process of a
/// container cannot be killed from inside: there it says so, and waits.
const PROGRAM: &str = "#!/bin/sh
turn=/seedbed/.turn
if [ -e $turn ] && grep -aq 'Acts on the data directories' /proc/$PPID/cmdline; then
  left=$(($(cat $turn) - 1))
  if [ $left -gt 0 ]; then
    echo $left >$turn
  else
    if [ $PPID = 1 ]; then
      : >/seedbed/.reached
      /usr/bin/rm $turn
      exec sleep 600
    fi
    /usr/bin/rm $turn
    kill -9 $PPID
    exit 1
  fi
fi
exec /usr/bin/${0##*/} \"$@\"
";

/// An image of PostgreSQL whose programs are those above.
fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let programs = ["cp", "mv", "ln", "rm", "touch", "mkdir", "readlink"];
        image_with(&programs.map(|program| (program, PROGRAM)))
    })
}

/// In the container of the environment, whose server runs.
fn inside(project: &Project, command: &str) -> String {
    shell(&in_container(project, command))
}

fn in_container(project: &Project, command: &str) -> String {
    let path = project.sandbox.project();
    // The oldest one: that of a branch was made later.
    let container = format!("docker ps -q --filter label=seedbed.path={path} | tail -n 1");
    format!("exec docker exec $({container}) sh -c '{command}'")
}

/// Numbers of the programs to be killed at.
fn turns() -> impl Iterator<Item = usize> {
    (1..).step_by(if harness::full() { 1 } else { 6 })
}

/// The same where each takes a whole environment.
fn few_turns() -> impl Iterator<Item = usize> {
    (1..).step_by(if harness::full() { 1 } else { 13 })
}

/// Halves of images, of points and of clones, links on their way, and data that nothing names.
fn left(project: &Project) -> String {
    inside(
        project,
        "ls -d /seedbed/images/.*.* /seedbed/blank/.*.* /seedbed/envs/*/images/.*.* /seedbed/images/*/*.part /seedbed/envs/*/*.part \
           /seedbed/envs/*/*.new 2>/dev/null | grep -v \"/[.][.]$\"; \
         for env in /seedbed/envs/*/; do ls -d $env/g-* | wc -l; done | grep -vx 1 || true",
    )
}

/// The next act of the environment is killed at this program.
fn arm(project: &Project, turn: usize) {
    inside(project, &format!("echo {turn} >/seedbed/.turn"));
}

/// Whether it was.
fn was_killed(project: &Project) -> bool {
    inside(project, "rm /seedbed/.turn 2>/dev/null || echo killed") == "killed"
}

/// What is done, what is there before it, and what it gives.
struct Act<'a> {
    args: &'a [&'a str],
    before: &'a str,
    after: &'a str,
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_inside_an_act_the_old_or_the_new_database_is_served() {
    let Some((mut project, pool)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_ENGINE_IMAGE", image());
    let Contents { clean, used } = ready(&project).await;
    project.run(&["branch", "save", "point"]).succeeds();
    let acts = [
        Act { args: &["reset", "--keep"], before: &used, after: &clean },
        Act { args: &["undo-reset"], before: &clean, after: &used },
        Act { args: &["branch", "restore", "point"], before: &clean, after: &used },
    ];
    project.run(&["branch", "restore", "point"]).succeeds();
    for Act { args, before, after } in acts {
        let mut count = 0;
        for turn in turns() {
            // It is used; where that is what comes back, replaced.
            if before == clean {
                project.run(&["reset", "--keep"]).succeeds();
            }
            assert_eq!(project.contents().await, before);
            arm(&project, turn);
            let run = project.run(args);
            let was_killed = was_killed(&project);
            let at = format!("program {turn} of {args:?}: {:?}", run.code);
            harness::say(&format!("killed at {at}"));
            if was_killed && run.code != Some(0) {
                // Whoever asked for it is told.
                assert!(run.stderr.contains("error: "), "{at}: {}", run.stderr);
                assert!(!run.stderr.contains(": \n"), "{at}: {}", run.stderr);
            }
            project.run(&["up"]).succeeds();
            let found = project.contents().await;
            assert!(found == after || (found == before && run.code != Some(0)), "{at}: {found}");
            project.run(&["reset"]).succeeds();
            assert_eq!(project.contents().await, clean, "{at}");
            project.run(&["branch", "restore", "point"]).succeeds();
            assert_eq!(project.contents().await, used, "{at}");
            assert_eq!(left(&project), "", "{at}");
            if !was_killed {
                break;
            }
            count += 1;
        }
        assert!(count >= 2, "{args:?}: {count}");
    }
    freezes(&project, &used, &pool).await;
    assert_eq!(project.contents().await, used);
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

/// What is live is frozen, as a point, which is then the old or the new one; and what a second server has made, as an
/// image.
async fn freezes(project: &Project, used: &str, pool: &str) {
    let mut count = 0;
    for turn in turns() {
        project.sql(&format!("update shop.item set cents = {}", turn + 1)).await;
        let other = project.contents().await;
        arm(project, turn);
        let run = project.run(&["branch", "save", "point", "--replace"]);
        let was_killed = was_killed(project);
        let at = format!("program {turn} of a save: {:?}", run.code);
        harness::say(&format!("killed at {at}"));
        project.run(&["up"]).succeeds();
        assert_eq!(project.contents().await, other, "{at}");
        project.run(&["branch", "restore", "point"]).succeeds();
        let found = project.contents().await;
        assert!(found == other || (found == used && run.code != Some(0)), "{at}: {found}");
        project.run(&["reset"]).succeeds();
        use_it(project).await;
        assert_eq!(project.contents().await, used, "{at}");
        project.run(&["branch", "save", "point", "--replace"]).succeeds();
        assert_eq!(left(project), "", "{at}");
        if !was_killed {
            break;
        }
        count += 1;
    }
    assert!(count >= 2, "{count}");

    count = 0;
    let script = project.sandbox.project().join("sql/V3__notes.sql");
    for turn in turns() {
        let text = format!("create table shop.note (body text default '{turn}');");
        fs_err::write(&script, text).expect("it is ours");
        let (run, was_killed) = cut_off(project, &["reset"], turn, project, pool);
        let at = format!("program {turn} of a freeze: {:?}", run.code);
        project.run(&["up"]).succeeds();
        let found = project.text("select count(*) from shop.purchase").await;
        assert!(found == "10" || (found == "0" && run.code != Some(0)), "{at}: {found}");
        fs_err::remove_file(&script).expect("is there");
        project.run(&["reset"]).succeeds();
        project.run(&["branch", "restore", "point"]).succeeds();
        assert_eq!(project.contents().await, used, "{at}");
        assert_eq!(left(project), "", "{at}");
        if !was_killed {
            break;
        }
        count += 1;
    }
    assert!(count >= 2, "{count}");
}

/// The act waits to be killed; there is nothing to wait for any more; it has been waited for long enough.
const REACHED: i32 = 43;
const GONE: i32 = 44;
const LATE: i32 = 45;

/// Waits in the container until the program at which an act stops has been called, or is not to be called any more:
/// a call of the daemon for each look would take the processor from what is watched. One of the above; anything else
/// where the container has ended.
fn reached(observer: &Project) -> Option<i32> {
    let look = format!(
        "for look in $(seq 4000); do \
           [ -e /seedbed/.turn ] || {{ rm /seedbed/.reached || exit {GONE}; exit {REACHED}; }}; sleep 0.03; \
         done; exit {LATE}"
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &in_container(observer, &look)]).stdout(Stdio::null()).stderr(Stdio::null());
    shell.status().expect("there is a shell").code()
}

/// Runs the program; an act of it that works in a container of its own dies with that at the program `turn`. Whether it
/// came to that.
fn cut_off(
    of: &Project,
    args: &[&str],
    turn: usize,
    observer: &Project,
    pool: &str,
) -> (Run, bool) {
    arm(observer, turn);
    let mut command = of.sandbox.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program was built for this suite");
    let id = child.id();
    let deadline = Instant::now() + Duration::from_secs(120);
    let (output, was_cut_off) = std::thread::scope(|scope| {
        let (ended, end) = channel();
        let runs = scope.spawn(move || {
            let output = child.wait_with_output().expect("our own child");
            // With that the look ends.
            let was_cut_off = was_killed(observer);
            let _ = ended.send(());
            (output, was_cut_off)
        });
        while !runs.is_finished() && Instant::now() < deadline {
            match reached(observer) {
                Some(REACHED) => {
                    shell(&format!("docker kill $(docker ps -q --filter name={pool}-act-)"));
                    break;
                }
                Some(GONE | LATE) => break,
                // The container is another one now.
                _ => drop(end.recv_timeout(Duration::from_millis(100))),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !runs.is_finished() && end.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            shell(&format!("kill -9 {id} || true"));
        }
        runs.join().expect("what it runs has failed")
    });
    let run = of.sandbox.ended(args, output);
    let at = format!("program {turn} of {args:?}: {:?}", run.code);
    harness::say(&format!("cut off at {at}"));
    if run.code != Some(0) {
        assert!(was_cut_off, "{at}: {}", run.stderr);
        // Whoever asked for it is told.
        assert!(run.stderr.contains("error: "), "{at}: {}", run.stderr);
        assert!(!run.stderr.contains(": \n"), "{at}: {}", run.stderr);
    }
    (run, was_cut_off)
}

/// A branch begins as a clone, and goes.
#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_with_its_container_an_act_of_a_branch_leaves_nothing() {
    let Some((mut project, pool)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_ENGINE_IMAGE", image());
    let Contents { clean, used } = ready(&project).await;
    let (up, delete) = (["up", "--branch", "other"], ["branch", "delete", "other", "--yes"]);
    let mut counts = [0; 2];
    for turn in few_turns() {
        let (_, begins) = cut_off(&project, &up, turn, &project, &pool);
        let again = project.run(&up).succeeds();
        assert!(!again.stderr.contains("restore tables"), "{turn}: {}", again.stderr);
        assert_eq!(contents(&on_branch(&project, "other")).await, clean, "{turn}");
        // What was replaced goes with the next act, where the removal was cut off.
        project.run(&["reset", "--branch", "other"]).succeeds();
        assert_eq!(contents(&on_branch(&project, "other")).await, clean, "{turn}");
        assert_eq!(left(&project), "", "{turn}");

        let (run, goes) = cut_off(&project, &delete, turn, &project, &pool);
        if run.code != Some(0) {
            project.run(&delete).succeeds();
        }
        assert_eq!(inside(&project, "ls -d /seedbed/envs/*/ | wc -l"), "1", "{turn}");
        if !begins && !goes {
            break;
        }
        counts[0] += u32::from(begins);
        counts[1] += u32::from(goes);
    }
    assert!(counts[0] >= 2 && counts[1] >= 1, "{counts:?}");
    assert_eq!(project.contents().await, used);
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

/// Data moves into the pool: that of a branch which has a volume of its own, to be kept as a point.
#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_with_its_container_data_that_moves_into_the_pool_is_whole() {
    let Some((mut project, pool)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_ENGINE_IMAGE", image());
    ready(&project).await;
    let save = ["branch", "save", "point", "--branch", "other"];
    let mut count = 0;
    for turn in few_turns() {
        project.sandbox.set("SEEDBED_IMAGES_KIND", "template");
        project.run(&["up", "--branch", "other"]).succeeds();
        project.sandbox.set("SEEDBED_IMAGES_KIND", "auto");
        let data = on_branch(&project, "other");
        let change = format!("update shop.item set cents = {}", turn + 1);
        crate::harness::postgres::run_sql(&data, &change).await;
        let used = contents(&data).await;
        let (run, was_cut_off) = cut_off(&project, &save, turn, &project, &pool);
        project.run(&["up", "--branch", "other"]).succeeds();
        assert_eq!(contents(&on_branch(&project, "other")).await, used, "{turn}");
        if run.code != Some(0) {
            // Killed at the very end it is there already.
            project.run(&[&save[..], &["--replace"]].concat()).succeeds();
        }
        assert_eq!(left(&project), "", "{turn}");
        project.run(&["reset", "--branch", "other"]).succeeds();
        project.run(&["branch", "restore", "point", "--branch", "other"]).succeeds();
        assert_eq!(contents(&on_branch(&project, "other")).await, used, "{turn}");
        project.run(&["branch", "delete", "other", "--yes"]).succeeds();
        assert_eq!(inside(&project, "ls -d /seedbed/envs/*/ | wc -l"), "1", "{turn}");
        if !was_cut_off {
            break;
        }
        count += 1;
    }
    assert!(count >= 2, "{count}");
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

/// A newcomer takes a published image, beside somebody else who is in the pool.
#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_with_its_container_an_image_that_is_fetched_is_whole_or_not_there() {
    let Some((mut observer, pool)) = in_docker().await else { return };
    observer.sandbox.set("SEEDBED_ENGINE_IMAGE", image());
    observer.run(&["snapshot", "image", "latest"]).succeeds();
    // One without rows, so that the image of those is not here.
    observer.run(&["up", "--seed", "none"]).succeeds();
    let mut project = newcomer(&observer, "kind = \"docker\"\n", "always");
    project.sandbox.set("SEEDBED_ENGINE_IMAGE", image());
    project.sandbox.set("SEEDBED_IMAGES_POOL", &pool);
    let mut clean = None;
    let mut count = 0;
    for turn in few_turns() {
        let (run, was_cut_off) = cut_off(&project, &["up"], turn, &observer, &pool);
        if run.stderr.contains("restore tables") {
            // Which way it took, and why.
            assert!(run.stderr.contains("it ended with status 137"), "{turn}: {}", run.stderr);
        }
        let up = project.run(&["up"]).succeeds();
        assert!(!up.stderr.contains("restore tables"), "{turn}: {}", up.stderr);
        let found = project.contents().await;
        assert_eq!(&found, clean.get_or_insert_with(|| found.clone()), "{turn}");
        assert_eq!(left(&observer), "", "{turn}");
        project.run(&["down", "--volumes", "--yes"]).succeeds();
        assert_eq!(inside(&observer, "ls -d /seedbed/envs/*/ | wc -l"), "1", "{turn}");
        if !was_cut_off {
            break;
        }
        count += 1;
    }
    assert!(count >= 2, "{count}");
    took(&project.run(&["up"]).succeeds());
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    observer.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}
