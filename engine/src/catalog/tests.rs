use super::*;

fn name(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

fn with_volumes(names: &[&str]) -> Catalog {
    let mut catalog = Catalog::new();
    for name in names {
        catalog.create(name, &VolumeOptions::new(4096)).unwrap();
    }
    catalog
}

#[test]
fn names_and_sizes_that_cannot_be_are_refused() {
    let mut catalog = Catalog::new();
    for name in ["", "a/b", "a@b", "a\nb", &"x".repeat(256)] {
        let refused = catalog.create(name, &VolumeOptions::new(4096));
        assert!(matches!(refused, Err(EngineError::InvalidName { .. })), "{name}");
    }
    for size in [0, 511, 513, u64::MAX] {
        let refused = catalog.create("v", &VolumeOptions::new(size));
        assert!(matches!(refused, Err(EngineError::InvalidSize { .. })), "{size}");
    }
    assert_eq!(catalog, Catalog::new());
}

#[test]
fn a_clone_reads_through_to_its_snapshot_also_when_that_is_deleted() {
    let mut catalog = with_volumes(&["a"]);
    catalog.add_snapshots(&[name("a@s")], Epoch(4), 0).unwrap();
    let volume = catalog.volume("a").unwrap().layer;
    let clone = catalog.clone_snapshot(&name("a@s"), "b").unwrap().layer;
    let expected = [View::live(clone), View { layer: volume, as_of: Epoch(4) }];
    assert_eq!(catalog.chain(View::live(clone)), expected);
    catalog.delete("a", true).unwrap();
    assert_eq!(catalog.chain(View::live(clone)), expected);
    let seen = &catalog.visibilities()[&volume];
    assert_eq!(*seen, Visibility::new(false, false, vec![Epoch(4)]));
    assert_eq!(catalog.visibilities()[&clone], Visibility::live_child());
    catalog.delete("b", false).unwrap();
    assert!(catalog.visibilities().is_empty());
}

#[test]
fn a_volume_with_snapshots_is_deleted_only_with_them() {
    let mut catalog = with_volumes(&["a", "b"]);
    catalog.add_snapshots(&[name("a@s"), name("b@s")], Epoch(1), 0).unwrap();
    let refused = catalog.delete("a", false).unwrap_err();
    assert!(matches!(refused, EngineError::HasSnapshots { snapshots: 1, .. }), "{refused}");
    catalog.delete("a", true).unwrap();
    let left: Vec<_> = catalog.snapshots().map(|(name, _)| name.to_string()).collect();
    assert_eq!(left, ["b@s"]);
}

/// However often a volume goes back to one snapshot, it reads through one layer.
#[test]
fn rolling_back_again_and_again_leaves_no_layers_behind() {
    let mut catalog = with_volumes(&["a"]);
    catalog.add_snapshots(&[name("a@s")], Epoch(0), 0).unwrap();
    let first = catalog.volume("a").unwrap().layer;
    for _ in 0..1000 {
        let volume = catalog.roll_back(&name("a@s")).unwrap();
        assert_eq!(catalog.chain(View::live(volume.layer)).len(), 2);
        assert_eq!(catalog.layers.len(), 2);
        assert!(catalog.is_former(first));
        assert!(!catalog.is_former(volume.layer));
    }
}

#[test]
fn clones_of_clones_have_an_end() {
    let mut catalog = with_volumes(&["0"]);
    let refused = (0..).find_map(|generation| {
        catalog.add_snapshots(&[name(&format!("{generation}@s"))], Epoch(0), 0).unwrap();
        let next = (generation + 1).to_string();
        catalog.clone_snapshot(&name(&format!("{generation}@s")), &next).err()
    });
    assert!(matches!(refused, Some(EngineError::TooManyAncestors { .. })));
    let mut bytes = Vec::new();
    catalog.encode(&mut bytes);
    assert_eq!(Catalog::decode(&bytes).unwrap(), catalog);
}

#[test]
fn labels_of_snapshots_and_clones_of_one_layer_are_told_together() {
    let mut catalog = with_volumes(&["a"]);
    for epoch in [3, 8, 5] {
        catalog.add_snapshots(&[name(&format!("a@{epoch}"))], Epoch(epoch), 0).unwrap();
    }
    catalog.clone_snapshot(&name("a@5"), "b").unwrap();
    catalog.delete_snapshots(&[name("a@5"), name("a@3")]).unwrap();
    let layer = catalog.volume("a").unwrap().layer;
    let expected = Visibility::new(true, false, vec![Epoch(5), Epoch(8)]);
    assert_eq!(catalog.visibilities()[&layer], expected);
}

#[test]
fn names_that_are_taken_or_missing_are_refused() {
    let mut catalog = with_volumes(&["a"]);
    catalog.add_snapshots(&[name("a@s")], Epoch(0), 0).unwrap();
    let taken = catalog.add_snapshots(&[name("a@s")], Epoch(1), 0).unwrap_err();
    assert!(matches!(taken, EngineError::SnapshotExists { .. }), "{taken}");
    let twice = [name("a@t"), name("a@t")];
    let twice = catalog.clone().add_snapshots(&twice, Epoch(1), 0).unwrap_err();
    assert!(matches!(twice, EngineError::NamedTwice { .. }), "{twice}");
    let twice = catalog.clone().delete_snapshots(&[name("a@s"), name("a@s")]).unwrap_err();
    assert!(matches!(twice, EngineError::NamedTwice { .. }), "{twice}");
    let missing = catalog.clone().delete_snapshots(&[name("a@t")]).unwrap_err();
    assert!(matches!(missing, EngineError::NoSuchSnapshot { .. }), "{missing}");
    let missing = catalog.roll_back(&name("b@s")).unwrap_err();
    assert!(matches!(missing, EngineError::NoSuchVolume { .. }), "{missing}");
    let taken = catalog.clone_snapshot(&name("a@s"), "a").unwrap_err();
    assert!(matches!(taken, EngineError::VolumeExists { .. }), "{taken}");
}

/// A layer can be adopted once nothing but one child needs it, and then leaves none behind.
#[test]
fn a_parent_that_only_one_child_reads_can_be_adopted() {
    let mut catalog = with_volumes(&["a"]);
    let root = catalog.volume("a").unwrap().layer;
    catalog.add_snapshots(&[name("a@s")], Epoch(4), 0).unwrap();
    let first = catalog.roll_back(&name("a@s")).unwrap().layer;
    let other = catalog.clone_snapshot(&name("a@s"), "b").unwrap().layer;
    assert_eq!(catalog.adoptable(|_| true), None, "a snapshot and two layers read it");
    catalog.delete_snapshots(&[name("a@s")]).unwrap();
    assert_eq!(catalog.adoptable(|_| true), None, "two layers read it");
    catalog.delete("b", false).unwrap();
    let view = View { layer: root, as_of: Epoch(4) };
    assert_eq!(catalog.adoptable(|_| true), Some((first, view)));
    assert_eq!(catalog.adoptable(|child| child == other), None);
    // The oldest of a chain comes first.
    catalog.add_snapshots(&[name("a@t")], Epoch(6), 0).unwrap();
    let second = catalog.roll_back(&name("a@t")).unwrap().layer;
    catalog.delete_snapshots(&[name("a@t")]).unwrap();
    assert_eq!(catalog.adoptable(|_| true), Some((first, view)));
    assert_eq!(catalog.labels(first).collect::<Vec<_>>(), [Epoch(6)]);
    catalog.leave_parent(first);
    let view = View { layer: first, as_of: Epoch(6) };
    assert_eq!(catalog.chain(View::live(second)), [View::live(second), view]);
    assert_eq!(catalog.adoptable(|_| true), Some((second, view)));
    catalog.leave_parent(second);
    assert_eq!(catalog.visibilities().into_keys().collect::<Vec<_>>(), [second]);
    assert_eq!(catalog.adoptable(|_| true), None);
}
