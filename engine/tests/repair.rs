//! Promises: what is damaged is linked to no more, so that what is written again is stored again;
//! contents that stand anywhere else come back to everything that had them; and a repair loses
//! nothing that could be read, however often it is tried.

#![allow(clippy::unwrap_used)]

use std::{ops::ControlFlow, sync::Arc};

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{
    CheckReport, CreateOptions, OpenOptions, Pool, ScrubOptions, ScrubReport, Volume, VolumeOptions,
};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const BLOCKS: usize = 2000;
/// One of the blocks that are lost.
const LOST: usize = 700;

/// Incompressible, so that a block can be found on the device.
fn contents() -> Vec<u8> {
    let mut bytes = vec![0; BLOCKS * BLOCK];
    SeededRandom::new(7).fill(&mut bytes);
    bytes
}

fn open(device: &Arc<SimDevice>) -> Pool {
    Pool::open_on(device.clone(), None, &OpenOptions::default()).unwrap()
}

/// A pool with a disk, a clone of it, and a copy that deduplication made one of.
fn sample(contents: &[u8]) -> Arc<SimDevice> {
    let device = SimDevice::new(96 * MIB);
    let options = CreateOptions { index_memory_bytes: 4 << 20, ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &options).unwrap();
    let pool = open(&device);
    for name in ["disk", "copy"] {
        let volume = pool.create_volume(name, &VolumeOptions::new(contents.len() as u64)).unwrap();
        volume.write_at(0, contents).unwrap();
        volume.flush().unwrap();
    }
    pool.create_snapshots(&["disk@then".parse().unwrap()]).unwrap();
    pool.clone_snapshot(&"disk@then".parse().unwrap(), "clone").unwrap();
    pool.close().unwrap();
    device
}

/// Flips a bit of the only stored copy of a block.
fn damage(device: &SimDevice, contents: &[u8], block: usize) {
    let bytes = device.peek(0, 96 << 20);
    let wanted = &contents[block * BLOCK..][..64];
    // The log, which may have it as well, lies before the segments.
    let at = bytes.windows(64).rposition(|window| window == wanted).unwrap();
    device.flip_bit(at as u64 + 9, 3);
}

fn scrub(pool: &Pool) -> ScrubReport {
    pool.scrub(&ScrubOptions::default(), &mut |_| ControlFlow::Continue(()))
}

fn check(device: &Arc<SimDevice>) -> CheckReport {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    Pool::open_on(device.clone(), None, &options).unwrap().check(&mut |_| {}).unwrap()
}

fn read(volume: &Volume, block: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; BLOCK];
    volume.read_at((block * BLOCK) as u64, &mut bytes).ok().map(|()| bytes)
}

/// How many blocks cannot be read; all others are as they should be.
#[track_caller]
fn lost_of(pool: &Pool, name: &str, contents: &[u8]) -> usize {
    let volume = pool.volume(name).unwrap();
    let blocks = (0..BLOCKS).map(|block| read(&volume, block));
    let expected = contents.chunks_exact(BLOCK);
    let lost = blocks.zip(expected).filter(|(found, expected)| match found {
        Some(found) => {
            assert!(found == expected, "a wrong block of {name}");
            false
        }
        None => true,
    });
    lost.count()
}

const ALL: [&str; 4] = ["disk", "copy", "clone", "disk@then"];

#[test]
fn what_is_written_again_heals_everything_that_had_it() {
    let contents = contents();
    let device = sample(&contents);
    damage(&device, &contents, LOST);
    let pool = open(&device);
    let frame = lost_of(&pool, "disk", &contents);
    assert!((1..=8).contains(&frame), "{frame}");
    // Found by reading, and remembered from now on.
    pool.close().unwrap();
    let pool = open(&device);
    assert_eq!(pool.stat().damaged_segments, 1);

    // Only where nothing else is does a repair leave it.
    pool.repair().unwrap();
    assert_eq!(ALL.map(|name| lost_of(&pool, name, &contents)), [frame; 4]);
    assert_eq!(pool.stat().damaged_segments, 1, "what is lost stays where it is");
    let report = scrub(&pool);
    assert_eq!(report.findings.lost_bytes, (4 * frame * BLOCK) as u64, "{report:#?}");

    // The same contents, from a backup: stored again, though their fingerprints are known.
    let restored =
        pool.create_volume("restored", &VolumeOptions::new(contents.len() as u64)).unwrap();
    restored.write_at(0, &contents).unwrap();
    restored.flush().unwrap();
    assert_eq!(lost_of(&pool, "restored", &contents), 0);
    assert_eq!(ALL.map(|name| lost_of(&pool, name, &contents)), [frame; 4]);

    pool.repair().unwrap();
    assert_eq!(ALL.map(|name| lost_of(&pool, name, &contents)), [0; 4]);
    let stat = pool.stat();
    assert_eq!((stat.damaged_segments, stat.counters.mended_blocks), (0, frame as u64));
    assert_eq!(stat.content.unwrap().unique_bytes, contents.len() as u64, "stored once again");
    pool.close().unwrap();
    let report = check(&device);
    assert!(report.is_sound(), "{report:#?}");
    let pool = open(&device);
    assert_eq!(ALL.map(|name| lost_of(&pool, name, &contents)), [0; 4]);
}

