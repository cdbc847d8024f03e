//! Reading a damaged map: everything that can still be known, and which addresses cannot.
//!
//! A damaged page hides what it says of its range of keys, and with it what older patches say
//! there; what newer patches and memtables say still holds. A [`SalvageCursor`] therefore merges
//! as every cursor does, with one more kind of input: a `SalvageReader` stands in for patches and
//! turns a page that cannot be read into holes over the page's range, which it remembers. Where such
//! a hole comes up among the versions of a piece of the merge, it and what is older is unknown. Where
//! versions of the same blocks fill several pages and one of these is damaged, none of them is
//! believed.
//!
//! Where nothing is damaged, the cursor reads ahead like any other; on an error it goes on page by
//! page until it is past the damage.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use siltstone_device::{BlockAddress, LayerId};

use crate::{
    cursor::{memtable_inputs, sorted_runs, start_merge},
    epoch::Epoch,
    error::{MapError, PageError},
    extent::{Extent, Key, MAX_BLOCKS, Target},
    leaf::LeafEntry,
    lookup::Snapshot,
    map::{Map, Shared},
    merge::{Input, Merge},
    page::PageRef,
    page_store::PageStore,
    patch::Patch,
};

/// What is found at the cursor's position.
#[derive(Clone, Debug)]
pub enum Salvaged {
    /// What the map says. Versions of the same blocks follow one another, newest first.
    Extent(Extent),
    /// Blocks of which the map cannot say what they held up to some epoch; what they held later
    /// was told before.
    Unknown {
        /// The layer.
        layer: LayerId,
        /// The first block.
        address: BlockAddress,
        /// How many.
        len_blocks: u64,
        /// As of this epoch, and all earlier ones, the map cannot say.
        as_of: Epoch,
        /// The damage that hides them.
        error: MapError,
    },
}

impl Salvaged {
    /// Takes `next` in if one item can stand for both.
    fn joins(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Extent(mine), Self::Extent(next)) => mine.joins(next),
            (
                Self::Unknown { layer, address, len_blocks, as_of, .. },
                Self::Unknown { layer: next_layer, address: next, as_of: next_as_of, .. },
            ) => (layer, as_of, address.0 + *len_blocks) == (next_layer, next_as_of, next.0),
            _ => false,
        }
    }

    fn lengthen(&mut self, more: &Self) {
        match (self, more) {
            (Self::Extent(mine), Self::Extent(more)) => mine.len_blocks += more.len_blocks,
            (Self::Unknown { len_blocks, .. }, Self::Unknown { len_blocks: more, .. }) => {
                *len_blocks += more;
            }
            _ => unreachable!("only what joins is joined"),
        }
    }
}

/// A cursor over all versions of some layers that does not stop at damage. Unlike others it may be
/// used while patches are merged: what a page that has been recycled held is looked for again.
pub struct SalvageCursor {
    shared: Arc<Shared>,
    /// The layers that count, and how many blocks each has.
    layers: Arc<BTreeMap<LayerId, u64>>,
    position: Key,
    to: Key,
    budget_bytes: usize,
    snapshot: Arc<Snapshot>,
    merge: Option<Merge>,
    /// The merge passes over damage, page by page.
    tolerant: bool,
    /// Every page is read from the medium, whether or not it is cached.
    thorough: bool,
    /// The last items, of the same blocks, which the next may join.
    pending: Vec<Salvaged>,
    /// What is to be returned next.
    ready: VecDeque<Salvaged>,
}

impl Map {
    /// A cursor over all versions of `layers`, holes included, that goes on behind damaged pages.
    /// The number is how many blocks a layer has: what lies behind is left out. With `thorough`,
    /// no page is believed because it is cached.
    #[must_use]
    pub fn salvage_cursor(
        &self,
        layers: BTreeMap<LayerId, u64>,
        memory_budget_bytes: usize,
        thorough: bool,
    ) -> SalvageCursor {
        let from = layers.keys().next().map_or(Key::MAX, |&layer| Key::new(layer, 0));
        let to = layers.keys().next_back().map_or(Key::MAX, |&layer| Key::new(layer, MAX_BLOCKS));
        SalvageCursor {
            snapshot: self.shared.snapshot(),
            shared: self.shared.clone(),
            layers: Arc::new(layers),
            position: from,
            to,
            budget_bytes: memory_budget_bytes,
            merge: None,
            tolerant: thorough,
            thorough,
            pending: Vec::new(),
            ready: VecDeque::new(),
        }
    }
}

