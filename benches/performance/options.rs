//! What can be asked for on the command line, by `siltstone bench` and by `cargo bench` alike.

use std::path::PathBuf;

use clap::Args;
use siltstone_device::size;

use super::child::Work;

/// What is measured, where, and how long.
#[derive(Debug, Args)]
pub struct Options {
    /// Where the pool goes, on the device to be measured [default: the current directory].
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// An image or another file that is the data [default: a file system image of this system's files].
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// How much of the data is used; the files take ten times that
    /// [default: 1G, or what the free space and the memory allow].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub size: Option<u64>,
    /// Measure only groups whose name contains this: ingest, incompressible, space, sequential-read,
    /// random-read, hot-read, overwrite, flush, steady, memory, opening, growth.
    #[arg(long, value_name = "GROUP")]
    pub only: Option<String>,
    /// How long each measurement runs that is not bounded by the data.
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    pub seconds: f64,
    /// How often each figure and its limit are measured, in turns.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How long steady writes are watched for dips, in seconds, each kind of them.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = positive)]
    pub steady_seconds: f64,
    /// Say for everything that writes what bounds its rate, what the rate would be without that, and
    /// how long each stage of the pipeline took.
    #[arg(long)]
    pub explain: bool,
    /// Write everything that was measured to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw what was watched over time into this directory, as SVG.
    #[arg(long, value_name = "DIR")]
    pub svg: Option<PathBuf>,
    /// This process is one that a bench has started for this work.
    #[arg(long, hide = true, value_enum)]
    pub(super) child: Option<Work>,
}

/// What the two commands differ in.
pub struct Caller {
    /// What this program is given before its options to do the same.
    pub arguments: &'static [&'static str],
    /// The directory if none is given.
    pub directory: PathBuf,
    /// Whether an image that was built stays in the directory for the next time.
    pub keeps_image: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text} is not a number"))?;
    if seconds > 0.0 && seconds <= 3600.0 { Ok(seconds) } else { Err("up to 3600".into()) }
}
