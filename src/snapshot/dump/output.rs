//! Rows as they come from the server, on their way into the store.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};

use super::super::catalog::Relation;
use super::super::chunk::{BLOCK_BYTES, FrameWriter, Pack};
use super::super::plan::Range;
use super::super::source::{self, Snapshot};
use super::rows::{Done, Owner};
use super::{Error, Run, doing};
use crate::pg::{self, Session};

/// Frames of one job on their way into the store.
pub(super) struct Output<'a, 'r> {
    pub run: &'r Run<'a>,
    pub writer: FrameWriter,
    pub pack: Pack,
    /// Small things share an object; else each frame is one.
    pub packing: bool,
    pub owners: Vec<(Owner, usize)>,
    pub done: Vec<Done>,
}

impl<'a, 'r> Output<'a, 'r> {
    pub(super) fn new(run: &'r Run<'a>) -> Self {
        Self {
            run,
            writer: FrameWriter::new(run.level),
            pack: Pack::default(),
            packing: false,
            owners: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Copies the rows of one table, or of a range of its blocks.
    pub(super) async fn copy(
        &mut self,
        session: &Session,
        snapshot: &Snapshot,
        table: &Relation,
        range: Option<Range>,
        owner: Owner,
    ) -> Result<(), Error> {
        let failed = |error| doing(format!("copy `{}`", table.name))(error);
        let sql = copy_statement(table, range, &snapshot.encoding);
        let rows = self.run.soon(format!("copy `{}`", table.name), session.copy_out(&sql)).await?;
        let mut rows = std::pin::pin!(rows);
        let mut place = 0;
        let mut whole = true;
        // The stream ends only after the server has said how many rows it sent.
        while let Some(row) = next_row(&mut rows, self.run.stall).await {
            let Some(row) = row else {
                let (what, seconds) = (format!("copy `{}`", table.name), self.run.stall.as_secs());
                return Err(Error::Stalled { what, seconds });
            };
            let row = row.map_err(failed)?;
            whole = row.last() == Some(&b'\n');
            self.writer.write(&row, u64::from(whole)).await.map_err(Error::Compress)?;
            if whole && self.writer.plain_size() >= self.run.chunk_bytes {
                self.end_frame(owner, place).await?;
                place += 1;
            }
        }
        if !whole {
            return Err(Error::CutShort { table: table.name.to_string() });
        }
        if self.writer.plain_size() > 0 {
            self.end_frame(owner, place).await?;
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
            self.writer.write(data, 0).await.map_err(Error::Compress)?;
            if self.writer.plain_size() >= self.run.chunk_bytes {
                self.end_frame(owner, place).await?;
                place += 1;
            }
            if data.len() < BLOCK_BYTES {
                break;
            }
            offset += i64::from(piece);
        }
        if self.writer.plain_size() > 0 {
            self.end_frame(owner, place).await?;
        }
        Ok(())
    }

    pub(super) async fn end_frame(&mut self, owner: Owner, place: usize) -> Result<(), Error> {
        let frame = self.writer.finish().await.map_err(Error::Compress)?;
        self.run.plain_bytes.fetch_add(frame.plain_size, Ordering::Relaxed);
        self.pack.push(self.owners.len(), frame);
        self.owners.push((owner, place));
        if !self.packing || self.pack.len() as u64 >= self.run.chunk_bytes {
            self.flush().await?;
        }
        Ok(())
    }

    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        if self.pack.is_empty() {
            return Ok(());
        }
        for (at, chunk) in self.run.store(std::mem::take(&mut self.pack)).await? {
            let (owner, place) = self.owners[at];
            self.done.push(Done { owner, place, chunk });
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<Vec<Done>, Error> {
        self.flush().await?;
        Ok(self.done)
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

fn copy_statement(table: &Relation, range: Option<Range>, encoding: &str) -> String {
    let name = source::qualified(&table.name.schema, &table.name.name, encoding);
    let columns = || {
        let names: Vec<String> =
            table.columns.iter().map(|column| source::ident(column, encoding)).collect();
        names.join(", ")
    };
    let condition = table.extension.as_ref().map_or("", |extension| extension.condition.as_str());
    match range {
        Some(Range { from, to }) => {
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
