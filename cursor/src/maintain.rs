//! What the checkpointer does to the map: memtables become patches, patches are merged.
//!
//! Both are one kind of work: merge sorted inputs, leave out what nothing can read any more,
//! write the rest as patches, and exchange the version. Until that exchange nothing has changed;
//! an operation that fails is abandoned and can be tried again.
//!
//! What can be read is what [`Visibility`] says of each layer. Whoever answers that may know of
//! labels that are gone by now, and then more is kept than need be. But it must know every label
//! of an earlier epoch than that of the newest change that was published before the memtable was
//! frozen, or what the label sees is lost.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::RwLock;
use siltstone_device::{LayerId, runtime::yield_now};

use crate::{
    epoch::Visibility,
    error::MapError,
    extent::{Extent, Key, Target},
    lookup::Snapshot,
    map::{Map, Shared},
    memtable::Memtable,
    merge::{Input, MemtableReader, Merge},
    patch::{HeldLayer, Patch, Version},
    patch_writer::{PatchWriter, Written},
    policy::{self, Decision, Job, Packing},
    prefetch::PatchReader,
    sink::Sink,
    space::{Edit, Rewrite, SegmentSource},
};

/// Leaf pages that a merge reads ahead in each input.
pub(crate) const READ_AHEAD_PAGES: usize = 128;
/// A rewriting yields after so many stacks: some hundred microseconds of work.
const YIELD_STACKS: u32 = 256;

/// Held by the one thread that changes patches.
struct Maintenance<'a> {
    shared: &'a Shared,
}

impl<'a> Maintenance<'a> {
    fn begin(shared: &'a Shared) -> Self {
        let taken = shared.maintained.swap(true, Ordering::Acquire);
        assert!(!taken, "one thread at a time freezes, writes and merges");
        Self { shared }
    }
}

impl Drop for Maintenance<'_> {
    fn drop(&mut self) {
        self.shared.maintained.store(false, Ordering::Release);
    }
}

/// Where the outcome of a merge goes, and what may be left out of it.
struct Outcome<'a> {
    level: u8,
    version: &'a Version,
    layers: &'a (dyn Fn(LayerId) -> Visibility + Sync),
}

/// What a merge wrote, and how far it came: everything before `cut`, or everything.
struct Merged {
    written: Written,
    cut: Option<Key>,
}

impl Map {
    /// Makes the active memtable the frozen one, which stays visible, and begins a new one.
    /// False if the active memtable is empty.
    ///
    /// # Panics
    /// If there is a frozen memtable already: [`write_frozen`](Self::write_frozen) comes first.
    pub fn freeze(&self) -> bool {
        let _maintenance = Maintenance::begin(&self.shared);
        let mut current = self.shared.current.write();
        if current.active.read().len() == 0 {
            return false;
        }
        assert!(current.frozen.is_none(), "one memtable at a time is frozen");
        *current = Arc::new(Snapshot {
            active: Arc::default(),
            frozen: Some(current.active.clone()),
            version: current.version.clone(),
        });
        true
    }

    /// Whether there is a frozen memtable that waits to be written.
    #[must_use]
    pub fn has_frozen(&self) -> bool {
        self.shared.current.read().frozen.is_some()
    }

    /// Writes the frozen memtable as patches, which take its place. Without one, does nothing.
    ///
    /// # Errors
    /// [`MapError::NoSpace`], or a device failure: the frozen memtable is then still there.
    pub async fn write_frozen(
        &self,
        source: &mut (dyn SegmentSource + Send),
        layers: &(dyn Fn(LayerId) -> Visibility + Sync),
    ) -> Result<Edit, MapError> {
        let _maintenance = Maintenance::begin(&self.shared);
        let snapshot = self.shared.snapshot();
        let Some(frozen) = &snapshot.frozen else { return Ok(Edit::default()) };
        let mut edit = Edit::default();
        let merge = merge_of_memtable(frozen);
        let rewrite = Rewrite { source, layers, max_pages: usize::MAX, relocator: None };
        let version = &snapshot.version;
        let merged = self.shared.rewrite(merge, false, 0, version, rewrite, &mut edit).await?;
        let outputs = merged.written.patches.iter().cloned().map(Arc::new);
        let patches = snapshot.version.patches().cloned().chain(outputs);
        let version = Version::new(snapshot.version.number + 1, patches);
        Ok(self.shared.install(&snapshot.version, version, Some(merged.written), true, edit))
    }

