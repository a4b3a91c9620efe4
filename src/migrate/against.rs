//! `validate --against REVISION`: this folder compared with another revision of git, before a merge.
//!
//! What is new here is what stands in no common ancestor. It must not take a version that the other
//! side has taken, must not come before one that the other side already has, and what both know must
//! be neither changed nor gone.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::Error;
use super::checksum::checksum;
use super::discover::{self, Found};
use super::encoding;
use super::file_name::{Kind, Naming};
use super::resolve::{Scripts, named};
use super::script::Language;
use super::version::Version;
use crate::context::Context;
use crate::git;

/// What the comparison came to.
#[derive(Debug, Clone, Serialize)]
pub struct Against {
    /// As it was asked for.
    pub revision: String,
    /// Where the two sides parted.
    pub base: String,
    pub findings: Vec<AgainstFinding>,
}

/// One thing that would go wrong after a merge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgainstFinding {
    /// `CHANGED`, `RENAMED`, `REMOVED`, `COLLISION`, `OUT_OF_ORDER`.
    pub code: &'static str,
    pub version: Option<String>,
    /// The file here, or the one that is gone.
    pub path: String,
    pub message: String,
}

/// Compares the project's scripts with those of `revision`.
///
/// # Errors
/// No git, no repository, no such revision.
pub async fn against(ctx: &Context, scripts: &Scripts, revision: &str) -> Result<Against, Error> {
    let git = Git { folder: &ctx.config.project, revision };
    let top = Utf8PathBuf::from(git.run(&["rev-parse", "--show-toplevel"]).await?.trim());
    let commit = format!("{revision}^{{commit}}");
    let other = git
        .run(&["rev-parse", "--verify", "--quiet", "--end-of-options", &commit])
        .await
        .map_err(|_| git.error("there is no such revision"))?
        .trim()
        .to_owned();
    // Histories without a common ancestor: everything of the other side is known.
    let base = match git.run(&["merge-base", "HEAD", &other]).await {
        Ok(base) => base.trim().to_owned(),
        Err(_) => other.clone(),
    };
    let theirs = tree(ctx, &git, &top, &other).await?;
    let common = match base == other {
        true => theirs.clone(),
        false => tree(ctx, &git, &top, &base).await?,
    };
    let ours: BTreeMap<Identity, File> = scripts
        .iter()
        .map(|script| {
            let identity = match &script.version {
                Some(version) => Identity::Version(version.clone(), script.kind == Kind::Baseline),
                None => Identity::Repeatable(script.description.clone()),
            };
            let path = below(&top, &script.path).to_owned();
            let (description, language) = (script.description.clone(), script.language);
            (identity, File { path, checksum: script.raw_checksum, description, language })
        })
        .collect();
    Ok(Against { revision: revision.to_owned(), base, findings: compare(&ours, &theirs, &common) })
}

/// What makes a script the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    /// `true`: a baseline script.
    Version(Version, bool),
    Repeatable(String),
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version(version, _) => write!(f, "version {version}"),
            Self::Repeatable(description) => write!(f, "the repeatable `{description}`"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    /// Below the repository.
    path: Utf8PathBuf,
    checksum: i32,
    /// With the language what the history has beside the version: its change is a mismatch.
    description: String,
    language: Language,
}

impl File {
    fn is_named_like(&self, other: &Self) -> bool {
        self.description == other.description && self.language == other.language
    }
}

type Files = BTreeMap<Identity, File>;

/// Pure.
fn compare(ours: &Files, theirs: &Files, common: &Files) -> Vec<AgainstFinding> {
    let mut findings = Vec::new();
    let newest = theirs.keys().filter_map(|identity| match identity {
        Identity::Version(version, _) => Some(version),
        Identity::Repeatable(_) => None,
    });
    let newest = newest.max();
    for (identity, their) in theirs {
        let version = match identity {
            Identity::Version(version, _) => Some(version),
            Identity::Repeatable(_) => None,
        };
        let at = |code, path: &Utf8Path, message: String| AgainstFinding {
            code,
            version: version.map(|version| version.text().to_owned()),
            path: path.to_string(),
            message,
        };
        let known = common.get(identity);
        match (ours.get(identity), known) {
            (Some(our), None) if collides(identity, our, their) => {
                let text = format!(
                    "{identity} is `{}` here and `{}` there: rename the one here",
                    our.path, their.path
                );
                findings.push(at("COLLISION", &our.path, text));
            }
            // A repeatable is there to be changed.
            (Some(our), Some(known)) if version.is_some() && our.checksum != known.checksum => {
                let text =
                    format!("`{}` was changed: write the change into a new script", our.path);
                findings.push(at("CHANGED", &our.path, text));
            }
            (Some(our), Some(known)) if !our.is_named_like(known) => {
                let text = format!(
                    "`{}` was `{}`, and the history may have it by that name: give it back",
                    our.path, known.path
                );
                findings.push(at("RENAMED", &our.path, text));
            }
            (None, Some(known)) => {
                let text = format!("`{}` is gone here, and may be applied there", known.path);
                findings.push(at("REMOVED", &known.path, text));
            }
            (Some(_), _) | (None, None) => {}
        }
    }
    for (identity, our) in ours {
        let Identity::Version(version, false) = identity else { continue };
        let is_new = !common.contains_key(identity) && !theirs.contains_key(identity);
        if let Some(newest) = newest.filter(|newest| is_new && version < *newest) {
            findings.push(AgainstFinding {
                code: "OUT_OF_ORDER",
                version: Some(version.text().to_owned()),
                path: our.path.to_string(),
                message: format!(
                    "`{}` comes before version {newest}, which is there already: give it a higher one",
                    our.path
                ),
            });
        }
    }
    findings
}

