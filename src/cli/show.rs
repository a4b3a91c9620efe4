//! Outcomes as people read them. Pure: values to text, no final newline.

use std::time::Duration;

use camino::Utf8Path;

use crate::branch;
use crate::config;
use crate::database::{MadeBy, Origin};
use crate::engine::{Sharer, Stopped, Whose};
use crate::error::{Error, Exit};
use crate::image;
use crate::journeys::{self, Proof, Published, Ready};
use crate::migrate;
use crate::published;
use crate::report::format::{self, Align};
use crate::report::{Check, Failure, StepRecord};
use crate::saved;
use crate::seed;
use crate::snapshot::manifest::Manifest;
use crate::snapshot::retain::Fate;
use crate::snapshot::{export, find, history, verify};
use crate::status::{DatabaseStatus, Status};
use crate::users;

/// What `up`, `reset` and `seed` print: how to connect, what was done, how long each step took.
pub(super) fn ready(ready: &Ready) -> String {
    let version = ready.schema_version.as_deref().unwrap_or("none");
    let mut text = format!("{}\n\n", ready.url);
    text.push_str(&format!(
        "database  {} ({}), schema version {version}\n",
        ready.database, ready.engine
    ));
    text.push_str(&format!("data      {}\n", origin(ready.origin.as_ref())));
    text.push_str(&format!("migrated  {}\n", scripts(&ready.migrated)));
    text.push_str("connect   `seedbed psql`, or with the password `seedbed url`\n");
    text.push_str(&steps(&ready.steps));
    text.trim_end().to_owned()
}

fn origin(origin: Option<&Origin>) -> String {
    match origin {
        Some(Origin::Snapshot { id, taken_at, .. }) => {
            format!("snapshot {id}, taken {}", when(taken_at))
        }
        Some(Origin::Files) => "seed files".to_owned(),
        Some(Origin::Empty) => "none: it began empty".to_owned(),
        None => "not from seedbed".to_owned(),
    }
}

/// `2026-11-01 02:03:04Z (3 d ago)`
fn when(taken_at: &str) -> String {
    let Ok(taken_at) = taken_at.parse::<jiff::Timestamp>() else { return taken_at.to_owned() };
    let at = taken_at.strftime("%Y-%m-%d %H:%M:%SZ");
    match u64::try_from(jiff::Timestamp::now().duration_since(taken_at).as_secs()) {
        Ok(seconds) => format!("{at} ({} ago)", format::age(Duration::from_secs(seconds))),
        // The source's clock is ahead of ours.
        Err(_) => at.to_string(),
    }
}

fn scripts(ran: &[migrate::Ran]) -> String {
    match ran {
        [] => "nothing to do".to_owned(),
        ran => {
            let names: Vec<String> = ran
                .iter()
                .map(|ran| format!("{} ({})", ran.script, millis(ran.elapsed_ms)))
                .collect();
            names.join(", ")
        }
    }
}

fn millis(count: u64) -> String {
    format::duration(Duration::from_millis(count))
}

fn steps(steps: &[StepRecord]) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let rows: Vec<[String; 3]> = steps
        .iter()
        .map(|step| [step.name.clone(), millis(step.elapsed_ms), step.detail.clone()])
        .collect();
    let columns = [("step", Align::Left), ("took", Align::Right), ("", Align::Left)];
    format!("\n{}", format::table(columns, &rows))
}

