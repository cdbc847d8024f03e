//! Promise: whatever is published, frozen, written, merged and reopened in whatever order, lookups
//! and cursors give what a plain table of blocks gives, and the counts in edits are exact.

#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, sync::Arc};

use pollster::block_on;
use proptest::prelude::*;
use siltstone_cursor::{
    Extent, LayerState, Manifest, Map, MapError, Packing, Rewrite, Run, Target,
};
use siltstone_device::{BlockAddress, LayerId, SegmentId, Sequence, sim::SimDevice};
use support::{Model, Segments, extent, open, stored, tiny_limits};

const LAYERS: u32 = 4;
const BLOCKS: u64 = 700;
/// Layer n's parent, and so on to the root: layer 1 is the root of 2, 2 of 3; 4 stands alone.
const CHAINS: [&[LayerId]; 4] = [
    &[LayerId(1)],
    &[LayerId(2), LayerId(1)],
    &[LayerId(3), LayerId(2), LayerId(1)],
    &[LayerId(4)],
];

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<Extent>),
    /// Single blocks of one layer, `count` from `start`, `stride` apart.
    Scatter {
        layer: u32,
        start: u64,
        count: u64,
        stride: u64,
        frame: u32,
    },
    Discard {
        layer: u32,
        start: u64,
    },
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
    Kill,
    Check,
}

