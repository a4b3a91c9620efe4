//! `snapshot create` into a folder on a disk that fails, and killed at any moment: a snapshot is there
//! and whole, or it is not there; the next run goes on with what was stored.

use secrecy::ExposeSecret;

use crate::harness::{self, Sandbox, TestDatabase, strace};

/// Calls by which an object gets on the disk and under its name, and what they fail with.
const CALLS: [(&str, &str); 3] = [
    ("fsync,fdatasync", "EIO"),
    ("rename,renameat,renameat2,link,linkat", "ENOSPC"),
    ("mkdir,mkdirat", "ENOSPC"),
];

/// Far more than a thread of a run makes.
const MOST: usize = 60;

const CREATE: [&str; 4] = ["snapshot", "create", "--env", "prod"];

/// A project whose production is `database`, its store a folder.
fn project(database: &TestDatabase) -> Sandbox {
    let mut sandbox = Sandbox::new();
    let target = &database.target;
    sandbox.write(
        "conf/prod.toml",
        format!(
            "protected = true\n[engine]\nkind = \"external\"\n[database]\nhost = \"127.0.0.1\"\nport = {}\n\
             name = \"{}\"\nuser = \"postgres\"\npassword = \"env:SOURCE\"\n[snapshot]\nchunk_bytes = \"1MiB\"\n",
            target.port, target.database
        ),
    );
    sandbox.set("SOURCE", target.password.as_ref().expect("one").expose_secret());
    sandbox
}

async fn source() -> TestDatabase {
    let database = harness::server().create_database().await;
    database
        .run(
            "create table big as select n, repeat(md5(n::text), 9) from generate_series(1, 20000) n;
             create table small as select n from generate_series(1, 10) n",
        )
        .await;
    database
}

/// Every snapshot that is listed is whole; how many there are.
#[track_caller]
fn whole(sandbox: &Sandbox, after: &str) -> usize {
    let list = sandbox.run(&["snapshot", "list", "--env", "prod", "--json"]).succeeds().json();
    let listed = list["result"].as_array().expect("a list").len();
    let verified = sandbox.run(&["snapshot", "verify", "--env", "prod", "--json"]);
    if listed == 0 {
        assert_eq!(verified.code, Some(8), "{after}: {}", verified.stderr);
        return listed;
    }
    assert_eq!(verified.code, Some(0), "{after}: {}", verified.stderr);
    assert_eq!(verified.json()["snapshots"].as_array().map(Vec::len), Some(listed), "{after}");
    listed
}

/// Chunks under their names.
fn chunks(sandbox: &Sandbox) -> usize {
    let list = "find seed/snapshots/chunks -type f ! -name '.*' | wc -l";
    let output = sandbox.other_command("/bin/sh").args(["-c", list]).output().expect("sh");
    sandbox.ended(&[list], output).stdout.trim().parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn f29_a_store_that_cannot_be_written_fails_the_run_and_shows_no_half_of_it() {
    if !harness::require("strace", strace::is_here()) {
        return;
    }
    let database = source().await;
    for (calls, error) in CALLS {
        for number in 1..MOST {
            if number > 2 && !harness::full() {
                break;
            }
            let sandbox = project(&database);
            let (run, hit) = strace::failing(&sandbox, calls, error, Some(number)).run(&CREATE);
            let what = format!("{error} at number {number} of {calls}");
            if hit.is_empty() {
                run.succeeds();
                break;
            }
            // A folder's own fsync may fail: some file systems have none.
            if run.code != Some(0) {
                // The project's own folder is made on the way as well.
                let of_state = run.stderr.contains("/.seedbed");
                let code = if of_state { 5 } else { 9 };
                assert_eq!(run.code, Some(code), "{what}: {}", run.stderr);
                assert!(of_state || run.stderr.contains("seed/snapshots"), "{}", run.stderr);
                assert_eq!(whole(&sandbox, &what), 0, "{what}");
            }
            let before = whole(&sandbox, &what);
            sandbox.run(&CREATE).succeeds();
            assert_eq!(whole(&sandbox, &what), before + 1, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f01_a_job_that_is_killed_leaves_nothing_visible_and_the_next_one_goes_on() {
    if !harness::require("strace", strace::is_here()) {
        return;
    }
    let database = source().await;
    for (calls, _) in CALLS {
        for number in 1..MOST {
            if number > 2 && !harness::full() {
                break;
            }
            let sandbox = project(&database);
            let (run, _) = strace::killed_at(&sandbox, calls, number).run(&CREATE);
            if run.code == Some(0) {
                break;
            }
            let what = format!("killed at number {number} of {calls}");
            let before = whole(&sandbox, &what);
            assert!(before <= 1, "{what}");
            let stored = chunks(&sandbox);
            let run = sandbox.run(&[&CREATE[..], &["--json"]].concat()).succeeds();
            assert_eq!(whole(&sandbox, &what), before + 1, "{what}");
            // What lies under its name is not stored again, but for the schema's archive, which holds
            // the time at which it was made.
            let run = run.json();
            let reused =
                run["reused_objects"].as_u64().and_then(|count| usize::try_from(count).ok());
            assert!(reused >= Some(stored.saturating_sub(1)), "{what}: {run}");
        }
    }
}
