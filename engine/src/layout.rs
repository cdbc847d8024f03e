//! Where things are on the pool's device.
//!
//! ```text
//! 0          superblock A (4 KiB)
//! 256 KiB    durability mark, even numbers (4 KiB)
//! 512 KiB    superblock B (4 KiB)
//! 768 KiB    durability mark, odd numbers (4 KiB)
//! 1 MiB      checkpoint slots A, B, first copies, then second copies
//!            NVRAM ring (unless it has a device of its own)
//!            segment table (two slots a page), first copies, then second copies
//! data_start segment 0, segment 1, ...   (aligned to the segment size)
//! ```

use std::ops::RangeInclusive;

use siltstone_cursor::SegmentGeometry;
use siltstone_device::{
    BLOCK_BYTES, ByteOffset,
    units::{MAX_SEGMENT_BYTES, MAX_SEGMENT_ID},
};

use siltstone_nvram::{Region, checkpoint::SlotRegions};

use crate::{
    config::{CreateOptions, MIN_POOL_BYTES},
    error::{EngineError, Result},
    segment_table::{COPIES, ENTRIES_PER_PAGE, SLOTS_PER_PAGE},
};

/// Where the first superblock is.
pub(crate) const SUPERBLOCK_A: ByteOffset = ByteOffset(0);
/// Where the second superblock is.
pub(crate) const SUPERBLOCK_B: ByteOffset = ByteOffset(512 << 10);
const MARK_EVEN: ByteOffset = ByteOffset(256 << 10);
const MARK_ODD: ByteOffset = ByteOffset(768 << 10);
/// Where the two pages of the durability mark are.
pub(crate) const MARKS: [ByteOffset; 2] = [MARK_EVEN, MARK_ODD];
const CHECKPOINTS: ByteOffset = ByteOffset(1 << 20);
/// Two slots, each with two copies.
const CHECKPOINT_RECORDS: u64 = 4;

/// A pool may grow to this many times its size at creation: then the segment table is full.
pub(crate) const GROWTH: u64 = 16;

/// Largest pool: what the index can name is a pebibyte, what a place can name depends on the
/// segment size.
const MAX_POOL_BYTES: u64 = 512 << 40;

/// How large the NVRAM log's ring may be.
const NVRAM_BYTES: RangeInclusive<u64> = 128 << 10..=4 << 30;

/// The fewest segments with which a pool works: frontier, patches and reserve need some each.
const MIN_SEGMENTS: u64 = 16;

/// Below this, segments are small.
const SMALL_POOL_BYTES: u64 = 2 << 30;
/// From this on, they are as large as can be.
const LARGE_POOL_BYTES: u64 = 4 << 40;

/// The regions of a pool, but for where the last one ends. Fixed at creation, kept in the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) segment_bytes: u64,
    pub(crate) checkpoint_slot_bytes: u64,
    pub(crate) nvram_offset: ByteOffset,
    pub(crate) nvram_bytes: u64,
    pub(crate) nvram_internal: bool,
    pub(crate) segment_table_offset: ByteOffset,
    pub(crate) segment_table_pages: u64,
    pub(crate) data_start: ByteOffset,
}

