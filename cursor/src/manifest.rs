//! The manifest: which patches make up the map. The engine stores it in every checkpoint.
//!
//! | part | bytes |
//! |---|---|
//! | head | 40 |
//! | for each patch: record | 96 |
//! | its page extents | 12 each |
//! | its layers | 20 each |
//!
//! The checkpoint around it has magic, version and checksum; here every count is bounded by the
//! bytes that are there, and what no writer writes is refused.

use std::{collections::BTreeMap, sync::Arc};

use siltstone_device::{ByteOffset, LayerId, SegmentId};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::{
    epoch::Epoch,
    extent::{Key, MAX_BLOCKS},
    leaf::MAX_LEAF_ENTRIES,
    patch::{HeldLayer, MAX_LEVELS, PageExtent, Patch},
};

const VERSION: u16 = 2;

/// More patches than can be written; leaves room to count on.
const MAX_PATCHES: u64 = u64::MAX >> 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ManifestHead {
    version: U16,
    /// 1 if `open_segment` is one.
    has_open_segment: U16,
    open_segment: U32,
    open_page: U32,
    patch_count: U32,
    next_patch: U64,
    reserved: [u8; 16],
}
const _: () = assert!(size_of::<ManifestHead>() == 40);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PatchRecord {
    id: U64,
    root_address: U64,
    root_checksum: U32,
    root_height: u8,
    level: u8,
    /// Bit 0: draining.
    flags: U16,
    first_address: U64,
    last_address: U64,
    first_layer: U32,
    last_layer: U32,
    entries: U64,
    holes: U64,
    extent_count: U32,
    layer_count: U32,
    reserved: [u8; 24],
}
const _: () = assert!(size_of::<PatchRecord>() == 96);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtentRecord {
    segment: U32,
    first_page: U32,
    count: U32,
}
const _: () = assert!(size_of::<ExtentRecord>() == 12);

/// What a patch holds of a layer.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LayerRecord {
    layer: U32,
    /// The latest epoch of an entry.
    newest: U32,
    /// Versions that have a newer one in the patch are there for labels from this epoch on,
    older_from: U32,
    /// and before this one.
    older_to: U32,
    /// So many labels lay there when the patch was written.
    labels: U32,
}
const _: () = assert!(size_of::<LayerRecord>() == 20);

/// Why bytes are not a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The layout is not known.
    #[error("the map's manifest has version {found}; this program knows {VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The bytes end before the manifest does.
    #[error("the map's manifest is cut short in its {part}")]
    Short {
        /// Where it ended.
        part: &'static str,
    },
    /// There are bytes after the end.
    #[error("the map's manifest has {len_bytes} bytes after its end")]
    Trailing {
        /// How many.
        len_bytes: usize,
    },
    /// A patch's record says what no writer writes.
    #[error("the map's manifest has an impossible record of patch {patch}: its {field}")]
    Patch {
        /// The patch.
        patch: u64,
        /// What is impossible about it.
        field: &'static str,
    },
    /// Two patches of one level claim the same keys, or two the same number.
    #[error("patches {patch} and {other} of the map's manifest exclude each other")]
    Conflict {
        /// One patch.
        patch: u64,
        /// The other.
        other: u64,
    },
}

/// Where the next page of a patch goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The open segment, if any.
    pub(crate) segment: Option<SegmentId>,
    /// Its first free page.
    pub(crate) next_page: u32,
}

/// Which patches make up the map, and where the next one goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    pub(crate) patches: Vec<Arc<Patch>>,
    pub(crate) next_patch: u64,
    pub(crate) tail: Tail,
}

impl Manifest {
    /// The manifest of a map without entries.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// The number of patches.
    #[must_use]
    pub fn patch_count(&self) -> usize {
        self.patches.len()
    }

    /// The metadata segment that is being appended to.
    #[must_use]
    pub fn open_segment(&self) -> Option<SegmentId> {
        self.tail.segment
    }

