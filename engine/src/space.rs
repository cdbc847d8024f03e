//! Free space: who may still take some.
//!
//! A write is admitted only if the pool can hold it even if nothing of it compresses or repeats;
//! what it turns out to need is settled when the sealer places it. An admitted write therefore
//! never fails for lack of space. Some segments are kept back for what must work in a full pool:
//!
//! ```text
//! free segments  ... | 1/4 margin | 1/4 changes that free space | 1/8 collector | 1/4 merges | 1/8 |
//!                    ^ writes end here                          ^ the sealer    ^ the collector
//!                                                                              merges end here ^
//! ```
//! What is left there, at least a segment, is for memtables alone: one that finds no room fails
//! the pool. So a memtable never gets larger than what fits there ([`Space::memtable_entries`]).
//! The margin is for what promises do not count: rounding to segments, and patches beyond their
//! share. The collector's share lets it go on however full the pool is: what it empties is more
//! than what it fills.
//!
//! An image of the index is worth nothing to a pool without room: it takes only what is left beyond
//! the reserve and a little more, and is given up when less is left.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use siltstone_device::{BLOCK_BYTES, SegmentId};

use crate::{
    error::{EngineError, Result},
    frontier::{Frontier, Promised},
    segment_count::SegmentCount,
    segment_table::{SegmentState, SegmentTable},
};

/// Bytes of segment that a change of `data_bytes` may need at worst, in a write unit of its own:
/// frames stored plain, headers, fingerprints, entries, padding, and the unfilled tail of a segment
/// (at most an eighth).
pub(crate) fn worst_case_bytes(data_bytes: usize) -> u64 {
    let bytes = data_bytes as u64;
    bytes + bytes / 4 + BLOCK_BYTES as u64
}

/// Entries in a full page of a patch.
const PATCH_PAGE_ENTRIES: usize = siltstone_cursor::ENTRIES_PER_PAGE;

/// What a promise of space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// New data.
    Write,
    /// A hole, which may free space: part of what is kept back is for these.
    Free,
}

/// Segments that a pool keeps back from writes: a thirty-second, but in a small pool 8, or a sixth
/// of it, or at least 6.
pub(crate) fn reserve_segments(segment_count: u32) -> u64 {
    u64::from((segment_count / 32).max((segment_count / 6).clamp(6, 8)))
}

/// See the module's page. Lock order: this lock, then the segment table's or the frontier's.
pub(crate) struct Space {
    /// Bytes promised to admitted changes that the sealer has not placed yet.
    promised_bytes: Mutex<u64>,
    segment_bytes: u64,
    segment_count: SegmentCount,
    queue: WaitQueue,
}

/// Writes that wait for room, in the order of their coming. No lock of the pool is held while one
/// waits for its turn.
#[derive(Default)]
struct WaitQueue {
    turn: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
    refusals: AtomicU64,
}

/// A place in the queue, and then its head, until it is dropped.
pub(crate) struct Turn<'a> {
    queue: &'a WaitQueue,
    refusals: u64,
    head: Option<tokio::sync::MutexGuard<'a, ()>>,
}

impl Turn<'_> {
    /// Whether a write that came before this one has looked for room in vain since: nothing is
    /// gained by looking again.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.queue.refusals.load(Ordering::Acquire) != self.refusals
    }

    /// There is no room: those who wait need not look.
    pub(crate) fn refuse(&self) {
        self.queue.refusals.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.head.take());
        self.queue.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where there may be room.
#[derive(Clone, Copy)]
pub(crate) struct Room<'a> {
    pub(crate) table: &'a SegmentTable,
    pub(crate) frontier: &'a Frontier,
}

impl Space {
    pub(crate) fn new(segment_count: SegmentCount, segment_bytes: u64) -> Self {
        let (promised_bytes, queue) = Default::default();
        Self { promised_bytes, segment_bytes, segment_count, queue }
    }

    /// Whether writes wait for room: others come after them.
    pub(crate) fn has_queue(&self) -> bool {
        self.queue.waiting.load(Ordering::Acquire) > 0
    }

