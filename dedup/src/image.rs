//! Taking the index's entries out, to store them, and putting them back after a restart.
//!
//! An entry does not say where in the table it belongs: its tag gives the way from one of its two
//! buckets to the other, but neither of the two. So entries are taken out with the bucket that they
//! are in, and put back only into an index of the same [shape](IndexShape). In another shape the
//! buckets depend on bits of the fingerprint that are no longer there.
//!
//! Both go on beside lookups and insertions. An entry that moves between two buckets meanwhile may
//! be taken out twice or not at all, which costs a duplicate or nothing, like every race with a move.
//! What is put back is older than what is there: an entry gives way to one with the same tag.

use crate::{
    bucket::{BUCKET_ENTRIES, Bucket, Entry, UnitAddress},
    index::Index,
    sample::MAX_SAMPLE_BITS,
};

/// Entries put back while a shard is locked: about 0.1 ms.
const RESTORED_AT_ONCE: usize = 4096;

/// What decides which bucket a fingerprint's entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexShape {
    /// Shards of the table.
    pub shards: u32,
    /// Buckets in all shards.
    pub buckets: u64,
}

/// An entry as it is stored: a tag and a write unit, in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEntry(Entry);

impl StoredEntry {
    /// The entry with these bits; `None` if no entry has them.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        Entry::from_bits(bits).map(Self)
    }

    /// Its bits: the tag in the low 26, in the others one more than the unit's page.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0.bits()
    }

    /// The write unit that it points to.
    #[must_use]
    pub fn unit(self) -> UnitAddress {
        self.0.unit()
    }
}

impl Index {
    /// The index's shape: that of every index with the same budget.
    #[must_use]
    pub fn shape(&self) -> IndexShape {
        IndexShape { shards: self.shards().len() as u32, buckets: self.buckets() as u64 }
    }

    /// The entries in a bucket at this moment.
    ///
    /// # Panics
    /// If there is no such bucket.
    pub fn bucket(&self, bucket: u64) -> impl Iterator<Item = StoredEntry> {
        let bucket = Bucket::at(self.table(), bucket as usize);
        (0..BUCKET_ENTRIES).filter_map(move |slot| bucket.get(slot).map(StoredEntry))
    }

    /// The bits of the thickest sample of any shard: every entry that is taken out from now on is in
    /// that sample.
    #[must_use]
    pub fn least_sample_bits(&self) -> u8 {
        let of_shards = self.shards().iter().map(|shard| shard.sample_bits());
        of_shards.min().expect("an index has shards")
    }

    /// Puts entries back, each with the bucket that it was taken from, in ascending order of these.
    /// All are in the sample of `sample_bits`: the shards are thinned to it, so that what comes next
    /// is treated alike. Nothing that is in the index is replaced.
    ///
    /// # Panics
    /// If there is no such bucket, or they are not in order.
    pub fn restore(&self, sample_bits: u8, entries: &[(u64, StoredEntry)]) {
        let sample_bits = sample_bits.min(MAX_SAMPLE_BITS);
        let last = entries.last().map_or(0, |(bucket, _)| *bucket);
        assert!(last < self.shape().buckets && entries.is_sorted_by_key(|(bucket, _)| *bucket));
        let mut left = entries;
        while let Some((bucket, _)) = left.first() {
            let shard = &self.shards()[self.shard_of(*bucket)];
            let end = shard.end_bucket() as u64;
            let (of_shard, after) = left.split_at(left.partition_point(|(at, _)| *at < end));
            for entries in of_shard.chunks(RESTORED_AT_ONCE) {
                let entries = entries.iter().map(|(bucket, entry)| (*bucket as usize, entry.0));
                shard.restore(self.table(), sample_bits, entries);
            }
            left = after;
        }
    }

    /// The number of the shard that a bucket is in.
    fn shard_of(&self, bucket: u64) -> usize {
        let shards = self.shards();
        shards.partition_point(|shard| shard.first_bucket() as u64 <= bucket) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fingerprint::ShortFingerprint, index::MIN_BUDGET_BYTES, testing::Random};

