//! Accounts and grants on a real server: the files of DESIGN §7, run once, twice, and after somebody
//! changed what they made.

use std::sync::{Arc, OnceLock};

use secrecy::ExposeSecret;
use seedbed::config::{self, Flags};
use seedbed::context::Context;
use seedbed::env::Env;
use seedbed::error::{Error, Exit};
use seedbed::pg::names::DatabaseName;
use seedbed::pg::{Session, Target};
use seedbed::report::Reporter;
use seedbed::users::{self, Drift, Existing, Plan};

use crate::harness::postgres::{query_text, run_sql};
use crate::harness::{self, Sandbox, Server, container, unique};

/// A server that logs every statement: roles are the server's, so these tests have one of their own.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(&[("log_statement", "all")]))
}

fn server_log() -> String {
    let data = server().data_dir.clone().expect("we started it");
    std::fs::read_to_string(data.with_file_name("log")).expect("the harness logs to this file")
}

/// A project with users files and a database of its own.
struct Project {
    sandbox: Sandbox,
    context: Context,
    names: DatabaseName,
}

impl Project {
    /// `conf` is the environment's file; `{db}` in it and in the users files is the database's name.
    fn new(conf: &str, users: &[(&str, &str)]) -> Self {
        Self::with_variables(conf, users, &[])
    }

    fn with_variables(conf: &str, users: &[(&str, &str)], variables: &[(&str, &str)]) -> Self {
        let sandbox = Sandbox::new();
        let database = unique("users");
        sandbox.write("conf/dev.conf", conf.replace("{db}", &database));
        for (name, text) in users {
            sandbox.write(&format!("users/{name}"), text.replace("{db}", &database));
        }
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env = Env::from_variables(variables, sandbox.project());
        let config = match config::load(&env, &Flags::default()) {
            Ok(config) => config,
            Err(error) => panic!("{error}"),
        };
        let context = Context {
            config: Arc::new(config),
            env: Arc::new(env),
            report: Reporter::silent(),
            cancel: tokio_util::sync::CancellationToken::new(),
            yes: true,
        };
        Self { sandbox, context, names: DatabaseName::live(&database) }
    }

    fn plan(&self) -> Plan {
        users::read(&self.context, &self.names).unwrap_or_else(|error| panic!("{error}"))
    }

    /// What reading the files fails with: message, hints, exit code.
    fn read_error(&self) -> String {
        let error: Error = users::read(&self.context, &self.names).expect_err("refused").into();
        format!("{error}\nhints {:?}\nexit {}", error.hints(), error.exit() as u8)
    }

    /// The database as its superuser sees it.
    fn target(&self) -> Target {
        server().admin.with_database(&self.names.actual)
    }

    /// Roles, then the database with `schema` in it, then the rest: the order of a build.
    async fn build(&self, schema: &str) -> Result<Plan, Error> {
        let (context, admin, plan) = (&self.context, &server().admin, self.plan());
        users::apply_roles(context, admin, &plan).await?;
        users::ensure_owner(context, admin, &plan, Existing::SetPassword).await?;
        let (name, owner) = (&self.names.actual, &plan.owner);
        let found = format!("select count(*) from pg_database where datname = '{name}'");
        if query_text(admin, &found).await == "0" {
            run_sql(admin, &format!("create database {name} owner \"{owner}\"")).await;
            users::apply_before(context, admin, &self.names, &plan).await?;
            run_sql(&self.target(), &format!("set role \"{owner}\"; {schema}")).await;
        } else {
            users::apply_before(context, admin, &self.names, &plan).await?;
        }
        users::apply_after(context, admin, &self.names, &plan).await?;
        Ok(plan)
    }

    async fn built(&self, schema: &str) -> Plan {
        self.build(schema).await.unwrap_or_else(|error| panic!("{error}"))
    }

    async fn build_error(&self, schema: &str) -> Error {
        self.build(schema).await.expect_err("a failure")
    }

    async fn text(&self, sql: &str) -> String {
        query_text(&self.target(), sql).await
    }

    async fn log_in(&self, user: &str, password: &str) -> Result<Session, seedbed::pg::Error> {
        Session::connect(&self.target().with_user(user, Some(password.to_owned().into()))).await
    }

    /// Compares the database with a reference that has the same schema.
    async fn drift(&self, schema: &str) -> Drift {
        let plan = self.plan();
        let reference = server().admin.with_database(&unique("reference"));
        let name = &reference.database;
        run_sql(&server().admin, &format!("create database {name} owner \"{}\"", plan.owner)).await;
        run_sql(&reference, &format!("set role \"{}\"; {schema}", plan.owner)).await;
        let live = self.target();
        let drift = users::check(&self.context, &live, &reference, &self.names, &plan);
        let drift = drift.await.unwrap_or_else(|error| panic!("{error}"));
        run_sql(&server().admin, &format!("drop database {name} with (force)")).await;
        drift
    }
}

