//! What runs that were cut off have left of published images: none of it stays.

use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::images::{in_docker, in_pool, shell};
use super::pool_full::{look, small_disk};
use super::published::{images_on, make, native, newcomer, published, store_of, took};
use super::{Project, copy_tree, docker_is_here};
use crate::harness::{self, Fault, FaultProxy, unique};

const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again; fails the test with what was seen last after a minute.
fn until(what: &str, mut look: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(()) => return,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
        shell("sleep 0.02");
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    kill(pid, signal).expect("it runs");
}

/// What is in the pool of images, whole or not, and which helpers there are.
fn seen(pool: &str) -> (String, String) {
    let images = look(pool, "ls -A /p/images | grep -v -x -F .lock || true");
    (images, shell(&format!("docker ps -aq --filter name={pool}-act")))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pull_that_is_cut_off_has_left_in_a_shared_pool_goes_with_its_project() {
    let Some((mut project, pool)) = in_docker().await else { return };
    let s3 = harness::s3();
    copy_tree(super::published().await, &s3.bucket_dir("snapshots").join("team"));
    let text = project.sandbox.read("conf/seedbed.toml");
    let section = s3.store_section("snapshots", "team");
    project.sandbox.write("conf/seedbed.toml", format!("{section}{text}"));
    for (name, value) in s3.variables() {
        project.sandbox.set(name, value);
    }
    project.sandbox.set("SEEDBED_IMAGES_PUBLISHED", "always");
    // Else the image that the other one leaves in the pool would do.
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    project.run(&["snapshot", "image", "latest"]).succeeds();
    let other = in_pool(&pool).await;
    other.run(&["up"]).succeeds();
    // So would the rows alone.
    other.run(&["images", "prune", "--yes", "--set", "images.max_size=1"]).succeeds();
    let theirs = other.contents().await;
    let before = seen(&pool);

    let pulling = || {
        shell(&format!("rm -rf {}/*", project.sandbox.cache()));
        let count = AtomicUsize::new(0);
        let proxy = FaultProxy::start(&s3.endpoint(), move |seen| {
            let is_piece = seen.method == "GET"
                && seen.path.contains("/images/")
                && !seen.path.contains(".json");
            match is_piece && count.fetch_add(1, Ordering::SeqCst) >= 2 {
                true => Fault::Stall,
                false => Fault::Pass,
            }
        });
        let mut command = project.sandbox.command(&["up"]);
        command.env("SEEDBED_STORE_ENDPOINT", proxy.endpoint());
        let child = command.spawn().expect("the program was built for this suite");
        until("a part of the image", || match seen(&pool).0 == before.0 {
            true => Err(format!("{before:?}")),
            false => Ok(()),
        });
        (child, proxy)
    };

    let (child, _proxy) = pulling();
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().expect("our own child");
    project.sandbox.ended(&["up"], output).exits(130);
    assert_eq!(seen(&pool), before, "interrupted");

    let (mut child, _proxy) = pulling();
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    // As a machine that was switched off leaves it.
    let container =
        format!("docker ps -aq --filter label=seedbed.path={}", project.sandbox.project());
    let hash = shell(&format!(
        "docker inspect --format '{{{{index .Config.Labels \"seedbed.project\"}}}}' $({container} | head -n 1)"
    ));
    look(&pool, &format!("mkdir /p/images/.image.machine.{hash} /p/images/.gone.{hash}.1"));
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(seen(&pool), before, "killed");
    assert_eq!(other.contents().await, theirs);
    other.run(&["reset"]).succeeds();
}

/// Runs `snapshot image` until its scratch server is there, and kills it.
fn killed_while_making(maker: &Project, is_there: impl Fn() -> bool) {
    let mut child =
        maker.sandbox.command(&["snapshot", "image", "latest"]).spawn().expect("it was built");
    until("the scratch server", || {
        assert!(child.try_wait().expect("our own child").is_none(), "it has ended");
        is_there().then_some(()).ok_or_else(String::new)
    });
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    assert!(is_there(), "it outlives the run");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scratch_server_of_a_run_that_was_killed_goes_with_the_environments_data() {
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    let state = maker.sandbox.project().join(".seedbed/image/.seedbed/state.json");
    let data = || {
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).ok()?).ok()?;
        state["native"]["data"].as_str().map(str::to_owned)
    };
    let answers = || {
        let Some(data) = data() else { return false };
        let pid = std::fs::read_to_string(format!("{data}/postmaster.pid")).unwrap_or_default();
        pid.contains("ready")
            && std::path::Path::new(&format!("/proc/{}", pid.lines().next().unwrap_or("x")))
                .exists()
    };
    killed_while_making(&maker, answers);
    let data = data().expect("a server");
    let pid = std::fs::read_to_string(format!("{data}/postmaster.pid")).expect("it runs");
    let pid = pid.lines().next().expect("a number").to_owned();
    let down = maker.run(&["down", "--volumes", "--yes"]).succeeds();
    assert!(down.stderr.contains("left over from a run that was cut off"), "{}", down.stderr);
    assert!(!std::path::Path::new(&data).exists(), "{data}");
    // Whoever adopts processes here may not have asked about it yet.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z"), "{stat}");

    if !docker_is_here() {
        return;
    }
    let mut maker = Project::on_its_own("kind = \"docker\"\n").with_snapshot().await;
    images_on(&mut maker, "never");
    maker.sandbox.set("SEEDBED_IMAGES_POOL", &unique("seedbed-test-pool"));
    let folder = format!("{}/.seedbed/image", maker.sandbox.project());
    let containers = format!("docker ps -aq --filter label=seedbed.path={folder}");
    let volumes = format!("docker volume ls -q --filter label=seedbed.path={folder}");
    // One that is not started yet may be a look into the volume.
    let runs = containers.replace("-aq", "-q");
    killed_while_making(&maker, || !shell(&runs).is_empty());
    maker.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(shell(&format!("{containers}; {volumes}")), "");
    // And the next run takes no notice of one.
    killed_while_making(&maker, || !shell(&runs).is_empty());
    make(&maker);
    assert_eq!(shell(&format!("{containers}; {volumes}")), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn f28_natively_an_image_that_has_no_room_is_not_begun_and_leftovers_go() {
    let Some(disk) = small_disk() else { return };
    let (maker, contents) = published().await;
    let parent = disk.parent().expect("it lies in a folder");
    let mut project = Project::on_its_own_below(&disk, &native());
    shell(&format!("chmod 755 {parent} {disk} {}/..", project.sandbox.project()));
    images_on(&mut project, "always");
    project.sandbox.set("SEEDBED_STORE_URL", store_of(&maker).as_str());
    let free = format!("$(df -Pm {disk} | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)");
    shell(&format!("fallocate -l $(({free} - 250))M {disk}/filler"));
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("there is no room: "), "{}", up.stderr);
    assert!(up.stderr.contains("restore tables"), "{}", up.stderr);
    assert_eq!(project.contents().await, contents);

    project.run(&["down"]).succeeds();
    let state = project.sandbox.project().join(".seedbed");
    let hash = format!("printf %s {} | sha256sum | cut -c 1-12", project.sandbox.project());
    let part = format!("images/.part.{}", shell(&hash));
    let left = ["native/data.next", "native/data.gone", part.as_str()];
    for left in left {
        fs_err::create_dir_all(state.join(left).join("base")).expect("the disk has room for it");
    }
    project.run(&["up"]).succeeds();
    assert_eq!(left.map(|left| state.join(left).exists()), [false; 3]);
    assert_eq!(project.contents().await, contents);

    shell(&format!("rm {disk}/filler"));
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    took(&project.run(&["up"]).succeeds());
    project.run(&["down", "--volumes", "--yes"]).succeeds();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_which_a_prune_has_taken_something_is_not_published() {
    let mut maker = Project::native().with_snapshot().await;
    images_on(&mut maker, "never");
    let store = store_of(&maker);
    let pieces = format!(
        "find {store}/images -mindepth 2 -type f -regex '.*/[0-9a-f]*' 2>/dev/null || true"
    );
    for removed in [format!("rm {store}/snapshots/*.json"), format!("rm $({pieces} | head -n 1)")] {
        let command = maker.sandbox.command(&["snapshot", "image", "latest"]).spawn();
        let child = command.expect("the program was built for this suite");
        until("a piece", || (!shell(&pieces).is_empty()).then_some(()).ok_or_else(String::new));
        shell(&format!("cp -r {store}/snapshots {store}/../kept; {removed}"));
        let output = child.wait_with_output().expect("our own child");
        let run = maker.sandbox.ended(&["snapshot", "image"], output).exits(9);
        assert!(run.stderr.contains("which a prune has removed meanwhile"), "{}", run.stderr);
        assert_eq!(shell(&format!("find {store}/images -name '*.json'")), "", "no document");
        shell(&format!(
            "rm -r {store}/snapshots {store}/images; mv {store}/../kept {store}/snapshots"
        ));
    }
    make(&maker);
    took(&newcomer(&maker, &native(), "always").run(&["up"]).succeeds());
}
