//! `doctor` against real servers: what it finds and what it says to do.

use std::sync::Arc;

use secrecy::ExposeSecret;
use seedbed::config::{Flags, load};
use seedbed::context::Context;
use seedbed::doctor::{self, Line, State};
use seedbed::env::Env;
use seedbed::pg::Target;
use seedbed::report::Reporter;
use tokio_util::sync::CancellationToken;

use crate::harness::fault_proxy::Seen;
use crate::harness::moto::{Account, Moto, committed_policy};
use crate::harness::{self, Fault, FaultProxy, Sandbox};

/// A context for the sandbox's project whose database is `target`.
fn context(sandbox: &Sandbox, target: &Target) -> Context {
    let password = target.password.as_ref().map_or("", |password| password.expose_secret());
    let port = target.port.to_string();
    context_of(
        sandbox,
        &[
            ("SEEDBED_ENGINE_KIND", "external"),
            ("SEEDBED_DATABASE_HOST", &target.host),
            ("SEEDBED_DATABASE_PORT", &port),
            ("SEEDBED_DATABASE_NAME", &target.database),
            ("SEEDBED_DATABASE_USER", &target.user),
            ("SEEDBED_DATABASE_PASSWORD", password),
            ("SEEDBED_DATABASE_SSLMODE", "disable"),
        ],
    )
}

/// A context for the sandbox's project with these variables.
fn context_of(sandbox: &Sandbox, variables: &[(&str, &str)]) -> Context {
    let path = [("PATH", "/usr/local/bin:/usr/bin:/bin")];
    let variables = variables.iter().chain(&path);
    let variables = variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let env = Env::from_variables(variables, sandbox.project());
    let config = load(&env, &Flags::default()).expect("a project that loads");
    Context {
        config: Arc::new(config),
        env: Arc::new(env),
        report: Reporter::silent(),
        cancel: CancellationToken::new(),
        yes: false,
    }
}

fn of<'l>(lines: &'l [Line], check: &str) -> Vec<&'l Line> {
    lines.iter().filter(|line| line.check == check).collect()
}

#[tokio::test]
async fn a_source_names_what_its_account_may_not_read_and_the_grant() {
    let database = harness::server().create_database().await;
    let role = harness::server().create_role("nosuperuser").await;
    database
        .run(
            "create schema factory;
             create table factory.machine (machine_id int generated always as identity primary key);
             create table factory.operator (name text);
             alter table factory.operator enable row level security;
             create table public.\"Odd Name\" (a int);
             select lo_create(4711);",
        )
        .await;
    let sandbox = Sandbox::new();
    sandbox.write("conf/prod.toml", "protected = true\n");
    let context = context(&sandbox, &database.target_of(&role));

    let lines = doctor::run(&context).await;
    let source = of(&lines, "source");
    let name = &role.name;
    let told: Vec<String> = source.iter().map(|line| line.text.clone()).collect();
    assert_eq!(
        told,
        [
            format!(
                "\"{name}\" may not read `factory.machine`, `factory.machine_machine_id_seq`, \
                 `factory.operator` and 1 more"
            ),
            format!("row-level security hides rows from \"{name}\" in `factory.operator`"),
            format!("\"{name}\" may not read large objects `4711`"),
        ]
    );
    assert_eq!(doctor::worst(&lines), State::Fail);
    assert_eq!(of(&lines, "clock")[0].state, State::Ok);

    // The fixes as they are told, without the words around them.
    let admin = harness::server();
    let fixes = [
        format!("grant pg_read_all_data to \"{name}\""),
        format!("alter role \"{name}\" bypassrls"),
        format!("grant select on large object 4711 to \"{name}\""),
    ];
    for (line, fix) in source.iter().zip(&fixes) {
        assert!(line.fix.as_ref().is_some_and(|told| told.contains(fix.as_str())), "{line:?}");
        database.run(fix).await;
    }
    let lines = doctor::run(&context).await;
    let source = of(&lines, "source");
    assert_eq!(source.len(), 1, "{lines:?}");
    assert_eq!(source[0].state, State::Ok);

    crate::harness::postgres::run_sql(&admin.admin, &format!("alter role {name} nobypassrls"))
        .await;
    database.run(&format!("revoke select on large object 4711 from {name}")).await;
}

