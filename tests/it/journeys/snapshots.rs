//! Snapshots as a team meets them: made from production, listed, chosen, damaged, restored elsewhere.

use super::{FIRST, Production, Project, SECOND, contents, elsewhere, files_below};
use crate::harness::postgres::query_text;
use crate::harness::{Run, Sandbox, s3};

/// A folder store that goes with the value, as a `[store]` section.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("the temporary folder can be written to"))
    }

    fn section(&self) -> String {
        format!("[store]\nurl = \"{}\"\n", self.0.path().display())
    }

    fn path(&self, below: &str) -> camino::Utf8PathBuf {
        let path = camino::Utf8PathBuf::from_path_buf(self.0.path().join(below));
        path.expect("we named it in UTF-8")
    }
}

/// A developer's project over that store.
fn developer(section: &str) -> Project {
    let project = Project::external(elsewhere());
    project.sandbox.write(
        "conf/seedbed.toml",
        format!(
            "{section}[flyway.placeholders]\nowner = \"{}\"\nreader = \"{}\"\n",
            project.owner, project.reader
        ),
    );
    project
}

/// Takes a snapshot; returns its id.
fn create(production: &Production) -> String {
    let created = production.run(&["snapshot", "create", "--json"]).succeeds().json();
    created["id"].as_str().unwrap_or_else(|| panic!("no id: {created}")).to_owned()
}

/// What `why` says of the snapshot.
fn reason(project: &Project, id: &str) -> String {
    let why = project.run(&["snapshot", "why", "--json"]).succeeds().json();
    let found = why["snapshots"].as_array().into_iter().flatten().find(|row| row["id"] == id);
    let found = found.unwrap_or_else(|| panic!("no {id} in {why}"));
    found["reason"].as_str().unwrap_or_default().to_owned()
}

fn says(run: &Run, text: &str) {
    assert!(run.stderr.contains(text), "no `{text}` in\n{}", run.stderr);
}

#[tokio::test]
async fn a_snapshot_goes_from_production_to_a_developer_by_s3_over_http() {
    let s3 = s3();
    let section = s3.store_section("snapshots", "factory/main");
    let mut production = Production::new(&section).await;
    for (name, value) in s3.variables() {
        production.sandbox.set(name, value);
    }
    let before = contents(&production.target).await;
    let created = production.run(&["snapshot", "create"]).succeeds();
    assert!(
        created.stdout.contains("schema version 1, published in s3://snapshots/factory/main\n"),
        "{}",
        created.stdout
    );
    let list = production.run(&["snapshot", "list", "--json"]).succeeds().json();
    let rows = &list["result"];
    assert_eq!(rows[0]["details"]["rows"], 5301, "{list}");
    let id = rows[0]["id"].as_str().expect("an id").to_owned();
    let show = production.run(&["snapshot", "show", &id[..8]]).succeeds();
    assert!(show.stdout.starts_with(&format!("id        {id}\n")), "{}", show.stdout);
    assert!(show.stdout.contains("shop.item                     5,000"), "{}", show.stdout);
    let verified = production.run(&["snapshot", "verify"]).succeeds();
    assert!(verified.stdout.starts_with(&format!("{id} whole: ")), "{}", verified.stdout);
    assert_eq!(contents(&production.target).await, before);

    let mut project = developer(&section);
    for (name, value) in s3.variables() {
        project.sandbox.set(name, value);
    }
    std::fs::remove_file(project.sandbox.project().join("sql/V2__purchases.sql")).expect("written");
    std::fs::remove_file(project.sandbox.project().join("sql/R__totals.sql")).expect("written");
    assert_eq!(reason(&project, &id), "taken: the newest that fits");
    project.run(&["up", "--seed", "latest"]).succeeds();
    assert_eq!(project.contents().await, before);
    production.drop_database().await;
}

