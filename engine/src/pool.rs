//! A pool: creating, opening, closing, and its volumes.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use parking_lot::{Mutex, RwLock};
use siltstone_cursor::{MAX_BLOCKS, Manifest, Map, MapConfig};
use siltstone_dedup::{InFlight, Index};
use siltstone_device::{
    AlignedBuffer, BufferPool, ByteOffset, Device, Entropy, Runtime, Sequence, SystemEntropy,
    Threads,
    file::{self, Access, FileOptions},
    header::HeaderError,
    mapped, request,
};
use siltstone_nvram::{CheckpointStore, GroupCommit, Log, LogIdentity, MarkStore, Region};

use crate::{
    admission::{Admission, Admittable},
    budget::Budget,
    catalog::{Catalog, VolumeRecord},
    checkpointer::{self, Checkpointing},
    collector::{Collection, Collector},
    config::{
        self, CreateOptions, INDEX_MEMORY_BYTES, MAX_THRESHOLD, OpenOptions, Tuning, VolumeOptions,
    },
    core::{Core, Published},
    error::{EngineError, MetadataError, Result},
    frame_cache::FrameCache,
    frontier::Frontier,
    health::{Health, Milestone},
    layout::{Layout, MARKS},
    marks::Marks,
    overlay::ChangeBody,
    pipeline::{self, Pipeline},
    record::{CheckpointBody, MAX_COUNT},
    recovery::{self, RecoveredUnits},
    repair::Repair,
    segment_table::SegmentTable,
    space::{Space, worst_case_bytes},
    staged_data::{BlockSums, StagedData},
    stats::Stats,
    summaries::SummaryCache,
    superblock::{FoundSuperblock, MAX_PATH_BYTES, Superblock},
    volume::Volume,
    volume_core::VolumeCore,
};

/// Largest batch, and so the largest change, in bytes.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// Idle buffer memory that is kept for reuse. More than the pipeline ever holds, so that steady
/// work never gives memory back to the system: that would interrupt every core.
const IDLE_BUFFER_BYTES: usize = 96 << 20;

/// An open pool. Dropping it closes it; [`close`](Self::close) also says whether that went well.
///
/// What waits for the device comes in two forms: a blocking one (`checkpoint`), and an asynchronous
/// one (`checkpoint_async`) that any executor can drive. A pool that was opened in a simulation
/// ([`open_in`](Self::open_in)) has only the second, and is to be closed or
/// [abandoned](Self::abandon), not dropped.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("pool");
/// use siltstone_engine::{CreateOptions, OpenOptions, Pool, VolumeOptions};
///
/// let options = CreateOptions { size_bytes: Some(256 << 20), ..CreateOptions::default() };
/// Pool::create(&path, &options)?;
/// let pool = Pool::open(&path, &OpenOptions::default())?;
/// let disk = pool.create_volume("disk", &VolumeOptions::new(1 << 30))?;
/// disk.write_at(8192, b"hello")?;
/// disk.flush()?;
/// let mut back = [0; 5];
/// disk.read_at(8192, &mut back)?;
/// assert_eq!(&back, b"hello");
/// pool.close()?;
/// # Ok(())
/// # }
/// ```
pub struct Pool {
    core: Arc<Core>,
    /// `None` when open for reading only, or closed.
    pipeline: Mutex<Option<Pipeline>>,
    /// Held while the catalog is changed and the change made durable.
    changing: tokio::sync::Mutex<()>,
}

/// A volume's properties.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its compression level.
    pub level: i8,
}

impl Pool {
    /// Makes a new pool in a new file, or on a block device that holds none.
    ///
    /// # Errors
    /// If the file exists, the device holds a pool, an option is out of range, or the device fails.
    pub fn create(path: &Path, options: &CreateOptions) -> Result<()> {
        validate(options)?;
        if let Some(size_bytes) = options.size_bytes {
            // Before a file of that size is made.
            Layout::new(size_bytes, options)?;
        }
        let access = Access::Create { size_bytes: options.size_bytes.unwrap_or(0) };
        let device = file::open(path, &FileOptions { access, ..FileOptions::default() })?;
        let nvram = match &options.nvram {
            Some(path) => {
                let layout = Layout::new(device.size_bytes(), options)?;
                let access = Access::Create { size_bytes: layout.nvram_bytes };
                Some(open_nvram(path, access, options.nvram_mapped)?)
            }
            None => None,
        };
        Self::create_on(device, nvram, options)
    }

