//! Flyway's verbs on PostgreSQL: same files, same history table, same checksums, same lock.
//!
//! [`resolve`] reads the project's scripts, `plan` decides (pure), `apply` acts. One connection does
//! everything: a session lock on Flyway's key keeps other runners out, and a script and its row in
//! the history are one transaction, so that nothing can be applied and unrecorded.

mod against;
mod apply;
mod baseline;
mod callbacks;
pub mod checksum;
mod clean;
mod discover;
mod dry_run;
mod encoding;
mod error;
mod failure;
pub mod file_name;
mod flight;
mod history;
mod info;
mod lock;
mod new;
mod patience;
mod place;
mod placeholders;
mod plan;
mod program;
mod repair;
mod resolve;
mod run;
mod schemas;
mod script;
mod statements;
mod transaction;
mod undo;
mod upgrade;
mod validate;
pub mod version;

pub use against::{Against, AgainstFinding, against};
pub use baseline::{Baselined, baseline};
pub use clean::{Cleaned, clean};
pub use dry_run::{DryRun, DryScript, dry_run};
pub use encoding::DecodeError;
pub use error::Error;
pub use failure::{Account, Left, ScriptFailure};
pub(crate) use history::applied;
pub use history::{HistoryRow, read_history};
pub use info::{Info, InfoFilter, InfoRow, Validation, info, validate, validation};
pub use new::new_script;
pub use placeholders::PlaceholderError;
pub use plan::State;
pub use repair::{Act, Repaired, Touched, repair};
pub use resolve::{Scripts, resolve};
pub use run::{Halted, Options, Outcome, Ran, run, run_or_halt};
pub use script::{Language, Script, ScriptSettings, SourcePlace};
pub use undo::{Undone, undo, undo_plan};
pub use upgrade::upgrade_history;
pub use validate::Finding;
pub use version::Version;
