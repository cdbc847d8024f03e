//! A table of a pool that is full, without the pool.

use siltstone_device::{SegmentId, sync::atomic::Ordering};

use super::{Packed, SegmentState, SegmentTable};
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
            let data = Packed::empty(SegmentState::Data).with_references(blocks.into());
            *segment = data.expect("a count of references has room for the blocks of a segment");
            segment.stored_blocks = blocks;
            segment.used_bytes = layout.segment_bytes as u32;
            inner.free -= 1;
            let id = SegmentId(at as u32);
            let known = table.generations.get(id).expect("each segment has a generation");
            known.store(generation, Ordering::Relaxed);
            generation += 1;
        }
        table.next_generation.store(generation, Ordering::Relaxed);
        table
    }
}
