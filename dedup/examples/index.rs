//! Measures the index: nanoseconds for each fingerprint looked up and inserted, in a table at 80 %
//! load, in batches of a write unit. And those looked up in a neighbourhood of 1024 units.
//!
//! `cargo run --release -p siltstone-dedup --example index [budget in MiB]`

use std::time::Instant;

use siltstone_dedup::{Index, Neighbourhood, ShortFingerprint, UnitAddress};

const BATCH_BLOCKS: usize = 256;
const LOAD_PERCENT: usize = 80;
/// Lookups and insertions measured, at most.
const MEASURED: usize = 1 << 20;

/// Units in the neighbourhood.
const LOADED_UNITS: usize = 1024;

/// Fingerprint number `n`, as random as a hash (splitmix64).
fn fingerprint(n: u64) -> ShortFingerprint {
    let mix = |word: u64| {
        let word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    let wide = u128::from(mix(2 * n)) << 64 | u128::from(mix(2 * n + 1));
    ShortFingerprint::from_bytes(wide.to_le_bytes())
}

fn report(
    what: &str,
    fingerprints: &[ShortFingerprint],
    mut batch: impl FnMut(&[ShortFingerprint]),
) {
    let start = Instant::now();
    fingerprints.chunks(BATCH_BLOCKS).for_each(&mut batch);
    let elapsed = start.elapsed();
    println!("{what:<36} {:6.1} ns", elapsed.as_nanos() as f64 / fingerprints.len() as f64);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let budget_mib: usize = std::env::args().nth(1).map_or(Ok(64), |text| text.parse())?;
    let index = Index::new(budget_mib << 20)?;
    let slots = index.stats().capacity_entries as usize;
    let count = slots * LOAD_PERCENT / 100;
    let last = count - MEASURED.min(count / 8);
    let present: Vec<_> = (0..count as u64).map(fingerprint).collect();
    let unit = |n: usize| UnitAddress::new((n / BATCH_BLOCKS) as u64);

    let mut inserted = 0;
    report("insert, from empty", &present[..last], |batch| {
        index.insert_batch(batch, unit(inserted));
        inserted += batch.len();
    });
    report("insert, up to 80 % load", &present[last..], |batch| {
        index.insert_batch(batch, unit(inserted));
        inserted += batch.len();
    });

    let mut found = Vec::with_capacity(BATCH_BLOCKS);
    let mut hits = 0;
    let scattered: Vec<_> =
        (0..count - last).map(|n| present[n.wrapping_mul(0x9e37_79b1) % count]).collect();
    let strangers: Vec<_> =
        (0..scattered.len() as u64).map(|n| fingerprint(n + (1 << 40))).collect();
    for (what, fingerprints) in [("lookup, present", &scattered), ("lookup, absent", &strangers)] {
        report(what, fingerprints, |batch| {
            found.clear();
            index.lookup_batch(batch, &mut found);
            hits += found.iter().flatten().count();
        });
    }
    report("insert, moved to another unit", &scattered, |batch| {
        index.insert_batch(batch, unit(0));
    });

    let neighbourhood = Neighbourhood::new(LOADED_UNITS);
    let loaded = &present[..count.min(LOADED_UNITS * BATCH_BLOCKS)];
    for (n, summary) in loaded.chunks(BATCH_BLOCKS).enumerate() {
        neighbourhood.insert(UnitAddress::new(n as u64), summary.into());
    }
    let mut candidates = Vec::with_capacity(BATCH_BLOCKS);
    for (what, fingerprints) in
        [("neighbourhood, present", loaded), ("neighbourhood, absent", strangers.as_slice())]
    {
        report(what, fingerprints, |batch| {
            candidates.clear();
            neighbourhood.lookup_batch(batch, &mut candidates);
        });
    }
    println!("{hits} hits for {} fingerprints present, {:?}", scattered.len(), index.stats());
    Ok(())
}
