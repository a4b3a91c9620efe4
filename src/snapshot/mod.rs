//! Snapshots: published, immutable copies of one database.
//!
//! [`manifest`] is the document that makes one exist, its [`name`] tells what can be known without
//! reading it, [`history`] says what its migration history means. [`choose`] decides which one a
//! checkout restores (pure), [`find`] asks the store for it, [`verify`] reads every byte again.
//! [`dump`] turns a source into chunks and a manifest, [`publish`] writes the manifest, [`load`] turns
//! both into a database again. [`schema`] is for whoever wants a source's schema and nothing else.

mod catalog;
pub mod choose;
pub(crate) mod chunk;
pub(crate) mod compare;
pub(crate) mod contents;
mod crew;
pub mod dump;
pub mod export;
mod fetch;
pub mod find;
pub mod history;
pub mod load;
pub mod manifest;
mod marks;
pub mod name;
mod plan;
pub mod preflight;
pub mod prune;
pub mod publish;
pub mod restore;
pub mod retain;
pub(crate) mod schema;
pub mod shrink;
pub(crate) mod source;
pub mod verify;

pub use choose::{Checkout, Facts, Misfit};
pub use find::{
    Listed, Listing, Wanted, Why, checkout, facts, find, list, listing, show, sources_matching, why,
};
pub use manifest::Manifest;
pub use verify::{Verified, verify};

use crate::database::{Locale, Provider};
use crate::error::Exit;
use crate::store;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Pg(#[from] crate::pg::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    /// `object` is the manifest's name in the store.
    #[error("read manifest `{object}`: {error}")]
    Manifest { object: String, error: manifest::ManifestError },
    #[error("no snapshot fits this checkout{}", newest_reason(.store, .newest.as_ref()))]
    NoneFits {
        store: String,
        /// The newest one's id, and why it does not fit.
        newest: Option<(String, String)>,
    },
    /// The one that was asked for by name.
    #[error("snapshot {id} does not fit this checkout: {misfit}")]
    Unfit { id: String, misfit: Misfit },
    #[error("the newest snapshot that may fit, `{object}`, is {reason}")]
    NewestDamaged {
        object: String,
        reason: String,
        /// The id of the next one that fits.
        next: Option<String>,
    },
    /// Its manifest is right, a chunk is not; `reason` names both.
    #[error("{reason}")]
    DamagedWhileLoading {
        reason: String,
        id: String,
        /// The id of the next one that fits.
        next: Option<String>,
    },
    #[error("no snapshot's id begins with `{id}`")]
    NoSuchSnapshot { id: String },
    #[error("`{id}` means several snapshots: {}", .ids.join(", "))]
    AmbiguousId { id: String, ids: Vec<String> },
    #[error("`{object}` is damaged: {detail}")]
    Damaged { object: String, detail: String },
    #[error("verify: {findings}")]
    VerifyFailed { findings: verify::Findings },
    #[error(transparent)]
    Dump(#[from] dump::Error),
    #[error(transparent)]
    Load(#[from] load::Error),
    #[error("there is no snapshot in {store}")]
    EmptyStore { store: String },
    #[error("the listing of {store} lacks `{object}`, which is there")]
    ListingIncomplete { store: String, object: String },
    /// Chunks that a run of `prune` took away while the snapshot was taken.
    #[error("publish `{object}`: {chunks} of its chunks were removed from the store meanwhile")]
    ChunksLost { object: String, chunks: usize },
    #[error("write `{path}`: {error}")]
    Export { path: camino::Utf8PathBuf, error: std::io::Error },
    #[error("export into `{path}`: the folder is not empty")]
    ExportNotEmpty { path: camino::Utf8PathBuf },
    #[error("far less than in the last snapshot {id}: {}", .findings.join("; "))]
    Shrunk { id: String, findings: Vec<String> },
    #[error(
        "nothing to compare with: none of the newest {looked} snapshots in the store is of `{database}`"
    )]
    LastOutOfReach { database: String, looked: usize },
    /// Another manifest has the name that was to be ours.
    #[error("publish `{object}`: another snapshot has this name")]
    Taken { object: String },
}

impl From<fetch::Error> for Error {
    fn from(error: fetch::Error) -> Self {
        match error {
            fetch::Error::Damaged { object, damage } => {
                Self::Damaged { object, detail: damage.to_string() }
            }
            fetch::Error::Store(error) => Self::Store(error),
        }
    }
}

