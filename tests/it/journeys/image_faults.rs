//! F33 and F35 where the data is a clone of an image: the server dies, somebody is in the middle of something.

use seedbed::pg::Session;

use super::Project;
use super::image_kills::{Contents, of_pool, ready, stops};
use super::images::{in_docker, native_with_reflinks, shell, use_it};
use super::published::{images_on, make};
use crate::harness::daemon_proxy::{DaemonProxy, PATIENCE};
use crate::harness::{self, Run, watchdog};

/// Kills the server's container, where it runs.
fn kill_server(project: &Project) {
    let running = format!("docker ps -q --filter label=seedbed.path={}", project.sandbox.project());
    shell(&format!("{running} | xargs -r docker kill >/dev/null 2>&1 || true"));
}

/// Runs up to a call to the daemon; the server is killed before its answer comes. `None`: it made fewer.
fn killed_server(project: &Project, args: &[&str], stop: usize) -> Option<(Run, String)> {
    let proxy = DaemonProxy::start(&project.sandbox.project().join(".."), stop);
    let child = proxy.stops(project.sandbox.command(args))?;
    let at = proxy.seen().last().cloned().unwrap_or_default();
    kill_server(project);
    proxy.go_on();
    let output = child.wait_with_output().expect("our own child");
    Some((project.sandbox.ended(args, output), at))
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_a_container_in_the_pool_that_is_killed_serves_the_old_or_the_new_database_again() {
    let Some((project, pool)) = in_docker().await else { return };
    let Contents { clean, used } = ready(&project).await;
    // What a crash may lose of a server that does not wait for its log is not what this is about.
    project.sql("checkpoint").await;
    kill_server(&project);
    project.run(&["up"]).succeeds();
    assert_eq!(project.contents().await, used, "at rest");
    project.run(&["branch", "save", "point"]).succeeds();
    for args in [&["branch", "save", "point", "--replace"][..], &["reset"]] {
        let mut count = 0;
        for stop in stops() {
            let Some((run, at)) = killed_server(&project, args, stop) else { break };
            let at = format!("call {stop} of {args:?}: {at}");
            harness::say(&format!("server killed at {at}: {:?}", run.code));
            project.run(&["up"]).succeeds();
            let found = project.contents().await;
            let is_new = args == ["reset"] && found == clean;
            assert!(found == used || is_new, "{at}: {found}");
            // What a run said is so.
            assert!(run.code != Some(0) || args != ["reset"] || is_new, "{at}: {}", run.stderr);
            project.run(&["reset"]).succeeds();
            assert_eq!(project.contents().await, clean, "{at}");
            project.run(&["branch", "restore", "point"]).succeeds();
            assert_eq!(project.contents().await, used, "{at}");
            count += 1;
        }
        assert!(count >= 1, "{args:?} made no calls");
    }
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn f35_a_prepared_transaction_is_named_before_an_image_replaces_what_it_has_done() {
    let Some(project) = native_with_reflinks().await else { return };
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    project.sql("alter system set max_prepared_transactions = 5").await;
    project.run(&["down"]).succeeds();
    project.run(&["up"]).succeeds();
    project.run(&["branch", "save", "point"]).succeeds();
    project.run(&["reset", "--keep"]).succeeds();
    let session = Session::connect(&project.live()).await.expect("the database is there");
    session
        .batch("begin; delete from shop.purchase; prepare transaction 'pending'")
        .await
        .expect("the server allows it");
    for args in [&["reset"][..], &["undo-reset"], &["branch", "restore", "point"]] {
        let run = project.run(args).exits(5);
        let said = "it still has 1 prepared transaction\n  hint: end it with `rollback prepared 'pending'`\n";
        assert!(run.stderr.ends_with(said), "{args:?}: {}", run.stderr);
        session.batch("select 1").await.expect("sessions were not ended for nothing");
    }
    // Nothing is replaced by it.
    project.run(&["up"]).succeeds();
    project.run(&["status"]).succeeds();
    session.batch("commit prepared 'pending'").await.expect("it is there");
    assert_eq!(project.text("select count(*) from shop.purchase").await, "0");
    session.close().await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn f35_a_subscription_goes_with_the_data_that_an_image_replaces_and_is_in_none() {
    let Some(mut project) = native_with_reflinks().await else { return };
    project.run(&["up"]).succeeds();
    let create = "create subscription beside connection 'host=127.0.0.1 port=1 dbname=none' \
                  publication p with (connect = false)";
    project.sql(create).await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert!(!reset.stderr.contains("warning"), "{}", reset.stderr);
    assert_eq!(project.text("select count(*) from pg_subscription").await, "0");

    let accounts = project.sandbox.read("users/accounts.sql");
    let block = format!(
        "DO $$ BEGIN
           IF NOT EXISTS (SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
                          WHERE d.datname = current_database()) THEN
             {create};
           END IF;
         END $$;\n"
    );
    project.sandbox.write("users/accounts.sql", format!("{accounts}{block}"));
    // Not beside one of the same name in the live database: its publisher would know both by that name.
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    let up = project.run(&["up"]).succeeds();
    let note = "freezing a template, no image: the subscription `beside` would be in each clone";
    assert!(up.stderr.contains(note), "{}", up.stderr);
    images_on(&mut project, "never");
    let run = project.run(&["snapshot", "image", "latest"]).exits(12);
    let said = "make an image: the subscription `beside` would be in it";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    project.sandbox.write("users/accounts.sql", accounts);
    make(&project);
}

/// Attached to what is nobody's, until the end.
fn take_all_loop_devices() -> Option<String> {
    let able = "test \"$(id -u)\" = 0 && command -v losetup >/dev/null";
    let able = std::process::Command::new("sh").args(["-c", able]).status();
    if !harness::require("root and losetup", able.is_ok_and(|status| status.success())) {
        return None;
    }
    let file = shell("mktemp");
    let detach =
        format!("losetup -j {file} | cut -d : -f 1 | xargs -r -n 1 losetup -d; rm -f {file}");
    watchdog::at_exit(&detach);
    shell(&format!(
        "truncate -s 1M {file}; \
         for device in /sys/block/loop*; do \
           test -e $device/loop/backing_file || losetup /dev/${{device##*/}} {file} 2>/dev/null || true; \
         done"
    ));
    Some(detach)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_loop_devices_are_taken_the_kernel_is_asked_for_one_more() {
    let Some((project, pool)) = in_docker().await else { return };
    let Some(detach) = take_all_loop_devices() else { return };
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("freeze as image"), "{}", up.stderr);
    let attached = format!("cat /sys/block/loop*/loop/backing_file | grep -c {pool} || true");
    assert_eq!(shell(&attached), "1");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
    shell(&detach);
}

/// As a start of the machine leaves it: containers that have ended, and another file on the loop device.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_start_of_the_machine_the_pool_is_found_although_another_file_has_its_device() {
    let Some((project, pool)) = in_docker().await else { return };
    let Contents { clean, used } = ready(&project).await;
    project.run(&["up", "--branch", "other"]).succeeds();
    project.sql("checkpoint").await;
    let files = format!("grep -l {pool} /sys/block/loop*/loop/backing_file | cut -d / -f 4");
    let device = shell(&files);
    let path = project.sandbox.project();
    let file = path.join("../another-file");
    watchdog::at_exit(&format!("losetup -j {file} -O NAME -n | xargs -r losetup -d; rm -f {file}"));
    shell(&format!("docker kill $(docker ps -q --filter label=seedbed.path={path})"));
    // The daemon unmounts what a container had when that has ended; then the device is free, and ours at once:
    // somebody else may come to it meanwhile, and go.
    let backing = format!("/sys/block/{device}/loop/backing_file");
    shell(&format!(
        "truncate -s 1M {file}; turn=0; until losetup /dev/{device} {file} 2>/dev/null; do \
           if grep -qs {pool} {backing}; then losetup -d /dev/{device} 2>/dev/null || true; fi; \
           turn=$((turn + 1)); test $turn -lt 12000 || exit 1; sleep 0.01; done"
    ));
    let other = shell(&format!("cat {backing}"));
    assert!(other.ends_with("another-file"), "{other}");

    project.run(&["up"]).succeeds();
    assert_eq!(project.contents().await, used);
    project.run(&["up", "--branch", "other"]).succeeds();
    assert_eq!(super::contents(&super::branches::on_branch(&project, "other")).await, clean);
    assert_ne!(shell(&files), device, "{other} has that one");
    assert_eq!(shell(&format!("cat {backing}")), other);
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
    project.run(&["branch", "delete", "other", "--yes"]).succeeds();
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(of_pool(&pool), "");
    // Its sandbox goes, and with that the file by whose name it is found.
    shell(&format!("losetup -j {file} -O NAME -n | xargs -r losetup -d"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_has_taken_on_the_disk_comes_back_when_it_goes() {
    let Some((project, pool)) = in_docker().await else { return };
    let script = "create table shop.big as
        select md5(n::text) || md5((-n)::text) as text from generate_series(1, 1500000) n;";
    project.sandbox.write("sql/V3__big.sql", script);
    project.run(&["up"]).succeeds();
    std::fs::remove_file(project.sandbox.project().join("sql/V3__big.sql")).expect("it is ours");
    project.run(&["reset"]).succeeds();
    let taken = || -> u64 {
        let files = format!("docker run --rm -v {pool}:/p --entrypoint sh postgres:17 -c");
        let kilobytes = shell(&format!("{files} 'du -k /p/*.xfs | cut -f 1'"));
        kilobytes.parse().expect("a number")
    };
    shell("sync");
    let before = taken();
    let prune = ["images", "prune", "--yes", "--set", "images.max_size=1"];
    let removed = project.run(&prune).succeeds().stdout;
    assert!(removed.contains("removed"), "{removed}");
    // The file system gives blocks back when its own log is written.
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut after = taken();
    while after + 100_000 > before {
        assert!(std::time::Instant::now() < deadline, "{before} kB, and {after} kB without it");
        shell("sync; sleep 1");
        after = taken();
    }
    harness::say(&format!("{before} kB, and {after} kB without it"));
    project.run(&["reset"]).succeeds();
}

/// Docker lets go of a port a moment after the container that had it.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_for_a_moment_between_two_containers_is_waited_for() {
    let Some((project, _)) = in_docker().await else { return };
    project.run(&["up", "--set", "images.kind=template"]).succeeds();
    let url = project.run(&["url"]).succeeds().stdout;
    let port = project.admin().port;
    use_it(&project).await;
    // The move into the pool is a new container; somebody is quicker.
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let taking = std::thread::spawn(move || {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            if let Ok(taken) = std::net::TcpListener::bind(("127.0.0.1", port)) {
                shell("sleep 2");
                drop(taken);
                return;
            }
            assert!(std::time::Instant::now() < deadline, "the port was never free");
        }
    });
    let reset = project.run(&["reset"]).succeeds();
    taking.join().expect("it had the port");
    assert!(reset.stderr.contains("freeze as image"), "{}", reset.stderr);
    assert_eq!(project.run(&["url"]).succeeds().stdout, url);
    assert_eq!(project.text("select count(*) from shop.note").await, "0");
}
