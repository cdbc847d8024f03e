//! Promises: a pool grows while it is in use, and a full one takes writes again by that; a power cut
//! at any moment of it leaves the pool with its old size or its new one, and everything in it; what
//! cannot be is refused in a sentence.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::sync::Arc;

use siltstone_device::{
    Device, Operation, SeededRandom,
    sim::{Cause, CrashPolicy, Fault, SimDevice, Times},
};
use siltstone_engine::{
    CreateOptions, EngineError, Growth, OpenOptions, Pool, Volume, VolumeOptions,
};
use support::pools::{KIB, MIB, POOL_BYTES, create, small_options};

const PIECE: usize = 64 << 10;

fn open(device: &Arc<SimDevice>) -> Pool {
    Pool::open_on(device.clone(), None, &small_options(false)).unwrap()
}

fn check(device: &Arc<SimDevice>) {
    let pool = Pool::open_on(device.clone(), None, &small_options(true)).unwrap();
    let report = pool.check(&mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

fn noise(piece: u64) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    SeededRandom::new(piece).fill(&mut bytes);
    bytes
}

/// Writes noise from a piece on until the pool is full; returns the first piece that was refused.
fn fill(disk: &Volume, mut piece: u64) -> u64 {
    loop {
        match disk.write_at(piece * PIECE as u64, &noise(piece)) {
            Ok(()) => piece += 1,
            Err(EngineError::NoSpace { .. }) => return piece,
            Err(error) => panic!("piece {piece}: {error}"),
        }
    }
}

fn compare(disk: &Volume, pieces: u64) {
    let mut found = vec![0; PIECE];
    for piece in 0..pieces {
        disk.read_at(piece * PIECE as u64, &mut found).unwrap();
        assert!(found == noise(piece), "piece {piece}");
    }
}

#[test]
fn a_full_pool_that_grows_takes_writes_without_being_opened_again() {
    let device = create();
    let pool = open(&device);
    let disk = pool.create_volume("disk", &VolumeOptions::new(1 << 30)).unwrap();
    let mut pieces = fill(&disk, 0);
    // Also by more pages of the segment table than there were, and by less than a segment.
    for size_bytes in [POOL_BYTES + 4096, 80 * MIB, 96 * MIB, 256 * MIB] {
        let before_bytes = pool.size_bytes();
        let free_bytes = pool.free_bytes();
        let growth = pool.grow(Some(size_bytes)).unwrap();
        assert_eq!(growth, Growth { before_bytes, size_bytes });
        assert_eq!((pool.size_bytes(), device.size_bytes()), (size_bytes, size_bytes));
        let more_segments = (size_bytes - before_bytes) / (256 * KIB);
        // The reserve grows, too.
        let least = free_bytes + more_segments * 256 * KIB / 8 * 7;
        assert!(pool.free_bytes() >= least, "{} of {least}", pool.free_bytes());
        let before = pieces;
        pieces = fill(&disk, pieces);
        let taken = (pieces - before) * PIECE as u64;
        assert!(taken >= more_segments * 256 * KIB / 4 * 3, "{taken} to {size_bytes}");
        compare(&disk, pieces);
    }
    disk.flush().unwrap();
    pool.close().unwrap();
    check(&device);
    let pool = open(&device);
    assert_eq!(pool.size_bytes(), 256 * MIB);
    let disk = pool.volume("disk").unwrap();
    compare(&disk, pieces);
    disk.discard(0, 1 << 30).unwrap();
    assert!(fill(&disk, 0) > 0);
    pool.close().unwrap();
    check(&device);
}

#[test]
fn a_device_that_has_grown_is_used_when_it_is_asked_for() {
    let device = create();
    let pool = open(&device);
    let same = Growth { before_bytes: POOL_BYTES, size_bytes: POOL_BYTES };
    assert_eq!(pool.grow(None).unwrap(), same);
    assert_eq!(pool.grow(Some(POOL_BYTES)).unwrap(), same);
    assert_eq!(pool.quick_stat().unused_bytes, 0);
    device.set_size(100 * MIB);
    assert_eq!(pool.quick_stat().unused_bytes, 100 * MIB - POOL_BYTES);
    assert_eq!(pool.size_bytes(), POOL_BYTES);
    // As much of it as is asked for, and then all.
    assert_eq!(pool.grow(Some(80 * MIB)).unwrap().size_bytes, 80 * MIB);
    assert_eq!(pool.quick_stat().unused_bytes, 20 * MIB);
    assert_eq!(pool.grow(None).unwrap().size_bytes, 100 * MIB);
    assert_eq!(pool.quick_stat().unused_bytes, 0);
    pool.close().unwrap();
    check(&device);
}

#[test]
fn sizes_that_cannot_be_are_refused_and_change_nothing() {
    let device = create();
    let pool = open(&device);
    let refused = |size_bytes: u64| {
        let error = pool.grow(Some(size_bytes)).unwrap_err();
        assert_eq!(pool.size_bytes(), POOL_BYTES);
        assert_eq!(device.size_bytes(), POOL_BYTES);
        error
    };
    let smaller = refused(POOL_BYTES - 4096);
    assert!(smaller.to_string().contains("cannot shrink"), "{smaller}");
    let larger = refused(1 << 40);
    let EngineError::GrowsTooFar { max_bytes, .. } = larger else { panic!("{larger}") };
    assert!(max_bytes >= 16 * POOL_BYTES && larger.to_string().contains(&max_bytes.to_string()));
    refused(max_bytes + 4096);
    refused(u64::MAX);
    pool.close().unwrap();
    let pool = Pool::open_on(device.clone(), None, &small_options(true)).unwrap();
    assert!(matches!(pool.grow(Some(80 * MIB)), Err(EngineError::ReadOnly)));
    drop(pool);
    // The largest there may be.
    let pool = open(&device);
    assert_eq!(pool.grow(Some(max_bytes)).unwrap().size_bytes, max_bytes);
    pool.close().unwrap();
    check(&device);
}

/// A file, since it is the file that has to grow; its holes take nothing.
#[test]
fn a_pool_in_a_file_grows_sparsely_beyond_what_the_host_has() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let options = CreateOptions { size_bytes: Some(4 << 30), ..CreateOptions::default() };
    Pool::create(&path, &options).unwrap();
    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    pool.grow(Some(64 << 30)).unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(MIB)).unwrap();
    disk.write_at(0, &noise(0)).unwrap();
    drop(disk);
    pool.close().unwrap();
    let file = std::fs::metadata(&path).unwrap();
    assert_eq!(file.len(), 64 << 30);
    let taken = std::os::unix::fs::MetadataExt::blocks(&file) * 512;
    assert!(taken < 1 << 30, "{taken}");
    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(pool.size_bytes(), 64 << 30);
    compare(&pool.volume("disk").unwrap(), 1);
    pool.close().unwrap();
}

