//! Merges sorted inputs into one sequence of stacks (versions of the same blocks, newest first).
//!
//! A sweep over the boundaries of all inputs: each step takes the blocks from the smallest
//! position to the next boundary of any input, so that every input that covers them is consumed
//! up to the same key. A caller may therefore stop after any step, and knows exactly what of
//! every input has been consumed.
//!
//! Of the versions of one epoch, that of the newest input wins. Inputs are in the order of time:
//! for one block, an older input has nothing newer than the oldest that a newer one has, but for what
//! the newer one has as well.

use std::sync::Arc;

use parking_lot::RwLock;
use siltstone_device::LayerId;

use crate::{
    epoch::Epoch,
    error::MapError,
    extent::{Extent, Key},
    memtable::Memtable,
    prefetch::PatchReader,
    salvage::SalvageReader,
};

/// Extents copied from a memtable at a time, under its lock.
const MEMTABLE_CHUNK: usize = 256;

/// The extents of a memtable's epoch in a range of keys, copied in chunks as they are at that
/// moment.
pub(crate) struct MemtableReader {
    memtable: Arc<RwLock<Memtable>>,
    epoch: Epoch,
    position: Key,
    to: Key,
    /// In reverse order.
    chunk: Vec<Extent>,
}

impl MemtableReader {
    /// Readers of each epoch that a memtable has by now, newest first.
    pub(crate) fn of(memtable: &Arc<RwLock<Memtable>>, from: Key, to: Key) -> Vec<Self> {
        let tables = memtable.read();
        let epochs = tables.tables().iter().map(|table| table.epoch());
        epochs
            .map(|epoch| Self {
                memtable: memtable.clone(),
                epoch,
                position: from,
                to,
                chunk: Vec::new(),
            })
            .collect()
    }

    fn next(&mut self) -> Option<Extent> {
        if self.chunk.is_empty() {
            let tables = self.memtable.read();
            let table = tables.table(self.epoch)?;
            table.copy_range(self.position, self.to, MEMTABLE_CHUNK, &mut self.chunk);
            self.position = self.chunk.last()?.end();
            self.chunk.reverse();
        }
        self.chunk.pop()
    }
}

/// One input of a merge.
pub(crate) enum Input {
    /// An epoch of a memtable.
    Memtable(MemtableReader),
    /// Patches that do not overlap.
    Patches(Box<PatchReader>),
    /// The same, read past damage.
    Salvage(Box<SalvageReader>),
}

impl Input {
    /// The next extent if it is in memory.
    #[inline]
    fn buffered(&mut self) -> Option<Extent> {
        match self {
            Self::Patches(reader) => reader.buffered(),
            Self::Memtable(reader) => reader.next(),
            Self::Salvage(_) => None,
        }
    }

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

    fn pages_consumed(&self) -> u64 {
        match self {
            Self::Memtable(_) | Self::Salvage(_) => 0,
            Self::Patches(reader) => reader.pages_consumed(),
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Memtable(_) | Self::Salvage(_) => 0,
            Self::Patches(reader) => reader.memory_bytes(),
        }
    }
}

/// An input, and how far it has been consumed.
struct Source {
    input: Input,
    /// Of each stack, only the version that is seen as of this epoch counts, as an extent of one
    /// space of addresses.
    as_of: Option<Epoch>,
    /// The first stack that has not been consumed; empty at the end.
    head: Vec<Extent>,
    /// The extent after it, if all versions count.
    ahead: Option<Extent>,
    /// Where the last stack began of which a version was seen.
    seen: Option<Key>,
    /// Leaf pages before that of the first version in `head`.
    pages_consumed: u64,
}

impl Source {
    fn new(input: Input, as_of: Option<Epoch>) -> Self {
        Self { input, as_of, head: Vec::new(), ahead: None, seen: None, pages_consumed: 0 }
    }

    #[inline]
    async fn next_version(&mut self) -> Result<Option<Extent>, MapError> {
        match self.input.buffered() {
            None => self.input.next().await,
            next => Ok(next),
        }
    }

    /// Makes the first stack the head.
    async fn begin(&mut self) -> Result<(), MapError> {
        if self.as_of.is_none() {
            self.ahead = self.next_version().await?;
        }
        self.advance().await
    }

    /// Makes the next stack the head.
    #[inline]
    async fn advance(&mut self) -> Result<(), MapError> {
        self.head.clear();
        if let Some(as_of) = self.as_of {
            return self.advance_to_seen(as_of).await;
        }
        self.pages_consumed = self.input.pages_consumed();
        let Some(newest) = self.ahead.take() else { return Ok(()) };
        self.head.push(newest);
        self.ahead = loop {
            match self.next_version().await? {
                Some(next) if next.start() == newest.start() => self.head.push(next),
                other => break other,
            }
        };
        Ok(())
    }

