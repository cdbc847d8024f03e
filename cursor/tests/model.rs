//! Promise: whatever is published, frozen, written, merged and reopened in whatever order, and
//! whichever snapshots and clones are made and deleted meanwhile, lookups and cursors give what a
//! plain table of versions gives, to every volume and for every snapshot; the counts in edits are
//! exact; and what nobody can see is dropped.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pollster::block_on;
use proptest::prelude::*;
use siltstone_cursor::{
    Epoch, Extent, Manifest, Map, MapError, Packing, Rewrite, Run, Target, View, Visibility,
};
use siltstone_device::{BlockAddress, LayerId, SegmentId, Sequence, sim::SimDevice};
use support::{Model, Segments, extent, open, stored, tiny_limits};

const BLOCKS: u64 = 700;
const MAX_VOLUMES: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// Extents of some volume.
    Publish(usize, Vec<Extent>),
    /// Single blocks of one volume, `count` from `start`, `stride` apart.
    Scatter {
        volume: usize,
        start: u64,
        count: u64,
        stride: u64,
        frame: u32,
    },
    Discard {
        volume: usize,
        start: u64,
    },
    /// A snapshot of some volume, or of all.
    Snapshot(Option<usize>),
    DeleteSnapshot(usize),
    /// A volume that begins as some snapshot.
    Clone(usize),
    /// A volume goes back to some snapshot of it.
    Rollback(usize),
    DeleteVolume(usize),
    Freeze,
    Write {
        room: bool,
    },
    Merge {
        max_pages: usize,
        room: bool,
        compact: bool,
    },
    Reopen,
    Check,
}

fn any_extent() -> impl Strategy<Value = Extent> {
    (0..BLOCKS - 40, 1..40u32, 0..8u32, 0..24u8).prop_map(|(address, len, frame, index)| {
        let target = if frame == 0 { Target::Hole } else { stored(900 + frame, frame, index) };
        extent(0, address, len, target)
    })
}

fn step() -> impl Strategy<Value = Step> {
    let any = any::<usize>;
    prop_oneof![
        4 => (any(), prop::collection::vec(any_extent(), 1..20))
            .prop_map(|(volume, extents)| Step::Publish(volume, extents)),
        4 => (any(), 0..BLOCKS / 2, 50..300u64, 1..3u64, 1..50u32).prop_map(
            |(volume, start, count, stride, frame)| {
                Step::Scatter { volume, start, count, stride, frame }
            }
        ),
        1 => (any(), 0..BLOCKS).prop_map(|(volume, start)| Step::Discard { volume, start }),
        4 => any().prop_map(|volume| Step::Snapshot(Some(volume))),
        1 => Just(Step::Snapshot(None)),
        2 => any().prop_map(Step::DeleteSnapshot),
        1 => any().prop_map(Step::Clone),
        1 => any().prop_map(Step::Rollback),
        1 => any().prop_map(Step::DeleteVolume),
        5 => Just(Step::Freeze),
        5 => prop::bool::weighted(0.8).prop_map(|room| Step::Write { room }),
        9 => (1..12usize, prop::bool::weighted(0.9), prop::bool::weighted(0.3))
            .prop_map(|(max_pages, room, compact)| Step::Merge { max_pages, room, compact }),
        1 => Just(Step::Reopen),
        2 => Just(Step::Check),
    ]
}

/// Who can read what: what the engine's catalog would know.
#[derive(Clone, Default)]
struct Catalog {
    epoch: u32,
    /// Every layer that ever was, with the view of its parent.
    parents: BTreeMap<LayerId, Option<View>>,
    volumes: Vec<LayerId>,
    snapshots: BTreeSet<(LayerId, Epoch)>,
}

impl Catalog {
    fn create_layer(&mut self, parent: Option<View>) -> LayerId {
        let layer = LayerId(self.parents.len() as u32 + 1);
        self.parents.insert(layer, parent);
        layer
    }

    fn chain(&self, mut view: View) -> Vec<View> {
        let mut chain = vec![view];
        while let Some(parent) = self.parents[&view.layer] {
            chain.push(parent);
            view = parent;
        }
        chain
    }

    /// What is read of a layer itself, by its snapshots, by clones of it, and live.
    fn readers(&self, layer: LayerId) -> BTreeSet<Epoch> {
        let live = self.volumes.contains(&layer).then_some(Epoch::MAX);
        let snapshots = self.snapshots.iter().filter(|(of, _)| *of == layer);
        let clones = self.parents.iter().filter_map(|(clone, parent)| {
            let parent = parent.filter(|parent| parent.layer == layer)?;
            (!self.readers(*clone).is_empty()).then_some(parent.as_of)
        });
        snapshots.map(|(_, epoch)| *epoch).chain(clones).chain(live).collect()
    }

