//! `reset` from a frozen server: where clones share blocks, and each lower rung.
//!
//! The databases are small, so `images.min_size = 1` asks for images; each Docker project has a pool of
//! its own, so that the last one of a pool is seen to leave nothing.

use std::process::{Command, Stdio};
use std::sync::OnceLock;

use camino::{Utf8Path, Utf8PathBuf};
use seedbed::pg::Session;

use super::image_kills::of_pool;
use super::pool_full::look;
use super::{Project, docker_is_here, until};
use crate::harness::container::image_with;
use crate::harness::postgres::{newest_bin_dir, query_text};
use crate::harness::{disk, unique};
use crate::interrupts::lock_on;

pub(super) fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("there is a shell");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A project whose server runs in Docker, and the name of its pool.
pub(super) async fn in_docker() -> Option<(Project, String)> {
    if !docker_is_here() {
        return None;
    }
    let pool = unique("seedbed-test-pool");
    Some((in_pool(&pool).await, pool))
}

/// A project whose server runs in Docker and shares this pool.
pub(super) async fn in_pool(pool: &str) -> Project {
    let mut project = Project::on_its_own("kind = \"docker\"\n").with_snapshot().await;
    project.sandbox.set("SEEDBED_IMAGES_KIND", "auto");
    project.sandbox.set("SEEDBED_IMAGES_MIN_SIZE", "1");
    project.sandbox.set("SEEDBED_IMAGES_POOL", pool);
    project.sandbox.set("SEEDBED_IMAGES_POOL_SIZE", "16GiB");
    project
}

/// A folder on a file system with reflinks, made once.
fn reflinks() -> Option<&'static Utf8Path> {
    static FOLDER: OnceLock<Option<Utf8PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| disk("mkfs.xfs -q -m reflink=1", "4G")).as_deref()
}

pub(super) async fn native_with_reflinks() -> Option<Project> {
    let engine = format!("kind = \"native\"\nbin_dir = \"{}\"\n", newest_bin_dir().display());
    let mut project = Project::on_its_own_below(reflinks()?, &engine).with_snapshot().await;
    // Else the server's user cannot reach it, and its data goes elsewhere.
    shell(&format!("chmod 755 {}", project.sandbox.project().join("..")));
    project.sandbox.set("SEEDBED_IMAGES_KIND", "auto");
    project.sandbox.set("SEEDBED_IMAGES_MIN_SIZE", "1");
    Some(project)
}

pub async fn use_it(project: &Project) {
    project.sql("delete from shop.purchase; update shop.item set cents = 1").await;
}

