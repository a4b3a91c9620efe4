//! A real S3 server behind a line that breaks: what is retried, resumed, compared, given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use seedbed::config::{S3Config, StoreConfig};
use seedbed::store::{Put, Store};

use super::{chunk_name, create, folder, noise, open, open_s3};
use crate::harness::{self, Fault, FaultProxy, S3Server};

/// A store whose requests pass through a proxy that breaks what `decide` says.
async fn behind(
    server: &S3Server,
    decide: impl Fn(&harness::fault_proxy::Seen) -> Fault + Send + Sync + 'static,
) -> (Store, FaultProxy) {
    let proxy = FaultProxy::start(&server.endpoint(), decide);
    let config =
        S3Config { endpoint: Some(proxy.endpoint()), ..server.config("snapshots", "team") };
    (open_s3(config).await, proxy)
}

#[tokio::test]
async fn f15_a_server_that_is_busy_now_and_then_is_asked_again() {
    let server = harness::s3();
    let (store, proxy) = behind(&server, |seen| match seen.number % 5 {
        0 => Fault::Answer { status: 503, body: "<Error><Code>SlowDown</Code></Error>" },
        3 => Fault::Answer { status: 500, body: "<Error><Code>InternalError</Code></Error>" },
        _ => Fault::Pass,
    })
    .await;
    for number in 0..10 {
        let bytes = noise(number, 10_000);
        let name = chunk_name(&bytes);
        assert_eq!(store.put(&name, bytes.clone()).await.expect("put"), Put::Created);
        assert_eq!(store.get(&name, 10_000).await.expect("got"), bytes);
    }
    assert_eq!(store.list("chunks/").await.expect("listed").len(), 10);
    assert!(proxy.seen().len() > 35, "{}", proxy.seen().len());
}

#[tokio::test]
async fn f19_a_body_that_breaks_off_is_resumed_where_it_broke() {
    let server = harness::s3();
    let bytes = noise(1, 100_000);
    let direct = open_s3(server.config("snapshots", "team")).await;
    create(&direct, "chunks/aa/aa", bytes.clone()).await;
    // Each answer brings 30,000 bytes and ends.
    let (store, proxy) = behind(&server, |_| Fault::CutAnswer { after: 30_000 }).await;
    assert!(store.get("chunks/aa/aa", 100_000).await.expect("resumed") == bytes);
    assert_eq!(proxy.seen().len(), 4, "{:?}", proxy.seen());
    let range = store.get_range("chunks/aa/aa", 20_000, 70_000).await.expect("resumed");
    assert!(range == bytes.slice(20_000..90_000));
}

/// A gateway that cuts every body at the same byte, however often it is asked. `resumed`: what it answers
/// to whoever asks for the rest; `None` is all of it again.
async fn cutting_gateway(resumed: Option<&'static str>) -> (Store, Arc<AtomicUsize>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const WHOLE: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: \"a\"\r\n\r\nonly so much";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
    let address = listener.local_addr().expect("a bound socket has an address");
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                // A client that hangs up has asked nothing.
                let Ok(byte) = socket.read_u8().await else { break };
                request.push(byte);
            }
            counted.fetch_add(1, Ordering::Relaxed);
            let request = String::from_utf8_lossy(&request).to_lowercase();
            let rest = request.contains("\r\nif-match:");
            let answer = resumed.filter(|_| rest).unwrap_or(WHOLE);
            // The end of the line is the fault.
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    let server = harness::s3();
    let endpoint = Some(format!("http://{address}"));
    let config = S3Config { endpoint, ..server.config("snapshots", "team") };
    (open_s3(config).await, asked)
}

#[tokio::test]
async fn f19_a_gateway_that_cuts_every_body_and_knows_no_ranges_is_given_up() {
    const CHANGED: &str = "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n";
    for resumed in [None, Some(CHANGED)] {
        let (store, asked) = cutting_gateway(resumed).await;
        // It would be asked for ever.
        let patience = std::time::Duration::from_secs(30);
        let got = tokio::time::timeout(patience, store.get("chunks/aa/aa", 100_000)).await;
        let error = got.expect("it is given up").expect_err("there is no whole body");
        assert_eq!(error.exit() as u8, 9, "{error}");
        assert!(error.to_string().contains("12 bytes"), "{error}");
        assert!(asked.load(Ordering::Relaxed) < 20, "{asked:?}");
        let range = store.get_range("chunks/aa/aa", 10, 100);
        let got = tokio::time::timeout(patience, range).await;
        got.expect("it is given up").expect_err("there is no whole body");
    }
}

