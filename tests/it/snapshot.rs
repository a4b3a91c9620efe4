//! Snapshots: a source into a store and back, equal, or refused with the reason.

use camino::Utf8PathBuf;
use seedbed::config::{self, Flags};
use seedbed::context::Context;
use seedbed::env::Env;
use seedbed::pg::Target;
use seedbed::pg::tools::Tools;
use seedbed::report::Reporter;
use seedbed::snapshot::dump::{self, DumpOptions, Dumped};
use seedbed::snapshot::load::{self, Loaded};
use seedbed::snapshot::manifest::Table;
use seedbed::snapshot::{export, publish, verify};
use seedbed::store::Store;

use crate::equality;
use crate::harness::postgres::TestRole;
use crate::harness::{self, Line, Server, TcpProxy, TestDatabase};

/// A project folder with its store, and what the functions under test want.
struct Project {
    ctx: Context,
    store: Store,
    tools: Tools,
    dir: tempfile::TempDir,
}

impl Project {
    async fn new(server: &Server, conf: &str) -> Self {
        let dir = tempfile::tempdir().expect("the temporary folder can be written to");
        let root = Utf8PathBuf::from_path_buf(dir.path().to_owned()).expect("named in UTF-8");
        std::fs::create_dir(root.join("conf")).expect("the folder is new");
        std::fs::write(root.join("conf/seedbed.toml"), conf).expect("the folder is new");
        std::fs::write(root.join("conf/dev.toml"), "").expect("the folder is new");
        let variables = [
            ("SEEDBED_CACHE_DIR".to_owned(), root.join("cache").into_string()),
            ("PATH".to_owned(), server.bin_dir.to_string_lossy().into_owned()),
        ];
        let env = Env::from_variables(variables, root.clone());
        let flags = Flags { project: Some(root), env: None, overrides: Vec::new() };
        let config = config::load(&env, &flags).expect("a valid configuration");
        let ctx = Context {
            config: config.into(),
            env: env.into(),
            report: Reporter::silent(),
            cancel: tokio_util::sync::CancellationToken::new(),
            yes: true,
        };
        let store = Store::open(&ctx).await.expect("a folder of our own");
        let major = server.bin_dir.parent().and_then(|dir| dir.file_name()?.to_str()?.parse().ok());
        let tools = Tools::find(&ctx, major.expect("/usr/lib/postgresql/MAJOR/bin"))
            .await
            .expect("the server's programs are there");
        Self { ctx, store, tools, dir }
    }

    async fn dump(&self, source: &Target) -> Result<Dumped, seedbed::error::Error> {
        let options = DumpOptions::default();
        let began = std::time::Instant::now();
        let dumped = dump::dump(&self.ctx, source, &self.tools, &self.store, &options).await?;
        publish::publish(&self.ctx, &self.store, &dumped.manifest, began.elapsed()).await?;
        Ok(dumped)
    }

    async fn load(
        &self,
        dumped: &Dumped,
        copy: &TestDatabase,
        owner: &TestRole,
    ) -> Result<Loaded, seedbed::error::Error> {
        let manifest = &dumped.manifest;
        load::load(&self.ctx, &copy.target, &owner.name, &self.tools, &self.store, manifest).await
    }

    /// Files under `dir` of the store.
    fn stored(&self, dir: &str) -> Vec<std::path::PathBuf> {
        files(&self.dir.path().join("seed/snapshots").join(dir))
    }
}

/// Every file below a folder.
fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files
}

/// A role that may read and no more.
async fn reader(server: &Server, attributes: &str) -> TestRole {
    let role = server.create_role(attributes).await;
    let sql = format!("grant pg_read_all_data to {}", role.name);
    harness::postgres::run_sql(&server.admin, &sql).await;
    role
}

/// Gives `role` what single large objects need.
async fn grant_large_objects(database: &TestDatabase, role: &TestRole) {
    let name = &role.name;
    database
        .run(&format!(
            "do $$ declare o oid; begin for o in select oid from pg_largeobject_metadata loop
             execute format('grant select on large object %s to {name}', o); end loop; end $$"
        ))
        .await;
}

/// The three oracles over `source`, through two generations; returns what differs.
async fn compare(server: &Server, source: &TestDatabase, role: &TestRole) -> Vec<String> {
    let project = Project::new(server, "").await;
    let owner = server.create_role("").await;
    let mut found = Vec::new();

    let dumped = match project.dump(&source.target_of(role)).await {
        Ok(dumped) => dumped,
        Err(error) => return vec![format!("dump: {error}")],
    };
    let first = server.create_database().await;
    let loaded = match project.load(&dumped, &first, &owner).await {
        Ok(loaded) => loaded,
        Err(error) => return vec![format!("load: {error}")],
    };
    found.extend(loaded.tolerated.iter().map(|line| format!("tolerated: {line}")));
    let source_contents = equality::contents(&source.target).await;
    let first_contents = equality::contents(&first.target).await;
    found.extend(equality::content_differences(&source_contents, &first_contents));

    let reference = server.create_database().await;
    equality::copy_by_pg_dump(&server.bin_dir, &source.target, &reference.target);
    let reference_schema = equality::schema(&server.bin_dir, &reference.target);
    let first_schema = equality::schema(&server.bin_dir, &first.target);
    found.extend(equality::differences(&reference_schema, &first_schema));

    grant_large_objects(&first, role).await;
    let dumped = match project.dump(&first.target_of(role)).await {
        Ok(dumped) => dumped,
        Err(error) => return vec![format!("second dump: {error}")],
    };
    let second = server.create_database().await;
    if let Err(error) = project.load(&dumped, &second, &owner).await {
        return vec![format!("second load: {error}")];
    }
    let second_contents = equality::contents(&second.target).await;
    let generations = equality::content_differences(&first_contents, &second_contents);
    found.extend(generations.into_iter().map(|line| format!("second generation {line}")));
    let second_schema = equality::schema(&server.bin_dir, &second.target);
    let generations = equality::differences(&first_schema, &second_schema);
    found.extend(generations.into_iter().map(|line| format!("second generation {line}")));

    let foreign = first
        .text(&format!(
            "select c.oid::regclass::text from pg_class c join pg_roles r on r.oid = c.relowner
             where c.oid >= 16384 and r.rolname <> '{}' and c.relnamespace <> 'pg_toast'::regnamespace
               and not exists (select from pg_depend where objid = c.oid and deptype = 'e')",
            owner.name
        ))
        .await;
    found.extend(foreign.lines().map(|name| format!("not the owner's: {name}")));
    for database in [first, second] {
        let sql = format!("drop database {}", database.name());
        harness::postgres::run_sql(&server.admin, &sql).await;
    }
    found
}

async fn dataset_is_equal(name: &str, attributes: &str) {
    let Some(folder) = harness::datasets() else { return };
    let server = harness::server();
    for role in
        ["regress_dump_test_role", "\"regress_quoted  \\\"\" role\"", "\"regress_newline\nattack\""]
    {
        let session = seedbed::pg::Session::connect(&server.admin).await.expect("the server is up");
        // Another test of this server may have made it.
        let _ = session.batch(&format!("create role {role}")).await;
    }
    let source = server.create_database().await;
    let file = format!("{folder}/{name}.dump");
    equality::tool(&server.bin_dir, "pg_restore", Some(&source.target), &[&file]);
    let role = reader(server, attributes).await;
    grant_large_objects(&source, &role).await;
    let found = compare(server, &source, &role).await;
    assert!(found.is_empty(), "{name} differs:\n{}", found.join("\n"));
}

