//! Frames: up to 32 KiB of unique blocks stored together under one header and checksum.
//!
//! ```text
//! header (48 bytes) | stored bytes | padding to 16
//! ```
//! A compressed frame with `part_count` > 1 begins its stored bytes with that many u32 lengths,
//! and each part holds an equal share of the blocks (the last may hold fewer) and decodes alone.
//! The header names the frame's own pool, segment, offset and generation, so that a misdirected,
//! lost or stale write is told apart from the frame that belongs there, whatever its checksum says.

use siltstone_device::{
    BLOCK_BYTES, Place, SegmentId,
    units::{MAX_FRAME_BLOCKS, MAX_FRAME_STORED_BYTES},
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{
    compress::{Compressor, Decompressor},
    error::FrameError,
    joined_sums::joined,
};

const MAGIC: [u8; 2] = *b"SF";
const VERSION: u8 = 1;

/// How a frame's blocks are stored. On-disk values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Codec {
    /// As they are.
    Plain = 0,
    /// zstd.
    Zstd = 1,
}

/// A frame's header on disk. 48 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct FrameHeader {
    /// CRC-32 of the rest of the header.
    pub(crate) header_checksum: U32,
    /// CRC-32 of the stored bytes.
    pub(crate) payload_checksum: U32,
    pub(crate) magic: [u8; 2],
    pub(crate) version: u8,
    pub(crate) codec: u8,
    pub(crate) block_count: u8,
    pub(crate) part_count: u8,
    /// The level that the codec was asked for.
    pub(crate) level: i8,
    /// How the stored bytes are encrypted; 0 = they are not, the only value so far.
    pub(crate) encryption: u8,
    pub(crate) stored_bytes: U32,
    /// The compression dictionary; 0 = none, the only value so far.
    pub(crate) dictionary: U32,
    pub(crate) segment: U32,
    pub(crate) offset_bytes: U32,
    pub(crate) pool: U64,
    pub(crate) generation: U64,
}

/// Bytes of a [`FrameHeader`].
pub(crate) const FRAME_HEADER_BYTES: usize = 48;
const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);
pub(crate) type HeaderBytes = [u8; FRAME_HEADER_BYTES];

/// A frame's position and contents as the reducer knows them, before the sealer places it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameBody {
    pub(crate) codec: Codec,
    pub(crate) level: i8,
    pub(crate) block_count: u8,
    pub(crate) stored_bytes: u32,
    pub(crate) payload_checksum: u32,
}

impl FrameBody {
    /// Stores whole blocks at the start of `out`, compressed if that pays, else as they are. `sums` are
    /// those that the blocks came with: of blocks stored as they are, the frame's checksum is made of them,
    /// so it vouches for the copy only once that is compared with them, too.
    ///
    /// # Panics
    /// If there is not a sum for each block.
    pub(crate) fn store(
        compressor: &mut Compressor,
        plain: &[u8],
        sums: &[u32],
        level: i8,
        out: &mut [u8],
    ) -> Self {
        assert_eq!(plain.len(), sums.len() * BLOCK_BYTES, "every block has a sum");
        let (codec, stored_bytes, payload_checksum) = match compressor.compress(plain, level, out) {
            Some(bytes) => (Codec::Zstd, bytes, crc32fast::hash(&out[..bytes])),
            None => {
                out[..plain.len()].copy_from_slice(plain);
                (Codec::Plain, plain.len(), joined(sums))
            }
        };
        Self {
            codec,
            level,
            block_count: (plain.len() / BLOCK_BYTES) as u8,
            stored_bytes: stored_bytes as u32,
            payload_checksum,
        }
    }

    /// Bytes that the frame takes, header included, padding excluded.
    pub(crate) fn total_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.stored_bytes as usize
    }

    /// Writes the header of the frame that is placed at `place`.
    pub(crate) fn write_header(&self, pool: u64, generation: u64, place: Place, out: &mut [u8]) {
        let mut header = FrameHeader {
            header_checksum: U32::ZERO,
            payload_checksum: U32::new(self.payload_checksum),
            magic: MAGIC,
            version: VERSION,
            codec: self.codec as u8,
            block_count: self.block_count,
            part_count: 1,
            level: self.level,
            encryption: 0,
            stored_bytes: U32::new(self.stored_bytes),
            dictionary: U32::ZERO,
            segment: U32::new(place.segment().0),
            offset_bytes: U32::new(place.frame_offset_bytes()),
            pool: U64::new(pool),
            generation: U64::new(generation),
        };
        header.header_checksum = U32::new(crc32fast::hash(&header.as_bytes()[4..]));
        out[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
    }
}

/// Whose frame is expected at a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameIdentity {
    pub(crate) pool: u64,
    pub(crate) place: Place,
    pub(crate) generation: u64,
}

