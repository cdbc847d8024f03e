//! What silent misbehaviour leaves behind: in reads, on the medium, and after a power cut.

use super::*;
use crate::sim::FaultKind;

fn once(device: &SimDevice, operation: Operation, cause: Cause) {
    let (range_bytes, times) = (0..SIZE_BYTES, Times::Count(1));
    device.inject(Fault { operation, range_bytes, times, cause });
}

fn get(device: &SimDevice, block: u64, blocks: usize) -> Vec<u8> {
    let buffer = AlignedBuffer::zeroed(blocks * BLOCK_BYTES);
    block_on(read(device, ByteOffset(block * BLOCK), buffer)).unwrap().to_vec()
}

/// The uniform byte of a block in every image that a power cut at any event may leave.
fn after_any_cut(device: &SimDevice, number: u64) -> HashSet<Option<u8>> {
    let mut random = SeededRandom::new(1);
    let mut found = HashSet::new();
    for event in 0..=device.history_len() {
        for policy in [CrashPolicy::LoseAll, CrashPolicy::KeepAll, CrashPolicy::Random] {
            for _ in 0..10 {
                let crashed = device.crash_with(event, policy, &mut random);
                found.insert(uniform(&block(&crashed, number)));
            }
        }
    }
    found
}

/// The same, of cuts from now on.
fn after_a_cut_now(device: &SimDevice, number: u64) -> HashSet<Option<u8>> {
    let mut random = SeededRandom::new(1);
    let end = device.history_len();
    (0..30).map(|_| uniform(&block(&device.crash_at(end, &mut random), number))).collect()
}

fn differing_bits(one: &[u8], other: &[u8]) -> u32 {
    one.iter().zip(other).map(|(one, other)| (one ^ other).count_ones()).sum()
}

#[test]
fn a_lost_write_is_nowhere_ever() {
    for durability in [Durability::Flush, Durability::Immediate] {
        let device = SimDevice::new(SIZE_BYTES);
        once(&device, Operation::Write, Cause::Lost);
        put(&device, 1, 5, durability);
        block_on(flush(&*device)).unwrap();
        assert_eq!(uniform(&get(&device, 1, 1)), Some(0));
        assert_eq!(after_any_cut(&device, 1), HashSet::from([Some(0)]));
        put(&device, 1, 6, Durability::Flush);
        block_on(flush(&*device)).unwrap();
        assert_eq!(after_a_cut_now(&device, 1), HashSet::from([Some(6)]));
    }
}

#[test]
fn a_lost_flush_makes_nothing_durable_and_the_next_does() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Flush);
    once(&device, Operation::Flush, Cause::Lost);
    block_on(flush(&*device)).unwrap();
    assert!(after_a_cut_now(&device, 1).contains(&Some(0)));
    assert_eq!(uniform(&get(&device, 1, 1)), Some(5));
    block_on(flush(&*device)).unwrap();
    assert_eq!(after_a_cut_now(&device, 1), HashSet::from([Some(5)]));
}

#[test]
fn a_torn_write_lands_in_its_first_sectors_only() {
    let device = SimDevice::new(SIZE_BYTES);
    for number in 1..4 {
        put(&device, number, 5, Durability::Immediate);
    }
    // Not this one: it would land whole.
    once(&device, Operation::Write, Cause::Torn { sectors: 11 });
    put(&device, 5, 7, Durability::Immediate);
    let buffer = AlignedBuffer::from_bytes(&[6; 3 * BLOCK_BYTES]);
    block_on(write(&*device, ByteOffset(BLOCK), buffer, Durability::Flush)).unwrap();
    block_on(flush(&*device)).unwrap();
    let (torn, landed) = (3 * BLOCK_BYTES, 11 * SECTOR_BYTES);
    let expected = [vec![6; landed], vec![5; torn - landed]].concat();
    assert_eq!(get(&device, 1, 3), expected);
    let crashed = device.crash_at(device.history_len(), &mut SeededRandom::new(1));
    assert_eq!(crashed.peek(BLOCK, torn), expected);
    assert_eq!(uniform(&get(&device, 5, 1)), Some(7));
}

#[test]
fn a_misdirected_write_is_where_it_landed() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Immediate);
    once(&device, Operation::Write, Cause::Misdirected { to: ByteOffset(9 * BLOCK) });
    put(&device, 1, 6, Durability::Flush);
    assert_eq!(uniform(&get(&device, 1, 1)), Some(5));
    assert_eq!(uniform(&get(&device, 9, 1)), Some(6));
    assert!(after_a_cut_now(&device, 9).is_superset(&HashSet::from([Some(0), Some(6)])));
    block_on(flush(&*device)).unwrap();
    assert_eq!(after_a_cut_now(&device, 1), HashSet::from([Some(5)]));
    assert_eq!(after_a_cut_now(&device, 9), HashSet::from([Some(6)]));
}

