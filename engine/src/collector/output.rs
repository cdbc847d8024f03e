//! Where moved blocks go: segments of the collector's own, filled unit by unit.
//!
//! What has lived long goes to other segments than what has not ([`Age`]): blocks that die at about
//! the same time leave segments that are all dead or all alive, and moving either is no work. What
//! has just been written is told apart by the write path (see `temperature`).
//!
//! They are no part of the frontier: only patches of a later checkpoint refer to what is written
//! here, and that checkpoint flushes the device first, so recovery need not look. A unit of the
//! collector has number 0 and no entries; its summary serves the index and verification. A segment
//! that was being filled when the pool was closed stays as full as it is.

use std::{collections::BTreeSet, ops::Range};

use siltstone_cursor::MapError;
use siltstone_dedup::ShortFingerprint;
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BlockAddress, ByteOffset, Durability, LayerId, Place, SegmentId,
    Sequence,
    request::{self, Pending},
    units::PLACE_GRAIN_BYTES,
};

use crate::{
    compress::{Compressor, Decompressor},
    compression::Framing,
    config::FRAME_BLOCKS,
    core::Core,
    frame::{self, Codec, FRAME_HEADER_BYTES, FrameBody},
    framing::{self, Framed},
    planned::PlannedFrame,
    segment_table::{Segment, SegmentState},
    staged_data::{self, Altered},
    stats::add,
    summaries::SummaryCache,
    write_unit::{Summary, frames_start, summary_bytes, worst_unit_bytes},
};

/// Most blocks in one unit.
const UNIT_BLOCKS: usize = 256;
/// Units under way to the device.
const MAX_IN_FLIGHT: usize = 4;

/// Pools with fewer segments do not tell blocks by age.
const MIN_SEGMENTS_BY_AGE: u32 = 128;

/// The number that units of the collector have: those of the sealer count from 1.
const UNIT_NUMBER: u64 = 0;

/// How long a block has lived where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Age {
    /// Less than it takes to write half as many segments as the pool has.
    Young,
    /// Less than it takes to write twice as many.
    Grown,
    /// Longer.
    Old,
}

impl Age {
    pub(super) const ALL: [Self; 3] = [Self::Young, Self::Grown, Self::Old];

    /// Of blocks in a segment of some generation. In a small pool all count as young: it has no
    /// segments to spare.
    pub(super) fn of(core: &Core, generation: u64) -> Self {
        let segments = core.table.len();
        let age = core.table.next_generation().saturating_sub(generation);
        match u64::from(segments) {
            _ if segments < MIN_SEGMENTS_BY_AGE => Self::Young,
            segments if age < segments / 2 => Self::Young,
            segments if age < segments * 2 => Self::Grown,
            _ => Self::Old,
        }
    }
}

/// See the module's page.
pub(super) struct Output {
    compressor: Compressor,
    /// By age.
    open: [Option<OpenSegment>; Age::ALL.len()],
    in_flight: Vec<Written>,
}

struct OpenSegment {
    id: SegmentId,
    generation: u64,
    used_bytes: u64,
}

/// A unit on its way to the device.
struct Written {
    address: ByteOffset,
    summary: Summary,
    write: Pending<AlignedBuffer>,
}

/// Blocks to be stored anew.
#[derive(Default)]
pub(super) struct MovedBlocks {
    pub(super) plain: Vec<u8>,
    pub(super) fingerprints: Vec<ShortFingerprint>,
    /// Their sums, made when they were read.
    pub(super) sums: Vec<u32>,
    /// Where they are now.
    pub(super) from: Vec<Place>,
    /// Whose blocks they are.
    pub(super) addresses: Vec<(LayerId, BlockAddress)>,
}

impl MovedBlocks {
    /// The blocks of each frame that they become, and its level.
    fn frames(&self, core: &Core) -> Vec<(Range<usize>, i8)> {
        let mut last: Option<(LayerId, Framing)> = None;
        // Blocks come by layers.
        let mut framing = |layer| match last {
            Some((known, framing)) if known == layer => framing,
            _ => last.insert((layer, core.framing_of_moves(layer))).1,
        };
        let framed: Vec<Framed> = self
            .addresses
            .iter()
            .map(|&(layer, address)| Framed { layer, address, framing: framing(layer) })
            .collect();
        let frames = framing::cut(framed.iter().copied()).into_iter();
        frames.map(|range| (range.clone(), framed[range.start].framing.level)).collect()
    }
}

