//! A server that somebody else runs, and an account that may do little on it.

use crate::harness::postgres::run_sql;
use crate::harness::{Sandbox, Server};

/// A server of the test's own, whose account `app` owns the database `app`.
async fn site() -> (Server, Sandbox) {
    let server = Server::start(&[]);
    run_sql(&server.admin, "create role app login password 'word'").await;
    run_sql(&server.admin, "create database app owner app").await;
    let sandbox = Sandbox::new();
    sandbox.write("sql/V1__a.sql", "create table a (id int);\n");
    sandbox.write(
        "conf/dev.toml",
        format!(
            "[engine]\nkind = \"external\"\n[database]\nurl = \
             \"postgresql://app:word@127.0.0.1:{}/app?sslmode=disable\"\n",
            server.admin.port
        ),
    );
    (server, sandbox)
}

/// Lets accounts other than the superuser into the databases of their own names only.
fn shut(server: &Server) {
    let data = server.data_dir.as_ref().expect("a server that the harness started");
    let lines = "host all postgres 127.0.0.1/32 scram-sha-256\n\
        host sameuser all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(data.join("pg_hba.conf"), lines).expect("the folder is ours");
    server.restart_at_once();
}

#[tokio::test]
async fn an_account_that_may_not_connect_to_postgres_migrates_its_database() {
    let (server, sandbox) = site().await;
    run_sql(&server.admin, "revoke connect on database postgres from public").await;
    sandbox.run(&["migrate"]).succeeds();
    for verb in ["info", "validate", "url", "status"] {
        sandbox.run(&[verb]).succeeds();
    }
    run_sql(&server.admin.with_database("app"), "select from a").await;
}

#[tokio::test]
async fn a_privilege_that_is_missing_is_named_with_what_grants_it() {
    let (server, sandbox) = site().await;
    run_sql(&server.admin, "alter database app owner to postgres").await;
    let app = server.admin.with_database("app");
    // As PostgreSQL has it from 15 on.
    run_sql(&app, "revoke create on schema public from public").await;
    let run = sandbox.run(&["--quiet", "migrate"]).exits(5);
    assert_eq!(
        run.stderr,
        "error: create the history table \"public\".\"flyway_schema_history\": permission denied for \
         schema public (SQLSTATE 42501)\n  \
         hint: as its owner or a superuser: `grant usage, create on schema \"public\" to \"app\"`\n  \
         hint: or let it own the database: `alter database \"app\" owner to \"app\"`\n"
    );
    run_sql(&app, "grant usage, create on schema public to app").await;
    sandbox.run(&["migrate"]).succeeds();
    run_sql(&app, "create table t (id int)").await;
    for (script, hint) in [
        (
            "create schema s",
            "as its owner or a superuser: `grant create on database \"app\" to \"app\"`",
        ),
        ("select from t", "grant it to `app` as the owner or a superuser"),
        ("alter table t add x int", "let `app` own the table t, or run it as the owner"),
    ] {
        sandbox.write("sql/V2__b.sql", script);
        let run = sandbox.run(&["--quiet", "migrate"]).exits(6);
        let hints: Vec<&str> = run.stderr.lines().filter(|line| line.contains("hint: ")).collect();
        let again = "  hint: then run `seedbed migrate` again";
        assert_eq!(hints, [&format!("  hint: {hint}"), again], "{}", run.stderr);
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_to_be_created() {
    let (_server, mut sandbox) = site().await;
    sandbox.set("SEEDBED_DATABASE_NAME", "nowhere");
    for verb in ["migrate", "info", "validate", "repair", "baseline", "undo"] {
        let run = sandbox.run(&["--quiet", verb]).exits(4);
        assert!(run.stderr.contains("database \"nowhere\" does not exist"), "{}", run.stderr);
        let hint = "  hint: create it, or run `seedbed up` where the server is the project's own\n";
        assert!(run.stderr.ends_with(hint), "{}", run.stderr);
    }
}

#[tokio::test]
async fn an_account_that_is_let_into_its_database_only_migrates_it() {
    let (server, sandbox) = site().await;
    shut(&server);
    sandbox.run(&["migrate"]).succeeds();
    for verb in ["info", "validate", "url", "status"] {
        sandbox.run(&[verb]).succeeds();
    }
}

#[tokio::test]
async fn a_wrong_password_is_an_error_of_the_login() {
    let (_server, mut sandbox) = site().await;
    sandbox.set("SEEDBED_DATABASE_PASSWORD", "canary");
    let run = sandbox.run(&["--quiet", "migrate"]).exits(4);
    assert!(
        run.stderr.contains("password authentication failed for user \"app\""),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains(
            "hint: check `database.user` and `database.password`, in Flyway's files `flyway.user` and \
             `flyway.password`\n"
        ),
        "{}",
        run.stderr
    );
    let run = sandbox.run(&["--quiet", "users", "apply"]).exits(4);
    assert!(
        run.stderr.contains("password authentication failed for user \"app\""),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn a_database_that_lets_nobody_in_is_named_with_what_opens_it() {
    let (server, sandbox) = site().await;
    run_sql(&server.admin, "alter database app with allow_connections false").await;
    let run = sandbox.run(&["--quiet", "migrate"]).exits(4);
    for said in [
        "database \"app\" is not currently accepting connections",
        "hint: a run may have closed it and been killed: `seedbed up` opens what is its own\n",
    ] {
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
}
