//! A damaged pool takes about as much memory as a whole one: no length or count on the disk is
//! believed before it is bounded.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ops::ControlFlow,
    sync::atomic::{AtomicU64, Ordering},
};

use siltstone_torture::damage::{self, Plan};

static IN_USE: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

fn taken(len: usize) {
    let in_use = IN_USE.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
    PEAK.fetch_max(in_use, Ordering::Relaxed);
}

fn given_back(len: usize) {
    IN_USE.fetch_sub(len as u64, Ordering::Relaxed);
}

/// The most bytes in use since it was last asked.
fn peak_bytes() -> u64 {
    PEAK.swap(IN_USE.load(Ordering::Relaxed), Ordering::Relaxed)
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        given_back(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn damage_takes_no_memory() {
    peak_bytes();
    drop(std::hint::black_box(vec![1_u8; 80 << 20]));
    assert!(peak_bytes() >= 80 << 20, "memory is counted");
    let plan = Plan { every: 997, jobs: 1, only: None, peak_bytes: Some(peak_bytes) };
    let outcome = damage::run(&plan, |_, _| ControlFlow::Continue(())).unwrap();
    assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
    assert!(!outcome.tally.bytes.is_empty());
}
