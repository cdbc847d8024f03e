//! What segments are used for, in bytes of the device.

use std::collections::BTreeSet;

use siltstone_device::{BLOCK_BYTES, SegmentId};

use super::{Packed, SegmentState, SegmentTable};

/// Each byte of each segment is in one of `room_bytes`, `unit_bytes`, `map_bytes`, `image_bytes`,
/// `tail_bytes`, `metadata_rest_bytes` and `freeing_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// How many segments there are.
    pub(crate) segments: u32,
    /// Free segments, and what is left of those that the sealer has or will have.
    pub(crate) room_bytes: u64,
    /// Write units.
    pub(crate) unit_bytes: u64,
    /// Pages of patches.
    pub(crate) map_bytes: u64,
    /// Chunks of images of the index.
    pub(crate) image_bytes: u64,
    /// Behind the last write unit of segments that get no more of them.
    pub(crate) tail_bytes: u64,
    /// What pages and chunks leave of segments of metadata.
    pub(crate) metadata_rest_bytes: u64,
    /// Segments about to be freed.
    pub(crate) freeing_bytes: u64,
    /// Blocks in write units.
    pub(crate) stored_blocks: u64,
    /// At most so much of `unit_bytes` is for blocks that live, by the references to each segment.
    /// A block counts as often as it is referred to, so it may be much less.
    pub(crate) live_unit_bytes: u64,
    /// The tails of those, in proportion.
    pub(crate) live_tail_bytes: u64,
}

impl SegmentTable {
    /// What all segments are used for at one moment. The sealer writes no more to those in `full`.
    pub(crate) fn usage(&self, full: &BTreeSet<SegmentId>) -> Usage {
        let segment_bytes = self.layout.segment_bytes;
        let mut usage = Usage::default();
        let inner = self.inner.lock();
        usage.segments = inner.segments.len() as u32;
        for (id, segment) in (0..).map(SegmentId).zip(&inner.segments) {
            let used_bytes = u64::from(segment.used_bytes);
            // More than there is would be damage of the table, which `check` shall see in the sum.
            let rest_bytes = segment_bytes.saturating_sub(used_bytes);
            match segment.state {
                SegmentState::Free => usage.room_bytes += segment_bytes,
                SegmentState::Freeing => usage.freeing_bytes += segment_bytes,
                SegmentState::Frontier | SegmentState::Data => {
                    usage.unit_bytes += used_bytes;
                    usage.stored_blocks += u64::from(segment.stored_blocks);
                    usage.live_unit_bytes += live_share(segment, used_bytes);
                    if segment.state == SegmentState::Frontier && !full.contains(&id) {
                        usage.room_bytes += rest_bytes;
                    } else {
                        usage.tail_bytes += rest_bytes;
                        usage.live_tail_bytes += live_share(segment, rest_bytes);
                    }
                }
                SegmentState::Metadata => {
                    usage.map_bytes += used_bytes;
                    usage.metadata_rest_bytes += rest_bytes;
                }
                SegmentState::IndexImage => {
                    usage.image_bytes += used_bytes;
                    usage.metadata_rest_bytes += rest_bytes;
                }
            }
        }
        debug_assert!(usage.map_bytes.is_multiple_of(BLOCK_BYTES as u64));
        usage
    }
}

/// What of a segment's `bytes` its references allow to live.
fn live_share(segment: &Packed, bytes: u64) -> u64 {
    if segment.state == SegmentState::Frontier {
        // What refers to it is not in patches yet.
        return bytes;
    }
    let stored = u64::from(segment.stored_blocks);
    bytes * segment.references().min(stored) / stored.max(1)
}
