//! Fingerprinting a batch of real data: block by block, and many blocks in the SIMD lanes at once.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use siltstone_benches::data;
use siltstone_dedup::{Fingerprint, fingerprint, fingerprint_blocks, is_zero};

const BATCH_BYTES: usize = 1 << 20;

fn fingerprints(criterion: &mut Criterion) {
    let bytes = data::sample(BATCH_BYTES).expect("the system has files");
    let blocks: Vec<_> = bytes.as_chunks::<{ data::BLOCK_BYTES }>().0.iter().collect();
    let mut out = vec![Fingerprint::from_bytes([0; 32]); blocks.len()];
    let mut group = criterion.benchmark_group("fingerprint");
    group.throughput(Throughput::Bytes(BATCH_BYTES as u64));
    group.bench_function("simple", |bencher| {
        bencher.iter(|| {
            for (block, out) in blocks.iter().zip(&mut out) {
                *out = fingerprint(block);
            }
        });
    });
    group.bench_function("multilane", |bencher| {
        bencher.iter(|| fingerprint_blocks(black_box(&blocks), &mut out));
    });
    // Data that differs from zero at once says nothing of the speed of the comparison.
    let zeros = [0; data::BLOCK_BYTES];
    group.throughput(Throughput::Bytes(data::BLOCK_BYTES as u64));
    group.bench_function("is_zero", |bencher| bencher.iter(|| is_zero(black_box(&zeros))));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = fingerprints
}
criterion_main!(benches);
