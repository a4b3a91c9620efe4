//! `seedbed init`: writes the layout of a project.
//!
//! Nothing is ever overwritten. A folder that already has a project's settings is refused before a
//! byte is written; where a team already has migrations, accounts or environments, the sample that
//! would stand beside them is left out.

use std::io::Write;

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::Error;

/// What was done, paths relative to the project.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    pub files: Vec<Utf8PathBuf>,
    /// Samples that were left out because the folder has files of its own.
    pub left_out: Vec<Utf8PathBuf>,
}

const SETTINGS: &str = "conf/seedbed.toml";
const ENVIRONMENT: &str = "conf/dev.toml";

/// Files of the layout. `beside`: endings of files beside which it is left out.
const LAYOUT: &[(&str, &str, &[&str])] = &[
    (
        SETTINGS,
        "# What all environments share. `seedbed config` prints every key, its value and its origin.
[engine]
image = \"postgres:17\"

# Where snapshots live: a folder, or a bucket as \"s3://bucket/prefix\".
[store]
url = \"seed/snapshots\"
",
        &[],
    ),
    (
        ENVIRONMENT,
        "# A developer's own database. No port is named, so a free one is found and remembered.
[database]
user = \"app_owner\"
password = \"only-for-development\"

# Passwords of users/*.sql. They open databases on this machine only.
[flyway.placeholders]
owner_password = \"only-for-development\"
service_password = \"only-for-development\"
",
        &[".toml", ".conf"],
    ),
    (
        "users/10_accounts.sql",
        "-- Accounts. Applied by every `seedbed up`; may run any number of times.
CREATE USER app_owner WITH PASSWORD '${owner_password}';
CREATE USER app_service WITH PASSWORD '${service_password}';
",
        &[".sql"],
    ),
    (
        "users/20_grants.sql",
        "-- What each account may do with the objects that the migrations make.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app_service;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO app_service;
",
        &[".sql"],
    ),
    (
        "sql/V001__init.sql",
        "-- The first migration. `seedbed new \"add orders\"` makes the next file.
create table item (
    item_id bigint generated always as identity primary key,
    name text not null
);
",
        &[".sql"],
    ),
    (
        "seed/README.md",
        "Seed data: `*.sql` and `*.sql.gz` in this folder are loaded after the migrations when no
snapshot fits. Snapshots of the folder store lie in `snapshots/`.
",
        &[".md"],
    ),
];

/// Line of `.gitignore` that keeps ports and generated passwords out of the repository.
const IGNORED: &str = ".seedbed/";

/// Writes the layout into `root`.
///
/// # Errors
/// [`Error::Refused`] when there is a project already; [`Error::File`].
pub fn write(root: &Utf8Path) -> Result<Written, Error> {
    if root.join(SETTINGS).exists() {
        return Err(Error::Refused {
            message: format!("`{root}` is a project already: it has `{SETTINGS}`"),
            hint: Some("see its settings with `seedbed config`".to_owned()),
        });
    }
    // Decided before anything is written: a file of ours must not keep out the next of its folder.
    let mut left_out = Vec::new();
    let mut wanted = Vec::new();
    for (path, text, beside) in LAYOUT {
        // The sample accounts take their passwords from the sample environment.
        let needs_environment = path.starts_with("users/");
        let no_environment = left_out.iter().any(|path| path == ENVIRONMENT);
        if needs_environment && no_environment || has_files(&root.join(path), beside)? {
            left_out.push(Utf8PathBuf::from(*path));
        } else {
            wanted.push((Utf8Path::new(path), *text));
        }
    }
    let mut files = Vec::new();
    for (path, text) in wanted {
        create(&root.join(path), text)?;
        files.push(path.to_owned());
    }
    if ignore_state(&root.join(".gitignore"))? {
        files.push(".gitignore".into());
    }
    Ok(Written { files, left_out })
}

/// Whether the folder of `path` holds files with one of these endings.
fn has_files(path: &Utf8Path, endings: &[&str]) -> Result<bool, Error> {
    let folder = path.parent().unwrap_or(path);
    if !folder.is_dir() {
        return Ok(false);
    }
    let fail = |error| Error::File { action: "read", path: folder.to_owned(), error };
    for entry in folder.read_dir_utf8().map_err(fail)? {
        let name = entry.map_err(fail)?.file_name().to_owned();
        if endings.iter().any(|ending| name.ends_with(ending)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn create(path: &Utf8Path, text: &str) -> Result<(), Error> {
    let fail = |error| Error::File { action: "write", path: path.to_owned(), error };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    // `create_new`: a file that came into being in the meantime is somebody else's.
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)
}

/// Adds our line to `.gitignore` unless it is there; returns whether it was added.
fn ignore_state(path: &Utf8Path) -> Result<bool, Error> {
    let fail = |action| move |error| Error::File { action, path: path.to_owned(), error };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(fail("read")(error)),
    };
    let is_there = text.lines().any(|line| {
        matches!(line.trim().trim_start_matches('/'), ".seedbed" | ".seedbed/" | ".seedbed/*")
    });
    if is_there {
        return Ok(false);
    }
    let start = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let mut file =
        std::fs::OpenOptions::new().append(true).create(true).open(path).map_err(fail("write"))?;
    file.write_all(format!("{start}{IGNORED}\n").as_bytes()).map_err(fail("write"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::write;
    use crate::config::{Flags, load};
    use crate::env::Env;
    use crate::error::Error;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).expect("UTF-8");
        (dir, path)
    }

    #[test]
    fn an_empty_folder_becomes_a_project_that_loads() {
        let (_dir, root) = folder();
        let written = write(&root).expect("an empty folder");
        assert_eq!(
            written.files,
            [
                "conf/seedbed.toml",
                "conf/dev.toml",
                "users/10_accounts.sql",
                "users/20_grants.sql",
                "sql/V001__init.sql",
                "seed/README.md",
                ".gitignore"
            ]
        );
        let env = Env::from_variables([], root.clone());
        let config = load(&env, &Flags::default()).expect("a project that loads");
        assert_eq!(config.notes, Vec::<String>::new());
        assert_eq!(config.database.user, "app_owner");
        assert_eq!(config.migrate.placeholders.len(), 2);

        let error = write(&root).expect_err("a project already");
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    }

    #[test]
    fn what_a_team_has_stays_as_it_is() {
        let (_dir, root) = folder();
        for (path, text) in [
            ("sql/V1__x.sql", "select 1"),
            ("conf/test.conf", "flyway.user=u"),
            (".gitignore", "a"),
        ] {
            fs_err::create_dir_all(root.join(path).parent().expect("a folder")).expect("folder");
            fs_err::write(root.join(path), text).expect("file");
        }
        let written = write(&root).expect("no project yet");
        assert_eq!(
            written.left_out,
            ["conf/dev.toml", "users/10_accounts.sql", "users/20_grants.sql", "sql/V001__init.sql"]
        );
        let env = Env::from_variables([], root.clone());
        assert_eq!(load(&env, &Flags::default()).expect("a project").environment, "test");
        assert_eq!(fs_err::read_to_string(root.join("sql/V1__x.sql")).expect("file"), "select 1");
        let ignored = fs_err::read_to_string(root.join(".gitignore")).expect("file");
        assert_eq!(ignored, "a\n.seedbed/\n");
    }
}
