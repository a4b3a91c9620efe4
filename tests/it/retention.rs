//! Snapshots that go: `prune`, `delete`; and those that are looked at closely before they come:
//! `create --prove`, `create --strict`; and `export`, which leaves with plain files.

use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::ExposeSecret;
use seedbed::snapshot::manifest::{self, Manifest};
use seedbed::snapshot::name;

use crate::equality;
use crate::harness::{self, Sandbox, Server, TestDatabase};

const DAY: u64 = 86_400;

/// A project whose production is `source`, with the store in its folder `store`.
fn production(source: &TestDatabase, retention: &str) -> Sandbox {
    let target = &source.target;
    let password = target.password.as_ref().expect("the harness's superuser has one");
    let mut sandbox = Sandbox::new();
    sandbox.write("conf/seedbed.toml", format!("[store]\nurl = \"store\"\n{retention}"));
    sandbox.write(
        "conf/prod.toml",
        format!(
            "protected = true\n[engine]\nkind = \"external\"\n[database]\nhost = \"{}\"\nport = {}\n\
             name = \"{}\"\nuser = \"{}\"\npassword = \"env:PROD_PASSWORD\"\n",
            target.host, target.port, target.database, target.user
        ),
    );
    sandbox.write(
        "conf/dev.toml",
        "[engine]\nkind = \"native\"\n[database]\nname = \"app\"\nuser = \"app\"\npassword = \"word\"\n",
    );
    sandbox.set("PROD_PASSWORD", password.expose_secret());
    sandbox
}

fn create(sandbox: &Sandbox, more: &[&str]) -> String {
    let mut args = vec!["snapshot", "create", "--env", "prod", "--json"];
    args.extend(more);
    let json = sandbox.run(&args).succeeds().json();
    json["id"].as_str().expect("a new snapshot has an id").to_owned()
}

fn prune(sandbox: &Sandbox, more: &[&str]) -> serde_json::Value {
    let mut args = vec!["snapshot", "prune", "--env", "prod", "--json"];
    args.extend(more);
    sandbox.run(&args).succeeds().json()
}

fn files(folder: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir_utf8().into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.into_path());
            } else {
                found.push(entry.into_path());
            }
        }
    }
    found.sort();
    found
}

/// Makes every file of the folder as old as if it had been written `days` ago.
fn age(folder: &Utf8Path, days: u64) {
    for path in files(folder) {
        let file = std::fs::File::options().append(true).open(&path).expect("it was listed");
        let at = SystemTime::now() - Duration::from_secs(days * DAY);
        file.set_modified(at).expect("the store is the test's own");
    }
}

async fn source(server: &Server) -> TestDatabase {
    let source = server.create_database().await;
    source
        .run(
            "create table customer (id int primary key, name text);
             insert into customer select n, 'customer ' || n from generate_series(1, 5000) n;
             create table note (id int, text text);
             insert into note select n, repeat(md5(n::text), 30) from generate_series(1, 2000) n",
        )
        .await;
    source
}

