//! The stored image of the dedup index: an opening finds all duplicates of old data without reading
//! summaries; what the image does not have is read from these; it is never in the way.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use std::sync::Arc;

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{
    CreateOptions, OpenOptions, Pool, Problem, ScrubOptions, Tuning, Volume, VolumeOptions,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 128 * MIB;
const SEGMENT_BYTES: u64 = 256 * KIB;

fn create(index_memory_bytes: u64) -> Arc<SimDevice> {
    let device = SimDevice::new(POOL_BYTES);
    let options = CreateOptions {
        segment_bytes: Some(SEGMENT_BYTES),
        nvram_bytes: Some(MIB),
        index_memory_bytes,
        ..CreateOptions::default()
    };
    Pool::create_on(device.clone(), None, &options).unwrap();
    device
}

/// Images as soon as there is anything new, but for `image_segments`.
fn tuning(image_segments: u32) -> Tuning {
    Tuning { image_segments, batch_bytes: 32 << 10, ..Tuning::default() }
}

fn open(device: &Arc<SimDevice>, image_segments: u32) -> Pool {
    let options = OpenOptions { read_only: false, tuning: tuning(image_segments) };
    Pool::open_on(device.clone(), None, &options).unwrap()
}

fn open_to_read(device: &Arc<SimDevice>) -> Pool {
    let options = OpenOptions { read_only: true, tuning: tuning(0) };
    Pool::open_on(device.clone(), None, &options).unwrap()
}

/// Never in the background, and always when the pool is closed, is for pools as small as these.
const AT_CLOSE: u32 = 1000;
const ALWAYS: u32 = 0;

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    SeededRandom::new(seed).fill(&mut bytes);
    bytes
}

fn volume(pool: &Pool, name: &str) -> Volume {
    pool.volume(name)
        .or_else(|_| pool.create_volume(name, &VolumeOptions::new(POOL_BYTES)))
        .unwrap()
}

/// Writes `mib` MiB of noise, and makes a checkpoint.
fn write(pool: &Pool, seed: u64, mib: u64) {
    let disk = volume(pool, &format!("noise-{seed}"));
    for at in 0..mib {
        disk.write_at(at * MIB, &noise(seed + at, MIB)).unwrap();
    }
    pool.checkpoint().unwrap();
}

/// The share of blocks of what `write` wrote that are found when they are written again.
fn found_again(pool: &Pool, seed: u64, mib: u64) -> f64 {
    pool.wait_index_warm().unwrap();
    let before = pool.counters();
    let disk = volume(pool, "again");
    for at in 0..mib {
        disk.write_at(at * MIB, &noise(seed + at, MIB)).unwrap();
    }
    pool.checkpoint().unwrap();
    let linked = pool.counters().linked_blocks - before.linked_blocks;
    let stored = pool.counters().stored_blocks - before.stored_blocks;
    assert_eq!(linked + stored, mib * MIB / 4096);
    linked as f64 / (linked + stored) as f64
}

/// A device with a closed pool with `mib` MiB of noise and an image of its index.
fn with_image(index_memory_bytes: u64, mib: u64) -> Arc<SimDevice> {
    let device = create(index_memory_bytes);
    let pool = open(&device, ALWAYS);
    pool.wait_index_warm().unwrap();
    write(&pool, 1, mib);
    pool.close().unwrap();
    device
}

/// Where the chunks of the newest image are. Those of images before may still stand in its segments.
fn chunks(device: &SimDevice) -> Vec<u64> {
    let image = device.peek(0, POOL_BYTES as usize);
    let is_chunk = |at: &usize| image[*at..].starts_with(b"SLTS\x09\x00");
    let number = |at: usize| u64::from_le_bytes(image[at + 32..][..8].try_into().unwrap());
    let all: Vec<usize> = (0..image.len()).step_by(4096).filter(is_chunk).collect();
    let newest = all.iter().map(|&at| number(at)).max();
    all.into_iter().filter(|&at| Some(number(at)) == newest).map(|at| at as u64).collect()
}

/// An image that was begun shortly before a pool was closed will do: it may lack so many of a hundred segments.
const MOST_UNCOVERED: u64 = 8;

