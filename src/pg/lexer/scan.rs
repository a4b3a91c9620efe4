//! One token after the other.

use std::borrow::Cow;

use super::value::{self, Escapes};
use super::{LexError, LexErrorKind, Token, TokenKind};

/// A position that only moves forward, so that counting stays linear however long a line is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: usize,
    pub(super) line: u32,
    pub(super) column: u32,
}

impl Default for Place {
    fn default() -> Self {
        Self { offset: 0, line: 1, column: 1 }
    }
}

impl Place {
    /// Moves to the byte at `offset`, which is not before the present one. LF, CRLF and CR end lines.
    pub(super) fn advance(&mut self, text: &str, offset: usize) {
        let bytes = text.as_bytes();
        for at in self.offset..offset {
            match bytes[at] {
                b'\n' => self.new_line(),
                b'\r' if bytes.get(at + 1) != Some(&b'\n') => self.new_line(),
                // A continuation byte of a character already counted.
                0x80..=0xBF => {}
                _ => self.column += 1,
            }
        }
        self.offset = offset;
    }

    fn new_line(&mut self) {
        self.line += 1;
        self.column = 1;
    }
}

/// Walks over a text. Comments are skipped.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    place: Place,
    /// `standard_conforming_strings = off`: a plain string has backslash escapes as well.
    pub(super) plain_strings_escape: bool,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let place = Place { offset: at, ..Place::default() };
        Self { text, at, place, plain_strings_escape: false }
    }

    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    /// The first byte that was not yet looked at.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Goes on from `offset`, which is not before the end of the last token.
    pub(super) fn resume_at(&mut self, offset: usize) {
        self.at = offset;
    }

    /// The next token, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Token<'a>>, LexError> {
        self.skip_blank()?;
        let start = self.at;
        let Some(&first) = self.bytes().get(start) else { return Ok(None) };
        let (kind, value) = match first {
            b'\'' => {
                let escapes =
                    if self.plain_strings_escape { Escapes::Backslash } else { Escapes::None };
                self.string(start, escapes)?
            }
            b'"' => self.quoted_identifier(start)?,
            b'$' => self.dollar()?,
            b'\\' => return Err(self.meta_command()),
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_some_and(|byte| byte.is_ascii_digit()) => self.number(),
            b'(' | b')' | b'[' | b']' | b',' | b';' => self.take(TokenKind::Punct, 1),
            b':' => {
                let length = if matches!(self.peek(1), Some(b':' | b'=')) { 2 } else { 1 };
                self.take(TokenKind::Punct, length)
            }
            b'.' => {
                let length = if self.peek(1) == Some(b'.') { 2 } else { 1 };
                self.take(TokenKind::Punct, length)
            }
            byte if is_operator(byte) => self.operator(),
            byte if is_word_start(byte) => self.word()?,
            _ => self.take(TokenKind::Other, 1),
        };
        let place = self.place_of(start);
        Ok(Some(Token {
            kind,
            text: &self.text[start..self.at],
            value,
            offset: start,
            line: place.line,
            column: place.column,
        }))
    }

    /// An error at the byte at `offset`.
    pub(super) fn error(&mut self, kind: LexErrorKind, offset: usize) -> LexError {
        let place = self.place_of(offset);
        LexError { kind, offset, line: place.line, column: place.column }
    }

    /// Where the byte at `offset` stands; not before the last place asked for.
    pub(super) fn place_of(&mut self, offset: usize) -> Place {
        self.place.advance(self.text, offset);
        self.place
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes().get(self.at + ahead).copied()
    }

    fn take(&mut self, kind: TokenKind, length: usize) -> (TokenKind, Cow<'a, str>) {
        let start = self.at;
        self.at += length;
        (kind, Cow::Borrowed(&self.text[start..self.at]))
    }

    /// Skips white space and comments.
    fn skip_blank(&mut self) -> Result<(), LexError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(byte), _) if is_space(byte) => self.at += 1,
                (Some(b'-'), Some(b'-')) => self.at = line_end(self.bytes(), self.at),
                (Some(b'/'), Some(b'*')) => self.block_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn block_comment(&mut self) -> Result<(), LexError> {
        let start = self.at;
        let mut depth = 0_u32;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                (Some(_), _) => self.at += 1,
                (None, _) => return Err(self.error(LexErrorKind::UnterminatedComment, start)),
            }
        }
    }

    fn word(&mut self) -> Result<(TokenKind, Cow<'a, str>), LexError> {
        let start = self.at;
        match (self.bytes()[start], self.peek(1), self.peek(2)) {
            (b'e' | b'E', Some(b'\''), _) => {
                self.at += 1;
                return self.string(start, Escapes::Backslash);
            }
            (b'n' | b'N', Some(b'\''), _) => {
                self.at += 1;
                return self.string(start, Escapes::None);
            }
            (b'b' | b'B' | b'x' | b'X', Some(b'\''), _) => {
                self.at += 1;
                let (_, value) = self.string(start, Escapes::None)?;
                return Ok((TokenKind::BitString, value));
            }
            (b'u' | b'U', Some(b'&'), Some(b'\'')) => {
                self.at += 2;
                let (_, value) = self.string(start, Escapes::None)?;
                return Ok((TokenKind::String, self.unicode(value)?));
            }
            (b'u' | b'U', Some(b'&'), Some(b'"')) => {
                self.at += 2;
                let (_, value) = self.quoted_identifier(start)?;
                return Ok((TokenKind::QuotedIdent, self.unicode(value)?));
            }
            _ => {}
        }
        self.at = word_end(self.bytes(), start);
        let text = &self.text[start..self.at];
        // Only ASCII is folded: what a server folds beyond it depends on its locale.
        let value = if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(text.to_ascii_lowercase())
        } else {
            Cow::Borrowed(text)
        };
        Ok((TokenKind::Word, value))
    }

    /// A string whose opening quote is at the present position; parts that stand on following lines
    /// belong to it (`'a'` newline `'b'` is `'ab'`).
    fn string(
        &mut self,
        start: usize,
        escapes: Escapes,
    ) -> Result<(TokenKind, Cow<'a, str>), LexError> {
        let mut value = self.string_part(start, escapes)?;
        while let Some(next) = continuation(self.bytes(), self.at) {
            self.at = next;
            value.to_mut().push_str(&self.string_part(start, escapes)?);
        }
        Ok((TokenKind::String, value))
    }

    fn string_part(&mut self, start: usize, escapes: Escapes) -> Result<Cow<'a, str>, LexError> {
        self.at += 1;
        let body = self.at;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'\''), Some(b'\'')) => self.at += 2,
                (Some(b'\''), _) => break,
                (Some(b'\\'), Some(_)) if escapes == Escapes::Backslash => self.at += 2,
                (Some(_), _) => self.at += 1,
                (None, _) => return Err(self.error(LexErrorKind::UnterminatedString, start)),
            }
        }
        let text = &self.text[body..self.at];
        self.at += 1;
        Ok(value::string(text, escapes))
    }

    fn quoted_identifier(&mut self, start: usize) -> Result<(TokenKind, Cow<'a, str>), LexError> {
        self.at += 1;
        let body = self.at;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'"'), Some(b'"')) => self.at += 2,
                (Some(b'"'), _) => break,
                (Some(_), _) => self.at += 1,
                (None, _) => return Err(self.error(LexErrorKind::UnterminatedIdentifier, start)),
            }
        }
        let text = &self.text[body..self.at];
        self.at += 1;
        Ok((TokenKind::QuotedIdent, value::identifier(text)))
    }

    /// Resolves the escapes of a `U&` form; a following `UESCAPE 'x'` is taken in.
    fn unicode(&mut self, value: Cow<'a, str>) -> Result<Cow<'a, str>, LexError> {
        let end = self.at;
        let mut escape = '\\';
        self.skip_blank()?;
        let word = self.at;
        let is_uescape =
            self.text[word..word_end(self.bytes(), word)].eq_ignore_ascii_case("uescape");
        self.at = end;
        if is_uescape {
            self.at = word + "uescape".len();
            self.skip_blank()?;
            if self.peek(0) == Some(b'\'') {
                let quote = self.at;
                let (_, text) = self.string(quote, Escapes::None)?;
                escape = text.chars().next().unwrap_or(escape);
            } else {
                self.at = end;
            }
        }
        Ok(value::unicode(value, escape))
    }

    /// `$1`, `$$…$$` or `$tag$…$tag$`.
    fn dollar(&mut self) -> Result<(TokenKind, Cow<'a, str>), LexError> {
        let start = self.at;
        let bytes = self.bytes();
        let digits = bytes[start + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            return Ok(self.take(TokenKind::Param, 1 + digits));
        }
        let mut end = start + 1;
        while bytes.get(end).is_some_and(|&byte| is_word_part(byte) && byte != b'$') {
            end += 1;
        }
        if bytes.get(end) != Some(&b'$') {
            return Ok(self.take(TokenKind::Other, 1));
        }
        let tag = &self.text[start..=end];
        let body = end + 1;
        let Some(length) = self.text[body..].find(tag) else {
            let kind = LexErrorKind::UnterminatedDollarQuote(tag.to_owned());
            return Err(self.error(kind, start));
        };
        self.at = body + length + tag.len();
        Ok((TokenKind::String, Cow::Borrowed(&self.text[body..body + length])))
    }

    fn number(&mut self) -> (TokenKind, Cow<'a, str>) {
        let length = number_length(&self.bytes()[self.at..]);
        self.take(TokenKind::Number, length)
    }

    fn operator(&mut self) -> (TokenKind, Cow<'a, str>) {
        let bytes = self.bytes();
        let mut end = self.at + 1;
        while let Some(&byte) = bytes.get(end) {
            let comment =
                matches!((byte, bytes.get(end + 1)), (b'-', Some(b'-')) | (b'/', Some(b'*')));
            if !is_operator(byte) || comment {
                break;
            }
            end += 1;
        }
        self.take(TokenKind::Operator, end - self.at)
    }

    fn meta_command(&mut self) -> LexError {
        let start = self.at;
        let command: String = self.text[start..]
            .chars()
            .enumerate()
            .take_while(|&(index, c)| index == 0 || !(c.is_whitespace() || c == '\\'))
            .map(|(_, c)| c)
            .take(MAX_COMMAND_CHARS)
            .collect();
        self.error(LexErrorKind::MetaCommand(command), start)
    }
}

