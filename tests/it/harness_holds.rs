//! The harness itself: each promise of it that a test relies on.

use std::process::{Command, Stdio};

use crate::harness::{self, Run, S3Server, Sandbox, Server, TestDatabase, postgres};

#[tokio::test]
async fn a_database_is_real_and_gone_after_its_test() {
    let server = harness::server();
    let database: TestDatabase = server.create_database().await;
    database.run("create table machine (id int primary key, name text)").await;
    database.run("insert into machine values (1, 'press'), (2, null)").await;
    assert_eq!(database.text("select * from machine order by id").await, "1|press\n2|∅");

    let name = database.name().to_owned();
    drop(database);
    let count = format!("select count(*) from pg_database where datname = '{name}'");
    assert_eq!(postgres::query_text(&server.admin, &count).await, "0");
}

#[tokio::test]
async fn a_role_logs_in_by_password_only() {
    let server = harness::server();
    let database = server.create_database().await;
    let role = server.create_role("nosuperuser").await;
    let target = database.target_of(&role);
    assert_eq!(postgres::query_text(&target, "select current_user").await, role.name);

    let wrong = target.with_user(&role.name, Some("wrong".to_owned().into()));
    let refused = seedbed::pg::Session::connect(&wrong).await.err();
    assert!(matches!(refused, Some(seedbed::pg::Error::Login { .. })), "{refused:?}");
    assert!(server.bin_dir.join("pg_dump").exists());
}

#[tokio::test]
async fn a_server_of_ones_own_takes_settings() {
    let server = Server::start(&[("max_locks_per_transaction", "10")]);
    let setting = postgres::query_text(&server.admin, "show max_locks_per_transaction").await;
    assert_eq!(setting, "10");
    assert!(server.data_dir.is_some_and(|dir| dir.join("PG_VERSION").exists()));
}

#[test]
fn what_is_to_be_done_at_exit_is_done_when_the_process_is_killed() {
    const MARK: &str = "SEEDBED_TEST_WATCHDOG_FILE";
    if let Some(file) = harness::variable(MARK) {
        // The killed process of this test: it says that it is ready by the file, then waits.
        harness::watchdog::at_exit(&format!("rm {file}"));
        std::fs::write(&file, "ready").expect("the parent chose a writable place");
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    let dir = tempfile::tempdir().expect("the temporary folder can be written to");
    let file = dir.path().join("file");
    let program = std::env::current_exe().expect("a process knows its program");
    let mut child = Command::new(program)
        .args([
            "--exact",
            "harness_holds::what_is_to_be_done_at_exit_is_done_when_the_process_is_killed",
        ])
        .env(MARK, &file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the suite can start itself");
    wait_until(|| file.exists());
    child.kill().expect("our child");
    child.wait().expect("our child");
    wait_until(|| !file.exists());
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "it did not happen within 20 seconds");
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_sandbox_shows_the_program_nothing_of_the_outside() {
    let mut sandbox = Sandbox::new();
    sandbox.set("SEEDBED_ENV", "test");
    let output = sandbox.other_command("/usr/bin/env").output().expect("env is everywhere");
    let run = sandbox.ended(&[], output).succeeds();
    let mut names: Vec<&str> =
        run.stdout.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    names.sort_unstable();
    let ours = ["SEEDBED_CACHE_DIR", "SEEDBED_ENV", "SEEDBED_IMAGES_POOL", "TZ"];
    assert_eq!(names[..3], ["HOME", "LC_ALL", "PATH"]);
    assert_eq!(names[3..], ours);
}

#[test]
fn a_run_shows_stdout_stderr_and_code_without_what_changes() {
    let sandbox = Sandbox::default();
    sandbox.write("conf/dev.toml", "x = 1\n");
    assert_eq!(sandbox.read("conf/dev.toml"), "x = 1\n");
    let script = "pwd; echo built in 1.25 s, 12ms and 3 steps at v14 >&2; echo secret-7; exit 3";
    let output = sandbox.other_command("/bin/sh").args(["-c", script]).output();
    let run = sandbox.ended(&[], output.expect("sh is everywhere")).exits(3);
    let run = run.hide("secret-7", "[secret]");
    insta::assert_snapshot!(run.transcript(), @r"
    exit 3
    --- stdout
    [project]
    [secret]
    --- stderr
    built in [time], [time] and 3 steps at v14
    ");
}

#[test]
fn the_built_program_runs_in_a_sandbox() {
    let sandbox = Sandbox::new();
    sandbox.copy_from_repository("src/pg");
    assert!(sandbox.project().join("src/pg/mod.rs").exists());
    let run: Run = sandbox.run(&["--version"]).succeeds();
    assert_eq!(run.stderr, "");
}

#[tokio::test]
async fn the_s3_server_lets_in_who_has_the_secret_and_nobody_else() {
    use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
    use aws_sdk_s3::primitives::ByteStream;

    let server: S3Server = harness::s3();
    let client = |secret: &str| {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(server.endpoint())
            .region(Region::new("us-east-1"))
            .force_path_style(true)
            .credentials_provider(Credentials::new(
                harness::s3::ACCESS_KEY,
                secret,
                None,
                None,
                "test",
            ))
            .build();
        aws_sdk_s3::Client::from_conf(config)
    };
    let put = |secret: &str| {
        let body = ByteStream::from_static(b"bytes");
        client(secret).put_object().bucket("snapshots").key("a/b").body(body).send()
    };
    put(harness::s3::SECRET_KEY).await.expect("the right secret is let in");
    let file = server.bucket_dir("snapshots").join("a/b");
    assert_eq!(std::fs::read(file).expect("the object is a file"), b"bytes");
    assert!(put("wrong").await.is_err());
}

#[test]
fn what_is_missing_is_said_and_fails_where_it_is_required() {
    assert!(harness::require("a test", true));
    let demanded = harness::variable("SEEDBED_TEST_REQUIRE") == Some("1".to_owned());
    let missing = std::panic::catch_unwind(|| harness::require("a unicorn", false));
    assert_eq!(missing.is_err(), demanded);
}

#[test]
fn the_s3_server_describes_itself_for_every_way_of_configuring() {
    let server = harness::s3();
    assert!(server.variables().contains(&("AWS_ACCESS_KEY_ID", harness::s3::ACCESS_KEY)));
    let section = server.store_section("snapshots", "team");
    assert!(section.contains(&server.endpoint()), "{section}");
    assert!(section.parse::<toml::Table>().is_ok(), "{section}");
    let config = server.config("snapshots", "team");
    assert_eq!(config.endpoint, Some(server.endpoint()));
}

#[test]
fn json_is_read_from_stdout_alone() {
    let sandbox = Sandbox::new();
    let script = r#"echo '{"format": 1}'; echo noise >&2"#;
    let output = sandbox.other_command("/bin/sh").args(["-c", script]).output();
    let run = sandbox.ended(&[], output.expect("sh is everywhere"));
    assert_eq!(run.json(), serde_json::json!({ "format": 1 }));
}

#[test]
fn the_s3_server_of_races_is_installed() {
    let moto = harness::s3::moto_server();
    harness::require("moto_server (installed by scripts/test)", moto.is_some());
}

#[test]
fn the_full_suite_has_its_datasets() {
    let datasets = harness::variable("SEEDBED_DATASETS");
    assert!(!harness::full() || datasets.is_some(), "--full demands SEEDBED_DATASETS");
}
