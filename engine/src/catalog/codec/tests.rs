use super::*;
use crate::snapshot_name::SnapshotName;

fn name(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// Volumes, snapshots, a clone, a volume that was rolled back, and what is left of deleted ones.
fn catalog() -> Catalog {
    let mut catalog = Catalog::new();
    let options = VolumeOptions::new(1 << 20).with_compression(Compression {
        levels: Levels::new(-3, 9).unwrap(),
        frame: FrameSize::halved(2).unwrap(),
    });
    for name in ["root", "döner", "a b"] {
        catalog.create(name, &options).unwrap();
    }
    catalog.add_snapshots(&[name("root@1"), name("a b@ü")], Epoch(7), 1 << 33).unwrap();
    catalog.clone_snapshot(&name("root@1"), "clone").unwrap();
    catalog.add_snapshots(&[name("clone@1"), name("root@2")], Epoch(9), 5).unwrap();
    catalog.roll_back(&name("clone@1")).unwrap();
    catalog.delete("root", true).unwrap();
    catalog
}

#[test]
fn a_catalog_survives_encoding_and_truncation_is_an_error() {
    let catalog = catalog();
    let mut bytes = Vec::new();
    catalog.encode(&mut bytes);
    assert_eq!(Catalog::decode(&bytes).unwrap(), catalog);
    assert_eq!(bytes.len() as u64, catalog.encoded_bytes());
    for len in 0..bytes.len() {
        assert!(Catalog::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    bytes.push(0);
    assert!(Catalog::decode(&bytes).is_err(), "a byte follows");
}

/// What no program of ours writes is refused, before it makes counting overflow, one layer serve
/// two volumes, or a walk over the layers take for ever.
#[test]
fn hostile_numbers_are_refused() {
    let mut good = Catalog::new();
    for name in ["a", "b"] {
        good.create(name, &VolumeOptions::new(4096)).unwrap();
    }
    good.add_snapshots(&[name("a@s")], Epoch(3), 0).unwrap();
    let refused = |what: &str, change: &dyn Fn(&mut Catalog)| {
        let mut catalog = good.clone();
        change(&mut catalog);
        let mut bytes = Vec::new();
        catalog.encode(&mut bytes);
        assert!(Catalog::decode(&bytes).is_err(), "{what}");
    };
    fn volume(catalog: &mut Catalog) -> &mut VolumeRecord {
        catalog.volume_mut("b").expect("it is there")
    }
    fn snapshot(catalog: &mut Catalog) -> &mut SnapshotRecord {
        catalog.snapshots.values_mut().next().expect("it is there")
    }
    let parent = |layer| Some(View { layer: LayerId(layer), as_of: Epoch(0) });
    refused("a next layer beyond counting", &|c| c.next_layer = u32::MAX);
    refused("a next volume beyond counting", &|c| c.next_volume = MAX_ID + 1);
    refused("a next volume of 0", &|c| c.next_volume = 0);
    refused("a next layer that is taken", &|c| c.next_layer = 2);
    refused("a next volume that is taken", &|c| c.next_volume = 2);
    refused("a volume without a number", &|c| volume(c).id = 0);
    refused("two volumes of one number", &|c| volume(c).id = 1);
    refused("two volumes of one layer", &|c| volume(c).layer = LayerId(1));
    refused("a layer that is not there", &|c| volume(c).layer = LayerId(3));
    refused("a parent that is not there", &|c| {
        c.layers.remove(&LayerId(1));
        c.volumes.remove("a");
        c.snapshots.clear();
        c.layers.insert(LayerId(2), parent(1));
    });
    refused("a parent as of an epoch beyond counting", &|c| {
        c.layers.insert(LayerId(2), Some(View { layer: LayerId(1), as_of: MAX_EPOCH }));
    });
    refused("a chain that is too long", &|c| {
        let last = MAX_DEPTH as u32 + 2;
        c.next_layer = last;
        c.layers.extend((2..last).map(|id| (LayerId(id), parent(id - 1))));
    });
    refused("more layers than there may be", &|c| {
        c.next_layer = MAX_LAYERS as u32 + 2;
        c.layers.extend((3..c.next_layer).map(|id| (LayerId(id), None)));
    });
    refused("a snapshot of the live volume", &|c| snapshot(c).view.as_of = Epoch::MAX);
    refused("a snapshot of a layer that is not there", &|c| snapshot(c).view.layer = LayerId(3));
    refused("a snapshot of no size", &|c| snapshot(c).size_bytes = 0);
    refused("a snapshot of no volume", &|c| {
        let snapshot = *snapshot(c);
        c.snapshots = [((3, "s".into()), snapshot)].into();
    });
}

#[test]
fn the_last_numbers_can_be_stored() {
    let mut last = Catalog { next_layer: MAX_ID, ..Catalog::new() };
    let mut bytes = Vec::new();
    last.encode(&mut bytes);
    assert_eq!(Catalog::decode(&bytes).unwrap(), last);
    let error = last.create("c", &VolumeOptions::new(4096)).unwrap_err();
    assert!(matches!(error, crate::EngineError::IdsExhausted), "{error}");
}
