//! One finding of `seedbed doctor`, and how findings are shown.

use serde::Serialize;

use crate::report::Paint;

/// Whether something will work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Works, but somebody should look at it.
    Warn,
    Fail,
}

/// One finding, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What was looked at: `engine`, `store`, `clock`.
    pub check: &'static str,
    pub state: State,
    pub text: String,
    /// A command to run or a line to edit.
    pub fix: Option<String>,
}

impl Line {
    pub fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, state: State::Ok, text: text.into(), fix: None }
    }

    pub fn warn(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Warn, text: text.into(), fix: given(fix) }
    }

    pub fn fail(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Fail, text: text.into(), fix: given(fix) }
    }

    /// A check that ended with an error; its hints are the fix.
    pub(super) fn error(check: &'static str, error: &crate::error::Error) -> Self {
        let failure = crate::report::Failure::of(error);
        let text = std::iter::once(failure.message).chain(failure.causes).collect::<Vec<_>>();
        // `doctor` cannot be its own fix.
        let hints: Vec<String> =
            failure.hints.into_iter().filter(|hint| !hint.contains("seedbed doctor")).collect();
        Self::fail(check, text.join(": "), hints.join("; "))
    }
}

fn given(fix: impl Into<String>) -> Option<String> {
    Some(fix.into()).filter(|fix| !fix.is_empty())
}

/// The worst state of all.
pub fn worst(lines: &[Line]) -> State {
    lines.iter().map(|line| line.state).max().unwrap_or(State::Ok)
}

/// The lines for people, each with a line break at its end.
pub fn text(lines: &[Line], color: bool) -> String {
    let width = lines.iter().map(|line| line.check.len()).max().unwrap_or(0);
    let mut out = String::new();
    for line in lines {
        let state = match line.state {
            State::Ok => Paint::Green.text("ok  ", color),
            State::Warn => Paint::Yellow.text("warn", color),
            State::Fail => Paint::Red.text("fail", color),
        };
        let body = line.text.replace('\n', &format!("\n{:1$}", "", width + 8));
        out.push_str(&format!("{state}  {:width$}  {body}\n", line.check));
        if let Some(fix) = &line.fix {
            out.push_str(&format!("{:1$}fix: {fix}\n", "", width + 8));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Line, State, text, worst};

    #[test]
    fn lines_line_up_and_the_worst_counts() {
        let lines = [
            Line::ok("engine", "docker: a daemon answers"),
            Line::warn("clock", "90 s behind", "set it by NTP"),
            Line::fail("store", "no such bucket\n(NoSuchBucket)", ""),
        ];
        assert_eq!(worst(&lines), State::Fail);
        assert_eq!(worst(&lines[..2]), State::Warn);
        assert_eq!(
            text(&lines, false),
            "ok    engine  docker: a daemon answers\n\
             warn  clock   90 s behind\n              fix: set it by NTP\n\
             fail  store   no such bucket\n              (NoSuchBucket)\n"
        );
    }
}
