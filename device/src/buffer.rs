//! Block-aligned memory for direct I/O, and a bounded pool that recycles it.
//!
//! Invariants: an [`AlignedBuffer`]'s memory is aligned to [`BLOCK_BYTES`], always initialised
//! (fresh memory is zero, recycled memory holds old contents), and owned by exactly one buffer.
//! A pool keeps idle memory within its limit; the rest goes back to the system.

mod memory;

use std::{
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, Weak},
};

use crate::{sync::Mutex, units::BLOCK_BYTES};

/// Buffers of at most [`FINE_FROM_BYTES`] come in powers of two,
const COARSE_CLASSES: usize = 9;
const FINE_FROM_BYTES: usize = BLOCK_BYTES << (COARSE_CLASSES - 1);
/// and larger ones in so many steps from one power to the next: a write unit is a little larger than
/// the batch in it.
const FINE_STEPS: usize = 8;
/// Buffers of at most 4 MiB are recycled; larger ones never are.
const CLASSES: usize = COARSE_CLASSES + 2 * FINE_STEPS;

/// Memory aligned to [`BLOCK_BYTES`], usable for direct I/O.
///
/// Its capacity is a whole number of blocks; its length may be anything up to that. On drop the
/// memory goes back to the pool that it came from, if that still exists.
pub struct AlignedBuffer {
    memory: NonNull<u8>,
    len: usize,
    capacity: usize,
    pool: Weak<PoolInner>,
}

