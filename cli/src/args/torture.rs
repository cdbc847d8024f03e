//! The options of `siltstone torture`, each under the kind of torture that it belongs to.

use std::{ops::RangeInclusive, path::PathBuf};

use clap::{Args, CommandFactory, error::ErrorKind, value_parser};
use siltstone_torture::damage::{life::End, trial::Form};

use super::Arguments;

/// How long to go on unless something else is said.
const DEFAULT_SECONDS: u64 = 60;
/// More threads, or servers at a time, than any machine has use for.
const JOBS: RangeInclusive<i64> = 1..=256;
/// Of numbers that must not be zero.
const POSITIVE: RangeInclusive<u64> = 1..=u64::MAX;

#[derive(Debug, Args)]
pub(crate) struct TortureArguments {
    /// How long to go on, in seconds; what has begun by then is finished [default: 60].
    #[arg(long, value_parser = value_parser!(u64).range(POSITIVE))]
    seconds: Option<u64>,
    /// Only this history, exactly as it went before. With --kill, what clients draw from
    /// [default: 1].
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Threads, with --kill servers at a time: up to 256 [default: one a core].
    #[arg(long, value_parser = value_parser!(u16).range(JOBS))]
    pub(crate) jobs: Option<u16>,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) simulated: SimulatedOptions,
    #[command(flatten)]
    pub(crate) kill: KillOptions,
    #[command(flatten)]
    pub(crate) damage: DamageOptions,
}

/// Pools on simulated machines.
#[derive(Debug, Args)]
#[command(next_help_heading = "Simulated pools (without --kill and --damage)")]
#[group(multiple = true, conflicts_with_all = ["KillOptions", "DamageOptions"])]
pub(crate) struct SimulatedOptions {
    /// The first seed of many.
    #[arg(long, value_name = "SEED", default_value_t = 1, conflicts_with = "seed")]
    pub(crate) first_seed: u64,
    /// Of one seed's history only this cut: before the event of this number.
    #[arg(long, value_name = "EVENT", requires = "seed")]
    pub(crate) cut: Option<usize>,
    /// Live on real threads instead of a simulated machine: no two runs are alike then.
    #[arg(long)]
    pub(crate) threads: bool,
}

/// Real pools and servers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Real servers")]
#[group(multiple = true, conflicts_with_all = ["SimulatedOptions", "DamageOptions"])]
pub(crate) struct KillOptions {
    /// Kill servers of real pools.
    #[arg(long)]
    pub(crate) kill: bool,
    /// Stop after so many kills under load instead of a time.
    #[arg(long, value_name = "N", requires = "kill", conflicts_with = "seconds",
        value_parser = value_parser!(u64).range(POSITIVE))]
    pub(crate) kills: Option<u64>,
    /// Where real pools are made, of up to 512 MiB each [default: where temporary files go].
    #[arg(long, value_name = "PATH", requires = "kill")]
    pub(crate) directory: Option<PathBuf>,
}

/// Damaged pools.
#[derive(Debug, Args)]
#[command(next_help_heading = "Damaged pools")]
#[group(multiple = true,
    conflicts_with_all = ["SimulatedOptions", "KillOptions", "seconds", "seed"])]
pub(crate) struct DamageOptions {
    /// Damage small pools: each byte of their metadata, once, then sectors and blocks.
    #[arg(long)]
    pub(crate) damage: bool,
    /// Of so many places to damage only one.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "damage",
        value_parser = value_parser!(u64).range(POSITIVE))]
    pub(crate) every: u64,
    /// Damage only the byte, sector or block that is here, in bytes from the pool's start.
    #[arg(long, value_name = "OFFSET", requires_all = ["damage", "pool"],
        conflicts_with_all = ["every", "jobs"])]
    pub(crate) at: Option<u64>,
    /// In this pool: closed, or crashed.
    #[arg(long, value_name = "END", requires = "at")]
    pub(crate) pool: Option<End>,
    /// Invert these bits of the byte [default: by where it is].
    #[arg(long, value_name = "BITS", requires = "at", conflicts_with_all = ["form", "every"],
        value_parser = value_parser!(u8).range(1..))]
    pub(crate) value: Option<u8>,
    /// Damage it in this way: flip, unreadable, or zero, stale or swap, each followed by -sector or
    /// -block.
    #[arg(long, requires = "at", conflicts_with = "every", default_value = "flip")]
    pub(crate) form: Form,
}