    /// Makes what is seen of the next stack the head.
    #[inline]
    async fn advance_to_seen(&mut self, as_of: Epoch) -> Result<(), MapError> {
        while let Some(version) = self.next_version().await? {
            let start = version.start();
            if version.epoch <= as_of && self.seen != Some(start) {
                self.seen = Some(start);
                self.head.push(Extent { layer: LayerId(0), epoch: Epoch::FIRST, ..version });
                break;
            }
        }
        Ok(())
    }
}

/// A merge under way. After an error it must not be used again.
pub(crate) struct Merge {
    /// Newest first.
    sources: Vec<Source>,
    primed: bool,
    /// What [`next`](Self::next) found.
    stack: Vec<Extent>,
}

impl Merge {
    /// A merge of all versions in `inputs`, newest first.
    pub(crate) fn new(inputs: impl Iterator<Item = Input>) -> Self {
        Self::of(inputs.map(|input| (input, None)))
    }

    /// A merge of what is seen of each input as of an epoch. The inputs are those of the views of
    /// a chain, one after another: extents of all their layers are taken for extents of one.
    pub(crate) fn flattened(inputs: impl Iterator<Item = (Input, Epoch)>) -> Self {
        Self::of(inputs.map(|(input, as_of)| (input, Some(as_of))))
    }

    fn of(inputs: impl Iterator<Item = (Input, Option<Epoch>)>) -> Self {
        let sources = inputs.map(|(input, as_of)| Source::new(input, as_of)).collect();
        Self { sources, primed: false, stack: Vec::new() }
    }

    /// Leaf pages whose entries were consumed.
    pub(crate) fn pages_consumed(&self) -> u64 {
        self.sources.iter().map(|source| source.pages_consumed).sum()
    }

    /// Bytes of pages held or being read.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.sources.iter().map(|source| source.input.memory_bytes()).sum()
    }

    /// The damage of an input that hides a key, which lies at or behind the last one asked for.
    pub(crate) fn damage(&mut self, input: usize, key: Key) -> Option<&MapError> {
        match &mut self.sources[input].input {
            Input::Salvage(reader) => reader.damage(key),
            Input::Memtable(_) | Input::Patches(_) => None,
        }
    }

    /// Whether an input has met damage at or behind a key.
    pub(crate) fn has_damage(&self, key: Key) -> bool {
        self.sources.iter().any(|source| match &source.input {
            Input::Salvage(reader) => reader.has_damage(key),
            Input::Memtable(_) | Input::Patches(_) => false,
        })
    }

    /// The stack that [`next`](Self::next) found, to be taken or changed.
    #[inline]
    pub(crate) fn stack(&mut self) -> &mut Vec<Extent> {
        &mut self.stack
    }

    /// Finds the next stack, such that no input has a boundary within it; false at the end.
    /// `consumed` is told what was used up of each input for it, newest first: the versions in
    /// the stack, and what they hide.
    pub(crate) async fn next(
        &mut self,
        mut consumed: impl FnMut(usize, &Extent),
    ) -> Result<bool, MapError> {
        if !self.primed {
            for source in &mut self.sources {
                source.begin().await?;
            }
            self.primed = true;
        }
        self.stack.clear();
        let Some((start, end)) = self.next_interval() else { return Ok(false) };
        for (number, source) in self.sources.iter_mut().enumerate() {
            let Some(newest) = source.head.first() else { continue };
            if newest.start() != start {
                continue;
            }
            let is_whole = newest.end() == end;
            for version in &source.head {
                let piece = version.slice(start.address.0, end.address.0);
                consumed(number, &piece);
                if self.stack.last().is_none_or(|newer| piece.epoch < newer.epoch) {
                    self.stack.push(piece);
                }
            }
            if is_whole {
                source.advance().await?;
                debug_assert!(source.head.first().is_none_or(|next| next.start() >= end));
            } else {
                for version in &mut source.head {
                    *version = version.slice(end.address.0, u64::MAX);
                }
            }
        }
        Ok(true)
    }

    /// The smallest position, and the next boundary of any head after it.
    fn next_interval(&self) -> Option<(Key, Key)> {
        let heads = self.sources.iter().filter_map(|source| source.head.first());
        heads.fold(None, |interval, head| {
            let (from, to) = (head.start(), head.end());
            Some(match interval {
                Some((start, end)) if start < from => (start, from.min(end)),
                Some((start, end)) if start == from => (start, to.min(end)),
                Some((start, _)) => (from, to.min(start)),
                None => (from, to),
            })
        })
    }
}
