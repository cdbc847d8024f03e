//! Models: every interleaving of a few callers.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use event_listener::Event;
use siltstone_device::sync::{
    atomic::{AtomicBool, AtomicU64, Ordering},
    explore::{Arc, block_on, explore, thread},
};

use super::*;

/// What callers have admitted, and how much of it is durable.
#[derive(Default)]
struct Medium {
    admitted: AtomicU64,
    durable: AtomicU64,
    writing: AtomicBool,
}

impl Medium {
    fn admit(&self) -> Sequence {
        Sequence(self.admitted.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Makes durable what is admitted now.
    async fn write(&self) -> Result<Sequence, &'static str> {
        let admitted = self.admitted.load(Ordering::Acquire);
        assert!(!self.writing.swap(true, Ordering::AcqRel), "one work at a time");
        self.durable.store(admitted, Ordering::Release);
        self.writing.store(false, Ordering::Release);
        Ok(Sequence(admitted))
    }
}

/// Rounds that have to be led.
fn never() -> bool {
    false
}

fn spawn(work: impl FnOnce() + 'static) -> thread::JoinHandle<()> {
    thread::spawn(work)
}

/// Whoever returns finds durable what it admitted; nobody waits for ever, and works do not overlap.
#[test]
fn a_commit_that_returns_is_durable_and_every_commit_returns() {
    explore("group commit: callers share rounds", Some(3), || {
        let shared = Arc::new((GroupCommit::new(Sequence(0)), Medium::default()));
        let caller = |shared: Arc<(GroupCommit<_>, Medium)>| {
            move || {
                let (group, medium) = &*shared;
                let target = medium.admit();
                block_on(group.commit(target, never, || medium.write())).unwrap();
                assert!(medium.durable.load(Ordering::Acquire) >= target.0);
            }
        };
        let others: Vec<_> = (0..2).map(|_| spawn(caller(Arc::clone(&shared)))).collect();
        caller(shared)();
        for other in others {
            other.join().unwrap();
        }
    });
}

/// Rounds that are begun end on another thread, which begins the next one: nobody is forgotten between the
/// end of one and those who come at that moment.
#[test]
fn a_round_that_is_begun_ends_elsewhere_and_begins_the_next() {
    type Shared = Arc<(GroupCommit<&'static str>, Medium)>;
    fn begin(shared: &Shared) -> bool {
        let admitted = shared.1.admitted.load(Ordering::Acquire);
        assert!(!shared.1.writing.swap(true, Ordering::AcqRel), "one operation at a time");
        let device = Arc::clone(shared);
        spawn(move || {
            device.1.durable.store(admitted, Ordering::Release);
            device.1.writing.store(false, Ordering::Release);
            device.0.end_round(Ok(Sequence(admitted)), || begin(&device));
        });
        true
    }
    explore("group commit: the end of a round begins the next", Some(2), || {
        let shared: Shared = Arc::new((GroupCommit::new(Sequence(0)), Medium::default()));
        let caller = |shared: Shared| {
            move || {
                let (group, medium) = &*shared;
                let target = medium.admit();
                let lead = || async { panic!("every round can be begun") };
                block_on(group.commit(target, || begin(&shared), lead)).unwrap();
                assert!(medium.durable.load(Ordering::Acquire) >= target.0);
            }
        };
        let other = spawn(caller(Arc::clone(&shared)));
        caller(shared)();
        other.join().unwrap();
    });
}

/// A leader that is dropped before its work has ended leaves the lead to those who wait.
#[test]
fn a_leader_that_is_dropped_harms_nobody() {
    explore("group commit: a leader is dropped", None, || {
        let shared = Arc::new((GroupCommit::<&str>::new(Sequence(0)), Medium::default()));
        let target = shared.1.admit();
        let follower = {
            let shared = Arc::clone(&shared);
            spawn(move || {
                let (group, medium) = &*shared;
                block_on(group.commit(target, never, || medium.write())).unwrap();
                assert!(medium.durable.load(Ordering::Acquire) >= target.0);
            })
        };
        {
            let mut stuck = pin!(shared.0.commit(target, never, std::future::pending));
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(outcome) = stuck.as_mut().poll(&mut context) {
                outcome.unwrap();
            }
        }
        follower.join().unwrap();
    });
}

/// A caller returns once its target is durable by other means, even while the leader's work does
/// not end.
#[test]
fn what_becomes_durable_by_other_means_lets_followers_go() {
    explore("group commit: durable by other means", Some(2), || {
        let group = Arc::new(GroupCommit::<&str>::new(Sequence(0)));
        let (may_end, follower_done) = (Arc::new(Event::new()), Arc::new(AtomicBool::new(false)));
        let work = |may_end: Arc<Event>, done: Arc<AtomicBool>| async move {
            loop {
                let listener = may_end.listen();
                if done.load(Ordering::Acquire) {
                    return Ok(Sequence(2));
                }
                listener.await;
            }
        };
        let leader = {
            let group = Arc::clone(&group);
            let (may_end, done) = (Arc::clone(&may_end), Arc::clone(&follower_done));
            spawn(move || {
                let work = || work(Arc::clone(&may_end), Arc::clone(&done));
                block_on(group.commit(Sequence(2), never, work)).unwrap();
            })
        };
        let other = {
            let group = Arc::clone(&group);
            spawn(move || group.advance(Sequence(1)))
        };
        // Whether it leads itself or follows the one whose work does not end yet.
        let lead = || std::future::ready(Ok(Sequence(1)));
        block_on(group.commit(Sequence(1), never, lead)).unwrap();
        follower_done.store(true, Ordering::Release);
        may_end.notify(usize::MAX);
        leader.join().unwrap();
        other.join().unwrap();
        assert!(group.durable() >= Sequence(2));
    });
}

/// A failure by other means reaches everyone who waits, and stays.
#[test]
fn a_failure_reaches_whoever_waits() {
    explore("group commit: failure by other means", None, || {
        let group = Arc::new(GroupCommit::new(Sequence(0)));
        let other = {
            let group = Arc::clone(&group);
            spawn(move || group.fail("by other means"))
        };
        // Its own work succeeds, but what fails first counts.
        let outcome =
            block_on(group.commit(Sequence(1), never, || std::future::ready(Ok(Sequence(1)))));
        other.join().unwrap();
        assert_eq!(group.failure(), Some("by other means"));
        assert_eq!(outcome.is_ok(), group.durable() == Sequence(1), "durable or told");
    });
}
