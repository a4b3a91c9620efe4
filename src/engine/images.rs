//! Frozen data directories: what a server's whole state can be cloned from in an instant.
//!
//! An image is a data directory that was frozen after a clean stop, on a file system where copies share
//! blocks. What it holds is for the layers above: they give the facts that stand beside it.

use std::collections::BTreeSet;
use std::io::Read;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Engine, Error, Server};
use crate::context::Context;
use crate::report::format;

/// Whether what is replaced stays, to be served again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Yes,
    No,
}

/// What a server holds whose data is about to move, or to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// What each new one does: another environment of the project may begin with a clone of it.
    Nothing,
    Something,
}

/// Which frozen data directories an engine speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shelf {
    /// Those that all environments share.
    Images,
    /// The points that this environment alone comes back to.
    Points,
}

/// What a reset clones on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rung {
    pub clones: Clones,
    /// Where, or why no images.
    pub why: String,
}

/// The two things that a ready database is frozen as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clones {
    /// The server's data directory, where clones share blocks.
    Image,
    /// `CREATE DATABASE … TEMPLATE`.
    Template,
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.clones {
            Clones::Image => write!(f, "from an image {}", self.why),
            Clones::Template => write!(f, "from a template: {}", self.why),
        }
    }
}

impl Rung {
    pub(super) fn images(why: String) -> Self {
        Self { clones: Clones::Image, why }
    }

    pub(super) fn templates(why: impl Into<String>) -> Self {
        Self { clones: Clones::Template, why: why.into() }
    }

    /// The same for a database of so many bytes: below `least` it is frozen as a template.
    pub fn for_size(self, bytes: u64, least: u64) -> Self {
        match self.clones {
            Clones::Image if bytes < least => {
                let least = format::bytes(least);
                Self::templates(format!("it is smaller than {least} (`images.min_size`)"))
            }
            Clones::Image | Clones::Template => self,
        }
    }
}

/// An image as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub name: String,
    /// On the disk, where nothing was shared.
    pub bytes: u64,
    /// When it was made or cloned last; seconds since 1970.
    pub used: i64,
    /// JSON of one line.
    pub facts: String,
}

/// What lies where images are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    pub images: Vec<Stored>,
    /// Names of images that the data of an environment was cloned from, or frozen as.
    pub in_use: BTreeSet<String>,
    /// Bytes of a place that is for images and their clones alone.
    pub capacity: Option<u64>,
}

impl Inventory {
    /// The lines of the pool's `list`: `capacity KILOBYTES`, `used NAME`, and images.
    pub(super) fn parse(text: &str) -> Self {
        let mut this = Self::default();
        for line in text.lines() {
            match line.split_once('\t') {
                Some(("capacity", kilobytes)) => {
                    this.capacity = kilobytes.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024);
                }
                Some(("used", name)) => {
                    this.in_use.insert(name.to_owned());
                }
                Some(("image", line)) => this.images.extend(Stored::parse(line)),
                Some(_) | None => {}
            }
        }
        this
    }
}

impl Stored {
    /// Name, kilobytes, last use, facts.
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(4, '\t');
        let (name, size) = (parts.next()?, parts.next()?);
        let (used, facts) = (parts.next()?, parts.next()?);
        let bytes = size.parse::<u64>().ok()? * 1024;
        let used = used.parse().ok()?;
        Some(Self { name: name.to_owned(), bytes, used, facts: facts.to_owned() })
    }
}

/// Whose an environment is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whose {
    /// The project's folder.
    pub project: String,
    /// `None`: the default environment.
    pub branch: Option<String>,
}

