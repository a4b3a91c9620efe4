//! Killed, stopped, started twice: what is there afterwards is the old state or the new one, never
//! something between.
//!
//! No point is met by chance. The snapshot and the scripts of [`gated`] hold *gates*: functions that wait
//! as long as a role `gate_…` exists; the server then shows who waits where. Statements on databases are
//! held by a lock of the test's own.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Child;
use std::sync::mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seedbed::pg::{Session, Target};
use tokio::sync::OnceCell;

use crate::harness::postgres::{query_text, run_sql};
use crate::harness::{Run, Sandbox, full, s3, server, unique, watchdog};
use crate::journeys::{Production, Project, copy_tree, files_below, protected, until};

const GATED: &str = "create schema shop;
create function shop.gate(stage text, x int) returns int language plpgsql immutable as $$
begin
    while exists (select from pg_catalog.pg_roles where rolname = 'gate_' || stage) loop
        perform pg_catalog.pg_sleep(600);
    end loop;
    return x;
end $$;
create table shop.item (
    item_id int primary key,
    label text not null,
    check (shop.gate('rows', item_id) > 0)
);
create index item_gate on shop.item (shop.gate('index', item_id));
create materialized view shop.labels as select label, shop.gate('refresh', item_id) from shop.item;
";

const GATED_SCRIPT: &str = "create table shop.note (body text);
do $$ begin
    while exists (select from pg_roles where rolname = 'gate_migrate') loop perform pg_sleep(0.05); end loop;
end $$;
";

/// A project whose snapshot and scripts have gates, up and used.
async fn gated() -> Project {
    static STORE: OnceCell<camino::Utf8PathBuf> = OnceCell::const_new();
    let store = STORE.get_or_init(|| async {
        let dir = tempfile::tempdir().expect("the temporary folder can be written to").keep();
        let dir = camino::Utf8PathBuf::from_path_buf(dir).expect("we named it in UTF-8");
        watchdog::at_exit(&format!("rm -rf {dir}"));
        let admin = &server().admin;
        let target = admin.with_database(&unique("gated_prod"));
        run_sql(admin, &format!("create database {}", target.database)).await;
        let mut sandbox = Sandbox::new();
        sandbox.set("PROD_WORD", &word(&target));
        sandbox.write("conf/seedbed.toml", format!("[store]\nurl = \"{dir}\"\n"));
        sandbox.write("conf/prod.toml", protected(&target));
        sandbox.write("sql/V1__shop.sql", GATED);
        sandbox.run(&["migrate", "--yes"]).succeeds();
        let rows = "insert into shop.item select n, md5(n::text) from generate_series(1, 1000) n;
                    refresh materialized view shop.labels";
        run_sql(&target, rows).await;
        sandbox.run(&["snapshot", "create"]).succeeds();
        run_sql(admin, &format!("drop database {}", target.database)).await;
        dir
    });
    let project = Project::native();
    let root = project.sandbox.project();
    copy_tree(store.await, &root.join("seed/snapshots"));
    for gone in ["sql/V2__purchases.sql", "sql/R__totals.sql"] {
        std::fs::remove_file(root.join(gone)).expect("it was written");
    }
    project.sandbox.write("sql/V1__shop.sql", GATED);
    project.sandbox.write("sql/V2__notes.sql", GATED_SCRIPT);
    project.run(&["up"]).succeeds();
    project
}

fn word(target: &Target) -> String {
    use secrecy::ExposeSecret;
    target.password.as_ref().expect("the harness gives one").expose_secret().to_owned()
}

/// A point of a run at which it stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// `create database`, behind a lock on `template0`.
    Create,
    Rows,
    Index,
    Refresh,
    Migrate,
    /// The copy that becomes the template, behind a lock on what is built.
    Freeze,
    /// The copy of the template, behind a lock on it.
    Clone,
    /// The first statement of the swap, behind a lock on the live database.
    Swap,
}

const ALL: [Point; 8] = [
    Point::Create,
    Point::Rows,
    Point::Index,
    Point::Refresh,
    Point::Migrate,
    Point::Freeze,
    Point::Clone,
    Point::Swap,
];

impl Point {
    fn gate(self) -> Option<&'static str> {
        match self {
            Self::Rows => Some("gate_rows"),
            Self::Index => Some("gate_index"),
            Self::Refresh => Some("gate_refresh"),
            Self::Migrate | Self::Freeze => Some("gate_migrate"),
            Self::Create | Self::Clone | Self::Swap => None,
        }
    }
}

/// What holds a run at its point; gone with [`Held::release`].
struct Held {
    child: Child,
    admin: Target,
    lock: Option<Session>,
    gate: Option<&'static str>,
}