    /// Waits until every write that came before has found room or been refused.
    pub(crate) async fn queue(&self) -> Turn<'_> {
        let queue = &self.queue;
        queue.waiting.fetch_add(1, Ordering::AcqRel);
        let refusals = queue.refusals.load(Ordering::Acquire);
        let mut turn = Turn { queue, refusals, head: None };
        turn.head = Some(queue.turn.lock().await);
        turn
    }

    /// Promises `bytes` to a change if `margin_bytes` are left then; taken back if the promise is
    /// dropped and not kept.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`].
    pub(crate) fn promise(
        &self,
        room: Room<'_>,
        bytes: u64,
        purpose: Purpose,
        margin_bytes: u64,
    ) -> Result<Promise<'_>> {
        let mut promised = self.promised_bytes.lock();
        let kept_bytes = self.kept_bytes(purpose) + margin_bytes;
        let free = self.room_bytes(room).saturating_sub(kept_bytes);
        if *promised + bytes > free {
            let free_bytes = free.saturating_sub(*promised);
            return Err(EngineError::NoSpace { needed_bytes: bytes, free_bytes });
        }
        *promised += bytes;
        Ok(Promise { space: self, bytes })
    }

    /// Promises `bytes` to a change that was admitted in a former life and cannot be refused.
    pub(crate) fn promise_regardless(&self, bytes: u64) {
        *self.promised_bytes.lock() += bytes;
    }

    /// A promise is settled or not needed after all.
    pub(crate) fn release(&self, bytes: u64) {
        let mut promised = self.promised_bytes.lock();
        *promised = promised.checked_sub(bytes).expect("promises are released once");
    }

    /// Bytes that writes can still take.
    pub(crate) fn free_bytes(&self, room: Room<'_>) -> u64 {
        self.unpromised_bytes(room).saturating_sub(self.kept_bytes(Purpose::Write))
    }

    /// Bytes that are not promised to anyone, what is kept back included: grows with everything
    /// that is freed, also where nothing is free for writes.
    pub(crate) fn unpromised_bytes(&self, room: Room<'_>) -> u64 {
        let promised = self.promised_bytes.lock();
        self.room_bytes(room).saturating_sub(*promised)
    }

    /// Free segments that everything leaves for writing memtables.
    pub(crate) fn memtable_segments(&self) -> u64 {
        (self.reserve_segments() / 8).max(1)
    }

    /// Free segments that the collector leaves for patches, memtables included.
    pub(crate) fn patch_segments(&self) -> u64 {
        self.memtable_segments() + (self.reserve_segments() / 4).max(1)
    }

    /// Entries at which a memtable is full. What a crash left to recover may be twice that: that
    /// of the last checkpoint which was not stored, and the next one's; a quarter is for fence pages
    /// and the unit that came last.
    pub(crate) fn memtable_entries(&self) -> usize {
        let pages = self.memtable_segments() * self.segment_bytes / BLOCK_BYTES as u64;
        pages as usize * PATCH_PAGE_ENTRIES * 3 / 8
    }

    /// Bytes that a write which had to wait leaves to others while there is hope for more: if every
    /// segment that comes free were taken at once, the collector would never again have room for
    /// more than the smallest of rounds, each of which rewrites the map.
    pub(crate) fn recovery_bytes(&self) -> u64 {
        self.reserve_segments() / 2 * self.segment_bytes
    }

    /// Bytes promised to changes that are not placed yet.
    pub(crate) fn promised_bytes(&self) -> u64 {
        *self.promised_bytes.lock()
    }

    /// The same, and what the sealer leaves to patches when it takes what is promised.
    pub(crate) fn promised(&self) -> Promised {
        Promised { bytes: self.promised_bytes(), keep_segments: self.patch_segments() }
    }

    /// Free segments that the collector leaves: for patches, and for what is promised to changes
    /// beyond what the frontier has room for.
    pub(crate) fn segments_not_for_moves(&self, room: Room<'_>) -> u64 {
        let promised = self.promised_bytes.lock();
        let beyond_bytes = promised.saturating_sub(room.frontier.free_bytes());
        self.patch_segments() + beyond_bytes.div_ceil(self.segment_bytes)
    }

    /// Bytes kept back from writes.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.reserve_segments() * self.segment_bytes
    }

    /// Segments that can be taken for an image of the index. The rest of what is free is for writes
    /// and for what is kept back from these, and a thirty-second of the pool stays free beside.
    fn image_segments(&self, room: Room<'_>, promised_bytes: u64) -> u64 {
        let kept = self.reserve_segments() + u64::from(self.segment_count.get() / 32).max(1);
        let unpromised = self.room_bytes(room).saturating_sub(promised_bytes) / self.segment_bytes;
        // What lies ready in the frontier is no room for anyone but the sealer.
        unpromised.min(room.table.free_segments()).saturating_sub(kept)
    }

    /// Whether an image of the index may be begun that takes so many segments. Leaves more than
    /// what it is given up for, or it would be written again and again; when the pool is closed, just
    /// for what the checkpoint that names it takes.
    pub(crate) fn has_room_for_image(
        &self,
        room: Room<'_>,
        segments: u64,
        is_closing: bool,
    ) -> bool {
        let promised = self.promised_bytes.lock();
        let slack = if is_closing { 1 } else { u64::from(self.segment_count.get() / 16).max(1) };
        !self.has_queue() && self.image_segments(room, *promised) >= segments + slack
    }

    /// Whether room is so short that there shall be no image of the index.
    pub(crate) fn is_short_for_image(&self, room: Room<'_>) -> bool {
        let promised = self.promised_bytes.lock();
        self.has_queue() || self.image_segments(room, *promised) == 0
    }

    /// Takes a segment for an image of the index, if it is to spare. No promise can come between.
    pub(crate) fn take_for_image(&self, room: Room<'_>) -> Option<(SegmentId, u64)> {
        let promised = self.promised_bytes.lock();
        if self.has_queue() || self.image_segments(room, *promised) == 0 {
            return None;
        }
        room.table.take(SegmentState::IndexImage)
    }

    /// Segments that writes may not take.
    fn reserve_segments(&self) -> u64 {
        reserve_segments(self.segment_count.get())
    }

    /// What is neither in use nor placed. Asked for with the lock held, and at this moment: what
    /// the sealer places leaves the frontier before its promise is released, so that nothing is
    /// ever counted as free that is not.
    fn room_bytes(&self, room: Room<'_>) -> u64 {
        room.table.free_segments() * self.segment_bytes + room.frontier.free_bytes()
    }

    /// What a change may not take.
    fn kept_bytes(&self, purpose: Purpose) -> u64 {
        match purpose {
            Purpose::Write => self.reserve_bytes(),
            Purpose::Free => self.reserve_bytes() / 4 * 3,
        }
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{config::CreateOptions, layout::Layout};

    /// The collector would else take the room of changes that are admitted and cannot be refused any
    /// more.
    #[test]
    fn what_is_promised_beyond_the_frontier_is_not_for_moves() {
        const POOL_BYTES: u64 = 64 << 20;
        let options = CreateOptions { segment_bytes: Some(256 << 10), ..CreateOptions::default() };
        let layout = Layout::new(POOL_BYTES, &options).unwrap();
        let count = SegmentCount::new(layout.segment_count(POOL_BYTES));
        let table = SegmentTable::new(1, layout, count.clone());
        let frontier = Frontier::new(count.clone(), layout.segment_bytes);
        let space = Space::new(count, layout.segment_bytes);
        let room = Room { table: &table, frontier: &frontier };
        let of_patches = space.segments_not_for_moves(room);
        assert!(of_patches > 0);
        let promise = space.promise(room, 3 * layout.segment_bytes + 1, Purpose::Write, 0).unwrap();
        assert_eq!(space.segments_not_for_moves(room), of_patches + 4);
        frontier.extend(vec![table.take(SegmentState::Frontier).unwrap()]);
        assert_eq!(space.segments_not_for_moves(room), of_patches + 3);
        // The sealer gets all of it, however little the collector has left beside it.
        while table.free_segments() > of_patches + 3 {
            table.take(SegmentState::Data).unwrap();
        }
        let reservation = frontier.reserve(&table, space.promised());
        assert_eq!((reservation.added.len(), table.free_segments()), (3, of_patches));
        frontier.extend(reservation.added);
        assert!(frontier.free_bytes() >= space.promised_bytes());
        drop(promise);
        assert_eq!(space.segments_not_for_moves(room), of_patches);
    }

    /// Whoever takes segments until its limit leaves some to all who come behind it.
    #[test]
    fn the_reserve_of_any_pool_has_a_share_for_everyone() {
        for segments in (16..4096).chain([1 << 20]) {
            let space = Space::new(SegmentCount::new(segments), 1 << 20);
            let last_resort = reserve_segments(segments) / 2;
            assert!(space.memtable_segments() >= 1);
            assert!(space.memtable_segments() < space.patch_segments(), "{segments} segments");
            assert!(space.patch_segments() < last_resort, "{segments} segments");
        }
    }

    /// Twice over, as a crash may leave it, in pages as they are filled.
    #[test]
    fn a_full_memtable_fits_the_segments_that_are_kept_for_it() {
        for segments in [16, 500, 10_000] {
            let space = Space::new(SegmentCount::new(segments), 256 << 10);
            let leaves = (2 * space.memtable_entries()).div_ceil(PATCH_PAGE_ENTRIES);
            let pages = leaves + leaves.div_ceil(PATCH_PAGE_ENTRIES) + 1;
            let kept_bytes = space.memtable_segments() * (256 << 10);
            assert!((pages * BLOCK_BYTES) as u64 <= kept_bytes / 8 * 7, "{segments} segments");
        }
    }
}
