//! Files and history side by side: the state of each migration, and what is to run. Pure.
//!
//! States and their rules are Flyway's. Files and rows match by version *and* type; a row that a
//! later `DELETE` or undo row took back no longer counts as applied.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use super::Error;
use super::history::{HistoryRow, short_description};
use super::resolve::Scripts;
use super::script::Script;
use super::version::Version;

/// What has become of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Pending,
    AboveTarget,
    BelowBaseline,
    /// Stands at the baseline's version.
    IgnoredBaseline,
    Ignored,
    Baseline,
    Success,
    OutOfOrder,
    Failed,
    /// Applied, and its file is gone.
    Missing,
    MissingFailed,
    /// Applied, above every file.
    Future,
    FutureFailed,
    /// A repeatable whose text has changed since.
    Outdated,
    /// A repeatable that ran again later.
    Superseded,
    Deleted,
    Undone,
}

impl State {
    pub(super) const ALL: [Self; 17] = [
        Self::Pending,
        Self::AboveTarget,
        Self::BelowBaseline,
        Self::IgnoredBaseline,
        Self::Ignored,
        Self::Baseline,
        Self::Success,
        Self::OutOfOrder,
        Self::Failed,
        Self::Missing,
        Self::MissingFailed,
        Self::Future,
        Self::FutureFailed,
        Self::Outdated,
        Self::Superseded,
        Self::Deleted,
        Self::Undone,
    ];

    /// Flyway's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::AboveTarget => "Above Target",
            Self::BelowBaseline => "Below Baseline",
            Self::IgnoredBaseline => "Ignored (Baseline)",
            Self::Ignored => "Ignored",
            Self::Baseline => "Baseline",
            Self::Success => "Success",
            Self::OutOfOrder => "Out of Order",
            Self::Failed => "Failed",
            Self::Missing => "Missing",
            Self::MissingFailed => "Failed (Missing)",
            Self::Future => "Future",
            Self::FutureFailed => "Failed (Future)",
            Self::Outdated => "Outdated",
            Self::Superseded => "Superseded",
            Self::Deleted => "Deleted",
            Self::Undone => "Undone",
        }
    }

    /// Whether the script of this migration did not run through.
    pub fn is_failed(self) -> bool {
        matches!(self, Self::Failed | Self::MissingFailed | Self::FutureFailed)
    }
}

/// A migration: a row, a file, or both.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub state: State,
    pub row: Option<&'a HistoryRow>,
    pub script: Option<&'a Script>,
    pub version: Option<Version>,
}

impl<'a> Entry<'a> {
    fn of_file(state: State, script: &'a Script) -> Self {
        Self { state, row: None, script: Some(script), version: script.version.clone() }
    }

    /// Whether it was applied by code in Java, which has no file among the scripts.
    pub(super) fn is_javas(&self) -> bool {
        self.script.is_none()
            && self
                .row
                .is_some_and(|row| matches!(row.kind.as_str(), "JDBC" | "SPRING_JDBC" | "CUSTOM"))
    }

    pub fn description(&self) -> &str {
        match (self.row, self.script) {
            (Some(row), _) => &row.description,
            (None, Some(script)) => &script.description,
            (None, None) => "",
        }
    }
}

/// How far to migrate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Latest,
    /// No version above those that are applied.
    Current,
    /// One versioned script and nothing else.
    Next,
    /// Up to and with this one; `must_exist` unless it was written with `?`.
    Version {
        version: Version,
        must_exist: bool,
    },
}

impl Target {
    /// Reads `latest`, `current`, `next` or a version, with or without `?`.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let (name, must_exist) = match text.strip_suffix('?') {
            Some(name) => (name, false),
            None => (text, true),
        };
        Ok(match name.to_ascii_lowercase().as_str() {
            "" | "latest" => Self::Latest,
            "current" => Self::Current,
            "next" => Self::Next,
            _ => {
                let version = Version::parse(name).map_err(|error| Error::Setting {
                    key: "flyway.target".to_owned(),
                    reason: error.to_string(),
                })?;
                Self::Version { version, must_exist }
            }
        })
    }
}

