//! The catalog: which volumes there are, and the layers that hold their blocks.
//!
//! It lies in the checkpoint record, so that a change of it is as atomic as a checkpoint. A volume
//! writes to one layer; a layer may name a parent, which then never changes any more (snapshots
//! and clones). Ids are never used twice.

use std::collections::{BTreeMap, BTreeSet};

use siltstone_cursor::{View, Visibility};
use siltstone_device::LayerId;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::{
    config::{self, VolumeOptions},
    error::{EngineError, MetadataError, Result},
};

/// Most volumes in a pool.
pub(crate) const MAX_VOLUMES: usize = 4096;
/// Longest chain of ancestors that is followed.
const MAX_DEPTH: u32 = 4096;
/// Ids of volumes and layers stay below this for ever: hostile ones must not overflow.
const MAX_ID: u32 = 1 << 31;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskHead {
    volume_count: U32,
    layer_count: U32,
    next_volume: U32,
    next_layer: U32,
}
const _: () = assert!(size_of::<DiskHead>() == 16);

/// A volume on disk, followed by its name. 32 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskVolume {
    id: U32,
    layer: U32,
    size_bytes: U64,
    /// The key that encrypts it; 0 = none, the only value so far.
    key: U32,
    level: i8,
    reserved: [u8; 9],
    name_bytes: U16,
}
const _: () = assert!(size_of::<DiskVolume>() == 32);

/// A layer on disk. 8 bytes; parent 0 = none.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskLayer {
    id: U32,
    parent: U32,
}
const _: () = assert!(size_of::<DiskLayer>() == 8);

/// A volume's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeRecord {
    pub(crate) id: u32,
    pub(crate) layer: LayerId,
    pub(crate) size_bytes: u64,
    pub(crate) level: i8,
}

/// All volumes by name and all layers with their parents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Catalog {
    pub(crate) volumes: BTreeMap<String, VolumeRecord>,
    pub(crate) layers: BTreeMap<LayerId, Option<LayerId>>,
    next_volume: u32,
    next_layer: u32,
}

impl Catalog {
    pub(crate) fn new() -> Self {
        Self { volumes: BTreeMap::new(), layers: BTreeMap::new(), next_volume: 1, next_layer: 1 }
    }

    /// Adds an empty volume with a layer of its own.
    pub(crate) fn create(&mut self, name: &str, options: &VolumeOptions) -> Result<VolumeRecord> {
        config::validate_name(name)?;
        options.validate(name)?;
        if self.volumes.contains_key(name) {
            return Err(EngineError::VolumeExists { volume: name.into() });
        }
        if self.volumes.len() >= MAX_VOLUMES {
            return Err(EngineError::CatalogFull { volumes: self.volumes.len() });
        }
        if self.next_layer >= MAX_ID || self.next_volume >= MAX_ID {
            return Err(EngineError::IdsExhausted);
        }
        let layer = LayerId(self.next_layer);
        let volume = VolumeRecord {
            id: self.next_volume,
            layer,
            size_bytes: options.size_bytes,
            level: options.level,
        };
        self.next_layer += 1;
        self.next_volume += 1;
        self.layers.insert(layer, None);
        self.volumes.insert(name.into(), volume.clone());
        Ok(volume)
    }

    /// Removes a volume and its layer.
    pub(crate) fn delete(&mut self, name: &str) -> Result<VolumeRecord> {
        let Some(volume) = self.volumes.remove(name) else {
            return Err(EngineError::NoSuchVolume { volume: name.into() });
        };
        self.layers.remove(&volume.layer);
        Ok(volume)
    }

    /// The entry of a volume.
    pub(crate) fn volume_mut(&mut self, name: &str) -> Result<&mut VolumeRecord> {
        let missing = || EngineError::NoSuchVolume { volume: name.into() };
        self.volumes.get_mut(name).ok_or_else(missing)
    }

    /// A layer and its ancestors, newest first.
    pub(crate) fn chain(&self, layer: LayerId) -> Vec<View> {
        let mut chain = vec![View::live(layer)];
        let mut at = layer;
        while let Some(&Some(parent)) = self.layers.get(&at) {
            chain.push(View::live(parent));
            at = parent;
        }
        chain
    }

    /// What merges need to know of a layer.
    pub(crate) fn visibility(&self, layer: LayerId) -> Visibility {
        match self.layers.get(&layer) {
            None => Visibility::dead(),
            Some(parent) => Visibility::new(true, parent.is_some(), Vec::new()),
        }
    }

