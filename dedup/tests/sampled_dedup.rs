//! How much deduplication a sampled index keeps. Simulates what the engine does with this crate's
//! parts (index, neighbourhood, extension, plan) on a synthetic stream with a fixed seed.
//!
//! The store holds a first generation of distinct blocks in write units of 256. The second
//! generation is written: runs of duplicates of the first, mixed with new blocks. The lengths of
//! runs follow what was measured on real server images built apart (share of duplicate bytes in
//! runs of at least 2 / 4 / 8 / 16 / 32 / 64 blocks: 98.4 / 96.3 / 93.4 / 89.0 / 82.9 / 73.9 %).
//! Where runs point is not known from those numbers, so two cases are measured:
//! - near: 9 of 10 runs point a few blocks past the end of the run before (a changed block or two
//!   interrupt what is otherwise the same data), the others anywhere;
//! - scattered: every run points anywhere, however short. Nothing is; it bounds the loss.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use siltstone_dedup::run::{extend, plan};
use siltstone_dedup::{
    Candidate, Index, Kind, Neighbourhood, ShortFingerprint, Target, UnitAddress,
};

const UNIT_BLOCKS: usize = 256;
const BATCH_BLOCKS: usize = 256;
const FIRST_GENERATION_BLOCKS: u64 = 1 << 20;
const SECOND_GENERATION_DUPLICATES: u64 = 1 << 19;
const LOADED_UNITS: usize = 64;
const THRESHOLD: usize = 2;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn unit_interval(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Log-uniform between two lengths, both included.
    fn length(&mut self, from: u64, to: u64) -> u64 {
        let (low, high) = ((from as f64).ln(), ((to + 1) as f64).ln());
        ((low + self.unit_interval() * (high - low)).exp() as u64).clamp(from, to)
    }
}

/// Block number `n`'s fingerprint.
fn fingerprint(n: u64) -> ShortFingerprint {
    let wide = u128::from(Random(2 * n).next()) << 64 | u128::from(Random(!n).next());
    ShortFingerprint::from_bytes(wide.to_le_bytes())
}

/// (shortest, longest, share of the duplicate blocks in such runs)
const RUNS: [(u64, u64, f64); 7] = [
    (1, 1, 0.016),
    (2, 3, 0.021),
    (4, 7, 0.029),
    (8, 15, 0.044),
    (16, 31, 0.061),
    (32, 63, 0.090),
    (64, 1024, 0.739),
];

/// The second generation as block numbers: those below [`FIRST_GENERATION_BLOCKS`] are duplicates.
fn second_generation(near_in_ten: u64) -> Vec<u64> {
    let mut random = Random(42);
    // Runs of a class are as frequent as its share of blocks divided by its mean length.
    let frequencies = RUNS.map(|(from, to, share)| {
        let mut probe = Random(7);
        let total: u64 = (0..10_000).map(|_| probe.length(from, to)).sum();
        share / (total as f64 / 10_000.0)
    });
    let sum: f64 = frequencies.iter().sum();
    let mut stream = Vec::new();
    let mut next_new = FIRST_GENERATION_BLOCKS;
    let mut duplicates = 0;
    let mut target = 0;
    while duplicates < SECOND_GENERATION_DUPLICATES {
        let mut pick = random.unit_interval() * sum;
        let class = frequencies
            .iter()
            .position(|frequency| {
                pick -= frequency;
                pick < 0.0
            })
            .unwrap_or(RUNS.len() - 1);
        let len = random.length(RUNS[class].0, RUNS[class].1);
        target = if random.below(10) < near_in_ten {
            target + 1 + random.below(8)
        } else {
            random.below(FIRST_GENERATION_BLOCKS)
        };
        if target + len > FIRST_GENERATION_BLOCKS {
            target = random.below(FIRST_GENERATION_BLOCKS - len);
        }
        stream.extend(target..target + len);
        target += len;
        duplicates += len;
        let new = random.length(1, 2 * len);
        stream.extend(next_new..next_new + new);
        next_new += new;
    }
    stream
}

/// The parts of this crate, put together as the engine does, and a device of summaries.
struct Store {
    index: Index,
    neighbourhood: Neighbourhood,
    units: HashMap<UnitAddress, Arc<[ShortFingerprint]>>,
    open_unit: Vec<ShortFingerprint>,
    summaries_loaded: u64,
}

#[derive(Debug, Default)]
struct Outcome {
    duplicates: u64,
    found: u64,
    linked: u64,
}

impl Store {
    fn new(budget_bytes: usize) -> Self {
        Self {
            index: Index::new(budget_bytes).expect("a budget above the smallest"),
            neighbourhood: Neighbourhood::new(LOADED_UNITS),
            units: HashMap::new(),
            open_unit: Vec::new(),
            summaries_loaded: 0,
        }
    }

    fn store(&mut self, fingerprint: ShortFingerprint) {
        self.open_unit.push(fingerprint);
        if self.open_unit.len() == UNIT_BLOCKS {
            let unit = UnitAddress::new(self.units.len() as u64);
            let summary: Arc<[_]> = std::mem::take(&mut self.open_unit).into();
            self.index.insert_batch(&summary, unit);
            self.neighbourhood.insert(unit, Arc::clone(&summary));
            self.units.insert(unit, summary);
        }
    }

