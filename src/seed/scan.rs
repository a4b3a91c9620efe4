//! Finds where statements end in a file that is read line by line. Pure.
//!
//! The lexer wants a whole script; a seed file may be larger than memory. This follows the same
//! rules (strings, comments, dollar quotes, parentheses, `BEGIN ATOMIC`) with a state that lives
//! across lines, and looks at each character once.

use crate::pg::lexer;

/// What stands around the next character.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Within {
    Plain,
    /// `'…'`; whether a backslash escapes.
    String {
        escapes: bool,
    },
    /// `"…"`.
    Ident,
    /// The tag with its dollars.
    Dollar(String),
    /// How deeply nested.
    Comment(u32),
}

/// The state between two lines.
#[derive(Debug)]
pub(super) struct Scanner {
    within: Within,
    parentheses: u32,
    /// Open `BEGIN ATOMIC` and, inside of one, `CASE`.
    blocks: u32,
    /// The first words of the statement, folded; enough of them to know a routine.
    first_words: Vec<String>,
    last_word: String,
    /// Whether a token of the statement was seen.
    pub started: bool,
    /// `standard_conforming_strings` is off: a backslash escapes in plain strings as well.
    pub plain_strings_escape: bool,
}

/// `create or replace procedure`, and what follows.
const FIRST_WORDS: usize = 4;

/// What a line brought, in bytes of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Where the statement's first token stands, when it stands in this line.
    pub start: Option<usize>,
    /// Where the `;` stands that ends the statement.
    pub end: Option<usize>,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self {
            within: Within::Plain,
            parentheses: 0,
            blocks: 0,
            first_words: Vec::new(),
            last_word: String::new(),
            started: false,
            plain_strings_escape: false,
        }
    }

    /// Whether the next character is outside of every quote, comment and statement.
    pub(super) fn is_between_statements(&self) -> bool {
        !self.started && self.within == Within::Plain
    }

    /// What is still open, in words; `None` when a file may end here.
    pub(super) fn unfinished(&self) -> Option<String> {
        match &self.within {
            Within::Plain => None,
            Within::String { .. } => Some("string without its closing quote".to_owned()),
            Within::Ident => Some("quoted identifier without its closing quote".to_owned()),
            Within::Dollar(tag) => {
                Some(format!("dollar-quoted string without its closing `{tag}`"))
            }
            Within::Comment(_) => Some("comment without its closing `*/`".to_owned()),
        }
    }

    /// Reads `line` (with its line end) from byte `from` up to the end of a statement or of the line.
    /// After an end the next statement begins with a fresh state.
    pub(super) fn line(&mut self, line: &str, from: usize) -> Found {
        let mut found = Found { start: None, end: None };
        let mut at = from;
        while let Some(c) = line[at..].chars().next() {
            let rest = &line[at..];
            match &mut self.within {
                Within::Plain => {
                    if rest.starts_with("--") {
                        return found;
                    }
                    if c.is_ascii_whitespace() {
                        at += 1;
                        continue;
                    }
                    if rest.starts_with("/*") {
                        self.within = Within::Comment(1);
                        at += 2;
                        continue;
                    }
                    if c == ';' && self.parentheses == 0 && self.blocks == 0 {
                        if !self.started {
                            at += 1;
                            continue;
                        }
                        self.reset();
                        found.end = Some(at);
                        return found;
                    }
                    if !self.started {
                        self.started = true;
                        found.start = Some(at);
                    }
                    at += self.token(rest, c);
                }
                Within::String { escapes } => {
                    if *escapes && c == '\\' {
                        at += 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                        continue;
                    }
                    // A doubled quote leaves and enters again; `E` is not forgotten meanwhile.
                    if c == '\'' && rest[1..].starts_with('\'') {
                        at += 1;
                    } else if c == '\'' {
                        self.within = Within::Plain;
                    }
                    at += c.len_utf8();
                }
                Within::Ident => {
                    if c == '"' {
                        self.within = Within::Plain;
                    }
                    at += c.len_utf8();
                }
                Within::Dollar(tag) => {
                    let Some(end) = rest.find(tag.as_str()) else { return found };
                    at += end + tag.len();
                    self.within = Within::Plain;
                }
                Within::Comment(depth) => {
                    if rest.starts_with("*/") {
                        *depth -= 1;
                        at += 2;
                        if *depth == 0 {
                            self.within = Within::Plain;
                        }
                    } else if rest.starts_with("/*") {
                        *depth += 1;
                        at += 2;
                    } else {
                        at += c.len_utf8();
                    }
                }
            }
        }
        found
    }

    /// Steps over one token outside of quotes, or into a quote; the bytes taken.
    fn token(&mut self, rest: &str, c: char) -> usize {
        if c.is_alphabetic() || c == '_' || !c.is_ascii() {
            let end = rest
                .find(|c: char| c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' && c != '$')
                .unwrap_or(rest.len());
            let word = &rest[..end];
            if rest[end..].starts_with('\'') {
                let escapes = word.eq_ignore_ascii_case("e") || self.plain_strings_escape;
                self.within = Within::String { escapes };
                return end + 1;
            }
            self.word(word.to_ascii_lowercase());
            return end;
        }
        let is_point = c == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit());
        if c.is_ascii_digit() || is_point {
            self.last_word.clear();
            return lexer::number_length(rest.as_bytes());
        }
        match c {
            '\'' => self.within = Within::String { escapes: self.plain_strings_escape },
            '"' => self.within = Within::Ident,
            '$' => {
                if let Some(tag) = dollar_tag(rest) {
                    self.within = Within::Dollar(tag.to_owned());
                    return tag.len();
                }
            }
            '(' => self.parentheses += 1,
            ')' => self.parentheses = self.parentheses.saturating_sub(1),
            _ => {}
        }
        self.last_word.clear();
        if c == '.' {
            self.last_word.push(c);
        }
        c.len_utf8()
    }

    fn word(&mut self, word: String) {
        let is_label = matches!(self.last_word.as_str(), "as" | ".");
        match word.as_str() {
            "atomic" if self.last_word == "begin" && (self.blocks > 0 || self.makes_routine()) => {
                self.blocks += 1;
            }
            "case" if self.blocks > 0 && !is_label => self.blocks += 1,
            "end" if self.blocks > 0 && !is_label => self.blocks -= 1,
            _ => {}
        }
        if self.first_words.len() < FIRST_WORDS {
            self.first_words.push(word.clone());
        }
        self.last_word = word;
    }

    fn makes_routine(&self) -> bool {
        let words: Vec<&str> = self.first_words.iter().map(String::as_str).collect();
        matches!(
            words.as_slice(),
            ["create", "function" | "procedure", ..]
                | ["create", "or", "replace", "function" | "procedure", ..]
        )
    }

    fn reset(&mut self) {
        let plain_strings_escape = self.plain_strings_escape;
        *self = Self { plain_strings_escape, ..Self::new() };
    }
}

