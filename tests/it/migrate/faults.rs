//! Faults of a migration: killed, cut off, blocked, twice at once, many files.

use std::process::Child;
use std::time::Duration;

use seedbed::pg::Session;

use super::site::Site;
use crate::harness::Run;

pub const WAIT: &str = "lock table gate in share mode;\n";

/// A site with a table that `holder` keeps locked, so that a script can be stopped in its middle.
pub async fn gated(files: &[(&str, &str)]) -> (Site, Session) {
    let site = Site::new(files).await;
    site.database.run("create table gate (id int)").await;
    let holder = Session::connect(&site.database.target).await.expect("connects");
    holder.batch("begin; lock table gate in access exclusive mode").await.expect("locks");
    (site, holder)
}

const ALL: [&str; 3] = ["migrate", "--baseline-on-migrate", "--baseline-version=0"];

impl Site {
    pub fn start(&self, args: &[&str]) -> Child {
        self.sandbox.command(&[&ALL[..], args].concat()).spawn().expect("was built")
    }

    pub fn end(&self, child: Child) -> Run {
        self.sandbox.ended(&ALL, child.wait_with_output().expect("ends"))
    }

    /// Waits until somebody waits for a lock; asks the server itself to wait in between.
    pub async fn until_blocked(&self) {
        let sql = "select count(*) from pg_locks l where not granted and l.database =
            (select oid from pg_database where datname = current_database()), pg_sleep(0.02)";
        let waits = async {
            let sql = sql.replace(", pg_sleep(0.02)", "");
            while self.database.text(&format!("select pg_sleep(0.02); {sql}")).await.ends_with('0')
            {
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waits).await.expect("is blocked in time");
    }

    /// Waits until no other session is on the database.
    async fn until_alone(&self, others: usize) {
        let sql = "select pg_sleep(0.02); select count(*) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid()";
        let alone = async {
            while self.database.text(sql).await.lines().last() != Some(&others.to_string()) {}
        };
        tokio::time::timeout(Duration::from_secs(60), alone).await.expect("ends in time");
    }
}

#[tokio::test]
async fn killed_in_a_transaction_nothing_is_left_and_the_next_run_goes_on() {
    let (site, holder) = gated(&[
        ("V1__a.sql", "create table a (id int);"),
        ("V2__b.sql", &format!("create table b (id int);\n{WAIT}create table c (id int);")),
    ])
    .await;
    let mut child = site.start(&["--lock-timeout-ms=0"]);
    site.until_blocked().await;
    child.kill().expect("kills");
    child.wait().expect("is dead");
    holder.batch("rollback").await.expect("gives the lock back");
    site.until_alone(1).await;
    // What the server had been sent already may be committed, with its row; never without.
    let rows = "select count(*) from flyway_schema_history where version = '2'";
    let applied = site.database.text(rows).await;
    assert_eq!(site.has("b").await, applied == "1");
    assert_eq!(site.has("c").await, applied == "1");
    site.run(&["migrate"]).succeeds();
    assert_eq!(site.database.text(rows).await, "1");
    site.run(&["validate"]).succeeds();
}

#[tokio::test]
async fn killed_outside_of_a_transaction_the_row_says_that_it_failed() {
    let (site, holder) = gated(&[
        (
            "V1__a.sql",
            &format!("create table a (id int);\nbegin;\n{WAIT}commit;\ncreate table b (id int);"),
        ),
        ("V1__a.sql.conf", "executeInTransaction=false\n"),
    ])
    .await;
    let mut child = site.start(&[]);
    site.until_blocked().await;
    child.kill().expect("kills");
    child.wait().expect("is dead");
    holder.batch("rollback").await.expect("gives the lock back");
    site.until_alone(1).await;
    assert!(site.has("a").await && !site.has("b").await);
    let row = "select version, success from flyway_schema_history where version = '1'";
    assert_eq!(site.database.text(row).await, "1|f");
    site.run(&["migrate"]).exits(7);
    site.run(&["repair"]).succeeds();
    site.database.run("drop table a").await;
    site.run(&["migrate"]).succeeds();
    assert!(site.has("b").await);
}

#[tokio::test]
async fn a_session_that_the_server_ends_is_told_with_the_state_of_the_database() {
    let site = Site::new(&[
        ("V1__a.sql", "create table a (id int);"),
        ("V2__b.sql", "create table b (id int); select pg_terminate_backend(pg_backend_pid());"),
    ])
    .await;
    let run = site.run(&["--quiet", "migrate"]).exits(6);
    assert!(
        run.stderr.contains("terminating connection due to administrator command"),
        "{}",
        run.stderr
    );
    assert!(site.has("a").await && !site.has("b").await);
    assert_eq!(site.history().await, ["1|1|SQL|V1__a.sql|t"]);
    site.sql("V2__b.sql", "create table b (id int);");
    site.run(&["migrate"]).succeeds();
}

#[tokio::test]
async fn a_migration_that_waits_for_a_table_steps_back_and_lets_others_pass() {
    let site =
        Site::new(&[("V1__a.sql", "create table a (id int); create table gate (id int);")]).await;
    site.run(&["migrate"]).succeeds();
    site.sql("V2__alter.sql", "create table b (id int);\nalter table a add column x int;\n");
    let holder = Session::connect(&site.database.target).await.expect("connects");
    // A long report reads the table.
    holder.batch("begin; select * from a").await.expect("reads");
    let child = site.start(&["--lock-timeout-ms=300"]);
    site.until_blocked().await;
    // Behind a waiting `alter table` this would wait as long as the report runs.
    let reader = Session::connect(&site.database.target).await.expect("connects");
    reader.batch("set statement_timeout = '20s'; select * from a").await.expect("is let through");
    holder.batch("commit").await.expect("ends");
    let run = site.end(child).succeeds();
    assert!(
        run.stderr.contains("got no lock within 300 ms and stepped back; try 1 of 60"),
        "{}",
        run.stderr
    );
    assert!(site.has("b").await);
}

/// A site with the table `a`, which a session reads in a transaction that does not end.
async fn read_by_somebody(files: &[(&str, &str)]) -> (Site, Session) {
    let site = Site::new(&[("V1__a.sql", "create table a (id int);")]).await;
    site.run(&["migrate"]).succeeds();
    for (name, text) in files {
        site.sql(name, text);
    }
    let holder = Session::connect(&site.database.target).await.expect("connects");
    holder.batch("begin; select * from a").await.expect("reads");
    (site, holder)
}

const ALTER: &str = "alter table a add column x int;\n";

#[tokio::test]
async fn a_script_outside_of_a_transaction_that_waits_for_a_table_steps_back_as_well() {
    let files = [("V2__alter.sql", ALTER), ("V2__alter.sql.conf", "executeInTransaction=false\n")];
    let (site, holder) = read_by_somebody(&files).await;
    let child = site.start(&["--lock-timeout-ms=300"]);
    site.until_blocked().await;
    let reader = Session::connect(&site.database.target).await.expect("connects");
    reader.batch("set statement_timeout = '20s'; select * from a").await.expect("is let through");
    holder.batch("commit").await.expect("ends");
    let run = site.end(child).succeeds();
    assert!(run.stderr.contains("got no lock within 300 ms and stepped back"), "{}", run.stderr);
    assert_eq!(site.history().await[1..], ["2|2|SQL|V2__alter.sql|t"]);
    assert_eq!(site.database.text("select count(x) from a").await, "0");
}

#[tokio::test]
async fn outside_of_a_transaction_nothing_that_ran_is_run_again_for_a_lock() {
    let files = [("V2__alter.sql", ALTER), ("V2__alter.sql.conf", "executeInTransaction=false\n")];
    let (site, _holder) = read_by_somebody(&files).await;
    let bounds = ["migrate", "--quiet", "--lock-timeout-ms=50", "--lock-retries=1"];
    // Nothing of it ran: nothing is left to repair.
    let run = site.run(&bounds).exits(6);
    assert!(run.stderr.contains("the database is as it was before this script"), "{}", run.stderr);
    assert_eq!(site.history().await.len(), 1);
    site.sql("V2__alter.sql", format!("create table b (id int);\n{ALTER}"));
    let run = site.run(&bounds).exits(6);
    assert_eq!(
        run.stderr,
        "error: run `sql/V2__alter.sql`, line 2: canceling statement due to lock timeout (SQLSTATE 55P03)\n  \
         2 | alter table a add column x int;\n\
         it ran without a transaction: the statement before this stays; the history has a row of it \
         marked as failed\n  \
         hint: see who holds the lock: `select * from pg_stat_activity where state <> 'idle'`\n  \
         hint: remove what the script left, then run `seedbed repair`\n"
    );
    assert_eq!(site.history().await[1..], ["2|2|SQL|V2__alter.sql|f"]);
}

#[tokio::test]
async fn an_index_is_built_concurrently_however_long_others_read() {
    let files = [("V2__i.sql", "create index concurrently i on a (id);\n")];
    let (site, holder) = read_by_somebody(&files).await;
    holder.batch("insert into a values (1)").await.expect("writes");
    let child = site.start(&["--lock-timeout-ms=1"]);
    // It holds nobody up while it waits for the writer, and given up it would leave an invalid index.
    let waits = "select count(*) from pg_locks where not granted and locktype = 'virtualxid'";
    site.until(waits, |count| count != "0").await;
    holder.batch("commit").await.expect("ends");
    site.end(child).succeeds();
    let valid = "select indisvalid from pg_index where indexrelid = 'i'::regclass";
    assert_eq!(site.database.text(valid).await, "t");
}

#[tokio::test]
async fn a_callback_waits_no_longer_for_a_table_than_a_script() {
    let (site, holder) = read_by_somebody(&[("beforeMigrate.sql", ALTER)]).await;
    let run = site.run(&["migrate", "--lock-timeout-ms=50", "--lock-retries=1"]).exits(6);
    assert!(run.stderr.contains("callback `beforeMigrate`: "), "{}", run.stderr);
    assert!(run.stderr.contains("lock timeout (SQLSTATE 55P03)"), "{}", run.stderr);
    assert!(run.stderr.contains("stepped back; try 1 of 1"), "{}", run.stderr);
    site.sql("beforeMigrate.sql.conf", "executeInTransaction=false\n");
    let run = site.run(&["migrate", "--lock-timeout-ms=50"]).exits(6);
    assert!(run.stderr.contains("lock timeout (SQLSTATE 55P03)"), "{}", run.stderr);
    site.remove("beforeMigrate.sql.conf");
    let child = site.start(&["--lock-timeout-ms=300"]);
    site.until_blocked().await;
    holder.batch("commit").await.expect("ends");
    site.end(child).succeeds();
    assert_eq!(site.database.text("select count(x) from a").await, "0");
}

#[tokio::test]
async fn what_follows_a_commit_of_the_scripts_own_waits_no_longer() {
    for commit in ["commit;\n", "commit and chain;\n"] {
        let text = format!("create table b (id int);\n{commit}{ALTER}");
        let (site, _holder) = read_by_somebody(&[("V2__alter.sql", &text)]).await;
        let run = site.run(&["migrate", "--lock-timeout-ms=50"]).exits(6);
        assert!(run.stderr.contains("lock timeout (SQLSTATE 55P03)"), "{}", run.stderr);
        assert!(
            run.stderr.contains("what stands before the script's own `commit`"),
            "{}",
            run.stderr
        );
        assert!(site.has("b").await);
    }
}

#[tokio::test]
async fn a_column_that_is_called_nowait_changes_nothing() {
    let text = format!("create table b (nowait int, lock_timeout int);\n{ALTER}");
    let (site, _holder) = read_by_somebody(&[("V2__alter.sql", &text)]).await;
    let run = site.run(&["migrate", "--lock-timeout-ms=50", "--lock-retries=1"]).exits(6);
    assert!(run.stderr.contains("stepped back; try 1 of 1"), "{}", run.stderr);
}

#[tokio::test]
async fn a_lock_that_never_comes_is_an_error_that_says_what_to_do() {
    let site = Site::new(&[("V1__a.sql", "create table a (id int);")]).await;
    site.run(&["migrate"]).succeeds();
    site.sql("V2__alter.sql", "alter table a add column x int;\n");
    let holder = Session::connect(&site.database.target).await.expect("connects");
    holder.batch("begin; select * from a").await.expect("reads");
    let run =
        site.run(&["--quiet", "migrate", "--lock-timeout-ms=50", "--lock-retries=1"]).exits(6);
    assert_eq!(
        run.stderr,
        "error: run `sql/V2__alter.sql`, line 1: canceling statement due to lock timeout (SQLSTATE 55P03)\n  \
         1 | alter table a add column x int;\n\
         rolled back: the database is as it was before this script\n  \
         hint: see who holds the lock: `select * from pg_stat_activity where state <> 'idle'`\n  \
         hint: or wait longer: `--lock-timeout-ms`, `--lock-retries`\n"
    );
    // A script that says itself how long it waits is taken at its word.
    site.sql(
        "V2__alter.sql",
        "set local lock_timeout = '20ms';\nalter table a add column x int;\n",
    );
    let run = site.run(&["migrate"]).exits(6);
    assert!(!run.stderr.contains("stepped back"), "{}", run.stderr);
}

#[tokio::test]
async fn two_programs_at_once_apply_each_script_once() {
    let site = Site::new(&[]).await;
    for number in 1..=30 {
        site.sql(
            &format!("V{number}__t.sql"),
            format!("create table t{number} (id int); select pg_sleep(0.01);"),
        );
    }
    let children: Vec<Child> = (0..3).map(|_| site.start(&["--lock-retry-count=100"])).collect();
    for child in children {
        site.end(child).succeeds();
    }
    let ranks =
        "select count(*), count(distinct version), max(installed_rank) from flyway_schema_history
        where type = 'SQL'";
    assert_eq!(site.database.text(ranks).await, "30|30|30");
}

#[tokio::test]
async fn six_hundred_files_run_and_the_next_run_finds_nothing_to_do() {
    let site = Site::new(&[]).await;
    for number in 1..=600 {
        let text = format!("create table t{number} (id int primary key, s text);\n");
        site.sql(&format!("r{}/V{number}__t.sql", number / 100), text);
    }
    let ran = site.json(&["migrate"]);
    assert_eq!(
        (&ran["migrationsExecuted"], &ran["targetSchemaVersion"]),
        (&600.into(), &"600".into())
    );
    assert_eq!(site.json(&["migrate"])["migrationsExecuted"], 0);
    site.run(&["validate"]).succeeds();
}

#[tokio::test]
async fn marks_and_line_ends_change_neither_checksum_nor_effect() {
    let text = "create table a (id int, s text);\ninsert into a values (1, 'é');\n";
    let site = Site::new(&[("V1__a.sql", text)]).await;
    site.run(&["migrate"]).succeeds();
    site.sql("V1__a.sql", format!("\u{feff}{}", text.replace('\n', "\r\n")));
    site.run(&["validate"]).succeeds();
    // The other way round, on an empty database.
    let other = Site::new(&[]).await;
    other.sql("V1__a.sql", format!("\u{feff}{}", text.replace('\n', "\r\n")));
    other.run(&["migrate"]).succeeds();
    assert_eq!(other.database.text("select s from a").await, "é");
    let utf_16: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let third = Site::new(&[("V1__a.sql.conf", "encoding=UTF-16\n")]).await;
    third.sql("V1__a.sql", utf_16);
    third.run(&["migrate"]).succeeds();
    assert_eq!(third.database.text("select s from a").await, "é");
}
