//! Recovery: from the checkpoint record, the frontier and the NVRAM log to the state at the last
//! acknowledged flush, or a little later.
//!
//! # What is found, and what is done
//! | found | verdict |
//! |---|---|
//! | unit with number <= the record's | in patches already: counted, not applied; damage of its frames is for reads to report |
//! | whole unit, all units before it whole | applied |
//! | whole unit that is continued by one that is missing or torn | ignored, for it holds only part of its changes |
//! | whole unit after a missing or torn one | never acknowledged but through the log: ignored, for it may link into the missing one |
//! | torn unit, or one of an older use of the segment | the end of what counts in that segment |
//! | log change up to the last applied unit | applied already: skipped |
//! | later log change | admitted again under its own sequence number |
//! | log trimmed beyond the last applied unit | acknowledged data is missing: refused |
//! | log change that does not follow what was found so far | so it is |
//! | less than the durability mark says was durable | so it is |
//! | a unit or record that was durable is not whole, but all its changes are found elsewhere | reported |
//! | blocks that cannot be read | taken for zeros, so that any of the above may follow; reported |
//!
//! Opening for writing goes on in the segment of the last unit that counts, behind it: otherwise
//! every opening would use a segment up. What stands there is overwritten with zeros first, and a
//! checkpoint is stored before anything else is written: what was ignored once can never count
//! later.
//!
//! The time is bounded by the frontier and the ring, whatever the pool's size.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BufferPool, ByteOffset, Device, DeviceError, Durability, SegmentId,
    Sequence, Unreadable, request, salvage,
};

use siltstone_cursor::Target;
use siltstone_nvram::{Log, Mark, Replay};

use crate::{
    error::{EngineError, MetadataError, Result},
    frame::{self, FrameIdentity},
    frontier::FrontierSegment,
    layout::Layout,
    record::CheckpointBody,
    repair::Repair,
    segment_table::{Segment, SegmentState, SegmentTable},
    write_unit::Summary,
};

/// Length of the device reads with which a segment is scanned, all under way at once.
const SCAN_READ_BYTES: u64 = 1 << 20;

/// A whole write unit found on the device.
pub(crate) struct FoundUnit {
    pub(crate) address: ByteOffset,
    pub(crate) summary: Summary,
}

/// What the frontier held.
pub(crate) struct RecoveredUnits {
    /// Units to apply, oldest first: consecutive numbers after the record's.
    pub(crate) units: Vec<FoundUnit>,
    /// Units that patches cover already, in frontier segments.
    pub(crate) covered: Vec<FoundUnit>,
    /// The last unit's number and last change, or the record's.
    pub(crate) unit: u64,
    pub(crate) sequence: Sequence,
    /// Frontier segments that hold any of these, oldest first, for the next checkpoint to settle.
    pub(crate) begun: Vec<FrontierSegment>,
    /// What is behind the last unit, if it is in the last of these segments.
    pub(crate) tail: Option<Tail>,
    /// The first unit that is missing, or not whole.
    pub(crate) missing_unit: u64,
    /// Where it may stand, if that is known.
    pub(crate) missing_place: Option<(SegmentId, u64)>,
    /// What cannot be read of frontier segments, but for units that patches cover.
    unreadable: Vec<(SegmentId, Unreadable)>,
}

impl RecoveredUnits {
    /// Changes up to `durable` were durable and only those up to `recovered` are found.
    pub(crate) fn missing(&self, recovered: Sequence, durable: Sequence) -> EngineError {
        let (unit, place) = (self.missing_unit, self.missing_place);
        let is_there = |(id, _): &&_| place.is_some_and(|(segment, _)| segment == *id);
        let blocks = self.unreadable.iter().find(is_there).or(self.unreadable.first());
        let unreadable = blocks.map(|(_, blocks)| Box::new(blocks.clone()));
        MetadataError::MissingUnit { unit, place, recovered, durable, unreadable }.into()
    }

    /// Compares what the mark says was durable with what was recovered: units, and changes up to
    /// `reached` with those of the log. Returns what is damaged or cannot be read without being
    /// missed.
    ///
    /// # Errors
    /// If a change that was durable is missing.
    pub(crate) fn check_mark(
        &self,
        mark: &Mark,
        log: &Log,
        replay: &Replay,
        reached: Sequence,
    ) -> Result<Vec<Repair>> {
        let lost_unit = mark.unit > self.unit;
        let lost_record = replay.lost_record(mark.record);
        if reached < mark.sequence {
            return Err(match lost_record {
                Some(error) if !lost_unit => error.into(),
                _ => self.missing(reached, mark.sequence),
            });
        }
        let lost_unit = lost_unit
            .then_some(Repair::Unit { unit: self.missing_unit, place: self.missing_place });
        let mut repairs: Vec<_> = lost_unit.into_iter().collect();
        repairs.extend(lost_record.map(Repair::LogRecord));
        repairs.extend(log.unreadable().iter().cloned().map(Repair::UnreadableLog));
        let segments = self.unreadable.iter().cloned();
        repairs.extend(
            segments.map(|(segment, blocks)| Repair::UnreadableSegment { segment, blocks }),
        );
        Ok(repairs)
    }
}

