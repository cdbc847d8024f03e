//! Volumes and snapshots are told apart by more than their names.

use siltstone_engine::VolumeOptions;

use super::{MIB, create, name, open};

/// An identity is of what a handle stands for, not of its name.
#[test]
fn a_volume_is_known_again_and_no_other_is_taken_for_it() {
    let (device, pool) = create(64 * MIB);
    let options = VolumeOptions::new(MIB);
    let first = pool.create_volume("v", &options).unwrap().identity();
    let other = pool.create_volume("w", &options).unwrap().identity();
    pool.create_snapshots(&[name("v@s")]).unwrap();
    let snapshot = pool.volume("v@s").unwrap().identity();
    assert!(first != other && first != snapshot);
    // Writing, a new size and another process change nothing.
    pool.volume("v").unwrap().write_at(0, &[1; 4096]).unwrap();
    pool.resize_volume("v", 2 * MIB).unwrap();
    pool.close().unwrap();
    let pool = open(&device);
    assert_eq!(pool.volume("v").unwrap().identity(), first);
    assert_eq!(pool.volume("v@s").unwrap().identity(), snapshot);
    assert_eq!(first.to_string(), pool.volume("v").unwrap().identity().to_string());
    pool.create_snapshots(&[name("v@t")]).unwrap();
    assert_ne!(pool.volume("v@t").unwrap().identity(), snapshot);
    pool.roll_back(&name("v@s")).unwrap();
    let rolled_back = pool.volume("v").unwrap().identity();
    assert_ne!(rolled_back, first);
    pool.delete_volume_and_snapshots("v").unwrap();
    pool.create_volume("v", &options).unwrap();
    let anew = pool.volume("v").unwrap().identity();
    assert!(anew != first && anew != rolled_back);
    let (_, elsewhere) = create(64 * MIB);
    assert_ne!(elsewhere.create_volume("v", &options).unwrap().identity(), first);
}
