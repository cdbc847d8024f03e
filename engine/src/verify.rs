//! Reading segments back and verifying them: what `check` and `scrub` share.
//!
//! A segment is read front to back; each unit's summary, each frame's checksums and identity, and
//! each block's fingerprint are verified. A damaged summary does not hide the units behind it: the
//! next one is looked for page by page, and what lies between is left to whoever finds a map entry
//! that points there. What the device does not give is read again in blocks, so that a bad sector
//! costs what lies on it and nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use siltstone_dedup::{ShortFingerprint, fingerprint};
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset, Place, SegmentId, Unreadable, request,
    units::{MAX_FRAME_BLOCKS, MAX_FRAME_STORED_BYTES},
};

use crate::{
    compress::Decompressor,
    core::Core,
    error::{FrameError, MetadataError},
    findings::Problem,
    frame::{self, FrameIdentity},
    pace::Pace,
    recovery,
    segment_table::{Segment, SegmentState, SegmentTable},
    write_unit::Summary,
};

/// Length of the device reads.
const READ_BYTES: u64 = 1 << 20;

/// What a segment turned out to hold.
#[derive(Default)]
pub(crate) struct VerifiedSegment {
    pub(crate) units: u64,
    pub(crate) unit_bytes: u64,
    /// Whole frames: from a frame's offset to its blocks.
    pub(crate) frames: BTreeMap<u32, u8>,
    /// Frames that a summary names and that are not whole.
    pub(crate) damaged: Vec<u32>,
    /// Where no whole summary says what is there.
    pub(crate) unknown: Vec<Range<u32>>,
    /// Blocks of whole frames without the right fingerprint: a bit for each, by frame offset.
    pub(crate) wrong: BTreeMap<u32, u64>,
    /// Blocks in frames, whole or not.
    pub(crate) stored_blocks: u64,
    /// Blocks whose fingerprints were compared.
    pub(crate) blocks: u64,
    pub(crate) problems: Vec<Problem>,
}

/// Whether a segment is still in the use in which it was found, so that what was read of it
/// meanwhile counts.
pub(crate) fn is_same_use(core: &Core, id: SegmentId, generation: u64) -> bool {
    core.table.segment(id).is_some_and(|now| now.generation == generation && holds_units(&now))
}

/// Whether a segment is used for write units.
pub(crate) fn holds_units(segment: &Segment) -> bool {
    matches!(segment.state, SegmentState::Data | SegmentState::Frontier)
}

/// What there is to read in the segments from this one on.
pub(crate) fn used_bytes(table: &SegmentTable, from: u32) -> u64 {
    let segments = (from..table.len()).filter_map(|id| table.segment(SegmentId(id)));
    segments.filter(holds_units).map(|segment| u64::from(segment.used_bytes)).sum()
}

/// Reads and verifies the used part of a segment. Memory: the segment.
pub(crate) async fn segment(
    core: &Core,
    id: SegmentId,
    segment: &Segment,
    pace: &mut Pace<'_>,
) -> VerifiedSegment {
    let start = core.superblock.layout.geometry().segment_start(id);
    let mut found = VerifiedSegment::default();
    let bytes = read(core, id, start, used(core, segment), pace, &mut found.problems).await;
    let unreadable: Vec<_> = found.problems.iter().filter_map(unreadable).collect();
    let mut at = 0;
    while at + BLOCK_BYTES <= bytes.len() {
        match summary_at(core, &bytes, at, id, segment.generation) {
            Ok(summary) => {
                found.units += 1;
                found.unit_bytes += u64::from(summary.unit_bytes);
                verify_unit(core, &bytes, at, &summary, &unreadable, &mut found);
                at += summary.unit_bytes as usize;
            }
            Err(reason) => {
                let page = at as u32..(at + BLOCK_BYTES) as u32;
                match found.unknown.last_mut() {
                    Some(last) if last.end == page.start => last.end = page.end,
                    // Reported once; then the next unit is looked for.
                    _ => {
                        let offset_bytes = at as u64;
                        found.problems.push(Problem::Unit { segment: id, offset_bytes, reason });
                        found.unknown.push(page);
                    }
                }
                at += BLOCK_BYTES;
            }
        }
    }
    found
}

