//! Write units: what one device write adds to a segment.
//!
//! ```text
//! common header | unit head | entries | frame table | fingerprints | padding to 16 | frames | padding to 4096
//! '---------------------- summary, one checksum ----------------'
//! ```
//! The summary describes every frame and every change in the unit, enough to rebuild map and index
//! from segments alone. It stands before the frames rather than after them: its length is known
//! once duplicates are, before anything is compressed, and so one read from the unit's first page
//! finds it, both for recovery, which walks a segment forward, and for an index hit, which knows
//! only where the unit starts.
//!
//! A unit counts in recovery only if its summary and all of its frames are whole, and if all units
//! with smaller numbers do: links may point into them.
//!
//! The changes of a batch may be divided between two units, so that what is likely to be overwritten
//! soon stands in other segments than what is not. The first says that it is continued by the next
//! number, and neither counts without the other.

use siltstone_cursor::{Epoch, Extent, Target};
use siltstone_dedup::ShortFingerprint;
use siltstone_device::{
    BLOCK_BYTES, BlockAddress, ByteOffset, LayerId, Place, SegmentId, Sequence,
    header::{self, HEADER_BYTES, Identity, Kind},
    units::{MAX_FRAME_BLOCKS, MAX_FRAME_STORED_BYTES, PLACE_GRAIN_BYTES},
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::{error::MetadataError, frame::FRAME_HEADER_BYTES, record::MAX_COUNT};

const VERSION: u16 = 1;

/// Most entries in a unit; a batch is closed before it could exceed this.
pub(crate) const MAX_ENTRIES: usize = 4096;
/// Most blocks in a unit.
pub(crate) const MAX_BLOCKS: usize = 2048;

/// What a unit says of itself, after the common header. 64 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct UnitHead {
    /// The generation of the segment's use.
    generation: U64,
    /// Counts units since the pool was made, without gaps.
    number: U64,
    first_sequence: U64,
    last_sequence: U64,
    segment: U32,
    /// Bytes of the whole unit, a multiple of 4096.
    unit_bytes: U32,
    entry_count: U32,
    frame_count: U32,
    block_count: U32,
    /// 1 if the unit with the next number holds the rest of the same changes, 0 if not.
    continued: U32,
    reserved: [u8; 8],
}
const UNIT_HEAD_BYTES: usize = 64;
const _: () = assert!(size_of::<UnitHead>() == UNIT_HEAD_BYTES);

/// One map change, as the map will hold it. 32 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskEntry {
    layer: U32,
    len_blocks: U32,
    address: U64,
    sequence: U64,
    /// A place, or all ones for a hole.
    place: U64,
}
const ENTRY_BYTES: usize = 32;
const _: () = assert!(size_of::<DiskEntry>() == ENTRY_BYTES);
const HOLE: u64 = u64::MAX;

/// A frame's position in the unit. 8 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskFrame {
    /// From the start of the unit, in units of 16 bytes.
    grain: U32,
    block_count: U16,
    /// Bytes on the device, header included, in units of 64 rounded up.
    stored_units: U16,
}
const FRAME_ENTRY_BYTES: usize = 8;
const _: () = assert!(size_of::<DiskFrame>() == FRAME_ENTRY_BYTES);
const FINGERPRINT_BYTES: usize = 16;
const _: () = assert!(size_of::<ShortFingerprint>() == FINGERPRINT_BYTES);

/// Where a frame stands in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnitFrame {
    /// From the start of the unit.
    pub(crate) offset_bytes: u32,
    /// Bytes on the device, header included, rounded up to 64.
    pub(crate) stored_bytes: u32,
    pub(crate) block_count: u8,
}

