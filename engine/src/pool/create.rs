//! Making a pool on a device that holds nothing.

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use siltstone_cursor::Manifest;
use siltstone_dedup::Index;
use siltstone_device::{
    AlignedBuffer, ByteOffset, Device, Entropy, Sequence, SystemEntropy,
    file::{self, Access, FileOptions},
    header::HeaderError,
    request,
};
use siltstone_nvram::{CheckpointStore, Log, MarkStore};

use super::{Pool, log_identity, log_region, open_nvram};
use crate::{
    catalog::Catalog,
    config::{CreateOptions, INDEX_MEMORY_BYTES, MAX_THRESHOLD},
    epochs::Epochs,
    error::{EngineError, MetadataError, Result},
    layout::{Layout, MARKS, whole_blocks},
    record::CheckpointBody,
    segment_count::SegmentCount,
    segment_table::SegmentTable,
    superblock::{MAX_PATH_BYTES, Revision, Superblock},
};

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
        pollster::block_on(create_on(device, nvram, options, &SystemEntropy, SegmentTable::new))
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
        create_on(device, nvram, options, entropy, SegmentTable::new).await
    }
}

/// Makes a pool whose segment table is what `table` makes of its identity, layout and size.
pub(super) async fn create_on(
    device: Arc<dyn Device>,
    nvram: Option<Arc<dyn Device>>,
    options: &CreateOptions,
    entropy: &dyn Entropy,
    table: fn(u64, Layout, SegmentCount) -> SegmentTable,
) -> Result<()> {
    let size_bytes = options.size_bytes.unwrap_or(u64::MAX).min(device.size_bytes());
    let mut layout = Layout::new(size_bytes, options)?;
    if nvram.is_some() {
        // A device of its own, all of which is the log's, whether or not the options name it.
        layout.nvram_internal = false;
        layout.nvram_offset = ByteOffset(0);
    }
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
    let revision = Revision { sequence: 1, size_bytes: whole_blocks(size_bytes) };
    let pool = superblock.pool;
    let log_device = nvram.unwrap_or_else(|| Arc::clone(&device));
    let identity = log_identity(&superblock);
    Log::format(log_device, log_region(&layout), identity).await?;
    let slots = layout.checkpoint_slots();
    CheckpointStore::format(Arc::clone(&device), slots).await?;
    let (checkpoints, _) = CheckpointStore::open(Arc::clone(&device), slots, pool, 0).await?;
    MarkStore::format(&*device, MARKS).await?;
    let count = SegmentCount::new(layout.segment_count(revision.size_bytes));
    let table = table(pool, layout, count);
    let stored = table.store_changes(&*device, 1).await?;
    request::flush(&*device).await?;
    let body = CheckpointBody {
        sequence: Sequence(0),
        unit: 0,
        next_generation: table.next_generation(),
        table_versions_sum: stored.versions_sum,
        segment_count: stored.segment_count,
        image: None,
        frontier: Vec::new(),
        epochs: Epochs::new(),
        catalog: Catalog::new(),
        manifest: Manifest::empty(),
    };
    checkpoints.store(&body.encode()).await?;
    table.stored(stored);
    // Last: until this is durable there is no pool.
    superblock.store(revision, &*device).await
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
