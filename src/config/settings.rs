//! Layers laid over each other: for each key the last value, and typed access to it.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::SecretString;

use super::error::Error;
use super::keys::{self, Kind};
use super::layer::{Entry, Raw};
use super::spelling::{self, Meaning};
use super::url;
use crate::env::Env;

/// The value that won, and where it stood.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub value: Raw,
    pub place: String,
    /// Which layer it came from; later layers are larger.
    pub rank: usize,
}

impl Setting {
    /// Places in files have a line.
    pub fn is_from_file(&self) -> bool {
        names_a_file(&self.place)
    }
}

fn names_a_file(place: &str) -> bool {
    place.contains(':')
}

/// Everything that was set, by canonical key.
pub(crate) struct Settings<'a> {
    env: &'a Env,
    project: Utf8PathBuf,
    values: BTreeMap<String, Setting>,
    pub notes: Vec<String>,
    rank: usize,
}

/// What the keys of one layer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// An unknown key is an error.
    All,
    /// A Flyway file of properties: a key without `flyway.` belongs to somebody else.
    FlywayOnly,
}

impl<'a> Settings<'a> {
    pub fn new(env: &'a Env, project: &Utf8Path) -> Self {
        let project = project.to_owned();
        Self { env, project, values: BTreeMap::new(), notes: Vec::new(), rank: 0 }
    }

    /// Lays `entries` on top of what is there.
    pub fn lay(&mut self, entries: Vec<Entry>, strictness: Strictness) -> Result<(), Error> {
        self.rank += 1;
        for entry in entries {
            let is_flyways = entry.key.to_ascii_lowercase().starts_with("flyway.");
            if entry.key.eq_ignore_ascii_case("flyway.configFiles") {
                // Without the files the rest would be taken for the whole.
                return Err(Error::Value {
                    place: entry.place,
                    key: entry.key,
                    reason: "only a variable names further files".to_owned(),
                    hint: Some(format!("`export FLYWAY_CONFIG_FILES={}`", entry.value)),
                });
            }
            match spelling::meaning(&entry.key) {
                Meaning::Unknown { .. } if strictness == Strictness::FlywayOnly && !is_flyways => {
                    self.notes.push(format!(
                        "`{}` in {} has no `flyway.` before it and is left out",
                        entry.key, entry.place
                    ));
                }
                Meaning::Unknown { nearest } => {
                    return Err(Error::UnknownKey { place: entry.place, key: entry.key, nearest });
                }
                meaning => self.take(meaning, entry)?,
            }
        }
        Ok(())
    }

