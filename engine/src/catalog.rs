//! The catalog: which volumes and snapshots there are, and the layers that hold their blocks.
//!
//! It lies in the checkpoint record, so that a change of it is as atomic as a checkpoint. A volume
//! writes to one layer; a snapshot is that layer as of the end of an epoch; a clone, or a volume that
//! was rolled back, writes to a layer of its own that has such a view as its parent. A layer stays
//! while something can be read through it. Ids are never used twice.

use std::collections::{BTreeMap, BTreeSet};

use siltstone_cursor::{Epoch, MAX_LABELS, View, Visibility};
use siltstone_device::LayerId;

use crate::{
    compression::Compression,
    config::{self, VolumeOptions},
    error::{EngineError, Result},
    snapshot_name::SnapshotName,
};

mod codec;

/// Most volumes in a pool.
pub(crate) const MAX_VOLUMES: usize = 4096;
/// Most snapshots in a pool.
pub(crate) const MAX_SNAPSHOTS: usize = 1 << 15;
/// Most layers: bounds, with the snapshots, the labels of one.
const MAX_LAYERS: usize = 1 << 15;
const _: () = assert!(MAX_LAYERS + MAX_SNAPSHOTS <= MAX_LABELS);
/// Longest chain of ancestors: a lookup of what the oldest holds asks each.
const MAX_DEPTH: usize = 256;
/// Ids of volumes and layers stay below this for ever: hostile ones must not overflow.
const MAX_ID: u32 = 1 << 31;

/// A volume's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeRecord {
    pub(crate) id: u32,
    pub(crate) layer: LayerId,
    pub(crate) size_bytes: u64,
    pub(crate) compression: Compression,
}

/// A snapshot's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotRecord {
    pub(crate) view: View,
    pub(crate) size_bytes: u64,
    pub(crate) compression: Compression,
    pub(crate) created_unix_s: u64,
}

/// All volumes by name, all snapshots, and all layers with their parents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Catalog {
    pub(crate) volumes: BTreeMap<String, VolumeRecord>,
    /// By the volume's number and their own name.
    snapshots: BTreeMap<(u32, String), SnapshotRecord>,
    layers: BTreeMap<LayerId, Option<View>>,
    next_volume: u32,
    next_layer: u32,
}

impl Catalog {
    pub(crate) fn new() -> Self {
        Self {
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            layers: BTreeMap::new(),
            next_volume: 1,
            next_layer: 1,
        }
    }

    /// Adds an empty volume with a layer of its own.
    pub(crate) fn create(&mut self, name: &str, options: &VolumeOptions) -> Result<VolumeRecord> {
        config::validate_name(name)?;
        options.validate(name)?;
        self.add_volume(name, options.size_bytes, options.compression, None)
    }

    /// Adds a volume with what a snapshot holds.
    pub(crate) fn clone_snapshot(
        &mut self,
        snapshot: &SnapshotName,
        name: &str,
    ) -> Result<VolumeRecord> {
        config::validate_name(name)?;
        let SnapshotRecord { view, size_bytes, compression, .. } = *self.snapshot(snapshot)?;
        self.add_volume(name, size_bytes, compression, Some(view))
    }

    fn add_volume(
        &mut self,
        name: &str,
        size_bytes: u64,
        compression: Compression,
        parent: Option<View>,
    ) -> Result<VolumeRecord> {
        if self.volumes.contains_key(name) {
            return Err(EngineError::VolumeExists { volume: name.into() });
        }
        if self.volumes.len() >= MAX_VOLUMES {
            return Err(self.full());
        }
        if self.next_volume >= MAX_ID {
            return Err(EngineError::IdsExhausted);
        }
        let layer = self.add_layer(name, parent)?;
        let volume = VolumeRecord { id: self.next_volume, layer, size_bytes, compression };
        self.next_volume += 1;
        self.volumes.insert(name.into(), volume.clone());
        Ok(volume)
    }

    fn add_layer(&mut self, volume: &str, parent: Option<View>) -> Result<LayerId> {
        if self.next_layer >= MAX_ID {
            return Err(EngineError::IdsExhausted);
        }
        if self.layers.len() >= MAX_LAYERS {
            return Err(self.full());
        }
        let depth = parent.map_or(0, |parent| self.chain(parent).len());
        if depth >= MAX_DEPTH {
            let volume = volume.into();
            return Err(EngineError::TooManyAncestors { volume, generations: MAX_DEPTH });
        }
        let layer = LayerId(self.next_layer);
        self.next_layer += 1;
        self.layers.insert(layer, parent);
        Ok(layer)
    }

