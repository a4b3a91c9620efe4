//! Server settings of the servers that we start: fast and forgetful, unless they shall be durable.

use std::collections::BTreeMap;

use crate::config::EngineConfig;

/// The settings, as (name, value) in the order in which they are given to the server.
pub(super) fn server_settings(config: &EngineConfig) -> Vec<(String, String)> {
    let mut settings: BTreeMap<String, String> = BTreeMap::new();
    let mut put = |name: &str, value: &str| {
        settings.insert(name.to_owned(), value.to_owned());
    };
    put("password_encryption", "scram-sha-256");
    // A load writes much at once: fewer checkpoints, larger sorts for the indexes after it.
    put("max_wal_size", "4GB");
    put("checkpoint_timeout", "15min");
    put("shared_buffers", "256MB");
    put("maintenance_work_mem", "256MB");
    // Room to lock every table of a large schema in one transaction (PITFALLS 8).
    put("max_locks_per_transaction", "256");
    if !config.durable {
        // What is lost with a crash of the machine is built again in minutes.
        put("fsync", "off");
        put("synchronous_commit", "off");
        put("full_page_writes", "off");
        // COPY into a table made in the same transaction writes no WAL (PITFALLS, fact 10).
        put("wal_level", "minimal");
        put("max_wal_senders", "0");
    }
    for (name, value) in &config.settings {
        settings.insert(name.clone(), value.clone());
    }
    settings.into_iter().collect()
}

/// The settings as arguments of the server program.
pub(super) fn server_arguments(config: &EngineConfig) -> Vec<String> {
    server_settings(config)
        .into_iter()
        .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(durable: bool, settings: &[(&str, &str)]) -> EngineConfig {
        EngineConfig {
            kind: crate::config::EngineKind::Auto,
            image: "postgres:17".to_owned(),
            port: None,
            bin_dir: None,
            archive_url: String::new(),
            archive_version: String::new(),
            durable,
            superuser_password: None,
            superuser: None,
            settings: settings.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect(),
        }
    }

    #[test]
    fn a_throwaway_server_does_not_sync_and_a_durable_one_does() {
        let value = |durable, name: &str| {
            server_settings(&config(durable, &[])).into_iter().find(|(n, _)| n == name)
        };
        assert_eq!(value(false, "fsync").map(|(_, v)| v).as_deref(), Some("off"));
        assert_eq!(value(true, "fsync"), None);
        assert_eq!(value(true, "wal_level"), None);
    }

    #[test]
    fn the_configured_settings_win() {
        let arguments = server_arguments(&config(false, &[("fsync", "on"), ("work_mem", "64MB")]));
        assert!(arguments.contains(&"fsync=on".to_owned()), "{arguments:?}");
        assert!(arguments.contains(&"work_mem=64MB".to_owned()), "{arguments:?}");
        assert!(!arguments.contains(&"fsync=off".to_owned()), "{arguments:?}");
    }
}
