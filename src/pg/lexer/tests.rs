use proptest::prelude::{ProptestConfig, Strategy, prop, prop_oneof, proptest};
use proptest::{prop_assert, prop_assert_eq};

use super::{LexErrorKind, TokenKind, locate, split, tokens};

fn texts(sql: &str) -> Vec<&str> {
    split(sql).expect("lexes").into_iter().map(|statement| statement.text).collect()
}

fn values(sql: &str) -> Vec<(TokenKind, String)> {
    let tokens = tokens(sql).expect("lexes");
    tokens.into_iter().map(|token| (token.kind, token.value.into_owned())).collect()
}

fn value(sql: &str) -> String {
    let tokens = tokens(sql).expect("lexes");
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    tokens[0].value.clone().into_owned()
}

fn failure(sql: &str) -> (LexErrorKind, u32, u32) {
    let error = split(sql).expect_err("does not lex");
    (error.kind, error.line, error.column)
}

#[test]
fn a_semicolon_ends_a_statement_only_outside_of_quotes_comments_and_bodies() {
    let whole = [
        "select 'a;''b;'",
        "select E'a\\';b'",
        "select e'a\\';b'",
        "select U&'\\0061;' uescape '!'",
        "select \"a;\"\"b\"",
        "select $$a;'b$$",
        "select $t$ $a$ ; $tt$ ; $t$",
        "select 'a' -- it's; here\n'b;'",
        "select E'a'\n  'b\\';'",
        "select /* a /* b; */ ; */ 1",
        "select 1 -- a;\n, 2",
        "select a$1$b",
        "create rule r as on insert to t do also (insert into u values (1); select 1;)",
        "create function f() returns int begin atomic select 1; select 2; end",
        "create or replace function f() returns int language sql BEGIN\nATOMIC select case when true \
         then case 1 when 1 then 2 end else 3 end; end",
        "create procedure p() begin atomic select 1 as end; select t.end from t; end",
        "create function f(a int) returns int begin atomic select $1; end",
    ];
    for sql in whole {
        assert_eq!(texts(sql), [sql], "{sql}");
        assert_eq!(texts(&format!("{sql};\n;; select 2")), [sql, "select 2"], "{sql}");
    }
}

#[test]
fn words_that_only_look_like_a_body_do_not_open_one() {
    assert_eq!(texts("begin; select 1; end"), ["begin", "select 1", "end"]);
    assert_eq!(texts("select 1 as begin, 2 as atomic; select 2").len(), 2);
    assert_eq!(texts("select begin atomic from t; select 2").len(), 2);
    assert_eq!(texts("create table atomic (id int); create table t (begin int)").len(), 2);
    assert_eq!(texts("select $1; select $2").len(), 2);
    assert_eq!(texts("select 1)); select 2").len(), 2);
    assert_eq!(texts("select 'a\\'; select 2").len(), 2);
}

#[test]
fn backslashes_follow_standard_conforming_strings() {
    let sql = "set standard_conforming_strings = off; select 'it\\'s; ok'; \
               SET LOCAL standard_conforming_strings TO on; select 'a\\'; select 2";
    assert_eq!(texts(sql).len(), 5);
}

#[test]
fn comments_before_a_statement_belong_to_it_and_lone_ones_are_dropped() {
    let statements =
        split("\u{feff}-- head\n/* x */\n  select 1 -- tail\n;\n-- end").expect("lexes");
    assert_eq!(statements.len(), 1);
    assert_eq!(statements[0].text, "-- head\n/* x */\n  select 1 -- tail");
    assert_eq!((statements[0].line, statements[0].column), (3, 3));
    assert_eq!(statements[0].offset, 3);
    assert_eq!(statements[0].tokens()[1].column, 10);
}

