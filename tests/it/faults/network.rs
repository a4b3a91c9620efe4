//! F14 to F19, F22 and F23: lines that stall, cut and lie, and stores that lack something.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{CREATE, Case, Ended, is_chunk_upload, is_manifest_upload, locked};
use crate::harness::fault_proxy::Seen;
use crate::harness::{self, Fault, FaultProxy, Line, TcpProxy};

/// A proxy that does something else to the first `times` calls that are `wanted`.
fn first(
    case: &Case,
    times: usize,
    wanted: impl Fn(&Seen) -> bool + Send + Sync + 'static,
    fault: impl Fn() -> Fault + Send + Sync + 'static,
) -> FaultProxy {
    first_counted(case, times, wanted, fault).0
}

/// The same, and how many calls were `wanted`.
fn first_counted(
    case: &Case,
    times: usize,
    wanted: impl Fn(&Seen) -> bool + Send + Sync + 'static,
    fault: impl Fn() -> Fault + Send + Sync + 'static,
) -> (FaultProxy, Arc<AtomicUsize>) {
    let hit = Arc::new(AtomicUsize::new(0));
    let counted = hit.clone();
    let proxy = FaultProxy::start(&case.s3.endpoint(), move |seen| {
        if wanted(seen) && counted.fetch_add(1, Ordering::SeqCst) < times {
            fault()
        } else {
            Fault::Pass
        }
    });
    (proxy, hit)
}

fn is_chunk_download(seen: &Seen) -> bool {
    seen.method == "GET" && seen.path.contains("/chunks/")
}

fn is_listing(seen: &Seen) -> bool {
    seen.method == "GET" && seen.path.contains("list-type=2")
}

const UP: &[&str] = &["up", "--fresh", "--seed", "latest"];