#[tokio::test]
async fn a_server_to_build_on_wants_the_right_to_make_databases() {
    let database = harness::server().create_database().await;
    let poor = harness::server().create_role("nosuperuser").await;
    let able = harness::server().create_role("createdb createrole").await;
    let sandbox = Sandbox::new();
    sandbox.write("conf/dev.toml", "disposable = true\n");

    let lines = doctor::run(&context(&sandbox, &database.target_of(&poor))).await;
    let rights = of(&lines, "rights")[0];
    assert_eq!(rights.state, State::Fail);
    assert_eq!(rights.text, format!("\"{}\" may not make databases", poor.name));

    let lines = doctor::run(&context(&sandbox, &database.target_of(&able))).await;
    assert_eq!(of(&lines, "rights")[0].state, State::Ok);
}

#[tokio::test]
async fn a_wrong_password_and_a_dead_port_say_what_to_check() {
    let server = harness::server();
    let sandbox = Sandbox::new();
    sandbox.write("conf/prod.toml", "protected = true\n");

    let wrong = server.admin.with_user("postgres", Some("wrong".to_owned().into()));
    let lines = doctor::run(&context(&sandbox, &wrong)).await;
    let line = of(&lines, "server")[0];
    assert_eq!(line.state, State::Fail);
    let fix = line.fix.as_deref().unwrap_or_default();
    assert!(fix.starts_with("check `database.user` and `database.password`"), "{line:?}");
    assert!(!line.text.contains("wrong"), "{line:?}");

    let dead = Target { port: harness::postgres::free_port(), ..server.admin.clone() };
    let lines = doctor::run(&context(&sandbox, &dead)).await;
    let line = of(&lines, "server")[0];
    assert!(line.fix.as_ref().is_some_and(|fix| fix.contains("`database.port`")), "{line:?}");
}

#[tokio::test]
async fn tools_and_store_are_tried() {
    let sandbox = Sandbox::new();
    sandbox.write("conf/dev.toml", "disposable = true\n");
    let lines = doctor::run(&context(&sandbox, &harness::server().admin)).await;
    let tools = of(&lines, "tools")[0];
    assert_eq!(tools.state, State::Ok, "{tools:?}");
    assert!(tools.text.starts_with("pg_dump (PostgreSQL) "), "{tools:?}");
    let store = of(&lines, "store");
    assert!(store.iter().all(|line| line.state == State::Ok), "{store:?}");
    assert!(store.len() >= 3, "{store:?}");

    // A folder that cannot be one: a file stands there.
    sandbox.write("conf/dev.toml", "disposable = true\n[store]\nurl = \"file\"\n");
    sandbox.write("file", "not a folder");
    let lines = doctor::run(&context(&sandbox, &harness::server().admin)).await;
    assert!(of(&lines, "store").iter().any(|line| line.state == State::Fail), "{lines:?}");
}

#[tokio::test]
async fn a_lack_of_docker_is_a_failure_only_where_docker_is_demanded() {
    let sandbox = Sandbox::new();
    sandbox.write("conf/dev.toml", "");
    // Port 1 of loopback is nobody's.
    let host = ("DOCKER_HOST", "tcp://127.0.0.1:1");
    let lines = doctor::run(&context_of(&sandbox, &[host])).await;
    assert_eq!(of(&lines, "docker")[0].state, State::Warn, "{lines:?}");
    assert!(of(&lines, "image").is_empty(), "{lines:?}");
    assert_eq!(of(&lines, "engine")[0].state, State::Ok, "{lines:?}");
    assert_eq!(of(&lines, "server")[0].text, "not running; `seedbed up` starts it");

    let demanded = [host, ("SEEDBED_ENGINE_KIND", "docker")];
    let lines = doctor::run(&context_of(&sandbox, &demanded)).await;
    let docker = of(&lines, "docker")[0];
    assert_eq!(docker.state, State::Fail, "{lines:?}");
    assert!(docker.fix.as_ref().is_some_and(|fix| fix.contains("`DOCKER_HOST`")), "{docker:?}");
    assert_eq!(of(&lines, "engine")[0].state, State::Fail, "{lines:?}");
}

#[tokio::test]
async fn a_store_whose_clock_is_far_off_is_a_warning() {
    let s3 = harness::s3();
    // Its objects were written a thousand years ago.
    let proxy = harness::FaultProxy::start(&s3.endpoint(), |_| harness::Fault::Reword {
        from: "<LastModified>2",
        to: "<LastModified>1",
    });
    let (key, secret) = (harness::s3::ACCESS_KEY, harness::s3::SECRET_KEY);
    for (endpoint, state) in [(s3.endpoint(), State::Ok), (proxy.endpoint(), State::Warn)] {
        let sandbox = Sandbox::new();
        let section = s3.store_section("snapshots", "team").replace(&s3.endpoint(), &endpoint);
        sandbox.write(
            "conf/dev.toml",
            format!("{section}access_key_id = \"{key}\"\nsecret_access_key = \"{secret}\"\n"),
        );
        let lines = doctor::run(&context(&sandbox, &harness::server().admin)).await;
        let clocks = of(&lines, "clock");
        let line = clocks.iter().find(|line| line.text.contains("the store's"));
        let line = line.unwrap_or_else(|| panic!("{lines:?}"));
        assert_eq!(line.state, state, "{line:?}");
        assert_eq!(line.fix.is_some(), state == State::Warn, "{line:?}");
    }
}

