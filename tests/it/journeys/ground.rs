//! The rows alone, frozen before the first script runs, and the empty cluster that new branches begin with.

use seedbed::pg::Target;

use super::branches::on_branch;
use super::image_kills::of_pool;
use super::images::{in_docker, in_pool, native_with_reflinks, shell, use_it};
use super::{Production, Project, SECOND, contents, files_below};
use crate::harness::postgres::query_text;
use crate::harness::unique;

const ROWS_ALONE: &str = "the rows alone, nothing has to be loaded";
const LOADED: &str = "restore tables and functions";

/// A view that nobody could tell from one that was there from the beginning, but for what it counts.
const OTHER_VIEW: &str = "create or replace view shop.totals as
select c.name, count(*) + 1 as purchases
from shop.purchase p join shop.customer c using (customer_id)
group by c.name;
";

/// What is made of the rows by scripts.
async fn made(target: &Target) -> String {
    let view = "select coalesce(sum(purchases), 0)::text || ' ' || count(*) from shop.totals";
    format!("{}\n{}", contents(target).await, query_text(target, view).await)
}

/// What a build from the store gives for this checkout, on a server of its own.
async fn built(project: &Project, pool: Option<&str>) -> String {
    let args = ["up", "--branch", "built", "--seed", "latest", "--set", "images.kind=template"];
    let up = project.run(&args).succeeds();
    assert!(up.stderr.contains(LOADED), "{}", up.stderr);
    let made = made(&on_branch(project, "built")).await;
    project.run(&["branch", "delete", "built", "--yes"]).succeeds();
    if let Some(pool) = pool {
        assert_ne!(of_pool(pool), "");
    }
    made
}

