//! The chunk cache as runs use it: bounded, shared, and never the reason for a failure.

use std::process::Command;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use seedbed::store::cache::Cache;

use super::{chunk_name, folder, noise};
use crate::harness::{self, Sandbox, Server};

/// A server that the sample snapshot was not taken from, for this file's tests.
fn target() -> &'static Server {
    static SERVER: std::sync::OnceLock<Server> = std::sync::OnceLock::new();
    SERVER.get_or_init(|| Server::start(&[]))
}

fn example() -> Sandbox {
    harness::example(target(), &harness::unique("factory"))
}

/// Names and sizes of what lies in a cache folder, files that were never finished included.
fn held(cache: &Utf8Path) -> Vec<(String, u64)> {
    let mut files = Vec::new();
    let mut folders = vec![cache.join("chunks")];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir_utf8().into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path().to_owned());
            } else {
                let size = entry.metadata().expect("a file").len();
                files.push((entry.file_name().to_owned(), size));
            }
        }
    }
    files.sort();
    files
}

/// Objects of the committed sample snapshot.
const SAMPLE_OBJECTS: usize = 5;

/// Fails unless the run loaded the snapshot's rows (and cloned no template).
#[track_caller]
fn loads(run: harness::Run) {
    let run = run.succeeds();
    let steps = run.json()["steps"].as_array().expect("steps").clone();
    let names: Vec<&str> = steps.iter().filter_map(|step| step["name"].as_str()).collect();
    assert!(names.iter().any(|name| name.starts_with("load ")), "{names:?}");
}

#[test]
fn a_run_fills_the_cache_and_the_next_reads_it_though_the_store_is_gone() {
    let sandbox = example();
    loads(sandbox.run(&["up", "--json"]));
    assert_eq!(held(&sandbox.cache()).len(), SAMPLE_OBJECTS);

    // A damaged one is fetched again, and is whole afterwards.
    let (name, size) = held(&sandbox.cache()).remove(0);
    let path = sandbox.cache().join("chunks").join(&name[..2]).join(&name);
    std::fs::write(&path, vec![0; usize::try_from(size).expect("small")]).expect("ours");
    // Another database: its own would be cloned from the frozen template.
    let mut second = example();
    second.set("SEEDBED_CACHE_DIR", sandbox.cache().as_str());
    loads(second.run(&["up", "--json"]));
    let whole = std::fs::read(&path).expect("there again");
    assert_eq!(chunk_name(&whole), format!("chunks/{}/{name}", &name[..2]));

    let mut third = example();
    third.set("SEEDBED_CACHE_DIR", sandbox.cache().as_str());
    std::fs::remove_dir_all(third.project().join("seed/snapshots/chunks")).expect("ours");
    loads(third.run(&["up", "--json"]));
}

#[test]
fn what_nobody_read_for_long_is_removed_when_a_run_has_ended() {
    let sandbox = example();
    let old = sandbox.cache().join("chunks/aa").join("a".repeat(64));
    std::fs::create_dir_all(old.parent().expect("a folder")).expect("ours");
    std::fs::write(&old, "from a snapshot of last year").expect("ours");
    let file = std::fs::File::options().append(true).open(&old).expect("ours");
    let year = std::time::Duration::from_secs(365 * 24 * 3600);
    file.set_modified(std::time::SystemTime::now() - year).expect("ours");
    sandbox.run(&["up"]).succeeds();
    assert!(!old.exists(), "nobody read it for a year");
    assert_eq!(held(&sandbox.cache()).len(), SAMPLE_OBJECTS);
}