fn any_extent() -> impl Strategy<Value = Extent> {
    (1..=LAYERS, 0..BLOCKS - 40, 1..40u32, 0..8u32, 0..24u8).prop_map(
        |(layer, address, len, frame, index)| {
            let target = if frame == 0 { Target::Hole } else { stored(900 + frame, frame, index) };
            extent(layer, address, len, target)
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(any_extent(), 1..20).prop_map(Step::Publish),
        4 => (1..=LAYERS, 0..BLOCKS / 2, 50..300u64, 1..3u64, 1..50u32).prop_map(
            |(layer, start, count, stride, frame)| {
                Step::Scatter { layer, start, count, stride, frame }
            }
        ),
        1 => (1..=LAYERS, 0..BLOCKS).prop_map(|(layer, start)| Step::Discard { layer, start }),
        5 => Just(Step::Freeze),
        5 => prop::bool::weighted(0.8).prop_map(|room| Step::Write { room }),
        9 => (1..12usize, prop::bool::weighted(0.9), prop::bool::weighted(0.3))
            .prop_map(|(max_pages, room, compact)| Step::Merge { max_pages, room, compact }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
        2 => Just(Step::Check),
    ]
}

struct Harness {
    device: Arc<SimDevice>,
    map: Map,
    segments: Segments,
    model: Model,
    sequence: Sequence,
    layer4_is_dead: bool,
    /// Newer patches are not relocated.
    made_before: u64,
}

impl Harness {
    fn new() -> Self {
        let device = support::device();
        let map = open(&device, 5, tiny_limits(), Manifest::empty());
        Self {
            device,
            map,
            segments: Segments::default(),
            model: Model::default(),
            sequence: Sequence(0),
            layer4_is_dead: false,
            made_before: 0,
        }
    }

    fn publish(&mut self, extents: &[Extent]) {
        let dead = |extent: &&Extent| self.layer4_is_dead && extent.layer == LayerId(4);
        let extents: Vec<_> = extents.iter().filter(|extent| !dead(extent)).collect();
        for extent in extents {
            self.sequence = self.sequence.next();
            self.map.publish(&[(*extent, self.sequence)]);
            self.model.publish(extent);
        }
    }

    fn layers(&self) -> impl Fn(LayerId) -> LayerState + use<> {
        let dead = self.layer4_is_dead;
        move |layer| match layer.0 {
            4 if dead => LayerState::Dead,
            1 | 4 => LayerState::Root,
            _ => LayerState::Child,
        }
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

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish(extents) => self.publish(extents),
            Step::Scatter { layer, start, count, stride, frame } => {
                let extents: Vec<_> = (0..*count)
                    .map(|i| (start + i * stride, i as u32))
                    .filter(|(address, _)| *address < BLOCKS)
                    .map(|(address, i)| extent(*layer, address, 1, stored(800 + i % 7, *frame, 3)))
                    .collect();
                self.publish(&extents);
            }
            Step::Discard { layer, start } => {
                // To the end of a huge volume: one entry here, and as far as the model reaches.
                let discard = extent(*layer, *start, 1 << 31, Target::Hole);
                if self.layer4_is_dead && *layer == 4 {
                    return;
                }
                self.sequence = self.sequence.next();
                self.map.publish(&[(discard, self.sequence)]);
                let len = (BLOCKS - start) as u32 + 1;
                self.model.publish(&extent(*layer, *start, len, Target::Hole));
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
            Step::Kill => {
                self.layer4_is_dead = true;
                self.model.blocks.retain(|key, _| key.layer != LayerId(4));
            }
            Step::Check => self.check(),
        }
    }

    fn check(&mut self) {
        for chain in CHAINS.iter().take(if self.layer4_is_dead { 3 } else { 4 }) {
            self.check_lookup(chain, 0, BLOCKS as u32 + 50);
            self.check_lookup(chain, BLOCKS / 3, 1);
            self.check_lookup(chain, BLOCKS / 2, 97);
            self.check_cursor(chain, 0, BLOCKS, 1 << 20);
            self.check_cursor(chain, BLOCKS / 4, BLOCKS / 2, 4096);
        }
        self.check_cursor_all();
        self.check_counts();
    }

    fn check_lookup(&self, chain: &[LayerId], address: u64, len: u32) {
        let mut runs = Vec::new();
        block_on(self.map.lookup(chain, BlockAddress(address), len, &mut runs)).unwrap();
        let mut at = address;
        for Run { address, len_blocks, target } in runs {
            assert_eq!(address.0, at, "runs leave no gaps");
            for i in 0..u64::from(len_blocks) {
                assert_eq!(target.advanced(i), self.model.lookup(chain, at + i), "block {at}+{i}");
            }
            at += u64::from(len_blocks);
        }
        assert_eq!(at, address + u64::from(len));
    }

    fn check_cursor(&self, chain: &[LayerId], from: u64, to: u64, budget: usize) {
        let mut cursor = self.map.cursor(chain, BlockAddress(from), BlockAddress(to), budget);
        let mut at = from;
        while let Some(run) = block_on(cursor.next()).unwrap() {
            for hole in at..run.address.0 {
                assert_eq!(self.model.lookup(chain, hole), Target::Hole);
            }
            at = run.address.0;
            for i in 0..u64::from(run.len_blocks) {
                assert_eq!(run.target.advanced(i), self.model.lookup(chain, at + i));
            }
            at += u64::from(run.len_blocks);
        }
        assert!(at <= to);
        for hole in at..to {
            assert_eq!(self.model.lookup(chain, hole), Target::Hole);
        }
    }

    fn check_cursor_all(&self) {
        let mut cursor = self.map.cursor_all(1 << 20);
        let mut model = self.model.blocks.clone();
        let mut last = None;
        while let Some(extent) = block_on(cursor.next()).unwrap() {
            let start = (extent.layer, extent.address);
            assert!(last < Some(start));
            last = Some(start);
            if self.layer4_is_dead && extent.layer == LayerId(4) {
                continue;
            }
            for i in 0..u64::from(extent.len_blocks).min(BLOCKS + 1) {
                let key = siltstone_cursor::Key::new(extent.layer, extent.address.0 + i);
                match model.remove(&key) {
                    Some(target) => assert_eq!(target, extent.target.advanced(i), "{key}"),
                    None => assert!(key.address.0 > BLOCKS, "{key}"),
                }
            }
        }
        // What is left are holes in root layers, over nothing.
        for (key, target) in model {
            assert_eq!(target, Target::Hole);
            assert!(matches!(key.layer.0, 1 | 4), "{key}: a hole that hides a parent is lost");
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
    fn the_map_behaves_like_a_table_of_blocks(steps in prop::collection::vec(step(), 1..60)) {
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
        let mut left = 2000;
        while run.merge(7, false) {
            left -= 1;
            assert!(left > 0, "merging never settles: {:?}", run.map.stats());
        }
        run.check();
        if run.layer4_is_dead {
            let mut cursor = run.map.cursor_all(1 << 20);
            while let Some(extent) = block_on(cursor.next()).unwrap() {
                assert_ne!(extent.layer, LayerId(4), "a dead layer's entries are gone");
            }
        }
    }
}
