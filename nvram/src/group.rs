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
//!
//! # Who is woken
//! Waking a thread costs as much as a small write, and a whole group of them longer than the device takes.
//! So those who wait are kept apart: who came before the round under way began rides it, and whoever
//! came later gathers for the next. At the end of a round first one of the latter is woken, who
//! leads the next, and only then those who are done.

use std::{future::Future, sync::Arc};

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
}

struct State<E> {
    durable: Sequence,
    has_leader: bool,
    failed: Option<E>,
    /// Rounds that have begun.
    rounds: u64,
    /// Tells those who came before the last round began. All of them are told when it ends.
    riding: Arc<Event>,
    /// Tells those who came later. One of them is told when the lead is free, and has to lead or to tell
    /// another one.
    gathering: Arc<Event>,
}

impl<E> State<E> {
    fn advance(&mut self, sequence: Sequence) {
        if self.failed.is_none() {
            self.durable = self.durable.max(sequence);
        }
    }

    fn begin_round(&mut self) {
        self.has_leader = true;
        self.rounds += 1;
        // Who gathered until now is told when this round ends. Of the last round nobody is left who was
        // not told.
        std::mem::swap(&mut self.riding, &mut self.gathering);
    }

    fn tell_everybody(&self) {
        for event in [&self.gathering, &self.riding] {
            event.notify(usize::MAX);
        }
    }
}

impl<E: Clone> GroupCommit<E> {
    /// Everything up to `durable` is durable to begin with.
    #[must_use]
    pub fn new(durable: Sequence) -> Self {
        let (riding, gathering) = (Arc::new(Event::new()), Arc::new(Event::new()));
        let state =
            State { durable, has_leader: false, failed: None, rounds: 0, riding, gathering };
        Self { state: Mutex::new(state) }
    }

    /// Returns when everything up to `target` is durable. If nobody does that work yet, this
    /// caller runs `work`, which makes durable at least what was admitted when it was called and
    /// returns up to where everything is durable then. `target` was admitted before this call.
    ///
    /// Others may wait for this one to go on: who has begun to poll it polls it on, or drops it.
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
        let mut came_in_round = None;
        loop {
            let (before, told) = {
                let mut state = self.state.lock();
                let before = state.durable;
                let outcome = match &state.failed {
                    _ if before >= target => Some(Ok(())),
                    Some(error) => Some(Err(error.clone())),
                    None => None,
                };
                if let Some(outcome) = outcome {
                    // Perhaps this one was told to lead.
                    if !state.has_leader {
                        state.gathering.notify(1);
                    }
                    return outcome;
                }
                let told = if state.has_leader {
                    let rides = state.rounds > *came_in_round.get_or_insert(state.rounds);
                    let event = if rides { &state.riding } else { &state.gathering };
                    Some(event.listen())
                } else {
                    state.begin_round();
                    None
                };
                (before, told)
            };
            match told {
                Some(told) => told.await,
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
        let mut state = self.state.lock();
        state.advance(sequence);
        state.tell_everybody();
    }

    /// Durability failed by other means. The first failure stays.
    pub fn fail(&self, error: E) {
        let mut state = self.state.lock();
        state.failed.get_or_insert(error);
        state.tell_everybody();
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
        let mut state = self.group.state.lock();
        state.has_leader = false;
        state.gathering.notify(1);
        let riding = Arc::clone(&state.riding);
        drop(state);
        riding.notify(usize::MAX);
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests;