impl Layout {
    /// Lays a new pool out on a device of `size_bytes`.
    pub(crate) fn new(given_bytes: u64, options: &CreateOptions) -> Result<Self> {
        let size_bytes = whole_blocks(given_bytes);
        if size_bytes > MAX_POOL_BYTES {
            return Err(EngineError::InvalidOption {
                option: "a pool size",
                value: size_bytes,
                allowed: "at most 512 TiB",
            });
        }
        let segment_bytes = options.segment_bytes.unwrap_or(default_segment_bytes(size_bytes));
        if !segment_bytes.is_power_of_two()
            || !(256 << 10..=MAX_SEGMENT_BYTES).contains(&segment_bytes)
        {
            return Err(EngineError::InvalidOption {
                option: "a segment size",
                value: segment_bytes,
                allowed: "a power of two from 256 KiB to 16 MiB",
            });
        }
        let nvram_bytes = match options.nvram_bytes {
            Some(bytes) => bytes,
            None => (size_bytes / 64).clamp(4 << 20, 64 << 20),
        };
        let nvram_bytes = nvram_bytes - nvram_bytes % BLOCK_BYTES as u64;
        if !NVRAM_BYTES.contains(&nvram_bytes) {
            return Err(EngineError::InvalidOption {
                option: "an NVRAM log size",
                value: nvram_bytes,
                allowed: "from 128 KiB to 4 GiB",
            });
        }
        let checkpoint_slot_bytes = (size_bytes / 4096).clamp(1 << 20, 16 << 20);
        let checkpoint_slot_bytes = checkpoint_slot_bytes - checkpoint_slot_bytes % (1 << 20);
        let nvram_internal = options.nvram.is_none();
        let nvram_offset = CHECKPOINTS.plus(CHECKPOINT_RECORDS * checkpoint_slot_bytes);
        let table_offset = nvram_offset.plus(if nvram_internal { nvram_bytes } else { 0 });
        let table_entries = GROWTH * (size_bytes / segment_bytes);
        let table_pages = table_entries.div_ceil(ENTRIES_PER_PAGE as u64);
        let table_bytes = table_pages * SLOTS_PER_PAGE * COPIES * BLOCK_BYTES as u64;
        let data_start = (table_offset.0 + table_bytes).next_multiple_of(segment_bytes);
        let layout = Self {
            segment_bytes,
            checkpoint_slot_bytes,
            nvram_offset: if nvram_internal { nvram_offset } else { ByteOffset(0) },
            nvram_bytes,
            nvram_internal,
            segment_table_offset: table_offset,
            segment_table_pages: table_pages,
            data_start: ByteOffset(data_start),
        };
        if layout.segment_count(size_bytes) > MAX_SEGMENT_ID.0 {
            return Err(EngineError::InvalidOption {
                option: "a segment size",
                value: segment_bytes,
                allowed: "larger for a pool of this size",
            });
        }
        let least_bytes = (data_start + MIN_SEGMENTS * segment_bytes).max(MIN_POOL_BYTES);
        if size_bytes < least_bytes {
            // At that size, what is before the segments may take more.
            let needed_bytes = match Self::new(least_bytes, options) {
                Err(EngineError::TooSmall { needed_bytes, .. }) => needed_bytes,
                _ => least_bytes,
            };
            return Err(EngineError::TooSmall { size_bytes: given_bytes, needed_bytes });
        }
        Ok(layout)
    }

    /// How many whole segments a pool of `size_bytes` has.
    pub(crate) fn segment_count(&self, size_bytes: u64) -> u32 {
        let segments = size_bytes.saturating_sub(self.data_start.0) / self.segment_bytes;
        u32::try_from(segments).unwrap_or(u32::MAX)
    }

    /// The largest size to which the pool can grow.
    pub(crate) fn max_size_bytes(&self) -> u64 {
        let in_table = self.segment_table_pages.saturating_mul(ENTRIES_PER_PAGE as u64);
        let segments = in_table.min(MAX_SEGMENT_ID.0.into());
        let end = segments.saturating_mul(self.segment_bytes).saturating_add(self.data_start.0);
        end.min(MAX_POOL_BYTES)
    }

    /// Where each copy of each checkpoint slot is.
    pub(crate) fn checkpoint_slots(&self) -> [SlotRegions; 2] {
        let len_bytes = self.checkpoint_slot_bytes;
        let copy = |at| Region { offset: CHECKPOINTS.plus(at * len_bytes), len_bytes };
        [[copy(0), copy(2)], [copy(1), copy(3)]]
    }

    /// Segment arithmetic.
    pub(crate) fn geometry(&self) -> SegmentGeometry {
        SegmentGeometry { data_start: self.data_start, segment_bytes: self.segment_bytes }
    }

