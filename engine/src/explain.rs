//! Which part of the pipeline bounds the rate of writes, and what the rate would be without it.
//!
//! Every stage adds up the time that it takes ([`stats`](crate::stats)). Over an interval, a stage's time divided by
//! the interval is how many of its kind were under way on average (Little, "A proof for the queuing
//! formula L = λW", 1961), and divided by how many there can be, its utilisation. The part with the highest
//! utilisation is the bound; if it took no time at all, the next one would be, at a rate that is higher by
//! as much as its utilisation is short of one. Some things are no parts of the pipeline and come before
//! them: writers who wait for room in the pool, and clients who do not send enough, which shows by
//! nobody waiting for the backlog or staging; they may be waiting for their flushes.

use std::{fmt, time::Instant};

use serde::Serialize;
use siltstone_device::{runtime, size::per_second};

use crate::{pool::Pool, stats::StageTime};

/// Writers that wait on average for room, or for staging, below which nobody is said to wait.
const SOME: f64 = 0.02;
/// Flushes under way on average above which clients are said to wait for nothing else.
const MOST: f64 = 0.5;

/// What a pool had done at one moment: totals since it was opened.
#[derive(Clone, Debug)]
pub struct Activity {
    at: Instant,
    processor_ns: u64,
    written_bytes: u64,
    read_bytes: u64,
    device_bytes: u64,
    flushes: u64,
    stages: Vec<StageTime>,
    reducers: usize,
    processors: usize,
}

/// What can bound the rate of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Clients: the pipeline waits for them.
    Clients,
    /// Flushes: the pipeline waits for clients, and these wait until what they wrote is durable.
    Flushes,
    /// Room in the pool: writes wait for garbage collection.
    Room,
    /// Processors, whatever runs on them.
    Processors,
    /// Tasks that fingerprint and compress: there are fewer of them than processors, or they wait for
    /// the device to read summaries.
    Reducers,
    /// The one task that places and publishes write units.
    Sealer,
    /// The device: writes of units are always under way.
    Device,
}

/// A stage over an interval.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StageUse {
    /// The stage.
    pub stage: &'static str,
    /// How often it ran, a second.
    pub runs_per_second: f64,
    /// How long a run took on average, in microseconds.
    pub run_us: f64,
    /// How many were under way on average.
    pub under_way: f64,
}

/// What bounded an interval.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Its length.
    pub seconds: f64,
    /// Bytes that clients wrote, a second.
    pub written_bytes_per_second: f64,
    /// Bytes that clients read, a second.
    pub read_bytes_per_second: f64,
    /// Bytes of write units, a second.
    pub unit_bytes_per_second: f64,
    /// Flushes, a second.
    pub flushes_per_second: f64,
    /// What bounded the writes; `None` if there were none.
    pub bound: Option<Bound>,
    /// What their rate would be without that, and what would bound it then; `None` if that is not known.
    pub without: Option<(f64, Bound)>,
    /// Parts of the pipeline by their utilisation, the highest first.
    pub utilisation: Vec<(Bound, f64)>,
    /// All stages.
    pub stages: Vec<StageUse>,
}

impl Pool {
    /// What the pool has done so far. Cheap.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let core = self.core();
        let counters = core.stats.counters();
        let processors = core.runtime.parallelism();
        Activity {
            at: core.runtime.now(),
            processor_ns: runtime::processor_ns(),
            written_bytes: counters.written_bytes,
            read_bytes: counters.read_bytes,
            device_bytes: counters.unit_bytes,
            flushes: counters.flushes,
            stages: core.stats.stages(),
            reducers: core.tuning.reducers,
            processors,
        }
    }
}

impl Activity {
    /// What bounded the time from `before` until now.
    #[must_use]
    pub fn since(&self, before: &Self) -> Explanation {
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64().max(1e-9);
        let rate = |of: fn(&Self) -> u64| of(self).saturating_sub(of(before)) as f64 / seconds;
        let stages: Vec<StageUse> = self
            .stages
            .iter()
            .zip(&before.stages)
            .map(|(now, then)| {
                let runs = (now.runs - then.runs) as f64;
                let took_seconds = (now.total_ns - then.total_ns) as f64 / 1e9;
                StageUse {
                    stage: now.stage,
                    runs_per_second: runs / seconds,
                    run_us: took_seconds * 1e6 / runs.max(1.0),
                    under_way: took_seconds / seconds,
                }
            })
            .collect();
        let under_way = |names: &[&str]| -> f64 {
            let named = stages.iter().filter(|stage| names.contains(&stage.stage));
            named.map(|stage| stage.under_way).sum()
        };
        let reducing = under_way(&["fingerprint", "index", "gate", "compress"]);
        let mut utilisation = vec![
            (Bound::Processors, rate(|a| a.processor_ns) / 1e9 / self.processors as f64),
            (Bound::Reducers, reducing / self.reducers as f64),
            (Bound::Sealer, under_way(&["seal", "publish"])),
            (Bound::Device, under_way(&["device_busy"])),
        ];
        utilisation.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let written = rate(|a| a.written_bytes);
        let bound = match utilisation[0].0 {
            _ if written == 0.0 => None,
            _ if under_way(&["space_wait"]) > SOME => Some(Bound::Room),
            _ if under_way(&["admit_wait"]) < SOME => match under_way(&["commit"]) {
                flushing if flushing > MOST => Some(Bound::Flushes),
                _ => Some(Bound::Clients),
            },
            part => Some(part),
        };
        let without = match bound {
            // What is not saturated yet would be at the same rate for each of its parts.
            Some(Bound::Clients | Bound::Flushes | Bound::Room) => Some(utilisation[0]),
            Some(_) => Some(utilisation[1]),
            None => None,
        };
        let without = without
            .filter(|(_, used)| *used > 0.0)
            .map(|(next, used)| (written / used.min(1.0), next));
        Explanation {
            seconds,
            written_bytes_per_second: written,
            read_bytes_per_second: rate(|a| a.read_bytes),
            unit_bytes_per_second: rate(|a| a.device_bytes),
            flushes_per_second: rate(|a| a.flushes),
            bound,
            without,
            utilisation,
            stages,
        }
    }
}

