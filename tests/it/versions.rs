//! Snapshots between versions of PostgreSQL: every source from 13 on into the same or a newer server,
//! and every real database into each of three, by the built program and equal by the three oracles.
//!
//! `snapshot create` reads an external server with a role that may only read; `up` of another project
//! starts `postgres:N` in Docker and restores; that copy is snapshotted again and restored again. The
//! reference is a copy made by `pg_dump` of the source's version and `pg_restore` of the target's.

use secrecy::ExposeSecret;
use seedbed::pg::Target;

use crate::equality::{self, Clients};
use crate::harness::{self, Sandbox, Server, container, postgres};
use crate::snapshot::HOSTILE;

/// The team's own script came before the rows: it has to be in every checkout.
const SCRIPT: &str = "create table public.seedbed_ledger (id int primary key, note text);
insert into public.seedbed_ledger select n, 'entry ' || n from generate_series(1, 10) n;
";

/// Statements that a copy by `pg_dump | pg_restore` has and a restored database lacks, by their first
/// words. `docs/exactness.md` has the same list with the reasons.
const LEFT_OUT: &[&str] = &["CREATE USER MAPPING FOR "];

/// From 16 on a server refuses a generated column that inherits from an ordinary one, by `pg_restore`
/// as by us: such a database comes up on its own version only.
const REFUSED_FROM_16_ON: &str =
    "drop table if exists public.gtest_normal_child, public.gtest_normal_child2";

/// A database that stands for production.
struct Source<'a> {
    server: &'a Server,
    clients: Clients<'a>,
    major: u32,
}

/// What is dumped, and as whom.
struct Production {
    database: harness::TestDatabase,
    reader: postgres::TestRole,
}

/// A project folder with the team's script.
fn project(store: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("conf/seedbed.toml", format!("[store]\nurl = \"{store}\"\n"));
    sandbox.write("sql/V1__ledger.sql", SCRIPT);
    sandbox
}

fn point_at(sandbox: &mut Sandbox, target: &Target) {
    sandbox.write(
        "conf/prod.toml",
        format!(
            "protected = true\n[engine]\nkind = \"external\"\n[database]\nhost = \"{}\"\nport = {}\nname = \"{}\"\n\
             user = \"{}\"\npassword = \"env:PROD_PASSWORD\"\n",
            target.host, target.port, target.database, target.user
        ),
    );
    let password = target.password.as_ref().expect("roles of the harness have passwords");
    sandbox.set("PROD_PASSWORD", password.expose_secret());
}

/// One that may read everything, in the words of each version.
async fn reader(source: &Source<'_>, database: &harness::TestDatabase) -> postgres::TestRole {
    let role = source.server.create_role("bypassrls").await;
    let name = &role.name;
    if source.major >= 14 {
        let grant = format!("grant pg_read_all_data to {name}");
        postgres::run_sql(&source.server.admin, &grant).await;
    } else {
        database
            .run(&format!(
                "do $$ declare s name; begin
                   for s in select nspname from pg_namespace
                            where nspname !~ '^pg_' and nspname <> 'information_schema' loop
                     execute format('grant usage on schema %I to {name}', s);
                     execute format('grant select on all tables in schema %I to {name}', s);
                     execute format('grant select on all sequences in schema %I to {name}', s);
                   end loop; end $$"
            ))
            .await;
    }
    grant_large_objects(&database.target, name).await;
    role
}

async fn grant_large_objects(target: &Target, role: &str) {
    let sql = format!(
        "do $$ declare o oid; begin for o in select oid from pg_largeobject_metadata loop
         execute format('grant select on large object %s to {role}', o); end loop; end $$"
    );
    postgres::run_sql(target, &sql).await;
}

/// Migrates the empty database as the team would, then fills it.
async fn production(source: &Source<'_>, fill: Fill<'_>) -> Production {
    let database = source.server.create_database().await;
    let mut sandbox = project("unused");
    point_at(&mut sandbox, &database.target);
    sandbox.run(&["migrate", "--env", "prod", "--yes"]).succeeds();
    match fill {
        Fill::Sql(sql) => database.run(sql).await,
        Fill::Dump(dump) => {
            let bytes = std::fs::read(dump).expect("a dump of the folder can be read");
            source.clients.run("pg_restore", &database.target, &[], &bytes);
        }
    }
    let reader = reader(source, &database).await;
    Production { database, reader }
}

