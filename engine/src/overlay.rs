//! The overlay: a volume's admitted changes that are not yet in the map, so that reads see writes
//! at once.
//!
//! # Thread safety
//! One reader-writer lock a volume; writers hold it for a few tree operations, inside the admission
//! lock (admission -> overlay is the only order). Readers take it alone.
//!
//! # Invariants
//! - Runs do not overlap; a run belongs to the newest change admitted for its blocks.
//! - A change leaves the overlay only after its entries are in the map, so a reader that asks the
//!   overlay first and the map second misses nothing.
//! - A *merge* (a write of part of a block) reads the block and admits the whole; if another change
//!   of that block is admitted in between, the merge is superseded and starts again.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use event_listener::Event;
use siltstone_device::{
    BLOCK_BYTES, BlockAddress, LayerId, Sequence,
    sync::{
        Mutex, RwLock,
        atomic::{AtomicUsize, Ordering, fence},
    },
};

use crate::{
    staged_data::{Altered, StagedData},
    volume_core::VolumeCore,
};

/// What a change does to its range.
#[derive(Debug)]
pub(crate) enum ChangeBody {
    /// Whole blocks: `len_blocks` of them.
    Data(StagedData),
    /// The range becomes a hole.
    Zero,
}

/// An admitted change: a run of blocks of one volume.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) volume: Arc<VolumeCore>,
    pub(crate) address: BlockAddress,
    pub(crate) len_blocks: u32,
    pub(crate) sequence: Sequence,
    pub(crate) body: ChangeBody,
    /// What it holds of the staging budget.
    pub(crate) staged_bytes: usize,
    /// What it holds of the pool's free space.
    pub(crate) space_bytes: u64,
    pub(crate) admitted_at: std::time::Instant,
}

impl Change {
    pub(crate) fn layer(&self) -> LayerId {
        self.volume.layer
    }

    /// Bytes of data; 0 for a hole.
    pub(crate) fn data_bytes(&self) -> usize {
        match &self.body {
            ChangeBody::Data(data) => data.bytes().len(),
            ChangeBody::Zero => 0,
        }
    }

    /// Where an altered block belongs.
    pub(crate) fn address_of(&self, altered: Altered) -> BlockAddress {
        self.address.plus(altered.index as u64)
    }

    fn end(&self) -> u64 {
        self.address.0 + u64::from(self.len_blocks)
    }
}

/// Part of a change that a read sees.
#[derive(Clone, Debug)]
pub(crate) struct OverlayRun {
    pub(crate) address: BlockAddress,
    pub(crate) len_blocks: u32,
    pub(crate) change: Arc<Change>,
}

impl OverlayRun {
    pub(crate) fn is_hole(&self) -> bool {
        matches!(self.change.body, ChangeBody::Zero)
    }

    /// Copies the run's blocks, zeros for a hole, and checks the copy.
    ///
    /// # Errors
    /// The first block that is not what was received.
    pub(crate) fn copy_to(&self, into: &mut [u8]) -> Result<(), BlockAddress> {
        assert_eq!(into.len(), self.len_blocks as usize * BLOCK_BYTES, "the whole run");
        let first = (self.address.0 - self.change.address.0) as usize;
        match &self.change.body {
            ChangeBody::Data(data) => {
                data.copy_to(first, into).map_err(|altered| self.change.address_of(altered))
            }
            ChangeBody::Zero => {
                into.fill(0);
                Ok(())
            }
        }
    }
}

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    runs: RwLock<BTreeMap<u64, OverlayRun>>,
    /// How many runs there are, for readers that need not lock when there is none.
    count: AtomicUsize,
    /// Blocks being merged, and whether the merge is superseded.
    merges: Mutex<BTreeMap<u64, bool>>,
    merge_count: AtomicUsize,
    merged: Event,
}

impl Overlay {
    /// Adds a change on top of what is there. The caller holds the admission lock.
    pub(crate) fn insert(&self, change: &Arc<Change>) {
        let mut runs = self.runs.write();
        carve(&mut runs, change.address.0, change.end());
        let run = OverlayRun {
            address: change.address,
            len_blocks: change.len_blocks,
            change: Arc::clone(change),
        };
        runs.insert(change.address.0, run);
        self.count.store(runs.len(), Ordering::Release);
        drop(runs);
        // Between making the change visible and looking for merges, as `begin_merge` has one
        // between announcing a merge and letting it read: either the merge reads this change, or
        // it is found here. The fences stand for the locks that are not taken.
        fence(Ordering::SeqCst);
        if self.merge_count.load(Ordering::Acquire) != 0 {
            let mut merges = self.merges.lock();
            for (_, superseded) in merges.range_mut(change.address.0..change.end()) {
                *superseded = true;
            }
        }
    }

