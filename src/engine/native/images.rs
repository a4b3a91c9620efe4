//! Frozen data directories on a file system with reflinks (APFS, XFS, Btrfs): beside the server's data.
//!
//! `data` is served, `data.next` is a clone that will be, `data.kept` what the last one has kept. A
//! clone is whole under its name or not there; two renames make it live (`data` → `data.old`, the clone
//! → `data`), and [`NativeEngine::recover`] takes the first one back when a run is killed between the two.

use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::Stdio;

use camino::{Utf8Path, Utf8PathBuf};

use super::{MARKER, NativeEngine, remove_dir, unpack};
use crate::context::Context;
use crate::engine::images::{
    Incoming, Inventory, Keep, Outgoing, Rung, Sharer, Shelf, Stored, Whose, passing_name,
};
use crate::engine::place::{self, RunAs};
use crate::engine::{Error, Server};
use crate::engine::{ready, state};

const FACTS: &str = "image.json";
/// In a data directory: the image that it came from.
const FROM: &str = "seedbed.from";
/// What the server that is to be started on it writes to its log, and others to the same disk.
const SPARE: u128 = 256 << 20;

impl NativeEngine {
    fn next(&self) -> Utf8PathBuf {
        self.home.join("data.next")
    }

    fn old(&self) -> Utf8PathBuf {
        self.home.join("data.old")
    }

    fn kept(&self) -> Utf8PathBuf {
        self.home.join("data.kept")
    }

    /// Whether the data may have been cloned, from an image or a point with another password.
    pub(super) fn is_from_elsewhere(&self) -> bool {
        self.data().join(FROM).is_file() || self.points().images_dir.is_dir()
    }

    /// The same with the environment's points in the place of images: they go with its data.
    pub(in crate::engine) fn points(&self) -> Self {
        Self { images_dir: self.home.join("points"), shelf: Shelf::Points, ..self.clone() }
    }

    fn image(&self, name: &str) -> Utf8PathBuf {
        self.images_dir.join(name)
    }

    /// Not every file system can: seen before anybody is disturbed.
    pub(in crate::engine) fn can_freeze(&self) -> Result<(), Error> {
        fs_err::create_dir_all(&self.images_dir).map_err(Error::file("make", &self.images_dir))?;
        probe(&self.data().join("PG_VERSION"), &self.images_dir)
    }

    /// Tried beside the data, where there is any.
    pub(in crate::engine) fn rung(&self) -> Result<Rung, Error> {
        let (data, home) = (self.data(), &self.home);
        if !data.is_dir() {
            return Ok(Rung::images(format!("where `{home}` will be, if its file system can")));
        }
        let probed = probe(&data.join("PG_VERSION"), home);
        match probed {
            Ok(()) => Ok(Rung::images(format!("beside the data in `{home}`"))),
            Err(Error::NoPool { reason }) => Ok(Rung::templates(reason)),
            Err(error) => Err(error),
        }
    }

    /// Whether the file system can at all; whatever else is in the way is an error.
    fn shares_blocks(&self) -> Result<bool, Error> {
        use nix::errno::Errno;
        let from = self.data().join("PG_VERSION");
        let Err(error) = clone_for_a_moment(&from, &self.images_dir) else { return Ok(true) };
        let cannot = [Errno::EOPNOTSUPP, Errno::EXDEV, Errno::EINVAL, Errno::ENOTTY, Errno::ENOSYS];
        match error.raw_os_error() {
            Some(number) if cannot.contains(&Errno::from_raw(number)) => Ok(false),
            _ if error.kind() == std::io::ErrorKind::Unsupported => Ok(false),
            _ => Err(Error::file("clone", from)(error)),
        }
    }

    /// Freezes the server's data; it is down while the clone is made.
    pub(in crate::engine) async fn freeze(
        &self,
        ctx: &Context,
        name: &str,
        facts: &str,
    ) -> Result<Server, Error> {
        self.can_freeze()?;
        let frozen = match self.stop_for_images(ctx).await {
            Ok(()) => self.freeze_stopped(name, facts),
            Err(error) => Err(error),
        };
        let server = self.serve_again(ctx).await?;
        frozen?;
        ctx.check_cancelled().map_err(|_| Error::Interrupted)?;
        Ok(server)
    }

    /// Serves the data, whatever has happened, also where the user has asked to stop.
    async fn serve_again(&self, ctx: &Context) -> Result<Server, Error> {
        let calm = ctx.uninterrupted();
        // One whose stop was cut off is on its way down.
        self.stop_for_images(&calm).await?;
        self.ensure_on(&calm, true).await
    }

