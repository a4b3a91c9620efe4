//! Migrations against a real server: what Flyway promises, and what we promise beyond.

mod before_merge;
mod callbacks;
mod elsewhere;
mod faults;
mod history;
mod refused;
mod revived;
mod runners;
mod scenarios;
mod site;
mod statements;
mod verbs;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8PathBuf;
use seedbed::config::{self, Flags};
use seedbed::context::Context;
use seedbed::env::Env;
use seedbed::error::Exit;
use seedbed::migrate::{self, Error, Options, Outcome};
use seedbed::pg::names::DatabaseName;
use seedbed::pg::{Session, Target};
use seedbed::report::{Event, Report, Reporter};
use tokio_util::sync::CancellationToken;

use crate::harness::{TestDatabase, server};

/// A project folder and an empty database.
struct Project {
    _folder: tempfile::TempDir,
    root: Utf8PathBuf,
    database: TestDatabase,
    warnings: Reporter,
    cancel: CancellationToken,
}

impl Project {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("makes a folder");
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).expect("is UTF-8");
        let project = Self {
            _folder: folder,
            root,
            database: server().create_database().await,
            warnings: Reporter::silent(),
            cancel: CancellationToken::new(),
        };
        let target = &project.database.target;
        let conf = format!(
            "flyway.url=jdbc:postgresql://{}:{}/{}\nflyway.user={}\nflyway.locations=filesystem:sql\n",
            target.host,
            target.port,
            project.database.name(),
            target.user
        );
        project.file("conf/dev.conf", &conf);
        std::fs::create_dir_all(project.root.join("sql")).expect("makes a folder");
        project
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.root.join(name);
        std::fs::create_dir_all(path.parent().expect("has a folder")).expect("makes a folder");
        std::fs::write(path, content).expect("writes");
    }

    fn sql(&self, name: &str, content: impl AsRef<[u8]>) {
        self.file(&format!("sql/{name}"), content);
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.root.join("sql").join(name)).expect("removes");
    }

    fn context(&self, settings: &[(&str, &str)]) -> Context {
        let env = Env::from_variables([], self.root.clone());
        let overrides = settings.iter().map(|(key, value)| config::Override {
            key: format!("flyway.{key}"),
            value: (*value).to_owned(),
            flag: format!("--set flyway.{key}"),
        });
        let flags = Flags {
            project: Some(self.root.clone()),
            env: Some("dev".to_owned()),
            overrides: overrides.collect(),
        };
        let config = config::load(&env, &flags).unwrap_or_else(|error| panic!("{error}"));
        Context {
            config: Arc::new(config),
            env: Arc::new(env),
            report: self.warnings.clone(),
            cancel: self.cancel.clone(),
            yes: true,
        }
    }

    fn names(&self) -> DatabaseName {
        DatabaseName::live(self.database.name())
    }

    async fn migrate(&self) -> Result<Outcome, Error> {
        self.migrate_with(&[]).await
    }

    async fn migrate_with(&self, settings: &[(&str, &str)]) -> Result<Outcome, Error> {
        self.migrate_as(&self.database.target, &self.names(), settings).await
    }

    async fn migrate_as(
        &self,
        target: &Target,
        names: &DatabaseName,
        settings: &[(&str, &str)],
    ) -> Result<Outcome, Error> {
        let ctx = self.context(settings);
        let scripts = migrate::resolve(&ctx, names, &target.user)?;
        migrate::run(&ctx, target, names, &scripts, &Options::default()).await
    }

    async fn migrates(&self) -> Vec<String> {
        self.migrates_with(&[]).await
    }

    /// The scripts that ran.
    async fn migrates_with(&self, settings: &[(&str, &str)]) -> Vec<String> {
        match self.migrate_with(settings).await {
            Ok(outcome) => outcome.applied.into_iter().map(|ran| ran.script).collect(),
            Err(error) => panic!("{error}"),
        }
    }

    async fn fails(&self) -> Error {
        self.fails_with(&[]).await
    }

    async fn fails_with(&self, settings: &[(&str, &str)]) -> Error {
        match self.migrate_with(settings).await {
            Ok(outcome) => panic!("went through: {outcome:?}"),
            Err(error) => error,
        }
    }

    async fn states(&self, settings: &[(&str, &str)]) -> Vec<String> {
        let ctx = self.context(settings);
        let scripts = migrate::resolve(&ctx, &self.names(), "postgres").expect("resolves");
        let info = migrate::info(&ctx, &self.database.target, &scripts).await.expect("reads");
        info.migrations
            .into_iter()
            .map(|row| {
                format!("{} {} {}", row.version.unwrap_or_default(), row.description, row.state)
            })
            .collect()
    }

    /// Rank, version, description, type, script, checksum, success of each row.
    async fn history(&self) -> String {
        let sql = "select installed_rank, version, description, type, script, checksum, success
            from flyway_schema_history order by installed_rank";
        self.database.text(sql).await
    }
}

