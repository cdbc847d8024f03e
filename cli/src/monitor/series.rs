//! The last quarter of an hour, a point a second: whoever opens the dashboard sees what has been.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use siltstone_engine::{Activity, Bound, Explanation, stats::CounterValues};
use siltstone_nbd::{Latencies, Operation};

use super::observation::Watched;

/// Points that are kept.
const KEPT: usize = 15 * 60;
/// Between two points.
const INTERVAL: Duration = Duration::from_secs(1);

/// A second.
#[derive(Clone, Debug, Serialize)]
struct Point {
    /// Counted from 1.
    number: u64,
    /// Its end.
    unix_ms: u64,
    /// By clients and commands.
    written_bytes_per_second: f64,
    read_bytes_per_second: f64,
    writes_per_second: f64,
    reads_per_second: f64,
    flushes_per_second: f64,
    /// Trims and writes of zeros.
    zeroings_per_second: f64,
    /// To the device, in write units.
    unit_bytes_per_second: f64,
    /// Of clients' requests that ended in it.
    read: Option<Quantiles>,
    write: Option<Quantiles>,
    flush: Option<Quantiles>,
    /// What bounded the writes.
    bound: Option<Bound>,
    utilisation: Vec<(Bound, f64)>,
    /// Writers that waited on average for room, and for the backlog or staging memory.
    space_waiters: f64,
    staging_waiters: f64,
    flushers: f64,
}

/// Latencies that so many requests did not exceed, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Quantiles {
    p50_us: f64,
    p95_us: f64,
    p99_us: f64,
    p999_us: f64,
}

impl Quantiles {
    fn of(latencies: &Latencies) -> Option<Self> {
        let us = |share| latencies.quantile_seconds(share).map(|seconds| seconds * 1e6);
        Some(Self { p50_us: us(0.5)?, p95_us: us(0.95)?, p99_us: us(0.99)?, p999_us: us(0.999)? })
    }
}

/// The points. Thread-safe.
#[derive(Default)]
pub(super) struct Series {
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    points: VecDeque<Point>,
    last: Option<Explanation>,
}

impl Series {
    /// All points whose number is higher than `after`, as JSON.
    pub(super) fn json(&self, after: u64) -> String {
        let recent = self.recent();
        let points: Vec<&Point> = recent.points.iter().filter(|p| p.number > after).collect();
        serde_json::to_string(&points).expect("points have names and numbers alone")
    }

    /// What bounded the last second.
    pub(super) fn last_explanation(&self) -> Option<Explanation> {
        self.recent().last.clone()
    }

