//! How much lives in each segment, by a walk over the whole map.
//!
//! The segment table counts references, and several may be to one block: where data repeat, a
//! segment may look full and be mostly dead. A survey counts the distinct blocks that are referred
//! to, by linear counting (Whang, Vander-Zanden and Taylor, "A linear-time probabilistic counting
//! algorithm", ACM TODS 15(2), 1990): a small bitmap for each segment, a bit by the hash of each
//! block. Half a bit for each stored block gives the share that lives within a few in a hundred.
//!
//! Bitmaps of a large pool would take more memory than the rest of it. So there only blocks with
//! certain hashes are counted, as few as fit, and stand for the others: each is counted in all of its
//! references or in none.

use siltstone_cursor::{Extent, ExtentCursor, MapError, Target};
use siltstone_device::{Place, SegmentId};

use crate::{
    core::Core,
    segment_table::{Segment, SegmentTable},
};

/// Memory of the walk.
const WALK_BYTES: usize = 4 << 20;
/// Memory of all bitmaps, but for the least that each has.
const BITMAP_BYTES: usize = 8 << 20;
/// Extents looked at in one step: some hundredths of a second.
const EXTENTS_A_STEP: usize = 1 << 17;
/// The most that a block can stand for: bits of a hash that are not needed otherwise.
const MAX_SAMPLE_BITS: u32 = 16;

/// A survey under way.
pub(super) struct Surveying {
    walk: ExtentCursor,
    bitmaps: Bitmaps,
}

/// What a survey found: by segment, the use that was counted and its distinct live blocks. Segments
/// that were not counted have a generation that none has.
#[derive(Default)]
pub(super) struct Survey {
    generations: Vec<u64>,
    live_blocks: Vec<u32>,
}

/// A bitmap for each segment that is counted, one behind the other.
struct Bitmaps {
    generations: Vec<u64>,
    /// Where each segment's words begin, and at last where the last one's end.
    first_words: Vec<u32>,
    words: Vec<u64>,
    /// Blocks count whose hash has so many zeros at its end.
    sample_bits: u32,
}

/// Of segments that are not counted.
const NO_GENERATION: u64 = u64::MAX;

impl Surveying {
    /// Begins a walk over the map of this moment.
    pub(super) fn begin(core: &Core) -> Self {
        // Before the walk begins: what is there only later is not what it counts.
        let bitmaps = Bitmaps::of(&core.table, BITMAP_BYTES);
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
                None => return Ok(Some(self.bitmaps.outcome())),
            }
        }
        Ok(None)
    }

    fn count(&mut self, extent: &Extent) {
        let Target::Stored(first) = extent.target else { return };
        for index in 0..extent.len_blocks {
            let Some(place) = first.advanced(index.into()) else { return };
            self.bitmaps.mark(place);
        }
    }
}

impl Bitmaps {
    /// Empty ones, of as many bits as fit into `memory_bytes`.
    fn of(table: &SegmentTable, memory_bytes: usize) -> Self {
        Self::new(table.len() as usize, memory_bytes, || table.data_segments())
    }

    fn new<I>(count: usize, memory_bytes: usize, segments: impl Fn() -> I) -> Self
    where
        I: Iterator<Item = (SegmentId, Segment)>,
    {
        let wanted_bits: u64 =
            segments().map(|(_, segment)| u64::from(segment.stored_blocks) / 2).sum();
        let fits = |bits: &u32| wanted_bits >> bits <= memory_bytes as u64 * 8;
        let sample_bits = (0..MAX_SAMPLE_BITS).find(fits).unwrap_or(MAX_SAMPLE_BITS);
        let (mut generations, mut first_words) = (vec![NO_GENERATION; count], vec![0; count + 1]);
        for (id, segment) in segments() {
            let at = id.0 as usize;
            // The table may have grown between the two passes.
            if at < count {
                generations[at] = segment.generation;
                let bits = (segment.stored_blocks / 2) >> sample_bits;
                first_words[at + 1] = bits.div_ceil(u64::BITS).max(1);
            }
        }
        let mut end = 0;
        for first_word in &mut first_words {
            end += *first_word;
            *first_word = end;
        }
        Self { generations, first_words, words: vec![0; end as usize], sample_bits }
    }

