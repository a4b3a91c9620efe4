//! Events for people, on standard error: bars on a terminal, plain lines elsewhere.
//!
//! A terminal shows a bar for each step that takes longer than a quarter of a second, redrawn at
//! most ten times a second, and a line for each step that ended. Elsewhere there is a line for each
//! step that ended, and one every ten seconds for a step still under way.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::out::{ColorWhen, Paint, is_dumb, stderr};
use super::progress::Progress;
use super::{Event, Report, Reporter, format};
use crate::env::Env;

/// A step shorter than this would only flicker.
const SHOW_AFTER: Duration = Duration::from_millis(250);
/// Ten redraws a second look smooth and cost nothing.
const REDRAWS_A_SECOND: u8 = 10;
/// Often enough to see that a job lives, seldom enough for a log.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verbosity {
    /// Warnings only.
    Quiet,
    #[default]
    Normal,
    /// Details as well.
    Verbose,
}

/// What the command line says about reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub verbosity: Verbosity,
    pub color: ColorWhen,
    /// `--no-progress`: no bars and no lines about steps under way.
    pub no_progress: bool,
}

/// The reporter for a process with these surroundings.
pub fn reporter(env: &Env, options: Options) -> Reporter {
    let on_terminal = env.stderr_is_terminal && !is_dumb(env) && !options.no_progress;
    let color = options.color.on_stderr(env);
    let screen = if on_terminal {
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_A_SECOND);
        Screen::Bars(MultiProgress::with_draw_target(target))
    } else {
        Screen::Lines(Box::new(|line| stderr(&format!("{line}\n"))))
    };
    Reporter::new(Box::new(Human::new(screen, options, color)))
}

/// Where lines go.
enum Screen {
    Bars(MultiProgress),
    Lines(Box<dyn Fn(&str) + Send + Sync>),
}

struct Human {
    shared: Arc<Shared>,
    /// Dropped with the renderer; that ends the clock's thread.
    _stop: Sender<()>,
}

struct Shared {
    screen: Screen,
    options: Options,
    color: bool,
    steps: Mutex<BTreeMap<u64, Shown>>,
}

/// A step under way.
struct Shown {
    progress: Progress,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Human {
    fn new(screen: Screen, options: Options, color: bool) -> Self {
        let shared = Arc::new(Shared { screen, options, color, steps: Mutex::default() });
        let (stop, stopped) = channel();
        let clock = Arc::clone(&shared);
        // Without a thread there are no bars; lines for ended steps still come.
        let _ = std::thread::Builder::new()
            .name("report".to_owned())
            .spawn(move || run_clock(&clock, &stopped));
        Self { shared, _stop: stop }
    }
}

impl Report for Human {
    fn event(&self, event: &Event) {
        self.shared.event(event);
    }
}

fn run_clock(shared: &Shared, stopped: &Receiver<()>) {
    let pace = match shared.screen {
        Screen::Bars(_) => Duration::from_millis(1000 / u64::from(REDRAWS_A_SECOND)),
        Screen::Lines(_) => Duration::from_secs(1),
    };
    while stopped.recv_timeout(pace) == Err(RecvTimeoutError::Timeout) {
        shared.tick(Instant::now());
    }
}

impl Shared {
    fn event(&self, event: &Event) {
        let quiet = self.options.verbosity == Verbosity::Quiet;
        match event {
            Event::StepStarted { id, name } => {
                let now = Instant::now();
                let progress = Progress::new(name);
                let shown = Shown { progress, started: now, last_line: now, bar: None };
                self.steps().insert(*id, shown);
            }
            Event::StepProgress { id, done, total, unit } => {
                if let Some(step) = self.steps().get_mut(id) {
                    let now = step.started.elapsed();
                    step.progress.count(*done, *total, *unit, now);
                }
            }
            Event::StepMessage { id, text } => {
                if let Some(step) = self.steps().get_mut(id) {
                    step.progress.message.clone_from(text);
                }
            }
            Event::StepDone { id, name, detail, elapsed } => {
                self.end(*id);
                if !quiet {
                    self.line(&self.ended(name, detail, *elapsed, Ending::Done));
                }
            }
            Event::StepFailed { id, name, elapsed } => {
                self.end(*id);
                if !quiet {
                    self.line(&self.ended(name, "", *elapsed, Ending::Failed));
                }
            }
            Event::Note(_) if quiet => {}
            Event::Note(text) => self.line(text),
            Event::Warning(text) => {
                let word = Paint::Yellow.text("warning:", self.color);
                self.line(&format!("{word} {text}"));
            }
            Event::Detail(text) => {
                if self.options.verbosity == Verbosity::Verbose {
                    self.line(&Paint::Dim.text(text, self.color));
                }
            }
        }
    }

