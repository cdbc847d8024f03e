//! Keeps background reading at a bounded rate.

use std::time::{Duration, Instant};

use siltstone_device::Runtime;

/// Lets so many bytes a second be read. What was not used is not saved up: no time of idleness
/// makes up for a burst.
pub(crate) struct Pace<'a> {
    runtime: &'a dyn Runtime,
    bytes_per_second: Option<u64>,
    /// When the next read may begin.
    next: Instant,
    /// Bytes so far.
    pub(crate) bytes: u64,
}

impl<'a> Pace<'a> {
    /// A pace; `None` has no limit.
    pub(crate) fn new(runtime: &'a dyn Runtime, bytes_per_second: Option<u64>) -> Self {
        Self { runtime, bytes_per_second, next: runtime.now(), bytes: 0 }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.bytes_per_second.is_some()
    }

    pub(crate) fn now(&self) -> Instant {
        self.runtime.now()
    }

    /// Waits until `bytes` more may be read, and counts them.
    pub(crate) async fn take(&mut self, bytes: u64) {
        self.bytes += bytes;
        let Some(rate) = self.bytes_per_second else { return };
        let now = self.runtime.now();
        if self.next > now {
            self.runtime.sleep_until(self.next).await;
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.next = self.next.max(now) + cost.min(Duration::from_secs(1 << 30));
    }
}
