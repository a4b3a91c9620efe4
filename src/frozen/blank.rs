//! An empty cluster, with which other environments of the project begin instead of making one of their own.

use std::time::Duration;

use jiff::Timestamp;

use crate::context::Context;
use crate::engine::Holds;
use crate::error::Error;
use crate::image;
use crate::pg::{Session, quote};
use crate::site::Site;

/// A cluster that is older may have been set up by somebody: what is set by hand on a server is that environment's
/// alone.
const YOUNG: Duration = Duration::from_secs(300);

/// Makes a server that is young and has no database yet what it was when it was new, where its data is about to move
/// or to go: its roles go, and come with the next look at the users files.
///
/// # Errors
/// What the server said.
pub(super) async fn empty(ctx: &Context, site: &Site) -> Result<Holds, Error> {
    let is_empty = ctx.config.images.enabled
        && site.engine.moves_to_freeze(ctx)?
        // Those would be somebody's, or what its image makes.
        && site.former_roles.is_empty()
        && is_young(&site.server.system_identifier)
        && image::other_database(&site.session, "", &[], "").await?.is_none()
        && image::other_object(&site.session, None).await?.is_none()
        && !is_set_up(&site.session).await?
        && drop_roles(&site.session).await?;
    Ok(if is_empty { Holds::Nothing } else { Holds::Something })
}

/// Whether something was set on the server, or made in the database `postgres`.
async fn is_set_up(session: &Session) -> Result<bool, Error> {
    let sql = "select exists (select from pg_db_role_setting)
        or exists (select from pg_file_settings where sourcefile like '%/postgresql.auto.conf')
        or exists (select from pg_database where datname = 'postgres' and datacl is not null)
        or exists (select from pg_namespace where oid >= 16384 and nspname !~ '^pg_(toast_)?temp_')
        or exists (select from pg_proc where oid >= 16384)
        or exists (select from pg_type where oid >= 16384)
        or exists (select from pg_extension where oid >= 16384)";
    let row = session.query_one(sql, &[]).await;
    let what = "look whether the server is new".to_owned();
    row.map(|row| row.get(0)).map_err(|error| Error::Database { what, error })
}

/// An identifier begins with the seconds since 1970 at which the cluster was made (`BootStrapXLOG`).
fn is_young(system_identifier: &str) -> bool {
    let made_at = system_identifier.parse::<u64>().ok().and_then(|id| i64::try_from(id >> 32).ok());
    let made_at = made_at.and_then(|seconds| Timestamp::from_second(seconds).ok());
    made_at.is_some_and(|made_at| made_at.duration_until(Timestamp::now()).unsigned_abs() <= YOUNG)
}

/// All or none: one of them may be needed by something else.
async fn drop_roles(session: &Session) -> Result<bool, Error> {
    let roles = image::roles(session).await?;
    if roles.is_empty() {
        return Ok(true);
    }
    let drops: Vec<String> =
        roles.iter().map(|role| format!("drop role {}", quote::ident(role))).collect();
    // One message is one transaction.
    Ok(session.batch(&drops.join("; ")).await.is_ok())
}

#[cfg(test)]
mod tests {
    use super::is_young;

    #[test]
    fn a_cluster_tells_by_its_identifier_when_it_was_made() {
        let made = |seconds: i64| ((seconds as u64) << 32 | 4711).to_string();
        let now = jiff::Timestamp::now().as_second();
        assert!(is_young(&made(now - 20)));
        assert!(!is_young(&made(now - 3600)));
        assert!(!is_young("7441234567890123456"));
        assert!(!is_young(""));
    }
}
