//! The dedup index at four fifths of its capacity, in batches of a write unit.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use siltstone_dedup::{Index, ShortFingerprint, UnitAddress};
use siltstone_device::SeededRandom;

const BUDGET_BYTES: usize = 64 << 20;
const LOAD_PERCENT: u64 = 80;
const BATCH: usize = 256;

fn random_fingerprint(random: &mut SeededRandom) -> ShortFingerprint {
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    ShortFingerprint::from_bytes(bytes)
}

fn index(criterion: &mut Criterion) {
    let index = Index::new(BUDGET_BYTES).expect("the budget is large enough");
    let count = index.stats().capacity_entries * LOAD_PERCENT / 100;
    let mut random = SeededRandom::new(1);
    let present: Vec<_> = (0..count).map(|_| random_fingerprint(&mut random)).collect();
    for (unit, batch) in (0..).zip(present.chunks(BATCH)) {
        index.insert_batch(batch, UnitAddress::new(unit));
    }
    let mut shuffled = present.clone();
    random.shuffle(&mut shuffled);
    let absent: Vec<_> = (0..count / 8).map(|_| random_fingerprint(&mut random)).collect();

    let mut group = criterion.benchmark_group("index");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut found = Vec::with_capacity(BATCH);
    for (name, fingerprints) in [("lookup present", &shuffled), ("lookup absent", &absent)] {
        let mut batches = fingerprints.as_chunks::<BATCH>().0.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                found.clear();
                index.lookup_batch(batches.next().expect("a cycle"), &mut found);
                found.len()
            });
        });
    }
    let mut batches = (0..).zip(shuffled.as_chunks::<BATCH>().0.iter().cycle());
    group.bench_function("insert, moved", |bencher| {
        bencher.iter(|| {
            let (unit, batch) = batches.next().expect("a cycle");
            index.insert_batch(batch, UnitAddress::new(unit));
        });
    });
    // Last: the table thins its sample as this goes on.
    group.bench_function("insert, new", |bencher| {
        let mut batch = [random_fingerprint(&mut random); BATCH];
        bencher.iter(|| {
            batch.fill_with(|| random_fingerprint(&mut random));
            index.insert_batch(&batch, UnitAddress::new(1));
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = index
}
criterion_main!(benches);
