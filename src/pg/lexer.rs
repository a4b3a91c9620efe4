//! PostgreSQL's lexical rules: SQL text as tokens, and scripts as statements.
//!
//! Pure, and made after the manual's chapter "Lexical Structure" and the behaviour of `psql`: every
//! form of string, nested comments, dollar quotes, `BEGIN ATOMIC` bodies, rule bodies, inline data
//! of `COPY … FROM STDIN`. It does not judge grammar: what the server would refuse is passed on
//! whole, so that the server's message and position reach the user.

mod scan;
mod split;
mod value;

use std::borrow::Cow;
use std::fmt;

pub use split::{CopyData, Statement, split};

pub(crate) use scan::number_length;

use scan::Scanner;

/// What kind of thing a [`Token`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A keyword or an identifier without quotes.
    Word,
    /// `"…"` or `U&"…"`.
    QuotedIdent,
    /// `'…'`, `E'…'`, `U&'…'`, `N'…'` or a dollar quote.
    String,
    /// `B'…'` or `X'…'`.
    BitString,
    Number,
    /// `$1`.
    Param,
    Operator,
    /// One of `( ) [ ] , ; : .` or `::`, `:=`, `..`.
    Punct,
    /// A character that no SQL token starts with; the server will say so.
    Other,
}

/// One token. Positions count from the start of the text that was taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: TokenKind,
    /// As written.
    pub text: &'a str,
    /// Words folded to lower case, quotes and escapes resolved; else as written.
    pub value: Cow<'a, str>,
    /// In bytes.
    pub offset: usize,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

impl Token<'_> {
    /// Whether this is the unquoted word `word` (given in lower case).
    pub fn is_word(&self, word: &str) -> bool {
        self.kind == TokenKind::Word && self.value == word
    }

    /// Whether this is the punctuation or operator `text`.
    pub fn is_punct(&self, text: &str) -> bool {
        matches!(self.kind, TokenKind::Punct | TokenKind::Operator) && self.text == text
    }

    /// The name that this token gives, when it can be one: a word (folded) or a quoted identifier.
    pub fn name(&self) -> Option<&str> {
        matches!(self.kind, TokenKind::Word | TokenKind::QuotedIdent).then_some(&*self.value)
    }
}

/// Why text could not be taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LexErrorKind {
    UnterminatedString,
    UnterminatedIdentifier,
    UnterminatedComment,
    /// The tag with its dollars.
    UnterminatedDollarQuote(String),
    /// `COPY … FROM STDIN` whose rows are not ended by a line `\.`.
    MissingCopyEnd,
    /// Something stands between the `;` of a COPY and the end of its line.
    TextAfterCopy,
    /// A command of psql, which is not SQL: `\connect`.
    MetaCommand(String),
}

/// A place in a text that PostgreSQL's lexical rules do not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LexError {
    pub kind: LexErrorKind,
    /// In bytes.
    pub offset: usize,
    pub line: u32,
    pub column: u32,
}

impl LexError {
    /// What is wrong, without its place.
    pub fn message(&self) -> String {
        match &self.kind {
            LexErrorKind::UnterminatedString => "string without its closing quote".to_owned(),
            LexErrorKind::UnterminatedIdentifier => {
                "quoted identifier without its closing quote".to_owned()
            }
            LexErrorKind::UnterminatedComment => "comment without its closing `*/`".to_owned(),
            LexErrorKind::UnterminatedDollarQuote(tag) => {
                format!("dollar-quoted string without its closing `{tag}`")
            }
            LexErrorKind::MissingCopyEnd => {
                "COPY … FROM STDIN whose rows are not ended by a line `\\.`".to_owned()
            }
            LexErrorKind::TextAfterCopy => {
                "text after the `;` of COPY … FROM STDIN, where its rows must begin on the next line"
                    .to_owned()
            }
            LexErrorKind::MetaCommand(command) => {
                format!("`{command}` is a command of psql, not SQL")
            }
        }
    }
}

impl fmt::Display for LexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message())
    }
}

impl std::error::Error for LexError {}

/// The tokens of `text`, without comments and white space. A leading byte order mark is skipped.
///
/// # Errors
/// An unterminated string, identifier or comment, or a command of psql.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, LexError> {
    let mut scanner = Scanner::new(text);
    let mut tokens = Vec::new();
    while let Some(token) = scanner.next()? {
        tokens.push(token);
    }
    Ok(tokens)
}

/// Line and column (both from 1, columns in characters) of the byte at `offset` in `text`.
pub fn locate(text: &str, offset: usize) -> (u32, u32) {
    let mut place = scan::Place::default();
    place.advance(text, offset.min(text.len()));
    (place.line, place.column)
}

#[cfg(test)]
mod tests;