    fn add(&self, mut point: Point, explanation: Explanation) {
        let mut recent = self.recent();
        point.number = recent.points.back().map_or(0, |newest| newest.number) + 1;
        if recent.points.len() == KEPT {
            recent.points.pop_front();
        }
        recent.points.push_back(point);
        recent.last = Some(explanation);
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        // A point is there or it is not, whatever panicked.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a point each second, in a thread of its own, until it is dropped.
pub(super) struct Sampler {
    series: Arc<Series>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(super) fn start(watched: &Arc<Watched>) -> io::Result<Self> {
        let series = Arc::new(Series::default());
        let (stop, stopped) = mpsc::channel();
        let (watched, to) = (Arc::downgrade(watched), Arc::downgrade(&series));
        let sample = move || sample(&watched, &to, &stopped);
        let thread = thread::Builder::new().name("sampler".into()).spawn(sample)?;
        Ok(Self { series, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn series(&self) -> Arc<Series> {
        Arc::clone(&self.series)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the sampler has ended by a panic; please report this");
        }
    }
}

fn sample(watched: &Weak<Watched>, series: &Weak<Series>, stopped: &mpsc::Receiver<()>) {
    let Some(mut before) = watched.upgrade().map(|watched| Sample::of(&watched)) else { return };
    let mut next = Instant::now() + INTERVAL;
    let wait_until = |next: Instant| {
        let waited = stopped.recv_timeout(next.saturating_duration_since(Instant::now()));
        waited == Err(mpsc::RecvTimeoutError::Timeout)
    };
    while wait_until(next) {
        let (Some(watched), Some(series)) = (watched.upgrade(), series.upgrade()) else { return };
        let now = Sample::of(&watched);
        let explanation = now.activity.since(&before.activity);
        series.add(now.since(&before, &explanation), explanation);
        before = now;
        watched.traffic.forget(|name| watched.pool.volume(name).is_ok());
        // Of a machine that slept, there are no points.
        next = (next + INTERVAL).max(Instant::now());
    }
}

/// Totals at one moment.
struct Sample {
    activity: Activity,
    counters: CounterValues,
    /// Of reads, writes and flushes.
    latencies: BTreeMap<String, [Latencies; 3]>,
}

impl Sample {
    fn of(watched: &Watched) -> Self {
        let traffic = watched.traffic.all().into_iter();
        let measured = [Operation::Read, Operation::Write, Operation::Flush];
        let latencies =
            traffic.map(|(name, traffic)| (name, measured.map(|op| traffic.of(op).latencies)));
        Self {
            activity: watched.pool.activity(),
            counters: watched.pool.counters(),
            latencies: latencies.collect(),
        }
    }

    /// The point between two samples.
    fn since(&self, before: &Self, explanation: &Explanation) -> Point {
        let rate = |of: fn(&CounterValues) -> u64| {
            of(&self.counters).saturating_sub(of(&before.counters)) as f64 / explanation.seconds
        };
        let mut ended = [const { None::<Latencies> }; 3];
        for (name, now) in &self.latencies {
            let earlier = before.latencies.get(name);
            for (at, total) in ended.iter_mut().enumerate() {
                let fresh =
                    earlier.map_or_else(|| now[at].clone(), |then| now[at].since(&then[at]));
                total.get_or_insert_default().add(&fresh);
            }
        }
        let [read, write, flush] =
            ended.map(|latencies| latencies.as_ref().and_then(Quantiles::of));
        let under_way = |name| {
            let stage = explanation.stages.iter().find(|stage| stage.stage == name);
            stage.map_or(0.0, |stage| stage.under_way)
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Point {
            number: 0,
            unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            written_bytes_per_second: explanation.written_bytes_per_second,
            read_bytes_per_second: explanation.read_bytes_per_second,
            writes_per_second: rate(|counters| counters.writes),
            reads_per_second: rate(|counters| counters.reads),
            flushes_per_second: rate(|counters| counters.flushes),
            zeroings_per_second: rate(|counters| counters.zeroings),
            unit_bytes_per_second: explanation.unit_bytes_per_second,
            read,
            write,
            flush,
            bound: explanation.bound,
            utilisation: explanation.utilisation.clone(),
            space_waiters: under_way("space_wait"),
            staging_waiters: under_way("admit_wait"),
            flushers: under_way("commit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use siltstone_engine::{CreateOptions, OpenOptions, Pool, VolumeOptions};

    use super::*;

    #[test]
    fn points_are_bounded_in_number_and_a_reader_gets_those_that_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let options = CreateOptions { size_bytes: Some(128 << 20), ..CreateOptions::default() };
        Pool::create(&path, &options).unwrap();
        let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
        let sample = || Sample {
            activity: pool.activity(),
            counters: pool.counters(),
            latencies: BTreeMap::new(),
        };
        let before = sample();
        let disk = pool.create_volume("disk", &VolumeOptions::new(1 << 20)).unwrap();
        disk.write_at(0, &[7; 8192]).unwrap();
        let now = sample();
        let explanation = now.activity.since(&before.activity);
        let point = now.since(&before, &explanation);
        let written_bytes = point.written_bytes_per_second * explanation.seconds;
        assert_eq!((written_bytes.round(), point.read.is_none()), (8192.0, true));
        let series = Series::default();
        for _ in 0..KEPT + 5 {
            series.add(point.clone(), explanation.clone());
        }
        let read = |after| -> Vec<serde_json::Value> {
            serde_json::from_str(&series.json(after)).unwrap()
        };
        assert_eq!((read(0).len(), read(KEPT as u64 + 3).len()), (KEPT, 2));
        assert_eq!(read(0)[0]["number"], 6);
        pool.close().unwrap();
    }
}
