use std::{
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::{Context, Poll, Waker},
};

use pollster::block_on;

use super::*;

/// A future that is ready at its second poll, having woken its task: so that commits overlap.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Rounds that have to be led.
fn never() -> bool {
    false
}

fn poll<F: Future + ?Sized>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Every commit returns only when its target is durable, works never overlap, and many commits
/// share one work.
#[test]
fn concurrent_commits_share_work_and_wait_for_their_target() {
    const THREADS: u64 = 8;
    const COMMITS: u64 = 500;
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let (admitted, medium) = (AtomicU64::new(0), AtomicU64::new(0));
    let (works, working) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || async {
        assert!(!working.swap(true, Ordering::SeqCst), "two works at a time");
        works.fetch_add(1, Ordering::SeqCst);
        let reached = admitted.load(Ordering::SeqCst);
        for _ in 0..4 {
            // Gives the others time to come.
            std::thread::yield_now();
            yield_once().await;
        }
        medium.store(reached, Ordering::SeqCst);
        assert!(working.swap(false, Ordering::SeqCst));
        Ok(Sequence(reached))
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..COMMITS {
                    let target = admitted.fetch_add(1, Ordering::SeqCst) + 1;
                    block_on(group.commit(Sequence(target), never, work)).unwrap();
                    assert!(medium.load(Ordering::SeqCst) >= target);
                }
            });
        }
    });
    assert_eq!(group.durable(), Sequence(THREADS * COMMITS));
    let works = works.into_inner();
    assert!(works < THREADS * COMMITS, "{works} works");
}

/// One work serves all who came before it began, whatever the threads' timing.
#[test]
fn followers_return_with_the_next_work() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let works = AtomicU64::new(0);
    let admitted = AtomicU64::new(1);
    let work = || async {
        works.fetch_add(1, Ordering::SeqCst);
        let reached = admitted.load(Ordering::SeqCst);
        yield_once().await;
        Ok(Sequence(reached))
    };
    let mut leader = pin!(group.commit(Sequence(1), never, work));
    assert!(poll(leader.as_mut()).is_pending());
    admitted.store(100, Ordering::SeqCst);
    let mut followers: Vec<_> =
        (2..=100).map(|target| Box::pin(group.commit(Sequence(target), never, work))).collect();
    for follower in &mut followers {
        assert!(poll(follower.as_mut()).is_pending());
    }
    assert_eq!(poll(leader.as_mut()), Poll::Ready(Ok(())));
    for follower in followers {
        assert_eq!(block_on(follower), Ok(()));
    }
    assert_eq!(works.load(Ordering::SeqCst), 2);
}

#[test]
fn what_is_durable_needs_no_work() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(5));
    let work = || async { panic!("nothing to do") };
    block_on(group.commit(Sequence(5), never, work)).unwrap();
    group.advance(Sequence(9));
    group.advance(Sequence(3));
    assert_eq!(group.durable(), Sequence(9));
    block_on(group.commit(Sequence(9), never, work)).unwrap();
}

/// A checkpoint may make followers' targets durable while the leader still works.
#[test]
fn durability_by_other_means_releases_followers_at_once() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let mut leader = pin!(group.commit(Sequence(1), never, std::future::pending));
    assert!(poll(leader.as_mut()).is_pending());
    let mut follower = pin!(group.commit(Sequence(2), never, std::future::pending));
    assert!(poll(follower.as_mut()).is_pending());
    group.advance(Sequence(2));
    assert_eq!(poll(follower.as_mut()), Poll::Ready(Ok(())));
}

#[test]
fn the_first_failure_is_everybodys_and_final() {
    let group: GroupCommit<&str> = GroupCommit::new(Sequence(3));
    let mut leader = pin!(group.commit(Sequence(4), never, || async {
        yield_once().await;
        Err("the device failed")
    }));
    assert!(poll(leader.as_mut()).is_pending());
    let mut follower = pin!(group.commit(Sequence(9), never, || async { panic!("no second try") }));
    assert!(poll(follower.as_mut()).is_pending());
    assert_eq!(poll(leader.as_mut()), Poll::Ready(Err("the device failed")));
    assert_eq!(poll(follower.as_mut()), Poll::Ready(Err("the device failed")));

    group.fail("a later one");
    group.advance(Sequence(100));
    assert_eq!(group.durable(), Sequence(3));
    assert_eq!(group.failure(), Some("the device failed"));
    let work = || async { panic!("no third try") };
    assert_eq!(block_on(group.commit(Sequence(4), never, work)), Err("the device failed"));
    assert_eq!(block_on(group.commit(Sequence(3), never, work)), Ok(()));
}