#[tokio::test]
async fn a_snapshot_lives_its_whole_life_in_a_full_s3_server() {
    let Some(garage) = crate::harness::Garage::start() else { return };
    let section =
        format!("{}[retention]\nkeep = 1\nwithin = \"1s\"\n", garage.store_section("factory"));
    let mut production = Production::new(&section).await;
    for (name, value) in garage.variables() {
        production.sandbox.set(name, value);
    }
    let doctor = production.run(&["doctor"]).succeeds();
    assert!(doctor.stdout.contains("overwrites although told not to"), "{}", doctor.stdout);
    production.run(&["snapshot", "create"]).succeeds();
    // An archive of the schema says in which second it was made.
    production.sql("select pg_sleep(1.1)").await;
    let again = production.run(&["snapshot", "create", "--json"]).succeeds().json();
    assert_eq!(again["new_objects"], 1, "{again}");
    production.run(&["snapshot", "verify"]).succeeds();
    let before = contents(&production.target).await;
    let mut project = developer(&section);
    for (name, value) in garage.variables() {
        project.sandbox.set(name, value);
    }
    std::fs::remove_file(project.sandbox.project().join("sql/V2__purchases.sql")).expect("written");
    std::fs::remove_file(project.sandbox.project().join("sql/R__totals.sql")).expect("written");
    project.run(&["up", "--seed", "latest"]).succeeds();
    assert_eq!(project.contents().await, before);
    production.run(&["snapshot", "prune", "--yes"]).succeeds();
    production.run(&["snapshot", "verify"]).succeeds();
    production.drop_database().await;
}

#[tokio::test]
async fn f40_the_newest_snapshot_whose_whole_history_is_in_the_checkout_is_taken() {
    let store = Folder::new();
    let production = Production::new(&store.section()).await;
    let first = create(&production);
    let second = create(&production);
    production.sandbox.write("sql/V2__purchases.sql", SECOND);
    production.run(&["migrate", "--yes"]).succeeds();
    let newer = create(&production);
    production.drop_database().await;
    // Another production, whose first script has another text.
    let diverged = Folder::new();
    let other = Production::new(&diverged.section()).await;
    let changed = format!("{FIRST}-- another end\n");
    other.sandbox.write("sql/V1__shop.sql", &changed);
    query_text(&other.target, "delete from flyway_schema_history").await;
    query_text(&other.target, "drop schema shop cascade").await;
    other.run(&["migrate", "--yes"]).succeeds();
    other.sandbox.write("conf/seedbed.toml", store.section());
    let diverged = create(&other);
    other.drop_database().await;

    // A checkout of the first script only: three of four do not fit it, or are not the newest.
    let old = developer(&store.section());
    let root = old.sandbox.project();
    std::fs::remove_file(root.join("sql/V2__purchases.sql")).expect("written");
    std::fs::remove_file(root.join("sql/R__totals.sql")).expect("written");
    let up = old.run(&["up", "--seed", "latest"]).succeeds();
    assert!(up.stdout.contains(&format!("data      snapshot {second}, ")), "{}", up.stdout);
    assert_eq!(reason(&old, &newer), "newer than this checkout: version 2 is not here");
    assert_eq!(
        reason(&old, &diverged),
        "diverged at version 1: it was applied with another checksum"
    );
    assert_eq!(reason(&old, &second), "taken: the newest that fits");
    assert_eq!(reason(&old, &first), "older than the one taken");
    // Asked for by its id, what does not fit is refused, and what fits is taken.
    let live = old.contents().await;
    let run = old.run(&["seed", "--snapshot", &newer]).exits(8);
    says(
        &run,
        &format!(
            "error: snapshot {newer} does not fit this checkout: newer than this checkout: version 2 \
             is not here\n  hint: see the reason of each: `seedbed snapshot why`\n"
        ),
    );
    old.run(&["seed", "--snapshot", &diverged]).exits(8);
    assert_eq!(old.contents().await, live);
    old.run(&["seed", "--snapshot", &first]).succeeds();

    let current = developer(&store.section());
    let up = current.run(&["up"]).succeeds();
    assert!(up.stdout.contains(&format!("data      snapshot {newer}, ")), "{}", up.stdout);

    // A checkout that none of them fits.
    let none = developer(&store.section());
    none.sandbox.write("sql/V1__shop.sql", format!("{FIRST}-- a third text\n"));
    let run = none.run(&["up", "--seed", "latest"]).exits(8);
    says(
        &run,
        &format!(
            "{diverged}, is no match: diverged at version 1: it was applied with another checksum\n  \
             hint: see the reason of each: `seedbed snapshot why`\n"
        ),
    );
    assert_eq!(none.databases().await, [""; 0]);
}

