//! Where the memory of buffers comes from: from the system, past the program's allocator.
//!
//! An allocator like that of the C library spends a page more on each buffer of whole pages, for what it
//! notes between them, and keeps what is freed as long as anything behind it is in use, in as many
//! places as there are threads. Of a cache's buffers, which live for long and end in any order, half as
//! much again stayed resident.
//!
//! Here, memory is a block of a slab: a mapping that is cut into blocks of one size. The pages of whatever is
//! freed go back to the system at once; a slab that nobody uses goes as a whole. So what is resident is what is
//! in use. Sizes that are rare, and very large ones, are mappings of their own.
//!
//! The device pins what it reads or writes page by page, and new memory costs a fault for each page. So blocks
//! of the size of write units, of which a few are recycled all the time, lie side by side in large pages. Small
//! ones do not: a large page would stay for the last block in it.
//!
//! Thread safety: shared freely; one short lock, which no buffer that its pool recycles takes.

use std::{
    alloc::{Layout, handle_alloc_error},
    collections::{BTreeMap, BTreeSet},
    ptr::NonNull,
};

// Not the modelled one: this outlives any model.
use parking_lot::Mutex;

use crate::{
    huge_pages::{HUGE_PAGE_BYTES, prefer_huge_pages},
    mapping,
    units::BLOCK_BYTES,
};

/// What is mapped for small blocks of one size, and the largest such block.
const SMALL_SLAB_BYTES: usize = 2 << 20;
const MAX_SMALL_BYTES: usize = SMALL_SLAB_BYTES / 8;
/// Sizes of small blocks: powers of two from [`BLOCK_BYTES`] on.
const SMALL_SIZES: usize = (MAX_SMALL_BYTES / BLOCK_BYTES).ilog2() as usize + 1;

/// Large blocks are multiples of this, so many at most, and so many of one size make whole large pages.
const LARGE_STEP_BYTES: usize = 128 << 10;
const MAX_LARGE_STEPS: usize = 16;
const LARGE_BLOCKS: usize = HUGE_PAGE_BYTES / LARGE_STEP_BYTES;
const MIN_LARGE_STEPS: usize = MAX_SMALL_BYTES / LARGE_STEP_BYTES + 1;

const SIZES: usize = SMALL_SIZES + MAX_LARGE_STEPS + 1 - MIN_LARGE_STEPS;
/// Words of a slab's bits: there are most blocks of the smallest size.
const WORDS: usize = SMALL_SLAB_BYTES / BLOCK_BYTES / 64;

static SLABS: Mutex<[Slabs; SIZES]> = Mutex::new([const { Slabs::new() }; SIZES]);

/// Memory of `len` bytes, which are whole blocks: aligned to [`BLOCK_BYTES`], zeroed, and nobody else's.
pub(super) fn allocate(len: usize) -> NonNull<u8> {
    let memory = match Size::of(len) {
        Some(size) => SLABS.lock()[size.0].allocate(size),
        None => map_alone(len),
    };
    memory.unwrap_or_else(|| {
        let layout = Layout::from_size_align(len, BLOCK_BYTES);
        handle_alloc_error(layout.expect("buffers are far smaller than isize::MAX"))
    })
}

/// Gives memory back.
///
/// # Safety
/// It is from [`allocate`] with this length, and nobody uses it any more.
pub(super) unsafe fn free(memory: NonNull<u8>, len: usize) {
    let Some(size) = Size::of(len) else {
        // SAFETY: as the caller promises; memory of this length was mapped as a whole.
        unsafe { mapping::unmap(memory, len) };
        return;
    };
    // Before anybody else can have it.
    // SAFETY: as the caller promises; these are whole pages within a slab.
    unsafe { mapping::release(memory, len) };
    let unused = SLABS.lock()[size.0].free(memory, size);
    if let Some(slab) = unused {
        // SAFETY: it was mapped with this length, no block of it is in use, and it is in no list any more.
        unsafe { mapping::unmap(slab, size.slab_bytes()) };
    }
}

/// One of the sizes of blocks that slabs are cut into.
#[derive(Clone, Copy)]
struct Size(usize);