/// The end of the segment in which the last unit stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tail {
    /// Behind the last unit.
    pub(crate) start: ByteOffset,
    /// Only zeros follow so many of these.
    dirty_bytes: u64,
}

impl Tail {
    /// Overwrites what is left there of units that do not count. Durable by the next flush.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) async fn clean(&self, device: &dyn Device) -> Result<()> {
        for at in (0..self.dirty_bytes).step_by(SCAN_READ_BYTES as usize) {
            let len = SCAN_READ_BYTES.min(self.dirty_bytes - at);
            let zeros = AlignedBuffer::zeroed(len as usize);
            request::write(device, self.start.plus(at), zeros, Durability::Flush).await?;
        }
        Ok(())
    }
}

/// What a scan of a segment found.
#[derive(Default)]
pub(crate) struct ScannedSegment {
    pub(crate) units: Vec<FoundUnit>,
    /// Only zeros follow so many bytes.
    dirty_bytes: u64,
    /// What cannot be read behind the units that patches cover.
    unreadable: Vec<Unreadable>,
}

/// Scans one segment for whole units of its present use, front to back. Of those up to number
/// `covered` only the summaries are looked at: they are durable and in patches, and a frame that
/// has been damaged since must not pass for a torn end that hides what follows.
pub(crate) async fn scan_segment(
    device: &dyn Device,
    buffers: &BufferPool,
    pool: u64,
    layout: &Layout,
    id: SegmentId,
    segment: &Segment,
    covered: u64,
) -> Result<ScannedSegment> {
    let start = layout.geometry().segment_start(id);
    let first = salvage::read(device, start, buffers.take(BLOCK_BYTES)).await?;
    // Most of the frontier is unused; the rest need not be read.
    if segment.used_bytes == 0 && Summary::peek_bytes(first.bytes()).is_none() {
        let unreadable = first.unreadable().to_vec();
        return Ok(ScannedSegment { unreadable, ..ScannedSegment::default() });
    }
    let mut bytes = AlignedBuffer::zeroed(layout.segment_bytes as usize);
    let mut unreadable = read_segment(device, buffers, start, &mut bytes).await?;
    let units = parse_segment(&bytes, pool, start, id, segment.generation, covered);
    let end = |blocks: &Unreadable| blocks.offset.0 + blocks.len_bytes - start.0;
    let last = bytes.iter().rposition(|&byte| byte != 0);
    let dirty = last.map_or(0, |last| (last + 1).next_multiple_of(BLOCK_BYTES) as u64);
    // What cannot be read now is no zeros: it must not turn into a unit one day.
    let dirty_bytes = unreadable.last().map_or(0, end).max(dirty);
    // What cannot be read in units that patches cover is for reads of it to report.
    let covered_units = units.iter().filter(|unit| unit.summary.number <= covered);
    let ends = covered_units.map(|unit| unit.address.0 + u64::from(unit.summary.unit_bytes));
    let covered_bytes = ends.max().map_or(0, |end| end - start.0);
    unreadable.retain(|blocks| end(blocks) > covered_bytes);
    Ok(ScannedSegment { units, dirty_bytes, unreadable })
}

/// Reads the beginning of a segment, as much as is asked for. Returns what the device does not give,
/// in place of which there are zeros.
pub(crate) async fn read_segment(
    device: &dyn Device,
    buffers: &BufferPool,
    start: ByteOffset,
    out: &mut [u8],
) -> std::result::Result<Vec<Unreadable>, DeviceError> {
    let pieces = out.chunks_mut(SCAN_READ_BYTES as usize);
    let reads: Vec<_> = (0..)
        .zip(pieces)
        .map(|(number, piece)| {
            let at = start.plus(number * SCAN_READ_BYTES);
            (salvage::read(device, at, buffers.take(piece.len())), piece)
        })
        .collect();
    let mut unreadable = Vec::new();
    for (read, piece) in reads {
        let read = read.await?;
        piece.copy_from_slice(read.bytes());
        unreadable.extend_from_slice(read.unreadable());
    }
    Ok(unreadable)
}

