//! `up`: fresh, again, after each kind of change, with each way to fill a new database.

use super::{CUSTOMERS, Production, Project, docker_is_here, elsewhere};
use crate::harness::postgres::{query_text, run_sql};

/// What a project goes through whatever runs its server.
async fn fresh_then_again_then_changed(project: Project) {
    let fresh = project.run(&["up"]).succeeds();
    let stdout = &fresh.stdout;
    assert!(stdout.contains("schema version 2\n"), "{stdout}");
    assert!(stdout.contains("migrated  V2__purchases.sql ("), "{stdout}");
    assert!(stdout.contains("data      snapshot "), "{stdout}");
    for step in ["load ", "swap in `shop`", "apply grants"] {
        assert!(stdout.contains(step), "{step}: {stdout}");
        assert!(fresh.stderr.contains(step), "{step}: {}", fresh.stderr);
    }
    let count = project.text("select count(*) from shop.customer").await;
    assert_eq!(count, CUSTOMERS.to_string());
    let oid = "select oid from pg_database where datname = 'shop'";
    let (before, made) = (project.contents().await, project.text(oid).await);

    let again = project.run(&["up"]).succeeds();
    assert!(again.stdout.contains("migrated  nothing to do\n"), "{}", again.stdout);
    assert!(again.stdout.contains("data      snapshot "), "{}", again.stdout);
    for step in ["choose snapshot", "load", "swap in"] {
        assert!(!again.stderr.contains(step), "{}", again.stderr);
    }
    assert_eq!((project.contents().await, project.text(oid).await), (before, made.clone()));

    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let migrated = project.run(&["up"]).succeeds();
    assert!(migrated.stdout.contains("migrated  V3__notes.sql ("), "{}", migrated.stdout);
    assert_eq!(project.text(oid).await, made);

    let may = "select has_table_privilege('shop_reader', 'shop.note', 'insert')";
    assert_eq!(project.text(may).await, "f");
    project
        .sandbox
        .write("users/later.sql", "GRANT INSERT ON shop.note TO shop_reader;\nCREATE USER late;");
    project.run(&["up"]).succeeds();
    assert_eq!(project.text(may).await, "t");
    assert_eq!(project.text("select count(*) from pg_roles where rolname = 'late'").await, "1");

    project.sql("delete from shop.purchase; update shop.item set label = 'mine'").await;
    let fresh = project.run(&["up", "--fresh"]).succeeds();
    assert!(fresh.stdout.contains("V2__purchases.sql"), "{}", fresh.stdout);
    assert_ne!(project.text(oid).await, made);
    assert_eq!(project.text("select count(*) from shop.item where label = 'mine'").await, "0");
    assert_eq!(project.databases().await, ["live", "template"]);
}

#[tokio::test]
async fn up_on_native_builds_then_only_changes_what_changed() {
    fresh_then_again_then_changed(Project::native().with_snapshot().await).await;
}

#[tokio::test]
async fn up_on_docker_builds_then_only_changes_what_changed() {
    if docker_is_here() {
        let engine = "kind = \"docker\"\n";
        fresh_then_again_then_changed(Project::on_its_own(engine).with_snapshot().await).await;
    }
}

#[tokio::test]
async fn up_on_a_server_that_somebody_else_runs_builds_beside_what_is_there() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    let up = project.run(&["up", "--json"]).succeeds().json();
    assert_eq!(up["format"], 1);
    assert_eq!(up["engine"], "external");
    assert_eq!(up["schema_version"], "2");
    assert_eq!(up["origin"]["kind"], "snapshot");
    assert_eq!(up["migrated"][0]["script"], "V2__purchases.sql");
    assert!(up["steps"].as_array().is_some_and(|steps| steps.len() > 5), "{up}");
    assert!(!up.to_string().contains("word"), "a password is shown: {up}");
    let oid = format!("select oid from pg_database where datname = '{}'", project.database);
    let made = project.text(&oid).await;
    let again = project.run(&["up", "--json"]).succeeds().json();
    assert_eq!(again["migrated"], serde_json::json!([]));
    assert_eq!(project.text(&oid).await, made);
    // The owner and the reader are who they were made to be.
    let owner = format!(
        "select pg_get_userbyid(datdba) = '{}' from pg_database where datname = '{}'",
        project.owner, project.database
    );
    assert_eq!(project.text(&owner).await, "t");
    let url = project.run(&["url", "--user", &project.reader]).succeeds().stdout;
    assert!(url.contains(&format!("//{}:reader%20word@127.0.0.1:", project.reader)), "{url}");
}

