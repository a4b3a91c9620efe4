//! Every recorded script: what real Flyway runs, we run, to the same effect.
//!
//! Where Flyway fails and PostgreSQL accepts, we accept ([`ACCEPTED`]); where both refuse, the place is
//! the same, and text that is no SQL at all is refused before anything runs ([`REFUSED_UNREAD`]).

use std::collections::BTreeSet;

use seedbed::pg::lexer;
use serde_json::{Value, json};

use super::site::Site;
use crate::harness::say;

/// Flyway fails, we run it. With why.
const ACCEPTED: &[(&str, &str)] = &[
    ("dollar_param_atomic", "`$1` outside of quotes is a parameter"),
    ("begin_atomic_case", "`case … end` in a body is no end of the body"),
    ("copy_to_stdout", "the rows go nowhere"),
    ("reindex_table_concurrently", "known to need no transaction"),
    ("reindex_index_concurrently", "known to need no transaction"),
    ("cluster_all", "known to need no transaction"),
    ("discard_all", "the lock is taken again"),
];

/// Refused by us before anything runs, with the line; Flyway lets the server say it, or hangs.
const REFUSED_UNREAD: &[&str] = &[
    "unterminated_string",
    "unterminated_dollar",
    "unterminated_ident",
    "copy_no_terminator",
    "psql_meta_set",
    "psql_meta_connect",
    "psql_restrict",
    "placeholder_missing",
    "cic_mixed",
];

/// Flyway's splitter sends several statements as one; its driver splits them again.
const SPLIT_FINER: &[&str] = &["estring_lower", "dollar_param_two"];

