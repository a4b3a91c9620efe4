//! The small verbs around a database: looking, connecting, stopping, beginning a project.

use super::Project;
use crate::harness::Sandbox;
use crate::harness::postgres::newest_bin_dir;

#[tokio::test]
async fn a_project_is_looked_at_used_stopped_started_again_and_removed() {
    let project = Project::native().with_snapshot().await;
    let run = project.run(&["status"]).succeeds();
    assert_eq!(
        run.stdout,
        "environment  dev\nserver       none runs here: `seedbed up` starts it\n"
    );
    for verb in ["url", "psql", "migrate", "info"] {
        let run = project.run(&[verb]).exits(4);
        assert_eq!(
            run.stderr,
            "error: no server runs for this project, and the environment names none that does\n  \
             hint: start it with `seedbed up`\n",
            "{verb}"
        );
    }
    project.run(&["up"]).succeeds();

    let status = project.run(&["status", "--json"]).succeeds().json();
    assert_eq!(status["format"], 1);
    assert_eq!(status["server"]["kind"], "native");
    assert_eq!(status["database"]["schema_version"], "2");
    assert_eq!(status["database"]["pending"], serde_json::json!([]));
    assert_eq!(status["database"]["origin"]["kind"], "snapshot");
    let port = &status["server"]["port"];
    let url = project.run(&["url"]).succeeds().stdout;
    assert_eq!(url, format!("postgresql://shop_owner:owner%20word@127.0.0.1:{port}/shop\n"));
    let url = project.run(&["url", "--user", "shop_reader"]).succeeds().stdout;
    assert_eq!(url, format!("postgresql://shop_reader:reader%20word@127.0.0.1:{port}/shop\n"));

    let psql =
        |sql: &str| project.run(&["psql", "--", "-AtqX", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    assert_eq!(psql("select current_user").succeeds().stdout, "shop_owner\n");
    let failed = psql("select nonsense").exits(1);
    assert!(failed.stderr.contains("column \"nonsense\" does not exist"), "{}", failed.stderr);

    let new = project.run(&["new", "add notes"]).succeeds();
    assert!(new.stdout.trim().ends_with("sql/V3__add_notes.sql"), "{}", new.stdout);
    project.sandbox.write("sql/V3__add_notes.sql", "create table shop.note (body text);");
    let status = project.run(&["status"]).succeeds();
    assert!(status.stdout.contains("pending      3 add notes\n"), "{}", status.stdout);
    project.run(&["migrate"]).succeeds();
    project.sql("insert into shop.note values ('kept')").await;

    let down = project.run(&["down"]).succeeds();
    assert!(down.stdout.starts_with("stopped the server in "), "{}", down.stdout);
    assert_eq!(project.run(&["down"]).succeeds().stdout, "no server was running\n");
    let up = project.run(&["up"]).succeeds();
    assert!(up.stdout.contains("migrated  nothing to do\n"), "{}", up.stdout);
    assert_eq!(project.text("select body from shop.note").await, "kept");

    let asked = project.run(&["down", "--volumes"]).exits(12);
    assert_eq!(
        asked.stderr,
        "error: `down --volumes` removes the database's data and nobody is there to confirm it\n  \
         hint: run `seedbed down --volumes --yes`\n"
    );
    assert_eq!(project.text("select body from shop.note").await, "kept");
    let down = project.run(&["down", "--volumes", "--yes"]).succeeds();
    assert!(down.stdout.contains("\nremoved "), "{}", down.stdout);
    assert!(!project.sandbox.project().join(".seedbed/native/data").exists());
    let up = project.run(&["up"]).succeeds();
    assert!(up.stdout.contains("V2__purchases.sql"), "{}", up.stdout);
}

#[tokio::test]
async fn an_empty_folder_becomes_a_project_that_is_up_at_once() {
    let mut sandbox = Sandbox::new();
    sandbox.set("SEEDBED_ENGINE_KIND", "native");
    sandbox.set("SEEDBED_ENGINE_BIN_DIR", &newest_bin_dir().to_string_lossy());
    let run = sandbox.run(&["up"]).exits(3);
    assert!(run.stderr.contains("hint: make one here with `seedbed init`"), "{}", run.stderr);
    let init = sandbox.run(&["init"]).succeeds();
    assert!(init.stdout.ends_with("next: `seedbed up`\n"), "{}", init.stdout);
    let up = sandbox.run(&["up"]).succeeds();
    assert!(up.stdout.contains("schema version 001\n"), "{}", up.stdout);
    let sql = "select count(*) from item";
    let args = ["psql", "--user", "app_service", "--", "-AtqX", "-c", sql];
    assert_eq!(sandbox.run(&args).succeeds().stdout, "0\n");
    let again = sandbox.run(&["init"]).exits(12);
    assert!(again.stderr.contains("is a project already"), "{}", again.stderr);
    // Passwords that were made up stay out of a repository without any rule of its own.
    assert_eq!(sandbox.read(".seedbed/.gitignore"), "*\n");
}

#[tokio::test]
async fn config_tells_each_value_and_its_place_and_no_secret() {
    let project = Project::native();
    let config = project.run(&["config"]).succeeds().stdout;
    let row = |key: &str| {
        let found = config.lines().find(|line| line.split_whitespace().next() == Some(key));
        found.unwrap_or_else(|| panic!("no {key} in {config}")).to_owned()
    };
    assert!(row("database.name").contains("shop"), "{config}");
    assert!(row("database.name").contains("conf/dev.toml:"), "{config}");
    assert!(row("database.password").contains("***"), "{config}");
    assert!(row("flyway.table").ends_with("default"), "{config}");
    assert!(!config.contains("word\""), "{config}");
    assert!(!config.contains("owner word"), "{config}");
    let flag = project.run(&["config", "--set", "flyway.outOfOrder=true"]).succeeds().stdout;
    let line = flag.lines().find(|line| line.starts_with("flyway.outOfOrder "));
    assert!(line.is_some_and(|line| line.contains("true") && line.contains("--")), "{flag}");
}
