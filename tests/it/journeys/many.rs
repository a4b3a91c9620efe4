//! Ten thousand snapshots in one store: what each verb that looks among them asks of an S3 server.
//!
//! Requests are counted, time is not: a listing has pages of a thousand names, and how many manifests
//! are read must not depend on how many there are.

use std::cell::Cell;

use camino::Utf8PathBuf;
use seedbed::snapshot::Manifest;
use seedbed::snapshot::manifest::{Applied, Extension};
use seedbed::snapshot::name::{Name, object_name};

use super::{Production, Project, elsewhere};
use crate::harness::postgres::query_text;
use crate::harness::{Fault, FaultProxy, Run, S3Server, s3};

const ALL: usize = 10_000;

/// What a run asked of the store about manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    /// Of listings of all manifests.
    pages: usize,
    /// Manifests read.
    reads: usize,
}

/// A bucket that is filled with copies of one real snapshot, each said to be something else.
struct Bucket {
    s3: S3Server,
    proxy: FaultProxy,
    /// Requests that were counted already.
    counted: Cell<usize>,
    base: Manifest,
}

impl Bucket {
    /// The bucket has no snapshot yet; the rows of the one that is to be copied are there.
    async fn new() -> Self {
        let s3 = s3();
        let mut production = Production::new(&s3.store_section("snapshots", "factory")).await;
        for (name, value) in s3.variables() {
            production.sandbox.set(name, value);
        }
        production.run(&["snapshot", "create"]).succeeds();
        production.drop_database().await;
        let proxy = FaultProxy::start(&s3.endpoint(), |_| Fault::Pass);
        let folder = s3.bucket_dir("snapshots").join("factory/snapshots");
        let file = folder.read_dir_utf8().expect("there is one").next().expect("there is one");
        let file = file.expect("it can be read").into_path();
        let base = Manifest::read(&std::fs::read(&file).expect("the store is the test's own"));
        std::fs::remove_file(file).expect("the store is the test's own");
        let base = base.expect("the program wrote it");
        Self { s3, proxy, counted: Cell::new(0), base }
    }

    /// A project over the bucket; its store is reached through the proxy.
    fn seen_by(&self, mut project: Project) -> Project {
        for (name, value) in self.s3.variables() {
            project.sandbox.set(name, value);
        }
        let shared = project.sandbox.read("conf/seedbed.toml");
        let store = self.s3.store_section("snapshots", "factory");
        let store = store.replace(&self.s3.endpoint(), &self.proxy.endpoint());
        project.sandbox.write("conf/seedbed.toml", format!("{store}{shared}"));
        project
    }

    /// A copy of the snapshot that is `seconds` older, and what `change` makes of it.
    fn copy(&self, seconds: usize, change: impl FnOnce(&mut Manifest)) -> Manifest {
        let mut copy = self.base.clone();
        copy.taken_at -= jiff::SignedDuration::from_secs(seconds as i64);
        copy.id = format!("{seconds:016x}");
        change(&mut copy);
        copy
    }

    /// Puts the manifest into the bucket, under this name.
    fn put(&self, manifest: &Manifest, object: &str) {
        let document = manifest.write().expect("it is sound");
        std::fs::write(self.path(object), document).expect("the store is the test's own");
    }

    fn path(&self, object: &str) -> Utf8PathBuf {
        self.s3.bucket_dir("snapshots").join("factory").join(object)
    }

    /// What was asked since the last call.
    fn asked(&self) -> Asked {
        let seen = self.proxy.seen();
        let since = &seen[self.counted.replace(seen.len())..];
        let count = |which: &dyn Fn(&str) -> bool| since.iter().filter(|call| which(call)).count();
        let is_page = |call: &str| {
            call.contains("list-type=2") && call.contains("prefix=factory%2Fsnapshots%2F")
        };
        Asked {
            pages: count(&is_page),
            reads: count(&|call| call.starts_with("GET /snapshots/factory/snapshots/")),
        }
    }
}

/// As programs named it before names had stamps.
fn old_name(manifest: &Manifest) -> String {
    let object = object_name(manifest);
    let name = Name::parse(&object).expect("names that we make are ours");
    let stamp = name.stamp.expect("today's have one").to_string();
    object.replace(&format!("_{stamp}"), "")
}

