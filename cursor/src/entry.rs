//! Map entries on disk: 24 bytes each, in leaf and fence pages.

use siltstone_device::{BLOCK_BYTES, BlockAddress, ByteOffset, LayerId, Place};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{
    epoch::Epoch,
    extent::{Extent, Key, MAX_BLOCKS, Target, VersionKey},
};

/// Set in [`LeafEntry::address`]: the extent is a hole.
const HOLE: u64 = 1 << 63;
/// Set in [`LeafEntry::address`]: an older version of the same blocks as the entry before, which
/// for a page's first entry is the last of the page before.
const OLDER: u64 = 1 << 62;
/// The bits of [`LeafEntry::address`] that hold the length of stored blocks.
const LENGTH: u64 = 0x7f << LENGTH_SHIFT;
const LENGTH_SHIFT: u32 = 48;
/// The bits of [`LeafEntry::address`] that hold the address.
const ADDRESS: u64 = MAX_BLOCKS - 1;

/// An extent in a leaf page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct LeafEntry {
    layer: U32,
    epoch: U32,
    /// Block address (48 bits), length of stored blocks (7 bits), flags.
    address: U64,
    /// A packed [`Place`]; the length in blocks of a hole.
    place: U64,
}

/// Set in [`FenceEntry::page`]: the child begins with an older version of what the child before
/// ends with.
const CONTINUES: u64 = 1 << 47;

/// A child page in a fence page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct FenceEntry {
    layer: U32,
    /// The checksum in the child's header: a child that is whole but older is told by it.
    checksum: U32,
    /// The epoch of the child's first entry.
    epoch: U32,
    /// The block address of the child's first entry.
    address: [u8; 6],
    /// Where the child page is on the device, in pages (47 bits); a flag.
    page: [u8; 6],
}

/// Bytes of an entry of either kind.
pub(crate) const ENTRY_BYTES: usize = 24;
const _: () = assert!(size_of::<LeafEntry>() == ENTRY_BYTES);
const _: () = assert!(size_of::<FenceEntry>() == ENTRY_BYTES);

