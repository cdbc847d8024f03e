//! Writing images: in the background when much has been stored that the last one does not cover, and
//! when the pool is closed.
//!
//! The table of the index is read bucket by bucket through a few buffers of a chunk each, while
//! everything else goes on. The segments are taken one after the other, none that anybody else may
//! need (`space`): if one cannot be had, the image is given up.

use std::{collections::VecDeque, ops::Range};

use siltstone_device::{
    AlignedBuffer, BLOCK_BYTES, ByteOffset, DeviceError, Durability, SegmentId,
    request::{self, Pending},
    runtime::yield_now,
};

use super::{
    Coverage, IndexImage, Written,
    chunk::{self, CHUNK_BYTES, ChunkIdentity},
};
use crate::{core::Core, stats::add};

/// Writes under way, each of a chunk: 1 MiB.
const MAX_IN_FLIGHT: usize = 4;

/// Why an image was not written to its end.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error("there is no room for it")]
    NoRoom,
    #[error("the pool is being closed")]
    Stopped,
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Writes an image whenever one is due, until the pool is closed or has failed.
pub(crate) async fn keep(core: &Core) {
    let is_ending = || core.is_ending();
    loop {
        let listener = core.images.listen();
        if is_ending() {
            return;
        }
        let Some(coverage) = core.images.take_due(core, false) else {
            listener.await;
            continue;
        };
        if write(core, coverage, false, &is_ending).await {
            core.checkpointing.request();
        }
    }
}

/// Writes an image if one is due when the pool is closed: behind the last checkpoint but one.
/// Returns whether it was written.
pub(crate) async fn write_at_close(core: &Core) -> bool {
    let Some(coverage) = core.images.take_due(core, true) else { return false };
    write(core, coverage, true, &|| core.health.check().is_err()).await
}

/// Writes an image; returns whether the next checkpoint has one to name.
async fn write(
    core: &Core,
    coverage: Coverage,
    is_closing: bool,
    is_ending: &(dyn Fn() -> bool + Sync),
) -> bool {
    let began = core.runtime.now();
    let first = coverage.generation;
    // Shards may be thinned while they are read: their entries are in this sample all the same.
    let sample_bits = core.index.least_sample_bits();
    let mut writer = Writer { core, image: first, segment: None, in_flight: VecDeque::new() };
    let outcome = writer.write_all(is_closing, is_ending).await;
    // Nothing of it may be under way when its segments are used for something else.
    let outcome = match writer.finish().await {
        Ok(()) => outcome,
        Err(error) => Err(error.into()),
    };
    let generations = first..core.table.next_generation();
    match outcome {
        Ok((chunk_count, entries)) => {
            let image = IndexImage {
                generations,
                shape: core.index.shape(),
                entries,
                sample_bits,
                chunk_count,
                unfinished: coverage.unfinished.clone(),
            };
            let elapsed = core.runtime.now() - began;
            tracing::debug!(entries, chunk_count, ?elapsed, "an image of the index is written");
            add(&core.stats.counters.index_images, 1);
            core.images.state.lock().written = Some(Written { image, coverage });
            true
        }
        Err(reason) => {
            // A device that is in trouble says so to those who depend on it.
            tracing::debug!(%reason, "no image of the index is written");
            core.table.release_image(&generations);
            false
        }
    }
}

struct Writer<'a> {
    core: &'a Core,
    /// The image's number.
    image: u64,
    /// The segment that is being filled, and how far.
    segment: Option<(SegmentId, u64)>,
    in_flight: VecDeque<Pending<AlignedBuffer>>,
}

impl Writer<'_> {
    /// Writes all chunks; returns their number and that of the entries.
    async fn write_all(
        &mut self,
        is_closing: bool,
        is_ending: &(dyn Fn() -> bool + Sync),
    ) -> std::result::Result<(u32, u64), Unfinished> {
        let core = self.core;
        let buckets = core.index.shape().buckets;
        let most_bytes = buckets + core.index.stats().entries * size_of::<u64>() as u64;
        let chunks = most_bytes / (CHUNK_BYTES as u64 / 2) + 1;
        let in_segment = core.superblock.layout.segment_bytes / CHUNK_BYTES as u64;
        let segments = chunks.div_ceil(in_segment);
        if !core.space.has_room_for_image(core.room(), segments, is_closing) {
            return Err(Unfinished::NoRoom);
        }
        let (mut next_bucket, mut chunk_count, mut entries) = (0, 0, 0);
        while next_bucket < buckets {
            if is_ending() {
                return Err(Unfinished::Stopped);
            }
            if core.space.has_queue() {
                return Err(Unfinished::NoRoom);
            }
            if self.in_flight.len() >= MAX_IN_FLIGHT
                && let Some(write) = self.in_flight.pop_front()
            {
                write.await?;
            }
            let address = self.next_address().ok_or(Unfinished::NoRoom)?;
            let encoded = self.write_chunk(address, chunk_count, next_bucket..buckets);
            next_bucket = encoded.next_bucket;
            entries += u64::from(encoded.entries);
            chunk_count += 1;
            yield_now().await;
        }
        Ok((chunk_count, entries))
    }

    /// Where the next chunk goes. Takes a segment if need be.
    fn next_address(&mut self) -> Option<ByteOffset> {
        let core = self.core;
        let layout = &core.superblock.layout;
        let (id, used_bytes) = match self.segment {
            Some((id, used)) if used + CHUNK_BYTES as u64 <= layout.segment_bytes => (id, used),
            _ => (core.space.take_for_image(core.room())?.0, 0),
        };
        let end_bytes = used_bytes + CHUNK_BYTES as u64;
        self.segment = Some((id, end_bytes));
        core.table.note_image(id, end_bytes as u32);
        Some(layout.geometry().segment_start(id).plus(used_bytes))
    }

    /// Submits a chunk with as many of the buckets as it has room for.
    fn write_chunk(
        &mut self,
        address: ByteOffset,
        number: u32,
        buckets: Range<u64>,
    ) -> chunk::Encoded {
        let core = self.core;
        let mut buffer = core.buffers.take(CHUNK_BYTES);
        let pool = core.superblock.pool;
        let identity = ChunkIdentity { pool, address, image: self.image, chunk: number };
        let index = &core.index;
        let encoded = chunk::encode(&identity, buckets, |bucket| index.bucket(bucket), &mut buffer);
        let len_bytes = encoded.len_bytes.next_multiple_of(BLOCK_BYTES);
        buffer[encoded.len_bytes..len_bytes].fill(0);
        buffer.set_len(len_bytes);
        add(&core.stats.counters.index_image_bytes, len_bytes as u64);
        self.in_flight.push_back(request::write(&*core.device, address, buffer, Durability::Flush));
        encoded
    }

    /// Waits for the writes under way.
    async fn finish(&mut self) -> std::result::Result<(), DeviceError> {
        let mut outcome = Ok(());
        for write in self.in_flight.drain(..) {
            outcome = outcome.and(write.await.map(drop));
        }
        outcome
    }
}
