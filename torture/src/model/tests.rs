use siltstone_engine::SnapshotName;

use super::{Model, snapshots::SnapshotModel};
use crate::content::{Block, SECTORS};

const A: Block = [1; SECTORS];
const B: Block = [2; SECTORS];
const C: Block = [3; SECTORS];
const ZERO: Block = [0; SECTORS];

/// Before a snapshot of two blocks the first becomes A; while it is taken, that becomes B, and then
/// the other one C. The call begins at event 10 and returns at event 20.
fn taken() -> Model {
    let mut model = Model::default();
    let volume = model.begin_create("disk", 2 * SECTORS as u64, 1);
    model.end_create(volume, 2);
    let write = |model: &mut Model, event, block, content| {
        let write = model.begin(volume, event, &[(block, content)]);
        model.done(&write);
    };
    write(&mut model, 3, 0, A);
    let name = SnapshotName::new("disk", "s").unwrap();
    let taking = model.begin_snapshots(&[(name, volume)], 10);
    write(&mut model, 11, 0, B);
    write(&mut model, 12, 1, C);
    model.end_snapshots(taking, 20, true);
    model
}

fn fits(model: &Model, blocks: [Block; 2], cut: usize) -> bool {
    let snapshot: &SnapshotModel = &model.snapshots[0];
    model.fitting(snapshot, 0, blocks.as_flattened(), Some(cut)).is_ok()
}

#[test]
fn a_snapshot_shows_one_moment_of_its_call() {
    let model = taken();
    for (blocks, expected) in [
        ([A, ZERO], true),
        ([B, ZERO], true),
        ([B, C], true),
        // C came after B.
        ([A, C], false),
        // A was there before.
        ([ZERO, ZERO], false),
    ] {
        assert_eq!(fits(&model, blocks, 20), expected, "{blocks:?}");
    }
}

#[test]
fn what_was_not_flushed_may_be_missing_only_before_the_call_returns() {
    let model = taken();
    assert!(fits(&model, [ZERO, ZERO], 19) && !fits(&model, [ZERO, ZERO], 20));
    assert!(!fits(&model, [B, ZERO], 11), "B was not yet written");
}

#[test]
fn what_was_read_once_does_not_change() {
    let mut model = taken();
    model.saw_snapshot(0, 1, &C).unwrap();
    assert!(!fits(&model, [A, ZERO], 20) && fits(&model, [B, C], 20));
    assert!(model.saw_snapshot(0, 0, &A).is_err());
    let mut model = taken();
    model.saw_snapshot(0, 0, &A).unwrap();
    assert!(!fits(&model, [B, C], 20) && fits(&model, [A, ZERO], 20));
    assert!(model.saw_snapshot(0, 1, &C).is_err());
}

#[test]
fn a_volume_that_went_back_does_not_remember_what_was_written_to_it() {
    let mut model = taken();
    let disk = model.find("disk").unwrap();
    let back = model.begin_roll_back(disk, 0, 30);
    assert!(model.find("disk").is_none(), "it is on its way");
    let late = model.begin(disk, 31, &[(0, C)]);
    model.done(&late);
    model.holds(back, [B, ZERO].as_flattened());
    model.end_create(back, 40);
    assert_eq!(model.find("disk"), Some(back));
    assert_eq!([0, 1].map(|block| model.visible(back, block)), [Some(B), Some(ZERO)]);
    assert!(fits(&model, [B, ZERO], 40), "the snapshot is what it was");
}
