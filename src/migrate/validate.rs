//! What does not fit between files and history. Pure.

use serde::Serialize;

use super::Error;
use super::history::short_description;
use super::plan::{Entry, Plan, State};

/// One thing that does not fit; `code` is Flyway's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub code: &'static str,
    pub version: Option<String>,
    pub description: String,
    /// The file, when there is one.
    pub path: Option<String>,
    pub message: String,
}

impl Finding {
    /// A failed row whose script another runner is at.
    pub(super) fn say_it_is_running(&mut self, runner: &str) {
        let is_failed = ["FAILED_VERSIONED_MIGRATION", "FAILED_REPEATABLE_MIGRATION"];
        if let Some((name, _)) = self.message.split_once(DID_NOT_RUN_THROUGH)
            && is_failed.contains(&self.code)
        {
            self.message = format!("{name} is running now: {runner}");
        }
    }

    /// The history's schema is not there.
    pub(super) fn of_missing_schema(schema: &str) -> Self {
        Self {
            code: "SCHEMA_DOES_NOT_EXIST",
            version: None,
            description: String::new(),
            path: None,
            message: format!("the schema `{schema}` is not there"),
        }
    }
}

const DID_NOT_RUN_THROUGH: &str = " did not run through";

/// `type:state` of the setting `ignoreMigrationPatterns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    kind: PatternKind,
    state: PatternState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PatternKind {
    Any,
    Versioned,
    Repeatable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PatternState {
    Any,
    Missing,
    Pending,
    Ignored,
    Future,
}

impl Pattern {
    pub(super) const ANY_PENDING: Self =
        Self { kind: PatternKind::Any, state: PatternState::Pending };

    /// Reads the setting's list.
    pub(super) fn parse_all(texts: &[String]) -> Result<Vec<Self>, Error> {
        texts.iter().filter(|text| !text.trim().is_empty()).map(|text| Self::parse(text)).collect()
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let fail = |reason: String| Error::Setting {
            key: "flyway.ignoreMigrationPatterns".to_owned(),
            reason,
        };
        let Some((kind, state)) = text.trim().split_once(':') else {
            return Err(fail(format!("`{text}` is not `type:state`, as in `*:missing`")));
        };
        let kind = match kind.to_ascii_lowercase().as_str() {
            "*" => PatternKind::Any,
            "versioned" => PatternKind::Versioned,
            "repeatable" => PatternKind::Repeatable,
            _ => {
                return Err(fail(format!(
                    "`{kind}` is no type; types are *, versioned, repeatable"
                )));
            }
        };
        let state = match state.to_ascii_lowercase().as_str() {
            "*" => PatternState::Any,
            "missing" => PatternState::Missing,
            "pending" => PatternState::Pending,
            "ignored" => PatternState::Ignored,
            "future" => PatternState::Future,
            _ => {
                let known = "*, missing, pending, ignored, future";
                return Err(fail(format!("`{state}` is no state; states are {known}")));
            }
        };
        Ok(Self { kind, state })
    }

    pub(super) fn covers_future(self, is_versioned: bool) -> bool {
        self.covers(is_versioned, PatternState::Future)
    }

    pub(super) fn covers_missing(self, is_versioned: bool) -> bool {
        self.covers(is_versioned, PatternState::Missing)
    }

    fn covers(self, is_versioned: bool, state: PatternState) -> bool {
        let kind = match self.kind {
            PatternKind::Any => true,
            PatternKind::Versioned => is_versioned,
            PatternKind::Repeatable => !is_versioned,
        };
        kind && (self.state == PatternState::Any || self.state == state)
    }
}

/// Everything that does not fit and that no pattern covers.
pub fn findings(plan: &Plan<'_>, patterns: &[Pattern]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entry in &plan.entries {
        let ignores = |state: PatternState| {
            patterns.iter().any(|pattern| pattern.covers(entry.version.is_some(), state))
        };
        if let Some(finding) = of_state(entry, ignores) {
            findings.push(finding);
        } else {
            findings.extend(of_difference(entry, plan));
        }
    }
    findings
}

