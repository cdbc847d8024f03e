//! A block that the device does not give is damage like any other: where it stands twice it costs
//! nothing, where it is needed the error names it, and nothing older is ever read in place of what
//! was flushed, whether the block stays bad or not.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::{io, ops::Range, sync::Arc, time::Duration};

use siltstone_device::{
    Operation,
    sim::{Cause, Fault, SimDevice, Times},
};
use siltstone_engine::{EngineError, Pool, Repair, Volume, VolumeOptions, error::MetadataError};
use siltstone_nvram::OpenError;
use support::{
    content::{BLOCK, Block, SECTORS, bytes_of},
    pools::{self, DATA_START, MIB, POOL_BYTES},
    samples::{
        CHECKPOINT_COPIES, DISK_BLOCKS, End, LOG, MARKS, SUPERBLOCKS, Sample, TABLE, WAYS, Way,
        check, newest_checkpoint, number, options,
    },
    watchdog::Watchdog,
};

/// The sample with blocks of which no read succeeds.
fn bad(sample: &Sample, places: &[u64]) -> Arc<SimDevice> {
    sample.damaged(|device| places.iter().for_each(|&at| device.fail_reads(at..at + 1)))
}

/// What was read while a block was bad is still there when it is given again: opens the pool, uses
/// it, cuts the power, and opens it with all blocks whole.
fn use_and_heal(sample: &Sample, device: &Arc<SimDevice>) -> Result<(), EngineError> {
    let pool = Pool::open_on(device.clone(), None, &options(false, 1 << 20))?;
    let disk = pool.volume("disk")?;
    let block: Block = [1 << 25; SECTORS];
    disk.write_at(0, &bytes_of(&block))?;
    disk.flush()?;
    let healed = device.snapshot();
    device.cut_power();
    drop(disk);
    drop(pool);
    let mut blocks = sample.blocks.clone();
    blocks[0] = block;
    let healed = Sample { device: healed, blocks, earlier: Vec::new() };
    healed.outcome(&healed.device, true)
}

/// Whether a repair is about what stands at `place`.
fn is_about(repair: &Repair, place: u64) -> bool {
    let says = repair.to_string();
    let is_kind = match repair {
        Repair::Superblock { .. } => SUPERBLOCKS.contains(&place),
        Repair::Mark(_) => MARKS.contains(&place),
        Repair::Checkpoint(_) => (MIB..LOG.start).contains(&place),
        Repair::Table { .. } => (TABLE..DATA_START).contains(&place),
        Repair::UnreadableLog(_) => LOG.contains(&place),
        Repair::UnreadableSegment { .. } => place >= DATA_START,
        _ => false,
    };
    is_kind && says.contains(&place.to_string()) && says.contains("cannot be read")
}

#[test]
fn any_bad_block_of_what_stands_twice_costs_nothing_and_is_named() {
    let watchdog = Watchdog::new("making pools");
    let samples = [
        Sample::new(Way::Units, End::Closed),
        Sample::new(Way::Log, End::Closed),
        Sample::new(Way::LogThenUnits, End::PowerLost),
    ];
    for (turn, sample) in samples.iter().enumerate() {
        let mut places = sample.used(0..LOG.start);
        places.extend(sample.used(TABLE..DATA_START));
        assert!(places.len() >= 2 + 2 + 4 + 4, "{}", places.len());
        for at in places {
            watchdog.feed(format!("pool {turn}, the block at {at}"));
            let device = bad(sample, &[at]);
            sample.outcome(&device, true).unwrap_or_else(|error| panic!("{turn}, {at}: {error}"));
            let repairs = check(&device).repairs;
            // The first block of each copy of a checkpoint record is named for all of it.
            let copies = CHECKPOINT_COPIES.as_flattened();
            let start = copies.iter().copied().find(|start| (*start..start + MIB).contains(&at));
            let start = start.unwrap_or(at);
            assert!(repairs.iter().any(|repair| is_about(repair, start)), "{at}: {repairs:?}");
            use_and_heal(sample, &device).unwrap_or_else(|error| panic!("{turn}, {at}: {error}"));
        }
    }
}

