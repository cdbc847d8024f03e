//! What docs say is what the code does: every table of `docs/format.md` agrees with the struct that
//! it names, every struct on disk has a table, named limits have the values that are written down,
//! and a reader that knows nothing but the tables finds a block's bytes in a real pool.
//!
//! The layouts are private, so their source is read, not their type. Sizes there are asserted by
//! the compiler, and all fields are unaligned, so offsets follow from the fields' types.
//!
//! `cargo test -p siltstone-engine --test format_doc -- --nocapture can_be_made_again` prints
//! the example of the document, with identities of its own.
#![allow(clippy::unwrap_used)] // a failed step of a test should stop it

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use siltstone_device::{
    Place, SegmentId,
    header::{HEADER_BYTES, Header},
    sim::SimDevice,
};
use siltstone_engine::{CreateOptions, OpenOptions, Pool, VolumeOptions};
use zstd::zstd_safe::DCtx;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    offset: usize,
    size: usize,
}

/// A structure as a table describes it: "**`Name`** in `path`, N bytes", then rows.
#[derive(Debug)]
struct Table {
    bytes: usize,
    fields: Vec<Field>,
}

/// All structures of the document, by file and name.
type Tables = BTreeMap<(String, String), Table>;

/// The text between the first pair of backquotes, and what follows.
fn quoted(line: &str) -> Option<(&str, &str)> {
    line.split_once('`')?.1.split_once('`')
}

fn cells(row: &str) -> Vec<&str> {
    row.trim().trim_matches('|').split('|').map(str::trim).collect()
}

fn tables() -> Tables {
    let document = text("docs/format.md");
    let mut tables = Tables::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if !line.starts_with("**`") {
            continue;
        }
        let (name, rest) = quoted(line).unwrap();
        let (path, rest) = quoted(rest).unwrap();
        let size = rest.trim_start_matches(", ").split(' ').next().unwrap();
        let bytes = size.parse().unwrap_or_else(|_| panic!("{line}: no size"));
        let mut rows = lines.by_ref().skip_while(|row| !row.starts_with("|---"));
        rows.next();
        let mut fields = Vec::new();
        for row in rows.take_while(|row| row.starts_with('|')) {
            let cells = cells(row);
            fields.push(Field {
                name: cells[2].trim_matches('`').into(),
                offset: cells[0].parse().unwrap(),
                size: cells[1].parse().unwrap(),
            });
        }
        let before = tables.insert((path.into(), name.into()), Table { bytes, fields });
        assert!(before.is_none(), "{path} {name} is described twice");
    }
    tables
}

