use proptest::prelude::*;
use siltstone_device::{SegmentId, units::MAX_FRAME_BLOCKS};

use super::*;
use crate::search::{self, Sorted};

/// Entries as a writer may have them: stacks of versions, one run of blocks after the other.
fn any_entries() -> impl Strategy<Value = Vec<LeafEntry>> {
    let gap = prop_oneof![4 => 0..3u64, 2 => 0..1000u64, 1 => 0..1u64 << 40];
    let layer_step = prop_oneof![12 => Just(0u32), 1 => 1..3u32, 1 => 1..1u32 << 28];
    let target = prop_oneof![
        4 => (0..40u32, 0..1u32 << 20, 0..60u8).prop_map(|(segment, grain, index)| {
            Some(Place::new(SegmentId(segment), grain * 16, index))
        }),
        1 => any::<u64>().prop_map(|raw| Some(Place::from_raw(raw))),
        1 => Just(None),
    ];
    let length = prop_oneof![3 => Just(1u32), 1 => 1..64u32, 1 => 1..u32::MAX];
    let epochs = prop::collection::btree_set(prop_oneof![0..9u32, any::<u32>()], 1..4);
    let stack = (gap, layer_step, length, epochs, prop::collection::vec(target, 4));
    prop::collection::vec(stack, 1..300).prop_map(|stacks| {
        let (mut entries, mut at) = (Vec::new(), Key::MIN);
        for (gap, layer_step, length, epochs, targets) in stacks {
            if layer_step > 0 {
                let Some(layer) = at.layer.0.checked_add(layer_step) else { break };
                at = Key::new(LayerId(layer), 0);
            }
            let address = at.address.0 + gap;
            let fits = |target: &Option<Place>| {
                let room = target.map(|place| MAX_FRAME_BLOCKS as u32 - u32::from(place.index()));
                length.min(room.unwrap_or(u32::MAX))
            };
            let len_blocks = targets.iter().map(fits).min().unwrap();
            if address + u64::from(len_blocks) > MAX_BLOCKS {
                break;
            }
            let versions = epochs.into_iter().rev().zip(targets).enumerate();
            entries.extend(versions.map(|(older, (epoch, target))| {
                let extent = Extent {
                    layer: at.layer,
                    epoch: Epoch(epoch),
                    address: BlockAddress(address),
                    len_blocks,
                    target: target.map_or(Target::Hole, Target::Stored),
                };
                LeafEntry::new(extent, older > 0)
            }));
            at = Key::new(at.layer, address + u64::from(len_blocks));
        }
        entries
    })
}

fn pack(leaf: &LeafBuilder) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    leaf.pack(&mut bytes);
    bytes
}

impl Sorted for [LeafEntry] {
    fn len(&self) -> usize {
        self.len()
    }

    fn version(&self, index: usize) -> VersionKey {
        self[index].version()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn entries_come_back_from_as_few_leaves_as_can_hold_them(entries in any_entries()) {
        prop_assume!(!entries.is_empty());
        let (mut rest, mut leaf) = (entries.as_slice(), LeafBuilder::new());
        while !rest.is_empty() {
            let count = rest.iter().take_while(|entry| {
                let fits = leaf.fits(std::iter::once(**entry));
                if fits {
                    leaf.push(**entry);
                }
                fits
            }).count();
            prop_assert!(count == rest.len() || count >= ENTRIES_PER_PAGE, "{count} fit");
            let (packed, after) = rest.split_at(count);
            let bytes = pack(&leaf);
            // A stack may go on in the next leaf.
            let shape = LeafShape::verify(&bytes, count).unwrap();
            let read = LeafEntries::new(&bytes, &shape);
            prop_assert_eq!(&read.iter().collect::<Vec<_>>(), packed);
            for (index, entry) in packed.iter().enumerate() {
                prop_assert_eq!(read.version(index), entry.version());
                let at = VersionKey::new(entry.extent().end(), entry.extent().epoch);
                for key in [entry.version(), at] {
                    let bounds = (VersionKey::first(Key::MIN), VersionKey::first(Key::MAX));
                    let found = search::count_up_to(&read, key, bounds.0, bounds.1);
                    prop_assert_eq!(found, search::count_up_to(packed, key, bounds.0, bounds.1));
                }
            }
            rest = after;
            leaf.clear();
        }
    }

    /// Under a good checksum anything may stand: it is refused, or it is entries in order.
    #[test]
    fn what_no_writer_wrote_is_refused_or_is_in_order(
        entries in any_entries(),
        changes in prop::collection::vec((0..PAGE_BYTES - ENTRIES_START, any::<u8>()), 1..4),
        head_changes in prop::collection::vec((0..LEAF_HEAD_BYTES, any::<u8>()), 0..3),
        count in prop_oneof![0..5usize, 0..2000usize],
    ) {
        let mut leaf = LeafBuilder::new();
        for entry in entries {
            if leaf.fits(std::iter::once(entry)) {
                leaf.push(entry);
            }
        }
        let mut bytes = pack(&leaf);
        for (at, value) in changes.into_iter().chain(head_changes) {
            bytes[ENTRIES_START + at] = value;
        }
        for count in [leaf.len(), count] {
            let Ok(shape) = LeafShape::verify(&bytes, count) else { continue };
            let entries: Vec<_> = LeafEntries::new(&bytes, &shape).iter().collect();
            prop_assert!(entries.windows(2).all(|pair| pair[1].follows(&pair[0])));
            prop_assert!(entries.iter().all(|entry| entry.extent().is_valid()));
        }
    }
}

/// What random writes of single blocks leave: about 8 bytes an entry.
#[test]
fn single_blocks_of_a_terabyte_take_a_third_of_their_plain_size() {
    let mut random = siltstone_device::SeededRandom::new(1);
    let mut leaf = LeafBuilder::new();
    for address in 0.. {
        let place = Place::new(
            SegmentId(random.below(1 << 17) as u32),
            random.below(1 << 19) as u32 * 16,
            3,
        );
        let extent = Extent {
            layer: LayerId(7),
            epoch: Epoch(5),
            address: BlockAddress(1000 + address),
            len_blocks: 1,
            target: Target::Stored(place.with_stored_bytes(2100)),
        };
        let entry = LeafEntry::new(extent, false);
        if !leaf.fits(std::iter::once(entry)) {
            break;
        }
        leaf.push(entry);
    }
    assert!((500..520).contains(&leaf.len()), "{} entries", leaf.len());
}