// SAFETY: an AlignedBuffer owns its memory exclusively, like a Vec<u8>.
unsafe impl Send for AlignedBuffer {}
// SAFETY: shared references give only shared access to plain bytes.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// A zeroed buffer of `len` bytes that belongs to no pool.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self::allocate(len, len.next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES), Weak::new())
    }

    /// A buffer that holds a copy of `bytes`, padded with zeros to a whole number of blocks.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len().next_multiple_of(BLOCK_BYTES));
        buffer[..bytes.len()].copy_from_slice(bytes);
        buffer
    }

    fn allocate(len: usize, capacity: usize, pool: Weak<PoolInner>) -> Self {
        let memory = memory::allocate(capacity);
        Self { memory, len, capacity, pool }
    }

    /// How long the buffer can be made by [`set_len`](Self::set_len), in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes the length; bytes that come into view hold whatever was there before.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "length {len} exceeds capacity {}", self.capacity);
        self.len = len;
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: memory is valid and initialised for `capacity >= len` bytes.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` gives exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade()
            && pool.keep(self.memory, self.capacity)
        {
            return;
        }
        // SAFETY: allocated in `allocate` with this capacity; not kept by the pool.
        unsafe { memory::free(self.memory, self.capacity) };
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} of {} bytes)", self.len, self.capacity)
    }
}

/// Recycles [`AlignedBuffer`]s, so that the hot path neither allocates nor faults pages in.
///
/// Thread safety: shared freely; one short lock for each take and each drop.
#[derive(Clone)]
pub struct BufferPool {
    inner: Arc<PoolInner>,
}

struct PoolInner {
    idle: Mutex<Idle>,
    limit_bytes: usize,
    /// Whether the limit is for what is in use and idle together, rather than for what is idle.
    counts_in_use: bool,
}

/// Idle memory by size class.
#[derive(Default)]
struct Idle {
    classes: [Vec<NonNull<u8>>; CLASSES],
    bytes: usize,
    /// The least of that since it was last asked for.
    least_bytes: usize,
    /// Of buffers of these classes that are in use.
    in_use_bytes: usize,
}

// SAFETY: the pointers are to memory that the pool owns exclusively while it is idle.
unsafe impl Send for Idle {}

impl BufferPool {
    /// A pool that keeps at most `max_idle_bytes` of memory that nobody uses.
    #[must_use]
    pub fn new(max_idle_bytes: usize) -> Self {
        Self::limited(max_idle_bytes, false)
    }

    /// A pool that keeps memory that nobody uses only as far as it is at most `max_bytes` together with
    /// what is in use.
    #[must_use]
    pub fn within(max_bytes: usize) -> Self {
        Self::limited(max_bytes, true)
    }

    fn limited(limit_bytes: usize, counts_in_use: bool) -> Self {
        let idle = Mutex::new(Idle::default());
        Self { inner: Arc::new(PoolInner { idle, limit_bytes, counts_in_use }) }
    }

    /// A buffer of `len` bytes with unspecified (but initialised) contents.
    #[must_use]
    pub fn take(&self, len: usize) -> AlignedBuffer {
        let Some(class) = class_of(len) else {
            return AlignedBuffer::zeroed(len);
        };
        let capacity = capacity_of_class(class);
        let pool = Arc::downgrade(&self.inner);
        let mut idle = self.inner.idle.lock();
        if let Some(memory) = idle.pop(class) {
            idle.in_use_bytes += capacity;
            return AlignedBuffer { memory, len, capacity, pool };
        }
        let given_up = self.inner.make_room(&mut idle, class);
        idle.in_use_bytes += capacity;
        drop(idle);
        give_up(given_up);
        AlignedBuffer::allocate(len, capacity, pool)
    }

    /// Gives idle memory back to the system until at most so much is left.
    pub fn trim(&self, max_idle_bytes: usize) {
        let mut idle = self.inner.idle.lock();
        let given_up = idle.shrink(max_idle_bytes);
        drop(idle);
        give_up(given_up);
    }

    /// The same, but what has been in use since this was last called may be needed again soon, and stays.
    pub fn trim_unused(&self, max_idle_bytes: usize) {
        let mut idle = self.inner.idle.lock();
        let used_bytes = idle.bytes - idle.least_bytes;
        let given_up = idle.shrink(max_idle_bytes.max(used_bytes));
        idle.least_bytes = idle.bytes;
        drop(idle);
        give_up(given_up);
    }

    /// What a buffer of `len` bytes takes.
    #[must_use]
    pub fn capacity_of(len: usize) -> usize {
        match class_of(len) {
            Some(class) => capacity_of_class(class),
            None => len.next_multiple_of(BLOCK_BYTES),
        }
    }

    /// Bytes kept for reuse at this moment.
    #[must_use]
    pub fn idle_bytes(&self) -> usize {
        self.inner.idle.lock().bytes
    }
}

/// The size class that holds `len` bytes, or `None` if such buffers are not recycled.
fn class_of(len: usize) -> Option<usize> {
    (0..CLASSES).find(|&class| capacity_of_class(class) >= len)
}

const fn capacity_of_class(class: usize) -> usize {
    let Some(fine) = class.checked_sub(COARSE_CLASSES) else { return BLOCK_BYTES << class };
    let power = FINE_FROM_BYTES << (fine / FINE_STEPS);
    power + power / FINE_STEPS * (fine % FINE_STEPS + 1)
}
const _: () = assert!(capacity_of_class(CLASSES - 1) == 4 << 20);

impl PoolInner {
    /// Takes memory over that nobody uses any more, unless that would exceed the limit.
    fn keep(&self, memory: NonNull<u8>, capacity: usize) -> bool {
        let class = class_of(capacity).expect("only recycled classes name their pool");
        let mut idle = self.idle.lock();
        idle.in_use_bytes -= capacity;
        let given_up = self.make_room(&mut idle, class);
        let is_kept = self.counted(&idle) + capacity <= self.limit_bytes;
        if is_kept {
            idle.bytes += capacity;
            idle.classes[class].push(memory);
        }
        drop(idle);
        give_up(given_up);
        is_kept
    }

    /// What the limit is for.
    fn counted(&self, idle: &Idle) -> usize {
        idle.bytes + if self.counts_in_use { idle.in_use_bytes } else { 0 }
    }

    /// Memory of other sizes that has to go for a buffer of this class: what nobody asks for any more
    /// must not keep out what is in use now. The size that has most of it gives way.
    fn make_room(&self, idle: &mut Idle, class: usize) -> GivenUp {
        let capacity = capacity_of_class(class);
        let mut given_up = GivenUp::new();
        while self.counted(idle) + capacity > self.limit_bytes && capacity <= self.limit_bytes {
            let largest = idle.largest_class();
            if largest == class {
                break;
            }
            let Some(memory) = idle.pop(largest) else { break };
            given_up.push((memory, capacity_of_class(largest)));
        }
        given_up
    }
}

/// Idle memory that goes back to the system, with its capacities: once no lock is held.
type GivenUp = Vec<(NonNull<u8>, usize)>;

fn give_up(given_up: GivenUp) {
    for (memory, capacity) in given_up {
        // SAFETY: allocated by AlignedBuffer::allocate with its class's capacity; it was idle.
        unsafe { memory::free(memory, capacity) };
    }
}

impl Idle {
    fn pop(&mut self, class: usize) -> Option<NonNull<u8>> {
        let memory = self.classes[class].pop()?;
        self.bytes -= capacity_of_class(class);
        self.least_bytes = self.least_bytes.min(self.bytes);
        Some(memory)
    }

    /// Takes out buffers, of the sizes that have most, until at most so much is left.
    fn shrink(&mut self, max_bytes: usize) -> GivenUp {
        let mut given_up = GivenUp::new();
        while self.bytes > max_bytes {
            let largest = self.largest_class();
            let Some(memory) = self.pop(largest) else { break };
            given_up.push((memory, capacity_of_class(largest)));
        }
        given_up
    }

    /// The class that has the most bytes.
    fn largest_class(&self) -> usize {
        let bytes = |&class: &usize| self.classes[class].len() * capacity_of_class(class);
        (0..CLASSES).max_by_key(bytes).expect("there are classes")
    }
}

impl Drop for PoolInner {
    fn drop(&mut self) {
        let idle = self.idle.get_mut();
        for (class, buffers) in idle.classes.iter_mut().enumerate() {
            for memory in buffers.drain(..) {
                // SAFETY: allocated by AlignedBuffer::allocate with this class's capacity.
                unsafe { memory::free(memory, capacity_of_class(class)) };
            }
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} idle bytes)", self.idle_bytes())
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed_when_fresh() {
        let pool = BufferPool::new(1 << 20);
        // Miri looks at each byte.
        let large = if cfg!(miri) { 64 << 10 } else { 5 << 20 };
        for len in [0, 1, 4096, 5000, large] {
            let buffer = pool.take(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % BLOCK_BYTES, 0);
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn little_is_taken_beyond_what_is_asked_for() {
        for len in (1..4 << 20).step_by(1234) {
            let capacity = BufferPool::capacity_of(len);
            let most = if len > 1 << 20 { len + len / 8 } else { 2 * len };
            assert!((len..=most.max(BLOCK_BYTES)).contains(&capacity), "{capacity} for {len}");
            assert!(capacity.is_multiple_of(BLOCK_BYTES));
        }
    }

    #[test]
    fn a_dropped_buffer_is_taken_again() {
        let pool = BufferPool::new(1 << 20);
        let mut buffer = pool.take(8192);
        buffer[0] = 42;
        let memory = buffer.as_ptr();
        drop(buffer);
        assert_eq!(pool.idle_bytes(), 8192);
        let again = pool.take(6000);
        assert_eq!(again.as_ptr(), memory);
        assert_eq!(pool.idle_bytes(), 0);
    }

    #[test]
    fn a_pool_keeps_no_more_than_its_limit() {
        let pool = BufferPool::new(8192);
        let buffers: Vec<_> = (0..4).map(|_| pool.take(4096)).collect();
        drop(buffers);
        assert_eq!(pool.idle_bytes(), 8192);
    }

    #[test]
    fn sizes_that_are_not_asked_for_any_more_give_way() {
        let pool = BufferPool::new(8 << 12);
        let small: Vec<_> = (0..8).map(|_| pool.take(4096)).collect();
        drop(small);
        let large = pool.take(4 << 12);
        let memory = large.as_ptr();
        drop(large);
        assert_eq!(pool.idle_bytes(), 8 << 12);
        assert_eq!(pool.take(4 << 12).as_ptr(), memory);
        // As large as all of it: nothing else stays.
        drop(pool.take(8 << 12));
        assert_eq!(pool.idle_bytes(), 8 << 12);
        drop(pool.take(16 << 12));
        assert_eq!(pool.idle_bytes(), 8 << 12);
        pool.trim(4 << 12);
        assert_eq!(pool.idle_bytes(), 0, "one buffer has all of it");
    }

    #[test]
    fn what_is_in_use_leaves_less_for_what_is_idle() {
        let pool = BufferPool::within(4 << 12);
        let mut buffers: Vec<_> = (0..6).map(|_| pool.take(4096)).collect();
        drop(buffers.split_off(3));
        assert_eq!(pool.idle_bytes(), 1 << 12);
        let large = pool.take(2 << 12);
        assert_eq!(pool.idle_bytes(), 0, "it was needed for the large one");
        drop((buffers, large));
        assert_eq!(pool.idle_bytes(), 4 << 12);
        pool.trim(2 << 12);
        assert_eq!(pool.idle_bytes(), 2 << 12);
    }

    #[test]
    fn what_was_in_use_since_the_last_time_is_not_trimmed() {
        let pool = BufferPool::new(16 << 12);
        let idle = |most: usize| drop((0..most).map(|_| pool.take(4096)).collect::<Vec<_>>());
        idle(8);
        pool.trim_unused(2 << 12);
        assert_eq!(pool.idle_bytes(), 8 << 12, "all of it was in use");
        idle(5);
        pool.trim_unused(2 << 12);
        assert_eq!(pool.idle_bytes(), 5 << 12, "three were not");
        idle(1);
        pool.trim_unused(2 << 12);
        assert_eq!(pool.idle_bytes(), 2 << 12);
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = BufferPool::new(8192);
        let mut buffer = pool.take(4096);
        drop(pool);
        buffer.fill(7);
        assert!(buffer.iter().all(|&byte| byte == 7));
    }
}