#[tokio::test]
async fn up_leaves_a_database_that_it_did_not_make_as_it_is() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    let name = &project.database;
    run_sql(&project.admin(), &format!("create database {name}")).await;
    // Else what it has done is told when its session is gone, which may be after the first look.
    let table = "create table precious (n int); insert into precious values (1);
                 select pg_stat_force_next_flush()";
    project.sql(table).await;
    let writes =
        "select xact_commit >= 0, tup_inserted, tup_updated, tup_deleted from pg_stat_database
                  where datname = current_database()";
    let before = project.text(writes).await;
    for args in [
        &["up"] as &[&str],
        &["up", "--fresh", "--yes"],
        &["reset", "--yes"],
        &["seed", "--snapshot", "latest"],
    ] {
        let run = project.run(args).exits(12);
        assert_eq!(run.stdout, "");
        let said = format!(
            "error: database `{name}` was not made by seedbed, so it is left as it is\n  \
             hint: migrate it where it is with `seedbed migrate`\n  \
             hint: or rename it yourself: `alter database {name} rename to …`\n"
        );
        assert!(run.stderr.ends_with(&said), "{}", run.stderr);
    }
    assert_eq!(project.text("select * from precious").await, "1");
    assert_eq!(project.text(writes).await, before);
    assert_eq!(project.databases().await, ["live"]);
    let roles = format!("select count(*) from pg_roles where rolname like '{name}%'");
    assert_eq!(project.text(&roles).await, "0");
}

#[tokio::test]
async fn a_new_database_is_filled_with_what_seed_says() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    project
        .sandbox
        .write("seed/extra.sql", "insert into shop.customer (name) values ('from a file');\n");
    let snapshots = project.run(&["snapshot", "list", "--json"]).succeeds().json();
    let id = snapshots["result"][0]["id"].as_str().expect("it has one").to_owned();
    let customers = "select count(*) from shop.customer";
    for (seed, rows, kind) in [
        ("none", "0", "empty"),
        ("files", "1", "files"),
        ("latest", "300", "snapshot"),
        (id.as_str(), "300", "snapshot"),
        (&id[..6], "300", "snapshot"),
    ] {
        let up = project.run(&["up", "--fresh", "--seed", seed, "--json"]).succeeds().json();
        assert_eq!(up["origin"]["kind"], kind, "{seed}");
        assert_eq!(project.text(customers).await, rows, "{seed}");
        assert_eq!(up["schema_version"], "2", "{seed}");
    }
    let run = project.run(&["up", "--fresh", "--seed", "nonsense"]).exits(8);
    assert!(run.stderr.contains("no snapshot's id begins with `nonsense`"), "{}", run.stderr);
    assert_eq!(project.text(customers).await, "300");

    // On a database that is there `--seed` does nothing, and that is said.
    let run = project.run(&["up", "--seed", "none"]).succeeds();
    assert!(run.stderr.contains("is there already: `--seed` is for a new one"), "{}", run.stderr);
    assert_eq!(project.text(customers).await, "300");
}

#[tokio::test]
async fn without_a_fitting_snapshot_up_says_so_and_takes_the_seed_files() {
    let project = Project::external(elsewhere());
    project.sandbox.write("seed/a.sql", "insert into shop.customer (name) values ('from a file');");
    let up = project.run(&["up"]).succeeds();
    assert!(
        up.stderr.contains("no snapshot fits this checkout: there is none in"),
        "{}",
        up.stderr
    );
    assert!(up.stderr.contains("loading 1 seed file instead"), "{}", up.stderr);
    assert!(up.stdout.contains("data      seed files\n"), "{}", up.stdout);
    assert_eq!(project.text("select name from shop.customer").await, "from a file");

    let empty = Project::external(elsewhere());
    let up = empty.run(&["up"]).succeeds();
    assert!(up.stderr.contains("the database begins empty"), "{}", up.stderr);
    let latest = Project::external(elsewhere());
    let run = latest.run(&["up", "--seed", "latest"]).exits(8);
    assert!(
        run.stderr.contains("hint: make one: `seedbed snapshot create --env prod`"),
        "{}",
        run.stderr
    );
    assert_eq!(latest.databases().await, [""; 0]);
}