/// As people are told of it: "bound by the sealer" reads as a sentence.
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Clients => "clients",
            Self::Flushes => "flushes",
            Self::Room => "room in the pool",
            Self::Processors => "processors",
            Self::Reducers => "reducers",
            Self::Sealer => "sealer",
            Self::Device => "device",
        })
    }
}

impl fmt::Display for StageUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<14} {:>9.0} a second, {:>9.1} us each, {:>7.3} under way",
            self.stage, self.runs_per_second, self.run_us, self.under_way
        )
    }
}

impl Explanation {
    /// What bounded the writes and how much of it was used, in words; "-" if nothing was written.
    #[must_use]
    pub fn bound_in_words(&self) -> String {
        let Some(bound) = self.bound else { return "-".into() };
        match self.utilisation.iter().find(|(part, _)| *part == bound) {
            Some((_, used)) => format!("{bound} {:.0} %", used * 100.0),
            None => bound.to_string(),
        }
    }

    /// What the rate of writes would be without that, in words; empty if that is not known.
    #[must_use]
    pub fn without_in_words(&self) -> String {
        let rate = |bytes: f64| per_second(bytes as u64, 1.0);
        self.without.map_or(String::new(), |(bytes, next)| format!("{}, then {next}", rate(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two seconds in which stages took so many milliseconds, and processors so many of 2 x 2000.
    fn explained(
        written_bytes: u64,
        processor_ms: u64,
        took_ms: &[(&'static str, u64)],
    ) -> Explanation {
        let at = Instant::now();
        let activity = |at, part: u64| Activity {
            at,
            processor_ns: part * processor_ms * 1_000_000,
            written_bytes: part * written_bytes,
            read_bytes: 0,
            device_bytes: 0,
            flushes: part * 10,
            stages: took_ms
                .iter()
                .map(|&(stage, ms)| StageTime {
                    stage,
                    runs: part * 4,
                    total_ns: part * ms * 1_000_000,
                })
                .collect(),
            reducers: 2,
            processors: 2,
        };
        activity(at + Duration::from_secs(2), 1).since(&activity(at, 0))
    }

    #[test]
    fn the_busiest_part_is_the_bound_and_the_next_one_says_what_it_costs() {
        let stages =
            [("admit_wait", 5000), ("compress", 3000), ("seal", 300), ("device_busy", 1000)];
        let found = explained(4000, 3800, &stages);
        assert_eq!(found.bound, Some(Bound::Processors));
        assert_eq!(found.written_bytes_per_second, 2000.0);
        let (rate, next) = found.without.unwrap();
        assert_eq!((next, rate.round()), (Bound::Reducers, (2000.0f64 / 0.75).round()));
        assert_eq!(found.bound_in_words(), "processors 95 %");
        assert_eq!(found.without_in_words(), "2.60 KiB/s, then reducers");
        let parts: Vec<Bound> = found.utilisation.iter().map(|(part, _)| *part).collect();
        assert_eq!(parts, [Bound::Processors, Bound::Reducers, Bound::Device, Bound::Sealer]);
        assert_eq!((found.stages[1].under_way, found.stages[1].run_us), (1.5, 750_000.0));
    }

    #[test]
    fn who_waits_for_nothing_but_clients_is_bound_by_them() {
        let stages = [("admit_wait", 0), ("compress", 400), ("device_busy", 800)];
        let found = explained(4000, 400, &stages);
        assert_eq!(found.bound, Some(Bound::Clients));
        assert_eq!(found.without, Some((2000.0 / 0.4, Bound::Device)));
        assert_eq!(explained(0, 400, &stages).bound, None);
    }

    #[test]
    fn clients_that_flush_whatever_they_write_are_bound_by_that() {
        let stages = [("admit_wait", 0), ("compress", 200), ("commit", 1960)];
        assert_eq!(explained(4000, 300, &stages).bound, Some(Bound::Flushes));
        let stages = [("admit_wait", 0), ("compress", 200), ("commit", 60)];
        assert_eq!(explained(4000, 300, &stages).bound, Some(Bound::Clients));
    }

    #[test]
    fn a_pool_without_room_is_bound_by_that() {
        let stages = [("space_wait", 1500), ("admit_wait", 900), ("compress", 400)];
        assert_eq!(explained(4000, 3900, &stages).bound, Some(Bound::Room));
    }
}
