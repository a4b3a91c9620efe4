//! Every recorded scenario of real Flyway, step by step, through the built program.
//!
//! After each step exit code, result, rows of the history and `info` must be Flyway's. Where we differ
//! on purpose stands in [`DIFFERENCES`]; what we do there instead has tests of its own, named beside.

use std::collections::BTreeMap;

use seedbed::config::keys::{KEYS, Kind};
use serde_json::{Value, json};

use crate::harness::{Run, Sandbox, TestDatabase, say, server};

/// Scenario, first step that is not compared any more, why, and the test of what we do there.
const DIFFERENCES: &[(&str, usize, &str, &str)] = &[
    ("failed_non_transactional_conf", 0, KEPT, KEPT_TEST),
    ("failed_repeatable_non_transactional", 0, KEPT, KEPT_TEST),
    ("failed_then_ooo", 0, KEPT, KEPT_TEST),
    ("execute_in_transaction_global", 0, KEPT, KEPT_TEST),
    ("script_migration", 1, KEPT, KEPT_TEST),
    (
        "concurrently_default_lock",
        0,
        "Flyway's own lock lets a concurrent index build hang until a timeout",
        "a_concurrent_index_is_built_outside_of_a_transaction",
    ),
    (
        "undo_rows",
        1,
        "rows of the paid undo make Flyway fail; we read them",
        "rows_of_the_paid_undo_are_read",
    ),
    (
        "paid_features",
        0,
        "undo, cherry-pick, dry run, shouldExecute are refused or ignored by the open edition",
        "undo_goes_back_by_delete_rows_that_every_flyway_reads",
    ),
];

const KEPT: &str =
    "a failed script outside of a transaction leaves its row, as with Flyway's session lock";
const KEPT_TEST: &str = "a_failure_outside_of_a_transaction_leaves_a_failed_row";

/// What one scenario came to.
struct Compared {
    matched: usize,
    different: usize,
    failures: Vec<String>,
}

