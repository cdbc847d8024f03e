//! Promises: however many versions a block has, each is found, by as many page reads as if it had
//! one; what a label kept comes back when it is deleted, without a rewrite of the whole map; and
//! damage hides no more than has to be hidden.

#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeSet, sync::Arc};

use pollster::block_on;
use siltstone_cursor::{
    Epoch, Limits, Manifest, Map, Rewrite, Run, Salvaged, Target, View, Visibility,
};
use siltstone_device::{BlockAddress, LayerId, SeededRandom, SegmentId, Sequence, sim::SimDevice};
use support::{Model, Segments, extent_at, geometry, open, stored};

const LABELS: u32 = 1000;

fn publish(map: &Map, epoch: u32, layer: u32, address: u64, len_blocks: u32, target: Target) {
    let extent = extent_at(epoch, layer, address, len_blocks, target);
    map.publish(&[(extent, Sequence(u64::from(epoch) + 1))]);
}

fn labels<I: IntoIterator<Item = u32>>(
    labels: I,
) -> impl Fn(LayerId) -> Visibility + Sync + use<I> {
    let visibility = Visibility::new(true, false, labels.into_iter().map(Epoch).collect());
    move |_| visibility.clone()
}

fn write(map: &Map, segments: &mut Segments, layers: &(impl Fn(LayerId) -> Visibility + Sync)) {
    map.freeze();
    let edit = block_on(map.write_frozen(segments, layers)).unwrap();
    segments.apply(&edit);
}

fn compact(map: &Map, segments: &mut Segments, layers: &(impl Fn(LayerId) -> Visibility + Sync)) {
    while let Some(edit) = block_on(map.compact_step(Rewrite::new(segments, layers, 64))).unwrap() {
        segments.apply(&edit);
    }
}

fn view(as_of: Epoch) -> [View; 1] {
    [View { layer: LayerId(1), as_of }]
}

fn lookup(map: &Map, as_of: Epoch, address: u64) -> Target {
    let mut runs = Vec::new();
    block_on(map.lookup(&view(as_of), BlockAddress(address), 1, &mut runs)).unwrap();
    let [Run { len_blocks: 1, target, .. }] = runs[..] else { panic!("{runs:?}") };
    target
}

/// A map of single blocks, where blocks [300, 303) were written in every epoch but every fifth,
/// together, and block 200 as well.
fn map_with_long_stacks(pages: u64) -> (Arc<SimDevice>, Map, Segments) {
    let device = support::device();
    let map = open(&device, pages, Limits::default(), Manifest::empty());
    let mut segments = Segments::default();
    for address in (0..=300).chain(303..600) {
        let len_blocks = if address == 300 { 3 } else { 1 };
        publish(&map, 0, 1, address, len_blocks, stored(40, address as u32, 0));
    }
    for epoch in (0..LABELS).filter(|epoch| epoch % 5 != 0) {
        publish(&map, epoch, 1, 200, 1, stored(41, epoch, 7));
        publish(&map, epoch, 1, 300, 3, stored(42, epoch, 7));
    }
    write(&map, &mut segments, &labels(0..LABELS));
    (device, map, segments)
}

fn in_long_stacks(address: u64, as_of: Epoch) -> Target {
    let written = (0..=as_of.0.min(LABELS - 1)).rev().find(|epoch| epoch % 5 != 0);
    match (address, written) {
        (200, Some(epoch)) => stored(41, epoch, 7),
        (300..303, Some(epoch)) => stored(42, epoch, (address - 300) as u8 + 7),
        (300..303, None) => stored(40, 300, (address - 300) as u8),
        _ => stored(40, address as u32, 0),
    }
}

