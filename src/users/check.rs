//! Whether a database's roles may do what the files give them, no less and no more.
//!
//! Effective privileges are compared: what a role may do by any way, its own grants, those of roles
//! it is a member of, ownership, PUBLIC. What the files give is not computed but tried: the plan is
//! carried out on a reference database in a transaction, looked at and rolled back, so that the
//! server's roles stay as they are. Only roles that the files name are looked at, and PUBLIC. The
//! reference may be on another server, not an older one, that has been given the same roles.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::context::Context;
use crate::error;
use crate::pg::names::DatabaseName;
use crate::pg::{self, Session, Target};

use super::plan::{Phase, Plan};
use super::{Error, apply};

/// One thing that one role may do, or is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Privilege {
    /// `public` for PUBLIC, which no role can be named.
    pub role: String,
    /// `table factory.machines`, `database`, `role` for what the role is itself.
    pub object: String,
    /// `SELECT`, `SELECT WITH GRANT OPTION`, `MEMBER`, `LOGIN`, a setting.
    pub privilege: String,
}

impl Privilege {
    /// Whether it is `other`, or that with an option.
    fn is(&self, other: &Self) -> bool {
        let option = self.privilege.strip_prefix(&other.privilege);
        self.role == other.role
            && self.object == other.object
            && option.is_some_and(|option| option.is_empty() || option.starts_with(" WITH"))
    }
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} on {}", self.role, self.privilege, self.object)
    }
}

/// How the live database differs from the files. Each list is sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The files give it and the database does not have it.
    pub missing: Vec<Privilege>,
    /// The database has it and the files do not give it.
    pub extra: Vec<Privilege>,
    /// Objects of the live database that the reference has not, so that nothing can be said.
    pub unknown_objects: Vec<String>,
    /// What else nothing can be said about, in words.
    pub not_compared: Vec<String>,
}

impl Drift {
    /// Whether the database is as the files say, as far as that can be told.
    pub fn is_none(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty()
    }
}

/// Compares the `live` database with what `plan` gives on `reference`: a database on the same server
/// with the same schema (migrated, users files not applied). Both are seen as the superuser.
///
/// # Errors
/// When either cannot be read or the plan cannot be carried out on the reference.
pub async fn check(
    context: &Context,
    live: &Target,
    reference: &Target,
    names: &DatabaseName,
    plan: &Plan,
) -> Result<Drift, error::Error> {
    let work = async {
        let session = Session::connect(live).await.map_err(failed)?;
        session.batch(LOOK_ONLY).await.map_err(failed)?;
        let live = Live::read(&session, plan).await.map_err(failed)?;
        session.close().await;
        Ok::<_, Error>(live)
    };
    let live = context.until_cancelled(work).await?;
    live.compare(context, reference, names, plan).await
}

/// Begins the transaction in which a live database is looked at.
pub(crate) const LOOK_ONLY: &str = "begin isolation level repeatable read, read only";

/// A live database, as one account saw it.
pub(crate) struct Live {
    /// The account keeps its rights and its password whatever the files say.
    account: Target,
    version_num: i32,
    seen: Seen,
    /// Roles whose password is not that of the files; `None`: the account may not read them.
    wrong_passwords: Option<Vec<String>>,
    not_compared: Vec<String>,
}

impl Live {
    /// Looks at the database that `session` is connected to, in the transaction that it is in.
    ///
    /// # Errors
    /// What the server said.
    pub async fn read(session: &Session, plan: &Plan) -> Result<Self, pg::Error> {
        let row = session.query_one("select current_setting('server_version_num')::int4", &[]);
        let version_num = row.await?.get(0);
        let account = session.target().clone();
        let roles: Vec<String> = plan.roles().into_iter().collect();
        let seen = look(session, &roles, version_num).await?;
        let wrong_passwords = wrong_passwords(session, &account, plan).await?;
        let mut not_compared = Vec::new();
        if wrong_passwords.is_none() {
            not_compared.push(format!("passwords, which `{}` may not read", account.user));
        }
        Ok(Self { account, version_num, seen, wrong_passwords, not_compared })
    }

