//! One shard of the index: where entries go, and how they make room.
//!
//! Every fingerprint has two buckets, and an entry may be in either (cuckoo hashing). The second
//! follows from the first and the tag, and the first in the same way from the second, so an entry
//! can be moved between its two without the rest of its fingerprint. With buckets of 8 this fills
//! tables well past nine tenths before a fingerprint finds no place.
//!
//! Invariants
//! - An entry with a given tag is at most once in a pair of buckets.
//! - Every entry is in the sample of the shard's `sample_bits`.
//! - Moving an entry writes the new slot before it gives up the old one.
//!
//! Thread safety: writers hold `writer` (a leaf lock: nothing else is taken under it). Readers take
//! no lock; one that races with a move between two buckets can miss that entry, which costs a
//! duplicate and never correctness.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::bucket::{BUCKET_ENTRIES, Bucket, Entry, Tag, UnitAddress};
use crate::fingerprint::ShortFingerprint;
use crate::sample::{self, MAX_SAMPLE_BITS};

/// Load at which a shard thins its sample rather than fill further: 15/16. Beyond it, moves
/// become long.
const MAX_LOAD_SIXTEENTHS: usize = 15;

/// Buckets that a search for a free slot looks at before it gives up. Even when 7 of 10 buckets
/// are full, the search misses a free slot less than once in 10^9.
const MAX_SEARCH_BUCKETS: usize = 64;

/// One shard: a range of the table's buckets and what is known about them. On a cache line of its
/// own, as every core's lookups read `sample_bits`.
#[repr(align(64))]
pub(crate) struct Shard {
    sample_bits: AtomicU8,
    writer: Mutex<()>,
    entries: AtomicU64,
    dropped: AtomicU64,
    first_bucket: usize,
    buckets: u32,
}

/// Where a fingerprint's entry can be: two buckets of the table.
#[derive(Clone, Copy)]
pub(crate) struct Position {
    pub(crate) tag: Tag,
    buckets: [usize; 2],
}

impl Position {
    /// Brings both buckets towards the cache: loads that do not depend on each other overlap.
    pub(crate) fn touch(&self, table: &[AtomicU64]) -> u64 {
        self.buckets.map(|bucket| Bucket::at(table, bucket).touch()).iter().sum()
    }

    pub(crate) fn find(&self, table: &[AtomicU64]) -> Option<UnitAddress> {
        self.slot(table).map(|(_, _, entry)| entry.unit())
    }

    fn slot<'a>(&self, table: &'a [AtomicU64]) -> Option<(Bucket<'a>, usize, Entry)> {
        self.buckets.iter().find_map(|&bucket| {
            let bucket = Bucket::at(table, bucket);
            bucket.find(self.tag).map(|(slot, entry)| (bucket, slot, entry))
        })
    }
}

/// One step of the search for a free slot: the entry in `slot` of the step before's bucket can
/// move to `bucket`.
#[derive(Clone, Copy, Default)]
struct Step {
    bucket: usize,
    before: usize,
    slot: usize,
}

impl Shard {
    pub(crate) fn new(first_bucket: usize, buckets: u32) -> Self {
        assert!(buckets >= 1, "a shard has room");
        Self {
            sample_bits: AtomicU8::new(0),
            writer: Mutex::new(()),
            entries: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            first_bucket,
            buckets,
        }
    }

    pub(crate) fn sample_bits(&self) -> u8 {
        self.sample_bits.load(Ordering::Relaxed)
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Where the fingerprint's entry can be.
    pub(crate) fn position(&self, fingerprint: &ShortFingerprint) -> Position {
        let tag = Tag::of(fingerprint.low());
        let first = self.first_bucket + scale(fingerprint.high(), self.buckets);
        self.position_in(first, tag)
    }

    /// Where an entry with this tag can be that was once in `bucket`.
    fn position_in(&self, bucket: usize, tag: Tag) -> Position {
        Position { tag, buckets: [bucket, self.other_bucket(bucket, tag)] }
    }

    pub(crate) fn first_bucket(&self) -> usize {
        self.first_bucket
    }

    pub(crate) fn end_bucket(&self) -> usize {
        self.first_bucket + self.buckets as usize
    }

    /// The other bucket for a tag in `bucket`. Its own inverse: the two add up to a number that
    /// depends on the tag alone, modulo the number of buckets (which need not be a power of two).
    fn other_bucket(&self, bucket: usize, tag: Tag) -> usize {
        let sum = scale(tag.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15), self.buckets);
        let bucket = bucket - self.first_bucket;
        let other = if sum >= bucket { sum - bucket } else { sum + self.buckets as usize - bucket };
        self.first_bucket + other
    }

