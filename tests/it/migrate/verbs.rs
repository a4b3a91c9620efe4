//! Flyway's verbs by the built program: what the recorded scenarios leave open, what Flyway sells, and
//! what we do where we differ.

use super::site::{Site, made_by_us};
use crate::harness::{TestDatabase, server};

const A: (&str, &str) = ("V1__a.sql", "create table a (id int);\n");
const B: (&str, &str) = ("V2__b.sql", "create table b (id int);\n");

#[tokio::test]
async fn a_failure_outside_of_a_transaction_leaves_a_failed_row() {
    let site = Site::new(&[
        ("V1__bad.sql", "create table a (id int);\ninsert into nope values (1);\n"),
        ("V1__bad.sql.conf", "executeInTransaction=false\n"),
        B,
    ])
    .await;
    let run = site.run(&["--quiet", "migrate"]).exits(6);
    assert_eq!(
        run.stderr,
        "error: run `sql/V1__bad.sql`, line 2, column 13: relation \"nope\" does not exist (SQLSTATE 42P01)\n  \
         2 | insert into nope values (1);\n    |             ^\n\
         it ran without a transaction: the statement before this stays; the history has a row of it \
         marked as failed\n  \
         hint: remove what the script left, then run `seedbed repair`\n"
    );
    assert_eq!(site.history().await, ["1|1|SQL|V1__bad.sql|f"]);
    assert_eq!(site.states(&[]), ["1 bad Failed", "2 b Pending"]);
    let error = site.run(&["--json", "--quiet", "migrate"]).exits(7).json();
    assert_eq!(error["error"]["errorCode"], "VALIDATE_ERROR");
    site.database.run("drop table a").await;
    site.sql("V1__bad.sql", "create table a (id int);\n");
    let repaired = site.json(&["repair"]);
    assert_eq!(repaired["repairActions"][0], "Removed failed migrations");
    site.run(&["migrate"]).succeeds();
    assert_eq!(site.states(&[]), ["1 bad Success", "2 b Success"]);
}

#[tokio::test]
async fn the_json_of_a_failure_tells_what_was_applied_before_it() {
    let site = Site::new(&[A, ("V2__bad.sql", "select 1;\nselect nope;\n")]).await;
    let failed = site.run(&["--json", "--quiet", "migrate"]).exits(6).json();
    assert_eq!((&failed["format"], &failed["success"]), (&1.into(), &false.into()));
    assert_eq!(failed["migrationsExecuted"], 1);
    assert_eq!(failed["migrations"][0]["version"], "1");
    assert_eq!(failed["initialSchemaVersion"], serde_json::Value::Null);
    assert_eq!(failed["targetSchemaVersion"], "1");
    let error = &failed["error"];
    assert_eq!((&error["kind"], &error["sqlState"]), (&"script".into(), &"42703".into()));
    assert_eq!((&error["sqlErrorCode"], &error["lineNumber"]), (&0.into(), &2.into()));
    // Nothing was tried: nothing but the error.
    site.sql("V2__bad.sql", "select '");
    let failed = site.run(&["--json", "--quiet", "migrate"]).exits(6).json();
    assert_eq!(failed["success"], false);
    assert_eq!(failed["migrationsExecuted"], 0);
}

#[tokio::test]
async fn a_program_that_fails_leaves_a_failed_row_and_says_what_it_said() {
    let site = Site::new(&[("V1__a.sh", "echo \"no $FP__who__ here\" >&2; exit 3\n")]).await;
    let run = site.run(&["--quiet", "migrate", "--placeholders", "who=driver"]).exits(6);
    assert!(
        run.stderr.contains("run `sql/V1__a.sh`: ended with exit status: 3: no driver here"),
        "{}",
        run.stderr
    );
    assert_eq!(site.history().await, ["1|1|SCRIPT|V1__a.sh|f"]);
}

#[tokio::test]
async fn migrations_in_java_count_as_satisfied() {
    let site = Site::new(&[A]).await;
    site.run(&["migrate"]).succeeds();
    let row = "insert into flyway_schema_history values
        (2, '1.5', 'fill', 'JDBC', 'db.migration.V1_5__fill', null, 'postgres', now(), 5, true)";
    site.database.run(row).await;
    site.sql(B.0, B.1);
    site.run(&["migrate"]).succeeds();
    assert!(site.has("b").await);
    site.run(&["validate"]).succeeds();
    assert_eq!(site.states(&[]), ["1 a Success", "1.5 fill Missing", "2 b Success"]);
    let failed = "update flyway_schema_history set success = false where version = '1.5'";
    site.database.run(failed).await;
    site.run(&["validate"]).exits(7);
}

