//! F01: the program is killed at every call that it makes to the store.

use std::cmp::Ordering;
use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc::channel;

use super::{CREATE, Case, Ended, PATIENCE};
use crate::harness::{self, Fault, FaultProxy};

/// When a run is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// The call has come, nothing was done about it.
    BeforeTheCall,
    /// The store has done it, the program does not know.
    AfterTheCall,
}

/// The files of a store and what is in them.
type Files = Vec<(camino::Utf8PathBuf, Vec<u8>)>;

fn files(case: &Case) -> Files {
    case.files("").into_iter().map(|file| (file.clone(), case.read(&file))).collect()
}

fn reset(case: &Case, files: &Files) {
    std::fs::remove_dir_all(case.store_dir()).expect("the store is the test's own");
    for (file, bytes) in files {
        case.write(file, bytes);
    }
}

/// The store's calls of a run that nothing happens to.
fn calls(case: &Case) -> Vec<String> {
    let proxy = FaultProxy::start(&case.s3.endpoint(), |_| Fault::Pass);
    case.create(Some(&proxy.endpoint())).succeeds();
    proxy.seen()
}

/// Kills a run at call `number`; returns whether it came that far.
fn kill(case: &Case, number: usize, when: When) -> Option<harness::Run> {
    let (arrive, arrival) = channel();
    let proxy = FaultProxy::start(&case.s3.endpoint(), move |seen| {
        let arrive = arrive.clone();
        match (seen.number.cmp(&number), when) {
            (Ordering::Less, _) => Fault::Pass,
            (Ordering::Equal, When::BeforeTheCall) => {
                let _ = arrive.send(());
                Fault::Stall
            }
            (Ordering::Equal, When::AfterTheCall) => Fault::Rewrite(Box::new(move |answer| {
                let _ = arrive.send(());
                answer
            })),
            // The kill is on its way.
            (Ordering::Greater, _) => Fault::Stall,
        }
    });
    let mut child = case.start(&case.prod, CREATE, Some(&proxy.endpoint()));
    // A run with two workers may make a call less; it then ends by itself.
    if arrival.recv_timeout(PATIENCE).is_err() {
        let _ = child.kill();
        panic!("call {number} never came: {:?}", proxy.seen());
    }
    child.kill().expect("our own child");
    let output = child.wait_with_output().expect("our own child");
    let was_killed = output.status.signal() == Some(9);
    let run = case.prod.ended(CREATE, output);
    was_killed.then_some(run)
}

#[tokio::test(flavor = "multi_thread")]
async fn f01_a_run_killed_at_any_call_to_the_store_leaves_whole_snapshots_only() {
    let case = Case::new().await;
    // Some more chunks, and so calls to be killed at.
    case.source
        .run("insert into item (label, pad) select label, pad from item, (values (1), (2)) twice")
        .await;
    case.source_changed().await;
    case.create(None).succeeds();
    let older = case.listed();
    let store = files(&case);
    // Most chunks are new, one is shared with the older snapshot.
    case.source.run("update item set label = label || ' new'").await;
    case.source_changed().await;
    let calls = calls(&case);
    assert!((12..40).contains(&calls.len()), "{calls:#?}");
    harness::say(&format!("{} calls to the store", calls.len()));

    let count = calls.len();
    let sample = [2, count / 2, count - 2, count - 1];
    let numbers: Vec<usize> = if harness::full() { (1..=count).collect() } else { sample.into() };
    for number in numbers {
        for when in [When::BeforeTheCall, When::AfterTheCall] {
            reset(&case, &store);
            let Some(run) = kill(&case, number, when) else {
                harness::say(&format!("call {number} was the last of its run"));
                continue;
            };
            harness::say(&format!("killed at call {number} ({when:?}): {}", calls[number - 1]));
            case.holds(&run, Ended::Killed).await;
            let listed = case.listed();
            assert!(listed.ends_with(&older) && listed.len() <= 2, "{listed:?}");
            case.create(None).succeeds();
            case.store_is_whole();
            assert_eq!(case.listed().len(), listed.len() + 1);
        }
    }
    case.restores().await;
}
