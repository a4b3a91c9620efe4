//! What is refused for safety, whatever the flags; and what asks before it acts.

use std::net::UdpSocket;

use secrecy::ExposeSecret;
use seedbed::pg::Target;

use crate::harness::postgres::{query_text, run_sql};
use crate::harness::{Sandbox, Server, require, server, unique};
use crate::journeys::{Production, Project, elsewhere, protected};

/// Verbs that build and replace databases, as harshly as they can be typed.
const REPLACING: [&[&str]; 6] = [
    &["up", "--yes"],
    &["up", "--fresh", "--yes"],
    &["reset", "--yes"],
    &["seed", "--snapshot", "latest", "--yes"],
    &["ci", "--yes"],
    &["seed", "--file", "plain.sql", "--yes"],
];

/// What any writing on the server would change.
async fn footprint(target: &Target) -> String {
    let sql = "select (select string_agg(datname || ' ' || oid, ',' order by oid) from pg_database),
         (select string_agg(rolname || ' ' || coalesce(rolpassword, ''), ',' order by rolname) from pg_authid),
         (select sum(tup_inserted + tup_updated + tup_deleted) from pg_stat_database where datname = current_database())";
    query_text(target, sql).await
}

/// Runs every replacing verb, which has to be refused with these words, and looks whether anything happened.
async fn refuses(sandbox: &Sandbox, environment: &str, source: &Target, said: &str) {
    let before = footprint(source).await;
    sandbox.write("plain.sql", "create table public.loaded ();");
    for args in REPLACING {
        let args: Vec<&str> = args.iter().copied().chain(["--env", environment]).collect();
        let run = sandbox.run(&args).exits(12);
        assert_eq!(run.stdout, "", "{args:?}");
        assert!(run.stderr.contains(said), "{args:?}: no `{said}` in\n{}", run.stderr);
        assert!(run.stderr.contains("\n  hint: "), "{args:?}: {}", run.stderr);
    }
    assert_eq!(footprint(source).await, before);
}

/// A server of a test of its own, whose footprint nobody else changes.
struct Source {
    server: Server,
    production: Target,
}

impl Source {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let server = Server::start(settings);
        let production = server.admin.with_database(&unique("shop_prod"));
        run_sql(&server.admin, &format!("create database {}", production.database)).await;
        run_sql(
            &production,
            "create table precious (n int); insert into precious values (1);
             select pg_stat_force_next_flush()",
        )
        .await;
        Self { server, production }
    }

    fn word(&self) -> String {
        let word = self.server.admin.password.as_ref().expect("the harness gives one");
        word.expose_secret().to_owned()
    }
}

#[tokio::test]
async fn f34_a_protected_environment_is_only_read() {
    let source = Source::new(&[]).await;
    let mut project = Project::external(&source.server);
    project.sandbox.set("PROD_WORD", &source.word());
    project.sandbox.write("conf/prod.toml", protected(&source.production));
    let sandbox = &project.sandbox;
    let said = "and environment `prod` is protected: it is only ever read\n  hint: use a local environment: ";
    refuses(sandbox, "prod", &source.production, said).await;
    // No variable and no flag lifts the protection.
    project.sandbox.set("SEEDBED_PROTECTED", "false");
    project.sandbox.set("SEEDBED_DISPOSABLE", "true");
    refuses(&project.sandbox, "prod", &source.production, said).await;
    let set = ["reset", "--env", "prod", "--set", "protected=false", "--set", "disposable=true"];
    project.run(&set).exits(12);
}

#[tokio::test]
async fn f34_the_server_of_a_protected_environment_is_refused_by_each_of_its_names() {
    let source = Source::new(&[("listen_addresses", "'127.0.0.1,::1'")]).await;
    let mut project = Project::external(&source.server);
    project.sandbox.set("PROD_WORD", &source.word());
    project.sandbox.write("conf/prod.toml", protected(&source.production));
    let port = source.server.admin.port;
    for host in ["127.0.0.1", "localhost", "::1", "127.0.0.2"] {
        if host == "127.0.0.2" && cfg!(not(target_os = "linux")) {
            continue;
        }
        project.configure_external(host, port, "disposable = true\n");
        if host == "127.0.0.2" {
            // Nothing listens there: it cannot be reached, so it cannot be replaced.
            project.run(&["reset", "--env", "dev"]).exits(4);
            continue;
        }
        let said = format!(
            "`127.0.0.1:{port}` is the server of the protected environment `prod` (database `{}`)",
            source.production.database
        );
        refuses(&project.sandbox, "dev", &source.production, &said).await;
    }
    // Another environment is protected no more: then it is a server like any other.
    std::fs::remove_file(project.sandbox.project().join("conf/prod.toml")).expect("it was written");
    project.configure_external("localhost", port, "");
    project.run(&["up", "--env", "dev", "--seed", "none"]).succeeds();
}

#[tokio::test]
async fn f34_the_server_that_a_snapshot_came_from_is_refused_by_each_of_its_names() {
    let source = Source::new(&[("listen_addresses", "'127.0.0.1,::1'")]).await;
    let mut project = Project::external(&source.server);
    project.sandbox.set("PROD_WORD", &source.word());
    project.sandbox.write("conf/prod.toml", protected(&source.production));
    project.run(&["snapshot", "create", "--env", "prod"]).succeeds();
    // Nobody would know it by the files any more.
    std::fs::remove_file(project.sandbox.project().join("conf/prod.toml")).expect("it was written");
    let port = source.server.admin.port;
    for host in ["127.0.0.1", "localhost", "::1"] {
        project.configure_external(host, port, "disposable = true\n");
        let said = "is the source of a snapshot\n  hint: point the environment at another server";
        refuses(&project.sandbox, "dev", &source.production, said).await;
    }
}

