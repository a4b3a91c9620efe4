//! F20, F21 and F24 to F26: objects that go, change, lie or were made by somebody with bad intentions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use seedbed::snapshot::Manifest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Case, Ended};
use crate::harness::{self, Fault, FaultProxy};

const UP: &[&str] = &["up", "--fresh", "--seed", "latest"];
const UP_SKIPPING: &[&str] = &["up", "--fresh", "--seed", "latest", "--skip-damaged"];
const VERIFY: &[&str] = &["snapshot", "verify", "--env", "prod"];

/// Two snapshots of different rows; a developer has the first one's.
async fn two_snapshots() -> Case {
    let case = Case::new().await;
    case.create(None).succeeds();
    case.restores().await;
    case.source.run("update item set label = label || ' new'").await;
    case.source.run("insert into note values (1, 'new')").await;
    case.source_changed().await;
    case.create(None).succeeds();
    case
}

fn newest_manifest(case: &Case) -> String {
    case.files("snapshots").pop().expect("there is one").into_string()
}

/// Hashes of the objects that only the newest snapshot needs.
fn only_of_the_newest(case: &Case) -> Vec<String> {
    let manifests = case.files("snapshots");
    let objects = |file: &camino::Utf8PathBuf| -> Vec<String> {
        let manifest = Manifest::read(&case.read(file)).expect("whole");
        manifest.chunks().map(seedbed::snapshot::manifest::Chunk::object_name).collect()
    };
    let (newest, older) = manifests.split_last().expect("two");
    let shared: Vec<String> = older.iter().flat_map(objects).collect();
    objects(newest).into_iter().filter(|object| !shared.contains(object)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn f20_a_snapshot_that_expires_between_listing_and_reading_is_passed_over() {
    let case = two_snapshots().await;
    let newest = newest_manifest(&case);
    let (path, name) = (case.store_dir().join(&newest), newest.clone());
    let proxy = FaultProxy::start(&case.s3.endpoint(), move |seen| {
        if seen.method == "GET" && seen.path.contains(&name) {
            // A lifecycle rule is as quick.
            let _ = std::fs::remove_file(&path);
        }
        Fault::Pass
    });
    let run = case.dev(UP, Some(&proxy.endpoint()));
    assert!(!case.store_dir().join(&newest).exists(), "{:?}", proxy.seen());
    case.holds(&run, Ended::Reached).await;
    case.reaches_its_goal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f20_a_chunk_that_expires_while_it_is_loaded_leads_to_the_next_snapshot() {
    let case = two_snapshots().await;
    let gone = only_of_the_newest(&case);
    let saved: Vec<(String, Vec<u8>)> =
        gone.iter().map(|object| (object.clone(), case.read(object))).collect();
    let paths: Vec<_> = gone.iter().map(|object| case.store_dir().join(object)).collect();
    let proxy = FaultProxy::start(&case.s3.endpoint(), move |seen| {
        if seen.method == "GET" && seen.path.contains("/chunks/") {
            for path in &paths {
                let _ = std::fs::remove_file(path);
            }
        }
        Fault::Pass
    });
    let listed = case.listed();
    let run = case.dev(UP, Some(&proxy.endpoint()));
    assert!(run.stderr.contains("it is not in the store"), "{}", run.stderr);
    let hint = format!("hint: take the next one that fits, {}: `--skip-damaged`", listed[1]);
    assert!(run.stderr.contains(&hint), "{}", run.stderr);
    case.survives(&run, Ended::Failed(10)).await;
    let run = case.dev(UP_SKIPPING, Some(&proxy.endpoint()));
    assert!(run.stderr.contains(&format!("taking {} instead", listed[1])), "{}", run.stderr);
    case.survives(&run, Ended::Reached).await;
    for (object, bytes) in saved {
        case.write(object, bytes);
    }
    case.reaches_its_goal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f20_an_object_that_is_written_again_while_it_is_read_is_read_from_the_start() {
    let case = two_snapshots().await;
    let changed = Arc::new(AtomicUsize::new(0));
    let count = changed.clone();
    let proxy = FaultProxy::start(&case.s3.endpoint(), move |seen| {
        if !seen.path.contains("/chunks/") {
            return Fault::Pass;
        }
        if seen.headers.contains_key("if-match") {
            count.fetch_add(1, Ordering::SeqCst);
            let body = "<Error><Code>PreconditionFailed</Code></Error>";
            return Fault::Answer { status: 412, body };
        }
        if count.load(Ordering::SeqCst) == 0 {
            Fault::CutAnswer { after: 5_000 }
        } else {
            Fault::Pass
        }
    });
    let run = case.dev(UP, Some(&proxy.endpoint()));
    assert!(changed.load(Ordering::SeqCst) > 0, "{:?}", proxy.seen());
    case.holds(&run, Ended::Reached).await;
}

/// A listing cut into what stands around its entries, and the entries.
fn taken_apart(xml: &str) -> (String, Vec<String>) {
    let mut frame = String::new();
    let mut entries = Vec::new();
    let mut rest = xml;
    while let Some((before, after)) = rest.split_once("<Contents>") {
        let (entry, after) = after.split_once("</Contents>").expect("well-formed");
        frame.push_str(before);
        entries.push(format!("<Contents>{entry}</Contents>"));
        rest = after;
    }
    (format!("{frame}{rest}"), entries)
}

fn put_together(frame: &str, entries: &[String], next: Option<&str>) -> Bytes {
    let truncated = next.map_or(String::new(), |token| {
        format!("<NextContinuationToken>{token}</NextContinuationToken>")
    });
    let frame =
        frame.replace("<IsTruncated>false</IsTruncated>", "").replace("</ListBucketResult>", "");
    let flag = next.is_some();
    Bytes::from(format!(
        "{frame}<IsTruncated>{flag}</IsTruncated>{truncated}{}</ListBucketResult>",
        entries.concat()
    ))
}

/// Every listing through `change`, which is told its query.
fn listings(
    case: &Case,
    change: impl Fn(&str, String, Vec<String>) -> Bytes + Send + Sync + 'static,
) -> FaultProxy {
    let change = Arc::new(change);
    FaultProxy::start(&case.s3.endpoint(), move |seen| {
        if seen.method != "GET" || !seen.path.contains("list-type=2") {
            return Fault::Pass;
        }
        let (change, path) = (change.clone(), seen.path.clone());
        Fault::Rewrite(Box::new(move |answer| {
            let (frame, entries) = taken_apart(&String::from_utf8_lossy(&answer));
            change(&path, frame, entries)
        }))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn f21_listings_in_pages_with_repetitions_and_gaps_give_valid_choices() {
    let case = two_snapshots().await;
    let listed = case.listed();
    let ids = |proxy: &FaultProxy| {
        let args: &[&str] = &["snapshot", "list", "--json"];
        let list = case.dev(args, Some(&proxy.endpoint())).succeeds().json();
        let rows = list["result"].as_array().expect("a list").clone();
        rows.iter().filter_map(|row| row["id"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    // Each entry twice, in three pages, the second of them empty.
    let proxy = listings(&case, |path, frame, entries| {
        let (first, rest) = entries.split_at(entries.len() / 2);
        match path {
            path if path.contains("page-three") => {
                put_together(&frame, &[rest, first, rest].concat(), None)
            }
            path if path.contains("page-two") => put_together(&frame, &[], Some("page-three")),
            _ => put_together(&frame, &[first, first].concat(), Some("page-two")),
        }
    });
    assert_eq!(ids(&proxy), listed);
    let run = case.dev(UP, Some(&proxy.endpoint()));
    case.holds(&run, Ended::Reached).await;
    let calls = proxy.seen();
    assert!(calls.iter().any(|call| call.contains("page-three")), "{calls:?}");
    // The newest is hidden: the one before it is valid.
    let proxy = listings(&case, |_, frame, mut entries| {
        entries.pop();
        put_together(&frame, &entries, None)
    });
    assert_eq!(ids(&proxy), listed[1..]);
    let run = case.dev(UP, Some(&proxy.endpoint()));
    case.holds(&run, Ended::Reached).await;
    case.reaches_its_goal().await;
}

/// Makes everything in the store as old as if it had been written days ago.
fn age(case: &Case) {
    for file in case.files("") {
        let file = std::fs::File::options().append(true).open(case.store_dir().join(file));
        let days = std::time::Duration::from_secs(3 * 24 * 3600);
        let then = std::time::SystemTime::now() - days;
        file.expect("it was listed").set_modified(then).expect("the store is the test's own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f21_listings_that_hide_a_tenth_never_make_prune_remove_what_is_needed() {
    let conf = "[retention]\nkeep = 20\n";
    let case = Case::on(harness::server(), super::SHOP, conf).await;
    for round in 0..4 {
        case.source.run(&format!("update item set label = 'round {round} ' || item_id")).await;
        case.create(None).succeeds();
    }
    // One that nothing needs any more, so that there is something to remove.
    let newest = newest_manifest(&case);
    let nameless = only_of_the_newest(&case);
    std::fs::remove_file(case.store_dir().join(&newest)).expect("the test's own");
    case.source_changed().await;
    let before = case.listed();

    let state = AtomicU64::new(0x9E37_79B9_7F4A_7C15);
    let proxy = listings(&case, move |_, frame, mut entries| {
        entries.retain(|_| {
            let step = |mut next: u64| {
                next ^= next << 13;
                next ^= next >> 7;
                next ^= next << 17;
                Some(next)
            };
            let before = state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step);
            !before.expect("each step gives a number").is_multiple_of(10)
        });
        put_together(&frame, &entries, None)
    });
    let left = || nameless.iter().filter(|object| case.store_dir().join(object).exists()).count();
    let prune: &[&str] = &["snapshot", "prune", "--yes", "--env", "prod"];
    // Which entries are hidden depends on the order of the listings, so it is not known which round
    // is the first to see enough of the store: at least so many, and then until it has.
    let at_least = if harness::full() { 40 } else { 6 };
    for round in 0..200 {
        if round >= at_least && left() == 0 {
            break;
        }
        let child = case.start(&case.prod, prune, Some(&proxy.endpoint()));
        let run = case.finish(child, prune);
        let ended = match run.code {
            Some(0) => Ended::Reached,
            code => Ended::Failed(code.expect("it ended by itself")),
        };
        case.survives(&run, ended).await;
        age(&case);
    }
    assert_eq!(case.listed(), before);
    case.store_is_whole();
    assert_eq!(left(), 0, "what nothing needs was removed in the end");
    case.reaches_its_goal().await;
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn f24_a_flipped_bit_anywhere_is_found_by_verify_and_by_restore() {
    let case = two_snapshots().await;
    let manifest = newest_manifest(&case);
    let whole = case.read(&manifest);
    Manifest::read(&whole).expect("whole");
    // Every bit of the manifest.
    for bit in 0..whole.len() * 8 {
        assert!(Manifest::read(&flipped(&whole, bit)).is_err(), "bit {bit} of the manifest");
    }
    let bits =
        |size: usize, count: usize| (0..count).map(move |at| (size * 8 - 1) * at / (count - 1));
    for bit in bits(whole.len(), if harness::full() { 40 } else { 4 }) {
        case.write(&manifest, flipped(&whole, bit));
        let run = case.prod.run(VERIFY);
        assert!(run.stderr.contains(&manifest), "bit {bit}: {}", run.stderr);
        case.ends(&run, Ended::Failed(10));
    }
    let run = case.dev(UP, None);
    assert!(run.stderr.contains(&manifest), "{}", run.stderr);
    case.survives(&run, Ended::Failed(10)).await;
    case.write(&manifest, &whole);

    let objects = only_of_the_newest(&case);
    for (number, object) in objects.iter().enumerate() {
        let whole = case.read(object);
        for bit in bits(whole.len(), if harness::full() { 25 } else { 2 }) {
            case.write(object, flipped(&whole, bit));
            let run = case.prod.run(VERIFY);
            assert!(run.stderr.contains(object), "bit {bit} of {object}: {}", run.stderr);
            case.ends(&run, Ended::Failed(10));
        }
        if harness::full() || number < 2 {
            // What an earlier run found whole would be taken from there.
            let _ = std::fs::remove_dir_all(case.dev.cache());
            let run = case.dev(UP, None);
            assert!(run.stderr.contains(object), "{}", run.stderr);
            case.survives(&run, Ended::Failed(10)).await;
        }
        case.write(object, &whole);
    }
    case.restores().await;
}

/// The newest manifest as anybody can write it who may write to the store: format 1 has no checksum.
fn document(case: &Case) -> Value {
    let mut document: Value =
        serde_json::from_slice(&case.read(newest_manifest(case))).expect("JSON");
    let fields = document.as_object_mut().expect("an object");
    fields.remove("checksum");
    fields.insert("format".to_owned(), json!(1));
    document
}

#[tokio::test(flavor = "multi_thread")]
async fn f25_a_manifest_that_lies_is_refused_with_the_reason_and_nothing_outside_is_read() {
    let case = two_snapshots().await;
    let manifest = newest_manifest(&case);
    let whole = case.read(&manifest);
    let older = case.listed().pop().expect("two");
    let honest = document(&case);
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut document = honest.clone();
        edit(&mut document);
        document.to_string().into_bytes()
    };
    let first_chunk = "/tables/0/chunks/0";
    let chunk = |field: &str, value: Value| {
        let pointer = format!("{first_chunk}/{field}");
        edited(&|document| {
            *document.pointer_mut(&pointer).expect("a chunk has it") = value.clone();
        })
    };
    let text = honest.to_string();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "an extra field",
            edited(&|document| document["sudo"] = json!(true)),
            "unknown field `sudo`",
        ),
        (
            "a missing field",
            edited(&|document| {
                document.as_object_mut().expect("an object").remove("tables");
            }),
            "missing field `tables`",
        ),
        (
            "a key twice",
            text.replacen('{', "{\"database\":\"x\",", 1).into_bytes(),
            "duplicate field",
        ),
        ("a way out", chunk("object", json!("../../../../../etc/passwd")), "the hash"),
        (
            "a way out in the middle",
            chunk("object", json!(format!("aa/../{}", "b".repeat(58)))),
            "the hash",
        ),
        ("a negative size", chunk("stored_size", json!(-1)), "not a manifest"),
        ("a size beyond all numbers", chunk("offset", json!(u64::MAX)), "the size of chunk"),
        ("a huge plain size", chunk("plain_size", json!(1_u64 << 40)), "the size of chunk"),
        (
            "a schema of many gigabytes",
            edited(&|document| {
                let mut chunk = document["schema_archive"][0].clone();
                chunk["plain_size"] = json!(1_u64 << 30);
                document["schema_archive"] = json!(vec![chunk; 5]);
            }),
            "the size of the schema archive",
        ),
        ("rows that are not there", chunk("rows", json!(5)), "its chunks have another number"),
        (
            "another's id",
            edited(&|document| document["id"] = json!("0123456789abcdef")),
            "belongs to the name",
        ),
        ("a path as its id", edited(&|document| document["id"] = json!("../../../../x")), "the id"),
        ("brackets without end", b"[".repeat(1_000_000), "not a manifest"),
        ("nothing", Vec::new(), "not a manifest"),
        ("no text", vec![0xff; 100], "not a manifest"),
        ("half of it", whole[..whole.len() / 2].to_vec(), "damaged"),
    ];
    let proxy = FaultProxy::start(&case.s3.endpoint(), |_| Fault::Pass);
    let endpoint = proxy.endpoint();
    let refuses = async |what: &str, words: &str, endpoint: Option<&str>| {
        let run = case.dev(UP, endpoint);
        assert!(run.stderr.contains(words), "{what}: no `{words}` in {}", run.stderr);
        let hint = format!("take the next one that fits, {older}: `--skip-damaged`");
        assert!(run.stderr.contains(&hint), "{what}: {}", run.stderr);
        case.ends(&run, Ended::Failed(10));
    };
    for (what, bytes, words) in cases {
        case.write(&manifest, bytes);
        refuses(what, words, Some(&endpoint)).await;
    }
    // One GB of it: refused by what the store says of its size.
    let file = std::fs::File::create(case.store_dir().join(&manifest)).expect("the test's own");
    file.set_len(1 << 30).expect("a sparse file");
    drop(file);
    // The proxy would hold all of it in memory.
    refuses("a gigabyte", "at most 67108864 are read", None).await;

    // Of a newer program: not damaged, only not for us.
    case.write(&manifest, edited(&|document| document["format"] = json!(3)));
    let why = case.dev(&["snapshot", "why", "--json"], Some(&proxy.endpoint())).succeeds().json();
    let reason = why["snapshots"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("format 3"), "{why}");
    // An object that is not there.
    let nowhere = "0".repeat(64);
    case.write(&manifest, chunk("object", json!(nowhere)));
    let run = case.dev(UP, Some(&proxy.endpoint()));
    assert!(
        run.stderr.contains(&nowhere) && run.stderr.contains("not in the store"),
        "{}",
        run.stderr
    );
    case.survives(&run, Ended::Failed(10)).await;

    let outside =
        |call: &String| !call.contains("/snapshots/team/") && !call.contains("prefix=team%2F");
    let outside: Vec<String> = proxy.seen().into_iter().filter(outside).collect();
    assert_eq!(outside, Vec::<String>::new());
    case.write(&manifest, &whole);
    case.restores().await;
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A zstd frame of `blocks` times 128 KiB of one byte, four bytes of it for each.
fn bomb(window_descriptor: u8, blocks: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, window_descriptor];
    for block in 1..=blocks {
        let last = u32::from(block == blocks);
        let header = (128 * 1024) << 3 | 1 << 1 | last;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b'\n');
    }
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_frames_that_unpack_to_more_than_they_say_cost_no_more_than_they_say() {
    let case = two_snapshots().await;
    let manifest = newest_manifest(&case);
    let whole = case.read(&manifest);
    let plain = b"1\tone\n".repeat(1000);
    let frame = zstd::encode_all(&plain[..], 3).expect("in memory");
    let mut garbage = frame.clone();
    garbage.extend_from_slice(b"and something behind it");
    // 128 KiB in the window descriptor, and 2 GiB.
    let (modest, huge) = (7 << 3, 21 << 3);
    for (what, stored, words) in [
        ("100 GB in 3 MB", bomb(modest, 800_000), "more or less than the 6000 bytes"),
        ("a window of 2 GiB", bomb(huge, 10), "cannot be decompressed"),
        ("garbage behind", garbage, "cannot be decompressed"),
        ("cut short", frame[..frame.len() - 5].to_vec(), "cannot be decompressed"),
        ("no frame", b"hello".to_vec(), "cannot be decompressed"),
    ] {
        let object = sha256(&stored);
        let mut document = document(&case);
        let table = &mut document["tables"][0];
        table["rows"] = json!(1000);
        table["bytes"] = json!(plain.len());
        table["chunks"] = json!([{
            "object": object,
            "offset": 0,
            "stored_size": stored.len(),
            "plain_size": plain.len(),
            "plain_hash": sha256(&plain),
            "rows": 1000,
        }]);
        let name = format!("chunks/{}/{object}", &object[..2]);
        case.write(&name, &stored);
        case.write(&manifest, document.to_string());
        let run = case.prod.run(VERIFY);
        assert!(
            run.stderr.contains(&object) && run.stderr.contains(words),
            "{what}: {}",
            run.stderr
        );
        case.ends(&run, Ended::Failed(10));
        let run = case.dev(UP, None);
        assert!(
            run.stderr.contains(&object) && run.stderr.contains(words),
            "{what}: {}",
            run.stderr
        );
        case.survives(&run, Ended::Failed(10)).await;
        std::fs::remove_file(case.store_dir().join(&name)).expect("the test's own");
        case.write(&manifest, &whole);
    }
    case.restores().await;
}
