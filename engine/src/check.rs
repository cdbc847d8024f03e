//! Checking a whole pool offline: every checksum, every fingerprint against its data, every map
//! entry against the frame that it names, and the segment table against both.
//!
//! Segments are read front to back, a window of them at a time; for each window the map is walked
//! once, so that memory stays bounded whatever the pool's size. A damaged summary does not hide the
//! units behind it: the next one is looked for page by page, and a frame that no summary names is
//! read by its map entry.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use siltstone_cursor::{Extent, Target};
use siltstone_dedup::fingerprint;
use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, BlockAddress, LayerId, Place, SegmentId, request,
};

use crate::{
    compress::Decompressor,
    core::Core,
    error::Result,
    frame::{self, FrameIdentity},
    pool::Pool,
    recovery,
    repair::Repair,
    segment_table::{Segment, SegmentState},
    write_unit::Summary,
};

/// Segments whose frames are held in memory at a time.
const WINDOW_SEGMENTS: u32 = 4096;
/// Memory of a walk over the map.
const WALK_BUDGET_BYTES: usize = 8 << 20;
/// Problems that are described; more are only counted.
const MAX_PROBLEMS: usize = 10_000;

/// How far a check has come.
#[derive(Clone, Copy, Debug)]
pub struct CheckProgress {
    /// Segments looked at.
    pub segments: u64,
    /// Segments to look at.
    pub segments_total: u64,
}

/// Something that a check found wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    /// A page of the map is damaged.
    #[error("the map is damaged: {0}")]
    Map(siltstone_cursor::MapError),
    /// A write unit's summary is damaged or missing.
    #[error("{segment}, byte {offset_bytes}: no whole write unit where one must be: {reason}")]
    Unit {
        /// The segment.
        segment: SegmentId,
        /// Where in it.
        offset_bytes: u64,
        /// What is wrong.
        reason: crate::error::MetadataError,
    },
    /// A frame is damaged.
    #[error("{0}")]
    Frame(crate::error::FrameError),
    /// A block does not have the fingerprint that its summary says.
    #[error("{place}: the block's contents do not match its fingerprint")]
    Fingerprint {
        /// The block.
        place: Place,
    },
    /// A block of a volume cannot be read.
    #[error("lost: volume '{volume}', {address}, {len_blocks} block(s) at {place}")]
    Lost {
        /// The volume, or the layer's number if no volume writes to it.
        volume: String,
        /// The first block.
        address: BlockAddress,
        /// How many.
        len_blocks: u32,
        /// Where they should be.
        place: Place,
    },
    /// The segment table disagrees with what a segment holds or what refers to it.
    #[error("{segment}: the segment table says {field} = {recorded}, but {found} was found")]
    Table {
        /// The segment.
        segment: SegmentId,
        /// What is wrong.
        field: &'static str,
        /// What the table says.
        recorded: u64,
        /// What was found.
        found: u64,
    },
}

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// Segments with data that were read.
    pub segments: u64,
    /// Write units found whole.
    pub units: u64,
    /// Frames found whole.
    pub frames: u64,
    /// Blocks whose fingerprints were checked.
    pub blocks: u64,
    /// Map entries checked.
    pub entries: u64,
    /// Map pages checked.
    pub map_pages: u64,
    /// Everything wrong, at most ten thousand of them.
    #[serde(serialize_with = "as_sentences")]
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub more_problems: u64,
    /// What was found damaged and is held twice, or not needed: nothing is lost by it, and an
    /// opening for writing restores it.
    #[serde(serialize_with = "as_sentences")]
    pub repairs: Vec<Repair>,
}

fn as_sentences<S: serde::Serializer, T: ToString>(
    problems: &[T],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(problems.iter().map(T::to_string))
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn report(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }
}

/// Whole frames of a segment: from a frame's offset to its blocks.
type Frames = BTreeMap<u32, u8>;

impl Pool {
    /// Checks everything. Meant for a pool that is open for reading only: changes made meanwhile
    /// may be reported as problems.
    ///
    /// # Errors
    /// If the device fails; damage is part of the report.
    pub fn check(&self, progress: &mut dyn FnMut(CheckProgress)) -> Result<CheckReport> {
        pollster::block_on(check(self.core(), progress))
    }

