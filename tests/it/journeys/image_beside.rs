//! A reset of another checkout goes on from an image: on a second server beside the live one.

use std::time::{Duration, Instant};

use super::Project;
use super::image_kills::{kill, of_pool};
use super::images::{in_docker, native_with_reflinks, shell, use_it};
use crate::harness;

const GOES_ON: &str = "1 script to go";

/// Nobody goes on from behind a repeatable script.
fn without_repeatables(project: &Project) {
    let view = project.sandbox.project().join("sql/R__totals.sql");
    fs_err::remove_file(view).expect("is there");
}

/// What the daemon and the project's folder hold of a second server.
fn left(project: &Project) -> String {
    let folder = project.sandbox.project();
    let mut left = shell(&format!("ls -A {folder}/.seedbed/branches 2>/dev/null || true"));
    if super::docker_is_here() {
        left += &shell(&format!(
            "docker ps -a --format '{{{{.Names}}}}' --filter label=seedbed.path={folder} | grep beside || true; \
             docker volume ls -q --filter label=seedbed.path={folder} | grep beside || true"
        ));
    }
    left
}

async fn goes_on(project: &Project) {
    without_repeatables(project);
    project.run(&["up"]).succeeds();
    use_it(project).await;
    let used = project.contents().await;
    let url = project.run(&["url"]).succeeds().stdout;

    // A script that fails costs nothing that is live.
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text); select 1 / 0;");
    let reset = project.run(&["reset"]).exits(6);
    assert!(reset.stderr.contains(GOES_ON), "{}", reset.stderr);
    assert!(reset.stderr.contains("V3__notes.sql"), "{}", reset.stderr);
    assert_eq!(project.contents().await, used);
    assert_eq!(left(project), "");

    let notes = "create table shop.note (body text); insert into shop.note values ('first');";
    project.sandbox.write("sql/V3__notes.sql", notes);
    let reset = project.run(&["reset", "--keep"]).succeeds();
    assert!(reset.stderr.contains(GOES_ON), "{}", reset.stderr);
    assert!(!reset.stderr.contains("restore tables"), "{}", reset.stderr);
    assert!(reset.stdout.contains("migrated  V3__notes.sql ("), "{}", reset.stdout);
    assert_eq!(project.run(&["url"]).succeeds().stdout, url);
    assert_eq!(project.text("select body from shop.note").await, "first");
    assert_eq!(left(project), "");
    project.run(&["validate"]).succeeds();
    project.run(&["users", "check"]).succeeds();
    let contents = project.contents().await;
    project.run(&["undo-reset"]).succeeds();
    assert_eq!(project.contents().await, used);

    // To and fro: each has its image now.
    let reset = project.run(&["reset"]).succeeds();
    assert!(!reset.stderr.contains(GOES_ON), "{}", reset.stderr);
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(project.contents().await, contents);
    // What a build gives.
    use_it(project).await;
    let built = project.run(&["reset", "--set", "images.kind=template"]).succeeds();
    assert!(built.stderr.contains("restore tables"), "{}", built.stderr);
    assert_eq!(project.contents().await, contents);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_goes_on_from_an_image_beside_the_live_database() {
    let Some((project, pool)) = in_docker().await else { return };
    goes_on(&project).await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn native_goes_on_from_an_image_beside_the_live_database() {
    let Some(project) = native_with_reflinks().await else { return };
    goes_on(&project).await;
    // A run that is killed while its second server runs.
    use_it(&project).await;
    let used = project.contents().await;
    project.sandbox.write("sql/V4__slow.sql", "select pg_sleep(60);");
    let mut child = project.sandbox.command(&["reset"]).spawn().expect("it was built");
    let state = project.sandbox.project().join(".seedbed/branches/.beside-/state.json");
    let sleeps = || {
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).ok()?).ok()?;
        let data = state["native"]["data"].as_str()?;
        let pid = std::fs::read_to_string(format!("{data}/postmaster.pid")).ok()?;
        let children = shell(&format!("pgrep -a -P {} || true", pid.lines().next()?));
        // As the server shows itself: `postgres: shop_owner shop… 127.0.0.1(4711) SELECT`.
        let scripts = |line: &str| line.contains(&project.owner) && line.contains(") SELECT");
        children.lines().any(scripts).then_some(())
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while sleeps().is_none() {
        assert!(child.try_wait().expect("our own child").is_none(), "it has ended");
        assert!(Instant::now() < deadline, "no script runs on a second server");
        shell("sleep 0.02");
    }
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    fs_err::remove_file(project.sandbox.project().join("sql/V4__slow.sql")).expect("is there");
    assert_ne!(left(&project), "");
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("left over from a run that was cut off"), "{}", up.stderr);
    assert_eq!(left(&project), "");
    assert_eq!(project.contents().await, used);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_at_any_call_of_a_reset_that_goes_on_serves_the_old_or_the_new_database() {
    let Some((project, pool)) = in_docker().await else { return };
    without_repeatables(&project);
    project.run(&["up"]).succeeds();
    use_it(&project).await;
    let state = "select count(*) from shop.purchase";
    project.run(&["reset"]).succeeds();
    let clean = project.text(state).await;
    // Some hundred calls, half a minute each.
    for stop in (1..).step_by(harness::stride(24, 9)) {
        use_it(&project).await;
        // One more each time, so that no image is exactly this checkout's.
        let path = format!("sql/V{}__notes.sql", stop + 2);
        project.sandbox.write(&path, format!("create table shop.note_{stop} (body text);"));
        let killed = kill(&project, &["reset"], stop);
        let at = format!("call {stop}: {:?}", killed.as_ref().and_then(|seen| seen.last()));
        harness::say(&format!("killed at {at}"));
        project.run(&["up"]).succeeds();
        let rows = project.text(state).await;
        assert!(rows == clean || (killed.is_some() && rows == "0"), "killed at {at}: {rows}");
        assert_eq!(left(&project), "", "killed at {at}");
        let reset = project.run(&["reset"]).succeeds();
        assert!(!reset.stderr.contains("restore tables"), "killed at {at}: {}", reset.stderr);
        assert_eq!(project.text(state).await, clean, "killed at {at}");
        let note = format!("select count(*) from shop.note_{stop}");
        assert_eq!(project.text(&note).await, "0", "killed at {at}");
        assert_eq!(left(&project), "", "killed at {at}");
        if killed.is_none() {
            break;
        }
    }
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}
