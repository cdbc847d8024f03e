//! Faults strike what they are meant for, as long as told, are counted, and follow from a seed.

use super::*;
use crate::sim::{FaultCounters, FaultKind};

fn everywhere(operation: Operation, times: Times, cause: Cause) -> Fault {
    Fault { operation, range_bytes: 0..SIZE_BYTES, times, cause }
}

/// One operation of a kind on blocks 2 and 3.
fn attempt(device: &SimDevice, operation: Operation) -> Result<(), DeviceError> {
    let offset = ByteOffset(2 * BLOCK);
    let buffer = AlignedBuffer::from_bytes(&[9; 2 * BLOCK_BYTES]);
    match operation {
        Operation::Read => block_on(read(device, offset, buffer)).map(drop),
        Operation::Write => block_on(write(device, offset, buffer, Durability::Flush)).map(drop),
        Operation::Flush => block_on(flush(device)),
        Operation::Discard => block_on(discard(device, offset, 2 * BLOCK)),
    }
}

const OPERATIONS: [Operation; 4] =
    [Operation::Read, Operation::Write, Operation::Flush, Operation::Discard];

#[test]
fn a_failure_reports_its_cause_and_changes_nothing() {
    for operation in OPERATIONS {
        for errno in [libc::EIO, libc::ENOSPC, libc::EROFS] {
            let device = SimDevice::new(SIZE_BYTES);
            put(&device, 2, 5, Durability::Immediate);
            device.inject(everywhere(operation, Times::Count(1), Cause::Errno(errno)));
            let error = attempt(&device, operation).unwrap_err();
            let DeviceError::Io { source, operation: reported, .. } = error else {
                panic!("{error}")
            };
            assert_eq!((reported, source.raw_os_error()), (operation, Some(errno)));
            assert_eq!(uniform(&block(&device, 2)), Some(5));
            assert_eq!(device.struck().total(), 1);
        }
    }
}

#[test]
fn a_fault_waits_for_its_operation() {
    for operation in OPERATIONS {
        let device = SimDevice::new(SIZE_BYTES);
        device.inject(everywhere(operation, Times::Count(1), Cause::Errno(libc::EIO)));
        for other in OPERATIONS.into_iter().filter(|&other| other != operation) {
            attempt(&device, other).unwrap();
        }
        attempt(&device, operation).unwrap_err();
        attempt(&device, operation).unwrap();
    }
}

#[test]
fn a_fault_lasts_for_a_while() {
    let device = SimDevice::new(SIZE_BYTES);
    for operation in OPERATIONS {
        device.inject(everywhere(operation, Times::During(5), Cause::Errno(libc::EIO)));
        let others = OPERATIONS.into_iter().filter(|&other| other != operation);
        attempt(&device, operation).unwrap_err();
        for other in others {
            attempt(&device, other).unwrap();
        }
        attempt(&device, operation).unwrap_err();
        assert!((0..10).all(|_| attempt(&device, operation).is_ok()));
    }
    device.inject(everywhere(Operation::Read, Times::During(0), Cause::Errno(libc::EIO)));
    attempt(&device, Operation::Read).unwrap();
    // What was asked before the fault came, and happens while it lasts, is struck.
    let held = held_write(&device, 1, 5, Durability::Flush);
    device.inject(everywhere(Operation::Write, Times::During(1), Cause::Lost));
    device.medium.complete(held);
    assert_eq!(uniform(&block(&device, 1)), Some(0));
}

#[test]
fn the_first_of_several_faults_strikes_alone() {
    let device = SimDevice::new(SIZE_BYTES);
    for errno in [libc::EIO, libc::ENOSPC] {
        device.inject(everywhere(Operation::Flush, Times::Count(2), Cause::Errno(errno)));
    }
    let errnos = (0..5).map(|_| match attempt(&device, Operation::Flush) {
        Ok(()) => None,
        Err(DeviceError::Io { source, .. }) => source.raw_os_error(),
        Err(error) => panic!("{error}"),
    });
    let (eio, full) = (Some(libc::EIO), Some(libc::ENOSPC));
    assert_eq!(errnos.collect::<Vec<_>>(), [eio, eio, full, full, None]);
}

