//! Opening a pool: from the superblock to running tasks, through recovery.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use parking_lot::{Mutex, RwLock};
use siltstone_cursor::{Map, MapConfig, View};
use siltstone_dedup::{InFlight, Index};
use siltstone_device::{
    BufferPool, Device, Runtime, Sequence, Threads,
    file::{self, Access, FileOptions},
};
use siltstone_nvram::{CheckpointStore, GroupCommit, Log, MarkStore};

use super::{MAX_BATCH_BYTES, Pool, log_identity, log_region, open_nvram, replay::replay_log};
use crate::{
    admission::{Admission, MAX_BATCH_CHANGES},
    adoption::Adoptions,
    budget::Budget,
    catalog::{Catalog, SnapshotRecord, VolumeRecord},
    checkpointer::{self, Checkpointing},
    collector::{Collection, Collector},
    config::{OpenOptions, Tuning},
    core::{Core, Published},
    discarder::Discarder,
    error::{EngineError, MetadataError, Result},
    flush_waiters::FlushWaiters,
    frame_cache::FrameCache,
    frontier::Frontier,
    fullness::FullnessWatch,
    health::{Health, Milestone},
    index_image::Images,
    layout::{Layout, MARKS},
    marks::Marks,
    pipeline::{self, Pipeline},
    record::CheckpointBody,
    recovery::{self},
    repair::Repair,
    segment_count::SegmentCount,
    segment_table::{SegmentTable, TableRecord},
    snapshot_name::SnapshotName,
    space::Space,
    stats::Stats,
    summaries::SummaryCache,
    superblock::{FoundSuperblock, Superblock},
    temperature::RecentWrites,
    throttle::Throttle,
    unit_buffers::UnitBuffers,
    volume::ZERO_STAGED_BYTES,
    volume_core::VolumeCore,
};

/// Memory that reads, frames and summaries leave for the next ones.
const IDLE_BUFFER_BYTES: usize = 4 << 20;

impl Pool {
    /// Opens a pool in a file or on a block device, and recovers it if it was not closed.
    ///
    /// # Errors
    /// If there is no pool, another process has it open, it needs a newer program, it is damaged
    /// beyond its redundancy, or the device fails.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let access = if options.read_only { Access::Read } else { Access::Open };
        let device = file::open(path, &FileOptions { access, ..FileOptions::default() })?;
        let found = pollster::block_on(Superblock::load(&*device))?;
        let superblock = &found.superblock;
        let nvram = if superblock.layout.nvram_internal {
            None
        } else {
            let path = Path::new(OsStr::from_bytes(&superblock.nvram_path));
            Some(open_nvram(path, access, superblock.nvram_mapped && !options.read_only)?)
        };
        pollster::block_on(Self::open_found(Arc::new(Threads), device, nvram, found, options))
    }

    /// Opens a pool on a device; `nvram` is the one it was made with.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(
        device: Arc<dyn Device>,
        nvram: Option<Arc<dyn Device>>,
        options: &OpenOptions,
    ) -> Result<Self> {
        pollster::block_on(Self::open_in(Arc::new(Threads), device, nvram, options))
    }

    /// Opens a pool on a device, with its background work on `runtime`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_in(
        runtime: Arc<dyn Runtime>,
        device: Arc<dyn Device>,
        nvram: Option<Arc<dyn Device>>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let found = Superblock::load(&*device).await?;
        Self::open_found(runtime, device, nvram, found, options).await
    }

    async fn open_found(
        runtime: Arc<dyn Runtime>,
        device: Arc<dyn Device>,
        nvram: Option<Arc<dyn Device>>,
        superblock: FoundSuperblock,
        options: &OpenOptions,
    ) -> Result<Self> {
        let core = Arc::new(open_on(runtime, device, nvram, superblock, options).await?);
        let pipeline = if options.read_only {
            None
        } else {
            // What recovery ignored must never count: see the recovery module.
            let mut collector = Collector::new();
            checkpointer::checkpoint(&core, &mut collector, false).await?;
            let started = Pipeline::start(&core, collector);
            Some(started.map_err(|source| {
                // Threads that did start end, and let go of the device.
                core.fail(EngineError::Thread { source: Arc::new(source) });
                EngineError::Failed { cause: core.health.failure().expect("it has just failed") }
            })?)
        };
        Ok(Self { core, pipeline: Mutex::new(pipeline) })
    }
}

