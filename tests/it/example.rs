//! The example project of this repository: every file of it is read by the code that will use it.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use seedbed::config::{self, Config, Flags, StoreConfig};
use seedbed::context::Context;
use seedbed::env::Env;
use seedbed::migrate;
use seedbed::pg::names::DatabaseName;
use seedbed::report::Reporter;
use seedbed::users;

fn repository() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn context(environment: Option<&str>, variables: &[(&str, &str)]) -> Context {
    let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    let env = Env::from_variables(variables, repository());
    let flags = Flags { env: environment.map(str::to_owned), ..Flags::default() };
    let config: Config = match config::load(&env, &flags) {
        Ok(config) => config,
        Err(error) => panic!("the example's configuration: {error}"),
    };
    Context {
        config: Arc::new(config),
        env: Arc::new(env),
        report: Reporter::silent(),
        cancel: tokio_util::sync::CancellationToken::new(),
        yes: false,
    }
}

#[test]
fn without_flags_it_is_the_developers_own_database() {
    let config = context(None, &[]).config;
    assert_eq!(config.environment, "dev");
    assert_eq!((config.database.name.as_str(), config.database.port), ("factory_dev", None));
    assert_eq!(config.database.user, "factory_owner");
    let StoreConfig::Dir(dir) = &config.store else { panic!("the example needs no S3") };
    assert_eq!(*dir, repository().join("seed/snapshots"));
}

#[test]
fn a_flyway_file_is_an_environment_as_it_is() {
    let config = context(Some("factory_dev"), &[]).config;
    assert_eq!((config.database.name.as_str(), config.database.port), ("dev_db", Some(5432)));
    assert_eq!(config.database.user, "postgres");
}

#[test]
fn production_is_protected_and_its_password_is_not_in_the_repository() {
    let config = context(Some("prod"), &[("FACTORY_DB_PASSWORD", "canary")]).config;
    assert!(config.protected);
    assert!(!format!("{:?}", config.origins).contains("canary"));
}

#[test]
fn its_scripts_are_ten_and_a_view() {
    let context = context(None, &[]);
    let names = DatabaseName::live("factory_dev");
    let scripts = match migrate::resolve(&context, &names, "factory_owner") {
        Ok(scripts) => scripts,
        Err(error) => panic!("the example's scripts: {error}"),
    };
    assert_eq!((scripts.versioned.len(), scripts.repeatable.len()), (10, 1));
    assert!(scripts.warnings.is_empty(), "{:?}", scripts.warnings);
}

#[test]
fn its_accounts_are_read_in_both_environments() {
    for environment in ["dev", "factory_dev"] {
        let context = context(Some(environment), &[]);
        let names = DatabaseName::live(&context.config.database.name);
        match users::read(&context, &names) {
            Ok(plan) => assert!(plan.creates("telemetry_service")),
            Err(error) => panic!("{environment}: {error}"),
        }
    }
}