/// A `.conf` file that names the database.
fn flyway_conf(database: &TestDatabase) -> String {
    use secrecy::ExposeSecret;
    let target = &database.target;
    format!(
        "flyway.url=jdbc:postgresql://{}:{}/{}\nflyway.user={}\nflyway.password={}\n\
         flyway.locations=filesystem:sql\n",
        target.host,
        target.port,
        database.name(),
        target.user,
        target.password.as_ref().map_or("", |password| password.expose_secret())
    )
}

/// `outOfOrder` as a flag: `out-of-order`.
fn kebab(key: &str) -> String {
    let mut flag = String::new();
    for c in key.chars() {
        match c {
            '.' => flag.push('-'),
            c if c.is_ascii_uppercase() => {
                flag.push('-');
                flag.push(c.to_ascii_lowercase());
            }
            c => flag.push(c),
        }
    }
    flag
}

#[tokio::test]
async fn a_path_that_a_script_sets_does_not_reach_the_next_script() {
    let project = Project::new().await;
    project.sql("V1__a.sql", "create table a (id int);");
    project.sql("V2__b.sql", "create table b (id int);");
    project.sql("V3__set.sql", "create schema other; set search_path = other;");
    project.sql("V4__c.sql", "create table c (id int);");
    project.sql("V5__role.sql", "create role wanderer_of_v5; grant create on schema public to wanderer_of_v5; set role wanderer_of_v5;");
    project.sql("V6__d.sql", "create table d (id int);");
    let ran = project.migrates().await;
    let owners =
        "select string_agg(schemaname || '.' || tablename || ' ' || tableowner, ',' order by 1)
        from pg_tables where tablename in ('a', 'b', 'c', 'd')";
    let owners = project.database.text(owners).await;
    project.database.run("drop owned by wanderer_of_v5; drop role wanderer_of_v5").await;
    assert_eq!(ran.len(), 6);
    assert_eq!(owners, "public.a postgres,public.b postgres,public.c postgres,public.d postgres");
}

const TABLE: &str = "create table a (id int);\n";

#[tokio::test]
async fn ordinary_scripts_run_in_order_and_are_recorded_as_flyway_does() {
    let project = Project::new().await;
    project.sql("V1__one.sql", TABLE);
    project.sql("V10__ten.sql", "create table d (id int);\n");
    project.sql("V1_1__one_one.sql", "create table b (id int);\n");
    project.sql("sub/V3__in_sub.sql", "create table e (id int);\n");
    project.sql("R__b_view.sql", "create or replace view vb as select 1 x;\n");
    project.sql("R__a_view.sql", "create or replace view va as select 1 x;\n");
    let outcome = project.migrate().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((outcome.before, outcome.after.as_deref()), (None, Some("10")));
    assert_eq!(outcome.schema, "public");
    // The checksums of the same files that real Flyway recorded.
    assert_eq!(
        project.history().await,
        "1|1|one|SQL|V1__one.sql|-897341557|t\n\
         2|1.1|one one|SQL|V1_1__one_one.sql|1398915466|t\n\
         3|3|in sub|SQL|sub/V3__in_sub.sql|2052772873|t\n\
         4|10|ten|SQL|V10__ten.sql|-1143731255|t\n\
         5|∅|a view|SQL|R__a_view.sql|-1693093813|t\n\
         6|∅|b view|SQL|R__b_view.sql|-1294089031|t"
    );
    assert_eq!(project.migrates().await, Vec::<String>::new(), "the second run has nothing to do");
    let sessions = "select count(*) from pg_locks where locktype = 'advisory'
        and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(project.database.text(sessions).await, "0", "the lock is given back");
}