/// Garbage that is damaged and not freed yet is no place to link to either.
#[test]
fn a_scrub_finds_what_nobody_reads() {
    let contents = contents();
    let device = sample(&contents);
    damage(&device, &contents, LOST);
    let pool = open(&device);
    assert_eq!(pool.stat().damaged_segments, 0);
    let report = scrub(&pool);
    assert!(report.findings.lost_bytes > 0, "{report:#?}");
    assert_eq!(pool.stat().damaged_segments, 1);
    let disk = pool.volume("disk").unwrap();
    disk.write_at(0, &contents).unwrap();
    disk.flush().unwrap();
    assert_eq!(lost_of(&pool, "disk", &contents), 0, "not linked to what was found damaged");
    pool.repair().unwrap();
    assert_eq!(ALL.map(|name| lost_of(&pool, name, &contents)), [0; 4]);
    assert!(scrub(&pool).is_sound());
}

/// What is lost of the disk is written again in place: nothing else leads to the copies.
#[test]
fn only_what_is_lost_need_be_written_again() {
    let contents = contents();
    let device = sample(&contents);
    for lost in [LOST, BLOCKS - 1] {
        damage(&device, &contents, lost);
    }
    let pool = open(&device);
    scrub(&pool);
    assert_eq!(pool.stat().damaged_segments, 2, "one of them is being filled");
    let disk = pool.volume("disk").unwrap();
    for block in 0..BLOCKS {
        if read(&disk, block).is_none() {
            disk.write_at((block * BLOCK) as u64, &contents[block * BLOCK..][..BLOCK]).unwrap();
        }
    }
    assert_eq!(ALL.map(|name| lost_of(&pool, name, &contents) > 0), [false, true, true, true]);
    pool.repair().unwrap();
    assert_eq!(ALL.map(|name| lost_of(&pool, name, &contents)), [0; 4]);
    assert_eq!(pool.stat().damaged_segments, 0);
    pool.close().unwrap();
    let report = check(&device);
    assert!(report.is_sound(), "{report:#?}");
}

/// Moving what is whole out of segments that something lost keeps in use would only take room.
#[test]
fn what_cannot_be_mended_takes_no_room() {
    let contents = contents();
    let device = sample(&contents);
    for lost in (0..BLOCKS).step_by(100) {
        damage(&device, &contents, lost);
    }
    let pool = open(&device);
    let report = scrub(&pool);
    let lost_bytes = report.findings.lost_bytes;
    assert!(lost_bytes > 0 && pool.stat().damaged_segments > 4, "{report:#?}");
    let free_bytes = pool.free_bytes();
    let moved = |pool: &Pool| pool.counters().collector_moved_blocks;
    let moved_before = moved(&pool);
    pool.repair().unwrap();
    pool.collect_garbage().unwrap();
    assert_eq!(moved(&pool), moved_before);
    // The segment that was being filled is closed by a repair, and another one begun.
    assert!(pool.free_bytes() + (2 << 20) >= free_bytes, "{free_bytes}");
    assert_eq!(scrub(&pool).findings.lost_bytes, lost_bytes);
}

/// A device that would not read for a while must not leave its data for ever without new links.
#[test]
fn a_segment_that_can_be_read_again_is_trusted_again() {
    let contents = contents();
    let device = sample(&contents);
    damage(&device, &contents, LOST);
    let pool = open(&device);
    scrub(&pool);
    assert_eq!(pool.stat().damaged_segments, 1);
    undo_damage(&device, &contents);
    assert!(scrub(&pool).is_sound());
    assert_eq!(pool.stat().damaged_segments, 0);
    let stored = |pool: &Pool| pool.counters().stored_blocks;
    // Before that, duplicates may be stored again.
    pool.wait_index_warm().unwrap();
    let before = stored(&pool);
    pool.volume("disk").unwrap().write_at(0, &contents).unwrap();
    pool.checkpoint().unwrap();
    assert_eq!(stored(&pool), before, "all of it is linked");
}

/// Flips the bit back.
fn undo_damage(device: &SimDevice, contents: &[u8]) {
    let bytes = device.peek(0, 96 << 20);
    let wanted = &contents[LOST * BLOCK + 16..][..64];
    let at = bytes.windows(64).rposition(|window| window == wanted).unwrap();
    device.flip_bit(at as u64 - 16 + 9, 3);
}