    /// Lays variables on top: `rest` is the name without its prefix.
    pub fn lay_variables<'v>(
        &mut self,
        variables: impl Iterator<Item = (&'v str, &'v str)>,
        prefix: &str,
        section: &str,
        foreign: &[&str],
    ) -> Result<(), Error> {
        self.rank += 1;
        for (variable, value) in variables.filter(|(_, value)| !value.is_empty()) {
            let Some(rest) = variable.strip_prefix(prefix) else { continue };
            if foreign
                .iter()
                .any(|name| rest == *name || name.ends_with('_') && rest.starts_with(name))
            {
                continue;
            }
            let entry = Entry {
                key: variable.to_owned(),
                value: Raw::Text(value.to_owned()),
                place: variable.to_owned(),
            };
            match spelling::of_variable(rest, section) {
                Meaning::Unknown { nearest: Some(nearest) } => self.notes.push(format!(
                    "variable `{variable}` names no key and is left out; did you mean \
                     `{prefix}{nearest}`?"
                )),
                // The prefix is Flyway's alone; ours begins like variables of a project's own.
                Meaning::Unknown { nearest: None } if !section.is_empty() => {
                    self.notes.push(format!("variable `{variable}` names no key and is left out"));
                }
                Meaning::Unknown { nearest: None } => {}
                // Images of Flyway set these; they say nothing about a project.
                Meaning::WithoutEffect if ["VERSION", "HOME", "EDITION"].contains(&rest) => {}
                Meaning::WithoutEffect => {
                    self.notes.push(format!("variable `{variable}` has no effect in seedbed"));
                }
                Meaning::Known { name, .. } => {
                    self.take(Meaning::Known { name, old: false }, entry)?;
                }
                Meaning::IgnorePattern(pattern) => {
                    self.take(Meaning::IgnorePattern(pattern), entry)?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, meaning: Meaning, entry: Entry) -> Result<(), Error> {
        let Entry { key: written, value, place } = entry;
        match meaning {
            Meaning::Known { name, old } => {
                if old {
                    self.notes
                        .push(format!("`{written}` in {place} is an old spelling of `{name}`"));
                }
                if name == "protected" && self.protection_would_fall(&value, &place) {
                    self.notes.push(format!(
                        "{place} does not lift the protection that a file gives this environment"
                    ));
                    return Ok(());
                }
                self.values.insert(name, Setting { value, place, rank: self.rank });
            }
            Meaning::IgnorePattern(pattern) => {
                let name = "flyway.ignoreMigrationPatterns";
                self.notes.push(format!(
                    "`{written}` in {place} is an old spelling of `{name}` with `{pattern}`"
                ));
                let wanted = Setting { value, place: place.clone(), rank: self.rank };
                let wanted = self.read_flag(&written, &wanted)?;
                let mut patterns = self.list(name)?;
                patterns.retain(|other| other != pattern);
                if wanted {
                    patterns.push(pattern.to_owned());
                }
                let value = Raw::List(patterns);
                self.values.insert(name.to_owned(), Setting { value, place, rank: self.rank });
            }
            Meaning::WithoutEffect => {
                self.notes.push(format!("`{written}` in {place} has no effect in seedbed"));
            }
            Meaning::Unknown { nearest } => {
                return Err(Error::UnknownKey { place, key: written, nearest });
            }
        }
        Ok(())
    }

    /// Protection is a file's to give and to take: no variable and no flag lifts it (DESIGN §11).
    fn protection_would_fall(&self, value: &Raw, place: &str) -> bool {
        let is_protected = self.flag("protected").unwrap_or(true);
        !names_a_file(place) && is_protected && *value != Raw::Text("true".to_owned())
    }

    /// The process's surroundings.
    pub fn env(&self) -> &'a Env {
        self.env
    }

    /// What was set for `key`, if anything.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.values.get(key)
    }

    /// What was set below a key of [`Kind::Map`].
    pub fn below<'s>(&'s self, map: &'s str) -> impl Iterator<Item = (&'s str, &'s Setting)> + 's {
        self.values.iter().filter_map(move |(key, setting)| {
            Some((key.strip_prefix(map)?.strip_prefix('.')?, setting))
        })
    }

    /// Where the value of `key` came from.
    pub fn place(&self, key: &str) -> String {
        self.values.get(key).map_or_else(|| "default".to_owned(), |setting| setting.place.clone())
    }

    /// The text of `key`, variables replaced, or the table's default; `None` when both are empty.
    pub fn text(&self, key: &str) -> Result<Option<String>, Error> {
        let text = match self.values.get(key) {
            Some(setting) => self.expand(key, setting)?,
            None => default(key).to_owned(),
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// [`Settings::text`], empty when there is none.
    pub fn text_or_empty(&self, key: &str) -> Result<String, Error> {
        Ok(self.text(key)?.unwrap_or_default())
    }

    pub fn flag(&self, key: &str) -> Result<bool, Error> {
        match self.values.get(key) {
            Some(setting) => self.read_flag(key, setting),
            None => Ok(default(key) == "true"),
        }
    }

    fn read_flag(&self, key: &str, setting: &Setting) -> Result<bool, Error> {
        match self.expand(key, setting)?.to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.wrong(key, Kind::Flag)),
        }
    }

    /// A whole number within `least..=most`.
    pub fn integer<N: TryFrom<i64>>(&self, key: &str) -> Result<Option<N>, Error> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let number = text.trim().replace('_', "").parse::<i64>().ok();
        match number.and_then(|number| N::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, Kind::Integer)),
        }
    }

    pub fn bytes(&self, key: &str) -> Result<u64, Error> {
        let text = self.text_or_empty(key)?;
        read_bytes(&text).ok_or_else(|| self.wrong(key, Kind::Bytes))
    }

    /// In seconds.
    pub fn duration(&self, key: &str) -> Result<u64, Error> {
        let text = self.text_or_empty(key)?;
        read_duration(&text).ok_or_else(|| self.wrong(key, Kind::Duration))
    }

    /// The word of a [`Kind::Choice`]; `None` when nothing was set and there is no default.
    pub fn choice(&self, key: &str) -> Result<Option<&'static str>, Error> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let Some(Kind::Choice(words)) = keys::find(key).map(|key| key.kind) else {
            return Ok(None);
        };
        match words.iter().find(|word| word.eq_ignore_ascii_case(&text)) {
            Some(word) => Ok(Some(word)),
            None => Err(self.wrong(key, Kind::Choice(words))),
        }
    }

    pub fn list(&self, key: &str) -> Result<Vec<String>, Error> {
        let split = |text: &str| -> Vec<String> {
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(str::to_owned)
                .collect()
        };
        match self.values.get(key) {
            None => Ok(split(default(key))),
            Some(setting) => match &setting.value {
                Raw::Text(_) => Ok(split(&self.expand(key, setting)?)),
                Raw::List(items) => {
                    items.iter().map(|item| self.expand_text(key, &setting.place, item)).collect()
                }
            },
        }
    }

    /// An absolute path.
    pub fn path(&self, key: &str) -> Result<Option<Utf8PathBuf>, Error> {
        Ok(self.text(key)?.map(|text| self.absolute(&text)))
    }

    /// `text` as a path, relative to the project; `~/` is the home folder.
    pub fn absolute(&self, text: &str) -> Utf8PathBuf {
        match (text.strip_prefix("~/"), self.env.home()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => normalised(&self.project.join(text)),
        }
    }

    /// A secret: as it stands, or by `env:NAME`, `file:PATH`.
    pub fn secret(&self, key: &str) -> Result<Option<SecretString>, Error> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let place = self.place(key);
        let text = if let Some(variable) = text.strip_prefix("env:") {
            self.variable(key, &place, variable)?
        } else if let Some(path) = text.strip_prefix("file:") {
            let path = self.absolute(path.strip_prefix("//").unwrap_or(path));
            let text = std::fs::read_to_string(&path).map_err(|source| Error::SecretFile {
                place,
                key: key.to_owned(),
                path,
                source,
            })?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        } else {
            text
        };
        Ok(Some(text).filter(|text| !text.is_empty()).map(SecretString::from))
    }

    /// The value of one name below a map.
    pub fn expand(&self, key: &str, setting: &Setting) -> Result<String, Error> {
        match &setting.value {
            Raw::Text(text) => self.expand_text(key, &setting.place, text),
            Raw::List(items) => match keys::find(key).map(|key| key.kind) {
                Some(Kind::List) | None => self.expand_text(key, &setting.place, &items.join(",")),
                Some(kind) => Err(Error::WrongValue {
                    place: setting.place.clone(),
                    key: key.to_owned(),
                    expected: kind.expectation(),
                    value: None,
                }),
            },
        }
    }

    /// Replaces `${env:NAME}`.
    fn expand_text(&self, key: &str, place: &str, text: &str) -> Result<String, Error> {
        self.check_resolved(key, place, text)?;
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("${env:") {
            let Some(end) = rest[start..].find('}').map(|end| start + end) else { break };
            out.push_str(&rest[..start]);
            out.push_str(&self.variable(key, place, &rest[start + 6..end])?);
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Flyway's other resolvers (`${vault.x}`) have nothing behind them here: what they stand for must
    /// not be sent to a server as it is written.
    fn check_resolved(&self, key: &str, place: &str, text: &str) -> Result<(), Error> {
        const ACCOUNT: [&str; 3] = ["database.url", "database.user", "database.password"];
        if !ACCOUNT.contains(&key) || !place.contains(".toml:") {
            return Ok(());
        }
        let mut parts = text.split("${").skip(1);
        match parts.find(|part| !(part.starts_with("env:") && part.contains('}'))) {
            None => Ok(()),
            Some(_) => Err(Error::Value {
                place: place.to_owned(),
                key: key.to_owned(),
                reason: "nothing here resolves its `${…}`".to_owned(),
                hint: Some("write `${env:NAME}` and set the variable".to_owned()),
            }),
        }
    }

    fn variable(&self, key: &str, place: &str, variable: &str) -> Result<String, Error> {
        self.env.get(variable).map(str::to_owned).ok_or_else(|| Error::UnsetVariable {
            place: place.to_owned(),
            key: key.to_owned(),
            variable: variable.to_owned(),
        })
    }

    /// The error for a value of `key` that is not of `kind`.
    pub fn wrong(&self, key: &str, kind: Kind) -> Error {
        let is_secret = keys::find(key).is_none_or(|key| key.secret);
        let value = if is_secret { None } else { self.text(key).ok().flatten() };
        Error::WrongValue {
            place: self.place(key),
            key: key.to_owned(),
            expected: kind.expectation(),
            value,
        }
    }

    /// `key`'s value as `seedbed config` shows it.
    pub fn shown(&self, key: &str) -> Result<String, Error> {
        let Some(known) = keys::find(key) else { return Ok(String::new()) };
        if known.secret {
            return Ok(if self.text(key)?.is_some() { "***".to_owned() } else { String::new() });
        }
        let text = match known.kind {
            Kind::List => self.list(key)?.join(", "),
            Kind::DatabaseUrl => url::masked(&self.text_or_empty(key)?),
            _ => self.text_or_empty(key)?,
        };
        Ok(text)
    }
}

fn default(key: &str) -> &'static str {
    keys::find(key).map_or("", |key| key.default)
}

