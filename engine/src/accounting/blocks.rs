//! The distinct blocks that a walk meets, and whose they are, in bounded memory.
//!
//! Blocks are kept by a hash of their place that no two places share. While they fit, all of them
//! are, and every count is exact. When they no longer do, those are kept whose hash ends in one more
//! zero bit, about half: a consistent sample (as the dedup index takes one of fingerprints), so that
//! whatever is kept was seen from the first reference to the last. Counts are then shares of the
//! references, whose number is always exact.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
};

use siltstone_device::Place;

use super::parts::in_proportion;

/// Blocks that are kept at most: what 2^20 slots of a hash table hold, some 18 MiB.
const MAX_BLOCKS: usize = (1 << 20) / 8 * 7;

/// Zero bits at the end of a hash, at most.
const LEVELS: usize = u64::BITS as usize + 1;

/// Whose a block is.
#[derive(Clone, Copy)]
enum Owner {
    /// All references so far are this reader's.
    One { reader: u32, references: u32 },
    /// Several readers refer to it; whether a volume is among them.
    Several { with_volume: bool },
}

/// See the module's page.
pub(super) struct Blocks {
    kept: HashMap<u64, Owner, BuildHasherDefault<Kept>>,
    max_blocks: usize,
    /// Hashes end in at least so many zero bits.
    sample_bits: u32,
    /// For each reader its references, by the zero bits of the blocks' hashes.
    references: Vec<[u64; LEVELS]>,
    /// Which readers are volumes.
    are_volumes: Vec<bool>,
}

/// What was counted of all blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Distinct {
    /// Distinct blocks.
    pub(super) all: u64,
    /// Those of them that more than one reader refers to.
    pub(super) shared: u64,
    /// Those that no volume refers to: only snapshots do.
    pub(super) in_snapshots: u64,
}

/// What was counted of the blocks that only one reader refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exclusive {
    /// Its references to such blocks.
    pub(super) references: u64,
    /// Distinct ones.
    pub(super) distinct: u64,
}

impl Blocks {
    /// For readers of which some are volumes, and the others snapshots.
    pub(super) fn new(are_volumes: Vec<bool>) -> Self {
        Self::with_max(are_volumes, MAX_BLOCKS)
    }

    fn with_max(are_volumes: Vec<bool>, max_blocks: usize) -> Self {
        let references = vec![[0; LEVELS]; are_volumes.len()];
        Self { kept: HashMap::default(), max_blocks, sample_bits: 0, references, are_volumes }
    }

    /// These readers refer to a block.
    pub(super) fn add(&mut self, place: Place, readers: &[u32]) {
        let [first, others @ ..] = readers else { return };
        let hash = hash_of(place);
        for &reader in readers {
            self.references[reader as usize][hash.trailing_zeros() as usize] += 1;
        }
        if hash.trailing_zeros() < self.sample_bits {
            return;
        }
        let is_volume = |reader: &u32| self.are_volumes[*reader as usize];
        let with_volume = readers.iter().any(is_volume);
        match self.kept.entry(hash) {
            Entry::Vacant(vacant) => {
                vacant.insert(match others.is_empty() {
                    true => Owner::One { reader: *first, references: 1 },
                    false => Owner::Several { with_volume },
                });
                self.thin_out();
            }
            Entry::Occupied(mut occupied) => match occupied.get_mut() {
                Owner::One { reader, references } if others.is_empty() && reader == first => {
                    *references = references.saturating_add(1);
                }
                owner => {
                    let before = match owner {
                        Owner::One { reader, .. } => is_volume(reader),
                        Owner::Several { with_volume } => *with_volume,
                    };
                    *owner = Owner::Several { with_volume: before || with_volume };
                }
            },
        }
    }

    fn thin_out(&mut self) {
        while self.kept.len() > self.max_blocks {
            self.sample_bits += 1;
            let bits = self.sample_bits;
            self.kept.retain(|hash, _| hash.trailing_zeros() >= bits);
        }
    }

    /// One block in 2^this was kept: 0 if everything is exact.
    pub(super) fn sample_bits(&self) -> u32 {
        self.sample_bits
    }

    /// A reader's references, and how many of them were to blocks that were kept.
    fn references(&self, reader: usize) -> (u64, u64) {
        let levels = &self.references[reader];
        (levels.iter().sum(), levels[self.sample_bits as usize..].iter().sum())
    }

    pub(super) fn distinct(&self) -> Distinct {
        let of_all = (0..self.references.len()).map(|reader| self.references(reader));
        let (all, sampled) = of_all.fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
        let (mut several, mut in_snapshots) = (0, 0);
        for owner in self.kept.values() {
            let has_volume = match owner {
                Owner::One { reader, .. } => self.are_volumes[*reader as usize],
                Owner::Several { with_volume } => *with_volume,
            };
            several += u64::from(matches!(owner, Owner::Several { .. }));
            in_snapshots += u64::from(!has_volume);
        }
        Distinct {
            all: in_proportion(all, self.kept.len() as u64, sampled),
            shared: in_proportion(all, several, sampled),
            in_snapshots: in_proportion(all, in_snapshots, sampled),
        }
    }