    /// The server's version, as 170004.
    pub fn version_num(&self) -> i32 {
        self.version_num
    }

    /// Takes out what the server of the reference does not know.
    pub fn leave_out(&mut self, unknown: Vec<Privilege>) {
        for unknown in unknown {
            let count = self.seen.privileges.len();
            self.seen.privileges.retain(|found| !found.is(&unknown));
            if self.seen.privileges.len() != count {
                self.not_compared
                    .push(format!("{unknown}, which the scratch server does not know"));
            }
        }
    }

    /// Compares it with what `plan` gives on `reference`, which has the same schema and the same roles
    /// on a server that is not older; as its superuser.
    ///
    /// # Errors
    /// When the plan cannot be carried out there.
    pub async fn compare(
        &self,
        context: &Context,
        reference: &Target,
        names: &DatabaseName,
        plan: &Plan,
    ) -> Result<Drift, error::Error> {
        let step = context.report.step("compare privileges with the users files");
        let wanted = self.wanted(reference, names, plan);
        let drift = compare(&context.until_cancelled(wanted).await?, self);
        step.done(match drift.is_none() {
            true => format!("{} roles as the files say", plan.roles().len()),
            false => format!("{} missing, {} extra", drift.missing.len(), drift.extra.len()),
        });
        Ok(drift)
    }

    async fn wanted(
        &self,
        reference: &Target,
        names: &DatabaseName,
        plan: &Plan,
    ) -> Result<Seen, Error> {
        let names = DatabaseName {
            final_name: names.final_name.clone(),
            actual: reference.database.clone(),
        };
        let roles: Vec<String> = plan.roles().into_iter().collect();
        let session = Session::connect(reference).await.map_err(failed)?;
        session.batch("begin").await.map_err(failed)?;
        strip(&session, plan, &self.account.user).await.map_err(failed)?;
        for phase in [Phase::Roles, Phase::Before, Phase::After] {
            apply::run(&session, &self.account, &names, plan, phase).await?;
        }
        let wanted = look(&session, &roles, self.version_num).await.map_err(failed)?;
        session.batch("rollback").await.map_err(failed)?;
        session.close().await;
        Ok(wanted)
    }
}

/// Takes from the roles that the files create what hangs on them server-wide, so that the plan gives
/// it anew and what is more than the plan shows.
async fn strip(session: &Session, plan: &Plan, ours: &str) -> Result<(), pg::Error> {
    let roles: Vec<String> =
        plan.roles().into_iter().filter(|role| role != ours && plan.creates(role)).collect();
    for row in session.query(STRIP, &[&roles]).await? {
        session.batch(row.get(0)).await?;
    }
    Ok(())
}

fn failed(error: pg::Error) -> Error {
    Error::Server { what: "read privileges", error }
}

/// What the roles may do in one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    privileges: BTreeSet<Privilege>,
    objects: BTreeSet<String>,
}

fn compare(wanted: &Seen, live: &Live) -> Drift {
    let actual = &live.seen;
    let comparable = |privilege: &&Privilege| {
        let (here, there) = (&privilege.object, &privilege.object);
        wanted.objects.contains(here) == actual.objects.contains(there)
    };
    let difference = |a: &Seen, b: &Seen| -> Vec<Privilege> {
        let only: Vec<Privilege> =
            a.privileges.difference(&b.privileges).filter(comparable).cloned().collect();
        // A superuser may do everything; the one line that says so is enough.
        let superusers: BTreeSet<String> = only
            .iter()
            .filter(|found| found.object == "role" && found.privilege == "SUPERUSER")
            .map(|found| found.role.clone())
            .collect();
        only.into_iter()
            .filter(|found| !superusers.contains(&found.role) || found.privilege == "SUPERUSER")
            .collect()
    };
    let mut missing = difference(wanted, actual);
    missing.extend(live.wrong_passwords.iter().flatten().map(|role| Privilege {
        role: role.clone(),
        object: "role".to_owned(),
        privilege: "PASSWORD of the files".to_owned(),
    }));
    missing.sort();
    // A table that is unknown says so for its columns.
    let of_known_table = |object: &&String| {
        let column = object.strip_prefix("column ").and_then(|name| name.rsplit_once('.'));
        column.is_none_or(|(table, _)| wanted.objects.contains(&format!("table {table}")))
    };
    let unknown_objects =
        actual.objects.difference(&wanted.objects).filter(of_known_table).cloned().collect();
    let not_compared = live.not_compared.clone();
    Drift { missing, extra: difference(actual, wanted), unknown_objects, not_compared }
}

