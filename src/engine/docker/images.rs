//! Frozen data directories in the pool: freezing the current one, serving a clone of one.

use super::client::{Container, Exec, ExecOutput, VolumeMount};
use super::image::{self, ServerImage};
use super::pool::{self, Pool};
use super::quick_stop::QuickStop;
use super::{DockerEngine, MARKER, label, pool_of};
use crate::context::Context;
use crate::engine::images::{
    Holds, Incoming, Inventory, Keep, Outgoing, Rung, Sharer, Shelf, Whose,
};
use crate::engine::state::{self, State};
use crate::engine::{Error, Server};

/// A clone, a stop and a start of the server.
const ACTS: std::time::Duration = std::time::Duration::from_secs(120);

impl DockerEngine {
    /// The same with the environment's points in the place of images: they go with its data.
    pub(in crate::engine) fn points(&self) -> Self {
        Self { shelf: Shelf::Points, ..self.clone() }
    }

    /// Freezes the environment's data as the image `name`; its server is down for a moment. Data that
    /// lies in a volume of its own moves into the pool first.
    pub(in crate::engine) async fn freeze(
        &self,
        ctx: &Context,
        name: &str,
        facts: &str,
    ) -> Result<Server, Error> {
        let mut state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let about = Whose::of(ctx).to_json();
        let arguments = [name, facts, about.as_str()];
        if pool_of(&state).is_none() {
            let data = generation();
            let adopt = ("adopt", &[data.as_str(), &image.data, &about][..]);
            let freeze = Some(("freeze", &arguments[..]));
            let (server, frozen) = self.move_in(ctx, &mut state, &image, adopt, freeze).await?;
            frozen?;
            return Ok(server);
        }
        self.sweep_volume(&state).await?;
        let frozen = self.act(ctx, &state, &image, "freeze", &arguments).await;
        // Frozen or not, and whatever the user asks for, the server comes up again.
        let server = self.answering(&ctx.uninterrupted(), &mut state).await?;
        frozen?;
        ctx.check_cancelled().map_err(|_| Error::Interrupted)?;
        Ok(server)
    }

    /// Moves the environment into the pool, where `bytes` more than its data have room.
    pub(in crate::engine) async fn move_in_alone(
        &self,
        ctx: &Context,
        bytes: u64,
        holds: Holds,
    ) -> Result<Server, Error> {
        let mut state = state::read(ctx)?;
        if pool_of(&state).is_some() {
            return self.ensure(ctx).await;
        }
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let (about, data) = (Whose::of(ctx).to_json(), generation());
        let (room, blank) = ((bytes / 1024).to_string(), blank_if(ctx, &image, holds));
        let adopt = ("adopt", &[data.as_str(), &image.data, &about, &room, &blank][..]);
        Ok(self.move_in(ctx, &mut state, &image, adopt, None).await?.0)
    }

    /// Stops the server, takes its log of changes away and hands the data directory out.
    pub(in crate::engine) async fn hand_out<O: Outgoing>(
        &self,
        ctx: &Context,
        outgoing: O,
    ) -> Result<O, Error> {
        let state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        if pool_of(&state).is_some() {
            let reason = "it lies in the pool".to_owned();
            return Err(Error::DataUnusable { place: self.what(), reason });
        }
        let container = self.container().await?.ok_or_else(|| Error::DataUnusable {
            place: self.what(),
            reason: "it is gone".to_owned(),
        })?;
        self.checkpoint(&state, container.port).await;
        super::ready::cancellable(ctx, self.client.stop(&container.id)).await??;
        pool::reset_log(ctx, &self.client, &image, &self.name).await?;
        let archive = self.client.download(&container.id, &image.data);
        let reader = tokio_util::io::StreamReader::new(Box::pin(archive));
        let reader = tokio_util::io::SyncIoBridge::new(reader);
        let read = tokio::task::spawn_blocking(move || hand_out(reader, outgoing));
        let read = super::ready::cancellable(ctx, read).await?;
        read.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(|error| {
            Error::DockerCall {
                action: format!("read the data of {}", self.what()),
                reason: error.to_string(),
            }
        })
    }