/// A pool that is full, grows and is written to; returns the events at which it was asked to grow,
/// had grown, and had made durable what was written then; and how much there was then and now.
fn full_pool_that_grows() -> (Arc<SimDevice>, [usize; 3], [u64; 2]) {
    let device = create();
    let pool = open(&device);
    let disk = pool.create_volume("disk", &VolumeOptions::new(1 << 30)).unwrap();
    let full = fill(&disk, 0);
    disk.flush().unwrap();
    pool.checkpoint().unwrap();
    device.forget_history();
    let begun = device.history_len();
    // More pages of the segment table than before.
    pool.grow(Some(128 * MIB)).unwrap();
    let grown = device.history_len();
    let more = full + 40;
    for piece in full..more {
        disk.write_at(piece * PIECE as u64, &noise(piece)).unwrap();
    }
    disk.flush().unwrap();
    let flushed = device.history_len();
    pool.checkpoint().unwrap();
    // So that nothing more happens to the device.
    drop(disk);
    pool.close().unwrap();
    (device, [begun, grown, flushed], [full, more])
}

/// Recovery after each cut, then use of what the pool has grown by, or growing it again.
#[test]
fn a_power_cut_at_any_write_of_a_growth_leaves_one_of_the_two_sizes() {
    let (device, [begun, grown, flushed], [full, more]) = full_pool_that_grows();
    let mut sizes = Vec::new();
    for event in begun..=device.history_len() {
        for (round, policy) in [CrashPolicy::LoseAll, CrashPolicy::KeepAll, CrashPolicy::Random]
            .into_iter()
            .enumerate()
        {
            // The growth itself in every way; what follows it only now and then.
            if event > grown + 20 && (event + round) % 11 != 0 {
                continue;
            }
            let mut random = SeededRandom::new(event as u64);
            let cut = device.crash_with(event, policy, &mut random);
            let pool = Pool::open_on(cut.clone(), None, &small_options(false))
                .unwrap_or_else(|error| panic!("event {event}, {policy:?}: {error}"));
            let size_bytes = pool.size_bytes();
            assert!([POOL_BYTES, 128 * MIB].contains(&size_bytes), "event {event}: {size_bytes}");
            assert!(event < grown || size_bytes == 128 * MIB, "event {event}: the growth is lost");
            sizes.push(size_bytes);
            let disk = pool.volume("disk").unwrap();
            let (first, last) = if event >= flushed { (full - 1, more) } else { (full - 1, full) };
            for piece in first..last {
                let mut found = vec![0; PIECE];
                disk.read_at(piece * PIECE as u64, &mut found).unwrap();
                assert!(found == noise(piece), "event {event}, {policy:?}: piece {piece}");
            }
            if size_bytes == POOL_BYTES {
                pool.grow(Some(96 * MIB)).unwrap();
            }
            for piece in more..more + 20 {
                disk.write_at(piece * PIECE as u64, &noise(piece)).unwrap();
            }
            disk.flush().unwrap();
            // As the end of the process would leave it.
            pool.abandon();
            drop(disk);
            if event % 3 == 0 {
                check(&cut);
            }
            let pool = open(&cut);
            let disk = pool.volume("disk").unwrap();
            let mut found = vec![0; PIECE];
            disk.read_at((more + 19) * PIECE as u64, &mut found).unwrap();
            assert!(found == noise(more + 19), "event {event}, {policy:?}");
        }
    }
    assert!(sizes.contains(&POOL_BYTES) && sizes.contains(&(128 * MIB)));
}

