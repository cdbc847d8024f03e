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
const fn copy(offset: u64) -> Region {
    Region { offset: ByteOffset(offset), len_bytes: 16384 }
}

/// First copies, then second copies.
const SLOTS: [SlotRegions; 2] = [[copy(8192), copy(131_072)], [copy(65536), copy(262_144)]];

type Found = Option<(u64, Vec<u8>)>;

fn open(device: &Arc<SimDevice>) -> Result<(CheckpointStore, Found), CheckpointError> {
    block_on(CheckpointStore::open(device.clone(), SLOTS, POOL, 0))
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
        assert_eq!(again.damaged_copies(), []);
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

/// What a cut leaves of two records with one number must not be the first one, whole: their blocks may
/// differ in the first only.
#[test]
fn a_torn_checkpoint_is_never_completed_by_the_one_that_comes_instead() {
    let (device, store) = formatted();
    block_on(store.store(b"before")).unwrap();
    let mut body = vec![5; 3 * BLOCK_BYTES];
    let never = device.snapshot();
    block_on(open(&never).unwrap().0.store(&body)).unwrap();
    for Region { offset, .. } in SLOTS[0] {
        device.corrupt(offset.0, &never.peek(offset.0, BLOCK_BYTES));
    }
    body[0] = 6;
    let mut random = SeededRandom::new(3);
    for _ in 0..50 {
        let device = device.snapshot();
        let (store, found) = open(&device).unwrap();
        assert_eq!(found, Some((1, b"before".to_vec())));
        block_on(store.clear_torn()).unwrap();
        block_on(store.store(&body)).unwrap();
        for event in 0..=device.history_len() {
            let (_, found) = open(&device.crash_at(event, &mut random)).unwrap();
            let (number, found) = found.unwrap();
            assert!(number == 1 || found == body, "after event {event}");
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
    header::seal(&mut bytes[..100], &identity(POOL, SLOTS[0][0].offset.0), 2);
    let cached = bytes[HEADER_BYTES..100].to_vec();
    block_on(request::write(&*device, SLOTS[0][0].offset, bytes, Durability::Flush)).unwrap();
    assert_eq!(open(&device).unwrap().1, Some((2, cached.clone())));
    let crashed =
        device.crash_with(device.history_len(), CrashPolicy::LoseAll, &mut SeededRandom::new(0));
    assert_eq!(open(&crashed).unwrap().1, Some((2, cached)));
}

/// Any flipped bit of the newest checkpoint is noticed, and the one before is found instead.
/// Flipped, torn, stale, empty or another's: the other copy counts, and the damage is reported until
/// a later checkpoint has overwritten it.
#[test]
fn damage_of_one_copy_is_corrected_and_reported() {
    let (device, store) = formatted();
    for number in 1..=6 {
        block_on(store.store(&body(number))).unwrap();
    }
    let check = |damaged: Arc<SimDevice>, expected: &CopyError| {
        let newest = block_on(CheckpointStore::open(damaged.clone(), SLOTS, POOL, 6));
        let (store, found) = newest.unwrap();
        assert_eq!(found, Some((6, body(6))));
        assert_eq!(store.damaged_copies(), std::slice::from_ref(expected));
        for number in 7..9 {
            assert_eq!(block_on(store.store(&body(number))).unwrap(), number);
            assert_eq!(open(&damaged).unwrap().1, Some((number, body(number))));
        }
        assert_eq!(open(&damaged).unwrap().0.damaged_copies(), []);
    };
    for copy in SLOTS.as_flattened() {
        let start = copy.offset.0;
        for bit in 0..(HEADER_BYTES as u64 + 3) * 8 {
            let damaged = device.snapshot();
            damaged.flip_bit(start + bit / 8, (bit % 8) as u8);
            let bytes = damaged.peek(start, copy.len_bytes as usize);
            let expected = header::verify(&bytes, &identity(POOL, start)).unwrap_err();
            check(damaged, &expected.into());
        }
    }
    for copy in SLOTS[0] {
        let address_bytes = copy.offset.0;
        let damaged = device.snapshot();
        damaged.corrupt(address_bytes, &[0; BLOCK_BYTES]);
        check(damaged, &CopyError::Stale { address_bytes, found: 0, newest: 6 });

        let stale = device.snapshot();
        let mut bytes = vec![0; 64];
        header::seal(&mut bytes, &identity(POOL, address_bytes), 4);
        stale.corrupt(address_bytes, &bytes);
        check(stale, &CopyError::Stale { address_bytes, found: 4, newest: 6 });

        let misnumbered = device.snapshot();
        header::seal(&mut bytes, &identity(POOL, address_bytes), 9);
        misnumbered.corrupt(address_bytes, &bytes);
        check(misnumbered, &CopyError::WrongSlot { address_bytes, number: 9 });

        let misdirected = device.snapshot();
        let found = SLOTS[1][0].offset.0;
        misdirected.corrupt(address_bytes, &device.peek(found, 16384));
        let kind = Kind::Checkpoint;
        check(misdirected, &HeaderError::WrongAddress { kind, address_bytes, found }.into());
    }
}

/// Damage of both copies of the newest looks like a torn store; with a mark it does not.
#[test]
fn a_lost_checkpoint_that_was_durable_is_an_error_that_names_its_places() {
    let (device, store) = formatted();
    block_on(store.store(b"old")).unwrap();
    block_on(store.store(b"new")).unwrap();
    for copy in SLOTS[0] {
        device.flip_bit(copy.offset.0 + 41, 3);
    }
    assert_eq!(open(&device).unwrap().1, Some((1, b"old".to_vec())));
    let error = block_on(CheckpointStore::open(device.clone(), SLOTS, POOL, 2)).err().unwrap();
    let CheckpointError::Lost { durable: 2, newest: 1, first, second } = error else {
        panic!("{error}")
    };
    assert_eq!([first, second], SLOTS[0]);
}

#[test]
fn two_damaged_slots_are_an_error_that_names_both() {
    let (device, store) = formatted();
    block_on(store.store(b"old")).unwrap();
    block_on(store.store(b"new")).unwrap();
    for [first, second] in SLOTS {
        device.flip_bit(first.offset.0 + 41, 0);
        device.flip_bit(second.offset.0 + 2, 0);
    }
    let error = open(&device).err().unwrap();
    let CheckpointError::Damaged { first, second } = &error else { panic!("{error}") };
    let at = |error: &CopyError| match error {
        CopyError::Header(HeaderError::Magic { address_bytes, .. }) => *address_bytes,
        other => panic!("{other}"),
    };
    assert_eq!([at(first), at(second)], SLOTS.map(|slot| slot[1].offset.0));
}

#[test]
fn a_checkpoint_of_another_pool_is_not_taken() {
    let (device, store) = formatted();
    block_on(store.store(b"one")).unwrap();
    let (store, found) = block_on(CheckpointStore::open(device, SLOTS, 78, 0)).unwrap();
    assert_eq!(found, None);
    let wrong = |error: &CopyError| {
        matches!(error, CopyError::Header(HeaderError::WrongPool { found: POOL, .. }))
    };
    assert!(store.damaged_copies().len() == 2 && store.damaged_copies().iter().all(wrong));
}

/// It may be the newest: falling back to an older one would lose what it says.
#[test]
fn a_checkpoint_of_a_newer_version_is_not_passed_over() {
    let (device, store) = formatted();
    block_on(store.store(b"one")).unwrap();
    for copy in SLOTS.as_flattened() {
        let device = device.snapshot();
        let mut bytes = vec![0; 64];
        let version = CHECKPOINT_VERSION + 1;
        let newer = Identity { version, ..identity(POOL, copy.offset.0) };
        header::seal(&mut bytes, &newer, 2);
        device.corrupt(copy.offset.0, &bytes);
        let error = open(&device).err().unwrap();
        assert!(matches!(error, CheckpointError::Newer(_)), "{error}");
    }
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
    let good = [slot(1 << 18, 4096), slot(1 << 19, 4096)];
    for copies in bad {
        for slots in [[copies, good], [good, copies], [[copies[0], good[0]], [copies[1], good[1]]]]
        {
            let opened = block_on(CheckpointStore::open(device.clone(), slots, POOL, 0));
            let error = opened.err().unwrap();
            assert!(matches!(error, CheckpointError::Slots { .. }), "{error}");
        }
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

/// A checkpoint is durable only with both copies: else the redundancy that it promises is not
/// there.
#[test]
fn a_failed_write_of_either_copy_is_final() {
    for copy in SLOTS[0] {
        let (device, store) = formatted();
        block_on(store.store(b"one")).unwrap();
        device.inject(Fault {
            operation: Operation::Write,
            range_bytes: copy.offset.0..copy.offset.0 + 1,
            times: Times::Count(1),
            cause: Cause::Kind(std::io::ErrorKind::Other),
        });
        let error = block_on(store.store(b"two")).unwrap_err();
        assert!(matches!(error, CheckpointError::Failed { number: 2, .. }), "{error}");
        assert_eq!(store.newest(), 1);
    }
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
    // The other copy was written: it counts, like any that was not acknowledged.
    let (store, found) = open(&device).unwrap();
    assert_eq!(found, Some((2, b"two".to_vec())));
    assert_eq!(block_on(store.store(b"three")).unwrap(), 3);
}

#[test]
fn a_device_that_cannot_be_flushed_is_named_when_opening() {
    let (device, store) = formatted();
    block_on(store.store(b"one")).unwrap();
    fail_once(&device, Operation::Flush);
    let error = open(&device).err().unwrap();
    assert!(matches!(error, CheckpointError::Device(_)), "{error}");
    // What can be read when it is asked for again has cost nothing.
    fail_once(&device, Operation::Read);
    let (store, found) = open(&device).unwrap();
    assert_eq!(found, Some((1, b"one".to_vec())));
    assert_eq!(store.damaged_copies(), []);
}

fn block_at(offset: u64) -> std::ops::Range<u64> {
    offset..offset + BLOCK_BYTES as u64
}

/// A block of a copy that cannot be read is damage of that copy, like any other.
#[test]
fn a_copy_that_cannot_be_read_is_a_damaged_one() {
    let (device, store) = formatted();
    for number in 1..=6 {
        block_on(store.store(&body(number))).unwrap();
    }
    for cause in [Cause::Kind(std::io::ErrorKind::Other), Cause::Short { sectors: 1 }] {
        for (copy, block) in SLOTS.as_flattened().iter().flat_map(|copy| [(copy, 0), (copy, 1)]) {
            let number = if SLOTS[0].contains(copy) { 6 } else { 5 };
            let is_used = block * BLOCK_BYTES < HEADER_BYTES + body(number).len();
            let damaged = device.snapshot();
            let range_bytes = block_at(copy.offset.0 + (block * BLOCK_BYTES) as u64);
            let (operation, times) = (Operation::Read, Times::Always);
            damaged.inject(Fault { operation, range_bytes, times, cause });
            let (store, found) =
                block_on(CheckpointStore::open(damaged.clone(), SLOTS, POOL, 6)).unwrap();
            assert_eq!(found, Some((6, body(6))));
            let [CopyError::Header(HeaderError::Unreadable { address_bytes, .. })] =
                store.damaged_copies()
            else {
                assert!(!is_used && store.damaged_copies().is_empty());
                continue;
            };
            assert!(is_used);
            assert_eq!(*address_bytes, copy.offset.0);
            // Writing it anew cures it, here.
            damaged.clear_faults();
            for number in 7..9 {
                assert_eq!(block_on(store.store(&body(number))).unwrap(), number);
                assert_eq!(open(&damaged).unwrap().1, Some((number, body(number))));
            }
            assert_eq!(open(&damaged).unwrap().0.damaged_copies(), []);
        }
    }
}

#[test]
fn copies_of_which_none_can_be_read_are_an_error_that_names_them() {
    let (device, store) = formatted();
    block_on(store.store(b"old")).unwrap();
    block_on(store.store(b"new")).unwrap();
    SLOTS[0].iter().for_each(|copy| device.fail_reads(block_at(copy.offset.0)));
    let error = block_on(CheckpointStore::open(device.clone(), SLOTS, POOL, 2)).err().unwrap();
    assert!(matches!(error, CheckpointError::Lost { durable: 2, newest: 1, .. }), "{error}");
    SLOTS[1].iter().for_each(|copy| device.fail_reads(block_at(copy.offset.0)));
    let error = open(&device).err().unwrap();
    let CheckpointError::Damaged { first, second } = &error else { panic!("{error}") };
    for (error, slot) in [first, second].into_iter().zip(SLOTS) {
        let CopyError::Header(HeaderError::Unreadable { address_bytes, .. }) = error else {
            panic!("{error}")
        };
        assert_eq!(*address_bytes, slot[1].offset.0);
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
