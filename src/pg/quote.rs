//! Quoting of identifiers and literals, as the server's `quote_ident` and `quote_literal` do it.
//!
//! Identifiers are always quoted: which words are reserved depends on the server's version.

/// `name` as a quoted identifier.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `schema.name`, both quoted.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// `value` as a string literal, whatever `standard_conforming_strings` says. For statements that
/// take no parameters (`alter role … password`, `comment on`); everything else binds its values.
pub fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// Settings whose stored value is a list of names that are quoted already; quoted once more they
/// would be one name (`GUC_LIST_QUOTE` in the server's guc tables; pg_dump keeps the same list).
const QUOTED_LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// `name to value`, for `alter database … set` with a value as `pg_db_role_setting` stores it.
pub fn setting(name: &str, stored_value: &str) -> String {
    let value = if stored_value.is_empty() || !QUOTED_LISTS.contains(&name) {
        literal(stored_value)
    } else {
        stored_value.to_owned()
    };
    // A name may be `class.name`; each part is an identifier.
    let name: Vec<String> = name.split('.').map(ident).collect();
    format!("{} to {value}", name.join("."))
}

#[cfg(test)]
mod tests {
    use super::{ident, literal, qualified, setting};

    #[test]
    fn quotes_are_doubled_and_backslashes_escaped() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(qualified("s", "T x"), "\"s\".\"T x\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), " E'a\\\\''b'");
    }

    #[test]
    fn lists_of_names_are_not_quoted_again() {
        let path = r#""$user", public"#;
        assert_eq!(setting("search_path", path), format!("\"search_path\" to {path}"));
        assert_eq!(setting("app.tenant", "a'b"), "\"app\".\"tenant\" to 'a''b'");
        assert_eq!(setting("search_path", ""), "\"search_path\" to ''");
    }
}
