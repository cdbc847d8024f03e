//! What a pool holds and what it costs: the figures behind `siltstone stat`.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use siltstone_device::BLOCK_BYTES;

use crate::{
    accounting::{Holding, Holdings, SpaceParts},
    compression::Compression,
    core::Core,
    fullness::Fullness,
    index_image::reader,
    pool::Pool,
    scrub::ScrubProgress,
    stats::{CounterValues, LastScrub, StageTime},
    volume_core::VolumeCore,
};

/// A pool's figures at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct PoolStat {
    /// The pool's size: the sum of `space`.
    pub size_bytes: u64,
    /// What its device has behind the pool's end: [`Pool::grow`] makes use of it.
    pub unused_bytes: u64,
    /// Where every byte of the pool is.
    #[serde(flatten)]
    pub space: SpaceParts,
    /// How full it is, as the log says: by the use that a [`quick_stat`](Pool::quick_stat) finds.
    pub fullness: Fullness,
    /// Hundredths of its room for data that are used; garbage does not count.
    pub used_percent: u64,
    /// What it holds; `None` in a [`quick_stat`](Pool::quick_stat), whose garbage is the least that
    /// it may be.
    #[serde(flatten)]
    pub content: Option<ContentStat>,
    /// What was written since the pool was opened, and what became of it on the device.
    pub written: WrittenStat,
    /// RAM that the dedup index takes.
    pub index_bytes: u64,
    /// Fingerprints in the index.
    pub index_entries: u64,
    /// How many fingerprints it could hold.
    pub index_capacity_entries: u64,
    /// The index keeps one fingerprint in 2^this; 0 = all.
    pub index_sample_bits: u32,
    /// Bytes of the index's stored image.
    pub index_image_bytes: u64,
    /// Entries in the map's patches.
    pub map_entries: u64,
    /// Bytes of the map's patches.
    pub map_bytes: u64,
    /// Bytes of the NVRAM log in use, of `nvram_bytes`.
    pub nvram_used_bytes: u64,
    /// The size of the NVRAM log.
    pub nvram_bytes: u64,
    /// Bytes of staging in use, of `staging_limit_bytes`.
    pub staging_bytes: u64,
    /// The staging budget.
    pub staging_limit_bytes: u64,
    /// Changes admitted and not yet in the map.
    pub pending_changes: u64,
    /// Bytes of write units that are being filled or wait for the device, of `unit_buffers_limit_bytes`.
    pub unit_buffers_bytes: u64,
    /// The budget of write units.
    pub unit_buffers_limit_bytes: u64,
    /// Bytes of frames in the cache, as they are stored or decoded, of `frame_cache_limit_bytes`.
    pub frame_cache_bytes: u64,
    /// The frame cache's budget.
    pub frame_cache_limit_bytes: u64,
    /// Bytes of the map's pages in the cache, of `page_cache_limit_bytes`.
    pub page_cache_bytes: u64,
    /// The page cache's budget.
    pub page_cache_limit_bytes: u64,
    /// How long ago the last checkpoint was made, or the pool opened.
    pub checkpoint_age_ms: u64,
    /// How long ago the first change came that no checkpoint has seen; 0 if there is none.
    pub checkpoint_lag_ms: u64,
    /// Whether garbage is being collected.
    pub is_collecting: bool,
    /// Summaries loaded to check hints of the index.
    pub summary_loads: u64,
    /// Every change up to here is durable.
    pub durable_sequence: u64,
    /// And up to here that is noted on the device: see [`mark_delay`](crate::Tuning::mark_delay).
    pub marked_sequence: u64,
    /// Segments in which damage was found, of which something may still live: nothing new is linked
    /// to them.
    pub damaged_segments: u64,
    /// What was found damaged at opening, of which nothing is lost.
    pub repairs: Vec<String>,
    /// Why the pool accepts no changes, if it does not.
    pub failure: Option<String>,
    /// How far the scrub has come that is under way.
    pub scrub: Option<ScrubProgress>,
    /// The last scrub that has seen everything since the pool was opened.
    pub last_scrub: Option<ScrubStat>,
    /// By volume.
    pub volumes: Vec<VolumeStat>,
    /// By snapshot, of which the names are as in `volume@snapshot`.
    pub snapshots: Vec<VolumeStat>,
    /// Totals since the pool was opened.
    pub counters: CounterValues,
    /// Time spent in each stage of the pipeline since the pool was opened.
    pub stages: Vec<StageTime>,
}