impl Whose {
    pub(super) fn of(ctx: &Context) -> Self {
        Self {
            project: ctx.config.project.to_string(),
            branch: ctx.config.branch.as_ref().map(|branch| branch.name().to_owned()),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a struct of strings serializes")
    }
}

/// An environment whose data lies where clones share blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sharer {
    /// The image that it was cloned from, or that was frozen from it; it may be gone by now.
    pub image: Option<String>,
    #[serde(flatten)]
    pub whose: Whose,
    /// On the disk, where nothing was shared.
    pub bytes: u64,
    /// What of that nothing else shares; `None`: the file system was not asked.
    pub own_bytes: Option<u64>,
    /// The project's folder is not here any more: nobody comes to remove it.
    pub is_left: bool,
}

impl Sharer {
    /// A line of the pool's `sharers`: image, kilobytes, kilobytes of its own, whose it is.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(4, '\t');
        let (image, size) = (parts.next()?, parts.next()?);
        let (own, whose) = (parts.next()?, parts.next()?);
        let bytes = |text: &str| text.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024);
        Some(Self {
            image: (!image.is_empty()).then(|| image.to_owned()),
            whose: serde_json::from_str(whose).ok()?,
            bytes: bytes(size)?,
            own_bytes: bytes(own),
            is_left: false,
        })
    }
}

/// A data directory from elsewhere on its way in. Whoever makes it has checked the names: relative,
/// without `..`, each file in one of the folders, which come in an order in which they can be made.
pub struct Incoming {
    pub folders: Vec<String>,
    /// Names and sizes in bytes, in the order of their bytes.
    pub files: Vec<(String, u64)>,
    pub bytes: Feed,
}

/// The bytes of all files, one after the other.
pub struct Feed {
    receiver: mpsc::Receiver<Bytes>,
    left: Bytes,
}

/// The feed has ended before the last file had.
#[derive(Debug)]
pub(super) struct CutOff;

impl Feed {
    pub fn new(receiver: mpsc::Receiver<Bytes>) -> Self {
        Self { receiver, left: Bytes::new() }
    }

    /// Some of the next `most` bytes, which are not 0.
    pub(super) async fn next(&mut self, most: u64) -> Result<Bytes, CutOff> {
        while self.left.is_empty() {
            self.left = self.receiver.recv().await.ok_or(CutOff)?;
        }
        Ok(self.take(most))
    }

    /// As [`Self::next`], in a thread that may block.
    pub(super) fn blocking_next(&mut self, most: u64) -> Result<Bytes, CutOff> {
        while self.left.is_empty() {
            self.left = self.receiver.blocking_recv().ok_or(CutOff)?;
        }
        Ok(self.take(most))
    }

    /// Whether some are here already.
    pub(super) fn has_some(&self) -> bool {
        !self.left.is_empty()
    }

    fn take(&mut self, most: u64) -> Bytes {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.left.split_to(most.min(self.left.len()))
    }
}

/// Takes a data directory, entry by entry, in a thread that may block. An error ends it.
pub trait Outgoing: Send + 'static {
    /// # Errors
    /// Why it cannot be taken.
    fn folder(&mut self, name: &str) -> std::io::Result<()>;

    /// `content` has `size` bytes; what is not read of it is skipped.
    ///
    /// # Errors
    /// Why it cannot be taken.
    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> std::io::Result<()>;
}

/// What an image is called that this environment goes on from and removes: none of those that `images list`
/// shows. One that a killed run has left goes with what the next one is about to make.
pub fn passing_image(ctx: &Context) -> String {
    passing_name(&super::docker::environment_hash(ctx))
}

pub(super) fn passing_name(environment: &str) -> String {
    format!(".passing.{environment}")
}

impl Engine {
    /// Stops the server cleanly, takes its log of changes away (`pg_resetwal`) and hands its data
    /// directory to `outgoing`, which comes back. The server stays down.
    ///
    /// # Errors
    /// What cannot be stopped or read, or why `outgoing` did not take it.
    pub async fn hand_out<O: Outgoing>(&self, ctx: &Context, outgoing: O) -> Result<O, Error> {
        match self {
            Self::Docker(engine) => engine.hand_out(ctx, outgoing).await,
            Self::Native(engine) => engine.hand_out(ctx, outgoing).await,
            Self::Embedded(engine) => engine.native(ctx).hand_out(ctx, outgoing).await,
            Self::External(_) => Err(external()),
        }
    }