/// What one call asks of a plan.
#[derive(Debug, Clone)]
pub struct Rules {
    pub out_of_order: bool,
    pub target: Target,
    /// Versions and descriptions to run, in this order; empty: everything.
    pub cherry_pick: Vec<String>,
}

/// Files and history with every state decided.
#[derive(Debug)]
pub struct Plan<'a> {
    /// In the order in which `info` shows them.
    pub entries: Vec<Entry<'a>>,
    /// What `migrate` runs, in order.
    pub pending: Vec<&'a Script>,
    /// The highest version that is applied.
    pub current: Option<Version>,
    /// The highest baseline version.
    pub baseline: Option<Version>,
}

/// Decides every state.
///
/// # Errors
/// A row whose version cannot be read; a version to pick that is not there.
pub fn plan<'a>(
    scripts: &'a Scripts,
    rows: &'a [HistoryRow],
    rules: &Rules,
) -> Result<Plan<'a>, Error> {
    let applied = Applied::read(rows)?;
    let files = Files::new(scripts);
    let current = applied.current();
    let is_fresh = current.is_none();
    let limit = match &rules.target {
        Target::Latest | Target::Next => None,
        Target::Current => Some(current.clone().unwrap_or_else(Version::lowest)),
        Target::Version { version, .. } => Some(version.clone()),
    };
    let is_above = |version: &Version| limit.as_ref().is_some_and(|limit| version > limit);
    let chosen_baseline = scripts.baseline.iter().rev().find(|script| {
        is_fresh && script.version.as_ref().is_some_and(|version| !is_above(version))
    });
    let baseline =
        applied.baseline().or_else(|| chosen_baseline.and_then(|script| script.version.clone()));

    let counting = applied.counting();
    let has = |script: &Script| {
        let version = script.version.as_ref();
        version.is_some_and(|version| counting.contains(&(version, script.type_name())))
    };
    let mut unapplied: Vec<Entry<'a>> = Vec::new();
    for script in scripts.versioned.iter().filter(|script| !has(script)) {
        let Some(version) = &script.version else { continue };
        let below = |other: &Option<Version>| other.as_ref().map(|other| version.cmp(other));
        let state = if script.settings.should_execute == Some(false) {
            State::Ignored
        } else if below(&baseline) == Some(Ordering::Less) {
            State::BelowBaseline
        } else if below(&baseline) == Some(Ordering::Equal) {
            State::IgnoredBaseline
        } else if is_above(version) {
            State::AboveTarget
        } else if !rules.out_of_order
            && (below(&current) == Some(Ordering::Less) || version.is_current_keyword())
        {
            State::Ignored
        } else {
            State::Pending
        };
        unapplied.push(Entry::of_file(state, script));
    }
    for script in scripts.baseline.iter().filter(|script| !has(script)) {
        let is_chosen = chosen_baseline.is_some_and(|chosen| std::ptr::eq(chosen, script));
        let state = match &script.version {
            _ if is_chosen => State::Pending,
            Some(version) if baseline.as_ref().is_some_and(|baseline| version < baseline) => {
                State::BelowBaseline
            }
            Some(version) if is_fresh && is_above(version) => State::AboveTarget,
            Some(_) | None => State::Ignored,
        };
        unapplied.push(Entry::of_file(state, script));
    }
    unapplied.sort_by(|a, b| a.version.cmp(&b.version));
    if rules.target == Target::Next {
        let mut seen = false;
        for entry in unapplied.iter_mut().filter(|entry| entry.state == State::Pending) {
            if std::mem::replace(&mut seen, true) {
                entry.state = State::AboveTarget;
            }
        }
    }
    let latest = applied.latest();
    let is_current = |script: &&Script| {
        latest
            .get(&*short_description(&script.description))
            .is_some_and(|row| script.matches_checksum(row.checksum))
    };
    let repeatables = scripts.repeatable.iter().filter(|script| !is_current(script));
    unapplied.extend(repeatables.map(|script| match script.settings.should_execute {
        Some(false) => Entry::of_file(State::Ignored, script),
        Some(true) | None => Entry::of_file(State::Pending, script),
    }));

    let pending = if rules.cherry_pick.is_empty() {
        unapplied
            .iter()
            .filter(|entry| entry.state == State::Pending)
            .filter(|entry| rules.target != Target::Next || entry.version.is_some())
            .filter_map(|entry| entry.script)
            .collect()
    } else {
        picked(&unapplied, scripts, &rules.cherry_pick)?
    };
    let (below, above): (Vec<_>, Vec<_>) = unapplied
        .into_iter()
        .partition(|entry| matches!(entry.state, State::BelowBaseline | State::IgnoredBaseline));
    let mut entries = below;
    entries.extend(applied.entries(&files));
    entries.extend(above);
    Ok(Plan { entries, pending, current, baseline })
}

