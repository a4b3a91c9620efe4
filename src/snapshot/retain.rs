//! Which snapshots are kept. Pure.
//!
//! Kept are the newest ones of each database, those within a period, and the newest of each schema
//! version that is still in use, so that a branch that stands behind finds one to restore. The newest
//! of a database is kept whatever the policy says, and one from the future (a clock that jumped) too.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::name::Name;

/// How much is kept. Times in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// That many of each database, the newest.
    pub keep: usize,
    /// And all that are younger than this.
    pub within_seconds: u64,
    /// A schema version counts as in use until its newest snapshot is older than this.
    pub versions_within_seconds: u64,
}

/// A snapshot and the database that it was taken from.
#[derive(Debug, Clone)]
pub struct Held {
    pub name: Name,
    pub database: String,
}

/// What becomes of one snapshot, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    KeptAsNewest,
    /// Among the newest.
    KeptByNumber,
    KeptByAge,
    KeptForItsVersion,
    Removed,
}

impl Fate {
    pub fn is_kept(self) -> bool {
        self != Self::Removed
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::KeptAsNewest => "kept: the newest of its database",
            Self::KeptByNumber => "kept: among the newest",
            Self::KeptByAge => "kept: young enough",
            Self::KeptForItsVersion => "kept: the newest of its schema version",
            Self::Removed => "to be removed",
        })
    }
}

/// The fate of each snapshot, in the order in which they were given. `now` is the store's time.
pub fn plan(held: &[Held], policy: &Policy, now: Timestamp) -> Vec<Fate> {
    let mut newest_first: Vec<usize> = (0..held.len()).collect();
    newest_first.sort_by(|left, right| held[*right].name.cmp(&held[*left].name));
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut versions: BTreeSet<(&str, &str, &str)> = BTreeSet::new();
    let mut fates = vec![Fate::Removed; held.len()];
    for at in newest_first {
        let Held { name, database } = &held[at];
        let age = u64::try_from(now.duration_since(name.taken_at).as_secs()).ok();
        // One from the future is younger than anything.
        let younger = |seconds: u64| age.is_none_or(|age| age < seconds);
        let rank = seen.entry(database).or_default();
        *rank += 1;
        let version = name.version.as_ref().map_or("", |version| version.text());
        let is_newest_of_version = versions.insert((database, version, &name.history));
        fates[at] = if *rank == 1 {
            Fate::KeptAsNewest
        } else if *rank <= policy.keep {
            Fate::KeptByNumber
        } else if younger(policy.within_seconds) {
            Fate::KeptByAge
        } else if is_newest_of_version && younger(policy.versions_within_seconds) {
            Fate::KeptForItsVersion
        } else {
            Fate::Removed
        };
    }
    fates
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

    use super::{Fate, Held, Name, Policy, Timestamp, plan};

    const NOW: i64 = 1_790_000_000;
    const DAY: u64 = 86_400;

    fn held(database: &str, days_ago: i64, version: &str, chance: u32) -> Held {
        let at = Timestamp::from_second(NOW - days_ago * 86_400).expect("in range");
        let object = format!(
            "snapshots/{}_v{version}_{:012x}_{:08x}{chance:08x}.json",
            at.strftime("%Y%m%dT%H%M%S.000000Z"),
            version.len(),
            at.as_second(),
        );
        Held { name: Name::parse(&object).expect("our own name"), database: database.to_owned() }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).expect("in range")
    }

    #[test]
    fn each_rule_keeps_what_it_says() {
        let policy =
            Policy { keep: 2, within_seconds: 10 * DAY, versions_within_seconds: 100 * DAY };
        let all = [
            held("shop", 1, "3", 0),
            held("shop", 8, "3", 0),
            held("shop", 9, "3", 0),
            held("shop", 30, "3", 0),
            held("shop", 40, "2.1", 0),
            held("shop", 41, "2.1", 0),
            held("shop", 200, "1", 0),
            held("crm", 300, "1", 0),
        ];
        assert_eq!(
            plan(&all, &policy, now()),
            [
                Fate::KeptAsNewest,
                Fate::KeptByNumber,
                Fate::KeptByAge,
                Fate::Removed,
                Fate::KeptForItsVersion,
                Fate::Removed,
                Fate::Removed,
                Fate::KeptAsNewest,
            ]
        );
    }

    #[test]
    fn a_clock_that_runs_ahead_keeps_the_newest_and_one_behind_keeps_all() {
        let policy = Policy { keep: 1, within_seconds: DAY, versions_within_seconds: DAY };
        let all = [held("shop", 1, "3", 0), held("shop", 2, "2", 0)];
        let year_2100 = Timestamp::from_second(4_102_444_800).expect("in range");
        assert_eq!(plan(&all, &policy, year_2100), [Fate::KeptAsNewest, Fate::Removed]);
        let past = Timestamp::from_second(NOW - 900 * 86_400).expect("in range");
        assert!(plan(&all, &policy, past).iter().all(|fate| fate.is_kept()));
    }

    proptest! {
        #[test]
        fn the_newest_stays_and_more_is_never_kept_by_asking_for_less(
            snapshots in proptest::collection::vec(
                (0..3_u8, -5..400_i64, 0..4_u8, 0..1000_u32).prop_map(|(database, days, version, chance)| {
                    held(&format!("db{database}"), days, &"1".repeat(usize::from(version) + 1), chance)
                }),
                0..40,
            ),
            keep in 0..6_usize,
            within in 0..400_u64,
            versions in 0..400_u64,
        ) {
            let policy = Policy {
                keep, within_seconds: within * DAY, versions_within_seconds: versions * DAY,
            };
            let fates = plan(&snapshots, &policy, now());
            prop_assert_eq!(fates.len(), snapshots.len());
            for database in ["db0", "db1", "db2"] {
                let of: Vec<usize> = (0..snapshots.len())
                    .filter(|at| snapshots[*at].database == database)
                    .collect();
                let newest = of.iter().max_by_key(|at| &snapshots[**at].name);
                if let Some(newest) = newest {
                    prop_assert!(fates[*newest].is_kept());
                }
                let kept = of.iter().filter(|at| fates[**at].is_kept()).count();
                prop_assert!(kept >= keep.min(of.len()));
            }
            for (at, fate) in fates.iter().enumerate() {
                let age = now().duration_since(snapshots[at].name.taken_at).as_secs();
                if age < i64::try_from(within * DAY).unwrap_or(i64::MAX) {
                    prop_assert!(fate.is_kept());
                }
            }
            let more = Policy { keep: keep + 1, within_seconds: (within + 7) * DAY, ..policy };
            let with_more = plan(&snapshots, &more, now());
            for (fewer, more) in fates.iter().zip(with_more) {
                prop_assert!(!fewer.is_kept() || more.is_kept());
            }
        }
    }
}