enum Fill<'a> {
    Sql(&'a str),
    Dump(&'a camino::Utf8Path),
}

/// The major version of the `pg_dump` that wrote the newest snapshot's archive, by its own word.
fn dumped_by(sandbox: &Sandbox, environment: &str, clients: &Clients<'_>, any: &Target) -> String {
    let folder = sandbox.project().join("exported");
    let args = ["snapshot", "export", "latest", folder.as_str(), "--env", environment];
    sandbox.run(&args).succeeds();
    let archive = std::fs::read(folder.join("schema.dump")).expect("it was exported");
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    let script = String::from_utf8(clients.run_offline("pg_restore", any, &["--list"], &archive))
        .expect("the tests' names are in UTF-8");
    let line = script.lines().find(|line| line.contains("Dumped by pg_dump version:"));
    line.expect("every archive says it").to_owned()
}

/// A developer's project whose server is `postgres:target`, after `up` from `store`.
struct Developer {
    sandbox: Sandbox,
    container: String,
    /// Database `app` as the superuser.
    target: Target,
}

impl Developer {
    fn up(store: &str, major: u32) -> Self {
        let sandbox = project(store);
        for (environment, name) in [("dev", "app"), ("second", "again")] {
            sandbox.write(
                &format!("conf/{environment}.toml"),
                format!(
                    "[engine]\nkind = \"docker\"\nimage = \"postgres:{major}\"\nsuperuser_password = \"canary\"\n\
                     [database]\nname = \"{name}\"\nuser = \"app_owner\"\npassword = \"word\"\n"
                ),
            );
        }
        let up = sandbox.run(&["up", "--seed", "latest", "--json"]).succeeds().json();
        assert_eq!(up["schema_version"], "1", "{up:#}");
        let url = sandbox.run(&["url"]).succeeds().stdout;
        let url = url::Url::parse(url.trim()).expect("a connection URL");
        let target = Target {
            host: "127.0.0.1".to_owned(),
            port: url.port().expect("named in the URL"),
            database: "app".to_owned(),
            user: "postgres".to_owned(),
            password: Some("canary".to_owned().into()),
            ssl_mode: seedbed::pg::SslMode::Disable,
            ssl_root_cert: None,
            ssl_client: None,
            settings: Vec::new(),
        };
        let container = container::named_by_labels(&sandbox.project());
        Self { sandbox, container, target }
    }

    fn clients(&self) -> Clients<'_> {
        Clients::Container(&self.container)
    }
}

/// `what` from `source` through two generations on `postgres:target`; returns what differs.
async fn through(source: &Source<'_>, production: &Production, target: u32) -> Vec<String> {
    let store = tempfile::tempdir().expect("the temporary folder can be written to");
    let store = store.path().to_str().expect("we named it in UTF-8");
    let mut prod = project(store);
    point_at(&mut prod, &production.database.target_of(&production.reader));
    prod.run(&["snapshot", "create", "--env", "prod"]).succeeds();
    let by = dumped_by(&prod, "prod", &source.clients, &production.database.target);
    let own = format!("version: {}.", source.major);
    assert!(by.contains(&own), "dumped by a client of another version: {by}");

    let mut developer = Developer::up(store, target);
    let copy = developer.target.clone();
    let mut found = Vec::new();
    let before = equality::contents(&production.database.target).await;
    let contents = equality::contents(&copy).await;
    found.extend(equality::content_differences(&before, &contents));

    let reference = copy.with_database("reference");
    postgres::run_sql(&copy, "create database reference template template0").await;
    source.clients.copy_to(&production.database.target, &developer.clients(), &reference);
    let schema = developer.clients().schema(&copy);
    let expected = without_left_out(&developer.clients().schema(&reference));
    found.extend(equality::differences(&expected, &schema));

    let second = tempfile::tempdir().expect("the temporary folder can be written to");
    let second = second.path().to_str().expect("we named it in UTF-8");
    developer.sandbox.set("SEEDBED_STORE_URL", second);
    grant_large_objects(&copy, "app_owner").await;
    developer.sandbox.run(&["snapshot", "create"]).succeeds();
    developer.sandbox.run(&["up", "--seed", "latest", "--env", "second"]).succeeds();
    let again = copy.with_database("again");
    let tell = |line: String| format!("second generation {line}");
    let contents_again = equality::contents(&again).await;
    found.extend(equality::content_differences(&contents, &contents_again).into_iter().map(tell));
    let schema_again = developer.clients().schema(&again);
    found.extend(equality::differences(&schema, &schema_again).into_iter().map(tell));

    harness::say(&format!(
        "{} {} -> {target}: {} things with contents compared, {} differ",
        production.database.name(),
        source.major,
        before.len(),
        found.len()
    ));
    found.into_iter().map(|line| format!("{} -> {target}: {line}", source.major)).collect()
}

