//! A pool of clients that connect again and again while the database under them is replaced: each of
//! them sees the old database or the new one, whole, and afterwards all of them the new one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use seedbed::pg::{Error, Session, Target};

use super::images::{in_docker, native_with_reflinks};
use super::{ITEMS, Project, elsewhere};

const CLIENTS: usize = 20;

/// Says of the items how many there are: whoever reads both has to find them equal.
const MARK: &str = "create table shop.mark as select count(*) as items from shop.item;";
const HALVE: &str = "begin; delete from shop.purchase; delete from shop.item where item_id % 2 = 0;
    update shop.mark set items = (select count(*) from shop.item); commit";

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    /// Of each client: how often it has read both facts.
    reads: Vec<AtomicUsize>,
    counts: std::sync::Mutex<BTreeSet<i64>>,
    /// What nobody may see.
    broken: std::sync::Mutex<Vec<String>>,
}

impl Seen {
    /// Connects, reads both facts in two statements, and again, until it is told to stop.
    async fn watch(&self, client: usize, target: &Target) {
        while !self.stop.load(Ordering::SeqCst) {
            let read = async {
                let session = Session::connect(target).await?;
                let items = session.query_one("select count(*) from shop.item", &[]).await?;
                let mark = session.query_one("select items from shop.mark", &[]).await?;
                session.close().await;
                Ok::<(i64, i64), Error>((items.get(0), mark.get(0)))
            };
            match read.await {
                Ok((items, mark)) if items == mark => {
                    self.counts.lock().expect("nobody panics with it").insert(items);
                    self.reads[client].fetch_add(1, Ordering::SeqCst);
                }
                Ok(facts) => self.is_broken(format!("{facts:?}")),
                Err(error) if may_pass(&error) => {}
                Err(error) => self.is_broken(error.to_string()),
            }
            tokio::task::yield_now().await;
        }
    }

    fn is_broken(&self, what: String) {
        self.broken.lock().expect("nobody panics with it").push(what);
    }

    /// Waits until each client has read both facts once more.
    async fn once_more(&self) {
        let before: Vec<usize> =
            self.reads.iter().map(|count| count.load(Ordering::SeqCst)).collect();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let more = |(count, before): (&AtomicUsize, &usize)| count.load(Ordering::SeqCst) > *before;
        while !self.reads.iter().zip(&before).all(more) {
            assert!(std::time::Instant::now() < deadline, "a client does not come back in");
            tokio::task::yield_now().await;
        }
    }
}

/// What a client of a database that is being replaced has to cope with: nobody listens, its session is
/// ended, the server starts or stops, the database lets nobody in for a moment or gets another name
/// between the first and the second look of a server that lets it in (3D000).
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Connect { .. } | Error::Closed { .. } => true,
        Error::Login { error, .. } => {
            matches!(error.sqlstate.as_str(), "57P01" | "57P03" | "55000" | "3D000")
        }
        Error::Sql(error) => matches!(error.sqlstate.as_str(), "57P01" | "57P03"),
        Error::Tls { .. }
        | Error::Certificate { .. }
        | Error::Timeout { .. }
        | Error::Protocol { .. } => false,
    }
}

/// Resets under the clients; `way` is what it says that it does.
async fn resets_under_clients(project: &Project, way: &str) {
    project.sandbox.write("sql/V3__mark.sql", MARK);
    project.run(&["up"]).succeeds();
    let clean = project.contents().await;
    project.sql(HALVE).await;

    let mut target = project.live();
    target.user.clone_from(&project.reader);
    target.password = Some("reader word".to_owned().into());
    let seen = Arc::new(Seen {
        reads: std::iter::repeat_with(AtomicUsize::default).take(CLIENTS).collect(),
        ..Seen::default()
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (seen, target) = (Arc::clone(&seen), target.clone());
            tokio::spawn(async move { seen.watch(client, &target).await })
        })
        .collect();
    seen.once_more().await;
    // One that holds its session the whole time: those of the others come and go.
    let held = Session::connect(&target).await.expect("it runs");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains(way), "{}", reset.stderr);
    assert!(reset.stderr.contains("ended "), "{}", reset.stderr);
    let ended = format!(" on `{}`", project.database);
    assert!(reset.stderr.contains(&ended), "{}", reset.stderr);
    assert!(held.batch("select").await.is_err(), "it goes on in a database that was replaced");

    seen.once_more().await;
    let counts = std::mem::take(&mut *seen.counts.lock().expect("nobody panics with it"));
    let items = i64::try_from(ITEMS).expect("a few thousand");
    assert_eq!(counts, BTreeSet::from([items / 2, items]));
    // Only now: what is seen from here on is the new one alone.
    seen.once_more().await;
    seen.once_more().await;
    seen.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("it ends when it is told to");
    }
    let counts = seen.counts.lock().expect("nobody panics with it").clone();
    assert_eq!(counts, BTreeSet::from([items]), "somebody is in the old database still");
    let broken = seen.broken.lock().expect("nobody panics with it").clone();
    assert_eq!(broken, Vec::<String>::new());
    assert_eq!(project.contents().await, clean);
}

/// Clients that write as soon as they are let in: what is frozen is what was built.
async fn an_image_is_made_under_clients_that_write(project: &Project) {
    project.sandbox.write("sql/V3__mark.sql", MARK);
    project.run(&["up"]).succeeds();
    let target = project.live();
    let stop = Arc::new(AtomicBool::new(false));
    let writes = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (stop, writes, target) = (Arc::clone(&stop), Arc::clone(&writes), target.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    if let Ok(session) = Session::connect(&target).await {
                        let insert = "insert into shop.mark values (-1)";
                        let written = session.batch(insert).await;
                        writes.fetch_add(usize::from(written.is_ok()), Ordering::SeqCst);
                        session.close().await;
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    // Another checkout: a build, which is frozen.
    project.sandbox.write("sql/V4__more.sql", "create table shop.more (n int);");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("freeze as image"), "{}", reset.stderr);
    let before = writes.load(Ordering::SeqCst);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while writes.load(Ordering::SeqCst) < before + CLIENTS {
        assert!(std::time::Instant::now() < deadline, "nobody is let in again");
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("it ends when it is told to");
    }
    assert_ne!(project.text("select count(*) from shop.mark").await, "1");
    let reset = project.run(&["reset"]).succeeds();
    assert!(reset.stderr.contains("serve a clone of the image"), "{}", reset.stderr);
    assert_eq!(project.text("select count(*) from shop.mark").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn docker_freezes_what_was_built_under_clients_that_write() {
    let Some((project, _)) = in_docker().await else { return };
    an_image_is_made_under_clients_that_write(&project).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn native_freezes_what_was_built_under_clients_that_write() {
    let Some(project) = native_with_reflinks().await else { return };
    an_image_is_made_under_clients_that_write(&project).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn docker_resets_from_an_image_under_twenty_clients_that_connect_again() {
    let Some((project, _)) = in_docker().await else { return };
    resets_under_clients(&project, "serve a clone of the image").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn native_resets_from_an_image_under_twenty_clients_that_connect_again() {
    let Some(project) = native_with_reflinks().await else { return };
    resets_under_clients(&project, "serve a clone of the image").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_template_is_swapped_in_under_twenty_clients_that_connect_again() {
    let project = Project::external(elsewhere()).with_snapshot().await;
    resets_under_clients(&project, "clone the frozen template").await;
}