#[tokio::test]
async fn the_history_table_is_flyways_to_the_letter() {
    let project = Project::new().await;
    project.migrates().await;
    let columns = "select column_name, data_type, character_maximum_length, is_nullable, column_default
        from information_schema.columns where table_name = 'flyway_schema_history' order by ordinal_position";
    assert_eq!(
        project.database.text(columns).await,
        "installed_rank|integer|∅|NO|∅\nversion|character varying|50|YES|∅\n\
         description|character varying|200|NO|∅\ntype|character varying|20|NO|∅\n\
         script|character varying|1000|NO|∅\nchecksum|integer|∅|YES|∅\n\
         installed_by|character varying|100|NO|∅\n\
         installed_on|timestamp without time zone|∅|NO|now()\n\
         execution_time|integer|∅|NO|∅\nsuccess|boolean|∅|NO|∅"
    );
    let indexes =
        "select indexdef from pg_indexes where tablename = 'flyway_schema_history' order by 1";
    assert_eq!(
        project.database.text(indexes).await,
        "CREATE INDEX flyway_schema_history_s_idx ON public.flyway_schema_history USING btree (success)\n\
         CREATE UNIQUE INDEX flyway_schema_history_pk ON public.flyway_schema_history USING btree \
         (installed_rank)"
    );
}

#[tokio::test]
async fn a_changed_repeatable_runs_again_with_a_row_of_its_own() {
    let project = Project::new().await;
    project.sql("R__v.sql", "create or replace view v as select 1 as x;");
    assert_eq!(project.migrates().await, ["R__v.sql"]);
    project.sql("R__v.sql", "create or replace view v as select 2 as x;");
    assert_eq!(project.states(&[]).await, [" v Outdated", " v Pending"]);
    assert_eq!(project.migrates().await, ["R__v.sql"]);
    assert_eq!(project.states(&[]).await, [" v Superseded", " v Success"]);
    assert_eq!(project.database.text("select x from v").await, "2");
}

#[tokio::test]
async fn a_failing_script_shows_its_place_and_leaves_nothing() {
    let project = Project::new().await;
    project.sql("V1__ok.sql", TABLE);
    project
        .sql("V2__bad.sql", "create table b (id int);\n\n  insert into b\n  valuse ('é'), nope;\n");
    let error = project.fails().await;
    assert_eq!(
        error.to_string(),
        "run `sql/V2__bad.sql`, line 4, column 3: syntax error at or near \"valuse\" (SQLSTATE 42601)\n  \
         4 |   valuse ('é'), nope;\n    |   ^\n\
         rolled back: the database is as it was before this script"
    );
    assert_eq!(error.exit(), Exit::Script);
    assert_eq!(error.hints(), ["correct the script and run `seedbed migrate` again"]);
    assert_eq!(project.history().await, "1|1|ok|SQL|V1__ok.sql|-897341557|t");
    assert_eq!(project.database.text("select to_regclass('b') is null").await, "t");
    project.sql("V2__bad.sql", "create table b (id int);");
    assert_eq!(project.migrates().await, ["V2__bad.sql"]);
}

#[tokio::test]
async fn an_error_after_placeholders_is_shown_in_the_file_not_in_what_ran() {
    let project = Project::new().await;
    project.sql("V1__x.sql", "select 1; select '${long}'; select ${long} nope;");
    let error = project.fails_with(&[("placeholders.long", "1 -- \n, 2,")]).await.to_string();
    assert!(
        error.starts_with("run `sql/V1__x.sql`, line 1, column 44: column \"nope\""),
        "{error}"
    );
    assert!(!error.contains("1 --"), "{error}");
}

#[tokio::test]
async fn a_deferred_constraint_that_fails_at_the_end_rolls_back() {
    let project = Project::new().await;
    project.sql(
        "V1__x.sql",
        "create table a (id int primary key);
         create table b (a int references a deferrable initially deferred);
         insert into b values (1);",
    );
    let error = project.fails().await.to_string();
    assert!(error.starts_with("run `sql/V1__x.sql`: insert or update on table"), "{error}");
    assert_eq!(project.history().await, "");
}

#[tokio::test]
async fn a_changed_checksum_is_refused_before_anything_runs() {
    let project = Project::new().await;
    project.sql("V1__a.sql", TABLE);
    project.migrates().await;
    project.sql("V1__a.sql", "create table a (id bigint);\n");
    project.sql("V2__b.sql", "create table b (id int);");
    let error = project.fails().await;
    assert_eq!(
        error.to_string(),
        "the migration history does not match the files:\n  version 1 (`V1__a.sql`) was changed after it \
         ran: checksum -897341557 in the history, -1731422598 here"
    );
    assert_eq!(error.exit(), Exit::History);
    assert_eq!(error.hints().len(), 2);
    assert_eq!(project.database.text("select to_regclass('b') is null").await, "t");
    assert_eq!(project.migrates_with(&[("validateOnMigrate", "false")]).await, ["V2__b.sql"]);
}

