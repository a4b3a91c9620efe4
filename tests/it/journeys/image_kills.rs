//! kill -9 at every step of what works with images: the environment is the old or the new one, and a
//! later run leaves nothing behind.

use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::images::{in_docker, native_with_reflinks, shell, use_it};
use super::pool_full::look;
use super::published::{images_on, published_with_block, took};
use super::{Project, copy_tree};
use crate::harness::daemon_proxy::{DaemonProxy, PATIENCE};
use crate::harness::fault_proxy::Seen;
use crate::harness::{self, Fault, FaultProxy, postgres, strace};

/// What a kill may find.
pub(super) struct Contents {
    pub clean: String,
    pub used: String,
}

/// A project with an image, in use.
pub(super) async fn ready(project: &Project) -> Contents {
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    use_it(project).await;
    Contents { clean, used: project.contents().await }
}

/// After a kill: what is served is whole, and the act can be done again.
async fn holds(project: &Project, contents: &Contents, at: &str) {
    project.run(&["up"]).succeeds();
    let found = project.contents().await;
    assert!(found == contents.clean || found == contents.used, "killed at {at}: {found}");
    project.run(&["reset"]).succeeds();
    assert_eq!(project.contents().await, contents.clean, "killed at {at}");
    use_it(project).await;
    assert_eq!(project.contents().await, contents.used, "killed at {at}");
}

/// Runs the program up to a call to the daemon and kills it there; `None`: it ended by itself.
pub(super) fn kill(project: &Project, args: &[&str], stop: usize) -> Option<Vec<String>> {
    let proxy = DaemonProxy::start(&project.sandbox.project().join(".."), stop);
    let mut command = project.sandbox.command(args);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = proxy.stops(command)?;
    child.kill().expect("our own child");
    let status = child.wait().expect("our own child");
    (status.signal() == Some(9)).then(|| proxy.seen())
}

/// Numbers of the calls to be killed at: all of them, or some.
pub(super) fn stops() -> impl Iterator<Item = usize> {
    // A reset makes two.
    (1..3).chain((3..).step_by(if harness::full() { 1 } else { 6 }))
}