#[test]
fn every_recorded_script_does_what_it_does_with_flyway() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../vectors/statements.json")).expect("is JSON");
    let cases = vectors["cases"].as_array().expect("is a list");
    assert_eq!(cases.len(), 115);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let own = cases.iter().skip(worker).step_by(4);
                scope.spawn(move || own.flat_map(play).collect::<Vec<_>>())
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
    });
    say(&format!(
        "statements: {} matched, {} accepted where Flyway fails, {} refused before they run, {} \
         unexplained",
        cases.len() - ACCEPTED.len() - REFUSED_UNREAD.len() - failures.len(),
        ACCEPTED.len(),
        REFUSED_UNREAD.len(),
        failures.len()
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// A file that the server can read, with a row.
fn server_file() -> tempfile::NamedTempFile {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().expect("makes a file");
    std::fs::write(file.path(), "1\tfile\n").expect("writes");
    let readable = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(file.path(), readable).expect("is ours");
    file
}

fn play(case: &Value) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let found = runtime.expect("starts").block_on(run(case));
    let id = &case["id"];
    (!found.is_empty()).then(|| format!("{id}: {}", found.join("\n  ")))
}

async fn run(case: &Value) -> Vec<String> {
    let id = case["id"].as_str().expect("is named");
    let file = server_file();
    let path = file.path().to_str().expect("is UTF-8");
    let sql = &case["sql"].as_str().expect("is text").replace("/tmp/copy.txt", path);
    let site = Site::new(&[("V1__t.sql", sql)]).await;
    if let Some(conf) = case["conf"].as_str() {
        site.sql("V1__t.sql.conf", conf);
    }
    let mut args = vec!["--json".to_owned(), "--quiet".to_owned(), "migrate".to_owned()];
    if let Some(setup) = case["setup"].as_str() {
        site.database.run(setup).await;
        args.extend(["--baseline-on-migrate", "--baseline-version=0"].map(str::to_owned));
    }
    for arg in case["args"].as_array().into_iter().flatten() {
        let arg = arg.as_str().expect("is text").trim_start_matches('-');
        let (key, value) = arg.split_once('=').expect("sets something");
        args.push(match key.strip_prefix("placeholders.") {
            Some(name) => format!("--placeholders={name}={value}"),
            None => format!("--{}={value}", super::kebab(key)),
        });
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = site.run(&args);
    let mut found = Vec::new();
    let mut differ = |what: &str, ours: Value, flyways: &Value| {
        if ours != *flyways {
            found.push(format!("{what}\n    ours     {ours}\n    Flyway's {flyways}"));
        }
    };
    let is_accepted = ACCEPTED.iter().any(|(other, _)| *other == id);
    let is_unread = REFUSED_UNREAD.contains(&id);
    let succeeded = result.code == Some(0);
    if is_accepted {
        differ("success", json!(succeeded), &json!(true));
        return found;
    }
    differ("success", json!(succeeded), &case["success"]);
    if !succeeded {
        let error = &result.json()["error"];
        let line = &case["error"]["lineNumber"];
        if !is_unread {
            differ("state", error["sqlState"].clone(), &case["error"]["sqlState"]);
        }
        if line.is_number() {
            differ("line", error["lineNumber"].clone(), line);
        }
        if is_unread {
            differ("line is known", json!(error["lineNumber"].is_number()), &json!(true));
        }
    }
    let tables = "select coalesce(json_agg(n.nspname || '.' || c.relname order by 1), '[]')
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'r' and c.relname <> 'flyway_schema_history'
            and n.nspname not in ('pg_catalog', 'information_schema')";
    if !is_unread {
        let ours: Value = serde_json::from_str(&site.database.text(tables).await).expect("is JSON");
        differ("tables", sorted(&ours), &sorted(&case["tables"]));
    }
    if case["t_rows"].is_array() && succeeded {
        differ(
            "count",
            json!(site.database.text("select count(*) from t").await),
            &json!(case["t_count"].to_string()),
        );
        let limit = case["t_rows"].as_array().map_or(0, Vec::len);
        let sql = format!(
            "select coalesce(json_agg(json_build_array(t::text)), '[]')
            from (select * from t order by 1, 2 limit {limit}) t"
        );
        let ours: Value = serde_json::from_str(&site.database.text(&sql).await).expect("is JSON");
        differ("rows", shown(&ours), &shown_cells(&case["t_rows"]));
    }
    if succeeded {
        let sql = "select coalesce(json_agg(json_build_array(version, type, success)
            order by installed_rank), '[]') from flyway_schema_history";
        let ours: Value = serde_json::from_str(&site.database.text(sql).await).expect("is JSON");
        differ("history", ours, &case["history_rows"]);
    }
    if succeeded
        && id != "unterminated_comment_first"
        && let Some(flyways) = case["parser"]["statements"].as_array()
    {
        let ours: Vec<u32> =
            lexer::split(sql).unwrap_or_default().iter().map(|statement| statement.line).collect();
        let lines: Vec<&Value> = flyways.iter().map(|statement| &statement["line"]).collect();
        if !SPLIT_FINER.contains(&id) {
            differ("lines of statements", json!(ours), &json!(lines));
        }
    }
    found
}

/// Rows as the server writes a record: `(1,"a b")`, line ends made visible as in the vectors.
fn shown(rows: &Value) -> Value {
    let text = |row: &Value| {
        row[0].as_str().unwrap_or_default().replace('\r', "<CR>").replace('\n', "<LF>")
    };
    rows.as_array().into_iter().flatten().map(|row| json!(unquoted(&text(row)))).collect()
}

fn shown_cells(rows: &Value) -> Value {
    let cells = |row: &Value| {
        let cells = row.as_array().into_iter().flatten();
        cells.map(|cell| cell.as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>().join(",")
    };
    rows.as_array().into_iter().flatten().map(|row| json!(format!("({})", cells(row)))).collect()
}

/// A record without the quoting of its fields.
fn unquoted(record: &str) -> String {
    let marked = record.replace("\"\"", "\u{1}").replace("\\\\", "\u{2}");
    marked.replace('"', "").replace('\u{1}', "\"").replace('\u{2}', "\\")
}

fn sorted(list: &Value) -> Value {
    let items: BTreeSet<&str> =
        list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    json!(items)
}
