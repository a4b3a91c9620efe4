//! Examples of each reason, then properties against a plain restatement of the rule.

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};

use super::{
    Candidate, Checkout, CheckoutScript, Facts, Misfit, Read, Search, Verdict, extensions_fit,
    history_fits, loads,
};
use crate::migrate::Version;
use crate::snapshot::manifest::{self, Applied, Extension, Manifest, Server};
use crate::snapshot::name::{Name, Stamp, object_name};

fn row(rank: i32, version: Option<&str>, kind: &str, checksum: Option<i32>) -> Applied {
    Applied {
        rank,
        version: version.map(str::to_owned),
        description: "x".to_owned(),
        kind: kind.to_owned(),
        script: format!("V{rank}__x.sql"),
        checksum,
        installed_on: "2026-11-01 02:03:04".to_owned(),
        success: true,
    }
}

/// `("1", 10)`: version 1 applied with checksum 10.
fn applied(versions: &[(&str, i32)]) -> Vec<Applied> {
    let rows = versions.iter().zip(1..);
    rows.map(|((version, sum), rank)| row(rank, Some(version), "SQL", Some(*sum))).collect()
}

fn checkout(versions: &[(&str, i32)]) -> Checkout {
    let script = |(version, checksum): &(&str, i32)| CheckoutScript {
        version: Version::parse(version).expect("a version"),
        checksum: *checksum,
    };
    Checkout { versioned: versions.iter().map(script).collect(), ..Checkout::default() }
}

pub(in crate::snapshot) fn snapshot(taken_at: &str, history: Vec<Applied>) -> Manifest {
    let taken_at = taken_at.parse().expect("a time");
    Manifest {
        format: 1,
        id: manifest::new_id(taken_at),
        taken_at,
        database: "factory".to_owned(),
        server: Server {
            version: "15.18".to_owned(),
            version_num: 150_018,
            system_identifier: Some("7".to_owned()),
            encoding: "UTF8".to_owned(),
            locale_provider: "libc".to_owned(),
            collate: "C".to_owned(),
            ctype: "C".to_owned(),
            locale: None,
            icu_rules: None,
            collation_version: None,
        },
        extensions: Vec::new(),
        history_table: None,
        history,
        schema_fingerprint: "f".to_owned(),
        schema_archive: Vec::new(),
        tables: Vec::new(),
        sequences: Vec::new(),
        large_objects: Vec::new(),
        materialized_views: Vec::new(),
        policy_roles: Vec::new(),
        owners: Vec::new(),
        database_settings: Vec::new(),
        masking_policy: None,
        tool_version: "0.1.0".to_owned(),
        duration_ms: 1,
        proved: false,
    }
}

fn needing(extension: &str, mut manifest: Manifest) -> Manifest {
    let (name, version) = (extension.to_owned(), "1".to_owned());
    manifest.extensions.push(Extension { name, version, schema: "public".to_owned() });
    manifest
}

fn server_fits(manifest: &Manifest, facts: &Facts) -> Result<(), Misfit> {
    loads(&Stamp::of(manifest), facts).and(extensions_fit(manifest, facts))
}

fn name_of(manifest: &Manifest) -> Name {
    Name::parse(&object_name(manifest)).expect("names that we make are ours")
}

/// As older programs named it.
fn old_name_of(manifest: &Manifest) -> Name {
    let object = object_name(manifest);
    let old = object.replace(&format!("_{}", Stamp::of(manifest)), "");
    Name::parse(&old).expect("older names are ours")
}

/// Runs a whole search; returns the verdicts, newest first, and how many manifests were read.
fn run(
    snapshots: &[Manifest],
    checkout: &Checkout,
    facts: &Facts,
    damaged: impl Fn(&Manifest) -> bool,
) -> (Vec<Candidate>, Option<Manifest>, usize) {
    let names = snapshots.iter().map(name_of).collect();
    let (candidates, taken, rounds) = run_named(names, snapshots, checkout, facts, damaged);
    (candidates, taken, rounds.iter().sum())
}

