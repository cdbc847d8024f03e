//! Promises: a pool ends, and nobody waits for ever, whatever it was waiting for when it was closed or its device
//! failed: room in a full pool, or in a memtable full of links.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::{sync::Arc, thread, time::Duration};

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{
    CreateOptions, EngineError, OpenOptions, Pool, Tuning, Volume, VolumeOptions,
};
use support::watchdog::Watchdog;

const MIB: u64 = 1 << 20;

fn pool(tuning: Tuning) -> (Arc<SimDevice>, Pool) {
    let device = SimDevice::new(64 * MIB);
    let options = CreateOptions { index_memory_bytes: 1 << 20, ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &options).unwrap();
    let options = OpenOptions { tuning, ..OpenOptions::default() };
    (device.clone(), Pool::open_on(device, None, &options).unwrap())
}

/// Writes, at random, until the pool is closed or has failed.
fn write_until_the_end(volume: &Volume, seed: u64, mut data: impl FnMut(&mut [u8])) {
    let mut buffer = vec![0; 128 << 10];
    let mut random = SeededRandom::new(seed);
    loop {
        data(&mut buffer);
        let at = random.below((volume.size_bytes() - buffer.len() as u64) / 4096) * 4096;
        match volume.write_at(at, &buffer) {
            Ok(()) | Err(EngineError::NoSpace { .. }) => {}
            Err(EngineError::Closing | EngineError::Failed { .. }) => return,
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn who_waits_for_room_is_sent_away_when_the_pool_closes() {
    let watchdog = Watchdog::new("closing a full pool");
    for round in 0..12 {
        let (_, pool) =
            pool(Tuning { checkpoint_interval: Duration::from_secs(3600), ..Tuning::default() });
        let disk = pool.create_volume("disk", &VolumeOptions::new(42 * MIB)).unwrap();
        thread::scope(|scope| {
            for writer in 0..3 {
                let disk = &disk;
                scope.spawn(move || {
                    let seed = round * 10 + writer;
                    let mut random = SeededRandom::new(!seed);
                    write_until_the_end(disk, seed, |data| random.fill(data));
                });
            }
            while pool.counters().checkpoints < 30 + round {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(round % 4));
            pool.close().unwrap();
        });
        disk.write_at(0, &[7; 4096]).unwrap_err();
        watchdog.feed(format!("after round {round}"));
    }
}

#[test]
fn a_pool_full_of_links_ends_when_its_device_fails_while_it_closes() {
    let watchdog = Watchdog::new("failing while closing");
    for (round, reducers) in (0..16).zip([1, 3].into_iter().cycle()) {
        let (device, pool) = pool(Tuning { reducers, ..Tuning::default() });
        let disk = pool.create_volume("disk", &VolumeOptions::new(512 * MIB)).unwrap();
        thread::scope(|scope| {
            for writer in 0..2 {
                let disk = &disk;
                scope.spawn(move || write_until_the_end(disk, writer, |data| data.fill(7)));
            }
            thread::sleep(Duration::from_millis(100 + round * 3));
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(8 + round));
                    device.cut_power();
                });
                // The device may have been needed no more.
                let _ = pool.close();
            });
        });
        disk.write_at(0, &[7; 4096]).unwrap_err();
        watchdog.feed(format!("after round {round}"));
    }
}