/// Finds the whole units in a segment's bytes, up to the first that is torn.
fn parse_segment(
    segment: &[u8],
    pool: u64,
    start: ByteOffset,
    id: SegmentId,
    generation: u64,
    covered: u64,
) -> Vec<FoundUnit> {
    let mut units = Vec::new();
    let mut at = 0;
    while at + BLOCK_BYTES <= segment.len() {
        let address = start.plus(at as u64);
        // Behind a damaged summary of a unit that patches cover there may be units that count.
        // Behind one that they do not cover nothing does: its number will be missing.
        let Ok(summary) = Summary::decode(&segment[at..], pool, address) else {
            at += BLOCK_BYTES;
            continue;
        };
        let end = at + summary.unit_bytes as usize;
        let belongs = summary.generation == generation && summary.segment == id;
        if !belongs || end > segment.len() {
            at += BLOCK_BYTES;
            continue;
        }
        if summary.number > covered && !frames_are_whole(&segment[..end], at, &summary, pool) {
            break;
        }
        units.push(FoundUnit { address, summary });
        at = end;
    }
    units
}

/// Whether every frame of the unit at `at` is there and whole.
fn frames_are_whole(segment: &[u8], at: usize, summary: &Summary, pool: u64) -> bool {
    summary.frames.iter().all(|unit_frame| {
        let offset = at + unit_frame.offset_bytes as usize;
        let stored = unit_frame.stored_bytes as usize;
        let place = frame::place_of(summary.segment, offset, stored);
        let identity = FrameIdentity { pool, place, generation: summary.generation };
        let Some(bytes) = segment.get(offset..) else { return false };
        frame::verify(bytes, &identity)
            .is_ok_and(|frame| frame.block_count == usize::from(unit_frame.block_count))
    })
}

/// The segments that units' entries refer to.
fn referred_to(units: &[FoundUnit]) -> BTreeSet<SegmentId> {
    let entries = units.iter().flat_map(|unit| &unit.summary.entries);
    let segments = entries.filter_map(|(extent, _)| match extent.target {
        Target::Stored(place) => Some(place.segment()),
        Target::Hole => None,
    });
    segments.collect()
}

/// Of the units that were found those that count, by number: all up to the record's `unit`, and those
/// that follow without a gap, as long as all of a batch are there.
fn counting(found: BTreeMap<u64, FoundUnit>, body: &CheckpointBody) -> Vec<FoundUnit> {
    let mut units: Vec<FoundUnit> = Vec::with_capacity(found.len());
    let (mut last_number, mut last_sequence) = (body.unit, body.sequence);
    // The changes of which the next unit must hold the rest.
    let mut begun: Option<(Sequence, Sequence)> = None;
    let mut whole = 0;
    for (number, unit) in found {
        let summary = &unit.summary;
        let changes = (summary.first_sequence, summary.last_sequence);
        if number > body.unit {
            let follows = match begun {
                Some(begun) => changes == begun,
                None => summary.first_sequence > last_sequence,
            };
            if number != last_number + 1 || !follows {
                break;
            }
            (last_number, last_sequence) = (number, summary.last_sequence);
            begun = summary.is_continued.then_some(changes);
        }
        units.push(unit);
        if begun.is_none() {
            whole = units.len();
        }
    }
    units.truncate(whole);
    units
}

/// Where a unit may stand that is not whole: behind the newest one that counts, or, if nothing is
/// there but a whole one, behind the last one of the one other segment that has something there.
fn likely_place(
    behind_newest: Option<(SegmentId, u64)>,
    sizes: &BTreeMap<SegmentId, (u32, u32)>,
    dirty: &BTreeMap<SegmentId, u64>,
    whole: &BTreeSet<(SegmentId, u64)>,
) -> Option<(SegmentId, u64)> {
    let is_dirty = |place: &(SegmentId, u64)| {
        dirty.get(&place.0).is_some_and(|&end| end > place.1) && !whole.contains(place)
    };
    let mut others = sizes.iter().map(|(&id, &(_, end))| (id, end.into())).filter(is_dirty);
    match (behind_newest.filter(is_dirty), others.next(), others.next()) {
        (None, Some(only), None) => Some(only),
        _ => behind_newest,
    }
}