fn applied(version: &str, checksum: i32, like: &Applied) -> Applied {
    Applied { version: Some(version.to_owned()), checksum: Some(checksum), ..like.clone() }
}

/// One of several ways in which a snapshot does not fit, none of which is rare.
fn misfit(place: usize, manifest: &mut Manifest) {
    let like = manifest.history.last().expect("the first script was applied").clone();
    match place % 5 {
        // Newer than the checkout.
        0 => manifest.history.push(applied(&format!("{}", 3 + place % 100), 1, &like)),
        // Diverged, in two ways.
        1 => manifest.history = vec![applied("1", 1, &like)],
        2 => manifest.history.push(applied("1.5", 1, &like)),
        3 => manifest.server.version_num = 990_000,
        _ => {
            let (name, version) = ("of_nobody".to_owned(), "1".to_owned());
            manifest.extensions.push(Extension { name, version, schema: "public".to_owned() });
        }
    }
}

/// What the run says it was filled with.
fn origin(run: Run) -> String {
    let ready = run.succeeds().json();
    ready["origin"]["id"].as_str().unwrap_or_else(|| panic!("no id: {ready}")).to_owned()
}

#[tokio::test]
async fn choosing_among_ten_thousand_takes_a_dozen_requests_however_deep_the_fitting_one_is() {
    let bucket = Bucket::new().await;
    let mut made: Vec<String> = Vec::new();
    // A tenth has names of older programs, where the version or the history decides.
    for place in 1..ALL {
        let manifest = bucket.copy(ALL + place, |copy| misfit(place, copy));
        let is_old = place % 10 < 3 && place % 5 < 3;
        let object = if is_old { old_name(&manifest) } else { object_name(&manifest) };
        bucket.put(&manifest, &object);
        made.push(object);
    }
    let fitting = bucket.copy(ALL, |_| ());
    bucket.put(&fitting, &object_name(&fitting));
    let project = bucket.seen_by(Project::native());

    // The newest of all.
    let up = origin(project.run(&["up", "--seed", "latest", "--json"]));
    assert_eq!(up, fitting.id);
    assert_eq!(bucket.asked(), Asked { pages: 10, reads: 1 });
    assert_eq!(project.text("select count(*) from shop.item").await, "5000");

    // Five thousand deep, with as many behind it.
    for (place, object) in (1..=ALL / 2).zip(made.iter().rev()) {
        std::fs::remove_file(bucket.path(object)).expect("the store is the test's own");
        let manifest = bucket.copy(place, |copy| misfit(place, copy));
        bucket.put(&manifest, &object_name(&manifest));
    }
    let reset = origin(project.run(&["reset", "--seed", "latest", "--json"]));
    assert_eq!(reset, fitting.id);
    // Two histories, one set of extensions, the one taken.
    assert_eq!(bucket.asked(), Asked { pages: 10, reads: 4 });

    let why = project.run(&["snapshot", "why", "--json"]).succeeds().json();
    assert_eq!(bucket.asked(), Asked { pages: 10, reads: 4 });
    let reasons = why["snapshots"].as_array().expect("a list");
    assert_eq!(reasons.len(), ALL);
    assert_eq!(reasons[ALL / 2]["reason"], "taken: the newest that fits");
    let kinds: Vec<&str> =
        reasons[..5].iter().map(|reason| reason["misfit"].as_str().expect("a word")).collect();
    assert_eq!(kinds, ["changed", "missing", "needs_server", "needs_extension", "newer"]);

    // Details only of the newest two hundred. Half as many pages tell as much.
    for object in made.iter().take(ALL / 2 - 1) {
        std::fs::remove_file(bucket.path(object)).expect("the store is the test's own");
    }
    let list = project.run(&["snapshot", "list", "--json"]).succeeds().json();
    assert_eq!(list["result"].as_array().map(Vec::len), Some(ALL / 2 + 1));
    assert_eq!(bucket.asked(), Asked { pages: 6, reads: 200 });
}

