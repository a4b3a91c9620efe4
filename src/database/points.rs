//! Points to come back to as copies: a database beside the live one that nobody can connect to.

use serde::{Deserialize, Serialize};

use super::{
    Error, Found, Kind, Marker, allow_connections, block_and_end, copy, list, quote, reserve,
    set_marker, stopped,
};
use crate::context::Context;
use crate::engine::Server;
use crate::pg::Session;

/// What the marker of a copy says about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// As it was typed.
    pub name: String,
    pub schema_version: Option<String>,
}

/// Copies the live database. Its sessions are ended, and nobody gets in until the copy is whole. The
/// marker is set last: a copy without it is never used, and the next run removes it.
///
/// # Errors
/// What the server said; the live database is open again then.
pub(crate) async fn save(
    ctx: &Context,
    server: &Server,
    session: &Session,
    live: &Found,
    point: Point,
) -> Result<(), Error> {
    let Some(marker) = &live.marker else {
        return Err(Error::NotOurs { database: live.name.clone() });
    };
    let (name, guard) = reserve(server, &live.name, "saved").await?;
    let fail = |error| stopped(ctx, "copy", &live.name, error);
    let copying = async {
        block_and_end(&guard, &live.name).await.map_err(fail)?;
        copy(ctx, &guard, server, &name, &live.name, &live.owner).await
    };
    let copied = copying.await;
    // By the other session: a statement that was cancelled may have its own cancelled once more.
    let opened = allow_connections(session, &live.name, "true").await.map_err(fail);
    copied?;
    opened?;
    let closed = format!("alter database {} with allow_connections false", quote::ident(&name));
    guard.batch(&closed).await.map_err(fail)?;
    let marker = Marker {
        kind: Kind::Saved,
        point: Some(point),
        lease: None,
        made_at: jiff::Timestamp::now().to_string(),
        ..marker.clone()
    };
    set_marker(&guard, &name, &marker).await?;
    guard.close().await;
    Ok(())
}

/// The copies of the database `final_name` that were saved, with what their markers say.
///
/// # Errors
/// What the server said.
pub(crate) async fn saved(
    session: &Session,
    final_name: &str,
) -> Result<Vec<(String, Marker)>, Error> {
    let found = list(session).await?.into_iter().filter_map(|found| {
        let marker = found.marker?;
        let ours = marker.kind == Kind::Saved && marker.database == final_name;
        ours.then_some((found.name, marker))
    });
    Ok(found.collect())
}