#[tokio::test]
async fn northwind_goes_through_a_snapshot_and_is_equal() {
    dataset_is_equal("northwind", "").await;
}

#[tokio::test]
async fn pagila_goes_through_a_snapshot_and_is_equal() {
    dataset_is_equal("pagila", "").await;
}

#[tokio::test]
async fn sakila_goes_through_a_snapshot_and_is_equal() {
    dataset_is_equal("sakila", "").await;
}

#[tokio::test]
async fn what_the_regression_suite_leaves_goes_through_a_snapshot_and_is_equal() {
    dataset_is_equal("regression-portable", "bypassrls").await;
}

/// Nearly every way in which a copy can go wrong silently.
pub const HOSTILE: &str = r#"
create extension if not exists hstore;
create schema "we ird""schema";
create schema ext;
create extension if not exists pg_trgm schema ext;
create table "we ird""schema"."ta\ble %s" ("co""l" text, "Größe" int, "select" timestamptz default now());
insert into "we ird""schema"."ta\ble %s"
  select case n % 7 when 0 then null when 1 then '' when 2 then '\.' when 3 then E'a\tb\nc\\d\re'
         when 4 then '\N' when 5 then repeat('ü', n) else 'x' end, n, '2026-01-01'::timestamptz + n * '1 s'::interval
  from generate_series(1, 3000) n;
create table no_columns ();
insert into no_columns select from generate_series(1, 17);
create table dropped (a int, gone text, b int);
insert into dropped select n, 'gone', -n from generate_series(1, 100) n;
alter table dropped drop column gone;
create table made (id int generated always as identity, twice int generated always as (n * 2) stored, n int);
insert into made (n) select n from generate_series(1, 100) n;
create table by_default (id bigint generated by default as identity (start 50 increment 5), s serial, t text);
insert into by_default (t) values ('a'), ('b');
create table only_generated (g int generated always as (1) stored);
insert into only_generated default values;
create sequence unowned start 7;
create sequence called; select nextval('called'), nextval('called');
create type mood as enum ('sad', 'ok', 'happy');
create table moods (m mood, n int) partition by hash (m);
create table moods_0 partition of moods for values with (modulus 2, remainder 0);
create table moods_1 partition of moods for values with (modulus 2, remainder 1);
insert into moods select (enum_range(null::mood))[1 + n % 3], n from generate_series(1, 300) n;
create schema "ext 2";
create table "ext 2".t as select 1 as n;
create table add (id int primary key, n int);
create index on add (n);
create table refers_to_add (a int references add);
insert into add values (1, 1); insert into refers_to_add values (1);
create table words (n int, word text);
insert into words select n, 'word ' || n from generate_series(0, 9) n;
create function word_of(int) returns text language plpgsql immutable as
  $$ begin return coalesce((select word from public.words where n = $1 % 10), 'none'); end $$;
create table computed (n int, word text generated always as (public.word_of(n)) stored);
insert into computed select n from generate_series(1, 9000) n;
create table readings (at date, v numeric) partition by range (at);
create table readings_1 partition of readings for values from ('2026-01-01') to ('2026-07-01');
create table readings_2 partition of readings for values from ('2026-07-01') to ('2027-01-01') partition by list (v);
create table readings_2a partition of readings_2 default;
insert into readings select '2026-01-01'::date + n, n / 3.0 from generate_series(0, 360) n;
create table parent (a int, b text);
create table child (c int) inherits (parent);
insert into parent values (1, 'parent');
insert into child values (2, 'child', 3);
create table kinds (m money, f float8, r float4, i interval, d date, t timestamptz, b bytea, c regclass, x xml,
  a text[], j jsonb, bits bit varying, rng tstzrange, h hstore);
insert into kinds values ('-1234.56', 'NaN', 1.1, '-1 year 2 mons -3 days 04:05:06.7', 'infinity', '2026-03-29 02:30+01',
  '\x00ff0a5c', 'dropped', '<a>b</a>', array['a,b', null, '"', ''], '{"a": [1, null]}', B'0101',
  '["2026-01-01 00:00+00",)', 'a=>1, b=>NULL'), (null, 'Infinity', 3.4e38, null, null, null, '', null, null, '{}', 'null', null, null, null);
insert into kinds (f, r) select random(), random() from generate_series(1, 200);
create unlogged table unlogged as select n from generate_series(1, 10) n;
create table a (id int primary key, b int);
create table b (id int primary key, a int references a);
alter table a add foreign key (b) references b deferrable initially deferred;
insert into a values (1, null); insert into b values (1, 1); update a set b = 1;
alter table dropped add constraint late check (a > 50) not valid;
create materialized view z_first as select count(*) as n from made;
create view between_them as select n * 2 as n from z_first;
create materialized view a_second as select n + 1 as n from between_them;
create unique index on a_second (n);
create materialized view not_populated as select 1 as n with no data;
create table buyer (id int primary key, name text);
insert into buyer select n, 'buyer ' || n from generate_series(1, 50) n;
create table purchase (buyer int references buyer);
insert into purchase select 1 + n % 50 from generate_series(1, 500) n;
create materialized view grouped as select c.id, c.name, count(*) as n
  from buyer c join purchase p on p.buyer = c.id group by c.id;
create unique index grouped_id on grouped (id);
alter materialized view grouped cluster on grouped_id;
create index grouped_name on grouped (lower(name));
alter index grouped_name alter column 1 set statistics 50;
comment on index grouped_id is 'comes after its view, which comes after a primary key';
create table big as select n, md5(n::text) as hash, repeat(md5(n::text), 20) as pad from generate_series(1, 6000) n;
create index on big using gin (hash ext.gin_trgm_ops);
create function note() returns trigger language plpgsql as $$ begin raise exception 'a trigger ran'; end $$;
create trigger note before insert on big for each row execute function note();
create rule nothing as on insert to parent do instead nothing;
create function on_ddl() returns event_trigger language plpgsql as $$ begin if tg_tag = 'DROP TABLE' then raise notice 'dropped'; end if; end $$;
create event trigger watch on ddl_command_end execute function on_ddl();
select lo_from_bytea(4711, '\x0001ff'), lo_from_bytea(4712, ''), lo_from_bytea(4713, convert_to(repeat('large', 500000), 'UTF8'));
comment on large object 4711 is 'it''s one';
create foreign data wrapper nowhere;
create server far foreign data wrapper nowhere options (host 'prod.example.com');
create user mapping for public server far options (user 'admin', password 'S3cr3t!Canary');
create foreign table remote (n int) server far;
create table guarded (id int, owner name);
alter table guarded enable row level security;
insert into guarded select n, 'x' from generate_series(1, 100) n;
create publication everything for all tables;
comment on table big is 'it''s "big"';
"#;

