//! Models: every interleaving of a few admissions with those who wait for them. No time passes, so
//! whoever lacks a wake-up waits for ever, and the model fails.

use std::time::Instant;

use siltstone_cursor::View;
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, LayerId,
    sync::{
        atomic::{AtomicBool, Ordering},
        explore::{Arc as Shared, Timeless, block_on, explore, thread},
    },
};

use super::*;
use crate::{catalog::VolumeRecord, compression::Compression, staged_data::StagedData};

/// A queue whose batches are full at `batch_blocks`, and a volume.
struct Queued {
    volume: Arc<VolumeCore>,
    admission: Admission,
}

impl Queued {
    fn new(batch_blocks: usize) -> Shared<Self> {
        let compression = Compression::default();
        let record = VolumeRecord { id: 1, layer: LayerId(1), size_bytes: 1 << 20, compression };
        let volume = VolumeCore::new("v", &record, vec![View::live(LayerId(1))], Sequence(0));
        let runtime = Arc::new(Timeless(Instant::now()));
        let (batch_bytes, linger) = (batch_blocks * BLOCK_BYTES, Duration::from_secs(1));
        let admission = Admission::new(Sequence(0), batch_bytes, linger, runtime);
        Shared::new(Self { volume: Arc::new(volume), admission })
    }

    fn admit(&self, address: u64) -> Sequence {
        let change = Admittable {
            volume: Arc::clone(&self.volume),
            address: BlockAddress(address),
            len_blocks: 1,
            body: ChangeBody::Data(StagedData::received(AlignedBuffer::zeroed(BLOCK_BYTES))),
            staged_bytes: 0,
            space_bytes: 0,
            end_bytes: 1 << 20,
        };
        let admitted = self.admission.admit(change, None, None);
        admitted.map_err(|(_, refusal)| refusal).unwrap()
    }

    /// Takes a batch; its number and how many changes it has.
    fn take(&self) -> Option<(u64, usize)> {
        let batch = block_on(self.admission.take_batch())?;
        for change in &batch.changes {
            self.volume.overlay.remove(change);
        }
        Some((batch.number, batch.changes.len()))
    }
}

/// Two full batches wake two reducers, however these are waiting, without any time passing.
#[test]
fn every_full_batch_finds_a_waiting_reducer() {
    explore("admission: full batches wake reducers", Some(2), || {
        let queued = Queued::new(1);
        let reducers: Vec<_> = (0..2)
            .map(|_| {
                let queued = Shared::clone(&queued);
                thread::spawn(move || queued.take().unwrap())
            })
            .collect();
        queued.admit(0);
        queued.admit(1);
        let mut taken: Vec<_> = reducers.into_iter().map(|r| r.join().unwrap()).collect();
        taken.sort_unstable();
        assert_eq!(taken, [(0, 1), (1, 1)]);
    });
}

/// A batch that becomes full only by a later change is taken too, when the first change had woken
/// a reducer that found too little.
#[test]
fn a_batch_that_fills_up_later_is_taken() {
    explore("admission: a batch fills up", Some(3), || {
        let queued = Queued::new(2);
        let reducer = {
            let queued = Shared::clone(&queued);
            thread::spawn(move || queued.take().unwrap())
        };
        let writer = {
            let queued = Shared::clone(&queued);
            thread::spawn(move || queued.admit(0))
        };
        queued.admit(1);
        writer.join().unwrap();
        assert_eq!(reducer.join().unwrap(), (0, 2));
    });
}

/// Who drains gets everything that was admitted before published, and is told of it.
#[test]
fn draining_takes_an_incomplete_batch_and_publishing_ends_the_wait() {
    explore("admission: drain and publish", Some(3), || {
        let queued = Queued::new(8);
        let reducer = {
            let queued = Shared::clone(&queued);
            thread::spawn(move || {
                let batch = block_on(queued.admission.take_batch()).unwrap();
                queued.admission.publish(&batch.changes);
                for change in &batch.changes {
                    queued.volume.overlay.remove(change);
                }
            })
        };
        let sequence = queued.admit(0);
        queued.admission.drain_to(sequence);
        let waited = queued.admission.wait_published(sequence, || Ok::<_, ()>(()));
        block_on(waited).unwrap();
        assert_eq!(queued.admission.pending(), 0);
        reducer.join().unwrap();
    });
}

/// Closing ends all reducers, and not before everything admitted has been taken.
#[test]
fn closing_ends_every_reducer_after_the_last_change() {
    explore("admission: closing", Some(2), || {
        let queued = Queued::new(8);
        let reducers: Vec<_> = (0..2)
            .map(|_| {
                let queued = Shared::clone(&queued);
                thread::spawn(move || {
                    let mut taken = 0;
                    while let Some((_, changes)) = queued.take() {
                        taken += changes;
                    }
                    taken
                })
            })
            .collect();
        queued.admit(0);
        queued.admission.close();
        let taken: usize = reducers.into_iter().map(|reducer| reducer.join().unwrap()).sum();
        assert_eq!(taken, 1);
    });
}

/// Whoever waits for what will not be published learns that the pool has failed.
#[test]
fn a_failure_ends_the_wait_for_publishing() {
    explore("admission: a failure ends waiting", None, || {
        let queued = Queued::new(8);
        let failed = Shared::new(AtomicBool::new(false));
        let failing = {
            let (queued, failed) = (Shared::clone(&queued), Shared::clone(&failed));
            thread::spawn(move || {
                failed.store(true, Ordering::Release);
                queued.admission.wake();
            })
        };
        let give_up = || if failed.load(Ordering::Acquire) { Err(()) } else { Ok(()) };
        block_on(queued.admission.wait_published(Sequence(1), give_up)).unwrap_err();
        failing.join().unwrap();
    });
}
