//! A ready server, frozen under a fingerprint: its whole data directory, to be cloned by `reset`.
//!
//! An image holds the server, not only the database: roles, settings, every other database. It is made
//! and used only where all of that is this database's alone ([`shared_with`]); else, and where clones
//! cannot share blocks, a template database does the same. The fingerprint is that of a template.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ancestor;
use crate::connect;
use crate::context::Context;
use crate::database::{self, Applied, Kind, Origin, Scratch};
use crate::engine::{self, Engine, Inventory, Server, Sharer, Stored, ready};
use crate::error::Error;
use crate::lock;
use crate::pg::Session;
use crate::platform::Platform;

/// 2: with its platform.
pub(crate) const FORMAT: u32 = 2;

/// What is known of an image; stands beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub format: u32,
    pub fingerprint: String,
    pub database: String,
    /// The folder of the project that made it, for people.
    pub project: String,
    pub server_version_num: i32,
    /// All that were there: a server with others is not replaced by it.
    pub roles: Vec<String>,
    pub origin: Option<Origin>,
    pub schema_version: Option<String>,
    /// The fingerprint without the migration scripts, and how far they have come: what another checkout
    /// goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<Applied>,
    /// It came from the store: what the blocks of users files do beside what their text says was done on
    /// the machine that made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub received: bool,
    /// It is a snapshot's rows as they came: each checkout of the same rows and accounts goes on from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_ground: bool,
    /// What its data is bound to.
    pub platform: Platform,
    pub made_at: jiff::Timestamp,
}

/// What only a look into a database tells of its image.
#[derive(Debug)]
pub(crate) struct Inside {
    /// For those who go on from it.
    pub applied: Vec<Applied>,
    pub is_ground: bool,
    pub platform: Platform,
}

/// An image as `images list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub name: String,
    /// On the disk, where nothing was shared.
    pub bytes: u64,
    pub age_seconds: u64,
    /// Since it was made or cloned last.
    pub unused_seconds: u64,
    #[serde(flatten)]
    pub facts: Facts,
    /// Those that came from it; filled by [`with_sharers`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub environments: Vec<Sharer>,
}

/// The images, and which environments came from which.
#[derive(Debug, Clone, Serialize)]
pub struct Shelf {
    pub images: Vec<Listed>,
    /// All that lie beside the images, those as well whose image is gone.
    pub environments: Vec<Sharer>,
}

/// What `images prune` removed, or would.
#[derive(Debug, Clone, Serialize)]
pub struct Pruned {
    pub removed: Vec<Listed>,
    pub kept: Vec<Listed>,
    /// Only shown: nothing was removed.
    pub dry_run: bool,
}

/// Whether a database is to be frozen as an image here.
pub(crate) fn is_meant(ctx: &Context, server: &Server, bytes: u64) -> bool {
    ctx.config.images.enabled && server.started_by_us && bytes >= ctx.config.images.min_size
}

/// Bytes of a database.
pub(crate) async fn size_of(session: &Session, name: &str) -> Result<u64, Error> {
    let size = database::size_of(session, name).await;
    size.map_err(|error| failed("measure the database", error))
}

/// What else the server holds that an image would bring back or take away; `None`: it is the
/// database's alone. `roles` are those that may be there; `None` allows any. `building` is its scratch
/// database.
pub(crate) async fn shared_with(
    session: &Session,
    name: &str,
    roles: Option<&[String]>,
    building: &str,
) -> Result<Option<String>, Error> {
    match other_database(session, name, &[Kind::Live, Kind::Template], building).await? {
        Some(other) => Ok(Some(other)),
        None => other_object(session, roles).await,
    }
}

/// The same, and nobody lends a copy from now on until the session ends: what is lent after this look
/// would go with the data, or be frozen with it. Where the server is shared lending goes on.
pub(crate) async fn held_with(
    session: &Session,
    name: &str,
    roles: Option<&[String]>,
) -> Result<Option<String>, Error> {
    alone(session, name, async || shared_with(session, name, roles, "").await).await
}

/// Looks while nobody lends; what is found lets lending go on.
pub(crate) async fn alone(
    session: &Session,
    name: &str,
    look: impl AsyncFn() -> Result<Option<String>, Error>,
) -> Result<Option<String>, Error> {
    let lock = |error| failed("keep others from lending copies", error);
    if !lock::stop_lending(session, name).await.map_err(lock)? {
        return Ok(Some("a database that is being lent".to_owned()));
    }
    let found = look().await?;
    if found.is_some() {
        lock::lend_again(session, name).await.map_err(lock)?;
    }
    Ok(found)
}

