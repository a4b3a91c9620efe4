//! A script as the project holds it: name, text, checksum, settings of its own.

use camino::{Utf8Path, Utf8PathBuf};

use super::Error;
use super::checksum::checksum;
use super::encoding;
use super::file_name::Kind;
use super::placeholders::{PlaceholderError, Placeholders, Replaced};
use super::version::Version;
use crate::config::MigrateConfig;
use crate::pg::lexer::locate;

/// What a script is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Sql,
    /// A program for a shell or an interpreter.
    Program,
}

/// One file.
#[derive(Debug, Clone)]
pub struct Script {
    pub kind: Kind,
    pub language: Language,
    /// For versioned, baseline and undo scripts.
    pub version: Option<Version>,
    /// The version as the file's name has it.
    pub raw_version: String,
    pub description: String,
    /// Path below its location with `/`: what the history stores.
    pub script: String,
    pub path: Utf8PathBuf,
    /// Before placeholders.
    pub text: String,
    /// Of the text, for repeatable ones after placeholders: what the history stores.
    pub checksum: i32,
    /// Of the text before placeholders; a repeatable row with it is up to date as well.
    pub raw_checksum: i32,
    pub settings: ScriptSettings,
    /// The project's settings, where the script has none of its own.
    replaces_placeholders: bool,
}

/// What a `<script>.conf` beside a script may say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScriptSettings {
    pub execute_in_transaction: Option<bool>,
    pub placeholder_replacement: Option<bool>,
    pub encoding: Option<String>,
    pub should_execute: Option<bool>,
}

/// A file that was found and whose name is well-formed.
pub(super) struct Named {
    pub kind: Kind,
    pub language: Language,
    pub version: Option<Version>,
    pub raw_version: String,
    pub description: String,
    pub script: String,
    pub path: Utf8PathBuf,
}

impl Script {
    /// Reads the file and its settings.
    pub(super) fn read(
        named: Named,
        config: &MigrateConfig,
        placeholders: &Placeholders,
    ) -> Result<Self, Error> {
        let settings = ScriptSettings::read(&named.path, placeholders)?;
        let bytes = fs_err::read(&named.path)
            .map_err(|error| Error::Read { path: named.path.clone(), error })?;
        let decoded = match &settings.encoding {
            Some(name) => encoding::decode(bytes, name),
            None if config.detect_encoding => encoding::detect(bytes),
            None => encoding::decode(bytes, &config.encoding),
        };
        let text = decoded.map_err(|error| Error::NotText { path: named.path.clone(), error })?;
        // The protocol's strings end at it: the client would refuse to send what holds one.
        if named.language == Language::Sql
            && let Some(offset) = text.find('\0')
        {
            let place = place_at(&named.path, &text, offset);
            return Err(Error::Nul { place });
        }
        let replaces_placeholders =
            settings.placeholder_replacement.unwrap_or(config.placeholder_replacement);
        let raw_checksum = checksum(&text);
        let mut script = Self {
            kind: named.kind,
            language: named.language,
            version: named.version,
            raw_version: named.raw_version,
            description: named.description,
            script: named.script,
            path: named.path,
            text,
            checksum: raw_checksum,
            raw_checksum,
            settings,
            replaces_placeholders,
        };
        script.renew_checksum(placeholders)?;
        Ok(script)
    }

    /// Computes the checksum again, for other values of placeholders.
    pub(super) fn renew_checksum(&mut self, placeholders: &Placeholders) -> Result<(), Error> {
        if self.kind == Kind::Repeatable && self.language == Language::Sql {
            self.checksum = checksum(&self.replaced(placeholders)?.text);
        }
        Ok(())
    }

    /// The text that runs.
    pub(super) fn replaced(&self, placeholders: &Placeholders) -> Result<Replaced, Error> {
        if !self.replaces_placeholders {
            return Ok(Replaced::unchanged(&self.text));
        }
        placeholders.replace(&self.text, self.file_name()).map_err(|error| Error::Placeholder {
            place: source_place(&self.path, &self.text, error.place()),
            error,
        })
    }

    /// The last part of the path.
    pub fn file_name(&self) -> &str {
        self.path.file_name().unwrap_or(&self.script)
    }

    /// The word for it in the history's column `type`.
    pub fn type_name(&self) -> &'static str {
        match (&self.kind, self.language) {
            (Kind::Baseline, Language::Sql) => "SQL_BASELINE",
            (Kind::Baseline, Language::Program) => "SCRIPT_BASELINE",
            (Kind::Undo, Language::Sql) => "UNDO_SQL",
            (Kind::Undo, Language::Program) => "UNDO_SCRIPT",
            (Kind::Versioned | Kind::Repeatable | Kind::Callback(_), Language::Sql) => "SQL",
            (Kind::Versioned | Kind::Repeatable | Kind::Callback(_), Language::Program) => "SCRIPT",
        }
    }

    /// Flyway's word for what kind of script it is.
    pub fn category(&self) -> &'static str {
        match self.kind {
            Kind::Versioned => "Versioned",
            Kind::Repeatable => "Repeatable",
            Kind::Baseline => "Baseline",
            Kind::Undo => "Undo",
            Kind::Callback(_) => "",
        }
    }

    /// Whether a row with this checksum was made by this text.
    pub fn matches_checksum(&self, applied: Option<i32>) -> bool {
        let Some(applied) = applied else { return true };
        applied == self.checksum || self.kind == Kind::Repeatable && applied == self.raw_checksum
    }
}

