//! When each epoch began: what dates changes.
//!
//! A snapshot ends an epoch at one place in the total order of changes, whatever volumes it is of:
//! those before belong to the epoch that ends, those after to the next. Neither logs nor summaries
//! say to which epoch a change belongs, so the beginnings are kept, in the checkpoint record too,
//! until every change before them is in the map.

use siltstone_cursor::Epoch;
use siltstone_device::Sequence;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::error::{EngineError, MetadataError, Result};

/// Epochs stay below this for ever.
pub(crate) const MAX_EPOCH: Epoch = Epoch(1 << 31);

/// An epoch's beginning on disk. 16 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DiskStart {
    epoch: U32,
    reserved: U32,
    first_sequence: U64,
}
const _: () = assert!(size_of::<DiskStart>() == 16);

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Epochs {
    /// Ascending, by epoch strictly; never empty. An epoch in which nothing was changed begins
    /// where the next one does.
    starts: Vec<(Epoch, Sequence)>,
}

impl Epochs {
    /// Of a pool that never had a snapshot.
    pub(crate) fn new() -> Self {
        Self { starts: vec![(Epoch::FIRST, Sequence(0))] }
    }

    /// The epoch of what is admitted now.
    pub(crate) fn current(&self) -> Epoch {
        self.starts.last().expect("there is always one").0
    }

    /// The epoch of a change that no checkpoint covers.
    pub(crate) fn of(&self, sequence: Sequence) -> Epoch {
        let after = self.starts.partition_point(|(_, first)| *first <= sequence);
        // What is older than the first beginning that is kept is in the map already.
        self.starts[after.saturating_sub(1)].0
    }

    /// Ends the current epoch: changes from `first` on belong to the next.
    ///
    /// # Errors
    /// [`EngineError::IdsExhausted`].
    pub(crate) fn begin(&mut self, first: Sequence) -> Result<()> {
        let &(current, began) = self.starts.last().expect("there is always one");
        assert!(began <= first, "{current} began at {began} and ends before {first}");
        let next = Epoch(current.0 + 1);
        if next >= MAX_EPOCH {
            return Err(EngineError::IdsExhausted);
        }
        self.starts.push((next, first));
        Ok(())
    }

    /// What is needed to date the changes after `covered`.
    pub(crate) fn after(&self, covered: Sequence) -> Self {
        let after = self.starts.partition_point(|(_, first)| *first <= covered.next());
        Self { starts: self.starts[after.saturating_sub(1)..].to_vec() }
    }

    /// Forgets what dates only what is in the map: every change up to `covered`.
    pub(crate) fn forget(&mut self, covered: Sequence) {
        *self = self.after(covered);
    }

    /// After a crash, the next change has number `next`. An epoch that was to begin later, with
    /// changes that are lost, begins with it: numbers of epochs are not used twice.
    pub(crate) fn begin_by(&mut self, next: Sequence) {
        for (_, first) in &mut self.starts {
            *first = (*first).min(next);
        }
    }

