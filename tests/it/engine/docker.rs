//! What is special about Docker: other people's containers, volumes and ports (F32), first starts
//! that are killed, secrets in `inspect`.

use secrecy::ExposeSecret;
use seedbed::context::Context;
use seedbed::engine::{Error, ServerKind, Volumes};
use seedbed::error::Exit;
use seedbed::pg::Session;
use seedbed::pg::tools::{Call, Tools};
use tokio_util::sync::CancellationToken;

use super::{IMAGE, Project, container_of, docker_is_here, shell};
use crate::harness::container::image_with;
use crate::harness::{server, unique, watchdog};

const DOCKER: &str = "[engine]\nkind = \"docker\"\n";

/// The name that the project's container will have.
fn name_of(project: &Project) -> String {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(project.dir.as_str());
    let hash: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let folder = project.dir.file_name().expect("it has a name").to_ascii_lowercase();
    format!("seedbed-{}-{hash}", folder.trim_matches('-'))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_stands_in_no_inspect_and_no_log() {
    if !docker_is_here() {
        return;
    }
    let password = unique("Canary");
    let project = Project::new(&format!("{DOCKER}superuser_password = \"{password}\"\n"));
    let started = project.engine().await.ensure(&project.context()).await.expect("starts");
    assert_eq!(started.admin.password.as_ref().map(|p| p.expose_secret()), Some(password.as_str()));
    let name = container_of(&project);
    for command in ["inspect", "logs", "top"] {
        let text = shell(&format!("docker {command} {name} 2>&1"));
        assert!(!text.contains(&password), "docker {command} shows the password");
    }
    let inside = shell(&format!("docker exec {name} cat /seedbed.password"));
    assert_eq!(inside, "", "the file that it came in is emptied");
    let bindings = shell(&format!("docker port {name}"));
    assert_eq!(bindings, format!("5432/tcp -> 127.0.0.1:{}", started.admin.port));
    let shm = shell(&format!("docker inspect -f '{{{{.HostConfig.ShmSize}}}}' {name}"));
    assert_eq!(shm, (1_u64 << 30).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_down_is_named_with_the_way_out() {
    let mut project = Project::new(DOCKER);
    project.set("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let error = seedbed::engine::choose(&project.context()).await.err().expect("none answers");
    assert!(matches!(error, Error::DockerUnreachable { .. }), "{error}");
    assert!(
        error.to_string().starts_with("reach the Docker daemon at `unix:///nowhere/docker.sock`")
    );
    assert_eq!(error.exit(), Exit::Server);
    assert!(error.hints()[0].contains("DOCKER_HOST"), "{:?}", error.hints());
}

/// The daemon's socket as a port of this machine's own network address.
fn daemon_on_the_network() -> std::net::SocketAddr {
    use std::net::{TcpListener, UdpSocket};
    // Connecting a datagram socket sends nothing; it only picks the address of the way out.
    let probe = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let address = probe.expect("this machine has a network").ip();
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let daemon = std::os::unix::net::UnixStream::connect("/var/run/docker.sock");
            let mut daemon = daemon.expect("a daemon is here");
            let (mut from, mut to) = (
                client.try_clone().expect("a socket can be cloned"),
                daemon.try_clone().expect("a socket can be cloned"),
            );
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || std::io::copy(&mut daemon, &mut client));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_elsewhere_is_refused() {
    if !docker_is_here() {
        return;
    }
    let mut project = Project::new(DOCKER);
    project.set("DOCKER_HOST", &format!("tcp://{}", daemon_on_the_network()));
    let error = seedbed::engine::choose(&project.context()).await.err().expect("not loopback");
    assert!(matches!(error, Error::DockerElsewhere { .. }), "{error}");
    assert_eq!(error.exit(), Exit::Server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_marker_is_gone_is_not_used_and_not_removed() {
    if !docker_is_here() {
        return;
    }
    let project = Project::new(DOCKER);
    let ctx = project.context();
    let engine = project.engine().await;
    engine.ensure(&ctx).await.expect("starts");
    let marker = "/var/lib/postgresql/data/seedbed.json";
    shell(&format!("docker exec {} rm {marker}", container_of(&project)));
    engine.stop(&ctx, Volumes::Keep).await.expect("stops");
    let error = engine.ensure(&ctx).await.expect_err("not the one that was set up");
    assert!(matches!(error, Error::DataUnusable { .. }), "{error}");
    let name = name_of(&project);
    let look = format!("docker run --rm -v {name}:/v --entrypoint cat {IMAGE} /v/PG_VERSION");
    assert_eq!(shell(&look), "17");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_nowhere_is_named_with_the_script_that_makes_it() {
    if !docker_is_here() {
        return;
    }
    let project = Project::new(&format!("{DOCKER}image = \"127.0.0.1:1/nowhere/postgres:16\"\n"));
    let error = project.engine().await.ensure(&project.context()).await.expect_err("no image");
    assert!(matches!(error, Error::ImageMissing { .. }), "{error}");
    assert_eq!(error.exit(), Exit::Server);
    assert!(error.hints()[0].contains("scripts/postgres-image 16"), "{:?}", error.hints());
    assert_eq!(container_of(&project), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_something_else_is_refused() {
    if !docker_is_here() {
        return;
    }
    let image = unique("seedbed-test-image");
    shell(&format!("printf x | tar -cf - --files-from /dev/null | docker import - {image}:1"));
    let project = Project::new(&format!("{DOCKER}image = \"{image}:1\"\n"));
    let error = project.engine().await.ensure(&project.context()).await.expect_err("no server");
    shell(&format!("docker rmi {image}:1"));
    assert!(matches!(error, Error::NotPostgres { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_port_that_a_foreign_postgres_has_is_an_error() {
    if !docker_is_here() {
        return;
    }
    let port = server().admin.port;
    let project = Project::new(&format!("{DOCKER}port = {port}\n"));
    let error = project.engine().await.ensure(&project.context()).await.expect_err("it is taken");
    assert_eq!(
        error.to_string(),
        format!(
            "serve on port {port}: it is taken by a PostgreSQL server that is not this project's"
        )
    );
    assert_eq!(error.exit(), Exit::Server);
    assert_eq!(container_of(&project), "", "no container is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remembered_port_that_is_taken_is_replaced() {
    if !docker_is_here() {
        return;
    }
    let project = Project::new(DOCKER);
    let engine = project.engine().await;
    let ctx = project.context();
    let first = engine.ensure(&ctx).await.expect("starts").admin.port;
    engine.stop(&ctx, Volumes::Keep).await.expect("stops");
    let holder = std::net::TcpListener::bind(("127.0.0.1", first)).expect("it is free again");
    let second = engine.ensure(&ctx).await.expect("starts").admin.port;
    assert_ne!(first, second);
    drop(holder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_a_moment_longer_than_the_old_container_lives_is_waited_for() {
    if !docker_is_here() {
        return;
    }
    let named = format!("{DOCKER}port = {}\n", crate::harness::postgres::free_port());
    for config in [DOCKER, &named] {
        let project = Project::new(config);
        let engine = project.engine().await;
        let ctx = project.context();
        let first = engine.ensure(&ctx).await.expect("starts").admin.port;
        let name = container_of(&project);
        shell(&format!("docker kill {name}"));
        let holder = std::net::TcpListener::bind(("127.0.0.1", first)).expect("it is free by now");
        let release = std::thread::spawn(move || {
            // The moment: whoever does not wait has failed, or taken another port, within it.
            shell(&format!(
                "while docker container inspect {name} >/dev/null 2>&1; do :; done; sleep 1"
            ));
            drop(holder);
        });
        let again = engine.ensure(&ctx).await.expect("starts on the same port").admin.port;
        assert!(release.is_finished(), "{config}: it cannot have been free");
        release.join().expect("it was let go");
        assert_eq!(again, first, "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_container_of_our_name_is_left_alone() {
    if !docker_is_here() {
        return;
    }
    let project = Project::new(DOCKER);
    let name = name_of(&project);
    let id = shell(&format!("docker create --name {name} --label seedbed.project=other {IMAGE}"));
    watchdog::at_exit(&format!("docker rm -fv {id}"));
    let ctx = project.context();
    let engine = project.engine().await;
    for error in [
        engine.ensure(&ctx).await.err(),
        engine.running(&ctx).await.err(),
        engine.stop(&ctx, Volumes::Remove).await.err(),
    ] {
        let error = error.expect("it is not ours");
        assert!(matches!(error, Error::NameTaken { kind: "container", .. }), "{error}");
        assert!(error.hints()[0].contains(&name), "{:?}", error.hints());
    }
    assert_eq!(shell(&format!("docker inspect -f '{{{{.Id}}}}' {name}")), id);
    shell(&format!("docker rm -v {id}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_volume_of_our_name_is_left_alone() {
    if !docker_is_here() {
        return;
    }
    let project = Project::new(DOCKER);
    let name = name_of(&project);
    shell(&format!("docker volume create {name}"));
    watchdog::at_exit(&format!("docker volume rm -f {name}"));
    let look = format!("docker run --rm -v {name}:/v --entrypoint sh {IMAGE} -c");
    shell(&format!("{look} 'echo theirs > /v/file'"));
    let ctx = project.context();
    let engine = project.engine().await;
    let error = engine.ensure(&ctx).await.expect_err("it is not ours");
    assert!(matches!(error, Error::NameTaken { kind: "volume", .. }), "{error}");
    let error = engine.stop(&ctx, Volumes::Remove).await.expect_err("it is not ours");
    assert!(matches!(error, Error::NameTaken { kind: "volume", .. }), "{error}");
    assert_eq!(shell(&format!("{look} 'cat /v/file; ls /v | wc -l'")), "theirs\n1");
    shell(&format!("docker volume rm {name}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_another_major_version_is_kept_and_named() {
    let fifteen = std::process::Command::new("docker")
        .args(["image", "inspect", "postgres:15"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !docker_is_here() || !crate::harness::require("the image postgres:15", fifteen) {
        return;
    }
    let project = Project::new(&format!("{DOCKER}image = \"postgres:15\"\n"));
    let ctx = project.context();
    let old = project.engine().await.ensure(&ctx).await.expect("starts");
    assert_eq!(old.major(), 15);
    project.configure(DOCKER);
    let error = project.engine().await.ensure(&project.context()).await.expect_err("other data");
    let Error::OtherMajor { holds, wanted: 17, kind: ServerKind::Docker, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(holds, "15");
    assert!(error.hints()[0].contains("postgres:15"), "{:?}", error.hints());
    project.configure(&format!("{DOCKER}image = \"postgres:15\"\n"));
    let again = project.engine().await.ensure(&project.context()).await.expect("starts again");
    assert_eq!(again.system_identifier, old.system_identifier, "nothing was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_is_killed_is_made_again() {
    if !docker_is_here() {
        return;
    }
    let project = Project::new(DOCKER);
    let name = name_of(&project);
    // At different points of the first initdb: by the file that is there already.
    for file in ["postgresql.auto.conf", "base/1/PG_VERSION", "global/pg_control"] {
        let killer = std::thread::spawn({
            let name = name.clone();
            let wait = format!("until test -e /var/lib/postgresql/data/{file}; do :; done");
            move || {
                shell(&format!(
                    "i=0; until docker exec {name} timeout 20 sh -c '{wait}' 2>/dev/null; do \
                     i=$((i+1)); test $i -lt 400 || exit 1; sleep 0.05; done; docker kill {name}"
                ))
            }
        });
        let result = project.engine().await.ensure(&project.context()).await;
        killer.join().expect("it was killed");
        // Killed after the last word of the start, it is an ordinary server that died.
        if let Err(error) = result {
            assert!(matches!(error, Error::Died { .. }), "{error}");
        }
    }
    let server = project.engine().await.ensure(&project.context()).await.expect("starts");
    let session = seedbed::pg::Session::connect(&server.admin).await.expect("connects");
    session.batch("create database works").await.expect("creates");
}

/// Waits until the container's image is making its cluster.
fn until_a_cluster_is_made(name: &str) {
    let wait = "until test -e /var/lib/postgresql/data/base; do :; done";
    shell(&format!(
        "i=0; until docker exec {name} timeout 20 sh -c '{wait}' 2>/dev/null; do \
         i=$((i+1)); test $i -lt 400 || exit 1; sleep 0.05; done"
    ));
}

fn volume_of(name: &str) -> String {
    shell(&format!("docker volume ls --quiet --filter name={name}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_is_interrupted_leaves_nothing_behind() {
    if !docker_is_here() {
        return;
    }
    let project = Project::new(DOCKER);
    let name = name_of(&project);
    let context = project.context();
    let interrupter = std::thread::spawn({
        let (name, cancel) = (name.clone(), context.cancel.clone());
        move || {
            until_a_cluster_is_made(&name);
            cancel.cancel();
        }
    });
    let result = project.engine().await.ensure(&context).await;
    interrupter.join().expect("it was interrupted");
    assert!(matches!(result, Err(Error::Interrupted)), "{:?}", result.err());
    assert_eq!((container_of(&project), volume_of(&name)), (String::new(), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_first_start_left_is_removed_at_once() {
    if !docker_is_here() {
        return;
    }
    for then in ["start", "stop"] {
        let project = Project::new(DOCKER);
        let name = name_of(&project);
        let (making, made) = tokio::sync::oneshot::channel();
        let watcher = std::thread::spawn({
            let name = name.clone();
            move || {
                until_a_cluster_is_made(&name);
                let _ = making.send(());
            }
        });
        let context = project.context();
        let engine = project.engine().await;
        // Dropped where it stands, as a process that is killed drops it.
        tokio::select! {
            _ = engine.ensure(&context) => {}
            _ = made => {}
        }
        watcher.join().expect("it saw the cluster");
        assert_ne!(container_of(&project), "", "a killed process removes nothing");
        if then == "start" {
            project.engine().await.ensure(&project.context()).await.expect("starts");
        } else {
            let engine = seedbed::engine::chosen_before(&project.context()).await.expect("asked");
            let stop = engine.expect("it is found").stop(&project.context(), Volumes::Remove).await;
            assert!(stop.expect("removed").data_removed.is_some());
            let left = (container_of(&project), volume_of(&name));
            assert_eq!(left, (String::new(), String::new()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_dies_says_its_last_words_at_once() {
    if !docker_is_here() {
        return;
    }
    let project =
        Project::new(&format!("{DOCKER}[engine.settings]\nshared_buffers = \"nonsense\"\n"));
    let error = project.engine().await.ensure(&project.context()).await.expect_err("it dies");
    let Error::Died { log, .. } = &error else { panic!("{error}") };
    assert!(log.iter().any(|line| line.contains("shared_buffers")), "{log:?}");
    // With the mistake mended it starts: the volume never had the marker.
    project.configure(DOCKER);
    project.engine().await.ensure(&project.context()).await.expect("starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_killed_is_started_again_with_its_data() {
    if !docker_is_here() {
        return;
    }
    let project = Project::new(&format!("{DOCKER}durable = true\n"));
    let ctx = project.context();
    let first = project.engine().await.ensure(&ctx).await.expect("starts");
    shell(&format!("docker kill {}", container_of(&project)));
    let second = project.engine().await.ensure(&ctx).await.expect("starts");
    assert_eq!(first.system_identifier, second.system_identifier);
    let session = seedbed::pg::Session::connect(&second.admin).await.expect("connects");
    let row = session.query_one("select current_setting('fsync')", &[]).await.expect("asks");
    assert_eq!(row.get::<_, String>(0), "on", "a durable server syncs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_container_goes_with_whoever_holds_it() {
    let thirteen = std::process::Command::new("docker")
        .args(["image", "inspect", "postgres:13"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !docker_is_here() || !crate::harness::require("the image postgres:13", thirteen) {
        return;
    }
    let project = Project::new(DOCKER);
    let ctx = project.context();
    let helpers = || {
        shell(&format!(
            "docker ps -aq --filter label=seedbed.role=clients --filter label=seedbed.path={}",
            project.dir
        ))
    };
    let tools = Tools::find(&ctx, 13).await.expect("the image has them");
    assert_eq!(helpers().lines().count(), 1);
    let call = Call {
        program: "pg_dump",
        args: vec!["--version".to_owned()],
        target: None,
        stdin: None,
        input_file: None,
    };
    let output = tools.run(&ctx, call).await.expect("runs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("(PostgreSQL) 13."));
    drop(tools);
    shell(&format!(
        "i=0; while test -n \"$(docker ps -aq --filter label=seedbed.role=clients --filter \
         label=seedbed.path={})\"; do i=$((i+1)); test $i -lt 200 || exit 1; sleep 0.05; done",
        project.dir
    ));
    assert_eq!(helpers(), "");
}

/// Whenever that comes: also before it is there, and while nothing can be read of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_client_is_ended_in_the_container() {
    if !docker_is_here() {
        return;
    }
    // For a moment it has not what it is found by, as while Debian's wrapper becomes the program.
    let late = "#!/bin/sh
        exec env -i mark=\"$SEEDBED_CALL\" sh -c \\
          'sleep 0.3; SEEDBED_CALL=$mark exec /usr/bin/psql \"$@\"' sh \"$@\"";
    for image in [IMAGE.to_owned(), image_with(&[("psql", late)])] {
        let project = Project::new(&format!("{DOCKER}image = \"{image}\"\n"));
        let server = project.engine().await.ensure(&project.context()).await.expect("starts");
        let somebody = Session::connect(&server.admin).await.expect("it runs");
        let name = container_of(&project);
        let waits = if image == IMAGE {
            (0..300).step_by(12).chain([2000])
        } else {
            (60..300).step_by(60).chain([600])
        };
        for wait in waits {
            let stop = CancellationToken::new();
            let ctx = Context { cancel: stop.clone(), ..project.context() };
            let call = Call {
                program: "psql",
                args: ["-X", "-c", "select pg_sleep(600)"].map(str::to_owned).to_vec(),
                target: Some(&server.admin),
                stdin: None,
                input_file: None,
            };
            let stopped = std::thread::spawn(move || {
                shell(&format!("sleep {}", f64::from(wait) / 1000.0));
                stop.cancel();
            });
            let error = server.tools.run(&ctx, call).await.err().expect("interrupted");
            assert!(matches!(error, Error::Interrupted), "{error}");
            stopped.join().expect("it waits");
            assert_eq!(clients_in(&name), "", "{image} after {wait} ms");
        }
        // Nor has one come later, and to the server nobody has crashed.
        assert_eq!(clients_in(&name), "", "{image}");
        somebody.batch("select 1").await.expect("nobody has ended it");
    }
}

fn clients_in(container: &str) -> String {
    shell(&format!("docker exec {container} sh -c 'cat /proc/[0-9]*/comm' | grep -x psql || true"))
}
