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

use crate::harness::{self, Sandbox};

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
