//! Faults that a snapshot survives, on its way from production to a developer.
//!
//! A [`Case`] is a production database that a role with the least rights reads, a store on a real S3
//! server, and a developer's project on another server. A fault comes from a proxy in front of the real
//! thing, or is done to the real thing; the built program runs into it. Whatever the fault was,
//! [`Case::holds`] says what is true afterwards, and [`Case::reaches_its_goal`] that running it
//! again without cleaning up gets there. Names of tests carry the number of the fault.

mod damage;
mod kill_sweep;
mod network;
mod restore;
mod sessions;

use std::collections::BTreeMap;
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use seedbed::pg::Target;

use crate::equality;
use crate::harness::fault_proxy::Seen;
use crate::harness::postgres::{TestRole, query_text, run_sql};
use crate::harness::s3::SECRET_KEY;
use crate::harness::{self, Fault, FaultProxy, Gate, Run, S3Server, Sandbox, Server, TestDatabase};
use crate::journeys::elsewhere;

/// Long beside everything that a test waits for, short beside a build that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A table in several chunks, one in a chunk of its own, small ones that share one, a sequence.
const SHOP: &str = "
create table item (item_id bigint generated always as identity primary key, label text, pad text);
insert into item (label, pad)
select 'item ' || n, md5(n::text) || md5((n * 7)::text) || md5((n * 13)::text)
from generate_series(1, 14000) n;
create table customer (customer_id int primary key, name text not null);
insert into customer select n, 'customer ' || n from generate_series(1, 300) n;
create table note (customer_id int references customer, text text);
insert into note select n, 'note ' || n from generate_series(1, 300) n;
";

/// Every row, as a hash for each table.
type Contents = BTreeMap<String, String>;

/// What the run was to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Reached,
    /// With this exit code.
    Failed(i32),
    Killed,
}

struct Case {
    server: &'static Server,
    source: TestDatabase,
    reader: TestRole,
    s3: S3Server,
    /// Runs with `--env prod`.
    prod: Sandbox,
    /// A developer's project; its environment is `dev`.
    dev: Sandbox,
    dev_database: Target,
    /// What the source holds, and its schema; the test says when it changes.
    now: Mutex<(Contents, String)>,
    /// Every state that the source has been in: what a restored copy may hold.
    states: Mutex<Vec<Contents>>,
}

impl Case {
    async fn new() -> Self {
        Self::on(harness::server(), SHOP, "").await
    }

    /// A source on `server`, made by `sql`; `conf` is added to `conf/seedbed.toml`.
    async fn on(server: &'static Server, sql: &str, conf: &str) -> Self {
        let mut source = server.create_database().await;
        source.target = patient(source.target.clone());
        source.run(sql).await;
        let reader = server.create_role("bypassrls").await;
        source.run(&format!("grant pg_read_all_data to {}", reader.name)).await;
        let s3 = harness::s3();
        let target = &elsewhere().admin;
        let dev_database = patient(target.with_database(&harness::unique("copy")));
        let shared = format!(
            "{}[snapshot]\nchunk_bytes = \"1MiB\"\njobs = 2\nstall_timeout = \"3s\"\n{conf}",
            s3.store_section("snapshots", "team")
        );
        let mut prod = Sandbox::new();
        let mut dev = Sandbox::new();
        for sandbox in [&mut prod, &mut dev] {
            sandbox.write("conf/seedbed.toml", &shared);
            for (name, value) in s3.variables() {
                sandbox.set(name, value);
            }
        }
        prod.set("PROD_WORD", reader.password.expose_secret());
        prod.write("conf/prod.toml", environment(&source.target_of(&reader), "PROD_WORD"));
        let word = target.password.as_ref().map_or("", |word| word.expose_secret());
        dev.set("DEV_WORD", word);
        dev.write("conf/dev.toml", environment(&dev_database, "DEV_WORD"));
        let case = Self {
            server,
            source,
            reader,
            s3,
            prod,
            dev,
            dev_database,
            now: Mutex::default(),
            states: Mutex::default(),
        };
        case.source_changed().await;
        case
    }

    /// From now on the developer works on `server`.
    fn moves_to(&mut self, server: &Server) {
        self.dev_database = patient(server.admin.with_database(&harness::unique("copy")));
        let word = server.admin.password.as_ref().map_or("", |word| word.expose_secret());
        self.dev.set("DEV_WORD", word);
        self.dev.write("conf/dev.toml", environment(&self.dev_database, "DEV_WORD"));
    }

    /// The test itself has changed the source: this is what it holds from now on.
    async fn source_changed(&self) {
        let contents = equality::contents(&self.source.target).await;
        let schema = equality::schema(&self.server.bin_dir, &self.source.target);
        locked(&self.states).push(contents.clone());
        *locked(&self.now) = (contents, schema);
    }

    /// `snapshot create`, its store behind `endpoint` if there is one.
    fn create(&self, endpoint: Option<&str>) -> Run {
        self.finish(self.start(&self.prod, CREATE, endpoint), CREATE)
    }