    /// Makes a new pool on a device; the log goes to `nvram` if there is one.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_on(
        device: Arc<dyn Device>,
        nvram: Option<Arc<dyn Device>>,
        options: &CreateOptions,
    ) -> Result<()> {
        pollster::block_on(create_on(device, nvram, options, &SystemEntropy))
    }

    /// Makes a new pool whose identity comes from `entropy`: what a simulation needs to make the
    /// same pool again. A real pool's log would be open to forgery by guests who know the seed.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub async fn create_from(
        device: Arc<dyn Device>,
        nvram: Option<Arc<dyn Device>>,
        options: &CreateOptions,
        entropy: &dyn Entropy,
    ) -> Result<()> {
        create_on(device, nvram, options, entropy).await
    }

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
            checkpointer::checkpoint(&core, &mut Collector::new(), false).await?;
            let started = Pipeline::start(&core);
            Some(started.map_err(|source| {
                // Threads that did start end, and let go of the device.
                core.fail(EngineError::Thread { source: Arc::new(source) });
                EngineError::Failed { cause: core.health.failure().expect("it has just failed") }
            })?)
        };
        Ok(Self { core, pipeline: Mutex::new(pipeline), changing: tokio::sync::Mutex::new(()) })
    }

    /// A handle to a volume.
    ///
    /// # Errors
    /// [`EngineError::NoSuchVolume`].
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let volumes = self.core.volumes.read();
        let missing = || EngineError::NoSuchVolume { volume: name.into() };
        let shared = volumes.get(name).cloned().ok_or_else(missing)?;
        Ok(Volume { core: Arc::clone(&self.core), shared })
    }

    /// All volumes, by name.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let volumes = self.core.volumes.read();
        let info = |volume: &Arc<VolumeCore>| VolumeInfo {
            name: volume.name.clone(),
            size_bytes: volume.size_bytes(),
            level: volume.level,
        };
        volumes.values().map(info).collect()
    }

    /// Creates an empty volume. It is durable when this returns.
    ///
    /// # Errors
    /// If the name is taken or impossible, the size or level is, or the pool accepts no changes.
    pub fn create_volume(&self, name: &str, options: &VolumeOptions) -> Result<Volume> {
        pollster::block_on(self.create_volume_async(name, options))
    }

    /// As [`create_volume`](Self::create_volume).
    ///
    /// # Errors
    /// As `create_volume`.
    pub async fn create_volume_async(&self, name: &str, options: &VolumeOptions) -> Result<Volume> {
        self.core.check_writable()?;
        let _changing = self.changing.lock().await;
        let (record, chain) = {
            let mut catalog = self.core.catalog.lock();
            let record = catalog.create(name, options)?;
            // The other half of a checkpoint slot is the patches'.
            if catalog.encoded_bytes() > self.core.checkpoints.max_body_bytes() / 2 {
                catalog.delete(name)?;
                return Err(EngineError::CatalogFull { volumes: catalog.volumes.len() });
            }
            let chain = catalog.chain(record.layer);
            (record, chain)
        };
        self.store_catalog().await?;
        let shared = Arc::new(VolumeCore::new(name, &record, chain));
        self.core.volumes.write().insert(name.into(), Arc::clone(&shared));
        Ok(Volume { core: Arc::clone(&self.core), shared })
    }

    /// Deletes a volume and everything in it. It is gone for good when this returns; handles to
    /// it fail from then on, and its space is freed in the background.
    ///
    /// # Errors
    /// If there is no such volume, or the pool accepts no changes.
    pub fn delete_volume(&self, name: &str) -> Result<()> {
        pollster::block_on(self.delete_volume_async(name))
    }

    /// As [`delete_volume`](Self::delete_volume).
    ///
    /// # Errors
    /// As `delete_volume`.
    pub async fn delete_volume_async(&self, name: &str) -> Result<()> {
        self.core.check_writable()?;
        let _changing = self.changing.lock().await;
        let shared = self.core.volumes.write().remove(name);
        let missing = || EngineError::NoSuchVolume { volume: name.into() };
        let shared = shared.ok_or_else(missing)?;
        shared.mark_deleted();
        // What was admitted before goes through first, so that nothing of the layer follows.
        self.drain().await?;
        self.core.catalog.lock().delete(name)?;
        self.store_catalog().await
    }

    /// Changes a volume's size. What lies past a smaller size is discarded and reads as zeros if
    /// the volume grows again.
    ///
    /// # Errors
    /// If there is no such volume, the size is impossible, or the pool accepts no changes.
    pub fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<()> {
        pollster::block_on(self.resize_volume_async(name, size_bytes))
    }

    /// As [`resize_volume`](Self::resize_volume).
    ///
    /// # Errors
    /// As `resize_volume`.
    pub async fn resize_volume_async(&self, name: &str, size_bytes: u64) -> Result<()> {
        self.core.check_writable()?;
        config::validate_volume_size(name, size_bytes)?;
        let _changing = self.changing.lock().await;
        let volume = self.volume(name)?;
        let old_bytes = volume.size_bytes();
        if size_bytes < old_bytes {
            // In this order: what is admitted behind the new end from now on is refused, and what
            // was admitted before is covered by the zeros.
            volume.shared.set_size_bytes(size_bytes);
            if let Err(error) = volume.zero_cut_off(old_bytes).await {
                volume.shared.set_size_bytes(old_bytes);
                return Err(error);
            }
            volume.commit().await?;
        }
        self.core.catalog.lock().volume_mut(name)?.size_bytes = size_bytes;
        self.store_catalog().await?;
        volume.shared.set_size_bytes(size_bytes);
        Ok(())
    }

    /// Makes everything durable that was written before this call, to any volume.
    ///
    /// # Errors
    /// If the device fails.
    pub fn flush(&self) -> Result<()> {
        pollster::block_on(self.flush_async())
    }

    /// As [`flush`](Self::flush).
    ///
    /// # Errors
    /// As `flush`.
    pub async fn flush_async(&self) -> Result<()> {
        if self.core.read_only {
            return Ok(());
        }
        self.core.flush().await
    }

    /// Sends everything through the pipeline and makes a checkpoint.
    ///
    /// # Errors
    /// If the device fails.
    pub fn checkpoint(&self) -> Result<()> {
        pollster::block_on(self.checkpoint_async())
    }

    /// As [`checkpoint`](Self::checkpoint).
    ///
    /// # Errors
    /// As `checkpoint`.
    pub async fn checkpoint_async(&self) -> Result<()> {
        self.core.check_writable()?;
        self.drain().await?;
        self.store_catalog().await
    }

    /// Collects garbage until there is none left that is worth it, however much room there is.
    ///
    /// # Errors
    /// If the device fails.
    pub fn collect_garbage(&self) -> Result<()> {
        pollster::block_on(self.collect_garbage_async())
    }

    /// As [`collect_garbage`](Self::collect_garbage).
    ///
    /// # Errors
    /// As `collect_garbage`.
    pub async fn collect_garbage_async(&self) -> Result<()> {
        self.core.check_writable()?;
        self.drain().await?;
        let core = &self.core;
        core.collection.force();
        // Merged first, so that nothing is moved that a newer patch has superseded.
        core.checkpointing.run(true, || core.health.check()).await?;
        while core.collection.is_forced() || core.collection.is_busy() {
            // A round begins when every batch that is under way has been published.
            self.drain().await?;
            core.checkpointing.run(false, || core.health.check()).await?;
        }
        // What the last round has emptied is condemned by one checkpoint and freed by the next.
        for _ in 0..2 {
            core.checkpointing.run(false, || core.health.check()).await?;
        }
        Ok(())
    }

    /// Waits until the index knows every fingerprint on the device, as far as it has room: what is
    /// written before that after an opening may be stored again. In a pool that is open for
    /// reading only, fills the index now; nothing else does.
    ///
    /// # Errors
    /// If the pool fails or is closed meanwhile.
    pub fn wait_index_warm(&self) -> Result<()> {
        pollster::block_on(self.wait_index_warm_async())
    }

    /// As [`wait_index_warm`](Self::wait_index_warm).
    ///
    /// # Errors
    /// As `wait_index_warm`.
    pub async fn wait_index_warm_async(&self) -> Result<()> {
        let core = &self.core;
        if core.read_only && !core.index_is_warm.is_set() {
            pipeline::warm_index(core).await;
        }
        core.index_is_warm.wait(|| core.health.check_open()).await
    }

    /// Finishes what was written, makes it durable and closes the pool. Handles that still exist
    /// refuse further changes; the device stays locked until the last of them is dropped.
    ///
    /// # Errors
    /// The failure after which the pool accepted no more changes, if there was one.
    pub fn close(self) -> Result<()> {
        pollster::block_on(self.stop())
    }

    /// As [`close`](Self::close).
    ///
    /// # Errors
    /// As `close`.
    pub async fn close_async(self) -> Result<()> {
        self.stop().await
    }

    /// Lets go of the pool much as the end of its process would: what was not flushed may be lost.
    /// Its tasks end by themselves, or are dropped by the simulation that runs them.
    pub fn abandon(self) {
        self.core.fail(EngineError::Abandoned);
        drop(self.pipeline.lock().take());
    }

    async fn stop(&self) -> Result<()> {
        let pipeline = self.pipeline.lock().take();
        match pipeline {
            Some(pipeline) => pipeline.stop(&self.core).await,
            None => Ok(()),
        }
    }

    async fn drain(&self) -> Result<()> {
        let core = &self.core;
        let target = core.admission.admitted();
        core.admission.drain_to(target);
        core.admission.wait_published(target, || core.health.check()).await
    }

    async fn store_catalog(&self) -> Result<()> {
        let core = &self.core;
        core.checkpointing.run(false, || core.health.check()).await
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.core.runtime.can_block() {
            return;
        }
        if let Err(error) = pollster::block_on(self.stop()) {
            tracing::error!(%error, "the pool could not be closed in order; it recovers when opened");
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({:016x})", self.core.superblock.pool)
    }
}

