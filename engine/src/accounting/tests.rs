#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use std::collections::{BTreeMap, BTreeSet};

use pollster::block_on;
use proptest::prelude::*;
use siltstone_cursor::{Manifest, MapConfig, SegmentGeometry};
use siltstone_device::{ByteOffset, Place, SegmentId, Sequence, sim::SimDevice};

use super::*;

const BLOCKS: u64 = 12;
const LAYERS: u32 = 3;
const EPOCHS: u32 = 4;

fn empty_map() -> Map {
    let geometry = SegmentGeometry { data_start: ByteOffset(0), segment_bytes: 1 << 20 };
    let config = MapConfig::new(1, geometry, 1 << 20);
    Map::open(SimDevice::new(1 << 30), config, Manifest::empty())
}

/// A change of one block: its layer, its address, and what it holds; zero is a hole.
type Change = (u32, u64, u8);

fn target(content: u8) -> Target {
    match content {
        0 => Target::Hole,
        content => {
            Target::Stored(Place::new(SegmentId(7), u32::from(content / 4) * 4096, content % 4))
        }
    }
}

/// What readers hold, block by block.
fn expected(versions: &BTreeMap<(u32, u64), Vec<(u32, u8)>>, readers: &[Reader]) -> Holdings {
    let mut of_blocks: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
    let seen = |view: &View, address: u64| {
        let versions = versions.get(&(view.layer.0, address))?;
        versions.iter().rev().find(|(epoch, _)| *epoch <= view.as_of.0).map(|(_, content)| *content)
    };
    let mut holdings = vec![Holding::default(); readers.len()];
    for (number, reader) in readers.iter().enumerate() {
        for address in 0..reader.len_blocks {
            let found = reader.chain.iter().find_map(|view| seen(view, address));
            holdings[number].mapped += u64::from(found.unwrap_or(0) != 0);
            for content in reader.chain.iter().filter_map(|view| seen(view, address)) {
                of_blocks.entry(content).or_default().push(number);
            }
        }
    }
    of_blocks.remove(&0);
    let (mut shared, mut in_snapshots) = (0, 0);
    for holders in of_blocks.values() {
        let owners: BTreeSet<usize> = holders.iter().copied().collect();
        in_snapshots += u64::from(!owners.iter().any(|&owner| readers[owner].is_volume));
        match owners.into_iter().collect::<Vec<_>>()[..] {
            [only] => {
                holdings[only].exclusive += holders.len() as u64;
                holdings[only].exclusive_distinct += 1;
            }
            _ => shared += 1,
        }
    }
    for holding in &mut holdings {
        holding.exclusive = holding.exclusive.min(holding.mapped);
    }
    Holdings {
        readers: holdings,
        distinct: of_blocks.len() as u64,
        shared,
        in_snapshots,
        sample_bits: 0,
    }
}

/// A chain of views, and how many blocks of it there are to read.
fn reader() -> impl Strategy<Value = Reader> {
    let as_of = prop_oneof![Just(Epoch::MAX), (0..EPOCHS).prop_map(Epoch)];
    let chain = proptest::sample::subsequence((1..=LAYERS).collect::<Vec<_>>(), 1..=2);
    (chain, as_of, (0..EPOCHS).prop_map(Epoch), 0..=BLOCKS).prop_map(
        |(layers, first, parent, len_blocks)| {
            let is_volume = first == Epoch::MAX;
            let views = layers.iter().rev().zip([first, parent]);
            let chain =
                views.map(|(&layer, as_of)| View { layer: LayerId(layer), as_of }).collect();
            Reader { chain, len_blocks, is_volume }
        },
    )
}

proptest! {
    /// Volumes, snapshots and clones, with versions of many epochs: against a model that looks at
    /// every block of every reader.
    #[test]
    fn readers_hold_what_their_views_show(
        changes in proptest::collection::vec((1..=LAYERS, 0..BLOCKS, 0..20u8), 0..80),
        readers in proptest::collection::vec(reader(), 0..5),
    ) {
        let map = empty_map();
        let mut versions: BTreeMap<(u32, u64), Vec<(u32, u8)>> = BTreeMap::new();
        let count_changes = changes.len().max(1);
        for (at, &(layer, address, content)) in changes.iter().enumerate() {
            let change: Change = (layer, address, content);
            let epoch = (at * EPOCHS as usize / count_changes) as u32;
            let extent = Extent {
                layer: LayerId(change.0),
                epoch: Epoch(epoch),
                address: BlockAddress(change.1),
                len_blocks: 1,
                target: target(change.2),
            };
            map.publish(&[(extent, Sequence(at as u64 + 1))]);
            let of_block = versions.entry((layer, address)).or_default();
            of_block.retain(|(of, _)| *of != epoch);
            of_block.push((epoch, content));
        }
        prop_assert_eq!(block_on(count(&map, &readers)), expected(&versions, &readers));
    }
}