#[inline]
fn from_48_bits(bytes: &[u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = *bytes;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

fn to_48_bits(value: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, 0, 0] = value.to_le_bytes() else {
        panic!("{value} does not fit in 48 bits");
    };
    [a, b, c, d, e, f]
}

impl LeafEntry {
    /// The entry of an extent; `is_older` if the entry before is of the same blocks.
    pub(crate) fn encode(extent: &Extent, is_older: bool) -> Self {
        assert!(extent.is_valid(), "{extent:?} cannot be stored");
        let len_blocks = u64::from(extent.len_blocks);
        let (flags, place) = match extent.target {
            Target::Hole => (HOLE, len_blocks),
            Target::Stored(place) => (len_blocks << LENGTH_SHIFT, place.raw()),
        };
        let older = if is_older { OLDER } else { 0 };
        Self {
            layer: U32::new(extent.layer.0),
            epoch: U32::new(extent.epoch.0),
            address: U64::new(extent.address.0 | flags | older),
            place: U64::new(place),
        }
    }

    /// The extent's first block.
    #[inline]
    pub(crate) fn key(&self) -> Key {
        Key::new(LayerId(self.layer.get()), self.address.get() & ADDRESS)
    }

    /// The entry's position among versions.
    #[inline]
    pub(crate) fn version(&self) -> VersionKey {
        VersionKey::new(self.key(), Epoch(self.epoch.get()))
    }

    /// Whether the entry before is a newer version of the same blocks.
    #[inline]
    pub(crate) fn is_older(&self) -> bool {
        self.address.get() & OLDER != 0
    }

    /// The extent; meaningful if [`is_valid`](Self::is_valid).
    #[inline]
    pub(crate) fn extent(&self) -> Extent {
        let (address, place) = (self.address.get(), self.place.get());
        let (target, len_blocks) = if address & HOLE != 0 {
            (Target::Hole, place as u32)
        } else {
            let len_blocks = (address & LENGTH) >> LENGTH_SHIFT;
            (Target::Stored(Place::from_raw(place)), len_blocks as u32)
        };
        Extent {
            layer: LayerId(self.layer.get()),
            epoch: Epoch(self.epoch.get()),
            address: BlockAddress(address & ADDRESS),
            len_blocks,
            target,
        }
    }

    /// Whether a correct writer could have written these bytes.
    pub(crate) fn is_valid(&self) -> bool {
        let flags = self.address.get() & !(ADDRESS | OLDER);
        let is_hole = flags == HOLE && self.place.get() <= u32::MAX.into();
        (is_hole || flags & !LENGTH == 0) && self.extent().is_valid()
    }
}

impl FenceEntry {
    /// The entry of a child page; `continues` if its first entry is an older version of what the
    /// child before ends with.
    ///
    /// # Panics
    /// If the page lies past 512 PiB, where no pool reaches.
    pub(crate) fn new(first: VersionKey, continues: bool, page: ByteOffset, checksum: u32) -> Self {
        let number = page.0 / BLOCK_BYTES as u64;
        assert!(number < CONTINUES, "a page of the map at {page}");
        Self {
            layer: U32::new(first.key.layer.0),
            checksum: U32::new(checksum),
            epoch: U32::new(first.epoch().0),
            address: to_48_bits(first.key.address.0),
            page: to_48_bits(number | if continues { CONTINUES } else { 0 }),
        }
    }

    /// The block address of the child's first entry.
    #[inline]
    pub(crate) fn key(&self) -> Key {
        Key::new(LayerId(self.layer.get()), from_48_bits(&self.address))
    }

    /// The position of the child's first entry.
    #[inline]
    pub(crate) fn version(&self) -> VersionKey {
        VersionKey::new(self.key(), Epoch(self.epoch.get()))
    }

    /// Whether the child begins with an older version of what the child before ends with.
    #[inline]
    pub(crate) fn continues(&self) -> bool {
        from_48_bits(&self.page) & CONTINUES != 0
    }

    pub(crate) fn page(&self) -> ByteOffset {
        ByteOffset((from_48_bits(&self.page) & !CONTINUES) * BLOCK_BYTES as u64)
    }

    pub(crate) fn checksum(&self) -> u32 {
        self.checksum.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use siltstone_device::SegmentId;

    fn stored() -> Extent {
        Extent {
            layer: LayerId(7),
            epoch: Epoch(0x8765_4321),
            address: BlockAddress(MAX_BLOCKS - 6),
            len_blocks: 6,
            target: Target::Stored(Place::new(SegmentId(3), 8192, 58)),
        }
    }

    #[test]
    fn an_extent_survives_encoding() {
        let stored = stored();
        let frame = Target::Stored(Place::new(SegmentId(3), 8192, 0));
        let longest = Extent { len_blocks: 64, address: BlockAddress(0), target: frame, ..stored };
        let hole = Extent { len_blocks: u32::MAX, address: BlockAddress(5), ..stored };
        let hole = Extent { target: Target::Hole, ..hole };
        for extent in [stored, longest, hole] {
            for is_older in [false, true] {
                let entry = LeafEntry::encode(&extent, is_older);
                assert!(entry.is_valid());
                assert_eq!(entry.extent(), extent);
                assert_eq!(entry.version(), extent.version());
                assert_eq!(entry.is_older(), is_older);
            }
        }
    }

    #[test]
    fn a_fence_survives_encoding() {
        let first = VersionKey::new(Key::new(LayerId(7), MAX_BLOCKS - 1), Epoch(u32::MAX - 1));
        for (continues, page) in [(true, 0), (false, (1 << 59) - 4096), (true, 12 << 40)] {
            let fence = FenceEntry::new(first, continues, ByteOffset(page), 99);
            assert_eq!((fence.version(), fence.key()), (first, first.key));
            assert_eq!((fence.continues(), fence.page().0), (continues, page));
            assert_eq!(fence.checksum(), 99);
        }
    }

    #[test]
    fn impossible_entries_are_refused() {
        let extent = Extent { address: BlockAddress(9), ..stored() };
        let good = LeafEntry::encode(&Extent { len_blocks: 2, ..extent }, false);
        assert!(good.is_valid());
        let with = |address: u64| LeafEntry { address: U64::new(address), ..good };
        let empty = with(9);
        let past_the_frame = with(9 | 7 << LENGTH_SHIFT);
        let unknown_flag = with(9 | 2 << LENGTH_SHIFT | 1 << 55);
        let past_the_end = with((MAX_BLOCKS - 1) | 2 << LENGTH_SHIFT);
        let hole = LeafEntry::encode(&Extent { target: Target::Hole, ..extent }, false);
        assert!(hole.is_valid());
        let hole_with_place = LeafEntry { place: U64::new(1 << 36 | 6), ..hole };
        let hole_with_length =
            LeafEntry { address: U64::new(9 | HOLE | 6 << LENGTH_SHIFT), ..hole };
        let empty_hole = LeafEntry { place: U64::new(0), ..hole };
        for entry in [
            empty,
            past_the_frame,
            unknown_flag,
            past_the_end,
            hole_with_place,
            hole_with_length,
            empty_hole,
        ] {
            assert!(!entry.is_valid(), "{entry:?}");
        }
    }
}
