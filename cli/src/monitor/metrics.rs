//! The metrics, by the conventions of Prometheus: base units, totals of counters, names that say what they
//! count. `stat --json` has the same figures under the same names, as far as it has them.

use std::time::UNIX_EPOCH;

use siltstone_device::{failures, runtime};
use siltstone_engine::{ContentStat, Fullness, PoolStat, VolumeContent};
use siltstone_nbd::Operation;

use super::{
    observation::Observation,
    openmetrics::{
        Kind::{Counter, Gauge},
        Page,
    },
};

/// All metrics of one moment.
pub(super) fn page(observed: &Observation) -> String {
    let mut page = Page::default();
    server(&mut page, observed);
    requests(&mut page, observed);
    work(&mut page, &observed.stat);
    stages(&mut page, observed);
    space(&mut page, &observed.stat);
    if let (Some(content), Some((age, took))) = (&observed.stat.content, observed.content_ages) {
        contents(&mut page, content);
        page.single(
            Gauge,
            "siltstone_content_age_seconds",
            "How old what is known of the contents is: ratios, and what volumes hold.",
            age.as_secs_f64(),
        );
        page.single(
            Gauge,
            "siltstone_content_walk_seconds",
            "How long it took to find that out.",
            took.as_secs_f64(),
        );
    }
    volumes(&mut page, observed);
    occupancy(&mut page, &observed.stat);
    background(&mut page, &observed.stat);
    health(&mut page, observed);
    page.finish()
}

fn server(page: &mut Page, observed: &Observation) {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.family(Gauge, "siltstone_build_info", "The program.").sample(&version, 1u64);
    let started = observed.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    page.single(
        Gauge,
        "process_start_time_seconds",
        "When the server began, since 1970.",
        started.as_secs_f64(),
    );
    page.single(
        Counter,
        "process_cpu_seconds",
        "Time of processors that the server used.",
        runtime::processor_ns() as f64 / 1e9,
    );
    if let Some(bytes) = resident_bytes() {
        page.single(Gauge, "process_resident_memory_bytes", "Memory of the server.", bytes);
    }
    let (now, limit) = observed.connections;
    page.single(Gauge, "siltstone_connections", "NBD clients that have chosen a volume.", now);
    page.single(Gauge, "siltstone_connections_limit", "NBD clients that may be.", limit);
    let (now, pushed_out) = observed.half_open;
    page.single(
        Gauge,
        "siltstone_half_open_connections",
        "NBD connections that have not chosen a volume yet.",
        now,
    );
    page.single(
        Counter,
        "siltstone_half_open_connections_ended",
        "Those that were ended because too many others came after them.",
        pushed_out,
    );
    let mut family = page.family(
        Gauge,
        "siltstone_volume_connections",
        "NBD clients that are connected to a volume or snapshot.",
    );
    for (volume, connections) in &observed.connected {
        family.sample(&[("volume", volume)], *connections);
    }
}

/// What the process has of the machine's memory.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn requests(page: &mut Page, observed: &Observation) {
    let each = || {
        observed.traffic.iter().flat_map(|(volume, traffic)| {
            let operations = Operation::ALL.iter().zip(traffic);
            operations.map(move |(operation, traffic)| {
                ([("volume", volume.as_str()), ("operation", operation.name())], traffic)
            })
        })
    };
    page.histograms(
        "siltstone_request_duration_seconds",
        "NBD requests, from their complete receipt until their outcome is known.",
        each().map(|(labels, traffic)| (labels, &traffic.latencies)),
    );
    let help = "Bytes that NBD requests were about.";
    let mut family = page.family(Counter, "siltstone_request_bytes", help);
    for (labels, traffic) in each() {
        // A flush is about no bytes.
        if labels[1].1 != Operation::Flush.name() {
            family.sample(&labels, traffic.bytes);
        }
    }
    let mut family =
        page.family(Counter, "siltstone_request_failures", "NBD requests that failed.");
    for (labels, traffic) in each() {
        family.sample(&labels, traffic.failures);
    }
}