/// The scripts that were asked for by name and are not applied, in the order of asking.
fn picked<'a>(
    unapplied: &[Entry<'a>],
    scripts: &Scripts,
    names: &[String],
) -> Result<Vec<&'a Script>, Error> {
    let mut picked = Vec::new();
    for name in names {
        let version = Version::parse(name).ok();
        let is_meant = |script: &Script| match (&script.version, &version) {
            (Some(own), Some(wanted)) => own == wanted,
            (None, _) => {
                script.description == *name || script.description == name.replace('_', " ")
            }
            (Some(_), None) => false,
        };
        if !scripts.iter().any(is_meant) {
            return Err(Error::NothingToPick { name: name.clone() });
        }
        let runnable = unapplied.iter().filter(|entry| {
            matches!(entry.state, State::Pending | State::Ignored | State::AboveTarget)
        });
        picked.extend(runnable.filter_map(|entry| entry.script).filter(|script| is_meant(script)));
    }
    Ok(picked)
}

/// The files by what rows know of them.
struct Files<'a> {
    by_version: HashMap<(&'a Version, &'a str), &'a Script>,
    by_description: HashMap<Cow<'a, str>, &'a Script>,
    last: Option<&'a Version>,
}

/// The rows, read.
struct Applied<'a> {
    rows: Vec<Row<'a>>,
}

struct Row<'a> {
    row: &'a HistoryRow,
    version: Option<Version>,
    /// Taken back by a later row.
    taken_back: Option<State>,
}

impl Row<'_> {
    fn is(&self, kind: &str) -> bool {
        self.row.kind == kind
    }

    fn is_undo(&self) -> bool {
        self.row.kind.starts_with("UNDO_")
    }

    /// `BASELINE`, `SQL_BASELINE` and its kin.
    fn is_baseline(&self) -> bool {
        self.row.kind.ends_with("BASELINE")
    }

    /// Stands for something that is in the database now.
    fn counts(&self) -> bool {
        self.taken_back.is_none() && !self.is("DELETE") && !self.is("SCHEMA") && !self.is_undo()
    }

    fn is_repeatable(&self) -> bool {
        self.version.is_none() && !self.is("SCHEMA")
    }
}