#[tokio::test]
async fn a_missing_file_and_a_late_one_are_refused_unless_told_otherwise() {
    let project = Project::new().await;
    project.sql("V1__a.sql", "select 1;");
    project.sql("V3__c.sql", "select 3;");
    project.migrates().await;
    project.remove("V1__a.sql");
    project.sql("V2__b.sql", "select 2;");
    assert_eq!(project.states(&[]).await, ["1 a Missing", "3 c Success", "2 b Ignored"]);
    let error = project.fails().await;
    let Error::Invalid(found) = &error else { panic!("{error}") };
    let codes: Vec<&str> = found.iter().map(|finding| finding.code).collect();
    assert_eq!(
        codes,
        ["APPLIED_VERSIONED_MIGRATION_NOT_RESOLVED", "RESOLVED_VERSIONED_MIGRATION_NOT_APPLIED"]
    );
    let settings = [("outOfOrder", "true"), ("ignoreMigrationPatterns", "*:missing")];
    assert_eq!(project.migrates_with(&settings).await, ["V2__b.sql"]);
    let states = project.states(&settings).await;
    assert_eq!(states, ["1 a Missing", "3 c Success", "2 b Out of Order"]);
}

#[tokio::test]
async fn two_runners_at_once_apply_each_script_once() {
    let project = Project::new().await;
    for number in 1..=8 {
        project.sql(
            &format!("V{number}__t.sql"),
            format!("create table t{number} (id int); select pg_sleep(0.05);"),
        );
    }
    let settings = [("lockRetryCount", "60")];
    let (first, second) =
        tokio::join!(project.migrate_with(&settings), project.migrate_with(&settings));
    let applied = |result: Result<Outcome, Error>| match result {
        Ok(outcome) => outcome.applied.len(),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(applied(first) + applied(second), 8);
    let ranks = "select string_agg(installed_rank::text, ',' order by installed_rank)
        from flyway_schema_history";
    assert_eq!(project.database.text(ranks).await, "1,2,3,4,5,6,7,8");
}

#[tokio::test]
async fn a_lock_that_is_held_is_waited_for_and_then_names_its_holder() {
    let project = Project::new().await;
    project.sql("V1__a.sql", "select 1;");
    let holder = Session::connect(&project.database.target).await.expect("connects");
    holder.batch("select pg_advisory_lock(77433833903597)").await.expect("locks");
    let error = project.fails_with(&[("lockRetryCount", "1")]).await;
    assert_eq!(error.exit(), Exit::Locked);
    let text = error.to_string();
    assert!(text.contains("of `postgres` running `seedbed`"), "{text}");
    // Flyway's own lock ends with its transaction; it is the same key.
    holder
        .batch(
            "select pg_advisory_unlock(77433833903597); begin;
        select pg_advisory_xact_lock(77433833903597)",
        )
        .await
        .expect("locks");
    assert_eq!(project.fails_with(&[("lockRetryCount", "0")]).await.exit(), Exit::Locked);
    holder.batch("commit").await.expect("commits");
    assert_eq!(project.migrates().await, ["V1__a.sql"]);
}

#[tokio::test]
async fn a_concurrent_index_is_built_outside_of_a_transaction() {
    let project = Project::new().await;
    project.sql("V1__a.sql", TABLE);
    project.sql("V2__i.sql", "-- online\ncreate index concurrently ia on a (id);");
    let result = tokio::time::timeout(Duration::from_secs(30), project.migrates()).await;
    assert_eq!(result.expect("does not hang"), ["V1__a.sql", "V2__i.sql"]);
    assert_eq!(
        project
            .database
            .text("select indisvalid from pg_index where indexrelid = 'ia'::regclass")
            .await,
        "t"
    );
    project
        .sql("V3__mixed.sql", "create table c (id int);\ncreate index concurrently ic on c (id);");
    let error = project.fails().await;
    assert!(matches!(error, Error::Mixed { .. }), "{error}");
    assert!(error.to_string().contains("line 2: this statement cannot run in a transaction"));
    assert_eq!(project.database.text("select to_regclass('c') is null").await, "t");
    assert_eq!(project.migrates_with(&[("mixed", "true")]).await, ["V3__mixed.sql"]);
}

#[tokio::test]
async fn a_half_done_script_outside_of_a_transaction_is_recorded_and_blocks() {
    let project = Project::new().await;
    project.sql("V1__x.sql", "create table a (id int);\nselect nope;\ncreate table b (id int);");
    project.sql("V1__x.sql.conf", "executeInTransaction=false\n");
    let error = project.fails().await;
    let text = error.to_string();
    assert!(
        text.ends_with(
            "it ran without a transaction: the statement before this stays; \
         the history has a row of it marked as failed"
        ),
        "{text}"
    );
    assert!(project.history().await.ends_with("|f"));
    let error = project.fails().await;
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    let error = project.fails_with(&[("validateOnMigrate", "false")]).await;
    assert_eq!(error.exit(), Exit::History, "{error}");
}

#[tokio::test]
async fn inline_copy_data_is_loaded() {
    let project = Project::new().await;
    let rows: String = (0..50_000).map(|number| format!("{number}\tit's; $$ {number}\n")).collect();
    let sql = format!(
        "create table t (id int, s text);\nCOPY t (id, s) FROM STDIN;\n{rows}\\.\n\
         copy t from stdin with (format csv);\n-1,${{who}}\n\\.\n\
         copy t to stdout;\ninsert into t values (-2, 'x');\n"
    );
    project.sql("V1__t.sql", sql);
    project.migrates_with(&[("placeholders.who", "me")]).await;
    let found = "select count(*), min(id), max(s) filter (where id = 7), max(s) filter (where id = -1) from t";
    assert_eq!(project.database.text(found).await, "50002|-2|it's; $$ 7|me");
}

#[tokio::test]
async fn a_bad_row_of_inline_data_is_shown_with_its_line() {
    let project = Project::new().await;
    project.sql("V1__t.sql", "create table t (id int);\ncopy t from stdin;\n1\n2\nthree\n\\.\n");
    let text = project.fails().await.to_string();
    assert!(
        text.starts_with("run `sql/V1__t.sql`, line 5: invalid input syntax for type integer"),
        "{text}"
    );
    assert!(text.contains("  5 | three\nrolled back"), "{text}");
    assert_eq!(project.history().await, "");
    // Outside of a transaction, the failure is recorded on a new connection.
    project.sql("V1__t.sql.conf", "executeInTransaction=false");
    let text = project.fails().await.to_string();
    assert!(text.ends_with("the history has a row of it marked as failed"), "{text}");
}

#[tokio::test]
async fn a_row_of_inline_data_that_breaks_a_constraint_is_shown() {
    let project = Project::new().await;
    let table = "create table t (id text primary key, n int not null check (n < 9));\n";
    for (rows, line, shown) in [
        ("a\t1\nb\t2\na\t3\n", 5, "\n  5 | a\t3\nrolled back"),
        ("a\t1\r\nb\t2\r\na\t3\r\n", 5, "\n  5 | a\t3\nrolled back"),
        ("a\t1\nb\t\\N\n", 4, "\n  4 | b\t\\N\nrolled back"),
        ("a\t1\nb\t9\nc\t1\n", 4, "\n  4 | b\t9\nrolled back"),
        ("a\t1\n\n", 4, "(SQLSTATE 22P04)\nrolled back"),
    ] {
        project.sql("V1__t.sql", format!("{table}copy t from stdin;\n{rows}\\.\n"));
        let text = project.fails().await.to_string();
        assert!(text.starts_with(&format!("run `sql/V1__t.sql`, line {line}: ")), "{text}");
        assert!(text.contains(shown), "{shown:?} is not in\n{text}");
    }
    // A row that is empty, and wrong as such.
    let sql = "create table t (id text unique);\ncopy t from stdin;\n\n\n\\.\n";
    project.sql("V1__t.sql", sql);
    let text = project.fails().await.to_string();
    assert!(text.contains("line 4: duplicate key value violates"), "{text}");
    assert!(text.contains("already exists.\nrolled back"), "{text}");
}

#[tokio::test]
async fn data_without_its_end_and_commands_of_psql_are_refused_before_anything_runs() {
    let project = Project::new().await;
    project.sql("V1__a.sql", TABLE);
    project.sql("V2__t.sql", "copy a from stdin;\n1\n");
    let error = project.fails().await;
    assert!(
        error.to_string().contains("V2__t.sql`, line 1, column 1: COPY … FROM STDIN"),
        "{error}"
    );
    project.sql("V2__t.sql", "select 1;\n\\connect other\n");
    let error = project.fails().await;
    assert!(
        error.to_string().contains("line 2, column 1: `\\connect` is a command of psql"),
        "{error}"
    );
    assert_eq!(project.database.text("select to_regclass('a') is null").await, "t");
}

/// Ends a session in the moment between a script's last statement and its row: the row's insert
/// fires a trigger that waits.
#[tokio::test]
async fn a_kill_between_statement_and_row_leaves_nothing_applied_and_unrecorded() {
    let project = Project::new().await;
    project.migrates().await;
    project
        .database
        .run(
            "create function wait() returns trigger language plpgsql as
                $$ begin perform pg_advisory_xact_lock(4711); return new; end $$;
            create trigger wait before insert on flyway_schema_history
                for each row execute function wait()",
        )
        .await;
    let gate = Session::connect(&project.database.target).await.expect("connects");
    gate.batch("select pg_advisory_lock(4711)").await.expect("locks");
    project.sql("V1__a.sql", TABLE);
    let kill = async {
        let waiting = "select pid from pg_locks where locktype = 'advisory' and not granted
            and database = (select oid from pg_database where datname = current_database())";
        let pid: i32 = loop {
            if let Some(row) = gate.query_opt(waiting, &[]).await.expect("asks") {
                break row.get(0);
            }
            tokio::task::yield_now().await;
        };
        gate.batch(&format!("select pg_terminate_backend({pid}, 5000)")).await.expect("ends it");
    };
    let (result, ()) = tokio::join!(project.migrate(), kill);
    let error = result.expect_err("was killed");
    assert_eq!(project.history().await, "", "{error}");
    assert_eq!(project.database.text("select to_regclass('a') is null").await, "t");
    gate.batch("select pg_advisory_unlock(4711)").await.expect("unlocks");
    assert_eq!(project.migrates().await, ["V1__a.sql"]);
}

#[tokio::test]
async fn an_interrupt_ends_the_statement_and_leaves_nothing() {
    let project = Project::new().await;
    project.sql("V1__a.sql", "create table a (id int); select pg_sleep(60);");
    let watch = Session::connect(&project.database.target).await.expect("connects");
    let interrupt = async {
        let running = "select count(*) from pg_stat_activity
            where datname = current_database() and query like '%pg_sleep(60)' and state = 'active'
            and pid <> pg_backend_pid()";
        while watch.query_one(running, &[]).await.expect("asks").get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
        project.cancel.cancel();
    };
    let work = async { tokio::join!(project.migrate(), interrupt).0 };
    let result = tokio::time::timeout(Duration::from_secs(20), work).await.expect("stops at once");
    assert!(matches!(result, Err(Error::Interrupted)));
    assert_eq!(project.history().await, "");
    let left = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)' and state = 'active'
        and datname = current_database() and pid <> pg_backend_pid()";
    assert_eq!(project.database.text(left).await, "0");
}

