//! What every integration test stands on.
//!
//! [`server`] is one real PostgreSQL for the whole process, [`Sandbox`] a project folder with a
//! cleared environment in which the built program runs, [`s3`] an S3 server over HTTP on loopback.
//! [`watchdog`] ends whatever would outlive the process, however the process dies.
//! A test never skips silently: what cannot run says so through [`require`].

pub mod container;
pub mod daemon_proxy;
pub mod disk;
pub mod example;
pub mod fault_proxy;
pub mod garage;
pub mod moto;
pub mod postgres;
pub mod s3;
pub mod sandbox;
pub mod second_daemon;
pub mod strace;
pub mod tcp_proxy;
pub mod watchdog;

pub use container::container;
pub use disk::disk;
pub use example::example;
pub use fault_proxy::{Fault, FaultProxy, Gate};
pub use garage::Garage;
pub use moto::{Moto, moto};
pub use postgres::{Server, TestDatabase, server};
pub use s3::{S3Server, s3};
pub use sandbox::{Run, Sandbox};
pub use tcp_proxy::{Line, TcpProxy};

/// Whether a test that needs `what` can go on. If it is not `there`, says so, and fails the test
/// when `SEEDBED_TEST_REQUIRE=1` (as in CI, where everything has to be there).
pub fn require(what: &str, there: bool) -> bool {
    if !there {
        say(&format!("cannot run: {what} is not there"));
        assert!(variable("SEEDBED_TEST_REQUIRE") != Some("1".to_owned()), "{what} is required");
    }
    there
}

/// One line for whoever reads the test's output.
#[expect(clippy::disallowed_macros, reason = "libtest captures what tests print")]
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// A variable of the test process; an empty one counts as unset.
#[expect(clippy::disallowed_methods, reason = "the harness is set up by variables")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A name that no other test of this or another process uses: for roles, buckets, containers.
pub fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // None is the beginning of another: filters of Docker look for parts of names.
    format!("{prefix}_{}_{number:05}", std::process::id())
}

/// A Python program of `scripts/python-tools.txt`: where `scripts/test` installed it, else in `PATH`.
pub fn python_tool(name: &str) -> Option<camino::Utf8PathBuf> {
    let installed = camino::Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/tools/python/bin")
        .join(name);
    let path = variable("PATH").unwrap_or_default();
    let in_path = path.split(':').map(|dir| camino::Utf8Path::new(dir).join(name));
    std::iter::once(installed).chain(in_path).find(|file| file.exists())
}

/// Whether what takes long runs too (`scripts/test --full`).
pub fn full() -> bool {
    variable("SEEDBED_TEST_FULL") == Some("1".to_owned())
}

/// How many steps a sweep that takes long goes on at a time: this many in the suite, this many with `--full`, one with
/// `scripts/test --every`.
pub fn stride(suite: usize, full: usize) -> usize {
    match (variable("SEEDBED_TEST_EVERY").as_deref(), self::full()) {
        (Some("1"), _) => 1,
        (_, true) => full,
        (_, false) => suite,
    }
}

/// The folder of real databases, which only `--full` runs against (it then demands the folder).
pub fn datasets() -> Option<camino::Utf8PathBuf> {
    if !full() {
        say("real databases are for `scripts/test --full`");
        return None;
    }
    let folder = variable("SEEDBED_DATASETS");
    require("the folder of SEEDBED_DATASETS", folder.is_some());
    folder.map(camino::Utf8PathBuf::from)
}