#[tokio::test]
async fn a_users_file_and_a_flyway_file_as_teams_write_them_work_unchanged() {
    let mut project = Project::native();
    let root = project.sandbox.project();
    for gone in ["conf/dev.toml", "conf/seedbed.toml", "users/accounts.sql"] {
        std::fs::remove_file(root.join(gone)).expect("it was written");
    }
    for gone in ["sql/V1__shop.sql", "sql/V2__purchases.sql", "sql/R__totals.sql"] {
        std::fs::remove_file(root.join(gone)).expect("it was written");
    }
    let port = crate::harness::postgres::free_port();
    project.sandbox.write(
        "conf/factory_dev.conf",
        format!(
            "flyway.url=jdbc:postgresql://localhost:{port}/dev_db\nflyway.user=postgres\nflyway.locations=filesystem:sql\n"
        ),
    );
    project.sandbox.write(
        "users/users.sql",
        "CREATE USER admin_user WITH PASSWORD 'fake_pass';
CREATE USER service1 WITH PASSWORD 'fake_pass';
GRANT ALL PRIVILEGES ON DATABASE \"test_db\" to admin_user;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA test_schema TO service1;
ALTER DEFAULT PRIVILEGES IN SCHEMA test_schema GRANT SELECT ON TABLES TO service1;
",
    );
    project.sandbox.write(
        "sql/V001__init.sql",
        "create schema test_schema;\ngrant usage on schema test_schema to service1;\ncreate table test_schema.t (n int);\n",
    );
    project.sandbox.set("SEEDBED_ENGINE_KIND", "native");
    project.database = "dev_db".to_owned();
    let up = project.run(&["up"]).succeeds();
    assert!(
        up.stderr.contains(
            "`users/users.sql` line 3: `test_db` is not this environment's database `dev_db`, so the \
             statement is skipped; write `${flyway:database}`"
        ),
        "{}",
        up.stderr
    );
    assert!(
        up.stdout.starts_with(&format!("postgresql://postgres@127.0.0.1:{port}/dev_db\n")),
        "{}",
        up.stdout
    );
    project.run(&["users", "check"]).succeeds();
    for (user, sql, answer) in [
        (
            "service1",
            "insert into test_schema.t values (1); select count(*) from test_schema.t",
            "1",
        ),
        ("admin_user", "select current_user", "admin_user"),
    ] {
        let args = ["psql", "--user", user, "--", "-AtqX", "-c", sql];
        let run = project.run(&args).succeeds();
        assert_eq!(run.stdout.trim(), answer, "{}", run.stderr);
    }
    let again = project.run(&["up"]).succeeds();
    assert!(again.stdout.contains("migrated  nothing to do\n"), "{}", again.stdout);
    // A new table of the next script is readable by the default privilege.
    project.sandbox.write("sql/V002__more.sql", "create table test_schema.u (n int);");
    project.run(&["up"]).succeeds();
    let args =
        ["psql", "--user", "service1", "--", "-AtqX", "-c", "select count(*) from test_schema.u"];
    assert_eq!(project.run(&args).succeeds().stdout.trim(), "0");
}

#[tokio::test]
async fn a_source_that_was_migrated_by_seedbed_is_only_read_by_up() {
    let dir = tempfile::tempdir().expect("the temporary folder can be written to");
    let store = format!("[store]\nurl = \"{}\"\n", dir.path().display());
    let production = Production::new(&store).await;
    // Its statistics are rows that are written, too.
    for table in ["shop.customer", "shop.item", "flyway_schema_history"] {
        production.sql(&format!("alter table {table} set (autovacuum_enabled = off)")).await;
    }
    production.run(&["snapshot", "create"]).succeeds();
    let writes = "select tup_inserted, tup_updated, tup_deleted from pg_stat_database
                  where datname = current_database()";
    let before = query_text(&production.target, writes).await;
    let project = Project::external(elsewhere());
    project.sandbox.write(
        "conf/seedbed.toml",
        format!(
            "{store}[flyway.placeholders]\nowner = \"{}\"\nreader = \"{}\"\n",
            project.owner, project.reader
        ),
    );
    project.run(&["up"]).succeeds();
    assert_eq!(project.text("select count(*) from shop.customer").await, "300");
    assert_eq!(query_text(&production.target, writes).await, before);
    production.drop_database().await;
}

#[tokio::test]
async fn text_sorts_in_the_copy_as_it_does_in_production() {
    let dir = tempfile::tempdir().expect("the temporary folder can be written to");
    let store = format!("[store]\nurl = \"{}\"\n", dir.path().display());
    let icu = "template template0 locale_provider icu icu_locale 'en-US' encoding 'UTF8'";
    let production = Production::made_with(&store, icu).await;
    production
        .sql(
            "create table shop.word (word text) partition by range (word);
             create table shop.word_early partition of shop.word for values from ('a') to ('N');
             create table shop.word_late partition of shop.word for values from ('N') to ('zz');
             insert into shop.word values ('apple'), ('Banana'), ('Zebra'), ('zoo'), ('ärger')",
        )
        .await;
    production.run(&["snapshot", "create"]).succeeds();
    let project = Project::external(elsewhere());
    project.sandbox.write(
        "conf/seedbed.toml",
        format!(
            "{store}[flyway.placeholders]\nowner = \"{}\"\nreader = \"{}\"\n",
            project.owner, project.reader
        ),
    );
    project.run(&["up"]).succeeds();
    let sorted = "select string_agg(word, ' ' order by word) from shop.word";
    assert_eq!(project.text(sorted).await, "apple ärger Banana Zebra zoo");
    assert_eq!(query_text(&production.target, sorted).await, "apple ärger Banana Zebra zoo");
    production.drop_database().await;
}
