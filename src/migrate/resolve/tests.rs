//! Names and checksums against what real Flyway recorded, and refusals of unreadable projects.

use std::collections::BTreeMap;

use base64::Engine as _;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value as Json;

use super::super::file_name::Naming;
use super::super::placeholders::Own;
use super::{Scripts, read};
use crate::config::MigrateConfig;
use crate::migrate::Error;

/// Flyway's defaults.
fn defaults(location: &Utf8Path) -> MigrateConfig {
    MigrateConfig {
        locations: vec![location.to_owned()],
        table: "flyway_schema_history".to_owned(),
        default_schema: None,
        schemas: Vec::new(),
        create_schemas: true,
        sql_migration_prefix: "V".to_owned(),
        repeatable_sql_migration_prefix: "R".to_owned(),
        baseline_migration_prefix: "B".to_owned(),
        undo_sql_migration_prefix: "U".to_owned(),
        sql_migration_separator: "__".to_owned(),
        sql_migration_suffixes: vec![".sql".to_owned()],
        placeholders: BTreeMap::new(),
        placeholder_prefix: "${".to_owned(),
        placeholder_suffix: "}".to_owned(),
        placeholder_separator: ":".to_owned(),
        placeholder_replacement: true,
        encoding: "UTF-8".to_owned(),
        detect_encoding: false,
        validate_on_migrate: true,
        validate_migration_naming: false,
        out_of_order: false,
        group: false,
        mixed: false,
        execute_in_transaction: true,
        transactional_lock: true,
        baseline_on_migrate: false,
        baseline_version: "1".to_owned(),
        baseline_description: "<< Flyway Baseline >>".to_owned(),
        ignore_migration_patterns: vec!["*:future".to_owned()],
        target: None,
        cherry_pick: Vec::new(),
        skip_executing_migrations: false,
        dry_run_output: None,
        callback_locations: Vec::new(),
        undo_locations: Vec::new(),
        lock_timeout_ms: 0,
        lock_retries: 0,
        connect_retries: 0,
        connect_retries_interval: 120,
        installed_by: None,
        init_sql: None,
        lock_retry_count: 50,
        fail_on_missing_locations: false,
        skip_default_callbacks: false,
        clean_disabled: true,
        tablespace: None,
        environment: "default".to_owned(),
    }
}

/// Sets one of Flyway's keys.
fn set(config: &mut MigrateConfig, key: &str, value: &str) {
    if let Some(name) = key.strip_prefix("placeholders.") {
        config.placeholders.insert(name.to_owned(), value.to_owned());
        return;
    }
    let text = value.to_owned();
    match key {
        "sqlMigrationPrefix" => config.sql_migration_prefix = text,
        "repeatableSqlMigrationPrefix" => config.repeatable_sql_migration_prefix = text,
        "baselineMigrationPrefix" => config.baseline_migration_prefix = text,
        "sqlMigrationSeparator" => config.sql_migration_separator = text,
        "sqlMigrationSuffixes" => {
            config.sql_migration_suffixes = value.split(',').map(str::to_owned).collect();
        }
        "encoding" => config.encoding = text,
        "detectEncoding" => config.detect_encoding = value == "true",
        "placeholderReplacement" => config.placeholder_replacement = value == "true",
        "placeholderPrefix" => config.placeholder_prefix = text,
        "placeholderSuffix" => config.placeholder_suffix = text,
        "placeholderSeparator" => config.placeholder_separator = text,
        _ => panic!("no such key here: {key}"),
    }
}

struct Project {
    _folder: tempfile::TempDir,
    config: MigrateConfig,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("makes a folder");
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).expect("is UTF-8");
        Self { _folder: folder, config: defaults(&path) }
    }

    fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.config.locations[0].join(name);
        std::fs::create_dir_all(path.parent().expect("has a folder")).expect("makes a folder");
        std::fs::write(path, content).expect("writes");
        self
    }

    fn configured(mut self, case: &Json) -> Self {
        for (key, value) in case["config"].as_object().into_iter().flatten() {
            set(&mut self.config, key, value.as_str().expect("is text"));
        }
        self
    }

    fn read(&self) -> Result<Scripts, Error> {
        // The open edition, which recorded the vectors, does not know undo files.
        let naming = Naming { undo: None, ..Naming::from_config(&self.config) };
        read(&self.config, &naming, &own())
    }
}

