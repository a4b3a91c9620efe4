//! History tables of another make: read where their values can be meant, else refused by row and column.

use super::site::Site;

/// A table with the right names of columns, in these types, and one row for version 1.
fn table(installed_on: &str, time: &str, success: &str, values: &str) -> String {
    format!(
        "create table flyway_schema_history (installed_rank bigint, version text, description text,
            type text, script text, checksum bigint, installed_by text, installed_on {installed_on},
            execution_time {time}, success {success});
         insert into flyway_schema_history values ({values})"
    )
}

async fn site() -> Site {
    Site::new(&[("V1__a.sql", "create table a (id int);\n")]).await
}

#[tokio::test]
async fn other_types_of_columns_are_read() {
    for (installed_on, time, success) in [
        ("timestamptz", "bigint", "int"),
        ("text", "numeric", "smallint"),
        ("timestamp", "text", "text"),
    ] {
        let site = site().await;
        let one = if success == "text" { "'t'" } else { "1" };
        let values = format!(
            "1, '1', 'a', 'SQL', 'V1__a.sql', -897341557, 'x', '2026-01-02 03:04:05', '7', {one}"
        );
        site.database.run(&table(installed_on, time, success, &values)).await;
        assert_eq!(site.states(&[]), ["1 a Success"]);
        assert_eq!(site.json(&["info"])["migrations"][0]["executionTime"], 7);
    }
}

#[tokio::test]
async fn values_that_no_history_has_are_named_by_row_and_column() {
    let row = |description: &str, checksum: &str, installed_on: &str, time: &str, success: &str| {
        format!(
            "1, '1', {description}, 'SQL', 'V1__a.sql', {checksum}, 'x', {installed_on}, {time}, {success}"
        )
    };
    for (values, said) in [
        (row("null", "1", "now()", "1", "1"), "row 1: the column `description` is empty"),
        (row("'a'", "1", "null", "1", "1"), "row 1: the column `installed_on` is empty"),
        (
            row("'a'", "99999999999", "now()", "1", "1"),
            "row 1: the column `checksum` holds `99999999999`, which is no checksum of Flyway's",
        ),
        (row("'a'", "1", "now()", "null", "1"), "row 1: the column `execution_time` is empty"),
        (row("'a'", "1", "now()", "1", "2"), "row 1: the column `success` holds `2`"),
    ] {
        let site = site().await;
        site.database.run(&table("timestamp", "bigint", "int", &values)).await;
        for verb in ["migrate", "info", "validate", "repair"] {
            let run = site.run(&["--quiet", verb]).exits(7);
            assert!(run.stderr.contains(said), "{verb}: {}", run.stderr);
        }
    }
}

#[tokio::test]
async fn a_column_that_cannot_be_read_as_what_it_stands_for_is_refused() {
    let site = site().await;
    let values = "1, '1', 'a', 'SQL', 'V1__a.sql', 1, 'x', 5, 1, true";
    site.database.run(&table("bigint", "int", "boolean", values)).await;
    let run = site.run(&["--quiet", "migrate"]).exits(7);
    assert!(run.stderr.contains("is no migration history that can be read: "), "{}", run.stderr);
}

#[tokio::test]
async fn a_view_is_read_as_a_table_is() {
    let site = site().await;
    site.run(&["migrate"]).succeeds();
    site.database
        .run(
            "alter table flyway_schema_history rename to real;
             create view flyway_schema_history as select installed_rank, version, description, type,
                script, checksum, installed_by, installed_on, execution_time::bigint, success from real",
        )
        .await;
    assert_eq!(site.states(&[]), ["1 a Success"]);
}

#[tokio::test]
async fn rows_stand_in_the_order_of_their_ranks_and_the_next_one_comes_after_them() {
    let site = site().await;
    for number in 2..=11 {
        site.sql(&format!("V{number}__t.sql"), format!("create table t{number} (id int);\n"));
    }
    site.run(&["migrate"]).succeeds();
    let versions = (1..=11).map(|number: u32| number.to_string());
    let ids = site.run(&["info", "--migration-ids"]).succeeds().stdout;
    assert_eq!(ids.trim_end(), versions.collect::<Vec<_>>().join(","));
    site.sql("V12__t.sql", "create table t12 (id int);\n");
    site.run(&["migrate"]).succeeds();
    assert_eq!(site.history().await.last().map(String::as_str), Some("12|12|SQL|V12__t.sql|t"));
}
