use std::{
    future::Future,
    pin::pin,
    task::{Context, Waker},
};

use pollster::block_on;
use siltstone_device::{
    ByteOffset, Operation, SeededRandom,
    sim::{Cause, CompletionMode, CrashPolicy, Fault, SimDevice, Times},
};

use super::*;

const POOL: u64 = 77;
const SLOTS: [Region; 2] = [
    Region { offset: ByteOffset(8192), len_bytes: 16384 },
    Region { offset: ByteOffset(65536), len_bytes: 16384 },
];

type Found = Option<(u64, Vec<u8>)>;

fn open(device: &Arc<SimDevice>) -> Result<(CheckpointStore, Found), CheckpointError> {
    block_on(CheckpointStore::open(device.clone(), SLOTS, POOL))
}

fn formatted() -> (Arc<SimDevice>, CheckpointStore) {
    let device = SimDevice::new(1 << 20);
    block_on(CheckpointStore::format(device.clone(), SLOTS)).unwrap();
    let (store, found) = open(&device).unwrap();
    assert_eq!(found, None);
    (device, store)
}

/// A body whose length and contents depend on the checkpoint's number.
fn body(number: u64) -> Vec<u8> {
    let mut body = vec![0; (number * 1237 % 16_000) as usize];
    SeededRandom::new(number).fill(&mut body);
    body
}

#[test]
fn the_newest_checkpoint_is_loaded() {
    let (device, mut store) = formatted();
    for number in 1..20 {
        assert_eq!(block_on(store.store(&body(number))).unwrap(), number);
        let (again, found) = open(&device).unwrap();
        assert_eq!(found, Some((number, body(number))));
        assert_eq!(again.newest(), number);
        assert_eq!(again.damaged_slot(), None);
        store = again;
    }
}

#[test]
fn the_largest_body_fits_and_nothing_larger() {
    let (device, store) = formatted();
    let largest = vec![3; store.max_body_bytes() as usize];
    block_on(store.store(&largest)).unwrap();
    let error = block_on(store.store(&vec![3; largest.len() + 1])).unwrap_err();
    assert!(matches!(error, CheckpointError::TooLarge { .. }), "{error}");
    assert_eq!(open(&device).unwrap().1, Some((1, largest)));
    assert_eq!(block_on(store.store(&[])).unwrap(), 2);
    assert_eq!(open(&device).unwrap().1, Some((2, vec![])));
}

/// At every event of a history: the checkpoint that was durable, or the one being written.
#[test]
fn a_cut_at_any_event_leaves_the_old_or_the_new_checkpoint() {
    let (device, store) = formatted();
    device.forget_history();
    let mut durable_at = vec![0];
    for number in 1..12 {
        block_on(store.store(&body(number))).unwrap();
        durable_at.push(device.history_len());
    }
    let mut random = SeededRandom::new(8);
    for event in 0..=device.history_len() {
        let old = durable_at.partition_point(|&at| at <= event) as u64 - 1;
        for _ in 0..20 {
            let crashed = device.crash_at(event, &mut random);
            let (store, found) = open(&crashed).unwrap();
            let number = found.as_ref().map_or(0, |found| found.0);
            assert!(number == old || number == old + 1, "{number} at event {event}");
            assert_eq!(found, (number > 0).then(|| (number, body(number))));
            assert_eq!(open(&crashed).unwrap().1, found, "the second recovery differs");

            // And so again after the next checkpoint, cut as well.
            let next = block_on(store.store(&body(number + 1))).unwrap();
            let event = random.below(crashed.history_len() as u64 + 1) as usize;
            let (_, found) = open(&crashed.crash_at(event, &mut random)).unwrap();
            let found = found.unwrap_or((0, Vec::new()));
            assert!(found.0 == number || found.0 == next);
            assert_eq!(found.1, if found.0 > 0 { body(found.0) } else { vec![] });
        }
    }
}

/// A checkpoint in a volatile cache is taken for durable, so opening makes it so: else the next
/// one, torn, would leave neither.
#[test]
fn what_was_loaded_survives_the_next_power_cut() {
    let (device, store) = formatted();
    block_on(store.store(&body(1))).unwrap();
    let mut bytes = AlignedBuffer::zeroed(BLOCK_BYTES);
    header::seal(&mut bytes[..100], &identity(POOL, SLOTS[0].offset.0), 2);
    let cached = bytes[HEADER_BYTES..100].to_vec();
    block_on(request::write(&*device, SLOTS[0].offset, bytes, Durability::Flush)).unwrap();
    assert_eq!(open(&device).unwrap().1, Some((2, cached.clone())));
    let crashed =
        device.crash_with(device.history_len(), CrashPolicy::LoseAll, &mut SeededRandom::new(0));
    assert_eq!(open(&crashed).unwrap().1, Some((2, cached)));
}

