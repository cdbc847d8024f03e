//! Epochs: when what the map says began to hold, and who can still see it.
//!
//! The owner of the map counts snapshots. What is published belongs to the epoch in which it was
//! admitted; a snapshot taken at the end of an epoch is a *label* on its layer, which sees, for
//! each block, the newest fact of that epoch or an earlier one. The live volume sees the newest of
//! all. So a snapshot costs nothing but its label, and a block has several versions only if it was
//! changed between labels that somebody still has.

use std::sync::Arc;

use siltstone_device::LayerId;

use crate::extent::Extent;

/// The most labels that a layer has: as many versions of a block, and one more, may be in a patch.
pub const MAX_LABELS: usize = 1 << 16;

/// The time between two snapshots of a pool, counted from [`FIRST`](Self::FIRST).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch of a pool that never had a snapshot.
    pub const FIRST: Self = Self(0);
    /// After every epoch: as of it, the newest of all is seen.
    pub const MAX: Self = Self(u32::MAX);
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

/// One link of a chain that is read: a layer as it was at the end of an epoch. A chain begins
/// with what is newest: a volume's own layer; then, as of the epoch in which it was cloned, its
/// parent's; and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The layer.
    pub layer: LayerId,
    /// Facts of later epochs are not seen.
    pub as_of: Epoch,
}

impl View {
    /// A layer as it is now.
    #[must_use]
    pub fn live(layer: LayerId) -> Self {
        Self { layer, as_of: Epoch::MAX }
    }
}

/// Who can read a layer at the moment of a merge: decides which versions are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visibility {
    is_live: bool,
    has_parent: bool,
    /// Ascending.
    labels: Arc<[Epoch]>,
}

impl Visibility {
    /// A layer that a volume writes to (`is_live`), or did once; that reads through to a parent
    /// where it has nothing, or does not (holes over nothing then need not be kept); and every
    /// epoch as of which something can read it: snapshots, and clones made of it.
    ///
    /// # Panics
    /// If there are more than [`MAX_LABELS`] labels.
    #[must_use]
    pub fn new(is_live: bool, has_parent: bool, mut labels: Vec<Epoch>) -> Self {
        labels.sort_unstable();
        labels.dedup();
        assert!(labels.len() <= MAX_LABELS, "a layer has {} labels", labels.len());
        Self { is_live, has_parent, labels: labels.into() }
    }

    /// Nothing can read the layer any more: its entries are dropped.
    #[must_use]
    pub fn dead() -> Self {
        Self::default()
    }

    /// A volume that is no clone, without snapshots.
    #[must_use]
    pub fn live_root() -> Self {
        Self { is_live: true, ..Self::default() }
    }

    /// A clone, without snapshots.
    #[must_use]
    pub fn live_child() -> Self {
        Self { is_live: true, has_parent: true, ..Self::default() }
    }

    /// Whether the layer reads through to a parent.
    pub(crate) fn has_parent(&self) -> bool {
        self.has_parent
    }

    /// How many labels lie in `[from, to)`.
    pub(crate) fn labels_in(&self, from: Epoch, to: Epoch) -> usize {
        let before = |epoch| self.labels.partition_point(|label| *label < epoch);
        before(to).saturating_sub(before(from))
    }

    /// Whether anybody sees the newest version of some blocks, if it is of this epoch.
    pub(crate) fn sees_newest(&self, epoch: Epoch) -> bool {
        self.is_live || self.labels.last().is_some_and(|last| *last >= epoch)
    }

    /// Leaves of a stack (versions of the same blocks, newest first) what somebody can see, and of
    /// versions that say the same only the oldest.
    pub(crate) fn retain_visible(&self, stack: &mut Vec<Extent>) {
        if let ([_], true) = (stack.as_slice(), self.is_live) {
            return;
        }
        let mut newer = None;
        stack.retain(|version| {
            let epoch = version.epoch;
            match newer.replace(epoch) {
                None => self.sees_newest(epoch),
                Some(newer) => self.labels_in(epoch, newer) > 0,
            }
        });
        stack.dedup_by(|older, newer| {
            let same = older.target == newer.target;
            if same {
                newer.epoch = older.epoch;
            }
            same
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use siltstone_device::{BlockAddress, Place, SegmentId};

    use super::*;
    use crate::extent::Target;

    fn stack(versions: &[(u32, u32)]) -> Vec<Extent> {
        let version = |&(epoch, frame): &(u32, u32)| Extent {
            layer: LayerId(1),
            epoch: Epoch(epoch),
            address: BlockAddress(7),
            len_blocks: 2,
            target: match frame {
                0 => Target::Hole,
                frame => Target::Stored(Place::new(SegmentId(1), frame * 4096, 0)),
            },
        };
        versions.iter().map(version).collect()
    }

    fn seen(stack: &[Extent], as_of: Epoch) -> Option<Target> {
        stack.iter().find(|version| version.epoch <= as_of).map(|version| version.target)
    }

    #[test]
    fn of_versions_that_say_the_same_the_oldest_stays() {
        let visibility = Visibility::new(true, false, vec![Epoch(3), Epoch(5), Epoch(7)]);
        let mut versions = stack(&[(8, 1), (6, 1), (4, 2), (2, 1)]);
        visibility.retain_visible(&mut versions);
        assert_eq!(versions, stack(&[(6, 1), (4, 2), (2, 1)]));
        // With the label between them, the version that kept the others apart goes as well.
        Visibility::new(true, false, vec![Epoch(3), Epoch(7)]).retain_visible(&mut versions);
        assert_eq!(versions, stack(&[(2, 1)]));
    }

    #[test]
    fn nothing_of_a_dead_layer_stays() {
        let mut versions = stack(&[(4, 2), (2, 1)]);
        Visibility::dead().retain_visible(&mut versions);
        assert!(versions.is_empty());
    }

    proptest! {
        /// Everyone who can read the layer sees the same as before, and nothing is kept that
        /// nobody can tell from its absence.
        #[test]
        fn what_is_seen_stays_and_nothing_else(
            epochs in prop::collection::btree_map(0..40u32, 0..4u32, 1..12),
            labels in prop::collection::vec(0..42u32, 0..8),
            is_live: bool,
        ) {
            let versions: Vec<_> = epochs.into_iter().rev().collect();
            let before = stack(&versions);
            let labels: Vec<_> = labels.into_iter().map(Epoch).collect();
            let visibility = Visibility::new(is_live, false, labels.clone());
            let mut after = before.clone();
            visibility.retain_visible(&mut after);
            let live = is_live.then_some(Epoch::MAX);
            let readers: Vec<_> = labels.into_iter().chain(live).collect();
            for as_of in &readers {
                prop_assert_eq!(seen(&before, *as_of), seen(&after, *as_of));
            }
            for left_out in 0..after.len() {
                let mut less = after.clone();
                less.remove(left_out);
                prop_assert!(readers.iter().any(|as_of| seen(&less, *as_of) != seen(&after, *as_of)));
            }
        }
    }
}