/// What holds wherever clones share blocks.
async fn resets_from_an_image(project: &Project) {
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("freeze as image"), "{}", up.stderr);
    assert_eq!(project.databases().await, ["live"], "a template would only make it larger");
    let clean = project.contents().await;
    let url = project.run(&["url"]).succeeds().stdout;
    use_it(project).await;
    project.sql("alter system set work_mem = '7MB'").await;

    let other = Session::connect(&project.live()).await.expect("the database is there");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    let ended = format!("ended 1 session on `{}`", project.database);
    assert!(reset.stderr.contains(&ended), "{}", reset.stderr);
    assert!(!reset.stderr.contains("load "), "{}", reset.stderr);
    assert!(other.batch("select 1").await.is_err(), "the session goes on in a replaced database");
    assert_eq!(project.contents().await, clean);
    assert_eq!(project.run(&["url"]).succeeds().stdout, url);
    assert_eq!(project.text("show work_mem").await, "7MB", "settings of the server stay");
    let listed = project.run(&["images", "list", "--json"]).succeeds().json();
    let image = listed["images"][0]["name"].as_str().expect("a name").to_owned();
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(
        status.contains(", a clone of the image built 2") && status.contains(&image),
        "{status}"
    );
    project
        .sql("create table shop.more as select repeat('x', 200) from generate_series(1, 9999)")
        .await;
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains("grown        by 2."), "{status}");
    project.sql("drop table shop.more").await;
    project.run(&["users", "check"]).succeeds();

    // The clone is a database like any other: it migrates, and can be replaced again.
    let notes = "create table shop.note (body text); insert into shop.note values ('first');";
    project.sandbox.write("sql/V3__notes.sql", notes);
    project.run(&["up"]).succeeds();
    assert_eq!(project.text("select count(*) from shop.note").await, "1");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("the rows alone"), "another fingerprint: {}", reset.stderr);
    assert!(reset.stderr.contains("freeze as image"), "{}", reset.stderr);
    // Else the first reading of a clone writes every page of what scripts have inserted.
    let vacuumed = "select relallvisible::text from pg_class where oid = 'shop.note'::regclass";
    assert_eq!(project.text(vacuumed).await, "1");

    let listed = project.run(&["images", "list", "--json"]).succeeds().json();
    let listed = listed["images"].as_array().expect("a list");
    assert_eq!(listed.len(), 3, "{listed:?}");
    assert_eq!(listed[0]["schema_version"], "3");
    assert_eq!(listed[1]["schema_version"], "2");
    assert_eq!(
        (&listed[2]["schema_version"], &listed[2]["is_ground"]),
        (&"1".into(), &true.into())
    );
    let table = project.run(&["images", "list"]).succeeds().stdout;
    assert!(table.contains("version 3, snapshot "), "{table}");
    // Of those that nobody used for so long the one stays that the data came from.
    shell("sleep 2.1");
    for (age, goes) in [("images.max_age=1h", 0), ("images.max_age=1s", 2)] {
        let shown = project.run(&["images", "prune", "--set", age, "--json"]).succeeds().json();
        let removed = shown["removed"].as_array().expect("a list");
        assert_eq!(removed.len(), goes, "{age}: {shown}");
        assert!(removed.iter().all(|gone| gone["schema_version"] != "3"), "{age}: {shown}");
    }
    let prune = ["images", "prune", "--set", "images.max_size=1"];
    let shown = project.run(&prune).succeeds().stdout;
    assert!(shown.contains("would go"), "{shown}");
    let removed = project.run(&[&prune[..], &["--yes"]].concat()).succeeds().stdout;
    assert!(removed.contains("removed") && removed.contains("stays"), "{removed}");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
}