/// The same with names of any form; returns how many manifests were read in each round.
fn run_named(
    names: Vec<Name>,
    snapshots: &[Manifest],
    checkout: &Checkout,
    facts: &Facts,
    damaged: impl Fn(&Manifest) -> bool,
) -> (Vec<Candidate>, Option<Manifest>, Vec<usize>) {
    let mut search = Search::new(names, checkout, facts);
    let mut rounds = Vec::new();
    while !search.is_over() {
        let wanted = search.to_read(16);
        assert!(!wanted.is_empty(), "what is not decided is read");
        rounds.push(wanted.len());
        for name in &wanted {
            let of_name = |snapshot: &&Manifest| snapshot.id == name.id;
            let found = snapshots.iter().find(of_name).expect("it was listed");
            let read = if damaged(found) {
                Read::Unfit(Misfit::Damaged { detail: "bit".to_owned() })
            } else {
                Read::Manifest(Box::new(found.clone()))
            };
            search.read(name, read);
        }
    }
    assert_eq!(search.reads(), rounds.iter().sum::<usize>());
    let (candidates, taken) = search.finish();
    (candidates, taken, rounds)
}

fn verdicts(snapshots: &[Manifest], checkout: &Checkout, facts: &Facts) -> Vec<String> {
    let (candidates, _, _) = run(snapshots, checkout, facts, |_| false);
    candidates.into_iter().map(|candidate| candidate.verdict.to_string()).collect()
}

#[test]
fn f40_each_snapshot_has_its_reason_and_the_newest_fitting_one_is_taken() {
    let here = checkout(&[("1", 10), ("2", 20), ("3", 30)]);
    let mut needs_18 = snapshot("2026-11-06T00:00:00Z", applied(&[("1", 10)]));
    needs_18.server.version_num = 180_001;
    let postgis = needing("postgis", snapshot("2026-11-05T00:00:00Z", applied(&[("1", 10)])));
    let snapshots = [
        snapshot("2026-11-01T00:00:00Z", applied(&[("1", 10)])),
        snapshot("2026-11-04T00:00:00Z", applied(&[("1", 10), ("2", 20)])),
        postgis,
        needs_18,
        snapshot("2026-11-07T00:00:00Z", applied(&[("1", 10), ("3", 30)])),
        snapshot("2026-11-08T00:00:00Z", applied(&[("1", 11), ("2", 20)])),
        snapshot("2026-11-09T00:00:00Z", applied(&[("1", 10), ("2.5", 25), ("3", 30)])),
        snapshot("2026-11-10T00:00:00Z", applied(&[("1", 10), ("4", 40), ("5", 50)])),
    ];
    let facts = Facts {
        server_major: Some(17),
        extensions: Some(["plpgsql".to_owned()].into()),
        ..Facts::default()
    };
    assert_eq!(
        verdicts(&snapshots, &here, &facts),
        [
            "newer than this checkout: version 5 is not here",
            "diverged at version 2.5: it was applied and is not here",
            "diverged at version 1: it was applied with another checksum",
            "version 2 would be skipped: higher ones are applied already, and out-of-order is off",
            "needs a server of version 18 or newer, this one is 17",
            "the server does not have the extension `postgis`",
            "taken: the newest that fits",
            "older than the one taken",
        ]
    );
}

#[test]
fn the_first_version_beyond_the_checkout_is_named_when_the_manifest_was_read() {
    let here = checkout(&[("1", 10), ("3", 30)]);
    let rows = applied(&[("1", 10), ("3", 30), ("4", 40), ("5", 50)]);
    assert_eq!(history_fits(&rows, &here), Err(Misfit::Newer { version: "4".to_owned() }));
}

#[test]
fn markers_apply_nothing_and_what_was_taken_back_is_not_applied() {
    let here = checkout(&[("1", 10), ("2", 20), ("3", 30)]);
    // The schema's marker and repeatables say nothing about versions.
    let mut rows = vec![row(0, None, "SCHEMA", None), row(1, None, "SQL", Some(5))];
    assert_eq!(history_fits(&rows, &here), Ok(()));
    // Versions up to a baseline are in by declaration: neither missing nor skipped.
    rows.push(row(2, Some("2"), "BASELINE", None));
    assert_eq!(history_fits(&rows, &here), Ok(()));
    let adopted = [row(1, Some("1"), "BASELINE", None)];
    assert_eq!(history_fits(&adopted, &Checkout::default()), Ok(()));
    // Taken back at the end: it runs again. In the middle: it would be skipped.
    let mut undone = applied(&[("1", 10), ("2", 20), ("3", 30)]);
    undone.push(row(4, Some("3"), "DELETE", Some(30)));
    assert_eq!(history_fits(&undone, &here), Ok(()));
    undone.push(row(5, Some("3"), "SQL", Some(30)));
    undone.push(row(6, Some("2"), "UNDO_SQL", None));
    assert_eq!(history_fits(&undone, &here), Err(Misfit::Skipped { version: "2".to_owned() }));
    let out_of_order = Checkout { out_of_order: true, ..here.clone() };
    assert_eq!(history_fits(&undone, &out_of_order), Ok(()));
    // A script that failed outside a transaction stays in the history.
    let mut failed = applied(&[("1", 10)]);
    failed[0].success = false;
    assert_eq!(history_fits(&failed, &here), Err(Misfit::Failed { version: "1".to_owned() }));
}

