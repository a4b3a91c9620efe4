//! PostgreSQL's client programs, run in a container: the server's own, or a helper on the host's
//! network that lives as long as this process holds its standard input.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::Rng;

use super::client::{Client, Exec, ExecOutput, Keeper, Life, NewContainer, StartFailure};
use super::{image, label};
use crate::context::Context;
use crate::engine::{Error, ready};

/// Programs of the container that the server runs in.
#[derive(Clone)]
pub(crate) struct ContainerTools {
    client: Client,
    container: String,
    /// The port of the host that leads to this container's 5432.
    published: u16,
}

/// A program, what it reads and the files that it needs.
pub(crate) struct Run {
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub stdin: Option<Bytes>,
    /// Put into the container's `/tmp` first and removed after.
    pub files: Vec<File>,
}

/// A file that belongs to root in the container.
pub(crate) struct File {
    pub name: String,
    pub content: Bytes,
    pub mode: u32,
}

impl ContainerTools {
    pub(super) fn new(client: Client, container: String, published: u16) -> Self {
        Self { client, container, published }
    }

    /// Whether a server seen from the host at this port is the one in the container.
    pub fn serves(&self, port: u16) -> bool {
        self.published == port
    }

    pub fn container(&self) -> &str {
        &self.container
    }

    pub async fn run(&self, ctx: &Context, run: Run) -> Result<ExecOutput, Error> {
        run_in(ctx, &self.client, &self.container, run).await
    }
}

/// A container of our own for client programs only.
#[derive(Clone)]
pub(crate) struct HelperContainer {
    client: Client,
    name: String,
    /// Dropped with the last clone: the container's standard input closes, it ends and is removed.
    _keeper: Arc<Mutex<Keeper>>,
}

impl HelperContainer {
    /// Makes a helper with the programs of `major`, of the configured image where that fits.
    pub async fn make(ctx: &Context, major: u32) -> Result<Self, Error> {
        let client = Client::connect(&ctx.env, super::client::PATIENT_HELLO).await?;
        let name = match client.image(&ctx.config.engine.image).await? {
            Some(found) if image::describe("", &found).is_ok_and(|i| i.major == major) => {
                ctx.config.engine.image.clone()
            }
            Some(_) | None => format!("postgres:{major}"),
        };
        let found = image::ensure(ctx, &client, &name).await?;
        if found.major != major {
            let reason = format!("it holds PostgreSQL {}, not {major}", found.major);
            return Err(Error::NotPostgres { image: name, reason });
        }
        let container = format!("seedbed-clients-{}", random_name());
        let labels = HashMap::from([
            (label::PROJECT.to_owned(), super::environment_hash(ctx)),
            (label::PATH.to_owned(), ctx.config.project.to_string()),
            (label::ROLE.to_owned(), "clients".to_owned()),
        ]);
        let new = NewContainer {
            name: container.clone(),
            image: name,
            // `cat` ends with its input, and the container with `cat`: also after a `kill -9` of us.
            entrypoint: Some(vec!["cat".to_owned()]),
            labels,
            life: Life::WhileAttached,
            ..NewContainer::default()
        };
        client.create(new).await?;
        let kept = async {
            let keeper = client.keep(&container).await?;
            client.start(&container).await.map_err(|failure| match failure {
                StartFailure::Other(error) => error,
                StartFailure::Port => Error::NoPort { reason: "a helper has none".to_owned() },
            })?;
            Ok::<_, Error>(keeper)
        };
        match kept.await {
            Ok(keeper) => {
                Ok(Self { client, name: container, _keeper: Arc::new(Mutex::new(keeper)) })
            }
            Err(error) => {
                let _ = client.remove(&container).await;
                Err(error)
            }
        }
    }

    pub fn container(&self) -> &str {
        &self.name
    }

    pub async fn run(&self, ctx: &Context, run: Run) -> Result<ExecOutput, Error> {
        run_in(ctx, &self.client, &self.name, run).await
    }
}

/// Ends a program and waits for its end. The daemon has no verb to end an exec: the process is found by the mark in its
/// environment, of which nothing can be read while it becomes another program, as a wrapper does; and it may not
/// be there yet. What it has started itself is its own to end: an orphan that dies by a signal is a crashed
/// session to a server that is the container's first process.
const END: &str = r#"
seen= turn=0
while [ "$turn" -lt 20 ]; do
  found=
  for environ in $(grep -ls "$0" /proc/[0-9]*/environ); do
    process=${environ%/environ}
    if grep -qs '^PPid:[[:space:]]*0$' "$process/status"; then
      found=yes seen=yes
      kill "${process#/proc/}"
    fi
  done
  [ -n "$found" ] || [ -z "$seen" ] || exit 0
  sleep 0.05
  turn=$((turn + 1))
done
"#;

async fn run_in(
    ctx: &Context,
    client: &Client,
    container: &str,
    run: Run,
) -> Result<ExecOutput, Error> {
    let paths: Vec<String> = run.files.iter().map(|file| format!("/tmp/{}", file.name)).collect();
    if !run.files.is_empty() {
        client.upload(container, "/tmp", archive_of(&run.files)?).await?;
    }
    let mark = format!("SEEDBED_CALL={}", random_name());
    // What only root may read makes the program root's: one that just connects elsewhere.
    let is_open = |file: &File| file.mode & 0o004 != 0;
    let user = if run.files.iter().all(is_open) { "postgres" } else { "root" };
    let mut env = run.env;
    env.push(mark.clone());
    let exec = Exec { command: run.command, env, user, stdin: run.stdin };
    let result = ready::cancellable(ctx, client.exec(container, exec)).await;
    if result.is_err() {
        let command = ["sh", "-c", END, &mark].map(str::to_owned).to_vec();
        let kill = Exec { command, env: Vec::new(), user, stdin: None };
        let _ = client.exec(container, kill).await;
    }
    if !paths.is_empty() {
        let command = ["rm", "-f", "--"].map(str::to_owned).into_iter().chain(paths).collect();
        let remove = Exec { command, env: Vec::new(), user: "root", stdin: None };
        let _ = client.exec(container, remove).await;
    }
    result?
}

/// An uncompressed archive of files for a container whose only users are root and postgres.
pub(super) fn archive_of(files: &[File]) -> Result<Vec<u8>, Error> {
    let fail = |error: std::io::Error| Error::DockerCall {
        action: "pack files for a container".to_owned(),
        reason: error.to_string(),
    };
    let mut tar = tar::Builder::new(Vec::new());
    for File { name, content, mode } in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, name, content.as_ref()).map_err(fail)?;
    }
    tar.into_inner().map_err(fail)
}

pub(super) fn random_name() -> String {
    format!("{:016x}", rand::rng().random::<u64>())
}