    /// By metadata segment: the pages that patches have in it, and one more in the open segment.
    /// This is the sum of [`Edit::pages`](crate::Edit::pages) since the pool was created.
    #[must_use]
    pub fn pages(&self) -> BTreeMap<SegmentId, u64> {
        let mut pages = BTreeMap::new();
        for extent in self.patches.iter().flat_map(|patch| &patch.pages) {
            *pages.entry(extent.segment).or_default() += u64::from(extent.count);
        }
        if let Some(open) = self.tail.segment {
            *pages.entry(open).or_default() += 1;
        }
        pages
    }

    /// The manifest as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let head = ManifestHead {
            version: U16::new(VERSION),
            has_open_segment: U16::new(self.tail.segment.is_some().into()),
            open_segment: U32::new(self.tail.segment.map_or(0, |segment| segment.0)),
            open_page: U32::new(self.tail.next_page),
            patch_count: U32::new(self.patches.len() as u32),
            next_patch: U64::new(self.next_patch),
            reserved: [0; 16],
        };
        let mut bytes = head.as_bytes().to_vec();
        for patch in &self.patches {
            encode_patch(patch, &mut bytes);
        }
        bytes
    }

    /// The manifest that [`encode`](Self::encode) made into `bytes`.
    ///
    /// # Errors
    /// If no writer wrote these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let short = |part| ManifestError::Short { part };
        let (head, mut rest) = ManifestHead::read_from_prefix(bytes).map_err(|_| short("head"))?;
        if head.version.get() != VERSION {
            return Err(ManifestError::Version { found: head.version.get() });
        }
        let count = head.patch_count.get() as usize;
        if count > rest.len() / size_of::<PatchRecord>() {
            return Err(short("patches"));
        }
        let next_patch = head.next_patch.get();
        let mut patches = Vec::with_capacity(count);
        for _ in 0..count {
            let (record, after) =
                PatchRecord::read_from_prefix(rest).map_err(|_| short("patches"))?;
            let extents = record.extent_count.get() as usize;
            let (extents, after) = <[ExtentRecord]>::ref_from_prefix_with_elems(after, extents)
                .map_err(|_| short("page extents"))?;
            let layers = record.layer_count.get() as usize;
            let (layers, after) = <[LayerRecord]>::ref_from_prefix_with_elems(after, layers)
                .map_err(|_| short("layers"))?;
            patches.push(Arc::new(decode_patch(&record, extents, layers, next_patch)?));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(ManifestError::Trailing { len_bytes: rest.len() });
        }
        refuse_conflicts(&patches)?;
        let segment =
            (head.has_open_segment.get() != 0).then(|| SegmentId(head.open_segment.get()));
        let tail = Tail { segment, next_page: head.open_page.get() };
        Ok(Self { patches, next_patch, tail })
    }
}

fn encode_patch(patch: &Patch, bytes: &mut Vec<u8>) {
    let record = PatchRecord {
        id: U64::new(patch.id),
        root_address: U64::new(patch.root_address.0),
        root_checksum: U32::new(patch.root_checksum),
        root_height: patch.root_height,
        level: patch.level,
        flags: U16::new(patch.draining.into()),
        first_address: U64::new(patch.first.address.0),
        last_address: U64::new(patch.last.address.0),
        first_layer: U32::new(patch.first.layer.0),
        last_layer: U32::new(patch.last.layer.0),
        entries: U64::new(patch.entries),
        holes: U64::new(patch.holes),
        extent_count: U32::new(patch.pages.len() as u32),
        layer_count: U32::new(patch.layers.len() as u32),
        reserved: [0; 24],
    };
    bytes.extend_from_slice(record.as_bytes());
    for extent in &patch.pages {
        let record = ExtentRecord {
            segment: U32::new(extent.segment.0),
            first_page: U32::new(extent.first_page),
            count: U32::new(extent.count),
        };
        bytes.extend_from_slice(record.as_bytes());
    }
    for held in &patch.layers {
        let record = LayerRecord {
            layer: U32::new(held.layer.0),
            newest: U32::new(held.newest.0),
            older_from: U32::new(held.older_from.0),
            older_to: U32::new(held.older_to.0),
            labels: U32::new(held.labels),
        };
        bytes.extend_from_slice(record.as_bytes());
    }
}

