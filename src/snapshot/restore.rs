//! The schema archive through `pg_restore`, and which of its errors do not count.
//!
//! `pg_restore` runs on past errors and says so only in words; each error is taken out of those words
//! and judged. Entries of the archive that a copy must not have (subscriptions, publications,
//! accounts on foreign servers) are taken out of its table of contents.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::load::Error;
use crate::config::Owners;
use crate::context::Context;
use crate::pg::Target;
use crate::pg::tools::{Call, Output, Tools};

/// A part of an archive, before or after the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    PreData,
    PostData,
}

impl Section {
    fn as_str(self) -> &'static str {
        match self {
            Self::PreData => "pre-data",
            Self::PostData => "post-data",
        }
    }
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PreData => "tables and functions",
            Self::PostData => "indexes and constraints",
        })
    }
}

/// One statement of the archive that the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The server's message.
    pub message: String,
    /// The statement's first line.
    pub command: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (in `{}`)", self.message, self.command)
    }
}

/// Kinds of entries that let a copy act on what the source acts on.
const ACTING: [&str; 4] = ["USER MAPPING", "SUBSCRIPTION TABLE", "SUBSCRIPTION", "PUBLICATION"];

/// The archive's table of contents as `pg_restore --use-list` takes it.
pub(super) struct List {
    text: Bytes,
    /// Entries taken out, in words.
    pub left_out: Vec<String>,
}

/// How one archive is restored.
pub(super) struct Restore<'a> {
    pub ctx: &'a Context,
    pub tools: &'a Tools,
    pub target: &'a Target,
    /// Makes everything.
    pub role: &'a str,
    pub owners: Owners,
    pub archive: &'a Bytes,
}

impl Restore<'_> {
    /// The table of contents without what a copy must not have.
    pub(super) async fn list(&self) -> Result<List, Error> {
        let call = Call {
            program: "pg_restore",
            args: vec!["--list".to_owned()],
            target: None,
            stdin: Some(self.archive.clone()),
            input_file: None,
        };
        let output = self.tools.run(self.ctx, call).await?;
        if output.status != 0 {
            let reason = output.stderr.trim().to_owned();
            return Err(Error::Restore { section: Section::PreData, reason });
        }
        Ok(filter(&output.stdout))
    }

    /// The statements for the entries of `list`, as a script whose comments tell each entry's number;
    /// nothing is run.
    pub(super) async fn script(&self, list: &List) -> Result<Vec<u8>, Error> {
        let mut args = vec!["--file=-".to_owned(), "--use-list=/dev/stdin".to_owned()];
        let options = ["--verbose", "--no-owner", "--no-privileges", "--no-tablespaces"];
        args.extend(options.map(str::to_owned));
        let call = Call {
            program: "pg_restore",
            args,
            target: None,
            stdin: Some(list.text.clone()),
            input_file: Some(self.archive.clone()),
        };
        let output = self.tools.run(self.ctx, call).await?;
        if output.status != 0 {
            let reason = output.stderr.trim().to_owned();
            return Err(Error::Restore { section: Section::PostData, reason });
        }
        Ok(output.stdout)
    }

    /// Restores one section, what comes after the rows by so many `jobs`; returns the statements that the
    /// server refused.
    pub(super) async fn run(
        &self,
        section: Section,
        list: &List,
        jobs: usize,
    ) -> Result<Vec<Refusal>, Error> {
        let mut args = vec![
            format!("--section={}", section.as_str()),
            format!("--role={}", self.role),
            "--no-publications".to_owned(),
            "--no-subscriptions".to_owned(),
            "--no-security-labels".to_owned(),
            "--no-tablespaces".to_owned(),
        ];
        match self.owners {
            Owners::Local => {
                args.extend(["--no-owner".to_owned(), "--no-privileges".to_owned()]);
            }
            Owners::Keep => {}
        }
        if section == Section::PostData && jobs > 1 {
            args.push(format!("--jobs={jobs}"));
        }
        // Parallel work wants the archive as a file; the list then comes by the standard input.
        args.push("--use-list=/dev/stdin".to_owned());
        let call = Call {
            program: "pg_restore",
            args,
            target: Some(self.target),
            stdin: Some(list.text.clone()),
            input_file: Some(self.archive.clone()),
        };
        let output = self.tools.run(self.ctx, call).await?;
        refused(&output).map_err(|reason| Error::Restore { section, reason })
    }
}

impl List {
    /// The entries that are of `kinds`.
    pub(super) fn of_kinds(&self, kinds: &[&str]) -> Self {
        self.filtered(|_, entry| kinds.iter().any(|kind| starts(entry, kind)))
    }

    /// The entries that are not of `kinds`, and those with these numbers.
    pub(super) fn without_kinds(&self, kinds: &[&str], but: &BTreeSet<u32>) -> Self {
        self.filtered(|number, entry| {
            but.contains(&number) || !kinds.iter().any(|kind| starts(entry, kind))
        })
    }

