//! Free space: who may still take some.
//!
//! A write is admitted only if the pool can hold it even if nothing of it compresses or repeats;
//! what it turns out to need is settled when the sealer places it. An admitted write therefore
//! never fails for lack of space. Some segments are kept back for what must work in a full pool:
//!
//! ```text
//! free segments   ... | 1/4 margin | 1/4 changes that free space | 1/2 patches |
//!                     ^ writes end here                          ^ the sealer ends here
//! ```
//! The margin is for what promises do not count: rounding to segments, and patches beyond their
//! share.

use parking_lot::Mutex;
use siltstone_device::BLOCK_BYTES;

use crate::{
    error::{EngineError, Result},
    segment_table::SegmentTable,
};

/// Bytes of segment that a change of `data_bytes` may need at worst, in a write unit of its own:
/// frames stored plain, headers, fingerprints, entries, padding, and the unfilled tail of a segment
/// (at most an eighth).
pub(crate) fn worst_case_bytes(data_bytes: usize) -> u64 {
    let bytes = data_bytes as u64;
    bytes + bytes / 4 + BLOCK_BYTES as u64
}

/// What a promise of space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// New data.
    Write,
    /// A hole, which may free space: part of what is kept back is for these.
    Free,
}

/// Segments that a pool keeps back from writes: a thirty-second, but in a small pool 8, or a sixth
/// of it, or at least 4.
pub(crate) fn reserve_segments(segment_count: u32) -> u64 {
    u64::from((segment_count / 32).max((segment_count / 6).clamp(4, 8)))
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

    /// Promises `bytes` to a change; taken back if the promise is dropped and not kept.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`].
    pub(crate) fn promise(
        &self,
        table: &SegmentTable,
        bytes: u64,
        purpose: Purpose,
    ) -> Result<Promise<'_>> {
        let mut inner = self.inner.lock();
        let free = self.free_for(&inner, table, purpose);
        if inner.promised_bytes + bytes > free {
            let free_bytes = free.saturating_sub(inner.promised_bytes);
            return Err(EngineError::NoSpace { needed_bytes: bytes, free_bytes });
        }
        inner.promised_bytes += bytes;
        Ok(Promise { space: self, bytes })
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
        self.free_for(&inner, table, Purpose::Write).saturating_sub(inner.promised_bytes)
    }

    /// Bytes kept back from writes.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.reserve_segments * self.segment_bytes
    }

    fn free_for(&self, inner: &Inner, table: &SegmentTable, purpose: Purpose) -> u64 {
        let free = table.free_segments() * self.segment_bytes + inner.frontier_bytes;
        let kept = match purpose {
            Purpose::Write => self.reserve_bytes(),
            Purpose::Free => self.reserve_bytes() / 4 * 3,
        };
        free.saturating_sub(kept)
    }
}

/// Space for a change that is not admitted yet.
#[must_use = "a promise that is dropped is taken back"]
pub(crate) struct Promise<'a> {
    space: &'a Space,
    bytes: u64,
}

impl Promise<'_> {
    /// The change takes the promise on, and whoever places it releases it.
    pub(crate) fn keep(self) -> u64 {
        let bytes = self.bytes;
        std::mem::forget(self);
        bytes
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.space.release(self.bytes);
    }
}
