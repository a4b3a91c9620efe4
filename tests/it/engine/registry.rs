//! Pulling from a real registry (Debian's `docker-registry`) on loopback: progress, credentials, a
//! connection that is cut.
//!
//! The image holds what a pull needs to look at, 24 MB that do not compress, and no server: what
//! follows the pull fails, and is not looked at.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use seedbed::engine::Error;
use seedbed::error::Exit;

use super::{Project, docker_is_here, shell};
use crate::harness::{postgres, require, watchdog};

/// bcrypt of `right`, for the account `user`.
const ACCOUNT: &str = "user:$2b$05$CCCCCCCCCCCCCCCCCCCCC.aoOVg36/cKdW5aN5nIc9EheQY486jDm";
const MEGABYTE: usize = 1 << 20;

fn registry_is_here() -> bool {
    let there = Command::new("docker-registry").arg("--version").output().is_ok();
    docker_is_here() && require("the program docker-registry", there)
}

/// A registry process over a folder.
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    fn start(root: &str, auth: &str) -> Self {
        let port = postgres::free_port();
        let config = format!("{root}/config-{port}.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\n\
             http:\n  addr: 127.0.0.1:{port}\n{auth}"
        );
        std::fs::write(&config, text).expect("the folder is ours");
        let child = Command::new("docker-registry")
            .args(["serve", &config])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it is there");
        watchdog::at_exit(&format!("kill {}", child.id()));
        shell(&format!(
            "i=0; until curl -s -o /dev/null http://127.0.0.1:{port}/v2/; do \
             i=$((i+1)); test $i -lt 200 || exit 1; sleep 0.05; done"
        ));
        Self { child, port }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder of a registry that holds a `postgres:17` of one test: no other test has its layer.
fn stored() -> String {
    let dir = tempfile::tempdir().expect("the temporary folder can be written to").keep();
    let root = dir.to_str().expect("we named it in UTF-8").to_owned();
    watchdog::at_exit(&format!("rm -rf {root}"));
    std::fs::create_dir(dir.join("image")).expect("it is ours");
    std::fs::write(dir.join("htpasswd"), ACCOUNT).expect("it is ours");
    shell(&format!("head -c {} /dev/urandom > {root}/image/noise", 24 * MEGABYTE));
    let registry = Registry::start(&root, "");
    let name = format!("127.0.0.1:{}/postgres:17", registry.port);
    shell(&format!(
        "tar -C {root}/image -c . | docker import -c 'ENV PG_MAJOR=17' -c 'CMD [\"none\"]' - {name} && \
         docker push -q {name} && docker rmi {name}"
    ));
    root
}

fn project(port: u16) -> Project {
    Project::new(&format!(
        "[engine]\nkind = \"docker\"\nimage = \"127.0.0.1:{port}/postgres:17\"\n"
    ))
}

/// Whether the image came, and removes it again.
fn pulled(port: u16) -> bool {
    let image = format!("127.0.0.1:{port}/postgres:17");
    let remove = Command::new("docker").args(["rmi", "-f", &image]).output();
    remove.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("Untagged"))
}

