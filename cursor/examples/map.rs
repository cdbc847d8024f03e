//! Measures the map: `cargo run --release -p siltstone-cursor --example map`.
//!
//! Random single-block overwrites of a 10 million block volume, with a checkpoint for every
//! 65,536 of them; then lookups and a cursor over what came of it.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use pollster::block_on;
use siltstone_cursor::{
    Epoch, Extent, Manifest, Map, MapConfig, Rewrite, SegmentGeometry, SegmentSource, Target, View,
    Visibility,
};
use siltstone_device::{
    BlockAddress, ByteOffset, LayerId, Place, SegmentId, Sequence, sim::SimDevice,
};

const VOLUME_BLOCKS: u64 = 10_000_000;
const OVERWRITES: u64 = 2_000_000;
const MEMTABLE_ENTRIES: u64 = 65_536;
const MERGE_PAGES: usize = 8192;
const ENTRY_BYTES: u64 = 24;
const PAGE_BYTES: u64 = 4096;
const LAYER: LayerId = LayerId(1);

struct Segments(u32);

impl SegmentSource for Segments {
    fn allocate(&mut self) -> Option<SegmentId> {
        self.0 += 1;
        Some(SegmentId(self.0))
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Bench {
    device: Arc<SimDevice>,
    map: Map,
    segments: Segments,
    sequence: Sequence,
    publishing: Duration,
    maintaining: Duration,
    longest_step: Duration,
    most_level0: u64,
}

impl Bench {
    fn publish(&mut self, address: u64, salt: u64) {
        self.sequence = self.sequence.next();
        let place = Place::new(SegmentId((salt % 10_000) as u32), (salt % 1000 * 4096) as u32, 0);
        let target = Target::Stored(place);
        let (epoch, address) = (Epoch::FIRST, BlockAddress(address));
        let extent = Extent { layer: LAYER, epoch, address, len_blocks: 1, target };
        self.map.publish(&[(extent, self.sequence)]);
    }

    fn checkpoint(&mut self) {
        let start = Instant::now();
        let layers = |_| Visibility::live_root();
        if self.map.freeze() {
            block_on(self.map.write_frozen(&mut self.segments, &layers)).expect("has room");
        }
        self.most_level0 = self.most_level0.max(self.map.stats().levels[0]);
        loop {
            let step = Instant::now();
            let edit = block_on(self.map.merge_step(Rewrite::new(
                &mut self.segments,
                &layers,
                MERGE_PAGES,
            )));
            if edit.expect("has room").is_none() {
                break;
            }
            self.longest_step = self.longest_step.max(step.elapsed());
        }
        self.device.forget_history();
        self.maintaining += start.elapsed();
    }

    fn lookups(&self, name: &str, count: u64, len_blocks: u32) {
        let mut random = Random(99);
        let mut out = Vec::new();
        let reads = self.map.stats().page_reads;
        let start = Instant::now();
        for _ in 0..count {
            let address = BlockAddress(random.below(VOLUME_BLOCKS - u64::from(len_blocks)));
            block_on(self.map.lookup(&[View::live(LAYER)], address, len_blocks, &mut out))
                .expect("is whole");
            black_box(&out);
        }
        let each = start.elapsed().as_nanos() as f64 / count as f64;
        let reads = (self.map.stats().page_reads - reads) as f64 / count as f64;
        println!("lookup, {name}: {each:.0} ns, {reads:.2} page reads");
    }
}

fn main() {
    let device = SimDevice::new(1 << 40);
    let geometry = SegmentGeometry { data_start: ByteOffset(0), segment_bytes: 8 << 20 };
    let config = |cache_bytes| MapConfig::new(7, geometry, cache_bytes);
    let map = Map::open(device.clone(), config(1 << 30), Manifest::empty());
    let mut bench = Bench {
        device: device.clone(),
        map,
        segments: Segments(0),
        sequence: Sequence(0),
        publishing: Duration::ZERO,
        maintaining: Duration::ZERO,
        longest_step: Duration::ZERO,
        most_level0: 0,
    };

    let start = Instant::now();
    for address in 0..VOLUME_BLOCKS {
        bench.publish(address, address.wrapping_mul(0x9e37_79b9) >> 7);
        if (address + 1).is_multiple_of(MEMTABLE_ENTRIES) {
            bench.checkpoint();
        }
    }
    bench.checkpoint();
    println!("fill in order: {:?}, {:?}", start.elapsed(), bench.map.stats());

    let mut random = Random(1);
    let written = bench.map.stats().pages_written;
    bench.maintaining = Duration::ZERO;
    for batch in 0..OVERWRITES.div_ceil(MEMTABLE_ENTRIES) {
        let count = MEMTABLE_ENTRIES.min(OVERWRITES - batch * MEMTABLE_ENTRIES);
        let addresses: Vec<u64> = (0..count).map(|_| random.below(VOLUME_BLOCKS)).collect();
        let start = Instant::now();
        for &address in &addresses {
            bench.publish(address, address ^ batch);
        }
        bench.publishing += start.elapsed();
        bench.checkpoint();
    }
    let stats = bench.map.stats();
    let bytes = (stats.pages_written - written) * PAGE_BYTES;
    println!(
        "random overwrites: write amplification {:.1} (a B-tree: {:.0}); publish {} ns an entry; \
         checkpoints and merges {} ns an entry; longest step {:?}; at most {} patches in level 0",
        bytes as f64 / (OVERWRITES * ENTRY_BYTES) as f64,
        PAGE_BYTES as f64 / ENTRY_BYTES as f64,
        bench.publishing.as_nanos() as u64 / OVERWRITES,
        bench.maintaining.as_nanos() as u64 / OVERWRITES,
        bench.longest_step,
        bench.most_level0,
    );
    println!("{stats:?}; manifest {} bytes", bench.map.manifest().encode().len());

    let start = Instant::now();
    let mut cursor = bench.map.cursor(
        &[View::live(LAYER)],
        BlockAddress(0),
        BlockAddress(VOLUME_BLOCKS),
        4 << 20,
    );
    let mut runs = 0u64;
    while block_on(cursor.next()).expect("is whole").is_some() {
        runs += 1;
    }
    println!("cursor, cold: {:.1} M runs/s", runs as f64 / start.elapsed().as_secs_f64() / 1e6);
    let start = Instant::now();
    let report = block_on(bench.map.verify());
    assert!(report.errors.is_empty());
    println!("verify: {:?} for {} pages", start.elapsed(), report.pages);

    bench.lookups("filling the cache", 1_000_000, 1);
    bench.lookups("page cache, 1 block", 1_000_000, 1);
    bench.lookups("page cache, 256 blocks", 50_000, 256);
    for _ in 0..MEMTABLE_ENTRIES {
        let address = random.below(MEMTABLE_ENTRIES);
        bench.publish(address, address);
    }
    let mut out = Vec::new();
    let start = Instant::now();
    for i in 0..1_000_000u64 {
        let address = BlockAddress(i * 7919 % MEMTABLE_ENTRIES);
        block_on(bench.map.lookup(&[View::live(LAYER)], address, 1, &mut out)).expect("is whole");
        black_box(&out);
    }
    println!(
        "lookup, two in three from the memtable: {} ns",
        start.elapsed().as_nanos() / 1_000_000
    );

    let manifest = bench.map.manifest();
    for cache_bytes in [16 << 20, 64 << 20] {
        bench.map = Map::open(device.clone(), config(cache_bytes), manifest.clone());
        bench.lookups("warming up", 300_000, 1);
        bench.lookups(&format!("map with a cache of {} MiB", cache_bytes >> 20), 300_000, 1);
    }
}