#[test]
fn what_a_run_leaves_in_the_cache_is_what_the_configuration_says() {
    let bytes =
        |sandbox: &Sandbox| held(&sandbox.cache()).iter().map(|(_, size)| size).sum::<u64>();
    let whole = example();
    loads(whole.run(&["up", "--json"]));
    let limit = bytes(&whole) / 2;
    let small = example();
    small.write(
        "conf/seedbed.toml",
        format!("{}\n[restore]\ncache_bytes = {limit}\n", small.read("conf/seedbed.toml")),
    );
    loads(small.run(&["up", "--json"]));
    assert!(bytes(&small) <= limit, "{:?}", held(&small.cache()));
    assert!(held(&small.cache()).len() < SAMPLE_OBJECTS);
    let wrong = small.run(&["up", "--set", "restore.cache_bytes=much"]).exits(3);
    assert!(wrong.stderr.contains("a number of bytes, as `16MiB`"), "{}", wrong.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_holds_while_two_write_and_a_third_evicts() {
    let dir = folder();
    let root = Utf8PathBuf::from_path_buf(dir.path().to_owned()).expect("UTF-8");
    let objects: Vec<(String, Bytes)> = (0..60)
        .map(|number| {
            let bytes = noise(number, 10_000);
            let name = chunk_name(&bytes)["chunks/aa/".len()..].to_owned();
            (name, bytes)
        })
        .collect();
    let write = |cache: Cache| {
        let objects = objects.clone();
        tokio::spawn(async move {
            for (name, bytes) in &objects {
                cache.put(name, bytes).await;
                // Whatever is there is right; what is not is only fetched again.
                if let Some(found) = cache.get(name).await {
                    assert!(found == *bytes);
                }
                cache.evict().await;
            }
        })
    };
    let limit = 100_000;
    let writers = [(); 3].map(|()| write(Cache::at(root.join("chunks"), limit)));
    for writer in writers {
        writer.await.expect("no panic");
    }
    let held = held(&root);
    assert!(held.iter().map(|(_, size)| size).sum::<u64>() <= limit, "{held:?}");
    assert!(held.iter().all(|(name, size)| name.len() == 64 && *size == 10_000), "{held:?}");
}

#[test]
fn two_runs_share_a_cache() {
    let (one, mut two) = (example(), example());
    two.set("SEEDBED_CACHE_DIR", one.cache().as_str());
    let children = [&one, &two]
        .map(|sandbox| sandbox.command(&["up", "--json"]).spawn().expect("the program was built"));
    for (sandbox, child) in [&one, &two].into_iter().zip(children) {
        let output = child.wait_with_output().expect("our child");
        loads(sandbox.ended(&["up"], output));
    }
    assert_eq!(held(&one.cache()).len(), SAMPLE_OBJECTS);
}

/// The program with a limit on the size of any file that it writes: a disk that gets full.
fn limited(sandbox: &Sandbox, bytes: u64, args: &[&str]) -> Command {
    let mut command = sandbox.other_command("/usr/bin/prlimit");
    // The signal that goes with the limit would end the process before it sees the error.
    let script = "trap '' XFSZ; exec \"$@\"";
    command
        .arg(format!("--fsize={bytes}"))
        .args(["/bin/sh", "-c", script, "sh", harness::sandbox::PROGRAM])
        .args(args);
    command
}

#[test]
fn f29_a_full_disk_under_the_cache_costs_nothing_but_the_cache() {
    let sandbox = example();
    // The schema archive still fits, the largest chunks do not.
    let output = limited(&sandbox, 70_000, &["up", "--json"]).output().expect("prlimit is there");
    loads(sandbox.ended(&["up"], output));
    let held = held(&sandbox.cache());
    assert!(held.len() < SAMPLE_OBJECTS && !held.is_empty(), "{held:?}");
    assert!(held.iter().all(|(name, _)| name.len() == 64), "nothing half written stays: {held:?}");
}

#[test]
fn f29_a_cache_that_takes_no_name_costs_nothing_but_the_cache() {
    if !harness::require("strace", harness::strace::is_here()) {
        return;
    }
    let sandbox = example();
    let traced = harness::strace::failing(&sandbox, "rename,renameat,renameat2", "ENOSPC", None);
    let (run, hit) = traced.run(&["up", "--json"]);
    loads(run);
    assert!(
        hit.iter().filter(|line| line.contains("/cache/chunks/")).count() >= SAMPLE_OBJECTS,
        "{hit:?}"
    );
    assert_eq!(held(&sandbox.cache()), []);
}

#[test]
fn f29_a_cache_folder_that_cannot_be_one_costs_nothing_but_the_cache() {
    let mut sandbox = example();
    sandbox.write("in-the-way", "a file");
    let place = sandbox.project().join("in-the-way/cache");
    sandbox.set("SEEDBED_CACHE_DIR", place.as_str());
    loads(sandbox.run(&["up", "--json"]));
}
