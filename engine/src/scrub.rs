//! Scrubbing: reading everything back while the pool is in use, at a bounded rate.
//!
//! One pass reads every page of the map, the stored image of the index, then every segment with data front to back (`verify`), and
//! then, if anything was found, walks over the map to see who loses by it (`lost`). It changes no data,
//! and whatever it meets, an error of the device included, goes into its report; in a pool that is open for
//! writing, segments in which it finds damage take no new links. Memory: one segment, and a few megabytes for the map.
//!
//! A pool in use changes under the scrub's feet. What was found in a segment counts only if the
//! segment is in the same use afterwards: the generation is compared, and freed segments leave
//! their state before anything is discarded. Of a segment that is still being filled, what is
//! placed is looked at once all of it is published; until then the next pass has to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{ControlFlow, Range},
    sync::atomic::Ordering,
};

use serde::Serialize;
use siltstone_device::{BLOCK_BYTES, Place, SegmentId};

use crate::{
    core::Core,
    findings::{Findings, LIST_LIMIT, Problem},
    index_image::reader,
    lost::{self, Judgement, Walk},
    pace::Pace,
    pool::Pool,
    repair::{self, Repair},
    segment_table::{Segment, SegmentState},
    stats::{LastScrub, add},
    verify,
};

/// Doubtful places that are remembered until the map is asked who refers to them.
const MAX_DOUBTS: usize = 1 << 16;
/// Map pages between two reports of progress.
const PROGRESS_PAGES: u64 = 64;
/// How often a pass counts what is left to read: a pool in use grows and shrinks meanwhile.
const COUNTS: u32 = 64;

/// How a pass is made.
#[derive(Clone, Debug)]
pub struct ScrubOptions {
    /// Bytes read from the device per second; `None` is as fast as it goes.
    pub rate_bytes_per_second: Option<u64>,
    /// How many problems, and how many lost ranges, the report lists; more are counted.
    pub list_limit: usize,
}

impl Default for ScrubOptions {
    fn default() -> Self {
        Self { rate_bytes_per_second: None, list_limit: LIST_LIMIT }
    }
}

/// How far a pass has come.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ScrubProgress {
    /// Segments looked at.
    pub segments: u64,
    /// Segments to look at.
    pub segments_total: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes to read, as far as is known: what is used of segments in use, and the map.
    pub bytes_total: u64,
}

/// What a pass found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ScrubReport {
    /// Whether the pass has seen everything, rather than being stopped.
    pub complete: bool,
    /// Segments with data that were verified.
    pub segments: u64,
    /// Segments left to the next pass because they were being written.
    pub skipped_segments: u64,
    /// Write units found whole.
    pub units: u64,
    /// Frames found whole.
    pub frames: u64,
    /// Blocks whose fingerprints were checked.
    pub blocks: u64,
    /// Map pages checked.
    pub map_pages: u64,
    /// Chunks of the index's image found whole.
    pub image_chunks: u64,
    /// Bytes read from the device.
    pub bytes: u64,
    /// How long it took.
    pub elapsed_ms: u64,
    /// Everything wrong, and what is lost by it.
    #[serde(flatten)]
    pub findings: Findings,
    /// What was found damaged when the pool was opened and is held twice, or not needed: nothing
    /// is lost by it, and an opening for writing restores it.
    #[serde(serialize_with = "repair::as_sentences")]
    pub repairs: Vec<Repair>,
}

impl ScrubReport {
    /// Whether nothing is wrong with what was read.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_sound()
    }
}

impl Pool {
    /// Makes one pass, while clients may go on reading and writing. `progress` can end it early.
    pub fn scrub(
        &self,
        options: &ScrubOptions,
        progress: &mut (dyn FnMut(ScrubProgress) -> ControlFlow<()> + Send),
    ) -> ScrubReport {
        pollster::block_on(self.scrub_async(options, progress))
    }

