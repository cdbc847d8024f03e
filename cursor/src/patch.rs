//! Patches: immutable sorted runs of extents on disk; and versions: the patches of one moment.

use std::sync::Arc;

use siltstone_device::{ByteOffset, LayerId, SegmentId};

use crate::{
    epoch::{Epoch, Visibility},
    extent::{Extent, Key},
    page::PageRef,
};

/// Levels are numbered below this. With the default limits the deepest holds terabytes of map.
pub(crate) const MAX_LEVELS: usize = 8;

/// A run of pages in a metadata segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageExtent {
    /// The segment.
    pub segment: SegmentId,
    /// The first page, counted from the segment's start.
    pub first_page: u32,
    /// How many.
    pub count: u32,
}

/// What a patch holds of one layer: enough to tell, once labels were deleted, whether rewriting the
/// patch could leave anything out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldLayer {
    pub(crate) layer: LayerId,
    /// The latest epoch of an entry.
    pub(crate) newest: Epoch,
    /// Versions that have a newer one here are there for labels from this epoch on,
    pub(crate) older_from: Epoch,
    /// and before this one; the same if there is no such version.
    pub(crate) older_to: Epoch,
    /// So many labels lay there when the patch was written. No label comes there later: new ones
    /// are of the current epoch.
    pub(crate) labels: u32,
}

impl HeldLayer {
    /// A layer of which nothing is held yet but the newest version of some blocks.
    pub(crate) fn new(layer: LayerId, newest: Epoch) -> Self {
        Self { layer, newest, older_from: Epoch::MAX, older_to: Epoch::MAX, labels: 0 }
    }

    /// Takes a stack in, newest version first.
    pub(crate) fn note(&mut self, stack: &[Extent]) {
        let (Some(newest), Some(oldest)) = (stack.first(), stack.last()) else { return };
        self.newest = self.newest.max(newest.epoch);
        if stack.len() > 1 {
            let had_older = self.older_from < self.older_to;
            self.older_to = if had_older { self.older_to.max(newest.epoch) } else { newest.epoch };
            self.older_from = self.older_from.min(oldest.epoch);
        }
    }

    /// Whether a rewrite could leave something out that nobody can read any more.
    pub(crate) fn has_garbage(&self, visibility: &Visibility) -> bool {
        !visibility.sees_newest(self.newest)
            || visibility.labels_in(self.older_from, self.older_to) < self.labels as usize
    }
}

/// What is known of a patch without reading it.
///
/// A merge that has consumed the lower part of a patch raises `first`: what lies before it is
/// still on disk but no longer part of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Its number: unique, and of two patches of level 0 the newer has the larger.
    pub(crate) id: u64,
    pub(crate) level: u8,
    /// Set while the patch is merged away step by step.
    pub(crate) draining: bool,
    pub(crate) root_address: ByteOffset,
    pub(crate) root_checksum: u32,
    /// The root's height: 0 if the only page is a leaf.
    pub(crate) root_height: u8,
    /// No entry that counts starts before this key.
    pub(crate) first: Key,
    /// The last block that an entry covers.
    pub(crate) last: Key,
    /// Entries written, those before `first` included.
    pub(crate) entries: u64,
    /// How many of these are holes.
    pub(crate) holes: u64,
    /// Every layer that has an entry here, in order.
    pub(crate) layers: Vec<HeldLayer>,
    pub(crate) pages: Vec<PageExtent>,
}

impl Patch {
    pub(crate) fn root(&self) -> PageRef {
        PageRef {
            address: self.root_address,
            patch: self.id,
            checksum: self.root_checksum,
            height: self.root_height,
        }
    }

    pub(crate) fn page_count(&self) -> u64 {
        self.pages.iter().map(|extent| u64::from(extent.count)).sum()
    }

    /// The key just past the last block.
    pub(crate) fn end(&self) -> Key {
        self.last.next()
    }

    /// Whether some entry may lie in `[from, to)`.
    #[inline]
    pub(crate) fn overlaps(&self, from: Key, to: Key) -> bool {
        self.first < to && from <= self.last
    }

    /// What is left of the patch at and after `from`; `None` if that is nothing.
    pub(crate) fn drained_to(&self, from: Key) -> Option<Self> {
        if self.last < from {
            return None;
        }
        let mut rest = self.clone();
        if self.first < from {
            rest.first = from;
            rest.layers.retain(|held| held.layer >= from.layer);
        }
        Some(rest)
    }
}

/// The patches of one moment. Level 0 is newest first and may overlap; deeper levels are in key
/// order and do not. For one block, what a shallower level says is newer.
#[derive(Clone, Default)]
pub(crate) struct Version {
    /// Counts the versions of this process.
    pub(crate) number: u64,
    levels: Vec<Vec<Arc<Patch>>>,
}

impl Version {
    /// The version that consists of `patches`.
    pub(crate) fn new(number: u64, patches: impl Iterator<Item = Arc<Patch>>) -> Self {
        let mut levels: Vec<Vec<Arc<Patch>>> = vec![Vec::new(); MAX_LEVELS];
        for patch in patches {
            levels[usize::from(patch.level)].push(patch);
        }
        levels[0].sort_by_key(|patch| std::cmp::Reverse(patch.id));
        for level in &mut levels[1..] {
            level.sort_by_key(|patch| patch.first);
            assert!(
                level.windows(2).all(|pair| pair[0].last < pair[1].first),
                "patches of a level overlap"
            );
        }
        while levels.last().is_some_and(Vec::is_empty) {
            levels.pop();
        }
        Self { number, levels }
    }

    /// This version with a patch moved to the next level.
    pub(crate) fn with_moved(&self, patch: &Arc<Patch>) -> Self {
        let moved = Arc::new(Patch { level: patch.level + 1, ..Patch::clone(patch) });
        let others = self.patches().filter(|other| other.id != patch.id).cloned();
        Self::new(self.number + 1, others.chain([moved]))
    }

    pub(crate) fn patches(&self) -> impl Iterator<Item = &Arc<Patch>> {
        self.levels.iter().flatten()
    }

    pub(crate) fn levels(&self) -> &[Vec<Arc<Patch>>] {
        &self.levels
    }

    /// Level 0, newest first.
    #[inline]
    pub(crate) fn newest(&self) -> &[Arc<Patch>] {
        self.levels.first().map_or(&[], Vec::as_slice)
    }

    /// The levels below 0, each in key order.
    #[inline]
    pub(crate) fn sorted(&self) -> &[Vec<Arc<Patch>>] {
        self.levels.get(1..).unwrap_or(&[])
    }

    /// The patches of a sorted level that may have an entry in `[from, to)`.
    pub(crate) fn overlapping(level: &[Arc<Patch>], from: Key, to: Key) -> &[Arc<Patch>] {
        let start = level.partition_point(|patch| patch.last < from);
        let count = level[start..].partition_point(|patch| patch.first < to);
        &level[start..start + count]
    }

    /// Whether a patch deeper than `level` may have an entry in `[from, to)`.
    pub(crate) fn overlaps_below(&self, level: usize, from: Key, to: Key) -> bool {
        let below = self.levels.get(level + 1..).unwrap_or(&[]);
        below.iter().any(|level| !Self::overlapping(level, from, to).is_empty())
    }
}
