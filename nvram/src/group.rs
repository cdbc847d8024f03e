//! Group commit: callers who wait for durability at the same time share the work.
//!
//! Work is done in rounds, one at a time. A round makes everything durable that was admitted when it
//! began; who comes meanwhile waits for the next one.
//!
//! A round is either *begun* or *led*. What can be begun is a single operation of a device, whose
//! completion ends the round ([`GroupCommit::end_round`]) and at once begins the next one for those who
//! have come, on the device's own thread: the device waits for nobody to wake up. What takes more than
//! that is led: one caller runs it as its own work. A leader who is dropped midway only loses the lead; its
//! followers are not harmed.
//!
//! ```text
//!              covered, or failed
//!   Waiting ----------------------> done
//!     |   ^
//!     |   | the round fell short, or its leader was dropped
//!     v   |
//!   no round is under way: begins one and waits for it, or leads one
//! ```
//!
//! # Who is woken
//! Waking a thread costs as much as a small write, and a whole group of them longer than the device
//! takes. So nobody is woken before there is something for it to do, and when a round ends, what comes
//! next comes first: those who are done are told only when the next round is on its way.

mod seat;

use std::{future::Future, sync::Arc};

use seat::{Seat, Told};
use siltstone_device::{Sequence, sync::Mutex, when_submitted};

/// Shares commits among callers; `E` is the error that all of them get once one work failed.
///
/// Thread safety: shared freely; the lock is never held while work runs, anybody waits or is woken.
///
/// Invariants: at most one round is under way; what is durable never goes back; after a failure,
/// what is durable no longer moves, and every target beyond it fails with the first error. While no round
/// is under way and somebody waits, somebody has been told to look, or is about to.
pub struct GroupCommit<E> {
    state: Mutex<State<E>>,
}

struct State<E> {
    durable: Sequence,
    failed: Option<E>,
    round: Round<E>,
    /// What was durable when the round under way began.
    before: Sequence,
    /// In the order in which they came.
    waiting: Vec<Arc<Seat>>,
}

enum Round<E> {
    /// None is under way.
    None,
    /// Somebody leads, or is about to begin.
    Led,
    /// It was begun, and its end will be told.
    Begun,
    /// Its end was told before whoever begins it was back: that one goes on from here.
    Ended(Result<Sequence, E>),
}

/// Those who are to be told, once the lock is let go.
#[must_use = "they wait"]
struct ToTell(Vec<(Arc<Seat>, Told)>);

impl ToTell {
    fn tell(self) {
        for (seat, told) in self.0 {
            seat.tell(told);
        }
    }
}

impl<E: Clone> State<E> {
    fn advance(&mut self, sequence: Sequence) {
        if self.failed.is_none() {
            self.durable = self.durable.max(sequence);
        }
    }

