//! Pages of patches: 4 KiB of sorted entries under the common header.
//!
//! | bytes | field |
//! |---|---|
//! | 0..40 | [`header`](siltstone_device::header): leaf or fence, pool, own address; sequence = patch |
//! | 40..42 | number of entries |
//! | 42 | height: 0 in a leaf, one more than its children's in a fence page |
//! | 43..48 | zero |
//! | 48.. | a leaf's entries, packed (`leaf`); a fence page's, 24 bytes each (`fence`); then zeros |
//!
//! A fence page names each child by its first key, address and checksum, so that the root's
//! checksum in the manifest vouches for the whole patch, against lost writes as well.

use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset,
    header::{self, HEADER_BYTES, Identity, Kind},
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use crate::{
    error::PageError,
    extent::{Key, VersionKey},
    fence::{FENCE_BYTES, FenceEntry},
    leaf::{LeafBuilder, LeafEntries, LeafShape, MAX_LEAF_ENTRIES},
};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = BLOCK_BYTES;
/// The layout's version.
const VERSION: u16 = 3;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PageHead {
    count: U16,
    height: u8,
    reserved: [u8; 5],
}

pub(crate) const ENTRIES_START: usize = HEADER_BYTES + size_of::<PageHead>();
const _: () = assert!(ENTRIES_START == 48);
/// Children of a full fence page, and entries that fit in a leaf however little they have in common.
pub const ENTRIES_PER_PAGE: usize = (PAGE_BYTES - ENTRIES_START) / FENCE_BYTES;
const _: () = assert!(ENTRIES_PER_PAGE == 168);
const CHECKSUM_FIELD: std::ops::Range<usize> = 8..12;

/// A page and all that is known about it before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRef {
    /// Where it is.
    pub(crate) address: ByteOffset,
    /// The patch it belongs to.
    pub(crate) patch: u64,
    /// The checksum in its header.
    pub(crate) checksum: u32,
    /// 0 for a leaf.
    pub(crate) height: u8,
}

fn kind(height: u8) -> Kind {
    if height == 0 { Kind::PatchLeaf } else { Kind::PatchFence }
}

/// Fills `bytes` with a page of `count` entries, which `put` puts there; returns its checksum.
fn build(
    bytes: &mut [u8],
    count: usize,
    pool: u64,
    page: PageRef,
    put: impl FnOnce(&mut [u8]),
) -> u32 {
    assert!(bytes.len() == PAGE_BYTES && count > 0);
    let head = PageHead { count: U16::new(count as u16), height: page.height, reserved: [0; 5] };
    bytes[HEADER_BYTES..ENTRIES_START].copy_from_slice(head.as_bytes());
    bytes[ENTRIES_START..].fill(0);
    put(bytes);
    let identity =
        Identity { kind: kind(page.height), version: VERSION, pool, address_bytes: page.address.0 };
    header::seal(bytes, &identity, page.patch);
    checksum(bytes)
}

/// Fills `bytes` with a leaf page; returns its checksum (`page.checksum` is not looked at).
pub(crate) fn build_leaf(bytes: &mut [u8], leaf: &LeafBuilder, pool: u64, page: PageRef) -> u32 {
    build(bytes, leaf.len(), pool, page, |bytes| leaf.pack(bytes))
}

/// Fills `bytes` with a fence page; returns its checksum (`page.checksum` is not looked at).
pub(crate) fn build_fence(
    bytes: &mut [u8],
    entries: &[FenceEntry],
    pool: u64,
    page: PageRef,
) -> u32 {
    assert!(entries.len() <= ENTRIES_PER_PAGE);
    build(bytes, entries.len(), pool, page, |bytes| {
        let entries = entries.as_bytes();
        bytes[ENTRIES_START..][..entries.len()].copy_from_slice(entries);
    })
}

fn checksum(bytes: &[u8]) -> u32 {
    U32::read_from_bytes(&bytes[CHECKSUM_FIELD]).expect("four bytes").get()
}

/// What a verified page has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Contents {
    Leaf(LeafShape),
    /// So many children.
    Fence(usize),
}