    /// None if the segment is not counted.
    fn words_of(&self, segment: usize) -> std::ops::Range<usize> {
        match self.first_words.get(segment..segment + 2) {
            Some(&[start, end]) => start as usize..end as usize,
            _ => 0..0,
        }
    }

    fn mark(&mut self, place: Place) {
        let words = self.words_of(place.segment().0 as usize);
        let hash = mixed(place.raw());
        if words.is_empty() || hash.trailing_zeros() < self.sample_bits {
            return;
        }
        let bits = words.len() as u64 * 64;
        let bit = ((u128::from(hash) * u128::from(bits)) >> 64) as usize;
        self.words[words][bit / 64] |= 1 << (bit % 64);
    }

    /// Distinct blocks marked, and those that they stand for.
    fn estimate(&self, segment: usize) -> u32 {
        let words = &self.words[self.words_of(segment)];
        let bits = words.len() as f64 * 64.0;
        let empty: u32 = words.iter().map(|word| word.count_zeros()).sum();
        if empty == 0 {
            return u32::MAX;
        }
        let marked = bits * (bits / f64::from(empty)).ln();
        (marked * f64::from(1 << self.sample_bits)).round() as u32
    }

    fn outcome(&mut self) -> Survey {
        let live_blocks = (0..self.generations.len()).map(|segment| self.estimate(segment));
        Survey {
            live_blocks: live_blocks.collect(),
            generations: std::mem::take(&mut self.generations),
        }
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
        let at = id.0 as usize;
        if self.generations.get(at) != Some(&segment.generation) {
            return segment;
        }
        // One that is referred to is not empty, whatever the estimate.
        let references = segment.references.min(u64::from(self.live_blocks[at]).max(1));
        Segment { references, ..segment }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment_table::SegmentState;

    fn counted(stored_blocks: u32, memory_bytes: usize) -> Bitmaps {
        let segment = Segment {
            state: SegmentState::Data,
            generation: 1,
            references: 0,
            stored_blocks,
            used_bytes: 0,
            pages: 0,
            is_damaged: false,
        };
        Bitmaps::new(5, memory_bytes, || {
            [(SegmentId(1), segment), (SegmentId(3), segment)].into_iter()
        })
    }

    /// Marks so many blocks twice.
    fn mark(bitmaps: &mut Bitmaps, live: u32) {
        for block in (0..live).chain(0..live) {
            let frame = Place::new(SegmentId(3), block / 8 * 512, 0);
            bitmaps.mark(frame.advanced(u64::from(block % 8)).expect("a frame has eight"));
        }
    }

    #[test]
    fn distinct_blocks_are_counted_within_a_seventh() {
        for stored in [500u32, 2000, 10_000] {
            for share in [10, 50, 100] {
                let mut bitmaps = counted(stored, BITMAP_BYTES);
                let live = stored / 100 * share;
                mark(&mut bitmaps, live);
                let estimate = bitmaps.estimate(3);
                let (low, high) = (live * 6 / 7, live * 8 / 7);
                assert!((low..=high).contains(&estimate), "{estimate} of {live} in {stored}");
                assert_eq!(bitmaps.estimate(1), 0);
            }
        }
    }

    /// A pool of 10 TiB has half a million segments.
    #[test]
    fn in_little_memory_blocks_stand_for_others() {
        let mut bitmaps = counted(16_000, 64);
        assert_eq!(bitmaps.words.len() * size_of::<u64>(), 64);
        mark(&mut bitmaps, 8000);
        let estimate = bitmaps.estimate(3);
        assert!((6000..10_000).contains(&estimate), "{estimate}");
    }

    #[test]
    fn what_is_not_counted_stays_as_the_table_has_it() {
        let survey = counted(500, BITMAP_BYTES).outcome();
        let segment = |generation| Segment {
            state: SegmentState::Data,
            generation,
            references: 7,
            stored_blocks: 500,
            used_bytes: 0,
            pages: 0,
            is_damaged: false,
        };
        let references =
            |id, generation| survey.corrected(SegmentId(id), segment(generation)).references;
        assert_eq!(references(3, 1), 1, "nothing was found alive in it");
        assert_eq!(references(3, 2), 7, "another use");
        assert_eq!(references(2, 1), 7, "no data then");
        assert_eq!(references(9, 1), 7, "it was not there");
    }
}
