//! Models: every interleaving of the sealer with the checkpointer and with a failure.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use siltstone_device::sync::explore::{Timeless, block_on, explore, thread};

use super::*;
use crate::{checkpointer::Checkpointing, error::EngineError};

const SEGMENT: (SegmentId, u64) = (SegmentId(3), 7);

struct Shared {
    frontier: Frontier,
    health: Health,
    checkpointing: Checkpointing,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            frontier: Frontier::new(64, 1 << 20),
            health: Health::default(),
            checkpointing: Checkpointing::new(Arc::new(Timeless(Instant::now()))),
        })
    }

    fn next(&self) -> Option<(SegmentId, u64)> {
        block_on(self.frontier.next(&self.health, || self.checkpointing.request()))
    }
}

/// A sealer without a segment gets one from the checkpoint that it asks for.
#[test]
fn the_sealer_gets_a_segment_from_the_checkpoint_that_it_asks_for() {
    explore("frontier: sealer and checkpointer", Some(3), || {
        let shared = Shared::new();
        let checkpointer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let next = || block_on(shared.checkpointing.next(Duration::from_secs(1)));
                while next().is_some() {
                    shared.frontier.extend(vec![SEGMENT]);
                    shared.checkpointing.finish();
                }
            })
        };
        assert_eq!(shared.next(), Some(SEGMENT));
        shared.checkpointing.stop();
        checkpointer.join().unwrap();
    });
}

/// A sealer that waits for a segment learns that the pool has failed.
#[test]
fn a_failure_ends_the_wait_for_a_segment() {
    explore("frontier: a failure ends waiting", None, || {
        let shared = Shared::new();
        let failing = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.health.fail(EngineError::Closing);
                shared.frontier.wake();
            })
        };
        assert_eq!(shared.next(), None);
        failing.join().unwrap();
    });
}