#[tokio::test]
async fn rows_of_the_paid_undo_are_read() {
    let site = Site::new(&[A, B]).await;
    site.run(&["migrate"]).succeeds();
    let row = "insert into flyway_schema_history values
        (3, '2', 'b', 'UNDO_SQL', 'U2__b.sql', 123, 'postgres', now(), 5, true); drop table b";
    site.database.run(row).await;
    assert_eq!(site.states(&[]), ["1 a Success", "2 b Undone", "2 b Success", "2 b Pending"]);
    site.run(&["migrate"]).succeeds();
    assert!(site.has("b").await);
}

#[tokio::test]
async fn undo_goes_back_by_delete_rows_that_every_flyway_reads() {
    let site = Site::new(&[
        A,
        B,
        ("V3__c.sql", "create table c (id int);\n"),
        ("U1__a.sql", "drop table a;\n"),
        ("U2__b.sql", "drop table b;\n"),
        ("U3__c.sql", "drop table c;\n"),
    ])
    .await;
    site.run(&["migrate"]).succeeds();
    let undone = site.json(&["undo"]);
    assert_eq!(undone["undoneMigrations"][0]["version"], "3");
    assert_eq!(
        (&undone["initialSchemaVersion"], &undone["targetSchemaVersion"]),
        (&"3".into(), &"2".into())
    );
    assert!(!site.has("c").await && site.has("b").await);
    assert_eq!(site.history().await.last().map(String::as_str), Some("4|3|DELETE|V3__c.sql|t"));
    let states = site.states(&["--of-state", "pending,deleted"]);
    assert_eq!(states, ["3 c Deleted", "3 c Pending"]);
    site.run(&["migrate"]).succeeds();
    site.run(&["validate"]).succeeds();
    // Down to and with version 2, in one transaction.
    site.json(&["undo", "--target", "2", "--group"]);
    assert!(site.has("a").await && !site.has("b").await && !site.has("c").await);
    assert_eq!(site.states(&["--of-state", "success"]), ["1 a Success"]);
}

#[tokio::test]
async fn undo_takes_back_what_was_applied_last() {
    let site = Site::new(&[
        A,
        ("V3__c.sql", "create table c (id int);\n"),
        ("U1__a.sql", "drop table a;\n"),
        ("U2__b.sql", "drop table b;\n"),
        ("U3__c.sql", "drop table c;\n"),
    ])
    .await;
    site.run(&["migrate"]).succeeds();
    site.sql(B.0, B.1);
    site.run(&["migrate", "--out-of-order"]).succeeds();
    // Version 2 came last and is below the target.
    let run = site.run(&["undo", "--target", "3"]).succeeds();
    assert!(run.stdout.starts_with("nothing to undo: "), "{}", run.stdout);
    let plan = site.run(&["undo", "--dry-run"]).succeeds();
    assert_eq!(plan.stdout, "run U2__b.sql\n");
    site.run(&["undo"]).succeeds();
    assert!(site.has("c").await && !site.has("b").await);
    let run = site.run(&["undo", "--target", "99"]).succeeds();
    assert_eq!(
        run.stdout,
        "nothing to undo: what was applied last is not what was asked for; schema version 3\n"
    );
    site.run(&["undo", "--target", "1"]).succeeds();
    assert!(!site.has("c").await && !site.has("a").await);
    let run = site.run(&["undo"]).succeeds();
    assert_eq!(run.stdout, "no version is applied, nothing to undo\n");
}

