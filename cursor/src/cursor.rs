//! Cursors: iterators over the merged memtables and patches.
//!
//! A cursor sees the patches and the frozen memtable of the moment it was made. Of the active
//! memtable it copies what lies ahead in chunks, so it may or may not see what is published
//! behind its back. If a page it needs has been recycled since, it goes on from its position with
//! the newest version.

use std::sync::Arc;

use siltstone_device::{BlockAddress, LayerId};

use crate::{
    error::MapError,
    extent::{Coalescer, Extent, Key, Run, Target},
    lookup::Snapshot,
    map::Shared,
    merge::{Input, MemtableReader, Merge},
    page::PAGE_BYTES,
    patch::{Patch, Version},
    prefetch::PatchReader,
};

/// Pages that a reader may hold besides its window: the path from the root to the leaves.
const PATH_PAGES: usize = 2;

/// The machinery of both cursors.
struct Scan {
    shared: Arc<Shared>,
    /// A layer and its ancestors, as one space of addresses (keys then have layer 0); or all
    /// layers.
    chain: Option<Vec<LayerId>>,
    /// Everything before this was returned, or is in `joined`.
    position: Key,
    to: Key,
    budget_bytes: usize,
    snapshot: Arc<Snapshot>,
    merge: Option<Merge>,
    joined: Coalescer,
}

impl Scan {
    fn new(
        shared: Arc<Shared>,
        chain: Option<Vec<LayerId>>,
        from: Key,
        to: Key,
        budget_bytes: usize,
    ) -> Self {
        let snapshot = shared.snapshot();
        let (merge, joined) = (None, Coalescer::default());
        Self { shared, chain, position: from, to, budget_bytes, snapshot, merge, joined }
    }

    async fn next(&mut self) -> Result<Option<Extent>, MapError> {
        loop {
            let merge = match &mut self.merge {
                Some(merge) => merge,
                none => none.insert(start_merge(
                    &self.shared,
                    &self.snapshot,
                    self.chain.as_deref(),
                    (self.position, self.to),
                    self.budget_bytes,
                )),
            };
            match merge.next(|_, _| ()).await {
                Ok(Some(extent)) => {
                    self.position = extent.end();
                    if let Some(extent) = self.joined.push(extent) {
                        return Ok(Some(extent));
                    }
                }
                Ok(None) => return Ok(self.joined.finish()),
                Err(error) => {
                    self.merge = None;
                    let newest = self.shared.snapshot();
                    if newest.version.number == self.snapshot.version.number {
                        return Err(error);
                    }
                    self.snapshot = newest;
                }
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        self.merge.as_ref().map_or(0, Merge::memory_bytes)
    }
}

/// A merge of everything in a range of keys, newest first; or, of a chain of layers, of what each
/// has in a range of addresses.
pub(crate) fn start_merge(
    shared: &Shared,
    snapshot: &Snapshot,
    chain: Option<&[LayerId]>,
    (from, to): (Key, Key),
    budget_bytes: usize,
) -> Merge {
    let ranges: Vec<(Key, Key)> = match chain {
        None => vec![(from, to)],
        Some(chain) => {
            chain.iter().map(|&layer| (Key { layer, ..from }, Key { layer, ..to })).collect()
        }
    };
    // First what there is to read, then a share of the budget for each.
    let runs: Vec<Vec<Vec<Arc<Patch>>>> =
        ranges.iter().map(|&(from, to)| sorted_runs(&snapshot.version, from, to)).collect();
    let readers = runs.iter().flatten().count().max(1);
    let window_pages = (budget_bytes / PAGE_BYTES / readers).saturating_sub(PATH_PAGES);
    let mut inputs = Vec::new();
    for (&(from, to), runs) in ranges.iter().zip(runs) {
        for table in [Some(&snapshot.active), snapshot.frozen.as_ref()].into_iter().flatten() {
            inputs.push(Input::Memtable(MemtableReader::new(table.clone(), from, to)));
        }
        inputs.extend(runs.into_iter().map(|run| {
            let store = shared.store.clone();
            let reader = PatchReader::new(store, run.into_iter(), from, to, window_pages);
            Input::Patches(Box::new(reader))
        }));
    }
    Merge::new(inputs, chain.is_some())
}

/// The patches that overlap a range, as sequences without overlap, newest first.
pub(crate) fn sorted_runs(version: &Version, from: Key, to: Key) -> Vec<Vec<Arc<Patch>>> {
    let newest = version.newest().iter().filter(|patch| patch.overlaps(from, to));
    let newest = newest.map(|patch| vec![patch.clone()]);
    let sorted = version.sorted().iter();
    let sorted = sorted.map(|level| Version::overlapping(level, from, to).to_vec());
    newest.chain(sorted).filter(|run| !run.is_empty()).collect()
}

/// A cursor over what is stored in a range of a chain of layers, in address order.
pub struct Cursor {
    scan: Scan,
}

impl Cursor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        chain: &[LayerId],
        from: BlockAddress,
        to: BlockAddress,
        budget_bytes: usize,
    ) -> Self {
        let layer = LayerId(0);
        let (from, to) = (Key { layer, address: from }, Key { layer, address: to });
        Self { scan: Scan::new(shared, Some(chain.to_vec()), from, to, budget_bytes) }
    }

    /// The next run of stored blocks; holes are left out.
    ///
    /// # Errors
    /// If a page that is needed cannot be read or is damaged. Another call tries again.
    pub async fn next(&mut self) -> Result<Option<Run>, MapError> {
        while let Some(extent) = self.scan.next().await? {
            let Extent { address, len_blocks, target, .. } = extent;
            if target != Target::Hole {
                return Ok(Some(Run { address, len_blocks, target }));
            }
        }
        Ok(None)
    }

    /// Bytes of pages that the cursor holds or has under way.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.scan.memory_bytes()
    }
}

/// A cursor over the extents of all layers, in order of layer and address, holes included.
pub struct ExtentCursor {
    scan: Scan,
}

impl ExtentCursor {
    pub(crate) fn new(shared: Arc<Shared>, budget_bytes: usize) -> Self {
        Self { scan: Scan::new(shared, None, Key::MIN, Key::MAX, budget_bytes) }
    }

    /// The next extent.
    ///
    /// # Errors
    /// If a page that is needed cannot be read or is damaged. Another call tries again.
    pub async fn next(&mut self) -> Result<Option<Extent>, MapError> {
        self.scan.next().await
    }

    /// Bytes of pages that the cursor holds or has under way.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.scan.memory_bytes()
    }
}
