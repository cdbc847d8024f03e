//! Tables, limits and kinds agree with the source.

use std::{collections::BTreeSet, fs};

use siltstone_device::header::{HEADER_BYTES, Header};

use super::tables::{cells, constant, number, repository, structures, tables, text};

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