fn open_nvram(path: &Path, access: Access, map_it: bool) -> Result<Arc<dyn Device>> {
    Ok(if map_it {
        mapped::open(path, access)?
    } else {
        file::open(path, &FileOptions { access, ..FileOptions::default() })?
    })
}

async fn create_on(
    device: Arc<dyn Device>,
    nvram: Option<Arc<dyn Device>>,
    options: &CreateOptions,
    entropy: &dyn Entropy,
) -> Result<()> {
    let size_bytes = options.size_bytes.unwrap_or(u64::MAX).min(device.size_bytes());
    let mut layout = Layout::new(size_bytes, options)?;
    layout.nvram_internal = nvram.is_none();
    validate(options)?;
    let mut uuid = [0; 16];
    entropy.fill(&mut uuid);
    // No path: the caller gave a device, and gives it again at open.
    let nvram_path = match &options.nvram {
        Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        None => PathBuf::new(),
    };
    let nvram_path = nvram_path.as_os_str().as_bytes().to_vec();
    if nvram_path.len() > MAX_PATH_BYTES {
        return Err(EngineError::InvalidOption {
            option: "an NVRAM path length",
            value: nvram_path.len() as u64,
            allowed: "at most 1024 bytes",
        });
    }
    if !options.overwrite {
        refuse_to_overwrite(&*device).await?;
    }
    // The memory that every opening will need.
    drop(Index::new(options.index_memory_bytes as usize)?);
    let superblock = Superblock {
        sequence: 1,
        pool: entropy.next_u64() | 1,
        uuid,
        nvram_nonce: [entropy.next_u64(), entropy.next_u64()],
        layout,
        index_memory_bytes: options.index_memory_bytes,
        threshold: options.threshold,
        sync_always: options.sync_always,
        nvram_path,
        nvram_mapped: options.nvram_mapped,
        unknown_read_compatible: 0,
    };
    let pool = superblock.pool;
    let log_device = nvram.unwrap_or_else(|| Arc::clone(&device));
    let identity = log_identity(&superblock);
    Log::format(log_device, log_region(&layout), identity).await?;
    let slots = layout.checkpoint_slots();
    CheckpointStore::format(Arc::clone(&device), slots).await?;
    let (checkpoints, _) = CheckpointStore::open(Arc::clone(&device), slots, pool, 0).await?;
    MarkStore::format(&*device, MARKS).await?;
    let table = SegmentTable::new(pool, layout);
    let stored = table.store_changes(&*device, 1).await?;
    request::flush(&*device).await?;
    let body = CheckpointBody {
        sequence: Sequence(0),
        unit: 0,
        next_generation: table.next_generation(),
        table_versions_sum: stored.versions_sum,
        frontier: Vec::new(),
        catalog: Catalog::new(),
        manifest: Manifest::empty(),
    };
    checkpoints.store(&body.encode()).await?;
    table.stored(stored);
    // Last: until this is durable there is no pool.
    superblock.store(&*device).await
}

