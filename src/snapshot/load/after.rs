//! What comes with the rows and after them: large objects, views, settings.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::super::manifest::{QualifiedName, Setting};
use super::rows::in_blocks;
use super::{Error, Loader, Run, doing, locked};
use crate::config::Owners;
use crate::pg::{self, Session, quote};

/// Pages, or tables, of small relations that one statement takes.
const ANALYZE_PAGES: i32 = 1000;
const ANALYZE_TABLES: usize = 100;

/// `aclitem`s as statements; the server takes them apart.
async fn grants(session: &Session, oid: u32, acl: &Vec<String>) -> Result<String, pg::Error> {
    let rows = session
        .query(
            "select case when a.grantee = 0 then 'public'
                         else quote_ident(pg_get_userbyid(a.grantee)) end,
                    lower(a.privilege_type),
                    case when a.is_grantable then ' with grant option' else '' end
             from aclexplode($1::text[]::aclitem[]) a",
            &[acl],
        )
        .await?;
    let grant = |row: &pg::Row| {
        let (to, what, how): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        format!("grant {what} on large object {oid} to {to}{how}; ")
    };
    Ok(rows.iter().map(grant).collect())
}

/// Whether a view reads a foreign table, directly or through other views.
async fn reads_foreign_tables(session: &Session, view: &QualifiedName) -> Result<bool, Error> {
    let name = quote::qualified(&view.schema, &view.name);
    let row = session
        .query_one(
            "with recursive reach (rel) as (
               select $1::text::regclass::oid
               union
               select d.refobjid
               from reach r
               join pg_rewrite w on w.ev_class = r.rel
               join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
                 and d.refclassid = 'pg_class'::regclass
             )
             select exists (select from reach r join pg_class c on c.oid = r.rel
                            where c.relkind = 'f')",
            &[&name],
        )
        .await
        .map_err(doing(format!("ask what `{view}` reads")))?;
    Ok(row.get(0))
}

