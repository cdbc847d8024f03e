//! The order gate: batches pass one at a time, in the order of their numbers.

use std::collections::BTreeSet;

use event_listener::Event;
use siltstone_device::sync::Mutex;

/// The gate was closed: the pool is shutting down, and no batch passes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("batch {batch} cannot be admitted to deduplication: the pipeline is shutting down")]
pub struct GateClosed {
    /// The batch that was not let through.
    pub batch: u64,
}

/// Lets batches 0, 1, 2, ... through one at a time and in this order, whichever task brings
/// them.
///
/// Every number must come: a batch with no business here calls [`skip`](Self::skip). If tasks
/// take batches in order and do not wait for a later batch while they hold an earlier one, the
/// lowest batch not yet through is always in some task's hands, and nobody waits for ever.
///
/// Thread safety: the lock is a leaf, and is not held while a batch has its turn.
#[derive(Default)]
pub struct OrderGate {
    state: Mutex<State>,
    changed: Event,
}

#[derive(Default)]
struct State {
    /// The batch whose turn it is. All lower ones have passed.
    next: u64,
    /// Batches above `next` that will not come. At most as many as the pipeline has batches.
    skipped: BTreeSet<u64>,
    closed: bool,
}

/// A batch's turn at the gate, which ends when this is dropped.
#[must_use = "the turn ends when this is dropped"]
pub struct Turn<'a> {
    gate: &'a OrderGate,
    batch: u64,
}

impl OrderGate {
    /// A gate at which it is batch 0's turn.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until all earlier batches have passed, or the gate is closed.
    ///
    /// # Panics
    /// If the batch has passed already: numbers are given out once.
    pub async fn enter(&self, batch: u64) -> Result<Turn<'_>, GateClosed> {
        loop {
            let changed = {
                let state = self.state.lock();
                if state.closed {
                    return Err(GateClosed { batch });
                }
                assert!(state.next <= batch, "a batch passes once");
                if state.next == batch {
                    return Ok(Turn { gate: self, batch });
                }
                self.changed.listen()
            };
            changed.await;
        }
    }

    /// Counts a batch that will not come as passed, now or when its turn comes.
    ///
    /// # Panics
    /// If the batch has passed already.
    pub fn skip(&self, batch: u64) {
        let mut state = self.state.lock();
        assert!(state.next <= batch, "a batch passes once");
        state.skipped.insert(batch);
        if state.next == batch {
            self.advance(&mut state);
        }
    }

    /// Sends everyone away who waits now or comes later. A turn that has begun may end.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify(usize::MAX);
    }

    /// The batch whose turn it is: all lower ones have passed.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.state.lock().next
    }

    fn advance(&self, state: &mut State) {
        while state.skipped.remove(&state.next) {
            state.next += 1;
        }
        self.changed.notify(usize::MAX);
    }
}

impl Turn<'_> {
    /// The batch whose turn it is.
    #[must_use]
    pub fn batch(&self) -> u64 {
        self.batch
    }

    /// Whether it is a turn at this gate.
    #[must_use]
    pub fn is_at(&self, gate: &OrderGate) -> bool {
        std::ptr::eq(self.gate, gate)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.next += 1;
        self.gate.advance(&mut state);
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests {
    use super::*;
    use pollster::block_on;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[test]
    fn batches_pass_in_order_whatever_order_they_come_in() {
        let gate = OrderGate::new();
        let passed = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for batch in (0..40).rev() {
                let (gate, passed) = (&gate, &passed);
                scope.spawn(move || {
                    if batch % 5 == 3 {
                        gate.skip(batch);
                        return;
                    }
                    let turn = block_on(gate.enter(batch)).unwrap();
                    let mut passed = passed.try_lock().expect("one at a time");
                    passed.push(turn.batch());
                });
            }
        });
        let expected: Vec<_> = (0..40).filter(|batch| batch % 5 != 3).collect();
        assert_eq!(passed.into_inner(), expected);
        assert_eq!(gate.next(), 40);
    }

    #[test]
    fn batches_that_do_not_come_are_passed_over_together() {
        let gate = OrderGate::new();
        gate.skip(2);
        gate.skip(1);
        gate.skip(4);
        assert_eq!(gate.next(), 0);
        drop(block_on(gate.enter(0)).unwrap());
        assert_eq!(gate.next(), 3);
        gate.skip(3);
        assert_eq!(gate.next(), 5);
    }

    #[test]
    fn closing_sends_away_who_waits_and_who_comes_later() {
        let gate = OrderGate::new();
        let turn = block_on(gate.enter(0)).unwrap();
        let sent_away = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for batch in 1..8 {
                let (gate, sent_away) = (&gate, &sent_away);
                scope.spawn(move || {
                    assert_eq!(block_on(gate.enter(batch)).err(), Some(GateClosed { batch }));
                    sent_away.fetch_add(1, Ordering::Relaxed);
                });
            }
            // Most of them wait by now; those that come later are sent away as well.
            std::thread::sleep(Duration::from_millis(20));
            gate.close();
        });
        assert_eq!(sent_away.into_inner(), 7);
        drop(turn);
        assert_eq!(block_on(gate.enter(1)).err(), Some(GateClosed { batch: 1 }));
    }

    #[test]
    fn a_turn_ends_when_its_thread_panics() {
        let gate = OrderGate::new();
        std::thread::scope(|scope| {
            let panicking = scope.spawn(|| {
                let _turn = block_on(gate.enter(0)).unwrap();
                panic!("expected by this test");
            });
            assert!(panicking.join().is_err());
        });
        assert_eq!(block_on(gate.enter(1)).unwrap().batch(), 1);
    }
}
