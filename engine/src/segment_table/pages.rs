//! The table on disk: pages of 4 KiB, each with two slots of two copies.
//!
//! A checkpoint writes a page into the slot that does not hold its newest durable version; both
//! copies of the slot get the same contents, each under its own address. All first copies stand
//! together, then all second copies, so that what spoils a stretch of the medium spoils one of two.
//!
//! | of the four copies of a page                           | verdict                              |
//! |--------------------------------------------------------|--------------------------------------|
//! | the newest whole one not above the record's checkpoint | counts                               |
//! | the other copy of its slot is damaged or older         | damage, for both were flushed before the record was stored: reported, and the page is written anew |
//! | one that cannot be read                                | the same, in whichever slot it is: it may yet turn out to hold a later version |
//! | another one above the record's checkpoint              | of a checkpoint that never was       |
//! | anything else                                          | torn, or never written: does not matter |

use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset, DeviceError,
    header::{self, HEADER_BYTES, HeaderError, Identity, Kind},
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::{CONDEMNED, Segment, SegmentState, packed::Packed};
use crate::{
    error::{MetadataError, Result},
    layout::Layout,
    repair::Repair,
};

const VERSION: u16 = 3;

/// Flag of a segment: damage was found in it.
const DAMAGED: u8 = 1;

/// Slots a page: the newest durable version is in one, the next goes to the other.
pub(crate) const SLOTS_PER_PAGE: u64 = 2;

/// Copies of each slot.
pub(crate) const COPIES: u64 = 2;

/// Segments that one page describes.
pub(crate) const ENTRIES_PER_PAGE: usize = 126;

/// A segment on disk. 32 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    generation: U64,
    references: U64,
    stored_blocks: U32,
    used_bytes: U32,
    pages: U32,
    state: u8,
    flags: u8,
    reserved: [u8; 2],
}
const _: () = assert!(size_of::<Entry>() == 32);
const ENTRIES_START: usize = 64;
const _: () = assert!(ENTRIES_START >= HEADER_BYTES);
const _: () = assert!(ENTRIES_START + ENTRIES_PER_PAGE * 32 == BLOCK_BYTES);

/// A page's newest durable version.
#[derive(Clone, Copy)]
pub(super) struct Newest {
    pub(super) version: u64,
    pub(super) slot: u8,
}

/// Of a page that no checkpoint has written: the first goes to slot 0. It counts nothing in the sum
/// of versions.
pub(super) const NEVER_WRITTEN: Newest = Newest { version: 0, slot: 1 };

/// A slot as it was read, or why it could not be.
type ReadSlot<'a> = std::result::Result<&'a [u8], &'a DeviceError>;

/// Both slots of a page as they were read, the first copies and the second ones.
pub(super) type PageCopies<'a> = [[ReadSlot<'a>; SLOTS_PER_PAGE as usize]; COPIES as usize];

/// What the copies of a page hold.
pub(super) struct FoundPage {
    pub(super) newest: Newest,
    /// A copy of the slot that counts and does not say what the other one says, or one of either
    /// slot that cannot be read.
    pub(super) repair: Option<Repair>,
    /// A copy that is not whole and may have held a newer version.
    pub(super) passed_over: Option<HeaderError>,
    /// A later checkpoint than the record's has written the other slot, and its record was never
    /// stored. The next checkpoint bears that number again, and must overwrite the slot with what
    /// it means by it.
    pub(super) has_later_slot: bool,
}

/// Where a copy of a slot is.
pub(super) fn slot_offset(layout: &Layout, page: usize, slot: u8, copy: u64) -> ByteOffset {
    let before = copy * layout.segment_table_pages * SLOTS_PER_PAGE;
    let slots = before + page as u64 * SLOTS_PER_PAGE + u64::from(slot);
    layout.segment_table_offset.plus(slots * BLOCK_BYTES as u64)
}

fn identity(pool: u64, address: ByteOffset) -> Identity {
    Identity { kind: Kind::SegmentTable, version: VERSION, pool, address_bytes: address.0 }
}

/// A page's contents as one copy of it, of checkpoint `number`: the first segments of `segments`.
pub(super) fn encode_page(
    segments: impl Iterator<Item = Segment>,
    pool: u64,
    address: ByteOffset,
    number: u64,
) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
    let slots = buffer[ENTRIES_START..].chunks_exact_mut(size_of::<Entry>());
    for (slot, segment) in slots.zip(segments) {
        let state = match segment.state {
            SegmentState::Freeing => SegmentState::Free,
            state => state,
        };
        let entry = Entry {
            generation: U64::new(segment.generation),
            references: U64::new(segment.references),
            stored_blocks: U32::new(segment.stored_blocks),
            used_bytes: U32::new(segment.used_bytes),
            pages: U32::new(segment.pages),
            state: state as u8,
            flags: if segment.is_damaged { DAMAGED } else { 0 },
            reserved: [0; 2],
        };
        slot.copy_from_slice(entry.as_bytes());
    }
    header::seal(&mut buffer, &identity(pool, address), number);
    buffer
}

/// What a copy of a slot turned out to be.
struct FoundCopy<'a> {
    slot: u8,
    address: ByteOffset,
    /// Empty if it cannot be read.
    bytes: &'a [u8],
    /// Its version, if it is whole.
    version: std::result::Result<u64, HeaderError>,
}