impl SalvageCursor {
    /// The next item, in order of layer and address.
    pub async fn next(&mut self) -> Option<Salvaged> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            let Some(items) = self.next_piece().await else {
                self.ready.extend(self.pending.drain(..));
                return self.ready.pop_front();
            };
            let joins = self.pending.len() == items.len()
                && self.pending.iter().zip(&items).all(|(pending, next)| pending.joins(next));
            if joins {
                for (pending, next) in self.pending.iter_mut().zip(&items) {
                    pending.lengthen(next);
                }
            } else {
                self.ready.extend(std::mem::replace(&mut self.pending, items));
            }
        }
    }

    /// What is known of the next blocks, newest first.
    async fn next_piece(&mut self) -> Option<Vec<Salvaged>> {
        loop {
            let merge = match &mut self.merge {
                Some(merge) => merge,
                none => none.insert(if self.tolerant {
                    tolerant_merge(
                        &self.shared,
                        &self.snapshot,
                        &self.layers,
                        self.position,
                        self.to,
                    )
                } else {
                    let range = (self.position, self.to);
                    start_merge(&self.shared, &self.snapshot, None, range, self.budget_bytes)
                }),
            };
            let mut pieces: Vec<(usize, Extent)> = Vec::new();
            match merge.next(|input, piece| pieces.push((input, *piece))).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(_) => {
                    self.merge = None;
                    self.tolerant = !self.refresh() || self.thorough;
                    continue;
                }
            }
            let (_, Extent { layer, .. }) = pieces[0];
            let (start, end) = (pieces[0].1.start(), pieces[0].1.end());
            // The newest input that is damaged here hides everything older, its own versions too.
            let damage = pieces.iter().enumerate().find_map(|(at, &(input, _))| {
                merge.damage(input, start).map(|error| (at, error.clone()))
            });
            if damage.is_some() && self.refresh() {
                continue;
            }
            self.position = end;
            if self.tolerant && !self.thorough && !merge_has_damage(&self.merge, self.position) {
                self.merge = None;
                self.tolerant = false;
            }
            let Some(&blocks) = self.layers.get(&layer) else { continue };
            if start.address.0 < blocks {
                return Some(known(&pieces, damage, blocks));
            }
        }
    }

    /// Goes over to the newest patches; false if the cursor uses them already. A page of patches
    /// that were current after it was read had not been recycled when it was read.
    fn refresh(&mut self) -> bool {
        let newest = self.shared.snapshot();
        if newest.version.number == self.snapshot.version.number {
            return false;
        }
        self.snapshot = newest;
        self.merge = None;
        true
    }
}

/// What pieces of a merge, newest first, say of blocks below `end`: those before the damage, of each
/// epoch the newest; and what the damage hides.
fn known(pieces: &[(usize, Extent)], damage: Option<(usize, MapError)>, end: u64) -> Vec<Salvaged> {
    let (_, first) = pieces[0];
    let count = damage.as_ref().map_or(pieces.len(), |(count, _)| *count);
    let mut items = Vec::new();
    // The newest epoch that is not told yet.
    let mut below = Some(Epoch::MAX);
    for (_, piece) in &pieces[..count] {
        if below.is_some_and(|below| piece.epoch <= below) {
            items.push(Salvaged::Extent(piece.slice(first.address.0, end)));
            below = piece.epoch.0.checked_sub(1).map(Epoch);
        }
    }
    if let (Some((_, error)), Some(as_of)) = (damage, below) {
        let Extent { layer, address, len_blocks, .. } = first.slice(first.address.0, end);
        items.push(Salvaged::Unknown {
            layer,
            address,
            len_blocks: len_blocks.into(),
            as_of,
            error,
        });
    }
    items
}

