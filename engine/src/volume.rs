//! A volume: a thin-provisioned virtual disk, read and written by byte range.

use std::sync::Arc;

use siltstone_device::{BLOCK_BYTES, BlockAddress};

pub(crate) use self::change::ZERO_STAGED_BYTES;
use crate::{
    core::Core,
    error::{EngineError, Result},
    staged_data::BlockSums,
    stats::add,
    volume_core::VolumeCore,
};

mod change;
mod identity;
mod status;
mod write_buffer;

pub use identity::VolumeIdentity;
pub use status::StatusRun;
pub use write_buffer::WriteBuffer;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A handle to a volume, or to a snapshot, which refuses changes. Cheap to clone; every method may
/// be called from any thread.
///
/// Each operation comes in two forms: a blocking one (`read_at`) and an asynchronous one (`read`)
/// that any executor can drive. A completed write is visible to every later read through any
/// handle; it is durable once a flush that began later has completed, through any handle.
#[derive(Clone)]
pub struct Volume {
    pub(crate) core: Arc<Core>,
    pub(crate) shared: Arc<VolumeCore>,
}

impl Volume {
    /// The volume's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The volume's size at this moment, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes()
    }

    /// Whether it refuses changes: the pool does, or it is a snapshot.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.core.read_only || self.shared.is_snapshot()
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.shared.is_snapshot() {
            return Err(EngineError::SnapshotReadOnly { snapshot: self.name().into() });
        }
        self.core.check_writable()
    }

    /// Reads `out.len()` bytes at `offset_bytes`.
    ///
    /// # Errors
    /// If the range passes the end, the device fails, or a block is damaged.
    pub fn read_at(&self, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        pollster::block_on(self.read(offset_bytes, out))
    }

    /// Writes `data` at `offset_bytes`.
    ///
    /// # Errors
    /// If the range passes the end, the pool is full, or it accepts no changes.
    pub fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<()> {
        pollster::block_on(self.write(offset_bytes, data))
    }

    /// Makes every write durable that completed before this call, through any handle.
    ///
    /// # Errors
    /// If the device fails; then nothing more is ever reported as durable.
    pub fn flush(&self) -> Result<()> {
        pollster::block_on(self.commit())
    }

    /// Gives the whole blocks in a range back; they read as zeros afterwards.
    ///
    /// # Errors
    /// If the range passes the end, or the pool accepts no changes.
    pub fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        pollster::block_on(self.trim(offset_bytes, len_bytes))
    }

    /// Makes a range read as zeros, as a hole where it covers whole blocks.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        pollster::block_on(self.zero(offset_bytes, len_bytes))
    }

    /// Reads like [`read_at`](Self::read_at).
    ///
    /// # Errors
    /// As `read_at`.
    pub async fn read(&self, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        self.read_noting_holes(offset_bytes, out, &mut |_, _| {}).await
    }

    /// Reads, and reports which bytes are holes: `note_hole(start, len)`, counted from the start
    /// of the read, in no particular order.
    ///
    /// # Errors
    /// As `read_at`.
    pub async fn read_noting_holes(
        &self,
        offset_bytes: u64,
        out: &mut [u8],
        note_hole: &mut (dyn FnMut(usize, usize) + Send),
    ) -> Result<()> {
        let len_bytes = out.len() as u64;
        self.shared.check_range(offset_bytes, len_bytes)?;
        if out.is_empty() {
            return Ok(());
        }
        let counters = &self.core.stats.counters;
        add(&counters.reads, 1);
        add(&counters.read_bytes, len_bytes);
        let first = offset_bytes / BLOCK;
        let end = (offset_bytes + len_bytes).div_ceil(BLOCK);
        let volume_blocks = self.shared.len_blocks();
        let cache_blocks = self.core.tuning.frame_cache_bytes as u64 / BLOCK;
        if let Some(ahead) = self.shared.streams.note(first, end, volume_blocks, cache_blocks) {
            self.core.read_ahead(&self.shared, ahead).await;
        }
        let skip = (offset_bytes % BLOCK) as usize;
        let wanted_len = out.len();
        let clip = |at: u64, count: u64| {
            let start = (at as usize * BLOCK_BYTES).max(skip) - skip;
            let end = ((at + count) as usize * BLOCK_BYTES - skip).min(wanted_len);
            (start, end - start)
        };
        let mut note = |at: u64, count: u64| {
            let (start, len) = clip(at, count);
            note_hole(start, len);
        };
        if skip == 0 && len_bytes.is_multiple_of(BLOCK) {
            self.core.read_blocks(&self.shared, BlockAddress(first), out, &mut note).await?;
        } else {
            let mut blocks = self.core.buffers.take((end - first) as usize * BLOCK_BYTES);
            self.core
                .read_blocks(&self.shared, BlockAddress(first), &mut blocks, &mut note)
                .await?;
            out.copy_from_slice(&blocks[skip..skip + wanted_len]);
        }
        // What nobody can read any more is forgotten, and would read as zeros.
        self.shared.check_exists()
    }

    /// Memory for a write of `len_bytes` at `offset_bytes`, to be filled and handed to
    /// [`write_buffer`](Self::write_buffer).
    #[must_use]
    pub fn buffer(&self, offset_bytes: u64, len_bytes: usize) -> WriteBuffer {
        let skip = (offset_bytes % BLOCK) as usize;
        let blocks = (skip + len_bytes).div_ceil(BLOCK_BYTES);
        let memory = self.core.write_buffers.take(blocks * BLOCK_BYTES);
        WriteBuffer { memory, offset_bytes, len_bytes }
    }

    /// Writes like [`write_at`](Self::write_at).
    ///
    /// # Errors
    /// As `write_at`.
    pub async fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<()> {
        self.shared.check_range(offset_bytes, data.len() as u64)?;
        let batch_bytes = self.core.tuning.batch_bytes;
        let mut rest = data;
        let mut at = offset_bytes;
        while !rest.is_empty() {
            // Pieces end at multiples of a batch, so that all but the first are aligned.
            let room = batch_bytes - (at % batch_bytes as u64) as usize;
            let (piece, after) = rest.split_at(room.min(rest.len()));
            let mut buffer = self.buffer(at, piece.len());
            let sums = buffer.receive(piece);
            self.admit_buffer(buffer, sums).await?;
            at += piece.len() as u64;
            rest = after;
        }
        self.after_write(data.len()).await
    }

    /// Writes a filled buffer at the offset for which it was made.
    ///
    /// # Errors
    /// As `write_at`.
    pub async fn write_buffer(&self, buffer: WriteBuffer) -> Result<()> {
        let len_bytes = buffer.len_bytes;
        self.shared.check_range(buffer.offset_bytes, len_bytes as u64)?;
        if buffer.memory.len() > self.core.tuning.batch_bytes {
            return self.write(buffer.offset_bytes, buffer.bytes()).await;
        }
        if len_bytes > 0 {
            let sums = BlockSums::of(&buffer.bytes()[buffer.whole_blocks()]);
            self.admit_buffer(buffer, sums).await?;
        }
        self.after_write(len_bytes).await
    }

    async fn after_write(&self, len_bytes: usize) -> Result<()> {
        add(&self.core.stats.counters.writes, 1);
        add(&self.core.stats.counters.written_bytes, len_bytes as u64);
        if self.core.superblock.sync_always { self.core.flush().await } else { Ok(()) }
    }

    /// Flushes like [`flush`](Self::flush).
    ///
    /// # Errors
    /// As `flush`.
    pub async fn commit(&self) -> Result<()> {
        if self.core.read_only {
            return Ok(());
        }
        self.core.flush().await
    }

    /// Discards like [`discard`](Self::discard).
    ///
    /// # Errors
    /// As `discard`.
    pub async fn trim(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.shared.check_range(offset_bytes, len_bytes)?;
        self.check_writable()?;
        let first = offset_bytes.div_ceil(BLOCK);
        let mut end = (offset_bytes + len_bytes) / BLOCK;
        if offset_bytes + len_bytes == self.shared.size_bytes() {
            // Nothing of the last block lies outside the range but what is outside the volume.
            end = self.shared.len_blocks();
        }
        self.zero_blocks(first, end, offset_bytes + len_bytes).await?;
        self.after_write(0).await
    }

    /// Writes zeros like [`write_zeroes`](Self::write_zeroes).
    ///
    /// # Errors
    /// As `write_zeroes`.
    pub async fn zero(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.shared.check_range(offset_bytes, len_bytes)?;
        self.check_writable()?;
        let end_bytes = offset_bytes + len_bytes;
        let is_to_end = end_bytes == self.shared.size_bytes();
        self.zero_range(offset_bytes, end_bytes, is_to_end, end_bytes).await?;
        self.after_write(0).await
    }

    /// Makes what lies behind the volume's end read as zeros: called when the end has moved there
    /// from `old_bytes`. Whatever clients had admitted behind it comes before, and no more follows.
    pub(crate) async fn zero_cut_off(&self, old_bytes: u64) -> Result<()> {
        self.zero_range(self.size_bytes(), old_bytes, true, 0).await
    }

    /// Starts to read a range into the frame cache.
    ///
    /// # Errors
    /// If the range passes the end.
    pub async fn prefetch(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.shared.check_range(offset_bytes, len_bytes)?;
        let limit = self.core.tuning.frame_cache_bytes as u64 / 2;
        let first = offset_bytes / BLOCK;
        let len_blocks = len_bytes.min(limit).div_ceil(BLOCK);
        if len_blocks > 0 {
            let ahead = crate::read_ahead::Ahead { first, len_blocks };
            self.core.read_ahead(&self.shared, ahead).await;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({:?}, {} bytes)", self.name(), self.size_bytes())
    }
}
