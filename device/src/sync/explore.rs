//! Running models.

use std::{
    env, io,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// What threads of a model share must be in this `Arc`: the standard library's orders nothing in
/// the eyes of loom, which then finds a race between the last use of a thing and its end.
pub use loom::sync::Arc;
pub use loom::{
    future::block_on,
    thread::{self, yield_now},
};

use crate::runtime::{Joining, Runtime, Sleep, Task};

/// A runtime in which no time passes, so that only a wake-up ends a wait.
#[derive(Clone, Copy, Debug)]
pub struct Timeless(pub Instant);

impl Runtime for Timeless {
    fn spawn(&self, _: &str, _: Task) -> io::Result<Joining> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn now(&self) -> Instant {
        self.0
    }

    fn unix_seconds(&self) -> u64 {
        0
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        assert!(deadline > self.0, "nobody sleeps until what is past");
        Box::pin(std::future::pending())
    }

    fn parallelism(&self) -> usize {
        1
    }

    fn can_block(&self) -> bool {
        true
    }
}

/// Steps of one execution; far more than any model takes that does not go round in circles.
const MAX_BRANCHES: usize = 20_000;

/// Runs `model` once for each way in which its threads can interleave with at most `preemptions`
/// of them interrupted where they would not have waited (`None`: with any number). Panics if one
/// panics, or if all of its threads wait for ever, which is how a lost wake-up shows.
///
/// `LOOM_MAX_PREEMPTIONS` in the environment takes the place of `preemptions`.
pub fn explore(name: &str, preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = MAX_BRANCHES;
    if env::var_os("LOOM_MAX_PREEMPTIONS").is_none() {
        builder.preemption_bound = preemptions;
    }
    let bound = builder.preemption_bound.map_or("any".into(), |bound| bound.to_string());
    let executions = std::sync::Arc::new(AtomicU64::new(0));
    let count = std::sync::Arc::clone(&executions);
    let started = Instant::now();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!(
        "{name}: {} executions with {bound} preemptions in {:.1} s",
        executions.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64()
    );
}
