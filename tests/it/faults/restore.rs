//! F36: what the source has and the target has not: extensions, locales, roles.

use serde_json::json;

use super::{Case, Ended};
use crate::harness::{self, Sandbox};
use crate::journeys::elsewhere;

const UP: &[&str] = &["up", "--fresh", "--seed", "latest"];

/// Adds lines to a project's shared configuration.
fn configure(sandbox: &Sandbox, lines: &str) {
    let shared = sandbox.read("conf/seedbed.toml");
    sandbox.write("conf/seedbed.toml", format!("{shared}\n{lines}"));
}

/// Databases of the developer's server that a run of this case has made.
async fn databases(case: &Case) -> String {
    let name = &case.dev_database.database;
    let sql = format!("select count(*) from pg_database where datname like '{name}%'");
    harness::postgres::query_text(&elsewhere().admin, &sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_missing_extensions_are_listed_before_anything_is_made_and_may_be_left_out() {
    // Extensions as a managed service has them, on no server of ours.
    let sql = format!(
        "{}
         create extension hstore;
         create extension pg_trgm;
         update pg_extension set extname = 'aws_s3' where extname = 'hstore';
         update pg_extension set extname = 'rds_tools' where extname = 'pg_trgm';",
        super::SHOP
    );
    let case = Case::on(harness::server(), &sql, "").await;
    case.create(None).succeeds();
    let run = case.dev(UP, None);
    assert!(run.stderr.contains("aws_s3") && run.stderr.contains("rds_tools"), "{}", run.stderr);
    case.holds(&run, Ended::Failed(8)).await;
    assert_eq!(databases(&case).await, "0", "nothing was made");
    let why = case.dev(&["snapshot", "why"], None).succeeds();
    assert!(why.stdout.contains("aws_s3") && why.stdout.contains("rds_tools"), "{}", why.stdout);

    configure(&case.dev, "[restore]\nignore_extensions = [\"aws_s3\", \"rds_tools\"]\n");
    let run = case.dev(UP, None);
    case.holds(&run, Ended::Reached).await;
    case.restores().await;

    // A table that cannot be without one: named, and the old database stays.
    case.source.run("create table uses (h hstore); insert into uses values ('a=>1')").await;
    case.source_changed().await;
    case.create(None).succeeds();
    let run = case.dev(UP, None);
    assert!(run.stderr.contains("hstore"), "{}", run.stderr);
    case.holds(&run, Ended::Failed(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_a_missing_locale_is_replaced_and_said() {
    let case = Case::new().await;
    case.create(None).succeeds();
    let manifest = case.files("snapshots").pop().expect("one");
    let mut document: serde_json::Value =
        serde_json::from_slice(&case.read(&manifest)).expect("JSON");
    document["format"] = json!(1);
    document.as_object_mut().expect("an object").remove("checksum");
    document["server"]["collate"] = json!("xx_YY.utf8");
    document["server"]["ctype"] = json!("xx_YY.utf8");
    case.write(&manifest, document.to_string());
    let run = case.dev(UP, None);
    assert!(run.stderr.contains("this server has no locale `xx_YY.utf8`"), "{}", run.stderr);
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_roles_that_are_missing_are_left_out_or_made_without_login() {
    let server = harness::server();
    let (owner, guest) = (server.create_role("").await, server.create_role("").await);
    let sql = format!(
        "{}
         alter table customer owner to {owner};
         grant select on note to {guest};
         alter table note enable row level security;
         create policy mine on note to {guest} using (true);
         alter default privileges for role {owner} grant select on tables to {guest};",
        super::SHOP,
        owner = owner.name,
        guest = guest.name,
    );
    let case = Case::on(server, &sql, "").await;
    case.create(None).succeeds();
    let target = &elsewhere().admin;
    let roles = format!(
        "select string_agg(rolname || ' ' || rolcanlogin, ', ' order by rolname) from pg_roles
         where rolname in ('{}', '{}')",
        owner.name, guest.name
    );
    // Only the role that a policy names is needed.
    let run = case.dev(UP, None);
    let said = format!("this server lacks are made without login: `{}`\n", guest.name);
    assert!(run.stderr.contains(&said), "{}", run.stderr);
    case.holds(&run, Ended::Reached).await;
    let found = harness::postgres::query_text(target, &roles).await;
    assert_eq!(found, format!("{} false", guest.name));

    configure(&case.dev, "[restore]\nowners = \"keep\"\n");
    case.source.run("insert into note values (1, 'again')").await;
    case.source_changed().await;
    case.create(None).succeeds();
    let run = case.dev(UP, None);
    let said = format!("this server lacks are made without login: `{}`\n", owner.name);
    assert!(run.stderr.contains(&said), "{}", run.stderr);
    case.holds(&run, Ended::Reached).await;
    let found = harness::postgres::query_text(target, &roles).await;
    let mut wanted = [format!("{} false", guest.name), format!("{} false", owner.name)];
    wanted.sort();
    assert_eq!(found, wanted.join(", "));
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_what_only_a_managed_service_has_comes_as_far_as_it_can_and_is_said() {
    // Its roles own things, its extension has a schema of its own, its settings are unknown here.
    let sql = format!(
        "{}
         create role rdsadmin; create role rds_superuser;
         create schema rds_jobs authorization rdsadmin;
         create table rds_jobs.run (run_id int primary key);
         insert into rds_jobs.run select generate_series(1, 10);
         alter table rds_jobs.run owner to rdsadmin;
         create extension hstore with schema rds_jobs;
         update pg_extension set extname = 'aws_lambda' where extname = 'hstore';
         alter table note enable row level security;
         create policy team on note to rds_superuser using (true);
         do $$ begin
           execute format('alter database %I set rds.purpose = ''weekly''', current_database());
         end $$;",
        super::SHOP
    );
    let case = Case::on(harness::server(), &sql, "[restore]\nowners = \"keep\"\n").await;
    case.create(None).succeeds();
    let run = case.dev(UP, None);
    assert!(run.stderr.contains("does not have the extension `aws_lambda`"), "{}", run.stderr);
    case.holds(&run, Ended::Failed(8)).await;
    assert_eq!(databases(&case).await, "0", "nothing was made");

    configure(&case.dev, "ignore_extensions = [\"aws_lambda\"]\n");
    let run = case.dev(UP, None);
    let said = "made without login: `rds_superuser`, `rdsadmin`\n";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f36_columns_in_lz4_are_loaded_by_a_server_that_was_built_without_it() {
    let Some(poor) = harness::Server::start_without_lz4() else { return };
    let sql = format!(
        "{}
         alter table note alter column text set compression lz4;
         create table packed (\"Odd name\" text compression lz4, other text compression pglz);
         insert into packed select repeat(md5(n::text), 200), 'x' from generate_series(1, 50) n;
         create materialized view copied as select text from note;
         alter materialized view copied alter column text set compression lz4;
         do $$ begin
           execute format('alter database %I set default_toast_compression = lz4', current_database());
         end $$;",
        super::SHOP
    );
    let mut case = Case::on(harness::server(), &sql, "").await;
    case.create(None).succeeds();
    case.moves_to(&poor);
    case.dev.set("PATH", &format!("{}:/usr/bin:/bin", poor.bin_dir.display()));
    let run = case.dev(UP, None);
    let said = "this server was built without lz4: `public.copied.text`, `public.note.text`, \
        `public.packed.\"Odd name\"` will be compressed in its own way";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    let said = "setting `default_toast_compression` is left out";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    case.holds(&run, Ended::Reached).await;
    case.restores().await;
}
