//! Memory within limits: an allocation that only a hostile length can explain ends the process,
//! which libFuzzer reports with the input that caused it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    process::abort,
};

/// The largest single allocation. What targets and fuzzer need for themselves is far below.
pub const MAX_ALLOCATION_BYTES: usize = 64 << 20;

struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fn check(len: usize) {
    if len > MAX_ALLOCATION_BYTES {
        // An allocator must not panic. What this allocates for itself is small.
        let trace = Backtrace::force_capture();
        eprintln!("an allocation of {len} bytes exceeds {MAX_ALLOCATION_BYTES}\n{trace}");
        abort();
    }
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        check(new_size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