/// psql's longest command is `\unrestrict`; more in a message would show data, not a command.
const MAX_COMMAND_CHARS: usize = 20;

/// White space of PostgreSQL's scanner; a no-break space is part of a word.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

fn is_operator(byte: u8) -> bool {
    b"~!@#^&|`?+-*/%<>=".contains(&byte)
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word_part(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn word_end(bytes: &[u8], start: usize) -> usize {
    start + bytes[start..].iter().take_while(|&&byte| is_word_part(byte)).count()
}

/// The bytes of the number at the start of `bytes`, which begins with a digit or a point: `10`,
/// `1_000`, `.5`, `1.`, `1e-3`, `0x1F`. `1..10` is two numbers around `..`; letters that make no
/// exponent are a word of their own, as before PostgreSQL 15 (which refuses them).
pub(crate) fn number_length(bytes: &[u8]) -> usize {
    let run = |from: usize, part: fn(u8) -> bool| {
        bytes[from..].iter().take_while(|&&byte| part(byte) || byte == b'_').count()
    };
    let part: Option<fn(u8) -> bool> = match bytes {
        [b'0', b'x' | b'X', ..] => Some(|byte| byte.is_ascii_hexdigit()),
        [b'0', b'o' | b'O', ..] => Some(|byte| matches!(byte, b'0'..=b'7')),
        [b'0', b'b' | b'B', ..] => Some(|byte| matches!(byte, b'0' | b'1')),
        _ => None,
    };
    if let Some(part) = part
        && run(2, part) > 0
    {
        return 2 + run(2, part);
    }
    let digits: fn(u8) -> bool = |byte| byte.is_ascii_digit();
    let mut end = run(0, digits);
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1) != Some(&b'.') {
        end += 1;
        end += run(end, digits);
    }
    let exponent = match &bytes[end..] {
        [b'e' | b'E', b'+' | b'-', digit, ..] if digit.is_ascii_digit() => 2,
        [b'e' | b'E', digit, ..] if digit.is_ascii_digit() => 1,
        _ => return end,
    };
    end + exponent + run(end + exponent, digits)
}

/// The index of the line end at or after `start`, or the end of the text.
fn line_end(bytes: &[u8], start: usize) -> usize {
    start + bytes[start..].iter().take_while(|&&byte| !matches!(byte, b'\n' | b'\r')).count()
}

/// The index of the quote that continues a string which ended before `at`: white space with at least
/// one line end, and line comments, may stand between.
fn continuation(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut new_line = false;
    loop {
        match bytes.get(at)? {
            b'\'' => return new_line.then_some(at),
            b'-' if bytes.get(at + 1) == Some(&b'-') => at = line_end(bytes, at),
            &byte if is_space(byte) => {
                new_line |= matches!(byte, b'\n' | b'\r');
                at += 1;
            }
            _ => return None,
        }
    }
}