/// A unit's summary, decoded or about to be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) number: u64,
    pub(crate) segment: SegmentId,
    pub(crate) generation: u64,
    pub(crate) first_sequence: Sequence,
    pub(crate) last_sequence: Sequence,
    pub(crate) unit_bytes: u32,
    /// The unit with the next number holds the rest of the same changes.
    pub(crate) is_continued: bool,
    /// Without epochs: the first stands for all until they are published.
    pub(crate) entries: Vec<(Extent, Sequence)>,
    pub(crate) frames: Vec<UnitFrame>,
    /// One for each block, in the order of the frames and of the blocks in them.
    pub(crate) fingerprints: Vec<ShortFingerprint>,
}

/// Bytes of a summary with these counts.
pub(crate) fn summary_bytes(entries: usize, frames: usize, blocks: usize) -> usize {
    HEADER_BYTES
        + UNIT_HEAD_BYTES
        + entries * ENTRY_BYTES
        + frames * FRAME_ENTRY_BYTES
        + blocks * FINGERPRINT_BYTES
}

/// Where the frames begin after a summary of `summary_bytes`.
pub(crate) fn frames_start(summary_bytes: usize) -> usize {
    summary_bytes.next_multiple_of(PLACE_GRAIN_BYTES as usize)
}

/// Bytes of a unit with these counts in which nothing compresses.
pub(crate) fn worst_unit_bytes(entries: usize, frames: usize, blocks: usize) -> usize {
    let headers = frames * (FRAME_HEADER_BYTES + PLACE_GRAIN_BYTES as usize);
    let start = frames_start(summary_bytes(entries, frames, blocks));
    (start + headers + blocks * BLOCK_BYTES).next_multiple_of(BLOCK_BYTES)
}

fn identity(pool: u64, address: ByteOffset) -> Identity {
    Identity { kind: Kind::WriteUnit, version: VERSION, pool, address_bytes: address.0 }
}

impl Summary {
    /// Writes the summary to the start of `out`, the unit that is placed at `address`.
    ///
    /// # Panics
    /// If it does not fit: the reducer made room for exactly these counts.
    pub(crate) fn encode(&self, pool: u64, address: ByteOffset, out: &mut [u8]) {
        let (entries, frames) = (self.entries.len(), self.frames.len());
        let blocks = self.fingerprints.len();
        assert!(entries <= MAX_ENTRIES && blocks <= MAX_BLOCKS);
        let bytes = summary_bytes(entries, frames, blocks);
        let out = &mut out[..bytes];
        let head = UnitHead {
            generation: U64::new(self.generation),
            number: U64::new(self.number),
            first_sequence: U64::new(self.first_sequence.0),
            last_sequence: U64::new(self.last_sequence.0),
            segment: U32::new(self.segment.0),
            unit_bytes: U32::new(self.unit_bytes),
            entry_count: U32::new(entries as u32),
            frame_count: U32::new(frames as u32),
            block_count: U32::new(blocks as u32),
            continued: U32::new(self.is_continued.into()),
            reserved: [0; 8],
        };
        let body = &mut out[HEADER_BYTES..];
        let (head_out, body) = body.split_at_mut(UNIT_HEAD_BYTES);
        head_out.copy_from_slice(head.as_bytes());
        let (entries_out, body) = body.split_at_mut(entries * ENTRY_BYTES);
        for ((extent, sequence), slot) in
            self.entries.iter().zip(entries_out.chunks_exact_mut(ENTRY_BYTES))
        {
            let place = match extent.target {
                Target::Hole => HOLE,
                Target::Stored(place) => place.raw(),
            };
            let entry = DiskEntry {
                layer: U32::new(extent.layer.0),
                len_blocks: U32::new(extent.len_blocks),
                address: U64::new(extent.address.0),
                sequence: U64::new(sequence.0),
                place: U64::new(place),
            };
            slot.copy_from_slice(entry.as_bytes());
        }
        let (frames_out, fingerprints_out) = body.split_at_mut(frames * FRAME_ENTRY_BYTES);
        for (frame, slot) in self.frames.iter().zip(frames_out.chunks_exact_mut(FRAME_ENTRY_BYTES))
        {
            let entry = DiskFrame {
                grain: U32::new(frame.offset_bytes / PLACE_GRAIN_BYTES as u32),
                block_count: U16::new(frame.block_count.into()),
                stored_units: U16::new(frame.stored_bytes.div_ceil(64) as u16),
            };
            slot.copy_from_slice(entry.as_bytes());
        }
        fingerprints_out.copy_from_slice(self.fingerprints.as_bytes());
        header::seal(out, &identity(pool, address), self.last_sequence.0);
    }

