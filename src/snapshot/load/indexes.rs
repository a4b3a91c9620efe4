//! Statements that build indexes and constraints, and what each of them has to wait for. Pure.
//!
//! `pg_restore` begins them when all rows are in, one table's worth per process; taken apart here,
//! those of a table begin as soon as its own rows are in, while other tables are still loading. What
//! cannot be told from a statement's first words waits for everything before it. What needs something
//! that the archive makes after the rows is refused when its turn comes; by its entry it is then left to
//! `pg_restore`, which knows the order.

use super::super::manifest::QualifiedName;
use crate::pg::lexer::{self, LexError, Statement, Token};
use crate::pg::quote;

/// Kinds of entries of an archive that are taken from `pg_restore`.
pub(in super::super) const KINDS: [&str; 4] =
    ["INDEX", "CONSTRAINT", "INDEX ATTACH", "FK CONSTRAINT"];

/// How a statement locks a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// Others of this kind may run beside it: CREATE INDEX.
    Shared,
    Exclusive,
}

/// One statement, and the tables that have to be complete before it. `entry`: the number of the archive's
/// entry that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub sql: String,
    pub entry: Option<u32>,
    pub locks: Vec<(QualifiedName, Lock)>,
    /// It calls functions, which may read any table: every row has to be in.
    pub after_all_rows: bool,
    /// It sorts the table's rows: a B-tree.
    pub sorts: bool,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Index,
    /// A plain primary key or unique constraint, as two statements: see [`Job::beside_others`].
    Key {
        index: String,
        constraint: String,
    },
    /// It needs the unique index of the table that it refers to. `columns` are those that refer.
    ForeignKey {
        columns: Vec<String>,
    },
}

impl Job {
    pub fn is_foreign_key(&self) -> bool {
        matches!(self.kind, Kind::ForeignKey { .. })
    }

    /// The job as two, where that is possible: an index that others of the table may be built beside,
    /// and the constraint that takes it over at once.
    pub fn beside_others(&self) -> Option<(Self, Self)> {
        let Kind::Key { index, constraint } = &self.kind else { return None };
        let (table, _) = self.locks.first()?;
        let first = Self {
            sql: index.clone(),
            entry: self.entry,
            locks: vec![(table.clone(), Lock::Shared)],
            after_all_rows: self.after_all_rows,
            sorts: true,
            kind: Kind::Index,
        };
        let second = Self {
            sql: constraint.clone(),
            entry: self.entry,
            locks: self.locks.clone(),
            after_all_rows: self.after_all_rows,
            sorts: false,
            kind: Kind::Index,
        };
        Some((first, second))
    }
}

/// A statement that says nothing of what it waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct After {
    pub sql: String,
    pub entry: Option<u32>,
}

/// What builds indexes and constraints.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    pub jobs: Vec<Job>,
    /// Run after all jobs on tables, in this order: attachments of indexes, settings of columns.
    pub after: Vec<After>,
}

