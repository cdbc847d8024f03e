//! Promises: a pool that is overwritten for ever does not fill up while what lives fits; moving
//! blocks changes nothing that clients read; what is deleted comes back as free space.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{
    CreateOptions, EngineError, OpenOptions, Pool, Tuning, Volume, VolumeOptions,
};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

fn open(device: &std::sync::Arc<SimDevice>) -> Pool {
    let tuning = Tuning { staging_bytes: 4 << 20, ..Tuning::default() };
    Pool::open_on(device.clone(), None, &OpenOptions { tuning, ..OpenOptions::default() }).unwrap()
}

fn create(size_bytes: u64) -> (std::sync::Arc<SimDevice>, Pool) {
    let device = SimDevice::new(size_bytes);
    let options = CreateOptions { index_memory_bytes: 4 << 20, ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &options).unwrap();
    let pool = open(&device);
    (device, pool)
}

/// A block that says where and when it was written, and does not compress.
fn content(address: u64, version: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    SeededRandom::new(address << 24 | version).fill(&mut block);
    block
}

fn assert_holds(disk: &Volume, versions: &[u64]) {
    let mut block = [0; BLOCK];
    for (address, &version) in (0..).zip(versions) {
        disk.read_at(address * BLOCK as u64, &mut block).unwrap();
        let expected = if version == 0 { [0; BLOCK] } else { content(address, version) };
        assert!(block == expected, "block {address} is not as of write {version}");
    }
}