const WAITS_FOR_LOCK: &str = "select count(*) > 0 from pg_stat_activity
    where application_name = 'seedbed' and wait_event_type = 'Lock' and backend_type = 'client backend'";

/// Starts `args` and returns when it stands at `point`.
async fn start(project: &Project, args: &[&str], point: Point) -> Held {
    let admin = project.admin();
    let name = &project.database;
    let like = |kind: &str| {
        format!("select datname from pg_database where datname like '{name}\\_\\_{kind}\\_%'")
    };
    let template = query_text(&admin, &like("template")).await;
    if point != Point::Clone && !template.is_empty() {
        let drop = format!("alter database {template} is_template false; drop database {template}");
        let session = Session::connect(&admin).await.expect("it runs");
        for statement in drop.split("; ") {
            session.batch(statement).await.expect("nobody is in it");
        }
        session.close().await;
    }
    let lock = match point {
        Point::Create => Some(lock_on(&admin, "template0").await),
        Point::Clone => Some(lock_on(&admin, &template).await),
        Point::Swap => Some(lock_on(&admin, name).await),
        Point::Rows | Point::Index | Point::Refresh | Point::Migrate | Point::Freeze => None,
    };
    if let Some(gate) = point.gate() {
        run_sql(&admin, &format!("create role {gate}")).await;
    }
    let child = project.sandbox.command(args).spawn().expect("it was built");
    let mut held = Held { child, admin: admin.clone(), lock, gate: point.gate() };
    if held.lock.is_some() {
        until(&admin, WAITS_FOR_LOCK, "t").await;
        return held;
    }
    let sleeping = "select count(*) > 0 from pg_stat_activity where wait_event = 'PgSleep'";
    until(&admin, sleeping, "t").await;
    if point == Point::Freeze {
        let scratch = query_text(&admin, &like("scratch")).await;
        held.lock = Some(lock_on(&admin, &scratch).await);
        run_sql(&admin, "drop role gate_migrate").await;
        held.gate = None;
        until(&admin, WAITS_FOR_LOCK, "t").await;
    }
    held
}

/// A session that keeps others from copying, renaming and commenting `database`; one may connect.
pub async fn lock_on(admin: &Target, database: &str) -> Session {
    let session = Session::connect(admin).await.expect("it runs");
    let comment =
        "select shobj_description(oid, 'pg_database') from pg_database where datname = $1";
    let row = session.query_one(comment, &[&database]).await.expect("it is there");
    // The same text again: what counts is the lock until the transaction ends.
    let text: Option<String> = row.get(0);
    let text = text.map_or("null".to_owned(), |text| seedbed::pg::quote::literal(&text));
    let sql = format!("begin; comment on database {database} is {text}");
    session.batch(&sql).await.expect("a superuser may");
    session
}

impl Held {
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    /// Waits for the end of the program; what held it still does.
    fn ended(self, project: &Project, args: &[&str]) -> (Run, Obstacle) {
        let output = self.child.wait_with_output().expect("it was started");
        let obstacle = Obstacle { admin: self.admin, lock: self.lock, gate: self.gate };
        (project.sandbox.ended(args, output), obstacle)
    }
}

struct Obstacle {
    admin: Target,
    lock: Option<Session>,
    gate: Option<&'static str>,
}

impl Obstacle {
    async fn remove(self) {
        if let Some(lock) = self.lock {
            lock.batch("rollback").await.expect("it is open");
            lock.close().await;
        }
        if let Some(gate) = self.gate {
            run_sql(&self.admin, &format!("drop role {gate}")).await;
        }
        // What a killed run had asked for is still done by the server; only then is the state final.
        let asked = "select count(*) from pg_stat_activity where query like 'create database %' and state = 'active'
                     and pid <> pg_backend_pid()";
        until(&self.admin, asked, "0").await;
    }
}

async fn killed(project: &Project, point: Point) {
    project.sql(&format!("update shop.item set label = 'used {point:?}'")).await;
    let used = project.contents().await;
    let args: &[&str] = match point {
        // An existing database is built anew by either.
        Point::Index => &["up", "--fresh"],
        _ => &["reset"],
    };
    let held = start(project, args, point).await;
    held.signal(Signal::SIGKILL);
    let (run, obstacle) = held.ended(project, args);
    assert_eq!(run.code, None, "{point:?}: {}", run.stderr);
    assert_eq!(project.contents().await, used, "{point:?}");
    obstacle.remove().await;
    assert_eq!(project.contents().await, used, "{point:?}");
    project.run(&["reset"]).succeeds();
    let count = "select count(*) from shop.item where label like 'used%'";
    assert_eq!(project.text(count).await, "0", "{point:?}");
    assert_eq!(project.databases().await, ["live", "template"], "{point:?}");
}

