//! Cold reads of single blocks with nothing but what they cannot do without: one read of the
//! device for all of the block's frame, a checksum, and the decoding. No map, no cache, no identity.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use pollster::block_on;
use siltstone_device::{
    AlignedBuffer, BufferPool, ByteOffset, Durability, SeededRandom, request,
    units::PLACE_GRAIN_BYTES,
};
use zstd::zstd_safe::DCtx;

use super::{
    bed::Bed,
    limit::{Frames, PIECE_BYTES},
};
use crate::{
    data::BLOCK_BYTES,
    drive,
    error::BenchError,
    sample::{Sample, Stopwatch},
};

/// What stands before each frame in a pool.
const HEADER_BYTES: usize = 48;

thread_local! {
    static DECODER: RefCell<(DCtx<'static>, Vec<u8>)> = RefCell::new((DCtx::create(), Vec::new()));
}

/// A frame on the raw device.
struct Stored {
    /// Of its first block of the device.
    start_bytes: u64,
    /// From there to its end, in whole blocks.
    len_bytes: usize,
    /// Where in these its bytes begin, behind its header.
    skip_bytes: usize,
    frame_bytes: usize,
}

/// Frames on the raw device, one behind the other as in a pool.
pub(crate) struct FrameReads<'a> {
    bed: &'a Bed,
    /// The first of the data's, as many as there was room for.
    stored: Vec<Stored>,
    plain_bytes: usize,
}

impl<'a> FrameReads<'a> {
    /// Writes the frames to the raw device.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn store(bed: &'a Bed, frames: &Frames) -> Result<Self, BenchError> {
        let grain = PLACE_GRAIN_BYTES as usize;
        let mut bytes = Vec::with_capacity(bed.raw_bytes as usize);
        let mut stored = Vec::new();
        for frame in frames.iter() {
            let header = bytes.len();
            let start = header / BLOCK_BYTES * BLOCK_BYTES;
            let end = (header + HEADER_BYTES + frame.len()).next_multiple_of(BLOCK_BYTES);
            if end > bed.raw_bytes as usize {
                break;
            }
            stored.push(Stored {
                start_bytes: start as u64,
                len_bytes: end - start,
                skip_bytes: header + HEADER_BYTES - start,
                frame_bytes: frame.len(),
            });
            bytes.resize(header + HEADER_BYTES, 0);
            bytes.extend_from_slice(frame);
            bytes.resize(bytes.len().next_multiple_of(grain), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        for (at, piece) in (0_u64..).step_by(PIECE_BYTES).zip(bytes.chunks(PIECE_BYTES)) {
            let piece = AlignedBuffer::from_bytes(piece);
            block_on(request::write(&*bed.raw, ByteOffset(at), piece, Durability::Flush))?;
        }
        Ok(Self { bed, stored, plain_bytes: frames.frame_bytes })
    }

    /// Reads blocks at random, `depth` at a time. Counts them.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn run(&self, depth: usize, time: Duration) -> Result<Sample, BenchError> {
        let buffers = BufferPool::new(depth * 2 * self.plain_bytes);
        let end = Instant::now() + time;
        let stopwatch = Stopwatch::start();
        let counts = drive::run(self.bed.cores, depth, |lane| {
            let mut random = SeededRandom::new(lane as u64);
            let buffers = &buffers;
            async move {
                let mut out = [0; BLOCK_BYTES];
                let mut count = 0_u64;
                while Instant::now() < end {
                    let stored = &self.stored[random.below(self.stored.len() as u64) as usize];
                    let block = random.below((self.plain_bytes / BLOCK_BYTES) as u64) as usize;
                    let buffer = buffers.take(stored.len_bytes);
                    let start = ByteOffset(stored.start_bytes);
                    let read = request::read(&*self.bed.raw, start, buffer).await?;
                    self.decode(&read[stored.skip_bytes..][..stored.frame_bytes], block, &mut out);
                    std::hint::black_box(&out);
                    count += 1;
                }
                Ok::<u64, BenchError>(count)
            }
        })?;
        Ok(stopwatch.stop(counts.into_iter().sum()))
    }

    /// Copies one of a frame's blocks out of it; of the data's last frame, which may be shorter, another one.
    fn decode(&self, frame: &[u8], block: usize, out: &mut [u8; BLOCK_BYTES]) {
        std::hint::black_box(crc32fast::hash(frame));
        DECODER.with_borrow_mut(|(context, plain)| {
            plain.resize(self.plain_bytes, 0);
            // What does not decompress is plain.
            let blocks = match context.decompress(&mut plain[..], frame) {
                Ok(len) => &plain[..len],
                Err(_) => frame,
            };
            let blocks = blocks.as_chunks().0;
            *out = blocks[block % blocks.len()];
        });
    }
}
