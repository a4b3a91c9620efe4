//! What a manifest's name says without reading it. Pure.
//!
//! `snapshots/<taken_at>_v<version>_<history>_<stamp>_<id>.json`; names of older programs have no stamp and
//! stay readable. A name is an index of what its manifest says, made so that a listing decides about
//! most snapshots: by its version and stamp alone, or with what reading one of equal history or equal
//! extensions has shown. The manifest is the truth: one whose name says something else is damaged. So a
//! name that lies can hide its own snapshot, or make the guard refuse a server, and no more.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::chunk::{SHORT_HASH, short_hash};
use super::history;
use super::manifest::{Manifest, PREFIX, is_id, is_lower_hex};
use crate::migrate::Version;

/// A manifest's name in the store, taken apart. Ordered by age: the newest is the greatest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// As the store lists it.
    pub object: String,
    pub taken_at: Timestamp,
    /// The highest version that a script brought; `None` when the name does not tell.
    pub version: Option<Version>,
    /// [`super::history::hash`] of its history.
    pub history: String,
    /// `None` in the names of older programs: only the manifest tells.
    pub stamp: Option<Stamp>,
    pub id: String,
}

/// Where a snapshot can be loaded, what it is worth, and where it came from. As text
/// `<server major><p or u>-<extensions>-<system>`: `15p-0123456789ab-fedcba987654`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Of the source's server: an older one cannot load the snapshot.
    pub server_major: u32,
    /// `p`; else `u`.
    pub proved: bool,
    /// Equal where the same extensions are needed, in whatever versions.
    pub extensions: String,
    /// [`system_hash`] of the source's server; `None`, in text `none`, where its role could not ask.
    pub system: Option<String>,
}

/// The name under which `manifest` is published.
pub fn object_name(manifest: &Manifest) -> String {
    made(manifest, Some(&Stamp::of(manifest)))
}

/// What a stamp holds of a server's system identifier.
pub fn system_hash(system_identifier: &str) -> String {
    short_hash(system_identifier.as_bytes())
}

impl Name {
    /// `None` when no snapshot of ours has such a name.
    pub fn parse(object: &str) -> Option<Self> {
        let stem = object.strip_prefix(PREFIX)?.strip_suffix(".json")?;
        let parts: Vec<&str> = stem.split('_').collect();
        let (taken_at, version, history, stamp, id) = match *parts.as_slice() {
            [taken_at, version, history, id] => (taken_at, version, history, None, id),
            [taken_at, version, history, stamp, id] => {
                (taken_at, version, history, Some(Stamp::parse(stamp)?), id)
            }
            _ => return None,
        };
        if !is_short_hash(history) || !is_id(id) {
            return None;
        }
        let version = match version.strip_prefix('v')? {
            "none" | "odd" => None,
            version => Some(Version::parse(version).ok()?),
        };
        let at = DateTime::strptime("%Y%m%dT%H%M%S%.fZ", taken_at).ok()?;
        Some(Self {
            object: object.to_owned(),
            taken_at: at.to_zoned(TimeZone::UTC).ok()?.timestamp(),
            version,
            history: history.to_owned(),
            stamp,
            id: id.to_owned(),
        })
    }

    /// Whether `manifest` has this name: the one that is made today, or that of an older program.
    pub fn is_of(&self, manifest: &Manifest) -> bool {
        let stamp = self.stamp.as_ref().map(|_| Stamp::of(manifest));
        self.object == made(manifest, stamp.as_ref())
    }
}

