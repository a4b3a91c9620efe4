//! Which frozen build a checkout goes on from: the one that went the same way for the longest. Pure.
//!
//! Builds of one base differ only in how far they were migrated. One fits when all that it applied is
//! in this checkout with the same checksum and nothing of the checkout would run behind a later
//! script. The one with the fewest scripts to go wins, then the newest: going to and fro between two
//! branches runs only what differs.

use std::time::Duration;

use jiff::Timestamp;

use crate::context::Context;
use crate::database::{Applied, Origin};
use crate::migrate::{Scripts, Version};
use crate::report::format;
use crate::snapshot::choose::{self, Checkout};
use crate::snapshot::{find, history, manifest};

/// What this checkout has.
pub(crate) struct Here {
    checkout: Checkout,
    /// The configured rule of the scripts' order.
    out_of_order: bool,
}

impl Here {
    pub(crate) fn new(ctx: &Context, scripts: &Scripts) -> Self {
        // A build runs scripts in their order: one behind a later one would give something else.
        let checkout = find::checkout(ctx, scripts);
        let out_of_order = checkout.out_of_order;
        Self { checkout: Checkout { out_of_order: false, ..checkout }, out_of_order }
    }

    /// Whether a snapshot with this history is one for this checkout.
    pub(crate) fn takes_rows(&self, applied: &[Applied]) -> bool {
        let rows: Vec<manifest::Applied> = applied.iter().map(as_in_a_manifest).collect();
        let checkout = Checkout { out_of_order: self.out_of_order, ..self.checkout.clone() };
        choose::history_fits(&rows, &checkout).is_ok()
    }

    /// Whether a build of this checkout goes on from behind these.
    pub(crate) fn goes_on_from(&self, applied: &[Applied], origin: Option<&Origin>) -> bool {
        may_go_on(applied, origin) && self.to_go(applied).is_some()
    }

    /// How many versioned scripts are to go after these; `None`: they went another way.
    fn to_go(&self, applied: &[Applied]) -> Option<usize> {
        let rows: Vec<manifest::Applied> = applied.iter().map(as_in_a_manifest).collect();
        choose::history_fits(&rows, &self.checkout).ok()?;
        let last: Option<Version> =
            history::current_version(&rows).and_then(|text| Version::parse(&text).ok());
        let pending = |version: &Version| last.as_ref().is_none_or(|last| version > last);
        let pending = self.checkout.versioned.iter().filter(|script| pending(&script.version));
        Some(pending.count())
    }
}

/// Whether a build may go on from behind these. It runs repeatable scripts behind all others: what they
/// have made would be in the way here, or stay, or go with what they stand on. Those that came with the rows of
/// a snapshot have run before all others in each build of it.
pub(crate) fn may_go_on(applied: &[Applied], origin: Option<&Origin>) -> bool {
    let came = match origin {
        Some(Origin::Snapshot { history_rank: Some(rank), .. }) => *rank,
        Some(Origin::Snapshot { history_rank: None, .. } | Origin::Files | Origin::Empty)
        | None => i32::MIN,
    };
    let is_repeatable =
        |row: &Applied| row.version.is_none() && row.kind != "SCHEMA" && row.kind != "DELETE";
    let has_run = |row: &Applied| is_repeatable(row) && row.rank > came;
    !applied.is_empty() && !applied.iter().any(has_run)
}

pub(crate) fn as_in_a_manifest(row: &Applied) -> manifest::Applied {
    manifest::Applied {
        rank: row.rank,
        version: row.version.clone(),
        description: row.description.clone(),
        kind: row.kind.clone(),
        script: String::new(),
        checksum: row.checksum,
        installed_on: String::new(),
        success: row.success,
    }
}

/// A frozen build to go on from.
pub(crate) struct Nearest<T> {
    pub found: T,
    made_at: Timestamp,
    version: Option<String>,
    /// `None`: it is the rows alone, on which all runs that a build runs.
    to_go: Option<usize>,
}

/// The nearest of those found; `past` gives the history in one, and when it was made.
pub(crate) fn nearest<T>(
    found: Vec<T>,
    past: impl Fn(&T) -> (Vec<Applied>, Timestamp),
    here: &Here,
) -> Option<Nearest<T>> {
    fewest_to_go(found, past, |applied| here.to_go(applied).map(Some))
}

/// The rows alone, where their snapshot is one for this checkout; the newest.
pub(crate) fn ground<T>(
    found: Vec<T>,
    past: impl Fn(&T) -> (Vec<Applied>, Timestamp),
    here: &Here,
) -> Option<Nearest<T>> {
    fewest_to_go(found, past, |applied| here.takes_rows(applied).then_some(None))
}

/// The one with the fewest scripts to go, then the newest; `to_go` gives none for what does not fit.
fn fewest_to_go<T>(
    found: Vec<T>,
    past: impl Fn(&T) -> (Vec<Applied>, Timestamp),
    to_go: impl Fn(&[Applied]) -> Option<Option<usize>>,
) -> Option<Nearest<T>> {
    let fitting = found.into_iter().filter_map(|found| {
        let (applied, made_at) = past(&found);
        let to_go = to_go(&applied)?;
        let rows: Vec<manifest::Applied> = applied.iter().map(as_in_a_manifest).collect();
        Some(Nearest { found, made_at, version: history::current_version(&rows), to_go })
    });
    fitting.min_by_key(|nearest| (nearest.to_go, std::cmp::Reverse(nearest.made_at)))
}

