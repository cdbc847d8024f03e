//! Promise: a power cut at any moment leaves every page of the last checkpoint's manifest intact,
//! though patches are written, merged, dropped and abandoned meanwhile: the map never writes over
//! what a manifest names, if segments are reused only after the checkpoint that lets go of them.

#![allow(clippy::unwrap_used)]

mod support;

use pollster::block_on;
use siltstone_cursor::{Manifest, MapError, Rewrite, Run};
use siltstone_device::{BlockAddress, SeededRandom, Sequence, request};
use support::{Model, Segments, all_roots, device, extent, live, open, stored, tiny_limits};

const BLOCKS: u64 = 800;
const CHECKPOINTS: u64 = 12;

struct Checkpoint {
    event: usize,
    manifest: Manifest,
    model: Model,
}

#[test]
fn a_power_cut_at_any_moment_leaves_the_last_checkpoint_whole() {
    let device = device();
    let map = open(&device, 3, tiny_limits(), Manifest::empty());
    let mut segments = Segments::default();
    segments.wait_for_checkpoint = true;
    let mut model = Model::default();
    let mut checkpoints = Vec::new();
    for number in 0..CHECKPOINTS {
        for i in 0..500 {
            let address = (i * 37 + number * 11) % BLOCKS;
            let new = extent(1, address, 1, stored(50, (number * 500 + i) as u32 % 4000, 0));
            map.publish(&[(new, Sequence(number + 1))]);
            model.publish(&new);
        }
        map.freeze();
        // Once without room, so that an abandoned operation's pages are there as well.
        segments.limit = Some(segments.used.len());
        match block_on(map.write_frozen(&mut segments, &all_roots)) {
            Ok(edit) => segments.apply(&edit),
            Err(error) => assert!(matches!(error, MapError::NoSpace)),
        }
        segments.limit = None;
        let edit = block_on(map.write_frozen(&mut segments, &all_roots)).unwrap();
        segments.apply(&edit);
        for _ in 0..4 {
            let step =
                block_on(map.merge_step(Rewrite::new(&mut segments, &all_roots, 5))).unwrap();
            step.iter().for_each(|edit| segments.apply(edit));
        }
        block_on(request::flush(&*device)).unwrap();
        segments.checkpoint();
        let (event, manifest) = (device.history_len(), map.manifest());
        checkpoints.push(Checkpoint { event, manifest, model: model.clone() });
    }
    let mut random = SeededRandom::new(3);
    for (index, Checkpoint { event, manifest, model }) in checkpoints.iter().enumerate() {
        // Until the next checkpoint is stored, which is some time after its flush.
        let end = checkpoints.get(index + 1).map_or(device.history_len(), |next| next.event);
        for cut in (*event..=end).step_by(3) {
            let after = device.crash_at(cut, &mut random);
            let map = open(&after, 3, tiny_limits(), manifest.clone());
            let report = block_on(map.verify());
            assert!(report.errors.is_empty(), "cut at {cut}: {:?}", report.errors);
            let mut runs = Vec::new();
            let all = BLOCKS as u32;
            block_on(map.lookup(&[live(1)], BlockAddress(0), all, &mut runs)).unwrap();
            for Run { address, len_blocks, target } in runs {
                for i in 0..u64::from(len_blocks) {
                    let expected = model.lookup(&[live(1)], address.0 + i);
                    assert_eq!(target.advanced(i), expected);
                }
            }
        }
    }
}
