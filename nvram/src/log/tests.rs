use std::{
    future::Future,
    pin::pin,
    task::{Context, Waker},
};

use siltstone_device::{
    ByteOffset, Operation, SeededRandom,
    sim::{Cause, CompletionMode, CrashPolicy, Fault, SimDevice, Times},
};

use super::*;
use crate::testing::{IDENTITY, OwnedChange, append, block_on, region, replay_all};

mod crash;

const DEVICE_BYTES: u64 = 32 << 20;

fn open(device: &Arc<SimDevice>, region: Region) -> Result<(Log, Replay), OpenError> {
    block_on(Log::open(device.clone(), region, IDENTITY))
}

fn formatted(blocks: u64) -> (Arc<SimDevice>, Region) {
    let device = SimDevice::new(DEVICE_BYTES);
    let region = region(1 << 20, blocks);
    block_on(Log::format(device.clone(), region, IDENTITY)).unwrap();
    (device, region)
}

fn change(sequence: u64, blocks: u64) -> OwnedChange {
    let data = vec![sequence as u8; blocks as usize * BLOCK_BYTES];
    OwnedChange {
        layer: 1,
        address: sequence,
        len_blocks: blocks as u32,
        sequence,
        data: Some(data),
    }
}

#[test]
fn a_formatted_log_is_empty_and_its_blocks_are_written() {
    let device = SimDevice::new(DEVICE_BYTES);
    let region = region(1 << 20, 300);
    device.corrupt(0, &vec![0xee; DEVICE_BYTES as usize]);
    block_on(Log::format(device.clone(), region, IDENTITY)).unwrap();
    let end = region.offset.0 + region.len_bytes;
    assert_eq!(device.peek(region.offset.0 - 1, 1), [0xee]);
    assert_eq!(device.peek(end, 1), [0xee]);
    assert!(
        device
            .peek(region.offset.0 + BLOCK, (region.len_bytes - BLOCK) as usize)
            .iter()
            .all(|&b| b == 0)
    );
    let (log, replay) = open(&device, region).unwrap();
    assert_eq!((replay.records_left(), replay.torn_tail()), (0, None));
    assert_eq!(log.capacity_bytes(), region.len_bytes);
    assert!(replay_all(replay).is_empty());
}

/// A format cut short leaves no log rather than an empty one with old records in it.
#[test]
fn a_format_cut_at_any_event_leaves_a_log_or_none() {
    let (device, region) = formatted(40);
    let (log, _) = open(&device, region).unwrap();
    append(&log, &[change(1, 1)]).unwrap();
    device.forget_history();
    let other = LogIdentity { first: 1, second: 2 };
    block_on(Log::format(device.clone(), region, other)).unwrap();
    let mut random = SeededRandom::new(1);
    for event in 0..=device.history_len() {
        let crashed = device.crash_at(event, &mut random);
        match block_on(Log::open(crashed, region, other)) {
            Ok((_, replay)) => assert_eq!(replay.records_left(), 0),
            Err(error) => {
                assert!(matches!(error, OpenError::NoRecord { .. }), "{error}");
                assert!(event < device.history_len());
            }
        }
    }
}

#[test]
fn a_region_that_does_not_fit_is_refused() {
    let device = SimDevice::new(1 << 20);
    let bad = [
        region(0, 3),
        region(1 << 20, 8),
        region(100, 8),
        region(u64::MAX - 4095, 8),
        Region { offset: ByteOffset(0), len_bytes: 40_000 },
    ];
    for region in bad {
        let error = block_on(Log::format(device.clone(), region, IDENTITY)).unwrap_err();
        assert!(matches!(error, OpenError::Region { .. }), "{error}");
    }
}

/// A wiped or foreign device is an error: acknowledged data may have been on the right one.
#[test]
fn a_log_that_is_not_there_is_an_error() {
    let (device, region) = formatted(16);
    let other = LogIdentity { second: 1, ..IDENTITY };
    let error = block_on(Log::open(device, region, other)).err().unwrap();
    assert!(matches!(error, OpenError::NoRecord { .. }));
    let error = open(&SimDevice::new(DEVICE_BYTES), region).err().unwrap();
    assert!(matches!(error, OpenError::NoRecord { .. }));
}

