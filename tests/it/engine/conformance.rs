//! The same cases over every engine that starts a server.

use std::time::{Duration, Instant};

use bytes::Bytes;
use secrecy::ExposeSecret;
use seedbed::engine::{Engine, Server, ServerKind, Volumes};
use seedbed::pg::Session;
use seedbed::pg::tools::{Call, Tools};

use super::{Project, archive_server, docker_is_here, native_config, shell};
use crate::harness::unique;

/// What a second run may cost of our own time, on a machine that runs other tests as well.
const SECOND_RUN: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn docker_holds_the_contract_of_an_engine() {
    if docker_is_here() {
        hold_the_contract(Project::new("[engine]\nkind = \"docker\"\n"), ServerKind::Docker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn native_holds_the_contract_of_an_engine() {
    hold_the_contract(Project::new(&native_config()), ServerKind::Native).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_holds_the_contract_of_an_engine() {
    let server = archive_server::good();
    let config = format!(
        "[engine]\nkind = \"embedded\"\narchive_url = \"{}\"\narchive_version = \"{}\"\n",
        server.template(),
        archive_server::version(),
    );
    hold_the_contract(Project::new(&config), ServerKind::Embedded).await;
}

async fn hold_the_contract(project: Project, kind: ServerKind) {
    let engine = project.engine().await;
    let ctx = project.context();
    assert!(engine.running(&ctx).await.expect("asks").is_none(), "nothing runs yet");

    let server = engine.ensure(&ctx).await.expect("starts");
    assert_eq!(server.kind, kind);
    assert!(server.started_by_us);
    is_fast_and_closed(&server).await;
    it_keeps_its_data(&project, &engine, &server).await;
    its_clients_work(&project, &server).await;
    a_configured_password_is_set(&project, &server).await;
    a_lost_state_file_is_recovered(&project).await;
    it_goes_away(&project).await;
}

/// Settings of a throwaway server, loopback only, SCRAM for everybody.
async fn is_fast_and_closed(server: &Server) {
    let session = Session::connect(&server.admin).await.expect("connects");
    let row = session
        .query_one(
            "select current_setting('fsync'), current_setting('wal_level'),
                    (select rolpassword like 'SCRAM-SHA-256$%' from pg_authid where rolname = 'postgres'),
                    (select bool_and(auth_method in ('scram-sha-256', 'peer')) from pg_hba_file_rules)",
            &[],
        )
        .await
        .expect("queries");
    let values: (String, String, bool, bool) = (row.get(0), row.get(1), row.get(2), row.get(3));
    assert_eq!(values, ("off".to_owned(), "minimal".to_owned(), true, true));
    let wrong = server.admin.with_user("postgres", Some("wrong".to_owned().into()));
    let error = Session::connect(&wrong).await.err().expect("a wrong password is refused");
    assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
    let listens = shell(&format!("ss -Hltn 'sport = :{}' | awk '{{print $4}}'", server.admin.port));
    assert_eq!(listens, format!("127.0.0.1:{}", server.admin.port));
}

async fn it_keeps_its_data(project: &Project, engine: &Engine, server: &Server) {
    let ctx = project.context();
    let session = Session::connect(&server.admin).await.expect("connects");
    session.batch("create database kept").await.expect("creates");
    session.close().await;

    let started = Instant::now();
    let again = project.engine().await.ensure(&ctx).await.expect("is there");
    let elapsed = started.elapsed();
    assert!(elapsed < SECOND_RUN, "a second run took {elapsed:?}");
    assert_eq!(again.admin.port, server.admin.port);
    assert_eq!(again.system_identifier, server.system_identifier);

    let stopped = engine.stop(&ctx, Volumes::Keep).await.expect("stops");
    assert!(stopped.server.is_some() && stopped.data_removed.is_none(), "{stopped:?}");
    assert!(engine.running(&ctx).await.expect("asks").is_none());
    assert_eq!(engine.stop(&ctx, Volumes::Keep).await.expect("stops").server, None);

    let restarted = engine.ensure(&ctx).await.expect("starts again");
    assert_eq!(restarted.admin.port, server.admin.port, "the port is remembered");
    assert_eq!(restarted.system_identifier, server.system_identifier);
    let kept = Session::connect(&restarted.admin.with_database("kept")).await;
    kept.expect("the database is still there").close().await;
}

async fn its_clients_work(project: &Project, server: &Server) {
    let ctx = project.context();
    let target = server.admin.with_database("kept");
    let session = Session::connect(&target).await.expect("connects");
    session
        .batch(
            "create table t (id int primary key, b bytea); insert into t values (1, '\\x00ff0a')",
        )
        .await
        .expect("creates");
    session.close().await;
    let call = |program, args: &[&str]| Call {
        program,
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        target: Some(&target),
        stdin: None,
        input_file: None,
    };
    let dump = server.tools.run(&ctx, call("pg_dump", &["-Fc"])).await.expect("runs");
    assert_eq!((dump.status, dump.stderr.as_str()), (0, ""));
    assert!(dump.stdout.starts_with(b"PGDMP"));
    let archive = Bytes::from(dump.stdout);

    // From standard input, and from a file for more than one job.
    for (args, file) in [(vec!["--clean"], false), (vec!["--clean", "-j2"], true)] {
        let restore = Call {
            stdin: (!file).then(|| archive.clone()),
            input_file: file.then(|| archive.clone()),
            ..call("pg_restore", &args)
        };
        let output = server.tools.run(&ctx, restore).await.expect("runs");
        assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{args:?}");
    }
    let failed = server.tools.run(&ctx, call("psql", &["-X", "-c", "select 1/0"])).await;
    let failed = failed.expect("runs");
    assert_eq!(failed.status, 1);
    assert!(failed.stderr.contains("division by zero"), "{}", failed.stderr);

    // What a helper (or the host) has for the same version reaches the same server.
    let found = Tools::find(&ctx, server.major()).await.expect("finds");
    let dump = found.run(&ctx, call("pg_dump", &["--schema-only"])).await.expect("runs");
    assert_eq!((dump.status, dump.stderr.as_str()), (0, ""));
    drop(found);

    let interactive = server.tools.interactive(&ctx, "psql", Vec::new(), &target).await;
    let interactive = interactive.expect("psql is somewhere");
    let password = server.admin.password.as_ref().expect("it has one").expose_secret();
    assert!(interactive.args.iter().all(|arg| !arg.contains(password)));
    assert!(interactive.env.iter().any(|(name, value)| name == "PGPASSWORD" && value == password));
}

async fn a_configured_password_is_set(project: &Project, server: &Server) {
    let password = unique("chosen");
    let config = std::fs::read_to_string(project.dir.join("conf/dev.toml")).expect("we wrote it");
    project.configure(&format!("{config}superuser_password = \"{password}\"\n"));
    let ctx = project.context();
    let now = project.engine().await.ensure(&ctx).await.expect("is there");
    assert_eq!(now.admin.password.as_ref().map(|p| p.expose_secret()), Some(password.as_str()));
    assert_eq!(now.system_identifier, server.system_identifier);
    project.configure(&config);
    project.engine().await.ensure(&project.context()).await.expect("the new one is remembered");
}

async fn a_lost_state_file_is_recovered(project: &Project) {
    let engine = project.engine().await;
    let ctx = project.context();
    let before = engine.ensure(&ctx).await.expect("is there");
    engine.stop(&ctx, Volumes::Keep).await.expect("stops");
    std::fs::remove_file(project.dir.join(".seedbed/state.json")).expect("it was there");
    let after = engine.ensure(&ctx).await.expect("starts");
    assert_eq!(after.system_identifier, before.system_identifier, "the same cluster");
}

async fn it_goes_away(project: &Project) {
    let engine = project.engine().await;
    let ctx = project.context();
    let before = engine.ensure(&ctx).await.expect("is there");
    let stopped = engine.stop(&ctx, Volumes::Remove).await.expect("stops");
    assert!(stopped.server.is_some() && stopped.data_removed.is_some(), "{stopped:?}");
    let after = engine.ensure(&ctx).await.expect("starts from nothing");
    assert_ne!(after.system_identifier, before.system_identifier, "another cluster");
    engine.stop(&ctx, Volumes::Remove).await.expect("stops");
    assert!(super::container_of(project).is_empty());
}