#[tokio::test]
async fn f18_a_put_whose_answer_was_lost_is_known_by_its_bytes() {
    let server = harness::s3();
    let lost = Arc::new(AtomicUsize::new(0));
    let counted = lost.clone();
    let (store, _proxy) = behind(&server, move |seen| {
        if seen.method == "PUT" && counted.fetch_add(1, Ordering::Relaxed) == 0 {
            Fault::LoseAnswer
        } else {
            Fault::Pass
        }
    })
    .await;
    // The retry finds the name taken: by us.
    let mine = Bytes::from_static(b"mine");
    let put = store.put_new("snapshots/lost.json", mine.clone(), &[]).await;
    assert_eq!(put.expect("compared"), Put::Created);
    assert!(lost.load(Ordering::Relaxed) >= 2, "the SDK sent it again");
    assert_eq!(store.get("snapshots/lost.json", 10).await.expect("got"), mine);
    // By another one: no success.
    let put = store.put_new("snapshots/lost.json", Bytes::from_static(b"other"), &[]).await;
    assert_eq!(put.expect("compared"), Put::Exists);
}

#[tokio::test]
async fn f18_a_put_that_conflicts_with_another_is_tried_again() {
    let server = harness::s3();
    let conflicts = AtomicUsize::new(0);
    // S3 answers 409 while a removal of the same name is under way; then nobody has the name.
    let (store, _proxy) = behind(&server, move |seen| {
        if seen.method == "PUT" && conflicts.fetch_add(1, Ordering::Relaxed) < 2 {
            Fault::Answer {
                status: 409,
                body: "<Error><Code>ConditionalRequestConflict</Code></Error>",
            }
        } else {
            Fault::Pass
        }
    })
    .await;
    let put = store.put_new("snapshots/x.json", Bytes::from_static(b"x"), &[]).await;
    assert_eq!(put.expect("tried again"), Put::Created);
}

#[tokio::test]
async fn f18_a_conflict_that_never_ends_is_an_error() {
    let server = harness::s3();
    let (store, proxy) = behind(&server, |seen| match seen.method.as_str() {
        "PUT" => Fault::Answer {
            status: 409,
            body: "<Error><Code>ConditionalRequestConflict</Code></Error>",
        },
        _ => Fault::Pass,
    })
    .await;
    let put = store.put_new("snapshots/x.json", Bytes::from_static(b"x"), &[]).await;
    let error = put.expect_err("nobody has the name and nobody gets it");
    assert!(error.to_string().contains("refused to write `snapshots/x.json`"), "{error}");
    assert!(proxy.seen().len() < 30, "{:?}", proxy.seen());
}

#[tokio::test]
async fn f23_a_server_without_conditional_puts_still_never_overwrites_what_it_shows() {
    let server = harness::s3();
    let (store, _proxy) = behind(&server, |seen| {
        if seen.headers.contains_key("if-none-match") {
            Fault::Answer { status: 501, body: "<Error><Code>NotImplemented</Code></Error>" }
        } else {
            Fault::Pass
        }
    })
    .await;
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    let name = "snapshots/x.json";
    assert_eq!(store.put_new(name, first.clone(), &[]).await.expect("put"), Put::Created);
    assert_eq!(store.put_new(name, second, &[]).await.expect("refused"), Put::Exists);
    assert_eq!(store.get(name, 10).await.expect("got"), first);
}

#[tokio::test]
async fn f16_an_upload_that_was_cut_is_sent_again_from_memory() {
    let server = harness::s3();
    let bytes = noise(9, 50_000);
    let name = chunk_name(&bytes);
    let puts = AtomicUsize::new(0);
    let (store, _proxy) = behind(&server, move |seen| {
        if seen.method == "PUT" && puts.fetch_add(1, Ordering::Relaxed) == 0 {
            Fault::LoseAnswer
        } else {
            Fault::Pass
        }
    })
    .await;
    create(&store, &name, bytes.clone()).await;
    assert!(store.get(&name, 50_000).await.expect("got") == bytes);
}

