//! What every journey carries: configuration, surroundings, where to report, whether to stop.

use camino::Utf8PathBuf;
use tokio_util::sync::CancellationToken;

use crate::config::{Branch, Config};
use crate::env::Env;
use crate::error::Error;
use crate::report::Reporter;

/// Handed by reference to every verb.
#[derive(Clone)]
pub struct Context {
    pub config: std::sync::Arc<Config>,
    pub env: std::sync::Arc<Env>,
    pub report: Reporter,
    pub cancel: CancellationToken,
    /// `--yes`: questions are answered before they are asked.
    pub yes: bool,
}

impl Context {
    /// `.seedbed/` at the project's root: the default environment's, and what all of them share.
    pub fn project_dir(&self) -> Utf8PathBuf {
        self.config.project.join(".seedbed")
    }

    /// Where this environment's state lies: a branch has a folder of its own.
    pub fn state_dir(&self) -> Utf8PathBuf {
        match &self.config.branch {
            Some(branch) => self.branches_dir().join(branch.slug()),
            None => self.project_dir(),
        }
    }

    /// Where the branches' folders are.
    pub fn branches_dir(&self) -> Utf8PathBuf {
        self.project_dir().join("branches")
    }

    /// The folders of the project's branches, by name; of one that is being removed no longer.
    pub fn branch_dirs(&self) -> Vec<Utf8PathBuf> {
        let Ok(entries) = self.branches_dir().read_dir_utf8() else { return Vec::new() };
        let mut dirs: Vec<Utf8PathBuf> = entries
            .flatten()
            .filter(|entry| !entry.file_name().starts_with('.') && entry.path().is_dir())
            .map(|entry| entry.path().to_owned())
            .collect();
        dirs.sort();
        dirs
    }

    /// The same in the environment of a branch; from the default environment's.
    pub fn on_branch(&self, branch: Branch) -> Self {
        Self { config: std::sync::Arc::new(self.config.on_branch(branch)), ..self.clone() }
    }

    /// The same for work that comes to its end although the user has asked to stop: what puts things
    /// back. Every wait in it has a limit of its own.
    pub fn uninterrupted(&self) -> Self {
        Self { cancel: CancellationToken::new(), ..self.clone() }
    }

    /// Fails once the user has asked to stop.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Runs `work` until it ends or the user asks to stop; `work` is then dropped where it stands.
    ///
    /// # Errors
    /// [`Error::Interrupted`], or what `work` failed with.
    pub async fn until_cancelled<T, E: Into<Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::Interrupted),
            // Work that was asked to stop may say so first, each part of it in its own words.
            result = work => result.map_err(|error| match self.cancel.is_cancelled() {
                true => Error::Interrupted,
                false => error.into(),
            }),
        }
    }
}
