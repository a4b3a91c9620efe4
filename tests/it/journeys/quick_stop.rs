//! A reset in Docker does not wait until all that was changed is written out of a server whose data goes.

use super::images::{ended, in_docker, shell, started, use_it};
use super::{Project, until};
use crate::harness::postgres::run_sql;

/// How often the server's container was told to stop so; it is the same one as long as no reset fails.
fn stops(project: &Project) -> [String; 2] {
    let path = project.sandbox.project();
    ["immediate", "fast"].map(|how| {
        shell(&format!(
            "docker logs $(docker ps -q --filter label=seedbed.path={path}) 2>&1 \
             | grep -c 'received {how} shutdown request' || true"
        ))
    })
}

const SLEEPS: [&str; 4] = ["psql", "--", "-XAtc", "select pg_sleep(300)"];

/// A client that waits for an answer.
async fn connected(project: &Project) -> std::process::Child {
    let client = started(project, &SLEEPS);
    let sleeps = "select count(*) from pg_stat_activity where query like 'select pg_sleep(%'";
    until(&project.live(), sleeps, "1").await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_a_reset_stops_the_server_at_once_unless_that_could_cost_something() {
    let Some((project, _)) = in_docker().await else { return };
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    let before = stops(&project);
    use_it(&project).await;

    // Whoever is connected is told so as ever.
    let client = connected(&project).await;
    project.run(&["reset"]).succeeds();
    assert_eq!(project.contents().await, clean);
    let client = ended(&project, &SLEEPS, client);
    assert!(client.stderr.contains("due to administrator command"), "{}", client.stderr);
    let count = |text: &String| text.parse::<u32>().expect("grep counts");
    let [immediate, fast] = stops(&project);
    assert_eq!((count(&immediate), &fast), (count(&before[0]) + 1, &before[1]));

    // These would be empty should the old data be wanted again.
    project.sql("create unlogged table shop.draft as select 1 as n").await;
    project.run(&["reset"]).succeeds();
    let after = stops(&project);
    assert_eq!((&after[0], count(&after[1])), (&immediate, count(&fast) + 1));

    // What is to be kept is stopped cleanly.
    project.run(&["reset", "--keep"]).succeeds();
    let after = stops(&project);
    assert_eq!((&after[0], count(&after[1])), (&immediate, count(&fast) + 2));

    // This much would have to be read again.
    let log = "select pg_logical_emit_message(false, 'test', repeat('x', 200000000))
               from generate_series(1, 6)";
    project.sql(log).await;
    project.run(&["reset"]).succeeds();
    let after = stops(&project);
    assert_eq!((&after[0], count(&after[1])), (&immediate, count(&fast) + 3));
    assert_eq!(project.contents().await, clean);
    project.run(&["reset"]).succeeds();
    assert_eq!(count(&stops(&project)[0]), count(&immediate) + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_a_reset_that_fails_loses_nothing_that_was_committed_a_moment_ago() {
    let Some((project, pool)) = in_docker().await else { return };
    project.run(&["up"]).succeeds();
    // The log's writer alone would come to it after ten seconds.
    for sql in ["alter system set wal_writer_delay = '10s'", "select pg_reload_conf()"] {
        run_sql(&project.admin(), sql).await;
    }
    let chunks = project.sandbox.project().join("seed/snapshots/chunks");
    let away = chunks.with_file_name("away");
    for unlogged in ["", "unlogged"] {
        // The image has gone that did not start.
        project.run(&["reset"]).succeeds();
        fs_err::rename(&chunks, &away).expect("it is there");
        shell(&format!(
            "docker run --rm -v {pool}-mounted:/p --entrypoint sh postgres:17 -c \
             'truncate -s 100 /p/images/*/data/global/pg_control'"
        ));
        shell(&format!("rm -rf {}/*", project.sandbox.cache()));
        let drafts = format!(
            "drop table if exists shop.draft;
             create {unlogged} table shop.draft as select n from generate_series(1, 1000) n"
        );
        project.sql(&drafts).await;
        use_it(&project).await;
        project.sql("insert into shop.draft values (1001)").await;
        let used = project.contents().await;
        let client = connected(&project).await;
        let reset = project.run(&["reset", "--verbose"]);
        let client = ended(&project, &SLEEPS, client);
        assert!(client.stderr.contains("due to administrator command"), "{}", client.stderr);
        assert!(reset.stderr.contains("ended 1 session"), "{}", reset.stderr);
        // What is tried next has a server of its own.
        let (first, _) = reset.stderr.split_once("not done: ").expect("it has failed");
        let is_immediate = first.contains("the shutdown of the old server may be immediate");
        assert_eq!(is_immediate, unlogged.is_empty(), "{}", reset.stderr);
        assert_ne!(reset.code, Some(0), "{}", reset.stderr);
        assert!(reset.stderr.contains("pg_control"), "{}", reset.stderr);
        assert_eq!(project.contents().await, used);
        assert_eq!(project.text("select count(*) from shop.draft").await, "1001");
        fs_err::rename(&away, &chunks).expect("it is there");
    }
}
