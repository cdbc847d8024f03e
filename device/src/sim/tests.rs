//! What the simulated power cut may and may not do.

use std::{collections::HashSet, io, sync::Arc};

use pollster::block_on;
use proptest::prelude::*;

use super::*;
use crate::{
    AlignedBuffer, ByteOffset, Durability,
    request::{discard, flush, read, write},
};

mod digest;
mod faults;
mod silent;

const BLOCK: u64 = BLOCK_BYTES as u64;
const SIZE_BYTES: u64 = 64 * BLOCK;

fn put(device: &SimDevice, block: u64, byte: u8, durability: Durability) {
    let buffer = AlignedBuffer::from_bytes(&[byte; BLOCK_BYTES]);
    block_on(write(device, ByteOffset(block * BLOCK), buffer, durability)).unwrap();
}

fn block(device: &SimDevice, block: u64) -> Vec<u8> {
    device.peek(block * BLOCK, BLOCK_BYTES)
}

/// The block's byte if it is the same everywhere, else `None`.
fn uniform(bytes: &[u8]) -> Option<u8> {
    bytes.iter().all(|&byte| byte == bytes[0]).then_some(bytes[0])
}

/// A flush whose submission and completion events a test places by hand.
fn held_flush(device: &SimDevice) -> Underway {
    device.start(Request::Flush { completion: Box::new(|outcome| outcome.unwrap()) }).unwrap()
}

fn held_write(device: &SimDevice, block: u64, byte: u8, durability: Durability) -> Underway {
    let request = Request::Write {
        offset: ByteOffset(block * BLOCK),
        buffer: AlignedBuffer::from_bytes(&[byte; BLOCK_BYTES]),
        durability,
        completion: Box::new(|_, outcome| outcome.unwrap()),
    };
    device.start(request).unwrap()
}

#[test]
fn an_unflushed_write_is_kept_lost_or_torn_at_sectors() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 3, 7, Durability::Flush);
    let mut random = SeededRandom::new(1);
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for _ in 0..300 {
        let crashed = block(&device.crash_at(device.history_len(), &mut random), 3);
        for sector in crashed.chunks(SECTOR_BYTES) {
            assert!(uniform(sector).is_some(), "a sector is never divided");
        }
        match uniform(&crashed) {
            Some(7) => kept += 1,
            Some(0) => lost += 1,
            Some(other) => panic!("{other} was never written"),
            None => torn += 1,
        }
    }
    assert!(kept > 30 && lost > 30 && torn > 30, "{kept} {lost} {torn}");
    let end = device.history_len();
    let at = |policy, random: &mut _| block(&device.crash_with(end, policy, random), 3);
    assert_eq!(uniform(&at(CrashPolicy::LoseAll, &mut random)), Some(0));
    assert_eq!(uniform(&at(CrashPolicy::KeepAll, &mut random)), Some(7));
}

#[test]
fn a_flushed_write_is_never_lost_and_not_before_its_flush_completes() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 3, 7, Durability::Flush);
    block_on(flush(&*device)).unwrap();
    let end = device.history_len();
    assert_eq!(end, 4);
    let mut random = SeededRandom::new(1);
    for _ in 0..50 {
        assert_eq!(uniform(&block(&device.crash_at(end, &mut random), 3)), Some(7));
    }
    let lose = |event, random: &mut _| device.crash_with(event, CrashPolicy::LoseAll, random);
    assert_eq!(uniform(&block(&lose(end, &mut random), 3)), Some(7));
    assert_eq!(uniform(&block(&lose(end - 1, &mut random), 3)), Some(0));
}

#[test]
fn an_immediate_write_is_durable_at_completion_and_covers_no_other() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Flush);
    put(&device, 2, 6, Durability::Immediate);
    let mut random = SeededRandom::new(1);
    let crashed = device.crash_with(device.history_len(), CrashPolicy::LoseAll, &mut random);
    assert_eq!(uniform(&block(&crashed, 1)), Some(0));
    assert_eq!(uniform(&block(&crashed, 2)), Some(6));
    let before = device.crash_with(device.history_len() - 1, CrashPolicy::LoseAll, &mut random);
    assert_eq!(uniform(&block(&before, 2)), Some(0));
}

