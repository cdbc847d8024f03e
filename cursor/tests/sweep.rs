//! Promises: after a sweep nothing points into the segments that are to be emptied, and every
//! version of every block is at its new place; what could not be moved stays as it is.

#![allow(clippy::unwrap_used)]

mod support;

use pollster::block_on;
use siltstone_cursor::{
    Epoch, Extent, Limits, Manifest, Map, Relocating, Relocator, Rewrite, Run, Target, View,
    Visibility,
};
use siltstone_device::{BlockAddress, LayerId, Place, SegmentId, Sequence};
use support::{Segments, device, extent_at, open, stored, tiny_limits};

const OLD: SegmentId = SegmentId(40);
const NEW: SegmentId = SegmentId(50);
const BLOCKS: u64 = 3000;

/// Moves blocks of one segment to the same place in another, but for those of some frames.
struct Move {
    stays: fn(Place) -> bool,
    completed: bool,
    moved: usize,
    enough: usize,
}

impl Move {
    fn but_for(stays: fn(Place) -> bool) -> Self {
        Self { stays, completed: true, moved: 0, enough: usize::MAX }
    }
}

impl Relocator for Move {
    fn moves(&self, segment: SegmentId) -> bool {
        segment == OLD
    }

    fn relocate<'a>(&'a mut self, extents: &'a mut [Extent]) -> Relocating<'a> {
        for extent in extents {
            if let Target::Stored(place) = extent.target
                && place.segment() == OLD
                && !(self.stays)(place)
            {
                assert_eq!(extent.len_blocks, 1);
                extent.target = Target::Stored(moved(place));
                self.moved += 1;
            }
        }
        self.completed = false;
        Box::pin(async { Ok(()) })
    }

    fn has_enough(&self) -> bool {
        self.moved >= self.enough
    }

    fn complete(&mut self) -> Relocating<'_> {
        self.completed = true;
        Box::pin(async { Ok(()) })
    }
}

fn moved(place: Place) -> Place {
    Place::new(NEW, place.frame_offset_bytes(), place.index())
}

fn layers(_: LayerId) -> Visibility {
    Visibility::new(true, false, vec![Epoch(0), Epoch(1)])
}

fn publish(map: &Map, epoch: u32, address: u64, len_blocks: u32, target: Target) {
    let extent = extent_at(epoch, 1, address, len_blocks, target);
    map.publish(&[(extent, Sequence(u64::from(epoch) + 1))]);
}

fn write(map: &Map, segments: &mut Segments) {
    map.freeze();
    let edit = block_on(map.write_frozen(segments, &layers)).unwrap();
    segments.apply(&edit);
}

/// Several levels, and three versions of many blocks, in the old segment and another one.
fn map_of_versions(segments: &mut Segments) -> Map {
    let limits = Limits { patch_pages: 4, ..tiny_limits() };
    let map = open(&device(), 64, limits, Manifest::empty());
    for address in (0..BLOCKS).step_by(8) {
        publish(
            &map,
            0,
            address,
            8,
            stored(OLD.0 + address as u32 % 16 / 8, address as u32 / 8, 3),
        );
    }
    write(&map, segments);
    for epoch in 1..3 {
        for address in (u64::from(epoch)..BLOCKS).step_by(5) {
            publish(&map, epoch, address, 1, stored(OLD.0, 600 * epoch + address as u32 / 5, 1));
        }
        write(&map, segments);
        while let Some(edit) = block_on(map.merge_step(Rewrite::new(segments, &layers, 7))).unwrap()
        {
            segments.apply(&edit);
        }
    }
    map
}

fn contents(map: &Map, as_of: Epoch) -> Vec<Target> {
    let view = [View { layer: LayerId(1), as_of }];
    let mut runs: Vec<Run> = Vec::new();
    block_on(map.lookup(&view, BlockAddress(0), BLOCKS as u32, &mut runs)).unwrap();
    let blocks = runs.iter().flat_map(|run| {
        (0..u64::from(run.len_blocks)).map(|at| run.target.advanced(at)).collect::<Vec<_>>()
    });
    blocks.collect()
}

/// Sweeps in small steps, with changes and merges between them.
fn sweep(map: &Map, segments: &mut Segments, relocator: &mut Move) {
    let mut sweep = map.sweep();
    for step in 0.. {
        assert!(step < 2000, "a sweep never ends");
        let mut rewrite = Rewrite::new(segments, &layers, 3);
        rewrite.relocator = Some(relocator);
        let Some(edit) = block_on(map.sweep_step(rewrite, &mut sweep)).unwrap() else { break };
        segments.apply(&edit);
        assert!(edit.pages_written == 0 || relocator.completed, "it can be read before it is seen");
        if step % 7 == 0 {
            publish(map, 2, BLOCKS + step, 1, stored(60, 0, 0));
            write(map, segments);
            let mut rewrite = Rewrite::new(segments, &layers, 5);
            rewrite.relocator = Some(relocator);
            if let Some(edit) = block_on(map.merge_step(rewrite)).unwrap() {
                segments.apply(&edit);
            }
        }
    }
}

#[test]
fn every_version_moves_and_nothing_points_back() {
    let mut segments = Segments::default();
    let map = map_of_versions(&mut segments);
    let expected = |as_of| {
        let new = |target| match target {
            Target::Stored(place) if place.segment() == OLD => Target::Stored(moved(place)),
            other => other,
        };
        contents(&map, as_of).into_iter().map(new).collect::<Vec<_>>()
    };
    let views = [Epoch(0), Epoch(1), Epoch::MAX];
    let expected: Vec<_> = views.map(expected).into();
    let before = segments.data_references[&OLD];
    assert!(before > 2000);
    sweep(&map, &mut segments, &mut Move::but_for(|_| false));
    assert_eq!(segments.data_references.get(&OLD), None, "references are left");
    assert_eq!(segments.data_references[&NEW], before);
    for (view, expected) in views.into_iter().zip(expected) {
        assert_eq!(contents(&map, view), expected, "as of {view:?}");
    }
}