    fn filtered(&self, wanted: impl Fn(u32, &str) -> bool) -> Self {
        let mut text = Vec::with_capacity(self.text.len());
        for line in self.text.split_inclusive(|byte| *byte == b'\n') {
            let words = String::from_utf8_lossy(line);
            if entry(&words).is_some_and(|(number, entry)| wanted(number, entry)) {
                text.extend_from_slice(line);
            }
        }
        Self { text: Bytes::from(text), left_out: Vec::new() }
    }
}

fn filter(list: &[u8]) -> List {
    let mut left_out = Vec::new();
    let mut text = Vec::with_capacity(list.len());
    for line in list.split_inclusive(|byte| *byte == b'\n') {
        let words = String::from_utf8_lossy(line);
        let entry = entry(&words).map(|(_, entry)| entry);
        let acts = entry.is_some_and(|entry| ACTING.iter().any(|kind| starts(entry, kind)));
        if acts {
            left_out.extend(entry.map(|entry| entry.trim().to_lowercase()));
            continue;
        }
        text.extend_from_slice(line);
    }
    List { text: Bytes::from(text), left_out }
}

/// The number of a line of the list, and the kind, schema, name and owner after its two other numbers.
fn entry(line: &str) -> Option<(u32, &str)> {
    let (number, rest) = line.split_once("; ")?;
    let number = number.parse().ok()?;
    let mut words = rest.splitn(3, ' ');
    words.next()?.parse::<u64>().ok()?;
    words.next()?.parse::<u64>().ok()?;
    Some((number, words.next()?))
}

fn starts(entry: &str, kind: &str) -> bool {
    entry.strip_prefix(kind).is_some_and(|rest| rest.starts_with([' ', '\n']))
}

/// How each error of `pg_restore` begins; its words are English, see [`Tools`].
const ERROR: &str = "pg_restore: error: ";

/// And how it goes on where the server refused a statement of the archive.
const STATEMENT: &str = "could not execute query: ";

/// What was refused, if `pg_restore` came to its end. One that died half way has said nothing, or may
/// have said other things before.
fn refused(output: &Output) -> Result<Vec<Refusal>, String> {
    const END: &str = "errors ignored on restore: ";
    let Output { stderr, status, .. } = output;
    let refused = refusals(stderr);
    if *status == 0 || (!refused.is_empty() && stderr.contains(END)) {
        return Ok(refused);
    }
    let last = stderr.lines().rev().find_map(|line| line.strip_prefix(ERROR));
    Err(match last {
        Some(error) if !error.starts_with(STATEMENT) => error.to_owned(),
        None if !stderr.trim().is_empty() => stderr.trim().to_owned(),
        Some(_) | None => format!("`pg_restore` was ended before its end, with status {status}"),
    })
}

/// The errors in what `pg_restore` wrote: a message, then `Command was:` and the statement.
fn refusals(stderr: &str) -> Vec<Refusal> {
    const COMMAND: &str = "Command was: ";
    let mut refused: Vec<Refusal> = Vec::new();
    for line in stderr.lines() {
        if let Some(error) = line.strip_prefix(ERROR) {
            let message = match error.strip_prefix(STATEMENT) {
                Some(message) => message.split_once(":  ").map_or(message, |(_, message)| message),
                None => error,
            };
            refused.push(Refusal { message: message.to_owned(), command: String::new() });
        } else if let Some(command) = line.strip_prefix(COMMAND)
            && let Some(last) = refused.last_mut().filter(|last| last.command.is_empty())
        {
            command.clone_into(&mut last.command);
        }
    }
    refused
}

/// Whether a schema is refused because it is one of `made`, which extensions needed before. The list's
/// lines do not tell where a name ends and its owner begins, so they cannot be taken out there.
pub(super) fn is_made(refusal: &Refusal, made: &[String]) -> bool {
    let there = |schema: &String| refusal.message == format!("schema \"{schema}\" already exists");
    refusal.command.starts_with("CREATE SCHEMA ") && made.iter().any(there)
}

