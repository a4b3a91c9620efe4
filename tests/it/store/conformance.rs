//! The same cases over every kind of store.

use bytes::Bytes;
use camino::Utf8PathBuf;
use futures_util::{StreamExt, TryStreamExt, future, stream};
use seedbed::config::{Checksums, S3Config, StoreConfig};
use seedbed::store::{Entry, Error, Put, Store};

use super::{Told, chunk_name, create, folder, noise, open, open_s3, open_with};
use crate::harness::{self, Fault, FaultProxy, Moto, S3Server};

/// More than the 1,000 that S3 gives in one answer.
const MANY: usize = 1_030;

/// Larger than a chunk of the default size.
const LARGE: usize = 20 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_holds_the_contract_of_a_store() {
    let dir = folder();
    let path = Utf8PathBuf::from_path_buf(dir.path().join("not/yet/made")).expect("UTF-8");
    hold_the_contract(&open(StoreConfig::Dir(path.clone())).await).await;
    one_of_many_wins(&open(StoreConfig::Dir(path)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poor_s3_server_holds_the_contract_of_a_store() {
    let server = harness::s3();
    hold_the_contract(&open_s3(server.config("snapshots", "team/a")).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rich_s3_server_holds_the_contract_of_a_store() {
    let Some((server, bucket)) = bucket().await else { return };
    let store = open_s3(server.config(&bucket, "team/a")).await;
    hold_the_contract(&store).await;
    one_of_many_wins(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_s3_server_holds_the_contract_of_a_store() {
    let Some(server) = harness::Garage::start() else { return };
    let store = open_s3(server.config("team/a")).await;
    // It overwrites although it is told not to: unique names make that harmless, see `Store::probe`.
    hold_all_but_the_given_names(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_without_prefix_and_without_checksums_holds_the_contract_of_a_store() {
    let server = harness::s3();
    let config = S3Config {
        checksums: Checksums::RequiredOnly,
        path_style: false,
        ..server.config("snapshots", "")
    };
    hold_the_contract(&open_s3(config).await).await;
}

/// A bucket of its own on the shared server.
async fn bucket() -> Option<(&'static Moto, String)> {
    let server = harness::moto()?;
    let bucket = harness::unique("bucket").replace('_', "-");
    server.create_bucket(&bucket).await;
    Some((server, bucket))
}

async fn hold_the_contract(store: &Store) {
    hold_all_but_the_given_names(store).await;
    a_name_is_given_once(store).await;
    it_can_be_probed_and_nothing_stays(store).await;
}

async fn hold_all_but_the_given_names(store: &Store) {
    what_is_not_there_is_missing(store).await;
    what_was_put_comes_back(store).await;
    a_wrong_size_is_put_right(store).await;
    ranges_end_where_the_object_does(store).await;
    a_prefix_ends_at_its_slash(store).await;
    listings_are_whole_whatever_their_length(store).await;
    large_objects_pass(store).await;
    equal_objects_at_once_are_one(store).await;
    names_that_point_elsewhere_are_refused(store).await;
}

async fn names(store: &Store, prefix: &str) -> Vec<String> {
    let entries = store.list(prefix).await.expect("listed");
    entries.into_iter().map(|entry| entry.name).collect()
}

async fn what_is_not_there_is_missing(store: &Store) {
    assert_eq!(names(store, "").await, Vec::<String>::new());
    assert_eq!(names(store, "snapshots/").await, Vec::<String>::new());
    assert_eq!(store.size("chunks/aa/aa").await.expect("asked"), None);
    for error in [
        store.get("chunks/aa/aa", 100).await.expect_err("nothing is there"),
        store.get_range("chunks/aa/aa", 0, 10).await.expect_err("nothing is there"),
    ] {
        assert!(matches!(error, Error::Missing { .. }), "{error:?}");
        assert_eq!(error.exit() as u8, 9);
        assert_eq!(error.to_string(), format!("`chunks/aa/aa` is not in `{}`", store.describe()));
    }
    store.delete("chunks/aa/aa").await.expect("that there is none is fine");
}

async fn what_was_put_comes_back(store: &Store) {
    for bytes in [Bytes::new(), Bytes::from_static(b"x"), noise(1, 100_000)] {
        let name = chunk_name(&bytes);
        assert_eq!(store.put(&name, bytes.clone()).await.expect("put"), Put::Created);
        assert_eq!(store.put(&name, bytes.clone()).await.expect("put again"), Put::Exists);
        assert_eq!(store.size(&name).await.expect("asked"), Some(bytes.len() as u64));
        assert_eq!(store.get(&name, bytes.len() as u64).await.expect("got"), bytes);
        let listed = store.list(&name).await.expect("listed");
        let [Entry { name: found, size, modified: Some(modified) }] = listed.as_slice() else {
            panic!("{listed:?}");
        };
        assert_eq!((found, *size), (&name, bytes.len() as u64));
        let age = jiff::Timestamp::now().duration_since(*modified).as_secs();
        assert!((-60..60).contains(&age), "written {age} s ago");
        store.put_again(&name, bytes.clone()).await.expect("put over itself");
        assert_eq!(store.get(&name, bytes.len() as u64).await.expect("got"), bytes);
        if let Some(limit) = (bytes.len() as u64).checked_sub(1) {
            let error = store.get(&name, limit).await.expect_err("it is larger");
            let Error::TooLarge { bytes: found, .. } = error else { panic!("{error:?}") };
            assert_eq!((found, error.exit() as u8), (bytes.len() as u64, 10));
        }
        store.delete(&name).await.expect("deleted");
        assert_eq!(store.size(&name).await.expect("asked"), None);
    }
}

/// An upload that an older tool or a copy cut short is there with another size.
async fn a_wrong_size_is_put_right(store: &Store) {
    let bytes = noise(2, 5_000);
    let name = chunk_name(&bytes);
    assert_eq!(store.put(&name, bytes.slice(..1_000)).await.expect("put"), Put::Created);
    assert_eq!(store.put(&name, bytes.clone()).await.expect("put"), Put::Created);
    assert_eq!(store.get(&name, 10_000).await.expect("got"), bytes);
    store.delete(&name).await.expect("deleted");
}

async fn ranges_end_where_the_object_does(store: &Store) {
    let bytes = noise(3, 10_000);
    create(store, "chunks/ra/nges", bytes.clone()).await;
    for (offset, length) in
        [(0, 10_000), (0, 1), (9_999, 1), (5_000, 2_500), (9_000, 5_000), (10_000, 5), (77_777, 1)]
    {
        let got = store.get_range("chunks/ra/nges", offset as u64, length as u64).await;
        let end = (offset + length).min(bytes.len());
        let wanted = bytes.get(offset..end).unwrap_or_default();
        assert_eq!(got.expect("got"), wanted, "{length} from {offset}");
    }
    assert_eq!(store.get_range("chunks/ra/nges", 5, 0).await.expect("got"), "");
    store.delete("chunks/ra/nges").await.expect("deleted");
}

async fn a_name_is_given_once(store: &Store) {
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    let name = "snapshots/once.json";
    assert_eq!(store.put_new(name, first.clone(), &[]).await.expect("put"), Put::Created);
    assert_eq!(store.put_new(name, second, &[]).await.expect("refused"), Put::Exists);
    assert_eq!(store.get(name, 100).await.expect("got"), first);
    // The answer to the first was lost, say: the same bytes are ours.
    assert_eq!(store.put_new(name, first.clone(), &[]).await.expect("put"), Put::Created);
    store.delete(name).await.expect("deleted");
    let tags = [("schema-version".to_owned(), "1.2".to_owned())];
    assert_eq!(store.put_new(name, first, &tags).await.expect("put"), Put::Created);
    store.delete(name).await.expect("deleted");
}

async fn a_prefix_ends_at_its_slash(store: &Store) {
    let all = ["a", "a/b/c", "a/b", "a-b/c", "ab/c"];
    // A folder cannot hold `a` and `a/b`; nor does anything of ours need both.
    let all = &all[1..];
    let all: Vec<&str> = all.iter().copied().filter(|name| *name != "a/b").collect();
    for name in &all {
        assert_eq!(store.put_new(name, Bytes::new(), &[]).await.expect("put"), Put::Created);
    }
    assert_eq!(names(store, "").await, ["a-b/c", "a/b/c", "ab/c"]);
    assert_eq!(names(store, "a/").await, ["a/b/c"]);
    assert_eq!(names(store, "a").await, ["a-b/c", "a/b/c", "ab/c"]);
    assert_eq!(names(store, "ab/c").await, ["ab/c"]);
    assert_eq!(names(store, "b/").await, Vec::<String>::new());
    for name in &all {
        store.delete(name).await.expect("deleted");
    }
}

async fn listings_are_whole_whatever_their_length(store: &Store) {
    let wanted: Vec<String> = (0..MANY).map(|number| format!("many/{number:05}")).collect();
    let puts = wanted.iter().map(|name| store.put_new(name, Bytes::from_static(b"x"), &[]));
    let puts = stream::iter(puts).buffer_unordered(16).try_collect::<Vec<Put>>().await;
    assert!(puts.expect("put").iter().all(|put| *put == Put::Created));
    assert_eq!(names(store, "many/").await, wanted);
    let deletes = wanted.iter().map(|name| store.delete(name));
    stream::iter(deletes).buffer_unordered(16).try_collect::<Vec<()>>().await.expect("deleted");
    assert_eq!(names(store, "").await, Vec::<String>::new());
}

async fn large_objects_pass(store: &Store) {
    let bytes = noise(4, LARGE);
    let name = chunk_name(&bytes);
    assert_eq!(store.put(&name, bytes.clone()).await.expect("put"), Put::Created);
    assert!(store.get(&name, LARGE as u64).await.expect("got") == bytes);
    let range = store.get_range(&name, 7_000_000, 9_000_000).await.expect("got");
    assert!(range == bytes.slice(7_000_000..16_000_000));
    store.delete(&name).await.expect("deleted");
}

async fn equal_objects_at_once_are_one(store: &Store) {
    let bytes = noise(5, 300_000);
    let name = chunk_name(&bytes);
    let puts = (0..8).map(|_| store.put(&name, bytes.clone()));
    future::try_join_all(puts).await.expect("put");
    assert_eq!(names(store, "chunks/").await, [name.as_str()]);
    assert!(store.get(&name, 300_000).await.expect("got") == bytes);
    store.delete(&name).await.expect("deleted");
}

/// Not for s3s-fs, whose conditional puts race (STYLE, S3 servers of tests).
async fn one_of_many_wins(store: &Store) {
    for round in 0..10 {
        let name = format!("snapshots/race-{round}.json");
        let bodies: Vec<Bytes> =
            (0..6).map(|writer| Bytes::from(format!("writer {writer}"))).collect();
        let puts = bodies.iter().map(|body| store.put_new(&name, body.clone(), &[]));
        let puts = future::try_join_all(puts).await.expect("put or refused");
        let winners: Vec<usize> =
            (0..puts.len()).filter(|writer| puts[*writer] == Put::Created).collect();
        assert_eq!(winners.len(), 1, "round {round}: {puts:?}");
        assert_eq!(store.get(&name, 100).await.expect("got"), bodies[winners[0]]);
        store.delete(&name).await.expect("deleted");
    }
}

async fn names_that_point_elsewhere_are_refused(store: &Store) {
    for name in ["../outside", "chunks/../../outside", "/etc/passwd", ".hidden", "a b", ""] {
        let errors = [
            store.get(name, 1).await.err(),
            store.get_range(name, 0, 1).await.err(),
            store.size(name).await.err(),
            store.put(name, Bytes::new()).await.err(),
            store.put_new(name, Bytes::new(), &[]).await.err(),
            store.delete(name).await.err(),
        ];
        for error in errors {
            let Some(Error::Name { .. }) = &error else { panic!("{name:?}: {error:?}") };
            assert_eq!(error.map(|error| error.exit() as u8), Some(10));
        }
    }
    assert!(matches!(store.list("../").await, Err(Error::Name { .. })));
}

async fn it_can_be_probed_and_nothing_stays(store: &Store) {
    let probe = store.probe().await;
    assert!(probe.ahead_seconds.is_some_and(|seconds| seconds.abs() < 5.0), "{probe:?}");
    assert!(probe.accesses.iter().all(|access| access.result.is_ok()), "{probe:?}");
    assert_eq!((probe.reads_back, probe.keeps), (Some(true), Some(true)), "{probe:?}");
    assert_eq!(probe.left, Vec::<String>::new());
    assert_eq!(names(store, "").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_probed_folder_is_left_as_it_was() {
    let dir = folder();
    let root = Utf8PathBuf::from_path_buf(dir.path().join("store")).expect("UTF-8");
    let store = open(StoreConfig::Dir(root.clone())).await;
    let probe = store.probe().await;
    assert!(probe.accesses.iter().all(|access| access.result.is_ok()), "{probe:?}");
    assert!(!root.exists(), "it was not there before");

    create(&store, "chunks/aa/aa", Bytes::from_static(b"x")).await;
    store.probe().await;
    let left: Vec<String> = root
        .read_dir_utf8()
        .expect("a folder")
        .map(|entry| entry.expect("readable").file_name().to_owned())
        .collect();
    assert_eq!(left, ["chunks"]);
}

#[tokio::test]
async fn stores_of_one_bucket_do_not_see_each_other() {
    let server: S3Server = harness::s3();
    let prefixes = ["team", "team2", "team/inner", ""];
    for prefix in prefixes {
        let store = open_s3(server.config("snapshots", prefix)).await;
        let put = store.put_new("snapshots/x.json", Bytes::from_static(b"x"), &[]).await;
        assert_eq!(put.expect("put"), Put::Created, "{prefix}");
    }
    for prefix in prefixes {
        let store = open_s3(server.config("snapshots", prefix)).await;
        assert_eq!(names(&store, "snapshots/").await, ["snapshots/x.json"], "{prefix}");
    }
    let team = open_s3(server.config("snapshots", "team")).await;
    team.delete("snapshots/x.json").await.expect("deleted");
    let other = open_s3(server.config("snapshots", "team2")).await;
    assert_eq!(names(&other, "").await, ["snapshots/x.json"]);
}

#[tokio::test]
async fn what_others_put_beside_our_objects_is_passed_over() {
    let server = harness::s3();
    let root = server.bucket_dir("snapshots").join("team");
    std::fs::create_dir_all(root.join("snapshots")).expect("ours");
    for foreign in ["snapshots/read me.txt", "snapshots/.tmp", "snapshots/ü.json", "ok"] {
        std::fs::write(root.join(foreign), "x").expect("ours");
    }
    let store = open_s3(server.config("snapshots", "team")).await;
    assert_eq!(names(&store, "").await, ["ok"]);
    let folder = open(StoreConfig::Dir(root.clone())).await;
    std::os::unix::fs::symlink("/etc/passwd", root.join("link")).expect("ours");
    assert_eq!(names(&folder, "").await, ["ok"]);
    let error = folder.get("link", 100_000).await.expect_err("links lead elsewhere");
    assert!(matches!(error, Error::Missing { .. }), "{error}");
}

#[tokio::test]
async fn tags_are_set_where_the_server_has_them_and_nobody_is_told_where_not() {
    let tags = [
        ("schema-version".to_owned(), "1.2".to_owned()),
        ("database".to_owned(), "shop & \"co\"".to_owned()),
    ];
    let body = Bytes::from_static(b"{}");
    if let Some((server, bucket)) = bucket().await {
        let store = open_s3(server.config(&bucket, "team")).await;
        let put = store.put_new("snapshots/tagged.json", body.clone(), &tags).await;
        assert_eq!(put.expect("put"), Put::Created);
        let found = server.tags(&bucket, "team/snapshots/tagged.json").await;
        for text in [
            "<Key>schema-version</Key><Value>1.2</Value>",
            "<Key>database</Key><Value>shop _ _co_</Value>",
        ] {
            assert!(found.replace(['\n', ' '], "").contains(&text.replace(' ', "")), "{found}");
        }
    }
    // A server that has none refuses the whole put; told only with `-v`.
    let server = harness::s3();
    let proxy = FaultProxy::start(&server.endpoint(), |seen| {
        if seen.headers.contains_key("x-amz-tagging") {
            Fault::Answer { status: 501, body: "<Error><Code>NotImplemented</Code></Error>" }
        } else {
            Fault::Pass
        }
    });
    let config =
        S3Config { endpoint: Some(proxy.endpoint()), ..server.config("snapshots", "team") };
    let told = Told::default();
    let store = open_with(StoreConfig::S3(config), told.reporter()).await;
    let put = store.put_new("snapshots/untagged.json", body.clone(), &tags).await;
    assert_eq!(put.expect("put"), Put::Created);
    assert_eq!(store.get("snapshots/untagged.json", 100).await.expect("got"), body);
    let lines = told.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("`snapshots/untagged.json` gets no tags: "), "{lines:?}");
}

#[tokio::test]
async fn checksums_and_path_style_are_what_the_configuration_says() {
    let server = harness::s3();
    // Headers are looked at on their way; the proxy breaks nothing.
    let (checksums, seen_checksums) = std::sync::mpsc::channel();
    let checksums = std::sync::Mutex::new(checksums);
    let proxy = FaultProxy::start(&server.endpoint(), move |seen| {
        if seen.method == "PUT" {
            let trailer = seen.headers.contains_key("x-amz-trailer");
            let header = seen.headers.contains_key("x-amz-checksum-sha256");
            let sender = checksums.lock().expect("one thread");
            sender.send((trailer, header)).expect("the test listens");
        }
        Fault::Pass
    });
    for (checksums, has_header) in [(Checksums::Auto, true), (Checksums::RequiredOnly, false)] {
        let config = S3Config {
            endpoint: Some(proxy.endpoint()),
            checksums,
            ..server.config("snapshots", "team")
        };
        let store = open_s3(config).await;
        create(&store, "chunks/aa/aa", noise(6, 10 + usize::from(has_header))).await;
        assert_eq!(seen_checksums.recv(), Ok((false, has_header)), "never a trailer");
    }
    assert!(
        proxy.seen().iter().all(|line| line.contains("/snapshots/team/")),
        "{:?}",
        proxy.seen()
    );

    // With a host name the bucket becomes a part of it; a name that needs a resolver tells as much.
    let port = proxy.endpoint().rsplit_once(':').map(|(_, port)| port.to_owned());
    let config = S3Config {
        endpoint: Some(format!("http://store.invalid:{}", port.expect("a port"))),
        path_style: false,
        ..server.config("snapshots", "team")
    };
    let error = open_s3(config).await.list("").await.expect_err("nobody has this name");
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().starts_with("cannot reach http://store.invalid"), "{error}");
}

#[tokio::test]
async fn encryption_is_asked_for_with_each_write() {
    let Some(moto) = harness::moto() else { return };
    let bucket = harness::unique("encrypted").replace('_', "-");
    moto.create_bucket(&bucket).await;
    let names = ["", "-aws-kms-key-id", "-bucket-key-enabled"];
    let names = names.map(|name| format!("x-amz-server-side-encryption{name}"));
    let (headers, seen) = std::sync::mpsc::channel();
    let headers = std::sync::Mutex::new(headers);
    let proxy = FaultProxy::start(&moto.endpoint, {
        let names = names.clone();
        move |seen| {
            if seen.method == "PUT" {
                let header =
                    |name: &String| Some(seen.headers.get(name)?.to_str().ok()?.to_owned());
                let sender = headers.lock().expect("one thread");
                sender.send(names.each_ref().map(header)).expect("the test listens");
            }
            Fault::Pass
        }
    });
    let key = "arn:aws:kms:us-east-1:123456789012:key/5cf7a36c-1c8a-4d6b-9c0b-0f9f1a9bd1c0";
    let settings = [
        (None, None, None),
        (Some("AES256"), None, None),
        (Some("aws:kms"), None, None),
        (Some("aws:kms"), Some(key), Some(true)),
    ];
    for (number, (sse, kms_key_id, kms_bucket_key)) in settings.into_iter().enumerate() {
        let config = S3Config {
            endpoint: Some(proxy.endpoint()),
            sse: sse.map(str::to_owned),
            kms_key_id: kms_key_id.map(str::to_owned),
            kms_bucket_key,
            ..moto.config(&bucket, &format!("team{number}"))
        };
        let store = open_s3(config).await;
        let body = Bytes::from_static(b"x");
        create(&store, "chunks/aa/aa", body.clone()).await;
        store.put_again("chunks/aa/aa", body.clone()).await.expect("put");
        let tags = [("a".to_owned(), "b".to_owned())];
        let put = store.put_new("snapshots/x.json", body.clone(), &tags).await;
        assert_eq!(put.expect("put"), Put::Created);
        assert_eq!(store.get("chunks/aa/aa", 10).await.expect("got"), body);
        let probe = store.probe().await;
        assert!(probe.accesses.iter().all(|access| access.result.is_ok()), "{probe:?}");

        let bucket_key = kms_bucket_key.map(|enabled| enabled.to_string());
        let wanted = [sse.map(str::to_owned), kms_key_id.map(str::to_owned), bucket_key];
        let sent: Vec<_> = seen.try_iter().collect();
        // Three of ours, three of the probe's and one that is to meet an object.
        assert_eq!(sent, vec![wanted.clone(); 7], "{sse:?}");
        for name in ["chunks/aa/aa", "snapshots/x.json"] {
            let held = moto.headers(&bucket, &format!("team{number}/{name}")).await;
            let header = |name: &String| Some(held.get(name)?.to_str().ok()?.to_owned());
            assert_eq!(header(&names[0]), wanted[0], "{name}: {held:?}");
            assert_eq!(header(&names[1]), wanted[1], "{name}: {held:?}");
        }
    }
}