/// What the pool did, for whomever: clients, and commands as well.
fn work(page: &mut Page, stat: &PoolStat) {
    let counters = &stat.counters;
    for (name, help, value) in [
        ("siltstone_reads", "Reads served.", counters.reads),
        ("siltstone_read_bytes", "Bytes read.", counters.read_bytes),
        ("siltstone_writes", "Writes taken.", counters.writes),
        ("siltstone_written_bytes", "Bytes written.", counters.written_bytes),
        (
            "siltstone_merged_writes",
            "Writes that had to be merged with the rest of a block.",
            counters.merged_writes,
        ),
        ("siltstone_zeroings", "Discards and writes of zeros taken.", counters.zeroings),
        ("siltstone_flushes", "Flushes completed.", counters.flushes),
        ("siltstone_log_commits", "Flushes that went to the NVRAM log.", counters.log_commits),
        ("siltstone_log_data_bytes", "Data that went to the NVRAM log.", counters.log_data_bytes),
        ("siltstone_batches", "Batches of writes reduced.", counters.batches),
        ("siltstone_zero_blocks", "Blocks found to be zero.", counters.zero_blocks),
        (
            "siltstone_linked_blocks",
            "Duplicates: blocks linked, not stored.",
            counters.linked_blocks,
        ),
        ("siltstone_stored_blocks", "Blocks stored.", counters.stored_blocks),
        ("siltstone_plain_blocks", "Blocks stored uncompressed.", counters.plain_blocks),
        ("siltstone_frame_bytes", "Compressed bytes stored.", counters.frame_bytes),
        ("siltstone_frame_cache_hits", "Frames found in the cache.", counters.frame_cache_hits),
        ("siltstone_frame_reads", "Frames read from the device.", counters.frame_reads),
        ("siltstone_frame_read_bytes", "Bytes read for frames.", counters.frame_read_bytes),
        ("siltstone_read_ahead_frames", "Frames read ahead.", counters.read_ahead_frames),
        ("siltstone_summary_loads", "Summaries read to verify duplicates.", stat.summary_loads),
        (
            "siltstone_staging_faults",
            "Blocks that changed in memory before they were stored: bad memory.",
            counters.staging_faults,
        ),
    ] {
        page.single(Counter, name, help, value);
    }
    let written = &stat.written;
    let help = "Bytes written to the device, by what they are.";
    let mut family = page.family(Counter, "siltstone_device_written_bytes", help);
    for (part, bytes) in [
        ("data", written.unit_bytes),
        ("collector", written.collector_bytes),
        ("map", written.map_bytes),
        ("log", written.log_bytes),
        ("index_image", written.image_bytes),
        ("record", written.record_bytes),
    ] {
        family.sample(&[("part", part)], bytes);
    }
}

fn stages(page: &mut Page, observed: &Observation) {
    let stages = &observed.stat.stages;
    let mut family = page.family(
        Counter,
        "siltstone_stage_seconds",
        "Time in a stage of the pipeline, summed over all that were in it: its rate is how many are under \
         way, or wait, on average.",
    );
    for stage in stages {
        family.sample(&[("stage", stage.stage)], stage.total_ns as f64 / 1e9);
    }
    let mut family =
        page.family(Counter, "siltstone_stage_runs", "How often a stage of the pipeline ran.");
    for stage in stages {
        family.sample(&[("stage", stage.stage)], stage.runs);
    }
    let Some(explanation) = &observed.explanation else { return };
    let mut family = page.family(
        Gauge,
        "siltstone_utilisation_ratio",
        "How much of a part of the pipeline was in use in the last second.",
    );
    for (part, used) in &explanation.utilisation {
        family.sample(&[("part", &part.to_string())], *used);
    }
    let help = "What bounded the rate of writes in the last second.";
    let mut family = page.family(Gauge, "siltstone_bound", help);
    if let Some(bound) = explanation.bound {
        family.sample(&[("part", &bound.to_string())], 1u64);
    }
}

fn space(page: &mut Page, stat: &PoolStat) {
    page.single(Gauge, "siltstone_size_bytes", "The pool's size.", stat.size_bytes);
    page.single(
        Gauge,
        "siltstone_unused_bytes",
        "What the device has behind the pool's end.",
        stat.unused_bytes,
    );
    let space = &stat.space;
    let help = "Where every byte of the pool is: the classes sum to its size.";
    let mut family = page.family(Gauge, "siltstone_space_bytes", help);
    for (class, bytes) in [
        ("stored", space.stored_bytes),
        ("garbage", space.garbage_bytes),
        ("overhead", space.overhead_bytes),
        ("metadata", space.metadata_bytes),
        ("reserved", space.reserved_bytes),
        ("pending", space.pending_bytes),
        ("free", space.free_bytes),
        ("unusable", space.unusable_bytes),
    ] {
        family.sample(&[("class", class)], bytes);
    }
    page.single(
        Gauge,
        "siltstone_used_ratio",
        "The share of the room for data that is used; garbage does not count.",
        stat.used_percent as f64 / 100.0,
    );
    let mut family = page.family(Gauge, "siltstone_fullness", "1 for how full the pool is.");
    for (name, level) in [
        ("normal", Fullness::Normal),
        ("warning", Fullness::Warning),
        ("critical", Fullness::Critical),
        ("full", Fullness::Full),
    ] {
        family.sample(&[("level", name)], stat.fullness == level);
    }
}

