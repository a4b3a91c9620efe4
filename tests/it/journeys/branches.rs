//! `--branch`: environments beside the default one, on the same images, and points to come back to.

use std::collections::BTreeSet;

use seedbed::pg::{Session, Target};

use super::images::{in_docker, native_with_reflinks, shell};
use super::{Project, contents, elsewhere};
use crate::harness::postgres::{free_port, newest_bin_dir, query_text, run_sql};
use crate::harness::{self, require, strace};

/// Where the database of a branch is.
pub(super) fn on_branch(project: &Project, branch: &str) -> Target {
    let url = project.run(&["url", "--branch", branch]).succeeds().stdout;
    let url = url::Url::parse(url.trim()).expect("a connection URL");
    Target { port: url.port().expect("the URL names the port"), ..project.live() }
}

/// `branch list --json`, by name; the default environment has none.
fn listed(project: &Project, name: Option<&str>) -> serde_json::Value {
    let list = project.run(&["branch", "list", "--json"]).succeeds().json();
    let list = list["result"].as_array().expect("a list").clone();
    let found = list.iter().find(|listed| listed["name"].as_str() == name);
    found.unwrap_or_else(|| panic!("no {name:?} in {list:?}")).clone()
}

#[tokio::test]
async fn a_branch_is_an_environment_of_its_own_until_it_is_deleted() {
    let port = free_port();
    let bin_dir = newest_bin_dir();
    let mut project = Project::on_its_own(&format!(
        "kind = \"native\"\nbin_dir = \"{}\"\nport = {port}\n",
        bin_dir.display()
    ))
    .with_snapshot()
    .await;
    project.run(&["up"]).succeeds();
    assert_eq!(project.live().port, port);
    let clean = project.contents().await;

    project.run(&["up", "--branch", "feature/Orders"]).succeeds();
    let branch = on_branch(&project, "feature/Orders");
    assert_ne!(branch.port, port, "the named port is the default environment's");
    assert_eq!(contents(&branch).await, clean);
    run_sql(&branch, "delete from shop.purchase").await;
    assert_eq!(project.contents().await, clean);
    let run = project.run(&["up", "--branch", "feature-orders"]).succeeds();
    assert!(run.stdout.contains("migrated  V2__purchases.sql"), "another one: {}", run.stdout);

    let status = project.run(&["status", "--branch", "feature/Orders"]).succeeds().stdout;
    assert!(status.contains("\nbranch       feature/Orders\n"), "{status}");
    assert!(!project.run(&["status"]).succeeds().stdout.contains("branch "));
    project.run(&["down", "--branch", "feature/Orders"]).succeeds();
    assert_eq!(listed(&project, Some("feature/Orders"))["running"], false);
    project.sandbox.set("SEEDBED_BRANCH", "feature/Orders");
    project.run(&["up"]).succeeds();
    let again = on_branch(&project, "feature/Orders");
    assert_eq!(again.port, branch.port, "it keeps its port");
    assert_eq!(query_text(&again, "select count(*) from shop.purchase").await, "0");
    // The default environment is meant by its name, whatever the variable says.
    let url = project.run(&["url", "--branch", "default"]).succeeds().stdout;
    assert!(url.contains(&format!(":{port}/")), "{url}");

    let of_default = listed(&project, None);
    assert_eq!(of_default["running"], true);
    assert_eq!(of_default["port"], port);
    assert_eq!(of_default["origin"]["kind"], "snapshot");
    let of_branch = listed(&project, Some("feature/Orders"));
    assert_eq!(of_branch["engine"], "native");
    assert_eq!(of_branch["port"], branch.port);
    assert!(of_branch["bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{of_branch}");
    let table = project.run(&["branch", "list"]).succeeds().stdout;
    assert!(table.contains("(default)") && table.contains("feature/Orders"), "{table}");

    let delete = |args: &[&str]| project.run(&[&["branch", "delete"], args].concat());
    let run = delete(&["feature/Order", "--yes"]).exits(2);
    assert!(run.stderr.contains("did you mean `feature/Orders`?"), "{}", run.stderr);
    // A typing error makes no environment of its own, and starts no server.
    let typed = |args: &[&str]| project.run(&[args, &["--branch", "feature/Order"]].concat());
    let folders = || {
        let found = project.sandbox.project().join(".seedbed/branches").read_dir_utf8();
        let found = found.expect("a folder").flatten();
        found.map(|entry| entry.file_name().to_owned()).collect::<BTreeSet<String>>()
    };
    let before = folders();
    let to_go_on: [&[&str]; 8] = [
        &["up", "--seed", "same"],
        &["undo-reset"],
        &["reset", "--seed", "same"],
        &["up", "--fresh", "--seed", "same"],
        &["seed", "--file", "seed/rows.sql"],
        &["branch", "forget", "point"],
        &["branch", "save", "point"],
        &["branch", "restore", "point"],
    ];
    for args in to_go_on {
        let run = typed(args).exits(2);
        assert!(run.stderr.contains("no branch `feature/Order` of this"), "{}", run.stderr);
        assert!(run.stderr.contains("did you mean `feature/Orders`?"), "{}", run.stderr);
        assert!(run.stderr.contains("`seedbed up --branch feature/Order`"), "{}", run.stderr);
    }
    typed(&["down"]).succeeds();
    typed(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(folders(), before);
    // One whose data has gone is none to go on from either, and is not proposed.
    project.run(&["up", "--branch", "feature/gone", "--seed", "none"]).succeeds();
    project.run(&["down", "--branch", "feature/gone", "--volumes", "--yes"]).succeeds();
    let run = project.run(&["branch", "save", "point", "--branch", "feature/gone"]).exits(2);
    assert!(!run.stderr.contains("did you mean `feature/gone`?"), "{}", run.stderr);
    assert_eq!(listed(&project, Some("feature/gone"))["running"], false);
    project.run(&["branch", "delete", "feature/gone", "--yes"]).succeeds();
    let run = delete(&["default", "--yes"]).exits(12);
    assert!(run.stderr.contains("`seedbed down --volumes`"), "{}", run.stderr);
    let run = delete(&["feature/Orders"]).exits(12);
    assert!(run.stderr.contains("nobody is there to confirm it"), "{}", run.stderr);
    let run = delete(&["feature/Orders", "--yes"]).succeeds();
    assert!(run.stdout.contains("removed branch feature/Orders"), "{}", run.stdout);
    assert!(Session::connect(&branch).await.is_err(), "its server runs on");
    delete(&["feature/Orders", "--yes"]).exits(2);
    delete(&["feature-orders", "--yes"]).succeeds();
    assert!(!project.sandbox.project().join(".seedbed/branches").exists());
    assert_eq!(project.contents().await, clean);
}

/// The default environment is not touched by any of them.
#[tokio::test(flavor = "multi_thread")]
async fn each_journey_is_of_the_branch_that_is_named() {
    let project = Project::native().with_snapshot().await;
    project.run(&["up"]).succeeds();
    project.sql("update shop.item set cents = 7").await;
    let default = (project.contents().await, project.databases().await);
    let on = |args: &[&str]| project.run(&[&["--branch", "work"], args].concat()).succeeds();
    on(&["up"]);
    let work = on_branch(&project, "work");
    let clean = contents(&work).await;

    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    assert!(on(&["migrate"]).stdout.contains("V3__notes.sql"));
    run_sql(&work, "insert into shop.note values ('mine'); delete from shop.purchase").await;
    on(&["validate"]);
    assert!(on(&["info"]).stdout.contains("notes"));
    let mine = contents(&work).await;
    on(&["branch", "save", "mine"]);
    on(&["reset", "--keep"]);
    assert_eq!(query_text(&work, "select count(*) from shop.note").await, "0");
    on(&["undo-reset"]);
    assert_eq!(contents(&work).await, mine);
    on(&["seed", "--snapshot", "latest"]);
    assert_eq!(query_text(&work, "select count(*) from shop.purchase").await, "10");
    project.sandbox.write("extra.sql", "insert into shop.note values ('extra');");
    on(&["seed", "--file", "extra.sql"]);
    assert_eq!(query_text(&work, "select body from shop.note").await, "extra");
    on(&["branch", "restore", "mine"]);
    assert_eq!(contents(&work).await, mine);

    let lent = on(&["db", "create"]).stdout;
    let port = url::Url::parse(lent.trim()).expect("a connection URL").port();
    assert_eq!(port, Some(work.port));
    on(&["db", "drop", "--all"]);
    let ci = on(&["ci", "--", "sh", "-c", "echo \"$PGPORT\""]).stdout;
    assert!(ci.contains(&work.port.to_string()), "{ci}");
    on(&["users", "apply"]);
    on(&["users", "check"]);
    on(&["down"]);
    project.run(&["url", "--branch", "work"]).exits(4);

    std::fs::remove_file(project.sandbox.project().join("sql/V3__notes.sql")).expect("was written");
    assert_eq!((project.contents().await, project.databases().await), default);
    on(&["up", "--fresh"]);
    assert_eq!(contents(&on_branch(&project, "work")).await, clean);
}

#[tokio::test]
async fn the_branch_of_git_is_the_one_that_is_checked_out() {
    let project = Project::native();
    let git = |args: &str| {
        shell(&format!(
            "cd {} && git -c user.name=a -c user.email=a@example.org {args}",
            project.sandbox.project()
        ))
    };
    let status = || project.run(&["status", "--branch", "git"]);
    let run = status().exits(3);
    assert!(run.stderr.contains("take git's branch of `"), "{}", run.stderr);
    assert!(run.stderr.contains("not a git repository"), "{}", run.stderr);
    git("init -q -b add/orders");
    assert!(status().succeeds().stdout.contains("branch       add/orders\n"), "an unborn one");
    git("commit -q --allow-empty -m first");
    git("checkout -q --detach");
    let run = status().exits(3);
    assert!(run.stderr.contains("its HEAD is detached"), "{}", run.stderr);
    assert!(run.stderr.contains("`--branch default`"), "{}", run.stderr);
    project.run(&["status"]).succeeds();
    project.run(&["status", "--branch", " "]).exits(3);
}

#[tokio::test]
async fn a_branch_is_refused_where_the_server_is_not_ours_to_start() {
    let project = Project::external(elsewhere());
    let run = project.run(&["up", "--branch", "b"]).exits(12);
    assert!(run.stderr.contains("its server is not started by seedbed"), "{}", run.stderr);
    assert!(run.stderr.contains("`--branch default`"), "{}", run.stderr);
    let database = "host = \"db.example.org\"\n";
    project.configure("", database, "");
    let run = project.run(&["up", "--branch", "b"]).exits(12);
    assert!(run.stderr.contains("its server is not started by seedbed"), "{}", run.stderr);
    project.configure("", database, "protected = true\n");
    let run = project.run(&["snapshot", "create", "--branch", "b"]).exits(12);
    assert!(run.stderr.contains("it is protected"), "{}", run.stderr);
    assert!(!project.sandbox.project().join(".seedbed").exists(), "nothing was made");
}

/// Saved, gone on, restored, saved over, forgotten; whatever a point is made of.
async fn comes_back(project: &Project, way: &str) {
    project.run(&["up"]).succeeds();
    project.sql("update shop.item set cents = 1").await;
    let first = project.contents().await;
    let other = Session::connect(&project.live()).await.expect("the database is there");
    let save = project.run(&["branch", "save", "Before it"]).succeeds();
    assert!(save.stdout.contains("as `Before it`, schema version 2"), "{}", save.stdout);
    let ended = format!("ended 1 session on `{}`", project.database);
    assert!(save.stderr.contains(&ended), "{}", save.stderr);
    assert!(other.batch("select 1").await.is_err());
    assert_eq!(project.contents().await, first, "it goes on as it was");

    let run = project.run(&["branch", "save", "Before it"]).exits(12);
    assert!(run.stderr.contains("a point `Before it` is there already"), "{}", run.stderr);
    assert!(run.stderr.contains("--replace"), "{}", run.stderr);
    // A risky migration, and what nobody has committed.
    let script = "sql/V3__risky.sql";
    project.sandbox.write(script, "alter table shop.purchase add column note text;");
    project.run(&["migrate"]).succeeds();
    project.sql("delete from shop.purchase").await;
    let second = project.contents().await;
    project.run(&["branch", "save", "after"]).succeeds();
    let points = listed(project, None)["points"].clone();
    assert_eq!((&points[0]["name"], &points[0]["way"]), (&"Before it".into(), &way.into()));
    assert_eq!(points[0]["schema_version"], "2");
    assert_eq!((&points[1]["name"], &points[1]["schema_version"]), (&"after".into(), &"3".into()));
    let table = project.run(&["branch", "list"]).succeeds().stdout;
    assert!(table.contains("Before it, after"), "{table}");

    let restore = project.run(&["branch", "restore", "Before it"]).succeeds();
    assert!(restore.stdout.contains("schema version 2"), "{}", restore.stdout);
    assert_eq!(project.contents().await, first);
    project.run(&["branch", "restore", "after"]).succeeds();
    assert_eq!(project.contents().await, second);
    // It is a database like any other, and the points outlive what replaces it.
    let reset = project.run(&["reset"]).succeeds();
    assert!(!reset.stderr.contains("warning"), "{}", reset.stderr);
    project.run(&["branch", "save", "after", "--replace"]).succeeds();
    let third = project.contents().await;
    let run = project.run(&["branch", "restore", "aftre"]).exits(2);
    assert!(run.stderr.contains("did you mean `after`?"), "{}", run.stderr);
    project.run(&["branch", "restore", "Before it"]).succeeds();
    assert_eq!(project.contents().await, first);
    project.run(&["branch", "restore", "after"]).succeeds();
    assert_eq!(project.contents().await, third);
    project.run(&["branch", "forget", "Before it"]).succeeds();
    project.run(&["branch", "forget", "Before it"]).exits(2);
    let points = listed(project, None)["points"].clone();
    assert_eq!(points.as_array().map(Vec::len), Some(1), "{points}");
}

#[tokio::test]
async fn a_point_is_a_copy_on_a_server_of_somebody_elses() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    let run = project.run(&["branch", "save", "x"]).exits(4);
    assert!(run.stderr.contains("was not built yet"), "{}", run.stderr);
    comes_back(&project, "copy").await;
    assert_eq!(project.databases().await, ["live", "saved", "template"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_is_a_frozen_directory_natively_where_copies_share_blocks() {
    let Some(project) = native_with_reflinks().await else { return };
    comes_back(&project, "frozen").await;
    let images = project.run(&["images", "list", "--json"]).succeeds().json();
    let images = images["images"].as_array().expect("a list").len();
    assert!(images > 0);
    project.run(&["images", "prune", "--yes", "--set", "images.max_size=1"]).succeeds();
    project.run(&["branch", "restore", "after"]).succeeds();
    // A point is the whole server: what came beside the database since is not taken away by it.
    let before = project.contents().await;
    run_sql(&project.admin(), "create database other_data").await;
    let run = project.run(&["branch", "restore", "after"]).exits(12);
    let why = "the point would replace database `other_data` as well";
    assert!(run.stderr.contains(why), "{}", run.stderr);
    assert_eq!(project.contents().await, before);
    let run = project.run(&["branch", "save", "beside"]).succeeds();
    assert!(run.stderr.contains("copying the database, which takes longer"), "{}", run.stderr);
    project.run(&["branch", "restore", "beside"]).succeeds();
    assert_eq!(project.contents().await, before);
    project.run(&["branch", "forget", "beside"]).succeeds();
    run_sql(&project.admin(), "drop database other_data").await;
    run_sql(&project.admin(), "create role later").await;
    let run = project.run(&["branch", "restore", "after"]).succeeds();
    assert!(run.stderr.contains("roles that came after the point are gone"), "{}", run.stderr);
    project.run(&["branch", "save", " "]).exits(2);
    project.run(&["down"]).succeeds();
    let down = listed(&project, None);
    assert_eq!((&down["running"], &down["points"][0]["name"]), (&false.into(), &"after".into()));
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert!(!project.sandbox.project().join(".seedbed/native").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_is_a_frozen_directory_of_the_pool_in_docker() {
    let Some((project, pool)) = in_docker().await else { return };
    comes_back(&project, "frozen").await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(shell(&format!("docker volume ls -q --filter name={pool}")), "");
}

/// A new branch begins with an image of another one, and coming back runs nothing.
async fn shares_images(project: &Project) {
    // Nobody goes on from behind a repeatable script.
    let view = project.sandbox.project().join("sql/R__totals.sql");
    let text = std::fs::read_to_string(&view).expect("it is there");
    std::fs::remove_file(&view).expect("it is there");
    project.sandbox.write("sql/V2.5__totals.sql", &text);
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    let same = project.run(&["up", "--branch", "same"]).succeeds();
    assert!(same.stderr.contains("serve a clone of the image"), "{}", same.stderr);
    assert_eq!(contents(&on_branch(project, "same")).await, clean);
    project.run(&["branch", "delete", "same", "--yes"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let up = project.run(&["up", "--branch", "add/notes"]).succeeds();
    assert!(up.stderr.contains("from the image of "), "{}", up.stderr);
    assert!(up.stderr.contains(", schema version 2.5: 1 script to go"), "{}", up.stderr);
    assert!(!up.stderr.contains("load ") && up.stderr.contains("freeze as image"), "{}", up.stderr);
    let branch = on_branch(project, "add/notes");
    project.run(&["users", "check", "--branch", "add/notes"]).succeeds();
    assert_eq!(project.contents().await, clean);
    let with_notes = contents(&branch).await;
    // It is what a build gives.
    let built = ["reset", "--branch", "add/notes", "--set", "images.kind=template"];
    let built = project.run(&built).succeeds();
    assert!(built.stderr.contains("load "), "{}", built.stderr);
    assert_eq!(contents(&branch).await, with_notes);
    run_sql(&branch, "insert into shop.note values ('mine'); delete from shop.purchase").await;
    let reset = project.run(&["reset", "--branch", "add/notes"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(contents(&branch).await, with_notes);
    // What the branch has frozen is for the others as well, and outlives it.
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(project.contents().await, with_notes);
    project.run(&["branch", "delete", "add/notes", "--yes"]).succeeds();
    assert_eq!(project.contents().await, with_notes);
    std::fs::remove_file(project.sandbox.project().join("sql/V3__notes.sql")).expect("was written");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "images stay: {}", reset.stderr);
    assert_eq!(project.contents().await, clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn natively_branches_share_images() {
    let Some(project) = native_with_reflinks().await else { return };
    shares_images(&project).await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert!(!project.sandbox.project().join(".seedbed/images").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_docker_branches_share_images() {
    let Some((project, pool)) = in_docker().await else { return };
    shares_images(&project).await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(shell(&format!("docker volume ls -q --filter name={pool}")), "");
    let path = project.sandbox.project();
    let left = format!("docker ps -aq --filter label=seedbed.path={path}");
    assert_eq!(shell(&left), "");
    assert_eq!(shell(&left.replace("ps -aq", "volume ls -q")), "");
}

#[tokio::test]
async fn a_deletion_that_is_killed_can_be_repeated() {
    if !require("strace", strace::is_here()) {
        return;
    }
    const CALLS: &str = "rename,renameat,renameat2,unlink,unlinkat,rmdir";
    let project = Project::native();
    project.run(&["up", "--seed", "none"]).succeeds();
    let branches = project.sandbox.project().join(".seedbed/branches");
    let (folder, on_its_way) = (branches.join("gone"), branches.join(".gone-gone"));
    let delete = ["branch", "delete", "gone", "--yes"];
    let again = |at: &str| {
        let again = project.run(&delete);
        // Killed in its very last act it was gone already.
        if again.code != Some(2) {
            again.succeeds();
        }
        assert!(!folder.exists() && !on_its_way.exists(), "killed at {at}");
    };
    let up = ["up", "--seed", "none", "--branch", "gone"];
    // The state, the folder, and what is left of that; files of data come before.
    let aims = [
        ("rename,renameat,renameat2", folder.join("state.json")),
        ("rename,renameat,renameat2", folder.clone()),
        ("unlink,unlinkat,rmdir", on_its_way.clone()),
    ];
    for (calls, aim) in aims {
        project.run(&up).succeeds();
        let killed = strace::killed_at(&project.sandbox, calls, 1).of(&aim);
        let (run, hit) = killed.run(&delete);
        assert_eq!(run.code, None, "{aim}: {hit:?}: {}", run.stderr);
        assert!(aim != on_its_way || on_its_way.exists(), "{aim}: {hit:?}");
        if on_its_way.exists() {
            // What is half gone is no environment to go on from.
            project.run(&["undo-reset", "--branch", "gone"]).exits(2);
            assert!(!folder.exists(), "{aim}");
        }
        again(aim.as_str());
    }
    let mut count = 0;
    for number in (1..).step_by(harness::stride(300, 40)) {
        project.run(&up).succeeds();
        let (run, _) = strace::killed_at(&project.sandbox, CALLS, number).run(&delete);
        if run.code == Some(0) {
            break;
        }
        again(&format!("call {number}"));
        count += 1;
    }
    assert!(count >= 2, "{count}");
    project.run(&["psql", "--", "-c", "select 1"]).succeeds();
}
