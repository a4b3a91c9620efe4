//! What a machine knows and nobody else may: taken out of a server before its data is published.
//!
//! The rows are those of the snapshot. What the build has added: passwords, as verifiers in the catalog
//! and what statistics and dead rows keep of them; options of connections to elsewhere and settings that were
//! taken back. The server's log of changes goes with
//! `pg_resetwal`, settings and logs stay behind ([`super::files`]).

use crate::connect;
use crate::engine::Server;
use crate::error::Error;
use crate::pg::{self, Session, quote};

/// Catalogs that secrets were in, though they are no longer.
const OF_A_DATABASE: &[&str] =
    &["pg_statistic", "pg_user_mapping", "pg_foreign_server", "pg_foreign_data_wrapper"];
const OF_THE_SERVER: &[&str] = &["pg_authid", "pg_db_role_setting", "pg_subscription"];

/// Takes passwords away, and every trace of them. Nobody can log in afterwards but those who are in.
///
/// # Errors
/// What the server said.
pub(super) async fn scrub(server: &Server) -> Result<(), Error> {
    let failed =
        |error| Error::Database { what: "take the passwords out of the image".to_owned(), error };
    let session = connect::session(&server.admin).await?;
    let sql = "select datname::text from pg_database where datallowconn order by 1";
    let databases = session.query(sql, &[]).await.map_err(failed)?;
    let mut sessions: Vec<Session> = Vec::new();
    for row in &databases {
        let name: String = row.get(0);
        sessions.push(connect::session(&server.admin.with_database(&name)).await?);
    }
    let sql = "select rolname::text from pg_authid where rolpassword is not null";
    for row in session.query(sql, &[]).await.map_err(failed)? {
        let role = quote::ident(row.get(0));
        session.batch(&format!("alter role {role} password null")).await.map_err(failed)?;
    }
    // Statistics hold values of columns, and a whole rewrite leaves no dead rows.
    for session in sessions {
        session.batch("analyze pg_catalog.pg_authid").await.map_err(failed)?;
        rewrite(&session, OF_A_DATABASE).await.map_err(failed)?;
        session.close().await;
    }
    rewrite(&session, OF_THE_SERVER).await.map_err(failed)?;
    session.batch("checkpoint").await.map_err(failed)?;
    session.close().await;
    Ok(())
}

/// Writes tables anew: what was removed is in no page of theirs any more.
async fn rewrite(session: &Session, tables: &[&str]) -> Result<(), pg::Error> {
    for table in tables {
        session.batch(&format!("vacuum full pg_catalog.{table}")).await?;
    }
    Ok(())
}
