//! Builds that go on from the nearest frozen one.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seedbed::pg::Session;

use super::images::native_with_reflinks;
use super::{Project, elsewhere};

/// All but the history, in which repeatable scripts stand where they ran.
pub fn rows(contents: &str) -> String {
    contents.lines().skip(1).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_reset_goes_on_from_a_template_that_went_the_same_way() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    project.run(&["up"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    project.sql("delete from shop.purchase").await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("from the template of "), "{}", reset.stderr);
    assert!(reset.stderr.contains("schema version 2: 1 script to go"), "{}", reset.stderr);
    assert!(!reset.stderr.contains("load "), "{}", reset.stderr);
    assert!(reset.stdout.contains("migrated  V3__notes.sql ("), "{}", reset.stdout);
    assert_eq!(project.databases().await, ["live", "template"]);
    project.run(&["users", "check"]).succeeds();
    let went_on = project.contents().await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    // A script that was applied and is another one now: from the beginning, with the same result.
    let script = "sql/V3__notes.sql";
    let text = project.sandbox.read(script);
    project.sandbox.write(script, format!("{text}-- changed\n"));
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("load "), "{}", reset.stderr);
    assert_eq!(rows(&project.contents().await), rows(&went_on));
    // Seed files follow the last script, so what they are in is no one's ancestor.
    project.sandbox.write("seed/rows.sql", "insert into shop.note values ('a row');");
    project.run(&["reset", "--seed", "files"]).succeeds();
    project.sandbox.write("sql/V4__more.sql", "create table shop.more ();");
    let reset = project.run(&["reset", "--seed", "files"]).succeeds();
    assert!(!reset.stderr.contains("to go"), "{}", reset.stderr);
    assert_eq!(project.text("select count(*) from shop.note").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_fails_on_a_clone_leaves_what_was_there() {
    let Some(project) = native_with_reflinks().await else { return };
    project.run(&["up"]).succeeds();
    project.sql("delete from shop.purchase").await;
    let mine = project.contents().await;
    let port = project.live().port;
    project.sandbox.write("sql/V3__broken.sql", "create table shop.note ();\nselect 1 +;\n");
    let run = project.run(&["reset"]).exits(6);
    assert!(run.stderr.contains("serve again what was there before"), "{}", run.stderr);
    assert!(run.stderr.contains("sql/V3__broken.sql`, line 2, column 11"), "{}", run.stderr);
    assert_eq!((project.contents().await, project.live().port), (mine.clone(), port));
    // What stands in the way of a script on the clone would not in a build: views come last there.
    project
        .sandbox
        .write("sql/R__totals.sql", "create or replace view shop.totals as select 1 as n;");
    project.sandbox.write("sql/V3__broken.sql", "alter table shop.customer drop column name;");
    let run = project.run(&["reset"]).succeeds();
    assert!(run.stderr.contains("building from the beginning"), "{}", run.stderr);
    assert_eq!(project.text("select n from shop.totals").await, "1");
    let run = project.run(&["undo-reset"]).exits(4);
    assert!(run.stderr.contains("none was kept"), "{}", run.stderr);
}

/// Starts a reset that stands still in its last script, and ends it by a signal.
async fn stopped_in_a_script(project: &Project, signal: Signal) -> crate::harness::Run {
    project.sandbox.write("sql/V3__slow.sql", "select pg_sleep(600);");
    let child = project.sandbox.command(&["reset"]).spawn().expect("it was built");
    let sleeping = "select 1 from pg_stat_activity where wait_event = 'PgSleep'";
    let deadline = Instant::now() + Duration::from_secs(60);
    // The server is another one from a certain moment on.
    while !is_there(project, sleeping).await {
        assert!(Instant::now() < deadline, "no script sleeps");
    }
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("it runs");
    let output = child.wait_with_output().expect("it was started");
    project.sandbox.write("sql/V3__slow.sql", "create table shop.slow ();");
    project.sandbox.ended(&["reset"], output)
}

async fn is_there(project: &Project, sql: &str) -> bool {
    let Ok(session) = Session::connect(&project.admin()).await else { return false };
    let found = session.query_opt(sql, &[]).await;
    session.close().await;
    matches!(found, Ok(Some(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_is_stopped_in_a_script_on_a_clone_leaves_the_old_database() {
    let Some(project) = native_with_reflinks().await else { return };
    project.run(&["up"]).succeeds();
    project.sql("delete from shop.purchase").await;
    let mine = project.contents().await;
    let run = stopped_in_a_script(&project, Signal::SIGINT).await.exits(130);
    assert!(run.stderr.contains("serve again what was there before"), "{}", run.stderr);
    assert_eq!(project.contents().await, mine);
    // Killed, it cannot do that itself: the next run does.
    let run = stopped_in_a_script(&project, Signal::SIGKILL).await;
    assert_eq!(run.code, None, "{}", run.stderr);
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("the last run was cut off"), "{}", up.stderr);
    assert!(up.stdout.contains("migrated  V3__slow.sql"), "{}", up.stdout);
    assert_eq!(project.text("select count(*) from shop.purchase").await, "0");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("1 script to go"), "{}", reset.stderr);
    assert_eq!(project.text("select count(*) from shop.purchase").await, "10");
}
