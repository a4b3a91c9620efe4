//! A sudden drop against the last snapshot: a source that was emptied by mistake should not become
//! everybody's next database unnoticed. Pure.

use std::collections::BTreeMap;

use super::manifest::{Manifest, QualifiedName};

/// A table that had fewer rows than this may become empty on any day.
const MIN_ROWS: u64 = 1000;

/// Less than this share of what was there is a drop.
const SHARE: f64 = 0.5;

/// What fell, in words: the whole first, then tables, those that lost most rows first.
pub fn drops(before: &Manifest, now: &Manifest) -> Vec<String> {
    let mut found = Vec::new();
    if fell(before.rows(), now.rows()) {
        found.push(format!("{} rows in all, {} before", now.rows(), before.rows()));
    } else if fell(before.plain_bytes(), now.plain_bytes()) {
        let (now, before) = (now.plain_bytes(), before.plain_bytes());
        found.push(format!("{now} bytes in all, {before} before"));
    }
    let here: BTreeMap<QualifiedName, u64> =
        now.tables.iter().map(|table| (table.qualified_name(), table.rows)).collect();
    let mut tables: Vec<(u64, String)> = Vec::new();
    for table in &before.tables {
        let name = table.qualified_name();
        match here.get(&name) {
            Some(rows) if fell(table.rows, *rows) => {
                let text = format!("`{name}` has {rows} rows, {} before", table.rows);
                tables.push((table.rows - rows, text));
            }
            // A migration drops tables on purpose.
            Some(_) | None => {}
        }
    }
    tables.sort_by_key(|(lost, _)| std::cmp::Reverse(*lost));
    found.extend(tables.into_iter().map(|(_, text)| text));
    found
}

#[expect(clippy::cast_precision_loss, reason = "a share does not need the last digit")]
fn fell(before: u64, now: u64) -> bool {
    before >= MIN_ROWS && (now as f64) < (before as f64) * SHARE
}
