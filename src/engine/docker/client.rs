//! The Docker daemon's verbs that we use. The only file that names bollard.
//!
//! Every verb fails with what it tried and what the daemon said. `None` means "there is none of this
//! name". Whether a thing may be touched is for the caller, who has the labels.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{
    ContainerCreateBody, ContainerStateStatusEnum, DeviceMapping, ExecConfig, HostConfig, Mount,
    MountType, MountVolumeOptions, PortBinding, VolumeCreateRequest,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    DownloadFromContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    LogsOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
    StartContainerOptions, StopContainerOptionsBuilder, TopOptionsBuilder,
    UploadToContainerOptionsBuilder, WaitContainerOptions,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use secrecy::ExposeSecret;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::credentials::Credentials;
use super::host::{self, Host};
use crate::engine::Error;
use crate::env::Env;

/// A daemon on this machine answers `version` in milliseconds; one that does not is not used where there is
/// something else.
pub const HELLO: Duration = Duration::from_millis(1500);
/// Where it is configured, or the data is there.
pub const PATIENT_HELLO: Duration = Duration::from_secs(4);
/// The daemon stores what is sent while it receives it; a slow disk takes its time.
const UPLOAD: Duration = Duration::from_secs(600);
/// Copying a large data directory.
const WORK: Duration = Duration::from_secs(6 * 3600);
/// A shutdown checkpoint of a busy server; the daemon's own 10 s then kill would force a recovery.
const STOP_SECONDS: i32 = 90;
/// Whoever made a container starts it within this.
const STARTING: jiff::SignedDuration = jiff::SignedDuration::from_secs(30);
/// Longer than [`STOP_SECONDS`], which one request lasts.
const REQUEST: Duration = Duration::from_secs(120);

/// A connection to one daemon. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    docker: Docker,
    host: Host,
}

/// What is asked of a container.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub id: String,
    pub running: bool,
    /// Made a moment ago and not started yet.
    pub starting: bool,
    pub exit: Option<i64>,
    /// `None`: it runs, or never did.
    pub ended: Option<jiff::Timestamp>,
    pub labels: HashMap<String, String>,
    /// The loopback port on which its server is published.
    pub port: Option<u16>,
}

/// What is asked of an image.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// Of its content.
    pub id: String,
    pub env: HashMap<String, String>,
    pub entrypoint: Vec<String>,
}

/// What is asked of a volume.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub labels: HashMap<String, String>,
    /// What its driver was told: `device`, `type`, `o`.
    pub options: HashMap<String, String>,
}

/// A volume in a container.
#[derive(Debug, Clone)]
pub(super) struct VolumeMount {
    pub volume: String,
    pub target: String,
    pub read_only: bool,
}

/// A container to be made.
#[derive(Debug, Clone, Default)]
pub(super) struct NewContainer {
    pub name: String,
    pub image: String,
    pub env: Vec<String>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Vec<String>,
    pub labels: HashMap<String, String>,
    pub volumes: Vec<VolumeMount>,
    /// Linux capabilities beside the daemon's own.
    pub capabilities: Vec<String>,
    /// Devices of the host, under their own paths.
    pub devices: Vec<String>,
    /// Port of the host's loopback address for the server's 5432.
    pub port: Option<u16>,
    pub life: Life,
}

/// How long a container stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Life {
    /// Until somebody removes it.
    #[default]
    Kept,
    /// Until its standard input is closed; on the host's network.
    WhileAttached,
    /// Until somebody removes it; what it reads is given by [`Client::feed`].
    Fed,
}

/// Why a container did not start.
pub(super) enum StartFailure {
    /// Its port is taken.
    Port,
    Other(Error),
}

/// What a program in a container did.
pub(crate) struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: i64,
}

/// A program to be run in a container.
pub(super) struct Exec<'a> {
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub user: &'a str,
    pub stdin: Option<Bytes>,
}

/// Why a pull did not end well.
pub(super) enum PullFailure {
    Denied(String),
    Other(String),
}

/// One line of a pull: which layer, how many bytes of how many.
pub(super) struct PullEvent {
    pub layer: String,
    pub status: String,
    pub done: u64,
    pub total: u64,
}

/// Holds a container's standard input open.
pub(crate) struct Keeper {
    _input: Pin<Box<dyn AsyncWrite + Send>>,
}

