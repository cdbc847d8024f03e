//! Which blocks have been seen, and in which files: exactly while they fit, then by a sample.
//!
//! A consistent sample, as that of `siltstone_dedup`'s index: fingerprints whose low bits are zero,
//! one bit more each time the table is full. A block of the sample was in it from its first
//! appearance on, so what it says about that block is true, and each stands for 2^bits blocks.
//! Counts are weighted when they are made; that they were made with different weights does not bias
//! their sum.

use siltstone_dedup::ShortFingerprint;
use zerocopy::FromZeros;

/// The table is thinned at this load, in eighths: linear probing wants room.
const MAX_LOAD_EIGHTHS: usize = 6;

/// A fingerprint of the sample. All zero is a free slot.
#[derive(Clone, Copy, FromZeros)]
struct Entry {
    /// The fingerprint's low 64 bits, which hold those that decide on the sample.
    key: u64,
    /// The file in which it was seen first, and [`SHARED`] if it was seen in another as well.
    first_file: u32,
    /// The file in which it was seen last.
    last_file: u32,
}

const SHARED: u32 = 1 << 31;
const ENTRY_BYTES: usize = size_of::<Entry>();
const _: () = assert!(ENTRY_BYTES == 16);

/// What is known of a file, in blocks. Estimates once the table is a sample; their noise can then
/// take a small count below zero.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct FileCounts {
    /// Zero blocks that were read; holes are not.
    pub(super) zero: u64,
    /// Blocks with data.
    pub(super) data: u64,
    /// Distinct blocks of it that no other file has.
    pub(super) unique: i64,
    /// Distinct blocks of it that another file has too.
    pub(super) shared: i64,
}

/// See the module's page.
pub(super) struct Table {
    entries: Vec<Entry>,
    used: usize,
    sample_bits: u8,
    distinct: u64,
    files: Vec<FileCounts>,
}

impl Table {
    /// How many distinct blocks a table of so many bytes surely counts exactly.
    pub(super) fn capacity(bytes: usize) -> u64 {
        (bytes / ENTRY_BYTES * MAX_LOAD_EIGHTHS / 8) as u64
    }

    /// An empty table; `None` if the system does not give the memory.
    pub(super) fn new(bytes: usize, files: usize) -> Option<Self> {
        assert!(files < SHARED as usize, "more files than a command line holds");
        let entries = Entry::new_vec_zeroed((bytes / ENTRY_BYTES).max(8)).ok()?;
        let files = vec![FileCounts::default(); files];
        Some(Self { entries, used: 0, sample_bits: 0, distinct: 0, files })
    }

    /// Whether every block is known, rather than a sample.
    pub(super) fn is_exact(&self) -> bool {
        self.sample_bits == 0
    }

    /// Of so many fingerprints one is kept.
    pub(super) fn one_in(&self) -> u64 {
        1 << self.sample_bits
    }

    /// Fingerprints in the sample.
    pub(super) fn used(&self) -> u64 {
        self.used as u64
    }

    /// Distinct blocks seen, estimated from the sample.
    pub(super) fn distinct(&self) -> u64 {
        self.distinct
    }

    pub(super) fn files(&self) -> &[FileCounts] {
        &self.files
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.capacity() * ENTRY_BYTES
    }

    /// Enters the blocks of a batch, and says of each whether it was seen before: true of all while
    /// the table is exact, of those in the sample otherwise.
    pub(super) fn enter(
        &mut self,
        file: u32,
        zero_blocks: u64,
        fingerprints: &[ShortFingerprint],
        duplicates: &mut Vec<bool>,
    ) {
        let counts = &mut self.files[file as usize];
        counts.zero += zero_blocks;
        counts.data += fingerprints.len() as u64;
        for fingerprint in fingerprints {
            duplicates.push(self.enter_one(file, key_of(fingerprint)));
        }
    }

    fn enter_one(&mut self, file: u32, key: u64) -> bool {
        if !self.is_sampled(key) {
            return false;
        }
        let weight = 1_i64 << self.sample_bits;
        let at = self.slot_of(key);
        let entry = &mut self.entries[at];
        if entry.key == 0 {
            *entry = Entry { key, first_file: file, last_file: file };
            self.used += 1;
            self.distinct += weight as u64;
            self.files[file as usize].unique += weight;
            if self.used * 8 > self.entries.len() * MAX_LOAD_EIGHTHS {
                self.thin_sample();
            }
            return false;
        }
        if entry.last_file != file {
            entry.last_file = file;
            let first_file = entry.first_file;
            if first_file & SHARED == 0 {
                // So far that file's own.
                entry.first_file |= SHARED;
                let first = &mut self.files[first_file as usize];
                first.unique -= weight;
                first.shared += weight;
            }
            self.files[file as usize].shared += weight;
        }
        true
    }

    fn is_sampled(&self, key: u64) -> bool {
        key.trailing_zeros() >= self.sample_bits.into()
    }