    /// Bytes that the catalog takes in a checkpoint record.
    pub(crate) fn encoded_bytes(&self) -> u64 {
        let names: usize = self.volumes.keys().map(String::len).sum();
        let volumes = self.volumes.len() * size_of::<DiskVolume>() + names;
        let layers = self.layers.len() * size_of::<DiskLayer>();
        (size_of::<DiskHead>() + volumes + layers) as u64
    }

    /// The catalog as it lies in a checkpoint record.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let head = DiskHead {
            volume_count: U32::new(self.volumes.len() as u32),
            layer_count: U32::new(self.layers.len() as u32),
            next_volume: U32::new(self.next_volume),
            next_layer: U32::new(self.next_layer),
        };
        out.extend_from_slice(head.as_bytes());
        for (&id, parent) in &self.layers {
            let parent = parent.map_or(0, |parent| parent.0);
            let layer = DiskLayer { id: U32::new(id.0), parent: U32::new(parent) };
            out.extend_from_slice(layer.as_bytes());
        }
        for (name, volume) in &self.volumes {
            let disk = DiskVolume {
                id: U32::new(volume.id),
                layer: U32::new(volume.layer.0),
                size_bytes: U64::new(volume.size_bytes),
                key: U32::ZERO,
                level: volume.level,
                reserved: [0; 9],
                name_bytes: U16::new(name.len() as u16),
            };
            out.extend_from_slice(disk.as_bytes());
            out.extend_from_slice(name.as_bytes());
        }
    }

    /// Reads a catalog back.
    ///
    /// # Errors
    /// [`MetadataError::Inconsistent`] for whatever cannot be a catalog, cycles included.
    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, MetadataError> {
        let wrong =
            |field, value: u64| MetadataError::Inconsistent { structure: "catalog", field, value };
        let short = || wrong("length", bytes.len() as u64);
        let (head, mut rest) = DiskHead::read_from_prefix(bytes).map_err(|_| short())?;
        let mut catalog = Self::new();
        catalog.next_volume = head.next_volume.get();
        catalog.next_layer = head.next_layer.get();
        for next in [catalog.next_volume, catalog.next_layer] {
            if !(1..=MAX_ID).contains(&next) {
                return Err(wrong("next number", next.into()));
            }
        }
        if head.volume_count.get() as usize > MAX_VOLUMES {
            return Err(wrong("number of volumes", head.volume_count.get().into()));
        }
        // Of the layers so far; children come after their parents.
        let mut depths: BTreeMap<LayerId, u32> = BTreeMap::new();
        for _ in 0..head.layer_count.get() {
            let (layer, after) = DiskLayer::read_from_prefix(rest).map_err(|_| short())?;
            rest = after;
            let parent = match layer.parent.get() {
                0 => None,
                parent => Some(LayerId(parent)),
            };
            // A parent is older than its child, which rules cycles out.
            let id = LayerId(layer.id.get());
            let ascends = depths.last_key_value().is_none_or(|(&last, _)| last < id);
            let depth = parent.map_or(Some(0), |parent| depths.get(&parent).copied());
            let Some(depth) = depth.filter(|_| id.0 > 0 && id.0 < catalog.next_layer && ascends)
            else {
                return Err(wrong("layer", id.0.into()));
            };
            if depth >= MAX_DEPTH {
                return Err(wrong("depth of layers", depth.into()));
            }
            depths.insert(id, depth + 1);
            catalog.layers.insert(id, parent);
        }
        let (mut ids, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..head.volume_count.get() {
            let (volume, after) = DiskVolume::read_from_prefix(rest).map_err(|_| short())?;
            let name_bytes = usize::from(volume.name_bytes.get());
            let (name, after) = after.split_at_checked(name_bytes).ok_or_else(short)?;
            rest = after;
            let name = std::str::from_utf8(name).map_err(|_| wrong("name", name_bytes as u64))?;
            let record = VolumeRecord {
                id: volume.id.get(),
                layer: LayerId(volume.layer.get()),
                size_bytes: volume.size_bytes.get(),
                level: volume.level,
            };
            let options = VolumeOptions { size_bytes: record.size_bytes, level: record.level };
            if config::validate_name(name).is_err() {
                return Err(wrong("name", name_bytes as u64));
            }
            if options.validate(name).is_err() || volume.key.get() != 0 {
                return Err(wrong("volume", record.id.into()));
            }
            if !catalog.layers.contains_key(&record.layer) || !layers.insert(record.layer) {
                return Err(wrong("layer of a volume", record.layer.0.into()));
            }
            let known = 1..catalog.next_volume;
            if !known.contains(&record.id) || !ids.insert(record.id) {
                return Err(wrong("volume", record.id.into()));
            }
            if catalog.volumes.insert(name.into(), record).is_some() {
                return Err(wrong("name given twice, of length", name_bytes as u64));
            }
        }
        if !rest.is_empty() {
            return Err(wrong("length behind the last volume", rest.len() as u64));
        }
        Ok(catalog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_survives_encoding_and_truncation_is_an_error() {
        let mut catalog = Catalog::new();
        for name in ["root", "döner", "a b"] {
            catalog.create(name, &VolumeOptions::new(1 << 20).with_level(3)).unwrap();
        }
        catalog.delete("root").unwrap();
        let mut bytes = Vec::new();
        catalog.encode(&mut bytes);
        assert_eq!(Catalog::decode(&bytes).unwrap(), catalog);
        assert_eq!(bytes.len() as u64, catalog.encoded_bytes());
        for len in 0..bytes.len() {
            assert!(Catalog::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        bytes.push(0);
        assert!(Catalog::decode(&bytes).is_err(), "a byte follows");
    }

    /// What no program of ours writes is refused, before it makes counting overflow, one layer serve
    /// two volumes, or a walk over the layers take for ever.
    #[test]
    fn hostile_numbers_are_refused() {
        let mut good = Catalog::new();
        for name in ["a", "b"] {
            good.create(name, &VolumeOptions::new(4096)).unwrap();
        }
        let refused = |what: &str, change: &dyn Fn(&mut Catalog)| {
            let mut catalog = good.clone();
            change(&mut catalog);
            let mut bytes = Vec::new();
            catalog.encode(&mut bytes);
            assert!(Catalog::decode(&bytes).is_err(), "{what}");
        };
        fn volume(catalog: &mut Catalog) -> &mut VolumeRecord {
            catalog.volume_mut("b").expect("it is there")
        }
        refused("a next layer beyond counting", &|c| c.next_layer = u32::MAX);
        refused("a next volume beyond counting", &|c| c.next_volume = MAX_ID + 1);
        refused("a next volume of 0", &|c| c.next_volume = 0);
        refused("a next layer that is taken", &|c| c.next_layer = 2);
        refused("a next volume that is taken", &|c| c.next_volume = 2);
        refused("a volume without a number", &|c| volume(c).id = 0);
        refused("two volumes of one number", &|c| volume(c).id = 1);
        refused("two volumes of one layer", &|c| volume(c).layer = LayerId(1));
        refused("a layer that is not there", &|c| volume(c).layer = LayerId(3));
        refused("a parent that is not there", &|c| {
            c.layers.remove(&LayerId(1));
            c.volumes.remove("a");
            c.layers.insert(LayerId(2), Some(LayerId(1)));
        });
        refused("a chain that is too long", &|c| {
            c.next_layer = MAX_DEPTH + 2;
            let chain = (2..MAX_DEPTH + 2).map(|id| (LayerId(id), Some(LayerId(id - 1))));
            c.layers.extend(chain);
        });

        let mut last = Catalog { next_layer: MAX_ID, ..Catalog::new() };
        let mut bytes = Vec::new();
        last.encode(&mut bytes);
        assert_eq!(Catalog::decode(&bytes).unwrap(), last);
        let error = last.create("c", &VolumeOptions::new(4096)).unwrap_err();
        assert!(matches!(error, EngineError::IdsExhausted), "{error}");
    }

    #[test]
    fn names_and_sizes_that_cannot_be_are_refused() {
        let mut catalog = Catalog::new();
        for name in ["", "a/b", "a@b", "a\nb", &"x".repeat(256)] {
            let refused = catalog.create(name, &VolumeOptions::new(4096));
            assert!(matches!(refused, Err(EngineError::InvalidName { .. })), "{name}");
        }
        for size in [0, 511, 513, u64::MAX] {
            let refused = catalog.create("v", &VolumeOptions::new(size));
            assert!(matches!(refused, Err(EngineError::InvalidSize { .. })), "{size}");
        }
        assert_eq!(catalog, Catalog::new());
    }
}