    /// Remembers that `unit` holds the fingerprint, if the sample holds it.
    pub(crate) fn insert(&self, table: &[AtomicU64], position: &Position, unit: UnitAddress) {
        let _writer = self.writer.lock();
        if !sample::holds(position.tag.bits(), self.sample_bits()) {
            return;
        }
        let entry = Entry::new(position.tag, unit);
        match position.slot(table) {
            Some((bucket, slot, _)) => bucket.set(slot, Some(entry)),
            None => self.add(table, position, entry),
        }
    }

    /// Puts back entries that were in these buckets once, as far as the sample holds them and
    /// nothing newer is there. They are of a sample of at least `sample_bits`.
    pub(crate) fn restore(
        &self,
        table: &[AtomicU64],
        sample_bits: u8,
        entries: impl Iterator<Item = (usize, Entry)>,
    ) {
        let _writer = self.writer.lock();
        while self.sample_bits() < sample_bits {
            self.thin_sample(table);
        }
        // Most fit where they were. Counted here and added up once.
        let (mut added, mut room) = (0, self.room());
        for (bucket, entry) in entries {
            let Position { tag, buckets: [own, other] } = self.position_in(bucket, entry.tag());
            let is_sampled = sample::holds(tag.bits(), self.sample_bits());
            let (own, other) = (Bucket::at(table, own), Bucket::at(table, other));
            if !is_sampled || own.find(tag).is_some() || other.find(tag).is_some() {
                continue;
            }
            match own.free_slot().filter(|_| added < room) {
                Some(slot) => {
                    own.set(slot, Some(entry));
                    added += 1;
                }
                None => {
                    self.entries.fetch_add(added, Ordering::Relaxed);
                    self.add(table, &self.position_in(bucket, tag), entry);
                    (added, room) = (0, self.room());
                }
            }
        }
        self.entries.fetch_add(added, Ordering::Relaxed);
    }