    /// Takes a data directory in as the image `name`; whole or not there.
    ///
    /// # Errors
    /// Why not; [`Error::NoPool`] where this engine has no place for it.
    pub async fn receive(
        &self,
        ctx: &Context,
        name: &str,
        facts: &str,
        incoming: Incoming,
    ) -> Result<(), Error> {
        match self {
            Self::Docker(engine) => engine.receive(ctx, name, facts, incoming).await,
            Self::Native(engine) => engine.receive(ctx, name, facts, incoming).await,
            Self::Embedded(engine) => engine.native(ctx).receive(ctx, name, facts, incoming).await,
            Self::External(_) => Err(external()),
        }
    }

    /// Freezes the server's data as the image `name`. The server is down for a moment and comes up
    /// again, whether that went well or not.
    ///
    /// # Errors
    /// Why there is no image now; [`Error::NoPool`] where clones cannot share blocks.
    pub async fn freeze(&self, ctx: &Context, name: &str, facts: &str) -> Result<Server, Error> {
        match self {
            Self::Docker(engine) => engine.freeze(ctx, name, facts).await,
            Self::Native(engine) => engine.freeze(ctx, name, facts).await,
            Self::Embedded(engine) => engine.native(ctx).freeze(ctx, name, facts).await,
            Self::External(_) => Err(external()),
        }
    }

    /// Moves the environment to where clones share blocks, if that is elsewhere, and where `bytes` more have room.
    /// Its server is down for a moment. On an error it is served where it was.
    ///
    /// # Errors
    /// Why not.
    pub async fn move_in(&self, ctx: &Context, bytes: u64, holds: Holds) -> Result<Server, Error> {
        match self {
            Self::Docker(engine) => engine.move_in_alone(ctx, bytes, holds).await,
            Self::Native(_) | Self::Embedded(_) | Self::External(_) => self.ensure(ctx).await,
        }
    }

    /// Serves a clone of the image `name` in place of the server's data, on the same port. All sessions
    /// end. On an error the old data is served again. `None`: what is replaced and what an earlier one has kept
    /// both stay until [`Self::settle`] or [`Self::revert`]. `holds` is said of what is replaced.
    ///
    /// # Errors
    /// Why not.
    pub async fn replace(
        &self,
        ctx: &Context,
        name: &str,
        keep: Option<Keep>,
        holds: Holds,
    ) -> Result<Server, Error> {
        match self {
            Self::Docker(engine) => engine.replace(ctx, name, keep, holds).await,
            Self::Native(engine) => engine.replace(ctx, name, keep).await,
            Self::Embedded(engine) => engine.native(ctx).replace(ctx, name, keep).await,
            Self::External(_) => Err(external()),
        }
    }

    /// Decides about what the last [`Self::replace`] has left undecided.
    ///
    /// # Errors
    /// What cannot be removed.
    pub async fn settle(&self, ctx: &Context, keep: Keep) -> Result<(), Error> {
        match self {
            Self::Docker(engine) => engine.settle(ctx, keep).await,
            Self::Native(engine) => engine.settle(keep),
            Self::Embedded(engine) => engine.native(ctx).settle(keep),
            Self::External(_) => Ok(()),
        }
    }

    /// Serves what the last [`Self::replace`] has left undecided again; what it had served goes, and what an
    /// earlier one has kept stays.
    ///
    /// # Errors
    /// [`Error::NothingKept`]; why it cannot be served.
    pub async fn revert(&self, ctx: &Context) -> Result<Server, Error> {
        match self {
            Self::Docker(engine) => engine.revert(ctx).await,
            Self::Native(engine) => engine.revert(ctx).await,
            Self::Embedded(engine) => engine.native(ctx).revert(ctx).await,
            Self::External(_) => Err(Error::NothingKept),
        }
    }

