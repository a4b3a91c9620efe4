//! The files below the locations.
//!
//! Folders are walked recursively, links followed, folders with a leading dot left out. A location
//! may hold `?`, `*` (within one name) and `**` (any number of folders); when its last part holds a
//! dot it is a pattern for files, else for folders.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};

/// One file below a location.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    /// Path below the location, with `/`.
    pub script: String,
    pub path: Utf8PathBuf,
}

/// What the locations hold, and what is odd about them.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub files: Vec<Found>,
    pub warnings: Vec<String>,
    /// Locations that are not there.
    pub missing: Vec<Utf8PathBuf>,
}

/// Lists every file, in order of locations and then of paths.
pub(super) fn list(locations: &[Utf8PathBuf]) -> Listing {
    let mut listing = Listing::default();
    for location in distinct(locations, &mut listing.warnings) {
        let pattern = Pattern::new(&location);
        if !pattern.root.is_dir() {
            listing.missing.push(location);
            continue;
        }
        let mut files = Vec::new();
        walk(&pattern.root, &mut BTreeSet::new(), &mut files, &mut listing.warnings);
        let mut found: Vec<Found> = files
            .into_iter()
            .filter_map(|path| Some(Found { script: pattern.script(&path)?, path }))
            .collect();
        found.sort();
        listing.files.append(&mut found);
    }
    listing
}

/// The folder that a location stands for when nothing in it is a pattern, else the one above.
pub(super) fn root(location: &Utf8Path) -> Utf8PathBuf {
    Pattern::new(location).root
}

/// The name of the script at `path` when one of the locations takes it, whether it is there or not.
pub(super) fn script_name(locations: &[Utf8PathBuf], path: &Utf8Path) -> Option<String> {
    locations.iter().find_map(|location| Pattern::new(location).script(path))
}

/// Sorted, without duplicates and without folders below another one of the list.
fn distinct(locations: &[Utf8PathBuf], warnings: &mut Vec<String>) -> Vec<Utf8PathBuf> {
    let sorted: BTreeSet<&Utf8PathBuf> = locations.iter().collect();
    if sorted.len() < locations.len() {
        warnings.push("a location is listed twice".to_owned());
    }
    let mut kept: Vec<Utf8PathBuf> = Vec::new();
    for location in sorted {
        match kept.iter().find(|outer| !is_pattern(outer.as_str()) && location.starts_with(outer)) {
            Some(outer) => {
                warnings
                    .push(format!("location `{location}` lies below `{outer}` and is left out"));
            }
            None => kept.push(location.clone()),
        }
    }
    kept
}

fn walk(
    folder: &Utf8Path,
    above: &mut BTreeSet<std::path::PathBuf>,
    files: &mut Vec<Utf8PathBuf>,
    warnings: &mut Vec<String>,
) {
    // A link to a folder above would be walked for ever.
    let Ok(real) = folder.canonicalize() else { return };
    if !above.insert(real.clone()) {
        return;
    }
    // What cannot be read is left out, as in Flyway.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = match Utf8PathBuf::from_path_buf(entry.path()) {
            Ok(path) => path,
            Err(path) => {
                warnings.push(format!("`{}` is left out: its name is not UTF-8", path.display()));
                continue;
            }
        };
        if !path.is_dir() {
            files.push(path);
        } else if !path.file_name().is_some_and(|name| name.starts_with('.')) {
            walk(&path, above, files, warnings);
        }
    }
    above.remove(&real);
}

/// A location with its pattern taken apart.
struct Pattern {
    root: Utf8PathBuf,
    /// Below the root; empty: everything there.
    parts: Vec<String>,
    is_for_files: bool,
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

impl Pattern {
    fn new(location: &Utf8Path) -> Self {
        let mut root = Utf8PathBuf::new();
        let mut parts: Vec<String> = Vec::new();
        for component in location.components() {
            if parts.is_empty() && !is_pattern(component.as_str()) {
                root.push(component);
            } else {
                parts.push(component.as_str().to_owned());
            }
        }
        let is_for_files = parts.last().is_some_and(|last| last.contains('.'));
        Self { root, parts, is_for_files }
    }