#[tokio::test]
async fn f02_killed_at_any_stage_the_old_database_is_whole_and_the_next_run_succeeds() {
    let project = gated().await;
    let few = [Point::Rows, Point::Migrate, Point::Clone, Point::Swap];
    let points: &[Point] = if full() { &ALL } else { &few };
    for point in points {
        killed(&project, *point).await;
    }
}

#[tokio::test]
async fn f02_up_killed_in_a_migration_has_not_migrated_and_completes_the_next_time() {
    let project = gated().await;
    project.sandbox.write("sql/V3__more.sql", GATED_SCRIPT.replace("shop.note", "shop.more"));
    let before = project.contents().await;
    let held = start(&project, &["up"], Point::Migrate).await;
    held.signal(Signal::SIGKILL);
    let (run, obstacle) = held.ended(&project, &["up"]);
    assert_eq!(run.code, None);
    assert_eq!(project.contents().await, before);
    obstacle.remove().await;
    let up = project.run(&["up"]).succeeds();
    assert!(up.stdout.contains("migrated  V3__more.sql ("), "{}", up.stdout);
    assert_eq!(project.text("select to_regclass('shop.more') is not null").await, "t");
}

async fn interrupted(project: &Project, args: &[&str], point: Point, signal: Signal) {
    if point == Point::Clone {
        // So that there is something to clone.
        project.run(&["reset"]).succeeds();
    }
    project.sql("update shop.item set label = 'used'").await;
    let used = project.contents().await;
    let held = start(project, args, point).await;
    held.signal(signal);
    let (run, obstacle) = held.ended(project, args);
    let run = run.exits(130);
    assert!(run.stderr.ends_with("error: interrupted\n"), "{point:?}: {}", run.stderr);
    assert_eq!(run.stdout, "", "{point:?}");
    // Nothing goes on behind the back of who stopped it.
    let left = "select count(*) from pg_stat_activity
                where application_name in ('seedbed', 'pg_restore') and state <> 'idle' and pid <> pg_backend_pid()
                and query not like 'begin; comment on database %'";
    until(&project.admin(), left, "0").await;
    let databases = project.databases().await;
    assert!(
        !databases.iter().any(|name| name.contains("scratch")),
        "{point:?}: {databases:?}\n{}",
        run.stderr
    );
    assert_eq!(project.contents().await, used, "{point:?}");
    obstacle.remove().await;
    project.sql("select 1").await;
}

#[tokio::test]
async fn f03_a_reset_that_is_interrupted_ends_with_130_and_leaves_the_old_state() {
    let project = gated().await;
    let few = [Point::Index, Point::Migrate, Point::Swap];
    // The lock of `Freeze` would keep the run from dropping what it has built.
    let all: Vec<Point> = ALL.into_iter().filter(|point| *point != Point::Freeze).collect();
    let points: &[Point] = if full() { &all } else { &few };
    for (number, point) in points.iter().enumerate() {
        let signal = if number % 2 == 0 { Signal::SIGINT } else { Signal::SIGTERM };
        interrupted(&project, &["reset", "--verbose"], *point, signal).await;
    }
    project.run(&["reset"]).succeeds();
    assert_eq!(project.databases().await, ["live", "template"]);
    project.sandbox.write("sql/V3__more.sql", GATED_SCRIPT.replace("shop.note", "shop.more"));
    interrupted(&project, &["up"], Point::Migrate, Signal::SIGINT).await;
    project.run(&["up"]).succeeds();
}

#[tokio::test]
async fn f30_a_second_run_ends_with_11_and_says_who_works() {
    let project = gated().await;
    let held = start(&project, &["reset"], Point::Rows).await;
    for verb in ["up", "reset", "down"] {
        let run = project.run(&[verb]).exits(11);
        let said = format!(
            "error: another run works on this project: `seedbed reset`, process {}, since ",
            held.child.id()
        );
        assert!(run.stderr.starts_with(&said), "{verb}: {}", run.stderr);
        let hint = "\n  hint: wait until it has ended, then run the command again\n";
        assert!(run.stderr.ends_with(hint), "{verb}: {}", run.stderr);
    }
    // Looking is not working.
    project.run(&["status"]).succeeds();

    // Another checkout of the same project, on the same server.
    let other = Project::external(server());
    let admin = project.admin();
    let mut other_sandbox = other.sandbox;
    other_sandbox.set("SUPERUSER_WORD", &word(&admin));
    other_sandbox.write(
        "conf/dev.toml",
        format!(
            "[engine]\nkind = \"external\"\nsuperuser = \"postgres\"\nsuperuser_password = \"env:SUPERUSER_WORD\"\n\
             [database]\nhost = \"127.0.0.1\"\nport = {}\nname = \"shop\"\nuser = \"shop_owner\"\npassword = \"owner word\"\n",
            admin.port
        ),
    );
    let run = other_sandbox.run(&["reset"]).exits(11);
    assert!(
        run.stderr.contains("error: another run works on database `shop` of this server (backend "),
        "{}",
        run.stderr
    );
    held.signal(Signal::SIGINT);
    let (run, obstacle) = held.ended(&project, &["reset"]);
    run.exits(130);
    obstacle.remove().await;
    project.run(&["reset"]).succeeds();
}

