//! Damage is reported, never returned: whatever is flipped, zeroed or put back to an older state
//! in a closed pool, opening and reading give the right data or an error that says where, and a
//! damaged frame takes only its own blocks with it.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::sync::Arc;

use siltstone_device::{SeededRandom, sim::SimDevice};
use siltstone_engine::{EngineError, Pool, VolumeOptions, config::FRAME_BLOCKS};
use support::{
    content::{BLOCK, Block, SECTORS, bytes_of},
    pools::{self, DATA_START, KIB, MIB, POOL_BYTES, small_options as options, used_blocks},
    watchdog::Watchdog,
};

const DISK_BLOCKS: u64 = 400;

/// A closed pool, what it held on the way, and what its disk contains.
struct Sample {
    device: Arc<SimDevice>,
    /// The device as it was at earlier checkpoints.
    earlier: Vec<Arc<SimDevice>>,
    blocks: Vec<Block>,
}

/// Every block different from all others, so that no frame serves more than its own.
fn unique(version: u32, block: u64) -> Block {
    std::array::from_fn(|sector| (version * 100_000 + block as u32 * 8 + sector as u32) | 1 << 24)
}

fn sample(close: bool) -> Sample {
    let device = pools::create();
    let pool = Pool::open_on(device.clone(), None, &options(false)).unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(DISK_BLOCKS * BLOCK as u64)).unwrap();
    let mut blocks = vec![[0; SECTORS]; DISK_BLOCKS as usize];
    let mut earlier = Vec::new();
    let mut random = SeededRandom::new(3);
    for version in 1..=5 {
        for _ in 0..12 {
            let first = random.below(DISK_BLOCKS);
            let len = (1 + random.below(48)).min(DISK_BLOCKS - first);
            let contents: Vec<Block> =
                (first..first + len).map(|block| unique(version, block)).collect();
            disk.write_at(first * BLOCK as u64, &bytes_of(contents.as_flattened())).unwrap();
            blocks[first as usize..][..len as usize].copy_from_slice(&contents);
            if random.chance(1, 3) {
                disk.flush().unwrap();
            }
        }
        if version < 5 {
            pool.checkpoint().unwrap();
            earlier.push(device.snapshot());
        }
    }
    disk.flush().unwrap();
    if close {
        pool.close().unwrap();
    }
    Sample { device: device.snapshot(), earlier, blocks }
}

/// What reading everything after some damage gave.
enum Outcome {
    Refused,
    /// Blocks that could not be read, with the first one's error.
    Lost(u64, Option<EngineError>),
}

fn look(sample: &Sample, device: &Arc<SimDevice>, read_only: bool) -> Result<Outcome, String> {
    let before = read_all(sample, device, read_only)?;
    if read_only || matches!(before, Outcome::Refused) {
        return Ok(before);
    }
    // What is written now must not overwrite anything that is still referred to.
    let Ok(pool) = Pool::open_on(device.clone(), None, &options(false)) else { return Ok(before) };
    let write = |name: &str, version: u32| {
        let volume = pool.create_volume(name, &VolumeOptions::new(2 * MIB))?;
        let contents: Vec<Block> = (0..512).map(|block| unique(version, block)).collect();
        volume.write_at(0, &bytes_of(contents.as_flattened()))?;
        pool.checkpoint()
    };
    let _ = write("more", 70).and_then(|()| write("still more", 71));
    // A damaged pool may notice only now; it need not be closed in order.
    let _ = pool.close();
    let after = read_all(sample, device, true).map_err(|e| format!("after more writes: {e}"))?;
    match (&before, &after) {
        (Outcome::Lost(lost, _), Outcome::Lost(more, error)) if more > lost => {
            Err(format!("after more writes {more} blocks are lost, not {lost}: {error:?}"))
        }
        _ => Ok(before),
    }
}

fn read_all(sample: &Sample, device: &Arc<SimDevice>, read_only: bool) -> Result<Outcome, String> {
    let pool = match Pool::open_on(device.clone(), None, &options(read_only)) {
        Ok(pool) => pool,
        Err(_) => return Ok(Outcome::Refused),
    };
    let disk = match pool.volume("disk") {
        Ok(disk) => disk,
        Err(error) => return Err(format!("the volume is gone: {error}")),
    };
    let mut lost = 0;
    let mut first_error = None;
    let mut found = vec![0; BLOCK];
    for (block, expected) in (0..).zip(&sample.blocks) {
        match disk.read_at(block * BLOCK as u64, &mut found) {
            Ok(()) if found == bytes_of(expected) => {}
            Ok(()) => {
                let tags = support::content::tags_of(&found);
                return Err(format!("block {block} reads {tags:?}, not {expected:?}"));
            }
            Err(error) => {
                lost += 1;
                first_error.get_or_insert(error);
            }
        }
    }
    Ok(Outcome::Lost(lost, first_error))
}

/// Whether a block lies in a segment, frames or patches, rather than in the pool's own regions.
fn is_data(at: u64) -> bool {
    at >= DATA_START
}

