//! What can go wrong with the map.

use siltstone_device::{ByteOffset, DeviceError, Place, header::HeaderError};

/// An operation's failure.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MapError {
    /// No free segment for new patches. The operation was abandoned; the map is as before.
    #[error("no free segment for the map's patches; trim, delete or grow to make room")]
    NoSpace,
    /// A page could not be read.
    #[error("cannot read the page of patch {patch} at {address}: {source}")]
    Read {
        /// The patch.
        patch: u64,
        /// The page.
        address: ByteOffset,
        /// Why.
        source: DeviceError,
    },
    /// Pages of a new patch could not be written. The operation was abandoned.
    #[error("cannot write the map: {source}")]
    Write {
        /// Why.
        source: DeviceError,
    },
    /// A block changed in memory while a relocator moved it. The operation was abandoned.
    #[error(
        "the block at {from} changed in memory while it was moved: memory or processor may be faulty"
    )]
    Altered {
        /// Where the block was.
        from: Place,
    },
    /// A page is damaged, or not the page that should be there.
    #[error("patch {patch}, page at {address}: {source}")]
    Page {
        /// The patch.
        patch: u64,
        /// The page.
        address: ByteOffset,
        /// Why.
        source: PageError,
    },
}

impl MapError {
    /// Whether a page could not be read or is not what it should be: of a patch, which a next try
    /// leaves alone.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Page { .. })
    }
}

/// Why bytes are not the page that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Not a whole page of the right kind, pool, place and version.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A whole page of another patch.
    #[error("belongs to patch {found}")]
    WrongPatch {
        /// The patch found.
        found: u64,
    },
    /// A whole page of this patch's number with other contents than its parent recorded: a write
    /// that was lost left an older page in place.
    #[error("is whole but stale: checksum {found:08x} where its parent recorded {expected:08x}")]
    Stale {
        /// The checksum that the parent recorded.
        expected: u32,
        /// The checksum of the page that is there.
        found: u32,
    },
    /// The checksum fits, but the page's head is impossible.
    #[error("claims height {height} and {count} entries in {length_bytes} bytes")]
    Head {
        /// The height found; a leaf has 0.
        height: u8,
        /// The number of entries found.
        count: u16,
        /// The length found.
        length_bytes: u32,
    },
    /// The checksum fits, but an entry is impossible or out of order.
    #[error("entry {index} is impossible or out of order")]
    Entry {
        /// The entry's position in the page.
        index: usize,
    },
    /// The page's keys lie outside the range that its parent gives it.
    #[error("does not hold the keys that its parent says it holds")]
    OutsideFence,
}
