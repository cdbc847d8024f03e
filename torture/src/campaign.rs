//! Seeds on all cores, for a time.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    history::{self, Failure},
    host::Host,
    pools::Bases,
    tally::{Counts, Tally},
};

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first seed; the others follow it.
    pub first_seed: u64,
    /// Only the first seed.
    pub only_first: bool,
    /// What histories are lived on.
    pub host: Host,
    /// Only this cut of each seed.
    pub only_cut: Option<usize>,
    /// How long to go on. The seeds begun by then are finished.
    pub time: Duration,
    /// Threads.
    pub jobs: usize,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was survived.
    pub counts: Counts,
    /// Promises that were found broken: one at most for each thread, since the first ends all.
    pub failures: Vec<Failure>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Tries seeds until the time is over or a promise is found broken. `progress` is called every
/// now and then.
///
/// # Panics
/// If a thread cannot be started.
pub fn run(plan: &Plan, mut progress: impl FnMut(Counts, Duration)) -> Outcome {
    let start = Instant::now();
    let tally = Arc::new(Tally::default());
    let bases = Bases::new();
    let next = AtomicU64::new(plan.first_seed);
    let stop = AtomicBool::new(false);
    let failures = Mutex::new(Vec::new());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > plan.first_seed && (plan.only_first || start.elapsed() >= plan.time) {
                break;
            }
            if let Err(failure) = one(seed, plan, &bases, &tally) {
                stop.store(true, Ordering::Relaxed);
                failures.lock().push(failure);
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            progress(tally.counts(), start.elapsed());
        }
    });
    let failures = failures.into_inner();
    Outcome { counts: tally.counts(), failures, elapsed: start.elapsed() }
}

/// One seed; a panic is a failure as well.
fn one(seed: u64, plan: &Plan, bases: &Bases, tally: &Arc<Tally>) -> Result<(), Failure> {
    let history = || history::run(seed, plan.only_cut, plan.host, bases, tally);
    panic::catch_unwind(AssertUnwindSafe(history)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        let reason = format!("panic: {}", text.unwrap_or_default());
        Err(Failure { seed, cut: None, base: "unknown pool", reason })
    })
}