/// Checks that a device holds nothing where pools and file systems keep what names them.
async fn refuse_to_overwrite(device: &dyn Device) -> Result<()> {
    match Superblock::load(device).await {
        Err(EngineError::NotAPool { .. }) => {}
        // Nobody knows what is there.
        Err(
            error @ EngineError::Metadata(MetadataError::Header(HeaderError::Unreadable { .. })),
        ) => {
            return Err(error);
        }
        // One that cannot be used is still somebody's pool.
        Ok(_) | Err(EngineError::NewerVersion { .. } | EngineError::Metadata(_)) => {
            return Err(EngineError::PoolExists);
        }
        Err(error) => return Err(error),
    }
    const LOOKED_AT_BYTES: usize = 1 << 20;
    let start = AlignedBuffer::zeroed(LOOKED_AT_BYTES);
    let start = request::read(device, ByteOffset(0), start).await?;
    if start.iter().any(|&byte| byte != 0) {
        return Err(EngineError::NotEmpty);
    }
    Ok(())
}

fn validate(options: &CreateOptions) -> Result<()> {
    let wrong = |option, value, allowed| EngineError::InvalidOption { option, value, allowed };
    if !(1..=MAX_THRESHOLD).contains(&options.threshold) {
        return Err(wrong("a threshold", options.threshold.into(), "from 1 to 1024 blocks"));
    }
    let memory = options.index_memory_bytes;
    if !INDEX_MEMORY_BYTES.contains(&memory) {
        return Err(wrong("an index memory", memory, "from 64 KiB to 1 TiB"));
    }
    Ok(())
}