#[tokio::test]
async fn f37_a_hostile_database_goes_through_a_snapshot_and_is_equal() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run(HOSTILE).await;
    let role = reader(server, "bypassrls").await;
    let policy = server.create_role("").await;
    source
        .run(&format!(
            "create policy mine on guarded to {policy}, public using (owner = current_user);
             alter database {database} set work_mem = '5MB';
             alter database {database} set search_path = '$user', 'we ird', public;
             alter database {database} set datestyle = 'German';
             alter database {database} set extra_float_digits = -5;
             alter database {database} set bytea_output = 'escape';
             alter database {database} set intervalstyle = 'sql_standard';
             alter database {database} set timezone = 'Asia/Kolkata';
             alter database {database} set statement_timeout = '1s';
             alter database {database} set idle_in_transaction_session_timeout = '1s';
             alter database {database} set row_security = on;
             alter database {database} set default_transaction_read_only = off",
            policy = policy.name,
            database = source.name(),
        ))
        .await;
    grant_large_objects(&source, &role).await;
    let found = compare(server, &source, &role).await;
    // Passwords for other servers are the one thing that a copy by pg_dump has and ours has not.
    let left_behind = [
        "<     \"user\" 'admin'",
        "<     password 'S3cr3t!Canary',",
        "< );",
        "< CREATE USER MAPPING FOR public SERVER far OPTIONS (",
        "> );",
    ];
    assert_eq!(found, left_behind);
    // The policy's role is used by what was dropped with the databases only.
    drop(source);
}

#[tokio::test]
async fn what_is_no_row_comes_along_or_stays_behind_as_promised() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run(HOSTILE).await;
    source.run(&format!("alter database {} set work_mem = '5MB'", source.name())).await;
    let role = reader(server, "bypassrls").await;
    grant_large_objects(&source, &role).await;
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target_of(&role)).await.expect("readable");
    let owner = server.create_role("").await;
    let copy = server.create_database().await;
    let loaded = project.load(&dumped, &copy, &owner).await.expect("whole");

    assert_eq!(loaded.rows, dumped.manifest.rows());
    assert_eq!(loaded.tolerated, Vec::<String>::new());
    assert_eq!(copy.text("select count(*) from pg_user_mappings").await, "0");
    assert_eq!(copy.text("select count(*) from pg_publication").await, "0");
    assert_eq!(copy.text("show work_mem").await, "5MB");
    let left = copy.text("select nextval('called'), nextval('unowned')").await;
    assert_eq!(left, "3|7");
    let next = copy.text("insert into by_default (t) values ('c') returning id, s").await;
    assert_eq!(next, "60|3");
    let role_left = "select count(*) from pg_roles where rolname ~ '^seedbed_load_'
        and shobj_description(oid, 'pg_authid') ~ current_database()";
    assert_eq!(copy.text(role_left).await, "0");
    let owners = copy
        .text(
            "select distinct pg_get_userbyid(proowner) from pg_proc p
             where oid >= 16384 and not exists
               (select from pg_depend where objid = p.oid and deptype = 'e')
             union select pg_get_userbyid(lomowner) from pg_largeobject_metadata",
        )
        .await;
    assert_eq!(owners, owner.name);
}

#[tokio::test]
async fn an_index_that_calls_a_function_grouped_by_a_primary_key_comes_after_both() {
    let server = harness::server();
    let source = server.create_database().await;
    // pg_dump moves the function behind the key.
    source
        .run(
            "create table customer (id int primary key, name text);
             insert into customer select n, 'customer ' || n from generate_series(1, 50) n;
             create function name_of(int) returns text language sql immutable
               begin atomic select name from customer where id = $1 group by customer.id; end;
             create table visit (customer int, at int) partition by range (at);
             create table visit_1 partition of visit for values from (0) to (100);
             insert into visit select 1 + n % 50, n from generate_series(0, 99) n;
             create index visit_name on visit (name_of(customer))",
        )
        .await;
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let (copy, owner) = (server.create_database().await, server.create_role("").await);
    project.load(&dumped, &copy, &owner).await.expect("whole");
    let (wanted, found) =
        (equality::contents(&source.target).await, equality::contents(&copy.target).await);
    assert_eq!(equality::content_differences(&wanted, &found), Vec::<String>::new());
    let schema = |database: &TestDatabase| equality::schema(&server.bin_dir, &database.target);
    assert_eq!(equality::differences(&schema(&source), &schema(&copy)), Vec::<String>::new());
}

