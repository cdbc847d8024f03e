//! Merges sorted inputs into one sequence of extents in which the newest wins.
//!
//! A sweep over the boundaries of all inputs: each step takes the blocks from the smallest
//! position to the next boundary of any input, so that every input that covers them is consumed
//! up to the same key. A caller may therefore stop after any step, and knows exactly what of
//! every input has been consumed.

use std::sync::Arc;

use parking_lot::RwLock;
use siltstone_device::LayerId;

use crate::{
    error::MapError,
    extent::{Extent, Key},
    memtable::Memtable,
    prefetch::PatchReader,
    salvage::SalvageReader,
};

/// Extents copied from a memtable at a time, under its lock.
const MEMTABLE_CHUNK: usize = 256;

/// The extents of a memtable in a range of keys, copied in chunks as it is at that moment.
pub(crate) struct MemtableReader {
    table: Arc<RwLock<Memtable>>,
    position: Key,
    to: Key,
    /// In reverse order.
    chunk: Vec<Extent>,
}

impl MemtableReader {
    pub(crate) fn new(table: Arc<RwLock<Memtable>>, from: Key, to: Key) -> Self {
        Self { table, position: from, to, chunk: Vec::new() }
    }

    fn next(&mut self) -> Option<Extent> {
        if self.chunk.is_empty() {
            self.table.read().copy_range(self.position, self.to, MEMTABLE_CHUNK, &mut self.chunk);
            self.position = self.chunk.last()?.end();
            self.chunk.reverse();
        }
        self.chunk.pop()
    }
}

/// One input of a merge.
pub(crate) enum Input {
    /// A memtable.
    Memtable(MemtableReader),
    /// Patches that do not overlap.
    Patches(Box<PatchReader>),
    /// The same, read past damage.
    Salvage(Box<SalvageReader>),
}

impl Input {
    async fn next(&mut self) -> Result<Option<Extent>, MapError> {
        match self {
            Self::Memtable(reader) => Ok(reader.next()),
            Self::Salvage(reader) => Ok(reader.next().await),
            Self::Patches(reader) => loop {
                if let Some(extent) = reader.buffered() {
                    return Ok(Some(extent));
                }
                if !reader.refill().await? {
                    return Ok(None);
                }
            },
        }
    }
}

/// A merge under way. After an error it must not be used again.
pub(crate) struct Merge {
    /// Newest first.
    inputs: Vec<Input>,
    /// The first extent of each input that has not been consumed.
    heads: Vec<Option<Extent>>,
    primed: bool,
    /// Take extents of all layers for extents of one: the inputs are layers of a chain.
    flatten: bool,
}

impl Merge {
    /// A merge of `inputs`, newest first.
    pub(crate) fn new(inputs: Vec<Input>, flatten: bool) -> Self {
        Self { heads: vec![None; inputs.len()], inputs, primed: false, flatten }
    }

    /// Leaf pages whose entries were consumed.
    pub(crate) fn pages_consumed(&self) -> u64 {
        let readers = self.inputs.iter().map(|input| match input {
            Input::Memtable(_) | Input::Salvage(_) => 0,
            Input::Patches(reader) => reader.pages_consumed(),
        });
        readers.sum()
    }

    /// Bytes of pages held or being read.
    pub(crate) fn memory_bytes(&self) -> usize {
        let readers = self.inputs.iter().map(|input| match input {
            Input::Memtable(_) | Input::Salvage(_) => 0,
            Input::Patches(reader) => reader.memory_bytes(),
        });
        readers.sum()
    }

    /// The damage of an input that hides a key, which lies at or behind the last one asked for.
    pub(crate) fn damage(&mut self, input: usize, key: Key) -> Option<&MapError> {
        match &mut self.inputs[input] {
            Input::Salvage(reader) => reader.damage(key),
            Input::Memtable(_) | Input::Patches(_) => None,
        }
    }

    /// Whether an input has met damage at or behind a key.
    pub(crate) fn has_damage(&self, key: Key) -> bool {
        self.inputs.iter().any(|input| match input {
            Input::Salvage(reader) => reader.has_damage(key),
            Input::Memtable(_) | Input::Patches(_) => false,
        })
    }

    async fn advance(&mut self, input: usize) -> Result<(), MapError> {
        let mut head = self.inputs[input].next().await?;
        if self.flatten
            && let Some(extent) = &mut head
        {
            extent.layer = LayerId(0);
        }
        self.heads[input] = head;
        Ok(())
    }

    /// The next extent, and no input has a boundary within it. `consumed` is told what was used
    /// up of each input for it: the extent itself and what it hides.
    pub(crate) async fn next(
        &mut self,
        mut consumed: impl FnMut(usize, &Extent),
    ) -> Result<Option<Extent>, MapError> {
        if !self.primed {
            for input in 0..self.inputs.len() {
                self.advance(input).await?;
            }
            self.primed = true;
        }
        let Some((start, end)) = self.next_interval() else { return Ok(None) };
        let mut winner = None;
        for input in 0..self.heads.len() {
            let Some(head) = self.heads[input] else { continue };
            if head.start() != start {
                continue;
            }
            let piece = head.slice(start.address.0, end.address.0);
            consumed(input, &piece);
            winner.get_or_insert(piece);
            if head.end() == end {
                self.advance(input).await?;
                debug_assert!(self.heads[input].is_none_or(|next| next.start() >= end));
            } else {
                self.heads[input] = Some(head.slice(end.address.0, u64::MAX));
            }
        }
        Ok(winner)
    }

    /// The smallest position, and the next boundary of any head after it.
    fn next_interval(&self) -> Option<(Key, Key)> {
        let heads = || self.heads.iter().flatten();
        let start = heads().map(Extent::start).min()?;
        let boundary = |head: &Extent| {
            if head.start() > start { head.start() } else { head.end() }
        };
        Some((start, heads().map(boundary).min()?))
    }
}