    /// How many bytes from the unit's start the summary takes, read from the first page alone and
    /// not yet verified; `None` if no unit can be there.
    pub(crate) fn peek_bytes(first_page: &[u8]) -> Option<usize> {
        let (head, _) = header::Header::read_from_prefix(first_page).ok()?;
        let bytes = head.length_bytes.get() as usize;
        let most = summary_bytes(MAX_ENTRIES, MAX_BLOCKS, MAX_BLOCKS);
        (head.magic == header::MAGIC && (HEADER_BYTES..=most).contains(&bytes)).then_some(bytes)
    }

    /// Reads the summary of the unit at `address` from `bytes`, which start there.
    ///
    /// # Errors
    /// If no whole summary of this pool and place is there, or if it contradicts itself.
    pub(crate) fn decode(
        bytes: &[u8],
        pool: u64,
        address: ByteOffset,
    ) -> Result<Self, MetadataError> {
        let header = header::verify(bytes, &identity(pool, address))?;
        let length = header.length_bytes.get() as usize;
        let wrong = |field, value: u64| MetadataError::Inconsistent {
            structure: "write unit summary",
            field,
            value,
        };
        let Ok((head, body)) = UnitHead::ref_from_prefix(&bytes[HEADER_BYTES..length]) else {
            return Err(wrong("length", length as u64));
        };
        let entries = head.entry_count.get() as usize;
        let frames = head.frame_count.get() as usize;
        let blocks = head.block_count.get() as usize;
        if entries > MAX_ENTRIES || blocks > MAX_BLOCKS || frames > blocks {
            return Err(wrong("number of entries, frames or blocks", entries as u64));
        }
        if summary_bytes(entries, frames, blocks) != length {
            return Err(wrong("length", length as u64));
        }
        let unit_bytes = head.unit_bytes.get();
        if !(unit_bytes as usize).is_multiple_of(BLOCK_BYTES) || (unit_bytes as usize) < length {
            return Err(wrong("unit length", unit_bytes.into()));
        }
        if head.first_sequence.get() > head.last_sequence.get()
            || head.last_sequence.get() >= MAX_COUNT
            || head.number.get() >= MAX_COUNT
        {
            return Err(wrong("sequence or number", head.last_sequence.get()));
        }
        let is_continued = match head.continued.get() {
            0 => false,
            1 => true,
            other => return Err(wrong("continued", other.into())),
        };
        let (entry_bytes, body) = body.split_at(entries * ENTRY_BYTES);
        let (frame_bytes, fingerprint_bytes) = body.split_at(frames * FRAME_ENTRY_BYTES);
        let entries = entry_bytes.chunks_exact(ENTRY_BYTES).map(decode_entry);
        let entries = entries.collect::<Option<Vec<_>>>().ok_or_else(|| wrong("entry", 0))?;
        let mut frame_list = Vec::with_capacity(frames);
        let mut counted = 0;
        let mut end = frames_start(length) as u64;
        for bytes in frame_bytes.chunks_exact(FRAME_ENTRY_BYTES) {
            let frame = DiskFrame::read_from_bytes(bytes).expect("the chunk has a frame's size");
            let offset = u64::from(frame.grain.get()) * PLACE_GRAIN_BYTES;
            let stored_bytes = u32::from(frame.stored_units.get()) * 64;
            if offset < end || offset + 1 >= u64::from(unit_bytes) {
                return Err(wrong("frame offset", offset));
            }
            if stored_bytes == 0 || stored_bytes as usize > MAX_FRAME_STORED_BYTES {
                return Err(wrong("frame length", stored_bytes.into()));
            }
            // Rounding up to 64 may reach up to 63 bytes into what follows.
            end = offset + u64::from(stored_bytes) - 63;
            counted += usize::from(frame.block_count.get());
            let block_count = u8::try_from(frame.block_count.get())
                .map_err(|_| wrong("frame block count", frame.block_count.get().into()))?;
            if block_count == 0 || usize::from(block_count) > MAX_FRAME_BLOCKS {
                return Err(wrong("frame block count", block_count.into()));
            }
            frame_list.push(UnitFrame { offset_bytes: offset as u32, stored_bytes, block_count });
        }
        if counted != blocks {
            return Err(wrong("number of blocks in frames", counted as u64));
        }
        let fingerprints = <[ShortFingerprint]>::ref_from_bytes(fingerprint_bytes)
            .map_err(|_| wrong("fingerprints", blocks as u64))?
            .to_vec();
        Ok(Self {
            number: head.number.get(),
            segment: SegmentId(head.segment.get()),
            generation: head.generation.get(),
            first_sequence: Sequence(head.first_sequence.get()),
            last_sequence: Sequence(head.last_sequence.get()),
            unit_bytes,
            is_continued,
            entries,
            frames: frame_list,
            fingerprints,
        })
    }
}

