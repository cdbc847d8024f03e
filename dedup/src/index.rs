//! The index: fingerprint -> write unit, in RAM, within a budget.
//!
//! Bits of a [`ShortFingerprint`] and what each is used for, so that no choice biases another:
//!
//! | bits | use |
//! |---|---|
//! | 0 to 15 | the sample (as many of them as the sample is thin) |
//! | 0 to 25 | the entry's tag |
//! | 52 to 63 | the shard |
//! | 96 to 127 | the first bucket (the second follows from it and the tag) |
//!
//! A tag of 26 bits compared in 16 places takes one fingerprint for another about once in
//! 2^22 lookups in an exact index, and 2^n times as often in a sample of n bits. Callers compare
//! with the summary before they believe a hit, so such a mistake costs at most one summary read.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use zerocopy::FromZeros;

use crate::bucket::{BUCKET_BYTES, BUCKET_ENTRIES, ENTRY_BYTES, UnitAddress};
use crate::fingerprint::ShortFingerprint;
use crate::sample;
use crate::shard::{Position, Shard};

/// The smallest budget that an index takes, in bytes.
pub const MIN_BUDGET_BYTES: usize = 64 << 10;

/// Shards are made this large, in bytes, while there are fewer than [`MAX_SHARDS`]: a thinning
/// sweep, which happens under the shard's lock, then takes about 0.1 ms.
const SHARD_BYTES: usize = 1 << 20;
/// Most shards, larger ones beyond. Their number is a power of two.
const MAX_SHARDS: usize = 1 << SHARD_BITS;
const SHARD_BITS: u32 = 12;

/// Fingerprints whose buckets are fetched together: as many cache misses as a core can have under
/// way, about 16 of 2 each.
const WINDOW: usize = 16;

/// Why an index could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The budget is below [`MIN_BUDGET_BYTES`].
    #[error(
        "an index memory of {budget_bytes} bytes is too small: \
         at least {MIN_BUDGET_BYTES} bytes are needed"
    )]
    BudgetTooSmall {
        /// The budget asked for.
        budget_bytes: usize,
    },
    /// The system does not give that much memory.
    #[error(
        "the system refused {budget_bytes} bytes of memory for the index; free some, or make a pool \
         with less index memory"
    )]
    OutOfMemory {
        /// The budget asked for.
        budget_bytes: usize,
    },
}

/// What an index holds at a moment. Counts of different shards are taken one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexStats {
    /// Fingerprints that the index holds.
    pub entries: u64,
    /// Fingerprints for which there are slots; the sample is thinned at 15/16 of them.
    pub capacity_entries: u64,
    /// Memory that the index takes when all of its table has been touched, everything included.
    pub bytes: usize,
    /// The sample keeps fingerprints with this many zero bits: 0 is exact. Shards can be one
    /// apart for a while; this is the largest.
    pub sample_bits: u8,
    /// Entries dropped so far, by thinning the sample or, in the thinnest, by replacement.
    pub dropped: u64,
}

/// Fingerprint -> write unit, in RAM, within a budget. See the module's documentation.
///
/// Memory is reserved at once and zeroed by the system, which backs a page when it is first
/// touched: an index that nothing was entered into takes little, whatever its budget. Pages are large if the
/// system allows: lookups go to any of them.
///
/// Thread safety: all operations take `&self`. Lookups take no lock; insertions lock one shard at
/// a time. Without concurrent insertions, a fingerprint that was inserted and is sampled is found.
pub struct Index {
    /// Cache-line aligned buckets from `first_entry` on.
    table: Vec<AtomicU64>,
    first_entry: usize,
    buckets: usize,
    shards: Box<[Shard]>,
}

