//! Where one caller waits for its commit, and how it is told.
//!
//! Whoever tells many takes them off their list first and wakes them after all locks are let go: a thread
//! that is woken while the waker still holds what it needs next goes to sleep again, which costs more than
//! the commit itself.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
};

use siltstone_device::{Sequence, sync::Mutex};

/// What one who waits is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The target is durable.
    Durable,
    /// Something has changed: look, and perhaps lead.
    Look,
}

/// A place on a list of those who wait.
pub(super) struct Seat {
    pub(super) target: Sequence,
    state: Mutex<SeatState>,
}

enum SeatState {
    Waiting(Option<Waker>),
    Told(Told),
}

impl Seat {
    pub(super) fn new(target: Sequence) -> Arc<Self> {
        Arc::new(Self { target, state: Mutex::new(SeatState::Waiting(None)) })
    }

    /// Called once, by whoever took the seat off its list; with no lock held.
    pub(super) fn tell(&self, told: Told) {
        let before = std::mem::replace(&mut *self.state.lock(), SeatState::Told(told));
        match before {
            SeatState::Waiting(Some(waker)) => waker.wake(),
            SeatState::Waiting(None) => {}
            SeatState::Told(_) => unreachable!("a seat is told once"),
        }
    }

    /// Waits to be told.
    pub(super) async fn wait(&self) -> Told {
        poll_fn(|context| match &mut *self.state.lock() {
            SeatState::Told(told) => Poll::Ready(*told),
            SeatState::Waiting(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        })
        .await
    }
}