fn log_identity(superblock: &Superblock) -> LogIdentity {
    let [first, second] = superblock.nvram_nonce;
    LogIdentity { first, second }
}

fn log_region(layout: &Layout) -> Region {
    Region { offset: layout.nvram_offset, len_bytes: layout.nvram_bytes }
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
    let (expected_bytes, actual_bytes) = (layout.size_bytes, device.size_bytes());
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
    let body = CheckpointBody::decode(&body, layout.segment_count())?;
    // A life that a crash ended may have used the generations that follow the record's: a segment
    // each at most, for none comes free without a record. Nothing of them may pass for new.
    let generation = body.next_generation + u64::from(layout.segment_count());
    let versions = body.table_versions_sum;
    let (table, table_repairs) =
        SegmentTable::load(&*device, pool, layout, number, generation, versions).await?;
    let mut repairs: Vec<Repair> = found_superblock.spare.iter().cloned().collect();
    repairs.extend(checkpoints.damaged_copies().iter().cloned().map(Repair::Checkpoint));
    repairs.extend(marks.damaged_pages().iter().cloned().map(Repair::Mark));
    repairs.extend(table_repairs);
    let tuning = fitted(&options.tuning, &layout);
    let buffers = BufferPool::new(IDLE_BUFFER_BYTES);
    let mut recovered =
        recovery::scan_frontier(&device, &buffers, pool, &layout, &body, &table).await?;
    let map_config = MapConfig::new(pool, layout.geometry(), tuning.page_cache_bytes);
    let map = Map::open(Arc::clone(&device), map_config, body.manifest);
    let log_device = nvram.unwrap_or_else(|| Arc::clone(&device));
    let (log, mut replay) =
        Log::open(log_device, log_region(&layout), log_identity(&superblock)).await?;
    if replay.trimmed_up_to() > recovered.sequence {
        return Err(recovered.missing(recovered.sequence, replay.trimmed_up_to()));
    }

    let frontier = Frontier::new(layout.segment_count(), layout.segment_bytes);
    let tail = recovered.tail;
    let begun = std::mem::take(&mut recovered.begun);
    frontier.recover(begun, tail.map_or(0, |tail| tail.len_bytes));
    let mut core = Core {
        threshold: superblock.threshold,
        read_only: options.read_only,
        health: Arc::new(Health::default()),
        flushing: tokio::sync::Mutex::new(()),
        stats: Stats::default(),
        volumes: RwLock::new(volumes(&body.catalog)),
        catalog: Mutex::new(body.catalog),
        staging: Budget::new(tuning.staging_bytes),
        admission: Admission::new(
            recovered.sequence,
            tuning.batch_bytes,
            tuning.linger,
            Arc::clone(&runtime),
        ),
        commit: GroupCommit::new(recovered.sequence),
        log,
        index: Index::new(superblock.index_memory_bytes as usize)?,
        summaries: SummaryCache::new(Arc::clone(&device), buffers.clone(), pool, layout),
        in_flight: InFlight::new(),
        space: Space::new(layout.segment_count(), layout.segment_bytes),
        table,
        frontier,
        map,
        publishing: Mutex::new(Published {
            sequence: recovered.sequence,
            unit: recovered.unit,
            batch: None,
        }),
        checkpoints,
        checkpointing: Checkpointing::new(Arc::clone(&runtime)),
        collection: Collection::default(),
        marks: Marks::new(marks, body.unit),
        repairs,
        frame_cache: Arc::new(FrameCache::new(tuning.frame_cache_bytes)),
        index_is_warm: Milestone::default(),
        was_full: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        runtime,
        device,
        superblock,
        tuning,
        buffers,
    };
    pipeline::know_units(&core, &recovered.covered);
    pipeline::apply_units(&core, std::mem::take(&mut recovered.units));
    let reached = replay_log(&core, &mut replay, &recovered).await?;
    core.repairs.extend(recovered.check_mark(&mark, &core.log, &replay, reached)?);
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
    }
    Ok(core)
}