const ISSUE: &str = "\
CREATE USER admin_user WITH PASSWORD 'fake_pass';
CREATE USER service1 WITH PASSWORD 'fake_pass';
GRANT ALL PRIVILEGES ON DATABASE \"test_db\" to admin_user;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA test_schema TO service1;
ALTER DEFAULT PRIVILEGES IN SCHEMA test_schema GRANT SELECT ON TABLES TO service1;
";

const POSTGRES: &str = "\
flyway.url=jdbc:postgresql://localhost:5432/{db}
flyway.user=postgres
flyway.locations=filesystem:sql
";

const TEST_SCHEMA: &str = "\
create schema test_schema;
create table test_schema.t (id int primary key);
insert into test_schema.t values (1);";

#[tokio::test]
async fn the_file_of_a_team_works_unchanged() {
    let project = Project::new(POSTGRES, &[("users.sql", ISSUE)]);
    let plan = project.built(TEST_SCHEMA).await;
    let ours = &project.names.final_name;
    assert_eq!(
        project.context.report.warnings(),
        [format!(
            "`users/users.sql` line 3: `test_db` is not this environment's database `{ours}`, so the \
         statement is skipped; write `${{flyway:database}}` to mean the database of each environment"
        )]
    );
    assert_eq!(plan.roles().into_iter().collect::<Vec<_>>(), ["admin_user", "service1"]);

    // The role has no USAGE on the schema: the file does not give it, and neither do we.
    project.text("grant usage on schema test_schema to service1").await;
    let session = project.log_in("service1", "fake_pass").await.expect("the verifier lets it in");
    session.batch("delete from test_schema.t").await.expect("granted on all tables");
    run_sql(&project.target(), "create table test_schema.later (id int)").await;
    session.batch("select from test_schema.later").await.expect("granted by default");
    assert!(session.batch("delete from test_schema.later").await.is_err(), "not granted");
    assert!(project.log_in("admin_user", "wrong").await.is_err());

    // Again, and nothing changes: not even the verifier.
    let state = "select rolname, rolpassword from pg_authid where rolname in ('service1', 'admin_user') \
                 union all select relname, relacl::text from pg_class where relname = 't' order by 1";
    let before = project.text(state).await;
    assert!(before.contains("SCRAM-SHA-256$4096:"), "{before}");
    project.built("").await;
    assert_eq!(project.text(state).await, before);
}

#[tokio::test]
async fn no_password_reaches_the_log_of_the_server_in_clear() {
    let users = "
CREATE USER canary_a PASSWORD 'S3cr3t!Canary';
ALTER USER canary_a WITH ENCRYPTED PASSWORD $$S3cr3t!Canary$$ VALID UNTIL '2100-01-01';
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'canary_b') THEN
    CREATE ROLE canary_b LOGIN PASSWORD 'S3cr3t!Canary';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'canary_c') THEN
    EXECUTE 'create role canary_c login password ''S3cr3t!Canary''';
  END IF;
END $$;
CREATE USER canary_d PASSWORD 'S3cr3t!Canary' IN ROLE no_such_group;
";
    let project = Project::new(POSTGRES, &[("a.sql", users)]);
    let error = project.build_error("").await;
    assert!(!format!("{error} {error:?} {:?}", error.hints()).contains("S3cr3t"), "{error}");
    assert_eq!(
        error.to_string(),
        "run `create role canary_d` of users file `users/a.sql` line 12: \
         role \"no_such_group\" does not exist (SQLSTATE 42704)"
    );
    assert_eq!(error.exit(), Exit::Configuration);
    assert_eq!(
        query_text(&server().admin, "select count(*) from pg_roles where rolname ~ '^canary'")
            .await,
        "0"
    );

    project.sandbox.write("users/a.sql", users.replace(" IN ROLE no_such_group", ""));
    project.built("").await;
    for role in ["canary_a", "canary_b", "canary_c", "canary_d"] {
        project.log_in(role, "S3cr3t!Canary").await.unwrap_or_else(|error| panic!("{error}"));
    }
    let log = server_log();
    assert!(log.contains("canary_c"), "the log has our statements");
    assert!(!log.contains("S3cr3t"), "and no password");
}

