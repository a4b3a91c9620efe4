//! A seed file as statements and rows, one at a time: memory holds one statement or one block of
//! rows, never the file.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use camino::{Utf8Path, Utf8PathBuf};

use super::Error;
use super::scan::Scanner;
use super::source::{Lines, Source};
use crate::migrate::SourcePlace;
use crate::pg::lexer;

/// Rows are sent in blocks of this size: one message a row would cost more than the rows.
const ROWS_BYTES: usize = 1 << 20;
/// Blocks that are kept once they are sent, to show a row that the server refuses: it reads behind by
/// what lies in the sockets and by the thousand rows that it inserts at once.
const ROWS_KEPT: usize = 4;
/// PostgreSQL takes no longer statement (a message's length is a signed 32-bit number).
const STATEMENT_BYTES: usize = 1 << 30;

/// Commands of psql that `pg_dump` writes and that change nothing for us.
const HARMLESS: [&str; 2] = ["\\restrict", "\\unrestrict"];

/// One statement without its `;` and without the comments before it.
#[derive(Debug)]
pub(super) struct Statement {
    pub text: String,
    /// Of its first token, from 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u32,
    /// Whether rows follow, which [`Script::rows`] gives.
    pub copies: bool,
}

impl Statement {
    /// The place of the character at `position` (from 1) of the statement, or its start.
    pub(super) fn place(&self, path: &Utf8Path, position: Option<u32>) -> SourcePlace {
        let skipped = position.map_or(0, |position| position.saturating_sub(1) as usize);
        let offset = self.text.char_indices().nth(skipped).map_or(self.text.len(), |(at, _)| at);
        let (line, column) = lexer::locate(&self.text, offset);
        let source = self.text.lines().nth(line as usize - 1).unwrap_or_default();
        let first = line == 1;
        // The statement's first line may begin in the middle of the file's line.
        let indent = if first { self.column - 1 } else { 0 };
        SourcePlace {
            path: path.to_owned(),
            line: u32::try_from(self.line).unwrap_or(u32::MAX).saturating_add(line - 1),
            column: Some(column + indent),
            source: format!("{}{source}", " ".repeat(indent as usize)),
        }
    }
}

/// A file being read.
pub(super) struct Script {
    pub path: Utf8PathBuf,
    lines: Lines,
    scanner: Scanner,
    /// The line in hand and where its unread part begins.
    line: String,
    from: usize,
    /// The last row of a COPY was seen, or there is none.
    rows_ended: bool,
    /// The rows that were given last, each block with the number of its first line.
    kept: VecDeque<(u64, Bytes)>,
}

impl Script {
    pub(super) fn of(path: &Utf8Path, source: Source) -> Self {
        Self {
            path: path.to_owned(),
            lines: Lines::of(source),
            scanner: Scanner::new(),
            line: String::new(),
            from: 0,
            rows_ended: true,
            kept: VecDeque::with_capacity(ROWS_KEPT),
        }
    }

