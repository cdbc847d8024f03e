//! Entries and buckets: the layout of the index's table.
//!
//! ```text
//! entry, 64 bits     63            26 25         0
//!                   |    unit + 1    |    tag     |     0: no entry
//!
//! bucket: 8 entries, one cache line
//! ```
//!
//! The tag is the fingerprint's low 26 bits, unchanged: sampling looks at the lowest of them, so an
//! entry can be dropped from a thinner sample without knowing the rest of its fingerprint.
//!
//! Thread safety: entries are atomics that only the holder of the shard's lock changes. Readers
//! take no lock; every value they load is a whole entry, current or just replaced.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Entries in a bucket.
pub(crate) const BUCKET_ENTRIES: usize = 8;
/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: usize = size_of::<AtomicU64>();
/// Bytes of a bucket.
pub(crate) const BUCKET_BYTES: usize = BUCKET_ENTRIES * ENTRY_BYTES;
const _: () = assert!(BUCKET_BYTES == 64, "a bucket is a cache line");

/// Bits of a fingerprint that its entry keeps.
pub(crate) const TAG_BITS: u32 = 26;
/// Bits of an entry that hold its unit.
pub(crate) const UNIT_BITS: u32 = 64 - TAG_BITS;

/// A write unit: the number of the 4 KiB page on the device at which it begins. 38 bits, all ones
/// excepted: units up to 1 PiB into the device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitAddress(u64);

impl UnitAddress {
    /// The last address that can be expressed.
    pub const MAX: Self = Self((1 << UNIT_BITS) - 2);

    /// The write unit at a 4 KiB page of the device.
    ///
    /// # Panics
    /// If `page` is beyond [`Self::MAX`]: pages come from the sealer and from verified summaries,
    /// on a device that the pool has accepted.
    #[must_use]
    pub const fn new(page: u64) -> Self {
        assert!(page <= Self::MAX.0, "beyond the device that an index can describe");
        Self(page)
    }

    /// The number of the 4 KiB page at which the unit begins.
    #[must_use]
    pub const fn page(self) -> u64 {
        self.0
    }
}

impl fmt::Display for UnitAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write unit at page {}", self.0)
    }
}

impl fmt::Debug for UnitAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The part of a fingerprint that its entry keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag(u64);

impl Tag {
    pub(crate) fn of(low_bits: u64) -> Self {
        Self(low_bits & ((1 << TAG_BITS) - 1))
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }
}

/// An entry in use: never packs to 0, which is the free one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry(u64);

impl Entry {
    pub(crate) fn new(tag: Tag, unit: UnitAddress) -> Self {
        // One more than the page, so that no entry is 0.
        Self((unit.page() + 1) << TAG_BITS | tag.0)
    }

    fn unpack(raw: u64) -> Option<Self> {
        (raw != 0).then_some(Self(raw))
    }

    /// From bits that may come from anywhere: those without a unit are no entry.
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        (bits >> TAG_BITS != 0).then_some(Self(bits))
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn tag(self) -> Tag {
        Tag::of(self.0)
    }

    pub(crate) fn unit(self) -> UnitAddress {
        UnitAddress((self.0 >> TAG_BITS) - 1)
    }
}

/// One bucket of the table.
#[derive(Clone, Copy)]
pub(crate) struct Bucket<'a>(&'a [AtomicU64; BUCKET_ENTRIES]);

impl<'a> Bucket<'a> {
    /// Bucket `index` of a table.
    pub(crate) fn at(table: &'a [AtomicU64], index: usize) -> Self {
        Self(&table.as_chunks::<BUCKET_ENTRIES>().0[index])
    }

    /// Loads one word of the bucket's cache line.
    pub(crate) fn touch(self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    pub(crate) fn get(self, slot: usize) -> Option<Entry> {
        Entry::unpack(self.0[slot].load(Ordering::Relaxed))
    }

    pub(crate) fn set(self, slot: usize, entry: Option<Entry>) {
        self.0[slot].store(entry.map_or(0, |entry| entry.0), Ordering::Relaxed);
    }

    /// The slot and entry with this tag.
    pub(crate) fn find(self, tag: Tag) -> Option<(usize, Entry)> {
        // A free slot looks like tag 0 until `get` tells them apart.
        (0..BUCKET_ENTRIES)
            .filter(|&slot| Tag::of(self.0[slot].load(Ordering::Relaxed)) == tag)
            .find_map(|slot| Some((slot, self.get(slot).filter(|entry| entry.tag() == tag)?)))
    }

    pub(crate) fn free_slot(self) -> Option<usize> {
        (0..BUCKET_ENTRIES).find(|&slot| self.get(slot).is_none())
    }

    pub(crate) fn count_free(self) -> usize {
        (0..BUCKET_ENTRIES).filter(|&slot| self.get(slot).is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_tag_and_unit_and_is_never_the_free_one() {
        for page in [0, 1, 12_345, UnitAddress::MAX.page()] {
            for low_bits in [0, 1, 0x3ff_ffff, u64::MAX] {
                let (tag, unit) = (Tag::of(low_bits), UnitAddress::new(page));
                let entry = Entry::new(tag, unit);
                assert_eq!(Entry::unpack(entry.0), Some(entry));
                assert_eq!((entry.tag(), entry.unit()), (tag, unit));
            }
        }
    }

    #[test]
    #[should_panic(expected = "beyond the device")]
    fn a_unit_that_no_entry_can_hold_is_refused() {
        let _ = UnitAddress::new(UnitAddress::MAX.page() + 1);
    }

    #[test]
    fn a_free_slot_is_not_found_as_tag_zero() {
        let table: [AtomicU64; BUCKET_ENTRIES] = Default::default();
        let bucket = Bucket::at(&table, 0);
        assert_eq!(bucket.find(Tag::of(0)), None);
        let entry = Entry::new(Tag::of(0), UnitAddress::new(0));
        bucket.set(5, Some(entry));
        assert_eq!(bucket.find(Tag::of(0)), Some((5, entry)));
        assert_eq!((bucket.count_free(), bucket.free_slot()), (7, Some(0)));
    }
}
