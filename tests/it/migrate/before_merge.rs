//! Before a merge: `validate --against REVISION` and the versions that `new` gives.

use super::site::Site;

fn git(site: &Site, args: &[&str]) {
    let identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"];
    let mut command = site.sandbox.other_command("git");
    let output = command.args(identity).args(args).output().expect("git is installed");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn commit(site: &Site, message: &str) {
    git(site, &["add", "-A"]);
    git(site, &["commit", "-q", "-m", message]);
}

/// Two versions on `main`, then `feature` begins.
async fn branched() -> Site {
    let site = Site::new(&[("V1__a.sql", "select 1;\n"), ("V2__b.sql", "select 2;\n")]).await;
    git(&site, &["init", "-q", "-b", "main"]);
    commit(&site, "two");
    git(&site, &["switch", "-q", "-c", "feature"]);
    site
}

#[tokio::test]
async fn a_branch_that_is_only_ahead_fits() {
    let site = branched().await;
    site.sql("V3__c.sql", "select 3;\n");
    let run = site.run(&["validate", "--against", "main"]).succeeds();
    assert_eq!(run.stdout, "the scripts fit those of `main`\n");
}

#[tokio::test]
async fn what_would_break_after_the_merge_is_named() {
    let site = branched().await;
    git(&site, &["switch", "-q", "main"]);
    site.sql("V3__theirs.sql", "select 33;\n");
    site.sql("V5__theirs.sql", "select 55;\n");
    commit(&site, "theirs");
    git(&site, &["switch", "-q", "feature"]);
    site.sql("V1__a.sql", "select 1111;\n");
    site.remove("V2__b.sql");
    site.sql("V3__ours.sql", "select 3;\n");
    site.sql("V4__ours.sql", "select 4;\n");
    site.sql("V6__ours.sql", "select 6;\n");
    let run = site.run(&["--quiet", "validate", "--against", "main"]).exits(7);
    assert_eq!(
        run.stdout,
        "CHANGED: `sql/V1__a.sql` was changed: write the change into a new script\n\
         REMOVED: `sql/V2__b.sql` is gone here, and may be applied there\n\
         COLLISION: version 3 is `sql/V3__ours.sql` here and `sql/V3__theirs.sql` there: rename the one here\n\
         OUT_OF_ORDER: `sql/V4__ours.sql` comes before version 5, which is there already: give it a higher \
         one\n"
    );
    let json = site.run(&["--json", "--quiet", "validate", "--against", "main"]).exits(7).json();
    assert_eq!(json["findings"][2]["code"], "COLLISION");
}

#[tokio::test]
async fn another_name_for_the_same_text_is_named() {
    let site = branched().await;
    let sql = site.sandbox.project().join("sql");
    std::fs::rename(sql.join("V1__a.sql"), sql.join("V1__b.sql")).expect("renames");
    std::fs::rename(sql.join("V2__b.sql"), sql.join("V2__b.sh")).expect("renames");
    let run = site.run(&["--quiet", "validate", "--against", "main"]).exits(7);
    assert_eq!(
        run.stdout,
        "RENAMED: `sql/V1__b.sql` was `sql/V1__a.sql`, and the history may have it by that name: give it \
         back\n\
         RENAMED: `sql/V2__b.sh` was `sql/V2__b.sql`, and the history may have it by that name: give it \
         back\n"
    );
    // A folder is no part of the name.
    let site = branched().await;
    site.remove("V1__a.sql");
    site.sql("r1/V1__a.sql", "select 1;\n");
    site.run(&["validate", "--against", "main"]).succeeds();
}

#[tokio::test]
async fn repeatables_may_change_but_not_go() {
    let site = Site::new(&[("R__one.sql", "select 1;\n"), ("R__two.sql", "select 2;\n")]).await;
    git(&site, &["init", "-q", "-b", "main"]);
    commit(&site, "two");
    git(&site, &["switch", "-q", "-c", "feature"]);
    site.sql("R__one.sql", "select 11;\n");
    site.run(&["validate", "--against", "main"]).succeeds();
    site.remove("R__two.sql");
    let run = site.run(&["--quiet", "validate", "--against", "main"]).exits(7);
    assert_eq!(run.stdout, "REMOVED: `sql/R__two.sql` is gone here, and may be applied there\n");
}

#[tokio::test]
async fn programs_are_scripts_of_the_other_side_as_well() {
    let site = Site::new(&[("V1__a.sql", "select 1;\n"), ("V3__prog.sh", "true\n")]).await;
    git(&site, &["init", "-q", "-b", "main"]);
    commit(&site, "two");
    git(&site, &["switch", "-q", "-c", "feature"]);
    git(&site, &["switch", "-q", "main"]);
    site.sql("V4__theirs.sql", "select 4;\n");
    commit(&site, "theirs");
    git(&site, &["switch", "-q", "feature"]);
    let run = site.run(&["validate", "--against", "main"]).succeeds();
    assert_eq!(run.stdout, "the scripts fit those of `main`\n");
}

#[tokio::test]
async fn a_revision_that_is_not_there_is_named() {
    let site = branched().await;
    let run = site.run(&["--quiet", "validate", "--against", "origin/none"]).exits(2);
    assert_eq!(run.stderr, "error: compare with `origin/none`: there is no such revision\n");
}

/// A hook of a linked worktree runs with `GIT_DIR` set, and the project need not be the repository's top.
#[tokio::test]
async fn a_git_dir_in_the_environment_does_not_hide_what_the_other_side_has() {
    let mut site = Site::new(&[("V1__a.sql", "select 1;\n")]).await;
    git(&site, &["init", "-q", "-b", "main", ".."]);
    commit(&site, "one");
    git(&site, &["switch", "-q", "-c", "feature"]);
    git(&site, &["switch", "-q", "main"]);
    site.sql("V7__theirs.sql", "select 7;\n");
    commit(&site, "theirs");
    git(&site, &["switch", "-q", "feature"]);
    site.sql("V7__ours.sql", "select 77;\n");
    let repository = site.sandbox.project().with_file_name(".git");
    for (name, value) in [("GIT_DIR", repository.as_str()), ("GIT_PREFIX", "elsewhere/")] {
        site.sandbox.set(name, value);
    }
    let run = site.run(&["--quiet", "validate", "--against", "main"]).exits(7);
    assert_eq!(
        run.stdout,
        "COLLISION: version 7 is `project/sql/V7__ours.sql` here and `project/sql/V7__theirs.sql` there: \
         rename the one here\n"
    );
    site.remove("V7__ours.sql");
    let run = site.run(&["--quiet", "new", "add orders"]).succeeds();
    assert!(run.stdout.ends_with("/sql/V8__add_orders.sql\n"), "{}", run.stdout);
}

#[tokio::test]
async fn new_goes_above_what_any_branch_has() {
    let site = branched().await;
    git(&site, &["switch", "-q", "main"]);
    site.sql("V007__theirs.sql", "select 7;\n");
    commit(&site, "theirs");
    git(&site, &["switch", "-q", "feature"]);
    let run = site.run(&["--quiet", "new", "add orders"]).succeeds();
    assert!(run.stdout.ends_with("/sql/V008__add_orders.sql\n"), "{}", run.stdout);
}

#[tokio::test]
async fn two_who_ask_at_once_get_two_versions() {
    let site = Site::new(&[("V1__a.sql", "select 1;\n")]).await;
    let start = |name: &str| site.sandbox.command(&["new", name]).spawn().expect("was built");
    let children: Vec<_> = ["one", "two", "three", "four"].map(start).into();
    for child in children {
        assert!(child.wait_with_output().expect("ends").status.success());
    }
    let states = site.states(&[]);
    let versions: Vec<&str> = states.iter().filter_map(|state| state.split(' ').next()).collect();
    assert_eq!(versions, ["1", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn a_folder_of_milliseconds_gets_milliseconds() {
    let site = Site::new(&[("V20240101120000123__a.sql", "select 1;\n")]).await;
    let run = site.run(&["--quiet", "new", "add orders"]).succeeds();
    let name = run.stdout.trim().rsplit('/').next().expect("is a path").to_owned();
    let version = name.strip_prefix('V').and_then(|rest| rest.strip_suffix("__add_orders.sql"));
    let version = version.expect("is named like the others");
    assert_eq!(version.len(), 17);
    assert!(version > "20260101000000000" && version.bytes().all(|byte| byte.is_ascii_digit()));
}

#[tokio::test]
async fn new_puts_a_script_where_the_pattern_of_the_location_takes_it() {
    let site = Site::new(&[]).await;
    let conf = site.sandbox.read("flyway.conf").replace("filesystem:sql", "filesystem:sql/**/mig");
    site.sandbox.write("flyway.conf", conf);
    let run = site.run(&["--quiet", "new", "add orders"]).exits(3);
    let project = site.sandbox.project();
    assert_eq!(
        run.stderr,
        format!(
            "error: setting `flyway.locations`: `{project}/sql/**/mig` takes no script in `{project}/sql`, and no \
             script shows where else\n"
        )
    );
    site.sql("one/mig/V1__a.sql", "select 1;\n");
    let run = site.run(&["--quiet", "new", "add orders"]).succeeds();
    assert!(run.stdout.ends_with("/sql/one/mig/V2__add_orders.sql\n"), "{}", run.stdout);
    assert_eq!(site.states(&[]), ["1 a Pending", "2 add orders Pending"]);
}
