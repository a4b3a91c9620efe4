//! Passwords on their way from a server to the one that replaces it: some the users files give only where they
//! make a role.
//!
//! What the files do not give lies in `.seedbed/passwords.json` (mode 0600) from before the server is replaced until
//! it is given back, so that a run that is killed in between loses none.

use std::io::{ErrorKind, Write};

use camino::{Utf8Path, Utf8PathBuf};

use crate::context::Context;
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
    /// Those of a server that is about to be replaced.
    ///
    /// # Errors
    /// What the server said; a file that cannot be written.
    pub(crate) async fn take(ctx: &Context, site: &Site) -> Result<Self, Error> {
        let verifiers = users::verifiers(&site.session).await;
        let verifiers = verifiers
            .map_err(|error| Error::Database { what: "look at passwords".to_owned(), error })?;
        let file = file(ctx);
        let ours = [site.owner(ctx), site.server.admin.user.as_str()];
        let is_given = |role: &str| site.accounts.gives_password_to(role) || ours.contains(&role);
        let only_here: Vec<&Verifier> =
            verifiers.iter().filter(|had| !is_given(&had.role)).collect();
        if !only_here.is_empty() {
            write(&file, &only_here).map_err(failed("write", &file))?;
        }
        Ok(Self { verifiers, file })
    }

    /// Gives them to the roles of the server that is there now.
    ///
    /// # Errors
    /// What the server said; a file that cannot be removed.
    pub(crate) async fn give_back(self, session: &Session) -> Result<(), Error> {
        give(session, &self.verifiers).await?;
        remove(&self.file)
    }
}

/// Gives back what a run that was killed has carried.
///
/// # Errors
/// What the server said; what is wrong with the file.
pub(crate) async fn give_what_is_left(ctx: &Context, session: &Session) -> Result<(), Error> {
    let file = file(ctx);
    let text = match fs_err::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", &file)(error)),
    };
    let verifiers: Vec<Verifier> =
        serde_json::from_slice(&text).map_err(|error| failed("read", &file)(error.into()))?;
    give(session, &verifiers).await?;
    remove(&file)
}

async fn give(session: &Session, verifiers: &[Verifier]) -> Result<(), Error> {
    let given = users::give_back(session, verifiers).await;
    given.map_err(|error| Error::Database { what: "take passwords along".to_owned(), error })
}

fn file(ctx: &Context) -> Utf8PathBuf {
    ctx.state_dir().join("passwords.json")
}

fn write(path: &Utf8Path, verifiers: &[&Verifier]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Utf8Path::new("."));
    // A temporary file has mode 0600 from its first moment.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(&serde_json::to_vec(verifiers)?)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(dir)?.sync_all()
}

fn remove(path: &Utf8Path) -> Result<(), Error> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::File { action, path, error }
}
