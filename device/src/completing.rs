//! Running completions on a device's own threads.

use std::cell::RefCell;

use crate::{DeviceError, Request};

/// Ends the process if it is dropped by a panic.
///
/// A device thread that died of a panicking completion would leave every later request waiting
/// for ever, and whoever trusted it with data none the wiser. Nothing is durable that was not
/// reported so, which makes stopping at once the safe choice.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        tracing::error!("a completion panicked on a device thread; aborting");
        std::process::abort();
    }
}

/// Runs `work`; if it panics, the process aborts.
pub(crate) fn abort_on_panic<T>(work: impl FnOnce() -> T) -> T {
    let guard = AbortOnPanic;
    let result = work();
    std::mem::forget(guard);
    result
}

/// Completes every request with its outcome, in order.
pub(crate) fn complete_all(finished: &mut Vec<(Request, Result<(), DeviceError>)>) {
    for (request, outcome) in finished.drain(..) {
        request.complete(outcome);
    }
}

thread_local! {
    /// What a device's thread is to do once it has submitted what its completions have; `None` elsewhere.
    static LATER: RefCell<Option<Vec<Work>>> = const { RefCell::new(None) };
}

type Work = Box<dyn FnOnce()>;

/// Called by a completion: runs `work` when the kernel has what completions have submitted until
/// then, if there is such a moment on this thread; at once if not. For what takes its time, such as
/// waking many, while the device could be at work already. Like a completion it must not wait.
pub fn when_submitted(work: impl FnOnce() + 'static) {
    let now = LATER.with_borrow_mut(|later| match later {
        Some(later) => {
            later.push(Box::new(work));
            None
        }
        None => Some(work),
    });
    if let Some(work) = now {
        work();
    }
}

/// From now on, this thread keeps such work for [`take_later`].
pub(crate) fn keep_later() {
    LATER.set(Some(Vec::new()));
}

/// What is to be done now that everything is submitted.
pub(crate) fn take_later() -> Vec<Work> {
    LATER.with_borrow_mut(|later| later.as_mut().map(std::mem::take).unwrap_or_default())
}
