//! Clients that wait for flushes, and how compression gives way to them.
//!
//! A flush takes next to no processor time, but that on several threads one after the other: a client's, the
//! device's, a client's again. Compression takes all that it is given, for milliseconds at a time, and a fair
//! scheduler lets it finish its share before it looks at who has woken. With no more processors than
//! reducers, each step of a flush may wait for that. So while anybody waits for a flush, a thread that
//! compresses offers its processor to others before each frame: if nobody takes it, for one system call in some tens of
//! microseconds of work. Without flushes it costs a look at a counter.
//!
//! A flush of more than the log takes waits for the reducers themselves: while that is so, they do not give way.
//! Whoever gives way loses time to other programs, too, where these keep the processors busy. That is
//! bounded: what is not compressed fills the backlog, and writes wait for a place there.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Counts those who wait for flushes.
#[derive(Default)]
pub(crate) struct FlushWaiters {
    flushes: AtomicUsize,
    drains: AtomicUsize,
}

impl FlushWaiters {
    /// Somebody waits for a flush, until the guard is dropped.
    pub(crate) fn flush(&self) -> Counted<'_> {
        Counted::begin(&self.flushes)
    }

    /// A flush waits for reducers, until the guard is dropped.
    pub(crate) fn drain(&self) -> Counted<'_> {
        Counted::begin(&self.drains)
    }

    /// Lets other threads go first, if any wants to, while somebody waits for a flush and none for reducers.
    pub(crate) fn give_way(&self) {
        if self.come_first() {
            thread::yield_now();
        }
    }

    fn come_first(&self) -> bool {
        self.flushes.load(Ordering::Relaxed) > 0 && self.drains.load(Ordering::Relaxed) == 0
    }
}

/// One of those who are counted.
pub(crate) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_come_first_unless_one_waits_for_the_reducers() {
        let waiters = FlushWaiters::default();
        assert!(!waiters.come_first());
        let flush = waiters.flush();
        assert!(waiters.come_first());
        let drain = waiters.drain();
        assert!(!waiters.come_first());
        drop(drain);
        assert!(waiters.come_first());
        drop(flush);
        assert!(!waiters.come_first());
    }
}
