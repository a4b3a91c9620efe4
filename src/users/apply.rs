//! Carries out the plan, a transaction a phase: all of a phase holds, or nothing of it.
//!
//! A role that exists is altered only where it differs, so that a second run changes nothing. The
//! account that we are logged in with keeps its rights and its password whatever the files say: a
//! run must not lock itself out.

use secrecy::{ExposeSecret, SecretString};

use crate::context::Context;
use crate::error;
use crate::pg::names::{self, DatabaseName, Rewritten};
use crate::pg::{self, Session, Target, quote, scram};

use super::Error;
use super::parse::{Password, RoleChange, Verb};
use super::plan::{Act, Action, Phase, Plan};

/// Two runs that alter one role at once fail with `tuple concurrently updated`: they take turns.
/// The number is `seedbed` in ASCII, cut to what a bigint holds.
const TURN: i64 = 0x0073_6565_6462_6564;
/// A grant waits for whoever alters the same object; a minute is more than any of ours takes.
const LOCK_TIMEOUT: &str = "60s";

/// What is to become of the owner's password where the owner exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The server is somebody else's: a wrong password of the configuration must not change it.
    Keep,
    /// The server is ours: the configuration is right.
    SetPassword,
}

/// Makes the server's roles, memberships and role settings what the files say. Needs no database of
/// the project; `admin` may be connected to any.
///
/// # Errors
/// [`Error::Statement`] with the place of what the server refused; nothing has changed then.
pub async fn apply_roles(
    context: &Context,
    admin: &Target,
    plan: &Plan,
) -> Result<(), error::Error> {
    let names = DatabaseName::live(&admin.database);
    phase(context, admin, &names, plan, Phase::Roles, "create roles").await
}

/// Makes the database's schemas and extensions, runs guarded blocks, database-level grants and
/// settings. `admin` is connected to the database whatever database it names. Warns of each
/// statement that is skipped because it is about another database.
///
/// # Errors
/// As [`apply_roles`].
pub async fn apply_before(
    context: &Context,
    admin: &Target,
    names: &DatabaseName,
    plan: &Plan,
) -> Result<(), error::Error> {
    for skipped in &plan.skipped {
        context.report.warn(skipped.to_string());
    }
    phase(context, admin, names, plan, Phase::Before, "prepare schemas and extensions").await
}

/// Grants on objects and sets default privileges, after data and migrations are there.
///
/// # Errors
/// As [`apply_roles`]; what a grant names and the database lacks is an error of the file.
pub async fn apply_after(
    context: &Context,
    admin: &Target,
    names: &DatabaseName,
    plan: &Plan,
) -> Result<(), error::Error> {
    phase(context, admin, names, plan, Phase::After, "apply grants").await
}

/// Creates the owner of the database, with the configuration's password, where neither the files nor
/// anybody else has.
///
/// # Errors
/// When the server refuses.
pub async fn ensure_owner(
    context: &Context,
    admin: &Target,
    plan: &Plan,
    existing: Existing,
) -> Result<(), error::Error> {
    if plan.owner == admin.user {
        return Ok(());
    }
    let configured = context.config.database.password.as_ref();
    let mut change =
        RoleChange::new(super::parse::RoleName::Named(plan.owner.clone()), Verb::Alter);
    change.password = configured.cloned().map(Password::Clear);
    let work = async {
        let session = Session::connect(admin).await?;
        session.batch("begin").await?;
        take_turn(&session).await?;
        match current(&session, &plan.owner).await? {
            None => {
                change.login = Some(true);
                session.batch(&create_sql(&plan.owner, &change)).await?;
            }
            Some(role) if existing == Existing::SetPassword => {
                if let Some(sql) = alter_sql(&plan.owner, &change, &role, IsOurs::No) {
                    session.batch(&sql).await?;
                }
            }
            Some(_) => {}
        }
        session.batch("commit").await?;
        session.close().await;
        Ok::<(), pg::Error>(())
    };
    let what = "create the owner of the database";
    context
        .until_cancelled(async { work.await.map_err(|error| Error::Server { what, error }) })
        .await
}

