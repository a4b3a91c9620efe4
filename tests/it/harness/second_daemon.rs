//! A Docker daemon of the test's own, to be restarted and killed: its own socket, data root, containerd and
//! bridge. The machine's daemon is left alone.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{require, watchdog};

/// A busy machine starts one in ten seconds.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct SecondDaemon {
    dir: Utf8PathBuf,
    bridge: String,
    child: Option<Child>,
}

impl SecondDaemon {
    /// Starts one that has this image of the machine's daemon; its data lies in a folder below `place`.
    pub fn start(place: &Utf8Path, image: &str) -> Option<Self> {
        let able = "test \"$(id -u)\" = 0 && command -v dockerd containerd ip >/dev/null";
        let able = shell(able).is_ok() && shell(&format!("docker image inspect {image}")).is_ok();
        if !require(&format!("root, dockerd, ip and the image {image}"), able) {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("seedbed-daemon-").tempdir_in(place);
        let dir = dir.expect("the folder can be written to").keep();
        let dir = Utf8PathBuf::from_path_buf(dir).expect("we named it in UTF-8");
        // Fifteen characters at most, and a network that nobody has.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let number = (std::process::id() * 8 + next) % 12_000;
        let bridge = format!("seedbed{number}");
        let pool = pool_in(&dir);
        // What a failing test leaves: containers, mounts of the pool and its device, the bridge.
        watchdog::at_exit(&format!(
            "test -e {dir}/pid && kill $(cat {dir}/pid); ip link del {bridge}; sleep 1; \
             for one in $(grep -o ' {dir}[^ ]*' /proc/mounts | sort -r); do umount -l $one; done; \
             for file in /sys/block/loop*/loop/backing_file; do \
               if grep -q {pool} $file; then losetup -d /dev/$(echo $file | cut -d / -f 4); fi; done; \
             rm -rf {dir}"
        ));
        // The machine's own driver is one that works here.
        let driver = shell("docker info --format '{{.Driver}}'").expect("it answers");
        let config = format!("{{\"storage-driver\": \"{driver}\"}}");
        std::fs::write(dir.join("config.json"), config).expect("the folder is ours");
        let network = format!("10.{}.{}.1/24", 200 + number / 250 % 50, number % 250);
        shell(&format!(
            "ip link add name {bridge} type bridge && ip addr add {network} dev {bridge} && \
             ip link set {bridge} up"
        ))
        .expect("root may");
        let mut daemon = Self { dir, bridge, child: None };
        daemon.start_again();
        let address = daemon.address();
        shell(&format!("docker save {image} | docker -H {address} load")).expect("it is loaded");
        Some(daemon)
    }

    /// As `DOCKER_HOST` names it.
    pub fn address(&self) -> String {
        format!("unix://{}/socket", self.dir)
    }

    /// A name for a pool in it, which no other daemon of this machine has.
    pub fn pool(&self) -> String {
        pool_in(&self.dir)
    }

    /// Its socket.
    pub fn socket(&self) -> Utf8PathBuf {
        self.dir.join("socket")
    }

    /// Runs its client; gives back what it prints.
    pub fn docker(&self, args: &str) -> String {
        shell(&format!("docker -H {} {args}", self.address())).expect("the daemon does it")
    }

    /// Ends it: [`Signal::SIGTERM`] as a service is stopped, which stops its containers;
    /// [`Signal::SIGKILL`] leaves them running without it.
    pub fn end(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else { return };
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        kill(pid, signal).expect("it runs");
        child.wait().expect("our own child");
        // Its containerd goes with it, and must have gone before the next one comes.
        let pid = self.dir.join("exec/containerd/containerd.pid");
        let containerd = std::fs::read_to_string(&pid).unwrap_or_default();
        let gone = || !Utf8Path::new("/proc").join(containerd.trim()).join("exe").exists();
        until(|| containerd.is_empty() || gone());
        let _ = std::fs::remove_file(pid);
    }

    /// Starts it over the same data.
    pub fn start_again(&mut self) {
        let dir = &self.dir;
        let log = std::fs::File::options().append(true).create(true).open(dir.join("log"));
        let log = log.expect("the folder is ours");
        let child = Command::new("dockerd")
            .arg(format!("--config-file={dir}/config.json"))
            .arg(format!("--data-root={dir}/data"))
            .arg(format!("--exec-root={dir}/exec"))
            .arg(format!("--pidfile={dir}/pid"))
            .arg(format!("--host={}", self.address()))
            .arg(format!("--bridge={}", self.bridge))
            // Ports are published by its proxies; the machine's own rules stay as they are.
            .args(["--iptables=false", "--ip6tables=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be opened twice"))
            .stderr(log)
            .process_group(0)
            .spawn();
        self.child = Some(child.expect("it is there"));
        let version = format!("docker -H {} version", self.address());
        until(|| shell(&version).is_ok());
    }
}

impl Drop for SecondDaemon {
    fn drop(&mut self) {
        self.end(Signal::SIGTERM);
        // The daemon mounts its data over itself.
        let (dir, bridge) = (&self.dir, &self.bridge);
        let _ = shell(&format!("ip link del {bridge}; umount {dir}/data; rm -rf {dir}"));
    }
}

fn pool_in(dir: &Utf8Path) -> String {
    format!("{}-pool", dir.file_name().expect("a folder that we have made"))
}

fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "the daemon takes longer than {PATIENCE:?}");
        std::thread::yield_now();
    }
}

fn shell(command: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-c", command]).output().expect("there is a shell");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
