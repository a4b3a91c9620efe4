//! Seed files on a real server: what `pg_dump` writes, what teams write, and what is broken.

use std::io::Write;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use seedbed::config::{self, Flags};
use seedbed::context::Context;
use seedbed::env::Env;
use seedbed::error::{Error, Exit};
use seedbed::pg::names::DatabaseName;
use seedbed::pg::tools::{Call, Tools};
use seedbed::report::Reporter;
use seedbed::seed::{self, Loaded};
use seedbed::users;

use crate::harness::{self, Sandbox, Server, TestDatabase};

struct Project {
    sandbox: Sandbox,
    context: Context,
    database: TestDatabase,
}

impl Project {
    async fn new() -> Self {
        Self::on(harness::server()).await
    }

    async fn on(server: &Server) -> Self {
        let sandbox = Sandbox::new();
        sandbox.write("conf/dev.toml", "");
        let path = sandbox.other_command("true").get_envs().find_map(|(name, value)| {
            (name == "PATH").then(|| value.map(|value| value.to_string_lossy().into_owned()))?
        });
        let variables = [("PATH".to_owned(), path.unwrap_or_default())];
        let env = Env::from_variables(variables, sandbox.project());
        let config = match config::load(&env, &Flags::default()) {
            Ok(config) => config,
            Err(error) => panic!("{error}"),
        };
        let context = Context {
            config: Arc::new(config),
            env: Arc::new(env),
            report: Reporter::silent(),
            cancel: tokio_util::sync::CancellationToken::new(),
            yes: true,
        };
        Self { sandbox, context, database: server.create_database().await }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        self.sandbox.project().join(name)
    }

    async fn load(&self, name: &str) -> Result<Loaded, Error> {
        seed::load_file(&self.context, &self.database.target, None, &self.path(name)).await
    }

