//! `db`: a database for each test, in milliseconds, and nothing left of them.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::Instant;

use seedbed::pg::{Session, SslMode, Target};

use super::images::{ended, in_docker, shell, started};
use super::{Project, contents, docker_is_here, elsewhere, until};
use crate::harness::postgres::{query_text, run_sql};
use crate::harness::{full, say};
use crate::interrupts::lock_on;

async fn ready() -> Project {
    let project = Project::external(elsewhere()).with_snapshot().await;
    project.run(&["up"]).succeeds();
    project
}

/// The databases whose URLs a run has printed.
fn lent(stdout: &str) -> Vec<Target> {
    stdout.lines().map(target).collect()
}

fn target(url: &str) -> Target {
    let url = url::Url::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
    assert_eq!((url.scheme(), url.host_str()), ("postgresql", Some("127.0.0.1")), "{url}");
    assert_eq!(url.password(), Some("owner%20word"), "{url}");
    Target {
        host: "127.0.0.1".to_owned(),
        port: url.port().expect("the URL names the port"),
        database: url.path().trim_start_matches('/').to_owned(),
        user: url.username().to_owned(),
        password: Some("owner word".to_owned().into()),
        ssl_mode: SslMode::Disable,
        ssl_root_cert: None,
        ssl_client: None,
        settings: Vec::new(),
    }
}

/// One database, lent with these arguments beside.
fn lend(project: &Project, args: &[&str]) -> Target {
    let run = project.run(&[&["db", "create"], args].concat()).succeeds();
    let [one] = <[Target; 1]>::try_from(lent(&run.stdout)).expect("one URL");
    one
}

/// Everything of a lent database, as the superuser sees it.
async fn contents_of(project: &Project, lent: &Target) -> String {
    contents(&project.admin().with_database(&lent.database)).await
}

const BUILDING: &str = "for this checkout: building one, once";

#[tokio::test]
async fn db_create_gives_what_reset_would_whatever_was_done_to_the_live_one() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    project.sandbox.write(
        "users/database.sql",
        "REVOKE ALL ON DATABASE ${flyway:database} FROM PUBLIC;
GRANT CONNECT ON DATABASE ${flyway:database} TO ${reader} WITH GRANT OPTION;
ALTER DATABASE ${flyway:database} SET statement_timeout = '77s';
ALTER ROLE ${reader} IN DATABASE ${flyway:database} SET work_mem = '7MB';",
    );
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    project.sql("delete from shop.purchase; create table shop.left_over ()").await;
    let dirty = project.contents().await;

    let run = project.run(&["db", "create"]).succeeds();
    assert_eq!(run.stderr, "", "a script may read both");
    let [one] = <[Target; 1]>::try_from(lent(&run.stdout)).expect("one URL");
    assert_eq!(contents_of(&project, &one).await, clean);
    assert_eq!(query_text(&one, "select current_user").await, project.owner);
    assert_eq!(query_text(&one, "show statement_timeout").await, "77s");
    let reader = one.with_user(&project.reader, Some("reader word".to_owned().into()));
    assert_eq!(query_text(&reader, "select count(*) from shop.item").await, "5000");
    assert_eq!(query_text(&reader, "show work_mem").await, "7MB");
    // What stands outside of the files: owner, privileges, settings.
    let outside = |name: &str| {
        let sql = format!(
            "select datdba, (select array_agg(a::text order by a::text) from unnest(datacl) a),
                    (select array_agg((setrole, setconfig)::text order by setrole)
                     from pg_db_role_setting where setdatabase = d.oid)
             from pg_database d where datname = '{name}'"
        );
        let admin = project.admin();
        async move { query_text(&admin, &sql).await }
    };
    assert_eq!(outside(&one.database).await, outside(&project.database).await);

    // Each has its own, and the live one is as it was.
    let json = project.run(&["db", "create", "--count", "2", "--json"]).succeeds().json();
    let two = json["databases"].as_array().expect("a list");
    assert_eq!(two.len(), 2, "{json}");
    run_sql(&target(two[0]["url"].as_str().expect("a text")), "drop table shop.purchase cascade")
        .await;
    assert_eq!(contents_of(&project, &one).await, clean);
    assert_eq!(
        two[1]["url"],
        one.url_with_password().replace(&one.database, two[1]["name"].as_str().expect("a text"))
    );
    assert_eq!(project.contents().await, dirty);
    assert_eq!(project.databases().await, ["lent", "lent", "lent", "live", "template"]);
    project.run(&["db", "drop", "--all"]).succeeds();
    assert_eq!(project.databases().await, ["live", "template"]);
}