#[tokio::test]
async fn f34_a_server_elsewhere_is_refused_unless_it_is_disposable() {
    // The address that this machine would use; no packet is sent.
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
    let address = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    let address = address.map(|address| address.ip()).ok().filter(|ip| !ip.is_loopback());
    if !require("an address beside loopback", address.is_some()) {
        return;
    }
    let host = address.expect("it was asked for").to_string();
    let source = Source::new(&[("listen_addresses", &format!("'127.0.0.1,{host}'"))]).await;
    let rules = source.server.data_dir.as_ref().expect("a server of ours").join("pg_hba.conf");
    let mut text = std::fs::read_to_string(&rules).expect("initdb wrote it");
    text.push_str(&format!("host all all {host}/32 scram-sha-256\n"));
    std::fs::write(&rules, text).expect("it is ours");
    run_sql(&source.server.admin, "select pg_reload_conf()").await;

    let project = Project::external(&source.server);
    let port = source.server.admin.port;
    project.configure_external(&host, port, "");
    let said = format!(
        "`{host}` is neither a server that seedbed started nor on this machine\n  \
         hint: if its databases may be thrown away: `disposable = true` in conf/dev.toml\n"
    );
    refuses(&project.sandbox, "dev", &source.production, &said).await;

    project.configure_external(&host, port, "disposable = true\n");
    project.run(&["up", "--seed", "none"]).succeeds();
    project.run(&["reset", "--seed", "none"]).succeeds();
    assert_eq!(query_text(&source.production, "select n from precious").await, "1");
}

#[tokio::test]
async fn f34_a_server_that_we_started_is_not_locked_out_by_a_snapshot_taken_from_it() {
    let project = Project::native().with_snapshot().await;
    project.run(&["up"]).succeeds();
    project.sql("insert into shop.customer (name) values ('of this machine')").await;
    project.run(&["snapshot", "create"]).succeeds();
    project.sql("delete from shop.purchase; delete from shop.customer").await;
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stdout.contains("migrated  nothing to do\n"), "{}", reset.stdout);
    let mine = "select count(*) from shop.customer where name = 'of this machine'";
    assert_eq!(project.text(mine).await, "1");
}

#[tokio::test]
async fn a_deploy_to_production_shows_where_and_what_and_asks() {
    let production = Production::new("").await;
    production.sandbox.write("sql/V2__later.sql", "create table shop.later ();");
    let target = &production.target;
    let there = "select to_regclass('shop.later') is not null";
    let shown = format!(
        "environment `prod` is protected: database `{}` on `127.0.0.1:{}`\n  run V2__later.sql\n",
        target.database, target.port
    );
    let run = production.run(&["migrate"]).exits(12);
    assert!(
        run.stderr.ends_with(&format!(
            "{shown}error: `migrate` on the protected environment `prod` needs an answer, and nobody is \
             there to give it\n  hint: look at the plan, then run `seedbed migrate --env prod --yes`\n"
        )),
        "{}",
        run.stderr
    );
    assert_eq!(query_text(target, there).await, "f");
    let dry = production.run(&["migrate", "--dry-run"]).succeeds();
    assert!(dry.stdout.contains("create table shop.later ();"), "{}", dry.stdout);
    assert_eq!(query_text(target, there).await, "f");

    let run = production.run(&["migrate", "--yes"]).succeeds();
    assert!(run.stderr.contains(&shown), "{}", run.stderr);
    assert!(run.stdout.contains("schema version 1 → 2, 1 script"), "{}", run.stdout);
    assert_eq!(query_text(target, there).await, "t");
    // With nothing to do there is nothing to ask.
    let run = production.run(&["migrate"]).succeeds();
    assert!(run.stdout.starts_with("up to date: schema version 2"), "{}", run.stdout);

    let role = unique("role");
    let made = format!("select count(*) from pg_roles where rolname = '{role}'");
    production.sandbox.write("users/a.sql", format!("CREATE USER {role} PASSWORD 'canary';"));
    let plan = production.run(&["users", "apply", "--dry-run"]).succeeds();
    assert_eq!(
        plan.stdout,
        format!("-- users/a.sql line 1\ncreate role \"{role}\" with login password '***';\n")
    );
    assert_eq!(query_text(target, &made).await, "0");
    let plan = production.run(&["users", "apply", "--dry-run", "--json"]).succeeds();
    assert_eq!(plan.json()["statements"][0]["line"], 1);
    assert!(!plan.stdout.contains("canary"), "{}", plan.stdout);
    let run = production.run(&["users", "apply"]).exits(12);
    assert!(
        run.stderr
            .contains("hint: look at the plan, then run `seedbed users apply --env prod --yes`"),
        "{}",
        run.stderr
    );
    assert_eq!(query_text(target, &made).await, "0");
    production.run(&["users", "apply", "--yes"]).succeeds();
    assert_eq!(query_text(target, &made).await, "1");
    run_sql(&server().admin, &format!("drop role {role}")).await;
    production.drop_database().await;
}

#[tokio::test]
async fn a_file_of_another_environment_that_cannot_be_read_is_no_permission() {
    let project = Project::external(elsewhere());
    project.sandbox.write("conf/prod.toml", "protectd = true\n");
    let run = project.run(&["up", "--env", "dev"]).exits(3);
    assert!(run.stderr.contains("unknown key `protectd` in conf/prod.toml:1"), "{}", run.stderr);
    assert_eq!(project.databases().await, [""; 0]);
}