/// The right-hand side of a constant in a source file, spaces made even; of several, the first.
fn constant(source: &str, name: &str) -> Option<String> {
    let start = source.find(&format!("const {name}:"))?;
    let (declaration, _) = source[start..].split_once(';')?;
    let (_, value) = declaration.split_once('=')?;
    Some(value.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn number(source: &str, text: &str) -> Option<usize> {
    let text = text.trim();
    let plain = text.replace('_', "");
    plain.parse().ok().or_else(|| number(source, &constant(source, text)?))
}

/// The size of a field's type.
fn size_of_type(source: &str, of: &str) -> usize {
    match of {
        "u8" | "i8" => 1,
        "U16" => 2,
        "U32" => 4,
        "U64" => 8,
        array => {
            let array = array.strip_prefix('[').and_then(|array| array.strip_suffix(']'));
            let (item, count) = array.and_then(|array| array.split_once(';')).expect(of);
            size_of_type(source, item.trim()) * number(source, count).expect(count)
        }
    }
}

/// The structures of a source file that are laid out for the disk.
fn structures(source: &str) -> BTreeMap<String, Vec<Field>> {
    let mut structures = BTreeMap::new();
    for part in source.split("#[repr(C)]").skip(1) {
        let (head, body) = part.split_once('{').unwrap();
        let name = head.split_whitespace().last().unwrap();
        let (body, _) = body.split_once("\n}").unwrap();
        let mut fields = Vec::new();
        let mut offset = 0;
        let code = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        for field in code.filter(|line| !line.is_empty()) {
            let (name, of) = field.trim_end_matches(',').split_once(": ").unwrap();
            let name = name.split_whitespace().last().unwrap().into();
            let size = size_of_type(source, of);
            fields.push(Field { name, offset, size });
            offset += size;
        }
        structures.insert(name.into(), fields);
    }
    structures
}

#[test]
fn every_table_agrees_with_its_structure_field_by_field() {
    let tables = tables();
    assert!(tables.len() >= 18, "the document was read");
    for ((path, name), table) in &tables {
        let structures = structures(&text(path));
        let fields = structures.get(name).unwrap_or_else(|| panic!("{path} has no {name}"));
        assert_eq!(&table.fields, fields, "{path}: {name}");
        let end = fields.last().map(|last| last.offset + last.size);
        assert_eq!(Some(table.bytes), end, "{path}: {name}");
    }
}

#[test]
fn every_size_is_one_that_the_compiler_asserts() {
    for ((path, name), table) in tables() {
        let source = text(&path);
        // The page head's size is asserted together with the header's.
        if name == "PageHead" {
            assert!(source.contains("assert!(ENTRIES_START == 48)"));
            assert_eq!(table.bytes, 48 - HEADER_BYTES);
            continue;
        }
        let (_, asserted) = source
            .split_once(&format!("size_of::<{name}>() == "))
            .unwrap_or_else(|| panic!("{path}: the size of {name} is not asserted"));
        let asserted = asserted.split(')').next().unwrap();
        assert_eq!(number(&source, asserted), Some(table.bytes), "{path}: {name}");
    }
    let header = [
        std::mem::offset_of!(Header, magic),
        std::mem::offset_of!(Header, kind),
        std::mem::offset_of!(Header, version),
        std::mem::offset_of!(Header, checksum),
        std::mem::offset_of!(Header, length_bytes),
        std::mem::offset_of!(Header, pool),
        std::mem::offset_of!(Header, address_bytes),
        std::mem::offset_of!(Header, sequence),
    ];
    let table = &tables()[&("device/src/header.rs".into(), "Header".into())];
    assert!(table.fields.iter().map(|field| field.offset).eq(header));
}

#[test]
fn every_structure_on_disk_has_a_table() {
    let tables = tables();
    for crate_name in ["device", "nvram", "cursor", "engine"] {
        let mut directories = vec![repository().join(crate_name).join("src")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let name = path.strip_prefix(repository()).unwrap().to_str().unwrap();
                for structure in structures(&text(name)).into_keys() {
                    let key = (name.to_owned(), structure);
                    assert!(tables.contains_key(&key), "{key:?} is not in docs/format.md");
                }
            }
        }
    }
}

/// Rows of tables "| constant | in the source | file | meaning |".
fn constants(document: &str) -> Vec<(String, String, String)> {
    let mut rows = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("| constant | in the source | file |") {
            for row in lines.by_ref().skip(1).take_while(|row| row.starts_with('|')) {
                let cells = cells(row);
                let [name, value, file] = [0, 1, 2].map(|at| cells[at].trim_matches('`').into());
                rows.push((name, value, file));
            }
        }
    }
    rows
}

#[test]
fn named_limits_have_the_values_that_are_written_down() {
    for (document, least) in [("docs/format.md", 25), ("docs/architecture.md", 40)] {
        let constants = constants(&text(document));
        assert!(constants.len() >= least, "{document}: {} constants", constants.len());
        for (name, value, file) in constants {
            let source = text(&file);
            let found = match name.split_once("::") {
                // A field's default.
                Some((_, field)) => {
                    source.contains(&format!(" {field}: {value},")).then(|| value.clone())
                }
                None => constant(&source, &name),
            };
            assert_eq!(found, Some(value), "{document}: {name} in {file}");
        }
    }
}

#[test]
fn kinds_have_the_numbers_that_are_written_down() {
    let document = text("docs/format.md");
    let source = text("device/src/header.rs");
    let (_, table) = document.split_once("| kind | name |").unwrap();
    let rows: Vec<_> = table.lines().skip(2).take_while(|row| row.starts_with('|')).collect();
    let documented: BTreeSet<String> = rows
        .iter()
        .map(|row| format!("{} = {}", cells(row)[1].trim_matches('`'), cells(row)[0]))
        .collect();
    let (_, kinds) = source.split_once("pub enum Kind {").unwrap();
    let (kinds, _) = kinds.split_once('}').unwrap();
    let code = kinds.lines().map(str::trim).filter(|line| line.contains(" = "));
    let defined: BTreeSet<String> = code.map(|line| line.trim_end_matches(',').into()).collect();
    assert_eq!(documented, defined);
}

/// The lowest bit of each field of a place.
fn place_bits() -> BTreeMap<String, (u32, u32)> {
    let document = text("docs/format.md");
    let (_, table) = document.split_once("| bits | width | field |").unwrap();
    let rows = table.lines().skip(2).take_while(|row| row.starts_with('|'));
    rows.map(|row| {
        let cells = cells(row);
        let (first, last) = cells[0].split_once(" to ").unwrap();
        let (first, last): (u32, u32) = (first.parse().unwrap(), last.parse().unwrap());
        assert_eq!(cells[1], (last - first + 1).to_string(), "{row}");
        (cells[2].to_owned(), (first, last - first + 1))
    })
    .collect()
}