/// Scans the frontier and corrects what the table says of it.
pub(crate) async fn scan_frontier(
    device: &Arc<dyn Device>,
    buffers: &BufferPool,
    pool: u64,
    layout: &Layout,
    body: &CheckpointBody,
    table: &SegmentTable,
) -> Result<RecoveredUnits> {
    let mut found: BTreeMap<u64, FoundUnit> = BTreeMap::new();
    let mut dirty: BTreeMap<SegmentId, u64> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for &(id, generation) in &body.frontier {
        let reserved = table.segment(id).filter(|segment| {
            segment.state == SegmentState::Frontier && segment.generation == generation
        });
        let Some(segment) = reserved else {
            return Err(MetadataError::Inconsistent {
                structure: "segment table",
                field: "a frontier segment's entry",
                value: id.0.into(),
            }
            .into());
        };
        let covered = body.unit;
        let scanned = scan_segment(&**device, buffers, pool, layout, id, &segment, covered).await?;
        dirty.insert(id, scanned.dirty_bytes);
        unreadable.extend(scanned.unreadable.into_iter().map(|blocks| (id, blocks)));
        found.extend(scanned.units.into_iter().map(|unit| (unit.summary.number, unit)));
    }

    let mut held: BTreeMap<SegmentId, FrontierSegment> = BTreeMap::new();
    let mut sizes: BTreeMap<SegmentId, (u32, u32)> = BTreeMap::new();
    let mut recovered = RecoveredUnits {
        units: Vec::new(),
        covered: Vec::new(),
        unit: body.unit,
        sequence: body.sequence,
        begun: Vec::new(),
        tail: None,
        missing_unit: 0,
        missing_place: None,
        unreadable,
    };
    // The segment and the end of the newest unit, if it is here.
    let mut newest = None;
    let numbers: BTreeSet<u64> = found.keys().copied().collect();
    let in_segment = |unit: &FoundUnit| {
        let segment = unit.summary.segment;
        (segment, unit.address.0 - layout.geometry().segment_start(segment).0)
    };
    let whole: BTreeSet<_> = found.values().map(in_segment).collect();
    for unit in counting(found, body) {
        let summary = &unit.summary;
        let number = summary.number;
        let (blocks, bytes) = sizes.entry(summary.segment).or_default();
        *blocks += summary.fingerprints.len() as u32;
        let start = layout.geometry().segment_start(summary.segment);
        *bytes = (*bytes).max((unit.address.0 - start.0) as u32 + summary.unit_bytes);
        let has_room = u64::from(*bytes) < layout.segment_bytes;
        recovered.missing_place = has_room.then_some((summary.segment, (*bytes).into()));
        let segment = FrontierSegment {
            id: summary.segment,
            generation: summary.generation,
            last_sequence: summary.last_sequence,
            left_bytes: 0,
        };
        held.insert(summary.segment, segment);
        newest = Some((number, summary.segment, unit.address.plus(summary.unit_bytes.into())));
        if number <= body.unit {
            recovered.covered.push(unit);
        } else {
            recovered.unit = number;
            recovered.sequence = summary.last_sequence;
            recovered.units.push(unit);
        }
    }
    recovered.missing_unit =
        (recovered.unit + 1..).find(|number| !numbers.contains(number)).expect("units are few");
    recovered.missing_place = likely_place(recovered.missing_place, &sizes, &dirty, &whole);
    let newest = newest.filter(|&(number, ..)| number == recovered.unit);
    let referred_to = referred_to(&recovered.units);
    for &(id, generation) in &body.frontier {
        let (blocks, bytes) = sizes.get(&id).copied().unwrap_or_default();
        let recorded = table.segment(id).map_or((0, 0), |s| (s.stored_blocks, s.used_bytes));
        let is_referred_to =
            table.segment(id).is_some_and(|s| s.references > 0) || referred_to.contains(&id);
        if newest.is_some_and(|(_, newest, _)| newest == id) {
            table.recover_contents(id, blocks, bytes);
        } else if bytes > 0 || is_referred_to {
            // Damage of a summary must not free what it describes.
            table.recover_contents(id, blocks.max(recorded.0), bytes.max(recorded.1));
            let last_sequence = body.sequence;
            let segment = FrontierSegment { id, generation, last_sequence, left_bytes: 0 };
            held.entry(id).or_insert(segment);
        } else {
            table.recover_unused(id);
        }
    }
    // The newest unit of all must be among those found: behind another there may be one whose
    // summary is damaged.
    if let Some((_, id, start)) = newest
        && let Some(segment) = held.get_mut(&id)
    {
        let segment_start = layout.geometry().segment_start(id);
        let used_bytes = start.0 - segment_start.0;
        let dirty_bytes = dirty.get(&id).copied().unwrap_or(0).saturating_sub(used_bytes);
        segment.left_bytes = layout.segment_bytes - used_bytes;
        recovered.tail = Some(Tail { start, dirty_bytes });
    }
    recovered.begun = held.into_values().collect();
    recovered.begun.sort_by_key(|segment| segment.last_sequence);
    Ok(recovered)
}
