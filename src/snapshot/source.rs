//! Sessions on a snapshot's source: read-only by their own settings, deaf to hostile defaults.
//!
//! Text COPY prints values by a dozen settings that a role or a database may have changed; each is
//! fixed here, the same for writing and for reading. Time-outs that would end a long copy are off.

use crate::pg::{Error, Session, SimpleQueryMessage, Target, quote};

/// What the rows' text depends on; the loading session sets the same.
///
/// `lc_monetary` is `C` on both sides: `money` is stored as a whole number, and any locale reads what
/// it wrote, but not every server has the source's locale.
pub(super) const TEXT_SETTINGS: &str = "\
set datestyle = 'ISO, YMD';
set intervalstyle = postgres;
set extra_float_digits = 3;
set bytea_output = hex;
set timezone = 'UTC';
set lc_monetary = 'C';
set xmloption = content;
set standard_conforming_strings = on;
set array_nulls = on;
set search_path = '';
set row_security = off;
";

/// Lifts what only newer servers have; the first thing of a session, which ends by it when it pauses.
pub(super) const NO_IDLE_LIMITS: &str = "\
select pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings
where name in ('idle_session_timeout', 'transaction_timeout');
";

const SOURCE_SETTINGS: &str = "\
set default_transaction_read_only = on;
set statement_timeout = 0;
set lock_timeout = 0;
set idle_in_transaction_session_timeout = 0;
set synchronize_seqscans = off;
set max_parallel_workers_per_gather = 0;
set quote_all_identifiers = off;
set jit = off;
";

/// Opens a session on the source that can only read.
///
/// # Errors
/// When the server cannot be reached or refuses a setting.
pub(crate) async fn open(target: &Target) -> Result<Session, Error> {
    let session = Session::connect(target).await?;
    session.batch(&format!("{NO_IDLE_LIMITS}{SOURCE_SETTINGS}")).await?;
    session.batch(TEXT_SETTINGS).await?;
    Ok(session)
}

/// Whether a pooler lies before the server that gives a session another backend for each transaction:
/// settings then hold for whom it happens to serve, and a snapshot is read by other rules than ours.
///
/// # Errors
/// What the server said.
pub(super) async fn is_pooled(session: &Session, target: &Target) -> Result<bool, Error> {
    let before = backend(session).await?;
    // A pooler gives the backend that has just become free to whoever comes first.
    let other = Session::connect(target).await?;
    other.batch("begin").await?;
    let of_other = backend(&other).await?;
    let after = backend(session).await?;
    other.batch("rollback").await?;
    other.close().await;
    Ok(before != after || of_other == before)
}

async fn backend(session: &Session) -> Result<Option<String>, Error> {
    // Not prepared: that is what such poolers cannot do.
    let messages = session.simple("select pg_backend_pid()").await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// Opens a session that sees what the leader's exported snapshot shows.
///
/// # Errors
/// When the leader's transaction has ended.
pub(super) async fn open_at(target: &Target, snapshot: &Snapshot) -> Result<Session, Error> {
    let session = open(target).await?;
    session.batch("begin isolation level repeatable read, read only").await?;
    session.batch(&format!("set transaction snapshot {}", quote::literal(&snapshot.id))).await?;
    if snapshot.encoding != "UTF8" {
        // From here on rows pass as the bytes that the server holds; names are sent as escapes.
        session
            .batch(&format!("set client_encoding = {}", quote::literal(&snapshot.encoding)))
            .await?;
    }
    Ok(session)
}

/// An exported snapshot and what its readers must know.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub id: String,
    /// The server's encoding, which is that of the rows.
    pub encoding: String,
    pub version_num: i32,
}

/// `name` quoted so that it means the same whatever the session's `client_encoding` is: the driver
/// sends UTF-8, so in other encodings what is not ASCII goes as an escape.
pub(super) fn ident(name: &str, encoding: &str) -> String {
    if name.is_ascii() || matches!(encoding, "UTF8" | "SQL_ASCII") {
        return quote::ident(name);
    }
    let mut text = String::from("U&\"");
    for letter in name.chars() {
        match letter {
            '"' => text.push_str("\"\""),
            '\\' => text.push_str("\\\\"),
            _ if letter.is_ascii() => text.push(letter),
            _ => text.push_str(&format!("\\+{:06x}", u32::from(letter))),
        }
    }
    text.push('"');
    text
}

/// `schema.name` by [`ident`].
pub(super) fn qualified(schema: &str, name: &str, encoding: &str) -> String {
    format!("{}.{}", ident(schema, encoding), ident(name, encoding))
}

/// `(a, b)`, or nothing where a table has no column to copy: COPY then takes rows of no columns.
pub(super) fn column_list(columns: &[String], encoding: &str) -> String {
    if columns.is_empty() {
        return String::new();
    }
    let names: Vec<String> = columns.iter().map(|name| ident(name, encoding)).collect();
    format!(" ({})", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{column_list, ident};

    #[test]
    fn names_survive_every_client_encoding() {
        assert_eq!(ident("a\"b", "LATIN1"), "\"a\"\"b\"");
        assert_eq!(ident("zähler", "UTF8"), "\"zähler\"");
        assert_eq!(ident("zä\\\"", "LATIN1"), "U&\"z\\+0000e4\\\\\"\"\"");
    }

    #[test]
    fn a_table_without_columns_is_copied_without_a_list() {
        assert_eq!(column_list(&[], "UTF8"), "");
        assert_eq!(column_list(&["a".to_owned(), "b".to_owned()], "UTF8"), " (\"a\", \"b\")");
    }
}