    /// The key's slot, or the free one where it would be.
    fn slot_of(&self, key: u64) -> usize {
        let mut at = self.home(key);
        while ![0, key].contains(&self.entries[at].key) {
            at = (at + 1) % self.entries.len();
        }
        at
    }

    /// By the high bits: the low ones are the sample's.
    fn home(&self, key: u64) -> usize {
        ((u128::from(key) * self.entries.len() as u128) >> 64) as usize
    }

    /// Takes one more sample bit and drops the entries, about half, that are no longer sampled.
    fn thin_sample(&mut self) {
        self.sample_bits += 1;
        // From behind a free slot on, each entry is taken out and, if it stays, entered again: at
        // its old slot or nearer to its home, as everything between them is done already.
        let slots = self.entries.len();
        let free = self.entries.iter().position(|entry| entry.key == 0);
        let free = free.expect("the table is never full");
        self.used = 0;
        for at in (free + 1..free + slots).map(|at| at % slots) {
            let entry = std::mem::replace(&mut self.entries[at], Entry::new_zeroed());
            if entry.key != 0 && self.is_sampled(entry.key) {
                let to = self.slot_of(entry.key);
                self.entries[to] = entry;
                self.used += 1;
            }
        }
    }
}

/// Never 0.
pub(super) fn key_of(fingerprint: &ShortFingerprint) -> u64 {
    match fingerprint.low() {
        0 => SHARED.into(),
        key => key,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use siltstone_device::SeededRandom;

    use super::*;

    fn fingerprint(n: u64) -> ShortFingerprint {
        let mut random = SeededRandom::new(n);
        let wide = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
        ShortFingerprint::from_bytes(wide.to_le_bytes())
    }

    /// (file, block number)s, files one after the other.
    fn streams() -> impl Strategy<Value = Vec<Vec<u64>>> {
        prop::collection::vec(prop::collection::vec(0..200_u64, 0..150), 1..5)
    }

    proptest! {
        #[test]
        fn while_all_fit_every_count_is_that_of_sets(files in streams()) {
            let mut table = Table::new(16 << 10, files.len()).unwrap();
            let mut holders: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
            for (file, blocks) in files.iter().enumerate() {
                for &n in blocks {
                    let mut duplicates = Vec::new();
                    table.enter(file as u32, 1, &[fingerprint(n)], &mut duplicates);
                    prop_assert_eq!(duplicates, vec![holders.contains_key(&n)]);
                    holders.entry(n).or_default().insert(file);
                }
            }
            prop_assert!(table.is_exact());
            prop_assert_eq!(table.distinct(), holders.len() as u64);
            for (file, counts) in table.files().iter().enumerate() {
                let of = |alone: bool| holders.values().filter(|held_by| {
                    held_by.contains(&file) && (held_by.len() == 1) == alone
                }).count() as i64;
                let len = files[file].len() as u64;
                let expected =
                    FileCounts { zero: len, data: len, unique: of(true), shared: of(false) };
                prop_assert_eq!(*counts, expected);
            }
        }
    }

    #[test]
    fn a_sample_keeps_its_memory_and_estimates_what_it_no_longer_holds() {
        const EACH: u64 = 400_000;
        let mut table = Table::new(64 << 10, 2).unwrap();
        let bytes = table.bytes();
        assert!(bytes <= 64 << 10);
        let mut duplicates = Vec::new();
        // Half of the second file's blocks are in the first, and it has each of them twice.
        for n in 0..EACH {
            table.enter(0, 0, &[fingerprint(n)], &mut duplicates);
        }
        for n in (EACH / 2..EACH + EACH / 2).chain(EACH / 2..EACH + EACH / 2) {
            table.enter(1, 0, &[fingerprint(n)], &mut duplicates);
        }
        assert_eq!(table.bytes(), bytes);
        assert!(!table.is_exact());
        // 64 KiB hold 3,072 fingerprints at most, 1,536 at least: a standard error of 2.5 %.
        let near = |found: i64, expected: u64| {
            let difference = (found - expected as i64).unsigned_abs();
            assert!(difference * 100 < expected * 12, "{found}, not {expected}");
        };
        near(table.distinct() as i64, EACH + EACH / 2);
        near(table.files()[0].unique, EACH / 2);
        near(table.files()[0].shared, EACH / 2);
        near(table.files()[1].unique, EACH / 2);
        near(table.files()[1].shared, EACH / 2);
        assert_eq!(table.files()[1].data, 2 * EACH);
    }

    #[test]
    fn thinning_loses_nothing_that_stays_in_the_sample() {
        let mut table = Table::new(16 << 10, 1).unwrap();
        let mut duplicates = Vec::new();
        for n in 0..20_000 {
            table.enter(0, 0, &[fingerprint(n)], &mut duplicates);
        }
        assert!(duplicates.iter().all(|duplicate| !duplicate));
        for n in 0..20_000 {
            let sampled = table.is_sampled(key_of(&fingerprint(n)));
            duplicates.clear();
            table.enter(0, 0, &[fingerprint(n)], &mut duplicates);
            assert_eq!(duplicates, [sampled], "{n}");
        }
    }
}