pub(super) fn status(status: &Status) -> String {
    let mut text = format!("environment  {}\n", status.environment);
    if let Some(branch) = &status.branch {
        text.push_str(&format!("branch       {branch}\n"));
    }
    let Some(server) = &status.server else {
        return format!("{text}server       none runs here: `seedbed up` starts it");
    };
    text.push_str(&format!(
        "server       {}, PostgreSQL {}, {}:{}\n",
        server.kind, server.version, server.host, server.port
    ));
    if let Some(resets) = &server.resets {
        text.push_str(&format!("resets       {resets}\n"));
    }
    let Some(database) = &status.database else {
        return format!("{text}database     none yet: `seedbed up` builds it");
    };
    let bytes = u64::try_from(database.size_bytes).unwrap_or_default();
    text.push_str(&format!(
        "database     {}, {}\nurl          {}\nschema       {}\n",
        database.name,
        format::bytes(bytes),
        database.url,
        database.schema_version.as_deref().unwrap_or("no version")
    ));
    text.push_str(&match database.pending.as_slice() {
        [] => "pending      nothing\n".to_owned(),
        pending => format!("pending      {}\n", pending.join(", ")),
    });
    text.push_str(&format!("data         {}\n", origin(database.origin.as_ref())));
    text.push_str(&made(database));
    if database.lent > 0 {
        let databases = format::counted(database.lent as u64, "database");
        text.push_str(&format!("lent         {databases}: `seedbed db list`\n"));
    }
    text.trim_end().to_owned()
}

/// How and when it was made, and what has become of its size.
fn made(database: &DatabaseStatus) -> String {
    let Some(made_at) = &database.made_at else { return String::new() };
    let mut text = format!("made         {}", when(made_at));
    let clone_of = match database.made_by {
        Some(MadeBy::Template) => Some("template"),
        Some(MadeBy::Image) => Some("image"),
        Some(MadeBy::Point) => Some("point"),
        Some(MadeBy::Build) | None => None,
    };
    if let Some(original) = clone_of {
        text.push_str(&format!(", a clone of the {original}"));
        if let Some(built_at) = &database.built_at {
            text.push_str(&format!(" built {}", when(built_at)));
        }
        if let Some(name) = &database.image {
            text.push_str(&format!(", {name}"));
        }
    }
    text.push('\n');
    text.push_str(&match database.grown_bytes {
        None => String::new(),
        Some(0) => "grown        not since then\n".to_owned(),
        Some(grown) => {
            let (word, by) = if grown > 0 { ("grown", grown) } else { ("shrunk", -grown) };
            format!("{word:<13}by {} since then\n", format::bytes(by.unsigned_abs()))
        }
    });
    text
}

pub(super) fn migrated(outcome: &migrate::Outcome) -> String {
    let before = outcome.before.as_deref().unwrap_or("none");
    let after = outcome.after.as_deref().unwrap_or("none");
    if outcome.applied.is_empty() {
        return format!("up to date: schema version {after}, no script to run");
    }
    let mut text = String::new();
    for ran in &outcome.applied {
        text.push_str(&format!("{:>8}  {}\n", millis(ran.elapsed_ms), ran.script));
    }
    text.push_str(&format!(
        "schema version {before} → {after}, {}",
        format::counted(outcome.applied.len() as u64, "script")
    ));
    text
}

pub(super) fn info(info: &migrate::Info) -> String {
    let rows: Vec<[String; 5]> = info
        .migrations
        .iter()
        .map(|row| {
            [
                row.version.clone().unwrap_or_default(),
                row.description.clone(),
                row.kind.clone(),
                row.installed_on.clone().unwrap_or_default(),
                row.state.to_string(),
            ]
        })
        .collect();
    let columns = [
        ("version", Align::Left),
        ("description", Align::Left),
        ("type", Align::Left),
        ("installed on", Align::Left),
        ("state", Align::Left),
    ];
    let version = info.schema_version.as_deref().unwrap_or("none");
    format!("schema version {version}\n\n{}", format::table(columns, &rows)).trim_end().to_owned()
}