#[tokio::test]
async fn db_create_makes_the_template_of_a_changed_checkout_once() {
    let project = ready().await;
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let run = project.run(&["db", "create", "--count", "2"]).succeeds();
    assert!(run.stderr.contains(BUILDING), "{}", run.stderr);
    for one in lent(&run.stdout) {
        assert_eq!(query_text(&one, "select count(*) from shop.note").await, "0");
        assert_eq!(query_text(&one, "select count(*) from shop.purchase").await, "10");
    }
    assert_eq!(project.text("select to_regclass('shop.note') is null").await, "t");
    let again = project.run(&["db", "create"]).succeeds();
    assert_eq!(again.stderr, "");
    assert_eq!(project.databases().await, ["lent", "lent", "lent", "live", "template"]);
    // It is the one that `reset` takes, and what is lent outlives that.
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert_eq!(project.databases().await, ["lent", "lent", "lent", "live", "template"]);

    project.sandbox.write("sql/V4__broken.sql", "select 1 +;");
    let run = project.run(&["db", "create"]).exits(6);
    assert!(run.stderr.contains("sql/V4__broken.sql`, line 1"), "{}", run.stderr);
    assert_eq!(run.stdout, "");
    assert_eq!(project.databases().await, ["lent", "lent", "lent", "live", "template"]);
    project.run(&["db", "drop", "--all"]).succeeds();
}