#[test]
fn a_flush_submitted_before_a_write_completed_does_not_cover_it() {
    let device = SimDevice::new(SIZE_BYTES);
    let written = held_write(&device, 1, 5, Durability::Flush);
    let flushed = held_flush(&device);
    device.medium.complete(written);
    device.medium.complete(flushed);
    let mut random = SeededRandom::new(1);
    let end = device.history_len();
    let crashed = device.crash_with(end, CrashPolicy::LoseAll, &mut random);
    assert_eq!(uniform(&block(&crashed, 1)), Some(0));
    block_on(flush(&*device)).unwrap();
    let end = device.history_len();
    let crashed = device.crash_with(end, CrashPolicy::LoseAll, &mut random);
    assert_eq!(uniform(&block(&crashed, 1)), Some(5));
}

#[test]
fn a_failed_flush_guarantees_nothing_and_nor_does_the_next() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Flush);
    let cause = Cause::Errno(libc::EIO);
    let (operation, times) = (Operation::Flush, Times::Count(1));
    device.inject(Fault { operation, range_bytes: 0..0, times, cause });
    block_on(flush(&*device)).unwrap_err();
    put(&device, 2, 6, Durability::Flush);
    block_on(flush(&*device)).unwrap();
    let mut random = SeededRandom::new(1);
    let crashed = device.crash_with(device.history_len(), CrashPolicy::LoseAll, &mut random);
    assert_eq!(uniform(&block(&crashed, 1)), Some(0));
    assert_eq!(uniform(&block(&crashed, 2)), Some(6));
}

#[test]
fn a_durable_overwrite_is_not_undone_by_an_older_unflushed_write() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Flush);
    put(&device, 1, 6, Durability::Immediate);
    let mut random = SeededRandom::new(1);
    for _ in 0..100 {
        let crashed = device.crash_at(device.history_len(), &mut random);
        assert_eq!(uniform(&block(&crashed, 1)), Some(6));
    }
}

#[test]
fn writes_under_way_together_land_in_any_order() {
    let device = SimDevice::new(SIZE_BYTES);
    let _first = held_write(&device, 1, 5, Durability::Flush);
    let _second = held_write(&device, 1, 6, Durability::Flush);
    let mut random = SeededRandom::new(1);
    let end = device.history_len();
    let outcomes: HashSet<_> = (0..200)
        .map(|_| block(&device.crash_with(end, CrashPolicy::KeepAll, &mut random), 1))
        .map(|bytes| uniform(&bytes))
        .collect();
    assert!(outcomes.contains(&Some(5)) && outcomes.contains(&Some(6)), "{outcomes:?}");
}

#[test]
fn a_discard_is_durable_only_with_a_flush() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Immediate);
    block_on(discard(&*device, ByteOffset(BLOCK), BLOCK)).unwrap();
    assert_eq!(uniform(&block(&device, 1)), Some(0));
    let mut random = SeededRandom::new(1);
    let lose = |random: &mut _| {
        let crashed = device.crash_with(device.history_len(), CrashPolicy::LoseAll, random);
        uniform(&block(&crashed, 1))
    };
    assert_eq!(lose(&mut random), Some(5));
    block_on(flush(&*device)).unwrap();
    assert_eq!(lose(&mut random), Some(0));
}

