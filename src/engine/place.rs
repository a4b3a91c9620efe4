//! Where PostgreSQL's programs are on this machine, and which folders an unprivileged user reaches.

use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use camino::{Utf8Path, Utf8PathBuf};

use super::Error;
use crate::context::Context;

/// A folder with the server's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BinDir {
    pub dir: Utf8PathBuf,
    pub major: u32,
}

/// The folders that may hold PostgreSQL's programs, in the order in which they are tried.
fn candidates(ctx: &Context) -> Vec<Utf8PathBuf> {
    if let Some(dir) = &ctx.config.engine.bin_dir {
        return vec![dir.clone()];
    }
    let mut dirs = ctx.env.path();
    let mut versioned = Vec::new();
    // Debian and Ubuntu; Red Hat's PGDG packages; Homebrew on Apple silicon and on Intel.
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
    ] {
        let Ok(entries) = Utf8Path::new(parent).read_dir_utf8() else { continue };
        for entry in entries.flatten() {
            let version = entry.file_name().strip_prefix(prefix);
            if let Some(major) = version.and_then(|version| version.parse::<u32>().ok()) {
                versioned.push((major, entry.path().join("bin")));
            }
        }
    }
    versioned.sort();
    dirs.extend(versioned.into_iter().rev().map(|(_, dir)| dir));
    dirs.extend(["/opt/homebrew/opt/libpq/bin", "/usr/local/opt/libpq/bin"].map(Utf8PathBuf::from));
    dirs
}

/// The first folder whose `program` is of a version that `fits`.
pub(crate) async fn find(
    ctx: &Context,
    program: &str,
    fits: impl Fn(u32) -> bool,
) -> Option<BinDir> {
    for dir in candidates(ctx) {
        let path = dir.join(program);
        if !path.is_file() {
            continue;
        }
        let real = path.canonicalize_utf8().ok();
        // Debian's wrapper chooses a version by clusters of its own: not a client of one version.
        if real.as_ref().is_some_and(|real| real.file_name() == Some("pg_wrapper")) {
            continue;
        }
        // A link in `/usr/local/bin` may point at the real folder, where its siblings are.
        let dir = real
            .filter(|real| real.file_name() == Some(program))
            .and_then(|real| real.parent().map(Utf8Path::to_owned))
            .unwrap_or(dir);
        let Ok(major) = major_of(&path).await else { continue };
        if fits(major) {
            return Some(BinDir { dir, major });
        }
    }
    None
}

/// The major version of a program, by its own word.
pub(crate) async fn major_of(program: &Utf8Path) -> Result<u32, Error> {
    let fail = |reason: String| Error::Program { program: program.to_string(), reason };
    let output = tokio::process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| fail(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_major(&text).ok_or_else(|| fail(format!("it says {:?} of its version", text.trim())))
}

/// `initdb (PostgreSQL) 17.2 (Debian 17.2-1)` → 17.
fn parse_major(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Whom servers and `initdb` run as: PostgreSQL refuses root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// The user to change to; `None`: we are not root, and stay who we are.
pub(super) fn run_as() -> Option<RunAs> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    for name in ["postgres", "nobody"] {
        if let Ok(Some(user)) = nix::unistd::User::from_name(name) {
            return Some(RunAs { uid: user.uid.as_raw(), gid: user.gid.as_raw() });
        }
    }
    // Every Unix has this number for nobody in particular.
    Some(RunAs { uid: 65534, gid: 65534 })
}

/// A folder that the server's user can reach: `preferred`, or one below `/var/lib/seedbed` when a
/// folder above the preferred one is closed to it (a project in `/root`).
pub(super) fn reachable(preferred: &Utf8Path, fallback: &str, user: Option<RunAs>) -> Utf8PathBuf {
    match user {
        Some(user) if !preferred.ancestors().skip(1).all(|dir| can_search(dir, user)) => {
            Utf8Path::new("/var/lib/seedbed").join(fallback)
        }
        Some(_) | None => preferred.to_owned(),
    }
}

/// Whether `user` may pass through `dir`; a folder that is not there yet will be ours to open.
fn can_search(dir: &Utf8Path, user: RunAs) -> bool {
    let Ok(metadata) = dir.metadata() else { return true };
    let bit = if metadata.uid() == user.uid {
        0o100
    } else if metadata.gid() == user.gid {
        0o010
    } else {
        0o001
    };
    metadata.mode() & bit != 0
}

/// Gives `path` to the server's user.
pub(super) fn give(path: &Utf8Path, user: Option<RunAs>) -> Result<(), Error> {
    let Some(user) = user else { return Ok(()) };
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
        .map_err(Error::file("change the owner of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_say_them() {
        for (text, major) in [
            ("initdb (PostgreSQL) 17.2 (Debian 17.2-1.pgdg120+1)", Some(17)),
            ("pg_dump (PostgreSQL) 18beta1", Some(18)),
            ("psql (PostgreSQL) 9.6.24", Some(9)),
            ("pg_dump of something else", None),
        ] {
            assert_eq!(parse_major(text), major, "{text}");
        }
    }

    #[test]
    fn a_closed_folder_above_sends_the_data_elsewhere() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = Utf8Path::from_path(dir.path()).expect("UTF-8");
        let open = |mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        let stranger = Some(RunAs { uid: 64_321, gid: 64_321 });
        open(0o700).expect("closes");
        assert_eq!(reachable(&path.join("a/b"), "x", stranger), "/var/lib/seedbed/x");
        assert_eq!(reachable(&path.join("a/b"), "x", None), path.join("a/b"));
        open(0o711).expect("opens");
        assert_eq!(reachable(&path.join("a/b"), "x", stranger), path.join("a/b"));
    }
}
