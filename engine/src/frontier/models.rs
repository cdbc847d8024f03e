//! Models: every interleaving of a sealer without a segment with a failure, and with the next
//! checkpoint.

use siltstone_device::sync::explore::{Arc, block_on, explore, thread};

use super::*;
use crate::{error::EngineError, health::Health};

const SEGMENT: (SegmentId, u64) = (SegmentId(3), 7);

struct Shared {
    frontier: Frontier,
    health: Health,
}

impl Shared {
    fn new() -> Arc<Self> {
        let (frontier, health) = (Frontier::new(SegmentCount::new(64), 1 << 20), Health::default());
        Arc::new(Self { frontier, health })
    }

    /// As the sealer waits.
    fn next(&self) -> Option<(SegmentId, u64)> {
        loop {
            let changed = self.frontier.listen();
            if let Some(segment) = self.frontier.next() {
                return Some(segment);
            }
            self.health.check().ok()?;
            block_on(changed);
        }
    }
}

/// A sealer that waits gets the segment that a checkpoint adds.
#[test]
fn a_sealer_that_waits_gets_what_is_added() {
    explore("frontier: a segment is added", None, || {
        let shared = Shared::new();
        let checkpoint = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.frontier.extend(vec![SEGMENT]))
        };
        assert_eq!(shared.next(), Some(SEGMENT));
        checkpoint.join().unwrap();
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
