//! A ready database, frozen under a fingerprint, to be cloned by `reset`.
//!
//! The fingerprint covers all that the build depends on: server version, snapshot, scripts and callbacks
//! with their settings and placeholders, settings of sessions, users files, seed files. A template of another fingerprint is never used, and the newest replaces the
//! older ones of the same database. Nobody can connect to a template, so it can be cloned any time.

use crate::ancestor;
use crate::context::Context;
use crate::database::{self, Applied, Error, Found, Kind, Marker, Scratch};
use crate::engine::Server;
use crate::pg::{Session, quote};

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
    let found = database::list(&session).await?;
    session.close().await;
    let Some((name, marker)) = ready(&found, final_name, fingerprint) else { return Ok(None) };
    Scratch::clone_of(ctx, server, name, marker, owner).await.map(Some)
}

/// The name and the marker of the ready template with this fingerprint, if it is among `found`.
pub(crate) fn ready<'a>(
    found: &'a [Found],
    final_name: &str,
    fingerprint: &str,
) -> Option<(&'a str, &'a Marker)> {
    found.iter().find_map(|found| {
        let marker = found.marker.as_ref()?;
        let fits = marker.kind == Kind::Template
            && marker.database == final_name
            && marker.fingerprint.as_deref() == Some(fingerprint);
        fits.then_some((found.name.as_str(), marker))
    })
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
    let (session, from) = (scratch.session(), scratch.name());
    let ended = database::end_sessions(session, from).await;
    ended.map_err(|error| Error::Sql { what: "freeze", database: from.to_owned(), error })?;
    freeze_copy(ctx, server, session, from, scratch.marker(), owner, applied).await
}

/// The same of a live database, whose marker this is, where it has come with its server's data. Nobody is
/// let in meanwhile; a run that is cut off here leaves that to the next one ([`database::recover`]).
///
/// # Errors
/// What the server said; the database is as it was.
pub(crate) async fn freeze_live(
    ctx: &Context,
    server: &Server,
    session: &Session,
    marker: &Marker,
    owner: &str,
    applied: Vec<Applied>,
) -> Result<(), Error> {
    let name = &marker.database;
    let fail = |error| Error::Sql { what: "freeze", database: name.clone(), error };
    let freezing = async {
        database::block_and_end(session, name).await.map_err(fail)?;
        freeze_copy(ctx, server, session, name, marker, owner, applied).await
    };
    let frozen = freezing.await;
    let opened = database::allow_connections(session, name, "true").await.map_err(fail);
    frozen?;
    opened
}

/// Freezes a copy of the database `from`, in which nobody is.
async fn freeze_copy(
    ctx: &Context,
    server: &Server,
    session: &Session,
    from: &str,
    marker: &Marker,
    owner: &str,
    applied: Vec<Applied>,
) -> Result<(), Error> {
    let old = of_database(session, &marker.database).await?;
    let step = ctx.report.step("freeze as template");
    let name = database::unique_name(&marker.database, "template");
    database::copy(ctx, session, server, &name, from, owner).await?;
    close(ctx, session, &name, marker, applied, old).await?;
    step.done("");
    Ok(())
}

/// Freezes a complete scratch database itself, where nothing else is to become of it.
///
/// # Errors
/// What the server said.
pub(crate) async fn freeze_itself(ctx: &Context, scratch: &Scratch) -> Result<(), Error> {
    let session = scratch.session();
    let old = of_database(session, scratch.final_name()).await?;
    let step = ctx.report.step("freeze as template");
    let name = database::unique_name(scratch.final_name(), "template");
    let frozen = async {
        database::end_sessions(session, scratch.name()).await?;
        session.batch(&database::rename_statement(scratch.name(), &name)).await
    };
    frozen.await.map_err(|error| Error::Sql {
        what: "freeze as",
        database: name.clone(),
        error,
    })?;
    close(ctx, session, &name, scratch.marker(), Vec::new(), old).await?;
    step.done("");
    Ok(())
}

/// The templates of a database.
async fn of_database(session: &Session, final_name: &str) -> Result<Vec<String>, Error> {
    let found = database::list(session).await?.into_iter().filter(|found| {
        found
            .marker
            .as_ref()
            .is_some_and(|marker| marker.kind == Kind::Template && marker.database == final_name)
    });
    Ok(found.map(|found| found.name).collect())
}

/// Closes what is to be a template, marks it, and drops the older ones.
async fn close(
    ctx: &Context,
    session: &Session,
    name: &str,
    marker: &Marker,
    applied: Vec<Applied>,
    old: Vec<String>,
) -> Result<(), Error> {
    let closing = format!(
        "alter database {} with is_template true allow_connections false",
        quote::ident(name)
    );
    session.batch(&closing).await.map_err(|error| Error::Sql {
        what: "freeze as",
        database: name.to_owned(),
        error,
    })?;
    // Each run reads all markers, so a history stands in one only where somebody may go on from it.
    let (base, applied) = match ancestor::may_go_on(&applied, marker.origin.as_ref()) {
        true => (marker.base.clone(), applied),
        false => (None, Vec::new()),
    };
    let marker = Marker { kind: Kind::Template, base, applied, ..marker.clone() };
    database::set_marker(session, name, &marker).await?;
    for old in old {
        if let Err(error) = database::drop_marked(session, &old, &[Kind::Template]).await {
            // Somebody copies it just now. It is dropped with the next one, and never used by then.
            ctx.report.detail(format!("the older template stays as `{old}`: {error}"));
        }
    }
    Ok(())
}
