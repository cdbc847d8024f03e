//! The body of the checkpoint record: from where recovery starts.
//!
//! ```text
//! head | image of the index | frontier segments | beginnings of epochs | catalog | patch manifest
//! ```

use std::collections::BTreeSet;

use siltstone_cursor::Manifest;
use siltstone_dedup::IndexShape;
use siltstone_device::{SegmentId, Sequence};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{catalog::Catalog, epochs::Epochs, error::MetadataError, index_image::IndexImage};

const VERSION: u32 = 3;

/// 64 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskHead {
    version: U32,
    frontier_count: U32,
    /// Every change up to here is in the patches.
    sequence: U64,
    /// The write unit that ends there.
    unit: U64,
    next_generation: U64,
    catalog_bytes: U32,
    manifest_bytes: U32,
    /// Over the versions of all pages of the segment table.
    table_versions_sum: U64,
    epoch_count: U32,
    /// The segments that the segment table has pages for: the pool may have grown since.
    segment_count: U32,
    reserved: [u8; 8],
}
const _: () = assert!(size_of::<DiskHead>() == 64);

/// 48 bytes, followed by the segments that were being filled. All zero if there is no image.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskImage {
    generation: U64,
    end_generation: U64,
    buckets: U64,
    entries: U64,
    shards: U32,
    chunk_count: U32,
    unfinished_count: U32,
    sample_bits: u8,
    reserved: [u8; 3],
}
const _: () = assert!(size_of::<DiskImage>() == 48);

/// 16 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskFrontier {
    id: U32,
    reserved: U32,
    generation: U64,
}
const _: () = assert!(size_of::<DiskFrontier>() == 16);

/// Sequence, unit and generation numbers stay below this for ever: hostile ones must not overflow.
pub(crate) const MAX_COUNT: u64 = 1 << 62;

/// What a checkpoint record says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CheckpointBody {
    /// Every change up to here is in the patches; later ones are in frontier segments or the log.
    pub(crate) sequence: Sequence,
    /// The number of the write unit that ends there; 0 = none yet.
    pub(crate) unit: u64,
    pub(crate) next_generation: u64,
    /// Says which versions of the segment table's pages belong to this record.
    pub(crate) table_versions_sum: u64,
    /// How many segments the pool had.
    pub(crate) segment_count: u32,
    /// The stored image of the index, if there is one.
    pub(crate) image: Option<IndexImage>,
    /// The segments that later units may be in, with the generation that counts.
    pub(crate) frontier: Vec<(SegmentId, u64)>,
    /// What dates the changes after `sequence`.
    pub(crate) epochs: Epochs,
    pub(crate) catalog: Catalog,
    pub(crate) manifest: Manifest,
}

impl CheckpointBody {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut catalog = Vec::new();
        self.catalog.encode(&mut catalog);
        let manifest = self.manifest.encode();
        let head = DiskHead {
            version: U32::new(VERSION),
            frontier_count: U32::new(self.frontier.len() as u32),
            sequence: U64::new(self.sequence.0),
            unit: U64::new(self.unit),
            next_generation: U64::new(self.next_generation),
            catalog_bytes: U32::new(catalog.len() as u32),
            manifest_bytes: U32::new(manifest.len() as u32),
            table_versions_sum: U64::new(self.table_versions_sum),
            epoch_count: U32::new(self.epochs.len()),
            segment_count: U32::new(self.segment_count),
            reserved: [0; 8],
        };
        let mut out = head.as_bytes().to_vec();
        encode_image(self.image.as_ref(), &mut out);
        encode_segments(&self.frontier, &mut out);
        self.epochs.encode(&mut out);
        out.extend_from_slice(&catalog);
        out.extend_from_slice(&manifest);
        out
    }

    /// Reads a body back, of a pool that has `segments_now`.
    ///
    /// # Errors
    /// [`MetadataError`] for whatever cannot be a record.
    pub(crate) fn decode(bytes: &[u8], segments_now: u32) -> Result<Self, MetadataError> {
        let short = || wrong("length", bytes.len() as u64);
        let (head, mut rest) = DiskHead::ref_from_prefix(bytes).map_err(|_| short())?;
        if head.version.get() != VERSION {
            return Err(wrong("version", head.version.get().into()));
        }
        // A pool grows in its superblock first, and never shrinks.
        let segment_count = head.segment_count.get();
        if segment_count == 0 || segment_count > segments_now {
            return Err(wrong("segment count", segment_count.into()));
        }
        let counts = [head.sequence.get(), head.unit.get(), head.next_generation.get()];
        if let Some(&count) = counts.iter().find(|count| **count >= MAX_COUNT) {
            return Err(wrong("sequence, unit or generation", count));
        }
        let image = decode_image(&mut rest, segment_count, head.next_generation.get())?;
        let frontier = decode_segments(&mut rest, head.frontier_count.get(), segment_count)?;
        let (epochs, rest) = Epochs::decode(rest, head.epoch_count.get())?;
        let catalog_bytes = head.catalog_bytes.get() as usize;
        let (catalog, rest) = rest.split_at_checked(catalog_bytes).ok_or_else(short)?;
        let manifest_bytes = head.manifest_bytes.get() as usize;
        let (manifest, rest) = rest.split_at_checked(manifest_bytes).ok_or_else(short)?;
        if !rest.is_empty() {
            return Err(wrong("length behind the manifest", rest.len() as u64));
        }
        let catalog = Catalog::decode(catalog)?;
        // What is written from now on belongs to the current epoch, which nobody's past includes.
        if let Some(label) = catalog.newest_label().filter(|label| *label >= epochs.current()) {
            return Err(wrong("epoch of a snapshot", label.0.into()));
        }
        Ok(Self {
            sequence: Sequence(head.sequence.get()),
            unit: head.unit.get(),
            next_generation: head.next_generation.get(),
            table_versions_sum: head.table_versions_sum.get(),
            segment_count,
            image,
            frontier,
            epochs,
            catalog,
            manifest: Manifest::decode(manifest)?,
        })
    }
}