impl<T> Nearest<T> {
    /// What is taken, for the user.
    pub(crate) fn note(&self, kind: &str) -> String {
        let seconds = Timestamp::now().duration_since(self.made_at).as_secs();
        let age = format::age(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        let version = self.version.as_deref().unwrap_or("none");
        let rest = match self.to_go {
            Some(count) => format!("{} to go", format::counted(count as u64, "script")),
            None => "the rows alone, nothing has to be loaded".to_owned(),
        };
        format!("from the {kind} of {age} ago, schema version {version}: {rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Applied, Here, Origin, ground, may_go_on, nearest};
    use crate::migrate::Version;
    use crate::snapshot::choose::{Checkout, CheckoutScript};

    fn applied(scripts: &[(&str, i32)]) -> Vec<Applied> {
        let row = |(rank, (version, checksum)): (usize, &(&str, i32))| Applied {
            rank: i32::try_from(rank).expect("a few"),
            version: (!version.is_empty()).then(|| (*version).to_owned()),
            description: "totals".to_owned(),
            kind: "SQL".to_owned(),
            checksum: Some(*checksum),
            success: true,
        };
        scripts.iter().enumerate().map(row).collect()
    }

    fn here(scripts: &[(&str, i32)]) -> Here {
        let script = |(version, checksum): &(&str, i32)| CheckoutScript {
            version: Version::parse(version).expect("is a version"),
            checksum: *checksum,
        };
        Here {
            checkout: Checkout {
                versioned: scripts.iter().map(script).collect(),
                ..Checkout::default()
            },
            out_of_order: false,
        }
    }

    #[test]
    fn the_deepest_ancestor_is_taken_then_the_newest() {
        let found: Vec<(&str, Vec<Applied>, i64)> = vec![
            ("one", applied(&[("1", 1)]), 9),
            ("two, old", applied(&[("1", 1), ("2", 2)]), 1),
            ("two, new", applied(&[("1", 1), ("2", 2)]), 2),
            ("other two", applied(&[("1", 1), ("2", 22)]), 10),
            ("newer", applied(&[("1", 1), ("2", 2), ("9", 9)]), 11),
            ("skips", applied(&[("1", 1), ("3", 3)]), 12),
        ];
        let past = |found: &(&str, Vec<Applied>, i64)| {
            (found.1.clone(), jiff::Timestamp::from_second(found.2).expect("in range"))
        };
        let take = |scripts: &[(&str, i32)]| {
            let nearest = nearest(found.clone(), past, &here(scripts))?;
            Some((nearest.found.0, nearest.to_go.expect("is a build")))
        };
        assert_eq!(take(&[("1", 1), ("2", 2), ("3", 3), ("4", 4)]), Some(("two, new", 2)));
        assert_eq!(take(&[("1", 1), ("2", 5)]), Some(("one", 1)));
        assert_eq!(take(&[("1", 1), ("3", 3)]), Some(("skips", 0)));
        assert_eq!(take(&[("1", 8)]), None);
    }

    #[test]
    fn rows_alone_are_taken_by_checkouts_that_their_snapshot_fits() {
        let found = vec![("rows", applied(&[("1", 1), ("", 7), ("2", 2)]))];
        let past = |found: &(&str, Vec<Applied>)| (found.1.clone(), jiff::Timestamp::UNIX_EPOCH);
        let is_taken = |here: &Here| ground(found.clone(), past, here).is_some();
        assert!(is_taken(&here(&[("1", 1), ("2", 2)])));
        assert!(is_taken(&here(&[("1", 1), ("2", 2), ("3", 3)])));
        assert!(!is_taken(&here(&[("1", 1)])), "an older checkout");
        assert!(!is_taken(&here(&[("1", 1), ("2", 5)])), "another script");
        let between = [("1", 1), ("1.5", 15), ("2", 2)];
        assert!(!is_taken(&here(&between)));
        assert!(is_taken(&Here { out_of_order: true, ..here(&between) }));
    }

    #[test]
    fn nobody_goes_on_from_behind_a_repeatable() {
        assert!(may_go_on(&applied(&[("1", 1)]), None));
        assert!(!may_go_on(&applied(&[("1", 1), ("", 7)]), None));
        assert!(!may_go_on(&[], None));
    }

    #[test]
    fn a_repeatable_that_came_with_the_rows_is_in_nobodys_way() {
        // Ranks begin at 0.
        let came = |rank| Origin::Snapshot {
            id: "1".to_owned(),
            taken_at: String::new(),
            version: None,
            history_rank: rank,
        };
        let rows = applied(&[("1", 1), ("", 7), ("2", 2)]);
        assert!(may_go_on(&rows, Some(&came(Some(1)))));
        assert!(!may_go_on(&rows, Some(&came(Some(0)))));
        assert!(!may_go_on(&rows, Some(&came(None))));
        assert!(!may_go_on(&rows, Some(&Origin::Files)));
        let again = applied(&[("1", 1), ("", 7), ("2", 2), ("", 8)]);
        assert!(!may_go_on(&again, Some(&came(Some(1)))));
    }
}
