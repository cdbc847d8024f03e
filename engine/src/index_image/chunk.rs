//! Chunks: what an image is made of. Each has the entries of consecutive buckets.
//!
//! ```text
//! common header | head | for each bucket: how many entries it has, a byte; then these
//! ```

use std::ops::Range;

use siltstone_dedup::{IndexShape, StoredEntry};
use siltstone_device::{
    ByteOffset,
    header::{self, HEADER_BYTES, Identity, Kind},
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::error::MetadataError;

const VERSION: u16 = 1;

/// What a chunk has room for, and the distance from one to the next in a segment: the smallest
/// segment holds one.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// Entries in a bucket, at most.
const BUCKET_ENTRIES: usize = 8;
const ENTRY_BYTES: usize = size_of::<u64>();
const MAX_BUCKET_BYTES: usize = 1 + BUCKET_ENTRIES * ENTRY_BYTES;

/// Comes after the common header. 24 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ChunkHead {
    first_bucket: U64,
    bucket_count: U32,
    entry_count: U32,
    /// From 0 on.
    chunk: U32,
    reserved: [u8; 4],
}
const _: () = assert!(size_of::<ChunkHead>() == 24);
const BUCKETS_START: usize = HEADER_BYTES + size_of::<ChunkHead>();

/// Which chunk it is, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkIdentity {
    pub(crate) pool: u64,
    pub(crate) address: ByteOffset,
    /// The number of its image.
    pub(crate) image: u64,
    pub(crate) chunk: u32,
}

impl ChunkIdentity {
    pub(super) fn header(&self) -> Identity {
        let (kind, address_bytes) = (Kind::IndexImage, self.address.0);
        Identity { kind, version: VERSION, pool: self.pool, address_bytes }
    }
}

/// What a chunk holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) buckets: Range<u64>,
    /// In the order of buckets.
    pub(crate) entries: Vec<(u64, StoredEntry)>,
}

/// Where a chunk that was encoded ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoded {
    pub(crate) len_bytes: usize,
    pub(crate) next_bucket: u64,
    pub(crate) entries: u32,
}

/// Encodes the entries of as many of the `buckets` as there is room for.
pub(crate) fn encode<B: Iterator<Item = StoredEntry>>(
    identity: &ChunkIdentity,
    buckets: Range<u64>,
    entries_of: impl Fn(u64) -> B,
    out: &mut [u8],
) -> Encoded {
    let (mut at, mut next_bucket, mut entries) = (BUCKETS_START, buckets.start, 0);
    while next_bucket < buckets.end && at + MAX_BUCKET_BYTES <= out.len() {
        let (count_at, mut count) = (at, 0);
        at += 1;
        for entry in entries_of(next_bucket).take(BUCKET_ENTRIES) {
            out[at..at + ENTRY_BYTES].copy_from_slice(&entry.bits().to_le_bytes());
            at += ENTRY_BYTES;
            count += 1;
        }
        out[count_at] = count;
        entries += u32::from(count);
        next_bucket += 1;
    }
    let head = ChunkHead {
        first_bucket: U64::new(buckets.start),
        bucket_count: U32::new((next_bucket - buckets.start) as u32),
        entry_count: U32::new(entries),
        chunk: U32::new(identity.chunk),
        reserved: [0; 4],
    };
    out[HEADER_BYTES..BUCKETS_START].copy_from_slice(head.as_bytes());
    header::seal(&mut out[..at], &identity.header(), identity.image);
    Encoded { len_bytes: at, next_bucket, entries }
}

