//! What is frozen on this machine is taken where no store is to be asked: a new branch, the same rows once more.

use super::branches::on_branch;
use super::images::{in_docker, native_with_reflinks, use_it};
use super::{Production, Project, contents};
use crate::harness::Run;

/// A store that nobody answers for.
const NOBODY: [&str; 8] = [
    "--set",
    "store.url=s3://snapshots",
    "--set",
    "store.endpoint=http://127.0.0.1:1",
    "--set",
    "store.access_key_id=nobody",
    "--set",
    "store.secret_access_key=nothing",
];

fn without_a_store(args: &[&'static str]) -> Vec<&'static str> {
    args.iter().chain(&NOBODY).copied().collect()
}

/// Puts a snapshot with other rows behind the one that is there.
async fn publish_a_newer_one(project: &Project) {
    let store = project.sandbox.project().join("seed/snapshots");
    let production = Production::new(&format!("[store]\nurl = \"{store}\"\n")).await;
    production.sql("update shop.item set cents = 4711 where item_id <= 100").await;
    production.run(&["snapshot", "create"]).succeeds();
    production.drop_database().await;
}

/// The store is named, and what does without it.
fn names_the_way_without(run: &Run) {
    assert!(run.stderr.contains("error: cannot reach http://127.0.0.1:1: "), "{}", run.stderr);
    let hint =
        "hint: the rows that it came from are on this machine: `seedbed reset --seed same`\n";
    assert!(run.stderr.ends_with(hint), "{}", run.stderr);
}

async fn a_branch_begins_with_what_is_here(project: &Project) {
    const HERE: &str = "of which an image is here";
    project.run(&["up"]).succeeds();
    let older = project.contents().await;
    publish_a_newer_one(project).await;

    let up = project.run(&["up", "--branch", "next"]).succeeds();
    assert!(up.stderr.contains(HERE), "{}", up.stderr);
    assert!(up.stderr.contains("`seedbed reset --branch next` asks the store"), "{}", up.stderr);
    assert!(up.stderr.contains("serve a clone of the image"), "{}", up.stderr);
    assert!(!up.stderr.contains("choose snapshot"), "{}", up.stderr);
    assert_eq!(contents(&on_branch(project, "next")).await, older);
    // What is newer comes where it is asked for.
    let latest = project.run(&["up", "--branch", "latest", "--seed", "latest"]).succeeds();
    assert!(!latest.stderr.contains(HERE), "{}", latest.stderr);
    let newer = contents(&on_branch(project, "latest")).await;
    assert_ne!(newer, older);
    project.run(&["reset", "--branch", "next"]).succeeds();
    assert_eq!(contents(&on_branch(project, "next")).await, newer);
    // Where only what was proved is to be taken, the store knows of it.
    let proved = ["up", "--branch", "proved", "--proved", "--seed", "latest"];
    let proved = project.run(&proved).exits(8);
    assert!(!proved.stderr.contains(HERE), "{}", proved.stderr);

    // No store answers: the newest that is here, migrated to where the checkout is.
    std::fs::remove_file(project.sandbox.project().join("sql/R__totals.sql")).expect("is there");
    project.run(&["reset"]).succeeds();
    assert!(project.contents().await.contains("item"), "it is there");
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let up = project.run(&without_a_store(&["up", "--branch", "train"])).succeeds();
    assert!(up.stderr.contains(HERE), "{}", up.stderr);
    assert!(up.stderr.contains("1 script to go"), "{}", up.stderr);
    let train = on_branch(project, "train");
    let cents = "select count(*) from shop.item where cents = 4711";
    assert_eq!(crate::harness::postgres::query_text(&train, cents).await, "100");
    project.run(&without_a_store(&["up", "--branch", "fresh", "--seed", "latest"])).exits(9);

    // The same rows once more, whatever the store has.
    project.run(&["reset"]).succeeds();
    let clean = project.contents().await;
    use_it(project).await;
    names_the_way_without(&project.run(&without_a_store(&["reset"])).exits(9));
    let reset = project.run(&without_a_store(&["reset", "--seed", "same"])).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn natively_a_branch_begins_with_the_image_that_is_here_and_no_store_is_asked() {
    let Some(project) = native_with_reflinks().await else { return };
    a_branch_begins_with_what_is_here(&project).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_docker_a_branch_begins_with_the_image_that_is_here_and_no_store_is_asked() {
    let Some((project, _pool)) = in_docker().await else { return };
    a_branch_begins_with_what_is_here(&project).await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rows_come_once_more_from_a_template_and_else_from_the_store() {
    let project = Project::native().with_snapshot().await;
    let run = project.run(&["reset", "--seed", "same"]).exits(12);
    assert!(run.stderr.contains("no database whose rows could be had again"), "{}", run.stderr);
    project.run(&["ci", "--seed", "same"]).exits(2);

    project.run(&["up"]).succeeds();
    let older = project.contents().await;
    let store = project.sandbox.project().join("seed/snapshots");
    let manifests = || super::files_below(&store.join("manifests"));
    let first = manifests();
    publish_a_newer_one(&project).await;
    use_it(&project).await;
    names_the_way_without(&project.run(&without_a_store(&["reset"])).exits(9));
    let reset = project.run(&without_a_store(&["reset", "--seed", "same"])).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert_eq!(project.contents().await, older);

    // No template is of this checkout any more: the store has those rows still, if it has them.
    project.sandbox.write("sql/afterMigrate.sql", "select 1;");
    let rows = project.run(&["reset", "--seed", "same"]).succeeds();
    assert!(rows.stderr.contains("restore tables"), "{}", rows.stderr);
    let cents = "select count(*) from shop.item where cents = 4711";
    assert_eq!(project.text(cents).await, "0");
    project.sandbox.write("sql/afterMigrate.sql", "select 2;");
    let gone = project.run(&without_a_store(&["reset", "--seed", "same"])).exits(9);
    assert!(!gone.stderr.contains("--seed same"), "{}", gone.stderr);
    for manifest in first {
        std::fs::remove_file(manifest).expect("was there");
    }
    let gone = project.run(&["reset", "--seed", "same"]).exits(8);
    assert!(
        gone.stderr.contains("the snapshot that the live database came from is needed once more"),
        "{}",
        gone.stderr
    );
    assert!(
        gone.stderr.contains("hint: go on from the newest one: `seedbed reset`"),
        "{}",
        gone.stderr
    );
    project.run(&["reset"]).succeeds();
    assert_eq!(project.text(cents).await, "100");
    project.run(&["down", "--volumes", "--yes"]).succeeds();

    // Files, or nothing, are what they are.
    project.sandbox.write("seed/files.sql", "insert into shop.customer (name) values ('filed');");
    project.run(&["up", "--seed", "files"]).succeeds();
    project.sql("delete from shop.customer").await;
    project.run(&without_a_store(&["reset", "--seed", "same"])).succeeds();
    assert_eq!(project.text("select string_agg(name, ',') from shop.customer").await, "filed");
}
