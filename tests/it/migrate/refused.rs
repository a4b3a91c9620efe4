//! Input that cannot be used: each refused with one clear error, before anything runs.

use super::site::Site;

/// What `migrate` says about these files, without the sandbox's folder.
async fn refused(files: &[(&str, &str)], args: &[&str], code: i32) -> String {
    let site = Site::new(files).await;
    let run = site.run(&[&["--quiet", "migrate"], args].concat()).exits(code);
    assert!(!site.has("a").await, "something ran");
    run.stderr.replace(site.sandbox.project().as_str(), "[project]")
}

#[tokio::test]
async fn two_files_of_one_version_are_both_named() {
    let files = [("V1__a.sql", "create table a (id int);"), ("sub/V1.0__b.sql", "select 1;")];
    assert_eq!(
        refused(&files, &[], 6).await,
        "error: more than one script for version 1:\n  \
         [project]/sql/V1__a.sql (SQL)\n  [project]/sql/sub/V1.0__b.sql (SQL)\n  \
         hint: rename one of the two files\n"
    );
}

#[tokio::test]
async fn a_name_without_a_version_is_refused_when_names_are_checked() {
    let files = [("V__x.sql", "create table a (id int);")];
    let args = ["--validate-migration-naming"];
    assert_eq!(
        refused(&files, &args, 6).await,
        "error: 1 script has a name that cannot be read:\n  Invalid versioned migration name format: V__x.sql \
         (It must contain a version and should look like this: V1.2__x.sql)\n  \
         hint: rename the files, or set `flyway.validateMigrationNaming=false`\n"
    );
}

#[tokio::test]
async fn scripts_with_odd_names_are_left_out_with_a_warning() {
    let site =
        Site::new(&[("V__x.sql", "create table a (id int);"), ("README.md", "# scripts")]).await;
    let run = site.run(&["--quiet", "migrate"]).succeeds();
    assert_eq!(
        run.stderr,
        "warning: 1 script is left out by its name: `V__x.sql`; \
         `flyway.validateMigrationNaming=true` makes that an error\n"
    );
    for name in ["V1_init.sql", "notes.sql", "R1__r.sql"] {
        site.sql(name, "select 1;");
    }
    let run = site.run(&["--quiet", "info"]).succeeds();
    assert_eq!(
        run.stderr,
        "warning: 4 scripts are left out by their names: `R1__r.sql`, `V1_init.sql`, `V__x.sql` and 1 more; \
         `flyway.validateMigrationNaming=true` makes that an error\n"
    );
    let site = Site::new(&[("V1__a.sql", "select 1;"), ("README.md", "# scripts")]).await;
    assert_eq!(site.run(&["--quiet", "migrate"]).succeeds().stderr, "");
}

#[tokio::test]
async fn a_location_that_is_not_there_is_named() {
    let args = ["--locations=filesystem:none", "--fail-on-missing-locations"];
    assert_eq!(
        refused(&[], &args, 3).await,
        "error: location `[project]/none` is not there\n  \
         hint: make the folder `[project]/none`, or change `flyway.locations`\n"
    );
    let site = Site::new(&[]).await;
    let run = site.run(&["--quiet", "migrate", "--locations=none"]).succeeds();
    assert!(run.stderr.contains("warning: location `"), "{}", run.stderr);
}

#[tokio::test]
async fn text_that_is_not_utf_8_is_refused_with_its_byte() {
    let site = Site::new(&[]).await;
    site.sql("V1__a.sql", b"create table a (id int); -- \xE9\n");
    let run = site.run(&["--quiet", "migrate"]).exits(6);
    assert!(run.stderr.contains("V1__a.sql`: not UTF-8 (byte 28)"), "{}", run.stderr);
    assert!(run.stderr.contains("set `flyway.encoding`"), "{}", run.stderr);
    site.run(&["migrate", "--detect-encoding"]).succeeds();
}

#[tokio::test]
async fn a_nul_is_refused_with_its_line() {
    let files = [("V1__a.sql", "create table a (id int);\ninsert into a values (1);\0\n")];
    assert_eq!(
        refused(&files, &[], 6).await,
        "error: `[project]/sql/V1__a.sql`, line 2: a character NUL (byte 0), which PostgreSQL takes nowhere\n  \
         hint: remove it, or name the file's encoding: `flyway.encoding=UTF-16`\n"
    );
}

#[tokio::test]
async fn a_dollar_quote_without_its_end_is_shown_where_it_opened() {
    let text = "create table a (id int);\ncreate function f() returns int as $body$\n  begin return 1; end\n";
    assert_eq!(
        refused(&[("V1__f.sql", text)], &[], 6).await,
        "error: `[project]/sql/V1__f.sql`, line 2, column 36: dollar-quoted string without its closing \
         `$body$`\n  \
         2 | create function f() returns int as $body$\n    |                                    ^\n"
    );
}

#[tokio::test]
async fn placeholders_without_end_or_value_are_shown_where_they_stand() {
    let files = [
        ("V1__a.sql", "create table a (id int);\n"),
        ("V2__p.sql", "select 1;\n  select '${who';\n"),
    ];
    assert_eq!(
        refused(&files, &[], 6).await,
        "error: `[project]/sql/V2__p.sql`, line 2: placeholder without its closing `}`\n  \
         2 |   select '${who';\n    |           ^\n"
    );
    let files = [("V1__a.sql", "create table a (id int);\n"), ("V2__p.sql", "select '${who}';\n")];
    assert_eq!(
        refused(&files, &[], 6).await,
        "error: `[project]/sql/V2__p.sql`, line 1: no value for the placeholder `who`\n  \
         1 | select '${who}';\n    |         ^\n  \
         hint: set `flyway.placeholders.who` in the environment's file\n  \
         hint: text that is no placeholder: `flyway.placeholderReplacement=false` in `<script>.conf`\n"
    );
}

#[tokio::test]
async fn settings_of_a_script_that_nobody_knows_are_refused() {
    let files = [
        ("V1__a.sql", "create table a (id int);"),
        ("V1__a.sql.conf", "executeInTransation=false\n"),
    ];
    let said = refused(&files, &[], 6).await;
    assert!(said.contains("line 1: unknown key `executeInTransation`"), "{said}");
}

#[tokio::test]
async fn unknown_and_unsupported_settings_are_named() {
    let site = Site::new(&[("V1__a.sql", "create table a (id int);")]).await;
    let conf = site.sandbox.read("flyway.conf");
    site.sandbox.write("flyway.conf", format!("{conf}flyway.outOfOrdr=true\n"));
    let run = site.run(&["--quiet", "migrate"]).exits(3);
    assert!(
        run.stderr.contains("unknown key `flyway.outOfOrdr` in flyway.conf:5"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("flyway.outOfOrder"), "{}", run.stderr);
    let with_parameter = conf.replace("\nflyway.user", "?tcpKeepAlive=true\nflyway.user");
    site.sandbox.write("flyway.conf", format!("{with_parameter}flyway.oracle.sqlplus=true\n"));
    let run = site.run(&["migrate"]).succeeds();
    assert!(
        run.stderr.contains("`flyway.oracle.sqlplus` in flyway.conf:5 has no effect"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("the parameter `tcpKeepAlive` of the URL"), "{}", run.stderr);
    site.sandbox.write("flyway.conf", format!("{conf}flyway.postgresql.transactional.lock=true\n"));
    let run = site.run(&["migrate"]).succeeds();
    assert!(
        run.stderr.contains(
            "`flyway.postgresql.transactional.lock` in flyway.conf:5 has no effect in seedbed"
        ),
        "{}",
        run.stderr
    );
}
