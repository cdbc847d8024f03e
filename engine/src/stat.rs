//! What a pool holds and what it costs: the figures behind `siltstone stat`.

use serde::Serialize;
use siltstone_device::{BLOCK_BYTES, BlockAddress};

use crate::{
    error::Result,
    pool::Pool,
    stats::{CounterValues, LastScrub, StageTime},
};

/// Memory that counting mapped blocks may take.
const WALK_BUDGET_BYTES: usize = 4 << 20;

/// A pool's figures at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct PoolStat {
    /// The pool's size.
    pub size_bytes: u64,
    /// What its device has behind the pool's end: [`Pool::grow`] makes use of it.
    pub unused_bytes: u64,
    /// Bytes of volumes that are mapped to stored blocks.
    pub logical_bytes: u64,
    /// Bytes of distinct blocks stored, uncompressed; garbage not yet freed included.
    pub unique_bytes: u64,
    /// Bytes that write units take: frames, summaries and padding.
    pub stored_bytes: u64,
    /// Bytes that map pages, the log, checkpoints and the segment table take.
    pub metadata_bytes: u64,
    /// Bytes that can still be written, before any reduction.
    pub free_bytes: u64,
    /// Bytes kept back so that a full pool still works.
    pub reserved_bytes: u64,
    /// logical / unique.
    pub dedup_ratio: f64,
    /// unique / stored.
    pub compression_ratio: f64,
    /// RAM that the dedup index takes.
    pub index_bytes: u64,
    /// Fingerprints in the index.
    pub index_entries: u64,
    /// How many fingerprints it could hold.
    pub index_capacity_entries: u64,
    /// The index keeps one fingerprint in 2^this; 0 = all.
    pub index_sample_bits: u32,
    /// Entries in the map's patches.
    pub map_entries: u64,
    /// Bytes of the map's patches.
    pub map_bytes: u64,
    /// Bytes of the NVRAM log in use.
    pub nvram_used_bytes: u64,
    /// Bytes of staging in use, of `staging_limit_bytes`.
    pub staging_bytes: u64,
    /// The staging budget.
    pub staging_limit_bytes: u64,
    /// Changes admitted and not yet in the map.
    pub pending_changes: u64,
    /// Bytes of decoded frames in the cache.
    pub frame_cache_bytes: u64,
    /// Summaries loaded to check hints of the index.
    pub summary_loads: u64,
    /// Every change up to here is durable.
    pub durable_sequence: u64,
    /// And up to here that is noted on the device: see [`mark_delay`](crate::Tuning::mark_delay).
    pub marked_sequence: u64,
    /// What was found damaged at opening, of which nothing is lost.
    pub repairs: Vec<String>,
    /// Why the pool accepts no changes, if it does not.
    pub failure: Option<String>,
    /// The last scrub that has seen everything since the pool was opened.
    pub last_scrub: Option<ScrubStat>,
    /// By volume.
    pub volumes: Vec<VolumeStat>,
    /// Totals since the pool was opened.
    pub counters: CounterValues,
    /// Time spent in each stage of the pipeline since the pool was opened.
    pub stages: Vec<StageTime>,
}

/// What a scrub came to.
#[derive(Clone, Debug, Serialize)]
pub struct ScrubStat {
    /// How long ago it ended.
    pub finished_seconds_ago: u64,
    /// How long it took.
    pub elapsed_ms: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Problems found.
    pub problems: u64,
    /// Lost ranges of volumes.
    pub lost_ranges: u64,
    /// Bytes of them.
    pub lost_bytes: u64,
}

/// A volume's figures.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStat {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its compression level.
    pub level: i8,
    /// Bytes of it that are mapped to stored blocks.
    pub logical_bytes: u64,
}

impl Pool {
    /// Totals since the pool was opened: what [`stat`](Self::stat) counts without walking the map.
    #[must_use]
    pub fn counters(&self) -> CounterValues {
        self.core().stats.counters()
    }

    /// Bytes that can still be written, before any reduction.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let core = self.core();
        core.space.free_bytes(core.room())
    }

    /// Counts what the pool holds. Walks the map: the time grows with the number of its entries.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn stat(&self) -> Result<PoolStat> {
        let core = self.core();
        let volumes: Vec<_> = {
            let volumes = core.volumes.read();
            volumes.values().filter(|volume| !volume.is_snapshot()).cloned().collect()
        };
        let mut volume_stats = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let blocks = pollster::block_on(async {
                let end = BlockAddress(volume.len_blocks());
                let start = BlockAddress(0);
                let mut cursor = core.map.cursor(&volume.chain, start, end, WALK_BUDGET_BYTES);
                let mut blocks = 0;
                while let Some(run) = cursor.next().await? {
                    blocks += u64::from(run.len_blocks);
                }
                Result::Ok(blocks)
            })?;
            volume_stats.push(VolumeStat {
                name: volume.name.clone(),
                size_bytes: volume.size_bytes(),
                level: volume.level,
                logical_bytes: blocks * BLOCK_BYTES as u64,
            });
        }
        let totals = core.table.totals();
        let index = core.index.stats();
        let map = core.map.stats();
        let (layout, size_bytes) = (&core.superblock.layout, core.revision.lock().size_bytes);
        let last_scrub = *core.stats.last_scrub.lock();
        let logical_bytes = volume_stats.iter().map(|volume| volume.logical_bytes).sum();
        let unique_bytes = totals.stored_blocks * BLOCK_BYTES as u64;
        let scrub_stat = |last: LastScrub| ScrubStat {
            finished_seconds_ago: last.finished.elapsed().as_secs(),
            elapsed_ms: last.elapsed_ms,
            bytes: last.bytes,
            problems: last.problems,
            lost_ranges: last.lost_ranges,
            lost_bytes: last.lost_bytes,
        };
        Ok(PoolStat {
            size_bytes,
            unused_bytes: core.unused_bytes(),
            logical_bytes,
            unique_bytes,
            stored_bytes: totals.data_bytes,
            metadata_bytes: totals.metadata_bytes + layout.data_start.0,
            free_bytes: core.space.free_bytes(core.room()),
            reserved_bytes: core.space.reserve_bytes(),
            dedup_ratio: ratio(logical_bytes, unique_bytes),
            compression_ratio: ratio(unique_bytes, totals.data_bytes),
            index_bytes: index.bytes as u64,
            index_entries: index.entries,
            index_capacity_entries: index.capacity_entries,
            index_sample_bits: index.sample_bits.into(),
            map_entries: map.entries,
            map_bytes: map.pages * BLOCK_BYTES as u64,
            nvram_used_bytes: core.log.used_bytes(),
            staging_bytes: core.staging.used_bytes() as u64,
            staging_limit_bytes: core.staging.limit_bytes() as u64,
            pending_changes: core.admission.pending() as u64,
            frame_cache_bytes: core.frame_cache.bytes() as u64,
            summary_loads: core.summaries.loads(),
            durable_sequence: core.commit.durable().0,
            marked_sequence: core.marks.newest().sequence.0,
            repairs: core.repairs.iter().map(ToString::to_string).collect(),
            failure: core.health.failure().map(|failure| failure.to_string()),
            last_scrub: last_scrub.map(scrub_stat),
            volumes: volume_stats,
            counters: core.stats.counters(),
            stages: core.stats.stages(),
        })
    }
}

/// `whole / part`; 1 where there is nothing.
fn ratio(whole: u64, part: u64) -> f64 {
    if part == 0 { 1.0 } else { whole as f64 / part as f64 }
}
