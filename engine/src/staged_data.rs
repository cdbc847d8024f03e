//! Data in staging: the blocks of an admitted change, each with a checksum that it carries from the
//! moment it is received until a checksum on disk takes over.
//!
//! Between a client and its frame a block stands in memory for a while, and no error-correcting
//! memory need be there. What changes in it meanwhile must not be given a fingerprint and a frame
//! checksum of its own, by which it would pass for good data for ever.
//!
//! # Where sums are made, and where they are compared
//! | made | of |
//! |---|---|
//! | a write that is copied | what is copied, before the copy |
//! | a write that comes in its own buffer | the buffer, when it is handed over |
//! | a write of part of a block | the merged block, which was itself read with its checks |
//! | replay of the log | the record's data, just verified |
//!
//! | compared | when, and with what |
//! |---|---|
//! | a block in a frame | after the frame's checksum is made: with what was compressed, or the plain copy |
//! | a block of zeros | with the sum of zeros, when it becomes a hole |
//! | a link in a short run | after fingerprinting: altered data may have become another block's |
//! | a log record | after the record's checksum is made: with the data in the record |
//! | a read | after the copy: with the copy |
//! | a block that garbage collection moves | made when it was read; compared with what its new frame decodes to |
//!
//! A plain frame's checksum is joined from these sums ([`joined_sums`](crate::joined_sums)): it is right for the
//! copy because that is compared with them.
//!
//! Comparing comes last each time, so a change at any earlier moment is found. Not covered are: a part of
//! a block before it is merged; a frame's bytes once they are compared, for which its checksum
//! tells, but too late to store it again; the compressor's own work, and faults of the processor
//! that leave memory as it was; a block in a long run of links that became, by its fault, exactly
//! what stands between the duplicates of its neighbours.
//!
//! # What is detected
//! The sum is a CRC-32. At a block's length (32,768 bits) it detects for certain any change of one,
//! two or three bits wherever they are, any odd number of bits, and any change within 32
//! consecutive bits; of other changes it misses one in 2^32.

use siltstone_device::{AlignedBuffer, BLOCK_BYTES};

/// The sum of a block of zeros.
const ZERO_SUM: u32 = 0xc71c_0011;

/// A block is not what was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Altered {
    /// Which of the change's blocks.
    pub(crate) index: usize,
}

/// The sums of a run of whole blocks.
#[derive(Debug)]
pub(crate) struct BlockSums(Box<[u32]>);

impl BlockSums {
    /// Of whole blocks as they are.
    pub(crate) fn of(blocks: &[u8]) -> Self {
        Self(whole(blocks).iter().map(sum).collect())
    }

    /// Copies whole blocks, each right after it was summed and while it is in the cache. A copy
    /// that goes wrong does not have its sum.
    pub(crate) fn of_copied(from: &[u8], into: &mut [u8]) -> Self {
        assert_eq!(from.len(), into.len(), "all of it is copied");
        let slots = into.as_chunks_mut::<BLOCK_BYTES>().0;
        let copied = whole(from).iter().zip(slots).map(|(block, slot)| {
            let sum = sum(block);
            slot.copy_from_slice(block);
            sum
        });
        Self(copied.collect())
    }
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct StagedData {
    memory: AlignedBuffer,
    sums: BlockSums,
}

impl StagedData {
    /// Blocks and the sums that they were received with.
    pub(crate) fn new(memory: AlignedBuffer, sums: BlockSums) -> Self {
        assert_eq!(memory.len(), sums.0.len() * BLOCK_BYTES, "every block has a sum");
        Self { memory, sums }
    }

    /// Blocks that are received at this moment.
    pub(crate) fn received(memory: AlignedBuffer) -> Self {
        let sums = BlockSums::of(&memory);
        Self { memory, sums }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory
    }

    pub(crate) fn blocks(&self) -> &[[u8; BLOCK_BYTES]] {
        whole(&self.memory)
    }

    /// The sum that the block was received with.
    pub(crate) fn sum_of(&self, index: usize) -> u32 {
        self.sums.0[index]
    }

    /// Whether the block was all zeros when it was received.
    pub(crate) fn was_zero(&self, index: usize) -> bool {
        self.sum_of(index) == ZERO_SUM
    }

    /// Whether `block`, used or copied as the block at `index`, is what was received.
    pub(crate) fn check_block(
        &self,
        index: usize,
        block: &[u8; BLOCK_BYTES],
    ) -> Result<(), Altered> {
        if sum(block) == self.sum_of(index) { Ok(()) } else { Err(Altered { index }) }
    }

    /// Whether `blocks`, a copy of all blocks, is what was received.
    pub(crate) fn check(&self, blocks: &[u8]) -> Result<(), Altered> {
        assert_eq!(blocks.len(), self.memory.len(), "a copy of all blocks");
        (0..).zip(whole(blocks)).try_for_each(|(index, block)| self.check_block(index, block))
    }

    /// Copies blocks from the one at `first` on, and checks the copy.
    pub(crate) fn copy_to(&self, first: usize, into: &mut [u8]) -> Result<(), Altered> {
        let (slots, rest) = into.as_chunks_mut::<BLOCK_BYTES>();
        assert!(rest.is_empty(), "whole blocks");
        for ((index, block), slot) in (0..).zip(self.blocks()).skip(first).zip(slots) {
            slot.copy_from_slice(block);
            self.check_block(index, slot)?;
        }
        Ok(())
    }

    /// The memory, to be filled anew.
    pub(crate) fn into_memory(self) -> AlignedBuffer {
        self.memory
    }
}

/// The sum of a block.
pub(crate) fn sum(block: &[u8; BLOCK_BYTES]) -> u32 {
    crc32fast::hash(block)
}

fn whole(bytes: &[u8]) -> &[[u8; BLOCK_BYTES]] {
    let (blocks, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "whole blocks");
    blocks
}

#[cfg(test)]
#[path = "staged_data/tests.rs"]
mod tests;
