use proptest::prelude::*;
use siltstone_device::header::HeaderError;

use super::{decode::fixed_parts, *};

const IDENTITY: LogIdentity = LogIdentity { first: 0x1234_5678_9abc_def0, second: 42 };

fn test_label() -> RecordLabel {
    RecordLabel {
        number: 7,
        address: ByteOffset(12 * 4096),
        trimmed: Sequence(3),
        oldest_live: 5,
        oldest_live_address: ByteOffset(4096),
    }
}

#[derive(Clone, Debug)]
struct OwnedChange {
    layer: u32,
    address: u64,
    len_blocks: u32,
    sequence: u64,
    data: Option<Vec<u8>>,
}

impl OwnedChange {
    fn borrow(&self) -> Change<'_> {
        Change {
            layer: LayerId(self.layer),
            address: BlockAddress(self.address),
            len_blocks: self.len_blocks,
            sequence: Sequence(self.sequence),
            body: self.data.as_deref().map_or(ChangeBody::Zero, ChangeBody::Data),
        }
    }
}

fn owned_change() -> impl Strategy<Value = OwnedChange> {
    (any::<u32>(), 0_u64..1 << 60, 1_u32..4, any::<bool>(), any::<u8>()).prop_map(
        |(layer, address, len_blocks, is_data, fill)| OwnedChange {
            layer,
            address,
            len_blocks,
            sequence: 0,
            data: is_data.then(|| vec![fill; len_blocks as usize * BLOCK_BYTES]),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is encoded is decoded, to the last byte, also from recycled buffers.
    #[test]
    fn a_record_keeps_its_changes(
        mut changes in prop::collection::vec(owned_change(), 0..200),
        steps in prop::collection::vec(0_u64..3, 200),
    ) {
        let mut sequence = 10;
        for (change, step) in changes.iter_mut().zip(&steps) {
            sequence += step;
            change.sequence = sequence;
        }
        let borrowed: Vec<_> = changes.iter().map(OwnedChange::borrow).collect();
        let buffers = BufferPool::new(8 << 20);
        let mut dirty = buffers.take(MAX_RECORD_BYTES as usize);
        dirty.fill(0xff);
        drop(dirty);
        let bytes = encode(&buffers, &IDENTITY, &test_label(), &borrowed);
        prop_assert_eq!(bytes.len() as u64, record_bytes_for(changes.len(), data_bytes(&borrowed)));

        let view = decode(&bytes, &IDENTITY, test_label().address).unwrap();
        prop_assert_eq!(view.label(), test_label());
        prop_assert!(view.changes().eq(borrowed.iter().copied()));
        let first = borrowed.first().map_or(Sequence(3), |change| change.sequence);
        prop_assert_eq!(view.first_sequence(), first);
        let Some(head) = peek(&bytes, &IDENTITY, test_label().address) else {
            panic!("a record has a head");
        };
        prop_assert_eq!(head.label, test_label());
        prop_assert_eq!(head.len_bytes, bytes.len() as u64);
        prop_assert_eq!(head.last_sequence, view.last_sequence());
    }

    /// Hostile bytes behind a valid checksum give an error or a view that can be walked.
    #[test]
    fn a_forged_record_does_no_harm(
        at in HEADER_BYTES..512,
        patch in prop::collection::vec(any::<u8>(), 1..16),
        fix_head: bool,
    ) {
        let mut bytes = small_record();
        bytes[at..at + patch.len()].copy_from_slice(&patch);
        reseal(&mut bytes, fix_head);
        if let Ok(view) = decode(&bytes, &IDENTITY, test_label().address) {
            prop_assert!(view.changes().count() <= bytes.len() / DESCRIPTOR_BYTES);
        }
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes, &IDENTITY, ByteOffset(0)).is_err());
        prop_assert_eq!(peek(&bytes, &IDENTITY, ByteOffset(0)), None);
    }
}

fn small_record() -> Vec<u8> {
    let data = vec![0x5a; BLOCK_BYTES];
    let change = |sequence, body| Change {
        layer: LayerId(1),
        address: BlockAddress(2),
        len_blocks: 1,
        sequence: Sequence(sequence),
        body,
    };
    let changes = [change(4, ChangeBody::Zero), change(5, ChangeBody::Data(&data))];
    encode(&BufferPool::new(0), &IDENTITY, &test_label(), &changes).to_vec()
}

/// Makes the checksums right again after the contents were forged.
fn reseal(bytes: &mut [u8], fix_head: bool) {
    let (header, mut head, _) = fixed_parts(bytes).unwrap();
    if fix_head {
        let (address, number) = (header.address_bytes.get(), header.sequence.get());
        head.head_checksum =
            U32::new(head_checksum(header.pool.get(), address, number, bytes.len() as u64, head));
        bytes[HEADER_BYTES..HEAD_END].copy_from_slice(head.as_bytes());
    }
    header::seal(bytes, &header_identity(&IDENTITY, test_label().address), header.sequence.get());
}