/// However few pages many blocks stand in.
#[test]
fn a_step_ends_soon_after_enough_has_been_moved() {
    let mut segments = Segments::default();
    let map = map_of_versions(&mut segments);
    let before = segments.data_references[&OLD];
    let (mut sweep, mut most, mut steps) = (map.sweep(), 0, 0);
    loop {
        let mut relocator = Move { enough: 1, ..Move::but_for(|_| false) };
        let mut rewrite = Rewrite::new(&mut segments, &layers, 10_000);
        rewrite.relocator = Some(&mut relocator);
        let Some(edit) = block_on(map.sweep_step(rewrite, &mut sweep)).unwrap() else { break };
        segments.apply(&edit);
        most = most.max(relocator.moved);
        steps += usize::from(relocator.moved > 0);
    }
    assert_eq!(segments.data_references.get(&OLD), None, "references are left");
    assert_eq!(segments.data_references[&NEW], before);
    assert!(steps > 2 && most < before as usize / 2, "{steps} steps, {most} blocks in one");
}

#[test]
fn what_cannot_be_moved_stays() {
    let mut segments = Segments::default();
    let map = map_of_versions(&mut segments);
    let stays: fn(Place) -> bool = |place| place.frame_offset_bytes() / 4096 % 3 == 0;
    let before = contents(&map, Epoch::MAX);
    sweep(&map, &mut segments, &mut Move::but_for(stays));
    assert!(segments.data_references[&OLD] > 0 && segments.data_references[&NEW] > 0);
    for (old, new) in before.into_iter().zip(contents(&map, Epoch::MAX)) {
        let expected = match old {
            Target::Stored(place) if place.segment() == OLD && !stays(place) => {
                Target::Stored(moved(place))
            }
            other => other,
        };
        assert_eq!(new, expected);
    }
}

/// A damaged page costs a sweep, and compaction, the patch that it is part of and no other.
#[test]
fn damaged_patches_are_passed_over_and_the_rest_is_swept() {
    let (mut total, mut moved_blocks) = (0, 0);
    for seed in 0..40 {
        let mut segments = Segments::default();
        let device = device();
        let limits = Limits { patch_pages: 4, ..tiny_limits() };
        let map = open(&device, 64, limits, Manifest::empty());
        for round in 0..4u64 {
            for address in (round..BLOCKS).step_by(if round == 0 { 1 } else { 7 }) {
                let frame = (round * BLOCKS + address) as u32;
                publish(&map, 0, address, 1, stored(OLD.0, frame % 2000, round as u8));
            }
            write(&map, &mut segments);
            let rewrite = Rewrite::new(&mut segments, &layers, 7);
            if let Some(edit) = block_on(map.merge_step(rewrite)).unwrap() {
                segments.apply(&edit);
            }
        }
        let before = contents(&map, Epoch::MAX);
        // Any page of any patch, so that what is in the way differs from seed to seed.
        let pages: Vec<(SegmentId, u64)> = map.manifest().pages().into_iter().collect();
        let (segment, count) = pages[seed % pages.len()];
        let page = (seed as u64 * 5 + 1) % (count - 1).max(1);
        let at = support::geometry(64).page(segment, page as u32);
        device.flip_bit(at.0 + 60, 3);
        let map = open(&device, 64, limits, map.manifest());

        let mut relocator = Move::but_for(|_| false);
        let (mut damaged, mut steps) = (0, 0);
        let mut sweep = map.sweep();
        loop {
            steps += 1;
            assert!(steps < 2000, "a sweep never ends");
            let mut rewrite = Rewrite::new(&mut segments, &layers, 3);
            rewrite.relocator = Some(&mut relocator);
            match block_on(map.sweep_step(rewrite, &mut sweep)) {
                Ok(Some(edit)) => segments.apply(&edit),
                Ok(None) => break,
                Err(error) if error.is_damage() => damaged += 1,
                Err(error) => panic!("{error}"),
            }
        }
        loop {
            steps += 1;
            assert!(steps < 4000, "compaction never ends");
            match block_on(map.compact_step(Rewrite::new(&mut segments, &layers, 5))) {
                Ok(Some(edit)) => segments.apply(&edit),
                Ok(None) => break,
                Err(error) if error.is_damage() => damaged += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(damaged <= 1, "one page is damaged, and its patch is met once");
        assert_eq!(map.has_damaged(), damaged > 0);
        total += damaged;
        // What can be read is right, and what of it is not behind the damage has moved.
        let view = [View { layer: LayerId(1), as_of: Epoch::MAX }];
        let (mut runs, mut old, mut lost) = (Vec::new(), 0, 0);
        for address in 0..BLOCKS {
            match block_on(map.lookup(&view, BlockAddress(address), 1, &mut runs)) {
                Ok(()) => {
                    let now = runs[0].target;
                    let then = before[address as usize];
                    let Target::Stored(place) = then else { panic!("every block was written") };
                    assert!(now == then || now == Target::Stored(moved(place)), "{address}");
                    old += usize::from(now == then);
                }
                Err(error) => {
                    assert!(error.is_damage());
                    lost += 1;
                }
            }
        }
        assert_eq!(damaged > 0, lost > 0, "seed {seed}");
        // In so small a map one patch of an upper level may hide most of it.
        moved_blocks += BLOCKS as usize - old - lost;
    }
    assert!(moved_blocks > 40 * BLOCKS as usize / 4 * 3, "{moved_blocks} blocks were moved");
    assert!(total >= 6, "damage was met in {total} of 40 maps");
}