    fn load(&mut self, unit: UnitAddress) {
        if !self.neighbourhood.contains(unit)
            && let Some(summary) = self.units.get(&unit)
        {
            self.summaries_loaded += 1;
            self.neighbourhood.insert(unit, Arc::clone(summary));
        }
    }

    fn look_around(&self, fingerprints: &[ShortFingerprint], found: &mut [Option<Candidate>]) {
        let mut again = Vec::new();
        self.neighbourhood.lookup_batch(fingerprints, &mut again);
        for (found, again) in found.iter_mut().zip(again) {
            *found = found.or(again);
        }
    }

    fn write_batch(&mut self, blocks: &[u64], outcome: &mut Outcome) {
        let fingerprints: Vec<_> = blocks.iter().map(|&n| fingerprint(n)).collect();
        let mut candidates = vec![None; blocks.len()];
        self.look_around(&fingerprints, &mut candidates);

        // Sampled blocks that no loaded summary has: load theirs. And read ahead of the stream:
        // the unit stored after each that is in use.
        let mut hints = Vec::new();
        self.index.lookup_batch(&fingerprints, &mut hints);
        let hinted = hints.iter().zip(&candidates).filter(|(_, found)| found.is_none());
        let mut units: BTreeSet<_> = hinted.filter_map(|(hint, _)| *hint).collect();
        units.extend(candidates.iter().flatten().map(|candidate| candidate.unit));
        for unit in units {
            self.load(unit);
            self.load(UnitAddress::new(unit.page() + 1));
        }
        self.look_around(&fingerprints, &mut candidates);
        extend(&fingerprints, &mut candidates, &self.neighbourhood);

        for (&n, candidate) in blocks.iter().zip(&candidates) {
            let is_duplicate = n < FIRST_GENERATION_BLOCKS;
            outcome.duplicates += u64::from(is_duplicate);
            outcome.found += u64::from(is_duplicate && candidate.is_some());
            if let Some(found) = candidate {
                let summary = &self.units[&found.unit];
                assert_eq!(summary[found.ordinal as usize], fingerprint(n), "a wrong link");
            }
        }
        let targets: Vec<_> =
            candidates.iter().map(|candidate| candidate.map(Target::Stored)).collect();
        let mut runs = Vec::new();
        plan(&targets, &vec![true; blocks.len()], THRESHOLD, &mut runs);
        for run in runs {
            match run.kind {
                Kind::Link { .. } => outcome.linked += run.len as u64,
                Kind::Store => {
                    for fingerprint in &fingerprints[run.first..run.first + run.len] {
                        self.store(*fingerprint);
                    }
                }
            }
        }
    }
}

/// The share of duplicates found with one `fraction`th of the memory of an exact index.
fn found_share(fraction: usize, case: &str, near_in_ten: u64) -> f64 {
    let stream = second_generation(near_in_ten);
    let new = stream.iter().filter(|&&n| n >= FIRST_GENERATION_BLOCKS).count();
    let distinct = FIRST_GENERATION_BLOCKS as usize + new;
    // An exact index thins its sample at 15/16 of its slots of 8 bytes.
    let budget_bytes = distinct * 8 * 16 / 15 / fraction;
    let mut store = Store::new(budget_bytes);
    (0..FIRST_GENERATION_BLOCKS).for_each(|n| store.store(fingerprint(n)));

    let mut outcome = Outcome::default();
    for batch in stream.chunks(BATCH_BLOCKS) {
        store.write_batch(batch, &mut outcome);
    }
    let stats = store.index.stats();
    assert!(stats.bytes <= budget_bytes, "{stats:?}");
    assert!(u32::from(stats.sample_bits) >= fraction.ilog2(), "a budget that is no limit");
    let share = outcome.found as f64 / outcome.duplicates as f64;
    let loads = store.summaries_loaded as f64 / (stream.len() / BATCH_BLOCKS) as f64;
    println!(
        "1/{fraction} of the memory, {case}: {:.2} % of the duplicates found, {:.2} % linked at threshold {THRESHOLD}, \
         {loads:.2} summaries loaded a batch of 1 MiB, sample bits {}, {:.2} bytes a distinct block",
        100.0 * share,
        100.0 * outcome.linked as f64 / outcome.duplicates as f64,
        stats.sample_bits,
        budget_bytes as f64 / distinct as f64,
    );
    share
}

#[test]
fn a_sixteenth_of_the_memory_finds_97_percent_of_the_duplicates() {
    let share = found_share(16, "near", 9);
    assert!(share >= 0.97, "{share}");
}

#[test]
fn a_sixteenth_of_the_memory_finds_most_duplicates_even_if_every_run_points_elsewhere() {
    let share = found_share(16, "scattered", 0);
    assert!(share >= 0.85, "{share}");
}

#[test]
fn the_loss_grows_little_by_little_as_the_memory_shrinks() {
    let mut before = 1.0;
    for fraction in [1, 2, 4, 8, 16, 32, 64] {
        let share = found_share(fraction, "near", 9);
        assert!(share <= before, "{share} with less memory, {before} with more");
        assert!(share >= before - 0.08, "{share} after {before}");
        before = share;
    }
}