/// A frame whose header and contents have been verified. Borrows the device's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VerifiedFrame<'a> {
    place: Place,
    codec: Codec,
    pub(crate) block_count: usize,
    part_count: usize,
    pub(crate) header: &'a HeaderBytes,
    /// The stored bytes.
    pub(crate) payload: &'a [u8],
}

/// Reads a frame's header at the start of `bytes` and checks it against `expected`.
pub(crate) fn read_header(
    bytes: &[u8],
    expected: &FrameIdentity,
) -> Result<FrameHeader, FrameError> {
    let place = expected.place;
    let Ok((header, _)) = FrameHeader::read_from_prefix(bytes) else {
        return Err(FrameError::Checksum { place });
    };
    let checksum = crc32fast::hash(&header.as_bytes()[4..]);
    if header.magic != MAGIC || checksum != header.header_checksum.get() {
        return Err(FrameError::Checksum { place });
    }
    let impossible = |field, value| Err(FrameError::Header { place, field, value });
    if header.version > VERSION {
        return impossible("version", header.version.into());
    }
    if header.pool.get() != expected.pool
        || header.segment.get() != place.segment().0
        || header.offset_bytes.get() != place.frame_offset_bytes()
        || header.generation.get() != expected.generation
    {
        return Err(FrameError::Identity {
            place,
            found_segment: header.segment.get(),
            found_offset_bytes: header.offset_bytes.get(),
            found_generation: header.generation.get(),
            expected_generation: expected.generation,
        });
    }
    if header.encryption != 0 {
        return impossible("encryption", header.encryption.into());
    }
    if header.dictionary.get() != 0 {
        return impossible("dictionary", header.dictionary.get().into());
    }
    let blocks = usize::from(header.block_count);
    if blocks == 0 || blocks > MAX_FRAME_BLOCKS {
        return impossible("block count", blocks as u64);
    }
    if header.part_count == 0 || usize::from(header.part_count) > blocks {
        return impossible("part count", header.part_count.into());
    }
    if header.codec > Codec::Zstd as u8 {
        return impossible("codec", header.codec.into());
    }
    let stored = header.stored_bytes.get() as usize;
    let plain_fits = header.codec != Codec::Plain as u8 || stored == blocks * BLOCK_BYTES;
    if stored + FRAME_HEADER_BYTES > MAX_FRAME_STORED_BYTES || !plain_fits {
        return impossible("stored length", stored as u64);
    }
    Ok(header)
}

/// Checks a whole frame at the start of `bytes`: header, identity, contents.
pub(crate) fn verify<'a>(
    bytes: &'a [u8],
    expected: &FrameIdentity,
) -> Result<VerifiedFrame<'a>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk() else {
        return Err(FrameError::Checksum { place: expected.place });
    };
    verify_parts(header, rest, expected)
}

/// Checks a whole frame of which the header and what follows it lie in two places.
pub(crate) fn verify_parts<'a>(
    header_bytes: &'a HeaderBytes,
    rest: &'a [u8],
    expected: &FrameIdentity,
) -> Result<VerifiedFrame<'a>, FrameError> {
    let place = expected.place;
    let header = read_header(header_bytes, expected)?;
    let stored = header.stored_bytes.get() as usize;
    let Some(payload) = rest.get(..stored) else {
        return Err(FrameError::Header { place, field: "stored length", value: stored as u64 });
    };
    if crc32fast::hash(payload) != header.payload_checksum.get() {
        return Err(FrameError::Checksum { place });
    }
    let codec = if header.codec == Codec::Plain as u8 { Codec::Plain } else { Codec::Zstd };
    Ok(VerifiedFrame {
        place,
        codec,
        block_count: usize::from(header.block_count),
        part_count: usize::from(header.part_count),
        header: header_bytes,
        payload,
    })
}

/// How many stored bytes the header of a frame that has not been verified speaks of.
pub(crate) fn peek_stored_bytes(header: &HeaderBytes) -> usize {
    let header: &FrameHeader = zerocopy::transmute_ref!(header);
    header.stored_bytes.get() as usize
}

