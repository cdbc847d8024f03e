//! The image of the index: its entries in segments of the pool, so that an opening reads them as they
//! were and need not collect them from summaries.
//!
//! An image is made of chunks, each whole by itself ([`chunk`]); it is written beside everything
//! else ([`writer`]) and counts once a checkpoint record names it. The record says which segments it
//! covers: those of generations below its own, but for some that were being filled. The units of
//! all others are found by their summaries (`warm`).
//!
//! Entries are hints, and so is the image: what is in it may be gone, and what is new may be missing.
//! So it is consistent with nothing, no lock is held while it is written, damage of it costs time,
//! and a pool that is short of room gives it up.
//!
//! # Life of an image
//! | state | where it is known |
//! |---|---|
//! | being written | its segments are in the segment table; an opening that finds them frees them |
//! | written | `State::written`: the next checkpoint flushes its chunks, names it and frees the one before |
//! | stored | `State::stored`, and the record |
//! | given up | its segments are freed by the checkpoint whose record does not name it any more |

use std::ops::Range;

use event_listener::{Event, EventListener};
use parking_lot::Mutex;
use siltstone_dedup::IndexShape;
use siltstone_device::SegmentId;

use crate::{
    core::Core,
    segment_table::{Segment, SegmentTable},
    verify,
};

pub(crate) mod chunk;
pub(crate) mod reader;
mod writer;

pub(crate) use writer::{keep, write_at_close};

/// A new image is due when the segments that the one before does not cover are one part in so many of
/// all that are in use, and no fewer than [`Tuning::image_segments`](crate::Tuning::image_segments).
const DUE_SHARE: u64 = 8;
/// When a pool is closed, so many times fewer are enough: nobody waits for the pool, and it may be
/// long until the next chance.
const CLOSING_FACTOR: u64 = 4;

/// What a checkpoint record says of an image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IndexImage {
    /// Those of its segments. It covers the segments of smaller ones; the first is its number.
    pub(crate) generations: Range<u64>,
    /// Of the index that it was taken from: it fits no other.
    pub(crate) shape: IndexShape,
    /// How many entries it has.
    pub(crate) entries: u64,
    /// All are in this sample.
    pub(crate) sample_bits: u8,
    pub(crate) chunk_count: u32,
    /// Segments of smaller generations that were being filled: not covered.
    pub(crate) unfinished: Vec<(SegmentId, u64)>,
}

impl IndexImage {
    /// What tells it from every other image of the pool.
    pub(crate) fn number(&self) -> u64 {
        self.generations.start
    }

    /// Whether the image has all fingerprints of a segment in this use.
    pub(crate) fn covers(&self, id: SegmentId, generation: u64) -> bool {
        generation < self.generations.start && !self.unfinished.contains(&(id, generation))
    }

    /// Whether what the image says of a segment may still be true.
    fn knows(&self, segment: &Segment) -> bool {
        verify::holds_units(segment) && segment.generation < self.generations.start
    }
}

/// What an image covers that is begun now: all that was published at some moment.
#[derive(Clone, Debug)]
pub(crate) struct Coverage {
    /// Segments from this generation on had not been taken.
    generation: u64,
    unfinished: Vec<(SegmentId, u64)>,
    /// The bytes of covered write units that had been written since the pool was opened.
    written_bytes: u64,
}

/// The images of an open pool. Thread-safe; the lock is a leaf but for the segment table's.
#[derive(Default)]
pub(crate) struct Images {
    state: Mutex<State>,
    work: Event,
}

#[derive(Default)]
struct State {
    stored: Option<IndexImage>,
    written: Option<Written>,
    /// As of the end of the last checkpoint.
    coverage: Option<Coverage>,
    /// The index knows every fingerprint on the device, as far as it has room.
    is_complete: bool,
    /// Bytes of units that the stored image does not cover, but for those written since the pool was
    /// opened. All, if there is none.
    uncovered_bytes: u64,
    /// [`Coverage::written_bytes`] of the stored image, if it was written since then.
    covered_bytes: u64,
}

/// An image that no record names yet.
struct Written {
    image: IndexImage,
    coverage: Coverage,
}

impl Images {
    /// Of a pool whose record names `stored`.
    pub(crate) fn new(stored: Option<IndexImage>) -> Self {
        Self { state: Mutex::new(State { stored, ..State::default() }), work: Event::new() }
    }