impl TortureArguments {
    /// How long to go on.
    pub(crate) fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(DEFAULT_SECONDS)
    }

    /// Refuses what has no meaning together, as far as that depends on a third option.
    pub(super) fn validate(&self) -> Result<(), clap::Error> {
        let is_one_history = self.seed.is_some() && !self.kill.kill;
        for (option, given) in
            [("--seconds", self.seconds.is_some()), ("--jobs", self.jobs.is_some())]
        {
            if is_one_history && given {
                let text = format!(
                    "the argument '--seed <SEED>' cannot be used with '{option}' without --kill: \
                     it is one history, lived once"
                );
                let mut command = Arguments::command();
                command.build();
                let command = command.find_subcommand_mut("torture").expect("it is a command");
                return Err(command.error(ErrorKind::ArgumentConflict, text));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::LineError;

    /// Options with their values that belong to one kind of torture, and what selects it.
    const SIMULATED: &[&[&str]] =
        &[&["--first-seed", "5"], &["--seed", "5", "--cut", "5"], &["--threads"]];
    const KILL: &[&[&str]] = &[&["--kills", "5"], &["--directory", "/tmp"]];
    const DAMAGE: &[&[&str]] = &[
        &["--every", "5"],
        &["--at", "5", "--pool", "closed"],
        &["--at", "5", "--pool", "closed", "--value", "5"],
        &["--at", "5", "--pool", "closed", "--form", "zero-block"],
    ];

    fn parse(options: &[&[&str]]) -> Result<Arguments, LineError> {
        let line = [&["siltstone", "torture"]].into_iter().map(|start| &start[..]);
        Arguments::of_line(line.chain(options.iter().copied()).flatten())
    }

    #[test]
    fn options_belong_to_one_kind_of_torture() {
        let kinds: [(&[&str], _); 3] =
            [(&[], SIMULATED), (&["--kill"], KILL), (&["--damage"], DAMAGE)];
        for (number, (kind, _)) in kinds.iter().enumerate() {
            for (other, (_, lists)) in kinds.iter().enumerate() {
                for options in *lists {
                    let parsed = parse(&[kind, options]);
                    assert_eq!(parsed.is_ok(), number == other, "{kind:?} {options:?}");
                }
            }
        }
        parse(&[&["--kill", "--damage"]]).unwrap_err();
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for options in [
            &["--seed", "5", "--seconds", "5"][..],
            &["--seed", "5", "--jobs", "5"],
            &["--seed", "5", "--first-seed", "5"],
            &["--cut", "5"],
            &["--kill", "--kills", "5", "--seconds", "5"],
            &["--damage", "--seconds", "5"],
            &["--damage", "--seed", "5"],
            &["--damage", "--at", "5"],
            &["--damage", "--pool", "closed"],
            &["--damage", "--value", "5"],
            &["--damage", "--form", "zero-block"],
            &["--damage", "--pool", "closed", "--at", "5", "--every", "5"],
            &["--damage", "--pool", "closed", "--at", "5", "--jobs", "5"],
            &["--damage", "--pool", "closed", "--at", "5", "--value", "5", "--form", "zero-block"],
        ] {
            assert!(parse(&[options]).is_err(), "{options:?}");
        }
        for options in [
            &["--kill", "--seed", "5", "--seconds", "5", "--jobs", "5"][..],
            &["--kill", "--kills", "5", "--seed", "5"],
            &["--threads", "--seed", "5"],
            &["--damage", "--jobs", "5"],
        ] {
            parse(&[options]).unwrap();
        }
    }

    #[test]
    fn impossible_numbers_are_refused() {
        for options in [
            &["--seconds", "0"][..],
            &["--jobs", "0"],
            &["--jobs", "257"],
            &["--jobs", "100000"],
            &["--kill", "--kills", "0"],
            &["--damage", "--every", "0"],
            &["--damage", "--pool", "closed", "--at", "5", "--value", "0"],
            &["--damage", "--pool", "closed", "--at", "5", "--value", "256"],
            &["--damage", "--pool", "closed", "--at", "-1"],
        ] {
            let refused = parse(&[options]).unwrap_err().to_string();
            let is_told = refused.contains("..=") || refused.contains("unexpected argument");
            assert!(is_told, "{options:?}: {refused}");
        }
        parse(&[&["--jobs", "256"]]).unwrap();
    }

    #[test]
    fn the_help_tells_of_every_kind() {
        let mut command = Arguments::command();
        let help = command.find_subcommand_mut("torture").unwrap().render_long_help().to_string();
        let (about, options) = help.split_once("Usage:").unwrap();
        for kind in ["--threads", "--kill", "--damage"] {
            assert!(about.contains(kind), "{kind}: {about}");
        }
        for heading in ["Simulated pools", "Real servers", "Damaged pools"] {
            assert!(options.contains(&format!("\n{heading}")), "{options}");
        }
        assert!(options.contains(&format!("[default: {DEFAULT_SECONDS}]")), "{options}");
        assert!(options.contains(&format!("up to {} ", JOBS.end())), "{options}");
    }
}