/// Whether frames decode to blocks with these sums. What changed in memory after the blocks were
/// read, or in compressing, is not what their old frames hold, which will soon be gone.
fn check_frames(unit: &[u8], frames: &[PlannedFrame], sums: &[u32]) -> Result<(), Altered> {
    let mut decoded = [0; FRAME_BLOCKS * BLOCK_BYTES];
    let mut first = 0;
    for PlannedFrame { offset_bytes, body } in frames {
        let plain = &mut decoded[..usize::from(body.block_count) * BLOCK_BYTES];
        let start = *offset_bytes as usize + FRAME_HEADER_BYTES;
        let stored = &unit[start..start + body.stored_bytes as usize];
        let is_decoded = match body.codec {
            Codec::Plain => {
                plain.copy_from_slice(stored);
                true
            }
            Codec::Zstd => Decompressor::with(|d| d.decompress(stored, plain)).is_some(),
        };
        for (index, block) in (first..).zip(plain.as_chunks().0) {
            if !is_decoded || staged_data::sum(block) != sums[index] {
                return Err(Altered { index });
            }
        }
        first += usize::from(body.block_count);
    }
    assert_eq!(first, sums.len(), "frames hold all blocks");
    Ok(())
}

/// Blocks of the largest unit.
fn most_blocks(core: &Core) -> usize {
    (core.tuning.batch_bytes / BLOCK_BYTES).min(UNIT_BLOCKS)
}

/// Bytes of a unit of blocks that do not compress, each in a frame of its own.
fn worst_bytes(blocks: usize) -> usize {
    worst_unit_bytes(0, blocks, blocks)
}

impl Output {
    pub(super) fn new() -> Self {
        Self { compressor: Compressor::new(), open: [None, None, None], in_flight: Vec::new() }
    }

    /// The segments that are being filled.
    pub(super) fn open_segments(&self) -> BTreeSet<SegmentId> {
        self.open.iter().flatten().map(|open| open.id).collect()
    }

    /// Bytes that can be stored before only what is kept back for patches is left.
    pub(super) fn room_bytes(&self, core: &Core) -> u64 {
        let segment_bytes = core.superblock.layout.segment_bytes;
        let kept = core.space.segments_not_for_moves(core.room());
        let spare = core.table.free_segments().saturating_sub(kept);
        let left = |open: &OpenSegment| segment_bytes - open.used_bytes;
        // What no frame is sure to fit into could be promised for ever and never used.
        let is_room = |left: &u64| *left >= worst_bytes(FRAME_BLOCKS) as u64;
        let left: u64 = self.open.iter().flatten().map(left).filter(is_room).sum();
        left + spare * segment_bytes
    }

    /// Gives up segments in which nothing lives any more.
    pub(super) fn close_dead(&mut self, core: &Core) {
        self.close_if(core, |segment| segment.references == 0);
    }

    /// Gives up segments in which damage was found: nothing could refer to what is moved there.
    pub(super) fn close_damaged(&mut self, core: &Core) {
        self.close_if(core, |segment| segment.is_damaged);
    }

    fn close_if(&mut self, core: &Core, is_over: fn(&Segment) -> bool) {
        for open in &mut self.open {
            open.take_if(|open| core.table.segment(open.id).as_ref().is_some_and(is_over));
        }
    }

    /// Where blocks of some age go next: to others of their age, unless there is no segment for
    /// them and some room with those of the other age. Room that nobody may use is none, and the
    /// collector is given only so much to move as there is room.
    pub(super) fn place_for(&self, core: &Core, age: Age) -> Age {
        let is_short = core.table.free_segments() <= core.space.patch_segments();
        let has_room = |age: Age| self.fitting_blocks(core, age) >= FRAME_BLOCKS;
        let other =
            Age::ALL.into_iter().find(|&other| is_short && !has_room(age) && has_room(other));
        other.unwrap_or(age)
    }

    /// How many blocks to store next, so that they fit what is left of the open segment even if
    /// they do not compress; if less than a frame would, as many as a new segment takes at once.
    pub(super) fn unit_blocks(&self, core: &Core, age: Age) -> usize {
        let fitting = self.fitting_blocks(core, age);
        if fitting >= FRAME_BLOCKS { fitting } else { most_blocks(core) }
    }

