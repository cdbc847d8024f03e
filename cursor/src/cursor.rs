//! Cursors: iterators over the merged memtables and patches.
//!
//! A cursor sees the patches and the frozen memtable of the moment it was made. Of the active
//! memtable it copies what lies ahead in chunks, so it may or may not see what is published
//! behind its back. If a page it needs has been recycled since, it goes on from its position with
//! the newest version.

use std::{collections::VecDeque, sync::Arc};

use siltstone_device::{BlockAddress, LayerId};

use crate::{
    epoch::View,
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
    /// What is seen of a layer and its ancestors, as one space of addresses (keys then have layer
    /// 0); or all versions of all layers.
    chain: Option<Vec<View>>,
    /// Everything before this was returned, or is in `joined`.
    position: Key,
    to: Key,
    budget_bytes: usize,
    snapshot: Arc<Snapshot>,
    merge: Option<Merge>,
    joined: Coalescer,
    /// What is to be returned next.
    ready: VecDeque<Extent>,
}

impl Scan {
    fn new(
        shared: Arc<Shared>,
        chain: Option<Vec<View>>,
        from: Key,
        to: Key,
        budget_bytes: usize,
    ) -> Self {
        let snapshot = shared.snapshot();
        Self {
            shared,
            chain,
            position: from,
            to,
            budget_bytes,
            snapshot,
            merge: None,
            joined: Coalescer::default(),
            ready: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<Extent>, MapError> {
        loop {
            if let Some(extent) = self.ready.pop_front() {
                return Ok(Some(extent));
            }
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
                Ok(true) => {
                    let stack = merge.stack();
                    self.position = stack[0].end();
                    self.joined.push(stack);
                    match stack.as_slice() {
                        [] => {}
                        [extent] => return Ok(Some(*extent)),
                        _ => self.ready.extend(stack.drain(..)),
                    }
                }
                Ok(false) => {
                    self.ready.extend(self.joined.finish());
                    if self.ready.is_empty() {
                        return Ok(None);
                    }
                }
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

/// A merge of everything in a range of keys, newest first; or, of a chain, of what is seen of each
/// layer in a range of addresses.
pub(crate) fn start_merge(
    shared: &Shared,
    snapshot: &Snapshot,
    chain: Option<&[View]>,
    (from, to): (Key, Key),
    budget_bytes: usize,
) -> Merge {
    let of_layer = |view: &View| {
        let layer = view.layer;
        (Key { layer, ..from }, Key { layer, ..to })
    };
    let ranges: Vec<(Key, Key)> = match chain {
        None => vec![(from, to)],
        Some(chain) => chain.iter().map(of_layer).collect(),
    };
    // First what there is to read, then a share of the budget for each.
    let runs: Vec<Vec<Vec<Arc<Patch>>>> =
        ranges.iter().map(|&(from, to)| sorted_runs(&snapshot.version, from, to)).collect();
    let readers = runs.iter().flatten().count().max(1);
    let window_pages = (budget_bytes / PAGE_BYTES / readers).saturating_sub(PATH_PAGES);
    let inputs = ranges.iter().zip(runs).map(|(&(from, to), runs)| {
        let mut inputs = memtable_inputs(snapshot, from, to);
        inputs.extend(runs.into_iter().map(|run| {
            let store = shared.store.clone();
            let reader = PatchReader::new(store, run.into_iter(), from, to, window_pages);
            Input::Patches(Box::new(reader))
        }));
        inputs
    });
    match chain {
        None => Merge::new(inputs.flatten()),
        Some(chain) => {
            let seen = inputs
                .zip(chain)
                .flat_map(|(inputs, view)| inputs.into_iter().map(|input| (input, view.as_of)));
            Merge::flattened(seen)
        }
    }
}

/// The memtables' part of a range, newest first.
pub(crate) fn memtable_inputs(snapshot: &Snapshot, from: Key, to: Key) -> Vec<Input> {
    let memtables = [Some(&snapshot.active), snapshot.frozen.as_ref()].into_iter().flatten();
    let readers = memtables.flat_map(|memtable| MemtableReader::of(memtable, from, to));
    readers.map(Input::Memtable).collect()
}

/// The patches that overlap a range, as sequences without overlap, newest first.
pub(crate) fn sorted_runs(version: &Version, from: Key, to: Key) -> Vec<Vec<Arc<Patch>>> {
    let newest = version.newest().iter().filter(|patch| patch.overlaps(from, to));
    let newest = newest.map(|patch| vec![patch.clone()]);
    let sorted = version.sorted().iter();
    let sorted = sorted.map(|level| Version::overlapping(level, from, to).to_vec());
    newest.chain(sorted).filter(|run| !run.is_empty()).collect()
}

/// A cursor over what is stored in a range as a chain of views sees it, in address order.
pub struct Cursor {
    scan: Scan,
}

impl Cursor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        chain: &[View],
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

/// A cursor over the extents of all layers and epochs, holes included, in order of layer and
/// address. Versions of the same blocks follow one another, newest first; others do not overlap.
pub struct ExtentCursor {
    scan: Scan,
}

impl ExtentCursor {
    pub(crate) fn new(shared: Arc<Shared>, budget_bytes: usize) -> Self {
        Self::within(shared, Key::MIN, Key::MAX, budget_bytes)
    }

    pub(crate) fn within(shared: Arc<Shared>, from: Key, to: Key, budget_bytes: usize) -> Self {
        Self { scan: Scan::new(shared, None, from, to, budget_bytes) }
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