    /// The same for any executor. Dropping the future ends the pass.
    pub async fn scrub_async(
        &self,
        options: &ScrubOptions,
        progress: &mut (dyn FnMut(ScrubProgress) -> ControlFlow<()> + Send),
    ) -> ScrubReport {
        let pace = Pace::new(&*self.core().runtime, options.rate_bytes_per_second);
        let findings = Findings::new(options.list_limit);
        let pass = Pass {
            core: self.core(),
            started: pace.now(),
            pace,
            report: ScrubReport {
                findings,
                repairs: self.core().repairs.clone(),
                ..ScrubReport::default()
            },
            bytes_total: 0,
            doubts: BTreeMap::new(),
            doubts_len: 0,
            map_is_damaged: false,
            hidden_is_reported: false,
            list_limit: options.list_limit,
            progress,
        };
        pass.run().await
    }
}

/// What is in doubt in a segment.
struct Doubts {
    generation: u64,
    damaged: BTreeSet<u32>,
    unknown: Vec<Range<u32>>,
    wrong: BTreeMap<u32, u64>,
}

struct Pass<'a> {
    core: &'a Core,
    started: std::time::Instant,
    pace: Pace<'a>,
    report: ScrubReport,
    doubts: BTreeMap<SegmentId, Doubts>,
    doubts_len: usize,
    map_is_damaged: bool,
    /// What damage of the map hides is reported once.
    hidden_is_reported: bool,
    list_limit: usize,
    /// What has been read and what is left, when that was last counted.
    bytes_total: u64,
    progress: &'a mut (dyn FnMut(ScrubProgress) -> ControlFlow<()> + Send),
}

/// No pass is under way any more when this is dropped, however it ended.
struct UnderWay<'a>(&'a Core);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.stats.scrub.lock() = None;
    }
}