#[test]
fn a_thousand_versions_of_a_block_are_found_each_by_its_epoch() {
    let (device, map, _) = map_with_long_stacks(2048);
    let map = open(&device, 2048, Limits::default(), map.manifest());
    let report = block_on(map.verify());
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(report.entries, 596 + 2 * 801);
    let mut runs = Vec::new();
    for as_of in (0..LABELS).chain([LABELS, u32::MAX]).map(Epoch) {
        for address in [0, 199, 200, 201, 299, 300, 301, 302, 303, 599] {
            assert_eq!(lookup(&map, as_of, address), in_long_stacks(address, as_of), "{as_of}");
        }
        block_on(map.lookup(&view(as_of), BlockAddress(198), 300, &mut runs)).unwrap();
        let mut cursor = map.cursor(&view(as_of), BlockAddress(198), BlockAddress(498), 1 << 16);
        for run in &runs {
            for at in 0..run.len_blocks.into() {
                let expected = in_long_stacks(run.address.0 + at, as_of);
                assert_eq!(run.target.advanced(at), expected, "{as_of} block {}", run.address);
            }
            assert_eq!(block_on(cursor.next()).unwrap().as_ref(), Some(run), "{as_of}");
        }
        assert_eq!(block_on(cursor.next()).unwrap(), None);
        // A cursor that begins within a long stack.
        let mut cursor = map.cursor(&view(as_of), BlockAddress(301), BlockAddress(302), 1 << 16);
        let run = block_on(cursor.next()).unwrap().unwrap();
        assert_eq!((run.address.0, run.target), (301, in_long_stacks(301, as_of)), "{as_of}");
    }
}

/// Page reads of a lookup, without a cache, of every block and every fortieth epoch.
fn page_reads(device: &Arc<SimDevice>, manifest: Manifest, blocks: u64) -> (u64, f64) {
    let config = siltstone_cursor::MapConfig::new(support::POOL, geometry(2048), 0);
    let map = Map::open(device.clone(), config, manifest);
    let (mut most, mut sum, mut count) = (0, 0, 0);
    for (index, address) in (0..blocks).enumerate() {
        let as_of = match index % 26 {
            0 => Epoch::MAX,
            at => Epoch(at as u32 * 40 - 1),
        };
        for as_of in [Epoch::MAX, as_of] {
            let before = map.stats().page_reads;
            lookup(&map, as_of, address);
            let reads = map.stats().page_reads - before;
            most = most.max(reads);
            sum += reads;
            count += 1;
        }
    }
    (most, sum as f64 / f64::from(count))
}

#[test]
fn a_lookup_in_a_volume_with_a_thousand_snapshots_reads_as_many_pages_as_without() {
    const BLOCKS: u64 = 12_000;
    let mut found = Vec::new();
    for snapshots in [0, LABELS] {
        let device = support::device();
        let map = open(&device, 2048, Limits::default(), Manifest::empty());
        let mut segments = Segments::default();
        let mut random = SeededRandom::new(7);
        for address in 0..BLOCKS {
            publish(&map, 0, 1, address, 1, stored(40, address as u32 % 1000, 0));
        }
        let layers = labels(0..snapshots);
        for epoch in 1..=snapshots {
            for _ in 0..10 {
                publish(&map, epoch, 1, random.below(BLOCKS), 1, stored(41, epoch, 0));
            }
            if epoch % 100 == 0 {
                write(&map, &mut segments, &layers);
            }
        }
        write(&map, &mut segments, &layers);
        compact(&map, &mut segments, &layers);
        found.push(page_reads(&device, map.manifest(), BLOCKS));
    }
    // A fence page and a leaf.
    assert_eq!(found, [(2, 2.0), (2, 2.0)]);
}

#[test]
fn versions_that_fill_several_leaves_cost_no_page_either() {
    let (device, map, mut segments) = map_with_long_stacks(2048);
    compact(&map, &mut segments, &labels(0..LABELS));
    let (most, mean) = page_reads(&device, map.manifest(), 600);
    // What is seen may be the first entry of the leaf after the one in which the search ends.
    assert!(most <= 3 && mean < 2.01, "at most {most}, {mean} on average");
}