    /// The image that the newest record names.
    pub(crate) fn stored(&self) -> Option<IndexImage> {
        self.state.lock().stored.clone()
    }

    /// Whether an image that was read is still the stored one, so that what was found counts.
    pub(crate) fn is_stored(&self, image: &IndexImage) -> bool {
        self.state.lock().stored.as_ref().is_some_and(|now| now.number() == image.number())
    }

    /// The index is complete; so many bytes of units were not in the stored image.
    pub(crate) fn note_complete(&self, uncovered_bytes: u64) {
        let mut state = self.state.lock();
        state.is_complete = true;
        // All, if it has been given up meanwhile.
        state.uncovered_bytes = state.uncovered_bytes.max(uncovered_bytes);
        drop(state);
        self.wake();
    }

    /// Checkpoint, before its record is made: what that is to say. The image that was written takes
    /// the place of the stored one; if room is short, both are given up.
    pub(crate) fn settle(&self, table: &SegmentTable, is_short: bool) -> Option<IndexImage> {
        let mut state = self.state.lock();
        let written = state.written.take();
        if written.is_some() {
            // It may be older than the image, whose segments a new one would begin among.
            state.coverage = None;
        }
        let gone = if is_short || written.is_some() { state.stored.take() } else { None };
        match written {
            Some(written) if is_short => table.release_image(&written.image.generations),
            Some(Written { image, coverage }) => {
                state.stored = Some(image);
                state.uncovered_bytes = 0;
                state.covered_bytes = coverage.written_bytes;
            }
            None => {}
        }
        if let Some(gone) = gone {
            table.release_image(&gone.generations);
            if is_short {
                tracing::info!("room is short: the image of the index is given up");
                state.uncovered_bytes = u64::MAX;
            }
        }
        state.stored.clone()
    }

    /// Checkpoint, at its end: an image that is begun now covers so much.
    pub(crate) fn note_coverage(&self, coverage: Coverage) {
        self.state.lock().coverage = Some(coverage);
        self.wake();
    }

    /// Ends when a new image may be due, or the pool is to be closed or has failed.
    fn listen(&self) -> EventListener {
        self.work.listen()
    }

    /// Lets whoever writes images look at the pool's health.
    pub(crate) fn wake(&self) {
        self.work.notify(usize::MAX);
    }

    /// What a new image would cover, if one is due. Taken: after an image that could not be
    /// written, the next checkpoint has to come first.
    fn take_due(&self, core: &Core, is_closing: bool) -> Option<Coverage> {
        let mut state = self.state.lock();
        if !state.is_complete || state.written.is_some() {
            return None;
        }
        let coverage = state.coverage.as_ref()?;
        let since = coverage.written_bytes.saturating_sub(state.covered_bytes);
        let uncovered_bytes = state.uncovered_bytes.saturating_add(since);
        let segment_bytes = core.superblock.layout.segment_bytes;
        let used = u64::from(core.table.len()).saturating_sub(core.table.free_segments());
        let least = (used / DUE_SHARE).max(core.tuning.image_segments.into());
        let least = if is_closing { least / CLOSING_FACTOR } else { least };
        if uncovered_bytes == 0 || uncovered_bytes < least.saturating_mul(segment_bytes) {
            return None;
        }
        state.coverage.take()
    }
}

impl Core {
    /// What an image that is begun from now on covers. For the checkpointer, which alone takes
    /// segments for units: `moved_to` are the collector's.
    pub(crate) fn coverage(&self, moved_to: impl Iterator<Item = SegmentId>) -> Coverage {
        let generation = self.table.next_generation();
        // What is published is in the index.
        let published = self.publishing.lock().sequence;
        let mut unfinished = self.frontier.unfinished(published);
        let use_of = |id| Some((id, self.table.segment(id)?.generation));
        unfinished.extend(moved_to.filter_map(use_of));
        let counters = self.stats.counters();
        let used_bytes = |(id, _): &(SegmentId, u64)| {
            self.table.segment(*id).map_or(0, |segment| u64::from(segment.used_bytes))
        };
        // Not those that stand in what is not covered, be they published or not.
        let written_bytes = (counters.unit_bytes + counters.collector_unit_bytes)
            .saturating_sub(unfinished.iter().map(used_bytes).sum());
        Coverage { generation, unfinished, written_bytes }
    }
}