impl Pass<'_> {
    async fn run(mut self) -> ScrubReport {
        let _under_way = UnderWay(self.core);
        let outcome = self.read_everything().await;
        let Self { core, mut report, pace, started, .. } = self;
        report.complete = outcome.is_continue();
        report.bytes = pace.bytes;
        let elapsed = pace.now().saturating_duration_since(started);
        report.elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        report.findings.sort();
        let findings = &report.findings;
        let counters = &core.stats.counters;
        add(&counters.scrub_problems, findings.problem_count());
        if report.complete {
            add(&counters.scrub_passes, 1);
            *core.stats.last_scrub.lock() = Some(LastScrub {
                finished: pace.now(),
                elapsed_ms: report.elapsed_ms,
                bytes: report.bytes,
                problems: findings.problem_count(),
                lost_ranges: findings.lost_count(),
                lost_bytes: findings.lost_bytes,
            });
        }
        report
    }

    async fn read_everything(&mut self) -> ControlFlow<()> {
        self.bytes_total = self.core.map.stats().pages * BLOCK_BYTES as u64 + self.left_bytes(0);
        self.bytes_total += reader::stored_bytes(self.core);
        self.verify_map().await?;
        self.verify_image().await?;
        let between_counts = self.core.table.len().div_ceil(COUNTS).max(1);
        for id in (0..self.core.table.len()).map(SegmentId) {
            if id.0.is_multiple_of(between_counts) {
                self.bytes_total = self.pace.bytes + self.left_bytes(id.0);
            }
            self.verify_segment(id).await;
            if self.doubts_len > MAX_DOUBTS {
                self.find_lost().await;
            }
            self.note_progress(u64::from(id.0) + 1)?;
        }
        if self.map_is_damaged || !self.doubts.is_empty() {
            self.find_lost().await;
        }
        ControlFlow::Continue(())
    }

    /// Tells how far the pass has come; breaks off if it is to end.
    fn note_progress(&mut self, segments: u64) -> ControlFlow<()> {
        let bytes = self.pace.bytes;
        let counted = std::mem::replace(&mut self.report.bytes, bytes);
        add(&self.core.stats.counters.scrubbed_bytes, bytes - counted);
        if self.core.stopping.load(Ordering::Acquire) {
            return ControlFlow::Break(());
        }
        let segments_total = self.core.table.len().into();
        let bytes_total = self.bytes_total.max(bytes);
        let progress = ScrubProgress { segments, segments_total, bytes, bytes_total };
        *self.core.stats.scrub.lock() = Some(progress);
        (self.progress)(progress)
    }

    /// What there is to read in the segments from this one on, at this moment.
    fn left_bytes(&self, from: u32) -> u64 {
        verify::used_bytes(&self.core.table, from)
    }

    async fn verify_map(&mut self) -> ControlFlow<()> {
        let mut verification = self.core.map.verification(self.list_limit);
        loop {
            self.pace.take(BLOCK_BYTES as u64).await;
            if !verification.step().await {
                break;
            }
            if verification.report().pages.is_multiple_of(PROGRESS_PAGES) {
                self.note_progress(0)?;
            }
        }
        let found = verification.into_report();
        self.report.map_pages = found.pages;
        self.map_is_damaged = found.errors.len() as u64 + found.more_errors > 0;
        self.report.findings.more_problems += found.more_errors;
        for error in found.errors {
            self.report.findings.report(Problem::Map(error));
        }
        ControlFlow::Continue(())
    }

    async fn verify_image(&mut self) -> ControlFlow<()> {
        let (chunks, problems) = reader::verify(self.core, &mut self.pace).await;
        self.report.image_chunks = chunks;
        for problem in problems {
            self.report.findings.report(problem);
        }
        self.note_progress(0)
    }

    async fn verify_segment(&mut self, id: SegmentId) {
        let Some(segment) = self.core.table.segment(id) else { return };
        if !verify::holds_units(&segment) || segment.used_bytes == 0 {
            return;
        }
        if segment.state == SegmentState::Frontier && !is_written(self.core, id).await {
            self.report.skipped_segments += 1;
            return;
        }
        let found = verify::segment(self.core, id, &segment, &mut self.pace).await;
        if !verify::is_same_use(self.core, id, segment.generation) {
            return;
        }
        self.report.segments += 1;
        self.report.units += found.units;
        self.report.frames += found.frames.len() as u64;
        self.report.blocks += found.blocks;
        self.doubt(id, &segment, found.damaged, found.unknown, found.wrong);
        for problem in found.problems {
            self.report.findings.report(problem);
        }
    }

    fn doubt(
        &mut self,
        id: SegmentId,
        segment: &Segment,
        damaged: Vec<u32>,
        unknown: Vec<Range<u32>>,
        wrong: BTreeMap<u32, u64>,
    ) {
        let len = damaged.len() + unknown.len() + wrong.len();
        if len == 0 {
            let now = self.core.table.segment(id);
            // Unless it was found meanwhile, or behind what was read.
            if segment.is_damaged && now.is_some_and(|now| now.used_bytes == segment.used_bytes) {
                self.core.table.forget_damage(id, segment.generation);
            }
            return;
        }
        self.doubts_len += len;
        self.core.note_damaged_segment(id, segment.generation);
        let (generation, damaged) = (segment.generation, damaged.into_iter().collect());
        self.doubts.insert(id, Doubts { generation, damaged, unknown, wrong });
    }

    /// Finds out what volumes lose by what is in doubt so far.
    async fn find_lost(&mut self) {
        let doubts = std::mem::take(&mut self.doubts);
        self.doubts_len = 0;
        let core = self.core;
        let mut judge = |place: Place, _| judge(core, &doubts, place);
        let hidden = self.map_is_damaged && !self.hidden_is_reported;
        self.hidden_is_reported = true;
        let walk = Walk { online: true, thorough: self.map_is_damaged, hidden };
        let findings = &mut self.report.findings;
        lost::walk(core, walk, &mut judge, findings, &mut self.pace).await;
    }
}

fn judge(core: &Core, doubts: &BTreeMap<SegmentId, Doubts>, place: Place) -> Judgement {
    let Some(doubts) = doubts.get(&place.segment()) else { return Judgement::Fine };
    let generation = doubts.generation;
    if !verify::is_same_use(core, place.segment(), generation) {
        return Judgement::Fine;
    }
    let frame = place.frame_offset_bytes();
    if let Some(&blocks) = doubts.wrong.get(&frame) {
        return Judgement::Wrong { generation, blocks };
    }
    let unknown = doubts.unknown.iter().any(|range| range.contains(&frame));
    if unknown || doubts.damaged.contains(&frame) {
        return Judgement::Doubtful { generation };
    }
    Judgement::Fine
}

/// Waits until all that has been placed in a frontier segment is on the device; false if it never
/// will be. Asked after its length was: what is placed later does not matter.
async fn is_written(core: &Core, id: SegmentId) -> bool {
    let Some(placed) = core.frontier.last_placed(id) else { return true };
    core.admission.wait_published(placed, || core.health.check_open()).await.is_ok()
}
