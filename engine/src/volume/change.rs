//! From byte ranges to admitted changes: whole blocks go as they are, parts of blocks are merged
//! with the rest of theirs, and each change first gets space and staging memory.

use std::sync::Arc;

use siltstone_device::{BLOCK_BYTES, BlockAddress};

use super::{BLOCK, Volume, WriteBuffer};
use crate::{
    admission::{Admittable, Refusal},
    budget::BudgetClosed,
    core::Core,
    error::{EngineError, Result},
    overlay::{ChangeBody, Merge},
    space::{Promise, Purpose, worst_case_bytes},
    staged_data::{BlockSums, StagedData},
    stats::{Stage, add},
};

/// What a change without data holds of the staging budget, and of the backlog.
pub(crate) const ZERO_STAGED_BYTES: usize = 512;

/// A write gives up once so many rounds of reclaiming in a row have freed nothing: the first leaves
/// the map as it is; then a dead segment is condemned by one checkpoint and freed by the next (see
/// the segment table).
const FRUITLESS_ROUNDS: usize = 3;

/// Rounds of garbage collection that a write waits for before those count as fruitless, too.
const COLLECTED_ROUNDS: usize = 64;

/// For so many of them, a write that has to wait leaves room for the collector to recover.
const RECOVERY_ROUNDS: u64 = 32;