/// Admits again what the log holds and no unit does. Returns up to where every change is found.
async fn replay_log(
    core: &Core,
    replay: &mut siltstone_nvram::Replay,
    units: &RecoveredUnits,
) -> Result<Sequence> {
    let mut reached = units.sequence;
    let by_layer: BTreeMap<_, _> =
        core.volumes.read().values().map(|volume| (volume.layer, Arc::clone(volume))).collect();
    while let Some(record) = replay.next_record().await? {
        for change in record.changes() {
            check_range(&change)?;
            // An append that was tried again leaves a change in two records.
            if change.sequence <= reached {
                continue;
            }
            // A record is written when all before its changes is durable.
            if change.sequence > reached.next() {
                return Err(units.missing(reached, Sequence(change.sequence.0 - 1)));
            }
            reached = change.sequence;
            // A deletion is stored with all changes of its volume, so those are skipped above.
            let volume = by_layer.get(&change.layer).ok_or(MetadataError::Inconsistent {
                structure: "NVRAM log record",
                field: "layer",
                value: change.layer.0.into(),
            })?;
            let body = match change.body {
                siltstone_nvram::ChangeBody::Data(data) => {
                    let mut memory = core.buffers.take(data.len());
                    let sums = BlockSums::of_copied(data, &mut memory);
                    ChangeBody::Data(StagedData::new(memory, sums))
                }
                siltstone_nvram::ChangeBody::Zero => ChangeBody::Zero,
            };
            let space_bytes = match &body {
                ChangeBody::Data(data) => worst_case_bytes(data.bytes().len()),
                ChangeBody::Zero => worst_case_bytes(0),
            };
            core.space.promise_regardless(space_bytes);
            let change_again = Admittable {
                volume: Arc::clone(volume),
                address: change.address,
                len_blocks: change.len_blocks,
                body,
                // Bounded by the ring; waiting here would be for threads that do not run yet.
                staged_bytes: 0,
                space_bytes,
                // The volume may have become smaller since; then zeros follow.
                end_bytes: 0,
            };
            let admitted = core.admission.admit(change_again, None, Some(change.sequence));
            assert!(
                admitted.is_ok(),
                "nobody shrinks, deletes or closes while the log is replayed"
            );
        }
    }
    core.commit.advance(core.admission.admitted());
    Ok(reached)
}