/// `reset --keep`, and back, and forth.
async fn keeps_and_brings_back(project: &Project) {
    project.run(&["up"]).succeeds();
    let run = project.run(&["undo-reset"]).exits(4);
    assert!(run.stderr.contains("none was kept"), "{}", run.stderr);
    use_it(project).await;
    let mine = project.contents().await;
    project.run(&["reset", "--keep"]).succeeds();
    let clean = project.contents().await;
    assert_ne!(mine, clean);
    let back = project.run(&["undo-reset"]).succeeds();
    assert!(back.stdout.contains("schema version 2"), "{}", back.stdout);
    assert_eq!(project.contents().await, mine);
    project.run(&["undo-reset"]).succeeds();
    assert_eq!(project.contents().await, clean);
    project.run(&["undo-reset"]).succeeds();
    assert_eq!(project.contents().await, mine);
    // One that is not asked for is not kept.
    project.run(&["reset"]).succeeds();
    assert_eq!(project.contents().await, clean);
    project.run(&["undo-reset"]).exits(4);
    // Nor by a build, which brings nothing older back either.
    project.run(&["reset", "--keep"]).succeeds();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    project.run(&["reset"]).succeeds();
    let run = project.run(&["undo-reset"]).exits(4);
    assert!(run.stderr.contains("none was kept"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_resets_from_an_image_in_a_pool_and_leaves_nothing() {
    let Some((project, pool)) = in_docker().await else { return };
    let attached = format!("cat /sys/block/loop*/loop/backing_file | grep -c {pool} || true");
    let rung = format!("from an image in the pool `{pool}`");
    let doctor = project.run(&["doctor"]).stdout;
    assert!(doctor.contains(&format!("{rung}, which is made when it is needed")), "{doctor}");
    resets_from_an_image(&project).await;
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains(&format!("resets       {rung}\n")), "{status}");
    assert_eq!(shell(&attached), "1", "one file on one loop device");
    let volumes = format!("docker volume ls -q --filter name={pool}");
    assert_eq!(shell(&volumes).lines().count(), 2);
    // Stopped and started, also after the devices were lost as by a start of the machine.
    let contents = project.contents().await;
    project.run(&["down"]).succeeds();
    shell(&format!(
        "for file in /sys/block/loop*/loop/backing_file; do \
           if grep -q {pool} $file; then losetup -d /dev/$(echo $file | cut -d / -f 4); fi; done"
    ));
    assert_eq!(shell(&attached), "0");
    project.run(&["up"]).succeeds();
    assert_eq!(project.contents().await, contents);
    let down = project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert!(down.stdout.contains("the data in the pool"), "{}", down.stdout);
    assert_eq!(shell(&volumes), "");
    assert_eq!(shell(&attached), "0");
    assert_eq!(shell(&format!("docker ps -aq --filter volume={pool}")), "");
}

/// Rows are loaded where they will be frozen. Images go with the last environment of the project that made them,
/// unless another project's data came from them.
#[tokio::test(flavor = "multi_thread")]
async fn docker_builds_in_the_pool_and_a_projects_images_go_with_it() {
    let Some((project, pool)) = in_docker().await else { return };
    let up = project.run(&["up"]).succeeds().stderr;
    let place = |step: &str| up.find(step).unwrap_or_else(|| panic!("{step}: {up}"));
    assert!(place("move to where clones share blocks") < place("restore tables"), "{up}");
    let images = || look(&pool, "ls /p/images | wc -l");
    let other = in_pool(&pool).await;
    other.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    other.run(&["up"]).succeeds();
    other.run(&["up", "--branch", "second"]).succeeds();
    // The rows alone are the same for both.
    assert_eq!(images(), "3");
    other.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(images(), "3", "a branch is there still");
    other.run(&["branch", "delete", "second", "--yes"]).succeeds();
    assert_eq!(images(), "2");
    let like_it = in_pool(&pool).await;
    like_it.run(&["up"]).succeeds();
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(images(), "1", "somebody's data came from it");
    let reset = like_it.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    like_it.run(&["down", "--volumes", "--yes"]).succeeds();
}

/// A folder that somebody has removed keeps no pool for ever.
#[tokio::test(flavor = "multi_thread")]
async fn docker_names_what_a_folder_that_is_gone_has_left_and_it_can_be_removed() {
    let Some((project, pool)) = in_docker().await else { return };
    project.run(&["up"]).succeeds();
    let other = in_pool(&pool).await;
    other.run(&["up"]).succeeds();
    let folder = project.sandbox.project().to_owned();
    shell(&format!("rm -r {folder}"));
    let listed = other.run(&["images", "list"]).succeeds().stdout;
    let command = format!("seedbed --project '{folder}' down --volumes --yes");
    assert!(listed.contains(&format!("{folder} (gone)")), "{listed}");
    assert!(listed.contains(&format!("`mkdir -p '{folder}/conf' && {command}`")), "{listed}");
    shell(&format!("mkdir -p '{folder}/conf'"));
    let down = project.run(&["down", "--volumes", "--yes"]).succeeds().stdout;
    assert!(down.contains("removed the data in the pool"), "{down}");
    let listed = other.run(&["images", "list"]).succeeds().stdout;
    assert!(!listed.contains("(gone)"), "{listed}");
    other.run(&["down", "--volumes", "--yes"]).succeeds();
    assert_eq!(shell(&format!("docker volume ls -q --filter name={pool}")), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_keeps_what_a_reset_replaces_and_brings_it_back() {
    let Some((project, _)) = in_docker().await else { return };
    keeps_and_brings_back(&project).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn native_resets_from_an_image_where_the_file_system_has_reflinks() {
    let Some(project) = native_with_reflinks().await else { return };
    resets_from_an_image(&project).await;
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains("resets       from an image beside the data in "), "{status}");
    project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert!(!project.sandbox.project().join(".seedbed/native").exists());
    assert!(!project.sandbox.project().join(".seedbed/images").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn native_keeps_what_a_reset_replaces_and_brings_it_back() {
    let Some(project) = native_with_reflinks().await else { return };
    keeps_and_brings_back(&project).await;
}

#[tokio::test]
async fn a_template_keeps_what_a_reset_replaces_and_brings_it_back() {
    let project = Project::external(super::elsewhere()).with_snapshot().await;
    keeps_and_brings_back(&project).await;
    assert_eq!(project.databases().await, ["live", "template"]);
}

#[tokio::test]
async fn a_file_system_without_reflinks_means_a_template_and_it_is_said() {
    let mut project = Project::native().with_snapshot().await;
    project.sandbox.set("SEEDBED_IMAGES_KIND", "auto");
    project.sandbox.set("SEEDBED_IMAGES_MIN_SIZE", "1");
    let up = project.run(&["up"]).succeeds();
    if up.stderr.contains("freeze as image") {
        // The temporary folder has reflinks here: the other tests are about it.
        return;
    }
    assert!(
        up.stderr.contains("freezing a template, no image: the file system of"),
        "{}",
        up.stderr
    );
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains("resets       from a template: the file system of"), "{status}");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    let configured = Project::native().with_snapshot().await;
    let up = configured.run(&["up"]).succeeds();
    assert!(up.stderr.contains("freeze as template"), "{}", up.stderr);
    assert!(!up.stderr.contains("no image"), "{}", up.stderr);
}

#[tokio::test]
async fn what_is_smaller_than_the_limit_is_a_template_also_where_images_could_be() {
    let Some(mut project) = native_with_reflinks().await else { return };
    project.sandbox.set("SEEDBED_IMAGES_MIN_SIZE", "256MiB");
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("freeze as template"), "{}", up.stderr);
    let status = project.run(&["status"]).succeeds().stdout;
    let small = "resets       from a template: it is smaller than 256 MiB (`images.min_size`)\n";
    assert!(status.contains(small), "{status}");
    let doctor = project.run(&["doctor"]).stdout;
    assert!(doctor.contains("; what is smaller than 256 MiB, from a template"), "{doctor}");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
}

/// Another project's pool, whose file system is spoilt.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_cannot_be_mounted_stops_nobody_who_is_not_in_it() {
    let Some((other, pool)) = in_docker().await else { return };
    other.run(&["up"]).succeeds();
    other.run(&["down"]).succeeds();
    shell(&format!(
        "docker ps -aq --filter volume={pool}-mounted | xargs -r docker rm -f >/dev/null; \
         docker run --rm -v {pool}:/p --entrypoint sh postgres:17 -euc \
         'dd if=/dev/zero of=$(ls /p/*.xfs) bs=4096 count=1 conv=notrunc status=none; sync'"
    ));
    let project = in_pool(&pool).await;
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("no image is looked for: "), "{}", up.stderr);
    assert!(up.stderr.contains("freezing a template, no image: "), "{}", up.stderr);
    let clean = project.contents().await;
    use_it(&project).await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
    let down = project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert!(down.stderr.contains("what may be left in the pool stays"), "{}", down.stderr);
    // Whoever is in it is told, and nothing of it is taken for gone.
    let up = other.run(&["up"]);
    assert_ne!(up.code, Some(0), "{}", up.stderr);
    assert_eq!(shell(&format!("docker volume ls -q --filter name={pool}")).lines().count(), 2);
    // Nor does anybody else remove it.
    shell(&format!(
        "docker ps -aq --filter label=seedbed.path={} | xargs -r docker rm -f >/dev/null; \
         docker volume rm {pool}-mounted >/dev/null; \
         for file in /sys/block/loop*/loop/backing_file; do \
           if grep -qs {pool} $file; then losetup -d /dev/$(echo $file | cut -d / -f 4); fi; done; \
         docker volume rm {pool} >/dev/null",
        other.sandbox.project()
    ));
}

/// As by a kernel that does not know its file system.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_pool_that_cannot_be_mounted_goes_and_is_remembered() {
    let Some((mut project, pool)) = in_docker().await else { return };
    // The file is spoiled before it has its device.
    let spoil = "#!/bin/sh
        [ ! -f \"$2\" ] || dd if=/dev/zero of=\"$2\" bs=64k count=1 conv=notrunc 2>/dev/null
        exec /usr/sbin/losetup \"$@\"";
    project.sandbox.set("SEEDBED_ENGINE_IMAGE", &image_with(&[("losetup", spoil)]));
    let up = project.run(&["up"]).succeeds();
    assert!(up.stderr.contains("freezing a template, no image: "), "{}", up.stderr);
    assert_eq!(of_pool(&pool), "");
    let said = "resets       from a template: when a pool was tried last: ";
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains(said), "{status}");
    let clean = project.contents().await;
    use_it(&project).await;
    // Nobody tries again.
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
    assert_eq!(of_pool(&pool), "");
    project.run(&["down", "--volumes", "--yes"]).succeeds();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_this_server_cannot_serve_is_built_anew() {
    let Some(project) = native_with_reflinks().await else { return };
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    use_it(&project).await;
    // As if another build, and then another library, had written and sorted what is in it.
    for (of, spoil, said) in [
        (
            "\"layout\":\\[\"",
            "s/\"layout\":\\[\"/&7/",
            "its pages or its catalog are laid out in another way",
        ),
        (
            "\"libc\":",
            "s/\"libc\":\\(null\\|\"[^\"]*\"\\)/\"libc\":\"0.1\"/",
            "it sorts text by the C library's 0.1, not ",
        ),
    ] {
        let facts = project.sandbox.project().join(".seedbed/images");
        shell(&format!(
            "cd {facts} && grep -q '{of}' */image.json && sed -i '{spoil}' */image.json"
        ));
        let reset = project.run(&["reset"]).succeeds();
        let said = format!("building anew, the image is not taken: {said}");
        assert!(reset.stderr.contains(&said), "{}", reset.stderr);
        assert!(reset.stderr.contains("freeze as image"), "{}", reset.stderr);
        assert_eq!(project.contents().await, clean);
    }
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_database_is_not_moved_into_a_pool_for_a_point() {
    let Some((mut project, pool)) = in_docker().await else { return };
    project.sandbox.set("SEEDBED_IMAGES_MIN_SIZE", "256MiB");
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    let save = project.run(&["branch", "save", "point"]).succeeds();
    assert!(!save.stderr.contains("move to where clones share blocks"), "{}", save.stderr);
    assert_eq!(shell(&format!("docker volume ls -q --filter name={pool}")), "", "no pool");
    use_it(&project).await;
    project.run(&["branch", "restore", "point"]).succeeds();
    assert_eq!(project.contents().await, clean);
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains(", a clone of the point built 2"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_never_replaces_what_else_the_server_holds() {
    let Some(project) = native_with_reflinks().await else { return };
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    for (made, gone, named) in [
        ("create database other_data", "drop database other_data", "database `other_data`"),
        ("create role somebody", "drop role somebody", "role `somebody`"),
    ] {
        use_it(&project).await;
        crate::harness::postgres::run_sql(&project.admin(), made).await;
        let reset = project.run(&["reset"]).succeeds();
        let note = format!("the image is not taken: it would replace {named} as well");
        assert!(reset.stderr.contains(&note), "{}", reset.stderr);
        assert_eq!(project.contents().await, clean);
        crate::harness::postgres::run_sql(&project.admin(), gone).await;
    }
}

/// The server's roles are the image's: what the files say of them has to be what they said when it was frozen.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_and_what_it_is_a_member_of_do_not_come_back_with_an_image() {
    let Some(project) = native_with_reflinks().await else { return };
    let accounts = project.sandbox.read("users/accounts.sql");
    let with =
        |more: &str| project.sandbox.write("users/accounts.sql", format!("{accounts}{more}\n"));
    with("CREATE ROLE guest; CREATE ROLE staff; GRANT staff TO ${reader};");
    project.run(&["up"]).succeeds();
    assert!(project.run(&["reset"]).succeeds().stderr.contains("serve a clone of the image"));
    // As somebody does who takes both away.
    with("CREATE ROLE staff;");
    project.sql(&format!("drop role guest; revoke staff from {}", project.reader)).await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("restore tables"), "{}", reset.stderr);
    let found = format!(
        "select count(*) from pg_roles where rolname = 'guest' or pg_has_role('{}', 'staff', 'member')",
        project.reader
    );
    assert_eq!(project.text(&found).await, "0");
    assert!(project.run(&["reset"]).succeeds().stderr.contains("serve a clone of the image"));
    assert_eq!(project.text(&found).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent_comes_from_a_template_beside_the_image_and_outlives_a_reset() {
    let Some(project) = native_with_reflinks().await else { return };
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    use_it(&project).await;
    let lent = project.run(&["db", "create"]).succeeds();
    assert!(lent.stderr.contains("building one, once"), "{}", lent.stderr);
    assert_eq!(project.run(&["db", "create"]).succeeds().stderr, "");
    assert_eq!(project.databases().await, ["lent", "lent", "live", "template"]);
    let reset = project.run(&["reset"]).succeeds();
    let note = "the image is not taken: it would replace database `shop__lent_";
    assert!(reset.stderr.contains(note), "{}", reset.stderr);
    assert!(reset.stderr.contains("clone the frozen template"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
    assert_eq!(project.databases().await, ["lent", "lent", "live", "template"]);
    let name = lent.stdout.trim().rsplit('/').next().expect("a URL").to_owned();
    assert_eq!(super::contents(&project.admin().with_database(&name)).await, clean);
    project.run(&["db", "drop", "--all"]).succeeds();
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    let status = project.run(&["status"]).succeeds().stdout;
    assert!(status.contains(", a clone of the image built 2"), "{status}");
}

/// Starts a run whose output is wanted.
pub fn started(project: &Project, args: &[&str]) -> std::process::Child {
    let mut command = project.sandbox.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program was built for this suite")
}

pub fn ended(project: &Project, args: &[&str], child: std::process::Child) -> crate::harness::Run {
    project.sandbox.ended(args, child.wait_with_output().expect("our own child"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_lent_keeps_a_reset_from_replacing_the_server() {
    let Some(project) = native_with_reflinks().await else { return };
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    use_it(&project).await;
    // The template is there from now on.
    project.run(&["db", "create"]).succeeds();
    project.run(&["db", "drop", "--all"]).succeeds();
    let admin = project.admin();
    let template = "select datname from pg_database where datistemplate and datname like 'shop%'";
    let template = query_text(&admin, template).await;

    let held = lock_on(&admin, &template).await;
    let waiting = "select count(*) from pg_stat_activity
        where application_name = 'seedbed' and wait_event_type = 'Lock' and query like 'create database%'";
    let create = started(&project, &["db", "create"]);
    until(&admin, waiting, "1").await;
    let reset = started(&project, &["reset"]);
    until(&admin, waiting, "2").await;
    held.batch("rollback").await.expect("it is open");
    held.close().await;
    let create = ended(&project, &["db", "create"], create).succeeds();
    let reset = ended(&project, &["reset"], reset).succeeds();
    let note = "the image is not taken: it would replace a database that is being lent as well";
    assert!(reset.stderr.contains(note), "{}", reset.stderr);
    let name = create.stdout.trim().rsplit('/').next().expect("a URL").to_owned();
    assert_eq!(super::contents(&admin.with_database(&name)).await, clean);
    assert_eq!(project.contents().await, clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_lists_which_environments_share_blocks_with_which_image() {
    let Some((project, pool)) = in_docker().await else { return };
    project.run(&["up"]).succeeds();
    project.run(&["up", "--branch", "add/notes"]).succeeds();
    let other = in_pool(&pool).await;
    other.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    other.run(&["up"]).succeeds();
    let list = || {
        let list = project.run(&["images", "list", "--json"]).succeeds().json();
        list["images"].as_array().expect("a list").clone()
    };
    let images = list();
    // The last one is the rows alone.
    assert_eq!(images.len(), 3, "{images:?}");
    assert_eq!(images[0]["environments"][0]["project"], other.sandbox.project().as_str());
    assert_eq!(images[0]["environments"].as_array().map(Vec::len), Some(1));
    let ours = |images: &[serde_json::Value], branch: Option<&str>| {
        let all = images[1]["environments"].as_array().expect("a list").clone();
        assert_eq!(all.len(), 2, "{all:?}");
        let one = all.into_iter().find(|one| one["branch"].as_str() == branch);
        let one = one.unwrap_or_else(|| panic!("{branch:?} is not there: {images:?}"));
        assert_eq!(one["project"], project.sandbox.project().as_str());
        (one["bytes"].as_u64().expect("bytes"), one["own_bytes"].as_u64().expect("bytes"))
    };
    let (before, branch) = (ours(&images, None), ours(&images, Some("add/notes")));
    crate::harness::say(&format!("{before:?} {branch:?}"));
    assert!(before.1 < before.0 && branch.1 < branch.0, "{before:?} {branch:?}");

    // Twenty megabytes that no other has.
    project
        .sql(
            "create table shop.big as select repeat(md5(n::text), 30) x from generate_series(1, 20000) n;
             checkpoint",
        )
        .await;
    let images = list();
    let after = ours(&images, None);
    assert!((18_000_000..45_000_000).contains(&(after.1 - before.1)), "{before:?} {after:?}");
    assert!(ours(&images, Some("add/notes")).1 < branch.1 + 1_000_000);

    let table = project.run(&["images", "list"]).succeeds().stdout;
    assert!(table.contains("shares blocks with"), "{table}");
    let row = format!("{}, branch add/notes  ", project.sandbox.project());
    assert!(table.contains(&row), "{table}");
    other.run(&["down", "--volumes", "--yes"]).succeeds();
    let table = project.run(&["images", "list"]).succeeds().stdout;
    assert!(!table.contains(&format!("\n{}  ", other.sandbox.project())), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn native_lists_which_environments_came_from_which_image() {
    let Some(project) = native_with_reflinks().await else { return };
    project.run(&["up"]).succeeds();
    project.run(&["up", "--branch", "add/notes"]).succeeds();
    let images = project.run(&["images", "list", "--json"]).succeeds().json();
    let all = images["images"][0]["environments"].as_array().expect("a list").clone();
    let branches: Vec<Option<&str>> = all.iter().map(|one| one["branch"].as_str()).collect();
    assert_eq!(branches, [None, Some("add/notes")], "{all:?}");
    // The next one is frozen from the default environment; the older one stays for the branch.
    let older = images["images"][0]["name"].as_str().expect("a name").to_owned();
    project.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    project.run(&["reset"]).succeeds();
    project.run(&["images", "prune", "--yes", "--set", "images.max_size=1"]).succeeds();
    let table = project.run(&["images", "list"]).succeeds().stdout;
    assert!(!table.contains("which is gone"), "{table}");
    let images = project.sandbox.project().join(".seedbed/images");
    shell(&format!("rm -r {images}/{older}"));
    let table = project.run(&["images", "list"]).succeeds().stdout;
    assert!(table.contains(", which is gone  "), "{table}");
    let listed = project.run(&["images", "list", "--json"]).succeeds().json();
    let environments = listed["environments"].as_array().expect("a list");
    let of_branch = environments.iter().find(|one| one["branch"] == "add/notes");
    assert_eq!(of_branch.expect("its image is gone")["image"], older.as_str(), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_serves_the_old_database_again_where_the_image_does_not_start() {
    let Some((project, pool)) = in_docker().await else { return };
    let spoil = format!(
        "docker run --rm -v {pool}-mounted:/p --entrypoint sh postgres:17 -c \
         'truncate -s 100 /p/images/*/data/global/pg_control'"
    );
    an_image_that_does_not_start_costs_nothing(&project, &spoil).await;
}

#[tokio::test]
async fn native_serves_the_old_database_again_where_the_image_does_not_start() {
    let Some(project) = native_with_reflinks().await else { return };
    let images = project.sandbox.project().join(".seedbed/images");
    let spoil = format!("truncate -s 100 {images}/*/data/global/pg_control");
    an_image_that_does_not_start_costs_nothing(&project, &spoil).await;
}

/// `spoil` makes every image one that no server starts on.
async fn an_image_that_does_not_start_costs_nothing(project: &Project, spoil: &str) {
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    use_it(project).await;
    let used = project.contents().await;
    shell(spoil);
    // Nor can it be built.
    let chunks = project.sandbox.project().join("seed/snapshots/chunks");
    let away = project.sandbox.project().join("seed/away");
    fs_err::rename(&chunks, &away).expect("it is there");
    shell(&format!("rm -rf {}/*", project.sandbox.cache()));
    let reset = project.run(&["reset"]);
    assert_ne!(reset.code, Some(0), "{}", reset.stderr);
    assert!(reset.stderr.contains("pg_control"), "{}", reset.stderr);
    assert_eq!(project.contents().await, used);
    project.run(&["undo-reset"]).exits(4);

    // It has gone, so that nobody tries it again.
    fs_err::rename(&away, &chunks).expect("it is there");
    let reset = project.run(&["reset"]).succeeds();
    assert!(!reset.stderr.contains("does not start"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
    use_it(project).await;
    shell(spoil);
    let reset = project.run(&["reset", "--keep"]).succeeds();
    assert!(reset.stderr.contains("building anew, the image does not start"), "{}", reset.stderr);
    assert_eq!(project.contents().await, clean);
    project.run(&["undo-reset"]).succeeds();
    assert_eq!(project.contents().await, used);
}

/// A helper's name is the lock of a pool.
#[tokio::test(flavor = "multi_thread")]
async fn two_projects_that_come_to_a_new_pool_at_once_both_get_into_it() {
    let Some((project, pool)) = in_docker().await else { return };
    let other = in_pool(&pool).await;
    // Else the image of one may be there for the other.
    other.sandbox.write("sql/V3__notes.sql", "create table shop.note (body text);");
    let both = [&project, &other];
    let runs = both.map(|project| started(project, &["up"]));
    for (project, run) in both.into_iter().zip(runs) {
        let up = ended(project, &["up"], run).succeeds();
        assert!(up.stderr.contains("freeze as image"), "{}", up.stderr);
        assert!(!up.stderr.contains("no image"), "{}", up.stderr);
    }
    let resets = both.map(|project| started(project, &["reset"]));
    for (project, reset) in both.into_iter().zip(resets) {
        let reset = ended(project, &["reset"], reset).succeeds();
        assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    }
}
