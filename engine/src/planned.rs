//! What a reducer hands to the sealer: write units without their places.

use std::sync::Arc;

use siltstone_dedup::ShortFingerprint;
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BlockAddress, BufferPool, LayerId, Place, Sequence,
};

use crate::{
    frame::FrameBody, overlay::Change, temperature::Temperature, unit_buffers::Held,
    write_unit::UnitFrame,
};

/// Where a planned entry's blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlannedTarget {
    Hole,
    /// In a frame of the same unit.
    Own {
        frame: u32,
        index: u8,
    },
    /// In a published unit.
    Stored(Place),
    /// Wherever `batch` put the block that it registered at `position`.
    InFlight {
        batch: u64,
        position: u32,
    },
}

impl PlannedTarget {
    /// Whether the block was still on its way when this batch was reduced.
    pub(crate) fn is_in_flight(&self) -> bool {
        matches!(self, Self::InFlight { .. })
    }
}

/// A map entry whose place is not known before the unit is placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedEntry {
    pub(crate) layer: LayerId,
    pub(crate) address: BlockAddress,
    pub(crate) len_blocks: u32,
    pub(crate) sequence: Sequence,
    pub(crate) target: PlannedTarget,
}

impl PlannedEntry {
    /// Takes `next` in, if it continues this entry: the same change, address and frame.
    pub(crate) fn absorb(&mut self, next: &Self) -> bool {
        let len = u64::from(self.len_blocks);
        let continues = match (self.target, next.target) {
            (PlannedTarget::Hole, PlannedTarget::Hole) => true,
            (
                PlannedTarget::Own { frame, index },
                PlannedTarget::Own { frame: next_frame, index: next_index },
            ) => frame == next_frame && u64::from(index) + len == u64::from(next_index),
            (PlannedTarget::Stored(place), PlannedTarget::Stored(next_place)) => {
                place.advanced(len) == Some(next_place)
            }
            _ => false,
        };
        let absorbs = continues
            && self.layer == next.layer
            && self.sequence == next.sequence
            && self.address.plus(len) == next.address;
        if absorbs {
            self.len_blocks += next.len_blocks;
        }
        absorbs
    }
}

/// A frame that stands in the unit's buffer, its header still missing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedFrame {
    /// From the start of the unit.
    pub(crate) offset_bytes: u32,
    pub(crate) body: FrameBody,
}

impl PlannedFrame {
    /// What the unit's summary says of it.
    pub(crate) fn in_summary(&self) -> UnitFrame {
        UnitFrame {
            offset_bytes: self.offset_bytes,
            stored_bytes: (self.body.total_bytes() as u32).next_multiple_of(64),
            block_count: self.body.block_count,
        }
    }
}

/// Everything of a write unit but its place.
pub(crate) struct ReducedUnit {
    pub(crate) temperature: Temperature,
    /// The unit, with room for the summary at its start.
    pub(crate) buffer: AlignedBuffer,
    /// Where the last frame ends.
    pub(crate) end_bytes: usize,
    pub(crate) entries: Vec<PlannedEntry>,
    pub(crate) frames: Vec<PlannedFrame>,
    pub(crate) fingerprints: Vec<ShortFingerprint>,
}

impl ReducedUnit {
    /// On the device.
    pub(crate) fn unit_bytes(&self) -> u64 {
        self.end_bytes.next_multiple_of(BLOCK_BYTES) as u64
    }

    /// Moves the unit to a smaller buffer, if it needs at most half of what it has. For the length of a copy
    /// it takes both.
    pub(crate) fn pack(&mut self, buffers: &BufferPool) {
        let unit_bytes = self.unit_bytes() as usize;
        if BufferPool::capacity_of(unit_bytes) <= self.buffer.capacity() / 2 {
            let mut packed = buffers.take(unit_bytes);
            packed[..self.end_bytes].copy_from_slice(&self.buffer[..self.end_bytes]);
            self.buffer = packed;
        }
    }
}

/// Where a stored block of a batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnBlock {
    /// Which of the batch's units.
    pub(crate) unit: usize,
    pub(crate) frame: u32,
    pub(crate) index: u8,
}

/// A reduced batch.
pub(crate) struct ReducedBatch {
    pub(crate) number: u64,
    pub(crate) changes: Vec<Arc<Change>>,
    /// One, or two of different temperatures.
    pub(crate) units: Vec<ReducedUnit>,
    /// For each block that was registered as in flight, where it stands if it is stored here.
    pub(crate) registered: Vec<Option<OwnBlock>>,
    /// What the units' buffers have taken of the memory for them.
    pub(crate) held: Held,
}