#[test]
fn a_baseline_script_must_be_here_and_covers_what_is_below_it() {
    let mut here = checkout(&[("1", 10), ("2", 20), ("3", 30)]);
    let rows = [row(1, Some("2"), "SQL_BASELINE", Some(22)), row(2, Some("3"), "SQL", Some(30))];
    assert_eq!(history_fits(&rows, &here), Err(Misfit::Missing { version: "2".to_owned() }));
    here.baseline
        .push(CheckoutScript { version: Version::parse("2").expect("a version"), checksum: 22 });
    assert_eq!(history_fits(&rows, &here), Ok(()));
}

#[test]
fn versions_are_compared_as_numbers_and_a_row_without_checksum_matches() {
    let here = checkout(&[("1.10", 10), ("01.9", 9)]);
    assert_eq!(history_fits(&applied(&[("1.9", 9), ("1.10.0", 10)]), &here), Ok(()));
    let program = [row(1, Some("1.9"), "SCRIPT", None)];
    assert_eq!(history_fits(&program, &here), Ok(()));
}

#[test]
fn scripts_that_a_team_removed_may_be_missing_when_it_says_so_but_never_newer_ones() {
    let here = Checkout { ignore_missing: true, ..checkout(&[("2", 20)]) };
    assert_eq!(history_fits(&applied(&[("1", 10), ("2", 20)]), &here), Ok(()));
    let newer = history_fits(&applied(&[("2", 20), ("3", 30)]), &here);
    assert_eq!(newer, Err(Misfit::Newer { version: "3".to_owned() }));
}

#[test]
fn what_is_not_known_of_a_server_rejects_nothing_and_ignored_extensions_do_not_either() {
    let manifest = needing("aws_s3", snapshot("2026-11-01T00:00:00Z", Vec::new()));
    assert_eq!(server_fits(&manifest, &Facts::unknown()), Ok(()));
    let facts = Facts {
        server_major: Some(15),
        extensions: Some(Default::default()),
        ignored_extensions: ["aws_s3".to_owned()].into(),
        proved_only: false,
    };
    assert_eq!(server_fits(&manifest, &facts), Ok(()));
}

#[test]
fn an_unproved_one_is_passed_over_where_only_proved_ones_are_wanted() {
    let mut manifest = snapshot("2026-11-01T00:00:00Z", Vec::new());
    let facts = Facts { proved_only: true, ..Facts::unknown() };
    manifest.proved = false;
    assert_eq!(server_fits(&manifest, &facts), Err(Misfit::NotProved));
    manifest.proved = true;
    assert_eq!(server_fits(&manifest, &facts), Ok(()));
}

/// As many, a second apart, each of which `change` makes into what it is to be, by its place from the
/// oldest on.
fn many(count: usize, change: impl Fn(usize, Manifest) -> Manifest) -> Vec<Manifest> {
    let start = "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().expect("a time");
    let one = |place: usize| {
        let at = start + jiff::SignedDuration::from_secs(place as i64);
        change(place, snapshot(&at.to_string(), applied(&[("1", 10)])))
    };
    (0..count).map(one).collect()
}