#[test]
fn a_full_log_writes_nothing_until_it_is_trimmed() {
    let (device, region) = formatted(16);
    let (log, _) = open(&device, region).unwrap();
    let mut sequence = 1;
    while append(&log, &[change(sequence, 2)]).is_ok() {
        sequence += 1;
    }
    let writes = device.counters().writes;
    let error = append(&log, &[change(sequence, 2)]).unwrap_err();
    let LogError::Full { needed_bytes, free_bytes } = error else { panic!("{error}") };
    assert_eq!(needed_bytes, record_bytes_for(1, 2 * BLOCK));
    assert!(free_bytes < needed_bytes && free_bytes == log.free_bytes());
    assert_eq!(device.counters().writes, writes);
    assert_eq!(log.stats().full_events, 2);

    log.trim(Sequence(sequence - 1));
    let largest = log.max_record_bytes() / BLOCK - 1;
    append(&log, &[change(sequence, largest)]).unwrap();
    assert_eq!(log.stats().markers, 1);
    let error = append(&log, &[change(sequence, largest + 1)]).unwrap_err();
    assert!(matches!(error, LogError::TooLarge { .. }), "{error}");
    let (_, replay) = open(&device, region).unwrap();
    assert_eq!(replay.trimmed_up_to(), Sequence(sequence - 1));
    assert_eq!(replay_all(replay), [[change(sequence, largest)]]);
}

#[test]
fn a_persisted_trim_leaves_nothing_to_replay() {
    let (device, region) = formatted(16);
    let (log, _) = open(&device, region).unwrap();
    append(&log, &[change(1, 1), change(2, 1)]).unwrap();
    log.trim(Sequence(2));
    assert_eq!(open(&device, region).unwrap().1.records_left(), 1);
    block_on(log.persist_trim()).unwrap();
    block_on(log.persist_trim()).unwrap();
    assert_eq!(log.stats().markers, 1);
    let (_, replay) = open(&device, region).unwrap();
    assert_eq!((replay.records_left(), replay.trimmed_up_to()), (0, Sequence(2)));
}

/// A record of one write and nothing else: what a small synchronous write costs.
#[test]
fn an_append_is_one_immediate_write() {
    let (device, region) = formatted(16);
    let (log, _) = open(&device, region).unwrap();
    let before = device.counters();
    append(&log, &[change(1, 1)]).unwrap();
    let after = device.counters();
    assert_eq!((after.writes - before.writes, after.flushes), (1, before.flushes));
    assert_eq!(after.written_bytes - before.written_bytes, 8192);
    assert_eq!(log.stats(), LogStats { records: 1, bytes: 8192, ..LogStats::default() });
    let crashed =
        device.crash_with(device.history_len(), CrashPolicy::LoseAll, &mut SeededRandom::new(0));
    assert_eq!(replay_all(open(&crashed, region).unwrap().1), [[change(1, 1)]]);
}

fn fail_writes(device: &SimDevice, times: Times) {
    device.inject(Fault {
        operation: Operation::Write,
        range_bytes: 0..u64::MAX,
        times,
        cause: Cause::Kind(std::io::ErrorKind::Other),
    });
}

#[test]
fn a_failed_write_is_final() {
    let (device, region) = formatted(16);
    let (log, _) = open(&device, region).unwrap();
    append(&log, &[change(1, 1)]).unwrap();
    fail_writes(&device, Times::Count(1));
    log.trim(Sequence(1));
    for _ in 0..2 {
        let error = append(&log, &[change(2, 1)]).unwrap_err();
        assert!(matches!(error, LogError::Failed { record: 3, .. }), "{error}");
        let error = block_on(log.persist_trim()).unwrap_err();
        assert!(matches!(error, LogError::Failed { record: 3, .. }), "{error}");
    }
    let (log, replay) = open(&device, region).unwrap();
    assert_eq!(replay_all(replay), [[change(1, 1)]]);
    append(&log, &[change(2, 1)]).unwrap();
}

#[test]
fn a_device_that_fails_is_named_when_opening() {
    let (device, region) = formatted(16);
    for (operation, times) in
        [(Operation::Read, Times::Always), (Operation::Flush, Times::Count(1))]
    {
        device.inject(Fault {
            operation,
            range_bytes: 0..u64::MAX,
            times,
            cause: Cause::Kind(std::io::ErrorKind::Other),
        });
        let error = open(&device, region).err().unwrap();
        assert!(matches!(error, OpenError::Device(_)), "{error}");
        device.clear_faults();
    }
    open(&device, region).unwrap();
}

