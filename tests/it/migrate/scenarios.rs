//! Every recorded scenario of real Flyway, step by step, through the built program.
//!
//! After each step exit code, result, rows of the history and `info` must be Flyway 13's. Where we differ
//! on purpose stands in [`DIFFERENCES`]; what we do there instead has tests of its own, named beside.
//! The same scenarios by Flyway 8.5 must end as with it, but for what has changed between the two
//! ([`CHANGED_SINCE`]): there we follow the newer one, which the other recording holds us to.

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

/// Scenario, first step that is not compared with Flyway 8.5 any more, and what has changed since.
const CHANGED_SINCE: &[(&str, usize, &str)] = &[
    ("baseline_command", 1, SHOWN_BASELINE),
    ("baseline_default", 0, SHOWN_BASELINE),
    ("baseline_on_migrate_nonempty", 0, SHOWN_BASELINE),
    ("baseline_on_migrate_nonempty_v0", 0, SHOWN_BASELINE),
    ("callbacks_trace", 8, SHOWN_BASELINE),
    ("missing_versioned", 5, "`info` no longer shows DELETE rows of versions"),
    ("missing_repeatable", 2, "`repair` calls what it did otherwise"),
    ("type_mismatch", 1, "rows and files match by version and type"),
    ("type_mismatch_migrate", 1, "rows and files match by version and type"),
    ("undo_rows", 1, "rows of the paid undo are read as what they are"),
    ("target", 5, "`failOnMissingTarget` was paid"),
    ("paid_features", 0, "refused as paid"),
    ("skip_executing", 0, "`skipExecutingMigrations` was paid"),
    ("baseline_migration_fresh", 0, "B scripts were paid"),
    ("failed_baseline_script", 0, "B scripts were paid"),
    ("script_migration", 0, "programs were paid"),
    ("execute_in_transaction_global", 0, "`executeInTransaction` was a script's setting only"),
    ("clean", 1, "`clean` was enabled by default"),
    ("clean_kinds", 1, "`clean` left collations"),
    ("legacy_schema_version", 1, "a row without a checksum did not match"),
];

const SHOWN_BASELINE: &str =
    "a baseline's row names who made it, and `info` shows the file of its version";

const KEPT: &str =
    "a failed script outside of a transaction leaves its row, as with Flyway's session lock";
const KEPT_TEST: &str = "a_failure_outside_of_a_transaction_leaves_a_failed_row";

/// What one scenario came to.
struct Compared {
    matched: usize,
    different: usize,
    failures: Vec<String>,
}

/// A generation of Flyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flyway {
    Thirteen,
    EightAndAHalf,
}

impl Flyway {
    fn scenarios(self) -> Vec<Value> {
        let text = match self {
            Self::Thirteen => include_str!("../../vectors/history.json"),
            Self::EightAndAHalf => include_str!("../../vectors/history-8.5.13.json"),
        };
        let vectors: Value = serde_json::from_str(text).expect("is JSON");
        vectors["scenarios"].as_array().expect("is a list").clone()
    }

    /// The first step of a scenario that need not be as recorded.
    fn differs_from(self, scenario: &str) -> Option<usize> {
        let mut differences = DIFFERENCES.iter().map(|(id, first, ..)| (*id, *first));
        let mut changes = CHANGED_SINCE.iter().map(|(id, first, _)| (*id, *first));
        let found = match self {
            Self::Thirteen => differences.find(|(id, _)| *id == scenario),
            Self::EightAndAHalf => changes.find(|(id, _)| *id == scenario),
        };
        found.map(|(_, first)| first)
    }
}

#[test]
fn every_recorded_scenario_ends_as_with_flyway() {
    play_all(Flyway::Thirteen);
}

#[test]
fn every_recorded_scenario_ends_as_with_the_older_flyway_where_it_has_not_changed() {
    play_all(Flyway::EightAndAHalf);
}

