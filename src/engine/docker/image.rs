//! The image: found, or pulled with progress, or its absence explained.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;

use super::client::{Client, Image, PullFailure};
use super::credentials;
use crate::context::Context;
use crate::engine::{Error, ready};
use crate::report::Unit;

/// The choice of an engine is made within five seconds: 1.5 s of them are the daemon's.
const REGISTRY: Duration = Duration::from_secs(3);
/// A pull in which nothing moves for so long is given up; Docker's own layers time out later.
const STALL: Duration = Duration::from_secs(60);

/// The image of a server: what it says about itself.
#[derive(Debug, Clone)]
pub(super) struct ServerImage {
    pub name: String,
    /// Of its content.
    pub id: String,
    pub major: u32,
    /// Its own entry point.
    pub entrypoint: Vec<String>,
    /// Where its data directory is.
    pub data: String,
    /// Where a volume for the data is mounted: from 18 on a folder above the data directory.
    pub mount: String,
}

/// What an image says about itself, by the contract of the official image.
pub(super) fn describe(name: &str, image: &Image) -> Result<ServerImage, Error> {
    let unfit =
        |reason: &str| Error::NotPostgres { image: name.to_owned(), reason: reason.to_owned() };
    let major = image
        .env
        .get("PG_MAJOR")
        .ok_or_else(|| unfit("it has no variable PG_MAJOR, as the official `postgres` image has"))?
        .parse::<u32>()
        .map_err(|_| unfit("its variable PG_MAJOR is not a number"))?;
    let data = image.env.get("PGDATA").cloned().unwrap_or_else(|| {
        if major >= 18 {
            format!("/var/lib/postgresql/{major}/docker")
        } else {
            "/var/lib/postgresql/data".to_owned()
        }
    });
    let above = "/var/lib/postgresql";
    let mount = match data.strip_prefix(above) {
        Some(rest) if rest != "/data" && rest.starts_with('/') => above.to_owned(),
        Some(_) | None => data.clone(),
    };
    let entrypoint = image.entrypoint.clone();
    let id = image.id.clone();
    Ok(ServerImage { name: name.to_owned(), id, major, entrypoint, data, mount })
}

/// The image, pulled where it is not here.
pub(super) async fn ensure(
    ctx: &Context,
    client: &Client,
    name: &str,
) -> Result<ServerImage, Error> {
    if let Some(image) = client.image(name).await? {
        return describe(name, &image);
    }
    registry_answers(ctx, client, name).await?;
    pull(ctx, client, name).await?;
    match client.image(name).await? {
        Some(image) => describe(name, &image),
        None => Err(Error::PullFailed {
            image: name.to_owned(),
            reason: "it is not here after the pull".to_owned(),
        }),
    }
}

/// Whether the registry has the image for us; an answer within [`REGISTRY`].
pub(super) async fn registry_answers(
    ctx: &Context,
    client: &Client,
    name: &str,
) -> Result<(), Error> {
    let ask = async {
        let credentials = credentials::find(ctx, name).await;
        client.registry_has(name, credentials.as_ref()).await
    };
    match ready::cancellable(ctx, tokio::time::timeout(REGISTRY, ask)).await? {
        Ok(Ok(())) => Ok(()),
        Ok(Err(PullFailure::Denied(reason))) => {
            Err(Error::PullDenied { image: name.to_owned(), reason })
        }
        Ok(Err(PullFailure::Other(reason))) => {
            Err(Error::ImageMissing { image: name.to_owned(), reason })
        }
        Err(_) => Err(Error::ImageMissing {
            image: name.to_owned(),
            reason: format!("the registry did not answer within {} s", REGISTRY.as_secs()),
        }),
    }
}

