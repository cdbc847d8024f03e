//! A block in a real pool, found by the tables alone.

use siltstone_device::sim::SimDevice;
use siltstone_engine::{CreateOptions, OpenOptions, Pool, VolumeOptions};

use super::{
    reader::{Reader, place_part},
    tables::tables,
};

const MIB: usize = 1 << 20;
const TEXT: &[u8] = b"siltstone ";

/// A pool with one volume of which two blocks were written: one of text, one of zeros.
pub(super) fn sample() -> Vec<u8> {
    let device = SimDevice::new(64 * MIB as u64);
    let options = CreateOptions { index_memory_bytes: 1 << 20, ..CreateOptions::default() };
    Pool::create_on(device.clone(), None, &options).unwrap();
    let pool = Pool::open_on(device.clone(), None, &OpenOptions::default()).unwrap();
    let disk = pool.create_volume("disk", &VolumeOptions::new(MIB as u64)).unwrap();
    disk.write_at(0, &plain()).unwrap();
    pool.checkpoint().unwrap();
    pool.close().unwrap();
    device.peek(0, 64 * MIB)
}

/// What was written: a block of text, a block of zeros.
pub(super) fn plain() -> Vec<u8> {
    let text = TEXT.iter().copied().cycle().take(4096);
    text.chain([0; 4096]).collect()
}