    fn start(&self, sandbox: &Sandbox, args: &[&str], endpoint: Option<&str>) -> Child {
        let mut command = sandbox.command(args);
        if let Some(endpoint) = endpoint {
            command.env("SEEDBED_STORE_ENDPOINT", endpoint);
        }
        command.spawn().expect("the program was built for this suite")
    }

    fn finish(&self, child: Child, args: &[&str]) -> Run {
        let output = child.wait_with_output().expect("our own child");
        self.prod.ended(args, output)
    }

    /// A command of the developer, its store behind `endpoint` if there is one.
    fn dev(&self, args: &[&str], endpoint: Option<&str>) -> Run {
        self.finish(self.start(&self.dev, args, endpoint), args)
    }

    /// Ids of the snapshots that the store itself lists, newest first.
    fn listed(&self) -> Vec<String> {
        let list = self.prod.run(&["snapshot", "list", "--env", "prod", "--json"]).succeeds();
        let list = list.json();
        let rows = list["result"].as_array().cloned().unwrap_or_default();
        rows.iter().filter_map(|row| row["id"].as_str().map(str::to_owned)).collect()
    }

    /// What is true after every fault: the source is as it was and nobody of ours is connected to it, what
    /// the store lists is whole, the developer's database is what it was or a complete new one, no
    /// secret was shown, and a run that failed says so with one error and its code.
    #[track_caller]
    fn holds(&self, run: &Run, ended: Ended) -> impl Future<Output = ()> {
        self.ends(run, ended);
        async {
            self.source_is_as_it_was().await;
            self.store_is_whole();
            self.target_is_old_or_complete().await;
        }
    }

    /// The same where the store itself was damaged by the test.
    #[track_caller]
    fn survives(&self, run: &Run, ended: Ended) -> impl Future<Output = ()> {
        self.ends(run, ended);
        async {
            self.source_is_as_it_was().await;
            self.target_is_old_or_complete().await;
        }
    }

    #[track_caller]
    fn ends(&self, run: &Run, ended: Ended) {
        let shown = format!("{}{}", run.stdout, run.stderr);
        for secret in [self.reader.password.expose_secret(), SECRET_KEY] {
            assert!(!shown.contains(secret), "a secret is shown:\n{shown}");
        }
        let errors = run.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        match (ended, run.code) {
            (Ended::Reached, Some(0)) => assert_eq!(errors, 0, "{shown}"),
            (Ended::Failed(code), Some(found)) if code == found && code != 0 => {
                assert_eq!(errors, 1, "one clear cause:\n{shown}");
            }
            (Ended::Killed, None) => {}
            (_, code) => panic!("{ended:?} was expected, it ended with {code:?}:\n{shown}"),
        }
    }

    async fn source_is_as_it_was(&self) {
        let ours =
            format!("select count(*) from pg_stat_activity where usename = '{}'", self.reader.name);
        until(&self.server.admin, &ours, "0").await;
        let (contents, schema) = locked(&self.now).clone();
        let found = equality::contents(&self.source.target).await;
        assert_eq!(differences(&contents, &found), Vec::<String>::new());
        let found = equality::schema(&self.server.bin_dir, &self.source.target);
        assert_eq!(equality::differences(&schema, &found), Vec::<String>::new());
    }

    #[track_caller]
    fn store_is_whole(&self) {
        if !self.listed().is_empty() {
            self.prod.run(&["snapshot", "verify", "--env", "prod"]).succeeds();
        }
    }

    async fn target_is_old_or_complete(&self) {
        let Some(found) = self.target_contents().await else { return };
        let states = locked(&self.states);
        let same = |state: &Contents| differences(state, &found).is_empty();
        assert!(states.iter().any(same), "the target is neither old nor complete: {found:?}");
    }

    /// What the developer's database holds; `None` when there is none.
    async fn target_contents(&self) -> Option<Contents> {
        let name = &self.dev_database.database;
        let sql = format!("select count(*) from pg_database where datname = '{name}'");
        if query_text(&self.dev_database.with_database("postgres"), &sql).await == "0" {
            return None;
        }
        let mut contents = equality::contents(&self.dev_database).await;
        contents.retain(|table, _| !table.contains("flyway_schema_history"));
        Some(contents)
    }

    /// The same again, without cleaning up and without the fault: a new snapshot, and a developer's
    /// database that is equal to the source.
    async fn reaches_its_goal(&self) {
        let before = self.listed().len();
        self.create(None).succeeds();
        assert_eq!(self.listed().len(), before + 1);
        self.restores().await;
    }

    /// The newest snapshot is what the source holds now.
    async fn restores(&self) {
        self.store_is_whole();
        self.dev(&["up", "--fresh", "--seed", "latest"], None).succeeds();
        let found = self.target_contents().await.expect("it was just made");
        let (contents, _) = locked(&self.now).clone();
        assert_eq!(differences(&contents, &found), Vec::<String>::new());
        self.source_is_as_it_was().await;
    }