/// A database that is not one of these kinds of the database `name`.
pub(crate) async fn other_database(
    session: &Session,
    name: &str,
    kinds: &[Kind],
    building: &str,
) -> Result<Option<String>, Error> {
    for found in database::list(session).await? {
        let ours = found
            .marker
            .is_some_and(|marker| marker.database == name && kinds.contains(&marker.kind));
        if !ours && ![building, "postgres", "template0", "template1"].contains(&found.name.as_str())
        {
            return Ok(Some(format!("database `{}`", found.name)));
        }
    }
    Ok(None)
}

/// What the server holds beside databases, and beside these roles; `None` allows any.
pub(crate) async fn other_object(
    session: &Session,
    roles: Option<&[String]>,
) -> Result<Option<String>, Error> {
    // The session is with `postgres`; nobody of ours puts anything there.
    let rows = session
        .query(
            "select 'role', rolname::text from pg_roles
             where oid >= 16384 and $2 and not rolname = any ($1)
             union all
             select 'tablespace', spcname::text from pg_tablespace where oid >= 16384
             union all
             select 'replication slot', slot_name::text from pg_replication_slots
             union all
             select 'table in the database postgres,', relname::text from pg_class
             where oid >= 16384 and relkind in ('r', 'p', 'm', 'S', 'v')
             limit 1",
            &[&roles.unwrap_or_default(), &roles.is_some()],
        )
        .await
        .map_err(|error| failed("look at the server", error))?;
    let words =
        |row: &crate::pg::Row| format!("{} `{}`", row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(rows.first().map(words))
}

/// A subscription of a database: copies of it would take the publisher's changes from each other.
pub(crate) async fn subscription(session: &Session, name: &str) -> Result<Option<String>, Error> {
    let sql =
        "select s.subname::text from pg_subscription s join pg_database d on d.oid = s.subdbid
               where d.datname = $1 limit 1";
    let row = session.query_opt(sql, &[&name]).await;
    let row = row.map_err(|error| failed("look for subscriptions", error))?;
    Ok(row.map(|row| row.get(0)))
}

/// Freezes the database `actual`, the live one of its name or a scratch one, and all of its server under the
/// fingerprint that its marker has. Templates go before: they would only make it larger.
///
/// # Errors
/// Why there is no image now; the server is up all the same.
pub(crate) async fn freeze(
    ctx: &Context,
    engine: &Engine,
    server: &Server,
    actual: &str,
    schema_version: Option<String>,
    inside: Inside,
) -> Result<Option<Server>, Error> {
    let name = &ctx.config.database.name;
    let session = connect::session(&server.admin).await?;
    // Held until the server goes down with this session.
    let look = async || shared_with(&session, name, None, actual).await;
    if let Some(other) = alone(&session, name, look).await? {
        ctx.report.note(format!("no image: the server holds more than this database: {other}"));
        return Ok(None);
    }
    let mut wanted = None;
    for found in database::list(&session).await? {
        let Some(marker) = found.marker.filter(|marker| marker.database == *name) else { continue };
        if found.name == actual {
            wanted = Some(marker);
        } else if marker.kind == Kind::Template {
            database::drop_marked(&session, &found.name, &[Kind::Template]).await?;
        }
    }
    let Some((marker, fingerprint)) =
        wanted.and_then(|marker| marker.fingerprint.clone().map(|print| (marker, print)))
    else {
        return Ok(None);
    };
    let facts = Facts {
        format: FORMAT,
        fingerprint: fingerprint.clone(),
        database: name.clone(),
        project: ctx.config.project.to_string(),
        server_version_num: server.version_num,
        roles: roles(&session).await?,
        origin: marker.origin,
        schema_version,
        applied: inside.applied,
        received: false,
        is_ground: inside.is_ground,
        platform: inside.platform,
        base: marker.base,
        made_at: jiff::Timestamp::now(),
    };
    let facts = serde_json::to_string(&facts).expect("a struct of strings serializes");
    let step = ctx.report.step("freeze as image");
    let freeze = async || engine.freeze(ctx, &fingerprint, &facts).await;
    let server = once_there_is_room(ctx, engine, &session, "", freeze).await;
    session.close().await;
    let server = server?;
    step.done("");
    Ok(Some(server))
}

/// Readies a whole scratch database for being frozen once it is live. Nobody is let in from here on, so that
/// what is frozen is what was built, until [`database::let_in`].
///
/// # Errors
/// What the server said.
pub(crate) async fn ready(
    ctx: &Context,
    server: &Server,
    scratch: &Scratch,
) -> Result<Inside, Error> {
    let name = scratch.name();
    // Of no use where nobody could go on from it.
    let applied = match scratch.marker().base {
        Some(_) => crate::migrate::applied(ctx, &connect::owner(ctx, server, name)).await?,
        None => Vec::new(),
    };
    settle(ctx, server, (name, scratch.final_name())).await?;
    let session = connect::session(&server.admin.with_database(name)).await?;
    let platform = Platform::of_data(&session).await;
    session.close().await;
    let platform = platform.map_err(|error| failed("ask what the data is bound to", error))?;
    let closed = database::allow_connections(scratch.session(), name, "false").await;
    closed.map_err(|error| failed("close the database that is to be frozen", error))?;
    Ok(Inside { applied, is_ground: false, platform })
}

/// Leaves nothing that a first reading would write: what was inserted gets its hint bits then, page by
/// page, and autovacuum rewrites the same in every clone a minute after its start (measured: three counts
/// copied 1.1 of 1.5 GB). Rows that were loaded frozen cost nothing here. What goes wrong is no reason to
/// go without an image.
pub(crate) async fn settle(
    ctx: &Context,
    server: &Server,
    (name, called): (&str, &str),
) -> Result<(), Error> {
    let step = ctx.report.step(format!("vacuum `{called}`"));
    let session = connect::session(&server.admin.with_database(name)).await?;
    let vacuum = async {
        // A commit that is not in the log's file yet, or beside one that is not, gives no hint bits: nor
        // are the vacuum's own to be late.
        session.batch("set synchronous_commit = on").await?;
        session.batch("checkpoint").await?;
        // What was changed is told late before 15.
        let is_told = server.major() >= 15;
        // Whoever is connected already may hold a table: it is left as it is.
        let how = if is_told { "freeze, skip_locked" } else { "freeze, analyze, skip_locked" };
        stop_autovacuum(ctx, &session).await;
        session.batch(&format!("vacuum ({how})")).await?;
        let mut before = Vec::new();
        for _ in 0..ONCE_MORE {
            let left_out = tables(&session, LEFT_OUT).await?;
            if left_out.is_empty() || left_out == before {
                break;
            }
            stop_autovacuum(ctx, &session).await;
            // One that somebody has dropped meanwhile is in nobody's way.
            let _ = session.batch(&format!("vacuum ({how}) {}", left_out.join(", "))).await;
            before = left_out;
        }
        let stale = if is_told { tables(&session, STALE).await? } else { Vec::new() };
        match stale.is_empty() {
            true => Ok(()),
            false => session.batch(&format!("analyze (skip_locked) {}", stale.join(", "))).await,
        }
    };
    match ctx.until_cancelled(async { vacuum.await.map_err(|error| failed("vacuum", error)) }).await
    {
        Ok(()) => step.done(""),
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => {
            step.done("not to the end");
            ctx.report.warn(format!("clones will share less: {error}"));
        }
    }
    session.close().await;
    Ok(())
}

/// Autovacuum comes to what a long build has inserted, and would have its table left out (measured: a
/// fifth of a database of 1.5 GB, twice). The next one comes a minute later.
async fn stop_autovacuum(ctx: &Context, session: &Session) {
    let _ = ready::until(ctx, AUTOVACUUM_ENDS, async || {
        match session.query(STOP_AUTOVACUUM, &[]).await {
            Ok(stopped) if stopped.is_empty() => Ok(()),
            Ok(_) => Err(Error::CheckFailed("autovacuum is at work".to_owned())),
            Err(error) => Err(failed("stop autovacuum", error)),
        }
    })
    .await;
}

async fn tables(session: &Session, sql: &str) -> Result<Vec<String>, crate::pg::Error> {
    Ok(session.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// How often what was left out is vacuumed again: a vacuum of more than a minute meets autovacuum again (measured: at 15 GB
/// a fifth of it).
const ONCE_MORE: usize = 2;

/// Tables with pages that a reader would write to; a load leaves up to 63 behind that nothing was written to yet.
const LEFT_OUT: &str = "select pg_catalog.format('%I.%I', n.nspname, c.relname)
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_am a on a.oid = c.relam and a.amname = 'heap'
    left join pg_catalog.pg_class t on t.oid = c.reltoastrelid
    where c.relkind in ('r', 'm') and c.relpersistence <> 't'
      and n.nspname not in ('pg_catalog', 'information_schema')
      and exists (select from (values (c.oid, c.relallvisible), (t.oid, t.relallvisible)) v (oid, visible)
                  where pg_catalog.pg_relation_size(v.oid)
                        / pg_catalog.current_setting('block_size')::int - v.visible > 64)
    order by 1";

/// How long is waited for what was told to stop.
const AUTOVACUUM_ENDS: Duration = Duration::from_secs(5);

/// Tables whose statistics are of other rows than they have now, or are not there: a column, an expression of an
/// index or extended statistics that came later, a type that was changed. A clone has those of what it was cloned
/// from, and reading all of it again for them took most of the time (1.3 of 1.4 s at 580 MB).
const STALE: &str = "with recursive changed as (
        select relid from pg_catalog.pg_stat_all_tables
        where n_mod_since_analyze > 0 or coalesce(last_analyze, last_autoanalyze) is null
        union
        select t.oid from pg_catalog.pg_class t
        join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
        where t.relkind in ('r', 'm', 'p') and t.reltuples > 0 and coalesce(a.attstattarget, -1) <> 0
          and a.attgenerated <> 'v'
          and not exists (select from pg_catalog.pg_statistic s
                          where s.starelid = a.attrelid and s.staattnum = a.attnum)
        union
        select i.indrelid from pg_catalog.pg_index i
        join pg_catalog.pg_class t on t.oid = i.indrelid and t.reltuples > 0 and t.relkind <> 'p'
        where i.indexprs is not null
          and not exists (select from pg_catalog.pg_statistic s where s.starelid = i.indexrelid)
        union
        select e.stxrelid from pg_catalog.pg_statistic_ext e
        where not exists (select from pg_catalog.pg_statistic_ext_data d where d.stxoid = e.oid)
    ), stale as (
        select relid from changed
        union
        select i.inhparent from pg_catalog.pg_inherits i join stale on stale.relid = i.inhrelid
    )
    select pg_catalog.format('%I.%I', n.nspname, c.relname)
    from stale join pg_catalog.pg_class c on c.oid = stale.relid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'm', 'p') and c.relpersistence <> 't' and n.nspname <> 'pg_toast'";

/// A row for each that is at work in this database still.
const STOP_AUTOVACUUM: &str = "select pg_catalog.pg_terminate_backend(pid)
    from pg_catalog.pg_stat_activity
    where datname = current_database() and backend_type = 'autovacuum worker'";

pub(crate) async fn roles(session: &Session) -> Result<Vec<String>, Error> {
    let rows = session
        .query("select rolname::text from pg_roles where oid >= 16384 order by 1", &[])
        .await
        .map_err(|error| failed("list the roles", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn failed(what: &str, error: crate::pg::Error) -> Error {
    Error::Database { what: what.to_owned(), error }
}

/// Why the server of this session cannot serve these images, each; `None`: it can.
///
/// # Errors
/// What the server said.
pub(crate) async fn misfits<'a>(
    session: &Session,
    images: impl Iterator<Item = &'a Facts>,
) -> Result<Vec<Option<String>>, Error> {
    let here = Platform::beside_fingerprint(session).await;
    let here = here.map_err(|error| failed("ask what this server's data is bound to", error))?;
    let misfit = |facts: &Facts| {
        let known = facts.platform.clone();
        let here = Platform { icu: known.icu, lz4: known.lz4, ..here.clone() };
        facts.platform.misfit(&here, &known.extensions)
    };
    Ok(images.map(misfit).collect())
}

/// The image of this fingerprint, if it is there and of a format that is known.
///
/// # Errors
/// What the engine said.
pub(crate) async fn find(
    ctx: &Context,
    engine: &Engine,
    fingerprint: &str,
) -> Result<Option<Facts>, Error> {
    let facts = engine.image(ctx, fingerprint).await?;
    let facts = facts.and_then(|text| serde_json::from_str::<Facts>(&text).ok());
    let name = &ctx.config.database.name;
    Ok(facts.filter(|facts| facts.format == FORMAT && facts.database == *name))
}

/// The images of this base that a build may go on from.
///
/// # Errors
/// What the engine said.
pub(crate) async fn of_base(
    ctx: &Context,
    engine: &Engine,
    base: &str,
) -> Result<Vec<Facts>, Error> {
    let name = &ctx.config.database.name;
    let fits = |facts: &Facts| {
        facts.base.as_deref() == Some(base)
            && facts.database == *name
            && ancestor::may_go_on(&facts.applied, facts.origin.as_ref())
    };
    Ok(list(ctx, engine).await?.into_iter().map(|image| image.facts).filter(fits).collect())
}

/// The images of this machine, newest first; those of a newer format are left out.
///
/// # Errors
/// What the engine said.
pub async fn list(ctx: &Context, engine: &Engine) -> Result<Vec<Listed>, Error> {
    let now = jiff::Timestamp::now();
    let mut listed: Vec<Listed> =
        engine.images(ctx).await?.images.iter().filter_map(|stored| read(stored, now)).collect();
    listed.sort_by_key(|image| std::cmp::Reverse(image.facts.made_at));
    Ok(listed)
}

fn read(stored: &Stored, now: jiff::Timestamp) -> Option<Listed> {
    let facts: Facts = serde_json::from_str(&stored.facts).ok()?;
    let seconds = |since: jiff::Timestamp| {
        u64::try_from(now.duration_since(since).as_secs()).unwrap_or_default()
    };
    let used = jiff::Timestamp::from_second(stored.used).unwrap_or(facts.made_at);
    let (age_seconds, unused_seconds) = (seconds(facts.made_at), seconds(used));
    (facts.format == FORMAT).then(|| Listed {
        name: stored.name.clone(),
        bytes: stored.bytes,
        age_seconds,
        unused_seconds,
        facts,
        environments: Vec::new(),
    })
}

/// The images of this machine, newest first, with the environments that share blocks with them.
///
/// # Errors
/// What the engine said.
pub async fn with_sharers(ctx: &Context, engine: &Engine) -> Result<Shelf, Error> {
    let mut images = list(ctx, engine).await?;
    let mut environments = engine.sharers(ctx).await?;
    for environment in &mut environments {
        environment.is_left = is_gone(&environment.whose.project);
    }
    for image in &mut images {
        let of_it = |found: &&Sharer| found.image.as_ref() == Some(&image.name);
        image.environments = environments.iter().filter(of_it).cloned().collect();
    }
    Ok(Shelf { images, environments })
}

/// Removes what was not used for too long and, from what was not used for the longest on, what is too much; never one
/// that an environment's data came from, nor the last used one of a database that is asked for. Other projects of this
/// machine have limits of their own: their images go by this one's only when their folder is gone.
///
/// # Errors
/// What the engine said.
pub async fn prune(ctx: &Context, engine: &Engine, dry_run: bool) -> Result<Pruned, Error> {
    prune_to(ctx, engine, ctx.config.images.max_size, dry_run, "").await
}

/// The same with another limit of their bytes; `wanted` stays as well.
async fn prune_to(
    ctx: &Context,
    engine: &Engine,
    max_size: u64,
    dry_run: bool,
    wanted: &str,
) -> Result<Pruned, Error> {
    let now = jiff::Timestamp::now();
    let Inventory { images: stored, mut in_use, capacity } = engine.images(ctx).await?;
    let mut images: Vec<Listed> = stored.iter().filter_map(|stored| read(stored, now)).collect();
    images.sort_by_key(|image| (image.unused_seconds, std::cmp::Reverse(image.facts.made_at)));
    in_use.insert(wanted.to_owned());
    let limits = Limits {
        // A pool may be smaller than what images may have.
        bytes: capacity.map_or(max_size, |capacity| capacity.min(max_size)),
        age_seconds: ctx.config.images.max_age_seconds,
        in_use,
    };
    let ours = |project: &str| ctx.config.project == project || is_gone(project);
    let (kept, removed) = fates(images, &limits, ours);
    // Nobody reads those of an older format any more.
    let older = stored.iter().filter(|stored| is_older(stored, ours));
    let names = removed.iter().map(|image| &image.name).chain(older.map(|stored| &stored.name));
    let names: Vec<&str> = names.map(String::as_str).collect();
    if !dry_run && !names.is_empty() {
        engine.drop_images(ctx, &names).await?;
    }
    Ok(Pruned { removed, kept, dry_run })
}

/// Does what takes room in a pool; where that has none, once more when older images have gone. `session` is
/// whoever holds off those who lend: where it has ended they have come.
///
/// # Errors
/// What `act` failed with at last.
pub(crate) async fn once_there_is_room<T>(
    ctx: &Context,
    engine: &Engine,
    session: &Session,
    wanted: &str,
    act: impl AsyncFn() -> Result<T, engine::Error>,
) -> Result<T, engine::Error> {
    match act().await {
        Err(error) if !error.is_full_pool() || session.is_closed() => Err(error),
        Err(error) => match make_room(ctx, engine, wanted).await {
            true => act().await,
            false => Err(error),
        },
        done => done,
    }
}

/// Removes all images of this project but the last used of each database, those in use and `wanted`. `false`:
/// there are no others.
pub(crate) async fn make_room(ctx: &Context, engine: &Engine, wanted: &str) -> bool {
    match prune_to(ctx, engine, 0, false, wanted).await {
        Ok(pruned) if pruned.removed.is_empty() => false,
        Ok(pruned) => {
            let names: Vec<&str> = pruned.removed.iter().map(|image| image.name.as_str()).collect();
            ctx.report.note(format!("removed images to make room: {}", names.join(", ")));
            true
        }
        // What had no room is the error that counts.
        Err(error) => {
            ctx.report.detail(format!("no image makes room: {error}"));
            false
        }
    }
}

fn is_older(stored: &Stored, ours: impl Fn(&str) -> bool) -> bool {
    #[derive(Deserialize)]
    struct Any {
        format: u32,
        project: String,
    }
    let any = serde_json::from_str::<Any>(&stored.facts);
    any.is_ok_and(|any| any.format < FORMAT && ours(&any.project))
}

/// Whether a folder is there no more, which somebody who may not look cannot say.
fn is_gone(folder: &str) -> bool {
    let found = std::fs::symlink_metadata(folder);
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

struct Limits {
    bytes: u64,
    age_seconds: u64,
    /// Names of those that stay.
    in_use: BTreeSet<String>,
}

/// Which images stay, and which go. `images` are sorted, the last used first; that of each database
/// stays whatever its size. Only those whose project is `ours` go, or count.
fn fates(
    images: Vec<Listed>,
    limits: &Limits,
    ours: impl Fn(&str) -> bool,
) -> (Vec<Listed>, Vec<Listed>) {
    let mut databases = BTreeSet::new();
    let mut sum = 0;
    images.into_iter().partition(|image| {
        if !ours(&image.facts.project) {
            return true;
        }
        let is_last_used =
            databases.insert((image.facts.project.clone(), image.facts.database.clone()));
        let young = image.unused_seconds <= limits.age_seconds;
        let fits = sum + image.bytes <= limits.bytes;
        let stays = limits.in_use.contains(&image.name) || young && (is_last_used || fits);
        if stays {
            sum += image.bytes;
        }
        stays
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{FORMAT, Facts, Limits, Listed, fates};
    use crate::platform::Platform;

    fn image(name: &str, bytes: u64, unused_seconds: u64) -> Listed {
        Listed {
            name: name.to_owned(),
            bytes,
            age_seconds: 5000,
            unused_seconds,
            facts: Facts {
                format: FORMAT,
                fingerprint: name.to_owned(),
                database: name[..1].to_owned(),
                project: "/p".to_owned(),
                server_version_num: 170_004,
                roles: Vec::new(),
                origin: None,
                schema_version: None,
                base: None,
                applied: Vec::new(),
                received: false,
                is_ground: false,
                platform: Platform::default(),
                made_at: jiff::Timestamp::UNIX_EPOCH,
            },
            environments: Vec::new(),
        }
    }

    #[test]
    fn what_is_old_or_too_much_goes_and_what_is_in_use_or_the_last_used_of_its_database_stays() {
        let in_use = BTreeSet::from(["a0".to_owned(), "c2".to_owned()]);
        let limits = Limits { bytes: 100, age_seconds: 1000, in_use };
        let images = vec![
            image("a3", 80, 1),
            image("a2", 30, 2),
            image("b1", 500, 3),
            image("a1", 10, 4),
            image("a0", 10, 5),
            image("c2", 1, 1001),
            image("c1", 1, 1001),
            image("e1", 1, 1001),
            Listed {
                facts: Facts { project: "/other".to_owned(), ..image("d1", 1, 1).facts },
                ..image("d1", 700, 5000)
            },
        ];
        let names = |images: &[Listed]| images.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        let (kept, removed) = fates(images, &limits, |project| project == "/p");
        assert_eq!(names(&kept), ["a3", "b1", "a0", "c2", "d1"]);
        assert_eq!(names(&removed), ["a2", "a1", "c1", "e1"]);
    }
}
