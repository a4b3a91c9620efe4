//! Builds that go on from the nearest frozen one.

use super::{Project, elsewhere};

/// All but the history, in which repeatable scripts stand where they ran.
fn rows(contents: &str) -> String {
    contents.lines().skip(1).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_reset_goes_on_from_a_template_that_went_the_same_way() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    let view = project.sandbox.project().join("sql/R__totals.sql");
    std::fs::remove_file(&view).expect("it was written");
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

/// Repeatable scripts run last in a build and callbacks once: with either, the result would be another one.
#[tokio::test]
async fn what_would_give_another_result_is_built_from_the_beginning() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    project.run(&["up"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("load ") && !reset.stderr.contains("to go"), "{}", reset.stderr);
    std::fs::remove_file(project.sandbox.project().join("sql/R__totals.sql")).expect("it is there");
    project.sandbox.write("sql/afterMigrate.sql", "insert into shop.note select 'made ready';");
    project.run(&["reset"]).succeeds();
    project.sandbox.write("sql/V4__more.sql", "create table shop.more ();");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("load ") && !reset.stderr.contains("to go"), "{}", reset.stderr);
    assert_eq!(project.text("select count(*) from shop.note").await, "1");
}