/// Blocks that cannot be read are like blocks that hold something else, and are told.
#[test]
fn a_block_that_cannot_be_read_costs_what_is_in_it() {
    let (device, region) = formatted(32);
    let (log, _) = open(&device, region).unwrap();
    for sequence in 1..=5 {
        append(&log, &[change(sequence, 1)]).unwrap();
        log.trim(Sequence(u64::from(sequence >= 4)));
    }
    let newest = log.newest_record();
    assert_eq!(newest, 6);
    // Record 1 at block 0, records 2..=6 at blocks 1, 3, 5, 7, 9; 3..=6 are live.
    for block in 0..32 {
        let damaged = device.snapshot();
        let offset = region.offset.plus(block * BLOCK);
        damaged.fail_reads(offset.0..offset.0 + 1);
        let record = if block < 11 { block.div_ceil(2) + 1 } else { 0 };
        let is_damage = |error: &OpenError| {
            let OpenError::Damaged { record: named, offset: at, damage } = error else {
                return false;
            };
            let start = region.offset.plus((2 * record - 3) * BLOCK);
            *named == record && *at == start && matches!(damage, LogDamage::Unreadable { .. })
        };
        let (mut log, replay) = match open(&damaged, region) {
            Ok(opened) => opened,
            Err(error) => {
                assert!((3..6).contains(&record) && is_damage(&error), "block {block}: {error}");
                continue;
            }
        };
        assert!(!(3..6).contains(&record), "block {block}");
        let [Unreadable { offset: at, len_bytes, .. }] = log.unreadable() else { panic!() };
        assert_eq!((*at, *len_bytes), (offset, BLOCK));
        assert_eq!(replay.records_left(), 4);
        let lost = replay.lost_record(newest);
        assert_eq!(lost.is_some(), record == 6);
        assert!(lost.is_none_or(|error| is_damage(&error)), "block {block}");
        // What was ignored is not found again, though the block can be read again.
        damaged.clear_faults();
        let (found, _) = open(&damaged, region).unwrap();
        assert_eq!(found.newest_record(), newest);
        block_on(log.clear_unreadable()).unwrap();
        assert!(log.unreadable().is_empty());
        let (found, _) = open(&damaged, region).unwrap();
        assert_eq!(found.newest_record(), if record == 6 { newest - 1 } else { newest });
        append(&log, &[change(9, 1)]).unwrap();
        let (_, replay) = open(&damaged, region).unwrap();
        assert_eq!(replay_all(replay).last(), Some(&vec![change(9, 1)]));
    }
}

/// Damage to what was acknowledged is an error that names record and place; damage to the newest
/// record looks torn and is reported; damage to the dead is none.
#[test]
fn damage_in_the_chain_is_named() {
    let (device, region) = formatted(32);
    let (log, _) = open(&device, region).unwrap();
    for sequence in 1..=5 {
        append(&log, &[change(sequence, 1)]).unwrap();
        log.trim(Sequence(u64::from(sequence >= 4)));
    }
    // Records 2..=6 at blocks 1, 3, 5, 7, 9; 3..=6 are live.
    for (record, block) in [(2, 1), (3, 3), (4, 5), (5, 7), (6, 9)] {
        for byte in [0, 50, 5000] {
            let damaged = device.snapshot();
            damaged.flip_bit(region.offset.0 + block * BLOCK + byte, 3);
            match (record, open(&damaged, region)) {
                (2, Ok((_, replay))) => assert_eq!(replay.records_left(), 4),
                (6, Ok((_, replay))) => {
                    assert_eq!(replay.torn_tail().is_some(), byte == 5000);
                    // Record 5 was written before the trim: it calls record 2 live.
                    assert_eq!(replay.records_left(), 4);
                }
                (_, Err(OpenError::Damaged { record: named, offset, damage })) => {
                    assert_eq!(named, record);
                    assert_eq!(offset, region.offset.plus(block * BLOCK));
                    let head_is_broken = byte < 104;
                    let expected =
                        if head_is_broken { LogDamage::Missing } else { LogDamage::NotWhole };
                    assert_eq!(damage, expected);
                }
                (_, other) => panic!("record {record}: {:?}", other.err()),
            }
        }
    }
}

