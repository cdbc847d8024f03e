//! The map: memtables above patches.
//!
//! Thread safety: shared freely. Any number of threads publish, look up and run cursors; one at a
//! time freezes, writes and merges (the checkpointer), which is asserted.
//!
//! Lock order: `current`, then the active memtable, then the frozen one, then a shard of the page
//! cache. `append` and `damaged` are taken alone. No lock is held across a device wait.
//!
//! Invariants: readers see every version whole, because one pointer is exchanged. A publisher
//! holds `current` for reading while it inserts, so that nothing is inserted into a memtable that
//! has been frozen.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use siltstone_device::{BlockAddress, Device, LayerId, SegmentId, Sequence};

use crate::{
    cursor::{Cursor, ExtentCursor},
    epoch::View,
    epoch_table::{self, EpochTable},
    error::MapError,
    extent::{Extent, Key, MAX_BLOCKS, Run},
    lookup::Snapshot,
    manifest::Manifest,
    memtable::Memtable,
    page_store::PageStore,
    patch::Version,
    patch_writer::AppendPoint,
    policy::Limits,
    space::SegmentGeometry,
    stats::{Counters, MapStats},
};

/// How a map is opened.
#[derive(Clone, Debug)]
pub struct MapConfig {
    /// The pool's random identity.
    pub pool: u64,
    /// Where segments lie.
    pub geometry: SegmentGeometry,
    /// Memory that cached pages may take.
    pub page_cache_bytes: usize,
    /// What merges aim at.
    pub limits: Limits,
}

impl MapConfig {
    /// A configuration with the default limits, but for patches larger than a segment: while one
    /// is rewritten, it takes its space twice.
    #[must_use]
    pub fn new(pool: u64, geometry: SegmentGeometry, page_cache_bytes: usize) -> Self {
        let mut limits = Limits::default();
        limits.patch_pages = limits.patch_pages.min(geometry.pages_per_segment()).max(1);
        Self { pool, geometry, page_cache_bytes, limits }
    }
}

/// (layer, address) -> place of a block.
pub struct Map {
    pub(crate) shared: Arc<Shared>,
}

/// What the map shares with its cursors.
pub(crate) struct Shared {
    pub(crate) store: Arc<PageStore>,
    pub(crate) current: RwLock<Arc<Snapshot>>,
    pub(crate) append: Mutex<AppendPoint>,
    pub(crate) limits: Limits,
    pub(crate) counters: Counters,
    /// Patches that cannot be rewritten because a page of them is damaged.
    pub(crate) damaged: Mutex<BTreeSet<u64>>,
    /// Set while one thread freezes, writes or merges.
    pub(crate) maintained: AtomicBool,
}

/// The sequence number of a run of blocks, as far as the memtables know one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRun {
    /// Its first block.
    pub address: BlockAddress,
    /// Its length.
    pub len_blocks: u32,
    /// The latest change that was published for it, if it is in a memtable.
    pub sequence: Option<Sequence>,
}

impl Shared {
    #[inline]
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.read().clone()
    }
}