#[test]
fn what_labels_kept_comes_back_exactly_as_they_are_deleted() {
    let device = support::device();
    let map = open(&device, 64, support::tiny_limits(), Manifest::empty());
    let mut segments = Segments::default();
    // Each epoch writes the blocks that its number divides.
    let written = |epoch: u64, address: u64| epoch > 0 && address.is_multiple_of(epoch);
    for epoch in 0..20u32 {
        for address in (0..500).filter(|at| epoch == 0 || written(epoch.into(), *at)) {
            publish(&map, epoch, 1, address, 1, stored(100 + epoch, address as u32, 0));
        }
        write(&map, &mut segments, &labels(0..epoch));
    }
    let mut left: Vec<u32> = (0..20).collect();
    let mut random = SeededRandom::new(5);
    loop {
        let layers = labels(left.clone());
        compact(&map, &mut segments, &layers);
        let mut expected = 0;
        for address in 0..500 {
            let seen = |as_of: u32| {
                (1..=as_of.min(19)).rev().find(|epoch| written((*epoch).into(), address))
            };
            let mut versions: Vec<_> = left.iter().copied().chain([u32::MAX]).map(seen).collect();
            versions.dedup();
            expected += versions.len() as i64;
        }
        assert_eq!(segments.entries, expected, "labels {left:?}");
        assert_eq!(segments.data_references.values().sum::<i64>(), expected);
        if left.is_empty() {
            break;
        }
        left.swap_remove(random.below(left.len() as u64) as usize);
        left.sort_unstable();
    }
    assert_eq!(segments.entries, 500);
}

#[test]
fn a_deleted_label_rewrites_only_patches_that_hold_versions_for_it() {
    let device = support::device();
    let limits = Limits { patch_pages: 4, small_patch_pages: 1, ..Limits::default() };
    let map = open(&device, 2048, limits, Manifest::empty());
    let mut segments = Segments::default();
    for address in 0..100_000 {
        publish(&map, 0, 1, address, 1, stored(40, address as u32 % 1000, 0));
    }
    // A snapshot, few changes close together, another snapshot, few changes elsewhere.
    for (epoch, start) in [(1, 20_000), (2, 70_000)] {
        for address in start..start + 300 {
            publish(&map, epoch, 1, address, 1, stored(41, epoch, 0));
        }
    }
    write(&map, &mut segments, &labels([0, 1]));
    compact(&map, &mut segments, &labels([0, 1]));
    assert_eq!(segments.entries, 100_600);
    let pages = segments.pages_written;
    compact(&map, &mut segments, &labels([0]));
    assert_eq!(segments.entries, 100_600, "label 0 sees what label 1 saw");
    assert!(
        segments.pages_written - pages < 20,
        "label 1: {} pages",
        segments.pages_written - pages
    );
    let pages = segments.pages_written;
    compact(&map, &mut segments, &labels(0..0));
    assert_eq!(segments.entries, 100_000);
    assert!(
        segments.pages_written - pages < 40,
        "label 0: {} pages",
        segments.pages_written - pages
    );
}

#[test]
fn a_discard_keeps_what_a_snapshot_sees_and_goes_with_it() {
    let device = support::device();
    let map = open(&device, 64, support::tiny_limits(), Manifest::empty());
    let mut segments = Segments::default();
    for address in 0..1000 {
        publish(&map, 0, 1, address, 1, stored(40, address as u32, 0));
    }
    write(&map, &mut segments, &labels(0..0));
    publish(&map, 1, 1, 0, 1 << 30, Target::Hole);
    write(&map, &mut segments, &labels([0]));
    compact(&map, &mut segments, &labels([0]));
    for address in (0..1000).step_by(13) {
        assert_eq!(lookup(&map, Epoch(0), address), stored(40, address as u32, 0));
        assert_eq!(lookup(&map, Epoch::MAX, address), Target::Hole);
    }
    assert_eq!(segments.data_references.values().sum::<i64>(), 1000);
    compact(&map, &mut segments, &labels(0..0));
    assert!(segments.data_references.is_empty());
    assert_eq!((segments.entries, map.stats().patches), (0, 0));
}

