//! Leaf pages: sorted extents, packed by bits.
//!
//! What stands in one page is much alike: one layer, few epochs, addresses close together, places in
//! one pool. So each page has the smallest value of each field at its head, and entries hold the
//! differences, each field in as many bits as the largest needs. Entries of blocks that were written
//! at random take about 8 bytes for 24, which is a third of the map to write, to read and to keep in
//! memory. All entries of a page have the same size, so any of them is found by arithmetic, as in an
//! array (Goldstein, Ramakrishnan and Shaft, "Compressing relations and indexes", ICDE 1998).
//!
//! | field | bits at most | smallest value |
//! |---|---|---|
//! | address | 48 | of all entries |
//! | layer | 32 | of all entries |
//! | epoch | 32 | of all entries |
//! | older: an older version of the same blocks as the entry before | 1 | |
//! | hole | 1 | |
//! | length of stored blocks, less one | 6 | |
//! | target: a packed place, or the length of a hole | 64 | of all places; lengths as they are |

use std::ops::Range;

use siltstone_device::{BlockAddress, LayerId, Place};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{
    epoch::Epoch,
    extent::{Extent, Key, MAX_BLOCKS, Target, VersionKey},
    page::{ENTRIES_PER_PAGE, ENTRIES_START, PAGE_BYTES},
};

/// Most entries in a leaf, however alike they are.
pub(crate) const MAX_LEAF_ENTRIES: usize = 1024;

const FIELDS: usize = 7;
const ADDRESS: usize = 0;
const LAYER: usize = 1;
const EPOCH: usize = 2;
const OLDER: usize = 3;
const HOLE: usize = 4;
const LENGTH: usize = 5;
const TARGET: usize = 6;
/// The most bits that each field can need.
const MAX_WIDTHS: [u8; FIELDS] = [48, 32, 32, 1, 1, 6, 64];

/// Before the entries of a leaf. 32 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LeafHead {
    /// The smallest layer.
    layer: U32,
    /// The smallest epoch.
    epoch: U32,
    /// The smallest address.
    address: U64,
    /// The smallest packed place, 0 without any.
    place: U64,
    /// Bits of each field, in the order of the module's table.
    widths: [u8; FIELDS],
    reserved: u8,
}
const LEAF_HEAD_BYTES: usize = 32;
const _: () = assert!(size_of::<LeafHead>() == LEAF_HEAD_BYTES);

const PACKED_START: usize = ENTRIES_START + LEAF_HEAD_BYTES;
/// A field is read with this many bytes, of which those behind the last entry are zero.
const READ_BYTES: usize = 16;
const PACKED_BITS: usize = (PAGE_BYTES - PACKED_START - READ_BYTES) * 8;
// However unlike they are, as many entries fit as in a page of entries that are not packed.
const _: () = assert!(PACKED_BITS / (48 + 32 + 32 + 1 + 1 + 6 + 64) >= ENTRIES_PER_PAGE);

/// An entry of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeafEntry {
    extent: Extent,
    is_older: bool,
}

impl LeafEntry {
    /// The entry of an extent; `is_older` if the entry before is of the same blocks.
    #[inline]
    pub(crate) fn new(extent: Extent, is_older: bool) -> Self {
        Self { extent, is_older }
    }

    /// The extent's first block.
    #[inline]
    pub(crate) fn key(&self) -> Key {
        self.extent.start()
    }

    /// The entry's position among versions.
    #[inline]
    pub(crate) fn version(&self) -> VersionKey {
        self.extent.version()
    }

    /// Whether the entry before is a newer version of the same blocks.
    #[inline]
    pub(crate) fn is_older(&self) -> bool {
        self.is_older
    }

    #[inline]
    pub(crate) fn extent(&self) -> Extent {
        self.extent
    }

    /// Whether a valid entry can come after another: with later blocks, or an older version.
    #[inline]
    pub(crate) fn follows(&self, before: &Self) -> bool {
        let (before, extent) = (before.extent, self.extent);
        if self.is_older {
            before.is_same_run(&extent) && before.version() < extent.version()
        } else {
            before.end() <= extent.start()
        }
    }
}

/// The smallest and largest values of some entries' fields.
#[derive(Clone, Copy)]
struct Span {
    /// Of address, layer and epoch.
    least: [u64; 3],
    most: [u64; 3],
    least_place: u64,
    most_place: u64,
    longest_hole: u64,
    /// Of what needs no smallest value.
    older: u64,
    hole: u64,
    length: u64,
}

impl Span {
    const EMPTY: Self = Self {
        least: [u64::MAX; 3],
        most: [0; 3],
        least_place: u64::MAX,
        most_place: 0,
        longest_hole: 0,
        older: 0,
        hole: 0,
        length: 0,
    };

