//! A reader that knows nothing but the tables.

use std::collections::BTreeMap;

use siltstone_device::{Place, SegmentId};
use zstd::zstd_safe::DCtx;

use super::tables::{Table, Tables, cells, text};

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
pub(super) fn place_part(place: u64, field: &str) -> u64 {
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
pub(super) struct Reader {
    pub(super) tables: Tables,
}

impl Reader {
    pub(super) fn table(&self, structure: &str) -> &Table {
        let (file, name) = structure.split_once(' ').unwrap();
        let is_it = |key: &&(String, String)| key.0.ends_with(file) && key.1 == name;
        &self.tables[self.tables.keys().find(is_it).expect(structure)]
    }

    pub(super) fn len(&self, structure: &str) -> usize {
        self.table(structure).bytes
    }

    /// A field of the structure that begins at `at`; `structure` is a file and a name.
    pub(super) fn bytes<'a>(
        &self,
        bytes: &'a [u8],
        at: usize,
        structure: &str,
        field: &str,
    ) -> &'a [u8] {
        let fields = &self.table(structure).fields;
        let field = fields.iter().find(|candidate| candidate.name == field).expect(field);
        &bytes[at + field.offset..][..field.size]
    }

    pub(super) fn get(&self, bytes: &[u8], at: usize, structure: &str, field: &str) -> u64 {
        let bytes = self.bytes(bytes, at, structure, field);
        bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    pub(super) fn header(&self, bytes: &[u8], at: usize, field: &str) -> u64 {
        self.get(bytes, at, "header.rs Header", field)
    }

    /// Checks the common header at `at`, which belongs at `address`; returns its length.
    pub(super) fn check_header(&self, bytes: &[u8], at: usize, kind: u64, address: u64) -> usize {
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
    pub(super) fn frame(&self, bytes: &[u8], at: usize) -> Vec<u8> {
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
