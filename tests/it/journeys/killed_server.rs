//! F33: the server dies under a run: the run says so, the next one starts it again, and the database that
//! people use is as it was.

use std::time::{Duration, Instant};

use seedbed::pg::Session;

use super::images::shell;
use super::{ITEMS, Production, Project, docker_is_here, until};
use crate::harness::Run;
use crate::harness::postgres::run_sql;

const SLEEPS: &str = "select count(*) > 0 from pg_stat_activity where wait_event = 'PgSleep'";

async fn dies_while_a_database_is_built(project: &Project, kill: &str) -> Run {
    project.run(&["up"]).succeeds();
    project.sql("update shop.item set label = 'used'").await;
    project.sandbox.write("sql/V3__later.sql", "create table shop.later (); select pg_sleep(120);");
    let mut command = project.sandbox.command(&["reset"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().expect("the program was built for this suite");
    until(&project.admin(), SLEEPS, "t").await;
    shell(kill);
    let output = child.wait_with_output().expect("our own child");
    let run = project.sandbox.ended(&["reset"], output).exits(6);
    assert!(run.stderr.contains("V3__later.sql"), "{}", run.stderr);

    project.sandbox.write("sql/V3__later.sql", "create table shop.later ();");
    project.run(&["up"]).succeeds();
    let used = format!("select count(*) = {ITEMS} from shop.item where label = 'used'");
    assert_eq!(project.text(&used).await, "t", "the database is the one that was used");
    assert_eq!(project.databases().await, ["live", "template"], "nothing half built is left");
    project.run(&["reset"]).succeeds();
    assert_eq!(project.text(&used).await, "f");
    run_sql(&project.live(), "select from shop.later").await;
    run
}

/// What is in the way of one row while rows are loaded, told by `shop.slow`: two minutes, or 800 MB.
async fn with_a_slow_row(project: Project, told: &str) -> Project {
    let store = project.sandbox.project().join("seed/snapshots");
    let production = Production::new(&format!("[store]\nurl = \"{store}\"\n")).await;
    let check = "create function shop.slow(cents int) returns boolean language plpgsql as $$
        begin
          if cents = 2500 and current_setting('shop.slow', true) = 'sleep' then
            perform pg_sleep(120);
          elsif cents = 2500 and current_setting('shop.slow', true) = 'hungry' then
            perform length(string_agg(repeat('x', 100000000), '')) from generate_series(1, 8);
          end if;
          return true;
        end $$;
        alter table shop.item add constraint slow check (shop.slow(cents))";
    production.sql(check).await;
    production.run(&["snapshot", "create"]).succeeds();
    production.drop_database().await;
    project.run(&["up"]).succeeds();
    project.sql("update shop.item set label = 'used'; checkpoint").await;
    // Its repeatable script has run: the rows are loaded again.
    project.sandbox.write("sql/V3__later.sql", "create table shop.later ();");
    let tell = format!("alter role postgres set shop.slow = '{told}'; checkpoint");
    run_sql(&project.admin(), &tell).await;
    project
}

/// The server died under a reset: the run has said so, the next ones get on.
async fn gets_on(project: &Project, run: &Run) {
    assert!(matches!(run.code, Some(4 | 5)), "{:?}: {}", run.code, run.stderr);
    project.run(&["up"]).succeeds();
    let used = format!("select count(*) = {ITEMS} from shop.item where label = 'used'");
    assert_eq!(project.text(&used).await, "t", "the database is the one that was used");
    assert_eq!(project.databases().await, ["live", "template"], "nothing half built is left");
    run_sql(&project.admin(), "alter role postgres reset shop.slow").await;
    project.run(&["reset"]).succeeds();
    assert_eq!(project.text(&used).await, "f");
}

async fn dies_while_rows_are_loaded(project: Project, kill: &str) {
    let project = with_a_slow_row(project, "sleep").await;
    let mut command = project.sandbox.command(&["reset"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().expect("the program was built for this suite");
    let loads =
        "select count(*) > 0 from pg_stat_progress_copy p join pg_stat_activity a using (pid)
                 where a.wait_event = 'PgSleep' and p.command = 'COPY FROM'";
    until(&project.admin(), loads, "t").await;
    shell(kill);
    let output = child.wait_with_output().expect("our own child");
    gets_on(&project, &project.sandbox.ended(&["reset"], output)).await;
}

fn in_a_container() -> Option<(Project, String)> {
    if !docker_is_here() {
        return None;
    }
    let project = Project::on_its_own("kind = \"docker\"\n");
    let of_project = format!("--filter label=seedbed.path={}", project.sandbox.project());
    Some((project, format!("docker kill $(docker ps -q {of_project})")))
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_a_container_that_is_killed_under_a_reset_is_started_again() {
    let Some((project, kill)) = in_a_container() else { return };
    let run = dies_while_a_database_is_built(&project.with_snapshot().await, &kill).await;
    assert!(run.stderr.contains("has ended with code 137 (killed, as"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_a_container_that_is_killed_while_rows_are_loaded_is_started_again() {
    let Some((project, kill)) = in_a_container() else { return };
    dies_while_rows_are_loaded(project, &kill).await;
}

/// The kernel ends the session that loads rows, and the server starts itself again.
#[tokio::test(flavor = "multi_thread")]
async fn f33_a_container_that_is_out_of_memory_while_rows_are_loaded_leaves_the_old_database() {
    let Some((project, _)) = in_a_container() else { return };
    let project = with_a_slow_row(project, "hungry").await;
    let of_project = format!("label=seedbed.path={}", project.sandbox.project());
    let limit = |memory: &str| {
        let id = format!("$(docker ps -q --filter {of_project})");
        shell(&format!("docker update --memory {memory} --memory-swap {memory} {id}"));
    };
    limit("512m");
    let run = project.run(&["reset"]);
    let said = shell(&format!("docker logs $(docker ps -q --filter {of_project}) 2>&1"));
    assert!(said.contains("was terminated by signal 9"), "{said}");
    assert!(
        run.stderr.contains("was terminated by signal 9: Killed (killed, as"),
        "{}",
        run.stderr
    );
    limit("16g");
    gets_on(&project, &run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_a_local_server_that_is_killed_under_a_reset_is_started_again() {
    let project = Project::native().with_snapshot().await;
    let data = format!("{}/.seedbed/native/data", project.sandbox.project());
    dies_while_a_database_is_built(
        &project,
        &format!("kill -9 $(head -n 1 {data}/postmaster.pid)"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_that_lets_nobody_in_is_left_alone() {
    let project = Project::native().with_snapshot().await;
    project.run(&["up"]).succeeds();
    let session = Session::connect(&project.live()).await.expect("it runs");
    let data = format!("{}/.seedbed/native/data", project.sandbox.project());
    let rules = std::fs::read(format!("{data}/pg_hba.conf")).expect("it is ours");
    let reload = async |lets_in: bool| {
        shell(&format!("kill -HUP $(head -n 1 {data}/postmaster.pid)"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while Session::connect(&project.live()).await.is_ok() != lets_in {
            assert!(Instant::now() < deadline, "it does not read its rules");
            shell("sleep 0.05");
        }
    };
    std::fs::write(format!("{data}/pg_hba.conf"), "host all nobody 127.0.0.1/32 scram-sha-256\n")
        .expect("it is ours");
    reload(false).await;
    let up = project.run(&["up"]).exits(4);
    assert!(up.stderr.contains("pg_hba.conf"), "{}", up.stderr);
    session.batch("select 1").await.expect("nobody has ended it");
    std::fs::write(format!("{data}/pg_hba.conf"), rules).expect("it is ours");
    reload(true).await;
    project.run(&["up"]).succeeds();
    session.batch("select 1").await.expect("nobody has ended it");
}