    /// Removes a volume, and with `and_snapshots` those that it has.
    pub(crate) fn delete(&mut self, name: &str, and_snapshots: bool) -> Result<VolumeRecord> {
        let volume = self.volume(name)?.clone();
        let snapshots = self.snapshots_of(volume.id).count();
        if snapshots > 0 && !and_snapshots {
            return Err(EngineError::HasSnapshots { volume: name.into(), snapshots });
        }
        self.snapshots.retain(|(id, _), _| *id != volume.id);
        self.volumes.remove(name);
        self.drop_unreadable_layers();
        Ok(volume)
    }

    /// Adds snapshots of volumes as they were at the end of an epoch: all, or none.
    pub(crate) fn add_snapshots(
        &mut self,
        names: &[SnapshotName],
        as_of: Epoch,
        created_unix_s: u64,
    ) -> Result<()> {
        check_distinct(names)?;
        if self.snapshots.len() + names.len() > MAX_SNAPSHOTS {
            return Err(self.full());
        }
        for name in names {
            let VolumeRecord { id, layer, size_bytes, compression } = *self.volume(&name.volume)?;
            let view = View { layer, as_of };
            let snapshot = SnapshotRecord { view, size_bytes, compression, created_unix_s };
            let key = (id, name.snapshot.clone());
            if self.snapshots.insert(key, snapshot).is_some() {
                return Err(EngineError::SnapshotExists { snapshot: name.to_string() });
            }
        }
        Ok(())
    }

    /// Removes snapshots: all, or none.
    pub(crate) fn delete_snapshots(&mut self, names: &[SnapshotName]) -> Result<()> {
        check_distinct(names)?;
        for name in names {
            self.snapshot(name)?;
            let id = self.volume(&name.volume)?.id;
            self.snapshots.remove(&(id, name.snapshot.clone()));
        }
        self.drop_unreadable_layers();
        Ok(())
    }

    /// Gives a volume what one of its snapshots holds: its own layer is no longer written to.
    pub(crate) fn roll_back(&mut self, name: &SnapshotName) -> Result<VolumeRecord> {
        let SnapshotRecord { view, size_bytes, .. } = *self.snapshot(name)?;
        let layer = self.add_layer(&name.volume, Some(view))?;
        let volume = self.volume_mut(&name.volume)?;
        volume.layer = layer;
        volume.size_bytes = size_bytes;
        let volume = volume.clone();
        self.drop_unreadable_layers();
        Ok(volume)
    }

    /// The entry of a volume.
    pub(crate) fn volume(&self, name: &str) -> Result<&VolumeRecord> {
        let missing = || EngineError::NoSuchVolume { volume: name.into() };
        self.volumes.get(name).ok_or_else(missing)
    }

    /// The same, to be changed.
    pub(crate) fn volume_mut(&mut self, name: &str) -> Result<&mut VolumeRecord> {
        let missing = || EngineError::NoSuchVolume { volume: name.into() };
        self.volumes.get_mut(name).ok_or_else(missing)
    }

    /// The entry of a snapshot.
    pub(crate) fn snapshot(&self, name: &SnapshotName) -> Result<&SnapshotRecord> {
        let key = (self.volume(&name.volume)?.id, name.snapshot.clone());
        let missing = || EngineError::NoSuchSnapshot { snapshot: name.to_string() };
        self.snapshots.get(&key).ok_or_else(missing)
    }