    /// Adds an entry whose tag is in neither of its buckets. For the holder of the lock.
    fn add(&self, table: &[AtomicU64], position: &Position, entry: Entry) {
        while self.is_loaded() && self.sample_bits() < MAX_SAMPLE_BITS {
            self.thin_sample(table);
            if !sample::holds(position.tag.bits(), self.sample_bits()) {
                return;
            }
        }
        match self.make_room(table, position) {
            Some((bucket, slot)) => {
                bucket.set(slot, Some(entry));
                self.entries.fetch_add(1, Ordering::Relaxed);
            }
            // Only in a shard that cannot thin its sample further, or when many fingerprints
            // were made to share their buckets: an older entry gives way.
            None => {
                let slot = (entry.unit().page() % BUCKET_ENTRIES as u64) as usize;
                Bucket::at(table, position.buckets[0]).set(slot, Some(entry));
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn is_loaded(&self) -> bool {
        self.room() == 0
    }

    /// How many entries can be added before the shard is loaded.
    fn room(&self) -> u64 {
        let slots = self.buckets as usize * BUCKET_ENTRIES;
        ((slots * MAX_LOAD_SIXTEENTHS / 16) as u64).saturating_sub(self.entries())
    }

    /// Takes one more sample bit and drops the entries, about half, that are no longer sampled.
    fn thin_sample(&self, table: &[AtomicU64]) {
        let sample_bits = self.sample_bits() + 1;
        self.sample_bits.store(sample_bits, Ordering::Relaxed);
        let mut kept = 0;
        for bucket in self.first_bucket..self.first_bucket + self.buckets as usize {
            let bucket = Bucket::at(table, bucket);
            for slot in 0..BUCKET_ENTRIES {
                let Some(entry) = bucket.get(slot) else { continue };
                if sample::holds(entry.tag().bits(), sample_bits) {
                    kept += 1;
                } else {
                    bucket.set(slot, None);
                }
            }
        }
        let before = self.entries.swap(kept, Ordering::Relaxed);
        self.dropped.fetch_add(before - kept, Ordering::Relaxed);
    }

    /// A free slot in one of the position's buckets, made free if need be by moving entries to
    /// their other buckets, along the shortest path that ends at a free slot.
    fn make_room<'a>(
        &self,
        table: &'a [AtomicU64],
        position: &Position,
    ) -> Option<(Bucket<'a>, usize)> {
        // The emptier bucket, so that both fill evenly.
        let buckets = position.buckets.map(|bucket| Bucket::at(table, bucket));
        let emptier = buckets[usize::from(buckets[1].count_free() > buckets[0].count_free())];
        if let Some(slot) = emptier.free_slot() {
            return Some((emptier, slot));
        }

        // Breadth first. No bucket twice, so that the path's moves do not disturb each other.
        let mut steps = [Step::default(); MAX_SEARCH_BUCKETS];
        steps[0].bucket = position.buckets[0];
        steps[1].bucket = position.buckets[1];
        let mut found = if position.buckets[0] == position.buckets[1] { 1 } else { 2 };
        let roots = found;
        let mut at = 0;
        while at < found {
            let bucket = Bucket::at(table, steps[at].bucket);
            for slot in 0..BUCKET_ENTRIES {
                let entry = bucket.get(slot).expect("only full buckets are searched");
                let other = self.other_bucket(steps[at].bucket, entry.tag());
                if let Some(free) = Bucket::at(table, other).free_slot() {
                    return Some(move_along(table, &steps, roots, (at, slot), (other, free)));
                }
                let is_new = steps[..found].iter().all(|step| step.bucket != other);
                if is_new && found < MAX_SEARCH_BUCKETS {
                    steps[found] = Step { bucket: other, before: at, slot };
                    found += 1;
                }
            }
            at += 1;
        }
        None
    }
}

/// Moves entries one step each, the last first: that in (step, slot) to the free slot in (bucket,
/// slot), and so on back to a root, whose slot is then free for the caller.
fn move_along<'a>(
    table: &'a [AtomicU64],
    steps: &[Step],
    roots: usize,
    (mut step, mut slot): (usize, usize),
    (free_bucket, mut free_slot): (usize, usize),
) -> (Bucket<'a>, usize) {
    let mut to = Bucket::at(table, free_bucket);
    loop {
        let from = Bucket::at(table, steps[step].bucket);
        // Both slots hold the entry until the next move, or the caller, overwrites the old one.
        to.set(free_slot, from.get(slot));
        if step < roots {
            return (from, slot);
        }
        (to, free_slot) = (from, slot);
        (step, slot) = (steps[step].before, steps[step].slot);
    }
}

/// A number below `bound`, evenly from the high half of a random word.
fn scale(word: u64, bound: u32) -> usize {
    (((word >> 32) * u64::from(bound)) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn the_other_bucket_of_the_other_bucket_is_the_first() {
        let mut random = Random(1);
        for buckets in [1, 2, 3, 7, 64, 1000, 16_381] {
            let shard = Shard::new(500, buckets);
            let range = 500..500 + buckets as usize;
            for fingerprint in random.fingerprints(2000) {
                let Position { tag, buckets: [first, second] } = shard.position(&fingerprint);
                assert!(range.contains(&first) && range.contains(&second));
                assert_eq!(shard.other_bucket(second, tag), first);
            }
        }
    }

    #[test]
    fn both_choices_spread_evenly_even_in_the_thinnest_sample() {
        let shard = Shard::new(0, 100);
        let mut random = Random(2);
        let mut chosen = [[0_u32; 100]; 2];
        for _ in 0..100_000 {
            let wide = u128::from(random.next()) << 64
                | u128::from(random.next() >> MAX_SAMPLE_BITS << MAX_SAMPLE_BITS);
            let fingerprint = ShortFingerprint::from_bytes(wide.to_le_bytes());
            let position = shard.position(&fingerprint);
            chosen[0][position.buckets[0]] += 1;
            chosen[1][position.buckets[1]] += 1;
        }
        for count in chosen.as_flattened() {
            assert!((800..1200).contains(count), "{count} of 1000 expected");
        }
    }

    #[test]
    fn entries_that_share_all_their_buckets_replace_each_other_and_do_not_thin_the_sample() {
        let table: Vec<AtomicU64> = (0..64 * BUCKET_ENTRIES).map(|_| AtomicU64::new(0)).collect();
        let shard = Shard::new(0, 64);
        let mut random = Random(3);
        let target = shard.position(&random.fingerprint());
        let mut inserted = 0;
        while inserted < 100 {
            let position = shard.position(&random.fingerprint());
            if position.buckets.iter().all(|bucket| target.buckets.contains(bucket)) {
                shard.insert(&table, &position, UnitAddress::new(inserted));
                assert_eq!(position.find(&table), Some(UnitAddress::new(inserted)));
                inserted += 1;
            }
        }
        assert_eq!(shard.sample_bits(), 0);
        let in_use = table.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count() as u64;
        assert!(in_use <= 2 * BUCKET_ENTRIES as u64);
        assert_eq!(shard.entries(), in_use);
        assert_eq!(shard.dropped(), 100 - in_use);
    }

    #[test]
    fn moving_entries_fills_a_shard_to_98_percent_before_one_must_give_way() {
        const BUCKETS: u32 = 2000;
        const SLOTS: usize = BUCKETS as usize * BUCKET_ENTRIES;
        let table: Vec<AtomicU64> = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        let shard = Shard::new(0, BUCKETS);
        // No load is too much for the thinnest sample.
        shard.sample_bits.store(MAX_SAMPLE_BITS, Ordering::Relaxed);
        let mut random = Random(4);
        let mut positions: Vec<Position> = Vec::new();
        while shard.dropped() == 0 {
            let wide = u128::from(random.next()) << 64
                | u128::from(random.next() >> MAX_SAMPLE_BITS << MAX_SAMPLE_BITS);
            let position = shard.position(&ShortFingerprint::from_bytes(wide.to_le_bytes()));
            // Sampled tags have 10 bits left: some would be taken for one that is there.
            if position.find(&table).is_none() {
                shard.insert(&table, &position, UnitAddress::new(positions.len() as u64));
                positions.push(position);
            }
        }
        assert!(positions.len() >= SLOTS * 98 / 100, "full at {} of {SLOTS}", positions.len());
        let found = (0..).zip(&positions).filter(|(unit, position)| {
            let tag_and_unit = Entry::new(position.tag, UnitAddress::new(*unit));
            position.buckets.iter().any(|&bucket| {
                let bucket = Bucket::at(&table, bucket);
                (0..BUCKET_ENTRIES).any(|slot| bucket.get(slot) == Some(tag_and_unit))
            })
        });
        assert_eq!(found.count(), positions.len() - 1, "all but the one that gave way");
    }

    #[test]
    fn writers_of_one_shard_do_not_disturb_each_other() {
        const SLOTS: usize = 5000 * BUCKET_ENTRIES;
        // Threads that insert the same in the same order: who is behind catches up, as it finds
        // what the other has inserted, and from there on they meet in the same buckets.
        let fingerprints = Random(5).fingerprints(SLOTS * 9 / 10);
        for _ in 0..10 {
            let table: Vec<AtomicU64> = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
            let shard = Shard::new(0, 5000);
            let start = std::sync::Barrier::new(3);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        start.wait();
                        for fingerprint in &fingerprints {
                            let position = shard.position(fingerprint);
                            shard.insert(&table, &position, UnitAddress::new(1));
                        }
                    });
                }
            });
            let in_use = table.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count();
            // Two fingerprints can share a tag and their buckets, about once in 2^22.
            assert!((fingerprints.len() - 1..=fingerprints.len()).contains(&in_use));
            assert_eq!(shard.entries(), in_use as u64);
        }
    }
}