    /// Removes what is left of a change whose entries are in the map.
    pub(crate) fn remove(&self, change: &Arc<Change>) {
        let is_mine = |run: &OverlayRun| Arc::ptr_eq(&run.change, change);
        let mut runs = self.runs.write();
        match runs.entry(change.address.0) {
            // Mostly nothing of it has been overwritten.
            Entry::Occupied(run)
                if run.get().len_blocks == change.len_blocks && is_mine(run.get()) =>
            {
                run.remove();
            }
            _ => {
                let mine = runs
                    .range(change.address.0..change.end())
                    .filter(|(_, run)| is_mine(run))
                    .map(|(&address, _)| address)
                    .collect::<Vec<_>>();
                for address in mine {
                    runs.remove(&address);
                }
            }
        }
        self.count.store(runs.len(), Ordering::Release);
    }

    /// Appends to `out` the runs that lie in the range, clipped to it, in order.
    pub(crate) fn read(&self, address: BlockAddress, len_blocks: u64, out: &mut Vec<OverlayRun>) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let end = address.0 + len_blocks;
        let runs = self.runs.read();
        let before = runs.range(..address.0).next_back();
        let within = runs.range(address.0..end);
        for (&start, run) in before.into_iter().chain(within) {
            let first = start.max(address.0);
            let last = (start + u64::from(run.len_blocks)).min(end);
            if first < last {
                out.push(OverlayRun {
                    address: BlockAddress(first),
                    len_blocks: (last - first) as u32,
                    change: Arc::clone(&run.change),
                });
            }
        }
    }

    /// Announces a merge of one block; waits while another merge of it is under way.
    pub(crate) async fn begin_merge(&self, address: BlockAddress) -> Merge<'_> {
        loop {
            let listener = self.merged.listen();
            {
                let mut merges = self.merges.lock();
                if let Entry::Vacant(entry) = merges.entry(address.0) {
                    entry.insert(false);
                    self.merge_count.store(merges.len(), Ordering::Release);
                    fence(Ordering::SeqCst);
                    return Merge { overlay: self, address };
                }
            }
            listener.await;
        }
    }
}

/// A write of part of a block, under way.
pub(crate) struct Merge<'a> {
    overlay: &'a Overlay,
    address: BlockAddress,
}

impl Merge<'_> {
    /// Whether the block has changed since the merge began or was last restarted; asked under the
    /// admission lock.
    pub(crate) fn is_superseded(&self) -> bool {
        self.overlay.merges.lock()[&self.address.0]
    }

    /// Starts again: the caller will read the block anew.
    pub(crate) fn restart(&self) {
        self.overlay.merges.lock().insert(self.address.0, false);
    }
}

impl Drop for Merge<'_> {
    fn drop(&mut self) {
        let mut merges = self.overlay.merges.lock();
        merges.remove(&self.address.0);
        self.overlay.merge_count.store(merges.len(), Ordering::Release);
        drop(merges);
        self.overlay.merged.notify(usize::MAX);
    }
}

/// Makes room for a run from `start` to `end`: what overlaps is cut back, split or removed.
fn carve(runs: &mut BTreeMap<u64, OverlayRun>, start: u64, end: u64) {
    let clip = |run: &OverlayRun, from: u64, to: u64| OverlayRun {
        address: BlockAddress(from),
        len_blocks: (to - from) as u32,
        change: Arc::clone(&run.change),
    };
    // Mostly nothing overlaps: then nothing but the last run below `end` need be looked at.
    let end_of = |address: u64, run: &OverlayRun| address + u64::from(run.len_blocks);
    if runs.range(..end).next_back().is_none_or(|(&address, run)| end_of(address, run) <= start) {
        return;
    }
    if let Some((&before, run)) = runs.range(..start).next_back() {
        let run_end = end_of(before, run);
        if run_end > start {
            let head = clip(run, before, start);
            let tail = (run_end > end).then(|| clip(run, end, run_end));
            runs.insert(before, head);
            if let Some(tail) = tail {
                runs.insert(end, tail);
            }
        }
    }
    let inside: Vec<u64> = runs.range(start..end).map(|(&address, _)| address).collect();
    for address in inside {
        let run = runs.remove(&address).expect("the address was just found");
        let run_end = end_of(address, &run);
        if run_end > end {
            runs.insert(end, clip(&run, end, run_end));
        }
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
#[path = "overlay/tests.rs"]
mod tests;