#[test]
fn a_misdirection_waits_for_what_fits_and_was_going_elsewhere() {
    let device = SimDevice::new(SIZE_BYTES);
    let last = SIZE_BYTES / BLOCK - 1;
    once(&device, Operation::Write, Cause::Misdirected { to: ByteOffset(last * BLOCK) });
    put(&device, last, 5, Durability::Immediate);
    let buffer = AlignedBuffer::from_bytes(&[6; 2 * BLOCK_BYTES]);
    block_on(write(&*device, ByteOffset(0), buffer, Durability::Immediate)).unwrap();
    assert_eq!(uniform(&get(&device, 0, 2)), Some(6));
    assert_eq!(uniform(&get(&device, last, 1)), Some(5));
    put(&device, 0, 7, Durability::Immediate);
    assert_eq!(uniform(&get(&device, 0, 2)), Some(6));
    assert_eq!(uniform(&get(&device, last, 1)), Some(7));
}

#[test]
fn a_misdirected_read_returns_what_another_place_holds() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Immediate);
    put(&device, 9, 6, Durability::Immediate);
    let digest = device.history_digest();
    once(&device, Operation::Read, Cause::Misdirected { to: ByteOffset(9 * BLOCK) });
    assert_eq!(uniform(&get(&device, 1, 1)), Some(6));
    assert_eq!(uniform(&get(&device, 1, 1)), Some(5));
    assert_eq!(device.history_digest(), digest, "the medium is as it was");
}

#[test]
fn a_stale_read_returns_what_was_there_before() {
    let device = SimDevice::new(SIZE_BYTES);
    let stale = |changes, blocks| {
        once(&device, Operation::Read, Cause::Stale { changes });
        get(&device, 1, blocks)
    };
    put(&device, 1, 5, Durability::Immediate);
    device.forget_history();
    // Nothing older is known: the fault waits.
    assert_eq!(uniform(&stale(1, 1)), Some(5));
    assert_eq!(device.struck()[FaultKind::StaleRead], 0);
    put(&device, 1, 6, Durability::Flush);
    put(&device, 4, 1, Durability::Flush);
    let digest = device.history_digest();
    assert_eq!(uniform(&get(&device, 1, 1)), Some(5));
    assert_eq!(device.struck()[FaultKind::StaleRead], 1);
    assert_eq!(device.history_digest(), digest, "the medium is as it was");

    block_on(discard(&*device, ByteOffset(BLOCK), BLOCK)).unwrap();
    put(&device, 2, 7, Durability::Flush);
    put(&device, 1, 8, Durability::Immediate);
    // A write that never arrived, and damage, are not what a read lags behind.
    once(&device, Operation::Write, Cause::Lost);
    put(&device, 1, 9, Durability::Flush);
    device.flip_bit(2 * BLOCK - 1, 0);
    let seen: Vec<_> = (1..6).map(|changes| uniform(&stale(changes, 1))).collect();
    assert_eq!(seen, [Some(0), Some(6), Some(5), Some(5), Some(5)]);
    // Of several blocks, each is as it was at that moment.
    assert_eq!(stale(2, 2), [[0; BLOCK_BYTES], [0; BLOCK_BYTES]].concat());
    assert_eq!(stale(1, 2), [[0; BLOCK_BYTES], [7; BLOCK_BYTES]].concat());
    assert_eq!(get(&device, 1, 1)[..BLOCK_BYTES - 1], [8; BLOCK_BYTES - 1]);
}

#[test]
fn a_stale_read_goes_by_what_landed_and_when() {
    let device = SimDevice::new(SIZE_BYTES);
    let one = held_write(&device, 2, 5, Durability::Flush);
    let other = held_write(&device, 2, 6, Durability::Flush);
    device.medium.complete(other);
    device.medium.complete(one);
    put(&device, 2, 7, Durability::Flush);
    once(&device, Operation::Write, Cause::Lost);
    put(&device, 2, 8, Durability::Flush);
    let stale = |changes| {
        once(&device, Operation::Read, Cause::Stale { changes });
        uniform(&get(&device, 1, 3)[BLOCK_BYTES..2 * BLOCK_BYTES])
    };
    assert_eq!([stale(1), stale(2), stale(3)], [Some(5), Some(6), Some(0)]);
    assert_eq!(uniform(&block(&device, 2)), Some(7));
}