#[tokio::test]
async fn a_non_empty_schema_needs_a_baseline() {
    let project = Project::new().await;
    project.database.run("create table there (id int)").await;
    project.sql("V1__a.sql", TABLE);
    project.sql("V2__b.sql", "create table b (id int);");
    let error = project.fails().await;
    assert_eq!(error.to_string(), "the schema `public` holds objects but no migration history");
    assert_eq!(error.exit(), Exit::History);
    assert_eq!(project.migrates_with(&[("baselineOnMigrate", "true")]).await, ["V2__b.sql"]);
    assert!(
        project.history().await.starts_with(
            "1|1|<< Flyway Baseline >>|BASELINE|<< Flyway Baseline >>|∅|t\n2|2|b|SQL|"
        )
    );
    let states = project.states(&[]).await;
    assert_eq!(
        states,
        ["1 a Ignored (Baseline)", "1 << Flyway Baseline >> Baseline", "2 b Success"]
    );
}

#[tokio::test]
async fn extensions_and_matviews_do_not_make_a_schema_occupied() {
    let project = Project::new().await;
    project
        .database
        .run("create extension pg_trgm; create materialized view m as select 1 as x")
        .await;
    project.sql("V1__a.sql", TABLE);
    assert_eq!(project.migrates().await, ["V1__a.sql"]);
}