fn merge_has_damage(merge: &Option<Merge>, from: Key) -> bool {
    merge.as_ref().is_some_and(|merge| merge.has_damage(from))
}

/// A merge of everything from a key on that passes over damaged pages.
fn tolerant_merge(
    shared: &Shared,
    snapshot: &Snapshot,
    layers: &Arc<BTreeMap<LayerId, u64>>,
    from: Key,
    to: Key,
) -> Merge {
    let mut inputs = memtable_inputs(snapshot, from, to);
    for run in sorted_runs(&snapshot.version, from, to) {
        let reader = SalvageReader {
            store: shared.store.clone(),
            layers: layers.clone(),
            patches: run.into(),
            from,
            to,
            clip: (from, to),
            todo: Vec::new(),
            extents: Vec::new(),
            last: None,
            is_broken: false,
            holes: None,
            damage: VecDeque::new(),
        };
        inputs.push(Input::Salvage(Box::new(reader)));
    }
    Merge::new(inputs.into_iter())
}

/// Keys of which nothing is known.
struct Damage {
    from: Key,
    to: Key,
    error: MapError,
}

/// A page to read, and the keys that it answers for.
struct Visit {
    page: PageRef,
    from: Key,
    to: Key,
    /// The page after it begins with an older version of what this one ends with: of blocks that
    /// begin at `to`.
    goes_on: bool,
}

/// The extents of patches (in key order, not overlapping) in a range of keys, read one page at a
/// time; holes where pages are damaged.
pub(crate) struct SalvageReader {
    store: Arc<PageStore>,
    layers: Arc<BTreeMap<LayerId, u64>>,
    patches: VecDeque<Arc<Patch>>,
    from: Key,
    to: Key,
    /// The range of the patch being read.
    clip: (Key, Key),
    /// Pages of it, the next last.
    todo: Vec<Visit>,
    /// What the leaf being read has left, the next last.
    extents: Vec<Extent>,
    /// The last entry of the last leaf.
    last: Option<LeafEntry>,
    /// The last page of this patch was damaged.
    is_broken: bool,
    /// What is left of a damaged range.
    holes: Option<(Key, Key)>,
    damage: VecDeque<Damage>,
}

impl SalvageReader {
    pub(crate) async fn next(&mut self) -> Option<Extent> {
        loop {
            if let Some((from, to)) = self.holes.take()
                && let Some(hole) = self.next_hole(from, to)
            {
                self.holes = Some((hole.end(), to));
                return Some(hole);
            }
            if let Some(extent) = self.extents.pop() {
                return Some(extent);
            }
            let Some(visit) = self.todo.pop() else {
                let patch = self.patches.pop_front()?;
                let (from, to) = (self.from.max(patch.first), self.to.min(patch.end()));
                self.clip = (from, to);
                self.is_broken = false;
                self.last = None;
                if from < to {
                    self.todo.push(Visit { page: patch.root(), from, to, goes_on: false });
                }
                continue;
            };
            self.visit(visit).await;
        }
    }

    async fn visit(&mut self, visit: Visit) {
        let read = match self.store.read_from_medium(visit.page).await {
            Ok(read) => read,
            Err(error) => {
                self.note_damage(&visit, error);
                return;
            }
        };
        if visit.page.height == 0 {
            let entries: Vec<LeafEntry> = read.leaf().iter().collect();
            self.visit_leaf(&entries, &visit);
            return;
        }
        let Visit { from, to, goes_on, .. } = visit;
        let fences = read.fence();
        // Of a page that goes on with versions, those before it are needed as well.
        let mut next = Some((to, goes_on, goes_on));
        for (index, fence) in fences.iter().enumerate().rev() {
            let (end, goes_on, is_needed) = next.take().expect("set by the round before");
            // The first child answers for what lies before it too.
            let first = if index == 0 { from } else { from.max(fence.key().min(to)) };
            let is_needed = first < end || is_needed;
            if is_needed {
                self.todo.push(Visit { page: read.child(index), from: first, to: end, goes_on });
            }
            next = Some((first, fence.continues(), is_needed && fence.continues()));
        }
    }

