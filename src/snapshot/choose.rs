//! Which snapshot a checkout restores, and why not another one. Pure.
//!
//! A snapshot fits when every versioned script that it applied is in the checkout with the same
//! checksum, nothing in the checkout would be skipped by the order of versions, and the server can
//! load it. The newest by the source's clock wins. [`Search`] asks for as few manifests as it can:
//! a name may already say that the snapshot is newer than the checkout, and snapshots with equal
//! history hashes share a verdict.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::history::{self, InForce, Role};
use super::manifest::{Applied, Manifest};
use super::name::Name;
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
    /// Oldest first: the next one is at the end.
    left: Vec<Name>,
    by_history: BTreeMap<String, Option<Misfit>>,
    judged: Vec<Candidate>,
    taken: Option<Box<Manifest>>,
    reads: usize,
}

impl<'a> Search<'a> {
    pub fn new(mut names: Vec<Name>, checkout: &'a Checkout, facts: &'a Facts) -> Self {
        names.sort();
        Self {
            checkout,
            facts,
            left: names,
            by_history: BTreeMap::new(),
            judged: Vec::new(),
            taken: None,
            reads: 0,
        }
    }

    /// The manifest to read next and to hand to [`Search::read`]; `None` when all is decided.
    pub fn next_to_read(&mut self) -> Option<&Name> {
        loop {
            let name = self.left.last()?;
            let known = by_name(name, self.checkout)
                .or_else(|| self.by_history.get(&name.history).cloned().flatten());
            let verdict = match known {
                Some(misfit) => Verdict::Unfit(misfit),
                None if self.taken.is_some() => Verdict::Older,
                None => return self.left.last(),
            };
            self.judge(verdict);
        }
    }

    /// Takes what came of reading the one that [`Search::next`] named.
    pub fn read(&mut self, read: Read) {
        self.reads += 1;
        let Some(name) = self.left.last() else { return };
        let manifest = match read {
            Read::Manifest(manifest) => manifest,
            Read::Unfit(misfit) => return self.judge(Verdict::Unfit(misfit)),
        };
        let by_history = history_fits(&manifest.history, self.checkout).err();
        self.by_history.insert(name.history.clone(), by_history.clone());
        match by_history.or_else(|| server_fits(&manifest, self.facts).err()) {
            Some(misfit) => self.judge(Verdict::Unfit(misfit)),
            None => {
                self.taken = Some(manifest);
                self.judge(Verdict::Taken);
            }
        }
    }

    /// How many manifests were read.
    pub fn reads(&self) -> usize {
        self.reads
    }

    /// Every candidate, newest first, and the manifest of the one taken.
    pub fn finish(self) -> (Vec<Candidate>, Option<Manifest>) {
        (self.judged, self.taken.map(|manifest| *manifest))
    }

    /// Whether one was taken.
    pub fn found(&self) -> bool {
        self.taken.is_some()
    }

    fn judge(&mut self, verdict: Verdict) {
        if let Some(name) = self.left.pop() {
            self.judged.push(Candidate { name, verdict });
        }
    }
}

/// What the name alone decides: a script beyond the checkout's last one was applied.
fn by_name(name: &Name, checkout: &Checkout) -> Option<Misfit> {
    let version = name.version.as_ref()?;
    let newer = highest(checkout).is_none_or(|highest| version > highest);
    newer.then(|| Misfit::Newer { version: version.text().to_owned() })
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

/// Whether the server can load it.
///
/// # Errors
/// The first reason why not.
pub fn server_fits(manifest: &Manifest, facts: &Facts) -> Result<(), Misfit> {
    let needed = manifest.server.major();
    if let Some(here) = facts.server_major.filter(|here| *here < needed) {
        return Err(Misfit::NeedsServer { needed, here });
    }
    if facts.proved_only && !manifest.proved {
        return Err(Misfit::NotProved);
    }
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
mod tests;
