//! The guide's table of limits has the values of the source.

use super::{repository, text};

/// The beginning of a row, what it says, and where in the source that comes from.
const LIMITS: &[(&str, &str, &str, &str)] = &[
    ("size of a pool", "512 TiB", "engine/src/layout.rs", "MAX_POOL_BYTES: u64 = 512 << 40;"),
    ("size of a pool", "16 times", "engine/src/layout.rs", "GROWTH: u64 = 16;"),
    ("size of a volume", "1 EiB", "engine/src/config.rs", "MAX_VOLUME_BYTES: u64 = 1 << 60;"),
    ("volumes in a pool", "4096", "engine/src/catalog.rs", "MAX_VOLUMES: usize = 4096;"),
    ("snapshots in a pool", "32768", "engine/src/catalog.rs", "MAX_SNAPSHOTS: usize = 1 << 15;"),
    ("names", "255 bytes", "engine/src/config.rs", "MAX_NAME_BYTES: usize = 255;"),
    ("clones of clones", "256", "engine/src/catalog.rs", "MAX_DEPTH: usize = 256;"),
    (
        "index memory",
        "64 KiB to 1 TiB",
        "engine/src/config.rs",
        "INDEX_MEMORY_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 40;",
    ),
    (
        "log",
        "128 KiB to 4 GiB",
        "engine/src/layout.rs",
        "NVRAM_BYTES: RangeInclusive<u64> = 128 << 10..=4 << 30;",
    ),
    ("threshold", "1 to 1024 blocks", "engine/src/config.rs", "MAX_THRESHOLD: u32 = 1024;"),
    (
        "clients at a time",
        "up to 65536",
        "cli/src/args.rs",
        "range(1..=65_536))]\n    pub(crate) max_connections",
    ),
    ("clients at a time", "64", "cli/src/args.rs", "default_value_t = 64,"),
    ("commands at a time", "16", "cli/src/control/server.rs", "MAX_COMMANDS: usize = 16;"),
    ("compression levels", "-7", "engine/src/compression.rs", "LEAST_LEVEL: i8 = -7;"),
    ("compression levels", "19", "engine/src/compression.rs", "MOST_LEVEL: i8 = 19;"),
];

#[test]
fn the_guide_has_the_limits_of_the_source() {
    let guide = text("docs/operations.md");
    let (_, section) = guide.split_once("\n## Limits\n").unwrap();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    for (name, told, path, source) in LIMITS {
        let row = rows.iter().find(|row| row.starts_with(&format!("| {name}")));
        let row = row.unwrap_or_else(|| panic!("no row of {name}"));
        assert!(row.contains(told), "{row} does not say {told}");
        let code = std::fs::read_to_string(repository().join(path)).unwrap();
        assert!(code.contains(source), "{path} has no '{source}' any more: {row}");
    }
    for row in rows {
        let is_held = LIMITS.iter().any(|(name, ..)| row.starts_with(&format!("| {name}")));
        assert!(is_held, "{row} is held against nothing");
    }
}