impl Size {
    /// That of the blocks which memory of `len` bytes comes from, or `None` if it is mapped alone.
    fn of(len: usize) -> Option<Self> {
        if len <= MAX_SMALL_BYTES {
            return Some(Self(len.div_ceil(BLOCK_BYTES).next_power_of_two().ilog2() as usize));
        }
        let steps = len / LARGE_STEP_BYTES;
        let is_large = len.is_multiple_of(LARGE_STEP_BYTES) && steps <= MAX_LARGE_STEPS;
        is_large.then(|| Self(SMALL_SIZES + steps - MIN_LARGE_STEPS))
    }

    /// In steps, if these blocks are large.
    fn large_steps(self) -> Option<usize> {
        self.0.checked_sub(SMALL_SIZES).map(|beyond| beyond + MIN_LARGE_STEPS)
    }

    fn block_bytes(self) -> usize {
        self.large_steps().map_or(BLOCK_BYTES << self.0, |steps| steps * LARGE_STEP_BYTES)
    }

    fn slab_bytes(self) -> usize {
        self.large_steps().map_or(SMALL_SLAB_BYTES, |_| self.block_bytes() * LARGE_BLOCKS)
    }

    fn blocks(self) -> usize {
        self.slab_bytes() / self.block_bytes()
    }

    fn map_slab(self) -> Option<NonNull<u8>> {
        let len = self.slab_bytes();
        if self.large_steps().is_some() {
            return map_alone(len);
        }
        let start = mapping::map(len, BLOCK_BYTES)?;
        mapping::prefer_small_pages(start, len);
        Some(start)
    }
}

fn map_alone(len: usize) -> Option<NonNull<u8>> {
    let is_huge = len.is_multiple_of(HUGE_PAGE_BYTES);
    let memory = mapping::map(len, if is_huge { HUGE_PAGE_BYTES } else { BLOCK_BYTES })?;
    // SAFETY: zeroed memory of that many bytes, which nobody else has.
    prefer_huge_pages::<u8>(unsafe { NonNull::slice_from_raw_parts(memory, len).as_ref() });
    Some(memory)
}

/// The slabs of one size of blocks, by address.
struct Slabs {
    slabs: BTreeMap<usize, Slab>,
    /// Those with free blocks. The lowest is filled first, so that the others can become unused.
    with_room: BTreeSet<usize>,
}

struct Slab {
    start: NonNull<u8>,
    /// A bit for each block that is free.
    free: [u64; WORDS],
    free_count: usize,
}

// SAFETY: a slab is memory that may be used from any thread; who has which block of it is noted here.
unsafe impl Send for Slab {}

impl Slabs {
    const fn new() -> Self {
        Self { slabs: BTreeMap::new(), with_room: BTreeSet::new() }
    }

    /// A block of a slab, zeroed; `None` if the system has no memory.
    fn allocate(&mut self, size: Size) -> Option<NonNull<u8>> {
        let at = match self.with_room.first() {
            Some(&at) => at,
            None => {
                let slab = Slab::new(size.map_slab()?, size.blocks());
                let at = slab.start.addr().get();
                self.slabs.insert(at, slab);
                self.with_room.insert(at);
                at
            }
        };
        let slab = self.slabs.get_mut(&at).expect("what has room is a slab");
        let block = slab.take();
        if slab.free_count == 0 {
            self.with_room.remove(&at);
        }
        // SAFETY: a slab has as many blocks as it has bits.
        Some(unsafe { slab.start.add(block * size.block_bytes()) })
    }

    /// Takes a block back. Returns its slab if that is to be unmapped: it is not used any more, and is
    /// not the last one. That one costs addresses only, and is likely to be needed again.
    fn free(&mut self, memory: NonNull<u8>, size: Size) -> Option<NonNull<u8>> {
        let address = memory.addr().get();
        let (&at, slab) =
            self.slabs.range_mut(..=address).next_back().expect("the block is of a slab");
        slab.give_back((address - at) / size.block_bytes());
        self.with_room.insert(at);
        if slab.free_count < size.blocks() || self.slabs.len() == 1 {
            return None;
        }
        self.with_room.remove(&at);
        self.slabs.remove(&at).map(|slab| slab.start)
    }
}

impl Slab {
    fn new(start: NonNull<u8>, blocks: usize) -> Self {
        let mut slab = Self { start, free: [0; WORDS], free_count: 0 };
        (0..blocks).for_each(|block| slab.give_back(block));
        slab
    }

