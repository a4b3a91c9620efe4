//! One layer of the configuration: the entries of one file, of the variables or of the flags.
//!
//! Reads TOML and Flyway's `.conf` into dotted names; nothing is interpreted here but the two files'
//! own rules (`${NAME}` in `.conf`, `${env.NAME}` in `flyway.toml`).

use std::borrow::Cow;

use camino::Utf8Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Error;
use super::properties;
use crate::env::Env;

/// A value before anything is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Raw {
    Text(String),
    List(Vec<String>),
}

impl std::fmt::Display for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::List(items) => f.write_str(&items.join(", ")),
        }
    }
}

/// One line of a file, one variable or one flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Dotted, as written.
    pub key: String,
    pub value: Raw,
    /// `conf/dev.toml:3`, `SEEDBED_ENV`, `--target`.
    pub place: String,
}

/// The text of a file, or `None` when there is none.
pub(crate) fn read_file(path: &Utf8Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

/// The entries of a `.conf` file; `${NAME}` is replaced by the variable, or by nothing, as Flyway
/// does it. `${env:NAME}` is left to the caller.
pub(crate) fn conf(text: &str, file: &str, env: &Env) -> Vec<Entry> {
    properties::read(text)
        .into_iter()
        .map(|property| Entry {
            key: property.key,
            value: Raw::Text(expand_variables(&property.value, env)),
            place: format!("{file}:{}", property.line),
        })
        .collect()
}

fn expand_variables(value: &str, env: &Env) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(start) = rest.find("${") {
        let Some(end) = rest[start..].find('}').map(|end| start + end) else { break };
        let name = &rest[start + 2..end];
        out.push_str(&rest[..start]);
        let is_name =
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if is_name {
            out.push_str(env.get(name).unwrap_or(""));
        } else {
            out.push_str(&rest[start..=end]);
        }
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    out
}

/// The entries of a TOML file.
pub(crate) fn toml(text: &str, file: &str) -> Result<Vec<Entry>, Error> {
    let table = DeTable::parse(text).map_err(|error| Error::Syntax {
        place: format!("{file}:{}", error.span().map_or(1, |span| line(text, span.start))),
        reason: error.message().to_owned(),
    })?;
    let mut entries = Vec::new();
    flatten(text, file, "", table.get_ref(), &mut entries)?;
    // A map of the parser's is in key order; people read files from the top.
    entries.sort_by_key(|(at, _)| *at);
    Ok(entries.into_iter().map(|(_, entry)| entry).collect())
}

fn flatten(
    text: &str,
    file: &str,
    prefix: &str,
    table: &DeTable<'_>,
    entries: &mut Vec<(usize, Entry)>,
) -> Result<(), Error> {
    for (name, value) in table {
        let at = name.span().start;
        let key = format!("{prefix}{}", name.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            flatten(text, file, &format!("{key}."), inner, entries)?;
            continue;
        }
        let place = format!("{file}:{}", line(text, at));
        let value = match value.get_ref() {
            DeValue::Array(items) => Raw::List(
                items
                    .iter()
                    .map(|item| scalar(item, &key, &place))
                    .collect::<Result<Vec<_>, _>>()?,
            ),
            _ => Raw::Text(scalar(value, &key, &place)?),
        };
        entries.push((at, Entry { key, value, place }));
    }
    Ok(())
}

fn scalar(value: &Spanned<DeValue<'_>>, key: &str, place: &str) -> Result<String, Error> {
    let text: Cow<'_, str> = match value.get_ref() {
        DeValue::String(text) => Cow::Borrowed(text.as_ref()),
        DeValue::Integer(number) if number.radix() == 10 => Cow::Borrowed(number.as_str()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Cow::Borrowed(number.as_str()), |number| number.to_string().into()),
        DeValue::Float(number) => Cow::Borrowed(number.as_str()),
        DeValue::Boolean(flag) => flag.to_string().into(),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(_) | DeValue::Table(_) => {
            return Err(Error::WrongValue {
                place: place.to_owned(),
                key: key.to_owned(),
                expected: "a plain value or a list of them".to_owned(),
                value: None,
            });
        }
    };
    Ok(text.into_owned())
}

fn line(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::{Raw, conf, toml};
    use crate::env::Env;

    fn shown(entries: Vec<super::Entry>) -> Vec<String> {
        entries
            .into_iter()
            .map(|entry| match entry.value {
                Raw::Text(text) => format!("{} {}={text}", entry.place, entry.key),
                Raw::List(list) => format!("{} {}={list:?}", entry.place, entry.key),
            })
            .collect()
    }

    #[test]
    fn toml_entries_know_their_lines() {
        let text = "protected = true\n[flyway]\nlocations = [\"a\", \"b\"]\n\
                    [flyway.placeholders]\n\"x.y\" = 0x10\n[database]\nurl = \"u\"\n";
        assert_eq!(
            shown(toml(text, "conf/dev.toml").expect("valid TOML")),
            [
                "conf/dev.toml:1 protected=true",
                "conf/dev.toml:3 flyway.locations=[\"a\", \"b\"]",
                "conf/dev.toml:5 flyway.placeholders.x.y=16",
                "conf/dev.toml:7 database.url=u",
            ]
        );
    }

    #[test]
    fn broken_toml_names_its_line() {
        let error = toml("a = 1\nb = \n", "f.toml").expect_err("no value");
        assert!(error.to_string().starts_with("read `f.toml:2`: "), "{error}");
        let error = toml("a = [[1]]", "f.toml").expect_err("nested list");
        assert_eq!(error.to_string(), "`a` in f.toml:1 wants a plain value or a list of them");
    }

    #[test]
    fn variables_of_conf_files_are_replaced_as_flyway_does() {
        let env = Env::from_variables([("P".to_owned(), "x".to_owned())], Utf8PathBuf::new());
        assert_eq!(
            shown(conf("a=${P}-${Q}-${env:P}-${\nb=${", "f.conf", &env)),
            ["f.conf:1 a=x--${env:P}-${", "f.conf:2 b=${"]
        );
    }
}