#[test]
fn a_hook_sees_changes_fails_them_and_cuts_the_power() {
    let device = SimDevice::new(SIZE_BYTES);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    device.set_hook(Box::new(move |event| {
        log.lock().push(*event);
        match log.lock().len() {
            2 => Verdict::Fail(io::ErrorKind::StorageFull),
            4 => Verdict::PowerCut,
            _ => Verdict::Proceed,
        }
    }));
    put(&device, 1, 5, Durability::Immediate);
    let failing = || AlignedBuffer::from_bytes(&[6; BLOCK_BYTES]);
    let attempt = |block: u64| {
        block_on(write(&*device, ByteOffset(block * BLOCK), failing(), Durability::Flush))
    };
    let error = attempt(1).unwrap_err();
    let DeviceError::Io { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(uniform(&block(&device, 1)), Some(5), "a failed write changes nothing");
    block_on(flush(&*device)).unwrap();
    assert!(matches!(attempt(2).unwrap_err(), DeviceError::Closed { .. }));
    assert!(matches!(block_on(flush(&*device)).unwrap_err(), DeviceError::Closed { .. }));
    let buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
    let outcome = block_on(read(&*device, ByteOffset(0), buffer));
    assert!(matches!(outcome.unwrap_err(), DeviceError::Closed { .. }));

    let seen = seen.lock();
    assert_eq!(seen.len(), 4, "nothing is shown after the power is gone");
    let first = Event {
        index: 0,
        operation: Operation::Write,
        offset_bytes: BLOCK,
        len_bytes: BLOCK,
        durability: Durability::Immediate,
    };
    assert_eq!(seen[0], first);
    assert_eq!(seen[2].operation, Operation::Flush);
    // The write that the cut caught under way may be there, or not.
    let mut random = SeededRandom::new(1);
    let end = device.history_len();
    let keep = device.crash_with(end, CrashPolicy::KeepAll, &mut random);
    let lose = device.crash_with(end, CrashPolicy::LoseAll, &mut random);
    assert_eq!((uniform(&block(&keep, 2)), uniform(&block(&lose, 2))), (Some(6), Some(0)));
    put(&keep, 0, 1, Durability::Flush);
}

#[test]
fn faults_strike_their_range_as_often_as_told() {
    let device = SimDevice::new(SIZE_BYTES);
    let attempt = |block: u64| {
        let buffer = AlignedBuffer::zeroed(2 * BLOCK_BYTES);
        block_on(read(&*device, ByteOffset(block * BLOCK), buffer)).map(drop)
    };
    let range_bytes = 4 * BLOCK..5 * BLOCK;
    let (operation, cause) = (Operation::Read, Cause::Kind(io::ErrorKind::TimedOut));
    let times = Times::Count(2);
    device.inject(Fault { operation, range_bytes: range_bytes.clone(), times, cause });
    attempt(2).unwrap();
    attempt(5).unwrap();
    attempt(3).unwrap_err();
    attempt(4).unwrap_err();
    attempt(4).unwrap();
    device.inject(Fault { operation, range_bytes, times: Times::Always, cause });
    assert!((0..10).all(|_| attempt(4).is_err()));
    put(&device, 4, 1, Durability::Flush);
    device.clear_faults();
    attempt(4).unwrap();
}

#[test]
fn damage_is_read_and_survives_a_crash() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 0xf0, Durability::Immediate);
    device.flip_bit(BLOCK + 10, 0);
    device.corrupt(2 * BLOCK - 2, &[1, 2, 3]);
    let mut random = SeededRandom::new(1);
    for image in [device.snapshot(), device.crash_at(device.history_len(), &mut random)] {
        assert_eq!(image.peek(BLOCK + 9, 3), [0xf0, 0xf1, 0xf0]);
        assert_eq!(image.peek(2 * BLOCK - 3, 5), [0xf0, 1, 2, 3, 0]);
    }
}

#[test]
fn a_huge_device_takes_memory_only_for_what_is_written() {
    let size_bytes = 100 << 40;
    let device = SimDevice::new(size_bytes);
    let last = size_bytes / BLOCK - 1;
    put(&device, last, 9, Durability::Immediate);
    let mut random = SeededRandom::new(1);
    let crashed = device.crash_at(device.history_len(), &mut random);
    assert_eq!(crashed.size_bytes(), size_bytes);
    assert_eq!(uniform(&block(&crashed, last)), Some(9));
    block_on(discard(&*device, ByteOffset(last * BLOCK), BLOCK)).unwrap();
}

#[test]
fn forgetting_the_history_keeps_the_contents() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Flush);
    device.forget_history();
    assert_eq!(device.history_len(), 0);
    let mut random = SeededRandom::new(1);
    let crashed = device.crash_with(0, CrashPolicy::LoseAll, &mut random);
    assert_eq!(uniform(&block(&crashed, 1)), Some(5));
    assert_eq!(device.counters().writes, 1);
}

#[test]
fn a_shuffled_device_completes_out_of_order() {
    let device = SimDevice::shuffled(SIZE_BYTES, 3);
    let order = Arc::new(Mutex::new(Vec::new()));
    let batch = (0..64_u64)
        .map(|block| {
            let order = Arc::clone(&order);
            Request::Write {
                offset: ByteOffset(block * BLOCK),
                buffer: AlignedBuffer::zeroed(BLOCK_BYTES),
                durability: Durability::Flush,
                completion: Box::new(move |_, _| order.lock().push(block)),
            }
        })
        .collect();
    device.submit(batch);
    device.set_completion_mode(CompletionMode::Inline);
    let order = order.lock();
    assert_eq!(order.len(), 64);
    assert!(!order.is_sorted());
}