/// A failure by other means, while a work runs, outweighs that work's success.
#[test]
fn a_failure_during_work_wins_over_its_success() {
    let group: GroupCommit<&str> = GroupCommit::new(Sequence(0));
    let mut leader = pin!(group.commit(Sequence(1), never, || async {
        yield_once().await;
        Ok(Sequence(1))
    }));
    assert!(poll(leader.as_mut()).is_pending());
    group.fail("flush failed");
    assert_eq!(poll(leader.as_mut()), Poll::Ready(Err("flush failed")));
    assert_eq!(group.durable(), Sequence(0));
}

#[test]
fn a_dropped_leader_passes_the_lead_on() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let mut leader = Box::pin(group.commit(Sequence(1), never, std::future::pending));
    assert!(poll(leader.as_mut()).is_pending());
    let mut follower = pin!(group.commit(Sequence(2), never, || async { Ok(Sequence(2)) }));
    assert!(poll(follower.as_mut()).is_pending());
    drop(leader);
    assert_eq!(poll(follower.as_mut()), Poll::Ready(Ok(())));
    assert_eq!(group.durable(), Sequence(2));
}

/// Whoever waits for a round that goes on for ever is told of a failure all the same.
#[test]
fn a_failure_reaches_those_who_wait_for_a_round_at_once() {
    let group: GroupCommit<&str> = GroupCommit::new(Sequence(0));
    let mut leader = pin!(group.commit(Sequence(1), never, std::future::pending));
    assert!(poll(leader.as_mut()).is_pending());
    let mut follower = pin!(group.commit(Sequence(2), never, std::future::pending));
    assert!(poll(follower.as_mut()).is_pending());
    group.fail("flush failed");
    assert_eq!(poll(follower.as_mut()), Poll::Ready(Err("flush failed")));
}

/// Who is told to lead and has become durable meanwhile tells the next.
#[test]
fn a_lead_that_is_not_needed_is_passed_on() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let mut leader = Box::pin(group.commit(Sequence(1), never, std::future::pending));
    assert!(poll(leader.as_mut()).is_pending());
    let mut first = pin!(group.commit(Sequence(1), never, || async { panic!("it is durable") }));
    let mut second = pin!(group.commit(Sequence(2), never, || async { Ok(Sequence(2)) }));
    assert!(poll(first.as_mut()).is_pending());
    assert!(poll(second.as_mut()).is_pending());
    // Now the first is told to lead.
    drop(leader);
    group.advance(Sequence(1));
    assert_eq!(poll(first.as_mut()), Poll::Ready(Ok(())));
    assert_eq!(poll(second.as_mut()), Poll::Ready(Ok(())));
}

/// A follower who is dropped takes no wake-up with it.
#[test]
fn dropped_followers_harm_nobody() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let work = || async {
        yield_once().await;
        Ok(Sequence(5))
    };
    let mut leader = pin!(group.commit(Sequence(5), never, work));
    assert!(poll(leader.as_mut()).is_pending());
    let mut first = Box::pin(group.commit(Sequence(4), never, work));
    let mut second = pin!(group.commit(Sequence(5), never, work));
    assert!(poll(first.as_mut()).is_pending());
    assert!(poll(second.as_mut()).is_pending());
    drop(first);
    assert_eq!(poll(leader.as_mut()), Poll::Ready(Ok(())));
    assert_eq!(block_on(second), Ok(()));
}

/// Work may stop short of what was asked, as long as it gets somewhere.
#[test]
fn work_that_falls_short_is_repeated() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let reached = AtomicU64::new(0);
    let work = || async { Ok(Sequence(reached.fetch_add(1, Ordering::SeqCst) + 1)) };
    block_on(group.commit(Sequence(4), never, work)).unwrap();
    assert_eq!(reached.into_inner(), 4);
}

/// A round that was begun is ended by its operation, not by a caller: whoever came meanwhile gets the
/// next one at once, before anybody is polled, and it covers all of them.
#[test]
fn the_end_of_a_round_begins_the_next() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let begun = AtomicU64::new(0);
    let begin = || {
        begun.fetch_add(1, Ordering::SeqCst);
        true
    };
    let work = || async { panic!("nothing to lead") };
    let mut first = pin!(group.commit(Sequence(1), begin, work));
    assert!(poll(first.as_mut()).is_pending());
    let mut second = pin!(group.commit(Sequence(2), begin, work));
    let mut third = pin!(group.commit(Sequence(3), begin, work));
    assert!(poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
    assert_eq!(begun.load(Ordering::SeqCst), 1);

    group.end_round(Ok(Sequence(1)), begin);
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    assert_eq!(poll(first.as_mut()), Poll::Ready(Ok(())));
    assert!(poll(second.as_mut()).is_pending());

    group.end_round(Ok(Sequence(3)), begin);
    assert_eq!(begun.load(Ordering::SeqCst), 2, "nobody came");
    assert_eq!(poll(second.as_mut()), Poll::Ready(Ok(())));
    assert_eq!(poll(third.as_mut()), Poll::Ready(Ok(())));
}