impl<'a> Applied<'a> {
    fn read(rows: &'a [HistoryRow]) -> Result<Self, Error> {
        let mut read: Vec<Row<'a>> = Vec::with_capacity(rows.len());
        for row in rows {
            let version =
                row.version.as_deref().map(Version::parse).transpose().map_err(|error| {
                    Error::History { rank: row.installed_rank, reason: error.to_string() }
                })?;
            let new = Row { row, version, taken_back: None };
            let takes_back = match () {
                () if new.is("DELETE") => Some(State::Deleted),
                () if new.is_undo() => Some(State::Undone),
                () => None,
            };
            if let Some(state) = takes_back {
                let same = |old: &&mut Row<'_>| {
                    old.counts()
                        && old.version == new.version
                        && (new.version.is_some() || old.row.description == new.row.description)
                };
                if let Some(old) = read.iter_mut().rev().find(same) {
                    old.taken_back = Some(state);
                }
            }
            read.push(new);
        }
        Ok(Self { rows: read })
    }

    fn current(&self) -> Option<Version> {
        let counting = self.rows.iter().filter(|row| row.counts());
        counting.filter_map(|row| row.version.as_ref()).max().cloned()
    }

    fn baseline(&self) -> Option<Version> {
        let rows = self.rows.iter().filter(|row| row.counts() && row.is_baseline());
        rows.filter_map(|row| row.version.clone()).max()
    }

    /// Version and type of everything that is applied now.
    fn counting(&self) -> HashSet<(&Version, &str)> {
        let rows = self.rows.iter().filter(|row| row.counts());
        rows.filter_map(|row| Some((row.version.as_ref()?, row.row.kind.as_str()))).collect()
    }

    /// The last row of each repeatable that counts, by description.
    fn latest(&self) -> HashMap<&'a str, &'a HistoryRow> {
        let rows = self.rows.iter().filter(|row| row.counts() && row.is_repeatable());
        rows.map(|row| (row.row.description.as_str(), row.row)).collect()
    }

    fn entries(&self, files: &Files<'a>) -> Vec<Entry<'a>> {
        let latest = self.latest();
        let mut highest: Option<&Version> = None;
        let mut entries = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let script = files.of(row);
            let is_latest = latest
                .get(row.row.description.as_str())
                .is_some_and(|last| last.installed_rank == row.row.installed_rank);
            let is_late = row.version.is_some() && row.version.as_ref() <= highest;
            let state = state(row, script, is_latest, is_late, files.last);
            // Versioned marks of deletion say nothing that the deleted row does not say.
            if !(row.is("DELETE") && row.version.is_some()) {
                entries.push(Entry {
                    state,
                    row: Some(row.row),
                    script,
                    version: row.version.clone(),
                });
            }
            if row.counts() {
                highest = highest.max(row.version.as_ref());
            }
        }
        entries
    }
}

impl<'a> Files<'a> {
    fn new(scripts: &'a Scripts) -> Self {
        let versioned = scripts.versioned.iter().chain(&scripts.baseline);
        Self {
            by_version: versioned
                .filter_map(|script| Some(((script.version.as_ref()?, script.type_name()), script)))
                .collect(),
            by_description: scripts
                .repeatable
                .iter()
                .map(|script| (short_description(&script.description), script))
                .collect(),
            last: [&scripts.versioned, &scripts.baseline]
                .into_iter()
                .filter_map(|scripts| scripts.last()?.version.as_ref())
                .max(),
        }
    }

    /// The file that a row was made from.
    fn of(&self, row: &Row<'_>) -> Option<&'a Script> {
        if row.is_repeatable() {
            return self.by_description.get(row.row.description.as_str()).copied();
        }
        self.by_version.get(&(row.version.as_ref()?, row.row.kind.as_str())).copied()
    }
}

fn state(
    row: &Row<'_>,
    script: Option<&Script>,
    is_latest: bool,
    is_late: bool,
    last_file: Option<&Version>,
) -> State {
    let success = row.row.success;
    if let Some(state) = row.taken_back {
        return state;
    }
    if row.is("DELETE") || row.is("SCHEMA") || row.is_undo() {
        return State::Success;
    }
    if row.is("BASELINE") {
        return State::Baseline;
    }
    let is_repeatable = row.is_repeatable();
    let Some(script) = script else {
        if is_repeatable && !is_latest {
            return State::Superseded;
        }
        let is_missing = is_repeatable || row.version.as_ref() < last_file;
        return match (is_missing, success) {
            (true, true) => State::Missing,
            (true, false) => State::MissingFailed,
            (false, true) => State::Future,
            (false, false) => State::FutureFailed,
        };
    };
    match () {
        () if !success => State::Failed,
        () if row.is_baseline() => State::Baseline,
        () if is_repeatable && !is_latest => State::Superseded,
        () if is_repeatable && !script.matches_checksum(row.row.checksum) => State::Outdated,
        () if is_late => State::OutOfOrder,
        () => State::Success,
    }
}