impl Index {
    /// An empty, exact index that never takes more than `budget_bytes` of memory.
    pub fn new(budget_bytes: usize) -> Result<Self, IndexError> {
        if budget_bytes < MIN_BUDGET_BYTES {
            return Err(IndexError::BudgetTooSmall { budget_bytes });
        }
        let shards = 1 << (budget_bytes / SHARD_BYTES).clamp(1, MAX_SHARDS).ilog2();
        // All but one cache line less an entry, which alignment can cost.
        let overhead_bytes = size_of::<Self>() + shards * size_of::<Shard>() + BUCKET_BYTES;
        // A shard counts its buckets in 32 bits; that is 256 GiB a shard, a pebibyte in all.
        let buckets = ((budget_bytes - overhead_bytes) / BUCKET_BYTES)
            .min(shards.saturating_mul(u32::MAX as usize));
        let table = AtomicU64::new_vec_zeroed((buckets + 1) * BUCKET_ENTRIES - 1)
            .map_err(|_| IndexError::OutOfMemory { budget_bytes })?;
        siltstone_device::prefer_huge_pages(&table);
        let first_entry = (table.as_ptr().addr() / ENTRY_BYTES).wrapping_neg() % BUCKET_ENTRIES;

        let first_bucket =
            |shard: usize| (buckets as u128 * shard as u128 / shards as u128) as usize;
        let shards = (0..shards)
            .map(|shard| {
                let (from, to) = (first_bucket(shard), first_bucket(shard + 1));
                Shard::new(from, u32::try_from(to - from).expect("limited above"))
            })
            .collect();
        let index = Self { table, first_entry, buckets, shards };
        assert!(index.bytes() <= budget_bytes, "the budget is never exceeded");
        Ok(index)
    }

    /// For each fingerprint the write unit that holds it, as far as is known: appends to `out` as
    /// many answers as there are fingerprints. A hit is a hint, to be checked in the summary.
    pub fn lookup_batch(
        &self,
        fingerprints: &[ShortFingerprint],
        out: &mut Vec<Option<UnitAddress>>,
    ) {
        out.reserve(fingerprints.len());
        self.in_windows(fingerprints, |_, position| {
            out.push(position.and_then(|position| position.find(self.table())));
        });
    }

    /// Remembers that `unit` holds these fingerprints: those that are sampled. One that is present
    /// already moves to the new unit.
    pub fn insert_batch(&self, fingerprints: &[ShortFingerprint], unit: UnitAddress) {
        self.in_windows(fingerprints, |shard, position| {
            if let Some(position) = position {
                shard.insert(self.table(), position, unit);
            }
        });
    }

    /// Whether the index keeps this fingerprint at this moment, if it is told of it.
    #[must_use]
    pub fn is_sampled(&self, fingerprint: &ShortFingerprint) -> bool {
        sample::is_sampled(fingerprint, self.shard(fingerprint).sample_bits())
    }

    /// What the index holds.
    #[must_use]
    pub fn stats(&self) -> IndexStats {
        let mut stats = IndexStats {
            capacity_entries: (self.buckets * BUCKET_ENTRIES) as u64,
            bytes: self.bytes(),
            ..IndexStats::default()
        };
        for shard in &self.shards {
            stats.entries += shard.entries();
            stats.dropped += shard.dropped();
            stats.sample_bits = stats.sample_bits.max(shard.sample_bits());
        }
        stats
    }

    /// Calls `each` in order with every fingerprint's shard and, if it is sampled, its position,
    /// after asking memory for the buckets of a whole window: the misses overlap instead of being
    /// waited for one by one.
    fn in_windows(
        &self,
        fingerprints: &[ShortFingerprint],
        mut each: impl FnMut(&Shard, Option<&Position>),
    ) {
        for window in fingerprints.chunks(WINDOW) {
            let mut positions = [None; WINDOW];
            let mut touched = 0_u64;
            for (position, fingerprint) in positions.iter_mut().zip(window) {
                let shard = self.shard(fingerprint);
                if sample::holds(fingerprint.low(), shard.sample_bits()) {
                    let found = position.insert(shard.position(fingerprint));
                    touched = touched.wrapping_add(found.touch(self.table()));
                }
            }
            // The loads have no other use; this keeps the compiler from dropping them.
            black_box(touched);
            for (position, fingerprint) in positions.iter().zip(window) {
                each(self.shard(fingerprint), position.as_ref());
            }
        }
    }

    fn shard(&self, fingerprint: &ShortFingerprint) -> &Shard {
        let bits = (fingerprint.low() >> (u64::BITS - SHARD_BITS)) as usize;
        // A power of two, at most 2^SHARD_BITS.
        &self.shards[bits & (self.shards.len() - 1)]
    }

    pub(crate) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    pub(crate) fn buckets(&self) -> usize {
        self.buckets
    }

    pub(crate) fn table(&self) -> &[AtomicU64] {
        &self.table[self.first_entry..][..self.buckets * BUCKET_ENTRIES]
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.shards.len() * size_of::<Shard>()
            + self.table.capacity() * ENTRY_BYTES
    }
}

#[cfg(test)]
mod tests;