    fn fitting_blocks(&self, core: &Core, age: Age) -> usize {
        let segment_bytes = core.superblock.layout.segment_bytes;
        let open = self.open[age as usize].as_ref();
        let left = open.map_or(0, |open| segment_bytes - open.used_bytes) as usize;
        let fits = |blocks: &usize| worst_bytes(*blocks) <= left;
        (0..=most_blocks(core)).rev().find(fits).unwrap_or(0)
    }

    /// Stores blocks, at most [`unit_blocks`](Self::unit_blocks), as one unit; returns a place for each. They
    /// can be read after [`complete`](Self::complete).
    ///
    /// # Errors
    /// [`MapError::NoSpace`] if only what is kept back for patches is left.
    pub(super) fn store(
        &mut self,
        core: &Core,
        age: Age,
        blocks: &MovedBlocks,
    ) -> Result<Vec<Place>, MapError> {
        let MovedBlocks { plain, fingerprints, from, .. } = blocks;
        let block_count = fingerprints.len();
        assert_eq!(plain.len(), block_count * BLOCK_BYTES, "a fingerprint for each block");
        assert!((1..=UNIT_BLOCKS).contains(&block_count), "a unit has blocks");
        let grain = PLACE_GRAIN_BYTES as usize;
        let ranges = blocks.frames(core);
        let frame_count = ranges.len();
        let summary_len = summary_bytes(0, frame_count, block_count);
        let mut buffer = core.buffers.take(worst_bytes(block_count));
        let mut end = frames_start(summary_len);
        buffer[summary_len..end].fill(0);
        let mut frames = Vec::with_capacity(frame_count);
        for (range, level) in ranges {
            let plain = &plain[range.start * BLOCK_BYTES..range.end * BLOCK_BYTES];
            let out = &mut buffer[end + FRAME_HEADER_BYTES..];
            let sums = &blocks.sums[range];
            let body = FrameBody::store(&mut self.compressor, plain, sums, level, out);
            frames.push(PlannedFrame { offset_bytes: end as u32, body });
            let stored_end = end + body.total_bytes();
            end = stored_end.next_multiple_of(grain);
            buffer[stored_end..end].fill(0);
        }
        let unit_bytes = end.next_multiple_of(BLOCK_BYTES);
        buffer.set_len(unit_bytes);
        buffer[end..].fill(0);
        if let Err(Altered { index }) = check_frames(&buffer, &frames, &blocks.sums) {
            add(&core.stats.counters.staging_faults, 1);
            return Err(MapError::Altered { from: from[index] });
        }
        self.make_room(core, age, unit_bytes as u64)?;
        Ok(self.place(core, age, buffer, &frames, fingerprints))
    }

    /// Makes sure that the open segment has room.
    fn make_room(&mut self, core: &Core, age: Age, unit_bytes: u64) -> Result<(), MapError> {
        let segment_bytes = core.superblock.layout.segment_bytes;
        let fits = |open: &OpenSegment| open.used_bytes + unit_bytes <= segment_bytes;
        if self.open[age as usize].as_ref().is_some_and(fits) {
            return Ok(());
        }
        if core.table.free_segments() <= core.space.segments_not_for_moves(core.room()) {
            return Err(MapError::NoSpace);
        }
        let taken = core.table.take(SegmentState::Data).ok_or(MapError::NoSpace)?;
        let (id, generation) = taken;
        self.open[age as usize] = Some(OpenSegment { id, generation, used_bytes: 0 });
        Ok(())
    }

