//! What is flushed is never lost in silence: any damage of one place in the pool's metadata is
//! corrected, reported by a typed error that names the place, or harmless. Never is something older
//! read in place of what was flushed.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

mod support;

use std::{sync::Arc, thread, time::Duration};

use siltstone_device::{SegmentId, header::Kind, sim::SimDevice};
use siltstone_engine::{
    CheckReport, CreateOptions, EngineError, OpenOptions, Pool, Repair, Tuning, VolumeOptions,
    error::MetadataError,
};
use siltstone_nvram::{CheckpointError, LogDamage, OpenError};
use support::{
    content::{BLOCK, Block, SECTORS, bytes_of},
    watchdog::Watchdog,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 64 * MIB;
const DISK_BLOCKS: u64 = 24;
const SECTOR: u64 = 512;

const SUPERBLOCKS: [u64; 2] = [0, 512 * KIB];
const MARKS: [u64; 2] = [256 * KIB, 768 * KIB];
/// First copies, then second copies, of the slots of even and odd numbers.
const CHECKPOINT_COPIES: [[u64; 2]; 2] = [[MIB, 3 * MIB], [2 * MIB, 4 * MIB]];
const LOG: std::ops::Range<u64> = 5 * MIB..6 * MIB;
/// First copies, then as many second copies.
const TABLE: u64 = 6 * MIB;
const DATA_START: u64 = 6 * MIB + 768 * KIB;

/// How flushes reach the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Log,
    Units,
    /// Through the log, and soon after through units as well.
    Both,
    /// First one, then the other, so that each has something the other has not.
    UnitsThenLog,
    LogThenUnits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    /// Power was lost when the pool had been idle for longer than the mark's delay.
    PowerLost,
}

fn options(read_only: bool, log_commit_bytes: usize) -> OpenOptions {
    let tuning = Tuning {
        reducers: 1,
        staging_bytes: 1 << 20,
        frame_cache_bytes: 64 << 10,
        page_cache_bytes: 64 << 10,
        linger: Duration::from_millis(1),
        checkpoint_interval: Duration::from_secs(3600),
        log_commit_bytes,
        mark_delay: Duration::from_millis(1),
        warm_index: false,
        ..Tuning::default()
    };
    OpenOptions { read_only, tuning }
}

/// A pool, the contents of its disk, and the device as it was at earlier moments.
struct Sample {
    device: Arc<SimDevice>,
    blocks: Vec<Block>,
    earlier: Vec<Arc<SimDevice>>,
}

