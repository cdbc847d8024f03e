//! How soon a write is likely to be overwritten, judged by whether it overwrites a recent one.
//!
//! # Why
//! The collector's work is to move what lives out of segments in which the rest is dead. Where
//! blocks that die soon stand together, a segment is all dead before anyone has to move anything; where
//! they stand among blocks that stay, each segment ends half alive. What dies soon is what has just
//! been written over what had itself been written a short time ago (Wang et al., "Separating data via
//! block invalidation time inference for write amplification reduction in log-structured storage",
//! FAST 2022, section 3).
//!
//! # How
//! A table with a slot of 16 bits for every [`BLOCKS_A_SLOT`] blocks of the pool holds a tag of the
//! address that was written last of all that fall into the slot. A write that finds its own tag there
//! is hot: no other address of the slot has been written in between. On average that is so many
//! writes as there are slots, so the table says "written again within a hundredth of the pool's size"
//! without keeping time. Only the first block of a write is looked at, which is that of all its blocks
//! where blocks are written alone, and makes no difference where data are written in sequence.
//!
//! A wrong guess, by a race or because two addresses have one tag (one in 2^15), puts a block beside
//! others than the best. The table is empty when a pool is opened.

use std::sync::atomic::{AtomicU16, Ordering};

use siltstone_device::{BLOCK_BYTES, BlockAddress, LayerId};

use crate::overlay::{Change, ChangeBody};

/// Blocks of the pool for each slot.
const BLOCKS_A_SLOT: u64 = 128;
/// 2 KiB.
const MIN_SLOTS: u64 = 1 << 10;
/// 2 MiB.
const MAX_SLOTS: u64 = 1 << 20;
/// Pools with fewer segments have none to spare for telling blocks apart.
const MIN_SEGMENTS: u32 = 64;

/// How soon a block is likely to be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Temperature {
    /// Not soon, or not known.
    Cold,
    /// Soon.
    Hot,
}

impl Temperature {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Cold => Self::Hot,
            Self::Hot => Self::Cold,
        }
    }
}

/// See the module's page.
pub(crate) struct RecentWrites {
    /// Tags, of which none is 0; a power of two of them, or none if all writes count as cold.
    slots: Vec<AtomicU16>,
}

impl RecentWrites {
    /// For a pool of so many segments.
    pub(crate) fn new(segment_count: u32, segment_bytes: u64) -> Self {
        let blocks = u64::from(segment_count) * (segment_bytes / BLOCK_BYTES as u64);
        let slots = match segment_count {
            0..MIN_SEGMENTS => 0,
            _ => (blocks / BLOCKS_A_SLOT).next_power_of_two().clamp(MIN_SLOTS, MAX_SLOTS),
        };
        Self { slots: (0..slots).map(|_| AtomicU16::new(0)).collect() }
    }

    /// Remembers a change, and says how soon what it writes is likely to be overwritten.
    pub(crate) fn note(&self, change: &Change) -> Temperature {
        match change.body {
            ChangeBody::Data(_) => self.note_write(change.layer(), change.address),
            ChangeBody::Zero => Temperature::Cold,
        }
    }

    fn note_write(&self, layer: LayerId, address: BlockAddress) -> Temperature {
        if self.slots.is_empty() {
            return Temperature::Cold;
        }
        let hash = spread(u64::from(layer.0), address.0);
        let slot = &self.slots[(hash >> 16) as usize & (self.slots.len() - 1)];
        let tag = hash as u16 | 1;
        // Nothing else depends on it.
        if slot.swap(tag, Ordering::Relaxed) == tag { Temperature::Hot } else { Temperature::Cold }
    }
}

/// Spreads addresses over all bits: those of one volume differ in few. Steps of a multiplicative
/// mixer (Steele et al., "Fast splittable pseudorandom number generators", 2014, section 5).
fn spread(layer: u64, address: u64) -> u64 {
    let mut bits = address ^ layer.rotate_right(20);
    for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        bits = (bits ^ (bits >> 30)).wrapping_mul(factor);
    }
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(recent: &RecentWrites, address: u64) -> Temperature {
        recent.note_write(LayerId(3), BlockAddress(address))
    }

    #[test]
    fn what_is_written_again_soon_is_hot_and_what_comes_back_late_is_not() {
        let recent = RecentWrites::new(128, 2 << 20);
        assert_eq!(recent.slots.len() as u64, MIN_SLOTS);
        assert_eq!(note(&recent, 7), Temperature::Cold);
        assert_eq!(note(&recent, 7), Temperature::Hot);
        assert_eq!(recent.note_write(LayerId(4), BlockAddress(7)), Temperature::Cold);
        let count = |addresses: std::ops::Range<u64>| {
            addresses.filter(|&address| note(&recent, address) == Temperature::Hot).count()
        };
        assert_eq!(count(10_000..10_050), 0);
        assert!(count(10_000..10_050) > 40, "few have met in a slot");
        assert!(count(20_000..30_000) < 5, "one in 2^15 is taken for another");
        assert!(count(10_000..10_050) < 3, "all slots have been taken since");
    }

    #[test]
    fn small_pools_do_not_tell_blocks_apart() {
        let recent = RecentWrites::new(MIN_SEGMENTS - 1, 8 << 20);
        assert_eq!([note(&recent, 7), note(&recent, 7)], [Temperature::Cold; 2]);
        assert_eq!(RecentWrites::new(u32::MAX, 8 << 20).slots.len() as u64, MAX_SLOTS);
    }
}
