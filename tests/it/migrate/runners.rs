//! Several runners on one database: who has the lock, and what the others see meanwhile.

use std::time::Duration;

use seedbed::pg::Session;

use super::faults::{WAIT, gated};
use super::site::Site;

/// Flyway's key for `"public"."flyway_schema_history"`.
const KEY: &str = "77433833903597";

/// The processes that hold a runner's lock.
const HOLDERS: &str = "select coalesce(max(pid), 0) from pg_locks
    where locktype = 'advisory' and granted and objsubid = 1
        and classid = 18028 and objid = 4163491309::oid
        and database = (select oid from pg_database where datname = current_database())";

/// The processes that wait for a table.
const WAITERS: &str = "select coalesce(max(pid), 0) from pg_locks
    where not granted and locktype = 'relation'
        and database = (select oid from pg_database where datname = current_database())";

impl Site {
    /// Asks until the answer is one that is wanted; the server waits in between.
    pub async fn until(&self, sql: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let asked = async {
            loop {
                let answer = self.database.text(&format!("select pg_sleep(0.02); {sql}")).await;
                let answer = answer.lines().last().unwrap_or_default().to_owned();
                if is_wanted(&answer) {
                    return answer;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asked).await.expect("comes in time")
    }

    /// Until a session has asked for the lock in vain.
    async fn until_somebody_wants_the_lock(&self) {
        let sql = format!(
            "select count(*) from pg_stat_activity
            where datname = current_database() and query like '%pg_try_advisory_lock%'
                and query not like '%pg_stat_activity%' and state = 'idle' and pid <> ({HOLDERS})"
        );
        self.until(&sql, |count| count != "0").await;
    }
}

/// A script outside of a transaction that waits for `gate` in its middle.
fn half_way() -> String {
    format!("create table a (id int);\nbegin;\n{WAIT}commit;\ncreate table b (id int);\n")
}

const ALONE: (&str, &str) = ("V1__a.sql.conf", "executeInTransaction=false\n");

const COPY: &str = "copy a from stdin;\n1\n\\.\n";

/// The table `a`, locked by the session, and a script that copies into it.
async fn copy_into_a_locked_table() -> (Site, Session) {
    let site = Site::new(&[("V1__a.sql", "create table a (id int);\n")]).await;
    site.run(&["migrate"]).succeeds();
    site.sql("V2__copy.sql", COPY);
    let holder = Session::connect(&site.database.target).await.expect("connects");
    holder.batch("begin; lock table a in access exclusive mode").await.expect("locks");
    (site, holder)
}

#[tokio::test]
async fn a_copy_that_got_no_lock_is_tried_again_under_the_runners_lock() {
    let (site, holder) = copy_into_a_locked_table().await;
    let child = site.start(&["--lock-timeout-ms=300"]);
    let first = site.until(WAITERS, |pid| pid != "0").await;
    // Both in one look: the second one does not wait for long either.
    let both = format!("select concat_ws(' ', ({WAITERS}), ({HOLDERS}))");
    let is_second = |both: &str| {
        both.split_once(' ').is_some_and(|(waiter, _)| waiter != "0" && waiter != first)
    };
    let both = site.until(&both, is_second).await;
    let (second, holder_of_lock) = both.split_once(' ').expect("two of them");
    assert_eq!(holder_of_lock, second, "it migrates without the lock");
    holder.batch("rollback").await.expect("lets it in");
    site.end(child).succeeds();
    assert_eq!(site.database.text("select count(*) from a").await, "1");
}

#[tokio::test]
async fn what_others_applied_while_the_session_was_replaced_is_not_applied_again() {
    let (site, holder) = copy_into_a_locked_table().await;
    site.sql("V3__c.sql", "create table c (id int);\n");
    let child = site.start(&["--lock-timeout-ms=300"]);
    site.until(WAITERS, |pid| pid != "0").await;
    // It is next in the queue for the lock, which the broken session gives back when it ends.
    let other = Session::connect(&site.database.target).await.expect("connects");
    let lock = format!("set statement_timeout = '60s'; select pg_advisory_lock({KEY})");
    other.batch(&lock).await.expect("gets the lock");
    let row = "insert into flyway_schema_history
        values (2, '2', 'copy', 'SQL', 'V2__copy.sql', null, 'other', now(), 1, true)";
    other.batch(row).await.expect("writes");
    holder.batch("rollback").await.expect("lets it in");
    other.batch(&format!("select pg_advisory_unlock({KEY})")).await.expect("unlocks");
    site.end(child).succeeds();
    assert_eq!(site.database.text("select count(*) from a").await, "0");
    assert_eq!(
        site.history().await,
        ["1|1|SQL|V1__a.sql|t", "2|2|SQL|V2__copy.sql|t", "3|3|SQL|V3__c.sql|t"]
    );
}

#[tokio::test]
async fn repair_waits_for_a_script_that_runs() {
    let (site, holder) = gated(&[("V1__a.sql", &half_way()), ALONE]).await;
    let child = site.start(&["--lock-timeout-ms=0"]);
    site.until_blocked().await;
    for args in [&["repair"][..], &["repair", "--dry-run"]] {
        let run = site.run(&[args, &["--lock-retry-count=0"]].concat()).exits(11);
        assert!(run.stderr.contains("another migration has been running"), "{}", run.stderr);
    }
    holder.batch("rollback").await.expect("lets it in");
    site.end(child).succeeds();
    assert_eq!(site.history().await.last().map(String::as_str), Some("2|1|SQL|V1__a.sql|t"));
}

#[tokio::test]
async fn a_script_whose_row_was_removed_while_it_ran_is_recorded_all_the_same() {
    let (site, holder) = gated(&[("V1__a.sql", &half_way()), ALONE]).await;
    let child = site.start(&["--lock-timeout-ms=0"]);
    site.until_blocked().await;
    // What Flyway's `repair` does, which takes no lock.
    site.database.run("delete from flyway_schema_history where not success").await;
    holder.batch("rollback").await.expect("lets it in");
    site.end(child).succeeds();
    assert!(site.has("b").await);
    assert_eq!(site.history().await.last().map(String::as_str), Some("2|1|SQL|V1__a.sql|t"));
    site.run(&["validate"]).succeeds();
}

#[tokio::test]
async fn a_second_runner_waits_for_a_script_outside_of_a_transaction() {
    let (site, holder) = gated(&[("V1__a.sql", &half_way()), ALONE]).await;
    let first = site.start(&["--lock-timeout-ms=0"]);
    site.until_blocked().await;
    let second = site.start(&[]);
    site.until_somebody_wants_the_lock().await;
    let run = site.run(&["info"]).succeeds();
    assert!(run.stderr.contains("`V1__a.sql` is running now: process "), "{}", run.stderr);
    assert_eq!(site.states(&["--of-state=failed"]), ["1 a Failed"]);
    let info = site.json(&["info"]);
    let warning = info["warnings"][0].as_str().expect("warns");
    assert!(warning.contains("`V1__a.sql` is running now"), "{warning}");
    let run = site.run(&["validate"]).exits(7);
    assert!(run.stdout.contains("version 1 (`V1__a.sql`) is running now"), "{}", run.stdout);
    holder.batch("rollback").await.expect("lets it in");
    site.end(first).succeeds();
    let run = site.end(second).succeeds();
    assert!(
        run.stderr.contains("waiting for another migration to end: process "),
        "{}",
        run.stderr
    );
    assert_eq!(site.history().await.last().map(String::as_str), Some("2|1|SQL|V1__a.sql|t"));
}

#[tokio::test]
async fn a_runner_that_waited_says_what_is_there_now() {
    let site = Site::new(&[("V1__a.sql", "create table a (id int);\n")]).await;
    site.run(&["migrate"]).succeeds();
    site.sql("V2__b.sql", "create table b (id int);\n");
    let other = Session::connect(&site.database.target).await.expect("connects");
    other.batch(&format!("select pg_advisory_lock({KEY})")).await.expect("locks");
    let text = site.start(&[]);
    site.until_somebody_wants_the_lock().await;
    let json = site.start(&["--json"]);
    site.until(
        "select count(*) from pg_stat_activity
            where datname = current_database() and query like '%pg_try_advisory_lock%'
                and query not like '%pg_stat_activity%' and state = 'idle'",
        |count| count == "2",
    )
    .await;
    let row = "insert into flyway_schema_history
        values (2, '2', 'b', 'SQL', 'V2__b.sql', null, 'other', now(), 1, true)";
    other.batch(row).await.expect("writes");
    other.batch(&format!("select pg_advisory_unlock({KEY})")).await.expect("unlocks");
    let run = site.end(text).succeeds();
    assert_eq!(run.stdout, "up to date: schema version 2, no script to run\n");
    let json = site.end(json).succeeds().json();
    assert_eq!((&json["migrationsExecuted"], &json["schemaVersion"]), (&0.into(), &"2".into()));
    assert_eq!(json["initialSchemaVersion"], "2");
}
