//! Damage: every byte of a small pool's metadata, one after the other, is made another; every
//! sector and block of it is zeroed, replaced by an older version, and swapped with another of its
//! kind; and every block of it cannot be read. Each time the pool is opened and all of it is compared with what was written.
//!
//! What comes of it is one of these:
//!
//! | outcome | meaning |
//! |---|---|
//! | corrected | every block is right, and the damage is named: by a repair, or by `check` |
//! | blocks reported | some blocks say that they are damaged, all others are right |
//! | opening refused | by an error that says what is damaged |
//! | harmless | every block is right, and there is nothing to name: nobody needs what was there |
//! | silent | wrong data, older data, a volume missing, a panic, a hang, an error that does not name the damage, memory without bound |
//!
//! The last is a broken promise. So is it when damage of what stands twice, or of what nobody
//! needs, costs anything, and when damage of a frame costs a block that is not in it.
//!
//! - `life`: the pools, and how they came to be as they are.
//! - `aging`: what places of them held before.
//! - [`structures`]: what each byte of a pool belongs to, by the page on the format.
//! - [`trial`]: one place damaged in one way.
//! - [`verdict`]: what came of it.
//! - [`tally`]: all outcomes, counted.

mod aging;
pub mod life;
pub mod structures;
pub mod tally;
pub mod trial;
pub mod verdict;

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use self::{
    life::{End, Life},
    structures::Kind,
    tally::Tally,
    trial::Trial,
    verdict::Verdict,
};

/// Of so many trials, one also opens the pool for writing, closes it and looks again.
const WRITABLE_EVERY: usize = 16;
/// A trial takes milliseconds. One that takes so long hangs.
const HANG: Duration = Duration::from_secs(60);
/// What a damaged pool may take more memory than a whole one.
const MOST_EXTRA_BYTES: u64 = 64 << 20;
/// After so many broken promises the rest is left alone.
const MOST_VIOLATIONS: usize = 64;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of so many trials only one; all are 1.
    pub every: usize,
    /// Threads.
    pub jobs: usize,
    /// Only this.
    pub only: Option<Trial>,
    /// Tells how much memory was in use at most since it was last asked. Needs one job.
    pub peak_bytes: Option<fn() -> u64>,
}

/// A promise that was broken.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind} at byte {}, {} of the {} pool: {reason}", trial.offset_bytes, trial.form.label(), trial.end)]
pub struct Violation {
    /// By what.
    pub trial: Trial,
    /// What was damaged.
    pub kind: Kind,
    /// What is wrong.
    pub reason: String,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// All outcomes.
    pub tally: Tally,
    /// Promises that were found broken.
    pub violations: Vec<Violation>,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether `progress` has ended it.
    pub interrupted: bool,
}

/// The only trial of a plan cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSuchTrial {
    /// There is nothing.
    #[error("the {end} pool has {size_bytes} bytes: what can be damaged is at 0 to {}, not at {offset_bytes}", size_bytes - 1)]
    OutOfPool {
        /// The pool.
        end: End,
        /// What was asked for.
        offset_bytes: u64,
        /// Its size.
        size_bytes: u64,
    },
    /// What is there would stay as it is.
    #[error("{} changes nothing at byte {} of the {} pool: {}", .0.form.label(), .0.offset_bytes, .0.end, .0.form.needs())]
    ChangesNothing(Trial),
}

/// What jobs share.
struct Campaign {
    plan: Plan,
    lives: Vec<Life>,
    trials: Vec<Trial>,
    next: AtomicUsize,
    tally: Mutex<Tally>,
    violations: Mutex<Vec<Violation>>,
    /// What each job is at, and since when.
    current: Vec<Mutex<Option<(Trial, Instant)>>>,
    stop: AtomicBool,
}