/// Flips one bit in the middle of a file.
fn damage(path: &camino::Utf8Path) {
    let mut bytes = std::fs::read(path).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).expect("it is ours");
}

#[tokio::test]
async fn f40_a_damaged_newest_snapshot_is_an_error_that_names_the_next_one() {
    let store = Folder::new();
    let production = Production::new(&store.section()).await;
    let older = create(&production);
    let shared = files_below(&store.path("chunks"));
    production.sql("update shop.item set label = label || ' new'").await;
    let newest = create(&production);
    production.drop_database().await;
    let only_new: Vec<_> = files_below(&store.path("chunks"))
        .into_iter()
        .filter(|file| !shared.contains(file))
        .collect();
    assert!(!only_new.is_empty());
    for chunk in &only_new {
        damage(chunk);
    }

    // A chunk: seen when it is loaded.
    let project = developer(&store.section());
    let run = project.run(&["up"]).exits(10);
    says(&run, &format!("error: snapshot `{newest}` is damaged: `chunks/"));
    says(
        &run,
        &format!(
            "  hint: take the next one that fits, {older}: `--skip-damaged`\n  \
             hint: see all of the damage: `seedbed snapshot verify {newest}`\n"
        ),
    );
    assert_eq!(project.databases().await, [""; 0]);
    let verify = project.run(&["snapshot", "verify", &newest]).exits(10);
    for chunk in &only_new {
        says(&verify, chunk.file_name().expect("a file"));
    }
    project.run(&["snapshot", "verify", &older]).succeeds();
    let ci = project.run(&["ci"]).exits(10);
    says(&ci, &format!("take the next one that fits, {older}: `--skip-damaged`"));
    project.run(&["ci", "--skip-damaged"]).succeeds();
    let up = project.run(&["up", "--skip-damaged"]).succeeds();
    says(&up, &format!("; taking {older} instead"));
    assert!(up.stdout.contains(&format!("data      snapshot {older}, ")), "{}", up.stdout);
    assert_eq!(project.text("select count(*) from shop.item where label like '% new'").await, "0");
    let live = project.contents().await;
    project.run(&["reset"]).exits(10);
    project.run(&["seed", "--snapshot", &newest]).exits(10);
    let seed = project.run(&["seed", "--snapshot", "latest", "--skip-damaged"]).succeeds();
    says(&seed, "clone the frozen template");
    assert_eq!(project.contents().await, live);

    // A manifest: seen when it is chosen.
    let manifest = files_below(&store.path("snapshots"))
        .into_iter()
        .find(|file| file.as_str().contains(&newest))
        .expect("its name holds the id");
    std::fs::write(&manifest, "{\"format\": 1,").expect("it is ours");
    let run = project.run(&["reset"]).exits(10);
    says(&run, &format!("hint: take the next one that fits, {older}: `--skip-damaged`\n"));
    assert_eq!(project.contents().await, live);
    project.run(&["reset", "--skip-damaged"]).succeeds();
    let list = project.run(&["snapshot", "list"]).succeeds();
    assert!(list.stdout.contains("damaged: "), "{}", list.stdout);
}

#[tokio::test]
async fn a_list_without_a_young_snapshot_ends_with_13() {
    let sandbox = Sandbox::new();
    sandbox.write("conf/dev.toml", "");
    let empty = sandbox.run(&["snapshot", "list", "--max-age", "8d"]).exits(13);
    assert_eq!(empty.stdout, "no snapshot yet: `seedbed snapshot create` makes one\n");
    assert_eq!(empty.stderr, "warning: no snapshot is newer than 8d (`--max-age`)\n");
    // The example's snapshot was taken when it was committed.
    sandbox.copy_from_repository("seed/snapshots");
    let old = sandbox.run(&["snapshot", "list", "--max-age", "1s"]).exits(13);
    assert!(old.stderr.contains("no snapshot is newer than 1s"), "{}", old.stderr);
    sandbox.run(&["snapshot", "list", "--max-age", "99999d"]).succeeds();
    let wrong = sandbox.run(&["snapshot", "list", "--max-age", "soon"]).exits(2);
    assert_eq!(
        wrong.stderr,
        "error: `--max-age soon`: expected a number and a unit, as 8d, 12h or 90m\n"
    );
}