#[tokio::test]
async fn f16_an_upload_that_was_damaged_on_its_way_is_refused_and_not_there() {
    let server = harness::s3();
    let (store, _proxy) = behind(&server, |seen| match seen.method.as_str() {
        "PUT" => Fault::FlipUpload { at: 20_000 },
        _ => Fault::Pass,
    })
    .await;
    let bytes = noise(9, 50_000);
    let name = chunk_name(&bytes);
    // The server is told the sha256 of what it should get.
    let error = store.put(&name, bytes).await.expect_err("other bytes arrive");
    assert_eq!(error.exit() as u8, 9, "{error}");
    assert_eq!(store.size(&name).await.expect("asked"), None, "{error}");
}

#[tokio::test]
async fn an_upload_that_is_dropped_half_way_leaves_nothing() {
    let server = harness::s3();
    let (store, proxy) = behind(&server, |seen| match seen.method.as_str() {
        "PUT" => Fault::Stall,
        _ => Fault::Pass,
    })
    .await;
    let bytes = noise(10, 3_000_000);
    let name = chunk_name(&bytes);
    {
        let put = std::pin::pin!(store.put(&name, bytes.clone()));
        let sent = async {
            while !proxy.seen().iter().any(|line| line.starts_with("PUT ")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            put = put => panic!("nobody answered, but: {put:?}"),
            () = sent => (),
        }
    }
    assert_eq!(store.list("").await.expect("listed"), []);
    assert_eq!(store.size(&name).await.expect("asked"), None);
    assert!(proxy.seen().iter().all(|line| !line.contains("uploads")), "no multipart is pending");
}

#[tokio::test]
async fn a_write_to_a_folder_that_is_dropped_leaves_all_or_nothing() {
    let dir = folder();
    let root = camino::Utf8PathBuf::from_path_buf(dir.path().to_owned()).expect("UTF-8");
    let store = open(StoreConfig::Dir(root.clone())).await;
    let bytes = noise(11, 3_000_000);
    let name = chunk_name(&bytes);
    {
        let mut put = std::pin::pin!(store.put(&name, bytes.clone()));
        // Begun, then dropped.
        assert!(futures_util::poll!(put.as_mut()).is_pending());
    }
    match store.size(&name).await.expect("asked") {
        None => {}
        Some(size) => assert_eq!(size, bytes.len() as u64),
    }
    // What the first one left half written, if anything, is in nobody's way.
    let _ = store.put(&name, bytes.clone()).await.expect("put");
    assert!(store.get(&name, 3_000_000).await.expect("got") == bytes);
    assert_eq!(store.list("").await.expect("listed").len(), 1);
}

#[tokio::test]
async fn f21_pages_that_lie_are_an_error_and_never_a_part_of_a_listing() {
    const ENDLESS: &str = "<ListBucketResult><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>again</NextContinuationToken></ListBucketResult>";
    const NOWHERE: &str = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
    let server = harness::s3();
    for (body, words) in
        [(ENDLESS, "the same page again and again"), (NOWHERE, "more follows, but not where")]
    {
        let (store, _proxy) = behind(&server, move |_| Fault::Answer { status: 200, body }).await;
        let error = store.list("snapshots/").await.expect_err("no listing");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn f21_an_empty_page_is_not_the_end_and_what_comes_twice_is_listed_once() {
    const EMPTY: &str = "<ListBucketResult><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>two</NextContinuationToken></ListBucketResult>";
    const TWICE: &str = "<ListBucketResult><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>three</NextContinuationToken>\
        <Contents><Key>team/chunks/aa/aa</Key><Size>1</Size></Contents>\
        <Contents><Key>team/chunks/bb/bb</Key><Size>2</Size></Contents></ListBucketResult>";
    const REST: &str = "<ListBucketResult><IsTruncated>false</IsTruncated>\
        <Contents><Key>team/chunks/bb/bb</Key><Size>2</Size></Contents></ListBucketResult>";
    let server = harness::s3();
    let (store, _proxy) = behind(&server, |seen| {
        let body = match &seen.path {
            path if path.contains("three") => REST,
            path if path.contains("two") => TWICE,
            _ => EMPTY,
        };
        Fault::Answer { status: 200, body }
    })
    .await;
    let names: Vec<String> =
        store.list("chunks/").await.expect("listed").into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["chunks/aa/aa", "chunks/bb/bb"]);
}