    fn freeze_stopped(&self, name: &str, facts: &str) -> Result<(), Error> {
        let lock_file = self.data().join("postmaster.pid");
        if lock_file.exists() {
            let reason = "its server did not stop cleanly".to_owned();
            return Err(Error::DataUnusable { place: self.data().to_string(), reason });
        }
        // Another environment may freeze the same; what a run of this one has left goes.
        let part = self.image(&format!(".part.{}", self.hash));
        remove_dir(&part)?;
        fs_err::create_dir_all(&part).map_err(Error::file("make", &part))?;
        clone(&self.data(), &part.join("data"), self.user)?;
        if self.shelf == Shelf::Images {
            // That is about an environment; there may be none.
            let _ = std::fs::remove_file(part.join("data").join(FROM));
        }
        let path = part.join(FACTS);
        fs_err::write(&path, facts).map_err(Error::file("write", &path))?;
        self.came_from(name, &self.data())?;
        let _lock = self.lock_images()?;
        self.put(&part, name)
    }

    /// Makes the folder `part` the image `name`, under the lock. Half of an older one is never found.
    fn put(&self, part: &Utf8Path, name: &str) -> Result<(), Error> {
        let (image, gone) = (self.image(name), self.image(&format!(".gone.{name}")));
        remove_dir(&gone)?;
        if image.exists() {
            rename(&image, &gone)?;
        }
        fs_err::rename(part, &image).map_err(Error::file("make", &image))?;
        remove_dir(&gone)
    }

    /// Serves a clone of an image in place of the data; where copies cannot share blocks, the image
    /// itself, which is then gone.
    pub(in crate::engine) async fn replace(
        &self,
        ctx: &Context,
        name: &str,
        keep: Option<Keep>,
    ) -> Result<Server, Error> {
        {
            let _lock = self.lock_images()?;
            let image = self.image(name);
            if self.shelf == Shelf::Points || self.shares_blocks()? {
                clone(&image.join("data"), &self.next(), self.user)?;
                // Its age counts from here.
                let facts = image.join(FACTS);
                fs_err::File::options()
                    .append(true)
                    .open(&facts)
                    .and_then(|file| file.set_modified(std::time::SystemTime::now()))
                    .map_err(Error::file("touch", &facts))?;
            } else {
                // Half of an image is never found.
                let part = self.image(&format!(".part.{}", self.hash));
                remove_dir(&part)?;
                remove_dir(&self.next())?;
                rename(&image, &part)?;
                rename(&part.join("data"), &self.next())?;
                remove_dir(&part)?;
            }
        }
        self.carry_settings()?;
        self.came_from(name, &self.next())?;
        self.turn(ctx, &self.next(), keep).await
    }

