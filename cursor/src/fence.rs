//! Entries of fence pages: 24 bytes for each child.

use siltstone_device::{BLOCK_BYTES, ByteOffset, LayerId};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U32};

use crate::{
    epoch::Epoch,
    extent::{Key, VersionKey},
};

/// Set in [`FenceEntry::page`]: the child begins with an older version of what the child before
/// ends with.
const CONTINUES: u64 = 1 << 47;

/// A child page in a fence page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct FenceEntry {
    layer: U32,
    /// The checksum in the child's header: a child that is whole but older is told by it.
    checksum: U32,
    /// The epoch of the child's first entry.
    epoch: U32,
    /// The block address of the child's first entry.
    address: [u8; 6],
    /// Where the child page is on the device, in pages (47 bits); a flag.
    page: [u8; 6],
}

/// Bytes of an entry.
pub(crate) const FENCE_BYTES: usize = 24;
const _: () = assert!(size_of::<FenceEntry>() == FENCE_BYTES);

#[inline]
fn from_48_bits(bytes: &[u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = *bytes;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

fn to_48_bits(value: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, 0, 0] = value.to_le_bytes() else {
        panic!("{value} does not fit in 48 bits");
    };
    [a, b, c, d, e, f]
}

impl FenceEntry {
    /// The entry of a child page; `continues` if its first entry is an older version of what the
    /// child before ends with.
    ///
    /// # Panics
    /// If the page lies past 512 PiB, where no pool reaches.
    pub(crate) fn new(first: VersionKey, continues: bool, page: ByteOffset, checksum: u32) -> Self {
        let number = page.0 / BLOCK_BYTES as u64;
        assert!(number < CONTINUES, "a page of the map at {page}");
        Self {
            layer: U32::new(first.key.layer.0),
            checksum: U32::new(checksum),
            epoch: U32::new(first.epoch().0),
            address: to_48_bits(first.key.address.0),
            page: to_48_bits(number | if continues { CONTINUES } else { 0 }),
        }
    }

    /// The block address of the child's first entry.
    #[inline]
    pub(crate) fn key(&self) -> Key {
        Key::new(LayerId(self.layer.get()), from_48_bits(&self.address))
    }

    /// The position of the child's first entry.
    #[inline]
    pub(crate) fn version(&self) -> VersionKey {
        VersionKey::new(self.key(), Epoch(self.epoch.get()))
    }

    /// Whether the child begins with an older version of what the child before ends with.
    #[inline]
    pub(crate) fn continues(&self) -> bool {
        from_48_bits(&self.page) & CONTINUES != 0
    }

    pub(crate) fn page(&self) -> ByteOffset {
        ByteOffset((from_48_bits(&self.page) & !CONTINUES) * BLOCK_BYTES as u64)
    }

    pub(crate) fn checksum(&self) -> u32 {
        self.checksum.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::MAX_BLOCKS;

    #[test]
    fn a_fence_survives_encoding() {
        let first = VersionKey::new(Key::new(LayerId(7), MAX_BLOCKS - 1), Epoch(u32::MAX - 1));
        for (continues, page) in [(true, 0), (false, (1 << 59) - 4096), (true, 12 << 40)] {
            let fence = FenceEntry::new(first, continues, ByteOffset(page), 99);
            assert_eq!((fence.version(), fence.key()), (first, first.key));
            assert_eq!((fence.continues(), fence.page().0), (continues, page));
            assert_eq!(fence.checksum(), 99);
        }
    }
}