/// Checks that `bytes` are the page that `page` names, whole and well formed; returns what it has.
pub(crate) fn verify(bytes: &[u8], page: &PageRef, pool: u64) -> Result<Contents, PageError> {
    assert_eq!(bytes.len(), PAGE_BYTES);
    let identity =
        Identity { kind: kind(page.height), version: VERSION, pool, address_bytes: page.address.0 };
    let header = header::verify(bytes, &identity)?;
    if header.sequence.get() != page.patch {
        return Err(PageError::WrongPatch { found: header.sequence.get() });
    }
    let found = header.checksum.get();
    if found != page.checksum {
        return Err(PageError::Stale { expected: page.checksum, found });
    }
    let (head, _) = PageHead::read_from_prefix(&bytes[HEADER_BYTES..]).expect("pages are longer");
    let (count, length_bytes) = (head.count.get(), header.length_bytes.get());
    let most = if page.height == 0 { MAX_LEAF_ENTRIES } else { ENTRIES_PER_PAGE };
    if length_bytes as usize != PAGE_BYTES
        || head.height != page.height
        || !(1..=most).contains(&usize::from(count))
    {
        return Err(PageError::Head { height: head.height, count, length_bytes });
    }
    let count = usize::from(count);
    let verified = if page.height == 0 {
        LeafShape::verify(whole(bytes), count).map(Contents::Leaf)
    } else {
        let bad = first_bad_fence_entry(fence_entries(bytes, count));
        bad.map_or(Ok(Contents::Fence(count)), Err)
    };
    verified.map_err(|index| PageError::Entry { index })
}

/// # Panics
/// If `bytes` are no page.
#[inline]
pub(crate) fn whole(bytes: &[u8]) -> &[u8; PAGE_BYTES] {
    bytes.try_into().expect("pages have one length")
}

fn first_bad_fence_entry(entries: &[FenceEntry]) -> Option<usize> {
    let mut last = None;
    entries
        .iter()
        .position(|entry| last.replace(entry.version()).is_some_and(|last| entry.version() <= last))
}

/// The entries of a verified fence page.
#[inline]
fn fence_entries(bytes: &[u8], count: usize) -> &[FenceEntry] {
    <[FenceEntry]>::ref_from_bytes(&bytes[ENTRIES_START..][..count * FENCE_BYTES])
        .expect("a whole number of unaligned entries")
}

/// A verified page in memory.
pub(crate) struct Page {
    reference: PageRef,
    contents: Contents,
    bytes: AlignedBuffer,
}

impl Page {
    /// The page in `bytes`, if it is the one expected.
    pub(crate) fn new(bytes: AlignedBuffer, page: PageRef, pool: u64) -> Result<Self, PageError> {
        let contents = verify(&bytes, &page, pool)?;
        Ok(Self { reference: page, contents, bytes })
    }

    pub(crate) fn reference(&self) -> &PageRef {
        &self.reference
    }

