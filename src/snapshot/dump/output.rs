//! Rows as they come from the server, on their way into the store.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::sync::mpsc::Sender;

use super::super::catalog::Relation;
use super::super::chunk::{BLOCK_BYTES, Plain};
use super::super::plan::Range;
use super::super::source;
use super::rows::Owner;
use super::storing::Unit;
use super::{Error, Run, doing};
use crate::pg::{self, Session};

/// A chunk ends with the row that fills it: room for one is reserved, longer ones make it grow.
const LONG_ROW: usize = 64 * 1024;

/// The rows of one job on their way into the queue of what is to be stored.
pub(super) struct Output<'q, 'a, 'r> {
    run: &'r Run<'a>,
    queue: &'q Sender<Unit<'r>>,
    /// Small things share an object; else each chunk is one.
    packing: bool,
    rows: Plain,
    parts: Vec<(Owner, usize, Plain)>,
    parts_bytes: u64,
}

impl<'q, 'a, 'r> Output<'q, 'a, 'r> {
    pub(super) fn new(run: &'r Run<'a>, queue: &'q Sender<Unit<'r>>, packing: bool) -> Self {
        let rows = Plain { bytes: Vec::new(), rows: 0 };
        Self { run, queue, packing, rows, parts: Vec::new(), parts_bytes: 0 }
    }

    /// Takes the `rows` of one table, or of a range of its blocks.
    pub(super) async fn take(
        &mut self,
        rows: impl Stream<Item = Result<Bytes, pg::Error>> + Send,
        table: &Relation,
        range: Option<Range>,
        owner: Owner,
    ) -> Result<(), Error> {
        let failed = |error| doing(format!("copy `{}`", table.name))(error);
        let mut rows = std::pin::pin!(rows);
        let mut place = 0;
        let mut whole = true;
        // Text is rarely longer than the blocks it comes from: then a range is one chunk.
        let limit = range.map_or(0, Range::bytes).max(self.run.chunk_bytes) as usize;
        let capacity = if range.is_some() { limit + LONG_ROW } else { 0 };
        // The stream ends only where the server says that no row follows; a lost connection is an error.
        while let Some(row) = next_row(&mut rows, self.run.stall).await {
            let Some(row) = row else {
                let (what, seconds) = (format!("copy `{}`", table.name), self.run.stall.as_secs());
                return Err(Error::Stalled { what, seconds });
            };
            let row = row.map_err(failed)?;
            if self.rows.bytes.is_empty() {
                self.rows.bytes.reserve(capacity);
            }
            whole = row.last() == Some(&b'\n');
            self.rows.bytes.extend_from_slice(&row);
            self.rows.rows += u64::from(whole);
            if whole && self.rows.bytes.len() >= limit {
                self.end_chunk(owner, place).await;
                place += 1;
            }
        }
        if !whole {
            return Err(Error::CutShort { table: table.name.to_string() });
        }
        if !self.rows.bytes.is_empty() {
            self.end_chunk(owner, place).await;
        }
        Ok(())
    }

    pub(super) async fn large_object(
        &mut self,
        session: &Session,
        oid: u32,
        owner: Owner,
    ) -> Result<(), Error> {
        let piece = i32::try_from(BLOCK_BYTES).expect("a MiB fits");
        let mut place = 0;
        let mut offset = 0_i64;
        loop {
            let piece_of = "select lo_get($1, $2, $3)";
            let values: [&(dyn pg::ToSql + Sync); 3] = [&oid, &offset, &piece];
            let read = session.query_one(piece_of, &values);
            let row = self.run.soon(format!("read large object {oid}"), read).await?;
            let data: &[u8] = row.get(0);
            self.rows.bytes.extend_from_slice(data);
            if self.rows.bytes.len() as u64 >= self.run.chunk_bytes {
                self.end_chunk(owner, place).await;
                place += 1;
            }
            if data.len() < BLOCK_BYTES {
                break;
            }
            offset += i64::from(piece);
        }
        if !self.rows.bytes.is_empty() {
            self.end_chunk(owner, place).await;
        }
        Ok(())
    }

    async fn end_chunk(&mut self, owner: Owner, place: usize) {
        let empty = Plain { bytes: Vec::new(), rows: 0 };
        let rows = std::mem::replace(&mut self.rows, empty);
        self.parts_bytes += rows.bytes.len() as u64;
        self.parts.push((owner, place, rows));
        if !self.packing || self.parts_bytes >= self.run.chunk_bytes {
            self.flush().await;
        }
    }

    /// Hands on what is left.
    pub(super) async fn flush(&mut self) {
        self.parts_bytes = 0;
        let parts = std::mem::take(&mut self.parts);
        if !parts.is_empty() {
            self.run.send(self.queue, parts).await;
        }
    }
}

/// The next row; the inner `None` when none came within `stall`. A row that is here already costs no
/// timer: there are millions.
async fn next_row<S>(rows: &mut S, stall: Duration) -> Option<Option<Result<Bytes, pg::Error>>>
where
    S: Stream<Item = Result<Bytes, pg::Error>> + Unpin,
{
    let row = match rows.next().now_or_never() {
        Some(row) => row,
        None => match tokio::time::timeout(stall, rows.next()).await {
            Ok(row) => row,
            Err(_) => return Some(None),
        },
    };
    row.map(Some)
}

/// For the rows of one table, or of a range of its blocks.
pub(super) fn copy_statement(table: &Relation, range: Option<Range>, encoding: &str) -> String {
    let name = source::qualified(&table.name.schema, &table.name.name, encoding);
    let columns = || {
        let names: Vec<String> =
            table.columns.iter().map(|column| source::ident(column, encoding)).collect();
        names.join(", ")
    };
    let condition = table.extension.as_ref().map_or("", |extension| extension.condition.as_str());
    match range {
        Some(Range { from, to, .. }) => {
            let end = to.map_or_else(String::new, |to| format!(" and ctid < '({to},0)'"));
            format!(
                "copy (select {} from only {name} where ctid >= '({from},0)'{end}) to stdout",
                columns()
            )
        }
        None if condition.is_empty() => {
            let list = source::column_list(&table.columns, encoding);
            format!("copy {name}{list} to stdout")
        }
        None => format!("copy (select {} from only {name} {condition}) to stdout", columns()),
    }
}
