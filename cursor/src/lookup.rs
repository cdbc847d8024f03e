//! Point and range lookups: the hot path of every read.
//!
//! An attempt walks the views of a chain, and in each layer memtables and patches from newest to
//! oldest, with what is in memory: the first that has a version which the view sees has the newest. Ranges that nothing newer covers go on to the next place. Where a page is
//! missing, the attempt notes it and leaves that range open; the caller reads all missing pages
//! together and tries again. When everything is in memory, the first attempt is the last, and it
//! allocates nothing beyond the result.

use std::sync::{Arc, atomic::Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use siltstone_device::{BlockAddress, LayerId};

use crate::{
    epoch::{Epoch, View},
    epoch_table::EpochTable,
    error::MapError,
    extent::{Extent, Key, Run, Target, VersionKey},
    map::Shared,
    memtable::Memtable,
    page::{Page, PageRef},
    page_store::PageStore,
    patch::{Patch, Version},
    search::{self, InLeaf},
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
    chain: &'a [View],
    version: &'a Version,
    active: RwLockReadGuard<'a, Memtable>,
    frozen: Option<RwLockReadGuard<'a, Memtable>>,
    /// Pages that were read for this lookup, whether or not the cache kept them.
    held: &'a [Arc<Page>],
    missing: &'a mut Vec<PageRef>,
    leaves: [Option<RememberedLeaf>; REMEMBERED_LEAVES],
    out: &'a mut Vec<Run>,
}

/// A leaf, and the range of positions for which it is the right one.
struct RememberedLeaf {
    page: Arc<Page>,
    from: VersionKey,
    to: VersionKey,
}

/// Where in the chain a search is: which view, and which epoch of a memtable, patch of level 0, or
/// other level.
#[derive(Clone, Copy)]
struct Position {
    view: usize,
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
        chain: &[View],
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
        chain: &[View],
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
        chain: &[View],
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
        attempt.resolve(Position { view: 0, source: 0 }, from, to);
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
            let Some(&view) = self.chain.get(at.view) else {
                self.emit(from, to, Target::Hole);
                return;
            };
            match self.first_in(at.source, view, from, to) {
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
        let run = Run { address: BlockAddress(from), len_blocks: (to - from) as u32, target };
        let extent = |Run { address, len_blocks, target }: Run| Extent {
            layer: LayerId(0),
            epoch: Epoch::FIRST,
            address,
            len_blocks,
            target,
        };
        match self.out.last_mut() {
            Some(last) if extent(*last).joins(&extent(run)) => last.len_blocks += run.len_blocks,
            _ => self.out.push(run),
        }
    }

    /// The next older place: the active memtable's epochs, those of the frozen one, the patches of
    /// level 0, the other levels; then the same for the next view.
    #[inline]
    fn next_position(&self, at: Position) -> Position {
        let frozen = self.frozen.as_ref().map_or(0, |frozen| frozen.tables().len());
        let sources = self.active.tables().len()
            + frozen
            + self.version.newest().len()
            + self.version.sorted().len();
        if at.source + 1 < sources {
            Position { source: at.source + 1, ..at }
        } else {
            Position { view: at.view + 1, source: 0 }
        }
    }

    /// The first extent of a source in blocks `[from, to)` of what a view sees.
    #[inline]
    fn first_in(&mut self, mut source: usize, view: View, from: u64, to: u64) -> Found {
        let View { layer, as_of } = view;
        let in_memory = |table: &EpochTable| {
            if table.epoch() > as_of {
                return Found::Nothing;
            }
            table
                .first_in(layer, from, to)
                .map_or(Found::Nothing, |(extent, _)| Found::Extent(extent))
        };
        for memtable in [Some(&*self.active), self.frozen.as_deref()].into_iter().flatten() {
            let tables = memtable.tables();
            if let Some(table) = tables.get(source) {
                return in_memory(table);
            }
            source -= tables.len();
        }
        let version = self.version;
        let (start, end) = (Key::new(layer, from), Key::new(layer, to));
        let newest = version.newest();
        if let Some(patch) = newest.get(source) {
            return self.first_in_patch(patch, start, end, as_of);
        }
        let Some(level) = version.sorted().get(source - newest.len()) else {
            return Found::Nothing;
        };
        for patch in &level[level.partition_point(|patch| patch.last < start)..] {
            if patch.first >= end {
                break;
            }
            match self.first_in_patch(patch, start, end, as_of) {
                Found::Nothing => {}
                found => return found,
            }
        }
        Found::Nothing
    }

    /// The first extent of a patch in `[start, end)`, two keys of one layer, that is seen as of an
    /// epoch.
    fn first_in_patch(&mut self, patch: &Patch, start: Key, end: Key, as_of: Epoch) -> Found {
        if !patch.overlaps(start, end) {
            return Found::Nothing;
        }
        let clip_to = end.min(patch.end());
        // Nothing is seen before this position; it moves on from leaf to leaf.
        let mut at = VersionKey::new(start.max(patch.first), as_of);
        while at.key < clip_to {
            let extent = match self.next_seen(patch, at, as_of) {
                Ok(InLeaf::Found(extent)) => extent,
                Ok(InLeaf::Among(oldest)) => match self.newest_seen(patch, &oldest, as_of) {
                    Ok(Some(newest)) => newest,
                    Ok(None) => {
                        at = VersionKey::new(oldest.end(), as_of);
                        continue;
                    }
                    Err(_) => {
                        let until = oldest.end_address().min(end.address.0);
                        return Found::Missing { until };
                    }
                },
                Ok(InLeaf::NotBefore(next)) => {
                    debug_assert!(next > at, "a search that does not move on");
                    at = next;
                    continue;
                }
                // Nothing was found before `at`, but it was not resolved either.
                Err(to) => {
                    let is_later = to.key.layer != start.layer;
                    let until = if is_later { u64::MAX } else { to.key.address.0 };
                    let until = until.max(at.key.address.0 + 1).min(end.address.0);
                    return Found::Missing { until };
                }
            };
            return extent.clip(at.key, clip_to).map_or(Found::Nothing, Found::Extent);
        }
        Found::Nothing
    }

    /// What is seen first at or after a position; if a page is missing, where what that covers
    /// ends.
    fn next_seen(
        &mut self,
        patch: &Patch,
        at: VersionKey,
        as_of: Epoch,
    ) -> Result<InLeaf, VersionKey> {
        let (leaf, sought) = self.leaf(patch, at, true)?;
        let found = leaf.look(sought, as_of);
        if sought == at {
            return Ok(found);
        }
        // Blocks before the position have versions in several leaves. If they cover it, this one
        // has what is seen.
        match found {
            InLeaf::Found(extent) if extent.end() > at.key => Ok(found),
            _ => Ok(self.leaf(patch, at, false)?.0.look(at, as_of)),
        }
    }

    /// The newest version of a run of blocks that is seen as of an epoch.
    fn newest_seen(
        &mut self,
        patch: &Patch,
        run: &Extent,
        as_of: Epoch,
    ) -> Result<Option<Extent>, VersionKey> {
        let mut at = VersionKey::new(run.start(), as_of);
        loop {
            match self.leaf(patch, at, false)?.0.look(at, as_of) {
                InLeaf::Found(extent) if extent.is_same_run(run) => return Ok(Some(extent)),
                // The next leaf begins with it.
                InLeaf::NotBefore(next) if next.key == run.start() && next > at => at = next,
                _ => return Ok(None),
            }
        }
    }

    /// The leaf in which a search for a position ends, and the position that it is to be asked for.
    /// That is another one if `among_versions` and blocks before the position, which may cover it,
    /// have versions in several leaves: then it is that of the version that is seen.
    fn leaf(
        &mut self,
        patch: &Patch,
        at: VersionKey,
        among_versions: bool,
    ) -> Result<(&RememberedLeaf, VersionKey), VersionKey> {
        let slot = patch.id as usize % REMEMBERED_LEAVES;
        let remembered = self.leaves[slot].as_ref().is_some_and(|leaf| {
            leaf.page.reference().patch == patch.id && leaf.from <= at && at < leaf.to
        });
        let mut sought = at;
        if !remembered {
            let leaf = self.find_leaf(patch, &mut sought, among_versions)?;
            self.leaves[slot] = Some(leaf);
        }
        Ok((self.leaves[slot].as_ref().expect("filled above"), sought))
    }

    /// Goes down from the root to a leaf; if a page is missing, notes it and returns where what it
    /// covers ends.
    fn find_leaf(
        &mut self,
        patch: &Patch,
        at: &mut VersionKey,
        among_versions: bool,
    ) -> Result<RememberedLeaf, VersionKey> {
        let mut page_ref = patch.root();
        // The range of the page at hand; no entry that counts lies outside it.
        let mut from = VersionKey::first(patch.first);
        let mut to = VersionKey::first(patch.end());
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
            let mut index = search::child(fences, *at, from, to);
            let first = fences[index].key();
            if among_versions
                && fences[index].continues()
                && first < at.key
                && first.layer == at.key.layer
            {
                *at = VersionKey::new(first, at.epoch());
                index = search::child(fences, *at, from, to);
            }
            from = from.max(fences[index].version().min(*at));
            if let Some(next) = fences.get(index + 1) {
                to = to.min(next.version());
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

impl RememberedLeaf {
    #[inline]
    fn look(&self, at: VersionKey, as_of: Epoch) -> InLeaf {
        search::look(&self.page.leaf(), at, as_of, self.from, self.to)
    }
}
