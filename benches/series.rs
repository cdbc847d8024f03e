//! What was done in each window of a tenth of a second, and the chart of it.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    error::BenchError,
    plot::{Chart, Line, Mark},
    sample::median,
};

const WINDOW: Duration = Duration::from_millis(100);
/// Windows in a second.
const WINDOWS_A_SECOND: usize = 10;
/// Work that has just begun fills queues and caches: its first windows do not count.
const FIRST_WINDOWS: usize = 5;

/// Work watched over time.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Series {
    name: String,
    window_ms: u64,
    bytes_per_second: Vec<f64>,
    /// Windows in which a checkpoint ended.
    checkpoints: Vec<usize>,
    /// Windows in which a round of garbage collection ended.
    collector_rounds: Vec<usize>,
}

/// What has been done so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Done {
    pub(crate) checkpoints: u64,
    pub(crate) collector_rounds: u64,
}

impl Series {
    /// Runs `work`, which is to end when its second argument is true and counts bytes in its first, and
    /// watches it for `time`; `done` says what else has happened.
    pub(crate) fn watch<T>(
        name: &str,
        time: Duration,
        done: impl Fn() -> Done,
        work: impl FnOnce(&AtomicU64, &AtomicBool) -> T + Send,
    ) -> (Self, T)
    where
        T: Send,
    {
        let (bytes, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        let windows = (time.as_secs_f64() * WINDOWS_A_SECOND as f64).ceil() as usize;
        let mut series =
            Self { name: name.into(), window_ms: WINDOW.as_millis() as u64, ..Self::default() };
        let worked = thread::scope(|scope| {
            let work = scope.spawn(|| {
                let worked = work(&bytes, &is_over);
                // It may have failed: then there is nothing left to watch.
                is_over.store(true, Ordering::Relaxed);
                worked
            });
            let mut next = Instant::now() + WINDOW * FIRST_WINDOWS as u32;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let mut before = (Instant::now(), bytes.load(Ordering::Relaxed), done());
            for window in 0..windows {
                next += WINDOW;
                thread::sleep(next.saturating_duration_since(Instant::now()));
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                // A machine that is busy wakes this up late: then the window is longer, and counts as long.
                let now = (Instant::now(), bytes.load(Ordering::Relaxed), done());
                let seconds = (now.0 - before.0).as_secs_f64();
                series.bytes_per_second.push((now.1 - before.1) as f64 / seconds);
                if now.2.checkpoints > before.2.checkpoints {
                    series.checkpoints.push(window);
                }
                if now.2.collector_rounds > before.2.collector_rounds {
                    series.collector_rounds.push(window);
                }
                before = now;
            }
            is_over.store(true, Ordering::Relaxed);
            work.join().expect("the work returns")
        });
        (series, worked)
    }

    /// Takes in windows of the same work at another time.
    pub(crate) fn extend(&mut self, other: Self) {
        self.bytes_per_second.extend(other.bytes_per_second);
    }

    /// The slowest window's rate, and the median's.
    pub(crate) fn slowest_and_median(&self) -> (f64, f64) {
        let slowest = self.bytes_per_second.iter().copied().reduce(f64::min);
        let median = median(&self.bytes_per_second);
        (slowest.unwrap_or(f64::NAN), median.unwrap_or(f64::NAN))
    }

    /// Draws it beside the unavoidable work alone.
    pub(crate) fn draw(&self, file: &Path, alone: &Self) -> Result<(), BenchError> {
        let in_mb = |series: &Self| series.bytes_per_second.iter().map(|rate| rate / 1e6).collect();
        let count = self.bytes_per_second.len();
        // A text at every tenth of the time, and at its end.
        let step = (count / 10).max(1).next_multiple_of(WINDOWS_A_SECOND);
        let tick = |at: usize| match at.is_multiple_of(step) {
            true => (at / WINDOWS_A_SECOND).to_string(),
            false => String::new(),
        };
        let ticks: Vec<String> = (0..count).map(tick).collect();
        let mut of_alone: Vec<f64> = in_mb(alone);
        of_alone.truncate(count);
        let chart = Chart {
            title: &self.name,
            x_title: "seconds",
            unit: "MB/s",
            base: 0.0,
            ticks: &ticks,
            lines: vec![
                Line { name: "siltstone", values: in_mb(self) },
                Line { name: "the work alone", values: of_alone },
            ],
            marks: vec![
                Mark { name: "checkpoint", at: self.checkpoints.clone() },
                Mark { name: "round of collection", at: self.collector_rounds.clone() },
            ],
        };
        std::fs::write(file, chart.svg()).map_err(BenchError::file(file))
    }
}
