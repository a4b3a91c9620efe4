//! A proxy in front of a real TCP server: lines that break, stall, or are slow to come about.
//!
//! Whoever starts it decides about each connection. Nothing of what passes is understood, so it serves
//! PostgreSQL and S3 alike.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::Gate;

/// What becomes of one connection.
#[derive(Clone)]
pub enum Line {
    Pass,
    /// It ends once this many bytes have gone to the server.
    CutUp {
        after: usize,
    },
    /// It ends once this many bytes have come from the server.
    CutDown {
        after: usize,
    },
    /// Once this many bytes have come from the server nothing passes any more, either way.
    Stall {
        after: usize,
    },
    /// It reaches the server once the gate is open.
    Until(Gate),
    /// What is sent is under way for this long, in each direction.
    Far {
        delay: Duration,
    },
}

/// A running proxy; stopped with the value.
pub struct TcpProxy {
    address: SocketAddr,
    count: Arc<AtomicUsize>,
    round_trips: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TcpProxy {
    /// Starts a proxy in front of `upstream` (`127.0.0.1:PORT`); connections are counted from 1.
    pub fn start(upstream: &str, decide: impl Fn(usize) -> Line + Send + 'static) -> Self {
        let upstream = upstream.to_owned();
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let round_trips = Arc::new(AtomicUsize::new(0));
        let turns = round_trips.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be built").block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
                let address = listener.local_addr().expect("a bound socket has an address");
                bound.send(address).expect("the starter waits for it");
                let serve = async {
                    loop {
                        let Ok((socket, _)) = listener.accept().await else { continue };
                        let line = decide(counted.fetch_add(1, Ordering::SeqCst) + 1);
                        tokio::spawn(carry(socket, upstream.clone(), line, turns.clone()));
                    }
                };
                tokio::select! {
                    () = serve => (),
                    _ = stopped => (),
                }
            });
        });
        let address = address.recv().expect("the proxy's thread binds a port");
        Self { address, count, round_trips, stop: Some(stop), thread: Some(thread) }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `http://127.0.0.1:PORT`, where the server behind it speaks HTTP.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// How often a client on a far line has spoken after its server had.
    pub fn round_trips(&self) -> usize {
        self.round_trips.load(Ordering::SeqCst)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn carry(socket: TcpStream, upstream: String, line: Line, round_trips: Arc<AtomicUsize>) {
    if let Line::Until(gate) = &line {
        gate.passed().await;
    }
    let Ok(server) = TcpStream::connect(&upstream).await else { return };
    let (from_client, to_client) = socket.into_split();
    let (from_server, to_server) = server.into_split();
    if let Line::Far { delay } = line {
        let answered = AtomicBool::new(true);
        let up = || {
            if answered.swap(false, Ordering::SeqCst) {
                round_trips.fetch_add(1, Ordering::SeqCst);
            }
        };
        let down = || answered.store(true, Ordering::SeqCst);
        tokio::join!(
            delayed(from_client, to_server, delay, up),
            delayed(from_server, to_client, delay, down),
        );
        return;
    }
    let stalled = AtomicBool::new(false);
    let ended = Notify::new();
    let (up, down) = match line {
        Line::Pass | Line::Until(_) | Line::Far { .. } => (End::Never, End::Never),
        Line::CutUp { after } => (End::Cut(after), End::Never),
        Line::CutDown { after } => (End::Never, End::Cut(after)),
        Line::Stall { after } => (End::Never, End::Stall(after)),
    };
    let both = async {
        tokio::join!(
            pump(from_client, to_server, up, &stalled, &ended),
            pump(from_server, to_client, down, &stalled, &ended),
        );
    };
    tokio::select! {
        () = both => (),
        () = ended.notified() => (),
    }
}

/// Passes everything on after `delay`; `passed` is called with each piece.
async fn delayed(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
    passed: impl Fn(),
) {
    let (queue, mut under_way) = mpsc::unbounded_channel();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let _ = queue.send((Instant::now() + delay, buffer[..read].to_vec()));
        }
    };
    let write = async move {
        while let Some((due, piece)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            passed();
            if to.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

#[derive(Clone, Copy)]
enum End {
    Never,
    Cut(usize),
    Stall(usize),
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    end: End,
    stalled: &AtomicBool,
    ended: &Notify,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut passed = 0;
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        let room = match end {
            End::Never => read,
            End::Cut(after) | End::Stall(after) => read.min(after.saturating_sub(passed)),
        };
        if stalled.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        if to.write_all(&buffer[..room]).await.is_err() {
            break;
        }
        passed += room;
        match end {
            End::Cut(after) if passed >= after => return ended.notify_one(),
            End::Stall(after) if passed >= after => {
                stalled.store(true, Ordering::SeqCst);
                return std::future::pending().await;
            }
            End::Never | End::Cut(_) | End::Stall(_) => {}
        }
    }
    // One side has said all that it has to say.
    let _ = to.shutdown().await;
}
