//! `${name}` in scripts, replaced as Flyway replaces it: everywhere, also in comments and strings.
//!
//! Names ignore case; blanks in them count; a value is not looked into again. Text that begins like
//! the prefix and is not it is passed over whole, which is why `$${x}` stays as it is.

use std::collections::BTreeMap;

use crate::pg::lexer::locate;

/// The values for one project and database.
#[derive(Debug, Clone)]
pub struct Placeholders {
    prefix: String,
    suffix: String,
    separator: String,
    /// By lower-case name.
    values: BTreeMap<String, String>,
    /// Flyway's own, by lower-case name without `flyway` and the separator.
    own: BTreeMap<String, String>,
}

/// A place where no value can be put in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceholderError {
    #[error("no value for the placeholder `{name}`")]
    Unknown { name: String, line: u32, column: u32 },
    #[error("placeholder without its closing `{suffix}`")]
    Unclosed { suffix: String, line: u32, column: u32 },
}

impl PlaceholderError {
    /// Line and column of the placeholder, from 1.
    pub fn place(&self) -> (u32, u32) {
        match self {
            Self::Unknown { line, column, .. } | Self::Unclosed { line, column, .. } => {
                (*line, *column)
            }
        }
    }
}

/// Text with its values, which still knows where each part came from.
#[derive(Debug, Clone)]
pub struct Replaced {
    pub text: String,
    /// In order: where a value stands in `text`, and where its placeholder stood.
    spans: Vec<Span>,
}

#[derive(Debug, Clone)]
struct Span {
    value_start: usize,
    value_end: usize,
    source_start: usize,
    source_end: usize,
}

impl Replaced {
    /// Text in which nothing was replaced.
    pub fn unchanged(text: &str) -> Self {
        Self { text: text.to_owned(), spans: Vec::new() }
    }

    /// The byte of the source for the byte at `offset` of the text; inside of a value it is the start
    /// of its placeholder.
    pub fn source_offset(&self, offset: usize) -> usize {
        let after = self.spans.partition_point(|span| span.value_start <= offset);
        let Some(span) = after.checked_sub(1).map(|index| &self.spans[index]) else {
            return offset;
        };
        if offset < span.value_end {
            span.source_start
        } else {
            span.source_end + (offset - span.value_end)
        }
    }
}

/// Names that Flyway gives values to; `flyway:` stands before each.
pub struct Own<'a> {
    pub default_schema: &'a str,
    pub user: &'a str,
    pub database: &'a str,
    /// Local time, `2026-11-23 23:37:29`.
    pub timestamp: &'a str,
    pub working_directory: &'a str,
    pub table: &'a str,
    pub environment: &'a str,
}

impl Placeholders {
    /// Placeholders written `prefix` name `suffix`.
    pub fn new(prefix: &str, suffix: &str, separator: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
            separator: separator.to_owned(),
            values: BTreeMap::new(),
            own: BTreeMap::new(),
        }
    }

    /// Sets a value of the user's. `false`: the name begins with `flyway` and the separator, which is
    /// reserved, and nothing was set.
    pub fn set(&mut self, name: &str, value: &str) -> bool {
        let name = name.to_lowercase();
        if name.starts_with(&format!("flyway{}", self.separator)) {
            return false;
        }
        self.values.insert(name, value.to_owned());
        true
    }

    /// Sets Flyway's own values.
    pub fn set_own(&mut self, own: &Own<'_>) {
        self.own = [
            ("defaultschema", own.default_schema),
            ("user", own.user),
            ("database", own.database),
            ("timestamp", own.timestamp),
            ("workingdirectory", own.working_directory),
            ("table", own.table),
            ("environment", own.environment),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    }

    /// Every name with its value, Flyway's own included.
    pub fn all(&self) -> impl Iterator<Item = (String, &str)> {
        let own = self
            .own
            .iter()
            .map(|(name, value)| (format!("flyway{}{name}", self.separator), value.as_str()));
        own.chain(self.values.iter().map(|(name, value)| (name.clone(), value.as_str())))
    }

    /// Sets `${flyway:defaultSchema}` alone.
    pub fn set_default_schema(&mut self, schema: &str) {
        self.own.insert("defaultschema".to_owned(), schema.to_owned());
    }

    pub fn default_schema(&self) -> &str {
        self.own.get("defaultschema").map_or("", String::as_str)
    }

    /// `text` with every placeholder replaced. `file_name` is the value of `flyway:filename`.
    ///
    /// # Errors
    /// The first placeholder without a value, or without an end.
    pub fn replace(&self, text: &str, file_name: &str) -> Result<Replaced, PlaceholderError> {
        let mut replaced = Replaced { text: String::with_capacity(text.len()), spans: Vec::new() };
        let mut at = 0;
        let Some(first) = self.prefix.chars().next() else { return Ok(Replaced::unchanged(text)) };
        while let Some(distance) = text[at..].find(first) {
            let start = at + distance;
            replaced.text.push_str(&text[at..start]);
            let Some(body) = text[start..].strip_prefix(self.prefix.as_str()) else {
                at = start + mismatch(&text[start..], &self.prefix);
                replaced.text.push_str(&text[start..at]);
                continue;
            };
            let Some(length) = body.find(&self.suffix) else {
                let (line, column) = locate(text, start);
                return Err(PlaceholderError::Unclosed {
                    suffix: self.suffix.clone(),
                    line,
                    column,
                });
            };
            let name = &body[..length];
            let Some(value) = self.value(name, file_name) else {
                let (line, column) = locate(text, start);
                return Err(PlaceholderError::Unknown { name: name.to_owned(), line, column });
            };
            at = start + self.prefix.len() + length + self.suffix.len();
            let value_start = replaced.text.len();
            replaced.text.push_str(value);
            replaced.spans.push(Span {
                value_start,
                value_end: replaced.text.len(),
                source_start: start,
                source_end: at,
            });
        }
        replaced.text.push_str(&text[at..]);
        Ok(replaced)
    }

    fn value<'a>(&'a self, name: &str, file_name: &'a str) -> Option<&'a str> {
        let name = name.to_lowercase();
        if let Some(value) = self.values.get(&name) {
            return Some(value);
        }
        let own =
            name.strip_prefix("flyway")?.strip_prefix(self.separator.to_lowercase().as_str())?;
        if own == "filename" {
            return Some(file_name);
        }
        self.own.get(own).map(String::as_str)
    }
}

