//! `siltstone torture --kill`: this very program serves the pools.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::Serialize;
use siltstone_torture::kill::{self, Limit, Outcome, Plan, Program, tally::Counts};

use super::jobs;
use crate::{
    args::TortureArguments,
    errors::CliError,
    output::{print, print_json},
    progress,
};

pub(super) fn run(arguments: &TortureArguments) -> Result<(), CliError> {
    let time = Duration::from_secs(arguments.seconds);
    let plan = Plan {
        seed: arguments.seed.unwrap_or(1),
        limit: arguments.kills.map_or(Limit::Time(time), Limit::Kills),
        jobs: jobs(arguments),
        directory: arguments.directory.clone().unwrap_or_else(std::env::temp_dir),
    };
    let program = std::env::current_exe()
        .map_err(|source| CliError::System { action: "find this program", source })?;
    let counter = progress::text();
    let outcome = kill::run(&plan, &Siltstone { program }, |counts, elapsed| {
        counter.set_message(summary(&counts, elapsed));
        counter.tick();
    });
    counter.finish_and_clear();
    let directory = plan.directory.display().to_string();
    let outcome = outcome.map_err(|error| CliError::file("make files in", &directory, error))?;
    if arguments.json {
        print_json(&Report::new(&outcome))?;
    } else {
        let mut text = String::new();
        for failure in &outcome.failures {
            let _ = writeln!(text, "VIOLATION: {failure}");
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
        command.arg("--listen").arg(format!("unix:{}", socket.display()));
        command
    }

    fn check(&self, pool: &Path) -> Command {
        self.command("check", pool)
    }
}

fn summary(counts: &Counts, elapsed: Duration) -> String {
    format!(
        "{} kills under load, {} while starting, {} starts (the slowest {} ms), {} operations \
         ({} flushes, {} durable changes, {} refused), {} blocks compared, {} checks, {} pools \
         in {:.1} s",
        counts.kills,
        counts.start_kills,
        counts.starts,
        counts.slowest_start_ms,
        counts.operations,
        counts.flushes,
        counts.durable_changes,
        counts.refused,
        counts.blocks,
        counts.checks,
        counts.pools,
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
    pool: PathBuf,
    reason: String,
}

impl Report {
    fn new(outcome: &Outcome) -> Self {
        let violation = |failure: &kill::Failure| Violation {
            pool: failure.pool.clone(),
            reason: failure.reason.clone(),
        };
        Self {
            counts: outcome.counts,
            seconds: outcome.elapsed.as_secs_f64(),
            violations: outcome.failures.iter().map(violation).collect(),
        }
    }
}
