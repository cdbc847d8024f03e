//! How much lives in each segment, by a walk over the whole map.
//!
//! The segment table counts references, and several may be to one block: where data repeat, a
//! segment may look full and be mostly dead. A survey counts the distinct blocks that are referred
//! to, by linear counting (Whang, Vander-Zanden and Taylor, "A linear-time probabilistic counting
//! algorithm", ACM TODS 15(2), 1990): a small bitmap for each segment, a bit by the hash of each
//! block. Half a bit for each stored block gives the share that lives within a few in a hundred.

use std::collections::BTreeMap;

use siltstone_cursor::{Extent, ExtentCursor, MapError, Target};
use siltstone_device::{Place, SegmentId};

use crate::{core::Core, segment_table::Segment};

/// Memory of the walk.
const WALK_BYTES: usize = 4 << 20;
/// Extents looked at in one step: some hundredths of a second.
const EXTENTS_A_STEP: usize = 1 << 17;
/// Bits of a segment's bitmap at least.
const MIN_BITS: usize = 64;

/// A survey under way.
pub(super) struct Surveying {
    walk: ExtentCursor,
    bitmaps: BTreeMap<SegmentId, Bitmap>,
}

struct Bitmap {
    generation: u64,
    words: Box<[u64]>,
}

/// What a survey found.
#[derive(Default)]
pub(super) struct Survey {
    /// Of each segment the use that was counted, and its distinct live blocks.
    live_blocks: BTreeMap<SegmentId, (u64, u64)>,
}

impl Surveying {
    /// Begins a walk over the map of this moment.
    pub(super) fn begin(core: &Core) -> Self {
        let data = core.table.data_segments();
        let bitmap = |(id, segment): (SegmentId, Segment)| {
            let bits = (segment.stored_blocks as usize / 2).max(MIN_BITS);
            let words = vec![0; bits.div_ceil(64)].into();
            (id, Bitmap { generation: segment.generation, words })
        };
        // Before the walk begins: what is there only later is not what it counts.
        let bitmaps = data.map(bitmap).collect();
        Self { walk: core.map.cursor_all(WALK_BYTES), bitmaps }
    }

    /// Walks on a little. Returns the outcome at the end.
    ///
    /// # Errors
    /// If a page of the map cannot be read.
    pub(super) async fn step(&mut self) -> Result<Option<Survey>, MapError> {
        for _ in 0..EXTENTS_A_STEP {
            match self.walk.next().await? {
                Some(extent) => self.count(&extent),
                None => return Ok(Some(self.outcome())),
            }
        }
        Ok(None)
    }

    fn count(&mut self, extent: &Extent) {
        let Target::Stored(first) = extent.target else { return };
        let Some(bitmap) = self.bitmaps.get_mut(&first.segment()) else { return };
        for index in 0..extent.len_blocks {
            let Some(place) = first.advanced(index.into()) else { return };
            bitmap.mark(place);
        }
    }

    fn outcome(&self) -> Survey {
        let counted =
            |(&id, bitmap): (&SegmentId, &Bitmap)| (id, (bitmap.generation, bitmap.estimate()));
        Survey { live_blocks: self.bitmaps.iter().map(counted).collect() }
    }
}

impl Bitmap {
    fn mark(&mut self, place: Place) {
        let hash = mixed(place.raw());
        let bits = self.words.len() as u64 * 64;
        let bit = ((u128::from(hash) * u128::from(bits)) >> 64) as usize;
        self.words[bit / 64] |= 1 << (bit % 64);
    }

    /// Distinct blocks marked.
    fn estimate(&self) -> u64 {
        let bits = self.words.len() as f64 * 64.0;
        let empty: u32 = self.words.iter().map(|word| word.count_zeros()).sum();
        if empty == 0 {
            return u64::MAX;
        }
        (bits * (bits / f64::from(empty)).ln()).round() as u64
    }
}

/// The finalizer of MurmurHash3 (Appleby, 2011): every bit of a place moves every bit. Places of
/// one segment differ in a regular way, and a hash that keeps some of that does not count.
fn mixed(mut value: u64) -> u64 {
    value = (value ^ value >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    value = (value ^ value >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ value >> 33
}

impl Survey {
    /// The segment with no more references than blocks were found alive in it, if it is still in
    /// the use that was counted.
    pub(super) fn corrected(&self, id: SegmentId, segment: Segment) -> Segment {
        match self.live_blocks.get(&id) {
            Some(&(generation, blocks)) if generation == segment.generation => {
                // One that is referred to is not empty, whatever the estimate.
                let references = segment.references.min(blocks.max(1));
                Segment { references, ..segment }
            }
            _ => segment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_blocks_are_counted_within_a_seventh() {
        for stored in [500u32, 2000, 10_000] {
            for share in [10, 50, 100] {
                let words = vec![0; (stored as usize / 2).max(MIN_BITS).div_ceil(64)].into();
                let mut bitmap = Bitmap { generation: 1, words };
                let live = stored / 100 * share;
                for block in (0..live).chain(0..live) {
                    let frame = Place::new(SegmentId(3), block / 8 * 512, 0);
                    bitmap.mark(frame.advanced(u64::from(block % 8)).unwrap());
                }
                let estimate = bitmap.estimate();
                let (low, high) = (u64::from(live) * 6 / 7, u64::from(live) * 8 / 7);
                assert!((low..=high).contains(&estimate), "{estimate} of {live} in {stored}");
            }
        }
    }
}