#[tokio::test]
async fn missing_schemas_are_made_and_scripts_land_in_the_default_one() {
    let project = Project::new().await;
    project.sql("V1__a.sql", "create table a (id int);\nselect '${flyway:defaultSchema}';");
    project.sql("V2__b.sql", "set search_path to other; create table b (id int);");
    project.sql("V3__c.sql", "create table c (id int);");
    let settings = [("schemas", "App,other")];
    assert_eq!(project.migrates_with(&settings).await.len(), 3);
    let tables = "select schemaname, tablename from pg_tables where schemaname in ('App', 'other') order by 2";
    let expected = "App|a\nother|b\nApp|c\nApp|flyway_schema_history";
    assert_eq!(project.database.text(tables).await, expected);
    let marker = "select installed_rank, description, type, script from \"App\".flyway_schema_history limit 1";
    assert_eq!(
        project.database.text(marker).await,
        "0|<< Flyway Schema Creation >>|SCHEMA|\"App\",\"other\""
    );
    let error = project.fails_with(&[("schemas", "none"), ("createSchemas", "false")]).await;
    assert!(matches!(error, Error::NoSchema { .. }), "{error}");
}

#[tokio::test]
async fn roles_that_a_script_takes_do_not_reach_its_row_or_the_next_script() {
    let project = Project::new().await;
    let role = server().create_role("").await;
    let sql = format!(
        "grant create on schema public to {0}; set role {0}; create table a (id int);",
        role.name
    );
    project.sql("V1__a.sql", sql);
    project.sql("V2__b.sql", "create table b (id int);");
    project.migrates().await;
    let owners = "select string_agg(distinct installed_by, ',') from flyway_schema_history";
    assert_eq!(project.database.text(owners).await, "postgres");
    let owner = "select tableowner = 'postgres' from pg_tables where tablename = 'b'";
    assert_eq!(project.database.text(owner).await, "t");
    project.database.run(&format!("drop owned by {}", role.name)).await;
}