    fn include(&mut self, entry: &LeafEntry) {
        let LeafEntry { extent, is_older } = entry;
        let values = [extent.address.0, extent.layer.0.into(), extent.epoch.0.into()];
        for (field, value) in values.into_iter().enumerate() {
            self.least[field] = self.least[field].min(value);
            self.most[field] = self.most[field].max(value);
        }
        self.older |= u64::from(*is_older);
        match extent.target {
            Target::Hole => {
                self.hole = 1;
                self.longest_hole = self.longest_hole.max(extent.len_blocks.into());
            }
            Target::Stored(place) => {
                self.least_place = self.least_place.min(place.raw());
                self.most_place = self.most_place.max(place.raw());
                self.length |= u64::from(extent.len_blocks - 1);
            }
        }
    }

    fn place(&self) -> u64 {
        if self.least_place == u64::MAX { 0 } else { self.least_place }
    }

    /// Bits of each field.
    fn widths(&self) -> [u8; FIELDS] {
        let range = |field: usize| self.most[field] - self.least[field];
        let target = self.most_place.saturating_sub(self.least_place).max(self.longest_hole);
        let most = [range(0), range(1), range(2), self.older, self.hole, self.length, target];
        most.map(|most| (u64::BITS - most.leading_zeros()) as u8)
    }

    fn fits(&self, count: usize) -> bool {
        count <= MAX_LEAF_ENTRIES && count * entry_bits(&self.widths()) <= PACKED_BITS
    }

    fn fields(&self, entry: &LeafEntry) -> [u64; FIELDS] {
        let LeafEntry { extent, is_older } = entry;
        let [address, layer, epoch] = self.least;
        let (hole, length, target) = match extent.target {
            Target::Hole => (1, 0, extent.len_blocks.into()),
            Target::Stored(place) => (0, extent.len_blocks - 1, place.raw() - self.place()),
        };
        [
            extent.address.0 - address,
            u64::from(extent.layer.0) - layer,
            u64::from(extent.epoch.0) - epoch,
            (*is_older).into(),
            hole,
            length.into(),
            target,
        ]
    }
}

fn entry_bits(widths: &[u8; FIELDS]) -> usize {
    widths.iter().map(|&width| usize::from(width)).sum()
}

/// The entries of a leaf that is being filled.
pub(crate) struct LeafBuilder {
    entries: Vec<LeafEntry>,
    span: Span,
}

impl LeafBuilder {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), span: Span::EMPTY }
    }

    #[cfg(test)]
    pub(crate) fn of(entries: &[LeafEntry]) -> Self {
        let mut builder = Self::new();
        entries.iter().for_each(|&entry| builder.push(entry));
        builder
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there is room for some more entries.
    pub(crate) fn fits(&self, more: impl Iterator<Item = LeafEntry>) -> bool {
        let (mut span, mut count) = (self.span, self.entries.len());
        for entry in more {
            span.include(&entry);
            count += 1;
        }
        span.fits(count)
    }

    /// Adds an entry.
    ///
    /// # Panics
    /// If it does not fit, or cannot be stored at all.
    pub(crate) fn push(&mut self, entry: LeafEntry) {
        assert!(entry.extent.is_valid(), "{:?} cannot be stored", entry.extent);
        self.span.include(&entry);
        self.entries.push(entry);
        assert!(self.span.fits(self.entries.len()), "a leaf has room for what is added");
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.span = Span::EMPTY;
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Packs the entries into the zeroed `bytes` of a page, behind its head.
    pub(crate) fn pack(&self, bytes: &mut [u8]) {
        let widths = self.span.widths();
        let [address, layer, epoch] = self.span.least;
        let head = LeafHead {
            layer: U32::new(layer as u32),
            epoch: U32::new(epoch as u32),
            address: U64::new(address),
            place: U64::new(self.span.place()),
            widths,
            reserved: 0,
        };
        bytes[ENTRIES_START..PACKED_START].copy_from_slice(head.as_bytes());
        let mut bit = 0;
        for entry in &self.entries {
            for (value, width) in self.span.fields(entry).into_iter().zip(widths) {
                let at = PACKED_START + bit / 8;
                let slot: &mut [u8; READ_BYTES] =
                    (&mut bytes[at..at + READ_BYTES]).try_into().expect("so many bytes");
                let packed = u128::from_le_bytes(*slot) | u128::from(value) << (bit % 8);
                *slot = packed.to_le_bytes();
                bit += usize::from(width);
            }
        }
    }
}

/// How a leaf's entries are packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeafShape {
    count: usize,
    entry_bits: usize,
    layer: u32,
    epoch: u32,
    address: u64,
    place: u64,
    /// Where each field begins in an entry, in bits, and its bits when it stands at the lowest.
    fields: [(u16, u64); FIELDS],
}