    /// Whether the numbers fit together and to a pool of `size_bytes`; for those read from a
    /// superblock.
    pub(crate) fn is_consistent(&self, size_bytes: u64) -> bool {
        let block = BLOCK_BYTES as u64;
        let end = |start: u64, len: u64| start.saturating_add(len);
        let table_bytes = self.segment_table_pages.saturating_mul(SLOTS_PER_PAGE * COPIES * block);
        let nvram_end =
            if self.nvram_internal { end(self.nvram_offset.0, self.nvram_bytes) } else { 0 };
        let slots_bytes = self.checkpoint_slot_bytes.saturating_mul(CHECKPOINT_RECORDS);
        let slots_end = end(CHECKPOINTS.0, slots_bytes);
        self.segment_bytes.is_power_of_two()
            && (256 << 10..=MAX_SEGMENT_BYTES).contains(&self.segment_bytes)
            && self.checkpoint_slot_bytes.is_multiple_of(block)
            && self.checkpoint_slot_bytes > 0
            && self.checkpoint_slot_bytes <= 64 << 20
            && self.nvram_bytes.is_multiple_of(block)
            && NVRAM_BYTES.contains(&self.nvram_bytes)
            && self.nvram_offset.0.is_multiple_of(block)
            && (!self.nvram_internal || self.nvram_offset.0 >= slots_end)
            && self.segment_table_offset.0 >= nvram_end.max(slots_end)
            && self.segment_table_offset.0.is_multiple_of(block)
            && end(self.segment_table_offset.0, table_bytes) <= self.data_start.0
            && self.data_start.0.is_multiple_of(block)
            && self.data_start.0 < size_bytes
            && size_bytes <= self.max_size_bytes()
            && u64::from(self.segment_count(size_bytes)) >= MIN_SEGMENTS
    }
}

/// Segments for a pool of this size: small pools need a number of them, and of a large one memory
/// holds something for each.
fn default_segment_bytes(size_bytes: u64) -> u64 {
    match size_bytes {
        ..SMALL_POOL_BYTES => 2 << 20,
        SMALL_POOL_BYTES..LARGE_POOL_BYTES => 8 << 20,
        LARGE_POOL_BYTES.. => MAX_SEGMENT_BYTES,
    }
}

/// As much of a size as is whole blocks.
pub(crate) fn whole_blocks(size_bytes: u64) -> u64 {
    size_bytes - size_bytes % BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_of_all_sizes_are_consistent() {
        for size_bytes in [64 << 20, 1 << 30, (20 << 30) + 12345, 10 << 40, 100 << 40] {
            let layout = Layout::new(size_bytes, &CreateOptions::default()).unwrap();
            assert!(layout.is_consistent(size_bytes), "{layout:?}");
        }
    }

    #[test]
    fn a_pool_may_grow_to_sixteen_times_its_size_and_stay_consistent() {
        for size_bytes in [64 << 20, 1 << 30, (20 << 30) + 12345, 10 << 40] {
            let layout = Layout::new(size_bytes, &CreateOptions::default()).unwrap();
            let most = layout.max_size_bytes();
            assert!(most >= whole_blocks(size_bytes) * GROWTH, "{most} of {size_bytes}");
            assert!(layout.is_consistent(most) && !layout.is_consistent(most + (1 << 20)));
        }
        let largest = Layout::new(MAX_POOL_BYTES, &CreateOptions::default()).unwrap();
        assert_eq!(largest.max_size_bytes(), MAX_POOL_BYTES);
    }

    #[test]
    fn a_pool_that_is_too_small_is_told_the_least_size_at_once() {
        let needed = |size_bytes, options: &CreateOptions| match Layout::new(size_bytes, options) {
            Err(EngineError::TooSmall { needed_bytes, .. }) => Some(needed_bytes),
            _ => None,
        };
        for segment_bytes in [None, Some(256 << 10), Some(16 << 20)] {
            let options = CreateOptions { segment_bytes, ..CreateOptions::default() };
            let least_bytes = needed(0, &options).unwrap();
            for size_bytes in [1 << 20, 8 << 20, least_bytes - 4096] {
                assert_eq!(needed(size_bytes, &options), Some(least_bytes), "{size_bytes}");
            }
            Layout::new(least_bytes, &options).unwrap();
        }
    }
}