#[tokio::test]
async fn a_commit_inside_a_script_stays_and_is_told() {
    let project = Project::new().await;
    project.sql(
        "V1__x.sql",
        "create table a (id int);\ncommit;\ncreate table b (id int);\nselect nope;",
    );
    let text = project.fails().await.to_string();
    assert!(
        text.contains("what stands before the script's own `commit` is in the database"),
        "{text}"
    );
    let tables = "select to_regclass('a') is not null, to_regclass('b') is null";
    assert_eq!(project.database.text(tables).await, "t|t");
    assert_eq!(project.history().await, "");
}

#[tokio::test]
async fn discard_all_does_not_cost_the_lock_its_end() {
    let project = Project::new().await;
    project.sql("V1__x.sql", "discard all;");
    project.sql("V2__y.sql", "create table y (id int);");
    assert_eq!(project.migrates().await.len(), 2);
    assert_eq!(project.warnings.warnings(), Vec::<String>::new());
}

#[tokio::test]
async fn group_is_all_or_nothing() {
    let project = Project::new().await;
    project.sql("V1__a.sql", TABLE);
    project.sql("V2__b.sql", "create table b (id int); select nope;");
    project.fails_with(&[("group", "true")]).await;
    assert_eq!(project.history().await, "");
    project.sql("V2__b.sql", "create table b (id int);");
    assert_eq!(project.migrates_with(&[("group", "true")]).await.len(), 2);
    project.sql("V3__c.sql", "create table c (id int);");
    project.sql("V4__d.sql", "vacuum;");
    let error = project.fails_with(&[("group", "true")]).await;
    assert!(matches!(error, Error::MixedGroup { .. }), "{error}");
}

#[tokio::test]
async fn a_target_stops_in_the_middle() {
    let project = Project::new().await;
    for number in 1..=4 {
        project.sql(&format!("V{number}__t.sql"), "select 1;");
    }
    project.sql("R__r.sql", "select 1;");
    assert_eq!(project.migrates_with(&[("target", "next")]).await, ["V1__t.sql"]);
    assert_eq!(project.migrates_with(&[("target", "2")]).await, ["V2__t.sql", "R__r.sql"]);
    let states = project.states(&[("target", "3")]).await;
    assert_eq!(states.last().map(String::as_str), Some("4 t Above Target"));
    assert_eq!(project.migrates_with(&[("target", "current")]).await, Vec::<String>::new());
    let error = project.fails_with(&[("target", "7")]).await;
    assert_eq!(error.exit(), Exit::CommandLine);
    assert_eq!(project.migrates_with(&[("target", "7?")]).await, ["V3__t.sql", "V4__t.sql"]);
}

#[tokio::test]
async fn the_databases_present_name_is_put_in_and_other_databases_are_left_alone() {
    let project = Project::new().await;
    project.sql(
        "V1__x.sql",
        "comment on database shop is 'ours';\ncomment on database elsewhere is 'x';\n\
         alter database ${flyway:database} set work_mem = '5MB';\ncreate table x (id int);",
    );
    let names =
        DatabaseName { final_name: "shop".to_owned(), actual: project.database.name().to_owned() };
    let result = project.migrate_as(&project.database.target, &names, &[]).await;
    assert!(result.is_ok(), "{result:?}");
    let comment = "select shobj_description(oid, 'pg_database') from pg_database
        where datname = current_database()";
    assert_eq!(project.database.text(comment).await, "ours");
    assert_eq!(project.database.text("show work_mem").await, "5MB");
    let warnings = project.warnings.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("line 2: left out for the database `elsewhere`"), "{warnings:?}");
}