/// The one list of errors that do not count, with the reason for each.
pub(super) fn tolerated(refusal: &Refusal, ignored_extensions: &[String]) -> bool {
    let Refusal { message, command } = refusal;
    // A newer pg_dump sets what an older server does not know; nothing depends on it.
    (command.starts_with("SET ") && message.starts_with("unrecognized configuration parameter"))
        // Extensions belong to the superuser here; their comments are the extension's own.
        || (command.starts_with("COMMENT ON EXTENSION ") && message.starts_with("must be owner of"))
        // Left out because the configuration says so.
        || ignored_extensions.iter().any(|name| {
            let names_it = message.contains(&format!("extension \"{name}\""));
            names_it
                && (command.starts_with("CREATE EXTENSION ")
                    || command.starts_with("COMMENT ON EXTENSION "))
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Output, Refusal, filter, is_made, refusals, refused, tolerated};

    #[test]
    fn what_would_act_on_production_is_taken_out_of_the_list() {
        let list = b";\n; Archive created at x\n\
            6; 1418 16400 USER MAPPING - USER MAPPING alice SERVER far postgres\n\
            7; 1259 16391 TABLE public USER MAPPING postgres\n\
            8; 6104 1 PUBLICATION - p postgres\n9; 2615 16392 SCHEMA - ext2 owner\n";
        let filtered = filter(list);
        let text = String::from_utf8_lossy(&filtered.text);
        assert_eq!(
            text,
            ";\n; Archive created at x\n7; 1259 16391 TABLE public USER MAPPING postgres\n\
             9; 2615 16392 SCHEMA - ext2 owner\n"
        );
        assert_eq!(filtered.left_out.len(), 2);
    }

    #[test]
    fn a_list_is_taken_apart_by_kinds_and_numbers() {
        let list = filter(
            b";\n; Archive created at x\n7; 1259 16391 INDEX s i owner\n\
            8; 0 0 COMMENT s INDEX i owner\n9; 1259 16392 INDEX s j owner\n",
        );
        let text = |list: &super::List| String::from_utf8_lossy(&list.text).into_owned();
        let indexes = list.of_kinds(&["INDEX"]);
        assert_eq!(
            text(&indexes),
            "7; 1259 16391 INDEX s i owner\n9; 1259 16392 INDEX s j owner\n"
        );
        let rest = list.without_kinds(&["INDEX"], &BTreeSet::from([9]));
        assert_eq!(text(&rest), "8; 0 0 COMMENT s INDEX i owner\n9; 1259 16392 INDEX s j owner\n");
    }

    #[test]
    fn only_a_schema_that_was_made_before_may_be_there() {
        let refused = |message: &str, command: &str| Refusal {
            message: message.to_owned(),
            command: command.to_owned(),
        };
        let made = ["ext".to_owned()];
        let there = "schema \"ext\" already exists";
        assert!(is_made(&refused(there, "CREATE SCHEMA ext;"), &made));
        assert!(!is_made(&refused("schema \"ext 2\" already exists", "CREATE SCHEMA x;"), &made));
        assert!(!is_made(&refused(there, "CREATE TABLE ext.t ();"), &made));
    }

    #[test]
    fn only_a_restore_that_came_to_its_end_may_have_refused_statements() {
        let of = |status: i32, stderr: &str| {
            refused(&Output { stdout: Vec::new(), stderr: stderr.to_owned(), status })
        };
        let query = "pg_restore: while INITIALIZING:\n\
            pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \
            \"transaction_timeout\"\nCommand was: SET transaction_timeout = 0;\n\n";
        let end = "pg_restore: warning: errors ignored on restore: 1\n";
        let method = "pg_restore: error: could not set \"default_table_access_method\": ERROR:  access \
            method \"columnar\" does not exist\nCommand was: SET default_table_access_method = columnar;\n";
        assert_eq!(of(0, ""), Ok(Vec::new()));
        assert_eq!(of(1, &format!("{query}{end}")).map(|refused| refused.len()), Ok(1));
        let killed = "`pg_restore` was ended before its end, with status 137";
        assert_eq!(of(137, query), Err(killed.to_owned()));
        assert_eq!(of(137, "\n"), Err(killed.to_owned()));
        // What is no statement of the archive is no less an error.
        let both = of(1, &format!("{query}{method}{end}")).expect("it came to its end");
        assert!(tolerated(&both[0], &[]) && !tolerated(&both[1], &[]), "{both:?}");
        assert_eq!(both[1].command, "SET default_table_access_method = columnar;");
        let lost = "could not read from input file: end of file";
        assert_eq!(of(1, &format!("{query}pg_restore: error: {lost}\n")), Err(lost.to_owned()));
    }

    #[test]
    fn each_refused_statement_is_found_and_judged() {
        let stderr = "pg_restore: while PROCESSING TOC:\n\
            pg_restore: from TOC entry 9; 0 0 COMMENT EXTENSION hstore\n\
            pg_restore: error: could not execute query: ERROR:  must be owner of extension hstore\n\
            Command was: COMMENT ON EXTENSION hstore IS 'x';\n\n\n\
            pg_restore: error: could not execute query: ERROR:  function f() does not exist\n\
            LINE 1: create view\n\
            Command was: CREATE VIEW s.v AS\n SELECT s.f();\n\
            pg_restore: warning: errors ignored on restore: 2\n";
        let found = refusals(stderr);
        assert_eq!(found.len(), 2);
        assert!(tolerated(&found[0], &[]));
        assert_eq!(
            found[1],
            Refusal {
                message: "function f() does not exist".to_owned(),
                command: "CREATE VIEW s.v AS".to_owned()
            }
        );
        assert!(!tolerated(&found[1], &[]));
    }
}
