//! The server in a container: one container and one volume for a project.
//!
//! Both carry our labels; what does not is never started, stopped or removed, whatever its name. A
//! volume is provisioned when our marker lies beside its data: the image's own sign, `PG_VERSION`,
//! is there already when a first start is killed halfway. A volume of ours that never had the marker
//! is made again; one that had it is never removed but by `down --volumes`.

mod client;
mod clients;
mod credentials;
mod host;
mod image;
mod images;
mod pool;
mod quick_stop;

use std::collections::HashMap;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

pub(crate) use self::client::ExecOutput;
use self::client::{Client, Container, Exec, NewContainer, StartFailure, VolumeMount};
pub(crate) use self::clients::{ContainerTools, File, HelperContainer, Run};
pub(super) use self::host::hex;
use self::image::ServerImage;
use self::pool::Pool;
use super::images::Shelf;
use super::state::{self, DockerState, State};
use super::{Error, Identity, Server, ServerKind, Stopped, Volumes, crash, port, ready, settings};
use crate::config::{Config, EngineKind};
use crate::context::Context;
use crate::pg::tools::Tools;
use crate::pg::{Session, SslMode, Target, scram};

/// Labels of everything that we make.
mod label {
    /// Hash of the project's path and of the branch: whose it is.
    pub const PROJECT: &str = "seedbed.project";
    /// The project's path, for people.
    pub const PATH: &str = "seedbed.path";
    /// The branch, for people.
    pub const BRANCH: &str = "seedbed.branch";
    /// `server`, `data` or `clients`.
    pub const ROLE: &str = "seedbed.role";
    /// Hash of what the container was made from; another one means: make it again.
    pub const RECIPE: &str = "seedbed.recipe";
    /// The volumes of the pool that a server's data lies in: the pool's, the mounted one.
    pub const POOL: &str = "seedbed.pool";
    /// The file of a pool's file system.
    pub const FILE: &str = "seedbed.file";
    /// Major version of the data in a volume.
    pub const MAJOR: &str = "seedbed.major";
}

/// Written beside `PG_VERSION` when the first start has ended well.
const MARKER: &str = "seedbed.json";
/// Where the first password is handed over; emptied afterwards.
const PASSWORD_FILE: &str = "seedbed.password";
const SUPERUSER: &str = "postgres";

/// The container of a project.
#[derive(Clone)]
pub struct DockerEngine {
    client: Client,
    image: String,
    /// Of container and volume.
    name: String,
    hash: String,
    port: Option<u16>,
    arguments: Vec<String>,
    password: Option<SecretString>,
    shelf: Shelf,
}

/// What a start has to begin with.
struct Data {
    /// The volume is empty: the image will make a cluster in it.
    first: bool,
}

/// What everything of an environment is marked with: the project's path, and the branch.
pub(super) fn environment_hash(ctx: &Context) -> String {
    match &ctx.config.branch {
        None => hash_of(ctx.config.project.as_str()),
        // A path has no NUL.
        Some(branch) => hash_of(&format!("{}\0{}", ctx.config.project, branch.slug())),
    }
}

pub(super) fn hash_of(text: &str) -> String {
    let mut hash = host::hex(&Sha256::digest(text));
    hash.truncate(12);
    hash
}

/// `seedbed-factory-1a2b3c4d5e6f`: the folder's name for people, the hash to be unique; of a branch
/// `seedbed-factory-add-orders-1a2b3c4d5e6f`.
fn name_of(config: &Config, hash: &str) -> String {
    let folder: String = config
        .project
        .file_name()
        .unwrap_or("project")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(30)
        .collect();
    let folder = folder.trim_matches('-');
    match &config.branch {
        Some(branch) => format!("seedbed-{folder}-{}-{hash}", branch.slug()),
        None => format!("seedbed-{folder}-{hash}"),
    }
}

