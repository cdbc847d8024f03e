//! Rows, targets, JSON and plots.

use std::{io, path::Path, time::Instant};

use serde::Serialize;
use siltstone_engine::{Pool, SpaceParts, stat::PoolStat, stats::CounterValues};

use siltstone_benches::{
    cpu_time::cpu_seconds,
    plot::{Chart, Line},
};

use crate::{counted::Counted, load::Lane};

/// Of the first tenth's rate, what the last one should keep.
const RATE_TARGET: f64 = 0.7;
/// Bytes that the device should write at most for each that clients' data takes.
const WRITTEN_TARGET: f64 = 2.5;
/// Of the pool, what may be missing once everything is deleted.
const LEFT_TARGET: f64 = 0.01;

/// A moment at which a tenth of the run begins.
pub(crate) struct Meter {
    began: Instant,
    cpu_seconds: f64,
    counters: CounterValues,
    device: (u64, u64),
}

/// What a tenth of the run came to.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Row {
    seconds: f64,
    cpu_seconds: f64,
    /// What clients wrote.
    client_bytes: u64,
    /// What that took in write units.
    stored_bytes: u64,
    /// What the device wrote, and of that:
    device_bytes: u64,
    collector_bytes: u64,
    map_bytes: u64,
    log_bytes: u64,
    device_read_bytes: u64,
    collector_rounds: u64,
    checkpoints: u64,
    frontier_waits: u64,
    refused: u64,
    longest_ms: u64,
    free_bytes: u64,
}

impl Meter {
    pub(crate) fn start(pool: &Pool, device: &Counted) -> Self {
        Self {
            began: Instant::now(),
            cpu_seconds: cpu_seconds(),
            counters: pool.counters(),
            device: (device.written_bytes(), device.read_bytes()),
        }
    }

    pub(crate) fn stop(self, pool: &Pool, device: &Counted, lanes: &[Lane]) -> Row {
        let (now, then) = (pool.counters(), &self.counters);
        Row {
            seconds: self.began.elapsed().as_secs_f64(),
            cpu_seconds: cpu_seconds() - self.cpu_seconds,
            client_bytes: now.written_bytes - then.written_bytes,
            stored_bytes: now.unit_bytes - then.unit_bytes,
            device_bytes: device.written_bytes() - self.device.0,
            collector_bytes: now.collector_unit_bytes - then.collector_unit_bytes,
            map_bytes: now.map_page_bytes - then.map_page_bytes,
            log_bytes: now.log_data_bytes - then.log_data_bytes,
            device_read_bytes: device.read_bytes() - self.device.1,
            collector_rounds: now.collector_rounds - then.collector_rounds,
            checkpoints: now.checkpoints - then.checkpoints,
            frontier_waits: now.frontier_waits - then.frontier_waits,
            refused: lanes.iter().map(Lane::refused).sum(),
            longest_ms: lanes.iter().map(Lane::longest_ns).max().unwrap_or(0) / 1_000_000,
            free_bytes: pool.free_bytes(),
        }
    }
}

impl Row {
    fn rate(&self) -> f64 {
        self.client_bytes as f64 / self.seconds
    }

    fn cpu_rate(&self) -> f64 {
        self.client_bytes as f64 / self.cpu_seconds
    }

    /// For each byte that clients' data took.
    fn amplified(&self, bytes: u64) -> f64 {
        bytes as f64 / self.stored_bytes as f64
    }
}

/// How it ended.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct End {
    pub(crate) live_blocks: u64,
    pub(crate) logical_bytes: u64,
    /// Blocks that were not what was written last.
    pub(crate) wrong_blocks: u64,
    pub(crate) is_sound: bool,
    /// Free space of the new pool, and after everything was deleted.
    pub(crate) empty_bytes: u64,
    pub(crate) left_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) deleted_ms: u64,
}

/// Prints rows as they come and keeps them.
#[derive(Serialize)]
pub(crate) struct Report {
    /// The pool before the first overwrite.
    filled: PoolStat,
    skew: f64,
    rows: Vec<Row>,
    end: Option<End>,
}

/// Of the room for data and map, what is neither free nor garbage.
fn used_share(space: &SpaceParts) -> f64 {
    let used_bytes = space.stored_bytes + space.metadata_bytes;
    let room_bytes = used_bytes + space.garbage_bytes + space.pending_bytes + space.free_bytes;
    used_bytes as f64 / room_bytes as f64
}

