//! `seed`: a chosen snapshot, a version to stop at, a file of the team's own.

use std::io::Write;

use super::{Project, elsewhere};
use crate::harness::postgres::run_sql;
use crate::harness::server;

async fn ready() -> Project {
    let project = Project::external(elsewhere()).with_snapshot().await;
    project.run(&["up"]).succeeds();
    project
}

fn id(project: &Project) -> String {
    let list = project.run(&["snapshot", "list"]).succeeds().stdout;
    let row = list.lines().nth(1).and_then(|row| row.split_whitespace().next());
    row.unwrap_or_else(|| panic!("no snapshot in {list}")).to_owned()
}

#[tokio::test]
async fn seed_takes_a_snapshot_by_its_id_and_stops_migrating_where_it_is_told() {
    let project = ready().await;
    let id = id(&project);
    // Repeatable scripts run whatever the target, as in Flyway: this one needs no later version.
    project.sandbox.write(
        "sql/R__totals.sql",
        "create or replace view shop.names as select name from shop.customer;",
    );
    let run = project.run(&["seed", "--snapshot", &id, "--to", "1"]).succeeds();
    assert!(run.stdout.contains("schema version 1\n"), "{}", run.stdout);
    assert!(run.stdout.contains("migrated  R__totals.sql ("), "{}", run.stdout);
    assert_eq!(project.text("select to_regclass('shop.purchase') is null").await, "t");
    let status = project.run(&["status"]).succeeds();
    assert!(status.stdout.contains("pending      2 purchases\n"), "{}", status.stdout);
    assert!(
        status.stdout.contains(&format!("data         snapshot {id}, taken ")),
        "{}",
        status.stdout
    );

    let up = project.run(&["up"]).succeeds();
    assert!(up.stdout.contains("V2__purchases.sql"), "{}", up.stdout);
    let latest = project.run(&["seed", "--snapshot", "latest"]).succeeds();
    assert!(latest.stdout.contains("schema version 2\n"), "{}", latest.stdout);

    let before = project.contents().await;
    let run = project.run(&["seed", "--snapshot", "latest", "--to", "9"]).exits(2);
    assert!(
        run.stderr.contains("there is no migration with the target version 9"),
        "{}",
        run.stderr
    );
    let run = project.run(&["seed", "--snapshot", "0000"]).exits(8);
    assert!(
        run.stderr.ends_with(
            "error: no snapshot's id begins with `0000`\n  hint: see their ids: `seedbed snapshot list`\n"
        ),
        "{}",
        run.stderr
    );
    assert_eq!(project.contents().await, before);
    assert_eq!(project.databases().await, ["live", "template"]);
}

#[tokio::test]
async fn a_file_of_the_teams_own_is_loaded_whole_or_not_at_all() {
    let project = ready().await;
    let plain = "insert into shop.customer (name) values ('plain');
copy shop.item (label, cents) from stdin;
one\t1
two\t2
\\.
";
    project.sandbox.write("plain.sql", plain);
    let run = project.run(&["seed", "--file", "plain.sql"]).succeeds();
    assert!(run.stdout.contains("loaded plain.sql ("), "{}", run.stdout);
    assert!(run.stdout.contains("2 statements, 2 rows by copy"), "{}", run.stdout);

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(plain.as_bytes()).expect("into memory");
    project.sandbox.write("packed.sql.gz", gzip.finish().expect("into memory"));
    let run = project.run(&["seed", "--file", "packed.sql.gz"]).succeeds();
    assert!(run.stdout.contains("2 statements, 2 rows by copy"), "{}", run.stdout);

    let source = server().create_database().await;
    source
        .run("create schema shop; create table shop.gift (n int); insert into shop.gift values (7)")
        .await;
    let file = project.sandbox.project().join("gift.dump");
    let password = {
        use secrecy::ExposeSecret;
        source.target.password.as_ref().expect("the harness has one").expose_secret().to_owned()
    };
    let dumped = std::process::Command::new(server().bin_dir.join("pg_dump"))
        .args(["-Fc", "--table=shop.gift", "--file", file.as_str()])
        .args([
            "--host=127.0.0.1",
            "--username=postgres",
            "--port",
            &source.target.port.to_string(),
        ])
        .arg(source.name())
        .env("PGPASSWORD", password)
        .status()
        .expect("pg_dump lies beside the server");
    assert!(dumped.success());
    let run = project.run(&["seed", "--file", "gift.dump"]).succeeds();
    assert!(run.stdout.starts_with("loaded gift.dump ("), "{}", run.stdout);
    assert_eq!(project.text("select n from shop.gift").await, "7");
    let counts = "select (select count(*) from shop.customer), (select count(*) from shop.item)";
    assert_eq!(project.text(counts).await, "302|5004");

    project
        .sandbox
        .write("broken.sql", "delete from shop.gift;\ninsert into shop.nothing\nvalues (1);\n");
    let run = project.run(&["seed", "--file", "broken.sql"]).exits(6);
    assert!(run.stderr.contains("error: run seed file `broken.sql` line 2: "), "{}", run.stderr);
    assert!(run.stderr.contains("relation \"shop.nothing\" does not exist"), "{}", run.stderr);
    assert_eq!(project.text("select n from shop.gift").await, "7");

    let run = project.run(&["seed", "--file", "nowhere.sql"]).exits(6);
    assert!(run.stderr.contains("read seed file `nowhere.sql`: "), "{}", run.stderr);
}

#[tokio::test]
async fn a_file_is_never_loaded_into_what_is_not_ours() {
    let project = Project::external(elsewhere());
    project.sandbox.write("plain.sql", "create table public.loaded ();");
    run_sql(&project.admin(), &format!("create database {}", project.database)).await;
    let run = project.run(&["seed", "--file", "plain.sql"]).exits(12);
    assert!(run.stderr.contains("was not made by seedbed"), "{}", run.stderr);
    assert_eq!(project.text("select to_regclass('public.loaded') is null").await, "t");

    let stopped = Project::native();
    stopped.sandbox.write("plain.sql", "select 1;");
    let run = stopped.run(&["seed", "--file", "plain.sql"]).exits(4);
    assert!(run.stderr.ends_with("hint: start it with `seedbed up`\n"), "{}", run.stderr);
}
