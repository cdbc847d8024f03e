//! Rows, the table that they are printed as, and what goes into the JSON file.

use std::{
    fmt::Display,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use siltstone_engine::{Activity, Explanation};

use crate::{
    error::BenchError,
    sample::{Sample, median},
    series::Series,
};

/// What a row's figures are counted in.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// MB/s.
    BytesPerSecond,
    /// So many a second.
    OperationsPerSecond,
    /// Microseconds for each.
    MicrosecondsEach,
    /// Milliseconds.
    Milliseconds,
    /// MB.
    Bytes,
    /// So many blocks.
    Blocks,
    /// Per cent.
    Share,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::BytesPerSecond => format!("{:.0} MB/s", value / 1e6),
            Self::OperationsPerSecond => format!("{value:.0} /s"),
            Self::MicrosecondsEach => format!("{value:.1} us"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Bytes => format!("{:.1} MB", value / 1e6),
            Self::Blocks => format!("{value:.0}"),
            Self::Share => format!("{:.1} %", value * 100.0),
        }
    }
}

/// What is to be reached: either will do.
#[derive(Clone, Copy, Default, Serialize)]
pub struct Target {
    ratio: Option<f64>,
    value: Option<f64>,
    /// These are the most that it may be, not the least.
    is_at_most: bool,
}

impl Target {
    /// Nothing is to be reached.
    pub const NONE: Self = Self { ratio: None, value: None, is_at_most: false };

    /// So much of the limit.
    #[must_use]
    pub const fn ratio(ratio: f64) -> Self {
        Self { ratio: Some(ratio), ..Self::NONE }
    }

    /// So much.
    #[must_use]
    pub const fn value(value: f64) -> Self {
        Self { value: Some(value), ..Self::NONE }
    }

    /// Or so much.
    #[must_use]
    pub const fn or_value(self, value: f64) -> Self {
        Self { value: Some(value), ..self }
    }

    /// No more than that.
    #[must_use]
    pub const fn at_most(self) -> Self {
        Self { is_at_most: true, ..self }
    }

    fn is_met(&self, row: &Row) -> Option<bool> {
        let meets = |figure: f64, target: f64| match self.is_at_most {
            true => figure <= target,
            false => figure >= target,
        };
        let ratio = self.ratio.map(|target| row.ratio.is_some_and(|ratio| meets(ratio, target)));
        let value = self.value.map(|target| meets(row.value, target));
        ratio.into_iter().chain(value).reduce(|one, other| one || other)
    }

    fn show(&self, unit: Unit) -> String {
        let ratio = self.ratio.map(|ratio| format!("{:.0} %", ratio * 100.0));
        let value = self.value.map(|value| unit.show(value));
        let either = ratio.into_iter().chain(value).collect::<Vec<_>>().join(" or ");
        if self.is_at_most { format!("at most {either}") } else { either }
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
pub struct Turns {
    name: String,
    unit: Unit,
    target: Target,
    values: Vec<f64>,
    limits: Vec<f64>,
}

impl Turns {
    /// None yet.
    #[must_use]
    pub fn new(name: &str, unit: Unit, target: Target) -> Self {
        Self { name: name.into(), unit, target, values: Vec::new(), limits: Vec::new() }
    }

    /// A turn: a figure and its limit.
    pub fn add(&mut self, value: f64, limit: f64) {
        self.values.push(value);
        self.limits.push(limit);
    }

    /// A turn in processor time, which other work on the machine hardly disturbs: how much of the
    /// least that the work needs it is.
    pub fn add_cpu(&mut self, sample: &Sample, limit: &Sample) {
        self.add(sample.cpu_rate(), limit.cpu_rate());
    }

    /// A turn of a row without a limit.
    pub fn add_alone(&mut self, value: f64) {
        self.values.push(value);
    }
}

/// What bounded the writes of a row while it was measured.
#[derive(Serialize)]
struct Explained {
    group: &'static str,
    name: String,
    #[serde(flatten)]
    explanation: Explanation,
}

/// Prints rows as they come and keeps them.
pub struct Report {
    group: &'static str,
    rows: Vec<Row>,
    explained: Vec<Explained>,
    series: Vec<Series>,
    explain: bool,
    /// Where series are drawn.
    svg: Option<PathBuf>,
}

impl Report {
    /// Prints the head of the table. Stages are shown if `explain`; series are drawn if there is a directory for
    /// them.
    #[must_use]
    pub fn new(explain: bool, svg: Option<PathBuf>) -> Self {
        say(format_args!(
            "{:36} {:>12} {:>12} {:>7} {:>15}  target",
            "", "measured", "limit", "ratio", "lowest-highest"
        ));
        Self {
            group: "",
            rows: Vec::new(),
            explained: Vec::new(),
            series: Vec::new(),
            explain,
            svg,
        }
    }

    /// The rows from now on are of this group.
    pub fn begin(&mut self, group: &'static str) {
        self.group = group;
    }

    /// A row: the medians of its turns.
    pub fn add(&mut self, turns: Turns) {
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
        say(format_args!(
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
        ));
        self.rows.push(row);
    }

    /// Keeps what bounded the writes between two moments, and shows it and what each stage took, if that
    /// is wanted.
    pub fn explain(&mut self, what: &str, before: &Activity, after: &Activity) {
        let explanation = after.since(before);
        if self.explain {
            let without = match explanation.without_in_words() {
                unknown if unknown.is_empty() => unknown,
                without => format!("; without that {without}"),
            };
            let bound = explanation.bound_in_words();
            say(format_args!("  {what}, {:.2} s: bound by {bound}{without}", explanation.seconds));
            for stage in explanation.stages.iter().filter(|stage| stage.runs_per_second > 0.0) {
                say(format_args!("    {stage}"));
            }
        }
        self.explained.push(Explained { group: self.group, name: what.into(), explanation });
    }

    /// Keeps a series, and draws it beside the unavoidable work alone, if that is wanted.
    ///
    /// # Errors
    /// If the chart cannot be written.
    pub(crate) fn add_series(
        &mut self,
        file: &str,
        series: Series,
        alone: &Series,
    ) -> Result<(), BenchError> {
        if let Some(directory) = &self.svg {
            std::fs::create_dir_all(directory).map_err(BenchError::file(directory))?;
            series.draw(&directory.join(file).with_extension("svg"), alone)?;
        }
        self.series.push(series);
        Ok(())
    }

    /// Writes everything to a file, with the load that the machine had before.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path, load: f64) -> Result<(), BenchError> {
        let all = serde_json::json!({
            "load_before": load,
            "rows": self.rows,
            "explained": self.explained,
            "series": self.series,
        });
        let text = serde_json::to_string_pretty(&all).map_err(io::Error::from);
        let written = text.and_then(|text| std::fs::write(path, text + "\n"));
        written.map_err(BenchError::file(path))
    }
}

/// Prints a line. A reader that has left has seen what it wanted; the measurement goes on.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