#[tokio::test]
async fn only_proved_ones_are_found_by_their_names_and_old_names_are_read() {
    let bucket = Bucket::new().await;
    let put = |seconds: usize, proved: bool| {
        let manifest = bucket.copy(seconds, |copy| copy.proved = proved);
        bucket.put(&manifest, &object_name(&manifest));
        manifest
    };
    for seconds in 1..1500 {
        put(seconds, false);
    }
    let proved = put(1500, true);
    for seconds in 1501..2000 {
        put(seconds, seconds % 2 == 0);
    }
    let project = bucket.seen_by(Project::native());
    let up = ["up", "--fresh", "--seed", "latest", "--proved", "--json"];
    assert_eq!(origin(project.run(&up)), proved.id);
    assert_eq!(bucket.asked(), Asked { pages: 2, reads: 1 });

    // Newer ones whose names do not tell whether they were proved.
    for place in 0..20 {
        let manifest = bucket.copy(0, |copy| copy.id = format!("{:016x}", 10_000 + place));
        bucket.put(&manifest, &old_name(&manifest));
    }
    assert_eq!(origin(project.run(&up)), proved.id);
    assert_eq!(bucket.asked(), Asked { pages: 3, reads: 21 });
}

#[tokio::test]
async fn the_guard_knows_ten_thousand_sources_by_their_names_and_reads_the_old_ones() {
    let bucket = Bucket::new().await;
    let identifier = |number: usize| Some(format!("71{number:017}"));
    let of =
        |place: usize| bucket.copy(place, |copy| copy.server.system_identifier = identifier(place));
    for place in 1..=ALL {
        bucket.put(&of(place), &object_name(&of(place)));
    }
    let project = bucket.seen_by(Project::external(elsewhere()));
    let mut up = ["up", "--fresh", "--seed", "none"];
    project.run(&up).succeeds();
    assert_eq!(bucket.asked(), Asked { pages: 10, reads: 0 });

    // Of the oldest the names do not tell: they are read. The pages were counted, fewer will do.
    for place in 101..=ALL {
        std::fs::remove_file(bucket.path(&object_name(&of(place)))).expect("it was just written");
    }
    for place in 101..=130 {
        bucket.put(&of(place), &old_name(&of(place)));
    }
    project.run(&up).succeeds();
    assert_eq!(bucket.asked(), Asked { pages: 1, reads: 30 });
    // The guard and the choice share a listing.
    up[3] = "latest";
    project.run(&up).succeeds();
    assert_eq!(bucket.asked(), Asked { pages: 1, reads: 31 });

    // The oldest of them is of this very server; then a name says so, be its manifest damaged or not.
    let sql = "select system_identifier::text from pg_control_system()";
    let this = query_text(&project.admin(), sql).await;
    let ours = bucket.copy(2 * ALL, |copy| copy.server.system_identifier = Some(this.clone()));
    let refused = || {
        let run = project.run(&up).exits(12);
        let said = format!("(system identifier {this}) is the source of a snapshot");
        assert!(run.stderr.contains(&said), "{}", run.stderr);
        bucket.asked()
    };
    let old = old_name(&ours);
    bucket.put(&ours, &old);
    refused();
    std::fs::remove_file(bucket.path(&old)).expect("it was just written");
    bucket.put(&ours, &object_name(&ours));
    assert_eq!(refused(), Asked { pages: 1, reads: 0 });
    std::fs::write(bucket.path(&object_name(&ours)), "{").expect("the store is the test's own");
    assert_eq!(refused(), Asked { pages: 1, reads: 0 });
}

#[tokio::test]
async fn a_name_that_says_what_its_manifest_does_not_is_damage_and_never_a_restore() {
    let bucket = Bucket::new().await;
    let older = bucket.copy(9, |copy| copy.proved = true);
    bucket.put(&older, &object_name(&older));
    let newest = bucket.copy(1, |_| ());
    let proved = bucket.copy(1, |copy| copy.proved = true);
    bucket.put(&newest, &object_name(&proved));
    let project = bucket.seen_by(Project::native());
    let up = ["up", "--seed", "latest", "--proved"];
    let refused = project.run(&up).exits(10);
    let belongs = format!("it belongs to the name `{}`", object_name(&newest));
    assert!(refused.stderr.contains(&belongs), "{}", refused.stderr);
    assert!(
        refused.stderr.contains(&format!("{}: `--skip-damaged`", older.id)),
        "{}",
        refused.stderr
    );
    let skipping = project.run(&[&up[..], &["--skip-damaged", "--json"]].concat());
    assert_eq!(origin(skipping), older.id);
}
