//! What follows a failure never becomes effective, whatever a script, or a callback in its
//! transaction, does to that transaction.

use super::faults::{WAIT, gated};
use super::site::Site;

/// Nothing of the script is there, and the history has no row of it.
#[track_caller]
fn tells_that_nothing_is_left(site: &Site, args: &[&str]) -> String {
    let stderr = site.run(args).exits(6).stderr;
    assert!(stderr.contains("rolled back: the database is as it was before this"), "{stderr}");
    assert!(!stderr.contains("there is no transaction in progress"), "{stderr}");
    stderr
}

#[tokio::test]
async fn a_failed_script_that_goes_on_after_a_savepoint_leaves_nothing() {
    let divided = "select 1/0";
    let twice = "insert into k values (1), (1)";
    let raised = "do $$ begin raise exception 'no'; end $$";
    let copied = "copy k from stdin;\nx\n\\.\nselect 1";
    let call = "call p()";
    for (failing, back) in [
        (divided, "rollback to s"),
        (twice, "rollback to savepoint s"),
        (raised, "rollback transaction to savepoint s"),
        (divided, "ROLLBACK WORK TO s"),
        (copied, "rollback to s"),
        (call, "/* back */ rollback to s;\nrelease s"),
        ("savepoint r", "select 1/0;\nrollback to r;\nrollback to s"),
        (divided, "abort;\nbegin"),
        (divided, "end"),
        (divided, "rollback and chain"),
        (divided, "commit and chain"),
        (divided, "commit;\nsavepoint s"),
        (divided, "prepare transaction 'x'"),
    ] {
        let script = format!(
            "create table k (i int primary key);\n\
             create procedure p() language plpgsql as 'begin commit; end';\n\
             savepoint s;\n{failing};\n{back};\ncreate table b (i int);\n"
        );
        let site = Site::new(&[
            ("V1__x.sql", &script),
            ("V2__y.sql", "create table c (i int);"),
            ("R__r.sql", "create table d (i int);"),
        ])
        .await;
        tells_that_nothing_is_left(&site, &["migrate"]);
        for table in ["k", "b", "c", "d"] {
            assert!(!site.has(table).await, "`{table}` is there after\n{script}");
        }
        assert_eq!(site.history().await, Vec::<String>::new(), "{script}");
    }
}

#[tokio::test]
async fn a_savepoint_that_is_gone_back_to_without_a_failure_works() {
    let script = "create table a (i int);\nsavepoint s;\ncreate table b (i int);\nrollback to s;\n\
        create table c (i int);\n";
    let site = Site::new(&[("V1__x.sql", script)]).await;
    assert_eq!(site.run(&["--quiet", "migrate"]).succeeds().stderr, "");
    assert!(site.has("a").await && !site.has("b").await && site.has("c").await);
    assert_eq!(site.history().await, ["1|1|SQL|V1__x.sql|t"]);
}

const REVIVED: &str = "savepoint s;\nselect 1/0;\nrollback to s;\ncreate table b (i int);\n";

#[tokio::test]
async fn neither_a_group_nor_a_repeatable_nor_an_undo_goes_on_after_a_failure() {
    let site = Site::new(&[("V1__a.sql", "create table a (i int);"), ("V2__b.sql", REVIVED)]).await;
    tells_that_nothing_is_left(&site, &["migrate", "--group=true"]);
    assert!(!site.has("a").await && !site.has("b").await);
    site.sql("V2__b.sql", "create table c (i int);");
    site.run(&["migrate"]).succeeds();
    site.sql("R__r.sql", REVIVED);
    tells_that_nothing_is_left(&site, &["migrate"]);
    site.remove("R__r.sql");
    site.sql("U2__c.sql", format!("drop table c;\n{REVIVED}"));
    tells_that_nothing_is_left(&site, &["undo"]);
    assert!(!site.has("b").await && site.has("c").await);
    assert_eq!(site.history().await, ["1|1|SQL|V1__a.sql|t", "2|2|SQL|V2__b.sql|t"]);
}

