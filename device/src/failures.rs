//! How often the system has refused an operation on any device of this process: for whoever watches a server.
//! What a failure means is for those who wait for the operation.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{DeviceError, Operation};

/// By operation, in the order of [`Failures`].
static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Operations that failed since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards, which some media cannot do.
    pub discards: u64,
}

/// All of this process.
#[must_use]
pub fn failures() -> Failures {
    let [reads, writes, flushes, discards] =
        COUNTS.each_ref().map(|count| count.load(Ordering::Relaxed));
    Failures { reads, writes, flushes, discards }
}

/// Counts a failure, if it is the medium's.
pub(crate) fn note(error: &DeviceError) {
    let DeviceError::Io { operation, .. } = error else { return };
    let at = match operation {
        Operation::Read => 0,
        Operation::Write => 1,
        Operation::Flush => 2,
        Operation::Discard => 3,
    };
    COUNTS[at].fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn what_the_medium_refuses_is_counted_and_nothing_else() {
        let before = failures();
        let io = |operation| DeviceError::io(operation, 0, 4096, ErrorKind::TimedOut.into());
        // Other tests of this process may make others fail meanwhile.
        note(&io(Operation::Flush));
        note(&DeviceError::Closed { operation: Operation::Flush });
        let after = failures();
        assert!(after.flushes > before.flushes && after.reads >= before.reads);
    }
}
