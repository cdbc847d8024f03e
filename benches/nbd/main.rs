//! The NBD server against the library and against qemu-nbd.
//!
//! `cargo bench -p siltstone-benches --bench nbd -- [OPTIONS]`
//!
//! The servers run in processes of their own, on unix sockets; the client is the same for both.
//! Every figure stands beside its limit, measured in turns with it; what is reported is the median
//! of the turns' ratios.
//!
//! - `client`, `crowd`: the clients; `servers`: the servers; `bed`: the pool and the raw file.
//! - `sequential`, `random`, `many`, `tls`: one group of rows each.
#![forbid(unsafe_code)]

mod bed;
mod client;
mod crowd;
mod many;
#[path = "../../nbd/tests/common/pki.rs"]
mod pki;
mod random;
mod sequential;
mod servers;
mod tls;

use std::{error::Error, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use siltstone_benches::{cpu_time, program, report::Report};

use crate::bed::Bed;

type Outcome = Result<(), Box<dyn Error>>;

/// Measures the NBD server against the library and against qemu-nbd.
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
    /// Runs only groups whose name contains this: hot, cold, sequential-read, sequential-write,
    /// idle, active, tls-read, tls-write, tls-idle.
    #[arg(long)]
    only: Option<String>,
    /// Connections that do nothing.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    idle: u32,
    /// Connections that all do something.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    active: u32,
    /// Siltstone's program; by default it is built.
    #[arg(long)]
    program: Option<PathBuf>,
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

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A group's name and what measures it.
type Group<'a> = (&'static str, &'a dyn Fn(&Bed, &mut Report) -> Outcome);

fn measure() -> Outcome {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("This measures for minutes: run it by cargo bench, or with --bench.");
        return Ok(());
    }
    let (idle, active) = (arguments.idle as usize, arguments.active as usize);
    // Writes come last: they replace the pool that the others read.
    let groups: [Group<'_>; 9] = [
        ("hot", &random::hot),
        ("cold", &random::cold),
        ("sequential-read", &sequential::read),
        ("tls-read", &tls::read),
        ("idle", &|bed, report| many::idle(bed, report, idle)),
        ("tls-idle", &|bed, report| tls::idle(bed, report, idle)),
        ("active", &|bed, report| many::active(bed, report, active)),
        ("sequential-write", &sequential::write),
        ("tls-write", &tls::write),
    ];
    let only = arguments.only.as_deref().unwrap_or("");
    let groups: Vec<_> = groups.into_iter().filter(|(name, _)| name.contains(only)).collect();
    if groups.is_empty() {
        return Err(format!("no group's name contains {only:?}").into());
    }
    let seconds = Duration::from_secs_f64(arguments.seconds);
    let load = cpu_time::load_average();
    let program = match arguments.program {
        Some(program) => program,
        None => program::build()?,
    };
    let (directory, data) = (&arguments.directory, arguments.data.as_deref());
    let bed = Bed::new(directory, data, program, seconds, arguments.rounds)?;
    println!("data: {} MiB; {} cores; load {load:.1}", bed.data.len() >> 20, bed.cores);
    let mut report = Report::new(false, None);
    for (name, measure) in groups {
        report.begin(name);
        measure(&bed, &mut report)?;
    }
    if let Some(path) = arguments.json {
        report.save(&path, load)?;
    }
    Ok(())
}
