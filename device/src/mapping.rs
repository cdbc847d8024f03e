//! Memory that the system gives and takes back in whole pages.
//!
//! Where there is no such system (Miri's, for one), the program's allocator stands in.

pub(crate) use sys::{map, prefer_small_pages, release, unmap};

#[cfg(all(target_os = "linux", not(miri)))]
mod sys {
    use std::{
        ffi::c_void,
        ptr::{NonNull, null_mut},
    };

    use rustix::{
        mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap},
        param::page_size,
    };

    use crate::units::BLOCK_BYTES;

    /// Zeroed memory of `len` bytes, aligned to `align`, a power of two; both are whole blocks. `None`
    /// if there is none.
    pub(crate) fn map(len: usize, align: usize) -> Option<NonNull<u8>> {
        let spare = align - BLOCK_BYTES;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: new memory, wherever the system likes it.
        let start = unsafe { mmap_anonymous(null_mut(), len.checked_add(spare)?, access, flags) };
        let start = NonNull::new(start.ok()?.cast::<u8>())?;
        let before = start.align_offset(align);
        // SAFETY: all of it is new and nobody's; the spare memory is on both sides of what is kept.
        unsafe {
            let memory = start.add(before);
            unmap(start, before);
            unmap(memory.add(len), spare - before);
            Some(memory)
        }
    }

    /// # Safety
    /// They are whole blocks of what [`map`] mapped, and nobody uses them any more.
    pub(crate) unsafe fn unmap(start: NonNull<u8>, len: usize) {
        // SAFETY: as the caller promises.
        let unmapped = |len| unsafe { munmap(start.as_ptr().cast::<c_void>(), len) };
        if len > 0 && unmapped(len).is_err() {
            // There are as many mappings as the system allows, and this would leave one more. The
            // addresses are lost, the memory is not.
            // SAFETY: as the caller promises.
            unsafe { release(start, len) };
        }
    }

    /// Has the system give this memory page by page, and not in large pages that stay for the last block in them.
    pub(crate) fn prefer_small_pages(start: NonNull<u8>, len: usize) {
        // SAFETY: advice, which changes no contents. Where there are no large pages, there is nothing to advise.
        let _ = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxNoHugepage) };
    }

    /// Lets the system have the pages of whole blocks, which stay mapped and are zeros from now on.
    ///
    /// # Safety
    /// They are of what [`map`] gave, and nobody uses them.
    pub(crate) unsafe fn release(start: NonNull<u8>, len: usize) {
        // The system would round up to its pages, which may be larger than blocks.
        let are_pages = (start.addr().get() | len).is_multiple_of(page_size());
        // SAFETY: as the caller promises.
        let advise = || unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontNeed) };
        if !are_pages || advise().is_err() {
            // Locked memory, for one, stays.
            // SAFETY: as the caller promises.
            unsafe { start.write_bytes(0, len) };
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod sys {
    use std::{
        alloc::{self, Layout},
        ptr::NonNull,
    };

    use crate::huge_pages::HUGE_PAGE_BYTES;

    /// As above.
    pub(crate) fn map(len: usize, align: usize) -> Option<NonNull<u8>> {
        debug_assert!(align <= HUGE_PAGE_BYTES);
        // SAFETY: nobody asks for no memory.
        NonNull::new(unsafe { alloc::alloc_zeroed(layout(len)) })
    }

    /// There is nothing to prefer.
    pub(crate) fn prefer_small_pages(_: NonNull<u8>, _: usize) {}

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, HUGE_PAGE_BYTES)
            .expect("buffers are far smaller than isize::MAX")
    }

    /// # Safety
    /// It is all of what [`map`] gave, and nobody uses it any more.
    pub(crate) unsafe fn unmap(start: NonNull<u8>, len: usize) {
        // SAFETY: as the caller promises.
        unsafe { alloc::dealloc(start.as_ptr(), layout(len)) };
    }

    /// Makes it zeros.
    ///
    /// # Safety
    /// It is of what [`map`] gave, and nobody uses it.
    pub(crate) unsafe fn release(start: NonNull<u8>, len: usize) {
        // SAFETY: as the caller promises.
        unsafe { start.write_bytes(0, len) };
    }
}