fn of_state(entry: &Entry<'_>, ignores: impl Fn(PatternState) -> bool) -> Option<Finding> {
    let is_versioned = entry.version.is_some();
    let either = |versioned, repeatable| if is_versioned { versioned } else { repeatable };
    let failed = || {
        let text = format!(
            "{}{DID_NOT_RUN_THROUGH}; remove what it left half done, then run `seedbed repair`",
            named(entry)
        );
        Some(finding(
            entry,
            either("FAILED_VERSIONED_MIGRATION", "FAILED_REPEATABLE_MIGRATION"),
            text,
        ))
    };
    let gone = || {
        let code = either(
            "APPLIED_VERSIONED_MIGRATION_NOT_RESOLVED",
            "APPLIED_REPEATABLE_MIGRATION_NOT_RESOLVED",
        );
        let text = format!("{} is applied and has no file here", named(entry));
        Some(finding(entry, code, text))
    };
    let waiting = |reason: &str| {
        let code = either(
            "RESOLVED_VERSIONED_MIGRATION_NOT_APPLIED",
            "RESOLVED_REPEATABLE_MIGRATION_NOT_APPLIED",
        );
        Some(finding(entry, code, format!("{} is not applied{reason}", named(entry))))
    };
    match entry.state {
        State::FutureFailed if ignores(PatternState::Future) => None,
        State::Failed | State::MissingFailed | State::FutureFailed => failed(),
        // Java's migrations have their files where no tool without Java looks.
        State::Missing | State::Future if entry.is_javas() => None,
        State::Missing if !ignores(PatternState::Missing) => gone(),
        State::Future if !ignores(PatternState::Future) => gone(),
        State::Pending if !ignores(PatternState::Pending) => waiting(""),
        State::Ignored if !ignores(PatternState::Ignored) => {
            let is_turned_off =
                entry.script.is_some_and(|script| script.settings.should_execute == Some(false));
            let is_baseline =
                entry.script.is_some_and(|script| script.kind == super::file_name::Kind::Baseline);
            if is_turned_off || is_baseline {
                return None;
            }
            waiting(", and later versions are: set `flyway.outOfOrder=true` to run it all the same")
        }
        State::Outdated if !ignores(PatternState::Pending) => {
            let text = format!("{} has changed since it ran", named(entry));
            Some(finding(entry, "OUTDATED_REPEATABLE_MIGRATION", text))
        }
        State::Missing
        | State::Future
        | State::Pending
        | State::Ignored
        | State::Outdated
        | State::AboveTarget
        | State::BelowBaseline
        | State::IgnoredBaseline
        | State::Baseline
        | State::Success
        | State::OutOfOrder
        | State::Superseded
        | State::Deleted
        | State::Undone => None,
    }
}

/// A versioned file that is not what was applied.
fn of_difference(entry: &Entry<'_>, plan: &Plan<'_>) -> Option<Finding> {
    let (Some(row), Some(script)) = (entry.row, entry.script) else { return None };
    if !matches!(entry.state, State::Success | State::OutOfOrder | State::Baseline) {
        return None;
    }
    let version = entry.version.as_ref()?;
    let is_own_baseline = row.kind.ends_with("_BASELINE");
    if plan.baseline.as_ref().is_some_and(|baseline| version <= baseline) && !is_own_baseline {
        return None;
    }
    if !script.matches_checksum(row.checksum) {
        let applied = row.checksum.map_or_else(|| "none".to_owned(), |sum| sum.to_string());
        let text = format!(
            "{} was changed after it ran: checksum {applied} in the history, {} here",
            named(entry),
            script.checksum
        );
        return Some(finding(entry, "CHECKSUM_MISMATCH", text));
    }
    if row.description != short_description(&script.description) {
        let text = format!(
            "{} is called `{}` in the history and `{}` here",
            named(entry),
            row.description,
            script.description
        );
        return Some(finding(entry, "DESCRIPTION_MISMATCH", text));
    }
    None
}

/// `version 2 (add orders)` or `repeatable (orders view)`, with the file.
fn named(entry: &Entry<'_>) -> String {
    let name = match (entry.script, entry.row) {
        (Some(script), _) => script.script.as_str(),
        (None, Some(row)) => row.script.as_str(),
        (None, None) => "",
    };
    match &entry.version {
        Some(version) => format!("version {version} (`{name}`)"),
        None => format!("repeatable `{name}`"),
    }
}

fn finding(entry: &Entry<'_>, code: &'static str, message: String) -> Finding {
    Finding {
        code,
        version: entry.version.as_ref().map(|version| version.text().to_owned()),
        description: entry.description().to_owned(),
        path: entry.script.map(|script| script.path.to_string()),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::{Pattern, PatternState};

    #[test]
    fn patterns_name_a_type_and_a_state() {
        let parse = |text: &str| Pattern::parse_all(&[text.to_owned()]);
        let pattern = parse("Versioned:Missing").expect("is a pattern")[0];
        assert!(pattern.covers(true, PatternState::Missing));
        assert!(!pattern.covers(false, PatternState::Missing));
        assert!(!pattern.covers(true, PatternState::Pending));
        assert!(parse("*:*").expect("is a pattern")[0].covers(false, PatternState::Future));
        for wrong in ["foo:pending", "*:late", "pending"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