/// The lines of a schema without the statements of [`LEFT_OUT`].
fn without_left_out(schema: &str) -> String {
    let mut inside = false;
    let mut kept = String::with_capacity(schema.len());
    for line in schema.lines() {
        inside |= LEFT_OUT.iter().any(|words| line.starts_with(words));
        if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
        inside &= !line.ends_with(';');
    }
    kept
}

async fn hostile(source: u32, targets: &[u32]) {
    let Some(from) = harness::container(source).await else { return };
    let source =
        Source { server: &from.server, clients: Clients::Container(&from.name), major: source };
    let production = production(&source, Fill::Sql(HOSTILE)).await;
    let mut found = Vec::new();
    for target in targets {
        if container::image_is_here(*target) {
            found.extend(through(&source, &production, *target).await);
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The plain suite's part of the matrix: the oldest source into the image that everybody has.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_database_of_version_13_comes_up_equal_on_17() {
    hostile(13, &[17]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_database_of_version_13_comes_up_equal_on_every_other_version() {
    if !harness::full() {
        return harness::say("every version is for `scripts/test --full`");
    }
    hostile(13, &[13, 15, 18]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_database_of_version_15_comes_up_equal_on_every_newer_version() {
    if !harness::full() {
        return harness::say("every version is for `scripts/test --full`");
    }
    hostile(15, &[15, 17, 18]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_database_of_version_17_comes_up_equal_on_17_and_18() {
    if !harness::full() {
        return harness::say("every version is for `scripts/test --full`");
    }
    hostile(17, &[17, 18]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_database_of_version_18_comes_up_equal_on_18() {
    if !harness::full() {
        return harness::say("every version is for `scripts/test --full`");
    }
    hostile(18, &[18]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_newer_server_is_refused_with_the_version_that_it_needs() {
    let Some(from) = harness::container(17).await else { return };
    if !container::image_is_here(15) {
        return;
    }
    let source =
        Source { server: &from.server, clients: Clients::Container(&from.name), major: 17 };
    let production = production(&source, Fill::Sql("select 1")).await;
    let store = tempfile::tempdir().expect("the temporary folder can be written to");
    let store = store.path().to_str().expect("we named it in UTF-8");
    let mut prod = project(store);
    point_at(&mut prod, &production.database.target);
    prod.run(&["snapshot", "create", "--env", "prod"]).succeeds();
    let older = project(store);
    older.write("conf/dev.toml", "[engine]\nkind = \"docker\"\nimage = \"postgres:15\"\n");
    let refused = older.run(&["up", "--seed", "latest"]).exits(8);
    let words = "needs a server of version 17 or newer, this one is 15";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
}

/// Every database of the folder, on three versions. The source is a server of its own: some name
/// roles, which are the whole server's.
async fn dataset(name: &str) {
    let Some(folder) = harness::datasets() else { return };
    let server = Server::start(&[]);
    let roles = ["roles.sql", "identifier-torture-roles.sql"]
        .map(|file| std::fs::read_to_string(folder.join(file)).expect("a file of the folder"));
    postgres::run_sql(&server.admin, &roles.join("\n")).await;
    let major = server.bin_dir.parent().and_then(|dir| dir.file_name()?.to_str()?.parse().ok());
    let source = Source {
        server: &server,
        clients: Clients::Folder(&server.bin_dir),
        major: major.expect("/usr/lib/postgresql/MAJOR/bin"),
    };
    let file = folder.join(format!("{name}.dump"));
    let production = production(&source, Fill::Dump(&file)).await;
    let mut found = Vec::new();
    for target in [15, 17, 18] {
        if !container::image_is_here(target) {
            continue;
        }
        if target > 15 && name == "regression-portable" {
            production.database.run(REFUSED_FROM_16_ON).await;
        }
        found.extend(through(&source, &production, target).await);
    }
    assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn northwind_comes_up_equal_on_15_17_and_18() {
    dataset("northwind").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chinook_comes_up_equal_on_15_17_and_18() {
    dataset("chinook").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn world_comes_up_equal_on_15_17_and_18() {
    dataset("world").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sakila_comes_up_equal_on_15_17_and_18() {
    dataset("sakila").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pagila_comes_up_equal_on_15_17_and_18() {
    dataset("pagila").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_regression_suite_leaves_comes_up_equal_on_15_17_and_18() {
    dataset("regression-portable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_identifiers_come_up_equal_on_15_17_and_18() {
    dataset("identifier-torture").await;
}