/// A disk gives a bad sector again once it has been written.
#[test]
fn bad_copies_are_written_anew() {
    let sample = Sample::new(Way::Units, End::Closed);
    let tables = sample.used(TABLE..DATA_START);
    let newest = tables.into_iter().max_by_key(|&at| number(&sample.device, at)).unwrap();
    let places = [SUPERBLOCKS, MARKS, newest_checkpoint(&sample.device)].into_iter().flatten();
    for at in places.chain([newest]) {
        let device = bad(&sample, &[at]);
        assert_eq!(check(&device).repairs.len(), 1, "at {at}");
        device.set_hook(Box::new({
            let device = Arc::downgrade(&device);
            move |event| {
                let end = event.offset_bytes + event.len_bytes;
                let is_write = event.operation == Operation::Write;
                if is_write
                    && (event.offset_bytes..end).contains(&at)
                    && let Some(device) = device.upgrade()
                {
                    device.clear_faults();
                }
                siltstone_device::sim::Verdict::Proceed
            }
        }));
        for _ in 0..2 {
            sample.outcome(&device, false).unwrap();
        }
        let repairs = check(&device).repairs;
        assert!(repairs.is_empty(), "at {at}: {repairs:?}");
    }
}

/// A read that fails and then does not, of anything, is no damage.
#[test]
fn an_error_that_passes_costs_nothing() {
    let watchdog = Watchdog::new("making a pool");
    let sample = Sample::new(Way::LogThenUnits, End::PowerLost);
    let causes = [Cause::Kind(io::ErrorKind::TimedOut), Cause::Short { sectors: 3 }];
    for (turn, at) in sample.used(0..POOL_BYTES).into_iter().enumerate() {
        if at >= DATA_START && turn % 4 != 0 {
            // The rest of them is alike.
            continue;
        }
        watchdog.feed(format!("the block at {at}"));
        let device = sample.damaged(|device| {
            let (operation, range_bytes) = (Operation::Read, at..at + 1);
            let (times, cause) = (Times::Count(1), causes[turn % 2]);
            device.inject(Fault { operation, range_bytes, times, cause });
        });
        let pool = Pool::open_on(device.clone(), None, &options(true, 0)).unwrap();
        // What cannot be read of the map is counted as unknown.
        let stat = pool.stat();
        assert_eq!(stat.repairs, [""; 0], "at {at}");
        assert!(at >= DATA_START || stat.content.unwrap().unknown_bytes == 0, "at {at}");
        drop(pool);
        device.clear_faults();
        sample.outcome(&device, true).unwrap();
    }
}

/// What opening and reading may say of a bad block that is needed.
fn names_the_place(error: &EngineError, at: u64) -> bool {
    let says = error.to_string();
    match error {
        EngineError::OpenLog(OpenError::Damaged { .. })
        | EngineError::Metadata(MetadataError::MissingUnit { .. }) => {
            says.contains(&format!("byte {at} failed"))
        }
        EngineError::BlockDamaged { .. } | EngineError::Map(_) => true,
        // Closing may merge patches, and cannot merge what it cannot read.
        EngineError::Failed { cause } => matches!(**cause, EngineError::Map(_)),
        _ => false,
    }
}

#[test]
fn any_bad_block_of_log_and_segments_is_harmless_or_named() {
    let watchdog = Watchdog::new("making pools");
    let (mut harmless, mut refused, mut unreadable) = (0, 0, 0);
    let ends = [(Way::Units, End::Closed), (Way::Log, End::Closed)];
    for (way, end) in WAYS.map(|way| (way, End::PowerLost)).into_iter().chain(ends) {
        let sample = Sample::new(way, end);
        for at in
            sample.used(LOG.start..TABLE).into_iter().chain(sample.used(DATA_START..POOL_BYTES))
        {
            watchdog.feed(format!("{way:?}, {end:?}, the block at {at}"));
            let device = bad(&sample, &[at]);
            match sample.outcome(&device, true) {
                Ok(()) => harmless += 1,
                Err(error) => {
                    assert!(names_the_place(&error, at), "{way:?}, {at}: {error}");
                    match error {
                        EngineError::BlockDamaged { .. } | EngineError::Map(_) => unreadable += 1,
                        _ => refused += 1,
                    }
                }
            }
            if let Err(error) = sample.outcome(&device, false) {
                assert!(names_the_place(&error, at), "{way:?}, {at}, for writing: {error}");
            }
            let device = bad(&sample, &[at]);
            if let Err(error) = use_and_heal(&sample, &device) {
                assert!(names_the_place(&error, at), "{way:?}, {at}, healed: {error}");
            }
        }
    }
    println!(
        "{harmless} harmless, {refused} refused, {unreadable} with blocks that cannot be read"
    );
    assert!(harmless > 50 && refused > 10 && unreadable > 5, "{harmless} {refused} {unreadable}");
}

