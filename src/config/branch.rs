//! Which branch is meant: an environment of its own beside the project's default one.
//!
//! `--branch NAME` or `SEEDBED_BRANCH`; `git` means the branch that the project's folder is on, and
//! `default` none. Whatever the name holds, its folder has one that every file system, Docker and a
//! shell take.

use std::process::Output;

use camino::Utf8Path;
use sha2::{Digest, Sha256};

use super::error::Error;
use super::{Config, Origin};
use crate::env::Env;
use crate::git;

/// What `--branch` says for the environment without a branch.
pub const DEFAULT: &str = "default";
/// What `--branch` says for the branch that git is on.
const GIT: &str = "git";
const VARIABLE: &str = "SEEDBED_BRANCH";

/// Names of containers, volumes and folders have limits; this leaves room for what stands around it.
const SLUG_CHARS: usize = 40;
/// Hexadecimal digits that tell names apart whose slugs would be equal.
const HASH_CHARS: usize = 8;

/// A name, and the same in `[a-z0-9-]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    name: String,
    slug: String,
}

impl Branch {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), slug: slug(name) }
    }

    /// The branch whose folder is called `slug`. Without a name that is known the folder's has to do.
    pub fn in_folder(slug: &str, name: Option<&str>) -> Self {
        Self { name: name.unwrap_or(slug).to_owned(), slug: slug.to_owned() }
    }

    /// As it was typed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For folders and the like: no two names share one.
    pub fn slug(&self) -> &str {
        &self.slug
    }
}

/// The name itself where it will do, else what is left of it with a hash.
pub fn slug(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let will_do = !name.is_empty()
        && name.len() <= SLUG_CHARS
        && name.chars().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && ![DEFAULT, GIT].contains(&name)
        && !ends_with_hash(name);
    if will_do {
        return name.to_owned();
    }
    let kept: String = name
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if plain(c) { c } else { '-' })
        .take(SLUG_CHARS)
        .collect();
    let hash = Sha256::digest(name.as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let kept = kept.trim_matches('-');
    let kept = if kept.is_empty() { "branch" } else { kept };
    format!("{kept}-{}", &hash[..HASH_CHARS])
}

/// Whether it could be the slug of another name.
fn ends_with_hash(name: &str) -> bool {
    let hash = |end: &str| end.len() == HASH_CHARS && end.chars().all(|c| c.is_ascii_hexdigit());
    name.rsplit_once('-').is_some_and(|(_, end)| hash(end))
}

/// The branch that the command line or the variable names; `None`: the default environment.
///
/// # Errors
/// [`Error::NoGitBranch`], [`Error::BranchName`].
pub fn branch(env: &Env, named: Option<&str>, project: &Utf8Path) -> Result<Option<Branch>, Error> {
    let Some(name) = named.or_else(|| env.get(VARIABLE)) else { return Ok(None) };
    match name.trim() {
        DEFAULT => Ok(None),
        GIT => git_branch(project).map(|name| Some(Branch::new(&name))),
        name if name.is_empty() || name.contains(char::is_control) => {
            Err(Error::BranchName { name: name.to_owned() })
        }
        name => Ok(Some(Branch::new(name))),
    }
}

/// The branch that the folder's repository is on, also before its first commit.
fn git_branch(project: &Utf8Path) -> Result<String, Error> {
    let fail = |reason: String| Error::NoGitBranch { project: project.to_owned(), reason };
    let ask = |arguments: &[&str]| -> Result<Output, Error> {
        git::command(project, arguments)
            .output()
            .map_err(|error| fail(format!("git cannot be run: {error}")))
    };
    let head = ask(&["symbolic-ref", "--quiet", "--short", "HEAD"])?;
    if head.status.success() {
        return Ok(String::from_utf8_lossy(&head.stdout).trim().to_owned());
    }
    let inside = ask(&["rev-parse", "--git-dir"])?;
    Err(fail(match inside.status.success() {
        true => "its HEAD is detached: no branch is checked out".to_owned(),
        false => format!("git said: {}", String::from_utf8_lossy(&inside.stderr).trim()),
    }))
}

impl Config {
    /// The configuration of a branch's environment. Host and port that the files name are those of the
    /// default one: a branch has a server of its own, on a port of its own.
    pub fn on_branch(&self, branch: Branch) -> Self {
        let mut config = self.clone();
        config.database.named = false;
        "localhost".clone_into(&mut config.database.host);
        config.database.port = None;
        config.engine.port = None;
        let key = "branch".to_owned();
        let source = format!("--branch or {VARIABLE}");
        config.origins.push(Origin { key, value: branch.name.clone(), source });
        config.branch = Some(branch);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::{SLUG_CHARS, slug};

    #[test]
    fn a_plain_name_is_its_own_slug() {
        for name in ["main", "add-orders-2", "7"] {
            assert_eq!(slug(name), name);
        }
    }

    #[test]
    fn no_two_names_share_a_slug() {
        let long = "x".repeat(100);
        let longer = "x".repeat(101);
        let hashed = slug("a/b");
        let names = [
            "a/b", "a-b", "A-b", "a_b", "a b", "-a-b", "ü", "ö", "default", "git", "Main", "main",
            &long, &longer, &hashed, "..", "/",
        ];
        let slugs: std::collections::BTreeSet<String> = names.map(slug).into();
        assert_eq!(slugs.len(), names.len(), "{slugs:?}");
        for slug in &slugs {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(slug.chars().all(plain) && !slug.starts_with('-'), "{slug}");
            assert!(slug.len() <= SLUG_CHARS + 9, "{slug}");
        }
        assert!(slug("a/b").starts_with("a-b-"), "{}", slug("a/b"));
        assert!(!slugs.contains("default") && !slugs.contains("git"));
    }
}
