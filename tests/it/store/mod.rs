//! Where snapshots live: one conformance suite over every kind of store, each refusal in words,
//! and what a bad line to an S3 server does.

mod cache;
mod conformance;
mod faults;
mod publishing;
mod refusals;

use std::sync::{Arc, Mutex, PoisonError};

use camino::Utf8PathBuf;
use seedbed::config::{self, Flags, S3Config, StoreConfig};
use seedbed::context::Context;
use seedbed::env::Env;
use seedbed::report::{Event, Report, Reporter};
use seedbed::store::{Put, Store};
use tokio_util::sync::CancellationToken;

/// A context whose store is this one. `project` must outlive it.
fn context(project: &tempfile::TempDir, store: StoreConfig, report: Reporter) -> Context {
    let root = Utf8PathBuf::from_path_buf(project.path().to_owned()).expect("named in UTF-8");
    std::fs::create_dir_all(root.join("conf")).expect("the folder is ours");
    std::fs::write(root.join("conf/dev.toml"), "").expect("the folder is ours");
    let cache = ("SEEDBED_CACHE_DIR".to_owned(), root.join("cache").into_string());
    let env = Env::from_variables([cache], root);
    let mut config =
        config::load(&env, &Flags::default()).expect("an empty configuration is valid");
    config.store = store;
    Context {
        config: config.into(),
        env: env.into(),
        report,
        cancel: CancellationToken::new(),
        yes: true,
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("the temporary folder can be written to")
}

async fn open(store: StoreConfig) -> Store {
    open_with(store, Reporter::silent()).await
}

async fn open_with(store: StoreConfig, report: Reporter) -> Store {
    let project = folder();
    match Store::open(&context(&project, store, report)).await {
        Ok(store) => store,
        Err(error) => panic!("{error}"),
    }
}

async fn open_s3(config: S3Config) -> Store {
    open(StoreConfig::S3(config)).await
}

/// Puts an object that is not there yet.
async fn create(store: &Store, name: &str, bytes: bytes::Bytes) {
    assert_eq!(store.put(name, bytes).await.expect("put"), Put::Created, "{name}");
}

/// Keeps what a store tells beside its results.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn reporter(&self) -> Reporter {
        Reporter::new(Box::new(self.clone()))
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Report for Told {
    fn event(&self, event: &Event) {
        if let Event::Note(text) | Event::Warning(text) | Event::Detail(text) = event {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text.clone());
        }
    }
}

/// The sha256 of `bytes` as a chunk is named by it.
fn chunk_name(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("chunks/{}/{hash}", &hash[..2])
}

/// `size` bytes that no compression or buffer makes smaller.
fn noise(seed: u64, size: usize) -> bytes::Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..size).map(byte).collect()
}
