//! Point and range lookups: the hot path of every read.
//!
//! An attempt walks layers, and in each layer memtables and patches from newest to oldest, with
//! what is in memory. Ranges that nothing newer covers go on to the next place. Where a page is
//! missing, the attempt notes it and leaves that range open; the caller reads all missing pages
//! together and tries again. When everything is in memory, the first attempt is the last, and it
//! allocates nothing beyond the result.

use std::sync::{Arc, atomic::Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use siltstone_device::{BlockAddress, LayerId};

use crate::{
    error::MapError,
    extent::{Extent, Key, Run, Target},
    map::Shared,
    memtable::Memtable,
    page::{Page, PageRef},
    page_store::PageStore,
    patch::{Patch, Version},
    search,
};

/// A range is looked up in pieces of this many blocks, which bounds the pages that are held.
const PIECE_BLOCKS: u64 = 2048;
/// Leaf pages that an attempt remembers, so that the extents of one page are found without going
/// down from the root for each.
const REMEMBERED_LEAVES: usize = 4;

/// What a lookup sees: the memtables and patches of one moment.
pub(crate) struct Snapshot {
    pub(crate) active: Arc<RwLock<Memtable>>,
    pub(crate) frozen: Option<Arc<RwLock<Memtable>>>,
    pub(crate) version: Arc<Version>,
}

/// One attempt at a lookup.
struct Attempt<'a> {
    store: &'a PageStore,
    chain: &'a [LayerId],
    version: &'a Version,
    active: RwLockReadGuard<'a, Memtable>,
    frozen: Option<RwLockReadGuard<'a, Memtable>>,
    /// Pages that were read for this lookup, whether or not the cache kept them.
    held: &'a [Arc<Page>],
    missing: &'a mut Vec<PageRef>,
    leaves: [Option<RememberedLeaf>; REMEMBERED_LEAVES],
    out: &'a mut Vec<Run>,
}

/// A leaf, and the range of keys for which it is the right one.
struct RememberedLeaf {
    page: Arc<Page>,
    from: Key,
    to: Key,
}

/// Where in the chain a search is: which layer, and which memtable or patch level of it.
#[derive(Clone, Copy)]
struct Position {
    layer: usize,
    source: usize,
}

/// What a source knows of a range: blocks `[.0.start, .0.end)` first, none before.
enum Found {
    Nothing,
    Extent(Extent),
    /// A page is missing; nothing is known before this address.
    Missing {
        until: u64,
    },
}

impl Shared {
    /// Fills `out` with what `[address, address + len_blocks)` holds.
    pub(crate) async fn lookup(
        &self,
        chain: &[LayerId],
        address: BlockAddress,
        len_blocks: u32,
        out: &mut Vec<Run>,
    ) -> Result<(), MapError> {
        self.counters.lookups.fetch_add(1, Ordering::Relaxed);
        out.clear();
        let end = address.0 + u64::from(len_blocks);
        let mut from = address.0;
        while from < end {
            let to = end.min(from + PIECE_BLOCKS);
            let snapshot = self.snapshot();
            let len_before = out.len();
            let mut missing = Vec::new();
            self.attempt(&snapshot, chain, (from, to), &[], &mut missing, out);
            if !missing.is_empty() {
                self.lookup_cold(snapshot, chain, (from, to), len_before, missing, out).await?;
            }
            from = to;
        }
        Ok(())
    }

    /// Reads missing pages and tries again until none is missing.
    async fn lookup_cold(
        &self,
        mut snapshot: Arc<Snapshot>,
        chain: &[LayerId],
        range: (u64, u64),
        len_before: usize,
        mut missing: Vec<PageRef>,
        out: &mut Vec<Run>,
    ) -> Result<(), MapError> {
        // What an attempt joined to the last run of the piece before must be undone as well.
        let mut held = Vec::new();
        while !missing.is_empty() {
            if let Err(error) = self.store.load(&missing, &mut held).await {
                // The segment may have been freed and written again since the snapshot.
                let newest = self.snapshot();
                if newest.version.number == snapshot.version.number {
                    return Err(error);
                }
                snapshot = newest;
            }
            missing.clear();
            rewind(out, len_before, range.0);
            self.attempt(&snapshot, chain, range, &held, &mut missing, out);
        }
        Ok(())
    }

    fn attempt(
        &self,
        snapshot: &Snapshot,
        chain: &[LayerId],
        (from, to): (u64, u64),
        held: &[Arc<Page>],
        missing: &mut Vec<PageRef>,
        out: &mut Vec<Run>,
    ) {
        let mut attempt = Attempt {
            store: &self.store,
            chain,
            version: &snapshot.version,
            active: snapshot.active.read(),
            frozen: snapshot.frozen.as_ref().map(|frozen| frozen.read()),
            held,
            missing,
            leaves: [const { None }; REMEMBERED_LEAVES],
            out,
        };
        attempt.resolve(Position { layer: 0, source: 0 }, from, to);
    }
}

/// Takes back all runs at and after `from`.
fn rewind(out: &mut Vec<Run>, len_before: usize, from: u64) {
    out.truncate(len_before);
    if let Some(last) = out.last_mut() {
        last.len_blocks = last.len_blocks.min((from - last.address.0) as u32);
    }
}