/// Damages pools. `progress` is called every now and then with trials done, and all, and can end
/// it early.
///
/// # Errors
/// If the only trial of the plan cannot be made.
///
/// # Panics
/// If the pools cannot be made.
pub fn run(
    plan: &Plan,
    mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Outcome, NoSuchTrial> {
    let begun = Instant::now();
    let ends = plan.only.map_or(End::ALL.to_vec(), |trial| vec![trial.end]);
    let lives: Vec<_> = ends.into_iter().map(Life::new).collect();
    if let Some(only) = plan.only {
        only.check(&lives[0])?;
    }
    let trials = match plan.only {
        Some(only) => vec![only],
        None => lives.iter().flat_map(trial::all).step_by(plan.every.max(1)).collect(),
    };
    let jobs = if plan.peak_bytes.is_some() { 1 } else { plan.jobs.max(1) };
    let campaign = Arc::new(Campaign {
        plan: *plan,
        lives,
        trials,
        next: AtomicUsize::new(0),
        tally: Mutex::default(),
        violations: Mutex::default(),
        current: (0..jobs).map(|_| Mutex::new(None)).collect(),
        stop: AtomicBool::new(false),
    });
    campaign.check_whole_pools();
    // Not scoped: one that hangs is not waited for.
    let start = |job| {
        let campaign = Arc::clone(&campaign);
        thread::spawn(move || campaign.work(job))
    };
    let workers: Vec<_> = (0..jobs).map(start).collect();
    let mut interrupted = false;
    while workers.iter().any(|worker| !worker.is_finished()) && !campaign.hangs() {
        thread::sleep(Duration::from_millis(50));
        let all = campaign.trials.len();
        if progress(campaign.next.load(Ordering::Relaxed).min(all), all).is_break() {
            interrupted = true;
            campaign.stop.store(true, Ordering::Relaxed);
        }
    }
    let tally = campaign.tally.lock().clone();
    let violations = campaign.violations.lock().clone();
    Ok(Outcome { tally, violations, elapsed: begun.elapsed(), interrupted })
}

impl Campaign {
    fn life(&self, end: End) -> &Life {
        self.lives.iter().find(|life| life.end == end).expect("each trial has its pool")
    }

    /// Without damage there must be nothing to find, or nothing found means nothing.
    fn check_whole_pools(&self) {
        for life in &self.lives {
            let contents = &life.contents;
            let expected = verdict::Expected { contents, frames: None, in_segments: true };
            let verdict = verdict::judge(&life.device.snapshot(), &expected, true);
            assert_eq!(verdict, Verdict::Harmless, "the {} pool without damage", life.end);
        }
    }

    fn work(&self, job: usize) {
        let peak_bytes = || self.plan.peak_bytes.map_or(0, |peak_bytes| peak_bytes());
        peak_bytes();
        // What it takes without damage.
        self.check_whole_pools();
        let most_bytes = peak_bytes() + MOST_EXTRA_BYTES;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&trial) = self.trials.get(number) else { return };
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            *self.current[job].lock() = Some((trial, Instant::now()));
            let life = self.life(trial.end);
            let writable = number.is_multiple_of(WRITABLE_EVERY) || self.plan.only.is_some();
            let mut verdict = trial.run(life, writable);
            *self.current[job].lock() = None;
            let bytes = peak_bytes();
            if bytes > most_bytes {
                verdict = Some(Verdict::Silent(format!("takes {bytes} bytes of memory")));
            }
            if let Some(verdict) = verdict {
                self.note(trial, verdict);
            }
        }
    }

    fn note(&self, trial: Trial, verdict: Verdict) {
        let kind = trial.kind(self.life(trial.end));
        self.tally.lock().add(kind, trial.form, &verdict);
        if let Verdict::Silent(reason) = verdict {
            let mut violations = self.violations.lock();
            violations.push(Violation { trial, kind, reason });
            if violations.len() >= MOST_VIOLATIONS {
                self.stop.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether a trial does not end; it is a violation.
    fn hangs(&self) -> bool {
        let current = self.current.iter().filter_map(|current| *current.lock());
        let hung = current.filter(|(_, since)| since.elapsed() > HANG).map(|(trial, _)| trial);
        let hung: Vec<_> = hung.collect();
        for trial in &hung {
            self.note(*trial, Verdict::Silent("hangs".into()));
        }
        !hung.is_empty()
    }
}

#[cfg(test)]
mod tests;