    /// Stops the server, takes its log of changes away and hands the data directory out.
    pub(in crate::engine) async fn hand_out<O: Outgoing>(
        &self,
        ctx: &Context,
        mut outgoing: O,
    ) -> Result<O, Error> {
        self.stop_for_images(ctx).await?;
        let program = self.bin.dir.join("pg_resetwal");
        let fail = |reason: String| Error::Program { program: program.to_string(), reason };
        let output = self
            .command("pg_resetwal")
            .args(["-D", self.data().as_str()])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = ready::cancellable(ctx, output).await?.map_err(|e| fail(e.to_string()))?;
        if !output.status.success() {
            return Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let data = self.data();
        let read = move || -> Result<O, Error> {
            hand_out(&data, "", &mut outgoing)?;
            Ok(outgoing)
        };
        let read = tokio::task::spawn_blocking(read);
        read.await.map_err(|error| fail(error.to_string()))?
    }

    /// Takes a data directory in as an image.
    pub(in crate::engine) async fn receive(
        &self,
        ctx: &Context,
        name: &str,
        facts: &str,
        incoming: Incoming,
    ) -> Result<(), Error> {
        let part = self.image(&format!(".part.{}", self.hash));
        let taken = self.receive_as(ctx, &part, name, facts, incoming).await;
        if taken.is_err() {
            let _ = remove_dir(&part);
        }
        taken
    }

    async fn receive_as(
        &self,
        ctx: &Context,
        part: &Utf8Path,
        name: &str,
        facts: &str,
        incoming: Incoming,
    ) -> Result<(), Error> {
        fs_err::create_dir_all(&self.images_dir).map_err(Error::file("make", &self.images_dir))?;
        remove_dir(part)?;
        self.has_room_for(&incoming)?;
        let marker = serde_json::json!({ "format": 1, "project": ctx.config.project }).to_string();
        let (this, to, text) = (self.clone(), part.to_owned(), facts.to_owned());
        let taken =
            tokio::task::spawn_blocking(move || this.receive_into(&to, &text, &marker, incoming));
        taken.await.unwrap_or_else(|error| {
            let error = std::io::Error::other(error);
            Err(Error::File { action: "write in", path: part.to_owned(), error })
        })?;
        // Once, instead of at each start of a clone.
        if let Some(password) = state::read(ctx)?.password() {
            self.reset_password(&part.join("data"), &password).await?;
        }
        sync(part).map_err(Error::file("write", part))?;
        let _lock = self.lock_images()?;
        self.put(part, name)?;
        let dir = fs_err::File::open(&self.images_dir);
        dir.and_then(|dir| dir.sync_all()).map_err(Error::file("write", &self.images_dir))
    }

    pub(in crate::engine) fn free_bytes(&self) -> Result<u64, Error> {
        let (free, _) = room_in(&self.data())?;
        Ok(u64::try_from(free).unwrap_or(u64::MAX))
    }

    /// Refuses what would not fit before gigabytes of it are written.
    fn has_room_for(&self, incoming: &Incoming) -> Result<(), Error> {
        let dir = &self.images_dir;
        let (free, unit) = room_in(dir)?;
        // A file takes whole blocks.
        let blocks: u128 =
            incoming.files.iter().map(|(_, size)| u128::from(*size).div_ceil(unit.max(1))).sum();
        let needed = blocks * unit + SPARE;
        if free >= needed {
            return Ok(());
        }
        let megabytes = |bytes: u128| bytes >> 20;
        let reason = format!(
            "there is no room: {} MB are free, {} MB are needed",
            megabytes(free),
            megabytes(needed)
        );
        let error = std::io::Error::new(std::io::ErrorKind::StorageFull, reason);
        Err(Error::file("unpack in", dir)(error))
    }

    fn receive_into(
        &self,
        part: &Utf8Path,
        facts: &str,
        marker: &str,
        incoming: Incoming,
    ) -> Result<(), Error> {
        let data = part.join("data");
        let make = |path: &Utf8Path| {
            let mut builder = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(path).map_err(Error::file("make", path))?;
            place::give(path, self.user)
        };
        fs_err::create_dir_all(part).map_err(Error::file("make", part))?;
        make(&data)?;
        for folder in &incoming.folders {
            make(&data.join(folder))?;
        }
        for (name, _) in &incoming.files {
            let path = data.join(name);
            let mut options = std::fs::OpenOptions::new();
            let made = options.write(true).create_new(true).mode(0o600).open(&path);
            made.map_err(Error::file("make", &path))?;
            place::give(&path, self.user)?;
        }
        unpack::write(&data, &incoming.files, incoming.bytes)?;
        self.note(&data.join(MARKER), marker)?;
        let path = part.join(FACTS);
        fs_err::write(&path, facts).map_err(Error::file("write", &path))
    }

    /// Says in a data directory which image it came from. What is cloned from a point came from where
    /// that did.
    fn came_from(&self, image: &str, data: &Utf8Path) -> Result<(), Error> {
        if self.shelf == Shelf::Points {
            return Ok(());
        }
        self.note(&data.join(FROM), format!("{image}\n"))
    }

    /// Writes a file of ours in a data directory: the server's own, as all beside it.
    fn note(&self, path: &Utf8Path, text: impl AsRef<[u8]>) -> Result<(), Error> {
        fs_err::write(path, text).map_err(Error::file("write", path))?;
        let mode = std::fs::Permissions::from_mode(0o600);
        fs_err::set_permissions(path, mode).map_err(Error::file("change", path))?;
        place::give(path, self.user)
    }

    /// The environments of the project that have data here.
    pub(in crate::engine) fn sharers(&self, ctx: &Context) -> Result<Vec<Sharer>, Error> {
        let sharers = environments(ctx).into_iter().map(|(branch, data)| {
            Ok(Sharer {
                image: origin(&data),
                whose: Whose { project: ctx.config.project.to_string(), branch },
                bytes: size(&data)?,
                own_bytes: None,
                is_left: false,
            })
        });
        sharers.collect()
    }

    /// What is set by hand on a server belongs to the environment, not to its image.
    fn carry_settings(&self) -> Result<(), Error> {
        for name in ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"] {
            let (from, to) = (self.data().join(name), self.next().join(name));
            if from.is_file() {
                fs_err::copy(&from, &to).map_err(Error::file("copy", &from))?;
                place::give(&to, self.user)?;
            }
        }
        Ok(())
    }