    /// For each reader the blocks that are its alone.
    pub(super) fn exclusive(&self) -> Vec<Exclusive> {
        let mut sums = vec![Exclusive::default(); self.references.len()];
        for owner in self.kept.values() {
            if let Owner::One { reader, references } = owner {
                let sum = &mut sums[*reader as usize];
                sum.references += u64::from(*references);
                sum.distinct += 1;
            }
        }
        for (reader, sum) in sums.iter_mut().enumerate() {
            let (all, sampled) = self.references(reader);
            sum.references = in_proportion(all, sum.references, sampled);
            sum.distinct = in_proportion(all, sum.distinct, sampled);
        }
        sums
    }
}

/// A number for each place, the length of its frame left out: the finalizer of MurmurHash3 (Appleby,
/// 2011), which can be undone, so that no two places have the same one.
fn hash_of(place: Place) -> u64 {
    let mut value = Place::new(place.segment(), place.frame_offset_bytes(), place.index()).raw();
    value = (value ^ value >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    value = (value ^ value >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ value >> 33
}

/// Takes a hash as it is, but for the bits at its end, which are zero in a sample.
#[derive(Default)]
struct Kept(u64);

impl Hasher for Kept {
    fn finish(&self) -> u64 {
        self.0.rotate_left(32)
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are kept");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use siltstone_device::SegmentId;

    use super::*;

    fn place(number: u32) -> Place {
        Place::new(SegmentId(number / 4096), number / 8 % 512 * 4096, (number % 8) as u8)
    }

    proptest! {
        /// What fits is counted exactly: against sets.
        #[test]
        fn whose_blocks_are_is_exact_while_they_fit(
            references in proptest::collection::vec((0..60u32, proptest::collection::btree_set(0..4u32, 0..3)), 0..300),
        ) {
            // The last two are snapshots.
            let mut blocks = Blocks::new(vec![true, true, false, false]);
            let mut model: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            for (block, readers) in &references {
                let readers: Vec<u32> = readers.iter().copied().collect();
                blocks.add(place(*block), &readers);
                model.entry(*block).or_default().extend(readers);
            }
            model.retain(|_, readers| !readers.is_empty());
            let owners = |readers: &[u32]| readers.iter().copied().collect::<BTreeSet<_>>();
            let shared = model.values().filter(|readers| owners(readers).len() > 1).count() as u64;
            let in_snapshots =
                model.values().filter(|readers| readers.iter().all(|&of| of >= 2)).count() as u64;
            let expected = Distinct { all: model.len() as u64, shared, in_snapshots };
            prop_assert_eq!(blocks.distinct(), expected);
            for (reader, found) in (0..).zip(blocks.exclusive()) {
                let mine = model.values().filter(|of| owners(of) == BTreeSet::from([reader]));
                let (distinct, references) = mine.fold((0, 0), |(d, r), of| (d + 1, r + of.len()));
                prop_assert_eq!(found, Exclusive { references: references as u64, distinct });
            }
            prop_assert_eq!(blocks.sample_bits(), 0);
        }
    }

    /// 200,000 blocks of three readers with room for 4,096: a half is one's alone, a quarter is met
    /// four times.
    #[test]
    fn what_does_not_fit_is_counted_within_a_tenth() {
        let mut blocks = Blocks::with_max(vec![false, true, true], 4096);
        let all = 200_000;
        for number in 0..all {
            match number % 4 {
                0 | 1 => blocks.add(place(number), &[0]),
                2 => (0..4).for_each(|_| blocks.add(place(number), &[1])),
                _ => [1, 2].iter().for_each(|&reader| blocks.add(place(number), &[reader])),
            }
            assert!(blocks.kept.len() <= 4096);
        }
        assert!(blocks.sample_bits() > 4);
        let near = |found: u64, expected: u32| {
            let expected = u64::from(expected);
            assert!(found.abs_diff(expected) * 10 <= expected, "{found} is not about {expected}");
        };
        let distinct = blocks.distinct();
        near(distinct.all, all);
        near(distinct.shared, all / 4);
        near(distinct.in_snapshots, all / 2);
        let [first, second, third] = blocks.exclusive()[..] else { unreachable!() };
        // Exact: all that the reader has is its own.
        assert_eq!(first.references, u64::from(all / 2));
        near(first.distinct, all / 2);
        near(second.references, all);
        near(second.distinct, all / 4);
        assert_eq!(third, Exclusive::default());
    }
}
