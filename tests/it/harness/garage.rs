//! Garage, a full S3 server with a storage engine of its own, which `scripts/test --full` builds.
//!
//! It knows ranges and If-Match, checks every signature, has no tags, and overwrites although it is told
//! If-None-Match. One node, a process of
//! its own on free ports with its data in a temporary folder, ended by the watchdog.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use seedbed::config::{Checksums, S3Config};

use super::{full, require, say, watchdog};

const ACCESS_KEY: &str = "GK31c2f218a2e44f485b94239e";
const SECRET_KEY: &str = "b892c0665f0ada8a4755dae98baa3b133590e11dae3bcc1f9d769d67f16c3835";
const BUCKET: &str = "snapshots";
const REGION: &str = "garage";

/// A running server with one bucket, `snapshots`.
pub struct Garage {
    endpoint: String,
    _data: tempfile::TempDir,
}

impl Garage {
    /// Starts one, where the full suite runs and has built it.
    pub fn start() -> Option<Self> {
        if !full() {
            say("Garage is for `scripts/test --full`");
            return None;
        }
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin/garage");
        let there = std::path::Path::new(program).exists();
        if !require("Garage (built by scripts/test --full)", there) {
            return None;
        }
        let data = tempfile::tempdir().expect("the temporary folder can be written to");
        let dir = data.path().display();
        let [rpc, api] = free_ports();
        let config = data.path().join("garage.toml");
        let text = format!(
            "metadata_dir = \"{dir}/meta\"\ndata_dir = \"{dir}/data\"\ndb_engine = \"sqlite\"\n\
             replication_factor = 1\nrpc_bind_addr = \"127.0.0.1:{rpc}\"\n\
             rpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = \"{}\"\n\
             [s3_api]\ns3_region = \"{REGION}\"\napi_bind_addr = \"127.0.0.1:{api}\"\n\
             root_domain = \".s3.garage\"\n",
            "5e".repeat(32)
        );
        std::fs::write(&config, text).expect("the folder is new");
        let mut child = Command::new(program)
            .arg("-c")
            .arg(&config)
            .args(["server", "--single-node", "--default-bucket"])
            .env_clear()
            .env("RUST_LOG", "garage=info")
            .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
            .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY)
            .env("GARAGE_DEFAULT_BUCKET", BUCKET)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was found");
        watchdog::at_exit(&format!("kill {}; rm -rf {dir}", child.id()));
        let stderr = child.stderr.take().expect("it was started with a pipe");
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let mut said = Vec::new();
        let listens = lines.by_ref().any(|line| {
            let listens = line.contains("S3 API server listening");
            said.push(line);
            listens
        });
        assert!(listens, "Garage did not start: {said:?}");
        std::thread::spawn(move || {
            lines.for_each(drop);
            let _ = child.wait();
        });
        Some(Self { endpoint: format!("http://127.0.0.1:{api}"), _data: data })
    }

    /// The bucket under `prefix` as the library's type.
    pub fn config(&self, prefix: &str) -> S3Config {
        S3Config {
            bucket: BUCKET.to_owned(),
            prefix: prefix.to_owned(),
            region: Some(REGION.to_owned()),
            endpoint: Some(self.endpoint.clone()),
            path_style: true,
            profile: None,
            access_key_id: Some(ACCESS_KEY.to_owned()),
            secret_access_key: Some(SECRET_KEY.to_owned().into()),
            session_token: None,
            checksums: Checksums::Auto,
            sse: None,
            kms_key_id: None,
            kms_bucket_key: None,
        }
    }

    /// The bucket under `prefix` as a section of a configuration file.
    pub fn store_section(&self, prefix: &str) -> String {
        format!(
            "[store]\nurl = \"s3://{BUCKET}/{prefix}\"\nendpoint = \"{}\"\nregion = \"{REGION}\"\n\
             path_style = true\n",
            self.endpoint
        )
    }

    /// What a run needs in its environment beside the section.
    pub fn variables(&self) -> [(&'static str, &'static str); 2] {
        [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]
    }
}

/// Two ports that nobody listens on; all are held until all are found.
fn free_ports() -> [u16; 2] {
    let held =
        [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback has free ports"));
    held.map(|listener| listener.local_addr().expect("a bound socket has an address").port())
}
