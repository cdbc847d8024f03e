//! A volume, or a snapshot, as the pipeline sees it; what `Volume` handles share.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
};

use parking_lot::RwLock;
use siltstone_cursor::{Epoch, View};
use siltstone_device::{BLOCK_BYTES, LayerId, Sequence};

use crate::{
    catalog::{SnapshotRecord, VolumeRecord},
    compression::Compression,
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
    chain: RwLock<Arc<[View]>>,
    is_snapshot: bool,
    compression: RwLock<Compression>,
    size_bytes: AtomicU64,
    /// Whether handles are of use, as an [`End`].
    end: AtomicU8,
    /// What a snapshot holds, or a volume reads of its layer's ancestors, is in the map once every
    /// change up to here is.
    inherited_up_to: AtomicU64,
    has_inherited: AtomicBool,
    pub(crate) overlay: Overlay,
    pub(crate) streams: Streams,
}

/// Why handles to a volume are of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The volume is gone.
    Deleted = 1,
    /// Its name stands for something else.
    RolledBack = 2,
}

impl VolumeCore {
    /// A volume; `chain` is its layer's. What that shows of its ancestors is in the map once every
    /// change up to `inherited_up_to` is.
    pub(crate) fn new(
        name: &str,
        record: &VolumeRecord,
        chain: Vec<View>,
        inherited_up_to: Sequence,
    ) -> Self {
        Self {
            name: name.into(),
            layer: record.layer,
            compression: RwLock::new(record.compression),
            size_bytes: AtomicU64::new(record.size_bytes),
            end: AtomicU8::new(0),
            inherited_up_to: AtomicU64::new(inherited_up_to.0),
            // The volume's own changes are in its overlay until they are in the map.
            has_inherited: AtomicBool::new(chain.len() == 1 && chain[0].as_of == Epoch::MAX),
            is_snapshot: chain[0].as_of != Epoch::MAX,
            chain: RwLock::new(chain.into()),
            overlay: Overlay::default(),
            streams: Streams::default(),
        }
    }

    /// A snapshot.
    pub(crate) fn snapshot(
        name: &str,
        record: &SnapshotRecord,
        chain: Vec<View>,
        inherited_up_to: Sequence,
    ) -> Self {
        let SnapshotRecord { view, size_bytes, compression, .. } = *record;
        let volume = VolumeRecord { id: 0, layer: view.layer, size_bytes, compression };
        Self::new(name, &volume, chain, inherited_up_to)
    }

    /// Whether it is a snapshot, which never changes.
    pub(crate) fn is_snapshot(&self) -> bool {
        self.is_snapshot
    }

    /// The views to read by. Whoever reads by them keeps them meanwhile: what they name stays in the
    /// map until nobody has them any more.
    pub(crate) fn chain(&self) -> Arc<[View]> {
        Arc::clone(&self.chain.read())
    }

    /// Reads no more by the oldest of its views, if it is this one, for the layer before it has all that
    /// it shows. Returns what was read by until now.
    pub(crate) fn leave(&self, oldest: View) -> Option<Weak<[View]>> {
        let mut chain = self.chain.write();
        let (last, kept) = chain.split_last().expect("a chain has a view");
        if *last != oldest || kept.is_empty() {
            return None;
        }
        let kept = kept.into();
        let before = Arc::downgrade(&chain);
        *chain = kept;
        Some(before)
    }

    /// Whether a change of a layer, made in some epoch, can be seen in it.
    pub(crate) fn sees(&self, layer: LayerId, epoch: Epoch) -> bool {
        self.chain().iter().any(|view| view.layer == layer && epoch <= view.as_of)
    }

    /// Whether everything that is not in the overlay is in the map.
    pub(crate) fn has_inherited(&self) -> bool {
        self.has_inherited.load(Ordering::Acquire)
    }

    pub(crate) fn note_inherited(&self) {
        self.has_inherited.store(true, Ordering::Release);
    }

    pub(crate) fn inherited_up_to(&self) -> Sequence {
        Sequence(self.inherited_up_to.load(Ordering::Acquire))
    }

    /// Changes that were logged are under way again, up to this one.
    pub(crate) fn inherit_up_to(&self, sequence: Sequence) {
        self.inherited_up_to.store(sequence.0, Ordering::Release);
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn set_size_bytes(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    /// How what is stored from now on is compressed.
    pub(crate) fn compression(&self) -> Compression {
        *self.compression.read()
    }

    pub(crate) fn set_compression(&self, compression: Compression) {
        *self.compression.write() = compression;
    }

    pub(crate) fn len_blocks(&self) -> u64 {
        self.size_bytes().div_ceil(BLOCK_BYTES as u64)
    }

    /// Makes every handle refuse what is asked of it from now on.
    pub(crate) fn end(&self, end: End) {
        self.end.store(end as u8, Ordering::Release);
    }

    pub(crate) fn check_exists(&self) -> Result<()> {
        let end = self.end.load(Ordering::Acquire);
        let volume = || self.name.clone();
        if end == End::Deleted as u8 {
            Err(EngineError::VolumeDeleted { volume: volume() })
        } else if end == End::RolledBack as u8 {
            Err(EngineError::VolumeRolledBack { volume: volume() })
        } else {
            Ok(())
        }
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