#[tokio::test]
async fn an_unchanged_source_uploads_next_to_nothing_the_second_time() {
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create table big as select n, md5(n::text) as hash, repeat(md5(n::text), 9) as pad
             from generate_series(1, 40000) n;
             create table small as select n from generate_series(1, 10) n",
        )
        .await;
    let role = reader(server, "").await;
    let project = Project::new(server, "[snapshot]\nchunk_bytes = \"1MiB\"\n").await;
    let first = project.dump(&source.target_of(&role)).await.expect("readable");
    assert!(first.facts.new_objects > 10, "{:?}", first.facts);
    source.run("update big set hash = 'new' where n = 39999").await;
    let second = project.dump(&source.target_of(&role)).await.expect("readable");
    // The archive, the range of the old row and that of the new one.
    assert!(second.facts.new_objects <= 6, "{:?}", second.facts);
    assert_eq!(second.manifest.rows(), 40010);
    assert_eq!(first.manifest.schema_fingerprint, second.manifest.schema_fingerprint);
    assert_eq!(project.stored("snapshots").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_tables_of_a_far_source_cost_no_round_trip_each() {
    const TABLES: usize = 500;
    let server = harness::server();
    let source = server.create_database().await;
    let table = |at| format!("create table t{at} as select {at} as n, repeat('x', {at}) as text;");
    source.run(&(0..TABLES).map(table).collect::<String>()).await;
    let upstream = format!("127.0.0.1:{}", source.target.port);
    let delay = std::time::Duration::from_millis(10);
    let proxy = TcpProxy::start(&upstream, move |_| Line::Far { delay });
    let target = Target { port: proxy.port(), ..source.target.clone() };
    let project = Project::new(server, "").await;
    let dumped = project.dump(&target).await.expect("readable");
    assert_eq!(dumped.facts.tables, TABLES as u64);
    assert_eq!(dumped.manifest.rows(), TABLES as u64);
    // `pg_dump` asks once for each table by itself; its rows would want two more. What else there is does
    // not grow with them.
    assert!(proxy.round_trips() < TABLES + 250, "{}", proxy.round_trips());
}

#[tokio::test]
async fn small_tables_that_are_slow_one_by_one_are_not_taken_for_a_source_that_is_silent() {
    if !harness::full() {
        return harness::say("what takes half a minute is for `scripts/test --full`");
    }
    const TABLES: usize = 64;
    let server = harness::server();
    let source = server.create_database().await;
    source.run("create extension hstore").await;
    // The rows of an extension's tables are read by its condition: this one takes its time.
    for at in 0..TABLES {
        source
            .run(&format!(
                "create table t{at} as select {at} as n;
                 alter extension hstore add table t{at};
                 update pg_extension
                 set extconfig = extconfig || 't{at}'::regclass::oid,
                     extcondition = extcondition
                       || 'where (select 1 from pg_sleep(0.57)) = 1'::text
                 where extname = 'hstore'"
            ))
            .await;
    }
    let conf = "[snapshot]\nstall_timeout = \"2s\"\njobs = 1\n";
    let project = Project::new(server, conf).await;
    let began = std::time::Instant::now();
    let dumped = project.dump(&source.target).await.expect("no row lets us wait for long");
    assert_eq!(dumped.manifest.rows(), TABLES as u64);
    // Longer than the source may be silent in a question of ours.
    assert!(began.elapsed().as_secs() > 32, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_damaged_chunk_is_stored_again_by_the_snapshot_after_verify_has_found_it() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run("create table t as select n, md5(n::text) from generate_series(1, 9000) n").await;
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let chunk = project
        .dir
        .path()
        .join("seed/snapshots")
        .join(dumped.manifest.tables[0].chunks[0].object_name());
    let whole = std::fs::read(&chunk).expect("it was stored");
    std::fs::write(&chunk, vec![0; whole.len()]).expect("the store is the test's own");
    let verify = verify::verify(&project.ctx, &project.store, None).await;
    assert_eq!(verify.expect_err("a chunk is damaged").exit() as u8, 10);
    assert_eq!(project.stored("prune").len(), 1);

    project.dump(&source.target).await.expect("readable");
    assert_eq!(std::fs::read(&chunk).expect("it is there"), whole);
    verify::verify(&project.ctx, &project.store, None).await.expect("both are whole again");
    assert_eq!(project.stored("prune").len(), 0);
}

#[tokio::test]
async fn f37_two_hundred_tables_that_refer_to_each_other_are_loaded_by_eight_workers() {
    const TABLES: usize = 200;
    let server = harness::server();
    let source = server.create_database().await;
    let mut sql = String::new();
    for at in 0..TABLES {
        sql.push_str(&format!(
            "create table t{at} (id int primary key, next int, back int);
             insert into t{at} select n, n, n from generate_series(1, 20) n;"
        ));
    }
    for at in 0..TABLES {
        let (next, back) = ((at + 1) % TABLES, (at + TABLES - 1) % TABLES);
        sql.push_str(&format!(
            "alter table t{at} add foreign key (next) references t{next},
                               add foreign key (back) references t{back};"
        ));
    }
    source.run(&sql).await;
    let project = Project::new(server, "[restore]\njobs = 8\n").await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let owner = server.create_role("").await;
    // Two foreign keys between the same tables deadlocked in two runs of twenty where nothing kept
    // them apart.
    for _ in 0..3 {
        let copy = server.create_database().await;
        project.load(&dumped, &copy, &owner).await.expect("whole");
        let keys = "select count(*) from pg_constraint where contype = 'f' and convalidated";
        assert_eq!(copy.text(keys).await, (2 * TABLES).to_string());
        let sql = format!("drop database {}", copy.name());
        harness::postgres::run_sql(&server.admin, &sql).await;
    }
}

#[tokio::test]
async fn the_index_of_a_large_table_is_sorted_in_little_memory() {
    let server = harness::server();
    let source = server.create_database().await;
    // The key of the first row notes what its index is sorted in.
    source
        .run(
            "create table seen (memory text);
             create function note() returns void language plpgsql volatile as
               $$ begin insert into public.seen values (current_setting('maintenance_work_mem')); end $$;
             create function key_of(n int) returns text language plpgsql immutable as
               $$ begin
                 if n = 1 and current_query() ilike 'create index%' then perform public.note(); end if;
                 return repeat(md5(n::text), 4);
               end $$;
             create table large as
             select n, md5(n::text) || md5((-n)::text) as pad from generate_series(1, 150000) n;
             create index by_key on large (key_of(n))",
        )
        .await;
    // No process helps another one to build an index, which would want more for both.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let project = Project::new(server, &format!("[restore]\njobs = {cores}\n")).await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let (copy, owner) = (server.create_database().await, server.create_role("").await);
    project.load(&dumped, &copy, &owner).await.expect("whole");
    assert_eq!(copy.text("select pg_relation_size('by_key') > 16 * 1024 * 1024").await, "t");
    assert_eq!(copy.text("select memory from seen").await, "16MB");
    assert_eq!(copy.text("show maintenance_work_mem").await, "64MB");
}

#[tokio::test]
async fn f37_bytes_without_an_encoding_come_back_as_they_are() {
    let server = harness::server();
    let made = async |name: &str, encoding: &str| {
        let options =
            format!("template template0 encoding '{encoding}' lc_collate 'C' lc_ctype 'C'");
        let sql = format!("create database {name} {options}");
        harness::postgres::run_sql(&server.admin, &sql).await;
        server.admin.with_database(name)
    };
    for (encoding, bytes) in [("SQL_ASCII", "ff80fe7e0a095c"), ("LATIN1", "fce4a45c0a")] {
        let source = made(&harness::unique("bytes"), encoding).await;
        harness::postgres::run_sql(
            &source,
            &format!(
                "create table t as
                 select n, convert_from('\\x{bytes}', '{encoding}') || n as text
                 from generate_series(1, 500) n"
            ),
        )
        .await;
        let copy = made(&harness::unique("bytes"), encoding).await;
        let project = Project::new(server, "").await;
        let dumped = project.dump(&source).await.expect("readable");
        let owner = server.create_role("").await;
        let (store, tools) = (&project.store, &project.tools);
        load::load(&project.ctx, &copy, &owner.name, tools, store, &dumped.manifest)
            .await
            .expect("whole");
        let sum = format!(
            "select count(*), md5(string_agg(encode(convert_to(text, '{encoding}'), 'hex'), ',' order by n))
             from t"
        );
        let text = async |target: &Target| harness::postgres::query_text(target, &sum).await;
        assert_eq!(text(&copy).await, text(&source).await, "{encoding}");
        for target in [source, copy] {
            let sql = format!("drop database {}", target.database);
            harness::postgres::run_sql(&server.admin, &sql).await;
        }
    }
}

#[tokio::test]
async fn a_name_that_is_no_utf8_is_refused() {
    let server = harness::server();
    let name = harness::unique("bytes");
    let options = "template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'";
    harness::postgres::run_sql(&server.admin, &format!("create database {name} {options}")).await;
    let source = server.admin.with_database(&name);
    let made = "do $$ begin
        execute format('create table %I (n int)', convert_from('\\x636166e9', 'SQL_ASCII'));
        end $$";
    harness::postgres::run_sql(&source, made).await;
    let project = Project::new(server, "").await;
    // The server checks what it sends as UTF-8, even where it stores bytes.
    let words = ["list the source: invalid byte sequence for encoding \"UTF8\": 0xe9"];
    is_refused(&project, &source, 5, &words).await;
    harness::postgres::run_sql(&server.admin, &format!("drop database {name}")).await;
}

#[tokio::test]
async fn hash_partitions_by_a_range_over_an_enum_go_through_their_root() {
    // pg_restore fails here: a leaf's rows hash by the enum's object ids, which differ in a copy.
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create type mood as enum ('sad', 'ok', 'happy');
             create type mood_range as range (subtype = mood);
             create table span (s mood_range, n int) partition by hash (s);
             create table span_0 partition of span for values with (modulus 2, remainder 0);
             create table span_1 partition of span for values with (modulus 2, remainder 1);
             insert into span
             select mood_range('sad', (enum_range(null::mood))[1 + n % 3], '[]'), n
             from generate_series(1, 90) n",
        )
        .await;
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let (copy, owner) = (server.create_database().await, server.create_role("").await);
    project.load(&dumped, &copy, &owner).await.expect("whole");
    let rows = "select s, count(*), sum(n) from span group by s order by s";
    assert_eq!(copy.text(rows).await, source.text(rows).await);
}

/// What the script of an extension would do that keeps its jobs in a table and a sequence.
const KEEPS_JOBS: &str = "
create extension hstore;
update pg_extension set extname = 'aws_jobs' where extname = 'hstore';
create table job (n int);
create sequence job_number;
alter extension aws_jobs add table job;
alter extension aws_jobs add sequence job_number;
update pg_extension
set extconfig = array['job'::regclass::oid, 'job_number'::regclass::oid], extcondition = array['', '']
where extname = 'aws_jobs';
";

#[tokio::test]
async fn ranges_of_text_that_another_collation_sorts_otherwise_go_through_their_root() {
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create table word (w text, n int) partition by range (w);
             create table word_1 partition of word for values from (minvalue) to ('a');
             create table word_2 partition of word for values from ('a') to (maxvalue);
             create table code (w text collate \"C\", n int) partition by range (w);
             create table code_1 partition of code for values from (minvalue) to ('a');
             create table code_2 partition of code for values from ('a') to (maxvalue);
             insert into word select chr(65 + n) || chr(97 + n), n from generate_series(0, 25) n;
             insert into word select chr(97 + n), n from generate_series(0, 25) n;
             insert into code select * from word",
        )
        .await;
    // By bytes every capital comes before every small letter.
    assert_eq!(source.text("select count(*) from word_1").await, "26");
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let through = |table: &&Table| table.through_root.is_some();
    let names: Vec<&str> =
        dumped.manifest.tables.iter().filter(through).map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["word_1", "word_2"], "bytes are the same everywhere");

    let name = harness::unique("collated");
    let options = "template template0 locale_provider icu icu_locale 'en-US' locale 'C.UTF-8'";
    harness::postgres::run_sql(&server.admin, &format!("create database {name} {options}")).await;
    let copy = server.admin.with_database(&name);
    let owner = server.create_role("").await;
    let (store, tools) = (&project.store, &project.tools);
    load::load(&project.ctx, &copy, &owner.name, tools, store, &dumped.manifest)
        .await
        .expect("whole");
    let text = async |sql: &str| harness::postgres::query_text(&copy, sql).await;
    assert_eq!(text("select count(*) from word_1").await, "0");
    let rows = "select string_agg(w || n, ' ' order by n, w collate \"C\") from ";
    for table in ["word", "code"] {
        let sql = format!("{rows}{table}");
        assert_eq!(text(&sql).await, source.text(&sql).await);
    }
    harness::postgres::run_sql(&server.admin, &format!("drop database {name}")).await;
}