#[test]
fn ten_thousand_snapshots_need_few_manifests() {
    let here = checkout(&[("1", 10), ("2", 20)]);
    let histories =
        [applied(&[("1", 10), ("3", 30)]), applied(&[("1", 99), ("2", 20)]), applied(&[("2", 20)])];
    let snapshots = many(10_000, |place, mut one| {
        if place != 5 {
            one.history = histories[place % 3].clone();
        }
        one
    });
    let begun = std::time::Instant::now();
    let (candidates, taken, reads) = run(&snapshots, &here, &Facts::unknown(), |_| false);
    assert_eq!(reads, 3);
    assert_eq!(taken.map(|manifest| manifest.id), Some(snapshots[5].id.clone()));
    assert_eq!(candidates.len(), 10_000);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_stamp_tells_what_the_server_cannot_load_and_what_was_not_proved() {
    let here = checkout(&[("1", 10)]);
    let extensions = Some(["plpgsql".to_owned()].into());
    let facts = Facts { server_major: Some(17), proved_only: true, extensions, ..Facts::unknown() };
    let snapshots = many(900, |place, mut one| {
        one.proved = place % 3 != 0;
        if place % 3 == 1 {
            one.server.version_num = 180_001;
        }
        if place > 2 && place % 3 == 2 { needing("postgis", one) } else { one }
    });
    let (candidates, taken, reads) = run(&snapshots, &here, &facts, |_| false);
    // One of those that need the extension, and the one that is taken.
    assert_eq!(reads, 2);
    assert_eq!(taken.map(|manifest| manifest.id), Some(snapshots[2].id.clone()));
    let reasons: Vec<String> =
        candidates.iter().take(3).map(|candidate| candidate.verdict.to_string()).collect();
    assert_eq!(
        reasons,
        [
            "the server does not have the extension `postgis`",
            "needs a server of version 18 or newer, this one is 17",
            "not proved: it was not restored and compared before it was published",
        ]
    );
}

#[test]
fn names_without_a_stamp_are_read_in_rounds_that_grow() {
    let here = checkout(&[("1", 10)]);
    let facts = Facts { server_major: Some(17), ..Facts::unknown() };
    let snapshots = many(500, |place, mut one| {
        one.server.version_num = if place == 0 { 170_001 } else { 180_001 };
        one
    });
    let names = snapshots.iter().map(old_name_of).collect();
    let (_, taken, rounds) = run_named(names, &snapshots, &here, &facts, |_| false);
    assert_eq!(taken.map(|manifest| manifest.id), Some(snapshots[0].id.clone()));
    assert_eq!(rounds.iter().sum::<usize>(), 500);
    assert_eq!(rounds[..8], [1, 1, 1, 1, 2, 3, 4, 6]);
    assert_eq!(rounds.len(), 39, "{rounds:?}");
}

#[test]
fn what_was_read_ahead_of_a_damaged_one_is_not_read_again() {
    let here = checkout(&[("1", 10)]);
    let facts = Facts { server_major: Some(17), ..Facts::unknown() };
    let snapshots = many(12, |place, mut one| {
        one.server.version_num = if place < 5 { 170_001 } else { 180_001 };
        one
    });
    let names = snapshots.iter().map(old_name_of).collect();
    let damaged = |one: &Manifest| one.id == snapshots[4].id;
    let (candidates, taken, rounds) = run_named(names, &snapshots, &here, &facts, damaged);
    // Seven misfits; the damaged one is the second of the last round, the third is taken.
    assert_eq!(rounds, [1, 1, 1, 1, 2, 3]);
    assert_eq!(taken.map(|manifest| manifest.id), Some(snapshots[3].id.clone()));
    let older = candidates.iter().filter(|candidate| candidate.verdict == Verdict::Older);
    assert_eq!(older.count(), 3);
}

#[test]
fn f40_two_of_one_moment_are_ordered_by_id_and_a_clock_that_jumps_back_loses() {
    let here = checkout(&[("1", 10)]);
    let mut twins = [
        snapshot("2026-11-01T00:00:00Z", applied(&[("1", 10)])),
        snapshot("2026-11-01T00:00:00Z", applied(&[("1", 10)])),
        snapshot("2026-10-31T23:59:00Z", applied(&[("1", 10)])),
    ];
    twins[0].id = "00000000000000ff".to_owned();
    twins[1].id = "00000000000000fe".to_owned();
    let (_, taken, _) = run(&twins, &here, &Facts::unknown(), |_| false);
    assert_eq!(taken.map(|manifest| manifest.id).as_deref(), Some("00000000000000ff"));
}

#[test]
fn f40_a_damaged_one_is_passed_over_by_the_search_and_keeps_its_reason() {
    let here = checkout(&[("1", 10), ("2", 20)]);
    let snapshots = [
        snapshot("2026-11-01T00:00:00Z", applied(&[("1", 10)])),
        snapshot("2026-11-02T00:00:00Z", applied(&[("1", 10), ("2", 20)])),
    ];
    let newest = snapshots[1].id.clone();
    let (candidates, taken, _) =
        run(&snapshots, &here, &Facts::unknown(), |snapshot| snapshot.id == newest);
    assert_eq!(candidates[0].verdict, Verdict::Unfit(Misfit::Damaged { detail: "bit".to_owned() }));
    assert_eq!(taken.map(|manifest| manifest.id), Some(snapshots[0].id.clone()));
}

/// The rule once more, in sets, for histories of plain scripts.
fn rule(rows: &[Applied], checkout: &Checkout) -> bool {
    let number = |text: &str| text.parse::<u32>().expect("small versions");
    let mut last = std::collections::BTreeMap::new();
    for row in rows {
        let version = number(row.version.as_deref().expect("versioned"));
        if row.kind == "DELETE" {
            last.remove(&version);
        } else {
            last.insert(version, row);
        }
    }
    let here: std::collections::BTreeMap<u32, i32> = checkout
        .versioned
        .iter()
        .map(|script| (number(script.version.text()), script.checksum))
        .collect();
    let all_here =
        last.iter().all(|(version, row)| row.success && here.get(version).copied() == row.checksum);
    let highest = last.keys().max().copied().unwrap_or(0);
    let none_skipped = checkout.out_of_order
        || here.keys().all(|version| *version >= highest || last.contains_key(version));
    all_here && none_skipped
}

fn histories() -> impl Strategy<Value = Vec<Applied>> {
    let kind = prop_oneof![8 => Just("SQL"), 1 => Just("DELETE")];
    let one = (1..6_u32, 0..2_i32, kind, prop::bool::weighted(0.95));
    prop::collection::vec(one, 0..7).prop_map(|rows| {
        let rows = rows.into_iter().zip(1..);
        rows.map(|((version, sum, kind, success), rank)| Applied {
            success,
            ..row(rank, Some(&version.to_string()), kind, Some(sum))
        })
        .collect()
    })
}

/// Major version, proved, an extension.
fn servers() -> impl Strategy<Value = (i32, bool, &'static str)> {
    let extension = prop_oneof![Just("plpgsql"), Just("postgis"), Just("citext")];
    (14..17_i32, any::<bool>(), extension)
}

fn checkouts() -> impl Strategy<Value = Checkout> {
    (prop::collection::btree_map(1..6_u32, 0..2_i32, 0..6), any::<bool>()).prop_map(
        |(scripts, out_of_order)| {
            let script = |(version, checksum): (u32, i32)| CheckoutScript {
                version: Version::parse(&version.to_string()).expect("a version"),
                checksum,
            };
            let versioned = scripts.into_iter().map(script).collect();
            Checkout { versioned, out_of_order, ..Checkout::default() }
        },
    )
}

proptest! {
    #[test]
    fn a_history_fits_exactly_when_the_rule_says_so(
        rows in histories(),
        checkout in checkouts(),
    ) {
        assert_eq!(history_fits(&rows, &checkout).is_ok(), rule(&rows, &checkout));
    }

    #[test]
    fn the_search_takes_the_newest_that_fits_whatever_it_reads_and_however_it_is_named(
        made in prop::collection::vec((histories(), 0..5_i64, servers(), any::<bool>()), 0..24),
        checkout in checkouts(),
        server_major in prop::option::of(Just(15)),
        extensions in prop::option::of(Just(["plpgsql".to_owned()].into())),
        proved_only in any::<bool>(),
    ) {
        let start = "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().expect("a time");
        let facts = Facts { server_major, extensions, proved_only, ..Facts::unknown() };
        let mut names = Vec::new();
        let mut snapshots = Vec::new();
        for ((rows, second, (major, proved, extension), old), number) in made.into_iter().zip(0..) {
            let at = start + jiff::SignedDuration::from_secs(second);
            let mut made = needing(extension, snapshot(&at.to_string(), rows));
            made.id = format!("{number:016x}");
            made.server.version_num = major * 10_000;
            made.proved = proved;
            names.push(if old { old_name_of(&made) } else { name_of(&made) });
            snapshots.push(made);
        }
        let best = snapshots
            .iter()
            .filter(|snapshot| rule(&snapshot.history, &checkout))
            .filter(|snapshot| server_fits(snapshot, &facts).is_ok())
            .max_by_key(|snapshot| (snapshot.taken_at, snapshot.id.clone()))
            .map(|snapshot| snapshot.id.clone());
        let (candidates, taken, rounds) =
            run_named(names, &snapshots, &checkout, &facts, |_| false);
        assert_eq!(taken.map(|manifest| manifest.id), best);
        assert_eq!(candidates.len(), snapshots.len());
        assert!(rounds.iter().sum::<usize>() <= snapshots.len());
        let taken = candidates.iter().filter(|c| c.verdict == Verdict::Taken).count();
        assert!(taken <= 1);
        let order = |candidates: &[Candidate]| candidates.is_sorted_by(|a, b| a.name > b.name);
        assert!(order(&candidates), "newest first");
    }

    #[test]
    fn equal_history_hashes_mean_equal_verdicts(
        one in histories(),
        other in histories(),
        checkout in checkouts(),
    ) {
        use crate::snapshot::history::hash;
        if hash(&one) == hash(&other) {
            assert_eq!(history_fits(&one, &checkout), history_fits(&other, &checkout));
        }
    }
}