/// Passes bytes on to an S3 server until the first chunk is about to be stored; then it says so and keeps
/// everything back.
struct StallingProxy {
    port: u16,
    stalled: mpsc::Receiver<()>,
}

impl StallingProxy {
    fn before(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let port = listener.local_addr().expect("it is bound").port();
        let (stall, stalled) = mpsc::channel();
        let address = address.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&address).expect("the S3 server runs");
                let (mut from, mut to) = (clone(&server), clone(&client));
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                let stall = stall.clone();
                std::thread::spawn(move || pass_on(client, server, &stall));
            }
        });
        Self { port, stalled }
    }
}

fn clone(socket: &TcpStream) -> TcpStream {
    socket.try_clone().expect("a socket can be cloned")
}

fn pass_on(mut client: TcpStream, mut server: TcpStream, stall: &mpsc::Sender<()>) {
    let mut block = [0; 16 * 1024];
    while let Ok(count) = client.read(&mut block) {
        let text = String::from_utf8_lossy(&block[..count]);
        if text.contains("PUT /snapshots/") && text.contains("/chunks/") {
            let _ = stall.send(());
            // Until the client gives up.
            while client.read(&mut block).is_ok_and(|count| count > 0) {}
            break;
        }
        if count == 0 || server.write_all(&block[..count]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

#[tokio::test]
async fn f03_a_snapshot_that_is_interrupted_leaves_no_session_and_no_manifest() {
    let s3 = s3();
    let section = s3.store_section("snapshots", "shop");
    let mut production = Production::new(&section).await;
    for (name, value) in s3.variables() {
        production.sandbox.set(name, value);
    }
    let sessions = format!(
        "select count(*) from pg_stat_activity where datname = '{}' and pid <> pg_backend_pid()",
        production.target.database
    );
    let admin = &server().admin;
    let args = ["snapshot", "create"];
    let end = async |child: Child, signal: Signal| {
        let pid = i32::try_from(child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it runs");
        let output = child.wait_with_output().expect("it was started");
        let run = production.sandbox.ended(&args, output).exits(130);
        assert!(run.stderr.ends_with("error: interrupted\n"), "{}", run.stderr);
        until(admin, &sessions, "0").await;
        let manifests = files_below(&s3.bucket_dir("snapshots"));
        let manifests =
            manifests.iter().filter(|file| file.as_str().contains("/snapshots/shop/snapshots/"));
        assert_eq!(manifests.count(), 0);
    };

    // While it waits for its locks.
    let lock = Session::connect(&production.target).await.expect("it runs");
    lock.batch("begin; lock table shop.item in access exclusive mode")
        .await
        .expect("nobody else is there");
    let child = production.sandbox.command(&args).spawn().expect("it was built");
    let waits = "select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'seedbed' and datname = current_database()";
    until(&production.target, waits, "t").await;
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("it runs");
    let output = child.wait_with_output().expect("it was started");
    production.sandbox.ended(&args, output).exits(130);
    until(&production.target, &sessions, "1").await;
    if full() {
        // Nobody interrupts it: it gives up by itself, production is not kept waiting.
        let run = production.run(&args).exits(5);
        assert!(
            run.stderr.contains("lock the source's tables for reading within 30s"),
            "{}",
            run.stderr
        );
        assert!(
            run.stderr.contains("hint: run it again while no migration is running"),
            "{}",
            run.stderr
        );
    }
    lock.batch("rollback").await.expect("it is open");
    lock.close().await;

    // While it reads and stores.
    let direct = format!("endpoint = \"{}\"", s3.endpoint());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // One for each: several workers stand still at one.
        let proxy = StallingProxy::before(s3.endpoint().trim_start_matches("http://"));
        let through = format!("endpoint = \"http://127.0.0.1:{}\"", proxy.port);
        production.sandbox.write("conf/seedbed.toml", section.replace(&direct, &through));
        let child = production.sandbox.command(&args).spawn().expect("it was built");
        proxy.stalled.recv().expect("the proxy runs");
        end(child, signal).await;
    }
    production.sandbox.write("conf/seedbed.toml", &section);
    production.run(&args).succeeds();
    production.run(&["snapshot", "verify"]).succeeds();
    production.drop_database().await;
}
