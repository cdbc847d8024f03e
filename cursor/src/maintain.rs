//! What the checkpointer does to the map: memtables become patches, patches are merged.
//!
//! Both are one kind of work: merge sorted inputs, leave out what nothing can read any more,
//! write the rest as patches, and exchange the version. Until that exchange nothing has changed;
//! an operation that fails is abandoned and can be tried again.

use std::sync::{Arc, atomic::Ordering};

use parking_lot::RwLock;
use siltstone_device::LayerId;

use crate::{
    error::MapError,
    extent::{Coalescer, Extent, Key, Target},
    lookup::Snapshot,
    map::{Map, Shared},
    memtable::Memtable,
    merge::{Input, MemtableReader, Merge},
    patch::{Patch, Version},
    patch_writer::{PatchWriter, Written},
    policy::{self, Decision, Job, Packing},
    prefetch::PatchReader,
    space::{Edit, LayerState, Relocator, Rewrite, SegmentSource},
};

/// Leaf pages that a merge reads ahead in each input.
pub(crate) const READ_AHEAD_PAGES: usize = 128;

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
    layers: &'a (dyn Fn(LayerId) -> LayerState + Sync),
}

/// Moved blocks that a relocator is asked for at a time.
const MAX_MOVING_BLOCKS: u64 = 1024;
/// Extents that wait for a relocator.
const MAX_PENDING: usize = 4096;

/// Where what a merge keeps goes: to the relocator, if there is one, then joined, counted, written.
struct Sink<'a, 'b, 'c> {
    writer: &'a mut PatchWriter<'b>,
    edit: &'a mut Edit,
    relocator: Option<&'c mut (dyn Relocator + 'c)>,
    pending: Vec<Extent>,
    moving_blocks: u64,
    joined: Coalescer,
}