async fn phase(
    context: &Context,
    admin: &Target,
    names: &DatabaseName,
    plan: &Plan,
    phase: Phase,
    title: &'static str,
) -> Result<(), error::Error> {
    let count = plan.phase(phase).count();
    if count == 0 {
        return Ok(());
    }
    let step = context.report.step(title);
    let failed = |error| Error::Server { what: title, error };
    let work = async {
        let session =
            Session::connect(&admin.with_database(&names.actual)).await.map_err(failed)?;
        session.batch("begin").await.map_err(failed)?;
        for warning in run(&session, admin, names, plan, phase).await? {
            context.report.warn(warning);
        }
        session.batch("commit").await.map_err(failed)?;
        session.close().await;
        Ok::<(), Error>(())
    };
    context.until_cancelled(work).await?;
    step.done(format!("{count} {}", if count == 1 { "statement" } else { "statements" }));
    Ok(())
}

/// Runs the actions of one phase in the transaction that `session` is in; returns warnings. `account`
/// keeps its rights and its password.
pub(super) async fn run(
    session: &Session,
    account: &Target,
    names: &DatabaseName,
    plan: &Plan,
    phase: Phase,
) -> Result<Vec<String>, Error> {
    take_turn(session)
        .await
        .map_err(|error| Error::Server { what: "wait for another run's grants", error })?;
    let mut warnings = Vec::new();
    for action in plan.phase(phase) {
        let result = match &action.act {
            Act::Role(change) => role(session, account, plan, change).await.map(|warning| {
                warnings.extend(warning.map(|text| format!("{}: {text}", action.place)));
            }),
            Act::Schema { name, authorization } => {
                let owner = authorization.as_deref();
                schema(session, name, owner, &plan.owner).await
            }
            Act::Sql { text, .. } => sql(session, names, text).await,
        };
        result.map_err(|error| Error::Statement {
            place: action.place.clone(),
            what: what(plan, action),
            error,
        })?;
    }
    Ok(warnings)
}

async fn take_turn(session: &Session) -> Result<(), pg::Error> {
    session
        .batch(&format!(
            "set local lock_timeout = '{LOCK_TIMEOUT}'; select pg_advisory_xact_lock({TURN})"
        ))
        .await
}

/// How messages call an action.
fn what(plan: &Plan, action: &Action) -> String {
    match &action.act {
        Act::Role(change) => {
            let verb = match change.verb {
                Verb::Create => "create role",
                Verb::Alter => "alter role",
            };
            format!("{verb} {}", plan.role(&change.name))
        }
        Act::Schema { name, .. } => format!("create schema {name}"),
        Act::Sql { verb, .. } => verb.clone(),
    }
}

async fn sql(session: &Session, names: &DatabaseName, text: &str) -> Result<(), pg::Error> {
    match names::rewrite(text, names) {
        Rewritten::Changed(text) => session.batch(&text).await,
        // Statements about other databases were sorted out when the plan was made.
        Rewritten::Same | Rewritten::OtherDatabase { .. } => session.batch(text).await,
    }
}

async fn schema(
    session: &Session,
    name: &str,
    authorization: Option<&str>,
    owner: &str,
) -> Result<(), pg::Error> {
    let found = session
        .query_opt(
            "select pg_catalog.pg_get_userbyid(nspowner)
             from pg_catalog.pg_namespace
             where nspname = $1",
            &[&name],
        )
        .await?;
    let Some(row) = found else {
        let owner = authorization.unwrap_or(owner);
        let (name, owner) = (quote::ident(name), quote::ident(owner));
        return session.batch(&format!("create schema {name} authorization {owner}")).await;
    };
    let present: String = row.get(0);
    match authorization.filter(|wanted| *wanted != present) {
        Some(wanted) => {
            let (name, wanted) = (quote::ident(name), quote::ident(wanted));
            session.batch(&format!("alter schema {name} owner to {wanted}")).await
        }
        None => Ok(()),
    }
}

