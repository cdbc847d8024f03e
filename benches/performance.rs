//! A whole pool against what the machine can do: `siltstone bench`, and
//! `cargo bench -p siltstone-benches --bench throughput`.
//!
//! Every figure stands beside a limit that is measured in the same run, in turns with it, several
//! times; what is reported is the median of the turns' ratios. A shared machine that is slow for a
//! while is slow for both. The data is a filesystem image of real files, or one that is given.
//!
//! - `options`: what can be asked for.
//! - `bed`: the data, files and pools; `limit`: the unavoidable work alone, as [`raw`](crate::raw) is the device's;
//!   `frame_reads`, `shared_commits`: that of both together.
//! - `ingest`, `space`, `reads`, `overwrite`, `flush`, `steady`, `memory`, `opening`, `growth`: a group
//!   of rows each, or some; `child`: processes that they need; `spread`: a device of any size.

mod bed;
mod child;
mod flush;
mod frame_reads;
mod growth;
mod ingest;
mod limit;
mod memory;
mod noise_writes;
mod opening;
mod options;
mod overwrite;
mod reads;
mod shared_commits;
mod space;
mod spread;
mod steady;

use self::bed::Bed;
pub use self::options::{Caller, Options};
use crate::{
    error::BenchError,
    report::{self, Report},
};

type Outcome<T = ()> = Result<T, BenchError>;

/// A group's name and what measures it.
type Group = (&'static str, fn(&Bed, &mut Report) -> Outcome);

const GROUPS: [Group; 12] = [
    ("ingest", ingest::data),
    ("incompressible", ingest::incompressible),
    ("space", space::stored),
    ("sequential-read", reads::sequential),
    ("random-read", reads::random),
    ("hot-read", reads::hot),
    ("overwrite", overwrite::random),
    ("flush", flush::writes),
    ("steady", steady::writes),
    ("memory", memory::resident),
    ("opening", opening::times),
    ("growth", growth::rates),
];

/// Measures what is asked for, and prints it as it comes.
///
/// # Errors
/// If there is no such group, no room or no data; or if the pool or its device fails.
pub fn run(options: &Options, caller: &Caller) -> Result<(), BenchError> {
    if let Some(work) = options.child {
        return child::run(work, options);
    }
    let only = options.only.as_deref().unwrap_or("");
    let groups: Vec<_> = GROUPS.iter().filter(|(name, _)| name.contains(only)).collect();
    if groups.is_empty() {
        let names = GROUPS.iter().map(|(name, _)| *name).collect();
        return Err(BenchError::NoGroup { given: only.into(), names });
    }
    let bed = Bed::new(options, caller)?;
    report::say(&bed);
    let mut report = Report::new(options.explain, options.svg.clone());
    for (name, measure) in groups {
        report.begin(name);
        measure(&bed, &mut report)?;
    }
    if let Some(path) = &options.json {
        report.save(path, bed.load)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;

    #[test]
    fn the_help_names_every_group() {
        let help = Options::augment_args(clap::Command::new("bench")).render_help().to_string();
        for (name, _) in GROUPS {
            assert!(help.contains(name), "{name}: {help}");
        }
    }
}