impl Run<'_> {
    pub(super) async fn large_objects(&self, session: &Session) -> Result<(), Error> {
        for object in &self.manifest.large_objects {
            let oid = object.oid;
            let failed = |error| doing(format!("load large object {oid}"))(error);
            session.batch("begin").await.map_err(failed)?;
            session.query_one("select lo_create($1)", &[&oid]).await.map_err(failed)?;
            let mut offset = 0_i64;
            for chunk in &object.chunks {
                let plain = self.plain(chunk).await?;
                for block in in_blocks(&plain) {
                    session
                        .query_one("select lo_put($1, $2, $3)", &[&oid, &offset, &&block[..]])
                        .await
                        .map_err(failed)?;
                    offset += i64::try_from(block.len()).unwrap_or(i64::MAX);
                }
            }
            let mut sql = String::new();
            if let Some(comment) = &object.comment {
                sql = format!("comment on large object {oid} is {}; ", quote::literal(comment));
            }
            if let (Owners::Keep, Some(owner)) = (self.ctx.config.restore.owners, &object.owner) {
                let owner = quote::ident(owner);
                sql.push_str(&format!("alter large object {oid} owner to {owner}; "));
                if object.revoked || !object.acl.is_empty() {
                    sql.push_str(&format!("revoke all on large object {oid} from {owner}; "));
                }
                // An empty array has no dimension, which the server minds.
                if !object.acl.is_empty() {
                    sql.push_str(&grants(session, oid, &object.acl).await.map_err(failed)?);
                }
            }
            session.batch(&format!("{sql}commit")).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Materialised views in the manifest's order; one that reads another through a function fails
    /// first and is tried again. One that reads foreign tables may stay empty: a copy has no account
    /// on their servers. Returns a line for each of these.
    pub(super) async fn refresh(
        &self,
        loader: &Loader,
        session: &Session,
    ) -> Result<Vec<String>, Error> {
        // The source's event triggers are in place already and would run. Only a superuser can have
        // made them, and only one may say this.
        if loader.is_superuser() {
            session
                .batch("set session_replication_role = replica")
                .await
                .map_err(doing("refresh views"))?;
        }
        let mut views: Vec<&QualifiedName> = self.manifest.materialized_views.iter().collect();
        while !views.is_empty() {
            let mut refused = Vec::new();
            for view in &views {
                let name = quote::qualified(&view.schema, &view.name);
                let sql = format!("refresh materialized view {name}");
                match session.batch(&sql).await {
                    Ok(()) => {}
                    Err(error @ pg::Error::Sql(_)) => refused.push((*view, error)),
                    Err(error) => return Err(doing(format!("refresh `{view}`"))(error)),
                }
            }
            if refused.len() == views.len() {
                let mut empty = Vec::new();
                for (view, error) in refused {
                    if !reads_foreign_tables(session, view).await? {
                        return Err(doing(format!("refresh `{view}`"))(error));
                    }
                    empty.push(format!("`{view}` stays empty: it reads foreign tables: {error}"));
                }
                return Ok(empty);
            }
            views = refused.into_iter().map(|(view, _)| view).collect();
        }
        Ok(Vec::new())
    }

    /// Statistics of everything, the largest relations first, by as many sessions as rows had.
    pub(super) async fn analyze(&self, loader: &Loader, session: &Session) -> Result<(), Error> {
        let rows = session
            .query(
                "select n.nspname::text, c.relname::text, c.relpages
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.relkind in ('r', 'm', 'p') and c.relpersistence <> 't'
                   and c.oid >= 16384 and n.nspname <> 'pg_toast'
                 order by c.relpages desc",
                &[],
            )
            .await
            .map_err(doing("list tables"))?;
        let mut groups: VecDeque<Vec<String>> = VecDeque::new();
        let mut pages = 0;
        for row in rows {
            let name = quote::qualified(row.get(0), row.get(1));
            match groups.back_mut() {
                Some(group) if pages < ANALYZE_PAGES && group.len() < ANALYZE_TABLES => {
                    group.push(name);
                }
                Some(_) | None => {
                    groups.push_back(vec![name]);
                    pages = 0;
                }
            }
            pages += row.get::<_, i32>(2);
        }
        let groups = Mutex::new(groups);
        let open = async || self.session(Some(&loader.role)).await;
        let worker = async |session: Session| {
            loop {
                let Some(group) = locked(&groups).pop_front() else { break };
                let sql = format!("analyze {}", group.join(", "));
                session.batch(&sql).await.map_err(doing("analyze"))?;
            }
            session.close().await;
            Ok::<_, Error>(())
        };
        self.crew(self.jobs(), open, worker).await
    }

    pub(super) async fn settings(&self, admin: &Session) -> Result<(), Error> {
        let database = quote::ident(&self.target.database);
        for Setting { role, name, value } in &self.manifest.database_settings {
            if let Some(role) = role {
                let there = admin
                    .query_opt("select from pg_roles where rolname = $1", &[role])
                    .await
                    .map_err(doing("look for roles"))?;
                if there.is_none() || self.ctx.config.restore.owners == Owners::Local {
                    continue;
                }
            }
            let whose = match role {
                Some(role) => format!("alter role {} in database {database}", quote::ident(role)),
                None => format!("alter database {database}"),
            };
            let parameter: Vec<String> = name.split('.').map(quote::ident).collect();
            let sql =
                format!("{whose} set {} = {}", parameter.join("."), setting_value(name, value));
            match admin.batch(&sql).await {
                Ok(()) => {}
                // A setting that this server's version or its extensions do not know.
                Err(error) if matches!(error.sqlstate(), Some("42704" | "22023" | "42602")) => {
                    self.ctx.report.warn(format!("setting `{name}` is left out: {error}"));
                }
                Err(error) => return Err(doing(format!("set `{name}`"))(error)),
            }
        }
        Ok(())
    }
}

/// A setting as `alter database … set` wants it. Lists of names are stored as they were written and
/// must be given element by element, or the list becomes one long name (pg_dump does the same).
fn setting_value(name: &str, value: &str) -> String {
    let is_list = matches!(
        name.to_ascii_lowercase().as_str(),
        "search_path"
            | "temp_tablespaces"
            | "session_preload_libraries"
            | "local_preload_libraries"
            | "shared_preload_libraries"
            | "unix_socket_directories"
    );
    if !is_list {
        return quote::literal(value);
    }
    let mut elements = vec![String::new()];
    let mut letters = value.chars().peekable();
    let mut quoted = false;
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                elements.last_mut().expect("never empty").push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => elements.push(String::new()),
            ' ' if !quoted => {}
            _ => elements.last_mut().expect("never empty").push(letter),
        }
    }
    elements.iter().map(|element| quote::literal(element)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::setting_value;

    #[test]
    fn lists_of_names_are_set_element_by_element() {
        assert_eq!(
            setting_value("search_path", "\"$user\", app, \"a,\"\"b\""),
            "'$user', 'app', 'a,\"b'"
        );
        assert_eq!(setting_value("search_path", ""), "''");
        assert_eq!(setting_value("work_mem", "4MB"), "'4MB'");
    }
}
