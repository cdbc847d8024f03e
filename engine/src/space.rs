//! Free space: who may still take some.
//!
//! A write is admitted only if the pool can hold it even if nothing of it compresses or repeats;
//! what it turns out to need is settled when the sealer places it. An admitted write therefore
//! never fails for lack of space. A few segments are kept back for what must work in a full pool:
//! patches, trims, deletes.

use parking_lot::Mutex;

use crate::{
    error::{EngineError, Result},
    segment_table::SegmentTable,
};

/// Bytes of segment that a change of `data_bytes` may need at worst: frames stored plain, headers,
/// fingerprints, entries, padding, and the unfilled tail of a segment (at most an eighth).
pub(crate) fn worst_case_bytes(data_bytes: usize) -> u64 {
    let bytes = data_bytes as u64;
    bytes + bytes / 4 + 512
}

/// Segments that a pool keeps back from writes.
pub(crate) fn reserve_segments(segment_count: u32) -> u64 {
    u64::from(segment_count / 32).max(4)
}

/// See the module's page. Lock order: this lock, then the segment table's.
pub(crate) struct Space {
    inner: Mutex<Inner>,
    segment_bytes: u64,
    /// Segments that writes may not take.
    reserve_segments: u64,
}

struct Inner {
    /// Promised to admitted changes that the sealer has not placed yet.
    promised_bytes: u64,
    /// Room in frontier segments.
    frontier_bytes: u64,
}

impl Space {
    pub(crate) fn new(segment_count: u32, segment_bytes: u64) -> Self {
        let reserve_segments = reserve_segments(segment_count);
        let inner = Mutex::new(Inner { promised_bytes: 0, frontier_bytes: 0 });
        Self { inner, segment_bytes, reserve_segments }
    }

    /// Promises `bytes` to a change.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`].
    pub(crate) fn promise(&self, table: &SegmentTable, bytes: u64) -> Result<()> {
        let mut inner = self.inner.lock();
        let free = self.writable_bytes(&inner, table);
        if inner.promised_bytes + bytes > free {
            let free_bytes = free.saturating_sub(inner.promised_bytes);
            return Err(EngineError::NoSpace { needed_bytes: bytes, free_bytes });
        }
        inner.promised_bytes += bytes;
        Ok(())
    }

    /// Promises `bytes` to a change that was admitted in a former life and cannot be refused.
    pub(crate) fn promise_regardless(&self, bytes: u64) {
        self.inner.lock().promised_bytes += bytes;
    }

    /// A promise is settled or not needed after all.
    pub(crate) fn release(&self, bytes: u64) {
        let mut inner = self.inner.lock();
        let left = inner.promised_bytes.checked_sub(bytes);
        inner.promised_bytes = left.expect("promises are released once");
    }

    /// The frontier's room has changed.
    pub(crate) fn set_frontier_bytes(&self, bytes: u64) {
        self.inner.lock().frontier_bytes = bytes;
    }

    /// Bytes that writes can still take.
    pub(crate) fn free_bytes(&self, table: &SegmentTable) -> u64 {
        let inner = self.inner.lock();
        self.writable_bytes(&inner, table).saturating_sub(inner.promised_bytes)
    }

    /// Bytes kept back from writes.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.reserve_segments * self.segment_bytes
    }

    fn writable_bytes(&self, inner: &Inner, table: &SegmentTable) -> u64 {
        let free = table.free_segments() * self.segment_bytes + inner.frontier_bytes;
        free.saturating_sub(self.reserve_bytes())
    }
}
