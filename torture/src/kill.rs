//! The real program on real files: a child that serves a pool over NBD is killed by SIGKILL while
//! clients work, and started again; then every block must hold what it may.
//!
//! This is the death of a process, not of a machine: what the child has handed to the kernel is
//! there afterwards, synced or not. Lost and torn device writes are for the simulated machines of
//! [`history`](crate::history). Here the kernel, the file, io_uring, the NBD server and the
//! command line take part, and time is real: a seed repeats what clients draw, not what happens.
//!
//! - [`nbd_client`]: a client of our own.
//! - [`journal`]: what a disk may contain after a kill.
//! - `child`: the program as a child process.
//! - `load`: what clients do.
//! - `keeper`: snapshots and clones, kept by commands to the server.
//! - `life`: one pool's rounds of work, kill and comparison.
//! - [`tally`]: what was survived, counted.

mod child;
pub mod journal;
mod keeper;
mod life;
mod load;
pub mod nbd_client;
pub mod tally;

use std::{
    ffi::OsStr,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use siltstone_device::SeededRandom;
use tempfile::TempDir;

use self::{
    child::Place,
    tally::{Counts, Tally},
};

/// The name of a pool in its folder.
const POOL: &str = "pool.silt";

/// The program under test.
pub trait Program: Sync {
    /// The command that serves a pool on a unix socket until it is killed. Its standard input
    /// ends when this process does: it should end then, too.
    fn serve(&self, pool: &Path, socket: &Path) -> Command;
    /// The command that makes a change of snapshots or clones in a pool that is perhaps being served,
    /// and succeeds if it is made.
    fn change(&self, pool: &Path, change: &SnapshotChange<'_>) -> Command;
    /// The command that checks a pool, and succeeds if it is sound.
    fn check(&self, pool: &Path) -> Command;
}

/// A change that an operator makes by a command while clients work. Snapshots are named with their
/// volumes, as in `disk@before`.
#[derive(Clone, Copy, Debug)]
pub enum SnapshotChange<'a> {
    /// A snapshot is taken.
    Take {
        /// Its name.
        snapshot: &'a str,
    },
    /// It is deleted.
    Delete {
        /// Its name.
        snapshot: &'a str,
    },
    /// Its volume goes back to it.
    RollBack {
        /// Its name.
        snapshot: &'a str,
    },
    /// A volume is made from it.
    Clone {
        /// The snapshot's name.
        snapshot: &'a str,
        /// The new volume's name.
        name: &'a str,
    },
    /// Such a volume is deleted.
    DeleteClone {
        /// Its name.
        name: &'a str,
    },
}

impl<'a> SnapshotChange<'a> {
    /// The arguments by which `siltstone` makes it.
    #[must_use]
    pub fn arguments(&self, pool: &'a Path) -> Vec<&'a OsStr> {
        let (words, first, second): (&[&str], _, _) = match *self {
            Self::Take { snapshot } => (&["snapshot", "create"], snapshot, None),
            Self::Delete { snapshot } => (&["snapshot", "delete"], snapshot, None),
            Self::RollBack { snapshot } => (&["snapshot", "rollback"], snapshot, None),
            Self::Clone { snapshot, name } => (&["clone"], snapshot, Some(name)),
            Self::DeleteClone { name } => (&["volume", "delete"], name, None),
        };
        let words = words.iter().map(OsStr::new).chain([pool.as_os_str(), OsStr::new(first)]);
        words.chain(second.map(OsStr::new)).collect()
    }
}

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Rounds begun by then are finished.
    Time(Duration),
    /// So many kills under load, of all jobs together.
    Kills(u64),
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What clients and pools are drawn from.
    pub seed: u64,
    /// How long to go on.
    pub limit: Limit,
    /// Pools at a time.
    pub jobs: usize,
    /// Where pools are made.
    pub directory: PathBuf,
}

/// A promise that was broken.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}\n(the pool is kept: {pool})")]
pub struct Failure {
    /// What is wrong.
    pub reason: String,
    /// The pool, as it was left.
    pub pool: PathBuf,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was survived.
    pub counts: Counts,
    /// Promises that were found broken: one at most for each job, since the first ends all.
    pub failures: Vec<Failure>,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether `progress` has ended it.
    pub interrupted: bool,
}

/// What jobs share.
struct Campaign<'a> {
    program: &'a dyn Program,
    tally: Tally,
    begun: Instant,
    limit: Limit,
    claimed_kills: AtomicU64,
    stop: AtomicBool,
}

