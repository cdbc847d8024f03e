//! Map entries on disk: 24 bytes each, in leaf and fence pages.

use siltstone_device::{BlockAddress, ByteOffset, LayerId, Place};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::extent::{Extent, Key, MAX_BLOCKS, Target};

/// Set in [`LeafEntry::address`]: the extent is a hole.
const HOLE: u64 = 1 << 63;
/// The bits of [`LeafEntry::address`] that hold the address; the others are flags.
const ADDRESS: u64 = MAX_BLOCKS - 1;

/// An extent in a leaf page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct LeafEntry {
    layer: U32,
    len_blocks: U32,
    /// Block address (48 bits) and flags (16 bits).
    address: U64,
    /// A packed [`Place`]; zero in a hole.
    place: U64,
}

/// A child page in a fence page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct FenceEntry {
    layer: U32,
    /// The checksum in the child's header: a child that is whole but older is told by it.
    checksum: U32,
    /// The block address of the child's first key.
    address: U64,
    /// Where the child page is on the device, in bytes.
    page_bytes: U64,
}

/// Bytes of an entry of either kind.
pub(crate) const ENTRY_BYTES: usize = 24;
const _: () = assert!(size_of::<LeafEntry>() == ENTRY_BYTES);
const _: () = assert!(size_of::<FenceEntry>() == ENTRY_BYTES);

impl LeafEntry {
    pub(crate) fn encode(extent: &Extent) -> Self {
        assert!(extent.is_valid(), "{extent:?} cannot be stored");
        let (flags, place) = match extent.target {
            Target::Hole => (HOLE, 0),
            Target::Stored(place) => (0, place.raw()),
        };
        Self {
            layer: U32::new(extent.layer.0),
            len_blocks: U32::new(extent.len_blocks),
            address: U64::new(extent.address.0 | flags),
            place: U64::new(place),
        }
    }

    /// The extent's first block.
    #[inline]
    pub(crate) fn key(&self) -> Key {
        Key::new(LayerId(self.layer.get()), self.address.get() & ADDRESS)
    }

    /// The extent; meaningful if [`is_valid`](Self::is_valid).
    #[inline]
    pub(crate) fn extent(&self) -> Extent {
        let address = self.address.get();
        let target = if address & HOLE != 0 {
            Target::Hole
        } else {
            Target::Stored(Place::from_raw(self.place.get()))
        };
        Extent {
            layer: LayerId(self.layer.get()),
            address: BlockAddress(address & ADDRESS),
            len_blocks: self.len_blocks.get(),
            target,
        }
    }

    /// Whether a correct writer could have written these bytes.
    pub(crate) fn is_valid(&self) -> bool {
        let flags = self.address.get() & !ADDRESS;
        (flags == 0 || flags == HOLE && self.place.get() == 0) && self.extent().is_valid()
    }
}

impl FenceEntry {
    pub(crate) fn new(first: Key, page: ByteOffset, checksum: u32) -> Self {
        Self {
            layer: U32::new(first.layer.0),
            checksum: U32::new(checksum),
            address: U64::new(first.address.0),
            page_bytes: U64::new(page.0),
        }
    }

    /// The first key of the child page.
    #[inline]
    pub(crate) fn key(&self) -> Key {
        Key::new(LayerId(self.layer.get()), self.address.get())
    }

    pub(crate) fn page(&self) -> ByteOffset {
        ByteOffset(self.page_bytes.get())
    }

    pub(crate) fn checksum(&self) -> u32 {
        self.checksum.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use siltstone_device::SegmentId;

    #[test]
    fn an_extent_survives_encoding() {
        let stored = Extent {
            layer: LayerId(7),
            address: BlockAddress(MAX_BLOCKS - 6),
            len_blocks: 6,
            target: Target::Stored(Place::new(SegmentId(3), 8192, 58)),
        };
        let hole = Extent { len_blocks: u32::MAX, address: BlockAddress(5), ..stored };
        let hole = Extent { target: Target::Hole, ..hole };
        for extent in [stored, hole] {
            let entry = LeafEntry::encode(&extent);
            assert!(entry.is_valid());
            assert_eq!(entry.extent(), extent);
            assert_eq!(entry.key(), extent.start());
        }
    }

    #[test]
    fn impossible_entries_are_refused() {
        let good = LeafEntry::encode(&Extent {
            layer: LayerId(1),
            address: BlockAddress(9),
            len_blocks: 2,
            target: Target::Stored(Place::new(SegmentId(3), 8192, 58)),
        });
        let empty = LeafEntry { len_blocks: U32::new(0), ..good };
        let past_the_frame = LeafEntry { len_blocks: U32::new(7), ..good };
        let unknown_flag = LeafEntry { address: U64::new(9 | 1 << 50), ..good };
        let hole_with_place = LeafEntry { address: U64::new(9 | HOLE), ..good };
        let past_the_end = LeafEntry { address: U64::new(MAX_BLOCKS - 1), ..good };
        for entry in [empty, past_the_frame, unknown_flag, hole_with_place, past_the_end] {
            assert!(!entry.is_valid(), "{entry:?}");
        }
    }
}