impl Stamp {
    pub fn of(manifest: &Manifest) -> Self {
        let extensions = manifest.extensions.iter().map(|extension| extension.name.as_str());
        let extensions: Vec<&str> = extensions.collect::<BTreeSet<_>>().into_iter().collect();
        Self {
            server_major: manifest.server.major(),
            proved: manifest.proved,
            extensions: short_hash(extensions.join("\0").as_bytes()),
            system: manifest.server.system_identifier.as_deref().map(system_hash),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (server, hashes) = text.split_once('-')?;
        let (extensions, system) = hashes.split_once('-')?;
        let (server_major, proved) = match server.strip_suffix('p') {
            Some(major) => (major, true),
            None => (server.strip_suffix('u')?, false),
        };
        let system = Some(system).filter(|system| *system != "none");
        if !is_short_hash(extensions) || !system.is_none_or(is_short_hash) {
            return None;
        }
        let stamp = Self {
            server_major: server_major.parse().ok()?,
            proved,
            extensions: extensions.to_owned(),
            system: system.map(str::to_owned),
        };
        // No second way to write one: `+15`, `015`.
        (stamp.to_string() == text).then_some(stamp)
    }
}

impl Display for Stamp {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let worth = if self.proved { 'p' } else { 'u' };
        let system = self.system.as_deref().unwrap_or("none");
        write!(f, "{}{worth}-{}-{system}", self.server_major, self.extensions)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.taken_at, &self.id, &self.object).cmp(&(other.taken_at, &other.id, &other.object))
    }
}

fn made(manifest: &Manifest, stamp: Option<&Stamp>) -> String {
    let taken_at = manifest.taken_at.strftime("%Y%m%dT%H%M%S%.6fZ");
    let version = history::name_version(&manifest.history);
    let history = history::hash(&manifest.history);
    let stamp = stamp.map(|stamp| format!("_{stamp}")).unwrap_or_default();
    format!("{PREFIX}{taken_at}_v{version}_{history}{stamp}_{}.json", manifest.id)
}