async fn pull(ctx: &Context, client: &Client, name: &str) -> Result<(), Error> {
    let step = ctx.report.step(format!("pull the image {name}"));
    let credentials = credentials::find(ctx, name).await;
    let mut events = std::pin::pin!(client.pull(name, credentials.as_ref()));
    let mut layers = Layers::default();
    loop {
        let next = tokio::time::timeout(STALL, events.next());
        let event = match ready::cancellable(ctx, next).await? {
            Ok(None) => break,
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(PullFailure::Denied(reason)))) => {
                return Err(Error::PullDenied { image: name.to_owned(), reason });
            }
            Ok(Some(Err(PullFailure::Other(reason)))) => {
                return Err(Error::PullFailed { image: name.to_owned(), reason });
            }
            Err(_) => {
                let reason = format!("nothing arrived for {} s", STALL.as_secs());
                return Err(Error::PullFailed { image: name.to_owned(), reason });
            }
        };
        layers.take(&event.layer, &event.status, event.done, event.total);
        if let Some((done, total)) = layers.bytes() {
            step.progress(done, Some(total), Unit::Bytes);
        }
    }
    step.done(layers.describe());
    Ok(())
}

/// How far the layers of a pull have come: downloads only, each layer once.
#[derive(Default)]
struct Layers {
    layers: BTreeMap<String, (u64, u64)>,
}

impl Layers {
    fn take(&mut self, layer: &str, status: &str, done: u64, total: u64) {
        match status {
            "Downloading" if total > 0 => {
                // A download that was cut goes on with what is left, and counts only that.
                let whole = self.layers.get(layer).map_or(total, |&(_, known)| known.max(total));
                self.layers.insert(layer.to_owned(), (whole - total + done.min(total), whole));
            }
            "Download complete" | "Extracting" | "Pull complete" => {
                if let Some((done, total)) = self.layers.get_mut(layer) {
                    *done = *total;
                }
            }
            _ => {}
        }
    }

    fn bytes(&self) -> Option<(u64, u64)> {
        let sum = |f: fn(&(u64, u64)) -> u64| self.layers.values().map(f).sum::<u64>();
        (!self.layers.is_empty()).then(|| (sum(|l| l.0), sum(|l| l.1)))
    }

    fn describe(&self) -> String {
        match self.layers.len() {
            0 => String::new(),
            1 => "1 layer".to_owned(),
            count => format!("{count} layers"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(env: &[(&str, &str)]) -> Image {
        let env = env.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        Image { id: String::new(), env, entrypoint: Vec::new() }
    }

    #[test]
    fn the_volume_goes_where_the_major_keeps_its_data() {
        let old =
            describe("p", &image(&[("PG_MAJOR", "17"), ("PGDATA", "/var/lib/postgresql/data")]));
        let old = old.expect("fits");
        assert_eq!((old.major, old.mount.as_str()), (17, "/var/lib/postgresql/data"));
        let new = describe(
            "p",
            &image(&[("PG_MAJOR", "18"), ("PGDATA", "/var/lib/postgresql/18/docker")]),
        );
        let new = new.expect("fits");
        assert_eq!((new.major, new.mount.as_str()), (18, "/var/lib/postgresql"));
        let bare = describe("p", &image(&[("PG_MAJOR", "18")])).expect("fits");
        assert_eq!(bare.data, "/var/lib/postgresql/18/docker");
    }

    #[test]
    fn an_image_of_something_else_is_refused() {
        let error = describe("redis:7", &image(&[])).expect_err("no PG_MAJOR");
        assert!(error.to_string().starts_with("use the image `redis:7`"), "{error}");
    }

    #[test]
    fn layers_are_summed_and_finished_ones_stay_whole() {
        let mut layers = Layers::default();
        assert_eq!(layers.bytes(), None);
        layers.take("a", "Downloading", 10, 100);
        layers.take("b", "Downloading", 5, 50);
        layers.take("a", "Download complete", 0, 0);
        layers.take("a", "Extracting", 3, 300);
        assert_eq!(layers.bytes(), Some((105, 150)));
        assert_eq!(layers.describe(), "2 layers");
    }

    #[test]
    fn a_download_that_goes_on_after_a_cut_does_not_begin_anew() {
        let mut layers = Layers::default();
        layers.take("a", "Downloading", 60, 100);
        layers.take("a", "Downloading", 5, 40);
        assert_eq!(layers.bytes(), Some((65, 100)));
    }
}
