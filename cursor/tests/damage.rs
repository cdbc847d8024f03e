//! Promise: damaged, stale and misdirected pages are reported with patch and address; a lookup
//! never returns anything but the truth or an error.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pollster::block_on;
use siltstone_cursor::{
    Epoch, Extent, Limits, Manifest, Map, MapError, PageError, Run, Salvaged, Target, View,
};
use siltstone_device::{
    BLOCK_BYTES, BlockAddress, LayerId, Operation, Sequence,
    sim::{Cause, Fault, SimDevice, Times},
};
use support::{POOL, Segments, all_roots, extent, geometry, open, stored};

const BLOCKS: u64 = 2600;
/// Blocks in a full leaf: what is alike takes little room.
const LEAF: u64 = 727;
const LAYER: &[View] = &[View { layer: LayerId(1), as_of: Epoch::MAX }];

fn target(address: u64) -> Target {
    stored(40, address as u32, (address % 50) as u8)
}

fn extents() -> Vec<(Extent, Sequence)> {
    (0..BLOCKS).map(|address| (extent(1, address, 1, target(address)), Sequence(1))).collect()
}

/// A map of four leaves and a fence page, all in one patch.
fn written() -> (Arc<SimDevice>, Manifest) {
    let device = support::device();
    let map = open(&device, 2048, Limits::default(), Manifest::empty());
    map.publish(&extents());
    map.freeze();
    block_on(map.write_frozen(&mut Segments::default(), &all_roots)).unwrap();
    (device, map.manifest())
}

fn pages(manifest: &Manifest) -> u64 {
    manifest.pages().values().sum::<u64>() - 1
}

fn page_offset(page: u64) -> u64 {
    geometry(2048).page(siltstone_device::SegmentId(1), page as u32).0
}

/// Reads everything, block by block; returns the number of blocks that failed.
fn failing_blocks(map: &Map) -> u64 {
    let mut failing = 0;
    let mut runs = Vec::new();
    for address in 0..BLOCKS {
        match block_on(map.lookup(LAYER, BlockAddress(address), 1, &mut runs)) {
            Ok(()) => {
                let expected =
                    Run { address: BlockAddress(address), len_blocks: 1, target: target(address) };
                assert_eq!(runs, [expected]);
            }
            Err(MapError::Page { patch: 0, .. }) => failing += 1,
            Err(error) => panic!("{error}"),
        }
    }
    failing
}

#[test]
fn any_flipped_byte_of_any_page_is_an_error_for_lookups_cursors_and_verification() {
    let (device, manifest) = written();
    let pages = pages(&manifest);
    assert_eq!(pages, 5);
    for page in 0..pages {
        // Every byte of head and first entries, then samples, and the padding's end.
        let offsets = (0..120).chain((120..BLOCK_BYTES as u64).step_by(97)).chain([4095]);
        for (round, offset) in offsets.enumerate() {
            let byte = page_offset(page) + offset;
            let bit = (round % 8) as u8;
            device.flip_bit(byte, bit);
            let map = open(&device, 2048, Limits::default(), manifest.clone());
            let report = block_on(map.verify());
            assert_eq!(report.errors.len(), 1, "page {page} byte {offset}");
            assert!(matches!(report.errors[0], MapError::Page { patch: 0, address, .. }
                if address.0 == page_offset(page)));
            // The first block of the damaged leaf; any block, if it is the root.
            let block = if page < 4 { page * LEAF } else { 0 };
            let mut runs = Vec::new();
            block_on(map.lookup(LAYER, BlockAddress(block), 1, &mut runs)).unwrap_err();
            let mut cursor = map.cursor_all(1 << 16);
            let mut next = 0;
            let error = loop {
                match block_on(cursor.next()) {
                    Ok(Some(found)) => {
                        assert_eq!(found, extent(1, next, 1, target(next)));
                        next += 1;
                    }
                    Ok(None) => panic!("the cursor passed over page {page} byte {offset}"),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, MapError::Page { patch: 0, .. }));
            if offset == 0 {
                let expected = [LEAF, LEAF, LEAF, BLOCKS - 3 * LEAF, BLOCKS];
                assert_eq!(failing_blocks(&map), expected[page as usize], "the rest is readable");
            }
            device.flip_bit(byte, bit);
        }
    }
    let map = open(&device, 2048, Limits::default(), manifest);
    assert_eq!(failing_blocks(&map), 0);
}

#[test]
fn a_lost_write_that_leaves_an_older_page_in_place_is_noticed() {
    let (device, _) = written();
    let old = device.peek(page_offset(1), BLOCK_BYTES);
    // The same pool is written once more from the start, as after a crash before a checkpoint:
    // same pages, same patch number, other contents; and one write of it is lost.
    let map = open(&device, 2048, Limits::default(), Manifest::empty());
    let changed: Vec<_> = (0..BLOCKS)
        .map(|address| (extent(1, address, 1, stored(41, address as u32, 0)), Sequence(1)))
        .collect();
    map.publish(&changed);
    map.freeze();
    block_on(map.write_frozen(&mut Segments::default(), &all_roots)).unwrap();
    device.corrupt(page_offset(1), &old);
    let map = open(&device, 2048, Limits::default(), map.manifest());
    let mut runs = Vec::new();
    let error = block_on(map.lookup(LAYER, BlockAddress(LEAF + 32), 1, &mut runs)).unwrap_err();
    assert!(matches!(error, MapError::Page { source: PageError::Stale { .. }, .. }), "{error}");
}