/// What a pool holds. All figures but the logical ones are exact if `sampled_one_in` is 1, and else
/// within about a hundredth of the pool's.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ContentStat {
    /// The sum of the volumes' sizes.
    pub provisioned_bytes: u64,
    /// Bytes of volumes that are mapped to stored blocks.
    pub logical_bytes: u64,
    /// Bytes of distinct blocks that volumes refer to, uncompressed.
    pub unique_bytes: u64,
    /// Bytes of distinct blocks, uncompressed, to which several volumes or snapshots refer.
    pub shared_bytes: u64,
    /// Bytes of distinct blocks that only snapshots refer to, uncompressed.
    pub snapshot_bytes: u64,
    /// Bytes of which a damaged map does not say whether they are mapped.
    pub unknown_bytes: u64,
    /// logical / unique.
    pub dedup_ratio: f64,
    /// (unique + snapshot) / stored.
    pub compression_ratio: f64,
    /// Both together.
    pub reduction_ratio: f64,
    /// provisioned / logical: what is not mapped, be it never written, trimmed, or zeros.
    pub thin_ratio: f64,
    /// All of it together.
    pub total_ratio: f64,
    /// One block in so many was looked at, for want of memory.
    pub sampled_one_in: u64,
}

/// Bytes written since the pool was opened.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WrittenStat {
    /// By clients.
    pub received_bytes: u64,
    /// Of those, zeros, which are not stored.
    pub zero_bytes: u64,
    /// To the device, in write units of clients' data.
    pub unit_bytes: u64,
    /// In write units that garbage collection has moved blocks to.
    pub collector_bytes: u64,
    /// In pages of the map.
    pub map_bytes: u64,
    /// In records of the NVRAM log.
    pub log_bytes: u64,
    /// In images of the dedup index.
    pub image_bytes: u64,
    /// In checkpoint records, pages of the segment table and durability marks.
    pub record_bytes: u64,
    /// All of these.
    pub device_bytes: u64,
    /// device / received; `None` before anything was received.
    pub amplification: Option<f64>,
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

/// A volume's figures, or a snapshot's.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStat {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// How its data is compressed.
    pub compression: Compression,
    /// What it holds; `None` in a [`quick_stat`](Pool::quick_stat).
    #[serde(flatten)]
    pub content: Option<VolumeContent>,
}

/// What a volume or a snapshot holds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct VolumeContent {
    /// Bytes of it that are mapped to stored blocks: `exclusive_bytes` and `shared_bytes`.
    pub logical_bytes: u64,
    /// Of those, bytes whose blocks no other volume or snapshot refers to.
    pub exclusive_bytes: u64,
    /// And bytes whose blocks others refer to as well.
    pub shared_bytes: u64,
    /// Bytes of distinct blocks that no other volume or snapshot refers to: what becomes garbage if
    /// this one is deleted, uncompressed.
    pub unique_bytes: u64,
    /// Bytes of which a damaged map does not say whether they are mapped.
    pub unknown_bytes: u64,
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

    /// Counts what the pool holds. Walks the map, past damage: the time grows with the number of its
    /// entries, memory does not.
    #[must_use]
    pub fn stat(&self) -> PoolStat {
        pollster::block_on(self.stat_async())
    }

    /// As [`stat`](Self::stat).
    pub async fn stat_async(&self) -> PoolStat {
        let volumes: Vec<_> = self.core().volumes.read().values().cloned().collect();
        let holdings = self.core().holdings(&volumes).await;
        stat(self.core(), &volumes, Some(&holdings))
    }

    /// As [`stat`](Self::stat), but without what only a walk over the map tells: at once, whatever the
    /// pool's size.
    #[must_use]
    pub fn quick_stat(&self) -> PoolStat {
        let volumes: Vec<_> = self.core().volumes.read().values().cloned().collect();
        stat(self.core(), &volumes, None)
    }
}

