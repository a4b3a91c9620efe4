//! `.seedbed/state.json`: what this project's server is and the password that was made for it.
//!
//! Mode 0600, replaced by rename after its bytes are on disk. A file of a newer format is refused,
//! never overwritten: a newer program may rely on what it says.

use std::io::Write;

use camino::{Utf8Path, Utf8PathBuf};
use rand::Rng;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{Error, ServerKind};
use crate::context::Context;

const FORMAT: u64 = 1;

/// What is remembered between runs.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct State {
    format: u64,
    pub docker: Option<DockerState>,
    pub native: Option<NativeState>,
    /// The superuser's password as it was last set.
    superuser_password: Option<String>,
    /// Which engine `auto` took; kept while its server is there, so that a daemon that is started
    /// later does not hide the data.
    pub kind: Option<ServerKind>,
    /// Whose state it is, as it was typed; `None`: the default environment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    branch: Option<String>,
}

/// The container and its volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DockerState {
    pub container: Option<String>,
    pub volume: String,
    pub port: u16,
    /// Its first start reached the end: it is never made again without being asked.
    pub provisioned: bool,
    /// Where its data lies in a pool, and no longer in the volume.
    #[serde(default)]
    pub pool: Option<PoolState>,
    /// The empty cluster of the pool that it is a clone of, until its first start has reached the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_with: Option<String>,
    /// Why there was none when one was tried last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_pool: Option<String>,
}

/// The volumes of a pool: the one that holds it, the one that is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolState {
    pub name: String,
    pub mounted: String,
}

/// The data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NativeState {
    pub data: Utf8PathBuf,
    pub port: u16,
    pub bin_dir: Utf8PathBuf,
}

impl State {
    /// The password last set; `None` on a new project.
    pub fn password(&self) -> Option<SecretString> {
        self.superuser_password.clone().map(SecretString::from)
    }

    /// The branch that it belongs to.
    pub fn branch(&self) -> Option<&str> {
        self.branch.as_deref()
    }

    /// Whether there is a server, or data of one: no longer after `down --volumes`.
    pub fn tells_of_a_server(&self) -> bool {
        let in_docker =
            self.docker.as_ref().is_some_and(|known| known.provisioned || known.pool.is_some());
        self.kind.is_some() || self.native.is_some() || in_docker
    }

    pub fn set_password(&mut self, password: &SecretString) {
        self.superuser_password = Some(password.expose_secret().to_owned());
    }
}

/// Where the state stands.
pub(crate) fn path(ctx: &Context) -> Utf8PathBuf {
    ctx.state_dir().join("state.json")
}

/// Reads the state; an absent file is an empty state.
pub(crate) fn read(ctx: &Context) -> Result<State, Error> {
    read_file(&path(ctx))
}

fn read_file(path: &Utf8Path) -> Result<State, Error> {
    let text = match fs_err::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(State::default()),
        Err(error) => return Err(Error::File { action: "read", path: path.into(), error }),
    };
    let damaged = |error: serde_json::Error| Error::StateDamaged {
        path: path.into(),
        reason: error.to_string(),
    };
    // The format first: a newer file may not have this program's shape.
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
    let found = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if found > FORMAT {
        return Err(Error::StateNewer { path: path.into(), found, known: FORMAT });
    }
    serde_json::from_value(value).map_err(damaged)
}

/// Writes the state.
pub(crate) fn write(ctx: &Context, state: &State) -> Result<(), Error> {
    let dir = ctx.state_dir();
    fs_err::create_dir_all(&dir).map_err(Error::file("make", &dir))?;
    let branch = ctx.config.branch.as_ref().map(|branch| branch.name().to_owned());
    write_file(&path(ctx), &State { branch, ..state.clone() })
}

/// The state in a folder.
pub(crate) fn read_in(dir: &Utf8Path) -> Result<State, Error> {
    read_file(&dir.join("state.json"))
}

/// Whether another environment of the project has data of a native server. One whose state cannot be
/// read may have.
pub(super) fn is_native_elsewhere(ctx: &Context) -> bool {
    let ours = ctx.state_dir();
    let all = std::iter::once(ctx.project_dir()).chain(ctx.branch_dirs());
    all.filter(|dir| *dir != ours).any(|dir| match read_in(&dir) {
        Ok(state) => state.native.is_some_and(|native| native.data.exists()),
        Err(_) => true,
    })
}

fn write_file(path: &Utf8Path, state: &State) -> Result<(), Error> {
    let fail = |error| Error::File { action: "write", path: path.into(), error };
    let state = State { format: FORMAT, ..state.clone() };
    let text = serde_json::to_vec_pretty(&state).map_err(|error| fail(error.into()))?;
    let dir = path.parent().unwrap_or(Utf8Path::new("."));
    // A temporary file has mode 0600 from its first moment.
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(fail)?;
    file.write_all(&text).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail)
}

/// A password that nobody has seen: 24 characters of 62, about 140 bits.
pub(crate) fn new_password() -> SecretString {
    const LENGTH: usize = 24;
    rand::rng()
        .sample_iter(rand::distr::Alphanumeric)
        .take(LENGTH)
        .map(char::from)
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = Utf8PathBuf::from_path_buf(dir.path().join("state.json")).expect("UTF-8");
        (dir, path)
    }

    #[test]
    fn what_was_written_is_read_again_and_only_the_owner_may() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, path) = folder();
        let mut state = State { kind: Some(ServerKind::Native), ..State::default() };
        state.set_password(&"secret".to_owned().into());
        write_file(&path, &state).expect("writes");
        let read = read_file(&path).expect("reads");
        assert_eq!(read.kind, Some(ServerKind::Native));
        assert_eq!(read.password().expect("one").expose_secret(), "secret");
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_absent_file_is_an_empty_state() {
        let (_dir, path) = folder();
        assert!(read_file(&path).expect("reads").password().is_none());
    }

    #[test]
    fn a_newer_format_is_refused() {
        let (_dir, path) = folder();
        std::fs::write(&path, r#"{"format": 2, "docker": "another shape"}"#).expect("writes");
        let Err(error) = read_file(&path) else { panic!("was read") };
        assert!(matches!(error, Error::StateNewer { found: 2, known: 1, .. }), "{error}");
    }

    #[test]
    fn a_damaged_file_is_named() {
        let (_dir, path) = folder();
        std::fs::write(&path, "{").expect("writes");
        let Err(error) = read_file(&path) else { panic!("was read") };
        assert!(matches!(error, Error::StateDamaged { .. }), "{error}");
    }

    #[test]
    fn passwords_differ() {
        assert_ne!(new_password().expose_secret(), new_password().expose_secret());
    }
}