    /// Takes a data directory in as an image of the pool, which is made where there is none.
    pub(in crate::engine) async fn receive(
        &self,
        ctx: &Context,
        name: &str,
        facts: &str,
        incoming: Incoming,
    ) -> Result<(), Error> {
        let state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let pool = match self.pool(ctx, &state, &image).await? {
            Some(pool) => pool,
            None => Pool::ensure(ctx, &self.client, &image, &ctx.config.images.pool).await?,
        };
        let marker = serde_json::json!({ "format": 1, "project": ctx.config.project }).to_string();
        let bytes: u64 = incoming.files.iter().map(|(_, size)| size).sum();
        let command = pool::act(&self.hash, "receive", &[name, &(bytes / 1024).to_string()]);
        let archive = pool::Archive { incoming, marker: (MARKER, &marker), facts };
        pool::act_fed(ctx, &self.client, &image, &pool, command, archive).await
    }

    /// Moves the environment into the pool, where `make` gives it its data, and starts its server there. `then`
    /// is done in between, so that nobody comes to the server before; what came of it is in the answer.
    /// Until the state says so the volume is the truth.
    async fn move_in(
        &self,
        ctx: &Context,
        state: &mut State,
        image: &ServerImage,
        make: (&str, &[&str]),
        then: Option<(&str, &[&str])>,
    ) -> Result<(Server, Result<String, Error>), Error> {
        let pool = Pool::ensure(ctx, &self.client, image, &ctx.config.images.pool).await?;
        let step = ctx.report.step("move to where clones share blocks");
        let container = self.container().await?;
        let before = state.clone();
        let moved = async {
            if let Some(container) = &container {
                super::ready::cancellable(ctx, self.client.stop(&container.id)).await??;
            }
            let volume = VolumeMount {
                volume: self.name.clone(),
                target: image.mount.clone(),
                read_only: true,
            };
            let (act, arguments) = make;
            let command = self.command(act, arguments);
            pool::act_alone(ctx, &self.client, image, &pool, command, vec![volume]).await?;
            let mut done = Ok(String::new());
            if let Some((act, arguments)) = then {
                let command = self.command(act, arguments);
                done = pool::act_alone(ctx, &self.client, image, &pool, command, Vec::new()).await;
            }
            if let Some(docker) = &mut state.docker {
                docker.pool = Some(pool.state());
            }
            let server = self.start(ctx, state, image, container.clone()).await?;
            Ok((server, done))
        };
        match moved.await {
            Ok(moved) => {
                step.done(format!("pool {}", pool.mounted()));
                Ok(moved)
            }
            Err(error) => {
                if self.client.volume(&self.name).await?.is_none() {
                    // It was removed because the pool's data was served: that is the truth now.
                    return Err(error);
                }
                *state = before;
                let container = self.container().await?;
                self.start(&ctx.uninterrupted(), state, image, container).await?;
                Err(error)
            }
        }
    }

