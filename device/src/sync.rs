//! Locks, atomics and events of the code whose interleavings are explored by models.
//!
//! Normally these are parking_lot's locks and the standard library's atomics, under their own
//! names and at no cost. Built with `--cfg loom` they are loom's, which runs a model once for
//! every order in which its threads can interleave and every value that an atomic may return;
//! `event_listener` turns itself into its model likewise. `docs/concurrency.md` says which pieces
//! are modelled and how to run them.

#[cfg(not(loom))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

#[cfg(not(loom))]
pub mod atomic {
    //! Atomics and fences.
    pub use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
}

#[cfg(loom)]
pub mod explore;
#[cfg(loom)]
mod modelled;

#[cfg(loom)]
pub use modelled::{Condvar, Mutex, MutexGuard, RwLock, atomic};