/// `$$` or `$tag$` at the start of `rest`.
fn dollar_tag(rest: &str) -> Option<&str> {
    let end = rest[1..].find('$')? + 1;
    let tag = &rest[1..end];
    let is_tag = !tag.starts_with(|c: char| c.is_ascii_digit())
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii());
    is_tag.then(|| &rest[..=end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, prop_assert_eq, prop_oneof, proptest};

    use super::Scanner;
    use crate::pg::lexer;

    /// The statements of `text`, fed line by line, without the comments before them.
    fn split(text: &str) -> Vec<String> {
        let mut scanner = Scanner::new();
        let (mut statements, mut statement) = (Vec::new(), String::new());
        for line in text.split_inclusive('\n') {
            let mut from = 0;
            loop {
                let was_started = scanner.started;
                let found = scanner.line(line, from);
                let start = if was_started { Some(from) } else { found.start };
                if let Some(start) = start {
                    statement.push_str(&line[start..found.end.unwrap_or(line.len())]);
                }
                let Some(end) = found.end else { break };
                statements.push(std::mem::take(&mut statement).trim_end().to_owned());
                from = end + 1;
            }
        }
        if scanner.started {
            statements.push(statement.trim_end().to_owned());
        }
        statements
    }

    #[test]
    fn a_semicolon_ends_a_statement_only_outside_of_quotes_and_bodies() {
        let text = "select ';', E'\\';', \";\" /* ; /* ; */ ; */ ; -- ;
do $body$ begin; $$ ; end $body$; insert into a$b values ('x
;y'); create rule r as on insert to t do (select 1; select 2);
create or replace function f() returns int begin atomic select case when true then 1; end; select 2; end;
create table begin_atomic (\"end\" int)";
        assert_eq!(split(text).len(), 6, "{:#?}", split(text));
    }

    #[test]
    fn comments_before_a_statement_are_left_out() {
        assert_eq!(split("-- a\n/* b */ ;; select 1;\n-- c\n"), ["select 1"]);
    }

    proptest! {
        #[test]
        fn it_splits_as_the_lexer_does(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("select 1"), Just(";"), Just(" "), Just("\n"), Just("'a;''b'"),
                    Just("E'\\';'"), Just("\"a;b\""), Just("$$;\n$$"), Just("$x$ $$;$x$"),
                    Just("/* ; */"), Just("-- ;\n"), Just("("), Just(")"), Just("é"), Just("a$b$"),
                    Just("1"), Just("0x1f"), Just(".5e3"), Just("."),
                ]
                .prop_map(str::to_owned),
                0..20,
            )
        ) {
            let text = parts.concat();
            let Ok(statements) = lexer::split(&text) else { return Ok(()) };
            let expected: Vec<String> = statements
                .iter()
                .map(|statement| {
                    let start = statement.tokens()[0].offset;
                    text[start..statement.offset + statement.text.len()].trim_end().to_owned()
                })
                .collect();
            prop_assert_eq!(split(&text), expected);
        }
    }
}