#[test]
fn a_reader_that_knows_only_the_tables_finds_a_block() {
    let image = sample();
    let reader = Reader { tables: tables() };
    let header_bytes = reader.len("header.rs Header");

    for superblock in [0, 512 << 10] {
        assert_eq!(reader.check_header(&image, superblock, 1, superblock as u64), 4096);
    }
    let pool = reader.header(&image, 0, "pool");
    let superblock = |field| reader.get(&image, header_bytes, "superblock.rs Body", field) as usize;
    assert_eq!(superblock("size_bytes"), 64 * MIB);
    assert_eq!(superblock("flags"), 1);
    assert_eq!(superblock("threshold"), 1);

    // The newer of the two checkpoint records, and its other copy.
    let slot_bytes = superblock("checkpoint_slot_bytes");
    let slots = [MIB, MIB + slot_bytes];
    let newest = slots.into_iter().max_by_key(|&at| reader.header(&image, at, "sequence")).unwrap();
    let number = reader.header(&image, newest, "sequence");
    assert_eq!(slots[(number % 2) as usize], newest);
    for copy in [newest, newest + 2 * slot_bytes] {
        let length = reader.check_header(&image, copy, 2, copy as u64);
        assert_eq!(reader.header(&image, copy, "sequence"), number);
        let body = |at: usize| &image[at + header_bytes..at + length];
        assert!(body(copy) == body(newest), "two copies say the same");
    }

    // The newer mark says that this checkpoint was durable.
    let marks = [256 << 10, 768 << 10];
    let mark = marks.into_iter().max_by_key(|&at| reader.header(&image, at, "sequence")).unwrap();
    reader.check_header(&image, mark, 8, mark as u64);
    let of_mark = |field| reader.get(&image, mark + header_bytes, "mark.rs Body", field);
    assert_eq!((of_mark("checkpoint"), of_mark("unit")), (number, 1));
    assert_eq!(of_mark("sequence"), 1, "one change was written");
    let head = newest + header_bytes;
    let body = |field| reader.get(&image, head, "engine/src/record.rs DiskHead", field);
    assert_eq!((body("version"), body("unit")), (3, 1));
    let segments =
        (superblock("size_bytes") - superblock("data_start")) / superblock("segment_bytes");
    assert_eq!(body("segment_count"), segments as u64);
    let of_index = head + reader.len("engine/src/record.rs DiskHead");
    let of_index_image = |field| reader.get(&image, of_index, "record.rs DiskImage", field);
    assert_eq!((of_index_image("chunk_count"), of_index_image("unfinished_count")), (0, 0));
    let epochs = of_index
        + reader.len("record.rs DiskImage")
        + body("frontier_count") as usize * reader.len("record.rs DiskFrontier");
    assert_eq!(
        (body("epoch_count"), reader.get(&image, epochs, "epochs.rs DiskStart", "epoch")),
        (1, 0)
    );
    let catalog = epochs + reader.len("epochs.rs DiskStart");
    let manifest = catalog + body("catalog_bytes") as usize;

    // The volume and its layer.
    let of_catalog = |field| reader.get(&image, catalog, "catalog/codec.rs DiskHead", field);
    assert_eq!((of_catalog("volume_count"), of_catalog("layer_count")), (1, 1));
    let layer = catalog + reader.len("catalog/codec.rs DiskHead");
    let volume = layer + reader.len("catalog/codec.rs DiskLayer");
    let layer = reader.get(&image, layer, "catalog/codec.rs DiskLayer", "id");
    assert_eq!(reader.get(&image, volume, "catalog/codec.rs DiskVolume", "layer"), layer);
    let name = volume + reader.len("catalog/codec.rs DiskVolume");
    assert_eq!(&image[name..][..4], b"disk");

    // The patch, its only page, and the entry of block 0.
    let of_manifest = |field| reader.get(&image, manifest, "manifest.rs ManifestHead", field);
    assert_eq!((of_manifest("version"), of_manifest("patch_count")), (2, 1));
    let patch = manifest + reader.len("manifest.rs ManifestHead");
    let of_patch = |field| reader.get(&image, patch, "manifest.rs PatchRecord", field);
    assert_eq!((of_patch("root_height"), of_patch("extent_count")), (0, 1));
    let extent = patch + reader.len("manifest.rs PatchRecord");
    let of_extent = |field| reader.get(&image, extent, "manifest.rs ExtentRecord", field) as usize;
    let (data_start, segment_bytes) = (superblock("data_start"), superblock("segment_bytes"));
    let root = of_patch("root_address") as usize;
    let first_page = data_start + of_extent("segment") * segment_bytes;
    assert_eq!(root, first_page + of_extent("first_page") * 4096);
    assert_eq!(reader.check_header(&image, root, 5, root as u64), 4096);
    assert_eq!(reader.header(&image, root, "checksum"), of_patch("root_checksum"));
    let page = root + header_bytes;
    assert_eq!(reader.get(&image, page, "page.rs PageHead", "count"), of_patch("entries"));
    let entry = page + reader.len("page.rs PageHead");
    let of_entry = |field| reader.get(&image, entry, "leaf.rs LeafHead", field);
    // One block from block 0 on: what is smallest is all there is, and no field needs a bit.
    assert_eq!((of_entry("layer"), of_entry("epoch"), of_entry("address")), (layer, 0, 0));
    let packed = entry + reader.len("leaf.rs LeafHead");
    assert!(image[packed - 8..root + 4096].iter().all(|&byte| byte == 0));

    // The frame.
    let place = of_entry("place");
    let segment = place_part(place, "segment") as usize;
    let frame = data_start + segment * segment_bytes + place_part(place, "grain") as usize * 16;
    let of_frame = |field| reader.get(&image, frame, "frame.rs FrameHeader", field);
    assert_eq!((of_frame("pool"), of_frame("segment")), (pool, segment as u64));
    let stored_bytes = of_frame("stored_bytes") + reader.len("frame.rs FrameHeader") as u64;
    assert_eq!(place_part(place, "length"), stored_bytes.div_ceil(64));
    assert_eq!(reader.frame(&image, frame), plain()[..4096]);

    // What the segment table says of its segment: the newest slot not above the record.
    let table_page = segment / 126;
    let table = superblock("segment_table_offset") + table_page * 8192;
    let second_copies = superblock("segment_table_pages") * 8192;
    let is_valid = |&at: &usize| {
        image[at..].starts_with(b"SLTS") && reader.header(&image, at, "sequence") <= number
    };
    let newest = [table, table + 4096].into_iter().filter(is_valid);
    let newest = newest.max_by_key(|&at| reader.header(&image, at, "sequence")).unwrap();
    for copy in [newest, newest + second_copies] {
        assert_eq!(reader.check_header(&image, copy, 7, copy as u64), 4096);
        assert!(image[copy + header_bytes..][..4056] == image[newest + header_bytes..][..4056]);
    }
    let entry = newest + 64 + segment % 126 * reader.len("pages.rs Entry");
    let of_segment = |field| reader.get(&image, entry, "pages.rs Entry", field);
    assert_eq!(of_segment("generation"), of_frame("generation"));
    assert_eq!((of_segment("references"), of_segment("stored_blocks")), (1, 1));
    assert_eq!(of_segment("used_bytes"), 4096);

    // The sum over the versions of all pages.
    let segments = (superblock("size_bytes") - data_start) / segment_bytes;
    assert_eq!(segments.div_ceil(126), 1, "the table has one page");
    assert_eq!(body("table_versions_sum"), reader.header(&image, newest, "sequence"));

    // The log: its newest record is a marker.
    let (ring, ring_bytes) = (superblock("nvram_offset"), superblock("nvram_bytes"));
    let records = (ring..ring + ring_bytes).step_by(4096);
    let records = records.filter(|&at| image[at..].starts_with(b"SLTS"));
    let newest = records.max_by_key(|&at| reader.header(&image, at, "sequence")).unwrap();
    reader.check_header(&image, newest, 3, newest as u64);
    let nonces = reader.bytes(&image, header_bytes, "superblock.rs Body", "nvram_nonce");
    assert_eq!(reader.bytes(&image, newest, "header.rs Header", "pool"), &nonces[..8]);
    let head = newest + header_bytes;
    assert_eq!(
        reader.bytes(&image, head, "nvram/src/record.rs Head", "second_nonce"),
        &nonces[8..]
    );
    assert_eq!(reader.get(&image, head, "nvram/src/record.rs Head", "change_count"), 0);
}
