//! Which way is faster: an image that is unpacked, or rows that are loaded. Pure.
//!
//! An image has its indexes in it, so there is more of it to fetch and less to do. Over a slow line, or
//! where the cache holds most of the snapshot, the rows win.

use std::time::Duration;

/// Pieces that are fetched at once to see how fast the store is; they are wanted anyhow.
pub(super) const PROBED: usize = 2;

/// Plain bytes a second, measured on two cores (docs/benchmarks.md): unpacking, and loading rows with
/// their indexes.
const UNPACKED: f64 = 400e6;
const LOADED: f64 = 90e6;

/// How long some bytes took to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    pub bytes: u64,
    pub took: Duration,
}

/// Bytes of one way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// To be fetched still.
    pub missing: u64,
    pub plain: u64,
}

/// Whether unpacking `image` is expected to end before loading `rows` does. `None`: nothing has to be
/// fetched.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub(super) fn image_is_faster(image: Work, rows: Work, speed: Option<Speed>) -> bool {
    let rate = speed
        .map_or(f64::INFINITY, |speed| speed.bytes as f64 / speed.took.as_secs_f64().max(1e-6));
    // Fetching goes on beside the work.
    let seconds =
        |work: Work, done: f64| (work.missing as f64 / rate).max(work.plain as f64 / done);
    seconds(image, UNPACKED) <= seconds(rows, LOADED)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Speed, Work, image_is_faster};

    #[test]
    fn rows_win_over_a_slow_line_and_with_a_full_cache() {
        let image = Work { missing: 470_000_000, plain: 1_500_000_000 };
        let rows = Work { missing: 380_000_000, plain: 1_200_000_000 };
        let line = |bytes: u64| Some(Speed { bytes, took: Duration::from_secs(1) });
        assert!(image_is_faster(image, rows, line(100_000_000)));
        assert!(image_is_faster(image, rows, None));
        assert!(!image_is_faster(image, rows, line(2_000_000)));
        let cached = Work { missing: 20_000_000, ..rows };
        assert!(!image_is_faster(image, cached, line(10_000_000)));
        assert!(image_is_faster(Work { missing: 0, ..image }, cached, line(10_000_000)));
    }
}