/// The operation fails, the pool does not: nothing refers to what it did not get.
#[test]
fn a_superblock_that_cannot_be_written_leaves_a_pool_that_works_and_grows_later() {
    const SUPERBLOCKS: [u64; 2] = [0, 512 * KIB];
    for at in SUPERBLOCKS {
        let device = create();
        let pool = open(&device);
        let disk = pool.create_volume("disk", &VolumeOptions::new(1 << 30)).unwrap();
        let pieces = fill(&disk, 0);
        device.inject(Fault {
            operation: Operation::Write,
            range_bytes: at..at + 4096,
            times: Times::Count(1),
            cause: Cause::Errno(5),
        });
        let error = pool.grow(Some(128 * MIB)).unwrap_err();
        assert!(error.to_string().contains("os error 5"), "{error}");
        assert_eq!(pool.size_bytes(), POOL_BYTES);
        assert!(matches!(disk.write_at(0, &noise(1 << 40)), Err(EngineError::NoSpace { .. })));
        disk.flush().unwrap();
        // What a crash would find now.
        let cut = device.snapshot();
        let other = open(&cut);
        assert!([POOL_BYTES, 128 * MIB].contains(&other.size_bytes()));
        compare(&other.volume("disk").unwrap(), pieces);
        other.close().unwrap();
        check(&cut);
        // Smaller than what a superblock may say by now.
        pool.grow(Some(96 * MIB)).unwrap();
        let pieces = fill(&disk, pieces);
        disk.flush().unwrap();
        pool.close().unwrap();
        let pool = open(&device);
        assert_eq!(pool.size_bytes(), 96 * MIB);
        compare(&pool.volume("disk").unwrap(), pieces);
        pool.close().unwrap();
        check(&device);
    }
}