/// The fingerprints of a segment's blocks, by place, as far as whole summaries say. Memory: the
/// segment.
pub(crate) async fn fingerprints(
    core: &Core,
    id: SegmentId,
    segment: &Segment,
) -> HashMap<Place, ShortFingerprint> {
    let start = core.superblock.layout.geometry().segment_start(id);
    let mut pace = Pace::new(&*core.runtime, None);
    let bytes = read(core, id, start, used(core, segment), &mut pace, &mut Vec::new()).await;
    let mut found = HashMap::new();
    let mut at = 0;
    while at + BLOCK_BYTES <= bytes.len() {
        let Ok(summary) = summary_at(core, &bytes, at, id, segment.generation) else {
            at += BLOCK_BYTES;
            continue;
        };
        let mut fingerprints = summary.fingerprints.iter();
        for frame in &summary.frames {
            let offset = at + frame.offset_bytes as usize;
            let place = frame::place_of(id, offset, frame.stored_bytes as usize);
            let of_frame = fingerprints.by_ref().take(frame.block_count.into());
            found.extend((0..).map_while(|at| place.advanced(at)).zip(of_frame.copied()));
        }
        at += summary.unit_bytes as usize;
    }
    found
}

/// Bytes of a segment to read. A hostile table may say anything.
fn used(core: &Core, segment: &Segment) -> u64 {
    let used = u64::from(segment.used_bytes).min(core.superblock.layout.segment_bytes);
    used - used % BLOCK_BYTES as u64
}

/// The summary at an offset of a segment's bytes. A whole one of another use of the segment is what a
/// lost write leaves.
fn summary_at(
    core: &Core,
    bytes: &[u8],
    at: usize,
    id: SegmentId,
    generation: u64,
) -> Result<Summary, MetadataError> {
    let start = core.superblock.layout.geometry().segment_start(id);
    let address = start.plus(at as u64);
    let summary = Summary::decode(&bytes[at..], core.superblock.pool, address)?;
    let wrong = |field, value| MetadataError::Inconsistent {
        structure: "write unit summary",
        field,
        value,
    };
    if summary.segment != id {
        return Err(wrong("segment", summary.segment.0.into()));
    }
    if summary.generation != generation {
        return Err(wrong("generation", summary.generation));
    }
    Ok(summary)
}

/// Reads the beginning of a segment; zeros where the device gives nothing.
async fn read(
    core: &Core,
    id: SegmentId,
    start: ByteOffset,
    used: u64,
    pace: &mut Pace<'_>,
    problems: &mut Vec<Problem>,
) -> AlignedBuffer {
    let piece_bytes = if pace.is_limited() { READ_BYTES } else { used.max(READ_BYTES) };
    let mut bytes = AlignedBuffer::zeroed(used as usize);
    for (number, piece) in (0..).zip(bytes.chunks_mut(piece_bytes as usize)) {
        let (offset, len_bytes) = (start.plus(number * piece_bytes), piece.len() as u64);
        pace.take(len_bytes).await;
        let unreadable = recovery::read_segment(&*core.device, &core.buffers, offset, piece).await;
        let unreadable = unreadable.unwrap_or_else(|cause| {
            // A device that was closed gives nothing.
            piece.fill(0);
            vec![Unreadable { offset, len_bytes, cause }]
        });
        if !unreadable.is_empty() {
            // All of it was read again, block by block.
            pace.take(len_bytes).await;
        }
        for blocks in unreadable {
            note_unreadable(problems, id, blocks.offset.0 - start.0, blocks);
        }
    }
    bytes
}

/// Reports blocks that the device does not give, together with those before them.
fn note_unreadable(problems: &mut Vec<Problem>, segment: SegmentId, at: u64, blocks: Unreadable) {
    if let Some(Problem::Read { offset_bytes, len_bytes, .. }) = problems.last_mut()
        && *offset_bytes + *len_bytes == at
    {
        *len_bytes += blocks.len_bytes;
        return;
    }
    let Unreadable { len_bytes, cause: source, .. } = blocks;
    problems.push(Problem::Read { segment, offset_bytes: at, len_bytes, source });
}