impl Sink<'_, '_, '_> {
    async fn push(&mut self, extent: Extent) -> Result<(), MapError> {
        let Some(relocator) = &mut self.relocator else { return self.write(extent).await };
        if let Target::Stored(place) = extent.target
            && relocator.moves(place.segment())
        {
            self.moving_blocks += u64::from(extent.len_blocks);
        }
        self.pending.push(extent);
        if self.moving_blocks >= MAX_MOVING_BLOCKS || self.pending.len() >= MAX_PENDING {
            self.relocate().await?;
        }
        Ok(())
    }

    async fn relocate(&mut self) -> Result<(), MapError> {
        let mut extents = std::mem::take(&mut self.pending);
        if let Some(relocator) = &mut self.relocator
            && self.moving_blocks > 0
        {
            relocator.relocate(&mut extents).await?;
            self.moving_blocks = 0;
        }
        for extent in extents.drain(..) {
            self.write(extent).await?;
        }
        self.pending = extents;
        Ok(())
    }

    async fn write(&mut self, extent: Extent) -> Result<(), MapError> {
        if let Some(extent) = self.joined.push(extent) {
            self.edit.count_blocks(&extent, 1);
            self.writer.push(extent).await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(), MapError> {
        self.relocate().await?;
        if let Some(extent) = self.joined.finish() {
            self.edit.count_blocks(&extent, 1);
            self.writer.push(extent).await?;
        }
        self.writer.complete().await?;
        match self.relocator {
            Some(relocator) => relocator.complete().await,
            None => Ok(()),
        }
    }
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
        layers: &(dyn Fn(LayerId) -> LayerState + Sync),
    ) -> Result<Edit, MapError> {
        let _maintenance = Maintenance::begin(&self.shared);
        let snapshot = self.shared.snapshot();
        let Some(frozen) = &snapshot.frozen else { return Ok(Edit::default()) };
        let mut edit = Edit::default();
        let merge = merge_of_memtable(frozen);
        let rewrite = Rewrite { source, layers, max_pages: usize::MAX, relocator: None };
        let version = &snapshot.version;
        let merged = self.shared.rewrite(merge, &[false], 0, version, rewrite, &mut edit).await?;
        let outputs = merged.written.patches.iter().cloned().map(Arc::new);
        let patches = snapshot.version.patches().cloned().chain(outputs);
        let version = Version::new(snapshot.version.number + 1, patches);
        Ok(self.shared.install(&snapshot.version, version, Some(merged.written), true, edit))
    }

    /// Does one bounded piece of the merging that the policy wants; `None` if it wants none.
    ///
    /// # Errors
    /// [`MapError::NoSpace`], a device failure, or a damaged page: nothing has changed then.
    pub async fn merge_step(&self, rewrite: Rewrite<'_>) -> Result<Option<Edit>, MapError> {
        let layers = rewrite.layers;
        let is_dead = |layer| layers(layer) == LayerState::Dead;
        let decide = |version: &Version| policy::decide(version, &self.shared.limits, &is_dead);
        self.step(rewrite, &decide).await
    }

    /// Like [`merge_step`](Self::merge_step), but goes on until all patches are in one level,
    /// where nothing superseded is left. For when space is wanted back.
    ///
    /// # Errors
    /// As `merge_step`.
    pub async fn compact_step(&self, rewrite: Rewrite<'_>) -> Result<Option<Edit>, MapError> {
        let layers = rewrite.layers;
        let is_dead = |layer| layers(layer) == LayerState::Dead;
        let decide = |version: &Version| {
            let limits = &self.shared.limits;
            policy::decide_compaction(version, limits)
                .or_else(|| policy::decide(version, limits, &is_dead))
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
        let decide = |version: &Version| {
            policy::decide_relocation(version, packing, open, segment_pages, made_before)
        };
        self.step(rewrite, &decide).await
    }

    /// Does what `decide` decides.
    pub(crate) async fn step(
        &self,
        rewrite: Rewrite<'_>,
        decide: &(dyn Fn(&Version) -> Option<Decision> + Sync),
    ) -> Result<Option<Edit>, MapError> {
        let _maintenance = Maintenance::begin(&self.shared);
        let snapshot = self.shared.snapshot();
        let old = &snapshot.version;
        let Some(decision) = decide(old) else { return Ok(None) };
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
        let counted = vec![true; job.sources.len() + 1];
        let level = job.output_level;
        let merged = self.shared.rewrite(merge, &counted, level, old, rewrite, &mut edit).await?;
        let version = policy::apply(old, &job, merged.cut, merged.written.patches.clone());
        Ok(Some(self.shared.install(old, version, Some(merged.written), false, edit)))
    }
}

fn merge_of_memtable(frozen: &Arc<RwLock<Memtable>>) -> Merge {
    let reader = MemtableReader::new(frozen.clone(), Key::MIN, Key::MAX);
    Merge::new(vec![Input::Memtable(reader)], false)
}

/// Each source is an input of its own, since they may overlap; the targets together are the last.
fn merge_of_job(shared: &Shared, job: &Job) -> Merge {
    let reader = |patches: &[Arc<Patch>]| {
        let (store, patches) = (shared.store.clone(), patches.iter().cloned());
        let reader = PatchReader::new(store, patches, Key::MIN, Key::MAX, READ_AHEAD_PAGES);
        Input::Patches(Box::new(reader))
    };
    let sources = job.sources.iter().map(|patch| reader(std::slice::from_ref(patch)));
    Merge::new(sources.chain([reader(&job.targets)]).collect(), false)
}

impl Shared {
    /// Merges, filters and writes. `counted` says which inputs are patches, whose entries count
    /// as references until they are consumed.
    async fn rewrite(
        &self,
        mut merge: Merge,
        counted: &[bool],
        level: u8,
        version: &Version,
        rewrite: Rewrite<'_>,
        edit: &mut Edit,
    ) -> Result<Merged, MapError> {
        let Rewrite { source, layers, max_pages, relocator } = rewrite;
        let at = self.append.lock().clone();
        let mut writer = PatchWriter::new(&self.store, source, at, level, self.limits.patch_pages);
        let outcome = Outcome { level, version, layers };
        let sink = Sink {
            writer: &mut writer,
            edit,
            relocator,
            pending: Vec::new(),
            moving_blocks: 0,
            joined: Coalescer::default(),
        };
        match write_merged(&mut merge, counted, &outcome, max_pages as u64, sink).await {
            Ok(cut) => Ok(Merged { written: writer.finish(), cut }),
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

/// Writes what `merge` yields and `outcome` keeps, until about `max_pages` are read or written;
/// returns where it stopped, if before the end.
async fn write_merged(
    merge: &mut Merge,
    counted: &[bool],
    outcome: &Outcome<'_>,
    max_pages: u64,
    mut sink: Sink<'_, '_, '_>,
) -> Result<Option<Key>, MapError> {
    let mut layer_state = None;
    let cut = loop {
        let edit = &mut *sink.edit;
        let next = merge.next(|input, piece| {
            if counted[input] {
                edit.count_blocks(piece, -1);
            }
        });
        let Some(extent) = next.await? else { break None };
        let end = extent.end();
        let state = match layer_state {
            Some((layer, state)) if layer == extent.layer => state,
            _ => (outcome.layers)(extent.layer),
        };
        layer_state = Some((extent.layer, state));
        if outcome.keeps(&extent, state) {
            sink.push(extent).await?;
        }
        if merge.pages_consumed().max(sink.writer.pages_written()) >= max_pages.max(1) {
            break Some(end);
        }
    };
    sink.finish().await?;
    Ok(cut)
}

impl Outcome<'_> {
    /// Whether anybody can miss the extent.
    fn keeps(&self, extent: &Extent, state: LayerState) -> bool {
        match (state, extent.target) {
            (LayerState::Dead, _) => false,
            (LayerState::Child, _) | (LayerState::Root, Target::Stored(_)) => true,
            // A hole over nothing says nothing.
            (LayerState::Root, Target::Hole) => {
                let (start, end) = (extent.start(), extent.end());
                let from_memtable = self.level == 0;
                let version = self.version;
                version.overlaps_below(usize::from(self.level), start, end)
                    || from_memtable
                        && version.newest().iter().any(|patch| patch.overlaps(start, end))
            }
        }
    }
}