    async fn loaded(&self, name: &str, text: impl AsRef<[u8]>) -> Loaded {
        self.sandbox.write(name, text);
        self.load(name).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What loading `text` fails with: message, hints, exit code.
    async fn refused(&self, text: impl AsRef<[u8]>) -> String {
        self.sandbox.write("seed/x.sql", text);
        let error = self.load("seed/x.sql").await.expect_err("refused");
        format!("{error}\nhints {:?}\nexit {}", error.hints(), error.exit() as u8)
    }

    async fn tools(&self) -> Tools {
        let version = self.database.text("show server_version_num").await;
        let major = version.parse::<u32>().expect("a number") / 10_000;
        Tools::find(&self.context, major).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The database as `pg_dump` writes it.
    async fn dump(&self, args: &[&str]) -> Vec<u8> {
        let call = Call {
            program: "pg_dump",
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            target: Some(&self.database.target),
            stdin: None,
            input_file: None,
        };
        let output = self.tools().await.run(&self.context, call).await;
        let output = output.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((output.status, output.stderr.as_str()), (0, ""));
        output.stdout
    }
}

const SOURCE: &str = r#"
create schema "odd; name";
create table "odd; name".t (
  id int generated always as identity primary key,
  body text, bytes bytea, flags bool[], at timestamptz default now());
insert into "odd; name".t (body, bytes, flags)
select case when n % 7 = 0 then null else E'a\tb\\c\n\\.\n'';' || n end, decode(lpad(to_hex(n), 8, '0'), 'hex'), array[true, null]
from generate_series(1, 5000) n;
create function f() returns int language plpgsql as $x$ begin return 1; /* ; */ end $x$;
create function g(a int) returns int begin atomic select case when a > 1 then 1 else 2 end; select a; end;
create view v as select count(*) from "odd; name".t;
comment on view v is 'it''s; a -- view';
"#;

const DIGEST: &str = r#"
select count(*), md5(string_agg(t::text, '|' order by id)) from "odd; name".t"#;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

#[tokio::test]
async fn what_pg_dump_writes_is_loaded_in_every_form() {
    let source = Project::new().await;
    source.database.run(SOURCE).await;
    let digest = source.database.text(DIGEST).await;

    let plain = source.dump(&["--format=plain"]).await;
    let target = Project::new().await;
    let loaded = target.loaded("seed/dump.sql", &plain).await;
    assert_eq!(loaded.rows, 5000);
    assert_eq!(loaded.bytes, plain.len() as u64);
    assert_eq!(target.database.text(DIGEST).await, digest);
    // All of it came over: the copy's own dump is the same but for psql's random keys.
    let without_keys = |dump: Vec<u8>| {
        let text = String::from_utf8(dump).expect("UTF-8");
        let lines = text.lines().filter(|line| !line.starts_with('\\') || line.starts_with("\\."));
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(without_keys(target.dump(&["--format=plain"]).await), without_keys(plain.clone()));

    let target = Project::new().await;
    let loaded = target.loaded("seed/dump.sql.gz", gzip(&plain)).await;
    assert_eq!(loaded.rows, 5000);
    assert_eq!(target.database.text(DIGEST).await, digest);

    let target = Project::new().await;
    let inserts = source.dump(&["--format=plain", "--rows-per-insert=1000"]).await;
    target.loaded("seed/inserts.sql", &inserts).await;
    assert_eq!(target.database.text(DIGEST).await, digest);

    let target = Project::new().await;
    target.sandbox.write("seed/x.dump", source.dump(&["--format=custom"]).await);
    let (path, tools) = (target.path("seed/x.dump"), target.tools().await);
    let load = seed::load_file(&target.context, &target.database.target, Some(&tools), &path);
    load.await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(target.database.text(DIGEST).await, digest);

    // A second time it all exists, and nothing is changed by the attempt.
    let load = seed::load_file(&target.context, &target.database.target, Some(&tools), &path);
    let error = load.await.expect_err("a failure");
    assert!(error.to_string().contains("already exists"), "{error}");
    assert_eq!(error.exit(), Exit::Script);
    assert_eq!(target.database.text(DIGEST).await, digest);
    let error = target.load("seed/x.dump").await.expect_err("a failure");
    assert_eq!(error.exit(), Exit::Server);
}

#[tokio::test]
async fn a_file_that_fails_leaves_the_old_state() {
    let project = Project::new().await;
    project.database.run("create table t (id int primary key); insert into t values (7)").await;
    for text in [
        "delete from t; insert into t values (1), (1);",
        "delete from t;\nCOPY t FROM stdin;\n1\nx\n\\.\n",
        "delete from t;\nCOPY t FROM stdin;\n1\n",
        "begin; delete from t; commit; select 1/0;",
        "delete from t; insert into t values (1); select 'x",
    ] {
        project.refused(text).await;
        assert_eq!(project.database.text("select id from t").await, "7", "{text}");
    }
}

#[tokio::test]
async fn errors_name_file_line_and_column() {
    let project = Project::new().await;
    project.database.run("create table t (id int primary key)").await;
    let mut seen = String::new();
    let cases: [&[u8]; 12] = [
        b"select 1;\n\n  select 1,\n  nope from t;",
        b"/* c */ select 2; select \xc3\xa9 nope;",
        b"copy t from stdin;\n1\n2\nx\n\\.\n",
        b"copy nowhere from stdin;\n1\n\\.\n",
        b"copy t from stdin; 1\n\\.\n",
        b"select 1;\n\\connect prod\n",
        b"create database prod;",
        b"insert into t values (1);\nrollback;",
        b"vacuum t;",
        b"\n\nselect 'open\n",
        b"select '\xff';",
        b"set client_encoding = 'LATIN1';",
    ];
    for case in cases {
        let shown = String::from_utf8_lossy(case).into_owned();
        seen.push_str(&format!("{shown}\n=> {}\n\n", project.refused(case).await));
    }
    assert_eq!(seen.matches("exit 6").count(), cases.len(), "{seen}");
    insta::assert_snapshot!(seen, @r##"
    select 1;

      select 1,
      nope from t;
    => run seed file `seed/x.sql` line 4: column "nope" does not exist (SQLSTATE 42703)
      4 |   nope from t
        |   ^
    hints []
    exit 6

    /* c */ select 2; select é nope;
    => run seed file `seed/x.sql` line 1: column "é" does not exist (SQLSTATE 42703)
      1 |                   select é nope
        |                          ^
    hints []
    exit 6

    copy t from stdin;
    1
    2
    x
    \.

    => run seed file `seed/x.sql` line 4: invalid input syntax for type integer: "x" (SQLSTATE 22P02)
      4 | column id: "x"
    hints []
    exit 6

    copy nowhere from stdin;
    1
    \.

    => run seed file `seed/x.sql` line 1: relation "nowhere" does not exist (SQLSTATE 42P01)
      1 | copy nowhere from stdin
        | ^
    hints []
    exit 6

    copy t from stdin; 1
    \.

    => read seed file `seed/x.sql` line 1: text after the `;` of COPY … FROM STDIN
      1 | copy t from stdin; 1
    hints ["begin the rows on the next line"]
    exit 6

    select 1;
    \connect prod

    => read seed file `seed/x.sql` line 2: `\connect` is a command of psql, not SQL
      2 | \connect prod
    hints ["dump one database, without `--create`"]
    exit 6

    create database prod;
    => read seed file `seed/x.sql` line 1: a seed file is loaded into the database that is there
      1 | create database prod
        | ^
    hints ["dump one database, without `--create`"]
    exit 6

    insert into t values (1);
    rollback;
    => read seed file `seed/x.sql` line 2: a seed file is one transaction, which it cannot end
      2 | rollback
        | ^
    hints ["delete the line"]
    exit 6

    vacuum t;
    => run seed file `seed/x.sql` line 1: VACUUM cannot run inside a transaction block (SQLSTATE 25001)
      1 | vacuum t
        | ^
    hints ["a seed file is one transaction: move the statement to a migration"]
    exit 6



    select 'open

    => read seed file `seed/x.sql` line 3: string without its closing quote
      3 | select 'open
        | ^
    hints []
    exit 6

    select '�';
    => read seed file `seed/x.sql` line 1: text that is not UTF-8
    hints ["dump as text in UTF-8: `pg_dump --encoding=UTF8`"]
    exit 6

    set client_encoding = 'LATIN1';
    => read seed file `seed/x.sql` line 1: the text of a seed file is UTF-8
      1 | set client_encoding = 'LATIN1'
        | ^
    hints ["dump it so: `pg_dump --encoding=UTF8`"]
    exit 6
    "##);
}

#[tokio::test]
async fn a_row_that_breaks_a_constraint_is_shown() {
    let project = Project::new().await;
    project.database.run("create table t (id text primary key, n int check (n < 9))").await;
    let mut seen = String::new();
    for rows in ["a\t1\nb\t2\na\t3\n", "a\t1\r\nb\t9\r\n", "a\t1\n\\N\t2\n", "a\t1\n\n"] {
        let text = format!("select 1;\ncopy t from stdin;\n{rows}\\.\n");
        seen.push_str(&format!("{}\n\n", project.refused(text).await));
    }
    insta::assert_snapshot!(seen, @r##"
    run seed file `seed/x.sql` line 5: duplicate key value violates unique constraint "t_pkey" (SQLSTATE 23505): Key (id)=(a) already exists.
      5 | a	3
    hints []
    exit 6

    run seed file `seed/x.sql` line 4: new row for relation "t" violates check constraint "t_n_check" (SQLSTATE 23514): Failing row contains (b, 9).
      4 | b	9
    hints []
    exit 6

    run seed file `seed/x.sql` line 4: null value in column "id" of relation "t" violates not-null constraint (SQLSTATE 23502): Failing row contains (null, 2).
      4 | \N	2
    hints []
    exit 6

    run seed file `seed/x.sql` line 4: missing data for column "n" (SQLSTATE 22P04)
    hints []
    exit 6
    "##);

    // The server is far behind what was sent, or not: whatever is shown is the row, or nothing.
    let rows: String = (0..300_000).map(|n| format!("{}\t1\n", n % 150_000)).collect();
    let text = project.refused(format!("copy t from stdin;\n{rows}\\.\n")).await;
    let (first, rest) = text.split_once('\n').expect("hints follow");
    assert!(first.contains(" line 150002: duplicate key value violates"), "{text}");
    assert!(rest.starts_with("  150002 | 0\t1\nhints") || rest.starts_with("hints"), "{text}");
}

#[tokio::test]
async fn an_empty_file_is_an_error() {
    let project = Project::new().await;
    // `pg_dump` that fails leaves the first two, `pg_dump | gzip` the third.
    for (name, text) in [("x.sql", vec![]), ("x.dump", vec![]), ("x.sql.gz", gzip(b""))] {
        project.sandbox.write(name, text);
        let error = project.load(name).await.expect_err("refused");
        assert_eq!(error.to_string(), format!("read seed file `{name}`: it is empty"));
        assert_eq!(
            error.hints(),
            ["make it again: a `pg_dump … > FILE` that fails leaves an empty file"]
        );
        assert_eq!(error.exit(), Exit::Script);
    }
    let loaded = project.loaded("seed/x.sql", "-- only a comment\n").await;
    assert_eq!(loaded.statements, 0);
}

/// Writes `bytes` into a named pipe while `work` reads it.
async fn piped<T>(project: &Project, bytes: Vec<u8>, work: impl Future<Output = T>) -> T {
    let pipe = project.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("every Unix has it");
    assert!(made.success());
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, bytes)
    });
    let result = work.await;
    writer.join().expect("it does not panic").expect("it was read to its end");
    std::fs::remove_file(pipe).expect("our folder");
    result
}

#[tokio::test]
async fn a_pipe_is_loaded_from_its_first_byte() {
    let project = Project::new().await;
    let plain = b"create table t (n int);\nCOPY t FROM stdin;\n7\n\\.\ninsert into t values (8);\n";
    for bytes in [plain.to_vec(), gzip(plain)] {
        let length = bytes.len() as u64;
        let loaded = piped(&project, bytes, project.load("pipe")).await;
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((loaded.statements, loaded.rows, loaded.bytes), (3, 1, length));
        assert_eq!(project.database.text("select string_agg(n::text, ' ') from t").await, "7 8");
        project.database.run("drop table t").await;
    }
    let empty = piped(&project, Vec::new(), project.load("pipe")).await;
    assert_eq!(empty.expect_err("refused").to_string(), "read seed file `pipe`: it is empty");

    let source = Project::new().await;
    source.database.run("create table t as select 9 as n").await;
    let archive = source.dump(&["--format=custom"]).await;
    let (path, tools) = (project.path("pipe"), project.tools().await);
    let load = seed::load_file(&project.context, &project.database.target, Some(&tools), &path);
    piped(&project, archive, load).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(project.database.text("select n from t").await, "9");
}

#[tokio::test]
async fn a_pipe_that_nobody_writes_to_is_left_when_it_is_asked_to() {
    let project = Project::new().await;
    let pipe = project.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("every Unix has it");
    assert!(made.success());
    let cancel = project.context.cancel.clone();
    let (result, ()) = tokio::join!(project.load("pipe"), async { cancel.cancel() });
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    // The thread that opens it has to end with the test: it finds a writer, whenever it comes.
    let mut both = std::fs::OpenOptions::new();
    let mut both = both.read(true).write(true).open(&pipe).expect("our folder");
    both.write_all(b"select").expect("a pipe holds more");
    std::mem::forget(both);
}

#[tokio::test]
async fn lines_that_are_no_sql_are_left_out_where_they_do_no_harm() {
    let project = Project::new().await;
    let text = "\u{feff}\\restrict abc\nBEGIN;\nset transaction_timeout_of_tomorrow = 0;\n\
                set client_encoding = 'UTF8';\ncreate table t (id int);;\nCOPY t FROM stdin;\r\n1\r\n\\.\r\n\
                COMMIT;\n\\unrestrict abc\n-- the end";
    let loaded = project.loaded("seed/x.sql", text).await;
    assert_eq!(project.database.text("select id from t").await, "1");
    assert_eq!(
        loaded.notes,
        [
            "`seed/x.sql` line 2: left out, the file is one transaction as it is",
            "`seed/x.sql` line 3: left out, this server has no setting `transaction_timeout_of_tomorrow`",
            "`seed/x.sql` line 9: left out, the file is one transaction as it is",
        ]
    );
}

/// Real schemas, hostile names: an archive of each data set goes in by pg_restore, what `pg_dump` then
/// writes as plain text goes into a second database, and both are told apart by nothing.
#[tokio::test]
async fn data_sets_come_through_as_plain_text() {
    let Some(folder) = harness::datasets() else { return };
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("SEEDBED_DATASETS is a folder")
        .filter_map(|entry| Utf8PathBuf::from_path_buf(entry.ok()?.path()).ok())
        .collect();
    files.sort();
    // Roles are the server's, and some of these have names that other tests use.
    let server = Server::start(&[]);
    make_roles(&server, files.iter().filter(|path| path.extension() == Some("sql"))).await;
    files.retain(|path| path.extension() == Some("dump"));
    assert!(!files.is_empty(), "{folder} holds data sets");
    for file in files {
        let source = Project::on(&server).await;
        let tools = source.tools().await;
        let load =
            seed::load_file(&source.context, &source.database.target, Some(&tools), &file).await;
        load.unwrap_or_else(|error| panic!("{file}: {error}"));
        let plain = source.dump(&["--format=plain", "--no-owner"]).await;
        let target = Project::on(&server).await;
        target.sandbox.write("seed/plain.sql", &plain);
        let load = target.load("seed/plain.sql").await;
        let loaded = load.unwrap_or_else(|error| panic!("{file}: {error}"));
        harness::say(&format!("{file}: {} statements, {} rows", loaded.statements, loaded.rows));
        let again = target.dump(&["--format=plain", "--no-owner"]).await;
        let (first, second) = (sorted_lines(&plain), sorted_lines(&again));
        let only_first: Vec<_> = first.iter().filter(|line| !second.contains(*line)).collect();
        let only_second: Vec<_> = second.iter().filter(|line| !first.contains(*line)).collect();
        assert!(
            only_first.is_empty() && only_second.is_empty(),
            "{file}: {only_first:#?} {only_second:#?}"
        );
    }
}

/// The data sets' roles, whose names are as hostile as the rest: their files are users files.
async fn make_roles(server: &Server, files: impl Iterator<Item = &Utf8PathBuf>) {
    let project = Project::on(server).await;
    for file in files {
        let text = std::fs::read(file).expect("a file of the folder");
        project.sandbox.write(&format!("users/{}", file.file_name().unwrap_or_default()), text);
    }
    let names = DatabaseName::live(project.database.name());
    let plan = users::read(&project.context, &names).unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..2 {
        let applied = users::apply_roles(&project.context, &server.admin, &plan).await;
        applied.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Lines of a dump without psql's random keys, whatever their order.
fn sorted_lines(dump: &[u8]) -> std::collections::BTreeSet<String> {
    let text = String::from_utf8_lossy(dump);
    let lines = text.lines().filter(|line| !line.contains("restrict "));
    lines.map(str::to_owned).collect()
}

/// Memory is the process's: the file is loaded in a process of its own, where no other test runs.
#[tokio::test]
async fn a_large_file_is_streamed() {
    const MARK: &str = "SEEDBED_TEST_LARGE_SEED";
    if harness::variable(MARK).is_none() {
        let status =
            std::process::Command::new(std::env::current_exe().expect("a running program"))
                .args(["--exact", "seed_files::a_large_file_is_streamed"])
                .env(MARK, "1")
                .status();
        assert!(status.expect("the suite can start itself").success());
        return;
    }
    let project = Project::new().await;
    let path = project.path("large.sql.gz");
    let file = std::fs::File::create(&path).expect("our folder");
    let mut file = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    file.write_all(b"create table t (id int, body text);\nCOPY t FROM stdin;\n").expect("our file");
    let body = "x".repeat(1000);
    for id in 0..200_000 {
        writeln!(file, "{id}\t{body}").expect("our file");
    }
    file.write_all(b"\\.\nselect 1;\n").expect("our file");
    file.finish().expect("our file");
    let before = peak_bytes();
    let loaded = project.load("large.sql.gz").await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((loaded.rows, loaded.statements), (200_000, 3));
    assert_eq!(project.database.text("select count(*), max(id) from t").await, "200000|199999");
    let grown = peak_bytes() - before;
    assert!(grown < 50_000_000, "200 MB of rows went through and memory grew by {grown} bytes");
}

/// The most memory that this process has had.
fn peak_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kilobytes.and_then(|number| number.parse::<u64>().ok()).expect("Linux says so") * 1024
}

#[tokio::test]
async fn loading_stops_when_it_is_asked_to() {
    let project = Project::new().await;
    project.sandbox.write("seed/slow.sql", "create table t (id int);\nselect pg_sleep(600);");
    let cancel = project.context.cancel.clone();
    let running = "select count(*) from pg_stat_activity where query like 'select pg_sleep(600)%' and state = 'active' and datname = current_database()";
    let watch = async {
        while project.database.text(running).await != "1" {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(project.load("seed/slow.sql"), watch);
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    while project.database.text(running).await != "0" {
        tokio::task::yield_now().await;
    }
    assert_eq!(project.database.text("select to_regclass('t')").await, "∅");
}

#[tokio::test]
async fn the_files_of_the_seed_folder_come_in_order_of_name() {
    let project = Project::new().await;
    for name in ["b.sql", "a.SQL", "c.sql.gz", "d.dump", "notes.txt"] {
        project.sandbox.write(&format!("seed/{name}"), "");
    }
    project.sandbox.write("seed/snapshots/x.sql", "");
    let files = seed::files(&project.context).unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<_> = files.iter().filter_map(|path| Utf8Path::new(path).file_name()).collect();
    assert_eq!(names, ["a.SQL", "b.sql", "c.sql.gz"]);
}
