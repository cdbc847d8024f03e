#![no_main]
//! A record, as it is and with its checksums made valid.

use siltstone_device::{BLOCK_BYTES, BufferPool, ByteOffset, header::HEADER_BYTES};
use siltstone_fuzz::record::{HEAD_END, seal};
use siltstone_nvram::{
    Change, LogIdentity,
    record::{decode, encode},
};

const IDENTITY: LogIdentity = LogIdentity { first: 0xfeed, second: 0xbeef };
const ADDRESS: ByteOffset = ByteOffset(1 << 20);

/// From the record's number on, and how many blocks of zeros follow.
fn sealed(input: &[u8]) -> Vec<u8> {
    let (&[blocks], input) = input.split_first_chunk().unwrap_or((&[0], input));
    let mut bytes = vec![0; HEADER_BYTES - 8];
    bytes.extend_from_slice(&input[..input.len().min(64 << 10)]);
    let len = bytes.len().max(HEAD_END).next_multiple_of(BLOCK_BYTES);
    bytes.resize(len + usize::from(blocks % 8) * BLOCK_BYTES, 0);
    seal(&mut bytes, &IDENTITY, ADDRESS);
    bytes
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    for bytes in [input.to_vec(), sealed(input)] {
        let Ok(record) = decode(&bytes, &IDENTITY, ADDRESS) else { continue };
        let changes: Vec<Change<'_>> = record.changes().collect();
        assert_eq!(changes.len(), record.change_count());
        let again = encode(&BufferPool::new(0), &IDENTITY, &record.label(), &changes);
        let again = decode(&again, &IDENTITY, ADDRESS).expect("it was just encoded");
        assert_eq!(again.label(), record.label());
        assert_eq!(again.changes().collect::<Vec<_>>(), changes);
    }
});
