//! Which statements cannot run inside of a transaction, and which end one.

use crate::pg::SqlError;
use crate::pg::lexer::{Statement, Token, TokenKind};

/// The first words outside of parentheses decide; more are never needed.
const WORDS: usize = 16;

/// Whether the server refuses the statement in a transaction block. More are known than Flyway knows
/// (`reindex table concurrently`, `alter table … detach partition concurrently`, a bare `cluster`).
pub(super) fn needs_none(statement: &Statement<'_>, server_version: i32) -> bool {
    let words = words(statement.tokens());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["create" | "drop", "database" | "tablespace" | "subscription", ..]
        | ["alter", "system", ..]
        | ["create" | "drop", "index", "concurrently", ..]
        | ["create", "unique", "index", "concurrently", ..]
        | ["discard", "all"]
        | ["vacuum", ..]
        | ["cluster"]
        | ["cluster", "verbose"] => true,
        ["reindex", rest @ ..] => {
            let rest = rest.strip_prefix(&["verbose"]).unwrap_or(rest);
            let has_option = has_reindex_option(statement.tokens());
            has_option
                || matches!(rest, ["schema" | "database" | "system", ..])
                || matches!(rest, ["table" | "index", "concurrently", ..])
        }
        ["alter", "table", rest @ ..] => {
            rest.contains(&"detach") && rest.last() == Some(&"concurrently")
        }
        ["alter", "database", rest @ ..] => {
            rest.windows(2).any(|pair| pair == ["set", "tablespace"])
        }
        ["alter", "type", rest @ ..] => {
            server_version < 120_000 && rest.windows(2).any(|pair| pair == ["add", "value"])
        }
        _ => false,
    }
}

/// Whether the statement gives back every session lock: ours is one.
pub(super) fn drops_locks(statement: &Statement<'_>) -> bool {
    let tokens = statement.tokens();
    tokens.iter().any(|token| token.is_word("pg_advisory_unlock_all"))
        || matches!(tokens, [first, second, ..] if first.is_word("discard") && second.is_word("all"))
}

/// Whether the statement says itself how long it waits for a lock, or that it does not wait.
pub(super) fn sets_own_timeout(statement: &Statement<'_>) -> bool {
    let tokens = statement.tokens();
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(word));
    let named = if is(1, "local") || is(1, "session") { 2 } else { 1 };
    let sets = (is(0, "set") || is(0, "reset")) && is(named, "lock_timeout");
    let calls = tokens.windows(3).any(|three| {
        three[0].is_word("set_config")
            && three[1].is_punct("(")
            && three[2].kind == TokenKind::String
            && three[2].value.eq_ignore_ascii_case("lock_timeout")
    });
    // The body of a block is one string; to look for the name in it is enough.
    let runs = is(0, "do") && tokens.iter().any(|token| mentions(token, "lock_timeout"));
    let mut at_nowait =
        tokens.iter().enumerate().filter(|(_, token)| token.is_word("nowait")).map(|(at, _)| at);
    sets || calls || runs || at_nowait.any(|at| is_nowait_clause(tokens, at))
}

fn mentions(token: &Token<'_>, name: &str) -> bool {
    token.kind == TokenKind::String && token.value.to_ascii_lowercase().contains(name)
}

