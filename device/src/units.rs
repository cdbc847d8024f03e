//! The units that every layer counts in, as newtypes so that they cannot be mixed up.

use std::fmt;

/// Bytes in a block: the unit of deduplication, of the map, and of device alignment.
pub const BLOCK_BYTES: usize = 4096;

/// Granularity at which frames are placed inside a segment, in bytes.
pub const PLACE_GRAIN_BYTES: u64 = 16;

/// Largest segment that a [`Place`] can address, in bytes.
pub const MAX_SEGMENT_BYTES: u64 = PLACE_GRAIN_BYTES << 20;

/// Largest segment id that a [`Place`] can hold.
pub const MAX_SEGMENT_ID: SegmentId = SegmentId((1 << 28) - 1);

/// Most blocks that a frame can hold, by the width of a [`Place`]'s index.
pub const MAX_FRAME_BLOCKS: usize = 64;

/// Most bytes that a frame can take on the device, header included.
pub const MAX_FRAME_STORED_BYTES: usize = 1023 * 64;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

unit! {
    /// A position on a device, in bytes from its start.
    ByteOffset(u64), "byte {}"
}
unit! {
    /// The position of an admitted change in the pool's total order; later wins. 0 is "before all".
    Sequence(u64), "sequence {}"
}
unit! {
    /// A segment: a large aligned region of the pool, written once front to back and freed whole.
    SegmentId(u32), "segment {}"
}
unit! {
    /// A layer: the copy-on-write unit behind volumes and snapshots. Never reused.
    LayerId(u32), "layer {}"
}
unit! {
    /// A block's address within its layer, in blocks of [`BLOCK_BYTES`].
    BlockAddress(u64), "block {}"
}

impl ByteOffset {
    /// This position moved forward by `bytes`.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl Sequence {
    /// The sequence number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl BlockAddress {
    /// This address moved forward by `blocks`.
    #[must_use]
    pub fn plus(self, blocks: u64) -> Self {
        Self(self.0 + blocks)
    }
}

/// Where a block is: a segment, the position of its frame in that segment, how much of the device
/// the frame takes, and the block's position in the frame. Packs into 64 bits, from the top:
/// segment 28, grain 20, stored length 10 (in units of 64 bytes, rounded up; 0 = not known), index 6.
///
/// The stored length lets a reader fetch a frame with one read of the right size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

const INDEX_BITS: u32 = 6;
const LENGTH_BITS: u32 = 10;
const GRAIN_BITS: u32 = 20;
const LENGTH_UNIT_BYTES: u64 = 64;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;

impl Place {
    /// A place from its parts, with the stored length not known.
    ///
    /// # Panics
    /// If `frame_offset_bytes` is not a multiple of [`PLACE_GRAIN_BYTES`] below
    /// [`MAX_SEGMENT_BYTES`], `segment` is above [`MAX_SEGMENT_ID`] or `index` not below
    /// [`MAX_FRAME_BLOCKS`]: all come from the sealer, never from input.
    #[must_use]
    pub fn new(segment: SegmentId, frame_offset_bytes: u32, index: u8) -> Self {
        let offset = u64::from(frame_offset_bytes);
        assert!(offset.is_multiple_of(PLACE_GRAIN_BYTES) && offset < MAX_SEGMENT_BYTES);
        assert!(segment <= MAX_SEGMENT_ID && usize::from(index) < MAX_FRAME_BLOCKS);
        let grain = offset / PLACE_GRAIN_BYTES;
        Self(
            u64::from(segment.0) << (GRAIN_BITS + LENGTH_BITS + INDEX_BITS)
                | grain << (LENGTH_BITS + INDEX_BITS)
                | u64::from(index),
        )
    }

    /// The same place, saying that the frame takes `stored_bytes` on the device.
    ///
    /// # Panics
    /// If that is more than [`MAX_FRAME_STORED_BYTES`].
    #[must_use]
    pub fn with_stored_bytes(self, stored_bytes: usize) -> Self {
        assert!(stored_bytes <= MAX_FRAME_STORED_BYTES);
        let length = (stored_bytes as u64).div_ceil(LENGTH_UNIT_BYTES);
        let mask = ((1 << LENGTH_BITS) - 1) << INDEX_BITS;
        Self(self.0 & !mask | length << INDEX_BITS)
    }

    /// A place from its packed form; every value is some place.
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The packed form.
    #[must_use]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The segment that holds the block's frame.
    #[must_use]
    pub fn segment(self) -> SegmentId {
        SegmentId((self.0 >> (GRAIN_BITS + LENGTH_BITS + INDEX_BITS)) as u32)
    }

    /// The frame's offset from the start of its segment, in bytes.
    #[must_use]
    pub fn frame_offset_bytes(self) -> u32 {
        let grain = self.0 >> (LENGTH_BITS + INDEX_BITS) & ((1 << GRAIN_BITS) - 1);
        (grain * PLACE_GRAIN_BYTES) as u32
    }

    /// An upper bound (by less than 64) of the bytes that the frame takes, or `None` if not known.
    #[must_use]
    pub fn stored_bytes(self) -> Option<usize> {
        let length = self.0 >> INDEX_BITS & ((1 << LENGTH_BITS) - 1);
        (length != 0).then_some((length * LENGTH_UNIT_BYTES) as usize)
    }

    /// The block's position in its frame, counted in blocks; below [`MAX_FRAME_BLOCKS`].
    #[must_use]
    pub fn index(self) -> u8 {
        (self.0 & INDEX_MASK) as u8
    }

    /// The place `blocks` further on in the same frame, or `None` past the largest index.
    #[must_use]
    pub fn advanced(self, blocks: u64) -> Option<Self> {
        let index = u64::from(self.index()) + blocks;
        (index <= INDEX_MASK).then_some(Self(self.0 & !INDEX_MASK | index))
    }

    /// The place of the same frame's first block.
    #[must_use]
    pub fn frame(self) -> Self {
        Self(self.0 & !INDEX_MASK)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "segment {} frame at {} block {}",
            self.segment().0,
            self.frame_offset_bytes(),
            self.index()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_keeps_its_parts() {
        let place = Place::new(MAX_SEGMENT_ID, ((1 << 20) - 1) * 16, 63).with_stored_bytes(7001);
        assert_eq!(place.segment(), MAX_SEGMENT_ID);
        assert_eq!(place.frame_offset_bytes(), ((1 << 20) - 1) * 16);
        assert_eq!(place.index(), 63);
        assert_eq!(place.stored_bytes(), Some(7040));
        assert_eq!(Place::from_raw(place.raw()), place);
        assert_eq!(Place::new(SegmentId(1), 0, 0).stored_bytes(), None);
    }

    #[test]
    fn advancing_a_place_stays_in_its_frame() {
        let place = Place::new(SegmentId(7), 4096, 3);
        assert_eq!(place.advanced(4), Some(Place::new(SegmentId(7), 4096, 7)));
        assert_eq!(place.advanced(61), None);
        assert_eq!(place.frame(), Place::new(SegmentId(7), 4096, 0));
    }
}
