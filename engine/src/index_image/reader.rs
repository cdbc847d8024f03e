//! Reading images: into the index when a pool was opened, and to verify them.

use std::collections::VecDeque;

use siltstone_dedup::sample::MAX_SAMPLE_BITS;
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset, SegmentId,
    request::{self, Pending},
    salvage,
};

use super::{
    IndexImage,
    chunk::{self, CHUNK_BYTES, Chunk, ChunkIdentity},
};
use crate::{core::Core, error::MetadataError, findings::Problem, pace::Pace, stats::add};

/// Reads under way while an image is loaded.
const LOADS_AT_ONCE: usize = 8;
/// Length of a read: so many chunks.
const READ_CHUNKS: u64 = 4;
/// An image of which the sample is thinner by so many bits than need be is not loaded.
const THIN_BITS: u8 = 2;

/// A chunk, or why it is none, and where it is or must be.
pub(crate) struct ReadChunk {
    pub(crate) segment: SegmentId,
    pub(crate) offset_bytes: u64,
    pub(crate) chunk: Result<Chunk, MetadataError>,
}

/// A read of chunks that stand one behind the other in a segment.
struct Piece {
    segment: SegmentId,
    offset_bytes: u64,
    first_chunk: u32,
    chunks: u64,
}

/// Reads the chunks of an image, in order, a few ahead.
pub(crate) struct Reader<'a> {
    core: &'a Core,
    image: &'a IndexImage,
    /// Still to be read.
    pieces: VecDeque<Piece>,
    under_way: VecDeque<(Piece, Pending<AlignedBuffer>)>,
    at_once: usize,
    /// The bucket with which the next chunk begins, if that is known.
    next_bucket: Option<u64>,
    /// Chunks that are none, or for which there is no segment.
    damaged: u64,
}

impl<'a> Reader<'a> {
    /// Has at most `at_once` reads under way.
    pub(crate) fn new(core: &'a Core, image: &'a IndexImage, at_once: usize) -> Self {
        let in_segment = core.superblock.layout.segment_bytes / CHUNK_BYTES as u64;
        let mut pieces = VecDeque::new();
        let mut chunk = 0;
        for (segment, _) in core.table.image_segments(&image.generations) {
            let here = in_segment.min((image.chunk_count - chunk).into());
            for first in (0..here).step_by(READ_CHUNKS as usize) {
                let chunks = READ_CHUNKS.min(here - first);
                let offset_bytes = first * CHUNK_BYTES as u64;
                pieces.push_back(Piece { segment, offset_bytes, first_chunk: chunk, chunks });
                chunk += chunks as u32;
            }
        }
        Self {
            core,
            image,
            pieces,
            under_way: VecDeque::new(),
            at_once,
            next_bucket: Some(0),
            damaged: u64::from(image.chunk_count - chunk),
        }
    }

    /// Whether the chunks so far are all that there are, none damaged: asked behind the last.
    pub(crate) fn is_whole(&self) -> bool {
        self.damaged == 0 && self.next_bucket == Some(self.image.shape.buckets)
    }

    /// How many bytes the next read takes, if there is one.
    pub(crate) fn next_bytes(&self) -> Option<u64> {
        let next = self.under_way.front().map(|(piece, _)| piece).or(self.pieces.front());
        next.map(|piece| piece.chunks * CHUNK_BYTES as u64)
    }

