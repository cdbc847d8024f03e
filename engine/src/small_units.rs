//! Small units that share a device write: those of batches of which everything was found.
//!
//! A write of 8 KiB costs the kernel, and the threads that it wakes, as much as one of 32. Where duplicates come
//! fast such units are all that is written, thousands a second. So a small unit waits while a later batch is
//! being reduced, which comes to the sealer before long, and they share a write if that one is small, too, and
//! stands right behind it.
//!
//! Nobody may wait for what waits here but for that later batch, and that must not wait for this one: it needs no
//! memory of these units, for nobody waits for that. So what waits is written as soon as nothing is being
//! reduced or somebody has everything sent through, before anything that cannot share the write, and before
//! the sealer waits for a segment.

use std::ops::Range;

use siltstone_device::{AlignedBuffer, BufferPool, ByteOffset};

use crate::planned::ReducedUnit;

/// What counts as small.
const MAX_UNIT_BYTES: u64 = 16 << 10;
/// Most bytes and most units of a shared write.
const MAX_WRITE_BYTES: usize = 64 << 10;
const MAX_UNITS: usize = 4;

/// Units that stand one behind the other, of consecutive batches that have no others.
pub(crate) struct SmallUnits {
    address: ByteOffset,
    batches: Range<u64>,
    units: Vec<AlignedBuffer>,
}

impl SmallUnits {
    /// Whether these, a batch's, are small.
    pub(crate) fn may_hold(units: &[ReducedUnit]) -> bool {
        units.len() == 1 && units[0].unit_bytes() <= MAX_UNIT_BYTES
    }

    /// The unit of a batch, alone.
    pub(crate) fn first(batch: u64, address: ByteOffset, unit: AlignedBuffer) -> Self {
        Self { address, batches: batch..batch + 1, units: vec![unit] }
    }

    /// Whether the unit of a batch can share the write.
    pub(crate) fn may_share(&self, batch: u64, address: ByteOffset, unit: &[u8]) -> bool {
        let used = self.len_bytes();
        let fits = used + unit.len() <= MAX_WRITE_BYTES && !self.is_full();
        fits && batch == self.batches.end && address == self.address.plus(used as u64)
    }

    /// Adds a unit that may share the write.
    pub(crate) fn push(&mut self, unit: AlignedBuffer) {
        self.units.push(unit);
        self.batches.end += 1;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.units.len() == MAX_UNITS
    }

    fn len_bytes(&self) -> usize {
        self.units.iter().map(|unit| unit.len()).sum()
    }

    /// What to write where, for which batches.
    pub(crate) fn into_write(
        mut self,
        buffers: &BufferPool,
    ) -> (Range<u64>, ByteOffset, AlignedBuffer) {
        if self.units.len() > 1 {
            let mut joined = buffers.take(self.len_bytes());
            let mut rest = &mut joined[..];
            for unit in self.units.drain(..) {
                let (part, after) = rest.split_at_mut(unit.len());
                part.copy_from_slice(&unit);
                rest = after;
            }
            self.units.push(joined);
        }
        let buffer = self.units.pop().expect("there is a first one");
        (self.batches, self.address, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(unit: u64) -> ByteOffset {
        ByteOffset(1 << 20).plus(unit * 4096)
    }

    fn unit(fill: u8, len: usize) -> AlignedBuffer {
        let mut unit = AlignedBuffer::zeroed(len);
        unit.fill(fill);
        unit
    }

    fn first() -> SmallUnits {
        SmallUnits::first(5, address(0), unit(0, 4096))
    }

    #[test]
    fn units_side_by_side_share_a_write() {
        let mut units = first();
        for at in 1..MAX_UNITS as u64 {
            assert!(!units.is_full());
            let unit = unit(at as u8, 4096);
            assert!(units.may_share(5 + at, address(at), &unit));
            units.push(unit);
        }
        assert!(units.is_full());
        assert!(!units.may_share(9, address(4), &[0; 4096]), "as many as there may be");
        let (batches, at, buffer) = units.into_write(&BufferPool::new(1 << 20));
        assert_eq!((batches, at, buffer.len()), (5..9, address(0), MAX_UNITS * 4096));
        for (at, unit) in buffer.chunks(4096).enumerate() {
            assert_eq!(unit, [at as u8; 4096]);
        }
    }

    #[test]
    fn what_does_not_follow_shares_nothing() {
        let units = first();
        assert!(!units.may_share(7, address(1), &[0; 4096]), "another batch is between them");
        assert!(!units.may_share(6, address(2), &[0; 4096]), "it stands elsewhere");
        assert!(!units.may_share(6, address(1), &[0; MAX_WRITE_BYTES]), "it is too long");
        let buffers = BufferPool::new(1 << 20);
        let (batches, _, buffer) = units.into_write(&buffers);
        assert_eq!((batches, buffer.len()), (5..6, 4096));
    }
}
