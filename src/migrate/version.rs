//! Versions of scripts, compared as Flyway compares them.
//!
//! The text is kept as written (with `_` as `.`), the order is numeric part by part, and trailing
//! zero parts do not count: `1`, `01`, `1.0` and `1_0_0` are one version. Parts have no upper limit.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A version. Equality and order are numeric; [`Version::text`] is what the history stores.
#[derive(Debug, Clone)]
pub struct Version {
    text: String,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Value {
    /// The keyword `current`; below every number.
    Current,
    Number(Vec<Part>),
    /// The keyword `next`; above every number.
    Next,
    /// The keyword `latest`, or the greatest number of Java's `long`; above every number.
    Latest,
}

/// One whole number of any size, without leading zeros.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Part {
    negative: bool,
    digits: String,
}

/// Text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version: only digits, and dots or underscores between them")]
pub struct InvalidVersion(pub String);

/// How Flyway spells [`Value::Latest`] in numbers; a real version of this value is the keyword.
const LATEST_NUMBER: &str = "9223372036854775807";

impl Version {
    /// Reads a version; `_` counts as `.`.
    ///
    /// # Errors
    /// [`InvalidVersion`] for an empty part or anything that is no whole number. As in Flyway a sign
    /// is allowed on the first part only, and so are decimal digits beyond ASCII.
    pub fn parse(text: &str) -> Result<Self, InvalidVersion> {
        for (keyword, text_of, value) in [
            ("current", "<< Current Version >>", Value::Current),
            ("next", "<< Next Version >>", Value::Next),
            ("latest", LATEST_NUMBER, Value::Latest),
            (LATEST_NUMBER, LATEST_NUMBER, Value::Latest),
        ] {
            if text.eq_ignore_ascii_case(keyword) {
                return Ok(Self { text: text_of.to_owned(), value });
            }
        }
        let text = text.replace('_', ".");
        let Some(mut parts) = split(&text).into_iter().map(Part::parse).collect::<Option<Vec<_>>>()
        else {
            return Err(InvalidVersion(text));
        };
        while parts.len() > 1 && parts.last().is_some_and(Part::is_zero) {
            parts.pop();
        }
        Ok(Self { text, value: Value::Number(parts) })
    }

    /// As written, with `_` as `.`: what the history stores.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether this is a keyword and no real version.
    pub fn is_keyword(&self) -> bool {
        !matches!(self.value, Value::Number(_))
    }

    /// Whether this is the keyword `current`, which as a script's version never runs in order.
    pub(super) fn is_current_keyword(&self) -> bool {
        self.value == Value::Current
    }

    /// Below every number.
    pub(super) fn lowest() -> Self {
        Self { text: "<< Current Version >>".to_owned(), value: Value::Current }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.value {
            Value::Latest => "<< Latest Version >>",
            Value::Current | Value::Number(_) | Value::Next => &self.text,
        })
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for Version {}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.value.cmp(&other.value)
    }
}

impl Hash for Version {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.value.hash(state);
    }
}

/// Parts at dots that an ASCII digit follows; another dot stays in its part, which is then no number.
fn split(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut parts = Vec::new();
    let mut start = 0;
    for at in 0..bytes.len() {
        if bytes[at] == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
            parts.push(&text[start..at]);
            start = at + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

impl Part {
    fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if digits.is_empty() {
            return None;
        }
        let digits = digits.chars().map(decimal).collect::<Option<String>>()?;
        let digits = digits.trim_start_matches('0').to_owned();
        let negative = negative && !digits.is_empty();
        Some(Self { negative, digits })
    }

    fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }
}

impl PartialOrd for Part {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Part {
    fn cmp(&self, other: &Self) -> Ordering {
        let magnitude = |a: &Self, b: &Self| {
            a.digits.len().cmp(&b.digits.len()).then_with(|| a.digits.cmp(&b.digits))
        };
        match (self.negative, other.negative) {
            (false, false) => magnitude(self, other),
            (true, true) => magnitude(other, self),
            (negative, _) if negative => Ordering::Less,
            _ => Ordering::Greater,
        }
    }
}

/// Zeros of the blocks of decimal digits in Unicode's basic plane (category Nd); Java takes any.
const ZEROS: [u32; 37] = [
    0x0030, 0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6,
    0x0D66, 0x0DE6, 0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80,
    0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0,
    0xFF10,
];

/// The ASCII digit with the same value.
fn decimal(c: char) -> Option<char> {
    let code = u32::from(c);
    let zero = ZEROS.iter().find(|&&zero| (zero..zero + 10).contains(&code))?;
    char::from_digit(code - zero, 10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};
    use proptest::prop_assert_eq;
    use serde_json::Value as Json;

    use super::Version;

    fn vectors() -> Json {
        serde_json::from_str(include_str!("../../tests/vectors/versions.json")).expect("is JSON")
    }

    fn list<'a>(json: &'a Json, key: &str) -> &'a [Json] {
        json[key].as_array().expect("is a list")
    }

    #[test]
    fn every_recorded_version_is_read_or_refused_as_flyway_does() {
        let vectors = vectors();
        let cases = list(&vectors, "versions");
        assert_eq!(cases.len(), 74);
        for case in cases {
            let input = case["input"].as_str().expect("is text");
            match Version::parse(input) {
                Ok(version) => {
                    assert_eq!(Some(version.text()), case["version"].as_str(), "{input}");
                    assert_eq!(
                        Some(version.to_string().as_str()),
                        case["display"].as_str(),
                        "{input}"
                    );
                    assert_eq!(Some(version.is_keyword()), case["predefined"].as_bool(), "{input}");
                }
                Err(_) => assert!(case.get("error").is_some(), "{input} was refused"),
            }
            assert_eq!(Version::parse(input).is_err(), case.get("error").is_some(), "{input}");
        }
    }

    #[test]
    fn recorded_groups_are_equal_within_and_ascend() {
        let vectors = vectors();
        let groups: Vec<Vec<Version>> = list(&vectors, "sorted_equal_groups")
            .iter()
            .map(|group| {
                let members = group.as_array().expect("is a list").iter();
                members
                    .map(|text| {
                        Version::parse(text.as_str().expect("is text")).expect("is a version")
                    })
                    .collect()
            })
            .collect();
        assert_eq!(groups.len(), 32);
        for group in &groups {
            assert!(group.iter().all(|version| *version == group[0]), "{group:?}");
        }
        for pair in groups.windows(2) {
            for (low, high) in
                pair[0].iter().flat_map(|low| pair[1].iter().map(move |high| (low, high)))
            {
                assert!(low < high, "{low} {high}");
            }
        }
    }

    #[test]
    fn keywords_stand_around_every_number() {
        let parse = |text| Version::parse(text).expect("is a version");
        assert!(parse("current") < parse("-5") && parse("99") < parse("next"));
        assert!(parse("99999999999999999999") < parse("latest"));
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_numbers(
            a in prop::collection::vec(any::<u16>(), 1..5),
            b in prop::collection::vec(any::<u16>(), 1..5),
        ) {
            let text = |parts: &[u16]| parts.iter().map(u16::to_string).collect::<Vec<_>>().join("_");
            let trimmed = |parts: &[u16]| {
                let last = parts.iter().rposition(|part| *part != 0).unwrap_or(0);
                parts[..=last].to_vec()
            };
            let parse = |parts: &[u16]| Version::parse(&text(parts)).expect("is a version");
            prop_assert_eq!(parse(&a).cmp(&parse(&b)), trimmed(&a).cmp(&trimmed(&b)));
        }
    }
}
