//! A volume as the pipeline sees it; what `Volume` handles share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use siltstone_cursor::View;
use siltstone_device::{BLOCK_BYTES, LayerId};

use crate::{
    catalog::VolumeRecord,
    error::{EngineError, Result},
    overlay::Overlay,
    read_ahead::Streams,
};

/// See the module's page.
#[derive(Debug)]
pub(crate) struct VolumeCore {
    pub(crate) name: String,
    pub(crate) layer: LayerId,
    /// The layer and its ancestors, newest first.
    pub(crate) chain: Arc<[View]>,
    pub(crate) level: i8,
    size_bytes: AtomicU64,
    deleted: AtomicBool,
    pub(crate) overlay: Overlay,
    pub(crate) streams: Streams,
}

impl VolumeCore {
    pub(crate) fn new(name: &str, record: &VolumeRecord, chain: Vec<View>) -> Self {
        Self {
            name: name.into(),
            layer: record.layer,
            chain: chain.into(),
            level: record.level,
            size_bytes: AtomicU64::new(record.size_bytes),
            deleted: AtomicBool::new(false),
            overlay: Overlay::default(),
            streams: Streams::default(),
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn set_size_bytes(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    pub(crate) fn len_blocks(&self) -> u64 {
        self.size_bytes().div_ceil(BLOCK_BYTES as u64)
    }

    pub(crate) fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
    }

    pub(crate) fn check_exists(&self) -> Result<()> {
        if self.deleted.load(Ordering::Acquire) {
            return Err(EngineError::VolumeDeleted { volume: self.name.clone() });
        }
        Ok(())
    }

    /// Checks that a range lies in the volume.
    pub(crate) fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.check_exists()?;
        let size_bytes = self.size_bytes();
        if offset_bytes.checked_add(len_bytes).is_none_or(|end| end > size_bytes) {
            let volume = self.name.clone();
            return Err(EngineError::OutOfRange { volume, offset_bytes, len_bytes, size_bytes });
        }
        Ok(())
    }
}