/// One step of a random life of a device.
#[derive(Clone, Debug)]
enum Step {
    Write { block: u64, blocks: u64, immediate: bool },
    Discard { block: u64 },
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..8_u64, 1..4_u64, any::<bool>())
        .prop_map(|(block, blocks, immediate)| Step::Write { block, blocks, immediate });
    let step = prop_oneof![
        6 => write,
        1 => (0..8_u64).prop_map(|block| Step::Discard { block }),
        2 => Just(Step::Flush),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    /// Against the plainest model: for each sector, the contents that power loss may leave are
    /// the last durable one and every later one. Holds at every event, with or without
    /// checkpoints in between.
    #[test]
    fn a_crash_leaves_only_what_the_model_allows(steps in steps(), seed: u64) {
        let device = SimDevice::new(16 * BLOCK);
        // For each block, the stamps it may have; after each event, a copy of all of them.
        let mut allowed = vec![vec![0_u64]; 16];
        let mut at_event = vec![allowed.clone()];
        for (step, stamp) in steps.iter().zip(1_u64..) {
            match *step {
                Step::Write { block, blocks, immediate } => {
                    let bytes: Vec<u8> =
                        stamp.to_le_bytes().repeat(blocks as usize * BLOCK_BYTES / 8);
                    let durability =
                        if immediate { Durability::Immediate } else { Durability::Flush };
                    let buffer = AlignedBuffer::from_bytes(&bytes);
                    block_on(write(&*device, ByteOffset(block * BLOCK), buffer, durability))
                        .unwrap();
                    let range = block as usize..(block + blocks) as usize;
                    allowed[range.clone()].iter_mut().for_each(|stamps| stamps.push(stamp));
                    at_event.push(allowed.clone());
                    if immediate {
                        allowed[range].iter_mut().for_each(|stamps| *stamps = vec![stamp]);
                    }
                }
                Step::Discard { block } => {
                    block_on(discard(&*device, ByteOffset(block * BLOCK), BLOCK)).unwrap();
                    allowed[block as usize].push(0);
                    at_event.push(allowed.clone());
                }
                Step::Flush => {
                    block_on(flush(&*device)).unwrap();
                    at_event.push(allowed.clone());
                    for stamps in &mut allowed {
                        *stamps = vec![*stamps.last().unwrap()];
                    }
                }
            }
            at_event.push(allowed.clone());
        }
        prop_assert_eq!(at_event.len(), device.history_len() + 1);
        let mut random = SeededRandom::new(seed);
        for (event, allowed) in at_event.iter().enumerate() {
            let crashed = device.crash_at(event, &mut random);
            for (number, stamps) in allowed.iter().enumerate() {
                for sector in block(&crashed, number as u64).chunks(SECTOR_BYTES) {
                    let found = u64::from_le_bytes(sector[..8].try_into().unwrap());
                    prop_assert!(stamps.contains(&found), "block {number}: {found} of {stamps:?}");
                    prop_assert_eq!(sector, found.to_le_bytes().repeat(SECTOR_BYTES / 8));
                }
            }
        }
    }
}

#[test]
fn bytes_that_cannot_be_read_can_be_read_once_they_are_written() {
    let device = SimDevice::new(SIZE_BYTES);
    device.fail_reads(BLOCK..BLOCK + 1);
    let can_read = |block: u64| {
        let buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
        block_on(read(&*device, ByteOffset(block * BLOCK), buffer)).is_ok()
    };
    assert!(can_read(0) && !can_read(1) && !can_read(1) && can_read(2));
    put(&device, 2, 7, Durability::Flush);
    assert!(!can_read(1), "something else was written");
    put(&device, 1, 7, Durability::Flush);
    assert!(can_read(1));
}

/// Who refers to new space before the device has it finds it missing after a power cut.
#[test]
fn a_power_cut_before_the_device_grew_leaves_it_as_small_as_it_was() {
    let device = SimDevice::new(8192);
    put(&device, 0, 1, Durability::Immediate);
    device.grow_to(16384).unwrap();
    block_on(flush(&*device)).unwrap();
    device.grow_to(4096).unwrap();
    assert_eq!(device.size_bytes(), 16384);
    let sizes: Vec<_> = (0..=device.history_len())
        .map(|event| device.crash_at(event, &mut SeededRandom::new(1)).size_bytes())
        .collect();
    assert_eq!(sizes, [8192, 8192, 8192, 8192, 16384]);
    device.cut_power();
    assert!(device.grow_to(1 << 20).is_err());
}
