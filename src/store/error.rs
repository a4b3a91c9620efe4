//! Why a store did not do what was asked, in words.

use camino::Utf8PathBuf;

use crate::error::Exit;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open the store `{store}`: {reason}")]
    Setup { store: String, reason: String, hint: String },
    /// A name that no store of ours holds: from a damaged or hostile manifest.
    #[error("`{name}` is no name of an object in a snapshot store")]
    Name { name: String },
    #[error("`{name}` is not in `{store}`")]
    Missing { store: String, name: String },
    #[error("`{name}` has {bytes} bytes, at most {limit} are read")]
    TooLarge { name: String, bytes: u64, limit: u64 },
    #[error("the bucket `{bucket}` does not exist at {endpoint}")]
    NoBucket { bucket: String, endpoint: String },
    #[error("{endpoint} does not accept the credentials: {reason}")]
    Credentials { endpoint: String, reason: String },
    #[error("no credentials for `{store}`: {reason}")]
    NoCredentials { store: String, reason: String },
    /// `action` is the IAM action that was needed.
    #[error("{endpoint} denies `{action}` on `{name}`: {reason}")]
    Denied { endpoint: String, action: String, name: String, reason: String },
    #[error("cannot reach {endpoint}: {reason}")]
    Unreachable { endpoint: String, reason: String },
    #[error("this machine's clock and that of {endpoint} differ too much: {reason}")]
    ClockSkew { endpoint: String, reason: String },
    #[error("the bucket `{bucket}` is in another region: {reason}")]
    Region { bucket: String, reason: String },
    /// Anything else that a server answered.
    #[error("{endpoint} refused to {what} `{name}`: {reason}")]
    Refused { endpoint: String, what: &'static str, name: String, reason: String },
    /// The connection broke in the middle of a body, again and again.
    #[error("read `{name}` from {endpoint}: it breaks off after {bytes} bytes: {reason}")]
    BrokenOff { endpoint: String, name: String, bytes: u64, reason: String },
    #[error("{action} `{path}`: {error}")]
    File { action: &'static str, path: Utf8PathBuf, error: std::io::Error },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Name { .. } | Self::TooLarge { .. } => Exit::Damaged,
            Self::Setup { .. } => Exit::Configuration,
            Self::Missing { .. }
            | Self::NoBucket { .. }
            | Self::Credentials { .. }
            | Self::NoCredentials { .. }
            | Self::Denied { .. }
            | Self::Unreachable { .. }
            | Self::ClockSkew { .. }
            | Self::Region { .. }
            | Self::Refused { .. }
            | Self::BrokenOff { .. }
            | Self::File { .. } => Exit::Store,
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Setup { hint, .. } => vec![hint.clone()],
            Self::Name { .. } | Self::TooLarge { .. } => {
                vec!["check the snapshot: `seedbed snapshot verify`".to_owned()]
            }
            Self::Missing { .. } => {
                vec!["see what the store holds: `seedbed snapshot list`".to_owned()]
            }
            Self::NoBucket { bucket, .. } => vec![
                "correct `store.url` in `conf/seedbed.toml`".to_owned(),
                format!("or make it: `aws s3 mb s3://{bucket}`"),
            ],
            Self::Credentials { .. } => vec![
                "see who you are: `aws sts get-caller-identity`".to_owned(),
                "or set `store.profile` or `AWS_PROFILE`".to_owned(),
            ],
            Self::NoCredentials { .. } => vec![
                "set `AWS_PROFILE`, or `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`".to_owned(),
                "or log in: `aws sso login`".to_owned(),
            ],
            Self::Denied { action, .. } if action.starts_with("kms:") => vec![format!(
                "allow `{action}` on the key that the bucket is encrypted with, in its policy or in IAM"
            )],
            Self::Denied { action, .. } => {
                vec![format!("allow `{action}` on the store in the IAM policy or bucket policy")]
            }
            Self::Unreachable { .. } => vec![
                "check the network, a proxy, and `store.endpoint`".to_owned(),
                "see each part: `seedbed doctor`".to_owned(),
            ],
            Self::ClockSkew { .. } => vec!["set the clock: `timedatectl set-ntp true`".to_owned()],
            Self::Region { .. } => vec!["set `store.region` to the bucket's region".to_owned()],
            Self::Refused { .. } | Self::BrokenOff { .. } => {
                vec!["see each part: `seedbed doctor`".to_owned()]
            }
            Self::File { .. } => Vec::new(),
        }
    }
}