/// Verifies the frames of a unit and their blocks against its fingerprints.
fn verify_unit(
    core: &Core,
    segment: &[u8],
    at: usize,
    summary: &Summary,
    unreadable: &[Range<usize>],
    found: &mut VerifiedSegment,
) {
    let mut fingerprints = summary.fingerprints.iter();
    let mut plain = core.buffers.take(MAX_FRAME_BLOCKS * BLOCK_BYTES);
    found.stored_blocks += summary.fingerprints.len() as u64;
    for unit_frame in &summary.frames {
        let offset = at + unit_frame.offset_bytes as usize;
        let place = frame::place_of(summary.segment, offset, unit_frame.stored_bytes as usize);
        let expected: Vec<_> = fingerprints.by_ref().take(unit_frame.block_count.into()).collect();
        let bytes = segment.get(offset..).unwrap_or(&[]);
        let key = place.frame_offset_bytes();
        let end = offset + place.stored_bytes().unwrap_or(MAX_FRAME_STORED_BYTES);
        if unreadable.iter().any(|blocks| offset < blocks.end && blocks.start < end) {
            // Zeros stand for what was not read, and may be what the frame has there.
            found.damaged.push(key);
            continue;
        }
        match decode(core, bytes, place, summary.generation, &mut plain) {
            Ok(count) if count == expected.len() => {
                found.frames.insert(key, unit_frame.block_count);
                let blocks = plain.as_chunks::<BLOCK_BYTES>().0;
                for (index, (block, expected)) in (0..).zip(blocks.iter().zip(expected)) {
                    found.blocks += 1;
                    if fingerprint(block).short() != *expected {
                        let place = place.advanced(index).unwrap_or(place);
                        found.problems.push(Problem::Fingerprint { place });
                        *found.wrong.entry(key).or_default() |= 1 << index;
                    }
                }
            }
            Ok(count) => {
                let (field, value) = ("block count", count as u64);
                let error = FrameError::Header { place, field, value };
                found.damaged.push(key);
                found.problems.push(Problem::Frame(error));
            }
            Err(error) => {
                found.damaged.push(key);
                found.problems.push(Problem::Frame(error));
            }
        }
    }
}

/// Where the device gave nothing.
fn unreadable(problem: &Problem) -> Option<Range<usize>> {
    let Problem::Read { offset_bytes, len_bytes, .. } = problem else { return None };
    Some(*offset_bytes as usize..(offset_bytes + len_bytes) as usize)
}

/// Verifies and decodes the frame at the start of `bytes`; returns its number of blocks.
fn decode(
    core: &Core,
    bytes: &[u8],
    place: Place,
    generation: u64,
    plain: &mut AlignedBuffer,
) -> Result<usize, FrameError> {
    let identity = FrameIdentity { pool: core.superblock.pool, place, generation };
    let frame = frame::verify(bytes, &identity)?;
    Decompressor::with(|decompressor| frame.decode_all(decompressor, plain))?;
    Ok(frame.block_count)
}

/// Reads the frame at a place from the device, whether or not it is cached, and verifies and
/// decodes it; returns its number of blocks.
pub(crate) async fn frame_at(
    core: &Core,
    place: Place,
    generation: u64,
    pace: &mut Pace<'_>,
) -> Result<usize, FrameError> {
    let place = place.frame();
    if u64::from(place.frame_offset_bytes()) >= core.superblock.layout.segment_bytes {
        return Err(FrameError::OutOfPool { place });
    }
    let (start, end) = core.device_range(place);
    debug_assert!(end - start <= (MAX_FRAME_STORED_BYTES + 2 * BLOCK_BYTES) as u64);
    pace.take(end - start).await;
    let buffer = core.buffers.take((end - start) as usize);
    let read = request::read(&*core.device, ByteOffset(start), buffer).await;
    let bytes = read.map_err(|source| FrameError::Device { place, source })?;
    let skip = (core.frame_start(place) - start) as usize;
    let mut plain = core.buffers.take(MAX_FRAME_BLOCKS * BLOCK_BYTES);
    decode(core, bytes.get(skip..).unwrap_or(&[]), place, generation, &mut plain)
}
