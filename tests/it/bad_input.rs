//! What is wrong, told to the user: each with its own words, its exit code, and nothing lost.

use crate::harness::postgres::{newest_bin_dir, query_text};
use crate::harness::{Run, S3Server, s3, server};
use crate::journeys::{FIRST, Project, copy_tree, elsewhere, files_below, published};

/// Fails unless the program said exactly this at its end.
#[track_caller]
fn ends(run: &Run, said: &str) {
    assert!(run.stderr.ends_with(said), "not\n{said}\nat the end of\n{}", run.stderr);
    assert_eq!(run.stdout, "");
}

async fn ready() -> Project {
    let project = Project::external(elsewhere()).with_snapshot().await;
    project.run(&["up"]).succeeds();
    project
}

#[tokio::test]
async fn a_configured_port_that_a_foreign_postgres_has_is_named() {
    let project = Project::native();
    let port = server().admin.port;
    let engine =
        format!("kind = \"native\"\nbin_dir = \"{}\"\nport = {port}\n", newest_bin_dir().display());
    project.configure(&engine, "", "");
    let databases = "select count(*) from pg_database where datname = 'shop'";
    let run = project.run(&["up"]).exits(4);
    ends(
        &run,
        &format!(
            "error: serve on port {port}: it is taken by a PostgreSQL server that is not this project's\n  \
             hint: stop what serves on port {port}, or set another `engine.port`\n  \
             hint: or set `engine.kind = \"external\"` to use that server\n"
        ),
    );
    assert_eq!(query_text(&server().admin, databases).await, "0");
}

