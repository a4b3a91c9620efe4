//! Where clones share blocks in Docker: a volume whose file system has reflinks.
//!
//! That is the daemon's own file system where it can (XFS, Btrfs), else a *pool*: a sparse file with an
//! XFS file system in a volume of ours, attached to a loop device by a container that lives for a
//! moment, and mounted as a volume of Docker's `local` driver. One pool serves all projects of the
//! daemon. In it `envs/<project>/g-…` are data directories, `envs/<project>/current` is a link to the
//! one that is served, `images/<fingerprint>` are frozen ones. Moving the link is what a reset is.

mod archive;

use std::collections::HashMap;
use std::time::Duration;

pub(super) use self::archive::Archive;
use super::client::{Client, Container, Life, NewContainer, StartFailure, VolumeMount};
use super::{image::ServerImage, label};
use crate::context::Context;
use crate::engine::state::PoolState;
use crate::engine::{Error, ready};

/// Where the pool is mounted in every container.
pub(super) const ROOT: &str = "/seedbed";
/// Where the volume that holds the file is mounted: it keeps `docker volume prune` away from it.
const FILES: &str = "/seedbed-pool";
/// Another run makes or attaches the pool.
const BUSY: Duration = Duration::from_secs(60);
/// Loop devices that somebody else takes between our look and our attaching.
const TRIES: usize = 5;
/// A helper that gets no more input tidies up: it removes what it has unpacked.
const TIDYING: Duration = Duration::from_secs(10);
/// Whoever has run a helper reads what it said, and removes it, long before this.
const LEFT: jiff::SignedDuration = jiff::SignedDuration::from_mins(2);
/// The same, of one whose name the next run waits for.
const READ: jiff::SignedDuration = jiff::SignedDuration::from_secs(5);
/// Below this a pool is not worth its place.
const SMALLEST: u64 = 16 << 30;

const ACT: &str = include_str!("pool/act.sh");
const LOOK: &str = include_str!("pool/look.sh");
const ATTACH: &str = include_str!("pool/attach.sh");
const SUPERVISE: &str = include_str!("pool/supervise.sh");

/// Empty file systems by their size in GiB, made by `scripts/pool-image`.
const GEOMETRIES: [(u64, &[u8]); 7] = [
    (1024, include_bytes!("pool/1024g.zst")),
    (512, include_bytes!("pool/512g.zst")),
    (256, include_bytes!("pool/256g.zst")),
    (128, include_bytes!("pool/128g.zst")),
    (64, include_bytes!("pool/64g.zst")),
    (32, include_bytes!("pool/32g.zst")),
    (16, include_bytes!("pool/16g.zst")),
];

/// The pool of a daemon, mounted or ready to be.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    /// The volume of ours that lies on the daemon's own file system.
    name: String,
    /// The volume that containers mount; the same one where that file system has reflinks.
    mounted: String,
    /// A moment ago, by this run.
    made: bool,
}

/// What `look.sh` found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Look {
    reflinks: bool,
    free: u64,
    file: Option<String>,
    attached: Option<u32>,
    unused: Vec<u32>,
}

impl Look {
    fn parse(text: &str) -> Self {
        let mut look = Self::default();
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match (word, rest.trim().parse::<u64>()) {
                ("reflinks", _) => look.reflinks = true,
                ("file", _) => look.file = Some(rest.trim().to_owned()),
                ("free", Ok(kilobytes)) => look.free = kilobytes * 1024,
                ("attached", Ok(number)) => look.attached = u32::try_from(number).ok(),
                ("unused", Ok(number)) => look.unused.extend(u32::try_from(number)),
                _ => {}
            }
        }
        look
    }
}

impl Pool {
    /// The pool as it was found before, by the names of its volumes.
    pub fn known(name: &str, mounted: &str) -> Self {
        Self { name: name.to_owned(), mounted: mounted.to_owned(), made: false }
    }

    /// The volume that mounts a loop device.
    pub fn mounted_of(name: &str) -> String {
        format!("{name}-mounted")
    }

    /// As it is remembered.
    pub fn state(&self) -> PoolState {
        PoolState { name: self.name.clone(), mounted: self.mounted.clone() }
    }

    /// As its containers carry it.
    pub fn label(&self) -> String {
        format!("{} {}", self.name, self.mounted)
    }

    pub fn from_label(text: &str) -> Option<Self> {
        text.split_once(' ').map(|(name, mounted)| Self::known(name, mounted))
    }

