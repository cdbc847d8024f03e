//! The catalog's bytes in a checkpoint record.
//!
//! ```text
//! head | layers by id | volumes, each with its name | snapshots, each with its name
//! ```

use std::collections::{BTreeMap, BTreeSet};

use siltstone_cursor::{Epoch, View};
use siltstone_device::LayerId;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{
    Catalog, MAX_DEPTH, MAX_ID, MAX_LAYERS, MAX_SNAPSHOTS, MAX_VOLUMES, SnapshotRecord,
    VolumeRecord,
};
use crate::{
    compression::{Compression, FrameSize, Levels},
    config::{self, VolumeOptions},
    epochs::MAX_EPOCH,
    error::MetadataError,
};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskHead {
    volume_count: U32,
    layer_count: U32,
    snapshot_count: U32,
    next_volume: U32,
    next_layer: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<DiskHead>() == 24);

/// A layer on disk. 16 bytes; parent 0 = none.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskLayer {
    id: U32,
    parent: U32,
    /// The end of this epoch is what it sees of the parent.
    parent_as_of: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<DiskLayer>() == 16);

/// A volume on disk, followed by its name. 32 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskVolume {
    id: U32,
    layer: U32,
    size_bytes: U64,
    /// The key that encrypts it; 0 = none, the only value so far.
    key: U32,
    /// When much is waiting.
    level: i8,
    /// By how much the level is higher when there is time.
    idle_levels_more: u8,
    /// How often its frames are half as long.
    frame_halvings: u8,
    reserved: [u8; 7],
    name_bytes: U16,
}
const _: () = assert!(size_of::<DiskVolume>() == 32);

/// A snapshot on disk, followed by its name. 40 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskSnapshot {
    volume: U32,
    layer: U32,
    as_of: U32,
    reserved: U32,
    size_bytes: U64,
    created_unix_s: U64,
    level: i8,
    idle_levels_more: u8,
    frame_halvings: u8,
    reserved_too: [u8; 3],
    name_bytes: U16,
}
const _: () = assert!(size_of::<DiskSnapshot>() == 40);

impl Catalog {
    /// Bytes that the catalog takes in a checkpoint record.
    pub(crate) fn encoded_bytes(&self) -> u64 {
        let names = self.volumes.keys().chain(self.snapshots.keys().map(|(_, name)| name));
        let names: usize = names.map(String::len).sum();
        let volumes = self.volumes.len() * size_of::<DiskVolume>();
        let snapshots = self.snapshots.len() * size_of::<DiskSnapshot>();
        let layers = self.layers.len() * size_of::<DiskLayer>();
        (size_of::<DiskHead>() + volumes + snapshots + layers + names) as u64
    }

