//! What the users files come to: actions in two phases, each with its place. Pure.
//!
//! Made from text alone, so that it can be printed, compared and tested without a server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::{ExposeSecret, SecretString};

use crate::pg::lexer::{self, Token};
use crate::pg::names::{self, DatabaseName, Rewritten};
use crate::pg::quote;

use super::parse::{self, Parsed, Password, Refusal, RoleChange, RoleName};

/// Where a statement begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Below the project's root.
    pub file: Utf8PathBuf,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` line {}", self.file, self.line)
    }
}

/// All users files of an environment, understood.
#[derive(Debug)]
pub struct Plan {
    /// Who owns the database and its schemas, and whose default privileges are meant.
    pub owner: String,
    pub(super) actions: Vec<Action>,
    /// Statements about other databases, which are not run.
    pub skipped: Vec<Skipped>,
}

/// A statement that is about another database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    pub place: Place,
    /// The database that it names.
    pub names: String,
    /// The environment's database.
    pub ours: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, names, ours } = self;
        write!(
            f,
            "{place}: `{names}` is not this environment's database `{ours}`, so the statement is \
             skipped; write `${{flyway:database}}` to mean the database of each environment"
        )
    }
}

/// One thing to do.
#[derive(Debug)]
pub(super) struct Action {
    pub place: Place,
    pub phase: Phase,
    pub act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Roles are the server's: they are made before there is a database.
    Roles,
    /// In the database, before its data.
    Before,
    /// After data and migrations.
    After,
}

#[derive(Debug)]
pub(super) enum Act {
    Role(RoleChange),
    Schema {
        name: String,
        authorization: Option<String>,
    },
    /// Run as it stands, after database names are rewritten. Holds no password.
    Sql {
        text: String,
        verb: String,
    },
}

impl Plan {
    /// The password that the files give `role`, when they give one in clear. The configuration's
    /// user connects with it where the configuration has none.
    pub fn password_of(&self, role: &str) -> Option<&SecretString> {
        self.actions.iter().rev().find_map(|action| match &action.act {
            Act::Role(change) if self.role(&change.name) == role => match &change.password {
                Some(Password::Clear(password)) => Some(password),
                Some(Password::None | Password::Stored(_)) | None => None,
            },
            Act::Role(_) | Act::Schema { .. } | Act::Sql { .. } => None,
        })
    }

    /// What the files give each role as its password; the last one counts.
    pub(super) fn passwords(&self) -> BTreeMap<&str, &Password> {
        let given = self.actions.iter().filter_map(|action| match &action.act {
            Act::Role(change) => Some((self.role(&change.name), change.password.as_ref()?)),
            Act::Schema { .. } | Act::Sql { .. } => None,
        });
        given.collect()
    }

    /// The roles that the files name, in order of name.
    pub fn roles(&self) -> BTreeSet<String> {
        let mut roles = BTreeSet::new();
        for action in &self.actions {
            match &action.act {
                Act::Role(change) => {
                    let lists = [&change.in_roles, &change.members, &change.admins];
                    roles.insert(self.role(&change.name).to_owned());
                    roles
                        .extend(lists.into_iter().flatten().map(|name| self.role(name).to_owned()));
                }
                Act::Schema { authorization, .. } => roles.extend(authorization.clone()),
                Act::Sql { text, .. } => roles.extend(grantees(text)),
            }
        }
        roles
    }

    /// Whether the files create `role`.
    pub fn creates(&self, role: &str) -> bool {
        self.actions.iter().any(|action| match &action.act {
            Act::Role(change) => {
                change.verb == parse::Verb::Create && self.role(&change.name) == role
            }
            Act::Schema { .. } | Act::Sql { .. } => false,
        })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// What will be done, a line each, without passwords and their verifiers.
    pub fn describe(&self) -> Vec<String> {
        let mut actions: Vec<&Action> = self.actions.iter().collect();
        actions.sort_by_key(|action| action.phase);
        actions
            .into_iter()
            .map(|action| {
                let what = match &action.act {
                    Act::Role(change) => {
                        let password = match change.password {
                            Some(Password::Clear(_) | Password::Stored(_)) => " with a password",
                            Some(Password::None) => " without password",
                            None => "",
                        };
                        format!("role {}{password}", quote::ident(self.role(&change.name)))
                    }
                    Act::Schema { name, .. } => format!("schema {}", quote::ident(name)),
                    Act::Sql { text, .. } => masked(&one_line(text)),
                };
                format!("{what} -- {}:{}", action.place.file, action.place.line)
            })
            .collect()
    }

    /// The files' text as far as it changes a database and not the server's roles: part of a
    /// template's fingerprint. Holds no password.
    pub fn fingerprint_text(&self) -> String {
        let mut text = format!("owner {}\n", quote::ident(&self.owner));
        for action in self.actions.iter().filter(|action| action.phase != Phase::Roles) {
            match &action.act {
                // A verifier has a new salt each time; where one stands, the place stands for it.
                Act::Sql { text: sql, .. } if sql.contains("SCRAM-SHA-256$") => {
                    text.push_str(&action.place.to_string());
                }
                Act::Sql { text: sql, .. } => text.push_str(sql),
                Act::Schema { name, authorization } => {
                    text.push_str(&format!("schema {name:?} {authorization:?}"));
                }
                Act::Role(_) => {}
            }
            text.push_str(";\n");
        }
        text
    }

    /// Where the files create the owner and say nothing of a password, it is the configuration's.
    pub(super) fn give_owner_password(&mut self, configured: &SecretString) {
        let owner = RoleName::Named(self.owner.clone());
        let changes = || {
            self.actions.iter().filter_map(|action| match &action.act {
                Act::Role(change) if change.name == owner => Some(change),
                Act::Role(_) | Act::Schema { .. } | Act::Sql { .. } => None,
            })
        };
        if changes().any(|change| change.password.is_some()) {
            return;
        }
        for action in &mut self.actions {
            if let Act::Role(change) = &mut action.act
                && change.name == owner
                && change.verb == parse::Verb::Create
            {
                change.password = Some(Password::Clear(configured.clone()));
            }
        }
    }

    pub(super) fn role<'a>(&'a self, name: &'a RoleName) -> &'a str {
        match name {
            RoleName::Named(name) => name,
            RoleName::Owner => &self.owner,
        }
    }

    pub(super) fn phase(&self, phase: Phase) -> impl Iterator<Item = &Action> {
        self.actions.iter().filter(move |action| action.phase == phase)
    }
}

/// Why the files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invalid {
    pub place: Place,
    pub reason: String,
    pub hint: Option<String>,
}

/// Builds the plan from files (path below the project, text with placeholders replaced), in order.
///
/// # Errors
/// The first statement that users files may not hold, or that cannot be read.
pub(super) fn plan(
    files: &[(Utf8PathBuf, String)],
    names: &DatabaseName,
    owner: &str,
) -> Result<Plan, Invalid> {
    let mut plan = Plan { owner: owner.to_owned(), actions: Vec::new(), skipped: Vec::new() };
    let live = DatabaseName::live(&names.final_name);
    for (file, text) in files {
        add_file(&mut plan, file, text, &live)?;
    }
    Ok(plan)
}

fn add_file(
    plan: &mut Plan,
    file: &Utf8Path,
    text: &str,
    live: &DatabaseName,
) -> Result<(), Invalid> {
    let invalid = |refusal: Refusal| Invalid {
        place: Place { file: file.to_owned(), line: refusal.line, column: refusal.column },
        reason: refusal.reason,
        hint: refusal.hint,
    };
    let statements = lexer::split(text).map_err(|error| {
        let hint = match error.kind {
            lexer::LexErrorKind::MetaCommand(_) => Some("delete the line".to_owned()),
            _ => None,
        };
        invalid(Refusal { line: error.line, column: error.column, reason: error.message(), hint })
    })?;
    for statement in statements {
        let tokens = statement.tokens();
        let place = Place { file: file.to_owned(), line: statement.line, column: statement.column };
        let parsed = parse::statement(tokens).map_err(invalid)?;
        let end = statement.offset + statement.text.len();
        let sql = &text[tokens[0].offset..end];
        let verb = verb_of(tokens);
        let as_written = |phase, text: String| (phase, Act::Sql { text, verb: verb.clone() });
        let (phase, act) = match parsed {
            Parsed::Role(change) => (Phase::Roles, Act::Role(change)),
            Parsed::RoleSql => as_written(Phase::Roles, sql.to_owned()),
            Parsed::RoleBlock(text) => as_written(Phase::Roles, text),
            Parsed::Schema { name, authorization } => {
                let authorization = authorization.map(|role| plan.role(&role).to_owned());
                let name = name.or_else(|| authorization.clone()).expect("one of them is given");
                (Phase::Before, Act::Schema { name, authorization })
            }
            Parsed::Extension(text) | Parsed::Block(text) => as_written(Phase::Before, text),
            Parsed::DatabaseSql => {
                let Some(sql) = for_our_database(plan, &place, sql, live) else { continue };
                as_written(Phase::Before, sql)
            }
            Parsed::ObjectSql => as_written(Phase::After, sql.to_owned()),
            Parsed::ObjectBlock(text) => as_written(Phase::After, text),
            Parsed::DefaultPrivileges { for_role_at } => {
                as_written(Phase::After, for_owner(text, sql, tokens[0].offset, for_role_at, plan))
            }
        };
        plan.actions.push(Action { place, phase, act });
    }
    Ok(())
}

/// The statement as far as it is about our database; what is about others is noted as skipped.
fn for_our_database(
    plan: &mut Plan,
    place: &Place,
    sql: &str,
    live: &DatabaseName,
) -> Option<String> {
    for names in names::other_databases(sql, live) {
        let ours = live.final_name.clone();
        plan.skipped.push(Skipped { place: place.clone(), names, ours });
    }
    match names::rewrite(sql, live) {
        Rewritten::Same => Some(sql.to_owned()),
        Rewritten::Changed(text) => Some(text),
        Rewritten::OtherDatabase { .. } => None,
    }
}

fn for_owner(
    text: &str,
    sql: &str,
    start: usize,
    for_role_at: Option<usize>,
    plan: &Plan,
) -> String {
    let Some(at) = for_role_at else { return sql.to_owned() };
    let owner = quote::ident(&plan.owner);
    format!("{} for role {owner}{}", &text[start..at], &sql[at - start..])
}

/// The leading keyword or two, for messages: `grant`, `alter default`.
fn verb_of(tokens: &[Token<'_>]) -> String {
    let first = &tokens[0].value;
    match tokens.get(1) {
        Some(second) if first == "alter" || first == "create" => {
            format!("{first} {}", second.value)
        }
        Some(_) | None => first.to_string(),
    }
}

/// The roles in a grant's `to` or a revoke's `from` list.
fn grantees(sql: &str) -> Vec<String> {
    let Ok(tokens) = lexer::tokens(sql) else { return Vec::new() };
    let is_grant = matches!(&*tokens[0].value, "grant" | "revoke");
    let mut roles = Vec::new();
    // Without an object it is a membership, whose first list is of roles as well.
    let mut in_list = is_grant && !tokens.iter().any(|token| token.is_word("on"));
    for token in tokens.iter().skip(1) {
        if token.is_word("to") || token.is_word("from") {
            in_list = true;
        } else if ["with", "granted", "cascade", "restrict", "grant", "revoke", "in", "set"]
            .iter()
            .any(|word| token.is_word(word))
        {
            in_list = false;
        } else if in_list
            && let Some(name) = token.name()
            && !token.is_word("public")
            && !token.is_word("group")
        {
            roles.push(name.to_owned());
        }
    }
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(word));
    if is(0, "alter") && (is(1, "role") || is(1, "user")) && !is(2, "all") {
        return tokens
            .get(2)
            .and_then(|token| token.name())
            .map(str::to_owned)
            .into_iter()
            .collect();
    }
    let is_default = tokens.get(1).is_some_and(|token| token.is_word("default"));
    if is_grant || is_default { roles } else { Vec::new() }
}

/// Stands for a password.
pub(super) const MASK: &str = "***";

/// The text without the verifiers that stand in a block for its passwords.
pub(super) fn masked(text: &str) -> String {
    let mut parts = text.split("SCRAM-SHA-256$");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_of_verifier = |c: char| c.is_ascii_alphanumeric() || "$:+/=".contains(c);
        shown.push_str(MASK);
        shown.push_str(part.trim_start_matches(is_of_verifier));
    }
    shown
}

/// A statement on one line; what is between quotes is kept.
pub(super) fn one_line(sql: &str) -> String {
    let Ok(tokens) = lexer::tokens(sql) else { return String::new() };
    let mut text = String::new();
    let mut end = None;
    for token in tokens {
        if end.is_some_and(|end| end != token.offset) {
            text.push(' ');
        }
        text.push_str(token.text);
        end = Some(token.offset + token.text.len());
    }
    text
}

/// Whether the files and the configuration give the owner two different passwords.
pub(super) fn password_conflict<'a>(
    plan: &'a Plan,
    configured: &SecretString,
) -> Option<&'a Place> {
    let given = plan.password_of(&plan.owner)?;
    if given.expose_secret() == configured.expose_secret() {
        return None;
    }
    plan.actions
        .iter()
        .rev()
        .find(|action| match &action.act {
            Act::Role(change) => plan.role(&change.name) == plan.owner && change.password.is_some(),
            Act::Schema { .. } | Act::Sql { .. } => false,
        })
        .map(|action| &action.place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::{Act, Invalid, Phase, Plan, one_line, plan};
    use crate::pg::names::DatabaseName;
    use crate::pg::quote;

    fn planned(text: &str) -> Result<Plan, Invalid> {
        plan(&[("users/a.sql".into(), text.to_owned())], &DatabaseName::live("dev_db"), "owner")
    }

    /// Each action as `phase: what`.
    #[track_caller]
    fn actions(text: &str) -> Vec<String> {
        let plan = match planned(text) {
            Ok(plan) => plan,
            Err(invalid) => panic!("{text}: {}", invalid.reason),
        };
        plan.actions
            .iter()
            .map(|action| {
                let what = match &action.act {
                    Act::Role(change) => format!("role {}", plan.role(&change.name)),
                    Act::Schema { name, authorization } => {
                        format!("schema {name} {}", authorization.as_deref().unwrap_or("-"))
                    }
                    Act::Sql { text, .. } => one_line(text),
                };
                format!("{:?}: {what}", action.phase)
            })
            .collect()
    }

    #[test]
    fn each_statement_has_its_phase() {
        let table = [
            ("create user a", "Roles: role a"),
            ("CREATE ROLE \"A b\" NOLOGIN", "Roles: role A b"),
            ("create group g user a, b", "Roles: role g"),
            ("alter user current_user connection limit -1", "Roles: role owner"),
            ("alter role a set work_mem = '1MB'", "Roles: alter role a set work_mem = '1MB'"),
            ("alter role all reset all", "Roles: alter role all reset all"),
            ("alter group g add user a", "Roles: alter group g add user a"),
            ("grant a to b with admin option", "Roles: grant a to b with admin option"),
            ("revoke a from b", "Roles: revoke a from b"),
            ("comment on role a is 'x'", "Roles: comment on role a is 'x'"),
            ("create schema s", "Before: schema s -"),
            ("create schema if not exists s authorization a", "Before: schema s a"),
            ("create schema authorization current_user", "Before: schema owner owner"),
            (
                "create extension \"uuid-ossp\" with schema s",
                "Before: create extension if not exists \"uuid-ossp\" with schema s",
            ),
            (
                "grant connect on database dev_db to a",
                "Before: grant connect on database dev_db to a",
            ),
            ("alter database dev_db set a.b = 'c'", "Before: alter database dev_db set a.b = 'c'"),
            (
                "alter role a in database dev_db set work_mem = 1",
                "Before: alter role a in database dev_db set work_mem = 1",
            ),
            ("grant select on t to a", "After: grant select on t to a"),
            (
                "revoke all on all functions in schema s from public",
                "After: revoke all on all functions in schema s from public",
            ),
            (
                "alter default privileges in schema s grant select on tables to a",
                "After: alter default privileges for role \"owner\" in schema s grant select on tables to a",
            ),
            (
                "alter default privileges for role x revoke execute on functions from public",
                "After: alter default privileges for role x revoke execute on functions from public",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(actions(text), [expected]);
        }
    }

    #[test]
    fn a_block_runs_when_what_it_is_about_is_there() {
        let phase = |body: &str| {
            let plan = planned(&format!("do $do$ begin {body} end $do$ language plpgsql")).ok();
            plan.map(|plan| plan.actions[0].phase)
        };
        let role =
            "if not exists (select from pg_roles where rolname = 'a') then create role a; end if;";
        assert_eq!(phase(role), Some(Phase::Roles));
        let schema = "if true then execute 'create schema s'; end if;";
        assert_eq!(phase(schema), Some(Phase::Before));
        let connect = "execute format('grant connect on database %I to a', current_database());";
        assert_eq!(phase(connect), Some(Phase::Before));
        let objects = "if true then grant select on all tables in schema s to a; end if;";
        assert_eq!(phase(objects), Some(Phase::After));
        assert_eq!(phase("create role a;"), None, "it cannot run twice");
        assert_eq!(phase("if true then drop role a; end if;"), None);
    }

    #[test]
    fn roles_are_those_that_the_files_name() {
        let text = "create user a in role b; grant c to d; grant select on t to group e, public;
            alter default privileges for role f grant select on tables to g with grant option;
            revoke all on schema s from h cascade; alter role i in database dev_db set j = 1;
            create schema authorization k";
        let roles = planned(text).map(|plan| plan.roles());
        let roles: Vec<String> = roles.unwrap_or_default().into_iter().collect();
        assert_eq!(roles, ["a", "b", "c", "d", "e", "g", "h", "i", "k"]);
    }

    #[test]
    fn a_list_of_databases_keeps_ours() {
        let plan = planned("grant connect on database other, dev_db to a");
        let skipped: Vec<String> =
            plan.iter().flat_map(|plan| &plan.skipped).map(|skip| skip.names.clone()).collect();
        assert_eq!(skipped, ["other"]);
        assert_eq!(
            actions("grant connect on database other, dev_db to a"),
            ["Before: grant connect on database \"dev_db\" to a"]
        );
        assert!(actions("alter database other set a = 1").is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_planned_or_refused_at_a_place_in_it(text in "[a-z$'\"();, \n\\\\-]{0,80}") {
            if let Err(invalid) = planned(&text) {
                let lines = u32::try_from(text.split('\n').count()).unwrap_or(u32::MAX);
                prop_assert!((1..=lines).contains(&invalid.place.line));
            }
        }

        #[test]
        fn a_role_of_any_name_and_password_is_understood_and_not_shown(
            name in "[a-zA-Z\"' é-]{1,20}",
            word in "[a-zA-Z0-9\"'\\\\ é$-]{8,20}",
            login in any::<bool>(),
        ) {
            let kind = if login { "user" } else { "role" };
            let (ident, literal) = (quote::ident(&name), quote::literal(&word));
            let text = format!("create {kind} {ident} with password {literal} createdb;");
            let plan = planned(&text).map_err(|_| proptest::test_runner::TestCaseError::fail(text))?;
            let password = plan.password_of(&name).map(|secret| {
                secrecy::ExposeSecret::expose_secret(secret).to_owned()
            });
            prop_assert_eq!(password.as_deref(), Some(word.as_str()));
            let shown = format!("{:?} {}", plan.actions, plan.describe().join("\n"));
            prop_assert!(name.contains(&word) || !shown.contains(&word));
        }
    }
}
