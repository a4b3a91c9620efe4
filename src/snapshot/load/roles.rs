//! Roles that a load needs: those that the archive names, and the one that makes everything.

use super::super::chunk::sha256;
use super::{Error, Run, doing};
use crate::config::Owners;
use crate::config::keys::quoted;
use crate::pg::{Session, Target, quote};

impl Run<'_> {
    /// Roles that the archive's statements name, without login.
    pub(super) async fn make_roles(&self, admin: &Session) -> Result<(), Error> {
        let mut names: Vec<&String> = self.manifest.policy_roles.iter().collect();
        if self.ctx.config.restore.owners == Owners::Keep {
            names.extend(&self.manifest.owners);
        }
        let rows = admin
            .query(
                "select distinct name
                 from unnest($1::text[]) name
                 where not starts_with(name, 'pg_')
                   and not exists (select from pg_roles where rolname = name)
                 order by name",
                &[&names],
            )
            .await
            .map_err(doing("look for roles"))?;
        let missing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if !missing.is_empty() {
            self.ctx.report.note(format!(
                "roles of the source that this server lacks are made without login: {}",
                quoted(&missing)
            ));
        }
        for name in &missing {
            let role = quote::ident(name);
            match admin.batch(&format!("create role {role} nologin")).await {
                Ok(()) => {}
                // Somebody else's load made it meanwhile.
                Err(error) if matches!(error.sqlstate(), Some("42710" | "23505")) => {}
                Err(error) => return Err(doing(format!("make role `{name}`"))(error)),
            }
        }
        Ok(())
    }
}

/// The role that makes everything: a superuser without login, or the owner itself where the account
/// we have is no superuser.
pub(super) struct Loader {
    pub role: String,
    owner: String,
    ours: bool,
}

const LOADER_PREFIX: &str = "seedbed_load_";

impl Loader {
    pub fn is_superuser(&self) -> bool {
        self.ours
    }

    pub async fn make(admin: &Session, target: &Target, owner: &str) -> Result<Self, Error> {
        let failed = || doing("make a role for loading");
        let row = admin
            .query_one("select rolsuper from pg_roles where rolname = current_user", &[])
            .await
            .map_err(failed())?;
        let owner = owner.to_owned();
        if !row.get::<_, bool>(0) {
            return Ok(Self { role: owner.clone(), owner, ours: false });
        }
        Self::drop_forgotten(admin).await?;
        let digest = sha256(target.database.as_bytes());
        let role = format!("{LOADER_PREFIX}{}", &digest[..16]);
        let quoted = quote::ident(&role);
        match admin.batch(&format!("create role {quoted} superuser nologin")).await {
            Ok(()) => {}
            // A run on this database that was killed left it.
            Err(error) if error.sqlstate() == Some("42710") => {}
            Err(error) => return Err(failed()(error)),
        }
        let marker = quote::literal(&format!("seedbed loads {}", target.database));
        admin.batch(&format!("comment on role {quoted} is {marker}")).await.map_err(failed())?;
        Ok(Self { role, owner, ours: true })
    }

    /// Roles of runs that were killed, once their database is gone.
    async fn drop_forgotten(admin: &Session) -> Result<(), Error> {
        let rows = admin
            .query(
                "select r.rolname::text
                 from pg_roles r
                 where starts_with(r.rolname::text, $1)
                   and starts_with(shobj_description(r.oid, 'pg_authid'), 'seedbed loads ')
                   and not exists (select from pg_database d
                                   where 'seedbed loads ' || d.datname
                                         = shobj_description(r.oid, 'pg_authid'))",
                &[&LOADER_PREFIX],
            )
            .await
            .map_err(doing("look for roles of earlier runs"))?;
        for row in rows {
            let role: String = row.get(0);
            // Another run may have dropped it, or still need it; it does no harm.
            let _ = admin.batch(&format!("drop role if exists {}", quote::ident(&role))).await;
        }
        Ok(())
    }

    /// Gives everything to the owner and removes the role.
    pub async fn hand_over(&self, admin: &Session, target: &Target) -> Result<(), Error> {
        if !self.ours {
            return Ok(());
        }
        let failed = || doing(format!("give everything to `{}`", self.owner));
        let rows = admin
            .query(
                "select format('alter event trigger %I owner to %I', evtname, $2::text)
                 from pg_event_trigger
                 where pg_get_userbyid(evtowner) = $1
                 union all
                 select format('alter foreign data wrapper %I owner to %I', fdwname, $2::text)
                 from pg_foreign_data_wrapper
                 where pg_get_userbyid(fdwowner) = $1",
                &[&self.role, &target.user],
            )
            .await
            .map_err(failed())?;
        let role = quote::ident(&self.role);
        // Event triggers would see their own hand-over; only superusers can own these two kinds.
        let mut sql = String::from("begin; set local session_replication_role = replica;\n");
        for row in rows {
            sql.push_str(row.get::<_, &str>(0));
            sql.push_str(";\n");
        }
        sql.push_str(&format!(
            "reassign owned by {role} to {};\ndrop owned by {role};\ndrop role {role};\ncommit",
            quote::ident(&self.owner)
        ));
        admin.batch(&sql).await.map_err(failed())
    }
}
