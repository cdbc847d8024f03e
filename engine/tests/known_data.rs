//! Promises: data that are stored already are linked to whatever else is written beside them, in whatever little
//! memory; and what only links takes few writes of the device.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::{sync::Arc, thread, time::Duration};

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, Tuning, VolumeOptions};
use support::watchdog::Watchdog;

const KNOWN_BYTES: usize = 16 << 20;
const WRITERS: usize = 4;

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    SeededRandom::new(seed).fill(&mut noise);
    noise
}

/// A pool that has stored the data, on a device that counts.
fn pool(known: &[u8], tuning: Tuning) -> (Pool, Arc<SimDevice>) {
    let device = SimDevice::new(1 << 30);
    Pool::create_on(device.clone(), None, &CreateOptions::default()).unwrap();
    let options = OpenOptions { tuning, ..OpenOptions::default() };
    let pool = Pool::open_on(device.clone(), None, &options).unwrap();
    let volume = pool.create_volume("known", &VolumeOptions::new(KNOWN_BYTES as u64)).unwrap();
    for (at, piece) in known.chunks(1 << 20).enumerate() {
        volume.write_at((at << 20) as u64, piece).unwrap();
    }
    pool.checkpoint().unwrap();
    (pool, device)
}

#[test]
fn known_and_new_data_go_on_beside_each_other_in_little_memory() {
    let watchdog = Watchdog::new("known and new data");
    let known = noise(1, KNOWN_BYTES);
    for staging_kib in [64, 1024] {
        let tuning = Tuning {
            staging_bytes: staging_kib << 10,
            batch_bytes: 64 << 10,
            reducers: 3,
            ..Tuning::default()
        };
        let (pool, _) = pool(&known, tuning);
        let (pool, known) = (&pool, &known);
        let write = |writer: usize| {
            let name = format!("v{writer}");
            let volume = pool.create_volume(&name, &VolumeOptions::new(8 << 20)).unwrap();
            let mut random = SeededRandom::new(writer as u64);
            let mut expected = vec![0; 8 << 20];
            for _ in 0..120 {
                let len = 4096 * (1 + random.below(24) as usize);
                let at = 4096 * random.below(((8 << 20) - len as u64) / 4096) as usize;
                match random.below(8) {
                    0 => {
                        volume.write_zeroes(at as u64, len as u64).unwrap();
                        expected[at..at + len].fill(0);
                    }
                    1 => pool.flush().unwrap(),
                    kind => {
                        let from =
                            4096 * random.below(((KNOWN_BYTES - len) / 4096) as u64) as usize;
                        let new = noise(random.next_u64(), len);
                        let data = if kind < 4 { &new[..] } else { &known[from..from + len] };
                        volume.write_at(at as u64, data).unwrap();
                        expected[at..at + len].copy_from_slice(data);
                    }
                }
            }
            (volume, expected)
        };
        thread::scope(|scope| {
            let write = &write;
            let writers: Vec<_> =
                (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
            for writer in writers {
                let (volume, expected) = writer.join().unwrap();
                let mut back = vec![0; expected.len()];
                volume.read_at(0, &mut back).unwrap();
                assert!(back == expected, "staging of {staging_kib} KiB");
            }
        });
        let counters = pool.counters();
        assert!(counters.found_batches > 0 && counters.found_batches < counters.batches);
        watchdog.feed("the next size of staging");
    }
}

#[test]
fn units_that_only_link_share_device_writes() {
    let known = noise(1, KNOWN_BYTES);
    // Nothing else is to write.
    let tuning = Tuning {
        checkpoint_interval: Duration::from_secs(3600),
        warm_index: false,
        reducers: 2,
        ..Tuning::default()
    };
    let (pool, device) = pool(&known, tuning);
    let volume = pool.create_volume("again", &VolumeOptions::new(4 * KNOWN_BYTES as u64)).unwrap();
    let before = (pool.counters().units, device.counters().writes);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (volume, known) = (&volume, &known);
            scope.spawn(move || {
                for (at, piece) in known.chunks(1 << 20).enumerate() {
                    volume.write_at((writer * KNOWN_BYTES + (at << 20)) as u64, piece).unwrap();
                }
            });
        }
    });
    pool.flush().unwrap();
    let after = (pool.counters().units, device.counters().writes);
    let (units, writes) = (after.0 - before.0, after.1 - before.1);
    // Four of them at most share one; the flush writes, too.
    assert!(writes <= units / 4 * 3, "{writes} writes for {units} units");
    drop(volume);
    pool.close().unwrap();
}

/// What comes to the sealer while nothing can be published, for the memtable is full, goes on once it is not.
#[test]
fn known_data_go_on_after_the_memtable_was_full() {
    let watchdog = Watchdog::new("a small pool full of links");
    let device = SimDevice::new(64 << 20);
    Pool::create_on(device.clone(), None, &CreateOptions::default()).unwrap();
    let pool = Pool::open_on(device, None, &OpenOptions::default()).unwrap();
    let volume = pool.create_volume("disk", &VolumeOptions::new(1 << 30)).unwrap();
    let known = noise(1, 4096).repeat(256);
    for at in 0..4 << 10 {
        volume.write_at((at << 20) % (1 << 30), &known).unwrap();
        watchdog.feed(format!("piece {at}"));
    }
}