#[test]
fn a_pool_that_was_closed_knows_everything_and_reads_hardly_a_summary() {
    for index_memory_bytes in [64 * KIB, MIB, 8 * MIB] {
        let device = with_image(index_memory_bytes, 24);
        let entries = {
            let pool = open_to_read(&device);
            let report = pool.check(&mut |_| {}).unwrap();
            assert!(report.is_sound() && report.image_chunks > 0, "{:?}", report.findings);
            let entries = pool.quick_stat().index_entries;
            pool.wait_index_warm().unwrap();
            assert!(pool.quick_stat().index_entries > entries, "also if it is only read");
            assert!(pool.counters().index_scanned_segments <= MOST_UNCOVERED);
            pool.quick_stat().index_entries
        };
        let pool = open(&device, ALWAYS);
        let found = found_again(&pool, 1, 24);
        let counters = pool.counters();
        let scanned = counters.index_scanned_segments;
        assert!(scanned <= MOST_UNCOVERED, "{scanned}");
        // A segment of these pools has 64 blocks at most.
        let elsewhere = 64 * (scanned + 1);
        assert!(
            counters.index_loaded_entries + elsewhere > entries,
            "all but theirs, and the frontier's"
        );
        assert!(found > if index_memory_bytes < MIB { 0.9 } else { 0.999 }, "{found}");
        pool.close().unwrap();
    }
}

/// Written in the background; and then the power goes.
#[test]
fn after_a_crash_only_what_came_after_the_image_is_read() {
    let device = create(MIB);
    let pool = open(&device, ALWAYS);
    write(&pool, 1, 20);
    pool.wait_index_warm().unwrap();
    let is_written =
        || pool.counters().index_images > 0 && pool.quick_stat().written.image_bytes > 0;
    let looks = (0..100_000).take_while(|_| !is_written()).map(|_| pool.checkpoint().unwrap());
    assert!(looks.count() < 100_000, "an image is written");
    // The record that names it.
    pool.checkpoint().unwrap();
    let after_image = device.snapshot();
    pool.abandon();
    drop(device);

    let pool = open(&after_image, AT_CLOSE);
    write(&pool, 100, 5);
    pool.wait_index_warm().unwrap();
    let scanned = pool.counters().index_scanned_segments;
    let at_crash = after_image.snapshot();
    pool.abandon();
    let pool = open(&at_crash, AT_CLOSE);
    let found = found_again(&pool, 1, 20);
    assert!(found > 0.999, "{found}");
    let newer = pool.counters().index_scanned_segments;
    assert!((15..=30 + scanned).contains(&newer), "5 MiB in segments of a quarter: {newer}");
    assert!(found_again(&pool, 100, 5) > 0.999);
    pool.close().unwrap();
}

#[test]
fn damage_of_an_image_is_reported_and_costs_time_alone() {
    let device = with_image(32 * MIB, 20);
    let chunks = chunks(&device);
    assert!(chunks.len() > 1, "{chunks:?}");
    for &chunk in &chunks {
        let device = device.snapshot();
        device.flip_bit(chunk + 700, 3);
        let pool = open_to_read(&device);
        let report = pool.check(&mut |_| {}).unwrap();
        let [Problem::IndexImage { .. }] = report.findings.problems[..] else {
            panic!("{:?}", report.findings)
        };
        assert_eq!(report.findings.lost_bytes, 0);
        assert_eq!(report.image_chunks, chunks.len() as u64 - 1);
        drop(pool);

        let pool = open(&device, AT_CLOSE);
        pool.wait_index_warm().unwrap();
        let scrub =
            pool.scrub(&ScrubOptions::default(), &mut |_| std::ops::ControlFlow::Continue(()));
        let [Problem::IndexImage { .. }] = scrub.findings.problems[..] else {
            panic!("{:?}", scrub.findings)
        };
        assert!(pool.counters().index_loaded_entries > 0, "the other chunks are whole");
        assert!(pool.counters().index_scanned_segments > 50, "summaries say the rest");
        assert!(found_again(&pool, 1, 20) > 0.999);
        pool.close().unwrap();

        // The next image takes the place of this one.
        let pool = open(&device, ALWAYS);
        write(&pool, 50, 1);
        pool.wait_index_warm().unwrap();
        pool.close().unwrap();
        let report = open_to_read(&device).check(&mut |_| {}).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
    }
}