    /// Bytes of it in a checkpoint record.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for &(epoch, first) in &self.starts {
            let start = DiskStart {
                epoch: U32::new(epoch.0),
                reserved: U32::ZERO,
                first_sequence: U64::new(first.0),
            };
            out.extend_from_slice(start.as_bytes());
        }
    }

    /// Reads `count` beginnings back; returns also what follows them.
    ///
    /// # Errors
    /// [`MetadataError::Inconsistent`] for what cannot be beginnings of epochs.
    pub(crate) fn decode(
        bytes: &[u8],
        count: u32,
    ) -> std::result::Result<(Self, &[u8]), MetadataError> {
        let wrong =
            |field, value: u64| MetadataError::Inconsistent { structure: "epochs", field, value };
        let len_bytes = (count as usize).saturating_mul(size_of::<DiskStart>());
        let split = bytes.split_at_checked(len_bytes);
        let (own, rest) = split.ok_or_else(|| wrong("number", count.into()))?;
        let mut starts: Vec<(Epoch, Sequence)> = Vec::with_capacity(count as usize);
        let (own, _) = own.as_chunks::<{ size_of::<DiskStart>() }>();
        for start in own {
            let start = DiskStart::ref_from_bytes(start).expect("a chunk has its size");
            let (epoch, first) = (start.epoch.get(), start.first_sequence.get());
            let follows =
                |&(last, last_first): &(Epoch, Sequence)| last.0 < epoch && last_first.0 <= first;
            if epoch >= MAX_EPOCH.0 || !starts.last().is_none_or(follows) {
                return Err(wrong("epoch", epoch.into()));
            }
            if first > crate::record::MAX_COUNT {
                return Err(wrong("first sequence", first));
            }
            starts.push((Epoch(epoch), Sequence(first)));
        }
        if starts.is_empty() {
            return Err(wrong("number", 0));
        }
        Ok((Self { starts }, rest))
    }

    /// How many beginnings are kept.
    pub(crate) fn len(&self) -> u32 {
        self.starts.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(firsts: &[u64]) -> Epochs {
        let mut epochs = Epochs::new();
        for &first in firsts {
            epochs.begin(Sequence(first)).unwrap();
        }
        epochs
    }

    #[test]
    fn a_change_belongs_to_the_last_epoch_that_began_before_it() {
        let epochs = epochs(&[5, 9, 9]);
        let of = |sequence| epochs.of(Sequence(sequence)).0;
        assert_eq!([of(1), of(4), of(5), of(8), of(9), of(100)], [0, 0, 1, 1, 3, 3]);
        assert_eq!(epochs.current(), Epoch(3));
    }

    /// What a checkpoint leaves out is not needed for what it does not cover.
    #[test]
    fn covered_beginnings_are_left_out_and_nothing_is_dated_differently() {
        let epochs = epochs(&[5, 9, 9, 20]);
        for covered in 0..25 {
            let kept = epochs.after(Sequence(covered));
            for sequence in covered + 1..30 {
                assert_eq!(kept.of(Sequence(sequence)), epochs.of(Sequence(sequence)));
            }
            assert_eq!(kept.current(), epochs.current());
            let mut bytes = Vec::new();
            kept.encode(&mut bytes);
            bytes.push(7);
            let (decoded, rest) = Epochs::decode(&bytes, kept.len()).unwrap();
            assert_eq!((decoded, rest), (kept, &[7][..]));
        }
        assert_eq!(epochs.after(Sequence(30)).len(), 1);
    }

    #[test]
    fn after_lost_changes_no_epoch_begins_in_the_future_or_twice() {
        let mut epochs = epochs(&[5, 9, 20]);
        epochs.begin_by(Sequence(12));
        assert_eq!(epochs.of(Sequence(11)), Epoch(2));
        assert_eq!(epochs.of(Sequence(12)), Epoch(3));
        epochs.begin(Sequence(13)).unwrap();
        assert_eq!(epochs.current(), Epoch(4));
    }

    #[test]
    fn hostile_beginnings_are_refused() {
        let refused = |starts: &[(u32, u64)]| {
            let starts = starts.iter().map(|&(epoch, first)| (Epoch(epoch), Sequence(first)));
            let mut bytes = Vec::new();
            let epochs = Epochs { starts: starts.collect() };
            epochs.encode(&mut bytes);
            assert!(Epochs::decode(&bytes, epochs.len()).is_err(), "{epochs:?}");
            assert!(Epochs::decode(&bytes, epochs.len() + 1).is_err());
        };
        refused(&[]);
        refused(&[(3, 1), (3, 2)]);
        refused(&[(3, 1), (2, 2)]);
        refused(&[(3, 5), (4, 4)]);
        refused(&[(1 << 31, 5)]);
        refused(&[(3, u64::MAX)]);
    }
}
