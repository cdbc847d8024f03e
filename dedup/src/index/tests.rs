use super::*;
use crate::testing::Random;
use proptest::prelude::*;
use std::collections::HashMap;

/// Entries that an index of this budget certainly takes before it thins its sample.
const EXACT_LOAD: f64 = 0.90;

fn unit(page: usize) -> UnitAddress {
    UnitAddress::new(page as u64)
}

fn lookup(index: &Index, fingerprints: &[ShortFingerprint]) -> Vec<Option<UnitAddress>> {
    let mut found = Vec::new();
    index.lookup_batch(fingerprints, &mut found);
    assert_eq!(found.len(), fingerprints.len());
    found
}

/// Inserts in batches of a write unit; unit `n` holds `fingerprints[256 * n..]`.
fn fill(index: &Index, fingerprints: &[ShortFingerprint]) {
    for (page, batch) in fingerprints.chunks(256).enumerate() {
        index.insert_batch(batch, unit(page));
    }
}

#[test]
fn every_fingerprint_is_found_until_nine_tenths_of_the_slots_are_taken() {
    for budget_bytes in [MIN_BUDGET_BYTES, 1_000_003, 5 << 20] {
        let index = Index::new(budget_bytes).unwrap();
        let count = (index.stats().capacity_entries as f64 * EXACT_LOAD) as usize;
        let fingerprints = Random(1).fingerprints(count);
        fill(&index, &fingerprints);
        let stats = index.stats();
        assert_eq!((stats.sample_bits, stats.dropped), (0, 0), "{budget_bytes} bytes");
        // Tags of two fingerprints in the same buckets agree about once in 2^22.
        assert!(stats.entries as usize >= count - 2);
        let found = lookup(&index, &fingerprints);
        let right = (0..count).filter(|&i| found[i] == Some(unit(i / 256))).count();
        assert!(right >= count - 2, "{right} of {count}");
    }
}

#[test]
fn what_was_never_inserted_is_hardly_ever_found() {
    let index = Index::new(1 << 20).unwrap();
    let mut random = Random(2);
    fill(&index, &random.fingerprints(100_000));
    let strangers = random.fingerprints(200_000);
    let wrong = lookup(&index, &strangers).into_iter().flatten().count();
    // 16 slots of 26-bit tags: 1 in 2^22 expected, that is 0.05 of these.
    assert!(wrong <= 3, "{wrong} strangers taken for known");
}

#[test]
fn an_inserted_fingerprint_is_found_exactly_if_it_is_sampled() {
    let index = Index::new(256 << 10).unwrap();
    let fingerprints = Random(3).fingerprints(400_000);
    for (n, batch) in fingerprints.chunks(20_000).enumerate() {
        index.insert_batch(batch, unit(n));
        let so_far = &fingerprints[..(n + 1) * 20_000];
        let found = lookup(&index, so_far);
        for (i, fingerprint) in so_far.iter().enumerate() {
            match found[i] {
                Some(found) if index.is_sampled(fingerprint) => {
                    // A clash of tags may have moved a fingerprint to a later unit.
                    assert!(found >= unit(i / 20_000));
                }
                Some(_) => panic!("{fingerprint} found, which is not sampled"),
                None => assert!(!index.is_sampled(fingerprint), "{fingerprint} lost"),
            }
        }
    }
    assert!(index.stats().sample_bits >= 4);
}

#[test]
fn the_loss_is_gradual_and_the_memory_stays_in_use() {
    let index = Index::new(4 << 20).unwrap();
    let mut random = Random(4);
    let mut inserted = 0;
    let mut bits_before = 0;
    while inserted < 8_000_000 {
        fill(&index, &random.fingerprints(50_000));
        inserted += 50_000;
        let stats = index.stats();
        assert!(stats.sample_bits <= bits_before + 1, "one bit at a time");
        bits_before = stats.sample_bits;
        assert!(stats.entries <= stats.capacity_entries);
        assert_eq!(stats.bytes, index.stats().bytes);
        assert!(stats.bytes <= 4 << 20);
        if stats.sample_bits > 0 {
            assert!(stats.entries * 5 >= stats.capacity_entries * 2, "{stats:?}");
            let accounted = stats.entries + stats.dropped;
            assert!(accounted <= inserted);
        }
    }
    // 8,000,000 into 524,000 slots: 1 in 16 would be 500,000, more than 15/16 of the slots.
    assert_eq!(index.stats().sample_bits, 5);
}

#[test]
fn shards_are_at_most_one_sample_bit_apart_under_an_even_load() {
    let index = Index::new(16 << 20).unwrap();
    assert_eq!(index.shards.len(), 16);
    let mut random = Random(5);
    for _ in 0..100 {
        fill(&index, &random.fingerprints(50_000));
        let bits = index.shards.iter().map(Shard::sample_bits);
        assert!(bits.clone().max().unwrap() - bits.min().unwrap() <= 1);
    }
}

