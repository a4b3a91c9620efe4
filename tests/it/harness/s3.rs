//! An S3 protocol server in this process, over real HTTP on loopback, with signed requests.
//!
//! It is s3s-fs: metadata, multipart, ranges and a sequential `If-None-Match` are right; tagging is
//! not implemented (the poor server), and conditional puts race, so tests of races use
//! `moto_server`, which `scripts/test` installs.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub const ACCESS_KEY: &str = "SEEDBEDTESTKEY";
pub const SECRET_KEY: &str = "s3-canary/secret+of=tests";

/// A running server; stopped with the value.
pub struct S3Server {
    address: SocketAddr,
    /// Objects of bucket `b` are the files under `root/b`.
    root: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a server with one bucket, `snapshots`.
pub fn s3() -> S3Server {
    let root = tempfile::tempdir().expect("the temporary folder can be written to");
    let (stop, stopped) = oneshot::channel();
    let (bound, address) = std::sync::mpsc::channel();
    let dir = root.path().to_owned();
    // A thread and a runtime of its own: it serves tests that block theirs.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be built").block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
            let address = listener.local_addr().expect("a bound socket has an address");
            bound.send(address).expect("the starter waits for it");
            tokio::select! {
                () = serve(listener, &dir) => (),
                _ = stopped => (),
            }
        });
    });
    let address = address.recv().expect("the server thread binds a port");
    let server = S3Server { address, root, stop: Some(stop), thread: Some(thread) };
    server.create_bucket("snapshots");
    server
}

async fn serve(listener: TcpListener, dir: &std::path::Path) {
    let files = s3s_fs::FileSystem::new(dir).expect("the folder is there");
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = builder.build();
    let http = Builder::new(TokioExecutor::new());
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let connection = http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        tokio::spawn(async move {
            // A client that hangs up is its own affair.
            let _ = connection.await;
        });
    }
}

impl S3Server {
    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn create_bucket(&self, name: &str) {
        std::fs::create_dir_all(self.root.path().join(name)).expect("the root folder is ours");
    }

    /// The folder whose files are the objects of `bucket`: for looking, and for damaging them.
    pub fn bucket_dir(&self, bucket: &str) -> camino::Utf8PathBuf {
        let path = self.root.path().join(bucket);
        camino::Utf8PathBuf::from_path_buf(path).expect("we named it in UTF-8")
    }

    /// The variables that let the AWS SDK in.
    pub fn variables(&self) -> [(&'static str, &'static str); 3] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", "us-east-1"),
        ]
    }

    /// The `[store]` section of a configuration file that means `bucket` under `prefix`.
    pub fn store_section(&self, bucket: &str, prefix: &str) -> String {
        format!(
            "[store]\nurl = \"s3://{bucket}/{prefix}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\n",
            self.endpoint()
        )
    }

    /// The same as the library's type.
    pub fn config(&self, bucket: &str, prefix: &str) -> seedbed::config::S3Config {
        seedbed::config::S3Config {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region: Some("us-east-1".to_owned()),
            endpoint: Some(self.endpoint()),
            path_style: true,
            profile: None,
            access_key_id: Some(ACCESS_KEY.to_owned()),
            secret_access_key: Some(SECRET_KEY.to_owned().into()),
            session_token: None,
            checksums: seedbed::config::Checksums::Auto,
            sse: None,
            kms_key_id: None,
            kms_bucket_key: None,
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The program `moto_server`: where `scripts/test` has installed it, else in `PATH`.
pub fn moto_server() -> Option<camino::Utf8PathBuf> {
    super::python_tool("moto_server")
}
