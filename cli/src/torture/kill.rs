//! `siltstone torture --kill`: this very program serves the pools.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use siltstone_torture::kill::{self, Failure, Limit, Plan, Program, SnapshotChange, tally::Counts};

use super::{
    Watch,
    ending::{Ending, Violation},
    jobs,
};
use crate::{args::torture::TortureArguments, errors::CliError, plural::count};

pub(super) fn run(arguments: &TortureArguments) -> Result<(), CliError> {
    let options = &arguments.kill;
    let time = Duration::from_secs(arguments.seconds());
    let plan = Plan {
        seed: arguments.seed.unwrap_or(1),
        limit: options.kills.map_or(Limit::Time(time), Limit::Kills),
        jobs: jobs(arguments),
        directory: options.directory.clone().unwrap_or_else(std::env::temp_dir),
    };
    let program = std::env::current_exe()
        .map_err(|source| CliError::System { action: "find this program", source })?;
    let watch = Watch::start()?;
    let outcome = kill::run(&plan, &Siltstone { program }, |counts, elapsed| {
        watch.show(|| format!("{} in {:.1} s", summary(&counts), elapsed.as_secs_f64()))
    });
    watch.end();
    let directory = plan.directory.display().to_string();
    let outcome = outcome.map_err(|error| CliError::file("make files in", &directory, error))?;
    let violation = |failure: &Failure| violation(failure, &plan);
    let ending = Ending {
        counts: outcome.counts,
        seconds: outcome.elapsed.as_secs_f64(),
        interrupted: outcome.interrupted,
        violations: outcome.failures.iter().map(violation).collect(),
    };
    ending.tell(arguments.json, "", &summary(&outcome.counts))
}

fn violation(failure: &Failure, plan: &Plan) -> Violation {
    let limit = match plan.limit {
        Limit::Time(time) => format!("--seconds {}", time.as_secs()),
        Limit::Kills(kills) => format!("--kills {kills}"),
    };
    let Plan { seed, jobs, .. } = plan;
    Violation {
        reason: failure.reason.clone(),
        place: format!("seed {seed}, after a kill"),
        repeat: format!(
            "siltstone torture --kill --seed {seed} --jobs {jobs} {limit} (time is real: clients \
             draw the same, the kills fall elsewhere)"
        ),
        seed: Some(*seed),
        cut: None,
        pool: Some(failure.pool.clone()),
    }
}

/// This program, as a child.
struct Siltstone {
    program: PathBuf,
}

impl Siltstone {
    fn command(&self, name: &str, pool: &Path) -> Command {
        let mut command = Command::new(&self.program);
        // RUST_LOG says what children log, which is quoted where a promise breaks.
        command.arg(name).arg(pool);
        command
    }
}

impl Program for Siltstone {
    fn serve(&self, pool: &Path, socket: &Path) -> Command {
        let mut command = self.command("serve", pool);
        command.arg("--listen").arg(format!("unix:{}", socket.display())).arg("--stop-at-eof");
        command
    }

    fn change(&self, pool: &Path, change: &SnapshotChange<'_>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(change.arguments(pool));
        command
    }

    fn check(&self, pool: &Path) -> Command {
        self.command("check", pool)
    }
}

fn summary(counts: &Counts) -> String {
    format!(
        "{} under load, {} while starting, {} (the slowest {} ms), {} ({}, {}, {} refused), {} \
         compared, {} taken, {} deleted, {}, {}, {}, {}",
        count(counts.kills, "kill"),
        counts.start_kills,
        count(counts.starts, "start"),
        counts.slowest_start_ms,
        count(counts.operations, "operation"),
        count(counts.flushes, "flush"),
        count(counts.durable_changes, "durable change"),
        counts.refused,
        count(counts.blocks, "block"),
        count(counts.snapshots, "snapshot"),
        counts.deleted_snapshots,
        count(counts.roll_backs, "rollback"),
        count(counts.clones, "clone"),
        count(counts.checks, "check"),
        count(counts.pools, "pool"),
    )
}