    fn take_in(&mut self, outcome: Result<Sequence, E>) {
        match outcome {
            Ok(reached) => {
                let before = self.before;
                assert!(reached > before, "a commit from {before} on reached only {reached}");
                self.advance(reached);
            }
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    fn outcome(&self, target: Sequence) -> Option<Result<(), E>> {
        match &self.failed {
            _ if self.durable >= target => Some(Ok(())),
            Some(error) => Some(Err(error.clone())),
            None => None,
        }
    }

    /// Those for whom there is an outcome, whatever the round does.
    fn dismiss_settled(&mut self) -> ToTell {
        let (durable, has_failed) = (self.durable, self.failed.is_some());
        let is_settled = |seat: &mut Arc<Seat>| seat.target <= durable || has_failed;
        let told = |seat: Arc<Seat>| {
            if seat.target <= durable { (seat, Told::Durable) } else { (seat, Told::Look) }
        };
        ToTell(self.waiting.extract_if(.., is_settled).map(told).collect())
    }

    /// A round begins for all who wait.
    fn begin_round(&mut self) {
        self.round = Round::Led;
        self.before = self.durable;
    }

    /// No round is under way; if one is wanted, somebody is told to see to it.
    fn free_lead(&mut self) -> ToTell {
        self.round = Round::None;
        let next = if self.waiting.is_empty() { None } else { Some(self.waiting.remove(0)) };
        ToTell(next.into_iter().map(|seat| (seat, Told::Look)).collect())
    }
}

impl<E: Clone> GroupCommit<E> {
    /// Everything up to `durable` is durable to begin with.
    #[must_use]
    pub fn new(durable: Sequence) -> Self {
        let (failed, round, before, waiting) = (None, Round::None, durable, Vec::new());
        let state = State { durable, failed, round, before, waiting };
        Self { state: Mutex::new(state) }
    }

    /// Returns when everything up to `target` is durable. If no round is under way, this caller has to
    /// do with one. First it calls `begin`, which may start an operation that makes durable what is
    /// admitted at that moment, and says whether it did; its end is told by
    /// [`end_round`](Self::end_round). If it did not, this caller runs `work`, which makes durable at
    /// least what was admitted when it was called and returns up to where everything is durable then.
    /// `target` was admitted before this call.
    ///
    /// Others may wait for this one to go on: who has begun to poll it polls it on, or drops it.
    ///
    /// # Errors
    /// The first error of any work, unless the target was durable before that.
    ///
    /// # Panics
    /// If work returns success without getting anywhere: it would be repeated for ever.
    pub async fn commit<B, F, Fut>(
        &self,
        target: Sequence,
        mut begin: B,
        mut work: F,
    ) -> Result<(), E>
    where
        B: FnMut() -> bool,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<Sequence, E>>,
    {
        loop {
            let (seat, leads) = {
                let mut state = self.state.lock();
                if let Some(outcome) = state.outcome(target) {
                    // Perhaps this one was told to see to a round.
                    let next = match state.round {
                        Round::None => state.free_lead(),
                        _ => ToTell(Vec::new()),
                    };
                    drop(state);
                    next.tell();
                    return outcome;
                }
                let seat = Seat::new(target);
                state.waiting.push(Arc::clone(&seat));
                let leads = matches!(state.round, Round::None);
                if leads {
                    state.begin_round();
                }
                (seat, leads)
            };
            let mut sitting = Sitting { group: self, seat, is_told: false };
            if leads {
                let lead = Lead { group: self };
                if self.go_on(&mut begin, Some(target)) {
                    std::mem::forget(lead);
                } else {
                    let outcome = work().await;
                    self.state.lock().take_in(outcome);
                    drop(lead);
                }
            }
            let told = sitting.seat.wait().await;
            sitting.is_told = true;
            if told == Told::Durable {
                return Ok(());
            }
        }
    }

    /// The round that was begun has ended: everything up to the sequence is durable. Whom it served is told,
    /// and if others have come, the next round begins, by `begin` as in [`commit`](Self::commit), or
    /// one of them is woken to lead it.
    ///
    /// # Panics
    /// If no round was begun, or it succeeded without getting anywhere.
    pub fn end_round(&self, outcome: Result<Sequence, E>, begin: impl FnMut() -> bool) {
        let mut state = self.state.lock();
        match state.round {
            Round::Led => {
                state.round = Round::Ended(outcome);
                return;
            }
            Round::Begun => {}
            Round::None | Round::Ended(_) => panic!("a round that was begun ends once"),
        }
        state.take_in(outcome);
        let done = state.dismiss_settled();
        if state.waiting.is_empty() {
            state.round = Round::None;
            drop(state);
            done.tell();
            return;
        }
        state.begin_round();
        drop(state);
        if self.go_on(begin, None) {
            when_submitted(move || done.tell());
            return;
        }
        let next = self.state.lock().free_lead();
        next.tell();
        done.tell();
    }

    /// Begins the round that whoever calls this has the lead of, and any that follow while it is at it; if it
    /// has a target, until that is settled, for it must not serve others for ever. False if a round has to
    /// be led: then the caller still has the lead.
    fn go_on(&self, mut begin: impl FnMut() -> bool, target: Option<Sequence>) -> bool {
        loop {
            if !begin() {
                return false;
            }
            let mut state = self.state.lock();
            let outcome = match std::mem::replace(&mut state.round, Round::Begun) {
                Round::Led => return true,
                Round::Ended(outcome) => outcome,
                Round::None | Round::Begun => unreachable!("the lead is this caller's"),
            };
            state.take_in(outcome);
            let done = state.dismiss_settled();
            let is_settled = target.is_some_and(|target| state.outcome(target).is_some());
            if is_settled || state.waiting.is_empty() {
                let next = state.free_lead();
                drop(state);
                next.tell();
                done.tell();
                return true;
            }
            state.begin_round();
            drop(state);
            done.tell();
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
        let settled = state.dismiss_settled();
        drop(state);
        settled.tell();
    }

    /// Durability failed by other means. The first failure stays.
    pub fn fail(&self, error: E) {
        let mut state = self.state.lock();
        state.failed.get_or_insert(error);
        let settled = state.dismiss_settled();
        drop(state);
        settled.tell();
    }

    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<E> {
        self.state.lock().failed.clone()
    }
}

/// Frees the lead and tells those whom it served, however a round that is led ends: returned, dropped or
/// panicked.
struct Lead<'a, E: Clone> {
    group: &'a GroupCommit<E>,
}

impl<E: Clone> Drop for Lead<'_, E> {
    fn drop(&mut self) {
        let mut state = self.group.state.lock();
        let done = state.dismiss_settled();
        let next = state.free_lead();
        drop(state);
        next.tell();
        done.tell();
    }
}

/// One who waits; leaves its list when it is dropped.
struct Sitting<'a, E: Clone> {
    group: &'a GroupCommit<E>,
    seat: Arc<Seat>,
    is_told: bool,
}

impl<E: Clone> Drop for Sitting<'_, E> {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        let mut state = self.group.state.lock();
        state.waiting.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
        // Perhaps this one was told to look, or is about to be: then somebody else has to.
        let next = match state.round {
            Round::None => state.free_lead(),
            _ => ToTell(Vec::new()),
        };
        drop(state);
        next.tell();
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests;
