//! Whether a role can read all of a source, decided before a byte is uploaded. Pure.
//!
//! What cannot be read is named, object by object: a snapshot that silently lacks a table or the rows
//! that a policy hides is worse than none.

use super::catalog::Catalog;
use crate::pg::quote;

/// Names shown before the rest is counted: more would bury the hint.
const SHOWN: usize = 20;

/// Why a source cannot be read completely; each part names its objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unreadable {
    pub role: String,
    /// No SELECT, or no USAGE on the schema.
    pub tables: Vec<String>,
    /// Policies would hide rows.
    pub row_security: Vec<String>,
    pub sequences: Vec<String>,
    pub large_objects: Vec<u32>,
    /// Rows of unlogged tables do not exist on a standby.
    pub unlogged_on_standby: Vec<String>,
}

/// The statement that lets `role` read every table.
pub(super) fn grant_to_read(role: &str) -> String {
    format!("as a superuser: grant pg_read_all_data to {};", quote::ident(role))
}

impl Unreadable {
    fn is_empty(&self) -> bool {
        self.tables.is_empty()
            && self.row_security.is_empty()
            && self.sequences.is_empty()
            && self.large_objects.is_empty()
            && self.unlogged_on_standby.is_empty()
    }

    /// At most two statements that give what is missing.
    pub fn hints(&self) -> Vec<String> {
        let role = quote::ident(&self.role);
        let mut hints = Vec::new();
        if !self.tables.is_empty() || !self.sequences.is_empty() {
            hints.push(grant_to_read(&self.role));
        }
        if !self.row_security.is_empty() {
            hints.push(format!("as a superuser: alter role {role} bypassrls;"));
        }
        if let Some(first) = self.large_objects.first() {
            hints.push(format!(
                "as their owner, for each: grant select on large object {first} to {role}; or set \
                 `snapshot.skip_large_objects = true`"
            ));
        }
        if !self.unlogged_on_standby.is_empty() {
            hints.push("take the snapshot from the primary server".to_owned());
        }
        hints.truncate(2);
        hints
    }
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "read all of the source as `{}`", self.role)?;
        list(f, "no right to select from", &self.tables)?;
        list(f, "row-level security hides rows of", &self.row_security)?;
        list(f, "no right to read the sequences", &self.sequences)?;
        let objects: Vec<String> = self.large_objects.iter().map(u32::to_string).collect();
        list(f, "no right to read the large objects", &objects)?;
        list(f, "unlogged, so without rows on this standby", &self.unlogged_on_standby)
    }
}

fn list(f: &mut std::fmt::Formatter<'_>, what: &str, names: &[String]) -> std::fmt::Result {
    if names.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    write!(f, ": {what} {}", shown.join(", "))?;
    match names.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

/// `None` when everything can be read.
pub(super) fn check(catalog: &Catalog, skip_large_objects: bool) -> Option<Unreadable> {
    let tables = || catalog.tables.iter();
    let unreadable = Unreadable {
        role: catalog.role.clone(),
        tables: tables()
            .filter(|table| !table.readable)
            .map(|table| table.name.to_string())
            .collect(),
        row_security: tables()
            .filter(|table| table.plain && table.row_security)
            .map(|table| table.name.to_string())
            .collect(),
        sequences: catalog
            .sequences
            .iter()
            .filter(|sequence| !sequence.readable)
            .map(|sequence| sequence.name.to_string())
            .collect(),
        large_objects: catalog
            .large_objects
            .iter()
            .filter(|object| !object.readable && !skip_large_objects)
            .map(|object| object.oid)
            .collect(),
        unlogged_on_standby: tables()
            .filter(|table| table.plain && table.unlogged && catalog.in_recovery)
            .map(|table| table.name.to_string())
            .collect(),
    };
    (!unreadable.is_empty()).then_some(unreadable)
}

#[cfg(test)]
mod tests {
    use super::Unreadable;

    #[test]
    fn every_object_is_named_with_the_statement_that_helps() {
        let unreadable = Unreadable {
            role: "snap".to_owned(),
            tables: vec!["s.a".to_owned(), "s.b".to_owned()],
            large_objects: vec![7],
            ..Unreadable::default()
        };
        assert_eq!(
            unreadable.to_string(),
            "read all of the source as `snap`: no right to select from `s.a`, `s.b`: \
             no right to read the large objects `7`"
        );
        assert_eq!(unreadable.hints().len(), 2);
        assert_eq!(unreadable.hints()[0], "as a superuser: grant pg_read_all_data to \"snap\";");
    }
}
