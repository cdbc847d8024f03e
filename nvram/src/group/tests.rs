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

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
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
                    block_on(group.commit(Sequence(target), work)).unwrap();
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
    let mut leader = pin!(group.commit(Sequence(1), work));
    assert!(poll(leader.as_mut()).is_pending());
    admitted.store(100, Ordering::SeqCst);
    let mut followers: Vec<_> =
        (2..=100).map(|target| Box::pin(group.commit(Sequence(target), work))).collect();
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
    block_on(group.commit(Sequence(5), work)).unwrap();
    group.advance(Sequence(9));
    group.advance(Sequence(3));
    assert_eq!(group.durable(), Sequence(9));
    block_on(group.commit(Sequence(9), work)).unwrap();
}

/// A checkpoint may make followers' targets durable while the leader still works.
#[test]
fn durability_by_other_means_releases_followers_at_once() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let mut leader = pin!(group.commit(Sequence(1), std::future::pending));
    assert!(poll(leader.as_mut()).is_pending());
    let mut follower = pin!(group.commit(Sequence(2), std::future::pending));
    assert!(poll(follower.as_mut()).is_pending());
    group.advance(Sequence(2));
    assert_eq!(poll(follower.as_mut()), Poll::Ready(Ok(())));
}

#[test]
fn the_first_failure_is_everybodys_and_final() {
    let group: GroupCommit<&str> = GroupCommit::new(Sequence(3));
    let mut leader = pin!(group.commit(Sequence(4), || async {
        yield_once().await;
        Err("the device failed")
    }));
    assert!(poll(leader.as_mut()).is_pending());
    let mut follower = pin!(group.commit(Sequence(9), || async { panic!("no second try") }));
    assert!(poll(follower.as_mut()).is_pending());
    assert_eq!(poll(leader.as_mut()), Poll::Ready(Err("the device failed")));
    assert_eq!(poll(follower.as_mut()), Poll::Ready(Err("the device failed")));

    group.fail("a later one");
    group.advance(Sequence(100));
    assert_eq!(group.durable(), Sequence(3));
    assert_eq!(group.failure(), Some("the device failed"));
    let work = || async { panic!("no third try") };
    assert_eq!(block_on(group.commit(Sequence(4), work)), Err("the device failed"));
    assert_eq!(block_on(group.commit(Sequence(3), work)), Ok(()));
}

/// A failure by other means, while a work runs, outweighs that work's success.
#[test]
fn a_failure_during_work_wins_over_its_success() {
    let group: GroupCommit<&str> = GroupCommit::new(Sequence(0));
    let mut leader = pin!(group.commit(Sequence(1), || async {
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
    let mut leader = Box::pin(group.commit(Sequence(1), std::future::pending));
    assert!(poll(leader.as_mut()).is_pending());
    let mut follower = pin!(group.commit(Sequence(2), || async { Ok(Sequence(2)) }));
    assert!(poll(follower.as_mut()).is_pending());
    drop(leader);
    assert_eq!(poll(follower.as_mut()), Poll::Ready(Ok(())));
    assert_eq!(group.durable(), Sequence(2));
}

/// A follower who is dropped takes no wake-up with it.
#[test]
fn dropped_followers_harm_nobody() {
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    let work = || async {
        yield_once().await;
        Ok(Sequence(5))
    };
    let mut leader = pin!(group.commit(Sequence(5), work));
    assert!(poll(leader.as_mut()).is_pending());
    let mut first = Box::pin(group.commit(Sequence(4), work));
    let mut second = pin!(group.commit(Sequence(5), work));
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
    block_on(group.commit(Sequence(4), work)).unwrap();
    assert_eq!(reached.into_inner(), 4);
}

#[test]
fn futures_may_move_between_threads() {
    fn assert_send<T: Send>(_: T) {}
    let group: GroupCommit<()> = GroupCommit::new(Sequence(0));
    assert_send(group.commit(Sequence(1), || async { Ok(Sequence(1)) }));
}