impl FoundCopy<'_> {
    fn is_unreadable(&self) -> bool {
        matches!(self.version, Err(HeaderError::Unreadable { .. }))
    }

    /// Whether something was ever written there, as far as can be seen.
    fn is_written(&self) -> bool {
        self.is_unreadable() || self.bytes.iter().any(|&byte| byte != 0)
    }
}

/// Segments as they are read, and their generations.
pub(super) type FoundSegments = (Vec<Packed>, Vec<u64>);

/// Decodes the newest version of a page that is not above checkpoint `number`, and appends its
/// segments: the rest of `count` in all.
pub(super) fn decode_page(
    copies: PageCopies<'_>,
    pool: u64,
    layout: &Layout,
    page: usize,
    number: u64,
    segments: &mut FoundSegments,
    count: usize,
) -> Result<FoundPage> {
    let mut found = Vec::with_capacity((SLOTS_PER_PAGE * COPIES) as usize);
    for (copy, slots) in (0..COPIES).zip(copies) {
        for (slot, read) in (0..SLOTS_PER_PAGE as u8).zip(slots) {
            let address = slot_offset(layout, page, slot, copy);
            let identity = identity(pool, address);
            let bytes = read.unwrap_or_default();
            let verified = match read {
                Ok(bytes) => header::verify(bytes, &identity),
                Err(cause) => Err(identity.unreadable(cause)),
            };
            let version = match verified {
                Ok(header) if header.length_bytes.get() as usize == BLOCK_BYTES => {
                    Ok(header.sequence.get())
                }
                Ok(header) => Err(HeaderError::Length {
                    kind: Kind::SegmentTable,
                    address_bytes: address.0,
                    length_bytes: header.length_bytes.get(),
                }),
                // It may be the newest.
                Err(error @ HeaderError::Version { .. }) => {
                    return Err(MetadataError::Header(error).into());
                }
                Err(error) => Err(error),
            };
            found.push(FoundCopy { slot, address, bytes, version });
        }
    }
    let valid = |copy: &&FoundCopy<'_>| copy.version.as_ref().is_ok_and(|v| *v <= number);
    let version = |copy: &&FoundCopy<'_>| copy.version.as_ref().map_or(0, |version| *version);
    let error = |copy: &FoundCopy<'_>| copy.version.clone().err();
    // What was never written says least.
    let any_error = || {
        let written = found.iter().filter(|copy| copy.is_written());
        written.chain(&found).find_map(error)
    };
    let Some(best) = found.iter().filter(valid).max_by_key(version) else {
        return Err(match any_error() {
            Some(error) => MetadataError::Header(error).into(),
            None => inconsistent("page", page as u64),
        });
    };
    decode_entries(best.bytes, segments, count)?;
    let newest = Newest { version: version(&best), slot: best.slot };
    let differs = |copy: &&FoundCopy<'_>| copy.slot == best.slot && copy.version != best.version;
    let damaged = found.iter().find(differs);
    let damaged = damaged.or_else(|| found.iter().find(|copy| copy.is_unreadable()));
    let repair = damaged.map(|copy| Repair::Table {
        page: page as u64,
        offset: copy.address,
        reason: match &copy.version {
            Ok(version) => format!(
                "segment table page at {} has version {version}, the other copy {}",
                copy.address, newest.version
            ),
            Err(error) => error.to_string(),
        },
    });
    // A slot that was never written is no suspect.
    let passed_over = found.iter().filter(|copy| copy.is_written()).find_map(error);
    let later = |copy: &FoundCopy<'_>| copy.version.as_ref().is_ok_and(|v| *v > number);
    let has_later_slot = found.iter().any(later);
    Ok(FoundPage { newest, repair, passed_over, has_later_slot })
}

fn decode_entries(
    page: &[u8],
    (segments, generations): &mut FoundSegments,
    count: usize,
) -> Result<()> {
    let entries = &page[ENTRIES_START..][..ENTRIES_PER_PAGE * size_of::<Entry>()];
    let here = ENTRIES_PER_PAGE.min(count - segments.len());
    for bytes in entries.chunks_exact(size_of::<Entry>()).take(here) {
        let entry = Entry::read_from_bytes(bytes).expect("the chunk has an entry's size");
        let state = match entry.state {
            0 => SegmentState::Free,
            1 => SegmentState::Frontier,
            2 => SegmentState::Data,
            3 => SegmentState::Metadata,
            4 => SegmentState::IndexImage,
            other => return Err(inconsistent("state", u64::from(other))),
        };
        let generation = entry.generation.get();
        if generation & CONDEMNED != 0 {
            return Err(inconsistent("generation", generation));
        }
        let is_damaged = match entry.flags {
            0 => false,
            DAMAGED => true,
            other => return Err(inconsistent("flags", u64::from(other))),
        };
        let segment = Segment {
            state,
            generation,
            references: entry.references.get(),
            stored_blocks: entry.stored_blocks.get(),
            used_bytes: entry.used_bytes.get(),
            pages: entry.pages.get(),
            is_damaged,
        };
        let number = segments.len() as u64;
        let packed =
            Packed::of(&segment).ok_or_else(|| inconsistent("counts of segment", number))?;
        generations.push(generation);
        segments.push(packed);
    }
    Ok(())
}

pub(super) fn inconsistent(field: &'static str, value: u64) -> crate::error::EngineError {
    MetadataError::Inconsistent { structure: "segment table", field, value }.into()
}