fn wrong(field: &'static str, value: u64) -> MetadataError {
    MetadataError::Inconsistent { structure: "checkpoint record", field, value }
}

fn encode_segments(segments: &[(SegmentId, u64)], out: &mut Vec<u8>) {
    for &(id, generation) in segments {
        let segment = DiskFrontier {
            id: U32::new(id.0),
            reserved: U32::ZERO,
            generation: U64::new(generation),
        };
        out.extend_from_slice(segment.as_bytes());
    }
}

/// Takes `count` different segments from the front of `rest`.
fn decode_segments(
    rest: &mut &[u8],
    count: u32,
    segment_count: u32,
) -> Result<Vec<(SegmentId, u64)>, MetadataError> {
    if count > segment_count || count as usize > rest.len() / size_of::<DiskFrontier>() {
        return Err(wrong("number of segments", count.into()));
    }
    let mut seen = BTreeSet::new();
    let mut segments = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let short = |_| wrong("length", rest.len() as u64);
        let (segment, after) = DiskFrontier::ref_from_prefix(rest).map_err(short)?;
        let id = SegmentId(segment.id.get());
        if id.0 >= segment_count || !seen.insert(id) {
            return Err(wrong("segment", id.0.into()));
        }
        segments.push((id, segment.generation.get()));
        *rest = after;
    }
    Ok(segments)
}

fn encode_image(image: Option<&IndexImage>, out: &mut Vec<u8>) {
    let Some(image) = image else {
        out.extend_from_slice(&[0; size_of::<DiskImage>()]);
        return;
    };
    let head = DiskImage {
        generation: U64::new(image.generations.start),
        end_generation: U64::new(image.generations.end),
        buckets: U64::new(image.shape.buckets),
        entries: U64::new(image.entries),
        shards: U32::new(image.shape.shards),
        chunk_count: U32::new(image.chunk_count),
        unfinished_count: U32::new(image.unfinished.len() as u32),
        sample_bits: image.sample_bits,
        reserved: [0; 3],
    };
    out.extend_from_slice(head.as_bytes());
    encode_segments(&image.unfinished, out);
}

/// Takes what is said of an image from the front of `rest`.
fn decode_image(
    rest: &mut &[u8],
    segment_count: u32,
    next_generation: u64,
) -> Result<Option<IndexImage>, MetadataError> {
    let short = |_| wrong("length", rest.len() as u64);
    let (head, after) = DiskImage::ref_from_prefix(rest).map_err(short)?;
    *rest = after;
    let unfinished = decode_segments(rest, head.unfinished_count.get(), segment_count)?;
    if head.chunk_count.get() == 0 {
        return Ok(None);
    }
    let generations = head.generation.get()..head.end_generation.get();
    if generations.is_empty() || generations.end > next_generation {
        return Err(wrong("generation of the index's image", generations.end));
    }
    Ok(Some(IndexImage {
        generations,
        shape: IndexShape { shards: head.shards.get(), buckets: head.buckets.get() },
        entries: head.entries.get(),
        sample_bits: head.sample_bits,
        chunk_count: head.chunk_count.get(),
        unfinished,
    }))
}
