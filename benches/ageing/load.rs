//! What clients do to a volume, and what they remember of it.
//!
//! Each lane has blocks of its own, so that it knows what they hold however operations of several
//! lanes are ordered. What lane `n` of `m` has are all ranges of [`RANGE_BLOCKS`] whose number is
//! `n` modulo `m`.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use siltstone_benches::data::{BLOCK_BYTES, distinct};
use siltstone_device::SeededRandom;
use siltstone_engine::{EngineError, Volume};

/// Neighbours that are discarded, and written again, together.
const RANGE_BLOCKS: u64 = 16;
/// Of so many operations one is a discard of a range.
const OPERATIONS_A_DISCARD: u64 = 1000;
/// Ranges that wait to be written again: so many are holes at a time.
const WAITING_RANGES: usize = 8;
/// Writes of a lane between two flushes.
const WRITES_A_FLUSH: u64 = 1024;

/// What blocks are made of: real ones, each numbered, so that none is written twice by chance.
pub(crate) struct Source {
    blocks: Arc<Vec<u8>>,
    duplicates_percent: u64,
}

impl Source {
    pub(crate) fn new(data: Vec<u8>, duplicates_percent: u64) -> Self {
        Self { blocks: Arc::new(distinct(&data).bytes), duplicates_percent }
    }
}

/// A block with a number: the same number is the same block.
fn fill_block(blocks: &[u8], number: u64, block: &mut [u8]) {
    let count = (blocks.len() / BLOCK_BYTES) as u64;
    let at = SeededRandom::new(number).below(count) as usize;
    block.copy_from_slice(&blocks[at * BLOCK_BYTES..][..BLOCK_BYTES]);
    block[BLOCK_BYTES / 2..][..8].copy_from_slice(&number.to_le_bytes());
}

/// See the module's page. A copy remembers what the blocks hold at this moment.
#[derive(Clone)]
pub(crate) struct Lane {
    number: u64,
    lanes: u64,
    blocks: Arc<Vec<u8>>,
    duplicates_percent: u64,
    skew: f64,
    random: SeededRandom,
    /// What each of the lane's blocks holds, by its number among them; 0 is a hole.
    held: Vec<u64>,
    next_block: u64,
    /// Of the lane's blocks, the most popular first.
    popularity: Vec<u32>,
    /// How popular the blocks up to this one are together.
    cumulative: Vec<f64>,
    discarded: VecDeque<u64>,
    written_bytes: u64,
    /// Writes that were refused for lack of space.
    refused: u64,
    longest_ns: u64,
}