async fn rows_are_loaded_once(project: &Project, pool: Option<&str>) {
    let folder = project.sandbox.project();
    // A newcomer's script fails: the rows are not lost for it.
    project.sandbox.write("sql/V2__purchases.sql", format!("{SECOND} select 1 / 0;"));
    let up = project.run(&["up"]).exits(6);
    assert!(up.stderr.contains(LOADED) && up.stderr.contains("V2__purchases.sql"), "{}", up.stderr);
    assert_eq!(project.databases().await, [""; 0], "a half-built database");
    project.sandbox.write("sql/V2__purchases.sql", SECOND);
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains(ROWS_ALONE) && !up.stderr.contains(LOADED), "{}", up.stderr);
    assert!(up.stdout.contains("migrated  V2__purchases.sql ("), "{}", up.stdout);
    assert_eq!(made(&project.live()).await, built(project, pool).await);
    let list = project.run(&["images", "list"]).succeeds().stdout;
    assert!(list.contains("version 1, the rows alone of snapshot "), "{list}");

    // A repeatable script that has changed, a script that was edited, a callback.
    project.sandbox.write("sql/R__totals.sql", OTHER_VIEW);
    let edited = SECOND.replace("<= 10", "<= 20");
    project.sandbox.write("sql/V2__purchases.sql", &edited);
    project.sandbox.write("sql/afterMigrate.sql", "update shop.item set cents = cents + 1;");
    use_it(project).await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(
        reset.stderr.contains(ROWS_ALONE) && !reset.stderr.contains(LOADED),
        "{}",
        reset.stderr
    );
    let here = made(&project.live()).await;
    assert_eq!(project.text("select count(*) from shop.purchase").await, "20");
    project.run(&["validate"]).succeeds();
    project.run(&["users", "check"]).succeeds();
    // A target of its own.
    let args = ["seed", "--snapshot", "latest", "--to", "2"];
    let to = project.run(&args).succeeds();
    assert!(to.stderr.contains(ROWS_ALONE) && !to.stderr.contains(LOADED), "{}", to.stderr);
    assert_eq!(made(&project.live()).await, here);

    // Nobody goes on from rows that are too new for a checkout.
    fs_err::rename(folder.join("sql"), folder.join("sql.now")).expect("it is ours");
    project.sandbox.write("sql/V1__shop.sql", "create schema shop;");
    let up = project.run(&["up", "--branch", "older"]).succeeds();
    assert!(up.stderr.contains("none fits") && !up.stderr.contains(ROWS_ALONE), "{}", up.stderr);
    fs_err::remove_dir_all(folder.join("sql")).expect("it is ours");
    fs_err::rename(folder.join("sql.now"), folder.join("sql")).expect("it is ours");
    project.run(&["branch", "delete", "older", "--yes"]).succeeds();

    // A new branch, of the rows alone.
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let up = project.run(&["up", "--branch", "other"]).succeeds();
    assert!(up.stderr.contains(ROWS_ALONE) && !up.stderr.contains(LOADED), "{}", up.stderr);
    assert!(up.stderr.contains("of an image that is here"), "{}", up.stderr);
    assert_eq!(made(&on_branch(project, "other")).await, built(project, pool).await);

    // Other accounts: what stands in the way of their grants is not known.
    let accounts = files_below(&folder.join("users"));
    let text = fs_err::read_to_string(&accounts[0]).expect("is there");
    project
        .sandbox
        .write("users/accounts.sql", format!("{text}create role nobody_else nologin;\n"));
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains(LOADED), "{}", reset.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_loads_the_rows_of_a_snapshot_once_whatever_becomes_of_the_scripts() {
    let Some((project, pool)) = in_docker().await else { return };
    rows_are_loaded_once(&project, Some(&pool)).await;
    project.run(&["branch", "delete", "other", "--yes"]).succeeds();
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn native_loads_the_rows_of_a_snapshot_once_whatever_becomes_of_the_scripts() {
    let Some(project) = native_with_reflinks().await else { return };
    rows_are_loaded_once(&project, None).await;
}

/// A reset takes newer rows where a database is live: on a second server, so that they are frozen alone there as well.
async fn newer_rows_are_frozen_alone(project: &Project) {
    project.run(&["up"]).succeeds();
    use_it(project).await;
    let used = project.contents().await;
    let store = project.sandbox.project().join("seed/snapshots");
    let production = Production::new(&format!("[store]\nurl = \"{store}\"\n")).await;
    production.sql("insert into shop.customer (name) values ('the newest')").await;
    production.run(&["snapshot", "create"]).succeeds();
    production.drop_database().await;

    project.sandbox.write("sql/V2__purchases.sql", format!("{SECOND} select 1 / 0;"));
    let reset = project.run(&["reset"]).exits(6);
    assert!(reset.stderr.contains(LOADED), "{}", reset.stderr);
    assert_eq!(project.contents().await, used);
    project.sandbox.write("sql/V2__purchases.sql", SECOND);
    let reset = project.run(&["reset"]).succeeds();
    assert!(
        reset.stderr.contains(ROWS_ALONE) && !reset.stderr.contains(LOADED),
        "{}",
        reset.stderr
    );
    let newest = "select count(*) from shop.customer where name = 'the newest'";
    assert_eq!(project.text(newest).await, "1");
    let folder = project.sandbox.project();
    assert_eq!(shell(&format!("ls -A {folder}/.seedbed/branches 2>/dev/null || true")), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_freezes_newer_rows_alone_beside_the_live_database() {
    let Some((project, pool)) = in_docker().await else { return };
    newer_rows_are_frozen_alone(&project).await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn native_freezes_newer_rows_alone_beside_the_live_database() {
    let Some(project) = native_with_reflinks().await else { return };
    newer_rows_are_frozen_alone(&project).await;
}

/// What the pool holds beside images and environments.
fn blanks(project: &Project) -> usize {
    let folder = project.sandbox.project();
    let ls = format!(
        "docker exec $(docker ps -q --filter label=seedbed.path={folder} | head -n 1) sh -c 'ls -d /seedbed/blank/*/ 2>/dev/null' || true"
    );
    shell(&ls).lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_branch_begins_in_the_pool_with_an_empty_cluster() {
    let Some((project, pool)) = in_docker().await else { return };
    let neighbour = in_pool(&pool).await;
    let accounts = fs_err::read_to_string(project.sandbox.project().join("users/accounts.sql"));
    let accounts = accounts.expect("is there");
    let gone = unique("gone");
    project.sandbox.write("users/accounts.sql", format!("{accounts}create role {gone} login;\n"));
    project.run(&["up"]).succeeds();
    assert_eq!(blanks(&project), 1);
    // What is set by hand on a server is that environment's alone.
    project.sql("alter system set work_mem = '7MB'").await;
    project.sql("create role by_hand").await;

    project.sandbox.write("users/accounts.sql", &accounts);
    let up = project.run(&["up", "--branch", "one"]).succeeds();
    assert!(up.stderr.contains("start PostgreSQL in Docker"), "{}", up.stderr);
    assert!(!up.stderr.contains("move to where clones share blocks"), "{}", up.stderr);
    let one = on_branch(&project, "one");
    let roles = format!(
        "select coalesce(string_agg(rolname, ' '), 'none') from pg_roles
         where oid >= 16384 and rolname not in ('{}', '{}')",
        project.owner, project.reader
    );
    assert_eq!(query_text(&one, &roles).await, "none", "roles that no file names");
    assert_eq!(query_text(&one, "show work_mem").await, "4MB");
    let plain = shell(&format!(
        "docker volume ls -q --filter label=seedbed.role=data --filter label=seedbed.path={}",
        project.sandbox.project()
    ));
    assert_eq!(plain, "", "a volume of its own");
    let identifier = "select system_identifier::text from pg_control_system()";
    assert_ne!(
        query_text(&one, "select rolpassword from pg_authid where rolname = 'postgres'").await,
        ""
    );
    assert_eq!(
        query_text(&one, identifier).await,
        query_text(&project.live(), identifier).await,
        "it is a clone"
    );
    // Another project has its own.
    neighbour.run(&["up"]).succeeds();
    assert_eq!(blanks(&neighbour), 2);

    // What cannot be had is made as before.
    let lost = format!(
        "docker exec $(docker ps -q --filter label=seedbed.path={} | head -n 1) \
         sh -c 'rm /seedbed/blank/*/PG_VERSION'",
        project.sandbox.project()
    );
    shell(&lost);
    project.run(&["up", "--branch", "two"]).succeeds();
    let two = on_branch(&project, "two");
    assert_eq!(contents(&two).await, contents(&one).await);

    for branch in ["one", "two"] {
        project.run(&["branch", "delete", branch, "--yes"]).succeeds();
    }
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(blanks(&neighbour), 1);
    neighbour.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_a_failed_run_has_left_is_not_frozen_with_the_rows() {
    let Some(project) = native_with_reflinks().await else { return };
    let role = unique("left_behind");
    project.sandbox.write("sql/V2__purchases.sql", format!("{SECOND} create role {role};"));
    project.sandbox.write("sql/V3__fails.sql", "select 1 / 0;");
    let path = project.sandbox.project().join("users/accounts.sql");
    let accounts = fs_err::read_to_string(&path).expect("is there");
    let accounts =
        accounts.replace("CREATE USER ${owner} WITH", "CREATE USER ${owner} WITH CREATEROLE");
    project.sandbox.write("users/accounts.sql", &accounts);
    let grounds = || {
        let list = project.run(&["images", "list", "--json"]).succeeds().json();
        let images = list["images"].as_array().expect("a list").clone();
        images.into_iter().filter(|image| image["is_ground"] == true).collect::<Vec<_>>()
    };
    let up = project.run(&["up"]).exits(6);
    assert!(up.stderr.contains("V3__fails.sql"), "{}", up.stderr);
    let [ground] = &grounds()[..] else { panic!("the rows alone") };
    assert!(!ground["roles"].to_string().contains(&role), "{ground}");

    // Other accounts are another build, on the server where the role is still.
    let other = unique("other");
    project
        .sandbox
        .write("users/accounts.sql", format!("{accounts}create role {other} nologin;\n"));
    let up = project.run(&["up"]).exits(6);
    assert!(up.stderr.contains(LOADED) && up.stderr.contains("already exists"), "{}", up.stderr);
    assert_eq!(grounds().len(), 1);
}