    /// Removes the volume that the data has come from: the state says that it lies in the pool.
    pub(super) async fn sweep_volume(&self, state: &State) -> Result<(), Error> {
        if pool_of(state).is_none() {
            return Ok(());
        }
        match self.client.volume(&self.name).await? {
            Some(volume) if self.is_ours(&volume.labels) => {
                self.client.remove_unused_volume(&self.name).await.map(drop)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Where no volume is ours the data may lie in the pool still, since the state file was lost. Where it does not, and
    /// others of the project have been there, it begins there with a clone of an empty cluster.
    pub(super) async fn find_in_pool(
        &self,
        ctx: &Context,
        state: &mut State,
        image: &ServerImage,
    ) -> Result<(), Error> {
        let known = state.docker.as_ref().is_some_and(|known| known.provisioned);
        if known || pool_of(state).is_some() || self.client.volume(&self.name).await?.is_some() {
            return Ok(());
        }
        // A pool that cannot be had is not in the way of a project that may never have been in it.
        let Ok(Some(pool)) = self.pool(ctx, state, image).await else {
            return ctx.check_cancelled().map_err(|_| Error::Interrupted);
        };
        let (data, blank) = (generation(), blank_if(ctx, image, Holds::Nothing));
        let about = Whose::of(ctx).to_json();
        let command = match blank.as_str() {
            "" => pool::act(&self.hash, "here", &[]),
            blank => pool::act(&self.hash, "begin", &[&data, blank, &about]),
        };
        let found = pool::act_alone(ctx, &self.client, image, &pool, command, Vec::new()).await;
        match found.as_deref().map(str::trim) {
            Ok("") => Ok(()),
            Ok(found) => {
                let docker = state.docker.get_or_insert_default();
                docker.pool = Some(pool.state());
                docker.begun_with = (found == data).then_some(blank);
                state::write(ctx, state)
            }
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                let what = "data of an earlier time is not looked for in the pool";
                ctx.report.warn(format!("{what}: {error}"));
                Ok(())
            }
        }
    }

    /// Removes an environment that could not begin with this empty cluster, and that.
    pub(super) async fn unbegin(
        &self,
        ctx: &Context,
        state: &mut State,
        image: &ServerImage,
        blank: &str,
    ) -> Result<(), Error> {
        let ctx = &ctx.uninterrupted();
        if let Some(container) = self.container().await? {
            self.client.remove(&container.id).await?;
        }
        let Some(pool) = pool_of(state) else { return Ok(()) };
        let command = pool::act(&self.hash, "unbegin", &[blank]);
        pool::act_alone(ctx, &self.client, image, &pool, command, Vec::new()).await?;
        if let Some(docker) = &mut state.docker {
            docker.pool = None;
            docker.begun_with = None;
        }
        state::write(ctx, state)
    }

    /// Serves a clone of the image `name` in place of the current data. Where that one does not start,
    /// the old one does again.
    pub(in crate::engine) async fn replace(
        &self,
        ctx: &Context,
        name: &str,
        keep: Option<Keep>,
        holds: Holds,
    ) -> Result<Server, Error> {
        let mut state = state::read(ctx)?;
        let (about, clone) = (Whose::of(ctx).to_json(), generation());
        let arguments = [name, clone.as_str(), about.as_str()];
        if pool_of(&state).is_some() {
            return self.turn(ctx, "replace", &arguments, keep).await;
        }
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        match keep {
            // Nobody wants the data that is in the volume.
            Some(Keep::No) => {
                let blank = blank_if(ctx, &image, holds);
                let take = ("take", &[name, clone.as_str(), &image.data, &about, &blank][..]);
                Ok(self.move_in(ctx, &mut state, &image, take, None).await?.0)
            }
            Some(Keep::Yes) | None => {
                let old = generation();
                let adopt = ("adopt", &[old.as_str(), &image.data, &about][..]);
                let replace = Some(("replace", &arguments[..]));
                let (server, replaced) =
                    self.move_in(ctx, &mut state, &image, adopt, replace).await?;
                replaced?;
                if keep.is_some() {
                    self.keep_only(ctx, &state, &image, &old).await;
                }
                Ok(server)
            }
        }
    }

    /// Serves what the last [`Self::replace`] has kept; keeps what it served until now.
    pub(in crate::engine) async fn undo_replace(&self, ctx: &Context) -> Result<Server, Error> {
        let state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let kept = match pool_of(&state) {
            Some(_) => self.act(ctx, &state, &image, "kept", &[]).await?,
            None => String::new(),
        };
        match kept.trim() {
            "" => Err(Error::NothingKept),
            kept => self.turn(ctx, "switch", &[kept], Some(Keep::Yes)).await,
        }
    }

    /// Decides about what the last replacement has left undecided.
    pub(in crate::engine) async fn settle(&self, ctx: &Context, keep: Keep) -> Result<(), Error> {
        let state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let kept = match keep {
            Keep::Yes => self.act(ctx, &state, &image, "kept", &[]).await?,
            Keep::No => String::new(),
        };
        self.act(ctx, &state, &image, "settle", &[kept.trim()]).await.map(drop)
    }

    /// Serves what the last replacement has left undecided again.
    pub(in crate::engine) async fn revert(&self, ctx: &Context) -> Result<Server, Error> {
        let state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        // What was replaced last comes before what was kept.
        let replaced = self.act(ctx, &state, &image, "kept", &[]).await?;
        let replaced = replaced.trim();
        if replaced.is_empty() {
            return Err(Error::NothingKept);
        }
        let server = self.turn(ctx, "switch", &[replaced], None).await?;
        if let Err(error) = self.act(ctx, &state, &image, "unwind", &[]).await {
            ctx.report.warn(left_behind(&error));
        }
        Ok(server)
    }

    pub(in crate::engine) async fn forget_kept(&self, ctx: &Context) -> Result<(), Error> {
        let state = state::read(ctx)?;
        if pool_of(&state).is_none() {
            return Ok(());
        }
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        self.act(ctx, &state, &image, "settle", &[]).await.map(drop)
    }

    async fn turn(
        &self,
        ctx: &Context,
        act: &str,
        arguments: &[&str],
        keep: Option<Keep>,
    ) -> Result<Server, Error> {
        let state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        self.sweep_volume(&state).await?;
        let calm = &ctx.uninterrupted();
        let port = state.docker.as_ref().map(|known| known.port);
        let quick = match (act, keep) {
            ("replace", Some(Keep::No)) => self.quick_stop(&state, port).await,
            _ => None,
        };
        let mut after = state.clone();
        let states = (&state, &mut after);
        let turned =
            self.act_and_serve(ctx, states, &image, (act, arguments), keep, quick.as_ref());
        // What is written while the clone is made need not be while nobody is served.
        let beside = async {
            if quick.is_none() {
                self.checkpoint(&state, port).await;
            }
            std::future::pending::<std::convert::Infallible>().await
        };
        let turned = tokio::select! {
            turned = turned => turned,
            never = beside => match never {},
        };
        let (old, served) = match turned {
            Ok(turned) => turned,
            Err(error) => {
                // It may have stopped the server.
                self.answering(calm, &mut after).await?;
                return Err(error);
            }
        };
        let Err(error) = served else { return served };
        // The first error is the one that counts; the old data is served again. The new server may be coming
        // up still, and has no lock file for a while, by which the act would find it.
        if let Some(found) = self.container().await? {
            self.client.stop(&found.id).await?;
        }
        self.act(calm, &after, &image, "switch", &[&old]).await?;
        self.answering(calm, &mut after).await?;
        self.act(calm, &after, &image, "unwind", &[]).await?;
        Err(error)
    }

    async fn quick_stop(&self, state: &State, port: Option<u16>) -> Option<QuickStop> {
        QuickStop::of(&self.known_target(state, port)?).await
    }

    /// Does an act that puts other data in place, and serves that. Gives back what was served before, and
    /// what came of it. Where the server runs, the same program tidies up when it has answered: each one takes
    /// a tenth of a second to start.
    ///
    /// Once the act has begun the switch comes to its end, whatever the user asks for: a server that is
    /// coming up has no lock file for a while, by which going back would find it.
    async fn act_and_serve(
        &self,
        ctx: &Context,
        (state, after): (&State, &mut State),
        image: &ServerImage,
        (act, arguments): (&str, &[&str]),
        keep: Option<Keep>,
        quick: Option<&QuickStop>,
    ) -> Result<(String, Result<Server, Error>), Error> {
        let kept = |old: &str| if keep == Some(Keep::Yes) { old.to_owned() } else { String::new() };
        let calm = &ctx.uninterrupted();
        let Some(here) = self.in_pool().await? else {
            ctx.check_cancelled().map_err(|_| Error::Interrupted)?;
            let old = self.act(calm, state, image, act, arguments).await?.trim().to_owned();
            let served = self.answering(calm, after).await;
            if served.is_ok() && keep.is_some() {
                self.keep_only(calm, after, image, &kept(&old)).await;
            }
            return Ok((old, served));
        };
        let answer = async |line: String| match quick {
            Some(quick) if line == pool::MAY_STOP => {
                let how = if quick.ready().await { "immediate" } else { "fast" };
                ctx.report.detail(format!("the shutdown of the old server may be {how}"));
                (how.to_owned(), None)
            }
            _ => {
                let served = self.answering(calm, after).await;
                let reply = match &served {
                    Ok(_) if keep.is_some() => format!("settle {}", kept(&line)),
                    Ok(_) | Err(_) => String::new(),
                };
                (reply, Some((line, served)))
            }
        };
        let asks = if quick.is_some() { &[pool::MAY_STOP][..] } else { &[] };
        let exec = Exec {
            command: self.command(act, &[arguments, asks].concat()),
            env: Vec::new(),
            user: "root",
            stdin: None,
        };
        let prepared = self.client.prepare(&here.id, exec, true).await?;
        ctx.check_cancelled().map_err(|_| Error::Interrupted)?;
        let (output, turned) = self.client.converse(prepared, answer).await?;
        let Some((old, served)) = turned else { return Err(self.explained(act, &here, &output)) };
        if served.is_ok() && output.status != 0 {
            ctx.report.warn(left_behind(&self.explained(act, &here, &output)));
        }
        Ok((old, served))
    }

    /// Keeps the data `kept` beside what is served now, and removes all other of the environment. What goes
    /// wrong leaves some of it until the next time: the new data is served.
    async fn keep_only(&self, ctx: &Context, state: &State, image: &ServerImage, kept: &str) {
        if let Err(error) = self.act(ctx, state, image, "settle", &[kept]).await {
            ctx.report.warn(left_behind(&error));
        }
    }

    pub(in crate::engine) async fn can_freeze(&self, ctx: &Context) -> Result<(), Error> {
        if pool_of(&state::read(ctx)?).is_some() {
            return Ok(());
        }
        let tried = self.try_pool(ctx).await;
        Self::remember(ctx, &tried)?;
        tried
    }

    async fn try_pool(&self, ctx: &Context) -> Result<(), Error> {
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let pool = Pool::ensure(ctx, &self.client, &image, &ctx.config.images.pool).await?;
        let probe = pool::act(&self.hash, "probe", &[]);
        let probed = pool::act_alone(ctx, &self.client, &image, &pool, probe, Vec::new()).await;
        if probed.is_err() && pool.is_made_now() {
            // A kernel that cannot mount it: it would only be in everybody's way.
            pool.remove(&ctx.uninterrupted(), &self.client, &image).await?;
        }
        match probed {
            Err(Error::DockerCall { reason, .. }) if pool.is_made_now() => {
                Err(Error::NoPool { reason })
            }
            probed => probed.map(drop),
        }
    }

    /// Notes for [`Self::rung`] what came of a try.
    fn remember(ctx: &Context, tried: &Result<(), Error>) -> Result<(), Error> {
        let why = match tried {
            Ok(()) => None,
            Err(Error::NoPool { reason }) => Some(reason.clone()),
            Err(_) => return Ok(()),
        };
        let mut state = state::read(ctx)?;
        match &mut state.docker {
            Some(docker) if docker.no_pool != why => {
                docker.no_pool = why;
                state::write(ctx, &state)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What is free in the pool, as far as the disk below it has it.
    pub(in crate::engine) async fn free_bytes(&self, ctx: &Context) -> Result<u64, Error> {
        let state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let free = self.act(ctx, &state, &image, "free", &[]).await?;
        Ok(free.trim().parse::<u64>().unwrap_or_default() * 1024)
    }

    /// Whether the environment's data has to be copied before it can be frozen.
    pub(in crate::engine) fn moves_to_freeze(&self, ctx: &Context) -> Result<bool, Error> {
        Ok(pool_of(&state::read(ctx)?).is_none())
    }

    /// Whether the daemon's machine can have a pool is tried when one is needed, and remembered.
    pub(in crate::engine) async fn rung(&self, ctx: &Context) -> Result<Rung, Error> {
        let state = state::read(ctx)?;
        let known = pool_of(&state);
        let name = known.as_ref().map_or(ctx.config.images.pool.as_str(), Pool::name);
        let refused = state.docker.as_ref().and_then(|docker| docker.no_pool.as_ref());
        // Another project may have made one since.
        if let Some(why) = refused
            && self.client.volume(name).await?.is_none()
        {
            return Ok(Rung::templates(format!("when a pool was tried last: {why}")));
        }
        let why = match &known {
            Some(pool) if pool.is_ready(&self.client).await? => format!("in the pool `{name}`"),
            _ if self.client.volume(name).await?.is_some() => {
                format!("in the pool `{name}`, which is attached when it is needed")
            }
            _ => format!("in the pool `{name}`, which is made when it is needed"),
        };
        Ok(Rung::images(why))
    }

    /// Also where only other environments lie in the pool: this one moves there to serve its clone.
    pub(in crate::engine) async fn image_facts(
        &self,
        ctx: &Context,
        name: &str,
    ) -> Result<Option<String>, Error> {
        let state = state::read(ctx)?;
        match self.facts(ctx, &state, name).await {
            Err(Error::Interrupted) => Err(Error::Interrupted),
            // One that cannot be had is not in the way of a project that is not in it.
            Err(error) if pool_of(&state).is_none() => {
                let reason = match error {
                    Error::NoPool { reason } => reason,
                    error => error.to_string(),
                };
                ctx.report.note(format!("no image is looked for: {reason}"));
                Ok(None)
            }
            other => other,
        }
    }

    async fn facts(
        &self,
        ctx: &Context,
        state: &State,
        name: &str,
    ) -> Result<Option<String>, Error> {
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        if self.pool(ctx, state, &image).await?.is_none() {
            return Ok(None);
        }
        if let Some(here) = self.in_pool().await? {
            // No program has to be started for it.
            let facts = self.client.read(&here.id, &self.facts_file(name)).await?;
            return Ok(facts.map(|facts| String::from_utf8_lossy(&facts).into_owned()));
        }
        let facts = self.act(ctx, state, &image, "facts", &[name]).await?;
        Ok((!facts.trim().is_empty()).then_some(facts))
    }

    /// The images that are there.
    pub(in crate::engine) async fn images(&self, ctx: &Context) -> Result<Inventory, Error> {
        let state = state::read(ctx)?;
        if self.shelf == Shelf::Points && pool_of(&state).is_none() {
            return Ok(Inventory::default());
        }
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let Some(_) = self.pool(ctx, &state, &image).await? else {
            return Ok(Inventory::default());
        };
        Ok(Inventory::parse(&self.act(ctx, &state, &image, "list", &[]).await?))
    }

    /// The environments of all projects whose data lies in the pool.
    pub(in crate::engine) async fn sharers(&self, ctx: &Context) -> Result<Vec<Sharer>, Error> {
        let state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let Some(_) = self.pool(ctx, &state, &image).await? else { return Ok(Vec::new()) };
        let lines = self.act(ctx, &state, &image, "sharers", &[]).await?;
        Ok(lines.lines().filter_map(Sharer::parse).collect())
    }

    /// Removes images.
    pub(in crate::engine) async fn drop_images(
        &self,
        ctx: &Context,
        names: &[&str],
    ) -> Result<(), Error> {
        let state = state::read(ctx)?;
        let image = image::ensure(ctx, &self.client, &self.image).await?;
        let Some(_) = self.pool(ctx, &state, &image).await? else { return Ok(()) };
        self.act(ctx, &state, &image, "drop", names).await.map(drop)
    }

    /// The pool of this project, or the one that other projects have made.
    async fn pool(
        &self,
        ctx: &Context,
        state: &State,
        image: &ServerImage,
    ) -> Result<Option<Pool>, Error> {
        let known = pool_of(state);
        let name = known.as_ref().map_or(ctx.config.images.pool.as_str(), Pool::name);
        self.attached(ctx, known.as_ref(), image, name).await
    }

    /// The pool of this name, attached; `None`: there is none.
    async fn attached(
        &self,
        ctx: &Context,
        known: Option<&Pool>,
        image: &ServerImage,
        name: &str,
    ) -> Result<Option<Pool>, Error> {
        // No helper has to look for it.
        let likely = known.cloned().unwrap_or_else(|| Pool::known(name, &Pool::mounted_of(name)));
        if likely.is_ready(&self.client).await? {
            return Ok(Some(likely));
        }
        match self.client.volume(name).await? {
            Some(_) => Pool::ensure(ctx, &self.client, image, name).await.map(Some),
            None => Ok(None),
        }
    }

    /// Removes the environment from the pool, and the pool with the last one; says what it was.
    /// `known`: where it is, as far as the state knows.
    pub(super) async fn leave(
        &self,
        ctx: &Context,
        known: Option<&Pool>,
    ) -> Result<Option<String>, Error> {
        let name = known.map_or(ctx.config.images.pool.as_str(), Pool::name);
        if self.client.volume(name).await?.is_none() {
            return Ok(None);
        }
        let reached = async {
            let image = image::ensure(ctx, &self.client, &self.image).await?;
            let pool = self.attached(ctx, known, &image, name).await?;
            Ok(pool.map(|pool| (image, pool)))
        };
        let (image, pool) = match reached.await {
            Err(error) if known.is_some() || matches!(error, Error::Interrupted) => {
                return Err(error);
            }
            Err(_) | Ok(None) => return Ok(None),
            Ok(Some(reached)) => reached,
        };
        pool::sweep_of(&self.client, &pool, &self.hash).await?;
        let project = ctx.config.project.as_str();
        let blanks = super::hash_of(project);
        let project = serde_json::to_string(project).expect("a string serializes");
        let command = pool::act(&self.hash, "leave", &[&project, &blanks]);
        let left = pool::act_alone(ctx, &self.client, &image, &pool, command, Vec::new()).await;
        let left = match left {
            Err(error) if known.is_none() && !matches!(error, Error::Interrupted) => {
                ctx.report.warn(format!("what may be left in the pool stays: {error}"));
                return Ok(None);
            }
            left => left?,
        };
        let mut left = left.split_whitespace();
        let (was, others) = (left.next(), left.next());
        if others == Some("0") {
            // Those of runs that were killed would hold it.
            pool::sweep(&self.client, name).await?;
            pool.remove(ctx, &self.client, &image).await?;
        }
        Ok((was == Some("yes")).then(|| format!("the data in the pool {}", pool.mounted())))
    }

    fn facts_file(&self, name: &str) -> String {
        match self.shelf {
            Shelf::Images => format!("{}/images/{name}/image.json", pool::ROOT),
            Shelf::Points => format!("{}/envs/{}/images/{name}/image.json", pool::ROOT, self.hash),
        }
    }

    fn command(&self, act: &str, arguments: &[&str]) -> Vec<String> {
        match self.shelf {
            Shelf::Images => pool::act(&self.hash, act, arguments),
            Shelf::Points => pool::act(&self.hash, "points", &[&[act], arguments].concat()),
        }
    }

    /// Runs an act where the server runs, else in a container of its own.
    async fn act(
        &self,
        ctx: &Context,
        state: &State,
        image: &ServerImage,
        act: &str,
        arguments: &[&str],
    ) -> Result<String, Error> {
        let command = self.command(act, arguments);
        let Some(here) = self.in_pool().await? else {
            let Some(pool) = self.pool(ctx, state, image).await? else {
                return Err(Error::NoPool { reason: "there is none".to_owned() });
            };
            return pool::act_alone(ctx, &self.client, image, &pool, command, Vec::new()).await;
        };
        let exec = Exec { command, env: Vec::new(), user: "root", stdin: None };
        let output = self.client.exec(&here.id, exec).await?;
        match output.status {
            0 => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            _ => Err(self.explained(act, &here, &output)),
        }
    }

    /// Waits for what a run that was killed has begun in the container: it would stop the server under us.
    pub(super) async fn acts_have_ended(&self, ctx: &Context, id: &str) -> Result<(), Error> {
        let act = format!(" {} {} ", self.hash, pool::held());
        super::ready::until(ctx, ACTS, async || {
            let lines = self.client.command_lines(id).await;
            match lines.iter().any(|line| line.contains(&act)) {
                true => Err(Error::DockerCall {
                    action: format!("come to {}", self.what()),
                    reason: "what another run has begun there goes on".to_owned(),
                }),
                false => Ok(()),
            }
        })
        .await
    }

    /// The running container whose data lies in the pool.
    async fn in_pool(&self) -> Result<Option<Container>, Error> {
        let container = self.container().await?;
        Ok(container.filter(|found| found.running && found.labels.contains_key(label::POOL)))
    }

    /// The error that an act has ended with in a container.
    fn explained(&self, act: &str, here: &Container, output: &ExecOutput) -> Error {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        let reason = match said.as_str() {
            // Killed, as where memory is short.
            "" => format!("it ended with status {}", output.status),
            _ => said,
        };
        let error = Error::DockerCall { action: format!("{act} in {}", self.what()), reason };
        match here.labels.get(label::POOL).and_then(|label| Pool::from_label(label)) {
            Some(pool) => pool.explain(error),
            None => error,
        }
    }

    /// The server after an act; started where it had ended.
    async fn answering(&self, ctx: &Context, state: &mut State) -> Result<Server, Error> {
        let container = self.container().await?;
        match container {
            Some(found) if found.running && found.port.is_some() => {
                self.connect_to(ctx, state, found.port.unwrap_or_default()).await
            }
            other => {
                let image = image::ensure(ctx, &self.client, &self.image).await?;
                self.start(ctx, state, &image, other).await
            }
        }
    }
}

/// What a project's empty cluster is called that this image has made, where images are made at all and a cluster is an
/// empty one; else nothing.
fn blank_if(ctx: &Context, image: &ServerImage, holds: Holds) -> String {
    if holds == Holds::Something || !ctx.config.images.enabled || image.id.is_empty() {
        return String::new();
    }
    let project = super::hash_of(ctx.config.project.as_str());
    // How the cluster was asked for (`recipe_for`) is a part of it.
    format!("{project}-{}", super::hash_of(&format!("1 {}", image.id)))
}

fn left_behind(error: &Error) -> String {
    format!("what was replaced stays on the disk: {error}")
}

/// A name for a new data directory of an environment.
fn generation() -> String {
    format!("g-{}", super::clients::random_name())
}

/// Hands out what an archive of a data directory holds; its own name, which comes first, is left out.
fn hand_out<O: Outgoing>(archive: impl std::io::Read, mut outgoing: O) -> std::io::Result<O> {
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let Some(path) = path.to_str() else {
            return Err(std::io::Error::other(format!("`{}` is no UTF-8", path.display())));
        };
        let Some((_, name)) = path.trim_end_matches('/').split_once('/') else { continue };
        let (name, size) = (name.to_owned(), entry.size());
        match entry.header().entry_type() {
            tar::EntryType::Directory => outgoing.folder(&name)?,
            tar::EntryType::Regular => outgoing.file(&name, size, &mut entry)?,
            _ => {
                let reason = "is neither a file nor a folder, so its data lies elsewhere";
                return Err(std::io::Error::other(format!("`{name}` {reason}")));
            }
        }
    }
    Ok(outgoing)
}