    /// The catalog as it lies in a checkpoint record.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let head = DiskHead {
            volume_count: U32::new(self.volumes.len() as u32),
            layer_count: U32::new(self.layers.len() as u32),
            snapshot_count: U32::new(self.snapshots.len() as u32),
            next_volume: U32::new(self.next_volume),
            next_layer: U32::new(self.next_layer),
            reserved: U32::ZERO,
        };
        out.extend_from_slice(head.as_bytes());
        for (&id, parent) in &self.layers {
            let (parent, as_of) = parent.map_or((0, 0), |view| (view.layer.0, view.as_of.0));
            let layer = DiskLayer {
                id: U32::new(id.0),
                parent: U32::new(parent),
                parent_as_of: U32::new(as_of),
                reserved: U32::ZERO,
            };
            out.extend_from_slice(layer.as_bytes());
        }
        for (name, volume) in &self.volumes {
            let disk = DiskVolume {
                id: U32::new(volume.id),
                layer: U32::new(volume.layer.0),
                size_bytes: U64::new(volume.size_bytes),
                key: U32::ZERO,
                level: volume.compression.levels.busy(),
                idle_levels_more: idle_levels_more(volume.compression.levels),
                frame_halvings: volume.compression.frame.halvings(),
                reserved: [0; 7],
                name_bytes: U16::new(name.len() as u16),
            };
            out.extend_from_slice(disk.as_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        for ((volume, name), snapshot) in &self.snapshots {
            let disk = DiskSnapshot {
                volume: U32::new(*volume),
                layer: U32::new(snapshot.view.layer.0),
                as_of: U32::new(snapshot.view.as_of.0),
                reserved: U32::ZERO,
                size_bytes: U64::new(snapshot.size_bytes),
                created_unix_s: U64::new(snapshot.created_unix_s),
                level: snapshot.compression.levels.busy(),
                idle_levels_more: idle_levels_more(snapshot.compression.levels),
                frame_halvings: snapshot.compression.frame.halvings(),
                reserved_too: [0; 3],
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
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, MetadataError> {
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
        if head.snapshot_count.get() as usize > MAX_SNAPSHOTS {
            return Err(wrong("number of snapshots", head.snapshot_count.get().into()));
        }
        if head.layer_count.get() as usize > MAX_LAYERS {
            return Err(wrong("number of layers", head.layer_count.get().into()));
        }
        // Of the layers so far; children come after their parents.
        let mut depths: BTreeMap<LayerId, usize> = BTreeMap::new();
        for _ in 0..head.layer_count.get() {
            let (layer, after) = DiskLayer::read_from_prefix(rest).map_err(|_| short())?;
            rest = after;
            catalog.decode_layer(&layer, &mut depths)?;
        }
        let (mut ids, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..head.volume_count.get() {
            let (volume, after) = DiskVolume::read_from_prefix(rest).map_err(|_| short())?;
            let (name, after) = split_name(after, volume.name_bytes)?;
            rest = after;
            let record = decode_volume(&volume, name)?;
            if !catalog.layers.contains_key(&record.layer) || !layers.insert(record.layer) {
                return Err(wrong("layer of a volume", record.layer.0.into()));
            }
            let known = 1..catalog.next_volume;
            if !known.contains(&record.id) || !ids.insert(record.id) {
                return Err(wrong("volume", record.id.into()));
            }
            if catalog.volumes.insert(name.into(), record).is_some() {
                return Err(wrong("name given twice, of length", name.len() as u64));
            }
        }
        for _ in 0..head.snapshot_count.get() {
            let (snapshot, after) = DiskSnapshot::read_from_prefix(rest).map_err(|_| short())?;
            let (name, after) = split_name(after, snapshot.name_bytes)?;
            rest = after;
            let (volume, record) = decode_snapshot(&snapshot, name)?;
            if !ids.contains(&volume) {
                return Err(wrong("volume of a snapshot", volume.into()));
            }
            if !catalog.layers.contains_key(&record.view.layer) {
                return Err(wrong("layer of a snapshot", record.view.layer.0.into()));
            }
            if catalog.snapshots.insert((volume, name.into()), record).is_some() {
                return Err(wrong("name given twice, of length", name.len() as u64));
            }
        }
        if !rest.is_empty() {
            return Err(wrong("length behind the last snapshot", rest.len() as u64));
        }
        Ok(catalog)
    }

    fn decode_layer(
        &mut self,
        layer: &DiskLayer,
        depths: &mut BTreeMap<LayerId, usize>,
    ) -> Result<(), MetadataError> {
        let id = LayerId(layer.id.get());
        let as_of = Epoch(layer.parent_as_of.get());
        let parent = match layer.parent.get() {
            0 => None,
            parent => Some(View { layer: LayerId(parent), as_of }),
        };
        if as_of >= MAX_EPOCH {
            return Err(wrong("epoch", as_of.0.into()));
        }
        // A parent is older than its child, which rules cycles out.
        let ascends = depths.last_key_value().is_none_or(|(&last, _)| last < id);
        let depth = parent.map_or(Some(0), |parent| depths.get(&parent.layer).copied());
        let Some(depth) = depth.filter(|_| id.0 > 0 && id.0 < self.next_layer && ascends) else {
            return Err(wrong("layer", id.0.into()));
        };
        if depth >= MAX_DEPTH {
            return Err(wrong("depth of layers", depth as u64));
        }
        depths.insert(id, depth + 1);
        self.layers.insert(id, parent);
        Ok(())
    }
}

fn wrong(field: &'static str, value: u64) -> MetadataError {
    MetadataError::Inconsistent { structure: "catalog", field, value }
}

/// A name of so many bytes, and what follows it.
fn split_name(bytes: &[u8], name_bytes: U16) -> Result<(&str, &[u8]), MetadataError> {
    let wrong = || wrong("name", name_bytes.get().into());
    let (name, rest) = bytes.split_at_checked(name_bytes.get().into()).ok_or_else(wrong)?;
    let name = std::str::from_utf8(name).map_err(|_| wrong())?;
    config::validate_name(name).map_err(|_| wrong())?;
    Ok((name, rest))
}

fn idle_levels_more(levels: Levels) -> u8 {
    levels.idle().abs_diff(levels.busy())
}

fn decode_compression(busy: i8, idle_levels_more: u8, frame_halvings: u8) -> Option<Compression> {
    let levels = Levels::new(busy, busy.checked_add_unsigned(idle_levels_more)?).ok()?;
    Some(Compression { levels, frame: FrameSize::halved(frame_halvings)? })
}

fn decode_volume(volume: &DiskVolume, name: &str) -> Result<VolumeRecord, MetadataError> {
    let record = VolumeRecord {
        id: volume.id.get(),
        layer: LayerId(volume.layer.get()),
        size_bytes: volume.size_bytes.get(),
        compression: decode_compression(
            volume.level,
            volume.idle_levels_more,
            volume.frame_halvings,
        )
        .ok_or_else(|| wrong("volume", volume.id.get().into()))?,
    };
    if VolumeOptions::new(record.size_bytes).validate(name).is_err() || volume.key.get() != 0 {
        return Err(wrong("volume", record.id.into()));
    }
    Ok(record)
}

fn decode_snapshot(
    snapshot: &DiskSnapshot,
    name: &str,
) -> Result<(u32, SnapshotRecord), MetadataError> {
    let (layer, as_of) = (LayerId(snapshot.layer.get()), Epoch(snapshot.as_of.get()));
    let record = SnapshotRecord {
        view: View { layer, as_of },
        size_bytes: snapshot.size_bytes.get(),
        compression: decode_compression(
            snapshot.level,
            snapshot.idle_levels_more,
            snapshot.frame_halvings,
        )
        .ok_or_else(|| wrong("snapshot of volume", snapshot.volume.get().into()))?,
        created_unix_s: snapshot.created_unix_s.get(),
    };
    if VolumeOptions::new(record.size_bytes).validate(name).is_err() || as_of >= MAX_EPOCH {
        return Err(wrong("snapshot of volume", snapshot.volume.get().into()));
    }
    Ok((snapshot.volume.get(), record))
}

#[cfg(test)]
#[path = "codec/tests.rs"]
mod tests;
