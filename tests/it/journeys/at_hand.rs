//! What is frozen on this machine is taken where no store is to be asked: a new branch, the same rows once more.

use super::branches::on_branch;
use super::images::{in_docker, native_with_reflinks, use_it};
use super::{Production, Project, contents, elsewhere, files_below};
use crate::harness::postgres::{query_text, run_sql};
use crate::harness::{Run, unique};

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
    production.sql("update shop.item set cents = 77777 where item_id <= 100").await;
    production.run(&["snapshot", "create"]).succeeds();
    production.drop_database().await;
}

/// The store is named, and what does without it.
#[track_caller]
fn names_the_way_without(run: &Run, command: &str) {
    assert!(run.stderr.contains("error: cannot reach http://127.0.0.1:1: "), "{}", run.stderr);
    let hint = format!("hint: the rows that `shop` came from are on this machine: `{command}`\n");
    assert!(run.stderr.ends_with(&hint), "{}", run.stderr);
}

/// Items that a newer snapshot has changed.
const CHANGED: &str = "select count(*) from shop.item where cents = 77777";

async fn a_branch_begins_with_what_is_here(project: &Project) {
    const HERE: &str = "of an image that is here";
    let without_repeatables = || {
        std::fs::remove_file(project.sandbox.project().join("sql/R__totals.sql"))
            .expect("is there");
    };
    project.run(&["up"]).succeeds();
    let older = project.contents().await;
    publish_a_newer_one(project).await;

    let up = project.run(&["up", "--branch", "next"]).succeeds();
    assert!(up.stderr.contains(HERE), "{}", up.stderr);
    assert!(up.stderr.contains("store: `seedbed reset --branch next`"), "{}", up.stderr);
    assert!(up.stderr.contains("serve a clone of the image"), "{}", up.stderr);
    assert!(!up.stderr.contains("choose snapshot"), "{}", up.stderr);
    let next = on_branch(project, "next");
    assert_eq!(contents(&next).await, older);
    // A reset takes what is newer, and says so where it cannot.
    let reset = without_a_store(&["reset", "--branch", "next"]);
    names_the_way_without(&project.run(&reset).exits(9), "seedbed reset --seed same --branch next");
    project.run(&["reset", "--branch", "next"]).succeeds();
    let newer = contents(&next).await;
    assert_ne!(newer, older);
    assert_eq!(query_text(&next, CHANGED).await, "100");
    // So does who asks for it.
    let latest = project.run(&["up", "--branch", "latest", "--seed", "latest"]).succeeds();
    assert!(!latest.stderr.contains(HERE), "{}", latest.stderr);
    assert_eq!(contents(&on_branch(project, "latest")).await, newer);
    // Where only what was proved is to be taken, the store knows of it.
    let proved = project.run(&["up", "--branch", "proved", "--proved"]).succeeds();
    assert!(!proved.stderr.contains(HERE), "{}", proved.stderr);
    assert!(proved.stderr.contains("none fits"), "{}", proved.stderr);

    // Both snapshots have an image by now: the newer one is begun with.
    let up = project.run(&without_a_store(&["up", "--branch", "train"])).succeeds();
    assert!(up.stderr.contains(HERE), "{}", up.stderr);
    assert_eq!(contents(&on_branch(project, "train")).await, newer);

    // No store answers, and a script is to go; one that fails names the way out.
    without_repeatables();
    project.run(&["reset", "--seed", "same"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text); select 1 / 0;");
    let up = project.run(&without_a_store(&["up", "--branch", "plane"])).exits(6);
    let hint = "hint: begin with the newest rows of the store: `seedbed up --seed latest --branch plane`\n";
    assert!(up.stderr.ends_with(hint), "{}", up.stderr);
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let up = project.run(&without_a_store(&["up", "--branch", "plane"])).succeeds();
    // The newest ones that are here; the default environment's are the older ones still.
    assert!(up.stderr.contains(HERE) && up.stderr.contains("the rows alone"), "{}", up.stderr);
    assert_eq!(query_text(&on_branch(project, "plane"), CHANGED).await, "100");
    project.run(&without_a_store(&["up", "--branch", "fresh", "--seed", "latest"])).exits(9);

    // The same rows once more, whatever the store has.
    let reset = project.run(&without_a_store(&["reset", "--seed", "same"])).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    let clean = project.contents().await;
    assert_eq!(project.text(CHANGED).await, "0");
    use_it(project).await;
    let used = project.contents().await;
    names_the_way_without(
        &project.run(&without_a_store(&["reset"])).exits(9),
        "seedbed reset --seed same",
    );
    project.run(&without_a_store(&["reset", "--seed", "same", "--keep"])).succeeds();
    assert_eq!(project.contents().await, clean);
    project.run(&["undo-reset"]).succeeds();
    assert_eq!(project.contents().await, used);
    project.run(&without_a_store(&["up", "--fresh", "--seed", "same"])).succeeds();
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
    let manifests = project.sandbox.project().join("seed/snapshots/snapshots");
    let first = files_below(&manifests);
    publish_a_newer_one(&project).await;
    use_it(&project).await;
    names_the_way_without(
        &project.run(&without_a_store(&["reset"])).exits(9),
        "seedbed reset --seed same",
    );
    let reset = project.run(&without_a_store(&["reset", "--seed", "same"])).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert_eq!(project.contents().await, older);

    // No template is of this checkout any more: the store has those rows still, if it has them.
    project.sandbox.write("sql/afterMigrate.sql", "select 1;");
    let rows = project.run(&["reset", "--seed", "same"]).succeeds();
    assert!(rows.stderr.contains("restore tables"), "{}", rows.stderr);
    assert_eq!(project.text(CHANGED).await, "0");
    project.sandbox.write("sql/afterMigrate.sql", "select 2;");
    for args in [&["reset"][..], &["reset", "--seed", "same"]] {
        let args: Vec<&str> = args.iter().chain(&NOBODY).copied().collect();
        let gone = project.run(&args).exits(9);
        assert!(!gone.stderr.contains("`seedbed reset"), "{}", gone.stderr);
    }
    for manifest in first {
        std::fs::remove_file(manifest).expect("was there");
    }
    let gone = project.run(&["reset", "--seed", "same"]).exits(8);
    let said = "the snapshot that the live database came from is needed once more";
    assert!(gone.stderr.contains(said), "{}", gone.stderr);
    let hint = "hint: go on from the newest one: `seedbed reset`\n";
    assert!(gone.stderr.ends_with(hint), "{}", gone.stderr);
    project.run(&["reset"]).succeeds();
    assert_eq!(project.text(CHANGED).await, "100");

    // Files are what they are now.
    project.sandbox.write("seed/files.sql", "insert into shop.customer (name) values ('filed');");
    project.run(&["reset", "--seed", "files"]).succeeds();
    project.sandbox.write("seed/files.sql", "insert into shop.customer (name) values ('again');");
    project.run(&without_a_store(&["reset", "--seed", "same"])).succeeds();
    assert_eq!(project.text("select string_agg(name, ',') from shop.customer").await, "again");
}

/// What a killed run has carried is for the server that it came from.
#[tokio::test]
async fn passwords_that_were_carried_are_given_to_no_other_server() {
    let role = unique("guest");
    let external = Project::external(elsewhere());
    run_sql(&external.admin(), &format!("create role {role} login")).await;
    let native = Project::native();
    native.run(&["up", "--seed", "none"]).succeeds();
    run_sql(&native.admin(), &format!("create role {role} login")).await;
    let stored = format!("md5{}", "0".repeat(32));
    let carried = format!("[{{\"role\":\"{role}\",\"stored\":\"{stored}\"}}]");
    let password =
        format!("select coalesce(rolpassword, 'none') from pg_authid where rolname = '{role}'");
    for (project, engine, given) in
        [(&external, "native", false), (&native, "docker", false), (&native, "native", true)]
    {
        let path = project.sandbox.project().join(format!(".seedbed/passwords.{engine}.json"));
        fs_err::create_dir_all(path.parent().expect("a folder")).expect("it is ours");
        fs_err::write(&path, &carried).expect("the folder is there");
        project.run(&["up", "--seed", "none"]).succeeds();
        let found = query_text(&project.admin(), &password).await;
        assert_eq!(found, if given { stored.as_str() } else { "none" }, "{engine}");
        assert_eq!(path.exists(), !given, "{engine}");
    }
    // They go with the data.
    let path = native.sandbox.project().join(".seedbed/passwords.native.json");
    fs_err::write(&path, &carried).expect("the folder is there");
    native.run(&["down", "--volumes", "--yes"]).succeeds();
    assert!(!path.exists());
    let path = native.sandbox.project().join(".seedbed/passwords.docker.json");
    assert!(path.exists(), "those of another engine's data stay");
    run_sql(&external.admin(), &format!("drop role {role}")).await;
}