#[tokio::test]
async fn db_create_takes_the_rows_of_the_live_database_and_not_those_of_a_newer_snapshot() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    project.run(&["up", "--seed", "none"]).succeeds();
    let one = lend(&project, &[]);
    assert_eq!(query_text(&one, "select count(*) from shop.customer").await, "0");
    project.sandbox.write("seed/rows.sql", "insert into shop.customer (name) values ('me');");
    project.run(&["reset", "--seed", "files"]).succeeds();
    let run = project.run(&["db", "create"]).succeeds();
    assert_eq!(run.stderr, "");
    let [one] = <[Target; 1]>::try_from(lent(&run.stdout)).expect("one URL");
    assert_eq!(query_text(&one, "select string_agg(name, ',') from shop.customer").await, "me");
    project.sandbox.write("seed/rows.sql", "insert into shop.customer (name) values ('you');");
    let run = project.run(&["db", "create"]).succeeds();
    assert!(run.stderr.contains(BUILDING), "{}", run.stderr);
    let [one] = <[Target; 1]>::try_from(lent(&run.stdout)).expect("one URL");
    assert_eq!(query_text(&one, "select string_agg(name, ',') from shop.customer").await, "you");
    // A snapshot that is gone from the store cannot be built from once more.
    project.run(&["reset", "--seed", "latest"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    std::fs::remove_dir_all(project.sandbox.project().join("seed/snapshots")).expect("it is ours");
    let run = project.run(&["db", "create"]).exits(8);
    assert!(
        run.stderr.contains("the snapshot that the live database came from is needed once more"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("hint: go on from the newest one: `seedbed reset`"),
        "{}",
        run.stderr
    );
    project.run(&["db", "drop", "--all"]).succeeds();
}

/// Starts as many `db create` at once; all must succeed. Returns the databases, what was said, and
/// how long the slowest took.
fn at_once(project: &Project, count: usize) -> (Vec<Target>, String) {
    let started = Instant::now();
    let children: Vec<Child> = (0..count)
        .map(|_| project.sandbox.command(&["db", "create"]).spawn().expect("it was built"))
        .collect();
    let (mut databases, mut said) = (Vec::new(), String::new());
    for child in children {
        let output = child.wait_with_output().expect("it was started");
        let run = project.sandbox.ended(&["db", "create"], output).succeeds();
        databases.extend(lent(&run.stdout));
        said.push_str(&run.stderr);
    }
    say(&format!("{count} times `db create` at once: {} ms", started.elapsed().as_millis()));
    let names: BTreeSet<&str> = databases.iter().map(|one| one.database.as_str()).collect();
    assert_eq!(names.len(), count, "{names:?}");
    (databases, said)
}

#[tokio::test]
async fn eight_test_workers_at_once_each_get_a_database() {
    let project = ready().await;
    let clean = project.contents().await;
    let started = Instant::now();
    lend(&project, &[]);
    say(&format!("one `db create`: {} ms", started.elapsed().as_millis()));
    let (databases, said) = at_once(&project, 8);
    assert_eq!(said, "");
    for one in &databases {
        assert_eq!(contents_of(&project, one).await, clean);
    }
    // Also where none of them finds a template.
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let (databases, said) = at_once(&project, 8);
    assert_eq!(said.matches(BUILDING).count(), 1, "{said}");
    for one in &databases {
        assert_eq!(query_text(one, "select count(*) from shop.note").await, "0");
    }
    let dropped = project.run(&["db", "drop", "--all", "--json"]).succeeds().json();
    assert_eq!(dropped["dropped"].as_array().map(Vec::len), Some(17), "{dropped}");
    assert_eq!(project.databases().await, ["live", "template"]);
}

#[tokio::test]
async fn what_is_past_its_time_goes_with_a_later_run_once_nobody_is_in_it() {
    let project = ready().await;
    let used = lend(&project, &["--ttl", "0s"]);
    let guest = Session::connect(&used).await.expect("it was lent");
    let kept = lend(&project, &["--ttl", "1h", "--label", "nightly run"]);
    for verb in ["up", "reset"] {
        lend(&project, &["--ttl", "0s"]);
        assert_eq!(project.databases().await, ["lent", "lent", "lent", "live", "template"]);
        let run = project.run(&[verb]).succeeds();
        assert!(run.stderr.contains("dropped 1 lent database past"), "{verb}: {}", run.stderr);
        assert_eq!(project.databases().await, ["lent", "lent", "live", "template"], "{verb}");
    }
    guest.batch("select 1").await.expect("it is somebody's still");

    let listed = project.run(&["db", "list", "--json"]).succeeds().json();
    let listed = listed["databases"].as_array().expect("a list").clone();
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(listed[0]["name"], used.database);
    assert_eq!((&listed[0]["sessions"], &listed[0]["left_seconds"]), (&1.into(), &0.into()));
    let owner = format!("process {}", std::process::id());
    assert_eq!(listed[0]["owner"], owner);
    assert_eq!((&listed[1]["sessions"], &listed[1]["owner"]), (&0.into(), &"nightly run".into()));
    assert!(listed[1]["bytes"].as_i64() > Some(1_000_000), "{listed:?}");
    let table = project.run(&["db", "list"]).succeeds().stdout;
    let line = table.lines().nth(2).expect("a line for each");
    assert!(line.starts_with(&kept.database) && line.contains("nightly run"), "{table}");
    let status = project.run(&["status"]).succeeds();
    assert!(
        status.stdout.contains("lent         2 databases: `seedbed db list`\n"),
        "{}",
        status.stdout
    );

    guest.close().await;
    super::until(
        &project.admin(),
        &format!("select count(*) from pg_stat_activity where datname = '{}'", used.database),
        "0",
    )
    .await;
    let last = lend(&project, &[]);
    let names: Vec<String> = [&kept, &last].map(|one| one.database.clone()).to_vec();
    let listed = project.run(&["db", "list", "--json"]).succeeds().json();
    let left: Vec<&str> = listed["databases"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(left, names);
    project.run(&["db", "drop", "--all"]).succeeds();
    assert_eq!(
        project.run(&["db", "list"]).succeeds().stdout,
        "no database is lent: `seedbed db create` lends one\n"
    );
}

#[tokio::test]
async fn db_drop_takes_names_and_urls_and_nothing_that_was_not_lent() {
    let project = ready().await;
    let [one, two] = [lend(&project, &[]), lend(&project, &[])];
    let guest = Session::connect(&two).await.expect("it was lent");
    let foreign = format!("{}__lent_00000000", project.database);
    run_sql(&project.admin(), &format!("create database {foreign}")).await;
    let template = query_text(
        &project.admin(),
        &format!(
            "select datname from pg_database where datname like '{}\\_\\_template%'",
            project.database
        ),
    )
    .await;
    let elsewhere = one.url_with_password().replace(&format!(":{}", one.port), ":1");
    for name in [&project.database, &foreign, &template, "postgres", &elsewhere] {
        let run = project.run(&["db", "drop", &one.database, name]).exits(12);
        assert!(run.stderr.contains("is no database that was lent here"), "{}", run.stderr);
        assert!(!run.stderr.contains("owner%20word"), "{}", run.stderr);
    }
    assert_eq!(project.databases().await, ["lent", "lent", "lent", "live", "template"]);
    let run = project.run(&["db", "drop", &one.database, &two.url_with_password()]).succeeds();
    assert_eq!(run.stdout, format!("dropped {}, {}\n", one.database, two.database));
    assert!(guest.batch("select 1").await.is_err(), "it was dropped");
    project.run(&["db", "drop", &one.database]).exits(12);
    assert_eq!(project.run(&["db", "drop", "--all"]).succeeds().stdout, "no database is lent\n");
    assert_eq!(project.databases().await, ["lent", "live", "template"], "the one without a marker");
    run_sql(&project.admin(), &format!("drop database {foreign}")).await;
}

#[tokio::test]
async fn db_create_says_what_is_missing() {
    let project = Project::native().with_snapshot().await;
    for verb in [&["db", "create"] as &[&str], &["db", "list"], &["db", "drop", "--all"]] {
        let run = project.run(verb).exits(4);
        assert!(run.stderr.contains("hint: start it with `seedbed up`"), "{}", run.stderr);
    }
    let project = Project::external(elsewhere()).with_snapshot().await;
    let run = project.run(&["db", "create"]).exits(5);
    let said = format!(
        "error: database `{}` is not there, so there is nothing to copy\n  \
         hint: build it with `seedbed up`\n",
        project.database
    );
    assert_eq!(run.stderr, said);
    run_sql(&project.admin(), &format!("create database {}", project.database)).await;
    let run = project.run(&["db", "create"]).exits(12);
    assert!(run.stderr.contains("was not made by seedbed"), "{}", run.stderr);
    run_sql(&project.admin(), &format!("drop database {}", project.database)).await;
    for wrong in [
        &["db", "create", "--ttl", "soon"] as &[&str],
        &["db", "create", "--count", "0"],
        &["db", "drop"],
    ] {
        project.run(wrong).exits(2);
    }
    for protected in [&["db", "create"] as &[&str], &["db", "drop", "--all"]] {
        let run = project.run(&[protected, &["--set", "protected=true"]].concat()).exits(12);
        assert!(run.stderr.contains("is protected: it is only ever read"), "{}", run.stderr);
    }
}

#[tokio::test]
async fn f35_a_session_on_the_template_does_not_stop_db_create() {
    let project = ready().await;
    let clean = project.contents().await;
    let sql = format!(
        "select datname from pg_database where datname like '{}\\_\\_template%'",
        project.database
    );
    let template = query_text(&project.admin(), &sql).await;
    run_sql(&project.admin(), &format!("alter database {template} allow_connections true")).await;
    let guest =
        Session::connect(&project.admin().with_database(&template)).await.expect("it was opened");
    let (databases, _) = at_once(&project, 3);
    for one in &databases {
        assert_eq!(contents_of(&project, one).await, clean);
    }
    assert!(guest.batch("select 1").await.is_err(), "the template has a guest");
    project.run(&["db", "drop", "--all"]).succeeds();
}

#[tokio::test]
async fn f35_a_lent_database_is_dropped_with_its_subscription_and_not_with_a_prepared_transaction()
{
    let project = ready().await;
    let one = lend(&project, &["--ttl", "0s"]);
    let inside = project.admin().with_database(&one.database);
    let name = crate::harness::unique("subscription");
    run_sql(
        &inside,
        &format!(
            "create subscription {name} connection 'host=127.0.0.1 port=1 dbname=none' publication p with (connect = false)"
        ),
    )
    .await;
    let gid = crate::harness::unique("lent");
    let session = Session::connect(&inside).await.expect("it was lent");
    let prepare = format!("begin; delete from shop.purchase; prepare transaction '{gid}'");
    session.batch(&prepare).await.expect("the server allows prepared transactions");
    session.close().await;
    let run = project.run(&["db", "drop", &one.database]).exits(5);
    assert!(
        run.stderr.contains(&format!("hint: end it with `rollback prepared '{gid}'`")),
        "{}",
        run.stderr
    );
    // A sweep leaves it alone, and goes on.
    project.run(&["up"]).succeeds();
    assert_eq!(project.databases().await, ["lent", "live", "template"]);
    run_sql(&inside, &format!("rollback prepared '{gid}'")).await;
    project.run(&["db", "drop", &one.database]).succeeds();
    assert_eq!(project.databases().await, ["live", "template"]);
}

/// `up` lists the databases, has to wait for the removal of a first leftover, and comes to the second
/// when that has been marked and given to somebody.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_marked_since_it_was_looked_at_is_no_leftover() {
    let project = Project::native().with_snapshot().await;
    project.run(&["up"]).succeeds();
    let admin = project.admin();
    run_sql(&admin, "create database shop__lent_00000000").await;
    run_sql(&admin, "create database shop__lent_11111111").await;
    let held = lock_on(&admin, "shop__lent_00000000").await;

    let up = started(&project, &["up"]);
    let waiting = "select count(*) from pg_stat_activity
        where application_name = 'seedbed' and wait_event_type = 'Lock' and query like 'drop database%'";
    until(&admin, waiting, "1").await;
    let given = project.run(&["db", "create"]).succeeds();
    let marker = "select shobj_description(oid, 'pg_database') from pg_database where datname = $1";
    let name = lent(&given.stdout)[0].database.clone();
    let row = Session::connect(&admin).await.expect("it runs");
    let row = row.query_one(marker, &[&name]).await.expect("it is there");
    let marker = seedbed::pg::quote::literal(row.get(0));
    run_sql(&admin, &format!("comment on database shop__lent_11111111 is {marker}")).await;
    let session =
        Session::connect(&admin.with_database("shop__lent_11111111")).await.expect("given");
    held.batch("rollback").await.expect("it is open");
    ended(&project, &["up"], up).succeeds();
    session.batch("select 1").await.expect("nobody has ended it");
}

#[tokio::test]
async fn a_run_that_was_killed_before_it_marked_its_copy_leaves_nothing_for_long() {
    let project = Project::native().with_snapshot().await;
    project.run(&["up"]).succeeds();
    // The state between two statements.
    run_sql(&project.admin(), "create database shop__lent_00000000").await;
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("removed `shop__lent_00000000`"), "{}", up.stderr);
    assert_eq!(project.databases().await, ["live", "template"]);

    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains("made         2"), "{status}");
    assert!(!status.contains("a clone of"), "{status}");
    project.run(&["reset"]).succeeds();
    project.sql("create table shop.many as select generate_series(1, 100000) n").await;
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains(", a clone of the template built 2"), "{status}");
    assert!(status.contains("grown        by 3."), "{status}");
    assert!(!status.contains("lent"), "{status}");
    let status = project.run(&["status", "--json"]).succeeds().json();
    assert_eq!(status["database"]["made_by"], "template");
    assert_eq!(status["database"]["lent"], 0);
    assert!(status["database"]["grown_bytes"].as_i64() > Some(3_000_000), "{status}");
}