    /// Serves what the last [`Self::replace`] has kept, and keeps what was served until now.
    ///
    /// # Errors
    /// [`Error::NothingKept`]; why it cannot be served.
    pub async fn undo_replace(&self, ctx: &Context) -> Result<Server, Error> {
        match self {
            Self::Docker(engine) => engine.undo_replace(ctx).await,
            Self::Native(engine) => engine.undo_replace(ctx).await,
            Self::Embedded(engine) => engine.native(ctx).undo_replace(ctx).await,
            Self::External(_) => Err(Error::NothingKept),
        }
    }

    /// Removes what the last [`Self::replace`] has kept, if there is any.
    ///
    /// # Errors
    /// What cannot be removed.
    pub async fn forget_kept(&self, ctx: &Context) -> Result<(), Error> {
        match self {
            Self::Docker(engine) => engine.forget_kept(ctx).await,
            Self::Native(engine) => engine.forget_kept(),
            Self::Embedded(engine) => engine.native(ctx).forget_kept(),
            Self::External(_) => Ok(()),
        }
    }

    /// The same engine with the saved points of the environment in the place of images; `None`: its
    /// server is somebody else's.
    pub fn points(&self, ctx: &Context) -> Option<Self> {
        match self {
            Self::Docker(engine) => Some(Self::Docker(engine.points())),
            Self::Native(engine) => Some(Self::Native(engine.points())),
            Self::Embedded(engine) => Some(Self::Native(engine.native(ctx).points())),
            Self::External(_) => None,
        }
    }

    /// Bytes on the disk of the environment's data, where they can be counted without a server.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn stored_bytes(&self, ctx: &Context) -> Result<Option<u64>, Error> {
        match self {
            Self::Native(engine) => engine.stored_bytes(),
            Self::Embedded(engine) => engine.native(ctx).stored_bytes(),
            Self::Docker(_) | Self::External(_) => Ok(None),
        }
    }

    /// Whether clones can share blocks here; what is needed for it is made.
    ///
    /// # Errors
    /// [`Error::NoPool`] says why not.
    pub async fn can_freeze(&self, ctx: &Context) -> Result<(), Error> {
        match self {
            Self::Docker(engine) => engine.can_freeze(ctx).await,
            Self::Native(engine) => engine.can_freeze(),
            Self::Embedded(engine) => engine.native(ctx).can_freeze(),
            Self::External(_) => Err(external()),
        }
    }

    /// Bytes that are free where clones share blocks.
    ///
    /// # Errors
    /// What cannot be read.
    pub async fn free_bytes(&self, ctx: &Context) -> Result<u64, Error> {
        match self {
            Self::Docker(engine) => engine.free_bytes(ctx).await,
            Self::Native(engine) => engine.free_bytes(),
            Self::Embedded(engine) => engine.native(ctx).free_bytes(),
            Self::External(_) => Err(external()),
        }
    }

    /// Whether freezing makes the environment's data move first, which takes a copy of it.
    ///
    /// # Errors
    /// What is wrong with the state.
    pub fn moves_to_freeze(&self, ctx: &Context) -> Result<bool, Error> {
        match self {
            Self::Docker(engine) => engine.moves_to_freeze(ctx),
            Self::Native(_) | Self::Embedded(_) | Self::External(_) => Ok(false),
        }
    }

    /// What a reset clones here. No pool is made for it; natively one file is cloned for a moment.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    pub async fn rung(&self, ctx: &Context) -> Result<Rung, Error> {
        if !ctx.config.images.enabled {
            return Ok(Rung::templates("`images.kind` is `template`"));
        }
        match self {
            Self::Docker(engine) => engine.rung(ctx).await,
            Self::Native(engine) => engine.rung(),
            Self::Embedded(engine) => engine.native(ctx).rung(),
            Self::External(_) => Ok(Rung::templates("the server is somebody else's")),
        }
    }

    /// The facts of one image; `None`: it is not there.
    ///
    /// # Errors
    /// Why it cannot be looked at.
    pub async fn image(&self, ctx: &Context, name: &str) -> Result<Option<String>, Error> {
        match self {
            Self::Docker(engine) => engine.image_facts(ctx, name).await,
            Self::Native(engine) => engine.image_facts(name),
            Self::Embedded(engine) => engine.native(ctx).image_facts(name),
            Self::External(_) => Ok(None),
        }
    }

    /// The images that are there.
    ///
    /// # Errors
    /// Why they cannot be looked at.
    pub async fn images(&self, ctx: &Context) -> Result<Inventory, Error> {
        match self {
            Self::Docker(engine) => engine.images(ctx).await,
            Self::Native(engine) => engine.images(ctx),
            Self::Embedded(engine) => engine.native(ctx).images(ctx),
            Self::External(_) => Ok(Inventory::default()),
        }
    }

    /// The environments whose data lies where that of this one does, beside the images.
    ///
    /// # Errors
    /// Why they cannot be looked at.
    pub async fn sharers(&self, ctx: &Context) -> Result<Vec<Sharer>, Error> {
        match self {
            Self::Docker(engine) => engine.sharers(ctx).await,
            Self::Native(engine) => engine.sharers(ctx),
            Self::Embedded(engine) => engine.native(ctx).sharers(ctx),
            Self::External(_) => Ok(Vec::new()),
        }
    }

    /// Removes images; environments that were cloned from them keep their blocks.
    ///
    /// # Errors
    /// Why one cannot be removed.
    pub async fn drop_images(&self, ctx: &Context, names: &[&str]) -> Result<(), Error> {
        match self {
            Self::Docker(engine) => engine.drop_images(ctx, names).await,
            Self::Native(engine) => engine.drop_images(ctx, names),
            Self::Embedded(engine) => engine.native(ctx).drop_images(ctx, names),
            Self::External(_) => Ok(()),
        }
    }
}

