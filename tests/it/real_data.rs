//! Real databases as production, through the whole road: `snapshot create` with a role that may only
//! read, to S3 over HTTP and to a folder, and `up` in another project folder. Only with `--full`.

use seedbed::pg::Target;

use crate::equality;
use crate::harness::{self, S3Server, Sandbox, Server, TestDatabase};

/// What the team's own script brought before the rows came: it has to be in every checkout.
const SCRIPT: &str = "create table public.seedbed_ledger (id int primary key, note text);
insert into public.seedbed_ledger select n, 'entry ' || n from generate_series(1, 10) n;
";

/// Roles that single data sets name. The server is this module's own.
const ROLES: [&str; 3] =
    ["regress_dump_test_role", "\"regress_quoted  \\\"\" role\"", "\"regress_newline\nattack\""];

/// A project folder with the script; its environment is `conf`.
fn project(store: &str, environment: &str, conf: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("conf/seedbed.toml", store);
    sandbox.write(&format!("conf/{environment}.toml"), conf);
    sandbox.write("sql/V1__ledger.sql", SCRIPT);
    sandbox
}

fn production(source: &TestDatabase, store: &str) -> Sandbox {
    let target = &source.target;
    project(
        store,
        "prod",
        &format!(
            "protected = true\n[engine]\nkind = \"external\"\n[database]\nhost = \"{}\"\nport = {}\nname = \"{}\"\n\
             user = \"${{env:PROD_USER}}\"\npassword = \"env:PROD_PASSWORD\"\n",
            target.host, target.port, target.database
        ),
    )
}

fn sign_in(sandbox: &mut Sandbox, target: &Target) {
    use secrecy::ExposeSecret;
    sandbox.set("PROD_USER", &target.user);
    let password = target.password.as_ref().expect("roles of the harness have passwords");
    sandbox.set("PROD_PASSWORD", password.expose_secret());
}

/// A developer's project over the same store, after `up`; and its database as the superuser sees it: nothing is hidden from that.
fn developer(store: &str, s3: &S3Server) -> (Sandbox, Target) {
    let mut sandbox = project(
        store,
        "dev",
        "[engine]\nkind = \"native\"\nsuperuser_password = \"canary\"\n[database]\nname = \"app\"\nuser = \"app_owner\"\npassword = \"word\"\n",
    );
    for (name, value) in s3.variables() {
        sandbox.set(name, value);
    }
    let up = sandbox.run(&["up", "--seed", "latest", "--json"]).succeeds();
    let ready = up.json();
    assert_eq!(ready["schema_version"], "1", "{ready:#}");
    let url = sandbox.run(&["url"]).succeeds().stdout;
    let url = url::Url::parse(url.trim()).expect("a connection URL");
    let target = Target {
        host: "127.0.0.1".to_owned(),
        port: url.port().expect("named in the URL"),
        database: "app".to_owned(),
        user: "postgres".to_owned(),
        password: Some("canary".to_owned().into()),
        ssl_mode: seedbed::pg::SslMode::Disable,
        ssl_root_cert: None,
        ssl_client: None,
        settings: Vec::new(),
    };
    (sandbox, target)
}

/// What the run has to refuse without further rights, by name.
async fn out_of_reach(source: &TestDatabase) -> Vec<String> {
    let text = source
        .text(
            "select '`' || oid || '`' from pg_largeobject_metadata
             union all
             select '`' || n.nspname || '.' || c.relname || '`' from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.relrowsecurity and c.relkind in ('r', 'p')",
        )
        .await;
    text.lines().map(str::to_owned).collect()
}

