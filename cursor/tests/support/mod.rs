//! What the tests share: a pool of segments and a plain model of the map.
#![allow(dead_code, unreachable_pub)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use siltstone_cursor::{
    Edit, Epoch, Extent, Key, Limits, Manifest, Map, MapConfig, SegmentGeometry, SegmentSource,
    Target, View, Visibility,
};
use siltstone_device::{
    BLOCK_BYTES, BlockAddress, ByteOffset, LayerId, Place, SegmentId, sim::SimDevice,
};

pub const POOL: u64 = 0x0051_1757_04e0;

pub fn geometry(pages: u64) -> SegmentGeometry {
    SegmentGeometry { data_start: ByteOffset(1 << 20), segment_bytes: pages * BLOCK_BYTES as u64 }
}

/// Limits so small that a few hundred entries make several levels.
pub fn tiny_limits() -> Limits {
    Limits { level0_patches: 2, level1_pages: 3, fanout: 2, patch_pages: 2, small_patch_pages: 2 }
}

pub fn extent(layer: u32, address: u64, len_blocks: u32, target: Target) -> Extent {
    extent_at(0, layer, address, len_blocks, target)
}

pub fn extent_at(epoch: u32, layer: u32, address: u64, len_blocks: u32, target: Target) -> Extent {
    let (layer, epoch, address) = (LayerId(layer), Epoch(epoch), BlockAddress(address));
    Extent { layer, epoch, address, len_blocks, target }
}

pub fn live(layer: u32) -> View {
    View::live(LayerId(layer))
}

pub fn stored(segment: u32, frame: u32, index: u8) -> Target {
    Target::Stored(Place::new(SegmentId(segment), frame * 4096, index))
}

/// Segments as the engine would hand them out, and the sums of all edits.
#[derive(Default)]
pub struct Segments {
    next: u32,
    free: BTreeSet<SegmentId>,
    pub limit: Option<usize>,
    /// Keep what became free from being used until [`Segments::checkpoint`].
    pub wait_for_checkpoint: bool,
    waiting: Vec<SegmentId>,
    pub used: BTreeSet<SegmentId>,
    pub data_references: BTreeMap<SegmentId, i64>,
    pub pages: BTreeMap<SegmentId, i64>,
    pub entries: i64,
    pub pages_written: u64,
}

impl SegmentSource for Segments {
    fn allocate(&mut self) -> Option<SegmentId> {
        if self.limit.is_some_and(|limit| self.used.len() >= limit) {
            return None;
        }
        let segment = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            SegmentId(self.next)
        });
        assert!(self.used.insert(segment), "{segment} is handed out twice");
        Some(segment)
    }
}

impl Segments {
    /// Adds an edit up, and frees metadata segments that have no pages left.
    pub fn apply(&mut self, edit: &Edit) {
        for (segment, change) in &edit.data_references {
            *self.data_references.entry(*segment).or_default() += change;
        }
        for (segment, change) in &edit.pages {
            let pages = self.pages.entry(*segment).or_default();
            *pages += change;
            assert!(*pages >= 0);
            if *pages == 0 {
                self.pages.remove(segment);
                assert!(self.used.remove(segment), "{segment} was not in use");
                if self.wait_for_checkpoint {
                    self.waiting.push(*segment);
                } else {
                    self.free.insert(*segment);
                }
            }
        }
        self.data_references.retain(|_, count| *count != 0);
        self.entries += edit.entries;
        self.pages_written += edit.pages_written;
    }
}

impl Segments {
    /// A manifest without the waiting segments is durable: they may be used again.
    pub fn checkpoint(&mut self) {
        self.free.extend(self.waiting.drain(..));
    }
}

/// A device larger than any test needs.
pub fn device() -> Arc<SimDevice> {
    SimDevice::new(1 << 40)
}

pub fn open(device: &Arc<SimDevice>, pages: u64, limits: Limits, manifest: Manifest) -> Map {
    let mut config = MapConfig::new(POOL, geometry(pages), 64 * 4300);
    config.limits = limits;
    Map::open(device.clone(), config, manifest)
}

pub fn all_roots(_: LayerId) -> Visibility {
    Visibility::live_root()
}

/// What every block holds, block by block: versions from the oldest to the newest.
#[derive(Clone, Default)]
pub struct Model {
    pub blocks: BTreeMap<Key, Vec<(Epoch, Target)>>,
}

impl Model {
    pub fn publish(&mut self, extent: &Extent) {
        for i in 0..u64::from(extent.len_blocks) {
            let key = Key::new(extent.layer, extent.address.0 + i);
            let versions = self.blocks.entry(key).or_default();
            if versions.last().is_some_and(|(epoch, _)| *epoch == extent.epoch) {
                versions.pop();
            }
            versions.push((extent.epoch, extent.target.advanced(i)));
        }
    }

    /// What a layer itself has for a block.
    pub fn seen(&self, view: View, address: u64) -> Option<Target> {
        let versions = self.blocks.get(&Key::new(view.layer, address))?;
        let seen = versions.iter().rev().find(|(epoch, _)| *epoch <= view.as_of);
        seen.map(|(_, target)| *target)
    }

    pub fn lookup(&self, chain: &[View], address: u64) -> Target {
        chain.iter().find_map(|view| self.seen(*view, address)).unwrap_or(Target::Hole)
    }
}
