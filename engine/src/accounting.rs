//! What a pool's space is used for, and by whom.
//!
//! Two sources that do not know each other. The segment table says what each segment is used for:
//! that is where every byte of the pool is (`parts`), and costs nothing. Which stored blocks are
//! still referred to, and by which volumes, only the map says: one walk over it ([`count`]), past
//! damage, with memory for a bounded number of blocks (`blocks`).
//!
//! Who can see something is a [`Reader`]: a chain of views, as for reads. A version of a block in the
//! map is held by every reader with a view of its layer as of which it is the newest: whether
//! a newer layer of a chain hides it does not matter, for merges keep it all the same. A block is
//! exclusive to a reader if no other one holds a version that refers to it; that is what would
//! become garbage with that reader.

use std::{collections::BTreeMap, sync::Arc};

use siltstone_cursor::{Epoch, Extent, Map, Salvaged, Target, View};
use siltstone_device::{BlockAddress, LayerId};

use crate::{core::Core, volume_core::VolumeCore};

mod blocks;
mod parts;

use blocks::Blocks;
pub use parts::SpaceParts;

/// Memory for pages that the walk reads ahead.
const WALK_BYTES: usize = 4 << 20;

/// Somebody who can read a part of the map.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    /// What is read, newest first.
    pub(crate) chain: Arc<[View]>,
    /// How many blocks there are to read.
    pub(crate) len_blocks: u64,
    /// A volume, or else a snapshot.
    pub(crate) is_volume: bool,
}

/// What a reader holds, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holding {
    /// That are mapped to stored blocks.
    pub(crate) mapped: u64,
    /// Of those, that no other reader refers to. What is mapped twice counts twice.
    pub(crate) exclusive: u64,
    /// Distinct stored blocks that no other reader refers to.
    pub(crate) exclusive_distinct: u64,
    /// Of which a damaged map does not say whether they are mapped.
    pub(crate) unknown: u64,
}

/// What all readers hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// In the readers' order.
    pub(crate) readers: Vec<Holding>,
    /// Distinct stored blocks.
    pub(crate) distinct: u64,
    /// Those that several readers refer to.
    pub(crate) shared: u64,
    /// Those that only snapshots refer to.
    pub(crate) in_snapshots: u64,
    /// All but what is mapped comes from one block in 2^this: 0 is exact.
    pub(crate) sample_bits: u32,
}

/// A reader's view of a layer.
struct Holder {
    reader: u32,
    as_of: Epoch,
    len_blocks: u64,
}

/// Walks over the map and counts what readers hold. While others change it, each block counts as of
/// some moment of the walk.
pub(crate) async fn count(map: &Map, readers: &[Reader]) -> Holdings {
    let mut holders: BTreeMap<LayerId, Vec<Holder>> = BTreeMap::new();
    for (number, reader) in (0..).zip(readers) {
        for &View { layer, as_of } in &*reader.chain {
            let holder = Holder { reader: number, as_of, len_blocks: reader.len_blocks };
            holders.entry(layer).or_default().push(holder);
        }
    }
    let len_of = |holders: &Vec<Holder>| holders.iter().map(|holder| holder.len_blocks).max();
    let layers = holders.iter().map(|(&layer, of)| (layer, len_of(of).unwrap_or(0)));
    let mut walk = map.salvage_cursor(layers.collect(), WALK_BYTES, false);
    let mut counted = Counted {
        blocks: Blocks::new(readers.iter().map(|reader| reader.is_volume).collect()),
        holdings: vec![Holding::default(); readers.len()],
        held_by: Vec::new(),
    };
    let mut before: Option<Extent> = None;
    while let Some(item) = walk.next().await {
        match item {
            Salvaged::Extent(extent) => {
                // Versions of the same blocks follow one another, newest first.
                let newer = before.filter(|before| {
                    (before.layer, before.address) == (extent.layer, extent.address)
                });
                let seen = |holder: &Holder| {
                    extent.epoch <= holder.as_of
                        && newer.is_none_or(|newer| holder.as_of < newer.epoch)
                };
                counted.add(&extent, holders[&extent.layer].iter().filter(|holder| seen(holder)));
                before = Some(extent);
            }
            Salvaged::Unknown { layer, address, len_blocks, as_of, .. } => {
                for holder in holders[&layer].iter().filter(|holder| holder.as_of <= as_of) {
                    let end = (address.0 + len_blocks).min(holder.len_blocks);
                    counted.holdings[holder.reader as usize].unknown +=
                        end.saturating_sub(address.0);
                }
            }
        }
    }
    // What several layers together say is not the sum of what each of them holds.
    for (reader, holding) in readers.iter().zip(&mut counted.holdings) {
        if reader.chain.len() > 1 {
            (holding.mapped, holding.unknown) = mapped(map, reader).await;
        }
    }
    counted.outcome()
}

struct Counted {
    blocks: Blocks,
    holdings: Vec<Holding>,
    /// Kept for its memory.
    held_by: Vec<u32>,
}

impl Counted {
    fn add<'a>(&mut self, extent: &Extent, holders: impl Iterator<Item = &'a Holder> + Clone) {
        let Target::Stored(first) = extent.target else { return };
        let end = extent.address.0 + u64::from(extent.len_blocks);
        let is_cut_off = holders.clone().any(|holder| holder.len_blocks < end);
        for index in 0..u64::from(extent.len_blocks) {
            let address = extent.address.0 + index;
            let Some(place) = first.advanced(index) else { return };
            if index == 0 || is_cut_off {
                self.held_by.clear();
                let here = holders.clone().filter(|holder| address < holder.len_blocks);
                self.held_by.extend(here.map(|holder| holder.reader));
            }
            for &reader in &self.held_by {
                self.holdings[reader as usize].mapped += 1;
            }
            self.blocks.add(place, &self.held_by);
        }
    }

    fn outcome(self) -> Holdings {
        let (mut readers, distinct) = (self.holdings, self.blocks.distinct());
        for (holding, exclusive) in readers.iter_mut().zip(self.blocks.exclusive()) {
            holding.exclusive = exclusive.references.min(holding.mapped);
            holding.exclusive_distinct = exclusive.distinct;
        }
        Holdings {
            readers,
            distinct: distinct.all,
            shared: distinct.shared,
            in_snapshots: distinct.in_snapshots,
            sample_bits: self.blocks.sample_bits(),
        }
    }
}

/// How many blocks a chain of several layers maps. What lies behind damage is not known.
async fn mapped(map: &Map, reader: &Reader) -> (u64, u64) {
    let (mut mapped, mut at) = (0, 0);
    let (start, end) = (BlockAddress(0), BlockAddress(reader.len_blocks));
    let mut cursor = map.cursor(&reader.chain, start, end, WALK_BYTES);
    loop {
        match cursor.next().await {
            Ok(Some(run)) => {
                mapped += u64::from(run.len_blocks);
                at = run.address.0 + u64::from(run.len_blocks);
            }
            Ok(None) => return (mapped, 0),
            Err(_) => return (mapped, reader.len_blocks - at),
        }
    }
}

impl Core {
    /// What volumes and snapshots hold, in their order.
    pub(crate) async fn holdings(&self, volumes: &[Arc<VolumeCore>]) -> Holdings {
        let reader = |volume: &Arc<VolumeCore>| Reader {
            chain: volume.chain(),
            len_blocks: volume.len_blocks(),
            is_volume: !volume.is_snapshot(),
        };
        let readers: Vec<_> = volumes.iter().map(reader).collect();
        count(&self.map, &readers).await
    }
}

#[cfg(test)]
#[path = "accounting/tests.rs"]
mod tests;