    /// Takes over what a leaf says. Versions of blocks whose newer ones are damaged do not count.
    fn visit_leaf(&mut self, entries: &[LeafEntry], visit: &Visit) {
        let (first, last) = (entries[0], entries[entries.len() - 1]);
        // Runs of blocks of which this page has a part of the versions only.
        let begun = first.is_older().then(|| first.key());
        let unfinished = visit.goes_on.then(|| last.key());
        let is_broken = std::mem::take(&mut self.is_broken);
        let mut entries = entries;
        if first.is_older() {
            let before = self.last.as_ref().filter(|_| !is_broken);
            if !before.is_some_and(|before| first.follows(before)) {
                self.disbelieve(first.extent(), visit.page);
                let skipped = entries.iter().take_while(|entry| entry.key() == first.key()).count();
                entries = &entries[skipped..];
            }
        }
        let extents = entries.iter().filter_map(|entry| {
            let key = Some(entry.key());
            let is_shared = key == begun || key == unfinished;
            let (from, to) = if is_shared { self.clip } else { (visit.from, visit.to) };
            if from < to { entry.extent().clip(from, to) } else { None }
        });
        self.extents.extend(extents);
        self.extents.reverse();
        self.last = Some(last);
    }

    /// Makes a hole of blocks whose newer versions could not be read.
    fn disbelieve(&mut self, run: Extent, page: PageRef) {
        let (from, to) = (run.start().max(self.clip.0), run.end().min(self.clip.1));
        if from >= to {
            return;
        }
        let PageRef { patch, address, .. } = page;
        let known = self.damage.back().map(|damage| damage.error.clone());
        let error =
            known.unwrap_or(MapError::Page { patch, address, source: PageError::OutsideFence });
        self.damage.push_back(Damage { from, to, error });
        // Still newer versions, which were read, stand for the blocks already.
        let is_told = self.last.is_some_and(|last| last.key() == run.start());
        self.holes = (!is_told).then_some((from, to));
    }

    /// Makes holes of what a damaged page answers for.
    fn note_damage(&mut self, visit: &Visit, error: MapError) {
        let &Visit { mut from, to, .. } = visit;
        self.is_broken = true;
        let last = self.last.map(|last| last.extent());
        if let Some(last) = last.filter(|last| last.start() <= from && from < last.end()) {
            // Newer versions of these blocks were read before; they are not believed any more.
            let (from_last, to_last) = (last.start().max(self.clip.0), last.end().min(self.clip.1));
            let error = error.clone();
            self.damage.push_back(Damage { from: from_last, to: to_last, error });
            from = last.end();
        }
        if from < to {
            self.damage.push_back(Damage { from, to, error });
            self.holes = Some((from, to));
        }
    }

    /// The first extent of `[from, to)` in a layer that counts.
    fn next_hole(&self, from: Key, to: Key) -> Option<Extent> {
        let mut layers = self.layers.range(from.layer..=to.layer);
        layers.find_map(|(&layer, &blocks)| {
            let start = if layer == from.layer { from.address.0 } else { 0 };
            let end = if layer == to.layer { to.address.0.min(blocks) } else { blocks };
            let len_blocks = end.checked_sub(start).filter(|len| *len > 0)?;
            Some(Extent {
                layer,
                epoch: Epoch::FIRST,
                address: BlockAddress(start),
                len_blocks: u32::try_from(len_blocks).unwrap_or(u32::MAX),
                target: Target::Hole,
            })
        })
    }

    /// The damage that hides a key, which lies at or behind the last one that was asked for.
    pub(crate) fn damage(&mut self, key: Key) -> Option<&MapError> {
        while self.damage.front().is_some_and(|damage| damage.to <= key) {
            self.damage.pop_front();
        }
        self.damage.front().filter(|damage| damage.from <= key).map(|damage| &damage.error)
    }

    /// Whether damage was met at or behind a key.
    pub(crate) fn has_damage(&self, key: Key) -> bool {
        self.damage.iter().any(|damage| damage.to > key)
    }
}
