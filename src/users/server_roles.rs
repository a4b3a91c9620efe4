//! The roles of one server made again on another, so that what the files do not decide about them is the
//! same on both: what owns objects, what a managed service has made, what a role is that is only granted
//! something.
//!
//! Only for a server that is thrown away: the superuser that it began with is renamed, because the
//! source's roles may be called like it and may be less. Passwords are not read.

use std::collections::BTreeSet;

use rand::Rng;

use crate::pg::{self, Session, Target, quote, scram};

use super::apply::flag;
use super::check::Privilege;
use super::plan::Plan;

/// The roles of a server, but for those that every server has.
pub(crate) struct ServerRoles {
    roles: Vec<Role>,
    memberships: Vec<Membership>,
    /// Of the roles that the files name.
    settings: Vec<Setting>,
}

struct Role {
    name: String,
    attributes: [bool; 7],
    connection_limit: i32,
    valid_until: Option<String>,
}

struct Membership {
    role: String,
    member: String,
    admin: bool,
    /// Whether it inherits and whether it may be set to; from PostgreSQL 16 on.
    options: Option<(bool, bool)>,
}

struct Setting {
    role: String,
    key: String,
    /// As `pg_db_role_setting` stores it.
    value: String,
}

/// What [`ServerRoles::make`] made.
pub(crate) struct Made {
    /// A superuser whose name no role of the source has.
    pub admin: Target,
    /// What the source's roles have and this server does not know.
    pub unknown: Vec<Privilege>,
}

/// In the order of [`Role::attributes`].
const ATTRIBUTES: [&str; 7] =
    ["superuser", "createdb", "createrole", "inherit", "login", "replication", "bypassrls"];

const ROLES: &str = "
select rolname::text, rolsuper, rolcreatedb, rolcreaterole, rolinherit, rolcanlogin, rolreplication,
       rolbypassrls, rolconnlimit, rolvaliduntil::text, rolconfig
from pg_catalog.pg_roles
where rolname !~ '^pg_'
order by rolname";

/// From PostgreSQL 16 on there may be several, each of another grantor; together they are what counts.
const MEMBERSHIPS: &str = "
select pg_catalog.pg_get_userbyid(roleid)::text, pg_catalog.pg_get_userbyid(member)::text,
       pg_catalog.bool_or(admin_option),
       pg_catalog.bool_or((pg_catalog.to_jsonb(m) ->> 'inherit_option')::boolean),
       pg_catalog.bool_or((pg_catalog.to_jsonb(m) ->> 'set_option')::boolean)
from pg_catalog.pg_auth_members m
where pg_catalog.pg_get_userbyid(member) !~ '^pg_'
group by roleid, member";

impl ServerRoles {
    /// Reads them through a session whose times are in UTC.
    ///
    /// # Errors
    /// What the server said.
    pub async fn read(session: &Session, plan: &Plan) -> Result<Self, pg::Error> {
        let named = plan.roles();
        let (mut roles, mut settings) = (Vec::new(), Vec::new());
        for row in session.query(ROLES, &[]).await? {
            let name: String = row.get(0);
            if named.contains(&name) {
                let stored: Option<Vec<String>> = row.get(10);
                settings.extend(stored.into_iter().flatten().filter_map(|setting| {
                    let (key, value) = setting.split_once('=')?;
                    Some(Setting {
                        role: name.clone(),
                        key: key.to_owned(),
                        value: value.to_owned(),
                    })
                }));
            }
            roles.push(Role {
                name,
                attributes: std::array::from_fn(|at| row.get(at + 1)),
                connection_limit: row.get(8),
                valid_until: row.get(9),
            });
        }
        let memberships = session.query(MEMBERSHIPS, &[]).await?;
        let memberships = memberships.iter().map(|row| Membership {
            role: row.get(0),
            member: row.get(1),
            admin: row.get(2),
            options: row.get::<_, Option<bool>>(3).zip(row.get(4)),
        });
        Ok(Self { roles, memberships: memberships.collect(), settings })
    }

