//! Requests on their way to a few threads.

use std::collections::VecDeque;

use crate::{
    Request,
    sync::{Condvar, Mutex},
};

/// A queue that threads serve until it is closed and empty. Thread-safe; the lock is a leaf.
#[derive(Default)]
pub(crate) struct RequestQueue {
    queue: Mutex<Queue>,
    /// Signalled when a request arrives or the queue closes.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    closing: bool,
}

impl RequestQueue {
    /// Adds a batch for `threads` threads to share.
    pub(crate) fn push(&self, batch: Vec<Request>, threads: usize) {
        let count = batch.len();
        self.queue.lock().waiting.extend(batch);
        for _ in 0..count.min(threads) {
            self.changed.notify_one();
        }
    }

    /// Lets the threads end once nothing waits.
    pub(crate) fn close(&self) {
        self.queue.lock().closing = true;
        self.changed.notify_all();
    }

    /// Waits for the next request; `None` when the queue is closed and nothing is left to do.
    pub(crate) fn next(&self) -> Option<Request> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(request) = queue.waiting.pop_front() {
                return Some(request);
            }
            if queue.closing {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }
}

#[cfg(all(test, loom))]
mod models;
