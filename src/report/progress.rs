//! How far a step has come: rate and time left from the events, in one short text. Pure; times are
//! given by the caller.

use std::time::Duration;

use super::{Unit, format};

/// One step under way, as the renderers keep it.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    pub name: String,
    pub message: String,
    pub counted: Option<Counted>,
}

/// The last `StepProgress`, and the first one, from which rates are counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub done: u64,
    pub total: Option<u64>,
    pub unit: Unit,
    first_done: u64,
    first_at: Duration,
}

impl Progress {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), message: String::new(), counted: None }
    }

    /// Takes a `StepProgress` at `now`, a time since the step's start.
    pub fn count(&mut self, done: u64, total: Option<u64>, unit: Unit, now: Duration) {
        let (first_done, first_at) = match self.counted {
            Some(counted) if counted.unit == unit && counted.done <= done => {
                (counted.first_done, counted.first_at)
            }
            _ => (done, now),
        };
        self.counted = Some(Counted { done, total, unit, first_done, first_at });
    }

    /// `120 MiB of 1.2 GiB (10 %), 12 MiB/s, 1 min 30 s left`; empty before anything was counted.
    pub fn figures(&self, now: Duration) -> String {
        let Some(counted) = self.counted else { return String::new() };
        let amount = |number| match counted.unit {
            Unit::Bytes => format::bytes(number),
            Unit::Rows => format::counted(number, "row"),
            Unit::Items => format::count(number),
        };
        let mut text = amount(counted.done);
        if let Some(total) = counted.total.filter(|total| *total > 0) {
            let percent = (counted.done.min(total) as f64 / total as f64 * 100.0).floor();
            text.push_str(&format!(" of {} ({percent:.0} %)", amount(total)));
        }
        let seconds = now.saturating_sub(counted.first_at).as_secs_f64();
        let moved = counted.done.saturating_sub(counted.first_done);
        // A rate over less than a second says more about buffers than about the transfer.
        if seconds < 1.0 || moved == 0 || counted.unit == Unit::Items {
            return text;
        }
        let rate = moved as f64 / seconds;
        text.push_str(&format!(", {}/s", amount(rate as u64)));
        if let Some(left) = counted.total.and_then(|total| total.checked_sub(counted.done))
            && left > 0
        {
            let left = Duration::from_secs((left as f64 / rate).min(3.6e6).ceil() as u64);
            let left = if left.as_secs() < 60 {
                format!("{} s", left.as_secs())
            } else {
                format::duration(left)
            };
            text.push_str(&format!(", {left} left"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Progress;
    use crate::report::Unit;

    #[test]
    fn figures_hold_amount_rate_and_time_left() {
        let at = Duration::from_secs;
        let mut progress = Progress::new("restore");
        assert_eq!(progress.figures(at(1)), "");
        progress.count(0, Some(100 << 20), Unit::Bytes, at(2));
        assert_eq!(progress.figures(at(2)), "0 B of 100 MiB (0 %)");
        progress.count(20 << 20, Some(100 << 20), Unit::Bytes, at(4));
        assert_eq!(progress.figures(at(4)), "20 MiB of 100 MiB (20 %), 10 MiB/s, 8 s left");
        progress.count(5, None, Unit::Rows, at(5));
        assert_eq!(progress.figures(at(9)), "5 rows");
        progress.count(3, Some(10), Unit::Items, at(10));
        assert_eq!(progress.figures(at(20)), "3 of 10 (30 %)");
    }
}
