//! Group commit: callers who wait for durability at the same time share the work.
//!
//! One caller leads: it runs the work that makes everything admitted so far durable, while those
//! who come meanwhile follow. When the work is done, followers whose target it covers return, and
//! one of the others leads next. A leader who is dropped midway only loses the lead; its followers
//! are not harmed.
//!
//! ```text
//!             target covered, or failed
//!   Waiting -----------------------------> done
//!     |  ^                                  ^
//!     |  | work covered less, or           |  work covered the target, or failed
//!     |  | another one leads               |
//!     v  |                                  |
//!   Leading --------------------------------+      dropped: the lead is free again
//! ```

use std::future::Future;

use event_listener::Event;
use siltstone_device::{Sequence, sync::Mutex};

/// Shares commits among callers; `E` is the error that all of them get once one work failed.
///
/// Thread safety: shared freely; the lock is never held while work runs or anybody waits.
///
/// Invariants: at most one work runs at a time; what is durable never goes back; after a failure,
/// what is durable no longer moves, and every target beyond it fails with the first error.
pub struct GroupCommit<E> {
    state: Mutex<State<E>>,
    /// Notified when the lead is free, what is durable moves, or a failure is recorded.
    changed: Event,
}

struct State<E> {
    durable: Sequence,
    has_leader: bool,
    failed: Option<E>,
}

impl<E> State<E> {
    fn advance(&mut self, sequence: Sequence) {
        if self.failed.is_none() {
            self.durable = self.durable.max(sequence);
        }
    }
}

impl<E: Clone> GroupCommit<E> {
    /// Everything up to `durable` is durable to begin with.
    #[must_use]
    pub fn new(durable: Sequence) -> Self {
        let state = State { durable, has_leader: false, failed: None };
        Self { state: Mutex::new(state), changed: Event::new() }
    }

    /// Returns when everything up to `target` is durable. If nobody does that work yet, this
    /// caller runs `work`, which makes durable at least what was admitted when it was called and
    /// returns up to where everything is durable then. `target` was admitted before this call.
    ///
    /// # Errors
    /// The first error of any work, unless the target was durable before that.
    ///
    /// # Panics
    /// If work returns success without getting anywhere: it would be repeated for ever.
    pub async fn commit<F, Fut>(&self, target: Sequence, mut work: F) -> Result<(), E>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<Sequence, E>>,
    {
        loop {
            let (before, changed) = {
                let mut state = self.state.lock();
                let before = state.durable;
                if before >= target {
                    return Ok(());
                }
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                let changed = state.has_leader.then(|| self.changed.listen());
                state.has_leader = true;
                (before, changed)
            };
            match changed {
                Some(changed) => changed.await,
                None => self.lead(before, &mut work).await,
            }
        }
    }

    async fn lead<F, Fut>(&self, before: Sequence, work: &mut F)
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<Sequence, E>>,
    {
        // Frees the lead and tells the others, however this ends: returned, dropped or panicked.
        let _lead = Lead { group: self };
        let outcome = work().await;
        let mut state = self.state.lock();
        match outcome {
            Ok(reached) => {
                assert!(reached > before, "a commit from {before} on reached only {reached}");
                state.advance(reached);
            }
            Err(error) => {
                state.failed.get_or_insert(error);
            }
        }
    }

    /// Up to where everything is durable.
    pub fn durable(&self) -> Sequence {
        self.state.lock().durable
    }

    /// Everything up to `sequence` became durable by other means. Ignored after a failure.
    pub fn advance(&self, sequence: Sequence) {
        self.state.lock().advance(sequence);
        self.changed.notify(usize::MAX);
    }

    /// Durability failed by other means. The first failure stays.
    pub fn fail(&self, error: E) {
        self.state.lock().failed.get_or_insert(error);
        self.changed.notify(usize::MAX);
    }

    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<E> {
        self.state.lock().failed.clone()
    }
}

struct Lead<'a, E> {
    group: &'a GroupCommit<E>,
}

impl<E> Drop for Lead<'_, E> {
    fn drop(&mut self) {
        self.group.state.lock().has_leader = false;
        self.group.changed.notify(usize::MAX);
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests;
