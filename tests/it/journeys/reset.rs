//! `reset`: clean again, quickly, and the old database where the new one cannot be built.

use seedbed::pg::Session;

use super::{Project, elsewhere, files_below};
use crate::harness::postgres::run_sql;

async fn ready() -> Project {
    let project = Project::external(elsewhere()).with_snapshot().await;
    project.run(&["up"]).succeeds();
    project
}

/// What somebody did while testing.
async fn use_it(project: &Project) {
    project
        .sql(
            "delete from shop.purchase; update shop.item set cents = 1; create table shop.left_over ();
             insert into shop.customer (name) values ('me')",
        )
        .await;
}

#[tokio::test]
async fn reset_gives_clean_data_and_ends_the_sessions_of_others() {
    let project = ready().await;
    let clean = project.contents().await;
    use_it(&project).await;
    assert_ne!(project.contents().await, clean);

    let other = Session::connect(&project.live()).await.expect("the database is there");
    let reset = project.run(&["reset"]).succeeds();
    assert!(
        reset.stderr.contains(&format!("ended 1 session on `{}`", project.database)),
        "{}",
        reset.stderr
    );
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert!(!reset.stderr.contains("load "), "{}", reset.stderr);
    assert!(other.batch("select 1").await.is_err(), "the session goes on in a retired database");
    assert_eq!(project.contents().await, clean);
    assert_eq!(project.databases().await, ["live", "template"]);

    // What a clone copies no file of: who owns it, who may connect, what was granted.
    project.run(&["users", "check"]).succeeds();
    let args =
        ["psql", "--user", &project.reader, "--", "-AtqX", "-c", "select count(*) from shop.item"];
    assert_eq!(project.run(&args).succeeds().stdout.trim(), "5000");
}

/// What an interrupted `drop database` leaves can be dropped, and altered in no way.
#[tokio::test]
async fn a_scratch_database_whose_removal_was_cut_off_is_removed_by_the_next_run() {
    let project = ready().await;
    let admin = project.admin();
    let name = format!("{}__scratch_0badcafe", project.database);
    run_sql(&admin, &format!("create database {name}")).await;
    let marker = format!(
        r#"seedbed {{"format":1,"kind":"scratch","database":"{}","made_at":"2026-01-01T00:00:00Z"}}"#,
        project.database
    );
    run_sql(&admin, &format!("comment on database {name} is '{marker}'")).await;
    let sql = format!("update pg_database set datconnlimit = -2 where datname = '{name}'");
    run_sql(&admin, &sql).await;
    let up = project.run(&["up"]).succeeds();
    let said = format!("removed `{name}`, left over from a run that was cut off");
    assert!(up.stderr.contains(&said), "{}", up.stderr);
    assert_eq!(project.databases().await, ["live", "template"]);
}

#[tokio::test]
async fn reset_builds_anew_after_whatever_decides_about_the_result_has_changed() {
    let project = ready().await;
    for (path, text) in [
        ("sql/V3__notes.sql", "create table shop.note (body text);"),
        ("users/later.sql", "GRANT INSERT ON shop.item TO ${reader};"),
        ("sql/afterMigrate.sql", "insert into shop.note select 'made ready';"),
        ("sql/V3__notes.sql.conf", "executeInTransaction=false"),
    ] {
        project.sandbox.write(path, text);
        let reset = project.run(&["reset"]).succeeds();
        assert!(!reset.stderr.contains("clone the frozen template"), "{path}: {}", reset.stderr);
        let reset = project.run(&["reset"]).succeeds();
        assert!(reset.stderr.contains("clone the frozen template"), "{path}: {}", reset.stderr);
    }
    assert_eq!(project.databases().await, ["live", "template"]);
    let granted =
        format!("select has_table_privilege('{}', 'shop.item', 'insert')", project.reader);
    assert_eq!(project.text(&granted).await, "t");
    assert_eq!(project.text("select count(*) from shop.note").await, "1");
    for changed in [
        &["--set", "flyway.placeholders.other=changed"],
        &["--set", "flyway.initSql=select 1"],
        &["--set", "restore.ignore_extensions=nothing"],
    ] {
        let reset: Vec<&str> = [&["reset"] as &[&str], changed].concat();
        let run = project.run(&reset).succeeds();
        assert!(!run.stderr.contains("clone the frozen template"), "{changed:?}: {}", run.stderr);
        let run = project.run(&reset).succeeds();
        assert!(run.stderr.contains("clone the frozen template"), "{changed:?}: {}", run.stderr);
    }
}

#[tokio::test]
async fn reset_never_gives_less_than_a_snapshot_without_being_told() {
    let project = ready().await;
    use_it(&project).await;
    let mine = project.contents().await;
    let script = "sql/V1__shop.sql";
    let first = project.sandbox.read(script);
    project.sandbox.write(script, format!("{first}\n-- another one"));
    let run = project.run(&["reset"]).exits(8);
    assert!(run.stderr.contains("the database came from snapshot "), "{}", run.stderr);
    assert!(run.stderr.contains("and no snapshot fits this checkout"), "{}", run.stderr);
    assert!(run.stderr.contains("`--seed files` or `--seed none`"), "{}", run.stderr);
    assert_eq!(project.contents().await, mine);
    project.run(&["reset", "--seed", "none"]).succeeds();
    // What was empty may be so again, and it is said.
    let run = project.run(&["reset", "--json"]).succeeds();
    let warnings = run.json()["warnings"].to_string();
    assert!(warnings.contains("no snapshot fits this checkout"), "{warnings}");
}

