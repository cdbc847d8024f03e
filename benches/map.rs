//! The map: publishing, looking up, and walking it, over a volume of a million blocks.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollster::block_on;
use siltstone_cursor::{
    Epoch, Extent, Manifest, Map, MapConfig, Rewrite, SegmentGeometry, SegmentSource, Target, View,
    Visibility,
};
use siltstone_device::{
    BlockAddress, ByteOffset, LayerId, Place, SeededRandom, SegmentId, Sequence, sim::SimDevice,
};

const VOLUME_BLOCKS: u64 = 1 << 20;
const MEMTABLE_ENTRIES: usize = 1 << 16;
/// Entries of a write unit.
const UNIT: usize = 256;
const MERGE_PAGES: usize = 4096;
const CURSOR_BYTES: usize = 4 << 20;
const LAYER: LayerId = LayerId(1);

struct Segments(u32);

impl SegmentSource for Segments {
    fn allocate(&mut self) -> Option<SegmentId> {
        self.0 += 1;
        Some(SegmentId(self.0))
    }
}

struct Bench {
    device: Arc<SimDevice>,
    map: Map,
    segments: Segments,
    sequence: Sequence,
    random: SeededRandom,
}

impl Bench {
    /// A unit of single blocks at random addresses.
    fn unit(&mut self) -> Vec<(Extent, Sequence)> {
        let entry = |_| {
            self.sequence = self.sequence.next();
            let address = self.random.below(VOLUME_BLOCKS);
            (extent(address, self.sequence.0), self.sequence)
        };
        (0..UNIT).map(entry).collect()
    }

    fn checkpoint(&mut self) {
        let layers = |_| Visibility::live_root();
        if self.map.freeze() {
            let written = self.map.write_frozen(&mut self.segments, &layers);
            block_on(written).expect("there is room");
        }
        let mut step = || {
            block_on(self.map.merge_step(Rewrite::new(&mut self.segments, &layers, MERGE_PAGES)))
        };
        while step().expect("there is room").is_some() {}
        self.device.forget_history();
    }
}

fn extent(address: u64, salt: u64) -> Extent {
    let offset = salt.wrapping_mul(0x9e37_79b9) % 1024 * 4096;
    let place = Place::new(SegmentId((salt % 1000) as u32), offset as u32, 0);
    let target = Target::Stored(place);
    let (epoch, address) = (Epoch::FIRST, BlockAddress(address));
    Extent { layer: LAYER, epoch, address, len_blocks: 1, target }
}

fn map(criterion: &mut Criterion) {
    let device = SimDevice::new(1 << 40);
    let geometry = SegmentGeometry { data_start: ByteOffset(0), segment_bytes: 8 << 20 };
    let map = Map::open(device.clone(), MapConfig::new(7, geometry, 256 << 20), Manifest::empty());
    let random = SeededRandom::new(1);
    let mut bench = Bench { device, map, segments: Segments(0), sequence: Sequence(0), random };
    for first in (0..VOLUME_BLOCKS).step_by(MEMTABLE_ENTRIES) {
        for address in first..first + MEMTABLE_ENTRIES as u64 {
            bench.sequence = bench.sequence.next();
            bench.map.publish(&[(extent(address, address), bench.sequence)]);
        }
        bench.checkpoint();
    }

    let mut group = criterion.benchmark_group("map");
    let mut out = Vec::new();
    for (name, len_blocks) in [("lookup 1 block", 1), ("lookup 256 blocks", 256)] {
        group.throughput(Throughput::Elements(len_blocks));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let address = BlockAddress(bench.random.below(VOLUME_BLOCKS - len_blocks));
                let (chain, len_blocks) = ([View::live(LAYER)], len_blocks as u32);
                let lookup = bench.map.lookup(&chain, address, len_blocks, &mut out);
                block_on(lookup).expect("the map is whole");
                out.len()
            });
        });
    }
    group.throughput(Throughput::Elements(VOLUME_BLOCKS));
    group.bench_function("cursor over all", |bencher| {
        bencher.iter(|| {
            let (start, end) = (BlockAddress(0), BlockAddress(VOLUME_BLOCKS));
            let mut cursor = bench.map.cursor(&[View::live(LAYER)], start, end, CURSOR_BYTES);
            while let Some(run) = block_on(cursor.next()).expect("the map is whole") {
                black_box(run);
            }
        });
    });
    group.throughput(Throughput::Elements(UNIT as u64));
    group.bench_function("publish a unit of random overwrites", |bencher| {
        // Checkpoints belong to another thread, so they are not counted here.
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..iterations {
                if bench.map.memtable_len() >= MEMTABLE_ENTRIES {
                    bench.checkpoint();
                }
                let unit = bench.unit();
                let start = Instant::now();
                bench.map.publish(&unit);
                elapsed += start.elapsed();
            }
            elapsed
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(2));
    targets = map
}
criterion_main!(benches);
