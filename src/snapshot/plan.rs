//! How a source's tables are cut into jobs. Pure.
//!
//! A large table is read by ranges of blocks whose borders depend on the block numbers only: what did
//! not change since last week gives the same chunk, and its upload is skipped. Small tables go
//! together into one stored object.

use super::catalog::{LargeObjectRef, Relation};

/// What one worker does at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    /// Rows of one table, by index: all, or those in blocks `from..to`.
    Rows { table: usize, range: Option<Range> },
    /// All rows of several small tables.
    Small { tables: Vec<usize> },
    /// Large objects, by index.
    LargeObjects { objects: std::ops::Range<usize> },
}

/// Blocks `from..to`; the last range of a table has no end, for what was appended meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub from: u32,
    pub to: Option<u32>,
    /// Blocks in a whole range of this table.
    pub step: u32,
}

impl Range {
    /// Bytes of a whole range's blocks.
    pub(super) fn bytes(self) -> u64 {
        u64::from(self.step) * BLOCK_BYTES
    }

    /// Bytes of a table that a whole range of it stands for, long values included.
    pub(super) fn share(self, table: &Relation) -> u64 {
        (table.bytes / u64::from(table.blocks.max(1)) * u64::from(self.step)).min(table.bytes)
    }
}

/// A table up to this size (with its TOAST table) shares an object with others: some thousand rows.
const SMALL_BYTES: u64 = 256 * 1024;

/// Tables in one object: more would keep the other workers idle.
pub(super) const SMALL_TABLES: usize = 64;

/// Large objects in one job, for the same reason.
const LARGE_OBJECTS: usize = 256;

/// Ranges of `ctid` are scanned by range from this version on; before, each would read the table.
const TID_RANGE_SCAN: i32 = 140_000;

const BLOCK_BYTES: u64 = 8192;

/// A table in more ranges than this has ranges of twice the size, and so on: the manifest names each.
/// One that grows past such a border is uploaded whole once more.
const MAX_RANGES: u32 = 4096;

/// Blocks in the largest range, 16 MiB: several are in memory at once.
const MAX_STEP: u32 = 2048;

/// The jobs of a snapshot, largest first.
pub(super) fn jobs(
    tables: &[Relation],
    large_objects: &[LargeObjectRef],
    chunk_bytes: u64,
    version_num: i32,
) -> Vec<Job> {
    let mut jobs: Vec<(u64, Job)> = Vec::new();
    let mut small: (u64, Vec<usize>) = (0, Vec::new());
    for (at, table) in tables.iter().enumerate().filter(|(_, table)| table.plain) {
        if table.bytes <= SMALL_BYTES {
            if small.1.len() >= SMALL_TABLES || small.0 + table.bytes > chunk_bytes {
                let (bytes, tables) = std::mem::take(&mut small);
                jobs.push((bytes, Job::Small { tables }));
            }
            small.0 += table.bytes;
            small.1.push(at);
            continue;
        }
        for range in ranges(table, chunk_bytes, version_num) {
            jobs.push((table.bytes, Job::Rows { table: at, range }));
        }
    }
    if !small.1.is_empty() {
        jobs.push((small.0, Job::Small { tables: small.1 }));
    }
    // Stable, so the ranges of a table stay in order.
    jobs.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let mut jobs: Vec<Job> = jobs.into_iter().map(|(_, job)| job).collect();
    let mut first = 0;
    while first < large_objects.len() {
        let next = large_objects.len().min(first + LARGE_OBJECTS);
        jobs.push(Job::LargeObjects { objects: first..next });
        first = next;
    }
    jobs
}

fn ranges(table: &Relation, chunk_bytes: u64, version_num: i32) -> Vec<Option<Range>> {
    let mut step = u32::try_from(chunk_bytes / BLOCK_BYTES).unwrap_or(u32::MAX).max(16);
    let splits = table.heap && table.extension.is_none() && version_num >= TID_RANGE_SCAN;
    // Long values lie beside the table, so its blocks stand for many more bytes. By halves, because the
    // borders move when this does.
    let per_block = table.bytes / u64::from(table.blocks.max(1));
    while step > 1 && u64::from(step) * per_block > 2 * chunk_bytes {
        step /= 2;
    }
    if !splits || table.blocks <= step {
        return vec![None];
    }
    while step < MAX_STEP && table.blocks / step > MAX_RANGES {
        step *= 2;
    }
    let mut ranges = Vec::new();
    let mut from = 0;
    while from < table.blocks {
        let next = from.saturating_add(step);
        let to = (next < table.blocks).then_some(next);
        ranges.push(Some(Range { from, to, step }));
        from = next;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::{Job, Range, Relation, jobs};
    use crate::snapshot::manifest::QualifiedName;

    fn table(blocks: u32) -> Relation {
        Relation {
            oid: 1,
            name: QualifiedName { schema: "s".to_owned(), name: "t".to_owned() },
            plain: true,
            columns: Vec::new(),
            blocks,
            bytes: u64::from(blocks) * 8192,
            heap: true,
            unlogged: false,
            readable: true,
            row_security: false,
            through_root: None,
            extension: None,
        }
    }

    #[test]
    fn the_borders_of_ranges_do_not_move_when_a_table_grows() {
        let ranges = |blocks| jobs(&[table(blocks)], &[], 1024 * 1024, 150_000);
        let Job::Rows { range: Some(first), .. } = &ranges(300)[0] else { panic!("not split") };
        assert_eq!(*first, Range { from: 0, to: Some(128), step: 128 });
        assert_eq!(ranges(300)[..2], ranges(900)[..2]);
        let last = Job::Rows { table: 0, range: Some(Range { from: 256, to: None, step: 128 }) };
        assert_eq!(ranges(300)[2], last);
    }

    #[test]
    fn the_ranges_of_a_very_large_table_are_larger_but_fit_into_memory() {
        let count = |blocks| jobs(&[table(blocks)], &[], 4 * 1024 * 1024, 150_000).len();
        assert_eq!(count(512 * 4096), 4096);
        assert_eq!(count(512 * 4098), 2049);
        let Job::Rows { range: Some(last), .. } =
            jobs(&[table(u32::MAX - 1)], &[], 4 * 1024 * 1024, 150_000).pop().expect("some")
        else {
            panic!("not split");
        };
        assert_eq!(last.bytes(), 16 * 1024 * 1024);
    }

    #[test]
    fn a_table_of_long_values_is_cut_by_their_bytes() {
        let long = |bytes| Relation { bytes, ..table(100) };
        let count = |bytes| jobs(&[long(bytes)], &[], 4 * 1024 * 1024, 150_000).len();
        assert_eq!(count(100 * 8192), 1, "its blocks alone are one range");
        assert_eq!(count(400 * 1024 * 1024), 50, "two blocks of 4 MiB in a range");
        assert_eq!(count(100 << 30), 100, "a block cannot be cut");
    }

    #[test]
    fn an_old_server_reads_whole_tables_and_small_ones_go_together() {
        let tables = [table(1000), table(1), table(2)];
        assert_eq!(
            jobs(&tables, &[], 1024 * 1024, 130_000),
            [Job::Rows { table: 0, range: None }, Job::Small { tables: vec![1, 2] }]
        );
    }
}
