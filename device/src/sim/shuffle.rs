//! Completing requests late and out of order, on a thread.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::{Medium, Underway};
use crate::{SeededRandom, completing::abort_on_panic};

/// The longest single pause, in microseconds.
const MAX_PAUSE_US: u64 = 50;

/// A thread that completes what it is given in a random order.
pub(super) struct Shuffler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when a request arrives or the shuffler closes.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Underway>,
    closing: bool,
}

impl Shuffler {
    pub(super) fn start(medium: &Arc<Medium>, seed: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let (medium, inner) = (Arc::clone(medium), Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("device-simulated".into())
            .spawn(move || abort_on_panic(|| inner.serve(&medium, SeededRandom::new(seed))))
            .expect("a simulation can start a thread");
        Self { shared, thread: Some(thread) }
    }

    pub(super) fn push(&self, underway: Underway) {
        self.shared.queue.lock().waiting.push(underway);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn serve(&self, medium: &Medium, mut random: SeededRandom) {
        loop {
            let mut queue = self.queue.lock();
            while queue.waiting.is_empty() {
                if queue.closing {
                    return;
                }
                self.changed.wait(&mut queue);
            }
            drop(queue);
            // Let more requests gather, so that there is something to shuffle.
            match random.below(8) {
                0 => thread::sleep(Duration::from_micros(random.below(MAX_PAUSE_US))),
                1..=4 => thread::yield_now(),
                _ => {}
            }
            let mut queue = self.queue.lock();
            let chosen = random.below(queue.waiting.len() as u64) as usize;
            let underway = queue.waiting.swap_remove(chosen);
            drop(queue);
            medium.complete(underway);
        }
    }
}

impl Drop for Shuffler {
    fn drop(&mut self) {
        self.shared.queue.lock().closing = true;
        self.shared.changed.notify_one();
        let thread = self.thread.take().expect("dropped once");
        // A completion may own the device's last reference: its thread ends by itself.
        if thread.thread().id() != thread::current().id() {
            thread.join().expect("the simulated device's thread aborts rather than panics");
        }
    }
}
