//! Segments that hold images of the index. Of which image one is, its generation says: an image takes
//! its segments one after the other, and a later image later ones.

use std::ops::Range;

use siltstone_device::SegmentId;

use super::{Segment, SegmentState, SegmentTable, UNUSED};

impl SegmentTable {
    /// The segments of the image whose generations are these, in the order in which it took them.
    pub(crate) fn image_segments(&self, generations: &Range<u64>) -> Vec<(SegmentId, Segment)> {
        let inner = self.inner.lock();
        let of_images = (0..)
            .map(SegmentId)
            .zip(&inner.segments)
            .filter(|(_, packed)| packed.state == SegmentState::IndexImage);
        let known =
            of_images.filter_map(|(id, packed)| Some((id, packed.in_use(self.use_of(id)?))));
        let mut segments: Vec<_> =
            known.filter(|(_, segment)| generations.contains(&segment.generation)).collect();
        segments.sort_unstable_by_key(|(_, segment)| segment.generation);
        segments
    }

    /// So much of a segment of an image is filled.
    pub(crate) fn note_image(&self, id: SegmentId, used_bytes: u32) {
        let mut inner = self.inner.lock();
        let segment = &mut inner.segments[id.0 as usize];
        assert_eq!(segment.state, SegmentState::IndexImage, "{id} was taken for an image");
        segment.used_bytes = used_bytes;
        inner.mark_dirty(id.0 as usize);
    }

    /// Lets go of an image: its segments are free once a record without it is stored.
    pub(crate) fn release_image(&self, generations: &Range<u64>) {
        for (id, _) in self.image_segments(generations) {
            self.inner.lock().free_later(id);
        }
    }

    /// Opening only: frees segments of images that were never finished. The record's has these
    /// generations.
    pub(crate) fn recover_images(&self, generations: &Range<u64>) {
        let mut inner = self.inner.lock();
        for at in 0..inner.segments.len() {
            let is_stored = || {
                let generation = self.use_of(SegmentId(at as u32));
                generation.is_some_and(|generation| generations.contains(&generation))
            };
            if inner.segments[at].state == SegmentState::IndexImage && !is_stored() {
                inner.segments[at] = UNUSED;
                inner.free += 1;
                inner.mark_dirty(at);
            }
        }
    }
}