pub(super) fn findings(findings: &[migrate::Finding]) -> String {
    match findings {
        [] => "the history matches the files".to_owned(),
        findings => findings
            .iter()
            .map(|finding| format!("{}: {}", finding.code, finding.message))
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

/// Lines, or that there are none.
pub(super) fn lines(lines: &[String]) -> String {
    match lines {
        [] => "nothing to do".to_owned(),
        lines => lines.join("\n"),
    }
}

pub(super) fn undone(undone: &migrate::Undone) -> String {
    if undone.undone.is_empty() {
        return match &undone.before {
            None => "no version is applied, nothing to undo".to_owned(),
            Some(version) => format!(
                "nothing to undo: what was applied last is not what was asked for; schema version \
                 {version}"
            ),
        };
    }
    let before = undone.before.as_deref().unwrap_or("none");
    let after = undone.after.as_deref().unwrap_or("none");
    let mut text = String::new();
    for ran in &undone.undone {
        text.push_str(&format!("{:>8}  {}\n", millis(ran.elapsed_ms), ran.script));
    }
    let count = format::counted(undone.undone.len() as u64, "undo script");
    text.push_str(&format!("schema version {before} → {after}, {count}"));
    text
}

pub(super) fn drift(drift: &users::Drift) -> String {
    let not_compared = drift.not_compared.iter().map(|what| format!("not compared: {what}"));
    if drift.is_none() {
        let good = "effective privileges are what the files say".to_owned();
        return std::iter::once(good).chain(not_compared).collect::<Vec<_>>().join("\n");
    }
    let missing = drift.missing.iter().map(|privilege| format!("missing  {privilege}"));
    let extra = drift.extra.iter().map(|privilege| format!("extra    {privilege}"));
    missing.chain(extra).chain(not_compared).collect::<Vec<_>>().join("\n")
}

pub(super) fn image_made(made: &published::Made) -> String {
    format!("{}\n{}", made_of(made), steps(&made.steps)).trim_end().to_owned()
}

fn made_of(made: &published::Made) -> String {
    format!(
        "image {} of snapshot {}, schema version {}, published in {}\nPostgreSQL {} on {}, {}: {} \
         plain, {} stored",
        made.id,
        made.snapshot,
        made.schema_version.as_deref().unwrap_or("none"),
        made.store,
        made.major,
        made.machine,
        format::counted(made.files as u64, "file"),
        format::bytes(made.bytes),
        format::bytes(made.stored_bytes),
    )
}

pub(super) fn published(published: &Published) -> String {
    let facts = &published.facts;
    let image = published.image.as_ref().map(|made| format!("{}\n", made_of(made)));
    format!(
        "{}snapshot {} of `{}`, schema version {}, published in {}\n{}, {}: {} plain, {} stored, {} \
         uploaded\n{}{}",
        if published.proved { "proved " } else { "" },
        published.id,
        published.database,
        published.schema_version.as_deref().unwrap_or("none"),
        published.store,
        format::counted(facts.tables, "table"),
        format::counted(facts.rows, "row"),
        format::bytes(facts.plain_bytes),
        format::bytes(facts.stored_bytes),
        format::bytes(facts.new_bytes),
        image.unwrap_or_default(),
        steps(&published.steps),
    )
    .trim_end()
    .to_owned()
}

pub(super) fn loaded(file: &Utf8Path, loaded: &seed::Loaded) -> String {
    let size = format::bytes(loaded.bytes);
    match loaded.statements {
        0 => format!("loaded {file} ({size})"),
        count => format!(
            "loaded {file} ({size}): {}, {} by copy",
            format::counted(count, "statement"),
            format::counted(loaded.rows, "row")
        ),
    }
}

pub(super) fn stopped(stopped: &Stopped) -> String {
    let mut text = match &stopped.server {
        Some(server) => format!("stopped {server}"),
        None => "no server was running".to_owned(),
    };
    if let Some(data) = &stopped.data_removed {
        text.push_str(&format!("\nremoved {data}"));
    }
    text
}

/// The SQL that would run, with a heading for each script.
pub(super) fn dry_run(plan: &migrate::DryRun) -> String {
    if plan.scripts.is_empty() {
        return "-- nothing to run".to_owned();
    }
    let mut text = plan.preparation.clone();
    for script in &plan.scripts {
        text.push_str(&format!("\n-- {}\n{}", script.script, script.sql));
    }
    text.trim().to_owned()
}

/// The statements of the users files, with the place of each.
pub(super) fn users_dry_run(plan: &users::DryRun) -> String {
    if plan.statements.is_empty() {
        return "-- nothing to run".to_owned();
    }
    let mut text = String::new();
    for statement in &plan.statements {
        text.push_str(&format!("-- {} line {}\n", statement.file, statement.line));
        for sql in &statement.sql {
            text.push_str(&format!("{sql};\n"));
        }
    }
    text.trim_end().to_owned()
}

/// A dry run in a line per script.
pub(super) fn planned(plan: &migrate::DryRun) -> Vec<String> {
    plan.scripts.iter().map(|script| format!("run {}", script.script)).collect()
}

pub(super) fn branches(list: &[branch::Listed]) -> String {
    let rows: Vec<[String; 6]> = list
        .iter()
        .map(|listed| {
            let server = match (&listed.engine, listed.port) {
                (None, _) => "none yet".to_owned(),
                (Some(engine), None) => engine.clone(),
                (Some(engine), Some(port)) => format!("{engine}, port {port}"),
            };
            let data = match (&listed.problem, &listed.url) {
                (Some(problem), _) => problem.clone(),
                (None, Some(_)) => origin(listed.origin.as_ref()),
                (None, None) => String::new(),
            };
            [
                listed.name.clone().unwrap_or_else(|| "(default)".to_owned()),
                if listed.running { "yes" } else { "no" }.to_owned(),
                server,
                listed.bytes.map(format::bytes).unwrap_or_default(),
                points(listed),
                data,
            ]
        })
        .collect();
    let columns = [
        ("branch", Align::Left),
        ("runs", Align::Left),
        ("server", Align::Left),
        ("size", Align::Right),
        ("points", Align::Left),
        ("data", Align::Left),
    ];
    format::table(columns, &rows).trim_end().to_owned()
}

fn points(listed: &branch::Listed) -> String {
    let names: Vec<&str> = listed.points.iter().map(|point| point.name.as_str()).collect();
    match (names.join(", "), listed.points_complete || listed.engine.is_none()) {
        (names, true) => names,
        (names, false) if names.is_empty() => "?".to_owned(),
        (names, false) => format!("{names}, ?"),
    }
}

pub(super) fn deleted_branch(deleted: &branch::Deleted) -> String {
    let mut text = String::new();
    for stopped in &deleted.stopped {
        if let Some(server) = &stopped.server {
            text.push_str(&format!("stopped {server}\n"));
        }
        if let Some(data) = &stopped.data_removed {
            text.push_str(&format!("removed {data}\n"));
        }
    }
    format!("{text}removed branch {}", deleted.name)
}

pub(super) fn saved(done: &saved::Done) -> String {
    format!(
        "saved `{}` as `{}`, schema version {}; `seedbed branch restore {}` brings it back",
        done.database,
        done.point.name,
        done.point.schema_version.as_deref().unwrap_or("none"),
        done.point.name
    )
}

pub(super) fn restored(done: &saved::Done) -> String {
    format!(
        "{}\n\n`{}` is as it was {}, schema version {}",
        done.url,
        done.database,
        when(&done.point.made_at),
        done.point.schema_version.as_deref().unwrap_or("none")
    )
}

pub(super) fn images(shelf: &image::Shelf) -> String {
    let images = match shelf.images.is_empty() {
        true => "no image: a database is frozen as one from `images.min_size` on".to_owned(),
        false => image_table(shelf.images.iter().map(|image| (image, ""))),
    };
    if shelf.environments.is_empty() {
        return images;
    }
    let of = |sharer: &Sharer| {
        let left = if sharer.is_left { " (gone)" } else { "" };
        match &sharer.whose.branch {
            Some(branch) => format!("{}{left}, branch {branch}", sharer.whose.project),
            None => format!("{}{left}", sharer.whose.project),
        }
    };
    let from = |sharer: &Sharer| match &sharer.image {
        None => "no image".to_owned(),
        Some(name) if shelf.images.iter().any(|image| image.name == *name) => name.clone(),
        Some(name) => format!("{name}, which is gone"),
    };
    let rows: Vec<[String; 4]> = shelf
        .environments
        .iter()
        .map(|sharer| {
            let own = sharer.own_bytes.map_or("not known".to_owned(), format::bytes);
            [of(sharer), from(sharer), format::bytes(sharer.bytes), own]
        })
        .collect();
    let columns = [
        ("environment", Align::Left),
        ("shares blocks with", Align::Left),
        ("size", Align::Right),
        ("its own", Align::Right),
    ];
    let mut text = format!("{images}\n\n{}", format::table(columns, &rows).trim_end());
    let mut left = shelf.environments.iter().filter(|sharer| sharer.is_left);
    if let Some(Sharer { whose: Whose { project, branch }, .. }) = left.next() {
        let of = branch.as_ref().map_or(String::new(), |name| format!(" --branch '{name}'"));
        text.push_str(&format!(
            "\nwhat a folder that is gone has left goes by `mkdir -p '{project}/conf' && seedbed --project \
             '{project}' down --volumes --yes{of}`"
        ));
    }
    text
}

pub(super) fn pruned_images(pruned: &image::Pruned) -> String {
    let gone = if pruned.dry_run { "would go" } else { "removed" };
    let kept = pruned.kept.iter().map(|image| (image, "stays"));
    let table = image_table(kept.chain(pruned.removed.iter().map(|image| (image, gone))));
    match pruned.dry_run && !pruned.removed.is_empty() {
        true => format!("{table}\n`seedbed images prune --yes` removes them"),
        false => table,
    }
}

fn image_table<'a>(images: impl Iterator<Item = (&'a image::Listed, &'static str)>) -> String {
    let rows: Vec<[String; 6]> = images
        .map(|(image, fate)| {
            let facts = &image.facts;
            [
                image.name.clone(),
                format!("{} ago", format::age(Duration::from_secs(image.age_seconds))),
                format::bytes(image.bytes),
                format!("{} of {}", facts.database, facts.project),
                format!(
                    "version {}, {}{}",
                    facts.schema_version.as_deref().unwrap_or("none"),
                    if facts.is_ground { "the rows alone of " } else { "" },
                    origin(facts.origin.as_ref())
                ),
                fate.to_owned(),
            ]
        })
        .collect();
    let columns = [
        ("image", Align::Left),
        ("made", Align::Left),
        ("size", Align::Right),
        ("database", Align::Left),
        ("holds", Align::Left),
        ("", Align::Left),
    ];
    format::table(columns, &rows).trim_end().to_owned()
}

pub(super) fn pruned(pruned: &journeys::Pruned) -> String {
    let (pruned, images) = (&pruned.snapshots, &pruned.images);
    let rows: Vec<[String; 5]> = pruned
        .snapshots
        .iter()
        .map(|line| {
            let fate = match line.fate {
                Fate::Removed if pruned.done => "removed".to_owned(),
                fate => fate.to_string(),
            };
            [
                line.id.clone(),
                line.taken_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                line.version.clone().unwrap_or_default(),
                line.database.clone(),
                fate,
            ]
        })
        .collect();
    let columns = [
        ("id", Align::Left),
        ("taken at", Align::Left),
        ("version", Align::Left),
        ("database", Align::Left),
        ("fate", Align::Left),
    ];
    let chunks = &pruned.chunks;
    let will = if pruned.done { "" } else { "to be " };
    let mut text = format!(
        "{}\nchunks: {} in use, {} waiting for the grace period, {} {will}marked ({}), {} {will}\
         removed ({})\n",
        format::table(columns, &rows),
        format::count(chunks.named),
        format::count(chunks.waiting),
        format::count(chunks.marked),
        format::bytes(chunks.marked_bytes),
        format::count(chunks.removed),
        format::bytes(chunks.removed_bytes),
    );
    if images.pieces > 0 || !images.images.is_empty() {
        text.push_str(&format!(
            "images: {} {will}removed, with {} ({})\n",
            images.images.len(),
            format::counted(images.pieces, "piece"),
            format::bytes(images.bytes),
        ));
    }
    if let Some(reason) = &pruned.chunks_stay {
        text.push_str(&format!("no chunk is removed: {reason}\n"));
    }
    if !pruned.done {
        text.push_str("nothing was changed: `seedbed snapshot prune --yes` does it\n");
    }
    text.trim_end().to_owned()
}

pub(super) fn exported(exported: &export::Exported) -> String {
    format!(
        "snapshot {} in {}: {} of {}, {}; LOAD.md there has the commands",
        exported.id,
        exported.folder,
        format::counted(exported.rows, "row"),
        format::counted(exported.tables, "table"),
        format::bytes(exported.bytes),
    )
}

pub(super) fn snapshots(list: &[find::Listed]) -> String {
    if list.is_empty() {
        return "no snapshot yet: `seedbed snapshot create` makes one".to_owned();
    }
    let rows: Vec<[String; 6]> = list
        .iter()
        .map(|listed| {
            let details = listed.details.as_ref();
            [
                listed.id.clone(),
                listed.taken_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                format::age(Duration::from_secs(listed.age_seconds)),
                listed.version.clone().unwrap_or_default(),
                details.map(|details| format::count(details.rows)).unwrap_or_default(),
                match (&listed.problem, details) {
                    (Some(problem), _) => problem.clone(),
                    (None, Some(details)) => format::bytes(details.stored_bytes),
                    (None, None) => String::new(),
                },
            ]
        })
        .collect();
    let columns = [
        ("id", Align::Left),
        ("taken at", Align::Left),
        ("age", Align::Right),
        ("version", Align::Left),
        ("rows", Align::Right),
        ("stored", Align::Left),
    ];
    format::table(columns, &rows).trim_end().to_owned()
}

/// Why `list --max-age` ends with 13.
pub(super) fn none_is_young(limit: &str, young: &find::Young) -> String {
    let of = young.database.as_ref().map(|name| format!(" of `{name}`")).unwrap_or_default();
    let mut text = format!("no snapshot{of} is newer than {limit} (`--max-age`)");
    let unreadable = (young.unreadable, "that cannot be read");
    let of_others = (young.of_others, "of other databases");
    let left_out: Vec<String> = [unreadable, of_others]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
    if !left_out.is_empty() {
        text.push_str(&format!("; newer, but not counted: {}", left_out.join(", ")));
    }
    text
}

pub(super) fn manifest(manifest: &Manifest) -> String {
    let mut text = format!(
        "id        {}\ntaken at  {}\ndatabase  {}, PostgreSQL {}, {} {}\nschema    version {}\n\n",
        manifest.id,
        when(&manifest.taken_at.to_string()),
        manifest.database,
        manifest.server.version,
        manifest.server.encoding,
        manifest.server.collate,
        history::current_version(&manifest.history).as_deref().unwrap_or("none"),
    );
    let rows: Vec<[String; 4]> = manifest
        .tables
        .iter()
        .map(|table| {
            let stored: u64 = table.chunks.iter().map(|chunk| chunk.stored_size).sum();
            [
                format!("{}.{}", table.schema, table.name),
                format::count(table.rows),
                format::bytes(stored),
                table.chunks.len().to_string(),
            ]
        })
        .collect();
    let columns = [
        ("table", Align::Left),
        ("rows", Align::Right),
        ("stored", Align::Right),
        ("chunks", Align::Right),
    ];
    text.push_str(&format::table(columns, &rows));
    text.trim_end().to_owned()
}

pub(super) fn why(why: &find::Why) -> String {
    if why.snapshots.is_empty() {
        return format!("{} holds no snapshot", why.store);
    }
    let rows: Vec<[String; 4]> = why
        .snapshots
        .iter()
        .map(|reason| {
            [
                if reason.taken { "→".to_owned() } else { String::new() },
                reason.id.clone(),
                reason.taken_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                reason.reason.clone(),
            ]
        })
        .collect();
    let columns =
        [("", Align::Left), ("id", Align::Left), ("taken at", Align::Left), ("why", Align::Left)];
    format::table(columns, &rows).trim_end().to_owned()
}

pub(super) fn verified(verified: &verify::Verified) -> String {
    format!(
        "{} whole: {}, {} stored, {} plain, {}",
        verified.snapshots.join(", "),
        format::counted(verified.objects, "object"),
        format::bytes(verified.stored_bytes),
        format::bytes(verified.plain_bytes),
        format::counted(verified.rows, "row")
    )
}

pub(super) fn proof(proof: &Proof) -> String {
    let mut text = String::new();
    for check in &proof.checks {
        let mark = if check.passed { "ok  " } else { "FAIL" };
        text.push_str(&format!(
            "{mark}  {}: {} ({})\n",
            check.name,
            check.detail,
            millis(check.elapsed_ms)
        ));
    }
    text.push_str(&proof_facts(proof));
    let kept = proof.kept_url.iter().filter(|_| proof.kept_urls.is_empty());
    for url in kept.chain(&proof.kept_urls) {
        text.push_str(&format!("\nkept: {url}"));
    }
    text
}

/// The data that the proof was made on, in one line.
pub(super) fn proof_facts(proof: &Proof) -> String {
    format!(
        "data: {}; schema version {}",
        origin(proof.origin.as_ref()),
        proof.schema_version.as_deref().unwrap_or("none")
    )
}

/// What kept `ci` from proving anything, as the one check of its reports.
pub(super) fn failed_check(error: &Error) -> Check {
    let name = match error.exit() {
        Exit::Script | Exit::History => "pending migrations run",
        Exit::Done
        | Exit::Bug
        | Exit::CommandLine
        | Exit::Configuration
        | Exit::Server
        | Exit::Database
        | Exit::NoSnapshot
        | Exit::Store
        | Exit::Damaged
        | Exit::Locked
        | Exit::Refused
        | Exit::CheckFailed
        | Exit::Interrupted => "build the database",
    };
    let detail = Failure::of(error).text(false);
    let detail = detail.trim_end().trim_start_matches("error: ").to_owned();
    Check { name: name.to_owned(), passed: false, detail, elapsed_ms: 0 }
}

pub(super) fn config(origins: &[config::Origin]) -> String {
    /// A line of a terminal holds key, value and place; a URL may be longer than that.
    const WIDEST: usize = 36;
    let rows: Vec<[String; 3]> = origins
        .iter()
        .map(|origin| [origin.key.clone(), origin.value.clone(), origin.source.clone()])
        .collect();
    let columns = [("key", Align::Left), ("value", Align::Left), ("from", Align::Left)];
    format::ragged_table(columns, &rows, WIDEST).trim_end().to_owned()
}

/// `8d`, `12h`, `90m` as seconds.
pub(super) fn parse_age(text: &str) -> Result<u64, Error> {
    crate::config::read_duration(text).ok_or_else(|| {
        Error::CommandLine(format!(
            "`--max-age {text}`: expected a number and a unit, as 8d, 12h or 90m"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::parse_age;

    #[test]
    fn ages_are_a_number_and_a_unit() {
        assert_eq!(parse_age("8d").ok(), Some(691_200));
        assert_eq!(parse_age("90m").ok(), Some(5_400));
        for wrong in ["", "d", "8", "8 d", "-1d", "8w", "8ü", "99999999999999999999d"] {
            assert!(parse_age(wrong).is_err(), "{wrong}");
        }
    }
}
