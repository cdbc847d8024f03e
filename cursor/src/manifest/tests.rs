use super::*;

fn patch(id: u64, level: u8, first: u64, last: u64) -> Arc<Patch> {
    Arc::new(Patch {
        id,
        level,
        draining: id.is_multiple_of(2),
        root_address: ByteOffset(4096 * id),
        root_checksum: 77,
        root_height: 1,
        first: Key::new(LayerId(1), first),
        last: Key::new(LayerId(1), last),
        entries: 10,
        holes: 2,
        layers: vec![HeldLayer {
            layer: LayerId(1),
            newest: Epoch(9),
            older_from: Epoch(3),
            older_to: Epoch(8),
            labels: 2,
        }],
        pages: vec![PageExtent { segment: SegmentId(4), first_page: 3, count: 9 }],
    })
}

fn manifest() -> Manifest {
    Manifest {
        patches: vec![
            patch(5, 0, 0, 90),
            patch(4, 0, 5, 80),
            patch(3, 1, 0, 9),
            patch(2, 1, 10, 90),
        ],
        next_patch: 6,
        tail: Tail { segment: Some(SegmentId(4)), next_page: 12 },
    }
}

#[test]
fn a_manifest_survives_encoding() {
    assert_eq!(Manifest::decode(&manifest().encode()), Ok(manifest()));
    assert_eq!(Manifest::decode(&Manifest::empty().encode()), Ok(Manifest::empty()));
}

#[test]
fn pages_count_the_open_segment_once_more() {
    assert_eq!(manifest().pages(), [(SegmentId(4), 37)].into());
}

/// The checkpoint's checksum finds damage; this is about bytes that someone forged.
#[test]
fn hostile_bytes_are_an_error_or_a_manifest_but_never_a_panic() {
    let bytes = manifest().encode();
    for index in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[index] ^= flip;
            let _ = Manifest::decode(&bytes);
        }
        assert!(Manifest::decode(&bytes[..index]).is_err());
    }
    let huge = [&bytes[..12], &[0xff; 4], &bytes[16..]].concat();
    assert_eq!(Manifest::decode(&huge), Err(ManifestError::Short { part: "patches" }));
}

#[test]
fn patches_that_exclude_each_other_are_refused() {
    let mut overlapping = manifest();
    overlapping.patches[3] = patch(2, 1, 9, 90);
    assert_eq!(
        Manifest::decode(&overlapping.encode()),
        Err(ManifestError::Conflict { patch: 3, other: 2 })
    );
    let mut same_number = manifest();
    same_number.patches[1] = patch(5, 0, 0, 1);
    assert!(matches!(
        Manifest::decode(&same_number.encode()),
        Err(ManifestError::Conflict { patch: 5, other: 5 })
    ));
    let mut from_the_future = manifest();
    from_the_future.next_patch = 5;
    assert!(matches!(
        Manifest::decode(&from_the_future.encode()),
        Err(ManifestError::Patch { patch: 5, field: "number" })
    ));
}

#[test]
fn layers_that_no_writer_has_are_refused() {
    let decode = |change: &dyn Fn(&mut Vec<HeldLayer>)| {
        let mut manifest = manifest();
        change(&mut Arc::make_mut(&mut manifest.patches[0]).layers);
        Manifest::decode(&manifest.encode())
    };
    decode(&|layers| layers.push(HeldLayer::new(LayerId(2), Epoch(1)))).unwrap();
    for change in [
        &(|layers: &mut Vec<HeldLayer>| layers.push(layers[0])) as &dyn Fn(&mut Vec<HeldLayer>),
        &|layers| layers[0].older_from = Epoch(9),
    ] {
        let impossible = ManifestError::Patch { patch: 5, field: "layers" };
        assert_eq!(decode(change), Err(impossible));
    }
}

#[test]
fn counts_that_no_writer_reaches_are_refused() {
    let decode = |change: &dyn Fn(&mut Patch)| {
        let mut manifest = manifest();
        change(Arc::make_mut(&mut manifest.patches[0]));
        Manifest::decode(&manifest.encode())
    };
    decode(&|patch| patch.entries = 9 * 1024).unwrap();
    for change in [
        &(|patch: &mut Patch| patch.entries = 9 * 1024 + 1) as &dyn Fn(&mut Patch),
        &|patch| patch.entries = u64::MAX,
        &|patch| patch.holes = 11,
    ] {
        let impossible = ManifestError::Patch { patch: 5, field: "number of entries" };
        assert_eq!(decode(change), Err(impossible));
    }
    let endless = Manifest { next_patch: u64::MAX, ..manifest() };
    assert!(matches!(
        Manifest::decode(&endless.encode()),
        Err(ManifestError::Patch { field: "number", .. })
    ));
}