/// An operation may end before it returns to whoever begins it, as writes to memory do: rounds follow each
/// other without growing the stack.
#[test]
fn rounds_may_end_before_they_are_begun() {
    const ROUNDS: u64 = 100_000;
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let depth = AtomicU64::new(0);
    // As soon as a round is begun, it has ended and somebody else has come.
    let later = parking_lot::Mutex::new(Vec::new());
    type Commit<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), ()>> + 'a>>;
    fn begin<'a>(
        group: &'a GroupCommit<()>,
        depth: &AtomicU64,
        later: &parking_lot::Mutex<Vec<Commit<'a>>>,
    ) -> bool {
        assert_eq!(depth.fetch_add(1, Ordering::SeqCst), 0, "one begins at a time");
        let reached = group.durable().next();
        if reached < Sequence(ROUNDS) {
            let target = reached.next();
            let work = || async { panic!("nothing to lead") };
            let mut next: Commit<'a> = Box::pin(group.commit(target, never, work));
            assert!(poll(next.as_mut()).is_pending());
            later.lock().push(next);
        }
        group.end_round(Ok(reached), never);
        depth.fetch_sub(1, Ordering::SeqCst);
        true
    }
    let work = || async { panic!("nothing to lead") };
    let mut first = pin!(group.commit(Sequence(1), || true, work));
    assert!(poll(first.as_mut()).is_pending());
    let mut second: Commit<'_> = Box::pin(group.commit(Sequence(2), never, work));
    assert!(poll(second.as_mut()).is_pending());
    later.lock().push(second);
    group.end_round(Ok(Sequence(1)), || begin(&group, &depth, &later));
    assert_eq!(group.durable(), Sequence(ROUNDS));
    block_on(first).unwrap();
    for commit in later.into_inner() {
        block_on(commit).unwrap();
    }
}

/// If what follows a round cannot be begun, one of those who came leads it.
#[test]
fn a_round_that_cannot_be_begun_is_led_by_one_who_waits() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let mut first = pin!(group.commit(Sequence(1), || true, || async { panic!("it was begun") }));
    assert!(poll(first.as_mut()).is_pending());
    let lead = || async { Ok(Sequence(3)) };
    let mut second = Box::pin(group.commit(Sequence(2), never, lead));
    let mut third = pin!(group.commit(Sequence(3), never, lead));
    assert!(poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
    group.end_round(Ok(Sequence(1)), never);
    assert_eq!(poll(first.as_mut()), Poll::Ready(Ok(())));
    // The one that was told to lead goes away: another one is told.
    drop(second);
    assert_eq!(poll(third.as_mut()), Poll::Ready(Ok(())));
}

/// Where operations end before they are begun, one caller would serve all others as long as they come.
#[test]
fn whoever_is_done_serves_nobody_else() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let lead = || async { panic!("every round can be begun") };
    let end = |reached| {
        group.end_round(Ok(Sequence(reached)), || panic!("whoever began it goes on"));
        true
    };
    let mut other = Box::pin(group.commit(Sequence(2), || end(2), lead));
    let mut begun = 0;
    let begin = || {
        begun += 1;
        // Another one comes while the first round is under way.
        assert!(poll(other.as_mut()).is_pending());
        end(1)
    };
    block_on(group.commit(Sequence(1), begin, lead)).unwrap();
    assert_eq!((begun, group.durable()), (1, Sequence(1)));
    assert_eq!(poll(other.as_mut()), Poll::Ready(Ok(())));
}

/// The failure of an operation is everybody's, also of those who came for the next.
#[test]
fn a_round_that_was_begun_may_fail() {
    let group: GroupCommit<&str> = GroupCommit::new(Sequence(0));
    let work = || async { panic!("nothing to lead") };
    let mut first = pin!(group.commit(Sequence(1), || true, work));
    assert!(poll(first.as_mut()).is_pending());
    let mut second = pin!(group.commit(Sequence(2), || true, work));
    assert!(poll(second.as_mut()).is_pending());
    group.end_round(Err("the device failed"), || panic!("no second try"));
    assert_eq!(poll(first.as_mut()), Poll::Ready(Err("the device failed")));
    assert_eq!(poll(second.as_mut()), Poll::Ready(Err("the device failed")));
}

#[test]
fn futures_may_move_between_threads() {
    fn assert_send<T: Send>(_: T) {}
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    assert_send(group.commit(Sequence(1), never, || async { Ok(Sequence(1)) }));
}