impl Campaign<'_> {
    fn is_over(&self) -> bool {
        let limit_reached = match self.limit {
            Limit::Time(time) => self.begun.elapsed() >= time,
            Limit::Kills(kills) => self.claimed_kills.load(Ordering::Relaxed) >= kills,
        };
        limit_reached || self.stop.load(Ordering::Relaxed)
    }

    /// Whether there is to be one more kill; if so, it is the caller's.
    fn claim_kill(&self) -> bool {
        if self.is_over() {
            return false;
        }
        let claimed = self.claimed_kills.fetch_add(1, Ordering::Relaxed);
        !matches!(self.limit, Limit::Kills(kills) if claimed >= kills)
    }
}

/// Kills servers until the limit is reached or a promise is found broken. `progress` is called
/// every now and then, and can end it early: rounds begun by then are finished.
///
/// # Errors
/// If there is no room for pools in the plan's directory.
///
/// # Panics
/// If a thread cannot be started.
pub fn run(
    plan: &Plan,
    program: &dyn Program,
    mut progress: impl FnMut(Counts, Duration) -> ControlFlow<()>,
) -> io::Result<Outcome> {
    let campaign = Campaign {
        program,
        tally: Tally::default(),
        begun: Instant::now(),
        limit: plan.limit,
        claimed_kills: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let failures = Mutex::new(Vec::new());
    let work = |job: u64| -> io::Result<()> {
        let mut random = SeededRandom::new(plan.seed ^ job << 32);
        while !campaign.is_over() {
            let lived = one_pool(&campaign, &plan.directory, &mut random);
            if !matches!(lived, Ok(Ok(()))) {
                campaign.stop.store(true, Ordering::Relaxed);
            }
            failures.lock().extend(lived?.err());
        }
        Ok(())
    };
    let mut interrupted = false;
    let worked: io::Result<()> = thread::scope(|scope| {
        let work = &work;
        let jobs = 0..plan.jobs.max(1) as u64;
        let workers: Vec<_> = jobs.map(|job| scope.spawn(move || work(job))).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            if progress(campaign.tally.counts(), campaign.begun.elapsed()).is_break() {
                interrupted = true;
                campaign.stop.store(true, Ordering::Relaxed);
            }
        }
        workers.into_iter().try_for_each(|worker| worker.join().expect("jobs do not panic"))
    });
    worked?;
    let elapsed = campaign.begun.elapsed();
    let failures = failures.into_inner();
    Ok(Outcome { counts: campaign.tally.counts(), failures, elapsed, interrupted })
}

/// One pool, removed in the end unless it shows that a promise was broken.
fn one_pool(
    campaign: &Campaign<'_>,
    directory: &Path,
    random: &mut SeededRandom,
) -> io::Result<Result<(), Failure>> {
    let folder = tempfile::Builder::new().prefix("siltstone-kill-").tempdir_in(directory)?;
    // Its path must be short, whatever the directory's.
    let sockets = TempDir::with_prefix("silt")?;
    let place = Place {
        pool: folder.path().join(POOL),
        socket: sockets.path().join("s"),
        log: folder.path().join("log"),
    };
    let lived = life::live(campaign, &place, random);
    Ok(lived.map_err(|violation| {
        let pool = folder.keep().join(POOL);
        Failure { reason: violation.0, pool }
    }))
}
