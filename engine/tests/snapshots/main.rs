//! Promises: a snapshot shows what its volume held at one moment, for as long as it exists, whatever
//! becomes of the volume; snapshots taken together show the same moment; clones and volumes that
//! were rolled back go on from there; what nobody can read any more comes back as free space.

#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod adoption;
mod catalog;
mod durable;
mod history;
mod identity;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{
    CreateOptions, Effort, EngineError, OpenOptions, Pool, SnapshotName, Tuning, Volume,
    VolumeOptions,
};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn options() -> OpenOptions {
    let tuning = Tuning {
        staging_bytes: 4 << 20,
        memtable_entries: 300,
        // What is written takes the same room each time.
        effort: Some(Effort::Little),
        ..Tuning::default()
    };
    OpenOptions { tuning, ..OpenOptions::default() }
}

fn open_as(device: &Arc<SimDevice>, read_only: bool) -> Pool {
    Pool::open_on(device.clone(), None, &OpenOptions { read_only, ..options() }).unwrap()
}

fn open(device: &Arc<SimDevice>) -> Pool {
    open_as(device, false)
}

fn create(size_bytes: u64) -> (Arc<SimDevice>, Pool) {
    let device = SimDevice::new(size_bytes);
    let options = CreateOptions { index_memory_bytes: 4 << 20, ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &options).unwrap();
    let pool = open(&device);
    (device, pool)
}

fn name(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// A block of some version; 0 is a hole.
fn content(version: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    if version > 0 {
        SeededRandom::new(version).fill(&mut block);
    }
    block
}

fn write(disk: &Volume, block: u64, version: u64) {
    disk.write_at(block * BLOCK, &content(version)).unwrap();
}

fn assert_holds(disk: &Volume, versions: &[u64]) {
    assert_eq!(disk.size_bytes(), versions.len() as u64 * BLOCK, "{disk:?}");
    let mut all = vec![0; versions.len() * BLOCK as usize];
    disk.read_at(0, &mut all).unwrap();
    for ((at, &version), found) in (0..).zip(versions).zip(all.chunks(BLOCK as usize)) {
        assert!(found == content(version), "block {at} of {disk:?} is not version {version}");
    }
}

/// A writer counts up in one volume and then in the other; snapshots of both, taken while it does,
/// show the second at the first's count or one behind.
#[test]
fn snapshots_taken_together_show_one_moment() {
    let (_device, pool) = create(64 * MIB);
    let pair =
        ["a", "b"].map(|name| pool.create_volume(name, &VolumeOptions::new(8 * BLOCK)).unwrap());
    let stop = AtomicBool::new(false);
    let count = |disk: &Volume| {
        let mut count = [0; 8];
        disk.read_at(0, &mut count).unwrap();
        u64::from_le_bytes(count)
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            for count in 1u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                for disk in &pair {
                    disk.write_at(0, &count.to_le_bytes()).unwrap();
                }
            }
        });
        let mut last = 0;
        for number in 0..40 {
            let names = ["a", "b"].map(|v| SnapshotName::new(v, &number.to_string()).unwrap());
            let before = count(&pair[1]);
            pool.create_snapshots(&names).unwrap();
            let [a, b] = names.map(|name| count(&pool.volume(&name.to_string()).unwrap()));
            assert!(a == b || a == b + 1, "{a} and {b}");
            assert!(b >= before && a >= last, "{b} after {before}, {a} after {last}");
            last = a;
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn snapshots_are_read_only_and_end_when_they_are_deleted() {
    let (_device, pool) = create(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(8 * BLOCK)).unwrap();
    write(&disk, 0, 1);
    pool.create_snapshots(&[name("disk@s")]).unwrap();
    let snapshot = pool.volume("disk@s").unwrap();
    assert!(snapshot.is_read_only() && !disk.is_read_only());
    let refused = [
        snapshot.write_at(0, &[1; 512]),
        snapshot.discard(0, BLOCK),
        snapshot.write_zeroes(0, 512),
        pool.resize_volume("disk@s", BLOCK),
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert!(matches!(error, EngineError::SnapshotReadOnly { .. }), "{error}");
    }
    let error = pool.delete_volume("disk@s").unwrap_err();
    assert!(matches!(error, EngineError::NoSuchVolume { .. }), "{error}");
    let error = pool.delete_volume("disk").unwrap_err();
    assert!(matches!(error, EngineError::HasSnapshots { snapshots: 1, .. }), "{error}");
    pool.delete_snapshots(&[name("disk@s")]).unwrap();
    let error = snapshot.read_at(0, &mut [0; 512]).unwrap_err();
    assert!(matches!(error, EngineError::VolumeDeleted { .. }), "{error}");
    assert!(matches!(pool.volume("disk@s"), Err(EngineError::NoSuchSnapshot { .. })));
    assert_holds(&disk, &[1, 0, 0, 0, 0, 0, 0, 0]);
}

/// What only a snapshot held is free once it is deleted, and what a rolled-back volume had written.
#[test]
fn what_nobody_reads_any_more_comes_back() {
    let (_device, pool) = create(128 * MIB);
    let blocks = 4096;
    let disk = pool.create_volume("disk", &VolumeOptions::new(blocks * BLOCK)).unwrap();
    let fill = |disk: &Volume, from: u64| {
        for at in 0..blocks {
            write(disk, at, from + at);
        }
        disk.flush().unwrap();
    };
    let free = || {
        pool.collect_garbage().unwrap();
        pool.free_bytes()
    };
    let written = blocks * BLOCK;
    let empty = free();
    fill(&disk, 1 << 20);
    let once = free();
    assert!(once + written <= empty, "{once} of {empty} bytes are free");
    pool.create_snapshots(&[name("disk@s")]).unwrap();
    fill(&disk, 2 << 20);
    let twice = free();
    assert!(twice + written <= once, "{twice} of {once} bytes are free");
    pool.delete_snapshots(&[name("disk@s")]).unwrap();
    let deleted = free();
    assert!(deleted + written / 16 >= once, "{deleted} of {once} bytes are free");
    pool.create_snapshots(&[name("disk@t")]).unwrap();
    fill(&disk, 3 << 20);
    pool.roll_back(&name("disk@t")).unwrap();
    let back = free();
    assert!(back + written / 16 >= once, "{back} of {once} bytes are free");
    let disk = pool.volume("disk").unwrap();
    assert_holds(&disk, &(0..blocks).map(|at| (2 << 20) + at).collect::<Vec<_>>());
    pool.delete_volume_and_snapshots("disk").unwrap();
    let nothing = free();
    // But for a frontier segment that was begun.
    assert!(nothing + written / 4 >= empty, "{nothing} of {empty} bytes are free");
}