fn decode_entry(bytes: &[u8]) -> Option<(Extent, Sequence)> {
    let entry = DiskEntry::read_from_bytes(bytes).ok()?;
    let len_blocks = entry.len_blocks.get();
    let address = entry.address.get();
    let target = match entry.place.get() {
        HOLE => Target::Hole,
        raw => {
            let place = Place::from_raw(raw);
            place.advanced(u64::from(len_blocks).checked_sub(1)?)?;
            Target::Stored(place)
        }
    };
    let in_range = len_blocks != 0 && address.checked_add(len_blocks.into())? <= 1 << 48;
    let extent = Extent {
        layer: LayerId(entry.layer.get()),
        epoch: Epoch::FIRST,
        address: BlockAddress(address),
        len_blocks,
        target,
    };
    in_range.then_some((extent, Sequence(entry.sequence.get())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let place = Place::new(SegmentId(3), 8192 + 512, 2).with_stored_bytes(100);
        let stored = Extent {
            layer: LayerId(1),
            epoch: Epoch::FIRST,
            address: BlockAddress(7),
            len_blocks: 3,
            target: Target::Stored(place),
        };
        let hole = Extent { target: Target::Hole, len_blocks: 1 << 28, ..stored };
        Summary {
            number: 4,
            segment: SegmentId(3),
            generation: 11,
            first_sequence: Sequence(20),
            last_sequence: Sequence(22),
            unit_bytes: 8192,
            is_continued: true,
            entries: vec![(stored, Sequence(20)), (hole, Sequence(22))],
            frames: vec![
                UnitFrame { offset_bytes: 512, stored_bytes: 1088, block_count: 8 },
                UnitFrame { offset_bytes: 1600, stored_bytes: 128, block_count: 1 },
            ],
            fingerprints: vec![ShortFingerprint::from_bytes([7; 16]); 9],
        }
    }

    fn encoded() -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        summary().encode(5, ByteOffset(8192), &mut bytes);
        bytes
    }

    #[test]
    fn a_summary_survives_encoding() {
        let bytes = encoded();
        assert_eq!(Summary::decode(&bytes, 5, ByteOffset(8192)).unwrap(), summary());
        assert_eq!(Summary::peek_bytes(&bytes), Some(summary_bytes(2, 2, 9)));
    }

    #[test]
    fn every_flipped_byte_of_a_summary_is_noticed() {
        let bytes = encoded();
        for at in 0..summary_bytes(2, 2, 9) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(Summary::decode(&damaged, 5, ByteOffset(8192)).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_summary_in_the_wrong_place_is_refused() {
        let bytes = encoded();
        assert!(Summary::decode(&bytes, 5, ByteOffset(4096)).is_err());
        assert!(Summary::decode(&bytes, 6, ByteOffset(8192)).is_err());
    }
}
