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
        run.stderr.contains("hint: check `database.user` and `database.password`"),
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