#[tokio::test]
async fn a_role_that_exists_is_altered_to_what_the_file_says() {
    run_sql(
        &server().admin,
        "create role altered_group; create role altered_admin; create role altered_member;
         create role altered superuser createdb nologin connection limit 3
           password 'old' valid until '2001-01-01'",
    )
    .await;
    let users = "
CREATE USER altered WITH PASSWORD 'new' CONNECTION LIMIT 7 IN ROLE altered_group
  ROLE altered_member ADMIN altered_admin;
ALTER ROLE altered CREATEROLE;
ALTER ROLE altered SET statement_timeout = '5min';
COMMENT ON ROLE altered IS 'a service';
";
    let project = Project::new(POSTGRES, &[("a.sql", users)]);
    let state = "
select rolsuper, rolcreatedb, rolcreaterole, rolcanlogin, rolconnlimit, rolvaliduntil,
       rolconfig, shobj_description(oid, 'pg_authid')
from pg_roles where rolname = 'altered'";
    let members = "
select pg_get_userbyid(roleid), pg_get_userbyid(member), admin_option from pg_auth_members
where pg_get_userbyid(roleid) ~ '^altered' order by 1, 2";
    for _ in 0..2 {
        project.built("").await;
        assert_eq!(
            project.text(state).await,
            "f|f|t|t|7|infinity|{statement_timeout=5min}|a service"
        );
        assert_eq!(
            project.text(members).await,
            "altered|altered_admin|t\naltered|altered_member|f\naltered_group|altered|f"
        );
    }
    project.log_in("altered", "new").await.unwrap_or_else(|error| panic!("{error}"));
}

const OWNED: &str = "\
flyway.url=jdbc:postgresql://localhost:5432/{db}
flyway.user=made_here
flyway.password=word-of-the-owner
flyway.placeholders.reader=reader_of_made
";

#[tokio::test]
async fn the_configured_user_owns_what_is_made_and_logs_in_with_the_configured_password() {
    let users = "
CREATE USER made_here;
CREATE USER ${reader} PASSWORD '${env:READER_PASSWORD}';
CREATE SCHEMA ours;
CREATE SCHEMA IF NOT EXISTS theirs AUTHORIZATION ${reader};
CREATE EXTENSION plpgsql;
GRANT CONNECT, TEMPORARY ON DATABASE ${flyway:database} TO ${reader};
ALTER DATABASE {db} SET timezone = 'Asia/Tokyo';
ALTER ROLE ${reader} IN DATABASE {db} SET work_mem = '8MB';
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'guarded') THEN
    CREATE SCHEMA guarded;
  END IF;
END $$;
";
    let grants = "
GRANT USAGE ON SCHEMA ours TO ${reader};
ALTER DEFAULT PRIVILEGES IN SCHEMA ours GRANT SELECT ON TABLES TO ${reader};
";
    let mut project = Project::with_variables(
        OWNED,
        &[("01.sql", users), ("02.sql", grants)],
        &[("READER_PASSWORD", "it's \"quoted\\")],
    );
    // The database is under construction, so it bears another name than the files use.
    project.names.actual = format!("{}_new", project.names.final_name);
    project.built("").await;
    project.built("").await;
    let owner = project.log_in("made_here", "word-of-the-owner").await.expect("its password");
    owner.batch("create table ours.t (id int)").await.expect("it owns the schema");
    let reader = project.log_in("reader_of_made", "it's \"quoted\\").await.expect("its password");
    reader.batch("select from ours.t").await.expect("granted by default");
    let settings = reader
        .query_one("select current_setting('timezone') || ' ' || current_setting('work_mem')", &[]);
    let settings: String = settings.await.expect("settings").get(0);
    assert_eq!(settings, "Asia/Tokyo 8MB");
    assert_eq!(
        project
            .text("select nspname, pg_get_userbyid(nspowner) from pg_namespace where nspname in ('ours', 'theirs', 'guarded') order by 1")
            .await,
        "guarded|postgres\nours|made_here\ntheirs|reader_of_made"
    );
    assert!(project.context.report.warnings().is_empty());
}

