//! `.seedbed/` on a disk that fails, and under a program that is killed: what is remembered is what
//! was there before or what should be there now, and the next run goes on from it.

use crate::harness::{self, Sandbox, strace};

/// Calls by which a file gets on the disk and under its name.
const CALLS: [(&str, &str); 2] =
    [("fsync,fdatasync", "EIO"), ("rename,renameat,renameat2", "ENOSPC")];

/// Far more than a run makes: reached only if numbers were not heeded.
const MOST: usize = 50;

fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    let bin_dir = harness::postgres::newest_bin_dir();
    sandbox.write(
        "conf/dev.toml",
        format!("[engine]\nkind = \"native\"\nbin_dir = \"{}\"\n", bin_dir.display()),
    );
    sandbox.write("sql/V1__machine.sql", "create table machine (machine_id int primary key);\n");
    sandbox
}

/// The state, if there is any, is one that a program can read.
#[track_caller]
fn is_parseable(sandbox: &Sandbox, after: &str) {
    let path = sandbox.project().join(".seedbed/state.json");
    let Ok(text) = std::fs::read(&path) else { return };
    match serde_json::from_slice::<serde_json::Value>(&text) {
        Ok(state) => assert_eq!(state["format"], 1, "{after}"),
        Err(error) => panic!("{after}: {error}: {}", String::from_utf8_lossy(&text)),
    }
}

#[track_caller]
fn goes_on(sandbox: &Sandbox) {
    sandbox.run(&["up", "--seed", "none"]).succeeds();
    let left: Vec<String> = sandbox
        .project()
        .join(".seedbed")
        .read_dir_utf8()
        .expect("the state is there")
        .map(|entry| entry.expect("readable").file_name().to_owned())
        .filter(|name| name.starts_with(".tmp"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "nothing half written stays");
}

#[test]
fn f29_state_that_cannot_be_written_is_old_or_new_and_the_run_says_so() {
    if !harness::require("strace", strace::is_here()) {
        return;
    }
    for (calls, error) in CALLS {
        for number in 1..MOST {
            let sandbox = project();
            let up = ["up", "--seed", "none"];
            let (run, hit) = strace::failing(&sandbox, calls, error, Some(number)).run(&up);
            if hit.is_empty() {
                assert!(number > 1, "{calls} are made");
                run.succeeds();
                break;
            }
            let what = format!("{error} at number {number} of {calls}");
            assert!(hit.iter().all(|line| line.contains("/.seedbed")), "{what}: {hit:?}");
            is_parseable(&sandbox, &what);
            assert_ne!(run.code, Some(0), "{what}: {}", run.stdout);
            assert_ne!(run.code, Some(1), "{what} is no bug of ours: {}", run.stderr);
            assert!(run.stderr.contains("/.seedbed/"), "{what}: {}", run.stderr);
            goes_on(&sandbox);
        }
    }
}

#[test]
fn a_run_that_is_killed_while_it_writes_its_state_is_taken_up_by_the_next() {
    if !harness::require("strace", strace::is_here()) {
        return;
    }
    for (calls, _) in CALLS {
        for number in 1..MOST {
            // One call of each kind stands for the others, unless everything is to be tried.
            if number > 1 && !harness::full() {
                break;
            }
            let sandbox = project();
            let killed = strace::killed_at(&sandbox, calls, number);
            let (run, _) = killed.run(&["up", "--seed", "none"]);
            if run.code == Some(0) {
                assert!(number > 1, "{calls} are made");
                break;
            }
            is_parseable(&sandbox, &format!("killed at number {number} of {calls}"));
            sandbox.run(&["up", "--seed", "none"]).succeeds();
        }
    }
}

/// The number in a lock file that a killed run has left may be that of another process by now.
#[test]
fn f31_a_lock_counts_while_it_is_held_whatever_number_its_file_names() {
    let sandbox = project();
    let up = ["up", "--seed", "none"];
    sandbox.run(&up).succeeds();
    let path = sandbox.project().join(".seedbed/lock");
    let ours = format!("`seedbed reset`, process {}, since 09:00:00", std::process::id());
    fs_err::write(&path, format!("{ours}\n")).expect("is there");
    sandbox.run(&up).succeeds();

    fs_err::write(&path, format!("{ours}\n")).expect("is there");
    let held = std::fs::File::open(&path).expect("is there");
    held.lock().expect("nobody has it");
    let run = sandbox.run(&up).exits(11);
    let said = format!("error: another run works on this project: {ours}\n");
    assert!(run.stderr.contains(&said), "{}", run.stderr);
    // An environment of its own has a lock of its own.
    sandbox.run(&[&up[..], &["--branch", "other"]].concat()).succeeds();
    drop(held);
    sandbox.run(&up).succeeds();
}
