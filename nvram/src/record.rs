//! A log record on disk: changes that one device write made durable together.
//!
//! ```text
//! block 0   header   40 bytes  device::header: kind log record, pool = the log's first nonce,
//!                              sequence = the record's number
//!           head     64 bytes  second nonce, sequences, what is still live, counts, own checksum
//!           descriptors        32 bytes for each change, then zeros to the next block
//! then      data               the blocks of the Data changes, in the order of the descriptors
//! ```
//!
//! The header's CRC covers the whole record; the head's own checksum covers what stands in the
//! first 104 bytes, hence in one 512-byte sector, which power loss does not tear. So a record with
//! a whole head and a broken body is known for what it is: torn if newest, damaged if not.
//!
//! Data comes from guests, who may write anything, records included. Two 64-bit nonces that never
//! leave the pool keep their blocks from passing for records.

mod decode;

pub use decode::{RecordError, RecordFlaw, RecordView, decode};
pub(crate) use decode::{RecordHead, peek};
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BlockAddress, BufferPool, ByteOffset, LayerId, Sequence,
    header::{self, HEADER_BYTES, Identity, Kind},
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// The version of the layout.
pub const RECORD_VERSION: u16 = 1;

/// The largest record: what the buffer pool still recycles.
pub const MAX_RECORD_BYTES: u64 = 4 << 20;

/// Far more than can be written; leaves room to count on.
const MAX_RECORD_NUMBER: u64 = u64::MAX >> 1;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What makes a log this log: random bits that no guest can know. Drawn when a log is formatted,
/// kept in the pool's superblock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LogIdentity {
    /// Stands in the header's pool field.
    pub first: u64,
    /// Stands in the record's head.
    pub second: u64,
}

impl std::fmt::Debug for LogIdentity {
    /// Secret from guests, so not to be found in traces either.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogIdentity")
    }
}

/// A change's new contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeBody<'a> {
    /// Whole blocks.
    Data(&'a [u8]),
    /// Zeros: a discard or a write of zeros.
    Zero,
}

/// One admitted change: a run of blocks of one layer gets new contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// The layer written to.
    pub layer: LayerId,
    /// The run's first block.
    pub address: BlockAddress,
    /// The run's length, at least 1.
    pub len_blocks: u32,
    /// The change's place in the pool's total order.
    pub sequence: Sequence,
    /// What it writes.
    pub body: ChangeBody<'a>,
}

/// What a record says of itself and of the log around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLabel {
    /// Which record it is, counted from 1.
    pub number: u64,
    /// Its place on its device.
    pub address: ByteOffset,
    /// Everything up to here was durable elsewhere when the record was written.
    pub trimmed: Sequence,
    /// The oldest record that was still needed when this one was written, at most this one.
    pub oldest_live: u64,
    /// That record's place on the device.
    pub oldest_live_address: ByteOffset,
}

/// The fixed part of a record's body.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    second_nonce: U64,
    first_sequence: U64,
    last_sequence: U64,
    trimmed: U64,
    oldest_live: U64,
    oldest_live_address: U64,
    change_count: U32,
    payload_bytes: U32,
    /// CRC-32 of the header's pool, address, sequence and length, then of this head with this
    /// field taken as zero.
    head_checksum: U32,
    reserved: U32,
}

/// A change without its data.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Descriptor {
    layer: U32,
    len_blocks: U32,
    address: U64,
    sequence: U64,
    kind: u8,
    reserved: [u8; 7],
}

const KIND_DATA: u8 = 1;
const KIND_ZERO: u8 = 2;

const HEAD_END: usize = HEADER_BYTES + size_of::<Head>();
const DESCRIPTOR_BYTES: usize = 32;
const _: () = assert!(size_of::<Head>() == 64);
const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_BYTES);
const _: () = assert!(HEAD_END <= 512, "the head must stand in one sector");
const _: () = assert!(MAX_RECORD_BYTES <= u32::MAX as u64);

/// The size of a record of `change_count` changes that carry `data_bytes` of data together.
#[must_use]
pub fn record_bytes_for(change_count: usize, data_bytes: u64) -> u64 {
    let descriptors = (change_count as u64).saturating_mul(DESCRIPTOR_BYTES as u64);
    let front = descriptors.saturating_add((HEAD_END as u64) + BLOCK - 1) / BLOCK;
    let back = data_bytes.div_ceil(BLOCK);
    front.saturating_add(back).saturating_mul(BLOCK)
}

/// The data that `changes` carry, in bytes.
pub(crate) fn data_bytes(changes: &[Change<'_>]) -> u64 {
    let data = |change: &Change<'_>| match change.body {
        ChangeBody::Data(data) => data.len() as u64,
        ChangeBody::Zero => 0,
    };
    changes.iter().map(data).sum()
}