impl VerifiedFrame<'_> {
    /// The blocks, if they are stored as they are.
    pub(crate) fn as_plain(&self) -> Option<&[u8]> {
        (self.codec == Codec::Plain).then_some(self.payload)
    }

    /// Decodes all blocks into `out`, which must hold `block_count` blocks.
    pub(crate) fn decode_all(
        &self,
        decompressor: &mut Decompressor,
        out: &mut [u8],
    ) -> Result<(), FrameError> {
        let place = self.place;
        let plain_bytes = self.block_count * BLOCK_BYTES;
        let out = &mut out[..plain_bytes];
        let fail = || FrameError::Codec { place };
        if self.codec == Codec::Plain {
            out.copy_from_slice(self.payload);
            return Ok(());
        }
        if self.part_count == 1 {
            return decompressor.decompress(self.payload, out).ok_or_else(fail);
        }
        let table_bytes = self.part_count * 4;
        let (table, mut stored) = self.payload.split_at_checked(table_bytes).ok_or_else(fail)?;
        let share_bytes = self.block_count.div_ceil(self.part_count) * BLOCK_BYTES;
        let mut parts = out.chunks_mut(share_bytes);
        for length in table.chunks_exact(4) {
            let length = U32::read_from_bytes(length).expect("the chunk has four bytes").get();
            let (part, rest) = stored.split_at_checked(length as usize).ok_or_else(fail)?;
            let plain = parts.next().ok_or_else(fail)?;
            decompressor.decompress(part, plain).ok_or_else(fail)?;
            stored = rest;
        }
        parts.next().is_none().then_some(()).ok_or_else(fail)
    }
}

/// Where a frame lies within its segment, as the place of its first block.
pub(crate) fn place_of(segment: SegmentId, offset_bytes: usize, total_bytes: usize) -> Place {
    let offset = u32::try_from(offset_bytes).expect("segments are at most 16 MiB");
    Place::new(segment, offset, 0).with_stored_bytes(total_bytes)
}

#[cfg(test)]
mod tests {
    use siltstone_device::SeededRandom;

    use super::*;
    use crate::config::FRAME_BLOCKS;

    fn frame(plain: &[u8], codec: Codec, stored: &[u8]) -> (Vec<u8>, FrameIdentity) {
        let body = FrameBody {
            codec,
            level: 1,
            block_count: (plain.len() / BLOCK_BYTES) as u8,
            stored_bytes: stored.len() as u32,
            payload_checksum: crc32fast::hash(stored),
        };
        let place = place_of(SegmentId(3), 160, body.total_bytes());
        let mut bytes = vec![0; body.total_bytes()];
        bytes[FRAME_HEADER_BYTES..].copy_from_slice(stored);
        body.write_header(9, 5, place, &mut bytes);
        (bytes, FrameIdentity { pool: 9, place, generation: 5 })
    }

    fn blocks() -> Vec<u8> {
        (0..3 * BLOCK_BYTES).map(|at| (at / 700) as u8).collect()
    }

    #[test]
    fn plain_and_compressed_frames_decode_to_what_went_in() {
        let plain = blocks();
        let packed = zstd::bulk::compress(&plain, 1).unwrap();
        for (codec, stored) in [(Codec::Plain, &plain), (Codec::Zstd, &packed)] {
            let (bytes, identity) = frame(&plain, codec, stored);
            let mut out = vec![0; plain.len()];
            let verified = verify(&bytes, &identity).unwrap();
            verified.decode_all(&mut Decompressor::new(), &mut out).unwrap();
            assert_eq!(out, plain);
        }
    }

    #[test]
    fn blocks_stored_as_they_are_are_good_if_their_sums_are() {
        for blocks in [1, FRAME_BLOCKS] {
            let mut noise = vec![0; blocks * BLOCK_BYTES];
            SeededRandom::new(blocks as u64).fill(&mut noise);
            let mut sums: Vec<u32> = noise.chunks(BLOCK_BYTES).map(crc32fast::hash).collect();
            for is_true in [true, false] {
                let mut bytes = vec![0; FRAME_HEADER_BYTES + noise.len()];
                let out = &mut bytes[FRAME_HEADER_BYTES..];
                let body = FrameBody::store(&mut Compressor::new(), &noise, &sums, 1, out);
                assert_eq!(body.codec, Codec::Plain);
                let place = place_of(SegmentId(3), 160, body.total_bytes());
                body.write_header(9, 5, place, &mut bytes);
                let verified = verify(&bytes, &FrameIdentity { pool: 9, place, generation: 5 });
                let is_refused = matches!(verified, Err(FrameError::Checksum { .. }));
                assert_eq!(is_refused, !is_true, "{blocks} blocks: {verified:?}");
                sums[blocks / 2] ^= 1;
            }
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let plain = blocks();
        let packed = zstd::bulk::compress(&plain, 1).unwrap();
        let (bytes, identity) = frame(&plain, Codec::Zstd, &packed);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(verify(&damaged, &identity).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_whole_frame_of_another_place_or_time_is_refused_by_name() {
        let plain = blocks();
        let (bytes, identity) = frame(&plain, Codec::Plain, &plain);
        let moved = FrameIdentity { place: Place::new(SegmentId(3), 176, 0), ..identity };
        let stale = FrameIdentity { generation: 6, ..identity };
        let foreign = FrameIdentity { pool: 8, ..identity };
        for expected in [moved, stale, foreign] {
            assert!(matches!(verify(&bytes, &expected), Err(FrameError::Identity { .. })));
        }
    }
}