    /// No image changes or goes while this is held; the kernel releases it with the process.
    fn lock_images(&self) -> Result<std::fs::File, Error> {
        let path = self.images_dir.join(".lock");
        let open = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(Error::file("open", &path))?;
        file.lock().map_err(Error::file("lock", &path))?;
        Ok(file)
    }

    /// Serves what the last replacement has kept.
    pub(in crate::engine) async fn undo_replace(&self, ctx: &Context) -> Result<Server, Error> {
        self.settle_old()?;
        if !self.kept().is_dir() {
            return Err(Error::NothingKept);
        }
        self.turn(ctx, &self.kept(), Some(Keep::Yes)).await
    }

    /// Decides about what the last replacement has left undecided.
    pub(in crate::engine) fn settle(&self, keep: Keep) -> Result<(), Error> {
        match keep {
            Keep::Yes => self.settle_old(),
            Keep::No => self.discard(&self.old()).and_then(|()| self.discard(&self.kept())),
        }
    }

    /// Serves what the last replacement has left undecided again.
    pub(in crate::engine) async fn revert(&self, ctx: &Context) -> Result<Server, Error> {
        if !self.old().is_dir() {
            return Err(Error::NothingKept);
        }
        self.stop_for_images(ctx).await?;
        remove_dir(&self.next())?;
        // Between the two renames the old data comes back by itself.
        rename(&self.data(), &self.next())?;
        rename(&self.old(), &self.data())?;
        let server = self.ensure_on(ctx, true).await?;
        if let Err(error) = self.discard(&self.next()) {
            ctx.report.warn(format!("what was replaced stays on the disk: {error}"));
        }
        Ok(server)
    }

    pub(in crate::engine) fn forget_kept(&self) -> Result<(), Error> {
        self.settle_old()?;
        self.discard(&self.kept())
    }

    /// Makes the folder `from` the data. Where it does not start, or the user asks to stop before it has,
    /// the old data is served again.
    async fn turn(
        &self,
        ctx: &Context,
        from: &Utf8Path,
        keep: Option<Keep>,
    ) -> Result<Server, Error> {
        if let Err(error) = self.put_in_place(ctx, from).await {
            // Between the two renames the old data comes back by itself.
            self.serve_again(ctx).await?;
            return Err(error);
        }
        match self.ensure_on(ctx, true).await {
            Ok(server) => {
                let settled = keep.map_or(Ok(()), |keep| self.settle(keep));
                // The new data is served.
                if let Err(error) = settled {
                    ctx.report.warn(format!("what was replaced stays on the disk: {error}"));
                }
                Ok(server)
            }
            Err(error) => {
                self.stop_for_images(&ctx.uninterrupted()).await?;
                rename(&self.data(), from)?;
                rename(&self.old(), &self.data())?;
                self.serve_again(ctx).await?;
                Err(error)
            }
        }
    }

    async fn put_in_place(&self, ctx: &Context, from: &Utf8Path) -> Result<(), Error> {
        self.stop_for_images(ctx).await?;
        self.settle_old()?;
        rename(&self.data(), &self.old())?;
        rename(from, &self.data())
    }

    /// What a run that was cut off after both renames has left: it was replaced last, and is kept.
    fn settle_old(&self) -> Result<(), Error> {
        if self.old().is_dir() && self.data().is_dir() {
            self.discard(&self.kept())?;
            rename(&self.old(), &self.kept())?;
        }
        Ok(())
    }

    /// Removes a data directory: under another name first, so that a half of it is never served.
    fn discard(&self, dir: &Utf8Path) -> Result<(), Error> {
        let gone = self.home.join("data.gone");
        remove_dir(&gone)?;
        if dir.exists() {
            rename(dir, &gone)?;
        }
        remove_dir(&gone)
    }

    pub(in crate::engine) fn stored_bytes(&self) -> Result<Option<u64>, Error> {
        if self.home.is_dir() { size(&self.home).map(Some) } else { Ok(None) }
    }

    async fn stop_for_images(&self, ctx: &Context) -> Result<(), Error> {
        if let Some(port) = self.serving() {
            self.checkpoint(&state::read(ctx)?, port).await;
            self.stop_server(ctx).await?;
        }
        Ok(())
    }