/// Whether the word `nowait` at `at` is the clause of `lock table`, of `for update` and its like, or of
/// `alter … all in tablespace`; else it is a name.
fn is_nowait_clause(tokens: &[Token<'_>], at: usize) -> bool {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(word));
    let is_last = at + 1 == tokens.len();
    if is(0, "lock") {
        let follows_name = at > 0
            && tokens[at - 1].name().is_some()
            && !(is(at - 1, "table") || is(at - 1, "only") || at == 1);
        return is_last && (follows_name || tokens[at - 1].is_punct("*"));
    }
    if is(0, "alter") {
        return is_last && tokens.iter().any(|token| token.is_word("tablespace"));
    }
    // Back over the names of `of a, b`.
    let mut strength = at;
    while strength > 0 && is_of_list(&tokens[strength - 1]) {
        strength -= 1;
    }
    let of = (0..at).rev().find(|&at| is(at, "of"));
    if let Some(of) = of.filter(|&of| of >= strength && of + 1 < at) {
        // A comma or a dot before it makes it one of the names.
        return tokens[at - 1].name().is_some() && is_strength(tokens, of);
    }
    is_strength(tokens, at)
}

fn is_of_list(token: &Token<'_>) -> bool {
    token.name().is_some() || token.is_punct(",") || token.is_punct(".")
}

/// Whether `for update`, `for no key update`, `for share` or `for key share` stands before `at`.
fn is_strength(tokens: &[Token<'_>], at: usize) -> bool {
    let before: Vec<&str> = tokens[at.saturating_sub(4)..at]
        .iter()
        .map(|token| if token.kind == TokenKind::Word { &*token.value } else { "" })
        .collect();
    before.ends_with(&["for", "update"])
        || before.ends_with(&["for", "share"])
        || before.ends_with(&["for", "key", "share"])
        || before.ends_with(&["for", "no", "key", "update"])
}

/// Whether the statement waits for others without holding anybody up, and is worse given up than
/// waited for: an index that is built, dropped or rebuilt `concurrently` is left invalid.
pub(super) fn builds_beside(statement: &Statement<'_>) -> bool {
    let words = words(statement.tokens());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["create" | "drop", "index", "concurrently", ..]
        | ["create", "unique", "index", "concurrently", ..] => true,
        ["reindex", rest @ ..] => {
            rest.contains(&"concurrently") || has_reindex_option(statement.tokens())
        }
        ["alter", "table", rest @ ..] => {
            rest.contains(&"detach") && rest.last() == Some(&"concurrently")
        }
        _ => false,
    }
}

/// Whether the statement is sure to leave role and search path alone: plain definitions, which call
/// nothing that could set them.
pub(super) fn keeps_session(statement: &Statement<'_>) -> bool {
    let words = words(statement.tokens());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // `create table … as` runs a query.
    let runs_query = words.contains(&"as") || statement.copy_data.is_some();
    let defines = matches!(
        words.as_slice(),
        ["create", "table" | "index" | "sequence" | "type", ..]
            | ["create", "unique", "index", ..]
            | ["drop", "table" | "index" | "sequence" | "type" | "view", ..]
            | ["comment", "on", ..]
    );
    defines && !runs_query
}

/// Whether the statement begins a transaction of the script's own.
pub(super) fn begins_transaction(statement: &Statement<'_>) -> bool {
    let first = &statement.tokens()[0];
    first.is_word("begin") || first.is_word("start")
}

/// Whether the server runs the statement in a transaction that has failed as well. It refuses all
/// others there (`IsTransactionExitStmt` in its `postgres.c`), and of several in one message all from
/// the first that it refuses: nothing else undoes a failure.
pub(super) fn runs_after_failure(statement: &Statement<'_>) -> bool {
    let words = words(statement.tokens());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    matches!(
        words.as_slice(),
        ["commit" | "end" | "rollback" | "abort", ..] | ["prepare", "transaction", ..]
    )
}

/// Whether the transaction is over after the statement: `commit`, `end`, `rollback`, `abort`,
/// `prepare transaction`; `and chain` starts the next one itself.
pub(super) fn ends_transaction(statement: &Statement<'_>) -> bool {
    let words = words(statement.tokens());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["rollback" | "abort", rest @ ..] if rest.contains(&"to") => false,
        ["commit" | "rollback", "prepared", ..] => false,
        ["prepare", "transaction", ..] => true,
        ["commit" | "end" | "rollback" | "abort", rest @ ..] => {
            !rest.ends_with(&["and", "chain"]) || rest.ends_with(&["and", "no", "chain"])
        }
        _ => false,
    }
}

/// Whether the statement ends the transaction and begins the next one itself.
pub(super) fn chains_transaction(statement: &Statement<'_>) -> bool {
    let words = words(statement.tokens());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["commit" | "end" | "rollback" | "abort", rest @ ..] => {
            rest.ends_with(&["and", "chain"]) && !rest.contains(&"to")
        }
        _ => false,
    }
}

