//! `ci`: what it proves, what it says where that fails, and what it leaves behind.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Project, elsewhere};
use crate::harness::Run;

async fn project() -> Project {
    Project::external(elsewhere()).with_snapshot().await
}

fn report(project: &Project, run: &Run) -> (String, String) {
    let both = (project.sandbox.read("out/ci.xml"), project.sandbox.read("out/ci.md"));
    assert!(!run.stderr.contains("swap in"), "{}", run.stderr);
    both
}

const REPORTS: [&str; 5] = ["ci", "--junit", "out/ci.xml", "--markdown", "out/ci.md"];

#[tokio::test]
async fn ci_proves_the_pending_scripts_on_the_newest_snapshot_and_leaves_nothing() {
    let project = project().await;
    let run = project.run(&REPORTS).succeeds();
    let shown: Vec<&str> =
        run.stdout.lines().map(|line| line.split(" (").next().unwrap_or_default()).collect();
    assert_eq!(
        shown[..6],
        [
            "ok    V2__purchases.sql: migrated",
            "ok    R__totals.sql: migrated",
            "ok    pending migrations run: 2 scripts",
            "ok    second migrate is a no-op: nothing ran",
            "ok    history matches the files: every script",
            "ok    grants hold: effective privileges are what the files say",
        ],
        "{}",
        run.stdout
    );
    assert!(shown[6].starts_with("data: snapshot "), "{}", run.stdout);
    // Each script is told once, although the grants are compared on a second database.
    assert_eq!(run.stderr.matches("migrate `V2__purchases.sql`").count(), 1, "{}", run.stderr);
    assert!(!run.stderr.contains("migrate `V1__shop.sql`"), "{}", run.stderr);
    let (junit, markdown) = report(&project, &run);
    assert!(junit.contains("tests=\"6\"") && junit.contains("failures=\"0\""), "{junit}");
    assert!(markdown.starts_with("## seedbed ci\n\ndata: snapshot "), "{markdown}");
    assert_eq!(markdown.matches('✅').count(), 6, "{markdown}");
    assert_eq!(project.databases().await, [""; 0]);
}

#[tokio::test]
async fn ci_ends_with_6_at_a_broken_migration_and_the_reports_say_where() {
    let project = project().await;
    // Right on an empty database, wrong on the data that production has.
    project.sandbox.write(
        "sql/V3__strict.sql",
        "alter table shop.customer add column email text;\nalter table shop.customer alter column email set not null;\n",
    );
    let run = project.run(&REPORTS).exits(6);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.contains("sql/V3__strict.sql`, line 2"), "{}", run.stderr);
    assert!(run.stderr.contains("contains null values"), "{}", run.stderr);
    let (junit, markdown) = report(&project, &run);
    assert!(junit.contains("tests=\"1\"") && junit.contains("failures=\"1\""), "{junit}");
    assert!(junit.contains("V3__strict.sql"), "{junit}");
    assert!(markdown.contains("❌ | pending migrations run |"), "{markdown}");
    assert!(markdown.contains("V3__strict.sql"), "{markdown}");
    assert_eq!(project.databases().await, [""; 0]);

    project.run(&["ci", "--empty"]).succeeds();
    let json = project.run(&["ci", "--json"]).exits(6).json();
    assert_eq!(json["error"]["kind"], "script");
}

#[tokio::test]
async fn ci_ends_with_13_when_a_check_does_not_hold() {
    let project = project().await;
    // Its text is another one each time, so it runs each time.
    project.sandbox.write(
        "sql/R__totals.sql",
        "comment on schema shop is 'migrated at ${flyway:timestamp}';\ndo $$ begin perform pg_sleep(1.1); end $$;",
    );
    let run = project.run(&REPORTS).exits(13);
    assert!(
        run.stdout.contains("FAIL  second migrate is a no-op: ran again: R__totals.sql"),
        "{}",
        run.stdout
    );
    let (junit, markdown) = report(&project, &run);
    // What ran a second time is no longer what the files said when it ran.
    assert!(junit.contains("failures=\"2\""), "{junit}");
    assert_eq!(
        (markdown.matches('✅').count(), markdown.matches('❌').count()),
        (4, 2),
        "{markdown}"
    );
    assert_eq!(project.databases().await, [""; 0]);
    // The team's tests do not run on what is wrong already.
    let run = project.run(&["ci", "--", "touch", "ran"]).exits(13);
    assert!(!project.sandbox.project().join("ran").exists(), "{}", run.stdout);
}

