//! How long requests took, counted in buckets.
//!
//! A bucket is a quarter of a power of two of microseconds wide, so that what is read from the counts is
//! at most a quarter too high; four of them make the octave that is told outside. Counting is two atomic additions.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Parts of an octave. A power of two.
const PARTS: usize = 4;
/// From 1 us to 16.8 s.
const OCTAVES: usize = 24;
/// Those, what is shorter, and what is longer.
const BUCKETS: usize = 1 + OCTAVES * PARTS + 1;
/// Latencies are sorted by multiples of this, of which 1 us is the first with parts of its own.
const UNIT_NS: u64 = 125;
const FIRST_OCTAVE: u32 = 3;

/// Counts latencies. Thread-safe; no lock.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// What a histogram had counted at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    buckets: [u64; BUCKETS],
    sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_ns: AtomicU64::new(0) }
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_ns: 0 }
    }
}

/// Where a latency counts: the first bucket whose bound it does not exceed.
fn bucket(latency_ns: u64) -> usize {
    let units = latency_ns.saturating_sub(1) / UNIT_NS;
    let octave = (units | 1).ilog2();
    if octave < FIRST_OCTAVE {
        return 0;
    }
    let part = (units >> (octave - PARTS.ilog2())) as usize % PARTS;
    (1 + (octave - FIRST_OCTAVE) as usize * PARTS + part).min(BUCKETS - 1)
}

/// The longest latency that counts in a bucket. The last one has no bound, and says a little more than the others.
fn bound_ns(bucket: usize) -> u64 {
    let (octave, part) = (bucket / PARTS, bucket % PARTS);
    ((PARTS + part) as u64 * 1000 / PARTS as u64) << octave
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, latency: Duration) {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(latency_ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(latency_ns, Ordering::Relaxed);
    }

    /// What it has counted.
    #[must_use]
    pub fn latencies(&self) -> Latencies {
        Latencies {
            buckets: self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed)),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

impl Latencies {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together, in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// Those that came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut later = self.clone();
        for (now, then) in later.buckets.iter_mut().zip(&earlier.buckets) {
            *now = now.saturating_sub(*then);
        }
        later.sum_ns = later.sum_ns.saturating_sub(earlier.sum_ns);
        later
    }

    /// Counts those of `other` as well.
    pub fn add(&mut self, other: &Self) {
        for (mine, others) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += others;
        }
        self.sum_ns += other.sum_ns;
    }

    /// The latency in seconds that this share of them does not exceed, at most a quarter too high; `None` if there
    /// are none.
    #[must_use]
    pub fn quantile_seconds(&self, share: f64) -> Option<f64> {
        let count = self.count();
        // At least one, whatever is asked for.
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let found = self.buckets.iter().position(|bucket| {
            seen += bucket;
            seen >= rank
        });
        found.map(|bucket| bound_ns(bucket) as f64 / 1e9)
    }

    /// For each octave, its bound in microseconds and how many do not exceed it; longer ones are only in
    /// [`count`](Self::count).
    pub fn octaves(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut seen = 0;
        self.buckets[..BUCKETS - 1].chunks(PARTS).enumerate().filter_map(move |(at, chunk)| {
            // The first bucket ends where the first octave begins.
            let (ends, rest) = chunk.split_first()?;
            seen += ends;
            let octave = (1 << at, seen);
            seen += rest.iter().sum::<u64>();
            Some(octave)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_are_powers_of_two_of_microseconds_and_belong_to_their_buckets() {
        assert_eq!((bucket(0), bucket(1000), bucket(1001)), (0, 0, 1));
        assert_eq!((bound_ns(0), bound_ns(1), bound_ns(4)), (1000, 1250, 2000));
        for at in 0..BUCKETS - 1 {
            let bound_ns = bound_ns(at);
            assert_eq!((bucket(bound_ns), bucket(bound_ns + 1)), (at, at + 1));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn octaves_count_all_that_is_not_longer() {
        let histogram = Histogram::default();
        for latency_us in [1, 2, 3, 4, 5, 100, 20_000_000] {
            histogram.record(Duration::from_micros(latency_us));
        }
        let latencies = histogram.latencies();
        let octaves: Vec<_> = latencies.octaves().collect();
        assert_eq!(octaves[..4], [(1, 1), (2, 2), (4, 4), (8, 5)]);
        assert_eq!(octaves[7], (128, 6));
        assert_eq!(octaves.len(), OCTAVES + 1);
        assert_eq!(octaves.last(), Some(&(1 << OCTAVES, 6)));
        assert_eq!(latencies.count(), 7);
        assert_eq!(latencies.quantile_seconds(0.0), Some(1e-6));
        assert_eq!(Latencies::default().quantile_seconds(0.5), None);
    }

    proptest! {
        #[test]
        fn a_quantile_is_at_most_a_quarter_too_high(
            mut latencies_us in proptest::collection::vec(2u64..10_000_000, 1..200),
            share in 0.01f64..1.0,
        ) {
            let histogram = Histogram::default();
            for latency_us in &latencies_us {
                histogram.record(Duration::from_micros(*latency_us));
            }
            let before = histogram.latencies();
            histogram.record(Duration::from_secs(1));
            let later = histogram.latencies().since(&before);
            prop_assert_eq!((later.count(), later.sum_seconds()), (1, 1.0));
            latencies_us.sort_unstable();
            let rank = (latencies_us.len() as f64 * share).ceil() as usize;
            let exact = latencies_us[rank.max(1) - 1] as f64 / 1e6;
            let told = before.quantile_seconds(share).unwrap();
            prop_assert!(told >= exact * 0.999 && told <= exact * 1.251, "{} for {}", told, exact);
        }
    }
}
