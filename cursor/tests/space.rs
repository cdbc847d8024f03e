//! Promises: a full pool or a failing device leaves the map as it was, and what failed can be
//! tried again; memory stays within its budgets; discards and moves cost what they should.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::ErrorKind;

use pollster::block_on;
use siltstone_cursor::{
    Epoch, Limits, Manifest, Map, MapConfig, MapError, Packing, Rewrite, Target, View, Visibility,
};
use siltstone_device::{
    BLOCK_BYTES, BlockAddress, LayerId, Operation, Sequence,
    sim::{Cause, Fault, Times},
};
use support::{POOL, Segments, all_roots, device, extent, geometry, open, stored, tiny_limits};

const LAYER: &[View] = &[View { layer: LayerId(1), as_of: Epoch::MAX }];

fn publish(map: &Map, from: u64, to: u64, frame: u32) {
    for address in from..to {
        let target = stored(40 + address as u32 % 3, frame, (address % 2) as u8 * 2);
        map.publish(&[(extent(1, address, 1, target), Sequence(1))]);
    }
}

fn is_mapped(map: &Map, address: u64, frame: u32) -> bool {
    let mut runs = Vec::new();
    block_on(map.lookup(LAYER, BlockAddress(address), 1, &mut runs)).unwrap();
    match runs[0].target {
        Target::Hole => false,
        Target::Stored(place) => place.frame_offset_bytes() == frame * 4096,
    }
}

#[test]
fn a_failed_write_of_the_device_abandons_the_operation_which_can_be_repeated() {
    let device = device();
    let map = open(&device, 8, Limits::default(), Manifest::empty());
    let mut segments = Segments::default();
    publish(&map, 0, 10_000, 1);
    map.freeze();
    let before = map.manifest();
    device.inject(Fault {
        operation: Operation::Write,
        range_bytes: 0..1 << 40,
        times: Times::Count(1),
        cause: Cause::Kind(ErrorKind::Other),
    });
    let error = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap_err();
    assert!(matches!(error, MapError::Write { .. }), "{error}");
    assert_eq!(map.manifest(), before);
    assert!(!map.spare_segments().is_empty());
    assert!((0..10_000).step_by(97).all(|address| is_mapped(&map, address, 1)));
    let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
    segments.apply(&edit);
    assert!(map.spare_segments().len() < 8, "what was given before is used first");
    assert_eq!(segments.data_references.values().sum::<i64>(), 10_000);
    assert!((0..10_000).step_by(97).all(|address| is_mapped(&map, address, 1)));
}

#[test]
fn without_space_the_map_stays_as_it_is_until_there_is_some() {
    let device = device();
    let map = open(&device, 4, tiny_limits(), Manifest::empty());
    let mut segments = Segments::default();
    for frame in 1..4 {
        publish(&map, 0, 6000, frame);
        map.freeze();
        segments.limit = Some(segments.used.len() + 1);
        for _ in 0..3 {
            let error = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap_err();
            assert!(matches!(error, MapError::NoSpace));
            assert!(is_mapped(&map, 700, frame));
        }
        segments.limit = None;
        let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
        segments.apply(&edit);
    }
    segments.limit = Some(0);
    let before = map.manifest();
    let error =
        block_on(map.merge_step(Rewrite::new(&mut segments, &all_roots, 1000))).unwrap_err();
    assert!(matches!(error, MapError::NoSpace));
    assert_eq!(map.manifest(), before);
    segments.limit = None;
    while let Some(edit) =
        block_on(map.merge_step(Rewrite::new(&mut segments, &all_roots, 1000))).unwrap()
    {
        segments.apply(&edit);
    }
    assert!((0..6000).all(|address| is_mapped(&map, address, 3)));
    assert_eq!(segments.data_references.values().sum::<i64>(), 6000, "the rest is superseded");
}

#[test]
fn the_page_cache_keeps_to_its_budget_and_lookups_work_without_any() {
    let device = device();
    let map = open(&device, 2048, Limits::default(), Manifest::empty());
    publish(&map, 0, 50_000, 1);
    map.freeze();
    block_on(map.write_frozen(&mut Segments::default(), &all_roots)).unwrap();
    for budget in [0, 20_000, 400_000] {
        let config = MapConfig::new(POOL, geometry(2048), budget);
        let map = Map::open(device.clone(), config, map.manifest());
        for address in (0..50_000).step_by(61) {
            assert!(is_mapped(&map, address, 1));
            assert!(map.stats().page_cache_bytes <= budget as u64);
        }
    }
}