/// What the roles may do, as far as a server of `version_num` knows it.
async fn look(session: &Session, roles: &[String], version_num: i32) -> Result<Seen, pg::Error> {
    session.batch(LOOK_SETTINGS).await?;
    let mut seen = Seen::default();
    for row in session.query(PRIVILEGES, &[&roles, &version_num]).await? {
        seen.privileges.insert(Privilege {
            role: row.get(0),
            object: row.get(1),
            privilege: row.get(2),
        });
    }
    for row in session.query(OBJECTS, &[]).await? {
        seen.objects.insert(row.get(0));
    }
    Ok(seen)
}

/// The roles whose password is not the one that the files give. Nothing is read where they give none.
async fn wrong_passwords(
    session: &Session,
    account: &Target,
    plan: &Plan,
) -> Result<Option<Vec<String>>, pg::Error> {
    let mut given = plan.passwords();
    given.remove(account.user.as_str());
    if given.is_empty() {
        return Ok(Some(Vec::new()));
    }
    if !session.query_one(MAY_READ_PASSWORDS, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let roles: Vec<&str> = given.keys().copied().collect();
    let mut wrong = Vec::new();
    for row in session.query(PASSWORDS, &[&roles]).await? {
        let (role, stored): (String, Option<String>) = (row.get(0), row.get(1));
        let password = given.get(role.as_str());
        if password.is_some_and(|password| !apply::is_stored(password, Some(&stored))) {
            wrong.push(role);
        }
    }
    Ok(Some(wrong))
}

/// Names of types and times are written the same way on both sides.
const LOOK_SETTINGS: &str = "\
set local search_path = '';
set local datestyle = 'ISO, YMD';
set local timezone = 'UTC'";

/// From PostgreSQL 16 a membership has a grantor of its own, who has to be named. Only a superuser may
/// take what anybody gave: for others nothing is taken, and more memberships than the files give do
/// not show.
const STRIP: &str = "
with may as (select from pg_catalog.pg_roles where rolname = current_user and rolsuper)
select pg_catalog.format(
         'revoke %I from %I%s cascade',
         pg_catalog.pg_get_userbyid(roleid), pg_catalog.pg_get_userbyid(member),
         case when pg_catalog.current_setting('server_version_num')::int >= 160000
              then pg_catalog.format(' granted by %I', pg_catalog.pg_get_userbyid(grantor))
              else '' end)
from pg_catalog.pg_auth_members m
where pg_catalog.pg_get_userbyid(member)::text = any ($1::text[]) and exists (select from may)
  -- From PostgreSQL 16 on whoever has CREATEROLE may grant each role that he makes, by such a row.
  and not (admin_option
           and coalesce(pg_catalog.to_jsonb(m) ->> 'inherit_option', 'true') = 'false'
           and coalesce(pg_catalog.to_jsonb(m) ->> 'set_option', 'true') = 'false'
           and (select rolcreaterole from pg_catalog.pg_roles where oid = member))
union all
select pg_catalog.format('alter role %I reset all', rolname)
from pg_catalog.pg_roles
where rolname::text = any ($1::text[]) and rolconfig is not null and exists (select from may)";

const MAY_READ_PASSWORDS: &str =
    "select pg_catalog.has_column_privilege('pg_catalog.pg_authid', 'rolpassword', 'select')";

const PASSWORDS: &str = "
select rolname::text, rolpassword
from pg_catalog.pg_authid
where rolname = any ($1::text[])";

/// Objects as `PRIVILEGES` calls them, for telling which exist on one side only.
const OBJECTS: &str = "
with own_schema as (
  select oid, nspname from pg_catalog.pg_namespace
  where nspname !~ '^pg_' and nspname <> 'information_schema')
select 'schema ' || nspname from own_schema
union all
select case when relkind = 'S' then 'sequence ' else 'table ' end || nspname || '.' || relname
from pg_catalog.pg_class c join own_schema n on n.oid = relnamespace
where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
union all
select 'column ' || nspname || '.' || relname || '.' || attname
from pg_catalog.pg_attribute
join pg_catalog.pg_class c on c.oid = attrelid
join own_schema n on n.oid = relnamespace
where relkind in ('r', 'p', 'v', 'm', 'f') and attnum > 0 and not attisdropped
union all
select 'function ' || nspname || '.' || proname || '('
       || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')'
from pg_catalog.pg_proc p join own_schema n on n.oid = pronamespace
union all
select 'type ' || nspname || '.' || typname
from pg_catalog.pg_type t
join own_schema n on n.oid = typnamespace
left join pg_catalog.pg_class c on c.oid = typrelid
where typcategory <> 'A' and coalesce(c.relkind, 'c') = 'c'
union all
select 'language ' || lanname from pg_catalog.pg_language
union all
select 'foreign-data wrapper ' || fdwname from pg_catalog.pg_foreign_data_wrapper
union all
select 'foreign server ' || srvname from pg_catalog.pg_foreign_server";

/// role, object, privilege; one row for each thing that one of the roles `$1` or PUBLIC may do, as far as
/// a server of version `$2` knows it.
const PRIVILEGES: &str = "
with own_schema as (
  select oid, nspname from pg_catalog.pg_namespace
  where nspname !~ '^pg_' and nspname <> 'information_schema'),
who as (
  select oid, rolname from pg_catalog.pg_roles where rolname = any ($1::text[])
  union all
  select 0::oid, 'public'::name),
how as (select unnest(array['', ' WITH GRANT OPTION']) as how),
table_privilege as (
  select unnest(
    array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']
    || case when $2::int4 >= 170000
            then array['MAINTAIN'] else array[]::text[] end) as p),
relation as (
  select c.oid, relkind, relowner, nspname || '.' || relname as name
  from pg_catalog.pg_class c join own_schema n on n.oid = relnamespace
  where relkind in ('r', 'p', 'v', 'm', 'f', 'S'))
select rolname::text, 'database'::text, p || how
from who, how, unnest(array['CONNECT', 'CREATE', 'TEMPORARY']) p
where pg_catalog.has_database_privilege(rolname, pg_catalog.current_database(), p || how)
union all
select rolname, 'schema ' || nspname, p || how
from who, how, own_schema n, unnest(array['USAGE', 'CREATE']) p
where pg_catalog.has_schema_privilege(rolname, n.oid, p || how)
union all
select rolname, 'table ' || name, p || how
from who, how, relation c, table_privilege
where relkind <> 'S' and pg_catalog.has_table_privilege(rolname, c.oid, p || how)
union all
select rolname, 'column ' || name || '.' || attname, p || how
from who, how, relation c
join pg_catalog.pg_attribute a on attrelid = c.oid,
unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) p
where attacl is not null and attnum > 0 and not attisdropped
  and pg_catalog.has_column_privilege(rolname, c.oid, attnum, p || how)
  and not pg_catalog.has_table_privilege(rolname, c.oid, p || how)