    /// Shows steps under way: draws bars, or writes the lines that are due.
    fn tick(&self, now: Instant) {
        if self.options.verbosity == Verbosity::Quiet || self.options.no_progress {
            return;
        }
        let mut due = Vec::new();
        for step in self.steps().values_mut() {
            let running = now.saturating_duration_since(step.started);
            match &self.screen {
                Screen::Bars(bars) if running >= SHOW_AFTER => {
                    draw(
                        step.bar.get_or_insert_with(|| bars.add(new_bar())),
                        &step.progress,
                        running,
                    );
                }
                Screen::Bars(_) => {}
                Screen::Lines(_) => {
                    if now.saturating_duration_since(step.last_line) >= LINE_EVERY {
                        step.last_line = now;
                        due.push(under_way(&step.progress, running));
                    }
                }
            }
        }
        due.iter().for_each(|line| self.line(line));
    }

    fn end(&self, id: u64) {
        let step = self.steps().remove(&id);
        if let (Some(bar), Screen::Bars(bars)) = (step.and_then(|step| step.bar), &self.screen) {
            bar.finish_and_clear();
            bars.remove(&bar);
        }
    }

    fn ended(&self, name: &str, detail: &str, elapsed: Duration, ending: Ending) -> String {
        let what = if detail.is_empty() { name.to_owned() } else { format!("{name}: {detail}") };
        let time = format::duration(elapsed);
        match (&self.screen, ending) {
            (Screen::Bars(_), Ending::Done) => {
                let time = Paint::Dim.text(&time, self.color);
                format!("{} {what}  {time}", Paint::Green.text("✓", self.color))
            }
            (Screen::Bars(_), Ending::Failed) => {
                let time = Paint::Dim.text(&time, self.color);
                format!("{} {what}  {time}", Paint::Red.text("✗", self.color))
            }
            (Screen::Lines(_), Ending::Done) => format!("{what} ({time})"),
            (Screen::Lines(_), Ending::Failed) => format!("not done: {what} ({time})"),
        }
    }

    fn line(&self, line: &str) {
        match &self.screen {
            // Above the bars. When the terminal is gone there is nobody to tell.
            Screen::Bars(bars) => bars.suspend(|| stderr(&format!("{line}\n"))),
            Screen::Lines(write) => write(line),
        }
    }

