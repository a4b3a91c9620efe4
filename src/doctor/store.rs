//! The store: which right each journey needs, and which this account lacks.
//!
//! A protected environment is a source, so its machine takes snapshots; any other restores them. What
//! the machine's own part needs and may not do is a failure, what others need is only told.

use super::line::{Line, State};
use crate::config::keys::quoted;
use crate::context::Context;
use crate::store::{self, Access, CHUNKS, MARKS, Probe, Right, SNAPSHOTS, Store};

/// Journeys that need the same rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Restore,
    Create,
    Prove,
    Prune,
}

const PARTS: [Part; 4] = [Part::Restore, Part::Create, Part::Prove, Part::Prune];

impl Part {
    fn commands(self) -> &'static str {
        match self {
            Self::Restore => "`up`, `reset`, `seed`, `ci`",
            Self::Create => "`snapshot create`",
            Self::Prove => "`snapshot create --prove`",
            Self::Prune => "`snapshot prune`, `snapshot delete`",
        }
    }

    /// The rights that docs/iam.md gives it.
    fn needs(self, right: Right, below: &str) -> bool {
        match (self, right) {
            (Self::Restore, Right::List) => below == SNAPSHOTS,
            (Self::Restore, Right::Read) => below != MARKS,
            (Self::Create, Right::Write) => below != MARKS,
            (Self::Create, Right::Read) => below != CHUNKS,
            (Self::Create, Right::List | Right::Tag) => true,
            (Self::Prove, Right::Read) => below == CHUNKS,
            (Self::Prune, Right::Read) => below != CHUNKS,
            (Self::Prune, Right::Write) => below == MARKS,
            (Self::Prune, Right::List | Right::Remove) => true,
            (Self::Restore, Right::Write | Right::Tag | Right::Remove)
            | (Self::Create, Right::Remove)
            | (Self::Prove, Right::List | Right::Write | Right::Tag | Right::Remove)
            | (Self::Prune, Right::Tag) => false,
        }
    }

    /// What the lack of one of its rights is on a machine whose environment is `protected`, or not.
    fn lack(self, protected: bool) -> State {
        match (self, protected) {
            (Self::Restore, false) | (Self::Create, true) => State::Fail,
            // Whoever takes snapshots of an environment that nobody protects.
            (Self::Create, false) => State::Warn,
            (Self::Restore, true) | (Self::Prove | Self::Prune, _) => State::Ok,
        }
    }
}

/// Lists, writes, reads back and removes.
pub(super) async fn look(ctx: &Context) -> Vec<Line> {
    let store = match Store::open(ctx).await {
        Ok(store) => store,
        Err(error) => return vec![Line::error("store", &error.into())],
    };
    let probe = store.probe().await;
    let mut lines = lines(&store.describe(), &probe, ctx.config.protected);
    // Ages of snapshots are told by the two; a store that refuses for it has said so above.
    let clock = probe.ahead_seconds.map(|ahead| super::clock_line("the store's", ahead));
    lines.extend(clock.map(|line| Line { state: line.state.min(State::Warn), ..line }));
    lines
}

fn lines(store: &str, probe: &Probe, protected: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    let listed = |access: &Access| {
        (access.right, access.below) == (Right::List, SNAPSHOTS) && access.result.is_ok()
    };
    if probe.accesses.iter().any(listed) {
        let text = format!("{store} lists, {} manifests", probe.manifests);
        lines.push(Line::ok("store", text));
    }
    match probe.reads_back {
        Some(true) => lines.push(Line::ok("store", "an object was written; it reads back")),
        Some(false) => lines.push(Line::fail(
            "store",
            "an object was written; it reads back with other bytes",
            "ask whoever runs the store: it changes what is stored",
        )),
        None => {}
    }
    match probe.keeps {
        Some(true) => lines.push(Line::ok("store", "an object that is there is not overwritten")),
        Some(false) => lines.push(Line::warn(
            "store",
            "the store overwrites although told not to (If-None-Match); unique names make that harmless",
            "",
        )),
        None => {}
    }
    for lack in lacks(&probe.accesses, protected) {
        lines.push(lack.line(store));
    }
    for part in [Part::Restore, Part::Create, Part::Prune] {
        let mut tried =
            probe.accesses.iter().filter(|access| part.needs(access.right, access.below));
        if tried.clone().count() > 0 && tried.all(|access| access.result.is_ok()) {
            let text = format!("{}: every right is there", part.commands());
            lines.push(Line::ok("store", text));
        }
    }
    if !probe.left.is_empty() {
        let text = format!("{} cannot be removed and stay, once and for all", quoted(&probe.left));
        lines.push(Line::ok("store", text));
    }
    lines
}

/// A right that is missing, in one part of the store or in several.
struct Lack<'p> {
    error: &'p store::Error,
    below: Vec<&'static str>,
    parts: Vec<Part>,
    state: State,
}

fn lacks(accesses: &[Access], protected: bool) -> Vec<Lack<'_>> {
    let mut lacks: Vec<Lack<'_>> = Vec::new();
    for Access { right, below, result } in accesses {
        let Err(error) = result else { continue };
        let parts: Vec<Part> = PARTS.into_iter().filter(|part| part.needs(*right, below)).collect();
        let worst = parts.iter().map(|part| part.lack(protected)).max().unwrap_or(State::Ok);
        // A manifest without tags is one all the same.
        let state = if *right == Right::Tag { worst.min(State::Warn) } else { worst };
        let same = lacks
            .iter_mut()
            .find(|lack| lack.parts == parts && lack.state == state && is_same(lack.error, error));
        match same {
            Some(lack) => lack.below.push(below),
            None => lacks.push(Lack { error, below: vec![below], parts, state }),
        }
    }
    lacks
}

/// Whether two errors say the same of different objects.
fn is_same(left: &store::Error, right: &store::Error) -> bool {
    match (left, right) {
        (store::Error::Denied { action: left, .. }, store::Error::Denied { action: right, .. }) => {
            left == right
        }
        (left, right) => left.to_string() == right.to_string(),
    }
}

impl Lack<'_> {
    fn line(self, store: &str) -> Line {
        let commands: Vec<&str> = self.parts.iter().map(|part| part.commands()).collect();
        let needs = format!("needed by {}", commands.join(", "));
        let hint = self.error.hints().into_iter().find(|hint| !hint.contains("seedbed doctor"));
        let (text, fix) = match self.error {
            store::Error::Denied { endpoint, action, reason, .. } => {
                let places: Vec<String> =
                    self.below.iter().map(|below| format!("{store}/{below}")).collect();
                let fix = hint.filter(|_| action.starts_with("kms:")).unwrap_or_else(|| {
                    format!("allow `{action}` on {} (docs/iam.md)", quoted(&places))
                });
                let below = quoted(&self.below);
                (format!("{endpoint} denies `{action}` on {below}: {reason}; {needs}"), Some(fix))
            }
            error => (format!("{error}; {needs}"), hint),
        };
        // What another part needs is none of this machine's to mend.
        let fix = fix.filter(|_| self.state != State::Ok);
        Line { check: "store", state: self.state, text, fix }
    }
}
