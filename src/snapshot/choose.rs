//! Which snapshot a checkout restores, and why not another one. Pure.
//!
//! A snapshot fits when every versioned script that it applied is in the checkout with the same
//! checksum, nothing in the checkout would be skipped by the order of versions, and the server can
//! load it. The newest by the source's clock wins. [`Search`] asks for as few manifests as it can:
//! a name may already say that the snapshot is newer than the checkout, needs a newer server or was
//! not proved, and snapshots with equal hashes of history or extensions share a verdict. So what is
//! read is one manifest for each history and each set of extensions that does not fit, however many
//! snapshots have it, and the one taken. Names of older programs have no stamp: where their history
//! fits and the server or the proof decides, each is read.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::history::{self, InForce, Role};
use super::manifest::{Applied, Manifest};
use super::name::{Name, Stamp};
use crate::migrate::Version;

/// The migrations that a project holds.
#[derive(Debug, Clone, Default)]
pub struct Checkout {
    pub versioned: Vec<CheckoutScript>,
    /// Baseline scripts.
    pub baseline: Vec<CheckoutScript>,
    /// `out_of_order`: a script below the highest applied version still runs.
    pub out_of_order: bool,
    /// `ignore_migration_patterns` allows applied scripts below the last one to be missing here.
    pub ignore_missing: bool,
}

#[derive(Debug, Clone)]
pub struct CheckoutScript {
    pub version: Version,
    pub checksum: i32,
}

/// What is known about the server that is to load it.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// `None`: not known, so no snapshot is rejected for it.
    pub server_major: Option<u32>,
    /// Extensions that can be created; `None`: not known.
    pub extensions: Option<BTreeSet<String>>,
    /// Those that the restore leaves out.
    pub ignored_extensions: BTreeSet<String>,
    /// Only snapshots that were proved may be taken.
    pub proved_only: bool,
}

impl Facts {
    /// No server was asked.
    pub fn unknown() -> Self {
        Self::default()
    }
}

/// Why a snapshot does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "misfit", rename_all = "snake_case")]
pub enum Misfit {
    #[error("newer than this checkout: version {version} is not here")]
    Newer { version: String },
    #[error("diverged at version {version}: it was applied with another checksum")]
    Changed { version: String },
    #[error("diverged at version {version}: it was applied and is not here")]
    Missing { version: String },
    #[error(
        "version {version} would be skipped: higher ones are applied already, and out-of-order is off"
    )]
    Skipped { version: String },
    #[error("its migration {version} had failed")]
    Failed { version: String },
    #[error("needs a server of version {needed} or newer, this one is {here}")]
    NeedsServer { needed: u32, here: u32 },
    #[error("the server does not have the extension {}", backticked(.names))]
    NeedsExtension { names: Vec<String> },
    #[error("not proved: it was not restored and compared before it was published")]
    NotProved,
    #[error("has format {format}, which this seedbed does not know")]
    UnknownFormat { format: u64 },
    #[error("damaged: {detail}")]
    Damaged { detail: String },
    #[error("gone since it was listed")]
    Gone,
}

/// What became of one candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    Taken,
    Unfit(Misfit),
    /// Not looked at closely: a newer one fits.
    Older,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Taken => f.write_str("taken: the newest that fits"),
            Self::Unfit(misfit) => misfit.fmt(f),
            Self::Older => f.write_str("older than the one taken"),
        }
    }
}

/// One snapshot and what became of it.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub name: Name,
    pub verdict: Verdict,
}

/// What reading a manifest gave.
pub enum Read {
    Manifest(Box<Manifest>),
    Unfit(Misfit),
}

/// Walks the candidates from the newest to the oldest until one fits.
pub struct Search<'a> {
    checkout: &'a Checkout,
    facts: &'a Facts,
    /// The checkout's last version.
    highest: Option<&'a Version>,
    /// Oldest first: the next one is at the end.
    left: Vec<Name>,
    by_history: BTreeMap<String, Option<Misfit>>,
    by_extensions: BTreeMap<String, Misfit>,
    /// What was read before its turn came, by the object's name.
    ahead: BTreeMap<String, Result<Box<Manifest>, Misfit>>,
    judged: Vec<Candidate>,
    taken: Option<Box<Manifest>>,
    reads: usize,
}