impl ScriptSettings {
    fn read(script: &Utf8Path, placeholders: &Placeholders) -> Result<Self, Error> {
        let path = Utf8PathBuf::from(format!("{script}.conf"));
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(Error::Read { path, error }),
        };
        let file_name = script.file_name().unwrap_or_default();
        let text = placeholders
            .replace(&text, file_name)
            .map_err(|error: PlaceholderError| Error::Placeholder {
                place: source_place(&path, &text, error.place()),
                error,
            })?
            .text;
        Self::parse(&text).map_err(|(line, reason)| Error::ScriptSettings { path, line, reason })
    }

    /// Reads `key=value` lines.
    fn parse(text: &str) -> Result<Self, (u32, String)> {
        let mut settings = Self::default();
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let Some((key, value)) = line.split_once(['=', ':']) else {
                return Err((number, format!("`{line}` is not `key=value`")));
            };
            let (key, value) = (key.trim(), value.trim());
            let flag = || match value.to_ascii_lowercase().as_str() {
                "true" => Ok(Some(true)),
                "false" => Ok(Some(false)),
                _ => Err((number, format!("`{key}` is `true` or `false`, not `{value}`"))),
            };
            match key {
                "executeInTransaction" => settings.execute_in_transaction = flag()?,
                "placeholderReplacement" => settings.placeholder_replacement = flag()?,
                "shouldExecute" => settings.should_execute = flag()?,
                "encoding" => settings.encoding = Some(value.to_owned()),
                _ => {
                    let known =
                        "executeInTransaction, placeholderReplacement, shouldExecute, encoding";
                    return Err((number, format!("unknown key `{key}`, known are {known}")));
                }
            }
        }
        Ok(settings)
    }
}

/// A place in a file, with the line that stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePlace {
    pub path: Utf8PathBuf,
    /// From 1.
    pub line: u32,
    /// From 1, in characters; `None`: the line as a whole is meant.
    pub column: Option<u32>,
    /// The line itself, without its end; empty where it is not at hand.
    pub source: String,
}

impl SourcePlace {
    /// The source line with a caret under the column, indented, each after a line end. Nothing where
    /// there is nothing to see.
    pub fn excerpt(&self) -> String {
        if self.source.trim().is_empty() {
            return String::new();
        }
        let number = self.line.to_string();
        // One character stands for each, so that a caret after tabs stays below its place.
        let (source, column) = window(&self.source, self.column);
        let mut text = format!("\n  {number} | {source}");
        if let Some(column) = column {
            let gap = " ".repeat(number.len() + 2);
            let indent: String =
                source.chars().take(column).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            text.push_str(&format!("\n{gap} | {indent}^"));
        }
        text
    }
}

/// Longer source lines are cut around the column: a terminal's width minus what stands before it.
const SNIPPET_CHARS: usize = 100;

fn window(source: &str, column: Option<u32>) -> (String, Option<usize>) {
    let length = source.chars().count();
    let column = column.map(|column| (column as usize).saturating_sub(1).min(length));
    if length <= SNIPPET_CHARS {
        return (source.to_owned(), column);
    }
    let start = column.unwrap_or(0).saturating_sub(SNIPPET_CHARS / 2);
    let start = start.min(length - SNIPPET_CHARS);
    (source.chars().skip(start).take(SNIPPET_CHARS).collect(), column.map(|column| column - start))
}

/// The place of the byte at `offset` of `text`, which is the content of `path`.
pub(super) fn place_at(path: &Utf8Path, text: &str, offset: usize) -> SourcePlace {
    source_place(path, text, locate(text, offset))
}

pub(super) fn source_place(path: &Utf8Path, text: &str, (line, column): (u32, u32)) -> SourcePlace {
    SourcePlace {
        path: path.to_owned(),
        line,
        column: Some(column),
        source: source_line(text, line),
    }
}

/// Line `number` of `text`, from 1; LF, CRLF and CR end lines.
pub(super) fn source_line(text: &str, number: u32) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rest = text;
    for _ in 1..number {
        let Some(end) = rest.find(['\n', '\r']) else { return String::new() };
        let length = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + length..];
    }
    rest.split(['\n', '\r']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::{ScriptSettings, place_at};

    #[test]
    fn a_caret_stands_below_its_character() {
        let text = "select 1;\r\n\tselect 'é', x;\n";
        let place = place_at(Utf8Path::new("V1__x.sql"), text, text.find('x').expect("is there"));
        assert_eq!((place.line, place.column), (2, Some(14)));
        assert_eq!(place.excerpt(), "\n  2 | \tselect 'é', x;\n    | \t            ^");
    }

    #[test]
    fn a_blank_line_is_not_shown() {
        let place = place_at(Utf8Path::new("V1__x.sql"), "select 1;\n \t\n", 11);
        assert_eq!((place.line, place.column), (2, Some(2)));
        assert_eq!(place.excerpt(), "");
    }

    #[test]
    fn a_long_line_is_cut_around_its_place() {
        let text = format!("select '{}', x", "a".repeat(5000));
        let place = place_at(Utf8Path::new("V1__x.sql"), &text, text.len() - 1);
        let excerpt = place.excerpt();
        let lines: Vec<&str> = excerpt.lines().skip(1).collect();
        assert_eq!(lines[0].chars().count(), 106);
        assert_eq!(lines[0].find('x'), lines[1].find('^'));
    }

    #[test]
    fn settings_of_a_script_know_four_keys() {
        let settings =
            ScriptSettings::parse("# x\nexecuteInTransaction = false\nencoding=UTF-16\n");
        let expected = ScriptSettings {
            execute_in_transaction: Some(false),
            encoding: Some("UTF-16".to_owned()),
            ..ScriptSettings::default()
        };
        assert_eq!(settings, Ok(expected));
        assert_eq!(ScriptSettings::parse("\nfoo=1").map_err(|error| error.0), Err(2));
        assert!(ScriptSettings::parse("executeInTransaction=maybe").is_err());
    }
}
