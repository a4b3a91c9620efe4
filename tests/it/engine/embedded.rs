//! Downloads: the hash is demanded and checked, and what is not right leaves nothing behind.

use std::collections::HashMap;

use seedbed::engine::Error;
use seedbed::error::Exit;

use super::Project;
use super::archive_server::{self, TARGET, WebServer};

fn project(server: &WebServer, version: &str) -> Project {
    Project::new(&format!(
        "[engine]\nkind = \"embedded\"\narchive_url = \"{}\"\narchive_version = \"{version}\"\n",
        server.template()
    ))
}

async fn refused(server: &WebServer, version: &str) -> Error {
    let project = project(server, version);
    let error = project.engine().await.ensure(&project.context()).await.expect_err("not right");
    let left = std::fs::read_dir(project.dir.join("cache/postgresql"));
    let left = left.map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(left, 0, "something was left in the cache after: {error}");
    assert_eq!(error.exit(), Exit::Server);
    error
}

fn serving(bytes: &[u8], hash: Option<String>) -> WebServer {
    let path = format!("/postgresql-1.0.0-{TARGET}.tar.gz");
    let mut files = HashMap::from([(path.clone(), bytes.to_vec())]);
    if let Some(hash) = hash {
        files.insert(format!("{path}.sha256"), hash.into_bytes());
    }
    WebServer::start(files)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_without_its_hash_is_not_used() {
    let error = refused(&serving(b"archive", None), "1.0.0").await;
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
    assert!(error.to_string().contains("404"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_with_another_hash_is_not_used() {
    let error = refused(&serving(b"archive", Some("0".repeat(64))), "1.0.0").await;
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_none_is_not_used() {
    let server = serving(b"archive", Some(archive_server::sha256(b"archive")));
    let error = refused(&server, "1.0.0").await;
    assert!(matches!(error, Error::Archive { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_another_version_is_not_used() {
    let (_, bytes) = archive_server::archive();
    let server = serving(bytes, Some(archive_server::sha256(bytes)));
    let error = refused(&server, "1.0.0").await;
    assert!(matches!(error, Error::Archive { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let project = Project::new(
        "[engine]\nkind = \"embedded\"\narchive_url = \"http://127.0.0.1:1/{version}\"\narchive_version = \"17.6.0\"\n",
    );
    let error = project.engine().await.ensure(&project.context()).await.expect_err("nobody there");
    assert!(matches!(error, Error::Download { .. }), "{error}");
    assert!(error.hints()[0].contains("engine.archive_url"), "{:?}", error.hints());
}