    fn lookup(index: &Index, fingerprints: &[ShortFingerprint]) -> Vec<Option<UnitAddress>> {
        let mut found = Vec::new();
        index.lookup_batch(fingerprints, &mut found);
        found
    }

    fn all(index: &Index) -> Vec<(u64, StoredEntry)> {
        let buckets = 0..index.shape().buckets;
        buckets.flat_map(|n| index.bucket(n).map(move |entry| (n, entry))).collect()
    }

    fn filled(budget_bytes: usize, fingerprints: &[ShortFingerprint]) -> Index {
        let index = Index::new(budget_bytes).unwrap();
        for (unit, batch) in (0..).zip(fingerprints.chunks(100)) {
            index.insert_batch(batch, UnitAddress::new(unit));
        }
        index
    }

    /// In a full index and in one that has thinned its sample.
    #[test]
    fn an_index_that_was_restored_answers_as_before() {
        for (budget_bytes, count) in
            [(MIN_BUDGET_BYTES, 5000), (4 << 20, 400_000), (2 << 20, 1 << 20)]
        {
            let fingerprints = Random(1).fingerprints(count);
            let before = filled(budget_bytes, &fingerprints);
            let after = Index::new(budget_bytes).unwrap();
            after.restore(0, &all(&before));
            assert_eq!(lookup(&after, &fingerprints), lookup(&before, &fingerprints));
            assert_eq!(after.stats().entries, before.stats().entries);
            assert_eq!(after.stats().dropped, 0);
        }
    }

    #[test]
    fn what_was_inserted_meanwhile_is_newer() {
        let fingerprints = Random(2).fingerprints(3000);
        let old = filled(MIN_BUDGET_BYTES, &fingerprints);
        let index = Index::new(MIN_BUDGET_BYTES).unwrap();
        let unit = UnitAddress::new(777);
        index.insert_batch(&fingerprints[1000..2000], unit);
        index.restore(0, &all(&old));
        let found = lookup(&index, &fingerprints);
        assert!(found[1000..2000].iter().all(|found| *found == Some(unit)));
        let mut expected = lookup(&old, &fingerprints);
        expected[1000..2000].fill(Some(unit));
        assert_eq!(found, expected);
        assert_eq!(index.stats().entries, 3000);
    }

    /// The next insertions are of the sample that the others are of.
    #[test]
    fn a_restored_index_keeps_its_sample() {
        let fingerprints = Random(3).fingerprints(30_000);
        let before = filled(MIN_BUDGET_BYTES, &fingerprints);
        let sample_bits = before.stats().sample_bits;
        assert!(sample_bits > 0);
        let after = Index::new(MIN_BUDGET_BYTES).unwrap();
        after.restore(before.least_sample_bits(), &all(&before));
        assert_eq!(after.stats().sample_bits, sample_bits);
        assert_eq!(after.stats().entries, before.stats().entries);
        let out_of_sample = fingerprints.iter().filter(|f| !after.is_sampled(f));
        assert!(out_of_sample.count() > 10_000);
    }

    /// Whatever stands on a device.
    #[test]
    fn hostile_entries_are_no_entries_or_fit_somewhere() {
        for bits in [0, 1, (1 << 26) - 1] {
            assert_eq!(StoredEntry::from_bits(bits), None, "it has no unit");
        }
        let mut random = Random(4);
        let index = Index::new(MIN_BUDGET_BYTES).unwrap();
        let buckets = index.shape().buckets;
        let mut entries: Vec<_> = (0..100_000)
            .map(|_| (random.below(buckets.min(5)), random.next() | 1 << 63))
            .filter_map(|(bucket, bits)| Some((bucket, StoredEntry::from_bits(bits)?)))
            .collect();
        entries.sort_by_key(|(bucket, _)| *bucket);
        index.restore(u8::MAX, &entries);
        assert!(index.stats().entries <= index.stats().capacity_entries);
    }

    #[test]
    fn the_shape_follows_from_the_budget() {
        let shape = |budget_bytes| Index::new(budget_bytes).unwrap().shape();
        assert_eq!(shape(4 << 20), shape(4 << 20));
        assert_ne!(shape(4 << 20), shape((4 << 20) + 4096));
        assert_ne!(shape(4 << 20), shape(8 << 20));
    }
}
