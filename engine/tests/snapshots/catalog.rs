//! A catalog without room refuses, and leaves everything as it was.

use siltstone_engine::{EngineError, SnapshotName, VolumeOptions};

use super::{BLOCK, MIB, assert_holds, create, name, write};

/// A volume that cannot go back, for want of room in the catalog, is as it was.
#[test]
fn a_full_catalog_leaves_a_volume_that_was_to_be_rolled_back_as_it_is() {
    let (_device, pool) = create(64 * MIB);
    let disks = ["a", "b", "c"].map(|volume| {
        let disk = pool.create_volume(volume, &VolumeOptions::new(2 * BLOCK)).unwrap();
        write(&disk, 0, 1);
        pool.create_snapshots(&[SnapshotName::new(volume, "s").unwrap()]).unwrap();
        write(&disk, 0, 2);
        disk
    });
    let mut number = 0;
    for (count, len) in [(1000, 200), (100, 200), (10, 200), (1, 200), (1, 5)] {
        loop {
            let own = (number..number + count).map(|number| format!("{number:0>len$}"));
            let names: Vec<_> = own.map(|own| SnapshotName::new("a", &own).unwrap()).collect();
            number += count;
            match pool.create_snapshots(&names) {
                Ok(()) => {}
                Err(EngineError::CatalogFull { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    // There is room for less than another snapshot, so for no more than two layers.
    let mut refusals = 0;
    for disk in disks {
        match pool.roll_back(&SnapshotName::new(disk.name(), "s").unwrap()) {
            Ok(disk) => assert_holds(&disk, &[1, 0]),
            Err(EngineError::CatalogFull { .. }) => {
                refusals += 1;
                assert_holds(&disk, &[2, 0]);
                write(&disk, 1, 3);
                assert_holds(&disk, &[2, 3]);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refusals > 0);
}

/// A change for which the catalog has no room leaves everything as it was.
#[test]
fn what_is_refused_changes_nothing() {
    let (_device, pool) = create(64 * MIB);
    let disk = pool.create_volume("disk", &VolumeOptions::new(8 * BLOCK)).unwrap();
    pool.create_snapshots(&[name("disk@first")]).unwrap();
    // Long names fill it sooner; short ones leave no room for a layer.
    let mut digits = 250;
    let mut number = 0;
    while digits >= 5 {
        let names: Vec<_> = (0..digits / 5)
            .map(|at| SnapshotName::new("disk", &format!("{:0>digits$}", number + at)).unwrap())
            .collect();
        number += names.len();
        match pool.create_snapshots(&names) {
            Ok(()) => {}
            Err(EngineError::CatalogFull { .. }) => digits = digits * 3 / 5,
            Err(error) => panic!("{error}"),
        }
    }
    write(&disk, 0, 1);
    let snapshots = pool.snapshots().len();
    if let Err(refused) = pool.roll_back(&name("disk@first")) {
        assert!(matches!(refused, EngineError::CatalogFull { .. }), "{refused}");
        assert_holds(&disk, &[1, 0, 0, 0, 0, 0, 0, 0]);
        write(&disk, 1, 2);
    }
    let refused = pool.create_snapshots(&[SnapshotName::new("disk", &"x".repeat(250)).unwrap()]);
    assert!(matches!(refused, Err(EngineError::CatalogFull { .. })), "{refused:?}");
    assert_eq!(pool.snapshots().len(), snapshots);
}