    /// Files of the store, relative to its root.
    fn files(&self, below: &str) -> Vec<camino::Utf8PathBuf> {
        let root = self.store_dir();
        let mut found = Vec::new();
        let mut folders = vec![root.join(below)];
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir_utf8().into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path().to_owned());
                } else {
                    let path = entry.path().strip_prefix(&root).expect("it lies below");
                    found.push(path.to_owned());
                }
            }
        }
        found.sort();
        found
    }

    fn store_dir(&self) -> camino::Utf8PathBuf {
        self.s3.bucket_dir("snapshots").join("team")
    }

    fn read(&self, file: impl AsRef<camino::Utf8Path>) -> Vec<u8> {
        std::fs::read(self.store_dir().join(file)).expect("it was listed")
    }

    fn write(&self, file: impl AsRef<camino::Utf8Path>, bytes: impl AsRef<[u8]>) {
        let path = self.store_dir().join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the store is ours");
        std::fs::write(path, bytes).expect("the store is the test's own");
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let name = self.dev_database.database.clone();
        let admin = elsewhere().admin.clone();
        let work = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be built").block_on(async {
                let sql = format!(
                    "select format('drop database %I with (force)', datname) from pg_database
                     where datname = '{name}' or datname like '{name}\\_\\_%'"
                );
                for sql in query_text(&admin, &sql).await.lines() {
                    let name =
                        sql.trim_start_matches("drop database ").replace(" with (force)", "");
                    run_sql(&admin, &format!("alter database {name} is_template false")).await;
                    run_sql(&admin, sql).await;
                }
            });
        });
        let _ = work.join();
    }
}

/// For the test's own sessions: what it sets for a database or a role is not meant for them.
fn patient(target: Target) -> Target {
    [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
    ]
    .iter()
    .fold(target, |target, setting| target.with_setting(setting, "0"))
}

const CREATE: &[&str] = &["snapshot", "create", "--env", "prod"];

fn environment(target: &Target, word: &str) -> String {
    let protected = if word == "PROD_WORD" { "protected = true\n" } else { "" };
    let superuser = match word {
        "PROD_WORD" => "",
        _ => "superuser = \"postgres\"\nsuperuser_password = \"env:DEV_WORD\"\n",
    };
    format!(
        "{protected}[engine]\nkind = \"external\"\n{superuser}[database]\nhost = \"{}\"\nport = {}\n\
         name = \"{}\"\nuser = \"{}\"\npassword = \"env:{word}\"\nsslmode = \"disable\"\n",
        target.host, target.port, target.database, target.user
    )
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What differs; a sequence may be ahead, by what a standby or a replayed log shows, never behind.
fn differences(wanted: &Contents, found: &Contents) -> Vec<String> {
    let position =
        |text: &str| text.split(' ').next().and_then(|number| number.parse::<i64>().ok());
    let mut wanted = wanted.clone();
    for (name, value) in wanted.iter_mut().filter(|(name, _)| name.starts_with("S ")) {
        if let Some(ahead) = found.get(name).filter(|found| position(found) >= position(value)) {
            value.clone_from(ahead);
        }
    }
    equality::content_differences(&wanted, found)
}

/// Waits, by asking, until `sql` gives `answer`.
async fn until(target: &Target, sql: &str, answer: &str) {
    let started = Instant::now();
    loop {
        let found = query_text(target, sql).await;
        if found == answer {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{sql} gives {found}, never {answer}");
        tokio::task::yield_now().await;
    }
}

/// A proxy that holds the store's call at which the test wants to do something, once.
struct Pause {
    proxy: FaultProxy,
    arrivals: Receiver<String>,
    gate: Gate,
}

impl Pause {
    /// Holds the first call that is `wanted`, and those after it until the gate is open.
    fn at(s3: &S3Server, wanted: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Self {
        let (arrive, arrivals) = channel();
        let arrive = Mutex::new(arrive);
        let gate = Gate::closed();
        let held = gate.clone();
        let proxy = FaultProxy::start(&s3.endpoint(), move |seen| {
            if !wanted(seen) {
                return Fault::Pass;
            }
            // Nobody listens any more once the test has seen the first one.
            let _ = locked(&arrive).send(format!("{} {}", seen.method, seen.path));
            Fault::Until(held.clone())
        });
        Self { proxy, arrivals, gate }
    }

    fn endpoint(&self) -> String {
        self.proxy.endpoint()
    }

    /// Waits until the call has come.
    fn arrived(&self) -> String {
        self.arrivals.recv_timeout(PATIENCE).expect("the run makes this call")
    }

    fn open(&self) {
        self.gate.open();
    }
}

/// An upload of rows, or of the schema.
fn is_chunk_upload(seen: &Seen) -> bool {
    seen.method == "PUT" && seen.path.contains("/chunks/")
}

fn is_manifest_upload(seen: &Seen) -> bool {
    seen.method == "PUT" && seen.path.contains("/snapshots/2")
}