#[tokio::test]
async fn a_wrong_password_names_the_account_and_the_server_and_not_the_password() {
    let mut project = Project::external(elsewhere());
    project.sandbox.set("SUPERUSER_WORD", "canary");
    let port = elsewhere().admin.port;
    let run = project.run(&["up"]).exits(4);
    assert!(
        run.stderr.contains(&format!(
            "error: log in to the server at `127.0.0.1:{port}` as `postgres`: password authentication failed"
        )),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("\n  hint: set `engine.superuser_password`"), "{}", run.stderr);
    assert!(!run.stderr.contains("canary"), "{}", run.stderr);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_named() {
    let project = Project::external(elsewhere());
    let port = crate::harness::postgres::free_port();
    project.configure_external("127.0.0.1", port, "");
    let run = project.run(&["up"]).exits(4);
    assert!(
        run.stderr.contains(&format!(
            "error: connect to `postgresql://postgres@127.0.0.1:{port}/postgres`: "
        )),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("Connection refused"), "{}", run.stderr);
    assert!(run.stderr.ends_with("  hint: check with `seedbed doctor`\n"), "{}", run.stderr);
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
    let project = Project::native();
    project.sandbox.write("conf/dev.toml", "[database]\nname = \"shop\"\npasword = \"word\"\n");
    let run = project.run(&["up"]).exits(3);
    ends(
        &run,
        "error: unknown key `database.pasword` in conf/dev.toml:3\n  \
         hint: did you mean `database.password`?\n",
    );
    project.sandbox.write("conf/dev.toml", "");
    project.sandbox.write("conf/flyway.conf", "flyway.locatoins=filesystem:sql\n");
    let run = project.run(&["config"]).exits(3);
    ends(
        &run,
        "error: unknown key `flyway.locatoins` in conf/flyway.conf:1\n  \
         hint: did you mean `flyway.locations`?\n",
    );
}

#[test]
fn a_wrong_value_names_the_flag_that_was_typed() {
    let project = Project::native();
    for (args, said) in [
        (&["up", "--set", "engine.kind=bogus"] as &[&str], "`engine.kind` in --set engine.kind "),
        (&["up", "--set", "store.url=http://x"], "`store.url` in --set store.url"),
        (
            &["up", "--set", "engine.knid=native"],
            "unknown key `engine.knid` in --set engine.knid\n",
        ),
        (&["migrate", "--group=perhaps"], "`flyway.group` in --group wants "),
    ] {
        let run = project.run(args).exits(3);
        assert!(run.stderr.starts_with(&format!("error: {said}")), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn an_environment_or_a_project_that_is_not_there_is_named() {
    let project = Project::native();
    let run = project.run(&["up", "--env", "test"]).exits(3);
    ends(
        &run,
        "error: no environment `test`: there is `dev`\n  hint: name one that exists: `--env dev`\n  \
         hint: or make it: `conf/test.toml`\n",
    );
    let run = project.run(&["up", "--project", "/nowhere"]).exits(3);
    ends(
        &run,
        "error: `/nowhere` is not a project: it has neither `conf/` nor `flyway.conf` nor `flyway.toml`\n  \
         hint: make one with `seedbed --project /nowhere init`\n",
    );
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let project = Project::native();
    for args in [
        &["upp"] as &[&str],
        &["up", "--sed", "none"],
        &["seed"],
        &["seed", "--snapshot", "latest", "--file", "x.sql"],
        &["up", "--quiet", "--verbose"],
        &["snapshot", "shw"],
        &["up", "--set", "nonsense"],
        &["snapshot", "list", "--max-age", "8"],
    ] {
        let run = project.run(args).exits(2);
        assert!(run.stderr.starts_with("error: "), "{args:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{args:?}");
    }
    let run = project.run(&["up", "--sed", "none", "--json"]).exits(2);
    assert_eq!(run.json()["error"]["kind"], "command_line");
    let run = project.run(&["upp"]).exits(2);
    assert!(run.stderr.contains("a similar subcommand exists: 'up'"), "{}", run.stderr);
}

#[tokio::test]
async fn broken_sql_in_a_migration_shows_file_line_and_caret() {
    let project = ready().await;
    let before = project.contents().await;
    project.sandbox.write(
        "sql/V3__broken.sql",
        "create table shop.note (body text);\n\ninsert into shop.note (text)\nvalues ('x');\n",
    );
    for verb in ["up", "migrate"] {
        let run = project.run(&[verb]).exits(6);
        ends(
            &run,
            "error: run `sql/V3__broken.sql`, line 3, column 24: column \"text\" of relation \"note\" does not exist \
             (SQLSTATE 42703)\n  3 | insert into shop.note (text)\n    |                        ^\n\
             rolled back: the database is as it was before this script\n  \
             hint: correct the script and run `seedbed migrate` again\n",
        );
        assert_eq!(project.contents().await, before, "{verb}");
    }
    let json = project.run(&["up", "--json"]).exits(6).json();
    assert_eq!(json["format"], 1);
    assert_eq!(json["error"]["kind"], "script");
}

#[tokio::test]
async fn a_migration_that_was_changed_after_it_ran_ends_with_7() {
    let project = ready().await;
    let before = project.contents().await;
    project.sandbox.write("sql/V1__shop.sql", format!("{FIRST}-- later\n"));
    for verb in ["up", "migrate"] {
        let run = project.run(&[verb]).exits(7);
        assert!(
            run.stderr.contains("error: the migration history does not match the files:"),
            "{}",
            run.stderr
        );
        assert!(run.stderr.contains("V1__shop.sql"), "{}", run.stderr);
        assert!(
            run.stderr
                .contains("hint: put the old text back and write the change into a new script"),
            "{}",
            run.stderr
        );
        assert_eq!(project.contents().await, before, "{verb}");
    }
    let run = project.run(&["validate"]).exits(7);
    assert!(run.stdout.contains("CHECKSUM_MISMATCH"), "{}", run.stdout);
}

fn on_s3(project: &mut Project, s3: &S3Server, bucket: &str) {
    for (name, value) in s3.variables() {
        project.sandbox.set(name, value);
    }
    let section = s3.store_section(bucket, "shop");
    let settings = project.sandbox.read("conf/seedbed.toml");
    project.sandbox.write("conf/seedbed.toml", format!("{section}{settings}"));
}

#[tokio::test]
async fn a_bucket_that_is_not_there_and_credentials_that_are_wrong_end_with_9() {
    let s3 = s3();
    let mut project = Project::external(elsewhere());
    on_s3(&mut project, &s3, "nowhere");
    for args in [&["up", "--seed", "latest"] as &[&str], &["snapshot", "list"], &["up"]] {
        let run = project.run(args).exits(9);
        ends(
            &run,
            &format!(
                "error: the bucket `nowhere` does not exist at {}\n  \
                 hint: correct `store.url` in `conf/seedbed.toml`\n  hint: or make it: `aws s3 mb s3://nowhere`\n",
                s3.endpoint()
            ),
        );
    }
    assert_eq!(project.databases().await, [""; 0]);

    let mut project = Project::external(elsewhere());
    on_s3(&mut project, &s3, "snapshots");
    project.sandbox.set("AWS_SECRET_ACCESS_KEY", "canary");
    let run = project.run(&["snapshot", "list"]).exits(9);
    let said = format!("error: {} does not accept the credentials: ", s3.endpoint());
    assert!(run.stderr.contains(&said), "{}", run.stderr);
    assert!(
        run.stderr.contains("  hint: see who you are: `aws sts get-caller-identity`\n"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains("canary"), "{}", run.stderr);

    // A store that does not answer.
    let mut project = Project::external(elsewhere());
    on_s3(&mut project, &s3, "snapshots");
    let endpoint = s3.endpoint();
    drop(s3);
    let run = project.run(&["snapshot", "list"]).exits(9);
    assert!(run.stderr.contains(&format!("error: cannot reach {endpoint}: ")), "{}", run.stderr);
}

#[tokio::test]
async fn a_manifest_of_an_unknown_format_asks_for_a_newer_seedbed() {
    let project = ready().await;
    let before = project.contents().await;
    let manifest =
        files_below(&project.sandbox.project().join("seed/snapshots/snapshots")).remove(0);
    let text = std::fs::read_to_string(&manifest).expect("it is there");
    let mut document: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    document["format"] = serde_json::json!(99);
    std::fs::write(&manifest, document.to_string()).expect("it is ours");
    let id = manifest.file_stem().and_then(|stem| stem.rsplit('_').next()).expect("an id");
    let why = project.run(&["snapshot", "why"]).succeeds();
    assert!(
        why.stdout.contains("has format 99, which this seedbed does not know"),
        "{}",
        why.stdout
    );
    let run = project.run(&["reset", "--seed", "latest"]).exits(8);
    assert!(
        run.stderr.contains("has format 99, which this seedbed does not know"),
        "{}",
        run.stderr
    );
    let run = project.run(&["seed", "--snapshot", id]).exits(10);
    assert!(run.stderr.contains("format 99"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: install a newer seedbed, then try again"), "{}", run.stderr);
    assert_eq!(project.contents().await, before);
}

#[tokio::test]
async fn one_flipped_bit_in_any_chunk_ends_with_10_and_nothing_is_lost() {
    let project = ready().await;
    project.sql("insert into shop.customer (name) values ('mine')").await;
    let before = project.contents().await;
    // Another grant: no template fits, so the chunks are read.
    project.sandbox.write("users/later.sql", "GRANT INSERT ON shop.item TO ${reader};");
    let store = project.sandbox.project().join("seed/snapshots");
    let chunks = files_below(&store.join("chunks"));
    for chunk in &chunks {
        let whole = std::fs::read(chunk).expect("it is there");
        let mut bytes = whole.clone();
        let last = bytes.len() - 1;
        bytes[last] ^= 0x80;
        std::fs::write(chunk, bytes).expect("it is ours");
        // The chunks of the run before may be in the cache, or none may be.
        let _ = std::fs::remove_dir_all(project.sandbox.cache());
        let run = project.run(&["reset"]).exits(10);
        let name = chunk.file_name().expect("a file");
        assert!(run.stderr.contains(name), "{name}: {}", run.stderr);
        assert!(run.stderr.contains("its sha256 is "), "{}", run.stderr);
        assert_eq!(project.contents().await, before);
        assert_eq!(project.databases().await, ["live", "template"]);
        std::fs::write(chunk, whole).expect("it is ours");
    }
    assert!(chunks.len() > 1);
    project.run(&["reset"]).succeeds();
}

#[tokio::test]
async fn a_snapshot_newer_than_the_checkout_is_never_restored() {
    let project = Project::external(elsewhere());
    copy_tree(published().await, &project.sandbox.project().join("seed/snapshots"));
    let root = project.sandbox.project();
    for gone in
        ["sql/V1__shop.sql", "sql/V2__purchases.sql", "sql/R__totals.sql", "users/accounts.sql"]
    {
        std::fs::remove_file(root.join(gone)).expect("it was written");
    }
    project.sandbox.write("sql/V0.5__early.sql", "create table early ();");
    let run = project.run(&["up", "--seed", "latest"]).exits(8);
    assert!(
        run.stderr.contains("is no match: newer than this checkout: version 1 is not here\n  hint: see the reason of each: `seedbed snapshot why`"),
        "{}",
        run.stderr
    );
    assert_eq!(project.databases().await, [""; 0]);
    // Without the wish for one, what happens instead is said.
    let up = project.run(&["up"]).succeeds();
    assert!(
        up.stderr.contains(
            "newer than this checkout: version 1 is not here; see `seedbed snapshot why`"
        ),
        "{}",
        up.stderr
    );
    assert!(up.stdout.contains("data      none: it began empty"), "{}", up.stdout);
}

#[tokio::test]
async fn a_statement_that_is_not_for_users_files_is_refused_by_file_and_line() {
    let project = ready().await;
    project.sandbox.write("users/late.sql", "CREATE USER late;\n\nDROP TABLE shop.item;\n");
    let run = project.run(&["up"]).exits(3);
    assert!(
        run.stderr.contains("error: read users file `users/late.sql` line 3, column 1: "),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("  hint: "), "{}", run.stderr);
    let late = "select count(*) from pg_roles where rolname = 'late'";
    assert_eq!(project.text("select count(*) from shop.item").await, "5000");
    assert_eq!(query_text(&project.admin(), late).await, "0");

    project.sandbox.write("users/late.sql", "GRANT SELECT ON shop.nothing TO ${reader};\n");
    let run = project.run(&["up"]).exits(3);
    assert!(run.stderr.contains("`users/late.sql` line 1"), "{}", run.stderr);
    assert!(run.stderr.contains("relation \"shop.nothing\" does not exist"), "{}", run.stderr);

    project.sandbox.write("users/late.sql", "CREATE USER late PASSWORD '${unset}';\n");
    let run = project.run(&["up"]).exits(3);
    assert!(run.stderr.contains("${unset}"), "{}", run.stderr);
    assert!(
        run.stderr.contains("hint: set it in `conf/`: `flyway.placeholders.unset=…`"),
        "{}",
        run.stderr
    );
    // Corrected, it goes on where it was.
    project.sandbox.write("users/late.sql", "");
    project.run(&["up"]).succeeds();
}
