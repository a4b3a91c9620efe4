//! From a key as written to a key of the table: aliases, older spellings, variables, and the nearest
//! known one for a slip of the pen.

use super::keys::{KEYS, Kind, find, variable_name};

/// Other spellings of keys of ours, taken without a word.
const ALIASES: &[(&str, &str)] = &[
    ("flyway.url", "database.url"),
    ("flyway.user", "database.user"),
    ("flyway.password", "database.password"),
    ("flyway.environment", "default_env"),
];

/// Spellings of older Flyway versions, taken with a note.
const OLD: &[(&str, &str)] = &[
    ("flyway.sqlMigrationSuffix", "flyway.sqlMigrationSuffixes"),
    ("flyway.initialVersion", "flyway.baselineVersion"),
    ("flyway.initialDescription", "flyway.baselineDescription"),
    ("flyway.initVersion", "flyway.baselineVersion"),
    ("flyway.initDescription", "flyway.baselineDescription"),
    ("flyway.initOnMigrate", "flyway.baselineOnMigrate"),
    ("flyway.undoLocations", "migrate.undo_locations"),
];

/// Flags of Flyway before 9, each the state of one pattern of `ignoreMigrationPatterns`.
const OLD_IGNORE: &[(&str, &str)] = &[
    ("flyway.ignoreMissingMigrations", "*:missing"),
    ("flyway.ignoreIgnoredMigrations", "*:ignored"),
    ("flyway.ignorePendingMigrations", "*:pending"),
    ("flyway.ignoreFutureMigrations", "*:future"),
];

/// Keys of Flyway that change nothing here: other databases, its JVM, its output, its licence. A
/// name that ends in `.` stands for all below it.
const WITHOUT_EFFECT: &[&str] = &[
    "flyway.driver",
    "flyway.batch",
    "flyway.stream",
    "flyway.outputQueryResults",
    "flyway.failOnMissingTarget",
    "flyway.errorOverrides",
    "flyway.loggers",
    "flyway.color",
    "flyway.edition",
    "flyway.version",
    "flyway.home",
    "flyway.licenseKey",
    "flyway.email",
    "flyway.token",
    "flyway.workingDirectory",
    "flyway.configFileEncoding",
    "flyway.jarDirs",
    "flyway.resolvers",
    "flyway.skipDefaultResolvers",
    "flyway.callbacks",
    "flyway.scriptPlaceholderPrefix",
    "flyway.scriptPlaceholderSuffix",
    "flyway.cleanOnValidationError",
    "flyway.cleanMode",
    "flyway.reportFilename",
    "flyway.reportEnabled",
    "flyway.outputFile",
    "flyway.outputType",
    "flyway.outputProgress",
    "flyway.outputLogsInJson",
    "flyway.kerberosConfigFile",
    "flyway.provisioner",
    "flyway.displayName",
    "flyway.databaseType",
    "flyway.pluginConfiguration.",
    "flyway.resolvers.",
    "flyway.oracle.",
    "flyway.sqlserver.",
    "flyway.vault.",
    "flyway.dapr.",
    "flyway.gcsm.",
    "flyway.check.",
    "flyway.publishing.",
];

/// What a written key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A key of the table; for a [`Kind::Map`] with the name below it. `old`: worth a note.
    Known {
        name: String,
        old: bool,
    },
    /// `true` adds, `false` removes this pattern of `flyway.ignoreMigrationPatterns`.
    IgnorePattern(&'static str),
    WithoutEffect,
    /// With the known key that is spelt most like it.
    Unknown {
        nearest: Option<String>,
    },
}