/// Brings one role to what `change` says; returns a warning when part of it was left out.
async fn role(
    session: &Session,
    account: &Target,
    plan: &Plan,
    change: &RoleChange,
) -> Result<Option<String>, pg::Error> {
    let name = plan.role(&change.name);
    let ours = account.user == name;
    let mut warning = None;
    match (current(session, name).await?, change.verb) {
        (None, Verb::Create) => session.batch(&create_sql(name, change)).await?,
        // The server says that there is no such role.
        (None, Verb::Alter) => {
            session.batch(&format!("alter role {} with noinherit", quote::ident(name))).await?;
        }
        (Some(role), _) => {
            let is_ours = if ours { IsOurs::Yes } else { IsOurs::No };
            if ours && gives_another_password(change, account.password.as_ref()) {
                warning = Some(format!(
                    "`{name}` is the account that seedbed itself uses, so it keeps its password"
                ));
            }
            if let Some(sql) = alter_sql(name, change, &role, is_ours) {
                session.batch(&sql).await?;
            }
            if let Some(until) = &change.valid_until {
                valid_until(session, name, until).await?;
            }
        }
    }
    let quoted = quote::ident(name);
    for group in &change.in_roles {
        let group = quote::ident(plan.role(group));
        session.batch(&format!("grant {group} to {quoted}")).await?;
    }
    for member in &change.members {
        let member = quote::ident(plan.role(member));
        session.batch(&format!("grant {quoted} to {member}")).await?;
    }
    for admin in &change.admins {
        let admin = quote::ident(plan.role(admin));
        session.batch(&format!("grant {quoted} to {admin} with admin option")).await?;
    }
    Ok(warning)
}

fn gives_another_password(change: &RoleChange, ours: Option<&SecretString>) -> bool {
    match &change.password {
        Some(Password::Clear(given)) => {
            ours.is_none_or(|ours| ours.expose_secret() != given.expose_secret())
        }
        Some(Password::None | Password::Stored(_)) => true,
        None => false,
    }
}

/// A role as the server has it.
struct Current {
    superuser: bool,
    createdb: bool,
    createrole: bool,
    inherit: bool,
    login: bool,
    replication: bool,
    bypassrls: bool,
    connection_limit: i32,
    expires: bool,
    /// `None`: we may not read it. `Some(None)`: there is none.
    password: Option<Option<String>>,
}

