//! Models: every interleaving of the checkpointer with those who ask for checkpoints.

use siltstone_device::sync::{
    atomic::{AtomicBool, AtomicU64, Ordering},
    explore::{Arc, Timeless, block_on, explore, thread},
};

use super::*;
use crate::frontier::Frontier;

const INTERVAL: Duration = Duration::from_secs(1);

struct Shared {
    checkpointing: Checkpointing,
    /// Changes made, and those that a finished checkpoint has seen.
    made: AtomicU64,
    covered: AtomicU64,
    compacted: AtomicBool,
    failed: AtomicBool,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            checkpointing: Checkpointing::new(std::sync::Arc::new(Timeless(Instant::now()))),
            made: AtomicU64::new(0),
            covered: AtomicU64::new(0),
            compacted: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        })
    }

    /// Checkpoints until stopped.
    fn serve(&self) {
        while let Some(compact) = block_on(self.checkpointing.next(INTERVAL)) {
            let made = self.made.load(Ordering::Acquire);
            self.covered.store(made, Ordering::Release);
            self.compacted.fetch_or(compact, Ordering::AcqRel);
            self.checkpointing.finish();
        }
    }

    /// Makes a change and waits for a checkpoint.
    fn change(&self, compact: bool) {
        let made = self.made.fetch_add(1, Ordering::AcqRel) + 1;
        block_on(self.checkpointing.run(compact, || Ok::<_, ()>(()))).unwrap();
        assert!(self.covered.load(Ordering::Acquire) >= made, "it began before the change");
        assert!(!compact || self.compacted.load(Ordering::Acquire), "it merged nothing");
    }
}

/// Who waits for a checkpoint gets one that began after it asked, and merges all patches if asked
/// to; the task ends when told to.
#[test]
fn a_checkpoint_that_is_waited_for_begins_after_the_call() {
    explore("checkpointer: two requests", Some(1), || {
        let shared = Shared::new();
        let checkpointer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.serve())
        };
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.change(true))
        };
        shared.change(false);
        other.join().unwrap();
        shared.checkpointing.stop();
        checkpointer.join().unwrap();
    });
}

/// As above for one caller, with more preemptions.
#[test]
fn a_checkpoint_that_is_waited_for_alone_begins_after_the_call() {
    explore("checkpointer: one request", Some(3), || {
        let shared = Shared::new();
        let checkpointer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.serve())
        };
        shared.checkpointing.request();
        shared.change(true);
        shared.checkpointing.stop();
        checkpointer.join().unwrap();
    });
}

/// What is requested before the end is done before the task ends.
#[test]
fn what_is_requested_is_done_before_the_end() {
    explore("checkpointer: request and stop", Some(3), || {
        let shared = Shared::new();
        let checkpointer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.serve())
        };
        shared.checkpointing.note_change();
        shared.made.store(1, Ordering::Release);
        shared.checkpointing.request();
        shared.checkpointing.stop();
        checkpointer.join().unwrap();
        assert_eq!(shared.covered.load(Ordering::Acquire), 1);
    });
}

/// Whoever waits for a checkpoint that fails is told, and never takes it for finished.
#[test]
fn a_failure_ends_the_wait_for_a_checkpoint() {
    explore("checkpointer: a checkpoint fails", Some(3), || {
        let shared = Shared::new();
        let checkpointer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                block_on(shared.checkpointing.next(INTERVAL)).unwrap();
                shared.failed.store(true, Ordering::Release);
                shared.checkpointing.wake();
            })
        };
        let give_up = || if shared.failed.load(Ordering::Acquire) { Err(()) } else { Ok(()) };
        block_on(shared.checkpointing.run(false, give_up)).unwrap_err();
        checkpointer.join().unwrap();
    });
}

/// A sealer without a segment gets one from the checkpoint that it asks for.
#[test]
fn the_sealer_gets_a_segment_from_the_checkpoint_that_it_asks_for() {
    explore("checkpointer: the sealer asks for a segment", Some(2), || {
        let frontier =
            Arc::new(Frontier::new(crate::segment_count::SegmentCount::new(64), 1 << 20));
        let shared = Shared::new();
        let checkpointer = {
            let (shared, frontier) = (Arc::clone(&shared), Arc::clone(&frontier));
            thread::spawn(move || {
                while block_on(shared.checkpointing.next(INTERVAL)).is_some() {
                    frontier.extend(vec![(SegmentId(3), 7)]);
                    shared.checkpointing.finish();
                }
            })
        };
        let mut asked = None;
        let segment = loop {
            let changed = frontier.listen();
            let is_over = asked.is_some_and(|ticket| shared.checkpointing.is_finished(ticket));
            if let Some(segment) = frontier.next() {
                break segment;
            }
            assert!(!is_over, "the checkpoint brought nothing");
            asked.get_or_insert_with(|| shared.checkpointing.request());
            block_on(changed);
        };
        assert_eq!(segment, (SegmentId(3), 7));
        shared.checkpointing.stop();
        checkpointer.join().unwrap();
    });
}
