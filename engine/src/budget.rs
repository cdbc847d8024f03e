//! A bounded amount of memory that requests wait for, first come, first served.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// What is counted: permits of this many bytes.
const GRAIN_BYTES: usize = 512;

/// A budget of bytes. A request larger than all of it takes all of it: it is late, not stuck.
/// Thread-safe; waiting needs no particular executor.
pub(crate) struct Budget {
    permits: Semaphore,
    limit: usize,
    /// Asked for by those who wait, in bytes.
    waiting: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let limit = limit_bytes.div_ceil(GRAIN_BYTES).max(1);
        Self { permits: Semaphore::new(limit), limit, waiting: AtomicUsize::new(0) }
    }

    fn permits_for(&self, bytes: usize) -> usize {
        bytes.div_ceil(GRAIN_BYTES).min(self.limit)
    }

    /// Waits until `bytes` are free and takes them; they are free again when that is dropped and not kept.
    ///
    /// # Errors
    /// [`BudgetClosed`] once the budget is closed.
    pub(crate) async fn take(&self, bytes: usize) -> Result<Taken<'_>, BudgetClosed> {
        let permits = u32::try_from(self.permits_for(bytes)).unwrap_or(u32::MAX);
        if let Ok(taken) = self.permits.try_acquire_many(permits) {
            return Ok(Taken(taken));
        }
        let _waiting = Waiting::begin(self, bytes);
        self.permits.acquire_many(permits).await.map(Taken).map_err(|_| BudgetClosed)
    }

    /// Takes `bytes` if they are free at this moment, and the budget has as many.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Taken<'_>> {
        let permits = u32::try_from(bytes.div_ceil(GRAIN_BYTES)).ok()?;
        self.permits.try_acquire_many(permits).ok().map(Taken)
    }

    /// Bytes that are waited for.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Gives back what was kept of one `take` of `bytes`.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.permits.add_permits(self.permits_for(bytes));
    }

    /// Gives back part of what was kept of one `take` of `bytes`: all but `kept_bytes`, which are given back
    /// later as if so many had been taken.
    ///
    /// # Panics
    /// If more would be kept than was taken.
    pub(crate) fn give_back_but(&self, bytes: usize, kept_bytes: usize) {
        assert!(kept_bytes <= bytes, "no more is kept than was taken");
        self.permits.add_permits(self.permits_for(bytes) - self.permits_for(kept_bytes));
    }

    /// Gives back what was kept of several.
    pub(crate) fn give_back_all(&self, takes: impl Iterator<Item = usize>) {
        self.permits.add_permits(takes.map(|bytes| self.permits_for(bytes)).sum());
    }

    /// Ends all waiting, now and later.
    pub(crate) fn close(&self) {
        self.permits.close();
    }

    /// Bytes taken.
    pub(crate) fn used_bytes(&self) -> usize {
        (self.limit - self.permits.available_permits()) * GRAIN_BYTES
    }

    /// Bytes in all.
    pub(crate) fn limit_bytes(&self) -> usize {
        self.limit * GRAIN_BYTES
    }
}

/// Counts one who waits, until it is dropped.
struct Waiting<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl<'a> Waiting<'a> {
    fn begin(budget: &'a Budget, bytes: usize) -> Self {
        budget.waiting.fetch_add(bytes, Ordering::Relaxed);
        Self { budget, bytes }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What has been taken of a budget.
#[derive(Debug)]
#[must_use = "it is given back when it is dropped"]
pub(crate) struct Taken<'a>(SemaphorePermit<'a>);

impl Taken<'_> {
    /// It stays taken until it is given back.
    pub(crate) fn keep(self) {
        self.0.forget();
    }
}

/// The budget gives nothing any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BudgetClosed;

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use super::*;

    #[test]
    fn a_budget_is_never_exceeded_and_everyone_is_served() {
        let budget = Arc::new(Budget::new(10 * 512));
        let takers: Vec<_> = (0..8)
            .map(|taker| {
                let budget = Arc::clone(&budget);
                thread::spawn(move || {
                    for round in 0..200 {
                        let bytes = 512 * (1 + (taker + round) % 7);
                        pollster::block_on(budget.take(bytes)).unwrap().keep();
                        assert!(budget.used_bytes() <= budget.limit_bytes());
                        budget.give_back(bytes);
                    }
                })
            })
            .collect();
        for taker in takers {
            taker.join().unwrap();
        }
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn a_request_larger_than_the_budget_takes_all_of_it() {
        let budget = Budget::new(10 * 512);
        pollster::block_on(budget.take(1 << 20)).unwrap().keep();
        assert_eq!(budget.used_bytes(), budget.limit_bytes());
        budget.give_back(1 << 20);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn what_is_not_kept_is_free_again_and_several_takes_are_given_back_at_once() {
        let budget = Budget::new(10 * 512);
        drop(pollster::block_on(budget.take(4 * 512)).unwrap());
        assert_eq!(budget.used_bytes(), 0);
        let takes = [1, 512, 3 * 512];
        takes.iter().for_each(|&bytes| pollster::block_on(budget.take(bytes)).unwrap().keep());
        assert_eq!(budget.used_bytes(), 5 * 512);
        budget.give_back_all(takes.into_iter());
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn what_is_given_back_in_two_parts_is_what_was_taken() {
        let budget = Budget::new(10 * 512);
        for (bytes, kept_bytes) in [(4 * 512, 512), (1 << 20, 512), (1 << 20, 1 << 19), (512, 512)]
        {
            pollster::block_on(budget.take(bytes)).unwrap().keep();
            budget.give_back_but(bytes, kept_bytes);
            assert_eq!(budget.used_bytes(), kept_bytes.min(budget.limit_bytes()));
            budget.give_back(kept_bytes);
            assert_eq!(budget.used_bytes(), 0);
        }
    }

    #[test]
    fn closing_ends_the_waiting() {
        let budget = Arc::new(Budget::new(512));
        pollster::block_on(budget.take(512)).unwrap().keep();
        let waiter = {
            let budget = Arc::clone(&budget);
            thread::spawn(move || pollster::block_on(budget.take(512)).map(Taken::keep))
        };
        thread::sleep(Duration::from_millis(10));
        budget.close();
        assert_eq!(waiter.join().unwrap(), Err(BudgetClosed));
    }
}