#[test]
fn an_index_in_its_thinnest_sample_keeps_the_newest() {
    let index = Index::new(MIN_BUDGET_BYTES).unwrap();
    let mut random = Random(6);
    // Fingerprints that every sample holds: nothing can be thinned away.
    let fingerprints: Vec<_> = (0..50_000)
        .map(|_| {
            let low = random.next() >> sample::MAX_SAMPLE_BITS << sample::MAX_SAMPLE_BITS;
            let wide = u128::from(random.next()) << 64 | u128::from(low);
            ShortFingerprint::from_bytes(wide.to_le_bytes())
        })
        .collect();
    for (n, fingerprint) in fingerprints.iter().enumerate() {
        index.insert_batch(&[*fingerprint], unit(n));
        assert_eq!(lookup(&index, &[*fingerprint]), [Some(unit(n))]);
    }
    let stats = index.stats();
    assert_eq!(stats.sample_bits, sample::MAX_SAMPLE_BITS);
    assert!(stats.entries * 10 > stats.capacity_entries * 9 && stats.dropped > 0);
}

#[test]
fn a_fingerprint_moves_to_the_unit_that_stored_it_last() {
    let index = Index::new(MIN_BUDGET_BYTES).unwrap();
    let fingerprints = Random(7).fingerprints(100);
    index.insert_batch(&fingerprints, unit(1));
    index.insert_batch(&fingerprints[..40], unit(2));
    let found = lookup(&index, &fingerprints);
    assert!(found[..40].iter().all(|&found| found == Some(unit(2))));
    assert!(found[40..].iter().all(|&found| found == Some(unit(1))));
    assert_eq!(index.stats().entries, 100);
}

#[test]
fn budgets_are_used_well_and_never_exceeded() {
    let mut random = Random(8);
    let odd = std::iter::repeat_with(|| MIN_BUDGET_BYTES + random.below(40 << 20) as usize);
    for budget_bytes in [MIN_BUDGET_BYTES, 65_537, 1 << 20, 3 << 20].into_iter().chain(odd.take(50))
    {
        let stats = Index::new(budget_bytes).unwrap().stats();
        assert!(stats.bytes <= budget_bytes);
        let slots_bytes = stats.capacity_entries as usize * ENTRY_BYTES;
        assert!(slots_bytes * 100 >= budget_bytes * 99, "{stats:?} of {budget_bytes}");
    }
}

#[test]
fn a_budget_that_cannot_be_had_is_an_error() {
    let refused = |budget_bytes| Index::new(budget_bytes).err();
    let budget_bytes = MIN_BUDGET_BYTES - 1;
    assert_eq!(refused(budget_bytes), Some(IndexError::BudgetTooSmall { budget_bytes }));
    let budget_bytes = usize::MAX;
    assert_eq!(refused(budget_bytes), Some(IndexError::OutOfMemory { budget_bytes }));
}

#[test]
fn buckets_begin_at_cache_lines() {
    for budget_bytes in [MIN_BUDGET_BYTES, 100_000, 1 << 20, 9 << 20] {
        let index = Index::new(budget_bytes).unwrap();
        assert!(index.table().as_ptr().addr().is_multiple_of(BUCKET_BYTES));
    }
}

#[test]
fn threads_that_insert_and_look_up_together_lose_nothing_that_has_settled() {
    let index = Index::new(2 << 20).unwrap();
    let sets: Vec<_> = (0..4).map(|seed| Random(seed + 10).fingerprints(50_000)).collect();
    std::thread::scope(|scope| {
        for (n, set) in sets.iter().enumerate() {
            let index = &index;
            scope.spawn(move || {
                for batch in set.chunks(256) {
                    index.insert_batch(batch, unit(n));
                    for found in lookup(index, set).into_iter().step_by(97).flatten() {
                        assert!(found < unit(4), "{found} was never inserted");
                    }
                }
            });
        }
    });
    assert_eq!(index.stats().sample_bits, 0);
    for (n, set) in sets.iter().enumerate() {
        let wrong = lookup(&index, set).iter().filter(|&&found| found != Some(unit(n))).count();
        assert!(wrong <= 2, "{wrong} of set {n} lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn an_index_that_is_not_full_is_a_map(
        seed: u64,
        batches in prop::collection::vec((0..300_u64, prop::collection::vec(0..500_usize, 0..80)), 1..40),
    ) {
        let universe = Random(seed).fingerprints(500);
        let index = Index::new(MIN_BUDGET_BYTES).unwrap();
        let mut model = HashMap::new();
        for (page, members) in batches {
            let batch: Vec<_> = members.iter().map(|&i| universe[i]).collect();
            index.insert_batch(&batch, UnitAddress::new(page));
            model.extend(batch.into_iter().map(|f| (f, UnitAddress::new(page))));
            let expected: Vec<_> = universe.iter().map(|f| model.get(f).copied()).collect();
            prop_assert_eq!(lookup(&index, &universe), expected);
            prop_assert_eq!(index.stats().entries as usize, model.len());
        }
    }
}
