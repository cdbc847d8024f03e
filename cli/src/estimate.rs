//! `siltstone estimate`.

mod source;

use std::path::PathBuf;

use siltstone_engine::{EstimateOptions, EstimateProgress, EstimateReport, estimate};

use self::source::{Found, Source};
use crate::{
    args::EstimateArguments,
    errors::CliError,
    output::{print, table, to_json},
    progress,
    size::{human, per_second},
};

pub(crate) fn run(arguments: &EstimateArguments) -> Result<(), CliError> {
    let default = EstimateOptions::default();
    let options = EstimateOptions {
        memory_bytes: arguments.memory.memory_bytes(),
        threshold: arguments.threshold.unwrap_or(default.threshold),
        level: arguments.level.unwrap_or(default.level),
        compress_one_in: if arguments.all { 1 } else { default.compress_one_in },
        ..default
    };
    // An estimate of nothing looks at the options, which is done before anything takes long.
    estimate(&[], &options, &|_| {})?;
    let files = arguments.files.iter();
    let found = files.map(|path| Found::at(path, &arguments.image));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let sources = found.into_iter().map(Found::source).collect::<Result<Vec<Source>, _>>()?;
    let paths: Vec<PathBuf> = sources.iter().map(|source| source.path.clone()).collect();
    let bar = progress::bytes(Some(0));
    let report = estimate(&paths, &options, &|progress: EstimateProgress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.bytes);
    });
    bar.finish_and_clear();
    let mut report = report?;
    for (estimated, path) in report.files.iter_mut().zip(&arguments.files) {
        estimated.path.clone_from(path);
    }
    print(&if arguments.json { to_json(&report)? } else { tables(&report) })
}

fn tables(report: &EstimateReport) -> String {
    let head = ["FILE", "SIZE", "ZERO", "UNIQUE", "SHARED", "REPEATED", "UNIQUE STORED"];
    let mut files = vec![head.map(String::from).to_vec()];
    for file in &report.files {
        let sizes = [
            file.logical_bytes,
            file.zero_bytes,
            file.unique_bytes,
            file.shared_bytes,
            file.repeated_bytes,
            file.unique_stored_bytes,
        ];
        let path = file.path.display().to_string();
        files.push(std::iter::once(path).chain(sizes.map(human)).collect());
    }

    let row = |name: &str, value: String, note: String| vec![name.into(), value, note];
    let ratio = |ratio: f64| format!("{ratio:.2}:1");
    let errors = &report.errors;
    let within = |error: f64| match error {
        0.0 => String::new(),
        error => format!(", within {:.1} %", error * 100.0),
    };
    let thin = ratio(report.thin_ratio);
    let dedup = format!("dedup {}", ratio(report.dedup_ratio));
    let compression = format!("compression {}", ratio(report.compression_ratio));
    let parts = format!("{dedup}, {compression}{}", within(errors.total));
    let total = ratio(report.total_ratio);
    let product = format!("thin provisioning {thin} apart, and {total} with it");
    let sums = [
        row("logical", human(report.logical_bytes), "all of the files".into()),
        row("zero", human(report.zero_bytes), "holes and blocks of zeros: not stored".into()),
        row("data", human(report.data_bytes), "the rest".into()),
        row("unique", human(report.unique_bytes), dedup + &within(errors.dedup)),
        row("stored", human(report.stored_bytes), compression + &within(errors.compression)),
        row("reduction", ratio(report.reduction_ratio), format!("{parts}; {product}")),
    ];

    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let head = ["DUPLICATE RUNS OF", "BYTES", "SHARE", "RUNS"];
    let mut runs = vec![head.map(String::from).to_vec()];
    for class in &report.runs {
        let blocks = match class.min_blocks {
            1 => "1 block".into(),
            256 => "256 blocks".into(),
            least => format!("{least} to {} blocks", 2 * least - 1),
        };
        runs.push(vec![blocks, human(class.bytes), percent(class.share), class.runs.to_string()]);
    }
    let head = ["THRESHOLD", "KEEPS", "DEDUP"];
    let mut thresholds = vec![head.map(String::from).to_vec()];
    for line in &report.thresholds {
        let dedup = format!("{:.2}:1", line.dedup_ratio);
        thresholds.push(vec![line.threshold.to_string(), percent(line.kept_share), dedup]);
    }
    [table(&files), table(&sums), table(&runs), table(&thresholds), basis(report)].join("\n")
}

/// What the figures rest on.
fn basis(report: &EstimateReport) -> String {
    let sample = &report.sample;
    let fingerprints = match sample.fingerprints_one_in {
        1 => "every block counted".into(),
        one_in => format!(
            "one fingerprint in {one_in} kept for lack of memory (--memory), runs and frames from \
             {} windows of 1 MiB at random",
            sample.windows
        ),
    };
    let seconds = report.elapsed_ms as f64 / 1e3;
    format!(
        "{fingerprints}; {} compressed; level {}, threshold {}; {:.1} s ({})\n",
        human(sample.compressed_bytes),
        report.level,
        report.threshold,
        seconds,
        per_second(report.data_bytes, seconds)
    )
}
