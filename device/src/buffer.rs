//! Block-aligned memory for direct I/O, and a bounded pool that recycles it.
//!
//! Invariants: an [`AlignedBuffer`]'s memory is aligned to [`BLOCK_BYTES`], always initialised
//! (fresh memory is zero, recycled memory holds old contents), and owned by exactly one buffer.
//! A pool keeps at most its configured number of idle bytes; the rest goes back to the allocator.

use std::{
    alloc::{self, Layout},
    fmt,
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, Weak},
};

use crate::{
    huge_pages::{HUGE_PAGE_BYTES, prefer_huge_pages},
    sync::Mutex,
    units::BLOCK_BYTES,
};

/// Buffers of at most `4 KiB << (CLASSES - 1)` = 4 MiB are recycled; larger ones never are.
const CLASSES: usize = 11;

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
        let layout = layout(capacity);
        // SAFETY: the layout has a non-zero size (capacity is at least one block).
        let memory = unsafe { alloc::alloc(layout) };
        let Some(memory) = NonNull::new(memory) else { alloc::handle_alloc_error(layout) };
        // SAFETY: memory of that many bytes, which nobody else has; not initialised is well for this.
        let untouched: &mut [MaybeUninit<u8>] =
            unsafe { std::slice::from_raw_parts_mut(memory.as_ptr().cast(), capacity) };
        prefer_huge_pages(untouched);
        untouched.fill(MaybeUninit::new(0));
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

fn layout(capacity: usize) -> Layout {
    // The device pins what it reads or writes, and with large pages there is little to pin.
    let is_huge = capacity.is_multiple_of(HUGE_PAGE_BYTES);
    let align = if is_huge { HUGE_PAGE_BYTES } else { BLOCK_BYTES };
    Layout::from_size_align(capacity, align).expect("capacities are far below isize::MAX")
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
        // SAFETY: allocated in `allocate` with the same layout; not kept by the pool.
        unsafe { alloc::dealloc(self.memory.as_ptr(), layout(self.capacity)) };
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
    max_idle_bytes: usize,
}

/// Idle memory by size class; class `c` holds buffers of `4 KiB << c`.
struct Idle {
    classes: [Vec<NonNull<u8>>; CLASSES],
    bytes: usize,
}

// SAFETY: the pointers are to memory that the pool owns exclusively while it is idle.
unsafe impl Send for Idle {}

impl BufferPool {
    /// A pool that keeps at most `max_idle_bytes` of memory that nobody uses.
    #[must_use]
    pub fn new(max_idle_bytes: usize) -> Self {
        let idle = Mutex::new(Idle { classes: Default::default(), bytes: 0 });
        Self { inner: Arc::new(PoolInner { idle, max_idle_bytes }) }
    }

    /// A buffer of `len` bytes with unspecified (but initialised) contents.
    #[must_use]
    pub fn take(&self, len: usize) -> AlignedBuffer {
        let Some(class) = class_of(len) else {
            return AlignedBuffer::zeroed(len);
        };
        let capacity = BLOCK_BYTES << class;
        let pool = Arc::downgrade(&self.inner);
        let mut idle = self.inner.idle.lock();
        if let Some(memory) = idle.classes[class].pop() {
            idle.bytes -= capacity;
            return AlignedBuffer { memory, len, capacity, pool };
        }
        drop(idle);
        AlignedBuffer::allocate(len, capacity, pool)
    }

    /// Bytes kept for reuse at this moment.
    #[must_use]
    pub fn idle_bytes(&self) -> usize {
        self.inner.idle.lock().bytes
    }
}

/// The size class that holds `len` bytes, or `None` if such buffers are not recycled.
fn class_of(len: usize) -> Option<usize> {
    let blocks = len.div_ceil(BLOCK_BYTES).max(1).next_power_of_two();
    let class = blocks.trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

impl PoolInner {
    /// Takes idle memory over, unless that would exceed the limit.
    fn keep(&self, memory: NonNull<u8>, capacity: usize) -> bool {
        let class = (capacity / BLOCK_BYTES).trailing_zeros() as usize;
        let mut idle = self.idle.lock();
        if idle.bytes + capacity > self.max_idle_bytes {
            return false;
        }
        idle.bytes += capacity;
        idle.classes[class].push(memory);
        true
    }
}

impl Drop for PoolInner {
    fn drop(&mut self) {
        let idle = self.idle.get_mut();
        for (class, buffers) in idle.classes.iter_mut().enumerate() {
            for memory in buffers.drain(..) {
                // SAFETY: allocated by AlignedBuffer::allocate with this class's capacity.
                unsafe { alloc::dealloc(memory.as_ptr(), layout(BLOCK_BYTES << class)) };
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
    fn a_buffer_outlives_its_pool() {
        let pool = BufferPool::new(8192);
        let mut buffer = pool.take(4096);
        drop(pool);
        buffer.fill(7);
        assert!(buffer.iter().all(|&byte| byte == 7));
    }
}