/// How a database that takes the snapshot's rows is to encode and sort text.
pub fn locale(manifest: &manifest::Manifest) -> Locale {
    let server = &manifest.server;
    let provider = match (server.locale_provider.as_str(), server.locale.clone()) {
        ("icu", Some(locale)) => Some(Provider::Icu { locale, rules: server.icu_rules.clone() }),
        ("builtin", Some(locale)) => Some(Provider::Builtin { locale }),
        _ => None,
    };
    Locale {
        encoding: Some(server.encoding.clone()),
        collate: Some(server.collate.clone()),
        ctype: Some(server.ctype.clone()),
        provider,
    }
}

fn newest_reason(store: &str, newest: Option<&(String, String)>) -> String {
    match newest {
        Some((id, reason)) => format!(": the newest in `{store}`, {id}, is no match: {reason}"),
        None => format!(": there is none in `{store}`"),
    }
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Pg(error) => crate::error::pg_exit(error),
            Self::Store(error) => error.exit(),
            Self::Manifest { .. }
            | Self::NewestDamaged { .. }
            | Self::DamagedWhileLoading { .. }
            | Self::Damaged { .. }
            | Self::VerifyFailed { .. } => Exit::Damaged,
            Self::Dump(error) => error.exit(),
            Self::Load(error) => error.exit(),
            Self::Taken { .. } | Self::ListingIncomplete { .. } => Exit::Store,
            Self::ChunksLost { .. } => Exit::Damaged,
            Self::Export { .. } | Self::ExportNotEmpty { .. } => Exit::CommandLine,
            Self::Shrunk { .. } | Self::LastOutOfReach { .. } => Exit::CheckFailed,
            Self::NoneFits { .. }
            | Self::Unfit { .. }
            | Self::EmptyStore { .. }
            | Self::NoSuchSnapshot { .. } => Exit::NoSnapshot,
            Self::AmbiguousId { .. } => Exit::CommandLine,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        let see_why = || vec!["see the reason of each: `seedbed snapshot why`".to_owned()];
        match self {
            Self::Pg(_) | Self::Taken { .. } | Self::Export { .. } => Vec::new(),
            Self::EmptyStore { .. } => vec![
                "check that `store.url` is the place that is meant: `seedbed config`".to_owned(),
            ],
            Self::ListingIncomplete { .. } => {
                vec!["nothing was removed; try again later".to_owned()]
            }
            Self::ChunksLost { .. } => {
                vec!["take it again, which uploads them: `seedbed snapshot create`".to_owned()]
            }
            Self::ExportNotEmpty { .. } => vec!["name a folder that does not exist yet".to_owned()],
            Self::Shrunk { .. } => vec![
                "look at the source; if that is how it should be, leave out `--strict`".to_owned(),
            ],
            Self::LastOutOfReach { .. } => vec![
                "give this database a prefix of its own: `store.url`".to_owned(),
                "take this one without `--strict`; the next has it to compare with".to_owned(),
            ],
            Self::Dump(error) => error.hints(),
            Self::Load(error) => error.hints(),
            Self::Store(error) => error.hints(),
            Self::Manifest { error, .. } => error.hints(),
            Self::NoneFits { newest: None, .. } => {
                vec!["make one: `seedbed snapshot create --env prod`".to_owned()]
            }
            Self::NoneFits { .. } | Self::Unfit { .. } => see_why(),
            Self::NewestDamaged { next: Some(id), .. } => {
                vec![format!("take the next one that fits, {id}: `--skip-damaged`")]
            }
            Self::NewestDamaged { next: None, .. } => see_why(),
            Self::DamagedWhileLoading { id, next, .. } => {
                let all = format!("see all of the damage: `seedbed snapshot verify {id}`");
                let next = next.as_ref().map_or_else(
                    || {
                        "no older one fits; make one: `seedbed snapshot create --env prod`"
                            .to_owned()
                    },
                    |next| format!("take the next one that fits, {next}: `--skip-damaged`"),
                );
                vec![next, all]
            }
            Self::NoSuchSnapshot { .. } | Self::AmbiguousId { .. } => {
                vec!["see their ids: `seedbed snapshot list`".to_owned()]
            }
            Self::VerifyFailed { .. } => vec![
                "take a new snapshot, which stores them again: `seedbed snapshot create --env prod`"
                    .to_owned(),
                "until then: `seedbed up --skip-damaged`".to_owned(),
            ],
            Self::Damaged { .. } => {
                vec!["see what else is damaged: `seedbed snapshot verify`".to_owned()]
            }
        }
    }
}