    /// Bytes of the file that were read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.lines.bytes_read
    }

    /// The number of the line in hand.
    pub(super) fn line_number(&self) -> u64 {
        self.lines.number
    }

    /// The next statement; `None` at the end of the file.
    pub(super) async fn statement(&mut self) -> Result<Option<Statement>, Error> {
        let mut text = String::new();
        let mut begin = None;
        loop {
            if self.from >= self.line.len() && !self.read_line().await? {
                return self.last(text, begin);
            }
            let was_started = self.scanner.started;
            let found = self.scanner.line(&self.line, self.from);
            if let Some(start) = found.start {
                let column = self.line[..start].chars().count() + 1;
                begin = Some((self.lines.number, u32::try_from(column).unwrap_or(u32::MAX)));
            }
            let start = if was_started { Some(self.from) } else { found.start };
            if let Some(start) = start {
                text.push_str(&self.line[start..found.end.unwrap_or(self.line.len())]);
            }
            if text.len() > STATEMENT_BYTES {
                return Err(self.invalid("a statement of more than 1 GB", None));
            }
            let Some(end) = found.end else {
                self.from = self.line.len();
                continue;
            };
            self.from = end + 1;
            let statement = self.finished(text, begin)?;
            return Ok(Some(statement));
        }
    }

    /// The end of the file: what is left is a statement without `;`, or something unfinished.
    fn last(
        &mut self,
        text: String,
        begin: Option<(u64, u32)>,
    ) -> Result<Option<Statement>, Error> {
        if let Some(reason) = self.scanner.unfinished() {
            return Err(match begin {
                Some((line, column)) => {
                    let statement = Statement { text, line, column, copies: false };
                    let place = statement.place(&self.path, None);
                    Error::Invalid { place, reason, hint: None }
                }
                None => self.invalid(&reason, None),
            });
        }
        match begin {
            Some(_) => {
                self.scanner = Scanner::new();
                self.finished(text, begin).map(Some)
            }
            None => Ok(None),
        }
    }

    fn finished(&mut self, text: String, begin: Option<(u64, u32)>) -> Result<Statement, Error> {
        let (line, column) = begin.unwrap_or((self.lines.number, 1));
        let text = text.trim_end().to_owned();
        let copies = reads_rows(&text);
        if let Some(off) = conforming_strings(&text) {
            self.scanner.plain_strings_escape = off;
        }
        if copies {
            if !self.line[self.from..].trim().is_empty() {
                let reason = "text after the `;` of COPY … FROM STDIN";
                let hint = "begin the rows on the next line";
                return Err(self.invalid(reason, Some(hint)));
            }
            self.from = self.line.len();
            self.rows_ended = false;
        }
        Ok(Statement { text, line, column, copies })
    }

    /// A block of rows of the COPY that was returned last; `None` after the last.
    pub(super) async fn rows(&mut self) -> Result<Option<Bytes>, Error> {
        let mut block = BytesMut::new();
        let first_line = self.lines.number + 1;
        while !self.rows_ended && block.len() < ROWS_BYTES {
            let Some(line) = self.next_line().await? else {
                let reason = "COPY … FROM STDIN whose rows are not ended by a line `\\.`";
                return Err(self.invalid(reason, None));
            };
            if line.strip_suffix(b"\n").unwrap_or(&line).trim_ascii_end() == b"\\." {
                self.rows_ended = true;
                break;
            }
            block.extend_from_slice(&line);
        }
        if block.is_empty() {
            return Ok(None);
        }
        let block = block.freeze();
        if self.kept.len() == ROWS_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((first_line, block.clone()));
        Ok(Some(block))
    }

    /// The row of a COPY at `line`, if it was given lately.
    pub(super) fn row(&self, line: u64) -> Option<String> {
        let (first_line, block) = self.kept.iter().rfind(|(first_line, _)| *first_line <= line)?;
        let row =
            block.split(|byte| *byte == b'\n').nth(usize::try_from(line - first_line).ok()?)?;
        Some(String::from_utf8_lossy(row.trim_ascii_end()).into_owned())
    }

    /// Reads a line of SQL into `line`; commands of psql are left out or refused.
    async fn read_line(&mut self) -> Result<bool, Error> {
        loop {
            let Some(bytes) = self.next_line().await? else { return Ok(false) };
            if bytes.contains(&0) {
                return Err(Error::NotText {
                    path: self.path.clone(),
                    line: self.lines.number,
                    reason: "a zero byte",
                });
            }
            let Ok(text) = std::str::from_utf8(&bytes) else {
                return Err(Error::NotText {
                    path: self.path.clone(),
                    line: self.lines.number,
                    reason: "text that is not UTF-8",
                });
            };
            let text = match self.lines.number {
                1 => text.strip_prefix('\u{feff}').unwrap_or(text),
                _ => text,
            };
            self.line.clear();
            self.line.push_str(text);
            self.from = 0;
            if !self.scanner.is_between_statements() || !text.trim_start().starts_with('\\') {
                return Ok(true);
            }
            let command = text.split_whitespace().next().unwrap_or_default();
            if !HARMLESS.contains(&command) {
                let reason = format!("`{command}` is a command of psql, not SQL");
                let hint = match command {
                    "\\connect" | "\\c" => "dump one database, without `--create`",
                    _ => "delete the line",
                };
                return Err(self.invalid(&reason, Some(hint)));
            }
            self.from = self.line.len();
        }
    }

    async fn next_line(&mut self) -> Result<Option<Bytes>, Error> {
        self.lines.next().await.map_err(|error| Error::File {
            action: "read seed file",
            path: self.path.clone(),
            error,
        })
    }

    /// An error about the line in hand.
    fn invalid(&self, reason: &str, hint: Option<&str>) -> Error {
        Error::Invalid {
            place: SourcePlace {
                path: self.path.clone(),
                line: u32::try_from(self.lines.number).unwrap_or(u32::MAX),
                column: None,
                source: self.line.trim_end().to_owned(),
            },
            reason: reason.to_owned(),
            hint: hint.map(str::to_owned),
        }
    }
}

/// Whether it is a `copy … from stdin`.
fn reads_rows(text: &str) -> bool {
    let starts = text.get(..4).is_some_and(|word| word.eq_ignore_ascii_case("copy"));
    let Some(tokens) = starts.then(|| lexer::tokens(text).ok()).flatten() else { return false };
    let from = tokens.iter().position(|token| token.is_word("from"));
    from.and_then(|at| tokens.get(at + 1)).is_some_and(|token| token.is_word("stdin"))
}

/// What a `set standard_conforming_strings` makes of backslashes: `Some(true)` when they escape.
fn conforming_strings(text: &str) -> Option<bool> {
    let rest = text.get(..3).filter(|word| word.eq_ignore_ascii_case("set"))?;
    let words = text[rest.len()..].to_ascii_lowercase();
    let value = words.trim_start().strip_prefix("standard_conforming_strings")?;
    Some(value.contains("off") || value.contains("false"))
}
