//! What is special about local binaries: other people's ports, data of another version, folders that
//! the server's user cannot reach.

use std::os::unix::fs::PermissionsExt;

use seedbed::engine::{Error, Volumes};
use seedbed::error::Exit;

use super::{Project, native_config, shell};
use crate::harness::{postgres, server};

#[tokio::test(flavor = "multi_thread")]
async fn binaries_that_are_not_there_are_named() {
    let project = Project::new("[engine]\nkind = \"native\"\nbin_dir = \"/nowhere/bin\"\n");
    let error = seedbed::engine::choose(&project.context()).await.err().expect("none are there");
    assert!(matches!(error, Error::NoBinaries { .. }), "{error}");
    assert!(error.to_string().contains("`/nowhere/bin`"), "{error}");
    assert_eq!(error.exit(), Exit::Server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_port_that_a_foreign_postgres_has_is_an_error() {
    let port = server().admin.port;
    let project = Project::new(&format!("{}port = {port}\n", native_config()));
    let error = project.engine().await.ensure(&project.context()).await.expect_err("it is taken");
    assert!(matches!(error, Error::PortTaken { .. }), "{error}");
    assert!(
        error.to_string().contains("a PostgreSQL server that is not this project's"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_a_client_has_by_chance_for_a_moment_is_waited_for() {
    for named in [false, true] {
        let mut tries = 0..5;
        loop {
            let (project, first, holder) = stopped_with_its_port_held(named).await;
            let release = std::thread::spawn(move || {
                shell("sleep 1");
                drop(holder);
            });
            let engine = project.engine().await;
            let again = engine.ensure(&project.context()).await.map(|server| server.admin.port);
            let is_released = release.is_finished();
            release.join().expect("it was let go");
            if matches!(again, Ok(again) if again == first) {
                assert!(is_released, "named: {named}: it cannot have been free");
                break;
            }
            // A client of some other test came by it before us.
            assert!(tries.next().is_some(), "named: {named}: {again:?}, not {first}");
        }
    }
}

/// A project whose server is stopped, and a socket that has its port: nobody listens there, and nobody
/// else can. Another where a client of some other test came by that port before us.
///
/// The port is one that the server had not yet: sessions that a server has closed before their clients keep its port
/// from being had for a minute.
async fn stopped_with_its_port_held(named: bool) -> (Project, u16, tokio::net::TcpSocket) {
    let project = Project::new(&native_config());
    let (engine, ctx) = (project.engine().await, project.context());
    engine.ensure(&ctx).await.expect("starts");
    engine.stop(&ctx, Volumes::Keep).await.expect("stops");
    let (port, holder) = (0..10)
        .find_map(|_| {
            let port = postgres::free_port();
            let holder = tokio::net::TcpSocket::new_v4().expect("there are sockets");
            holder.bind(([127, 0, 0, 1], port).into()).is_ok().then_some((port, holder))
        })
        .expect("one of ten ports is free");
    if named {
        project.configure(&format!("{}port = {port}\n", native_config()));
    } else {
        let path = project.dir.join(".seedbed/state.json");
        let state = std::fs::read(&path).expect("a server has run");
        let mut state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
        state["native"]["port"] = port.into();
        std::fs::write(&path, state.to_string()).expect("it is ours");
    }
    (project, port, holder)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_says_its_last_words_at_once() {
    let project = Project::new(&format!(
        "{}[engine.settings]\nshared_buffers = \"nonsense\"\n",
        native_config()
    ));
    let error = project.engine().await.ensure(&project.context()).await.expect_err("it dies");
    let Error::Died { log, .. } = &error else { panic!("{error}") };
    assert!(log.iter().any(|line| line.contains("shared_buffers")), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_another_version_is_kept_and_named() {
    let project = Project::new(&native_config());
    let ctx = project.context();
    let engine = project.engine().await;
    engine.ensure(&ctx).await.expect("starts");
    engine.stop(&ctx, Volumes::Keep).await.expect("stops");
    let version = project.dir.join(".seedbed/native/data/PG_VERSION");
    let right = std::fs::read_to_string(&version).expect("it is there");
    std::fs::write(&version, "9\n").expect("we are root or the owner");
    let error = project.engine().await.ensure(&ctx).await.expect_err("other data");
    assert!(matches!(&error, Error::OtherMajor { holds, .. } if holds == "9"), "{error}");
    std::fs::write(&version, right).expect("we are root or the owner");
    engine.ensure(&ctx).await.expect("starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_left_half_made_is_made_again() {
    let project = Project::new(&native_config());
    let data = project.dir.join(".seedbed/native/data");
    std::fs::create_dir_all(data.join("base")).expect("it is ours");
    std::fs::write(data.join("PG_VERSION"), "15\n").expect("it is ours");
    project.engine().await.ensure(&project.context()).await.expect("starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_the_servers_user_cannot_reach_has_its_data_elsewhere() {
    if shell("id -u") != "0" {
        return;
    }
    let project = Project::new(&native_config());
    let closed = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&project.dir, closed).expect("it is ours");
    let ctx = project.context();
    let engine = project.engine().await;
    engine.ensure(&ctx).await.expect("starts");
    assert!(project.state().contains("/var/lib/seedbed/"), "{}", project.state());
    let stopped = engine.stop(&ctx, Volumes::Remove).await.expect("stops");
    let data = stopped.data_removed.expect("it was removed");
    assert!(data.starts_with("/var/lib/seedbed/"), "{data}");
    assert!(!std::path::Path::new(&data).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initdb_that_fails_says_why_and_leaves_nothing() {
    let project = Project::new("");
    let bin = project.dir.join("bin");
    std::fs::create_dir(&bin).expect("it is ours");
    let script = "#!/bin/sh\ntest \"$1\" = --version && echo 'initdb (PostgreSQL) 15.1' && exit 0\n\
                  echo 'no space left' >&2; exit 1\n";
    std::fs::write(bin.join("initdb"), script).expect("it is ours");
    let run = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bin.join("initdb"), run).expect("it is ours");
    project.configure(&format!("[engine]\nkind = \"native\"\nbin_dir = \"{bin}\"\n"));
    let error = project.engine().await.ensure(&project.context()).await.expect_err("it fails");
    assert_eq!(error.to_string(), format!("run `{bin}/initdb`: no space left"));
    assert!(!project.dir.join(".seedbed/native/data").exists());
}

/// Somebody comes to the port that was chosen while the cluster is made: the server has another one, unless it was
/// named.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_while_the_cluster_is_made_is_given_up() {
    for (named, by_a_server) in [(false, false), (true, false), (false, true)] {
        let project = Project::new("");
        let neighbour = Project::new("");
        let (bin, go) = (project.dir.join("bin"), project.dir.join("go"));
        let real = postgres::newest_bin_dir();
        let real = real.display();
        shell(&format!("mkdir {bin} && ln -s {real}/* {bin}/ && rm {bin}/initdb"));
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] || until [ -e {go} ]; do sleep 0.05; done\n\
             exec {real}/initdb \"$@\"\n"
        );
        std::fs::write(bin.join("initdb"), script).expect("it is ours");
        shell(&format!("chmod 755 {bin}/initdb"));
        let port = match named {
            true => format!("port = {}\n", postgres::free_port()),
            false => String::new(),
        };
        project.configure(&format!("[engine]\nkind = \"native\"\nbin_dir = \"{bin}\"\n{port}"));
        let engine = project.engine().await;
        let ctx = project.context();
        let somebody = async {
            let port = loop {
                let state = std::fs::read(project.dir.join(".seedbed/state.json"));
                let state: serde_json::Value = state
                    .ok()
                    .and_then(|text| serde_json::from_slice(&text).ok())
                    .unwrap_or_default();
                match state["native"]["port"].as_u64() {
                    Some(port) => break u16::try_from(port).expect("a port"),
                    None => tokio::task::yield_now().await,
                }
            };
            let held = if by_a_server {
                neighbour.configure(&format!("{}port = {port}\n", native_config()));
                let engine = neighbour.engine().await;
                engine.ensure(&neighbour.context()).await.expect("it is free");
                None
            } else {
                Some(std::net::TcpListener::bind(("127.0.0.1", port)).expect("it is free"))
            };
            std::fs::write(&go, "").expect("it is ours");
            (port, held)
        };
        let (server, (port, _held)) = tokio::join!(engine.ensure(&ctx), somebody);
        if named {
            let error = server.expect_err("it is taken");
            assert!(error.to_string().contains("Address already in use"), "{error}");
        } else {
            let server = server.expect("starts on another one");
            assert_ne!(server.admin.port, port);
            let state = project.state();
            assert!(state.contains(&format!("\"port\": {}", server.admin.port)), "{state}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_project_never_takes_the_originals_server_for_its_own() {
    let original = Project::new(&native_config());
    let server = original.engine().await.ensure(&original.context()).await.expect("starts");
    let copy = Project::new(&native_config());
    shell(&format!("cp -a {}/.seedbed {}/", original.dir, copy.dir));
    let engine = copy.engine().await;
    let found = engine.running(&copy.context()).await.expect("asked");
    assert!(found.is_none(), "the copy has no server");
    let error = engine.ensure(&copy.context()).await.expect_err("its files do not fit together");
    let folder = original.dir.join(".seedbed/native/data");
    let said = format!("it was copied from `{folder}` while a server ran on that");
    assert!(error.to_string().contains(&said), "{error}");
    engine.stop(&copy.context(), Volumes::Remove).await.expect("only its own data goes");
    copy.engine().await.ensure(&copy.context()).await.expect("starts anew");
    seedbed::pg::Session::connect(&server.admin).await.expect("the original's runs on");
}

/// After a crash the number in the server's lock file may be that of another process of the same user, also
/// that of another server.
#[tokio::test(flavor = "multi_thread")]
async fn f31_a_lock_file_with_the_number_of_another_process_holds_nobody_up() {
    let project = Project::new(&native_config());
    let ctx = project.context();
    let first = project.engine().await.ensure(&ctx).await.expect("starts");
    let data = project.dir.join(".seedbed/native/data");
    let user = shell(&format!("stat -c %u {data}"));
    let as_user =
        if shell("id -u") == "0" { format!("setpriv --reuid={user} ") } else { String::new() };
    let mut other = std::process::Command::new("sh")
        .args(["-c", &format!("exec {as_user}sleep 300")])
        .spawn()
        .expect("there is a shell");
    let neighbour = Project::new(&native_config());
    neighbour.engine().await.ensure(&neighbour.context()).await.expect("starts");
    let number_of_neighbour = postmaster(&neighbour).expect("it runs");
    for number in [other.id().to_string(), number_of_neighbour.to_string()] {
        let pid = postmaster(&project).expect("it runs");
        shell(&format!(
            "kill -9 {pid}; while pgrep -f -- '[-]D {data}' >/dev/null; do sleep 0.05; done"
        ));
        let lock = data.join("postmaster.pid");
        let text = std::fs::read_to_string(&lock).expect("it was killed");
        let (_, rest) = text.split_once('\n').expect("several lines");
        std::fs::write(&lock, format!("{number}\n{rest}")).expect("we are root or the owner");
        let found = project.engine().await.running(&ctx).await.expect("asked");
        assert!(found.is_none(), "another process is not our server");
        let second = project.engine().await.ensure(&ctx).await.expect("starts");
        assert_eq!(second.system_identifier, first.system_identifier);
    }
    assert!(other.try_wait().expect("our own child").is_none(), "the other process goes on");
    assert_eq!(postmaster(&neighbour), Some(number_of_neighbour), "the other server goes on");
    other.kill().expect("our own child");
    other.wait().expect("our own child");
}

/// Killed when the server had begun to start and nobody could find it by its port yet: the next run waits for
/// that one, and a removal ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_just_begun_to_start_is_found() {
    for goes_on in [true, false] {
        let project = Project::new(&native_config());
        let ctx = project.context();
        project.engine().await.ensure(&ctx).await.expect("starts");
        let mut tries = 0..50;
        let pid = loop {
            project.engine().await.stop(&ctx, Volumes::Keep).await.expect("stops");
            let begun = async {
                loop {
                    match postmaster(&project) {
                        Some(pid) => break pid,
                        None => tokio::task::yield_now().await,
                    }
                }
            };
            let engine = project.engine().await;
            let pid = tokio::select! {
                pid = begun => pid,
                _ = engine.ensure(&ctx) => postmaster(&project).expect("it runs"),
            };
            shell(&format!("kill -STOP {pid}"));
            // Nobody listens there yet: the fourth line has the port.
            let lock = project.dir.join(".seedbed/native/data/postmaster.pid");
            let port = shell(&format!("sed -n 4p {lock}"));
            if !shell("ss -Hltn").contains(&format!(":{port} ")) {
                break pid;
            }
            shell(&format!("kill -CONT {pid}"));
            assert!(tries.next().is_some(), "it listened too soon each time");
        };
        let goes_on_soon =
            std::thread::spawn(move || shell(&format!("sleep 0.5; kill -CONT {pid}")));
        if goes_on {
            project.engine().await.ensure(&ctx).await.expect("is waited for");
            assert_eq!(postmaster(&project), Some(pid));
        } else {
            project.engine().await.stop(&ctx, Volumes::Remove).await.expect("is stopped");
            // It is this process's child, so that what is left of it may be there still.
            shell(&format!(
                "i=0; while ps -o stat= -p {pid} | grep -q '^[^Z]'; do \
                 i=$((i+1)); test $i -lt 100 || exit 1; sleep 0.05; done"
            ));
        }
        goes_on_soon.join().expect("it was told to");
    }
}

/// One that ends, and listens still or no more, is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_on_its_way_down_is_started_again() {
    let project = Project::new(&native_config());
    let ctx = project.context();
    for wait in ["0", "0.005", "0.02", "0.05"] {
        let first = project.engine().await.ensure(&ctx).await.expect("starts");
        seedbed::pg::Session::connect(&first.admin).await.expect("runs");
        let pid = postmaster(&project).expect("it runs");
        shell(&format!("kill -INT {pid}; sleep {wait}"));
        let second = project.engine().await.ensure(&ctx).await.expect("starts again");
        seedbed::pg::Session::connect(&second.admin).await.expect("runs");
        assert_ne!(postmaster(&project), Some(pid), "after {wait} s");
    }
}

/// The number of the server in its lock file.
fn postmaster(project: &Project) -> Option<u32> {
    let lock = project.dir.join(".seedbed/native/data/postmaster.pid");
    let text = std::fs::read_to_string(lock).ok()?;
    let (number, rest) = text.split_once('\n')?;
    // Written at once, with its port.
    rest.lines().nth(2)?;
    number.parse().ok()
}