union all
select rolname, 'sequence ' || name, p || how
from who, how, relation c, unnest(array['USAGE', 'SELECT', 'UPDATE']) p
-- CASE: the function refuses what is no sequence, and a WHERE has no order.
where case when relkind = 'S'
           then pg_catalog.has_sequence_privilege(rolname, c.oid, p || how) end
union all
select rolname,
       'function ' || nspname || '.' || proname || '('
       || pg_catalog.pg_get_function_identity_arguments(f.oid) || ')',
       'EXECUTE' || how
from who, how, pg_catalog.pg_proc f join own_schema n on n.oid = pronamespace
where pg_catalog.has_function_privilege(rolname, f.oid, 'EXECUTE' || how)
union all
select rolname, 'type ' || nspname || '.' || typname, 'USAGE' || how
from who, how, pg_catalog.pg_type t
join own_schema n on n.oid = typnamespace
left join pg_catalog.pg_class c on c.oid = typrelid
where typcategory <> 'A' and coalesce(c.relkind, 'c') = 'c'
  and pg_catalog.has_type_privilege(rolname, t.oid, 'USAGE' || how)
union all
select rolname, 'language ' || lanname, 'USAGE' || how
from who, how, pg_catalog.pg_language l
where lanpltrusted and pg_catalog.has_language_privilege(rolname, l.oid, 'USAGE' || how)
union all
select rolname, 'foreign-data wrapper ' || fdwname, 'USAGE' || how
from who, how, pg_catalog.pg_foreign_data_wrapper d
where pg_catalog.has_foreign_data_wrapper_privilege(rolname, d.oid, 'USAGE' || how)
union all
select rolname, 'foreign server ' || srvname, 'USAGE' || how
from who, how, pg_catalog.pg_foreign_server s
where pg_catalog.has_server_privilege(rolname, s.oid, 'USAGE' || how)
union all
select rolname,
       'new ' || case defaclobjtype when 'r' then 'tables' when 'S' then 'sequences'
                                    when 'f' then 'functions' when 'T' then 'types'
                                    when 'n' then 'schemas' else defaclobjtype::text end
       || ' of ' || pg_catalog.pg_get_userbyid(defaclrole)
       || coalesce(' in schema ' || n.nspname, ''),
       privilege_type || case when is_grantable then ' WITH GRANT OPTION' else '' end