    /// The entries of a leaf page.
    ///
    /// # Panics
    /// If it is a fence page.
    #[inline]
    pub(crate) fn leaf(&self) -> LeafEntries<'_> {
        match &self.contents {
            Contents::Leaf(shape) => LeafEntries::new(whole(&self.bytes), shape),
            Contents::Fence(_) => panic!("a fence page has children"),
        }
    }

    /// The entries of a fence page.
    ///
    /// # Panics
    /// If it is a leaf.
    #[inline]
    pub(crate) fn fence(&self) -> &[FenceEntry] {
        match self.contents {
            Contents::Fence(count) => fence_entries(&self.bytes, count),
            Contents::Leaf(_) => panic!("a leaf has no children"),
        }
    }

    /// A fence page's child.
    #[inline]
    pub(crate) fn child(&self, index: usize) -> PageRef {
        let entry = &self.fence()[index];
        PageRef {
            address: entry.page(),
            patch: self.reference.patch,
            checksum: entry.checksum(),
            height: self.reference.height - 1,
        }
    }

    /// The position of the first child that has a version of what covers `key`: the last that
    /// starts before it, or one further before if that begins among versions; the first if `key`
    /// lies before all.
    #[inline]
    pub(crate) fn child_index(&self, key: Key) -> usize {
        let fences = self.fence();
        let start = VersionKey::first(key);
        let mut index = fences.partition_point(|entry| entry.version() < start).saturating_sub(1);
        if fences.get(index + 1).is_some_and(|next| next.key() == key && !next.continues()) {
            return index + 1;
        }
        while index > 0 && fences[index].continues() {
            index -= 1;
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        epoch::Epoch,
        extent::{Extent, Key, Target},
        leaf::LeafEntry,
    };
    use siltstone_device::{BlockAddress, LayerId, Place, SegmentId};

    const POOL: u64 = 5;

    fn entries(count: usize) -> Vec<LeafEntry> {
        (0..count as u64)
            .map(|i| {
                let extent = Extent {
                    layer: LayerId(1),
                    epoch: Epoch::FIRST,
                    address: BlockAddress(i * 4),
                    len_blocks: 3,
                    target: Target::Stored(Place::new(SegmentId(2), 4096, i as u8 % 60)),
                };
                LeafEntry::new(extent, false)
            })
            .collect()
    }

    fn error(bytes: &[u8], page: &PageRef) -> Option<PageError> {
        verify(bytes, page, POOL).err()
    }

    fn page_ref(height: u8) -> PageRef {
        PageRef { address: ByteOffset(8192), patch: 9, checksum: 0, height }
    }

    fn leaf() -> (Vec<u8>, PageRef) {
        let mut bytes = vec![0xee; PAGE_BYTES];
        let checksum = build_leaf(&mut bytes, &LeafBuilder::of(&entries(100)), POOL, page_ref(0));
        (bytes, PageRef { checksum, ..page_ref(0) })
    }

    fn fence() -> (Vec<u8>, PageRef) {
        let children: Vec<_> = (0..168)
            .map(|i| {
                let first = Key::new(LayerId(i / 50), u64::from(i));
                let first = VersionKey::new(first, Epoch(i));
                FenceEntry::new(first, false, ByteOffset(4096), i)
            })
            .collect();
        let mut bytes = vec![0xee; PAGE_BYTES];
        let checksum = build_fence(&mut bytes, &children, POOL, page_ref(1));
        (bytes, PageRef { checksum, ..page_ref(1) })
    }

    #[test]
    fn a_page_survives_encoding() {
        let (bytes, page) = leaf();
        let Ok(Contents::Leaf(shape)) = verify(&bytes, &page, POOL) else { panic!("a leaf") };
        let read: Vec<LeafEntry> = LeafEntries::new(whole(&bytes), &shape).iter().collect();
        assert_eq!(read, entries(100));
        let (bytes, page) = fence();
        assert!(matches!(verify(&bytes, &page, POOL), Ok(Contents::Fence(168))));
        assert_eq!(fence_entries(&bytes, 168)[167].key(), Key::new(LayerId(3), 167));
    }

    #[test]
    fn every_flipped_byte_is_an_error() {
        for (bytes, page) in [leaf(), fence()] {
            for index in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[index] ^= 0x10;
                assert!(verify(&bytes, &page, POOL).is_err(), "byte {index}");
            }
        }
    }

    #[test]
    fn a_page_of_another_patch_or_generation_is_refused() {
        let (bytes, page) = leaf();
        let other = PageRef { patch: 10, ..page };
        assert_eq!(error(&bytes, &other), Some(PageError::WrongPatch { found: 9 }));
        let other = PageRef { checksum: 1, ..page };
        assert!(matches!(verify(&bytes, &other, POOL), Err(PageError::Stale { .. })));
        let other = PageRef { height: 1, ..page };
        assert!(matches!(verify(&bytes, &other, POOL), Err(PageError::Header(_))));
        let other = PageRef { address: ByteOffset(4096), ..page };
        assert!(matches!(verify(&bytes, &other, POOL), Err(PageError::Header(_))));
    }

    #[test]
    fn versions_that_no_writer_writes_are_refused_even_under_a_good_checksum() {
        let extent = |epoch, address, len_blocks| Extent {
            layer: LayerId(1),
            epoch: Epoch(epoch),
            address: BlockAddress(address),
            len_blocks,
            target: Target::Hole,
        };
        let encode = |entries: &[(Extent, bool)]| {
            let entries = entries.iter().map(|(extent, older)| LeafEntry::new(*extent, *older));
            let leaf = LeafBuilder::of(&entries.collect::<Vec<_>>());
            let mut bytes = vec![0; PAGE_BYTES];
            let checksum = build_leaf(&mut bytes, &leaf, POOL, page_ref(0));
            error(&bytes, &PageRef { checksum, ..page_ref(0) })
        };
        let first = (extent(7, 20, 4), true);
        assert_eq!(encode(&[first, (extent(5, 20, 4), true), (extent(9, 24, 1), false)]), None);
        for second in [
            // A newer version, one that does not say that it is older, other blocks.
            (extent(7, 20, 4), true),
            (extent(8, 20, 4), true),
            (extent(5, 20, 4), false),
            (extent(5, 20, 3), true),
            (extent(5, 22, 2), true),
            (extent(5, 24, 4), true),
        ] {
            assert_eq!(encode(&[first, second]), Some(PageError::Entry { index: 1 }), "{second:?}");
        }
    }

    #[test]
    fn entries_out_of_order_are_refused_even_under_a_good_checksum() {
        let mut swapped = entries(100);
        swapped.swap(40, 41);
        let mut bytes = vec![0; PAGE_BYTES];
        let checksum = build_leaf(&mut bytes, &LeafBuilder::of(&swapped), POOL, page_ref(0));
        let page = PageRef { checksum, ..page_ref(0) };
        assert_eq!(error(&bytes, &page), Some(PageError::Entry { index: 41 }));
    }
}
