//! What a pool is made with (fixed in its superblock) and what a process opens it with.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use siltstone_device::BufferPool;

use crate::{compression::Compression, effort::Effort, error::EngineError};

/// Blocks in a full frame: 32 KiB.
pub const FRAME_BLOCKS: usize = 8;

/// Smallest pool, in bytes.
pub const MIN_POOL_BYTES: u64 = 16 << 20;

/// Largest volume, in bytes: 48-bit block addresses would allow more, clients do not.
pub const MAX_VOLUME_BYTES: u64 = 1 << 60;

/// Longest volume name, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// What the index may be allowed to take, in bytes: 64 KiB to 1 TiB.
pub const INDEX_MEMORY_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 40;

/// The longest run of duplicates that a pool may be told to wait for, in blocks.
pub const MAX_THRESHOLD: u32 = 1024;

/// How a pool is made. Everything here is fixed at creation and kept in the superblock.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The pool's size in bytes; `None` takes all of a block device.
    pub size_bytes: Option<u64>,
    /// A file or device of its own for the NVRAM log, or `None` for a region of the pool.
    pub nvram: Option<PathBuf>,
    /// Whether that file or device is byte-addressable (DAX, battery-backed memory) and is to be
    /// mapped rather than written by system calls.
    pub nvram_mapped: bool,
    /// Bytes of the NVRAM log's ring; `None` chooses by the pool's size.
    pub nvram_bytes: Option<u64>,
    /// Bytes of a segment, a power of two; `None` chooses by the pool's size.
    pub segment_bytes: Option<u64>,
    /// RAM that the dedup index may take, in bytes.
    pub index_memory_bytes: u64,
    /// The shortest run of duplicate blocks that is stored as a link.
    pub threshold: u32,
    /// Commit every write before it is acknowledged.
    pub sync_always: bool,
    /// Make the pool even if the device holds something: a file system, or another pool.
    pub overwrite: bool,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size_bytes: None,
            nvram: None,
            nvram_mapped: false,
            nvram_bytes: None,
            segment_bytes: None,
            index_memory_bytes: 64 << 20,
            threshold: 1,
            sync_always: false,
            overwrite: false,
        }
    }
}

/// How a process uses a pool. Nothing here changes what is on disk.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Recover in memory and refuse every change: what `stat` and `check` use.
    pub read_only: bool,
    /// Budgets and sizes of the pipeline.
    pub tuning: Tuning,
}

/// Memory budgets and batch sizes. The defaults suit a machine of any size.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Bytes of admitted data that may wait for the device; beyond it, admission waits, and before that where more than a
    /// batch a reducer and one more have not been begun with.
    pub staging_bytes: usize,
    /// Bytes of plain data that are reduced together.
    pub batch_bytes: usize,
    /// Bytes of frames kept for reads, as they are stored or decoded.
    pub frame_cache_bytes: usize,
    /// Bytes of map pages kept for lookups.
    pub page_cache_bytes: usize,
    /// Reducer threads; 0 = one per core.
    pub reducers: usize,
    /// How long an incomplete batch waits for company.
    pub linger: Duration,
    /// Memtable entries that start a checkpoint.
    pub memtable_entries: usize,
    /// Longest time between a change and its checkpoint.
    pub checkpoint_interval: Duration,
    /// Most staged bytes that a flush puts into the NVRAM log; more goes through the pipeline.
    pub log_commit_bytes: usize,
    /// How long after something became durable that is noted on the device; damage of it that
    /// comes together with a power cut within that time is taken for a torn write.
    pub mark_delay: Duration,
    /// How long a segment stays free, at least, before its space is given back to the medium; at most
    /// twice as long.
    pub discard_delay: Duration,
    /// At so many hundredths of its room a pool warns that it is filling up; garbage does not count.
    pub warn_percent: u8,
    /// And at so many that it is almost full.
    pub critical_percent: u8,
    /// Fill the index in the background after opening, from its stored image and from summaries; and
    /// store images of it.
    pub warm_index: bool,
    /// How hard to compress whatever waits; `None` by how much that is.
    pub effort: Option<Effort>,
    /// An image of the index is stored when so many segments, and an eighth of all, have come that
    /// the one before does not cover; or a quarter as many when the pool is closed.
    pub image_segments: u32,
}

impl Tuning {
    /// What the buffer of a full batch's write unit takes, with its summary, if nothing compresses.
    pub(crate) fn unit_buffer_bytes(&self) -> usize {
        BufferPool::capacity_of(self.batch_bytes + self.batch_bytes / 16)
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            staging_bytes: 32 << 20,
            batch_bytes: 1 << 20,
            frame_cache_bytes: 64 << 20,
            page_cache_bytes: 16 << 20,
            reducers: 0,
            linger: Duration::from_millis(20),
            memtable_entries: 1 << 16,
            checkpoint_interval: Duration::from_secs(10),
            log_commit_bytes: 256 << 10,
            mark_delay: Duration::from_millis(50),
            discard_delay: Duration::from_secs(5),
            warn_percent: 80,
            critical_percent: 95,
            warm_index: true,
            effort: None,
            image_segments: 64,
        }
    }
}

/// How a volume is made.
#[derive(Clone, Copy, Debug)]
pub struct VolumeOptions {
    /// Size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// How its data is compressed.
    pub compression: Compression,
}

impl VolumeOptions {
    /// A volume of `size_bytes` with everything else at its default.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, compression: Compression::default() }
    }

    /// The same, compressed otherwise.
    #[must_use]
    pub fn with_compression(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// Checks the size.
    ///
    /// # Errors
    /// [`EngineError::InvalidSize`].
    pub(crate) fn validate(&self, name: &str) -> Result<(), EngineError> {
        validate_volume_size(name, self.size_bytes)
    }
}

/// Checks a volume's size.
///
/// # Errors
/// [`EngineError::InvalidSize`].
pub(crate) fn validate_volume_size(name: &str, size_bytes: u64) -> Result<(), EngineError> {
    if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES || !size_bytes.is_multiple_of(512) {
        return Err(EngineError::InvalidSize { volume: name.into(), size_bytes });
    }
    Ok(())
}

/// Checks a volume's name: 1 to 255 bytes, no control characters, no '/' or '@' (snapshots).
///
/// # Errors
/// [`EngineError::InvalidName`].
pub fn validate_name(name: &str) -> Result<(), EngineError> {
    let bad = |c: char| c.is_control() || c == '/' || c == '@';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(bad) {
        return Err(EngineError::InvalidName { name: name.into() });
    }
    Ok(())
}
