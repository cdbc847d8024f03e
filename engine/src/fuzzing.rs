//! Doors for the fuzzers to decoders that are private; built with `--cfg fuzzing` only.
//!
//! Each takes hostile bytes, as they are and sealed with valid checksums, and panics if a promise
//! is broken: what decodes must survive being encoded again.

use pollster::block_on;
use siltstone_cursor::View;
use siltstone_dedup::{Index, index::MIN_BUDGET_BYTES};
use siltstone_device::{
    BLOCK_BYTES, ByteOffset, Place, SegmentId,
    header::{self, HEADER_BYTES, Identity, Kind},
    sim::SimDevice,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes, little_endian::U32};

use crate::{
    catalog::Catalog,
    compress::Decompressor,
    frame::{self, FRAME_HEADER_BYTES, FrameHeader, FrameIdentity},
    index_image::chunk::{self, ChunkIdentity},
    layout::{SUPERBLOCK_A, SUPERBLOCK_B},
    record::CheckpointBody,
    superblock::{self, Superblock},
    write_unit::{Summary, summary_bytes},
};

const POOL: u64 = 0x5117;
/// More segments than a fuzzer's input can name, few enough to be refused often.
const SEGMENTS: u32 = 200;

/// A structure whose body, after the common header, is `body`; its checksum is right.
fn sealed(body: &[u8], kind: Kind, address: ByteOffset) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(body);
    let version = if kind == Kind::Superblock { superblock::VERSION } else { 1 };
    let identity = Identity { kind, version, pool: POOL, address_bytes: address.0 };
    header::seal(&mut bytes, &identity, 1);
    bytes
}

/// Reads the bytes as a superblock.
pub fn superblock(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(BLOCK_BYTES - HEADER_BYTES)];
    for block in [bytes.to_vec(), sealed(bytes, Kind::Superblock, SUPERBLOCK_A)] {
        let device = SimDevice::new(SUPERBLOCK_B.0 + BLOCK_BYTES as u64);
        device.corrupt(SUPERBLOCK_A.0, &block);
        let Ok(found) = block_on(Superblock::load(&*device)) else { continue };
        let (superblock, revision) = (found.superblock, found.revision);
        let layout = &superblock.layout;
        let table_end = layout.segment_table_offset.0 + layout.segment_table_pages;
        assert!(layout.segment_count(revision.size_bytes) > 0 && table_end <= layout.data_start.0);
        block_on(superblock.store(revision, &*device)).expect("the device does not fail");
        let again = block_on(Superblock::load(&*device)).expect("it was just stored");
        assert_eq!(Superblock { unknown_read_compatible: 0, ..superblock }, again.superblock);
        assert_eq!(revision, again.revision);
    }
}

/// Reads the bytes as a catalog.
pub fn catalog(bytes: &[u8]) {
    let Ok(catalog) = Catalog::decode(bytes) else { return };
    let visibilities = catalog.visibilities();
    for volume in catalog.volumes.values() {
        assert!(catalog.chain(View::live(volume.layer)).len() <= visibilities.len());
    }
    for (_, snapshot) in catalog.snapshots() {
        assert!(catalog.chain(snapshot.view).len() <= visibilities.len());
    }
    let mut again = Vec::new();
    catalog.encode(&mut again);
    assert!(again.len() <= bytes.len());
    assert_eq!(Catalog::decode(&again), Ok(catalog));
}

/// Reads the bytes as the body of a checkpoint record.
pub fn checkpoint(bytes: &[u8]) {
    let Ok(body) = CheckpointBody::decode(bytes, SEGMENTS) else { return };
    assert!(body.frontier.iter().all(|(segment, _)| segment.0 < SEGMENTS));
    let again = CheckpointBody::decode(&body.encode(), SEGMENTS);
    assert_eq!(again, Ok(body));
}

/// Reads the bytes as the summary of a write unit.
pub fn summary(bytes: &[u8]) {
    let address = ByteOffset(1 << 20);
    for bytes in [bytes.to_vec(), sealed(bytes, Kind::WriteUnit, address)] {
        let peeked = Summary::peek_bytes(&bytes);
        let Ok(summary) = Summary::decode(&bytes, POOL, address) else { continue };
        let (entries, frames) = (summary.entries.len(), summary.frames.len());
        let len = summary_bytes(entries, frames, summary.fingerprints.len());
        assert_eq!(peeked, Some(len));
        let mut again = vec![0; len];
        summary.encode(POOL, address, &mut again);
        assert_eq!(Summary::decode(&again, POOL, address).expect("it was just encoded"), summary);
    }
}

/// Reads the bytes as a chunk of an image of the dedup index, and puts its entries into an index.
pub fn index_image(bytes: &[u8]) {
    let address = ByteOffset(1 << 20);
    let index = Index::new(MIN_BUDGET_BYTES).expect("the budget is large enough");
    let (shape, sample_bits) = (index.shape(), bytes.last().copied().unwrap_or(0));
    // The number of the image is what `sealed` makes it.
    let identity = ChunkIdentity { pool: POOL, address, image: 1, chunk: 0 };
    for bytes in [bytes.to_vec(), sealed(bytes, Kind::IndexImage, address)] {
        let Ok(chunk) = chunk::decode(&bytes, &identity, shape) else { continue };
        assert!(chunk.buckets.end <= shape.buckets);
        let of_bucket = |bucket: u64| {
            let start = chunk.entries.partition_point(|(at, _)| *at < bucket);
            let of = chunk.entries[start..].iter().take_while(move |(at, _)| *at == bucket);
            of.map(|(_, entry)| *entry)
        };
        let mut again = vec![0; chunk::CHUNK_BYTES];
        let encoded = chunk::encode(&identity, chunk.buckets.clone(), of_bucket, &mut again);
        let again = chunk::decode(&again[..encoded.len_bytes], &identity, shape);
        assert_eq!(again.expect("it was just encoded"), chunk);
        index.restore(sample_bits, &chunk.entries);
        let stats = index.stats();
        assert!(stats.entries <= stats.capacity_entries && stats.bytes <= MIN_BUDGET_BYTES);
    }
}

/// Reads the bytes as a frame.
pub fn frame(bytes: &[u8]) {
    let place = Place::new(SegmentId(3), 160, 0);
    let identity = FrameIdentity { pool: POOL, place, generation: 5 };
    let mut header = FrameHeader::new_zeroed();
    let head = bytes.len().min(FRAME_HEADER_BYTES);
    header.as_mut_bytes()[..head].copy_from_slice(&bytes[..head]);
    let rest = &bytes[head..];
    let stored = &rest[..rest.len().min(header.stored_bytes.get() as usize)];
    header.payload_checksum = U32::new(crc32fast::hash(stored));
    header.magic = *b"SF";
    header.pool = POOL.into();
    header.segment = place.segment().0.into();
    header.offset_bytes = place.frame_offset_bytes().into();
    header.generation = identity.generation.into();
    header.header_checksum = U32::new(crc32fast::hash(&header.as_bytes()[4..]));
    let sealed = [header.as_bytes(), rest].concat();
    for bytes in [bytes, &sealed] {
        let Ok(frame) = frame::verify(bytes, &identity) else { continue };
        let mut plain = vec![0; frame.block_count * BLOCK_BYTES];
        let decoded = Decompressor::with(|context| frame.decode_all(context, &mut plain));
        let (header, payload) =
            FrameHeader::ref_from_prefix(bytes).expect("a verified frame has a header");
        if decoded.is_ok() && header.codec == frame::Codec::Plain as u8 {
            assert_eq!(plain, payload[..plain.len()]);
        }
    }
}
