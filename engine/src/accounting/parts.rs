//! Where every byte of a pool is.

use serde::Serialize;

use crate::core::Core;

/// What a pool's bytes on its device are for. The parts sum to its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SpaceParts {
    /// Data: what write units take for blocks that are referred to, in proportion; with summaries
    /// and padding.
    pub stored_bytes: u64,
    /// What garbage collection can get back: dead blocks, with their share of summaries, padding and
    /// tails of segments; and segments that are about to be freed.
    pub garbage_bytes: u64,
    /// What segments in use leave empty: too little for another write unit, and room for the next
    /// pages of the map.
    pub overhead_bytes: u64,
    /// The map, the stored image of the dedup index, the NVRAM log if it is in the pool, checkpoints,
    /// the segment table, superblocks.
    pub metadata_bytes: u64,
    /// Kept back so that a full pool takes trims and deletes, and can be collected.
    pub reserved_bytes: u64,
    /// Promised to changes that are admitted and not yet placed.
    pub pending_bytes: u64,
    /// What can be written, before any reduction.
    pub free_bytes: u64,
    /// Behind the last whole segment.
    pub unusable_bytes: u64,
}

impl SpaceParts {
    /// The sum.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let Self { stored_bytes, garbage_bytes, metadata_bytes, .. } = self;
        let Self { reserved_bytes, pending_bytes, free_bytes, unusable_bytes, .. } = self;
        let in_use = stored_bytes + garbage_bytes + self.overhead_bytes + metadata_bytes;
        in_use + reserved_bytes + pending_bytes + free_bytes + unusable_bytes
    }
}

impl Core {
    /// Where every byte is at this moment, and the pool's size. `live_blocks` is how many distinct
    /// blocks are referred to; without, garbage is what references alone show, which is the least
    /// that it can be.
    pub(crate) fn space_parts(&self, live_blocks: Option<u64>) -> (SpaceParts, u64) {
        let usage = self.table.usage(&self.frontier.full_segments());
        // After the table, which gets new segments when the size has changed: those that it has are
        // in this size.
        let size_bytes = self.revision.lock().size_bytes;
        let layout = &self.superblock.layout;
        let (stored_bytes, live_tail_bytes) = match live_blocks {
            Some(live) => {
                let live_share = |bytes| in_proportion(bytes, live, usage.stored_blocks);
                (live_share(usage.unit_bytes), live_share(usage.tail_bytes))
            }
            None => (usage.live_unit_bytes, usage.live_tail_bytes),
        };
        let dead_bytes = usage.unit_bytes + usage.tail_bytes - stored_bytes - live_tail_bytes;
        let reserved_bytes = self.space.reserve_bytes().min(usage.room_bytes);
        let left_bytes = usage.room_bytes - reserved_bytes;
        let pending_bytes = self.space.promised_bytes().min(left_bytes);
        let segments_bytes = u64::from(usage.segments) * layout.segment_bytes;
        let parts = SpaceParts {
            stored_bytes,
            garbage_bytes: usage.freeing_bytes + dead_bytes,
            overhead_bytes: live_tail_bytes + usage.metadata_rest_bytes,
            metadata_bytes: layout.data_start.0 + usage.map_bytes + usage.image_bytes,
            reserved_bytes,
            pending_bytes,
            free_bytes: left_bytes - pending_bytes,
            unusable_bytes: size_bytes.saturating_sub(layout.data_start.0 + segments_bytes),
        };
        (parts, size_bytes)
    }
}

/// `part / whole` of `bytes`, at most all; nothing of nothing.
pub(super) fn in_proportion(bytes: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(bytes) * u128::from(part.min(whole)) / u128::from(whole.max(1));
    u64::try_from(share).expect("a share is no more than the whole")
}
