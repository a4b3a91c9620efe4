//! kill -9 of what works inside a container (`act.sh`), at the programs that it starts: whoever asked for it is told,
//! the environment is the old or the new one, and the next runs leave nothing behind.

use std::sync::OnceLock;

use super::Project;
use super::image_kills::{Contents, of_pool, ready};
use super::images::{in_docker, shell, use_it};
use crate::harness::{self, unique, watchdog};

/// Kills the act that has called it when it is its turn, else is what it is called.
const PROGRAM: &str = "#!/bin/sh
turn=/seedbed/.turn
if [ -e $turn ] && grep -aq 'Acts on the data directories' /proc/$PPID/cmdline; then
  left=$(($(cat $turn) - 1))
  if [ $left -gt 0 ]; then
    echo $left >$turn
  else
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
        let name = format!("{}:17", unique("seedbed-test-killer"));
        watchdog::at_exit(&format!("docker rmi -f {name}"));
        let folder = tempfile::tempdir().expect("the temporary folder can be written to");
        for program in ["cp", "mv", "ln", "rm", "touch", "mkdir", "readlink"] {
            fs_err::write(folder.path().join(program), PROGRAM).expect("it is ours");
        }
        let folder = folder.path().display();
        shell(&format!(
            "chmod 755 {folder}/* && id=$(docker create postgres:17) && docker cp {folder}/. $id:/usr/local/bin/ && \
             docker commit $id {name} && docker rm -v $id"
        ));
        name
    })
}

/// In the container of the environment, whose server runs.
fn inside(project: &Project, command: &str) -> String {
    let path = project.sandbox.project();
    // The oldest one: that of a branch was made later.
    let container = format!("docker ps -q --filter label=seedbed.path={path} | tail -n 1");
    shell(&format!("docker exec $({container}) sh -c '{command}'"))
}

/// Numbers of the programs to be killed at.
fn turns() -> impl Iterator<Item = usize> {
    (1..).step_by(if harness::full() { 1 } else { 6 })
}

/// Halves of images, of points and of clones, links on their way, and data that nothing names.
fn left(project: &Project) -> String {
    inside(
        project,
        "ls -d /seedbed/images/.*.* /seedbed/envs/*/images/.*.* /seedbed/images/*/*.part /seedbed/envs/*/*.part \
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
    for Act { args, before, after } in acts {
        let mut count = 0;
        for turn in turns() {
            // Used, and where that is what comes back, replaced.
            project.run(&["branch", "restore", "point"]).succeeds();
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
    freezes(&project, &used).await;
    goes(&project).await;
    assert_eq!(project.contents().await, used);
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

/// What is live is frozen: as a point, which is then the old or the new one, and as an image.
async fn freezes(project: &Project, used: &str) {
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
        arm(project, turn);
        let run = project.run(&["reset"]);
        let was_killed = was_killed(project);
        let at = format!("program {turn} of a freeze: {:?}", run.code);
        harness::say(&format!("killed at {at}"));
        project.run(&["up"]).succeeds();
        assert_eq!(project.text("select count(*) from shop.purchase").await, "10", "{at}");
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

/// A branch goes. Its act is the first process of its container, which nothing inside can kill: there the program
/// fails that it has called.
async fn goes(project: &Project) {
    let mut count = 0;
    for turn in 1.. {
        project.run(&["up", "--branch", "other"]).succeeds();
        arm(project, turn);
        let run = project.run(&["branch", "delete", "other", "--yes"]);
        let was_cut_off = was_killed(project);
        let at = format!("program {turn} of a deletion: {:?}", run.code);
        harness::say(&format!("cut off at {at}"));
        if run.code != Some(0) {
            project.run(&["branch", "delete", "other", "--yes"]).succeeds();
        }
        assert_eq!(inside(project, "ls -d /seedbed/envs/*/ | wc -l"), "1", "{at}");
        if !was_cut_off {
            break;
        }
        count += 1;
    }
    assert!(count >= 1, "nothing was cut off");
}