impl DockerEngine {
    /// Connects to the daemon; makes nothing.
    ///
    /// # Errors
    /// [`Error::DockerUnreachable`], [`Error::DockerElsewhere`].
    pub async fn connect(ctx: &Context) -> Result<Self, Error> {
        let is_probed = ctx.config.engine.kind == EngineKind::Auto
            && state::read(ctx).is_ok_and(|state| state.docker.is_none());
        let patience = if is_probed { client::HELLO } else { client::PATIENT_HELLO };
        let client = ready::cancellable(ctx, Client::connect(&ctx.env, patience)).await??;
        if !client.host().is_here() {
            return Err(Error::DockerElsewhere { place: client.host().address.clone() });
        }
        let hash = environment_hash(ctx);
        Ok(Self {
            client,
            image: ctx.config.engine.image.clone(),
            name: name_of(&ctx.config, &hash),
            hash,
            port: port::named(&ctx.config),
            arguments: settings::server_arguments(&ctx.config.engine),
            password: super::configured_password(&ctx.config),
            shelf: Shelf::Images,
        })
    }

    /// Whether the image is here.
    ///
    /// # Errors
    /// What the daemon said.
    pub async fn has_image(&self) -> Result<bool, Error> {
        Ok(self.client.image(&self.image).await?.is_some())
    }

    /// Whether the registry has the image for us.
    ///
    /// # Errors
    /// [`Error::PullDenied`], [`Error::ImageMissing`].
    pub async fn registry_answers(&self, ctx: &Context) -> Result<(), Error> {
        image::registry_answers(ctx, &self.client, &self.image).await
    }

    fn what(&self) -> String {
        format!("the container `{}`", self.name)
    }

    /// By what the state knows.
    fn known_target(&self, state: &State, port: Option<u16>) -> Option<Target> {
        Some(self.target(port?, state.password()?))
    }

    fn target(&self, port: u16, password: SecretString) -> Target {
        Target {
            host: "127.0.0.1".to_owned(),
            port,
            database: "postgres".to_owned(),
            user: SUPERUSER.to_owned(),
            password: Some(password),
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_client: None,
            settings: Vec::new(),
        }
    }

    fn server(&self, admin: Target, identity: Identity) -> Server {
        let major = u32::try_from(identity.version_num / 10_000).unwrap_or(0);
        let tools = ContainerTools::new(self.client.clone(), self.name.clone(), admin.port);
        Server {
            admin,
            version_num: identity.version_num,
            system_identifier: identity.system_identifier,
            libraries: identity.libraries,
            started_by_us: true,
            kind: ServerKind::Docker,
            tools: Tools::in_container(tools, major),
        }
    }

    fn labels(&self, ctx: &Context, role: &str) -> HashMap<String, String> {
        let mut labels = HashMap::from([
            (label::PROJECT.to_owned(), self.hash.clone()),
            (label::PATH.to_owned(), ctx.config.project.to_string()),
            (label::ROLE.to_owned(), role.to_owned()),
        ]);
        if let Some(branch) = &ctx.config.branch {
            labels.insert(label::BRANCH.to_owned(), branch.name().to_owned());
        }
        labels
    }

    fn is_ours(&self, labels: &HashMap<String, String>) -> bool {
        labels.get(label::PROJECT) == Some(&self.hash)
    }

    /// The container of our name, if it is ours.
    async fn container(&self) -> Result<Option<Container>, Error> {
        match self.client.container(&self.name).await? {
            Some(container) if !self.is_ours(&container.labels) => {
                Err(Error::NameTaken { kind: "container", name: self.name.clone() })
            }
            other => Ok(other),
        }
    }

    /// What a container is made from, as a hash: image, settings, a named port, where its data lies.
    fn recipe(&self, pool: Option<&Pool>) -> String {
        let mut text = format!("1\n{}\n{}\n{:?}", self.image, self.arguments.join("\n"), self.port);
        if let Some(pool) = pool {
            text.push_str(&format!("\n{}", pool.mounted()));
        }
        let mut hash = host::hex(&Sha256::digest(text));
        hash.truncate(16);
        hash
    }