    fn take(&mut self) -> usize {
        let word = self.free.iter().position(|&bits| bits != 0).expect("it has room");
        let bit = self.free[word].trailing_zeros() as usize;
        self.free[word] &= !(1 << bit);
        self.free_count -= 1;
        word * 64 + bit
    }

    fn give_back(&mut self, block: usize) {
        let (word, bit) = (&mut self.free[block / 64], 1 << (block % 64));
        assert!(*word & bit == 0, "a block is freed once");
        *word |= bit;
        self.free_count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRandom;

    /// What somebody has: where it is, how long, and what is in it.
    type Held = (NonNull<u8>, usize, u8);

    fn bytes(held: &Held) -> &'static mut [u8] {
        // SAFETY: memory of that length, which the test has for itself and does not free meanwhile.
        unsafe { std::slice::from_raw_parts_mut(held.0.as_ptr(), held.1) }
    }

    #[test]
    fn memory_is_zeroed_aligned_and_nobody_elses() {
        let mut random = SeededRandom::new(1);
        let mut held: Vec<Held> = Vec::new();
        let (rounds, most) = if cfg!(miri) { (60, 4) } else { (500, 100) };
        for round in 0..rounds {
            if random.below(5) < 2 && !held.is_empty() {
                let one = held.swap_remove(random.below(held.len() as u64) as usize);
                assert!(bytes(&one).iter().all(|&byte| byte == one.2));
                // SAFETY: allocated below with this length.
                unsafe { free(one.0, one.1) };
            } else {
                let len = (1 + random.below(most) as usize) * BLOCK_BYTES;
                let one = (allocate(len), len, round as u8);
                assert!(one.0.addr().get().is_multiple_of(BLOCK_BYTES));
                assert!(bytes(&one).iter().all(|&byte| byte == 0));
                bytes(&one).fill(one.2);
                held.push(one);
            }
        }
        for one in held {
            assert!(bytes(&one).iter().all(|&byte| byte == one.2));
            // SAFETY: as above.
            unsafe { free(one.0, one.1) };
        }
    }

    #[test]
    fn large_memory_is_aligned_to_large_pages() {
        let len = 2 * HUGE_PAGE_BYTES;
        let memory = allocate(len);
        assert!(memory.addr().get().is_multiple_of(HUGE_PAGE_BYTES));
        // SAFETY: allocated with this length.
        unsafe { free(memory, len) };
    }

    #[test]
    fn every_size_holds_what_it_is_for_and_fills_its_slabs() {
        for len in (BLOCK_BYTES..5 << 20).step_by(BLOCK_BYTES) {
            let Some(size) = Size::of(len) else {
                assert!(len > MAX_SMALL_BYTES);
                continue;
            };
            assert!((len..2 * len).contains(&size.block_bytes()), "{len}");
            assert!(size.slab_bytes().is_multiple_of(size.block_bytes()));
            assert!(size.slab_bytes().is_multiple_of(HUGE_PAGE_BYTES));
            assert!(size.blocks() <= WORDS * 64 && size.0 < SIZES);
        }
        // What write units take most often.
        assert!(Size::of(9 << 17).is_some_and(|size| size.large_steps() == Some(9)));
    }

    #[test]
    fn slabs_that_nobody_uses_go_but_for_one() {
        for (len, used_slabs) in [(MAX_SMALL_BYTES, 3), (9 * LARGE_STEP_BYTES, 2)] {
            let size = Size::of(len).unwrap();
            let mut slabs = Slabs::new();
            let blocks: Vec<_> = (0..20).map(|_| slabs.allocate(size).unwrap()).collect();
            assert_eq!(slabs.slabs.len(), used_slabs, "eight or sixteen are in a slab");
            let mut unmapped = 0;
            for block in blocks {
                if let Some(slab) = slabs.free(block, size) {
                    // SAFETY: mapped with this length, and not used any more.
                    unsafe { mapping::unmap(slab, size.slab_bytes()) };
                    unmapped += 1;
                }
            }
            assert_eq!((slabs.slabs.len(), unmapped), (1, used_slabs - 1));
            for slab in slabs.slabs.into_values() {
                // SAFETY: as above.
                unsafe { mapping::unmap(slab.start, size.slab_bytes()) };
            }
        }
    }
}