impl Volume {
    /// Zeros from `offset_bytes` to `end_bytes`, to the end of the last block if `is_to_end`;
    /// refused if the volume ends before `limit_bytes` by then.
    pub(super) async fn zero_range(
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

    /// Admits the whole blocks of a buffer, which `sums` is of, as they are, and merges a partial
    /// head and tail.
    pub(super) async fn admit_buffer(&self, buffer: WriteBuffer, sums: BlockSums) -> Result<()> {
        self.check_writable()?;
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
            let mut memory = self.core.write_buffers.take(whole.len());
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
        self.core.unstage(change);
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
        let mut block = self.core.write_buffers.take(BLOCK_BYTES);
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
                    self.core.unstage(&change);
                    let ChangeBody::Data(data) = change.body else {
                        unreachable!("a merge writes data");
                    };
                    block = data.into_memory();
                }
            }
        }
    }

    pub(super) async fn zero_blocks(&self, first: u64, end: u64, end_bytes: u64) -> Result<()> {
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
            self.core.note_freeing();
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
        self.core.pace_write(staged_bytes).await;
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
    /// needs and a checkpoint free what it can. Writes that wait for room have their turns, or some
    /// would wait while others take what comes free.
    async fn promise_space(&self, bytes: u64, purpose: Purpose) -> Result<Promise<'_>> {
        let space = &self.core.space;
        if purpose == Purpose::Free {
            return self.find_space(bytes, purpose).await;
        }
        if !space.has_queue()
            && let Ok(promise) = space.promise(self.core.room(), bytes, purpose, 0)
        {
            self.core.note_refusal(None);
            return Ok(promise);
        }
        let _timer = self.core.stats.time(Stage::SpaceWait);
        let turn = space.queue().await;
        if turn.is_hopeless() {
            return space.promise(self.core.room(), bytes, purpose, 0);
        }
        let found = self.find_space(bytes, purpose).await;
        if let Err(EngineError::NoSpace { .. }) = &found {
            turn.refuse();
        }
        if found.is_ok() || matches!(found, Err(EngineError::NoSpace { .. })) {
            self.core.note_refusal(found.as_ref().err());
        }
        found
    }

    /// Waits as long as waiting frees anything.
    async fn find_space(&self, bytes: u64, purpose: Purpose) -> Result<Promise<'_>> {
        let core = &self.core;
        let (mut fruitless, mut collected, mut margin_bytes) = (0, 0, 0);
        // A round that fills as many segments as it frees has freed some all the same, for a moment.
        let mut most_free = core.space.unpromised_bytes(core.room());
        let first_round = core.collection.rounds();
        loop {
            let promised = core.space.promise(core.room(), bytes, purpose, margin_bytes);
            let full = matches!(promised, Err(EngineError::NoSpace { .. }));
            if !full || fruitless == FRUITLESS_ROUNDS {
                return promised;
            }
            let rounds = core.collection.rounds();
            core.reclaim(fruitless > 0).await?;
            let free = core.space.unpromised_bytes(core.room());
            let freed = free > most_free;
            most_free = most_free.max(free);
            if core.collection.is_busy() {
                // It frees something in the end, or ends.
            } else if freed {
                fruitless = 0;
            } else if core.collection.rounds() > rounds && collected < COLLECTED_ROUNDS {
                // What it emptied has gone to fill other segments; the next one may be freed.
                collected += 1;
            } else {
                fruitless += 1;
            }
            let waited = core.collection.rounds() - first_round;
            let has_hope = fruitless == 0 && waited < RECOVERY_ROUNDS;
            let leaves_some = has_hope && purpose == Purpose::Write;
            margin_bytes = if leaves_some { core.space.recovery_bytes() } else { 0 };
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

    /// Waits for a place among what reducers have not begun with, and for memory.
    async fn take_staging(&self, bytes: usize) -> Result<()> {
        let taken = async {
            let place = self.backlog.take(bytes).await?;
            self.staging.take(bytes).await?.keep();
            place.keep();
            Ok(())
        };
        let taken: std::result::Result<(), BudgetClosed> = taken.await;
        taken.or_else(|_| self.health.check_open().and(Err(EngineError::Closing)))
    }

    /// Takes back what a change holds that was not admitted.
    fn unstage(&self, change: &Admittable) {
        self.backlog.give_back(change.staged_bytes);
        self.staging.give_back(change.staged_bytes);
        self.space.release(change.space_bytes);
    }

    /// Sends everything through the pipeline and checkpoints, so that promises are settled, dead
    /// segments are freed, and the collector works. If that has not helped, `thoroughly` merges the
    /// map, which shows what else is dead, and collects what yields anything.
    async fn reclaim(&self, thoroughly: bool) -> Result<()> {
        self.drain().await?;
        // Merging everything is for once, before a collection, and not for each of its steps.
        let compact = thoroughly && !self.collection.is_busy();
        // A pool that is being closed makes no more checkpoints than one.
        self.checkpointing.run(compact, || self.health.check_open()).await
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use siltstone_device::sim::SimDevice;

    use crate::{
        Pool, VolumeOptions,
        config::{CreateOptions, OpenOptions, Tuning},
    };

    /// A flush waits for all of it.
    #[test]
    fn what_waits_for_reducers_is_a_small_part_of_staging() {
        const WRITERS: usize = 16;
        const WRITE_BYTES: usize = 64 << 10;
        let device = SimDevice::new(64 << 20);
        Pool::create_on(device.clone(), None, &CreateOptions::default()).expect("room enough");
        let tuning = Tuning { reducers: 1, batch_bytes: 64 << 10, ..Tuning::default() };
        let options = OpenOptions { tuning, ..OpenOptions::default() };
        let pool = Pool::open_on(device, None, &options).expect("a pool");
        let size = VolumeOptions::new((WRITERS * 16 * WRITE_BYTES) as u64);
        let volume = pool.create_volume("data", &size).expect("a volume");
        let limit = pool.core().backlog.limit_bytes();
        assert!(limit < WRITERS * WRITE_BYTES, "{limit} bytes would never be reached");
        assert!(limit < pool.core().staging.limit_bytes() / 8, "{limit} bytes are no small part");
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (volume, pool) = (&volume, &pool);
                scope.spawn(move || {
                    for write in 0..16 {
                        let at = writer * 16 + write;
                        let data = vec![(at % 255) as u8 + 1; WRITE_BYTES];
                        volume.write_at((at * WRITE_BYTES) as u64, &data).expect("it is written");
                        let waiting = pool.core().admission.waiting_bytes();
                        assert!(waiting <= limit, "{waiting} bytes wait");
                    }
                });
            }
        });
        pool.flush().expect("it is durable");
        assert_eq!(pool.core().backlog.used_bytes(), 0, "what reducers took is given back");
        pool.close().expect("it closes");
    }
}