    /// The next few chunks; `None` behind the last.
    pub(crate) async fn next(&mut self) -> Option<Vec<ReadChunk>> {
        let core = self.core;
        while self.under_way.len() < self.at_once
            && let Some(piece) = self.pieces.pop_front()
        {
            let buffer = core.buffers.take(piece.chunks as usize * CHUNK_BYTES);
            let read = request::read(&*core.device, self.start(&piece), buffer);
            self.under_way.push_back((piece, read));
        }
        let (piece, read) = self.under_way.pop_front()?;
        let (start, len) = (self.start(&piece), piece.chunks as usize * CHUNK_BYTES);
        // A block that cannot be read costs its chunk and no other.
        let salvaged = salvage::after(&*core.device, start, len, read.await).await;
        let mut chunks = Vec::with_capacity(piece.chunks as usize);
        for at in 0..piece.chunks {
            let offset_bytes = piece.offset_bytes + at * CHUNK_BYTES as u64;
            let identity = ChunkIdentity {
                pool: core.superblock.pool,
                address: start.plus(at * CHUNK_BYTES as u64),
                image: self.image.number(),
                chunk: piece.first_chunk + at as u32,
            };
            let here = at as usize * CHUNK_BYTES;
            let bytes = match &salvaged {
                Ok(salvaged) => salvaged.part(here..here + CHUNK_BYTES),
                Err(closed) => Err(closed),
            };
            let chunk = match bytes {
                Ok(bytes) => chunk::decode(bytes, &identity, self.image.shape),
                Err(cause) => Err(identity.header().unreadable(cause).into()),
            };
            let chunk = self.follow(chunk);
            chunks.push(ReadChunk { segment: piece.segment, offset_bytes, chunk });
        }
        Some(chunks)
    }

    /// Counts what is damaged. A chunk that does not go on where the one before ended is.
    fn follow(&mut self, chunk: Result<Chunk, MetadataError>) -> Result<Chunk, MetadataError> {
        let chunk = chunk.and_then(|chunk| match self.next_bucket {
            Some(next) if next != chunk.buckets.start => {
                let (field, value) = ("first bucket", chunk.buckets.start);
                let structure = "chunk of the index's image";
                Err(MetadataError::Inconsistent { structure, field, value })
            }
            _ => Ok(chunk),
        });
        self.next_bucket = chunk.as_ref().ok().map(|chunk| chunk.buckets.end);
        self.damaged += u64::from(chunk.is_err());
        chunk
    }

    fn start(&self, piece: &Piece) -> ByteOffset {
        let geometry = self.core.superblock.layout.geometry();
        geometry.segment_start(piece.segment).plus(piece.offset_bytes)
    }
}

/// Puts the stored image into the index, if there is one; returns it if nothing of it is missing, so
/// that the segments that it covers need not be looked at.
pub(crate) async fn load(core: &Core) -> Option<IndexImage> {
    let image = core.images.stored()?;
    if image.shape != core.index.shape() {
        tracing::info!("the image of the index is of one of another size: it is not used");
        return None;
    }
    // What was full of what is gone by now has kept less than there would be room for.
    let blocks = core.table.totals().stored_blocks;
    let needed_bits = sample_bits_for(blocks, core.index.stats().capacity_entries);
    if image.sample_bits >= needed_bits + THIN_BITS {
        tracing::info!("the image of the index is thinner than it need be: it is not used");
        return None;
    }
    let known = known_segments(core, &image);
    let mut reader = Reader::new(core, &image, LOADS_AT_ONCE);
    while let Some(chunks) = reader.next().await {
        for ReadChunk { segment, offset_bytes, chunk } in chunks {
            match chunk {
                Ok(mut chunk) => {
                    // A segment that was freed or used again since: its blocks are gone.
                    chunk.entries.retain(|(_, entry)| known.have(entry.unit().page()));
                    core.index.restore(image.sample_bits, &chunk.entries);
                    add(&core.stats.counters.index_loaded_entries, chunk.entries.len() as u64);
                }
                // If it was given up meanwhile, what is there is something else.
                Err(error) if core.images.is_stored(&image) => {
                    tracing::warn!(%segment, offset_bytes, %error, "the image of the index is damaged");
                }
                Err(_) => {}
            }
        }
        if core.is_ending() {
            return None;
        }
    }
    let is_whole = reader.is_whole();
    drop(reader);
    is_whole.then_some(image)
}