#[tokio::test]
async fn postgresql_18_lends_databases_whose_files_share_blocks_where_they_can() {
    if !full() || !docker_is_here() {
        return;
    }
    let Some((mut project, _pool)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_ENGINE_IMAGE", "postgres:18");
    let big = "create table shop.big as
        select n, md5(n::text) || md5((-n)::text) as text from generate_series(1, 1000000) n;";
    project.sandbox.write("sql/V3__big.sql", big);
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    let one = lend(&project, &[]);
    assert_eq!(contents_of(&project, &one).await, clean);
    let path = project.sandbox.project();
    // Without the log, of which a segment may be made meanwhile.
    let taken = || -> i64 {
        let kilobytes = shell(&format!(
            "sync; docker exec $(docker ps -q --filter label=seedbed.path={path}) sh -c \
             'df -Pk /seedbed; du -sk /seedbed/envs/*/current/pg_wal' | \
             awk 'NR == 2 {{ taken = $3 }} NR > 2 {{ taken -= $1 }} END {{ print taken }}'"
        ));
        kilobytes.parse().expect("a number")
    };
    let size = project.text("select pg_database_size(current_database()) / 1024").await;
    let size: i64 = size.parse().expect("a number");
    let before = taken();
    let started = Instant::now();
    let another = lend(&project, &[]);
    let took = started.elapsed().as_millis();
    // Of one more copy that was read to its last row; `ci --databases` makes them in the same way.
    assert_eq!(contents_of(&project, &another).await, clean);
    run_sql(&project.admin(), "checkpoint").await;
    let more = taken() - before;
    say(&format!("one `db create` of {size} kB on PostgreSQL 18: {took} ms, {more} kB"));
    assert!(more < size / 20, "{more} of {size} kB");
    project.run(&["down", "--volumes", "--yes"]).succeeds();
}

#[tokio::test(flavor = "multi_thread")]
async fn f35_clients_that_connect_all_the_time_meet_whole_databases_during_resets() {
    let project = ready().await;
    let target = project.live();
    let (stop, _) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let (target, stopped) = (target.clone(), stop.subscribe());
            tokio::spawn(async move {
                let (mut met, mut ended) = (0, 0);
                while !*stopped.borrow() {
                    let Ok(session) = Session::connect(&target).await else {
                        ended += 1;
                        continue;
                    };
                    for _ in 0..20 {
                        let sql = "select (select count(*) from shop.purchase),
                                          (select count(*) from shop.totals)";
                        match session.query_one(sql, &[]).await {
                            Ok(row) => {
                                let counts = (row.get::<_, i64>(0), row.get::<_, i64>(1));
                                assert_eq!(counts, (10, 10), "half a database");
                                met += 1;
                            }
                            Err(_) => {
                                ended += 1;
                                break;
                            }
                        }
                    }
                    session.close().await;
                }
                (met, ended)
            })
        })
        .collect();
    for _ in 0..3 {
        let reset = tokio::task::block_in_place(|| project.run(&["reset"])).succeeds();
        let note = format!(" on `{}`", project.database);
        let told = reset.stderr.lines().any(|line| line.contains("ended ") && line.contains(&note));
        assert!(told, "{}", reset.stderr);
    }
    stop.send_replace(true);
    let (mut met, mut ended) = (0, 0);
    for client in clients {
        let (one_met, one_ended) = client.await.expect("no client met half a database");
        assert!(one_met > 0, "a client that never got in");
        met += one_met;
        ended += one_ended;
    }
    assert!(ended > 0, "{met} answers, and no session was ended");
    assert_eq!(project.databases().await, ["live", "template"]);
}