/// The log counts what it read as durable, and so must the medium: a process dies after its write
/// reached a volatile cache, the next one opens, appends, and only then the power goes.
#[test]
fn what_was_replayed_survives_the_next_power_cut() {
    let (device, region) = formatted(16);
    let label = RecordLabel {
        number: 2,
        address: region.offset.plus(BLOCK),
        trimmed: Sequence(0),
        oldest_live: 2,
        oldest_live_address: region.offset.plus(BLOCK),
    };
    let first = change(1, 1);
    let record = record::encode(&BufferPool::new(0), &IDENTITY, &label, &[first.borrow()]);
    block_on(request::write(&*device, label.address, record, Durability::Flush)).unwrap();
    let (log, replay) = open(&device, region).unwrap();
    assert_eq!(replay.records_left(), 1);
    append(&log, &[change(2, 1)]).unwrap();
    let crashed =
        device.crash_with(device.history_len(), CrashPolicy::LoseAll, &mut SeededRandom::new(0));
    assert_eq!(replay_all(open(&crashed, region).unwrap().1), [[first], [change(2, 1)]]);
}

/// A check sees each change's data as it stands in the record; what it refuses leaves no trace, and
/// the log goes on.
#[test]
fn what_its_check_refuses_is_not_logged() {
    let (device, region) = formatted(64);
    let (log, _) = open(&device, region).unwrap();
    let zero = OwnedChange { data: None, ..change(2, 3) };
    let owned = [change(1, 2), zero, change(3, 1), change(4, 1)];
    let changes: Vec<_> = owned.iter().map(OwnedChange::borrow).collect();
    let history = device.history_len();
    for refused in [0, 2, 3] {
        let outcome = block_on(log.append_checked(&changes, |at, _| at != refused));
        let expected = changes[refused].sequence;
        assert!(
            matches!(outcome, Err(LogError::Refused { sequence }) if sequence == expected),
            "{outcome:?}"
        );
    }
    assert_eq!(device.history_len(), history, "nothing was written");
    let is_its_own = |at: usize, data: &[u8]| owned[at].data.as_deref() == Some(data);
    block_on(log.append_checked(&changes, is_its_own)).unwrap();
    assert_eq!(replay_all(open(&device, region).unwrap().1), [owned.to_vec()]);
}

/// Dropping an append's future neither stops the log nor lets a second write overtake the first.
#[test]
fn a_dropped_append_is_finished_and_counted() {
    for seed in 0..20 {
        let (device, region) = formatted(64);
        let (log, _) = open(&device, region).unwrap();
        device.set_completion_mode(CompletionMode::Shuffled { seed });
        for sequence in 1..10 {
            let dropped = change(sequence, 1);
            let changes = [dropped.borrow()];
            let mut future = pin!(log.append(&changes));
            let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
        append(&log, &[change(20, 1)]).unwrap();
        device.set_completion_mode(CompletionMode::Inline);
        let replayed = replay_all(open(&device, region).unwrap().1);
        assert_eq!(replayed.last().unwrap(), &[change(20, 1)]);
        assert_eq!(replayed.len() as u64, log.stats().records);
    }
}

/// Appends from many threads, on a device that completes when it likes, are all there.
#[test]
fn concurrent_appends_are_all_replayed() {
    const THREADS: u64 = 4;
    const APPENDS: u64 = 50;
    let (device, region) = formatted(4 * THREADS * APPENDS);
    let (log, _) = open(&device, region).unwrap();
    device.set_completion_mode(CompletionMode::Shuffled { seed: 5 });
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let log = &log;
            scope.spawn(move || {
                for index in 0..APPENDS {
                    append(log, &[change(1 + thread * APPENDS + index, 1)]).unwrap();
                }
            });
        }
    });
    drop(log);
    device.set_completion_mode(CompletionMode::Inline);
    let mut replayed = replay_all(open(&device, region).unwrap().1).concat();
    replayed.sort_by_key(|change| change.sequence);
    assert!(replayed.iter().eq(&(1..=THREADS * APPENDS).map(|s| change(s, 1)).collect::<Vec<_>>()));
}

/// Records larger than one read, in a region larger than the read-ahead, wrapping.
#[test]
fn large_records_are_read_back_over_many_reads() {
    let (device, region) = formatted(5000);
    let (log, _) = open(&device, region).unwrap();
    let mut random = SeededRandom::new(3);
    let mut live = VecDeque::new();
    for sequence in 1..60 {
        let record = vec![OwnedChange::random(&mut random, sequence, 1000)];
        while append(&log, &record).is_err() {
            let oldest: Vec<OwnedChange> = live.pop_front().unwrap();
            log.trim(Sequence(oldest[0].sequence));
        }
        live.push_back(record);
    }
    let (_, replay) = open(&device, region).unwrap();
    assert!(replay_all(replay).ends_with(live.make_contiguous()));
}

