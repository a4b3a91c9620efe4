//! What can be wrong with a configuration. All of it ends with exit code 3.

use camino::Utf8PathBuf;

use super::keys::quoted;

/// Why no effective configuration could be made. `place` is a file with its line, a variable or a
/// flag; values of secret keys never stand in an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "find the project: neither `{start}` nor a folder above it has `conf/`, `flyway.conf` or `flyway.toml`"
    )]
    NoProject { start: Utf8PathBuf },
    #[error(
        "`{path}` is not a project: it has neither `conf/` nor `flyway.conf` nor `flyway.toml`"
    )]
    NotAProject { path: Utf8PathBuf },
    #[error("no environment `{name}`: {}", existing(environments))]
    UnknownEnvironment { name: String, environments: Vec<String> },
    #[error("no environment named and no default: {}", existing(environments))]
    NoEnvironment { environments: Vec<String> },
    #[error("take git's branch of `{project}`: {reason}")]
    NoGitBranch { project: Utf8PathBuf, reason: String },
    #[error("`--branch {name}` names no branch")]
    BranchName { name: String },
    #[error("read `{path}`")]
    Read { path: Utf8PathBuf, source: std::io::Error },
    #[error("read `{place}`: {reason}")]
    Syntax { place: String, reason: String },
    #[error("unknown key `{key}` in {place}")]
    UnknownKey { place: String, key: String, nearest: Option<String> },
    /// `value` is absent for a secret.
    #[error("`{key}` in {place} wants {expected}{}", got(value))]
    WrongValue { place: String, key: String, expected: String, value: Option<String> },
    #[error("`{key}` in {place} takes variable `{variable}`, which is not set")]
    UnsetVariable { place: String, key: String, variable: String },
    #[error("read the file that `{key}` in {place} names, `{path}`")]
    SecretFile { place: String, key: String, path: Utf8PathBuf, source: std::io::Error },
    #[error("`{key}` in {place}: {reason}")]
    Value { place: String, key: String, reason: String, hint: Option<String> },
}

impl Error {
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::NoProject { .. } => vec![
                "make one here with `seedbed init`".to_owned(),
                "or name it: `seedbed --project DIR …`".to_owned(),
            ],
            Self::NotAProject { path } => {
                vec![format!("make one with `seedbed --project {path} init`")]
            }
            Self::UnknownEnvironment { name, environments } => match environments.first() {
                Some(first) => vec![
                    format!("name one that exists: `--env {first}`"),
                    format!("or make it: `conf/{name}.toml`"),
                ],
                None => vec![format!("make it: `conf/{name}.toml`")],
            },
            Self::NoEnvironment { environments } => {
                let first = environments.first().map_or("dev", String::as_str);
                vec![
                    format!("name one: `--env {first}`"),
                    format!("or write `default_env = \"{first}\"` in `conf/seedbed.toml`"),
                ]
            }
            Self::NoGitBranch { .. } => vec![
                "check one out with `git switch BRANCH`, or name it: `--branch NAME`".to_owned(),
                "or use the default environment: `--branch default`".to_owned(),
            ],
            Self::BranchName { .. } => vec!["name one: `--branch add-orders`".to_owned()],
            Self::UnknownKey { nearest: Some(nearest), .. } => {
                vec![format!("did you mean `{nearest}`?")]
            }
            Self::UnknownKey { nearest: None, .. } => {
                vec!["`seedbed config` lists every key".to_owned()]
            }
            Self::UnsetVariable { variable, .. } => vec![format!("`export {variable}=…`")],
            Self::Value { hint, .. } => hint.iter().cloned().collect(),
            Self::Read { .. }
            | Self::Syntax { .. }
            | Self::WrongValue { .. }
            | Self::SecretFile { .. } => Vec::new(),
        }
    }
}

fn existing(environments: &[String]) -> String {
    match environments {
        [] => "`conf/` has no environment file".to_owned(),
        [only] => format!("there is `{only}`"),
        several => format!("there are {}", quoted(several)),
    }
}

fn got(value: &Option<String>) -> String {
    value.as_ref().map_or(String::new(), |value| format!(", not `{value}`"))
}
