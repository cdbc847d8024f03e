//! Reading a damaged map: everything that can still be known, and which addresses cannot.
//!
//! A damaged page hides what it says of its range of keys, and with it what older patches say
//! there; what newer patches and memtables say still holds. A [`SalvageCursor`] therefore merges
//! as every cursor does, with one more kind of input: a `SalvageReader` stands in for patches and
//! turns a page that cannot be read into holes over the page's range, which it remembers. A piece
//! of the merge that is such a hole is unknown.
//!
//! Where nothing is damaged, the cursor reads ahead like any other; on an error it goes on page by
//! page until it is past the damage.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use siltstone_device::{BlockAddress, LayerId};

use crate::{
    cursor::{sorted_runs, start_merge},
    error::MapError,
    extent::{Extent, Key, MAX_BLOCKS, Target},
    lookup::Snapshot,
    map::{Map, Shared},
    merge::{Input, MemtableReader, Merge},
    page::PageRef,
    page_store::PageStore,
    patch::Patch,
};

/// What is found at the cursor's position.
#[derive(Clone, Debug)]
pub enum Salvaged {
    /// What the map says.
    Extent(Extent),
    /// Blocks of which the map cannot say anything.
    Unknown {
        /// The layer.
        layer: LayerId,
        /// The first block.
        address: BlockAddress,
        /// How many.
        len_blocks: u64,
        /// The damage that hides them.
        error: MapError,
    },
}

impl Salvaged {
    /// Takes `next` in if one item can stand for both.
    fn join(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::Extent(mine), Self::Extent(next)) if mine.joins(next) => {
                mine.len_blocks += next.len_blocks;
                true
            }
            (
                Self::Unknown { layer, address, len_blocks, .. },
                Self::Unknown { layer: next_layer, address: next, len_blocks: more, .. },
            ) if layer == next_layer && address.0 + *len_blocks == next.0 => {
                *len_blocks += more;
                true
            }
            _ => false,
        }
    }
}

/// A cursor over all extents of some layers that does not stop at damage. Unlike others it may be
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
    /// The last item, which the next may join.
    pending: Option<Salvaged>,
}

impl Map {
    /// A cursor over the extents of `layers`, holes included, that goes on behind damaged pages.
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
            pending: None,
        }
    }
}

impl SalvageCursor {
    /// The next item, in order of layer and address.
    pub async fn next(&mut self) -> Option<Salvaged> {
        loop {
            let Some(item) = self.next_piece().await else { return self.pending.take() };
            let joined = self.pending.as_mut().is_some_and(|pending| pending.join(&item));
            if !joined && let Some(before) = self.pending.replace(item) {
                return Some(before);
            }
        }
    }

    async fn next_piece(&mut self) -> Option<Salvaged> {
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
            // The newest input that has a piece is the one that counts, and is named first.
            let mut winner = None;
            let next = merge.next(|input, _| _ = winner.get_or_insert(input)).await;
            let extent = match (next, winner) {
                (Ok(Some(extent)), Some(winner)) => {
                    let damage = merge.damage(winner, extent.start()).cloned();
                    if damage.is_some() && self.refresh() {
                        continue;
                    }
                    self.position = extent.end();
                    if self.tolerant
                        && !self.thorough
                        && !merge_has_damage(&self.merge, self.position)
                    {
                        self.merge = None;
                        self.tolerant = false;
                    }
                    (extent, damage)
                }
                (Ok(_), _) => return None,
                (Err(_), _) => {
                    self.merge = None;
                    self.tolerant = !self.refresh() || self.thorough;
                    continue;
                }
            };
            let (extent, damage) = extent;
            let Some(&end) = self.layers.get(&extent.layer) else { continue };
            if extent.address.0 >= end {
                continue;
            }
            let extent = extent.slice(extent.address.0, end);
            return Some(match damage {
                None => Salvaged::Extent(extent),
                Some(error) => Salvaged::Unknown {
                    layer: extent.layer,
                    address: extent.address,
                    len_blocks: extent.len_blocks.into(),
                    error,
                },
            });
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
    let mut inputs = Vec::new();
    for table in [Some(&snapshot.active), snapshot.frozen.as_ref()].into_iter().flatten() {
        inputs.push(Input::Memtable(MemtableReader::new(table.clone(), from, to)));
    }
    for run in sorted_runs(&snapshot.version, from, to) {
        let reader = SalvageReader {
            store: shared.store.clone(),
            layers: layers.clone(),
            patches: run.into(),
            from,
            to,
            todo: Vec::new(),
            extents: Vec::new(),
            holes: None,
            damage: VecDeque::new(),
        };
        inputs.push(Input::Salvage(Box::new(reader)));
    }
    Merge::new(inputs, false)
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
}

/// The extents of patches (in key order, not overlapping) in a range of keys, read one page at a
/// time; holes where pages are damaged.
pub(crate) struct SalvageReader {
    store: Arc<PageStore>,
    layers: Arc<BTreeMap<LayerId, u64>>,
    patches: VecDeque<Arc<Patch>>,
    from: Key,
    to: Key,
    /// Pages of the patch being read, the next last.
    todo: Vec<Visit>,
    /// What the leaf being read has left, the next last.
    extents: Vec<Extent>,
    /// What is left of a damaged range.
    holes: Option<(Key, Key)>,
    damage: VecDeque<Damage>,
}

impl SalvageReader {
    pub(crate) async fn next(&mut self) -> Option<Extent> {
        loop {
            if let Some(extent) = self.extents.pop() {
                return Some(extent);
            }
            if let Some((from, to)) = self.holes.take()
                && let Some(hole) = self.next_hole(from, to)
            {
                self.holes = Some((hole.end(), to));
                return Some(hole);
            }
            let Some(visit) = self.todo.pop() else {
                let patch = self.patches.pop_front()?;
                let (from, to) = (self.from.max(patch.first), self.to.min(patch.end()));
                if from < to {
                    self.todo.push(Visit { page: patch.root(), from, to });
                }
                continue;
            };
            self.visit(visit).await;
        }
    }

    async fn visit(&mut self, Visit { page, from, to }: Visit) {
        let read = match self.store.read_from_medium(page).await {
            Ok(read) => read,
            Err(error) => {
                self.damage.push_back(Damage { from, to, error });
                self.holes = Some((from, to));
                return;
            }
        };
        if page.height == 0 {
            let extents = read.leaf().iter().filter_map(|entry| entry.extent().clip(from, to));
            self.extents.extend(extents);
            self.extents.reverse();
            return;
        }
        let fences = read.fence();
        for (index, fence) in fences.iter().enumerate().rev() {
            // The first child answers for what lies before it too.
            let first = if index == 0 { from } else { from.max(fence.key()) };
            let end = fences.get(index + 1).map_or(to, |next| to.min(next.key()));
            if first < end {
                self.todo.push(Visit { page: read.child(index), from: first, to: end });
            }
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