    fn steps(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Shown>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Done,
    Failed,
}

fn under_way(progress: &Progress, running: Duration) -> String {
    let figures = progress.figures(running);
    let doing = [figures.as_str(), progress.message.as_str()];
    let doing: Vec<&str> = doing.into_iter().filter(|text| !text.is_empty()).collect();
    if doing.is_empty() {
        format!("{}: under way for {} s", progress.name, running.as_secs())
    } else {
        format!("{}: {}", progress.name, doing.join(", "))
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    bar.set_style(spinner_style());
    bar
}

fn draw(bar: &ProgressBar, progress: &Progress, running: Duration) {
    let total = progress.counted.and_then(|counted| counted.total).filter(|total| *total > 0);
    if let (Some(counted), Some(total)) = (progress.counted, total) {
        if bar.length().is_none() {
            bar.set_style(bar_style());
        }
        bar.set_length(total);
        bar.set_position(counted.done.min(total));
    }
    let figures = progress.figures(running);
    let mut text = if figures.is_empty() { format::duration(running) } else { figures };
    if !progress.message.is_empty() {
        text.push_str("  ");
        text.push_str(&progress.message);
    }
    bar.set_prefix(progress.name.clone());
    bar.set_message(text);
    bar.tick();
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix} [{bar:24}] {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use indicatif::{MultiProgress, ProgressDrawTarget, TermLike};

    use super::{Human, Options, Screen, Verbosity};
    use crate::report::{Event, Reporter, Unit};

    fn events(human: &Human) {
        let second = Duration::from_millis(1200);
        let all = [
            Event::StepStarted { id: 1, name: "restore".to_owned() },
            Event::Detail("chunk 1".to_owned()),
            Event::Note("took docker".to_owned()),
            Event::StepProgress { id: 1, done: 3, total: Some(4), unit: Unit::Items },
            Event::StepMessage { id: 1, text: "orders".to_owned() },
            Event::Warning("old".to_owned()),
        ];
        all.iter().for_each(|event| human.shared.event(event));
        human.shared.tick(Instant::now());
        human.shared.tick(Instant::now() + Duration::from_secs(11));
        let ends = [
            Event::StepDone {
                id: 1,
                name: "restore".to_owned(),
                detail: "4 tables".to_owned(),
                elapsed: second,
            },
            Event::StepFailed { id: 2, name: "migrate".to_owned(), elapsed: second },
        ];
        ends.iter().for_each(|event| human.shared.event(event));
    }

    fn lines(options: Options) -> String {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&text);
        let write = move |line: &str| {
            let mut text = sink.lock().expect("no thread panics while writing");
            text.push_str(line);
            text.push('\n');
        };
        events(&Human::new(Screen::Lines(Box::new(write)), options, false));
        std::mem::take(&mut *text.lock().expect("no thread panics while writing"))
    }

    #[test]
    fn logs_get_a_line_a_step_and_one_every_ten_seconds() {
        assert_eq!(
            lines(Options::default()),
            "took docker\nwarning: old\nrestore: 3 of 4 (75 %), orders\n\
             restore: 4 tables (1.2 s)\nnot done: migrate (1.2 s)\n"
        );
    }

    #[test]
    fn quiet_says_warnings_only_and_verbose_says_details() {
        let quiet = Options { verbosity: Verbosity::Quiet, ..Options::default() };
        assert_eq!(lines(quiet), "warning: old\n");
        let verbose = Options { verbosity: Verbosity::Verbose, ..Options::default() };
        assert!(lines(verbose).starts_with("chunk 1\n"));
        let still = Options { no_progress: true, ..Options::default() };
        assert!(!lines(still).contains("75 %"));
    }

    /// A terminal that only remembers what was written to it.
    #[derive(Debug, Clone, Default)]
    struct Written(Arc<Mutex<String>>);

    impl Written {
        fn take(&self) -> String {
            std::mem::take(&mut *self.0.lock().expect("no thread panics while writing"))
        }
    }

    impl TermLike for Written {
        fn width(&self) -> u16 {
            60
        }
        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().expect("no thread panics while writing").push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> std::io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_terminal_gets_a_bar_after_a_quarter_of_a_second() {
        let terminal = Written::default();
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bars = MultiProgress::with_draw_target(target);
        let human = Human::new(Screen::Bars(bars), Options::default(), false);
        human.shared.event(&Event::StepStarted { id: 7, name: "restore".to_owned() });
        human.shared.tick(Instant::now());
        assert_eq!(terminal.take(), "");
        let progress = Event::StepProgress { id: 7, done: 1, total: Some(2), unit: Unit::Items };
        human.shared.event(&progress);
        human.shared.tick(Instant::now() + Duration::from_millis(300));
        let contents = terminal.take();
        assert!(contents.contains("restore [============>"), "{contents}");
        assert!(contents.contains("] 1 of 2 (50 %)"), "{contents}");
    }

    #[test]
    fn a_reporter_ends_its_clock() {
        let human = Human::new(Screen::Lines(Box::new(|_| {})), Options::default(), false);
        let weak = Arc::downgrade(&human.shared);
        drop(Reporter::new(Box::new(human)));
        let deadline = Instant::now() + Duration::from_secs(5);
        while weak.upgrade().is_some() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(weak.upgrade().is_none(), "the clock's thread still holds the renderer");
    }
}