/// For every damaged page: what can be looked up is told as it is; what cannot is reported, and for
/// the epochs for which it cannot; and only versions that fill several pages are given up together.
#[test]
fn a_salvage_cursor_knows_which_epochs_of_which_blocks_are_hidden() {
    let (device, map, _) = map_with_long_stacks(2048);
    let pages = map.manifest().pages().values().sum::<u64>() - 1;
    let manifest = map.manifest();
    let epochs = || (0..LABELS).step_by(50).chain([LABELS - 1, LABELS, u32::MAX]).map(Epoch);
    let blocks = || [0, 100, 199, 200, 201, 299, 300, 301, 302, 303, 450, 599];
    for page in 0..pages {
        for thorough in [false, true] {
            let start = geometry(2048).page(SegmentId(1), page as u32).0;
            device.flip_bit(start + 77, 3);
            let map = open(&device, 2048, Limits::default(), manifest.clone());
            // In memory, some blocks have newer versions.
            publish(&map, LABELS, 1, 301, 50, stored(50, 3, 0));
            let mut cursor = map.salvage_cursor([(LayerId(1), 600)].into(), 1 << 16, thorough);
            let mut items = Vec::new();
            while let Some(item) = block_on(cursor.next()) {
                items.push(item);
            }
            for address in blocks() {
                for as_of in epochs() {
                    let mut runs = Vec::new();
                    let truth =
                        block_on(map.lookup(&view(as_of), BlockAddress(address), 1, &mut runs));
                    let at = format!("page {page}, block {address}, {as_of}");
                    match (truth, told(&items, address, as_of)) {
                        (Ok(()), Told::Target(target)) => {
                            assert_eq!(target, runs[0].target, "{at}")
                        }
                        (Err(_), Told::Hidden) => {}
                        // One of the pages that the versions fill is damaged.
                        (Ok(()), Told::Hidden) => {
                            assert!([200, 300, 301, 302].contains(&address), "{at}");
                        }
                        (truth, told) => panic!("{at}: {truth:?} but {told:?}"),
                    }
                }
            }
            device.flip_bit(start + 77, 3);
        }
    }
}

/// A few blocks that change in hundreds of epochs, most of which keep a label.
struct Churn {
    device: Arc<SimDevice>,
    map: Map,
    segments: Segments,
    model: Model,
    labels: BTreeSet<u32>,
    random: SeededRandom,
}

const CHURN_BLOCKS: u64 = 24;

impl Churn {
    fn new(seed: u64) -> Self {
        let device = support::device();
        let map = open(&device, 8, support::tiny_limits(), Manifest::empty());
        let random = SeededRandom::new(seed);
        let (segments, model, labels) = Default::default();
        Self { device, map, segments, model, labels, random }
    }

    fn layers(&self) -> impl Fn(LayerId) -> Visibility + Sync + use<> {
        labels(self.labels.clone())
    }

    fn epoch(&mut self, epoch: u32) {
        for _ in 0..1 + self.random.below(3) {
            let len = 1 + self.random.below(6) as u32;
            let address = self.random.below(CHURN_BLOCKS - u64::from(len));
            let hole = self.random.below(9) == 0;
            let target = if hole { Target::Hole } else { stored(50 + epoch % 9, epoch, 3) };
            let extent = extent_at(epoch, 1, address, len, target);
            self.map.publish(&[(extent, Sequence(epoch.into()))]);
            self.model.publish(&extent);
        }
        self.labels.insert(epoch);
        if self.random.below(8) == 0 {
            let gone = self.random.below(u64::from(epoch) + 1) as u32;
            self.labels.remove(&gone);
        }
        if self.random.below(30) == 0 {
            self.write();
        }
        if self.random.below(6) == 0 {
            self.merge();
        }
        if self.random.below(60) == 0 {
            self.write();
            self.reopen();
        }
    }

    fn write(&mut self) {
        let layers = self.layers();
        write(&self.map, &mut self.segments, &layers);
    }

    fn merge(&mut self) {
        let (layers, pages) = (self.layers(), 1 + self.random.below(5) as usize);
        let compact = self.random.below(2) == 0;
        let step = if compact {
            block_on(self.map.compact_step(Rewrite::new(&mut self.segments, &layers, pages)))
        } else {
            block_on(self.map.merge_step(Rewrite::new(&mut self.segments, &layers, pages)))
        };
        step.unwrap().iter().for_each(|edit| self.segments.apply(edit));
    }

    fn reopen(&mut self) {
        let manifest = Manifest::decode(&self.map.manifest().encode()).unwrap();
        self.map = open(&self.device, 8, support::tiny_limits(), manifest);
    }

    fn readers(&self) -> impl Iterator<Item = Epoch> {
        self.labels.iter().copied().chain([u32::MAX]).map(Epoch)
    }

