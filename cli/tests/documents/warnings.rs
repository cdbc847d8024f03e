//! The guide's tables of warnings name every warning and error that the source can log, and no other.

use std::{collections::BTreeSet, fs, path::Path};

use super::{repository, text};

const MACROS: [&str; 2] = ["tracing::warn!(", "tracing::error!("];
/// The crates that are in a server.
const CRATES: [&str; 7] = ["cli", "cursor", "dedup", "device", "engine", "nbd", "nvram"];

/// The messages below a folder, each up to what changes in it.
fn messages(path: &Path, found: &mut BTreeSet<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            messages(&entry.unwrap().path(), found);
        }
        return;
    }
    let source = fs::read_to_string(path).unwrap();
    let source = source.split("#[cfg(test)]").next().unwrap();
    for (at, name) in MACROS.iter().flat_map(|name| source.match_indices(name)) {
        let message = message(&source[at + name.len()..]);
        found.insert(message.unwrap_or_else(|| panic!("{}: no message", path.display())));
    }
}

/// The last text in the arguments of a macro, up to its first placeholder.
fn message(arguments: &str) -> Option<String> {
    let (mut depth, mut literal, mut last) = (1, None::<String>, None);
    let mut characters = arguments.chars();
    while let Some(c) = characters.next() {
        match (&mut literal, c) {
            (Some(text), '\\') => match characters.next()? {
                // A line that goes on.
                '\n' => text.push('\n'),
                c => text.push(c),
            },
            (Some(_), '"') => last = literal.take(),
            (Some(text), c) => text.push(c),
            (None, '"') => literal = Some(String::new()),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, _) => {}
        }
        if depth == 0 {
            break;
        }
    }
    let words = last?.split('{').next()?.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(words)
}

/// What stands between backquotes in the first cells of the guide's tables of messages.
fn told() -> Vec<String> {
    let guide = text("docs/operations.md");
    let (_, section) = guide.split_once("\n## Warnings\n").unwrap();
    let (section, _) = section.split_once("\nAnd in `stat`").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

#[test]
fn the_guide_explains_every_warning_that_the_source_has() {
    let mut messages_found = BTreeSet::new();
    for name in CRATES {
        messages(&repository().join(name).join("src"), &mut messages_found);
    }
    assert!(messages_found.len() > 40, "{messages_found:#?}");
    let told = told();
    // The longest that fits counts: some begin with another.
    let row_of = |message: &str| {
        told.iter().filter(|row| message.starts_with(row.as_str())).max_by_key(|row| row.len())
    };
    let missing: Vec<&String> =
        messages_found.iter().filter(|message| row_of(message).is_none()).collect();
    assert!(missing.is_empty(), "not in docs/operations.md: {missing:#?}");
    let used: BTreeSet<&String> =
        messages_found.iter().filter_map(|message| row_of(message)).collect();
    let stale: Vec<&String> = told.iter().filter(|row| !used.contains(row)).collect();
    assert!(stale.is_empty(), "in docs/operations.md, and no warning: {stale:#?}");
}

#[test]
fn a_message_is_the_last_text_of_its_macro() {
    assert_eq!(message("error = \"a (b\", \"c \\\n   d {e} f\");"), Some("c d".into()));
    assert_eq!(message("%error, f(\"x\"), \"y\")"), Some("y".into()));
}
