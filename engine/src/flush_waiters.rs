//! Clients that wait for flushes, and how compression gives way to them.
//!
//! A flush takes next to no processor time, but that on several threads one after the other: a client's, the
//! device's, a client's again. Compression takes all that it is given, for milliseconds at a time, and a fair
//! scheduler lets it finish its share before it looks at who has woken. With no more processors than
//! reducers, each step of a flush may wait for that. So while anybody waits for a flush, a thread that
//! compresses offers its processor to others before each frame: if nobody takes it, for one system call in some tens of
//! microseconds of work. Without flushes it costs a look at a counter.
//!
//! Whoever gives way loses time to other programs, too, where these keep the processors busy. That is
//! bounded: what is not compressed stays in staging, writes wait for room there, and nobody is left who waits
//! for a flush.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Counts those who wait for flushes.
#[derive(Default)]
pub(crate) struct FlushWaiters {
    count: AtomicUsize,
}

impl FlushWaiters {
    /// One more, until the guard is dropped.
    pub(crate) fn enter(&self) -> FlushWaiter<'_> {
        self.count.fetch_add(1, Ordering::Relaxed);
        FlushWaiter { waiters: self }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Lets other threads go first, if any wants to, while anybody waits for a flush.
    pub(crate) fn give_way(&self) {
        if self.count() > 0 {
            thread::yield_now();
        }
    }
}

/// See [`FlushWaiters::enter`].
pub(crate) struct FlushWaiter<'a> {
    waiters: &'a FlushWaiters,
}

impl Drop for FlushWaiter<'_> {
    fn drop(&mut self) {
        self.waiters.count.fetch_sub(1, Ordering::Relaxed);
    }
}