    pub(super) async fn ensure(&self, ctx: &Context) -> Result<Server, Error> {
        let mut state = state::read(ctx)?;
        let container = self.container().await?;
        recall_pool(&mut state, container.as_ref());
        let recipe = self.recipe(pool_of(&state).as_ref());
        let as_wanted = container
            .as_ref()
            .filter(|container| container.labels.get(label::RECIPE) == Some(&recipe));
        if let Some(container) = as_wanted
            && container.running
            && let Some(port) = container.port
            && state.docker.as_ref().is_some_and(|known| known.provisioned)
        {
            if container.labels.contains_key(label::POOL) {
                self.acts_have_ended(ctx, &container.id).await?;
            }
            return self.connect_to(ctx, &mut state, port).await;
        }
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let step = ctx.report.step("start PostgreSQL in Docker");
        let server = self.start(ctx, &mut state, &image, container).await?;
        step.done(format!("{} on port {}", self.image, server.admin.port));
        Ok(server)
    }

    pub(super) async fn running(&self, ctx: &Context) -> Result<Option<Server>, Error> {
        let mut state = state::read(ctx)?;
        match self.container().await? {
            Some(Container { running: true, port: Some(port), .. }) => {
                self.connect_to(ctx, &mut state, port).await.map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    async fn start(
        &self,
        ctx: &Context,
        state: &mut State,
        image: &ServerImage,
        old: Option<Container>,
    ) -> Result<Server, Error> {
        let removed = old.is_some();
        let was_set_up = state.docker.as_ref().is_some_and(|known| known.provisioned);
        // A container is cheap and its port is fixed when it is made: a new one for every start.
        if let Some(old) = old {
            if was_set_up || self.is_set_up(&old, image).await? {
                ready::cancellable(ctx, self.client.stop(&old.id)).await??;
            }
            self.client.remove(&old.id).await?;
        }
        self.find_in_pool(ctx, state, image).await?;
        let started = self.start_new(ctx, state, image, removed).await;
        let Err(error) = &started else { return started };
        let begun_with = state.docker.as_ref().and_then(|docker| docker.begun_with.clone());
        let is_bad = matches!(
            error,
            Error::Died { .. }
                | Error::NotReady { .. }
                | Error::DataUnusable { .. }
                | Error::OtherMajor { .. }
        );
        match begun_with {
            Some(blank) if is_bad => {
                // The next run makes a cluster of its own.
                match self.unbegin(ctx, state, image, &blank).await {
                    Ok(()) => {
                        ctx.report
                            .note("the next start makes a new empty cluster, some seconds more");
                    }
                    Err(left) => ctx.report.warn(format!("what could not start stays: {left}")),
                }
            }
            Some(_) => {}
            None if !was_set_up => self.take_back(image).await,
            None => {}
        }
        started
    }

    async fn start_new(
        &self,
        ctx: &Context,
        state: &mut State,
        image: &ServerImage,
        removed: bool,
    ) -> Result<Server, Error> {
        if let Some(pool) = pool_of(state)
            && !pool.is_ready(&self.client).await?
        {
            let found = Pool::ensure(ctx, &self.client, image, pool.name()).await?;
            if let Some(docker) = &mut state.docker {
                docker.pool = Some(found.state());
            }
        }
        self.check_volume(image).await?;
        let password = match (&self.password, state.password()) {
            (_, Some(known)) => known,
            (Some(configured), None) => configured.clone(),
            (None, None) => state::new_password(),
        };
        state.set_password(&password);
        let (port, data) = self.make_and_start(ctx, state, image, &password, removed).await?;
        let target = self.target(port, password.clone());
        let what = self.what();
        let identity = ready::until_answering(ctx, &what, &target, || self.alive()).await;
        let identity = match identity {
            // The volume's password is another one (the state file was lost): it is our server.
            Err(Error::Password { .. }) if !data.first => {
                self.reset_password(&password).await?;
                ready::until_answering(ctx, &what, &target, || self.alive()).await?
            }
            other => other?,
        };
        if data.first {
            self.mark(ctx, image, &identity).await?;
        }
        if let Some(docker) = &mut state.docker {
            docker.provisioned = true;
            docker.begun_with = None;
        }
        state.kind = Some(ServerKind::Docker);
        state::write(ctx, state)?;
        let server = self.connect_to(ctx, state, port).await?;
        self.sweep_volume(state).await?;
        Ok(server)
    }

    /// Whether the container's volume holds a cluster that was set up to the end.
    async fn is_set_up(&self, container: &Container, image: &ServerImage) -> Result<bool, Error> {
        let data = match container.labels.contains_key(label::POOL) {
            true => pool::data_of(&self.hash),
            false => image.data.clone(),
        };
        let marker = format!("{data}/{MARKER}");
        Ok(self.client.read(&container.id, &marker).await?.is_some())
    }

    /// Removes what a first start that failed or was interrupted has left: nothing of worth is in it. The
    /// next one would stop it in vain, since an image that makes its cluster hears no signal. What cannot
    /// be removed now is by then.
    async fn take_back(&self, image: &ServerImage) {
        let Ok(Some(container)) = self.container().await else { return };
        if matches!(self.is_set_up(&container, image).await, Ok(false))
            && self.client.remove(&container.id).await.is_ok()
        {
            let _ = self.client.remove_volume(&self.name).await;
        }
    }

    /// Makes the container and starts it, on another port where none was named and one is taken.
    async fn make_and_start(
        &self,
        ctx: &Context,
        state: &mut State,
        image: &ServerImage,
        password: &SecretString,
        removed: bool,
    ) -> Result<(u16, Data), Error> {
        let mut remembered = state.docker.as_ref().map(|docker| docker.port);
        let was_ours = remembered;
        let mut refused_at: Option<std::time::Instant> = None;
        let mut tries = 0;
        while tries < port::TRIES {
            let port = port::choose(ctx, self.port, remembered.take(), removed).await?;
            let known = state.docker.take().unwrap_or_default();
            state.docker =
                Some(DockerState { container: None, volume: self.name.clone(), port, ..known });
            // Before the cluster exists: its password must not be lost with this process.
            state::write(ctx, state)?;
            let (id, data) = self.make(ctx, state, image, port, password).await?;
            match self.client.start(&id).await {
                Ok(()) => {
                    if let Some(docker) = &mut state.docker {
                        docker.container = Some(id);
                    }
                    return Ok((port, data));
                }
                Err(failure) => {
                    self.client.remove(&id).await?;
                    if data.first {
                        self.client.remove_volume(&self.name).await?;
                    }
                    match failure {
                        StartFailure::Other(error) => return Err(error),
                        // The daemon may let go of it a moment after the container that had it.
                        StartFailure::Port
                            if removed
                                && was_ours == Some(port)
                                && refused_at
                                    .get_or_insert_with(std::time::Instant::now)
                                    .elapsed()
                                    < port::RELEASE =>
                        {
                            remembered = was_ours;
                            ready::cancellable(ctx, ready::pause()).await?;
                        }
                        StartFailure::Port => tries += 1,
                    }
                }
            }
        }
        Err(match self.port {
            Some(port) => Error::PortTaken { port, by: port::taken_by(port) },
            None => Error::NoPort { reason: format!("{} in a row were taken", port::TRIES) },
        })
    }

    /// Refuses a volume that is not ours or holds another major version.
    async fn check_volume(&self, image: &ServerImage) -> Result<(), Error> {
        let Some(volume) = self.client.volume(&self.name).await? else { return Ok(()) };
        if !self.is_ours(&volume.labels) {
            return Err(Error::NameTaken { kind: "volume", name: self.name.clone() });
        }
        match volume.labels.get(label::MAJOR) {
            Some(major) if *major != image.major.to_string() => Err(self.other_major(major, image)),
            Some(_) | None => Ok(()),
        }
    }

    fn other_major(&self, holds: &str, image: &ServerImage) -> Error {
        Error::OtherMajor {
            place: format!("the volume {}", self.name),
            holds: holds.to_owned(),
            wanted: image.major,
            kind: ServerKind::Docker,
        }
    }

    async fn create_volume(&self, ctx: &Context, image: &ServerImage) -> Result<(), Error> {
        let mut labels = self.labels(ctx, "data");
        labels.insert(label::MAJOR.to_owned(), image.major.to_string());
        self.client.create_volume(&self.name, labels, HashMap::new()).await
    }

    /// Makes the container over a volume that is either provisioned or empty.
    async fn make(
        &self,
        ctx: &Context,
        state: &State,
        image: &ServerImage,
        port: u16,
        password: &SecretString,
    ) -> Result<(String, Data), Error> {
        if let Some(pool) = pool_of(state) {
            let id = self.make_in_pool(ctx, image, port, &pool).await?;
            return Ok((id, Data { first: false }));
        }
        if self.client.volume(&self.name).await?.is_some() {
            if let Some(id) = self.make_over(ctx, state, image, port).await? {
                return Ok((id, Data { first: false }));
            }
            // Ours and never set up to the end: nothing of worth can be in it.
            self.client.remove_volume(&self.name).await?;
        }
        // One that is not there would be made without our labels.
        self.create_volume(ctx, image).await?;
        let id =
            self.client.create(self.recipe_for(ctx, image, port, Data { first: true })).await?;
        let file = one_file(PASSWORD_FILE, password.expose_secret().as_bytes());
        self.client.upload(&id, "/", file?).await?;
        Ok((id, Data { first: true }))
    }

    /// Makes the container over a volume that is there; `None`: it was never set up to the end.
    async fn make_over(
        &self,
        ctx: &Context,
        state: &State,
        image: &ServerImage,
        port: u16,
    ) -> Result<Option<String>, Error> {
        let id =
            self.client.create(self.recipe_for(ctx, image, port, Data { first: false })).await?;
        let version = self.client.read(&id, &format!("{}/PG_VERSION", image.data)).await?;
        let marker = self.client.read(&id, &format!("{}/{MARKER}", image.data)).await?;
        if marker.is_some() {
            let version = String::from_utf8_lossy(&version.unwrap_or_default()).trim().to_owned();
            if version == image.major.to_string() {
                return Ok(Some(id));
            }
            self.client.remove(&id).await?;
            return Err(self.other_major(&version, image));
        }
        self.client.remove(&id).await?;
        if state.docker.as_ref().is_some_and(|known| known.provisioned && version.is_some()) {
            return Err(Error::DataUnusable {
                place: format!("the volume {}", self.name),
                reason: format!("its marker `{MARKER}` is gone: it is not the one that was set up"),
            });
        }
        Ok(None)
    }

    fn recipe_for(
        &self,
        ctx: &Context,
        image: &ServerImage,
        port: u16,
        data: Data,
    ) -> NewContainer {
        let mut labels = self.labels(ctx, "server");
        labels.insert(label::RECIPE.to_owned(), self.recipe(None));
        let mut env = Vec::new();
        if data.first {
            env.push(format!("POSTGRES_PASSWORD_FILE=/{PASSWORD_FILE}"));
            // Never trust; `peer` lets the container's own postgres user in, and nobody else.
            env.push(
                "POSTGRES_INITDB_ARGS=--auth-local=peer --auth-host=scram-sha-256 --encoding=UTF8"
                    .to_owned(),
            );
        }
        let mut cmd = vec!["postgres".to_owned()];
        cmd.extend(self.arguments.iter().cloned());
        NewContainer {
            name: self.name.clone(),
            image: self.image.clone(),
            env,
            cmd,
            labels,
            volumes: vec![VolumeMount {
                volume: self.name.clone(),
                target: image.mount.clone(),
                read_only: false,
            }],
            port: Some(port),
            ..NewContainer::default()
        }
    }

    /// Makes the container over the environment's directory in the pool.
    async fn make_in_pool(
        &self,
        ctx: &Context,
        image: &ServerImage,
        port: u16,
        pool: &Pool,
    ) -> Result<String, Error> {
        let data = pool::data_of(&self.hash);
        let mut new = self.recipe_for(ctx, image, port, Data { first: false });
        new.labels.insert(label::RECIPE.to_owned(), self.recipe(Some(pool)));
        new.labels.insert(label::POOL.to_owned(), pool.label());
        new.env.push(format!("PGDATA={data}"));
        new.entrypoint = Some(pool::entrypoint(image));
        new.volumes = pool.volumes();
        let id = self.client.create(new).await?;
        let checked = async {
            let version = self.client.read(&id, &format!("{data}/PG_VERSION")).await?;
            if self.client.read(&id, &format!("{data}/{MARKER}")).await?.is_none() {
                return Err(Error::DataUnusable {
                    place: format!("the pool {}", pool.mounted()),
                    reason: format!("`envs/{}` with this project's data is gone", self.hash),
                });
            }
            let version = String::from_utf8_lossy(&version.unwrap_or_default()).trim().to_owned();
            if version == image.major.to_string() {
                return Ok(());
            }
            Err(Error::OtherMajor {
                place: format!("the pool {}", pool.mounted()),
                holds: version,
                wanted: image.major,
                kind: ServerKind::Docker,
            })
        };
        match checked.await {
            Ok(()) => Ok(id),
            Err(error) => {
                let _ = self.client.remove(&id).await;
                Err(error)
            }
        }
    }

    /// Fails with the container's last words once it has ended.
    async fn alive(&self) -> Result<(), Error> {
        let container = self.client.container(&self.name).await?;
        match container {
            Some(container) if container.running => Ok(()),
            other => Err(Error::Died {
                what: self.what(),
                exit: other.and_then(|container| container.exit),
                log: self.client.last_lines(&self.name).await,
            }),
        }
    }

    /// Why the connection to the server may have ended since then, as its container tells.
    pub(super) async fn why_lost(&self, ctx: &Context, since: jiff::Timestamp) -> Option<String> {
        let look = async || match self.container().await?.ok_or(None)? {
            Container { running: false, exit: Some(code), ended: Some(ended), .. }
                if ended >= since =>
            {
                Ok(format!("{} has ended with code {code}", self.what()))
            }
            _ => {
                let log = self.client.log_since(&self.name, since).await;
                crash::of_log(&log, |_| true).ok_or(None)
            }
        };
        // The daemon hears of it a moment after the sessions.
        ready::until::<_, Option<Error>>(ctx, crash::LIMIT, look).await.ok()
    }

    /// Writes the marker beside the data, and empties the file that the password came in.
    async fn mark(
        &self,
        ctx: &Context,
        image: &ServerImage,
        identity: &Identity,
    ) -> Result<(), Error> {
        let text = serde_json::json!({
            "format": 1,
            "project": ctx.config.project,
            "system_identifier": identity.system_identifier,
        });
        let script = "umask 077 && cat > \"$0.new\" && sync && mv \"$0.new\" \"$0\" && sync";
        let path = format!("{}/{MARKER}", image.data);
        let exec = Exec {
            command: ["sh", "-c", script, &path].map(str::to_owned).to_vec(),
            env: Vec::new(),
            user: SUPERUSER,
            stdin: Some(text.to_string().into()),
        };
        let output = self.client.exec(&self.name, exec).await?;
        if output.status != 0 {
            return Err(Error::DataUnusable {
                place: path,
                reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        // The variable that names it stays, and the entry point reads it at every start.
        self.client.upload(&self.name, "/", one_file(PASSWORD_FILE, b"")?).await
    }

    /// Connects with the password that the configuration wants, set now if it is another one.
    async fn connect_to(
        &self,
        ctx: &Context,
        state: &mut State,
        port: u16,
    ) -> Result<Server, Error> {
        let wanted = self.password.clone().or_else(|| state.password());
        let password = match wanted {
            Some(password) => password,
            None => state::new_password(),
        };
        let target = self.target(port, password.clone());
        let what = self.what();
        let identity = match ready::until_answering(ctx, &what, &target, || self.alive()).await {
            Err(Error::Password { .. }) => {
                self.reset_password(&password).await?;
                ready::until_answering(ctx, &what, &target, || self.alive()).await?
            }
            other => other?,
        };
        let known =
            state.password().is_some_and(|known| known.expose_secret() == password.expose_secret());
        if !known {
            state.set_password(&password);
            state::write(ctx, state)?;
        }
        Ok(self.server(target, identity))
    }

    /// Sets the superuser's password from inside the container, as its own postgres user.
    async fn reset_password(&self, password: &SecretString) -> Result<(), Error> {
        let verifier = scram::verifier(password.expose_secret());
        let sql = format!("alter role {SUPERUSER} password '{verifier}';");
        let command = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres"];
        let exec = Exec {
            command: command.map(str::to_owned).to_vec(),
            env: Vec::new(),
            user: SUPERUSER,
            stdin: Some(sql.into()),
        };
        let output = self.client.exec(&self.name, exec).await?;
        if output.status == 0 {
            return Ok(());
        }
        Err(Error::Password {
            what: self.what(),
            user: SUPERUSER.to_owned(),
            reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    pub(super) async fn stop(&self, ctx: &Context, volumes: Volumes) -> Result<Stopped, Error> {
        let mut state = state::read(ctx)?;
        let mut stopped = Stopped::default();
        let container = self.container().await?;
        recall_pool(&mut state, container.as_ref());
        if let Some(container) = container {
            let step = ctx.report.step("stop PostgreSQL in Docker");
            if container.running {
                self.checkpoint(&state, container.port).await;
                stopped.server = Some(format!("container {}", self.name));
            }
            // One that never was set up hears no signal while it makes its cluster.
            if state.docker.as_ref().is_some_and(|known| known.provisioned) {
                ready::cancellable(ctx, self.client.stop(&container.id)).await??;
            }
            self.client.remove(&container.id).await?;
            step.done("");
        }
        if volumes == Volumes::Remove {
            stopped.data_removed = self.remove_data(ctx, state).await?;
        }
        Ok(stopped)
    }

    /// Removes all data of the environment; says what it was. The state forgets it first: a run that is
    /// cut off here is begun again by the next `down --volumes`, and `up` takes what is whole still.
    async fn remove_data(&self, ctx: &Context, mut state: State) -> Result<Option<String>, Error> {
        let pool = pool_of(&state);
        let port = state.docker.take().map_or(0, |docker| docker.port);
        state.docker =
            Some(DockerState { port, volume: self.name.clone(), ..DockerState::default() });
        state.kind = None;
        state::write(ctx, &state)?;
        let mut removed = self.leave(ctx, pool.as_ref()).await?;
        if let Some(volume) = self.client.volume(&self.name).await? {
            if !self.is_ours(&volume.labels) {
                return Err(Error::NameTaken { kind: "volume", name: self.name.clone() });
            }
            self.client.remove(&pool::log_helper(&self.name)).await?;
            self.client.remove_volume(&self.name).await?;
            removed = Some(format!("volume {}", self.name));
        }
        Ok(removed)
    }

    /// A checkpoint beforehand makes the shutdown's own short; without one it is only longer.
    async fn checkpoint(&self, state: &State, port: Option<u16>) {
        let Some(target) = self.known_target(state, port) else { return };
        if let Ok(session) = Session::connect(&target).await {
            let _ = session.batch("checkpoint").await;
            session.close().await;
        }
    }
}

/// Where the data lies, from the container's label: the state file was lost, not the data.
fn recall_pool(state: &mut State, container: Option<&Container>) {
    if let Some(label) = container.and_then(|found| found.labels.get(label::POOL)) {
        state.docker.get_or_insert_default().pool = Pool::from_label(label).map(|p| p.state());
    }
}

/// Where the environment's data shares blocks.
fn pool_of(state: &State) -> Option<Pool> {
    let known = state.docker.as_ref()?.pool.as_ref()?;
    Some(Pool::known(&known.name, &known.mounted))
}

/// An archive with one file that only root may read.
fn one_file(name: &str, content: &[u8]) -> Result<Vec<u8>, Error> {
    let fail = |error: std::io::Error| Error::DockerCall {
        action: format!("pack `{name}` for a container"),
        reason: error.to_string(),
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o400);
    tar.append_data(&mut header, name, content).map_err(fail)?;
    tar.into_inner().map_err(fail)
}
