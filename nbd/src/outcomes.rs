//! Outcomes of requests that ran apart from their connection, on their way back to it.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

use crate::reply::{Failure, Outcome};

/// A request that is done.
pub(crate) struct Completed {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) charge: usize,
    pub(crate) outcome: Outcome,
    /// Where it was among those that ran apart, if it did and was not a task from the start.
    pub(crate) place: Option<usize>,
}

/// Where a connection's requests put their outcomes. Bounded by the limit on requests.
#[derive(Default)]
pub(crate) struct Outcomes {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    completed: Vec<Completed>,
    /// The connection's, if it waits.
    waker: Option<Waker>,
}

impl Outcomes {
    /// All that have come; at least one.
    pub(crate) fn poll_take(&self, context: &mut Context<'_>) -> Poll<Vec<Completed>> {
        let mut waiting = self.waiting.lock();
        if waiting.completed.is_empty() {
            match &mut waiting.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut waiting.completed))
    }

    fn put(&self, completed: Completed) {
        let mut waiting = self.waiting.lock();
        waiting.completed.push(completed);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Answers a request even if what runs it panics.
pub(crate) struct Promise {
    /// What to answer if nothing better comes.
    reply: Option<Completed>,
    outcomes: Arc<Outcomes>,
}

impl Promise {
    pub(crate) fn new(outcomes: &Arc<Outcomes>, cookie: u64, offset: u64, charge: usize) -> Self {
        let outcome = Outcome::Failed(Failure::Panicked);
        let reply = Some(Completed { cookie, offset, charge, outcome, place: None });
        Self { reply, outcomes: Arc::clone(outcomes) }
    }

    /// The same, of a request that runs apart at that place.
    pub(crate) fn at(mut self, place: usize) -> Self {
        self.reply.iter_mut().for_each(|reply| reply.place = Some(place));
        self
    }

    pub(crate) fn keep(mut self, outcome: Outcome) {
        if let Some(reply) = self.reply.take() {
            self.outcomes.put(Completed { outcome, ..reply });
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            self.outcomes.put(reply);
        }
    }
}