/// Takes the script apart that `pg_restore --verbose` writes for [`KINDS`].
///
/// # Errors
/// Text that is no SQL.
pub(super) fn parse(script: &str) -> Result<Indexes, LexError> {
    // Newer versions put the rows' guard against psql around a script; it is no SQL.
    let script: String = script
        .split_inclusive('\n')
        .filter(|line| !(line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ")))
        .collect();
    let mut indexes = Indexes::default();
    let mut entry = None;
    for statement in lexer::split(&script)? {
        // What follows in the same entry (`cluster on`) has no head of its own.
        entry = begun(&statement).or(entry);
        let words: Vec<&str> = statement.leading_words().take(2).collect();
        if matches!(words.as_slice(), ["set", ..] | ["select", ..]) {
            // Settings of the script; our sessions have them.
            continue;
        }
        match job(&statement, entry) {
            Some(job) => indexes.jobs.push(job),
            None => indexes.after.push(After { sql: sql(&statement), entry }),
        }
    }
    Ok(indexes)
}

/// The comments before a statement, and the statement.
fn parts<'s>(statement: &Statement<'s>) -> (&'s str, &'s str) {
    let tokens = statement.tokens();
    let comments = tokens.first().map_or(0, |first| first.offset - statement.offset);
    statement.text.split_at(comments)
}

fn sql(statement: &Statement<'_>) -> String {
    parts(statement).1.to_owned()
}

/// The entry that begins with this statement. Names in its comment hold no line breaks.
fn begun(statement: &Statement<'_>) -> Option<u32> {
    let (comments, _) = parts(statement);
    comments.lines().rev().find_map(|line| {
        let (number, _) = line.strip_prefix("-- TOC entry ")?.split_once(' ')?;
        number.parse().ok()
    })
}

fn job(statement: &Statement<'_>, entry: Option<u32>) -> Option<Job> {
    let tokens = statement.tokens();
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(word));
    if word(0, "create") && (word(1, "index") || word(1, "unique") && word(2, "index")) {
        // `create index concurrently` is nothing that an archive holds; names are never qualified.
        let on = if word(1, "unique") { 4 } else { 3 };
        if !word(on, "on") {
            return None;
        }
        let (table, rest) = table(tokens, on + 1)?;
        let locks = vec![(table, Lock::Shared)];
        let after_all_rows = calls_functions(&tokens[rest..]);
        // An archive always names the access method.
        let sorts = word(rest, "using") && word(rest + 1, "btree");
        let kind = Kind::Index;
        return Some(Job { sql: sql(statement), entry, locks, after_all_rows, sorts, kind });
    }
    if !(word(0, "alter") && word(1, "table")) {
        return None;
    }
    let (altered, add) = table(tokens, 2)?;
    if !(word(add, "add") && word(add + 1, "constraint")) {
        return None;
    }
    let mut locks = vec![(altered, Lock::Exclusive)];
    let after_all_rows = word(add + 3, "exclude");
    let kind = if word(add + 3, "foreign") {
        let references = tokens.iter().position(|token| token.is_word("references"))?;
        let (other, _) = table(tokens, references + 1)?;
        if other != locks[0].0 {
            locks.push((other, Lock::Exclusive));
        }
        Kind::ForeignKey { columns: columns(tokens.get(add + 5..references)?)? }
    } else if word(add + 3, "primary") || word(add + 3, "unique") {
        key(tokens, add).unwrap_or(Kind::Index)
    } else if after_all_rows {
        Kind::Index
    } else {
        return None;
    };
    let sorts = word(add + 3, "primary") || word(add + 3, "unique");
    Some(Job { sql: sql(statement), entry, locks, after_all_rows, sorts, kind })
}

