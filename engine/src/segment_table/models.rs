//! Models: every interleaving of a batch that links into a segment with checkpoints that free it.

use siltstone_device::sync::{
    atomic::{AtomicBool, Ordering},
    explore::{Arc, explore, thread},
};

use super::*;
use crate::config::CreateOptions;

const UNIT_BYTES: u32 = 4096;

/// A pool with one segment that nothing refers to, and one batch that may link into it.
struct Pool {
    table: SegmentTable,
    id: SegmentId,
    generation: u64,
    /// Batches that have started, as the queue of admitted changes counts them.
    started: Mutex<u64>,
    /// Published and in no patch: whether the batch has a link into the segment.
    published: Mutex<Option<bool>>,
    linked: AtomicBool,
}

impl Pool {
    fn new() -> Arc<Self> {
        let options = CreateOptions { segment_bytes: Some(4 << 20), ..CreateOptions::default() };
        let layout = Layout::new(96 << 20, &options).unwrap();
        let count = SegmentCount::new(layout.segment_count(96 << 20));
        let table = SegmentTable::new(1, layout, count);
        let (id, generation) = table.take(SegmentState::Frontier).unwrap();
        table.note_unit(id, 1, UNIT_BYTES);
        table.settle(id);
        let (started, published) = (Mutex::new(0), Mutex::new(None));
        let linked = AtomicBool::new(false);
        Arc::new(Self { table, id, generation, started, published, linked })
    }

    /// A reducer and the sealer.
    fn batch(&self) {
        *self.started.lock() += 1;
        let linked = self.table.is_linkable(self.id, self.generation, UNIT_BYTES.into());
        self.linked.store(linked, Ordering::Release);
        *self.published.lock() = Some(linked);
    }

    /// `covered` counts the batches in patches so far.
    fn checkpoint(&self, covered: &mut u64) {
        if let Some(linked) = self.published.lock().take() {
            let data_references = linked.then_some((self.id, 1)).into_iter().collect();
            self.table.apply(&Edit { data_references, ..Edit::default() }).unwrap();
            *covered += 1;
        }
        self.table.reclaim(*covered, || *self.started.lock(), &BTreeSet::new());
    }
}

/// Nor does it matter that damage is found in it meanwhile, and then found to be none.
#[test]
fn a_segment_that_is_found_whole_again_is_not_linked_to_while_it_is_being_freed() {
    explore("segment table: damage against condemn", Some(3), || {
        let pool = Pool::new();
        let [batch, scrub] = [true, false].map(|is_batch| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                if is_batch {
                    pool.batch();
                } else {
                    pool.table.note_damage(pool.id, pool.generation);
                    pool.table.forget_damage(pool.id, pool.generation);
                }
            })
        });
        let mut covered = 0;
        pool.checkpoint(&mut covered);
        pool.checkpoint(&mut covered);
        batch.join().unwrap();
        scrub.join().unwrap();
        for _ in 0..3 {
            pool.checkpoint(&mut covered);
        }
        let segment = pool.table.segment(pool.id).unwrap();
        let is_linked = pool.linked.load(Ordering::Acquire);
        assert_eq!(segment.state == SegmentState::Data, is_linked);
        assert_eq!(segment.references, u64::from(is_linked));
    });
}

/// A segment is never freed while a link into it is under way, and freed if there is none.
#[test]
fn a_segment_is_freed_only_if_no_link_is_under_way() {
    explore("segment table: condemn against link", None, || {
        let pool = Pool::new();
        let batch = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || pool.batch())
        };
        let mut covered = 0;
        pool.checkpoint(&mut covered);
        pool.checkpoint(&mut covered);
        batch.join().unwrap();
        for _ in 0..3 {
            pool.checkpoint(&mut covered);
        }
        let segment = pool.table.segment(pool.id).unwrap();
        if pool.linked.load(Ordering::Acquire) {
            assert_eq!((segment.state, segment.references), (SegmentState::Data, 1));
            assert_eq!(pool.table.generation(pool.id), Some((pool.generation, true)), "pardoned");
        } else {
            assert_eq!(segment.state, SegmentState::Freeing);
        }
    });
}
