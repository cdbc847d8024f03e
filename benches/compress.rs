//! The codec alone, on real data in the sizes that frames have: what the engine cannot beat.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use siltstone_benches::data;
use zstd::zstd_safe::{CCtx, CParameter, DCtx};

const SAMPLE_BYTES: usize = 8 << 20;
const FRAME_BYTES: usize = 32 << 10;

fn codec(criterion: &mut Criterion) {
    let bytes = data::sample(SAMPLE_BYTES).expect("the system has files");
    let mut out = vec![0; 2 * FRAME_BYTES];
    let mut group = criterion.benchmark_group("compress");
    group.throughput(Throughput::Bytes(SAMPLE_BYTES as u64));
    for (level, piece) in [(1, 4 << 10), (1, FRAME_BYTES), (3, FRAME_BYTES)] {
        let mut context = CCtx::create();
        let level_set = context.set_parameter(CParameter::CompressionLevel(level));
        level_set.expect("the level exists");
        let id = BenchmarkId::new(format!("zstd {level}"), format!("{} KiB", piece >> 10));
        group.bench_function(id, |bencher| {
            bencher.iter(|| {
                let compress = |piece| context.compress2(&mut out[..], piece);
                bytes.chunks(piece).map(compress).map(|len| len.expect("it fits")).sum::<usize>()
            });
        });
    }

    let mut context = CCtx::create();
    let frames: Vec<Vec<u8>> = bytes
        .chunks(FRAME_BYTES)
        .map(|piece| {
            let len = context.compress(&mut out[..], piece, 1).expect("it fits");
            out[..len].to_vec()
        })
        .collect();
    let mut context = DCtx::create();
    group.bench_function("decompress zstd 1/32 KiB", |bencher| {
        bencher.iter(|| {
            for frame in &frames {
                let len = context.decompress(&mut out[..], frame);
                len.expect("what was compressed decompresses");
            }
        });
    });
    group.bench_function("crc32 of the frames", |bencher| {
        bencher.iter(|| frames.iter().fold(0, |sum, frame| sum ^ crc32fast::hash(frame)));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(2));
    targets = codec
}
criterion_main!(benches);