/// What the recording ran with.
fn own() -> Own<'static> {
    Own {
        default_schema: "public",
        user: "postgres",
        database: "cks",
        timestamp: "2026-01-01 00:00:00",
        working_directory: "/",
        table: "flyway_schema_history",
        environment: "default",
    }
}

fn text<'a>(json: &'a Json, key: &str) -> &'a str {
    json[key].as_str().unwrap_or_else(|| panic!("`{key}` is text in {json}"))
}

#[test]
fn every_recorded_checksum_is_reproduced_or_refused() {
    let vectors: Json = serde_json::from_str(include_str!("../../../tests/vectors/checksums.json"))
        .expect("is JSON");
    let cases = vectors["cases"].as_array().expect("is a list");
    assert_eq!(cases.len(), 92);
    for case in cases {
        let mut project = Project::new().configured(case);
        for file in case["files"].as_array().expect("is a list") {
            let content = base64::engine::general_purpose::STANDARD
                .decode(text(file, "content_b64"))
                .expect("is base64");
            project = project.file(text(file, "name"), content);
        }
        let id = text(case, "id");
        match project.read() {
            Ok(scripts) => {
                let script = scripts.iter().next().unwrap_or_else(|| panic!("{id}: no script"));
                assert_eq!(Some(i64::from(script.checksum)), case["checksum"].as_i64(), "{id}");
                assert_eq!(script.script, text(case, "script"), "{id}");
            }
            Err(error) => assert!(case.get("error").is_some(), "{id}: {error}"),
        }
    }
}