/// The example's one manifest and its text.
fn sample(sandbox: &Sandbox) -> (camino::Utf8PathBuf, String) {
    sandbox.copy_from_repository("seed/snapshots");
    let folder = sandbox.project().join("seed/snapshots/snapshots");
    let path = files_below(&folder).pop().expect("the example has a snapshot");
    let text = std::fs::read_to_string(&path).expect("it was just copied");
    (path, text)
}

#[test]
fn a_snapshot_that_cannot_be_read_is_not_a_young_one() {
    let sandbox = Sandbox::new();
    sandbox.write("conf/dev.toml", "");
    let (path, text) = sample(&sandbox);
    let look = ["snapshot", "list", "--max-age", "99999d"];
    for broken in [text.replace("\"format\":1", "\"format\":99"), text[..text.len() / 2].to_owned()]
    {
        std::fs::write(&path, broken).expect("the store is the test's own");
        let run = sandbox.run(&look).exits(13);
        assert_eq!(
            run.stderr,
            "warning: no snapshot is newer than 99999d (`--max-age`); newer, but not counted: 1 that \
             cannot be read\n"
        );
    }
    std::fs::write(&path, text).expect("the store is the test's own");
    sandbox.run(&look).succeeds();
}

#[test]
fn a_snapshot_of_another_database_in_a_shared_store_is_not_a_young_one() {
    let sandbox = Sandbox::new();
    let (_, text) = sample(&sandbox);
    assert!(text.contains("\"database\":\"factory_dev\""));
    let source = |name: &str| {
        format!("protected = true\n[database]\nurl = \"postgresql://db.example/{name}\"\n")
    };
    sandbox.write("conf/factory.toml", source("factory_dev"));
    sandbox.write("conf/billing.toml", source("billing"));
    sandbox.write("conf/dev.toml", "[database]\nname = \"of_a_developer\"\n");
    let look = |env: &str| sandbox.run(&["snapshot", "list", "--max-age", "99999d", "--env", env]);
    look("factory").succeeds();
    look("dev").succeeds();
    assert_eq!(
        look("billing").exits(13).stderr,
        "warning: no snapshot of `billing` is newer than 99999d (`--max-age`); newer, but not \
         counted: 1 of other databases\n"
    );
}

#[test]
fn an_empty_store_is_not_whole() {
    let sandbox = Sandbox::new();
    sandbox.write("conf/dev.toml", "[store]\nurl = \"nowhere\"\n");
    for args in [&["snapshot", "verify"] as &[&str], &["snapshot", "verify", "latest"]] {
        let run = sandbox.run(args).exits(8);
        assert_eq!(
            run.transcript(),
            "exit 8\n--- stdout\n--- stderr\nerror: there is no snapshot in [project]/nowhere\n  \
             hint: check that `store.url` is the place that is meant: `seedbed config`\n",
        );
    }
}

#[tokio::test]
async fn f30_two_snapshots_made_at_once_are_both_whole() {
    let store = Folder::new();
    let production = Production::new(&store.section()).await;
    let start =
        || production.sandbox.command(&["snapshot", "create"]).spawn().expect("it was built");
    let (one, two) = (start(), start());
    for child in [one, two] {
        let output = child.wait_with_output().expect("it was started");
        production.sandbox.ended(&["snapshot", "create"], output).succeeds();
    }
    let manifests = files_below(&store.path("snapshots"));
    assert_eq!(manifests.len(), 2);
    for manifest in &manifests {
        let id = manifest.file_stem().and_then(|stem| stem.rsplit('_').next()).expect("an id");
        production.run(&["snapshot", "verify", id]).succeeds();
    }
    production.drop_database().await;
}