    fn visibility(&self, layer: LayerId) -> Visibility {
        let mut readers = self.readers(layer);
        let is_live = readers.remove(&Epoch::MAX);
        let has_parent = self.parents[&layer].is_some();
        Visibility::new(is_live, has_parent, readers.into_iter().collect())
    }

    fn chains(&self) -> Vec<Vec<View>> {
        let live = self.volumes.iter().map(|layer| View::live(*layer));
        let snapshots = self.snapshots.iter().map(|&(layer, as_of)| View { layer, as_of });
        live.chain(snapshots).map(|view| self.chain(view)).collect()
    }
}

struct Harness {
    device: Arc<SimDevice>,
    map: Map,
    segments: Segments,
    model: Model,
    catalog: Catalog,
    sequence: Sequence,
    /// Newer patches are not relocated.
    made_before: u64,
}

/// One of many, if there are any.
fn pick<T: Copy>(from: impl IntoIterator<Item = T>, index: usize) -> Option<T> {
    let all: Vec<T> = from.into_iter().collect();
    (!all.is_empty()).then(|| all[index % all.len()])
}

impl Harness {
    fn new() -> Self {
        let device = support::device();
        let map = open(&device, 5, tiny_limits(), Manifest::empty());
        let mut catalog = Catalog::default();
        let volume = catalog.create_layer(None);
        catalog.volumes = vec![volume, catalog.create_layer(None)];
        Self {
            device,
            map,
            segments: Segments::default(),
            model: Model::default(),
            catalog,
            sequence: Sequence(0),
            made_before: 0,
        }
    }

    fn publish(&mut self, volume: usize, extents: &[Extent]) {
        let Some(layer) = pick(self.catalog.volumes.iter().copied(), volume) else { return };
        for extent in extents {
            self.sequence = self.sequence.next();
            let extent = Extent { layer, epoch: Epoch(self.catalog.epoch), ..*extent };
            self.map.publish(&[(extent, self.sequence)]);
            // Of a huge discard, as far as the model reaches.
            let len = u64::from(extent.len_blocks).min(BLOCKS + 1 - extent.address.0);
            self.model.publish(&Extent { len_blocks: len as u32, ..extent });
        }
    }

    fn layers(&self) -> impl Fn(LayerId) -> Visibility + use<> {
        let catalog = self.catalog.clone();
        move |layer| catalog.visibility(layer)
    }

    fn snapshot(&mut self, volumes: &[LayerId]) {
        let epoch = Epoch(self.catalog.epoch);
        self.catalog.snapshots.extend(volumes.iter().map(|layer| (*layer, epoch)));
        self.catalog.epoch += 1;
    }

    fn clone_of(&mut self, snapshot: usize) -> Option<(LayerId, LayerId)> {
        let (layer, as_of) = pick(self.catalog.snapshots.iter().copied(), snapshot)?;
        Some((self.catalog.create_layer(Some(View { layer, as_of })), layer))
    }

    fn freeze_and_write(&mut self) {
        if !self.map.has_frozen() {
            self.map.freeze();
        }
        self.write();
    }

    fn write(&mut self) {
        let layers = self.layers();
        match block_on(self.map.write_frozen(&mut self.segments, &layers)) {
            Ok(edit) => self.segments.apply(&edit),
            Err(error) => assert!(matches!(error, MapError::NoSpace), "{error}"),
        }
        self.made_before = self.map.next_patch();
    }

    /// One step, of relocation if no merge is due; false if there was nothing to do.
    fn merge(&mut self, max_pages: usize, compact: bool) -> bool {
        let layers = self.layers();
        let (map, segments) = (&self.map, &mut self.segments);
        let stepped = if compact {
            block_on(map.compact_step(Rewrite::new(segments, &layers, max_pages)))
        } else {
            block_on(map.merge_step(Rewrite::new(segments, &layers, max_pages)))
        };
        let packing = if compact { Packing::Tight } else { Packing::Loose };
        let stepped = match stepped {
            Ok(None) => {
                let made_before = self.made_before;
                block_on(map.relocate_step(
                    Rewrite::new(segments, &layers, max_pages),
                    packing,
                    made_before,
                ))
            }
            stepped => stepped,
        };
        match stepped {
            Ok(Some(edit)) => {
                self.segments.apply(&edit);
                true
            }
            Ok(None) => false,
            Err(error) => {
                assert!(matches!(error, MapError::NoSpace), "{error}");
                true
            }
        }
    }