/// A command of `ci` that says which databases it has.
const SHOW: &str =
    "for n in $(seq $SEEDBED_DATABASES); do eval echo \\$DATABASE_URL_$n; done; echo $DATABASE_URL";

#[tokio::test]
async fn ci_gives_each_worker_a_database_of_its_own_and_drops_them_all() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    let psql = crate::harness::server().bin_dir.join("psql");
    let script = format!(
        "test $SEEDBED_DATABASES = 3 && test \"$DATABASE_URL\" = \"$DATABASE_URL_1\" || exit 3
         test -z \"$DATABASE_URL_4\" || exit 4
         for url in \"$DATABASE_URL_1\" \"$DATABASE_URL_2\" \"$DATABASE_URL_3\"; do
             {} \"$url\" -AtqX -c 'delete from shop.purchase where purchase_id = 1 returning purchase_id' || exit 5
         done; exit 9",
        psql.display()
    );
    project.sandbox.write("work.sh", script);
    let run = project.run(&["ci", "--databases", "3", "--", "sh", "work.sh"]).exits(9);
    assert!(run.stdout.starts_with("1\n1\n1\n"), "{}", run.stdout);
    assert!(run.stderr.contains("copy the database for each worker"), "{}", run.stderr);
    assert_eq!(project.databases().await, [""; 0]);

    let run = project.run(&["ci", "--databases", "1", "--", "sh", "-c", SHOW]).succeeds();
    let lines: Vec<&str> = run.stdout.lines().take(2).collect();
    assert_eq!(lines[0], lines[1]);
    project.run(&["ci", "--databases", "2"]).exits(2);
    let run = project.run(&["ci", "--databases", "2", "--", "no-such-program"]).exits(2);
    assert!(run.stderr.contains("run `no-such-program`: "), "{}", run.stderr);
    let plain =
        project.run(&["ci", "--", "sh", "-c", "test -z \"$SEEDBED_DATABASES$DATABASE_URL_1\""]);
    plain.succeeds();
    assert_eq!(project.databases().await, [""; 0]);

    let kept = ["ci", "--databases", "2", "--keep", "--json", "--", "true"];
    let json = project.run(&kept).succeeds().json();
    let urls = json["kept_urls"].as_array().expect("a list");
    assert_eq!((urls.len(), &urls[0]), (2, &json["kept_url"]));
    project.run(&["ci"]).succeeds();
    assert_eq!(project.databases().await, ["scratch", "scratch"]);
    let dropped = project.run(&["db", "drop", urls[1].as_str().expect("a URL")]).succeeds();
    assert!(dropped.stdout.starts_with("dropped "), "{}", dropped.stdout);
    assert_eq!(project.databases().await, ["scratch"]);
}