/// Whether two new scripts cannot both be there. Of a repeatable in one file git itself asks.
fn collides(identity: &Identity, our: &File, their: &File) -> bool {
    match identity {
        Identity::Version(..) => our.checksum != their.checksum || our.path != their.path,
        Identity::Repeatable(_) => our.path != their.path,
    }
}

/// The scripts below the project's locations in one revision.
async fn tree(
    ctx: &Context,
    git: &Git<'_>,
    top: &Utf8Path,
    revision: &str,
) -> Result<Files, Error> {
    let config = &ctx.config.migrate;
    let naming = Naming::from_config(config);
    let list = git.run(&["ls-tree", "-r", "-z", "--full-tree", "--name-only", revision]).await?;
    let mut files = Files::new();
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        let full = top.join(path);
        let Some(script) = discover::script_name(&config.locations, &full) else { continue };
        // A name that is taken for a program as well as for SQL cannot be there in earnest.
        let Some(named) = named(Found { script, path: full }, &naming).pop() else { continue };
        let identity = match (named.kind, named.version) {
            (Kind::Versioned, Some(version)) => Identity::Version(version, false),
            (Kind::Baseline, Some(version)) => Identity::Version(version, true),
            (Kind::Repeatable, _) => Identity::Repeatable(named.description.clone()),
            _ => continue,
        };
        let bytes = git.bytes(&["cat-file", "blob", &format!("{revision}:{path}")]).await?;
        // What is no text there is compared as bytes would be: it differs.
        let text = match config.detect_encoding {
            true => encoding::detect(bytes),
            false => encoding::decode(bytes, &config.encoding),
        };
        let checksum = text.map_or(0, |text| checksum(&text));
        let (description, language) = (named.description, named.language);
        files.insert(identity, File { path: path.into(), checksum, description, language });
    }
    Ok(files)
}

fn below<'a>(top: &Utf8Path, path: &'a Utf8Path) -> &'a Utf8Path {
    path.strip_prefix(top).unwrap_or(path)
}

struct Git<'a> {
    folder: &'a Utf8Path,
    revision: &'a str,
}

impl Git<'_> {
    fn error(&self, reason: &str) -> Error {
        Error::Git { revision: self.revision.to_owned(), reason: reason.to_owned() }
    }

    async fn run(&self, arguments: &[&str]) -> Result<String, Error> {
        let bytes = self.bytes(arguments).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn bytes(&self, arguments: &[&str]) -> Result<Vec<u8>, Error> {
        let output = tokio::process::Command::from(git::command(self.folder, arguments))
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| self.error(&format!("run git: {error}")))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(self.error(&format!("git {} said: {said}", arguments.join(" "))))
    }
}

#[cfg(test)]
mod tests {
    use super::{File, Files, Identity, compare};
    use crate::migrate::{Language, Version};

    fn files(list: &[(&str, &str, i32)]) -> Files {
        list.iter()
            .map(|(version, path, checksum)| {
                let version = Version::parse(version).expect("is a version");
                let file = File {
                    path: (*path).into(),
                    checksum: *checksum,
                    description: String::new(),
                    language: Language::Sql,
                };
                (Identity::Version(version, false), file)
            })
            .collect()
    }

    #[test]
    fn only_what_would_break_after_a_merge_is_found() {
        let common = files(&[("1", "V1__a.sql", 1), ("2", "V2__b.sql", 2), ("3", "V3__c.sql", 3)]);
        let theirs = files(&[
            ("1", "V1__a.sql", 1),
            ("2", "V2__b.sql", 2),
            ("3", "V3__c.sql", 3),
            ("4", "V4__theirs.sql", 4),
            ("6", "V6__theirs.sql", 6),
        ]);
        let ours = files(&[
            ("1", "V1__a.sql", 1),
            ("2", "V2__b.sql", 22),
            ("4.0", "V4_0__ours.sql", 44),
            ("5", "V5__ours.sql", 5),
            ("7", "V7__ours.sql", 7),
        ]);
        let found: Vec<(&str, String)> = compare(&ours, &theirs, &common)
            .into_iter()
            .map(|finding| (finding.code, finding.path))
            .collect();
        let expected = [
            ("CHANGED", "V2__b.sql"),
            ("REMOVED", "V3__c.sql"),
            ("COLLISION", "V4_0__ours.sql"),
            ("OUT_OF_ORDER", "V5__ours.sql"),
        ];
        assert_eq!(found, expected.map(|(code, path)| (code, path.to_owned())));
        assert!(compare(&theirs, &theirs, &common).is_empty());
        assert!(compare(&common, &theirs, &common).is_empty(), "the branch is only behind");
    }
}
