//! Extents: what the map says about runs of a layer's blocks.

use std::cmp::Reverse;

use siltstone_device::{BlockAddress, LayerId, Place, units::MAX_FRAME_BLOCKS};

use crate::epoch::Epoch;

/// One past the largest block address that the map can hold: 2^48 blocks, an exbibyte.
pub const MAX_BLOCKS: u64 = 1 << 48;

/// What a run of blocks holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Zeros. In a layer with a parent it also hides what the parent has there.
    Hole,
    /// Blocks of one frame: the run's first block is at this place, the others follow it.
    Stored(Place),
}

impl Target {
    /// The target of the block that lies `blocks` further on in the same run.
    ///
    /// # Panics
    /// If that block is past the frame's largest index.
    #[must_use]
    pub fn advanced(self, blocks: u64) -> Self {
        match self {
            Self::Hole => Self::Hole,
            Self::Stored(place) => {
                Self::Stored(place.advanced(blocks).expect("an extent stays within its frame"))
            }
        }
    }
}

/// A position in the map's order: by layer, then by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The layer.
    pub layer: LayerId,
    /// The block's address in it.
    pub address: BlockAddress,
}

impl Key {
    /// Before every key.
    pub const MIN: Self = Self { layer: LayerId(0), address: BlockAddress(0) };
    /// After every key.
    pub const MAX: Self = Self { layer: LayerId(u32::MAX), address: BlockAddress(MAX_BLOCKS) };

    /// A key from its parts.
    #[must_use]
    pub fn new(layer: LayerId, address: u64) -> Self {
        Self { layer, address: BlockAddress(address) }
    }

    /// The key of the block after this one, in the same layer.
    #[must_use]
    pub(crate) fn next(self) -> Self {
        Self { layer: self.layer, address: self.address.plus(1) }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.layer, self.address)
    }
}

/// A position among versions: by key, and of one key from the newest epoch to the oldest. In a
/// sorted run, extents that overlap at all cover the same blocks: they are versions of them, a
/// *stack*, and follow one another in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VersionKey {
    pub(crate) key: Key,
    epoch: Reverse<Epoch>,
}

impl VersionKey {
    pub(crate) fn new(key: Key, epoch: Epoch) -> Self {
        Self { key, epoch: Reverse(epoch) }
    }

    /// Before every version of a key.
    pub(crate) fn first(key: Key) -> Self {
        Self::new(key, Epoch::MAX)
    }

    pub(crate) fn epoch(self) -> Epoch {
        self.epoch.0
    }
}

/// A run of one layer's blocks, and what it holds. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The layer.
    pub layer: LayerId,
    /// When it began to hold this.
    pub epoch: Epoch,
    /// Its first block.
    pub address: BlockAddress,
    /// Its length: for stored blocks at most what is left of the frame's
    /// [`MAX_FRAME_BLOCKS`] indexes.
    pub len_blocks: u32,
    /// What it holds.
    pub target: Target,
}

impl Extent {
    /// Whether the extent is one that the map can hold.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let fits = match self.target {
            Target::Hole => true,
            Target::Stored(place) => {
                self.len_blocks as usize + usize::from(place.index()) <= MAX_FRAME_BLOCKS
            }
        };
        let end = self.address.0.checked_add(u64::from(self.len_blocks));
        fits && self.len_blocks > 0 && end.is_some_and(|end| end <= MAX_BLOCKS)
    }

    /// The first block's key.
    pub(crate) fn start(&self) -> Key {
        Key { layer: self.layer, address: self.address }
    }

    /// The position of this version of the first block.
    pub(crate) fn version(&self) -> VersionKey {
        VersionKey::new(self.start(), self.epoch)
    }

    /// Whether the other extent is of the same blocks.
    pub(crate) fn is_same_run(&self, other: &Self) -> bool {
        self.start() == other.start() && self.len_blocks == other.len_blocks
    }

    /// The key just past the last block, in the same layer.
    pub(crate) fn end(&self) -> Key {
        Key::new(self.layer, self.end_address())
    }

    /// The address just past the last block.
    pub(crate) fn end_address(&self) -> u64 {
        self.address.0 + u64::from(self.len_blocks)
    }

    /// The part that lies in `[from, to)`, addresses of the same layer; it must not be empty.
    pub(crate) fn slice(&self, from: u64, to: u64) -> Self {
        let start = self.address.0.max(from);
        let end = self.end_address().min(to);
        debug_assert!(start < end);
        Self {
            address: BlockAddress(start),
            len_blocks: (end - start) as u32,
            target: self.target.advanced(start - self.address.0),
            ..*self
        }
    }

    /// The part that lies in `[from, to)` of the map's order, or `None` if that is empty.
    pub(crate) fn clip(&self, from: Key, to: Key) -> Option<Self> {
        if self.end() <= from || self.start() >= to {
            return None;
        }
        let start = if from.layer == self.layer { from.address.0 } else { 0 };
        let end = if to.layer == self.layer { to.address.0 } else { u64::MAX };
        Some(self.slice(start, end))
    }

    /// Whether `next` continues this extent so that one extent can stand for both.
    pub(crate) fn joins(&self, next: &Self) -> bool {
        self.end() == next.start()
            && self.epoch == next.epoch
            && self.len_blocks.checked_add(next.len_blocks).is_some()
            && match (self.target, next.target) {
                (Target::Hole, Target::Hole) => true,
                (Target::Stored(place), Target::Stored(following)) => {
                    place.advanced(u64::from(self.len_blocks)) == Some(following)
                }
                _ => false,
            }
    }
}

/// A run of blocks as a lookup or a cursor sees it, over a chain of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its first block.
    pub address: BlockAddress,
    /// Its length.
    pub len_blocks: u32,
    /// What it holds.
    pub target: Target,
}

/// Joins stacks (versions of the same blocks, newest first) that arrive in order, as far as one can
/// stand for several: where every version of one is continued by the other's.
#[derive(Default)]
pub(crate) struct Coalescer {
    pending: Vec<Extent>,
}

impl Coalescer {
    /// Takes the next stack, and leaves in its place the one before it, once nothing more can join
    /// that; or nothing.
    pub(crate) fn push(&mut self, stack: &mut Vec<Extent>) {
        let joins = self.pending.len() == stack.len()
            && self.pending.iter().zip(&*stack).all(|(pending, next)| pending.joins(next));
        if joins {
            for (pending, next) in self.pending.iter_mut().zip(stack.drain(..)) {
                pending.len_blocks += next.len_blocks;
            }
        } else {
            std::mem::swap(&mut self.pending, stack);
        }
    }

    /// The last stack.
    pub(crate) fn finish(&mut self) -> Vec<Extent> {
        std::mem::take(&mut self.pending)
    }
}