    /// The script's name of the file at `path`, when the pattern takes it.
    fn script(&self, path: &Utf8Path) -> Option<String> {
        let below: Vec<&str> = path.strip_prefix(&self.root).ok()?.iter().collect();
        let parts: Vec<&str> = self.parts.iter().map(String::as_str).collect();
        if self.is_for_files {
            return matches(&parts, &below).then(|| below.join("/"));
        }
        // The shortest folder that the pattern takes; the file's own name is never part of it.
        let folder = (0..below.len()).find(|&length| matches(&parts, &below[..length]))?;
        Some(below[folder..].join("/"))
    }
}

fn matches(parts: &[&str], names: &[&str]) -> bool {
    match parts {
        [] => names.is_empty(),
        ["**", rest @ ..] => (0..=names.len()).any(|skipped| matches(rest, &names[skipped..])),
        [part, rest @ ..] => match names {
            [name, names @ ..] => {
                let (part, name): (Vec<char>, Vec<char>) =
                    (part.chars().collect(), name.chars().collect());
                name_matches(&part, &name) && matches(rest, names)
            }
            [] => false,
        },
    }
}

fn name_matches(part: &[char], name: &[char]) -> bool {
    match part {
        [] => name.is_empty(),
        ['*', rest @ ..] => (0..=name.len()).any(|skipped| name_matches(rest, &name[skipped..])),
        ['?', rest @ ..] => !name.is_empty() && name_matches(rest, &name[1..]),
        [c, rest @ ..] => name.first() == Some(c) && name_matches(rest, &name[1..]),
    }
}

#[cfg(test)]
mod tests {
    use camino::{Utf8Path, Utf8PathBuf};

    use super::{Pattern, list};

    #[test]
    fn patterns_take_folders_or_files() {
        let script = |location: &str, path: &str| {
            Pattern::new(Utf8Path::new(location)).script(Utf8Path::new(path))
        };
        let taken = |name: &str| Some(name.to_owned());
        assert_eq!(script("/p/sql", "/p/sql/a/V1__x.sql"), taken("a/V1__x.sql"));
        assert_eq!(script("/p/*/sql", "/p/a/sql/r/V1__x.sql"), taken("r/V1__x.sql"));
        assert_eq!(script("/p/**/sql", "/p/a/b/sql/V1__x.sql"), taken("V1__x.sql"));
        assert_eq!(script("/p/r?", "/p/r1/V1__x.sql"), taken("V1__x.sql"));
        assert_eq!(script("/p/r?", "/p/r12/V1__x.sql"), None);
        assert_eq!(script("/p/**/*_prod.sql", "/p/a/V1__x_prod.sql"), taken("a/V1__x_prod.sql"));
        assert_eq!(script("/p/**/*_prod.sql", "/p/a/V1__x_test.sql"), None);
    }

    #[test]
    fn folders_are_walked_without_hidden_ones_and_without_going_round() {
        let folder = tempfile::tempdir().expect("makes a folder");
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).expect("is UTF-8");
        for path in ["V1__a.sql", "r/V2__b.sql", ".git/V3__c.sql", ".V4__d.sql"] {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("has a parent")).expect("makes a folder");
            std::fs::write(path, "").expect("writes");
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(&root, root.join("r/again")).expect("links");
        let listing = list(&[root.clone(), root.join("r"), root.join("none"), root]);
        let scripts: Vec<&str> = listing.files.iter().map(|file| file.script.as_str()).collect();
        assert_eq!(scripts, [".V4__d.sql", "V1__a.sql", "r/V2__b.sql"]);
        assert_eq!(listing.warnings.len(), 3);
        assert!(listing.missing.is_empty());
    }
}