impl<'a> Search<'a> {
    pub fn new(mut names: Vec<Name>, checkout: &'a Checkout, facts: &'a Facts) -> Self {
        names.sort();
        let mut search = Self {
            checkout,
            facts,
            highest: highest(checkout),
            left: names,
            by_history: BTreeMap::new(),
            by_extensions: BTreeMap::new(),
            ahead: BTreeMap::new(),
            judged: Vec::new(),
            taken: None,
            reads: 0,
        };
        search.settle();
        search
    }

    /// The manifests to read next and to hand to [`Search::read`], at most `most`, newest first; none
    /// when all is decided. The first one's turn has come. The others are read ahead, so that many
    /// misfits take few rounds: half as many as were read before, so that a search which ends soon
    /// reads none in vain, and none that another one of them may decide.
    pub fn to_read(&self, most: usize) -> Vec<Name> {
        let mut doubts = BTreeSet::new();
        self.left
            .iter()
            .rev()
            .filter(|name| !self.ahead.contains_key(&name.object) && self.known(name).is_none())
            .filter(|name| doubts.insert(self.doubt(name)))
            .take((self.reads / 2).clamp(1, most))
            .cloned()
            .collect()
    }

    /// Takes what came of reading one that [`Search::to_read`] named.
    pub fn read(&mut self, name: &Name, read: Read) {
        self.reads += 1;
        let judged = match read {
            Read::Manifest(manifest) => self.learn(name, &manifest).map(|()| manifest),
            Read::Unfit(misfit) => Err(misfit),
        };
        self.ahead.insert(name.object.clone(), judged);
        self.settle();
    }

    /// Whether all is decided.
    pub fn is_over(&self) -> bool {
        self.left.is_empty()
    }

    /// How many manifests were read.
    pub fn reads(&self) -> usize {
        self.reads
    }

    /// Every candidate, newest first, and the manifest of the one taken.
    pub fn finish(self) -> (Vec<Candidate>, Option<Manifest>) {
        (self.judged, self.taken.map(|manifest| *manifest))
    }

    /// Judges the newest ones that are left, as far as all is known.
    fn settle(&mut self) {
        while let Some(name) = self.left.last() {
            let judged = self.ahead.remove(&name.object);
            let verdict = match (judged, self.taken.is_some()) {
                (Some(Err(misfit)), _) => Verdict::Unfit(misfit),
                (Some(Ok(_)), true) => Verdict::Older,
                (Some(Ok(manifest)), false) => {
                    self.taken = Some(manifest);
                    Verdict::Taken
                }
                (None, taken) => match self.known(name) {
                    Some(misfit) => Verdict::Unfit(misfit),
                    None if taken => Verdict::Older,
                    None => return,
                },
            };
            if let Some(name) = self.left.pop() {
                self.judged.push(Candidate { name, verdict });
            }
        }
    }

    /// Whether the manifest fits, remembered for those that are alike.
    fn learn(&mut self, name: &Name, manifest: &Manifest) -> Result<(), Misfit> {
        let history = history_fits(&manifest.history, self.checkout);
        self.by_history.insert(name.history.clone(), history.clone().err());
        let extensions = extensions_fit(manifest, self.facts);
        if let Err(misfit) = &extensions {
            self.by_extensions.insert(Stamp::of(manifest).extensions, misfit.clone());
        }
        history.and_then(|()| loads(&Stamp::of(manifest), self.facts)).and(extensions)
    }

    /// Why it does not fit, as far as that is known without reading its manifest.
    fn known(&self, name: &Name) -> Option<Misfit> {
        let history = || self.by_history.get(&name.history).cloned().flatten();
        let stamp = name.stamp.as_ref();
        self.newer(name)
            .or_else(history)
            .or_else(|| loads(stamp?, self.facts).err())
            .or_else(|| self.by_extensions.get(&stamp?.extensions).cloned())
    }

    /// A script beyond the checkout's last one was applied.
    fn newer(&self, name: &Name) -> Option<Misfit> {
        let version = name.version.as_ref()?;
        let newer = self.highest.is_none_or(|highest| version > highest);
        newer.then(|| Misfit::Newer { version: version.text().to_owned() })
    }

    /// What reading the manifest may tell of others too; equal where one is enough.
    fn doubt<'n>(&self, name: &'n Name) -> &'n str {
        match (self.by_history.contains_key(&name.history), &name.stamp) {
            (false, _) => &name.history,
            (true, Some(stamp)) => &stamp.extensions,
            (true, None) => &name.object,
        }
    }
}

