//! Promise: a batch that is written as two units, one of what is overwritten often and one of the
//! rest, is there as a whole or not at all, whenever the power is cut.

#![allow(clippy::unwrap_used)]

mod support;

use siltstone_device::SeededRandom;
use siltstone_engine::{OpenOptions, Pool, Tuning, VolumeOptions};
use support::{
    content::BLOCK,
    pools::{self, DATA_START, KIB},
    samples,
    watchdog::Watchdog,
};

/// Blocks that are overwritten again and again, the first of the volume.
const HOT_BLOCKS: u64 = 24;
const BLOCKS: u64 = 1200;

fn options() -> OpenOptions {
    let options = samples::options(false, 0);
    OpenOptions { tuning: Tuning { batch_bytes: 128 << 10, ..options.tuning }, ..options }
}

/// What the write with this number puts into a block: what does not compress, and was not before.
fn content(write: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    SeededRandom::new(write).fill(&mut block);
    block[..8].copy_from_slice(&write.to_le_bytes());
    block
}

/// The number of the write whose content a block has; 0 for zeros.
fn write_of(block: &[u8; BLOCK]) -> u64 {
    let write = u64::from_le_bytes(block[..8].try_into().unwrap());
    assert!(write == 0 || *block == content(write), "what write {write} never wrote");
    write
}

/// The writes 1, 2, 3...: every other one to a hot block.
fn address(write: u64) -> u64 {
    let cold = HOT_BLOCKS + write / 2 % (BLOCKS - HOT_BLOCKS);
    if write.is_multiple_of(2) { write / 2 % HOT_BLOCKS } else { cold }
}

#[test]
fn a_divided_batch_counts_as_a_whole_or_not_at_all() {
    const WRITES: u64 = 1600;
    let watchdog = Watchdog::new("writing");
    let device = pools::create();
    let pool = Pool::open_on(device.clone(), None, &options()).unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(BLOCKS * BLOCK as u64)).unwrap();
    // The last write of each flush, and how much had happened then.
    let mut flushed = Vec::new();
    for write in 1..=WRITES {
        disk.write_at(address(write) * BLOCK as u64, &content(write)).unwrap();
        if write.is_multiple_of(200) {
            disk.flush().unwrap();
            flushed.push((device.history_len(), write));
        }
        if write % 130 == 0 {
            pool.checkpoint().unwrap();
        }
    }
    assert!(pool.counters().divided_batches > 10, "{}", pool.counters().divided_batches);
    pool.close().unwrap();
    let (first, _) = flushed[0];
    let mut random = SeededRandom::new(1);
    let mut ends = std::collections::BTreeSet::new();
    for event in (first..=device.history_len()).step_by(3) {
        watchdog.feed(format!("a cut at {event}"));
        let cut = device.crash_at(event, &mut random);
        let pool = Pool::open_on(cut.clone(), None, &options()).unwrap();
        let disk = pool.volume("disk").unwrap();
        let mut blocks = vec![[0; BLOCK]; BLOCKS as usize];
        disk.read_at(0, blocks.as_flattened_mut()).unwrap();
        let found: Vec<u64> = blocks.iter().map(write_of).collect();
        let end = found.iter().copied().max().unwrap();
        let (_, durable) = flushed.iter().rev().find(|(at, _)| *at <= event).unwrap();
        assert!(end >= *durable, "cut at {event}: of {durable} writes {end} are there");
        let mut expected = vec![0; BLOCKS as usize];
        (1..=end).for_each(|write| expected[address(write) as usize] = write);
        assert!(found == expected, "cut at {event}: not what {end} writes leave");
        ends.insert(end);
        // What was lost comes again, and must not be taken for stored by what was ignored.
        for write in end + 1..=WRITES {
            disk.write_at(address(write) * BLOCK as u64, &content(write)).unwrap();
        }
        drop(disk);
        pool.close().unwrap();
        let pool = Pool::open_on(cut, None, &samples::options(true, 0)).unwrap();
        let report = pool.check(&mut |_| {}).unwrap();
        assert!(report.is_sound(), "cut at {event}: {:?}", report.findings);
        let disk = pool.volume("disk").unwrap();
        disk.read_at(0, blocks.as_flattened_mut()).unwrap();
        let found: Vec<u64> = blocks.iter().map(write_of).collect();
        (end + 1..=WRITES).for_each(|write| expected[address(write) as usize] = write);
        assert!(found == expected, "cut at {event}: not what was written again");
    }
    assert!(ends.len() > 10, "{ends:?}");
}

/// The second unit of a batch is lost although it was durable: the first does not count either, and
/// opening says what is missing.
#[test]
fn half_a_batch_is_no_batch() {
    let _watchdog = Watchdog::new("half a batch");
    let device = pools::create();
    let pool = Pool::open_on(device.clone(), None, &options()).unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(BLOCKS * BLOCK as u64)).unwrap();
    let mut flushes = Vec::new();
    for write in 1..=600 {
        disk.write_at(address(write) * BLOCK as u64, &content(write)).unwrap();
        if write.is_multiple_of(50) {
            disk.flush().unwrap();
            flushes.push(write);
        }
    }
    let copy = device.crash_at(device.history_len(), &mut SeededRandom::new(2));
    pool.close().unwrap();
    // Units that are continued, and the ones that follow them, by number.
    let field = |at: u64, offset: u64, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&copy.peek(at + offset, len));
        u64::from_le_bytes(bytes)
    };
    let units = (DATA_START..pools::POOL_BYTES).step_by(BLOCK);
    let units = units.filter(|&at| copy.peek(at, 6) == *b"SLTS\x04\0");
    let units: std::collections::BTreeMap<u64, u64> =
        units.map(|at| (field(at, 48, 8), at)).collect();
    let continued: Vec<u64> =
        units.iter().filter(|&(_, &at)| field(at, 92, 4) == 1).map(|(&number, _)| number).collect();
    assert!(continued.len() > 5, "{continued:?}");
    let mut opened = 0;
    for number in continued {
        let broken = copy.snapshot();
        broken.corrupt(units[&(number + 1)] + 4 * KIB, &[0x55; 64]);
        // What was flushed is missing, and a mark or nothing says so; either way no half is there.
        let Ok(pool) = Pool::open_on(broken, None, &options()) else { continue };
        let disk = pool.volume("disk").unwrap();
        let mut blocks = vec![[0; BLOCK]; BLOCKS as usize];
        disk.read_at(0, blocks.as_flattened_mut()).unwrap();
        let found: Vec<u64> = blocks.iter().map(write_of).collect();
        let end = found.iter().copied().max().unwrap();
        let mut expected = vec![0; BLOCKS as usize];
        (1..=end).for_each(|write| expected[address(write) as usize] = write);
        assert!(found == expected, "unit {number} without the next one");
        opened += 1;
        drop(disk);
        pool.close().unwrap();
    }
    assert!(opened > 0, "every half is known to be missed");
}