#[test]
fn bits_flip_in_what_a_read_returns_and_nowhere_else() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 2, 5, Durability::Immediate);
    let flipped = |seed| {
        let cause = Cause::FlippedBits { bits: 9, seed };
        let (operation, times) = (Operation::Read, Times::Count(1));
        let range_bytes = 2 * BLOCK + 10..2 * BLOCK + 13;
        device.inject(Fault { operation, range_bytes, times, cause });
        get(&device, 1, 3)
    };
    let first = flipped(1);
    let intact = get(&device, 1, 3);
    assert_eq!(differing_bits(&first, &intact), 9);
    let range = BLOCK_BYTES + 10..BLOCK_BYTES + 13;
    assert_eq!(differing_bits(&first[range.clone()], &intact[range]), 9, "only in its range");
    assert_eq!(first, flipped(1));
    assert_ne!(first, flipped(2));
    assert_eq!(uniform(&block(&device, 2)), Some(5), "the medium is as it was");
    // More bits than there are: all of them.
    let range_bytes = 2 * BLOCK..2 * BLOCK + 1;
    let cause = Cause::FlippedBits { bits: u32::MAX, seed: 1 };
    device.inject(Fault { operation: Operation::Read, range_bytes, times: Times::Always, cause });
    assert_eq!(get(&device, 2, 1)[..2], [!5, 5]);
}

#[test]
fn bits_that_flip_in_a_write_stay_flipped() {
    let device = SimDevice::new(SIZE_BYTES);
    once(&device, Operation::Write, Cause::FlippedBits { bits: 4, seed: 1 });
    put(&device, 1, 5, Durability::Flush);
    block_on(flush(&*device)).unwrap();
    let found = get(&device, 1, 1);
    assert_eq!(differing_bits(&found, &[5; BLOCK_BYTES]), 4);
    let crashed = device.crash_at(device.history_len(), &mut SeededRandom::new(1));
    assert_eq!(block(&crashed, 1), found);
}

#[test]
fn bit_rot_is_read_and_stays() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Immediate);
    let cause = Cause::BitRot { bits: 4, seed: 1 };
    let (operation, range_bytes) = (Operation::Read, BLOCK..2 * BLOCK);
    device.inject(Fault { operation, range_bytes, times: Times::Count(1), cause });
    let found = get(&device, 0, 3);
    assert_eq!(differing_bits(&found[BLOCK_BYTES..2 * BLOCK_BYTES], &[5; BLOCK_BYTES]), 4);
    assert_eq!(get(&device, 0, 3), found);
    let crashed = device.crash_at(device.history_len(), &mut SeededRandom::new(1));
    assert_eq!(crashed.peek(0, 3 * BLOCK_BYTES), found);
    assert_eq!(device.struck()[FaultKind::BitRot], 1);
}

/// As of a file that ends in the middle of the read: some is there, and an error says so.
#[test]
fn a_short_read_is_an_error_after_it_filled_some() {
    let device = SimDevice::new(SIZE_BYTES);
    put(&device, 1, 5, Durability::Immediate);
    put(&device, 2, 6, Durability::Immediate);
    once(&device, Operation::Read, Cause::Short { sectors: 9 });
    assert_eq!(uniform(&get(&device, 1, 1)), Some(5), "no shorter than it was");
    let (sender, receiver) = std::sync::mpsc::channel();
    device.submit(vec![Request::Read {
        offset: ByteOffset(BLOCK),
        buffer: AlignedBuffer::from_bytes(&[1; 2 * BLOCK_BYTES]),
        completion: Box::new(move |buffer, outcome| sender.send((buffer, outcome)).unwrap()),
    }]);
    let (buffer, outcome) = receiver.recv().unwrap();
    let DeviceError::Io { source, .. } = outcome.unwrap_err() else { panic!("another error") };
    assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(buffer[..BLOCK_BYTES], [5; BLOCK_BYTES]);
    assert_eq!(buffer[BLOCK_BYTES..BLOCK_BYTES + SECTOR_BYTES], [6; SECTOR_BYTES]);
    assert_eq!(uniform(&buffer[BLOCK_BYTES + SECTOR_BYTES..]), Some(1));
}

#[test]
fn a_short_write_fails_and_what_landed_is_not_durable() {
    let device = SimDevice::new(SIZE_BYTES);
    once(&device, Operation::Write, Cause::Short { sectors: 2 });
    let buffer = AlignedBuffer::from_bytes(&[5; BLOCK_BYTES]);
    let outcome = block_on(write(&*device, ByteOffset(0), buffer, Durability::Immediate));
    let DeviceError::Io { source, .. } = outcome.unwrap_err() else { panic!("another error") };
    assert_eq!(source.kind(), io::ErrorKind::WriteZero);
    let landed = [vec![5; 2 * SECTOR_BYTES], vec![0; 6 * SECTOR_BYTES]].concat();
    assert_eq!(get(&device, 0, 1), landed);
    assert!(after_a_cut_now(&device, 0).contains(&Some(0)));
}