    /// Whether this run has made it: nobody has anything in it then.
    pub fn is_made_now(&self) -> bool {
        self.made
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn mounted(&self) -> &str {
        &self.mounted
    }

    /// Finds the pool, or makes it; attached and ready to be mounted.
    ///
    /// # Errors
    /// [`Error::NoPool`] where this machine cannot have one; what the daemon said.
    pub async fn ensure(
        ctx: &Context,
        client: &Client,
        image: &ServerImage,
        name: &str,
    ) -> Result<Self, Error> {
        let labels = HashMap::from([(label::ROLE.to_owned(), "pool".to_owned())]);
        let is_new = match client.volume(name).await? {
            Some(found) if found.labels.get(label::ROLE) == labels.get(label::ROLE) => false,
            Some(_) => return Err(Error::NameTaken { kind: "volume", name: name.to_owned() }),
            None => {
                client.create_volume(name, labels.clone(), HashMap::new()).await?;
                true
            }
        };
        let found = Self::find_or_make(ctx, client, image, name, labels).await;
        if is_new && matches!(found, Err(Error::NoPool { .. })) {
            // This machine cannot have one: nothing stays that looks like it.
            client.remove_unused_volume(name).await?;
        }
        found
    }

    async fn find_or_make(
        ctx: &Context,
        client: &Client,
        image: &ServerImage,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<Self, Error> {
        sweep(client, name).await?;
        let mounted = Self::mounted_of(name);
        let mut refused: Option<(u32, Error)> = None;
        for _ in 0..TRIES {
            let look = look(ctx, client, image, name).await?;
            // A device that is free still was not what was in the way: somebody else would have it.
            if let Some((number, error)) = refused.take()
                && look.attached.is_none()
                && look.unused.contains(&number)
            {
                return Err(error);
            }
            if look.reflinks {
                return Ok(Self::known(name, name));
            }
            // A name that no other pool has: by it the kernel tells which one a device holds.
            let new = || format!("{name}-{}.xfs", super::clients::random_name());
            let file = look.file.clone().unwrap_or_else(new);
            let number = match (look.attached, look.unused.first()) {
                (Some(number), _) => number,
                (None, unused) => {
                    let number = match unused {
                        Some(&number) => number,
                        None => one_more_device(ctx, client, image, name).await?,
                    };
                    match attach(ctx, client, image, name, &look, &file, number).await {
                        Ok(true) => number,
                        Ok(false) => continue,
                        Err(error @ Error::NoPool { .. }) => {
                            refused = Some((number, error));
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            let mut labels = labels;
            labels.insert(label::FILE.to_owned(), file);
            mount(client, &mounted, number, labels).await?;
            return Ok(Self { made: look.file.is_none(), ..Self::known(name, &mounted) });
        }
        Err(no_pool("other programs take the loop devices"))
    }

    /// An error of an act, as that of a full disk where it is one.
    pub fn explain(&self, error: Error) -> Error {
        let Error::DockerCall { action, reason } = error else { return error };
        // The first is said by `act.sh`, the second by the programs that it runs.
        let full = ["no space", "No space left on device"].iter().any(|word| reason.contains(word));
        if !full {
            return Error::DockerCall { action, reason };
        }
        let below = reason.contains("no space below");
        Error::NoSpace { action, pool: self.name.clone(), below, reason }
    }

    /// How a container mounts it.
    pub fn volumes(&self) -> Vec<VolumeMount> {
        let mut volumes = vec![VolumeMount {
            volume: self.mounted.clone(),
            target: ROOT.to_owned(),
            read_only: false,
        }];
        if self.name != self.mounted {
            volumes.push(VolumeMount {
                volume: self.name.clone(),
                target: FILES.to_owned(),
                read_only: true,
            });
        }
        volumes
    }

    /// Whether it is attached, as far as this machine can tell without a container: after a start of
    /// the machine the device is another one or none.
    pub async fn is_ready(&self, client: &Client) -> Result<bool, Error> {
        let Some(volume) = client.volume(&self.mounted).await? else { return Ok(false) };
        let (Some(device), Some(file)) =
            (volume.options.get("device"), volume.labels.get(label::FILE))
        else {
            return Ok(self.mounted == self.name);
        };
        let number = device.trim_start_matches("/dev/loop");
        let path = format!("/sys/block/loop{number}/loop/backing_file");
        Ok(std::fs::read_to_string(path).is_ok_and(|text| text.trim().ends_with(file)))
    }

    /// Detaches it and removes everything: nobody has an environment in it. Whoever comes to it
    /// meanwhile keeps it: the daemon removes no volume that a container has.
    pub async fn remove(
        &self,
        ctx: &Context,
        client: &Client,
        image: &ServerImage,
    ) -> Result<(), Error> {
        remove_ended(client, &self.mounted).await?;
        if self.mounted != self.name {
            let device = client
                .volume(&self.mounted)
                .await?
                .and_then(|found| found.options.get("device").cloned());
            if !client.remove_unused_volume(&self.mounted).await? {
                return Ok(());
            }
            if let Some(device) = device {
                let new = NewContainer {
                    capabilities: vec!["SYS_ADMIN".to_owned()],
                    devices: vec![device.clone()],
                    ..script("losetup -d \"$1\"", &[&device])
                };
                run(ctx, client, image, &self.name, new, Vec::new()).await?;
            }
        }
        client.remove_unused_volume(&self.name).await.map(drop)
    }
}

/// Path of an environment's data directory in its container.
pub(super) fn data_of(hash: &str) -> String {
    format!("{ROOT}/envs/{hash}/current")
}

/// The file that keeps a server down on purpose.
pub(super) fn held() -> &'static str {
    "/run/seedbed.held"
}

/// The entry point of a server whose data lies in the pool.
pub(super) fn entrypoint(image: &ServerImage) -> Vec<String> {
    let mut command = ["sh", "-c", SUPERVISE, "sh", held()].map(str::to_owned).to_vec();
    command.extend(image.entrypoint.iter().cloned());
    command
}

/// Where the environment stands in the command of an act.
const ENVIRONMENT: usize = 6;

/// What an act writes that wants to know how the server may be stopped, and the argument that makes it ask.
pub(super) const MAY_STOP: &str = "may-stop";

/// The command of an act, see `act.sh`.
pub(super) fn act(hash: &str, act: &str, arguments: &[&str]) -> Vec<String> {
    let fixed = ["sh", "-c", ACT, "sh", ROOT, FILES, hash, held(), act];
    fixed.iter().chain(arguments).map(|&word| word.to_owned()).collect()
}

/// Runs an act in a container of its own, which also mounts `more`.
pub(super) async fn act_alone(
    ctx: &Context,
    client: &Client,
    image: &ServerImage,
    pool: &Pool,
    command: Vec<String>,
    more: Vec<VolumeMount>,
) -> Result<String, Error> {
    let mut volumes = pool.volumes();
    volumes.extend(more);
    let new = NewContainer { volumes, ..of_act(command) };
    let name = format!("{}-act-{}", pool.name, super::clients::random_name());
    let ran = run_as(ctx, client, image, &name, new, Vec::new()).await;
    ran.map_err(|error| pool.explain(error))
}

/// As [`act_alone`], for an act that reads an archive; without its end the act takes nothing.
pub(super) async fn act_fed(
    ctx: &Context,
    client: &Client,
    image: &ServerImage,
    pool: &Pool,
    command: Vec<String>,
    archive: Archive<'_>,
) -> Result<(), Error> {
    let name = format!("{}-act-{}", pool.name, super::clients::random_name());
    let new = NewContainer {
        name: name.clone(),
        image: image.name.clone(),
        volumes: pool.volumes(),
        life: Life::Fed,
        ..of_act(command)
    };
    let id = client.create(new).await?;
    let ran = async {
        let input = client.feed(&id).await?;
        client.start(&id).await.map_err(|failure| match failure {
            StartFailure::Other(error) => error,
            StartFailure::Port => no_pool("a helper has no port"),
        })?;
        // It may have ended early: then its own words are the reason. The daemon keeps the line open, and
        // takes nothing more.
        let sent = async {
            tokio::select! {
                sent = archive::send(input, archive) => sent,
                _ = client.wait(&id) => Err(archive::Unsent::NotRead),
            }
        };
        let sent = ready::cancellable(ctx, sent).await?;
        let code = ready::cancellable(ctx, client.wait(&id)).await??;
        match sent {
            Err(archive::Unsent::CutOff) => Err(Error::DockerCall {
                action: format!("receive data in the pool {}", pool.mounted),
                reason: "it was cut off".to_owned(),
            }),
            Ok(()) | Err(archive::Unsent::NotRead) if code == 0 => Ok(()),
            Ok(()) | Err(archive::Unsent::NotRead) => Err(Error::DockerCall {
                action: format!("receive data in the pool {}", pool.mounted),
                reason: last_words(client, &id, code).await,
            }),
        }
    };
    let ran = ran.await;
    if ran.is_err() {
        // Its input is closed by now. Killed, it would leave what it has unpacked.
        let _ = tokio::time::timeout(TIDYING, client.wait(&id)).await;
    }
    let removed = client.remove(&id).await;
    ran.map_err(|error| pool.explain(error))?;
    removed
}

/// The container of an act, which carries whose it is.
fn of_act(command: Vec<String>) -> NewContainer {
    let mut labels = HashMap::from([(label::ROLE.to_owned(), "pool".to_owned())]);
    if let Some(hash) = command.get(ENVIRONMENT) {
        labels.insert(label::PROJECT.to_owned(), hash.clone());
    }
    NewContainer {
        labels,
        entrypoint: command.first().map(|program| vec![program.clone()]),
        cmd: command.into_iter().skip(1).collect(),
        ..NewContainer::default()
    }
}

/// Removes the helpers of an environment that runs of it which were killed have left: no other run works
/// in it now.
pub(super) async fn sweep_of(client: &Client, pool: &Pool, hash: &str) -> Result<(), Error> {
    for user in client.users_of(&pool.mounted).await? {
        let Some(found) = client.container(&user).await? else { continue };
        let is = |name: &str, value: &str| found.labels.get(name).is_some_and(|it| it == value);
        if is(label::ROLE, "pool") && is(label::PROJECT, hash) {
            let _ = tokio::time::timeout(TIDYING, client.wait(&user)).await;
            client.remove(&user).await?;
        }
    }
    Ok(())
}

/// Removes the helpers of a pool, whoever's, that have ended and that nobody has asked about since.
pub(super) async fn sweep(client: &Client, name: &str) -> Result<(), Error> {
    for user in client.users_of(name).await? {
        let Some(found) = client.container(&user).await? else { continue };
        let now = jiff::Timestamp::now();
        let is_left = found.ended.is_some_and(|ended| ended.duration_until(now) > LEFT);
        let is_helper = found.labels.get(label::ROLE).is_some_and(|role| role == "pool");
        if is_helper && is_left && !found.running && !found.starting {
            // Somebody else may be at it.
            let _ = client.remove(&user).await;
        }
    }
    Ok(())
}

fn no_pool(reason: &str) -> Error {
    Error::NoPool { reason: reason.to_owned() }
}

fn busy() -> Error {
    no_pool("another run makes it")
}

fn script(text: &str, arguments: &[&str]) -> NewContainer {
    let fixed = ["-c", text, "sh"];
    NewContainer {
        entrypoint: Some(vec!["sh".to_owned()]),
        cmd: fixed.iter().chain(arguments).map(|&word| word.to_owned()).collect(),
        ..NewContainer::default()
    }
}

async fn look(
    ctx: &Context,
    client: &Client,
    image: &ServerImage,
    name: &str,
) -> Result<Look, Error> {
    let volumes =
        vec![VolumeMount { volume: name.to_owned(), target: FILES.to_owned(), read_only: false }];
    let new = NewContainer { volumes, ..script(LOOK, &[FILES]) };
    Ok(Look::parse(&run(ctx, client, image, name, new, Vec::new()).await?))
}

/// A loop device that the kernel makes where all are taken: it begins with few, and has more when asked.
async fn one_more_device(
    ctx: &Context,
    client: &Client,
    image: &ServerImage,
    name: &str,
) -> Result<u32, Error> {
    let new =
        NewContainer { devices: vec!["/dev/loop-control".to_owned()], ..script("losetup -f", &[]) };
    let made = match run(ctx, client, image, name, new, Vec::new()).await {
        Err(Error::DockerCall { reason, .. }) => {
            return Err(no_pool(&format!("no loop device is free: {reason}")));
        }
        made => made?,
    };
    // `/dev/loop8 (lost)`: in the container there is no node of it.
    let device = made.split_whitespace().next().unwrap_or_default();
    let number = device.strip_prefix("/dev/loop").and_then(|number| number.parse().ok());
    number.ok_or_else(|| no_pool("no loop device is free"))
}

/// Attaches the file to this device; makes it first. `false`: somebody else has taken the device.
async fn attach(
    ctx: &Context,
    client: &Client,
    image: &ServerImage,
    name: &str,
    look: &Look,
    file: &str,
    number: u32,
) -> Result<bool, Error> {
    let wanted = ctx.config.images.pool_size.min(look.free);
    let fitting = GEOMETRIES.iter().find(|&&(gib, _)| gib << 30 <= wanted.max(SMALLEST));
    let Some(&(gib, blocks)) = fitting.filter(|_| look.file.is_some() || look.free >= SMALLEST)
    else {
        return Err(no_pool("less than 16 GiB are free where the daemon keeps its volumes"));
    };
    let device = format!("/dev/loop{number}");
    let (file, size) = (format!("{FILES}/{file}"), (gib << 30).to_string());
    let volumes =
        vec![VolumeMount { volume: name.to_owned(), target: FILES.to_owned(), read_only: false }];
    let new = NewContainer {
        volumes,
        capabilities: vec!["SYS_ADMIN".to_owned()],
        devices: vec!["/dev/loop-control".to_owned(), device.clone()],
        ..script(ATTACH, &[&file, &device, &size, "/tmp"])
    };
    match run(ctx, client, image, name, new, geometry(blocks)?).await {
        Ok(_) => Ok(true),
        Err(Error::DockerCall { reason, .. }) if reason.contains("busy") => Ok(false),
        Err(Error::DockerCall { reason, .. }) => Err(Error::NoPool { reason }),
        Err(error) => Err(error),
    }
}

/// The files that `attach.sh` takes an empty file system from: its blocks, and where each belongs.
fn geometry(packed: &[u8]) -> Result<Vec<super::File>, Error> {
    const BLOCK: usize = 4096;
    let plain = zstd::decode_all(packed).map_err(|error| no_pool(&error.to_string()))?;
    let (mut blocks, mut place) = (Vec::new(), String::new());
    for (at, record) in plain.chunks_exact(8 + BLOCK).enumerate() {
        let (number, block) = record.split_at(8);
        let number = number.try_into().map(u64::from_le_bytes).unwrap_or_default();
        place.push_str(&format!(
            "dd if=\"$1\" of=\"$2\" bs={BLOCK} skip={at} seek={number} count=1 conv=notrunc 2>&1\n"
        ));
        blocks.extend_from_slice(block);
    }
    let file = |name: &str, content: Vec<u8>| super::File {
        name: name.to_owned(),
        content: content.into(),
        mode: 0o444,
    };
    Ok(vec![file("blocks", blocks), file("place.sh", place.into_bytes())])
}

/// The volume that mounts this loop device. One of an earlier start of the machine is made again;
/// containers that have ended still hold it, and are made again by their projects.
async fn mount(
    client: &Client,
    mounted: &str,
    number: u32,
    labels: HashMap<String, String>,
) -> Result<(), Error> {
    let device = format!("/dev/loop{number}");
    if let Some(found) = client.volume(mounted).await? {
        if found.labels.get(label::ROLE) != labels.get(label::ROLE) {
            return Err(Error::NameTaken { kind: "volume", name: mounted.to_owned() });
        }
        if found.options.get("device") == Some(&device) {
            return Ok(());
        }
        remove_ended(client, mounted).await?;
        client.remove_volume(mounted).await?;
    }
    // All pools have one UUID, and `discard` gives back what is removed.
    let options = [("type", "xfs"), ("device", &device), ("o", "nouuid,noatime,discard")];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
    client.create_volume(mounted, labels, HashMap::from(options)).await
}

/// Removes containers of ours that have ended and hold a volume still.
async fn remove_ended(client: &Client, volume: &str) -> Result<(), Error> {
    for user in client.users_of(volume).await? {
        let container = client.container(&user).await?;
        let ours = |labels: &HashMap<String, String>| {
            labels.contains_key(label::PROJECT) || labels.contains_key(label::ROLE)
        };
        if container.is_some_and(|found| !found.running && !found.starting && ours(&found.labels)) {
            client.remove(&user).await?;
        }
    }
    Ok(())
}

/// Runs a container of the pool, one at a time: its name is the lock.
async fn run(
    ctx: &Context,
    client: &Client,
    image: &ServerImage,
    pool: &str,
    new: NewContainer,
    files: Vec<super::File>,
) -> Result<String, Error> {
    let name = format!("{pool}-helper");
    let labels = HashMap::from([(label::ROLE.to_owned(), "pool".to_owned())]);
    let new = NewContainer { name: name.clone(), image: image.name.clone(), labels, ..new };
    let id = ready::until(ctx, BUSY, async || match client.container(&name).await {
        Ok(Some(found)) if !found.labels.contains_key(label::ROLE) => {
            Ok(Err(Error::NameTaken { kind: "container", name: name.clone() }))
        }
        Ok(Some(found)) if found.running || found.starting || ended_now(&found) => Err(busy()),
        Ok(found) => {
            // What a run that was killed has left.
            if let Some(found) = found
                && let Err(error) = client.remove(&found.id).await
            {
                return Ok(Err(error));
            }
            client.create_unless_taken(new.clone()).await.transpose().ok_or_else(busy)
        }
        Err(error) => Ok(Err(error)),
    })
    .await??;
    run_made(ctx, client, &name, &id, files).await
}

/// Whether whoever has run a helper may be reading still what it said.
fn ended_now(found: &Container) -> bool {
    let now = jiff::Timestamp::now();
    found.ended.is_some_and(|ended| ended.duration_until(now) < READ)
}

/// The container that does so.
pub(super) fn log_helper(volume: &str) -> String {
    format!("{volume}-log")
}

/// Takes the log of changes away from a volume's data, whose server was stopped cleanly.
pub(super) async fn reset_log(
    ctx: &Context,
    client: &Client,
    image: &ServerImage,
    volume: &str,
) -> Result<(), Error> {
    // It refuses root.
    let text = "PROGRAM=\"$(command -v pg_resetwal)\" DATA=\"$1\" exec su -p -s /bin/sh postgres \
        -c '\"$PROGRAM\" -D \"$DATA\"'";
    let mount =
        VolumeMount { volume: volume.to_owned(), target: image.mount.clone(), read_only: false };
    let new = NewContainer { volumes: vec![mount], ..script(text, &[&image.data]) };
    let name = log_helper(volume);
    // What a run that was killed has left.
    client.remove(&name).await?;
    run_as(ctx, client, image, &name, new, Vec::new()).await.map(drop)
}

/// Runs a container to its end and removes it; returns what it wrote.
async fn run_as(
    ctx: &Context,
    client: &Client,
    image: &ServerImage,
    name: &str,
    new: NewContainer,
    files: Vec<super::File>,
) -> Result<String, Error> {
    let mut new = NewContainer { name: name.to_owned(), image: image.name.clone(), ..new };
    new.labels.insert(label::ROLE.to_owned(), "pool".to_owned());
    let id = client.create(new).await?;
    run_made(ctx, client, name, &id, files).await
}

async fn run_made(
    ctx: &Context,
    client: &Client,
    name: &str,
    id: &str,
    files: Vec<super::File>,
) -> Result<String, Error> {
    let ran = async {
        if !files.is_empty() {
            client.upload(id, "/tmp", super::clients::archive_of(&files)?).await?;
        }
        client.start(id).await.map_err(|failure| match failure {
            StartFailure::Other(error) => error,
            StartFailure::Port => no_pool("a helper has no port"),
        })?;
        let code = ready::cancellable(ctx, client.wait(id)).await??;
        if code == 0 {
            return client.output(id).await;
        }
        Err(Error::DockerCall {
            action: format!("run the container `{name}`"),
            reason: last_words(client, id, code).await,
        })
    };
    let ran = ran.await;
    let removed = client.remove(id).await;
    let output = ran?;
    removed?;
    Ok(output)
}

/// What a helper has said; one that was killed says nothing.
async fn last_words(client: &Client, id: &str, code: i64) -> String {
    match client.last_lines(id).await.join("; ") {
        said if said.is_empty() => format!("it ended with status {code}"),
        said if code > 128 => format!("it ended with status {code}: {said}"),
        said => said,
    }
}

#[cfg(test)]
mod tests {
    use super::{GEOMETRIES, Look, geometry};

    #[test]
    fn what_was_seen_is_read_line_by_line() {
        let text = "free 2048\nfile a-1.xfs\nunused 0\nattached 3\nunused 12\nsomething else\n";
        let look = Look::parse(text);
        assert_eq!((look.reflinks, look.free), (false, 2_097_152));
        assert_eq!(look.file.as_deref(), Some("a-1.xfs"));
        assert_eq!((look.attached, look.unused), (Some(3), vec![0, 12]));
        assert!(Look::parse("reflinks\nfree 1\n").reflinks);
    }

    #[test]
    fn each_empty_file_system_is_one_of_its_size() {
        for (gib, packed) in GEOMETRIES {
            let files = geometry(packed).expect("unpacks");
            let blocks = &files[0].content;
            assert_eq!(&blocks[..4], b"XFSB", "{gib}");
            // Bytes 8 to 16 of the superblock: the number of its blocks.
            let count = blocks[8..16].try_into().map(u64::from_be_bytes).expect("eight bytes");
            assert_eq!(count * 4096, gib << 30, "{gib}");
        }
    }
}