/// Verifies the stored image, if there is one: every chunk, and that none is missing. Returns how
/// many are whole, and what is wrong, unless the image was given up meanwhile.
pub(crate) async fn verify(core: &Core, pace: &mut Pace<'_>) -> (u64, Vec<Problem>) {
    let (mut whole, mut problems) = (0, Vec::new());
    let Some(image) = core.images.stored() else { return (whole, problems) };
    // One at a time, or the pace would be no pace.
    let mut reader = Reader::new(core, &image, 1);
    while let Some(len_bytes) = reader.next_bytes() {
        pace.take(len_bytes).await;
        for ReadChunk { segment, offset_bytes, chunk } in reader.next().await.unwrap_or_default() {
            match chunk {
                Ok(_) => whole += 1,
                Err(reason) => {
                    problems.push(Problem::IndexImage { segment, offset_bytes, reason });
                }
            }
        }
    }
    if problems.is_empty() && !reader.is_whole() {
        let (found, expected) = (whole, image.chunk_count.into());
        problems.push(Problem::IndexImageEnd { found, expected });
    }
    if core.images.is_stored(&image) { (whole, problems) } else { (0, Vec::new()) }
}

/// The segments of an image, and how much of each its chunks fill.
pub(crate) fn filled_segments(core: &Core, image: &IndexImage) -> Vec<(SegmentId, u64)> {
    let segment_bytes = core.superblock.layout.segment_bytes;
    let mut left_bytes = u64::from(image.chunk_count) * CHUNK_BYTES as u64;
    let filled = core.table.image_segments(&image.generations).into_iter().map(|(id, _)| {
        let here = left_bytes.min(segment_bytes);
        left_bytes -= here;
        (id, here)
    });
    filled.collect()
}

/// Bytes of the stored image.
pub(crate) fn stored_bytes(core: &Core) -> u64 {
    core.images.stored().map_or(0, |image| u64::from(image.chunk_count) * CHUNK_BYTES as u64)
}

/// The least sample bits with which an index has room for so many fingerprints.
fn sample_bits_for(fingerprints: u64, capacity_entries: u64) -> u8 {
    let room = (capacity_entries / 16 * 15).max(1);
    let fits = |bits: &u8| fingerprints >> bits <= room;
    (0..MAX_SAMPLE_BITS).find(fits).unwrap_or(MAX_SAMPLE_BITS)
}

/// Segments of which an image may be right: a bit for each.
struct KnownSegments {
    bits: Vec<u64>,
    first_page: u64,
    /// A segment has two to the power of this pages.
    segment_pages_log2: u32,
}

fn known_segments(core: &Core, image: &IndexImage) -> KnownSegments {
    let len = core.table.len();
    let mut bits = vec![0; (len as usize).div_ceil(64)];
    for id in 0..len {
        if core.table.segment(SegmentId(id)).is_some_and(|segment| image.knows(&segment)) {
            bits[id as usize / 64] |= 1 << (id % 64);
        }
    }
    let layout = &core.superblock.layout;
    let block_bytes = BLOCK_BYTES as u64;
    assert!(layout.segment_bytes.is_power_of_two(), "the superblock was looked at");
    KnownSegments {
        bits,
        first_page: layout.data_start.0 / block_bytes,
        segment_pages_log2: (layout.segment_bytes / block_bytes).ilog2(),
    }
}

impl KnownSegments {
    /// Whether a page of the device is in one of them.
    fn have(&self, page: u64) -> bool {
        let Some(in_data) = page.checked_sub(self.first_page) else { return false };
        let id = in_data >> self.segment_pages_log2;
        let word = self.bits.get((id / 64) as usize);
        word.is_some_and(|word| word >> (id % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_as_thick_as_the_index_has_room_for() {
        assert_eq!(sample_bits_for(0, 0), 0);
        assert_eq!(sample_bits_for(15, 16), 0);
        assert_eq!(sample_bits_for(30, 16), 1);
        assert_eq!(sample_bits_for(32, 16), 2);
        assert_eq!(sample_bits_for(u64::MAX, 16), MAX_SAMPLE_BITS);
    }
}