fn highest(checkout: &Checkout) -> Option<&Version> {
    checkout.versioned.iter().chain(&checkout.baseline).map(|script| &script.version).max()
}

/// Whether a database with this history can be migrated by this checkout.
///
/// # Errors
/// The first reason why not, in the order of versions; that it is newer comes first.
pub fn history_fits(rows: &[Applied], checkout: &Checkout) -> Result<(), Misfit> {
    let states = history::in_force(rows);
    check_newer(&states, checkout)?;
    for state in &states {
        check_applied(state, checkout)?;
    }
    if checkout.out_of_order {
        return Ok(());
    }
    check_order(&states, checkout)
}

/// The snapshot's first version beyond the checkout's last.
fn check_newer(states: &[InForce<'_>], checkout: &Checkout) -> Result<(), Misfit> {
    let highest = highest(checkout);
    let beyond = |state: &&InForce<'_>| {
        state.role != Role::BaselineMarker
            && highest.is_none_or(|highest| state.version.as_ref().is_ok_and(|v| v > highest))
    };
    match states.iter().find(beyond) {
        Some(first) => Err(Misfit::Newer { version: first.text().to_owned() }),
        None => Ok(()),
    }
}

fn check_applied(state: &InForce<'_>, checkout: &Checkout) -> Result<(), Misfit> {
    let version = state.text().to_owned();
    if !state.row.success {
        return Err(Misfit::Failed { version });
    }
    let scripts = match state.role {
        // A declaration: no script stands behind it.
        Role::BaselineMarker => return Ok(()),
        Role::BaselineScript => &checkout.baseline,
        Role::Script => &checkout.versioned,
        Role::Undone => return Ok(()),
    };
    let same =
        |script: &&CheckoutScript| state.version.as_ref().is_ok_and(|v| *v == script.version);
    match scripts.iter().find(same) {
        None if checkout.ignore_missing => Ok(()),
        None => Err(Misfit::Missing { version }),
        // Without a checksum (a program, an old tool) there is nothing to compare.
        Some(script) if state.row.checksum.is_none_or(|sum| sum == script.checksum) => Ok(()),
        Some(_) => Err(Misfit::Changed { version }),
    }
}

/// A script that is not applied, below the highest that is, never runs. Versions up to a baseline
/// are in by declaration.
fn check_order(states: &[InForce<'_>], checkout: &Checkout) -> Result<(), Misfit> {
    let versions = |wanted: fn(Role) -> bool| {
        states
            .iter()
            .filter(move |state| wanted(state.role))
            .filter_map(|s| s.version.as_ref().ok())
    };
    let Some(highest) = versions(|_| true).max() else { return Ok(()) };
    let baseline = versions(|role| role != Role::Script).max();
    let applied: BTreeSet<&Version> = versions(|_| true).collect();
    let skipped = checkout
        .versioned
        .iter()
        .map(|script| &script.version)
        .filter(|version| *version < highest && !applied.contains(version))
        .filter(|version| baseline.is_none_or(|baseline| *version > baseline))
        .min();
    match skipped {
        Some(version) => Err(Misfit::Skipped { version: version.text().to_owned() }),
        None => Ok(()),
    }
}

/// Whether the server can load it, as far as extensions do not matter, and whether it may.
fn loads(stamp: &Stamp, facts: &Facts) -> Result<(), Misfit> {
    let needed = stamp.server_major;
    if let Some(here) = facts.server_major.filter(|here| *here < needed) {
        return Err(Misfit::NeedsServer { needed, here });
    }
    if facts.proved_only && !stamp.proved {
        return Err(Misfit::NotProved);
    }
    Ok(())
}

/// Whether the server has what its extensions need.
fn extensions_fit(manifest: &Manifest, facts: &Facts) -> Result<(), Misfit> {
    let Some(available) = &facts.extensions else { return Ok(()) };
    let names = manifest.extensions.iter().map(|extension| &extension.name);
    let missing: Vec<String> = names
        .filter(|name| !available.contains(*name) && !facts.ignored_extensions.contains(*name))
        .cloned()
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(Misfit::NeedsExtension { names: missing }) }
}

fn backticked(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(super) mod tests;
