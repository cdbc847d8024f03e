//! What is flushed is never lost in silence: any damage of one place in the pool's metadata is
//! corrected, reported by a typed error that names the place, or harmless. Never is something older
//! read in place of what was flushed.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use siltstone_device::{SegmentId, header::Kind};
use siltstone_engine::{EngineError, Pool, Repair, VolumeOptions, error::MetadataError};
use siltstone_nvram::{CheckpointError, LogDamage, OpenError};
use support::{
    content::{BLOCK, SECTORS, bytes_of},
    pools::{self, DATA_START, KIB, MIB, POOL_BYTES},
    samples::{
        End, LOG, MARKS, SUPERBLOCKS, Sample, TABLE, WAYS, Way, check, newest_checkpoint,
        newest_record, number, options,
    },
    watchdog::Watchdog,
};

const SECTOR: u64 = 512;

/// Damages every used block of `range` in every way: bytes flipped (of the first ones, which hold the
/// headers, one in `stride`, in all blocks together all; and some of the others), sectors zeroed, the
/// block as it was earlier. Gives what comes of each to `judge`.
fn damage_everything(
    sample: &Sample,
    range: std::ops::Range<u64>,
    stride: u64,
    watchdog: &Watchdog,
    judge: &mut dyn FnMut(&str, Result<(), EngineError>),
) {
    for at in sample.used(range) {
        let now = sample.device.peek(at, BLOCK);
        let mut cases: Vec<(String, u64, Vec<u8>)> = Vec::new();
        let turn = at / BLOCK as u64 % stride;
        let step = |offset: u64| if offset < 120 { stride } else { stride * 97 };
        for offset in (0..BLOCK as u64).filter(|offset| offset % step(*offset) == turn) {
            let byte = now[offset as usize] ^ 1 << (offset % 8);
            cases.push((
                format!("byte {offset} of the block at {at} flipped"),
                at + offset,
                vec![byte],
            ));
        }
        for sector in (0..BLOCK as u64).step_by(SECTOR as usize) {
            let name = format!("the sector at {} zeroed", at + sector);
            cases.push((name, at + sector, vec![0; SECTOR as usize]));
        }
        for (age, device) in sample.earlier.iter().enumerate() {
            cases.push((format!("the block at {at} as in age {age}"), at, device.peek(at, BLOCK)));
        }
        for (turn, (name, offset, bytes)) in cases.iter().enumerate() {
            if sample.device.peek(*offset, bytes.len()) == *bytes {
                continue;
            }
            watchdog.feed(name.clone());
            let device = sample.damaged(|device| device.corrupt(*offset, bytes));
            let read_only = turn % 8 != 0;
            judge(name, sample.outcome(&device, read_only));
            if !read_only {
                // What was written by the opening above must not have made it worse.
                judge(&format!("{name}, again"), sample.outcome(&device, true));
            }
        }
    }
}

#[test]
fn any_damage_of_one_place_in_a_closed_pools_metadata_is_corrected() {
    let watchdog = Watchdog::new("making a closed pool");
    for way in [Way::Units, Way::Log] {
        let sample = Sample::new(way, End::Closed);
        sample.outcome(&sample.device, true).unwrap();
        damage_everything(&sample, 0..DATA_START, 1, &watchdog, &mut |name, outcome| {
            outcome.unwrap_or_else(|error| panic!("{way:?}, {name}: {error}"));
        });
    }
}

#[test]
fn damage_after_a_power_cut_is_corrected_or_reported() {
    let watchdog = Watchdog::new("making a pool that lost power");
    for way in WAYS {
        let sample = Sample::new(way, End::PowerLost);
        sample.outcome(&sample.device, true).unwrap();
        let mut judge = |name: &str, outcome: Result<(), EngineError>| {
            outcome.unwrap_or_else(|error| panic!("{way:?}, {name}: {error}"));
        };
        damage_everything(&sample, 0..LOG.start, 4, &watchdog, &mut judge);
        damage_everything(&sample, TABLE..DATA_START, 4, &watchdog, &mut judge);
        let mut reported = 0;
        for range in [LOG, DATA_START..POOL_BYTES] {
            damage_everything(&sample, range, 12, &watchdog, &mut |name, outcome| match outcome {
                Ok(()) => {}
                Err(
                    EngineError::OpenLog(OpenError::Damaged { .. })
                    | EngineError::Metadata(MetadataError::MissingUnit { .. })
                    | EngineError::BlockDamaged { .. }
                    | EngineError::Map(_),
                ) => reported += 1,
                // Closing may merge patches, and cannot merge what it cannot read.
                Err(EngineError::Failed { cause }) if matches!(*cause, EngineError::Map(_)) => {
                    reported += 1;
                }
                Err(error) => panic!("{way:?}, {name}: {error}"),
            });
        }
        println!("{way:?}: {reported} reported");
        assert!(reported > 0, "{way:?}: damage reached what is not redundant");
    }
}

