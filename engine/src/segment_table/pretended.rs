//! A table of a pool that is full, without the pool.

use siltstone_device::sync::atomic::Ordering;

use super::{Segment, SegmentState, SegmentTable};
use crate::{layout::Layout, segment_count::SegmentCount};

/// So many segments are free for each that is.
const SEGMENTS_A_FREE_ONE: usize = 10;

impl SegmentTable {
    /// Of each ten segments, nine are full of blocks that compressed to half, each referred to once.
    pub(crate) fn pretended(pool: u64, layout: Layout, count: SegmentCount) -> Self {
        let blocks = (layout.segment_bytes / 4096 * 2) as u32;
        let mut table = Self::new(pool, layout, count);
        let inner = table.inner.get_mut();
        let mut generation = 1;
        for (at, segment) in inner.segments.iter_mut().enumerate() {
            if at.is_multiple_of(SEGMENTS_A_FREE_ONE) {
                continue;
            }
            *segment = Segment {
                state: SegmentState::Data,
                generation,
                references: blocks.into(),
                stored_blocks: blocks,
                used_bytes: layout.segment_bytes as u32,
                pages: 0,
                is_damaged: false,
            };
            inner.free -= 1;
            generation += 1;
        }
        table.next_generation.store(generation, Ordering::Relaxed);
        table
    }
}