    fn check(&mut self) {
        let (from, to) = (self.random.below(CHURN_BLOCKS / 2), CHURN_BLOCKS);
        let from = BlockAddress(from);
        let mut runs = Vec::new();
        for as_of in self.readers().collect::<Vec<_>>() {
            let len = (to - from.0) as u32;
            block_on(self.map.lookup(&view(as_of), from, len, &mut runs)).unwrap();
            let mut cursor = self.map.cursor(&view(as_of), from, BlockAddress(to), 1 << 14);
            for run in &runs {
                for at in 0..run.len_blocks.into() {
                    let expected = self.model.lookup(&view(as_of), run.address.0 + at);
                    assert_eq!(run.target.advanced(at), expected, "{as_of}, {run:?}");
                }
                if run.target != Target::Hole {
                    assert_eq!(block_on(cursor.next()).unwrap().as_ref(), Some(run), "{as_of}");
                }
            }
            assert_eq!(block_on(cursor.next()).unwrap(), None);
        }
        let report = block_on(self.map.verify());
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        let counted = report.data_references.iter().map(|(id, count)| (*id, *count as i64));
        assert!(counted.eq(self.segments.data_references.iter().map(|(id, count)| (*id, *count))));
    }

    /// What can be looked up is told by a salvage cursor as it is; what cannot is reported.
    fn check_salvage(&self, map: &Map, is_damaged: bool, thorough: bool) {
        let layers = [(LayerId(1), CHURN_BLOCKS)].into();
        let mut cursor = map.salvage_cursor(layers, 1 << 14, thorough);
        let mut items = Vec::new();
        while let Some(item) = block_on(cursor.next()) {
            items.push(item);
        }
        let mut runs = Vec::new();
        for as_of in self.readers().step_by(7) {
            for address in 0..CHURN_BLOCKS {
                let truth = block_on(map.lookup(&view(as_of), BlockAddress(address), 1, &mut runs));
                let told = told(&items, address, as_of);
                match (&truth, told) {
                    (Ok(()), Told::Target(target)) => assert_eq!(target, runs[0].target),
                    (_, Told::Hidden) if is_damaged => {}
                    (truth, told) => panic!("block {address}, {as_of}: {truth:?} but {told:?}"),
                }
            }
        }
    }
}

#[derive(Debug)]
enum Told {
    Target(Target),
    Hidden,
}

/// What a salvage cursor told of a block as of an epoch.
fn told(items: &[Salvaged], address: u64, as_of: Epoch) -> Told {
    let of = |item: &Salvaged| match item {
        Salvaged::Extent(extent) => {
            let end = extent.address.0 + u64::from(extent.len_blocks);
            let is_seen = (extent.address.0..end).contains(&address) && extent.epoch <= as_of;
            let target = || extent.target.advanced(address - extent.address.0);
            is_seen.then(|| Told::Target(target()))
        }
        Salvaged::Unknown { address: first, len_blocks, as_of: hidden, .. } => {
            let blocks = first.0..first.0 + len_blocks;
            (blocks.contains(&address) && as_of <= *hidden).then_some(Told::Hidden)
        }
    };
    items.iter().find_map(of).unwrap_or(Told::Target(Target::Hole))
}

#[test]
fn stacks_longer_than_pages_survive_merges_that_stop_anywhere() {
    for seed in 1..=6 {
        let mut churn = Churn::new(seed);
        for epoch in 0..700 {
            churn.epoch(epoch);
            if epoch % 100 == 99 {
                churn.check();
                churn.check_salvage(&churn.map, false, epoch % 200 == 99);
            }
        }
        churn.write();
        if seed % 2 == 0 {
            let layers = churn.layers();
            compact(&churn.map, &mut churn.segments, &layers);
        }
        churn.check();
        // Each page in turn is damaged.
        let (geometry, pages) = (geometry(8), churn.map.manifest().pages());
        for (segment, _) in pages {
            for page in 0..8 {
                let at = geometry.page(segment, page).0 + 100;
                churn.device.flip_bit(at, 2);
                let manifest = churn.map.manifest();
                let map = open(&churn.device, 8, support::tiny_limits(), manifest);
                churn.check_salvage(&map, true, page % 2 == 0);
                churn.device.flip_bit(at, 2);
            }
        }
    }
}