#[test]
fn flipped_bytes_are_noticed_and_take_only_their_frame_with_them() {
    let watchdog = Watchdog::new("a closed pool");
    let sample = sample(true);
    let mut random = SeededRandom::new(11);
    let (mut refused, mut harmless, mut partial) = (0, 0, 0);
    for at in used_blocks(&sample.device, 0..POOL_BYTES) {
        if is_data(at) && random.chance(2, 3) {
            continue;
        }
        let header = random.below(160);
        let mut offsets = vec![random.below(BLOCK as u64)];
        if random.chance(1, 3) {
            offsets.push(header);
        }
        for offset in offsets {
            watchdog.feed(format!("byte {offset} of the block at {at}"));
            let device = sample.device.snapshot();
            device.flip_bit(at + offset, random.below(8) as u8);
            let outcome = look(&sample, &device, is_data(at) && !random.chance(1, 4))
                .unwrap_or_else(|reason| panic!("byte {offset} of the block at {at}: {reason}"));
            match outcome {
                Outcome::Refused => refused += 1,
                Outcome::Lost(0, _) => harmless += 1,
                Outcome::Lost(lost, error) => {
                    partial += 1;
                    let named = matches!(
                        error,
                        Some(EngineError::BlockDamaged { .. } | EngineError::Map(_))
                    );
                    assert!(named, "byte {offset} at {at}: {error:?}");
                    let is_frame = matches!(error, Some(EngineError::BlockDamaged { .. }));
                    assert!(
                        !is_frame || lost <= FRAME_BLOCKS as u64,
                        "byte {offset} at {at} cost {lost} blocks: {error:?}"
                    );
                }
            }
        }
    }
    println!("{refused} refused, {harmless} harmless, {partial} partial");
    assert_eq!(refused, 0, "what a closed pool cannot be opened without is there twice");
    assert!(harmless > 0 && partial > 20, "the damage reaches everything");
}

#[test]
fn zeroed_and_stale_blocks_are_noticed() {
    let watchdog = Watchdog::new("a closed pool");
    let sample = sample(true);
    let mut random = SeededRandom::new(12);
    for at in used_blocks(&sample.device, 0..POOL_BYTES) {
        let now = sample.device.peek(at, BLOCK);
        let mut others: Vec<Vec<u8>> = vec![vec![0; BLOCK]];
        others.extend(sample.earlier.iter().map(|device| device.peek(at, BLOCK)));
        others.retain(|other| *other != now);
        others.dedup();
        for (number, other) in others.iter().enumerate() {
            if is_data(at) && !random.chance(1, 8) {
                continue;
            }
            watchdog.feed(format!("older version {number} of the block at {at}"));
            let device = sample.device.snapshot();
            device.corrupt(at, other);
            let read_only = is_data(at) && !random.chance(1, 4);
            look(&sample, &device, read_only).unwrap_or_else(|reason| {
                panic!("the block at {at} replaced by an older one ({number}): {reason}")
            });
        }
    }
}

/// Right after a flush, damage at the end of what was written cannot be told from a torn write (see
/// the tests of redundancy for later); but nothing ever reads as what nobody wrote, panics or hangs.
#[test]
fn damage_in_a_pool_that_was_not_closed_invents_nothing() {
    let watchdog = Watchdog::new("a pool that was not closed");
    let sample = sample(false);
    let mut random = SeededRandom::new(13);
    for at in used_blocks(&sample.device, 0..POOL_BYTES) {
        if is_data(at) && random.chance(1, 2) {
            continue;
        }
        watchdog.feed(format!("the block at {at}"));
        let device = sample.device.snapshot();
        let offset = random.below(BLOCK as u64);
        match random.below(3) {
            0 => device.corrupt(at, &[0; BLOCK]),
            1 => device.corrupt(at + offset, &vec![0xff; (BLOCK as u64 - offset) as usize]),
            _ => device.flip_bit(at + offset, 3),
        }
        let Ok(pool) = Pool::open_on(device, None, &options(random.chance(1, 2))) else { continue };
        let disk = pool.volume("disk").unwrap();
        let mut found = vec![0; BLOCK];
        for block in 0..DISK_BLOCKS {
            if disk.read_at(block * BLOCK as u64, &mut found).is_err() {
                continue;
            }
            let versions = (1..=5).map(|version| unique(version, block)).chain([[0; SECTORS]]);
            let known = versions.map(|tags| bytes_of(tags.as_slice())).any(|bytes| bytes == found);
            assert!(known, "damage at {at}: block {block} reads what nobody wrote");
        }
    }
}

/// A damaged frame that patches refer to, in a segment that was still being written when the power
/// went: what was flushed behind it is found all the same.
#[test]
fn a_damaged_old_frame_in_the_open_segment_hides_nothing_behind_it() {
    let _watchdog = Watchdog::new("a damaged frame before newer units");
    let device = pools::create();
    let mut options = options(false);
    options.tuning.log_commit_bytes = 0;
    let pool = Pool::open_on(device.clone(), None, &options).unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(MIB)).unwrap();
    // Odd tags do not compress, so that the first one's sector is found on the device.
    let old = [[1 << 24 | 1; SECTORS]];
    let new = [[1 << 24 | 3; SECTORS]];
    disk.write_at(0, &bytes_of(old.as_flattened())).unwrap();
    pool.checkpoint().unwrap();
    disk.write_at(64 * KIB, &bytes_of(new.as_flattened())).unwrap();
    disk.flush().unwrap();
    let crashed = device.snapshot();
    pool.close().unwrap();

    let sector = bytes_of(&old[0][..1]);
    let start = DATA_START;
    let segments = crashed.peek(start, 4 << 20);
    let at = segments.windows(sector.len()).position(|window| window == sector).unwrap();
    crashed.flip_bit(start + at as u64 + 100, 1);
    let pool = Pool::open_on(crashed, None, &options).unwrap();
    let disk = pool.volume("disk").unwrap();
    let mut found = vec![0; BLOCK];
    let error = disk.read_at(0, &mut found).unwrap_err();
    assert!(matches!(error, EngineError::BlockDamaged { .. }), "{error}");
    disk.read_at(64 * KIB, &mut found).unwrap();
    assert!(found == bytes_of(new.as_flattened()), "a flushed block is gone");
}
