//! Several runners on one database: who has the lock, and what the others see meanwhile.

use std::time::Duration;

use seedbed::pg::Session;

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
}

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
    let second = site.until(WAITERS, |pid| pid != "0" && pid != first).await;
    assert_eq!(site.database.text(HOLDERS).await, second, "it migrates without the lock");
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