    /// Makes them on a server whose superuser is `admin`.
    ///
    /// # Errors
    /// What the server said.
    pub async fn make(&self, admin: &Target) -> Result<Made, pg::Error> {
        let admin = take_over(admin).await?;
        let session = Session::connect(&admin).await?;
        let mut sql: String = self.roles.iter().map(Role::sql).collect();
        let mut unknown = Vec::new();
        let rows = session.query("select rolname::text from pg_roles", &[]).await?;
        let mut there: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        there.extend(self.roles.iter().map(|role| role.name.clone()));
        for membership in &self.memberships {
            match there.contains(&membership.role) {
                true => sql.push_str(&membership.sql()),
                false => unknown.push(membership.privilege()),
            }
        }
        session.batch(&sql).await?;
        for setting in &self.settings {
            match session.batch(&setting.sql()).await {
                Ok(()) => {}
                Err(pg::Error::Sql(_)) => unknown.push(setting.privilege()),
                Err(error) => return Err(error),
            }
        }
        session.close().await;
        Ok(Made { admin, unknown })
    }
}

/// Makes another superuser and takes the first one's name from it.
async fn take_over(first: &Target) -> Result<Target, pg::Error> {
    let mut random = rand::rng();
    let (name, word): (u64, u128) = (random.random(), random.random());
    let (name, word) = (format!("seedbed_{name:016x}"), format!("{word:032x}"));
    let admin = first.with_user(&name, Some(word.clone().into()));
    let session = Session::connect(first).await?;
    let verifier = quote::literal(&scram::verifier(&word));
    let quoted = quote::ident(&name);
    session.batch(&format!("create role {quoted} superuser login password {verifier}")).await?;
    session.close().await;
    let session = Session::connect(&admin).await?;
    let renamed = quote::ident(&format!("{name}_first"));
    session.batch(&format!("alter role {} rename to {renamed}", quote::ident(&first.user))).await?;
    session.close().await;
    Ok(admin)
}

impl Role {
    fn sql(&self) -> String {
        let options: Vec<String> =
            ATTRIBUTES.iter().zip(self.attributes).map(|(word, value)| flag(word, value)).collect();
        let until = self.valid_until.as_deref().map(quote::literal);
        let until = until.map(|until| format!(" valid until {until}")).unwrap_or_default();
        format!(
            "create role {} {} connection limit {}{until};\n",
            quote::ident(&self.name),
            options.join(" "),
            self.connection_limit
        )
    }
}

impl Membership {
    fn sql(&self) -> String {
        let options = match self.options {
            Some((inherit, set)) => {
                format!(" with admin {}, inherit {inherit}, set {set}", self.admin)
            }
            None if self.admin => " with admin option".to_owned(),
            None => String::new(),
        };
        format!("grant {} to {}{options};\n", quote::ident(&self.role), quote::ident(&self.member))
    }

    fn privilege(&self) -> Privilege {
        Privilege {
            role: self.member.clone(),
            object: format!("role {}", self.role),
            privilege: "MEMBER".to_owned(),
        }
    }
}

impl Setting {
    fn sql(&self) -> String {
        let setting = quote::setting(&self.key, &self.value);
        format!("alter role {} set {setting}", quote::ident(&self.role))
    }

    fn privilege(&self) -> Privilege {
        Privilege {
            role: self.role.clone(),
            object: "role".to_owned(),
            privilege: format!("SET {}={}", self.key, self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Membership, Role};

    #[test]
    fn a_role_is_made_as_it_was_but_for_its_password() {
        let mut attributes = [false; 7];
        attributes[3] = true;
        let role = Role {
            name: "a\"b".to_owned(),
            attributes,
            connection_limit: 3,
            valid_until: Some("infinity".to_owned()),
        };
        assert_eq!(
            role.sql(),
            "create role \"a\"\"b\" nosuperuser nocreatedb nocreaterole inherit nologin \
             noreplication nobypassrls connection limit 3 valid until 'infinity';\n"
        );
    }

    #[test]
    fn a_membership_has_its_options_where_the_source_knows_them() {
        let sql = |admin, options| {
            let (role, member) = ("g".to_owned(), "m".to_owned());
            Membership { role, member, admin, options }.sql()
        };
        assert_eq!(sql(false, None), "grant \"g\" to \"m\";\n");
        assert_eq!(sql(true, None), "grant \"g\" to \"m\" with admin option;\n");
        assert_eq!(
            sql(true, Some((false, true))),
            "grant \"g\" to \"m\" with admin true, inherit false, set true;\n"
        );
    }
}
