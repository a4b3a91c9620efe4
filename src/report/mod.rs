//! What happens is reported as events; only the renderers in here print.
//!
//! Work holds a [`Reporter`] and says what it does: a [`Step`] with optional progress, a note, a
//! warning. Which renderer shows it (bars on a terminal, plain lines, nothing) was decided when the
//! process began. Work never prints and never knows whether anybody looks.

mod ask;
pub mod check;
pub mod failure;
pub mod format;
pub mod human;
pub mod json;
mod out;
mod progress;

pub use ask::ask;
pub use check::Check;
pub use failure::Failure;
pub use human::{Options, Verbosity, reporter};
pub use out::{ColorWhen, Paint, stderr, stdout};

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

/// One thing that happened, as a renderer sees it. Ids of steps are unique in a process.
#[derive(Debug, Clone)]
pub enum Event {
    /// A piece of work began. `name` is a lower-case fragment: `restore snapshot 20261101…`.
    StepStarted { id: u64, name: String },
    /// How far the step has come. `total` is `None` while it is unknown.
    StepProgress { id: u64, done: u64, total: Option<u64>, unit: Unit },
    /// A short text about what the step is doing right now (the table being copied).
    StepMessage { id: u64, text: String },
    /// The step ended well. `detail` is a short fact (`14 tables, 3,362 rows`), possibly empty.
    StepDone { id: u64, name: String, detail: String, elapsed: Duration },
    /// The step was left without being done: an error follows, or the run was interrupted.
    StepFailed { id: u64, name: String, elapsed: Duration },
    /// Something the user wants to know, one line.
    Note(String),
    /// Something the user should look at, one line.
    Warning(String),
    /// A detail for `-v`.
    Detail(String),
}

/// What a progress number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Rows,
    Items,
}

/// Somewhere that events go. The one open set of the program: terminals, plain lines, tests.
pub trait Report: Send + Sync {
    /// Takes one event; must not block for long and must not panic.
    fn event(&self, event: &Event);
}

/// How long one finished step took, for summaries and JSON.
#[derive(Debug, Clone, Serialize)]
pub struct StepRecord {
    pub name: String,
    pub detail: String,
    pub elapsed_ms: u64,
}

/// The handle by which work reports. Cheap to clone; all clones feed one renderer.
#[derive(Clone)]
pub struct Reporter {
    inner: Arc<Inner>,
}

struct Inner {
    sink: Box<dyn Report>,
    next_id: AtomicU64,
    records: Mutex<Vec<StepRecord>>,
    notes: Mutex<Vec<String>>,
    warnings: Mutex<Vec<String>>,
}

impl Reporter {
    /// A reporter that hands every event to `sink`.
    pub fn new(sink: Box<dyn Report>) -> Self {
        Self {
            inner: Arc::new(Inner {
                sink,
                next_id: AtomicU64::new(1),
                records: Mutex::default(),
                notes: Mutex::default(),
                warnings: Mutex::default(),
            }),
        }
    }

    /// A reporter that shows nothing; it still keeps the records.
    pub fn silent() -> Self {
        struct Silent;
        impl Report for Silent {
            fn event(&self, _: &Event) {}
        }
        Self::new(Box::new(Silent))
    }

    /// Begins a step. It counts as failed unless [`Step::done`] is called.
    pub fn step(&self, name: impl Into<String>) -> Step {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let name = name.into();
        self.inner.sink.event(&Event::StepStarted { id, name: name.clone() });
        Step { reporter: self.clone(), id, name, started: Instant::now(), finished: false }
    }

    /// A step that turned out to be one only now, begun at `started`.
    pub fn step_since(&self, name: impl Into<String>, started: Instant) -> Step {
        let mut step = self.step(name);
        step.started = started;
        step
    }

    pub fn note(&self, text: impl Into<String>) {
        let text = text.into();
        lock(&self.inner.notes).push(text.clone());
        self.inner.sink.event(&Event::Note(text));
    }

    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        lock(&self.inner.warnings).push(text.clone());
        self.inner.sink.event(&Event::Warning(text));
    }

    pub fn detail(&self, text: impl Into<String>) {
        self.inner.sink.event(&Event::Detail(text.into()));
    }

    /// The steps that ended well so far, in the order in which they ended.
    pub fn records(&self) -> Vec<StepRecord> {
        self.inner.records.lock().map(|records| records.clone()).unwrap_or_default()
    }

    /// What the user was told so far beside steps and warnings: why this way was taken and not another.
    pub fn notes(&self) -> Vec<String> {
        lock(&self.inner.notes).clone()
    }

    /// The warnings given so far.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.inner.warnings).clone()
    }
}

fn lock(lines: &Mutex<Vec<String>>) -> std::sync::MutexGuard<'_, Vec<String>> {
    lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One piece of work under way. Dropped without [`Step::done`], it is reported as failed.
pub struct Step {
    reporter: Reporter,
    id: u64,
    name: String,
    started: Instant,
    finished: bool,
}

impl Step {
    /// Says how far the step has come; renderers limit the rate themselves.
    pub fn progress(&self, done: u64, total: Option<u64>, unit: Unit) {
        self.reporter.inner.sink.event(&Event::StepProgress { id: self.id, done, total, unit });
    }

    /// Says what the step is busy with.
    pub fn message(&self, text: impl Into<String>) {
        self.reporter.inner.sink.event(&Event::StepMessage { id: self.id, text: text.into() });
    }

    /// Ends the step well. `detail` is a short fact, or empty.
    pub fn done(mut self, detail: impl Into<String>) {
        self.finished = true;
        let (detail, elapsed) = (detail.into(), self.started.elapsed());
        if let Ok(mut records) = self.reporter.inner.records.lock() {
            records.push(StepRecord {
                name: self.name.clone(),
                detail: detail.clone(),
                elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            });
        }
        let name = std::mem::take(&mut self.name);
        self.reporter.inner.sink.event(&Event::StepDone { id: self.id, name, detail, elapsed });
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            let name = std::mem::take(&mut self.name);
            let elapsed = self.started.elapsed();
            self.reporter.inner.sink.event(&Event::StepFailed { id: self.id, name, elapsed });
        }
    }
}
