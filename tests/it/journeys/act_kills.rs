//! kill -9 of what works inside a container (`act.sh`), at the programs that it starts: whoever asked for it is told,
//! the environment is the old or the new one, and the next run leaves nothing behind.

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
             docker commit $id {name} && docker rm $id"
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
    (1..).step_by(if harness::full() { 1 } else { 4 })
}

/// Halves of clones, and data that nothing names.
fn left(project: &Project) -> String {
    inside(
        project,
        "ls -d /seedbed/images/.*.* /seedbed/images/*/*.part /seedbed/envs/*/*.part 2>/dev/null | grep -vx \"/seedbed/images/[.][.]\"; \
         for env in /seedbed/envs/*/; do ls -d $env/g-* | wc -l; done | grep -vx \"[12]\" || true",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_inside_an_act_the_old_or_the_new_database_is_served() {
    let Some((mut project, pool)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_ENGINE_IMAGE", image());
    let Contents { clean, used } = ready(&project).await;
    project.run(&["branch", "save", "point"]).succeeds();
    let acts: [&[&str]; 5] = [
        &["reset", "--keep"],
        &["undo-reset"],
        &["branch", "save", "point", "--replace"],
        &["branch", "restore", "point"],
        // Frozen as another image.
        &["reset"],
    ];
    for args in acts {
        let is_freeze = args == ["reset"];
        let mut count = 0;
        for turn in turns() {
            let note = project.sandbox.project().join("sql/V3__notes.sql");
            if is_freeze {
                let script = format!("create table shop.note (body text default '{turn}');");
                fs_err::write(&note, script).expect("it is ours");
            }
            if args == ["undo-reset"] {
                project.run(&["reset", "--keep"]).succeeds();
                use_it(&project).await;
            }
            inside(&project, &format!("echo {turn} >/seedbed/.turn"));
            let run = project.run(args);
            let was_killed =
                inside(&project, "rm /seedbed/.turn 2>/dev/null || echo killed") == "killed";
            let at = format!("program {turn} of {args:?}: {:?}", run.code);
            harness::say(&format!("killed at {at}"));
            project.run(&["up"]).succeeds();
            let rows = project.text("select count(*) from shop.purchase").await;
            if is_freeze {
                assert_eq!(rows, "10", "{at}: {}", run.stderr);
                fs_err::remove_file(&note).expect("is there");
            } else {
                let found = project.contents().await;
                assert!(found == clean || found == used, "{at}: {found}");
                let is_replaced = found == clean || args != ["reset", "--keep"];
                assert!(run.code != Some(0) || is_replaced, "{at}: {}", run.stderr);
            }
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

    for turn in turns() {
        project.run(&["up", "--branch", "other"]).succeeds();
        inside(&project, &format!("echo {turn} >/seedbed/.turn"));
        let run = project.run(&["branch", "delete", "other", "--yes"]);
        let was_killed =
            inside(&project, "rm /seedbed/.turn 2>/dev/null || echo killed") == "killed";
        let at = format!("program {turn} of a deletion: {:?}", run.code);
        harness::say(&format!("killed at {at}"));
        if run.code != Some(0) {
            project.run(&["branch", "delete", "other", "--yes"]).succeeds();
        }
        assert_eq!(inside(&project, "ls -d /seedbed/envs/*/ | wc -l"), "1", "{at}");
        if !was_killed {
            break;
        }
    }
    assert_eq!(project.contents().await, used);
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}