/// Each change that carries data, with that data as it stands in `record`, which was encoded of
/// `changes`.
pub(crate) fn encoded_data<'a>(
    record: &'a [u8],
    changes: &'a [Change<'a>],
) -> impl Iterator<Item = (usize, &'a [u8])> {
    let mut rest = &record[record.len() - data_bytes(changes) as usize..];
    let carriers = changes.iter().enumerate().filter_map(|(at, change)| match change.body {
        ChangeBody::Data(data) => Some((at, data.len())),
        ChangeBody::Zero => None,
    });
    carriers.map(move |(at, len)| (at, rest.split_off(..len).expect("the record holds all data")))
}

/// Checks what callers of the log owe it.
///
/// # Panics
/// If a change is empty, passes the last address, carries other data than its length says, or
/// precedes the one before it.
pub(crate) fn assert_well_formed(changes: &[Change<'_>]) {
    let mut last = Sequence(0);
    for change in changes {
        assert!(change.len_blocks > 0, "a change covers at least one block");
        let end = change.address.0.checked_add(u64::from(change.len_blocks));
        assert!(end.is_some(), "a change ends within the address space");
        if let ChangeBody::Data(data) = change.body {
            assert_eq!(data.len(), change.len_blocks as usize * BLOCK_BYTES, "whole blocks");
        }
        assert!(change.sequence >= last, "changes come in the order of their sequence numbers");
        last = change.sequence;
    }
}

/// The record that holds `changes`, ready to be written at `label.address`. Without changes it is
/// a marker, which only says what is trimmed.
///
/// # Panics
/// As [`Log::append`](crate::Log::append), and if the record exceeds [`MAX_RECORD_BYTES`]: callers
/// check with [`record_bytes_for`] first.
#[must_use]
pub fn encode(
    buffers: &BufferPool,
    identity: &LogIdentity,
    label: &RecordLabel,
    changes: &[Change<'_>],
) -> AlignedBuffer {
    assert_well_formed(changes);
    assert!(label.number > 0 && label.oldest_live > 0 && label.oldest_live <= label.number);
    let payload_bytes = data_bytes(changes);
    let len_bytes = record_bytes_for(changes.len(), payload_bytes);
    assert!(len_bytes <= MAX_RECORD_BYTES, "a record of {len_bytes} bytes is too large");
    let data_start = (len_bytes - payload_bytes) as usize;

    let mut buffer = buffers.take(len_bytes as usize);
    let mut head = Head {
        second_nonce: U64::new(identity.second),
        first_sequence: U64::new(changes.first().map_or(label.trimmed, |c| c.sequence).0),
        last_sequence: U64::new(changes.last().map_or(label.trimmed, |c| c.sequence).0),
        trimmed: U64::new(label.trimmed.0),
        oldest_live: U64::new(label.oldest_live),
        oldest_live_address: U64::new(label.oldest_live_address.0),
        change_count: U32::new(changes.len() as u32),
        payload_bytes: U32::new(payload_bytes as u32),
        head_checksum: U32::ZERO,
        reserved: U32::ZERO,
    };
    head.head_checksum =
        U32::new(head_checksum(identity.first, label.address.0, label.number, len_bytes, head));
    buffer[HEADER_BYTES..HEAD_END].copy_from_slice(head.as_bytes());

    let (front, mut data) = buffer.split_at_mut(data_start);
    let mut slots = front[HEAD_END..].chunks_exact_mut(DESCRIPTOR_BYTES);
    for (change, slot) in changes.iter().zip(&mut slots) {
        let kind = match change.body {
            ChangeBody::Data(blocks) => {
                let (place, rest) = data.split_at_mut(blocks.len());
                place.copy_from_slice(blocks);
                data = rest;
                KIND_DATA
            }
            ChangeBody::Zero => KIND_ZERO,
        };
        let descriptor = Descriptor {
            layer: U32::new(change.layer.0),
            len_blocks: U32::new(change.len_blocks),
            address: U64::new(change.address.0),
            sequence: U64::new(change.sequence.0),
            kind,
            reserved: [0; 7],
        };
        slot.copy_from_slice(descriptor.as_bytes());
    }
    // Recycled memory holds old contents.
    front[HEAD_END + changes.len() * DESCRIPTOR_BYTES..].fill(0);
    header::seal(&mut buffer, &header_identity(identity, label.address), label.number);
    buffer
}

fn header_identity(identity: &LogIdentity, address: ByteOffset) -> Identity {
    Identity {
        kind: Kind::LogRecord,
        version: RECORD_VERSION,
        pool: identity.first,
        address_bytes: address.0,
    }
}

fn head_checksum(first_nonce: u64, address: u64, number: u64, len_bytes: u64, head: Head) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update([first_nonce, address, number, len_bytes].map(U64::new).as_bytes());
    hasher.update(Head { head_checksum: U32::ZERO, ..head }.as_bytes());
    hasher.finalize()
}

#[cfg(test)]
mod tests;
