//! What a manifest's name says without reading it. Pure.

use std::cmp::Ordering;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::manifest::{PREFIX, is_id, is_lower_hex};
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
    pub id: String,
}

impl Name {
    /// `None` when no snapshot of ours has such a name.
    pub fn parse(object: &str) -> Option<Self> {
        let stem = object.strip_prefix(PREFIX)?.strip_suffix(".json")?;
        let mut parts = stem.split('_');
        let (taken_at, version) = (parts.next()?, parts.next()?.strip_prefix('v')?);
        let (history, id) = (parts.next()?, parts.next()?);
        let well_formed =
            parts.next().is_none() && history.len() == 12 && is_lower_hex(history) && is_id(id);
        if !well_formed {
            return None;
        }
        let version = match version {
            "none" | "odd" => None,
            version => Some(Version::parse(version).ok()?),
        };
        let at = DateTime::strptime("%Y%m%dT%H%M%S%.fZ", taken_at).ok()?;
        Some(Self {
            object: object.to_owned(),
            taken_at: at.to_zoned(TimeZone::UTC).ok()?.timestamp(),
            version,
            history: history.to_owned(),
            id: id.to_owned(),
        })
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

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn a_name_is_taken_apart() {
        let object = "snapshots/20261101T020304.000005Z_v1.10_0123456789ab_6905a1f80000beef.json";
        let name = Name::parse(object).expect("well-formed");
        assert_eq!(name.taken_at.to_string(), "2026-11-01T02:03:04.000005Z");
        assert_eq!(name.version.map(|version| version.text().to_owned()), Some("1.10".to_owned()));
        assert_eq!((name.history.as_str(), name.id.as_str()), ("0123456789ab", "6905a1f80000beef"));
        for text in ["none", "odd"] {
            let name = Name::parse(&object.replace("v1.10", &format!("v{text}")));
            assert_eq!(name.expect("well-formed").version, None);
        }
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
    }
}
