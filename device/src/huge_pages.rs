//! Large pages for large memory.
//!
//! Memory that is new costs a fault for every 4 KiB that is touched, memory that is accessed at random
//! costs a miss of the address cache on top of each cache miss, and memory that a device reads is pinned page by page. Pages
//! of 2 MiB make all three five hundred times rarer. Many systems give them only to those who ask.

use crate::units::BLOCK_BYTES;

/// The size of a large page on the processors that we know of.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Asks the system to back this memory with large pages where it can, as far as it is not touched yet.
/// Nothing but speed depends on it. A part is then resident as a whole once any of it is touched.
pub fn prefer_huge_pages<T>(memory: &[T]) {
    let range = memory.as_ptr_range();
    let start = range.start.cast::<u8>();
    let skip = start.align_offset(BLOCK_BYTES);
    let len = size_of_val(memory).saturating_sub(skip) / BLOCK_BYTES * BLOCK_BYTES;
    if len < HUGE_PAGE_BYTES {
        return;
    }
    advise(start.wrapping_add(skip).cast_mut(), len);
}

#[cfg(all(target_os = "linux", not(miri)))]
fn advise(start: *mut u8, len: usize) {
    // SAFETY: the range lies within a slice that is borrowed, and this advice changes neither what it
    // holds nor what can be done with it.
    let _ = unsafe { rustix::mm::madvise(start.cast(), len, rustix::mm::Advice::LinuxHugepage) };
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise(_: *mut u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_holds_what_it_held() {
        let mut memory = vec![0_u64; 1 << 20];
        memory.iter_mut().zip(0..).for_each(|(word, number)| *word = number);
        for range in [0..memory.len(), 1..memory.len() - 1, 3..5, 7..7] {
            prefer_huge_pages(&memory[range]);
        }
        assert!(memory.iter().zip(0..).all(|(&word, number)| word == number));
    }
}