#[tokio::test(flavor = "multi_thread")]
async fn f14_a_source_that_falls_silent_is_read_again_on_a_new_line() {
    let case = Case::new().await;
    let upstream = format!("127.0.0.1:{}", case.source.target.port);
    // Every line of the first attempt falls silent in the middle of the rows: only those bring so much.
    let stalls = Arc::new(AtomicUsize::new(2));
    let left = stalls.clone();
    let proxy = TcpProxy::start(&upstream, move |_| {
        if left.load(Ordering::SeqCst) == 0 {
            return Line::Pass;
        }
        Line::Stall { after: 300_000 }
    });
    let mut command = case.prod.command(CREATE);
    command.env("SEEDBED_DATABASE_PORT", proxy.port().to_string());
    command.arg("-v");
    let mut child = command.spawn().expect("the program was built for this suite");
    // The line is mended as soon as the program complains.
    let stderr = child.stderr.take().expect("it is piped");
    let mut said = String::new();
    for line in std::io::BufRead::lines(std::io::BufReader::new(stderr)) {
        let line = line.expect("text");
        if line.contains("has sent nothing for 3 s") {
            stalls.store(0, Ordering::SeqCst);
        }
        said.push_str(&line);
        said.push('\n');
    }
    let mut run = case.finish(child, CREATE);
    run.stderr = said;
    // It holds the silent lines open for the server.
    drop(proxy);
    assert!(
        run.stderr.contains("has sent nothing for 3 s; reading the source again"),
        "{}",
        run.stderr
    );
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_a_source_that_stays_silent_is_given_up_with_its_reason() {
    let case = Case::new().await;
    let upstream = format!("127.0.0.1:{}", case.source.target.port);
    let proxy = TcpProxy::start(&upstream, |_| Line::Stall { after: 300_000 });
    let mut command = case.prod.command(CREATE);
    command.env("SEEDBED_DATABASE_PORT", proxy.port().to_string());
    let run = case.finish(command.spawn().expect("it was built"), CREATE);
    assert!(run.stderr.contains("(3 of 3)"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: check the network to the source"), "{}", run.stderr);
    drop(proxy);
    case.holds(&run, Ended::Failed(4)).await;
    case.reaches_its_goal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_a_store_that_falls_silent_is_asked_again() {
    let case = Case::new().await;
    // Before the answer, of each kind of call; in the middle of a body.
    for wanted in [is_chunk_upload, is_manifest_upload, is_listing] {
        let (proxy, hit) = first_counted(&case, 1, wanted, || Fault::Stall);
        case.source.run("update note set text = text || '.'").await;
        case.source_changed().await;
        let run = case.create(Some(&proxy.endpoint()));
        assert!(hit.load(Ordering::SeqCst) > 0, "{:?}", proxy.seen());
        case.holds(&run, Ended::Reached).await;
    }
    let proxy = first(&case, 1, is_chunk_download, || Fault::StallAnswer { after: 500 });
    let run = case.dev(UP, Some(&proxy.endpoint()));
    let seen = proxy.seen();
    let stalled = seen.iter().find(|call| call.contains("/chunks/") && call.starts_with("GET "));
    let asked = seen.iter().filter(|call| Some(*call) == stalled).count();
    assert_eq!(asked, 2, "the rest of it is asked for: {seen:?}");
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f15_a_tenth_of_all_calls_refused_costs_time_and_nothing_else() {
    let case = Case::new().await;
    let busy = |status, body| {
        FaultProxy::start(&case.s3.endpoint(), move |seen| {
            if seen.number % 10 == 3 { Fault::Answer { status, body } } else { Fault::Pass }
        })
    };
    for (status, body) in
        [(503, "<Error><Code>SlowDown</Code></Error>"), (500, ERROR_BODY), (502, "<html>")]
    {
        case.source.run("update note set text = text || '.'").await;
        case.source_changed().await;
        let proxy = busy(status, body);
        let run = case.create(Some(&proxy.endpoint()));
        case.holds(&run, Ended::Reached).await;
        let run = case.dev(UP, Some(&proxy.endpoint()));
        case.holds(&run, Ended::Reached).await;
        assert!(proxy.seen().len() > 12, "{:?}", proxy.seen());
    }
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f16_uploads_that_are_cut_in_the_middle_are_sent_again() {
    let case = Case::new().await;
    let upstream = case.s3.endpoint().trim_start_matches("http://").to_owned();
    // The first lines end after so many bytes, wherever in a request that is.
    let proxy = TcpProxy::start(&upstream, |number| {
        if number <= 5 { Line::CutUp { after: 40_000 * number } } else { Line::Pass }
    });
    let run = case.create(Some(&proxy.endpoint()));
    assert!(proxy.connections() > 5, "{} lines", proxy.connections());
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f16_a_source_whose_line_is_cut_is_read_again() {
    let case = Case::new().await;
    let upstream = format!("127.0.0.1:{}", case.source.target.port);
    let cut = AtomicUsize::new(0);
    // One of the lines that bring rows; the others bring less.
    let proxy = TcpProxy::start(&upstream, move |_| {
        if cut.fetch_add(1, Ordering::SeqCst) < 8 {
            Line::CutDown { after: 400_000 }
        } else {
            Line::Pass
        }
    });
    let mut command = case.prod.command(CREATE);
    command.env("SEEDBED_DATABASE_PORT", proxy.port().to_string());
    let run = case.finish(command.spawn().expect("it was built"), CREATE);
    assert!(run.stderr.contains("reading the source again"), "{}", run.stderr);
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}

const ERROR_BODY: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
    <Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>";

#[tokio::test(flavor = "multi_thread")]
async fn f17_a_success_that_is_an_error_inside_makes_no_snapshot_without_its_chunks() {
    let case = Case::new().await;
    for wanted in [is_chunk_upload, is_manifest_upload] {
        for (body, words) in
            [(ERROR_BODY, "InternalError"), ("", "it answers 200, but the object is not there")]
        {
            let proxy =
                first(&case, usize::MAX, wanted, move || Fault::Answer { status: 200, body });
            let run = case.create(Some(&proxy.endpoint()));
            assert!(run.stderr.contains(words), "{}", run.stderr);
            case.holds(&run, Ended::Failed(9)).await;
            assert_eq!(case.listed(), Vec::<String>::new());
        }
    }
    // An answer that tells too little, to a call that was done.
    let proxy = FaultProxy::start(&case.s3.endpoint(), |seen| {
        if seen.method == "PUT" { Fault::WithoutHeader("etag") } else { Fault::Pass }
    });
    let run = case.create(Some(&proxy.endpoint()));
    case.holds(&run, Ended::Reached).await;
    case.reaches_its_goal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f17_f18_stored_objects_whose_answers_are_lost_are_found_and_stored_once() {
    let case = Case::new().await;
    // Every upload is done each time, and none is answered before the third.
    let uploads = Mutex::new(HashMap::<String, usize>::new());
    let proxy = FaultProxy::start(&case.s3.endpoint(), move |seen| {
        if seen.method != "PUT" {
            return Fault::Pass;
        }
        let mut uploads = uploads.lock().expect("no thread panics with it");
        let count = uploads.entry(seen.path.clone()).or_default();
        *count += 1;
        if *count < 3 { Fault::LoseAnswer } else { Fault::Pass }
    });
    let run = case.create(Some(&proxy.endpoint()));
    case.holds(&run, Ended::Reached).await;
    let proxy = first(&case, usize::MAX, is_manifest_upload, || Fault::LoseAnswer);
    case.source.run("insert into note values (1, 'one more')").await;
    case.source_changed().await;
    let run = case.create(Some(&proxy.endpoint()));
    case.holds(&run, Ended::Reached).await;
    assert_eq!(case.listed().len(), 2);
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f18_a_manifest_of_somebody_else_under_our_name_is_not_overwritten() {
    let case = Case::new().await;
    let bucket = case.s3.bucket_dir("snapshots");
    let taken = Arc::new(Mutex::new(String::new()));
    let name = taken.clone();
    // At the last moment another writer is there first.
    let proxy = FaultProxy::start(&case.s3.endpoint(), move |seen| {
        if is_manifest_upload(seen) {
            let key = seen.path.split('?').next().unwrap_or_default();
            let key = key.trim_start_matches("/snapshots/").to_owned();
            let path = bucket.join(&key);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("ours");
            std::fs::write(path, "the other one's").expect("the store is the test's own");
            *locked(&name) = key.trim_start_matches("team/").to_owned();
        }
        Fault::Pass
    });
    let run = case.create(Some(&proxy.endpoint()));
    assert!(run.stderr.contains("another snapshot has this name"), "{}", run.stderr);
    let name = locked(&taken).clone();
    assert_eq!(case.read(&name), b"the other one's");
    std::fs::remove_file(case.store_dir().join(&name)).expect("the test's own");
    case.holds(&run, Ended::Failed(9)).await;

    // A conflict that is none: nobody has the name.
    for (status, body) in [
        (412, "<Error><Code>PreconditionFailed</Code></Error>"),
        (409, "<Error><Code>ConditionalRequestConflict</Code></Error>"),
    ] {
        let answer = move || Fault::Answer { status, body };
        let proxy = first(&case, 2, is_manifest_upload, answer);
        let run = case.create(Some(&proxy.endpoint()));
        case.holds(&run, Ended::Reached).await;
        let proxy = first(&case, usize::MAX, is_manifest_upload, answer);
        let run = case.create(Some(&proxy.endpoint()));
        case.holds(&run, Ended::Failed(9)).await;
    }
    case.reaches_its_goal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f19_downloads_that_end_early_are_resumed_and_wrong_ones_never_become_a_database() {
    let case = Case::new().await;
    case.create(None).succeeds();
    let proxy = FaultProxy::start(&case.s3.endpoint(), |seen| {
        if is_chunk_download(seen) { Fault::CutAnswer { after: 70_000 } } else { Fault::Pass }
    });
    let run = case.dev(UP, Some(&proxy.endpoint()));
    case.holds(&run, Ended::Reached).await;
    let ranges = proxy.seen().iter().filter(|call| call.contains("/chunks/")).count();
    assert!(ranges > 8, "{:?}", proxy.seen());

    // What was built before would be cloned.
    case.source.run("update item set label = label || '!'").await;
    case.source_changed().await;
    case.create(None).succeeds();
    let once = first(&case, 1, is_chunk_download, || Fault::FlipBit { at: 100 });
    let run = case.dev(UP, Some(&once.endpoint()));
    case.holds(&run, Ended::Reached).await;

    case.source.run("update item set label = label || '?'").await;
    case.source_changed().await;
    case.create(None).succeeds();
    let always = first(&case, usize::MAX, is_chunk_download, || Fault::FlipBit { at: 100 });
    let run = case.dev(UP, Some(&always.endpoint()));
    assert!(run.stderr.contains("is damaged: `chunks/"), "{}", run.stderr);
    case.holds(&run, Ended::Failed(10)).await;
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f22_credentials_that_expire_in_the_middle_are_told_with_what_to_do() {
    let case = Case::new().await;
    for (body, status, words) in [
        (
            "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>",
            400,
            ["does not accept the credentials: ExpiredToken", "hint: see who you are: `aws sts"],
        ),
        (
            "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference between the request \
             time and the current time is too large.</Message></Error>",
            403,
            ["clock", "hint: set the clock: `timedatectl set-ntp true`"],
        ),
    ] {
        let uploads = AtomicUsize::new(0);
        let proxy = FaultProxy::start(&case.s3.endpoint(), move |seen| {
            let upload = seen.method == "PUT" && uploads.fetch_add(1, Ordering::SeqCst) >= 2;
            if upload { Fault::Answer { status, body } } else { Fault::Pass }
        });
        let run = case.create(Some(&proxy.endpoint()));
        for word in words {
            assert!(run.stderr.contains(word), "no `{word}` in {}", run.stderr);
        }
        case.holds(&run, Ended::Failed(9)).await;
        assert_eq!(case.listed(), Vec::<String>::new());
        // What was uploaded before is found again.
    }
    case.reaches_its_goal().await;

    // In the middle of a restore: the old database stays.
    case.source.run("update item set label = label || ' again'").await;
    case.source_changed().await;
    case.create(None).succeeds();
    let proxy = first(&case, usize::MAX, is_chunk_download, || Fault::Answer {
        status: 400,
        body: "<Error><Code>ExpiredToken</Code></Error>",
    });
    let run = case.dev(UP, Some(&proxy.endpoint()));
    assert!(run.stderr.contains("does not accept the credentials: ExpiredToken"), "{}", run.stderr);
    case.holds(&run, Ended::Failed(9)).await;
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f22_credentials_of_a_process_are_fetched_again_before_they_expire() {
    let mut case = Case::new().await;
    let variables = case.s3.variables();
    // A tool that gives the key for some seconds only, and counts how often it was asked.
    let asked = case.prod.project().join("asked");
    let script = case.prod.project().join("credentials");
    let text = format!(
        "#!/bin/sh\necho asked >> {asked}\n\
         expires=$(date -u -d '+8 seconds' +%Y-%m-%dT%H:%M:%SZ)\n\
         printf '{{\"Version\": 1, \"AccessKeyId\": \"{}\", \"SecretAccessKey\": \"{}\", \"Expiration\": \"%s\"}}' \"$expires\"\n",
        variables[0].1, variables[1].1
    );
    case.prod.write("credentials", text);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).expect("the sandbox is ours");
    case.prod.write("aws", format!("[profile short]\ncredential_process = {script}\n"));
    case.prod.set("AWS_CONFIG_FILE", case.prod.project().join("aws").as_str());
    case.prod.set("AWS_PROFILE", "short");
    case.prod.set("AWS_ACCESS_KEY_ID", "");
    case.prod.set("AWS_SECRET_ACCESS_KEY", "");
    let run = case.create(None);
    case.holds(&run, Ended::Reached).await;
    let asked = std::fs::read_to_string(asked).expect("it was asked").lines().count();
    // How often depends on how long the run takes; once would do for keys that never end.
    assert!(asked > 1, "asked {asked} times");
}

/// A store that says no to what it does not know.
fn poor(header: &'static str, body: &'static str) -> impl Fn(&Seen) -> Fault + Send + Sync {
    move |seen| match seen.headers.contains_key(header) {
        true => Fault::Answer { status: 501, body },
        false => Fault::Pass,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f23_a_store_without_tags_conditions_or_checksums_holds_the_same_snapshot() {
    let case = Case::new().await;
    const NOT_IMPLEMENTED: &str = "<Error><Code>NotImplemented</Code></Error>";
    const NO_CHECKSUM: &str = "<Error><Code>NotImplemented</Code><Message>Header \
        'x-amz-checksum-sha256' with value '' not implemented</Message></Error>";
    const LOUD: &[&str] = &["snapshot", "create", "--env", "prod", "-v"];
    for (header, body, words) in [
        ("x-amz-tagging", NOT_IMPLEMENTED, "gets no tags: "),
        ("if-none-match", NOT_IMPLEMENTED, " knows no If-None-Match"),
        ("x-amz-checksum-sha256", NO_CHECKSUM, " takes no checksums: "),
    ] {
        case.source.run("update note set text = text || ','").await;
        case.source_changed().await;
        let proxy = FaultProxy::start(&case.s3.endpoint(), poor(header, body));
        let run = case.finish(case.start(&case.prod, LOUD, Some(&proxy.endpoint())), LOUD);
        assert!(run.stderr.contains(words), "{header}: {}", run.stderr);
        case.holds(&run, Ended::Reached).await;
        case.restores().await;
        let doctor = case.finish(
            case.start(&case.prod, &["doctor", "--env", "prod"], Some(&proxy.endpoint())),
            &["doctor"],
        );
        let shown = format!("{}{}", doctor.stdout, doctor.stderr);
        assert!(shown.contains("it reads back"), "{header}: {shown}");
    }
    assert_eq!(case.listed().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn f23_a_store_that_ignores_conditions_is_told_by_the_doctor_and_holds_the_same_snapshot() {
    let Some(moto) = harness::moto() else { return };
    let case = Case::new().await;
    let bucket = harness::unique("ignores").replace('_', "-");
    moto.create_bucket(&bucket).await;
    let proxy = FaultProxy::start(&moto.endpoint, |_| Fault::Strip(&["if-none-match"]));
    let url = format!("s3://{bucket}/team");
    let run = |args: &'static [&'static str]| {
        let mut command = case.prod.command(args);
        command.env("SEEDBED_STORE_ENDPOINT", proxy.endpoint()).env("SEEDBED_STORE_URL", &url);
        case.finish(command.spawn().expect("it was built"), args)
    };
    run(CREATE).succeeds();
    run(&["snapshot", "verify", "--env", "prod"]).succeeds();
    let doctor = run(&["doctor", "--env", "prod"]);
    let shown = format!("{}{}", doctor.stdout, doctor.stderr);
    assert!(shown.contains("the store overwrites although told not to"), "{shown}");
    let mut up = case.dev.command(UP);
    up.env("SEEDBED_STORE_ENDPOINT", proxy.endpoint()).env("SEEDBED_STORE_URL", &url);
    let up = case.finish(up.spawn().expect("it was built"), UP);
    case.holds(&up, Ended::Reached).await;
    assert!(case.target_contents().await.is_some());
}
