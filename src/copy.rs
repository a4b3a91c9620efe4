//! Copies of a database that nobody is in: its files by the server, and what stands outside of them.
//!
//! Settings (`alter database … set`) and privileges of a database stand in catalogs that all
//! databases share, so a copy begins without them. They are asked for once, whatever the number of
//! copies.

use crate::context::Context;
use crate::database::stoppable;
use crate::engine::Server;
use crate::pg::{self, Session, Type, quote};

/// A database that is to be copied.
pub(crate) struct Original {
    template: String,
    owner: String,
    strategy: &'static str,
    method: Method,
    settings: Vec<Setting>,
    /// `None`: as the server gives them to every new database.
    privileges: Option<Vec<Privilege>>,
}

/// How the server copies files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// Blocks are shared where its file system can.
    Clone,
    Copy,
}

/// What a session begins with: `alter database … set`, or `alter role … in database … set`.
struct Setting {
    role: Option<String>,
    key: String,
    value: String,
}

struct Privilege {
    /// `None`: everybody.
    grantee: Option<String>,
    privilege: String,
    grantable: bool,
}

impl Original {
    /// Asks what stands outside of the files of `template`. Its copies will belong to `owner`.
    ///
    /// # Errors
    /// What the server said.
    pub async fn look(
        session: &Session,
        server: &Server,
        template: &str,
        owner: &str,
    ) -> Result<Self, pg::Error> {
        // The default strategy of PostgreSQL 15 writes the whole copy to the WAL (measured: 3.4 s against
        // 1.6 s for 1.5 GB).
        let strategy = if server.version_num >= 150_000 { " strategy file_copy" } else { "" };
        let method = match server.version_num >= 180_000 && wants_clones(session).await? {
            true => Method::Clone,
            false => Method::Copy,
        };
        Ok(Self {
            template: template.to_owned(),
            owner: owner.to_owned(),
            strategy,
            method,
            settings: settings(session, template).await?,
            privileges: privileges(session, template).await?,
        })
    }

    /// Makes a copy with this name. `comment`: a statement that belongs to it.
    ///
    /// # Errors
    /// What the server said: [`crate::database::IN_USE`] where somebody is in the original.
    pub async fn copy(
        &mut self,
        ctx: &Context,
        session: &Session,
        name: &str,
        comment: Option<String>,
    ) -> Result<(), pg::Error> {
        self.copy_files(ctx, session, name).await?;
        let statements: Vec<String> = comment.into_iter().chain(self.statements(name)).collect();
        if statements.is_empty() {
            return Ok(());
        }
        // One message is one transaction: all of it holds, or nothing.
        session.batch(&statements.join(";\n")).await
    }

    async fn copy_files(
        &mut self,
        ctx: &Context,
        session: &Session,
        name: &str,
    ) -> Result<(), pg::Error> {
        let sql = format!(
            "create database {} template {} owner {}{}",
            quote::ident(name),
            quote::ident(&self.template),
            quote::ident(&self.owner),
            self.strategy,
        );
        let copied = stoppable(ctx, session, &sql).await;
        let Err(error) = &copied else { return Ok(()) };
        if self.method == Method::Copy || !is_of_the_file_system(error) {
            return copied;
        }
        // A file system, or a kernel, that cannot clone says so only now.
        session.batch("set file_copy_method = copy").await?;
        self.method = Method::Copy;
        stoppable(ctx, session, &sql).await
    }

    /// What gives a copy that has the original's files the rest.
    fn statements(&self, name: &str) -> Vec<String> {
        let database = quote::ident(name);
        let mut statements = Vec::new();
        for Setting { role, key, value } in &self.settings {
            let subject = match role {
                Some(role) => format!("role {} in database {database}", quote::ident(role)),
                None => format!("database {database}"),
            };
            statements.push(format!("alter {subject} set {}", quote::setting(key, value)));
        }
        let Some(privileges) = &self.privileges else { return statements };
        let owner = quote::ident(&self.owner);
        statements.push(format!("revoke all on database {database} from public, {owner}"));
        for Privilege { grantee, privilege, grantable } in privileges {
            let grantee = grantee.as_deref().map_or_else(|| "public".to_owned(), quote::ident);
            let option = if *grantable { " with grant option" } else { "" };
            statements
                .push(format!("grant {privilege} on database {database} to {grantee}{option}"));
        }
        statements
    }
}

/// Has this session's copies share blocks, where the server was built for it.
async fn wants_clones(session: &Session) -> Result<bool, pg::Error> {
    let set = session
        .ask(
            "select set_config(name, 'clone', false)
             from pg_settings
             where name = 'file_copy_method'
               and 'clone' = any (enumvals)",
            &[],
        )
        .await?;
    Ok(!set.is_empty())
}

/// Class 58 is the system's; what a kernel does not know is told as not supported.
fn is_of_the_file_system(error: &pg::Error) -> bool {
    error.sqlstate().is_some_and(|code| code.starts_with("58") || code == "0A000")
}

async fn settings(session: &Session, template: &str) -> Result<Vec<Setting>, pg::Error> {
    let rows = session
        .ask(
            "select r.rolname::text, unnest(s.setconfig)
             from pg_db_role_setting s
             join pg_database d on d.oid = s.setdatabase
             left join pg_roles r on r.oid = s.setrole
             where d.datname = $1::text::name",
            &[(&template, Type::TEXT)],
        )
        .await?;
    let setting = |row: &pg::Row| {
        let (key, value) = row.get::<_, &str>(1).split_once('=')?;
        Some(Setting { role: row.get(0), key: key.to_owned(), value: value.to_owned() })
    };
    Ok(rows.iter().filter_map(setting).collect())
}

async fn privileges(
    session: &Session,
    template: &str,
) -> Result<Option<Vec<Privilege>>, pg::Error> {
    // Whoever was granted something and is gone by now was dropped with what was granted.
    let rows = session
        .ask(
            "select r.rolname::text, a.privilege_type, a.is_grantable
             from pg_database d
             left join lateral aclexplode(d.datacl) a on true
             left join pg_roles r on r.oid = a.grantee
             where d.datname = $1::text::name
               and d.datacl is not null
               and (a.grantee is null or a.grantee = 0 or r.oid is not null)
             order by 1, 2",
            &[(&template, Type::TEXT)],
        )
        .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let privilege = |row: &pg::Row| {
        // Nobody has anything: the one row of the outer join.
        let privilege: Option<String> = row.get(1);
        Some(Privilege { grantee: row.get(0), privilege: privilege?, grantable: row.get(2) })
    };
    Ok(Some(rows.iter().filter_map(privilege).collect()))
}