/// Writes several times the pool's size over a volume that fits.
#[test]
fn overwriting_for_ever_finds_space_while_what_lives_fits() {
    let (device, pool) = create(64 * MIB);
    let blocks = 64 * MIB * 45 / 100 / BLOCK as u64;
    let disk = pool.create_volume("disk", &VolumeOptions::new(blocks * BLOCK as u64)).unwrap();
    let mut versions = vec![0; blocks as usize];
    let mut random = SeededRandom::new(1);
    let mut written = 0;
    while written < 4 * 64 * MIB {
        let address = random.below(blocks);
        versions[address as usize] += 1;
        let block = content(address, versions[address as usize]);
        disk.write_at(address * BLOCK as u64, &block)
            .unwrap_or_else(|error| panic!("after {written} bytes: {error}; {:#?}", pool.stat()));
        written += BLOCK as u64;
    }
    disk.flush().unwrap();
    assert_holds(&disk, &versions);
    let stat = pool.stat();
    assert!(stat.counters.collector_rounds > 0, "{stat:#?}");
    pool.close().unwrap();
    let pool = open(&device);
    assert_holds(&pool.volume("disk").unwrap(), &versions);
    let report = pool.check(&mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}

/// What many addresses refer to is moved once, and all of them follow.
#[test]
fn shared_blocks_stay_shared() {
    let (_device, pool) = create(64 * MIB);
    let disks: Vec<Volume> = (0..3)
        .map(|n| pool.create_volume(&format!("disk{n}"), &VolumeOptions::new(64 * MIB)).unwrap())
        .collect();
    let mut versions = vec![0; 2000];
    // Every other block is replaced at once, so that every segment is half dead.
    for address in 0..2000u64 {
        for disk in &disks {
            disk.write_at(address * BLOCK as u64, &content(address, 1)).unwrap();
        }
        versions[address as usize] = 1;
    }
    for address in (0..2000u64).step_by(2) {
        for disk in &disks {
            disk.write_at(address * BLOCK as u64, &[0; BLOCK]).unwrap();
        }
        versions[address as usize] = 0;
    }
    pool.checkpoint().unwrap();
    let before = pool.stat();
    pool.collect_garbage().unwrap();
    let after = pool.stat();
    assert!(after.counters.collector_moved_blocks >= 900, "{after:#?}");
    assert!(after.counters.collector_moved_blocks <= 1100, "moved more than lives: {after:#?}");
    assert!(after.space.free_bytes > before.space.free_bytes + 3 * MIB, "{before:#?} {after:#?}");
    for disk in &disks {
        assert_holds(disk, &versions);
    }
}

/// Everything that was written is deleted: all the space is there again.
#[test]
fn deleting_everything_gives_everything_back() {
    let (device, pool) = create(64 * MIB);
    let empty = pool.free_bytes();
    for name in ["a", "b"] {
        let disk = pool.create_volume(name, &VolumeOptions::new(16 * MIB)).unwrap();
        for round in 1..4 {
            for address in 0..2000u64 {
                disk.write_at(address * BLOCK as u64, &content(address, round)).unwrap();
            }
        }
        pool.checkpoint().unwrap();
    }
    pool.delete_volume("a").unwrap();
    pool.delete_volume("b").unwrap();
    pool.collect_garbage().unwrap();
    let left = pool.free_bytes();
    // A segment is the least that can be in use: the sealer's, the collector's, the map's.
    assert!(left + 6 * MIB >= empty, "{left} bytes free of {empty}");
    pool.close().unwrap();
    let report = open(&device).check(&mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}

/// A pool whose live data does not fit says so, whatever the collector does, and recovers.
#[test]
fn a_pool_full_of_live_data_says_so_and_recovers() {
    let (_device, pool) = create(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(64 * MIB)).unwrap();
    let mut filled = 0;
    for address in 0..16_384u64 {
        match disk.write_at(address * BLOCK as u64, &content(address, 1)) {
            Ok(()) => filled = address + 1,
            Err(EngineError::NoSpace { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert!((8000..16_384).contains(&filled), "{filled} blocks fitted");
    disk.flush().unwrap();
    // Every fourth block: no segment dies by itself.
    for address in (0..filled).step_by(4) {
        disk.discard(address * BLOCK as u64, BLOCK as u64).unwrap();
    }
    disk.flush().unwrap();
    for address in (0..filled / 2).step_by(4) {
        disk.write_at(address * BLOCK as u64, &content(address, 2)).unwrap();
    }
    disk.flush().unwrap();
    let mut block = [0; BLOCK];
    for address in 0..filled {
        disk.read_at(address * BLOCK as u64, &mut block).unwrap();
        let expected = match address {
            _ if address % 4 != 0 => content(address, 1),
            _ if address < filled / 2 => content(address, 2),
            _ => [0; BLOCK],
        };
        assert!(block == expected, "block {address}");
    }
}

/// A damaged page of the map costs a collection what lies behind it: the pool does not fail, all
/// else is collected, and the result says that something was left.
#[test]
fn a_damaged_page_of_the_map_costs_a_collection_no_more_than_what_lies_behind_it() {
    let (device, pool) = create(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(64 * MIB)).unwrap();
    let mut versions = vec![0; 4000];
    for address in 0..4000u64 {
        disk.write_at(address * BLOCK as u64, &content(address, 1)).unwrap();
        versions[address as usize] = 1;
    }
    pool.checkpoint().unwrap();
    for address in (0..4000u64).step_by(2) {
        disk.write_at(address * BLOCK as u64, &[0; BLOCK]).unwrap();
        versions[address as usize] = 0;
    }
    drop(disk);
    pool.close().unwrap();
    // Leaves and fences of patches, by magic and kind.
    let is_page = |at: &u64| {
        let head = device.peek(*at, 6);
        head == *b"SLTS\x05\0" || head == *b"SLTS\x06\0"
    };
    let pages: Vec<u64> = (0..64 * MIB).step_by(BLOCK).filter(is_page).collect();
    assert!(pages.len() > 6);
    let mut damaged = 0;
    for at in pages {
        let copy = device.snapshot();
        copy.flip_bit(at + 60, 1);
        let pool = open(&copy);
        pool.collect_garbage().unwrap();
        pool.checkpoint().unwrap();
        let stat = pool.stat();
        damaged += pool.counters().damaged_patches;
        let disk = pool.volume("disk").unwrap();
        disk.write_at(0, &content(0, 2)).unwrap();
        disk.flush().unwrap();
        let mut block = [0; BLOCK];
        for (address, &version) in (0..).zip(&versions).skip(1) {
            // What lies behind the page is lost, and nothing else.
            if disk.read_at(address * BLOCK as u64, &mut block).is_ok() {
                let expected = if version == 0 { [0; BLOCK] } else { content(address, version) };
                assert!(block == expected, "block {address}");
            } else {
                assert!(
                    pool.counters().damaged_patches > 0
                        || stat.content.is_some_and(|content| content.unknown_bytes > 0)
                );
            }
        }
        drop(disk);
        pool.close().unwrap();
    }
    assert!(damaged > 0, "no page that a collection needs was damaged");
}

/// What is asked for is what there is at that moment: a pool in use is not collected for ever.
#[test]
fn a_collection_that_is_asked_for_ends_while_others_overwrite() {
    let (_device, pool) = create(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(16 * MIB)).unwrap();
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = SeededRandom::new(7);
            while !stop.load(Ordering::Relaxed) {
                let (address, version) = (random.below(4096), writes.load(Ordering::Relaxed));
                disk.write_at(address * BLOCK as u64, &content(address, version)).unwrap();
                writes.store(version + 1, Ordering::Relaxed);
            }
        });
        for _ in 0..3 {
            let before = writes.load(Ordering::Relaxed);
            while writes.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            pool.collect_garbage().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}