/// What `written`, a dotted name as it stands in a file, means.
pub(crate) fn meaning(written: &str) -> Meaning {
    if find(written).is_some() {
        return Meaning::Known { name: written.to_owned(), old: false };
    }
    if let Some((_, name)) = ALIASES.iter().find(|(alias, _)| *alias == written) {
        return Meaning::Known { name: (*name).to_owned(), old: false };
    }
    let folded = fold(written);
    let same = |name: &str| fold(name) == folded;
    if let Some(key) = KEYS.iter().find(|key| same(key.name)) {
        return Meaning::Known { name: key.name.to_owned(), old: true };
    }
    if let Some((_, name)) = ALIASES.iter().chain(OLD).find(|(alias, _)| same(alias)) {
        return Meaning::Known { name: (*name).to_owned(), old: true };
    }
    if let Some((_, pattern)) = OLD_IGNORE.iter().find(|(name, _)| same(name)) {
        return Meaning::IgnorePattern(pattern);
    }
    for map in KEYS.iter().filter(|key| key.kind == Kind::Map) {
        // The name below a map is the user's, so only the part before it may differ in case.
        let dots = map.name.matches('.').count() + 1;
        if let Some((at, _)) = written.match_indices('.').nth(dots - 1)
            && fold(&written[..at]) == fold(map.name)
        {
            return Meaning::Known { name: format!("{}{}", map.name, &written[at..]), old: true };
        }
    }
    let inert = |name: &&str| match name.strip_suffix('.') {
        Some(section) => folded == fold(section) || folded.starts_with(&fold(name)),
        None => same(name),
    };
    if WITHOUT_EFFECT.iter().any(inert) {
        return Meaning::WithoutEffect;
    }
    Meaning::Unknown { nearest: nearest(written) }
}

/// The key that a variable's name without its prefix sets; `section` is `flyway.` or nothing.
pub(crate) fn of_variable(rest: &str, section: &str) -> Meaning {
    let candidates = KEYS
        .iter()
        .map(|key| (key.name, key.name))
        .chain(ALIASES.iter().copied())
        .filter_map(|(written, name)| Some((written.strip_prefix(section)?, name)));
    let mut map = None;
    for (written, name) in candidates {
        let variable = variable_name(written);
        if variable == rest {
            return Meaning::Known { name: name.to_owned(), old: false };
        }
        if find(name).is_some_and(|key| key.kind == Kind::Map)
            && let Some(below) =
                rest.strip_prefix(&variable).and_then(|rest| rest.strip_prefix('_'))
        {
            // Flyway lowers a placeholder's name and leaves a property's of the driver as it is.
            let below = match name {
                "flyway.jdbcProperties" => below.to_owned(),
                _ => below.to_ascii_lowercase(),
            };
            map = Some(format!("{name}.{below}"));
        }
    }
    if let Some(name) = map {
        return Meaning::Known { name, old: false };
    }
    match meaning(&format!("{section}{}", rest.replace('_', ""))) {
        Meaning::Unknown { .. } => Meaning::Unknown { nearest: nearest_variable(rest, section) },
        known => known,
    }
}

/// The variable (without its prefix) that `rest` is a slip of the pen of. Others may have variables
/// that begin like ours, so only what is very near is worth a word; those of Flyway are all named, and
/// two letters that changed places in a short word (`TABEL`) come to 0.8.
fn nearest_variable(rest: &str, section: &str) -> Option<String> {
    const SLIP: f64 = 0.85;
    const SLIP_IN_FLYWAYS: f64 = 0.75;
    let slip = if section.is_empty() { SLIP } else { SLIP_IN_FLYWAYS };
    KEYS.iter()
        .map(|key| key.name)
        .chain(ALIASES.iter().map(|(alias, _)| *alias))
        .filter_map(|name| Some(variable_name(name.strip_prefix(section)?)))
        .map(|name| (strsim::normalized_damerau_levenshtein(rest, &name), name))
        .filter(|(score, _)| *score >= slip)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, name)| name)
}

/// Case and word separators do not count.
fn fold(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-')).map(|c| c.to_ascii_lowercase()).collect()
}

