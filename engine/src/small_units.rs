//! Small units that share a device write: those of batches of which everything was found.
//!
//! A write of 8 KiB costs the kernel, and the threads that it wakes, as much as one of 32. Where duplicates come
//! fast such units are all that is written, thousands a second. So a small unit waits while a later batch is
//! being reduced, which comes to the sealer before long, and they share a write if that one is small, too, and
//! stands right behind it.
//!
//! Nobody may wait for what waits here but for that later batch, and that must not wait for this one: it needs no
//! segment yet, and no memory, for these units have memory that nobody waits for. So what waits is written at once
//! when nothing is being reduced, when somebody waits for a flush, and before anything that cannot share the write.

use std::ops::Range;

use siltstone_device::{AlignedBuffer, BufferPool, ByteOffset};

use crate::planned::ReducedUnit;

/// What counts as small.
const MAX_UNIT_BYTES: u64 = 16 << 10;
/// Most bytes and most units of a shared write.
const MAX_WRITE_BYTES: usize = 64 << 10;
const MAX_UNITS: u64 = 4;

/// Units that stand one behind the other, of consecutive batches that have no others.
pub(crate) struct SmallUnits {
    pub(crate) address: ByteOffset,
    pub(crate) batches: Range<u64>,
    pub(crate) buffer: AlignedBuffer,
}

impl SmallUnits {
    /// Whether these, a batch's, are small.
    pub(crate) fn may_hold(units: &[ReducedUnit]) -> bool {
        units.len() == 1 && units[0].unit_bytes() <= MAX_UNIT_BYTES
    }

    /// The unit of a batch, alone.
    pub(crate) fn first(
        batch: u64,
        address: ByteOffset,
        unit: &[u8],
        buffers: &BufferPool,
    ) -> Self {
        let mut buffer = buffers.take(MAX_WRITE_BYTES);
        buffer.set_len(0);
        let mut units = Self { address, batches: batch..batch, buffer };
        assert!(units.push(batch, address, unit), "there is room for one");
        units
    }

    /// Adds the unit of the next batch, if it can share the write.
    pub(crate) fn push(&mut self, batch: u64, address: ByteOffset, unit: &[u8]) -> bool {
        let used = self.buffer.len();
        let fits = used + unit.len() <= MAX_WRITE_BYTES && !self.is_full();
        let is_next = batch == self.batches.end && address == self.address.plus(used as u64);
        if fits && is_next {
            self.buffer.set_len(used + unit.len());
            self.buffer[used..].copy_from_slice(unit);
            self.batches.end += 1;
        }
        fits && is_next
    }

    pub(crate) fn is_full(&self) -> bool {
        self.batches.end - self.batches.start >= MAX_UNITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: [u8; 4096] = [7; 4096];

    fn address(unit: u64) -> ByteOffset {
        ByteOffset(1 << 20).plus(unit * UNIT.len() as u64)
    }

    fn first() -> SmallUnits {
        SmallUnits::first(5, address(0), &UNIT, &BufferPool::new(1 << 20))
    }

    #[test]
    fn units_side_by_side_share_a_write() {
        let mut units = first();
        for at in 1..MAX_UNITS {
            assert!(!units.is_full());
            assert!(units.push(5 + at, address(at), &[at as u8; 4096]));
        }
        assert!(units.is_full());
        assert!(!units.push(5 + MAX_UNITS, address(MAX_UNITS), &UNIT), "as many as there may be");
        assert_eq!(units.batches, 5..5 + MAX_UNITS);
        assert_eq!(units.buffer.len(), MAX_UNITS as usize * 4096);
        for (at, unit) in units.buffer.chunks(4096).enumerate().skip(1) {
            assert_eq!(unit, [at as u8; 4096]);
        }
    }

    #[test]
    fn what_does_not_follow_shares_nothing() {
        let mut units = first();
        assert!(!units.push(7, address(1), &UNIT), "another batch is between them");
        assert!(!units.push(6, address(2), &UNIT), "it stands elsewhere");
        assert!(!units.push(6, address(1), &[0; MAX_WRITE_BYTES]), "it is too long");
        assert_eq!((units.batches, units.buffer.len()), (5..6, 4096));
    }
}