impl Client {
    /// Connects to the daemon of this environment and agrees on a version of the API, within `patience`.
    pub async fn connect(env: &Env, patience: Duration) -> Result<Self, Error> {
        let host = host::find(env).map_err(|reason| Error::DockerUnreachable {
            place: "the current Docker context".to_owned(),
            reason,
        })?;
        let unreachable = |reason: String| Error::DockerUnreachable {
            place: host.address.clone(),
            reason: format!("{reason} (from {})", host.source),
        };
        let docker = Docker::connect_with_host(&host.address)
            .map_err(|error| unreachable(cause(&error)))?
            .with_timeout(REQUEST);
        let docker = tokio::time::timeout(patience, docker.negotiate_version())
            .await
            .map_err(|_| unreachable(format!("no answer within {} ms", patience.as_millis())))?
            .map_err(|error| match cause(&error) {
                // A connection that is not made in time has no words of its own.
                reason if reason.trim().is_empty() => {
                    unreachable(format!("no answer within {} ms", patience.as_millis()))
                }
                reason => unreachable(reason),
            })?;
        Ok(Self { docker, host })
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub async fn container(&self, name: &str) -> Result<Option<Container>, Error> {
        let answer = self.docker.inspect_container(name, None::<InspectContainerOptions>).await;
        let Some(found) = found(answer, || format!("inspect the container `{name}`"))? else {
            return Ok(None);
        };
        let state = found.state.unwrap_or_default();
        let made = found.created.and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let new = made.is_some_and(|made| made.duration_until(jiff::Timestamp::now()) < STARTING);
        let running = state.running.unwrap_or(false);
        let ended = state.finished_at.and_then(|text| text.parse::<jiff::Timestamp>().ok());
        // The daemon says the year 1 of one that has not ended yet.
        let ended = ended.filter(|ended| !running && *ended > jiff::Timestamp::UNIX_EPOCH);
        let starting = new && state.status == Some(ContainerStateStatusEnum::CREATED);
        let port = found
            .host_config
            .and_then(|host| host.port_bindings)
            .and_then(|mut ports| ports.remove("5432/tcp").flatten())
            .and_then(|bindings| bindings.into_iter().next())
            .and_then(|binding| binding.host_port?.parse().ok());
        Ok(Some(Container {
            id: found.id.unwrap_or_default(),
            running,
            starting,
            exit: state.exit_code,
            ended,
            labels: found.config.and_then(|config| config.labels).unwrap_or_default(),
            port,
        }))
    }

    pub async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let answer = self.docker.inspect_image(name).await;
        let Some(found) = found(answer, || format!("inspect the image `{name}`"))? else {
            return Ok(None);
        };
        let config = found.config.unwrap_or_default();
        let pair = |line: String| {
            line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        Ok(Some(Image {
            id: found.id.unwrap_or_default(),
            env: config.env.unwrap_or_default().into_iter().filter_map(pair).collect(),
            entrypoint: config.entrypoint.unwrap_or_default(),
        }))
    }

    pub async fn volume(&self, name: &str) -> Result<Option<Volume>, Error> {
        let answer = self.docker.inspect_volume(name).await;
        let found = found(answer, || format!("inspect the volume `{name}`"))?;
        Ok(found.map(|found| Volume { labels: found.labels, options: found.options }))
    }

    /// Names of the containers, running or not, that mount a volume.
    pub async fn users_of(&self, volume: &str) -> Result<Vec<String>, Error> {
        let filters = HashMap::from([("volume", vec![volume])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let answer = self.docker.list_containers(Some(options)).await;
        let found =
            answer.map_err(call(format!("list the containers of the volume `{volume}`")))?;
        Ok(found.into_iter().filter_map(|container| container.id).collect())
    }

    /// Makes a volume of the `local` driver.
    pub async fn create_volume(
        &self,
        name: &str,
        labels: HashMap<String, String>,
        options: HashMap<String, String>,
    ) -> Result<(), Error> {
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels),
            driver: Some("local".to_owned()),
            driver_opts: Some(options),
            ..VolumeCreateRequest::default()
        };
        let answer = self.docker.create_volume(request).await;
        answer.map(drop).map_err(call(format!("make the volume `{name}`")))
    }

    pub async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        let answer = self.docker.remove_volume(name, None::<RemoveVolumeOptions>).await;
        found(answer, || format!("remove the volume `{name}`")).map(drop)
    }