pub(super) fn of_pool(pool: &str) -> String {
    shell(&format!(
        "docker volume ls -q --filter name={pool}; docker ps -aq --filter volume={pool}; \
         docker ps -aq --filter volume={pool}-mounted; docker ps -aq --filter name={pool}; \
         cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep {pool} || true"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_at_any_call_of_a_reset_serves_the_old_or_the_new_database() {
    let Some((project, pool)) = in_docker().await else { return };
    let contents = ready(&project).await;
    for args in [&["reset", "--keep"][..], &["undo-reset"]] {
        if args == ["undo-reset"] {
            project.run(&["reset", "--keep"]).succeeds();
            use_it(&project).await;
        }
        let mut count = 0;
        for stop in stops() {
            let Some(seen) = kill(&project, args, stop) else { break };
            let at = format!("call {stop} of {args:?}: {}", seen.last().map_or("", String::as_str));
            harness::say(&format!("killed {at}"));
            holds(&project, &contents, &at).await;
            // What the killed run has left in Docker went with the runs behind it.
            let path = project.sandbox.project();
            let containers = format!(
                "docker ps -aq --filter name={pool} --filter label=seedbed.path={path} | wc -l; \
                 docker ps -aq --filter label=seedbed.path={path} | wc -l"
            );
            assert_eq!(shell(&containers), "0\n1", "{at}");
            let attached = format!("cat /sys/block/loop*/loop/backing_file | grep -c {pool}");
            assert_eq!(shell(&attached), "1", "{at}");
            if args == ["undo-reset"] {
                project.run(&["reset", "--keep"]).succeeds();
                use_it(&project).await;
            }
            count += 1;
        }
        assert!(count >= 1, "{args:?} made no calls");
    }
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_at_any_call_of_a_first_freeze_or_a_removal_leaves_nothing() {
    let Some((project, pool)) = in_docker().await else { return };
    let clean = {
        project.run(&["up"]).succeeds();
        let clean = project.contents().await;
        project.run(&["down", "--volumes", "--yes"]).succeeds();
        assert_eq!(of_pool(&pool), "");
        clean
    };
    for args in [&["up"][..], &["down", "--volumes", "--yes"]] {
        let mut count = 0;
        for stop in stops() {
            if args != ["up"] {
                project.run(&["up"]).succeeds();
            }
            let Some(seen) = kill(&project, args, stop) else { break };
            let at = format!("call {stop} of {args:?}: {}", seen.last().map_or("", String::as_str));
            harness::say(&format!("killed {at}"));
            project.run(&["up"]).succeeds();
            assert_eq!(project.contents().await, clean, "killed at {at}");
            project.run(&["down", "--volumes", "--yes"]).succeeds();
            assert_eq!(of_pool(&pool), "", "killed at {at}");
            let left = shell(&format!(
                "docker ps -aq --filter label=seedbed.path={0}; docker volume ls -q --filter label=seedbed.path={0}",
                project.sandbox.project()
            ));
            assert_eq!(left, "", "killed at {at}");
            count += 1;
        }
        assert!(count >= 1, "{args:?} made no calls");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn native_killed_at_any_rename_of_a_reset_serves_the_old_or_the_new_database() {
    if !harness::require("strace", strace::is_here()) {
        return;
    }
    let Some(project) = native_with_reflinks().await else { return };
    let contents = ready(&project).await;
    for (calls, args) in [
        ("rename,renameat,renameat2", &["reset", "--keep"][..]),
        ("ioctl", &["reset", "--keep"]),
        // Nothing is removed but what was kept before.
        ("unlinkat,unlink,rmdir", &["reset"]),
    ] {
        let most = if harness::full() { 400 } else { 12 };
        let mut count = 0;
        for number in (1..=most).step_by(if calls == "rename,renameat,renameat2" { 1 } else { 97 })
        {
            let (run, hit) = strace::killed_at(&project.sandbox, calls, number).run(args);
            if run.code == Some(0) {
                break;
            }
            count += 1;
            holds(&project, &contents, &format!("{calls} {number}: {hit:?}")).await;
        }
        assert!(count >= 1, "{calls}: nothing to be killed at");
    }
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    let state = project.sandbox.project().join(".seedbed");
    assert!(!state.join("native").exists() && !state.join("images").exists());
}

/// An image from the store has no passwords: that of a block is on its way while a clone is served.
#[tokio::test(flavor = "multi_thread")]
async fn native_killed_at_any_step_of_a_reset_a_password_that_a_block_has_given_is_kept() {
    if !harness::require("strace", strace::is_here()) {
        return;
    }
    let block = "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'guest') THEN
           CREATE ROLE guest LOGIN PASSWORD 'guest word';
         END IF; END $$;
         GRANT SELECT ON shop.item TO guest; GRANT USAGE ON SCHEMA shop TO guest;";
    let Some((_maker, project)) = published_with_block(block).await else { return };
    took(&project.run(&["up"]).succeeds());
    let state = project.sandbox.project().join(".seedbed");
    let carried = state.join("passwords.native.json");
    let comes_back = async |at: &str, through_a_point: bool| {
        if through_a_point {
            project.run(&["branch", "save", "point", "--replace"]).succeeds();
            project.run(&["branch", "restore", "point"]).succeeds();
        }
        project.run(&["up"]).succeeds();
        let guest = project.live().with_user("guest", Some("guest word".into()));
        let items = postgres::query_text(&guest, "select count(*) from shop.item").await;
        assert_eq!(items, "5000", "{at}");
        assert!(!carried.exists(), "{at}");
    };
    const RENAMES: &str = "rename,renameat,renameat2";
    // They are on their way when the clone comes in place of the data, whichever thread sees to that.
    for through_a_point in [false, true] {
        let killed = strace::killed_at(&project.sandbox, RENAMES, 1).of(state.join("native/data"));
        let (run, hit) = killed.run(&["reset"]);
        assert!(run.code.is_none() && carried.exists(), "{hit:?}: {}", run.stderr);
        comes_back(&format!("{hit:?}"), through_a_point).await;
    }
    for calls in [RENAMES, "connect"] {
        for number in 1..=if harness::full() { 40 } else { 12 } {
            let (run, hit) = strace::killed_at(&project.sandbox, calls, number).run(&["reset"]);
            if run.code == Some(0) {
                break;
            }
            comes_back(&format!("{calls} {number}: {hit:?}"), number % 2 == 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_at_any_call_of_a_pull_takes_the_image_with_the_next_run() {
    let Some((mut project, pool)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_IMAGES_PUBLISHED", "always");
    project.run(&["snapshot", "image", "latest"]).succeeds();
    killed_at_calls_of_a_pull(&project, &pool, stops()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_at_any_call_of_a_pull_that_goes_on_leaves_no_image_of_an_older_checkout() {
    let Some((mut project, pool)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_IMAGES_PUBLISHED", "always");
    // Nobody goes on from behind a repeatable script.
    let view = project.sandbox.project().join("sql/R__totals.sql");
    fs_err::remove_file(view).expect("is there");
    project.run(&["snapshot", "image", "latest"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let stops = (10..).step_by(harness::stride(12, 3));
    killed_at_calls_of_a_pull(&project, &pool, stops).await;
}

/// Each time the next run takes the image as well, and nothing but what it froze stands in the pool.
async fn killed_at_calls_of_a_pull(
    project: &Project,
    pool: &str,
    stops: impl Iterator<Item = usize>,
) {
    // What nobody has disturbed.
    took(&project.run(&["up"]).succeeds());
    let clean = project.contents().await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    for stop in stops {
        let killed = kill(project, &["up"], stop);
        let at = match &killed {
            Some(seen) => format!("call {stop}: {}", seen.last().map_or("", String::as_str)),
            None => "nowhere".to_owned(),
        };
        harness::say(&format!("killed at {at}"));
        let up = project.run(&["up"]).succeeds();
        assert!(!up.stderr.contains("restore tables"), "killed at {at}: {}", up.stderr);
        assert_eq!(project.contents().await, clean, "killed at {at}");
        let images = look(pool, "ls -A /p/images | grep -v -x -F .lock || true");
        // None where it was live before it was frozen.
        let count = images.lines().count();
        let is_one = count == 1 || (count == 0 && killed.is_some());
        assert!(is_one && !images.starts_with('.'), "killed at {at}: {images}");
        project.run(&["down", "--volumes", "--yes"]).succeeds();
        assert_eq!(of_pool(pool), "", "killed at {at}");
        if killed.is_none() {
            assert!(stop > 1, "a pull makes calls");
            break;
        }
    }
}

/// The document is put when the scratch server has gone.
#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_at_any_call_of_publishing_leaves_no_image_and_the_next_run_makes_one() {
    let Some((mut project, _)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_IMAGES_PUBLISHED", "always");
    let make = ["snapshot", "image", "latest"];
    let path = project.sandbox.project().to_owned();
    let documents =
        || shell(&format!("find {path}/seed/snapshots/images -name '*.json' 2>/dev/null | wc -l"));
    let label = format!("--filter label=seedbed.path={path}/.seedbed/image");
    let mut count = 0;
    for stop in (1..).step_by(harness::stride(12, 2)) {
        let before = documents();
        let Some(seen) = kill(&project, &make, stop) else { break };
        let at = format!("call {stop}: {}", seen.last().map_or("", String::as_str));
        harness::say(&format!("killed at {at}"));
        assert_eq!(documents(), before, "killed at {at}");
        project.run(&make).succeeds();
        let left = shell(&format!("docker ps -aq {label}; docker volume ls -q {label}"));
        assert_eq!(left, "", "killed at {at}");
        count += 1;
    }
    assert!(count >= 1, "making an image makes calls");
    took(&project.run(&["up"]).succeeds());
    assert_eq!(project.text("select count(*) from shop.item").await, "5000");
}

#[tokio::test(flavor = "multi_thread")]
async fn native_killed_at_any_step_of_publishing_or_taking_an_image_leaves_one_or_none() {
    if !harness::require("strace", strace::is_here()) {
        return;
    }
    let Some(mut project) = native_with_reflinks().await else { return };
    project.sandbox.set("SEEDBED_IMAGES_PUBLISHED", "always");
    // `down --volumes` forgets its port.
    project.sandbox.set("SEEDBED_ENGINE_PORT", &postgres::free_port().to_string());
    let make = ["snapshot", "image", "latest"];
    let documents = |project: &Project| {
        let found = shell(&format!(
            "find {}/seed/snapshots/images -name '*.json' 2>/dev/null || true",
            project.sandbox.project()
        ));
        found.lines().filter(|line| !line.is_empty()).count()
    };
    let most = if harness::full() { 400 } else { 12 };
    let mut count = 0;
    for number in (1..=most).step_by(if harness::full() { 1 } else { 4 }) {
        let before = documents(&project);
        let calls = "rename,renameat,renameat2,link,linkat";
        let (run, hit) = strace::killed_at(&project.sandbox, calls, number).run(&make);
        if run.code == Some(0) {
            break;
        }
        count += 1;
        let left = documents(&project) - before;
        let at_the_document = hit.iter().any(|call| call.contains(".json"));
        assert!(left == 0 || (left == 1 && at_the_document), "{left} at {hit:?}");
    }
    assert!(count >= 1, "an image is made of objects that are renamed");
    project.run(&make).succeeds();
    // What was cut off goes by `snapshot prune` once its grace is over, and the scratch server with the next run.
    assert!(!project.sandbox.project().join(".seedbed/image/.seedbed/native/data").exists());

    // What nobody has disturbed.
    took(&project.run(&["up"]).succeeds());
    let clean = project.contents().await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    for calls in ["rename,renameat,renameat2", "mkdir,mkdirat", "openat"] {
        let step = if calls.starts_with("rename") { 1 } else { 97 };
        for number in (1..=most).step_by(step) {
            let (run, hit) = strace::killed_at(&project.sandbox, calls, number).run(&["up"]);
            let up = project.run(&["up"]).succeeds();
            let at = format!("killed at {calls} {number}: {hit:?}");
            assert!(!up.stderr.contains("restore tables"), "{at}: {}", up.stderr);
            assert_eq!(project.contents().await, clean, "{at}");
            project.run(&["down", "--volumes", "--yes"]).succeeds();
            let state = project.sandbox.project().join(".seedbed");
            let left = state.join("native").exists() || state.join("images").exists();
            assert!(!left, "killed at {calls} {number}: {hit:?}");
            if run.code == Some(0) {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn native_killed_at_any_step_of_a_first_freeze_or_a_save_leaves_the_data_whole() {
    if !harness::require("strace", strace::is_here()) {
        return;
    }
    let Some(mut project) = native_with_reflinks().await else { return };
    // `down --volumes` forgets its port.
    project.sandbox.set("SEEDBED_ENGINE_PORT", &postgres::free_port().to_string());
    let (renames, clones) = ("rename,renameat,renameat2", "ioctl");
    let state = project.sandbox.project().join(".seedbed");
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    let most = if harness::full() { 400 } else { 12 };
    for calls in [renames, clones] {
        let mut count = 0;
        for number in (1..=most).step_by(if calls == renames { 1 } else { 97 }) {
            let (run, hit) = strace::killed_at(&project.sandbox, calls, number).run(&["up"]);
            let at = format!("{calls} {number} of up: {hit:?}");
            project.run(&["up"]).succeeds();
            assert_eq!(project.contents().await, clean, "{at}");
            project.run(&["down", "--volumes", "--yes"]).succeeds();
            assert!(!state.join("native").exists() && !state.join("images").exists(), "{at}");
            if run.code == Some(0) {
                break;
            }
            count += 1;
        }
        assert!(count >= 1, "{calls}: nothing to be killed at");
    }

    let Contents { used: point, .. } = ready(&project).await;
    let save = &["branch", "save", "point", "--replace"][..];
    let restore = &["branch", "restore", "point"][..];
    project.run(save).succeeds();
    for (calls, args) in [(renames, save), (clones, save), (renames, restore), (clones, restore)] {
        let mut count = 0;
        for number in (1..=most).step_by(if calls == renames { 1 } else { 97 }) {
            project.sql("update shop.item set cents = 2").await;
            let later = project.contents().await;
            let (run, hit) = strace::killed_at(&project.sandbox, calls, number).run(args);
            let at = format!("{calls} {number} of {args:?}: {hit:?}");
            let is_done = run.code == Some(0);
            project.run(&["up"]).succeeds();
            let found = project.contents().await;
            let is_restored = args == restore && found == point;
            assert!(
                is_restored || found == later && !(args == restore && is_done),
                "{at}: {found}"
            );
            project.run(restore).succeeds();
            let found = project.contents().await;
            let is_saved = args == save && found == later;
            assert!(is_saved || found == point && !(args == save && is_done), "{at}: {found}");
            // Again as it was before.
            project.sql("update shop.item set cents = 1").await;
            assert_eq!(project.contents().await, point, "{at}");
            project.run(save).succeeds();
            assert_eq!(points(&project), ["point"], "{at}");
            if is_done {
                break;
            }
            count += 1;
        }
        assert!(count >= 1, "{calls} of {args:?}: nothing to be killed at");
    }
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert!(!state.join("native").exists() && !state.join("images").exists());
}

/// At which call to the store a run is killed.
#[derive(Debug, Clone, Copy)]
enum Call {
    Number(usize),
    /// That which makes the image exist.
    Document,
}

impl Call {
    fn is(self, seen: &Seen) -> bool {
        match self {
            Self::Number(number) => seen.number == number,
            Self::Document => seen.method == "PUT" && seen.path.contains(".json"),
        }
    }
}

/// Runs until a call to the store, which is done or not, and kills it there; `None`: it made fewer.
fn killed_at_a_call(
    project: &Project,
    s3: &harness::S3Server,
    args: &[&str],
    (call, is_done): (Call, bool),
) -> Option<String> {
    let (arrive, arrival) = std::sync::mpsc::channel();
    let door = Arc::new(Mutex::new(()));
    let passing = Arc::clone(&door);
    let stopped = std::sync::atomic::AtomicBool::new(false);
    let proxy = FaultProxy::start(&s3.endpoint(), move |seen| {
        if stopped.load(std::sync::atomic::Ordering::SeqCst) {
            // The kill is on its way.
            return Fault::Stall;
        }
        if !call.is(seen) {
            return Fault::Pass;
        }
        stopped.store(true, std::sync::atomic::Ordering::SeqCst);
        let (arrive, at) = (arrive.clone(), format!("{} {}", seen.method, seen.path));
        let passing = Arc::clone(&passing);
        if is_done {
            return Fault::Rewrite(Box::new(move |answer| {
                let _ = arrive.send(at);
                // Whoever asked is killed before it knows.
                drop(passing.lock());
                answer
            }));
        }
        let _ = arrive.send(at);
        Fault::Stall
    });
    let shut = door.lock().expect("nobody panics with it");
    let mut command = project.sandbox.command(args);
    command.env("SEEDBED_STORE_ENDPOINT", proxy.endpoint());
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().expect("the program was built for this suite");
    let deadline = std::time::Instant::now() + PATIENCE;
    let at = loop {
        if let Ok(at) = arrival.recv_timeout(Duration::from_millis(50)) {
            break at;
        }
        if child.try_wait().expect("our own child").is_some() {
            return None;
        }
        assert!(std::time::Instant::now() < deadline, "{call:?} never came: {:?}", proxy.seen());
    };
    child.kill().expect("our own child");
    let status = child.wait().expect("our own child");
    drop(shut);
    (status.signal() == Some(9)).then_some(at)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_call_to_the_store_an_image_is_published_whole_or_not_at_all() {
    let s3 = harness::s3();
    let prefix = crate::harness::unique("team");
    let mut projects = [Project::native(), Project::native()];
    copy_tree(super::published().await, &s3.bucket_dir("snapshots").join(&prefix));
    for project in &mut projects {
        let text = project.sandbox.read("conf/seedbed.toml");
        let section = s3.store_section("snapshots", &prefix);
        project.sandbox.write("conf/seedbed.toml", format!("{section}{text}"));
        for (name, value) in s3.variables() {
            project.sandbox.set(name, value);
        }
        images_on(project, "always");
        // `down --volumes` forgets its port.
        project.sandbox.set("SEEDBED_ENGINE_PORT", &postgres::free_port().to_string());
    }
    let [maker, newcomer] = &projects;
    let make = ["snapshot", "image", "latest"];
    let folder = s3.bucket_dir("snapshots").join(&prefix).join("images");
    let documents = || {
        let found = shell(&format!("find {folder} -name '*.json' 2>/dev/null || true"));
        found.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    // What nobody has disturbed; the first one also fetches the rows.
    maker.run(&make).succeeds();
    shell(&format!("rm -r {folder}"));
    let proxy = FaultProxy::start(&s3.endpoint(), |_| Fault::Pass);
    let mut command = maker.sandbox.command(&make);
    command.env("SEEDBED_STORE_ENDPOINT", proxy.endpoint());
    let output = command.output().expect("the program was built for this suite");
    maker.sandbox.ended(&make, output).succeeds();
    let calls = proxy.seen().len();
    harness::say(&format!("{calls} calls to the store"));
    took(&newcomer.run(&["up"]).succeeds());
    let clean = newcomer.contents().await;
    newcomer.run(&["down", "--volumes", "--yes"]).succeeds();
    shell(&format!("rm -r {folder}"));

    let sample = [2, calls / 2];
    let numbers: Vec<usize> = if harness::full() { (1..calls).collect() } else { sample.into() };
    let mut published = 0;
    for call in numbers.into_iter().map(Call::Number).chain([Call::Document]) {
        for is_done in [false, true] {
            let Some(at) = killed_at_a_call(maker, &s3, &make, (call, is_done)) else {
                // One with other pieces made fewer.
                harness::say(&format!("{call:?} did not come"));
                shell(&format!("rm -rf {folder}"));
                continue;
            };
            harness::say(&format!("killed at {at}, done: {is_done}"));
            let found = documents();
            let is_there = is_done && at.starts_with("PUT ") && at.contains(".json");
            assert_eq!(found.len(), usize::from(is_there), "{at}: {found:?}");
            published += found.len();
            if found.is_empty() {
                maker.run(&make).succeeds();
            }
            took(&newcomer.run(&["up"]).succeeds());
            assert_eq!(newcomer.contents().await, clean, "{at}");
            newcomer.run(&["down", "--volumes", "--yes"]).succeeds();
            shell(&format!("rm -r {folder}"));
        }
    }
    assert!(published >= 1, "the document was never put");
}

/// The points of the default environment, by name.
fn points(project: &Project) -> Vec<String> {
    let list = project.run(&["branch", "list", "--json"]).succeeds().json();
    let points = list["result"][0]["points"].as_array().expect("a list").clone();
    points.iter().map(|point| point["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_at_any_call_of_a_save_or_a_restore_loses_neither_data_nor_point() {
    let Some((project, pool)) = in_docker().await else { return };
    let Contents { used: point, .. } = ready(&project).await;
    project.run(&["branch", "save", "point"]).succeeds();
    project.sql("update shop.item set cents = 2").await;
    let later = project.contents().await;
    let save = &["branch", "save", "point", "--replace"][..];
    let restore = &["branch", "restore", "point"][..];
    for args in [restore, save] {
        // The last restore has come to its end.
        project.sql("update shop.item set cents = 2").await;
        let mut count = 0;
        for stop in stops() {
            let Some(seen) = kill(&project, args, stop) else { break };
            let at = format!("call {stop} of {args:?}: {}", seen.last().map_or("", String::as_str));
            harness::say(&format!("killed {at}"));
            project.run(&["up"]).succeeds();
            let found = project.contents().await;
            assert!(found == later || (args == restore && found == point), "{at}: {found}");
            project.run(restore).succeeds();
            let found = project.contents().await;
            assert!(found == point || (args == save && found == later), "{at}: {found}");
            // Again as it was before: the older point, and other data.
            project.sql("update shop.item set cents = 1").await;
            assert_eq!(project.contents().await, point, "{at}");
            project.run(save).succeeds();
            assert_eq!(points(&project), ["point"], "{at}");
            project.sql("update shop.item set cents = 2").await;
            assert_eq!(project.contents().await, later, "{at}");
            count += 1;
        }
        assert!(count >= 1, "{args:?} made no calls");
    }
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_killed_at_any_call_of_a_branchs_removal_leaves_nothing_of_it_and_all_else() {
    let Some((project, pool)) = in_docker().await else { return };
    let contents = ready(&project).await;
    let delete = ["branch", "delete", "gone", "--yes"];
    let filters = format!(
        "--filter label=seedbed.branch=gone --filter label=seedbed.path={}",
        project.sandbox.project()
    );
    let of_branch = format!(
        "docker ps -aq {filters}; docker volume ls -q {filters}; \
         docker run --rm -v {pool}-mounted:/p --entrypoint ls postgres:17 /p/envs | tail -n +2"
    );
    let mut count = 0;
    for stop in stops() {
        project.run(&["up", "--branch", "gone"]).succeeds();
        let Some(seen) = kill(&project, &delete, stop) else { break };
        let at = format!("call {stop}: {}", seen.last().map_or("", String::as_str));
        harness::say(&format!("killed at {at}"));
        assert_eq!(project.contents().await, contents.used, "{at}");
        project.run(&delete).succeeds();
        assert_eq!(shell(&of_branch), "", "{at}");
        assert_eq!(project.sandbox.branches(), Vec::<String>::new(), "{at}");
        count += 1;
    }
    assert!(count >= 1, "a removal makes calls");
    project.run(&["reset"]).succeeds();
    assert_eq!(project.contents().await, contents.clean, "the image is there still");
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}
