//! Connections that are still negotiating. A client that never gets on with it costs nothing to
//! send, so there is a bound: one more than that ends the oldest, and nobody is kept out.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The log tells of ended connections at most so often.
const TELLING: Duration = Duration::from_secs(10);

/// The negotiations on one address: strangers at one of them do not push out clients at another.
#[derive(Debug)]
pub(crate) struct HalfOpen {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// How many had to make room for others.
    pushed_out: u64,
    /// In the order in which they came.
    under_way: BTreeMap<u64, oneshot::Sender<()>>,
    untold: u64,
    told: Option<Instant>,
}

/// A negotiation's place, until it is dropped.
pub(crate) struct Place {
    all: Arc<HalfOpen>,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

impl HalfOpen {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// How many negotiate now.
    pub(crate) fn now(&self) -> usize {
        self.state.lock().under_way.len()
    }

    /// How many had to make room for others.
    pub(crate) fn pushed_out(&self) -> u64 {
        self.state.lock().pushed_out
    }

    /// A place for one more; the oldest loses its own if there are too many.
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let (evict, evicted) = oneshot::channel();
        let mut state = self.state.lock();
        if state.under_way.len() >= self.limit
            && let Some((_, oldest)) = state.under_way.pop_first()
        {
            // It may have finished this very moment.
            let _ = oldest.send(());
            state.pushed_out += 1;
            state.untold += 1;
            if state.told.is_none_or(|told| told.elapsed() >= TELLING) {
                tracing::warn!(
                    connections = state.untold,
                    max_half_open = self.limit,
                    "ended the oldest connections that had not chosen an export: too many"
                );
                state.told = Some(Instant::now());
                state.untold = 0;
            }
        }
        let number = state.next;
        state.next += 1;
        state.under_way.insert(number, evict);
        drop(state);
        Place { all: Arc::clone(self), number, evicted }
    }
}

impl Place {
    /// Resolves when others need the place.
    pub(crate) async fn evicted(&mut self) {
        if (&mut self.evicted).await.is_err() {
            // Only a place that is given up loses its sender unused.
            std::future::pending().await
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.state.lock().under_way.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(place: &mut Place) -> bool {
        place.evicted.try_recv().is_ok()
    }

    #[test]
    fn one_too_many_ends_the_oldest_that_still_negotiates() {
        let all = HalfOpen::new(3);
        let (first, mut second, mut third) = (all.enter(), all.enter(), all.enter());
        // It is done: that makes room.
        drop(first);
        let mut fourth = all.enter();
        assert!(![&mut second, &mut third, &mut fourth].into_iter().any(is_evicted));
        let mut fifth = all.enter();
        assert!(is_evicted(&mut second));
        assert_eq!((all.now(), all.pushed_out()), (3, 1));
        assert!(![&mut third, &mut fourth, &mut fifth].into_iter().any(is_evicted));
        drop((second, third, fourth, fifth));
        assert!(all.state.lock().under_way.is_empty(), "places do not pile up");
    }
}