#[test]
fn every_recorded_scenario_ends_as_with_flyway() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../vectors/history.json")).expect("is JSON");
    let scenarios = vectors["scenarios"].as_array().expect("is a list");
    assert_eq!(scenarios.len(), 67);
    // Two at a time: each spends half of its time waiting for processes.
    let halves = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let own = scenarios.iter().skip(worker).step_by(4);
                scope.spawn(move || own.map(play).collect::<Vec<_>>())
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect::<Vec<_>>()
    });
    let matched: usize = halves.iter().map(|one| one.matched).sum();
    let different: usize = halves.iter().map(|one| one.different).sum();
    let failures: Vec<String> = halves.into_iter().flat_map(|one| one.failures).collect();
    say(&format!(
        "scenarios: {} of {} with nothing but Flyway's results; steps: {matched} matched, \
         {different} different on purpose, {} unexplained",
        scenarios.len() - DIFFERENCES.len(),
        scenarios.len(),
        failures.len()
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_difference_has_a_test() {
    let tests = concat!(include_str!("../migrate.rs"), include_str!("verbs.rs"));
    for (scenario, _, why, test) in DIFFERENCES {
        assert!(tests.contains(&format!("fn {test}(")), "{scenario}: {why}: {test}");
    }
}

fn play(scenario: &Value) -> Compared {
    let id = scenario["id"].as_str().expect("is named");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("starts").block_on(async { Stage::new(scenario).await.play(id, scenario).await })
}

struct Stage {
    sandbox: Sandbox,
    database: TestDatabase,
    args: Vec<String>,
    table: String,
    /// Checksums hold the time of the run.
    is_about_time: bool,
}

impl Stage {
    async fn new(scenario: &Value) -> Self {
        let database = server().create_database().await;
        super::site::made_by_us(&database).await;
        let sandbox = Sandbox::new();
        sandbox.write("conf/dev.conf", super::flyway_conf(&database));
        std::fs::create_dir_all(sandbox.project().join("sql")).expect("makes a folder");
        Self {
            sandbox,
            database,
            args: strings(&scenario["args"]),
            is_about_time: scenario["id"] == "repeatable_timestamp",
            table: scenario["table"].as_str().unwrap_or("flyway_schema_history").to_owned(),
        }
    }

    async fn play(self, id: &str, scenario: &Value) -> Compared {
        let mut compared = Compared { matched: 0, different: 0, failures: Vec::new() };
        let difference = DIFFERENCES.iter().find(|(other, ..)| *other == id);
        for (number, step) in scenario["steps"].as_array().expect("is a list").iter().enumerate() {
            let found = self.step(step).await;
            if difference.is_some_and(|(_, first, ..)| number >= *first) {
                compared.different += 1;
            } else if found.is_empty() {
                compared.matched += 1;
            } else {
                compared.failures.push(format!("{id}, step {number}: {}", found.join("\n  ")));
            }
        }
        compared
    }

    /// What differs.
    async fn step(&self, step: &Value) -> Vec<String> {
        self.prepare(step).await;
        let mut found = Vec::new();
        if let Some(query) = step["query"].as_str() {
            let rows: Vec<String> = step["query_result"]
                .as_array()
                .expect("is a list")
                .iter()
                .map(|row| strings(row).join("|"))
                .collect();
            differ(
                &mut found,
                "query",
                &json!(self.database.text(query).await),
                &json!(rows.join("\n")),
            );
        }
        if step["flyway"].is_array() {
            self.run(step, &mut found);
            self.compare_history(step, &mut found).await;
        }
        if step["info"]["rows"].is_array() {
            if self.is_about_time {
                // Recorded by a slower program: the clock's second had passed.
                self.database.text("select pg_sleep(1.1)").await;
            }
            self.compare_info(step, &mut found);
        }
        found
    }

    async fn prepare(&self, step: &Value) {
        if let Some(sql) = step["sql"].as_str() {
            self.database.run(sql).await;
        }
        let folder = self.sandbox.project().join("sql");
        if let Some(files) = step["files"].as_object() {
            for (name, text) in files {
                self.sandbox.write(&format!("sql/{name}"), text.as_str().expect("is text"));
            }
        }
        for name in strings(&step["remove"]) {
            std::fs::remove_file(folder.join(name)).expect("is there");
        }
        if let Some(names) = step["rename"].as_object() {
            for (from, to) in names {
                let to = folder.join(to.as_str().expect("is text"));
                std::fs::rename(folder.join(from), to).expect("is there");
            }
        }
    }

    fn seedbed(&self, args: &[String]) -> Run {
        let args: Vec<String> = ["--json", "--quiet"]
            .map(str::to_owned)
            .into_iter()
            .chain(ours(&self.args, args))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.sandbox.run(&args)
    }

    fn run(&self, step: &Value, found: &mut Vec<String>) {
        let run = self.seedbed(&strings(&step["flyway"]));
        let flyways = &step["result"];
        // Flyway ends with 0 although `validate` found something, when it writes JSON.
        let is_invalid = flyways["validationSuccessful"] == false;
        let failed = step["exit"] != 0 || is_invalid;
        if (run.code != Some(0)) != failed {
            found.push(format!(
                "exit {:?}, not as {}:\n{}{}",
                run.code, step["exit"], run.stdout, run.stderr
            ));
            return;
        }
        if flyways.is_null() || run.stdout.is_empty() {
            return;
        }
        let result = run.json();
        if failed && !is_invalid {
            differ(
                found,
                "error code",
                &result["error"]["errorCode"],
                &flyways["error"]["errorCode"],
            );
            return;
        }
        for field in [
            "initialSchemaVersion",
            "targetSchemaVersion",
            "migrationsExecuted",
            "schemaName",
            "validationSuccessful",
            "validateCount",
            "baselineVersion",
            "schemasCleaned",
            "schemasDropped",
            "repairActions",
            "allSchemasEmpty",
            "schemaVersion",
        ] {
            if flyways.get(field).is_some() {
                differ(found, field, &result[field], &flyways[field]);
            }
        }
        for list in [
            "migrations",
            "invalidMigrations",
            "migrationsRemoved",
            "migrationsDeleted",
            "migrationsAligned",
        ] {
            if flyways.get(list).is_some() {
                differ(found, list, &self.shown(&result[list]), &self.shown(&flyways[list]));
            }
        }
    }

    /// The entries of a list by what must be equal: wording and times need not.
    fn shown(&self, list: &Value) -> Value {
        let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let fields =
            ["category", "version", "description", "type", "filepath", "state", "undoable"];
        entries
            .iter()
            .map(|entry| {
                let mut shown: BTreeMap<&str, Value> = BTreeMap::new();
                for field in fields {
                    if let Some(value) = entry.get(field) {
                        shown.insert(field, self.relative(value));
                    }
                }
                if let Some(code) = entry["errorDetails"].get("errorCode") {
                    shown.insert("errorCode", code.clone());
                }
                json!(shown)
            })
            .collect()
    }

    fn relative(&self, value: &Value) -> Value {
        let Some(text) = value.as_str() else { return value.clone() };
        let folder = format!("{}/sql/", self.sandbox.project());
        json!(text.strip_prefix(&folder).unwrap_or(text))
    }

    async fn compare_history(&self, step: &Value, found: &mut Vec<String>) {
        let flyways = &step["history"];
        let schema = flyways["schema"].as_str().unwrap_or("public");
        let there = self
            .database
            .text(&format!("select to_regclass('\"{schema}\".\"{}\"') is not null", self.table))
            .await;
        if there == "f" {
            differ(found, "history", &Value::Null, flyways);
            return;
        }
        let sql = format!(
            "select coalesce(json_agg(json_build_object('installed_rank', installed_rank,
                'version', version, 'description', description, 'type', type, 'script', script,
                'checksum', checksum, 'installed_by', installed_by, 'success', success)
                order by installed_rank), '[]') from \"{schema}\".\"{}\"",
            self.table
        );
        let mut rows: Value =
            serde_json::from_str(&self.database.text(&sql).await).expect("is JSON");
        let mut flyways = flyways["rows"].clone();
        if self.is_about_time {
            for row in rows.as_array_mut().into_iter().chain(flyways.as_array_mut()).flatten() {
                row["checksum"] = json!("of the time");
            }
        }
        differ(found, "history", &rows, &flyways);
    }

    fn compare_info(&self, step: &Value, found: &mut Vec<String>) {
        let mut args = strings(&step["info_args"]);
        args.push("info".to_owned());
        let run = self.seedbed(&args);
        if run.code != Some(0) {
            found.push(format!("info failed: {}{}", run.stdout, run.stderr));
            return;
        }
        let info = run.json();
        let rows: Vec<Value> = info["migrations"]
            .as_array()
            .expect("is a list")
            .iter()
            .map(|row| {
                let fields =
                    ["category", "version", "description", "type", "state", "undoable", "filepath"];
                fields.iter().map(|field| self.relative(&row[field])).collect()
            })
            .collect();
        differ(found, "info", &json!(rows), &step["info"]["rows"]);
        for field in ["schemaVersion", "allSchemasEmpty"] {
            differ(found, field, &info[field], &step["info"][field]);
        }
    }
}

fn differ(found: &mut Vec<String>, what: &str, ours: &Value, flyways: &Value) {
    if ours != flyways {
        found.push(format!("{what}\n    ours    {ours}\n    Flyway's {flyways}"));
    }
}

/// Flyway's arguments as ours.
fn ours(of_scenario: &[String], args: &[String]) -> Vec<String> {
    let (settings, verbs): (Vec<&String>, Vec<&String>) =
        of_scenario.iter().chain(args).partition(|arg| arg.starts_with('-'));
    let mut ours: Vec<String> = verbs.into_iter().cloned().collect();
    for setting in settings {
        let Some((key, value)) = setting.trim_start_matches('-').split_once('=') else { continue };
        let known = KEYS.iter().find(|known| known.name == format!("flyway.{key}"));
        match (known, key.strip_prefix("placeholders.")) {
            (_, Some(name)) => ours.push(format!("--placeholders={name}={value}")),
            (Some(known), None) if known.kind != Kind::Map => {
                ours.push(format!("--{}={value}", super::kebab(key)));
            }
            _ => ours.push(format!("--set=flyway.{key}={value}")),
        }
    }
    ours
}

fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|item| item.as_str().unwrap_or("∅").to_owned()).collect()
}