impl Attempt<'_> {
    /// Resolves blocks `[from, to)`, starting at one place of the chain. Goes deeper only for
    /// gaps before an extent that was found, so the depth is bounded by the range's length.
    fn resolve(&mut self, mut at: Position, mut from: u64, to: u64) {
        while from < to {
            let Some(&layer) = self.chain.get(at.layer) else {
                self.emit(from, to, Target::Hole);
                return;
            };
            match self.first_in(at, layer, from, to) {
                Found::Nothing => at = self.next_position(at),
                Found::Missing { until } => from = until,
                Found::Extent(extent) => {
                    if extent.address.0 > from {
                        self.resolve(self.next_position(at), from, extent.address.0);
                    }
                    self.emit(extent.address.0, extent.end_address(), extent.target);
                    from = extent.end_address();
                }
            }
        }
    }

    fn emit(&mut self, from: u64, to: u64, target: Target) {
        let piece = Extent {
            layer: LayerId(0),
            address: BlockAddress(from),
            len_blocks: (to - from) as u32,
            target,
        };
        if let Some(last) = self.out.last_mut() {
            let Run { address, len_blocks, target } = *last;
            if (Extent { layer: LayerId(0), address, len_blocks, target }).joins(&piece) {
                last.len_blocks += piece.len_blocks;
                return;
            }
        }
        self.out.push(Run { address: piece.address, len_blocks: piece.len_blocks, target });
    }

    /// The next older place: the active memtable, the frozen one, the patches of level 0, the
    /// other levels; then the same in the next layer.
    #[inline]
    fn next_position(&self, at: Position) -> Position {
        let sources = 2 + self.version.newest().len() + self.version.sorted().len();
        if at.source + 1 < sources {
            Position { source: at.source + 1, ..at }
        } else {
            Position { layer: at.layer + 1, source: 0 }
        }
    }

    #[inline]
    fn first_in(&mut self, at: Position, layer: LayerId, from: u64, to: u64) -> Found {
        let in_memory = |table: &Memtable| match table.first_in(layer, from, to) {
            Some((extent, _)) => Found::Extent(extent),
            None => Found::Nothing,
        };
        let version = self.version;
        match at.source {
            0 => in_memory(&self.active),
            1 => self.frozen.as_deref().map_or(Found::Nothing, in_memory),
            source => {
                let (start, end) = (Key::new(layer, from), Key::new(layer, to));
                let newest = version.newest();
                if let Some(patch) = newest.get(source - 2) {
                    return self.first_in_patch(patch, start, end);
                }
                let level = &version.sorted()[source - 2 - newest.len()];
                for patch in &level[level.partition_point(|patch| patch.last < start)..] {
                    if patch.first >= end {
                        break;
                    }
                    match self.first_in_patch(patch, start, end) {
                        Found::Nothing => {}
                        found => return found,
                    }
                }
                Found::Nothing
            }
        }
    }

    /// The first extent of a patch in `[start, end)`, two keys of one layer.
    fn first_in_patch(&mut self, patch: &Patch, start: Key, end: Key) -> Found {
        if !patch.overlaps(start, end) {
            return Found::Nothing;
        }
        let clip_from = start.max(patch.first);
        let clip_to = end.min(patch.end());
        // Nothing is known up to this key; it moves on from leaf to leaf.
        let mut key = clip_from;
        while key < clip_to {
            let slot = patch.id as usize % REMEMBERED_LEAVES;
            let remembered = self.leaves[slot].as_ref().is_some_and(|leaf| {
                leaf.page.reference().patch == patch.id && leaf.from <= key && key < leaf.to
            });
            if !remembered {
                match self.find_leaf(patch, key) {
                    Ok(leaf) => self.leaves[slot] = Some(leaf),
                    Err(to) if to.layer == start.layer => {
                        // Nothing was found before `key`, but it was not resolved either.
                        return Found::Missing { until: to.address.0.min(end.address.0) };
                    }
                    Err(_) => return Found::Missing { until: end.address.0 },
                }
            }
            let leaf = self.leaves[slot].as_ref().expect("filled above");
            let entries = leaf.page.leaf();
            let after = search::count_up_to(entries, key, leaf.from, leaf.to);
            let candidates = &entries[after.saturating_sub(1)..entries.len().min(after + 1)];
            let found = candidates.iter().find_map(|entry| entry.extent().clip(key, clip_to));
            if let Some(extent) = found {
                return Found::Extent(extent);
            }
            if after < entries.len() {
                break;
            }
            key = leaf.to;
        }
        Found::Nothing
    }

    /// The leaf that covers `key`; if a page is missing, notes it and returns where what it
    /// covers ends.
    fn find_leaf(&mut self, patch: &Patch, key: Key) -> Result<RememberedLeaf, Key> {
        let mut page_ref = patch.root();
        // The range of the page at hand; no entry that counts lies outside it.
        let mut from = patch.first;
        let mut to = patch.end();
        loop {
            let Some(page) = self.page(&page_ref) else {
                if !self.missing.contains(&page_ref) {
                    self.missing.push(page_ref);
                }
                return Err(to);
            };
            if page_ref.height == 0 {
                return Ok(RememberedLeaf { page, from, to });
            }
            let fences = page.fence();
            let index = search::count_up_to(fences, key, from, to).saturating_sub(1);
            from = from.max(fences[index].key().min(key));
            if let Some(next) = fences.get(index + 1) {
                to = to.min(next.key());
            }
            page_ref = page.child(index);
        }
    }

    #[inline]
    fn page(&self, page: &PageRef) -> Option<Arc<Page>> {
        if let Some(held) = self.held.iter().find(|held| held.reference() == page) {
            return Some(held.clone());
        }
        self.store.cache.get(page)
    }
}