impl Report {
    pub(crate) fn new(filled: PoolStat, skew: f64) -> Self {
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "filled: {} MiB of blocks in {} MiB of units and {} MiB of map; {} MiB are free, {} MiB \
             reserved; {:.0} % used, garbage not counted; Zipf {skew}",
            mib(filled.content.map_or(0, |content| content.logical_bytes)),
            mib(filled.space.stored_bytes
                + filled.space.garbage_bytes
                + filled.space.overhead_bytes),
            mib(filled.map_bytes),
            mib(filled.space.free_bytes),
            mib(filled.space.reserved_bytes),
            used_share(&filled.space) * 100.0,
        );
        println!(
            "tenth   MB/s  MB/CPUs  written/stored = units + collector +  map +  log + rest  rounds \
             ckpts  waits  refused  longest ms  free MiB"
        );
        Self { filled, skew, rows: Vec::new(), end: None }
    }

    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
        let known = row.stored_bytes + row.collector_bytes + row.map_bytes + row.log_bytes;
        println!(
            "{:>5} {:>6.1} {:>8.1} {:>15.2} {:>8.2} {:>11.2} {:>6.2} {:>6.2} {:>6.2} {:>7} {:>5} \
             {:>6} {:>8} {:>11} {:>9}",
            self.rows.len(),
            row.rate() / 1e6,
            row.cpu_rate() / 1e6,
            row.amplified(row.device_bytes),
            1.0,
            row.amplified(row.collector_bytes),
            row.amplified(row.map_bytes),
            row.amplified(row.log_bytes),
            row.amplified(row.device_bytes.saturating_sub(known)),
            row.collector_rounds,
            row.checkpoints,
            row.frontier_waits,
            row.refused,
            row.longest_ms,
            row.free_bytes >> 20,
        );
    }

    /// Prints what was reached. Whether nothing was wrong with what was stored: a figure that
    /// misses its target is told and no more.
    pub(crate) fn finish(&mut self, end: End) -> bool {
        self.end = Some(end);
        let sum = |of: fn(&Row) -> u64| self.rows.iter().map(of).sum::<u64>();
        let say = |what: &str, figure: String, is_met: bool| {
            println!("{what:56} {figure:>12}  {}", if is_met { "met" } else { "MISSED" });
        };
        let (Some(first), Some(last)) = (self.rows.first(), self.rows.last()) else { return false };
        let rate = last.rate() / first.rate();
        let cpu_rate = last.cpu_rate() / first.cpu_rate();
        let written = sum(|row| row.device_bytes) as f64 / sum(|row| row.stored_bytes) as f64;
        let refused = sum(|row| row.refused);
        let left = end.left_bytes as f64 - end.empty_bytes as f64;
        let missing = -left / end.size_bytes as f64;
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        say("last tenth's rate, of the first's, at least 70 %", percent(rate), rate >= RATE_TARGET);
        say("the same by processor time", percent(cpu_rate), cpu_rate >= RATE_TARGET);
        say(
            "written for each byte stored, below 2.5",
            format!("{written:.2}"),
            written < WRITTEN_TARGET,
        );
        say("writes refused", refused.to_string(), refused == 0);
        say(
            "missing after everything was deleted, at most 1 %",
            percent(missing),
            missing <= LEFT_TARGET,
        );
        say(
            "blocks that are not what was written last",
            end.wrong_blocks.to_string(),
            end.wrong_blocks == 0,
        );
        say("check", if end.is_sound { "sound" } else { "damaged" }.into(), end.is_sound);
        end.wrong_blocks == 0 && end.is_sound && refused == 0
    }

    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::from)?;
        std::fs::write(path, text + "\n")
    }

    pub(crate) fn draw(&self, folder: &Path) -> io::Result<()> {
        let Some(first) = self.rows.first() else { return Ok(()) };
        let ticks: Vec<String> = (1..=self.rows.len()).map(|tenth| tenth.to_string()).collect();
        let line = |name, of: &dyn Fn(&Row) -> f64| Line {
            name,
            values: self.rows.iter().map(|row| of(row) * 100.0).collect(),
        };
        let charts = [
            (
                "ageing-rate",
                "random overwrites, % of the first tenth's rate",
                vec![
                    line("by the clock", &|row| row.rate() / first.rate()),
                    line("by processor time", &|row| row.cpu_rate() / first.cpu_rate()),
                ],
            ),
            (
                "ageing-written",
                "bytes written to the device, % of those that clients' data takes",
                vec![
                    line("all", &|row| row.amplified(row.device_bytes)),
                    line("collector", &|row| row.amplified(row.collector_bytes)),
                    line("map", &|row| row.amplified(row.map_bytes)),
                ],
            ),
        ];
        for (file, title, lines) in charts {
            let chart = Chart::of_percent(title, "tenth of the run", &ticks, lines);
            std::fs::write(folder.join(file).with_extension("svg"), chart.svg())?;
        }
        Ok(())
    }
}