    /// Places the unit in `buffer` in the open segment and submits it.
    fn place(
        &mut self,
        core: &Core,
        age: Age,
        mut buffer: AlignedBuffer,
        frames: &[PlannedFrame],
        fingerprints: &[ShortFingerprint],
    ) -> Vec<Place> {
        let open = self.open[age as usize].as_mut().expect("room was made");
        let segment_start = core.superblock.layout.geometry().segment_start(open.id);
        let address = segment_start.plus(open.used_bytes);
        let pool = core.superblock.pool;
        let mut places = Vec::with_capacity(fingerprints.len());
        for planned in frames {
            let (offset, body) = (planned.offset_bytes as usize, &planned.body);
            let in_segment = open.used_bytes as usize + offset;
            let first = frame::place_of(open.id, in_segment, body.total_bytes());
            body.write_header(pool, open.generation, first, &mut buffer[offset..]);
            let place = |index: u8| first.advanced(index.into()).expect("frames hold few blocks");
            places.extend((0..body.block_count).map(place));
        }
        let unit_bytes = buffer.len();
        let summary = Summary {
            number: UNIT_NUMBER,
            segment: open.id,
            generation: open.generation,
            first_sequence: Sequence(0),
            last_sequence: Sequence(0),
            unit_bytes: unit_bytes as u32,
            is_continued: false,
            entries: Vec::new(),
            frames: frames.iter().map(PlannedFrame::in_summary).collect(),
            fingerprints: fingerprints.to_vec(),
        };
        summary.encode(pool, address, &mut buffer);
        open.used_bytes += unit_bytes as u64;
        let write = request::write(&*core.device, address, buffer, Durability::Flush);
        self.in_flight.push(Written { address, summary, write });
        places
    }

    /// Waits until few enough units are under way that another may follow: each holds its buffer.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) async fn make_way(&mut self, core: &Core) -> Result<(), MapError> {
        if self.in_flight.len() >= MAX_IN_FLIGHT { self.complete(core).await } else { Ok(()) }
    }

    /// Waits until all units are on the device; then tells the segment table and the index of them.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) async fn complete(&mut self, core: &Core) -> Result<(), MapError> {
        for Written { address, summary, write } in self.in_flight.drain(..) {
            write.await.map_err(|source| MapError::Write { source })?;
            let blocks = summary.fingerprints.len() as u32;
            core.table.note_unit(summary.segment, blocks, summary.unit_bytes);
            add(&core.stats.counters.collector_unit_bytes, summary.unit_bytes.into());
            core.summaries.insert(address, &summary);
            core.index.insert_batch(&summary.fingerprints, SummaryCache::unit_at(address));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use siltstone_device::SeededRandom;

    use super::*;

    fn sums_of(plain: &[u8]) -> Vec<u32> {
        plain.as_chunks().0.iter().map(staged_data::sum).collect()
    }

    /// Two frames, one that compresses and one that does not, of the blocks in `plain`, which came with
    /// `sums`.
    fn unit(plain: &[u8], sums: &[u32]) -> (Vec<u8>, Vec<PlannedFrame>) {
        let mut unit = vec![0; 2 * (FRAME_HEADER_BYTES + plain.len())];
        let (mut frames, mut end) = (Vec::new(), 0);
        for (blocks, sums) in
            plain.chunks(FRAME_BLOCKS * BLOCK_BYTES).zip(sums.chunks(FRAME_BLOCKS))
        {
            let out = &mut unit[end + FRAME_HEADER_BYTES..];
            let body = FrameBody::store(&mut Compressor::new(), blocks, sums, 3, out);
            frames.push(PlannedFrame { offset_bytes: end as u32, body });
            end += body.total_bytes();
        }
        (unit, frames)
    }

    #[test]
    fn a_block_that_changed_after_it_was_read_is_not_stored() {
        let mut plain = vec![b'a'; (FRAME_BLOCKS + 3) * BLOCK_BYTES];
        SeededRandom::new(1).fill(&mut plain[FRAME_BLOCKS * BLOCK_BYTES..]);
        let sums = sums_of(&plain);
        let (stored, frames) = unit(&plain, &sums);
        let codecs: Vec<Codec> = frames.iter().map(|frame| frame.body.codec).collect();
        assert_eq!(codecs, [Codec::Zstd, Codec::Plain]);
        assert_eq!(check_frames(&stored, &frames, &sums), Ok(()));
        for index in 0..sums.len() {
            let mut altered = plain.clone();
            altered[index * BLOCK_BYTES + 77 * index] ^= 4;
            let (stored, frames) = unit(&altered, &sums);
            assert_eq!(check_frames(&stored, &frames, &sums), Err(Altered { index }));
        }
    }

    #[test]
    fn a_frame_that_does_not_decode_is_not_stored() {
        let plain = vec![b'a'; 2 * BLOCK_BYTES];
        let sums = sums_of(&plain);
        let (mut stored, frames) = unit(&plain, &sums);
        stored[FRAME_HEADER_BYTES..][..4].fill(0);
        assert!(check_frames(&stored, &frames, &sums).is_err());
    }
}
