//! Checking a whole pool offline: every checksum, every fingerprint against its data, every map
//! entry against the frame that it names, the segment table against both, and whether what all
//! space is used for adds up.
//!
//! Segments are read front to back, a window of them at a time (`verify`); for each window the map
//! is walked once (`lost`), so that memory stays bounded whatever the pool's size. A frame that no
//! whole summary names is read by its map entry.

use std::collections::BTreeMap;

use serde::Serialize;
use siltstone_device::{Place, SegmentId};

use crate::{
    accounting::SpaceParts,
    core::Core,
    error::Result,
    findings::{Findings, LIST_LIMIT, Problem},
    index_image::reader,
    lost::{self, Judgement, Walk},
    pace::Pace,
    pool::Pool,
    repair::{self, Repair},
    segment_table::SegmentState,
    verify,
};

/// Segments whose frames are held in memory at a time.
const WINDOW_SEGMENTS: u32 = 4096;

/// How a check is made.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// How many problems, and how many lost ranges, the report lists; more are counted.
    pub list_limit: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { list_limit: LIST_LIMIT }
    }
}

/// How far a check has come.
#[derive(Clone, Copy, Debug)]
pub struct CheckProgress {
    /// Segments looked at.
    pub segments: u64,
    /// Segments to look at.
    pub segments_total: u64,
    /// Bytes of segments read.
    pub bytes: u64,
    /// Bytes to read: what is used of segments in use.
    pub bytes_total: u64,
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
    /// Chunks of the index's image found whole.
    pub image_chunks: u64,
    /// Where every byte of the pool is.
    pub space: SpaceParts,
    /// Everything wrong, and what is lost by it.
    #[serde(flatten)]
    pub findings: Findings,
    /// What was found damaged and is held twice, or not needed: nothing is lost by it, and an
    /// opening for writing restores it.
    #[serde(serialize_with = "repair::as_sentences")]
    pub repairs: Vec<Repair>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_sound()
    }
}

/// What a window's segments hold.
#[derive(Default)]
struct WindowSegment {
    /// Whole frames: from a frame's offset to its blocks.
    frames: BTreeMap<u32, u8>,
    wrong: BTreeMap<u32, u64>,
}

impl Pool {
    /// Checks everything. Meant for a pool that is open for reading only: changes made meanwhile
    /// may be reported as problems ([`scrub`](Self::scrub) is for a pool in use).
    ///
    /// # Errors
    /// If the pool fails; damage, and what the device does not give, is part of the report.
    pub fn check(&self, progress: &mut (dyn FnMut(CheckProgress) + Send)) -> Result<CheckReport> {
        pollster::block_on(self.check_async(progress))
    }

    /// As [`check`](Self::check).
    ///
    /// # Errors
    /// As `check`.
    pub async fn check_async(
        &self,
        progress: &mut (dyn FnMut(CheckProgress) + Send),
    ) -> Result<CheckReport> {
        self.check_with(&CheckOptions::default(), progress).await
    }

    /// As [`check_async`](Self::check_async), but as the options say.
    ///
    /// # Errors
    /// As `check`.
    pub async fn check_with(
        &self,
        options: &CheckOptions,
        progress: &mut (dyn FnMut(CheckProgress) + Send),
    ) -> Result<CheckReport> {
        Ok(check(self.core(), options, progress).await)
    }
}

async fn check(
    core: &Core,
    options: &CheckOptions,
    progress: &mut (dyn FnMut(CheckProgress) + Send),
) -> CheckReport {
    let findings = Findings::new(options.list_limit);
    let mut report =
        CheckReport { repairs: core.repairs.clone(), findings, ..CheckReport::default() };
    let mut pace = Pace::new(&*core.runtime, None);
    let map_is_damaged = check_map(core, options, &mut report).await;
    check_image(core, &mut report, &mut pace).await;
    let total = core.table.len();
    let used_bytes = pace.bytes + verify::used_bytes(&core.table, 0);
    for first in (0..total).step_by(WINDOW_SEGMENTS as usize) {
        let end = (first + WINDOW_SEGMENTS).min(total);
        let mut window = BTreeMap::new();
        for id in (first..end).map(SegmentId) {
            let segment = core.table.segment(id).expect("the table has this many");
            if verify::holds_units(&segment) {
                let found = verify::segment(core, id, &segment, &mut pace).await;
                window.insert(id, check_segment(&mut report, id, &segment, found));
            }
            let (segments, segments_total) = (u64::from(id.0) + 1, total.into());
            let bytes_total = used_bytes.max(pace.bytes);
            progress(CheckProgress { segments, segments_total, bytes: pace.bytes, bytes_total });
        }
        let mut entries = 0;
        let mut judge = |place: Place, len_blocks| {
            let id = place.segment().0;
            if !(first..end).contains(&id) && (end < total || id < end) {
                return Judgement::Fine;
            }
            entries += 1;
            judge(core, &window, place, len_blocks)
        };
        // What damage of the map hides is found by every walk, and reported by the first.
        let walk = Walk { online: false, thorough: map_is_damaged, hidden: first == 0 };
        lost::walk(core, walk, &mut judge, &mut report.findings, &mut pace).await;
        report.entries += entries;
    }
    check_space(core, &mut report).await;
    report.findings.sort();
    report
}

