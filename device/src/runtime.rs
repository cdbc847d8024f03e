//! Tasks and time: what runs an open pool's background work.
//!
//! The engine's stages are asynchronous tasks that know neither threads nor clocks but through
//! [`Runtime`]. In production each has a thread of its own ([`Threads`]); in a simulation all of
//! them share one thread and a scheduler that a seed drives
//! ([`sim::Machine`](crate::sim::Machine)), so that a run can be repeated exactly.

use std::{
    any::Any,
    future::poll_fn,
    io,
    panic::{self, AssertUnwindSafe},
    pin::{Pin, pin},
    task::{Context, Poll},
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use futures_channel::oneshot;

/// Nanoseconds that this process has spent on processors, all of its threads together.
#[must_use]
pub fn processor_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Work that runs beside its spawner.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A wait for a moment. Dropping it ends the wait.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Runs tasks and tells them the time.
pub trait Runtime: Send + Sync + 'static {
    /// Starts a task; `name` is for whoever looks at it from outside.
    ///
    /// # Errors
    /// If the system has no thread for it.
    fn spawn(&self, name: &str, task: Task) -> io::Result<Joining>;

    /// The moment; never goes back. A simulation's time passes as it likes.
    fn now(&self) -> Instant;

    /// The date, in seconds since 1970; for people to read, since it may be wrong and go back.
    fn unix_seconds(&self) -> u64;

    /// Waits until `deadline`, in whichever executor asks.
    fn sleep_until(&self, deadline: Instant) -> Sleep;

    /// Tasks that make progress at the same time.
    fn parallelism(&self) -> usize;

    /// Whether a thread may block until a task of this runtime has ended. Not if that thread is
    /// the one that runs the tasks.
    fn can_block(&self) -> bool;
}

/// A task under way; resolves when it has ended. Dropping it lets the task go on by itself.
#[must_use = "a task's panic must be looked at"]
pub struct Joining {
    outcome: oneshot::Receiver<thread::Result<()>>,
}

impl Joining {
    /// The two ends: whoever runs the task sends how it ended.
    pub(crate) fn new() -> (oneshot::Sender<thread::Result<()>>, Self) {
        let (sender, outcome) = oneshot::channel();
        (sender, Self { outcome })
    }
}

impl Future for Joining {
    type Output = thread::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let lost = || Err(Box::new("the task was dropped by its runtime") as Box<dyn Any + Send>);
        Pin::new(&mut self.outcome).poll(context).map(|ended| ended.unwrap_or_else(|_| lost()))
    }
}

/// Lets whoever runs the task do something else first, or nothing for a while: for work that goes on for
/// long without a wait.
pub async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits for the first of two waits to end.
pub async fn either(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| {
        if first.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        second.as_mut().poll(context)
    })
    .await;
}

/// A thread for each task, and the machine's monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Threads;

impl Runtime for Threads {
    fn spawn(&self, name: &str, task: Task) -> io::Result<Joining> {
        let (ended, joining) = Joining::new();
        thread::Builder::new().name(name.into()).spawn(move || {
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| pollster::block_on(task)));
            // Nobody may wait.
            let _ = ended.send(outcome);
        })?;
        Ok(joining)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix_seconds(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        let mut delay = None;
        Box::pin(poll_fn(move |context| {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Poll::Ready(());
            }
            // Made by the first poll: most waits end otherwise before they begin.
            let delay = delay.get_or_insert_with(|| futures_timer::Delay::new(left));
            Pin::new(delay).poll(context)
        }))
    }

    fn parallelism(&self) -> usize {
        thread::available_parallelism().map_or(2, usize::from)
    }

    fn can_block(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };

    use super::*;

    #[test]
    fn a_task_has_ended_when_it_is_joined() {
        let done = Arc::new(AtomicBool::new(false));
        let inner = Arc::clone(&done);
        let task = Box::pin(async move {
            let deadline = Threads.now() + Duration::from_millis(5);
            Threads.sleep_until(deadline).await;
            assert!(Threads.now() >= deadline, "a sleep does not end early");
            inner.store(true, Ordering::Release);
        });
        let joining = Threads.spawn("test", task).unwrap();
        pollster::block_on(joining).unwrap();
        assert!(done.load(Ordering::Acquire));
    }

    #[test]
    fn a_panic_reaches_whoever_joins() {
        let task = Box::pin(async { panic!("expected by this test") });
        let joining = Threads.spawn("test", task).unwrap();
        let panic = pollster::block_on(joining).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"expected by this test"));
    }

    #[test]
    fn the_first_of_two_waits_ends_both() {
        let forever = std::future::pending();
        let soon = Threads.sleep_until(Threads.now() + Duration::from_millis(1));
        pollster::block_on(either(forever, soon));
        pollster::block_on(either(std::future::ready(()), std::future::pending()));
    }
}
