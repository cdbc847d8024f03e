//! `siltstone torture` by itself: simulated pools whose power is cut.

use std::{fmt::Write, time::Duration};

use siltstone_torture::{
    campaign::{self, Plan},
    history::Failure,
    host::Host,
    tally::Counts,
};

use super::{
    Watch,
    ending::{Ending, Violation},
    jobs,
};
use crate::{args::torture::TortureArguments, errors::CliError, plural::count};

pub(super) fn run(arguments: &TortureArguments) -> Result<(), CliError> {
    let simulated = &arguments.simulated;
    let plan = Plan {
        first_seed: arguments.seed.unwrap_or(simulated.first_seed),
        only_first: arguments.seed.is_some(),
        host: if simulated.threads { Host::Threads } else { Host::Machine },
        only_cut: simulated.cut,
        time: Duration::from_secs(arguments.seconds()),
        jobs: if arguments.seed.is_some() { 1 } else { jobs(arguments) },
    };
    let watch = Watch::start()?;
    let outcome = campaign::run(&plan, |counts, elapsed| {
        watch.show(|| format!("{} in {:.1} s", summary(&counts), elapsed.as_secs_f64()))
    });
    watch.end();
    let outcome = outcome.map_err(|reason| CliError::Impossible { reason: reason.to_string() })?;
    let mut table = String::new();
    for (lived, count) in rarities(&outcome.counts) {
        let _ = writeln!(table, "{count:8} {lived}");
    }
    for (kind, count) in &outcome.counts.faults {
        let _ = writeln!(table, "{count:8} {kind}");
    }
    let summary = summary(&outcome.counts);
    let violation = |failure: &Failure| violation(failure, simulated.threads);
    let ending = Ending {
        violations: outcome.failures.iter().map(violation).collect(),
        counts: outcome.counts,
        seconds: outcome.elapsed.as_secs_f64(),
        interrupted: outcome.interrupted,
    };
    ending.tell(arguments.json, &table, &summary)
}

fn violation(failure: &Failure, threads: bool) -> Violation {
    let Failure { seed, cut, base, reason } = failure;
    let threads = if threads { " --threads" } else { "" };
    let mut place = format!("seed {seed}, {base}");
    let mut repeat = format!("siltstone torture{threads} --seed {seed}");
    if let Some(cut) = cut {
        let _ = write!(place, ", cut at event {cut}");
        let _ = write!(repeat, " --cut {cut}");
    }
    if !threads.is_empty() {
        repeat += " (on threads no two runs are alike: it may take many)";
    }
    Violation { reason: reason.clone(), place, repeat, seed: Some(*seed), cut: *cut, pool: None }
}

/// What happens only now and then: a run that has lived none of it has shown nothing of it.
fn rarities(counts: &Counts) -> [(&'static str, u64); 12] {
    [
        ("clones", counts.clones),
        ("volumes gone back to a snapshot", counts.roll_backs),
        ("operations refused by full pools", counts.refused_full),
        ("pools grown in use", counts.grown),
        ("batches divided into two units", counts.divided_batches),
        ("adoptions begun", counts.begun_adoptions),
        ("adoptions completed", counts.adopted_layers),
        ("garbage collections", counts.collections),
        ("blocks moved by them", counts.moved_blocks),
        ("damaged blocks mended", counts.mended_blocks),
        (
            "index images stored in use, or found in closed pools",
            counts.index_images + counts.closed_images,
        ),
        ("openings that used an index image", counts.loaded_images),
    ]
}

fn summary(counts: &Counts) -> String {
    format!(
        "{}, {} ({}, {}, {} refused), {}, {}, {}, {} compared, {}, {} of damage",
        count(counts.histories, "history"),
        count(counts.operations, "operation"),
        count(counts.flushes, "flush"),
        count(counts.snapshots, "snapshot"),
        counts.refused,
        count(counts.cuts, "power cut"),
        count(counts.recoveries, "recovery"),
        count(counts.checks, "check"),
        count(counts.blocks, "block"),
        count(counts.faults.values().sum(), "fault"),
        count(counts.reported, "report"),
    )
}
