//! Passwords on their way from a server to the one that replaces it: some the users files give only where they
//! make a role, and an image from the store has none.
//!
//! They lie in `.seedbed/passwords.<engine>.json` (mode 0600) from before the server is replaced by such an image until
//! they are given back, so that a run that is killed in between loses none.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;

use camino::{Utf8Path, Utf8PathBuf};

use crate::context::Context;
use crate::engine::{Server, ServerKind};
use crate::error::Error;
use crate::pg::Session;
use crate::site::Site;
use crate::users::{self, Verifier};

/// The passwords of all of a server's roles.
pub(crate) struct Carried {
    verifiers: Vec<Verifier>,
    file: Utf8PathBuf,
}

impl Carried {
    /// Those of a server that is about to be replaced by an image, which came from the store or was made here.
    ///
    /// # Errors
    /// What the server said.
    pub(crate) async fn take(ctx: &Context, site: &Site, received: bool) -> Result<Self, Error> {
        let verifiers = users::verifiers(&site.session).await;
        let verifiers = verifiers
            .map_err(|error| Error::Database { what: "look at passwords".to_owned(), error })?;
        let file = file(ctx, site.server.kind);
        if received
            && !verifiers.is_empty()
            && let Err(error) = write(&file, &verifiers)
        {
            ctx.report
                .warn(format!("killed from here on passwords would be lost: {file}: {error}"));
        }
        Ok(Self { verifiers, file })
    }

    /// Gives them to the roles of the server that is there now.
    ///
    /// # Errors
    /// What the server said; a file that cannot be removed.
    pub(crate) async fn give_back(&self, session: &Session) -> Result<(), Error> {
        give(session, &self.verifiers).await?;
        remove(&self.file)
    }

    /// They are where they were: the old server is served again.
    pub(crate) fn forget(&self, ctx: &Context) {
        if let Err(error) = remove(&self.file) {
            ctx.report.warn(error.to_string());
        }
    }
}

/// Gives back what a run that was killed has carried, where the server is the environment's own.
///
/// # Errors
/// What the server said; a file that cannot be read or removed.
pub(crate) async fn give_what_is_left(
    ctx: &Context,
    server: &Server,
    session: &Session,
) -> Result<(), Error> {
    if !server.started_by_us {
        return Ok(());
    }
    let file = file(ctx, server.kind);
    let text = match fs_err::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::File { action: "read", path: file, error }),
    };
    match serde_json::from_slice::<Vec<Verifier>>(&text) {
        Ok(verifiers) => give(session, &verifiers).await?,
        Err(error) => {
            ctx.report.warn(format!("passwords that a run has carried are lost: {file}: {error}"));
        }
    }
    remove(&file)
}

/// Removes what a run that was killed has carried: the data of the environment's server of this kind is gone.
///
/// # Errors
/// A file that cannot be removed.
pub(crate) fn forget_carried(ctx: &Context, kind: ServerKind) -> Result<(), Error> {
    remove(&file(ctx, kind))
}

async fn give(session: &Session, verifiers: &[Verifier]) -> Result<(), Error> {
    let given = users::give_back(session, verifiers).await;
    given.map_err(|error| Error::Database { what: "take passwords along".to_owned(), error })
}

/// That of the data which such a server has: what is embedded and what is installed have the same.
fn file(ctx: &Context, kind: ServerKind) -> Utf8PathBuf {
    let engine = match kind {
        ServerKind::Docker => "docker",
        ServerKind::Native | ServerKind::Embedded | ServerKind::External => "native",
    };
    ctx.state_dir().join(format!("passwords.{engine}.json"))
}

/// Where it is written before it has its name; a run that was killed may have left one.
fn part_of(path: &Utf8Path) -> Utf8PathBuf {
    path.with_extension("part")
}

fn write(path: &Utf8Path, verifiers: &[Verifier]) -> std::io::Result<()> {
    let part = part_of(path);
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(&serde_json::to_vec(verifiers)?)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    std::fs::File::open(path.parent().unwrap_or(Utf8Path::new(".")))?.sync_all()
}

fn remove(path: &Utf8Path) -> Result<(), Error> {
    for path in [&part_of(path), path] {
        match fs_err::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::File { action: "remove", path: path.to_owned(), error });
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