#[test]
fn a_small_synchronous_write_costs_two_blocks() {
    assert_eq!(small_record().len(), 8192);
    assert_eq!(record_bytes_for(1, 4096), 8192);
    assert_eq!(record_bytes_for(0, 0), 4096);
    assert_eq!(record_bytes_for(124, 0), 4096);
    assert_eq!(record_bytes_for(125, 0), 8192);
    assert!(record_bytes_for(usize::MAX, u64::MAX) > MAX_RECORD_BYTES);
}

/// Bits on disk never change meaning: this record was laid out by hand from the format's table.
#[test]
fn the_layout_is_pinned() {
    let bytes = small_record();
    let field = |at: usize, len: usize| {
        bytes[at..at + len].iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
    };
    assert_eq!(&bytes[..4], b"SLTS");
    assert_eq!((field(4, 2), field(6, 2), field(12, 4)), (3, 1, 8192));
    assert_eq!((field(16, 8), field(24, 8), field(32, 8)), (IDENTITY.first, 12 * 4096, 7));
    assert_eq!((field(40, 8), field(48, 8), field(56, 8)), (IDENTITY.second, 4, 5));
    assert_eq!((field(64, 8), field(72, 8), field(80, 8)), (3, 5, 4096));
    assert_eq!((field(88, 4), field(92, 4), field(100, 4)), (2, 4096, 0));
    // Descriptors: layer, length, address, sequence, kind.
    assert_eq!((field(104, 4), field(108, 4), field(112, 8)), (1, 1, 2));
    assert_eq!((field(120, 8), field(128, 8)), (4, u64::from(KIND_ZERO)));
    assert_eq!((field(152, 8), field(160, 8)), (5, u64::from(KIND_DATA)));
    assert!(bytes[168..4096].iter().all(|&byte| byte == 0));
    assert!(bytes[4096..].iter().all(|&byte| byte == 0x5a));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut bytes = small_record();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bytes, &IDENTITY, test_label().address).is_err(), "bit {bit}");
        let is_head = peek(&bytes, &IDENTITY, test_label().address).is_some();
        // A head's own checksum does not cover the version and the checksum of the whole.
        let in_head = bit / 8 < HEAD_END && !(6..12).contains(&(bit / 8));
        assert!(!(in_head && is_head), "bit {bit} of the head");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(decode(&bytes, &IDENTITY, test_label().address).is_ok());
}

#[test]
fn a_record_of_another_log_or_place_is_not_taken() {
    let bytes = small_record();
    let here = test_label().address;
    let others = [LogIdentity { first: 1, ..IDENTITY }, LogIdentity { second: 43, ..IDENTITY }];
    for other in others {
        assert!(decode(&bytes, &other, here).is_err());
        assert_eq!(peek(&bytes, &other, here), None);
    }
    assert!(decode(&bytes, &IDENTITY, ByteOffset(0)).is_err());
    assert_eq!(peek(&bytes, &IDENTITY, ByteOffset(0)), None);
}

#[test]
fn a_truncated_record_is_an_error() {
    let bytes = small_record();
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len], &IDENTITY, test_label().address).is_err(), "{len} bytes");
    }
}

#[test]
fn a_newer_layout_is_told_apart_from_damage() {
    let mut bytes = small_record();
    let identity = Identity {
        version: RECORD_VERSION + 1,
        ..header_identity(&IDENTITY, test_label().address)
    };
    header::seal(&mut bytes, &identity, 7);
    let version = |bytes: &[u8]| match decode(bytes, &IDENTITY, test_label().address) {
        Err(RecordError::Header(HeaderError::Version { found, .. })) => Some(found),
        _ => None,
    };
    assert!(peek(&bytes, &IDENTITY, test_label().address).is_some());
    assert_eq!(version(&bytes), Some(2));
    // A version under a broken checksum is damage.
    bytes[6] = 3;
    assert_eq!(version(&bytes), None);
}

/// Each way in which a record can contradict itself has its own name.
#[test]
fn contradictions_are_named() {
    let cases: [(usize, u8, RecordFlaw); 9] = [
        (40, 43, RecordFlaw::ForeignLog),
        (48, 9, RecordFlaw::Order),
        (72, 8, RecordFlaw::Number),
        (72, 0, RecordFlaw::Number),
        (90, 255, RecordFlaw::ChangeCount),
        (88, 1, RecordFlaw::Order),
        (93, 32, RecordFlaw::Length),
        (108, 0, RecordFlaw::ChangeRange),
        (128, 9, RecordFlaw::ChangeKind),
    ];
    for (at, value, expected) in cases {
        let mut bytes = small_record();
        bytes[at] = value;
        reseal(&mut bytes, true);
        let error = decode(&bytes, &IDENTITY, test_label().address).unwrap_err();
        let RecordError::Malformed { flaw, address_bytes } = error else {
            panic!("byte {at}: {error}");
        };
        assert_eq!((flaw, address_bytes), (expected, 12 * 4096), "byte {at}");
    }
}
