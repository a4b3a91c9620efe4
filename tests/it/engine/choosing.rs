//! `auto`: what is taken, why, and how quickly, also where a registry does not answer.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use seedbed::engine::{Error, ServerKind, choose};
use seedbed::error::Exit;

use super::{Project, archive_server, docker_is_here};
use crate::harness::postgres;

/// What the design promises.
const LIMIT: Duration = Duration::from_secs(5);

fn auto(rest: &str) -> String {
    format!("[engine]\nkind = \"auto\"\n{rest}")
}

fn native() -> String {
    format!("bin_dir = \"{}\"\n", postgres::newest_bin_dir().display())
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_is_taken_when_it_has_the_image() {
    if docker_is_here() {
        let choice = Project::new(&auto("")).choose().await;
        assert_eq!(choice.engine.kind(), ServerKind::Docker);
        assert_eq!(choice.why, "docker: a daemon answers and has the image postgres:17");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn native_is_taken_when_no_daemon_answers() {
    let mut project = Project::new(&auto(&native()));
    project.set("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let choice = project.choose().await;
    assert_eq!(choice.engine.kind(), ServerKind::Native);
    assert!(choice.why.contains("because reach the Docker daemon at"), "{}", choice.why);
    assert!(!choice.why.contains('\n'), "{}", choice.why);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_costs_less_than_five_seconds() {
    if !docker_is_here() {
        return;
    }
    // Takes connections and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = silent.local_addr().expect("bound").port();
    let project =
        Project::new(&auto(&format!("image = \"127.0.0.1:{port}/postgres:17\"\n{}", native())));
    let started = Instant::now();
    let choice = project.choose().await;
    let elapsed = started.elapsed();
    assert!(elapsed < LIMIT, "{elapsed:?}");
    assert_eq!(choice.engine.kind(), ServerKind::Native);
    assert!(choice.why.contains("did not answer within"), "{}", choice.why);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_does_not_answer_costs_less_than_five_seconds() {
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = silent.local_addr().expect("bound").port();
    let mut project = Project::new(&auto(&native()));
    project.set("DOCKER_HOST", &format!("tcp://127.0.0.1:{port}"));
    let started = Instant::now();
    let choice = project.choose().await;
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
    assert_eq!(choice.engine.kind(), ServerKind::Native);
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_is_taken_when_nothing_else_is_there() {
    let server = archive_server::good();
    let mut project = Project::new(&auto(&format!(
        "bin_dir = \"/nowhere\"\narchive_url = \"{}\"\narchive_version = \"{}\"\n",
        server.template(),
        archive_server::version(),
    )));
    project.set("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let choice = project.choose().await;
    assert_eq!(choice.engine.kind(), ServerKind::Embedded);
    assert!(choice.why.starts_with("embedded: PostgreSQL"), "{}", choice.why);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nothing_at_all_the_three_ways_out_are_named() {
    let mut project = Project::new(&auto(
        "bin_dir = \"/nowhere\"\narchive_url = \"http://127.0.0.1:1/{version}\"\n",
    ));
    project.set("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let started = Instant::now();
    let error = choose(&project.context()).await.err().expect("nothing is there");
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
    assert!(matches!(error, Error::NothingHere { .. }), "{error}");
    assert_eq!(error.exit(), Exit::Server);
    let hints = error.hints().join("\n");
    for way in ["Docker", "apt-get install postgresql", "engine.archive_url"] {
        assert!(hints.contains(way), "{hints}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_keeps_the_engine_that_has_its_data() {
    let mut project = Project::new(&auto(&native()));
    project.set("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let ctx = project.context();
    project.engine().await.ensure(&ctx).await.expect("starts");
    project.variables.retain(|(name, _)| name != "DOCKER_HOST");
    let choice = project.choose().await;
    assert_eq!(choice.engine.kind(), ServerKind::Native, "the daemon is back");
    assert_eq!(choice.why, "native: this project's server is there already");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_server_is_used_and_never_stopped() {
    use secrecy::ExposeSecret;
    let admin = &crate::harness::server().admin;
    let password = admin.password.as_ref().expect("it has one").expose_secret();
    let project = Project::new(&format!(
        "[database]\nurl = \"postgresql://postgres@127.0.0.1:{}/dev\"\npassword = \"{password}\"\n[engine]\nkind = \"external\"\n",
        admin.port
    ));
    let ctx = project.context();
    let engine = project.engine().await;
    let server = engine.ensure(&ctx).await.expect("it answers");
    assert!(!server.started_by_us);
    assert_eq!(server.admin.database, "postgres");
    assert!(!server.system_identifier.is_empty());
    let error = engine.stop(&ctx, seedbed::engine::Volumes::Remove).await.expect_err("not ours");
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    assert_eq!(error.exit(), Exit::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_of_an_external_server_is_said() {
    let port = crate::harness::server().admin.port;
    let project = Project::new(&format!(
        "[database]\nurl = \"postgresql://postgres@127.0.0.1:{port}/dev\"\npassword = \"wrong\"\n[engine]\nkind = \"external\"\n",
    ));
    let error = project.engine().await.ensure(&project.context()).await.expect_err("wrong");
    assert!(matches!(&error, Error::Password { user, .. } if user == "postgres"), "{error}");
    assert!(!error.to_string().contains("wrong password:"), "{error}");
    assert_eq!(error.exit(), Exit::Server);
}