fn is_short_hash(text: &str) -> bool {
    text.len() == SHORT_HASH && is_lower_hex(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop, proptest};

    use super::{Name, Stamp, object_name, system_hash};
    use crate::snapshot::choose::tests::snapshot;
    use crate::snapshot::manifest::{Extension, Manifest};

    const OLD: &str = "snapshots/20261101T020304.000005Z_v1.10_0123456789ab_6905a1f80000beef.json";

    const NEW: &str = "snapshots/20261101T020304.000005Z_v1.10_0123456789ab\
        _15p-00112233aabb-fedcba987654_6905a1f80000beef.json";

    #[test]
    fn a_name_is_taken_apart_with_its_stamp_and_without() {
        for object in [OLD, NEW] {
            let name = Name::parse(object).expect("well-formed");
            assert_eq!(name.taken_at.to_string(), "2026-11-01T02:03:04.000005Z");
            let version = name.version.map(|version| version.text().to_owned());
            assert_eq!(version.as_deref(), Some("1.10"));
            assert_eq!(
                (name.history.as_str(), name.id.as_str()),
                ("0123456789ab", "6905a1f80000beef")
            );
            for text in ["none", "odd"] {
                let name = Name::parse(&object.replace("v1.10", &format!("v{text}")));
                assert_eq!(name.expect("well-formed").version, None);
            }
        }
        assert_eq!(Name::parse(OLD).expect("well-formed").stamp, None);
        let stamp = Stamp {
            server_major: 15,
            proved: true,
            extensions: "00112233aabb".to_owned(),
            system: Some("fedcba987654".to_owned()),
        };
        assert_eq!(Name::parse(NEW).expect("well-formed").stamp, Some(stamp));
        let unknown = NEW.replace("15p", "9u").replace("fedcba987654", "none");
        let stamp = Name::parse(&unknown).expect("well-formed").stamp.expect("it has one");
        assert_eq!((stamp.server_major, stamp.proved, stamp.system), (9, false, None));
    }

    #[test]
    fn other_names_are_no_snapshots() {
        for object in [
            "",
            "snapshots/",
            "snapshots/.json",
            "snapshots/notes.json",
            "other/20261101T020304.000005Z_v1_0123456789ab_6905a1f80000beef.json",
            "snapshots/20261101T020304.000005Z_v1_0123456789ab_6905a1f80000beef.json.bak",
            "snapshots/20261301T020304.000005Z_v1_0123456789ab_6905a1f80000beef.json",
            "snapshots/20261101T020304.000005Z_vx_0123456789ab_6905a1f80000beef.json",
            "snapshots/20261101T020304.000005Z_v1_0123456789AB_6905a1f80000beef.json",
            "snapshots/20261101T020304.000005Z_v1_0123456789ab_6905a1f80000bee.json",
            "snapshots/20261101T020304.000005Z_v1_0123456789ab_6905a1f80000beef_x.json",
        ] {
            assert_eq!(Name::parse(object), None, "{object}");
        }
        let stamp = "15p-00112233aabb-fedcba987654";
        for other in [
            "",
            "15",
            "15p",
            "15p-00112233aabb",
            "p-00112233aabb-fedcba987654",
            "15x-00112233aabb-fedcba987654",
            "015p-00112233aabb-fedcba987654",
            "+15p-00112233aabb-fedcba987654",
            "99999999999p-00112233aabb-fedcba987654",
            "15p-00112233aab-fedcba987654",
            "15p-00112233aabb-FEDCBA987654",
            "15p-none-fedcba987654",
            "15p-00112233aabb-fedcba987654-",
            "15p-00112233aabb-fedcba987654_15p-00112233aabb-fedcba987654",
        ] {
            assert_eq!(Name::parse(&NEW.replace(stamp, other)), None, "{other}");
        }
    }

    fn manifests() -> impl Strategy<Value = Manifest> {
        let names = prop::collection::vec("[a-z_-]{1,9}", 0..4);
        let system = prop::option::of("[0-9]{1,19}");
        let at = -2_000_000_000_000_000..4_000_000_000_000_000_i64;
        (at, any::<u64>(), 90_000..990_000_i32, any::<bool>(), names, system).prop_map(
            |(at, id, version_num, proved, names, system_identifier)| {
                let mut manifest = snapshot("2026-11-01T00:00:00Z", Vec::new());
                manifest.taken_at = jiff::Timestamp::from_microsecond(at).expect("in range");
                manifest.id = format!("{id:016x}");
                manifest.server.version_num = version_num;
                manifest.server.system_identifier = system_identifier;
                manifest.proved = proved;
                let extension =
                    |name| Extension { name, version: "1".into(), schema: "public".into() };
                manifest.extensions = names.into_iter().map(extension).collect();
                manifest
            },
        )
    }

    /// As it was made before there were stamps.
    fn without_stamp(object: &str) -> String {
        let parts: Vec<&str> = object.split('_').collect();
        [&parts[..3], &parts[4..]].concat().join("_")
    }

    proptest! {
        #[test]
        fn what_is_made_is_read_back_and_so_is_what_older_programs_made(manifest in manifests()) {
            let object = object_name(&manifest);
            let name = Name::parse(&object).expect("names that we make are ours");
            let stamp = name.stamp.clone().expect("today's names have one");
            assert_eq!(stamp, Stamp::of(&manifest));
            assert_eq!((stamp.server_major, stamp.proved), (manifest.server.major(), manifest.proved));
            assert_eq!(stamp.system, manifest.server.system_identifier.as_deref().map(system_hash));
            let old = Name::parse(&without_stamp(&object)).expect("older names are ours");
            assert_eq!(old.stamp, None);
            for name in [&name, &old] {
                assert_eq!((name.taken_at, &name.id), (manifest.taken_at, &manifest.id));
                assert!(name.is_of(&manifest));
            }
            assert!(crate::store::check_name(&object).is_ok(), "{object}");
        }

        #[test]
        fn a_stamp_that_says_something_else_is_not_of_the_manifest(
            manifest in manifests(),
            other in manifests(),
        ) {
            let stamp = Stamp::of(&other);
            let object = object_name(&manifest);
            let lie = object.replace(&Stamp::of(&manifest).to_string(), &stamp.to_string());
            let name = Name::parse(&lie).expect("well-formed");
            assert_eq!(name.is_of(&manifest), stamp == Stamp::of(&manifest));
        }

        #[test]
        fn no_text_is_too_odd_to_be_looked_at(text in "\\PC{0,80}", stamp in "[0-9a-fpu+_-]{0,40}") {
            let _ = Name::parse(&text);
            let object = format!("snapshots/20261101T020304.000005Z_v1_0123456789ab_{stamp}_6905a1f80000beef.json");
            if let Some(name) = Name::parse(&object) {
                assert_eq!(name.stamp.map(|stamp| stamp.to_string()), Some(stamp));
            }
        }
    }
}