    /// As [`check`](Self::check).
    ///
    /// # Errors
    /// As `check`.
    pub async fn check_async(
        &self,
        progress: &mut dyn FnMut(CheckProgress),
    ) -> Result<CheckReport> {
        check(self.core(), progress).await
    }
}

async fn check(core: &Core, progress: &mut dyn FnMut(CheckProgress)) -> Result<CheckReport> {
    let mut report = CheckReport { repairs: core.repairs.clone(), ..CheckReport::default() };
    let map = core.map.verify().await;
    report.map_pages = map.pages;
    report.more_problems += map.more_errors;
    for error in map.errors {
        report.report(Problem::Map(error));
    }
    let pages = core.map.manifest().pages();
    for id in (0..core.table.len()).map(SegmentId) {
        let Some(segment) = core.table.segment(id) else { continue };
        let references = map.data_references.get(&id).copied().unwrap_or(0);
        compare(&mut report, id, "references", segment.references, references);
        let found_pages = pages.get(&id).copied().unwrap_or(0);
        // Segments that the map took and abandoned are freed by the next checkpoint.
        if segment.state != SegmentState::Metadata || found_pages != 0 {
            compare(&mut report, id, "pages", segment.pages.into(), found_pages);
        }
    }
    let total = core.table.len();
    for first in (0..total).step_by(WINDOW_SEGMENTS as usize) {
        let end = (first + WINDOW_SEGMENTS).min(total);
        let mut frames = BTreeMap::new();
        for id in (first..end).map(SegmentId) {
            let segment = core.table.segment(id).expect("the table has this many");
            if matches!(segment.state, SegmentState::Data | SegmentState::Frontier) {
                frames.insert(id, check_segment(core, id, &segment, &mut report).await?);
            }
            let (segments, segments_total) = (u64::from(id.0) + 1, total.into());
            progress(CheckProgress { segments, segments_total });
        }
        check_entries(core, first..end, &frames, &mut report).await;
    }
    Ok(report)
}

fn compare(
    report: &mut CheckReport,
    segment: SegmentId,
    field: &'static str,
    recorded: u64,
    found: u64,
) {
    if recorded != found {
        report.report(Problem::Table { segment, field, recorded, found });
    }
}

/// Reads a segment's units; returns its whole frames.
async fn check_segment(
    core: &Core,
    id: SegmentId,
    segment: &Segment,
    report: &mut CheckReport,
) -> Result<Frames> {
    let layout = &core.superblock.layout;
    let start = layout.geometry().segment_start(id);
    let mut frames = Frames::new();
    if segment.used_bytes == 0 {
        return Ok(frames);
    }
    report.segments += 1;
    let used = u64::from(segment.used_bytes).min(layout.segment_bytes);
    let bytes = recovery::read_segment(&*core.device, &core.buffers, start, used).await?;
    let (mut at, mut unit_bytes, mut blocks) = (0, 0, 0);
    let mut damaged = false;
    while at + BLOCK_BYTES <= bytes.len() {
        let address = start.plus(at as u64);
        let summary = Summary::decode(&bytes[at..], core.superblock.pool, address);
        match summary {
            Ok(summary) if summary.generation == segment.generation && summary.segment == id => {
                damaged = false;
                report.units += 1;
                unit_bytes += u64::from(summary.unit_bytes);
                blocks += summary.fingerprints.len() as u64;
                check_unit(core, &bytes, at, &summary, &mut frames, report);
                at += summary.unit_bytes as usize;
            }
            Ok(_) => at += BLOCK_BYTES,
            Err(reason) => {
                // Reported once; then the next unit is looked for.
                if !std::mem::replace(&mut damaged, true) {
                    let offset_bytes = at as u64;
                    report.report(Problem::Unit { segment: id, offset_bytes, reason });
                }
                at += BLOCK_BYTES;
            }
        }
    }
    compare(report, id, "used bytes", segment.used_bytes.into(), unit_bytes);
    compare(report, id, "stored blocks", segment.stored_blocks.into(), blocks);
    Ok(frames)
}