#[tokio::test]
async fn an_undo_that_fails_leaves_its_version_applied() {
    let site = Site::new(&[A, ("U1__a.sql", "drop table a;\nselect nope;\n")]).await;
    site.run(&["migrate"]).succeeds();
    let run = site.run(&["undo"]).exits(6);
    assert!(
        run.stderr.contains("hint: correct the script and run `seedbed undo` again"),
        "{}",
        run.stderr
    );
    assert!(site.has("a").await);
    assert_eq!(site.history().await, ["1|1|SQL|V1__a.sql|t"]);
    site.remove("U1__a.sql");
    let run = site.run(&["undo"]).exits(7);
    assert!(run.stderr.contains("version 1 (`V1__a.sql`) has no undo script"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: write `U1__….sql` beside the script"), "{}", run.stderr);
    let run = site.run(&["undo", "--undo-sql-migration-prefix=RB"]).exits(7);
    assert!(run.stderr.contains("hint: write `RB1__….sql` beside the script"), "{}", run.stderr);
}

#[tokio::test]
async fn rollback_files_of_a_teams_own_lie_beside_the_migrations() {
    let site = Site::new(&[]).await;
    let write = |path: &str, text: &str| site.sandbox.write(path, text);
    write("db/Migrations/V201709190907__Fixing.sql", "create table fixed (id int);\n");
    write("db/Migrations/V201709200000__More.sql", "create table more (id int);\n");
    // It deletes its own row, as rollback files for the open edition do.
    write(
        "db/Rollbacks/RB201709200000__More.sql",
        "drop table more;\ndelete from flyway_schema_history where version = '201709200000';\n",
    );
    write("db/Rollbacks/RB201709190907__Fixing.sql", "drop table fixed;\n");
    write("db/Rollbacks/V9__no_migration.sql", "select nope;\n");
    let places = ["--locations=db/Migrations", "--undo-prefix=RB", "--undo-locations=db/Rollbacks"];
    let run = |args: &[&str]| site.run(&[args, &places].concat()).succeeds();
    run(&["migrate"]);
    run(&["undo"]);
    assert_eq!(site.history().await, ["1|201709190907|SQL|V201709190907__Fixing.sql|t"]);
    run(&["undo"]);
    assert!(!site.has("fixed").await && !site.has("more").await);
    run(&["migrate"]);
    assert!(site.has("fixed").await && site.has("more").await);
}

#[tokio::test]
async fn cherry_pick_runs_what_is_named_in_the_order_of_naming() {
    let site = Site::new(&[A, B, ("V3__c.sql", "select 1;"), ("R__a_view.sql", "select 2;")]).await;
    let ran = site.json(&["migrate", "--cherry-pick=3,a_view,1"]);
    let names: Vec<&str> = ran["migrations"]
        .as_array()
        .expect("is a list")
        .iter()
        .filter_map(|row| row["description"].as_str())
        .collect();
    assert_eq!(names, ["c", "a view", "a"]);
    let run = site.run(&["migrate", "--cherry-pick=9", "--out-of-order"]).exits(2);
    assert!(run.stderr.contains("there is no script `9` to pick"), "{}", run.stderr);
}

#[tokio::test]
async fn a_script_that_is_turned_off_does_not_run() {
    let site = Site::new(&[A, ("V1__a.sql.conf", "shouldExecute=false\n"), B]).await;
    site.run(&["migrate"]).succeeds();
    assert!(!site.has("a").await && site.has("b").await);
    assert_eq!(site.states(&[]), ["2 b Success", "1 a Ignored"]);
    site.run(&["validate"]).succeeds();
}

/// Has psql run a text on a database, in a session that nobody prepared.
#[track_caller]
fn run_by_psql(site: &Site, database: &TestDatabase, text: &str) {
    site.sandbox.write("plan.sql", text);
    let psql = server().bin_dir.join("psql");
    let mut psql = site.sandbox.other_command(psql.to_str().expect("is UTF-8"));
    let password = database.target.url_with_password();
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "plan.sql", &password]);
    let output = psql.output().expect("psql lies beside initdb");
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_dry_run_puts_unqualified_names_where_the_migration_does() {
    let tables = "select relnamespace::regnamespace || '.' || relname from pg_class
        where relkind = 'r' and relnamespace::regnamespace::text !~ '^pg_|^information_schema' order by 1";
    for (schemas, settings) in [
        ("shop", ""),
        ("shop,public", ""),
        // Not first: it is put there before each script.
        ("my-schema,order", "flyway.defaultSchema=shop\n"),
        // What the session came with, not the URL.
        ("public", "flyway.initSql=set search_path to shop, public\n"),
        // One empty name.
        ("public", "flyway.initSql=set search_path to ''\nflyway.defaultSchema=shop\n"),
    ] {
        let site = Site::new(&[
            ("V1__a.sql", "create table a (id int);"),
            ("V2__b.sql", "set search_path to public; create table b (id int);"),
            ("V3__c.sql", "create table c (id int);"),
        ])
        .await;
        site.database.run("create schema shop").await;
        let conf = super::flyway_conf(&site.database);
        let conf = conf.replace("\nflyway.user", &format!("?currentSchema={schemas}\nflyway.user"));
        site.sandbox.write("flyway.conf", conf + settings);
        let shown = site.run(&["--quiet", "migrate", "--dry-run"]).succeeds().stdout;
        let other = server().create_database().await;
        other.run("create schema shop").await;
        run_by_psql(&site, &other, &shown);
        site.run(&["migrate"]).succeeds();
        let made = site.database.text(tables).await;
        assert!(made.contains("shop.a") && made.contains("public.b"), "{schemas}: {made}");
        assert_eq!(other.text(tables).await, made, "{schemas}\n{shown}");
    }
}

#[tokio::test]
async fn a_dry_run_prints_what_would_run_and_changes_nothing() {
    let site = Site::new(&[A, ("V2__v.sql", "vacuum a")]).await;
    let shown = site.run(&["--quiet", "migrate", "--dry-run"]).succeeds().stdout;
    assert!(!site.has("flyway_schema_history").await);
    // What is printed does the same when psql runs it.
    run_by_psql(&site, &site.database, &shown);
    assert_eq!(site.states(&[]), ["1 a Success", "2 v Success"]);
    site.run(&["validate"]).succeeds();
    // Flyway's key for it never migrates either.
    site.sql("V3__c.sql", "create table c (id int)");
    site.run(&["migrate", "--dry-run-output=out.sql"]).succeeds();
    assert!(site.sandbox.read("out.sql").contains("create table c (id int)\n;\n"));
    assert!(!site.has("c").await);
}

#[tokio::test]
async fn clean_is_disabled_unless_the_environment_enables_it() {
    let site = Site::new(&[A]).await;
    site.run(&["migrate"]).succeeds();
    let run = site.run(&["clean"]).exits(12);
    assert!(run.stderr.contains("`clean` is disabled here"), "{}", run.stderr);
    assert!(site.has("a").await);
    site.sandbox.write("conf/seedbed.toml", "protected = true\n");
    site.run(&["clean", "--clean-disabled=false"]).exits(12);
    assert!(site.has("a").await);
    site.sandbox.write("conf/seedbed.toml", "");
    // Somebody's own database is not ours to empty, whatever the setting.
    let run = site.run(&["clean", "--clean-disabled=false"]).exits(12);
    assert!(run.stderr.contains("was not made by seedbed"), "{}", run.stderr);
    assert!(site.has("a").await);
    made_by_us(&site.database).await;
    site.run(&["clean", "--clean-disabled=false"]).succeeds();
    assert!(!site.has("a").await && !site.has("flyway_schema_history").await);
}

#[tokio::test]
async fn clean_drops_the_schemas_that_migrate_made() {
    let site =
        Site::new(&[("V1__a.sql", "create table a (id int); create table public.stays (id int);")])
            .await;
    site.run(&["migrate", "--schemas=app,other"]).succeeds();
    made_by_us(&site.database).await;
    let done = site.json(&["clean", "--schemas=app,other", "--clean-disabled=false"]);
    assert_eq!(done["schemasDropped"], serde_json::json!(["app", "other"]));
    assert!(site.has("stays").await);
    let left = "select count(*) from pg_namespace where nspname in ('app', 'other')";
    assert_eq!(site.database.text(left).await, "0");
}

#[tokio::test]
async fn the_history_of_flyway_4_and_3_is_taken_over_when_asked() {
    let columns =
        "installed_rank int not null, version varchar(50), description varchar(200) not null,
        type varchar(20) not null, script varchar(1000) not null, checksum integer,
        installed_by varchar(100) not null, installed_on timestamp not null default now(),
        execution_time integer not null, success boolean not null";
    let flyway_4 = format!(
        "create table schema_version ({columns}, constraint schema_version_pk primary key (installed_rank));
         create index schema_version_s_idx on schema_version (success);
         insert into schema_version values (1, '1', 'a', 'SQL', 'V1__a.sql', null, 'postgres', now(), 1, true)"
    );
    let flyway_3 = format!(
        "create table schema_version (version_rank int not null, {columns});
         alter table schema_version add constraint schema_version_pk primary key (version);
         create index schema_version_vr_idx on schema_version (version_rank);
         create index schema_version_ir_idx on schema_version (installed_rank);
         create index schema_version_s_idx on schema_version (success);
         insert into schema_version values
            (1, 1, '1', 'a', 'SQL', 'V1__a.sql', -897341557, 'postgres', now(), 1, true)"
    );
    for table in [flyway_4, flyway_3] {
        let site = Site::new(&[A, B]).await;
        site.database.run(&table).await;
        let run = site.run(&["migrate"]).exits(7);
        assert!(run.stderr.contains("seedbed repair --upgrade-history"), "{}", run.stderr);
        let plan = site.run(&["repair", "--upgrade-history", "--dry-run"]).succeeds();
        assert_eq!(plan.stdout, "take over the table \"public\".\"schema_version\"\n");
        assert!(!site.has("flyway_schema_history").await);
        site.run(&["repair", "--upgrade-history"]).succeeds();
        let history = site.history().await;
        assert_eq!(history, ["1|1|SQL|V1__a.sql|t"]);
        site.run(&["migrate"]).succeeds();
        site.run(&["validate"]).succeeds();
        let indexes = "select string_agg(indexname, ',' order by indexname) from pg_indexes
            where tablename = 'flyway_schema_history'";
        assert_eq!(
            site.database.text(indexes).await,
            "flyway_schema_history_pk,flyway_schema_history_s_idx"
        );
        let columns = "select count(*) from information_schema.columns
            where table_name = 'flyway_schema_history'";
        assert_eq!(site.database.text(columns).await, "10");
    }
}

#[tokio::test]
async fn a_table_of_a_foreign_shape_is_named() {
    let site = Site::new(&[A]).await;
    site.database.run("create table flyway_schema_history (id int, version text)").await;
    let run = site.run(&["--quiet", "migrate"]).exits(7);
    assert_eq!(
        run.stderr,
        "error: \"public\".\"flyway_schema_history\" is no migration history: it has no column \
         `installed_rank`, `description`, `type`, `script`, `checksum`, `installed_by`, `installed_on`, \
         `execution_time`, `success`\n  \
         hint: keep the history in another table: `flyway.table=NAME`\n"
    );
}

#[tokio::test]
async fn info_shows_what_its_filters_ask_for() {
    let site = Site::new(&[A, B, ("R__v.sql", "select 1;")]).await;
    site.run(&["migrate", "--target=1"]).succeeds();
    assert_eq!(site.states(&["--since-version=2"]), ["2 b Pending"]);
    assert_eq!(site.states(&["--until-version=1"]), ["1 a Success"]);
    assert_eq!(site.states(&["--of-state=Pending"]), ["2 b Pending"]);
    assert_eq!(site.states(&["--since-date=2100-01-01"]), Vec::<String>::new());
    assert_eq!(site.states(&["--until-date=31/12/2099 23:59"]), ["1 a Success", " v Success"]);
    assert_eq!(site.run(&["info", "--migration-ids"]).succeeds().stdout, "1,v,2\n");
    let run = site.run(&["info", "--of-state=odd"]).exits(3);
    assert!(run.stderr.contains("`odd` is no state"), "{}", run.stderr);
}

#[tokio::test]
async fn repair_says_what_it_would_do() {
    let site = Site::new(&[A, B]).await;
    site.run(&["migrate"]).succeeds();
    site.sql("V1__a.sql", "create table a (id bigint);\n");
    site.remove("V2__b.sql");
    let plan = site.run(&["repair", "--dry-run", "--ignore-migration-patterns="]).succeeds();
    assert_eq!(
        plan.stdout,
        "mark as deleted: version 2 (b)\ntake over the file of version 1 (a)\n"
    );
    site.run(&["validate"]).exits(7);
    site.run(&["repair"]).succeeds();
    // Future rows stay, as the pattern `*:future` says.
    site.run(&["validate"]).succeeds();
    assert_eq!(site.states(&[]), ["1 a Success", "2 b Future"]);
}

#[tokio::test]
async fn a_folder_with_only_flyways_files_works_as_it_is() {
    let site = Site::new(&[A]).await;
    let run = site.run(&["migrate"]).succeeds();
    assert!(run.stdout.contains("schema version none → 1, 1 script"), "{}", run.stdout);
    assert!(!site.sandbox.project().join(".seedbed").exists(), "nothing is left in the folder");
}