#[tokio::test]
async fn a_lock_that_did_not_come_before_a_savepoint_is_tried_for_again() {
    let script = format!("savepoint s;\n{WAIT}rollback to s;\ncreate table b (i int);\n");
    let (site, holder) = gated(&[("V1__x.sql", &script)]).await;
    let baseline = ["migrate", "--baseline-on-migrate", "--baseline-version=0"];
    let bounds = [&baseline[..], &["--lock-timeout-ms=50", "--lock-retries=1"]].concat();
    let stderr = tells_that_nothing_is_left(&site, &bounds);
    assert!(stderr.contains("stepped back; try 1 of 1"), "{stderr}");
    assert!(!site.has("b").await);
    let child = site.start(&["--lock-timeout-ms=300"]);
    site.until_blocked().await;
    holder.batch("rollback").await.expect("gives the lock back");
    site.end(child).succeeds();
    assert!(site.has("b").await);
}

#[tokio::test]
async fn a_callback_that_commits_leaves_its_script_in_a_transaction() {
    let script = "create table a (i int);\nselect 1/0;\n";
    for event in ["beforeEachMigrate", "beforeEachMigrateStatement"] {
        for end in ["commit", "commit and chain", "begin;\nend", "rollback"] {
            let callback = format!("create table if not exists z (i int);\n{end};\n");
            let site =
                Site::new(&[("V1__x.sql", script), (&format!("{event}.sql"), &callback)]).await;
            let stderr = site.run(&["migrate"]).exits(6).stderr;
            assert!(!stderr.contains("there is no transaction in progress"), "{stderr}");
            assert_eq!(site.has("z").await, end != "rollback", "{event}, {end}");
            // Around a statement it commits the statements before.
            let is_committed = event.ends_with("Statement") && end != "rollback";
            assert_eq!(site.has("a").await, is_committed, "{event}, {end}");
            assert_eq!(site.history().await, Vec::<String>::new(), "{event}, {end}");
            let left = match end {
                "rollback" => "the database is as it was before this script",
                _ => "what stands before the script's own `commit` is in the database",
            };
            assert!(stderr.contains(left), "{event}, {end}: {stderr}");
        }
    }
}

#[tokio::test]
async fn a_failed_callback_that_goes_on_after_a_savepoint_leaves_nothing() {
    for event in ["beforeMigrate", "beforeEachMigrate", "afterEachMigrateStatement", "afterMigrate"]
    {
        let site = Site::new(&[
            ("V1__x.sql", "create table a (i int);"),
            (&format!("{event}.sql"), REVIVED),
        ])
        .await;
        site.run(&["migrate"]).exits(6);
        assert!(!site.has("b").await, "{event}");
        assert_eq!(site.has("a").await, event == "afterMigrate");
    }
}

#[tokio::test]
async fn a_transaction_that_is_over_is_not_ended_again() {
    let deferred = "create table a (i int primary key deferrable initially deferred);\n\
        insert into a values (1), (1);\n";
    for (script, conf, code) in [
        (format!("{deferred}commit;\ncreate table b (i int);\n"), "", 6),
        (format!("{deferred}commit and chain;\ncreate table b (i int);\n"), "", 6),
        (deferred.to_owned(), "", 6),
        ("begin;\ncreate table b (i int);\ncommit;\nselect 1/0;\n".to_owned(), "f", 6),
        (format!("begin;\n{deferred}commit;\n"), "f", 6),
        // Refused where the server keeps none.
        ("create table b (i int);\nprepare transaction 'x';\n".to_owned(), "", 6),
        // What the server does not read as a `commit` ends nothing.
        ("select 1;\ncommit nothing;\n".to_owned(), "", 6),
        ("create table b (i int);\ncommit;\n".to_owned(), "", 0),
    ] {
        let site = Site::new(&[("V1__x.sql", &script), ("V2__y.sql", "select 1;")]).await;
        if conf == "f" {
            site.sql("V1__x.sql.conf", "executeInTransaction=false\n");
        }
        // On a session that is of use again.
        site.sql("afterEachMigrateError.sql", "create table told (i int);\n");
        site.sql("afterMigrate.sql", "create table if not exists z (i int);\ncommit;\n");
        let stderr = site.run(&["migrate"]).exits(code).stderr;
        assert!(!stderr.contains("no transaction in progress"), "{script}: {stderr}");
        assert_eq!(site.has("told").await, code == 6, "{script}: {stderr}");
    }
}
