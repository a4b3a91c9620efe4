//! A script as statements, with the rows that follow a `COPY … FROM STDIN`.

use super::scan::{Place, Scanner, is_space};
use super::{LexError, LexErrorKind, Token, TokenKind};

/// One statement of a script, without its `;`.
#[derive(Debug, Clone)]
pub struct Statement<'a> {
    /// Comments that stand before the statement belong to it.
    pub text: &'a str,
    /// Of `text` in the script, in bytes.
    pub offset: usize,
    /// Line of the first token in the script, from 1.
    pub line: u32,
    /// Column of the first token, from 1, in characters.
    pub column: u32,
    /// The rows in the script that `COPY … FROM STDIN` reads.
    pub copy_data: Option<CopyData<'a>>,
    tokens: Vec<Token<'a>>,
}

/// Inline rows of a COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyData<'a> {
    /// Without the line `\.`; line ends as in the script.
    pub rows: &'a str,
    /// In the script, in bytes.
    pub offset: usize,
    /// Of the first row in the script, from 1.
    pub line: u32,
}

impl<'a> Statement<'a> {
    /// The statement's tokens; there is at least one. Their positions count from the start of the
    /// *script*.
    pub fn tokens(&self) -> &[Token<'a>] {
        &self.tokens
    }

    /// The first words of the statement, folded, up to the first token that is no word.
    pub fn leading_words(&self) -> impl Iterator<Item = &str> {
        self.tokens
            .iter()
            .take_while(|token| token.kind == TokenKind::Word)
            .map(|token| &*token.value)
    }
}

/// Takes a script apart at each `;` that ends a statement. Empty statements and lone comments are
/// dropped; the last statement needs no `;`.
///
/// # Errors
/// An unterminated string, identifier or comment, a command of psql, inline COPY rows without end.
pub fn split(sql: &str) -> Result<Vec<Statement<'_>>, LexError> {
    let mut scanner = Scanner::new(sql);
    let mut statements = Vec::new();
    let mut text_start = scanner.position();
    let mut tokens: Vec<Token<'_>> = Vec::new();
    let mut nesting = Nesting::default();
    loop {
        let token = scanner.next()?;
        let ends = match &token {
            None => true,
            Some(token) => nesting.ends_statement(token, &tokens),
        };
        if !ends {
            tokens.extend(token);
            continue;
        }
        let end = token.as_ref().map_or(sql.len(), |token| token.offset);
        if let Some(first) = tokens.first() {
            let (line, column) = (first.line, first.column);
            let copy_data = match reads_stdin(&tokens) {
                false => None,
                true => Some(copy_rows(&mut scanner, first, token.is_some())?),
            };
            if let Some(off) = sets_conforming_strings_off(&tokens) {
                scanner.plain_strings_escape = off;
            }
            let (text, offset) = trimmed(sql, text_start, end);
            let tokens = std::mem::take(&mut tokens);
            statements.push(Statement { text, offset, line, column, copy_data, tokens });
        }
        if token.is_none() {
            return Ok(statements);
        }
        text_start = scanner.position();
        nesting = Nesting::default();
    }
}

fn trimmed(sql: &str, start: usize, end: usize) -> (&str, usize) {
    let blank = |c: char| u8::try_from(c).is_ok_and(is_space);
    let text = sql[start..end].trim_end_matches(blank);
    let trimmed = text.trim_start_matches(blank);
    (trimmed, start + text.len() - trimmed.len())
}

/// What a `;` may stand inside of.
#[derive(Debug, Default)]
struct Nesting {
    parentheses: u32,
    /// Open `BEGIN ATOMIC` and, inside of one, `CASE`.
    blocks: u32,
}