#[test]
#[should_panic(expected = "a flush cannot go wrong like this")]
fn an_impossible_fault_is_refused() {
    let cause = Cause::Misdirected { to: ByteOffset(0) };
    SimDevice::new(SIZE_BYTES).inject(everywhere(Operation::Flush, Times::Always, cause));
}

#[test]
fn what_struck_is_counted_by_kind() {
    let device = SimDevice::new(SIZE_BYTES);
    assert_eq!(device.struck(), FaultCounters::default());
    device.inject(everywhere(Operation::Read, Times::Count(3), Cause::Errno(libc::EIO)));
    device.inject(everywhere(Operation::Write, Times::Count(1), Cause::Lost));
    device.flip_bit(0, 0);
    for operation in [Operation::Read, Operation::Read, Operation::Write, Operation::Write] {
        let _ = attempt(&device, operation);
    }
    let struck = device.struck();
    let expected = [(FaultKind::FailedRead, 2), (FaultKind::LostWrite, 1), (FaultKind::BitRot, 1)];
    assert_eq!(struck.iter().collect::<Vec<_>>(), expected);
    assert_eq!((struck.total(), struck[FaultKind::FailedRead]), (4, 2));
    let mut both = struck;
    both += struck;
    assert_eq!((both.total(), both[FaultKind::LostWrite]), (8, 2));
    device.clear_faults();
    assert_eq!(device.struck(), struck, "clearing forgets what waits, not what happened");
}

#[test]
fn every_kind_has_its_own_name_and_place() {
    let names: HashSet<_> = FaultKind::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), FaultKind::ALL.len());
    assert!(FaultKind::ALL.iter().enumerate().all(|(index, &kind)| kind as usize == index));
    assert_eq!(format!("{:>12}", FaultKind::BitRot), "     bit rot");
}

#[test]
fn a_seed_determines_the_faults_and_every_kind_comes_up() {
    let faults = |seed| -> Vec<_> {
        let mut random = SeededRandom::new(seed);
        (0..500).map(|_| Fault::random(&mut random, SIZE_BYTES, &FaultKind::ALL)).collect()
    };
    assert_eq!(faults(1), faults(1));
    assert_ne!(faults(1), faults(2));
    let kinds: HashSet<_> = faults(1).iter().map(|fault| fault.kind().unwrap()).collect();
    assert_eq!(kinds.len(), FaultKind::ALL.len());
    let mut random = SeededRandom::new(1);
    for kind in FaultKind::ALL {
        for size_bytes in [BLOCK, 3 * BLOCK, 100 << 40] {
            let fault = Fault::random(&mut random, size_bytes, &[kind]);
            assert_eq!(fault.kind(), Some(kind));
            assert_eq!(fault.operation, kind.operation());
            assert!(!fault.range_bytes.is_empty() && fault.range_bytes.end <= size_bytes);
            assert_ne!(fault.times, Times::Always);
            SimDevice::new(size_bytes).inject(fault);
        }
    }
}

/// Whatever the random parameters: the operation completes, is counted, and reports an error
/// exactly if its kind is not silent.
#[test]
fn every_random_fault_strikes_and_only_silent_ones_report_success() {
    let mut random = SeededRandom::new(1);
    for kind in FaultKind::ALL {
        for _ in 0..40 {
            let device = SimDevice::new(SIZE_BYTES);
            put(&device, 2, 5, Durability::Flush);
            let mut fault = Fault::random(&mut random, SIZE_BYTES, &[kind]);
            fault.range_bytes = 0..SIZE_BYTES;
            fault.times = Times::Count(1);
            let may_wait = match fault.cause {
                Cause::Torn { sectors } | Cause::Short { sectors } => sectors >= 16,
                Cause::Misdirected { to } => [2 * BLOCK, SIZE_BYTES - BLOCK].contains(&to.0),
                _ => false,
            };
            device.inject(fault);
            let outcome = attempt(&device, kind.operation());
            assert_eq!(device.struck()[kind], u64::from(!may_wait), "{kind}");
            assert_eq!(outcome.is_err(), !kind.is_silent() && !may_wait, "{kind}");
        }
    }
}
