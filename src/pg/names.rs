//! A database under construction bears another name than the one it will go live with.
//!
//! Users files and migrations are written for the final name. Statements about a database as such
//! (`grant … on database x`, `alter database x`, `comment on database x`, `alter role … in database x`)
//! are rewritten to the name that it bears right now; those about another database are told apart.
//! Dynamic SQL (a string that a `do` block executes) is not looked into.

use super::lexer::{self, Token};
use super::quote;

/// The two names of one database. Equal once it is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseName {
    /// The name that the configuration gives: what files mean.
    pub final_name: String,
    /// The name that the server knows it by at this moment.
    pub actual: String,
}

impl DatabaseName {
    /// A database that bears its final name.
    pub fn live(name: &str) -> Self {
        Self { final_name: name.to_owned(), actual: name.to_owned() }
    }
}

/// What [`rewrite`] made of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewritten {
    /// Nothing had to change; it names no database, or the names are equal.
    Same,
    /// The statement for the database's present name. Databases of other names that stood in the
    /// same list are left out of it; [`other_databases`] gives them.
    Changed(String),
    /// The statement is about this database and not about ours.
    OtherDatabase { name: String },
}

/// Rewrites the database names of one statement. A statement that the lexer cannot read is left
/// alone: the server will say what is wrong with it.
pub fn rewrite(statement: &str, names: &DatabaseName) -> Rewritten {
    let Ok(tokens) = lexer::tokens(statement) else { return Rewritten::Same };
    let Some(list) = database_list(&tokens) else { return Rewritten::Same };
    let ours = list.iter().any(|token| token.value == names.final_name);
    if !ours {
        return Rewritten::OtherDatabase { name: list[0].value.to_string() };
    }
    let only_ours = list.iter().all(|token| token.value == names.final_name);
    if only_ours && names.final_name == names.actual {
        return Rewritten::Same;
    }
    let (first, last) = (&list[0], &list[list.len() - 1]);
    let mut text = statement[..first.offset].to_owned();
    text.push_str(&quote::ident(&names.actual));
    text.push_str(&statement[last.offset + last.text.len()..]);
    Rewritten::Changed(text)
}

/// The databases that a statement names and that are not ours, in order.
pub fn other_databases(statement: &str, names: &DatabaseName) -> Vec<String> {
    let Ok(tokens) = lexer::tokens(statement) else { return Vec::new() };
    database_list(&tokens)
        .unwrap_or_default()
        .iter()
        .filter(|token| token.value != names.final_name)
        .map(|token| token.value.to_string())
        .collect()
}

/// The tokens that name databases in a database-level statement; never an empty list.
fn database_list<'a, 't>(tokens: &'a [Token<'t>]) -> Option<Vec<&'a Token<'t>>> {
    let word = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.is_word(text));
    let at = if word(0, "grant") || word(0, "revoke") {
        // The first `on` is the one of the object: `on` is reserved and cannot be a role.
        let on = tokens.iter().position(|token| token.is_word("on"))?;
        word(on + 1, "database").then_some(on + 2)?
    } else if word(0, "alter") && word(1, "database") {
        2
    } else if word(0, "comment") && word(1, "on") && word(2, "database") {
        3
    } else if word(0, "security") && word(1, "label") {
        let on = tokens.iter().position(|token| token.is_word("on"))?;
        word(on + 1, "database").then_some(on + 2)?
    } else if word(0, "alter") && (word(1, "role") || word(1, "user")) {
        // `alter role name|all in database x set …`
        (word(3, "in") && word(4, "database")).then_some(5)?
    } else {
        return None;
    };
    let mut list = vec![name_at(tokens, at)?];
    let mut next = at + 1;
    while tokens.get(next).is_some_and(|token| token.is_punct(",")) {
        list.push(name_at(tokens, next + 1)?);
        next += 2;
    }
    Some(list)
}

fn name_at<'a, 't>(tokens: &'a [Token<'t>], at: usize) -> Option<&'a Token<'t>> {
    tokens.get(at).filter(|token| token.name().is_some())
}

#[cfg(test)]
mod tests {
    use super::{DatabaseName, Rewritten, other_databases, rewrite};

    fn scratch() -> DatabaseName {
        DatabaseName { final_name: "dev_db".to_owned(), actual: "dev_db_new".to_owned() }
    }

    #[track_caller]
    fn becomes(statement: &str, expected: &str) {
        assert_eq!(rewrite(statement, &scratch()), Rewritten::Changed(expected.to_owned()));
    }

    #[test]
    fn statements_about_the_final_name_get_the_actual_one() {
        becomes("GRANT ALL ON DATABASE dev_db TO a", "GRANT ALL ON DATABASE \"dev_db_new\" TO a");
        becomes(
            "revoke all on database \"dev_db\" from public",
            "revoke all on database \"dev_db_new\" from public",
        );
        becomes(
            "alter DATABASE Dev_DB set search_path = a",
            "alter DATABASE \"dev_db_new\" set search_path = a",
        );
        becomes(
            "comment on database /* ours */ dev_db is 'x'",
            "comment on database /* ours */ \"dev_db_new\" is 'x'",
        );
        becomes(
            "alter role all in database dev_db set timezone = 'UTC'",
            "alter role all in database \"dev_db_new\" set timezone = 'UTC'",
        );
        becomes(
            "alter user \"in\" in database dev_db reset all",
            "alter user \"in\" in database \"dev_db_new\" reset all",
        );
    }

    #[test]
    fn another_database_is_told_apart() {
        assert_eq!(
            rewrite("GRANT ALL PRIVILEGES ON DATABASE \"test_db\" to admin_user", &scratch()),
            Rewritten::OtherDatabase { name: "test_db".to_owned() }
        );
    }

    #[test]
    fn of_a_list_only_ours_stays() {
        becomes(
            "grant connect on database other, dev_db to a",
            "grant connect on database \"dev_db_new\" to a",
        );
        assert_eq!(other_databases("grant connect on database o, dev_db to a", &scratch()), ["o"]);
    }

    #[test]
    fn a_live_database_and_other_statements_stay_as_they_are() {
        let live = DatabaseName::live("dev_db");
        assert_eq!(rewrite("alter database dev_db reset all", &live), Rewritten::Same);
        for statement in [
            "select 1",
            "grant select on table dev_db to a",
            "grant a to b",
            "alter role dev_db password 'x'",
            "comment on table dev_db is 'on database dev_db'",
            "create database dev_db",
            "'unterminated",
        ] {
            assert_eq!(rewrite(statement, &scratch()), Rewritten::Same, "{statement}");
        }
    }
}
