//! One run at a time: on a project of this machine (a file lock), on a database of a server (an
//! advisory lock).
//!
//! Both end with whoever holds them: the kernel releases a file lock, the server an advisory lock,
//! also after `kill -9`. What stands in the lock file is only for the message.

use std::fs::TryLockError;
use std::io::{Read, Seek, Write};

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::Exit;
use crate::pg::{self, quote};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another run works on this project: {holder}")]
    Project { holder: String },
    #[error("another run works on database `{database}` of this server (backend {pid})")]
    Database { database: String, pid: i32 },
    #[error("lock `{path}`: {error}")]
    File { path: Utf8PathBuf, error: std::io::Error },
    #[error("take the lock of database `{database}`: {error}")]
    Server { database: String, error: pg::Error },
}

impl Error {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Project { .. } | Self::Database { .. } => Exit::Locked,
            Self::File { .. } => Exit::Database,
            Self::Server { error, .. } => crate::error::pg_exit(error),
        }
    }

    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Project { .. } | Self::Database { .. } => {
                vec!["wait until it has ended, then run the command again".to_owned()]
            }
            Self::File { .. } | Self::Server { .. } => Vec::new(),
        }
    }
}

/// Held while a run changes this project's local state.
#[derive(Debug)]
pub struct ProjectLock {
    _file: std::fs::File,
}

/// Takes the project's lock, or says who holds it.
///
/// # Errors
/// [`Error::Project`] when another process holds it; [`Error::File`].
pub fn project(state_dir: &Utf8Path, command: &str) -> Result<ProjectLock, Error> {
    let path = state_dir.join("lock");
    let fail = |error| Error::File { path: path.clone(), error };
    fs_err::create_dir_all(state_dir).map_err(fail)?;
    ignore(state_dir).map_err(fail)?;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The text is written after the lock was taken, so it may be missing for a moment.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "it has only just begun".to_owned(),
                text => text.to_owned(),
            };
            return Err(Error::Project { holder });
        }
        Err(TryLockError::Error(error)) => return Err(fail(error)),
    }
    file.set_len(0).map_err(fail)?;
    file.rewind().map_err(fail)?;
    let now = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
    writeln!(file, "`seedbed {command}`, process {}, since {now}", std::process::id())
        .map_err(fail)?;
    Ok(ProjectLock { _file: file })
}

/// Keeps generated passwords out of the team's repository, whatever its own `.gitignore` says.
fn ignore(state_dir: &Utf8Path) -> std::io::Result<()> {
    // A branch's folder lies in the project's, with what the branches share.
    let is_root = |dir: &&Utf8Path| dir.file_name() == Some(".seedbed");
    let root = state_dir.ancestors().find(is_root).unwrap_or(state_dir);
    let path = root.join(".gitignore");
    match std::fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => file.write_all(b"*\n"),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// First half of our advisory keys: `seed` in ASCII.
pub(crate) const KEY_CLASS: i32 = 0x7365_6564;

/// Takes the advisory lock for building or replacing `database`, on a session with the maintenance
/// database. It is held until that session ends.
///
/// # Errors
/// [`Error::Database`] when another session holds it; [`Error::Server`].
pub async fn database(session: &pg::Session, database: &str) -> Result<(), Error> {
    let fail = |error| Error::Server { database: database.to_owned(), error };
    if try_database(session, database).await.map_err(fail)? {
        return Ok(());
    }
    let holder = session
        .query_opt(
            "select pid
             from pg_locks
             where locktype = 'advisory'
               and classid::int8 = $1::int4
               and objid::int8 = hashtext($2)::int8 & 4294967295
               and granted
             limit 1",
            &[&KEY_CLASS, &database],
        )
        .await
        .map_err(fail)?;
    let pid = holder.map_or(0, |row| row.get(0));
    Err(Error::Database { database: database.to_owned(), pid })
}

/// Takes the same lock when it is free; says whether it did.
///
/// # Errors
/// What the server said.
pub async fn try_database(session: &pg::Session, database: &str) -> Result<bool, pg::Error> {
    let row = session
        .query_one("select pg_try_advisory_lock($1, hashtext($2))", &[&KEY_CLASS, &database])
        .await?;
    Ok(row.get(0))
}

/// Nobody lends copies of `database` from now on, until this session ends or calls [`lend_again`]: the
/// server's data is about to be replaced or frozen. `false`: somebody is lending one just now.
///
/// # Errors
/// What the server said.
pub(crate) async fn stop_lending(session: &pg::Session, database: &str) -> Result<bool, pg::Error> {
    try_database(session, &lending_key(database)).await
}

/// Gives up what [`stop_lending`] took.
///
/// # Errors
/// What the server said.
pub(crate) async fn lend_again(session: &pg::Session, database: &str) -> Result<(), pg::Error> {
    let key = quote::literal(&lending_key(database));
    session.batch(&format!("select pg_advisory_unlock({KEY_CLASS}, hashtext({key}))")).await
}

/// The statements by which a session lends copies of `database`, beside others that do, and no longer.
/// The first one waits while lending is stopped.
pub(crate) fn lending(database: &str) -> (String, String) {
    let key = quote::literal(&lending_key(database));
    (
        format!("select pg_advisory_lock_shared({KEY_CLASS}, hashtext({key}))"),
        format!("select pg_advisory_unlock_shared({KEY_CLASS}, hashtext({key}))"),
    )
}

/// No name of a database has a line break that anybody would type.
fn lending_key(database: &str) -> String {
    format!("lend\n{database}")
}

#[cfg(test)]
mod tests {
    use super::{Error, project};

    #[test]
    fn a_second_run_is_told_who_holds_the_project() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let dir = camino::Utf8Path::from_path(dir.path()).expect("a UTF-8 path");
        let held = project(dir, "up").expect("free");
        let Err(Error::Project { holder }) = project(dir, "reset") else {
            panic!("the lock was given twice");
        };
        assert!(holder.starts_with("`seedbed up`, process "), "{holder}");
        drop(held);
        project(dir, "reset").expect("free again");
    }
}