    /// Removes a volume unless a container has it, running or not; tells whether it is gone.
    pub async fn remove_unused_volume(&self, name: &str) -> Result<bool, Error> {
        match self.docker.remove_volume(name, None::<RemoveVolumeOptions>).await {
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }) => {
                Ok(false)
            }
            answer => found(answer, || format!("remove the volume `{name}`")).map(|_| true),
        }
    }

    /// Makes a container and returns its id; `None`: its name is taken.
    pub async fn create_unless_taken(&self, new: NewContainer) -> Result<Option<String>, Error> {
        let name = new.name.clone();
        match self.create_as_asked(new).await {
            Ok(id) => Ok(Some(id)),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }) => {
                Ok(None)
            }
            Err(error) => Err(call(format!("make the container `{name}`"))(error)),
        }
    }

    /// Makes a container and returns its id.
    pub async fn create(&self, new: NewContainer) -> Result<String, Error> {
        let name = new.name.clone();
        let answer = self.create_as_asked(new).await;
        answer.map_err(call(format!("make the container `{name}`")))
    }

    async fn create_as_asked(&self, new: NewContainer) -> Result<String, bollard::errors::Error> {
        let attached = new.life == Life::WhileAttached;
        let reads = attached || new.life == Life::Fed;
        let network = match new.port {
            _ if attached => Some("host"),
            Some(_) => None,
            // A helper, which speaks to nobody.
            None => Some("none"),
        };
        let ports = new.port.map(|port| {
            let binding = PortBinding {
                host_ip: Some("127.0.0.1".to_owned()),
                host_port: Some(port.to_string()),
            };
            HashMap::from([("5432/tcp".to_owned(), Some(vec![binding]))])
        });
        // A volume that is missing is made by the daemon: with our labels, so that it is ours to remove.
        let labels = new.labels.clone();
        let mount = |mount: VolumeMount| Mount {
            typ: Some(MountType::VOLUME),
            volume_options: Some(MountVolumeOptions {
                labels: Some(labels.clone()),
                ..MountVolumeOptions::default()
            }),
            source: Some(mount.volume),
            target: Some(mount.target),
            read_only: Some(mount.read_only),
            ..Mount::default()
        };
        let device = |path: String| DeviceMapping {
            path_on_host: Some(path.clone()),
            path_in_container: Some(path),
            cgroup_permissions: Some("rwm".to_owned()),
        };
        let body = ContainerCreateBody {
            image: Some(new.image),
            env: Some(new.env),
            entrypoint: new.entrypoint,
            cmd: Some(new.cmd),
            labels: Some(new.labels),
            // An image made by `docker import` cannot say so itself: fast shutdown.
            stop_signal: (!attached).then(|| "SIGINT".to_owned()),
            attach_stdin: Some(reads),
            open_stdin: Some(reads),
            stdin_once: Some(reads),
            host_config: Some(HostConfig {
                mounts: Some(new.volumes.into_iter().map(mount).collect()),
                cap_add: Some(new.capabilities),
                devices: Some(new.devices.into_iter().map(device).collect()),
                port_bindings: ports,
                // 64 MB, the daemon's default, fail parallel queries (PITFALLS, fact 9).
                shm_size: Some(1 << 30),
                auto_remove: Some(attached),
                network_mode: network.map(str::to_owned),
                security_opt: Some(vec!["no-new-privileges".to_owned()]),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(&new.name).build();
        self.docker.create_container(Some(options), body).await.map(|created| created.id)
    }

    pub async fn start(&self, name: &str) -> Result<(), StartFailure> {
        let answer = self.docker.start_container(name, None::<StartContainerOptions>).await;
        answer.map_err(|error| {
            let text = cause(&error);
            let lower = text.to_ascii_lowercase();
            let port =
                ["port is already allocated", "address already in use", "ports are not available"];
            if port.iter().any(|words| lower.contains(words)) {
                return StartFailure::Port;
            }
            StartFailure::Other(call(format!("start the container `{name}`"))(error))
        })
    }

    /// Waits until a container has ended; returns its exit code.
    pub async fn wait(&self, name: &str) -> Result<i64, Error> {
        let mut answer = std::pin::pin!(
            self.docker
                .clone()
                .with_timeout(WORK)
                .wait_container(name, None::<WaitContainerOptions>)
        );
        match answer.next().await {
            Some(Ok(ended)) => Ok(ended.status_code),
            Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. })) => Ok(code),
            Some(Err(error)) => Err(call(format!("wait for the container `{name}`"))(error)),
            None => Err(Error::DockerCall {
                action: format!("wait for the container `{name}`"),
                reason: "no answer".to_owned(),
            }),
        }
    }

    /// What a container wrote to its standard output, whole.
    pub async fn output(&self, name: &str) -> Result<String, Error> {
        let options = LogsOptionsBuilder::new().stdout(true).build();
        let parts = self.docker.logs(name, Some(options)).try_collect::<Vec<LogOutput>>().await;
        let parts = parts.map_err(call(format!("read the output of the container `{name}`")))?;
        Ok(parts.iter().map(ToString::to_string).collect())
    }

    /// Stops a container cleanly; one that is not running is left alone.
    pub async fn stop(&self, name: &str) -> Result<(), Error> {
        let options = StopContainerOptionsBuilder::new().t(STOP_SECONDS).build();
        let answer = self.docker.stop_container(name, Some(options)).await;
        found(answer, || format!("stop the container `{name}`")).map(drop)
    }

    /// Removes a container with its anonymous volumes, running or not.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.docker.remove_container(name, Some(options)).await {
            // Somebody else removes it just now.
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }) => {
                Ok(())
            }
            answer => found(answer, || format!("remove the container `{name}`")).map(drop),
        }
    }

    /// Writes files into a container, running or not. `tar` is an uncompressed archive.
    pub async fn upload(&self, name: &str, folder: &str, tar: Vec<u8>) -> Result<(), Error> {
        let options = UploadToContainerOptionsBuilder::new().path(folder).build();
        let docker = self.docker.clone().with_timeout(UPLOAD);
        let answer =
            docker.upload_to_container(name, Some(options), bollard::body_full(tar.into())).await;
        answer.map_err(call(format!("write into the container `{name}`")))
    }

    /// A small file of a container, running or not.
    pub async fn read(&self, name: &str, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
        let parts = self.docker.download_from_container(name, Some(options));
        let answer = parts.try_collect::<Vec<Bytes>>().await;
        let action = || format!("read `{path}` in the container `{name}`");
        let Some(parts) = found(answer, action)? else {
            return match self.container(name).await? {
                Some(_) => Ok(None),
                None => Err(Error::DockerCall {
                    action: action(),
                    reason: "the container was removed meanwhile".to_owned(),
                }),
            };
        };
        let tar = parts.concat();
        let fail = |error: std::io::Error| Error::DockerCall {
            action: action(),
            reason: error.to_string(),
        };
        let mut archive = tar::Archive::new(tar.as_slice());
        let Some(entry) = archive.entries().map_err(fail)?.next() else { return Ok(None) };
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut entry.map_err(fail)?, &mut text).map_err(fail)?;
        Ok(Some(text))
    }

    /// The last lines that a container wrote; none when they cannot be had.
    pub async fn last_lines(&self, name: &str) -> Vec<String> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail("12").build();
        let text = self.log(name, options).await;
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// What a container has written since then, the last of it; nothing when it cannot be had.
    pub async fn log_since(&self, name: &str, since: jiff::Timestamp) -> String {
        let since = i32::try_from(since.as_second()).unwrap_or_default();
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).since(since);
        self.log(name, options.tail("10000").build()).await
    }

    async fn log(&self, name: &str, options: LogsOptions) -> String {
        let parts = self.docker.logs(name, Some(options)).try_collect::<Vec<LogOutput>>();
        parts.await.unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// Runs a program in a running container; its input is sent while its output is read.
    pub async fn exec(&self, name: &str, exec: Exec<'_>) -> Result<ExecOutput, Error> {
        let stdin = exec.stdin.clone();
        let prepared = self.prepare(name, exec, stdin.is_some()).await?;
        let Running { id, output, mut input, action } = self.start_exec(prepared).await?;
        let send = async {
            if let Some(bytes) = stdin {
                // A program that ends before it has read everything is no error of ours.
                let _ = input.write_all(&bytes).await;
            }
            let _ = input.shutdown().await;
        };
        let mut written = Written::default();
        let (received, ()) = futures_util::join!(written.collect(output), send);
        received.map_err(call(action.clone()))?;
        self.ended(&id, written, action).await
    }

    /// The command lines of what runs in a container, and of what the daemon has begun to start there: until that is a
    /// process a tenth of a second goes by. None where they cannot be had.
    pub async fn command_lines(&self, name: &str) -> Vec<String> {
        let options = TopOptionsBuilder::new().ps_args("-eo pid,args").build();
        let top = self.docker.top_processes(name, Some(options)).await;
        let processes = top.ok().and_then(|top| top.processes).unwrap_or_default();
        let mut lines: Vec<String> =
            processes.into_iter().map(|columns| columns.join(" ")).collect();
        let found = self.docker.inspect_container(name, None::<InspectContainerOptions>).await;
        for id in found.ok().and_then(|found| found.exec_ids).unwrap_or_default() {
            let Ok(exec) = self.docker.inspect_exec(&id).await else { continue };
            if exec.running == Some(true) {
                let arguments = exec.process_config.and_then(|config| config.arguments);
                lines.push(arguments.unwrap_or_default().join(" "));
            }
        }
        lines
    }

    /// Makes a program ready to be run in a running container: nothing of it happens before it is started.
    pub async fn prepare(
        &self,
        name: &str,
        exec: Exec<'_>,
        with_input: bool,
    ) -> Result<Prepared, Error> {
        let program = exec.command.first().cloned().unwrap_or_default();
        let action = format!("run `{program}` in the container `{name}`");
        let config = ExecConfig {
            attach_stdin: Some(with_input),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(exec.env),
            cmd: Some(exec.command),
            user: Some(exec.user.to_owned()),
            ..ExecConfig::default()
        };
        let created = self.docker.create_exec(name, config).await.map_err(call(action.clone()))?;
        Ok(Prepared { id: created.id, action })
    }

    async fn start_exec(&self, prepared: Prepared) -> Result<Running, Error> {
        let Prepared { id, action } = prepared;
        let started = self.docker.start_exec(&id, None::<StartExecOptions>).await;
        match started.map_err(call(action.clone()))? {
            StartExecResults::Attached { output, input } => {
                Ok(Running { id, output, input, action })
            }
            StartExecResults::Detached => {
                Err(Error::DockerCall { action, reason: "not attached".to_owned() })
            }
        }
    }

    async fn ended(&self, id: &str, written: Written, action: String) -> Result<ExecOutput, Error> {
        let ended = self.docker.inspect_exec(id).await.map_err(call(action))?;
        let Written { stdout, stderr } = written;
        Ok(ExecOutput { stdout, stderr, status: ended.exit_code.unwrap_or(-1) })
    }

    /// Runs a program that was prepared to have input, and answers each line that it writes with one, until
    /// `answer` gives what it has found out with it. `None`: the program ended before.
    pub async fn converse<T>(
        &self,
        prepared: Prepared,
        mut answer: impl AsyncFnMut(String) -> (String, Option<T>),
    ) -> Result<(ExecOutput, Option<T>), Error> {
        let Running { id, mut output, mut input, action } = self.start_exec(prepared).await?;
        let mut written = Written::default();
        let mut answered = 0;
        let mut told = None;
        while told.is_none() {
            let unread = &written.stdout[answered..];
            let Some(length) = unread.iter().position(|&byte| byte == b'\n') else {
                match output.try_next().await.map_err(call(action.clone()))? {
                    Some(part) => written.add(part),
                    None => break,
                }
                continue;
            };
            let line = String::from_utf8_lossy(&unread[..length]).into_owned();
            answered += length + 1;
            let (reply, value) = answer(line).await;
            // One that was ended meanwhile reads nothing.
            let _ = input.write_all(format!("{reply}\n").as_bytes()).await;
            told = value;
        }
        let _ = input.shutdown().await;
        let end = async {
            written.collect(output).await.map_err(call(action.clone()))?;
            self.ended(&id, written, action).await
        };
        match (end.await, told) {
            // What was found out counts; its container may be another one by now.
            (Err(error), Some(value)) => {
                let stderr = error.to_string().into_bytes();
                Ok((ExecOutput { stdout: Vec::new(), stderr, status: -1 }, Some(value)))
            }
            (end, told) => Ok((end?, told)),
        }
    }

    /// Holds the standard input of a container that was made with [`Life::WhileAttached`]; call it
    /// before the container is started.
    pub async fn keep(&self, name: &str) -> Result<Keeper, Error> {
        Ok(Keeper { _input: self.feed(name).await? })
    }

    /// The standard input of a container that reads one; call it before the container is started.
    pub async fn feed(&self, name: &str) -> Result<Pin<Box<dyn AsyncWrite + Send>>, Error> {
        let options = AttachContainerOptionsBuilder::new().stdin(true).stream(true).build();
        let attached = self.docker.attach_container(name, Some(options)).await;
        let attached = attached.map_err(call(format!("attach to the container `{name}`")))?;
        Ok(attached.input)
    }

    /// A folder of a container, running or not, as an archive in which its own name comes first.
    pub fn download(
        &self,
        name: &str,
        folder: &str,
    ) -> impl Stream<Item = std::io::Result<Bytes>> + Send + use<> {
        let options = DownloadFromContainerOptionsBuilder::new().path(folder).build();
        let docker = self.docker.clone().with_timeout(WORK);
        docker
            .download_from_container(name, Some(options))
            .map_err(|error| std::io::Error::other(cause(&error)))
    }

    /// Asks the registry for an image without pulling it.
    pub async fn registry_has(
        &self,
        image: &str,
        credentials: Option<&Credentials>,
    ) -> Result<(), PullFailure> {
        let answer =
            self.docker.inspect_registry_image(image, credentials.map(docker_credentials)).await;
        answer.map(drop).map_err(|error| pull_failure(&error))
    }

    /// Pulls an image; the stream ends when it is here.
    pub fn pull(
        &self,
        image: &str,
        credentials: Option<&Credentials>,
    ) -> impl Stream<Item = Result<PullEvent, PullFailure>> + use<> {
        let options = CreateImageOptionsBuilder::new().from_image(image).build();
        let credentials = credentials.map(docker_credentials);
        self.docker.create_image(Some(options), None, credentials).map(|line| {
            let line = line.map_err(|error| pull_failure(&error))?;
            if let Some(error) = line.error_detail.and_then(|detail| detail.message) {
                return Err(denied_or_other(error));
            }
            let progress = line.progress_detail.unwrap_or_default();
            let count =
                |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            Ok(PullEvent {
                layer: line.id.unwrap_or_default(),
                status: line.status.unwrap_or_default(),
                done: count(progress.current),
                total: count(progress.total),
            })
        })
    }
}

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