#[tokio::test]
async fn the_sequence_of_an_extension_that_is_left_out_is_left_out_as_its_rows_are() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run(KEEPS_JOBS).await;
    source
        .run(
            "insert into job values (1), (2);
             select setval('job_number', 7);
             create sequence own; select setval('own', 9)",
        )
        .await;
    let owner = server.create_role("").await;
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let there = server.create_database().await;
    there.run(KEEPS_JOBS).await;
    project.load(&dumped, &there, &owner).await.expect("the extension is there");
    let kept = "select nextval('own'), nextval('job_number'), (select count(*) from job)";
    assert_eq!(there.text(kept).await, "10|8|2");

    let left_out = "select to_regclass('job_number'), nextval('own')";
    let conf = "[restore]\nignore_extensions = [\"aws_jobs\"]\n";
    let ignoring = Project::new(server, conf).await;
    let mut dumped = ignoring.dump(&source.target).await.expect("readable");
    let copy = server.create_database().await;
    let loaded = ignoring.load(&dumped, &copy, &owner).await.expect("the rest is whole");
    assert_eq!(copy.text(left_out).await, "∅|10");
    assert_eq!(loaded.quarantined, ["rows of `public.job`"]);

    // The manifest of an older program does not say whose a sequence is.
    for sequence in &mut dumped.manifest.sequences {
        sequence.extension = None;
    }
    let copy = server.create_database().await;
    ignoring.load(&dumped, &copy, &owner).await.expect("the rest is whole");
    assert_eq!(copy.text(left_out).await, "∅|10");
}

#[tokio::test]
async fn an_account_that_is_no_superuser_loads_what_it_may_own() {
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create table t as select n from generate_series(1, 50) n;
             create materialized view m as select count(*) as n from t;",
        )
        .await;
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let copy = server.create_database().await;
    let owner = server.create_role("").await;
    copy.run(&format!(
        "alter database {} owner to {owner}; alter schema public owner to {owner}",
        copy.name(),
        owner = owner.name
    ))
    .await;
    let target = copy.target_of(&owner);
    let (store, tools) = (&project.store, &project.tools);
    load::load(&project.ctx, &target, &owner.name, tools, store, &dumped.manifest)
        .await
        .expect("everything is its own");
    assert_eq!(copy.text("select n from m").await, "50");
}

/// The dump is refused with `exit` and these words, and nothing was uploaded.
#[tokio::test]
async fn a_run_so_long_that_a_prune_may_have_passed_looks_for_its_chunks_before_it_publishes() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run("create table t as select n, md5(n::text) from generate_series(1, 9000) n").await;
    let project = Project::new(server, "").await;
    let options = DumpOptions::default();
    let dumped =
        dump::dump(&project.ctx, &source.target, &project.tools, &project.store, &options).await;
    let manifest = dumped.expect("it is a plain table").manifest;
    let chunk = manifest.chunks().last().expect("there are rows").object_name();
    project.store.delete(&chunk).await.expect("the store is the test's own");
    // Of which the dump alone is a part: the proof comes after it.
    let running = std::time::Duration::from_secs(31 * 60);
    let publish = publish::publish(&project.ctx, &project.store, &manifest, running).await;
    let error = publish.expect_err("a chunk is gone");
    assert_eq!(error.exit() as u8, 10);
    assert!(error.to_string().contains("1 of its chunks were removed"), "{error}");
    assert_eq!(project.stored("snapshots").len(), 0);
}

/// A run of `prune` that ends, its mark removed, once it is waited for.
struct PruneEnds(std::path::PathBuf);

impl seedbed::report::Report for PruneEnds {
    fn event(&self, event: &seedbed::report::Event) {
        if matches!(event, seedbed::report::Event::Note(text) if text.contains("waiting for a run"))
        {
            std::fs::remove_file(&self.0).expect("the store is the test's own");
        }
    }
}

#[tokio::test]
async fn a_snapshot_whose_chunks_a_prune_took_meanwhile_is_taken_back() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run("create table t as select n, md5(n::text) from generate_series(1, 9000) n").await;
    let mut project = Project::new(server, "").await;
    let mark = project.dir.path().join("seed/snapshots/prune/00000000000000aa.json");
    project.ctx.report = Reporter::new(Box::new(PruneEnds(mark.clone())));
    let (ctx, store) = (&project.ctx, &project.store);
    let options = DumpOptions::default();
    let dumped = dump::dump(ctx, &source.target, &project.tools, store, &options).await;
    let manifest = dumped.expect("it is a plain table").manifest;
    let chunk = manifest.chunks().last().expect("there are rows");
    store.delete(&chunk.object_name()).await.expect("the store is the test's own");
    // It said so before the manifest was there.
    let document = serde_json::json!({
        "format": 1, "phase": "removing", "manifests": [], "chunks": [chunk.object],
    });
    std::fs::create_dir_all(mark.parent().expect("a folder")).expect("the store is the test's own");
    std::fs::write(&mark, document.to_string()).expect("the store is the test's own");
    let published = publish::publish(ctx, store, &manifest, std::time::Duration::ZERO).await;
    let error = published.expect_err("a chunk is gone");
    assert_eq!(error.exit() as u8, 10);
    assert!(error.to_string().contains("1 of its chunks were removed"), "{error}");
    assert_eq!(project.stored("snapshots").len(), 0, "nobody finds it");
}