    /// What a run that was killed between the two renames has left: the old data, which is whole. What it
    /// was making then, or removing, goes: as large as the data where copies cannot share blocks.
    pub(super) fn recover(&self) -> Result<(), Error> {
        if !self.data().exists() && self.old().is_dir() {
            rename(&self.old(), &self.data())?;
        }
        for left in ["data.next", "data.next.part", "data.gone"] {
            remove_dir(&self.home.join(left))?;
        }
        self.sweep_part()
    }

    pub(in crate::engine) fn image_facts(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.image(name).join(FACTS);
        match std::fs::read_to_string(&path) {
            Ok(facts) => Ok(Some(facts)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }

    /// The images that are there.
    pub(in crate::engine) fn images(&self, ctx: &Context) -> Result<Inventory, Error> {
        let Ok(entries) = self.images_dir.read_dir_utf8() else { return Ok(Inventory::default()) };
        let mut images = Vec::new();
        for entry in entries.flatten() {
            if entry.file_name().starts_with('.') {
                continue;
            }
            let path = entry.path().join(FACTS);
            let Ok(facts) = std::fs::read_to_string(&path) else { continue };
            let metadata = path.metadata().map_err(Error::file("read", &path))?;
            let bytes = size(&entry.path().join("data"))?;
            let name = entry.file_name().to_owned();
            images.push(Stored { name, bytes, used: metadata.mtime(), facts });
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        let data = environments(ctx).into_iter().map(|(_, data)| data);
        let in_use = data.filter_map(|data| origin(&data)).collect();
        Ok(Inventory { images, in_use, capacity: None })
    }

    /// What runs that were killed have left of images that went, under the lock.
    fn sweep_gone(&self) -> Result<(), Error> {
        let Ok(entries) = self.images_dir.read_dir_utf8() else { return Ok(()) };
        let gone = entries.flatten().filter(|entry| entry.file_name().starts_with(".gone."));
        for entry in gone {
            remove_dir(entry.path())?;
        }
        Ok(())
    }

    /// What a run of this environment that was killed has left of an image that it made or went on from.
    pub(super) fn sweep_part(&self) -> Result<(), Error> {
        remove_dir(&self.image(&passing_name(&self.hash)))?;
        remove_dir(&self.image(&format!(".part.{}", self.hash)))
    }

    /// Removes images.
    pub(in crate::engine) fn drop_images(
        &self,
        _ctx: &Context,
        names: &[&str],
    ) -> Result<(), Error> {
        let _lock = self.lock_images()?;
        self.sweep_gone()?;
        for name in names {
            let (image, part) = (self.image(name), self.image(&format!(".gone.{name}")));
            remove_dir(&part)?;
            if image.exists() {
                fs_err::rename(&image, &part).map_err(Error::file("rename", &image))?;
            }
            remove_dir(&part)?;
        }
        Ok(())
    }
}

/// Bytes that are free where a folder is, and those of a block.
fn room_in(dir: &Utf8Path) -> Result<(u128, u128), Error> {
    let read = Error::file("look at the room in", dir);
    let found = nix::sys::statvfs::statvfs(dir.as_std_path()).map_err(|e| read(e.into()))?;
    let unit = u128::from(found.fragment_size());
    Ok((u128::from(found.blocks_available()) * unit, unit))
}

/// Sees to it that what was written below `dir` is on the disk. A clone of it waits for the same writes:
/// with this before it both took no longer than the clone alone (600 MB on XFS, three times).
fn sync(dir: &Utf8Path) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::unistd::syncfs(fs_err::File::open(dir)?)?;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = dir;
        nix::unistd::sync();
    }
    Ok(())
}

fn rename(from: &Utf8Path, to: &Utf8Path) -> Result<(), Error> {
    fs_err::rename(from, to).map_err(Error::file("rename", from))
}

fn cannot(path: &Utf8Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    if matches!(error.kind(), StorageFull | QuotaExceeded) {
        return Error::file("clone", path)(error);
    }
    Error::NoPool { reason: format!("the file system of `{path}` cannot: {error}") }
}

/// Whether `from` can be cloned to a file in the folder `dir`.
fn probe(from: &Utf8Path, dir: &Utf8Path) -> Result<(), Error> {
    clone_for_a_moment(from, dir).map_err(|error| cannot(dir, error))
}

/// By a name that nobody else has: branches share the folder of images.
fn clone_for_a_moment(from: &Utf8Path, dir: &Utf8Path) -> std::io::Result<()> {
    let probe = tempfile::Builder::new().prefix(".probe").tempdir_in(dir)?;
    reflink_copy::reflink(from, probe.path().join("clone"))
}

/// A copy of a data directory that shares its blocks; whole or not there. Folders and files only: a
/// tablespace or a log elsewhere is refused before.
fn clone(from: &Utf8Path, to: &Utf8Path, user: Option<RunAs>) -> Result<(), Error> {
    let part = Utf8PathBuf::from(format!("{to}.part"));
    remove_dir(to)?;
    remove_dir(&part)?;
    let cloned = clone_dir(from, &part, user);
    if cloned.is_err() {
        let _ = remove_dir(&part);
    }
    cloned?;
    fs_err::rename(&part, to).map_err(Error::file("rename", &part))
}

fn clone_dir(from: &Utf8Path, to: &Utf8Path, user: Option<RunAs>) -> Result<(), Error> {
    let read = Error::file("read", from);
    fs_err::create_dir(to).map_err(Error::file("make", to))?;
    let entries = from.read_dir_utf8().map_err(read)?;
    for entry in entries {
        let entry = entry.map_err(Error::file("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = source.symlink_metadata().map_err(Error::file("read", source))?;
        if metadata.is_dir() {
            clone_dir(source, &target, user)?;
        } else if metadata.is_file() {
            reflink_copy::reflink(source, &target).map_err(|error| cannot(&target, error))?;
            let mode = std::fs::Permissions::from_mode(metadata.mode());
            std::fs::set_permissions(&target, mode).map_err(Error::file("close", &target))?;
            place::give(&target, user)?;
        } else {
            let reason = "it is neither a file nor a folder, so its data lies elsewhere";
            return Err(Error::DataUnusable {
                place: source.to_string(),
                reason: reason.to_owned(),
            });
        }
    }
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700))
        .map_err(Error::file("close", to))?;
    place::give(to, user)
}

/// Hands a folder of a data directory out, and what is in it.
fn hand_out(data: &Utf8Path, folder: &str, outgoing: &mut impl Outgoing) -> Result<(), Error> {
    let dir = data.join(folder);
    for entry in dir.read_dir_utf8().map_err(Error::file("read", &dir))? {
        let entry = entry.map_err(Error::file("read", &dir))?;
        let path = entry.path();
        let name = match folder {
            "" => entry.file_name().to_owned(),
            folder => format!("{folder}/{}", entry.file_name()),
        };
        let metadata = path.symlink_metadata().map_err(Error::file("read", path))?;
        if metadata.is_dir() {
            outgoing.folder(&name).map_err(Error::file("hand out", path))?;
            hand_out(data, &name, outgoing)?;
        } else if metadata.is_file() {
            let mut file = fs_err::File::open(path).map_err(Error::file("open", path))?;
            let taken = outgoing.file(&name, metadata.len(), &mut file);
            taken.map_err(Error::file("hand out", path))?;
        } else {
            let reason = "it is neither a file nor a folder, so its data lies elsewhere".to_owned();
            return Err(Error::DataUnusable { place: path.to_string(), reason });
        }
    }
    Ok(())
}

/// The environments of the project that have data, by their branch.
fn environments(ctx: &Context) -> Vec<(Option<String>, Utf8PathBuf)> {
    let all = std::iter::once(ctx.project_dir()).chain(ctx.branch_dirs());
    let environment = |dir: Utf8PathBuf| {
        let state = state::read_in(&dir).ok()?;
        let data = state.native.as_ref().map(|native| native.data.clone())?;
        data.is_dir().then(|| (state.branch().map(str::to_owned), data))
    };
    all.filter_map(environment).collect()
}

/// The image that a data directory came from, or was frozen as.
fn origin(data: &Utf8Path) -> Option<String> {
    let from = std::fs::read_to_string(data.join(FROM)).ok()?;
    Some(from.trim().to_owned())
}

/// Bytes on the disk of everything below a folder.
fn size(folder: &Utf8Path) -> Result<u64, Error> {
    let mut sum = 0;
    for entry in folder.read_dir_utf8().map_err(Error::file("read", folder))? {
        let entry = entry.map_err(Error::file("read", folder))?;
        let metadata =
            entry.path().symlink_metadata().map_err(Error::file("read", entry.path()))?;
        sum += match metadata.is_dir() {
            true => size(entry.path())?,
            false => metadata.blocks() * 512,
        };
    }
    Ok(sum)
}
