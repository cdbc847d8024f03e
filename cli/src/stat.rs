//! `siltstone stat`.

use std::time::Duration;

use siltstone_device::BLOCK_BYTES;
use siltstone_engine::{ContentStat, Fullness, Pool, PoolStat, VolumeContent};

use crate::{
    args::pool::{PoolArgument, StatArguments},
    errors::CliError,
    on_pool::{Access, PoolOperation},
    output::table,
    plural::count,
    session::{Session, print_json},
    size::human,
    waiting,
};

impl PoolOperation for StatArguments {
    fn pool(&self) -> &PoolArgument {
        &self.pool
    }

    fn access(&self) -> Access {
        if self.quick {
            return Access::Read;
        }
        // Its fill and sampling shall be those that a server would have.
        Access::ReadWarm
    }

    fn execute(&self, pool: &Pool, session: &mut dyn Session) -> Result<(), CliError> {
        let stat = if self.quick {
            pool.quick_stat()
        } else {
            let cancellation = session.cancellation();
            waiting::unless_cancelled(pool.stat_async(), &cancellation, Duration::ZERO)?
        };
        if self.json { print_json(session, &stat) } else { session.print(&tables(&stat)) }
    }
}

fn row(name: &str, value: String, note: impl Into<String>) -> Vec<String> {
    vec![name.into(), value, note.into()]
}

fn tables(stat: &PoolStat) -> String {
    let mut rows = space(stat);
    rows.extend(stat.content.as_ref().map(content).into_iter().flatten());
    rows.extend(written(stat));
    rows.extend(state(stat));
    let mut notes = String::new();
    if stat.unused_bytes > 0 {
        let unused = human(stat.unused_bytes);
        notes += &format!("note: the device has {unused} behind the pool's end: see grow\n");
    }
    for repair in &stat.repairs {
        notes += &format!("note: {repair}\n");
    }
    if let Some(failure) = &stat.failure {
        notes += &format!("failure: {failure}\n");
    }
    table(&rows) + &notes + "\n" + &table(&volumes(stat))
}

/// Where every byte is: what follows the size sums to it.
fn space(stat: &PoolStat) -> Vec<Vec<String>> {
    let space = &stat.space;
    let used = format!("{} % used, {}", stat.used_percent, told(stat.fullness));
    let least = if stat.content.is_none() { "at least; " } else { "" };
    vec![
        row("size", human(stat.size_bytes), used),
        row("  stored", human(space.stored_bytes), "data that volumes refer to"),
        row(
            "  garbage",
            human(space.garbage_bytes),
            format!("{least}what collection can get back"),
        ),
        row("  overhead", human(space.overhead_bytes), "left empty in segments in use"),
        row(
            "  metadata",
            human(space.metadata_bytes),
            "map, index image, log, checkpoints, tables",
        ),
        row(
            "  reserved",
            human(space.reserved_bytes),
            "for trims, deletes and collection when full",
        ),
        row("  pending", human(space.pending_bytes), "promised to writes under way"),
        row("  free", human(space.free_bytes), "before reduction"),
        row("  unusable", human(space.unusable_bytes), "behind the last whole segment"),
    ]
}

fn told(fullness: Fullness) -> &'static str {
    match fullness {
        Fullness::Normal => "normal",
        Fullness::Warning => "filling up",
        Fullness::Critical => "almost full",
        Fullness::Full => "full: writes are refused",
    }
}

fn content(content: &ContentStat) -> Vec<Vec<String>> {
    let compression = format!("compression {}", ratio(content.compression_ratio));
    let provisioned = format!("mapped, of {} provisioned", human(content.provisioned_bytes));
    let unknown = match content.unknown_bytes {
        0 => String::new(),
        bytes => format!("; of {} a damaged map says nothing", human(bytes)),
    };
    let sampled = match content.sampled_one_in {
        1 => String::new(),
        one_in => format!("; estimated from one block in {one_in}"),
    };
    let thin = format!("thin provisioning {} apart", ratio(content.thin_ratio));
    vec![
        row("logical", human(content.logical_bytes), provisioned + &unknown),
        row(
            "unique",
            human(content.unique_bytes),
            format!("without repetitions; {} shared{sampled}", human(content.shared_bytes)),
        ),
        row("snapshots", human(content.snapshot_bytes), "that nothing else holds"),
        row(
            "reduction",
            ratio(content.reduction_ratio),
            format!("dedup {}, {compression}; {thin}", ratio(content.dedup_ratio)),
        ),
    ]
}