fn play_all(flyway: Flyway) {
    let scenarios = flyway.scenarios();
    assert_eq!(scenarios.len(), 67);
    // Two at a time: each spends half of its time waiting for processes.
    let halves = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let own = scenarios.iter().skip(worker).step_by(4);
                scope.spawn(move || own.map(|one| play(flyway, one)).collect::<Vec<_>>())
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect::<Vec<_>>()
    });
    let matched: usize = halves.iter().map(|one| one.matched).sum();
    let different: usize = halves.iter().map(|one| one.different).sum();
    let failures: Vec<String> = halves.into_iter().flat_map(|one| one.failures).collect();
    say(&format!(
        "scenarios of {flyway:?}: {} steps matched, {different} different on purpose, {} unexplained",
        matched,
        failures.len()
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn what_has_changed_since_the_older_flyway_is_recorded_of_both() {
    let (new, old) = (Flyway::Thirteen.scenarios(), Flyway::EightAndAHalf.scenarios());
    for (id, first, why) in CHANGED_SINCE {
        let step = |scenarios: &[Value]| {
            let scenario = scenarios.iter().find(|one| one["id"] == *id).expect("is recorded");
            let mut step = scenario["steps"][first].clone();
            // Each has the name of a database of its own.
            step["result"]["database"] = Value::Null;
            step
        };
        let (new, old) = (step(&new), step(&old));
        assert!(old.is_object() && new["flyway"] == old["flyway"], "{id}: {why}");
        assert_ne!(new, old, "{id}: {why}");
    }
}

#[test]
fn every_difference_has_a_test() {
    let tests = concat!(include_str!("../migrate.rs"), include_str!("verbs.rs"));
    for (scenario, _, why, test) in DIFFERENCES {
        assert!(tests.contains(&format!("fn {test}(")), "{scenario}: {why}: {test}");
    }
}

fn play(flyway: Flyway, scenario: &Value) -> Compared {
    let id = scenario["id"].as_str().expect("is named");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .expect("starts")
        .block_on(async { Stage::new(flyway, scenario).await.play(id, scenario).await })
}

struct Stage {
    flyway: Flyway,
    sandbox: Sandbox,
    database: TestDatabase,
    args: Vec<String>,
    table: String,
    /// Checksums hold the time of the run.
    is_about_time: bool,
}

impl Stage {
    async fn new(flyway: Flyway, scenario: &Value) -> Self {
        let database = server().create_database().await;
        super::site::made_by_us(&database).await;
        let sandbox = Sandbox::new();
        sandbox.write("conf/dev.conf", super::flyway_conf(&database));
        std::fs::create_dir_all(sandbox.project().join("sql")).expect("makes a folder");
        Self {
            flyway,
            sandbox,
            database,
            args: strings(&scenario["args"]),
            is_about_time: scenario["id"] == "repeatable_timestamp",
            table: scenario["table"].as_str().unwrap_or("flyway_schema_history").to_owned(),
        }
    }

    async fn play(self, id: &str, scenario: &Value) -> Compared {
        let mut compared = Compared { matched: 0, different: 0, failures: Vec::new() };
        let difference = self.flyway.differs_from(id);
        for (number, step) in scenario["steps"].as_array().expect("is a list").iter().enumerate() {
            let found = self.step(step).await;
            if difference.is_some_and(|first| number >= first) {
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
        // The older one has few codes.
        let says_nothing =
            self.flyway == Flyway::EightAndAHalf && flyways["error"]["errorCode"] == "ERROR";
        if failed && !is_invalid && says_nothing {
            return;
        }
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
        let fields = ["category", "version", "description", "type", "filepath", "state"];
        // Whether something can be undone the older one did not say.
        let undoable = (self.flyway == Flyway::Thirteen).then_some("undoable");
        entries
            .iter()
            .map(|entry| {
                let mut shown: BTreeMap<&str, Value> = BTreeMap::new();
                for field in fields.into_iter().chain(undoable) {
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
        // Among the fields of a row; the older one did not say it.
        const UNDOABLE: usize = 5;
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
        let mut recorded = step["info"]["rows"].clone();
        if self.flyway == Flyway::EightAndAHalf {
            for (row, ours) in recorded.as_array_mut().into_iter().flatten().zip(&rows) {
                row[UNDOABLE] = ours[UNDOABLE].clone();
            }
        }
        differ(found, "info", &json!(rows), &recorded);
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
