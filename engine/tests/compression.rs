//! Promises: a volume's frames are as large as it says, also what garbage collection makes of them; what is
//! written while nothing waits is compressed harder, within the volume's levels; both stay with it, and can
//! be changed for what is written from then on.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use siltstone_device::SeededRandom;
use siltstone_engine::{
    Compression, Effort, OpenOptions, Pool, SnapshotName, Tuning, VolumeOptions,
};
use support::pools;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;

fn options(effort: Option<Effort>) -> OpenOptions {
    let options = pools::small_options(false);
    OpenOptions { tuning: Tuning { effort, ..options.tuning }, ..options }
}

fn compression(levels: &str, frame: &str) -> Compression {
    Compression { levels: levels.parse().unwrap(), frame: frame.parse().unwrap() }
}

/// Writes the data so that nothing waits behind any of it.
fn write(pool: &Pool, compression: Compression, data: &[u8]) {
    let size = VolumeOptions::new(data.len() as u64).with_compression(compression);
    let disk = pool.create_volume("disk", &size).unwrap();
    // A batch each.
    for (at, piece) in data.chunks(8 * BLOCK as usize).enumerate() {
        disk.write_at(at as u64 * 8 * BLOCK, piece).unwrap();
        pool.checkpoint().unwrap();
    }
}

fn noise() -> Vec<u8> {
    let mut data = vec![0; (BLOCKS * BLOCK) as usize];
    SeededRandom::new(1).fill(&mut data);
    data
}

#[test]
fn a_read_of_a_block_takes_its_frame_and_no_more() {
    // What does not compress, so that lengths are known.
    let data = noise();
    for (frame, blocks) in [("4K", 1), ("8K", 2), ("16K", 4), ("32K", 8)] {
        for is_collected in [false, true] {
            let device = pools::create();
            let pool = Pool::open_on(device.clone(), None, &options(None)).unwrap();
            write(&pool, compression("1..3", frame), &data);
            if is_collected {
                // Of every frame half is left.
                let disk = pool.volume("disk").unwrap();
                for at in (0..BLOCKS).step_by(2 * blocks as usize) {
                    disk.discard(at * BLOCK, blocks * BLOCK).unwrap();
                }
                pool.checkpoint().unwrap();
                pool.collect_garbage().unwrap();
                assert!(pool.counters().collector_moved_blocks > 0, "frames of {frame}");
            }
            pool.close().unwrap();
            let pool = Pool::open_on(device, None, &options(None)).unwrap();
            let (mut block, at) = ([0; BLOCK as usize], BLOCKS - blocks);
            pool.volume("disk").unwrap().read_at(at * BLOCK, &mut block).unwrap();
            assert_eq!(block, data[(at * BLOCK) as usize..][..BLOCK as usize]);
            let read_bytes = pool.counters().frame_read_bytes;
            // Its header, and what it begins and ends within.
            let frame_bytes = blocks * BLOCK;
            let expected = frame_bytes..=frame_bytes + 2 * BLOCK;
            assert!(expected.contains(&read_bytes), "frames of {frame}: {read_bytes} bytes");
        }
    }
}

/// Bytes that frames of text take.
fn stored_bytes(effort: Option<Effort>, levels: &str) -> u64 {
    let sources = [
        include_str!("../src/reduce.rs"),
        include_str!("../src/sealer.rs"),
        include_str!("../src/collector.rs"),
        include_str!("../src/read.rs"),
        include_str!("../src/recovery.rs"),
        include_str!("../src/check.rs"),
        include_str!("../src/estimate.rs"),
        include_str!("../src/segment_table.rs"),
    ];
    let mut text = sources.concat().into_bytes();
    text.truncate(text.len() / BLOCK as usize * BLOCK as usize);
    let device = pools::create();
    let pool = Pool::open_on(device, None, &options(effort)).unwrap();
    write(&pool, compression(levels, "32K"), &text);
    let bytes = pool.counters().frame_bytes;
    pool.close().unwrap();
    bytes
}

#[test]
fn what_is_written_without_haste_is_compressed_harder() {
    let (little, great) = (Some(Effort::Little), Some(Effort::Great));
    let (least, most) = (stored_bytes(None, "1"), stored_bytes(None, "9"));
    assert!(most < least, "{most} of {least} bytes");
    assert_eq!(stored_bytes(None, "1..9"), most, "nothing waited");
    assert_eq!(stored_bytes(great, "1..9"), most);
    assert_eq!(stored_bytes(little, "1..9"), least);
}

#[test]
fn compression_stays_with_a_volume_and_its_snapshots() {
    let device = pools::create();
    let compression = compression("-5..9", "8K");
    let name: SnapshotName = "disk@now".parse().unwrap();
    {
        let pool = Pool::open_on(device.clone(), None, &options(None)).unwrap();
        write(&pool, compression, &noise());
        pool.create_snapshots(std::slice::from_ref(&name)).unwrap();
        pool.close().unwrap();
    }
    let pool = Pool::open_on(device, None, &options(None)).unwrap();
    pool.clone_snapshot(&name, "clone").unwrap();
    assert_eq!(pool.volumes().len(), 2);
    for volume in pool.volumes() {
        assert_eq!(volume.compression, compression, "{}", volume.name);
    }
    pool.close().unwrap();
}

/// What the first read of a block in a pool just opened takes from the device.
fn bytes_of_first_read(pool: &Pool, block: u64) -> u64 {
    let mut out = [0; BLOCK as usize];
    pool.volume("disk").unwrap().read_at(block * BLOCK, &mut out).unwrap();
    pool.counters().frame_read_bytes
}

#[test]
fn what_is_changed_of_a_volume_counts_for_what_is_written_afterwards() {
    let device = pools::create();
    let name: SnapshotName = "disk@before".parse().unwrap();
    let (before, after) = (compression("1..3", "32K"), compression("1..9", "4K"));
    {
        let pool = Pool::open_on(device.clone(), None, &options(None)).unwrap();
        write(&pool, before, &noise());
        pool.create_snapshots(std::slice::from_ref(&name)).unwrap();
        let disk = pool.volume("disk").unwrap();
        let changed = pool.change_compression("disk", move |found| {
            assert_eq!(found, before);
            after
        });
        assert_eq!(changed.unwrap(), after);
        // A handle from before writes as the volume is now.
        let mut others = vec![0; 8 * BLOCK as usize];
        SeededRandom::new(2).fill(&mut others);
        disk.write_at(0, &others).unwrap();
        drop(disk);
        pool.close().unwrap();
    }
    let open = || Pool::open_on(device.clone(), None, &options(None)).unwrap();
    for (block, frame_bytes) in [(5, BLOCK), (21, 8 * BLOCK)] {
        let pool = open();
        let read_bytes = bytes_of_first_read(&pool, block);
        let expected = frame_bytes..=frame_bytes + 2 * BLOCK;
        assert!(expected.contains(&read_bytes), "block {block}: {read_bytes} bytes");
        pool.close().unwrap();
    }
    let pool = open();
    pool.clone_snapshot(&name, "clone").unwrap();
    let found: Vec<_> = pool.volumes().into_iter().map(|v| (v.name, v.compression)).collect();
    assert_eq!(found, [("clone".to_owned(), before), ("disk".to_owned(), after)]);
    // The volume keeps it whatever it holds.
    pool.roll_back(&name).unwrap();
    assert_eq!(pool.volumes()[1].compression, after);
    pool.change_compression("disk@before", |found| found).unwrap_err();
    pool.change_compression("none", |found| found).unwrap_err();
    pool.close().unwrap();
}
