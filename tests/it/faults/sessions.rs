//! F03 to F10 and F13: what can happen to the sessions on the source while it is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;

use super::{CREATE, Case, Ended, Pause, SHOP, is_chunk_upload, until};
use crate::harness::postgres::{query_text, run_sql};
use crate::harness::{self, Gate, Line, Run, Server, TcpProxy};

fn signal(child: &std::process::Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("our own child");
}

/// The run says that it began again.
#[track_caller]
fn began_again(run: &Run) {
    let words = "reading the source again with a new snapshot (2 of 3)";
    assert!(run.stderr.contains(words), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn f03_a_signal_in_the_middle_of_a_dump_or_a_restore_ends_it_without_a_trace() {
    let case = Case::new().await;
    for sent in [Signal::SIGINT, Signal::SIGTERM] {
        let pause = Pause::at(&case.s3, is_chunk_upload);
        let child = case.start(&case.prod, CREATE, Some(&pause.endpoint()));
        pause.arrived();
        signal(&child, sent);
        let run = case.finish(child, CREATE);
        case.holds(&run, Ended::Failed(130)).await;
        assert_eq!(case.listed(), Vec::<String>::new());
        let seen = pause.proxy.seen();
        assert!(seen.iter().all(|call| !call.contains("uploads")), "nothing is pending: {seen:?}");
    }
    case.reaches_its_goal().await;

    case.source.run("update item set label = 'changed ' || item_id").await;
    case.source_changed().await;
    case.create(None).succeeds();
    let up: &[&str] = &["up", "--fresh", "--seed", "latest"];
    for sent in [Signal::SIGINT, Signal::SIGTERM] {
        let pause =
            Pause::at(&case.s3, |seen| seen.method == "GET" && seen.path.contains("/chunks/"));
        let child = case.start(&case.dev, up, Some(&pause.endpoint()));
        pause.arrived();
        signal(&child, sent);
        let run = case.finish(child, up);
        case.holds(&run, Ended::Failed(130)).await;
        let name = &case.dev_database.database;
        let ours = format!("select count(*) from pg_stat_activity where datname like '{name}%'");
        until(&super::elsewhere().admin, &ours, "0").await;
    }
    case.restores().await;
}

/// Money that moves between tables while somebody reads; there is never more or less of it.
struct Bank {
    stop: Arc<AtomicBool>,
    mover: JoinHandle<()>,
}

const BANKS: usize = 50;
const ACCOUNTS: usize = 20;

impl Bank {
    fn sql() -> String {
        let mut sql = SHOP.to_owned();
        for bank in 0..BANKS {
            sql.push_str(&format!(
                "create table bank_{bank} (account int primary key, balance int not null);
                 insert into bank_{bank} select n, 1000 from generate_series(1, {ACCOUNTS}) n;"
            ));
        }
        sql
    }

    fn open(case: &Case) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, target) = (stop.clone(), case.source.target.clone());
        let mover = tokio::spawn(async move {
            let session = seedbed::pg::Session::connect(&target).await.expect("it is up");
            let mut state = 88_172_645_463_325_252_u64;
            let mut next = |below: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                usize::try_from(state % below as u64).expect("small")
            };
            while !stopped.load(Ordering::Relaxed) {
                let (from, to, amount) = (next(BANKS), next(BANKS), next(100));
                let (payer, payee) = (next(ACCOUNTS) + 1, next(ACCOUNTS) + 1);
                let sql = format!(
                    "begin;
                     update bank_{from} set balance = balance - {amount} where account = {payer};
                     update bank_{to} set balance = balance + {amount} where account = {payee};
                     commit"
                );
                session.batch(&sql).await.expect("nobody else writes");
            }
            session.close().await;
        });
        Self { stop, mover }
    }

    async fn close(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.mover.await.expect("no panic");
    }

    /// Restores the newest snapshot and counts the money in it.
    async fn audit(case: &Case) {
        case.dev(&["up", "--fresh", "--seed", "latest"], None).succeeds();
        let sums: Vec<String> =
            (0..BANKS).map(|bank| format!("(select sum(balance) from bank_{bank})")).collect();
        let total = query_text(&case.dev_database, &format!("select {}", sums.join(" + "))).await;
        assert_eq!(total, (BANKS * ACCOUNTS * 1000).to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f06_money_that_moves_between_fifty_tables_is_all_there_in_every_snapshot() {
    let case = Case::on(harness::server(), &Bank::sql(), "").await;
    let bank = Bank::open(&case);
    for _ in 0..if harness::full() { 100 } else { 2 } {
        case.create(None).succeeds();
        Bank::audit(&case).await;
    }
    bank.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f04_f05_a_terminated_session_means_a_new_snapshot_and_never_a_mixture_of_two() {
    // More than may wait for the store: the workers are at it still when the first upload is held.
    let sql = format!(
        "{}
         create table wide as
         select n, (select string_agg(md5(n::text || m), '') from generate_series(1, 300) m) as body
         from generate_series(1, 12000) n;",
        Bank::sql()
    );
    let case = Case::on(harness::server(), &sql, "uploads = 1\n").await;
    let role = &case.reader.name;
    let workers = format!("usename = '{role}' and query ilike 'copy%'");
    let leader = format!(
        "pid = (select pid from pg_stat_activity where usename = '{role}'
                order by backend_start limit 1)"
    );
    for victims in [workers, leader] {
        let bank = Bank::open(&case);
        let pause = Pause::at(&case.s3, is_chunk_upload);
        let child = case.start(&case.prod, CREATE, Some(&pause.endpoint()));
        pause.arrived();
        let ended = case
            .source
            .text(&format!(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where {victims}"
            ))
            .await;
        assert_ne!(ended, "0");
        pause.open();
        let run = case.finish(child, CREATE);
        bank.close().await;
        case.source_changed().await;
        began_again(&run);
        // The copy is of a moment before the last transfer.
        Bank::audit(&case).await;
        let copied = case.target_contents().await.expect("it was just made");
        super::locked(&case.states).push(copied);
        case.holds(&run, Ended::Reached).await;
    }
    case.reaches_its_goal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f07_ddl_right_after_the_export_never_shortens_a_snapshot() {
    let sql = format!(
        "{SHOP}
         create table part (at int, text text) partition by range (at);
         create table part_1 partition of part for values from (0) to (1000);
         create table part_2 partition of part for values from (1000) to (2000);
         insert into part select n, 'part ' || n from generate_series(0, 1999) n;
         create table doomed as select n from generate_series(1, 500) n;"
    );
    let case = Case::on(harness::server(), &sql, "").await;
    let pause = Pause::at(&case.s3, is_chunk_upload);
    let child = case.start(&case.prod, CREATE, Some(&pause.endpoint()));
    pause.arrived();
    let target = case.source.target.clone();
    let ddl = tokio::spawn(async move {
        run_sql(
            &target,
            "begin;
             truncate note;
             alter table item alter label type varchar(100);
             alter table part detach partition part_1;
             drop table doomed;
             commit",
        )
        .await;
    });
    let waits =
        "select count(*) > 0 from pg_locks where relation = 'note'::regclass and not granted";
    until(&case.source.target, waits, "t").await;
    pause.open();
    let run = case.finish(child, CREATE);
    ddl.await.expect("it waited and then succeeded");
    case.source_changed().await;
    case.holds(&run, Ended::Reached).await;
    // Of before the change, or of a new snapshot after it; `holds` knows both and nothing else.
    case.dev(&["up", "--seed", "latest"], None).succeeds();
    case.target_is_old_or_complete().await;
    case.reaches_its_goal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f08_ddl_that_is_queued_when_the_workers_start_blocks_nobody() {
    let case = Case::new().await;
    let gate = Gate::closed();
    let (holding, held) = (Arc::new(AtomicBool::new(false)), gate.clone());
    let hold = holding.clone();
    let upstream = format!("127.0.0.1:{}", case.source.target.port);
    let proxy = TcpProxy::start(&upstream, move |_| {
        if hold.load(Ordering::SeqCst) { Line::Until(held.clone()) } else { Line::Pass }
    });
    // Somebody has the table: the leader waits for it, with everything that comes after it.
    let blocker = seedbed::pg::Session::connect(&case.source.target).await.expect("it is up");
    blocker.batch("begin; lock table note in access exclusive mode").await.expect("it is free");
    let mut command = case.prod.command(CREATE);
    command.env("SEEDBED_DATABASE_PORT", proxy.port().to_string());
    let child = command.spawn().expect("the program was built for this suite");
    let waits = |mode: &str| {
        format!(
            "select count(*) > 0 from pg_locks
             where relation = 'note'::regclass and not granted and mode = '{mode}'"
        )
    };
    until(&case.source.target, &waits("AccessShareLock"), "t").await;
    holding.store(true, Ordering::SeqCst);
    let before = proxy.connections();
    blocker.batch("rollback").await.expect("it holds a lock");
    blocker.close().await;
    // The workers come, and before they reach the server a migration stands in the queue.
    while proxy.connections() == before {
        tokio::task::yield_now().await;
    }
    let target = case.source.target.clone();
    let ddl = tokio::spawn(async move {
        run_sql(&target, "alter table note add column seen boolean default true").await;
    });
    until(&case.source.target, &waits("AccessExclusiveLock"), "t").await;
    holding.store(false, Ordering::SeqCst);
    gate.open();
    let run = case.finish(child, CREATE);
    ddl.await.expect("it waited and then succeeded");
    case.source_changed().await;
    case.holds(&run, Ended::Reached).await;
    case.dev(&["up", "--seed", "latest"], None).succeeds();
    case.target_is_old_or_complete().await;
    case.reaches_its_goal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f08_a_lock_that_never_comes_is_given_up_and_said() {
    if !harness::full() {
        return harness::say("half a minute of waiting is for `scripts/test --full`");
    }
    let case = Case::new().await;
    let blocker = seedbed::pg::Session::connect(&case.source.target).await.expect("it is up");
    blocker.batch("begin; lock table note in access exclusive mode").await.expect("it is free");
    let run = case.create(None);
    blocker.batch("rollback").await.expect("it holds a lock");
    blocker.close().await;
    assert!(
        run.stderr.contains("lock the source's tables for reading within 30s"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("hint: run it again while no migration"), "{}", run.stderr);
    case.holds(&run, Ended::Failed(5)).await;
    case.reaches_its_goal().await;
}

/// A primary and its hot standby, which ends whoever stands in the way of its replay.
fn replicated() -> (&'static Server, &'static Server) {
    let primary = Server::start(&[("wal_level", "replica"), ("autovacuum", "off")]);
    let standby = primary
        .start_standby(&[("max_standby_streaming_delay", "50ms"), ("hot_standby_feedback", "off")]);
    (Box::leak(Box::new(primary)), Box::leak(Box::new(standby)))
}

/// Waits until the standby has replayed what the primary has written.
async fn replayed(primary: &Server, standby: &Server) {
    let lsn = query_text(&primary.admin, "select pg_current_wal_flush_lsn()").await;
    let there = format!("select pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn");
    until(&standby.admin, &there, "t").await;
}

/// Rows that a reader of the standby may still see are removed on the primary.
const VACUUMED: [&str; 2] = ["delete from note", "vacuum note"];

#[tokio::test(flavor = "multi_thread")]
async fn f09_a_standby_that_cancels_the_run_is_read_again_and_then_given_up() {
    let (primary, standby) = replicated();
    let case = Case::on(primary, SHOP, "").await;
    let port = standby.admin.port.to_string();
    let start = |endpoint: &str| {
        let mut command = case.prod.command(CREATE);
        command.env("SEEDBED_DATABASE_PORT", &port).env("SEEDBED_STORE_ENDPOINT", endpoint);
        command.spawn().expect("the program was built for this suite")
    };
    let vacuum = async || {
        for sql in VACUUMED {
            case.source.run(sql).await;
        }
        // Synchronous commit is off: what follows waits for the log to be written.
        run_sql(&primary.admin, "checkpoint").await;
        replayed(primary, standby).await;
    };
    replayed(primary, standby).await;

    let pause = Pause::at(&case.s3, is_chunk_upload);
    let child = start(&pause.endpoint());
    pause.arrived();
    vacuum().await;
    pause.open();
    let run = case.finish(child, CREATE);
    case.source_changed().await;
    began_again(&run);
    assert!(run.stderr.contains("conflict with recovery"), "{}", run.stderr);
    case.holds(&run, Ended::Reached).await;
    case.restores().await;

    // Each attempt is cancelled: its first upload never ends, and rows go again and again.
    let before = case.listed();
    case.source.run("update item set label = label || '!'").await;
    replayed(primary, standby).await;
    let pause = Pause::at(&case.s3, is_chunk_upload);
    let mut child = start(&pause.endpoint());
    while child.try_wait().expect("our own child").is_none() {
        case.source.run("insert into note select n from generate_series(1, 300) n").await;
        vacuum().await;
    }
    let run = case.finish(child, CREATE);
    case.source_changed().await;
    assert!(run.stderr.contains("(3 of 3)"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: set `hot_standby_feedback = on`"), "{}", run.stderr);
    case.holds(&run, Ended::Failed(5)).await;
    assert_eq!(case.listed(), before, "no manifest of a cancelled run");
    case.reaches_its_goal().await;
}

/// More text than what one upload leaves room for: its COPY waits in the middle.
const WIDE: &str =
    "create table wide as select n, repeat(md5(n::text), 20000) from generate_series(1, 40) n;";

#[tokio::test(flavor = "multi_thread")]
async fn f10_time_outs_of_role_and_database_do_not_end_a_dump() {
    let sql = format!("{}{WIDE}", super::SHOP);
    let case = Case::on(harness::server(), &sql, "uploads = 1\n").await;
    for (whose, value) in [
        (format!("role {}", case.reader.name), "800ms"),
        (format!("database {}", case.source.name()), "800ms"),
        (format!("role {} in database {}", case.reader.name, case.source.name()), "700ms"),
    ] {
        for setting in [
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
        ] {
            case.source.run(&format!("alter {whose} set {setting} = '{value}'")).await;
        }
    }
    case.source_changed().await;
    let pause = Pause::at(&case.s3, is_chunk_upload);
    let child = case.start(&case.prod, CREATE, Some(&pause.endpoint()));
    pause.arrived();
    // The leader idles and a COPY is under way for much longer than that.
    let long = format!(
        "select bool_and(clock_timestamp() - xact_start > interval '2 s') and count(*) > 1
                and bool_or(state = 'active' and query like 'copy%'
                            and clock_timestamp() - query_start > interval '2 s')
         from pg_stat_activity where usename = '{}' and xact_start is not null",
        case.reader.name
    );
    until(&case.server.admin, &long, "t").await;
    pause.open();
    let run = case.finish(child, CREATE);
    assert!(!run.stderr.contains("again"), "{}", run.stderr);
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}

/// A server of a newer version in a container, which goes with this process.
async fn newer_server() -> Server {
    let password = harness::unique("word");
    let docker = |args: &[&str]| {
        let output = std::process::Command::new("docker").args(args).output().expect("docker");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let word = format!("POSTGRES_PASSWORD={password}");
    let port = "127.0.0.1::5432";
    let id = docker(&["run", "--detach", "--publish", port, "--env", &word, "postgres:17"]);
    harness::watchdog::at_exit(&format!("docker rm --force --volumes {id} >/dev/null"));
    let published = docker(&["port", &id, "5432/tcp"]);
    let port = published.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let admin = seedbed::pg::Target {
        port,
        password: Some(password.into()),
        ..harness::server().admin.clone()
    };
    // The server of the first set-up listens on no address, so this one is there to stay.
    let started = std::time::Instant::now();
    while seedbed::pg::Session::connect(&admin).await.is_err() {
        assert!(started.elapsed() < super::PATIENCE, "the container does not answer");
        tokio::task::yield_now().await;
    }
    Server { admin, bin_dir: harness::server().bin_dir.clone(), data_dir: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn f10_the_transaction_time_out_of_newer_servers_does_not_end_a_dump() {
    if !harness::full() {
        return harness::say("another version in a container is for `scripts/test --full`");
    }
    if !crate::journeys::docker_is_here() {
        return;
    }
    let server = newer_server().await;
    let source = server.create_database().await;
    // The way out of a container has buffers of its own.
    let wide = WIDE.replace("series(1, 40)", "series(1, 200)");
    source.run(&format!("{SHOP}{wide}")).await;
    let name = source.name().to_owned();
    run_sql(&server.admin, &format!("alter database {name} set transaction_timeout = '150ms'"))
        .await;
    let s3 = harness::s3();
    let mut prod = harness::Sandbox::new();
    prod.write("conf/seedbed.toml", s3.store_section("snapshots", "team"));
    for (name, value) in s3.variables() {
        prod.set(name, value);
    }
    let word = source.target.password.as_ref().map_or("", secrecy::ExposeSecret::expose_secret);
    prod.set("PROD_WORD", word);
    prod.write("conf/prod.toml", super::environment(&source.target, "PROD_WORD"));
    prod.set("SEEDBED_SNAPSHOT_UPLOADS", "1");
    prod.set("SEEDBED_SNAPSHOT_CHUNK_BYTES", "1MiB");
    let pause = Pause::at(&s3, is_chunk_upload);
    let mut command = prod.command(CREATE);
    command.env("SEEDBED_STORE_ENDPOINT", pause.endpoint());
    let child = command.spawn().expect("the program was built for this suite");
    pause.arrived();
    let long = format!(
        "select bool_and(clock_timestamp() - xact_start > interval '2 s') and count(*) > 1
                and bool_or(state = 'active' and query like 'copy%'
                            and clock_timestamp() - query_start > interval '2 s')
         from pg_stat_activity where datname = '{name}' and xact_start is not null"
    );
    until(&server.admin, &long, "t").await;
    pause.open();
    let output = child.wait_with_output().expect("our own child");
    let run = prod.ended(CREATE, output).succeeds();
    assert!(!run.stderr.contains("again"), "{}", run.stderr);
    let verified = prod.run(&["snapshot", "verify", "--env", "prod"]).succeeds();
    assert!(verified.stdout.contains("14,800 rows"), "{}", verified.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn f13_a_source_that_restarts_is_read_again_when_it_is_back() {
    let server = Box::leak(Box::new(Server::start(&[("synchronous_commit", "on")])));
    let case = Case::on(server, SHOP, "").await;
    let pause = Pause::at(&case.s3, is_chunk_upload);
    let child = case.start(&case.prod, CREATE, Some(&pause.endpoint()));
    pause.arrived();
    server.restart_at_once();
    pause.open();
    let run = case.finish(child, CREATE);
    began_again(&run);
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_takes_few_sessions_is_read_by_fewer() {
    let mut case = Case::new().await;
    // So many at once that one of them is refused for sure.
    case.prod.set("SEEDBED_SNAPSHOT_JOBS", "8");
    let limit = async |sessions: i32| {
        let sql = format!("alter role {} connection limit {sessions}", case.reader.name);
        run_sql(&case.server.admin, &sql).await;
    };
    // The session that holds the snapshot, and one: a worker's or that of pg_dump. Then one more.
    for sessions in [2, 3] {
        limit(sessions).await;
        let run = case.create(None);
        if sessions == 2 {
            let said = "too many connections for role";
            assert!(run.stderr.contains(said), "{}", run.stderr);
            let said = "; going on with fewer connections";
            assert!(run.stderr.contains(said), "{}", run.stderr);
        }
        case.holds(&run, Ended::Reached).await;
        case.restores().await;
        case.source.run("update item set label = label || '.' where item_id % 7 = 0").await;
        case.source_changed().await;
    }
    limit(1).await;
    let run = case.create(None);
    assert!(run.stderr.contains("too many connections for role"), "{}", run.stderr);
    assert!(run.stderr.contains("  hint: raise the role's `connection limit`"), "{}", run.stderr);
    case.holds(&run, Ended::Failed(4)).await;
    limit(-1).await;
    case.reaches_its_goal().await;
}

/// A snapshot of more tables than the developer's server takes sessions.
async fn with_few_sessions(sessions: &str) -> (Case, Server) {
    let tables: Vec<String> = (0..12)
        .map(|number| {
            format!("create table part_{number} as select n from generate_series(1, 50) n;")
        })
        .collect();
    let triggers = "create function kept() returns trigger language plpgsql as
            'begin return new; end';
        create trigger kept before update on note for each row execute function kept();";
    let sql = format!("{SHOP}{}{triggers}", tables.concat());
    let mut case = Case::on(harness::server(), &sql, "[restore]\njobs = 12\n").await;
    case.create(None).succeeds();
    let few =
        Server::start(&[("max_connections", sessions), ("superuser_reserved_connections", "0")]);
    case.moves_to(&few);
    (case, few)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_few_sessions_is_filled_by_fewer() {
    let (case, _few) = with_few_sessions("9").await;
    let run = case.dev(&["up", "--fresh", "--seed", "latest"], None);
    assert!(run.stderr.contains("too many clients already"), "{}", run.stderr);
    assert!(run.stderr.contains("; going on with fewer connections"), "{}", run.stderr);
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_the_rows_is_made_where_one_more_session_is_taken_and_no_second() {
    let (case, few) = with_few_sessions("12").await;
    let sizes = case.files("chunks").into_iter().map(|file| (case.read(&file).len(), file));
    let (_, largest) = sizes.max().expect("there are chunks");
    let largest = largest.file_name().expect("a file").to_owned();
    let pause = Pause::at(&case.s3, move |seen| seen.path.contains(&largest));
    let args = ["up", "--fresh", "--seed", "latest"];
    let mut command = case.dev.command(&args);
    command.env("SEEDBED_STORE_ENDPOINT", pause.endpoint());
    case.dev.write("stderr", "");
    let stderr = case.dev.project().join("stderr");
    command.stderr(std::fs::File::create(&stderr).expect("the project folder is ours"));
    // Others take what the workers leave, but for one session.
    let connect = || seedbed::pg::Session::connect(&few.admin);
    let mut others = vec![connect().await.expect("it is up")];
    let mut child = command.spawn().expect("the program was built for this suite");
    pause.arrived();
    let said = |words: &str| case.dev.read("stderr").contains(words);
    while !said("; going on with fewer connections") {
        tokio::task::yield_now().await;
    }
    pause.open();
    let sql = "select count(*) from pg_stat_activity where backend_type = 'client backend'";
    while !said("attach indexes") && child.try_wait().expect("our own child").is_none() {
        let taken: i64 = others[0].query_one(sql, &[]).await.expect("it is ours").get(0);
        if taken < 11
            && let Ok(session) = connect().await
        {
            others.push(session);
        }
    }
    drop(others);
    let output = child.wait_with_output().expect("our own child");
    let mut run = case.dev.ended(&args, output);
    run.stderr = case.dev.read("stderr");
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}