fn read_bytes(text: &str) -> Option<u64> {
    let text = text.trim().replace('_', "");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor).filter(|bytes| *bytes > 0)
}

/// `8d`, `12h`, `90m`, `30s` as seconds.
pub(crate) fn read_duration(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        'd' => 86_400,
        'h' => 3_600,
        'm' => 60,
        's' => 1,
        _ => return None,
    };
    text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(seconds)
}

/// An absolute path without `.` and `..`.
fn normalised(path: &Utf8Path) -> Utf8PathBuf {
    let mut out = Utf8PathBuf::new();
    for component in path.components() {
        match component {
            camino::Utf8Component::CurDir => {}
            // Above the root is the root.
            camino::Utf8Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::{normalised, read_bytes};

    #[test]
    fn sizes_take_units() {
        let table = [
            ("16MiB", Some(16 << 20)),
            ("1_000", Some(1000)),
            ("2 kB", Some(2000)),
            ("0", None),
            ("x", None),
            ("5 bananas", None),
        ];
        for (text, expected) in table {
            assert_eq!(read_bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn paths_lose_their_dots() {
        assert_eq!(normalised(Utf8Path::new("/p/./conf/../sql")), "/p/sql");
        assert_eq!(normalised(Utf8Path::new("/p/../../x")), "/x");
    }
}
