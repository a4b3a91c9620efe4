//! The process's surroundings, read once at the start: variables, folders, terminal.
//!
//! Nothing else in the program reads the environment; tests build an [`Env`] by hand.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use camino::Utf8PathBuf;

/// What the process was started with.
#[derive(Debug, Clone, Default)]
pub struct Env {
    variables: BTreeMap<String, String>,
    /// The folder that the process was started in.
    pub current_dir: Utf8PathBuf,
    /// Whether standard error is a terminal.
    pub stderr_is_terminal: bool,
    /// Whether standard input is a terminal, so that a question can be asked.
    pub stdin_is_terminal: bool,
    /// The user's name, for `installed_by`-like defaults.
    pub user: Option<String>,
}

impl Env {
    /// The real process's.
    pub fn from_process() -> Self {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let current_dir = std::env::current_dir()
            .ok()
            .and_then(|path| Utf8PathBuf::from_path_buf(path).ok())
            .unwrap_or_else(|| Utf8PathBuf::from("."));
        Self {
            user: variables.get("USER").cloned(),
            variables,
            current_dir,
            stderr_is_terminal: std::io::stderr().is_terminal(),
            stdin_is_terminal: std::io::stdin().is_terminal(),
        }
    }

    /// An environment with these variables only.
    pub fn from_variables(
        variables: impl IntoIterator<Item = (String, String)>,
        current_dir: Utf8PathBuf,
    ) -> Self {
        Self { variables: variables.into_iter().collect(), current_dir, ..Self::default() }
    }

    /// The value of a variable; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All variables whose names start with `prefix`, as (name, value).
    pub fn with_prefix<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> + 'a {
        self.variables
            .iter()
            .filter(move |(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The user's home folder.
    pub fn home(&self) -> Option<Utf8PathBuf> {
        self.get("HOME").or_else(|| self.get("USERPROFILE")).map(Utf8PathBuf::from)
    }

    /// The folder for what can be made again (chunks, embedded binaries): `SEEDBED_CACHE_DIR`, or
    /// `seedbed` in the user's cache folder.
    pub fn cache_dir(&self) -> Utf8PathBuf {
        if let Some(dir) = self.get("SEEDBED_CACHE_DIR") {
            return Utf8PathBuf::from(dir);
        }
        if let Some(dir) = self.get("XDG_CACHE_HOME") {
            return Utf8PathBuf::from(dir).join("seedbed");
        }
        let home = self.home().unwrap_or_else(|| Utf8PathBuf::from("."));
        if cfg!(target_os = "macos") {
            home.join("Library/Caches/seedbed")
        } else {
            home.join(".cache/seedbed")
        }
    }

    /// The folders that programs are looked up in.
    pub fn path(&self) -> Vec<Utf8PathBuf> {
        let Some(path) = self.get("PATH") else { return Vec::new() };
        std::env::split_paths(path).filter_map(|dir| Utf8PathBuf::from_path_buf(dir).ok()).collect()
    }
}
