//! Each way in which a store says no, in words, with its exit code and what to do.

use bytes::Bytes;
use camino::Utf8PathBuf;
use seedbed::config::{S3Config, StoreConfig};
use seedbed::report::Reporter;
use seedbed::store::{Error, Put, Store};

use super::{context, create, folder, open, open_s3};
use crate::harness::moto::committed_policy as policy;
use crate::harness::{self, Fault, FaultProxy, Moto, Sandbox};

/// The error's text, exit code and hints.
fn shown(error: &Error) -> String {
    format!("{error}\nexit {}\n{}", error.exit() as u8, error.hints().join("\n"))
}

/// A store whose server is replaced by one that always gives this answer.
async fn answered(status: u16, body: &'static str) -> Store {
    let proxy = FaultProxy::start("127.0.0.1:1", move |_| Fault::Answer { status, body });
    let config =
        S3Config { endpoint: Some(proxy.endpoint()), ..harness::s3().config("snapshots", "team") };
    // The test's process ends it.
    std::mem::forget(proxy);
    open_s3(config).await
}

fn without_port(text: &str) -> String {
    let mut out = text.to_owned();
    while let Some(at) = out.find("http://127.0.0.1:") {
        let rest = &out[at + 17..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        out.replace_range(at..at + 17 + digits, "[endpoint]");
    }
    out
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_named() {
    // Both servers say so where they look; s3s-fs makes a bucket of what is put, so that one lists.
    let server = harness::s3();
    let poor = open_s3(server.config("no-such-bucket", "team")).await;
    let mut errors = vec![poor.list("snapshots/").await.expect_err("no bucket")];
    if let Some(moto) = harness::moto() {
        let rich = open_s3(moto.config("no-such-bucket", "team")).await;
        errors.extend([
            rich.list("snapshots/").await.expect_err("no bucket"),
            rich.get("snapshots/x", 1).await.expect_err("no bucket"),
            rich.put("chunks/aa/aa", Bytes::from_static(b"x")).await.expect_err("no bucket"),
            rich.put_new("snapshots/x", Bytes::new(), &[]).await.expect_err("no bucket"),
        ]);
    }
    for error in errors {
        insta::allow_duplicates! {
            insta::assert_snapshot!(without_port(&shown(&error)), @r"
            the bucket `no-such-bucket` does not exist at [endpoint]
            exit 9
            correct `store.url` in `conf/seedbed.toml`
            or make it: `aws s3 mb s3://no-such-bucket`
            ");
        }
    }
}

#[tokio::test]
async fn a_wrong_secret_and_an_unknown_key_are_told() {
    let server = harness::s3();
    let wrong = S3Config {
        secret_access_key: Some("not it".to_owned().into()),
        ..server.config("snapshots", "team")
    };
    let unknown =
        S3Config { access_key_id: Some("NOBODY".to_owned()), ..server.config("snapshots", "team") };
    for config in [wrong, unknown] {
        let store = open_s3(config).await;
        for error in [
            store.list("").await.expect_err("refused"),
            store.put("chunks/aa/aa", Bytes::from_static(b"x")).await.expect_err("refused"),
        ] {
            assert!(matches!(error, Error::Credentials { .. }), "{error:?}");
            assert_eq!(error.exit() as u8, 9);
            assert_eq!(error.hints()[0], "see who you are: `aws sts get-caller-identity`");
        }
    }
}

async fn store_of(moto: &Moto, name: &str, policy: &str) -> Store {
    let account = moto.account(name, policy).await;
    open_s3(S3Config {
        access_key_id: Some(account.access_key_id),
        secret_access_key: Some(account.secret_access_key.into()),
        ..moto.config("acme-snapshots", "factory")
    })
    .await
}

#[tokio::test]
async fn each_permission_that_is_missing_is_named_by_its_iam_action() {
    let Some(moto) = Moto::start() else { return };
    moto.create_bucket("acme-snapshots").await;
    let writer = store_of(&moto, "writer", &policy("writer-policy.json", &[])).await;
    let reader = store_of(&moto, "reader", &policy("reader-policy.json", &[])).await;
    let blind = store_of(&moto, "blind", &policy("writer-policy.json", &["s3:ListBucket"])).await;
    let no_list =
        store_of(&moto, "nolist", &policy("reader-policy.json", &["s3:ListBucket"])).await;
    let untagged =
        store_of(&moto, "untagged", &policy("writer-policy.json", &["s3:PutObjectTagging"])).await;
    let wrong_secret = {
        let account = moto.account("wrong", &policy("writer-policy.json", &[])).await;
        open_s3(S3Config {
            access_key_id: Some(account.access_key_id),
            secret_access_key: Some("not it".to_owned().into()),
            ..moto.config("acme-snapshots", "factory")
        })
        .await
    };
    let expired = {
        let account = moto.account("expired", &policy("writer-policy.json", &[])).await;
        open_s3(S3Config {
            access_key_id: Some(account.access_key_id.replace("AKIA", "ASIA")),
            secret_access_key: Some(account.secret_access_key.into()),
            session_token: Some("an old token".to_owned().into()),
            ..moto.config("acme-snapshots", "factory")
        })
        .await
    };
    moto.demand_credentials().await;

    // The two policies are enough for their jobs.
    let (body, tags) = (Bytes::from_static(b"x"), [("a".to_owned(), "b".to_owned())]);
    assert_eq!(writer.put("chunks/aa/aa", body.clone()).await.expect("put"), Put::Created);
    let put = writer.put_new("snapshots/x.json", body.clone(), &tags).await;
    assert_eq!(put.expect("put"), Put::Created);
    assert_eq!(writer.list("").await.expect("listed").len(), 2);
    assert_eq!(reader.list("snapshots/").await.expect("listed").len(), 1);
    assert_eq!(reader.get("snapshots/x.json", 10).await.expect("got"), body);

    // Nothing more: neither may remove anything, nor the reader write.
    let denied = |error: Error, wanted: &str| {
        let Error::Denied { action, .. } = &error else { panic!("{error:?}") };
        assert_eq!(action, wanted);
        assert_eq!(error.exit() as u8, 9);
        let hint = format!("allow `{wanted}` on the store in the IAM policy or bucket policy");
        assert_eq!(error.hints(), [hint]);
    };
    denied(writer.delete("chunks/aa/aa").await.expect_err("denied"), "s3:DeleteObject");
    denied(reader.delete("chunks/aa/aa").await.expect_err("denied"), "s3:DeleteObject");
    let put = reader.put("chunks/bb/bb", body.clone()).await;
    denied(put.expect_err("denied"), "s3:PutObject");
    let put = reader.put_new("snapshots/y.json", body.clone(), &tags).await;
    denied(put.expect_err("denied"), "s3:PutObject");
    denied(no_list.list("snapshots/").await.expect_err("denied"), "s3:ListBucket");
    assert_eq!(no_list.get("snapshots/x.json", 10).await.expect("got"), body);
    denied(writer.get("chunks/aa/aa", 10).await.expect_err("denied"), "s3:GetObject");

    // The writer knows by a listing what is there. Who may not even list sends it once more; who
    // may not tag puts without tags.
    assert_eq!(writer.put("chunks/aa/aa", body.clone()).await.expect("put"), Put::Exists);
    let (again, other) = (body.clone(), Bytes::from_static(b"another"));
    let put = writer.put_new("snapshots/x.json", again, &tags).await;
    assert_eq!(put.expect("ours"), Put::Created);
    let put = writer.put_new("snapshots/x.json", other, &tags).await;
    assert_eq!(put.expect("not ours"), Put::Exists);
    create(&blind, "chunks/cc/cc", body.clone()).await;
    create(&blind, "chunks/cc/cc", body.clone()).await;
    let put = untagged.put_new("snapshots/z.json", body.clone(), &tags).await;
    assert_eq!(put.expect("put"), Put::Created);

    for store in [&wrong_secret, &expired] {
        for error in [
            store.list("snapshots/").await.expect_err("refused"),
            store.put("chunks/dd/dd", body.clone()).await.expect_err("refused"),
        ] {
            assert!(matches!(error, Error::Credentials { .. }), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_dead_server_is_given_up_soon() {
    let port = harness::postgres::free_port();
    let config = S3Config {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        ..harness::s3().config("snapshots", "team")
    };
    let store = open_s3(config).await;
    let error = store.list("").await.expect_err("nobody listens");
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(error.exit() as u8, 9);
    assert!(error.to_string().contains("refused"), "the cause is told: {error}");
    assert_eq!(error.hints()[0], "check the network, a proxy, and `store.endpoint`");
}

#[tokio::test]
async fn what_a_server_answers_is_told_in_words() {
    let skewed = answered(
        403,
        "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>",
    )
    .await;
    insta::assert_snapshot!(without_port(&shown(&skewed.list("").await.expect_err("refused"))), @r"
    this machine's clock and that of [endpoint] differ too much: RequestTimeTooSkewed: The difference is too large.
    exit 9
    set the clock: `timedatectl set-ntp true`
    ");

    let elsewhere = answered(
        301,
        "<Error><Code>PermanentRedirect</Code><Message>Use eu-central-1.</Message></Error>",
    )
    .await;
    insta::assert_snapshot!(shown(&elsewhere.list("").await.expect_err("refused")), @r"
    the bucket `snapshots` is in another region: PermanentRedirect: Use eu-central-1.
    exit 9
    set `store.region` to the bucket's region
    ");

    let refusing = answered(
        400,
        "<Error><Code>EntityTooLarge</Code><Message>Your proposed upload is too large.</Message></Error>",
    )
    .await;
    let error = refusing.put_new("snapshots/x", Bytes::new(), &[]).await.expect_err("refused");
    insta::assert_snapshot!(without_port(&shown(&error)), @r"
    [endpoint] refused to write `snapshots/x`: EntityTooLarge: Your proposed upload is too large.
    exit 9
    see each part: `seedbed doctor`
    ");

    // A login page of some network, with the status of success.
    let page = answered(200, "<html><body>Please log in</body></html>").await;
    let error = page.list("").await.expect_err("no listing");
    assert_eq!(error.exit() as u8, 9, "{error:?}");
}

#[tokio::test]
async fn an_object_that_always_breaks_off_is_an_error_that_says_where() {
    let server = harness::s3();
    let config = server.config("snapshots", "team");
    let store = open_s3(config.clone()).await;
    create(&store, "chunks/aa/aa", Bytes::from_static(b"0123456789")).await;
    let proxy = FaultProxy::start(&server.endpoint(), |_| Fault::CutAnswer { after: 0 });
    let store = open_s3(S3Config { endpoint: Some(proxy.endpoint()), ..config }).await;
    for error in [
        store.get("chunks/aa/aa", 100).await.expect_err("cut"),
        store.get_range("chunks/aa/aa", 2, 5).await.expect_err("cut"),
    ] {
        let Error::BrokenOff { bytes: 0, .. } = &error else { panic!("{error:?}") };
        assert_eq!(error.exit() as u8, 9);
        assert!(error.to_string().starts_with("read `chunks/aa/aa` from "), "{error}");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_one_is_named() {
    let dir = folder();
    let root = Utf8PathBuf::from_path_buf(dir.path().to_owned()).expect("UTF-8");
    std::fs::write(root.join("file"), "in the way").expect("ours");
    let store = open(StoreConfig::Dir(root.join("file"))).await;
    for error in [
        store.list("").await.expect_err("no folder"),
        store.put("chunks/aa/aa", Bytes::new()).await.expect_err("no folder"),
        store.put_new("snapshots/x", Bytes::new(), &[]).await.expect_err("no folder"),
    ] {
        let Error::File { path, .. } = &error else { panic!("{error:?}") };
        assert!(path.starts_with(root.join("file")), "{error}");
        assert_eq!(error.exit() as u8, 9);
    }
}

#[tokio::test]
async fn a_bucket_of_aws_needs_a_region() {
    let project = folder();
    let server = harness::s3();
    let config = S3Config { endpoint: None, region: None, ..server.config("snapshots", "team") };
    // The SDK looks for a region in the process's own environment, which the suite does not set.
    let context = context(&project, StoreConfig::S3(config), Reporter::silent());
    let Err(error) = Store::open(&context).await else { panic!("opened without a region") };
    insta::assert_snapshot!(shown(&error), @r"
    open the store `s3://snapshots/team`: no region is configured
    exit 3
    set `store.region` in `conf/seedbed.toml`, or `AWS_REGION`
    ");
}

#[test]
fn the_program_shows_a_refusal_with_its_cause_and_the_fix() {
    let server = harness::s3();
    let mut sandbox = Sandbox::new();
    sandbox.write("conf/dev.toml", "");
    sandbox.write("conf/seedbed.toml", server.store_section("no-such-bucket", "team"));
    for (name, value) in server.variables() {
        sandbox.set(name, value);
    }
    let run = sandbox.run(&["snapshot", "list"]).exits(9);
    insta::assert_snapshot!(without_port(&run.transcript()), @r"
    exit 9
    --- stdout
    --- stderr
    error: the bucket `no-such-bucket` does not exist at [endpoint]
      hint: correct `store.url` in `conf/seedbed.toml`
      hint: or make it: `aws s3 mb s3://no-such-bucket`
    ");

    sandbox.write("conf/seedbed.toml", server.store_section("snapshots", "team"));
    sandbox.set("AWS_SECRET_ACCESS_KEY", "not-it");
    let run = sandbox.run(&["snapshot", "list", "--json"]).exits(9);
    assert_eq!(run.json()["error"]["kind"], "store");
    assert!(!run.stdout.contains("not-it") && !run.stderr.contains("not-it"));

    let mut nobody = Sandbox::new();
    nobody.write("conf/dev.toml", "");
    nobody.write("conf/seedbed.toml", server.store_section("snapshots", "team"));
    nobody.set("AWS_EC2_METADATA_DISABLED", "true");
    let run = nobody.run(&["snapshot", "list"]).exits(9);
    assert!(
        run.stderr.starts_with("error: no credentials for `s3://snapshots/team`"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("hint: set `AWS_PROFILE`, or"), "{}", run.stderr);
}