/// What it says of segments that were used again since is wrong.
#[test]
fn an_old_image_of_a_pool_that_has_changed_since_does_no_harm() {
    let device = with_image(MIB, 20);
    let never = Tuning { warm_index: false, ..tuning(0) };
    for round in 0..6 {
        let options = OpenOptions { read_only: false, tuning: never.clone() };
        let pool = Pool::open_on(device.clone(), None, &options).unwrap();
        pool.delete_volume(&format!("noise-{}", if round == 0 { 1 } else { 100 * round })).unwrap();
        write(&pool, 100 * (round + 1), 20);
        pool.collect_garbage().unwrap();
        pool.close().unwrap();
    }
    assert!(open_to_read(&device).check(&mut |_| {}).unwrap().image_chunks > 0);
    let pool = open(&device, AT_CLOSE);
    assert!(found_again(&pool, 600, 20) > 0.999);
    assert!(pool.counters().index_loaded_entries < 100, "of segments that are gone");
    assert_eq!(found_again(&pool, 1, 3), 0.0);
    pool.close().unwrap();
    let report = open_to_read(&device).check(&mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

/// It gives up the one that it has, and does not write another.
#[test]
fn a_full_pool_has_no_image_and_works() {
    let device = with_image(MIB, 8);
    assert!(open_to_read(&device).check(&mut |_| {}).unwrap().image_chunks > 0);
    let pool = open(&device, ALWAYS);
    let disk = volume(&pool, "disk");
    let mut written = 0;
    while disk.write_at(written * MIB / 4, &noise(1000 + written, MIB / 4)).is_ok() {
        written += 1;
    }
    let space = pool.quick_stat().space;
    assert!(space.free_bytes < MIB, "what the image took is for data: {space:?}");
    pool.close().unwrap();
    let pool = open_to_read(&device);
    let report = pool.check(&mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    assert_eq!(report.image_chunks, 0);
    drop(pool);

    // With room again, there is one again.
    let pool = open(&device, ALWAYS);
    // Who does not know everything leaves no image.
    pool.wait_index_warm().unwrap();
    pool.delete_volume("disk").unwrap();
    pool.checkpoint().unwrap();
    pool.collect_garbage().unwrap();
    pool.close().unwrap();
    let report = open_to_read(&device).check(&mut |_| {}).unwrap();
    assert!(report.is_sound() && report.image_chunks > 0, "{:?}", report.findings);
}

/// Nothing comes after it that could take the room again and again.
#[test]
fn a_pool_that_is_closed_has_an_image_as_long_as_that_takes_no_room_from_others() {
    let device = create(MIB);
    let pool = open(&device, AT_CLOSE);
    pool.wait_index_warm().unwrap();
    let disk = volume(&pool, "disk");
    let mut written = 0;
    // Of this the frontier holds a third; an image in the background would leave more.
    while pool.free_bytes() > 12 * MIB {
        disk.write_at(written * MIB / 4, &noise(1000 + written, MIB / 4)).unwrap();
        pool.checkpoint().unwrap();
        written += 1;
    }
    assert_eq!(pool.counters().index_images, 0);
    pool.close().unwrap();
    let report = open_to_read(&device).check(&mut |_| {}).unwrap();
    assert!(report.is_sound() && report.image_chunks > 0, "{:?}", report.findings);

    // What it takes is for data all the same.
    let pool = open(&device, AT_CLOSE);
    pool.wait_index_warm().unwrap();
    let scanned = pool.counters().index_scanned_segments;
    assert!(scanned < 20, "{scanned} segments, of which the image says nothing");
    let disk = volume(&pool, "disk");
    while disk.write_at(written * MIB / 4, &noise(1000 + written, MIB / 4)).is_ok() {
        written += 1;
    }
    let space = pool.quick_stat().space;
    assert!(space.free_bytes < MIB, "{space:?}");
    pool.close().unwrap();
    let report = open_to_read(&device).check(&mut |_| {}).unwrap();
    assert!(report.is_sound() && report.image_chunks == 0, "{:?}", report.findings);
}

/// An index that has seen much more than there is keeps a thin sample for ever. The summaries of
/// what there is would fill it anew.
#[test]
fn an_image_that_is_thinner_than_need_be_is_not_used() {
    let device = create(64 * KIB);
    let pool = open(&device, ALWAYS);
    pool.wait_index_warm().unwrap();
    for round in 0..4 {
        write(&pool, 1000 * (round + 1), 40);
        pool.delete_volume(&format!("noise-{}", 1000 * (round + 1))).unwrap();
        pool.collect_garbage().unwrap();
    }
    write(&pool, 1, 8);
    let before = pool.quick_stat().index_sample_bits;
    pool.close().unwrap();
    assert!(open_to_read(&device).check(&mut |_| {}).unwrap().image_chunks > 0);
    let pool = open(&device, ALWAYS);
    assert!(found_again(&pool, 1, 8) > 0.99);
    assert!(pool.quick_stat().index_sample_bits < before, "{before} bits");
    assert!(pool.counters().index_scanned_segments > 0);
    pool.close().unwrap();
}
