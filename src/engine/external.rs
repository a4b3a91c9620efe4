//! A server that somebody else runs: a CI service container, a test instance in a cloud.
//!
//! It is connected to and never started, stopped or reconfigured.

use super::{Error, Server, ServerKind, Stopped, identify};
use crate::config::Config;
use crate::context::Context;
use crate::pg::tools::Tools;
use crate::pg::{self, Target};

/// The server that the configuration names.
#[derive(Clone)]
pub struct ExternalEngine {
    admin: Target,
    /// The environment's own database, where `postgres` is not there or not for this account.
    fallback: String,
}

impl ExternalEngine {
    /// # Errors
    /// [`Error::ExternalUnnamed`].
    pub fn new(config: &Config) -> Result<Self, Error> {
        let database = &config.database;
        if !database.named {
            return Err(Error::ExternalUnnamed);
        }
        let configured = database.target();
        let admin = match &config.engine.superuser {
            Some(name) if *name != configured.user => {
                configured.with_user(name, config.engine.superuser_password.clone())
            }
            Some(_) | None => {
                let password = config
                    .engine
                    .superuser_password
                    .clone()
                    .or_else(|| configured.password.clone());
                configured.with_user(&configured.user, password)
            }
        };
        // The database's own settings (`currentSchema`) are not the administrator's.
        let admin = Target { settings: Vec::new(), ..admin.with_database("postgres") };
        Ok(Self { admin, fallback: database.name.clone() })
    }

    /// The account that looks after the server, not connected to.
    pub(crate) fn admin(&self) -> &Target {
        &self.admin
    }

    pub(super) async fn ensure(&self, ctx: &Context) -> Result<Server, Error> {
        let mut admin = self.admin.clone();
        let identity = match identify(&admin).await {
            // Not there, no right to connect, no line of pg_hba.conf: each is about `postgres` alone. A
            // wrong password (28P01) is wrong everywhere.
            Err(error) if matches!(error.sqlstate(), Some("3D000" | "42501" | "28000")) => {
                admin = admin.with_database(&self.fallback);
                match identify(&admin).await {
                    // Not made yet, so what is wrong with `postgres` is what stands in the way.
                    Err(second) if second.sqlstate() == Some("3D000") => Err(error),
                    other => other,
                }
            }
            other => other,
        };
        let identity = identity.map_err(|error| match error.sqlstate() {
            Some("28P01" | "28000") => Error::Password {
                what: format!("the server at `{}:{}`", admin.host, admin.port),
                user: admin.user.clone(),
                reason: error.sql().map(|sql| sql.message.clone()).unwrap_or_default(),
            },
            Some(_) | None => Error::Pg(error),
        })?;
        let major = u32::try_from(identity.version_num / 10_000).unwrap_or(0);
        Ok(Server {
            tools: Tools::later(ctx, major),
            admin,
            version_num: identity.version_num,
            system_identifier: identity.system_identifier,
            libraries: identity.libraries,
            started_by_us: false,
            kind: ServerKind::External,
        })
    }

    pub(super) async fn running(&self, ctx: &Context) -> Result<Option<Server>, Error> {
        match self.ensure(ctx).await {
            Ok(server) => Ok(Some(server)),
            Err(Error::Pg(pg::Error::Connect { .. } | pg::Error::Timeout { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn stop(&self) -> Result<Stopped, Error> {
        Err(Error::NotOurs { place: format!("{}:{}", self.admin.host, self.admin.port) })
    }
}
