//! A bounded amount of something (bytes of staging) that requests wait for.

use event_listener::Event;
use parking_lot::Mutex;

/// A budget of `limit` units.
///
/// Invariant: `used <= limit`, except that one request larger than the limit may hold the whole
/// budget alone, so that it is late rather than stuck.
pub(crate) struct Budget {
    limit: usize,
    used: Mutex<usize>,
    released: Event,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, used: Mutex::new(0), released: Event::new() }
    }

    /// Waits until `amount` is free and takes it. `give_up` is asked before each wait and ends the
    /// waiting with an error.
    pub(crate) async fn take<E>(
        &self,
        amount: usize,
        give_up: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let listener = self.released.listen();
            give_up()?;
            if self.try_take(amount) {
                return Ok(());
            }
            listener.await;
        }
    }

    fn try_take(&self, amount: usize) -> bool {
        let mut used = self.used.lock();
        let fits = *used + amount <= self.limit || *used == 0;
        if fits {
            *used += amount;
        }
        fits
    }

    /// Gives back what was taken.
    pub(crate) fn give_back(&self, amount: usize) {
        let mut used = self.used.lock();
        *used = used.checked_sub(amount).expect("nothing is given back twice");
        drop(used);
        self.wake();
    }

    /// Lets everyone who waits ask again.
    pub(crate) fn wake(&self) {
        self.released.notify(usize::MAX);
    }

    pub(crate) fn used(&self) -> usize {
        *self.used.lock()
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn a_budget_is_never_exceeded_and_everyone_is_served() {
        let budget = Arc::new(Budget::new(10));
        let takers: Vec<_> = (0..8)
            .map(|taker| {
                let budget = Arc::clone(&budget);
                thread::spawn(move || {
                    for round in 0..200 {
                        let amount = 1 + (taker + round) % 7;
                        pollster::block_on(budget.take(amount, || Ok::<(), ()>(()))).unwrap();
                        assert!(budget.used() <= budget.limit());
                        budget.give_back(amount);
                    }
                })
            })
            .collect();
        for taker in takers {
            taker.join().unwrap();
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_request_larger_than_the_budget_is_served_alone() {
        let budget = Budget::new(10);
        pollster::block_on(budget.take(25, || Ok::<(), ()>(()))).unwrap();
        assert!(!budget.try_take(1));
        budget.give_back(25);
        assert!(budget.try_take(10));
    }

    #[test]
    fn giving_up_ends_the_waiting() {
        let budget = Budget::new(1);
        assert!(budget.try_take(1));
        assert_eq!(pollster::block_on(budget.take(1, || Err("closing"))), Err("closing"));
    }
}
