//! A whole pool against what the machine can do.
//!
//! `cargo bench -p siltstone-benches --bench throughput -- [OPTIONS]`
//!
//! Every figure stands beside a limit that is measured in the same run, in turns with it, several
//! times; what is reported is the median of the turns' ratios. A shared machine that is slow for a
//! while is slow for both. The data is a filesystem image of real files, or one that is given.
//!
//! - `limit`: the unavoidable work alone; `raw`: the device alone; `bed`: the files and pools.
//! - `ingest`, `space`, `reads`, `overwrite`, `flush`: one group of rows each.
//! - `drive`: many operations at a time on a few threads; `cpu_time`; `report`: the table.
#![forbid(unsafe_code)]

mod bed;
mod cpu_time;
mod drive;
mod flush;
mod ingest;
mod limit;
mod overwrite;
mod raw;
mod reads;
mod report;
mod space;

use std::{error::Error, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

use crate::{bed::Bed, report::Report};

type Outcome = Result<(), Box<dyn Error>>;

/// Measures a pool against what the machine can do.
#[derive(Parser)]
struct Arguments {
    /// Image or other file whose first GiB is the data; by default one is built of /usr.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the pool goes, on the device to be measured; by default under the target directory.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// How long each measurement runs that is not bounded by the data.
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    seconds: f64,
    /// How often each figure and its limit are measured, in turns.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Runs only groups whose name contains this: ingest, incompressible, space, sequential-read,
    /// random-read, hot-read, overwrite, flush.
    #[arg(long)]
    only: Option<String>,
    /// Shows how long each stage of the pipeline took.
    #[arg(long)]
    explain: bool,
    /// Writes the rows to a file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text} is not a number"))?;
    if seconds > 0.0 && seconds < 3600.0 { Ok(seconds) } else { Err("from 0 to 3600".into()) }
}

/// A group's name and what measures it.
type Group = (&'static str, fn(&Bed, &mut Report) -> Outcome);

const GROUPS: [Group; 8] = [
    ("ingest", ingest::data),
    ("incompressible", ingest::incompressible),
    ("space", space::stored),
    ("sequential-read", reads::sequential),
    ("random-read", reads::random),
    ("hot-read", reads::hot),
    ("overwrite", overwrite::random),
    ("flush", flush::writes),
];

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Outcome {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("This measures for minutes: run it by cargo bench, or with --bench.");
        return Ok(());
    }
    let only = arguments.only.as_deref().unwrap_or("");
    let groups: Vec<_> = GROUPS.iter().filter(|(name, _)| name.contains(only)).collect();
    if groups.is_empty() {
        return Err(format!("no group's name contains {only:?}").into());
    }
    let seconds = Duration::from_secs_f64(arguments.seconds);
    let bed = Bed::new(&arguments.directory, arguments.data.as_deref(), seconds, arguments.rounds)?;
    println!("{bed}");
    let mut report = Report::new(arguments.explain);
    for (name, measure) in groups {
        report.begin(name);
        measure(&bed, &mut report)?;
    }
    if let Some(path) = arguments.json {
        report.save(&path, bed.load)?;
    }
    Ok(())
}
