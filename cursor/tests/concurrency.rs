//! Promise: readers see every published change while others publish, freeze, write and merge,
//! even when the segments under a slow reader are freed and written again.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use pollster::block_on;
use siltstone_cursor::{Epoch, Manifest, Map, MapConfig, Rewrite, Target, View};
use siltstone_device::{
    BlockAddress, Device, LayerId, Operation, Place, Request, SegmentId, Sequence, sim::SimDevice,
};
use support::{POOL, Segments, all_roots, device, extent, geometry, tiny_limits};

const LAYER: &[View] = &[View { layer: LayerId(1), as_of: Epoch::MAX }];
const BLOCKS: u64 = 3000;
const ROUNDS: u64 = 40;

fn target(round: u64) -> Target {
    Target::Stored(Place::new(SegmentId(round as u32), 0, 0))
}

fn round_of(target: Target) -> u64 {
    match target {
        Target::Hole => 0,
        Target::Stored(place) => u64::from(place.segment().0),
    }
}

type Interruption = Box<dyn FnOnce() + Send>;

/// Does something just before the next read reaches the device.
struct Interrupted {
    device: Arc<SimDevice>,
    before_read: Mutex<Option<Interruption>>,
}

impl Device for Interrupted {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn submit(&self, batch: Vec<Request>) {
        if batch.iter().any(|request| request.operation() == Operation::Read) {
            let interruption = self.before_read.lock().unwrap().take();
            interruption.into_iter().for_each(|run| run());
        }
        self.device.submit(batch);
    }
}

/// The page that a lookup has asked for is merged away and overwritten before it is read.
#[test]
fn a_lookup_whose_page_was_recycled_goes_on_with_the_newest_version() {
    let device = Arc::new(Interrupted { device: device(), before_read: Mutex::default() });
    let mut config = MapConfig::new(POOL, geometry(4), 0);
    config.limits = tiny_limits();
    let map = Arc::new(Map::open(device.clone(), config, Manifest::empty()));
    let mut segments = Segments::default();
    for address in 0..BLOCKS {
        map.publish(&[(extent(1, address, 1, target(address % 2 + 1)), Sequence(1))]);
    }
    map.freeze();
    let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
    segments.apply(&edit);
    let merger = map.clone();
    let recycle = move || {
        // Enough rounds for the first segments to be written again.
        for _ in 0..6 {
            for address in 0..BLOCKS {
                merger.publish(&[(extent(1, address, 1, target(address % 2 + 8)), Sequence(2))]);
            }
            merger.freeze();
            let edit = block_on(merger.write_frozen(&mut segments, &all_roots)).unwrap();
            segments.apply(&edit);
            while let Some(edit) =
                block_on(merger.merge_step(Rewrite::new(&mut segments, &all_roots, 1000))).unwrap()
            {
                segments.apply(&edit);
            }
        }
    };
    *device.before_read.lock().unwrap() = Some(Box::new(recycle));
    let mut runs = Vec::new();
    block_on(map.lookup(LAYER, BlockAddress(100), 1, &mut runs)).unwrap();
    assert_eq!(runs[0].target, target(8), "the page asked for first no longer exists");
}

#[test]
fn readers_never_see_an_older_state_than_was_published_before_they_began() {
    let device = device();
    let mut config = MapConfig::new(POOL, geometry(4), 30 * 4300);
    config.limits = tiny_limits();
    let map = &Map::open(device.clone(), config, Manifest::empty());
    let (published, done) = (&AtomicU64::new(0), &AtomicBool::new(false));
    thread::scope(|scope| {
        for reader in 0..2u64 {
            scope.spawn(move || {
                let mut runs = Vec::new();
                let mut address = reader * 1000;
                while !done.load(Ordering::Acquire) {
                    address = (address * 31 + 7) % BLOCKS;
                    let least = published.load(Ordering::Acquire);
                    let len = (BLOCKS - address).min(1 + address % 300) as u32;
                    block_on(map.lookup(LAYER, BlockAddress(address), len, &mut runs)).unwrap();
                    assert_eq!(runs.iter().map(|run| run.len_blocks).sum::<u32>(), len);
                    for run in &runs {
                        assert!(round_of(run.target) >= least);
                    }
                }
            });
        }
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                let least = published.load(Ordering::Acquire);
                let mut cursor = map.cursor(LAYER, BlockAddress(0), BlockAddress(BLOCKS), 1 << 16);
                let mut blocks = 0;
                while let Some(run) = block_on(cursor.next()).unwrap() {
                    assert!(round_of(run.target) >= least);
                    blocks += u64::from(run.len_blocks);
                }
                assert!(least == 0 || blocks == BLOCKS);
            }
        });
        scope.spawn(move || {
            let mut segments = Segments::default();
            while !done.load(Ordering::Acquire) {
                if map.freeze() {
                    let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
                    segments.apply(&edit);
                }
                // Freed segments are used again at once, as if checkpoints were free.
                while let Some(edit) =
                    block_on(map.merge_step(Rewrite::new(&mut segments, &all_roots, 8))).unwrap()
                {
                    segments.apply(&edit);
                }
            }
        });
        for round in 1..=ROUNDS {
            for address in 0..BLOCKS {
                map.publish(&[(extent(1, address, 1, target(round)), Sequence(round))]);
            }
            published.store(round, Ordering::Release);
        }
        done.store(true, Ordering::Release);
    });
}