#[test]
fn futures_may_move_between_threads() {
    fn assert_send<T: Send>(_: &T) {}
    let (device, region) = formatted(16);
    let opening = Log::open(device.clone(), region, IDENTITY);
    assert_send(&opening);
    let (log, mut replay) = block_on(opening).unwrap();
    assert_send(&log.append(&[]));
    assert_send(&replay.next_record());
    assert_send(&Log::format(device, region, IDENTITY));
}

/// Records forged with full knowledge of the nonces give an error or a log that works; never a
/// panic, and never a replay that fails to end.
#[test]
fn a_hostile_ring_does_no_harm() {
    const BLOCKS: u64 = 12;
    let mut random = SeededRandom::new(11);
    let mut opened = 0;
    for _ in 0..3000 {
        let (device, region) = (SimDevice::new(1 << 20), region(0, BLOCKS));
        let mut at = random.below(3);
        let mut number = random.below(4) + 1;
        while at < BLOCKS {
            let oldest_live = number - random.below(3).min(number - 1);
            let label = RecordLabel {
                number: if random.chance(1, 20) { u64::MAX >> 1 } else { number },
                address: region.offset.plus(at * BLOCK),
                trimmed: Sequence(random.below(20)),
                oldest_live,
                oldest_live_address: region.offset.plus(random.below(BLOCKS) * BLOCK),
            };
            let changes = [OwnedChange::random(&mut random, number * 2, 3)];
            let changes = changes.each_ref().map(OwnedChange::borrow);
            let record = record::encode(&BufferPool::new(0), &IDENTITY, &label, &changes);
            let len = record.len() as u64 / BLOCK;
            if at + len <= BLOCKS {
                device.corrupt(label.address.0, &record);
            }
            at += if random.chance(7, 8) { len } else { random.below(4) + 1 };
            number += if random.chance(7, 8) { 1 } else { random.below(3) };
        }
        let Ok((log, mut replay)) = open(&device, region) else { continue };
        opened += 1;
        let mut records = 0;
        while let Ok(Some(record)) = block_on(replay.next_record()) {
            assert!(record.changes().count() <= 1);
            records += 1;
        }
        assert!(records <= BLOCKS);
        for sequence in 100..110 {
            let _ = append(&log, &[change(sequence, 1)]);
            log.trim(Sequence(sequence - random.below(3)));
            block_on(log.persist_trim()).unwrap();
        }
    }
    assert!(opened > 100, "only {opened} were opened");
}

/// The newest record, damaged in any way, is missed by who knows that it was durable.
#[test]
fn a_lost_newest_record_that_was_durable_is_named() {
    let (device, region) = formatted(40);
    let (log, _) = open(&device, region).unwrap();
    for sequence in 1..=3 {
        append(&log, &[change(sequence, 2)]).unwrap();
    }
    let newest = log.newest_record();
    assert_eq!(newest, 4);
    let (_, replay) = open(&device, region).unwrap();
    assert!(replay.lost_record(newest).is_none());
    // After a first record of one block, records of three.
    let start = region.offset.0 + 7 * BLOCK;
    for at in (0..3 * BLOCK).step_by(97) {
        let damaged = device.snapshot();
        damaged.flip_bit(start + at, 5);
        let (_, replay) = open(&damaged, region).unwrap();
        if replay.lost_record(newest).is_none() {
            assert_eq!(replay_all(replay).len(), 3, "byte {at} is under no checksum");
            continue;
        }
        let Some(OpenError::Damaged { record, offset, .. }) = replay.lost_record(newest) else {
            panic!("byte {at}")
        };
        assert_eq!((record, offset.0), (newest, start), "byte {at}");
        assert!(replay.lost_record(newest - 1).is_none());
    }
}

/// A newer program's record is not overwritten; a flipped version is damage like any other.
#[test]
fn a_record_of_a_newer_version_is_an_error_only_if_it_is_whole() {
    let (device, region) = formatted(40);
    let start = region.offset.0;
    let damaged = device.snapshot();
    damaged.flip_bit(start + 6, 6);
    assert!(matches!(open(&damaged, region), Err(OpenError::NoRecord { .. })));
    let mut bytes = device.peek(start, BLOCK_BYTES);
    bytes[6] = 9;
    bytes[8..12].fill(0);
    let checksum = crc32fast::hash(&bytes);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    device.corrupt(start, &bytes);
    assert!(matches!(open(&device, region), Err(OpenError::Version { found: 9, .. })));
}
