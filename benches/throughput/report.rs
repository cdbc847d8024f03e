//! Samples, rows and the table.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;
use siltstone_engine::stats::StageTime;

use crate::cpu_time::cpu_seconds;

/// So many things done in such a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    count: u64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Sample {
    pub(crate) fn times(self, factor: u64) -> Self {
        Self { count: self.count * factor, ..self }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// A second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// A second of all processors' time.
    pub(crate) fn cpu_rate(&self) -> f64 {
        self.count as f64 / self.cpu_seconds
    }

    /// Microseconds of processor time for each.
    pub(crate) fn cpu_us_each(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.count as f64
    }
}

/// Measures time, and the processor time of this process.
pub(crate) struct Stopwatch {
    start: Instant,
    cpu_start: f64,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), cpu_start: cpu_seconds() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn stop(self, count: u64) -> Sample {
        let seconds = self.start.elapsed().as_secs_f64();
        Sample { count, seconds, cpu_seconds: cpu_seconds() - self.cpu_start }
    }
}

/// What a row's figures are counted in.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    BytesPerSecond,
    OperationsPerSecond,
    MicrosecondsEach,
    Bytes,
    Blocks,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::BytesPerSecond => format!("{:.0} MB/s", value / 1e6),
            Self::OperationsPerSecond => format!("{value:.0} /s"),
            Self::MicrosecondsEach => format!("{value:.1} us"),
            Self::Bytes => format!("{:.1} MB", value / 1e6),
            Self::Blocks => format!("{value:.0}"),
        }
    }
}

/// What is to be reached: either will do.
#[derive(Clone, Copy, Default, Serialize)]
pub(crate) struct Target {
    pub(crate) ratio: Option<f64>,
    pub(crate) value: Option<f64>,
}

impl Target {
    pub(crate) const NONE: Self = Self { ratio: None, value: None };

    pub(crate) const fn ratio(ratio: f64) -> Self {
        Self { ratio: Some(ratio), value: None }
    }

    pub(crate) const fn value(value: f64) -> Self {
        Self { ratio: None, value: Some(value) }
    }

    fn is_met(&self, row: &Row) -> Option<bool> {
        let ratio = self.ratio.map(|target| row.ratio.is_some_and(|ratio| ratio >= target));
        let value = self.value.map(|target| row.value >= target);
        ratio.into_iter().chain(value).reduce(|one, other| one || other)
    }

    fn show(&self, unit: Unit) -> String {
        let ratio = self.ratio.map(|ratio| format!("{:.0} %", ratio * 100.0));
        let value = self.value.map(|value| unit.show(value));
        ratio.into_iter().chain(value).collect::<Vec<_>>().join(" or ")
    }
}

/// A figure beside its limit: medians of all turns.
#[derive(Serialize)]
struct Row {
    group: &'static str,
    name: String,
    unit: Unit,
    value: f64,
    limit: Option<f64>,
    /// The median of the turns' ratios, which need not be that of the medians.
    ratio: Option<f64>,
    lowest_ratio: Option<f64>,
    highest_ratio: Option<f64>,
    target: Target,
    is_met: Option<bool>,
}

/// The turns of one row.
pub(crate) struct Turns {
    name: String,
    unit: Unit,
    target: Target,
    values: Vec<f64>,
    limits: Vec<f64>,
}

impl Turns {
    pub(crate) fn new(name: &str, unit: Unit, target: Target) -> Self {
        Self { name: name.into(), unit, target, values: Vec::new(), limits: Vec::new() }
    }

    /// A turn: a figure and its limit.
    pub(crate) fn add(&mut self, value: f64, limit: f64) {
        self.values.push(value);
        self.limits.push(limit);
    }

    /// A turn in processor time, which other work on the machine hardly disturbs: how much of the
    /// least that the work needs it is.
    pub(crate) fn add_cpu(&mut self, sample: &Sample, limit: &Sample) {
        self.add(sample.cpu_rate(), limit.cpu_rate());
    }

    /// A turn of a row without a limit.
    pub(crate) fn add_alone(&mut self, value: f64) {
        self.values.push(value);
    }
}

/// Prints rows as they come and keeps them.
pub(crate) struct Report {
    group: &'static str,
    rows: Vec<Row>,
    explain: bool,
}

impl Report {
    pub(crate) fn new(explain: bool) -> Self {
        println!(
            "{:36} {:>12} {:>12} {:>7} {:>15}  target",
            "", "measured", "limit", "ratio", "lowest-highest"
        );
        Self { group: "", rows: Vec::new(), explain }
    }

    pub(crate) fn begin(&mut self, group: &'static str) {
        self.group = group;
    }

    pub(crate) fn add(&mut self, turns: Turns) {
        let Turns { name, unit, target, values, limits } = turns;
        let ratios: Vec<f64> = values.iter().zip(&limits).map(|(v, limit)| v / limit).collect();
        let mut row = Row {
            group: self.group,
            name,
            unit,
            value: median(&values).unwrap_or(f64::NAN),
            limit: median(&limits),
            ratio: median(&ratios),
            lowest_ratio: ratios.iter().copied().reduce(f64::min),
            highest_ratio: ratios.iter().copied().reduce(f64::max),
            target,
            is_met: None,
        };
        row.is_met = target.is_met(&row);
        let percent =
            |ratio: Option<f64>| ratio.map_or(String::new(), |r| format!("{:.1}", r * 1e2));
        let spread = match (row.lowest_ratio, row.highest_ratio) {
            (Some(_), Some(_)) => {
                format!("{}-{}", percent(row.lowest_ratio), percent(row.highest_ratio))
            }
            _ => String::new(),
        };
        println!(
            "{:36} {:>12} {:>12} {:>7} {:>15}  {}{}",
            row.name,
            unit.show(row.value),
            row.limit.map_or(String::new(), |limit| unit.show(limit)),
            percent(row.ratio),
            spread,
            target.show(unit),
            match row.is_met {
                Some(true) => ", met",
                Some(false) => ", MISSED",
                None => "",
            },
        );
        self.rows.push(row);
    }

    /// Shows what each stage took between two moments, if that is wanted.
    pub(crate) fn explain(&self, what: &str, before: &[StageTime], after: &[StageTime], wall: f64) {
        if !self.explain {
            return;
        }
        println!("  {what}, {wall:.2} s:");
        for stage in after {
            let earlier = before.iter().find(|earlier| earlier.stage == stage.stage);
            let (runs, total_ns) =
                earlier.map_or((0, 0), |earlier| (earlier.runs, earlier.total_ns));
            let (runs, seconds) = (stage.runs - runs, (stage.total_ns - total_ns) as f64 / 1e9);
            if runs > 0 {
                println!(
                    "    {:14} {runs:>9} runs {:>10.1} us each {:>7.2} s, {:>5.1} % of one core's time",
                    stage.stage,
                    seconds * 1e6 / runs as f64,
                    seconds,
                    seconds / wall * 100.0
                );
            }
        }
    }

    /// Writes everything to a file, with the load that the machine had before.
    pub(crate) fn save(&self, path: &Path, load: f64) -> io::Result<()> {
        let all = serde_json::json!({ "load_before": load, "rows": self.rows });
        let text = serde_json::to_string_pretty(&all).map_err(io::Error::from)?;
        std::fs::write(path, text + "\n")
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}