/// Reads a chunk of an image of an index of this shape.
///
/// # Errors
/// If it is not whole, not the one that it should be, or cannot be one.
pub(crate) fn decode(
    bytes: &[u8],
    identity: &ChunkIdentity,
    shape: IndexShape,
) -> Result<Chunk, MetadataError> {
    let wrong = |field, value| MetadataError::Inconsistent {
        structure: "chunk of the index's image",
        field,
        value,
    };
    let header = header::verify(bytes, &identity.header())?;
    if header.sequence.get() != identity.image {
        return Err(wrong("image", header.sequence.get()));
    }
    let body = &bytes[HEADER_BYTES..header.length_bytes.get() as usize];
    let short = |_| wrong("length", header.length_bytes.get().into());
    let (head, mut rest) = ChunkHead::ref_from_prefix(body).map_err(short)?;
    if head.chunk.get() != identity.chunk {
        return Err(wrong("number", head.chunk.get().into()));
    }
    let (first, count) = (head.first_bucket.get(), head.bucket_count.get());
    let end = first.saturating_add(count.into());
    if end > shape.buckets {
        return Err(wrong("end of buckets", end));
    }
    // So many could be there.
    let mut entries = Vec::with_capacity(rest.len() / ENTRY_BYTES);
    for bucket in first..end {
        let Some((&in_bucket, after)) = rest.split_first() else {
            return Err(wrong("number of buckets", count.into()));
        };
        let len_bytes = usize::from(in_bucket) * ENTRY_BYTES;
        let in_range = usize::from(in_bucket) <= BUCKET_ENTRIES;
        let split = after.split_at_checked(len_bytes).filter(|_| in_range);
        let Some((here, after)) = split else {
            return Err(wrong("number of entries in a bucket", in_bucket.into()));
        };
        for bits in here.as_chunks::<ENTRY_BYTES>().0 {
            let bits = u64::from_le_bytes(*bits);
            let entry = StoredEntry::from_bits(bits).ok_or_else(|| wrong("entry", bits))?;
            entries.push((bucket, entry));
        }
        rest = after;
    }
    if entries.len() != head.entry_count.get() as usize || !rest.is_empty() {
        return Err(wrong("number of entries", entries.len() as u64));
    }
    Ok(Chunk { buckets: first..end, entries })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: ChunkIdentity =
        ChunkIdentity { pool: 7, address: ByteOffset(1 << 20), image: 99, chunk: 3 };

    fn entry() -> impl Strategy<Value = StoredEntry> {
        any::<u64>().prop_filter_map("an entry has a unit", StoredEntry::from_bits)
    }

    fn shape(buckets: u64) -> IndexShape {
        IndexShape { shards: 1, buckets }
    }

    /// All chunks of a table, and what they hold.
    fn encode_all(
        table: &[Vec<StoredEntry>],
        first: u64,
        room: usize,
    ) -> Vec<(Vec<u8>, ChunkIdentity)> {
        let end = first + table.len() as u64;
        let (mut next, mut chunks) = (first, Vec::new());
        while next < end {
            let identity = ChunkIdentity { chunk: chunks.len() as u32, ..IDENTITY };
            let mut out = vec![0xee; room];
            let of = |bucket: u64| table[(bucket - first) as usize].iter().copied();
            let encoded = encode(&identity, next..end, of, &mut out);
            assert!(encoded.next_bucket > next, "each chunk has room for a bucket");
            next = encoded.next_bucket;
            out.truncate(encoded.len_bytes);
            chunks.push((out, identity));
        }
        chunks
    }

    proptest! {
        #[test]
        fn chunks_hold_what_was_in_the_buckets(
            table in prop::collection::vec(prop::collection::vec(entry(), 0..=8), 1..60),
            first in 0..1000_u64,
            room in BUCKETS_START + MAX_BUCKET_BYTES..2000,
        ) {
            let end = first + table.len() as u64;
            let mut found = Vec::new();
            let mut next = first;
            for (bytes, identity) in encode_all(&table, first, room) {
                let chunk = decode(&bytes, &identity, shape(end)).unwrap();
                prop_assert_eq!(chunk.buckets.start, next);
                next = chunk.buckets.end;
                found.extend(chunk.entries);
                // Of an index with fewer buckets it cannot be.
                prop_assert!(decode(&bytes, &identity, shape(next - 1)).is_err());
            }
            prop_assert_eq!(next, end);
            let buckets = (first..).zip(&table);
            let expected: Vec<_> =
                buckets.flat_map(|(n, of)| of.iter().map(move |entry| (n, *entry))).collect();
            prop_assert_eq!(found, expected);
        }

        /// Also under a checksum that is right.
        #[test]
        fn hostile_chunks_are_errors_or_chunks(
            mut body in prop::collection::vec(any::<u8>(), 0..200),
            small in any::<bool>(),
        ) {
            if small && body.len() > 24 {
                // Numbers that could be right.
                body[2..8].fill(0);
                body[8] %= 16;
                body[9..12].fill(0);
                body[16..20].copy_from_slice(&3_u32.to_le_bytes());
            }
            let mut bytes = vec![0; HEADER_BYTES];
            bytes.extend_from_slice(&body);
            header::seal(&mut bytes, &IDENTITY.header(), IDENTITY.image);
            if let Ok(chunk) = decode(&bytes, &IDENTITY, shape(1 << 20)) {
                prop_assert!(chunk.buckets.end <= 1 << 20);
                prop_assert!(chunk.entries.iter().all(|(n, _)| chunk.buckets.contains(n)));
            }
        }
    }

    #[test]
    fn a_chunk_of_another_image_or_place_is_not_taken_for_this_one() {
        let table = vec![vec![StoredEntry::from_bits(1 << 30).unwrap()]];
        let (bytes, identity) = encode_all(&table, 0, 1000).remove(0);
        assert!(decode(&bytes, &identity, shape(1)).is_ok());
        let others = [
            ChunkIdentity { pool: 8, ..identity },
            ChunkIdentity { address: ByteOffset(0), ..identity },
            ChunkIdentity { image: 98, ..identity },
            ChunkIdentity { chunk: 1, ..identity },
        ];
        for other in others {
            assert!(decode(&bytes, &other, shape(1)).is_err(), "{other:?}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped, &identity, shape(1)).is_err(), "bit {bit}");
        }
    }
}
