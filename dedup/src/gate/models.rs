//! Models: every interleaving of a few batches at the gate.

use siltstone_device::sync::{
    atomic::{AtomicU64, Ordering},
    explore::{Arc, block_on, explore, thread},
};

use super::*;

/// Batches pass in order and one at a time, and every batch passes.
#[test]
fn batches_pass_in_order_and_all_pass() {
    explore("gate: batches pass in order", Some(3), || {
        let shared = Arc::new((OrderGate::new(), AtomicU64::new(0)));
        let pass = |shared: &(OrderGate, AtomicU64), batch: u64| {
            let turn = block_on(shared.0.enter(batch)).unwrap();
            // Two steps, so that a second batch inside would be seen.
            assert_eq!(shared.1.load(Ordering::Relaxed), 2 * batch);
            shared.1.store(2 * batch + 1, Ordering::Relaxed);
            assert_eq!(shared.1.load(Ordering::Relaxed), 2 * batch + 1);
            shared.1.store(2 * batch + 2, Ordering::Relaxed);
            drop(turn);
        };
        let others: Vec<_> = [2, 1]
            .into_iter()
            .map(|batch| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || pass(&shared, batch))
            })
            .collect();
        pass(&shared, 0);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(shared.0.next(), 3);
    });
}

/// A batch that is skipped, before or when its turn comes, holds nobody up.
#[test]
fn a_skipped_batch_holds_nobody_up() {
    explore("gate: a batch is skipped", Some(3), || {
        let gate = Arc::new(OrderGate::new());
        let first = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || drop(block_on(gate.enter(0)).unwrap()))
        };
        let skipper = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.skip(1))
        };
        drop(block_on(gate.enter(2)).unwrap());
        first.join().unwrap();
        skipper.join().unwrap();
        assert_eq!(gate.next(), 3);
    });
}

/// Closing sends away whoever waits, whenever it began to; a turn that has begun may end.
#[test]
fn closing_leaves_nobody_waiting() {
    explore("gate: closing", Some(3), || {
        let gate = Arc::new(OrderGate::new());
        let waiters: Vec<_> = [1, 2]
            .into_iter()
            .map(|batch| {
                let gate = Arc::clone(&gate);
                // Batch 0 never comes.
                thread::spawn(move || {
                    assert_eq!(block_on(gate.enter(batch)).err(), Some(GateClosed { batch }));
                })
            })
            .collect();
        gate.close();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}