/// Whether the statement makes what ran before it stay: `commit` and `end`, however they go on, and
/// `prepare transaction`.
pub(super) fn commits(statement: &Statement<'_>) -> bool {
    let words = words(statement.tokens());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["commit" | "end", rest @ ..] => rest.first() != Some(&"prepared"),
        ["prepare", "transaction", ..] => true,
        _ => false,
    }
}

/// Whether the statement was the end of its transaction although it failed: a `commit` that met a
/// deferred constraint. A position has only what did not even parse.
pub(super) fn ends_though_failed(statement: &Statement<'_>, error: &SqlError) -> bool {
    let ends = ends_transaction(statement) || chains_transaction(statement);
    ends && error.position.is_none()
}

/// Whether the script ends its transaction itself, so that another one is open at its own end.
pub(super) fn ends_its_transaction(statements: &[Statement<'_>]) -> bool {
    statements.iter().any(|one| ends_transaction(one) || chains_transaction(one))
}

/// The first words outside of parentheses; a quoted name counts as an empty one.
fn words(tokens: &[Token<'_>]) -> Vec<String> {
    let mut depth = 0_u32;
    let mut words = Vec::new();
    for token in tokens {
        match token.kind {
            TokenKind::Punct if token.text == "(" => depth += 1,
            TokenKind::Punct if token.text == ")" => depth = depth.saturating_sub(1),
            TokenKind::Word if depth == 0 => words.push(token.value.clone().into_owned()),
            TokenKind::QuotedIdent if depth == 0 => words.push(String::new()),
            TokenKind::Word
            | TokenKind::QuotedIdent
            | TokenKind::String
            | TokenKind::BitString
            | TokenKind::Number
            | TokenKind::Param
            | TokenKind::Operator
            | TokenKind::Punct
            | TokenKind::Other => {}
        }
        if words.len() == WORDS {
            break;
        }
    }
    words
}

/// `reindex (concurrently) …`, with whatever else stands in the parentheses; `concurrently false`
/// and `concurrently off` turn it off.
fn has_reindex_option(tokens: &[Token<'_>]) -> bool {
    if !tokens.get(1).is_some_and(|token| token.is_punct("(")) {
        return false;
    }
    let options: Vec<&Token<'_>> =
        tokens[2..].iter().take_while(|token| !token.is_punct(")")).collect();
    let Some(at) = options.iter().position(|token| token.is_word("concurrently")) else {
        return false;
    };
    let value = options.get(at + 1).map(|token| token.value.to_ascii_lowercase());
    !matches!(value.as_deref(), Some("false" | "off" | "0"))
}

#[cfg(test)]
mod tests {
    use super::{
        chains_transaction, commits, ends_transaction, keeps_session, needs_none,
        runs_after_failure, sets_own_timeout,
    };
    use crate::pg::lexer::split;

    fn alone(sql: &str, server_version: i32) -> bool {
        needs_none(&split(sql).expect("lexes")[0], server_version)
    }

    #[test]
    fn statements_that_stand_alone_are_recognised() {
        for sql in [
            "CREATE INDEX CONCURRENTLY a ON t (b)",
            "create /* x */ unique index\nconcurrently if not exists a on t (b)",
            "drop index concurrently a",
            "reindex schema s",
            "reindex (verbose) database d",
            "reindex verbose system d",
            "reindex table concurrently t",
            "reindex (concurrently) index i",
            "reindex (verbose, concurrently true) index i",
            "vacuum",
            "vacuum (analyze) t",
            "cluster",
            "cluster verbose",
            "create database d",
            "drop tablespace t",
            "create subscription s connection '' publication p",
            "alter system set a = 1",
            "alter table a.t detach partition p concurrently",
            "alter database d set tablespace t",
            "discard all",
        ] {
            assert!(alone(sql, 150_000), "{sql}");
        }
    }

    #[test]
    fn statements_that_only_look_like_them_are_not() {
        for sql in [
            "create index concurrently_a on t (b)",
            "create table vacuum (id int)",
            "insert into t values ('vacuum')",
            "reindex table t",
            "reindex (concurrently false) table t",
            "refresh materialized view concurrently v",
            "cluster t using i",
            "alter table t detach partition p",
            "alter table t detach partition p finalize",
            "alter database d set a = 1",
            "alter type e add value 'x'",
            "discard plans",
            "select 1",
        ] {
            assert!(!alone(sql, 150_000), "{sql}");
        }
        assert!(alone("alter type s.e add value if not exists 'x'", 110_000));
    }

    #[test]
    fn a_wait_that_the_script_sets_itself_is_told_from_names() {
        let sets = |sql: &str| sets_own_timeout(&split(sql).expect("lexes")[0]);
        for sql in [
            "set lock_timeout = '1s'",
            "SET LOCAL lock_timeout TO 100",
            "reset lock_timeout",
            "select set_config('lock_timeout', '1s', true)",
            "do $$ begin set local lock_timeout = '1s'; end $$",
            "lock table a in exclusive mode nowait",
            "lock a nowait",
            "lock nowait nowait",
            "select * from a for update nowait",
            "select * from a for no key update of a, s.b nowait",
            "insert into b select * from a for key share nowait",
            "with x as (select * from a for share nowait) select 1 from x",
            "alter table all in tablespace x set tablespace y nowait",
        ] {
            assert!(sets(sql), "{sql}");
        }
        for sql in [
            "create table a (nowait int, lock_timeout int)",
            "select nowait from a",
            "select a as nowait",
            "alter table a add column nowait int",
            "alter table a rename x to nowait",
            "update a set lock_timeout = 1",
            "lock nowait",
            "lock table nowait",
            "lock table a, nowait",
            "select * from a for update of nowait",
            "select * from a for update of a, nowait",
            "comment on table a is 'nowait'",
            "select 'lock_timeout'",
        ] {
            assert!(!sets(sql), "{sql}");
        }
    }

    #[test]
    fn only_plain_definitions_leave_the_session_alone() {
        let keeps = |sql: &str| keeps_session(&split(sql).expect("lexes")[0]);
        for sql in [
            "create table t (id int default f())",
            "create unique index i on t (a)",
            "comment on table t is 'x'",
            "drop table t",
        ] {
            assert!(keeps(sql), "{sql}");
        }
        for sql in [
            "create table t as select f()",
            "set role a",
            "insert into t select f()",
            "alter table t add a int default f()",
            "create function f() returns int language sql as 'select 1'",
            "create schema s",
            "do $$ begin set role a; end $$",
            "reset all",
        ] {
            assert!(!keeps(sql), "{sql}");
        }
    }

    #[test]
    fn ends_of_transactions_are_recognised() {
        let ends = |sql: &str| ends_transaction(&split(sql).expect("lexes")[0]);
        for sql in [
            "commit",
            "END",
            "rollback work",
            "abort",
            "commit and no chain",
            "prepare transaction 'x'",
        ] {
            assert!(ends(sql), "{sql}");
        }
        for sql in
            ["rollback to a", "commit and chain", "begin", "rollback prepared 'x'", "select 1"]
        {
            assert!(!ends(sql), "{sql}");
        }
        let chains = |sql: &str| chains_transaction(&split(sql).expect("lexes")[0]);
        assert!(chains("commit and chain") && chains("rollback work and chain"));
        assert!(!chains("commit") && !chains("commit and no chain") && !chains("select 1"));
        assert!(commits(&split("commit and chain").expect("lexes")[0]));
        assert!(commits(&split("prepare transaction 'x'").expect("lexes")[0]));
        assert!(!commits(&split("rollback").expect("lexes")[0]));
    }

    #[test]
    fn what_runs_in_a_failed_transaction_is_recognised() {
        let runs = |sql: &str| runs_after_failure(&split(sql).expect("lexes")[0]);
        for sql in [
            "rollback to s",
            "ROLLBACK WORK TO SAVEPOINT s",
            "/* back */ rollback transaction to \"S\"",
            "rollback and chain",
            "abort",
            "commit",
            "end and chain",
            "prepare transaction 'x'",
        ] {
            assert!(runs(sql), "{sql}");
        }
        for sql in ["savepoint s", "release s", "begin", "prepare p as select 1", "select 1"] {
            assert!(!runs(sql), "{sql}");
        }
    }
}
