//! The worked example of the document is a write unit, and can be made again.

use super::{
    pool::{plain, sample},
    reader::{Reader, place_part},
    tables::{tables, text},
};

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