async fn is_refused(project: &Project, source: &Target, exit: u8, words: &[&str]) {
    let error = project.dump(source).await.expect_err("must be refused");
    let text = error.to_string();
    assert_eq!(error.exit() as u8, exit, "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
    assert_eq!(project.stored(""), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn f11_row_level_security_is_an_error_that_names_the_table() {
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create table open as select n from generate_series(1, 100) n;
             create table guarded as select n from generate_series(1, 100) n;
             alter table guarded enable row level security;
             create policy half on guarded using (n % 2 = 0)",
        )
        .await;
    let role = reader(server, "").await;
    let project = Project::new(server, "").await;
    let words = ["row-level security hides rows of `public.guarded`"];
    is_refused(&project, &source.target_of(&role), 5, &words).await;
    let error = project.dump(&source.target_of(&role)).await.expect_err("refused");
    assert_eq!(error.hints(), [format!("as a superuser: alter role \"{}\" bypassrls;", role.name)]);
}

#[tokio::test]
async fn f12_what_the_role_may_not_read_is_named_before_any_upload() {
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create table fine (n int); create table secret (n int); create table \"Columns only\" (a int, b int);
             create schema closed; create table closed.inside (n int);
             create sequence hidden;
             select lo_from_bytea(815, '\\x00')",
        )
        .await;
    let role = server.create_role("").await;
    source
        .run(&format!(
            "grant select on fine to {0}; grant select (a) on \"Columns only\" to {0};
             grant select on closed.inside to {0}",
            role.name
        ))
        .await;
    let project = Project::new(server, "").await;
    let words = [
        "`public.secret`",
        "`public.Columns only`",
        "`closed.inside`",
        "sequences `public.hidden`",
        "large objects `815`",
    ];
    is_refused(&project, &source.target_of(&role), 5, &words).await;

    let reading = reader(server, "").await;
    let words = ["large objects `815`"];
    is_refused(&project, &source.target_of(&reading), 5, &words).await;
    let skipping = Project::new(server, "[snapshot]\nskip_large_objects = true\n").await;
    let dumped = skipping.dump(&source.target_of(&reading)).await.expect("the rest is readable");
    assert_eq!(dumped.manifest.large_objects, []);
}

#[tokio::test]
async fn a_flipped_bit_in_a_chunk_is_refused_by_name_before_its_rows_are_used() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run("create table t as select n, md5(n::text) from generate_series(1, 1000) n").await;
    let role = reader(server, "").await;
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target_of(&role)).await.expect("readable");
    let chunk = &dumped.manifest.tables[0].chunks[0];
    let file = project
        .stored("chunks")
        .into_iter()
        .find(|file| file.ends_with(&chunk.object))
        .expect("a chunk is a file of the store");
    let mut bytes = std::fs::read(&file).expect("our own store");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).expect("our own store");

    let owner = server.create_role("").await;
    let copy = server.create_database().await;
    let error = project.load(&dumped, &copy, &owner).await.expect_err("damaged");
    assert_eq!(error.exit() as u8, 10);
    let text = error.to_string();
    assert!(text.contains(&chunk.object) && text.contains(&dumped.manifest.id), "{text}");
    assert_eq!(copy.text("select count(*) from t").await, "0");
}

#[tokio::test]
async fn the_cache_keeps_within_its_size_while_a_load_is_at_work_and_when_it_failed() {
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create table t as
             select n, (select string_agg(md5((n * k)::text), '') from generate_series(1, 6) k) as pad
             from generate_series(1, 60000) n",
        )
        .await;
    let conf = "[snapshot]\nchunk_bytes = \"1MiB\"\n[restore]\ncache_bytes = \"1MiB\"\njobs = 1\n";
    let project = Project::new(server, conf).await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let stored = dumped.manifest.stored_bytes();
    assert!(stored > 4 * 1024 * 1024, "{stored} bytes");
    let last = dumped.manifest.tables[0].chunks.last().expect("there are rows").object_name();
    project.store.delete(&last).await.expect("the store is the test's own");

    let (copy, owner) = (server.create_database().await, server.create_role("").await);
    let error = project.load(&dumped, &copy, &owner).await.expect_err("a chunk is missing");
    assert_eq!(error.exit() as u8, 10, "{error}");
    let held = || {
        let files = files(&project.dir.path().join("cache"));
        files.iter().map(|file| file.metadata().expect("ours").len()).sum::<u64>()
    };
    assert!(held() > 0 && held() <= 1024 * 1024, "{} bytes", held());

    let root = Utf8PathBuf::from_path_buf(project.dir.path().join("out")).expect("UTF-8");
    let exported = export::export(&project.ctx, &project.store, "latest", &root).await;
    exported.expect_err("a chunk is missing");
    assert!(held() > 0 && held() <= 1024 * 1024, "{} bytes", held());
}

