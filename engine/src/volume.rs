//! A volume: a thin-provisioned virtual disk, read and written by byte range.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use siltstone_cursor::{Run, Target};
use siltstone_device::{AlignedBuffer, BLOCK_BYTES, BlockAddress};

use crate::{
    admission::{Admittable, Refusal},
    core::Core,
    error::{EngineError, Result},
    findings::LostRange,
    lost,
    overlay::{ChangeBody, Merge},
    space::{Promise, Purpose, worst_case_bytes},
    staged_data::{BlockSums, StagedData},
    stats::{Stage, add},
    volume_core::VolumeCore,
};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What a change without data holds of the staging budget.
const ZERO_STAGED_BYTES: usize = 512;

/// A write gives up once so many rounds of reclaiming in a row have freed nothing: a dead segment
/// is condemned by one checkpoint and freed by the next (see the segment table).
const FRUITLESS_ROUNDS: usize = 2;

/// A handle to a volume. Cheap to clone; every method may be called from any thread.
///
/// Each operation comes in two forms: a blocking one (`read_at`) and an asynchronous one (`read`)
/// that any executor can drive. A completed write is visible to every later read through any
/// handle; it is durable once a flush that began later has completed, through any handle.
#[derive(Clone)]
pub struct Volume {
    pub(crate) core: Arc<Core>,
    pub(crate) shared: Arc<VolumeCore>,
}

/// Memory that a write is received into: the engine takes it over without a copy.
pub struct WriteBuffer {
    memory: AlignedBuffer,
    offset_bytes: u64,
    len_bytes: usize,
}

impl WriteBuffer {
    fn skip(&self) -> usize {
        (self.offset_bytes % BLOCK) as usize
    }

    /// The bytes to be written, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let skip = self.skip();
        let len = self.len_bytes;
        &mut self.memory[skip..skip + len]
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.skip()..][..self.len_bytes]
    }

    /// Which of the bytes are whole blocks; what is before and behind them is parts of blocks.
    fn whole_blocks(&self) -> Range<usize> {
        let (start, end) = (self.offset_bytes, self.offset_bytes + self.len_bytes as u64);
        let whole_start = start.next_multiple_of(BLOCK).min(end);
        let whole_end = (end / BLOCK * BLOCK).max(whole_start);
        (whole_start - start) as usize..(whole_end - start) as usize
    }

    /// Takes `data` in. Returns the sums of the whole blocks in it.
    fn receive(&mut self, data: &[u8]) -> BlockSums {
        let Range { start, end } = self.whole_blocks();
        let slot = self.as_mut_slice();
        slot[..start].copy_from_slice(&data[..start]);
        slot[end..].copy_from_slice(&data[end..]);
        BlockSums::of_copied(&data[start..end], &mut slot[start..end])
    }
}

