//! Seeds on all cores, for a time.

use std::{
    ops::ControlFlow,
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
    history::{self, Failure, NoSuchCut, Unfinished},
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
    /// Whether `progress` has ended it.
    pub interrupted: bool,
}

/// Tries seeds until the time is over or a promise is found broken. `progress` is called every
/// now and then, and can end it early.
///
/// # Errors
/// If the only cut of the plan cannot be made.
///
/// # Panics
/// If a thread cannot be started.
pub fn run(
    plan: &Plan,
    mut progress: impl FnMut(Counts, Duration) -> ControlFlow<()>,
) -> Result<Outcome, NoSuchCut> {
    let start = Instant::now();
    let tally = Arc::new(Tally::default());
    let bases = Bases::new();
    let begun = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let failures = Mutex::new(Vec::new());
    let no_such_cut = Mutex::new(None);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let number = begun.fetch_add(1, Ordering::Relaxed);
            if number > 0 && (plan.only_first || start.elapsed() >= plan.time) {
                break;
            }
            let seed = plan.first_seed.wrapping_add(number);
            let Err(unfinished) = one(seed, plan, &bases, &tally, &stop) else { continue };
            stop.store(true, Ordering::Relaxed);
            match unfinished {
                Unfinished::Broken(failure) => failures.lock().push(failure),
                Unfinished::NoSuchCut(reason) => *no_such_cut.lock() = Some(reason),
                Unfinished::Stopped => {}
            }
        }
    };
    let mut interrupted = false;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            if progress(tally.counts(), start.elapsed()).is_break() {
                interrupted = true;
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    let failures = failures.into_inner();
    match no_such_cut.into_inner() {
        Some(reason) => Err(reason),
        None => {
            Ok(Outcome { counts: tally.counts(), failures, elapsed: start.elapsed(), interrupted })
        }
    }
}

/// One seed; a panic is a failure as well.
fn one(
    seed: u64,
    plan: &Plan,
    bases: &Bases,
    tally: &Arc<Tally>,
    stop: &AtomicBool,
) -> Result<(), Unfinished> {
    let history = || history::run(seed, plan.only_cut, plan.host, bases, tally, stop);
    panic::catch_unwind(AssertUnwindSafe(history)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        let reason = format!("panic: {}", text.unwrap_or_default());
        Err(Unfinished::Broken(Failure { seed, cut: None, base: "unknown pool", reason }))
    })
}