/// Verifies the frames of a unit and their blocks against its fingerprints.
fn check_unit(
    core: &Core,
    segment: &[u8],
    at: usize,
    summary: &Summary,
    frames: &mut Frames,
    report: &mut CheckReport,
) {
    let mut fingerprints = summary.fingerprints.iter();
    let mut plain = AlignedBuffer::zeroed(64 * BLOCK_BYTES);
    for unit_frame in &summary.frames {
        let offset = at + unit_frame.offset_bytes as usize;
        let place = frame::place_of(summary.segment, offset, unit_frame.stored_bytes as usize);
        let expected: Vec<_> = fingerprints.by_ref().take(unit_frame.block_count.into()).collect();
        let identity =
            FrameIdentity { pool: core.superblock.pool, place, generation: summary.generation };
        let decoded =
            frame::verify(segment.get(offset..).unwrap_or(&[]), &identity).and_then(|frame| {
                Decompressor::with(|decompressor| frame.decode_all(decompressor, &mut plain))?;
                Ok(frame.block_count)
            });
        match decoded {
            Ok(count) if count == expected.len() => {
                report.frames += 1;
                frames.insert(place.frame_offset_bytes(), unit_frame.block_count);
                let found = plain.as_chunks::<BLOCK_BYTES>().0;
                for (index, (block, expected)) in (0..).zip(found.iter().zip(expected)) {
                    report.blocks += 1;
                    if fingerprint(block).short() != *expected {
                        let place = place.advanced(index).unwrap_or(place);
                        report.report(Problem::Fingerprint { place });
                    }
                }
            }
            Ok(count) => {
                let (field, value) = ("block count", count as u64);
                let error = crate::error::FrameError::Header { place, field, value };
                report.report(Problem::Frame(error));
            }
            Err(error) => report.report(Problem::Frame(error)),
        }
    }
}

/// Checks every map entry that points into a window of segments.
async fn check_entries(
    core: &Core,
    window: std::ops::Range<u32>,
    frames: &BTreeMap<SegmentId, Frames>,
    report: &mut CheckReport,
) {
    let names: BTreeMap<LayerId, String> = {
        let volumes = core.volumes.read();
        volumes.values().map(|volume| (volume.layer, volume.name.clone())).collect()
    };
    // Layers of deleted volumes have entries until merges have dropped them.
    let known: BTreeSet<LayerId> = core.catalog.lock().layers.keys().copied().collect();
    let mut cursor = core.map.cursor_all(WALK_BUDGET_BYTES);
    // A page that cannot be read was reported when the map was verified.
    while let Ok(Some(extent)) = cursor.next().await {
        let Target::Stored(place) = extent.target else { continue };
        let inside = window.contains(&place.segment().0)
            || (window.end == core.table.len() && place.segment().0 >= window.end);
        if !inside || !known.contains(&extent.layer) {
            continue;
        }
        report.entries += 1;
        if !is_readable(core, &extent, place, frames).await {
            let volume = names.get(&extent.layer);
            let volume = volume.map_or_else(|| extent.layer.to_string(), String::clone);
            let (address, len_blocks) = (extent.address, extent.len_blocks);
            report.report(Problem::Lost { volume, address, len_blocks, place });
        }
    }
}

async fn is_readable(
    core: &Core,
    extent: &Extent,
    place: Place,
    frames: &BTreeMap<SegmentId, Frames>,
) -> bool {
    let blocks_needed = u64::from(place.index()) + u64::from(extent.len_blocks);
    let known = frames.get(&place.segment()).and_then(|f| f.get(&place.frame_offset_bytes()));
    if let Some(&blocks) = known {
        return blocks_needed <= blocks.into();
    }
    // No whole unit names it; it may be whole itself.
    let Some((generation, _)) = core.table.generation(place.segment()) else { return false };
    let (start, end) = core.device_range(place);
    let buffer = core.buffers.take((end - start) as usize);
    let read = request::read(&*core.device, siltstone_device::ByteOffset(start), buffer).await;
    let Ok(bytes) = read else { return false };
    let skip = (core.frame_start(place) - start) as usize;
    let identity = FrameIdentity { pool: core.superblock.pool, place: place.frame(), generation };
    frame::verify(&bytes[skip..], &identity)
        .is_ok_and(|frame| blocks_needed <= frame.block_count as u64)
}