/// Whether more than names stands in what follows the table of an index: an expression, a condition,
/// or the parameters of an operator class, which nobody misses anything by taking for one.
fn calls_functions(tokens: &[Token<'_>]) -> bool {
    let mut depth = 0;
    tokens.iter().any(|token| {
        if token.is_punct("(") {
            depth += 1;
        } else if token.is_punct(")") {
            depth -= 1;
        }
        depth > 1 || token.is_word("where")
    })
}

/// `alter table t add constraint c primary key (a, b)` without anything more, as two statements.
fn key(tokens: &[Token<'_>], add: usize) -> Option<Kind> {
    let name = tokens.get(add + 2)?.name()?;
    let is_primary = tokens.get(add + 3)?.is_word("primary");
    let list = add + if is_primary { 5 } else { 4 };
    let columns = columns(tokens.get(list..)?)?;
    let (table, _) = table(tokens, 2)?;
    let quoted = quote::qualified(&table.schema, &table.name);
    let columns: Vec<String> = columns.iter().map(|column| quote::ident(column)).collect();
    let (name, kind) = (quote::ident(name), if is_primary { "primary key" } else { "unique" });
    Some(Kind::Key {
        index: format!("create unique index {name} on {quoted} ({})", columns.join(", ")),
        constraint: format!(
            "alter table only {quoted} add constraint {name} {kind} using index {name}"
        ),
    })
}

/// The names in `(a, b)`; `None` when anything else stands there or after it.
fn columns(tokens: &[Token<'_>]) -> Option<Vec<String>> {
    let (first, rest) = tokens.split_first()?;
    let (last, names) = rest.split_last()?;
    if !(first.is_punct("(") && last.is_punct(")")) {
        return None;
    }
    names
        .split(|token| token.is_punct(","))
        .map(|name| match name {
            [name] => name.name().map(str::to_owned),
            _ => None,
        })
        .collect()
}

/// `[only] schema.table`, and the place of what comes after it.
fn table(tokens: &[Token<'_>], mut at: usize) -> Option<(QualifiedName, usize)> {
    if tokens.get(at)?.is_word("only") {
        at += 1;
    }
    let schema = tokens.get(at)?.name()?.to_owned();
    if !tokens.get(at + 1)?.is_punct(".") {
        return None;
    }
    let name = tokens.get(at + 2)?.name()?.to_owned();
    Some((QualifiedName { schema, name }, at + 3))
}

#[cfg(test)]
mod tests {
    use super::{Indexes, Kind, Lock, QualifiedName, parse};

    fn name(schema: &str, name: &str) -> QualifiedName {
        QualifiedName { schema: schema.to_owned(), name: name.to_owned() }
    }

    fn after(indexes: &Indexes) -> Vec<&str> {
        indexes.after.iter().map(|after| after.sql.as_str()).collect()
    }

    #[test]
    fn each_statement_knows_the_entry_that_it_belongs_to() {
        let script = "SET x = 1;\n\n--\n-- TOC entry 3399 (class 1259 OID 5)\n-- Dependencies: 217\n\
            -- Name: i; Type: INDEX; Schema: s; Owner: -\n--\n\n\
            CREATE INDEX i ON s.t USING btree (a);\n\nALTER TABLE s.t CLUSTER ON i;\n\n\n\
            --\n-- TOC entry 12 (class 2606 OID 6)\n-- Name: t k; Type: CONSTRAINT\n--\n\n\
            ALTER TABLE ONLY s.t\n    ADD CONSTRAINT k PRIMARY KEY (a);\n";
        let indexes = parse(script).expect("SQL");
        let entries: Vec<Option<u32>> = indexes.jobs.iter().map(|job| job.entry).collect();
        assert_eq!(entries, [Some(3399), Some(12)]);
        assert_eq!(indexes.after[0].entry, Some(3399));
        assert_eq!(after(&indexes), ["ALTER TABLE s.t CLUSTER ON i"]);
        let (index, constraint) = indexes.jobs[1].beside_others().expect("a plain key");
        assert_eq!((index.entry, constraint.entry), (Some(12), Some(12)));
    }

    #[test]
    fn each_statement_knows_its_tables_and_the_others_come_after() {
        let script = "\\restrict abc\n-- x\nSET default_tablespace = '';\n\
            SELECT pg_catalog.set_config('search_path', '', false);\n\n--\n-- Name: a\n--\n\n\
            CREATE UNIQUE INDEX \"on\" ON ONLY s.\"t;1\" USING btree (a) WHERE (b = ';');\n\
            ALTER TABLE s.\"t;1\" CLUSTER ON \"on\";\n\
            ALTER TABLE ONLY s.t2\n    ADD CONSTRAINT \"add\" PRIMARY KEY (a);\n\
            ALTER TABLE ONLY s.t2 ADD CONSTRAINT fk FOREIGN KEY (b) REFERENCES public.t3(a) NOT VALID;\n\
            ALTER TABLE s.p ADD CONSTRAINT self FOREIGN KEY (b) REFERENCES s.p(a);\n\
            ALTER INDEX s.i ATTACH PARTITION s.j;\n\
            ALTER TABLE ONLY s.t2 ADD CONSTRAINT c CHECK ((a > 0)) NOT VALID;\n\\unrestrict abc\n";
        let indexes = parse(script).expect("SQL");
        let jobs: Vec<_> =
            indexes.jobs.iter().map(|job| (job.locks.clone(), job.is_foreign_key())).collect();
        assert_eq!(
            jobs,
            [
                (vec![(name("s", "t;1"), Lock::Shared)], false),
                (vec![(name("s", "t2"), Lock::Exclusive)], false),
                (
                    vec![
                        (name("s", "t2"), Lock::Exclusive),
                        (name("public", "t3"), Lock::Exclusive)
                    ],
                    true
                ),
                (vec![(name("s", "p"), Lock::Exclusive)], true),
            ]
        );
        assert!(indexes.jobs[0].sql.starts_with("CREATE UNIQUE"), "{}", indexes.jobs[0].sql);
        assert_eq!(indexes.jobs[2].kind, Kind::ForeignKey { columns: vec!["b".to_owned()] });
        let sorts: Vec<bool> = indexes.jobs.iter().map(|job| job.sorts).collect();
        assert_eq!(sorts, [true, true, false, false]);
        let (index, constraint) = indexes.jobs[1].beside_others().expect("a plain key");
        assert!(index.sorts && !constraint.sorts);
        assert_eq!(index.sql, "create unique index \"add\" on \"s\".\"t2\" (\"a\")");
        assert_eq!(
            constraint.sql,
            "alter table only \"s\".\"t2\" add constraint \"add\" primary key using index \"add\""
        );
        for other in [
            "primary key (a) include (b)",
            "unique nulls not distinct (a)",
            "unique (a) deferrable",
            "primary key (a) with (fillfactor = '70')",
        ] {
            let script = format!("alter table only s.t add constraint c {other};");
            let jobs = parse(&script).expect("SQL").jobs;
            assert_eq!(jobs[0].kind, Kind::Index, "{other}");
        }
        assert_eq!(
            after(&indexes),
            [
                "ALTER TABLE s.\"t;1\" CLUSTER ON \"on\"",
                "ALTER INDEX s.i ATTACH PARTITION s.j",
                "ALTER TABLE ONLY s.t2 ADD CONSTRAINT c CHECK ((a > 0)) NOT VALID",
            ]
        );
    }

    #[test]
    fn a_table_may_be_called_as_what_follows_it() {
        let script = "ALTER TABLE ONLY public.add ADD CONSTRAINT add_pkey PRIMARY KEY (id);\n\
            CREATE INDEX add ON public.add USING btree (a);\n\
            ALTER TABLE ONLY public.t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES public.add(id);";
        let indexes = parse(script).expect("SQL");
        assert_eq!(after(&indexes), [""; 0]);
        let tables: Vec<&QualifiedName> = indexes.jobs.iter().map(|job| &job.locks[0].0).collect();
        assert_eq!(tables, [&name("public", "add"), &name("public", "add"), &name("public", "t")]);
        assert_eq!(indexes.jobs[2].locks[1].0, name("public", "add"));
    }

    #[test]
    fn what_calls_functions_waits_for_every_row() {
        for (statement, waits) in [
            ("create index i on s.t using btree (a, b desc nulls last)", false),
            ("create index i on only s.t using btree (a text_pattern_ops) include (b)", false),
            ("create unique index i on s.t using btree (a) with (fillfactor='70')", false),
            ("create index i on s.t using btree (lower(a))", true),
            ("create index i on s.t using btree (((a + 1)))", true),
            ("create index i on s.t using btree (a) where s.f(a)", true),
            ("alter table only s.t add constraint e exclude using gist (a with &&)", true),
            ("alter table only s.t add constraint k primary key (a)", false),
        ] {
            let jobs = parse(&format!("{statement};")).expect("SQL").jobs;
            assert_eq!(jobs[0].after_all_rows, waits, "{statement}");
        }
    }

    #[test]
    fn an_index_without_a_name_of_its_own_or_on_an_odd_place_is_left_in_order() {
        let indexes = parse("create index on t (a); alter table t add constraint c unique (a);")
            .expect("SQL");
        assert!(indexes.jobs.is_empty());
        assert_eq!(indexes.after.len(), 2);
    }
}
