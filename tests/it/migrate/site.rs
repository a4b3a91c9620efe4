//! A project that only Flyway's files describe, a database of its own, and the built program in it.

use serde_json::Value;

use crate::harness::{Run, Sandbox, TestDatabase, server};

pub struct Site {
    pub sandbox: Sandbox,
    pub database: TestDatabase,
}

impl Site {
    /// With these files below `sql/`.
    pub async fn new(files: &[(&str, &str)]) -> Self {
        let database = server().create_database().await;
        let sandbox = Sandbox::new();
        sandbox.write("flyway.conf", super::flyway_conf(&database));
        std::fs::create_dir_all(sandbox.project().join("sql")).expect("makes a folder");
        let site = Self { sandbox, database };
        for (name, text) in files {
            site.sql(name, text);
        }
        site
    }

    pub fn sql(&self, name: &str, text: impl AsRef<[u8]>) {
        self.sandbox.write(&format!("sql/{name}"), text);
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.sandbox.project().join("sql").join(name)).expect("is there");
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.sandbox.run(args)
    }

    /// The JSON that a verb prints when it ends well.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        self.run(&[&["--json", "--quiet"], args].concat()).succeeds().json()
    }

    /// `version description state` of each migration.
    #[track_caller]
    pub fn states(&self, args: &[&str]) -> Vec<String> {
        let info = self.json(&[&["info"], args].concat());
        let rows = info["migrations"].as_array().expect("is a list");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        rows.iter()
            .map(|row| {
                let fields = ["version", "description", "state"];
                fields.map(|field| text(&row[field])).join(" ")
            })
            .collect()
    }

    /// Rank, version, type, script, success of each row.
    pub async fn history(&self) -> Vec<String> {
        let sql = "select installed_rank, version, type, script, success
            from flyway_schema_history order by installed_rank";
        self.database.text(sql).await.lines().map(str::to_owned).collect()
    }

    /// Whether the relation is there.
    pub async fn has(&self, name: &str) -> bool {
        self.database.text(&format!("select to_regclass('{name}') is not null")).await == "t"
    }
}

/// Gives a database the marker of one that `up` has made, which `clean` asks for.
pub async fn made_by_us(database: &TestDatabase) {
    let name = database.name();
    let marker = serde_json::json!({
        "format": 1, "kind": "live", "database": name, "origin": null, "fingerprint": null,
        "made_at": "2026-01-01T00:00:00Z",
    });
    database.run(&format!("comment on database \"{name}\" is 'seedbed {marker}'")).await;
}
