//! F28 in a pool: whoever meets its full disk is told which pool it is and what to do; the other
//! environments of the pool and its images are whole, and what was refused works once there is room.

use camino::Utf8PathBuf;
use seedbed::pg::Session;

use super::Project;
use super::images::{in_docker, in_pool, shell, use_it};
use super::published::took;
use crate::harness::disk;
use crate::harness::second_daemon::SecondDaemon;

/// Runs a shell with the pool at `/p`.
pub(super) fn look(pool: &str, script: &str) -> String {
    shell(&format!(
        "docker run --rm -v {pool}-mounted:/p --entrypoint sh postgres:17 -euc '{script}'"
    ))
}

/// Takes all of the pool but some megabytes; nothing is written for it.
fn fill(pool: &str, room: u32) {
    let free = "$(df -Pm /p | tail -n 1 | tr -s \" \" | cut -d \" \" -f 4)";
    // A pool that is not there would be a folder on the machine's own disk.
    let fill = format!("fallocate -l $(({free} - {room}))M /p/filler");
    look(pool, &format!("test -d /p/images; rm -f /p/filler*; {fill}"));
}

/// Takes all of the pool, to the last block.
fn fill_up(pool: &str) {
    fill(pool, 16);
    look(pool, "head -c 100M /dev/zero >/p/filler.rest 2>/dev/null || true");
}

fn make_room(pool: &str) {
    look(pool, "rm -f /p/filler*");
}

/// Every byte of every image.
fn images(pool: &str) -> String {
    let files = "find . -type f ! -name .lock | sort";
    look(pool, &format!("cd /p/images; {files} | grep -c image.json; {files} | xargs sha256sum"))
}

/// Leaves the server no room until it has ended for it: one that finds some in its log comes up again.
async fn end_by_a_full_disk(project: &Project, pool: &str) {
    for _ in 0..20 {
        fill_up(pool);
        let Some(session) = connected_soon(project).await else { return };
        fill_the_log(&session).await;
    }
    panic!("the server still runs");
}

/// A session, unless none is to be had for five seconds.
async fn connected_soon(project: &Project) -> Option<Session> {
    for _ in 0..50 {
        if let Ok(session) = Session::connect(&project.live()).await {
            return Some(session);
        }
        shell("sleep 0.1");
    }
    None
}

/// Writes to the server's log, and nowhere else, until the server has no room for it.
async fn fill_the_log(session: &Session) {
    let write =
        "select pg_logical_emit_message(false, 'test', repeat(md5(random()::text), 100000))";
    for _ in 0..400 {
        if session.batch(write).await.is_err() {
            return;
        }
    }
    panic!("a gigabyte of log on a disk that was said to be full");
}

#[tokio::test(flavor = "multi_thread")]
async fn f28_a_full_pool_is_named_and_the_others_in_it_and_its_images_are_whole() {
    let Some((project, pool)) = in_docker().await else { return };
    let other = in_pool(&pool).await;
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    other.run(&["up"]).succeeds();
    // The rows alone would make room.
    project.run(&["images", "prune", "--yes", "--set", "images.max_size=1"]).succeeds();
    use_it(&project).await;
    other.sql("update shop.item set label = 'theirs'").await;
    // From here on it only reads: a server that writes by itself, as autovacuum does, would be hit as well.
    other.sql("alter system set autovacuum = off").await;
    other.sql("select pg_reload_conf()").await;
    other.sql("checkpoint").await;
    let (used, theirs) = (project.contents().await, other.contents().await);
    let frozen = images(&pool);
    let hint = format!("hint: make room in the pool `{pool}`, which environments share");

    // Too little for one more server.
    fill(&pool, 100);
    for args in [&["reset"][..], &["branch", "save", "before"]] {
        let run = project.run(args).exits(5);
        let said = format!("the disk of the pool `{pool}` is full: no space: ");
        assert!(run.stderr.contains(&said), "{}", run.stderr);
        assert!(run.stderr.contains(&hint), "{}", run.stderr);
    }
    assert_eq!(project.contents().await, used);

    // Too little for what a script makes.
    let script = "create table shop.big as
        select repeat(md5(n::text), 30) x from generate_series(1, 300000) n;";
    project.sandbox.write("sql/V3__big.sql", script);
    let run = project.run(&["up"]).exits(6);
    assert!(run.stderr.contains("(SQLSTATE 53100)"), "{}", run.stderr);
    assert!(run.stderr.contains(&hint), "{}", run.stderr);
    std::fs::remove_file(project.sandbox.project().join("sql/V3__big.sql")).expect("it is ours");
    assert_eq!(project.contents().await, used);

    // Too little for the server itself: it ends, and cannot start.
    end_by_a_full_disk(&project, &pool).await;
    let run = project.run(&["up"]).exits(4);
    assert!(run.stderr.contains("No space left on device"), "{}", run.stderr);
    assert!(run.stderr.contains(&hint), "{}", run.stderr);
    assert_eq!(other.contents().await, theirs, "who only reads is not hit");
    assert_eq!(images(&pool), frozen);

    make_room(&pool);
    project.run(&["up"]).succeeds();
    assert_eq!(project.contents().await, used);
    project.run(&["reset"]).succeeds();
    assert_eq!(project.contents().await, clean);
    assert_eq!(other.contents().await, theirs);
    other.run(&["reset"]).succeeds();
    assert_eq!(other.contents().await, clean);
    assert_eq!(images(&pool), frozen);
}

