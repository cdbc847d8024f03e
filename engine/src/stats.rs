//! Counters of every stage: always on, cheap enough for the hot path.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use parking_lot::Mutex;
use serde::Serialize;

use crate::scrub::ScrubProgress;

/// The stages of the pipeline whose time is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Stage {
    /// Waiting for room in the pool.
    SpaceWait,
    /// Waiting for a place in the backlog, and for staging memory.
    AdmitWait,
    /// Finding zeros and fingerprinting.
    Fingerprint,
    /// Asking neighbourhood and index, loading summaries.
    Index,
    /// Waiting for earlier batches to register.
    Gate,
    /// Framing and compressing.
    Compress,
    /// Placing a unit and writing its summary.
    Seal,
    /// From placing a batch's units to their completion, waiting to share a write included.
    DeviceWrite,
    /// Times in which any unit was on its way to the device.
    DeviceBusy,
    /// Entering a unit into map and index.
    Publish,
    /// A flush, from call to return.
    Commit,
    /// A checkpoint.
    Checkpoint,
}
const STAGES: usize = 12;
const STAGE_NAMES: [&str; STAGES] = [
    "space_wait",
    "admit_wait",
    "fingerprint",
    "index",
    "gate",
    "compress",
    "seal",
    "device_write",
    "device_busy",
    "publish",
    "commit",
    "checkpoint",
];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Running totals since the pool was opened.
        #[derive(Default)]
        pub(crate) struct Counters { $($(#[$doc])* pub(crate) $name: AtomicU64,)* }

        /// Running totals since the pool was opened.
        #[derive(Clone, Copy, Debug, Default, Serialize)]
        pub struct CounterValues { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            fn values(&self) -> CounterValues {
                CounterValues { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Read requests served.
    reads,
    /// Bytes read by clients.
    read_bytes,
    /// Write requests admitted.
    writes,
    /// Bytes written by clients.
    written_bytes,
    /// Writes that had to merge with the rest of a block.
    merged_writes,
    /// Discards and writes of zeros admitted.
    zeroings,
    /// Flushes completed.
    flushes,
    /// Flushes that went to the NVRAM log.
    log_commits,
    /// Bytes of client data that went to the NVRAM log.
    log_data_bytes,
    /// Batches reduced.
    batches,
    /// Batches of which everything was found, and that went past the gate.
    found_batches,
    /// Batches written as two units, one of what is overwritten often.
    divided_batches,
    /// Blocks found to be zero.
    zero_blocks,
    /// Blocks linked rather than stored.
    linked_blocks,
    /// Of those, blocks linked to ones that were still in flight.
    linked_in_flight_blocks,
    /// Blocks stored.
    stored_blocks,
    /// Bytes of frames stored, headers included.
    frame_bytes,
    /// Blocks stored without compression.
    plain_blocks,
    /// Write units written.
    units,
    /// Bytes of write units.
    unit_bytes,
    /// Frames found in the frame cache.
    frame_cache_hits,
    /// Frames read from the device.
    frame_reads,
    /// Bytes read from the device for frames.
    frame_read_bytes,
    /// Frames read ahead of a sequential reader.
    read_ahead_frames,
    /// Reads repeated because the frame had moved meanwhile.
    read_retries,
    /// Checkpoints stored.
    checkpoints,
    /// Layers that began to take over what they read of their parent.
    begun_adoptions,
    /// Entries of the map that a layer took over from its parent.
    adopted_extents,
    /// Layers that need their parent no more.
    adopted_layers,
    /// Times that the sealer had to wait for a frontier segment.
    frontier_waits,
    /// Blocks found to have changed in memory between their receipt and their storing.
    staging_faults,
    /// Rounds of garbage collection that have ended.
    collector_rounds,
    /// Blocks that garbage collection stored anew.
    collector_moved_blocks,
    /// Blocks that garbage collection found stored elsewhere.
    collector_linked_blocks,
    /// Damaged blocks that were found stored elsewhere.
    mended_blocks,
    /// Bytes of write units that garbage collection wrote.
    collector_unit_bytes,
    /// Bytes of the map's pages written.
    map_page_bytes,
    /// Patches of the map that are neither merged nor collected because a page of them is damaged.
    damaged_patches,
    /// Bytes of checkpoint records, of pages of the segment table and of durability marks written.
    record_bytes,
    /// Images of the dedup index written.
    index_images,
    /// Bytes of them.
    index_image_bytes,
    /// Entries that the index got from its image after opening.
    index_loaded_entries,
    /// Segments whose summaries were read for the index after opening.
    index_scanned_segments,
    /// Segments freed, of all kinds.
    freed_segments,
    /// Bytes read by scrubs.
    scrubbed_bytes,
    /// Problems that scrubs have found, again in each pass.
    scrub_problems,
    /// Scrubs that have seen everything.
    scrub_passes,
}

/// One stage's totals.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StageTime {
    /// The stage.
    pub stage: &'static str,
    /// How often it ran.
    pub runs: u64,
    /// How long it took in all, in nanoseconds, summed over threads.
    pub total_ns: u64,
}

/// All statistics of an open pool.
#[derive(Default)]
pub(crate) struct Stats {
    pub(crate) counters: Counters,
    stages: [StageCounter; STAGES],
    /// How far the scrub has come that is under way; of several, the one that told it last.
    pub(crate) scrub: Mutex<Option<ScrubProgress>>,
    pub(crate) last_scrub: Mutex<Option<LastScrub>>,
}

/// What the last scrub that has seen everything came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastScrub {
    pub(crate) finished: Instant,
    pub(crate) elapsed_ms: u64,
    pub(crate) bytes: u64,
    pub(crate) problems: u64,
    pub(crate) lost_ranges: u64,
    pub(crate) lost_bytes: u64,
}

#[derive(Default)]
struct StageCounter {
    runs: AtomicU64,
    total_ns: AtomicU64,
}

impl Stats {
    /// Counts the time from now until the guard is dropped.
    pub(crate) fn time(&self, stage: Stage) -> Timer<'_> {
        Timer { counter: &self.stages[stage as usize], start: Instant::now() }
    }

    /// Counts a time measured elsewhere.
    pub(crate) fn record(&self, stage: Stage, since: Instant) {
        drop(Timer { counter: &self.stages[stage as usize], start: since });
    }

    pub(crate) fn counters(&self) -> CounterValues {
        self.counters.values()
    }

    pub(crate) fn stages(&self) -> Vec<StageTime> {
        let stage = |(counter, stage): (&StageCounter, &&'static str)| StageTime {
            stage,
            runs: counter.runs.load(Ordering::Relaxed),
            total_ns: counter.total_ns.load(Ordering::Relaxed),
        };
        self.stages.iter().zip(&STAGE_NAMES).map(stage).collect()
    }
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Counts the time of a stage while it lives.
pub(crate) struct Timer<'a> {
    counter: &'a StageCounter,
    start: Instant,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let elapsed = self.start.elapsed().as_nanos() as u64;
        self.counter.runs.fetch_add(1, Ordering::Relaxed);
        self.counter.total_ns.fetch_add(elapsed, Ordering::Relaxed);
    }
}