fn wait_for_mark(pool: &Pool, way: Way) {
    loop {
        let stat = pool.stat().unwrap();
        let is_published = stat.pending_changes == 0 || way == Way::Log;
        if is_published && stat.marked_sequence == stat.durable_sequence {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn content(version: u32, block: u64) -> Block {
    std::array::from_fn(|sector| (version * 10_000 + block as u32 * 8 + sector as u32) | 1 << 24)
}

impl Sample {
    fn new(way: Way, end: End) -> Self {
        let device = SimDevice::new(POOL_BYTES);
        let create = CreateOptions {
            segment_bytes: Some(256 * KIB),
            nvram_bytes: Some(MIB),
            index_memory_bytes: 64 * KIB,
            ..CreateOptions::default()
        };
        Pool::create_on(device.clone(), None, &create).unwrap();
        let pool = Pool::open_on(device.clone(), None, &options(false, 1 << 20)).unwrap();
        let size = VolumeOptions::new(DISK_BLOCKS * BLOCK as u64);
        pool.create_volume("disk", &size).unwrap();
        pool.close().unwrap();

        let mut sample =
            Self { device, blocks: vec![[0; SECTORS]; DISK_BLOCKS as usize], earlier: Vec::new() };
        let ways = match way {
            Way::Log | Way::Units | Way::Both => [way, way],
            Way::UnitsThenLog => [Way::Units, Way::Log],
            Way::LogThenUnits => [Way::Log, Way::Units],
        };
        // An age that checkpoints cover, then one that is only flushed: in two processes, for what
        // is logged and what is not is the process's to choose.
        sample.live(ways[0], 1, true, End::Closed);
        sample.live(ways[0], 3, false, End::PowerLost);
        sample.live(ways[1], 5, false, end);
        sample
    }

    /// Opens the pool, writes and flushes two versions, and closes it or cuts the power.
    fn live(&mut self, way: Way, version: u32, checkpoint: bool, end: End) {
        let mut options = options(false, if way == Way::Units { 0 } else { 1 << 20 });
        if way == Way::Log {
            // Not in units by themselves.
            options.tuning.linger = Duration::from_secs(3600);
        }
        let pool = Pool::open_on(self.device.clone(), None, &options).unwrap();
        let disk = pool.volume("disk").unwrap();
        for version in version..version + 2 {
            for block in (0..DISK_BLOCKS).filter(|block| block % 5 != u64::from(version) % 5) {
                let contents = content(version, block);
                disk.write_at(block * BLOCK as u64, &bytes_of(&contents)).unwrap();
                self.blocks[block as usize] = contents;
            }
            disk.flush().unwrap();
            self.earlier.push(self.device.snapshot());
            if checkpoint {
                pool.checkpoint().unwrap();
            }
        }
        wait_for_mark(&pool, way);
        match end {
            End::Closed => {
                pool.close().unwrap();
                self.device = self.device.snapshot();
            }
            End::PowerLost => {
                let lost = self.device.snapshot();
                self.device.cut_power();
                drop(pool);
                self.device = lost;
            }
        }
    }

    /// Blocks of a range of the device that are not empty.
    fn used(&self, range: std::ops::Range<u64>) -> Vec<u64> {
        let used = |at: &u64| self.device.peek(*at, BLOCK).iter().any(|&byte| byte != 0);
        range.step_by(BLOCK).filter(used).collect()
    }

    /// What becomes of the pool's opening and reading after some damage.
    fn outcome(&self, device: &Arc<SimDevice>, read_only: bool) -> Result<(), EngineError> {
        let pool = Pool::open_on(device.clone(), None, &options(read_only, 1 << 20))?;
        let disk = pool.volume("disk")?;
        let mut found = vec![0; BLOCK];
        for (block, expected) in (0..).zip(&self.blocks) {
            disk.read_at(block * BLOCK as u64, &mut found)?;
            if found != bytes_of(expected) {
                let found = support::content::tags_of(&found);
                panic!("block {block} reads {found:?}, not {expected:?}");
            }
        }
        if read_only { Ok(()) } else { pool.close() }
    }

    fn damaged(&self, damage: impl FnOnce(&SimDevice)) -> Arc<SimDevice> {
        let device = self.device.snapshot();
        damage(&device);
        device
    }
}

fn check(device: &Arc<SimDevice>) -> CheckReport {
    let pool = Pool::open_on(device.clone(), None, &options(true, 0)).unwrap();
    pool.check(&mut |_| {}).unwrap()
}

/// The number of the structure at `at`.
fn number(device: &SimDevice, at: u64) -> u64 {
    let header = device.peek(at, 40);
    if header[..4] != *b"SLTS" {
        return 0;
    }
    u64::from_le_bytes(header[32..40].try_into().unwrap())
}

fn newest_checkpoint(device: &SimDevice) -> [u64; 2] {
    CHECKPOINT_COPIES.into_iter().max_by_key(|slot| number(device, slot[0])).unwrap()
}

fn newest_record(device: &SimDevice) -> u64 {
    LOG.step_by(BLOCK).max_by_key(|&at| number(device, at)).unwrap()
}

const WAYS: [Way; 5] = [Way::Log, Way::Units, Way::Both, Way::UnitsThenLog, Way::LogThenUnits];

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
        for offset in [20, 200, 5000] {
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
    let device = SimDevice::new(POOL_BYTES);
    let create = CreateOptions { segment_bytes: Some(256 << 10), ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &create).unwrap();
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
