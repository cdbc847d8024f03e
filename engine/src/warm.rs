//! Filling the index when a pool has been opened, so that what is written soon is compared with what
//! has been there all along: from the stored image, and from the summaries of the write units in
//! segments that this does not cover; in all segments, if there is no whole one.
//!
//! In the background, behind clients. The newest segments come first: what was written last is most
//! likely to come again. The summaries of a segment tell only one after the other where the next one
//! is, so many segments are read at the same time, which is what keeps a fast device busy.

use siltstone_device::{ByteOffset, SegmentId};

use crate::{
    core::Core,
    index_image::reader,
    segment_table::{Segment, SegmentState},
    stats::add,
    summaries::SummaryCache,
};

/// Segments whose summaries are read at the same time.
const SEGMENTS_AT_ONCE: usize = 32;

/// How far a segment has been read.
struct Reading {
    generation: u64,
    at: ByteOffset,
    end: ByteOffset,
}

impl Reading {
    /// Behind what counts may stand units that recovery passed over.
    fn of(core: &Core, id: SegmentId, segment: &Segment) -> Self {
        let at = core.superblock.layout.geometry().segment_start(id);
        let end = at.plus(segment.used_bytes.into());
        Self { generation: segment.generation, at, end }
    }
}

/// Tells the index of every fingerprint on the device; stops at once when the pool closes.
pub(crate) async fn warm_index(core: &Core) {
    let began = core.runtime.now();
    let image = reader::load(core).await;
    if core.is_ending() {
        return;
    }
    let is_covered = |id, segment: &Segment| {
        image.as_ref().is_some_and(|image| image.covers(id, segment.generation))
    };
    let mut uncovered_bytes = 0;
    let next_generation = core.table.next_generation();
    let ids = (0..core.table.len()).map(SegmentId);
    let mut segments: Vec<_> = ids
        .filter_map(|id| Some((id, core.table.segment(id)?)))
        .filter(|(_, segment)| segment.state == SegmentState::Data && segment.used_bytes > 0)
        // What is in one must not hide what was written again elsewhere.
        .filter(|(_, segment)| !segment.is_damaged)
        .filter(|(id, segment)| !is_covered(*id, segment))
        .map(|(id, segment)| {
            uncovered_bytes += u64::from(segment.used_bytes);
            id
        })
        .collect();
    // Of all of them that would be much.
    segments.shrink_to_fit();
    segments.sort_by_cached_key(|&id| core.table.generation(id));
    let mut readings: Vec<Reading> = Vec::new();
    loop {
        while readings.len() < SEGMENTS_AT_ONCE
            && let Some(id) = segments.pop()
        {
            // It may have been freed and used again since; what is written now is told anyway.
            let segment = core.table.segment(id).expect("the table does not shrink");
            if segment.generation < next_generation {
                add(&core.stats.counters.index_scanned_segments, 1);
                readings.push(Reading::of(core, id, &segment));
            }
        }
        if readings.is_empty() {
            break;
        }
        // All are under way before the first is awaited.
        let addresses: Vec<_> = readings.iter().map(|reading| reading.at).collect();
        let reads = core.summaries.start_reads(&addresses);
        assert_eq!(reads.len(), readings.len(), "segments are where units can be");
        for (reading, (address, read)) in readings.iter_mut().zip(reads) {
            match core.summaries.summary_in(address, read.await).await {
                Some(summary) if summary.generation == reading.generation => {
                    let unit = SummaryCache::unit_at(reading.at);
                    core.index.insert_batch(&summary.fingerprints, unit);
                    reading.at = reading.at.plus(summary.unit_bytes.into());
                }
                // What is damaged is not found by its fingerprint, nor what comes behind it.
                _ => reading.at = reading.end,
            }
            if core.is_ending() {
                return;
            }
        }
        readings.retain(|reading| reading.at < reading.end);
    }
    let (entries, elapsed) = (core.index.stats().entries, core.runtime.now() - began);
    tracing::debug!(entries, ?elapsed, "the index is warm");
    core.images.note_complete(uncovered_bytes);
    core.index_is_warm.set();
}