async fn goes_through(name: &str) {
    let Some(folder) = harness::datasets() else { return };
    let server = Server::start(&[]);
    for role in ROLES {
        harness::postgres::run_sql(&server.admin, &format!("create role {role}")).await;
    }
    let source = server.create_database().await;
    let s3 = harness::s3();
    let s3_store = s3.store_section("snapshots", name);
    let mut prod = production(&source, &s3_store);
    for (variable, value) in s3.variables() {
        prod.set(variable, value);
    }
    sign_in(&mut prod, &source.target);
    prod.run(&["migrate", "--env", "prod", "--yes"]).succeeds();
    let file = folder.join(format!("{name}.dump"));
    equality::tool(&server.bin_dir, "pg_restore", Some(&source.target), &[file.as_str()]);

    let reader = server.create_role("").await;
    let grant = format!("grant pg_read_all_data to {}", reader.name);
    harness::postgres::run_sql(&server.admin, &grant).await;
    sign_in(&mut prod, &source.target_of(&reader));
    let needed = out_of_reach(&source).await;
    if !needed.is_empty() {
        let refused = prod.run(&["snapshot", "create", "--env", "prod"]).exits(5);
        for object in &needed {
            assert!(refused.stderr.contains(object), "{object} is not named:\n{}", refused.stderr);
        }
        prod.run(&["snapshot", "list", "--env", "prod", "--max-age", "8d"]).exits(13);
        let rights = format!("alter role {} bypassrls", reader.name);
        harness::postgres::run_sql(&server.admin, &rights).await;
        grant_large_objects(&source, &reader.name).await;
    }

    let before = equality::contents(&source.target).await;
    let schema_before = equality::schema(&server.bin_dir, &source.target);
    prod.run(&["snapshot", "create", "--env", "prod"]).succeeds();
    let dir = tempfile::tempdir().expect("the temporary folder can be written to");
    let folder_store = format!("[store]\nurl = \"{}\"\n", dir.path().display());
    prod.write("conf/seedbed.toml", &folder_store);
    prod.run(&["snapshot", "create", "--env", "prod"]).succeeds();
    assert_eq!(equality::contents(&source.target).await, before, "the source is only read");
    assert_eq!(equality::schema(&server.bin_dir, &source.target), schema_before);

    let reference = server.create_database().await;
    equality::copy_by_pg_dump(&server.bin_dir, &source.target, &reference.target);
    let expected_schema = equality::schema(&server.bin_dir, &reference.target);
    let mut found = Vec::new();
    let mut second_store = None;
    for store in [&s3_store, &folder_store] {
        let (sandbox, copy) = developer(store, &s3);
        let contents = equality::contents(&copy).await;
        found.extend(equality::content_differences(&before, &contents));
        let schema = equality::schema(&server.bin_dir, &copy);
        found.extend(equality::differences(&expected_schema, &schema));
        if second_store.is_none() {
            let dir = tempfile::tempdir().expect("the temporary folder can be written to");
            let store = format!("[store]\nurl = \"{}\"\n", dir.path().display());
            sandbox.write("conf/seedbed.toml", &store);
            sandbox.run(&["snapshot", "create"]).succeeds();
            let (second, copy) = developer(&store, &s3);
            let again = equality::contents(&copy).await;
            found.extend(equality::content_differences(&contents, &again));
            found.extend(equality::differences(&schema, &equality::schema(&server.bin_dir, &copy)));
            second_store = Some((dir, second));
        }
    }
    harness::say(&format!(
        "{name}: {} tables and sequences equal over S3, a folder and a second generation",
        before.len()
    ));
    assert!(found.is_empty(), "{name} differs:\n{}", found.join("\n"));
}

async fn grant_large_objects(source: &TestDatabase, role: &str) {
    source
        .run(&format!(
            "do $$ declare o oid; begin for o in select oid from pg_largeobject_metadata loop
             execute format('grant select on large object %s to {role}', o); end loop; end $$"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn northwind_comes_up_equal_in_another_project() {
    goes_through("northwind").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pagila_comes_up_equal_in_another_project() {
    goes_through("pagila").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sakila_comes_up_equal_in_another_project() {
    goes_through("sakila").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_regression_suites_database_comes_up_equal_in_another_project() {
    goes_through("regression-portable").await;
}
