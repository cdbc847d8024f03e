//! A bounded amount of memory that requests wait for, first come, first served.

use tokio::sync::Semaphore;

/// What is counted: permits of this many bytes.
const GRAIN_BYTES: usize = 512;

/// A budget of bytes. A request larger than all of it takes all of it: it is late, not stuck.
/// Thread-safe; waiting needs no particular executor.
pub(crate) struct Budget {
    permits: Semaphore,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let limit = limit_bytes.div_ceil(GRAIN_BYTES).max(1);
        Self { permits: Semaphore::new(limit), limit }
    }

    fn permits_for(&self, bytes: usize) -> usize {
        bytes.div_ceil(GRAIN_BYTES).min(self.limit)
    }

    /// Waits until `bytes` are free and takes them.
    ///
    /// # Errors
    /// [`BudgetClosed`] once the budget is closed.
    pub(crate) async fn take(&self, bytes: usize) -> Result<(), BudgetClosed> {
        let permits = u32::try_from(self.permits_for(bytes)).unwrap_or(u32::MAX);
        let permit = self.permits.acquire_many(permits).await.map_err(|_| BudgetClosed)?;
        permit.forget();
        Ok(())
    }

    /// Gives back what one `take` of `bytes` took.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.permits.add_permits(self.permits_for(bytes));
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
                        pollster::block_on(budget.take(bytes)).unwrap();
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
        pollster::block_on(budget.take(1 << 20)).unwrap();
        assert_eq!(budget.used_bytes(), budget.limit_bytes());
        budget.give_back(1 << 20);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn closing_ends_the_waiting() {
        let budget = Arc::new(Budget::new(512));
        pollster::block_on(budget.take(512)).unwrap();
        let waiter = {
            let budget = Arc::clone(&budget);
            thread::spawn(move || pollster::block_on(budget.take(512)))
        };
        thread::sleep(Duration::from_millis(10));
        budget.close();
        assert_eq!(waiter.join().unwrap(), Err(BudgetClosed));
    }
}