#[tokio::test]
async fn two_passwords_for_one_account_are_refused() {
    let users = "CREATE USER made_here PASSWORD 'another';";
    let project = Project::new(OWNED, &[("01.sql", users)]);
    insta::assert_snapshot!(project.read_error(), @r##"
    read users file `users/01.sql` line 1: it gives `made_here` another password than the configuration connects with
    hints ["give `made_here` the password of the configuration: write it as a placeholder in both, `${env:…}`"]
    exit 3
    "##);
}

#[tokio::test]
async fn a_grant_on_what_is_not_there_names_its_line() {
    let project = Project::new(
        POSTGRES,
        &[("g.sql", "CREATE ROLE nobody_here;\n\nGRANT SELECT ON TABLE nowhere.t TO nobody_here;")],
    );
    let error = project.build_error("").await;
    assert_eq!(error.exit(), Exit::Configuration);
    insta::assert_snapshot!(format!("{error}\n{:?}", error.hints()), @r##"
    run `grant` of users file `users/g.sql` line 3: schema "nowhere" does not exist (SQLSTATE 3F000)
    ["edit `users/g.sql` line 3, or add a migration that creates what it names: `seedbed info` shows the migrations"]
    "##);
}

#[test]
fn what_users_files_may_not_hold_is_refused_with_its_line() {
    let cases = [
        "DROP ROLE IF EXISTS a;",
        "DROP USER a;",
        "DROP OWNED BY a;",
        "CREATE DATABASE x;",
        "CREATE TABLE t (id int);",
        "ALTER ROLE a RENAME TO b;",
        "ALTER DATABASE x OWNER TO a;",
        "BEGIN;",
        "SELECT 1;",
        "CREATE USER MAPPING FOR a SERVER s OPTIONS (password 'canary');",
        "CREATE USER a WITH PASSWORD canary;",
        "CREATE USER a WITH WINGS;",
        "\\connect x",
        "DO $$ BEGIN CREATE ROLE a; END $$;",
        "DO $$ BEGIN IF true THEN EXECUTE format('create role a password %L', 'canary'); END IF; END $$;",
        "CREATE SCHEMA a CREATE TABLE t (id int);",
        "GRANT 'x",
        "CREATE USER a PASSWORD '${env:NOT_SET}';",
        "CREATE USER a PASSWORD '${reader_password}';",
    ];
    let mut seen = String::new();
    for case in cases {
        let project =
            Project::new(POSTGRES, &[("x.sql", &format!("-- first\nCREATE ROLE ok;\n{case}"))]);
        let error = project.read_error();
        assert!(error.contains("line 3") && error.ends_with("exit 3"), "{case}: {error}");
        assert!(!error.contains("canary"), "{error}");
        seen.push_str(&format!("{case}\n{error}\n\n"));
    }
    insta::assert_snapshot!(seen, @r##"
    DROP ROLE IF EXISTS a;
    read users file `users/x.sql` line 3, column 1: `drop role` is no statement for a users file
    hints ["delete the line: roles that exist are altered to what the file says"]
    exit 3

    DROP USER a;
    read users file `users/x.sql` line 3, column 1: `drop user` is no statement for a users file
    hints ["delete the line: roles that exist are altered to what the file says"]
    exit 3

    DROP OWNED BY a;
    read users file `users/x.sql` line 3, column 1: `drop owned` is no statement for a users file
    hints ["delete the line: roles that exist are altered to what the file says"]
    exit 3

    CREATE DATABASE x;
    read users file `users/x.sql` line 3, column 1: `create database` is no statement for a users file
    hints ["delete the line: seedbed makes, owns and names the database itself"]
    exit 3

    CREATE TABLE t (id int);
    read users file `users/x.sql` line 3, column 1: `create table` is no statement for a users file
    hints ["move it to a migration: `seedbed new \"…\"`"]
    exit 3

    ALTER ROLE a RENAME TO b;
    read users file `users/x.sql` line 3, column 1: `alter role … rename to` is no statement for a users file
    hints ["create the role under its new name instead"]
    exit 3

    ALTER DATABASE x OWNER TO a;
    read users file `users/x.sql` line 3, column 1: `alter database` is no statement for a users file
    hints ["delete the line: seedbed makes, owns and names the database itself"]
    exit 3

    BEGIN;
    read users file `users/x.sql` line 3, column 1: `begin` is no statement for a users file
    hints ["delete the line: each phase of the users files is one transaction"]
    exit 3

    SELECT 1;
    read users file `users/x.sql` line 3, column 1: `select` is no statement for a users file
    hints ["move it to a migration: `seedbed new \"…\"`"]
    exit 3

    CREATE USER MAPPING FOR a SERVER s OPTIONS (password 'canary');
    read users file `users/x.sql` line 3, column 1: `create user mapping` is no statement for a users file
    hints ["move it to a migration: `seedbed new \"…\"`"]
    exit 3

    CREATE USER a WITH PASSWORD canary;
    read users file `users/x.sql` line 3, column 29: expected a string in single quotes here
    hints []
    exit 3

    CREATE USER a WITH WINGS;
    read users file `users/x.sql` line 3, column 20: expected an option of the role here
    hints []
    exit 3

    \connect x
    read users file `users/x.sql` line 3, column 1: `\connect` is a command of psql, not SQL
    hints ["delete the line"]
    exit 3

    DO $$ BEGIN CREATE ROLE a; END $$;
    read users file `users/x.sql` line 3, column 1: this `do` block creates something without asking whether it is there
    hints ["guard it by `if not exists (…) then … end if`, or write the statement without the block"]
    exit 3

    DO $$ BEGIN IF true THEN EXECUTE format('create role a password %L', 'canary'); END IF; END $$;
    read users file `users/x.sql` line 3, column 1: this `do` block gives a password that is not written as a plain string
    hints ["write it as `password '…'`, so that it can be sent as a verifier"]
    exit 3

    CREATE SCHEMA a CREATE TABLE t (id int);
    read users file `users/x.sql` line 3, column 17: a schema of a users file is created empty
    hints ["create what it holds in a migration"]
    exit 3

    GRANT 'x
    read users file `users/x.sql` line 3, column 7: string without its closing quote
    hints []
    exit 3

    CREATE USER a PASSWORD '${env:NOT_SET}';
    read users file `users/x.sql` line 3, column 25: placeholder `${env:NOT_SET}` has no value
    hints ["set the variable: `export NOT_SET=…`"]
    exit 3

    CREATE USER a PASSWORD '${reader_password}';
    read users file `users/x.sql` line 3, column 25: placeholder `${reader_password}` has no value
    hints ["set it in `conf/`: `flyway.placeholders.reader_password=…`"]
    exit 3
    "##);
}

#[test]
fn a_project_without_users_files_has_nothing_to_do() {
    let project = Project::new(POSTGRES, &[]);
    assert!(project.plan().is_empty());
}

#[tokio::test]
async fn check_shows_what_somebody_changed() {
    let users = "
CREATE ROLE drift_read;
CREATE USER drift_service PASSWORD 'one' IN ROLE drift_read;
GRANT USAGE ON SCHEMA test_schema TO drift_read;
GRANT SELECT ON ALL TABLES IN SCHEMA test_schema TO drift_read;
GRANT UPDATE (id) ON test_schema.t TO drift_service;
ALTER DEFAULT PRIVILEGES IN SCHEMA test_schema GRANT SELECT ON TABLES TO drift_read;
";
    let project = Project::new(POSTGRES, &[("d.sql", users)]);
    project.built(TEST_SCHEMA).await;
    assert_eq!(project.drift(TEST_SCHEMA).await, Drift::default());

    run_sql(
        &project.target(),
        "revoke select on test_schema.t from drift_read;
         grant delete on test_schema.t to drift_service with grant option;
         revoke update (id) on test_schema.t from drift_service;
         grant create on schema test_schema to public;
         alter role drift_service createdb password 'two';
         revoke drift_read from drift_service;
         alter role drift_read set work_mem = '1GB';
         alter default privileges in schema test_schema grant insert on tables to drift_service;
         create table test_schema.only_here (id int)",
    )
    .await;
    let drift = project.drift(TEST_SCHEMA).await;
    let show = |list: &[users::Privilege]| {
        list.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(
        format!("missing\n{}\nextra\n{}\nunknown {:?}", show(&drift.missing), show(&drift.extra), drift.unknown_objects),
        @r##"
    missing
    drift_read: SELECT on table test_schema.t
    drift_service: UPDATE on column test_schema.t.id
    drift_service: PASSWORD of the files on role
    drift_service: MEMBER on role drift_read
    drift_service: USAGE on schema test_schema
    drift_service: SELECT on table test_schema.t
    extra
    drift_read: SET work_mem=1GB on role
    drift_read: CREATE on schema test_schema
    drift_service: INSERT on new tables of postgres in schema test_schema
    drift_service: CREATEDB on role
    drift_service: CREATE on schema test_schema
    drift_service: DELETE on table test_schema.t
    drift_service: DELETE WITH GRANT OPTION on table test_schema.t
    public: CREATE on schema test_schema
    unknown ["table test_schema.only_here"]
    "##
    );
    // Looking changes nothing.
    project.log_in("drift_service", "two").await.expect("still the other password");
    // Applying again gives back what is missing.
    project.built("").await;
    let drift = project.drift(TEST_SCHEMA).await;
    assert_eq!(drift.missing, []);
}

/// A managed server's administrator: may create roles and databases, reads no verifiers.
#[tokio::test]
async fn an_administrator_who_is_no_superuser_is_enough() {
    run_sql(&server().admin, "create role manager login createrole createdb password 'manager'")
        .await;
    let users = "
CREATE USER managed_owner PASSWORD 'one' IN ROLE managed_group;
ALTER ROLE managed_owner SET work_mem = '8MB';
CREATE SCHEMA managed;
GRANT CONNECT ON DATABASE {db} TO managed_owner;
";
    let conf = POSTGRES.replace("flyway.user=postgres", "flyway.user=managed_owner");
    let project = Project::new(&conf, &[("a.sql", &format!("CREATE ROLE managed_group;{users}"))]);
    let (context, plan, names) = (&project.context, project.plan(), &project.names);
    let admin = server().admin.with_user("manager", Some("manager".to_owned().into()));
    for run in 0..2 {
        users::apply_roles(context, &admin, &plan).await.unwrap_or_else(|error| panic!("{error}"));
        if run == 0 {
            // Who creates a database for another has to be a member, except as superuser.
            run_sql(&admin, "grant managed_owner to manager").await;
            let sql = format!("create database {} owner managed_owner", names.actual);
            run_sql(&admin, &sql).await;
        }
        let before = users::apply_before(context, &admin, names, &plan).await;
        before.unwrap_or_else(|error| panic!("{error}"));
    }
    project.log_in("managed_owner", "one").await.unwrap_or_else(|error| panic!("{error}"));
    let live = admin.with_database(&names.actual);
    let drift = users::check(context, &live, &live, names, &plan).await;
    let not_compared = vec!["passwords, which `manager` may not read".to_owned()];
    assert_eq!(
        drift.unwrap_or_else(|error| panic!("{error}")),
        Drift { not_compared, ..Drift::default() }
    );
}

#[tokio::test]
async fn the_account_of_seedbed_keeps_its_password_and_its_rights() {
    let users = "CREATE ROLE postgres NOSUPERUSER PASSWORD 'another';";
    let project = Project::new(POSTGRES, &[("a.sql", users)]);
    project.built("").await;
    assert_eq!(
        project.text("select rolsuper, rolcanlogin from pg_roles where rolname = 'postgres'").await,
        "t|t"
    );
    assert_eq!(
        project.context.report.warnings(),
        [
            "`users/a.sql` line 1: `postgres` is the account that seedbed itself uses, so it keeps its password"
        ]
    );
}

#[tokio::test]
async fn two_runs_at_once_take_turns() {
    let users = "
CREATE USER turn PASSWORD 'one' CONNECTION LIMIT 5;
ALTER ROLE turn SET work_mem = '8MB';
GRANT SELECT ON ALL TABLES IN SCHEMA test_schema TO turn;
";
    let project = Project::new(POSTGRES, &[("a.sql", users)]);
    project.built(TEST_SCHEMA).await;
    let runs = (0..8).map(|_| project.build(""));
    for result in futures_util::future::join_all(runs).await {
        result.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_plan_is_shown_without_passwords() {
    let project = Project::new(POSTGRES, &[("users.sql", ISSUE)]);
    let plan = project.plan();
    insta::assert_snapshot!(plan.describe().join("\n"), @r##"
    role "admin_user" with a password -- users/users.sql:1
    role "service1" with a password -- users/users.sql:2
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA test_schema TO service1 -- users/users.sql:4
    ALTER DEFAULT PRIVILEGES for role "postgres" IN SCHEMA test_schema GRANT SELECT ON TABLES TO service1 -- users/users.sql:5
    "##);
    assert!(!format!("{plan:?}").contains("fake_pass"));
}

/// `{r}` begins the names of roles. `{r}_reader`, `{r}_dba` and `postgres` are only granted something.
const PRODUCTION: &str = "
CREATE ROLE {r}_read NOINHERIT;
CREATE USER {r}_service PASSWORD '${env:SERVICE_WORD}' IN ROLE {r}_read CONNECTION LIMIT 20;
ALTER ROLE {r}_service SET statement_timeout = '30s';
GRANT {r}_read TO {r}_dba, postgres;
GRANT CONNECT ON DATABASE ${flyway:database} TO {r}_service;
GRANT USAGE ON SCHEMA shop TO {r}_read, {r}_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA shop TO {r}_read, {r}_reader;
GRANT INSERT, UPDATE ON shop.item TO {r}_service;
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO {r}_read;
";

/// What a team's own scripts and its provider have made. No local server has these roles.
const BEFORE: &str = "
create role {r}_owner; create role {r}_reader login password 'reader word';
create role {r}_cloud createrole; create role {r}_dba createdb in role {r}_cloud;
alter role {r}_dba set work_mem = '8MB';
create database {r}_shop owner {r}_owner";

const SHOP: &str = "
set role {r}_owner;
create schema shop;
create table shop.customer (id bigint generated always as identity primary key, name text);
create table shop.item (id int primary key, cents int not null);
create view shop.names as select id, name from shop.customer group by id;
create materialized view shop.sums as select id, name, count(*) from shop.customer group by id;
create function shop.f(int, out text) language sql as $$ select $1::text $$;
insert into shop.customer (name) values ('one')";

/// A protected environment on a server of somebody else's, as its files say.
struct Protected {
    sandbox: Sandbox,
    /// The database as the superuser sees it.
    target: Target,
    /// Begins the names of its roles.
    name: String,
}

impl Protected {
    /// `[engine]` of its environments is `engine`.
    async fn new(admin: &Target, engine: &str) -> Self {
        let name = unique("p");
        let target = admin.with_database(&format!("{name}_shop"));
        let made = Self { sandbox: Sandbox::new(), target, name };
        let before = made.named(BEFORE);
        for statement in before.split(';') {
            run_sql(admin, statement).await;
        }
        run_sql(&made.target, &made.named(SHOP)).await;
        let given = made.named(PRODUCTION).replace("${env:SERVICE_WORD}", "service word");
        let given = given.replace("${flyway:database}", &made.target.database);
        let owner = format!("PRIVILEGES FOR ROLE {}_owner IN", made.name);
        let given = given.replace("PRIVILEGES IN", &owner);
        run_sql(&made.target, &format!("set password_encryption = 'scram-sha-256'; {given}")).await;

        let mut made = made;
        made.sandbox.write("users/users.sql", made.named(PRODUCTION));
        made.sandbox.set("SERVICE_WORD", "service word");
        let reader = format!("{}_reader", made.name);
        let reader = made.target.with_user(&reader, Some("reader word".to_owned().into()));
        for (environment, target) in [("prod", &reader), ("admin", &made.target)] {
            made.sandbox.write(&format!("conf/{environment}.toml"), conf(target, engine, "true"));
            let word = target.password.as_ref().map_or("", |word| word.expose_secret());
            made.sandbox.set(&format!("WORD_OF_{}", target.user), word);
        }
        made
    }

    /// `text` with the names of this production's roles.
    fn named(&self, text: &str) -> String {
        text.replace("{r}", &self.name)
    }

    async fn sql(&self, text: &str) {
        run_sql(&self.target, &self.named(text)).await;
    }

    /// What `users check` shows, and that it ends with `code`.
    #[track_caller]
    fn check(&self, environment: &str, code: i32) -> String {
        let run = self.sandbox.run(&["users", "check", "--env", environment]).exits(code);
        run.stdout.replace(&self.name, "{r}")
    }
}

fn conf(target: &Target, engine: &str, protected: &str) -> String {
    let Target { host, port, database, user, .. } = target;
    format!(
        "protected = {protected}\n[engine]\n{engine}\n[database]\nhost = \"{host}\"\nport = {port}\n\
         name = \"{database}\"\nuser = \"{user}\"\npassword = \"env:WORD_OF_{user}\"\n\
         sslmode = \"disable\"\n"
    )
}

const CHANGED: &str = "
grant delete on shop.item to {r}_service;
revoke select on shop.customer from {r}_read;
alter role {r}_service createdb password 'another word';
alter role {r}_service set statement_timeout = '1h';
alter role {r}_service connection limit -1;
revoke {r}_read from {r}_dba;
alter default privileges for role {r}_owner in schema shop grant insert on tables to {r}_read";

/// The catalogs of a server whose next transaction would be the same one: nothing was written on it.
const UNTOUCHED: &str = "
select pg_snapshot_xmax(pg_current_snapshot()), (select count(*) from pg_database),
       (select string_agg(rolname || coalesce(rolpassword, ''), ',' order by oid) from pg_authid)";

#[tokio::test]
async fn check_compares_production_on_a_scratch_server_and_leaves_it_untouched() {
    let server = Server::start(&[("autovacuum", "off")]);
    // As on a managed server: the account `postgres` is no superuser there.
    run_sql(&server.admin, "create role provider superuser login password 'provider word'").await;
    let admin = server.admin.with_user("provider", Some("provider word".to_owned().into()));
    run_sql(&admin, "alter role postgres rename to first; create role postgres createrole").await;
    let mut production = Protected::new(&admin, "kind = \"external\"").await;
    // Without Docker: the scratch server is of the version of the source.
    production.sandbox.set("PATH", &format!("{}:/usr/bin:/bin", server.bin_dir.display()));
    production.sandbox.set("DOCKER_HOST", "unix:///nonexistent.sock");

    let before = query_text(&admin, UNTOUCHED).await;
    insta::assert_snapshot!(production.check("prod", 0), @r##"
    effective privileges are what the files say
    not compared: passwords, which `{r}_reader` may not read
    "##);
    insta::assert_snapshot!(production.check("admin", 0), @"effective privileges are what the files say");
    // One that is not protected, on the server of one that is: nothing may be made there either.
    let other = conf(&production.target, "kind = \"external\"", "false");
    production.sandbox.write("conf/other.toml", other);
    insta::assert_snapshot!(production.check("other", 0), @"effective privileges are what the files say");
    assert_eq!(query_text(&admin, UNTOUCHED).await, before);

    production.sql(CHANGED).await;
    let before = query_text(&admin, UNTOUCHED).await;
    insta::assert_snapshot!(production.check("prod", 13), @r##"
    missing  {r}_dba: MEMBER on role {r}_read
    missing  {r}_dba: USAGE on schema shop
    missing  {r}_dba: SELECT on table shop.customer
    missing  {r}_dba: SELECT on table shop.item
    missing  {r}_dba: SELECT on table shop.names
    missing  {r}_dba: SELECT on table shop.sums
    missing  {r}_read: SELECT on table shop.customer
    missing  {r}_service: CONNECTION LIMIT 20 on role
    missing  {r}_service: SET statement_timeout=30s on role
    missing  {r}_service: SELECT on table shop.customer
    missing  postgres: SELECT on table shop.customer
    extra    {r}_read: INSERT on new tables of {r}_owner in schema shop
    extra    {r}_service: CREATEDB on role
    extra    {r}_service: SET statement_timeout=1h on role
    extra    {r}_service: DELETE on table shop.item
    not compared: passwords, which `{r}_reader` may not read
    "##);
    insta::assert_snapshot!(production.check("admin", 13), @r##"
    missing  {r}_dba: MEMBER on role {r}_read
    missing  {r}_dba: USAGE on schema shop
    missing  {r}_dba: SELECT on table shop.customer
    missing  {r}_dba: SELECT on table shop.item
    missing  {r}_dba: SELECT on table shop.names
    missing  {r}_dba: SELECT on table shop.sums
    missing  {r}_read: SELECT on table shop.customer
    missing  {r}_service: CONNECTION LIMIT 20 on role
    missing  {r}_service: PASSWORD of the files on role
    missing  {r}_service: SET statement_timeout=30s on role
    missing  {r}_service: SELECT on table shop.customer
    missing  postgres: SELECT on table shop.customer
    extra    {r}_read: INSERT on new tables of {r}_owner in schema shop
    extra    {r}_service: CREATEDB on role
    extra    {r}_service: SET statement_timeout=1h on role
    extra    {r}_service: DELETE on table shop.item
    "##);
    let run = production.sandbox.run(&["users", "check", "--env", "prod", "--json"]).exits(13);
    let json = run.json();
    assert_eq!(json["missing"].as_array().map(Vec::len), Some(11), "{json:#}");
    assert_eq!(json["unknown_objects"], serde_json::json!([]), "{json:#}");
    assert_eq!(query_text(&admin, UNTOUCHED).await, before);
    let left = production.sandbox.project().join(".seedbed/check/.seedbed/native");
    assert!(!left.exists(), "the server is gone");

    // Who may not read a table cannot lock it for `pg_dump`.
    production.sql("revoke select on shop.item from {r}_reader").await;
    let run = production.sandbox.run(&["users", "check", "--env", "prod"]).exits(5);
    let hint = format!(
        "hint: as a superuser: grant pg_read_all_data to \"{}_reader\";\n",
        production.name
    );
    assert!(run.stderr.ends_with(&hint), "{}", run.stderr);
}

#[tokio::test]
async fn check_needs_a_server_of_this_machine_and_says_how_to_get_one() {
    let mut production = Protected::new(&server().admin, "kind = \"docker\"").await;
    production.sandbox.set("DOCKER_HOST", "unix:///nonexistent.sock");
    let run = production.sandbox.run(&["users", "check", "--env", "prod"]).exits(4);
    let run = run.hide(&production.name, "{r}");
    insta::assert_snapshot!(run.transcript(), @r##"
    exit 4
    --- stdout
    --- stderr
    `{r}_reader` owns nothing there: default privileges are meant for `{r}_owner`, who owns the database
    read roles and privileges of `{r}_shop`: 5 roles in the files ([time])
    read the schema of `{r}_shop` ([time])
    nothing is made on `127.0.0.1`: what the files give is tried on a scratch server
    error: reach the Docker daemon at `unix:///nonexistent.sock`: Socket not found: /nonexistent.sock (from DOCKER_HOST)
      hint: start the Docker daemon, or set `DOCKER_HOST`
      hint: or set `engine.kind = "native"` or `"embedded"`
    "##);
}

/// What each version knows that the other does not is no difference.
#[tokio::test(flavor = "multi_thread")]
async fn check_compares_a_production_of_version_13_on_17() {
    let Some(source) = harness::container(13).await else { return };
    if !container::image_is_here(17) {
        return;
    }
    let engine = "kind = \"docker\"\nimage = \"postgres:17\"";
    let production = Protected::new(&source.server.admin, engine).await;
    assert_eq!(production.check("admin", 0), "effective privileges are what the files say\n");
    production.sql(CHANGED).await;
    insta::assert_snapshot!(production.check("admin", 13), @r##"
    missing  {r}_dba: MEMBER on role {r}_read
    missing  {r}_dba: USAGE on schema shop
    missing  {r}_dba: SELECT on table shop.customer
    missing  {r}_dba: SELECT on table shop.item
    missing  {r}_dba: SELECT on table shop.names
    missing  {r}_dba: SELECT on table shop.sums
    missing  {r}_read: SELECT on table shop.customer
    missing  {r}_service: CONNECTION LIMIT 20 on role
    missing  {r}_service: PASSWORD of the files on role
    missing  {r}_service: SET statement_timeout=30s on role
    missing  {r}_service: SELECT on table shop.customer
    extra    {r}_read: INSERT on new tables of {r}_owner in schema shop
    extra    {r}_service: CREATEDB on role
    extra    {r}_service: SET statement_timeout=1h on role
    extra    {r}_service: DELETE on table shop.item
    "##);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_sees_a_privilege_that_only_newer_versions_have() {
    let Some(source) = harness::container(17).await else { return };
    let production = Protected::new(&source.server.admin, "kind = \"external\"").await;
    production.sql("grant maintain on shop.item to {r}_service").await;
    // What makes a role in this version is a member of it, which no file says.
    production.sql("set role {r}_cloud; create role {r}_made").await;
    insta::assert_snapshot!(production.check("admin", 13), @"extra    {r}_service: MAINTAIN on table shop.item");
}
