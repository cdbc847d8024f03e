//! What was done in each window of a tenth of a second, and the chart of it.
//!
//! Other programs, and the system's own threads, take processors away for moments, and nothing that is
//! measured can do anything about it. So a window also has the share of the processors' time that was left to
//! this process: what it used, and what nobody did, and of what others used as much as processors were idle beside,
//! for that took nothing away. A rate divided by that share is what the window would have been worth alone on the
//! machine; a pipeline that stands still by its own fault leaves processors idle, and gains nothing by it. The
//! system counts idle time in hundredths of a second, so a share may be off by a tenth.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    cpu_time::{cpu_seconds, idle_seconds, machine_processors},
    error::BenchError,
    plot::{Chart, Line, Mark},
    sample::median,
};

const WINDOW: Duration = Duration::from_millis(100);
/// Windows in a second.
const WINDOWS_A_SECOND: usize = 10;
/// Work that has just begun fills queues and caches: its first windows do not count.
const FIRST_WINDOWS: usize = 5;
/// With a smaller share of the processors nothing can be said.
const LEAST_LEFT: f64 = 0.25;

/// Work watched over time.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Series {
    name: String,
    window_ms: u64,
    bytes_per_second: Vec<f64>,
    /// The share of the processors' time that others left.
    processors_left: Vec<f64>,
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

/// All that is counted, at one moment.
struct Counts {
    at: Instant,
    bytes: u64,
    /// Processor time that this process has used.
    own_seconds: f64,
    /// And that nobody has.
    idle_seconds: f64,
    done: Done,
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
        let processors = machine_processors() as f64;
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
            thread::sleep(WINDOW * FIRST_WINDOWS as u32);
            let count = || Counts {
                at: Instant::now(),
                bytes: bytes.load(Ordering::Relaxed),
                own_seconds: cpu_seconds(),
                idle_seconds: idle_seconds(),
                done: done(),
            };
            let mut before = count();
            for window in 0..windows {
                thread::sleep((before.at + WINDOW).saturating_duration_since(Instant::now()));
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                // A machine that is busy wakes this up late: then the window is longer, and counts as long.
                let now = count();
                let seconds = (now.at - before.at).as_secs_f64();
                series.bytes_per_second.push((now.bytes - before.bytes) as f64 / seconds);
                let own = now.own_seconds - before.own_seconds;
                let idle = now.idle_seconds - before.idle_seconds;
                series.processors_left.push(share_left(seconds * processors, own, idle));
                if now.done.checkpoints > before.done.checkpoints {
                    series.checkpoints.push(window);
                }
                if now.done.collector_rounds > before.done.collector_rounds {
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
        self.processors_left.extend(other.processors_left);
    }

    /// The slowest window's rate, and the median's.
    pub(crate) fn slowest_and_median(&self) -> (f64, f64) {
        least_and_median(&self.bytes_per_second)
    }

    /// The same of the rates that the windows would have had with all processors.
    pub(crate) fn slowest_and_median_alone(&self) -> (f64, f64) {
        let windows = self.bytes_per_second.iter().zip(&self.processors_left);
        least_and_median(&windows.map(|(rate, left)| rate / left).collect::<Vec<_>>())
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

/// Of so much processor time the share that others did not take away from a process that used `own` while
/// nobody used `idle`, all in seconds.
fn share_left(all: f64, own: f64, idle: f64) -> f64 {
    let others = (all - own - idle).max(0.0);
    (1.0 - (others - idle).max(0.0) / all).clamp(LEAST_LEFT, 1.0)
}

fn least_and_median(rates: &[f64]) -> (f64, f64) {
    let least = rates.iter().copied().reduce(f64::min);
    (least.unwrap_or(f64::NAN), median(rates).unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_take_of_the_processors_is_no_dip_and_idling_is() {
        let series = Series {
            bytes_per_second: vec![100.0, 60.0, 100.0, 80.0],
            processors_left: vec![1.0, 0.6, 1.0, 1.0],
            ..Series::default()
        };
        assert_eq!(series.slowest_and_median(), (60.0, 90.0));
        assert_eq!(series.slowest_and_median_alone(), (80.0, 100.0));
    }

    #[test]
    fn others_take_away_what_they_use_while_nothing_is_idle() {
        let is = |share: f64, expected: f64| (share - expected).abs() < 1e-9;
        assert!(is(share_left(0.2, 0.2, 0.0), 1.0));
        assert!(is(share_left(0.2, 0.15, 0.0), 0.75));
        // What is idle as well nobody was kept from.
        assert!(is(share_left(0.2, 0.04, 0.08), 1.0));
        assert!(is(share_left(0.2, 0.1, 0.02), 0.7));
        // Idle time comes in steps.
        assert!(is(share_left(0.2, 0.2, 0.02), 1.0));
        assert!(is(share_left(0.2, 0.0, 0.0), LEAST_LEFT));
    }

    #[test]
    fn every_window_is_counted_with_what_was_left_to_it() {
        let work = |bytes: &AtomicU64, is_over: &AtomicBool| {
            while !is_over.load(Ordering::Relaxed) {
                bytes.fetch_add(1, Ordering::Relaxed);
            }
        };
        let time = Duration::from_millis(300);
        let (series, ()) = Series::watch("test", time, Done::default, work);
        assert_eq!((series.bytes_per_second.len(), series.processors_left.len()), (3, 3));
    }
}