#[tokio::test]
async fn what_ci_has_copied_is_gone_after_an_interrupt_and_swept_after_a_kill() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::io::{BufRead, BufReader};

    let project = Project::external(elsewhere()).with_snapshot().await;
    for (signal, left) in [(Signal::SIGINT, 0), (Signal::SIGKILL, 3)] {
        let script = "echo ready $$; exec sleep 300";
        let mut command =
            project.sandbox.command(&["ci", "--databases", "3", "--", "sh", "-c", script]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut ci = command.spawn().expect("the built program is there");
        let mut lines = BufReader::new(ci.stdout.take().expect("piped")).lines();
        let ready = lines.next().expect("the command runs").expect("text");
        assert_eq!(project.databases().await, ["scratch", "scratch", "scratch"]);
        let pid = i32::try_from(ci.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("our own child");
        ci.wait().expect("our own child");
        if signal == Signal::SIGKILL {
            let command = ready.strip_prefix("ready ").expect(&ready).parse().expect("a number");
            kill(Pid::from_raw(command), Signal::SIGKILL).expect("nobody has ended it");
        }
        assert_eq!(project.databases().await.len(), left, "{signal}");
    }
    // The server sees soon that nobody holds them any more.
    let held = format!(
        "select count(*) from pg_locks l join pg_database d
           on l.objid::int8 = hashtext(d.datname::text)::int8 & 4294967295
         where l.locktype = 'advisory' and d.datname like '{}\\_\\_%'",
        project.database
    );
    super::until(&project.admin(), &held, "0").await;
    project.run(&["ci"]).succeeds();
    assert_eq!(project.databases().await, [""; 0]);
}