/// The `[store]` section for an S3 server behind `endpoint`, with its keys.
fn s3_conf(server: &harness::S3Server, endpoint: &str) -> String {
    let section = server.store_section("snapshots", "team").replace(&server.endpoint(), endpoint);
    let (key, secret) = (harness::s3::ACCESS_KEY, harness::s3::SECRET_KEY);
    format!("{section}access_key_id = \"{key}\"\nsecret_access_key = \"{secret}\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn f15_a_snapshot_goes_through_s3_and_back_though_every_tenth_call_is_refused() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run(HOSTILE).await;
    let role = reader(server, "bypassrls").await;
    grant_large_objects(&source, &role).await;
    let s3 = harness::s3();
    let proxy = harness::FaultProxy::start(&s3.endpoint(), |seen| match seen.number % 10 {
        4 => harness::Fault::Answer { status: 503, body: "<Error><Code>SlowDown</Code></Error>" },
        _ => harness::Fault::Pass,
    });
    let project = Project::new(server, &s3_conf(&s3, &proxy.endpoint())).await;
    let dumped = project.dump(&source.target_of(&role)).await.expect("readable");
    let owner = server.create_role("").await;
    let copy = server.create_database().await;
    project.load(&dumped, &copy, &owner).await.expect("whole");
    let (left, right) =
        (equality::contents(&source.target).await, equality::contents(&copy.target).await);
    assert_eq!(equality::content_differences(&left, &right), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn f19_a_wrong_byte_is_fetched_again_once_and_then_an_error_that_names_the_object() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let server = harness::server();
    let source = server.create_database().await;
    source.run("create table t as select n, md5(n::text) from generate_series(1, 1000) n").await;
    let role = reader(server, "").await;
    let s3 = harness::s3();
    let project = Project::new(server, &s3_conf(&s3, &s3.endpoint())).await;
    let dumped = project.dump(&source.target_of(&role)).await.expect("readable");
    let object = dumped.manifest.tables[0].chunks[0].object.clone();
    for (flips, loads) in [(1, true), (usize::MAX, false)] {
        let (name, flipped) = (object.clone(), AtomicUsize::new(0));
        let proxy = harness::FaultProxy::start(&s3.endpoint(), move |seen| {
            let hit = seen.method == "GET" && seen.path.contains(&name);
            if hit && flipped.fetch_add(1, Ordering::Relaxed) < flips {
                harness::Fault::FlipBit { at: 100 }
            } else {
                harness::Fault::Pass
            }
        });
        // A project of its own: another cache.
        let project = Project::new(server, &s3_conf(&s3, &proxy.endpoint())).await;
        let owner = server.create_role("").await;
        let copy = server.create_database().await;
        let loaded = project.load(&dumped, &copy, &owner).await;
        if loads {
            assert_eq!(loaded.expect("fetched again").rows, 1000);
            continue;
        }
        let error = loaded.expect_err("the store holds nothing better");
        assert_eq!(error.exit() as u8, 10, "{error}");
        assert!(error.to_string().contains(&object), "{error}");
        let reads = proxy.seen().iter().filter(|line| line.contains(&object)).count();
        assert_eq!(reads, 2, "{:?}", proxy.seen());
    }
}

/// Waits, by asking, until `sql` gives `answer`.
async fn until(target: &Target, sql: &str, answer: &str) {
    let started = std::time::Instant::now();
    while harness::postgres::query_text(target, sql).await != answer {
        assert!(started.elapsed().as_secs() < 60, "{sql} never gave {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f07_truncate_after_export_never_shortens_a_snapshot() {
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create table t as select n, repeat(md5(n::text), 10) from generate_series(1, 60000) n",
        )
        .await;
    let role = reader(server, "").await;
    let project = Project::new(server, "[snapshot]\nchunk_bytes = \"1MiB\"\n").await;
    let target = source.target.clone();
    let held = format!(
        "select count(*) > 0 from pg_locks l join pg_stat_activity a using (pid)
         where l.mode = 'AccessShareLock' and l.relation = 't'::regclass and a.usename = '{}'",
        role.name
    );
    let emptied = tokio::spawn(async move {
        until(&target, &held, "t").await;
        harness::postgres::run_sql(&target, "begin; truncate t; commit").await;
    });
    let dumped = project.dump(&source.target_of(&role)).await;
    emptied.await.expect("the truncate waits and then succeeds");
    // Either the snapshot is from before the truncate and whole, or a new one from after it.
    let dumped = dumped.expect("the truncate stands behind the locks");
    assert!(matches!(dumped.manifest.rows(), 60000 | 0), "{}", dumped.manifest.rows());
    assert_eq!(source.text("select count(*) from t").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn f07_a_table_that_goes_while_the_source_is_listed_is_just_not_there() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run("create table kept as select 1 as n; create table gone (n int)").await;
    let role = reader(server, "").await;
    let project = Project::new(server, "").await;
    // The listing asks for the table's size and has to wait for whoever drops it.
    let dropper = seedbed::pg::Session::connect(&source.target).await.expect("connects");
    dropper.batch("begin; drop table gone").await.expect("dropped");
    let waits = format!(
        "select count(*) > 0 from pg_locks l join pg_stat_activity a using (pid)
         where not l.granted and a.usename = '{}'",
        role.name
    );
    let target = source.target.clone();
    let commit = async move {
        until(&target, &waits, "t").await;
        dropper.batch("commit").await.expect("committed");
    };
    let source_of_role = source.target_of(&role);
    let (dumped, ()) = tokio::join!(project.dump(&source_of_role), commit);
    let dumped = dumped.expect("listed again");
    let names: Vec<&str> = dumped.manifest.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["kept"]);
}

#[tokio::test]
async fn a_view_of_foreign_tables_stays_empty_and_the_rest_is_not_lost() {
    let server = harness::server();
    let source = server.create_database().await;
    // Filled while its foreign server still had an address; a copy knows neither address nor account.
    let port = server.admin.port;
    source.run("create table here as select generate_series(1, 3) as n").await;
    source
        .run(&format!(
            "create extension postgres_fdw;
             create server far foreign data wrapper postgres_fdw
               options (host '127.0.0.1', port '{port}', dbname '{}');
             create user mapping for current_user server far
               options (user 'postgres', password '{}');
             create foreign table there (n int) server far options (table_name 'here');
             create materialized view a_on_b as select 1 as n with no data;
             drop materialized view a_on_b;
             create materialized view b_remote as select n from there;
             create materialized view a_on_b as select count(*) as n from b_remote;
             create materialized view c_local as select count(*) as n from here",
            source.name(),
            secrecy::ExposeSecret::expose_secret(
                server.admin.password.as_ref().expect("the harness sets one")
            ),
        ))
        .await;
    assert_eq!(source.text("select n from a_on_b").await, "3");
    let role = reader(server, "").await;
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target_of(&role)).await.expect("readable");
    let owner = server.create_role("").await;
    let copy = server.create_database().await;
    let loaded = project.load(&dumped, &copy, &owner).await.expect("the rest is whole");
    assert_eq!(copy.text("select n from c_local").await, "3");
    let empty =
        "select relname from pg_class where relkind = 'm' and not relispopulated order by 1";
    assert_eq!(copy.text(empty).await, "a_on_b\nb_remote");
    assert_eq!(loaded.tolerated.len(), 2, "{:?}", loaded.tolerated);
    assert!(
        loaded.tolerated[0].starts_with("`public.b_remote` stays empty: it reads foreign tables"),
        "{:?}",
        loaded.tolerated
    );
}

#[tokio::test]
async fn a_view_that_fails_for_another_reason_is_an_error_that_names_it() {
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create table t (n int); insert into t values (1);
             create function inverse(n int) returns int language sql stable
               as 'select 1 / count(*)::int from public.t where t.n = inverse.n';
             create materialized view broken as select inverse(1) as n;
             delete from t",
        )
        .await;
    let role = reader(server, "").await;
    let project = Project::new(server, "").await;
    let dumped = project.dump(&source.target_of(&role)).await.expect("readable");
    let owner = server.create_role("").await;
    let copy = server.create_database().await;
    let error = project.load(&dumped, &copy, &owner).await.expect_err("division by zero");
    assert_eq!(error.exit() as u8, 5);
    assert!(error.to_string().starts_with("refresh `public.broken`: division by zero"), "{error}");
}

#[tokio::test]
async fn large_objects_keep_owner_and_privileges_where_owners_are_kept() {
    let server = harness::server();
    let source = server.create_database().await;
    let (owner, friend) = (server.create_role("").await, server.create_role("").await);
    source
        .run(&format!(
            "select lo_from_bytea(4711, 'large');
             alter large object 4711 owner to {};
             grant select on large object 4711 to {} with grant option;
             grant select, update on large object 4711 to public;
             select lo_from_bytea(4712, 'nobody''s');
             alter large object 4712 owner to {0};
             revoke all on large object 4712 from {0}",
            owner.name, friend.name
        ))
        .await;
    let privileges =
        "select pg_get_userbyid(lomowner), a.grantee::regrole, a.privilege_type, a.is_grantable
         from pg_largeobject_metadata, aclexplode(lomacl) a order by 1, 2::text, 3";
    let project = Project::new(server, "[restore]\nowners = \"keep\"\n").await;
    let dumped = project.dump(&source.target).await.expect("readable");
    let copy = server.create_database().await;
    let local = server.create_role("").await;
    project.load(&dumped, &copy, &local).await.expect("whole");
    assert_eq!(copy.text(privileges).await, source.text(privileges).await);
    let revoked = "select oid from pg_largeobject_metadata where cardinality(lomacl) = 0";
    assert_eq!(copy.text(revoked).await, "4712");
}

/// Starts pgbouncer before the harness's server, in transaction mode; a target that goes through it.
async fn pooled(target: &Target) -> Option<Target> {
    let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
        .into_iter()
        .find(|program| std::path::Path::new(program).exists());
    if !harness::require("pgbouncer (installed by scripts/test)", program.is_some()) {
        return None;
    }
    let password = target.password.as_ref().map(secrecy::ExposeSecret::expose_secret)?;
    let dir = tempfile::tempdir().expect("the temporary folder can be written to").keep();
    let port = harness::postgres::free_port();
    let accounts = dir.join("accounts");
    std::fs::write(&accounts, format!("\"{}\" \"{password}\"\n", target.user)).expect("ours");
    let conf = dir.join("conf");
    let text = format!(
        "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         auth_type = plain\nauth_file = {}\npool_mode = transaction\nunix_socket_dir =\n\
         ignore_startup_parameters = extra_float_digits\n",
        target.host,
        target.port,
        accounts.display(),
    );
    std::fs::write(&conf, text).expect("ours");
    let mut command = std::process::Command::new(program?);
    // It refuses to be root, and reads its files after it has become somebody else.
    if nix::unistd::Uid::effective().is_root() {
        use std::os::unix::fs::PermissionsExt;
        for path in [&dir, &conf, &accounts] {
            let open = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(path, open).expect("ours");
        }
        command.args(["-u", "nobody"]);
    }
    let child = command
        .arg(&conf)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it was found");
    harness::watchdog::at_exit(&format!("kill {}; rm -rf {}", child.id(), dir.display()));
    let through = Target { host: "127.0.0.1".to_owned(), port, ..target.clone() };
    let started = std::time::Instant::now();
    while seedbed::pg::Session::connect(&through).await.is_err() {
        assert!(started.elapsed().as_secs() < 30, "pgbouncer did not start");
        tokio::task::yield_now().await;
    }
    // Reaped by nobody: the watchdog ends it with this process.
    std::mem::forget(child);
    Some(through)
}

#[tokio::test]
async fn a_pooler_that_hands_out_servers_by_transaction_is_refused() {
    let server = harness::server();
    let source = server.create_database().await;
    source.run("create table t as select n from generate_series(1, 10) n").await;
    let role = reader(server, "").await;
    let Some(through) = pooled(&source.target_of(&role)).await else { return };
    let project = Project::new(server, "").await;
    let words = ["hands out a server for each transaction"];
    is_refused(&project, &through, 5, &words).await;
    let error = project.dump(&through).await.expect_err("refused");
    assert_eq!(error.hints(), ["name the server itself: `database.host`, `database.port`"]);
    project.dump(&source.target_of(&role)).await.expect("directly it works");
}

/// Stops the run at its first progress: deterministic, and in the middle of the rows.
struct StopAtProgress(tokio_util::sync::CancellationToken);

impl seedbed::report::Report for StopAtProgress {
    fn event(&self, event: &seedbed::report::Event) {
        if matches!(event, seedbed::report::Event::StepProgress { .. }) {
            self.0.cancel();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f03_an_interrupted_dump_or_load_leaves_no_session_and_no_snapshot() {
    let server = harness::server();
    let source = server.create_database().await;
    source
        .run(
            "create table t as select n, repeat(md5(n::text), 10) from generate_series(1, 90000) n",
        )
        .await;
    let role = reader(server, "").await;
    let mut project = Project::new(server, "[snapshot]\nchunk_bytes = \"1MiB\"\n").await;
    let dumped = project.dump(&source.target_of(&role)).await.expect("readable");
    let stop = project.ctx.cancel.clone();
    project.ctx.report = Reporter::new(Box::new(StopAtProgress(stop)));
    let error = project.dump(&source.target_of(&role)).await.expect_err("interrupted");
    assert!(matches!(error, seedbed::error::Error::Interrupted), "{error}");
    let ours = format!("select count(*) from pg_stat_activity where usename = '{}'", role.name);
    until(&server.admin, &ours, "0").await;
    assert_eq!(project.stored("snapshots").len(), 1);

    let stop = tokio_util::sync::CancellationToken::new();
    project.ctx.cancel = stop.clone();
    project.ctx.report = Reporter::new(Box::new(StopAtProgress(stop)));
    let owner = server.create_role("").await;
    let copy = server.create_database().await;
    let error = project.load(&dumped, &copy, &owner).await.expect_err("interrupted");
    assert!(matches!(error, seedbed::error::Error::Interrupted), "{error}");
    let ours = format!("select count(*) from pg_stat_activity where datname = '{}'", copy.name());
    until(&server.admin, &ours, "0").await;
}

#[tokio::test]
async fn a_table_whose_check_reads_another_is_loaded_after_it() {
    let server = harness::server();
    let source = server.create_database().await;
    // pg_restore loses the rows of the larger table, which it loads first.
    source
        .run(
            "create table zz_known (id int primary key);
             insert into zz_known select generate_series(1, 50);
             create function is_known(n int) returns boolean language sql stable
               as 'select exists (select from public.zz_known where id = n)';
             create table aa_checked (n int check (is_known(n)), pad text);
             insert into aa_checked select 1 + n % 50, repeat(md5(n::text), 200)
               from generate_series(1, 2000) n",
        )
        .await;
    let role = reader(server, "").await;
    let project = Project::new(server, "[restore]\njobs = 1\n").await;
    let dumped = project.dump(&source.target_of(&role)).await.expect("readable");
    let owner = server.create_role("").await;
    let copy = server.create_database().await;
    project.load(&dumped, &copy, &owner).await.expect("loaded in the second round");
    let (left, right) =
        (equality::contents(&source.target).await, equality::contents(&copy.target).await);
    assert_eq!(left, right);

    // What no order can load is an error that names the table.
    source.run("delete from zz_known where id = 7").await;
    let dumped = project.dump(&source.target_of(&role)).await.expect("readable");
    let copy = server.create_database().await;
    let error = project.load(&dumped, &copy, &owner).await.expect_err("rows violate the check");
    assert_eq!(error.exit() as u8, 5);
    assert!(error.to_string().starts_with("load `public.aa_checked`: new row"), "{error}");
}

#[tokio::test]
async fn the_oracles_see_one_changed_value_and_one_changed_constraint() {
    let server = harness::server();
    let sql = "create table t as select n, n::text as t from generate_series(1, 100) n;
        create sequence s; select lo_from_bytea(1, 'x')";
    let (left, right) = (server.create_database().await, server.create_database().await);
    left.run(sql).await;
    right.run(sql).await;
    right.run("update t set n = n where n = 3").await;
    let of = |database: &TestDatabase| {
        let target = database.target.clone();
        async move { equality::contents(&target).await }
    };
    assert_eq!(of(&left).await, of(&right).await);
    right.run("update t set t = '5 ' where n = 5; select nextval('s')").await;
    let found = equality::content_differences(&of(&left).await, &of(&right).await);
    assert_eq!(found.len(), 4, "{found:?}");

    let schema = |database: &TestDatabase| equality::schema(&server.bin_dir, &database.target);
    assert_eq!(schema(&left), schema(&right));
    right.run("alter table t add check (n > 0)").await;
    assert!(!equality::differences(&schema(&left), &schema(&right)).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn small_tables_are_read_in_the_order_in_which_they_come_however_busy_the_machine_is() {
    let server = harness::server();
    let source = server.create_database().await;
    // More than what is held of a table that is not read yet.
    source
        .run(
            "do $$ begin for i in 1..250 loop execute format(
               'create table t%s as select n, md5(n::text) as text from generate_series(1, %s) n',
               i, (array[1, 300, 1500, 2500])[1 + i % 4]);
             end loop; end $$",
        )
        .await;
    for _ in 0..4 {
        let dump = async || {
            let project = Project::new(server, "[snapshot]\nstall_timeout = \"4s\"\n").await;
            let dumped = project.dump(&source.target).await.expect("it is read");
            assert_eq!(dumped.manifest.tables.len(), 250);
            // One that waits for what is behind another one is read once more in the end.
            let warnings = project.ctx.report.warnings().concat();
            assert!(!warnings.contains("reading the source again"), "{warnings}");
        };
        futures_util::join!(dump(), dump(), dump());
    }
}
