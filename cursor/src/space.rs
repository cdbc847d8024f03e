//! Where patches lie on the device, and what changes hands with the owner of the segments.

use std::{collections::BTreeMap, pin::Pin};

use siltstone_device::{BLOCK_BYTES, ByteOffset, LayerId, SegmentId};

use crate::{
    epoch::Visibility,
    error::MapError,
    extent::{Extent, Target},
    patch::PageExtent,
};

/// How segments lie on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentGeometry {
    /// Where segment 0 starts.
    pub data_start: ByteOffset,
    /// A segment's length: a multiple of [`BLOCK_BYTES`].
    pub segment_bytes: u64,
}

impl SegmentGeometry {
    /// Where a segment starts. Saturates for segments that no device can hold, so that a hostile
    /// number leads to a read past the device's end, which is an error.
    #[must_use]
    pub fn segment_start(&self, segment: SegmentId) -> ByteOffset {
        let start = u64::from(segment.0).saturating_mul(self.segment_bytes);
        ByteOffset(start.saturating_add(self.data_start.0))
    }

    /// Pages that fit in a segment.
    #[must_use]
    pub fn pages_per_segment(&self) -> u32 {
        u32::try_from(self.segment_bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX)
    }

    /// Where a segment's page lies.
    #[must_use]
    pub fn page(&self, segment: SegmentId, page: u32) -> ByteOffset {
        let offset = u64::from(page) * BLOCK_BYTES as u64;
        ByteOffset(self.segment_start(segment).0.saturating_add(offset))
    }
}

/// Who hands out segments for patches.
pub trait SegmentSource {
    /// A free segment, from now on the map's until an [`Edit`] gives it back; `None` if the pool
    /// has none to spare.
    fn allocate(&mut self) -> Option<SegmentId>;
}

/// The outcome of something that a [`Relocator`] does.
pub type Relocating<'a> = Pin<Box<dyn Future<Output = Result<(), MapError>> + Send + 'a>>;

/// Who gives stored blocks new places while patches are rewritten.
pub trait Relocator: Send {
    /// Whether blocks in this segment are to be moved.
    fn moves(&self, segment: SegmentId) -> bool;

    /// Replaces the places of extents, in key order, that lie in segments that are to be moved:
    /// each of these is one block. May leave what cannot be moved.
    fn relocate<'a>(&'a mut self, extents: &'a mut [Extent]) -> Relocating<'a>;

    /// Whether the step shall end here: so much has been moved that more would keep others waiting. A
    /// step that has moved nothing has not moved enough.
    fn has_enough(&self) -> bool;

    /// Makes sure that everything can be read at its new place: readers see it from now on.
    fn complete(&mut self) -> Relocating<'_>;
}

/// What a rewriting of patches works with.
pub struct Rewrite<'a> {
    /// Where segments for patches come from.
    pub source: &'a mut (dyn SegmentSource + Send),
    /// Who can see what of each layer.
    pub layers: &'a (dyn Fn(LayerId) -> Visibility + Sync),
    /// About how many pages a step reads or writes. Steps of some thousand keep patches large;
    /// smaller ones are correct, but leave more and smaller patches.
    pub max_pages: usize,
    /// Who moves blocks on the way, if anybody does.
    pub relocator: Option<&'a mut dyn Relocator>,
}

impl<'a> Rewrite<'a> {
    /// A rewriting that moves nothing.
    pub fn new(
        source: &'a mut (dyn SegmentSource + Send),
        layers: &'a (dyn Fn(LayerId) -> Visibility + Sync),
        max_pages: usize,
    ) -> Self {
        Self { source, layers, max_pages, relocator: None }
    }

    /// The same once more.
    pub fn again(&mut self) -> Rewrite<'_> {
        let Self { source, layers, max_pages, relocator } = self;
        let relocator = relocator.as_mut();
        let relocator = relocator.map(|relocator| &mut **relocator as &mut dyn Relocator);
        Rewrite { source: &mut **source, layers: *layers, max_pages: *max_pages, relocator }
    }
}

/// What one change of the patches did to segments. Summed over all edits since the pool was
/// created, both counts are exact.
///
/// A segment may be freed when both its sums are zero and a checkpoint with the manifest that
/// says so is durable. The open segment (where the next patch goes) counts one page more than it
/// holds, so that its sum is not zero while the map still writes there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// By data segment: the change in the number of blocks that entries in patches refer to.
    pub data_references: BTreeMap<SegmentId, i64>,
    /// By metadata segment: the change in the number of its pages that belong to patches.
    pub pages: BTreeMap<SegmentId, i64>,
    /// The change in the number of entries in patches.
    pub entries: i64,
    /// Pages written.
    pub pages_written: u64,
}

impl Edit {
    /// Counts an extent's blocks for (`sign` 1) or against (-1) their segment.
    pub(crate) fn count_blocks(&mut self, extent: &Extent, sign: i64) {
        if let Target::Stored(place) = extent.target {
            *self.data_references.entry(place.segment()).or_default() +=
                sign * i64::from(extent.len_blocks);
        }
    }

    /// Counts a patch's pages for or against their segments.
    pub(crate) fn count_pages(&mut self, extents: &[PageExtent], sign: i64) {
        for extent in extents {
            *self.pages.entry(extent.segment).or_default() += sign * i64::from(extent.count);
        }
    }

    /// Counts the extra page of the open segment.
    pub(crate) fn move_open(&mut self, from: Option<SegmentId>, to: Option<SegmentId>) {
        if from != to {
            for (segment, sign) in [(from, -1), (to, 1)] {
                if let Some(segment) = segment {
                    *self.pages.entry(segment).or_default() += sign;
                }
            }
        }
    }

    /// Leaves out what came to nothing.
    pub(crate) fn settle(mut self) -> Self {
        self.data_references.retain(|_, change| *change != 0);
        self.pages.retain(|_, change| *change != 0);
        self
    }
}