/// One step of a random life of a bad device.
#[derive(Clone, Debug)]
enum Step {
    Write { block: u64, blocks: u64, immediate: bool, cause: Option<Cause> },
    Flush { lost: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cause = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Cause::Lost)),
        1 => (0..24_u64).prop_map(|sectors| Some(Cause::Torn { sectors })),
        1 => (0..16_u64)
            .prop_map(|block| Some(Cause::Misdirected { to: ByteOffset(block * BLOCK) })),
    ];
    let write = (0..12_u64, 1..4_u64, any::<bool>(), cause).prop_map(
        |(block, blocks, immediate, cause)| Step::Write { block, blocks, immediate, cause },
    );
    let step = prop_oneof![
        5 => write,
        1 => any::<bool>().prop_map(|lost| Step::Flush { lost }),
    ];
    proptest::collection::vec(step, 1..60)
}

const SECTORS_A_BLOCK: usize = BLOCK_BYTES / SECTOR_BYTES;

/// Which sectors of a device of 16 blocks a write changes.
fn landing(block: u64, blocks: u64, cause: Option<Cause>) -> std::ops::Range<usize> {
    let (start, len) = (block as usize * SECTORS_A_BLOCK, blocks as usize * SECTORS_A_BLOCK);
    match cause {
        Some(Cause::Lost) => start..start,
        Some(Cause::Torn { sectors }) => start..start + len.min(sectors as usize),
        Some(Cause::Misdirected { to }) if to.0 / BLOCK + blocks <= 16 => {
            let start = to.0 as usize / SECTOR_BYTES;
            start..start + len
        }
        _ => start..start + len,
    }
}

proptest! {
    /// Against the plainest model: for each sector, what a power cut may leave is the last
    /// durable contents and all that came later, where writes count as what they really did.
    #[test]
    fn a_cut_leaves_what_really_happened(steps in steps(), seed: u64) {
        let device = SimDevice::new(16 * BLOCK);
        let mut allowed = vec![vec![0_u64]; 16 * SECTORS_A_BLOCK];
        let mut at_event = vec![allowed.clone()];
        for (step, stamp) in steps.iter().zip(1_u64..) {
            device.clear_faults();
            match *step {
                Step::Write { block, blocks, immediate, cause } => {
                    if let Some(cause) = cause {
                        once(&device, Operation::Write, cause);
                    }
                    let bytes = stamp.to_le_bytes().repeat(blocks as usize * BLOCK_BYTES / 8);
                    let durability =
                        if immediate { Durability::Immediate } else { Durability::Flush };
                    let buffer = AlignedBuffer::from_bytes(&bytes);
                    block_on(write(&*device, ByteOffset(block * BLOCK), buffer, durability))
                        .unwrap();
                    let range = landing(block, blocks, cause);
                    allowed[range.clone()].iter_mut().for_each(|stamps| stamps.push(stamp));
                    at_event.push(allowed.clone());
                    if immediate {
                        allowed[range].iter_mut().for_each(|stamps| *stamps = vec![stamp]);
                    }
                }
                Step::Flush { lost } => {
                    if lost {
                        once(&device, Operation::Flush, Cause::Lost);
                    }
                    block_on(flush(&*device)).unwrap();
                    at_event.push(allowed.clone());
                    for stamps in allowed.iter_mut().filter(|_| !lost) {
                        *stamps = vec![*stamps.last().unwrap()];
                    }
                }
            }
            at_event.push(allowed.clone());
            for (sector, stamps) in device.peek(0, 16 * BLOCK_BYTES).chunks(SECTOR_BYTES).zip(&allowed) {
                let last = stamps.last().unwrap();
                prop_assert_eq!(sector, last.to_le_bytes().repeat(SECTOR_BYTES / 8));
            }
        }
        prop_assert_eq!(at_event.len(), device.history_len() + 1);
        let mut random = SeededRandom::new(seed);
        for (event, allowed) in at_event.iter().enumerate() {
            let crashed = device.crash_at(event, &mut random).peek(0, 16 * BLOCK_BYTES);
            for (sector, stamps) in crashed.chunks(SECTOR_BYTES).zip(allowed) {
                let found = u64::from_le_bytes(sector[..8].try_into().unwrap());
                prop_assert!(stamps.contains(&found), "{found} of {stamps:?} at {event}");
                prop_assert_eq!(sector, found.to_le_bytes().repeat(SECTOR_BYTES / 8));
            }
        }
    }
}