/// Refuses a change that no volume is large enough for: no program of ours logged it.
fn check_range(change: &siltstone_nvram::Change<'_>) -> Result<()> {
    let wrong = |field, value| {
        Err(MetadataError::Inconsistent { structure: "NVRAM log record", field, value }.into())
    };
    let end = change.address.0.checked_add(change.len_blocks.into());
    if end.is_none_or(|end| end > MAX_BLOCKS) {
        return wrong("block address", change.address.0);
    }
    if change.sequence.0 >= MAX_COUNT {
        return wrong("sequence", change.sequence.0);
    }
    if let siltstone_nvram::ChangeBody::Data(data) = change.body
        && data.len() > MAX_BATCH_BYTES
    {
        return wrong("data length", data.len() as u64);
    }
    Ok(())
}

fn volumes(catalog: &Catalog) -> BTreeMap<String, Arc<VolumeCore>> {
    let volume = |(name, record): (&String, &VolumeRecord)| {
        let core = VolumeCore::new(name, record, catalog.chain(record.layer));
        (name.clone(), Arc::new(core))
    };
    catalog.volumes.iter().map(volume).collect()
}

/// The tuning as far as the pool's shape allows it: the tail of a segment that a unit does not
/// fit into is wasted, so units stay well below a segment.
fn fitted(tuning: &Tuning, layout: &Layout) -> Tuning {
    let most = (layout.segment_bytes / 8) as usize;
    let batch_bytes = tuning.batch_bytes.min(most).clamp(32 << 10, MAX_BATCH_BYTES);
    let batch_bytes = batch_bytes - batch_bytes % siltstone_device::BLOCK_BYTES;
    Tuning { batch_bytes, ..tuning.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use siltstone_device::{BlockAddress, LayerId};

    #[test]
    fn a_logged_change_past_the_last_address_is_refused() {
        let change = |address, len_blocks| siltstone_nvram::Change {
            layer: LayerId(1),
            address: BlockAddress(address),
            len_blocks,
            sequence: Sequence(1),
            body: siltstone_nvram::ChangeBody::Zero,
        };
        check_range(&change(MAX_BLOCKS - 8, 8)).unwrap();
        for (address, len_blocks) in [(MAX_BLOCKS - 8, 9), (MAX_BLOCKS, 1), (u64::MAX, 1)] {
            check_range(&change(address, len_blocks)).unwrap_err();
        }
    }
}
