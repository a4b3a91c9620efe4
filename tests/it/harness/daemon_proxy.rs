//! A door to the Docker daemon that a test can shut at any call that changes something: the daemon has done
//! it, whoever asked is killed before it knows, or is let know later.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

/// The machine's own.
const DAEMON: &str = "/var/run/docker.sock";

/// A debug build's reset takes some seconds on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The door: a socket that passes everything on to the daemon.
pub struct DaemonProxy {
    socket: Utf8PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
    arrival: Receiver<()>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

impl DaemonProxy {
    /// Opens it, with a socket in this folder; the answer to the call with the number `stop` is not passed on.
    /// Calls that change something are counted, from 1.
    pub fn start(folder: &Utf8Path, stop: usize) -> Self {
        Self::before(Utf8Path::new(DAEMON), folder, stop)
    }

    /// The same before another daemon than the machine's own.
    pub fn before(daemon: &Utf8Path, folder: &Utf8Path, stop: usize) -> Self {
        let socket = folder.join(format!("{}.sock", super::unique("docker")));
        let listener = UnixListener::bind(&socket).expect("the folder is ours");
        let (arrive, arrival) = channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::default();
        let calls = Calls {
            daemon: daemon.to_owned(),
            stop,
            count: Arc::default(),
            seen: Arc::clone(&seen),
            arrive,
            open: Arc::clone(&open),
        };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let calls = calls.clone();
                std::thread::spawn(move || calls.serve(client));
            }
        });
        Self { socket, seen, arrival, open }
    }

    /// As `DOCKER_HOST` names it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket)
    }

    /// The first lines of the calls so far that change something.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no thread panics with it").clone()
    }

    /// Waits until the call to be stopped at has come; `false`: it did not within this time.
    pub fn stopped(&self, patience: Duration) -> bool {
        self.arrival.recv_timeout(patience).is_ok()
    }

    /// Runs a program that comes by this door until it stands before it; `None`: it made fewer calls, and has
    /// ended.
    pub fn stops(&self, mut command: Command) -> Option<Child> {
        command.env("DOCKER_HOST", self.address());
        let mut child = command.spawn().expect("the program was built for this suite");
        let deadline = Instant::now() + PATIENCE;
        while !self.stopped(Duration::from_millis(50)) {
            if child.try_wait().expect("our own child").is_some() {
                return None;
            }
            assert!(Instant::now() < deadline, "the call never came: {:?}", self.seen());
        }
        Some(child)
    }

    /// Opens the door again, for good.
    pub fn go_on(&self) {
        let (open, changed) = &*self.open;
        *open.lock().expect("no thread panics with it") = true;
        changed.notify_all();
    }
}

#[derive(Clone)]
struct Calls {
    daemon: Utf8PathBuf,
    stop: usize,
    count: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<String>>>,
    arrive: std::sync::mpsc::Sender<()>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

impl Calls {
    fn serve(self, mut client: UnixStream) {
        let Ok(mut daemon) = UnixStream::connect(&self.daemon) else { return };
        let (Ok(mut from_daemon), Ok(mut to_client)) = (daemon.try_clone(), client.try_clone())
        else {
            return;
        };
        let held = Arc::new(AtomicBool::new(false));
        let (calls, hold) = (self.clone(), Arc::clone(&held));
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(length @ 1..) = from_daemon.read(&mut buffer) {
                if hold.load(Ordering::SeqCst) {
                    calls.halt();
                }
                if to_client.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            let _ = to_client.shutdown(Shutdown::Both);
        });
        let mut buffer = [0; 65536];
        while let Ok(length @ 1..) = client.read(&mut buffer) {
            self.look(&buffer[..length], &held);
            if daemon.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = daemon.shutdown(Shutdown::Write);
    }

    /// Counts what begins a call, and stops where it is to be stopped.
    fn look(&self, bytes: &[u8], held: &AtomicBool) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
        let line = text.lines().next().unwrap_or_default();
        if !["POST /", "PUT /", "DELETE /"].iter().any(|word| line.starts_with(word)) {
            return;
        }
        self.seen.lock().expect("no thread panics with it").push(line.to_owned());
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        match number.cmp(&self.stop) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => held.store(true, Ordering::SeqCst),
            // What stopped it is on its way.
            std::cmp::Ordering::Greater => self.halt(),
        }
    }

    /// Says that the call has come, and waits until the door is open again.
    fn halt(&self) {
        let _ = self.arrive.send(());
        let (open, changed) = &*self.open;
        let open = open.lock().expect("no thread panics with it");
        drop(changed.wait_while(open, |open| !*open).expect("no thread panics with it"));
    }
}
