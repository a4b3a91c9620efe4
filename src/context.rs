//! What every journey carries: configuration, surroundings, where to report, whether to stop.

use camino::Utf8PathBuf;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
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
    /// `.seedbed/` at the project's root.
    pub fn state_dir(&self) -> Utf8PathBuf {
        self.config.project.join(".seedbed")
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