#[tokio::test]
async fn reset_keeps_the_old_database_when_a_migration_is_broken() {
    let project = ready().await;
    use_it(&project).await;
    let mine = project.contents().await;
    project.sandbox.write("sql/V3__broken.sql", "create table shop.note ();\nselect 1 +;\n");
    let run = project.run(&["reset"]).exits(6);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.contains("sql/V3__broken.sql`, line 2, column 11"), "{}", run.stderr);
    assert_eq!(project.contents().await, mine);
    assert_eq!(project.databases().await, ["live", "template"]);

    std::fs::remove_file(project.sandbox.project().join("sql/V3__broken.sql"))
        .expect("it is there");
    project.run(&["reset"]).succeeds();
    assert_eq!(project.text("select count(*) from shop.customer where name = 'me'").await, "0");
}

#[tokio::test]
async fn reset_keeps_the_old_database_when_a_chunk_is_damaged() {
    let project = ready().await;
    use_it(&project).await;
    let mine = project.contents().await;
    // Another grant, so that no template fits; no cache, so that the store is read.
    project.sandbox.write("users/later.sql", "GRANT INSERT ON shop.item TO ${reader};");
    std::fs::remove_dir_all(project.sandbox.cache()).expect("it was made");
    let chunks = files_below(&project.sandbox.project().join("seed/snapshots/chunks"));
    for chunk in &chunks {
        let mut bytes = std::fs::read(chunk).expect("it is there");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(chunk, bytes).expect("it is ours");
    }
    for args in [&["reset"] as &[&str], &["reset", "--skip-damaged"]] {
        let run = project.run(args).exits(10);
        assert!(run.stderr.contains("is damaged: `chunks/"), "{}", run.stderr);
        assert!(
            run.stderr.contains(
                "hint: no older one fits; make one: `seedbed snapshot create --env prod`"
            ),
            "{}",
            run.stderr
        );
        assert_eq!(project.contents().await, mine);
        assert_eq!(project.databases().await, ["live", "template"]);
    }
    // A chunk that is not there is damage as well.
    std::fs::remove_dir_all(project.sandbox.project().join("seed/snapshots/chunks"))
        .expect("it is ours");
    let run = project.run(&["reset"]).exits(10);
    assert!(run.stderr.contains("it is not in the store"), "{}", run.stderr);
    assert_eq!(project.contents().await, mine);
}

#[tokio::test]
async fn f35_a_session_on_the_template_does_not_stop_a_reset() {
    let project = ready().await;
    let clean = project.contents().await;
    let sql = format!(
        "select datname from pg_database where datname like '{}\\_\\_template%'",
        project.database
    );
    let template = crate::harness::postgres::query_text(&project.admin(), &sql).await;
    run_sql(&project.admin(), &format!("alter database {template} allow_connections true")).await;
    let other =
        Session::connect(&project.admin().with_database(&template)).await.expect("it was opened");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
    assert!(other.batch("select 1").await.is_err(), "the template has a guest");
}

#[tokio::test]
async fn f35_a_prepared_transaction_in_the_database_is_named_before_any_work() {
    let project = ready().await;
    let session = Session::connect(&project.live()).await.expect("the database is there");
    session
        .batch("begin; insert into shop.customer (name) values ('later'); prepare transaction 'pending'")
        .await
        .expect("the server allows prepared transactions");
    let run = project.run(&["reset"]).exits(5);
    let said = format!(
        "error: database `{}` cannot be replaced: it still has 1 prepared transaction\n  \
         hint: end it with `rollback prepared 'pending'`\n",
        project.database
    );
    assert!(run.stderr.ends_with(&said), "{}", run.stderr);
    assert!(!run.stderr.contains("clone"), "{}", run.stderr);
    session.batch("select 1").await.expect("sessions were not ended for nothing");
    session.batch("rollback prepared 'pending'").await.expect("it is there");
    session.close().await;
    project.run(&["reset"]).succeeds();
}

#[tokio::test]
async fn f35_a_subscription_goes_with_the_database_that_held_it() {
    let project = ready().await;
    let name = crate::harness::unique("subscription");
    project
        .sql(&format!(
            "create subscription {name} connection 'host=127.0.0.1 port=1 dbname=none' publication p with (connect = false)"
        ))
        .await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(!reset.stderr.contains("warning"), "{}", reset.stderr);
    assert_eq!(project.databases().await, ["live", "template"]);
    let left = format!("select count(*) from pg_subscription where subname = '{name}'");
    assert_eq!(project.text(&left).await, "0");
}

#[tokio::test]
async fn other_settings_of_the_sessions_that_run_the_scripts_mean_another_build() {
    let mut project = ready().await;
    let script = "create table shop.path as select current_setting('search_path') as path;";
    project.sandbox.write("sql/V3__path.sql", script);
    for (schemas, built) in [("public", true), ("public", false), ("public,shop", true)] {
        project.sandbox.set("FLYWAY_JDBC_PROPERTIES_currentSchema", schemas);
        let reset = project.run(&["reset"]).succeeds();
        assert_eq!(reset.stderr.contains("V3__path.sql"), built, "{schemas}: {}", reset.stderr);
        assert_eq!(project.text("select path from shop.path").await, schemas);
    }
}

#[tokio::test]
async fn reset_fills_with_what_seed_says() {
    let project = ready().await;
    project.run(&["reset", "--seed", "none"]).succeeds();
    assert_eq!(project.text("select count(*) from shop.customer").await, "0");
    project.run(&["reset", "--seed", "latest"]).succeeds();
    assert_eq!(project.text("select count(*) from shop.customer").await, "300");
}