#[test]
fn a_lost_newest_checkpoint_is_reported_and_not_replaced_by_the_older_one() {
    for way in WAYS {
        for end in [End::Closed, End::PowerLost] {
            let sample = Sample::new(way, end);
            let copies = newest_checkpoint(&sample.device);
            for read_only in [true, false] {
                let device = sample.damaged(|device| {
                    copies.iter().for_each(|copy| device.flip_bit(copy + 50, 2));
                });
                let error = sample.outcome(&device, read_only).unwrap_err();
                let EngineError::CheckpointRecord(CheckpointError::Lost { first, second, .. }) =
                    error
                else {
                    panic!("{way:?}, {end:?}: {error}")
                };
                assert_eq!([first.offset.0, second.offset.0], copies);
            }
        }
    }
}

#[test]
fn a_lost_newest_log_record_is_reported_if_it_is_needed() {
    let needed = Sample::new(Way::Log, End::PowerLost);
    let at = newest_record(&needed.device);
    for (offset, expected) in [(2, LogDamage::Missing), (900, LogDamage::NotWhole)] {
        let device = needed.damaged(|device| device.flip_bit(at + offset, 1));
        let error = needed.outcome(&device, true).unwrap_err();
        let EngineError::OpenLog(OpenError::Damaged { record, offset, damage }) = error else {
            panic!("{error}")
        };
        assert_eq!((record, offset.0), (number(&needed.device, at), at));
        assert_eq!(damage, expected);
    }

    let closed = Sample::new(Way::Log, End::Closed);
    let at = newest_record(&closed.device);
    let device = closed.damaged(|device| device.flip_bit(at + 10, 1));
    closed.outcome(&device, true).unwrap();
    let report = check(&device);
    let [Repair::LogRecord(OpenError::Damaged { offset, .. })] = &report.repairs[..] else {
        panic!("{:?}", report.repairs)
    };
    assert_eq!(offset.0, at);
    closed.outcome(&device, false).unwrap();
    closed.outcome(&device, false).unwrap();
    assert!(check(&device).repairs.is_empty());
}

#[test]
fn a_lost_newest_write_unit_is_reported_if_it_is_needed() {
    for (way, is_needed) in [(Way::Units, true), (Way::Both, false)] {
        let sample = Sample::new(way, End::PowerLost);
        // Of units, the numbers of headers are those of their changes.
        let newest = (DATA_START..POOL_BYTES).step_by(BLOCK).filter(|&at| {
            sample.device.peek(at + 4, 2) == [4, 0] && number(&sample.device, at) > 0
        });
        let newest = newest.max_by_key(|&at| number(&sample.device, at)).unwrap();
        let start = newest - DATA_START;
        let place = (SegmentId((start / (256 * KIB)) as u32), start % (256 * KIB));
        // Header, summary, and the first frame behind it.
        let length = u32::from_le_bytes(sample.device.peek(newest + 12, 4).try_into().unwrap());
        for offset in [20, 200, u64::from(length) + 100] {
            let device = sample.damaged(|device| device.flip_bit(newest + offset, 1));
            if !is_needed {
                sample.outcome(&device, true).unwrap();
                continue;
            }
            let error = sample.outcome(&device, true).unwrap_err();
            let EngineError::Metadata(MetadataError::MissingUnit { place: found, .. }) = error
            else {
                panic!("{error}")
            };
            assert!(found == Some(place) || place.1 == 0, "{found:?}, not {place:?}");
        }
    }
}

