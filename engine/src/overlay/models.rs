//! Models: every interleaving of a few writes of one block, whole and in part, and reads of it.

use std::time::{Duration, Instant};

use siltstone_cursor::View;
use siltstone_device::{
    AlignedBuffer,
    sync::{
        atomic::AtomicU64,
        explore::{Arc as Shared, Timeless, block_on, explore, thread},
    },
};

use super::*;
use crate::{
    admission::{Admission, Admittable, Refusal},
    catalog::VolumeRecord,
    compression::Compression,
};

const BLOCK: BlockAddress = BlockAddress(0);

/// One block of a volume. What the map says of it is a relaxed atomic: no lock of the map helps.
struct Store {
    volume: Arc<VolumeCore>,
    admission: Admission,
    map: AtomicU64,
}

impl Store {
    fn new() -> Shared<Self> {
        let compression = Compression::default();
        let record = VolumeRecord { id: 1, layer: LayerId(1), size_bytes: 4096, compression };
        let volume = VolumeCore::new("v", &record, vec![View::live(LayerId(1))], Sequence(0));
        let runtime = Arc::new(Timeless(Instant::now()));
        let admission = Admission::new(Sequence(0), 1 << 20, Duration::from_secs(1), runtime);
        Shared::new(Self { volume: Arc::new(volume), admission, map: AtomicU64::new(0) })
    }

    fn admit(&self, value: u64, merge: Option<&Merge<'_>>) -> Result<Sequence, Refusal> {
        let mut data = AlignedBuffer::zeroed(BLOCK_BYTES);
        data[..8].copy_from_slice(&value.to_le_bytes());
        let change = Admittable {
            volume: Arc::clone(&self.volume),
            address: BLOCK,
            len_blocks: 1,
            body: ChangeBody::Data(StagedData::received(data)),
            staged_bytes: 0,
            space_bytes: 0,
            end_bytes: 4096,
        };
        self.admission.admit(change, merge, None).map_err(|(_, refusal)| refusal)
    }

    /// The overlay first, the map for what it lacks.
    fn read(&self) -> u64 {
        let mut runs = Vec::new();
        self.volume.overlay.read(BLOCK, 1, &mut runs);
        match &runs[..] {
            [] => self.map.load(Ordering::Relaxed),
            [run] => {
                let mut data = [0; BLOCK_BYTES];
                run.copy_to(&mut data).expect("memory does not change");
                u64::from_le_bytes(data[..8].try_into().unwrap())
            }
            _ => panic!("one block is one run"),
        }
    }

    /// Adds to what the block holds, as a write of a part of it does.
    fn merge(&self, add: u64) -> Sequence {
        let merge = block_on(self.volume.overlay.begin_merge(BLOCK));
        loop {
            merge.restart();
            let value = self.read() + add;
            match self.admit(value, Some(&merge)) {
                Ok(sequence) => return sequence,
                Err(refusal) => assert_eq!(refusal, Refusal::Superseded),
            }
        }
    }

    fn pending(&self) -> Vec<Arc<Change>> {
        self.admission.unpublished_after(Sequence(0)).changes
    }

    fn publish(&self, change: &Arc<Change>, value: u64) {
        self.map.store(value, Ordering::Relaxed);
        self.volume.overlay.remove(change);
    }

    /// Changes name their volume, which names them: lets go of both.
    fn clear(&self) {
        for change in self.pending() {
            self.volume.overlay.remove(&change);
        }
    }
}

/// A merge either reads a change of its block or is superseded by it: none is ever lost.
#[test]
fn a_merge_loses_no_change_of_its_block() {
    explore("overlay: merge against write", None, || {
        let store = Store::new();
        let writer = {
            let store = Shared::clone(&store);
            thread::spawn(move || store.admit(1, None).unwrap())
        };
        let merged = store.merge(10);
        let written = writer.join().unwrap();
        assert_eq!(store.read(), if written < merged { 11 } else { 1 });
        store.clear();
    });
}

/// Merges of one block do not lose each other's bytes, and none waits for ever.
#[test]
fn merges_of_one_block_lose_nothing_of_each_other() {
    explore("overlay: merge against merge", None, || {
        let store = Store::new();
        let other = {
            let store = Shared::clone(&store);
            thread::spawn(move || store.merge(1))
        };
        store.merge(10);
        other.join().unwrap();
        assert_eq!(store.read(), 11);
        store.clear();
    });
}

/// A change that is published while a merge of its block begins is not lost either.
#[test]
fn a_merge_loses_no_change_that_is_being_published() {
    explore("overlay: merge against write and publish", None, || {
        let store = Store::new();
        let writer = {
            let store = Shared::clone(&store);
            thread::spawn(move || {
                let written = store.admit(1, None).unwrap();
                let change = store.pending().remove(written.0 as usize - 1);
                store.publish(&change, 1);
                written
            })
        };
        let merged = store.merge(10);
        let written = writer.join().unwrap();
        assert_eq!(store.read(), if written < merged { 11 } else { 1 });
        store.clear();
    });
}

/// A read sees what was written before it, wherever it stands by now, and never goes back.
#[test]
fn reads_miss_nothing_while_changes_are_published() {
    explore("overlay: read against publish and write", None, || {
        let store = Store::new();
        store.admit(1, None).unwrap();
        let first = store.pending().remove(0);
        let publisher = {
            let store = Shared::clone(&store);
            thread::spawn(move || store.publish(&first, 1))
        };
        let writer = {
            let store = Shared::clone(&store);
            thread::spawn(move || store.admit(2, None).unwrap())
        };
        let before = store.read();
        let after = store.read();
        assert!(1 <= before && before <= after, "read {before}, then {after}");
        publisher.join().unwrap();
        writer.join().unwrap();
        assert_eq!(store.read(), 2);
        store.clear();
    });
}