/// What `doctor` says about a store, in an environment that is protected or not.
async fn about_store(protected: bool, section: &str) -> Vec<Line> {
    let sandbox = Sandbox::new();
    sandbox.write("conf/only.toml", format!("protected = {protected}\n{section}"));
    let lines = doctor::run(&context(&sandbox, &harness::server().admin)).await;
    lines.into_iter().filter(|line| line.check == "store").collect()
}

const DENIED: &str = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
const NO_DATA_KEY: &str = "<Error><Code>AccessDenied</Code><Message>User: arn:aws:iam::1:user/job is \
    not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:eu-central-1:1:key/2 \
    because no identity-based policy allows the kms:GenerateDataKey action</Message></Error>";
const NO_DECRYPT: &str = "<Error><Code>AccessDenied</Code><Message>User: arn:aws:iam::1:user/dev is \
    not authorized to perform: kms:Decrypt on resource: arn:aws:kms:eu-central-1:1:key/2 because no \
    identity-based policy allows the kms:Decrypt action</Message></Error>";

fn lists(seen: &Seen, below: &str) -> bool {
    seen.method == "GET" && seen.path.contains(&format!("prefix=team%2F{below}%2F"))
}

fn touches(seen: &Seen, method: &str, below: &str) -> bool {
    seen.method == method && seen.path.contains(&format!("/team/{below}/"))
}

#[tokio::test]
async fn each_right_that_a_journey_needs_is_named_where_it_is_missing() {
    let Some(moto) = harness::moto() else { return };
    let bucket = harness::unique("rights").replace('_', "-");
    moto.create_bucket(&bucket).await;
    let anybody =
        Account { access_key_id: "anybody".to_owned(), secret_access_key: "anything".to_owned() };
    let section = moto.store_section(&bucket, "team", &anybody);
    for protected in [false, true] {
        let lines = about_store(protected, &section).await;
        assert_eq!(doctor::worst(&lines), State::Ok, "{lines:?}");
        let ready = lines.iter().filter(|line| line.text.ends_with(": every right is there"));
        assert_eq!(ready.count(), 3, "{lines:?}");
    }

    const RESTORE: &str = "`up`, `reset`, `seed`, `ci`";
    const CREATE: &str = "`snapshot create`";
    const PROVE: &str = "`snapshot create --prove`";
    const PRUNE: &str = "`snapshot prune`, `snapshot delete`";
    const DEV: bool = false;
    const PROD: bool = true;
    type Denies = fn(&Seen) -> bool;
    let list: Denies = |seen| lists(seen, "snapshots");
    let list_chunks: Denies = |seen| lists(seen, "chunks");
    let list_marks: Denies = |seen| lists(seen, "prune");
    let read: Denies = |seen| touches(seen, "GET", "snapshots");
    let read_chunks: Denies = |seen| touches(seen, "GET", "chunks");
    let read_marks: Denies = |seen| touches(seen, "GET", "prune");
    let write: Denies = |seen| seen.method == "PUT";
    let write_manifest: Denies = |seen| touches(seen, "PUT", "snapshots");
    let write_marks: Denies = |seen| touches(seen, "PUT", "prune");
    let tag: Denies = |seen| seen.headers.contains_key("x-amz-tagging");
    let remove: Denies = |seen| seen.method == "DELETE";
    let table = [
        (list, DENIED, DEV, "s3:ListBucket", State::Fail, [RESTORE, CREATE, PRUNE].join(", ")),
        (list_chunks, DENIED, PROD, "s3:ListBucket", State::Fail, [CREATE, PRUNE].join(", ")),
        (list_marks, DENIED, PROD, "s3:ListBucket", State::Fail, [CREATE, PRUNE].join(", ")),
        (read, DENIED, DEV, "s3:GetObject", State::Fail, [RESTORE, CREATE, PRUNE].join(", ")),
        (read, DENIED, PROD, "s3:GetObject", State::Fail, [RESTORE, CREATE, PRUNE].join(", ")),
        (read_chunks, DENIED, DEV, "s3:GetObject", State::Fail, [RESTORE, PROVE].join(", ")),
        (read_chunks, DENIED, PROD, "s3:GetObject", State::Ok, [RESTORE, PROVE].join(", ")),
        (read_marks, DENIED, PROD, "s3:GetObject", State::Fail, [CREATE, PRUNE].join(", ")),
        (write, DENIED, DEV, "s3:PutObject", State::Warn, CREATE.to_owned()),
        (write, DENIED, PROD, "s3:PutObject", State::Fail, CREATE.to_owned()),
        (write, DENIED, PROD, "s3:PutObject", State::Ok, PRUNE.to_owned()),
        (write_manifest, DENIED, PROD, "s3:PutObject", State::Fail, CREATE.to_owned()),
        (write_marks, DENIED, PROD, "s3:PutObject", State::Ok, PRUNE.to_owned()),
        (tag, DENIED, PROD, "s3:PutObjectTagging", State::Warn, CREATE.to_owned()),
        (remove, DENIED, PROD, "s3:DeleteObject", State::Ok, PRUNE.to_owned()),
        (write, NO_DATA_KEY, PROD, "kms:GenerateDataKey", State::Fail, CREATE.to_owned()),
        (read, NO_DECRYPT, PROD, "kms:Decrypt", State::Fail, [RESTORE, CREATE, PRUNE].join(", ")),
        (read_chunks, NO_DECRYPT, DEV, "kms:Decrypt", State::Fail, [RESTORE, PROVE].join(", ")),
    ];
    for (denies, body, protected, action, state, needed_by) in table {
        let proxy = FaultProxy::start(&moto.endpoint, move |seen| {
            if denies(seen) { Fault::Answer { status: 403, body } } else { Fault::Pass }
        });
        let section = section.replace(&moto.endpoint, &proxy.endpoint());
        let lines = about_store(protected, &section).await;
        let told = lines.iter().find(|line| {
            line.text.contains(&format!(" denies `{action}` on `"))
                && line.text.ends_with(&format!("; needed by {needed_by}"))
        });
        let told = told.unwrap_or_else(|| panic!("{action}, {needed_by}: {lines:#?}"));
        assert_eq!(told.state, state, "{told:?}");
        assert!(doctor::worst(&lines) >= state, "{lines:?}");
        let fix = told.fix.as_deref().unwrap_or_default();
        assert_eq!(
            fix.starts_with(&format!("allow `{action}` on ")),
            state != State::Ok,
            "{told:?}"
        );
        // What works is not called into doubt by what does not.
        let others = lines.iter().filter(|line| line.text.contains(" denies "));
        assert!(others.clone().all(|line| line.text.contains(action)), "{lines:#?}");
    }
}

