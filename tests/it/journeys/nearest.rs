//! Builds that go on from the nearest frozen one.

use super::images::native_with_reflinks;
use super::{Production, Project, elsewhere};

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

const NAMES: &str = "create or replace view shop.names as select name from shop.customer;\n";

/// A snapshot of a production that has run a repeatable script, which this checkout has as well.
async fn with_a_repeatable_of_production(project: &Project) {
    let store = project.sandbox.project().join("seed/snapshots");
    let production = Production::new(&format!("[store]\nurl = \"{store}\"\n")).await;
    production.sandbox.write("sql/R__names.sql", NAMES);
    production.run(&["migrate", "--yes"]).succeeds();
    production.run(&["snapshot", "create"]).succeeds();
    production.drop_database().await;
    project.sandbox.write("sql/R__names.sql", NAMES);
    std::fs::remove_file(project.sandbox.project().join("sql/R__totals.sql")).expect("is there");
}

/// In every build of such a snapshot it has run before all others; only one that a build runs itself is in the way.
async fn goes_on_from_behind_a_repeatable_of_production(project: &Project, kind: &str) {
    with_a_repeatable_of_production(project).await;
    let up = project.run(&["up"]).succeeds();
    assert!(!up.stdout.contains("R__names.sql"), "{}", up.stdout);
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains(&format!("from the {kind} of ")), "{}", reset.stderr);
    assert!(reset.stderr.contains("schema version 2: 1 script to go"), "{}", reset.stderr);
    assert!(!reset.stderr.contains("restore tables"), "{}", reset.stderr);

    // Where it has changed it runs behind the others, as in a build.
    let changed = NAMES.replace("select name", "select name, customer_id");
    project.sandbox.write("sql/R__names.sql", changed);
    project.sandbox.write("sql/V4__more.sql", "create table shop.more ();");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("schema version 3: 1 script to go"), "{}", reset.stderr);
    assert!(reset.stdout.contains("R__names.sql"), "{}", reset.stdout);
    let went_on = project.contents().await;
    assert_eq!(project.text("select count(customer_id) from shop.names").await, "300");

    // What has run one itself is gone on from no more.
    project.sandbox.write("sql/V5__last.sql", "create table shop.last ();");
    let reset = project.run(&["reset", "--set", "images.kind=template"]).succeeds();
    assert!(reset.stderr.contains("restore tables"), "{}", reset.stderr);
    let reset = project.run(&["reset"]).succeeds();
    assert!(!reset.stderr.contains("schema version 4: "), "{}", reset.stderr);
    std::fs::remove_file(project.sandbox.project().join("sql/V5__last.sql")).expect("is there");
    let built = project.run(&["reset", "--set", "images.kind=template"]).succeeds();
    assert!(built.stderr.contains("restore tables"), "{}", built.stderr);
    assert_eq!(project.contents().await, went_on);
}

#[tokio::test]
async fn a_template_is_gone_on_from_behind_a_repeatable_that_came_with_the_snapshot() {
    let project = Project::external(elsewhere());
    goes_on_from_behind_a_repeatable_of_production(&project, "template").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_gone_on_from_behind_a_repeatable_that_came_with_the_snapshot() {
    let Some(project) = native_with_reflinks().await else { return };
    std::fs::remove_dir_all(project.sandbox.project().join("seed/snapshots")).expect("is there");
    goes_on_from_behind_a_repeatable_of_production(&project, "image").await;
}
