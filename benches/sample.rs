//! So many things done in such a time, and how it is measured.

use std::time::{Duration, Instant};

use crate::cpu_time::cpu_seconds;

/// So many things done in such a time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    count: u64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Sample {
    /// The same in parts of which each thing has so many.
    #[must_use]
    pub fn times(self, factor: u64) -> Self {
        Self { count: self.count * factor, ..self }
    }

    /// How long it took.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// A second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// A second of all processors' time.
    #[must_use]
    pub fn cpu_rate(&self) -> f64 {
        self.count as f64 / self.cpu_seconds
    }

    /// Microseconds of processor time for each.
    #[must_use]
    pub fn cpu_us_each(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.count as f64
    }
}

/// Measures time, and the processor time of this process.
pub struct Stopwatch {
    start: Instant,
    cpu_start: f64,
}

impl Stopwatch {
    /// From now on.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), cpu_start: cpu_seconds() }
    }

    /// How long ago that was.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// What was done since then.
    #[must_use]
    pub fn stop(self, count: u64) -> Sample {
        let seconds = self.start.elapsed().as_secs_f64();
        Sample { count, seconds, cpu_seconds: cpu_seconds() - self.cpu_start }
    }
}

/// How long each of many things took.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    /// Counts what began at `start` and has just ended.
    pub fn add(&mut self, start: Instant) {
        self.0.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }

    /// Takes in what others have counted.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The microseconds that all but this share of them took less than, exactly.
    pub fn us_at(&mut self, share: f64) -> f64 {
        if self.0.is_empty() {
            return f64::NAN;
        }
        let at = ((self.0.len() - 1) as f64 * share).round() as usize;
        f64::from(*self.0.select_nth_unstable(at).1) / 1e3
    }
}

/// The middle one, or the mean of the two in the middle.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The row of the slowest reads rests on it.
    #[test]
    fn a_percentile_is_the_value_of_its_rank() {
        let mut latencies = Latencies((0..=100).rev().map(|us| us * 1000).collect());
        assert_eq!(latencies.us_at(0.99), 99.0);
        assert_eq!(latencies.us_at(1.0), 100.0);
        assert_eq!(latencies.us_at(0.0), 0.0);
    }

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
