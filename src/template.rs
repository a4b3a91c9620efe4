//! A ready database, frozen under a fingerprint, to be cloned by `reset`.
//!
//! The fingerprint covers all that the build depends on: server version, snapshot, scripts and callbacks
//! with their settings and placeholders, users files, seed files. A template of another fingerprint is never used, and the newest replaces the
//! older ones of the same database. Nobody can connect to a template, so it can be cloned any time.

use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::database::{self, Applied, Error, Kind, Marker, Scratch};
use crate::engine::Server;
use crate::pg::{Session, quote};

/// Collects what a build depends on.
pub struct Fingerprint {
    hash: Sha256,
}

impl Fingerprint {
    /// Begins with the server: a template is only good on the version that made it.
    pub fn new(server: &Server) -> Self {
        let mut this = Self { hash: Sha256::new() };
        this.add("format", "2");
        this.add("server", server.version_num.to_string());
        this
    }

    /// Adds one fact; length-prefixed, so that no two lists of facts collide.
    pub fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        for part in [name.as_bytes(), value.as_ref()] {
            self.hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            self.hash.update(part);
        }
    }

    /// 24 hexadecimal digits.
    pub fn finish(self) -> String {
        self.hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The ready template with this fingerprint, cloned into a scratch database.
///
/// # Errors
/// What the server said.
pub async fn clone_ready(
    ctx: &Context,
    server: &Server,
    final_name: &str,
    owner: &str,
    fingerprint: &str,
) -> Result<Option<Scratch>, Error> {
    let session = Session::connect(&server.admin).await.map_err(|error| Error::Sql {
        what: "look for a template of",
        database: final_name.to_owned(),
        error,
    })?;
    let found = database::list(&session).await?.into_iter().find_map(|found| {
        let marker = found.marker?;
        let fits = marker.kind == Kind::Template
            && marker.database == final_name
            && marker.fingerprint.as_deref() == Some(fingerprint);
        fits.then_some((found.name, marker))
    });
    session.close().await;
    let Some((name, marker)) = found else { return Ok(None) };
    Scratch::clone_of(ctx, server, &name, &marker, owner).await.map(Some)
}

/// The templates of a database whose builds differ by nothing but the migration scripts, with what
/// their markers say.
///
/// # Errors
/// What the server said.
pub async fn of_base(
    session: &Session,
    final_name: &str,
    base: &str,
) -> Result<Vec<(String, Marker)>, Error> {
    let found = database::list(session).await?.into_iter().filter_map(|found| {
        let marker = found.marker?;
        let fits = marker.kind == Kind::Template
            && marker.database == final_name
            && marker.base.as_deref() == Some(base);
        fits.then_some((found.name, marker))
    });
    Ok(found.collect())
}

/// Freezes a complete scratch database under its fingerprint; older templates of the same database
/// are dropped. `applied` is the migration history in it. The marker is set last: a copy without it is never used.
///
/// # Errors
/// What the server said.
pub async fn freeze(
    ctx: &Context,
    server: &Server,
    scratch: &Scratch,
    owner: &str,
    applied: Vec<Applied>,
) -> Result<(), Error> {
    let session = scratch.session();
    let final_name = scratch.final_name();
    let old: Vec<String> = database::list(session)
        .await?
        .into_iter()
        .filter(|found| {
            found.marker.as_ref().is_some_and(|marker| {
                marker.kind == Kind::Template && marker.database == final_name
            })
        })
        .map(|found| found.name)
        .collect();
    let step = ctx.report.step("freeze as template");
    let name = database::unique_name(final_name, "template");
    let fail = |error| Error::Sql { what: "freeze as", database: name.clone(), error };
    database::end_sessions(session, scratch.name()).await.map_err(fail)?;
    database::copy(ctx, session, server, &name, scratch.name(), owner).await?;
    session
        .batch(&format!(
            "alter database {0} with is_template true allow_connections false",
            quote::ident(&name)
        ))
        .await
        .map_err(fail)?;
    let marker = Marker { kind: Kind::Template, applied, ..scratch.marker().clone() };
    database::set_marker(session, &name, &marker).await?;
    for old in old {
        database::drop_marked(session, &old, &[Kind::Template]).await?;
    }
    step.done("");
    Ok(())
}
