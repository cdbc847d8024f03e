//! Memory that a write is received into.

use std::ops::Range;

use siltstone_device::AlignedBuffer;

use super::BLOCK;
use crate::staged_data::BlockSums;

/// Memory that a write is received into: the engine takes it over without a copy.
pub struct WriteBuffer {
    pub(super) memory: AlignedBuffer,
    pub(super) offset_bytes: u64,
    pub(super) len_bytes: usize,
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

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.skip()..][..self.len_bytes]
    }

    /// Which of the bytes are whole blocks; what is before and behind them is parts of blocks.
    pub(super) fn whole_blocks(&self) -> Range<usize> {
        let (start, end) = (self.offset_bytes, self.offset_bytes + self.len_bytes as u64);
        let whole_start = start.next_multiple_of(BLOCK).min(end);
        let whole_end = (end / BLOCK * BLOCK).max(whole_start);
        (whole_start - start) as usize..(whole_end - start) as usize
    }

    /// Takes `data` in. Returns the sums of the whole blocks in it.
    pub(super) fn receive(&mut self, data: &[u8]) -> BlockSums {
        let Range { start, end } = self.whole_blocks();
        let slot = self.as_mut_slice();
        slot[..start].copy_from_slice(&data[..start]);
        slot[end..].copy_from_slice(&data[end..]);
        BlockSums::of_copied(&data[start..end], &mut slot[start..end])
    }
}
