//! Which way is faster: an image that is unpacked, or rows that are loaded. Pure.
//!
//! An image has its indexes in it, so there is more of it to fetch and less to do. Over a slow line, or
//! where the cache holds most of the snapshot, the rows win.

use std::time::Duration;

use crate::engine::ServerKind;

/// Pieces that are fetched at once to see how fast the store is; they are wanted anyhow.
pub(super) const PROBED: usize = 2;

/// The most stored bytes of one of them: what a slow line carries within [`PROBE_LIMIT`].
const PROBED_BYTES: u64 = 4_000_000;

/// Plain bytes a second, measured on two cores (docs/benchmarks.md): loading rows with their indexes.
const LOADED: f64 = 90e6;

/// What taking an image costs, measured on two cores (docs/benchmarks.md).
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Plain bytes a second that are unpacked.
    unpacked: f64,
    /// Seconds whatever its size: a stop, a start, a new password, the first connection to its data.
    taken: f64,
}

impl Pace {
    const NATIVE: Self = Self { unpacked: 400e6, taken: 3.0 };
    /// What goes into a container is copied by the daemon, its shim and `tar`; helpers are started.
    const DOCKER: Self = Self { unpacked: 230e6, taken: 4.0 };

    pub(super) fn of(kind: ServerKind) -> Self {
        match kind {
            ServerKind::Docker => Self::DOCKER,
            ServerKind::Native | ServerKind::Embedded | ServerKind::External => Self::NATIVE,
        }
    }
}

/// A store from which less than [`PROBED`] pieces have come by then is slow, however slow it is.
pub(super) const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// How long some bytes took to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    pub bytes: u64,
    pub took: Duration,
}

impl Speed {
    /// The most that it can be where these bytes did not come within [`PROBE_LIMIT`].
    pub(super) fn below(bytes: u64) -> Self {
        Self { bytes, took: PROBE_LIMIT }
    }
}

/// Bytes of one way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// To be fetched still.
    pub missing: u64,
    pub plain: u64,
}

/// How long each way is expected to take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Estimate {
    pub image: Duration,
    pub rows: Duration,
}

/// `None`: nothing has to be fetched.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub(super) fn estimate(image: Work, rows: Work, speed: Option<Speed>, pace: Pace) -> Estimate {
    let rate = speed
        .map_or(f64::INFINITY, |speed| speed.bytes as f64 / speed.took.as_secs_f64().max(1e-6));
    // Fetching goes on beside the work.
    let seconds =
        |work: Work, done: f64| (work.missing as f64 / rate).max(work.plain as f64 / done);
    let time = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Estimate {
        image: time(pace.taken + seconds(image, pace.unpacked)),
        rows: time(seconds(rows, LOADED)),
    }
}

/// What is fetched of pieces with these stored bytes to see how fast the store is, as indices: of the
/// smallest ones a store's answers would be timed and not what it sends.
pub(super) fn probed(sizes: &[u64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    let wanted = |size: u64| (size > PROBED_BYTES, size.abs_diff(PROBED_BYTES));
    order.sort_by_key(|&index| wanted(sizes[index]));
    order.truncate(PROBED);
    order
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Estimate, PROBE_LIMIT, Pace, Speed, Work, estimate, probed};

    fn image_is_faster(image: Work, rows: Work, speed: Option<Speed>) -> bool {
        let Estimate { image, rows } = estimate(image, rows, speed, Pace::NATIVE);
        image <= rows
    }

    #[test]
    fn the_largest_pieces_that_a_slow_line_carries_tell_its_speed() {
        assert_eq!(probed(&[9_000, 1_200_000, 9_000, 14_000_000, 3_900_000, 9_000]), [4, 1]);
        assert_eq!(probed(&[14_000_000, 9_000, 12_000_000]), [1, 2]);
        assert_eq!(probed(&[9_000]), [0]);
        assert!(probed(&[]).is_empty());
    }

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

    #[test]
    fn what_an_image_costs_whatever_its_size_is_more_than_few_rows_do() {
        let of = |plain| Work { missing: 0, plain };
        assert!(!image_is_faster(of(80_000_000), of(250_000_000), None));
        assert!(image_is_faster(of(80_000_000), of(300_000_000), None));
    }

    #[test]
    fn in_docker_it_takes_more_rows_until_an_image_is_faster() {
        let work = Work { missing: 0, plain: 500_000_000 };
        let is_faster = |pace| {
            let Estimate { image, rows } = estimate(work, work, None, pace);
            image <= rows
        };
        assert!(is_faster(Pace::NATIVE) && !is_faster(Pace::DOCKER));
    }

    #[test]
    fn a_store_that_is_slower_than_the_probe_waits_is_taken_for_as_fast_as_it_can_be() {
        let speed = Speed::below(6_000_000);
        assert_eq!((speed.bytes, speed.took), (6_000_000, PROBE_LIMIT));
        let rows = |missing| Work { missing, plain: 300_000_000 };
        let image = Work { missing: 60_000_000, plain: 300_000_000 };
        // Thirty seconds at the least, and three for taking it.
        assert!(!image_is_faster(image, rows(65_000_000), Some(speed)));
        assert!(image_is_faster(image, rows(67_000_000), Some(speed)));
    }
}