#[tokio::test]
async fn a_dry_run_prints_sql_that_does_the_same() {
    let project = Project::new().await;
    project.sql("V1__a.sql", "create table a (id int)");
    project.sql("V2__i.sql", "create index concurrently ia on a (id);");
    let ctx = project.context(&[]);
    let scripts = migrate::resolve(&ctx, &project.names(), "postgres").expect("resolves");
    let target = &project.database.target;
    let planned =
        migrate::dry_run(&ctx, target, &scripts, &Options::default()).await.expect("plans");
    assert_eq!(
        project.database.text("select to_regclass('flyway_schema_history') is null").await,
        "t"
    );
    let session = Session::connect(target).await.expect("connects");
    let sql = planned.to_string();
    for statement in seedbed::pg::lexer::split(&sql).expect("lexes") {
        let result = session.batch(statement.text).await;
        result.unwrap_or_else(|error| panic!("{}: {error}", statement.text));
    }
    assert_eq!(project.migrates().await, Vec::<String>::new());
    insta::assert_snapshot!(planned.scripts[0].sql, @r#"
    begin;
    set role "postgres";
    set search_path to "public", "$user", "public";
    create table a (id int)
    ;
    reset session authorization;
    set role "postgres";
    insert into "public"."flyway_schema_history" (installed_rank, version, description, type, script, checksum, installed_by, execution_time, success)
    values (1, '1', 'a', 'SQL', 'V1__a.sql', 906981868, current_user, 0, true);
    commit;
    "#);
}

#[tokio::test]
async fn validate_names_what_is_pending_and_info_needs_no_history() {
    let project = Project::new().await;
    project.sql("V1__a.sql", TABLE);
    assert_eq!(project.states(&[]).await, ["1 a Pending"]);
    let ctx = project.context(&[]);
    let scripts = migrate::resolve(&ctx, &project.names(), "postgres").expect("resolves");
    let found = migrate::validate(&ctx, &project.database.target, &scripts).await.expect("reads");
    assert_eq!(found[0].message, "version 1 (`V1__a.sql`) is not applied");
    project.migrates().await;
    let found = migrate::validate(&ctx, &project.database.target, &scripts).await.expect("reads");
    assert_eq!(found, []);
}

#[tokio::test]
async fn new_scripts_follow_the_folder() {
    let project = Project::new().await;
    let new = |description: &'static str| {
        let path = migrate::new_script(&project.context(&[]), description);
        path.map(|path| path.strip_prefix(&project.root).expect("is inside").to_string())
    };
    assert_eq!(new("add orders").expect("makes"), "sql/V001__add_orders.sql");
    assert_eq!(new(" it's: 2/3 ").expect("makes"), "sql/V002__it_s_2_3.sql");
    project.sql("r7/V010__x.sql", "");
    assert_eq!(new("y").expect("makes"), "sql/r7/V011__y.sql");
    assert!(matches!(new("__ ."), Err(Error::NoDescription { .. })));
    project.sql("V20240101120000__x.sql", "");
    let path = new("z").expect("makes");
    assert!(path.starts_with("sql/V20") && path.ends_with("__z.sql") && path.len() == 26, "{path}");
    assert_eq!(std::fs::read_to_string(project.root.join(path)).expect("reads"), "-- z\n");
}

#[tokio::test]
async fn notices_are_details_and_warnings_are_warnings() {
    struct Keep(Arc<Mutex<Vec<String>>>);
    impl Report for Keep {
        fn event(&self, event: &Event) {
            if let (Event::Detail(text) | Event::Warning(text), Ok(mut kept)) =
                (event, self.0.lock())
            {
                kept.push(text.clone());
            }
        }
    }
    let kept = Arc::new(Mutex::new(Vec::new()));
    let mut project = Project::new().await;
    project.warnings = Reporter::new(Box::new(Keep(Arc::clone(&kept))));
    project.sql("V1__x.sql", "do $$ begin raise notice 'hello'; raise warning 'careful'; end $$;");
    project.migrates().await;
    let kept = kept.lock().expect("is not poisoned").clone();
    assert_eq!(kept, ["the server says: hello", "the server says: careful"]);
    assert_eq!(project.warnings.warnings(), ["the server says: careful"]);
}