    /// Does one bounded piece of the merging that the policy wants; `None` if it wants none.
    ///
    /// # Errors
    /// [`MapError::NoSpace`], a device failure, or a damaged page: nothing has changed then. After
    /// a damaged page ([`MapError::is_damage`]) the next step leaves that patch alone and does
    /// something else.
    pub async fn merge_step(&self, rewrite: Rewrite<'_>) -> Result<Option<Edit>, MapError> {
        let layers = rewrite.layers;
        let has_garbage = |held: &HeldLayer| held.has_garbage(&layers(held.layer));
        let limits = &self.shared.limits;
        let decide = |version: &Version, damaged: &BTreeSet<u64>| {
            policy::decide(version, limits, &has_garbage, damaged)
        };
        self.step(rewrite, &decide).await
    }

    /// Like [`merge_step`](Self::merge_step), but goes on until all patches are in one level,
    /// where nothing superseded is left. For when space is wanted back.
    ///
    /// # Errors
    /// As `merge_step`.
    pub async fn compact_step(&self, rewrite: Rewrite<'_>) -> Result<Option<Edit>, MapError> {
        let layers = rewrite.layers;
        let has_garbage = |held: &HeldLayer| held.has_garbage(&layers(held.layer));
        let limits = &self.shared.limits;
        let decide = |version: &Version, damaged: &BTreeSet<u64>| {
            policy::decide_compaction(version, limits, damaged)
                .or_else(|| policy::decide(version, limits, &has_garbage, damaged))
        };
        self.step(rewrite, &decide).await
    }

    /// The number that the next patch gets.
    #[must_use]
    pub fn next_patch(&self) -> u64 {
        self.shared.append.lock().next_patch
    }

    /// Rewrites patches that keep mostly dead segments in use, one bounded piece at a time; `None`
    /// if segments are packed as well as `packing` asks for. Only patches with numbers below
    /// `made_before` are moved: with one [`next_patch`](Self::next_patch) for a sequence of
    /// steps, it ends. To be called when no merge is due.
    ///
    /// # Errors
    /// As `merge_step`.
    pub async fn relocate_step(
        &self,
        rewrite: Rewrite<'_>,
        packing: Packing,
        made_before: u64,
    ) -> Result<Option<Edit>, MapError> {
        let open = self.shared.append.lock().tail.segment;
        let segment_pages = self.shared.store.geometry.pages_per_segment();
        let decide = |version: &Version, damaged: &BTreeSet<u64>| {
            policy::decide_relocation(version, packing, open, segment_pages, made_before, damaged)
        };
        self.step(rewrite, &decide).await
    }

    /// Does what `decide` decides, who is told of damaged patches.
    pub(crate) async fn step(
        &self,
        mut rewrite: Rewrite<'_>,
        decide: &(dyn Fn(&Version, &BTreeSet<u64>) -> Option<Decision> + Sync),
    ) -> Result<Option<Edit>, MapError> {
        let _maintenance = Maintenance::begin(&self.shared);
        let snapshot = self.shared.snapshot();
        let old = &snapshot.version;
        let Some(decision) = decide(old, &self.shared.damaged()) else { return Ok(None) };
        let mut edit = Edit::default();
        let job = match decision {
            Decision::Move(patch) => {
                self.shared.counters.moves.fetch_add(1, Ordering::Relaxed);
                let version = old.with_moved(&patch);
                return Ok(Some(self.shared.install(old, version, None, false, edit)));
            }
            Decision::Merge(job) => job,
        };
        self.shared.counters.merges.fetch_add(1, Ordering::Relaxed);
        let merge = merge_of_job(&self.shared, &job);
        let level = job.output_level;
        if job.gathers() {
            // In parts, each would begin with what the last one wrote.
            rewrite.max_pages = usize::MAX;
        }
        let merged = self.shared.rewrite(merge, true, level, old, rewrite, &mut edit).await;
        let merged = merged.inspect_err(|error| self.shared.note_damage(error))?;
        let version = policy::apply(old, &job, merged.cut, merged.written.patches.clone());
        Ok(Some(self.shared.install(old, version, Some(merged.written), false, edit)))
    }
}

fn merge_of_memtable(frozen: &Arc<RwLock<Memtable>>) -> Merge {
    let readers = MemtableReader::of(frozen, Key::MIN, Key::MAX);
    Merge::new(readers.into_iter().map(Input::Memtable))
}

/// Each source is an input of its own, since they may overlap; the targets together are the last.
fn merge_of_job(shared: &Shared, job: &Job) -> Merge {
    let reader = |patches: &[Arc<Patch>]| {
        let (store, patches) = (shared.store.clone(), patches.iter().cloned());
        let reader = PatchReader::new(store, patches, Key::MIN, Key::MAX, READ_AHEAD_PAGES);
        Input::Patches(Box::new(reader))
    };
    let sources = job.sources.iter().map(|patch| reader(std::slice::from_ref(patch)));
    Merge::new(sources.chain([reader(&job.targets)]))
}

impl Shared {
    /// Patches of which a page was found damaged, or could not be read, when they were to be
    /// rewritten: until the map is opened again, they stay as they are.
    pub(crate) fn damaged(&self) -> BTreeSet<u64> {
        self.damaged.lock().clone()
    }

