//! The units that every layer counts in, as newtypes so that they cannot be mixed up.

use std::fmt;

/// Bytes in a block: the unit of deduplication, of the map, and of device alignment.
pub const BLOCK_BYTES: usize = 4096;

/// Granularity at which frames are placed inside a segment, in bytes.
pub const PLACE_GRAIN_BYTES: u64 = 16;

/// Largest segment that a [`Place`] can address, in bytes (24 bits of grains).
pub const MAX_SEGMENT_BYTES: u64 = PLACE_GRAIN_BYTES << 24;

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

/// Where a block is: a segment, the position of its frame in that segment, and the block's
/// position in the frame. Packs into 64 bits: segment 32, grain 24, index 8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

impl Place {
    /// A place from its parts.
    ///
    /// # Panics
    /// If `frame_offset_bytes` is not a multiple of [`PLACE_GRAIN_BYTES`] below
    /// [`MAX_SEGMENT_BYTES`]: offsets come from the sealer, never from input.
    #[must_use]
    pub fn new(segment: SegmentId, frame_offset_bytes: u32, index: u8) -> Self {
        let offset = u64::from(frame_offset_bytes);
        assert!(offset.is_multiple_of(PLACE_GRAIN_BYTES) && offset < MAX_SEGMENT_BYTES);
        Self(u64::from(segment.0) << 32 | (offset / PLACE_GRAIN_BYTES) << 8 | u64::from(index))
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
        SegmentId((self.0 >> 32) as u32)
    }

    /// The frame's offset from the start of its segment, in bytes.
    #[must_use]
    pub fn frame_offset_bytes(self) -> u32 {
        ((self.0 >> 8 & 0xff_ffff) * PLACE_GRAIN_BYTES) as u32
    }

    /// The block's position in its frame, counted in blocks.
    #[must_use]
    pub fn index(self) -> u8 {
        self.0 as u8
    }

    /// The place `blocks` further on in the same frame, or `None` past the largest index.
    #[must_use]
    pub fn advanced(self, blocks: u64) -> Option<Self> {
        let index = u64::from(self.index()) + blocks;
        (index <= 0xff).then_some(Self(self.0 & !0xff | index))
    }

    /// The place of the same frame's first block.
    #[must_use]
    pub fn frame(self) -> Self {
        Self(self.0 & !0xff)
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
        let place = Place::new(SegmentId(u32::MAX), 0xff_ffff * 16, 255);
        assert_eq!(place.segment(), SegmentId(u32::MAX));
        assert_eq!(place.frame_offset_bytes(), 0xff_ffff * 16);
        assert_eq!(place.index(), 255);
        assert_eq!(Place::from_raw(place.raw()), place);
    }

    #[test]
    fn advancing_a_place_stays_in_its_frame() {
        let place = Place::new(SegmentId(7), 4096, 3);
        assert_eq!(place.advanced(4), Some(Place::new(SegmentId(7), 4096, 7)));
        assert_eq!(place.advanced(253), None);
        assert_eq!(place.frame(), Place::new(SegmentId(7), 4096, 0));
    }
}
