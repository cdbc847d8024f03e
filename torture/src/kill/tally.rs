//! What was survived, counted while it happens.

use parking_lot::Mutex;
use serde::Serialize;

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Pools that were made.
    pub pools: u64,
    /// Servers killed under load.
    pub kills: u64,
    /// Servers killed while they started.
    pub start_kills: u64,
    /// Servers that came up.
    pub starts: u64,
    /// The slowest of them, in milliseconds.
    pub slowest_start_ms: u64,
    /// Operations of clients that were answered.
    pub operations: u64,
    /// Flushes that were acknowledged.
    pub flushes: u64,
    /// Changes that were acknowledged as durable at once.
    pub durable_changes: u64,
    /// Changes that were refused because the pool was full.
    pub refused: u64,
    /// Snapshots taken while clients worked.
    pub snapshots: u64,
    /// Snapshots deleted.
    pub deleted_snapshots: u64,
    /// Times that the disk went back to one.
    pub roll_backs: u64,
    /// Clones made of them.
    pub clones: u64,
    /// Blocks compared with the journal after a start.
    pub blocks: u64,
    /// Pools checked whole.
    pub checks: u64,
}

/// Counters that many threads add to.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Counts>);

impl Tally {
    /// The counters now.
    pub(super) fn counts(&self) -> Counts {
        *self.0.lock()
    }

    /// Counts something.
    pub(super) fn note(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.0.lock());
    }
}