/// A run of a volume's bytes that is allocated or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRun {
    /// Where it starts, in bytes.
    pub offset_bytes: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Nothing is stored for it: it reads as zeros.
    pub is_hole: bool,
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

    /// Whether the pool refuses changes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.core.read_only
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
        if let Some(ahead) = self.shared.streams.note(first, end, volume_blocks) {
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
            return self.core.read_blocks(&self.shared, BlockAddress(first), out, &mut note).await;
        }
        let mut blocks = self.core.buffers.take((end - first) as usize * BLOCK_BYTES);
        self.core.read_blocks(&self.shared, BlockAddress(first), &mut blocks, &mut note).await?;
        out.copy_from_slice(&blocks[skip..skip + wanted_len]);
        Ok(())
    }

    /// Memory for a write of `len_bytes` at `offset_bytes`, to be filled and handed to
    /// [`write_buffer`](Self::write_buffer).
    #[must_use]
    pub fn buffer(&self, offset_bytes: u64, len_bytes: usize) -> WriteBuffer {
        let skip = (offset_bytes % BLOCK) as usize;
        let blocks = (skip + len_bytes).div_ceil(BLOCK_BYTES);
        let memory = self.core.buffers.take(blocks * BLOCK_BYTES);
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
        self.core.check_writable()?;
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
        self.core.check_writable()?;
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

    /// Zeros from `offset_bytes` to `end_bytes`, to the end of the last block if `is_to_end`;
    /// refused if the volume ends before `limit_bytes` by then.
    async fn zero_range(
        &self,
        offset_bytes: u64,
        end_bytes: u64,
        is_to_end: bool,
        limit_bytes: u64,
    ) -> Result<()> {
        let first = offset_bytes.div_ceil(BLOCK);
        let end = if is_to_end { end_bytes.div_ceil(BLOCK) } else { end_bytes / BLOCK };
        const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
        let head = (first * BLOCK).min(end_bytes) - offset_bytes;
        if head > 0 {
            self.merge_at(offset_bytes, &ZEROS[..head as usize], limit_bytes).await?;
        }
        self.zero_blocks(first, end, limit_bytes).await?;
        let tail_start = (end * BLOCK).max(offset_bytes + head);
        if tail_start < end_bytes {
            let zeros = &ZEROS[..(end_bytes - tail_start) as usize];
            self.merge_at(tail_start, zeros, limit_bytes).await?;
        }
        Ok(())
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

    /// Says which parts of a range are holes: at most `max_runs` runs, in order and without gaps,
    /// neighbours of the same kind joined. They may cover less than the range, but never nothing.
    ///
    /// # Errors
    /// If the range passes the end or the map cannot be read.
    pub async fn status(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max_runs: usize,
    ) -> Result<Vec<StatusRun>> {
        const WINDOW_BLOCKS: u64 = 1 << 16;
        self.shared.check_range(offset_bytes, len_bytes)?;
        let end_bytes = offset_bytes + len_bytes;
        let end = end_bytes.div_ceil(BLOCK);
        let mut at = offset_bytes / BLOCK;
        let mut runs: Vec<StatusRun> = Vec::new();
        while at < end {
            let window = (end - at).min(WINDOW_BLOCKS);
            for (first, count, is_hole) in self.window_status(at, window).await? {
                let start = (first * BLOCK).max(offset_bytes);
                let len = ((first + count) * BLOCK).min(end_bytes) - start;
                let full = runs.len() >= max_runs.max(1);
                match runs.last_mut() {
                    Some(last) if last.is_hole == is_hole => last.len_bytes += len,
                    _ if full => return Ok(runs),
                    _ => runs.push(StatusRun { offset_bytes: start, len_bytes: len, is_hole }),
                }
            }
            at += window;
        }
        Ok(runs)
    }

    /// What damaged pages of the map hide of the volume, in order: there nothing can be read, and
    /// [`status`](Self::status) fails. Reads the volume's part of the map.
    pub async fn hidden_ranges(&self) -> Vec<LostRange> {
        lost::hidden(&self.core, &self.shared).await
    }

    /// `(first block, count, is hole)` for a window, gapless.
    async fn window_status(&self, first: u64, count: u64) -> Result<Vec<(u64, u64, bool)>> {
        let address = BlockAddress(first);
        let mut staged = Vec::new();
        self.shared.overlay.read(address, count, &mut staged);
        let mut mapped: Vec<Run> = Vec::new();
        self.core.map.lookup(&self.shared.chain, address, count as u32, &mut mapped).await?;
        let mut mapped = mapped.into_iter().peekable();
        let mut staged = staged.into_iter().peekable();
        let mut out = Vec::new();
        let mut at = first;
        while at < first + count {
            while mapped.next_if(|run| run.address.0 + u64::from(run.len_blocks) <= at).is_some() {}
            while staged.next_if(|run| run.address.0 + u64::from(run.len_blocks) <= at).is_some() {}
            let end_of = |address: BlockAddress, len: u32| address.0 + u64::from(len);
            let (end, is_hole) = match (staged.peek(), mapped.peek()) {
                (Some(run), _) if run.address.0 <= at => {
                    (end_of(run.address, run.len_blocks), run.is_hole())
                }
                (over, Some(run)) => {
                    let limit = over.map_or(u64::MAX, |over| over.address.0);
                    (end_of(run.address, run.len_blocks).min(limit), run.target == Target::Hole)
                }
                (_, None) => (first + count, true),
            };
            let end = end.min(first + count);
            out.push((at, end - at, is_hole));
            at = end;
        }
        Ok(out)
    }

    /// Admits the whole blocks of a buffer, which `sums` is of, as they are, and merges a partial
    /// head and tail.
    async fn admit_buffer(&self, buffer: WriteBuffer, sums: BlockSums) -> Result<()> {
        self.core.check_writable()?;
        let (start, end) = (buffer.offset_bytes, buffer.offset_bytes + buffer.len_bytes as u64);
        if start.is_multiple_of(BLOCK) && end.is_multiple_of(BLOCK) {
            let address = BlockAddress(start / BLOCK);
            return self.admit_blocks(address, StagedData::new(buffer.memory, sums), end).await;
        }
        let bytes = buffer.bytes();
        let whole = buffer.whole_blocks();
        let at = |byte: usize| start + byte as u64;
        if whole.start > 0 {
            self.merge_at(start, &bytes[..whole.start], end).await?;
        }
        if !whole.is_empty() {
            let mut memory = self.core.buffers.take(whole.len());
            memory.copy_from_slice(&bytes[whole.clone()]);
            let data = StagedData::new(memory, sums);
            self.admit_blocks(BlockAddress(at(whole.start) / BLOCK), data, end).await?;
        }
        if whole.end < bytes.len() {
            self.merge_at(at(whole.end), &bytes[whole.end..], end).await?;
        }
        Ok(())
    }

    pub(crate) async fn admit_blocks(
        &self,
        address: BlockAddress,
        data: StagedData,
        end_bytes: u64,
    ) -> Result<()> {
        let change = self.stage(address, data, end_bytes).await?;
        let admitted = self.core.admission.admit(change, None, None);
        admitted.map(|_| ()).map_err(|(change, refusal)| self.refused(&change, refusal))
    }

    /// Takes back what a refused change holds, and says why it was refused.
    fn refused(&self, change: &Admittable, refusal: Refusal) -> EngineError {
        self.core.staging.give_back(change.staged_bytes);
        self.core.space.release(change.space_bytes);
        match refusal {
            Refusal::Superseded => unreachable!("only a merge can be superseded, and tries again"),
            Refusal::Closed => self.core.health.check_open().err().unwrap_or(EngineError::Closing),
            Refusal::OutOfVolume => {
                let end_bytes = change.end_bytes;
                let offset_bytes = (change.address.0 * BLOCK).min(end_bytes);
                let len_bytes = end_bytes - offset_bytes;
                let deleted = self.shared.check_exists().err();
                deleted.unwrap_or_else(|| EngineError::OutOfRange {
                    volume: self.name().into(),
                    offset_bytes,
                    len_bytes,
                    size_bytes: self.size_bytes(),
                })
            }
        }
    }

    /// Writes part of one block: reads the rest and admits the whole, again if another change of
    /// the block came in between.
    async fn merge_at(&self, offset_bytes: u64, data: &[u8], end_bytes: u64) -> Result<()> {
        let address = BlockAddress(offset_bytes / BLOCK);
        let skip = (offset_bytes % BLOCK) as usize;
        debug_assert!(skip + data.len() <= BLOCK_BYTES);
        add(&self.core.stats.counters.merged_writes, 1);
        let merge: Merge<'_> = self.shared.overlay.begin_merge(address).await;
        let mut block = self.core.buffers.take(BLOCK_BYTES);
        loop {
            merge.restart();
            self.core.read_blocks(&self.shared, address, &mut block, &mut |_, _| {}).await?;
            block[skip..skip + data.len()].copy_from_slice(data);
            let change = self.stage(address, StagedData::received(block), end_bytes).await?;
            match self.core.admission.admit(change, Some(&merge), None) {
                Ok(_) => return Ok(()),
                Err((change, refusal)) if refusal != Refusal::Superseded => {
                    return Err(self.refused(&change, refusal));
                }
                Err((change, _)) => {
                    self.core.staging.give_back(change.staged_bytes);
                    self.core.space.release(change.space_bytes);
                    let ChangeBody::Data(data) = change.body else {
                        unreachable!("a merge writes data");
                    };
                    block = data.into_memory();
                }
            }
        }
    }

    async fn zero_blocks(&self, first: u64, end: u64, end_bytes: u64) -> Result<()> {
        const MAX_BLOCKS: u64 = 1 << 31;
        let mut at = first;
        while at < end {
            let len = (end - at).min(MAX_BLOCKS);
            let promise = self.promise_space(worst_case_bytes(0), Purpose::Free).await?;
            self.core.take_staging(ZERO_STAGED_BYTES).await?;
            let change = Admittable {
                volume: Arc::clone(&self.shared),
                address: BlockAddress(at),
                len_blocks: len as u32,
                body: ChangeBody::Zero,
                staged_bytes: ZERO_STAGED_BYTES,
                space_bytes: promise.keep(),
                end_bytes,
            };
            let admitted = self.core.admission.admit(change, None, None);
            admitted.map_err(|(change, refusal)| self.refused(&change, refusal))?;
            add(&self.core.stats.counters.zeroings, 1);
            at += len;
        }
        Ok(())
    }

    /// Gets a change its memory and its space.
    async fn stage(
        &self,
        address: BlockAddress,
        data: StagedData,
        end_bytes: u64,
    ) -> Result<Admittable> {
        let staged_bytes = data.bytes().len();
        let promise = self.promise_space(worst_case_bytes(staged_bytes), Purpose::Write).await?;
        let timer = self.core.stats.time(Stage::AdmitWait);
        let taken = self.core.take_staging(staged_bytes).await;
        drop(timer);
        taken?;
        Ok(Admittable {
            volume: Arc::clone(&self.shared),
            address,
            len_blocks: (staged_bytes / BLOCK_BYTES) as u32,
            body: ChangeBody::Data(data),
            staged_bytes,
            space_bytes: promise.keep(),
            end_bytes,
        })
    }

    /// Promises space; when there is none, first lets what is staged settle for what it really
    /// needs and a checkpoint free what it can.
    async fn promise_space(&self, bytes: u64, purpose: Purpose) -> Result<Promise<'_>> {
        let core = &self.core;
        let mut fruitless = 0;
        loop {
            let promised = core.space.promise(core.room(), bytes, purpose);
            let full = matches!(promised, Err(EngineError::NoSpace { .. }));
            if !full || fruitless == FRUITLESS_ROUNDS {
                if purpose == Purpose::Write {
                    core.note_fullness(promised.as_ref().err());
                }
                return promised;
            }
            let before = core.space.unpromised_bytes(core.room());
            core.reclaim().await?;
            let freed = core.space.unpromised_bytes(core.room()) > before;
            fruitless = if freed { 0 } else { fruitless + 1 };
        }
    }
}

impl Core {
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(EngineError::ReadOnly);
        }
        self.health.check_open()
    }

    /// Logs when the pool becomes full, once until it has room again.
    fn note_fullness(&self, refusal: Option<&EngineError>) {
        let was_full = self.was_full.swap(refusal.is_some(), Ordering::Relaxed);
        if let Some(error) = refusal
            && !was_full
        {
            tracing::warn!(%error, "writes are refused");
        }
    }

    async fn take_staging(&self, bytes: usize) -> Result<()> {
        let taken = self.staging.take(bytes).await;
        taken.or_else(|_| self.health.check_open().and(Err(EngineError::Closing)))
    }

    /// Sends everything through the pipeline and checkpoints, so that promises are settled and
    /// dead segments are freed.
    async fn reclaim(&self) -> Result<()> {
        let target = self.admission.admitted();
        self.admission.drain_to(target);
        self.admission.wait_published(target, || self.health.check()).await?;
        self.checkpointing.run(true, || self.health.check()).await
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({:?}, {} bytes)", self.name(), self.size_bytes())
    }
}
