//! `siltstone torture`: simulated pools here, real ones in `kill`, damaged
//! ones in `damage`.

mod damage;
mod kill;

use std::{fmt::Write, num::NonZero, thread, time::Duration};

use serde::Serialize;
use siltstone_torture::{
    campaign::{self, Outcome, Plan},
    host::Host,
    tally::Counts,
};

use crate::{
    args::TortureArguments,
    errors::CliError,
    output::{print, print_json},
    progress,
};

pub(crate) fn run(arguments: &TortureArguments) -> Result<(), CliError> {
    if arguments.kill {
        return kill::run(arguments);
    }
    if arguments.damage {
        return damage::run(arguments);
    }
    let plan = Plan {
        first_seed: arguments.seed.unwrap_or(arguments.first_seed),
        only_first: arguments.seed.is_some(),
        host: if arguments.threads { Host::Threads } else { Host::Machine },
        only_cut: arguments.cut,
        time: Duration::from_secs(arguments.seconds),
        jobs: if arguments.seed.is_some() { 1 } else { jobs(arguments) },
    };
    let counter = progress::text();
    let outcome = campaign::run(&plan, |counts, elapsed| {
        counter.set_message(summary(&counts, elapsed));
        counter.tick();
    });
    counter.finish_and_clear();
    if arguments.json {
        print_json(&Report::new(&outcome))?;
    } else {
        let mut text = String::new();
        for failure in &outcome.failures {
            let cut = failure.cut.map_or_else(String::new, |cut| format!(" --cut {cut}"));
            let _ = writeln!(text, "VIOLATION: {failure}");
            let threads = if arguments.threads { " --threads" } else { "" };
            let seed = failure.seed;
            let _ = writeln!(text, "repeat: siltstone torture{threads} --seed {seed}{cut}");
        }
        for (kind, count) in &outcome.counts.faults {
            let _ = writeln!(text, "{count:8} {kind}");
        }
        text += &summary(&outcome.counts, outcome.elapsed);
        let _ = writeln!(text, ", {} violations", outcome.failures.len());
        print(&text)?;
    }
    match outcome.failures.len() {
        0 => Ok(()),
        violations => Err(CliError::PromiseBroken { violations }),
    }
}

/// As many as are wanted, or one a core.
fn jobs(arguments: &TortureArguments) -> usize {
    let cores = || thread::available_parallelism().map_or(1, NonZero::get);
    arguments.jobs.unwrap_or_else(cores)
}

fn summary(counts: &Counts, elapsed: Duration) -> String {
    format!(
        "{} histories, {} operations ({} flushes, {} refused), {} power cuts, {} recoveries, {} \
         checks, {} blocks compared, {} faults, {} of damage reported in {:.1} s",
        counts.histories,
        counts.operations,
        counts.flushes,
        counts.refused,
        counts.cuts,
        counts.recoveries,
        counts.checks,
        counts.blocks,
        counts.faults.values().sum::<u64>(),
        counts.reported,
        elapsed.as_secs_f64()
    )
}

/// The outcome for scripts.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    counts: Counts,
    seconds: f64,
    violations: Vec<Violation>,
}

#[derive(Serialize)]
struct Violation {
    seed: u64,
    cut: Option<usize>,
    reason: String,
}

impl Report {
    fn new(outcome: &Outcome) -> Self {
        let violation = |failure: &siltstone_torture::history::Failure| Violation {
            seed: failure.seed,
            cut: failure.cut,
            reason: failure.to_string(),
        };
        Self {
            counts: outcome.counts.clone(),
            seconds: outcome.elapsed.as_secs_f64(),
            violations: outcome.failures.iter().map(violation).collect(),
        }
    }
}
