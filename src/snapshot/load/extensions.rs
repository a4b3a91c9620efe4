//! Extensions, before anything needs them.

use super::{Error, Run, doing};
use crate::pg::{Session, quote};

impl Run<'_> {
    /// Extensions, as the superuser, before anything needs them; returns the schemas made for them.
    pub(super) async fn make_extensions(
        &self,
        admin: &Session,
        session: &Session,
    ) -> Result<Vec<String>, Error> {
        let ignored = &self.ctx.config.restore.ignore_extensions;
        let (mut missing, mut made) = (Vec::new(), Vec::new());
        for extension in &self.manifest.extensions {
            let name = &extension.name;
            let row = admin
                .query_one(
                    "select exists (select from pg_extension where extname = $1),
                            exists (select from pg_available_extensions where name = $1),
                            exists (select from pg_available_extension_versions
                                    where name = $1 and version = $2),
                            exists (select from pg_namespace where nspname = $3)",
                    &[name, &extension.version, &extension.schema],
                )
                .await
                .map_err(doing(format!("look for extension `{name}`")))?;
            let (there, available, this_version, schema): (bool, bool, bool, bool) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            if there || (!available && ignored.contains(name)) {
                continue;
            }
            if !available {
                missing.push(name.clone());
                continue;
            }
            let doing_make = || doing(format!("make extension `{name}`"));
            if !schema {
                let sql = format!("create schema {}", quote::ident(&extension.schema));
                session.batch(&sql).await.map_err(doing_make())?;
                made.push(extension.schema.clone());
            }
            let mut sql = format!(
                "create extension {} with schema {}",
                quote::ident(name),
                quote::ident(&extension.schema)
            );
            if this_version {
                sql.push_str(&format!(" version {}", quote::literal(&extension.version)));
            } else {
                self.ctx.report.note(format!(
                    "extension `{name}` {} is not on this server; its default version is used",
                    extension.version
                ));
            }
            admin.batch(&sql).await.map_err(doing_make())?;
        }
        if missing.is_empty() { Ok(made) } else { Err(Error::Extensions { names: missing }) }
    }
}
