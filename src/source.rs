//! What a new database is filled with: a snapshot's rows, seed files, or nothing.

use crate::context::Context;
use crate::database::{self, Origin};
use crate::engine::Keep;
use crate::error::Error;
use crate::report::format;
use crate::seed;
use crate::site::Site;
use crate::snapshot::find::{self, Wanted};
use crate::snapshot::{self, manifest::Manifest};
use crate::store::Store;

/// What a new database is filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seed {
    /// The newest fitting snapshot; without one the seed files, without those nothing.
    Auto,
    /// The newest fitting snapshot, or an error.
    Latest,
    /// This snapshot, by its id or the beginning of it.
    Id(String),
    /// What the live database came from.
    Same,
    /// The files of `seed/`, after the migrations.
    Files,
    Nothing,
}

impl Seed {
    /// As it is typed after `--seed`.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            None => Self::Auto,
            Some("latest") => Self::Latest,
            Some("files") => Self::Files,
            Some("none") => Self::Nothing,
            Some("same") => Self::Same,
            Some(id) => Self::Id(id.to_owned()),
        }
    }

    /// The same rows once more.
    pub(crate) fn of(origin: &Origin) -> Self {
        match origin {
            Origin::Snapshot { id, .. } => Self::Id(id.clone()),
            Origin::Files => Self::Files,
            Origin::Empty => Self::Nothing,
        }
    }
}

/// How a database is to be built.
#[derive(Debug, Clone)]
pub struct Wish {
    pub seed: Seed,
    /// Stop migrating at this version.
    pub to: Option<String>,
    /// Take the next fitting snapshot when the newest is damaged.
    pub skip_damaged: bool,
    /// Whether the database that is replaced stays, for `undo-reset`.
    pub keep: Keep,
}

/// Calls `work` with the source that `wish` means. A snapshot whose chunks turn out to be damaged while
/// it is loaded is an error that names the next one that fits; with `skip_damaged` that one is taken. Gives
/// back the source that it was in the end.
pub(crate) async fn from_first_whole<T>(
    ctx: &Context,
    site: &Site,
    wish: &Wish,
    mut source: Source,
    work: impl AsyncFn(&Source) -> Result<T, Error>,
) -> Result<(Source, T), Error> {
    loop {
        let error = match work(&source).await {
            Err(error) if error.exit() == crate::error::Exit::Damaged => error,
            Err(error) => return Err(error),
            Ok(done) => return Ok((source, done)),
        };
        let (Source::Snapshot { store, manifest }, Seed::Auto | Seed::Latest) =
            (&source, &wish.seed)
        else {
            return Err(error);
        };
        let checkout = find::checkout(ctx, &site.scripts);
        let facts = find::facts(ctx, &site.session, site.server.version_num).await?;
        let wanted = Wanted::Before { id: manifest.id.clone() };
        let next = async {
            let listing = site.listing(ctx, store).await?;
            find::find(ctx, store, &listing, &wanted, &checkout, &facts).await
        };
        let next = match next.await {
            Ok(next) => Some(next),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            // Whatever is wrong with the older ones: the damage is what the user has to know.
            Err(_) => None,
        };
        match next {
            Some(next) if wish.skip_damaged => {
                ctx.report.warn(format!("{error}; taking {} instead", next.id));
                let store = Box::new(Store::open(ctx).await?);
                source = Source::Snapshot { store, manifest: Box::new(next) };
            }
            next => {
                return Err(Error::Snapshot(snapshot::Error::DamagedWhileLoading {
                    reason: error.to_string(),
                    id: manifest.id.clone(),
                    next: next.map(|next| next.id),
                }));
            }
        }
    }
}

/// What the build will be filled with.
pub(crate) enum Source {
    Snapshot { store: Box<Store>, manifest: Box<Manifest> },
    Files(Vec<camino::Utf8PathBuf>),
    Nothing,
}

/// `Seed::Auto` takes the seed files where no snapshot fits, or nothing; but a database that came from a
/// snapshot is not replaced by less than one without being told.
pub(crate) async fn choose(ctx: &Context, site: &Site, wish: &Wish) -> Result<Source, Error> {
    let files = || {
        let files = seed::files(ctx)?;
        Ok::<_, Error>(if files.is_empty() { Source::Nothing } else { Source::Files(files) })
    };
    let wanted = match &wish.seed {
        Seed::Nothing => return Ok(Source::Nothing),
        Seed::Files => return files(),
        Seed::Auto | Seed::Latest => Wanted::Newest { skip_damaged: wish.skip_damaged },
        Seed::Id(id) => Wanted::Id(id.clone()),
        Seed::Same => {
            return Err(Error::CommandLine(
                "`--seed same` is for `reset`: nothing is replaced here".to_owned(),
            ));
        }
    };
    let step = ctx.report.step("choose snapshot");
    let store = Store::open(ctx).await?;
    let checkout = find::checkout(ctx, &site.scripts);
    let facts = find::facts(ctx, &site.session, site.server.version_num).await?;
    let listing = site.listing(ctx, &store).await?;
    match find::find(ctx, &store, &listing, &wanted, &checkout, &facts).await {
        Ok(manifest) => {
            step.done(manifest.id.clone());
            Ok(Source::Snapshot { store: Box::new(store), manifest: Box::new(manifest) })
        }
        Err(error) if wish.seed == Seed::Auto && error.exit() == crate::error::Exit::NoSnapshot => {
            step.done("none fits");
            let live = database::find(&site.session, &ctx.config.database.name).await?;
            let origin = live.and_then(|live| live.marker).and_then(|marker| marker.origin);
            if let Some(Origin::Snapshot { id, .. }) = origin {
                let what = format!("the database came from snapshot {id}, and ");
                let instead = "replace it by less: `--seed files` or `--seed none`".to_owned();
                return Err(Error::Instead { what, error: Box::new(error), instead });
            }
            let line = format!("{error}; see `seedbed snapshot why`");
            match &error {
                Error::Snapshot(snapshot::Error::NoneFits { newest: None, .. }) => {
                    ctx.report.note(line);
                }
                _ => ctx.report.warn(line),
            }
            let source = files()?;
            ctx.report.note(match &source {
                Source::Files(files) => {
                    let count = format::counted(files.len() as u64, "seed file");
                    format!("loading {count} instead")
                }
                Source::Nothing | Source::Snapshot { .. } => "the database begins empty".to_owned(),
            });
            Ok(source)
        }
        Err(error) => Err(error),
    }
}

/// That of rows of a snapshot.
pub(crate) fn origin_of(manifest: &Manifest, history_rank: Option<i32>) -> Origin {
    Origin::Snapshot {
        id: manifest.id.clone(),
        taken_at: manifest.taken_at.to_string(),
        version: snapshot::history::current_version(&manifest.history),
        history_rank,
    }
}
