//! Running completions on a device's own threads.

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
