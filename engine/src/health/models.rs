//! Models: every interleaving of who waits for a milestone with who reaches it or fails.

use siltstone_device::sync::explore::{Arc, block_on, explore, thread};

use super::*;

/// Whoever waits is woken, whenever it began to, and sees what was done before.
#[test]
fn a_milestone_that_is_reached_ends_every_wait() {
    explore("milestone: reached", Some(2), || {
        let shared = Arc::new((Milestone::default(), AtomicBool::new(false)));
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    block_on(shared.0.wait(|| Ok(()))).unwrap();
                    assert!(shared.1.load(Ordering::Relaxed), "reached before it was done");
                })
            })
            .collect();
        shared.1.store(true, Ordering::Relaxed);
        shared.0.set();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// Whoever waits for what never happens is told once the pool has failed.
#[test]
fn a_failure_ends_the_wait_for_a_milestone() {
    explore("milestone: a failure ends waiting", None, || {
        let shared = Arc::new((Milestone::default(), Health::default()));
        let failing = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.1.fail(EngineError::Closing);
                shared.0.wake();
            })
        };
        assert!(block_on(shared.0.wait(|| shared.1.check())).is_err());
        failing.join().unwrap();
    });
}