#[test]
fn positions_count_characters_and_every_kind_of_line_end() {
    let statements = split("select 'é';\r\nselect 1;\rselect\n 2;").expect("lexes");
    let places: Vec<_> = statements.iter().map(|one| (one.line, one.column)).collect();
    assert_eq!(places, [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(statements[2].tokens()[1].line, 4);
    assert_eq!(tokens("'é' x").expect("lexes")[1].column, 5);
    assert_eq!(locate("a\r\né x", 6), (2, 3));
}

#[test]
fn copy_takes_its_rows_up_to_the_end_marker() {
    let sql =
        "-- load\nCOPY t (a, b) FROM STDIN WITH (format csv); -- here\n1;'a\n\n\\.\nselect 2;";
    let statements = split(sql).expect("lexes");
    assert_eq!(statements[0].text, "-- load\nCOPY t (a, b) FROM STDIN WITH (format csv)");
    let data = statements[0].copy_data.expect("has rows");
    assert_eq!((data.rows, data.line), ("1;'a\n\n", 3));
    assert_eq!(&sql[data.offset..data.offset + 4], "1;'a");
    assert_eq!((statements[1].text, statements[1].line), ("select 2", 6));

    for sql in
        ["copy t from stdin;\n\\.\n", "copy t from stdin;\r\n\\.\r\n", "copy t from stdin;\n \\. "]
    {
        assert_eq!(split(sql).expect("lexes")[0].copy_data.expect("has rows").rows, "");
    }
    for sql in ["copy t to stdout;", "copy t from '/f';", "copy (select 1 from stdin) to stdout"] {
        assert!(split(sql).expect("lexes")[0].copy_data.is_none());
    }
}

#[test]
fn what_cannot_be_taken_apart_is_refused_where_it_begins() {
    let cases = [
        ("select 1;\n  'a;", LexErrorKind::UnterminatedString, 2, 3),
        ("select \"a;", LexErrorKind::UnterminatedIdentifier, 1, 8),
        ("select 1;\n/* a /* */", LexErrorKind::UnterminatedComment, 2, 1),
        ("select $t$ $$", LexErrorKind::UnterminatedDollarQuote("$t$".to_owned()), 1, 8),
        ("select 1;\ncopy t from stdin;\n1\n", LexErrorKind::MissingCopyEnd, 2, 1),
        ("copy t from stdin", LexErrorKind::MissingCopyEnd, 1, 1),
        ("copy t from stdin; select 1;\n\\.\n", LexErrorKind::TextAfterCopy, 1, 20),
        ("\n\\connect other\n", LexErrorKind::MetaCommand("\\connect".to_owned()), 2, 1),
        ("select 1 \\g", LexErrorKind::MetaCommand("\\g".to_owned()), 1, 10),
    ];
    for (sql, kind, line, column) in cases {
        assert_eq!(failure(sql), (kind, line, column), "{sql}");
    }
}

#[test]
fn values_are_folded_and_unquoted() {
    assert_eq!(value("SeLeCT"), "select");
    assert_eq!(value("ÄB"), "Äb");
    assert_eq!(value("\"A\"\"b\""), "A\"b");
    assert_eq!(value("'it''s'"), "it's");
    assert_eq!(value("'a'\n'b'"), "ab");
    assert_eq!(value("E'a\\n\\x41\\102\\u00e9\\\\\\'\\q'"), "a\nAB\u{e9}\\'q");
    assert_eq!(value("E'\\ud83d\\ude00'"), "\u{1f600}");
    assert_eq!(value("U&'d\\0061t\\+000061'"), "data");
    assert_eq!(value("u&\"d!0061\" UESCAPE '!'"), "da");
    assert_eq!(value("$x$a'$$b$x$"), "a'$$b");
}

#[test]
fn tokens_have_kinds() {
    use TokenKind::{BitString, Number, Operator, Other, Param, Punct, QuotedIdent, String, Word};
    let found = values("a.\"B\" 1.5e-3 .5 'x' x'1F' $1 ::<->-- c\n->> 1..2 {");
    let expected = [
        (Word, "a"),
        (Punct, "."),
        (QuotedIdent, "B"),
        (Number, "1.5e-3"),
        (Number, ".5"),
        (String, "x"),
        (BitString, "1F"),
        (Param, "$1"),
        (Punct, "::"),
        (Operator, "<->"),
        (Operator, "->>"),
        (Number, "1"),
        (Punct, ".."),
        (Number, "2"),
        (Other, "{"),
    ];
    assert_eq!(found, expected.map(|(kind, text)| (kind, text.to_owned())));
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z ]{1,6}",
        "'([^'\\\\]|''){0,6}'".prop_filter("no end marker", |text| !text.contains("\\.")),
        "E'([^'\\\\]|''|\\\\[n'\\\\]){0,6}'",
        "\"([^\"]|\"\"){1,6}\"",
        "\\$q\\$[^$]{0,6}\\$q\\$",
        "--[^\r\n]{0,6}\n",
        "/\\*[^*/]{0,6}\\*/",
        "[(][a-z;]{0,4}[)]",
        "[0-9]{1,4}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_is_taken_apart_or_refused_without_panic(sql in "(?s).{0,80}") {
        if let Ok(statements) = split(&sql) {
            for statement in statements {
                prop_assert!(!statement.tokens().is_empty());
                prop_assert!(sql[statement.offset..].starts_with(statement.text));
            }
        }
    }

    #[test]
    fn statements_joined_by_semicolons_come_apart_again(
        bodies in prop::collection::vec(prop::collection::vec(piece(), 1..5), 1..6),
    ) {
        let bodies: Vec<String> = bodies.iter().map(|pieces| format!("x {}", pieces.join(" "))).collect();
        let statements = split_owned(&bodies.join(";"));
        prop_assert_eq!(statements.len(), bodies.len());
        for (statement, body) in statements.iter().zip(&bodies) {
            let spaces: &[char] = &[' ', '\n', '\t', '\r', '\u{b}', '\u{c}'];
            prop_assert_eq!(statement, body.trim_matches(spaces));
        }
    }
}

fn split_owned(sql: &str) -> Vec<String> {
    split(sql).expect("lexes").into_iter().map(|one| one.text.to_owned()).collect()
}
