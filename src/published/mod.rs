//! Published images: ready data directories in the store, so that a first `up` is a download.
//!
//! [`make`] builds a database on a scratch server as `reset` would, takes out what is a secret
//! ([`scrub`]) and stores the stopped server's data directory in pieces; the document that names them is
//! written last ([`document`]). [`arrive`] takes one that fits this server ([`crate::platform`]) and this
//! checkout, where that is faster than loading rows ([`estimate`]); whatever is in the way is said, and
//! the rows are loaded. Pieces are each image's own: they go with it ([`prune`]).

mod arrive;
pub mod document;
mod estimate;
pub mod files;
mod make;
mod pack;
mod prune;
mod scrub;
mod unpack;

pub(crate) use arrive::{Arrival, For, arrive};
pub use document::Image;
pub use make::{Made, can_be_made_for, make};
pub use prune::{Swept, drop_of, prune};

use crate::error::Exit;
use crate::snapshot::chunk::Damage;
use crate::snapshot::manifest::ManifestError;

/// Why an image could not be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("compress a piece of the image: {error}")]
    Compress { error: std::io::Error },
    /// `object` is the document's name in the store.
    #[error("read the image `{object}`: {error}")]
    Document { object: String, error: ManifestError },
    #[error("publish the image `{object}`: another one has this name")]
    Taken { object: String },
    #[error("publish the image `{object}`: {what} is gone, which a prune has removed meanwhile")]
    Gone { object: String, what: String },
    #[error("`{object}`: {damage}")]
    Damaged { object: String, damage: Damage },
    #[error("make an image: the environment `{environment}` has a server of somebody else's")]
    NoServerOfOurs { environment: String },
    #[error("make an image: {what}, so it would not be what others build")]
    Unlike { what: String },
    #[error("make an image: {what} would be in it")]
    Secret { what: String },
    #[error(
        "make an image: the subscription `{name}` would be in it, and everybody who takes the image \
         would take the publisher's changes from the others"
    )]
    Subscription { name: String },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Compress { .. } | Self::Taken { .. } | Self::Gone { .. } => Exit::Store,
            Self::Document { .. } | Self::Damaged { .. } => Exit::Damaged,
            Self::NoServerOfOurs { .. }
            | Self::Unlike { .. }
            | Self::Secret { .. }
            | Self::Subscription { .. } => Exit::Refused,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Compress { .. } | Self::Taken { .. } => Vec::new(),
            Self::Unlike { .. } => {
                vec!["make it on a machine that has what the snapshot needs".to_owned()]
            }
            Self::Secret { .. } => {
                vec![
                    "name roles and their passwords in the users files instead; give other secrets to \
                     whoever needs them when they connect"
                        .to_owned(),
                ]
            }
            Self::Subscription { .. } => {
                vec!["create it by hand where it is wanted, after `seedbed up`".to_owned()]
            }
            Self::Document { error, .. } => error.hints(),
            Self::Damaged { .. } | Self::Gone { .. } => {
                vec!["make it again: `seedbed snapshot image`".to_owned()]
            }
            Self::NoServerOfOurs { .. } => {
                vec!["name the one that developers use: `--env dev`".to_owned()]
            }
        }
    }
}
