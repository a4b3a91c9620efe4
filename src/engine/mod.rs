//! What runs Postgres: Docker, local binaries, downloaded binaries, or somebody else.
//!
//! [`choose`] decides once and says why in one line; [`Engine::ensure`] makes the server answer and
//! returns it as a [`Server`]. `docker` is the only file that names bollard, `ready` the only one
//! that waits, `state` the only one that reads and writes `.seedbed/state.json`. Nothing here touches
//! a container, volume or folder that does not carry our label or lie in our folder.

mod archive;
mod choose;
pub(crate) mod crash;
mod docker;
mod embedded;
mod error;
mod external;
pub(crate) mod images;
mod native;
pub(crate) mod place;
mod port;
pub(crate) mod ready;
pub(crate) mod room;
mod settings;
pub(crate) mod state;

pub use choose::{Choice, all_before, choose, chosen_before};
pub use docker::DockerEngine;
pub(crate) use docker::{
    ContainerTools, ExecOutput, File as ContainerFile, HelperContainer, Run as ContainerRun,
};
pub use embedded::EmbeddedEngine;
pub use error::Error;
pub use external::ExternalEngine;
pub use images::{
    Clones, Feed, Holds, Incoming, Inventory, Keep, Outgoing, Rung, Sharer, Stored, Whose,
    passing_image,
};
pub use native::NativeEngine;

use secrecy::SecretString;

use crate::config::Config;
use crate::context::Context;
use crate::pg::tools::Tools;
use crate::pg::{Session, Target};

/// What runs the server of an environment.
#[derive(Clone)]
pub enum Engine {
    Docker(DockerEngine),
    Native(NativeEngine),
    Embedded(EmbeddedEngine),
    External(ExternalEngine),
}

/// Which engine a [`Server`] came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    Docker,
    Native,
    Embedded,
    External,
}

impl ServerKind {
    /// The word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Native => "native",
            Self::Embedded => "embedded",
            Self::External => "external",
        }
    }
}

/// A server that answers.
#[derive(Debug, Clone)]
pub struct Server {
    /// The superuser's account, in the database `postgres`.
    pub admin: Target,
    /// `server_version_num`, as 170004.
    pub version_num: i32,
    /// From the control file; empty where the account may not read it.
    pub system_identifier: String,
    /// Versions of what data is bound to beside the server's own: by which rules text is sorted, and the
    /// extensions that can be had. For comparing only.
    pub libraries: String,
    /// We made it and may stop it.
    pub started_by_us: bool,
    pub kind: ServerKind,
    /// The clients that go with it.
    pub tools: Tools,
}

impl Server {
    /// The major version: 17.
    pub fn major(&self) -> u32 {
        u32::try_from(self.version_num / 10_000).unwrap_or(0)
    }
}

/// Whether the data goes with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volumes {
    Keep,
    Remove,
}

/// What stopping did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stopped {
    /// The container or data directory whose server was stopped; `None`: none was running.
    pub server: Option<String>,
    /// The volume or data directory that was removed.
    pub data_removed: Option<String>,
}

impl Engine {
    pub fn kind(&self) -> ServerKind {
        match self {
            Self::Docker(_) => ServerKind::Docker,
            Self::Native(_) => ServerKind::Native,
            Self::Embedded(_) => ServerKind::Embedded,
            Self::External(_) => ServerKind::External,
        }
    }

    /// Makes the server answer: finds it running, or starts it, or makes it first.
    ///
    /// # Errors
    /// Why it cannot; nothing of anybody else's was touched.
    pub async fn ensure(&self, ctx: &Context) -> Result<Server, Error> {
        match self {
            Self::Docker(engine) => engine.ensure(ctx).await,
            Self::Native(engine) => engine.ensure(ctx).await,
            Self::Embedded(engine) => engine.ensure(ctx).await,
            Self::External(engine) => engine.ensure(ctx).await,
        }
    }

    /// The server, if it is running; starts and makes nothing.
    ///
    /// # Errors
    /// When it runs and cannot be used.
    pub async fn running(&self, ctx: &Context) -> Result<Option<Server>, Error> {
        match self {
            Self::Docker(engine) => engine.running(ctx).await,
            Self::Native(engine) => engine.running(ctx).await,
            Self::Embedded(engine) => engine.running(ctx).await,
            Self::External(engine) => engine.running(ctx).await,
        }
    }

    /// Stops the server cleanly; with [`Volumes::Remove`] its data goes too.
    ///
    /// # Errors
    /// [`Error::NotOurs`] for a server that somebody else runs.
    pub async fn stop(&self, ctx: &Context, volumes: Volumes) -> Result<Stopped, Error> {
        match self {
            Self::Docker(engine) => engine.stop(ctx, volumes).await,
            Self::Native(engine) => engine.stop(ctx, volumes).await,
            Self::Embedded(engine) => engine.stop(ctx, volumes).await,
            Self::External(engine) => engine.stop(),
        }
    }
}

/// The superuser's password as the configuration wants it; `None`: one is made and remembered.
///
/// Where the environment's user *is* the superuser, its password is the one that clients have.
fn configured_password(config: &Config) -> Option<SecretString> {
    let own = || (config.database.user == "postgres").then(|| config.database.password.clone());
    config.engine.superuser_password.clone().or_else(|| own().flatten())
}

/// What is asked of a server that answers: version and identity.
struct Identity {
    version_num: i32,
    system_identifier: String,
    libraries: String,
}

/// Nothing here may come with the data, as collations of the C library do: that is told by the build, whose
/// version names the distribution.
const LIBRARIES: &str = "concat_ws(' ', version(),
    (select pg_collation_actual_version(oid) from pg_collation
     where collname = 'und-x-icu' and collnamespace = 'pg_catalog'::regnamespace),
    (select string_agg(name || ' ' || default_version, ' ' order by name) from pg_available_extensions))";

async fn identify(admin: &Target) -> Result<Identity, crate::pg::Error> {
    let session = Session::connect(admin).await?;
    let asked = format!(
        "select current_setting('server_version_num')::int,
                has_function_privilege('pg_control_system()', 'execute'), {LIBRARIES}"
    );
    let row = session.query_one(&asked, &[]).await?;
    let (version_num, libraries) = (row.get(0), row.get(2));
    let system_identifier = if row.get(1) {
        let row = session
            .query_one("select system_identifier::text from pg_control_system()", &[])
            .await?;
        row.get(0)
    } else {
        String::new()
    };
    session.close().await;
    Ok(Identity { version_num, system_identifier, libraries })
}