fn nearest(written: &str) -> Option<String> {
    // Below 0.75 the suggestion is more often wrong than right: `flyway.foo` is near everything.
    const SIMILAR: f64 = 0.75;
    let folded = fold(written);
    let last = folded.rsplit('.').next().unwrap_or(&folded);
    KEYS.iter()
        .map(|key| key.name)
        .chain(ALIASES.iter().map(|(alias, _)| *alias))
        .map(|name| {
            let other = fold(name);
            let tail = other.rsplit('.').next().unwrap_or(&other);
            let score = strsim::normalized_damerau_levenshtein(last, tail)
                + 0.2 * strsim::normalized_damerau_levenshtein(&folded, &other);
            (score / 1.2, name)
        })
        .filter(|(score, _)| *score >= SIMILAR)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::keys::{KEYS, variable_name};
    use super::{Meaning, meaning, of_variable};

    fn known(name: &str, old: bool) -> Meaning {
        Meaning::Known { name: name.to_owned(), old }
    }

    #[test]
    fn spellings_lead_to_their_key() {
        let table = [
            ("flyway.outOfOrder", known("flyway.outOfOrder", false)),
            ("flyway.outoforder", known("flyway.outOfOrder", true)),
            ("flyway.url", known("database.url", false)),
            ("flyway.URL", known("database.url", true)),
            ("flyway.sqlMigrationSuffix", known("flyway.sqlMigrationSuffixes", true)),
            ("flyway.placeholders.Table_Name", known("flyway.placeholders.Table_Name", false)),
            ("flyway.Placeholders.Table_Name", known("flyway.placeholders.Table_Name", true)),
            ("engine.binDir", known("engine.bin_dir", true)),
            ("flyway.driver", Meaning::WithoutEffect),
            ("flyway.jdbcProperties.ssl", known("flyway.jdbcProperties.ssl", false)),
            ("flyway.ignoreMissingMigrations", Meaning::IgnorePattern("*:missing")),
            ("flyway.tabel", Meaning::Unknown { nearest: Some("flyway.table".to_owned()) }),
            (
                "database.pasword",
                Meaning::Unknown { nearest: Some("database.password".to_owned()) },
            ),
            ("flyway.quite.different", Meaning::Unknown { nearest: None }),
        ];
        for (written, expected) in table {
            assert_eq!(meaning(written), expected, "{written}");
        }
    }

    #[test]
    fn each_key_has_its_variable() {
        for key in KEYS {
            assert_eq!(of_variable(&variable_name(key.name), ""), known(key.name, false));
        }
        assert_eq!(of_variable("OUT_OF_ORDER", "flyway."), known("flyway.outOfOrder", false));
        assert_eq!(of_variable("URL", "flyway."), known("database.url", false));
        assert_eq!(
            of_variable("POSTGRESQL_TRANSACTIONAL_LOCK", "flyway."),
            known("flyway.postgresql.transactional.lock", false)
        );
        assert_eq!(
            of_variable("PLACEHOLDERS_MY_NAME", "flyway."),
            known("flyway.placeholders.my_name", false)
        );
        assert_eq!(
            of_variable("JDBC_PROPERTIES_currentSchema", "flyway."),
            known("flyway.jdbcProperties.currentSchema", false)
        );
        assert_eq!(of_variable("VERSION", "flyway."), Meaning::WithoutEffect);
        let unknown =
            |nearest: Option<&str>| Meaning::Unknown { nearest: nearest.map(str::to_owned) };
        assert_eq!(of_variable("DATABASE_PASWORD", ""), unknown(Some("DATABASE_PASSWORD")));
        assert_eq!(of_variable("PROD_PASSWORD", ""), unknown(None));
        assert_eq!(of_variable("TABEL", "flyway."), unknown(Some("TABLE")));
        assert_eq!(of_variable("TARGT", "flyway."), unknown(Some("TARGET")));
        assert_eq!(of_variable("QUITE_UNKNOWN", "flyway."), unknown(None));
    }
}