#[test]
fn a_cursor_keeps_to_its_budget_reads_in_large_pieces_and_spares_the_page_cache() {
    let device = device();
    let map = open(&device, 2048, Limits::default(), Manifest::empty());
    let mut segments = Segments::default();
    for frame in 1..4 {
        publish(&map, 0, 50_000, frame);
        map.freeze();
        block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
    }
    for (budget, most_reads) in [(1 << 20, 100), (64 * BLOCK_BYTES, 400), (0, 3000)] {
        let map = open(&device, 2048, Limits::default(), map.manifest());
        let reads = device.counters().reads;
        let mut cursor = map.cursor(LAYER, BlockAddress(0), BlockAddress(50_000), budget);
        let mut blocks = 0;
        // Three patches, each at least one leaf and two fence pages.
        let allowed = budget.max(9 * BLOCK_BYTES);
        while let Some(run) = block_on(cursor.next()).unwrap() {
            blocks += run.len_blocks;
            assert!(cursor.memory_bytes() <= allowed, "{} bytes", cursor.memory_bytes());
        }
        assert_eq!(blocks, 50_000);
        let reads = device.counters().reads - reads;
        assert!(reads <= most_reads, "{reads} reads with a budget of {budget}");
        assert_eq!(map.stats().page_cache_bytes, 0);
    }
}

#[test]
fn a_cold_lookup_reads_one_path_and_a_warm_one_nothing() {
    let device = device();
    let map = open(&device, 2048, Limits::default(), Manifest::empty());
    publish(&map, 0, 200_000, 1);
    map.freeze();
    block_on(map.write_frozen(&mut Segments::default(), &all_roots)).unwrap();
    let map = open(&device, 2048, Limits::default(), map.manifest());
    assert!(is_mapped(&map, 20_000, 1));
    assert_eq!(map.stats().page_reads, 3, "root, fence page, leaf");
    assert!(is_mapped(&map, 20_001, 1));
    assert_eq!(map.stats().page_reads, 3);
    assert!(is_mapped(&map, 22_000, 1));
    assert_eq!(map.stats().page_reads, 4, "another leaf of the same fence page");
}

#[test]
fn a_fill_in_address_order_is_moved_down_and_not_rewritten() {
    let device = device();
    let map = open(&device, 2048, Limits::default(), Manifest::empty());
    let mut segments = Segments::default();
    for batch in 0..30 {
        publish(&map, batch * 20_000, (batch + 1) * 20_000, 1);
        map.freeze();
        let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
        segments.apply(&edit);
        while let Some(edit) =
            block_on(map.merge_step(Rewrite::new(&mut segments, &all_roots, 4096))).unwrap()
        {
            segments.apply(&edit);
        }
    }
    let needed = map.stats().pages;
    assert!(segments.pages_written <= needed * 9 / 4, "{} of {needed}", segments.pages_written);
}

#[test]
fn a_dead_layer_costs_nothing_once_merged() {
    let device = device();
    let map = open(&device, 64, tiny_limits(), Manifest::empty());
    let mut segments = Segments::default();
    publish(&map, 0, 3000, 1);
    map.freeze();
    let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
    segments.apply(&edit);
    while let Some(edit) =
        block_on(map.merge_step(Rewrite::new(&mut segments, &all_roots, 100))).unwrap()
    {
        segments.apply(&edit);
    }
    assert_eq!(segments.data_references.values().sum::<i64>(), 3000);
    let dead = |_| Visibility::dead();
    while let Some(edit) = block_on(map.merge_step(Rewrite::new(&mut segments, &dead, 3))).unwrap()
    {
        segments.apply(&edit);
    }
    assert!(segments.data_references.is_empty());
    assert_eq!(map.stats().patches, 0);
    assert_eq!(segments.used.len(), 1, "only the open segment is still in use");
}

#[test]
fn after_compaction_nothing_superseded_is_left() {
    let device = device();
    let map = open(&device, 64, tiny_limits(), Manifest::empty());
    let mut segments = Segments::default();
    for round in 0..6 {
        publish(&map, round * 300, round * 300 + 2000, 1);
        map.publish(&[(extent(1, round * 300, 250, Target::Hole), Sequence(round + 100))]);
        map.freeze();
        let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
        segments.apply(&edit);
    }
    let mut steps = 0;
    while let Some(edit) =
        block_on(map.compact_step(Rewrite::new(&mut segments, &all_roots, 5))).unwrap()
    {
        segments.apply(&edit);
        steps += 1;
        assert!(steps < 1000, "compaction never settles: {:?}", map.stats());
    }
    let mapped = (0..4000).filter(|address| is_mapped(&map, *address, 1)).count() as i64;
    assert_eq!(segments.data_references.values().sum::<i64>(), mapped);
}