impl Nesting {
    /// Takes note of `token`, which follows `before`; whether it is the `;` that ends the statement.
    fn ends_statement(&mut self, token: &Token<'_>, before: &[Token<'_>]) -> bool {
        match token.kind {
            TokenKind::Punct => match token.text {
                "(" => self.parentheses += 1,
                // One too many is for the server to refuse.
                ")" => self.parentheses = self.parentheses.saturating_sub(1),
                ";" => return self.parentheses == 0 && self.blocks == 0,
                _ => {}
            },
            TokenKind::Word => self.word(token, before),
            TokenKind::QuotedIdent
            | TokenKind::String
            | TokenKind::BitString
            | TokenKind::Number
            | TokenKind::Param
            | TokenKind::Operator
            | TokenKind::Other => {}
        }
        false
    }

    fn word(&mut self, token: &Token<'_>, before: &[Token<'_>]) {
        let last = before.last();
        let is_label = last.is_some_and(|last| last.is_word("as") || last.is_punct("."));
        match &*token.value {
            "atomic"
                if last.is_some_and(|last| last.is_word("begin"))
                    && (self.blocks > 0 || self.parentheses == 0 && makes_routine(before)) =>
            {
                self.blocks += 1;
            }
            "case" if self.blocks > 0 && !is_label => self.blocks += 1,
            "end" if self.blocks > 0 && !is_label => self.blocks -= 1,
            _ => {}
        }
    }
}

/// `CREATE [OR REPLACE] FUNCTION | PROCEDURE …`
fn makes_routine(tokens: &[Token<'_>]) -> bool {
    let is = |index: usize, word: &str| tokens.get(index).is_some_and(|token| token.is_word(word));
    let at = if is(1, "or") && is(2, "replace") { 3 } else { 1 };
    is(0, "create") && (is(at, "function") || is(at, "procedure"))
}

/// `COPY … FROM STDIN …`
fn reads_stdin(tokens: &[Token<'_>]) -> bool {
    let mut depth = 0_i32;
    tokens.first().is_some_and(|token| token.is_word("copy"))
        && tokens.windows(2).any(|pair| {
            depth += i32::from(pair[0].is_punct("(")) - i32::from(pair[0].is_punct(")"));
            depth == 0 && pair[0].is_word("from") && pair[1].is_word("stdin")
        })
}

/// `SET [SESSION | LOCAL] standard_conforming_strings = | TO …`: whether it is off from here on.
fn sets_conforming_strings_off(tokens: &[Token<'_>]) -> Option<bool> {
    if !tokens.first()?.is_word("set") {
        return None;
    }
    let scope = tokens.get(1)?.is_word("session") || tokens.get(1)?.is_word("local");
    let at = if scope { 2 } else { 1 };
    let [name, to, value] = tokens.get(at..at + 3)? else { return None };
    (name.name() == Some("standard_conforming_strings") && (to.is_word("to") || to.is_punct("=")))
        .then(|| ["off", "false", "no", "0"].contains(&value.value.to_ascii_lowercase().as_str()))
}

/// The rows after the line of the `;`; the scanner goes on after their end.
fn copy_rows<'a>(
    scanner: &mut Scanner<'a>,
    copy: &Token<'_>,
    has_semicolon: bool,
) -> Result<CopyData<'a>, LexError> {
    let sql = scanner.text();
    let missing = || LexError {
        kind: LexErrorKind::MissingCopyEnd,
        offset: copy.offset,
        line: copy.line,
        column: copy.column,
    };
    if !has_semicolon {
        return Err(missing());
    }
    let rest_of_line = scanner.position();
    let start =
        sql[rest_of_line..].find('\n').map(|at| rest_of_line + at + 1).ok_or_else(missing)?;
    let rest = sql[rest_of_line..start].trim();
    if !(rest.is_empty() || rest.starts_with("--") || is_block_comment(rest)) {
        let offset = rest_of_line + sql[rest_of_line..start].len()
            - sql[rest_of_line..start].trim_start().len();
        return Err(scanner.error(LexErrorKind::TextAfterCopy, offset));
    }
    let Place { line, .. } = scanner.place_of(start);
    let mut at = start;
    loop {
        let Some(length) = sql[at..].find('\n').or((at < sql.len()).then_some(sql.len() - at))
        else {
            return Err(missing());
        };
        let end = (at + length + 1).min(sql.len());
        if sql[at..at + length].trim() == "\\." {
            scanner.resume_at(end);
            return Ok(CopyData { rows: &sql[start..at], offset: start, line });
        }
        at = end;
    }
}

fn is_block_comment(text: &str) -> bool {
    text.starts_with("/*")
        && text.ends_with("*/")
        && super::tokens(text).is_ok_and(|tokens| tokens.is_empty())
}
