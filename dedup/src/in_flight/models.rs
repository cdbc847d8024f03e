//! Models: every interleaving of two batches that hold the same block.

use siltstone_device::sync::{
    atomic::{AtomicBool, Ordering},
    explore::{Arc, block_on, explore, thread},
};

use super::*;

/// What the engine keeps beside the table.
struct Pipeline {
    in_flight: InFlight,
    /// Batches that have started, as the queue of admitted changes counts them.
    started: Mutex<u64>,
    /// Whether the index knows the block. Its entries are relaxed atomics, read without a lock.
    index: AtomicBool,
}

impl Pipeline {
    fn start(&self) -> u64 {
        let mut started = self.started.lock();
        *started += 1;
        *started - 1
    }

    /// Asks the index and then the table about the block; whether the batch stores it.
    fn reduce(&self, batch: u64) -> bool {
        if self.index.load(Ordering::Relaxed) {
            self.in_flight.gate().skip(batch);
            return false;
        }
        let turn = block_on(self.in_flight.gate().enter(batch)).unwrap();
        let block = ShortFingerprint::from_bytes([7; 16]);
        let mut out = Vec::new();
        self.in_flight.register_batch(&turn, &[block], &mut out);
        match out[..] {
            [Registration::Owner] => true,
            [Registration::Duplicate { batch: owner, position }] => {
                assert!(owner < batch && position == 0, "duplicates point backwards");
                false
            }
            _ => panic!("one registration for each fingerprint"),
        }
    }

    fn publish(&self, batch: u64) {
        self.index.store(true, Ordering::Relaxed);
        let newest_started = *self.started.lock() - 1;
        self.in_flight.retire(batch, newest_started);
    }
}

/// Whichever way a batch that stores a block is published while another one looks for the block:
/// the block is stored once.
#[test]
fn a_block_is_stored_once_whenever_its_owner_retires() {
    explore("in-flight: stored once", None, || {
        let shared = Arc::new(Pipeline {
            in_flight: InFlight::new(),
            started: Mutex::new(0),
            index: AtomicBool::new(false),
        });
        let first = shared.start();
        assert!(shared.reduce(first));
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let batch = shared.start();
                assert!(!shared.reduce(batch), "batch {batch} stores the block again");
            })
        };
        shared.publish(first);
        other.join().unwrap();
        // Everything has passed, so that nothing stays. One more batch reclaims what is left.
        let last = shared.start();
        assert!(!shared.reduce(last));
        shared.in_flight.retire(last, last);
        assert!(shared.in_flight.is_empty());
    });
}

/// Of two batches that look for an unknown block at once, the earlier one stores it.
#[test]
fn of_two_batches_at_once_the_earlier_one_owns_the_block() {
    explore("in-flight: two at once", Some(3), || {
        let shared = Arc::new(Pipeline {
            in_flight: InFlight::new(),
            started: Mutex::new(2),
            index: AtomicBool::new(false),
        });
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || assert!(!shared.reduce(1)))
        };
        assert!(shared.reduce(0));
        shared.publish(0);
        other.join().unwrap();
        shared.in_flight.retire(1, 1);
        assert!(shared.in_flight.is_empty());
    });
}
