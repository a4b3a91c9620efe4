//! The server from binaries that are downloaded once into the user's cache: nothing is installed.
//!
//! After the download it is a native server. The archive's place is `engine.archive_url`, with
//! `{version}` and `{target}` filled in; the default is the releases of theseus-rs/postgresql-binaries.

use camino::{Utf8Path, Utf8PathBuf};

use super::archive;
use super::native::NativeEngine;
use super::place::{self, BinDir};
use super::state;
use super::{Error, Server, ServerKind, Stopped, Volumes};
use crate::context::Context;

/// Binaries of one version, here or to be fetched.
#[derive(Clone)]
pub struct EmbeddedEngine {
    url: String,
    version: String,
    major: u32,
    /// The folder of this version in the cache.
    dir: Utf8PathBuf,
}

impl EmbeddedEngine {
    /// Fetches nothing yet.
    ///
    /// # Errors
    /// [`Error::Download`] when no version or no place is configured.
    pub fn new(ctx: &Context) -> Result<Self, Error> {
        let config = &ctx.config.engine;
        let (version, target) = (config.archive_version.clone(), target_triple());
        let url = config.archive_url.replace("{version}", &version).replace("{target}", target);
        let fail = |reason: &str| Error::Download { url: url.clone(), reason: reason.to_owned() };
        if config.archive_url.is_empty() {
            return Err(fail("`engine.archive_url` is empty"));
        }
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        let major = digits.parse().map_err(|_| fail("`engine.archive_version` is no version"))?;
        let folder = format!("postgresql-{version}-{target}");
        let preferred = ctx.env.cache_dir().join("postgresql").join(&folder);
        let dir = place::reachable(&preferred, &format!("cache/{folder}"), place::run_as());
        Ok(Self { url, version, major, dir })
    }

    /// Whether it was downloaded before.
    pub(super) fn is_here(&self) -> bool {
        self.bin_dir().join("postgres").is_file()
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    fn bin_dir(&self) -> Utf8PathBuf {
        self.dir.join("bin")
    }

    pub(super) fn native(&self, ctx: &Context) -> NativeEngine {
        let bin = BinDir { dir: self.bin_dir(), major: self.major };
        NativeEngine::with(ctx, bin, ServerKind::Embedded)
    }

    pub(super) async fn ensure(&self, ctx: &Context) -> Result<Server, Error> {
        if !self.is_here() {
            archive::fetch(ctx, &self.url, &self.dir).await?;
            let found = place::major_of(&self.bin_dir().join("postgres")).await?;
            if found != self.major {
                remove(&self.dir)?;
                return Err(Error::Archive {
                    name: self.url.clone(),
                    reason: format!("it holds PostgreSQL {found}, not {}", self.version),
                });
            }
        }
        self.native(ctx).ensure(ctx).await
    }

    /// With the binaries that the data was last started with, which may be of another version than the
    /// one that is configured by now; else with these.
    fn as_started(&self, ctx: &Context) -> Result<NativeEngine, Error> {
        let Some(known) = state::read(ctx)?.native else { return Ok(self.native(ctx)) };
        let version = std::fs::read_to_string(known.data.join("PG_VERSION")).unwrap_or_default();
        match version.trim().parse() {
            Ok(major) if known.bin_dir.join("pg_ctl").is_file() => {
                let bin = BinDir { dir: known.bin_dir, major };
                Ok(NativeEngine::with(ctx, bin, ServerKind::Embedded))
            }
            Ok(_) | Err(_) => Ok(self.native(ctx)),
        }
    }

    pub(super) async fn running(&self, ctx: &Context) -> Result<Option<Server>, Error> {
        self.as_started(ctx)?.running(ctx).await
    }

    pub(super) async fn stop(&self, ctx: &Context, volumes: Volumes) -> Result<Stopped, Error> {
        self.as_started(ctx)?.stop(ctx, volumes).await
    }
}

fn remove(dir: &Utf8Path) -> Result<(), Error> {
    fs_err::remove_dir_all(dir).map_err(Error::file("remove", dir))
}

/// The platform, as the archives are named by it.
fn target_triple() -> &'static str {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "aarch64") if cfg!(target_env = "musl") => "aarch64-unknown-linux-musl",
        ("linux", "aarch64") => "aarch64-unknown-linux-gnu",
        ("linux", _) if cfg!(target_env = "musl") => "x86_64-unknown-linux-musl",
        ("macos", "aarch64") => "aarch64-apple-darwin",
        ("macos", _) => "x86_64-apple-darwin",
        (_, _) => "x86_64-unknown-linux-gnu",
    }
}