/// What was written since the pool was opened.
fn written(stat: &PoolStat) -> Vec<Vec<String>> {
    let (written, counters) = (&stat.written, &stat.counters);
    let zeros = format!("since the pool was opened; {} of it zeros", human(written.zero_bytes));
    let amplification = match written.amplification {
        Some(times) => format!("{times:.2} times as much"),
        None => "nothing received yet".into(),
    };
    let parts = format!(
        "data {}, collector {}, map {}, log {}, index images {}, records {}",
        human(written.unit_bytes),
        human(written.collector_bytes),
        human(written.map_bytes),
        human(written.log_bytes),
        human(written.image_bytes),
        human(written.record_bytes)
    );
    let collected = format!(
        "moved, {} found stored elsewhere; {} freed in {}",
        count(counters.collector_linked_blocks, "block"),
        count(counters.freed_segments, "segment"),
        count(counters.collector_rounds, "round")
    );
    let moved = human(counters.collector_moved_blocks.saturating_mul(BLOCK_BYTES as u64));
    vec![
        row("received", human(written.received_bytes), zeros),
        row("written", human(written.device_bytes), format!("{amplification}: {parts}")),
        row("collected", moved, collected),
    ]
}

fn state(stat: &PoolStat) -> Vec<Vec<String>> {
    let full = 100 * stat.index_entries / stat.index_capacity_entries.max(1);
    let one_in = 1u64 << stat.index_sample_bits;
    let kept = if one_in == 1 { "all".into() } else { format!("one in {one_in}") };
    let image = human(stat.index_image_bytes);
    let index =
        format!("of memory, {full} % full, keeps {kept} of the fingerprints; image of {image}");
    let last_scrub = match &stat.last_scrub {
        Some(last) => format!("{} s ago", last.finished_seconds_ago),
        None => "none".into(),
    };
    let found = match &stat.last_scrub {
        Some(last) if last.problems > 0 => {
            let lost = count(last.lost_ranges, "lost range");
            format!("found {} and {lost}: see the log, or check", count(last.problems, "problem"))
        }
        Some(_) => "found nothing wrong".into(),
        None => "since the pool was opened".into(),
    };
    let mut rows = vec![
        row("index", human(stat.index_bytes), index),
        row("NVRAM log", human(stat.nvram_used_bytes), "in use"),
        row("last scrub", last_scrub, found),
    ];
    if stat.damaged_segments > 0 {
        let damaged = count(stat.damaged_segments, "segment");
        rows.push(row("damaged", damaged, "nothing new is linked to what is there: see repair"));
    }
    rows
}

fn volumes(stat: &PoolStat) -> Vec<Vec<String>> {
    let head = ["VOLUME", "SIZE", "LEVELS"].map(String::from);
    let of_content = ["LOGICAL", "EXCLUSIVE", "SHARED", "UNIQUE"].map(String::from);
    let mut rows = vec![head.to_vec()];
    if stat.content.is_some() {
        rows[0].extend(of_content);
    }
    for volume in stat.volumes.iter().chain(&stat.snapshots) {
        let mut row = vec![
            volume.name.clone(),
            human(volume.size_bytes),
            volume.compression.levels.to_string(),
        ];
        if let Some(content) = &volume.content {
            let VolumeContent {
                logical_bytes, exclusive_bytes, shared_bytes, unique_bytes, ..
            } = content;
            let figures = [logical_bytes, exclusive_bytes, shared_bytes, unique_bytes];
            row.extend(figures.map(|bytes| human(*bytes)));
        }
        rows.push(row);
    }
    rows
}

fn ratio(ratio: f64) -> String {
    format!("{ratio:.2}:1")
}
