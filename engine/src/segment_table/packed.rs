//! What memory holds of a segment: a large pool has a million of them.

use siltstone_device::BLOCK_BYTES;

use super::{Segment, SegmentState};

/// A [`Segment`] without what is known from elsewhere: its generation has a place of its own, and its
/// count of pages follows from how much of it they fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    references_low: u32,
    references_high: u16,
    pub(super) state: SegmentState,
    pub(super) is_damaged: bool,
    pub(super) stored_blocks: u32,
    pub(super) used_bytes: u32,
}
const _: () = assert!(size_of::<Packed>() == 16);

/// Of a segment that holds nothing.
pub(super) const UNUSED: Packed = Packed::empty(SegmentState::Free);

impl Packed {
    /// Of a segment in which nothing stands yet.
    pub(super) const fn empty(state: SegmentState) -> Self {
        Self {
            references_low: 0,
            references_high: 0,
            state,
            is_damaged: false,
            stored_blocks: 0,
            used_bytes: 0,
        }
    }

    /// What is kept of a segment. `None` if its numbers contradict each other.
    pub(super) fn of(segment: &Segment) -> Option<Self> {
        let &Segment { state, references, stored_blocks, used_bytes, is_damaged, .. } = segment;
        let packed = Self { stored_blocks, used_bytes, is_damaged, ..Self::empty(state) };
        let packed = packed.with_references(references)?;
        (packed.pages() == segment.pages).then_some(packed)
    }

    /// All that is known of the segment in the use that bears this generation.
    pub(super) fn in_use(self, generation: u64) -> Segment {
        let Self { state, is_damaged, stored_blocks, used_bytes, .. } = self;
        let (references, pages) = (self.references(), self.pages());
        Segment { state, generation, references, stored_blocks, used_bytes, pages, is_damaged }
    }

    pub(super) fn references(&self) -> u64 {
        u64::from(self.references_high) << 32 | u64::from(self.references_low)
    }

    /// `None` if they do not fit 48 bits: no pool has room for map entries that refer to the blocks of
    /// one segment so often.
    pub(super) fn with_references(self, references: u64) -> Option<Self> {
        let references_low = references as u32;
        let references_high = u16::try_from(references >> 32).ok()?;
        Some(Self { references_low, references_high, ..self })
    }

    /// Patch pages in it that the manifest has.
    pub(super) fn pages(&self) -> u32 {
        match self.state {
            SegmentState::Metadata => self.used_bytes / BLOCK_BYTES as u32,
            _ => 0,
        }
    }

    /// With so many pages more. `None` if there cannot be so many, or none at all.
    pub(super) fn with_more_pages(self, change: i64) -> Option<Self> {
        let pages = self.pages().checked_add_signed(i32::try_from(change).ok()?)?;
        let used_bytes = pages.checked_mul(BLOCK_BYTES as u32)?;
        (self.state == SegmentState::Metadata).then_some(Self { used_bytes, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(state: SegmentState, used_bytes: u32, pages: u32) -> Segment {
        let generation = 7;
        let (references, stored_blocks, is_damaged) = (0x7fff_1234_5678, u32::MAX, true);
        Segment { state, generation, references, stored_blocks, used_bytes, pages, is_damaged }
    }

    #[test]
    fn a_segment_comes_back_as_it_was() {
        for segment in [
            segment(SegmentState::Data, u32::MAX, 0),
            segment(SegmentState::Metadata, 5 * 4096, 5),
            segment(SegmentState::IndexImage, 4096, 0),
        ] {
            assert_eq!(Packed::of(&segment).unwrap().in_use(segment.generation), segment);
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        assert_eq!(Packed::of(&segment(SegmentState::Data, 4096, 1)), None);
        assert_eq!(Packed::of(&segment(SegmentState::Metadata, 4096, 2)), None);
        let too_many = Segment { references: 1 << 48, ..segment(SegmentState::Data, 0, 0) };
        assert_eq!(Packed::of(&too_many), None);
        let metadata = Packed::empty(SegmentState::Metadata);
        assert_eq!(metadata.with_more_pages(3).map(|packed| packed.pages()), Some(3));
        assert_eq!(metadata.with_more_pages(-1), None);
        assert_eq!(Packed::empty(SegmentState::Data).with_more_pages(1), None);
    }
}