#[test]
fn both_copies_bad_is_an_error_that_names_them() {
    let sample = Sample::new(Way::Units, End::Closed);
    let tables = sample.used(TABLE..DATA_START);
    let newest = tables.into_iter().max_by_key(|&at| number(&sample.device, at)).unwrap();
    let other = newest + (DATA_START - TABLE) / 2;
    let other = if number(&sample.device, other) == number(&sample.device, newest) {
        other
    } else {
        let same = |at: &u64| {
            *at != newest && number(&sample.device, *at) == number(&sample.device, newest)
        };
        sample.used(TABLE..DATA_START).into_iter().find(same).unwrap()
    };
    for places in [SUPERBLOCKS, newest_checkpoint(&sample.device), [newest, other]] {
        for read_only in [true, false] {
            let error = sample.outcome(&bad(&sample, &places), read_only).unwrap_err();
            let says = error.to_string();
            assert!(places.iter().any(|place| says.contains(&format!("byte {place}"))), "{says}");
            assert!(
                matches!(error, EngineError::Metadata(_) | EngineError::CheckpointRecord(_)),
                "{says}"
            );
        }
    }
    // A pool that was never opened has one checkpoint record and no mark.
    let device = pools::create();
    let [_, first] = CHECKPOINT_COPIES;
    first.iter().for_each(|&at| device.fail_reads(at..at + 1));
    let error = Pool::open_on(device, None, &options(true, 0)).unwrap_err();
    let says = error.to_string();
    assert!(says.contains(&format!("byte {} cannot be read", first[0])), "{says}");
    // Without marks only a second misfortune would go unnoticed.
    sample.outcome(&bad(&sample, &MARKS), true).unwrap();
}

/// Writes blocks of the disk, each its own change, and flushes them.
fn write(disk: &Volume, blocks: Range<u64>, version: u32) {
    for block in blocks {
        disk.write_at(block * BLOCK as u64, &bytes_of(&tagged(version, block))).unwrap();
    }
    disk.flush().unwrap();
}

fn tagged(version: u32, block: u64) -> Block {
    [version << 8 | block as u32 | 1 << 24; SECTORS]
}

fn cut_power(device: &SimDevice, pool: Pool, disk: Volume) -> Arc<SimDevice> {
    let left = device.snapshot();
    device.cut_power();
    drop(disk);
    drop(pool);
    left
}

/// The newest record or unit, not marked as durable and bad, was taken for torn. When it is given
/// again, it must not take the place of what was written since, which bears the same numbers.
#[test]
fn what_was_ignored_never_counts_later() {
    // What was lost was in a unit and what follows is in the log, and the other way around.
    for [lost_commit_bytes, commit_bytes] in [[0, 1 << 20], [1 << 20, 0]] {
        // Nothing is marked in time, and nothing gets to units by itself.
        let opening = |log_commit_bytes| {
            let mut options = options(false, log_commit_bytes);
            options.tuning.mark_delay = Duration::from_secs(3600);
            options.tuning.linger = Duration::from_secs(3600);
            options
        };
        let device = pools::create();
        let pool = Pool::open_on(device.clone(), None, &opening(lost_commit_bytes)).unwrap();
        let size = VolumeOptions::new(DISK_BLOCKS * BLOCK as u64);
        let disk = pool.create_volume("disk", &size).unwrap();
        write(&disk, 8..9, 3);
        let before = device.snapshot();
        // With the one before fewer than fill a batch, which would get to a unit.
        write(&disk, 0..6, 1);
        let lost = cut_power(&device, pool, disk);

        let mut changed = 0;
        for at in (LOG.start..POOL_BYTES).step_by(BLOCK) {
            if lost.peek(at, BLOCK) != before.peek(at, BLOCK) {
                assert_eq!(at >= DATA_START, lost_commit_bytes == 0, "{at}");
                lost.fail_reads(at..at + 1);
                changed += 1;
            }
        }
        assert!(changed > 0);
        let pool = Pool::open_on(lost.clone(), None, &opening(commit_bytes)).unwrap();
        let repairs = pool.stat().repairs;
        assert!(repairs.iter().any(|says| says.contains("cannot be read")), "{repairs:?}");
        let disk = pool.volume("disk").unwrap();
        let mut found = vec![1; BLOCK];
        disk.read_at(0, &mut found).unwrap();
        assert_eq!(found, [0; BLOCK], "it was ignored");
        // Fewer changes, so that some of what was ignored would follow them.
        write(&disk, 3..5, 2);
        let healed = cut_power(&lost, pool, disk);

        let pool = Pool::open_on(healed, None, &options(true, 0)).unwrap();
        let disk = pool.volume("disk").unwrap();
        for block in 0..9 {
            disk.read_at(block * BLOCK as u64, &mut found).unwrap();
            let expected = match block {
                3..5 => tagged(2, block),
                8 => tagged(3, block),
                _ => [0; SECTORS],
            };
            assert!(found == bytes_of(&expected), "{lost_commit_bytes}: block {block}");
        }
    }
}