impl Lane {
    pub(crate) fn all(lanes: usize, source: &Source, skew: f64) -> Vec<Self> {
        let lane = |number: u64| Self {
            number,
            lanes: lanes as u64,
            blocks: Arc::clone(&source.blocks),
            duplicates_percent: source.duplicates_percent,
            skew,
            random: SeededRandom::new(number),
            held: Vec::new(),
            next_block: number + 1,
            popularity: Vec::new(),
            cumulative: Vec::new(),
            discarded: VecDeque::new(),
            written_bytes: 0,
            refused: 0,
            longest_ns: 0,
        };
        (0..lanes as u64).map(lane).collect()
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn live_blocks(&self) -> u64 {
        self.held.iter().filter(|&&held| held != 0).count() as u64
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    pub(crate) fn longest_ns(&self) -> u64 {
        self.longest_ns
    }

    /// Where a block of the lane is, in bytes of the volume.
    fn offset(&self, index: u64) -> u64 {
        let range = index / RANGE_BLOCKS * self.lanes + self.number;
        (range * RANGE_BLOCKS + index % RANGE_BLOCKS) * BLOCK_BYTES as u64
    }

    /// The number of a block that is to be written: mostly a new one.
    fn draw(&mut self) -> u64 {
        if self.random.below(100) < self.duplicates_percent && !self.held.is_empty() {
            let held = self.held[self.random.below(self.held.len() as u64) as usize];
            if held != 0 {
                return held;
            }
        }
        self.next_block += self.lanes;
        self.next_block
    }

    /// Adds a range to the lane's blocks.
    pub(crate) async fn grow(&mut self, volume: &Volume) -> Result<(), EngineError> {
        let first = self.held.len() as u64;
        self.held.extend([0; RANGE_BLOCKS as usize]);
        self.write_range(volume, first).await
    }

    /// All blocks are there: decides how popular each is.
    pub(crate) fn settle(&mut self) {
        let count = self.held.len();
        self.popularity = (0..).take(count).collect();
        for at in (1..count).rev() {
            self.popularity.swap(at, self.random.below(at as u64 + 1) as usize);
        }
        let mut sum = 0.0;
        let popularity = (1..=count).map(|rank| {
            sum += (rank as f64).powf(-self.skew);
            sum
        });
        self.cumulative = popularity.collect();
        self.restart();
    }

    /// Refusals and the longest write are counted from now on.
    pub(crate) fn forget_delays(&mut self) {
        self.refused = 0;
        self.longest_ns = 0;
    }

    /// What is written from now on counts.
    pub(crate) fn restart(&mut self) {
        self.written_bytes = 0;
    }

    async fn write_range(&mut self, volume: &Volume, first: u64) -> Result<(), EngineError> {
        let mut data = vec![0; RANGE_BLOCKS as usize * BLOCK_BYTES];
        let mut numbers = [0; RANGE_BLOCKS as usize];
        for (number, block) in numbers.iter_mut().zip(data.chunks_exact_mut(BLOCK_BYTES)) {
            *number = self.draw();
            fill_block(&self.blocks, *number, block);
        }
        if self.write(volume, first, &data).await? {
            self.held[first as usize..][..numbers.len()].copy_from_slice(&numbers);
        }
        Ok(())
    }

    /// Whether there was room.
    async fn write(
        &mut self,
        volume: &Volume,
        index: u64,
        data: &[u8],
    ) -> Result<bool, EngineError> {
        let began = Instant::now();
        let written = volume.write(self.offset(index), data).await;
        self.longest_ns = self.longest_ns.max(began.elapsed().as_nanos() as u64);
        // Refused or not: it is the load that is counted here, not the pool's work.
        self.written_bytes += data.len() as u64;
        match written {
            Ok(()) => Ok(true),
            Err(EngineError::NoSpace { .. }) => {
                self.refused += 1;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Goes on until so many bytes have been written since the lane settled.
    pub(crate) async fn overwrite(
        &mut self,
        volume: &Volume,
        until_bytes: u64,
    ) -> Result<(), EngineError> {
        let mut block = [0; BLOCK_BYTES];
        let mut operations = 0;
        while self.written_bytes < until_bytes {
            operations += 1;
            if self.random.chance(1, OPERATIONS_A_DISCARD) {
                self.discard(volume).await?;
            }
            let most = *self.cumulative.last().expect("the lane has blocks");
            let point = self.random.below(1 << 53) as f64 / (1u64 << 53) as f64 * most;
            let rank = self.cumulative.partition_point(|&sum| sum <= point);
            let index = u64::from(self.popularity[rank.min(self.popularity.len() - 1)]);
            let number = self.draw();
            fill_block(&self.blocks, number, &mut block);
            if self.held[index as usize] != 0 && self.write(volume, index, &block).await? {
                self.held[index as usize] = number;
            }
            if operations % WRITES_A_FLUSH == 0 {
                volume.commit().await?;
            }
        }
        Ok(())
    }

    /// Discards a range, and writes one again that was discarded a while ago.
    async fn discard(&mut self, volume: &Volume) -> Result<(), EngineError> {
        let ranges = self.held.len() as u64 / RANGE_BLOCKS;
        let first = self.random.below(ranges) * RANGE_BLOCKS;
        if !self.discarded.contains(&first) {
            volume.trim(self.offset(first), RANGE_BLOCKS * BLOCK_BYTES as u64).await?;
            self.held[first as usize..][..RANGE_BLOCKS as usize].fill(0);
            self.discarded.push_back(first);
        }
        if self.discarded.len() > WAITING_RANGES
            && let Some(first) = self.discarded.pop_front()
        {
            self.write_range(volume, first).await?;
        }
        Ok(())
    }

    /// Reads all blocks of the lane; returns how many are not what was written last.
    pub(crate) async fn count_wrong(&self, volume: &Volume) -> Result<u64, EngineError> {
        let mut expected = [0; BLOCK_BYTES];
        let mut read = vec![0; RANGE_BLOCKS as usize * BLOCK_BYTES];
        let mut wrong = 0;
        for first in (0..self.held.len() as u64).step_by(RANGE_BLOCKS as usize) {
            volume.read(self.offset(first), &mut read).await?;
            let held = &self.held[first as usize..];
            for (&number, block) in held.iter().zip(read.chunks_exact(BLOCK_BYTES)) {
                expected.fill(0);
                if number != 0 {
                    fill_block(&self.blocks, number, &mut expected);
                }
                wrong += u64::from(*block != expected);
            }
        }
        Ok(wrong)
    }
}
