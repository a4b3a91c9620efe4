//! What a recorded migration history means: which scripts are in force.
//!
//! Pure. The rows are those of `flyway_schema_history`; a later row about a version overrules an
//! earlier one, `DELETE` and `UNDO_*` rows take a version back, markers apply nothing.

use std::collections::BTreeMap;

use crate::migrate::Version;
use crate::snapshot::chunk::short_hash;
use crate::snapshot::manifest::Applied;

/// What one row says about its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A versioned script ran (`SQL`, `JDBC`, `SCRIPT` …).
    Script,
    /// A baseline script ran (`SQL_BASELINE` …): stands for all versions up to its own.
    BaselineScript,
    /// `BASELINE`: somebody declared that all versions up to this one are in.
    BaselineMarker,
    /// `DELETE`, `UNDO_*`: the version was taken back.
    Undone,
}

/// The last word of the history about one version.
#[derive(Debug, Clone)]
pub(crate) struct InForce<'a> {
    /// The text where it is no version: an old tool wrote it.
    pub version: Result<Version, &'a str>,
    pub role: Role,
    pub row: &'a Applied,
}

impl InForce<'_> {
    pub(crate) fn text(&self) -> &str {
        match &self.version {
            Ok(version) => version.text(),
            Err(text) => text,
        }
    }
}

/// The last word about each version that was not taken back, in ascending order of version.
pub(crate) fn in_force(rows: &[Applied]) -> Vec<InForce<'_>> {
    let mut ordered: Vec<&Applied> = rows.iter().collect();
    ordered.sort_by_key(|row| row.rank);
    let mut states: BTreeMap<Result<Version, &str>, (Role, &Applied)> = BTreeMap::new();
    for row in ordered {
        let (Some(text), Some(role)) = (row.version.as_deref(), role(&row.kind)) else { continue };
        let version = Version::parse(text).map_err(|_| text);
        if role == Role::Undone {
            states.remove(&version);
        } else {
            states.insert(version, (role, row));
        }
    }
    let in_force = |(version, (role, row))| InForce { version, role, row };
    states.into_iter().map(in_force).collect()
}

/// The highest version in force, baselines included.
pub fn current_version(rows: &[Applied]) -> Option<String> {
    in_force(rows).last().map(|state| state.text().to_owned())
}

/// The version in a snapshot's name: the highest that a script brought, so that a checkout that ends
/// below it can be told unfit by the name alone. `none` without such a script; `odd` where the text
/// has characters that a name must not have.
pub(super) fn name_version(rows: &[Applied]) -> String {
    let states = in_force(rows);
    let Some(last) = states.iter().rfind(|state| state.role != Role::BaselineMarker) else {
        return "none".to_owned();
    };
    let text = last.text();
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if plain { text.to_owned() } else { "odd".to_owned() }
}

/// Twelve hexadecimal digits that are equal when the same versions are in force with the same
/// checksums: such snapshots fit the same checkouts.
pub fn hash(rows: &[Applied]) -> String {
    let line = |state: &InForce<'_>| {
        let checksum = state.row.checksum.map_or("null".to_owned(), |sum| sum.to_string());
        format!("{}\0{:?}\0{checksum}\0{}\n", state.text(), state.role, state.row.success)
    };
    let lines: String = in_force(rows).iter().map(line).collect();
    short_hash(lines.as_bytes())
}

fn role(kind: &str) -> Option<Role> {
    if kind == "BASELINE" {
        return Some(Role::BaselineMarker);
    }
    if kind == "SCHEMA" {
        return None;
    }
    if kind == "DELETE" || kind.starts_with("UNDO_") {
        return Some(Role::Undone);
    }
    // `*_STATE_SCRIPT` is what older builds called a baseline script (`type` values, older or paid).
    if kind.ends_with("_BASELINE") || kind.ends_with("_STATE_SCRIPT") {
        return Some(Role::BaselineScript);
    }
    Some(Role::Script)
}
