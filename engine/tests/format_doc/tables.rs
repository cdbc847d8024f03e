//! Reads the tables of the documents, and the structures and constants of the source.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

pub(super) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(super) fn text(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) offset: usize,
    pub(super) size: usize,
}

/// A structure as a table describes it: "**`Name`** in `path`, N bytes", then rows.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) bytes: usize,
    pub(super) fields: Vec<Field>,
}

/// All structures of the document, by file and name.
pub(super) type Tables = BTreeMap<(String, String), Table>;

/// The text between the first pair of backquotes, and what follows.
pub(super) fn quoted(line: &str) -> Option<(&str, &str)> {
    line.split_once('`')?.1.split_once('`')
}

pub(super) fn cells(row: &str) -> Vec<&str> {
    row.trim().trim_matches('|').split('|').map(str::trim).collect()
}

pub(super) fn tables() -> Tables {
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
pub(super) fn constant(source: &str, name: &str) -> Option<String> {
    let start = source.find(&format!("const {name}:"))?;
    let (declaration, _) = source[start..].split_once(';')?;
    let (_, value) = declaration.split_once('=')?;
    Some(value.split_whitespace().collect::<Vec<_>>().join(" "))
}

pub(super) fn number(source: &str, text: &str) -> Option<usize> {
    let text = text.trim();
    let plain = text.replace('_', "");
    plain.parse().ok().or_else(|| number(source, &constant(source, text)?))
}

/// The size of a field's type.
pub(super) fn size_of_type(source: &str, of: &str) -> usize {
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
pub(super) fn structures(source: &str) -> BTreeMap<String, Vec<Field>> {
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
