use std::collections::HashMap;

use proptest::prelude::*;
use siltstone_device::{BlockAddress, Place, SegmentId};

use super::*;

const EPOCH: Epoch = Epoch(4);

fn extent(layer: u32, address: u64, len_blocks: u32, target: Target) -> Extent {
    let (layer, address) = (LayerId(layer), BlockAddress(address));
    Extent { layer, epoch: EPOCH, address, len_blocks, target }
}

fn stored(frame: u32, index: u8) -> Target {
    Target::Stored(Place::new(SegmentId(1), frame * 4096, index))
}

fn contents(table: &EpochTable) -> Vec<Extent> {
    let mut out = Vec::new();
    table.copy_range(Key::MIN, Key::MAX, usize::MAX, &mut out);
    out
}

#[test]
fn neighbours_of_one_frame_and_change_are_joined() {
    let mut table = EpochTable::new(EPOCH);
    table.insert(extent(1, 10, 2, stored(5, 0)), Sequence(1));
    table.insert(extent(1, 14, 2, stored(5, 4)), Sequence(1));
    table.insert(extent(1, 12, 2, stored(5, 2)), Sequence(1));
    table.insert(extent(1, 16, 2, stored(5, 6)), Sequence(2));
    assert_eq!(contents(&table), [extent(1, 10, 6, stored(5, 0)), extent(1, 16, 2, stored(5, 6))]);
}

#[test]
fn a_discard_of_a_tebibyte_is_one_entry() {
    let mut table = EpochTable::new(EPOCH);
    table.insert(extent(1, 1000, 1, stored(5, 0)), Sequence(1));
    table.insert(extent(1, 0, 1 << 28, Target::Hole), Sequence(2));
    assert_eq!(table.len(), 1);
    table.insert(extent(1, 1000, 1, stored(6, 0)), Sequence(3));
    assert_eq!(table.len(), 3);
}

#[derive(Clone, Debug)]
struct Change {
    extent: Extent,
    sequence: u64,
}

fn change() -> impl Strategy<Value = Change> {
    (1..3u32, 0..60u64, 1..20u32, 0..4u32, 0..8u8, 0..30u64).prop_map(
        |(layer, address, len, frame, index, sequence)| Change {
            extent: extent(
                layer,
                address,
                len,
                if frame == 0 { Target::Hole } else { stored(frame, index) },
            ),
            sequence,
        },
    )
}

proptest! {
    /// For every block, the change with the latest sequence number is found, whatever the order
    /// in which changes arrive; and its number is known exactly.
    #[test]
    fn the_latest_change_wins(changes in prop::collection::vec(change(), 1..60)) {
        let mut table = EpochTable::new(EPOCH);
        let mut model: HashMap<Key, (Target, u64)> = HashMap::new();
        for Change { extent, sequence } in &changes {
            table.insert(*extent, Sequence(*sequence));
            for i in 0..u64::from(extent.len_blocks) {
                let key = Key::new(extent.layer, extent.address.0 + i);
                let new = (extent.target.advanced(i), *sequence);
                let kept = model.entry(key).or_insert(new);
                if kept.1 <= *sequence {
                    *kept = new;
                }
            }
        }
        for layer in [LayerId(1), LayerId(2)] {
            for address in 0..90 {
                let expected = model.get(&Key::new(layer, address));
                let found = table.first_in(layer, address, address + 1);
                let found = found.map(|(extent, sequence)| (extent.target, sequence.0));
                prop_assert_eq!(found.as_ref(), expected);
            }
        }
        let extents = contents(&table);
        for pair in extents.windows(2) {
            prop_assert!(pair[0].end() <= pair[1].start());
        }
        let blocks: u64 = extents.iter().map(|extent| u64::from(extent.len_blocks)).sum();
        prop_assert_eq!(blocks as usize, model.len());
        // Copying from the middle of things gives the same, cut.
        let (from, to) = (Key::new(LayerId(1), 13), Key::new(LayerId(2), 31));
        let mut part = Vec::new();
        table.copy_range(from, to, usize::MAX, &mut part);
        let expected: Vec<_> = extents.iter().filter_map(|e| e.clip(from, to)).collect();
        prop_assert_eq!(part, expected);
    }
}