#[tokio::test]
async fn the_committed_policies_are_enough_for_their_part_and_each_of_their_actions_is_missed() {
    let Some(moto) = Moto::start() else { return };
    moto.create_bucket("acme-snapshots").await;
    let mut cases = Vec::new();
    for (file, protected, actions) in [
        ("reader-policy.json", false, ["s3:GetObject", "s3:ListBucket"].as_slice()),
        (
            "writer-policy.json",
            true,
            // This server asks for no right to tags that come with a put: the other test does.
            &["s3:GetObject", "s3:ListBucket", "s3:PutObject"],
        ),
    ] {
        let account =
            moto.account(&format!("whole-{protected}"), &committed_policy(file, &[])).await;
        cases.push((protected, None, account));
        for action in actions {
            let name = format!("{}-{protected}", action.replace(':', "-"));
            let account = moto.account(&name, &committed_policy(file, &[action])).await;
            cases.push((protected, Some(*action), account));
        }
    }
    moto.demand_credentials().await;
    for (protected, missing, account) in cases {
        let section = moto.store_section("acme-snapshots", "factory", &account);
        let lines = about_store(protected, &section).await;
        let part = if protected { "`snapshot create`" } else { "`up`, `reset`, `seed`, `ci`" };
        let ready = format!("{part}: every right is there");
        let is_ready = lines.iter().any(|line| line.text == ready);
        assert_eq!(is_ready, missing.is_none(), "{missing:?}: {lines:#?}");
        let worst = doctor::worst(&lines);
        match missing {
            // A reader is told that it takes no snapshots; the writer's part is whole.
            None => {
                assert_eq!(worst, if protected { State::Ok } else { State::Warn }, "{lines:#?}")
            }
            Some(action) => {
                assert_eq!(worst, State::Fail, "{lines:#?}");
                let failed = lines.iter().filter(|line| line.state == State::Fail);
                assert!(failed.clone().all(|line| line.text.contains(action)), "{lines:#?}");
            }
        }
    }
}
