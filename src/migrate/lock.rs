//! Flyway's lock: one advisory key per history table, shared with Flyway itself.
//!
//! Taken for the session and by *trying*: a session that waits inside of the server holds a snapshot,
//! which a concurrent index build of the holder would wait for in turn (Flyway issue 1654).

use std::time::Duration;

use super::Error;
use crate::context::Context;
use crate::pg::{Session, ToSql, Type};

/// What Flyway adds the hash of the table's quoted name to.
const BASE: i64 = 77_431_708_279_161;

/// Between two tries; Flyway's own.
const INTERVAL: Duration = Duration::from_secs(1);

/// The key for a table, given as `"schema"."name"`.
pub(super) fn key(quoted_table: &str) -> i64 {
    // Java's String.hashCode.
    let hash = quoted_table
        .encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    BASE + i64::from(hash)
}

/// Takes the lock, trying again `retries` times (for ever if negative).
///
/// # Errors
/// [`Error::Locked`] with whoever holds it, [`Error::Interrupted`].
pub(super) async fn acquire(
    ctx: &Context,
    session: &Session,
    key: i64,
    retries: i64,
) -> Result<(), Error> {
    let mut tries = 0_i64;
    loop {
        if try_once(session, key).await? {
            return Ok(());
        }
        if retries >= 0 && tries >= retries {
            let holder = holder(session, key).await?;
            return Err(Error::Locked { holder, seconds: tries.unsigned_abs() });
        }
        if tries == 0 {
            let holder = holder(session, key).await?;
            ctx.report.note(format!("waiting for another migration to end: {holder}"));
        }
        tries += 1;
        if tokio::time::timeout(INTERVAL, ctx.cancel.cancelled()).await.is_ok() {
            return Err(Error::Interrupted);
        }
    }
}

/// Takes the lock if nobody has it.
pub(super) async fn try_once(session: &Session, key: i64) -> Result<bool, Error> {
    let values: [(&(dyn ToSql + Sync), Type); 1] = [(&key, Type::INT8)];
    let rows = session.ask("select pg_catalog.pg_try_advisory_lock($1)", &values).await?;
    Ok(rows.iter().any(|row| row.get(0)))
}

/// Gives the lock back. `false`: a script had dropped it (`discard all`).
pub(super) async fn release(session: &Session, key: i64) -> Result<bool, Error> {
    // Unlocking what is not locked would show a warning to the user.
    let sql = "select case when exists (
            select from pg_catalog.pg_locks
            where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid() and objsubid = 1
                and classid::bigint = ($1::bigint >> 32) and objid::bigint = ($1::bigint & 4294967295))
        then pg_catalog.pg_advisory_unlock($1) else false end";
    let values: [(&(dyn ToSql + Sync), Type); 1] = [(&key, Type::INT8)];
    Ok(session.ask(sql, &values).await?.iter().any(|row| row.get(0)))
}

/// Who holds the lock, in words.
pub(super) async fn holder(session: &Session, key: i64) -> Result<String, Error> {
    let sql = "select l.pid, coalesce(a.usename::text, ''), coalesce(a.application_name, ''),
            coalesce(host(a.client_addr), ''), coalesce(to_char(a.xact_start, 'HH24:MI:SS'), '')
        from pg_catalog.pg_locks l
        left join pg_catalog.pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'advisory' and l.granted and l.objsubid = 1
            and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
            and l.classid::bigint = ($1::bigint >> 32) and l.objid::bigint = ($1::bigint & 4294967295)";
    let Some(row) = session.query_opt(sql, &[&key]).await? else {
        return Ok("a session that has just ended".to_owned());
    };
    let mut text = format!("process {}", row.get::<_, i32>(0));
    for (label, column) in [("of", 1), ("running", 2), ("from", 3), ("in a transaction since", 4)] {
        let value: String = row.get(column);
        if !value.is_empty() {
            text.push_str(&format!(" {label} `{value}`"));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn the_key_is_flyways() {
        assert_eq!(key("\"public\".\"flyway_schema_history\""), 77_433_833_903_597);
    }
}
