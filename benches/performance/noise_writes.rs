//! Data that does not compress with nothing but what it cannot do without: one copy, fingerprints, a
//! checksum, and one write to the device, on the same cores. No map, no index, no frames.

use std::sync::atomic::{AtomicUsize, Ordering};

use siltstone_dedup::{Fingerprint, fingerprint_blocks};
use siltstone_device::{BufferPool, ByteOffset, Durability, request};

use super::{bed::Bed, limit::PIECE_BYTES};
use crate::{
    data::BLOCK_BYTES,
    drive,
    error::BenchError,
    sample::{Sample, Stopwatch},
};

/// Writes under way at a time.
const DEPTH: usize = 8;

/// Stores `noise` on the raw device. Counts bytes.
///
/// # Errors
/// If the device fails.
pub(crate) fn run(bed: &Bed, noise: &[u8]) -> Result<Sample, BenchError> {
    let buffers = BufferPool::new(2 * DEPTH * PIECE_BYTES);
    // Memory that is ready, as an engine's is.
    let warm: Vec<_> = (0..DEPTH + 1).map(|_| buffers.take(PIECE_BYTES)).collect();
    warm.into_iter().for_each(|mut buffer| buffer.fill(1));
    let next = AtomicUsize::new(0);
    let stopwatch = Stopwatch::start();
    drive::run(bed.cores, DEPTH, |_| {
        let (next, buffers) = (&next, &buffers);
        async move {
            let mut fingerprints = [Fingerprint::from_bytes([0; 32]); PIECE_BYTES / BLOCK_BYTES];
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed) * PIECE_BYTES;
                let Some(piece) = noise.get(at..at + PIECE_BYTES) else {
                    return Ok::<(), BenchError>(());
                };
                let mut buffer = buffers.take(PIECE_BYTES);
                buffer.copy_from_slice(piece);
                let blocks: Vec<_> = buffer.as_chunks::<BLOCK_BYTES>().0.iter().collect();
                fingerprint_blocks(&blocks, &mut fingerprints);
                std::hint::black_box((&fingerprints, crc32fast::hash(&buffer)));
                let offset = ByteOffset(at as u64 % bed.raw_bytes);
                request::write(&*bed.raw, offset, buffer, Durability::Flush).await?;
            }
        }
    })?;
    pollster::block_on(request::flush(&*bed.raw))?;
    Ok(stopwatch.stop(noise.len() as u64))
}
