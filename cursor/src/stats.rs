//! Numbers for the operator.

use std::sync::atomic::AtomicU64;

/// The state of a map, and what it has done since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapStats {
    /// Entries in patches; those that a merge under way has consumed are still counted.
    pub entries: u64,
    /// Patches.
    pub patches: u64,
    /// Patches in each level, from level 0.
    pub levels: Vec<u64>,
    /// Pages of patches.
    pub pages: u64,
    /// Bytes that the page cache holds.
    pub page_cache_bytes: u64,
    /// Entries in the memtables.
    pub memtable_entries: u64,
    /// Lookups.
    pub lookups: u64,
    /// Pages read from the device.
    pub page_reads: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Merge steps that rewrote entries.
    pub merges: u64,
    /// Patches that moved to the next level as they were.
    pub moves: u64,
}

/// What is counted as it happens.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) lookups: AtomicU64,
    pub(crate) pages_written: AtomicU64,
    pub(crate) merges: AtomicU64,
    pub(crate) moves: AtomicU64,
}