from pg_catalog.pg_default_acl d
left join pg_catalog.pg_namespace n on n.oid = defaclnamespace
cross join lateral pg_catalog.aclexplode(defaclacl) acl
join who on who.oid = acl.grantee
union all
select rolname, 'role', attribute
from pg_catalog.pg_roles r
join who using (oid, rolname)
cross join lateral (values
  ('SUPERUSER', rolsuper), ('CREATEDB', rolcreatedb), ('CREATEROLE', rolcreaterole),
  ('INHERIT', rolinherit), ('LOGIN', rolcanlogin), ('REPLICATION', rolreplication),
  ('BYPASSRLS', rolbypassrls),
  ('CONNECTION LIMIT ' || rolconnlimit, rolconnlimit >= 0),
  ('VALID UNTIL ' || rolvaliduntil,
   rolvaliduntil is not null and rolvaliduntil <> 'infinity')) as a (attribute, has)
where has
union all
select who.rolname, 'role ' || pg_catalog.pg_get_userbyid(m.roleid),
       'MEMBER' || case when admin then ' WITH ADMIN OPTION' else '' end
       || case when $2::int4 >= 160000 and not inherits then ' WITHOUT INHERIT' else '' end
       || case when $2::int4 >= 160000 and not sets then ' WITHOUT SET' else '' end
from (select roleid, member, pg_catalog.bool_or(admin_option) as admin,
             pg_catalog.bool_or((pg_catalog.to_jsonb(a) ->> 'inherit_option')::boolean) as inherits,
             pg_catalog.bool_or((pg_catalog.to_jsonb(a) ->> 'set_option')::boolean) as sets
      from pg_catalog.pg_auth_members a
      group by roleid, member) m