#[test]
fn merging_settles_with_steps_far_shorter_than_a_small_patch() {
    let device = device();
    let limits = Limits { level0_patches: 2, small_patch_pages: 64, ..Limits::default() };
    let map = open(&device, 2048, limits, Manifest::empty());
    let mut segments = Segments::default();
    // A small patch in level 1 lies just before what level 0 brings.
    for (from, to) in [(0, 4000), (0, 4000), (5000, 9000), (5000, 9000)] {
        publish(&map, from, to, 1);
        map.freeze();
        let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
        segments.apply(&edit);
        let mut steps = 0;
        while let Some(edit) =
            block_on(map.merge_step(Rewrite::new(&mut segments, &all_roots, 3))).unwrap()
        {
            segments.apply(&edit);
            steps += 1;
            assert!(steps < 200, "merging never settles: {:?}", map.stats());
        }
    }
    assert!((0..4000).chain(5000..9000).all(|address| is_mapped(&map, address, 1)));
}

#[test]
fn a_long_lookup_that_waits_for_pages_returns_every_block_once() {
    let device = device();
    let map = open(&device, 64, Limits::default(), Manifest::empty());
    publish(&map, 5000, 5400, 1);
    map.freeze();
    block_on(map.write_frozen(&mut Segments::default(), &all_roots)).unwrap();
    let map = open(&device, 64, Limits::default(), map.manifest());
    // A first attempt joins this hole to the run before it, then misses a page.
    map.publish(&[(extent(1, 4000, 200, Target::Hole), Sequence(2))]);
    let mut runs = Vec::new();
    block_on(map.lookup(LAYER, BlockAddress(0), 9000, &mut runs)).unwrap();
    assert_eq!(runs.iter().map(|run| run.len_blocks).sum::<u32>(), 9000);
    assert_eq!((runs[0].len_blocks, runs[0].target), (5000, Target::Hole));
    assert_eq!((runs[401].len_blocks, runs[401].target), (3600, Target::Hole));
}

#[test]
fn memtables_know_sequence_numbers_and_patches_join_across_them() {
    let device = device();
    let map = open(&device, 64, Limits::default(), Manifest::empty());
    for i in 0..8 {
        map.publish(&[(extent(1, 100 + i, 1, stored(7, 3, i as u8)), Sequence(10 + i))]);
    }
    assert_eq!(map.memtable_len(), 8);
    map.freeze();
    map.publish(&[(extent(1, 102, 2, Target::Hole), Sequence(30))]);
    let runs = map.newest_sequence(LayerId(1), BlockAddress(99), 10);
    let found: Vec<_> =
        runs.iter().map(|run| (run.address.0, run.len_blocks, run.sequence)).collect();
    let known = |sequence| Some(Sequence(sequence));
    let expected = [
        (99, 1, None),
        (100, 1, known(10)),
        (101, 1, known(11)),
        (102, 2, known(30)),
        (104, 1, known(14)),
        (105, 1, known(15)),
        (106, 1, known(16)),
        (107, 1, known(17)),
        (108, 1, None),
    ];
    assert_eq!(found, expected);
    block_on(map.write_frozen(&mut Segments::default(), &all_roots)).unwrap();
    assert_eq!(map.stats().entries, 1);
}

/// Long-lived patches of several ages, each sharing its segments with others that soon die, do not
/// keep nearly empty segments in use.
#[test]
fn pages_that_live_long_do_not_keep_segments_of_dead_ones() {
    const SEGMENT_PAGES: u64 = 16;
    let device = device();
    let limits = Limits { level0_patches: 2, patch_pages: 8, ..tiny_limits() };
    let map = open(&device, SEGMENT_PAGES, limits, Manifest::empty());
    let mut segments = Segments::default();
    for round in 0..60 {
        // A little that stays, and much that the next rounds replace.
        let stays = 100_000 + round * 400;
        for (from, to, frame) in [(stays, stays + 400, 1), (0, 3000, round as u32 + 1)] {
            publish(&map, from, to, frame);
            map.freeze();
            let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
            segments.apply(&edit);
            while let Some(edit) =
                block_on(map.compact_step(Rewrite::new(&mut segments, &all_roots, 40))).unwrap()
            {
                segments.apply(&edit);
            }
        }
    }
    let needed = |map: &Map| (map.stats().pages.div_ceil(SEGMENT_PAGES)) as usize;
    let scattered = segments.used.len();
    for (packing, most) in
        [(Packing::Loose, 2 * needed(&map) + 5), (Packing::Tight, needed(&map) * 9 / 8 + 2)]
    {
        assert!(scattered > most, "{scattered} segments are few enough for {packing:?}");
        let made_before = map.next_patch();
        let mut steps = 0;
        while let Some(edit) = block_on(map.relocate_step(
            Rewrite::new(&mut segments, &all_roots, 5),
            packing,
            made_before,
        ))
        .unwrap()
        {
            segments.apply(&edit);
            steps += 1;
            assert!(steps < 1000, "relocation never ends: {:?}", map.stats());
        }
        let used = segments.used.len();
        assert!(used <= most, "{scattered} segments became {used}, not {most}, for {packing:?}");
    }
    assert!((0..3000).all(|address| is_mapped(&map, address, 60)));
    assert!((100_000..124_000).all(|address| is_mapped(&map, address, 1)));
}
