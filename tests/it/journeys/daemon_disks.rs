//! Docker, where the disk that its daemon keeps volumes on decides how clones are made: one that is too small
//! for a pool, and one whose file system shares blocks by itself.

use camino::Utf8Path;

use super::images::{in_pool, shell, use_it};
use super::pool_full::small_disk;
use crate::harness::disk;
use crate::harness::second_daemon::SecondDaemon;

#[tokio::test(flavor = "multi_thread")]
async fn where_there_can_be_no_pool_a_template_does_it_and_that_is_remembered() {
    let Some(disk) = small_disk() else { return };
    let Some(daemon) = SecondDaemon::start(&disk, "postgres:17") else { return };
    let pool = daemon.pool();
    let mut project = in_pool(&pool).await;
    project.sandbox.set("DOCKER_HOST", &daemon.address());
    shell(&format!("fallocate -l 6G {disk}/filler"));
    let why = "less than 16 GiB are free where the daemon keeps its volumes";
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains(&format!("freezing a template, no image: {why}")), "{}", up.stderr);
    let said = format!("resets       from a template: when a pool was tried last: {why}\n");
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains(&said), "{status}");
    let clean = project.contents().await;
    use_it(&project).await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
    assert_eq!(daemon.docker(&format!("volume ls -q --filter name={pool}")), "");

    // Once there is room the next build has one.
    shell(&format!("rm {disk}/filler"));
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("freeze as image"), "{}", reset.stderr);
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(
        status.contains(&format!("resets       from an image in the pool `{pool}`\n")),
        "{status}"
    );
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(daemon.docker("volume ls -q"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_on_xfs_needs_no_file_for_a_pool() {
    let Some(disk) = disk("mkfs.xfs -q -m reflink=1", "12G") else { return };
    shares_blocks_by_itself(&disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_on_btrfs_needs_no_file_for_a_pool() {
    let Some(disk) = disk("mkfs.btrfs -q", "12G") else { return };
    shares_blocks_by_itself(&disk).await;
}

async fn shares_blocks_by_itself(disk: &Utf8Path) {
    let Some(daemon) = SecondDaemon::start(disk, "postgres:17") else { return };
    let pool = daemon.pool();
    let mut project = in_pool(&pool).await;
    project.sandbox.set("DOCKER_HOST", &daemon.address());
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("freeze as image"), "{}", up.stderr);
    let clean = project.contents().await;
    use_it(&project).await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
    assert_eq!(daemon.docker(&format!("volume ls -q --filter name={pool}")).trim(), pool);
    let attached = format!("cat /sys/block/loop*/loop/backing_file | grep -c {pool} || true");
    assert_eq!(shell(&attached), "0", "no loop device");

    // A branch shares them too, and what is there is found again.
    project.run(&["up", "--branch", "other"]).succeeds();
    let sharers = project.run(&["images", "list", "--json"]).succeeds().json();
    let sharers = sharers["images"][0]["environments"].as_array().map_or(0, Vec::len);
    assert_eq!(sharers, 2);
    project.run(&["down"]).succeeds();
    project.run(&["up"]).succeeds();
    assert_eq!(project.contents().await, clean);
    project.run(&["branch", "delete", "other", "--yes"]).succeeds();
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(daemon.docker("volume ls -q"), "");
}