    fn settle(&mut self, compact: bool) {
        let mut left = 2000;
        while self.merge(7, compact) {
            left -= 1;
            assert!(left > 0, "merging never settles: {:?}", self.map.stats());
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish(volume, extents) => self.publish(*volume, extents),
            Step::Scatter { volume, start, count, stride, frame } => {
                let extents: Vec<_> = (0..*count)
                    .map(|i| (start + i * stride, i as u32))
                    .filter(|(address, _)| *address < BLOCKS)
                    .map(|(address, i)| extent(0, address, 1, stored(800 + i % 7, *frame, 3)))
                    .collect();
                self.publish(*volume, &extents);
            }
            // To the end of a huge volume: one entry.
            Step::Discard { volume, start } => {
                self.publish(*volume, &[extent(0, *start, 1 << 31, Target::Hole)]);
            }
            Step::Snapshot(Some(volume)) => {
                if let Some(layer) = pick(self.catalog.volumes.iter().copied(), *volume) {
                    self.snapshot(&[layer]);
                }
            }
            Step::Snapshot(None) => self.snapshot(&self.catalog.volumes.clone()),
            Step::DeleteSnapshot(index) => {
                if let Some(label) = pick(self.catalog.snapshots.iter().copied(), *index) {
                    self.catalog.snapshots.remove(&label);
                }
            }
            Step::Clone(index) => {
                if self.catalog.volumes.len() < MAX_VOLUMES
                    && let Some((clone, _)) = self.clone_of(*index)
                {
                    self.catalog.volumes.push(clone);
                }
            }
            Step::Rollback(index) => {
                if let Some((clone, of)) = self.clone_of(*index)
                    && let Some(volume) = self.catalog.volumes.iter_mut().find(|it| **it == of)
                {
                    *volume = clone;
                }
            }
            Step::DeleteVolume(volume) => {
                if let Some(layer) = pick(self.catalog.volumes.iter().copied(), *volume)
                    && self.catalog.volumes.len() > 1
                {
                    self.catalog.volumes.retain(|it| *it != layer);
                }
            }
            Step::Freeze => {
                if !self.map.has_frozen() {
                    self.map.freeze();
                }
            }
            Step::Write { room } => {
                self.segments.limit = if *room { None } else { Some(self.segments.used.len()) };
                self.write();
                self.segments.limit = None;
            }
            Step::Merge { max_pages, room, compact } => {
                self.segments.limit = if *room { None } else { Some(self.segments.used.len()) };
                self.merge(*max_pages, *compact);
                self.segments.limit = None;
            }
            Step::Reopen => {
                if self.map.has_frozen() {
                    self.write();
                }
                self.freeze_and_write();
                let manifest = Manifest::decode(&self.map.manifest().encode()).unwrap();
                for spare in self.map.spare_segments() {
                    self.segments.used.remove(&spare);
                }
                self.map = open(&self.device, 5, tiny_limits(), manifest);
            }
            Step::Check => self.check(),
        }
    }

    fn check(&mut self) {
        for chain in self.catalog.chains() {
            self.check_lookup(&chain, 0, BLOCKS as u32 + 50);
            self.check_lookup(&chain, BLOCKS / 3, 1);
            self.check_lookup(&chain, BLOCKS / 2, 97);
            self.check_cursor(&chain, 0, BLOCKS, 1 << 20);
            self.check_cursor(&chain, BLOCKS / 4, BLOCKS / 2, 4096);
        }
        self.check_cursor_all(false);
        self.check_counts();
    }

    fn check_lookup(&self, chain: &[View], address: u64, len: u32) {
        let mut runs = Vec::new();
        block_on(self.map.lookup(chain, BlockAddress(address), len, &mut runs)).unwrap();
        let mut at = address;
        for Run { address, len_blocks, target } in runs {
            assert_eq!(address.0, at, "runs leave no gaps");
            for i in 0..u64::from(len_blocks) {
                let expected = self.model.lookup(chain, at + i);
                assert_eq!(target.advanced(i), expected, "{chain:?}: block {at}+{i}");
            }
            at += u64::from(len_blocks);
        }
        assert_eq!(at, address + u64::from(len));
    }

