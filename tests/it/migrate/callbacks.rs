//! Callbacks: every event in Flyway's order, each in its transaction.

use serde_json::Value;

use super::site::{Site, made_by_us};

/// What callbacks and scripts say by `raise notice`, in order.
fn said(stderr: &str) -> (Vec<String>, Vec<String>) {
    let said = stderr.lines().filter_map(|line| Some(line.split_once("the server says: ")?.1));
    let texts: Vec<String> = said.map(str::to_owned).collect();
    texts.into_iter().partition(|text| text.starts_with("CB "))
}

#[tokio::test]
async fn every_event_fires_in_flyways_order() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../vectors/history.json")).expect("is JSON");
    let scenarios = vectors["scenarios"].as_array().expect("is a list");
    let trace = scenarios.iter().find(|one| one["id"] == "callbacks_trace").expect("is there");
    let site = Site::new(&[]).await;
    made_by_us(&site.database).await;
    for (number, step) in trace["steps"].as_array().expect("is a list").iter().enumerate() {
        for (name, text) in step["files"].as_object().into_iter().flatten() {
            site.sql(name, text.as_str().expect("is text"));
        }
        for name in step["remove"].as_array().into_iter().flatten() {
            site.remove(name.as_str().expect("is text"));
        }
        let mut args: Vec<&str> = step["flyway"]
            .as_array()
            .expect("is a list")
            .iter()
            .map(|arg| match arg.as_str().expect("is text") {
                "-cleanDisabled=false" => "--clean-disabled=false",
                verb => verb,
            })
            .collect();
        // The verb stands before its flags.
        args.reverse();
        let run = site.run(&[args.as_slice(), &["-v"]].concat());
        let (events, scripts) = said(&run.stderr);
        let flyways: Vec<&str> = step["stdout"]
            .as_array()
            .expect("is a list")
            .iter()
            .filter_map(|line| line.as_str()?.strip_prefix("DB: "))
            .collect();
        let (mut expected, expected_scripts): (Vec<&str>, Vec<&str>) =
            flyways.into_iter().partition(|text| text.starts_with("CB "));
        if number == 2 {
            // Flyway runs these two in the transaction that is broken already, where they fail
            // and hide the error; we run them after it was rolled back.
            let at = expected.iter().position(|text| *text == "CB afterMigrateError");
            let at = at.expect("fires");
            expected.insert(at, "CB afterEachMigrateStatementError");
            expected.insert(at + 1, "CB afterEachMigrateError");
        }
        assert_eq!(events, expected, "step {number}: {args:?}\n{}", run.stderr);
        assert_eq!(scripts, expected_scripts, "step {number}");
    }
}

#[tokio::test]
async fn the_callbacks_of_undo_fire_around_its_scripts() {
    let notice = |event: &str| format!("do $$ begin raise notice 'CB {event}'; end $$;\n");
    let site =
        Site::new(&[("V1__a.sql", "create table a (id int);"), ("U1__a.sql", "drop table a;")])
            .await;
    site.run(&["migrate"]).succeeds();
    let events = [
        "beforeUndo",
        "beforeEachUndo",
        "beforeEachUndoStatement",
        "afterEachUndoStatement",
        "afterEachUndo",
        "afterUndo",
    ];
    for event in events {
        site.sql(&format!("{event}.sql"), notice(event));
    }
    let run = site.run(&["-v", "undo"]).succeeds();
    assert_eq!(said(&run.stderr).0, events.map(|event| format!("CB {event}")));
}

#[tokio::test]
async fn an_error_callback_that_fails_does_not_hide_the_error() {
    let site = Site::new(&[
        ("V1__bad.sql", "select nope;\n"),
        ("afterEachMigrateError.sql", "select worse;\n"),
        ("afterMigrateError.sql", "create table told (id int);\n"),
    ])
    .await;
    let run = site.run(&["--quiet", "migrate"]).exits(6);
    assert!(run.stderr.contains("column \"nope\" does not exist"), "{}", run.stderr);
    assert!(
        run.stderr.contains(
            "warning: callback `afterEachMigrateError`: run `sql/afterEachMigrateError.sql`"
        ),
        "{}",
        run.stderr
    );
    assert!(site.has("told").await, "the next event still fires");
}

#[tokio::test]
async fn a_callback_belongs_to_the_transaction_of_its_script() {
    let site = Site::new(&[
        ("beforeMigrate.sql", "create table log (line text);\n"),
        ("afterEachMigrate.sql", "insert into log values ('after');\n"),
        ("V1__a.sql", "create table a (id int);\n"),
        ("V2__bad.sql", "insert into log values ('lost');\nselect nope;\n"),
        ("afterMigrate.sh", "echo not reached; exit 1\n"),
    ])
    .await;
    site.run(&["migrate"]).exits(6);
    assert_eq!(site.database.text("select line from log").await, "after");
    // Without callbacks nothing of them runs.
    site.sql("V2__bad.sql", "select 1;\n");
    site.run(&["migrate", "--skip-default-callbacks"]).succeeds();
    assert_eq!(site.database.text("select line from log").await, "after");
}

#[tokio::test]
async fn callbacks_may_lie_in_a_folder_of_their_own_and_be_programs() {
    let site = Site::new(&[("V1__a.sql", "create table a (id int);\n")]).await;
    site.sandbox.write("hooks/afterMigrate.sh", "echo \"$FLYWAY_URL\" > after.txt\n");
    site.sandbox.write("hooks/V9__no_migration.sql", "select nope;\n");
    site.run(&["migrate", "--callback-locations=hooks"]).succeeds();
    assert!(site.sandbox.read("after.txt").starts_with("jdbc:postgresql://127.0.0.1:"));
}

#[tokio::test]
async fn a_callback_that_cannot_run_in_a_transaction_runs_without_one() {
    let site = Site::new(&[
        ("V1__a.sql", "create table a (id int);\n"),
        ("afterMigrate.sql", "vacuum a;\n"),
    ])
    .await;
    site.run(&["migrate", "--init-sql=set statement_timeout = '1min'"]).succeeds();
    assert!(site.has("a").await);
}
