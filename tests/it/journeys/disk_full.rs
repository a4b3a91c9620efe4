//! F28: the disk is full while a database is built: the run says that there is no space, and the database
//! that people use is as it was.

use camino::{Utf8Path, Utf8PathBuf};

use super::Project;
use super::images::shell;
use crate::harness::postgres::newest_bin_dir;
use crate::harness::{require, watchdog};

/// A small disk in memory.
fn small_disk() -> Option<Utf8PathBuf> {
    let able = std::process::Command::new("sh").args(["-c", "test \"$(id -u)\" = 0"]).status();
    if !require("root", able.is_ok_and(|status| status.success())) {
        return None;
    }
    let dir = tempfile::tempdir().expect("the temporary folder can be written to").keep();
    let dir = Utf8PathBuf::from_path_buf(dir).expect("we named it in UTF-8");
    watchdog::at_exit(&format!("umount -l {dir}; rm -rf {dir}"));
    shell(&format!("mount -t tmpfs -o size=400m,mode=755 tmpfs {dir}"));
    Some(dir)
}

/// Takes all of the disk but some megabytes.
fn fill(disk: &Utf8Path, room: u64) {
    shell(&format!(
        "rm -f {disk}/filler; free=$(df -Pm {disk} | awk 'END {{ print $4 }}'); \
         test $free -gt {room} && head -c $(((free - {room}) * 1048576)) /dev/zero >{disk}/filler"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn f28_a_full_disk_is_named_and_the_old_database_stays() {
    let Some(disk) = small_disk() else { return };
    let engine = format!("kind = \"native\"\nbin_dir = \"{}\"\n", newest_bin_dir().display());
    let project = Project::on_its_own_below(&disk, &engine).with_snapshot().await;
    shell(&format!("chmod 755 {}", project.sandbox.project().join("..")));
    project.run(&["up"]).succeeds();
    project.sql("update shop.item set label = 'used'; checkpoint").await;
    let used = project.contents().await;

    // Too little for a new database; enough for one and too little for what a script makes, in tables,
    // or in temporary files.
    let table =
        "create table shop.big as select repeat('x', 1000) x from generate_series(1, 200000);";
    let sort = "select count(*) from (select repeat('x', 1000) || n x from generate_series(1, 200000) n order by 1) s;";
    for (room, script) in [(2, table), (60, table), (60, sort)] {
        project.sandbox.write("sql/V3__big.sql", script);
        fill(&disk, room);
        let run = project.run(&["reset"]);
        assert!(matches!(run.code, Some(5 | 6)), "{:?}: {}", run.code, run.stderr);
        assert!(run.stderr.contains("SQLSTATE 53100"), "{room}: {}", run.stderr);
        assert_eq!(project.contents().await, used, "{room} MB were left");
    }
    shell(&format!("rm {disk}/filler {}/sql/V3__big.sql", project.sandbox.project()));
    project.run(&["up"]).succeeds();
    assert_eq!(project.contents().await, used);
    assert_eq!(project.databases().await, ["live", "template"], "nothing half built is left");
    project.run(&["reset"]).succeeds();
    assert_ne!(project.contents().await, used);
}