    fn check_cursor(&self, chain: &[View], from: u64, to: u64, budget: usize) {
        let mut cursor = self.map.cursor(chain, BlockAddress(from), BlockAddress(to), budget);
        let mut at = from;
        while let Some(run) = block_on(cursor.next()).unwrap() {
            for hole in at..run.address.0 {
                assert_eq!(self.model.lookup(chain, hole), Target::Hole);
            }
            at = run.address.0;
            for i in 0..u64::from(run.len_blocks) {
                assert_eq!(run.target.advanced(i), self.model.lookup(chain, at + i), "{chain:?}");
            }
            at += u64::from(run.len_blocks);
        }
        assert!(at <= to);
        for hole in at..to {
            assert_eq!(self.model.lookup(chain, hole), Target::Hole);
        }
    }

    /// Every version that somebody can see is there; if `exactly`, no other is.
    fn check_cursor_all(&self, exactly: bool) {
        let mut cursor = self.map.cursor_all(1 << 20);
        let mut found = Model::default();
        let mut last: Option<Extent> = None;
        while let Some(extent) = block_on(cursor.next()).unwrap() {
            if let Some(last) = last {
                let end = (last.layer, last.address.0 + u64::from(last.len_blocks));
                let is_later = (extent.layer, extent.address.0) >= end;
                let is_older = extent.epoch < last.epoch
                    && Extent { epoch: last.epoch, target: last.target, ..extent } == last;
                assert!(is_later || is_older, "{last:?} is followed by {extent:?}");
            }
            last = Some(extent);
            for i in
                0..u64::from(extent.len_blocks).min((BLOCKS + 1).saturating_sub(extent.address.0))
            {
                let key = siltstone_cursor::Key::new(extent.layer, extent.address.0 + i);
                let version = (extent.epoch, extent.target.advanced(i));
                found.blocks.entry(key).or_default().insert(0, version);
            }
        }
        for (&layer, parent) in &self.catalog.parents {
            let readers = self.catalog.readers(layer);
            for address in 0..=BLOCKS {
                let is_hole = |target: &Target| parent.is_none() && *target == Target::Hole;
                let seen = |model: &Model, as_of| {
                    // A hole over nothing need not be said.
                    model.seen(View { layer, as_of }, address).filter(|target| !is_hole(target))
                };
                let mut expected = Vec::new();
                for &as_of in &readers {
                    let target = seen(&self.model, as_of);
                    assert_eq!(seen(&found, as_of), target, "{layer} {as_of} block {address}");
                    expected.extend(self.model.seen(View { layer, as_of }, address));
                }
                if exactly {
                    expected.dedup();
                    if expected.first().is_some_and(is_hole) {
                        expected.remove(0);
                    }
                    let key = siltstone_cursor::Key::new(layer, address);
                    let versions = found.blocks.get(&key).map_or(&[][..], Vec::as_slice);
                    let targets: Vec<_> = versions.iter().map(|(_, target)| *target).collect();
                    assert_eq!(targets, expected, "{key}, read as of {readers:?}: {versions:?}");
                }
            }
        }
    }

    fn check_counts(&self) {
        let report = block_on(self.map.verify());
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        let counted: BTreeMap<SegmentId, i64> = report
            .data_references
            .iter()
            .map(|(segment, count)| (*segment, *count as i64))
            .collect();
        assert_eq!(counted, self.segments.data_references);
        let pages: BTreeMap<SegmentId, i64> =
            self.map.manifest().pages().iter().map(|(s, count)| (*s, *count as i64)).collect();
        assert_eq!(pages, self.segments.pages);
        assert_eq!(self.segments.entries, self.map.stats().entries as i64);
        let spares = self.map.spare_segments();
        for segment in &self.segments.used {
            let known = self.segments.pages.contains_key(segment) || spares.contains(segment);
            assert!(known, "{segment} leaked");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_map_behaves_like_a_table_of_versions(steps in prop::collection::vec(step(), 1..60)) {
        let mut run = Harness::new();
        for step in &steps {
            run.step(step);
        }
        run.check();
        // In the end everything settles, within a bounded number of steps.
        if run.map.has_frozen() {
            run.write();
        }
        run.freeze_and_write();
        run.settle(false);
        run.check();
        // Compacted, the map holds what somebody can see, and nothing else.
        run.settle(true);
        run.check();
        run.check_cursor_all(true);
        // All snapshots go, and so does what was there for them.
        run.catalog.snapshots.clear();
        run.settle(true);
        run.check();
        run.check_cursor_all(true);
    }
}