fn external() -> Error {
    Error::NoPool { reason: "its server is not ours".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{Inventory, Sharer, Stored, Whose};

    #[test]
    fn a_line_is_an_image() {
        let stored = Stored::parse("ab12\t1024\t77\t{\"a\": \"b\\tc\"}").expect("four parts");
        assert_eq!((stored.name.as_str(), stored.bytes, stored.used), ("ab12", 1 << 20, 77));
        assert_eq!(stored.facts, "{\"a\": \"b\\tc\"}");
        assert_eq!(Stored::parse("ab12\tmany\t77\t{}"), None);
    }

    #[test]
    fn lines_tell_what_lies_where_images_are() {
        let text =
            "capacity\t4\nimage\tab12\t1024\t77\t{}\nused\tab12\nused\tcd34\nimage\tbroken\n";
        let found = Inventory::parse(text);
        assert_eq!(found.capacity, Some(4096));
        assert_eq!(found.images.len(), 1);
        assert!(found.in_use.iter().eq(["ab12", "cd34"]));
        assert_eq!(Inventory::parse("\n"), Inventory::default());
    }

    #[test]
    fn a_line_is_an_environment() {
        let whose = Whose { project: "/p".to_owned(), branch: Some("a\tb".to_owned()) };
        let line = format!("ab12\t2048\t16\t{}", whose.to_json());
        let sharer = Sharer::parse(&line).expect("four parts");
        assert_eq!((sharer.image.as_deref(), sharer.bytes), (Some("ab12"), 2 << 20));
        assert_eq!((sharer.own_bytes, &sharer.whose), (Some(16 << 10), &whose));
        let unknown = Sharer::parse(&line.replace("ab12\t2048\t16", "\t2048\t-"));
        let unknown = unknown.expect("four parts");
        assert_eq!((unknown.image, unknown.own_bytes), (None, None));
        assert_eq!(Sharer::parse("\t2048\t-\t"), None);
    }
}