#[tokio::test]
async fn ci_runs_a_command_on_the_database_and_passes_its_exit_code_on() {
    let project = project().await;
    let script = "test \"$DATABASE_URL\" = \"postgresql://$PGUSER:owner%20word@$PGHOST:$PGPORT/$PGDATABASE\" || exit 3
test \"$PGPASSWORD\" = 'owner word' || exit 4
psql -AtqX -c 'select count(*) from shop.purchase' && exit 7";
    let psql = crate::harness::server().bin_dir.join("psql");
    let script = script.replace("psql", &psql.to_string_lossy());
    project.sandbox.write("check.sh", &script);
    let run = project.run(&["ci", "--", "sh", "check.sh"]).exits(7);
    assert!(run.stdout.starts_with("10\n"), "{}", run.stdout);
    assert!(run.stdout.contains("FAIL  `sh check.sh`: exit code 7"), "{}", run.stdout);
    assert_eq!(project.databases().await, [""; 0]);

    project.sandbox.write("check.sh", script.replace("exit 7", "exit 0"));
    let json = project.run(&["ci", "--json", "--", "sh", "check.sh"]).succeeds();
    assert_eq!(json.json()["command_exit"], 0);
    assert!(json.stderr.contains("10\n"), "{}", json.stderr);

    let run = project.run(&["ci", "--", "no-such-program"]).exits(2);
    assert!(run.stderr.contains("run `no-such-program`: "), "{}", run.stderr);
    assert_eq!(project.databases().await, [""; 0]);
}

#[tokio::test]
async fn an_interrupt_ends_the_command_with_everything_that_it_has_started() {
    let project = project().await;
    let script = "trap 'echo told; exit 1' TERM; sleep 300 & echo ready $!; wait";
    let mut command = project.sandbox.command(&["ci", "--", "sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut ci = command.spawn().expect("the built program is there");
    let mut lines = BufReader::new(ci.stdout.take().expect("piped")).lines();
    let ready = lines.next().expect("the command runs").expect("text");
    let started = ready.strip_prefix("ready ").expect(&ready).to_owned();
    let pid = i32::try_from(ci.id()).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("our own child");
    assert_eq!(lines.next().expect("it is asked first").expect("text"), "told");
    assert_eq!(ci.wait().expect("our own child").code(), Some(130));
    // One that has ended and that nobody has asked for yet is a zombie.
    let stat = std::fs::read_to_string(format!("/proc/{started}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    assert_eq!(project.databases().await, [""; 0]);
}

#[tokio::test]
async fn ci_keeps_its_database_when_asked_and_leaves_the_live_one_alone() {
    let project = project().await;
    project.run(&["up"]).succeeds();
    project.sql("update shop.item set label = 'mine'").await;
    let live = project.contents().await;
    let json = project.run(&["ci", "--keep", "--json"]).succeeds().json();
    let url = json["kept_url"].as_str().expect("it was kept");
    let name = json["database"].as_str().expect("it has a name");
    assert!(url.ends_with(name), "{url}");
    assert!(!url.contains("word"), "{url}");
    let kept = project.admin().with_database(name);
    let count = crate::harness::postgres::query_text(&kept, "select count(*) from shop.purchase");
    assert_eq!(count.await, "10");
    // What was kept stays until somebody drops it.
    project.run(&["ci"]).succeeds();
    project.run(&["reset"]).succeeds();
    project.run(&["up"]).succeeds();
    assert_eq!(project.databases().await, ["live", "scratch", "template"]);
    assert_ne!(project.contents().await, live);
}

#[tokio::test]
async fn ci_without_a_fitting_snapshot_fails_unless_it_is_told_to_go_without() {
    let project = Project::external(elsewhere());
    let run = project.run(&["ci", "--junit", "junit.xml"]).exits(8);
    assert!(run.stderr.contains("no snapshot fits this checkout: there is none"), "{}", run.stderr);
    assert!(
        run.stderr.contains("prove the scripts without data: `seedbed ci --empty`"),
        "{}",
        run.stderr
    );
    assert!(project.sandbox.read("junit.xml").contains("no snapshot fits"));
    assert_eq!(project.databases().await, [""; 0]);
    for told in [&["ci", "--empty"] as &[&str], &["ci", "--seed", "none"]] {
        let run = project.run(told).succeeds();
        let facts = "data: none: it began empty; schema version 2";
        assert!(run.stdout.contains(facts), "{}", run.stdout);
    }
    project.run(&["ci", "--seed", "files"]).succeeds();
    assert_eq!(project.databases().await, [""; 0]);
}
