//! What `users apply` would run, as SQL that a person can read. Pure; no password stands in it, nor a
//! verifier of one.

use camino::Utf8PathBuf;
use serde::Serialize;

use super::apply::create_options;
use super::parse::{Password, RoleChange, Verb};
use super::plan::{Act, Action, MASK, Plan, masked};
use crate::pg::quote;

/// The statements of the files in the order in which they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DryRun {
    pub statements: Vec<DryStatement>,
    /// Statements about other databases, each with the reason.
    pub skipped: Vec<String>,
}

/// One statement of the files, or what it comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DryStatement {
    /// Below the project's root.
    pub file: Utf8PathBuf,
    pub line: u32,
    /// Without its `;`. Where a role exists already, only what differs is altered to it.
    pub sql: Vec<String>,
}

/// What [`apply_roles`](super::apply_roles), [`apply_before`](super::apply_before) and
/// [`apply_after`](super::apply_after) would run.
pub fn dry_run(plan: &Plan) -> DryRun {
    let mut actions: Vec<&Action> = plan.actions.iter().collect();
    actions.sort_by_key(|action| action.phase);
    let statement = |action: &Action| DryStatement {
        file: action.place.file.clone(),
        line: action.place.line,
        sql: match &action.act {
            Act::Role(change) => role(plan, change),
            Act::Schema { name, authorization } => {
                let owner = quote::ident(authorization.as_deref().unwrap_or(&plan.owner));
                let name = quote::ident(name);
                vec![format!("create schema if not exists {name} authorization {owner}")]
            }
            Act::Sql { text, .. } => vec![masked(text)],
        },
    };
    DryRun {
        statements: actions.into_iter().map(statement).collect(),
        skipped: plan.skipped.iter().map(ToString::to_string).collect(),
    }
}

fn role(plan: &Plan, change: &RoleChange) -> Vec<String> {
    let role = quote::ident(plan.role(&change.name));
    let verb = match change.verb {
        Verb::Create => "create",
        Verb::Alter => "alter",
    };
    let mut options = create_options(change);
    options.extend(change.password.as_ref().map(|password| match password {
        Password::None => "password null".to_owned(),
        Password::Clear(_) | Password::Stored(_) => format!("password '{MASK}'"),
    }));
    let with = if options.is_empty() { "" } else { " with " };
    let mut sql = vec![format!("{verb} role {role}{with}{}", options.join(" "))];
    let quoted = |name| quote::ident(plan.role(name));
    sql.extend(change.in_roles.iter().map(|group| format!("grant {} to {role}", quoted(group))));
    sql.extend(change.members.iter().map(|member| format!("grant {role} to {}", quoted(member))));
    sql.extend(
        change
            .admins
            .iter()
            .map(|admin| format!("grant {role} to {} with admin option", quoted(admin))),
    );
    sql
}

#[cfg(test)]
mod tests {
    use super::super::plan::plan;
    use super::dry_run;
    use crate::pg::names::DatabaseName;

    #[test]
    fn every_statement_is_shown_in_its_order_and_no_password_is() {
        let text = "GRANT SELECT ON TABLE s.t TO a;
create schema s;
CREATE USER a WITH PASSWORD 'canary' CREATEDB CONNECTION LIMIT 3 IN ROLE g ADMIN h;
alter role \"A b\" nologin password null;
create role c password 'md5a3556571e93b0d20722ba62be61e8c2d';
alter role current_user noinherit;
create group g role a;
do $$ begin if true then execute 'create role d password ''canary'''; end if; end $$;
grant connect on database other to a;";
        let files = [("users/a.sql".into(), text.to_owned())];
        let plan = plan(&files, &DatabaseName::live("dev_db"), "owner")
            .unwrap_or_else(|invalid| panic!("{}", invalid.reason));
        let shown = dry_run(&plan);
        let lines: Vec<String> = shown
            .statements
            .iter()
            .map(|statement| format!("{} {}", statement.line, statement.sql.join("; ")))
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        3 create role "a" with createdb login connection limit 3 password '***'; grant "g" to "a"; grant "a" to "h" with admin option
        4 alter role "A b" with nologin password null
        5 create role "c" with password '***'
        6 alter role "owner" with noinherit
        7 create role "g"; grant "g" to "a"
        8 do ' begin if true then execute ''create role d password ''''***''''''; end if; end '
        2 create schema if not exists "s" authorization "owner"
        1 GRANT SELECT ON TABLE s.t TO a
        "#);
        let all = format!("{shown:?} {}", plan.describe().join("\n"));
        assert!(!all.contains("canary") && !all.contains("SCRAM"), "{all}");
        assert_eq!(shown.skipped.len(), 1);
    }
}