fn contents(page: &mut Page, content: &ContentStat) {
    for (name, help, bytes) in [
        ("siltstone_provisioned_bytes", "The volumes' sizes together.", content.provisioned_bytes),
        ("siltstone_logical_bytes", "What volumes hold.", content.logical_bytes),
        ("siltstone_unique_bytes", "The same without repetitions.", content.unique_bytes),
        ("siltstone_shared_bytes", "What several volumes or snapshots hold.", content.shared_bytes),
        ("siltstone_snapshot_bytes", "What only snapshots hold.", content.snapshot_bytes),
        ("siltstone_unknown_bytes", "Of which a damaged map says nothing.", content.unknown_bytes),
    ] {
        page.single(Gauge, name, help, bytes);
    }
    for (name, help, ratio) in [
        ("siltstone_dedup_ratio", "Logical to unique.", content.dedup_ratio),
        ("siltstone_compression_ratio", "Unique to stored.", content.compression_ratio),
        ("siltstone_reduction_ratio", "Both together.", content.reduction_ratio),
        ("siltstone_thin_ratio", "Provisioned to logical.", content.thin_ratio),
        ("siltstone_total_ratio", "All of it together.", content.total_ratio),
    ] {
        page.single(Gauge, name, help, ratio);
    }
    page.single(
        Gauge,
        "siltstone_content_sampled_one_in",
        "One block in so many was looked at.",
        content.sampled_one_in,
    );
}

fn volumes(page: &mut Page, observed: &Observation) {
    let volumes = &observed.stat.volumes;
    let mut family = page.family(Gauge, "siltstone_volume_size_bytes", "A volume's size.");
    for volume in volumes {
        family.sample(&[("volume", &volume.name)], volume.size_bytes);
    }
    let mut family = page.family(Gauge, "siltstone_volume_snapshots", "A volume's snapshots.");
    for volume in volumes {
        let is_of = |name: &str| name.split_once('@').is_some_and(|(of, _)| of == volume.name);
        let count = observed.stat.snapshots.iter().filter(|snapshot| is_of(&snapshot.name)).count();
        family.sample(&[("volume", &volume.name)], count);
    }
    if observed.stat.content.is_none() {
        return;
    }
    type Part = fn(&VolumeContent) -> u64;
    let parts: [(&str, &str, Part); 4] = [
        ("siltstone_volume_logical_bytes", "What a volume holds.", |c| c.logical_bytes),
        ("siltstone_volume_exclusive_bytes", "Of that, what no other has.", |c| c.exclusive_bytes),
        ("siltstone_volume_shared_bytes", "And what others have as well.", |c| c.shared_bytes),
        (
            "siltstone_volume_unique_bytes",
            "What nothing else refers to, without repetitions: garbage if it is deleted.",
            |c| c.unique_bytes,
        ),
    ];
    for (name, help, part) in parts {
        let mut family = page.family(Gauge, name, help);
        for volume in volumes {
            if let Some(content) = &volume.content {
                family.sample(&[("volume", &volume.name)], part(content));
            }
        }
    }
}

/// What is in use, and of how much.
fn occupancy(page: &mut Page, stat: &PoolStat) {
    for (name, help, value) in [
        ("siltstone_staging_bytes", "Written data in memory.", stat.staging_bytes),
        ("siltstone_staging_limit_bytes", "The budget of that.", stat.staging_limit_bytes),
        (
            "siltstone_unit_buffers_bytes",
            "Write units that are being filled, or wait for the device.",
            stat.unit_buffers_bytes,
        ),
        (
            "siltstone_unit_buffers_limit_bytes",
            "The budget of write units.",
            stat.unit_buffers_limit_bytes,
        ),
        ("siltstone_frame_cache_bytes", "Data kept for reads.", stat.frame_cache_bytes),
        ("siltstone_frame_cache_limit_bytes", "The budget of that.", stat.frame_cache_limit_bytes),
        ("siltstone_page_cache_bytes", "Pages of the map in memory.", stat.page_cache_bytes),
        ("siltstone_page_cache_limit_bytes", "The budget of that.", stat.page_cache_limit_bytes),
        ("siltstone_index_bytes", "Memory of the dedup index.", stat.index_bytes),
        ("siltstone_index_entries", "Fingerprints in the index.", stat.index_entries),
        (
            "siltstone_index_capacity_entries",
            "Fingerprints for which the index has room.",
            stat.index_capacity_entries,
        ),
        (
            "siltstone_index_sampled_one_in",
            "The index keeps one fingerprint in so many.",
            1 << stat.index_sample_bits,
        ),
        ("siltstone_nvram_used_bytes", "The NVRAM log in use.", stat.nvram_used_bytes),
        ("siltstone_nvram_bytes", "The size of the NVRAM log.", stat.nvram_bytes),
        ("siltstone_map_entries", "Entries of the map.", stat.map_entries),
        ("siltstone_map_bytes", "Their bytes on the device.", stat.map_bytes),
        (
            "siltstone_pending_changes",
            "Changes that are taken and not in the map yet: the pipeline's queue.",
            stat.pending_changes,
        ),
    ] {
        page.single(Gauge, name, help, value);
    }
}