#[test]
fn every_recorded_file_name_is_taken_or_left_as_flyway_does() {
    let vectors: Json = serde_json::from_str(include_str!("../../../tests/vectors/versions.json"))
        .expect("is JSON");
    let cases = vectors["file_names"].as_array().expect("is a list");
    assert_eq!(cases.len(), 83);
    for case in cases {
        let name = text(case, "name");
        if case["config"].get("undoSqlMigrationPrefix").is_some() {
            // The open edition knows no such key; here it is one, as in the paid one.
            continue;
        }
        let mut project = Project::new().configured(case).file(name, "select 1;");
        check_parsed(case, &project);
        match project.read() {
            Ok(scripts) => check_found(case, &scripts),
            Err(Error::Duplicate { what, first, second, .. }) => {
                let recorded = text(case, "info_error");
                assert!(recorded.contains(&format!("with {what}")), "{name}: {what}");
                for offender in [first, second] {
                    let kind = offender.rsplit(' ').next().expect("ends with its kind");
                    assert!(recorded.contains(kind), "{name}: {offender}");
                }
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        }
        project.config.validate_migration_naming = true;
        let expected = text(case, "validateMigrationNaming");
        match project.read() {
            Ok(_) => assert_eq!(expected, "ok", "{name}"),
            Err(Error::Names(names)) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                let message = format!(
                    "FlywayException: Invalid SQL filenames found:\r\n{}",
                    names.join("\r\n")
                );
                assert_eq!(message, expected, "{name}");
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// The parser's own view of a name, where it was recorded.
fn check_parsed(case: &Json, project: &Project) {
    let name = text(case, "name");
    let Some(valid) = case["valid"].as_bool() else { return };
    let naming = Naming { undo: None, ..Naming::from_config(&project.config) };
    match naming.parse(name) {
        Ok(parsed) => {
            assert!(valid, "{name}");
            assert_eq!(parsed.prefix, text(case, "prefix"), "{name}");
            assert_eq!(parsed.suffix, text(case, "suffix"), "{name}");
            assert_eq!(parsed.description, text(case, "description"), "{name}");
            // A keyword is recorded as it is shown, a number as it is stored.
            let version = parsed.version.map(|version| version.to_string());
            assert_eq!(version.as_deref(), case["version"].as_str(), "{name}");
        }
        Err(error) => {
            assert!(!valid, "{name}: {error}");
            assert_eq!(error.to_string(), text(case, "message"), "{name}");
        }
    }
}

fn check_found(case: &Json, scripts: &Scripts) {
    let name = text(case, "name");
    let found: Vec<_> = scripts
        .iter()
        .map(|script| {
            let version = script.version.as_ref().map(ToString::to_string);
            (script.type_name(), version, script.description.as_str(), script.script.as_str())
        })
        .collect();
    let recorded: Vec<_> = case["migrations"]
        .as_array()
        .expect("is a list")
        .iter()
        .map(|one| {
            let version = one["version"].as_str().map(str::to_owned);
            (text(one, "type"), version, text(one, "description"), text(one, "script"))
        })
        .collect();
    assert_eq!(found, recorded, "{name}");
}

#[test]
fn scripts_come_in_the_order_in_which_they_run() {
    let mut project = Project::new();
    for name in ["V10__j.sql", "V9__i.sql", "V1.10__b.sql", "V1_2__a.sql", "r/V01__x.sql"] {
        project = project.file(name, name);
    }
    for description in ["_x", "10", "9", "A", "a", "a_b", "ab", "é"] {
        project = project.file(&format!("R__{description}.sql"), description);
    }
    let scripts = project.read().expect("reads");
    let versions: Vec<_> = scripts
        .versioned
        .iter()
        .map(|script| script.version.as_ref().map_or("", |version| version.text()))
        .collect();
    assert_eq!(versions, ["01", "1.2", "1.10", "9", "10"]);
    let descriptions: Vec<_> =
        scripts.repeatable.iter().map(|script| script.description.as_str()).collect();
    assert_eq!(descriptions, [" x", "10", "9", "A", "a", "a b", "ab", "é"]);
    assert_eq!(scripts.versioned[0].script, "r/V01__x.sql");
}

#[test]
fn duplicates_name_both_files() {
    let project = Project::new().file("V1__a.sql", "1").file("r/V01.0__b.sql", "2");
    let error = project.read().expect_err("is refused").to_string();
    assert!(error.starts_with("more than one script for version 1"), "{error}");
    assert!(error.contains("V1__a.sql") && error.contains("r/V01.0__b.sql"), "{error}");

    let project = Project::new().file("R__a_b.sql", "1").file("R__a b.sql", "2");
    let error = project.read().expect_err("is refused").to_string();
    assert!(error.starts_with("more than one script for repeatable description `a b`"), "{error}");
}

#[test]
fn one_file_in_two_locations_counts_once() {
    let mut project = Project::new().file("a/V1__x.sql", "1").file("b/V1__x.sql", "1");
    let root = project.config.locations[0].clone();
    project.config.locations = vec![root.join("b"), root.join("a")];
    assert_eq!(project.read().expect("reads").versioned.len(), 1);
    std::fs::write(root.join("a/V1__x.sql"), "2").expect("writes");
    assert!(matches!(project.read(), Err(Error::Duplicate { .. })));
}

#[test]
fn a_repeatable_without_a_value_shows_the_place() {
    let project = Project::new().file("R__v.sql", "select 1;\nselect '${nope}';\n");
    let error = project.read().expect_err("is refused");
    let text = error.to_string();
    assert!(text.contains("line 2: no value for the placeholder `nope`"), "{text}");
    assert!(text.ends_with("  2 | select '${nope}';\n    |         ^"), "{text}");
    assert_eq!(error.hints().len(), 2);
}

#[test]
fn a_script_that_is_no_text_is_refused_by_name() {
    let error = Project::new().file("V1__x.sql", b"select '\xE9'").read().expect_err("is refused");
    assert!(error.to_string().ends_with("V1__x.sql`: not UTF-8 (byte 8)"), "{error}");
}

#[test]
fn settings_beside_a_script_are_read() {
    let project = Project::new()
        .file("V1__x.sql", b"select '\xE9'")
        .file("V1__x.sql.conf", "encoding=ISO-8859-1\nexecuteInTransaction=false\n");
    let scripts = project.read().expect("reads");
    assert_eq!(scripts.versioned[0].text, "select 'é'");
    assert_eq!(scripts.versioned[0].settings.execute_in_transaction, Some(false));
    let project = project.file("V1__x.sql.conf", "encodin=x");
    assert!(matches!(project.read(), Err(Error::ScriptSettings { line: 1, .. })));
}
