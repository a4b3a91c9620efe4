//! A web server on loopback that serves an archive of this machine's PostgreSQL binaries, in the
//! layout of theseus-rs/postgresql-binaries.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use super::shell;
use crate::harness::postgres;

/// Files by path, served until the process ends.
pub struct WebServer {
    pub port: u16,
}

impl WebServer {
    pub fn start(files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let files = Arc::new(files);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let files = Arc::clone(&files);
                std::thread::spawn(move || answer(stream, &files));
            }
        });
        Self { port }
    }

    /// The URL template of its archives.
    pub fn template(&self) -> String {
        format!("http://127.0.0.1:{}/postgresql-{{version}}-{{target}}.tar.gz", self.port)
    }
}

/// One request for a connection is enough for a test.
fn answer(mut stream: TcpStream, files: &HashMap<String, Vec<u8>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket can be cloned"));
    let mut line = String::new();
    let _ = reader.read_line(&mut line);
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
        line.clear();
    }
    let (status, body) = match files.get(&path) {
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", b"none".as_slice()),
    };
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let _ = stream.write_all(body);
}

pub const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// The full version of this machine's server, as `15.18.0`.
pub fn version() -> String {
    let bin = postgres::newest_bin_dir();
    let text = shell(&format!("{}/postgres --version", bin.display()));
    let number = text.split_whitespace().nth(2).expect("it says its version").to_owned();
    format!("{number}.0")
}

/// The archive and its path, made once: Debian's binaries find their `share` by their place.
pub fn archive() -> &'static (String, Vec<u8>) {
    static ARCHIVE: OnceLock<(String, Vec<u8>)> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let bin = postgres::newest_bin_dir();
        let root = bin.parent().expect("bin has a parent");
        let major = root.file_name().expect("a version").to_string_lossy().into_owned();
        let name = format!("postgresql-{}-{TARGET}", version());
        let dir = tempfile::tempdir().expect("the temporary folder can be written to");
        // Debian compiles `/usr/share/postgresql/N` and `/usr/lib/postgresql/N/lib` in; a server below
        // another prefix looks at the same places relative to its own.
        let shell_dir = dir.path().display();
        shell(&format!(
            "cd {shell_dir} && mkdir {name} && cp -a {root}/bin {root}/lib {name}/ && \
             cp -a /usr/share/postgresql/{major} {name}/share && find {name} -type l -lname '/*' -delete && \
             tar -czf archive.tar.gz {name}",
            root = root.display(),
        ));
        let bytes = std::fs::read(dir.path().join("archive.tar.gz")).expect("it was made");
        (format!("/{name}.tar.gz"), bytes)
    })
}

/// A server of the archive with its right hash.
pub fn good() -> &'static WebServer {
    static SERVER: OnceLock<WebServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let (path, bytes) = archive();
        let name = path.trim_start_matches('/');
        let hash = format!("{}  {name}\n", sha256(bytes));
        WebServer::start(HashMap::from([
            (path.clone(), bytes.clone()),
            (format!("{path}.sha256"), hash.into_bytes()),
        ]))
    })
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