impl Map {
    /// Opens the map that a manifest describes. Reads nothing: pages are read when needed.
    #[must_use]
    pub fn open(device: Arc<dyn Device>, config: MapConfig, manifest: Manifest) -> Self {
        let MapConfig { pool, geometry, page_cache_bytes, limits } = config;
        let Manifest { patches, next_patch, tail } = manifest;
        let snapshot = Snapshot {
            active: Arc::default(),
            frozen: None,
            version: Arc::new(Version::new(0, patches.into_iter())),
        };
        let shared = Shared {
            store: Arc::new(PageStore::new(device, pool, geometry, page_cache_bytes)),
            current: RwLock::new(Arc::new(snapshot)),
            append: Mutex::new(AppendPoint { tail, next_patch, spares: Vec::new() }),
            limits,
            counters: Counters::default(),
            damaged: Mutex::default(),
            maintained: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Maps extents, each as of its epoch and sequence number: for every block and epoch the
    /// latest change wins, in whatever order changes of one memtable arrive. Epochs must not
    /// decrease as sequence numbers grow. Later memtables hide earlier ones, so changes that are
    /// published out of order (by recovery) must not have a freeze in between. An entry of an epoch that
    /// is over may be published if nothing of its blocks is in older parts of the map but what is
    /// published with it.
    pub fn publish(&self, entries: &[(Extent, Sequence)]) {
        let current = self.shared.current.read();
        let mut active = current.active.write();
        for (extent, sequence) in entries {
            active.insert(*extent, *sequence);
        }
    }

    /// What the memtables know of the sequence numbers of a range, in order and without gaps.
    #[must_use]
    pub fn newest_sequence(
        &self,
        layer: LayerId,
        address: BlockAddress,
        len_blocks: u32,
    ) -> Vec<SequenceRun> {
        let snapshot = self.shared.snapshot();
        let active = snapshot.active.read();
        let frozen = snapshot.frozen.as_ref().map(|frozen| frozen.read());
        let memtables = [Some(&*active), frozen.as_deref()].into_iter().flatten();
        let tables: Vec<_> = memtables.flat_map(Memtable::tables).collect();
        let mut runs = Vec::new();
        let end = address.0 + u64::from(len_blocks);
        sequences(&tables, layer, address.0, end, &mut runs);
        runs
    }

    /// Fills `out` with what a range of blocks holds, in order and without gaps. `chain` is a view
    /// of a layer followed by those of its ancestors; a block that none of them has is a hole.
    ///
    /// # Errors
    /// If a page that is needed cannot be read or is damaged.
    pub async fn lookup(
        &self,
        chain: &[View],
        address: BlockAddress,
        len_blocks: u32,
        out: &mut Vec<Run>,
    ) -> Result<(), MapError> {
        self.shared.lookup(chain, address, len_blocks, out).await
    }

    /// A cursor over what is stored in `[from, to)` as a chain of views sees it. It holds at most
    /// `memory_budget_bytes` of pages, but at least one leaf and its fence pages for each level
    /// of each layer.
    #[must_use]
    pub fn cursor(
        &self,
        chain: &[View],
        from: BlockAddress,
        to: BlockAddress,
        memory_budget_bytes: usize,
    ) -> Cursor {
        Cursor::new(self.shared.clone(), chain, from, to, memory_budget_bytes)
    }

    /// A cursor over the extents of all layers and epochs, holes included.
    #[must_use]
    pub fn cursor_all(&self, memory_budget_bytes: usize) -> ExtentCursor {
        ExtentCursor::new(self.shared.clone(), memory_budget_bytes)
    }

    /// A cursor over the extents of one layer from a block on, of all epochs, holes included.
    #[must_use]
    pub fn layer_cursor(
        &self,
        layer: LayerId,
        from: BlockAddress,
        memory_budget_bytes: usize,
    ) -> ExtentCursor {
        let (from, to) = (Key { layer, address: from }, Key::new(layer, MAX_BLOCKS));
        ExtentCursor::within(self.shared.clone(), from, to, memory_budget_bytes)
    }

    /// Entries in the active memtable.
    #[must_use]
    pub fn memtable_len(&self) -> usize {
        self.shared.current.read().active.read().len()
    }

    /// Epochs that the active memtable has changes of. A lookup asks each of them, so it should be
    /// [frozen](Self::freeze) when there are many.
    #[must_use]
    pub fn memtable_epochs(&self) -> usize {
        self.shared.current.read().active.read().tables().len()
    }

    /// About what the memtables take in memory.
    #[must_use]
    pub fn memtable_bytes(&self) -> usize {
        let snapshot = self.shared.snapshot();
        let frozen = snapshot.frozen.as_ref().map_or(0, |frozen| frozen.read().len());
        (snapshot.active.read().len() + frozen) * epoch_table::ENTRY_BYTES
    }

    /// What a checkpoint has to store to find the patches of this moment again.
    #[must_use]
    pub fn manifest(&self) -> Manifest {
        let patches = self.shared.snapshot().version.patches().cloned().collect();
        let append = self.shared.append.lock();
        Manifest { patches, next_patch: append.next_patch, tail: append.tail }
    }

    /// Segments that the map was given for operations that were then abandoned. It will use them
    /// for the next ones; until then no count in an [`Edit`](crate::Edit) speaks of them.
    #[must_use]
    pub fn spare_segments(&self) -> Vec<SegmentId> {
        self.shared.append.lock().spares.clone()
    }

    /// Whether some patches are left as they are because a page of them is damaged.
    #[must_use]
    pub fn has_damaged(&self) -> bool {
        !self.shared.damaged.lock().is_empty()
    }

    /// Numbers for the operator.
    #[must_use]
    pub fn stats(&self) -> MapStats {
        let snapshot = self.shared.snapshot();
        let version = &snapshot.version;
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MapStats {
            entries: version.patches().map(|patch| patch.entries).sum(),
            patches: version.patches().count() as u64,
            levels: version.levels().iter().map(|level| level.len() as u64).collect(),
            pages: version.patches().map(|patch| patch.page_count()).sum(),
            page_cache_bytes: self.shared.store.cache.bytes() as u64,
            memtable_entries: snapshot.active.read().len() as u64
                + snapshot.frozen.as_ref().map_or(0, |frozen| frozen.read().len() as u64),
            lookups: load(&counters.lookups),
            page_reads: load(&self.shared.store.page_reads),
            pages_written: load(&counters.pages_written),
            merges: load(&counters.merges),
            moves: load(&counters.moves),
        }
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Appends what `tables`, newest first, know of `[from, to)`.
fn sequences(
    tables: &[&EpochTable],
    layer: LayerId,
    mut from: u64,
    to: u64,
    runs: &mut Vec<SequenceRun>,
) {
    let run = |from: u64, to: u64, sequence| SequenceRun {
        address: BlockAddress(from),
        len_blocks: (to - from) as u32,
        sequence,
    };
    while from < to {
        let Some((table, older)) = tables.split_first() else {
            runs.push(run(from, to, None));
            return;
        };
        let found = table.first_in(layer, from, to);
        let start = found.as_ref().map_or(to, |(extent, _)| extent.address.0);
        sequences(older, layer, from, start, runs);
        let Some((extent, sequence)) = found else { return };
        runs.push(run(start, extent.end_address(), Some(sequence)));
        from = extent.end_address();
    }
}
