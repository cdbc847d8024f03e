//! The generation of each segment, readable without a lock while segments are added: every frame
//! read compares one.

use std::sync::OnceLock;

use siltstone_device::{SegmentId, sync::atomic::AtomicU64};

use crate::{layout::GROWTH, segment_count::SegmentCount};

/// Chunks: the first is for the segments that there are at opening; each further one doubles them.
const CHUNKS: usize = 2 + GROWTH.ilog2() as usize;

/// See the module's page.
pub(super) struct Generations {
    count: SegmentCount,
    /// Segments in the first chunk.
    first: usize,
    chunks: [OnceLock<Box<[AtomicU64]>>; CHUNKS],
}

impl Generations {
    /// For as many segments as there are now.
    pub(super) fn new(count: SegmentCount, generations: impl Iterator<Item = u64>) -> Self {
        let chunk: Box<[AtomicU64]> = generations.map(AtomicU64::new).collect();
        let first = chunk.len();
        assert_eq!(first, count.get() as usize, "a generation for each segment");
        let mut chunks = [const { OnceLock::new() }; CHUNKS];
        chunks[0] = OnceLock::from(chunk);
        Self { count, first, chunks }
    }

    /// A segment's generation; `None` if there is no such segment.
    pub(super) fn get(&self, id: SegmentId) -> Option<&AtomicU64> {
        if id.0 >= self.count.get() {
            return None;
        }
        let (chunk, at) = self.position(id.0 as usize);
        self.chunks[chunk].get().map(|chunk| &chunk[at])
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        self.count.get()
    }

    /// Adds segments that were never used, until there are `count`. One caller at a time.
    pub(super) fn grow_to(&self, count: u32) {
        let last = count.checked_sub(1).expect("there were segments before") as usize;
        for chunk in 1..=self.position(last).0 {
            let len = self.first << (chunk - 1);
            self.chunks[chunk].get_or_init(|| (0..len).map(|_| AtomicU64::new(0)).collect());
        }
        self.count.grow_to(count);
    }

    /// Chunk 0 has the first segments; chunk `n` those from `first << (n - 1)` to `first << n`.
    fn position(&self, at: usize) -> (usize, usize) {
        if at < self.first {
            return (0, at);
        }
        let chunk = (at / self.first).ilog2() as usize + 1;
        (chunk, at - (self.first << (chunk - 1)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use siltstone_device::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn each_segment_has_a_place_of_its_own_however_the_pool_grew() {
        for first in [1, 7, 16, 100] {
            let generations =
                Generations::new(SegmentCount::new(first), (0..u64::from(first)).map(|id| id + 1));
            for count in [first, first + 1, 2 * first, 3 * first + 1, 16 * first] {
                generations.grow_to(count.max(generations.len()));
                for id in 0..generations.len() {
                    let generation = generations.get(SegmentId(id)).unwrap();
                    let known = generation.load(Ordering::Relaxed);
                    assert!(known == 0 || known == u64::from(id) + 1, "{first}, {id}");
                    generation.store(u64::from(id) + 1, Ordering::Relaxed);
                }
                assert!(generations.get(SegmentId(generations.len())).is_none());
            }
        }
    }
}