fn decode_patch(
    record: &PatchRecord,
    extents: &[ExtentRecord],
    layers: &[LayerRecord],
    next_patch: u64,
) -> Result<Patch, ManifestError> {
    let id = record.id.get();
    let patch = Patch {
        id,
        level: record.level,
        draining: record.flags.get() & 1 != 0,
        root_address: ByteOffset(record.root_address.get()),
        root_checksum: record.root_checksum.get(),
        root_height: record.root_height,
        first: Key::new(LayerId(record.first_layer.get()), record.first_address.get()),
        last: Key::new(LayerId(record.last_layer.get()), record.last_address.get()),
        entries: record.entries.get(),
        holes: record.holes.get(),
        layers: layers
            .iter()
            .map(|record| HeldLayer {
                layer: LayerId(record.layer.get()),
                newest: Epoch(record.newest.get()),
                older_from: Epoch(record.older_from.get()),
                older_to: Epoch(record.older_to.get()),
                labels: record.labels.get(),
            })
            .collect(),
        pages: extents
            .iter()
            .map(|extent| PageExtent {
                segment: SegmentId(extent.segment.get()),
                first_page: extent.first_page.get(),
                count: extent.count.get(),
            })
            .collect(),
    };
    let impossible = |field| Err(ManifestError::Patch { patch: id, field });
    if id >= next_patch || next_patch > MAX_PATCHES {
        return impossible("number");
    }
    if usize::from(patch.level) >= MAX_LEVELS {
        return impossible("level");
    }
    if record.flags.get() > 1 {
        return impossible("flags");
    }
    // A root this high would stand over more pages than any device holds.
    if patch.root_height > 8 {
        return impossible("root height");
    }
    let last = patch.last.address.0;
    if patch.first > patch.last || last >= MAX_BLOCKS || patch.first.address.0 > MAX_BLOCKS {
        return impossible("key range");
    }
    let ends = patch.pages.iter().map(|extent| extent.first_page.checked_add(extent.count));
    if patch.pages.is_empty() || ends.into_iter().any(|end| end.is_none()) {
        return impossible("page extents");
    }
    let room = patch.page_count().saturating_mul(MAX_LEAF_ENTRIES as u64);
    if patch.entries > room || patch.holes > patch.entries {
        return impossible("number of entries");
    }
    let ascending = patch.layers.is_sorted_by(|one, next| one.layer < next.layer);
    if !ascending || patch.layers.iter().any(|held| held.older_from > held.older_to) {
        return impossible("layers");
    }
    Ok(patch)
}

/// Refuses two patches of one number, and overlapping patches in one level below 0.
fn refuse_conflicts(patches: &[Arc<Patch>]) -> Result<(), ManifestError> {
    let conflict =
        |pair: &[&Arc<Patch>]| ManifestError::Conflict { patch: pair[0].id, other: pair[1].id };
    let mut order: Vec<_> = patches.iter().collect();
    order.sort_by_key(|patch| patch.id);
    if let Some(pair) = order.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(conflict(pair));
    }
    order.retain(|patch| patch.level > 0);
    order.sort_by_key(|patch| (patch.level, patch.first));
    let overlap =
        |pair: &&[&Arc<Patch>]| pair[0].level == pair[1].level && pair[0].last >= pair[1].first;
    order.windows(2).find(overlap).map_or(Ok(()), |pair| Err(conflict(pair)))
}

#[cfg(test)]
#[path = "manifest/tests.rs"]
mod tests;