#[test]
fn a_misdirected_page_is_noticed() {
    let (device, manifest) = written();
    let other = device.peek(page_offset(2), BLOCK_BYTES);
    device.corrupt(page_offset(1), &other);
    let map = open(&device, 2048, Limits::default(), manifest);
    assert_eq!(failing_blocks(&map), LEAF);
}

#[test]
fn another_pools_map_is_not_read() {
    let (device, manifest) = written();
    let config = siltstone_cursor::MapConfig::new(POOL + 1, geometry(2048), 1 << 20);
    let map = Map::open(device, config, manifest);
    assert_eq!(failing_blocks(&map), BLOCKS);
}

fn salvage(map: &Map, blocks: u64, thorough: bool) -> (Vec<u64>, Vec<(u64, u64)>) {
    let mut cursor = map.salvage_cursor([(LayerId(1), blocks)].into(), 1 << 16, thorough);
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    while let Some(item) = block_on(cursor.next()) {
        match item {
            Salvaged::Extent(extent) => {
                assert_eq!((extent.layer, extent.len_blocks), (LayerId(1), 1));
                known.push(extent.address.0);
            }
            Salvaged::Unknown { layer, address, len_blocks, as_of, error } => {
                assert_eq!(as_of, Epoch::MAX);
                assert_eq!(layer, LayerId(1));
                assert!(matches!(error, MapError::Page { .. } | MapError::Read { .. }));
                unknown.push((address.0, len_blocks));
            }
        }
    }
    (known, unknown)
}

#[test]
fn a_salvage_cursor_loses_the_range_of_a_damaged_page_and_nothing_else() {
    let (device, manifest) = written();
    let ranges =
        [(0, LEAF), (LEAF, LEAF), (2 * LEAF, LEAF), (3 * LEAF, BLOCKS - 3 * LEAF), (0, BLOCKS)];
    for (page, lost) in (0..).zip(ranges) {
        for thorough in [false, true] {
            device.flip_bit(page_offset(page) + 99, 4);
            let map = open(&device, 2048, Limits::default(), manifest.clone());
            let (known, unknown) = salvage(&map, BLOCKS + 400, thorough);
            assert_eq!(unknown, [lost], "page {page}");
            let rest = (0..BLOCKS).filter(|at| !(lost.0..lost.0 + lost.1).contains(at));
            assert_eq!(known, rest.collect::<Vec<_>>());
            // What lies behind the end of a layer is not lost.
            let (_, unknown) = salvage(&map, BLOCKS - 50, thorough);
            assert_eq!(unknown, [(lost.0, lost.1.min(BLOCKS - 50 - lost.0))], "page {page}");
            device.flip_bit(page_offset(page) + 99, 4);
            assert_eq!(salvage(&map, BLOCKS + 400, thorough), ((0..BLOCKS).collect(), Vec::new()));
        }
    }
}

#[test]
fn what_newer_patches_say_of_a_damaged_range_holds_and_what_older_ones_say_does_not() {
    let device = support::device();
    let map = open(&device, 2048, Limits::default(), Manifest::empty());
    let mut segments = Segments::default();
    // Everything; then every third block; then every fifth, in memory.
    for step in [1, 3] {
        let changes = (0..BLOCKS).step_by(step).map(|at| extent(1, at, 1, target(at)));
        map.publish(&changes.map(|extent| (extent, Sequence(step as u64))).collect::<Vec<_>>());
        map.freeze();
        block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
    }
    for at in (0..BLOCKS).step_by(5) {
        map.publish(&[(extent(1, at, 1, target(at)), Sequence(9))]);
    }
    // A leaf of the older patch: the newer one and the memtable tell what they have.
    device.flip_bit(page_offset(1) + 200, 1);
    let (known, unknown) = salvage(&map, BLOCKS, false);
    let is_known =
        |at: &u64| !(LEAF..2 * LEAF).contains(at) || at.is_multiple_of(3) || at.is_multiple_of(5);
    assert_eq!(known, (0..BLOCKS).filter(is_known).collect::<Vec<_>>());
    let lost: u64 = unknown.iter().map(|(_, len)| len).sum();
    assert_eq!(lost + known.len() as u64, BLOCKS);
    device.flip_bit(page_offset(1) + 200, 1);
    // The newer patch's first leaf, 683 blocks of it: what the older one says there may be old.
    device.flip_bit(page_offset(5) + 200, 1);
    let (known, unknown) = salvage(&map, BLOCKS, false);
    assert_eq!(known, (0..BLOCKS).filter(|at| *at >= 3 * 683 || at % 5 == 0).collect::<Vec<_>>());
    assert_eq!(unknown.first(), Some(&(1, 4)));
}

#[test]
fn a_page_that_the_device_does_not_give_is_salvaged_like_a_damaged_one() {
    let (device, manifest) = written();
    let map = open(&device, 2048, Limits::default(), manifest);
    device.inject(Fault {
        operation: Operation::Read,
        range_bytes: page_offset(2)..page_offset(3),
        times: Times::Always,
        cause: Cause::Errno(5),
    });
    let (known, unknown) = salvage(&map, BLOCKS, false);
    assert_eq!((known.len(), unknown), ((BLOCKS - LEAF) as usize, vec![(2 * LEAF, LEAF)]));
    assert_eq!(block_on(map.verify()).errors.len(), 1);
}