/// One field of a place, by the document.
fn place_part(place: u64, field: &str) -> u64 {
    let (first, width) = place_bits()[field];
    place >> first & ((1 << width) - 1)
}

#[test]
fn a_place_is_packed_as_written_down() {
    let place = Place::new(SegmentId(0x0abc_def1), 0x9_8760, 41).with_stored_bytes(7001).raw();
    assert_eq!(place_part(place, "segment"), 0x0abc_def1);
    assert_eq!(place_part(place, "grain"), 0x9876);
    assert_eq!(place_part(place, "length"), 7001_u64.div_ceil(64));
    assert_eq!(place_part(place, "index"), 41);
    assert_eq!(place_bits().values().map(|(_, width)| width).sum::<u32>(), 64);
}

/// Reads structures by the document's tables.
struct Reader {
    tables: Tables,
}

impl Reader {
    fn table(&self, structure: &str) -> &Table {
        let (file, name) = structure.split_once(' ').unwrap();
        let is_it = |key: &&(String, String)| key.0.ends_with(file) && key.1 == name;
        &self.tables[self.tables.keys().find(is_it).expect(structure)]
    }

    fn len(&self, structure: &str) -> usize {
        self.table(structure).bytes
    }

    /// A field of the structure that begins at `at`; `structure` is a file and a name.
    fn bytes<'a>(&self, bytes: &'a [u8], at: usize, structure: &str, field: &str) -> &'a [u8] {
        let fields = &self.table(structure).fields;
        let field = fields.iter().find(|candidate| candidate.name == field).expect(field);
        &bytes[at + field.offset..][..field.size]
    }

    fn get(&self, bytes: &[u8], at: usize, structure: &str, field: &str) -> u64 {
        let bytes = self.bytes(bytes, at, structure, field);
        bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    fn header(&self, bytes: &[u8], at: usize, field: &str) -> u64 {
        self.get(bytes, at, "header.rs Header", field)
    }

    /// Checks the common header at `at`, which belongs at `address`; returns its length.
    fn check_header(&self, bytes: &[u8], at: usize, kind: u64, address: u64) -> usize {
        assert_eq!(self.bytes(bytes, at, "header.rs Header", "magic"), b"SLTS");
        let length = self.header(bytes, at, "length_bytes") as usize;
        let mut copy = bytes[at..at + length].to_vec();
        copy[8..12].fill(0);
        let checksum = u64::from(crc32fast::hash(&copy));
        assert_eq!(self.header(bytes, at, "checksum"), checksum, "checksum at {at}");
        assert_eq!(self.header(bytes, at, "kind"), kind);
        assert_eq!(self.header(bytes, at, "address_bytes"), address);
        length
    }

    /// The plain contents of the frame at `at`, after all its checks.
    fn frame(&self, bytes: &[u8], at: usize) -> Vec<u8> {
        let get = |field| self.get(bytes, at, "frame.rs FrameHeader", field);
        let header_bytes = self.len("frame.rs FrameHeader");
        let stored = &bytes[at + header_bytes..][..get("stored_bytes") as usize];
        assert_eq!(self.bytes(bytes, at, "frame.rs FrameHeader", "magic"), b"SF");
        let header = &bytes[at + 4..at + header_bytes];
        assert_eq!(get("header_checksum"), u64::from(crc32fast::hash(header)));
        assert_eq!(get("payload_checksum"), u64::from(crc32fast::hash(stored)));
        assert_eq!((get("part_count"), get("encryption"), get("dictionary")), (1, 0, 0));
        let plain_bytes = get("block_count") as usize * 4096;
        match get("codec") {
            0 => stored.to_vec(),
            1 => {
                let mut plain = vec![0; plain_bytes];
                let decoded = DCtx::create().decompress(&mut plain[..], stored);
                assert_eq!(decoded, Ok(plain_bytes));
                plain
            }
            other => panic!("codec {other}"),
        }
    }
}

const MIB: usize = 1 << 20;
const TEXT: &[u8] = b"siltstone ";