/// A program that is ready to be run in a container.
pub(super) struct Prepared {
    id: String,
    action: String,
}

/// A program that was started in a container.
struct Running {
    id: String,
    output: Output,
    input: Pin<Box<dyn AsyncWrite + Send>>,
    action: String,
}

/// What a program has written so far.
#[derive(Default)]
struct Written {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Written {
    fn add(&mut self, part: LogOutput) {
        match part {
            LogOutput::StdErr { message } => self.stderr.extend_from_slice(&message),
            LogOutput::StdOut { message }
            | LogOutput::StdIn { message }
            | LogOutput::Console { message } => self.stdout.extend_from_slice(&message),
        }
    }

    async fn collect(&mut self, mut output: Output) -> Result<(), bollard::errors::Error> {
        while let Some(part) = output.try_next().await? {
            self.add(part);
        }
        Ok(())
    }
}

fn docker_credentials(credentials: &Credentials) -> DockerCredentials {
    let secret = credentials.secret.expose_secret().to_owned();
    let serveraddress = Some(credentials.server.clone());
    // Helpers of cloud registries give an identity token under this name (docker/cli).
    if credentials.username == "<token>" {
        return DockerCredentials {
            identitytoken: Some(secret),
            serveraddress,
            ..DockerCredentials::default()
        };
    }
    DockerCredentials {
        username: Some(credentials.username.clone()),
        password: Some(secret),
        serveraddress,
        ..DockerCredentials::default()
    }
}

/// "No such thing" is `None`, every other refusal an error.
fn found<T>(
    answer: Result<T, bollard::errors::Error>,
    action: impl FnOnce() -> String,
) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(call(action())(error)),
    }
}

fn call(action: String) -> impl FnOnce(bollard::errors::Error) -> Error {
    move |error| Error::DockerCall { action, reason: cause(&error) }
}

fn pull_failure(error: &bollard::errors::Error) -> PullFailure {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code: 401 | 403, message } => {
            PullFailure::Denied(message.clone())
        }
        error => denied_or_other(cause(error)),
    }
}

/// The daemon passes the registry's refusal on as text.
fn denied_or_other(text: String) -> PullFailure {
    let lower = text.to_ascii_lowercase();
    let words = ["unauthorized", "denied", "no basic auth credentials", "authentication required"];
    if words.iter().any(|word| lower.contains(word)) {
        PullFailure::Denied(text)
    } else {
        PullFailure::Other(text)
    }
}

/// The daemon's own words, or an error with its causes in one line.
fn cause(error: &bollard::errors::Error) -> String {
    match error {
        bollard::errors::Error::DockerResponseServerError { message, .. } => {
            message.trim().to_owned()
        }
        bollard::errors::Error::DockerStreamError { error } => error.clone(),
        error => crate::engine::error::chain(error),
    }
}