/// Checkpoints, garbage collection and scrubs.
fn background(page: &mut Page, stat: &PoolStat) {
    let counters = &stat.counters;
    let seconds = |ms: u64| ms as f64 / 1e3;
    page.single(
        Gauge,
        "siltstone_checkpoint_age_seconds",
        "How long ago the last checkpoint was made; a pool in which nothing changes needs none.",
        seconds(stat.checkpoint_age_ms),
    );
    page.single(
        Gauge,
        "siltstone_checkpoint_lag_seconds",
        "How long ago the first change came that no checkpoint has seen; 0 if there is none.",
        seconds(stat.checkpoint_lag_ms),
    );
    page.single(Counter, "siltstone_checkpoints", "Checkpoints made.", counters.checkpoints);
    page.single(Gauge, "siltstone_collecting", "1 while garbage is collected.", stat.is_collecting);
    for (name, help, value) in [
        ("siltstone_collector_rounds", "Rounds of garbage collection.", counters.collector_rounds),
        (
            "siltstone_collector_moved_blocks",
            "Blocks moved by it.",
            counters.collector_moved_blocks,
        ),
        (
            "siltstone_collector_linked_blocks",
            "Duplicates found by it.",
            counters.collector_linked_blocks,
        ),
        ("siltstone_freed_segments", "Segments freed.", counters.freed_segments),
        ("siltstone_mended_blocks", "Damaged blocks found elsewhere.", counters.mended_blocks),
        ("siltstone_scrubbed_bytes", "Bytes read by scrubs.", counters.scrubbed_bytes),
        ("siltstone_scrub_passes", "Scrubs that have seen everything.", counters.scrub_passes),
        ("siltstone_scrub_problems", "Problems that scrubs found.", counters.scrub_problems),
    ] {
        page.single(Counter, name, help, value);
    }
    page.single(Gauge, "siltstone_scrubbing", "1 while a scrub reads.", stat.scrub.is_some());
    if let Some(scrub) = &stat.scrub {
        page.single(Gauge, "siltstone_scrub_read_bytes", "What this scrub has read.", scrub.bytes);
        page.single(Gauge, "siltstone_scrub_all_bytes", "What it has to read.", scrub.bytes_total);
    }
    if let Some(last) = &stat.last_scrub {
        page.single(
            Gauge,
            "siltstone_last_scrub_age_seconds",
            "How long ago the last scrub ended that has seen everything.",
            last.finished_seconds_ago as f64,
        );
        page.single(Gauge, "siltstone_last_scrub_problems", "What it found.", last.problems);
        page.single(Gauge, "siltstone_last_scrub_lost_bytes", "What is lost.", last.lost_bytes);
    }
}

fn health(page: &mut Page, observed: &Observation) {
    let stat = &observed.stat;
    let help = "Operations that a device of the server has refused.";
    let mut family = page.family(Counter, "siltstone_device_errors", help);
    let failures = failures();
    for (operation, count) in [
        ("read", failures.reads),
        ("write", failures.writes),
        ("flush", failures.flushes),
        ("discard", failures.discards),
    ] {
        family.sample(&[("operation", operation)], count);
    }
    page.single(
        Gauge,
        "siltstone_failed",
        "1 once the pool takes no changes any more because of a failure.",
        stat.failure.is_some(),
    );
    page.single(
        Gauge,
        "siltstone_damaged_segments",
        "Segments in which damage was found.",
        stat.damaged_segments,
    );
    let (warnings, errors) = observed.logged;
    let mut family = page.family(Counter, "siltstone_logged", "Warnings and errors in the log.");
    family.sample(&[("level", "warn")], warnings);
    family.sample(&[("level", "error")], errors);
}