/// A pool with one volume of which two blocks were written: one of text, one of zeros.
fn sample() -> Vec<u8> {
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
fn plain() -> Vec<u8> {
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

/// Checks a write unit with one frame of one block of text and one hole, by the tables alone.
fn check_unit(reader: &Reader, unit: &[u8], address: u64) {
    let length = reader.check_header(unit, 0, 4, address);
    let header_bytes = reader.len("header.rs Header");
    let head = |field| reader.get(unit, header_bytes, "write_unit.rs UnitHead", field);
    assert_eq!((head("number"), head("unit_bytes")), (1, 4096));
    assert_eq!((head("entry_count"), head("frame_count"), head("block_count")), (2, 1, 1));
    let entries = header_bytes + reader.len("write_unit.rs UnitHead");
    let entry_bytes = reader.len("write_unit.rs DiskEntry");
    let frame_table = entries + 2 * entry_bytes;
    let fingerprints = frame_table + reader.len("write_unit.rs DiskFrame");
    assert_eq!(fingerprints + 16, length);

    let entry = |at: usize, field| {
        reader.get(unit, entries + at * entry_bytes, "write_unit.rs DiskEntry", field)
    };
    assert_eq!((entry(0, "address"), entry(0, "place")), (1, u64::MAX), "a hole");
    assert_eq!((entry(1, "address"), entry(1, "len_blocks")), (0, 1));
    let of_frame = |field| reader.get(unit, frame_table, "write_unit.rs DiskFrame", field);
    let frame = of_frame("grain") as usize * 16;
    let place = entry(1, "place");
    assert_eq!(place_part(place, "segment"), head("segment"));
    assert_eq!(place_part(place, "grain"), of_frame("grain"), "the unit begins its segment");
    assert_eq!(place_part(place, "length"), of_frame("stored_units"));
    let of_header = |field| reader.get(unit, frame, "frame.rs FrameHeader", field);
    assert_eq!(of_header("generation"), head("generation"));
    assert_eq!(of_header("offset_bytes"), frame as u64);
    let block = reader.frame(unit, frame);
    assert_eq!(block, plain()[..4096]);
    let fingerprint = siltstone_dedup::fingerprint(block[..].try_into().unwrap()).short();
    assert_eq!(&unit[fingerprints..][..16], fingerprint.bytes());
}

/// The lines of a dump: offset, then bytes in hexadecimal, then remarks after two spaces.
fn parse_dump(document: &str) -> Vec<u8> {
    let (_, dump) = document.split_once("```hexdump\n").expect("the document has a dump");
    let (dump, _) = dump.split_once("```").unwrap();
    let mut bytes = Vec::new();
    for line in dump.lines() {
        let (offset, rest) = line.split_once("  ").unwrap();
        assert_eq!(usize::from_str_radix(offset, 16).unwrap(), bytes.len(), "{line}");
        let digits = rest.split("  ").next().unwrap();
        bytes.extend(digits.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    bytes
}

#[test]
fn the_worked_example_of_the_document_is_a_write_unit() {
    let document = text("docs/format.md");
    let mut unit = parse_dump(&document);
    assert!(unit.len() < 4096, "the rest of the unit is zeros");
    unit.resize(4096, 0);
    let reader = Reader { tables: tables() };
    let address = reader.header(&unit, 0, "address_bytes");
    check_unit(&reader, &unit, address);
}

#[test]
fn the_worked_example_can_be_made_again() {
    let image = sample();
    let reader = Reader { tables: tables() };
    let units = (0..image.len()).step_by(4096);
    let mut units = units
        .filter(|&at| image[at..].starts_with(b"SLTS") && reader.header(&image, at, "kind") == 4);
    let at = units.next().expect("there is a write unit");
    assert_eq!(units.next(), None, "two blocks make one unit");
    let unit = &image[at..at + 4096];
    check_unit(&reader, unit, at as u64);
    print_dump(&reader, unit);
}

/// Prints the unit, a field a line.
fn print_dump(reader: &Reader, unit: &[u8]) {
    let mut at = 0;
    let mut line = |len: usize, what: &str| {
        let mut left = len;
        while left > 0 {
            let row = &unit[at..at + left.min(16)];
            let digits: Vec<_> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            let what = if left == len { what } else { "" };
            println!("{}", format!("{at:04x}  {:<48} {what}", digits.join(" ")).trim_end());
            at += row.len();
            left -= row.len();
        }
    };
    let structures = [
        ("header.rs Header", "header"),
        ("write_unit.rs UnitHead", "unit"),
        ("write_unit.rs DiskEntry", "entry 0"),
        ("write_unit.rs DiskEntry", "entry 1"),
        ("write_unit.rs DiskFrame", "frame table"),
    ];
    for (structure, label) in structures {
        for field in &reader.table(structure).fields {
            line(field.size, &format!("{label}: {}", field.name));
        }
    }
    line(16, "fingerprint");
    let frame = reader.len("header.rs Header") + 64 + 2 * 32 + 8 + 16;
    for field in &reader.table("frame.rs FrameHeader").fields {
        line(field.size, &format!("frame: {}", field.name));
    }
    let stored = reader.get(unit, frame, "frame.rs FrameHeader", "stored_bytes");
    line(stored as usize, "stored bytes: zstd");
}
