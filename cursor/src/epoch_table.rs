//! What was published in one epoch, as far as it is in memory.
//!
//! Invariants: extents do not overlap; of two that were inserted for the same block, the one with
//! the later sequence number is kept (of equals, the one inserted later); two neighbours that one
//! extent of one sequence number could stand for are one. Sequence numbers are kept exact for
//! each block, because recovery asks for them; patches do without, and join across them.

use std::{collections::BTreeMap, ops::Bound};

use siltstone_device::{LayerId, Sequence};

use crate::{
    epoch::Epoch,
    extent::{Extent, Key, Target},
};

/// What an entry takes in memory, the tree's own nodes included (they are about 3/4 full).
pub(crate) const ENTRY_BYTES: usize = (size_of::<Key>() + size_of::<Value>()) * 4 / 3 + 8;

#[derive(Clone, Copy)]
struct Value {
    len_blocks: u32,
    target: Target,
    sequence: Sequence,
}

/// A sorted table of extents of one epoch.
pub(crate) struct EpochTable {
    epoch: Epoch,
    entries: BTreeMap<Key, Value>,
}

fn extent_of(epoch: Epoch, key: &Key, value: &Value) -> Extent {
    Extent {
        layer: key.layer,
        epoch,
        address: key.address,
        len_blocks: value.len_blocks,
        target: value.target,
    }
}

impl EpochTable {
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self { epoch, entries: BTreeMap::new() }
    }

    #[inline]
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Inserts an extent, except where a later change is there already.
    pub(crate) fn insert(&mut self, extent: Extent, sequence: Sequence) {
        assert!(extent.is_valid(), "{extent:?} cannot be mapped");
        assert_eq!(extent.epoch, self.epoch);
        let (start, end) = (extent.start(), extent.end());
        let value = Value { len_blocks: extent.len_blocks, target: extent.target, sequence };
        if self.insert_alone(&extent, value) {
            return;
        }
        self.split_at(start);
        self.split_at(end);
        self.insert_over(extent, sequence);
    }

    /// The commonest cases, found by one look into the tree: inserts an extent if nothing is there for its blocks, or
    /// exactly the same run, and neither neighbour joins it. False, and nothing is done, if it is not so.
    fn insert_alone(&mut self, extent: &Extent, value: Value) -> bool {
        let (start, end) = (extent.start(), extent.end());
        let epoch = self.epoch;
        let is_joined = |left: &Extent, right: &Extent, neighbour: &Value| {
            neighbour.sequence == value.sequence && left.joins(right)
        };
        let mut until_end = self.entries.range_mut(..=end);
        let mut last = until_end.next_back();
        if let Some((key, after)) = &last
            && **key == end
        {
            if is_joined(extent, &extent_of(epoch, key, after), after) {
                return false;
            }
            last = until_end.next_back();
        }
        let replaced = match last {
            Some((key, same)) if *key == start && same.len_blocks == extent.len_blocks => {
                last = until_end.next_back();
                Some(same)
            }
            _ => None,
        };
        if let Some((key, before)) = last {
            let before_extent = extent_of(epoch, key, before);
            if before_extent.end() > start || is_joined(&before_extent, extent, before) {
                return false;
            }
        }
        match replaced {
            // A later change of the same run stays.
            Some(same) if same.sequence > value.sequence => {}
            Some(same) => *same = value,
            None => _ = self.entries.insert(start, value),
        }
        true
    }

    /// Inserts any extent, once no other straddles its ends.
    fn insert_over(&mut self, extent: Extent, sequence: Sequence) {
        let (start, end) = (extent.start(), extent.end());
        let existing: Vec<(Key, u32, Sequence)> = self
            .entries
            .range(start..end)
            .map(|(key, value)| (*key, value.len_blocks, value.sequence))
            .collect();
        let mut position = start.address.0;
        let insert = |entries: &mut BTreeMap<Key, Value>, from: u64, to: u64| {
            if from < to {
                let piece = extent.slice(from, to);
                let Extent { len_blocks, target, .. } = piece;
                entries.insert(piece.start(), Value { len_blocks, target, sequence });
            }
        };
        let mut joints = vec![start, end];
        for (key, len_blocks, existing_sequence) in existing {
            if existing_sequence <= sequence {
                self.entries.remove(&key);
            } else {
                insert(&mut self.entries, position, key.address.0);
                position = key.address.0 + u64::from(len_blocks);
                joints.extend([key, Key::new(key.layer, position)]);
            }
        }
        insert(&mut self.entries, position, end.address.0);
        joints.into_iter().for_each(|key| self.join_at(key));
    }

    /// Makes `key` a boundary: an extent that straddles it becomes two.
    fn split_at(&mut self, key: Key) {
        let Some((first, value)) = self.entries.range_mut(..key).next_back() else { return };
        let whole = extent_of(self.epoch, first, value);
        if whole.end() <= key {
            return;
        }
        let right = whole.slice(key.address.0, u64::MAX);
        value.len_blocks -= right.len_blocks;
        let Extent { len_blocks, target, .. } = right;
        let sequence = value.sequence;
        self.entries.insert(key, Value { len_blocks, target, sequence });
    }

    /// Joins the entry that starts at `key` with the one before it, if one can stand for both.
    fn join_at(&mut self, key: Key) {
        let mut around = self.entries.range_mut(..=key);
        let Some((first, value)) = around.next_back() else { return };
        if *first != key {
            return;
        }
        let (right, sequence) = (extent_of(self.epoch, first, value), value.sequence);
        let Some((first, value)) = around.next_back() else { return };
        if value.sequence == sequence && extent_of(self.epoch, first, value).joins(&right) {
            value.len_blocks += right.len_blocks;
            self.entries.remove(&key);
        }
    }

    /// The first entry that overlaps blocks `[from, to)` of a layer, cut to that range.
    #[inline]
    pub(crate) fn first_in(
        &self,
        layer: LayerId,
        from: u64,
        to: u64,
    ) -> Option<(Extent, Sequence)> {
        let start = Key::new(layer, from);
        if let Some((key, value)) = self.entries.range(..=start).next_back() {
            let extent = extent_of(self.epoch, key, value);
            if extent.end() > start {
                return Some((extent.slice(from, to), value.sequence));
            }
        }
        if to - from <= 1 {
            return None;
        }
        let bounds = (Bound::Excluded(start), Bound::Excluded(Key::new(layer, to)));
        let (key, value) = self.entries.range(bounds).next()?;
        Some((extent_of(self.epoch, key, value).slice(from, to), value.sequence))
    }

    /// Appends up to `limit` extents that overlap `[from, to)`, in order, cut to that range.
    pub(crate) fn copy_range(&self, from: Key, to: Key, limit: usize, out: &mut Vec<Extent>) {
        if from >= to {
            return;
        }
        let straddling = self.entries.range(..from).next_back();
        let following = self.entries.range(from..to);
        let extents = straddling.into_iter().chain(following);
        out.extend(
            extents
                .filter_map(|(key, value)| extent_of(self.epoch, key, value).clip(from, to))
                .take(limit),
        );
    }
}

#[cfg(test)]
#[path = "epoch_table/tests.rs"]
mod tests;