async fn open_on(
    runtime: Arc<dyn Runtime>,
    device: Arc<dyn Device>,
    nvram: Option<Arc<dyn Device>>,
    found_superblock: FoundSuperblock,
    options: &OpenOptions,
) -> Result<Core> {
    let superblock = found_superblock.superblock.clone();
    if superblock.unknown_read_compatible != 0 && !options.read_only {
        let what = crate::error::NewerFeature::ReadCompatible(superblock.unknown_read_compatible);
        return Err(EngineError::NewerVersion { what });
    }
    let (pool, layout) = (superblock.pool, superblock.layout);
    let revision = found_superblock.revision;
    let (expected_bytes, actual_bytes) = (revision.size_bytes, device.size_bytes());
    if actual_bytes < expected_bytes {
        return Err(EngineError::Truncated { expected_bytes, actual_bytes });
    }
    let marks = MarkStore::open(Arc::clone(&device), MARKS, pool).await?;
    let mark = marks.newest();
    let slots = layout.checkpoint_slots();
    let (checkpoints, newest) =
        CheckpointStore::open(Arc::clone(&device), slots, pool, mark.checkpoint).await?;
    let (number, body) = newest.ok_or_else(|| {
        let damaged = checkpoints.damaged_copies().first().cloned();
        MetadataError::NoCheckpoint { damaged }
    })?;
    let segment_count = SegmentCount::new(layout.segment_count(revision.size_bytes));
    let body = CheckpointBody::decode(&body, segment_count.get())?;
    // A life that a crash ended may have used the generations that follow the record's: a segment
    // each at most, for none comes free without a record. Nothing of them may pass for new.
    let generation = body.next_generation + u64::from(segment_count.get());
    let record = TableRecord {
        number,
        segment_count: body.segment_count,
        versions_sum: body.table_versions_sum,
    };
    let count = segment_count.clone();
    let (table, table_repairs) =
        SegmentTable::load(&*device, pool, layout, record, generation, count).await?;
    table.recover_images(&body.image.as_ref().map_or(0..0, |image| image.generations.clone()));
    let mut repairs: Vec<Repair> = found_superblock.spare.iter().cloned().collect();
    repairs.extend(checkpoints.damaged_copies().iter().cloned().map(Repair::Checkpoint));
    repairs.extend(marks.damaged_pages().iter().cloned().map(Repair::Mark));
    repairs.extend(table_repairs);
    let tuning = fitted(&options.tuning, &layout, &*runtime);
    let buffers = BufferPool::new(IDLE_BUFFER_BYTES);
    let unit_buffers = UnitBuffers::new(&tuning);
    let write_buffers = BufferPool::within(tuning.staging_bytes + unit_buffers.limit_bytes());
    let mut recovered =
        recovery::scan_frontier(&device, &buffers, pool, &layout, &body, &table).await?;
    let map_config = MapConfig::new(pool, layout.geometry(), tuning.page_cache_bytes);
    let map = Map::open(Arc::clone(&device), map_config, body.manifest.clone());
    let log_device = nvram.unwrap_or_else(|| Arc::clone(&device));
    let (log, mut replay) =
        Log::open(log_device, log_region(&layout), log_identity(&superblock)).await?;
    if replay.trimmed_up_to() > recovered.sequence {
        return Err(recovered.missing(recovered.sequence, replay.trimmed_up_to()));
    }

    let frontier = Frontier::new(segment_count.clone(), layout.segment_bytes);
    let tail = recovered.tail;
    let begun = std::mem::take(&mut recovered.begun);
    frontier.recover(begun);
    let mut core = Core {
        threshold: superblock.threshold,
        read_only: options.read_only,
        health: Health::default(),
        flushing: tokio::sync::Mutex::new(()),
        stats: Stats::default(),
        volumes: RwLock::new(volumes(&body.catalog, recovered.sequence)),
        changing: tokio::sync::Mutex::new(()),
        epochs: RwLock::new(body.epochs.clone()),
        catalog: Mutex::new(body.catalog.clone()),
        staging: Budget::new(tuning.staging_bytes),
        backlog: Budget::new(backlog_bytes(&tuning)),
        unit_buffers,
        admission: Admission::new(
            recovered.sequence,
            tuning.batch_bytes,
            tuning.linger,
            Arc::clone(&runtime),
        ),
        commit: GroupCommit::new(recovered.sequence),
        flush_waiters: FlushWaiters::default(),
        log,
        index: Index::new(superblock.index_memory_bytes as usize)?,
        images: Images::new(body.image.clone()),
        summaries: SummaryCache::new(Arc::clone(&device), buffers.clone(), pool, layout),
        in_flight: InFlight::new(),
        recent_writes: RecentWrites::new(segment_count.get(), layout.segment_bytes),
        space: Space::new(segment_count, layout.segment_bytes),
        throttle: Throttle::default(),
        table,
        frontier,
        map,
        publishing: Mutex::new(Published {
            sequence: recovered.sequence,
            unit: recovered.unit,
            batch: None,
        }),
        checkpoints,
        marks: Marks::new(marks, body.unit),
        discarder: Discarder::default(),
        record: tokio::sync::Mutex::new(body),
        checkpointing: Checkpointing::new(Arc::clone(&runtime)),
        collection: Collection::default(),
        adoptions: Adoptions::default(),
        repairs,
        frame_cache: Arc::new(FrameCache::new(tuning.frame_cache_bytes)),
        index_is_warm: Milestone::default(),
        fullness: FullnessWatch::default(),
        stopping: AtomicBool::new(false),
        runtime,
        device,
        superblock,
        revision: Mutex::new(revision),
        tuning,
        buffers,
        write_buffers,
    };
    pipeline::know_units(&core, &recovered.covered);
    pipeline::apply_units(&core, std::mem::take(&mut recovered.units));
    let reached = replay_log(&core, &mut replay, &recovered).await?;
    core.repairs.extend(recovered.check_mark(&mark, &core.log, &replay, reached)?);
    let unused_bytes = core.unused_bytes();
    if unused_bytes >= layout.segment_bytes {
        tracing::info!(unused_bytes, "the device is larger than the pool, which could grow");
    }
    for repair in &core.repairs {
        tracing::warn!(%repair, "damage that redundancy makes good");
    }
    if !core.read_only
        && let Err(error) = found_superblock.restore(&*core.device).await
    {
        // As it was: the other copy is enough.
        tracing::warn!(%error, "a superblock copy cannot be restored");
    }
    // Nothing is overwritten before all of it has been looked at.
    if !core.read_only {
        if let Some(tail) = tail {
            tail.clean(&*core.device).await?;
        }
        core.log.clear_unreadable().await?;
        core.checkpoints.clear_torn().await?;
    }
    Ok(core)
}