#[test]
fn damaged_copies_are_reported_by_check_and_restored_by_an_opening_for_writing() {
    let sample = Sample::new(Way::Units, End::Closed);
    assert!(check(&sample.device).repairs.is_empty());
    let table = (TABLE..DATA_START).step_by(BLOCK).max_by_key(|&at| number(&sample.device, at));
    let places = [SUPERBLOCKS, MARKS, newest_checkpoint(&sample.device)];
    for place in places.into_iter().flatten().chain(table) {
        for contents in [vec![0x55; 8], vec![0; BLOCK]] {
            let is_mark = MARKS.contains(&place);
            if is_mark && contents.len() == BLOCK {
                // As if it had never been written.
                continue;
            }
            let device = sample.damaged(|device| device.corrupt(place + 16, &contents[..8]));
            if contents.len() == BLOCK {
                device.corrupt(place, &contents);
            }
            let report = check(&device);
            assert!(report.is_sound(), "{:?}", report.findings);
            assert_eq!(report.repairs.len(), 1, "at {place}: {:?}", report.repairs);
            let says = report.repairs[0].to_string();
            assert!(says.contains(&place.to_string()), "at {place}: {says}");
            let kind = match report.repairs[0] {
                Repair::Superblock { .. } => SUPERBLOCKS.contains(&place),
                Repair::Mark(_) => is_mark,
                Repair::Checkpoint(_) => (MIB..LOG.start).contains(&place),
                Repair::Table { .. } => place >= TABLE,
                _ => false,
            };
            assert!(kind, "at {place}: {says}");
            // Two checkpoints and two marks later both places have been written.
            sample.outcome(&device, false).unwrap();
            sample.outcome(&device, false).unwrap();
            let report = check(&device);
            assert!(report.repairs.is_empty(), "at {place}: {:?}", report.repairs);
        }
    }
}

#[test]
fn a_superblock_copy_that_needs_a_newer_program_is_an_error() {
    let sample = Sample::new(Way::Units, End::Closed);
    for at in SUPERBLOCKS {
        // The first byte of the body is the lowest of the incompatible features.
        let mut block = sample.device.peek(at, BLOCK);
        block[40] = 1;
        block[8..12].fill(0);
        let checksum = crc32fast::hash(&block);
        block[8..12].copy_from_slice(&checksum.to_le_bytes());
        let device = sample.damaged(|device| device.corrupt(at, &block));
        for read_only in [true, false] {
            let error = sample.outcome(&device, read_only).unwrap_err();
            assert!(matches!(error, EngineError::NewerVersion { .. }), "{error}");
        }
    }
}

/// A pool closed in order whose last segment holds one write unit: patches refer to it, and only
/// its summary says so in the frontier.
#[test]
fn a_damaged_summary_does_not_free_the_segment_that_it_describes() {
    let device = pools::create();
    let open = || Pool::open_on(device.clone(), None, &options(false, 0)).unwrap();
    let pool = open();
    let disk = pool.create_volume("disk", &VolumeOptions::new(4 << 20)).unwrap();
    let written = bytes_of(&[0x8000_0001; 8 * SECTORS]);
    disk.write_at(0, &written).unwrap();
    drop(disk);
    pool.close().unwrap();
    // The unit: its summary comes first.
    let is_unit = |at: &u64| {
        device.peek(*at, 4) == *b"SLTS" && device.peek(*at, 6)[4] == Kind::WriteUnit as u8
    };
    let units: Vec<u64> = (0..POOL_BYTES).step_by(BLOCK).filter(is_unit).collect();
    assert_eq!(units.len(), 1, "{units:?}");
    device.flip_bit(units[0] + 100, 3);
    for round in 1..6u8 {
        let pool = open();
        let disk = pool.volume("disk").unwrap();
        let mut found = vec![0; written.len()];
        disk.read_at(0, &mut found).unwrap();
        assert!(found == written, "round {round}");
        disk.write_at(u64::from(round) << 19, &vec![round; 300 << 10]).unwrap();
        pool.checkpoint().unwrap();
        drop(disk);
        pool.close().unwrap();
    }
    let report = check(&device);
    assert!(!report.is_sound(), "check names the summary");
    assert_eq!(report.findings.lost_bytes, 0, "and nothing is lost");
}