/// Any flipped bit of the newest checkpoint is noticed, and the one before is found instead.
#[test]
fn one_damaged_slot_is_passed_over_and_reported() {
    let (device, store) = formatted();
    block_on(store.store(b"old")).unwrap();
    block_on(store.store(b"new")).unwrap();
    for bit in 0..(HEADER_BYTES as u64 + 3) * 8 {
        let damaged = device.snapshot();
        damaged.flip_bit(SLOTS[0].offset.0 + bit / 8, (bit % 8) as u8);
        let (store, found) = open(&damaged).unwrap();
        assert_eq!(found, Some((1, b"old".to_vec())), "bit {bit}");
        assert!(store.damaged_slot().is_some());
        assert_eq!(block_on(store.store(b"newer")).unwrap(), 2);
        assert_eq!(open(&damaged).unwrap().1, Some((2, b"newer".to_vec())));
    }
}

#[test]
fn two_damaged_slots_are_an_error_that_names_both() {
    let (device, store) = formatted();
    block_on(store.store(b"old")).unwrap();
    block_on(store.store(b"new")).unwrap();
    device.flip_bit(SLOTS[0].offset.0 + 41, 0);
    device.flip_bit(SLOTS[1].offset.0 + 2, 0);
    let error = open(&device).err().unwrap();
    let CheckpointError::Damaged { first, second } = &error else { panic!("{error}") };
    assert!(matches!(first, SlotError::Header(HeaderError::Checksum { address_bytes: 8192, .. })));
    assert!(matches!(second, SlotError::Header(HeaderError::Magic { address_bytes: 65536, .. })));
}

#[test]
fn a_checkpoint_of_another_pool_or_slot_is_not_taken() {
    let (device, store) = formatted();
    block_on(store.store(b"one")).unwrap();
    let (store, found) = block_on(CheckpointStore::open(device.clone(), SLOTS, 78)).unwrap();
    assert_eq!(found, None);
    assert!(matches!(
        store.damaged_slot(),
        Some(SlotError::Header(HeaderError::WrongPool { found: POOL, .. }))
    ));

    let mut bytes = vec![0; 64];
    header::seal(&mut bytes, &identity(POOL, SLOTS[0].offset.0), 9);
    device.corrupt(SLOTS[0].offset.0, &bytes);
    let (store, found) = open(&device).unwrap();
    assert_eq!(found, Some((1, b"one".to_vec())));
    assert_eq!(
        store.damaged_slot(),
        Some(&SlotError::WrongSlot { address_bytes: SLOTS[0].offset.0, number: 9 })
    );
}

#[test]
fn slots_that_overlap_or_do_not_fit_are_refused() {
    let device = SimDevice::new(1 << 20);
    let slot = |offset, len_bytes| Region { offset: ByteOffset(offset), len_bytes };
    let bad = [
        [slot(0, 8192), slot(4096, 8192)],
        [slot(0, 8192), slot(1 << 20, 4096)],
        [slot(0, 0), slot(8192, 4096)],
        [slot(0, 4096), slot(8192, 4097)],
    ];
    for slots in bad {
        let error = block_on(CheckpointStore::open(device.clone(), slots, POOL)).err().unwrap();
        assert!(matches!(error, CheckpointError::Slots { .. }), "{error}");
    }
}

fn fail_once(device: &SimDevice, operation: Operation) {
    device.inject(Fault {
        operation,
        range_bytes: 0..u64::MAX,
        times: Times::Count(1),
        cause: Cause::Kind(std::io::ErrorKind::Other),
    });
}

#[test]
fn a_failed_write_is_final() {
    let (device, store) = formatted();
    block_on(store.store(b"one")).unwrap();
    fail_once(&device, Operation::Write);
    for _ in 0..2 {
        let error = block_on(store.store(b"two")).unwrap_err();
        assert!(matches!(error, CheckpointError::Failed { number: 2, .. }), "{error}");
    }
    assert_eq!(store.newest(), 1);
    let (store, found) = open(&device).unwrap();
    assert_eq!(found, Some((1, b"one".to_vec())));
    assert_eq!(block_on(store.store(b"two")).unwrap(), 2);
}

/// An unreadable slot may hold the newest checkpoint: it is not passed over.
#[test]
fn a_device_that_fails_is_named_when_opening() {
    let (device, store) = formatted();
    block_on(store.store(b"one")).unwrap();
    for operation in [Operation::Read, Operation::Flush] {
        fail_once(&device, operation);
        let error = open(&device).err().unwrap();
        assert!(matches!(error, CheckpointError::Device(_)), "{error}");
    }
}

/// Dropping a store's future lets no second write touch the slot that may just have become the
/// newest.
#[test]
fn a_dropped_store_is_finished_and_counted() {
    for seed in 0..10 {
        let (device, store) = formatted();
        device.set_completion_mode(CompletionMode::Shuffled { seed });
        for number in 1..6 {
            let body = body(number);
            let mut future = pin!(store.store(&body));
            let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
        let number = block_on(store.store(b"last")).unwrap();
        device.set_completion_mode(CompletionMode::Inline);
        assert_eq!(open(&device).unwrap().1, Some((number, b"last".to_vec())));
    }
}
