//! Spreads the work of a background task over time, so that clients do not see it come in bursts.
//!
//! A checkpoint merges patches for some twenty milliseconds, an image of the index takes thirty: every
//! few seconds one of the pool's processors would be gone for a part of a tenth of a second, and the rate
//! of writes with it. So such a task works in slices of [`SLICE`] and rests in between. It may use
//! [`HEADROOM`] times as much of a processor as it has needed lately, and [`LEAST_SHARE`] at least: what
//! comes now and then takes the time until it comes again, and what there is always something to do of
//! is soon not held up at all. While somebody waits for the task it does not rest.
//!
//! A slice ends where the task waits or yields
//! ([`yield_now`](siltstone_device::runtime::yield_now)). In a simulation work takes no time, so that
//! there are no rests.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use siltstone_device::{Runtime, runtime::Sleep};

/// Work after which a task may have to rest.
const SLICE: Duration = Duration::from_millis(1);
/// Who begins to wait for the task does so for this long at most before it knows.
const LONGEST_REST: Duration = Duration::from_millis(10);
/// The share of a processor that a task may always use.
const LEAST_SHARE: f64 = 1.0 / 8.0;
/// So many times what it has needed lately is what it may use.
const HEADROOM: f64 = 4.0;
/// What was needed this long ago counts 1 / e of what is needed now.
const MEMORY: Duration = Duration::from_secs(4);

/// What a task has needed lately.
struct Load {
    /// Work, what is older counting less.
    worked: Duration,
    noted_at: Instant,
    /// Work since the last rest.
    since_rest: Duration,
}

impl Load {
    fn new(now: Instant) -> Self {
        Self { worked: Duration::ZERO, noted_at: now, since_rest: Duration::ZERO }
    }

    /// The task has worked so long, until `now`; returns how long it has to rest.
    fn note(&mut self, now: Instant, worked: Duration) -> Duration {
        let elapsed = now.saturating_duration_since(self.noted_at);
        let kept = (-elapsed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.worked = self.worked.mul_f64(kept) + worked;
        self.noted_at = now;
        self.since_rest += worked;
        if self.since_rest < SLICE {
            return Duration::ZERO;
        }
        let needed = self.worked.as_secs_f64() / MEMORY.as_secs_f64();
        let share = (HEADROOM * needed).clamp(LEAST_SHARE, 1.0);
        let rest = std::mem::take(&mut self.since_rest).mul_f64(1.0 / share - 1.0);
        rest.min(LONGEST_REST)
    }
}

/// A task whose work is spread; `is_hurried` says whether somebody waits for it, `note_rest` is told
/// of each rest.
pub(crate) struct Spread<'a, F, H, N> {
    runtime: &'a dyn Runtime,
    work: Pin<Box<F>>,
    is_hurried: H,
    note_rest: N,
    load: Load,
    /// The one under way, and when it began.
    rest: Option<(Sleep, Instant)>,
}

impl<'a, F, H, N> Spread<'a, F, H, N>
where
    F: Future,
    H: Fn() -> bool + Unpin,
    N: Fn(Duration) + Unpin,
{
    pub(crate) fn new(runtime: &'a dyn Runtime, work: F, is_hurried: H, note_rest: N) -> Self {
        let load = Load::new(runtime.now());
        Self { runtime, work: Box::pin(work), is_hurried, note_rest, load, rest: None }
    }
}

impl<F, H, N> Future for Spread<'_, F, H, N>
where
    F: Future,
    H: Fn() -> bool + Unpin,
    N: Fn(Duration) + Unpin,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        // What wakes the task meanwhile is not lost: it is polled when the rest is over.
        if let Some((rest, rests_from)) = &mut this.rest {
            if rest.as_mut().poll(context).is_pending() && !(this.is_hurried)() {
                return Poll::Pending;
            }
            (this.note_rest)(this.runtime.now().saturating_duration_since(*rests_from));
            this.rest = None;
        }
        let began = this.runtime.now();
        let outcome = this.work.as_mut().poll(context);
        let now = this.runtime.now();
        let pause = this.load.note(now, now.saturating_duration_since(began));
        if outcome.is_pending() && !pause.is_zero() && !(this.is_hurried)() {
            let mut rest = this.runtime.sleep_until(now + pause);
            match rest.as_mut().poll(context) {
                Poll::Pending => this.rest = Some((rest, now)),
                Poll::Ready(()) => context.waker().wake_by_ref(),
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, thread};

    use siltstone_device::runtime::{Threads, yield_now};

    use super::*;

    /// What a task that works all it may gets of a processor in each second.
    fn shares(seconds: usize) -> Vec<f64> {
        let mut now = Instant::now();
        let mut load = Load::new(now);
        let second = |_| {
            let (mut worked, until) = (Duration::ZERO, now + Duration::from_secs(1));
            while now < until {
                now += SLICE;
                worked += SLICE;
                now += load.note(now, SLICE);
            }
            worked.as_secs_f64()
        };
        (0..seconds).map(second).collect()
    }

    #[test]
    fn a_burst_takes_an_eighth_and_what_never_ends_is_not_held_up() {
        let shares = shares(8);
        assert!((0.1..0.15).contains(&shares[0]), "{shares:?}");
        assert!(shares.is_sorted_by(|before, after| *before <= after + 0.02), "{shares:?}");
        assert!(shares[7] > 0.99, "{shares:?}");
    }

    #[test]
    fn what_comes_now_and_then_is_done_long_before_it_comes_again() {
        // A quarter of a second of work, each second.
        let (work, every) = (Duration::from_millis(250), Duration::from_secs(1));
        let mut begins = Instant::now();
        let mut load = Load::new(begins);
        let mut took = Duration::ZERO;
        for _ in 0..20 {
            let (mut now, mut left) = (begins, work);
            while !left.is_zero() {
                now += SLICE;
                left -= SLICE;
                now += load.note(now, SLICE);
            }
            took = now - begins;
            begins = now.max(begins + every);
        }
        assert!(took < every / 2, "{took:?}");
    }

    /// Works for some slices; returns how many rests there were.
    fn rests(is_hurried: bool) -> u32 {
        let (done, rests) = (Cell::new(0), Cell::new(0));
        let work = async {
            while done.get() < 8 {
                thread::sleep(SLICE);
                done.set(done.get() + 1);
                yield_now().await;
            }
        };
        let note_rest = |_| rests.set(rests.get() + 1);
        pollster::block_on(Spread::new(&Threads, work, || is_hurried, note_rest));
        assert_eq!(done.get(), 8);
        rests.get()
    }

    #[test]
    fn a_task_rests_between_slices_unless_somebody_waits_for_it() {
        let rests_between = rests(false);
        // One may be over before it has begun, on a machine that is busy.
        assert!((2..=8).contains(&rests_between), "{rests_between}");
        assert_eq!(rests(true), 0);
    }
}