/// Looks where every byte of the pool is, by what the segment table was found to be right in, and by
/// the blocks that volumes refer to.
async fn check_space(core: &Core, report: &mut CheckReport) {
    let volumes: Vec<_> = core.volumes.read().values().cloned().collect();
    let live_blocks = core.holdings(&volumes).await.distinct;
    let (space, size_bytes) = core.space_parts(Some(live_blocks));
    report.space = space;
    let sum_bytes = space.total_bytes();
    if sum_bytes != size_bytes {
        report.findings.report(Problem::Space { sum_bytes, size_bytes });
    }
}

/// Verifies the map's pages, and the segment table against what they refer to; returns whether any
/// page is damaged.
async fn check_map(core: &Core, options: &CheckOptions, report: &mut CheckReport) -> bool {
    let mut verification = core.map.verification(options.list_limit);
    while verification.step().await {}
    let map = verification.into_report();
    report.map_pages = map.pages;
    let is_damaged = map.errors.len() as u64 + map.more_errors > 0;
    report.findings.more_problems += map.more_errors;
    for error in map.errors {
        report.findings.report(Problem::Map(error));
    }
    let pages = core.map.manifest().pages();
    for id in (0..core.table.len()).map(SegmentId) {
        let Some(segment) = core.table.segment(id) else { continue };
        let references = map.data_references.get(&id).copied().unwrap_or(0);
        // What damaged pages refer to is not known.
        if !is_damaged {
            compare(report, id, "references", segment.references, references);
        }
        let found_pages = pages.get(&id).copied().unwrap_or(0);
        // Segments that the map took and abandoned are freed by the next checkpoint.
        if segment.state != SegmentState::Metadata || found_pages != 0 {
            compare(report, id, "pages", segment.pages.into(), found_pages);
        }
    }
    is_damaged
}

/// Verifies the stored image of the index, and what the segment table says of its segments.
async fn check_image(core: &Core, report: &mut CheckReport, pace: &mut Pace<'_>) {
    let (chunks, problems) = reader::verify(core, pace).await;
    report.image_chunks = chunks;
    for problem in problems {
        report.findings.report(problem);
    }
    let Some(image) = core.images.stored() else { return };
    for (id, used_bytes) in reader::filled_segments(core, &image) {
        let recorded = core.table.segment(id).map_or(0, |segment| segment.used_bytes);
        compare(report, id, "used bytes", recorded.into(), used_bytes);
    }
}

fn compare(
    report: &mut CheckReport,
    segment: SegmentId,
    field: &'static str,
    recorded: u64,
    found: u64,
) {
    if recorded != found {
        report.findings.report(Problem::Table { segment, field, recorded, found });
    }
}

/// Takes over what was found in a segment, and compares it with the table.
fn check_segment(
    report: &mut CheckReport,
    id: SegmentId,
    segment: &crate::segment_table::Segment,
    found: verify::VerifiedSegment,
) -> WindowSegment {
    report.segments += u64::from(segment.used_bytes > 0);
    report.units += found.units;
    report.frames += found.frames.len() as u64;
    report.blocks += found.blocks;
    // Behind a damaged summary, and nowhere else, the sums cannot be right.
    if found.unknown.is_empty() {
        compare(report, id, "used bytes", segment.used_bytes.into(), found.unit_bytes);
        compare(report, id, "stored blocks", segment.stored_blocks.into(), found.stored_blocks);
    }
    for problem in found.problems {
        report.findings.report(problem);
    }
    WindowSegment { frames: found.frames, wrong: found.wrong }
}

/// What a window knows of a reference into it.
fn judge(
    core: &Core,
    window: &BTreeMap<SegmentId, WindowSegment>,
    place: Place,
    len_blocks: u32,
) -> Judgement {
    let Some((generation, _)) = core.table.generation(place.segment()) else {
        return Judgement::Impossible;
    };
    let frame = place.frame_offset_bytes();
    let segment = window.get(&place.segment());
    let blocks = segment.and_then(|segment| segment.frames.get(&frame));
    let wrong = segment.and_then(|segment| segment.wrong.get(&frame));
    let needed = u64::from(place.index()) + u64::from(len_blocks);
    match (blocks, wrong) {
        (Some(&blocks), _) if needed > blocks.into() => Judgement::Impossible,
        (Some(_), Some(&blocks)) => Judgement::Wrong { generation, blocks },
        (Some(_), None) => Judgement::Fine,
        // No whole unit names it, or the table says that no unit is there; it may be whole itself.
        (None, _) => Judgement::Doubtful { generation },
    }
}
