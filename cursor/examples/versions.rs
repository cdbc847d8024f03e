//! Measures what snapshots cost a map: `cargo run --release -p siltstone-cursor --example versions`.
//!
//! A volume of a million blocks, overwritten at random two million times, without snapshots and
//! with a thousand at even distances; then cold lookups, live and in the oldest, a middle and the
//! newest snapshot; then what it takes to delete snapshots.

use std::{sync::Arc, time::Instant};

use pollster::block_on;
use siltstone_cursor::{
    Edit, Epoch, Extent, Manifest, Map, MapConfig, Rewrite, SegmentGeometry, SegmentSource, Target,
    View, Visibility,
};
use siltstone_device::{
    BlockAddress, ByteOffset, LayerId, Place, SeededRandom, SegmentId, Sequence, sim::SimDevice,
};

const BLOCKS: u64 = 1 << 20;
const OVERWRITES: u64 = 2_000_000;
const MEMTABLE_ENTRIES: usize = 65_536;
const MEMTABLE_EPOCHS: usize = 32;
const MERGE_PAGES: usize = 8192;
const CACHE_BYTES: usize = 1 << 20;
const LOOKUPS: u64 = 50_000;
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
    labels: Vec<Epoch>,
}

fn open(device: &Arc<SimDevice>, manifest: Manifest) -> Map {
    let geometry = SegmentGeometry { data_start: ByteOffset(0), segment_bytes: 8 << 20 };
    Map::open(device.clone(), MapConfig::new(7, geometry, CACHE_BYTES), manifest)
}

impl Bench {
    fn publish(&mut self, epoch: u32, address: u64) {
        self.sequence = self.sequence.next();
        let salt = self.sequence.0;
        let place = Place::new(SegmentId((salt % 10_000) as u32), (salt % 1000 * 4096) as u32, 0);
        let (target, address) = (Target::Stored(place), BlockAddress(address));
        let extent = Extent { layer: LAYER, epoch: Epoch(epoch), address, len_blocks: 1, target };
        self.map.publish(&[(extent, self.sequence)]);
        let epochs = self.map.memtable_epochs();
        if self.map.memtable_len() >= MEMTABLE_ENTRIES || epochs > MEMTABLE_EPOCHS {
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        let visibility = Visibility::new(true, false, self.labels.clone());
        let layers = |_| visibility.clone();
        self.map.freeze();
        block_on(self.map.write_frozen(&mut self.segments, &layers)).expect("has room");
        while self.merge().is_some() {}
        self.device.forget_history();
    }

    fn merge(&mut self) -> Option<Edit> {
        let visibility = Visibility::new(true, false, self.labels.clone());
        let layers = |_| visibility.clone();
        let step = self.map.merge_step(Rewrite::new(&mut self.segments, &layers, MERGE_PAGES));
        block_on(step).expect("has room")
    }

    fn lookups(&self, name: &str, as_of: Epoch) {
        let map = open(&self.device, self.map.manifest());
        let mut random = SeededRandom::new(99);
        let (mut out, start) = (Vec::new(), Instant::now());
        for _ in 0..LOOKUPS {
            let address = BlockAddress(random.below(BLOCKS));
            let chain = [View { layer: LAYER, as_of }];
            block_on(map.lookup(&chain, address, 1, &mut out)).expect("is whole");
        }
        let each = start.elapsed().as_nanos() as f64 / LOOKUPS as f64;
        let reads = map.stats().page_reads as f64 / LOOKUPS as f64;
        println!("  lookup, {name}: {reads:.2} page reads, {each:.0} ns");
    }
}

fn main() {
    for snapshots in [0, 1000] {
        let device = SimDevice::new(1 << 40);
        let map = open(&device, Manifest::empty());
        let (segments, sequence, labels) = (Segments(0), Sequence(0), Vec::new());
        let mut bench = Bench { device, map, segments, sequence, labels };
        for address in 0..BLOCKS {
            bench.publish(0, address);
        }
        let (mut random, mut epoch, start) = (SeededRandom::new(1), 0, Instant::now());
        for written in 0..OVERWRITES {
            if snapshots > 0 && written.is_multiple_of(OVERWRITES / snapshots) {
                bench.labels.push(Epoch(epoch));
                epoch += 1;
            }
            bench.publish(epoch, random.below(BLOCKS));
        }
        bench.checkpoint();
        let each = start.elapsed().as_nanos() as u64 / OVERWRITES;
        let stats = bench.map.stats();
        println!(
            "{snapshots} snapshots: {} entries in {} pages; patches by level {:?}; \
             {each} ns an overwrite, {} pages written",
            stats.entries, stats.pages, stats.levels, stats.pages_written
        );
        bench.lookups("live", Epoch::MAX);
        if snapshots == 0 {
            continue;
        }
        for label in [0, 500, 999] {
            bench.lookups(&format!("snapshot {label}"), Epoch(label));
        }
        for (name, kept) in
            [("the newest snapshot", 0..999), ("half of all", 0..500), ("all", 0..0)]
        {
            let (before, start) = (bench.map.stats(), Instant::now());
            bench.labels = kept.map(Epoch).collect();
            while bench.merge().is_some() {}
            let after = bench.map.stats();
            println!(
                "  {name} deleted: {} entries fewer, {} pages written, {:?}",
                before.entries - after.entries,
                after.pages_written - before.pages_written,
                start.elapsed()
            );
        }
    }
}