async fn current(session: &Session, name: &str) -> Result<Option<Current>, pg::Error> {
    let row = session
        .query_opt(
            "select rolsuper, rolcreatedb, rolcreaterole, rolinherit, rolcanlogin, rolreplication,
                    rolbypassrls, rolconnlimit,
                    rolvaliduntil is not null and rolvaliduntil <> 'infinity',
                    pg_catalog.has_column_privilege(
                      'pg_catalog.pg_authid', 'rolpassword', 'select')
             from pg_catalog.pg_roles
             where rolname = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let password = match row.get(9) {
        true => {
            let sql = "select rolpassword from pg_catalog.pg_authid where rolname = $1";
            Some(session.query_one(sql, &[&name]).await?.get(0))
        }
        false => None,
    };
    Ok(Some(Current {
        superuser: row.get(0),
        createdb: row.get(1),
        createrole: row.get(2),
        inherit: row.get(3),
        login: row.get(4),
        replication: row.get(5),
        bypassrls: row.get(6),
        connection_limit: row.get(7),
        expires: row.get(8),
        password,
    }))
}

fn create_sql(name: &str, change: &RoleChange) -> String {
    let mut options = create_options(change);
    options.extend(change.password.as_ref().map(password_option));
    let mut sql = format!("create role {}", quote::ident(name));
    if !options.is_empty() {
        sql.push_str(" with ");
        sql.push_str(&options.join(" "));
    }
    sql
}

/// What the statement says and a new role would not have by itself, but for the password; of an
/// `alter`, all that it says.
pub(super) fn create_options(change: &RoleChange) -> Vec<String> {
    let mut options = Vec::new();
    for (word, value, default) in attributes(change) {
        if let Some(value) = value
            && (value != default || change.verb == Verb::Alter)
        {
            options.push(flag(word, value));
        }
    }
    if let Some(limit) = change.connection_limit {
        options.push(format!("connection limit {limit}"));
    }
    if let Some(until) = &change.valid_until {
        options.push(format!("valid until {}", quote::literal(until)));
    }
    options
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IsOurs {
    Yes,
    No,
}

/// What has to change about a role that exists; `None` when nothing has.
fn alter_sql(name: &str, change: &RoleChange, role: &Current, ours: IsOurs) -> Option<String> {
    let present = [
        role.superuser,
        role.createdb,
        role.createrole,
        role.inherit,
        role.login,
        role.replication,
        role.bypassrls,
    ];
    let mut options = Vec::new();
    for ((word, value, default), present) in attributes(change).into_iter().zip(present) {
        let wanted = match change.verb {
            Verb::Create => value.unwrap_or(default),
            Verb::Alter => value.unwrap_or(present),
        };
        let takes_from_us = ours == IsOurs::Yes && !wanted;
        if wanted != present && !takes_from_us {
            options.push(flag(word, wanted));
        }
    }
    let is_create = change.verb == Verb::Create && ours == IsOurs::No;
    let limit = change.connection_limit.or(is_create.then_some(-1));
    if let Some(limit) = limit.filter(|limit| *limit != role.connection_limit) {
        options.push(format!("connection limit {limit}"));
    }
    if is_create && change.valid_until.is_none() && role.expires {
        options.push("valid until 'infinity'".to_owned());
    }
    if let Some(password) = &change.password
        && ours == IsOurs::No
        && !is_stored(password, role.password.as_ref())
    {
        options.push(password_option(password));
    }
    (!options.is_empty())
        .then(|| format!("alter role {} with {}", quote::ident(name), options.join(" ")))
}

/// Keyword, what the file says, and what `create role` gives when it says nothing.
fn attributes(change: &RoleChange) -> [(&'static str, Option<bool>, bool); 7] {
    [
        ("superuser", change.superuser, false),
        ("createdb", change.createdb, false),
        ("createrole", change.createrole, false),
        ("inherit", change.inherit, true),
        ("login", change.login, false),
        ("replication", change.replication, false),
        ("bypassrls", change.bypassrls, false),
    ]
}

pub(super) fn flag(word: &str, value: bool) -> String {
    if value { word.to_owned() } else { format!("no{word}") }
}

fn password_option(password: &Password) -> String {
    match password {
        Password::None => "password null".to_owned(),
        Password::Clear(text) => {
            format!("password {}", quote::literal(&scram::verifier(text.expose_secret())))
        }
        Password::Stored(text) => format!("password {}", quote::literal(text.expose_secret())),
    }
}

/// Whether the server's stored password is this one already. Unreadable ones are set again.
pub(super) fn is_stored(password: &Password, stored: Option<&Option<String>>) -> bool {
    match (password, stored) {
        (_, None) | (Password::Clear(_) | Password::Stored(_), Some(None)) => false,
        (Password::None, Some(stored)) => stored.is_none(),
        (Password::Clear(text), Some(Some(stored))) => scram::matches(text.expose_secret(), stored),
        (Password::Stored(text), Some(Some(stored))) => text.expose_secret() == stored,
    }
}

/// The server decides whether two spellings are the same moment.
async fn valid_until(session: &Session, name: &str, until: &str) -> Result<(), pg::Error> {
    let same: bool = session
        .query_one(
            "select rolvaliduntil is not distinct from $2::text::timestamptz
             from pg_catalog.pg_roles
             where rolname = $1",
            &[&name, &until],
        )
        .await?
        .get(0);
    if same {
        return Ok(());
    }
    let (name, until) = (quote::ident(name), quote::literal(until));
    session.batch(&format!("alter role {name} valid until {until}")).await
}