    pub(crate) fn note_damage(&self, error: &MapError) {
        if let MapError::Page { patch, .. } | MapError::Read { patch, .. } = error {
            self.damaged.lock().insert(*patch);
        }
    }

    /// Merges, filters and writes. `counted` says whether the inputs are patches, whose entries
    /// count as references until they are consumed.
    async fn rewrite(
        &self,
        mut merge: Merge,
        counted: bool,
        level: u8,
        version: &Version,
        rewrite: Rewrite<'_>,
        edit: &mut Edit,
    ) -> Result<Merged, MapError> {
        let Rewrite { source, layers, max_pages, relocator } = rewrite;
        let at = self.append.lock().clone();
        let mut writer = PatchWriter::new(&self.store, source, at, level, self.limits.patch_pages);
        let outcome = Outcome { level, version, layers };
        let sink = Sink::new(&mut writer, edit, relocator);
        match write_merged(&mut merge, counted, &outcome, max_pages as u64, sink).await {
            Ok(cut) => {
                let mut written = writer.finish();
                for held in written.patches.iter_mut().flat_map(|patch| &mut patch.layers) {
                    let visibility = layers(held.layer);
                    held.labels = visibility.labels_in(held.older_from, held.older_to) as u32;
                }
                Ok(Merged { written, cut })
            }
            Err(error) => {
                *self.append.lock() = writer.abandon().await;
                Err(error)
            }
        }
    }

    /// Exchanges the version that readers see, and completes the edit.
    fn install(
        &self,
        old: &Version,
        new: Version,
        written: Option<Written>,
        frozen_is_written: bool,
        mut edit: Edit,
    ) -> Edit {
        for (version, sign) in [(old, -1), (&new, 1)] {
            for patch in version.patches() {
                edit.count_pages(&patch.pages, sign);
                edit.entries += sign * patch.entries as i64;
            }
        }
        if let Some(written) = written {
            let mut append = self.append.lock();
            edit.move_open(append.tail.segment, written.at.tail.segment);
            edit.pages_written = written.pages;
            self.counters.pages_written.fetch_add(written.pages, Ordering::Relaxed);
            *append = written.at;
        }
        let mut current = self.current.write();
        *current = Arc::new(Snapshot {
            active: current.active.clone(),
            frozen: if frozen_is_written { None } else { current.frozen.clone() },
            version: Arc::new(new),
        });
        edit.settle()
    }
}

/// Writes what `merge` yields and `outcome` keeps, until about `max_pages` are read or written or
/// the relocator has moved enough; returns where it stopped, if before the end.
async fn write_merged(
    merge: &mut Merge,
    counted: bool,
    outcome: &Outcome<'_>,
    max_pages: u64,
    mut sink: Sink<'_, '_, '_>,
) -> Result<Option<Key>, MapError> {
    let mut of_layer: Option<(LayerId, Visibility)> = None;
    let mut stacks = 0;
    let cut = loop {
        stacks += 1;
        if stacks % YIELD_STACKS == 0 {
            yield_now().await;
        }
        let edit = &mut *sink.edit;
        let consumed = |_, piece: &Extent| {
            if counted {
                edit.count_blocks(piece, -1);
            }
        };
        if !merge.next(consumed).await? {
            break None;
        }
        let stack = merge.stack();
        let Extent { layer, .. } = stack[0];
        let end = stack[0].end();
        let visibility = match &of_layer {
            Some((known, visibility)) if *known == layer => visibility,
            _ => &of_layer.insert((layer, (outcome.layers)(layer))).1,
        };
        outcome.retain_needed(stack, visibility);
        sink.push(stack).await?;
        let is_bounded = max_pages < u64::MAX;
        let pages = merge.pages_consumed().max(sink.writer.pages_written());
        if pages >= max_pages.max(1) || is_bounded && sink.has_enough() {
            break Some(end);
        }
    };
    sink.finish().await?;
    Ok(cut)
}

impl Outcome<'_> {
    /// Leaves of a stack what somebody can miss.
    fn retain_needed(&self, stack: &mut Vec<Extent>, visibility: &Visibility) {
        visibility.retain_visible(stack);
        if let Some(oldest) = stack.last()
            && oldest.target == Target::Hole
            && !visibility.has_parent()
            && !self.lies_over_older(oldest)
        {
            // A hole over nothing says nothing.
            stack.pop();
        }
    }

    /// Whether patches that are not part of the merge may have older versions of an extent.
    fn lies_over_older(&self, extent: &Extent) -> bool {
        let (start, end) = (extent.start(), extent.end());
        let from_memtable = self.level == 0;
        self.version.overlaps_below(usize::from(self.level), start, end)
            || from_memtable && self.version.newest().iter().any(|patch| patch.overlaps(start, end))
    }
}