/// How many bytes of `text` are passed over because they begin like `prefix` and are not it: those
/// that agree and the first that does not.
fn mismatch(text: &str, prefix: &str) -> usize {
    let mut length = 0;
    for (c, expected) in text.chars().zip(prefix.chars()) {
        length += c.len_utf8();
        if c != expected {
            break;
        }
    }
    length
}

#[cfg(test)]
mod tests {
    use super::{Own, PlaceholderError, Placeholders};

    fn placeholders() -> Placeholders {
        let mut placeholders = Placeholders::new("${", "}", ":");
        for (name, value) in [("who", "me"), ("Long", "a\nb"), ("again", "${who}"), ("none", "")] {
            assert!(placeholders.set(name, value));
        }
        placeholders.set_own(&Own {
            default_schema: "app",
            user: "u",
            database: "d",
            timestamp: "t",
            working_directory: "/w",
            table: "flyway_schema_history",
            environment: "dev",
        });
        placeholders
    }

    fn replace(text: &str) -> Result<String, PlaceholderError> {
        placeholders().replace(text, "V1__x.sql").map(|replaced| replaced.text)
    }

    #[test]
    fn values_go_in_everywhere_and_only_once() {
        let cases = [
            ("${who}", "me"),
            ("'${WHO}' -- ${who}", "'me' -- me"),
            ("${again}${none}", "${who}"),
            ("$${who}", "$${who}"),
            ("$$${who}$$", "$$me$$"),
            ("a$", "a$"),
            ("${flyway:defaultSchema} ${flyway:FILENAME}", "app V1__x.sql"),
        ];
        for (text, expected) in cases {
            assert_eq!(replace(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_has_no_value_is_named_with_its_place() {
        let unknown = |name: &str, line, column| {
            Err(PlaceholderError::Unknown { name: name.to_owned(), line, column })
        };
        assert_eq!(replace("a\n -- ${nope}"), unknown("nope", 2, 5));
        assert_eq!(replace("${ who }"), unknown(" who ", 1, 1));
        assert_eq!(replace("${flyway:nope}"), unknown("flyway:nope", 1, 1));
        let unclosed = PlaceholderError::Unclosed { suffix: "}".to_owned(), line: 1, column: 2 };
        assert_eq!(replace(" ${who"), Err(unclosed));
        assert!(!placeholders().set("Flyway:table", "mine"));
    }

    #[test]
    fn places_lead_back_to_the_source() {
        let replaced = placeholders().replace("x ${long} y ${who}z", "f").expect("has values");
        assert_eq!(replaced.text, "x a\nb y mez");
        let back: Vec<usize> =
            [0, 2, 4, 5, 6, 8, 9, 10].map(|at| replaced.source_offset(at)).into();
        assert_eq!(back, [0, 2, 2, 9, 10, 12, 12, 18]);
    }
}