join who on who.oid = m.member
union all
select rolname, case when setdatabase = 0 then 'role' else 'role in the database' end,
       'SET ' || setting
from pg_catalog.pg_db_role_setting s
join who on who.oid = setrole
cross join lateral unnest(setconfig) as setting
where setdatabase = 0 and setrole <> 0
   or setdatabase = (select oid from pg_catalog.pg_database
                     where datname = pg_catalog.current_database())";

#[cfg(test)]
mod tests {
    use super::{Drift, Live, Privilege, Seen, compare};
    use crate::pg::{SslMode, Target};

    fn privilege(role: &str, object: &str, privilege: &str) -> Privilege {
        Privilege {
            role: role.to_owned(),
            object: object.to_owned(),
            privilege: privilege.to_owned(),
        }
    }

    fn seen(privileges: &[Privilege], objects: &[&str]) -> Seen {
        Seen {
            privileges: privileges.iter().cloned().collect(),
            objects: objects.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn live(seen: &Seen) -> Live {
        let account = Target {
            host: "localhost".to_owned(),
            port: 5432,
            database: "shop".to_owned(),
            user: "reader".to_owned(),
            password: None,
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_client: None,
            settings: Vec::new(),
        };
        let wrong_passwords = Some(Vec::new());
        let (version_num, seen, not_compared) = (170_000, seen.clone(), Vec::new());
        Live { account, version_num, seen, wrong_passwords, not_compared }
    }

    #[test]
    fn the_difference_goes_both_ways_and_is_sorted() {
        let wanted = seen(
            &[privilege("b", "table s.t", "SELECT"), privilege("a", "role", "LOGIN")],
            &["table s.t"],
        );
        let actual = seen(&[privilege("a", "table s.t", "DELETE")], &["table s.t"]);
        let drift = compare(&wanted, &live(&actual));
        assert_eq!(
            drift.missing,
            [privilege("a", "role", "LOGIN"), privilege("b", "table s.t", "SELECT"),]
        );
        assert_eq!(drift.extra, [privilege("a", "table s.t", "DELETE")]);
        assert!(compare(&wanted, &live(&wanted)).is_none());
    }

    #[test]
    fn an_object_that_only_the_live_database_has_is_named_and_not_judged() {
        let actual = seen(&[privilege("a", "table s.new", "SELECT")], &["table s.new"]);
        let drift = compare(&Seen::default(), &live(&actual));
        assert_eq!(
            drift,
            Drift { unknown_objects: vec!["table s.new".to_owned()], ..Drift::default() }
        );
    }

    #[test]
    fn a_superuser_of_nobodys_making_is_one_line() {
        let actual = seen(
            &[privilege("a", "role", "SUPERUSER"), privilege("a", "table s.t", "DELETE")],
            &["table s.t"],
        );
        let drift = compare(&seen(&[], &["table s.t"]), &live(&actual));
        assert_eq!(drift.extra, [privilege("a", "role", "SUPERUSER")]);
    }

    #[test]
    fn another_password_is_told_without_showing_it() {
        let mut live = live(&Seen::default());
        live.wrong_passwords = Some(vec!["a".to_owned()]);
        let drift = compare(&Seen::default(), &live);
        assert_eq!(drift.missing, [privilege("a", "role", "PASSWORD of the files")]);
    }

    #[test]
    fn what_the_other_server_does_not_know_is_left_out_and_named() {
        let actual = [
            privilege("a", "role pg_new", "MEMBER WITH ADMIN OPTION"),
            privilege("a", "role pg_new_too", "MEMBER"),
        ];
        let mut live = live(&seen(&actual, &[]));
        live.leave_out(vec![
            privilege("a", "role pg_new", "MEMBER"),
            privilege("b", "role", "SET old=1"),
        ]);
        let drift = compare(&Seen::default(), &live);
        assert_eq!(drift.extra, actual[1..]);
        assert_eq!(
            drift.not_compared,
            ["a: MEMBER on role pg_new, which the scratch server does not know"]
        );
    }
}