    /// A volume's snapshots by name.
    pub(crate) fn snapshots_of(
        &self,
        id: u32,
    ) -> impl Iterator<Item = (&str, &SnapshotRecord)> + use<'_> {
        let from = self.snapshots.range((id, String::new())..);
        let own = from.take_while(move |((of, _), _)| *of == id);
        own.map(|((_, name), snapshot)| (name.as_str(), snapshot))
    }

    /// All snapshots, by volume and name.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = (SnapshotName, &SnapshotRecord)> {
        self.volumes.iter().flat_map(|(volume, record)| {
            self.snapshots_of(record.id).map(move |(snapshot, record)| {
                let (volume, snapshot) = (volume.clone(), snapshot.to_owned());
                (SnapshotName { volume, snapshot }, record)
            })
        })
    }

    /// A view and what it reads through to, newest first.
    pub(crate) fn chain(&self, view: View) -> Vec<View> {
        let mut chain = vec![view];
        let mut at = view.layer;
        while let Some(&Some(parent)) = self.layers.get(&at) {
            chain.push(parent);
            at = parent.layer;
        }
        chain
    }

    /// The newest epoch as of which something is read.
    pub(crate) fn newest_label(&self) -> Option<Epoch> {
        let snapshots = self.snapshots.values().map(|snapshot| snapshot.view.as_of);
        snapshots.chain(self.layers.values().flatten().map(|parent| parent.as_of)).max()
    }

    /// A layer that `is_wanted`, and its view of a parent that nothing else reads and that has no parent
    /// itself: what the view holds can become the layer's own.
    pub(crate) fn adoptable(&self, is_wanted: impl Fn(LayerId) -> bool) -> Option<(LayerId, View)> {
        self.layers.values().flatten().next()?;
        let mut taken: BTreeSet<_> = self.volumes.values().map(|volume| volume.layer).collect();
        taken.extend(self.snapshots.values().map(|snapshot| snapshot.view.layer));
        let mut children: BTreeMap<LayerId, usize> = BTreeMap::new();
        for parent in self.layers.values().flatten() {
            *children.entry(parent.layer).or_default() += 1;
        }
        self.layers.iter().find_map(|(&layer, parent)| {
            let parent = (*parent)?;
            let is_root = self.layers.get(&parent.layer) == Some(&None);
            let is_free = !taken.contains(&parent.layer) && children[&parent.layer] == 1;
            (is_root && is_free && is_wanted(layer)).then_some((layer, parent))
        })
    }

    /// The layer has all that it saw of its parent, which is gone if nothing else reads it.
    pub(crate) fn leave_parent(&mut self, layer: LayerId) {
        if let Some(parent) = self.layers.get_mut(&layer) {
            *parent = None;
        }
        self.drop_unreadable_layers();
    }

    /// The epochs as of which snapshots, and layers that have it as their parent, read a layer.
    pub(crate) fn labels(&self, layer: LayerId) -> impl Iterator<Item = Epoch> {
        let snapshots = self.snapshots.values().map(|snapshot| snapshot.view);
        let views = snapshots.chain(self.layers.values().flatten().copied());
        views.filter(move |view| view.layer == layer).map(|view| view.as_of)
    }

    /// Whether the layer was one of a volume that is gone by now.
    pub(crate) fn is_former(&self, layer: LayerId) -> bool {
        layer.0 > 0
            && layer.0 < self.next_layer
            && self.volumes.values().all(|volume| volume.layer != layer)
    }

    /// What merges need to know of each layer that can be read; others are dead.
    pub(crate) fn visibilities(&self) -> BTreeMap<LayerId, Visibility> {
        let mut labels: BTreeMap<LayerId, Vec<Epoch>> = BTreeMap::new();
        let parents = self.layers.values().flatten();
        for view in self.snapshots.values().map(|snapshot| &snapshot.view).chain(parents) {
            labels.entry(view.layer).or_default().push(view.as_of);
        }
        let live: BTreeSet<_> = self.volumes.values().map(|volume| volume.layer).collect();
        let visibility = |(&layer, parent): (&LayerId, &Option<View>)| {
            let labels = labels.remove(&layer).unwrap_or_default();
            (layer, Visibility::new(live.contains(&layer), parent.is_some(), labels))
        };
        self.layers.iter().map(visibility).collect()
    }

    /// Drops the layers through which nothing can be read any more.
    fn drop_unreadable_layers(&mut self) {
        let mut readable: BTreeSet<_> = self.volumes.values().map(|volume| volume.layer).collect();
        readable.extend(self.snapshots.values().map(|snapshot| snapshot.view.layer));
        // A parent is older than its children, so these come first.
        for (layer, parent) in self.layers.iter().rev() {
            if let Some(parent) = parent
                && readable.contains(layer)
            {
                readable.insert(parent.layer);
            }
        }
        self.layers.retain(|layer, _| readable.contains(layer));
    }

    pub(crate) fn full(&self) -> EngineError {
        EngineError::CatalogFull { volumes: self.volumes.len(), snapshots: self.snapshots.len() }
    }

    /// Refuses more than a checkpoint record of `max_body_bytes` has room for: half of it is the
    /// patches'.
    pub(crate) fn check_fits(&self, max_body_bytes: u64) -> Result<()> {
        if self.encoded_bytes() > max_body_bytes / 2 { Err(self.full()) } else { Ok(()) }
    }
}

/// Whether each snapshot is named once.
fn check_distinct(names: &[SnapshotName]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(twice) => Err(EngineError::NamedTwice { snapshot: twice.to_string() }),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "catalog/tests.rs"]
mod tests;