fn volumes(catalog: &Catalog, inherited_up_to: Sequence) -> BTreeMap<String, Arc<VolumeCore>> {
    let volume = |(name, record): (&String, &VolumeRecord)| {
        let chain = catalog.chain(View::live(record.layer));
        (name.clone(), Arc::new(VolumeCore::new(name, record, chain, inherited_up_to)))
    };
    let snapshot = |(name, record): (SnapshotName, &SnapshotRecord)| {
        let (name, chain) = (name.to_string(), catalog.chain(record.view));
        let core = VolumeCore::snapshot(&name, record, chain, inherited_up_to);
        (name, Arc::new(core))
    };
    let volumes = catalog.volumes.iter().map(volume);
    volumes.chain(catalog.snapshots().map(snapshot)).collect()
}

/// A batch for each reducer and one more, but no more than half of staging.
///
/// A change holds at most a batch's bytes, and a hole [`ZERO_STAGED_BYTES`]. So where one finds no place, others hold
/// more than a batch and the holes of a batch: a reducer can take one and need not wait for company.
fn backlog_bytes(tuning: &Tuning) -> usize {
    let holes_bytes = MAX_BATCH_CHANGES * ZERO_STAGED_BYTES;
    let most = (tuning.staging_bytes / 2).max(2 * tuning.batch_bytes);
    ((tuning.reducers + 1) * tuning.batch_bytes).min(most) + holes_bytes
}

/// The tuning as far as the pool's shape allows it: the tail of a segment that a unit does not
/// fit into is wasted, so units stay well below a segment.
fn fitted(tuning: &Tuning, layout: &Layout, runtime: &dyn Runtime) -> Tuning {
    let most = (layout.segment_bytes / 8) as usize;
    let batch_bytes = tuning.batch_bytes.min(most).clamp(32 << 10, MAX_BATCH_BYTES);
    let batch_bytes = batch_bytes - batch_bytes % siltstone_device::BLOCK_BYTES;
    let reducers = match tuning.reducers {
        0 => runtime.parallelism(),
        count => count,
    };
    Tuning { batch_bytes, reducers, ..tuning.clone() }
}