fn stat(core: &Core, volumes: &[Arc<VolumeCore>], holdings: Option<&Holdings>) -> PoolStat {
    let (space, size_bytes) = core.space_parts(holdings.map(|holdings| holdings.distinct));
    // The same for everybody who asks, and for the log: what a walk finds is for the figures.
    let by_references = match holdings {
        Some(_) => core.space_parts(None).0,
        None => space,
    };
    let fullness = core.fullness(core.used_permille(&by_references));
    let (mut of_volumes, mut of_snapshots) = (Vec::new(), Vec::new());
    for (at, volume) in volumes.iter().enumerate() {
        let list = if volume.is_snapshot() { &mut of_snapshots } else { &mut of_volumes };
        list.push(VolumeStat {
            name: volume.name.clone(),
            size_bytes: volume.size_bytes(),
            compression: volume.compression(),
            content: holdings.map(|holdings| volume_content(&holdings.readers[at])),
        });
    }
    let index = core.index.stats();
    let map = core.map.stats();
    let last_scrub = *core.stats.last_scrub.lock();
    let (checkpoint_age, checkpoint_lag) = core.checkpointing.ages();
    let scrub_stat = |last: LastScrub| ScrubStat {
        finished_seconds_ago: last.finished.elapsed().as_secs(),
        elapsed_ms: last.elapsed_ms,
        bytes: last.bytes,
        problems: last.problems,
        lost_ranges: last.lost_ranges,
        lost_bytes: last.lost_bytes,
    };
    PoolStat {
        size_bytes,
        unused_bytes: core.unused_bytes(),
        space,
        fullness,
        used_percent: core.used_permille(&space) / 10,
        content: holdings.map(|holdings| content(holdings, volumes, &space)),
        written: written(core),
        index_bytes: index.bytes as u64,
        index_entries: index.entries,
        index_capacity_entries: index.capacity_entries,
        index_sample_bits: index.sample_bits.into(),
        index_image_bytes: reader::stored_bytes(core),
        map_entries: map.entries,
        map_bytes: map.pages * BLOCK_BYTES as u64,
        nvram_used_bytes: core.log.used_bytes(),
        nvram_bytes: core.log.capacity_bytes(),
        staging_bytes: core.staging.used_bytes() as u64,
        staging_limit_bytes: core.staging.limit_bytes() as u64,
        pending_changes: core.admission.pending() as u64,
        unit_buffers_bytes: core.unit_buffers.used_bytes() as u64,
        unit_buffers_limit_bytes: core.unit_buffers.limit_bytes() as u64,
        frame_cache_bytes: core.frame_cache.bytes() as u64,
        frame_cache_limit_bytes: core.tuning.frame_cache_bytes as u64,
        page_cache_bytes: map.page_cache_bytes,
        page_cache_limit_bytes: core.tuning.page_cache_bytes as u64,
        checkpoint_age_ms: in_ms(checkpoint_age),
        checkpoint_lag_ms: in_ms(checkpoint_lag),
        is_collecting: core.collection.is_busy(),
        summary_loads: core.summaries.loads(),
        durable_sequence: core.commit.durable().0,
        marked_sequence: core.marks.newest().sequence.0,
        damaged_segments: core.table.totals().damaged_segments,
        repairs: core.repairs.iter().map(ToString::to_string).collect(),
        failure: core.health.failure().map(|failure| failure.to_string()),
        scrub: *core.stats.scrub.lock(),
        last_scrub: last_scrub.map(scrub_stat),
        volumes: of_volumes,
        snapshots: of_snapshots,
        counters: core.stats.counters(),
        stages: core.stats.stages(),
    }
}

fn content(holdings: &Holdings, volumes: &[Arc<VolumeCore>], space: &SpaceParts) -> ContentStat {
    let live = volumes.iter().zip(&holdings.readers).filter(|(volume, _)| !volume.is_snapshot());
    let provisioned_bytes = live.clone().map(|(volume, _)| volume.size_bytes()).sum();
    let logical_bytes = in_bytes(live.map(|(_, holding)| holding.mapped).sum());
    let snapshot_bytes = in_bytes(holdings.in_snapshots);
    let unique_bytes = in_bytes(holdings.distinct) - snapshot_bytes;
    let dedup_ratio = ratio(logical_bytes, unique_bytes);
    let compression_ratio = ratio(unique_bytes + snapshot_bytes, space.stored_bytes);
    let thin_ratio = ratio(provisioned_bytes, logical_bytes);
    let reduction_ratio = dedup_ratio * compression_ratio;
    ContentStat {
        provisioned_bytes,
        logical_bytes,
        unique_bytes,
        shared_bytes: in_bytes(holdings.shared),
        snapshot_bytes,
        unknown_bytes: in_bytes(holdings.readers.iter().map(|holding| holding.unknown).sum()),
        dedup_ratio,
        compression_ratio,
        reduction_ratio,
        thin_ratio,
        total_ratio: thin_ratio * reduction_ratio,
        sampled_one_in: 1 << holdings.sample_bits,
    }
}

fn volume_content(holding: &Holding) -> VolumeContent {
    VolumeContent {
        logical_bytes: in_bytes(holding.mapped),
        exclusive_bytes: in_bytes(holding.exclusive),
        shared_bytes: in_bytes(holding.mapped - holding.exclusive),
        unique_bytes: in_bytes(holding.exclusive_distinct),
        unknown_bytes: in_bytes(holding.unknown),
    }
}

fn written(core: &Core) -> WrittenStat {
    let counters = core.stats.counters();
    let log_bytes = core.log.stats().bytes;
    let collector_bytes = counters.collector_unit_bytes;
    let CounterValues { unit_bytes, map_page_bytes: map_bytes, record_bytes, .. } = counters;
    let image_bytes = counters.index_image_bytes;
    let metadata_bytes = map_bytes + image_bytes + record_bytes;
    let device_bytes = unit_bytes + collector_bytes + metadata_bytes + log_bytes;
    let received_bytes = counters.written_bytes;
    WrittenStat {
        received_bytes,
        zero_bytes: in_bytes(counters.zero_blocks),
        unit_bytes,
        collector_bytes,
        map_bytes,
        log_bytes,
        image_bytes,
        record_bytes,
        device_bytes,
        amplification: (received_bytes > 0).then(|| ratio(device_bytes, received_bytes)),
    }
}

fn in_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn in_bytes(blocks: u64) -> u64 {
    blocks.saturating_mul(BLOCK_BYTES as u64)
}

/// `whole / part`; 1 where there is nothing.
fn ratio(whole: u64, part: u64) -> f64 {
    if part == 0 { 1.0 } else { whole as f64 / part as f64 }
}