fn is_about_pulling(error: &Error) -> bool {
    matches!(
        error,
        Error::PullDenied { .. } | Error::PullFailed { .. } | Error::ImageMissing { .. }
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_shows_how_far_it_has_come() {
    if !registry_is_here() {
        return;
    }
    let registry = Registry::start(&stored(), "");
    let project = project(registry.port);
    let error =
        project.engine().await.ensure(&project.context()).await.expect_err("no server in it");
    assert!(pulled(registry.port), "{error}");
    assert!(!is_about_pulling(&error), "{error}");
    let lines = project.events.lines();
    let image = format!("pull the image 127.0.0.1:{}/postgres:17", registry.port);
    assert!(lines.contains(&format!("begin {image}")), "{lines:?}");
    assert!(lines.contains(&format!("done {image}: 1 layer")), "{lines:?}");
    let progress = lines.iter().filter(|line| line.starts_with("progress ")).count();
    assert!(progress >= 2, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_an_account_gets_the_one_of_the_docker_configuration() {
    if !registry_is_here() {
        return;
    }
    let root = &stored();
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n");
    let registry = Registry::start(root, &auth);
    let mut project = project(registry.port);
    let config = project.dir.join("docker");
    std::fs::create_dir(&config).expect("it is ours");
    project.set("DOCKER_CONFIG", config.as_str());
    for (password, right) in [(None, false), (Some("wrong"), false), (Some("right"), true)] {
        let auths = password.map_or_else(String::new, |password| {
            let auth = base64::engine::general_purpose::STANDARD.encode(format!("user:{password}"));
            format!("\"127.0.0.1:{}\": {{\"auth\": \"{auth}\"}}", registry.port)
        });
        std::fs::write(config.join("config.json"), format!("{{\"auths\": {{{auths}}}}}"))
            .expect("it is ours");
        let error = project.engine().await.ensure(&project.context()).await.expect_err("no server");
        assert_eq!(pulled(registry.port), right, "{password:?}: {error}");
        if !right {
            assert!(matches!(error, Error::PullDenied { .. }), "{error}");
            assert_eq!(error.exit(), Exit::Server);
            let login = format!("docker login 127.0.0.1:{}", registry.port);
            assert!(error.hints()[0].contains(&login), "{:?}", error.hints());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_whose_connection_is_cut_once_goes_on() {
    if !registry_is_here() {
        return;
    }
    let registry = Registry::start(&stored(), "");
    let proxy = cutting_proxy(registry.port, 1);
    let project = project(proxy);
    let error =
        project.engine().await.ensure(&project.context()).await.expect_err("no server in it");
    assert!(pulled(proxy), "{error}");
    assert!(!is_about_pulling(&error), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_whose_connection_is_always_cut_fails_and_says_so() {
    if !registry_is_here() {
        return;
    }
    let registry = Registry::start(&stored(), "");
    let proxy = cutting_proxy(registry.port, usize::MAX);
    let project = project(proxy);
    let error = project.engine().await.ensure(&project.context()).await.expect_err("it is cut");
    assert!(matches!(error, Error::PullFailed { .. }), "{error}");
    assert!(!pulled(proxy));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_pull_ends_at_once() {
    if !registry_is_here() {
        return;
    }
    let registry = Registry::start(&stored(), "");
    // Every connection is cut: the daemon waits and tries again, for a minute.
    let proxy = cutting_proxy(registry.port, usize::MAX);
    let project = project(proxy);
    let (cancel, events) = (project.cancel.clone(), project.events.clone());
    let watch = std::thread::spawn(move || {
        let started = std::time::Instant::now();
        while !events.lines().iter().any(|line| line.starts_with("progress ")) {
            assert!(started.elapsed().as_secs() < 30, "no progress");
            std::thread::yield_now();
        }
        cancel.cancel();
    });
    let error = project.engine().await.ensure(&project.context()).await.expect_err("interrupted");
    watch.join().expect("it was seen");
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert_eq!(error.exit(), Exit::Interrupted);
}

/// A proxy before `port` that cuts as many connections after a megabyte of answers: less in its five
/// attempts than the layer has.
fn cutting_proxy(port: u16, cuts: usize) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let own = listener.local_addr().expect("it is bound").port();
    let left = Arc::new(AtomicUsize::new(cuts));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { break };
            let left = Arc::clone(&left);
            let (mut up_in, mut up_out) = both(&client, &server);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut up_in, &mut up_out);
                let _ = up_out.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || answers(server, client, &left));
        }
    });
    own
}

fn both(a: &TcpStream, b: &TcpStream) -> (TcpStream, TcpStream) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be cloned");
    (clone(a), clone(b))
}

fn answers(mut server: TcpStream, mut client: TcpStream, left: &AtomicUsize) {
    let mut block = vec![0_u8; 64 << 10];
    let mut sent = 0;
    while let Ok(count) = server.read(&mut block) {
        if count == 0 || client.write_all(&block[..count]).is_err() {
            break;
        }
        sent += count;
        let cut = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if sent > MEGABYTE && cut().is_ok() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}