#[tokio::test(flavor = "multi_thread")]
async fn f28_a_build_that_finds_no_room_to_be_frozen_is_live_all_the_same() {
    let Some((project, pool)) = in_docker().await else { return };
    project.run(&["up"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    // Enough for what is built, too little for one more server.
    fill(&pool, 120);
    let reset = project.run(&["reset"]).succeeds();
    let said = "the next reset has to build again: freeze in the container";
    assert!(reset.stderr.contains(said), "{}", reset.stderr);
    assert!(
        reset.stderr.contains(&format!("the disk of the pool `{pool}` is full")),
        "{}",
        reset.stderr
    );
    assert_eq!(project.text("select count(*) from shop.note").await, "0");
    make_room(&pool);
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("freeze as image"), "{}", reset.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn f28_older_images_make_room_and_what_is_in_use_or_the_newest_stays() {
    let Some((project, pool)) = in_docker().await else { return };
    project.sandbox.write(
        "sql/V3__big.sql",
        "create table shop.big as select md5(n::text) || md5((-n)::text) as text
         from generate_series(1, 2500000) n;",
    );
    project.run(&["up"]).succeeds();
    project.run(&["up", "--branch", "other"]).succeeds();
    let named = |project: &Project| {
        let listed = project.run(&["images", "list", "--json"]).succeeds().json();
        let listed = listed["images"].as_array().cloned().unwrap_or_default();
        let name = |image: &serde_json::Value| image["name"].as_str().map(str::to_owned);
        listed.iter().filter_map(name).collect::<Vec<_>>()
    };
    let big = named(&project);
    std::fs::remove_file(project.sandbox.project().join("sql/V3__big.sql")).expect("it is ours");
    project.run(&["reset"]).succeeds();
    // The last one is the rows alone.
    let (small, rows) = match &named(&project)[..] {
        [small, _, rows] => (small.clone(), rows.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(rows, big[1]);

    // A branch whose data came from the older one keeps it, whatever the limit is.
    let too_much = || {
        let prune = ["images", "prune", "--json", "--set", "images.max_size=1"];
        let prune = project.run(&prune).succeeds().json();
        prune["removed"].as_array().expect("a list").len()
    };
    assert_eq!(too_much(), 1);
    project.run(&["branch", "delete", "other", "--yes"]).succeeds();
    assert_eq!(too_much(), 2);

    // Enough for what is built, too little for one more server.
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    fill(&pool, 100);
    let reset = project.run(&["reset"]).succeeds();
    let mut lines = reset.stderr.lines();
    let said = lines.find_map(|line| line.strip_prefix("removed images to make room: "));
    let mut removed: Vec<&str> = said.unwrap_or_default().split(", ").collect();
    removed.sort_unstable();
    let mut meant = [big[0].as_str(), rows.as_str()];
    meant.sort_unstable();
    assert_eq!(removed, meant, "{}", reset.stderr);
    assert!(reset.stderr.contains("freeze as image"), "{}", reset.stderr);
    let names = named(&project);
    assert!(names.contains(&small) && names.len() == 2, "{names:?}");
    make_room(&pool);
}

#[tokio::test(flavor = "multi_thread")]
async fn f28_older_images_make_room_for_one_that_is_fetched() {
    let Some((mut project, pool)) = in_docker().await else { return };
    let big = "create table shop.big as select md5(n::text) || md5((-n)::text) as text
        from generate_series(1, 2500000) n;";
    project.sandbox.write("sql/V3__big.sql", big);
    project.run(&["up"]).succeeds();
    std::fs::remove_file(project.sandbox.project().join("sql/V3__big.sql")).expect("it is ours");
    project.run(&["reset"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    project.sandbox.set("SEEDBED_IMAGES_PUBLISHED", "always");
    project.run(&["snapshot", "image", "latest"]).succeeds();
    // Too little for what comes and one more server.
    fill(&pool, 120);
    let reset = project.run(&["reset"]).succeeds();
    took(&reset);
    assert!(reset.stderr.contains("removed images to make room: "), "{}", reset.stderr);
    assert_eq!(project.text("select count(*) from shop.note").await, "0");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    make_room(&pool);
}

/// A disk of twenty gigabytes that takes place only as it is written.
pub(super) fn small_disk() -> Option<Utf8PathBuf> {
    disk("mkfs.ext4 -q -m 0", "20G")
}

#[tokio::test(flavor = "multi_thread")]
async fn f28_a_pool_promises_no_more_than_the_disk_below_it_has() {
    let Some(disk) = small_disk() else { return };
    let Some(daemon) = SecondDaemon::start(&disk, "postgres:17") else { return };
    let pool = daemon.pool();
    let mut projects = Vec::new();
    for _ in 0..2 {
        let mut project = in_pool(&pool).await;
        project.sandbox.set("DOCKER_HOST", &daemon.address());
        project.run(&["up"]).succeeds();
        projects.push(project);
    }
    let [project, other] = &projects[..] else { unreachable!("two were made") };
    let clean = project.contents().await;
    let image = || {
        daemon.docker(&format!(
            "run --rm -v {pool}-mounted:/p --entrypoint sh postgres:17 -c \
             'cd /p/images; find . -type f ! -name .lock | sort | xargs sha256sum'"
        ))
    };
    let frozen = image();
    let fill = |room: u32| {
        let free = format!("$(df -Pm {disk} | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)");
        shell(&format!("rm -f {disk}/filler; fallocate -l $(({free} - {room}))M {disk}/filler"));
    };

    // Too little for one more server.
    fill(300);
    let run = project.run(&["reset"]).exits(5);
    let said = format!("the disk below the pool `{pool}` is full: no space below: ");
    assert!(run.stderr.contains(&said), "{}", run.stderr);
    assert!(
        run.stderr.contains("hint: make room on the disk of Docker's volumes"),
        "{}",
        run.stderr
    );

    // Enough for that, and the pool has fifteen times as much; what is written beyond is refused.
    fill(1000);
    project.run(&["reset"]).succeeds();
    other.sql("update shop.item set label = 'theirs'").await;
    let theirs = other.contents().await;
    let script = "create table shop.big as
        select repeat(md5(n::text), 30) x from generate_series(1, 1500000) n;";
    project.sandbox.write("sql/V3__big.sql", script);
    let run = project.run(&["up"]).exits(6);
    assert!(run.stderr.contains("(SQLSTATE 53100)"), "{}", run.stderr);
    std::fs::remove_file(project.sandbox.project().join("sql/V3__big.sql")).expect("it is ours");

    // Nothing of what was said to be written is only in memory: the pool is mounted anew.
    for project in &projects {
        project.run(&["down"]).succeeds();
    }
    for project in &projects {
        project.run(&["up"]).succeeds();
    }
    assert_eq!(project.contents().await, clean);
    assert_eq!(other.contents().await, theirs);
    assert_eq!(image(), frozen);
    shell(&format!("rm {disk}/filler"));
    project.run(&["reset"]).succeeds();
    other.run(&["reset"]).succeeds();
    assert_eq!(other.contents().await, clean);
    for project in projects {
        project.run(&["down", "--volumes", "--yes"]).succeeds();
    }
}