impl LeafShape {
    /// The shape of `count` entries in the page in `bytes`; `None` if no page can be like that.
    fn read(bytes: &[u8; PAGE_BYTES], count: usize) -> Option<Self> {
        let (head, _) = LeafHead::ref_from_prefix(&bytes[ENTRIES_START..]).ok()?;
        let widths = head.widths;
        let entry_bits = entry_bits(&widths);
        let is_possible = widths.iter().zip(MAX_WIDTHS).all(|(&width, most)| width <= most)
            && (1..=MAX_LEAF_ENTRIES).contains(&count)
            && count * entry_bits <= PACKED_BITS
            && head.address.get() < MAX_BLOCKS;
        let mut start = 0_u16;
        let fields = widths.map(|width| {
            let mask = 1_u64.checked_shl(width.into()).map_or(u64::MAX, |bit| bit - 1);
            let field = (start, mask);
            start += u16::from(width);
            field
        });
        is_possible.then_some(Self {
            count,
            entry_bits,
            layer: head.layer.get(),
            epoch: head.epoch.get(),
            address: head.address.get(),
            place: head.place.get(),
            fields,
        })
    }

    /// Checks the leaf of `count` entries in `bytes`.
    ///
    /// # Errors
    /// The first entry that no writer can have written.
    pub(crate) fn verify(bytes: &[u8; PAGE_BYTES], count: usize) -> Result<Self, usize> {
        let shape = Self::read(bytes, count).ok_or(0_usize)?;
        let entries = LeafEntries::new(bytes, &shape);
        let mut before: Option<LeafEntry> = None;
        for (index, (entry, is_valid)) in (0..count).map(|at| (at, entries.decode(at))) {
            if !is_valid || before.is_some_and(|before| !entry.follows(&before)) {
                return Err(index);
            }
            before = Some(entry);
        }
        Ok(shape)
    }
}

/// The entries of a leaf that has been verified, or some of them that follow each other.
#[derive(Clone)]
pub(crate) struct LeafEntries<'a> {
    bytes: &'a [u8; PAGE_BYTES],
    shape: &'a LeafShape,
    range: Range<usize>,
}

impl<'a> LeafEntries<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8; PAGE_BYTES], shape: &'a LeafShape) -> Self {
        Self { bytes, shape, range: 0..shape.count }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    /// The first `count` of these.
    #[inline]
    pub(crate) fn first(&self, count: usize) -> Self {
        assert!(count <= self.len());
        Self { range: self.range.start..self.range.start + count, ..*self }
    }

    /// # Panics
    /// If there is none with this number.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> LeafEntry {
        assert!(index < self.len());
        self.decode(self.range.start + index).0
    }

    /// # Panics
    /// If there is none.
    #[inline]
    pub(crate) fn last(&self) -> LeafEntry {
        self.get(self.len() - 1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = LeafEntry> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// The position of an entry, which is all that a search looks at.
    #[inline]
    pub(crate) fn version(&self, index: usize) -> VersionKey {
        assert!(index < self.len());
        let start = (self.range.start + index) * self.shape.entry_bits;
        VersionKey::new(self.key_at(start), self.epoch_at(start))
    }

    /// Of all before it `is_before` is true, of the others not.
    #[inline]
    pub(crate) fn partition_point(&self, is_before: impl Fn(&LeafEntry) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if is_before(&self.get(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    #[inline]
    fn field(&self, start: usize, field: usize) -> u64 {
        let (offset, mask) = self.shape.fields[field];
        let bit = start + usize::from(offset);
        let at = PACKED_START + bit / 8;
        let word: [u8; READ_BYTES] =
            self.bytes[at..at + READ_BYTES].try_into().expect("so many bytes");
        (u128::from_le_bytes(word) >> (bit % 8)) as u64 & mask
    }

    #[inline]
    fn key_at(&self, start: usize) -> Key {
        // Neither overflows in a page that a writer wrote; in another, order shows it.
        let layer = self.shape.layer.wrapping_add(self.field(start, LAYER) as u32);
        Key::new(LayerId(layer), self.shape.address + self.field(start, ADDRESS))
    }

    #[inline]
    fn epoch_at(&self, start: usize) -> Epoch {
        Epoch(self.shape.epoch.wrapping_add(self.field(start, EPOCH) as u32))
    }

    /// An entry of the page, and whether a writer can have written it.
    #[inline]
    fn decode(&self, at: usize) -> (LeafEntry, bool) {
        let start = at * self.shape.entry_bits;
        let key = self.key_at(start);
        let (length, target) = (self.field(start, LENGTH), self.field(start, TARGET));
        let is_hole = self.field(start, HOLE) != 0;
        let (target, len_blocks, is_possible) = if is_hole {
            (Target::Hole, target as u32, length == 0 && target <= u32::MAX.into())
        } else {
            let place = Place::from_raw(self.shape.place.wrapping_add(target));
            (Target::Stored(place), length as u32 + 1, true)
        };
        let extent = Extent {
            layer: key.layer,
            epoch: self.epoch_at(start),
            address: BlockAddress(key.address.0),
            len_blocks,
            target,
        };
        let is_older = self.field(start, OLDER) != 0;
        (LeafEntry { extent, is_older }, is_possible && extent.is_valid())
    }
}

#[cfg(test)]
#[path = "leaf/tests.rs"]
mod tests;
