//! Where a log or a checkpoint slot lives: a range of bytes of some device.

use siltstone_device::{BLOCK_BYTES, ByteOffset};

/// A range of bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it starts: a multiple of [`BLOCK_BYTES`].
    pub offset: ByteOffset,
    /// Its length: a multiple of [`BLOCK_BYTES`].
    pub len_bytes: u64,
}

impl Region {
    /// Whether the region is made of whole blocks, at least `min_blocks` of them, and lies within
    /// a device of `device_bytes`.
    pub(crate) fn is_usable(&self, min_blocks: u64, device_bytes: u64) -> bool {
        let block = BLOCK_BYTES as u64;
        self.offset.0.is_multiple_of(block)
            && self.len_bytes.is_multiple_of(block)
            && self.len_bytes / block >= min_blocks
            && self.offset.0.checked_add(self.len_bytes).is_some_and(|end| end <= device_bytes)
    }

    /// Whether the two regions share a byte.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let ends = |region: &Self| region.offset.0.saturating_add(region.len_bytes);
        self.offset.0 < ends(other) && other.offset.0 < ends(self)
    }
}

impl std::fmt::Display for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at byte {}", self.len_bytes, self.offset.0)
    }
}
