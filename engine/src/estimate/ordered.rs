//! Something that batches change in their order, whoever brings them.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

/// A value and whose turn it is.
pub(super) struct Ordered<T> {
    inner: Mutex<(u64, T)>,
    turned: Condvar,
    stopped: AtomicBool,
}

impl<T> Ordered<T> {
    /// The first turn is that of number 0.
    pub(super) fn new(value: T) -> Self {
        Self {
            inner: Mutex::new((0, value)),
            turned: Condvar::new(),
            stopped: AtomicBool::new(false),
        }
    }

    /// Waits until every smaller number had its turn; `None` after a [`stop`](Self::stop).
    pub(super) fn in_turn<R>(&self, number: u64, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut inner = self.inner.lock();
        while inner.0 != number {
            if self.stopped.load(Ordering::Acquire) {
                return None;
            }
            self.turned.wait(&mut inner);
        }
        let out = change(&mut inner.1);
        inner.0 += 1;
        drop(inner);
        self.turned.notify_all();
        Some(out)
    }

    /// A number will never have its turn: nobody waits any more.
    pub(super) fn stop(&self) {
        // Under the lock, so that nobody is between looking and waiting.
        let _inner = self.inner.lock();
        self.stopped.store(true, Ordering::Release);
        self.turned.notify_all();
    }

    pub(super) fn into_inner(self) -> T {
        self.inner.into_inner().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_order_whoever_waits() {
        let ordered = Ordered::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in (0..4_u64).rev() {
                let ordered = &ordered;
                scope.spawn(move || {
                    for number in (thread..100).step_by(4) {
                        assert_eq!(ordered.in_turn(number, |all| all.push(number)), Some(()));
                    }
                });
            }
        });
        assert_eq!(ordered.into_inner(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_waits_for_a_turn_that_never_comes() {
        let ordered = Ordered::new(());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| ordered.in_turn(1, |()| ()));
            ordered.stop();
            assert_eq!(waiter.join().unwrap(), None);
        });
    }
}