#[tokio::test]
async fn prune_shows_then_removes_and_chunks_go_only_in_a_later_run() {
    let server = harness::server();
    let source = source(server).await;
    let sandbox =
        production(&source, "[retention]\nkeep = 1\nwithin = \"0s\"\nversions_within = \"0s\"\n");
    let store = sandbox.project().join("store");
    let old = create(&sandbox, &[]);
    source.run("update note set text = repeat(md5(id::text || 'x'), 30)").await;
    let new = create(&sandbox, &[]);
    let all = files(&store);

    let shown = sandbox.run(&["snapshot", "prune", "--env", "prod"]).succeeds();
    assert!(shown.stdout.contains("nothing was changed"), "{}", shown.stdout);
    assert_eq!(files(&store), all, "a dry run writes nothing");
    let plan = prune(&sandbox, &[]);
    assert_eq!(plan["done"], false);
    assert_eq!(plan["snapshots"][0]["id"], new.as_str());
    assert_eq!(plan["snapshots"][0]["fate"], "kept_as_newest");
    assert_eq!(plan["snapshots"][1]["id"], old.as_str());
    assert_eq!(plan["snapshots"][1]["fate"], "removed");

    let done = prune(&sandbox, &["--yes"]);
    assert!(done["chunks"]["marked"].as_u64() >= Some(1), "{done:#}");
    assert_eq!(done["chunks"]["removed"], 0, "no chunk goes in the run that marks it");
    sandbox.run(&["snapshot", "show", &old, "--env", "prod"]).exits(8);
    let marked = done["chunks"]["marked"].clone();
    let again = prune(&sandbox, &["--yes"]);
    assert_eq!(again["chunks"]["removed"], 0, "the grace period is not over");
    assert_eq!(again["chunks"]["waiting"], marked);

    age(&store, 3);
    let last = prune(&sandbox, &["--yes"]);
    assert_eq!(last["chunks"]["removed"], marked, "{last:#}");
    sandbox.run(&["snapshot", "verify", "--env", "prod"]).succeeds();
    assert_eq!(files(&store.join("prune")), Vec::<Utf8PathBuf>::new(), "marks go as well");
    let rest = prune(&sandbox, &["--yes"]);
    assert_eq!(rest["chunks"]["removed"], 0);
    assert_eq!(rest["snapshots"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_chunk_that_a_new_snapshot_found_marked_is_not_removed() {
    let server = harness::server();
    let source = source(server).await;
    let sandbox =
        production(&source, "[retention]\nkeep = 1\nwithin = \"0s\"\nversions_within = \"0s\"\n");
    let store = sandbox.project().join("store");
    let first = create(&sandbox, &[]);
    source.run("create table other as select * from note; truncate note").await;
    create(&sandbox, &[]);
    prune(&sandbox, &["--yes"]);
    age(&store, 3);
    // The rows of the first snapshot are back; their chunks are marked, and ripe.
    source.run("insert into note select * from other; drop table other").await;
    let third = create(&sandbox, &[]);
    let done = prune(&sandbox, &["--yes"]);
    assert_eq!(done["snapshots"][0]["id"], third.as_str());
    sandbox.run(&["snapshot", "verify", &third, "--env", "prod"]).succeeds();
    age(&store, 3);
    prune(&sandbox, &["--yes"]);
    age(&store, 3);
    prune(&sandbox, &["--yes"]);
    sandbox.run(&["snapshot", "verify", &third, "--env", "prod"]).succeeds();
    sandbox.run(&["snapshot", "show", &first, "--env", "prod"]).exits(8);
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_keeps_every_chunk() {
    let server = harness::server();
    let source = source(server).await;
    let sandbox =
        production(&source, "[retention]\nkeep = 1\nwithin = \"0s\"\nversions_within = \"0s\"\n");
    let store = sandbox.project().join("store");
    create(&sandbox, &[]);
    source.run("update note set text = 'new'").await;
    create(&sandbox, &[]);
    prune(&sandbox, &["--yes"]);
    age(&store, 3);
    let manifest = files(&store.join("snapshots")).pop().expect("the newest is kept");
    let newer = manifest.as_str().replace(".json", "0.json").replace("_v", "_w");
    std::fs::write(&newer, "{\"format\": 2}").expect("the store is the test's own");
    let before = files(&store.join("chunks"));
    let done = prune(&sandbox, &["--yes"]);
    assert!(
        done["chunks_stay"].as_str().is_some_and(|reason| reason.contains("cannot be read")),
        "{done:#}"
    );
    assert_eq!(files(&store.join("chunks")), before);

    std::fs::remove_file(&newer).expect("it was just written");
    std::fs::remove_file(&manifest).expect("the store is the test's own");
    let empty = sandbox.run(&["snapshot", "prune", "--env", "prod", "--yes"]).exits(8);
    assert!(empty.stderr.contains("there is no snapshot in"), "{}", empty.stderr);
    assert_eq!(files(&store.join("chunks")), before, "an empty listing removes nothing");
}

#[tokio::test]
async fn delete_asks_and_takes_a_damaged_one_too() {
    let server = harness::server();
    let source = source(server).await;
    let sandbox = production(&source, "");
    let id = create(&sandbox, &[]);
    let refused = sandbox.run(&["snapshot", "delete", &id, "--env", "prod"]).exits(12);
    assert!(refused.stderr.contains("nobody is there"), "{}", refused.stderr);
    let manifest = files(&sandbox.project().join("store/snapshots")).pop().expect("one");
    std::fs::write(&manifest, "{").expect("the store is the test's own");
    sandbox.run(&["snapshot", "delete", &id[..10], "--env", "prod", "--yes"]).succeeds();
    assert!(!manifest.exists());
    sandbox.run(&["snapshot", "delete", "latest", "--env", "prod", "--yes"]).exits(8);
}

#[tokio::test]
async fn a_sudden_drop_is_said_and_is_an_error_when_strict() {
    let server = harness::server();
    let source = source(server).await;
    let sandbox = production(&source, "");
    let first = create(&sandbox, &["--strict"]);
    source.run("delete from customer where id > 100").await;
    let args = ["snapshot", "create", "--env", "prod", "--strict"];
    let refused = sandbox.run(&args).exits(13);
    assert!(
        refused.stderr.contains(&format!(
            "far less than in the last snapshot {first}: 2100 rows in all, 7000 before; \
             `public.customer` has 100 rows, 5000 before"
        )),
        "{}",
        refused.stderr
    );
    let list = sandbox.run(&["snapshot", "list", "--env", "prod", "--json"]).succeeds().json();
    assert_eq!(list["result"].as_array().or(list.as_array()).map(Vec::len), Some(1), "{list:#}");
    let said = sandbox.run(&["snapshot", "create", "--env", "prod"]).succeeds();
    assert!(said.stderr.contains("100 rows, 5000 before"), "{}", said.stderr);
}

/// Snapshots of other databases, all younger than the newest one that is there, and made like it.
fn others(store: &Utf8Path, count: usize) {
    let mine = files(&store.join("snapshots")).pop().expect("there is one");
    let manifest = Manifest::read(&std::fs::read(mine).expect("ours")).expect("it was published");
    for number in 1..=count {
        let later = jiff::SignedDuration::from_secs(i64::try_from(number).expect("few"));
        let taken_at = manifest.taken_at + later;
        let other = Manifest {
            id: manifest::new_id(taken_at),
            taken_at,
            database: format!("other_{number}"),
            ..manifest.clone()
        };
        let path = store.join(name::object_name(&other));
        std::fs::write(path, other.write().expect("well-formed")).expect("ours");
    }
}

#[tokio::test]
async fn a_sudden_drop_is_found_behind_many_snapshots_of_other_databases_or_said_to_be_unknown() {
    let server = harness::server();
    let source = source(server).await;
    let sandbox = production(&source, "");
    let store = sandbox.project().join("store");
    let first = create(&sandbox, &["--strict"]);
    others(&store, 100);
    source.run("delete from customer where id > 100").await;
    let args = ["snapshot", "create", "--env", "prod", "--strict"];
    let refused = sandbox.run(&args).exits(13);
    let said = format!("far less than in the last snapshot {first}");
    assert!(refused.stderr.contains(&said), "{}", refused.stderr);

    others(&store, 600);
    let refused = sandbox.run(&args).exits(13);
    let said = format!(
        "nothing to compare with: none of the newest 512 snapshots in the store is of `{}`",
        source.name()
    );
    assert!(refused.stderr.contains(&format!("error: {said}")), "{}", refused.stderr);
    let warned = sandbox.run(&args[..4]).succeeds();
    assert!(warned.stderr.contains(&said), "{}", warned.stderr);
}

#[tokio::test]
async fn a_proved_snapshot_was_restored_and_is_what_up_can_ask_for() {
    let server = harness::server();
    let source = source(server).await;
    // Whatever a schema may hold comes back as it was.
    source.run(crate::snapshot::HOSTILE).await;
    source.run("select lo_from_bytea(54711, repeat('x', 5000)::bytea), lo_create(54712)").await;
    let sandbox = production(&source, "");
    create(&sandbox, &[]);
    let none = sandbox.run(&["up", "--seed", "latest", "--proved"]).exits(8);
    assert!(none.stderr.contains("not proved"), "{}", none.stderr);
    let path = [&server.bin_dir.to_string_lossy(), "/usr/bin", "/bin"].join(":");
    let mut sandbox = sandbox;
    // Without Docker: its scratch server is of the version of the source.
    sandbox.set("PATH", &path);
    sandbox.set("DOCKER_HOST", "unix:///nonexistent.sock");
    let proved = create(&sandbox, &["--prove"]);
    let shown = sandbox.run(&["snapshot", "show", &proved, "--env", "prod", "--json"]);
    assert_eq!(shown.succeeds().json()["proved"], true);
    assert!(
        !sandbox.project().join(".seedbed/prove/.seedbed/native").exists(),
        "the server is gone"
    );
    let up = sandbox.run(&["up", "--seed", "latest", "--proved", "--json"]).succeeds().json();
    assert_eq!(up["origin"]["id"], proved.as_str());
}

#[tokio::test]
async fn a_snapshot_whose_copy_is_another_is_not_published() {
    let server = harness::server();
    let source = source(server).await;
    // The view draws numbers when it is filled, in the copy once more.
    source
        .run(
            "create sequence ticket;
             create materialized view drawn as select nextval('ticket') n from generate_series(1, 3)",
        )
        .await;
    let mut sandbox = production(&source, "");
    sandbox.set("PATH", &[&server.bin_dir.to_string_lossy(), "/usr/bin", "/bin"].join(":"));
    sandbox.set("DOCKER_HOST", "unix:///nonexistent.sock");
    let run = sandbox.run(&["snapshot", "create", "--prove", "--env", "prod"]).exits(13);
    let said = "error: prove the snapshot: restored, it differs in 1 thing: sequence `public.ticket` is at 6, \
        in the source at 3\n";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    let list = sandbox.run(&["snapshot", "list", "--env", "prod", "--json"]).succeeds().json();
    assert_eq!(list["result"].as_array().map(Vec::len), Some(0), "{list:#}");
}

#[tokio::test]
async fn an_export_is_loaded_by_stock_programs_and_is_equal() {
    let server = harness::server();
    let source = source(server).await;
    source
        .run(
            "create type mood as enum ('sad', 'happy');
             create table moods (m mood, n int) partition by hash (m);
             create table moods_0 partition of moods for values with (modulus 2, remainder 0);
             create table moods_1 partition of moods for values with (modulus 2, remainder 1);
             insert into moods select (enum_range(null::mood))[1 + n % 2], n from generate_series(1, 99) n;
             create table odd (t text, i int generated always as identity);
             insert into odd (t) values (null), (''), ('\\.'), (E'a\\nb\\\\.\\tc'), ('\\! echo x');
             create materialized view counted as select count(*) n from odd;
             select lo_from_bytea(4711, '\\x00ff10');
             comment on large object 4711 is 'it''s one'",
        )
        .await;
    let sandbox = production(&source, "");
    create(&sandbox, &[]);
    let args = ["snapshot", "export", "latest", "out", "--env", "prod"];
    sandbox.run(&args).succeeds();
    let full = sandbox.run(&args).exits(2);
    assert!(full.stderr.contains("the folder is not empty"), "{}", full.stderr);

    let copy = server.create_database().await;
    let out = sandbox.project().join("out");
    let instructions = sandbox.read("out/LOAD.md");
    let commands = instructions.lines().skip_while(|line| *line != "```sh").skip(2);
    let commands: Vec<&str> = commands.take_while(|line| *line != "```").collect();
    assert_eq!(commands.len(), 4, "{instructions}");
    for command in commands {
        let words: Vec<&str> = command.split(' ').filter(|word| *word != "--dbname=copy").collect();
        let words: Vec<String> = words[1..]
            .iter()
            .map(|word| match word.strip_prefix("--file=") {
                Some(file) => format!("--file={}", out.join(file)),
                None if *word == "schema.dump" => out.join(word).into_string(),
                None => (*word).to_owned(),
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let program = command.split(' ').next().expect("a command has a name");
        equality::tool(&server.bin_dir, program, Some(&copy.target), &words);
    }
    let (wanted, found) =
        (equality::contents(&source.target).await, equality::contents(&copy.target).await);
    assert_eq!(equality::content_differences(&wanted, &found), Vec::<String>::new());
}
