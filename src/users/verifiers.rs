//! Passwords that only a server knows, taken from one to the next: a `do` block of a users file makes a role
//! with its password where there is none, and does nothing where the role has come without it.

use serde::{Deserialize, Serialize};

use crate::pg::{self, Session, quote};

/// A role and the verifier of its password.
#[derive(Serialize, Deserialize)]
pub(crate) struct Verifier {
    pub role: String,
    stored: String,
}

/// Those of all roles that have a password.
///
/// # Errors
/// What the server said: only a superuser may look.
pub(crate) async fn verifiers(session: &Session) -> Result<Vec<Verifier>, pg::Error> {
    let sql = "select rolname::text, rolpassword from pg_catalog.pg_authid
               where rolpassword is not null order by 1";
    let rows = session.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| Verifier { role: row.get(0), stored: row.get(1) }).collect())
}

/// Gives the roles that are there without a password the one that they had.
///
/// # Errors
/// What the server said.
pub(crate) async fn give_back(session: &Session, verifiers: &[Verifier]) -> Result<(), pg::Error> {
    let sql = "select rolname::text from pg_catalog.pg_authid where rolpassword is null";
    let rows = session.query(sql, &[]).await?;
    let without: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    for Verifier { role, stored } in verifiers.iter().filter(|had| without.contains(&had.role)) {
        let (role, stored) = (quote::ident(role), quote::literal(stored));
        session.batch(&format!("alter role {role} password {stored}")).await?;
    }
    Ok(())
}
